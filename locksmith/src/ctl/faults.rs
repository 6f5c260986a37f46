//! For tests: a store whose commits get lost, with other writers in between.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;

use crate::semaphore::{Key, LeaseId, Look, Revision, Snapshot, Transaction};
use crate::store::{Committed, Fault, MemoryStore, SemaphoreStore, StoreError};

/// What happens at one commit.
pub(super) enum Commit {
    /// It fails in this way.
    Fails(Fault),
    /// Somebody else writes first.
    ComesAfter(Box<dyn Fn(&Snapshot) -> Transaction + Send>),
}

/// A store in memory with a fate for each of the next commits.
pub(super) struct Faulty {
    store: MemoryStore,
    commits: Mutex<VecDeque<Commit>>,
}

impl Faulty {
    pub(super) fn new(store: &MemoryStore, commits: impl IntoIterator<Item = Commit>) -> Self {
        Self {
            store: store.clone(),
            commits: Mutex::new(commits.into_iter().collect()),
        }
    }
}

impl SemaphoreStore for Faulty {
    fn load<'a>(&'a self, look: &'a Look) -> BoxFuture<'a, Result<Snapshot, StoreError>> {
        self.store.load(look)
    }

    fn commit<'a>(
        &'a self,
        transaction: &'a Transaction,
    ) -> BoxFuture<'a, Result<Committed, StoreError>> {
        let fate = self.commits.lock().unwrap().pop_front();
        Box::pin(async move {
            match fate {
                None => {}
                Some(Commit::Fails(fault)) => self.store.fail_next([fault]),
                Some(Commit::ComesAfter(other)) => {
                    let snapshot = self.store.load(&Look::default()).await?;
                    self.store.commit(&other(&snapshot)).await?;
                }
            }
            self.store.commit(transaction).await
        })
    }

    fn grant_lease(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseId, StoreError>> {
        self.store.grant_lease(ttl)
    }

    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.store.keep_alive(lease)
    }

    fn revoke_lease(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>> {
        self.store.revoke_lease(lease)
    }

    fn watch(&self, keys: Vec<Key>, after: Revision) -> BoxStream<'static, ()> {
        self.store.watch(keys, after)
    }
}
