//! The semaphore of a group as pure decisions: a [`Snapshot`] of the store and a
//! request become one [`Transaction`] or a reason why not. No clock, no network,
//! no async; time and random numbers are arguments.
//!
//! The places themselves are in the [`Document`] of the original locksmith,
//! under the original's key, so that its tools read and write it. What the
//! original has no room for stands in keys beside it ([`Key`]): who holds a
//! place and how far it is, who waits, what failed, whether the group is halted.
//!
//! Three rules carry the safety:
//!
//! - A place is in the document or it is none. Records beside it explain it.
//! - Every change of places is conditional on the document's revision, and every
//!   new place on there being no halt.
//! - A confirmed holder leaves by its own release or by an operator's hand,
//!   never because time has passed.

mod document;
pub mod failures;
mod key;
pub mod places;
mod record;
mod snapshot;
pub mod steering;
#[cfg(test)]
mod tests;

pub use document::{BadDocument, Document, LockRefusal, NotHolder};
pub use key::{Key, TicketKey};
pub use record::{
    BadRecord, Failure, FailureKind, Failures, Halt, Holder, Kind, Max, Mode, Outcome, Paused,
    Phase, Policy, Record, Ticket,
};
pub use snapshot::{Compare, LeaseId, Look, Revision, Snapshot, Transaction, Versioned, Write};
