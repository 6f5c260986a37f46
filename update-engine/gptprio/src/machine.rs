//! The running machine: which partition its system was started from.
//!
//! What is mounted at `/usr` leads through mappings and loop devices to a partition and
//! its disk, or to an image file. Nothing is assumed about names, numbers or sector
//! sizes, and nothing is guessed: what does not add up is an error that says what was
//! looked at.

mod device;
mod mounts;
mod root;

use std::borrow::ToOwned;
use std::format;
use std::io;
use std::string::{String, ToString};

pub use device::{Backing, Device, device_number};
pub use mounts::Mount;
pub use root::Root;

/// Devices that may lie on one another before it is taken for a loop; the limit of the
/// original updater.
const MAX_LEVELS: usize = 8;

/// Where the running system's bytes are.
#[derive(Clone, Debug)]
pub enum Place {
    /// On a partition that the kernel knows.
    Partition {
        /// Its disk.
        disk: Device,
        /// Its number, counted from 1.
        number: u32,
        /// Its first byte on the disk, for the kernel.
        start: u64,
    },
    /// In a file that is the image of a disk.
    File {
        /// Path on the machine; it may be a whole disk too.
        file: String,
        /// First byte of the system in it.
        offset: u64,
    },
}

/// Why the running system's partition cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// A table of the kernel cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// Path on the machine.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// No block device is mounted where the system is.
    #[error("{looked_at} shows no block device at /usr or /")]
    NoSystemMount {
        /// Which table.
        looked_at: &'static str,
    },
    /// The kernel knows no device for a mount.
    #[error("no block device in /sys belongs to {source_node}, mounted at {mount_point}")]
    UnknownDevice {
        /// What the mount table names.
        source_node: String,
        /// Where it is mounted.
        mount_point: String,
    },
    /// The system's device is not on a partition.
    #[error("{trail}, which {problem}")]
    NotOnPartition {
        /// From the mount downwards, such as `/usr is on dm-0 on ram0`.
        trail: String,
        /// What is wrong with the last of them.
        problem: String,
    },
}

/// From the mount table ([`Mount::all`]) to a place on a disk.
pub fn running_place(root: &Root, mounts: &[Mount]) -> Result<Place, MachineError> {
    // The last mount of a place is on top. Extension images put an overlay over /usr,
    // which has no device of its own, so it is looked through.
    let at = |point: &str| {
        mounts
            .iter()
            .rev()
            .find(|mount| mount.mount_point == point && mount.is_on_device())
    };
    let mount = at("/usr")
        .or_else(|| at("/"))
        .ok_or(MachineError::NoSystemMount {
            looked_at: "/proc/self/mountinfo",
        })?;
    let device = device_of_mount(root, mount)?;
    descend(root, device, &mount.mount_point)
}

fn device_of_mount(root: &Root, mount: &Mount) -> Result<Device, MachineError> {
    let by_number = match mount.device {
        Some(number @ (major, _)) if major != 0 => {
            Device::by_number(root, number).map_err(reading("/sys/dev/block"))?
        }
        _ => None,
    };
    let device = match by_number {
        Some(device) => Some(device),
        None if mount.source.starts_with("/dev/") => {
            Device::by_node(root, &mount.source).map_err(reading(&mount.source))?
        }
        None => None,
    };
    device.ok_or_else(|| MachineError::UnknownDevice {
        source_node: mount.source.clone(),
        mount_point: mount.mount_point.clone(),
    })
}

/// Follows devices that lie on one another down to a partition or a file.
fn descend(root: &Root, mut device: Device, mount_point: &str) -> Result<Place, MachineError> {
    let failed = reading("/sys");
    let mut trail = format!("{mount_point} is on {}", device.name());
    let stray =
        |trail: String, problem: String| Err(MachineError::NotOnPartition { trail, problem });
    for _ in 0..MAX_LEVELS {
        if let Some((number, start)) = device.partition().map_err(&failed)? {
            return Ok(Place::Partition {
                disk: device.disk().map_err(&failed)?,
                number,
                start,
            });
        }
        if let Some(backing) = device.backing().map_err(&failed)? {
            if backing.file.ends_with(" (deleted)") {
                return stray(trail, format!("reads the deleted file {}", backing.file));
            }
            return Ok(Place::File {
                file: backing.file,
                offset: backing.offset,
            });
        }
        let mut slaves = device.slaves(root).map_err(&failed)?;
        device = match (slaves.pop(), slaves.is_empty()) {
            (Some(slave), true) => slave,
            (None, _) => return stray(trail, "is no partition and lies on none".to_owned()),
            (Some(_), false) => return stray(trail, "lies on several devices".to_owned()),
        };
        trail = format!("{trail} on {}", device.name());
    }
    stray(
        trail,
        format!("is more than {MAX_LEVELS} levels away from a partition"),
    )
}

fn reading(path: &str) -> impl Fn(io::Error) -> MachineError {
    let path = path.to_string();
    move |source| MachineError::Read {
        path: path.clone(),
        source,
    }
}
