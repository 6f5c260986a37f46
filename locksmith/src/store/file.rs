//! The semaphore in a file, for one machine, a lab or a test by hand.
//!
//! It works between the processes of one host, which a lock keeps apart. It is
//! not for a network file system: neither the lock nor the replacement of the
//! file is sure to hold there. Leases end by the wall clock, and only when
//! somebody looks.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

use super::group::{Entry, Parts};
use super::{
    COMMIT, Committed, GRANT, KEEP, LOAD, MemoryGroup, REVOKE, SemaphoreStore, StoreError, reading,
};
use crate::group::{GroupName, escape};
use crate::semaphore::{Key, LeaseId, Look, Revision, Snapshot, Transaction};

/// The longest wait for another process.
const LOCK_LIMIT: Duration = Duration::from_secs(5);
/// Time between two attempts to get the lock.
const LOCK_PAUSE: Duration = Duration::from_millis(10);
/// Time between two looks of a watch.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);
/// The largest file that is read.
const MOST_BYTES: u64 = 64 << 20;

/// One group in a file.
#[derive(Debug, Clone)]
pub struct FileStore {
    path: PathBuf,
    prefix: String,
}

/// What the file holds, as JSON.
#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    revision: Revision,
    last_lease: LeaseId,
    leases: BTreeMap<LeaseId, StoredLease>,
    /// By whole names.
    keys: BTreeMap<String, StoredKey>,
}

#[derive(Debug, Serialize, Deserialize)]
struct StoredLease {
    ttl_ms: u64,
    /// Since 1970.
    ends_ms: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct StoredKey {
    value: String,
    created: Revision,
    modified: Revision,
    #[serde(default)]
    lease: LeaseId,
}

/// The file, locked: nobody else reads or writes it.
struct Held<'a> {
    store: &'a FileStore,
    what: &'static str,
    group: MemoryGroup,
    /// Keys that are not ours or cannot be read; they are kept as they are.
    foreign: BTreeMap<String, StoredKey>,
    /// The bytes that the file has.
    written: Vec<u8>,
    _lock: Flock<File>,
}

impl FileStore {
    /// The default group is in `path`, another one beside it in
    /// `path.<escaped name>`. The file need not exist, its folder must.
    #[must_use]
    pub fn new(path: &Path, group: &GroupName) -> Self {
        let mut name = path.as_os_str().to_owned();
        if !group.as_str().is_empty() {
            name.push(".");
            name.push(escape(group.as_str()));
        }
        Self {
            path: name.into(),
            prefix: group.prefix(),
        }
    }

    /// Carries out `act` on the locked group and writes what it changed.
    fn call<T: Send + 'static>(
        &self,
        what: &'static str,
        act: impl FnOnce(&mut MemoryGroup) -> Result<T, StoreError> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, StoreError>> {
        let store = self.clone();
        let work = tokio::task::spawn_blocking(move || {
            let mut held = Held::take(&store, what)?;
            let result = act(&mut held.group)?;
            held.write()?;
            Ok(result)
        });
        async move {
            work.await.unwrap_or_else(|error| {
                Err(StoreError::Unknown {
                    what,
                    reason: error.to_string(),
                })
            })
        }
        .boxed()
    }
}

impl SemaphoreStore for FileStore {
    fn load<'a>(&'a self, look: &'a Look) -> BoxFuture<'a, Result<Snapshot, StoreError>> {
        let look = look.clone();
        self.call(LOAD, move |group| Ok(group.load(&look)))
    }

    fn commit<'a>(
        &'a self,
        transaction: &'a Transaction,
    ) -> BoxFuture<'a, Result<Committed, StoreError>> {
        let transaction = transaction.clone();
        self.call(COMMIT, move |group| group.commit(&transaction))
    }

    fn grant_lease(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseId, StoreError>> {
        self.call(GRANT, move |group| Ok(group.grant_lease(ttl)))
    }

    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.call(KEEP, move |group| Ok(group.keep_alive(lease)))
    }

    fn revoke_lease(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>> {
        self.call(REVOKE, move |group| {
            group.revoke_lease(lease);
            Ok(())
        })
    }

    fn watch(&self, keys: Vec<Key>, after: Revision) -> BoxStream<'static, ()> {
        let look = move |store: FileStore| {
            let keys = keys.clone();
            async move {
                let modified = move |group: &mut MemoryGroup| {
                    let at = |key| group.entries().get(key).map(|entry| entry.modified);
                    Ok((group.revision(), keys.iter().map(at).collect::<Vec<_>>()))
                };
                store.call("watch the semaphore", modified).await
            }
        };
        let start = (self.clone(), None);
        futures_util::stream::unfold(start, move |(store, mut seen)| {
            let look = look.clone();
            async move {
                loop {
                    match look(store.clone()).await {
                        Ok((revision, now)) => {
                            // Removed keys leave no trace: at the first look, any
                            // change of the group may have been one.
                            let changed = match &seen {
                                None => revision > after,
                                Some(seen) => *seen != now,
                            };
                            seen = Some(now);
                            if changed {
                                return Some(((), (store, seen)));
                            }
                        }
                        Err(error) => tracing::debug!(%error, "the watch looks again later"),
                    }
                    tokio::time::sleep(WATCH_INTERVAL).await;
                }
            }
        })
        .boxed()
    }
}

impl<'a> Held<'a> {
    fn take(store: &'a FileStore, what: &'static str) -> Result<Self, StoreError> {
        let unavailable = |error: io::Error| StoreError::Unavailable {
            what,
            reason: format!("{}: {error}", store.path.display()),
        };
        let lock = lock(&store.path).map_err(unavailable)?;
        let written = read(&store.path).map_err(unavailable)?;
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let (group, foreign) = if written.is_empty() {
            let mut group = MemoryGroup::new();
            group.advance(now);
            (group, BTreeMap::new())
        } else {
            let stored = serde_json::from_slice(&written).map_err(|error| StoreError::Refused {
                what,
                reason: format!(
                    "{} is no semaphore file ({error}); repair or remove it",
                    store.path.display()
                ),
            })?;
            restore(stored, &store.prefix, now)?
        };
        Ok(Self {
            store,
            what,
            group,
            foreign,
            written,
            _lock: lock,
        })
    }

    fn write(&self) -> Result<(), StoreError> {
        let bytes = serde_json::to_vec_pretty(&self.stored())
            .expect("revisions, texts and maps with text keys only");
        if bytes == self.written {
            return Ok(());
        }
        let path = &self.store.path;
        let reason = |error: io::Error| format!("{}: {error}", path.display());
        let folder = folder(path);
        replace(path, folder, &bytes).map_err(|error| StoreError::Unavailable {
            what: self.what,
            reason: reason(error),
        })?;
        // The new file is in place; whether it outlives a power cut is not sure.
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(|error| StoreError::Unknown {
                what: self.what,
                reason: reason(error),
            })
    }

    fn stored(&self) -> Stored {
        let mut keys = self.foreign.clone();
        for (key, entry) in self.group.entries() {
            let key = format!("{}{}", self.store.prefix, key.name());
            let stored = StoredKey {
                value: entry.record.write(),
                created: entry.created,
                modified: entry.modified,
                lease: entry.lease,
            };
            keys.insert(key, stored);
        }
        let leases = self.group.leases().iter().map(|(id, lease)| {
            let stored = StoredLease {
                ttl_ms: milliseconds(lease.ttl),
                ends_ms: milliseconds(lease.ends),
            };
            (*id, stored)
        });
        Stored {
            revision: self.group.revision(),
            last_lease: self.group.last_lease(),
            leases: leases.collect(),
            keys,
        }
    }
}

fn restore(
    stored: Stored,
    prefix: &str,
    now: Duration,
) -> Result<(MemoryGroup, BTreeMap<String, StoredKey>), StoreError> {
    let mut foreign = BTreeMap::new();
    let mut entries = Vec::new();
    let mut revision = stored.revision.max(1);
    for (name, key) in stored.keys {
        // A file edited by hand may be ahead of its own counter.
        revision = revision.max(key.modified);
        let parsed = reading::key(prefix, name.as_bytes());
        let record = match &parsed {
            Some(parsed) => reading::read(prefix, parsed, key.value.as_bytes())?,
            None => None,
        };
        let (Some(parsed), Some(record)) = (parsed, record) else {
            foreign.insert(name, key);
            continue;
        };
        let entry = Entry {
            record,
            created: key.created,
            modified: key.modified,
            lease: key.lease,
        };
        entries.push((parsed, entry));
    }
    let leases = stored.leases.into_iter().map(|(id, lease)| {
        let ttl = Duration::from_millis(lease.ttl_ms);
        (id, ttl, Duration::from_millis(lease.ends_ms))
    });
    let parts = Parts {
        revision,
        last_lease: stored.last_lease,
        entries,
        leases: leases.collect(),
    };
    Ok((MemoryGroup::from_parts(parts, now), foreign))
}

/// The file itself cannot carry the lock, since it is replaced.
fn lock(path: &Path) -> io::Result<Flock<File>> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(name)?;
    let end = Instant::now() + LOCK_LIMIT;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((again, Errno::EAGAIN | Errno::EINTR)) if Instant::now() < end => {
                file = again;
                std::thread::sleep(LOCK_PAUSE);
            }
            Err((_, Errno::EAGAIN)) => {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "another process holds the lock",
                ));
            }
            Err((_, error)) => return Err(error.into()),
        }
    }
}

/// The content; nothing if there is no file.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        file => file?,
    };
    let mut bytes = Vec::new();
    file.take(MOST_BYTES + 1).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > MOST_BYTES) {
        return Err(io::Error::other("the file is larger than 64 MiB"));
    }
    Ok(bytes)
}

fn replace(path: &Path, folder: &Path, bytes: &[u8]) -> io::Result<()> {
    // Readable for all, like what etcd's users see; who has set it otherwise
    // keeps that.
    let mode = fs::metadata(path).map_or(0o644, |metadata| metadata.permissions().mode());
    let mut file = NamedTempFile::with_prefix_in(".semaphore-", folder)?;
    file.write_all(bytes)?;
    file.as_file()
        .set_permissions(Permissions::from_mode(mode))?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::semaphore::{Document, Record, Write};

    fn put(key: Key, record: Record, lease: LeaseId) -> Transaction {
        Transaction {
            then: vec![Write::Put(key, record, lease)],
            ..Transaction::default()
        }
    }

    fn member(id: &str, lease: LeaseId) -> Transaction {
        put(Key::Member(id.into()), Record::Present, lease)
    }

    async fn members(store: &FileStore) -> u64 {
        store.load(&Look::default()).await.unwrap().members
    }

    #[tokio::test]
    async fn leases_end_by_the_wall_clock_whoever_looks() {
        let folder = tempfile::tempdir().unwrap();
        let store = FileStore::new(&folder.path().join("s"), &GroupName::default());
        let short = store.grant_lease(Duration::from_secs(2)).await.unwrap();
        let long = store.grant_lease(Duration::from_secs(3600)).await.unwrap();
        store.commit(&member("a", short)).await.unwrap();
        store.commit(&member("b", long)).await.unwrap();
        assert_eq!(members(&store).await, 2);
        let end = Instant::now() + Duration::from_secs(10);
        while members(&store).await == 2 {
            assert!(Instant::now() < end, "the lease does not end");
        }
        assert!(!store.keep_alive(short).await.unwrap());
        assert!(store.keep_alive(long).await.unwrap());
        assert_eq!(members(&store).await, 1);
    }

    #[tokio::test]
    async fn what_it_does_not_understand_it_keeps_or_refuses() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let store = FileStore::new(&path, &"prod/a".parse().unwrap());
        let path = folder.path().join("s.prod%2Fa");
        let prefix = "coreos.com/updateengine/rebootlock/groups/prod%2Fa/";
        let key = r#"{"value":"{","created":3,"modified":9}"#;
        let file = |name: &str| {
            format!(
                r#"{{"revision":7,"last_lease":0,"leases":{{}},"keys":{{"{prefix}{name}":{key}}}}}"#
            )
        };
        fs::write(&path, file("v1/holder/a")).unwrap();
        let document = Record::Document(Document::default());
        let commit = put(Key::Document, document, LeaseId::default());
        assert_eq!(store.commit(&commit).await.unwrap().revision, 10);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("v1/holder/a"), "{text}");

        fs::write(&path, file("semaphore")).unwrap();
        let error = store.load(&Look::default()).await.unwrap_err().to_string();
        assert_eq!(error, format!("cannot read the key {prefix}semaphore"));
        fs::write(&path, "{").unwrap();
        let error = store.load(&Look::default()).await.unwrap_err().to_string();
        assert!(error.contains("repair or remove it"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "{");
    }

    #[tokio::test]
    async fn processes_take_turns() {
        let folder = tempfile::tempdir().unwrap();
        let store = FileStore::new(&folder.path().join("s"), &GroupName::default());
        let lease = LeaseId::default();
        let tasks = (0..20).map(|i| {
            let store = store.clone();
            tokio::spawn(async move { store.commit(&member(&i.to_string(), lease)).await })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.unwrap().unwrap();
        }
        let seen = store.load(&Look::default()).await.unwrap();
        assert_eq!((seen.members, seen.revision), (20, 21));
        let left: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
        assert_eq!(left.len(), 2, "{left:?}");
    }
}
