//! The real store: one file per key in a folder.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::fcntl::OFlag;

use super::{Key, MAX_VALUE, StateStore, StoreError};
use crate::whole_file;

/// One file per key, replaced in one step.
///
/// A commit writes `.KEY.new` beside the file, syncs it, renames it over the file and syncs the
/// folder: at every instant the file is the whole old or the whole new value. A lock on the folder
/// keeps commits of other threads and processes apart. Only regular files are read, so that neither
/// a link nor a FIFO in the folder can lead a privileged reader elsewhere or make it wait.
#[derive(Debug)]
pub struct Prefs {
    dir: PathBuf,
}

impl Prefs {
    /// The store in the folder `dir`, a path to open ([`crate::root::Root::path`]). What is missing
    /// of the folder is made, for its owner alone.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let dir = dir.into();
        match create(&dir) {
            Ok(()) => Ok(Self { dir }),
            Err(source) => Err(StoreError::Open { path: dir, source }),
        }
    }

    fn file(&self, key: Key) -> PathBuf {
        self.dir.join(key.name())
    }

    /// Runs `change` while no other commit runs, then makes what it did to the folder durable.
    fn change(&self, key: Key, change: impl FnOnce() -> io::Result<()>) -> Result<(), StoreError> {
        let commit = || {
            let folder = File::open(&self.dir)?;
            folder.lock()?;
            change()?;
            folder.sync_all()
        };
        commit().map_err(|source| StoreError::Commit {
            key,
            path: self.file(key),
            source,
        })
    }
}

impl StateStore for Prefs {
    fn load(&self, key: Key) -> Result<Option<Vec<u8>>, StoreError> {
        let failed = |source| StoreError::Read {
            key,
            path: self.file(key),
            source,
        };
        let Some(file) = open_value(&self.file(key)).map_err(failed)? else {
            return Ok(None);
        };
        let mut value = Vec::new();
        file.take(MAX_VALUE + 1)
            .read_to_end(&mut value)
            .map_err(failed)?;
        check_length(key, &value)?;
        Ok(Some(value))
    }

    fn commit(&self, key: Key, value: &[u8]) -> Result<(), StoreError> {
        check_length(key, value)?;
        self.change(key, || whole_file::replace(&self.file(key), value))
    }

    fn remove(&self, key: Key) -> Result<(), StoreError> {
        self.change(key, || whole_file::remove(&self.file(key)))
    }

    fn committed_at(&self, key: Key) -> Result<Option<SystemTime>, StoreError> {
        let modified = open_value(&self.file(key)).and_then(|file| match file {
            Some(file) => file.metadata()?.modified().map(Some),
            None => Ok(None),
        });
        modified.map_err(|source| StoreError::Read {
            key,
            path: self.file(key),
            source,
        })
    }
}

/// Makes `dir` for its owner alone and its parents as usual; one that is there stays as it is.
fn create(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    if let Some(parent) = dir.parent() {
        fs::create_dir_all(parent)?;
        DirBuilder::new().mode(0o700).create(dir)?;
        File::open(parent)?.sync_all()?;
    }
    Ok(())
}

/// Opens a regular file to read, without following a link and without waiting; `None` when there is
/// nothing.
fn open_value(path: &Path) -> io::Result<Option<File>> {
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        ));
    }
    Ok(Some(file))
}

/// Refuses a value that no reader would take.
pub(super) fn check_length(key: Key, value: &[u8]) -> Result<(), StoreError> {
    match u64::try_from(value.len()) {
        Ok(length) if length <= MAX_VALUE => Ok(()),
        _ => Err(StoreError::TooLarge { key }),
    }
}
