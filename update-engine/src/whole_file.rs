//! Small files that are replaced in one step: whatever happens, also a power cut, the
//! old or the new content is there, whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Writes `.NAME.new` beside `path`, for its owner alone, syncs it and renames it to `path`. Lasts
/// only after [`sync_folder`].
pub(crate) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let new = path.with_file_name(format!(".{}.new", name.to_string_lossy()));
    // What a killed writer has left behind. Never written into: it could be anything by now.
    remove(&new)?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    // FAT writes the new name with no content, and where the content is only with the file.
    file.sync_all()
}

/// Removes the file if there is one. Lasts only after [`sync_folder`].
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Makes durable what happened to the names in the folder of `path`.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    File::open(folder)?.sync_all()
}
