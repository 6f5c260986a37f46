use super::*;
use crate::platform::Discovery;
use crate::root::Root;
use gptprio::testing::{CrashStates, FakeDisk, Fault, Layout, WriteLog};
use gptprio::{Attributes, USR_TYPE, select};
use std::fs;
use std::path::Path;

/// A disk with USR-A (3) and USR-B (4), of which A runs, and the slots as they were found on it.
fn machine(layout: &Layout) -> (Arc<FakeDisk>, Slots) {
    let disk = FakeDisk::new(512, layout.disk_len(512));
    layout.write_to(&disk);
    let slots = find(image_file(&disk).path());
    (Arc::new(disk), slots)
}

fn image_file(disk: &FakeDisk) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), disk.to_bytes()).unwrap();
    file
}

fn find(image: &Path) -> Slots {
    let booted = "A".parse().unwrap();
    let disk = image.to_owned();
    Discovery::Image { disk, booted }
        .find(&Root::system(), USR_TYPE)
        .unwrap()
}

fn boot(disk: &Arc<FakeDisk>) -> GptBoot {
    GptBoot::on_disk(
        Arc::clone(disk) as Arc<dyn BlockDevice>,
        &Settings::default(),
    )
}

/// Priority, tries and successful of both slots, and which one would boot.
fn state(disk: &dyn BlockDevice) -> String {
    let slots = match Gpt::read(disk) {
        Ok(gpt) => gpt.slots(USR_TYPE),
        Err(error) => return error.to_string(),
    };
    let boots = select(&slots).slot().map_or(0, |slot| slot.number);
    let words: Vec<_> = slots
        .iter()
        .map(|slot| {
            let attributes = slot.attributes;
            let successful = u8::from(attributes.successful());
            format!(
                "{}/{}/{successful}",
                attributes.priority(),
                attributes.tries()
            )
        })
        .collect();
    format!("{} boots {boots}", words.join(" "))
}

#[test]
fn a_boot_gives_way_when_it_is_not_proven_and_another_slot_may_boot() {
    for (a, b, expected) in [
        ((2, 0, false), (1, 0, true), true),
        ((2, 3, false), (1, 1, false), true),
        ((2, 0, true), (1, 0, true), false),
        ((2, 0, false), (0, 0, true), false),
        ((2, 0, false), (1, 0, false), false),
    ] {
        let (disk, slots) = machine(&layout(a, b));
        let before = disk.to_bytes();
        assert_eq!(
            boot(&disk).standing(&slots).unwrap().has_way_back(),
            expected,
            "{a:?} {b:?}"
        );
        assert!(disk.to_bytes() == before, "nothing is written");
    }
}

type Step = fn(&GptBoot, &Slots) -> Result<(), BootError>;
const UNBOOTABLE: Step = |boot, slots| boot.mark_unbootable(slots);
const ACTIVE: Step = |boot, slots| boot.activate(slots);
const SUCCESSFUL: Step = |boot, slots| boot.mark_successful(slots);

fn layout(a: (u8, u8, bool), b: (u8, u8, bool)) -> Layout {
    let attributes = |(priority, tries, successful)| {
        Attributes::default()
            .with_priority(priority)
            .with_tries(tries)
            .with_successful(successful)
    };
    Layout::empty()
        .partition(3, "USR-A", USR_TYPE, 4096, attributes(a))
        .partition(4, "USR-B", USR_TYPE, 4096, attributes(b))
}

#[test]
fn attributes_follow_the_life_of_an_update() {
    let (disk, slots) = machine(&layout((1, 0, true), (2, 0, true)));
    let control = boot(&disk);
    let steps = [
        (UNBOOTABLE, "1/0/1 0/0/0 boots 3"),
        (UNBOOTABLE, "1/0/1 0/0/0 boots 3"),
        (ACTIVE, "1/0/1 2/1/0 boots 4"),
        (ACTIVE, "1/0/1 2/1/0 boots 4"),
        // The same machine came back to A, as after a failed boot of B.
        (SUCCESSFUL, "2/0/1 1/1/0 boots 3"),
        (SUCCESSFUL, "2/0/1 1/1/0 boots 3"),
    ];
    for (number, (step, expected)) in steps.into_iter().enumerate() {
        step(&control, &slots).unwrap();
        assert_eq!(state(&*disk), expected, "step {number}");
    }
    control.mark_unbootable(&slots).unwrap();
    let patient = Settings {
        tries: 3,
        ..Settings::default()
    };
    GptBoot::on_disk(disk.clone(), &patient)
        .activate(&slots)
        .unwrap();
    assert_eq!(state(&*disk), "1/0/1 2/3/0 boots 4");
}

#[test]
fn the_target_stays_bootable_while_the_running_slot_is_not_proven() {
    for source in [(1, 0, false), (1, 1, false), (0, 0, true), (0, 0, false)] {
        let (disk, slots) = machine(&layout(source, (2, 0, true)));
        let before = state(&*disk);
        let error = boot(&disk).mark_unbootable(&slots).unwrap_err();
        assert!(matches!(error, BootError::NoWayBack { .. }), "{error}");
        assert_eq!(state(&*disk), before);
        boot(&disk).mark_successful(&slots).unwrap();
        boot(&disk).mark_unbootable(&slots).unwrap();
        assert_eq!(state(&*disk), "2/0/1 0/0/0 boots 3");
    }
}

#[test]
fn a_power_cut_in_any_step_leaves_the_old_or_the_new_attributes() {
    let steps = [
        ("mark_unbootable", UNBOOTABLE),
        ("set_active", ACTIVE),
        ("mark_successful", SUCCESSFUL),
    ];
    let (disk, slots) = machine(&layout((1, 0, true), (2, 0, true)));
    for (name, step) in steps {
        let before = state(&*disk);
        disk.start_log();
        step(&boot(&disk), &slots).unwrap();
        let log = disk.take_log();
        let after = state(&*disk);
        let check = |log: &WriteLog| {
            CrashStates::of(log).check(|crash| match state(crash.disk()) {
                found if found == before || found == after => Ok(()),
                found => Err(found),
            })
        };
        check(&log).expect_all_good(name);
        let careless = check(&log.without_sync(0));
        assert!(
            careless.failed() > 0,
            "without the sync between the copies {name} is not safe"
        );
    }
}

#[test]
fn a_disk_that_fails_is_an_error_and_the_old_slot_still_boots() {
    for fault in [Fault::Eio, Fault::Enospc] {
        for at in 0..3 {
            let (disk, slots) = machine(&layout((1, 0, true), (0, 0, false)));
            disk.fail_write(at, fault);
            let error = boot(&disk).activate(&slots).unwrap_err();
            assert!(matches!(error, BootError::Table { .. }), "{error}");
            let boots = state(&*disk);
            assert!(
                boots.ends_with("boots 3") || boots.ends_with("boots 4"),
                "{boots}"
            );
        }
    }
}

#[test]
fn a_table_that_was_replaced_meanwhile_is_not_touched() {
    let (disk, slots) = machine(&layout((1, 0, true), (0, 0, false)));
    let other = Layout::empty()
        .partition(4, "USR-B", USR_TYPE, 4096, Attributes::default())
        .partition(3, "USR-A", USR_TYPE, 4096, Attributes::default());
    other.write_to(&*disk);
    let before = state(&*disk);
    for step in [UNBOOTABLE, ACTIVE, SUCCESSFUL] {
        let error = step(&boot(&disk), &slots).unwrap_err();
        assert!(matches!(error, BootError::Replaced { .. }), "{error}");
    }
    assert_eq!(state(&*disk), before);
}

#[test]
fn a_broken_copy_is_repaired_by_the_next_change() {
    let (disk, slots) = machine(&layout((1, 0, true), (0, 0, false)));
    for header in [512, disk.len() - 512] {
        disk.write_at(header, &[0; 512]).unwrap();
        disk.sync().unwrap();
        assert!(!Gpt::read(&*disk).unwrap().health().is_good());
        boot(&disk).mark_successful(&slots).unwrap();
        assert!(Gpt::read(&*disk).unwrap().health().is_good());
    }
}

#[test]
fn the_disk_of_the_slots_is_opened_and_locked_for_each_change() {
    let (disk, _) = machine(&layout((1, 0, true), (0, 0, false)));
    let file = image_file(&disk);
    let slots = find(file.path());
    let control = GptBoot::new(&Settings::default());
    control.activate(&slots).unwrap();
    assert_eq!(
        state(&slots.open_disk(Access::ReadOnly).unwrap()),
        "1/0/1 2/1/0 boots 4"
    );

    let _other = slots.open_disk(Access::ReadWrite).unwrap();
    let error = control.mark_successful(&slots).unwrap_err();
    assert!(matches!(error, BootError::Open { .. }), "{error}");
}
