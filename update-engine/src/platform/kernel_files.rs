//! The files outside the slots that belong to one of them: kernel, root hash, PCR policy, and the
//! devices of further partitions.

use std::path::PathBuf;

use gptprio::boot::{Kernel, KernelFiles as SlotFiles, ReadKernelError};

use super::{Discovery, Letter, PlatformError, Slots};
use crate::config::{PartitionPlace, Settings};
use crate::root::Root;

/// Where the kernels, the root hash and the PCR policy are, as paths to open. None of them need exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelFiles {
    /// Kernel of the running slot, `/boot/flatcar/vmlinuz-a` or its like.
    pub source_kernel: PathBuf,
    /// Kernel of the slot to install into.
    pub target_kernel: PathBuf,
    /// Root hash of the dm-verity tree in the slot to install into, `usrhash-b` beside the kernel.
    /// Boot selectors put it on the kernel's command line.
    pub target_root_hash: PathBuf,
    /// PCR policy of the slot to install into, `pcrs-b.zip` or its like in the state folder.
    pub target_pcr_policy: PathBuf,
    /// Whether the paths of kernel and root hash are not on the boot partition although there is
    /// one ([`Discovery::lacks_boot_mount`]).
    pub boot_is_unmounted: bool,
    /// Where further partitions are.
    pub partitions: Vec<PartitionFiles>,
}

/// A partition other than the slot itself, that each slot has one of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionFiles {
    /// Its name in payloads.
    pub name: String,
    /// That of the running slot.
    pub source: PathBuf,
    /// That of the slot to install into.
    pub target: PathBuf,
}

impl KernelFiles {
    /// The files of these slots, on the boot partition where boot selectors look for them
    /// ([`Kernel::family`]). `discovery` is how the slots were found.
    pub fn of(
        root: &Root,
        settings: &Settings,
        slots: &Slots,
        discovery: &Discovery,
    ) -> Result<Self, PlatformError> {
        let boot_is_unmounted = discovery.lacks_boot_mount(root, slots)?;
        let family = Kernel::family(|file| in_boot(root, file).map(|path| path.exists()))?;
        let source = SlotFiles::new(family, slots.source.letter);
        let target = SlotFiles::new(family, slots.target.letter);
        let policy = format!("pcrs-{}.zip", slots.target.letter.lower());
        Ok(Self {
            source_kernel: in_boot(root, &source.kernel)?,
            target_kernel: in_boot(root, &target.kernel)?,
            target_root_hash: in_boot(root, &target.hash)?,
            target_pcr_policy: opened(root, &format!("{}/{policy}", settings.state_dir))?,
            boot_is_unmounted,
            partitions: settings
                .partitions
                .iter()
                .map(|place| PartitionFiles::of(root, place, slots))
                .collect::<Result<_, _>>()?,
        })
    }
}

/// Whether both slots start with the same kernel and initial RAM disk. Reads them whole.
pub fn is_same_kernel(root: &Root, slots: &Slots) -> Result<bool, PlatformError> {
    let family = Kernel::family(|file| in_boot(root, file).map(|path| path.exists()))?;
    let read = |letter| {
        let files = SlotFiles::new(family, letter);
        let (kernel, initrd) = (in_boot(root, &files.kernel)?, in_boot(root, &files.initrd)?);
        Kernel::read(&kernel, Some(&initrd), None).map_err(unreadable)
    };
    let (source, target) = (read(slots.source.letter)?, read(slots.target.letter)?);
    source.is_same_as(&target).map_err(unreadable)
}

fn unreadable(error: ReadKernelError) -> PlatformError {
    PlatformError::Read {
        path: error.path.display().to_string(),
        source: error.source,
    }
}

impl PartitionFiles {
    fn of(root: &Root, place: &PartitionPlace, slots: &Slots) -> Result<Self, PlatformError> {
        let of_slot = |letter: Letter| {
            let path = place
                .path
                .replace(PartitionPlace::SLOT, &letter.to_string());
            opened(root, &path)
        };
        Ok(Self {
            name: place.name.clone(),
            source: of_slot(slots.source.letter)?,
            target: of_slot(slots.target.letter)?,
        })
    }
}

fn in_boot(root: &Root, file: &str) -> Result<PathBuf, PlatformError> {
    opened(root, &format!("/boot/{file}"))
}

fn opened(root: &Root, path: &str) -> Result<PathBuf, PlatformError> {
    root.path(path).map_err(|source| PlatformError::Read {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::Slot;
    use gptprio::Guid;
    use std::fs;

    #[test]
    fn kernels_are_where_the_boot_loader_looks() {
        let table: [(&[&str], Letter, &str, &str); 6] = [
            (
                &[],
                Letter::A,
                "boot/flatcar/vmlinuz-a",
                "boot/flatcar/vmlinuz-b",
            ),
            (
                &[],
                Letter::B,
                "boot/flatcar/vmlinuz-b",
                "boot/flatcar/vmlinuz-a",
            ),
            (
                &["boot/flatcar/vmlinuz-a"],
                Letter::A,
                "boot/flatcar/vmlinuz-a",
                "boot/flatcar/vmlinuz-b",
            ),
            (
                &["boot/coreos/vmlinuz-a", "boot/flatcar/vmlinuz-a"],
                Letter::A,
                "boot/coreos/vmlinuz-a",
                "boot/coreos/vmlinuz-b",
            ),
            (
                &["boot/coreos/vmlinuz-b"],
                Letter::B,
                "boot/coreos/vmlinuz-b",
                "boot/coreos/vmlinuz-a",
            ),
            (
                &["boot/coreos/grub.cfg"],
                Letter::A,
                "boot/flatcar/vmlinuz-a",
                "boot/flatcar/vmlinuz-b",
            ),
        ];
        for (present, booted, source, target) in table {
            let dir = tempfile::tempdir().unwrap();
            for path in present {
                let path = dir.path().join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, "").unwrap();
            }
            let root = Root::at(dir.path()).unwrap();
            let slots = slots(booted);
            let files = KernelFiles::of(&root, &Settings::default(), &slots, &image()).unwrap();
            assert!(
                files.source_kernel.ends_with(source),
                "{present:?}: {files:?}"
            );
            assert!(
                files.target_kernel.ends_with(target),
                "{present:?}: {files:?}"
            );
            let root_hash = target.replace("vmlinuz", "usrhash");
            assert!(files.target_root_hash.ends_with(root_hash), "{files:?}");
            let policy = format!(
                "var/lib/update_engine/pcrs-{}.zip",
                slots.target.letter.lower()
            );
            assert!(files.target_pcr_policy.ends_with(policy), "{files:?}");
        }
    }

    #[test]
    fn each_slot_has_a_partition_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::at(dir.path()).unwrap();
        let settings = Settings {
            partitions: vec![PartitionPlace {
                name: "oem".to_owned(),
                path: "/dev/disk/by-partlabel/OEM-{slot}".to_owned(),
            }],
            ..Settings::default()
        };
        let files = KernelFiles::of(&root, &settings, &slots(Letter::B), &image()).unwrap();
        let [oem] = &files.partitions[..] else {
            panic!()
        };
        assert!(oem.source.ends_with("by-partlabel/OEM-B"), "{oem:?}");
        assert!(oem.target.ends_with("by-partlabel/OEM-A"), "{oem:?}");
    }

    fn image() -> Discovery {
        Discovery::Image {
            disk: PathBuf::new(),
            booted: Letter::A,
        }
    }

    fn slots(booted: Letter) -> Slots {
        let slot = |letter| Slot {
            letter,
            number: 3,
            unique_guid: Guid::NIL,
            start: 0,
            size: 0,
            disk: PathBuf::new(),
            node: None,
        };
        let other = if booted == Letter::A {
            Letter::B
        } else {
            Letter::A
        };
        Slots {
            disk: PathBuf::new(),
            slot_type: Guid::NIL,
            source: slot(booted),
            target: slot(other),
        }
    }
}
