//! The facts of a boot, from the files of a machine.

use gptprio::USR_TYPE;
use locksmith::boot_facts::{SlotMark, boot_id, slot_mark, slot_type, version};

use crate::machine::Machine;

#[test]
fn the_running_slots_mark_is_read_from_its_disk() {
    for sector_size in [512, 4096] {
        for (a, expected) in [
            ((2, 0, true), SlotMark::Successful),
            ((2, 0, false), SlotMark::Unproven),
            ((2, 1, false), SlotMark::Unproven),
        ] {
            let machine = Machine::new(sector_size, a, (1, 0, true));
            let mark = slot_mark(&machine.root(), USR_TYPE).unwrap();
            assert_eq!(mark, expected, "{sector_size} {a:?}");
        }
    }
}

#[test]
fn without_slots_nothing_has_to_be_marked_and_a_broken_table_is_an_error() {
    let machine = Machine::updated();
    let mark = || slot_mark(&machine.root(), USR_TYPE);
    let other = "0fc63daf-8483-4772-8e79-3d69d8477de4".parse().unwrap();
    assert_eq!(
        slot_mark(&machine.root(), other).unwrap(),
        SlotMark::NoSlots
    );

    let mut table = std::fs::read(machine.path("/dev/sda")).unwrap();
    for header in [512, table.len() - 512] {
        table[header + 20] ^= 1;
    }
    machine.write("/dev/sda", &table);
    let error = mark().unwrap_err();
    assert!(error.to_string().ends_with("dev/sda"), "{error}");
    // No table at all, as on a disk of another kind.
    machine.write("/dev/sda", vec![0; table.len()]);
    assert_eq!(mark().unwrap(), SlotMark::NoSlots);
    // A system from the network or in a container.
    machine.write(
        "/proc/self/mountinfo",
        "22 1 0:21 / / rw - overlay overlay rw\n",
    );
    assert_eq!(mark().unwrap(), SlotMark::NoSlots);
}

#[test]
fn the_updater_says_which_partitions_are_slots() {
    let machine = Machine::updated();
    let found = || slot_type(&machine.root());
    let path = "/etc/update-engine/update.conf";
    assert_eq!(found().unwrap(), USR_TYPE);
    let other = "c95dc21a-df0e-4340-8d7b-26cbfa9a03e0";
    for (content, expected) in [
        (
            format!("SLOT_TYPE_GUID={}\n", other.to_uppercase()),
            Some(other.parse().unwrap()),
        ),
        (
            format!("GROUP=x\nSLOT_TYPE_GUID=\"{other}\""),
            Some(other.parse().unwrap()),
        ),
        ("SLOT_TYPE_GUID=\n".to_owned(), Some(USR_TYPE)),
        ("#SLOT_TYPE_GUID=x\n".to_owned(), Some(USR_TYPE)),
        ("SLOT_TYPE_GUID=usr\n".to_owned(), None),
    ] {
        machine.write(path, &content);
        assert_eq!(found().ok(), expected, "{content}");
    }
}

#[test]
fn the_version_is_the_updaters_where_it_has_one() {
    let machine = Machine::updated();
    let found = || version(&machine.root()).unwrap();
    assert_eq!(found(), None);
    for (path, content, expected) in [
        ("/usr/lib/os-release", "ID=x\nVERSION_ID=1.0.0\n", "1.0.0"),
        ("/etc/os-release", "VERSION_ID=\"1.0.1\"\n", "1.0.1"),
        (
            "/usr/share/coreos/release",
            "COREOS_RELEASE_VERSION=2.0.0\n",
            "2.0.0",
        ),
        (
            "/usr/share/flatcar/release",
            "FLATCAR_RELEASE_BOARD=b\n",
            "2.0.0",
        ),
        (
            "/usr/share/flatcar/release",
            "FLATCAR_RELEASE_VERSION=3.0.0\n",
            "3.0.0",
        ),
    ] {
        machine.write(path, content);
        assert_eq!(found().as_deref(), Some(expected), "{path}");
    }
    machine.write("/etc/os-release", "x".repeat(1 << 20));
    machine.remove("/usr/share/flatcar/release");
    machine.remove("/usr/share/coreos/release");
    let error = version(&machine.root()).unwrap_err();
    assert_eq!(error.to_string(), "cannot read /etc/os-release");
}

#[test]
fn a_boot_has_an_id_or_there_is_an_error() {
    let machine = Machine::updated();
    let path = "/proc/sys/kernel/random/boot_id";
    assert_eq!(boot_id(&machine.root()).unwrap_err().path, path);
    machine.write(path, "11111111-2222-4333-8444-555555555555\n");
    assert_eq!(
        boot_id(&machine.root()).unwrap(),
        "11111111-2222-4333-8444-555555555555"
    );
    assert!(
        !boot_id(&gptprio::machine::Root::system())
            .unwrap()
            .is_empty()
    );
}
