//! Power cuts while the table is written: in every state that the medium can be left in,
//! a reader finds the whole old table or the whole new one, and the next write heals it.

#![allow(clippy::unwrap_used, reason = "a test may fail by panic")]

use std::ops::Range;

use gptprio::testing::{Crash, CrashStates, FakeDisk, Layout, Report, WriteLog};
use gptprio::{
    Attributes, BlockDevice, Change, Gpt, GptError, Partition, USR_TYPE, mark_successful,
    mark_unbootable, prioritize, select, set_active,
};

/// What a disk looks like before it is written.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Start {
    Healthy,
    PrimaryHeaderBroken,
    PrimaryEntriesBroken,
    PrimaryErased,
    BackupHeaderBroken,
    BackupEntriesBroken,
    BackupErased,
    /// Both copies valid, the backup older.
    CopiesDiffer,
}

const STARTS: [Start; 8] = [
    Start::Healthy,
    Start::PrimaryHeaderBroken,
    Start::PrimaryEntriesBroken,
    Start::PrimaryErased,
    Start::BackupHeaderBroken,
    Start::BackupEntriesBroken,
    Start::BackupErased,
    Start::CopiesDiffer,
];

type Decision = fn(&[Partition]) -> Result<Vec<Change>, GptError>;

/// Every command that writes, by its name.
const DECISIONS: [(&str, Decision); 7] = [
    ("set", |slots| {
        let attributes = slots[0].attributes.with_tries(7);
        Ok(vec![Change {
            number: slots[0].number,
            attributes,
        }])
    }),
    ("next", |slots| {
        Ok(select(slots).after_boot().into_iter().collect())
    }),
    ("prioritize", |slots| {
        prioritize(slots, Some(4), Some(15), false)
    }),
    ("mark-successful", |slots| mark_successful(slots, 4)),
    ("mark-unbootable", |slots| {
        mark_unbootable(slots, 4).map(|change| vec![change])
    }),
    ("set active", |slots| set_active(slots, 4, 3)),
    ("repair", |_| Ok(Vec::new())),
];

#[test]
fn every_crash_state_holds_the_whole_old_or_the_whole_new_table() {
    let mut total = Report::default();
    for sector_size in [512, 4096] {
        for start in STARTS {
            for (name, decide) in DECISIONS {
                let disk = disk(sector_size, start);
                let written = Written::by(&disk, |gpt| {
                    gpt.apply(&decide(&gpt.slots(USR_TYPE))?)?;
                    gpt.write(&disk)
                });
                let report = CrashStates::of(&written.log)
                    .exhaustive_up_to(12)
                    .tear(usize::try_from(sector_size).unwrap() / 96)
                    .check(|crash| written.old_or_new(crash));
                assert_eq!(
                    report.first_failure(),
                    None,
                    "{name} on {start:?}, {sector_size}"
                );
                total.add(report);
            }
        }
    }
    total.expect_all_good("set, next, prioritize, mark and repair on 8 kinds of disks");
    assert!(total.states() > 100_000);
}

#[test]
fn a_header_torn_at_any_byte_is_the_old_one_or_none() {
    let mut total = Report::default();
    for start in [Start::Healthy, Start::PrimaryHeaderBroken] {
        let disk = disk(512, start);
        let written = Written::by(&disk, |gpt| {
            gpt.apply(&set_active(&gpt.slots(USR_TYPE), 4, 1)?)?;
            gpt.write(&disk)
        });
        total.add(
            CrashStates::of(&written.log)
                .tear(1)
                .check(|crash| written.old_or_new(crash)),
        );
    }
    total.expect_all_good("torn at every byte");
}

#[test]
fn the_repair_after_a_crash_may_crash_too() {
    let mut total = Report::default();
    for start in STARTS {
        let disk = disk(512, start);
        let first = Written::by(&disk, |gpt| {
            gpt.apply(&set_active(&gpt.slots(USR_TYPE), 4, 1)?)?;
            gpt.write(&disk)
        });
        CrashStates::of(&first.log).tear(128).check(|crash| {
            let disk = crash.disk();
            let second = Written::by(disk, |gpt| gpt.write(disk));
            assert_eq!(second.old, second.new, "a repair changes nothing: {crash}");
            let report = CrashStates::of(&second.log)
                .tear(128)
                .check(|crash| second.old_or_new(crash));
            assert_eq!(report.first_failure(), None, "{start:?}, {crash}");
            total.add(report);
            Ok(())
        });
    }
    total.expect_all_good("crashes in the repair after a crash");
}

/// The primary holds a table that was never confirmed, hidden by one wrong byte; the
/// backup is the truth. Overwriting that byte must not make the primary valid first.
#[test]
fn an_abandoned_table_behind_damage_does_not_come_back_while_it_is_overwritten() {
    let disk = disk(512, Start::Healthy);
    let truth = disk.to_bytes();
    apply(&disk, |slots| set_active(slots, 4, 1));
    let copies = Copies::of(&disk);
    copy(&disk, &truth, copies.backup_entries.clone());
    copy(&disk, &truth, copies.backup_header.clone());
    disk.write_at(copies.primary_entries.start, &[0xff])
        .unwrap();

    let written = Written::by(&disk, |gpt| gpt.write(&disk));
    CrashStates::of(&written.log)
        .tear(128)
        .check(|crash| written.old_or_new(crash))
        .expect_all_good("repair over an abandoned table");
}

#[test]
fn a_table_that_spreads_over_many_sectors_survives_too() {
    let disk = FakeDisk::new(512, 2 << 20);
    let mut layout = Layout::empty();
    for number in 1..=40 {
        layout = layout.partition(number, "USR", USR_TYPE, 4096, Attributes::default());
    }
    layout.write_to(&disk);
    let written = Written::by(&disk, |gpt| {
        for slot in gpt.slots(USR_TYPE) {
            gpt.set_attributes(slot.number, slot.attributes.with_priority(9))?;
        }
        gpt.write(&disk)
    });
    assert_eq!(written.log.epochs()[0].len(), 11);
    CrashStates::of(&written.log)
        .exhaustive_up_to(11)
        .check(|crash| written.old_or_new(crash))
        .expect_all_good("forty slots in ten sectors");
}

#[test]
fn only_the_sectors_that_differ_are_written_entries_first() {
    let disk = disk(512, Start::Healthy);
    let last = disk.len() / 512 - 1;
    let written = Written::by(&disk, |gpt| {
        gpt.apply(&set_active(&gpt.slots(USR_TYPE), 4, 1)?)?;
        gpt.write(&disk)
    });
    assert_eq!(
        written.log.epochs(),
        [vec![last - 32, last], vec![2, 1], vec![]]
    );
}

#[test]
fn the_only_valid_copy_is_written_last_and_a_broken_one_gets_its_header_first() {
    let disk = disk(512, Start::PrimaryErased);
    let last = disk.len() / 512 - 1;
    let written = Written::by(&disk, |gpt| {
        gpt.apply(&set_active(&gpt.slots(USR_TYPE), 4, 1)?)?;
        gpt.write(&disk)
    });
    assert_eq!(
        written.log.epochs(),
        [vec![1], vec![2], vec![last - 32, last], vec![]]
    );
}

/// The order of cgpt: headers, then entries, one sync at the end. Linux with a GPT reader
/// of its own loses the table in 4 of the 16 subsets.
#[test]
fn headers_before_entries_with_one_sync_is_caught() {
    let report = broken_writer(|disk, new| {
        let copies = Copies::of(disk);
        for place in [
            copies.primary_header,
            copies.backup_header,
            copies.primary_entries,
            copies.backup_entries,
        ] {
            copy(disk, new, place);
        }
        disk.sync().unwrap();
    });
    // 2⁴ subsets, and once more everything after the sync.
    assert_eq!((report.states(), report.failed()), (17, 4));
}

#[test]
fn a_missing_sync_between_the_copies_is_caught() {
    let disk = disk(512, Start::Healthy);
    let mut written = Written::by(&disk, |gpt| {
        gpt.apply(&set_active(&gpt.slots(USR_TYPE), 4, 1)?)?;
        gpt.write(&disk)
    });
    written.log = written.log.without_sync(0);
    let report = CrashStates::of(&written.log).check(|crash| written.readable(crash));
    assert_eq!((report.states(), report.failed()), (17, 4));
}

#[test]
fn a_missing_sync_at_the_end_is_caught() {
    let disk = disk(512, Start::Healthy);
    let written = Written::by(&disk, |gpt| {
        gpt.apply(&set_active(&gpt.slots(USR_TYPE), 4, 1)?)?;
        gpt.write(&disk)
    });
    let log = written.log.clone().without_sync(1);
    let promised = CrashStates::of(&log).check(|crash| match crash.syncs() {
        // The writer returned after its last sync, which this disk ignored.
        1 => written.is_new(crash),
        _ => Ok(()),
    });
    assert!(promised.failed() > 0);
}

#[test]
fn backup_first_over_the_only_valid_copy_is_caught() {
    let start = disk(512, Start::PrimaryErased);
    let healed = disk(512, Start::Healthy);
    apply(&healed, |slots| set_active(slots, 4, 1));
    let new = healed.to_bytes();
    start.start_log();
    let copies = Copies::of(&start);
    copy(&start, &new, copies.backup_entries);
    copy(&start, &new, copies.backup_header);
    start.sync().unwrap();
    copy(&start, &new, copies.primary_entries);
    copy(&start, &new, copies.primary_header);
    start.sync().unwrap();
    let log = start.take_log();
    let report = CrashStates::of(&log).check(|crash| readable(crash.disk()).map(|_| ()));
    assert!(report.failed() > 0);
}

/// What an operation did to a disk.
struct Written {
    old: Vec<Partition>,
    new: Vec<Partition>,
    log: WriteLog,
}

impl Written {
    fn by(disk: &FakeDisk, operation: impl FnOnce(&mut Gpt) -> Result<(), GptError>) -> Written {
        let mut gpt = Gpt::read(disk).unwrap();
        let old = gpt.partitions().collect();
        disk.start_log();
        operation(&mut gpt).unwrap();
        let log = disk.take_log();
        let new = gpt.partitions().collect();
        Written { old, new, log }
    }

    fn old_or_new(&self, crash: &Crash) -> Result<(), String> {
        self.readable(crash)?;
        if crash.syncs() == self.log.syncs() {
            self.is_new(crash)?;
        }
        self.heals(crash)
    }

    fn readable(&self, crash: &Crash) -> Result<(), String> {
        let found = readable(crash.disk())?;
        match found == self.old || found == self.new {
            true => Ok(()),
            false => Err(format!("neither old nor new: {found:?}")),
        }
    }

    fn is_new(&self, crash: &Crash) -> Result<(), String> {
        let gpt = Gpt::read(crash.disk()).map_err(|error| error.to_string())?;
        match gpt.health().is_good() && gpt.partitions().eq(self.new.iter().cloned()) {
            true => Ok(()),
            false => Err(format!("not durable: {:?}", gpt.health())),
        }
    }

    /// The next write makes both copies good, whatever it writes.
    fn heals(&self, crash: &Crash) -> Result<(), String> {
        let disk = crash.disk();
        let mut gpt = Gpt::read(disk).map_err(|error| error.to_string())?;
        let found: Vec<_> = gpt.partitions().collect();
        gpt.write(disk).map_err(|error| error.to_string())?;
        let gpt = Gpt::read(disk).map_err(|error| error.to_string())?;
        match gpt.health().is_good() && gpt.partitions().eq(found) {
            true => Ok(()),
            false => Err(format!("not healed: {:?}", gpt.health())),
        }
    }
}

fn readable(disk: &FakeDisk) -> Result<Vec<Partition>, String> {
    Gpt::read(disk)
        .map(|gpt| gpt.partitions().collect())
        .map_err(|error| error.to_string())
}

/// The crash states of a writer that puts the new table onto a healthy disk in its own way.
fn broken_writer(write: impl FnOnce(&FakeDisk, &[u8])) -> Report {
    let healed = disk(512, Start::Healthy);
    apply(&healed, |slots| set_active(slots, 4, 1));
    let new = healed.to_bytes();
    let disk = disk(512, Start::Healthy);
    disk.start_log();
    write(&disk, &new);
    let log = disk.take_log();
    CrashStates::of(&log).check(|crash| readable(crash.disk()).map(|_| ()))
}

/// A disk on which slot B waits for its first boot.
fn disk(sector_size: u32, start: Start) -> FakeDisk {
    let layout = Layout::two_slots();
    let disk = FakeDisk::new(sector_size, layout.disk_len(sector_size));
    layout.write_to(&disk);
    let older = disk.to_bytes();
    apply(&disk, |slots| set_active(slots, 4, 2));

    let copies = Copies::of(&disk);
    let flip = |place: Range<u64>| {
        let mut byte = [0];
        disk.read_at(place.start, &mut byte).unwrap();
        disk.write_at(place.start, &[byte[0] ^ 0xff]).unwrap();
    };
    let erase = |place: Range<u64>| {
        let length = usize::try_from(place.end - place.start).unwrap();
        disk.write_at(place.start, &vec![0; length]).unwrap();
    };
    match start {
        Start::Healthy => {}
        Start::PrimaryHeaderBroken => flip(copies.primary_header),
        Start::PrimaryEntriesBroken => flip(copies.primary_entries),
        Start::PrimaryErased => {
            erase(copies.primary_header);
            erase(copies.primary_entries);
        }
        Start::BackupHeaderBroken => flip(copies.backup_header),
        Start::BackupEntriesBroken => flip(copies.backup_entries),
        Start::BackupErased => {
            erase(copies.backup_header);
            erase(copies.backup_entries);
        }
        Start::CopiesDiffer => {
            copy(&disk, &older, copies.backup_entries);
            copy(&disk, &older, copies.backup_header);
        }
    }
    let health = Gpt::read(&disk).unwrap().health();
    assert_eq!(health.is_good(), start == Start::Healthy, "{start:?}");
    disk
}

fn apply(disk: &FakeDisk, decide: impl FnOnce(&[Partition]) -> Result<Vec<Change>, GptError>) {
    let mut gpt = Gpt::read(disk).unwrap();
    let changes = decide(&gpt.slots(USR_TYPE)).unwrap();
    gpt.apply(&changes).unwrap();
    gpt.write(disk).unwrap();
}

/// Where a table of 128 entries lies, in bytes. Of the entries, the first sector alone:
/// nothing else changes in these tests.
struct Copies {
    primary_header: Range<u64>,
    primary_entries: Range<u64>,
    backup_entries: Range<u64>,
    backup_header: Range<u64>,
}

impl Copies {
    fn of(disk: &FakeDisk) -> Copies {
        let size = u64::from(disk.sector_size());
        let sector = |lba: u64| lba * size..(lba + 1) * size;
        let last = disk.len() / size - 1;
        Copies {
            primary_header: sector(1),
            primary_entries: sector(2),
            backup_entries: sector(last - 128 * 128 / size),
            backup_header: sector(last),
        }
    }
}

/// Writes a part of a disk's future content.
fn copy(disk: &FakeDisk, content: &[u8], place: Range<u64>) {
    let range = usize::try_from(place.start).unwrap()..usize::try_from(place.end).unwrap();
    disk.write_at(place.start, &content[range]).unwrap();
}
