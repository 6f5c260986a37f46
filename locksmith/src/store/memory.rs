//! A store in memory, for tests: the model of etcd behind the trait, with
//! replies that get lost on demand. Time is tokio's, so it may be paused.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::watch;
use tokio::time::Instant;

use super::{
    COMMIT, Committed, GRANT, KEEP, LOAD, MemoryGroup, REVOKE, SemaphoreStore, StoreError,
};
use crate::semaphore::{Key, LeaseId, Look, Revision, Snapshot, Transaction};

/// A group in memory. Clones share it, as clients share a server.
#[derive(Debug, Clone)]
pub struct MemoryStore {
    shared: Arc<Shared>,
}

/// What goes wrong with one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It never reaches the store, and the caller knows.
    Unavailable,
    /// It never reaches the store, and the caller does not know.
    RequestLost,
    /// It is carried out, and the caller does not know.
    ReplyLost,
}

#[derive(Debug)]
struct Shared {
    start: Instant,
    state: Mutex<State>,
    /// Raised after each change.
    revision: watch::Sender<Revision>,
}

#[derive(Debug)]
struct State {
    group: MemoryGroup,
    last_change: BTreeMap<Key, Revision>,
    faults: VecDeque<Fault>,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new(MemoryGroup::new())
    }
}

impl MemoryStore {
    /// A store that begins with `group`.
    #[must_use]
    pub fn new(group: MemoryGroup) -> Self {
        Self {
            shared: Arc::new(Shared {
                start: Instant::now(),
                revision: watch::Sender::new(0),
                state: Mutex::new(State {
                    group,
                    last_change: BTreeMap::new(),
                    faults: VecDeque::new(),
                }),
            }),
        }
    }

    /// Lets the next calls fail, one each.
    pub fn fail_next(&self, faults: impl IntoIterator<Item = Fault>) {
        self.shared.lock().faults.extend(faults);
    }

    /// Looks into the group, or changes it behind everybody's back.
    pub fn with_group<T>(&self, act: impl FnOnce(&mut MemoryGroup) -> T) -> T {
        self.shared.with_group(act)
    }

    fn call<T: Send + 'static>(
        &self,
        what: &'static str,
        act: impl FnOnce(&mut MemoryGroup) -> Result<T, StoreError>,
    ) -> BoxFuture<'static, Result<T, StoreError>> {
        let fault = self.shared.lock().faults.pop_front();
        let reason = "a fault of the test".to_owned();
        let result = match fault {
            None => self.with_group(act),
            Some(Fault::Unavailable) => Err(StoreError::Unavailable { what, reason }),
            Some(Fault::RequestLost) => Err(StoreError::Unknown { what, reason }),
            Some(Fault::ReplyLost) => {
                // The caller does not hear of it.
                let _ = self.with_group(act);
                Err(StoreError::Unknown { what, reason })
            }
        };
        futures_util::future::ready(result).boxed()
    }
}

impl SemaphoreStore for MemoryStore {
    fn load<'a>(&'a self, look: &'a Look) -> BoxFuture<'a, Result<Snapshot, StoreError>> {
        self.call(LOAD, |group| Ok(group.load(look)))
    }

    fn commit<'a>(
        &'a self,
        transaction: &'a Transaction,
    ) -> BoxFuture<'a, Result<Committed, StoreError>> {
        self.call(COMMIT, |group| group.commit(transaction))
    }

    fn grant_lease(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseId, StoreError>> {
        self.call(GRANT, |group| Ok(group.grant_lease(ttl)))
    }

    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.call(KEEP, |group| Ok(group.keep_alive(lease)))
    }

    fn revoke_lease(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>> {
        self.call(REVOKE, |group| {
            group.revoke_lease(lease);
            Ok(())
        })
    }

    fn watch(&self, keys: Vec<Key>, after: Revision) -> BoxStream<'static, ()> {
        let shared = Arc::clone(&self.shared);
        let revision = self.shared.revision.subscribe();
        futures_util::stream::unfold(
            (shared, revision, keys, after),
            |(shared, mut revision, keys, after)| async move {
                loop {
                    revision.borrow_and_update();
                    let next = shared.with_group(|group| group.next_ending());
                    if let Some(changed) = shared.changed_after(&keys, after) {
                        return Some(((), (shared, revision, keys, changed)));
                    }
                    // Leases end without anybody's call.
                    let ending = next.map(|ends| shared.start + ends);
                    tokio::select! {
                        changed = revision.changed() => changed.ok()?,
                        () = sleep_until(ending) => {}
                    }
                }
            },
        )
        .boxed()
    }
}

impl Shared {
    fn with_group<T>(&self, act: impl FnOnce(&mut MemoryGroup) -> T) -> T {
        let mut state = self.lock();
        state.group.advance(self.start.elapsed());
        let result = act(&mut state.group);
        for (revision, key) in state.group.take_changed() {
            state.last_change.insert(key, revision);
            self.revision.send_replace(revision);
        }
        result
    }

    fn changed_after(&self, keys: &[Key], after: Revision) -> Option<Revision> {
        let state = self.lock();
        keys.iter()
            .filter_map(|key| state.last_change.get(key).copied())
            .filter(|revision| *revision > after)
            .max()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn sleep_until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::semaphore::{Record, Write};

    fn member(id: &str, lease: LeaseId) -> Transaction {
        Transaction {
            then: vec![Write::Put(Key::Member(id.into()), Record::Present, lease)],
            ..Transaction::default()
        }
    }

    #[tokio::test]
    async fn each_fault_hits_one_call_and_says_what_it_may() {
        let store = MemoryStore::default();
        let members = async || store.load(&Look::default()).await.unwrap().members;
        store.fail_next([Fault::Unavailable, Fault::RequestLost, Fault::ReplyLost]);
        for (id, left, unknown) in [("a", 0, false), ("b", 0, true), ("c", 1, true)] {
            let error = store.commit(&member(id, LeaseId(0))).await.unwrap_err();
            assert_eq!(matches!(error, StoreError::Unknown { .. }), unknown);
            assert_eq!(
                store.with_group(|group| group.load(&Look::default()).members),
                left
            );
        }
        store.commit(&member("d", LeaseId(0))).await.unwrap();
        assert_eq!(members().await, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn leases_end_by_the_paused_clock_and_watches_see_it() {
        let store = MemoryStore::default();
        let minute = Duration::from_secs(60);
        let lease = store.grant_lease(minute).await.unwrap();
        let other = store.clone();
        let committed = other.commit(&member("a", lease)).await.unwrap();
        let start = Instant::now();
        let mut watch = store.watch(vec![Key::Member("a".into())], committed.revision);
        assert_eq!(watch.next().await, Some(()));
        assert!(start.elapsed() >= minute && start.elapsed() < minute * 2);
        assert_eq!(other.load(&Look::default()).await.unwrap().members, 0);
    }
}
