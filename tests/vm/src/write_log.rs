//! What a power cut leaves of a machine's writes.
//!
//! QEMU logs every write and every flush of the guest in the format of Linux's
//! dm-log-writes (`Documentation/admin-guide/device-mapper/log-writes.rst`). A cut
//! leaves all that was written before the last flush, and of what was written after
//! it any part, in any order, sector by sector: a drive with a volatile cache promises
//! no more.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use system_tests::process::run;

const LIMIT: Duration = Duration::from_secs(60);
const SECTOR: u64 = 512;
const MAGIC: u64 = 0x006a_7366_7773_6872;
const FLUSH: u64 = 1;
const FORCED: u64 = 2;
const DISCARD: u64 = 4;
/// Sectors of each copy of the partition table, at either end of the disk.
const TABLE: u64 = 34;

/// One entry of the log.
#[derive(Debug, Clone, Copy)]
struct Entry {
    sector: u64,
    sectors: u64,
    flags: u64,
    /// Where its data is in the log.
    data: u64,
}

/// A log of writes.
#[derive(Debug)]
pub struct WriteLog {
    file: File,
    entries: Vec<Entry>,
    /// Sectors of the disk.
    disk: u64,
}

/// What is in a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    /// Writes with data.
    pub writes: usize,
    /// Flushes.
    pub flushes: usize,
    /// Writes that touch a copy of the partition table.
    pub tables: usize,
}

impl WriteLog {
    /// Reads the log in the file `path`, of a disk of `disk_length` bytes.
    ///
    /// # Errors
    ///
    /// It is none.
    pub fn read(path: &Path, disk_length: u64) -> Result<Self> {
        let file = File::open(path).with_context(|| path.display().to_string())?;
        let length = file.metadata()?.len();
        let word = |at: u64| -> Result<u64> {
            let mut bytes = [0; 8];
            file.read_exact_at(&mut bytes, at)?;
            Ok(u64::from_le_bytes(bytes))
        };
        ensure!(word(0)? == MAGIC, "{} is no log of writes", path.display());
        let count = word(16)?;
        let mut entries = Vec::new();
        let mut at = SECTOR;
        for number in 0..count {
            ensure!(at < length, "the log ends at entry {number} of {count}");
            let entry = Entry {
                sector: word(at)?,
                sectors: word(at + 8)?,
                flags: word(at + 16)?,
                data: at + SECTOR,
            };
            at = entry.data;
            if entry.flags & DISCARD == 0 {
                at += entry.sectors * SECTOR;
            }
            entries.push(entry);
        }
        Ok(Self {
            file,
            entries,
            disk: disk_length / SECTOR,
        })
    }

    /// What is in it.
    #[must_use]
    pub fn totals(&self) -> Totals {
        Totals {
            writes: self.entries.iter().filter(|entry| entry.writes()).count(),
            flushes: self.entries.iter().filter(|entry| entry.flushes()).count(),
            tables: self
                .entries
                .iter()
                .filter(|entry| self.is_table(entry))
                .count(),
        }
    }

    /// `count` moments to cut the power at, in order: one after each write to a
    /// partition table and each flush, as far as they go, the rest anywhere.
    #[must_use]
    pub fn moments(&self, count: usize, rng: &mut Rng) -> Vec<usize> {
        let numbers = 1..=self.entries.len();
        let (mut tables, mut others): (Vec<_>, Vec<_>) =
            numbers.partition(|moment| self.is_table(&self.entries[moment - 1]));
        rng.shuffle(&mut tables);
        rng.shuffle(&mut others);
        others.sort_by_key(|moment| !self.entries[moment - 1].flushes());
        // No kind may take the place of all others.
        tables.truncate(count.div_ceil(2));
        others.truncate(count - tables.len());
        tables.append(&mut others);
        tables.sort_unstable();
        tables
    }

    /// The moments just after each write to a partition table.
    #[must_use]
    pub fn table_moments(&self) -> Vec<usize> {
        (1..=self.entries.len())
            .filter(|moment| self.is_table(&self.entries[moment - 1]))
            .collect()
    }

    /// The same writes, without any flush between two writes to partition tables: what
    /// a careless updater would do.
    #[must_use]
    pub fn without_flushes_between_tables(mut self) -> Self {
        let (mut tables, mut kept) = (false, Vec::new());
        for entry in std::mem::take(&mut self.entries) {
            if entry.flushes() && !entry.writes() && tables {
                continue;
            }
            if entry.writes() {
                tables = self.is_table(&entry);
            }
            kept.push(entry);
        }
        self.entries = kept;
        self
    }

    /// Makes the disk `to` out of the disk `base` as it was when the log began, as a cut
    /// at `moment` leaves it; `rng` chooses what of the unflushed writes is there.
    ///
    /// # Errors
    ///
    /// A file cannot be read or written.
    pub fn cut(&self, base: &Path, moment: usize, to: &Path, rng: &mut Rng) -> Result<()> {
        let mut copy = Command::new("cp");
        copy.arg("--sparse=always").arg(base).arg(to);
        run(&mut copy, LIMIT)?.success()?;
        let disk = File::options().write(true).open(to)?;
        let past = &self.entries[..moment];
        let durable = past
            .iter()
            .rposition(|entry| entry.flushes())
            .map_or(0, |last| last + 1);
        for entry in past[..durable].iter().filter(|entry| entry.writes()) {
            self.replay(entry, &disk, |_| true)?;
        }
        for entry in past[durable..].iter().filter(|entry| entry.writes()) {
            let forced = entry.flags & FORCED != 0;
            // All, nothing, or some sectors of it.
            let fate = rng.u8(..3);
            self.replay(entry, &disk, |_| {
                forced || fate == 0 || (fate == 1 && rng.bool())
            })?;
        }
        Ok(())
    }

    fn replay(&self, entry: &Entry, disk: &File, mut keeps: impl FnMut(u64) -> bool) -> Result<()> {
        let mut data = vec![0; usize::try_from(entry.sectors * SECTOR)?];
        self.file.read_exact_at(&mut data, entry.data)?;
        let sectors = data.chunks(usize::try_from(SECTOR)?);
        for (sector, content) in (entry.sector..).zip(sectors) {
            if keeps(sector) {
                disk.write_all_at(content, sector * SECTOR)?;
            }
        }
        Ok(())
    }

    fn is_table(&self, entry: &Entry) -> bool {
        let end = entry.sector + entry.sectors;
        entry.writes() && (entry.sector < TABLE || end > self.disk.saturating_sub(TABLE))
    }
}

impl Entry {
    /// Whether it carries data. What was discarded has any content, the old one too.
    fn writes(&self) -> bool {
        self.sectors > 0 && self.flags & DISCARD == 0
    }

    fn flushes(&self) -> bool {
        self.flags & FLUSH != 0
    }
}
