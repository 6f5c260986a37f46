//! The agent, event by event; and all that can happen to three of them.
//!
//! After each step of every test here the bench asserts that at most one request
//! is under way, and that something will go on: an answer, a timer, or the
//! updater's next signal.

mod bench;
mod exhaustive;
mod found;

use std::time::Duration;

use bench::{Bench, options};

use super::{Event, Health, Lock, Options, Window};
use crate::semaphore::places::{self, Acquire, Request};
use crate::semaphore::{
    Document, Halt, Holder, Key, Kind, LeaseId, Phase, Record, Snapshot, Transaction, Write,
    failures,
};
use crate::store::Fault;

const HOUR: Duration = Duration::from_secs(3600);

fn semaphore() -> Bench {
    Bench::new(options(Lock::Semaphore))
}

/// `b` takes the only place, or an operator takes it in the name of `a`.
fn take(snapshot: &Snapshot, id: &str, kind: Kind) -> Option<Transaction> {
    let request = Request {
        id: id.into(),
        rank: 100,
        holder: Holder {
            ..Holder::new(kind, "of b")
        },
        confirm: false,
        ticket_lease: LeaseId::default(),
        deadline_lease: LeaseId::default(),
    };
    match places::acquire(snapshot, &request, None, false, 0) {
        Acquire::Commit { transaction, .. } => Some(transaction),
        _ => None,
    }
}

fn halt(snapshot: &Snapshot) -> Option<Transaction> {
    let halt = Halt {
        by: "op".into(),
        why: "fire".into(),
        at: 0,
    };
    failures::halt(snapshot, halt)
}

/// The original's unlock: it knows nothing but the document.
fn unlock_by_old_tool(snapshot: &Snapshot) -> Option<Transaction> {
    let mut document = snapshot.places().clone();
    document.unlock(&Bench::id()).ok()?;
    Some(Transaction {
        when: Vec::new(),
        then: vec![Write::Put(
            Key::Document,
            Record::Document(document),
            LeaseId::default(),
        )],
        otherwise: Vec::new(),
    })
}

#[test]
fn an_update_is_rebooted_into_once_and_the_place_goes_back() {
    let mut bench = semaphore();
    bench.live();
    assert!(bench.is_done(2));
    assert_eq!(bench.reboots, 1);
    assert_eq!(
        bench.seen,
        [
            "running",
            "remember false",
            "running",
            "planned",
            "remember true",
            "\"took a place\"",
            "drain for 2",
            "rebooting",
            "reboot",
            "running",
            "\"Unlocked existing lock for this machine\"",
            "remember false",
            "remember false",
            "running",
        ]
    );
    assert_eq!(
        bench.places().write(),
        r#"{"semaphore":1,"max":1,"holders":[]}"#
    );
    assert_eq!(bench.holder(), None);
}

#[test]
fn any_call_of_the_store_may_fail_in_any_way() {
    let calls = {
        let mut bench = semaphore();
        bench.live();
        bench.calls
    };
    // A day, with a look around every half hour once all is done.
    assert!((40..120).contains(&calls), "{calls}");
    for at in 0..40 {
        for fault in [Fault::Unavailable, Fault::RequestLost, Fault::ReplyLost] {
            for times in [1, 5] {
                let mut bench = semaphore();
                // `new` has made the first call.
                let before = (1..at).map(|_| None);
                bench.faults = before.chain((0..times).map(|_| Some(fault))).collect();
                bench.live();
                assert!(bench.is_done(2), "{at} {fault:?}: {:?}", bench.seen);
                assert_eq!(bench.reboots, 1, "{at} {fault:?}: {:?}", bench.seen);
            }
        }
    }
}

/// Runs `happens` after each number of steps, and then on to the end.
fn at_every_step(check: impl Fn(usize, &mut Bench)) {
    let steps = {
        let mut bench = semaphore();
        bench.live();
        bench.steps
    };
    for at in 1..steps {
        let mut bench = semaphore();
        bench.live_until(HOUR, |bench| bench.steps >= at);
        check(at, &mut bench);
        bench.live();
        let seen = bench.seen.clone();
        assert!(
            bench.is_done(2),
            "after {at} steps in {}: {seen:?}",
            bench.stage()
        );
        let places = bench.places();
        assert!(places.is_sound() && places.holders.is_empty());
    }
}

#[test]
fn its_process_may_begin_again_at_any_step() {
    at_every_step(|_, bench| bench.restart());
}

#[test]
fn the_power_may_fail_at_any_step() {
    at_every_step(|_, bench| bench.power_cycle());
}

#[test]
fn an_operator_may_take_the_place_away_at_any_step() {
    at_every_step(|_, bench| {
        let snapshot = bench.snapshot();
        if let Some(transaction) = places::unlock(&snapshot, &Bench::id(), "unlocked", 0) {
            bench.group.commit(&transaction).unwrap();
        }
    });
    at_every_step(|_, bench| {
        let snapshot = bench.snapshot();
        if let Some(transaction) = unlock_by_old_tool(&snapshot) {
            bench.group.commit(&transaction).unwrap();
        }
    });
}

#[test]
fn hints_that_mean_nothing_change_nothing() {
    for event in [
        Event::Changed,
        Event::Woke,
        Event::UpdaterChanged,
        Event::LeaseLost,
        Event::Loaded(Err("late".into())),
        Event::Leased(Ok(LeaseId(77))),
        Event::Drained(Ok(())),
        Event::Rebooting(Ok(())),
        Event::FleetLock(Ok(())),
        Event::UsersWarned(true),
        Event::Health(Health::Good),
        Event::Updater(Ok(None)),
    ] {
        let asked = |event: &Event, stage: &str| {
            // These are the answers that are waited for there.
            matches!(
                (event, stage),
                (Event::Drained(_), "draining")
                    | (Event::Rebooting(_), "rebooting")
                    | (Event::Health(_), "verifying")
                    | (Event::UsersWarned(_), "waiting")
                    | (Event::Loaded(_) | Event::Leased(_) | Event::Updater(_), _)
            )
        };
        at_every_step(|_, bench| {
            if !asked(&event, bench.stage()) {
                bench.tell(event.clone());
            }
        });
    }
}

/// The agent has taken a place and runs its programs or is about to: what stops
/// it there.
#[test]
fn who_cannot_reboot_gives_the_place_back_and_tries_again() {
    type Change = fn(&mut Bench);
    let cases: [(&str, Change, Change); 7] = [
        (
            "\"not ready to reboot: full\"",
            |bench| bench.hooks = Err("full".into()),
            |bench| bench.hooks = Ok(()),
        ),
        (
            "\"the reboot was refused: inhibited\"",
            |bench| bench.logind = Err("inhibited".into()),
            |bench| bench.logind = Ok(()),
        ),
        (
            "\"the reboot did not begin within 60s\"",
            |bench| bench.shuts_down = false,
            |bench| bench.shuts_down = true,
        ),
        (
            "\"the updater does not answer\"",
            |bench| bench.applied = Err("gone".into()),
            |bench| {
                bench.applied = Ok(Some(2));
                bench.tell(Event::UpdaterChanged);
            },
        ),
        (
            "\"the update no longer waits\"",
            |bench| bench.applied = Ok(None),
            |bench| {
                bench.applied = Ok(Some(2));
                bench.tell(Event::UpdaterChanged);
            },
        ),
        (
            "\"the reboot window has closed\"",
            |bench| bench.window = Window::Closed(Some(HOUR)),
            |bench| bench.window = Window::Open,
        ),
        (
            "\"the group is halted: fire\"",
            |bench| bench.others(halt),
            |bench| bench.others(failures::clear_halt),
        ),
    ];
    for (words, breaks, heals) in cases {
        let mut bench = semaphore();
        assert!(
            bench.run(HOUR, |bench| bench.stage() == "draining"),
            "{words}"
        );
        breaks(&mut bench);
        assert!(
            bench.run(2 * HOUR, |bench| bench
                .seen
                .iter()
                .any(|seen| seen == words)
                && bench.holder().is_none()),
            "{words}: {:?}",
            bench.seen
        );
        assert_eq!(bench.places().holders, []);
        // It does not try again and again meanwhile.
        let steps = bench.steps;
        bench.run(HOUR, |_| false);
        assert!(
            bench.steps - steps < 400,
            "{words}: {} steps",
            bench.steps - steps
        );
        bench.reboots = 0;
        heals(&mut bench);
        bench.live();
        assert!(bench.is_done(2), "{words}: {:?}", bench.seen);
        assert_eq!(bench.reboots, 1, "{words}");
    }
}

#[test]
fn a_shutdown_that_has_begun_has_more_time_whatever_the_answer() {
    for answer in [Ok(()), Err("the bus is gone".to_owned())] {
        let mut bench = semaphore();
        bench.shuts_down = false;
        bench.logind = answer.clone();
        assert!(bench.run(HOUR, |bench| bench.stage() == "rebooting"));
        bench.tell(Event::ShuttingDown);
        bench.run(HOUR / 2, |_| false);
        assert!(bench.holder().is_some(), "{answer:?}");
        bench.run(HOUR / 2, |_| false);
        assert!(bench.seen.contains(&"reboot given up".to_owned()));
        assert!(
            bench
                .seen
                .contains(&"\"the reboot did not end within 2700s\"".to_owned())
        );
    }
}

#[test]
fn it_waits_for_its_turn_and_leaves_the_queue_when_the_window_closes() {
    let mut bench = semaphore();
    bench.others(|snapshot| take(snapshot, "b", Kind::Manual));
    assert!(!bench.run(HOUR, |bench| bench.stage() == "draining"));
    assert_eq!(bench.snapshot().queue_length, 1);
    bench.window = Window::Closed(None);
    bench.run(HOUR, |_| false);
    assert_eq!(bench.snapshot().queue_length, 0);
    assert_eq!(bench.stage(), "waiting");
    bench.window = Window::Open;
    bench.run(HOUR, |_| false);
    assert_eq!(bench.snapshot().queue_length, 1);
    // The place comes to it; it does not have to look.
    bench.others(|snapshot| places::unlock(snapshot, &"b".into(), "unlocked", 0));
    assert!(bench.run(Duration::from_secs(1), |bench| bench.stage() == "rebooting"));
    bench.live();
    assert!(bench.is_done(2));
}

#[test]
fn a_place_whose_answer_was_lost_goes_back_when_the_window_closes() {
    for fault in [Fault::RequestLost, Fault::ReplyLost] {
        let mut bench = semaphore();
        // load, lease, load, lease, load: then the place is taken.
        let calls = bench.calls;
        assert!(bench.run(HOUR, |bench| bench.stage() == "queued"));
        while bench.holder().is_none() && bench.calls < calls + 8 {
            bench.faults = [Some(fault)].into();
            let before = bench.steps;
            bench.run(HOUR, |bench| bench.steps > before);
            bench.faults.clear();
        }
        bench.window = Window::Closed(None);
        bench.run(HOUR, |_| false);
        assert_eq!(bench.holder(), None, "{fault:?}");
        assert_eq!(bench.places().holders, [], "{fault:?}");
    }
}

#[test]
fn a_grant_to_a_ticket_of_an_earlier_process_is_given_back() {
    let mut bench = semaphore();
    bench.others(|snapshot| take(snapshot, "b", Kind::Manual));
    bench.run(HOUR, |bench| bench.stage() == "queued");
    bench.run(HOUR / 60, |_| false);
    bench.applied = Ok(None);
    bench.restart();
    bench.run(Duration::from_secs(1), |_| false);
    assert_eq!(bench.stage(), "idle");
    assert_eq!(bench.snapshot().queue_length, 1);
    bench.others(|snapshot| places::unlock(snapshot, &"b".into(), "unlocked", 0));
    assert!(bench.holder().is_some());
    bench.run(Duration::from_secs(1), |_| false);
    assert_eq!(bench.holder(), None);
    assert_eq!(bench.stage(), "idle");
}

#[test]
fn an_operators_lock_is_left_alone() {
    let mut bench = semaphore();
    bench.others(|snapshot| take(snapshot, "a", Kind::Manual));
    bench.run(HOUR, |_| false);
    bench.restart();
    bench.run(HOUR, |_| false);
    assert_eq!(bench.reboots, 0);
    assert_eq!(bench.holder().unwrap().kind, Kind::Manual);
    bench.others(|snapshot| places::unlock(snapshot, &Bench::id(), "unlocked", 0));
    bench.live();
    assert!(bench.is_done(2));
}

#[test]
fn who_comes_back_on_the_old_version_keeps_its_place_until_a_newer_one_helps() {
    let mut bench = semaphore();
    bench.comes_up = Some(1);
    bench.live();
    let holder = bench.holder().unwrap();
    assert_eq!((bench.stage(), holder.phase), ("failed", Phase::Failed));
    assert_eq!(holder.reason, "came back on 1 instead of 2");
    assert_eq!(failures::budget_left(&bench.snapshot()), Some(1));

    // The same version again is none.
    bench.applied = Ok(Some(2));
    bench.tell(Event::UpdaterChanged);
    bench.live();
    assert_eq!(bench.reboots, 1);

    // Whatever stops the next attempt, the fleet does not go on beside it.
    for breaks in [
        (|bench: &mut Bench| bench.hooks = Err("full".into())) as fn(&mut Bench),
        |bench| bench.logind = Err("inhibited".into()),
        |bench| bench.window = Window::Closed(None),
        |bench| bench.applied = Ok(None),
        |bench| bench.others(halt),
    ] {
        breaks(&mut bench);
        if bench.applied == Ok(Some(2)) {
            bench.applied = Ok(Some(3));
        }
        bench.tell(Event::UpdaterChanged);
        let steps = bench.steps;
        bench.run(6 * HOUR, |_| false);
        assert!(bench.steps - steps < 2000, "{} steps", bench.steps - steps);
        bench.restart();
        bench.run(HOUR, |_| false);
        let holder = bench.holder().expect("it keeps its place");
        assert!(holder.unproven);
        assert_eq!(failures::budget_left(&bench.snapshot()), Some(1));
        bench.hooks = Ok(());
        bench.logind = Ok(());
        bench.window = Window::Open;
        bench.applied = Ok(Some(2));
    }

    bench.others(failures::clear_halt);
    bench.applied = Ok(Some(3));
    bench.tell(Event::UpdaterChanged);
    bench.live();
    assert!(bench.is_done(3), "{:?}", bench.seen);
    assert_eq!(bench.reboots, 2);
}

#[test]
fn a_newer_update_is_seen_by_a_process_that_begins_after_it() {
    let mut bench = semaphore();
    bench.comes_up = Some(1);
    bench.live();
    assert_eq!(bench.stage(), "failed");
    bench.applied = Ok(Some(3));
    bench.restart();
    bench.live();
    assert!(bench.is_done(3), "{:?}", bench.seen);
}

#[test]
fn who_is_late_to_be_healthy_fails_and_is_forgiven_when_it_is() {
    let mut bench = semaphore();
    bench.health = Health::NotYet("no network".into());
    bench.live_until(HOUR / 2, |_| false);
    assert_eq!(bench.stage(), "verifying");
    bench.live_until(HOUR, |_| false);
    assert_eq!(bench.holder().unwrap().phase, Phase::Failed);
    assert_eq!(failures::budget_left(&bench.snapshot()), Some(1));
    bench.restart();
    bench.live_until(HOUR, |_| false);
    assert_eq!(bench.stage(), "failed");
    bench.health = Health::Good;
    bench.live();
    assert!(bench.is_done(2));
    assert_eq!(failures::budget_left(&bench.snapshot()), Some(2));
}

#[test]
fn a_version_that_is_newer_still_is_no_failure() {
    let mut bench = semaphore();
    bench.comes_up = Some(3);
    bench.live();
    assert!(bench.is_done(3));
    assert_eq!(failures::budget_left(&bench.snapshot()), Some(2));
}

#[test]
fn health_must_last() {
    let mut bench = semaphore();
    assert!(bench.live_until(HOUR, |bench| bench.stage() == "verifying"));
    let begun = bench.clock;
    bench.run(Duration::from_secs(50), |_| false);
    bench.health = Health::NotYet("flaps".into());
    bench.run(Duration::from_secs(20), |_| false);
    bench.health = Health::Good;
    assert!(bench.run(HOUR, |bench| bench.holder().is_none()));
    assert!(
        bench.clock - begun >= Duration::from_secs(120),
        "{:?}",
        bench.clock - begun
    );
}

#[test]
fn late_programs_and_a_new_process_are_no_failed_reboot() {
    let mut bench = semaphore();
    assert!(bench.run(HOUR, |bench| bench.stage() == "draining"));
    bench.clock += HOUR;
    bench.group.advance(bench.clock);
    bench.others(|snapshot| failures::mark_overdue(snapshot, 0));
    assert_eq!(bench.holder().unwrap().phase, Phase::Overdue);
    bench.restart();
    bench.live();
    assert!(bench.is_done(2), "{:?}", bench.seen);
    assert_eq!(failures::budget_left(&bench.snapshot()), Some(2));
}

#[test]
fn a_place_that_an_older_tool_took_is_proven_and_released() {
    let mut bench = semaphore();
    bench.running = 2;
    bench.applied = Ok(None);
    bench
        .group
        .commit(&Transaction {
            when: Vec::new(),
            then: vec![Write::Put(
                Key::Document,
                Record::Document(Document::new(1, [Bench::id()])),
                LeaseId::default(),
            )],
            otherwise: Vec::new(),
        })
        .unwrap();
    bench.restart();
    bench.run(Duration::from_secs(30), |_| false);
    assert_eq!(bench.stage(), "verifying");
    bench.live();
    assert!(bench.is_done(2));
}

#[test]
fn people_are_warned_and_nobody_else_is_waited_for() {
    for (people, least) in [(true, 300), (false, 0)] {
        let mut bench = Bench::new(Options {
            warning: Duration::from_secs(300),
            ..options(Lock::Semaphore)
        });
        bench.people = people;
        let begun = bench.clock;
        assert!(bench.run(HOUR, |bench| bench.reboots == 1));
        assert_eq!((bench.clock - begun).as_secs(), least);
    }
}

#[test]
fn people_are_told_again_when_the_place_comes_long_after_the_warning() {
    for (minutes, expected) in [(1, 0), (3 * 60, 1)] {
        let mut bench = Bench::new(Options {
            warning: Duration::from_secs(300),
            ..options(Lock::Semaphore)
        });
        bench.people = true;
        bench.others(|snapshot| take(snapshot, "b", Kind::Reboot));
        assert!(bench.run(HOUR, |bench| bench.stage() == "queued"));
        bench.run(Duration::from_secs(60 * minutes), |_| false);
        bench.others(|snapshot| places::unlock(snapshot, &"b".into(), "unlocked", 0));
        assert!(bench.run(HOUR, |bench| bench.reboots == 1));
        let told = bench.seen.iter().filter(|seen| *seen == "tell users");
        assert_eq!(told.count(), expected, "{minutes}");
    }
}

#[test]
fn without_a_lock_the_store_is_not_touched() {
    let mut bench = Bench::new(options(Lock::None));
    bench.live();
    assert!(bench.is_done(2));
    assert_eq!((bench.reboots, bench.calls), (1, 0));
}

#[test]
fn a_place_from_before_is_given_back_under_another_strategy() {
    for (at, reboots) in [("draining", 0), ("verifying", 1)] {
        let mut before = semaphore();
        assert!(before.live_until(HOUR, |bench| bench.stage() == at));
        let mut bench = Bench::new(Options {
            recover: true,
            ..options(Lock::None)
        });
        bench.group = before.group;
        bench.clock = before.clock;
        bench.running = before.running;
        bench.applied = before.applied.clone();
        bench.restart();
        bench.live();
        assert!(bench.is_done(2), "{at}: {:?}", bench.seen);
        assert_eq!(bench.reboots, 1 - reboots, "{at}");
    }
}

#[test]
fn a_fleet_lock_server_is_asked_and_told() {
    let mut bench = Bench::new(options(Lock::FleetLock));
    bench.live();
    assert!(bench.is_done(2));
    assert_eq!((bench.reboots, bench.calls), (1, 0));
    let about: Vec<_> = bench
        .seen
        .iter()
        .filter(|seen| seen.ends_with(" server") || *seen == "reboot")
        .collect();
    // Once after each boot, since it may still count this machine.
    assert_eq!(
        about,
        ["tell server", "ask server", "reboot", "tell server"]
    );
}

#[test]
fn a_fleet_lock_server_that_takes_nothing_back_is_told_again() {
    let mut bench = Bench::new(options(Lock::FleetLock));
    bench.fleet_lock[1] = Err("no answer".into());
    bench.run(HOUR, |_| false);
    let says = |bench: &Bench, words: &str| bench.seen.iter().any(|seen| seen.starts_with(words));
    let failed = "\"Unlocking old locks failed: no answer. Retrying in ";
    assert!(says(&bench, failed), "{:?}", bench.seen);
    assert!(!says(&bench, "\"Failed to acquire"));
    bench.fleet_lock[1] = Ok(());
    bench.live();
    assert!(bench.is_done(2));
}

#[test]
fn a_fleet_lock_whose_answer_was_lost_is_given_back_when_the_window_closes() {
    let mut bench = Bench::new(options(Lock::FleetLock));
    bench.fleet_lock[0] = Err("no answer".into());
    bench.run(HOUR, |_| false);
    assert_eq!(bench.stage(), "queued");
    bench.window = Window::Closed(None);
    bench.run(HOUR, |_| false);
    assert_eq!(bench.stage(), "waiting");
    assert_eq!(
        bench
            .seen
            .iter()
            .rfind(|seen| seen.ends_with(" server"))
            .unwrap(),
        "tell server"
    );
}
