//! One updater at a time.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::PathBuf;

use crate::root::Root;

/// The lock file, a path on the machine.
const LOCK_FILE: &str = "/run/update_engine.lock";

/// The right to install on this machine. Given back when dropped, or by the kernel when the process
/// ends in whatever way.
///
/// It keeps whole updaters apart, from first write to flip. [`gptprio::FileDevice`] has a lock of
/// its own, on the disk, that keeps single changes of the partition table apart.
#[derive(Debug)]
pub struct UpdateLock {
    file: File,
}

impl Drop for UpdateLock {
    fn drop(&mut self) {
        // Closing is not enough in a moment in which a child has the file too, before it
        // becomes another program. Without success the lock goes with that.
        let _ = self.file.unlock();
    }
}

impl UpdateLock {
    /// Takes the lock, without waiting.
    pub fn take(root: &Root) -> Result<Self, LockError> {
        let path = root.path(LOCK_FILE).map_err(|source| LockError::Io {
            path: PathBuf::from(LOCK_FILE),
            source,
        })?;
        let open = || -> io::Result<File> {
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder)?;
            }
            // Never removed: a lock on a file that others can no longer find would lock nothing.
            OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
        };
        let file = open().map_err(|source| LockError::Io {
            path: path.clone(),
            source,
        })?;
        match file.try_lock() {
            Ok(()) => Ok(Self { file }),
            Err(TryLockError::WouldBlock) => Err(LockError::Taken { path }),
            Err(TryLockError::Error(source)) => Err(LockError::Io { path, source }),
        }
    }
}

/// Why this process must not install.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another updater has the lock.
    #[error("another updater is at work: it holds {}", path.display())]
    Taken {
        /// The lock file.
        path: PathBuf,
    },
    /// The lock file cannot be used.
    #[error("cannot lock {}", path.display())]
    Io {
        /// The lock file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_updaters_exactly_one_gets_the_lock_and_it_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::at(dir.path()).unwrap();
        for _ in 0..2 {
            let locks: Vec<_> = std::thread::scope(|scope| {
                let takers: Vec<_> = (0..100)
                    .map(|_| scope.spawn(|| UpdateLock::take(&root)))
                    .collect();
                takers
                    .into_iter()
                    .map(|taker| taker.join().unwrap())
                    .collect()
            });
            assert_eq!(locks.iter().filter(|lock| lock.is_ok()).count(), 1);
            let refused = locks.iter().find_map(|lock| lock.as_ref().err()).unwrap();
            assert!(matches!(refused, LockError::Taken { .. }), "{refused}");
        }
    }
}
