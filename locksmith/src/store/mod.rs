//! Where the semaphore lives.
//!
//! A [`SemaphoreStore`] reads one consistent [`Snapshot`] of a group and commits
//! one [`Transaction`]; it decides nothing. What to write comes from
//! [`crate::semaphore`], which sees a store only through these two types.

mod etcd;
mod etcd2;
mod etcd3;
mod failover;
mod file;
mod group;
#[cfg(any(test, feature = "testing"))]
mod memory;
mod open;
mod reading;

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;

pub use etcd::EtcdOptions;
pub use etcd2::{Etcd2Store, EtcdApi, detect_api};
pub use etcd3::Etcd3Store;
pub use file::FileStore;
pub use group::{Change, MemoryGroup};
#[cfg(any(test, feature = "testing"))]
pub use memory::{Fault, MemoryStore};
pub use open::SharedStore;

use crate::semaphore::{Key, LeaseId, Look, Record, Revision, Snapshot, Transaction, Write};

// The calls in the words of errors.
const LOAD: &str = "read the semaphore";
const COMMIT: &str = "write the semaphore";
const GRANT: &str = "grant a lease";
const KEEP: &str = "keep a lease alive";
const REVOKE: &str = "revoke a lease";

/// One group's semaphore in some store.
///
/// Every call ends within a few seconds, whatever the network does, and tries
/// all endpoints. Reads are linearizable: a snapshot holds everything that was
/// committed before the call began, all of it at one revision.
pub trait SemaphoreStore: Send + Sync {
    /// Reads the group.
    fn load<'a>(&'a self, look: &'a Look) -> BoxFuture<'a, Result<Snapshot, StoreError>>;

    /// Commits `transaction`: if all its conditions hold its `then` writes
    /// happen, otherwise its `otherwise` writes; all of them or none.
    ///
    /// A key that occurs twice in one list of writes is refused.
    /// [`StoreError::Unknown`] means that the outcome is open: it may have been
    /// committed, or may still be. Read again before trying again.
    fn commit<'a>(
        &'a self,
        transaction: &'a Transaction,
    ) -> BoxFuture<'a, Result<Committed, StoreError>>;

    /// A lease: keys that are put under it vanish when it has not been kept
    /// alive for `ttl`.
    fn grant_lease(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseId, StoreError>>;

    /// Starts the time of a lease again. `Ok(false)`: there is no such lease
    /// any more.
    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<bool, StoreError>>;

    /// Ends a lease and removes its keys. One that has ended already is fine.
    fn revoke_lease(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Tells when one of `keys` changed after `after`. A hint, not a record:
    /// several changes may become one item, and the stream may report a change
    /// that was already seen; it re-opens by itself after a lost connection and
    /// after compaction (then it yields an item, since something may have been
    /// missed). Whoever gets an item loads again.
    fn watch(&self, keys: Vec<Key>, after: Revision) -> BoxStream<'static, ()>;
}

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    /// The conditions held: `then` was written. Otherwise `otherwise` was.
    pub succeeded: bool,
    /// Revision of the store with the writes in it.
    pub revision: Revision,
}

/// Why a store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Nothing was written; the call may be repeated.
    #[error("{what}: {reason}")]
    Unavailable {
        /// The call, in words.
        what: &'static str,
        /// What the endpoints said.
        reason: String,
    },
    /// Nobody listens at any endpoint; nothing was written. The text is the
    /// original's.
    #[error("no etcd endpoints available, tried: {tried}")]
    NoEndpoints {
        /// The endpoints, with commas.
        tried: String,
    },
    /// The call was sent and no answer came: it may have been carried out.
    #[error("{what}: no answer, the outcome is not known: {reason}")]
    Unknown {
        /// The call, in words.
        what: &'static str,
        /// What the endpoints said.
        reason: String,
    },
    /// A lease under which the call would have put a key has ended; nothing was
    /// written.
    #[error("{what}: the lease has ended")]
    LeaseGone {
        /// The call, in words.
        what: &'static str,
    },
    /// The store says no and will say no again: wrong password, no permission,
    /// wrong protocol. An operator has to act.
    #[error("{what}: {reason}")]
    Refused {
        /// The call, in words.
        what: &'static str,
        /// What the store said, and what to do.
        reason: String,
    },
    /// A value in the store cannot be read.
    #[error("cannot read the key {key}")]
    BadValue {
        /// The whole key.
        key: String,
        /// Where and why.
        source: crate::semaphore::BadRecord,
    },
}

/// Finds what no store takes: a key twice in one list, or a record where it does
/// not belong.
fn check(transaction: &Transaction) -> Result<(), StoreError> {
    for writes in [&transaction.then, &transaction.otherwise] {
        let mut keys = BTreeSet::new();
        for write in writes {
            let (Write::Put(key, _, _) | Write::Delete(key)) = write;
            let mut reason = None;
            if !keys.insert(key) {
                reason = Some(format!("{} occurs twice", key.name()));
            }
            if let Write::Put(_, record, _) = write
                && !belongs(record, key)
            {
                reason = Some(format!("{} is no place for {record:?}", key.name()));
            }
            if let Some(reason) = reason {
                let what = COMMIT;
                return Err(StoreError::Refused { what, reason });
            }
        }
    }
    Ok(())
}

fn belongs(record: &Record, key: &Key) -> bool {
    matches!(
        (key, record),
        (Key::Document, Record::Document(_))
            | (Key::Policy, Record::Policy(_))
            | (Key::Halt, Record::Halt(_))
            | (Key::Failures, Record::Failures(_))
            | (Key::Holder(_), Record::Holder(_))
            | (Key::Ticket(_), Record::Ticket(_))
            | (Key::History(_), Record::History(_))
            | (Key::Deadline(_) | Key::Member(_), Record::Present)
    )
}
