//! Taking, waiting, confirming, fencing, giving back.

use std::sync::Arc;

use super::{Group, request};
use crate::machine_id::MachineId;
use crate::semaphore::places::{
    Acquire, Fenced, Refusal, Request, acquire, advance, confirm, fence, release, serve, withdraw,
};
use crate::semaphore::{
    Document, Holder, Key, Kind, LeaseId, Phase, Record, Snapshot, Transaction, Versioned, Write,
    failures,
};

fn to_rebooting(holder: &mut Holder) {
    holder.phase = Phase::Rebooting;
}

#[test]
fn who_asks_again_changes_nothing() {
    let mut group = Group::new(2);
    let (a, _) = group.join("a", 100);
    let before = group.look();
    assert!(matches!(
        acquire(&before, &a, None, true, 0),
        Acquire::Held(place) if place.token == before.holders[&a.id].created
    ));
    // Neither does the same transaction, if its answer was lost.
    let mut group = Group::new(2);
    let snapshot = group.look();
    let Acquire::Commit { transaction, .. } = acquire(&snapshot, &request("a"), None, false, 0)
    else {
        panic!();
    };
    assert!(group.try_to(&transaction));
    assert!(!group.try_to(&transaction));
    assert_eq!(group.shown(), r#"{"semaphore":1,"max":2,"holders":["a"]}"#);
}

#[test]
fn who_does_not_wait_is_told_that_it_is_full() {
    let mut group = Group::new(1);
    group.join("a", 100);
    let snapshot = group.look();
    assert_eq!(
        acquire(&snapshot, &request("b"), None, false, 0),
        Acquire::Refused(Refusal::Full(0))
    );
}

#[test]
fn places_go_by_rank_and_then_first_come_first_served() {
    let mut group = Group::new(1);
    group.join("a", 100);
    for (id, rank) in [("z", 100), ("m", 100), ("b", 200), ("y", 50), ("c", 100)] {
        group.join(id, rank);
    }
    let mut order = Vec::new();
    for _ in 0..6 {
        let holders = group.holders();
        assert_eq!(holders.len(), 1);
        if group.phase(&holders[0]) == Some(Phase::Granted) {
            assert!(group.confirm(&holders[0]));
        }
        order.extend(holders.clone());
        assert!(group.release(&holders[0]));
    }
    assert_eq!(order, ["a", "y", "z", "m", "c", "b"]);
    assert_eq!(group.look().queue_length, 0);
    assert_eq!(group.shown(), r#"{"semaphore":1,"max":1,"holders":[]}"#);
}

#[test]
fn nobody_overtakes_a_queue_that_waits() {
    let mut group = Group::new(1);
    group.join("a", 100);
    group.join("b", 100);
    // A tool of the original unlocks: a place is free, and nobody was told.
    group.write_document(Document::new(1, []));
    let (late, ticket) = group.join("c", 100);
    assert_eq!(group.holders(), [] as [&str; 0]);
    let snapshot = group.look();
    assert_eq!(
        acquire(&snapshot, &late, ticket.as_ref(), false, 0),
        Acquire::Waiting {
            ahead: 1,
            soon: true
        }
    );
    // Who has waited long enough does the work of the first.
    let Acquire::Commit { transaction, .. } = acquire(&snapshot, &late, ticket.as_ref(), true, 0)
    else {
        panic!();
    };
    group.must(&transaction);
    assert_eq!(group.holders(), ["b"]);
}

#[test]
fn who_loses_the_race_for_a_place_waits() {
    let mut group = Group::new(1);
    let snapshot = group.look();
    let waits = |group: &mut Group, id: &str| Request {
        ticket_lease: group.keys.grant_lease(std::time::Duration::from_secs(90)),
        ..request(id)
    };
    let (a, b) = (waits(&mut group, "a"), waits(&mut group, "b"));
    for (request, wins) in [(&b, true), (&a, false)] {
        match acquire(&snapshot, request, None, false, 0) {
            Acquire::Commit {
                transaction,
                ticket,
            } => {
                assert_eq!(group.try_to(&transaction), wins);
                assert!(ticket.is_some());
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(group.holders(), ["b"]);
    assert_eq!(group.look().queue.len(), 1);
}

#[test]
fn a_grant_to_somebody_gone_is_taken_back_and_a_confirmed_one_never() {
    for confirms in [false, true] {
        let mut group = Group::new(1);
        group.join("a", 100);
        group.join("b", 100);
        let (c, _) = group.join("c", 100);
        assert!(group.release("a"));
        assert_eq!(group.phase("b"), Some(Phase::Granted));
        if confirms {
            assert!(group.confirm("b"));
        }
        // While its ticket stands nobody touches it.
        assert!(!group.change(|snapshot| serve(snapshot, 0)));
        group.keys.keep_alive(c.ticket_lease);
        group.pass(80);
        group.keys.keep_alive(c.ticket_lease);
        group.pass(80);
        assert_eq!(group.change(|snapshot| serve(snapshot, 0)), !confirms);
        assert_eq!(group.holders(), [if confirms { "b" } else { "c" }]);
        group.pass(1_000_000);
        group.change(|snapshot| serve(snapshot, 0));
        assert_eq!(group.holders().len(), usize::from(confirms));
    }
}

#[test]
fn a_confirmation_and_the_taking_back_exclude_each_other() {
    for confirm_first in [true, false] {
        let mut group = Group::new(1);
        group.join("a", 100);
        group.join("b", 100);
        group.release("a");
        group.pass(100);
        let snapshot = group.look();
        let lease = group.keys.grant_lease(std::time::Duration::from_secs(1800));
        let confirms = confirm(&snapshot, &"b".into(), lease, 0).unwrap();
        let takes = serve(&snapshot, 0).unwrap();
        let (first, second) = if confirm_first {
            (confirms, takes)
        } else {
            (takes, confirms)
        };
        assert!(group.try_to(&first));
        assert!(!group.try_to(&second));
        let held = usize::from(confirm_first);
        assert_eq!(group.holders().len(), held);
        assert_eq!(group.look().holders.len(), held);
    }
}

#[test]
fn a_command_that_ends_with_its_lock_need_not_confirm() {
    let mut group = Group::new(1);
    group.join("a", 100);
    let waits = Request {
        confirm: false,
        ticket_lease: group.keys.grant_lease(std::time::Duration::from_secs(90)),
        ..request("b")
    };
    group.ask(&waits, None);
    group.release("a");
    assert_eq!(group.phase("b"), Some(Phase::Draining));
    group.pass(1000);
    assert!(!group.change(|snapshot| serve(snapshot, 0)));
    assert_eq!(group.holders(), ["b"]);
}

#[test]
fn leaving_the_queue_and_a_grant_exclude_each_other() {
    for leaves_first in [true, false] {
        let mut group = Group::new(1);
        group.join("a", 100);
        let (_, ticket) = group.join("b", 100);
        let snapshot = group.look();
        let leaves = withdraw(&snapshot, &ticket.unwrap());
        let grants = release(
            &snapshot,
            &"a".into(),
            snapshot.holders[&MachineId::new("a")].created,
            "released",
            0,
        )
        .unwrap();
        let (first, second) = if leaves_first {
            (leaves, grants)
        } else {
            (grants, leaves)
        };
        assert!(group.try_to(&first));
        assert!(!group.try_to(&second));
        assert_eq!(group.holders(), [if leaves_first { "a" } else { "b" }]);
    }
}

#[test]
fn a_place_is_given_back_once_and_by_its_token_alone() {
    let mut group = Group::new(1);
    group.join("a", 100);
    let token = group.token("a").unwrap();
    let snapshot = group.look();
    let first = release(&snapshot, &"a".into(), token, "released", 0).unwrap();
    assert_eq!(
        release(&snapshot, &"a".into(), token + 1, "released", 0),
        None
    );
    assert_eq!(release(&snapshot, &"b".into(), token, "released", 0), None);
    assert!(group.try_to(&first));
    group.join("a", 100);
    // It arrives again, much later.
    assert!(!group.try_to(&first));
    assert_ne!(group.token("a"), Some(token));
    let snapshot = group.look();
    assert_eq!(release(&snapshot, &"a".into(), token, "released", 0), None);
    assert_eq!(group.holders(), ["a"]);
}

#[test]
fn the_fence_needs_the_place_and_no_halt_at_its_commit() {
    type Change = fn(&mut Group);
    let halts: Change = |group| {
        let halt = super::steering::halt_of("op");
        assert!(group.change(|snapshot| failures::halt(snapshot, halt)));
    };
    let unlocks: Change = |group| assert!(group.unlock("a"));
    let unlocks_by_old_tool: Change = |group| group.write_document(Document::new(1, []));
    let again: Change = |group| {
        group.unlock("a");
        group.join("a", 100);
    };
    let nothing: Change = |_| ();
    for (change, passes, then) in [
        (halts, false, Err(Fenced::Halted("because".into()))),
        (unlocks, false, Err(Fenced::Lost)),
        (unlocks_by_old_tool, false, Err(Fenced::Lost)),
        (again, false, Err(Fenced::Lost)),
        (nothing, true, Ok(())),
    ] {
        let mut group = Group::new(1);
        group.join("a", 100);
        let token = group.token("a").unwrap();
        let snapshot = group.look();
        let lease = group.keys.grant_lease(std::time::Duration::from_secs(1800));
        let transaction = fence(&snapshot, &"a".into(), token, lease, to_rebooting).unwrap();
        change(&mut group);
        assert_eq!(group.try_to(&transaction), passes, "{then:?}");
        let snapshot = group.look();
        let now = fence(&snapshot, &"a".into(), token, lease, to_rebooting);
        assert_eq!(now.map(|_| ()), then);
    }
}

/// As many grants as fit into one transaction, and somebody who asks beside them.
#[test]
fn who_asks_when_many_are_served_gets_a_whole_place_or_none() {
    for waiting in 96..104 {
        let mut group = Group::new(0);
        for number in 0..waiting {
            group.join(&format!("w{number:03}"), 100);
        }
        group.write_document(Document::new(200, []));
        group.join("a", 100);
        let snapshot = group.look();
        for id in &snapshot.places().holders {
            assert!(snapshot.holders.contains_key(id), "{id} of {waiting}");
        }
    }
}

#[test]
fn a_record_without_a_place_gets_a_token_of_its_own() {
    let mut group = Group::new(1);
    let (a, _) = group.join("a", 100);
    let token = group.token("a");
    group.write_document(Document::new(1, []));
    assert!(advance(&group.look(), &"a".into(), token.unwrap(), |_| ()).is_err());
    group.ask(&a, None);
    group.ask(&a, None);
    assert_eq!(group.holders(), ["a"]);
    assert!(group.token("a") > token);
}

#[test]
fn a_place_that_an_older_tool_took_is_taken_over() {
    let mut group = Group::new(1);
    group.write_document(Document::new(1, ["a".into()]));
    group.join("a", 100);
    assert_eq!(group.phase("a"), Some(Phase::Draining));
    assert_eq!(group.shown(), r#"{"semaphore":0,"max":1,"holders":["a"]}"#);
}

/// It waits, and an older tool gives it a place that an operator takes away.
#[test]
fn who_is_unlocked_while_it_waits_goes_on_waiting() {
    let mut group = Group::new(1);
    group.join("a", 100);
    group.join("b", 100);
    group.write_document(Document::new(1, ["b".into()]));
    assert!(group.unlock("b"));
    assert_eq!(group.holders(), [] as [&str; 0]);
    assert!(group.unlock("a"));
    assert_eq!(group.holders(), ["b"]);
}

#[test]
fn an_operators_lock_is_no_agents_place() {
    let mut group = Group::new(1);
    let mut manual = request("a");
    manual.holder.kind = Kind::Manual;
    group.ask(&manual, None);
    let snapshot = group.look();
    assert_eq!(
        acquire(&snapshot, &request("a"), None, false, 0),
        Acquire::Refused(Refusal::Manual)
    );
    assert!(matches!(
        acquire(&snapshot, &manual, None, false, 0),
        Acquire::Held(_)
    ));
    assert!(group.unlock("a"));
    assert!(!group.unlock("a"));
}

#[test]
fn where_there_is_only_the_document_the_originals_rules_hold() {
    let mut snapshot = Snapshot {
        document_only: true,
        document: Versioned {
            value: Some(Arc::new(Document::new(1, []))),
            created: 1,
            modified: 7,
        },
        ..Snapshot::default()
    };
    let Acquire::Commit {
        transaction,
        ticket,
    } = acquire(&snapshot, &request("a"), None, false, 0)
    else {
        panic!();
    };
    assert_eq!(ticket, None);
    let only_document = |transaction: &Transaction| {
        let [Write::Put(Key::Document, Record::Document(document), LeaseId(0))] =
            transaction.then.as_slice()
        else {
            panic!("{transaction:?}");
        };
        assert_eq!(transaction.when.len(), 1);
        Arc::new(document.clone())
    };
    snapshot.document.value = Some(only_document(&transaction));
    assert!(matches!(
        acquire(&snapshot, &request("a"), None, false, 0),
        Acquire::Held(_)
    ));
    assert_eq!(
        acquire(&snapshot, &request("b"), None, false, 0),
        Acquire::Refused(Refusal::Full(0))
    );
    let transaction = fence(&snapshot, &"a".into(), 0, LeaseId(0), to_rebooting).unwrap();
    assert_eq!(Some(only_document(&transaction)), snapshot.document.value);
    assert!(fence(&snapshot, &"b".into(), 0, LeaseId(0), to_rebooting).is_err());
    let transaction = release(&snapshot, &"a".into(), 0, "released", 0).unwrap();
    assert_eq!(
        only_document(&transaction).write(),
        r#"{"semaphore":1,"max":1,"holders":[]}"#
    );
    assert_eq!(serve(&snapshot, 0), None);
}

#[test]
fn the_last_outcomes_are_kept() {
    let mut group = Group::new(1);
    for time in 0..12 {
        group.join("a", 100);
        let token = group.token("a").unwrap();
        let look = crate::semaphore::Look {
            ticket: None,
            history: Some("a".into()),
        };
        let snapshot = group.keys.load(&look);
        let transaction = release(&snapshot, &"a".into(), token, "released", time).unwrap();
        group.must(&transaction);
    }
    let Some(Record::History(outcomes)) = group.keys.record(&Key::History("a".into())) else {
        panic!();
    };
    let times: Vec<_> = outcomes.iter().map(|outcome| outcome.at).collect();
    assert_eq!(times, [4, 5, 6, 7, 8, 9, 10, 11]);
}
