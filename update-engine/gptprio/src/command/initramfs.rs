//! Packs `gptprio-init` and what it needs into an initramfs.
//!
//! The format is the kernel's: cpio "newc" (Documentation/driver-api/early-userspace/
//! buffer-format.rst), written here so that no other program is needed. Equal files give
//! an equal archive: all belongs to root and carries no time.
//!
//! ```text
//!   "070701" ino mode uid gid nlink mtime size major minor rmajor rminor namesize check
//!            13 fields of 8 hexadecimal digits; name with a final zero, to a multiple
//!            of 4; content, to a multiple of 4; the next entry … "TRAILER!!!"
//! ```

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::arguments::InitramfsOptions;

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// Writes the archive.
pub(super) fn pack(options: &InitramfsOptions) -> Result<()> {
    let mut archive = Archive::default();
    for folder in ["dev", "etc", "modules"] {
        archive.folder(folder)?;
    }
    // Before it has mounted anything, the program needs a place for its first words.
    archive.device("dev/console", (5, 1))?;
    archive.device("dev/null", (1, 3))?;
    archive.file("init", PROGRAM, &read(&options.init)?)?;
    if let Some(settings) = &options.settings {
        archive.file("etc/gptprio.conf", FILE, &read(settings)?)?;
    }
    let mut list = String::new();
    for module in &options.modules {
        let name = module_name(module)?;
        archive.file(&format!("modules/{name}"), FILE, &read(module)?)?;
        list.push_str(name);
        list.push('\n');
    }
    archive.file("modules/list", FILE, list.as_bytes())?;
    let archive = archive.end()?;
    let output = &options.output;
    fs::write(output, archive).with_context(|| format!("cannot write {}", output.display()))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn module_name(path: &Path) -> Result<&str> {
    let name = path.file_name().and_then(|name| name.to_str());
    match name {
        Some(name) if name.ends_with(".ko") => Ok(name),
        _ => bail!(
            "{} is not called NAME.ko; a compressed module has to be decompressed first",
            path.display()
        ),
    }
}

/// A growing archive.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn folder(&mut self, name: &str) -> Result<()> {
        self.entry(name, FOLDER, (0, 0), b"")
    }

    fn device(&mut self, name: &str, number: (u32, u32)) -> Result<()> {
        self.entry(name, CHARACTER_DEVICE, number, b"")
    }

    fn file(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.entry(name, mode, (0, 0), content)
    }

    /// The bytes, with the mark of the end.
    fn end(mut self) -> Result<Vec<u8>> {
        self.entry("TRAILER!!!", 0, (0, 0), b"")?;
        Ok(self.bytes)
    }

    fn entry(
        &mut self,
        name: &str,
        mode: u32,
        (major, minor): (u32, u32),
        content: &[u8],
    ) -> Result<()> {
        self.entries += 1;
        let size = u32::try_from(content.len()).with_context(|| format!("{name} is too large"))?;
        let name_size = u32::try_from(name.len() + 1).context("a name is too long")?;
        let (number, links, none) = (self.entries, 1, 0);
        self.bytes.extend(b"070701");
        for field in [
            number, mode, none, none, links, none, size, none, none, major, minor, name_size, none,
        ] {
            self.bytes.extend(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}
