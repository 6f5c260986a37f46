//! dm-verity in the target slot: the hash tree that a payload leaves to the machine,
//! and the root hash in a file beside the kernel, for whoever boots the slot.

use std::fs;
use std::io;
use std::path::Path;

use gptprio::{BlockDevice, DeviceError};
use payload::HashTree;

use crate::whole_file;

/// Builds the tree over what the medium holds, where the data must be already, and
/// brings it there. Returns the root hash. A tree that was begun before is written
/// again from its start.
pub(super) fn build(tree: &HashTree, partition: &dyn BlockDevice) -> Result<[u8; 32], DeviceError> {
    let root_hash = tree.build(
        |offset, buffer| partition.read_medium_at(offset, buffer),
        |offset, block| partition.write_at(offset, block),
    )?;
    partition.sync()?;
    Ok(root_hash)
}

/// Makes the file say `root_hash`: its hexadecimal digits and the end of a line. Without
/// one there must be no file, since it would speak of the image before.
///
/// Whole at any time, and read again, as the kernel beside it is.
pub(super) fn settle_root_hash(path: &Path, root_hash: Option<[u8; 32]>) -> io::Result<()> {
    let Some(root_hash) = root_hash else {
        return match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            _ => {
                whole_file::remove(path)?;
                whole_file::sync_folder(path)
            }
        };
    };
    let line = format!("{}\n", super::hex(&root_hash));
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    whole_file::replace(path, line.as_bytes())?;
    whole_file::sync_folder(path)?;
    let file = fs::File::open(path)?;
    super::application::drop_cached_pages(&file);
    if io::read_to_string(file)? == line {
        Ok(())
    } else {
        Err(io::Error::other("what was written does not read back"))
    }
}
