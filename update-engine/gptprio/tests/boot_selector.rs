//! What a boot selector does with every combination of slots, kernels and faults of the
//! disk, and after a power cut at any of its writes.

#![allow(clippy::unwrap_used, reason = "a test may fail by panic")]

use std::cell::Cell;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use gptprio::boot::{CommandLine, Kernel, Machine, Rescue, RootHash, boot};
use gptprio::testing::{CrashStates, FakeDisk, Fault, Layout, Report};
use gptprio::{
    Attributes, BlockDevice, Gpt, LAST_RESORT_DELAY, Letter, Partition, USR_TYPE, set_active,
};

/// What is wrong with the kernel of a slot.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Image {
    Good,
    Missing,
    Short,
    Refused,
    ComesBack,
}

/// One slot before the boot.
#[derive(Clone, Copy, Debug)]
struct Slot {
    priority: u8,
    tries: u8,
    successful: bool,
    image: Image,
}

impl Slot {
    fn attributes(self) -> Attributes {
        Attributes::default()
            .with_priority(self.priority)
            .with_tries(self.tries)
            .with_successful(self.successful)
    }

    fn all(priorities: &[u8], tries: &[u8], images: &[Image]) -> Vec<Slot> {
        let mut all = Vec::new();
        for &priority in priorities {
            for &tries in tries {
                for successful in [false, true] {
                    all.extend(images.iter().map(|&image| Slot {
                        priority,
                        tries,
                        successful,
                        image,
                    }));
                }
            }
        }
        all
    }
}

const IMAGES: [Image; 5] = [
    Image::Good,
    Image::Missing,
    Image::Short,
    Image::Refused,
    Image::ComesBack,
];

const FIRST_NUMBER: u32 = 3;

fn layout(slots: &[Slot]) -> Layout {
    let mut layout = Layout::empty().entries(8, 128).aligned_to(512);
    for ((number, name), slot) in (FIRST_NUMBER..).zip(["USR-A", "USR-B", "USR-C"]).zip(slots) {
        layout = layout.partition(number, name, USR_TYPE, 512, slot.attributes());
    }
    layout
}

fn disk(slots: &[Slot]) -> FakeDisk {
    let layout = layout(slots);
    let disk = FakeDisk::new(512, layout.disk_len(512));
    layout.write_to(&disk);
    disk
}

/// A machine in memory. It looks at the medium when a kernel is looked for and when one
/// starts: it may go down in either.
struct Fake<'a> {
    disk: &'a FakeDisk,
    images: BTreeMap<u32, Image>,
    hashes: BTreeMap<u32, &'static str>,
    staged: Rc<Cell<u32>>,
    staging: u32,
    /// Each search for a kernel: the slot, and all slots on the medium at that moment.
    searches: Vec<(u32, Vec<Partition>)>,
    /// Each start: the slot, and all slots on the medium at that moment.
    starts: Vec<(u32, Vec<Partition>)>,
    command_line: String,
    printed: Vec<String>,
    waits: Vec<Duration>,
}

/// Counts kernels that are staged at one time.
struct Staged {
    number: u32,
    live: Rc<Cell<u32>>,
}

impl Drop for Staged {
    fn drop(&mut self) {
        self.live.set(self.live.get() - 1);
    }
}

impl<'a> Fake<'a> {
    fn new(disk: &'a FakeDisk, slots: &[Slot]) -> Self {
        Fake {
            disk,
            images: (FIRST_NUMBER..)
                .zip(slots.iter().map(|slot| slot.image))
                .collect(),
            hashes: BTreeMap::new(),
            staged: Rc::default(),
            staging: 0,
            searches: Vec::new(),
            starts: Vec::new(),
            command_line: String::new(),
            printed: Vec::new(),
            waits: Vec::new(),
        }
    }

    fn medium(&self) -> Vec<Partition> {
        let medium = self.disk.after_power_cut(|_| false);
        Gpt::read(&medium).unwrap().slots(USR_TYPE)
    }

    fn boot(&mut self) -> Result<u32, Rescue> {
        self.boot_with("quiet")
    }

    fn boot_with(&mut self, command_line: &str) -> Result<u32, Rescue> {
        let command_line = CommandLine::new(command_line).unwrap();
        let result = boot(self, self.disk, USR_TYPE, &command_line);
        assert_eq!(self.staged.get(), 0, "a kernel is left staged");
        result
    }
}

impl Machine for Fake<'_> {
    type Staged = Staged;
    type Started = u32;

    fn find_kernel(&mut self, slot: &Partition, letter: Letter) -> Result<Kernel, String> {
        self.searches.push((slot.number, self.medium()));
        let image = self.images[&slot.number];
        if image == Image::Missing {
            return Err("no such file".to_owned());
        }
        self.staging = slot.number;
        let hash_file = self.hashes.get(&slot.number);
        Ok(Kernel {
            path: format!("/boot/flatcar/vmlinuz-{}", letter.lower()),
            initrd: None,
            head: vec![0; RootHash::HEAD],
            len: if image == Image::Short { 0 } else { 1 << 20 },
            hash_file: hash_file.map(|hash| hash.as_bytes().to_vec()),
        })
    }

    fn stage(&mut self, _: &Kernel, command_line: &str) -> Result<Staged, String> {
        if self.images[&self.staging] == Image::Refused {
            return Err("not signed".to_owned());
        }
        assert_eq!(self.staged.replace(1), 0, "two kernels are staged");
        self.command_line = command_line.to_owned();
        Ok(Staged {
            number: self.staging,
            live: Rc::clone(&self.staged),
        })
    }

    fn start(&mut self, staged: Staged) -> Result<u32, String> {
        self.starts.push((staged.number, self.medium()));
        match self.images[&staged.number] {
            Image::ComesBack => Err("it came back".to_owned()),
            _ => Ok(staged.number),
        }
    }

    fn print(&mut self, line: &str) {
        self.printed.push(line.to_owned());
    }

    fn wait(&mut self, duration: Duration) {
        self.waits.push(duration);
    }
}

/// The rule in other words: the slots in the order in which they are attempted, and how
/// many of them need no last resort.
fn order(slots: &[Slot], tries_count: bool) -> (Vec<(u32, Slot)>, usize) {
    let mut order: Vec<_> = (FIRST_NUMBER..).zip(slots.iter().copied()).collect();
    order.retain(|(_, slot)| slot.priority > 0);
    let may_boot = |slot: &Slot| slot.successful || (tries_count && slot.tries > 0);
    order.sort_by_key(|(number, slot)| (!may_boot(slot), Reverse(slot.priority), *number));
    let eligible = order.iter().filter(|(_, slot)| may_boot(slot)).count();
    (order, eligible)
}

/// A boot on a disk that can be written does exactly what the rule says.
fn check_boot(slots: &[Slot], disk: &FakeDisk) {
    let mut machine = Fake::new(disk, slots);
    let result = machine.boot();
    let (order, eligible) = order(slots, true);
    let good = order.iter().position(|(_, slot)| slot.image == Image::Good);

    // The first good slot in the order runs, and only a rescue stands behind them all.
    assert_eq!(
        result.clone().ok(),
        good.map(|place| order[place].0),
        "{slots:?}"
    );
    let attempted = &order[..good.map_or(order.len(), |place| place + 1)];
    let waits = match attempted.len() > eligible {
        true => vec![LAST_RESORT_DELAY],
        false => vec![],
    };
    assert_eq!(machine.waits, waits, "{slots:?}");

    // Attempted slots have paid one try, on the medium, before their kernel was touched.
    let paid = |number: u32, slot: &Slot| {
        let is_attempted = attempted.iter().any(|(other, _)| *other == number);
        let tries = slot.tries.saturating_sub(u8::from(is_attempted));
        slot.attributes().with_tries(tries)
    };
    for (started, medium) in machine.searches.iter().chain(&machine.starts) {
        let slot = medium.iter().find(|slot| slot.number == *started).unwrap();
        let before = slots[usize::try_from(started - FIRST_NUMBER).unwrap()];
        assert!(before.priority > 0);
        assert_eq!(slot.attributes, paid(*started, &before), "{slots:?}");
    }
    let after = Gpt::read(disk).unwrap();
    assert!(after.health().is_good());
    for (number, slot) in (FIRST_NUMBER..).zip(slots) {
        let after = after.partition(number).unwrap().attributes;
        assert_eq!(after, paid(number, slot), "{slots:?}");
    }

    // A slot that does not start is named on the screen, and in the rescue message.
    for (number, slot) in attempted
        .iter()
        .filter(|(_, slot)| slot.image != Image::Good)
    {
        let name = format!("(partition {number}): ");
        assert!(
            machine.printed.iter().any(|line| line.contains(&name)),
            "{slot:?}: {:?}",
            machine.printed
        );
    }
    if let Err(rescue) = result {
        let message = rescue.to_string();
        for number in (FIRST_NUMBER..).take(slots.len()) {
            let line = format!("\n  partition {number} (USR-");
            assert!(message.contains(&line), "{message}");
        }
        assert!(message.contains("\nwhat to do: "), "{message}");
    }
}

#[test]
fn every_pair_of_slots_boots_by_the_rule() {
    let kinds = Slot::all(&[0, 1, 2], &[0, 1, 3], &IMAGES);
    let mut boots = 0;
    for &a in &kinds {
        for &b in &kinds {
            check_boot(&[a, b], &disk(&[a, b]));
            boots += 1;
        }
    }
    println!("{boots} boots of two slots");
    assert_eq!(boots, 8100);
}

#[test]
fn every_three_slots_boot_by_the_rule() {
    let kinds = Slot::all(&[0, 1, 2], &[0, 1], &[Image::Good, Image::ComesBack]);
    let mut boots = 0;
    for &a in &kinds {
        for &b in &kinds {
            for &c in &kinds {
                check_boot(&[a, b, c], &disk(&[a, b, c]));
                boots += 1;
            }
        }
    }
    println!("{boots} boots of three slots");
    assert_eq!(boots, 13_824);
}

#[test]
fn a_damaged_copy_is_repaired_before_the_boot() {
    let kinds = Slot::all(&[0, 1, 2], &[0, 1], &[Image::Good, Image::Refused]);
    for &a in &kinds {
        for &b in &kinds {
            let len = layout(&[a, b]).disk_len(512);
            // Headers and entries of the primary and of the backup copy.
            for place in [512, 1024, len - 1536, len - 512] {
                let disk = disk(&[a, b]);
                disk.write_at(place, &[0xff; 512]).unwrap();
                disk.sync().unwrap();
                check_boot(&[a, b], &disk);
            }
        }
    }
}

#[test]
fn copies_that_differ_are_made_equal_and_the_primary_counts() {
    let slots = pair();
    let disk = disk(&slots);
    let before = disk.to_bytes();
    let mut gpt = Gpt::read(&disk).unwrap();
    gpt.apply(&set_active(&gpt.slots(USR_TYPE), 3, 3).unwrap())
        .unwrap();
    gpt.write(&disk).unwrap();
    // The primary as it was.
    disk.write_at(0, &before[..2048 + 512]).unwrap();
    disk.sync().unwrap();
    check_boot(&slots, &disk);
}

/// The usual pair after an update: B is to prove itself, A is the way back.
fn pair() -> [Slot; 2] {
    [
        Slot {
            priority: 1,
            tries: 0,
            successful: true,
            image: Image::Good,
        },
        Slot {
            priority: 2,
            tries: 1,
            successful: false,
            image: Image::Good,
        },
    ]
}

#[test]
fn without_a_table_there_is_a_rescue_and_no_write() {
    let slots = pair();
    let disk = disk(&slots);
    disk.write_at(512, &[0; 512]).unwrap();
    disk.write_at(disk.len() - 512, &[0; 512]).unwrap();
    let (before, writes) = (disk.to_bytes(), disk.writes());
    let mut machine = Fake::new(&disk, &slots);
    let message = machine.boot().unwrap_err().to_string();
    assert!(message.contains("no valid partition table"), "{message}");
    assert!(message.contains("what to do: "), "{message}");
    assert_eq!((disk.to_bytes(), disk.writes()), (before, writes));
}

#[test]
fn a_disk_without_slots_and_slots_that_contradict_each_other_end_in_a_rescue() {
    let empty = disk(&[]);
    let message = Fake::new(&empty, &[]).boot().unwrap_err().to_string();
    assert!(message.contains("there is no slot"), "{message}");

    let layout = layout(&pair()).partition(8, "ROOT-A", USR_TYPE, 512, Attributes::default());
    let twice = FakeDisk::new(512, layout.disk_len(512));
    layout.write_to(&twice);
    let message = Fake::new(&twice, &pair()).boot().unwrap_err().to_string();
    assert!(message.contains("are both slot A"), "{message}");
}

/// Whatever write or sync fails, once or for good: a good slot runs if there is one, none
/// pays twice, and an unproven one does not start for nothing before the others had
/// their turn and the delay is over.
#[test]
fn a_disk_that_cannot_be_written_boots_proven_slots_first() {
    let kinds = Slot::all(&[0, 1, 2], &[0, 2], &[Image::Good, Image::ComesBack]);
    let mut boots = 0;
    for &a in &kinds {
        for &b in &kinds {
            for fault in DiskFault::all() {
                check_boot_with(&[a, b], fault);
                boots += 1;
            }
        }
    }
    println!("{boots} boots with faults of the disk");
}

#[derive(Clone, Copy, Debug)]
struct DiskFault {
    /// The primary copy is broken before the boot.
    broken: bool,
    sync: bool,
    skip: u64,
    for_good: bool,
}

impl DiskFault {
    fn all() -> impl Iterator<Item = DiskFault> {
        (0..40).map(|index| DiskFault {
            broken: index & 1 != 0,
            sync: index & 2 != 0,
            for_good: index & 4 != 0,
            skip: index >> 3,
        })
    }

    fn apply(self, disk: &FakeDisk) {
        if self.broken {
            disk.write_at(512, &[0; 512]).unwrap();
            disk.sync().unwrap();
        }
        let end = if self.for_good { 100 } else { self.skip + 1 };
        for number in self.skip..end {
            match self.sync {
                true => disk.fail_sync(number, Fault::Eio),
                false => disk.fail_write(number, Fault::Eio),
            }
        }
    }
}

fn check_boot_with(slots: &[Slot], fault: DiskFault) {
    let disk = disk(slots);
    fault.apply(&disk);
    let mut machine = Fake::new(&disk, slots);
    let result = machine.boot();
    let hint = format!("{slots:?}, {fault:?}: {:?}", machine.printed);

    let is_good = |slot: &Slot| slot.priority > 0 && slot.image == Image::Good;
    assert_eq!(result.is_ok(), slots.iter().any(is_good), "{hint}");
    assert!(machine.waits.len() <= 1, "{hint}");

    let mut started: Vec<_> = machine.starts.iter().map(|(number, _)| number).collect();
    started.dedup();
    assert_eq!(started.len(), machine.starts.len(), "twice, {hint}");
    for (number, medium) in &machine.starts {
        let before = slots[usize::try_from(number - FIRST_NUMBER).unwrap()];
        let on_medium = medium.iter().find(|slot| slot.number == *number).unwrap();
        assert!(before.priority > 0, "{hint}");
        let unpaid = before.tries > 0 && on_medium.attributes.tries() == before.tries;
        assert!(
            !unpaid || before.successful || !machine.waits.is_empty(),
            "an unproven slot for nothing, {hint}"
        );
    }
    let after = Gpt::read(&disk).unwrap();
    for (number, slot) in (FIRST_NUMBER..).zip(slots) {
        let after = after.partition(number).unwrap().attributes;
        let paid = slot.tries.checked_sub(after.tries()).unwrap();
        assert!(paid <= 1, "{hint}");
        assert_eq!(after.with_tries(slot.tries), slot.attributes(), "{hint}");
    }
    let proven = |slot: &Slot| is_good(slot) && slot.successful;
    if fault.for_good && fault.skip == 0 && slots.iter().any(proven) {
        // No try can be spent at all, and none is needed.
        let started = slots[usize::try_from(result.unwrap() - FIRST_NUMBER).unwrap()];
        assert!(started.successful && machine.waits.is_empty(), "{hint}");
    }
}

#[test]
fn a_write_that_fails_is_told_and_the_proven_slot_starts() {
    let slots = pair();
    let disk = disk(&slots);
    for number in 0..100 {
        disk.fail_write(number, Fault::Eio);
    }
    let mut machine = Fake::new(&disk, &slots);
    assert_eq!(machine.boot(), Ok(3));
    assert_eq!(
        machine.printed,
        [
            "cannot spend a try of slot B: cannot write the backup copy of the partition \
             table: cannot write 512 bytes at offset 3072: Input/output error (os error 5); tries do not \
             count in this boot",
            "starting slot A (partition 3, priority 1, tries 0, successful): \
             /boot/flatcar/vmlinuz-a",
        ]
    );
    assert_eq!(machine.waits, []);
}

#[test]
fn the_screen_says_which_slot_starts_and_why_others_did_not() {
    let mut slots = pair();
    let first = disk(&slots);
    let mut machine = Fake::new(&first, &slots);
    assert_eq!(machine.boot(), Ok(4));
    assert_eq!(
        machine.printed,
        ["starting slot B (partition 4, priority 2, tries 1 -> 0): /boot/flatcar/vmlinuz-b"]
    );
    assert_eq!(
        machine.command_line,
        "quiet usr=PARTUUID=e03dd35c-7c2d-4a47-b3fe-27f15780a57c"
    );

    slots[1].image = Image::Missing;
    slots[0].image = Image::Refused;
    let second = disk(&slots);
    let mut machine = Fake::new(&second, &slots);
    let rescue = machine.boot().unwrap_err();
    assert_eq!(
        machine.printed,
        [
            "cannot start slot B (partition 4): no such file",
            "cannot start slot A (partition 3): not signed",
        ]
    );
    let message = rescue.to_string();
    let (found, advice) = message.split_once("what to do: ").unwrap();
    assert_eq!(
        found,
        "cannot boot: no slot could be started\n  \
         partition 3 (USR-A, priority 1, tries 0, successful 1): not signed\n  \
         partition 4 (USR-B, priority 2, tries 0, successful 0): no such file\n"
    );
    assert!(advice.contains("gptprio set DISK NUMBER"), "{advice}");
}

#[test]
fn a_slot_that_cannot_be_verified_gives_way_to_one_that_can() {
    const HASH: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\n";
    let slots = pair();
    for (hash_of_b, expected) in [(Some(HASH), 4), (None, 3), (Some("cut short"), 3)] {
        let disk = disk(&slots);
        let mut machine = Fake::new(&disk, &slots);
        machine.hashes.insert(3, HASH);
        machine.hashes.extend(hash_of_b.map(|hash| (4, hash)));
        let started = machine.boot_with("verity.usr={usr} verity.usrhash={usrhash}");
        assert_eq!(started, Ok(expected), "{:?}", machine.printed);
        let end = format!("verity.usrhash={}", HASH.trim());
        assert!(machine.command_line.ends_with(&end));
    }
}

/// The power may fail at any write, in any state of both caches. The next boot then
/// starts what it should, and no slot has paid more than once for the first.
#[test]
fn a_power_cut_at_any_write_leaves_a_bootable_disk() {
    let kinds = Slot::all(&[1, 2], &[0, 1], &[Image::Good, Image::Refused]);
    let mut total = Report::default();
    for &a in &kinds {
        for &b in &kinds {
            let slots = [a, b];
            for broken in [
                None,
                Some(512),
                Some(1024),
                Some(layout(&slots).disk_len(512) - 512),
            ] {
                let disk = disk(&slots);
                if let Some(place) = broken {
                    disk.write_at(place, &[0xff; 512]).unwrap();
                }
                disk.start_log();
                let _ = Fake::new(&disk, &slots).boot();
                let log = disk.take_log();
                total.add(CrashStates::of(&log).check(|crash| {
                    let mut after = slots;
                    let gpt = Gpt::read(crash.disk()).map_err(|error| error.to_string())?;
                    for (number, slot) in (FIRST_NUMBER..).zip(&mut after) {
                        let now = gpt.partition(number).unwrap().attributes;
                        let paid = slot.tries.checked_sub(now.tries());
                        if paid.is_none_or(|paid| paid > 1) {
                            return Err(format!("slot {number} paid {paid:?} tries"));
                        }
                        slot.tries = now.tries();
                        if slot.attributes() != now {
                            return Err(format!("slot {number} is {now}"));
                        }
                    }
                    check_boot(&after, crash.disk());
                    Ok(())
                }));
            }
        }
    }
    total.expect_all_good("power cuts in the boot selector");
}
