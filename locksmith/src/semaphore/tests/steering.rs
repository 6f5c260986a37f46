//! Failures, budget, halt; max, pause, and what hands have left crooked.

use std::sync::Arc;

use super::{Group, request};
use crate::semaphore::failures::{
    budget_left, clear_halt, halt, mark_failed, mark_overdue, unlock_lost,
};
use crate::semaphore::places::{Acquire, Refusal, acquire, unlock};
use crate::semaphore::steering::{Finding, check, pause, resume, set_max, set_policy};
use crate::semaphore::{
    Document, Halt, Key, LeaseId, Max, Paused, Phase, Record, Transaction, Write,
};

pub(super) fn halt_of(by: &str) -> Halt {
    Halt {
        by: by.into(),
        why: "because".into(),
        at: 0,
    }
}

fn set(group: &mut Group, max: Max) -> (i64, i64) {
    let snapshot = group.look();
    let (before, after, transaction) = set_max(&snapshot, max, 0);
    group.must(&transaction);
    (before, after)
}

fn members(group: &mut Group, count: u32) {
    for number in 0..count {
        group.must(&Transaction {
            then: vec![Write::Put(
                Key::Member(format!("m{number}").as_str().into()),
                Record::Present,
                LeaseId::default(),
            )],
            ..Transaction::default()
        });
    }
}

#[test]
fn who_is_late_keeps_its_place_and_counts_once() {
    let mut group = Group::new(2);
    group.join("a", 100);
    assert!(!group.change(|snapshot| mark_overdue(snapshot, 0)));
    group.pass(1801);
    // Two notice at the same time.
    let snapshot = group.look();
    let marks = mark_overdue(&snapshot, 0).unwrap();
    assert!(group.try_to(&marks));
    assert!(!group.try_to(&marks));
    assert!(!group.change(|snapshot| mark_overdue(snapshot, 0)));
    assert_eq!(group.phase("a"), Some(Phase::Overdue));
    assert_eq!(group.holders(), ["a"]);
    assert_eq!(budget_left(&group.look()), Some(1));
    // It comes back and is not well either: still one.
    let token = group.token("a").unwrap();
    assert!(group.change(|snapshot| mark_failed(snapshot, &"a".into(), token, "sick", 0)));
    assert!(!group.change(|snapshot| mark_failed(snapshot, &"a".into(), token, "sick", 0)));
    assert_eq!(budget_left(&group.look()), Some(1));
    // And is well after all.
    assert!(group.release("a"));
    assert_eq!(budget_left(&group.look()), Some(2));
}

#[test]
fn the_last_of_the_budget_and_the_halt_are_one_step() {
    let mut group = Group::new(3);
    for id in ["a", "b", "c"] {
        group.join(id, 100);
    }
    let fail = |id: &'static str, token| {
        move |snapshot: &_| mark_failed(snapshot, &id.into(), token, "sick", 0)
    };
    let token = group.token("a").unwrap();
    assert!(group.change(fail("a", token)));
    assert!(group.look().halt.value.is_none());
    let before = group.look();
    let token = group.token("b").unwrap();
    assert!(group.change(fail("b", token)));
    let halt = group.look().halt.value.expect("a halt");
    assert_eq!(halt.why, "2 of 2 failures: a sick; b sick");
    // One that was decided before it does not get through.
    group.write_document(Document::new(9, ["a".into(), "b".into(), "c".into()]));
    let mut late = before;
    late.document = group.look().document;
    let Acquire::Commit { transaction, .. } = acquire(&late, &request("d"), None, false, 0) else {
        panic!();
    };
    assert!(!group.try_to(&transaction));
    let snapshot = group.look();
    assert!(matches!(
        acquire(&snapshot, &request("d"), None, false, 0),
        Acquire::Refused(Refusal::Halted(_))
    ));
    // A third failure is written, the halt stays as it was.
    let token = group.token("c").unwrap();
    assert!(group.change(fail("c", token)));
    assert_eq!(group.look().halt.value.unwrap().why, halt.why);
    assert!(group.change(clear_halt));
    assert!(!group.change(clear_halt));
    assert_eq!(budget_left(&group.look()), Some(2));
    assert_eq!(group.holders(), ["a", "b", "c"]);
}

#[test]
fn a_budget_of_none_never_halts() {
    let mut group = Group::new(3);
    let snapshot = group.look();
    group.must(&set_policy(&snapshot, |policy| policy.budget = 0));
    for id in ["a", "b", "c"] {
        group.join(id, 100);
        let token = group.token(id).unwrap();
        assert!(group.change(|snapshot| mark_failed(snapshot, &id.into(), token, "sick", 0)));
    }
    assert_eq!(budget_left(&group.look()), None);
    assert!(group.look().halt.value.is_none());
}

#[test]
fn who_is_given_up_frees_its_place_and_burns_budget() {
    let mut group = Group::new(1);
    group.join("a", 100);
    group.join("b", 100);
    assert!(!group.change(|snapshot| unlock_lost(snapshot, &"x".into(), 0)));
    assert!(group.change(|snapshot| unlock_lost(snapshot, &"a".into(), 0)));
    assert_eq!(group.holders(), ["b"]);
    assert_eq!(budget_left(&group.look()), Some(1));
    group.confirm("b");
    group.join("c", 100);
    // The last of the budget: the place is free and stays so.
    assert!(group.change(|snapshot| unlock_lost(snapshot, &"b".into(), 0)));
    assert!(group.look().halt.value.is_some());
    assert_eq!(group.holders(), [] as [&str; 0]);
    assert!(group.change(clear_halt));
    assert!(group.change(|snapshot| crate::semaphore::places::serve(snapshot, 0)));
    assert_eq!(group.holders(), ["c"]);
}

#[test]
fn a_halt_stops_grants_and_confirmations() {
    let mut group = Group::new(1);
    group.join("a", 100);
    group.join("b", 100);
    group.release("a");
    assert!(group.change(|snapshot| halt(snapshot, halt_of("op"))));
    assert!(!group.change(|snapshot| halt(snapshot, halt_of("other"))));
    assert!(!group.confirm("b"));
    let (c, ticket) = group.join("c", 100);
    assert_eq!(ticket, None);
    assert!(group.change(clear_halt));
    assert!(group.confirm("b"));
    group.ask(&c, None);
    group.release("b");
    assert_eq!(group.holders(), ["c"]);
}

#[test]
fn a_pause_keeps_places_and_turns() {
    let mut group = Group::new(1);
    group.join("a", 100);
    let (b, ticket) = group.join("b", 100);
    let snapshot = group.look();
    group.must(&pause(
        &snapshot,
        Paused {
            by: "op".into(),
            why: "holiday".into(),
            at: 0,
        },
    ));
    assert!(group.release("a"));
    assert_eq!(group.holders(), [] as [&str; 0]);
    let snapshot = group.look();
    assert!(matches!(
        acquire(&snapshot, &b, ticket.as_ref(), true, 0),
        Acquire::Waiting { ahead: 0, .. }
    ));
    assert_eq!(
        acquire(&snapshot, &request("c"), None, false, 0),
        Acquire::Refused(Refusal::Paused("holiday".into()))
    );
    assert!(group.change(resume));
    assert!(!group.change(resume));
    group.ask(&b, ticket.as_ref());
    assert_eq!(group.holders(), ["b"]);
}

#[test]
fn a_new_max_serves_the_queue_and_evicts_nobody() {
    let mut group = Group::new(1);
    for id in ["a", "b", "c", "d"] {
        group.join(id, 100);
    }
    assert_eq!(set(&mut group, Max::Count(3)), (1, 3));
    assert_eq!(group.holders(), ["a", "b", "c"]);
    assert_eq!(set(&mut group, Max::Count(0)), (3, 0));
    assert_eq!(
        group.shown(),
        r#"{"semaphore":-3,"max":0,"holders":["a","b","c"]}"#
    );
    for id in ["b", "c"] {
        assert!(group.confirm(id));
    }
    group.release("a");
    assert_eq!(group.holders(), ["b", "c"]);
    assert_eq!(set(&mut group, Max::Count(3)), (0, 3));
    assert_eq!(group.holders(), ["b", "c", "d"]);
}

#[test]
fn a_share_follows_the_members() {
    let mut group = Group::new(1);
    members(&mut group, 9);
    assert_eq!(set(&mut group, Max::Percent(25)), (1, 2));
    members(&mut group, 40);
    // With the next change of places.
    group.join("a", 100);
    assert_eq!(group.shown(), r#"{"semaphore":9,"max":10,"holders":["a"]}"#);
    assert_eq!(set(&mut group, Max::Percent(1)), (10, 1));
    assert_eq!(set(&mut group, Max::Count(4)), (1, 4));
    group.release("a");
    assert_eq!(group.shown(), r#"{"semaphore":4,"max":4,"holders":[]}"#);
}

#[test]
fn max_is_written_as_a_number_or_a_share() {
    for (text, max) in [
        ("2", Max::Count(2)),
        ("+2", Max::Count(2)),
        ("-1", Max::Count(-1)),
        ("0", Max::Count(0)),
        ("10%", Max::Percent(10)),
        ("100%", Max::Percent(100)),
    ] {
        assert_eq!(text.parse::<Max>().unwrap(), max);
    }
    for text in [
        "",
        "x",
        "1.5",
        "0%",
        "101%",
        "-5%",
        "%",
        "1 ",
        "9223372036854775808",
    ] {
        let error = text.parse::<Max>().unwrap_err();
        assert_eq!(error.to_string(), format!("Invalid maximum value: {text}"));
    }
}

#[test]
fn a_record_that_cannot_be_read_is_told() {
    let mut group = Group::new(3);
    group.join("a", 100);
    let mut snapshot = group.look();
    let records = Arc::make_mut(&mut snapshot.holders);
    Arc::make_mut(records.get_mut(&"a".into()).unwrap()).value = None;
    let (findings, transaction) = check(&snapshot);
    assert_eq!(
        (findings, transaction),
        (vec![Finding::Unreadable("a".into())], None)
    );
    assert_ne!(snapshot.holders, group.look().holders);
    group.must(&unlock(&snapshot, &"a".into(), "released", 0).unwrap());
    assert!(group.look().holders.is_empty() && group.holders().is_empty());
}

#[test]
fn what_is_crooked_is_told_and_put_right() {
    let mut group = Group::new(3);
    for id in ["a", "b"] {
        group.join(id, 100);
    }
    assert_eq!(check(&group.look()), (Vec::new(), None));
    let text = r#"{"semaphore":7,"max":3,"holders":["z","a","z"]}"#;
    group.write_document(Document::read(text.as_bytes()).unwrap());
    let (findings, transaction) = check(&group.look());
    assert_eq!(
        findings,
        [
            Finding::Order,
            Finding::Count(7, 1),
            Finding::Orphan("b".into()),
            Finding::Unexplained("z".into()),
            Finding::Unexplained("z".into()),
        ]
    );
    group.must(&transaction.unwrap());
    assert_eq!(
        group.shown(),
        r#"{"semaphore":1,"max":3,"holders":["a","z"]}"#
    );
    let (findings, transaction) = check(&group.look());
    assert_eq!((findings.len(), transaction), (1, None));
}
