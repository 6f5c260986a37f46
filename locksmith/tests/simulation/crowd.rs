//! Three hundred commands that want a place at the same instant, with places
//! enough for all: what does each cost in transactions?

use std::time::Duration;

use locksmith::semaphore::places::{self, Acquire, Request};
use locksmith::semaphore::{
    Document, Holder, Key, Kind, LeaseId, Look, Record, Snapshot, TicketKey, Transaction, Write,
};
use locksmith::store::MemoryGroup;

use super::agenda::Agenda;

enum What {
    Looks(usize),
    Sees(usize, Box<Snapshot>),
    Commits(usize, Box<Transaction>),
}

struct Command {
    request: Request,
    ticket: Option<TicketKey>,
    impatient: bool,
    done: bool,
}

/// Transactions that were sent until all have a place.
fn contend(commands: usize, seed: u64) -> u64 {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut group = MemoryGroup::new();
    let lease = group.grant_lease(Duration::from_secs(3600));
    group
        .commit(&Transaction {
            then: vec![Write::Put(
                Key::Document,
                Record::Document(Document::new(i64::try_from(commands).unwrap(), [])),
                LeaseId::default(),
            )],
            ..Transaction::default()
        })
        .unwrap();
    let mut those: Vec<_> = (0..commands)
        .map(|number| Command {
            request: request(number, lease),
            ticket: None,
            impatient: false,
            done: false,
        })
        .collect();
    let mut agenda = Agenda::new();
    for number in 0..commands {
        agenda.plan(Duration::ZERO, What::Looks(number));
    }
    let mut sent = 0;
    while let Some((now, what)) = agenda.next() {
        let delay = Duration::from_micros(rng.u64(1_000..50_000));
        match what {
            What::Looks(number) => {
                let look = Look {
                    ticket: those[number].ticket.clone(),
                    history: None,
                };
                let snapshot = Box::new(group.load(&look));
                agenda.plan(now + delay, What::Sees(number, snapshot));
            }
            What::Sees(number, snapshot) => {
                let one = &mut those[number];
                let ticket = one.ticket.as_ref();
                match places::acquire(&snapshot, &one.request, ticket, one.impatient, 0) {
                    Acquire::Commit {
                        transaction,
                        ticket,
                    } => {
                        sent += 1;
                        one.ticket = ticket;
                        let commits = What::Commits(number, Box::new(transaction));
                        agenda.plan(now + delay, commits);
                    }
                    Acquire::Held(_) => one.done = true,
                    Acquire::Waiting { ahead, soon } => {
                        // A watch would wake it; a look does as well.
                        one.impatient = soon;
                        let place = u32::try_from(ahead).unwrap() + 1;
                        let wait = Duration::from_millis(rng.u64(100..300)) * place;
                        agenda.plan(now + wait, What::Looks(number));
                    }
                    other => panic!("{other:?}"),
                }
            }
            What::Commits(number, transaction) => {
                group.commit(&transaction).unwrap();
                agenda.plan(now + delay, What::Looks(number));
            }
        }
    }
    assert!(those.iter().all(|one| one.done));
    let places = group.load(&Look::default()).places().clone();
    assert_eq!((places.semaphore, places.holders.len()), (0, commands));
    sent
}

fn request(number: usize, lease: LeaseId) -> Request {
    Request {
        id: format!("{number:032x}").as_str().into(),
        rank: 100,
        holder: Holder {
            ..Holder::new(Kind::Manual, format!("{number}-1"))
        },
        confirm: false,
        ticket_lease: lease,
        deadline_lease: LeaseId::default(),
    }
}

#[test]
fn a_crowd_needs_less_than_two_transactions_for_each_lock() {
    for seed in 0..20 {
        let sent = contend(300, seed);
        if seed == 0 {
            println!("300 commands at once: {sent} transactions");
        }
        assert!(sent < 600, "seed {seed}: {sent} transactions for 300 locks");
    }
}
