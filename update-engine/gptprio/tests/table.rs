//! The codec: what is believed, what is refused, and which bytes change.

#![allow(clippy::unwrap_used, reason = "a test may fail by panic")]

use std::time::{Duration, Instant};

use gptprio::testing::{FakeDisk, Fault, Layout};
use gptprio::{
    Attributes, BlockDevice, CopyHealth, Gpt, GptError, Guid, TableCopy, USR_TYPE, set_active,
};
use proptest::prelude::*;

const OTHER_TYPE: Guid = Guid::from_fields(1, 2, 3, [4; 8]);

#[test]
fn gaps_in_the_numbering_stay() {
    let disk = two_slots(512);
    let numbers = |disk: &FakeDisk| -> Vec<u32> {
        let gpt = Gpt::read(disk).unwrap();
        gpt.partitions().map(|partition| partition.number).collect()
    };
    assert_eq!(numbers(&disk), [1, 3, 4, 9]);
    activate_b(&disk);
    assert_eq!(numbers(&disk), [1, 3, 4, 9]);
}

#[test]
fn unknown_attribute_bits_stay() {
    let all = Attributes::from_raw(u64::MAX);
    let layout = Layout::empty()
        .partition(1, "A", USR_TYPE, 4096, all)
        .partition(2, "B", USR_TYPE, 4096, all);
    let disk = FakeDisk::new(512, 1 << 20);
    layout.write_to(&disk);
    let mut gpt = Gpt::read(&disk).unwrap();
    let changes = set_active(&gpt.slots(USR_TYPE), 2, 1).unwrap();
    gpt.apply(&changes).unwrap();
    gpt.write(&disk).unwrap();
    let raw: Vec<u64> = Gpt::read(&disk)
        .unwrap()
        .partitions()
        .map(|partition| partition.attributes.raw())
        .collect();
    assert_eq!(raw, [0xfff1_ffff_ffff_ffff, 0xfe12_ffff_ffff_ffff]);
}

#[test]
fn header_size_reserved_bytes_and_chromium_signature_stay() {
    for sector_size in [512, 4096] {
        let disk = two_slots(sector_size);
        for lba in [1, last_lba(&disk)] {
            let size = usize::try_from(sector_size).unwrap();
            edit_header(&disk, lba, |header| {
                header[..8].copy_from_slice(b"CHROMEOS");
                header[12..16].copy_from_slice(&sector_size.to_le_bytes());
                header[92] = 0xa5;
                header[size - 1] = u8::try_from(lba % 251).unwrap();
            });
        }
        let before = disk.to_bytes();
        activate_b(&disk);
        assert!(Gpt::read(&disk).unwrap().health().is_good());
        let changed = changed_bytes(&before, &disk.to_bytes());
        let allowed = expected_changes(&disk, &[3, 4], 128);
        assert!(changed.iter().all(|place| allowed.contains(place)));
    }
}

#[test]
fn entry_counts_and_sizes_other_than_128_work() {
    for (count, size) in [(4, 128), (9, 256), (131, 128), (8192, 128), (256, 4096)] {
        for sector_size in [512, 4096] {
            let attributes = Attributes::default().with_priority(1);
            let layout = Layout::empty()
                .partition(3, "USR-A", USR_TYPE, 4096, attributes)
                .partition(4, "USR-B", USR_TYPE, 4096, attributes)
                .entries(count, size);
            let disk = FakeDisk::new(sector_size, layout.disk_len(sector_size));
            layout.write_to(&disk);
            let before = disk.to_bytes();
            activate_b(&disk);
            let changed = changed_bytes(&before, &disk.to_bytes());
            let allowed = expected_changes(&disk, &[3, 4], u64::from(size));
            assert!(
                changed.iter().all(|place| allowed.contains(place)),
                "{count} {size}"
            );
            assert!(Gpt::read(&disk).unwrap().health().is_good());
        }
    }
}

#[test]
fn a_thousand_partitions_are_read() {
    let mut layout = Layout::empty().entries(1024, 128);
    for number in 1..=1000 {
        layout = layout.partition(number, "P", OTHER_TYPE, 4096, Attributes::default());
    }
    let disk = FakeDisk::new(512, layout.disk_len(512));
    layout.write_to(&disk);
    let gpt = Gpt::read(&disk).unwrap();
    assert_eq!(gpt.partitions().count(), 1000);
    let last = gpt.partition(1000).unwrap();
    assert!(gpt.byte_range(&last).is_ok());
}

/// Fields of a header, each with an impossible value and valid checksums.
#[test]
fn impossible_headers_are_refused_with_the_reason_in_no_time() {
    /// Offset, width and value.
    type Field = (usize, usize, u64);
    let cases: [(&str, &[Field]); 17] = [
        ("no header in sector", &[(0, 1, 0)]),
        ("header size 0", &[(12, 4, 0)]),
        ("header size 91", &[(12, 4, 91)]),
        ("header size 513", &[(12, 4, 513)]),
        ("header size 4294967295", &[(12, 4, u64::MAX)]),
        ("belongs into sector 7", &[(24, 8, 7)]),
        ("usable sectors 500 to 100", &[(40, 8, 500), (48, 8, 100)]),
        ("usable sectors", &[(48, 8, u64::MAX)]),
        ("of entries cannot lie at", &[(72, 8, u64::MAX)]),
        ("of entries cannot lie at", &[(72, 8, u64::MAX - 31)]),
        ("of entries cannot lie at sector 0", &[(72, 8, 0)]),
        ("of entries cannot lie at sector 300", &[(72, 8, 300)]),
        ("entry count 4294967295", &[(80, 4, u64::MAX)]),
        ("entry count 8193", &[(80, 4, 8193)]),
        ("entry count 0", &[(80, 4, 0)]),
        ("entry size 0", &[(84, 4, 0)]),
        ("entry size 2147483648", &[(84, 4, 1 << 31)]),
    ];
    for (reason, fields) in cases {
        let disk = two_slots(512);
        for lba in [1, last_lba(&disk)] {
            edit_header(&disk, lba, |header| {
                for &(offset, width, value) in fields {
                    let bytes = &value.to_le_bytes()[..width];
                    header[offset..offset + width].copy_from_slice(bytes);
                }
            });
        }
        let before = disk.to_bytes();
        let start = Instant::now();
        let error = Gpt::read(&disk).unwrap_err();
        assert!(start.elapsed() < Duration::from_secs(1));
        assert!(matches!(error, GptError::BothBroken { .. }));
        let text = error.to_string();
        assert_eq!(text.matches(reason).count(), 2, "{reason}: {text}");
        assert_eq!(disk.to_bytes(), before);
    }
}

#[test]
fn checksums_of_headers_and_entries_are_checked() {
    for (offset, reason) in [(60, "header checksum is"), (512, "entries checksum is")] {
        let disk = two_slots(512);
        flip(&disk, 512 + offset);
        let CopyHealth::Broken(damage) = Gpt::read(&disk).unwrap().health().primary else {
            panic!("the primary is broken");
        };
        assert!(damage.to_string().contains(reason), "{damage}");
    }
}

#[test]
fn a_broken_copy_is_rebuilt_byte_for_byte_from_the_other() {
    for sector_size in [512, 4096] {
        let size = u64::from(sector_size);
        let last = last_lba(&two_slots(sector_size));
        let array = 128 * 128 / size;
        for (lba, sectors) in [
            (1, 1),
            (2, array),
            (1, 1 + array),
            (last, 1),
            (last - array, array),
            (last - array, array + 1),
        ] {
            let disk = two_slots(sector_size);
            let healthy = disk.to_bytes();
            let garbage = vec![0xa5; usize::try_from(sectors * size).unwrap()];
            disk.write_at(lba * size, &garbage).unwrap();

            let mut gpt = Gpt::read(&disk).unwrap();
            assert!(!gpt.health().is_good());
            assert_eq!(gpt.slots(USR_TYPE).len(), 2);
            gpt.write(&disk).unwrap();
            assert!(gpt.health().is_good());
            assert!(disk.to_bytes() == healthy, "{sector_size}: sector {lba}");
        }
    }
}

#[test]
fn of_two_valid_copies_that_differ_the_primary_wins() {
    let disk = two_slots(512);
    let older = disk.to_bytes();
    activate_b(&disk);
    let newer = disk.to_bytes();
    let backup = usize::try_from((last_lba(&disk) - 32) * 512).unwrap();
    disk.write_at(u64::try_from(backup).unwrap(), &older[backup..])
        .unwrap();

    let mut gpt = Gpt::read(&disk).unwrap();
    assert!(matches!(gpt.health().primary, CopyHealth::Valid));
    assert!(matches!(gpt.health().backup, CopyHealth::Differs));
    assert_eq!(gpt.partition(4).unwrap().attributes.priority(), 2);
    gpt.write(&disk).unwrap();
    assert!(disk.to_bytes() == newer);
}

#[test]
fn nothing_is_repaired_when_no_copy_is_valid() {
    let disk = two_slots(512);
    flip(&disk, 512 + 60);
    flip(&disk, last_lba(&disk) * 512 + 60);
    let error = Gpt::read(&disk).unwrap_err();
    assert!(matches!(error, GptError::BothBroken { .. }));
}

#[test]
fn a_healthy_table_is_not_written_again() {
    let disk = two_slots(512);
    let before = disk.writes();
    Gpt::read(&disk).unwrap().write(&disk).unwrap();
    assert_eq!(disk.writes(), before);
}

#[test]
fn the_backup_of_a_disk_that_has_grown_stays_in_its_place() {
    let small = two_slots(512);
    let mut bytes = small.to_bytes();
    bytes.resize(bytes.len() + (1 << 20), 0);
    let disk = FakeDisk::from_bytes(512, bytes);
    assert!(Gpt::read(&disk).unwrap().health().is_good());
    activate_b(&disk);
    activate_b(&small);
    assert!(disk.holds(0, &small.to_bytes()));

    // Even when the primary header is broken, its word leads to the backup.
    let healthy = disk.to_bytes();
    flip(&disk, 512 + 60);
    let mut gpt = Gpt::read(&disk).unwrap();
    assert!(matches!(gpt.health().primary, CopyHealth::Broken(_)));
    gpt.write(&disk).unwrap();
    assert!(disk.to_bytes() == healthy);
}

/// As when an image is written over a larger system.
#[test]
fn a_strange_table_at_the_end_of_the_disk_does_not_replace_the_own_one() {
    let own = two_slots(512);
    let strange = Layout::empty().partition(1, "OTHER", USR_TYPE, 512, Attributes::default());
    let disk = FakeDisk::new(512, own.len() + (1 << 20));
    strange.write_to(&disk);
    disk.write_at(0, &own.to_bytes()).unwrap();
    let healthy = disk.to_bytes();
    for broken in [512 + 60, 1024] {
        flip(&disk, broken);
        let mut gpt = Gpt::read(&disk).unwrap();
        assert_eq!(gpt.slots(USR_TYPE).len(), 2);
        gpt.write(&disk).unwrap();
        assert!(disk.to_bytes() == healthy);
    }
}

#[test]
fn the_table_of_a_disk_that_was_cut_off_is_read_but_not_written() {
    let mut bytes = two_slots(512).to_bytes();
    bytes.truncate(bytes.len() - 512);
    let disk = FakeDisk::from_bytes(512, bytes.clone());
    let mut gpt = Gpt::read(&disk).unwrap();
    assert_eq!(gpt.slots(USR_TYPE).len(), 2);
    let error = gpt.write(&disk).unwrap_err();
    assert!(matches!(
        error,
        GptError::NoRoom {
            copy: TableCopy::Backup,
            ..
        }
    ));
    assert!(disk.to_bytes() == bytes);
}

/// Boards keep their boot loader where the entries usually are and move these behind it.
#[test]
fn primary_entries_in_an_unusual_place_stay_there_even_without_a_valid_header() {
    let disk = two_slots(512);
    let mut entries = vec![0; 128 * 128];
    disk.read_at(2 * 512, &mut entries).unwrap();
    disk.write_at(2 * 512, &vec![0xb0; 128 * 128]).unwrap();
    disk.write_at(34 * 512, &entries).unwrap();
    let end = last_lba(&disk);
    for lba in [1, end] {
        edit_header(&disk, lba, |header| {
            put64(header, 40, 66);
            if lba == 1 {
                put64(header, 72, 34);
            }
        });
    }
    assert!(Gpt::read(&disk).unwrap().health().is_good());
    let healthy = disk.to_bytes();
    flip(&disk, 512 + 60);
    Gpt::read(&disk).unwrap().write(&disk).unwrap();
    assert!(disk.to_bytes() == healthy);
}

#[test]
fn a_header_that_points_into_partitions_does_not_make_us_write_there() {
    let disk = two_slots(512);
    edit_header(&disk, 1, |header| put64(header, 32, 300));
    let before = disk.to_bytes();
    let mut gpt = Gpt::read(&disk).unwrap();
    let error = gpt.write(&disk).unwrap_err();
    assert!(matches!(error, GptError::NoRoom { .. }), "{error}");
    assert!(disk.to_bytes() == before);
}

#[test]
fn unreadable_sectors_are_taken_from_the_other_copy_and_healed() {
    for sectors in [1..3, 1..2, 2..3] {
        let disk = two_slots(512);
        let healthy = disk.to_bytes();
        disk.make_unreadable(sectors.start * 512..sectors.end * 512);
        let mut gpt = Gpt::read(&disk).unwrap();
        let text = gpt.health().primary.to_string();
        assert!(text.contains("os error 5"), "{text}");
        gpt.write(&disk).unwrap();
        assert!(disk.to_bytes() == healthy);
    }
}

#[test]
fn a_write_that_fails_anywhere_leaves_a_valid_table() {
    for fault in [Fault::Eio, Fault::Enospc] {
        // Two writes and a sync for each copy.
        for number in 0..4 {
            let disk = two_slots(512);
            disk.fail_write(number, fault);
            expect_failure(&disk);
        }
        for number in 0..2 {
            let disk = two_slots(512);
            disk.fail_sync(number, fault);
            expect_failure(&disk);
        }
    }
}

fn expect_failure(disk: &FakeDisk) {
    let mut gpt = Gpt::read(disk).unwrap();
    let old: Vec<_> = gpt.partitions().collect();
    gpt.apply(&set_active(&gpt.slots(USR_TYPE), 4, 1).unwrap())
        .unwrap();
    let new: Vec<_> = gpt.partitions().collect();
    let error = gpt.write(disk).unwrap_err();
    assert!(matches!(error, GptError::Write { .. }), "{error}");
    assert!(std::error::Error::source(&error).is_some());
    for survives in [true, false] {
        let disk = disk.after_power_cut(|_| survives);
        let found: Vec<_> = Gpt::read(&disk).unwrap().partitions().collect();
        assert!(found == old || found == new);
    }
}

#[test]
fn a_medium_that_does_not_keep_the_first_copy_saves_the_second() {
    let disk = two_slots(512);
    let before = disk.to_bytes();
    disk.rot((last_lba(&disk) - 32) * 512 + 2 * 128 + 50);
    let mut gpt = Gpt::read(&disk).unwrap();
    gpt.apply(&set_active(&gpt.slots(USR_TYPE), 4, 1).unwrap())
        .unwrap();
    let error = gpt.write(&disk).unwrap_err();
    assert!(matches!(
        error,
        GptError::NotConfirmed {
            copy: TableCopy::Backup
        }
    ));
    assert!(disk.holds(0, &before[..34 * 512]));
}

#[test]
fn a_table_that_changed_since_it_was_read_is_not_overwritten() {
    let disk = two_slots(512);
    let mut first = Gpt::read(&disk).unwrap();
    activate_b(&disk);
    let before = disk.to_bytes();
    first
        .set_attributes(1, Attributes::from_raw(1 << 60))
        .unwrap();
    assert!(matches!(first.write(&disk), Err(GptError::Changed)));
    assert!(disk.to_bytes() == before);
}

#[test]
fn one_table_may_be_written_several_times() {
    let disk = two_slots(512);
    let mut gpt = Gpt::read(&disk).unwrap();
    for tries in [3, 2, 1] {
        let attributes = Attributes::default().with_priority(2).with_tries(tries);
        gpt.set_attributes(4, attributes).unwrap();
        gpt.write(&disk).unwrap();
        let found = Gpt::read(&disk).unwrap().partition(4).unwrap().attributes;
        assert_eq!(found, attributes);
    }
}

#[test]
fn unused_and_impossible_numbers_are_no_partitions() {
    let mut gpt = Gpt::read(&two_slots(512)).unwrap();
    for number in [0, 2, 128, 129, u32::MAX] {
        let changed = gpt.set_attributes(number, Attributes::default());
        assert!(matches!(changed, Err(GptError::NoSuchPartition { .. })));
    }
}

#[test]
fn a_partition_in_an_impossible_place_has_no_bytes() {
    let gpt = Gpt::read(&two_slots(512)).unwrap();
    let slot = gpt.partition(3).unwrap();
    let range = gpt.byte_range(&slot).unwrap();
    assert_eq!(range, slot.first_lba * 512..(slot.last_lba + 1) * 512);
    assert_eq!(range.end - range.start, 64 << 10);
    for (first_lba, last_lba, problem) in [
        (slot.last_lba, slot.first_lba, "ends before it begins"),
        (0, slot.last_lba, "usable"),
        (slot.first_lba, u64::MAX, "usable"),
        (u64::MAX, u64::MAX, "usable"),
        (slot.first_lba, slot.last_lba + 1, "overlaps"),
        (slot.first_lba - 1, slot.last_lba, "overlaps"),
    ] {
        let mut moved = slot.clone();
        moved.first_lba = first_lba;
        moved.last_lba = last_lba;
        let text = gpt.byte_range(&moved).unwrap_err().to_string();
        assert!(text.contains(problem), "{text}");
    }
}

#[test]
fn disks_too_small_for_any_table_are_refused() {
    for sectors in 0..4 {
        let disk = FakeDisk::new(512, sectors * 512);
        let error = Gpt::read(&disk).unwrap_err();
        assert!(matches!(error, GptError::BothBroken { .. }));
    }
}

#[test]
fn names_are_decoded_up_to_the_first_nul_and_never_refused() {
    let disk = two_slots(512);
    let mut gpt_name = vec![0x41, 0x00, 0x00, 0xd8, 0xe9, 0x00, 0x00, 0x00, 0x42, 0x00];
    gpt_name.resize(72, 0);
    disk.write_at(1024 + 56, &gpt_name).unwrap();
    let mut entries = vec![0; 128 * 128];
    disk.read_at(1024, &mut entries).unwrap();
    edit_header(&disk, 1, |header| {
        put32(header, 88, crc32fast::hash(&entries));
    });
    let name = Gpt::read(&disk).unwrap().partition(1).unwrap().name;
    assert_eq!(name, "A\u{fffd}é");
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 128,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// parse(write(x)) = x, and only the bytes that must change do change.
    #[test]
    fn a_random_table_with_random_changes_reads_back_equal(
        sector_size in prop_oneof![Just(512_u32), Just(4096)],
        entry_size in prop_oneof![Just(128_u32), Just(256), Just(1024)],
        entry_count in 1_u32..200,
        numbers in prop::collection::btree_set(1_u32..200, 0..20),
        raw in prop::collection::vec(any::<u64>(), 20),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u64>()), 0..8),
        name in "\\PC{0,40}",
    ) {
        let numbers: Vec<u32> = numbers.into_iter().filter(|&n| n <= entry_count).collect();
        let mut layout = Layout::empty().entries(entry_count, entry_size);
        for (&number, &raw) in numbers.iter().zip(&raw) {
            let type_guid = if raw % 2 == 0 { USR_TYPE } else { OTHER_TYPE };
            layout = layout.partition(number, &name, type_guid, 4096, Attributes::from_raw(raw));
        }
        let disk = FakeDisk::new(sector_size, layout.disk_len(sector_size));
        layout.write_to(&disk);
        let before = disk.to_bytes();

        let mut gpt = Gpt::read(&disk).unwrap();
        let mut expected: Vec<_> = gpt.partitions().collect();
        prop_assert_eq!(expected.len(), numbers.len());
        for (partition, (number, raw)) in expected.iter().zip(numbers.iter().zip(&raw)) {
            prop_assert_eq!(partition.number, *number);
            prop_assert_eq!(partition.attributes.raw(), *raw);
            let units: Vec<u16> = name.encode_utf16().take(36).collect();
            prop_assert_eq!(&partition.name, &String::from_utf16_lossy(&units));
            prop_assert!(gpt.byte_range(partition).is_ok());
        }
        let mut changed_numbers = Vec::new();
        if !expected.is_empty() {
            for (index, raw) in changes {
                let partition = index.get(&expected).number;
                gpt.set_attributes(partition, Attributes::from_raw(raw)).unwrap();
                changed_numbers.push(partition);
                let place = index.index(expected.len());
                expected[place].attributes = Attributes::from_raw(raw);
            }
        }
        gpt.write(&disk).unwrap();
        let again = Gpt::read(&disk).unwrap();
        prop_assert!(again.health().is_good());
        prop_assert_eq!(again.partitions().collect::<Vec<_>>(), expected);

        let allowed = expected_changes(&disk, &changed_numbers, u64::from(entry_size));
        for place in changed_bytes(&before, &disk.to_bytes()) {
            prop_assert!(allowed.contains(&place), "byte {} changed", place);
        }
    }

    /// Headers with arbitrary fields and right checksums: no panic, and no byte of any
    /// partition with a sound place is written.
    #[test]
    fn arbitrary_headers_never_panic_and_never_cost_a_partition(
        patches in prop::collection::vec(
            (any::<bool>(), 12_usize..92, any::<[u8; 8]>(), 1_usize..=8), 0..6),
        numbers in prop::collection::vec((any::<bool>(), prop::sample::select(
            vec![24_usize, 32, 40, 48, 72]), 0_u64..700), 0..4),
        reseal in any::<bool>(),
    ) {
        let disk = two_slots(512);
        let last = last_lba(&disk);
        let lba = |backup: bool| if backup { last } else { 1 };
        for &(backup, offset, value) in &numbers {
            edit_header(&disk, lba(backup), |header| put64(header, offset, value));
        }
        for (backup, offset, bytes, length) in patches {
            if reseal {
                edit_header(&disk, lba(backup), |header| {
                    header[offset..offset + length].copy_from_slice(&bytes[..length]);
                });
            } else {
                let place = lba(backup) * 512 + u64::try_from(offset).unwrap();
                disk.write_at(place, &bytes[..length]).unwrap();
            }
        }
        let before = disk.to_bytes();
        if let Ok(mut gpt) = Gpt::read(&disk) {
            for slot in gpt.slots(USR_TYPE) {
                gpt.set_attributes(slot.number, slot.attributes.with_tries(5)).unwrap();
            }
            let written = gpt.write(&disk);
            let after = disk.to_bytes();
            for partition in gpt.partitions() {
                if let Ok(range) = gpt.byte_range(&partition) {
                    let range = usize::try_from(range.start).unwrap()
                        ..usize::try_from(range.end).unwrap();
                    prop_assert!(before[range.clone()] == after[range]);
                }
            }
            prop_assert!(before[..512] == after[..512]);
            if written.is_ok() {
                prop_assert!(Gpt::read(&disk).unwrap().health().is_good());
            } else {
                prop_assert!(Gpt::read(&disk).is_ok());
            }
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        sector_size in prop_oneof![Just(512_u32), Just(4096)],
        bytes in prop::collection::vec(any::<u8>(), 0..20_000),
        signed in any::<bool>(),
    ) {
        let size = usize::try_from(sector_size).unwrap();
        let mut bytes = bytes;
        bytes.truncate(bytes.len() / size * size);
        if signed && bytes.len() >= 2 * size {
            bytes[size..size + 8].copy_from_slice(b"EFI PART");
            let last = bytes.len() - size;
            bytes[last..last + 8].copy_from_slice(b"EFI PART");
        }
        let _ = Gpt::read(&FakeDisk::from_bytes(sector_size, bytes));
    }
}

fn two_slots(sector_size: u32) -> FakeDisk {
    let layout = Layout::two_slots();
    let disk = FakeDisk::new(sector_size, layout.disk_len(sector_size));
    layout.write_to(&disk);
    disk
}

fn activate_b(disk: &FakeDisk) {
    let mut gpt = Gpt::read(disk).unwrap();
    let changes = set_active(&gpt.slots(USR_TYPE), 4, 1).unwrap();
    gpt.apply(&changes).unwrap();
    gpt.write(disk).unwrap();
}

fn last_lba(disk: &FakeDisk) -> u64 {
    disk.len() / u64::from(disk.sector_size()) - 1
}

/// Changes a header and makes its checksum right again, as far as it has a sensible size.
fn edit_header(disk: &FakeDisk, lba: u64, edit: impl FnOnce(&mut [u8])) {
    let offset = lba * u64::from(disk.sector_size());
    let mut header = vec![0; usize::try_from(disk.sector_size()).unwrap()];
    disk.read_at(offset, &mut header).unwrap();
    edit(&mut header);
    header[16..20].fill(0);
    let size = u32::from_le_bytes(header[12..16].try_into().unwrap());
    let size = usize::try_from(size).unwrap().min(header.len());
    let checksum = crc32fast::hash(&header[..size]);
    put32(&mut header, 16, checksum);
    disk.write_at(offset, &header).unwrap();
}

fn put32(bytes: &mut [u8], offset: usize, value: u32) {
    bytes[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
}

fn put64(bytes: &mut [u8], offset: usize, value: u64) {
    bytes[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
}

fn flip(disk: &FakeDisk, offset: u64) {
    let mut byte = [0];
    disk.read_at(offset, &mut byte).unwrap();
    disk.write_at(offset, &[byte[0] ^ 0xff]).unwrap();
}

fn changed_bytes(before: &[u8], after: &[u8]) -> Vec<u64> {
    (0..)
        .zip(before.iter().zip(after))
        .filter(|(_, (before, after))| before != after)
        .map(|(place, _)| place)
        .collect()
}

/// The bytes that may change when the attributes of these partitions do.
fn expected_changes(disk: &FakeDisk, numbers: &[u32], entry_size: u64) -> Vec<u64> {
    let sector_size = u64::from(disk.sector_size());
    let last = last_lba(disk);
    let mut places = Vec::new();
    for header_lba in [1, last] {
        let header = header_lba * sector_size;
        let mut entries_lba = [0; 8];
        disk.read_at(header + 72, &mut entries_lba).unwrap();
        let entries = u64::from_le_bytes(entries_lba) * sector_size;
        places.extend(header + 16..header + 20);
        places.extend(header + 88..header + 92);
        for &number in numbers {
            let entry = entries + u64::from(number - 1) * entry_size;
            places.extend(entry + 48..entry + 56);
        }
    }
    places.sort_unstable();
    places.dedup();
    places
}
