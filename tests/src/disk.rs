//! A disk with two USR slots, in a file: made with `sgdisk`, asked about with
//! `cgpt`, so that our own table code is on one side only.

use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::process::run;
use crate::programs::{program, system_tool};

const SECTOR: u64 = 512;
/// Partitions begin at whole MiB.
const ALIGNMENT: u64 = 1 << 20;
const TOOL_LIMIT: Duration = Duration::from_secs(30);
const USR_TYPE: &str = "5dfbf5f4-2848-4bac-aa5e-0d9a20b745a6";

/// One of the two slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// Partition 3.
    A,
    /// Partition 4.
    B,
}

impl Slot {
    /// Number of its partition, as on the disks of the original.
    #[must_use]
    pub fn number(self) -> u64 {
        match self {
            Self::A => 3,
            Self::B => 4,
        }
    }

    /// Its letter.
    #[must_use]
    pub fn letter(self) -> &'static str {
        match self {
            Self::A => "A",
            Self::B => "B",
        }
    }

    /// Its well-known unique GUID, by which GRUB tells the slots apart.
    #[must_use]
    pub fn guid(self) -> &'static str {
        match self {
            Self::A => "7130c94a-213a-4e5a-8e26-6cce9662f132",
            Self::B => "e03dd35c-7c2d-4a47-b3fe-27f15780a57c",
        }
    }
}

/// Boot attributes of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// 0 never boots, 15 first.
    pub priority: u8,
    /// Boots left to prove itself.
    pub tries: u8,
    /// Has booted well.
    pub successful: bool,
}

impl fmt::Display for Attributes {
    /// As the field writes them: priority/tries/successful.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let successful = u8::from(self.successful);
        write!(f, "{}/{}/{successful}", self.priority, self.tries)
    }
}

/// Sizes of the partitions in bytes, each a number of whole MiB.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    /// EFI partition, number 1.
    pub efi: u64,
    /// Each of the two slots.
    pub slot: u64,
    /// Root file system, number 9, behind the slots; 0 for none.
    pub root: u64,
}

/// A disk image.
#[derive(Debug)]
pub struct Disk {
    path: PathBuf,
    layout: Layout,
}

impl Disk {
    /// Makes a disk at `path` with partitions 1 (EFI), 3 (USR-A) and 4 (USR-B),
    /// both slots `slot_size` bytes, with the attributes of a machine that was
    /// updated before: A runs (2/0/1), B is the fallback (1/0/1).
    ///
    /// # Errors
    ///
    /// `sgdisk` fails; `slot_size` is no whole number of MiB.
    pub fn create(path: &Path, slot_size: u64) -> Result<Self> {
        let layout = Layout {
            efi: ALIGNMENT,
            slot: slot_size,
            root: 0,
        };
        Self::create_with(path, layout)
    }

    /// As [`Disk::create`], with these sizes.
    ///
    /// # Errors
    ///
    /// As [`Disk::create`].
    pub fn create_with(path: &Path, layout: Layout) -> Result<Self> {
        for size in [layout.efi, layout.slot, layout.root] {
            ensure!(size.is_multiple_of(ALIGNMENT), "partitions are whole MiB");
        }
        let disk = Self {
            path: path.to_owned(),
            layout,
        };
        File::create(path)?.set_len(disk.root_start() + layout.root + ALIGNMENT)?;
        let new = |number: u64, start: u64, size: u64| {
            format!(
                "--new={number}:{}:{}",
                start / SECTOR,
                (start + size) / SECTOR - 1
            )
        };
        let mut sgdisk = system_tool("sgdisk");
        sgdisk
            .arg(new(1, Self::EFI_START, layout.efi))
            .args(["--typecode=1:ef00", "--change-name=1:EFI-SYSTEM"]);
        for (slot, name) in [(Slot::A, "USR-A"), (Slot::B, "USR-B")] {
            let number = slot.number();
            sgdisk
                .arg(new(number, disk.slot_start(slot), layout.slot))
                .arg(format!("--typecode={number}:{USR_TYPE}"))
                .arg(format!("--partition-guid={number}:{}", slot.guid()))
                .arg(format!("--change-name={number}:{name}"));
        }
        if layout.root > 0 {
            sgdisk
                .arg(new(9, disk.root_start(), layout.root))
                .arg("--change-name=9:ROOT");
        }
        // Priority in the bits 48 to 51, successful in bit 56.
        sgdisk
            .arg("--attributes=3:=:0102000000000000")
            .arg("--attributes=4:=:0101000000000000")
            .arg(path);
        run(&mut sgdisk, TOOL_LIMIT)?.success().context("sgdisk")?;
        Ok(disk)
    }

    /// The disk that is at `path` already.
    #[must_use]
    pub fn at(path: &Path, layout: Layout) -> Self {
        Self {
            path: path.to_owned(),
            layout,
        }
    }

    /// The image file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes `content` to the begin of a slot.
    ///
    /// # Errors
    ///
    /// It does not fit, or the file cannot be written.
    pub fn write_slot(&self, slot: Slot, content: &[u8]) -> Result<()> {
        ensure!(
            u64::try_from(content.len())? <= self.layout.slot,
            "{} bytes do not fit into a slot",
            content.len()
        );
        let mut file = File::options().write(true).open(&self.path)?;
        file.seek(SeekFrom::Start(self.slot_start(slot)))?;
        file.write_all(content)?;
        Ok(())
    }

    /// The first `length` bytes of a slot.
    ///
    /// # Errors
    ///
    /// The file cannot be read.
    pub fn read_slot(&self, slot: Slot, length: usize) -> Result<Vec<u8>> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(self.slot_start(slot)))?;
        let mut content = vec![0; length];
        file.read_exact(&mut content)?;
        Ok(content)
    }

    /// The boot attributes of a slot, as `cgpt` reads them.
    ///
    /// # Errors
    ///
    /// `cgpt` finds no such partition or no table.
    pub fn attributes(&self, slot: Slot) -> Result<Attributes> {
        let ask = |field: &str| -> Result<u8> {
            let mut cgpt = system_tool("cgpt");
            cgpt.args(["show", "-i", &slot.number().to_string(), field])
                .arg(&self.path);
            let answer = run(&mut cgpt, TOOL_LIMIT)?.success().context("cgpt")?;
            answer.trim().parse().with_context(|| answer)
        };
        Ok(Attributes {
            priority: ask("-P")?,
            tries: ask("-T")?,
            successful: ask("-S")? == 1,
        })
    }

    /// The slot that boots next. Changes nothing.
    ///
    /// # Errors
    ///
    /// `gptprio` finds none.
    pub fn next_boot(&self) -> Result<Slot> {
        self.select(true)
    }

    /// Boots: chooses a slot and spends one of its tries.
    ///
    /// # Errors
    ///
    /// As [`Disk::next_boot`].
    pub fn boot(&self) -> Result<Slot> {
        self.select(false)
    }

    /// What `sgdisk` thinks of both copies of the table.
    ///
    /// # Errors
    ///
    /// It found a problem; its words are in the error.
    pub fn verify_table(&self) -> Result<()> {
        let mut sgdisk = system_tool("sgdisk");
        let said = run(sgdisk.arg("--verify").arg(&self.path), TOOL_LIMIT)?;
        // It mends in memory what it finds broken, and then finds no problems.
        let doubts = ["Caution", "Warning", "invalid", "corrupt", "damaged"]
            .iter()
            .any(|word| said.stdout.contains(word) || said.stderr.contains(word));
        ensure!(
            said.status.success() && said.stdout.contains("No problems found") && !doubts,
            "sgdisk says: {}{}",
            said.stdout,
            said.stderr
        );
        Ok(())
    }

    fn select(&self, dry_run: bool) -> Result<Slot> {
        let mut gptprio = program("gptprio")?;
        gptprio.arg("next").arg(&self.path);
        if dry_run {
            gptprio.arg("--dry-run");
        }
        let guid = run(&mut gptprio, TOOL_LIMIT)?
            .success()
            .context("gptprio next")?;
        [Slot::A, Slot::B]
            .into_iter()
            .find(|slot| guid.trim() == slot.guid())
            .with_context(|| format!("{guid} is no slot of this disk"))
    }

    /// Where the EFI partition begins, in bytes.
    pub const EFI_START: u64 = ALIGNMENT;

    /// Where a slot begins, in bytes.
    #[must_use]
    pub fn slot_start(&self, slot: Slot) -> u64 {
        let slots_before = match slot {
            Slot::A => 0,
            Slot::B => self.layout.slot,
        };
        Self::EFI_START + self.layout.efi + slots_before
    }

    /// Where the root file system begins, in bytes.
    #[must_use]
    pub fn root_start(&self) -> u64 {
        self.slot_start(Slot::B) + self.layout.slot
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_disk_is_sound_and_boots_slot_a() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::create(&folder.path().join("disk.img"), 1 << 20).unwrap();
        disk.verify_table().unwrap();
        assert_eq!(disk.attributes(Slot::A).unwrap().to_string(), "2/0/1");
        assert_eq!(disk.attributes(Slot::B).unwrap().to_string(), "1/0/1");
        assert_eq!(disk.boot().unwrap(), Slot::A);

        disk.write_slot(Slot::A, b"left").unwrap();
        disk.write_slot(Slot::B, b"right").unwrap();
        assert_eq!(disk.read_slot(Slot::A, 5).unwrap(), b"left\0");
        assert_eq!(disk.read_slot(Slot::B, 5).unwrap(), b"right");
        assert!(disk.write_slot(Slot::A, &vec![0; (1 << 20) + 1]).is_err());
    }
}
