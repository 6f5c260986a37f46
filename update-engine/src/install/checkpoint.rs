//! Where an interrupted installation goes on.
//!
//! Two records with the same content but different promises:
//!
//! - the *volatile* one under `/run` is written after every operation and never
//!   synced. It counts only within the boot that wrote it, while the page cache
//!   still holds what the operation wrote. It survives `kill -9`.
//! - the *durable* one under `/var/lib` is written only after the target device
//!   was synced. It survives a power cut.
//!
//! The payload's header and manifest are kept beside the durable record, so that
//! a resume downloads none of it again.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use payload::ResumePoint;
use serde::{Deserialize, Serialize};

use crate::error::UpdateError;

const FORMAT: u32 = 1;
/// Resumes in a row that brought nothing; then the installation starts over.
const MOST_FRUITLESS_RESUMES: u32 = 10;
/// Ceiling for a record read back.
const LONGEST_RECORD: u64 = 64 * 1024;

/// Which installation a record belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    /// SHA-256 of the payload file, lower-case hex.
    pub(super) payload_sha256: String,
    /// Unique GUID or path of the target slot.
    pub(super) target: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    format: u32,
    #[serde(flatten)]
    identity: Identity,
    boot_id: String,
    fruitless: u32,
    resume: ResumePoint,
}

/// What a resume starts from.
pub(super) struct Found {
    pub(super) resume: ResumePoint,
    pub(super) metadata: Vec<u8>,
}

/// The records of one installation.
pub(super) struct Checkpoints {
    durable: PathBuf,
    volatile: PathBuf,
    identity: Identity,
    boot_id: String,
    fruitless: u32,
}

impl Checkpoints {
    /// `durable` and `volatile` are folders of our own; they are made on demand.
    pub(super) fn new(
        durable: PathBuf,
        volatile: PathBuf,
        identity: Identity,
        boot_id: &str,
    ) -> Self {
        Self {
            durable,
            volatile,
            identity,
            boot_id: boot_id.to_owned(),
            fruitless: 0,
        }
    }

    /// The furthest point that still holds, if any. Counts the resume as
    /// fruitless until an operation is recorded.
    ///
    /// # Errors
    /// Only when the count cannot be written; an unreadable record is no record.
    pub(super) fn find(&mut self) -> Result<Option<Found>, UpdateError> {
        let volatile =
            read_record(&self.volatile_record()).filter(|record| record.boot_id == self.boot_id);
        let Some(mut record) = volatile.or_else(|| read_record(&self.durable_record())) else {
            return Ok(None);
        };
        if record.identity != self.identity || record.fruitless >= MOST_FRUITLESS_RESUMES {
            return Ok(None);
        }
        let Ok(metadata) = fs::read(self.metadata()) else {
            return Ok(None);
        };
        record.fruitless += 1;
        record.boot_id.clone_from(&self.boot_id);
        self.fruitless = record.fruitless;
        write_atomically(&self.volatile_record(), &encode(&record)?, false)?;
        Ok(Some(Found {
            resume: record.resume,
            metadata,
        }))
    }

    /// A new installation: forgets the last one, keeps this one's header and
    /// manifest.
    pub(super) fn begin(&mut self, metadata: &[u8]) -> Result<(), UpdateError> {
        self.clear()?;
        self.fruitless = 0;
        write_atomically(&self.metadata(), metadata, true)
    }

    /// After an operation was written (not synced).
    pub(super) fn record(&mut self, resume: &ResumePoint) -> Result<(), UpdateError> {
        self.fruitless = 0;
        write_atomically(&self.volatile_record(), &self.encode(resume)?, false)
    }

    /// After the target was synced with everything up to here.
    pub(super) fn commit(&mut self, resume: &ResumePoint) -> Result<(), UpdateError> {
        write_atomically(&self.durable_record(), &self.encode(resume)?, true)
    }

    /// Before an operation that cannot be repeated: a crash in the middle of it
    /// must start over.
    pub(super) fn invalidate(&self) -> Result<(), UpdateError> {
        remove(&self.volatile_record())?;
        remove(&self.durable_record())
    }

    /// Forgets everything.
    pub(super) fn clear(&self) -> Result<(), UpdateError> {
        self.invalidate()?;
        remove(&self.metadata())
    }

    fn encode(&self, resume: &ResumePoint) -> Result<Vec<u8>, UpdateError> {
        encode(&Record {
            format: FORMAT,
            identity: self.identity.clone(),
            boot_id: self.boot_id.clone(),
            fruitless: self.fruitless,
            resume: resume.clone(),
        })
    }

    fn metadata(&self) -> PathBuf {
        self.durable.join("metadata")
    }

    fn durable_record(&self) -> PathBuf {
        self.durable.join("position")
    }

    fn volatile_record(&self) -> PathBuf {
        self.volatile.join("position")
    }
}

fn encode(record: &Record) -> Result<Vec<u8>, UpdateError> {
    serde_json::to_vec(record).map_err(state_error)
}

fn read_record(path: &Path) -> Option<Record> {
    let size = fs::symlink_metadata(path)
        .ok()
        .filter(fs::Metadata::is_file)?
        .len();
    if size > LONGEST_RECORD {
        return None;
    }
    let record: Record = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    (record.format == FORMAT).then_some(record)
}

fn write_atomically(path: &Path, content: &[u8], durable: bool) -> Result<(), UpdateError> {
    let folder = path.parent().expect("records lie in a folder");
    let write = || -> std::io::Result<()> {
        fs::create_dir_all(folder)?;
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(content)?;
        if durable {
            file.as_file().sync_all()?;
        }
        file.persist(path)?;
        if durable {
            fs::File::open(folder)?.sync_all()?;
        }
        Ok(())
    };
    write().map_err(state_error)
}

fn remove(path: &Path) -> Result<(), UpdateError> {
    match fs::remove_file(path) {
        Ok(()) => match path.parent() {
            Some(folder) => fs::File::open(folder)
                .and_then(|folder| folder.sync_all())
                .map_err(state_error),
            None => Ok(()),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(state_error(error)),
    }
}

fn state_error(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> UpdateError {
    UpdateError::State {
        what: "the installation checkpoint",
        source: error.into(),
    }
}
