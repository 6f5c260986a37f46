//! Every state in which a power cut can leave a disk.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::string::String;
use std::sync::Arc;
use std::vec::Vec;

use super::FakeDisk;

/// The content of one sector.
pub(super) type Sector = Arc<[u8]>;

/// What a [`FakeDisk`] was asked to do, sector by sector.
#[derive(Clone)]
pub struct WriteLog {
    sector_size: u32,
    start: Arc<Vec<u8>>,
    events: Vec<Event>,
}

#[derive(Clone)]
pub(super) enum Event {
    Write(u64, Sector),
    /// Of the sectors with these numbers.
    Sync(Arc<[Range<u64>]>),
}

impl WriteLog {
    pub(super) fn new(sector_size: u32, start: Arc<Vec<u8>>) -> WriteLog {
        WriteLog {
            sector_size,
            start,
            events: Vec::new(),
        }
    }

    pub(super) fn push(&mut self, event: Event) {
        self.events.push(event);
    }

    /// Numbers of the written sectors, one list per epoch: the time up to a sync, and
    /// the time after the last one.
    pub fn epochs(&self) -> Vec<Vec<u64>> {
        self.events
            .split(|event| matches!(event, Event::Sync(_)))
            .map(|epoch| epoch.iter().filter_map(Event::lba).collect())
            .collect()
    }

    /// How many syncs there were.
    pub fn syncs(&self) -> usize {
        self.epochs().len() - 1
    }

    /// The same log on a disk that ignored one sync, counted from 0: what a program
    /// without that sync would leave.
    pub fn without_sync(mut self, number: usize) -> WriteLog {
        let place = self
            .events
            .iter()
            .enumerate()
            .filter(|(_, event)| matches!(event, Event::Sync(_)))
            .nth(number)
            .map(|(place, _)| place)
            .expect("the log has so many syncs");
        self.events.remove(place);
        self
    }
}

impl Event {
    fn lba(&self) -> Option<u64> {
        match self {
            Event::Write(lba, _) => Some(*lba),
            Event::Sync(_) => None,
        }
    }
}

impl fmt::Debug for WriteLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteLog")
            .field("epochs", &self.epochs())
            .finish_non_exhaustive()
    }
}

/// Plays the power cuts that could have interrupted a [`WriteLog`].
///
/// What was synced before the cut is on the medium. Of the sectors written since, any
/// subset may be, whatever the order of the requests. An epoch with few writes is played
/// exhaustively; a longer one by all prefixes, each write lost alone, each write kept
/// alone, and random subsets of random prefixes. With [`CrashStates::tear`], one of the
/// sectors may also be half old and half new.
#[derive(Clone, Debug)]
pub struct CrashStates<'a> {
    log: &'a WriteLog,
    exhaustive: usize,
    random: usize,
    seed: u64,
    tear: Option<usize>,
}

/// One state of the medium after a power cut.
#[derive(Debug)]
pub struct Crash {
    disk: FakeDisk,
    syncs: usize,
    how: How,
    torn: Option<Torn>,
}

#[derive(Clone, Debug)]
enum How {
    Subset(Vec<usize>),
    Prefix(usize),
    Lost(usize),
}

/// One sector that is part old, part new.
#[derive(Clone, Copy, Debug)]
struct Torn {
    write: usize,
    at: usize,
    new_part: Part,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Part {
    First,
    Last,
}

/// How many states were checked and which were bad.
#[derive(Clone, Debug, Default)]
pub struct Report {
    states: u64,
    failed: u64,
    first: Option<String>,
}

impl<'a> CrashStates<'a> {
    /// Epochs of up to 10 sector writes exhaustively, 200 random states for each longer
    /// one, no torn sectors.
    pub fn of(log: &'a WriteLog) -> CrashStates<'a> {
        CrashStates {
            log,
            exhaustive: 10,
            random: 200,
            seed: 1,
            tear: None,
        }
    }

    /// Plays all 2ⁿ subsets of epochs with up to `writes` sector writes (at most 24).
    #[must_use]
    pub fn exhaustive_up_to(self, writes: usize) -> Self {
        let exhaustive = writes.min(24);
        CrashStates { exhaustive, ..self }
    }

    /// How many random states to play for each epoch that is too long to be exhaustive.
    #[must_use]
    pub fn random(self, states: usize) -> Self {
        CrashStates {
            random: states,
            ..self
        }
    }

    /// Other random states.
    #[must_use]
    pub fn seed(self, seed: u64) -> Self {
        CrashStates { seed, ..self }
    }

    /// Also plays states in which one of the surviving sectors is torn after each
    /// multiple of `every` bytes, new before the tear and old behind it or the other way
    /// round. 512 is what disks with larger sectors do; 1 tears everywhere.
    #[must_use]
    pub fn tear(self, every: usize) -> Self {
        assert!(every > 0, "a tear needs a place");
        CrashStates {
            tear: Some(every),
            ..self
        }
    }

    /// Shows every state to `checker`, which says what is wrong with it.
    ///
    /// The disk in a state may be written to (to play the repair after the crash)
    /// without any effect on other states.
    pub fn check(&self, mut checker: impl FnMut(&Crash) -> Result<(), String>) -> Report {
        let mut report = Report::default();
        let mut visit = |crash: Crash| {
            let verdict = checker(&crash);
            report.count(&crash, verdict);
        };
        let mut random = Random(self.seed);
        let mut epoch = Epoch {
            sector_size: self.log.sector_size,
            base: Arc::clone(&self.log.start),
            writes: Vec::new(),
            syncs: 0,
        };
        for event in &self.log.events {
            match event {
                Event::Write(lba, sector) => epoch.writes.push((*lba, sector)),
                Event::Sync(ranges) => {
                    self.play(&epoch, &mut random, &mut visit);
                    epoch.sync(ranges);
                }
            }
        }
        self.play(&epoch, &mut random, &mut visit);
        report
    }

    fn play(&self, epoch: &Epoch<'_>, random: &mut Random, visit: &mut impl FnMut(Crash)) {
        if epoch.writes.len() <= self.exhaustive {
            self.every_subset(epoch, visit);
        } else {
            self.samples(epoch, random, visit);
        }
    }

    fn every_subset(&self, epoch: &Epoch<'_>, visit: &mut impl FnMut(Crash)) {
        for mask in 0..1_u32 << epoch.writes.len() {
            let kept: Vec<usize> = (0..epoch.writes.len())
                .filter(|write| mask & (1 << write) != 0)
                .collect();
            visit(epoch.subset(&kept, None));
            for torn in kept.iter().flat_map(|&write| self.tears(write)) {
                visit(epoch.subset(&kept, Some(torn)));
            }
        }
    }

    fn samples(&self, epoch: &Epoch<'_>, random: &mut Random, visit: &mut impl FnMut(Crash)) {
        epoch.prefixes(visit);
        epoch.all_but_one(visit);
        for write in 0..epoch.writes.len() {
            visit(epoch.subset(&[write], None));
            for torn in self.tears(write) {
                visit(epoch.subset(&[write], Some(torn)));
            }
        }
        for _ in 0..self.random {
            let prefix = random.below(epoch.writes.len() + 1);
            let eighths = 1 + random.below(7);
            let kept: Vec<usize> = (0..prefix).filter(|_| random.below(8) < eighths).collect();
            visit(epoch.subset(&kept, None));
        }
    }

    fn tears(&self, write: usize) -> impl Iterator<Item = Torn> + use<> {
        let size = usize::try_from(self.log.sector_size).expect("4096 at most");
        let every = self.tear.unwrap_or(size);
        (every..size).step_by(every).flat_map(move |at| {
            [Part::First, Part::Last].map(|new_part| Torn {
                write,
                at,
                new_part,
            })
        })
    }
}

/// The time between two syncs.
struct Epoch<'a> {
    sector_size: u32,
    /// What was synced.
    base: Arc<Vec<u8>>,
    /// What was not, from this epoch and from earlier ones.
    writes: Vec<(u64, &'a Sector)>,
    syncs: usize,
}

impl Epoch<'_> {
    /// The next epoch.
    fn sync(&mut self, ranges: &[Range<u64>]) {
        let is_synced = |lba: u64| ranges.iter().any(|range| range.contains(&lba));
        let synced = self.writes.extract_if(.., |(lba, _)| is_synced(*lba));
        let medium = Arc::make_mut(&mut self.base);
        for (lba, sector) in synced {
            medium[byte_range(lba, self.sector_size)].copy_from_slice(sector);
        }
        self.syncs += 1;
    }

    /// These writes survive, in their order.
    fn subset(&self, kept: &[usize], torn: Option<Torn>) -> Crash {
        let mut sectors: BTreeMap<u64, Sector> = BTreeMap::new();
        for &write in kept {
            let (lba, new) = self.writes[write];
            let sector = match torn.filter(|torn| torn.write == write) {
                None => Arc::clone(new),
                Some(torn) => {
                    let old = match sectors.get(&lba) {
                        Some(sector) => sector,
                        None => &self.base[byte_range(lba, self.sector_size)],
                    };
                    torn.mix(old, new)
                }
            };
            sectors.insert(lba, sector);
        }
        self.crash(
            Arc::clone(&self.base),
            sectors,
            How::Subset(kept.to_vec()),
            torn,
        )
    }

    /// The first writes survive, for every number of them.
    fn prefixes(&self, visit: &mut impl FnMut(Crash)) {
        let mut medium = Arc::new(self.base.to_vec());
        visit(self.crash(Arc::clone(&medium), BTreeMap::new(), How::Prefix(0), None));
        for (write, (lba, sector)) in self.writes.iter().enumerate() {
            Arc::make_mut(&mut medium)[byte_range(*lba, self.sector_size)].copy_from_slice(sector);
            let how = How::Prefix(write + 1);
            visit(self.crash(Arc::clone(&medium), BTreeMap::new(), how, None));
        }
    }

    /// All writes survive but one, unless a later one covers it anyway.
    fn all_but_one(&self, visit: &mut impl FnMut(Crash)) {
        let end = self.end();
        let mut latest: BTreeMap<u64, (usize, Sector)> = BTreeMap::new();
        let mut lost = Vec::new();
        for (write, &(lba, sector)) in self.writes.iter().enumerate() {
            let older = match latest.insert(lba, (write, Arc::clone(sector))) {
                Some((_, older)) => older,
                None => self.base[byte_range(lba, self.sector_size)].into(),
            };
            lost.push((write, lba, older));
        }
        for (write, lba, older) in lost {
            if latest[&lba].0 == write {
                let sectors = BTreeMap::from([(lba, older)]);
                visit(self.crash(Arc::clone(&end), sectors, How::Lost(write), None));
            }
        }
    }

    /// The medium when all writes have survived.
    fn end(&self) -> Arc<Vec<u8>> {
        let mut medium = self.base.to_vec();
        for &(lba, sector) in &self.writes {
            medium[byte_range(lba, self.sector_size)].copy_from_slice(sector);
        }
        Arc::new(medium)
    }

    fn crash(
        &self,
        base: Arc<Vec<u8>>,
        sectors: BTreeMap<u64, Sector>,
        how: How,
        torn: Option<Torn>,
    ) -> Crash {
        Crash {
            disk: FakeDisk::over(self.sector_size, base, sectors),
            syncs: self.syncs,
            how,
            torn,
        }
    }
}

impl Torn {
    fn mix(self, old: &[u8], new: &[u8]) -> Sector {
        let (first, last) = match self.new_part {
            Part::First => (new, old),
            Part::Last => (old, new),
        };
        [&first[..self.at], &last[self.at..]].concat().into()
    }
}

impl Crash {
    /// The disk at the next power-on.
    pub fn disk(&self) -> &FakeDisk {
        &self.disk
    }

    /// How many syncs had returned before the power was cut. What was promised after a
    /// sync must hold in every state that has it.
    pub fn syncs(&self) -> usize {
        self.syncs
    }
}

/// `after sync 1, writes [0, 2] survived, write 2 torn after 512 bytes`
impl fmt::Display for Crash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "after {} syncs, ", self.syncs)?;
        match &self.how {
            How::Subset(kept) => write!(f, "writes {kept:?} survived")?,
            How::Prefix(count) => write!(f, "the first {count} writes survived")?,
            How::Lost(write) => write!(f, "write {write} alone was lost")?,
        }
        match self.torn {
            None => Ok(()),
            Some(Torn {
                write,
                at,
                new_part,
            }) => {
                let part = match new_part {
                    Part::First => "before",
                    Part::Last => "behind",
                };
                write!(f, ", of write {write} only what lies {part} byte {at}")
            }
        }
    }
}

impl Report {
    /// How many states were shown to the checker.
    pub fn states(&self) -> u64 {
        self.states
    }

    /// How many of them were bad.
    pub fn failed(&self) -> u64 {
        self.failed
    }

    /// The first bad state and what is wrong with it.
    pub fn first_failure(&self) -> Option<&str> {
        self.first.as_deref()
    }

    /// Adds up the reports of several logs.
    pub fn add(&mut self, other: Report) {
        self.states += other.states;
        self.failed += other.failed;
        self.first = self.first.take().or(other.first);
    }

    /// Prints the count and panics if any state was bad.
    pub fn expect_all_good(&self, what: &str) {
        if let Some(first) = &self.first {
            panic!(
                "{what}: {} of {} crash states are bad, first {first}",
                self.failed, self.states
            );
        }
        std::println!("{what}: {} crash states, all good", self.states);
    }

    fn count(&mut self, crash: &Crash, verdict: Result<(), String>) {
        self.states += 1;
        if let Err(problem) = verdict {
            self.failed += 1;
            self.first
                .get_or_insert_with(|| std::format!("{crash}: {problem}"));
        }
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): the same states for the same seed everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// 0 to `bound` − 1.
    fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound).expect("fits");
        usize::try_from(self.next() % bound).expect("less than a usize")
    }
}

fn byte_range(lba: u64, sector_size: u32) -> Range<usize> {
    let size = usize::try_from(sector_size).expect("4096 at most");
    let start = usize::try_from(lba).expect("the disk is in memory") * size;
    start..start + size
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BlockDevice;
    use std::collections::BTreeSet;

    /// The first byte of each sector tells which write it holds.
    fn log(writes: &[u64], sync_after: usize) -> WriteLog {
        let disk = FakeDisk::new(512, 16 * 512);
        disk.start_log();
        for (number, &lba) in (1..).zip(writes) {
            disk.write_at(lba * 512, &[number; 512]).unwrap();
            if usize::from(number) == sync_after {
                disk.sync().unwrap();
            }
        }
        disk.take_log()
    }

    fn states(states: &CrashStates<'_>) -> Vec<Vec<u8>> {
        let mut seen = Vec::new();
        let report = states.check(|crash| {
            let bytes = crash.disk().to_bytes();
            seen.push(bytes.into_iter().step_by(512).collect());
            Ok(())
        });
        assert_eq!(report.states(), u64::try_from(seen.len()).unwrap());
        seen
    }

    #[test]
    fn a_short_epoch_is_played_in_all_subsets() {
        let log = log(&[0, 1, 2], 0);
        let seen: BTreeSet<_> = states(&CrashStates::of(&log)).into_iter().collect();
        let mut expected = BTreeSet::new();
        for (a, b, c) in (0..8).map(|mask: u8| (mask & 1, mask >> 1 & 1, mask >> 2)) {
            let mut sectors = std::vec![0; 16];
            sectors[..3].copy_from_slice(&[a, b * 2, c * 3]);
            expected.insert(sectors);
        }
        assert_eq!(seen, expected);
    }

    #[test]
    fn what_was_synced_is_in_every_later_state() {
        let log = log(&[0, 1, 2], 2);
        CrashStates::of(&log)
            .check(|crash| match crash.syncs() {
                0 => Ok(()),
                _ if crash.disk().holds(0, &[1; 512]) && crash.disk().holds(512, &[2; 512]) => {
                    Ok(())
                }
                _ => Err(String::from("lost")),
            })
            .expect_all_good("durability");
        assert_eq!(log.epochs(), [std::vec![0, 1], std::vec![2]]);
        assert_eq!(log.without_sync(0).epochs(), [[0, 1, 2]]);
    }

    #[test]
    fn a_sync_of_one_part_leaves_the_others_in_caches() {
        let disk = FakeDisk::new(512, 16 * 512);
        disk.start_log();
        disk.write_at(0, &[1; 1024]).unwrap();
        disk.sync_parts(std::slice::from_ref(&(512..1024))).unwrap();
        disk.write_at(1024, &[1; 512]).unwrap();
        let seen: Vec<_> = states(&CrashStates::of(&disk.take_log()))
            .into_iter()
            .map(|sectors| [sectors[0], sectors[1], sectors[2]])
            .collect();
        // Two unsynced sectors before and after the sync, not the same.
        let expected = [
            [0, 0, 0],
            [1, 0, 0],
            [0, 1, 0],
            [1, 1, 0],
            [0, 1, 0],
            [1, 1, 0],
            [0, 1, 1],
            [1, 1, 1],
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_sector_that_is_written_twice_may_hold_any_version() {
        let log = log(&[0, 0], 0);
        let seen: BTreeSet<u8> = states(&CrashStates::of(&log))
            .into_iter()
            .map(|sectors| sectors[0])
            .collect();
        assert_eq!(seen, BTreeSet::from([0, 1, 2]));
    }

    #[test]
    fn a_long_epoch_is_played_in_prefixes_single_losses_and_single_survivors() {
        let writes = [0, 1, 2, 3, 1];
        let log = log(&writes, 0);
        let long = CrashStates::of(&log).exhaustive_up_to(4).random(0);
        let seen = states(&long);
        // 6 prefixes, 4 losses (the first write to sector 1 is covered), 5 survivors.
        assert_eq!(seen.len(), 15);
        for expected in [
            [0, 0, 0, 0],
            [1, 2, 3, 0],
            [1, 5, 3, 4],
            [0, 5, 3, 4],
            [1, 2, 3, 4],
            [1, 5, 3, 0],
            [0, 0, 3, 0],
            [0, 5, 0, 0],
        ] {
            assert!(
                seen.iter().any(|state| state[..4] == expected),
                "{expected:?}"
            );
        }
    }

    #[test]
    fn random_states_depend_on_the_seed_alone() {
        let log = log(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], 0);
        let sampled = CrashStates::of(&log).random(50);
        assert_eq!(states(&sampled), states(&sampled));
        assert_ne!(states(&sampled), states(&sampled.clone().seed(2)));
    }

    #[test]
    fn a_torn_sector_is_new_on_either_side_of_the_tear() {
        let log = log(&[3], 0);
        let mut torn = BTreeSet::new();
        let report = CrashStates::of(&log).tear(128).check(|crash| {
            let sector = crash.disk().to_bytes()[3 * 512..4 * 512].to_vec();
            let parts: Vec<u8> = sector.into_iter().step_by(128).collect();
            torn.insert(parts);
            Ok(())
        });
        assert_eq!(report.states(), 8);
        let expected = [
            [0, 0, 0, 0],
            [1, 1, 1, 1],
            [1, 0, 0, 0],
            [0, 1, 1, 1],
            [1, 1, 0, 0],
            [0, 0, 1, 1],
            [1, 1, 1, 0],
            [0, 0, 0, 1],
        ];
        assert_eq!(torn, expected.map(Vec::from).into());
    }

    #[test]
    fn a_checker_may_write_to_a_state_without_touching_the_others() {
        let log = log(&[0, 1], 1);
        CrashStates::of(&log)
            .check(|crash| {
                if !crash.disk().holds(15 * 512, &[0; 512]) {
                    return Err(String::from("somebody was here"));
                }
                crash.disk().write_at(15 * 512, &[1; 512]).unwrap();
                crash.disk().sync().unwrap();
                Ok(())
            })
            .expect_all_good("isolation");
    }

    #[test]
    fn bad_states_are_counted_and_the_first_is_told() {
        let log = log(&[0, 1], 0);
        let report =
            CrashStates::of(&log).check(|crash| match crash.disk().holds(512, &[2; 512]) {
                true => Err(String::from("second sector is new")),
                false => Ok(()),
            });
        assert_eq!((report.states(), report.failed()), (4, 2));
        assert_eq!(
            report.first_failure(),
            Some("after 0 syncs, writes [1] survived: second sector is new")
        );
    }
}
