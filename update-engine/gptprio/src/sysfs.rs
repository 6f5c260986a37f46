//! What the Linux kernel tells about block devices in `/sys/dev/block`.
//!
//! ```text
//!   /sys/dev/block/8:3 ──▶ /sys/devices/…/block/sda/sda3/partition             "3"
//!                                               sda/queue/logical_block_size   "512"
//!                                               sda/uevent                     "DEVNAME=sda"
//! ```

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::string::String;

/// The disk and the number of the partition behind a device node such as `/dev/sda3`.
///
/// `None` if `path` is a whole disk, a device without partitions, or no block device.
pub fn partition_of(path: &Path) -> io::Result<Option<(PathBuf, u32)>> {
    let metadata = fs::metadata(path)?;
    match metadata.file_type().is_block_device() {
        true => BlockDir::open(Path::new("/sys"), metadata.rdev())?.partition(),
        false => Ok(None),
    }
}

/// Bytes per logical sector of the block device with this device number.
pub(crate) fn logical_block_size(device_number: u64) -> io::Result<u32> {
    BlockDir::open(Path::new("/sys"), device_number)?.logical_block_size()
}

/// The directory of one block device.
struct BlockDir(PathBuf);

impl BlockDir {
    fn open(sys: &Path, device_number: u64) -> io::Result<BlockDir> {
        let major = nix::sys::stat::major(device_number);
        let minor = nix::sys::stat::minor(device_number);
        fs::canonicalize(sys.join(std::format!("dev/block/{major}:{minor}"))).map(BlockDir)
    }

    /// Partitions have no queue of their own; their disk is the directory above.
    fn logical_block_size(&self) -> io::Result<u32> {
        let text = match read(&self.0.join("queue/logical_block_size")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                read(&self.disk()?.join("queue/logical_block_size"))?
            }
            other => other?,
        };
        text.trim().parse().map_err(io::Error::other)
    }

    fn partition(&self) -> io::Result<Option<(PathBuf, u32)>> {
        let number = match read(&self.0.join("partition")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?.trim().parse().map_err(io::Error::other)?,
        };
        let uevent = read(&self.disk()?.join("uevent"))?;
        let name = uevent
            .lines()
            .find_map(|line| line.strip_prefix("DEVNAME="))
            .ok_or_else(|| io::Error::other("the disk has no device name"))?;
        Ok(Some((Path::new("/dev").join(name), number)))
    }

    fn disk(&self) -> io::Result<&Path> {
        self.0
            .parent()
            .ok_or_else(|| io::Error::other("the partition has no disk"))
    }
}

fn read(path: &Path) -> io::Result<String> {
    fs::read_to_string(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A disk 259:0 with one partition 259:3, as the kernel shows them.
    fn nvme(sys: &Path) {
        let disk = sys.join("devices/pci0000:00/nvme/nvme0/nvme0n1");
        fs::create_dir_all(disk.join("queue")).unwrap();
        fs::create_dir_all(disk.join("nvme0n1p3")).unwrap();
        fs::create_dir_all(sys.join("dev/block")).unwrap();
        fs::write(disk.join("queue/logical_block_size"), "4096\n").unwrap();
        fs::write(disk.join("uevent"), "MAJOR=259\nMINOR=0\nDEVNAME=nvme0n1\n").unwrap();
        fs::write(disk.join("nvme0n1p3/partition"), "3\n").unwrap();
        symlink(&disk, sys.join("dev/block/259:0")).unwrap();
        symlink(disk.join("nvme0n1p3"), sys.join("dev/block/259:3")).unwrap();
    }

    #[test]
    fn a_partition_knows_its_disk_its_number_and_its_sectors() {
        let sys = tempfile::tempdir().unwrap();
        nvme(sys.path());
        let partition = BlockDir::open(sys.path(), nix::sys::stat::makedev(259, 3)).unwrap();
        assert_eq!(
            partition.partition().unwrap(),
            Some((PathBuf::from("/dev/nvme0n1"), 3))
        );
        assert_eq!(partition.logical_block_size().unwrap(), 4096);

        let disk = BlockDir::open(sys.path(), nix::sys::stat::makedev(259, 0)).unwrap();
        assert_eq!(disk.partition().unwrap(), None);
        assert_eq!(disk.logical_block_size().unwrap(), 4096);
    }

    #[test]
    fn a_device_that_the_kernel_does_not_know_is_an_error() {
        let sys = tempfile::tempdir().unwrap();
        nvme(sys.path());
        assert!(BlockDir::open(sys.path(), nix::sys::stat::makedev(8, 1)).is_err());
    }

    #[test]
    fn a_plain_file_is_no_partition() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(partition_of(file.path()).unwrap(), None);
    }
}
