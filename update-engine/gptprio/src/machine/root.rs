//! Where the machine's files are.
//!
//! Whatever a program reads or writes is named by its path on the machine, from `/`, and
//! turned into a path to open by [`Root::path`]. So the whole machine can be the tree
//! below a folder, on which an unprivileged user can run all of the program.
//!
//! This is a convenience, not a jail: whoever can write to the tree chooses what the
//! program sees.

use std::borrow::ToOwned;
use std::collections::VecDeque;
use std::ffi::OsString;
use std::format;
use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use std::string::String;
use std::vec::Vec;

/// Symlinks followed in one path before it is taken for a loop; the kernel's own limit.
const MAX_SYMLINKS: usize = 40;

/// The tree that holds the machine: `/` or a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// `None` for `/`, where the kernel resolves paths itself.
    dir: Option<PathBuf>,
}

impl Root {
    /// The running machine.
    pub fn system() -> Self {
        Self { dir: None }
    }

    /// The machine in the folder `dir`. `/` is [`Root::system`].
    ///
    /// Fails when `dir` is missing or no folder.
    pub fn at(dir: impl AsRef<Path>) -> io::Result<Self> {
        let dir = dir.as_ref();
        let found = fs::canonicalize(dir).map_err(|error| at_path(&error, dir))?;
        if !found.is_dir() {
            return Err(at_path(&io::ErrorKind::NotADirectory.into(), dir));
        }
        Ok(Self {
            dir: (found != Path::new("/")).then_some(found),
        })
    }

    /// Whether this is the running machine and not a folder.
    pub fn is_system(&self) -> bool {
        self.dir.is_none()
    }

    /// The path to open for `path` on the machine. The file need not exist.
    ///
    /// Below a folder, symlinks are followed as the machine itself would follow them: `/oem` in a
    /// link is the folder's `oem`. `path` must be absolute and free of `..`; a relative path or an
    /// attempt to climb out gives [`io::ErrorKind::InvalidInput`].
    pub fn path(&self, path: impl AsRef<Path>) -> io::Result<PathBuf> {
        let path = path.as_ref();
        if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) {
            let reason = format!("{} is not an absolute path without '..'", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        match &self.dir {
            None => Ok(path.to_owned()),
            Some(dir) => resolve_below(dir, path).map_err(|error| at_path(&error, path)),
        }
    }

    /// The whole content of the file at `path` on the machine, or `None` when there is none.
    ///
    /// Fails on a file of more than `limit` bytes and on anything that a read could hang on. A link
    /// to `/dev/null`, the usual way to mask a file, reads as empty.
    pub fn read(&self, path: impl AsRef<Path>, limit: u64) -> io::Result<Option<Vec<u8>>> {
        let opened = self.path(path)?;
        let file = match OpenOptions::new()
            .read(true)
            // A FIFO without a writer would otherwise block the open for ever.
            .custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits())
            .open(opened)
        {
            Ok(file) => file,
            Err(error) if is_absence(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let kind = file.metadata()?.file_type();
        if !kind.is_file() && !kind.is_char_device() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a regular file",
            ));
        }
        let mut content = Vec::new();
        file.take(limit.saturating_add(1))
            .read_to_end(&mut content)?;
        if u64::try_from(content.len()).is_ok_and(|length| length <= limit) {
            Ok(Some(content))
        } else {
            Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("more than {limit} bytes"),
            ))
        }
    }

    /// As [`Root::read`], as text without surrounding white space. Bytes that are no UTF-8 become
    /// U+FFFD.
    pub fn read_text(&self, path: impl AsRef<Path>, limit: u64) -> io::Result<Option<String>> {
        let content = self.read(path, limit)?;
        Ok(content.map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned()))
    }
}

/// `path` below `dir`, links resolved as by `chroot(dir)`: `..` in a link stops at `dir`.
fn resolve_below(dir: &Path, path: &Path) -> io::Result<PathBuf> {
    let mut pending: VecDeque<OsString> = names(path);
    let mut resolved = PathBuf::new();
    let mut links = 0;
    while let Some(name) = pending.pop_front() {
        if name == ".." {
            resolved.pop();
            continue;
        }
        let candidate = dir.join(&resolved).join(&name);
        match fs::symlink_metadata(&candidate) {
            Ok(metadata) if metadata.is_symlink() => {
                links += 1;
                if links > MAX_SYMLINKS {
                    return Err(io::Error::other("too many levels of symbolic links"));
                }
                let target = fs::read_link(&candidate)?;
                if target.is_absolute() {
                    resolved.clear();
                }
                for name in names(&target).into_iter().rev() {
                    pending.push_front(name);
                }
            }
            Ok(_) => resolved.push(name),
            Err(error) if is_absence(&error) => resolved.push(name),
            Err(error) => return Err(error),
        }
    }
    Ok(dir.join(resolved))
}

/// The names of `path` in order, `..` among them, without the leading `/`.
fn names(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir))
        .map(|part| part.as_os_str().to_owned())
        .collect()
}

/// Whether the error says that there is no such file, as against one that cannot be read.
fn is_absence(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

/// The error with the path in its text; [`io::Error`] alone does not name the file.
fn at_path(error: &io::Error, path: &Path) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::string::ToString;
    use std::vec;

    fn tree() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["etc/flatcar", "oem", "usr/share"] {
            fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        let root = Root::at(dir.path()).unwrap();
        (dir, root)
    }

    #[test]
    fn paths_stay_below_the_root_whatever_links_say() {
        let (dir, root) = tree();
        let below = fs::canonicalize(dir.path()).unwrap();
        symlink("/oem", below.join("usr/share/oem")).unwrap();
        symlink("../../../../../../oem", below.join("usr/share/climb")).unwrap();
        symlink("share", below.join("usr/relative")).unwrap();
        symlink("/", below.join("machine")).unwrap();
        let table = [
            ("/etc/flatcar/update.conf", "etc/flatcar/update.conf"),
            ("/usr/share/oem/oem-release", "oem/oem-release"),
            ("/usr/share/climb/x", "oem/x"),
            ("/usr/relative/oem/x", "oem/x"),
            ("/machine/etc/passwd", "etc/passwd"),
            ("/machine/machine/etc", "etc"),
            ("/not/there/yet", "not/there/yet"),
            ("/", ""),
        ];
        for (path, expected) in table {
            assert_eq!(root.path(path).unwrap(), below.join(expected), "{path}");
        }
    }

    #[test]
    fn climbing_out_relative_paths_and_link_loops_are_refused() {
        let (dir, root) = tree();
        symlink("b", dir.path().join("a")).unwrap();
        symlink("a", dir.path().join("b")).unwrap();
        for path in ["/../etc/passwd", "/etc/../../x", "etc/passwd", "", "/a/x"] {
            assert!(root.path(path).is_err(), "{path}");
        }
        for path in ["/../etc/passwd", "etc/passwd"] {
            assert!(Root::system().path(path).is_err(), "{path}");
        }
    }

    #[test]
    fn the_running_machine_is_its_own_root() {
        let root = Root::at("/").unwrap();
        assert!(root.is_system());
        assert_eq!(
            root.path("/etc/hostname").unwrap(),
            Path::new("/etc/hostname")
        );
    }

    #[test]
    fn a_root_must_be_a_folder() {
        let (dir, _) = tree();
        fs::write(dir.path().join("file"), "").unwrap();
        let error = Root::at(dir.path().join("file")).unwrap_err();
        assert!(error.to_string().contains("file"), "{error}");
        assert!(Root::at(dir.path().join("missing")).is_err());
    }

    #[test]
    fn reading_is_bounded_and_never_hangs() {
        let (dir, root) = tree();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("text"), " abc \n").unwrap();
        symlink("/dev/null", path("masked")).unwrap();
        fs::create_dir(path("dev")).unwrap();
        nix::unistd::mkfifo(&path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();

        assert_eq!(root.read_text("/text", 6).unwrap().as_deref(), Some("abc"));
        assert_eq!(
            root.read("/text", 5).unwrap_err().kind(),
            io::ErrorKind::FileTooLarge
        );
        assert_eq!(root.read("/missing", 5).unwrap(), None);
        assert_eq!(root.read("/text/below", 5).unwrap(), None);
        assert!(root.read("/etc", 5).is_err());
        assert!(root.read("/fifo", 5).is_err());
        assert_eq!(
            root.read("/masked", 5).unwrap(),
            None,
            "the tree has no /dev/null"
        );
        assert_eq!(Root::system().read("/dev/null", 5).unwrap(), Some(vec![]));
        assert!(Root::system().read("/dev/zero", 5).is_err());
    }
}
