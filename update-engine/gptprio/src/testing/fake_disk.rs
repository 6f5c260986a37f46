//! The disk itself: sectors on the medium, sectors still in caches, and faults.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::ops::Range;
use std::slice;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::vec::Vec;

use super::WriteLog;
use super::crash::{Event, Sector};
use crate::device::{BlockDevice, DeviceError, check_bounds, length_of};

/// A disk in memory that keeps writes apart until they are synced.
///
/// `read_at` sees the latest writes, as through a page cache; `read_medium_at` sees what
/// was synced. Writes are recorded for [`CrashStates`](super::CrashStates) between
/// [`FakeDisk::start_log`] and [`FakeDisk::take_log`]. Requests fail when a fault was
/// ordered. Panics on misuse, since it is for tests alone.
#[derive(Debug)]
pub struct FakeDisk {
    sector_size: usize,
    len: u64,
    state: Mutex<State>,
}

struct State {
    /// The medium as it was at some time; shared with logs and crash states.
    base: Arc<Vec<u8>>,
    /// Sectors on the medium that are newer than `base`.
    synced: BTreeMap<u64, Sector>,
    /// Sectors in caches only.
    unsynced: BTreeMap<u64, Sector>,
    log: Option<WriteLog>,
    writes: u64,
    syncs: u64,
    failing_writes: BTreeMap<u64, Fault>,
    failing_syncs: BTreeMap<u64, Fault>,
    power_cut_at: Option<u64>,
    unreadable: BTreeSet<u64>,
    rotten: BTreeSet<u64>,
}

/// How a request fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Input/output error.
    Eio,
    /// No space left on the device, as thin volumes and loop devices tell.
    Enospc,
}

impl FakeDisk {
    /// A disk full of zeros. `sector_size` is 512 or 4096; `len` a multiple of it.
    pub fn new(sector_size: u32, len: u64) -> FakeDisk {
        let len = usize::try_from(len).expect("fits into memory");
        FakeDisk::from_bytes(sector_size, std::vec![0; len])
    }

    /// A disk with this content.
    pub fn from_bytes(sector_size: u32, bytes: Vec<u8>) -> FakeDisk {
        FakeDisk::over(sector_size, Arc::new(bytes), BTreeMap::new())
    }

    /// A disk that shares `base` and differs from it in some sectors.
    pub(super) fn over(
        sector_size: u32,
        base: Arc<Vec<u8>>,
        synced: BTreeMap<u64, Sector>,
    ) -> FakeDisk {
        let sector_size = usize::try_from(sector_size).expect("fits");
        assert!(matches!(sector_size, 512 | 4096), "no such sector size");
        assert!(base.len().is_multiple_of(sector_size), "a part of a sector");
        FakeDisk {
            sector_size,
            len: length_of(&base),
            state: Mutex::new(State {
                base,
                synced,
                unsynced: BTreeMap::new(),
                log: None,
                writes: 0,
                syncs: 0,
                failing_writes: BTreeMap::new(),
                failing_syncs: BTreeMap::new(),
                power_cut_at: None,
                unreadable: BTreeSet::new(),
                rotten: BTreeSet::new(),
            }),
        }
    }

    /// Everything written so far counts as being on the medium; later writes are recorded.
    pub fn start_log(&self) {
        let mut state = self.state();
        state.settle(slice::from_ref(&(0..u64::MAX)), self.sector_size);
        if !state.synced.is_empty() {
            let merged = self.medium(&state);
            state.base = Arc::new(merged);
            state.synced.clear();
        }
        state.log = Some(WriteLog::new(self.sector_size(), Arc::clone(&state.base)));
    }

    /// What was written and synced since [`FakeDisk::start_log`].
    pub fn take_log(&self) -> WriteLog {
        self.state().log.take().expect("start_log was called")
    }

    /// How many write requests (not sectors) were made so far.
    pub fn writes(&self) -> u64 {
        self.state().writes
    }

    /// How many sync requests were made so far.
    pub fn syncs(&self) -> u64 {
        self.state().syncs
    }

    /// The write request after `skip` more fails, once. The first half of its sectors is
    /// written all the same.
    pub fn fail_write(&self, skip: u64, fault: Fault) {
        let mut state = self.state();
        let number = state.writes + skip;
        state.failing_writes.insert(number, fault);
    }

    /// The sync request after `skip` more fails, once, and syncs nothing.
    pub fn fail_sync(&self, skip: u64, fault: Fault) {
        let mut state = self.state();
        let number = state.syncs + skip;
        state.failing_syncs.insert(number, fault);
    }

    /// Syncs these ranges of bytes and nothing else, as one request. A partition and its
    /// disk are such parts where each has a device node with a cache of its own, as
    /// Linux has it.
    pub fn sync_parts(&self, parts: &[Range<u64>]) -> Result<(), DeviceError> {
        let request = ("sync", 0, 0);
        let mut state = self.state();
        state.check_power(request)?;
        let number = state.syncs;
        state.syncs += 1;
        if let Some(fault) = state.failing_syncs.remove(&number) {
            return Err(fault.error(request));
        }
        let parts = parts.iter();
        let parts: Vec<_> = parts
            .map(|part| self.sectors_of(part.start, part.end - part.start))
            .collect();
        state.settle(&parts, self.sector_size);
        if let Some(log) = &mut state.log {
            log.push(Event::Sync(parts.into()));
        }
        Ok(())
    }

    /// After `writes` more write requests every request fails. See
    /// [`FakeDisk::after_power_cut`].
    pub fn cut_power_after(&self, writes: u64) {
        let mut state = self.state();
        state.power_cut_at = Some(state.writes + writes);
    }

    /// The disk at the next power-on: of the unsynced sectors, those survive for which
    /// `survives` says so (by sector number).
    pub fn after_power_cut(&self, mut survives: impl FnMut(u64) -> bool) -> FakeDisk {
        let state = self.state();
        let mut synced = state.synced.clone();
        let kept = state.unsynced.iter().filter(|(lba, _)| survives(**lba));
        synced.extend(kept.map(|(&lba, sector)| (lba, Arc::clone(sector))));
        FakeDisk::over(self.sector_size(), Arc::clone(&state.base), synced)
    }

    /// Sectors that touch this range of bytes cannot be read until they are written again.
    pub fn make_unreadable(&self, range: Range<u64>) {
        let sectors = self.sectors_of(range.start, range.end - range.start);
        self.state().unreadable.extend(sectors);
    }

    /// From now on the medium returns the byte at `offset` with its lowest bit flipped,
    /// while caches still show what was written.
    pub fn rot(&self, offset: u64) {
        self.state().rotten.insert(offset);
    }

    /// All bytes as `read_at` sees them.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = std::vec![0; usize::try_from(self.len).expect("it is in memory")];
        self.copy(&self.state(), 0, &mut bytes, true);
        bytes
    }

    /// Whether the bytes from `offset` on are `expected`, as `read_at` sees them. Much
    /// cheaper than reading.
    pub fn holds(&self, offset: u64, expected: &[u8]) -> bool {
        let state = self.state();
        let size = length_of_sector(self.sector_size);
        let end = offset + length_of(expected);
        let sectors = self.sectors_of(offset, length_of(expected));
        let newer: BTreeMap<u64, &Sector> = state
            .synced
            .range(sectors.clone())
            .chain(state.unsynced.range(sectors))
            .map(|(&lba, sector)| (lba, sector))
            .collect();
        let part = |from: u64, to: u64| &expected[index(from - offset)..index(to - offset)];

        let mut position = offset;
        for (lba, sector) in newer {
            let (from, to) = ((lba * size).max(offset), ((lba + 1) * size).min(end));
            let inside = index(from - lba * size)..index(to - lba * size);
            if state.base[index(position)..index(from)] != *part(position, from)
                || sector[inside] != *part(from, to)
            {
                return false;
            }
            position = to;
        }
        state.base[index(position)..index(end)] == *part(position, end)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A test that panicked while it held the lock is no reason to hide what it wrote.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn medium(&self, state: &State) -> Vec<u8> {
        let mut bytes = std::vec![0; state.base.len()];
        self.copy(state, 0, &mut bytes, false);
        bytes
    }

    /// Numbers of the sectors that a range of bytes touches.
    fn sectors_of(&self, offset: u64, length: u64) -> Range<u64> {
        let size = length_of_sector(self.sector_size);
        offset / size..(offset + length).div_ceil(size)
    }

    fn copy(&self, state: &State, offset: u64, buf: &mut [u8], cached: bool) {
        let size = length_of_sector(self.sector_size);
        let start = index(offset);
        buf.copy_from_slice(&state.base[start..start + buf.len()]);
        let end = offset + length_of(buf);
        let sectors = self.sectors_of(offset, length_of(buf));
        let unsynced = cached.then(|| state.unsynced.range(sectors.clone()));
        for (&lba, sector) in state
            .synced
            .range(sectors)
            .chain(unsynced.into_iter().flatten())
        {
            let (from, to) = ((lba * size).max(offset), ((lba + 1) * size).min(end));
            buf[index(from - offset)..index(to - offset)]
                .copy_from_slice(&sector[index(from - lba * size)..index(to - lba * size)]);
        }
    }

    /// Puts `data` into the cache, sector by sector.
    fn cache(&self, state: &mut State, offset: u64, data: &[u8]) {
        let size = length_of_sector(self.sector_size);
        for lba in self.sectors_of(offset, length_of(data)) {
            let mut sector = std::vec![0; self.sector_size];
            self.copy(state, lba * size, &mut sector, true);
            let from = (lba * size).max(offset);
            let to = ((lba + 1) * size).min(offset + length_of(data));
            sector[index(from - lba * size)..index(to - lba * size)]
                .copy_from_slice(&data[index(from - offset)..index(to - offset)]);
            let sector: Sector = sector.into();
            if let Some(log) = &mut state.log {
                log.push(Event::Write(lba, Arc::clone(&sector)));
            }
            state.unreadable.remove(&lba);
            state.unsynced.insert(lba, sector);
        }
    }

    fn read(&self, offset: u64, buf: &mut [u8], cached: bool) -> Result<(), DeviceError> {
        let request = ("read", offset, length_of(buf));
        check_bounds(request.0, request.1, request.2, self.len)?;
        let state = self.state();
        state.check_power(request)?;
        let mut sectors = self.sectors_of(offset, length_of(buf));
        if sectors.any(|lba| state.unreadable.contains(&lba)) {
            return Err(Fault::Eio.error(request));
        }
        self.copy(&state, offset, buf, cached);
        if !cached {
            for &rotten in state.rotten.range(offset..offset + length_of(buf)) {
                buf[index(rotten - offset)] ^= 1;
            }
        }
        Ok(())
    }
}

impl BlockDevice for FakeDisk {
    fn len(&self) -> u64 {
        self.len
    }

    fn sector_size(&self) -> u32 {
        u32::try_from(self.sector_size).expect("4096 at most")
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DeviceError> {
        self.read(offset, buf, true)
    }

    fn read_medium_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DeviceError> {
        self.read(offset, buf, false)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        let request = ("write", offset, length_of(data));
        check_bounds(request.0, request.1, request.2, self.len)?;
        let mut state = self.state();
        state.check_power(request)?;
        let number = state.writes;
        state.writes += 1;
        match state.failing_writes.remove(&number) {
            None => {
                self.cache(&mut state, offset, data);
                Ok(())
            }
            Some(fault) => {
                let half = data.len() / self.sector_size / 2 * self.sector_size;
                self.cache(&mut state, offset, &data[..half]);
                Err(fault.error(request))
            }
        }
    }

    fn sync(&self) -> Result<(), DeviceError> {
        self.sync_parts(slice::from_ref(&(0..self.len)))
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        let request = ("discard", offset, len);
        check_bounds(request.0, request.1, request.2, self.len)?;
        let mut state = self.state();
        state.check_power(request)?;
        self.cache(&mut state, offset, &std::vec![0; index(len)]);
        Ok(())
    }
}

impl State {
    /// Moves the sectors with these numbers from the caches to the medium.
    fn settle(&mut self, parts: &[Range<u64>], sector_size: usize) {
        let is_synced = |lba: &u64| parts.iter().any(|part| part.contains(lba));
        let (unsynced, left) = std::mem::take(&mut self.unsynced)
            .into_iter()
            .partition::<BTreeMap<_, _>, _>(|(lba, _)| is_synced(lba));
        self.unsynced = left;
        match Arc::get_mut(&mut self.base) {
            Some(base) if self.synced.is_empty() => {
                for (lba, sector) in unsynced {
                    let start = index(lba) * sector_size;
                    base[start..start + sector_size].copy_from_slice(&sector);
                }
            }
            _ => self.synced.extend(unsynced),
        }
    }

    fn check_power(&self, request: (&'static str, u64, u64)) -> Result<(), DeviceError> {
        match self.power_cut_at {
            Some(at) if self.writes >= at => {
                let (operation, offset, length) = request;
                Err(DeviceError::new(
                    operation,
                    offset,
                    length,
                    "the power is off",
                ))
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("unsynced", &self.unsynced.keys())
            .field("writes", &self.writes)
            .field("syncs", &self.syncs)
            .finish_non_exhaustive()
    }
}

impl Fault {
    fn error(self, (operation, offset, length): (&'static str, u64, u64)) -> DeviceError {
        let number = match self {
            Fault::Eio => 5,
            Fault::Enospc => 28,
        };
        let cause = io::Error::from_raw_os_error(number);
        DeviceError::new(operation, offset, length, cause)
    }
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).expect("the disk is in memory")
}

fn length_of_sector(size: usize) -> u64 {
    u64::try_from(size).expect("4096 at most")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn a_write_is_read_at_once_and_on_the_medium_after_a_sync() {
        let disk = FakeDisk::new(512, 2048);
        disk.write_at(512, &[1; 512]).unwrap();
        let (mut cached, mut medium) = ([9; 512], [9; 512]);
        disk.read_at(512, &mut cached).unwrap();
        disk.read_medium_at(512, &mut medium).unwrap();
        assert_eq!((cached, medium), ([1; 512], [0; 512]));
        disk.sync().unwrap();
        disk.read_medium_at(512, &mut medium).unwrap();
        assert_eq!(medium, [1; 512]);
    }

    #[test]
    fn a_power_cut_keeps_what_was_synced_and_any_subset_of_the_rest() {
        let disk = FakeDisk::new(512, 2048);
        disk.write_at(0, &[1; 2048]).unwrap();
        disk.sync().unwrap();
        disk.write_at(0, &[2; 2048]).unwrap();
        let after = disk.after_power_cut(|lba| lba % 2 == 1);
        for (lba, value) in [(0, 1), (1, 2), (2, 1), (3, 2)] {
            assert!(after.holds(lba * 512, &[value; 512]));
        }
    }

    #[test]
    fn a_part_of_a_sector_is_written_without_losing_the_rest() {
        let disk = FakeDisk::new(512, 2048);
        disk.write_at(0, &[1; 2048]).unwrap();
        disk.write_at(500, &[2; 600]).unwrap();
        let mut expected = std::vec![1; 2048];
        expected[500..1100].fill(2);
        assert_eq!(disk.to_bytes(), expected);
        disk.discard(1000, 24).unwrap();
        expected[1000..1024].fill(0);
        assert_eq!(disk.to_bytes(), expected);
    }

    #[test]
    fn holds_agrees_with_reading_at_every_place() {
        let disk = FakeDisk::new(512, 4096);
        disk.start_log(); // shares the base, so that all three layers are in use
        disk.write_at(600, &[1; 700]).unwrap();
        disk.sync().unwrap();
        disk.write_at(1000, &[2; 2000]).unwrap();
        let bytes = disk.to_bytes();
        for start in (0..4096).step_by(97) {
            for end in (start..4096).step_by(131) {
                let offset = length_of(&bytes[..start]);
                let mut expected = bytes[start..end].to_vec();
                assert!(disk.holds(offset, &expected), "{start} {end}");
                if let Some(last) = expected.last_mut() {
                    *last ^= 1;
                    assert!(!disk.holds(offset, &expected), "{start} {end}");
                }
            }
        }
    }

    #[test]
    fn a_faulty_write_fails_once_and_leaves_its_first_half() {
        let disk = FakeDisk::new(512, 2048);
        disk.fail_write(1, Fault::Enospc);
        disk.write_at(0, &[1; 512]).unwrap();
        let error = disk.write_at(0, &[2; 2048]).unwrap_err();
        assert!(error.cause().to_string().contains("No space left"));
        assert!(disk.holds(0, &[2; 1024]));
        assert!(disk.holds(1024, &[0; 1024]));
        disk.write_at(0, &[3; 2048]).unwrap();
    }

    #[test]
    fn a_faulty_sync_syncs_nothing() {
        let disk = FakeDisk::new(512, 512);
        disk.fail_sync(0, Fault::Eio);
        disk.write_at(0, &[1; 512]).unwrap();
        assert!(disk.sync().is_err());
        assert!(disk.after_power_cut(|_| false).holds(0, &[0; 512]));
        disk.sync().unwrap();
        assert!(disk.after_power_cut(|_| false).holds(0, &[1; 512]));
    }

    #[test]
    fn nothing_works_without_power() {
        let disk = FakeDisk::new(512, 512);
        disk.cut_power_after(1);
        disk.write_at(0, &[1; 512]).unwrap();
        let mut buf = [0; 1];
        for refused in [
            disk.write_at(0, &buf),
            disk.read_at(0, &mut buf),
            disk.sync(),
            disk.discard(0, 512),
        ] {
            let cause = refused.unwrap_err().cause().to_string();
            assert_eq!(cause, "the power is off");
        }
    }

    #[test]
    fn unreadable_sectors_heal_when_they_are_written() {
        let disk = FakeDisk::new(512, 2048);
        disk.make_unreadable(700..701);
        let mut buf = [0; 512];
        assert!(disk.read_at(512, &mut buf).is_err());
        disk.read_at(0, &mut buf).unwrap();
        disk.write_at(512, &[1; 512]).unwrap();
        disk.read_at(512, &mut buf).unwrap();
    }

    #[test]
    fn rot_is_seen_on_the_medium_alone() {
        let disk = FakeDisk::new(512, 512);
        disk.rot(7);
        disk.write_at(0, &[2; 512]).unwrap();
        disk.sync().unwrap();
        let mut buf = [0; 8];
        disk.read_at(0, &mut buf).unwrap();
        assert_eq!(buf, [2; 8]);
        disk.read_medium_at(0, &mut buf).unwrap();
        assert_eq!(buf, [2, 2, 2, 2, 2, 2, 2, 3]);
    }
}
