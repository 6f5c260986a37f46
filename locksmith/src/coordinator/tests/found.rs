//! What simulations of whole fleets, and hostile readers, found.

use std::time::Duration;

use super::bench::{Bench, options};
use super::{HOUR, semaphore, take};
use crate::coordinator::{Action, Agent, Event, Health, Identity, Lock, Moment, Options, Window};
use crate::semaphore::places::{self, Acquire, Request};
use crate::semaphore::{
    Holder, Key, Kind, LeaseId, Max, Phase, Record, Transaction, Write, failures, steering,
};
use crate::store::Fault;

#[test]
fn a_commit_that_comes_late_does_not_undo_a_later_step() {
    let mut bench = semaphore();
    bench.comes_up = Some(1);
    assert!(bench.live_until(HOUR, |bench| bench.stage() == "verifying"));
    let before = bench.snapshot();
    let token = before.holders[&Bench::id()].created;
    let verifies = |holder: &mut crate::semaphore::Holder| holder.phase = Phase::Verifying;
    let late = [
        places::advance(&before, &Bench::id(), token, verifies).unwrap(),
        failures::mark_failed(&before, &Bench::id(), token, "late", 0).unwrap(),
    ];
    assert!(bench.live_until(HOUR, |bench| bench.stage() == "failed"));
    bench.run(Duration::from_secs(60), |_| false);
    assert_eq!(bench.holder().unwrap().phase, Phase::Failed);
    for transaction in late {
        assert!(!bench.group.commit(&transaction).unwrap().succeeded);
    }
}

/// On v2 nothing but the time tells whose a place is.
#[test]
fn a_lock_by_hand_without_a_record_stays_and_a_place_of_its_own_goes_back() {
    let mut bench = semaphore();
    bench.document_only = true;
    bench.restart();
    // It reboots with a place, gives it back after that, and listens.
    bench.live_until(HOUR, |bench| bench.reboots == 1 && bench.stage() == "idle");
    assert!(bench.is_done(2), "{:?}", bench.seen);
    bench.others(|snapshot| take(snapshot, "a", Kind::Manual));
    bench.run(3 * HOUR, |_| false);
    assert!(bench.places().holds(&Bench::id()), "{:?}", bench.seen);
    // An update that came and went changes nothing.
    for applied in [Some(3), None] {
        bench.window = Window::Closed(None);
        bench.applied = Ok(applied);
        bench.tell(Event::UpdaterChanged);
        bench.run(HOUR, |_| false);
    }
    assert!(bench.places().holds(&Bench::id()), "{:?}", bench.seen);
    // At the start it may be from before the reboot.
    bench.restart();
    bench.run(HOUR, |_| false);
    assert!(!bench.places().holds(&Bench::id()), "{:?}", bench.seen);
}

#[test]
fn neither_long_programs_nor_a_long_soak_make_a_healthy_machine_late() {
    let mut bench = Bench::new(Options {
        soak: 2 * HOUR,
        ..options(Lock::Semaphore)
    });
    assert!(bench.run(HOUR, |bench| bench.stage() == "draining"));
    bench.advance(5 * HOUR);
    assert_eq!(failures::mark_overdue(&bench.snapshot(), 0), None);
    assert!(bench.live_until(HOUR, |bench| bench.stage() == "verifying"));
    let verifying = |bench: &Bench| bench.stage() != "verifying";
    while !bench.run(Duration::from_secs(60), verifying) {
        assert_eq!(failures::mark_overdue(&bench.snapshot(), 0), None);
    }
    bench.live();
    assert!(bench.is_done(2), "{:?}", bench.seen);
}

#[test]
fn a_new_process_keeps_the_deadline_while_its_programs_run() {
    let mut bench = semaphore();
    let drains = |bench: &Bench| {
        bench
            .seen
            .iter()
            .filter(|seen| *seen == "drain for 2")
            .count()
    };
    assert!(bench.run(HOUR, |bench| drains(bench) == 1));
    bench.restart();
    assert!(bench.run(HOUR, |bench| drains(bench) == 2));
    bench.advance(5 * HOUR);
    assert_eq!(failures::mark_overdue(&bench.snapshot(), 0), None);
    bench.live();
    assert!(bench.is_done(2), "{:?}", bench.seen);
}

#[test]
fn an_agent_that_is_gone_while_its_programs_run_is_late() {
    let mut bench = semaphore();
    assert!(bench.run(HOUR, |bench| bench.stage() == "draining"));
    bench.clock += HOUR;
    bench.group.advance(bench.clock);
    assert!(failures::mark_overdue(&bench.snapshot(), 0).is_some());
}

#[test]
fn a_place_whose_record_cannot_be_read_goes_back() {
    let mut bench = semaphore();
    assert!(bench.run(HOUR, |bench| bench.reboots == 1));
    bench.unreadable = true;
    bench.power_cycle();
    bench.live();
    assert!(bench.is_done(2), "{:?}", bench.seen);
    assert!(bench.holder().is_none());
}

/// Writes the machine's record in words of a later version.
fn later_words(bench: &mut Bench) {
    bench.others(|snapshot| {
        let token = snapshot.holders[&Bench::id()].created;
        let change = |holder: &mut Holder| {
            holder.phase = Phase::Unknown;
            holder.kind = Kind::Unknown;
        };
        places::advance(snapshot, &Bench::id(), token, change).ok()
    });
}

#[test]
fn who_falls_back_from_a_later_version_fails() {
    let mut bench = semaphore();
    assert!(bench.run(HOUR, |bench| bench.reboots == 1));
    later_words(&mut bench);
    bench.comes_up = Some(1);
    bench.power_cycle();
    bench.live();
    assert_eq!(bench.holder().unwrap().phase, Phase::Failed);
    assert_eq!(failures::budget_left(&bench.snapshot()), Some(1));
    // One that comes up as it should is proven as ever.
    let mut bench = semaphore();
    assert!(bench.run(HOUR, |bench| bench.reboots == 1));
    later_words(&mut bench);
    bench.power_cycle();
    bench.live();
    assert!(bench.is_done(2), "{:?}", bench.seen);
    // And one that has not rebooted begins anew.
    let mut bench = semaphore();
    assert!(bench.run(HOUR, |bench| bench.stage() == "draining"));
    later_words(&mut bench);
    bench.restart();
    bench.live();
    assert!(bench.is_done(2), "{:?}", bench.seen);
    assert_eq!(failures::budget_left(&bench.snapshot()), Some(2));
}

#[test]
fn a_new_process_does_not_use_the_nonces_of_the_one_before() {
    let mut nonces = Vec::new();
    let mut bench = semaphore();
    for roll in [1, 2] {
        bench.roll = roll;
        bench.restart();
        assert!(bench.run(HOUR, |bench| bench.stage() == "draining"));
        nonces.push(bench.holder().unwrap().nonce);
        bench.hooks = Err("no".into());
        assert!(bench.run(HOUR, |bench| bench.holder().is_none()));
        bench.hooks = Ok(());
    }
    assert_ne!(nonces[0], nonces[1]);
}

#[test]
fn an_update_that_was_applied_while_the_agent_of_a_failed_machine_was_away_is_seen() {
    let mut bench = semaphore();
    bench.comes_up = Some(1);
    assert!(bench.live_until(HOUR, |bench| bench.stage() == "failed"));
    bench.run(HOUR, |_| false);
    bench.applied = Ok(Some(3));
    bench.restart();
    bench.live();
    assert!(bench.is_done(3), "{:?}", bench.seen);
}

#[test]
fn an_update_that_is_applied_while_the_updater_answers_is_seen() {
    let mut bench = semaphore();
    bench.applied = Ok(None);
    bench.restart();
    bench.run(HOUR, |_| false);
    bench.tell(Event::UpdaterChanged);
    bench.applied = Ok(Some(2));
    bench.tell(Event::UpdaterChanged);
    bench.live();
    assert!(bench.is_done(2), "{:?}", bench.seen);
}

#[test]
fn a_ticket_whose_lease_has_ended_is_replaced_at_once() {
    let mut bench = semaphore();
    bench.others(|snapshot| take(snapshot, "b", Kind::Reboot));
    bench.run(Duration::from_secs(60), |_| false);
    assert_eq!(
        (bench.stage(), bench.snapshot().queue_length),
        ("queued", 1)
    );
    // It was cut off, and nothing has told it yet.
    bench.clock += Duration::from_secs(91);
    bench.group.advance(bench.clock);
    assert_eq!(bench.snapshot().queue_length, 0);
    let calls = bench.calls;
    bench.run(Duration::from_secs(600), |_| false);
    assert_eq!(bench.snapshot().queue_length, 1);
    assert!(bench.calls - calls < 15, "{} calls", bench.calls - calls);
    bench.others(|snapshot| places::unlock(snapshot, &"b".into(), "unlocked", 0));
    bench.live();
    assert!(bench.is_done(2), "{:?}", bench.seen);
}

#[test]
fn who_finds_free_places_serves_the_queue_when_the_first_in_line_does_not() {
    let mut bench = semaphore();
    bench.others(|snapshot| take(snapshot, "x", Kind::Manual));
    // It waits, and its agent is cut off.
    let first = Request {
        id: "b".into(),
        rank: 50,
        holder: Holder::new(Kind::Reboot, "b-1"),
        confirm: true,
        ticket_lease: bench.group.grant_lease(24 * HOUR),
        deadline_lease: LeaseId::default(),
    };
    bench.others(
        |snapshot| match places::acquire(snapshot, &first, None, false, 0) {
            Acquire::Commit { transaction, .. } => Some(transaction),
            _ => None,
        },
    );
    bench.run(Duration::from_secs(60), |_| false);
    assert_eq!(bench.snapshot().queue_length, 2);
    // A tool that knows nothing of the queue makes room.
    bench.others(|snapshot| {
        let mut document = snapshot.places().clone();
        document.set_max(3);
        Some(Transaction {
            then: vec![Write::Put(
                Key::Document,
                Record::Document(document),
                LeaseId::default(),
            )],
            ..Transaction::default()
        })
    });
    let calls = bench.calls;
    bench.run(Duration::from_secs(400), |bench| bench.reboots > 0);
    assert_eq!(bench.reboots, 1, "{:?}", bench.seen);
    let calls = bench.calls - calls;
    assert!(calls < 20, "{calls} calls");
    let granted = &bench.snapshot().holders[&"b".into()];
    assert_eq!(granted.value.as_ref().unwrap().phase, Phase::Granted);
}

#[test]
fn who_gives_a_grant_back_leaves_the_queue() {
    let mut bench = semaphore();
    bench.others(|snapshot| take(snapshot, "b", Kind::Reboot));
    bench.run(Duration::from_secs(60), |_| false);
    bench.window = Window::Closed(None);
    bench.others(|snapshot| places::unlock(snapshot, &"b".into(), "unlocked", 0));
    let granted = bench.snapshot();
    assert_eq!(bench.holder().unwrap().phase, Phase::Granted);
    assert_eq!(granted.queue_length, 1);
    let token = granted.holders[&Bench::id()].created;
    bench.others(|snapshot| places::release(snapshot, &Bench::id(), token, "given-back", 0));
    let after = bench.snapshot();
    assert_eq!((after.queue_length, after.places().semaphore), (0, 1));
    let ticket = Key::Ticket(granted.queue[0].0.clone());
    assert_eq!(bench.group.record(&ticket), None);
}

#[test]
fn a_hint_that_overtakes_an_answer_is_not_lost() {
    let identity = Identity {
        id: "a".into(),
        boot_id: "b".into(),
        version: "1".into(),
    };
    let mut agent = Agent::new(identity, options(Lock::None));
    let moment = Moment {
        monotonic: Duration::from_secs(1),
        wall: 1,
        roll: 1,
        window: Window::Open,
    };
    assert!(
        agent
            .step(Event::Started, moment)
            .contains(&Action::ReadUpdater)
    );
    agent.step(Event::UpdaterChanged, moment);
    let answered = agent.step(Event::Updater(Ok(None)), moment);
    assert!(answered.contains(&Action::ReadUpdater), "{answered:?}");
}

#[test]
fn off_never_reboots_whatever_place_is_left() {
    let mut before = semaphore();
    before.comes_up = Some(1);
    before.live();
    assert_eq!(before.stage(), "failed");
    let mut bench = Bench::new(Options {
        recover: true,
        stays_up: true,
        ..options(Lock::None)
    });
    bench.group = before.group;
    bench.clock = before.clock;
    bench.running = 1;
    bench.applied = Ok(Some(3));
    bench.restart();
    bench.run(24 * HOUR, |bench| bench.reboots > 0);
    assert_eq!(bench.reboots, 0, "{:?}", bench.seen);
}

#[test]
fn the_late_are_noticed_by_whoever_finds_a_free_place() {
    let mut bench = semaphore();
    bench.applied = Ok(None);
    bench.restart();
    let (_, _, wide) = steering::set_max(&bench.snapshot(), Max::Count(10), 0);
    bench.group.commit(&wide).unwrap();
    // Without a deadline that still runs all three are late.
    for id in ["x", "y", "z"] {
        bench.others(|snapshot| take(snapshot, id, Kind::Reboot));
    }
    bench.applied = Ok(Some(2));
    bench.tell(Event::UpdaterChanged);
    bench.live_until(HOUR, |bench| bench.reboots > 0);
    assert_eq!(bench.reboots, 0, "{:?}", bench.seen);
    assert!(bench.snapshot().halt.value.is_some());
}

#[test]
fn the_late_are_noticed_by_machines_that_have_nothing_to_do() {
    let mut bench = semaphore();
    bench.applied = Ok(None);
    bench.restart();
    bench.run(HOUR, |bench| bench.stage() == "idle");
    bench.others(|snapshot| take(snapshot, "x", Kind::Reboot));
    bench.run(HOUR, |_| false);
    let late = &bench.snapshot().holders[&"x".into()];
    assert_eq!(late.value.as_ref().unwrap().phase, Phase::Overdue);
}

#[test]
fn a_failed_machine_heals_without_an_updater() {
    let mut bench = semaphore();
    bench.health = Health::NotYet("x".into());
    bench.live_until(2 * HOUR, |bench| bench.stage() == "failed");
    bench.applied = Err("no update_engine".into());
    bench.tell(Event::UpdaterChanged);
    bench.health = Health::Good;
    bench.run(24 * HOUR, |bench| bench.holder().is_none());
    assert_eq!(bench.holder(), None, "{:?}", bench.seen);
}

#[test]
fn a_store_that_is_gone_does_not_stop_another_strategy() {
    let mut bench = Bench::new(Options {
        recover: true,
        ..options(Lock::None)
    });
    bench.faults = (0..100_000).map(|_| Some(Fault::Unavailable)).collect();
    bench.restart();
    bench.run(HOUR, |bench| bench.reboots > 0);
    assert_eq!(bench.reboots, 1, "{:?}", bench.seen);
}

#[test]
fn a_place_that_comes_late_is_found_while_the_updater_answers() {
    let mut bench = semaphore();
    bench.applied = Ok(None);
    bench.restart();
    bench.run(HOUR, |_| false);
    assert_eq!(bench.stage(), "idle");
    bench.tell(Event::UpdaterChanged);
    bench.others(|snapshot| take(snapshot, "a", Kind::Reboot));
    bench.tell(Event::Changed);
    bench.group.take_changed();
    bench.run(HOUR, |bench| bench.holder().is_none());
    assert_eq!(bench.holder(), None, "{:?}", bench.seen);
}

#[test]
fn an_operators_reboot_keeps_its_place_beside_the_agent() {
    let mut bench = semaphore();
    bench.applied = Ok(None);
    bench.restart();
    bench.run(HOUR, |_| false);
    let lease = bench.group.grant_lease(Duration::from_secs(1800));
    let request = Request {
        id: Bench::id(),
        rank: 0,
        confirm: false,
        ticket_lease: LeaseId::default(),
        deadline_lease: lease,
        holder: Holder {
            boot_id: "boot0".into(),
            ..Holder::new(Kind::Reboot, "0f3c")
        },
    };
    bench.others(
        |snapshot| match places::acquire(snapshot, &request, None, false, 0) {
            Acquire::Commit { transaction, .. } => Some(transaction),
            _ => None,
        },
    );
    bench.run(Duration::from_secs(5), |_| false);
    assert_eq!(bench.stage(), "idle", "{:?}", bench.seen);
    let token = bench.snapshot().holders[&Bench::id()].created;
    bench.others(|snapshot| {
        let rebooting = |holder: &mut Holder| holder.phase = Phase::Rebooting;
        places::fence(snapshot, &Bench::id(), token, lease, rebooting).ok()
    });
    bench.run(Duration::from_secs(600), |_| false);
    assert_eq!(bench.holder().unwrap().phase, Phase::Rebooting);
}

#[test]
fn a_process_that_ends_gives_back_what_it_has_not_used() {
    for stage in ["queued", "draining"] {
        let mut bench = semaphore();
        if stage == "queued" {
            bench.others(|snapshot| take(snapshot, "b", Kind::Manual));
        }
        assert!(
            bench.live_until(HOUR, |bench| bench.stage() == stage),
            "{stage}"
        );
        bench.tell(Event::Stopping);
        bench.run(Duration::from_secs(10), |bench| bench.may_end());
        assert!(bench.may_end(), "{stage}: {:?}", bench.seen);
        assert_eq!(bench.holder(), None, "{stage}");
        assert_eq!(bench.snapshot().queue_length, 0, "{stage}");
        bench.run(HOUR, |_| false);
        assert_eq!(bench.reboots, 0, "{stage}");
    }
}
