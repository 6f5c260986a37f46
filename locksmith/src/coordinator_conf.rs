//! The coordinator file: who coordinates reboots on this machine, by which
//! strategy, and how far it is. Status tools read it; it also keeps a second
//! coordinator out.
//!
//! ```text
//!   /run/update-engine/coordinator.conf     0644, locked with flock(2) for the daemon's life
//!     NAME=locksmithd
//!     STATE=running
//!     STRATEGY=etcd-lock                    no newline at the end, as in the original
//! ```
//!
//! A change is a new file that is locked before it takes the place of the old
//! one, so that a reader sees a whole file and there is no moment without a
//! lock. The file stays when the daemon ends; the lock goes with the process.
//! Why a state changes is not known here.

use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

/// Where the file is.
pub const PATH: &str = "/run/update-engine/coordinator.conf";

/// Times that a file is opened which another coordinator replaces in the same
/// moment.
const OPENS: usize = 16;

/// How far the coordinator is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Not ready yet.
    Starting,
    /// Waits for an update.
    Running,
    /// An update is applied; waits for its turn.
    RebootPlanned,
    /// The reboot has been asked for.
    Rebooting,
}

impl State {
    /// The word in the file.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::RebootPlanned => "reboot-planned",
            Self::Rebooting => "rebooting",
        }
    }
}

/// Why the file cannot be had or changed.
#[derive(Debug, thiserror::Error)]
pub enum CoordinatorError {
    /// Another process holds it. The text is the original's.
    #[error("unable to become 'update coordinator': file already locked")]
    AlreadyLocked,
    /// The folder is missing and cannot be made.
    #[error("cannot make the folder {}", path.display())]
    MakeFolder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file cannot be opened or locked.
    #[error("unable to become 'update coordinator': cannot lock {}", path.display())]
    Lock {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// New content cannot be put in its place.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The file, held: as long as this lives, no other process becomes the
/// coordinator.
#[derive(Debug)]
pub struct CoordinatorConf {
    path: PathBuf,
    name: &'static str,
    strategy: String,
    /// Carries the lock.
    file: File,
}

impl CoordinatorConf {
    /// Becomes the coordinator `name` with a strategy, in [`State::Starting`].
    /// Both are plain words, since shells source the file. The folder is made
    /// when it is missing.
    ///
    /// # Errors
    ///
    /// Another process is the coordinator, or the file cannot be written.
    pub fn take(path: &Path, name: &'static str, strategy: &str) -> Result<Self, CoordinatorError> {
        let folder = folder_of(path);
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o755);
        builder
            .create(folder)
            .map_err(|source| CoordinatorError::MakeFolder {
                path: folder.to_owned(),
                source,
            })?;
        let mut held = Self {
            path: path.to_owned(),
            name,
            strategy: strategy.to_owned(),
            file: lock_what_is_there(path)?,
        };
        held.set(State::Starting)?;
        Ok(held)
    }

    /// Tells a new state.
    ///
    /// # Errors
    ///
    /// The file cannot be replaced; then it is as before, and still held.
    pub fn set(&mut self, state: State) -> Result<(), CoordinatorError> {
        let content = format!(
            "NAME={}\nSTATE={}\nSTRATEGY={}",
            self.name,
            state.as_str(),
            self.strategy
        );
        // The old file's lock goes when the new one is locked and in its place.
        self.file = replace(&self.path, &content).map_err(|source| CoordinatorError::Write {
            path: self.path.clone(),
            source,
        })?;
        Ok(())
    }
}

/// Locks the file, which is made when there is none.
fn lock_what_is_there(path: &Path) -> Result<File, CoordinatorError> {
    let failed = |source| CoordinatorError::Lock {
        path: path.to_owned(),
        source,
    };
    for _ in 0..OPENS {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            .open(path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(CoordinatorError::AlreadyLocked),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        // Its holder may have replaced the file since it was opened; a lock on
        // the old one keeps nobody out.
        if is_at(&file, path).map_err(failed)? {
            return Ok(file);
        }
    }
    Err(CoordinatorError::AlreadyLocked)
}

fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match fs::metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Puts a locked file with this content at `path`.
fn replace(path: &Path, content: &str) -> io::Result<File> {
    let mut next = tempfile::Builder::new()
        .prefix(".coordinator.conf")
        .permissions(Permissions::from_mode(0o644))
        .tempfile_in(folder_of(path))?;
    // Whatever the umask says: status tools run as other users.
    next.as_file()
        .set_permissions(Permissions::from_mode(0o644))?;
    next.write_all(content.as_bytes())?;
    next.as_file().try_lock()?;
    NamedTempFile::persist(next, path).map_err(|error| error.error)
}

fn folder_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn taken() -> (tempfile::TempDir, PathBuf, CoordinatorConf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("update-engine/coordinator.conf");
        let held = CoordinatorConf::take(&path, "locksmithd", "etcd-lock").unwrap();
        (folder, path, held)
    }

    /// Whether a process of its own gets the lock.
    fn another_process_gets_the_lock(path: &Path) -> bool {
        Command::new("flock")
            .args(["--nonblock", "--exclusive"])
            .arg(path)
            .arg("true")
            .status()
            .expect("flock must be installed (Debian package util-linux)")
            .success()
    }

    #[test]
    fn every_state_is_written_whole_and_can_be_sourced() {
        let (_folder, path, mut held) = taken();
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            "NAME=locksmithd\nSTATE=starting\nSTRATEGY=etcd-lock"
        );
        for (state, word) in [
            (State::Running, "running"),
            (State::RebootPlanned, "reboot-planned"),
            (State::Rebooting, "rebooting"),
            (State::Starting, "starting"),
        ] {
            held.set(state).unwrap();
            let output = Command::new("sh")
                .args(["-ec", r#". "$1"; echo "$NAME/$STATE/$STRATEGY""#, "sh"])
                .arg(&path)
                .output()
                .unwrap();
            assert_eq!(
                String::from_utf8_lossy(&output.stdout),
                format!("locksmithd/{word}/etcd-lock\n")
            );
        }
        let folder = folder_of(&path);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(folder), mode(&path)), (0o755, 0o644));
        assert_eq!(
            fs::read_dir(folder).unwrap().count(),
            1,
            "no temporary file is left"
        );
    }

    #[test]
    fn the_lock_is_held_through_changes_until_the_end() {
        let (_folder, path, mut held) = taken();
        assert!(!another_process_gets_the_lock(&path));
        held.set(State::Running).unwrap();
        assert!(!another_process_gets_the_lock(&path));
        let second = CoordinatorConf::take(&path, "other", "reboot").unwrap_err();
        assert_eq!(
            second.to_string(),
            "unable to become 'update coordinator': file already locked"
        );
        let before = fs::read(&path).unwrap();
        drop(held);
        assert_eq!(fs::read(&path).unwrap(), before, "the file stays");
        assert!(another_process_gets_the_lock(&path));
        CoordinatorConf::take(&path, "other", "reboot").unwrap();
    }

    #[test]
    fn a_lock_that_another_program_holds_keeps_us_out() {
        let (_folder, path, held) = taken();
        drop(held);
        let mut other = Command::new("flock")
            .arg(&path)
            .args(["-c", "echo locked; read end"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut word = [0; 6];
        io::Read::read_exact(other.stdout.as_mut().unwrap(), &mut word).unwrap();
        let refused = CoordinatorConf::take(&path, "locksmithd", "reboot");
        drop(other.stdin.take());
        other.wait().unwrap();
        assert!(matches!(refused, Err(CoordinatorError::AlreadyLocked)));
    }

    #[test]
    fn of_many_that_begin_at_once_one_succeeds() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("coordinator.conf");
        let begin = std::sync::Barrier::new(8);
        let taken: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        begin.wait();
                        CoordinatorConf::take(&path, "locksmithd", "reboot").ok()
                    })
                })
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert_eq!(taken.iter().flatten().count(), 1);
    }

    #[test]
    fn what_stands_in_the_way_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let error = CoordinatorConf::take(&file.join("x.conf"), "locksmithd", "reboot");
        assert!(matches!(error, Err(CoordinatorError::MakeFolder { .. })));
        let error = CoordinatorConf::take(folder.path(), "locksmithd", "reboot");
        assert!(matches!(error, Err(CoordinatorError::Lock { .. })));
    }
}
