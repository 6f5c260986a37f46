//! What is wrong with a copy of the partition table.

use alloc::sync::Arc;
use core::fmt;

use crate::device::DeviceError;

/// One of the two copies of the partition table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableCopy {
    /// At the start of the disk; the one that Linux and firmware prefer.
    Primary,
    /// At the end of the disk.
    Backup,
}

impl fmt::Display for TableCopy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TableCopy::Primary => "primary",
            TableCopy::Backup => "backup",
        })
    }
}

/// The state of both copies.
#[derive(Clone, Debug)]
pub struct Health {
    /// The copy at the start of the disk.
    pub primary: CopyHealth,
    /// The copy at the end of the disk.
    pub backup: CopyHealth,
}

impl Health {
    /// Both copies are valid and say the same.
    pub fn is_good(&self) -> bool {
        matches!(
            (&self.primary, &self.backup),
            (CopyHealth::Valid, CopyHealth::Valid)
        )
    }
}

/// The state of one copy. `Display` makes the end of a sentence: "the backup copy is …".
#[derive(Clone, Debug)]
pub enum CopyHealth {
    /// All checksums hold.
    Valid,
    /// All checksums hold, but the primary is valid too and says something else. The
    /// primary is used; the next write makes this copy equal to it.
    Differs,
    /// Not to be believed. The next write rebuilds it from the other copy.
    Broken(Damage),
}

impl fmt::Display for CopyHealth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CopyHealth::Valid => f.write_str("valid"),
            CopyHealth::Differs => f.write_str("valid, but differs from the primary"),
            CopyHealth::Broken(damage) => write!(f, "broken: {damage}"),
        }
    }
}

/// The first reason found not to believe a copy. Sectors count from 0.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Damage {
    /// The device could not be read there.
    Unreadable(Arc<DeviceError>),
    /// The copy would lie beyond the end of the disk.
    OutsideDisk {
        /// Where it should be.
        lba: u64,
        /// Sectors on the disk.
        sectors: u64,
    },
    /// The sector does not begin with `EFI PART`.
    NoSignature {
        /// Where it should be.
        lba: u64,
    },
    /// The header says that it is smaller than its fields or larger than a sector.
    HeaderSize(u32),
    /// The header's checksum does not hold.
    HeaderChecksum {
        /// As written in the header.
        stored: u32,
        /// As it should be.
        computed: u32,
    },
    /// The header says that it belongs into another sector.
    WrongPlace {
        /// As written in the header.
        stored: u64,
        /// Where it was found.
        lba: u64,
    },
    /// The area for partitions is empty or leaves the disk.
    UsableArea {
        /// First usable sector.
        first: u64,
        /// Last usable sector.
        last: u64,
    },
    /// The size of an entry is not 128, 256, … 4096.
    EntrySize(u32),
    /// There are no entries, or more than fit into 1 MiB.
    EntryCount(u32),
    /// The entries lie outside the disk, over the header, or where partitions may lie.
    EntriesPlace {
        /// First sector of the entries.
        lba: u64,
        /// How many sectors they need.
        sectors: u64,
    },
    /// The checksum of the entries does not hold.
    EntriesChecksum {
        /// As written in the header.
        stored: u32,
        /// As it should be.
        computed: u32,
    },
}

impl Damage {
    pub(super) fn unreadable(error: DeviceError) -> Damage {
        Damage::Unreadable(Arc::new(error))
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Damage::Unreadable(error) => write!(f, "{error}: {}", error.cause()),
            Damage::OutsideDisk { lba, sectors } => write!(
                f,
                "header at sector {lba} lies outside the disk of {sectors} sectors"
            ),
            Damage::NoSignature { lba } => write!(f, "no header in sector {lba}"),
            Damage::HeaderSize(size) => write!(f, "header size {size} is impossible"),
            Damage::HeaderChecksum { stored, computed } => write!(
                f,
                "header checksum is {stored:#010x}, should be {computed:#010x}"
            ),
            Damage::WrongPlace { stored, lba } => {
                write!(f, "header in sector {lba} belongs into sector {stored}")
            }
            Damage::UsableArea { first, last } => {
                write!(f, "usable sectors {first} to {last} are impossible")
            }
            Damage::EntrySize(size) => write!(f, "entry size {size} is not supported"),
            Damage::EntryCount(count) => write!(f, "entry count {count} is not supported"),
            Damage::EntriesPlace { lba, sectors } => {
                write!(f, "{sectors} sectors of entries cannot lie at sector {lba}")
            }
            Damage::EntriesChecksum { stored, computed } => write!(
                f,
                "entries checksum is {stored:#010x}, should be {computed:#010x}"
            ),
        }
    }
}
