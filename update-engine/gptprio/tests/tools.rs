//! Agreement with `sgdisk` (Debian package gdisk) and `cgpt` (package cgpt). A test whose
//! tool is missing says so and passes.

#![allow(clippy::unwrap_used, reason = "a test may fail by panic")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use gptprio::testing::{FakeDisk, Layout};
use gptprio::{Attributes, Guid};
use serde_json::Value;
use tempfile::TempDir;

/// What a person does to a disk, in this order.
const COMMANDS: [&str; 16] = [
    "set DISK 3 -P 1 -T 0 -S 1",
    "mark-unbootable DISK USR-B",
    "set DISK e03dd35c-7c2d-4a47-b3fe-27f15780a57c --tries 1 --successful 0",
    "prioritize DISK 4",
    "next DISK",
    "mark-successful DISK 4",
    "repair DISK",
    "set DISK 9 -P 15 -T 15 -S 1",
    "set DISK 1 -P 7",
    "prioritize DISK USR-A -P 15",
    "prioritize DISK -f USR-B",
    "set DISK 3 -T 15 -S 0",
    "next DISK --json",
    "mark-unbootable DISK 3",
    "mark-successful DISK 3",
    "prioritize DISK -P 3",
];

#[test]
fn other_tools_agree_after_every_command_on_512_byte_sectors() {
    if missing("sgdisk") || missing("cgpt") {
        return;
    }
    let (_dir, image) = image(512);
    agree(&image);
    for command in COMMANDS {
        gptprio(command, &image);
        agree(&image);
    }
}

#[test]
fn other_tools_agree_after_every_command_on_4096_byte_sectors() {
    if missing("sgdisk") {
        return;
    }
    let (_dir, image) = image(4096);
    let Some(device) = LoopDevice::over(&image) else {
        println!("skipped: no loop device with 4096-byte sectors; run as root");
        return;
    };
    agree(&device.0);
    for command in COMMANDS {
        gptprio(command, &device.0);
        agree(&device.0);
    }
}

#[test]
fn both_tools_agree_after_a_repair_of_either_copy() {
    if missing("sgdisk") || missing("cgpt") {
        return;
    }
    let (_dir, image) = image(512);
    let healthy = fs::read(&image).unwrap();
    let last = healthy.len() - 512;
    for place in [512, 1024, last - 32 * 512, last] {
        let mut broken = healthy.clone();
        broken[place..place + 512].fill(0xa5);
        fs::write(&image, broken).unwrap();
        gptprio("repair DISK", &image);
        assert!(fs::read(&image).unwrap() == healthy, "{place}");
        agree(&image);
    }
}

#[test]
fn set_writes_the_very_bytes_that_cgpt_writes() {
    if missing("cgpt") {
        return;
    }
    for (options, cgpt_options) in [
        ("3 -P 1 -T 0 -S 1", "-i 3 -P 1 -T 0 -S 1"),
        ("4 -P 2 -T 1 -S 0", "-i 4 -P 2 -T 1 -S 0"),
        ("9 -P 15 -T 15 -S 1", "-i 9 -P 15 -T 15 -S 1"),
    ] {
        let (_ours, our_image) = image(512);
        let (_theirs, their_image) = image(512);
        gptprio(&format!("set DISK {options}"), &our_image);
        tool("cgpt", &format!("add {cgpt_options} DISK"), &their_image);
        assert!(
            fs::read(our_image).unwrap() == fs::read(their_image).unwrap(),
            "{options}"
        );
    }
}

#[test]
fn prioritize_writes_the_very_bytes_that_cgpt_writes() {
    if missing("cgpt") {
        return;
    }
    // The cgpt of Debian prioritizes partitions of this type alone.
    let kernel = "fe3a2a5d-4f32-41a7-b725-accc3285a309";
    let kernel_type: Guid = kernel.parse().unwrap();
    let mut cases = 0;
    for seed in 0_u64..12 {
        let mut layout = Layout::empty();
        for number in 1..=6_u32 {
            // Small numbers make equals likely; a few zeros and fifteens.
            let mixed = (seed * 6 + u64::from(number)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 60;
            let priority = [0, 0, 1, 1, 2, 3, 4, 15][usize::try_from(mixed % 8).unwrap()];
            let attributes = Attributes::default().with_priority(priority).with_tries(5);
            layout = layout.partition(number, "KERN", kernel_type, 4096, attributes);
        }
        for (options, cgpt_options) in [
            ("", ""),
            ("2", "-i 2"),
            ("5 -f", "-i 5 -f"),
            ("1 -P 2", "-i 1 -P 2"),
            ("6 -f -P 15", "-i 6 -f -P 15"),
            ("-P 9", "-P 9"),
        ] {
            let (_ours, our_image) = image_of(&layout, 512);
            let (_theirs, their_image) = image_of(&layout, 512);
            let command = format!("prioritize DISK {options} --type {kernel}");
            gptprio(&command, &our_image);
            tool(
                "cgpt",
                &format!("prioritize {cgpt_options} DISK"),
                &their_image,
            );
            assert!(
                fs::read(our_image).unwrap() == fs::read(their_image).unwrap(),
                "{command}, seed {seed}"
            );
            cases += 1;
        }
    }
    println!("prioritize: {cases} tables equal to cgpt's");
}

#[test]
fn repair_writes_the_very_bytes_that_cgpt_writes() {
    if missing("cgpt") {
        return;
    }
    for sector_from_end in [0, 1, 32] {
        let (_ours, our_image) = image(512);
        let (_theirs, their_image) = image(512);
        for image in [&our_image, &their_image] {
            let mut bytes = fs::read(image).unwrap();
            let place = bytes.len() - 512 * (sector_from_end + 1);
            bytes[place..place + 512].fill(0);
            fs::write(image, bytes).unwrap();
        }
        gptprio("repair DISK", &our_image);
        tool("cgpt", "repair DISK", &their_image);
        assert!(fs::read(our_image).unwrap() == fs::read(their_image).unwrap());
    }
}

/// Post-install programs and scripts of images read what it prints.
#[test]
fn under_the_name_of_cgpt_it_answers_as_cgpt() {
    if missing("cgpt") {
        return;
    }
    let (_dir, image) = image(512);
    for command in [
        "add -i 3 -P 1 -T 0 -S 1 DISK",
        "add -i4 -S0 -T1 -P2 DISK",
        "repair -v DISK",
        "ad -i 0x4 -P 0xf -T 010 -S 0x0 DISK",
        "a -i 011 -P 017 DISK",
        "rep DISK",
        "add -i4 -S0 -T1 -P2 DISK",
    ] {
        let (_theirs, their_image) = image_copy(&image);
        assert_eq!(as_cgpt(command, &image), (true, String::new()), "{command}");
        tool("cgpt", command, &their_image);
        assert!(fs::read(&image).unwrap() == fs::read(their_image).unwrap());
    }
    for command in [
        "show -i 1 -t DISK",
        "show -i 3 -P DISK",
        "show -i3 -T DISK",
        "show DISK -i 3 -S",
        "show -i 4 -P DISK",
        "show -i 4 -T DISK",
        "show -i 4 -S DISK",
        "show -v -i 4 -u DISK",
        "show -i 4 -t DISK",
        "show -i 4 -l DISK",
        "show -i 4 -b DISK",
        "show -i 4 -s DISK",
        "show -i 3 -A DISK",
        "s -i 0x4 -P DISK",
        "sh -n -v -q -d -i 0x3 -T DISK",
        "show -i 011 -l DISK",
        "show -n -i 3 DISK",
        "show -q -n -i 4 DISK",
        "show -n -i 1 DISK",
        "f -l USR-B DISK",
        "find -t 5DFBF5F4-2848-4BAC-AA5E-0D9A20B745A6 DISK",
        "find -l USR-B DISK",
        "find -l USR-B -t 5dfbf5f4-2848-4bac-aa5e-0d9a20b745a6 DISK",
        "find -u E03DD35C-7C2D-4A47-B3FE-27F15780A57C DISK",
        // All of these are mistakes.
        "find -l USR-C DISK",
        "show -i 3 -P -T DISK",
        "show -P DISK",
        "show -i 0 -P DISK",
        "show -i 300 -P DISK",
        "show -i 300 DISK",
        "show -i 08 -P DISK",
        "show -i 4x -P DISK",
        "add -i 3 -P 0x10 DISK",
        "prioritize -P 0x0 DISK",
        "add -i 3 -P 16 DISK",
        "add -i 7 -P 1 DISK",
        "show /not/there",
        "repair",
        "conjure DISK",
    ] {
        let before = fs::read(&image).unwrap();
        assert_eq!(
            as_cgpt(command, &image),
            theirs(command, &image),
            "{command}"
        );
        assert!(fs::read(&image).unwrap() == before, "{command}");
    }
}

/// As the post-install program and the setgoodroot of Flatcar call it; the numbers are
/// those of its cgpt, whose slots the cgpt of Debian does not know.
#[test]
fn under_the_name_of_cgpt_it_does_what_flatcar_asks_for() {
    let (_dir, image) = image(512);
    let ask = |command: &str| {
        let (good, answer) = as_cgpt(command, &image);
        assert!(good, "{command}");
        answer
    };
    let slots = || {
        ["3", "4"].map(|number| {
            let fields = ["-P", "-T", "-S"];
            let answers = fields.map(|field| ask(&format!("show -i {number} {field} DISK")));
            answers.map(|answer| answer.trim().to_owned()).join("/")
        })
    };
    ask("add -i 3 -P 1 -T 0 -S 1 DISK");
    ask("add -i 4 -P 0 -T 0 -S 0 DISK");
    for command in [
        "repair DISK",
        "add -i 4 -S0 -T1 DISK",
        "prioritize -i 4 DISK",
    ] {
        ask(command);
    }
    assert_eq!(slots(), ["1/0/1", "2/1/0"]);
    assert!(ask("show DISK").contains("USR-B"));
    // The layout is that of `show -n -i`, which is compared above.
    let entry = ask("show -i 4 DISK");
    let [title, label, type_name, guid, attributes] = entry.lines().collect::<Vec<_>>()[..] else {
        panic!("{entry}");
    };
    let numbers = ask("show -n -i 4 DISK");
    let same: Vec<_> = numbers.lines().collect();
    assert_eq!([title, label, guid], [same[0], same[1], same[3]]);
    assert_eq!(type_name.trim(), "Type: Alias for coreos-rootfs");
    assert_eq!(attributes.trim(), "Attr: priority=2 tries=1 successful=0");
    assert_eq!(ask("p -i 0x4 DISK"), "");

    let guid = "e03dd35c-7c2d-4a47-b3fe-27f15780a57c\n";
    assert_eq!(ask("next DISK"), guid);
    assert_eq!(slots(), ["1/0/1", "2/0/0"]);
    ask("add -i 4 -S1 -T0 DISK");
    ask("prioritize -i 4 DISK");
    assert_eq!(slots(), ["1/0/1", "2/0/1"]);
    for alias in [
        "flatcar-usr",
        "flatcar-rootfs",
        "coreos-usr",
        "coreos-rootfs",
    ] {
        let found = ask(&format!("find -t {alias} DISK"));
        let node = |number| format!("{}{number}\n", image.display());
        assert_eq!(found, [node(3), node(4)].concat());
    }
}

fn image_copy(image: &Path) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    fs::copy(image, &path).unwrap();
    (dir, path)
}

/// Whether it went well, and what is on stdout.
fn as_cgpt(command: &str, disk: &Path) -> (bool, String) {
    use std::os::unix::process::CommandExt as _;
    let mut program = Command::new(env!("CARGO_BIN_EXE_gptprio"));
    program.arg0("/usr/bin/cgpt");
    answer(program, command, disk)
}

/// The same of the real one; of its failures the help is left out.
fn theirs(command: &str, disk: &Path) -> (bool, String) {
    let (good, answer) = answer(tool_command("cgpt"), command, disk);
    (good, if good { answer } else { String::new() })
}

fn answer(mut program: Command, command: &str, disk: &Path) -> (bool, String) {
    let words = command.split_whitespace();
    program.args(words.map(|word| match word {
        "DISK" => disk.as_os_str(),
        word => word.as_ref(),
    }));
    let output = program.output().unwrap();
    let code = output.status.code().unwrap();
    assert!(code <= 1, "{command}: {code}");
    (code == 0, String::from_utf8(output.stdout).unwrap())
}

/// Compares our table with those of the tools, partition by partition.
fn agree(disk: &Path) {
    let table: Value = serde_json::from_str(&gptprio("show DISK --json", disk)).unwrap();
    assert_eq!(table["healthy"], true);
    let check = tool("sgdisk", "-v DISK", disk);
    assert!(check.contains("No problems found"), "{check}");

    let rows = table["partitions"].as_array().unwrap();
    let numbers: Vec<u64> = rows
        .iter()
        .map(|row| row["number"].as_u64().unwrap())
        .collect();
    assert_eq!(numbers, [1, 3, 4, 9]);
    for row in rows {
        let number = &row["number"];
        let text = |field: &str| row[field].as_str().unwrap().to_lowercase();
        let theirs = tool("sgdisk", &format!("-i {number} DISK"), disk).to_lowercase();
        for line in [
            format!("attribute flags: {}", &text("attributes")[2..]),
            format!("unique guid: {}", text("unique_guid")),
            format!("guid code: {}", text("type_guid")),
            format!("first sector: {} ", row["first_sector"]),
            format!("last sector: {} ", row["last_sector"]),
            format!("partition name: '{}'", text("label")),
        ] {
            assert!(theirs.contains(&line), "{line} is not in {theirs}");
        }
        // cgpt reads 512-byte sectors only.
        if table["sector_size"] == 512 {
            let cgpt = |option: &str| {
                let answer = tool("cgpt", &format!("show -i {number} {option} DISK"), disk);
                answer.trim().to_lowercase()
            };
            assert_eq!(cgpt("-P"), row["priority"].to_string());
            assert_eq!(cgpt("-T"), row["tries"].to_string());
            let successful = row["successful"].as_bool().unwrap();
            assert_eq!(cgpt("-S"), u8::from(successful).to_string());
            assert_eq!(cgpt("-u"), text("unique_guid"));
            assert_eq!(cgpt("-l"), text("label"));
            assert_eq!(cgpt("-b"), row["first_sector"].to_string());
        }
    }
}

fn image(sector_size: u32) -> (TempDir, PathBuf) {
    image_of(&Layout::two_slots().aligned_to(1 << 20), sector_size)
}

fn image_of(layout: &Layout, sector_size: u32) -> (TempDir, PathBuf) {
    let disk = FakeDisk::new(sector_size, layout.disk_len(sector_size));
    layout.write_to(&disk);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    fs::write(&path, disk.to_bytes()).unwrap();
    (dir, path)
}

fn gptprio(command: &str, disk: &Path) -> String {
    run(Command::new(env!("CARGO_BIN_EXE_gptprio")), command, disk)
}

fn tool(name: &str, command: &str, disk: &Path) -> String {
    run(tool_command(name), command, disk)
}

/// The stdout of a program that must succeed. `DISK` stands for the disk.
fn run(mut program: Command, command: &str, disk: &Path) -> String {
    for word in command.split_whitespace() {
        match word {
            "DISK" => program.arg(disk),
            word => program.arg(word),
        };
    }
    let output = program.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// Tools for administrators are not on everybody's path.
fn tool_command(name: &str) -> Command {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(name);
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    command
}

fn missing(name: &str) -> bool {
    let missing = tool_command(name).arg("--help").output().is_err();
    if missing {
        println!("skipped: {name} is not installed");
    }
    missing
}

/// A loop device with 4096-byte sectors over an image.
struct LoopDevice(PathBuf);

impl LoopDevice {
    /// `None` where the kernel or the rights for it are missing.
    fn over(image: &Path) -> Option<LoopDevice> {
        let output = tool_command("losetup")
            .args(["--find", "--show", "--sector-size", "4096"])
            .arg(image)
            .output()
            .ok()?;
        let device = String::from_utf8(output.stdout).ok()?;
        output
            .status
            .success()
            .then(|| LoopDevice(PathBuf::from(device.trim())))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = tool_command("losetup").arg("-d").arg(&self.0).status();
    }
}
