//! Power cuts, failing disks and changed bytes during whole installations. Whatever
//! happens, the slot that boots next holds a whole image, and the running one is never
//! written to.

mod machine;

use std::sync::{Arc, Mutex};
use std::time::Instant;

use gptprio::testing::{CrashStates, FakeDisk, Fault, Report, WriteLog};
use gptprio::{BlockDevice, Gpt, USR_TYPE, select};
use payload::make::Profile;

use crate::boot::{BootControl, BootError, GptBoot};
use crate::config::Settings;
use crate::deltas::{self, DeltaFailure};
use crate::error::UpdateError;
use crate::install::Proof;
use crate::platform::Slots;
use machine::{A, B, Machine, Random, Release, SlotB, Step, noise};

const BLOCK: usize = 4096;
const MIB: usize = 1 << 20;
/// Longest epoch, in sectors, of which every subset is played.
const EXHAUSTIVE: usize = 16;
/// Random states of each longer epoch.
const RANDOM: usize = 6_000;

/// Sector size, blocks of the image and of the slots: two with a target of so few sectors
/// that all of their subsets are played, two for samples of a longer one.
const SIZES: [(u32, usize, usize); 4] =
    [(512, 2, 4), (4096, 16, 20), (512, 24, 24), (4096, 40, 48)];
const TARGETS: [SlotB; 3] = [
    SlotB::Blank,
    SlotB::Preferred,
    SlotB::PreferredByBackupTable,
];

#[test]
fn a_power_cut_at_any_time_of_an_installation_leaves_a_whole_image_to_boot() {
    let start = Instant::now();
    let mut total = Report::default();
    for (sector_size, image, slot) in SIZES {
        let release = release(image);
        for slot_b in TARGETS {
            // All subsets once are enough; they take most of the time.
            if slot_b == SlotB::PreferredByBackupTable && image <= 16 {
                continue;
            }
            let machine = Machine::new(sector_size, slot * BLOCK, slot_b);
            let log = recorded(&machine, || machine.install(&release).unwrap());
            machine.assert_updated(&release, "without a power cut");
            let report = play(&machine, &release, &log);
            assert_eq!(
                report.first_failure(),
                None,
                "sectors of {sector_size}, {image} blocks, {slot_b:?}"
            );
            total.add(report);
        }
    }
    total.expect_all_good("installation");
    println!("played in {:?}", start.elapsed());
    assert!(total.states() >= 100_000, "{}", total.states());
}

#[test]
fn a_power_cut_while_the_machine_builds_a_hash_tree_leaves_a_whole_image_to_boot() {
    let mut total = Report::default();
    for (blocks, slot_b) in [(2, SlotB::Preferred), (140, SlotB::Blank)] {
        let release = Release::with_verity(&patterned(blocks * BLOCK), Some);
        let machine = Machine::new(512, release.image.len(), slot_b);
        let log = recorded(&machine, || machine.install(&release).unwrap());
        machine.assert_updated(&release, "without a power cut");
        let report = play(&machine, &release, &log);
        assert_eq!(report.first_failure(), None, "{blocks} blocks, {slot_b:?}");
        total.add(report);
        // The third sync is that of the data, the fourth that of the tree.
        assert_eq!(log.syncs(), 6);
        caught(
            "no sync of the tree",
            &play(&machine, &release, &log.without_sync(3)),
        );
    }
    total.expect_all_good("installation with a hash tree");
}

/// Boot selectors read it as soon as the slot may boot.
#[test]
fn the_root_hash_is_beside_the_kernel_before_the_slot_may_boot_and_an_old_one_is_gone() {
    struct Watching(Machine, Arc<Mutex<Vec<Option<String>>>>);
    impl BootControl for Watching {
        fn mark_unbootable(&self, slots: &Slots) -> Result<(), BootError> {
            self.0.boot().mark_unbootable(slots)
        }
        fn set_active(&self, slots: &Slots, proof: &Proof) -> Result<(), BootError> {
            self.1.lock().unwrap().push(self.0.root_hash());
            self.0.boot().set_active(slots, proof)
        }
        fn mark_successful(&self, slots: &Slots) -> Result<(), BootError> {
            self.0.boot().mark_successful(slots)
        }
    }
    let data = patterned(4 * BLOCK);
    let with = Release::with_verity(&data, Some);
    let line = with
        .root_hash
        .map(|hash| format!("{}\n", crate::install::hex(&hash)));
    for (release, expected) in [
        (with, line),
        (Release::with_verity(&data, |_| None), None),
        (Release::new(data.clone(), None), None),
    ] {
        let machine = Machine::new(512, 8 * BLOCK, SlotB::Preferred);
        assert!(machine.root_hash().is_some(), "of the image before");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let boot = Watching(machine.clone(), Arc::clone(&seen));
        let (ended, _) = machine.attempt(&release).booting_by(boot).run();
        ended.result.unwrap();
        assert_eq!(*seen.lock().unwrap(), [expected]);
        machine.assert_updated(&release, "after the flip");
    }
}

#[test]
fn a_tree_with_another_root_hash_than_the_signed_one_never_boots() {
    let release = Release::with_verity(&patterned(4 * BLOCK), |_| Some([7; 32]));
    let machine = Machine::new(512, 8 * BLOCK, SlotB::Preferred);
    let error = machine.install(&release).unwrap_err();
    let words = error.words();
    assert!(
        words.contains(&format!("its makers signed {}", "07".repeat(32))),
        "{words}"
    );
    assert_eq!(error.code(), 15);
    assert_eq!(machine.boots(&machine.disk, &release), Ok(A));
    assert_eq!(machine.root_hash().unwrap(), "of the older image\n");
    assert_eq!(deltas::judge(true, &error), Some(DeltaFailure::Hopeless));
}

/// The tree is made of what the medium holds, so that rot before it shows in the hash
/// of the whole.
#[test]
fn rot_in_the_data_or_in_the_tree_is_refused() {
    let release = Release::with_verity(&patterned(130 * BLOCK), Some);
    for byte in [0, 130 * BLOCK - 1, 131 * BLOCK, release.image.len() - 1] {
        let machine = Machine::new(512, release.image.len(), SlotB::Preferred);
        let place = machine.slots.target.start + u64::try_from(byte).unwrap();
        machine.disk.rot(place);
        let error = machine.install(&release).unwrap_err();
        assert!(matches!(error, UpdateError::ReadBack { .. }), "{error}");
        assert_eq!(machine.boots(&machine.disk, &release), Ok(A));
    }
}

/// The partition of the running system is read at most, and what lies behind the new
/// image in the other one is left alone.
#[test]
fn a_further_partition_is_installed_beside_the_slot() {
    let (old, new) = (patterned(MIB), patterned(MIB + 4 * BLOCK));
    let (old_oem, new_oem) = (
        noise(5, 70_000),
        [noise(5, 50_000), noise(6, 9_999)].concat(),
    );
    let room = new_oem.len().next_multiple_of(BLOCK) + BLOCK;
    let delta = Release::with_oem(Some((&old, &old_oem)), new.clone(), &new_oem);
    let full = Release::with_oem(None, new, &new_oem);
    assert!(
        delta.payload.len() < full.payload.len() / 2,
        "it is a delta"
    );
    for release in [full, delta] {
        let slot = [&old[..], &[0; 8 * BLOCK]].concat();
        let machine = Machine::running(slot, None, 512, SlotB::Preferred);
        std::fs::write(machine.path("oem-a"), &old_oem).unwrap();
        std::fs::write(machine.path("oem-b"), vec![7; room]).unwrap();
        // Stopped once on the way: what was applied is applied for good.
        let (_, ends) = release.ends();
        machine.attempt(&release).cancelled_at(ends[0]).run();
        let (ended, asked) = machine.killed().attempt(&release).run();
        ended.result.unwrap();
        assert_eq!(asked, [ends[0]]);

        machine.install(&release).unwrap();
        machine.assert_updated(&release, "with a further partition");
        let oem = std::fs::read(machine.path("oem-b")).unwrap();
        assert!(oem[..new_oem.len()] == new_oem);
        assert_eq!(oem.len(), room);
        assert!(oem[room - BLOCK..].iter().all(|byte| *byte == 7));
        assert!(std::fs::read(machine.path("oem-a")).unwrap() == old_oem);
    }
}

#[test]
fn a_further_partition_without_a_sound_place_is_refused_before_anything_is_written() {
    let release = Release::with_oem(None, patterned(2 * BLOCK), &noise(5, 2 * BLOCK + 1));
    let refused = |prepare: fn(&Machine), unmapped: bool, expected: &str| {
        let machine = Machine::new(512, 4 * BLOCK, SlotB::Preferred);
        prepare(&machine);
        let before = machine.disk.to_bytes();
        let attempt = machine.attempt(&release).planned(|plan| {
            if unmapped {
                plan.files.partitions.clear();
            }
        });
        let error = attempt.run().0.result.unwrap_err();
        assert!(error.words().contains(expected), "{}", error.words());
        assert!(machine.disk.to_bytes() == before, "nothing was written");
        assert_eq!(
            deltas::judge(true, &error).is_none(),
            unmapped,
            "{expected}"
        );
    };
    let sized = |machine: &Machine| {
        std::fs::write(machine.path("oem-b"), vec![7; 3 * BLOCK]).unwrap();
    };
    refused(
        sized,
        true,
        "the payload updates the partition oem, and nothing says where that is: add oem=PATH to \
         PARTITIONS in /etc/update-engine/update.conf, with {slot} in the path",
    );
    refused(|_| {}, false, "cannot open");
    refused(
        |machine| std::fs::write(machine.path("oem-b"), vec![7; 2 * BLOCK + 1]).unwrap(),
        false,
        "the new partition needs 12288 bytes",
    );
    refused(
        |machine| {
            std::fs::write(machine.path("oem-a"), vec![7; 3 * BLOCK]).unwrap();
            std::os::unix::fs::symlink(machine.path("oem-a"), machine.path("oem-b")).unwrap();
        },
        false,
        "it is the running system's, too",
    );
    refused(
        |machine| {
            std::fs::write(machine.path("oem-a"), vec![7; 3 * BLOCK]).unwrap();
            std::fs::hard_link(machine.path("oem-a"), machine.path("oem-b")).unwrap();
        },
        false,
        "it is the running system's, too",
    );
}

#[test]
fn a_kernel_that_no_boot_selector_would_find_is_refused_before_anything_is_written() {
    let release = Release::new(patterned(3 * BLOCK), Some(noise(7, 5000)));
    let machine = Machine::new(512, 4 * BLOCK, SlotB::Preferred);
    let before = machine.disk.to_bytes();
    let attempt = machine
        .attempt(&release)
        .planned(|plan| plan.files.boot_is_unmounted = true);
    let error = attempt.run().0.result.unwrap_err();
    let words = error.words();
    assert!(
        words.contains("no partition is mounted at /boot"),
        "{words}"
    );
    assert!(machine.disk.to_bytes() == before);
    assert!(!machine.path("vmlinuz-b").exists());
}

/// The other slot stays the way back that it was, and its kernel with it.
#[test]
fn a_kernel_that_the_boot_partition_has_no_room_for_is_refused_before_anything_is_written() {
    const HUGE: u64 = 1 << 50;
    let release = Release::with_kernel_of(HUGE);
    let machine = Machine::new(512, release.image.len(), SlotB::Preferred);
    let kernel = machine.path("vmlinuz-b");
    std::fs::write(&kernel, "of the older image").unwrap();
    let before = machine.disk.to_bytes();
    let error = machine.install(&release).unwrap_err();
    let words = error.words();
    assert!(
        words.starts_with("the new kernel needs 1125899906842624 bytes, and /")
            && words.contains("vmlinuz-b can have")
            && words.contains("keep the files of the running slot"),
        "{words}"
    );
    assert_eq!(error.code(), 7, "no fault of the payload or its URL");
    assert_eq!(deltas::judge(true, &error), None);
    assert!(machine.disk.to_bytes() == before);
    assert_eq!(std::fs::read(&kernel).unwrap(), b"of the older image");
    assert_eq!(machine.boots(&machine.disk, &release), Ok(B));
}

#[test]
fn a_power_cut_while_the_new_version_is_marked_successful_leaves_it_or_the_old_one() {
    let mut total = Report::default();
    for (sector_size, image, slot) in SIZES {
        let release = release(image);
        for slot_b in TARGETS {
            let machine = Machine::new(sector_size, slot * BLOCK, slot_b);
            machine.install(&release).unwrap();
            count_the_boot(&machine.disk);
            let running_b = Slots {
                source: machine.slots.target.clone(),
                target: machine.slots.source.clone(),
                ..machine.slots.clone()
            };
            let log = recorded(&machine, || {
                machine.boot().mark_successful(&running_b).unwrap();
            });
            let report = CrashStates::of(&log)
                .tear(usize::try_from(sector_size).unwrap() / 16)
                .check(|crash| match machine.boots(crash.disk(), &release)? {
                    A if crash.syncs() == log.syncs() => Err("not durable".to_owned()),
                    _ => Ok(()),
                });
            assert_eq!(report.first_failure(), None, "{sector_size}, {slot_b:?}");
            total.add(report);
        }
    }
    total.expect_all_good("mark_successful after the reboot");
}

#[test]
fn after_a_power_cut_the_next_attempt_finishes_the_update() {
    let release = release(24);
    let machine = Machine::new(512, 24 * BLOCK, SlotB::Preferred);
    let log = recorded(&machine, || machine.install(&release).unwrap());
    let mut attempts = 0;
    let report = CrashStates::of(&log).random(40).check(|crash| {
        let disk = FakeDisk::from_bytes(512, crash.disk().to_bytes());
        // Whoever boots B now runs a whole image, but is another machine than this one.
        if machine.boots(&disk, &release)? == B {
            return Ok(());
        }
        attempts += 1;
        let again = machine.restarted_from(disk);
        again.install(&release).map_err(|error| error.words())?;
        again.assert_updated(&release, &crash.to_string());
        Ok(())
    });
    report.expect_all_good("another attempt after a power cut");
    println!("{attempts} attempts after a power cut, all updated");
    assert!(attempts > 100);
}

#[test]
fn a_target_that_stays_bootable_while_it_is_written_is_caught() {
    struct Bold(GptBoot);
    impl BootControl for Bold {
        fn mark_unbootable(&self, _: &Slots) -> Result<(), BootError> {
            Ok(())
        }
        fn set_active(&self, slots: &Slots, proof: &Proof) -> Result<(), BootError> {
            self.0.set_active(slots, proof)
        }
        fn mark_successful(&self, slots: &Slots) -> Result<(), BootError> {
            self.0.mark_successful(slots)
        }
    }
    let (machine, release) = control();
    let log = recorded(&machine, || {
        let attempt = machine.attempt(&release).booting_by(Bold(machine.boot()));
        attempt.run().0.result.unwrap()
    });
    caught("bootable target", &play(&machine, &release, &log));
}

/// The order of cgpt: headers, then entries, one sync at the end.
#[test]
fn a_flip_with_headers_before_entries_and_one_sync_is_caught() {
    struct HeadersFirst(Arc<FakeDisk>);
    impl BootControl for HeadersFirst {
        fn mark_unbootable(&self, slots: &Slots) -> Result<(), BootError> {
            on(&self.0).mark_unbootable(slots)
        }
        fn set_active(&self, slots: &Slots, proof: &Proof) -> Result<(), BootError> {
            let disk = &self.0;
            let size = disk.sector_size();
            let result = Arc::new(FakeDisk::from_bytes(size, disk.to_bytes()));
            on(&result).set_active(slots, proof)?;
            let size = u64::from(size);
            let last = disk.len() / size - 1;
            for sector in [1, last, 2, last - 128 * 128 / size] {
                let mut bytes = vec![0; usize::try_from(size).unwrap()];
                result.read_at(sector * size, &mut bytes).unwrap();
                disk.write_at(sector * size, &bytes).unwrap();
            }
            disk.sync().unwrap();
            Ok(())
        }
        fn mark_successful(&self, slots: &Slots) -> Result<(), BootError> {
            on(&self.0).mark_successful(slots)
        }
    }
    fn on(disk: &Arc<FakeDisk>) -> GptBoot {
        let disk = Arc::clone(disk) as Arc<dyn BlockDevice>;
        GptBoot::on_disk(disk, &Settings::default())
    }
    let (machine, release) = control();
    let log = recorded(&machine, || {
        let boot = HeadersFirst(Arc::clone(&machine.disk));
        let attempt = machine.attempt(&release).booting_by(boot);
        attempt.run().0.result.unwrap()
    });
    machine.assert_updated(&release, "without a power cut");
    caught("headers first", &play(&machine, &release, &log));
}

/// Syncs of an installation: two to mark the target, one of its data, two of the flip.
#[test]
fn a_flip_before_the_data_is_on_the_medium_is_caught() {
    let (machine, release) = control();
    let log = recorded(&machine, || machine.install(&release).unwrap());
    assert_eq!(log.syncs(), 5);
    let log = log.without_sync(2);
    caught("no sync of the data", &play(&machine, &release, &log));
}

#[test]
fn a_disk_that_fails_at_any_write_or_sync_ends_in_an_error_and_heals() {
    let (mut faults, mut failed) = (0, 0);
    let start = Instant::now();
    let release = Release::new(patterned(MIB + 2 * BLOCK), Some(noise(9, 70_000)));
    for (sector_size, slot_b) in [(512, SlotB::Blank), (4096, SlotB::PreferredByBackupTable)] {
        let new_machine = || Machine::new(sector_size, MIB + 4 * BLOCK, slot_b);
        let (writes, syncs) = requests(&new_machine(), &release);
        let places = (0..writes)
            .map(|number| (Request::Write, number))
            .chain((0..syncs).map(|number| (Request::Sync, number)));
        for (request, number) in places {
            for fault in [Fault::Eio, Fault::Enospc] {
                let place = format!("{fault:?} at {request:?} {number}, {slot_b:?}");
                let machine = new_machine();
                match request {
                    Request::Write => machine.disk.fail_write(number, fault),
                    Request::Sync => machine.disk.fail_sync(number, fault),
                }
                let result = machine.install(&release);
                faults += 1;
                failed += u32::from(result.is_err());
                let error = result.expect_err(&place);
                assert!(
                    !matches!(error, UpdateError::Internal(_)),
                    "{place}: {error}"
                );
                assert!(error.code() > 0, "{place}: {error}");
                machine.boots(&machine.disk, &release).expect(&place);
                assert!(a_boots(&machine.disk), "{place}: the way back");

                machine.install(&release).expect(&place);
                machine.assert_updated(&release, &place);
            }
        }
    }
    println!(
        "{faults} faults, {failed} clean errors, all healed, {:?}",
        start.elapsed()
    );
}

#[derive(Clone, Copy, Debug)]
enum Request {
    Write,
    Sync,
}

#[test]
fn bits_that_rot_before_the_read_back_are_refused() {
    let release = release(24);
    for byte in [0, BLOCK + 1, 24 * BLOCK - 1] {
        let machine = Machine::new(512, 24 * BLOCK, SlotB::Preferred);
        let place = machine.slots.target.start + u64::try_from(byte).unwrap();
        machine.disk.rot(place);
        let error = machine.install(&release).unwrap_err();
        assert_eq!(error.code(), 15, "{error}");
        assert_eq!(machine.boots(&machine.disk, &release), Ok(A));
    }
}

#[test]
fn no_flipped_bit_of_a_payload_is_installed() {
    const RANDOM_FLIPS: usize = 10_000;
    let start = Instant::now();
    let release = release(1);
    let (metadata, ends) = release.ends();
    let signature = usize::try_from(*ends.last().unwrap()).unwrap();
    let machine = Machine::new(512, 2 * BLOCK, SlotB::Blank);
    let refused = |byte: usize, bit: u32| {
        let changed = release.with_flipped_bit(byte, bit);
        let place = format!("bit {bit} of byte {byte}");
        // Even announced as it is: a server that lies about hash and size as well.
        let error = machine.install(&changed).expect_err(&place);
        assert!(
            !matches!(error, UpdateError::Internal(_)),
            "{place}: {error}"
        );
        assert_eq!(machine.boots(&machine.disk, &release), Ok(A), "{place}");
    };
    let mut flips = 0;
    for byte in (0..metadata).chain(signature..release.payload.len()) {
        for bit in 0..8 {
            refused(byte, bit);
            flips += 1;
        }
    }
    let mut random = Random(4);
    for _ in 0..RANDOM_FLIPS {
        let byte = metadata + random.below(signature - metadata);
        refused(byte, u32::try_from(random.below(8)).unwrap());
    }
    println!(
        "{flips} flips in header, manifest and signature and {RANDOM_FLIPS} in the data: none \
         installed, {:?}",
        start.elapsed()
    );
    machine
        .install(&release)
        .expect("control: unchanged, it is good");
    machine.assert_updated(&release, "control");
}

#[test]
fn an_installation_stopped_after_any_operation_goes_on_where_it_was() {
    for (profile, operations) in [(Profile::V1, 6), (Profile::V2, 3), (Profile::V2Aosp, 4)] {
        let image = patterned(4 * MIB + 2 * BLOCK);
        let release = Release::of_profile(profile, image, Some(noise(9, 70_000)));
        let (metadata, ends) = release.ends();
        assert_eq!(ends.len(), operations);
        for (operation, &end) in ends.iter().enumerate() {
            let machine = Machine::new(512, 5 * MIB, SlotB::Preferred);
            let (ended, asked) = machine.attempt(&release).cancelled_at(end).run();
            assert!(matches!(ended.result, Err(UpdateError::Cancelled)));
            assert_eq!(asked, [0]);
            assert_eq!(machine.boots(&machine.disk, &release), Ok(A));

            let (ended, asked) = machine.attempt(&release).run();
            ended.result.unwrap();
            assert!(ended.resumed);
            assert_eq!(asked, [end], "after operation {operation}");
            machine.assert_updated(&release, &format!("after operation {operation}"));
        }
        println!(
            "{profile:?}: stopped after each of {} operations",
            ends.len()
        );

        // Before the first operation there is nothing to go on from.
        let machine = Machine::new(512, 5 * MIB, SlotB::Preferred);
        let metadata = u64::try_from(metadata).unwrap();
        let (_, asked) = machine.attempt(&release).cancelled_at(metadata).run();
        assert_eq!(asked, [0]);
        let (ended, asked) = machine.attempt(&release).run();
        ended.result.unwrap();
        assert_eq!(asked, [0]);
    }
}

/// A daemon that is told to stop does not start what it must then finish.
#[test]
fn a_stop_after_the_download_loses_nothing_and_begins_no_post_install_program() {
    let release = Release::new(patterned(2 * MIB), Some(noise(9, 70_000)));
    let (_, ends) = release.ends();
    let machine = Machine::new(512, 2 * MIB, SlotB::Preferred);
    let (steps, seen) = steps();
    let attempt = machine.attempt(&release).with_steps(move |step, cancel| {
        steps.lock().unwrap().push(step);
        cancel.cancel();
    });
    let (ended, _) = attempt.run();
    assert!(matches!(ended.result, Err(UpdateError::Cancelled)));
    assert_eq!(*seen.lock().unwrap(), [Step::Verified]);
    assert_eq!(machine.boots(&machine.disk, &release), Ok(A));

    let (ended, asked) = machine.attempt(&release).run();
    ended.result.unwrap();
    assert_eq!(asked, [*ends.last().unwrap()], "the signature alone");
    machine.assert_updated(&release, "the second attempt");
}

/// It may have made the target active already, so the rest must follow.
#[test]
fn a_stop_during_the_post_install_program_comes_too_late() {
    let release = release(4);
    let machine = Machine::new(512, 4 * BLOCK, SlotB::Preferred);
    let (steps, seen) = steps();
    let attempt = machine.attempt(&release).with_steps(move |step, cancel| {
        steps.lock().unwrap().push(step);
        if step == Step::PostInstall {
            cancel.cancel();
        }
    });
    attempt.run().0.result.unwrap();
    machine.assert_updated(&release, "stopped too late");
    let order = [
        Step::Verified,
        Step::Recorded,
        Step::PostInstall,
        Step::Activating,
    ];
    assert_eq!(*seen.lock().unwrap(), order);
}

#[test]
fn an_update_of_which_something_cannot_be_recorded_does_not_become_active() {
    let release = release(4);
    for step in [Step::Recorded, Step::Activating] {
        let machine = Machine::new(512, 4 * BLOCK, SlotB::Preferred);
        let (ended, _) = machine.attempt(&release).failing_at(step).run();
        ended.result.unwrap_err();
        assert_eq!(machine.boots(&machine.disk, &release), Ok(A), "{step:?}");
        machine.install(&release).unwrap();
        machine.assert_updated(&release, "the second attempt");
    }
}

type Steps = Arc<Mutex<Vec<Step>>>;

/// A list to write, and the same to read.
fn steps() -> (Steps, Steps) {
    let steps = Steps::default();
    (Arc::clone(&steps), steps)
}

#[test]
fn a_delta_of_version_2_reads_the_running_system_and_goes_on_after_a_stop_or_power_cut() {
    let (release, old, kernel) = Release::delta_v2();
    let machine = || Machine::running(old.clone(), Some(&kernel), 4096, SlotB::Preferred);
    let (_, ends) = release.ends();
    let first = machine();
    let (writes, _) = requests(&first, &release);
    first.assert_updated(&release, "undisturbed");

    // Those that copy carry no data, so they are run as soon as the one before them.
    let boundaries: std::collections::BTreeSet<_> = ends.iter().collect();
    for &&end in &boundaries {
        let machine = machine();
        machine.attempt(&release).cancelled_at(end).run();
        let (ended, asked) = machine.attempt(&release).run();
        let context = format!("stopped at byte {end}");
        ended.result.expect(&context);
        assert_eq!(asked, [end], "{context}");
        machine.assert_updated(&release, &context);
    }
    for write in 0..writes {
        let context = format!("power cut at write {write}");
        let machine = machine();
        machine.disk.cut_power_after(write);
        machine.install(&release).expect_err(&context);
        let again = machine.power_cut(write);
        if again.boots(&again.disk, &release).expect(&context) == A {
            again.install(&release).expect(&context);
            again.assert_updated(&release, &context);
        }
    }

    // A machine that runs something else keeps it, and is told to take a full payload.
    let other = Machine::running(noise(77, old.len()), Some(&kernel), 4096, SlotB::Preferred);
    let error = other.install(&release).unwrap_err();
    assert_eq!(error.code(), 20, "{error}");
    assert_eq!(other.boots(&other.disk, &release), Ok(A));
    println!(
        "delta of version 2 with {} operations, {writes} writes",
        ends.len()
    );
}

/// Two images of 6 MiB: most of the second is in the first, some of it elsewhere, some
/// changed by a few bytes, some new. What does not begin at whole blocks is cut there by
/// operations that share a block.
fn moved_changed_and_new() -> (Vec<u8>, Vec<u8>) {
    let old = noise(21, 6 * MIB);
    let mut new = Vec::new();
    new.extend_from_slice(&old[..MIB]);
    new.extend_from_slice(&noise(22, MIB / 2 + 100));
    new.extend_from_slice(&old[3 * MIB + 7..4 * MIB + 3000]);
    new.extend_from_slice(&old[2 * MIB..3 * MIB]);
    new.extend_from_slice(&vec![0; 200 * BLOCK]);
    new.extend_from_slice(&patterned(MIB / 2));
    let rest = 6 * MIB - new.len();
    new.extend_from_slice(&old[old.len() - rest..]);
    for place in (4 * MIB + 11..6 * MIB).step_by(100_003) {
        new[place] ^= 0x40;
    }
    (old, new)
}

#[test]
fn a_real_delta_goes_on_after_any_operation_and_ends_in_the_same_bytes() {
    let (old, new) = moved_changed_and_new();
    let release = Release::delta_between(&old, new, payload::Release::default(), None);
    let operations = release.operations();
    let kinds: std::collections::BTreeSet<_> = operations.iter().map(|op| op.name()).collect();
    println!(
        "{} operations {kinds:?} in {} bytes",
        operations.len(),
        release.payload.len()
    );
    assert!(kinds.len() >= 3 && operations.len() >= 6);
    let machine = Machine::running(old, None, 4096, SlotB::Preferred);

    // Stopped, as by a signal, where the data of an operation ends.
    let (_, ends) = release.ends();
    for end in ends.iter().collect::<std::collections::BTreeSet<_>>() {
        let machine = machine.killed();
        machine.attempt(&release).cancelled_at(*end).run();
        let (ended, asked) = machine.attempt(&release).run();
        let context = format!("stopped at byte {end}");
        ended.result.expect(&context);
        assert_eq!(asked, [*end], "{context}");
        machine.assert_updated(&release, &context);
    }

    // Killed before each write: also between operations without data, and within one.
    let killed = Arc::new(Mutex::new(Vec::new()));
    let watched = machine.killed();
    let watcher = {
        let (watched, killed) = (watched.clone(), Arc::clone(&killed));
        move |write| killed.lock().unwrap().push((write, watched.killed()))
    };
    let (ended, _) = watched.attempt(&release).watched_by(watcher).run();
    ended.result.unwrap();
    watched.assert_updated(&release, "undisturbed");
    let killed = std::mem::take(&mut *killed.lock().unwrap());
    assert!(killed.len() >= operations.len());
    let (mut resumed, kills) = (0, killed.len());
    for (write, machine) in killed {
        let context = format!("killed before write {write}");
        assert_eq!(machine.boots(&machine.disk, &release), Ok(A), "{context}");
        let (ended, _) = machine.attempt(&release).run();
        ended.result.expect(&context);
        machine.assert_updated(&release, &context);
        resumed += u32::from(ended.resumed);
    }
    println!("killed {kills} times, {resumed} went on");
    assert!(resumed > 0);
}

#[test]
fn a_changed_byte_of_the_running_system_is_found_before_its_operation_writes() {
    let (old, new) = moved_changed_and_new();
    let release = Release::delta_between(&old, new, payload::Release::default(), None);
    let mut read = 0;
    for operation in release.operations() {
        let Some(old_bytes) = operation.old_bytes() else {
            continue;
        };
        read += 1;
        let first = old_bytes.extents.iter().find_map(|extent| match extent {
            payload::Extent::Run { offset, .. } => Some(*offset),
            payload::Extent::Hole { .. } => None,
        });
        let place = usize::try_from(first.unwrap()).unwrap() + 1;
        let mut changed = old.clone();
        changed[place] ^= 1;
        let machine = Machine::running(changed, None, 4096, SlotB::Blank);
        let written = Arc::new(Mutex::new(0));
        let watcher = {
            let written = Arc::clone(&written);
            move |_| *written.lock().unwrap() += 1
        };
        let (ended, _) = machine.attempt(&release).watched_by(watcher).run();
        let error = ended.result.unwrap_err();
        let context = format!("operation {} reads byte {place}: {error}", operation.index);
        assert_eq!(error.code(), 20, "{context}");
        assert_eq!(
            deltas::judge(true, &error),
            Some(DeltaFailure::Hopeless),
            "{context}"
        );
        // Its own place in the target holds what was there before.
        let destination = operation
            .destination
            .iter()
            .find_map(|extent| match extent {
                payload::Extent::Run { offset, .. } => Some(*offset),
                payload::Extent::Hole { .. } => None,
            });
        let target = machine.slots.target.start + destination.unwrap();
        let untouched = &machine.older()[usize::try_from(destination.unwrap()).unwrap()..];
        assert!(
            machine.disk.holds(target + 4096, &untouched[4096..8192]),
            "{context}"
        );
        assert_eq!(machine.boots(&machine.disk, &release), Ok(A), "{context}");
    }
    println!("{read} operations that read the running system");
    assert!(read >= 3);
}

/// Most of it is where it was, but nowhere for long without a change: windows of several
/// MiB, each made out of as much of the old image, and little data for all of them.
fn changed_everywhere(len: usize) -> (Vec<u8>, Vec<u8>) {
    let old = noise(31, len);
    let mut new = old.clone();
    for place in (1000..len).step_by(3000) {
        new[place] ^= 0x40;
    }
    (old, new)
}

#[test]
fn operations_on_their_way_are_bounded_by_the_memory_that_they_take() {
    const MOST: u64 = 32 << 20;
    let (old, new) = changed_everywhere(24 * MIB);
    let release = Release::delta_between(&old, new, payload::Release::default(), None);
    let image: Arc<dyn payload::Image> = Arc::new(machine::file_of(&old));
    let encoders = Arc::new(payload::recompress::Encoders::carried());
    let mut decoders = super::decoders::Decoders::new(2, &encoders);
    let mut on_their_way = std::collections::VecDeque::new();
    let (mut largest, mut held_back) = (0, 0);
    for pending in release.pending() {
        while !decoders.has_room_for(&pending.operation) {
            held_back += u32::from(on_their_way.len() < 4);
            decoders.pop().unwrap();
            on_their_way.pop_front();
        }
        let needed = payload::memory_needed(&pending.operation);
        largest = largest.max(needed);
        on_their_way.push_back(needed);
        decoders.push(pending, Some(Arc::clone(&image)));
        let all: u64 = on_their_way.iter().sum();
        assert!(on_their_way.len() == 1 || all <= MOST, "{on_their_way:?}");
    }
    println!("the largest operation takes {largest} bytes, {held_back} waited for memory");
    assert!(held_back > 0 && largest > 20 << 20);
}

/// However little is downloaded: the kernel is left with a bounded number of pages.
#[test]
fn a_small_delta_of_a_large_image_is_synced_as_it_is_written() {
    let (old, mut new) = changed_everywhere(MIB);
    let unchanged = noise(32, 39 * MIB);
    let old = [unchanged.clone(), old].concat();
    new.splice(0..0, unchanged);
    let release = Release::delta_between(&old, new, payload::Release::default(), None);
    assert!(release.payload.len() < MIB);
    let machine = Machine::running(old, None, 4096, SlotB::Blank);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let watcher = {
        let (machine, seen) = (machine.clone(), Arc::clone(&seen));
        move |write| seen.lock().unwrap().push((write, machine.disk.syncs()))
    };
    let (ended, _) = machine.attempt(&release).watched_by(watcher).run();
    ended.result.unwrap();
    let seen = seen.lock().unwrap();
    let (first, last) = (seen.first().unwrap(), seen.last().unwrap());
    println!(
        "{} writes, {} syncs among them",
        seen.len(),
        last.1 - first.1
    );
    assert_eq!(last.1 - first.1, 2, "40 MiB are two steps of 16 and a rest");
}

#[test]
fn what_a_machine_must_not_or_cannot_take_leaves_its_target_as_it_was() {
    let (old, new) = moved_changed_and_new();
    let facts = payload::Release {
        board: Some("arm64-usr".to_owned()),
        ..payload::Release::default()
    };
    let release = Release::delta_between(&old, new.clone(), facts, None);
    let machine = Machine::running(old.clone(), None, 4096, SlotB::Preferred);
    let before = machine.disk.to_bytes();
    let attempt = machine.attempt(&release).planned(|plan| {
        plan.circumstances.board = "amd64-usr".to_owned();
    });
    let error = attempt.run().0.result.unwrap_err();
    assert!(
        matches!(error, UpdateError::ReleaseRefused { .. }),
        "{error}"
    );
    assert!(
        error.words().contains("board arm64-usr"),
        "{}",
        error.words()
    );
    assert_eq!(error.code(), 35);
    assert!(machine.disk.to_bytes() == before, "nothing was written");

    let encoder = Some("zstd/0.9.9/level=19");
    let needy = Release::delta_between(&old, new, payload::Release::default(), encoder);
    let error = machine.install(&needy).unwrap_err();
    assert!(error.to_string().contains("zstd/0.9.9/level=19"), "{error}");
    assert_eq!(deltas::judge(true, &error), Some(DeltaFailure::Hopeless));
    assert!(machine.disk.to_bytes() == before, "nothing was written");

    let (ended, _) = machine
        .attempt(&release)
        .planned(|plan| plan.circumstances.board = "arm64-usr".to_owned())
        .run();
    ended.result.expect("control: the right board");
}

/// Of the bytes written since the last commit any may be lost, and the record of this
/// boot is gone.
#[test]
fn after_a_power_cut_only_what_was_committed_is_not_downloaded_again() {
    const SIZE: usize = 36 * MIB;
    let release = Release::new(noise(3, SIZE), None);
    let (_, ends) = release.ends();
    let machine = Machine::new(4096, SIZE, SlotB::Blank);
    let cuts = Arc::new(Mutex::new(Vec::new()));
    let watcher = {
        let (machine, cuts) = (machine.clone(), Arc::clone(&cuts));
        move |write| {
            if [5, 15, 16, 31, 32, 35].contains(&write) {
                cuts.lock().unwrap().push((write, machine.power_cut(write)));
            }
        }
    };
    let (ended, _) = machine.attempt(&release).watched_by(watcher).run();
    ended.result.unwrap();
    let cuts = std::mem::take(&mut *cuts.lock().unwrap());
    assert_eq!(cuts.len(), 6, "one write for each operation");
    for (write, machine) in cuts {
        let context = format!("power cut before write {write}");
        assert_eq!(machine.boots(&machine.disk, &release), Ok(A), "{context}");
        let (ended, asked) = machine.attempt(&release).run();
        ended.result.expect(&context);
        let committed = match write {
            0..16 => 0,
            16..32 => ends[15],
            _ => ends[31],
        };
        assert_eq!(asked, [committed], "{context}");
        machine.assert_updated(&release, &context);
    }
}

#[test]
fn a_delta_in_place_goes_on_after_a_stop_and_starts_over_after_faults_and_power_cuts() {
    let (release, old, kernel) = Release::delta();
    let machine = || Machine::running(old.clone(), Some(&kernel), 4096, SlotB::Preferred);
    let (_, ends) = release.ends();
    let first = machine();
    let (writes, syncs) = requests(&first, &release);
    first.assert_updated(&release, "undisturbed");

    // All would take minutes.
    let some = |all: u64| (0..all).step_by(usize::try_from(all / 6).unwrap().max(1));
    for operation in some(u64::try_from(ends.len()).unwrap()) {
        let end = ends[usize::try_from(operation).unwrap()];
        let machine = machine();
        machine.attempt(&release).cancelled_at(end).run();
        let (ended, asked) = machine.attempt(&release).run();
        let context = format!("stopped after operation {operation}");
        ended.result.expect(&context);
        assert_eq!(asked, [end], "{context}");
        machine.assert_updated(&release, &context);
    }
    let places = some(writes)
        .map(|number| (Request::Write, number))
        .chain((0..syncs).map(|number| (Request::Sync, number)));
    for (request, number) in places {
        let context = format!("fault at {request:?} {number}");
        let machine = machine();
        match request {
            Request::Write => machine.disk.fail_write(number, Fault::Eio),
            Request::Sync => machine.disk.fail_sync(number, Fault::Eio),
        }
        machine.install(&release).expect_err(&context);
        machine.boots(&machine.disk, &release).expect(&context);
        machine.install(&release).expect(&context);
        machine.assert_updated(&release, &context);
    }
    for write in some(writes) {
        let context = format!("power cut at write {write}");
        let machine = machine();
        machine.disk.cut_power_after(write);
        machine.install(&release).expect_err(&context);
        let again = machine.power_cut(write);
        assert!(again.boots(&again.disk, &release).is_ok(), "{context}");
        if again.boots(&again.disk, &release) == Ok(A) {
            again.install(&release).expect(&context);
            again.assert_updated(&release, &context);
        }
    }
    println!(
        "delta of {} operations, {writes} writes and {syncs} syncs",
        ends.len()
    );
}

/// Between two writes of one operation as well: what cannot be repeated starts over.
#[test]
fn an_installation_killed_before_any_write_is_finished_by_the_next() {
    let (delta, old, kernel) = Release::delta();
    let full = Release::new(patterned(3 * MIB), Some(noise(9, 70_000)));
    let (mut kills, mut resumed) = (0, 0);
    let verity = Release::with_verity(&patterned(200 * BLOCK), Some);
    for (name, release, every) in [
        ("full", full, 1),
        ("delta", delta, 4),
        ("verity", verity, 1),
    ] {
        let machine = Machine::running(old.clone(), Some(&kernel), 4096, SlotB::Preferred);
        let killed = Arc::new(Mutex::new(Vec::new()));
        let watcher = {
            let (machine, killed) = (machine.clone(), Arc::clone(&killed));
            move |write| {
                if write % every == 0 {
                    killed.lock().unwrap().push((write, machine.killed()));
                }
            }
        };
        let (ended, _) = machine.attempt(&release).watched_by(watcher).run();
        ended.result.unwrap();
        for (write, machine) in std::mem::take(&mut *killed.lock().unwrap()) {
            let context = format!("{name} killed before write {write}");
            assert_eq!(machine.boots(&machine.disk, &release), Ok(A), "{context}");
            let (ended, _) = machine.attempt(&release).run();
            ended.result.expect(&context);
            machine.assert_updated(&release, &context);
            kills += 1;
            resumed += u32::from(ended.resumed);
        }
    }
    println!("killed {kills} times, {resumed} went on from where they were, all updated");
    assert!(resumed > 0 && resumed < kills);
}

/// An administrator may have chosen the half-written slot between stop and resume.
#[test]
fn a_resumed_installation_marks_its_target_again_before_it_writes() {
    let release = Release::new(patterned(2 * MIB), None);
    let (_, ends) = release.ends();
    let machine = Machine::new(512, 2 * MIB, SlotB::Blank);
    machine.attempt(&release).cancelled_at(ends[0]).run();
    let mut gpt = Gpt::read(&*machine.disk).unwrap();
    let changes = gptprio::set_active(&gpt.slots(USR_TYPE), B, 1).unwrap();
    gpt.apply(&changes).unwrap();
    gpt.write(&*machine.disk).unwrap();
    assert!(machine.boots(&machine.disk, &release).is_err());

    let seen = Arc::new(Mutex::new(Vec::new()));
    let watcher = {
        let (machine, release, seen) = (machine.clone(), release.clone(), Arc::clone(&seen));
        move |_| {
            let medium = machine.disk.after_power_cut(|_| false);
            let boots = machine.boots(&medium, &release);
            seen.lock().unwrap().push(boots);
        }
    };
    let (ended, asked) = machine.attempt(&release).watched_by(watcher).run();
    ended.result.unwrap();
    assert_eq!(asked, [ends[0]]);
    assert_eq!(*seen.lock().unwrap(), [Ok(A)]);
}

#[test]
fn a_stopped_installation_whose_bytes_could_not_be_synced_starts_over() {
    let release = Release::new(patterned(2 * MIB), None);
    let (_, ends) = release.ends();
    let machine = Machine::new(512, 2 * MIB, SlotB::Blank);
    // The first two mark the target.
    machine.disk.fail_sync(2, Fault::Eio);
    let (ended, _) = machine.attempt(&release).cancelled_at(ends[0]).run();
    assert!(matches!(ended.result, Err(UpdateError::Cancelled)));
    let (ended, asked) = machine.attempt(&release).run();
    ended.result.unwrap();
    assert_eq!(asked, [0]);
    machine.assert_updated(&release, "the second attempt");
}

/// An image of noise, which takes one operation per MiB.
fn release(blocks: usize) -> Release {
    Release::new(noise(3, blocks * BLOCK), None)
}

/// Bytes that compress well and differ everywhere.
fn patterned(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    for (number, block) in bytes.chunks_mut(BLOCK).enumerate() {
        let number = u64::try_from(number).unwrap();
        block[..8].copy_from_slice(&(number + 1).to_le_bytes());
    }
    bytes
}

fn recorded<T>(machine: &Machine, operation: impl FnOnce() -> T) -> WriteLog {
    machine.disk.start_log();
    operation();
    machine.disk.take_log()
}

/// Every power cut during a recorded installation. When it has ended, the update must be
/// there to stay.
fn play(machine: &Machine, release: &Release, log: &WriteLog) -> Report {
    CrashStates::of(log)
        .exhaustive_up_to(EXHAUSTIVE)
        .random(RANDOM)
        .check(|crash| match machine.boots(crash.disk(), release)? {
            A if crash.syncs() == log.syncs() => Err("the update is not durable".to_owned()),
            _ => Ok(()),
        })
}

/// A machine and a release that show whether a mistake is caught.
fn control() -> (Machine, Release) {
    (Machine::new(512, 4 * BLOCK, SlotB::Preferred), release(1))
}

fn caught(mistake: &str, report: &Report) {
    println!(
        "{mistake}: {} of {} crash states are bad",
        report.failed(),
        report.states()
    );
    assert!(report.failed() > 0, "{mistake} is not caught");
}

/// The boot loader's part.
fn count_the_boot(disk: &FakeDisk) {
    let mut gpt = Gpt::read(disk).unwrap();
    if let Some(change) = select(&gpt.slots(USR_TYPE)).after_boot() {
        gpt.apply(&[change]).unwrap();
        gpt.write(disk).unwrap();
    }
}

/// How many writes and syncs an undisturbed installation asks for.
fn requests(machine: &Machine, release: &Release) -> (u64, u64) {
    let before = (machine.disk.writes(), machine.disk.syncs());
    machine.install(release).unwrap();
    (
        machine.disk.writes() - before.0,
        machine.disk.syncs() - before.1,
    )
}

/// Whether the running slot could boot again, were it not for the target.
fn a_boots(disk: &FakeDisk) -> bool {
    let gpt = Gpt::read(disk).unwrap();
    let slots = gpt.slots(USR_TYPE);
    let a: Vec<_> = slots.into_iter().filter(|slot| slot.number == A).collect();
    select(&a).slot().is_some()
}
