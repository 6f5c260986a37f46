//! Source and target: the running slot and the other one.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gptprio::machine::{Device, Mount, Place, device_number, running_place};
use gptprio::{
    Access, BlockDevice, DeviceError, FileDevice, Gpt, GptError, Guid, Partition, Region, letters,
};

use super::{Letter, PlatformError, SlotProblem};
use crate::postinst;
use crate::root::Root;

/// The two slots of an update and the disk that has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slots {
    /// The disk with the partition table: a device node or an image file, as a path to open.
    pub disk: PathBuf,
    /// The type that both partitions have.
    pub slot_type: Guid,
    /// The slot that runs. Only read.
    pub source: Slot,
    /// The slot to install into.
    pub target: Slot,
}

/// One slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// A or B.
    pub letter: Letter,
    /// Number of its partition, counted from 1.
    pub number: u32,
    /// Identity of its partition.
    pub unique_guid: Guid,
    /// Its first byte on the disk.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// The disk that it is on, as a path to open.
    pub disk: PathBuf,
    /// Its own device node as a path to open; `None` in an image file.
    pub node: Option<PathBuf>,
}

/// How the running slot is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Booted {
    /// The kernel runs from this partition, which begins at this byte.
    Partition { number: u32, start: u64 },
    /// A loop device begins at this byte of the disk.
    At(u64),
    /// Somebody says so.
    Letter(Letter),
}

/// Where to look for the slots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Discovery {
    /// On the disk that the running system was started from.
    Mounted,
    /// On a disk or image file that is not the running machine's.
    Image {
        /// A path to open.
        disk: PathBuf,
        /// The slot that counts as running.
        booted: Letter,
    },
}

impl Discovery {
    /// Finds the running slot, by type and place, and the slot to install into. `root` is where the
    /// kernel's tables and the device nodes are.
    ///
    /// When there are more than two slots, the target is the one whose loss costs least: one that
    /// cannot boot before one that can, then the lowest priority, then the highest number. Fails
    /// with [`PlatformError::TargetInUse`] when anything is mounted from the target or mapped onto
    /// it.
    pub fn find(&self, root: &Root, slot_type: Guid) -> Result<Slots, PlatformError> {
        let mounts = Mount::all(root)?;
        let (slots, device) = self.look(root, &mounts, slot_type)?;
        slots.check_target_is_free(&mounts, device.as_ref())?;
        Ok(slots)
    }

    /// The same for who does not write to the target: it may be in use.
    pub fn find_in_use(&self, root: &Root, slot_type: Guid) -> Result<Slots, PlatformError> {
        let mounts = Mount::all(root)?;
        Ok(self.look(root, &mounts, slot_type)?.0)
    }

    /// Whether the disk of the running system has a boot partition and no partition is mounted
    /// at `/boot`: no boot selector would find a kernel that is put there.
    pub fn lacks_boot_mount(&self, root: &Root, slots: &Slots) -> Result<bool, PlatformError> {
        if *self != Self::Mounted {
            return Ok(false);
        }
        // An automount point is mounted by whoever looks into it.
        let file_system = |path: &str| -> Result<Option<(u64, u64)>, PlatformError> {
            let path = root.path(path).map_err(reading(&path))?;
            Ok(fs::metadata(path)
                .ok()
                .map(|found| device_number(found.dev())))
        };
        let (own, of_root) = (file_system("/boot/.")?, file_system("/")?);
        let mounts = Mount::all(root)?;
        let is_boot = |mount: &Mount| {
            // The folder may be a link to the mount point.
            let is_linked = own.is_some() && own != of_root && mount.device == own;
            mount.is_on_device() && (mount.mount_point == "/boot" || is_linked)
        };
        if mounts.iter().any(is_boot) {
            return Ok(false);
        }
        if let Place::File { .. } = running_place(root, &mounts)? {
            return Ok(false);
        }
        Ok(read_table(&slots.disk)?.boot_partition().is_some())
    }

    /// The slots, and the device of their disk if it is none in a file.
    fn look(
        &self,
        root: &Root,
        mounts: &[Mount],
        slot_type: Guid,
    ) -> Result<(Slots, Option<Device>), PlatformError> {
        let (disk, device, booted) = match self {
            Self::Image { disk, booted } => (
                disk.clone(),
                device_at(root, disk)?,
                Booted::Letter(*booted),
            ),
            Self::Mounted => match running_place(root, mounts)? {
                Place::Partition {
                    disk,
                    number,
                    start,
                } => {
                    let node = root.path(disk.node()).map_err(reading(&disk.node()))?;
                    (node, Some(disk), Booted::Partition { number, start })
                }
                Place::File { file, offset } => {
                    let device = device_of(root, &file)?;
                    (
                        root.path(&file).map_err(reading(&file))?,
                        device,
                        Booted::At(offset),
                    )
                }
            },
        };
        let slots = Slots::read(root, &disk, device.as_ref(), slot_type, booted)?;
        Ok((slots, device))
    }
}

impl Slots {
    /// Opens the whole disk, for its partition table. With [`Access::ReadWrite`] it is locked
    /// against other writers as long as the device lives; in an image file that excludes
    /// [`Slot::open_for_writing`].
    pub fn open_disk(&self, access: Access) -> Result<FileDevice, DeviceError> {
        FileDevice::open(&self.disk, access)
    }

    fn read(
        root: &Root,
        disk: &Path,
        sys: Option<&Device>,
        slot_type: Guid,
        booted: Booted,
    ) -> Result<Self, PlatformError> {
        let gpt = read_table(disk)?;
        let Choice {
            source,
            target,
            letters,
        } = choose(&gpt, slot_type, booted).map_err(|problem| PlatformError::Slots {
            disk: disk.to_owned(),
            problem,
        })?;
        let slot = |partition: Partition| -> Result<Slot, PlatformError> {
            let range = gpt.byte_range(&partition).map_err(bad_table(disk))?;
            Ok(Slot {
                letter: letters[&partition.number],
                number: partition.number,
                unique_guid: partition.unique_guid,
                start: range.start,
                size: range.end - range.start,
                disk: disk.to_owned(),
                node: node_of(root, sys, partition.number)?,
            })
        };
        let (source, target) = (slot(source)?, slot(target)?);
        Ok(Self {
            disk: disk.to_owned(),
            slot_type,
            source,
            target,
        })
    }

    fn check_target_is_free(
        &self,
        mounts: &[Mount],
        disk: Option<&Device>,
    ) -> Result<(), PlatformError> {
        let Some(disk) = disk else {
            return Ok(());
        };
        let failed = reading(&"/sys");
        let Some(target) = disk
            .partition_numbered(self.target.number)
            .map_err(&failed)?
        else {
            return Ok(());
        };
        let number = target.number().map_err(&failed)?;
        let is_target = |mount: &&Mount| {
            let same_number = number.is_some() && mount.device == number;
            (same_number || mount.source == target.node())
                // What a killed updater left there, its next run takes away.
                && mount.mount_point != postinst::MOUNT_POINT
        };
        let user = match mounts.iter().find(is_target) {
            Some(mount) => Some(mount.mount_point.clone()),
            None => target.holders().map_err(&failed)?.into_iter().next(),
        };
        match user {
            Some(user) => Err(PlatformError::TargetInUse {
                target: self.target.to_string(),
                user,
            }),
            None => Ok(()),
        }
    }
}

impl Slot {
    /// Opens the slot's bytes to read: its own device node, or in an image file its window of the
    /// disk.
    ///
    /// Fails too when the kernel has another size for the partition than the table.
    pub fn open_for_reading(&self) -> Result<Arc<dyn BlockDevice>, DeviceError> {
        self.open(Access::ReadOnly)
    }

    /// The same to write, with a lock against other writers. In an image file the lock is on the
    /// whole disk, so the partition table cannot be written as long as the device lives.
    pub fn open_for_writing(&self) -> Result<Arc<dyn BlockDevice>, DeviceError> {
        self.open(Access::ReadWrite)
    }

    fn open(&self, access: Access) -> Result<Arc<dyn BlockDevice>, DeviceError> {
        let Some(node) = &self.node else {
            let disk = FileDevice::open(&self.disk, access)?;
            return Ok(Arc::new(Region::new(disk, self.start, self.size)?));
        };
        let device = FileDevice::open(node, access)?;
        if device.len() != self.size {
            let reason = format!(
                "the kernel gives it {} bytes, the partition table {}; restart the machine to \
                 make them agree",
                device.len(),
                self.size
            );
            return Err(DeviceError::new("open", 0, 0, reason));
        }
        Ok(Arc::new(device))
    }
}

/// For logs: `slot B (partition 4 of /dev/sda)`.
impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            letter,
            number,
            disk,
            ..
        } = self;
        write!(
            f,
            "slot {letter} (partition {number} of {})",
            disk.display()
        )
    }
}

/// What [`choose`] says.
#[derive(Debug)]
struct Choice {
    source: Partition,
    target: Partition,
    letters: BTreeMap<u32, Letter>,
}

/// Which partitions are source and target. Pure.
fn choose(gpt: &Gpt, slot_type: Guid, booted: Booted) -> Result<Choice, SlotProblem> {
    let mut slots = gpt.slots(slot_type);
    // An entry that ends before it begins has no room for anything.
    slots.retain(|slot| slot.first_lba <= slot.last_lba);
    if slots.is_empty() {
        return Err(SlotProblem::NoSlots { slot_type });
    }
    let letters = letters(&slots).map_err(SlotProblem::Letters)?;
    let start_of = |slot: &Partition| slot.first_lba.saturating_mul(u64::from(gpt.sector_size()));
    let source = match booted {
        Booted::Partition { number, start } => {
            let partition = match gpt.partition(number) {
                Ok(partition) => partition,
                Err(_) => return Err(SlotProblem::NoPartition { number }),
            };
            if partition.type_guid != slot_type {
                let found = partition.type_guid;
                return Err(SlotProblem::WrongType {
                    number,
                    found,
                    slot_type,
                });
            }
            let in_table = start_of(&partition);
            if in_table != start {
                return Err(SlotProblem::Moved {
                    number,
                    in_table,
                    in_kernel: start,
                });
            }
            partition
        }
        Booted::At(start) => slots
            .iter()
            .find(|slot| start_of(slot) == start)
            .cloned()
            .ok_or(SlotProblem::NoSlotAt { start })?,
        Booted::Letter(letter) => slots
            .iter()
            .find(|slot| letters[&slot.number] == letter)
            .cloned()
            .ok_or_else(|| {
                let mut present: Vec<_> = letters.values().map(Letter::to_string).collect();
                present.sort();
                SlotProblem::NoLetter {
                    letter,
                    present: present.join(", "),
                }
            })?,
    };
    let number = source.number;
    let target = slots
        .into_iter()
        .filter(|slot| slot.number != number)
        .min_by_key(|slot| {
            let attributes = slot.attributes;
            (
                attributes.bootable(),
                attributes.priority(),
                Reverse(slot.number),
            )
        })
        .ok_or(SlotProblem::OnlySlot { number, slot_type })?;
    Ok(Choice {
        source,
        target,
        letters,
    })
}

fn read_table(disk: &Path) -> Result<Gpt, PlatformError> {
    let device = FileDevice::open(disk, Access::ReadOnly);
    let device = device.map_err(|source| PlatformError::OpenDisk {
        disk: disk.to_owned(),
        source,
    })?;
    Gpt::read(&device).map_err(bad_table(disk))
}

fn bad_table(disk: &Path) -> impl Fn(GptError) -> PlatformError {
    move |source| PlatformError::Table {
        disk: disk.to_owned(),
        source,
    }
}

/// The device of a node, a path on the machine; `None` when it is no device.
fn device_of(root: &Root, node: &str) -> Result<Option<Device>, PlatformError> {
    if node.starts_with("/dev/") {
        Device::by_node(root, node).map_err(reading(&node))
    } else {
        Ok(None)
    }
}

/// The device at a path to open; `None` when it is a file.
fn device_at(root: &Root, path: &Path) -> Result<Option<Device>, PlatformError> {
    let metadata = fs::metadata(path).map_err(reading(&path.display()))?;
    if !metadata.file_type().is_block_device() {
        return Ok(None);
    }
    Device::by_number(root, device_number(metadata.rdev())).map_err(reading(&"/sys/dev/block"))
}

/// The node of a partition as a path to open, when the kernel knows the partition and the node
/// exists.
fn node_of(
    root: &Root,
    disk: Option<&Device>,
    number: u32,
) -> Result<Option<PathBuf>, PlatformError> {
    let Some(disk) = disk else { return Ok(None) };
    let partition = disk.partition_numbered(number).map_err(reading(&"/sys"))?;
    let Some(partition) = partition else {
        return Ok(None);
    };
    let node = root
        .path(partition.node())
        .map_err(reading(&partition.node()))?;
    Ok(node.exists().then_some(node))
}

fn reading(path: &dyn fmt::Display) -> impl Fn(io::Error) -> PlatformError {
    let path = path.to_string();
    move |source| PlatformError::Read {
        path: path.clone(),
        source,
    }
}

#[cfg(test)]
mod tests;
