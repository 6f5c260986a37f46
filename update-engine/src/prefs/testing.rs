//! Stores for tests: one in memory, and one that fails when it is told to.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use super::folder::check_length;
use super::{Key, StateStore, StoreError};

/// Keeps values in memory. Its clock is a counter: each commit is one second after the last.
#[derive(Debug, Default)]
pub struct MemoryStore {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    commits: u64,
    values: BTreeMap<Key, (u64, Vec<u8>)>,
}

impl MemoryStore {
    /// A store with these values.
    pub fn with<'a>(values: impl IntoIterator<Item = (Key, &'a str)>) -> Self {
        let store = Self::default();
        for (key, value) in values {
            store
                .commit(key, value.as_bytes())
                .expect("a memory store fails on long values alone");
        }
        store
    }

    /// Every key that has a value, in order of name.
    pub fn keys(&self) -> Vec<Key> {
        self.lock().values.keys().copied().collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("no test panics while it holds the store")
    }
}

impl StateStore for MemoryStore {
    fn load(&self, key: Key) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.lock().values.get(&key).map(|(_, value)| value.clone()))
    }

    fn commit(&self, key: Key, value: &[u8]) -> Result<(), StoreError> {
        check_length(key, value)?;
        let mut state = self.lock();
        state.commits += 1;
        let commit = (state.commits, value.to_vec());
        state.values.insert(key, commit);
        Ok(())
    }

    fn remove(&self, key: Key) -> Result<(), StoreError> {
        self.lock().values.remove(&key);
        Ok(())
    }

    fn committed_at(&self, key: Key) -> Result<Option<SystemTime>, StoreError> {
        let second = |commit: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(commit);
        Ok(self
            .lock()
            .values
            .get(&key)
            .map(|(commit, _)| second(*commit)))
    }
}

/// What a commit or removal does in place of its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It fails and the old value stays, as when the disk is full.
    Lost,
    /// It fails though the new value is there, as when the folder cannot be synced after the
    /// rename.
    Landed,
}

/// A store over another whose `at`-th change, and every one after it, has a fault.
#[derive(Debug)]
pub struct FailingStore<S> {
    store: S,
    at: u64,
    fault: Fault,
    changes: Mutex<u64>,
}

impl<S: StateStore> FailingStore<S> {
    /// Changes are counted from 0.
    pub fn new(store: S, at: u64, fault: Fault) -> Self {
        Self {
            store,
            at,
            fault,
            changes: Mutex::new(0),
        }
    }

    /// The store below, to see what is there after a fault.
    pub fn into_inner(self) -> S {
        self.store
    }

    fn change(
        &self,
        key: Key,
        change: impl FnOnce() -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut changes = self
            .changes
            .lock()
            .expect("no test panics while it holds the store");
        let number = *changes;
        *changes += 1;
        if number < self.at {
            return change();
        }
        if self.fault == Fault::Landed {
            change()?;
        }
        let source = io::Error::new(io::ErrorKind::StorageFull, "told to fail");
        Err(StoreError::Commit {
            key,
            path: PathBuf::from(key.name()),
            source,
        })
    }
}

impl<S: StateStore> StateStore for FailingStore<S> {
    fn load(&self, key: Key) -> Result<Option<Vec<u8>>, StoreError> {
        self.store.load(key)
    }

    fn commit(&self, key: Key, value: &[u8]) -> Result<(), StoreError> {
        self.change(key, || self.store.commit(key, value))
    }

    fn remove(&self, key: Key) -> Result<(), StoreError> {
        self.change(key, || self.store.remove(key))
    }

    fn committed_at(&self, key: Key) -> Result<Option<SystemTime>, StoreError> {
        self.store.committed_at(key)
    }
}
