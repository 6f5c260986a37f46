use super::*;
use gptprio::testing::{FakeDisk, Layout};
use gptprio::{Attributes, USR_TYPE};
use std::error::Error;
use std::os::unix::fs::symlink;

/// A machine made of plain files: sysfs, mount table, and disks as image files in `/dev`.
struct Machine {
    dir: tempfile::TempDir,
    mounts: String,
}

const DATA: &str = "0fc63daf-8483-4772-8e79-3d69d8477de4";

impl Machine {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            mounts: String::new(),
        }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path.trim_start_matches('/'))
    }

    fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// A device in sysfs; `parent` is its disk when it is a partition.
    fn device(&self, name: &str, number: &str, parent: Option<&str>) -> String {
        let dir = match parent {
            Some(disk) => format!("/sys/devices/block/{disk}/{name}"),
            None => format!("/sys/devices/block/{name}"),
        };
        self.write(&format!("{dir}/dev"), format!("{number}\n"));
        for link in [
            format!("/sys/class/block/{name}"),
            format!("/sys/dev/block/{number}"),
        ] {
            let link = self.path(&link);
            fs::create_dir_all(link.parent().unwrap()).unwrap();
            symlink(&dir, link).unwrap();
        }
        dir
    }

    /// A disk with this table and its partitions, as the kernel shows them. The major device number
    /// is 8 and the length of the name.
    fn disk(&self, name: &str, separator: &str, sector_size: u32, layout: &Layout) {
        let major = 8 + u64::try_from(name.len()).unwrap();
        self.device(name, &format!("{major}:0"), None);
        let disk = image_of(layout, sector_size);
        self.write(&format!("/dev/{}", name.replace('!', "/")), disk.to_bytes());
        for partition in Gpt::read(&disk).unwrap().partitions() {
            let number = partition.number;
            let dir = self.device(
                &format!("{name}{separator}{number}"),
                &format!("{major}:{number}"),
                Some(name),
            );
            self.write(&format!("{dir}/partition"), format!("{number}\n"));
            let start = partition.first_lba * u64::from(sector_size) / 512;
            self.write(&format!("{dir}/start"), format!("{start}\n"));
        }
    }

    /// A mapping over other devices, with its node.
    fn mapping(&self, name: &str, number: &str, slaves: &[&str]) {
        let dir = self.device(name, number, None);
        for slave in slaves {
            let link = self.path(&format!("{dir}/slaves/{slave}"));
            fs::create_dir_all(link.parent().unwrap()).unwrap();
            symlink(format!("/sys/class/block/{slave}"), link).unwrap();
        }
        self.write(&format!("/dev/{name}"), "");
    }

    fn loop_device(&self, name: &str, number: &str, file: &str, offset: u64) {
        let dir = self.device(name, number, None);
        self.write(&format!("{dir}/loop/backing_file"), format!("{file}\n"));
        self.write(&format!("{dir}/loop/offset"), format!("{offset}\n"));
    }

    fn mount(&mut self, number: &str, point: &str, kind: &str, source: &str) {
        let line = format!("36 35 {number} / {point} ro,relatime shared:1 - {kind} {source} ro\n");
        self.mounts.push_str(&line);
        self.write("/proc/self/mountinfo", &self.mounts);
    }

    fn discover(&self) -> Result<Slots, PlatformError> {
        Discovery::Mounted.find(&Root::at(self.dir.path()).unwrap(), USR_TYPE)
    }

    /// What was found, in words: disk, then source and target with node or place.
    fn found(&self) -> String {
        let slots = self.discover().map_err(|error| words(&error)).unwrap();
        let base = fs::canonicalize(self.dir.path()).unwrap();
        let on_machine = |path: &Path| format!("/{}", path.strip_prefix(&base).unwrap().display());
        let slot = |slot: &Slot| {
            let place = match &slot.node {
                Some(node) => on_machine(node),
                None => format!("@{}", slot.start),
            };
            format!("{}{} {place}", slot.letter, slot.number)
        };
        let (source, target) = (slot(&slots.source), slot(&slots.target));
        format!("{}: {source} > {target}", on_machine(&slots.disk))
    }

    fn refused(&self) -> String {
        words(&self.discover().unwrap_err())
    }
}

fn words(error: &dyn Error) -> String {
    let causes = std::iter::successors(error.source(), |&cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

fn image_of(layout: &Layout, sector_size: u32) -> FakeDisk {
    let disk = FakeDisk::new(sector_size, layout.disk_len(sector_size));
    layout.write_to(&disk);
    disk
}

#[test]
fn the_running_partition_is_found_whatever_disks_are_called() {
    let table = [
        ("sda", "", 512, "sda3", "/dev/sda: A3 @"),
        ("sda", "", 512, "sda4", "/dev/sda: B4 @"),
        ("nvme0n1", "p", 4096, "nvme0n1p3", "/dev/nvme0n1: A3 @"),
        ("mmcblk0", "p", 512, "mmcblk0p4", "/dev/mmcblk0: B4 @"),
        ("loop7", "p", 512, "loop7p3", "/dev/loop7: A3 @"),
        (
            "cciss!c0d0",
            "p",
            512,
            "cciss!c0d0p3",
            "/dev/cciss/c0d0: A3 @",
        ),
    ];
    for (disk, separator, sector_size, mounted, expected) in table {
        let mut machine = Machine::new();
        machine.disk(disk, separator, sector_size, &Layout::two_slots());
        let number = format!("{}:{}", 8 + disk.len(), mounted.chars().last().unwrap());
        machine.mount(&number, "/usr", "squashfs", &format!("/dev/{mounted}"));
        let found = machine.found();
        assert!(found.starts_with(expected), "{found}");
        let other = if expected.contains("A3") {
            "> B4 @"
        } else {
            "> A3 @"
        };
        assert!(found.contains(other), "{found}");
    }
}

#[test]
fn a_boot_partition_that_is_not_mounted_is_noticed() {
    let lacks = |machine: &Machine| {
        let root = Root::at(machine.dir.path()).unwrap();
        let slots = machine.discover().unwrap();
        Discovery::Mounted.lacks_boot_mount(&root, &slots).unwrap()
    };
    let mut machine = Machine::new();
    machine.disk("sda", "", 512, &Layout::two_slots());
    machine.mount("11:3", "/usr", "squashfs", "/dev/sda3");
    assert!(lacks(&machine));
    machine.mount("0:30", "/boot", "autofs", "systemd-1");
    assert!(lacks(&machine), "an automount that does not work");
    machine.mount("11:1", "/boot", "vfat", "/dev/sda1");
    assert!(!lacks(&machine));

    // Kernels of a disk without a boot partition are elsewhere.
    let mut machine = Machine::new();
    let slots = Layout::empty()
        .partition(3, "USR-A", USR_TYPE, 65536, Attributes::default())
        .partition(4, "USR-B", USR_TYPE, 65536, Attributes::default());
    machine.disk("sda", "", 512, &slots);
    machine.mount("11:3", "/usr", "squashfs", "/dev/sda3");
    assert!(!lacks(&machine));
}

#[test]
fn slots_have_their_own_nodes_where_these_exist() {
    let mut machine = Machine::new();
    machine.disk("sda", "", 512, &Layout::two_slots());
    machine.write("/dev/sda3", [7; 64 << 10]);
    machine.write("/dev/sda4", [9; 1 << 10]);
    machine.mount("11:3", "/usr", "ext4", "/dev/sda3");
    assert_eq!(machine.found(), "/dev/sda: A3 /dev/sda3 > B4 /dev/sda4");

    let slots = machine.discover().unwrap();
    let mut byte = [0];
    slots
        .source
        .open(Access::ReadOnly)
        .unwrap()
        .read_at(5, &mut byte)
        .unwrap();
    assert_eq!(byte, [7]);
    let error = words(&slots.target.open_for_writing().err().unwrap());
    assert!(
        error.contains("the kernel gives it 1024 bytes, the partition table 65536"),
        "{error}"
    );
}

#[test]
fn a_slot_without_a_node_is_a_window_of_its_disk() {
    let mut machine = Machine::new();
    machine.disk("sda", "", 512, &Layout::two_slots());
    machine.mount("11:3", "/usr", "ext4", "/dev/sda3");
    let slots = machine.discover().unwrap();
    {
        let target = slots.target.open_for_writing().unwrap();
        assert_eq!(target.len(), slots.target.size);
        target.write_at(0, b"first").unwrap();
        target.write_at(target.len() - 4, b"last").unwrap();
        assert!(
            target.write_at(target.len() - 3, b"last").is_err(),
            "not beyond its end"
        );
    }
    let disk = fs::read(&slots.disk).unwrap();
    let place = |offset: u64| usize::try_from(offset).unwrap();
    assert!(disk[place(slots.target.start)..].starts_with(b"first"));
    assert!(disk[..place(slots.target.start + slots.target.size)].ends_with(b"last"));
    Gpt::read(&slots.open_disk(Access::ReadOnly).unwrap()).unwrap();
}

#[test]
fn mappings_are_followed_down_to_the_partition() {
    let mut machine = Machine::new();
    machine.disk("sda", "", 512, &Layout::two_slots());
    machine.mapping("dm-0", "252:0", &["sda4"]);
    machine.mapping("dm-1", "252:1", &["dm-0"]);
    machine.mount("252:1", "/usr", "squashfs", "/dev/mapper/usr");
    assert!(machine.found().starts_with("/dev/sda: B4 "));
}

#[test]
fn btrfs_hides_its_device_number_so_its_node_is_followed() {
    let mut machine = Machine::new();
    machine.disk("sda", "", 512, &Layout::two_slots());
    machine.mapping("dm-0", "252:0", &["sda3"]);
    fs::create_dir_all(machine.path("/dev/mapper")).unwrap();
    symlink("../dm-0", machine.path("/dev/mapper/usr")).unwrap();
    machine.mount("0:33", "/usr", "btrfs", "/dev/mapper/usr");
    assert!(machine.found().starts_with("/dev/sda: A3 "));
}

#[test]
fn an_overlay_of_extension_images_is_looked_through() {
    let mut machine = Machine::new();
    machine.disk("sda", "", 512, &Layout::two_slots());
    machine.mount("11:4", "/usr", "squashfs", "/dev/sda4");
    machine.mount("0:40", "/usr", "overlay", "sysext");
    assert!(machine.found().starts_with("/dev/sda: B4 "));
}

#[test]
fn a_system_without_a_usr_of_its_own_runs_from_its_root() {
    let mut machine = Machine::new();
    machine.disk("sda", "", 512, &Layout::two_slots());
    machine.mount("11:3", "/", "ext4", "/dev/sda3");
    machine.mount("11:9", "/var", "ext4", "/dev/sda9");
    assert!(machine.found().starts_with("/dev/sda: A3 "));
}

#[test]
fn without_mountinfo_the_older_table_does() {
    let machine = Machine::new();
    machine.disk("sda", "", 512, &Layout::two_slots());
    machine.write(
        "/proc/mounts",
        "rootfs / rootfs rw 0 0\n/dev/sda3 /usr ext4 ro 0 0\n",
    );
    assert!(machine.found().starts_with("/dev/sda: A3 "));
}

#[test]
fn a_loop_device_over_an_image_is_found_by_where_it_begins() {
    let layout = Layout::two_slots();
    let disk = image_of(&layout, 512);
    let start = Gpt::read(&disk).unwrap().partition(4).unwrap().first_lba * 512;
    let mut machine = Machine::new();
    machine.write("/images/disk.img", disk.to_bytes());
    machine.loop_device("loop0", "7:0", "/images/disk.img", start);
    machine.mount("7:0", "/usr", "squashfs", "/dev/loop0");
    let found = machine.found();
    assert!(
        found.starts_with(&format!("/images/disk.img: B4 @{start} > A3 @")),
        "{found}"
    );
}

/// A slot of the usual type for tables of more than two.
fn slot(priority: u8, successful: bool) -> Attributes {
    Attributes::default()
        .with_priority(priority)
        .with_successful(successful)
}

#[test]
fn of_several_targets_the_one_whose_loss_costs_least_is_chosen() {
    let table: [(&[Attributes], u32); 4] = [
        // Partition 1 runs.
        (&[slot(3, true), slot(2, true), slot(1, true)], 3),
        (&[slot(3, true), slot(1, true), slot(2, false)], 3),
        (&[slot(3, true), slot(0, false), slot(0, false)], 3),
        (&[slot(3, true), slot(0, false), slot(1, true)], 2),
    ];
    for (attributes, expected) in table {
        let mut layout = Layout::empty();
        for (number, attributes) in (1..).zip(attributes) {
            layout = layout.partition(number, "", USR_TYPE, 4096, *attributes);
        }
        let gpt = Gpt::read(&image_of(&layout, 512)).unwrap();
        let choice = choose(&gpt, USR_TYPE, Booted::Letter(Letter::A)).unwrap();
        assert_eq!((choice.source.number, choice.target.number), (1, expected));
    }
}

#[test]
fn what_does_not_add_up_is_refused_with_what_was_looked_at() {
    let data = DATA.parse().unwrap();
    let one_slot = Layout::empty()
        .partition(3, "USR-A", USR_TYPE, 4096, slot(1, true))
        .partition(9, "ROOT", data, 4096, Attributes::default());
    let no_slots = Layout::empty().partition(1, "ROOT", data, 4096, Attributes::default());
    let twins = Layout::empty()
        .partition(3, "USR-A", USR_TYPE, 4096, slot(1, true))
        .partition(4, "USR-A", USR_TYPE, 4096, slot(1, true));
    let table = [
        (
            &no_slots,
            "11:1",
            "/dev/sda: no partition has the slot type 5dfbf5f4-",
        ),
        (&one_slot, "11:3", "/dev/sda: partition 3 is the only slot"),
        (
            &one_slot,
            "11:9",
            "/dev/sda: the system runs from partition 9 of type 0fc63daf-",
        ),
        (
            &twins,
            "11:3",
            "/dev/sda: partitions 3 and 4 are both slot A",
        ),
    ];
    for (layout, number, expected) in table {
        let mut machine = Machine::new();
        machine.disk("sda", "", 512, layout);
        machine.mount(number, "/usr", "ext4", "/dev/root");
        let error = machine.refused();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn kernel_and_table_must_agree_about_the_running_partition() {
    let mut machine = Machine::new();
    machine.disk("sda", "", 512, &Layout::two_slots());
    machine.mount("11:3", "/usr", "ext4", "/dev/sda3");
    machine.write("/sys/devices/block/sda/sda3/start", "2048\n");
    assert!(
        machine.refused().contains("partition 3 begins at byte"),
        "{}",
        machine.refused()
    );
    machine.write("/sys/devices/block/sda/sda3/partition", "5\n");
    assert!(
        machine
            .refused()
            .contains("runs from partition 5, which the table does not have")
    );
    machine.write("/sys/devices/block/sda/sda3/start", "x\n");
    assert!(
        machine
            .refused()
            .contains("sda3/start: 'x' is not a number"),
        "{}",
        machine.refused()
    );
}

#[test]
fn a_system_that_is_on_no_partition_is_refused_with_the_way_that_was_followed() {
    let usr = ("/usr", "squashfs");
    type Row<'a> = (&'a dyn Fn(&mut Machine), &'a str);
    let table: [Row<'_>; 8] = [
        (
            &|_| {},
            "/proc/self/mountinfo shows no block device at /usr or /",
        ),
        (
            &|machine| machine.mount("0:30", usr.0, "tmpfs", "tmpfs"),
            "/proc/self/mountinfo shows no block device at /usr or /",
        ),
        (
            &|machine| machine.mount("8:3", usr.0, usr.1, "/dev/root"),
            "no block device in /sys belongs to /dev/root, mounted at /usr",
        ),
        (
            &|machine| {
                machine.mapping("dm-0", "252:0", &["ram0"]);
                machine.device("ram0", "1:0", None);
                machine.mount("252:0", usr.0, usr.1, "/dev/mapper/usr");
            },
            "/usr is on dm-0 on ram0, which is no partition and lies on none",
        ),
        (
            &|machine| {
                machine.disk("sda", "", 512, &Layout::two_slots());
                machine.mapping("dm-0", "252:0", &["sda3", "sda4"]);
                machine.mount("252:0", usr.0, usr.1, "/dev/mapper/usr");
            },
            "/usr is on dm-0, which lies on several devices",
        ),
        (
            &|machine| {
                for level in 0..10 {
                    let below = format!("dm-{}", level + 1);
                    machine.mapping(&format!("dm-{level}"), &format!("252:{level}"), &[&below]);
                }
                machine.device("dm-10", "252:10", None);
                machine.mount("252:0", usr.0, usr.1, "/dev/mapper/usr");
            },
            "on dm-8, which is more than 8 levels away from a partition",
        ),
        (
            &|machine| {
                machine.loop_device("loop0", "7:0", "/usr.squashfs (deleted)", 0);
                machine.mount("7:0", usr.0, usr.1, "/dev/loop0");
            },
            "/usr is on loop0, which reads the deleted file /usr.squashfs (deleted)",
        ),
        (
            &|machine| {
                machine.write("/disk.img", image_of(&Layout::two_slots(), 512).to_bytes());
                machine.loop_device("loop0", "7:0", "/disk.img", 512);
                machine.mount("7:0", usr.0, usr.1, "/dev/loop0");
            },
            "disk.img: the system runs from byte 512, where no slot begins",
        ),
    ];
    for (build, expected) in table {
        let mut machine = Machine::new();
        build(&mut machine);
        let error = machine.refused();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_target_that_something_uses_is_not_touched() {
    let machine = |point: &str| {
        let mut machine = Machine::new();
        machine.disk("sda", "", 512, &Layout::two_slots());
        machine.mount("11:3", "/usr", "ext4", "/dev/sda3");
        machine.mount("11:4", point, "ext4", "/dev/sda4");
        machine
    };
    let busy = machine("/mnt");
    let error = busy.refused();
    assert!(
        error.ends_with("/dev/sda) is in use by /mnt; stop that first"),
        "{error}"
    );
    machine(postinst::MOUNT_POINT).discover().unwrap();
    // Who looks at the running slot alone is not kept from it.
    let root = Root::at(busy.dir.path()).unwrap();
    let slots = Discovery::Mounted.find_in_use(&root, USR_TYPE).unwrap();
    assert_eq!((slots.source.number, slots.target.number), (3, 4));

    let mut machine = Machine::new();
    machine.disk("sda", "", 512, &Layout::two_slots());
    machine.write("/dev/sda4", [0; 64 << 10]);
    machine.mount("11:3", "/usr", "ext4", "/dev/sda3");
    machine.write("/sys/devices/block/sda/sda4/holders/dm-3", "");
    let error = machine.refused();
    assert!(
        error.ends_with("/dev/sda) is in use by dm-3; stop that first"),
        "{error}"
    );
}

#[test]
fn of_an_image_file_the_user_says_which_slot_runs() {
    let machine = Machine::new();
    machine.write("/disk.img", image_of(&Layout::two_slots(), 4096).to_bytes());
    let root = Root::at(machine.dir.path()).unwrap();
    let image = machine.path("/disk.img");
    let find = |disk: &str, booted: &str| {
        let disk = machine.path(disk);
        let booted = booted.parse().unwrap();
        Discovery::Image { disk, booted }.find(&root, USR_TYPE)
    };
    let slots = find("/disk.img", "b").unwrap();
    assert_eq!((slots.source.number, slots.target.number), (4, 3));
    assert_eq!(slots.disk, image);
    assert_eq!(
        slots.target.to_string(),
        format!("slot A (partition 3 of {})", image.display())
    );

    let error = find("/disk.img", "c").unwrap_err();
    assert!(
        words(&error).ends_with("there is no slot C, only A, B"),
        "{error}"
    );
    let error = find("/missing", "A").unwrap_err();
    assert!(words(&error).contains("missing"), "{error}");
    machine.write("/empty.img", "");
    let error = find("/empty.img", "A").unwrap_err();
    assert!(
        words(&error).contains("empty.img: no valid partition table"),
        "{error}"
    );
}

/// A disk image behind a real loop device with its partitions; taken down when dropped.
struct LoopDisk {
    node: PathBuf,
    _image: tempfile::NamedTempFile,
}

impl LoopDisk {
    /// `None`, with the reason printed, where this process may not make one.
    fn attach(sector_size: u32) -> Option<Self> {
        let image = tempfile::NamedTempFile::new().unwrap();
        let disk = image_of(&Layout::two_slots_of(1 << 20), sector_size);
        fs::write(image.path(), disk.to_bytes()).unwrap();
        let size = sector_size.to_string();
        let path = image.path().to_str().unwrap().to_owned();
        let attach = || -> Result<Self, String> {
            let disk = Self {
                node: tool(&["losetup", "--show", "-f", "-b", &size, &path])?.into(),
                _image: image,
            };
            // Kernels do not look for partitions on loop devices by themselves.
            tool(&["partx", "-a", disk.node.to_str().unwrap()])?;
            Ok(disk)
        };
        attach()
            .map_err(|reason| eprintln!("skipped: {reason}"))
            .ok()
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        let node = self.node.to_str().unwrap();
        let _ = tool(&["partx", "-d", node]);
        let _ = tool(&["losetup", "-d", node]);
    }
}

fn tool(words: &[&str]) -> Result<String, String> {
    let output = std::process::Command::new(words[0])
        .args(&words[1..])
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .map_err(|error| format!("{words:?}: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(format!("{words:?}: {}", text(&output.stderr)))
    }
}

#[test]
fn on_a_real_disk_the_kernels_partitions_are_the_slots() {
    for sector_size in [512, 4096] {
        let Some(disk) = LoopDisk::attach(sector_size) else {
            return;
        };
        let discovery = Discovery::Image {
            disk: disk.node.clone(),
            booted: Letter::A,
        };
        let find = || discovery.find(&Root::system(), USR_TYPE);
        let slots = find().unwrap();
        let node = PathBuf::from(format!("{}p4", disk.node.display()));
        assert_eq!(slots.target.node, Some(node.clone()));
        {
            let target = slots.target.open_for_writing().unwrap();
            assert_eq!(target.sector_size(), sector_size);
            target.write_at(0, &[7; 4096]).unwrap();
            target.sync().unwrap();
        }
        let whole = slots.open_disk(Access::ReadOnly).unwrap();
        let mut bytes = [0; 4096];
        whole
            .read_medium_at(slots.target.start, &mut bytes)
            .unwrap();
        assert_eq!(bytes, [7; 4096], "partition and window are the same place");

        let place = tempfile::tempdir().unwrap();
        let (node, place) = (node.to_str().unwrap(), place.path().to_str().unwrap());
        tool(&["mke2fs", "-q", node]).unwrap();
        tool(&["mount", "-o", "ro", node, place]).unwrap();
        let error = find().map(|_| ()).map_err(|error| words(&error));
        let unused = FileDevice::open(node, Access::Unused);
        tool(&["umount", place]).unwrap();
        let refused = words(&unused.unwrap_err());
        assert!(refused.contains("mounted or mapped"), "{refused}");
        let unused = FileDevice::open(node, Access::Unused).unwrap();
        tool(&["mount", "-o", "ro", node, place]).unwrap_err();
        drop(unused);
        let error = error.unwrap_err();
        assert!(
            error.ends_with(&format!("is in use by {place}; stop that first")),
            "{error}"
        );
    }
}
