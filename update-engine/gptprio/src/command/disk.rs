//! A disk with its table, and names for its partitions.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use gptprio::sysfs::partition_of;
use gptprio::{Access, FileDevice, Gpt, GptError, Guid};

/// An open disk and its partition table.
#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) path: PathBuf,
    pub(crate) device: FileDevice,
    pub(crate) gpt: Gpt,
}

impl Disk {
    /// Opens a disk; for the node of a partition, the disk on which it lies.
    pub(crate) fn open(path: &Path, access: Access) -> Result<Disk> {
        Ok(Disk::open_with_node(path, access)?.0)
    }

    /// The same, with the number of the partition whose node it was.
    pub(crate) fn open_with_node(path: &Path, access: Access) -> Result<(Disk, Option<u32>)> {
        let (path, node) = whole_disk(path)?;
        Ok((Disk::open_whole(path, access)?, node))
    }

    /// Opens a disk for writing and finds the partition that is named behind it or by
    /// the node itself.
    pub(crate) fn open_partition(path: &Path, name: Option<&str>) -> Result<(Disk, u32)> {
        match Disk::open_maybe_partition(path, name)? {
            (disk, Some(number)) => Ok((disk, number)),
            (_, None) => Err(MissingPartition.into()),
        }
    }

    /// The same for commands that can do without a partition.
    pub(crate) fn open_maybe_partition(
        path: &Path,
        name: Option<&str>,
    ) -> Result<(Disk, Option<u32>)> {
        let (disk, node) = Disk::open_with_node(path, Access::ReadWrite)?;
        let named = name.map(|name| find(&disk.gpt, name)).transpose()?;
        Ok((disk, named.or(node)))
    }

    /// Writes the table back.
    pub(crate) fn write(&mut self) -> Result<(), GptError> {
        self.gpt.write(&self.device)
    }

    fn open_whole(path: PathBuf, access: Access) -> Result<Disk> {
        let device = FileDevice::open(&path, access)?;
        let gpt = Gpt::read(&device)?;
        Ok(Disk { path, device, gpt })
    }
}

/// Usage error: the command changes one partition and none was named.
#[derive(Debug, thiserror::Error)]
#[error("which partition? name it by number, label or unique GUID behind the disk")]
pub(crate) struct MissingPartition;

/// The disk to open for a path, and the partition whose node the path is.
fn whole_disk(path: &Path) -> Result<(PathBuf, Option<u32>)> {
    Ok(match partition_of(path)? {
        Some((disk, number)) => (disk, Some(number)),
        None => (path.to_path_buf(), None),
    })
}

/// A partition by number, unique GUID or label, in this order.
fn find(gpt: &Gpt, name: &str) -> Result<u32> {
    if let Ok(number) = name.parse() {
        return Ok(gpt.partition(number)?.number);
    }
    let guid = name.parse::<Guid>().ok();
    let found: Vec<u32> = gpt
        .partitions()
        .filter(|partition| match guid {
            Some(guid) => partition.unique_guid == guid,
            None => partition.name == name,
        })
        .map(|partition| partition.number)
        .collect();
    match found[..] {
        [number] => Ok(number),
        [] => bail!("there is no partition {name:?}; gptprio show lists the partitions"),
        _ => bail!("{name:?} names partitions {found:?}; use the number"),
    }
}
