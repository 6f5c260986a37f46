//! What a decision reads and what it writes: one consistent view of a group, and
//! one conditional change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::document::{Document, UNUSED};
use super::key::{Key, TicketKey};
use super::record::{Failures, Halt, Holder, Outcome, Policy, Record, Ticket};
use crate::machine_id::MachineId;

/// The store's counter: goes up by one with each transaction that writes.
pub type Revision = i64;

/// Names a lease; 0 is none.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct LeaseId(pub i64);

/// A value with the revisions that conditions need. An absent key has no value
/// and both revisions 0, and a condition on revision 0 means "still absent".
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Versioned<T> {
    /// The value, if the key exists.
    pub value: Option<T>,
    /// When the key came into being.
    pub created: Revision,
    /// When it was last written.
    pub modified: Revision,
}

impl<T> Default for Versioned<T> {
    fn default() -> Self {
        Self {
            value: None,
            created: 0,
            modified: 0,
        }
    }
}

/// What [`crate::store::SemaphoreStore::load`] reads beside the fixed parts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Look {
    /// A ticket that is looked up even if it stands far back in the queue.
    pub ticket: Option<TicketKey>,
    /// The history of this machine.
    pub history: Option<MachineId>,
}

/// One consistent view of a group. The parts that grow with it are shared, so
/// that a clone is cheap.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Snapshot {
    /// Of the whole view.
    pub revision: Revision,
    /// Whether the store keeps keys beside the document. The v2 store does not:
    /// there is no queue, no halt and no failure budget then.
    pub document_only: bool,
    /// The places. Absent: nobody has used the group yet.
    pub document: Versioned<Arc<Document>>,
    /// How the group behaves.
    pub policy: Versioned<Policy>,
    /// Whether it is halted.
    pub halt: Versioned<Halt>,
    /// What burned the budget.
    pub failures: Versioned<Failures>,
    /// All records of holders, those without a place included.
    pub holders: Arc<BTreeMap<MachineId, Arc<Versioned<Holder>>>>,
    /// Holders whose deadline has not passed.
    pub deadlines: Arc<BTreeSet<MachineId>>,
    /// The head of the queue, at most [`Snapshot::QUEUE_WINDOW`] tickets, in
    /// order.
    pub queue: Arc<Vec<(TicketKey, Arc<Ticket>)>>,
    /// Length of the whole queue.
    pub queue_length: u64,
    /// Number of members.
    pub members: u64,
    /// The ticket of [`Look::ticket`], if it stands.
    pub own_ticket: Option<Arc<Ticket>>,
    /// The history of [`Look::history`].
    pub history: Vec<Outcome>,
}

impl Snapshot {
    /// Tickets that a snapshot holds at most.
    pub const QUEUE_WINDOW: usize = 256;

    /// The places; a group that nobody has used has one, free.
    #[must_use]
    pub fn places(&self) -> &Document {
        self.document.value.as_deref().unwrap_or(&UNUSED)
    }

    /// Whether `id` has a record that can be read.
    #[must_use]
    pub fn is_explained(&self, id: &MachineId) -> bool {
        let record = self.holders.get(id);
        record.is_some_and(|record| record.value.is_some())
    }
}

/// A condition of a transaction.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Compare {
    /// The key was last written at this revision; 0: it does not exist.
    Modified(Key, Revision),
    /// The key came into being at this revision; 0: it does not exist.
    Created(Key, Revision),
}

/// A change of one key. No key may occur twice in a list of writes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Write {
    /// Sets the value, under a lease if there is one.
    Put(Key, Record, LeaseId),
    /// Removes the key; an absent one is fine.
    Delete(Key),
}

/// One conditional change.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Transaction {
    /// All must hold.
    pub when: Vec<Compare>,
    /// Written if they do.
    pub then: Vec<Write>,
    /// Written if they do not.
    pub otherwise: Vec<Write>,
}
