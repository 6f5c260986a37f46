//! What holds of every transaction, whatever the group looks like; and of every
//! history in which tools of the original take part.

use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::prelude::*;

use super::{Group, request};
use crate::semaphore::places::{
    Acquire, Request, acquire, confirm, release, serve, unlock, withdraw,
};
use crate::semaphore::steering::{check, set_max};
use crate::semaphore::{
    Compare, Document, Failures, Halt, Holder, Key, LeaseId, Max, Paused, Phase, Policy, Record,
    Snapshot, Ticket, TicketKey, Transaction, Versioned, Write, failures,
};

fn name() -> impl Strategy<Value = String> {
    // Few names that meet often, and many that do not.
    prop_oneof!["[a-f]", "[a-z]{2}"]
}

fn holder() -> impl Strategy<Value = Holder> {
    let phase = prop_oneof![
        Just(Phase::Granted),
        Just(Phase::Draining),
        Just(Phase::Rebooting),
        Just(Phase::Overdue),
        Just(Phase::Failed),
    ];
    (phase, any::<bool>(), 0_u64..40, name()).prop_map(|(phase, ticket, number, id)| {
        let key = TicketKey {
            rank: 100,
            ticket: number,
            id: id.as_str().into(),
        };
        Holder {
            phase,
            ticket: ticket.then(|| Key::Ticket(key).name()),
            ..request("x").holder
        }
    })
}

fn versioned<T: std::fmt::Debug>(
    value: impl Strategy<Value = T>,
) -> impl Strategy<Value = Versioned<T>> {
    (proptest::option::of(value), 1_i64..50).prop_map(|(value, at)| {
        if value.is_some() {
            Versioned {
                value,
                created: at,
                modified: at + 3,
            }
        } else {
            Versioned::default()
        }
    })
}

fn snapshot() -> impl Strategy<Value = Snapshot> {
    let document = (
        -2_i64..200,
        -1_i64..200,
        proptest::collection::vec(name(), 0..90),
    )
        .prop_map(|(semaphore, max, holders)| {
            let mut document = Document::new(max, []);
            document.semaphore = semaphore;
            document.holders = holders.iter().map(|id| id.as_str().into()).collect();
            document
        });
    let paused = Paused {
        by: String::new(),
        why: String::new(),
        at: 0,
    };
    let policy = (
        proptest::option::of(1_u8..=100),
        0_u32..4,
        prop_oneof![4 => Just(None), 1 => Just(Some(paused))],
    )
        .prop_map(|(max_percent, budget, paused)| Policy {
            max_percent,
            budget,
            paused,
        });
    let halt = Just(Halt {
        by: String::new(),
        why: String::new(),
        at: 0,
    });
    let records = proptest::collection::btree_map(name(), holder(), 0..120);
    let queue = proptest::collection::btree_map((0_u64..40, name()), any::<bool>(), 0..256);
    let rest = (any::<bool>(), 0_u64..300, 0_u64..2000);
    (
        versioned(document.prop_map(Arc::new)),
        versioned(policy),
        prop_oneof![4 => Just(Versioned::default()), 1 => versioned(halt)],
        versioned(Just(Failures::default())),
        (records, queue),
        rest,
    )
        .prop_map(
            |(document, policy, halt, failures, (records, queue), rest)| {
                let holders = records.into_iter().map(|(id, holder)| {
                    let record = Versioned {
                        value: Some(holder),
                        created: 5,
                        modified: 9,
                    };
                    (id.as_str().into(), Arc::new(record))
                });
                let queue = queue.into_iter().map(|((number, id), confirm)| {
                    let key = TicketKey {
                        rank: 100,
                        ticket: number,
                        id: id.as_str().into(),
                    };
                    let ticket = Ticket {
                        holder: request(&id).holder,
                        confirm,
                        since: 0,
                        lease: LeaseId(7),
                    };
                    (key, Arc::new(ticket))
                });
                let queue: Vec<_> = queue.collect();
                let (beyond, more, members) = rest;
                let length = u64::try_from(queue.len()).unwrap();
                Snapshot {
                    revision: 60,
                    document,
                    policy,
                    halt,
                    failures,
                    holders: Arc::new(holders.collect()),
                    queue_length: length + if beyond { more } else { 0 },
                    queue: Arc::new(queue),
                    members,
                    ..Snapshot::default()
                }
            },
        )
}

/// Every transaction that can come of a snapshot.
fn transactions(snapshot: &Snapshot, id: &str, impatient: bool) -> Vec<Transaction> {
    let id = id.into();
    let mut all = Vec::new();
    let mut tickets = snapshot.queue.iter().map(|(key, _)| key);
    let ticket = tickets.find(|key| key.id == id);
    let asks = Request {
        id: id.clone(),
        ticket_lease: LeaseId(1),
        deadline_lease: LeaseId(2),
        ..request("x")
    };
    for ticket in [None, ticket] {
        if let Acquire::Commit { transaction, .. } = acquire(snapshot, &asks, ticket, impatient, 0)
        {
            all.push(transaction);
        }
    }
    all.extend(confirm(snapshot, &id, LeaseId(2), 0));
    all.extend(release(snapshot, &id, 5, "released", 0));
    all.extend(unlock(snapshot, &id, "unlocked", 0));
    all.extend(ticket.map(|ticket| withdraw(snapshot, ticket)));
    all.extend(serve(snapshot, 0));
    all.extend(failures::mark_overdue(snapshot, 0));
    all.extend(failures::mark_failed(snapshot, &id, 5, "sick", 0));
    all.extend(failures::unlock_lost(snapshot, &id, 0));
    all.extend(failures::clear_halt(snapshot));
    all.push(set_max(snapshot, Max::Count(500), 0).2);
    all.push(set_max(snapshot, Max::Percent(50), 0).2);
    all.extend(check(snapshot).1);
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn transactions_fit_and_are_conditional(
        snapshot in snapshot(),
        id in name(),
        impatient in any::<bool>(),
    ) {
        for transaction in transactions(&snapshot, &id, impatient) {
            let Transaction { when, then, otherwise } = &transaction;
            for length in [when.len(), then.len(), otherwise.len()] {
                prop_assert!(length <= 128, "{length}");
            }
            for writes in [then, otherwise] {
                let keys: BTreeSet<_> = writes.iter().map(key_of).collect();
                prop_assert_eq!(keys.len(), writes.len(), "{:?}", writes);
            }
            let on_document = Compare::Modified(Key::Document, snapshot.document.modified);
            let puts: Vec<_> = then.iter().chain(otherwise).filter_map(document_of).collect();
            let [after] = puts.as_slice() else {
                prop_assert!(puts.is_empty());
                continue;
            };
            prop_assert!(when.contains(&on_document));
            let before = snapshot.places();
            let fresh: Vec<_> = after.holders.iter().filter(|id| !before.holds(id)).collect();
            if fresh.is_empty() {
                continue;
            }
            prop_assert!(when.contains(&Compare::Modified(Key::Halt, 0)));
            prop_assert!(snapshot.halt.value.is_none());
            let policy = snapshot.policy.value.as_ref();
            prop_assert!(policy.is_none_or(|policy| policy.paused.is_none()));
            let places = usize::try_from(after.max).unwrap_or(0);
            prop_assert!(after.holders.len() <= places);
            for id in fresh {
                let record = then.iter().any(|write| {
                    matches!(write, Write::Put(Key::Holder(other), ..) if other == id)
                });
                prop_assert!(record, "{} has a place and no record", id);
            }
        }
    }

    /// Agents and tools of the original at the same group, each step decided on
    /// the present or on a stale look.
    #[test]
    fn tools_of_the_original_may_take_part(
        steps in proptest::collection::vec((0_u8..9, 0_usize..4, any::<bool>()), 1..60),
    ) {
        let ids = ["a", "b", "c", "d"];
        let mut group = Group::new(2);
        let mut stale = group.look();
        for (what, who, old) in steps {
            let id = ids[who];
            let snapshot = if old { stale.clone() } else { group.look() };
            let on_document = Compare::Modified(Key::Document, snapshot.document.modified);
            let by_old_tool = |document: Document| Transaction {
                when: vec![on_document.clone()],
                then: vec![Write::Put(
                    Key::Document,
                    Record::Document(document),
                    LeaseId::default(),
                )],
                otherwise: Vec::new(),
            };
            let mut document = snapshot.places().clone();
            let transaction = match what {
                0..=2 => {
                    group.join(id, 100);
                    None
                }
                3 => {
                    group.confirm(id);
                    None
                }
                4 => {
                    let token = snapshot.holders.get(&id.into()).map(|record| record.created);
                    token.and_then(|token| release(&snapshot, &id.into(), token, "released", 0))
                }
                5 => document.lock(&id.into()).ok().map(|()| by_old_tool(document)),
                6 => document.unlock(&id.into()).ok().map(|()| by_old_tool(document)),
                7 => serve(&snapshot, 0),
                _ => {
                    group.pass(60);
                    None
                }
            };
            if let Some(transaction) = transaction {
                group.try_to(&transaction);
            }
            let places = group.look().places().clone();
            prop_assert!(places.is_sound(), "{}", places.write());
            prop_assert!(places.holders.len() <= 2, "{}", places.write());
            stale = snapshot;
        }
    }
}

fn key_of(write: &Write) -> &Key {
    match write {
        Write::Put(key, ..) | Write::Delete(key) => key,
    }
}

fn document_of(write: &Write) -> Option<&Document> {
    match write {
        Write::Put(Key::Document, Record::Document(document), _) => Some(document),
        _ => None,
    }
}
