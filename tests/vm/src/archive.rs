//! The format of initial RAM disks: cpio, "newc" variant, not compressed (see
//! `Documentation/driver-api/early-userspace/buffer-format.rst` of Linux).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};

const FOLDER: u32 = 0o040_755;
const FILE: u32 = 0o100_000;
const DEVICE: u32 = 0o020_600;
const LINK: u32 = 0o120_777;

/// An archive in the making.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds an empty folder.
    ///
    /// # Errors
    ///
    /// The name is too long for the format.
    pub fn folder(&mut self, name: &str) -> Result<()> {
        self.entry(name, FOLDER, (0, 0), b"")
    }

    /// Adds the file at `path`, with its permissions.
    ///
    /// # Errors
    ///
    /// It cannot be read, or is too large for the format.
    pub fn file(&mut self, name: &str, path: &Path) -> Result<()> {
        let content = fs::read(path).with_context(|| path.display().to_string())?;
        let mode = fs::metadata(path)?.permissions().mode() & 0o777;
        self.entry(name, FILE | mode, (0, 0), &content)
    }

    /// Adds a file of this content.
    ///
    /// # Errors
    ///
    /// It is too large for the format.
    pub fn text(&mut self, name: &str, content: &str) -> Result<()> {
        self.entry(name, FILE | 0o755, (0, 0), content.as_bytes())
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    ///
    /// The name is too long for the format.
    pub fn link(&mut self, name: &str, to: &str) -> Result<()> {
        self.entry(name, LINK, (0, 0), to.as_bytes())
    }

    /// Adds a character device. The kernel opens `/dev/console` before anything
    /// has mounted `/dev`.
    ///
    /// # Errors
    ///
    /// The name is too long for the format.
    pub fn device(&mut self, name: &str, major: u32, minor: u32) -> Result<()> {
        self.entry(name, DEVICE, (major, minor), b"")
    }

    /// The whole archive.
    ///
    /// # Errors
    ///
    /// Never in practice: as [`Archive::folder`].
    pub fn finish(mut self) -> Result<Vec<u8>> {
        self.entry("TRAILER!!!", 0, (0, 0), b"")?;
        Ok(self.bytes)
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) -> Result<()> {
        self.entries += 1;
        let size = u32::try_from(content.len())?;
        let name_size = u32::try_from(name.len() + 1)?;
        // Inode, mode, owner, group, links, time, size, device of the file, device that
        // it is, length of the name, checksum.
        let fields = [
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            size,
            0,
            0,
            device.0,
            device.1,
            name_size,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(content);
        self.align();
        Ok(())
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}
