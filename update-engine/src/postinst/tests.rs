use super::testing::FakePostInstall;
use super::*;
use crate::platform::Discovery;
use crate::platform::child::write_program;
use gptprio::USR_TYPE;
use gptprio::testing::{FakeDisk, Layout};
use std::os::unix::fs::FileExt;

const SLOT: u64 = 8 << 20;
const LIMIT: Duration = Duration::from_secs(60);

/// A machine in a folder, with a disk image whose slot B is the target.
struct Machine {
    dir: tempfile::TempDir,
    target: Slot,
}

impl Machine {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::two_slots_of(SLOT);
        let disk = FakeDisk::new(512, layout.disk_len(512));
        layout.write_to(&disk);
        let image = dir.path().join("disk.img");
        fs::write(&image, disk.to_bytes()).unwrap();
        let booted = "A".parse().unwrap();
        let discovery = Discovery::Image {
            disk: image,
            booted,
        };
        let slots = discovery.find(&Root::system(), USR_TYPE).unwrap();
        Self {
            dir,
            target: slots.target,
        }
    }

    /// With a file system that has this program as `/postinst`, if any, in the target.
    fn with(make: MakeFileSystem, script: Option<&str>) -> Self {
        let machine = Self::new();
        let content = machine.dir.path().join("content");
        fs::create_dir_all(content.join("share")).unwrap();
        if let Some(script) = script {
            write_program(
                &content.join("postinst"),
                0o755,
                &format!("#!/bin/sh\n{script}\n"),
            );
        }
        let image = machine.dir.path().join("slot.img");
        make(&content, &image);
        machine.fill(&fs::read(image).unwrap());
        machine
    }

    fn fill(&self, bytes: &[u8]) {
        let disk = fs::OpenOptions::new()
            .write(true)
            .open(&self.target.disk)
            .unwrap();
        disk.write_all_at(bytes, self.target.start).unwrap();
    }

    fn target_bytes(&self) -> Vec<u8> {
        let device = self.target.open_for_reading().unwrap();
        let mut bytes = vec![0; usize::try_from(SLOT).unwrap()];
        device.read_at(0, &mut bytes).unwrap();
        bytes
    }

    fn mount_point(&self) -> PathBuf {
        let folder = fs::canonicalize(self.dir.path()).unwrap();
        folder.join(MOUNT_POINT.trim_start_matches('/'))
    }

    fn is_mounted(&self) -> bool {
        let mounts = Mount::all(&Root::system()).unwrap();
        let place = self.mount_point();
        mounts
            .iter()
            .any(|mount| Path::new(&mount.mount_point) == place)
    }

    fn run(&self, timeout: Duration) -> Result<Outcome, PostInstallError> {
        let postinst =
            MountedPostInstall::new(&Root::at(self.dir.path()).unwrap(), &Settings::default());
        let result = postinst.run(&Job {
            target: &self.target,
            kernel: Some(Path::new("/boot/flatcar/vmlinuz-b")),
            pcr_policy: None,
            timeout,
        });
        assert!(!self.is_mounted(), "nothing stays mounted");
        result
    }

    /// The reason of a failure in words.
    fn failure(&self, timeout: Duration) -> String {
        self.run(timeout).unwrap_err().to_string()
    }
}

type MakeFileSystem = fn(&Path, &Path);

fn squashfs(content: &Path, image: &Path) {
    tool(
        Command::new("mksquashfs")
            .arg(content)
            .arg(image)
            .args(["-noappend", "-quiet"]),
    );
}

fn ext4(content: &Path, image: &Path) {
    let mut command = Command::new("mke2fs");
    command
        .args(["-q", "-t", "ext4", "-d"])
        .arg(content)
        .arg(image)
        .arg("8m");
    tool(&mut command);
}

/// As after a power cut of a machine that had it mounted: its journal waits for a replay.
fn ext4_that_was_cut_off(content: &Path, image: &Path) {
    ext4(content, image);
    tool(
        Command::new("debugfs")
            .args(["-w", "-R", "feature needs_recovery"])
            .arg(image),
    );
}

fn tool(command: &mut Command) {
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
}

/// Whether this test can mount. Says so when it cannot.
fn may_mount() -> bool {
    let result = may_mount_images();
    if let Err(reason) = result {
        eprintln!("skipped: {reason}");
    }
    result.is_ok()
}

#[test]
fn the_program_of_the_target_gets_device_kernel_and_a_small_environment() {
    if !may_mount() {
        return;
    }
    // Everything that it sees is told in words of failure, which are repeated.
    let script = "env | cut -d= -f1 | grep -v '^\\(_\\|PWD\\|SHLVL\\)$' | tr '\\n' ' '; echo\n\
        touch \"$(dirname \"$0\")/x\" 2>/dev/null || echo read-only\n\
        echo \"$0 $#\"; echo \"$1\" | tr -d 0-9; echo \"$2\"; exit 1";
    for make in [squashfs, ext4, ext4_that_was_cut_off] {
        let machine = Machine::with(make, Some(script));
        let before = machine.target_bytes();
        let words = machine.failure(LIMIT);
        let program = machine.mount_point().join("postinst");
        let expected = format!(
            "the post-install program ended with status 1: PATH\nread-only\n{} 2\n/dev/loop\n\
             KERNEL=/boot/flatcar/vmlinuz-b",
            program.display()
        );
        assert_eq!(
            words.replace("LD_LIBRARY_PATH ", "").replace(" \n", "\n"),
            expected
        );
        assert!(
            machine.target_bytes() == before,
            "mounting changed the image"
        );
    }
}

#[test]
fn the_exit_status_decides() {
    if !may_mount() {
        return;
    }
    let run = |script| Machine::with(squashfs, script).run(LIMIT);
    assert_eq!(run(Some("exit 0")).unwrap(), Outcome::Done);
    assert_eq!(run(Some("exit 3")).unwrap(), Outcome::BootedFromFirmwareB);
    assert_eq!(run(None).unwrap(), Outcome::NothingToRun);
    let failure = |script| Machine::with(squashfs, Some(script)).failure(LIMIT);
    assert_eq!(
        failure("echo no room on /boot >&2; exit 1"),
        "the post-install program ended with status 1: no room on /boot"
    );
    assert_eq!(
        failure("kill -9 $$"),
        "the post-install program was ended by signal 9"
    );
    let hanging = Machine::with(squashfs, Some("while :; do sleep 1; done"));
    assert_eq!(
        hanging.failure(Duration::from_millis(100)),
        "the post-install program took longer than 100ms"
    );
}

#[test]
fn a_target_without_a_file_system_is_refused() {
    if !may_mount() {
        return;
    }
    let machine = Machine::new();
    machine.fill(&[0x55; 128 << 10]);
    let words = machine.failure(LIMIT);
    let expected = format!(
        "cannot mount {}: mount ended with status 32: ",
        machine.target
    );
    assert!(words.starts_with(&expected), "{words}");
}

#[test]
fn what_a_killed_updater_left_mounted_is_taken_away() {
    if !may_mount() {
        return;
    }
    let machine = Machine::with(squashfs, Some("exit 0"));
    let place = machine.mount_point();
    fs::create_dir_all(&place).unwrap();
    for _ in 0..2 {
        tool(
            Command::new("mount")
                .args(["-t", "tmpfs", "tmpfs"])
                .arg(&place),
        );
    }
    assert!(machine.is_mounted());
    assert_eq!(machine.run(LIMIT).unwrap(), Outcome::Done);
}

#[test]
fn a_target_device_that_cannot_be_mounted_is_never_skipped() {
    let mut machine = Machine::new();
    let node = machine.dir.path().join("sdz4");
    fs::write(&node, vec![0; usize::try_from(SLOT).unwrap()]).unwrap();
    machine.target.node = Some(node);
    let words = machine.failure(LIMIT);
    assert!(words.starts_with("cannot mount slot B "), "{words}");
}

#[test]
fn journals_are_told_by_their_superblocks() {
    let table: [(u64, &[u8], Option<&str>); 6] = [
        (0x10040, b"_BHRfS_M", Some(BTRFS_NO_REPLAY)),
        (0, b"XFSB", Some(XFS_NO_REPLAY)),
        (0x438, &[0x53, 0xef], None),
        (0, b"hsqs", None),
        (0x10040, b"_BHRfS_X", None),
        (0, b"", None),
    ];
    for (place, magic, expected) in table {
        let disk = FakeDisk::new(512, 1 << 20);
        disk.write_at(place, magic).unwrap();
        assert_eq!(no_replay(&disk).unwrap(), expected, "{magic:?}");
    }
    let ext4 = FakeDisk::new(512, 1 << 20);
    ext4.write_at(0x438, &[0x53, 0xef]).unwrap();
    ext4.write_at(0x45c, &[0x3c]).unwrap();
    assert_eq!(no_replay(&ext4).unwrap(), Some(EXT_NO_REPLAY));
    assert_eq!(
        no_replay(&FakeDisk::new(512, 512)).unwrap(),
        None,
        "smaller than any superblock"
    );
}

#[test]
fn the_fake_remembers_what_it_was_told() {
    let machine = Machine::new();
    let fake = FakePostInstall::agreeing();
    let job = Job {
        target: &machine.target,
        kernel: Some(Path::new("/k")),
        pcr_policy: Some(Path::new("/p")),
        timeout: LIMIT,
    };
    assert_eq!(fake.run(&job).unwrap(), Outcome::Done);
    let disk = machine.target.disk.display().to_string();
    assert_eq!(
        fake.calls(),
        [[disk.as_str(), "KERNEL=/k", "PCR_POLICY=/p"]]
    );
}
