//! A machine made of plain files: kernel tables, a disk with two slots, and
//! what a boot loader finds in `/boot`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use gptprio::machine::Root;
use gptprio::testing::{FakeDisk, Layout};
use gptprio::{Access, Attributes, FileDevice, Gpt, USR_TYPE};
use tempfile::TempDir;

pub(crate) const A: &str = "7130c94a-213a-4e5a-8e26-6cce9662f132";
pub(crate) const B: &str = "e03dd35c-7c2d-4a47-b3fe-27f15780a57c";

/// Priority, tries, successful.
pub(crate) type Bits = (u8, u8, bool);

fn attributes((priority, tries, successful): Bits) -> Attributes {
    Attributes::default()
        .with_priority(priority)
        .with_tries(tries)
        .with_successful(successful)
}

pub(crate) struct Machine {
    folder: TempDir,
}

impl Machine {
    /// Runs from slot A, partition 3 of `/dev/sda`, through a mapping as for
    /// verity; slot B is partition 4.
    pub(crate) fn new(sector_size: u32, a: Bits, b: Bits) -> Self {
        let machine = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        let layout = Layout::empty()
            .partition(3, "USR-A", USR_TYPE, 64 << 10, attributes(a))
            .partition(4, "USR-B", USR_TYPE, 64 << 10, attributes(b));
        let disk = FakeDisk::new(sector_size, layout.disk_len(sector_size));
        layout.write_to(&disk);
        machine.write("/dev/sda", disk.to_bytes());

        let start = Gpt::read(&disk).unwrap().partition(3).unwrap().first_lba;
        let start = start * u64::from(sector_size) / 512;
        let partition = "/sys/devices/block/sda/sda3";
        machine.write(&format!("{partition}/partition"), "3\n");
        machine.write(&format!("{partition}/start"), format!("{start}\n"));
        machine.link(partition, "/sys/class/block/sda3");
        machine.link(
            "/sys/class/block/sda3",
            "/sys/devices/block/dm-0/slaves/sda3",
        );
        machine.link("/sys/devices/block/dm-0", "/sys/dev/block/252:0");
        machine.write(
            "/proc/self/mountinfo",
            "36 35 252:0 / /usr ro,relatime shared:1 - btrfs /dev/mapper/usr ro\n",
        );
        machine.write(
            "/proc/cmdline",
            format!("BOOT_IMAGE=/flatcar/vmlinuz-a verity.usr=PARTUUID={A} quiet\n"),
        );
        machine.write("/boot/flatcar/vmlinuz-a", "kernel of A");
        machine.write("/boot/flatcar/vmlinuz-b", "kernel of B");
        machine
    }

    /// After an update of B: one try, the first to boot.
    pub(crate) fn updated() -> Self {
        Self::new(512, (1, 0, true), (2, 1, false))
    }

    pub(crate) fn root(&self) -> Root {
        Root::at(self.folder.path()).unwrap()
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path.trim_start_matches('/'))
    }

    pub(crate) fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    pub(crate) fn remove(&self, path: &str) {
        fs::remove_file(self.path(path)).unwrap();
    }

    fn link(&self, target: &str, path: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
    }

    /// The bits of slots A and B.
    pub(crate) fn bits(&self) -> [Bits; 2] {
        let device = FileDevice::open(self.path("/dev/sda"), Access::ReadOnly).unwrap();
        let gpt = Gpt::read(&device).unwrap();
        assert!(gpt.health().is_good(), "{:?}", gpt.health());
        [3, 4].map(|number| {
            let bits = gpt.partition(number).unwrap().attributes;
            (bits.priority(), bits.tries(), bits.successful())
        })
    }

    /// What another program makes of slot B.
    pub(crate) fn set_b(&self, bits: Bits) {
        let device = FileDevice::open(self.path("/dev/sda"), Access::ReadWrite).unwrap();
        let mut gpt = Gpt::read(&device).unwrap();
        gpt.set_attributes(4, attributes(bits)).unwrap();
        gpt.write(&device).unwrap();
    }
}
