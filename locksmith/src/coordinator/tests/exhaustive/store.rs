//! The smallest store that keeps the promises of
//! [`crate::store::SemaphoreStore`], and its variants that do not.

use std::sync::Arc;

use crate::machine_id::MachineId;
use crate::semaphore::{
    Compare, Key, LeaseId, Look, Record, Revision, Snapshot, Transaction, Versioned, Write,
};

/// A store that breaks one rule, to see the search notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Flaw {
    /// Keeps all of them.
    None,
    /// Commits whatever has become of the document.
    IgnoresDocument,
    /// Commits although the group is halted.
    IgnoresHalt,
    /// The same, but only for those who have a place.
    FenceIgnoresHalt,
    /// Commits for those who had a place whatever has become of it.
    IgnoresPlace,
    /// Says "committed" when no answer came.
    InventsAnswers,
    /// Frees the place of a holder whose deadline has passed.
    FreesTheLate,
}

/// A lease that has ended: nothing can be put under it.
pub(super) const ENDED: LeaseId = LeaseId(1);

/// One group.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Store {
    pub(super) now: Snapshot,
    pub(super) flaw: Flaw,
}

impl Store {
    pub(super) fn load(&self, look: &Look) -> Snapshot {
        let mut snapshot = self.now.clone();
        let own = look.ticket.as_ref();
        snapshot.own_ticket = own.and_then(|key| {
            let (_, ticket) = snapshot.queue.iter().find(|(other, _)| other == key)?;
            Some(Arc::clone(ticket))
        });
        snapshot
    }

    /// Whether the conditions held; `None`: nothing was written, a lease has
    /// ended.
    pub(super) fn commit(&mut self, transaction: &Transaction) -> Option<bool> {
        let holds = self.holds(&transaction.when);
        let writes = if holds {
            &transaction.then
        } else {
            &transaction.otherwise
        };
        let ended = |write: &Write| matches!(write, Write::Put(_, _, lease) if *lease == ENDED);
        if writes.iter().any(ended) {
            return None;
        }
        if !writes.is_empty() {
            self.now.revision += 1;
        }
        for write in writes {
            self.write(write);
        }
        self.now.queue_length = self.now.queue.len().try_into().unwrap();
        Some(holds)
    }

    fn holds(&self, all: &[Compare]) -> bool {
        let has_place = all.iter().any(
            |compare| matches!(compare, Compare::Created(Key::Holder(_), token) if *token != 0),
        );
        all.iter().all(|compare| match (compare, self.flaw) {
            (Compare::Modified(Key::Document, _), Flaw::IgnoresDocument)
            | (Compare::Modified(Key::Halt, _), Flaw::IgnoresHalt) => true,
            (Compare::Modified(Key::Halt, _), Flaw::FenceIgnoresHalt) if has_place => true,
            (
                Compare::Created(Key::Holder(_), _) | Compare::Modified(Key::Document, _),
                Flaw::IgnoresPlace,
            ) if has_place => true,
            (Compare::Modified(key, revision), _) => self.revisions(key).1 == *revision,
            (Compare::Created(key, revision), _) => self.revisions(key).0 == *revision,
        })
    }

    /// When a key came into being and when it was last written.
    pub(super) fn revisions(&self, key: &Key) -> (Revision, Revision) {
        fn of<T>(value: &Versioned<T>) -> (Revision, Revision) {
            (value.created, value.modified)
        }
        match key {
            Key::Document => of(&self.now.document),
            Key::Policy => of(&self.now.policy),
            Key::Halt => of(&self.now.halt),
            Key::Failures => of(&self.now.failures),
            Key::Holder(id) => self.now.holders.get(id).map_or((0, 0), |record| of(record)),
            // Nobody asks for more of it than whether it is there.
            Key::Deadline(id) if self.now.deadlines.contains(id) => (-1, -1),
            Key::Deadline(_) => (0, 0),
            Key::Ticket(_) | Key::Member(_) | Key::History(_) => panic!("a condition on {key:?}"),
        }
    }

    fn write(&mut self, write: &Write) {
        fn set<T>(slot: &mut Versioned<T>, value: &T, revision: Revision)
        where
            T: Clone,
        {
            if slot.value.is_none() {
                slot.created = revision;
            }
            slot.modified = revision;
            slot.value = Some(value.clone());
        }
        let now = &mut self.now;
        let revision = now.revision;
        match write {
            Write::Put(Key::Document, Record::Document(document), _) => {
                set(&mut now.document, &Arc::new(document.clone()), revision);
            }
            Write::Put(Key::Halt, Record::Halt(halt), _) => set(&mut now.halt, halt, revision),
            Write::Put(Key::Failures, Record::Failures(failures), _) => {
                set(&mut now.failures, failures, revision);
            }
            Write::Put(Key::Holder(id), Record::Holder(holder), _) => {
                let holders = Arc::make_mut(&mut now.holders);
                let record = Arc::make_mut(holders.entry(id.clone()).or_default());
                set(record, holder, revision);
            }
            Write::Put(Key::Deadline(id), Record::Present, _) => {
                Arc::make_mut(&mut now.deadlines).insert(id.clone());
            }
            Write::Put(Key::Ticket(key), Record::Ticket(ticket), _) => {
                let queue = Arc::make_mut(&mut now.queue);
                queue.retain(|(other, _)| other != key);
                queue.push((key.clone(), Arc::new(ticket.clone())));
                queue.sort_by(|a, b| a.0.cmp(&b.0));
            }
            Write::Put(Key::History(_), Record::History(_), _) => {}
            Write::Delete(Key::Halt) => now.halt = Versioned::default(),
            Write::Delete(Key::Failures) => now.failures = Versioned::default(),
            Write::Delete(Key::Holder(id)) => {
                Arc::make_mut(&mut now.holders).remove(id);
            }
            Write::Delete(Key::Deadline(id)) => {
                Arc::make_mut(&mut now.deadlines).remove(id);
            }
            Write::Delete(Key::Ticket(key)) => {
                Arc::make_mut(&mut now.queue).retain(|(other, _)| other != key);
            }
            other => panic!("nobody writes {other:?}"),
        }
    }

    /// A lease of tickets ends, and they with it.
    pub(super) fn end_lease(&mut self, lease: LeaseId) {
        Arc::make_mut(&mut self.now.queue).retain(|(_, ticket)| ticket.lease != lease);
        self.now.queue_length = self.now.queue.len().try_into().unwrap();
        self.now.revision += 1;
    }

    /// The lease of a deadline ends.
    pub(super) fn end_deadline(&mut self, id: &MachineId) {
        Arc::make_mut(&mut self.now.deadlines).remove(id);
        self.now.revision += 1;
        if self.flaw == Flaw::FreesTheLate {
            let mut document = self.now.places().clone();
            if document.unlock(id).is_ok() {
                let free = [
                    Write::Put(
                        Key::Document,
                        Record::Document(document),
                        LeaseId::default(),
                    ),
                    Write::Delete(Key::Holder(id.clone())),
                ];
                for write in &free {
                    self.write(write);
                }
            }
        }
    }
}
