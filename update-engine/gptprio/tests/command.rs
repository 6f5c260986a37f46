//! The `gptprio` command as a person and a script see it.

#![allow(clippy::unwrap_used, reason = "a test may fail by panic")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;

use gptprio::testing::{FakeDisk, Layout};
use gptprio::{Access, Attributes, BlockDevice, FileDevice, Gpt, USR_TYPE};
use serde_json::Value;
use tempfile::TempDir;

const USR_A: &str = "7130c94a-213a-4e5a-8e26-6cce9662f132";
const USR_B: &str = "e03dd35c-7c2d-4a47-b3fe-27f15780a57c";

#[test]
fn show_prints_a_table_for_people() {
    let (_dir, disk) = two_slots();
    let shown = good("show DISK", &disk);
    let expected = "\
Disk DISK: 296 KiB, sectors of 512 bytes, GUID 00000000-1234-4678-9a9a-9a9a9a9a9a9a
Primary copy: valid
Backup copy: valid

 Number  Label       Start    Size  Priority  Tries  Successful
      1  EFI-SYSTEM     40  64 KiB         -      -           -
      3  USR-A         168  64 KiB         1      0           1  ◀ boots next
      4  USR-B         296  64 KiB         0      0           0
      9  ROOT          424  64 KiB         -      -           -

Next boot: USR-A: partition 3 has the highest priority of those that may boot; it was successful
";
    assert_eq!(shown, expected.replace("DISK", &disk.to_string_lossy()));
}

#[test]
fn show_prints_json_for_programs() {
    let (_dir, disk) = two_slots();
    good("set DISK USR-B -P 2 -T 3", &disk);
    let table: Value = serde_json::from_str(&good("show --json DISK", &disk)).unwrap();
    assert_eq!(table["healthy"], true);
    assert_eq!(table["primary"], "valid");
    assert_eq!(table["sector_size"], 512);
    assert_eq!(table["slot_type"], USR_TYPE.to_string());
    let slot = &table["partitions"][2];
    assert_eq!(slot["number"], 4);
    assert_eq!(slot["label"], "USR-B");
    assert_eq!(slot["unique_guid"], USR_B);
    assert_eq!(slot["is_slot"], true);
    assert_eq!(slot["attributes"], "0x0032000000000000");
    assert_eq!(slot["size_bytes"], 64 << 10);
    let next = &table["next"];
    assert_eq!(
        (&next["number"], &next["tries"]),
        (&slot["number"], &slot["tries"])
    );
    assert_eq!(next["tries_after_boot"], 2);
    assert_eq!(next["last_resort"], false);
}

#[test]
fn next_spends_one_try_and_falls_back_when_none_is_left() {
    let (_dir, disk) = two_slots();
    good("set DISK USR-B -P 2 -T 2", &disk);
    for (guid, tries_left) in [(USR_B, 1), (USR_B, 0), (USR_A, 0), (USR_A, 0)] {
        assert_eq!(good("next --dry-run DISK", &disk).trim(), guid);
        assert_eq!(good("next DISK", &disk).trim(), guid);
        assert_eq!(attributes(&disk, 4).tries(), tries_left);
    }
}

#[test]
fn a_dry_run_writes_nothing() {
    let (_dir, disk) = two_slots();
    good("set DISK USR-B -P 2 -T 2", &disk);
    let before = fs::read(&disk).unwrap();
    let next: Value = serde_json::from_str(&good("next --dry-run --json DISK", &disk)).unwrap();
    assert_eq!(next["unique_guid"], USR_B);
    assert_eq!(next["tries_after_boot"], 1);
    assert!(fs::read(&disk).unwrap() == before);
}

#[test]
fn next_warns_of_a_last_resort_and_fails_without_any_slot() {
    let (_dir, disk) = two_slots();
    good("set DISK USR-A -S 0", &disk);
    let output = run("next DISK", &disk);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), USR_A);
    assert!(stderr(&output).contains("no slot has tries left or was successful"));

    good("mark-unbootable DISK USR-A", &disk);
    let output = run("next DISK", &disk);
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    assert!(stderr(&output).contains("nothing to boot: no slot has a priority above 0"));
}

#[test]
fn partitions_are_named_by_number_label_or_guid() {
    for name in ["4", "USR-B", USR_B, &USR_B.to_uppercase()] {
        let (_dir, disk) = two_slots();
        good(&format!("set DISK {name} -P 3"), &disk);
        assert_eq!(attributes(&disk, 4).priority(), 3, "{name}");
    }
}

#[test]
fn a_label_that_names_two_partitions_is_refused() {
    let layout = Layout::empty()
        .partition(2, "USR", USR_TYPE, 4096, Attributes::default())
        .partition(5, "USR", USR_TYPE, 4096, Attributes::default());
    let (_dir, disk) = image(&layout, 512);
    let text = bad(1, "set DISK USR -P 1", &disk);
    assert!(
        text.contains("names partitions [2, 5]; use the number"),
        "{text}"
    );
}

#[test]
fn errors_tell_what_to_do_next_and_change_nothing() {
    let (_dir, disk) = two_slots();
    let before = fs::read(&disk).unwrap();
    for (status, command, words) in [
        (1, "set DISK 7 -P 1", "there is no partition 7"),
        (1, "set DISK 7 -P 1", "gptprio show lists"),
        (1, "set DISK nowhere -P 1", "no partition \"nowhere\""),
        (
            1,
            "mark-successful DISK 1",
            "partition 1 is not one of the slots",
        ),
        (1, "mark-successful DISK 1", "--type"),
        (1, "mark-unbootable DISK ROOT", "not one of the slots"),
        (1, "prioritize DISK 9", "not one of the slots"),
        (
            1,
            "next DISK --type 00000000-0000-0000-0000-000000000001",
            "nothing to boot",
        ),
        (2, "set DISK 3", "--priority"),
        (2, "set DISK 3 -P 16", "0..=15"),
        (2, "set DISK 3 -T -1", "error"),
        (2, "set DISK 3 -S 2", "0..=1"),
        (2, "set DISK -P 1", "which partition?"),
        (2, "mark-successful DISK", "which partition?"),
        (2, "prioritize DISK -f", "which partition?"),
        (2, "prioritize DISK -P 0 3", "1..=15"),
        (2, "show DISK --type usr", "not a guid of the form"),
        (2, "show", "DISK"),
        (2, "boot DISK", "unrecognized subcommand"),
    ] {
        let text = bad(status, command, &disk);
        assert!(text.contains(words), "{command}: {text}");
        assert!(fs::read(&disk).unwrap() == before, "{command}");
    }
}

#[test]
fn what_is_no_disk_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().join("empty.img");
    fs::write(&empty, "").unwrap();
    let noise = dir.path().join("noise.img");
    fs::write(&noise, vec![0x5a; 100_000]).unwrap();
    for (path, words) in [
        (dir.path().join("missing"), "No such file"),
        (
            dir.path().to_path_buf(),
            "neither a block device nor a file",
        ),
        (
            PathBuf::from("/dev/null"),
            "neither a block device nor a file",
        ),
        (empty, "no valid partition table"),
        (noise, "no valid partition table"),
    ] {
        for command in ["show DISK", "next DISK", "repair DISK", "set DISK 3 -P 1"] {
            let text = bad(1, command, &path);
            assert!(text.contains(words), "{command}: {text}");
            assert!(text.contains(&*path.to_string_lossy()), "{command}: {text}");
        }
    }
}

#[test]
fn a_broken_copy_is_shown_repaired_and_told() {
    for (place, name) in [(512, "primary"), (-512, "backup")] {
        for sector_size in [512, 4096] {
            let (_dir, disk) = image(&Layout::two_slots(), sector_size);
            let healthy = fs::read(&disk).unwrap();
            let mut broken = healthy.clone();
            let at = isize::try_from(sector_size).unwrap() / 512 * place;
            let at = at.rem_euclid(isize::try_from(broken.len()).unwrap());
            broken[usize::try_from(at).unwrap() + 40] ^= 1;
            fs::write(&disk, broken).unwrap();

            let output = run("show DISK", &disk);
            assert_eq!(output.status.code(), Some(0));
            let shown = String::from_utf8_lossy(&output.stdout).to_lowercase();
            let line = format!("{name} copy: broken: header checksum is");
            assert!(shown.contains(&line), "{shown}");
            assert!(stderr(&output).contains("run gptprio repair"));

            let told = stderr(&run("repair DISK", &disk));
            assert!(
                told.contains(&format!("repaired the {name} copy")),
                "{told}"
            );
            assert!(fs::read(&disk).unwrap() == healthy);
            let told = stderr(&run("repair DISK", &disk));
            assert!(told.contains("both copies are valid and equal"), "{told}");
        }
    }
}

#[test]
fn two_broken_copies_are_shown_and_left_alone() {
    let (_dir, disk) = two_slots();
    let mut bytes = fs::read(&disk).unwrap();
    let last = bytes.len() - 512;
    bytes[512 + 40] ^= 1;
    bytes[last + 40] ^= 1;
    fs::write(&disk, &bytes).unwrap();
    for command in ["show DISK", "repair DISK", "next DISK", "set DISK 3 -P 1"] {
        let text = bad(1, command, &disk);
        assert!(text.contains("(primary copy: header checksum"), "{text}");
        assert!(text.contains("restore a saved table"), "{text}");
        assert!(fs::read(&disk).unwrap() == bytes);
    }
}

#[test]
fn control_characters_in_a_label_do_not_reach_the_terminal() {
    let layout = Layout::empty().partition(
        1,
        "\u{1b}[2Jfake\nline",
        USR_TYPE,
        4096,
        Attributes::default(),
    );
    let (_dir, disk) = image(&layout, 512);
    let shown = good("show DISK", &disk);
    assert!(shown.contains("\u{fffd}[2Jfake\u{fffd}line"), "{shown}");
    let told = stderr(&run("set DISK 1 -P 1", &disk));
    assert!(!told.contains('\u{1b}'), "{told}");
}

#[test]
fn reading_goes_on_while_another_program_writes() {
    let (_dir, disk) = two_slots();
    let _writer = FileDevice::open(&disk, Access::ReadWrite).unwrap();
    good("show DISK", &disk);
    good("next --dry-run DISK", &disk);
}

#[test]
fn writers_at_the_same_time_lose_no_change() {
    let (_dir, disk) = two_slots();
    thread::scope(|scope| {
        for number in [1, 3, 4, 9] {
            let disk = &disk;
            scope.spawn(move || {
                for tries in 1..=4 {
                    good(&format!("set DISK {number} -T {tries}"), disk);
                }
            });
        }
    });
    for number in [1, 3, 4, 9] {
        assert_eq!(attributes(&disk, number).tries(), 4, "partition {number}");
    }
}

#[test]
fn the_node_of_a_partition_stands_for_its_disk_and_number() {
    let (_dir, image) = image(&Layout::two_slots().aligned_to(1 << 20), 512);
    let Some(disk) = PartitionedLoop::over(&image) else {
        println!("skipped: no loop device with partitions; run as root");
        return;
    };
    let node = PathBuf::from(format!("{}p4", disk.0.display()));
    good("set DISK -P 3 -T 1", &node);
    assert_eq!(attributes(&image, 4).priority(), 3);
    good("mark-successful DISK", &node);
    assert!(attributes(&image, 4).successful());
    assert!(good("show DISK", &node).contains("boots next"));
    assert_eq!(good("next DISK", &node).trim(), USR_B);
    // A partition that is named goes before the node.
    good("mark-unbootable DISK USR-A", &node);
    assert_eq!(attributes(&image, 3).priority(), 0);
}

/// Name, mode, device number and content.
type Entry = (String, usize, (usize, usize), Vec<u8>);

/// The entries of an archive, read as the kernel reads them.
fn unpack(archive: &[u8]) -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut at = 0;
    loop {
        let field = move |index: usize| {
            let digits = &archive[at + 6 + index * 8..][..8];
            usize::from_str_radix(str::from_utf8(digits).unwrap(), 16).unwrap()
        };
        assert_eq!(&archive[at..at + 6], b"070701");
        let (size, name_size) = (field(6), field(11));
        let name = &archive[at + 110..at + 110 + name_size];
        let (end, name) = name.split_last().unwrap();
        assert_eq!(*end, 0);
        let start = (at + 110 + name_size).next_multiple_of(4);
        let name = String::from_utf8(name.to_vec()).unwrap();
        let content = archive[start..start + size].to_vec();
        at = (start + size).next_multiple_of(4);
        if name == "TRAILER!!!" {
            assert_eq!(at, archive.len());
            return entries;
        }
        entries.push((name, field(1), (field(9), field(10)), content));
    }
}

#[test]
fn an_initramfs_holds_the_selector_its_modules_in_order_and_its_settings() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    for (name, content) in [
        ("init", "program"),
        ("b.ko", "B"),
        ("a.ko", "AA"),
        ("conf", "wait = 1"),
    ] {
        fs::write(path(name), content).unwrap();
    }
    let output = dir.path().join("out.cpio");
    let command = format!(
        "initramfs DISK --init {} --module {} --module {} --settings {}",
        path("init"),
        path("b.ko"),
        path("a.ko"),
        path("conf")
    );
    good(&command, &output);
    let archive = fs::read(&output).unwrap();
    let entry = |name: &str, mode, device, content: &str| {
        (name.to_owned(), mode, device, content.as_bytes().to_vec())
    };
    assert_eq!(
        unpack(&archive),
        [
            entry("dev", 0o040_755, (0, 0), ""),
            entry("etc", 0o040_755, (0, 0), ""),
            entry("modules", 0o040_755, (0, 0), ""),
            entry("dev/console", 0o020_600, (5, 1), ""),
            entry("dev/null", 0o020_600, (1, 3), ""),
            entry("init", 0o100_755, (0, 0), "program"),
            entry("etc/gptprio.conf", 0o100_644, (0, 0), "wait = 1"),
            entry("modules/b.ko", 0o100_644, (0, 0), "B"),
            entry("modules/a.ko", 0o100_644, (0, 0), "AA"),
            entry("modules/list", 0o100_644, (0, 0), "b.ko\na.ko\n"),
        ]
    );
    good(&command, &output);
    assert_eq!(fs::read(&output).unwrap(), archive, "not the same again");

    fs::write(path("c.ko.xz"), "").unwrap();
    let refused = format!(
        "initramfs DISK --init {} --module {}",
        path("init"),
        path("c.ko.xz")
    );
    assert!(bad(1, &refused, &output).contains("decompressed first"));
    let missing = format!("initramfs DISK --init {}", path("nothing"));
    assert!(bad(1, &missing, &output).contains("cannot read"));
    assert_eq!(fs::read(&output).unwrap(), archive, "touched");
}

#[test]
fn help_teaches() {
    let help = good("--help", Path::new(""));
    for word in [
        "DISK",
        "PARTITION",
        "label",
        "Exit status",
        "mark-unbootable",
    ] {
        assert!(help.contains(word), "{word}");
    }
}

fn two_slots() -> (TempDir, PathBuf) {
    image(&Layout::two_slots(), 512)
}

fn image(layout: &Layout, sector_size: u32) -> (TempDir, PathBuf) {
    let disk = FakeDisk::new(sector_size, layout.disk_len(sector_size));
    layout.write_to(&disk);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    fs::write(&path, disk.to_bytes()).unwrap();
    (dir, path)
}

fn attributes(disk: &Path, number: u32) -> Attributes {
    let device = FileDevice::open(disk, Access::ReadOnly).unwrap();
    assert!(!device.is_empty());
    let gpt = Gpt::read(&device).unwrap();
    gpt.partition(number).unwrap().attributes
}

/// `DISK` stands for the path of the disk.
fn run(command: &str, disk: &Path) -> Output {
    let mut program = Command::new(env!("CARGO_BIN_EXE_gptprio"));
    for word in command.split_whitespace() {
        match word {
            "DISK" => program.arg(disk),
            word => program.arg(word),
        };
    }
    program.output().unwrap()
}

/// The stdout of a command that must succeed.
fn good(command: &str, disk: &Path) -> String {
    let output = run(command, disk);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{command}: {}",
        stderr(&output)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// The stderr of a command that must fail, with nothing on stdout.
fn bad(status: i32, command: &str, disk: &Path) -> String {
    let output = run(command, disk);
    assert_eq!(output.status.code(), Some(status), "{command}");
    assert!(output.stdout.is_empty(), "{command}");
    stderr(&output)
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A loop device whose partitions have nodes.
struct PartitionedLoop(PathBuf);

impl PartitionedLoop {
    /// `None` where the kernel or the rights for it are missing.
    fn over(image: &Path) -> Option<PartitionedLoop> {
        let output = tool("losetup")
            .args(["--find", "--show"])
            .arg(image)
            .output()
            .ok()?;
        let device = String::from_utf8(output.stdout).ok()?;
        if !output.status.success() {
            return None;
        }
        let device = PartitionedLoop(PathBuf::from(device.trim()));
        let added = tool("partx").arg("-a").arg(&device.0).status().ok()?;
        added.success().then_some(device)
    }
}

impl Drop for PartitionedLoop {
    fn drop(&mut self) {
        let _ = tool("partx").arg("-d").arg(&self.0).status();
        let _ = tool("losetup").arg("-d").arg(&self.0).status();
    }
}

/// Tools for administrators are not on everybody's path.
fn tool(name: &str) -> Command {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(name);
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    command
}
