//! Files that are read, and files that appear whole or not at all.

use std::fs::{self, File, Metadata, Permissions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use tempfile::NamedTempFile;

/// A file or block device to read, and its size in bytes.
pub(crate) fn open(path: &Path) -> Result<(File, u64)> {
    let open = || -> io::Result<(File, u64)> {
        let mut file = File::open(path)?;
        if file.metadata()?.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        // Metadata tells no size for block devices; seeking does.
        let size = file.seek(SeekFrom::End(0))?;
        file.rewind()?;
        Ok((file, size))
    };
    open().with_context(|| format!("open {}", path.display()))
}

/// A new file that takes its name only when it is complete and on the disk.
/// Dropped before, it leaves nothing behind.
pub(crate) struct Output {
    file: NamedTempFile,
    path: PathBuf,
}

impl Output {
    /// Starts a file that will be `path`, in place of none of `inputs`. Other programs
    /// may read it, as far as the umask allows.
    pub(crate) fn create<'a>(
        path: &Path,
        inputs: impl IntoIterator<Item = &'a PathBuf>,
    ) -> Result<Self> {
        check_replaceable(path, inputs)?;
        Self::with_mode(path, 0o666)
    }

    /// Starts a file that only its owner can read.
    pub(crate) fn create_secret(path: &Path) -> Result<Self> {
        check_replaceable(path, [])?;
        Self::with_mode(path, 0o600)
    }

    fn with_mode(path: &Path, mode: u32) -> Result<Self> {
        let file = tempfile::Builder::new()
            .prefix(".payload-")
            .permissions(Permissions::from_mode(mode))
            .tempfile_in(folder(path))
            .with_context(|| format!("create {}", path.display()))?;
        Ok(Self {
            file,
            path: path.to_owned(),
        })
    }

    /// The file to write to. There is no buffer to flush.
    pub(crate) fn file(&mut self) -> &mut File {
        self.file.as_file_mut()
    }

    /// Puts the complete file in place, instead of one that is there already.
    pub(crate) fn commit(self) -> Result<()> {
        self.put(|file, path| file.persist(path).map_err(|error| error.error))
    }

    /// Puts the complete file in place, unless there is one already.
    pub(crate) fn commit_new(self) -> Result<()> {
        self.put(|file, path| file.persist_noclobber(path).map_err(|error| error.error))
    }

    fn put(self, persist: impl FnOnce(NamedTempFile, &Path) -> io::Result<File>) -> Result<()> {
        let Self { file, path } = self;
        // Data before name, name before success: a power cut leaves the old or
        // the new file.
        let put = || -> io::Result<()> {
            file.as_file().sync_all()?;
            persist(file, &path)?;
            File::open(folder(&path))?.sync_all()
        };
        put().with_context(|| format!("write {}", path.display()))
    }
}

/// Refuses a path that a new file cannot take: renaming over a device would not
/// write to it but replace it, and an image or a private key must not be lost to a
/// typing error.
pub(crate) fn check_replaceable<'a>(
    path: &Path,
    inputs: impl IntoIterator<Item = &'a PathBuf>,
) -> Result<()> {
    let Ok(found) = fs::metadata(path) else {
        return Ok(());
    };
    if !found.is_file() {
        bail!("{} exists and is not a regular file", path.display());
    }
    for input in inputs {
        let is_same = |other: Metadata| (other.dev(), other.ino()) == (found.dev(), found.ino());
        if fs::metadata(input).is_ok_and(is_same) {
            bail!(
                "{} is in use as {} already; write to another file",
                path.display(),
                input.display()
            );
        }
    }
    Ok(())
}

/// A nameless file beside `path`, for data as large as what will be written there.
pub(crate) fn scratch_beside(path: &Path) -> Result<File> {
    let folder = folder(path);
    tempfile::tempfile_in(folder)
        .with_context(|| format!("create a scratch file in {}", folder.display()))
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
