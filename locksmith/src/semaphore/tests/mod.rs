//! The semaphore as its users know it: places, queue, failures, steering.
//!
//! Decisions are committed to a group in memory that keeps keys as etcd does.

mod any_snapshot;
mod document;
mod places;
mod steering;

use std::time::Duration;

use super::places::{Acquire, Request, acquire};
use super::{
    Document, Holder, Key, Kind, LeaseId, Look, Phase, Record, Revision, Snapshot, TicketKey,
    Transaction, Write,
};
use crate::machine_id::MachineId;
use crate::store::MemoryGroup;

/// A group, and a clock for its leases.
struct Group {
    keys: MemoryGroup,
    clock: Duration,
}

impl Group {
    fn new(max: i64) -> Self {
        let mut group = Self {
            keys: MemoryGroup::new(),
            clock: Duration::ZERO,
        };
        group.write_document(Document::new(max, []));
        group
    }

    /// What a tool of the original writes, or a hand.
    fn write_document(&mut self, document: Document) {
        let put = Write::Put(
            Key::Document,
            Record::Document(document),
            LeaseId::default(),
        );
        self.must(&Transaction {
            then: vec![put],
            ..Transaction::default()
        });
    }

    fn look(&mut self) -> Snapshot {
        self.keys.load(&Look::default())
    }

    /// Whether it was committed.
    fn try_to(&mut self, transaction: &Transaction) -> bool {
        self.keys.commit(transaction).unwrap().succeeded
    }

    fn must(&mut self, transaction: &Transaction) {
        assert!(self.try_to(transaction), "{transaction:?}");
    }

    /// Decides and commits; what is decided must succeed.
    fn change(&mut self, decide: impl FnOnce(&Snapshot) -> Option<Transaction>) -> bool {
        let snapshot = self.look();
        decide(&snapshot).is_some_and(|transaction| self.try_to(&transaction))
    }

    fn pass(&mut self, seconds: u64) {
        self.clock += Duration::from_secs(seconds);
        self.keys.advance(self.clock);
    }

    /// Asks once in the name of `id`; its ticket, if it has one then.
    fn ask(&mut self, request: &Request, ticket: Option<&TicketKey>) -> Option<TicketKey> {
        let look = Look {
            ticket: ticket.cloned(),
            history: None,
        };
        let snapshot = self.keys.load(&look);
        match acquire(&snapshot, request, ticket, false, 0) {
            Acquire::Commit {
                transaction,
                ticket,
            } => {
                self.try_to(&transaction);
                ticket
            }
            _ => ticket.cloned(),
        }
    }

    /// Asks for `id` with leases of its own: of 90 s for the ticket, of 30 min
    /// for the deadline.
    fn join(&mut self, id: &str, rank: u16) -> (Request, Option<TicketKey>) {
        let request = Request {
            rank,
            ticket_lease: self.keys.grant_lease(Duration::from_secs(90)),
            deadline_lease: self.keys.grant_lease(Duration::from_secs(1800)),
            ..request(id)
        };
        let ticket = self.ask(&request, None);
        (request, ticket)
    }

    fn confirm(&mut self, id: &str) -> bool {
        let lease = self.keys.grant_lease(Duration::from_secs(1800));
        self.change(|snapshot| super::places::confirm(snapshot, &id.into(), lease, 0))
    }

    fn release(&mut self, id: &str) -> bool {
        let token = self.token(id);
        self.change(|snapshot| super::places::release(snapshot, &id.into(), token?, "released", 0))
    }

    fn unlock(&mut self, id: &str) -> bool {
        self.change(|snapshot| super::places::unlock(snapshot, &id.into(), "unlocked", 0))
    }

    fn token(&mut self, id: &str) -> Option<Revision> {
        let snapshot = self.look();
        Some(snapshot.holders.get(&MachineId::new(id))?.created)
    }

    fn phase(&mut self, id: &str) -> Option<Phase> {
        match self.keys.record(&Key::Holder(id.into()))? {
            Record::Holder(holder) => Some(holder.phase),
            other => panic!("{other:?}"),
        }
    }

    /// The document as it is stored.
    fn shown(&mut self) -> String {
        self.look().places().write()
    }

    fn holders(&mut self) -> Vec<String> {
        let places = self.look().places().clone();
        places.holders.iter().map(ToString::to_string).collect()
    }
}

/// An agent's request that does not wait.
fn request(id: &str) -> Request {
    Request {
        id: id.into(),
        rank: 100,
        holder: Holder {
            boot_id: "boot".into(),
            from: "1".into(),
            to: "2".into(),
            ..Holder::new(Kind::Reboot, format!("of {id}"))
        },
        confirm: true,
        ticket_lease: LeaseId::default(),
        deadline_lease: LeaseId::default(),
    }
}
