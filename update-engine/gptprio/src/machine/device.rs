//! Block devices as the kernel shows them in `/sys`: what lies on what.
//!
//! ```text
//!   /sys/dev/block/252:0 ─▶ …/virtual/block/dm-0/slaves/sda3      a mapping over sda3
//!   /sys/dev/block/8:3   ─▶ …/block/sda/sda3/{partition,start}    partition 3 of sda
//!   /sys/dev/block/7:0   ─▶ …/block/loop0/loop/{backing_file,offset}
//! ```

use std::borrow::ToOwned;
use std::format;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::string::String;
use std::vec::Vec;

use super::Root;

/// The kernel counts `start` in these, whatever the disk's sectors are.
const SYSFS_SECTOR: u64 = 512;
/// An attribute is one line; a page is the most that sysfs gives.
const ATTRIBUTE_LIMIT: u64 = 4096;

/// One block device.
#[derive(Debug, Clone)]
pub struct Device {
    /// Folder in sysfs, links resolved.
    dir: PathBuf,
}

/// Where a loop device's bytes are.
#[derive(Debug, PartialEq, Eq)]
pub struct Backing {
    /// Path of the file on the machine.
    pub file: String,
    /// First byte in it.
    pub offset: u64,
}

impl Device {
    /// The device with this number, `None` when the kernel knows none.
    pub fn by_number(root: &Root, (major, minor): (u64, u64)) -> io::Result<Option<Self>> {
        Self::at(root, &format!("/sys/dev/block/{major}:{minor}"))
    }

    /// The device behind a node such as `/dev/sda3` or `/dev/mapper/usr`, a path on the machine.
    pub fn by_node(root: &Root, node: &str) -> io::Result<Option<Self>> {
        let opened = root.path(node)?;
        if let Ok(metadata) = fs::metadata(&opened)
            && metadata.file_type().is_block_device()
        {
            return Self::by_number(root, device_number(metadata.rdev()));
        }
        // In a tree of plain files the name has to do.
        let target = fs::canonicalize(&opened).unwrap_or(opened);
        match target.file_name() {
            Some(name) => Self::by_name(root, &name.to_string_lossy()),
            None => Ok(None),
        }
    }

    fn by_name(root: &Root, name: &str) -> io::Result<Option<Self>> {
        Self::at(root, &format!("/sys/class/block/{name}"))
    }

    fn at(root: &Root, path: &str) -> io::Result<Option<Self>> {
        match fs::canonicalize(root.path(path)?) {
            Ok(dir) => Ok(Some(Self { dir })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All devices that are no partitions, in the order of their names.
    pub fn disks(root: &Root) -> io::Result<Vec<Self>> {
        let mut disks = Vec::new();
        for name in names(&root.path("/sys/class/block")?)? {
            // A device may go away between two looks.
            if let Some(device) = Self::by_name(root, &name)?
                && device.attribute("partition")?.is_none()
            {
                disks.push(device);
            }
        }
        Ok(disks)
    }

    /// The kernel's name, such as `nvme0n1p3`.
    pub fn name(&self) -> String {
        self.dir
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    }

    /// The node that the device has by default, a path on the machine.
    pub fn node(&self) -> String {
        // A name with a slash, such as cciss/c0d0, is a file name in sysfs.
        format!("/dev/{}", self.name().replace('!', "/"))
    }

    /// Device number.
    pub fn number(&self) -> io::Result<Option<(u64, u64)>> {
        let text = self.attribute("dev")?.unwrap_or_default();
        let number = text.split_once(':');
        Ok(number.and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?))))
    }

    /// Number and first byte on the disk, when this is a partition.
    pub fn partition(&self) -> io::Result<Option<(u32, u64)>> {
        let Some(number) = self.integer("partition")? else {
            return Ok(None);
        };
        let number = u32::try_from(number).map_err(io::Error::other)?;
        let start = self
            .integer("start")?
            .and_then(|start| start.checked_mul(SYSFS_SECTOR));
        let start = start.ok_or_else(|| self.missing("start"))?;
        Ok(Some((number, start)))
    }

    /// The disk that this partition is on.
    pub fn disk(&self) -> io::Result<Self> {
        let dir = self.dir.parent().ok_or_else(|| self.missing("disk"))?;
        Ok(Self {
            dir: dir.to_owned(),
        })
    }

    /// The partition with this number on this disk, as far as the kernel knows it.
    pub fn partition_numbered(&self, number: u32) -> io::Result<Option<Self>> {
        for dir in entries(&self.dir)? {
            let child = Self { dir };
            if child.integer("partition")? == Some(u64::from(number)) {
                return Ok(Some(child));
            }
        }
        Ok(None)
    }

    /// What a mapped device lies on.
    pub fn slaves(&self, root: &Root) -> io::Result<Vec<Self>> {
        let mut slaves = Vec::new();
        for name in names(&self.dir.join("slaves"))? {
            slaves.extend(Self::by_name(root, &name)?);
        }
        Ok(slaves)
    }

    /// Names of the mapped devices that lie on this one.
    pub fn holders(&self) -> io::Result<Vec<String>> {
        names(&self.dir.join("holders"))
    }

    /// What a loop device reads, `None` for other devices.
    pub fn backing(&self) -> io::Result<Option<Backing>> {
        let Some(file) = self.attribute("loop/backing_file")? else {
            return Ok(None);
        };
        Ok(Some(Backing {
            file,
            offset: self.integer("loop/offset")?.unwrap_or(0),
        }))
    }

    fn integer(&self, name: &str) -> io::Result<Option<u64>> {
        let Some(text) = self.attribute(name)? else {
            return Ok(None);
        };
        let value = text.parse().map_err(|_| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{}/{name}: '{text}' is not a number", self.dir.display()),
            )
        })?;
        Ok(Some(value))
    }

    /// The text of an attribute without the final newline, `None` when there is no such attribute.
    fn attribute(&self, name: &str) -> io::Result<Option<String>> {
        let file = match File::open(self.dir.join(name)) {
            Ok(file) => file,
            Err(error) if is_absence(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut text = Vec::new();
        match file.take(ATTRIBUTE_LIMIT).read_to_end(&mut text) {
            Ok(_) => {}
            // The loop attributes of a detached loop device and a folder of that name.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(nix::libc::ENXIO | nix::libc::EISDIR)
                ) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error),
        }
        let text = String::from_utf8_lossy(&text);
        Ok(Some(text.strip_suffix('\n').unwrap_or(&text).to_owned()))
    }

    fn missing(&self, what: &str) -> io::Error {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{} has no {what}", self.dir.display()),
        )
    }
}

/// Major and minor part of a device number.
pub fn device_number(number: u64) -> (u64, u64) {
    (nix::sys::stat::major(number), nix::sys::stat::minor(number))
}

/// Names in a folder in order; none when there is no folder.
fn names(dir: &Path) -> io::Result<Vec<String>> {
    let name = |path: &PathBuf| {
        path.file_name()
            .map(|name| name.to_string_lossy().into_owned())
    };
    Ok(entries(dir)?.iter().filter_map(name).collect())
}

fn entries(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if is_absence(&error) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut paths = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

fn is_absence(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn disks_are_what_is_no_partition() {
        let machine = tempfile::tempdir().unwrap();
        let dir = |path: &str| {
            let dir = machine.path().join(path);
            fs::create_dir_all(&dir).unwrap();
            dir
        };
        let class = dir("sys/class/block");
        for (name, place) in [
            ("sdb", "devices/b/sdb"),
            ("sda", "devices/a/sda"),
            ("sda3", "devices/a/sda/sda3"),
            ("cciss!c0d0", "devices/c/cciss!c0d0"),
        ] {
            dir(&format!("sys/{place}"));
            symlink(format!("../../{place}"), class.join(name)).unwrap();
        }
        fs::write(dir("sys/devices/a/sda/sda3").join("partition"), "3\n").unwrap();
        // Gone since the folder was listed.
        symlink("/nowhere", class.join("sdc")).unwrap();

        let root = Root::at(machine.path()).unwrap();
        let nodes = |disks: Vec<Device>| disks.iter().map(Device::node).collect::<Vec<_>>();
        assert_eq!(
            nodes(Device::disks(&root).unwrap()),
            ["/dev/cciss/c0d0", "/dev/sda", "/dev/sdb"]
        );
        let empty = tempfile::tempdir().unwrap();
        let none = Device::disks(&Root::at(empty.path()).unwrap()).unwrap();
        assert!(none.is_empty());
    }
}
