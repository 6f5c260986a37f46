//! Mounts: the kernel's own trees, and partitions, read-only and as long as needed.

use std::fs;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount, umount};

/// What the kernel has to tell: processes, devices, nodes of devices.
pub(crate) fn mount_kernel_trees() -> Result<(), String> {
    for (name, place) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        make_folder(place)?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
        match mount(Some(name), place, Some(name), flags, None::<&str>) {
            // The kernel may have mounted devtmpfs itself.
            Ok(()) | Err(Errno::EBUSY) => {}
            Err(error) => return Err(format!("cannot mount {name} at {place}: {error}")),
        }
    }
    Ok(())
}

/// A mounted partition; unmounted when dropped.
#[derive(Debug)]
pub(crate) struct Mounted {
    place: PathBuf,
}

impl Mounted {
    /// Mounts `node` read-only at `place`, with the first type of filesystem that fits.
    pub(crate) fn read_only(node: &str, place: &str) -> Result<Self, String> {
        make_folder(place)?;
        let flags =
            MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        let types = filesystems()?;
        for name in &types {
            let options = without_replay(name);
            if mount(Some(node), place, Some(name.as_str()), flags, options).is_ok() {
                return Ok(Self {
                    place: place.into(),
                });
            }
        }
        Err(format!(
            "{node} cannot be mounted as {}; if its filesystem is another one, or FAT, whose \
             character sets are modules of their own, put the modules into the initramfs",
            types.join(", ")
        ))
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        &self.place
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // It goes with the kernel at the latest, and nothing was written.
        let _ = umount(&self.place);
    }
}

/// The types for block devices that the kernel knows by now.
fn filesystems() -> Result<Vec<String>, String> {
    let path = "/proc/filesystems";
    let text = fs::read_to_string(path).map_err(|error| format!("cannot read {path}: {error}"))?;
    // Others are marked by a word in front, such as "nodev".
    let names = text.lines().filter_map(|line| line.strip_prefix('\t'));
    Ok(names.map(str::to_owned).collect())
}

/// A journal is replayed even for a read-only mount, and that writes into a slot that may
/// be verified block by block.
fn without_replay(filesystem: &str) -> Option<&'static str> {
    match filesystem {
        "ext3" | "ext4" => Some("noload"),
        "xfs" => Some("norecovery"),
        "btrfs" => Some("rescue=nologreplay"),
        _ => None,
    }
}

fn make_folder(place: &str) -> Result<(), String> {
    fs::create_dir_all(place).map_err(|error| format!("cannot make {place}: {error}"))
}
