//! The partition table: both copies read, believed by their checksums alone, and written
//! so that a power cut at any moment leaves one of them whole.
//!
//! ```text
//!   LBA 0       1         2 …               first usable … last usable              last
//!  ┌──────────┬─────────┬──────────────────┬──────────────────────┬────────────────┬─────────┐
//!  │protective│ primary │ primary entries  │      partitions      │ backup entries │ backup  │
//!  │   MBR    │ header  │                  │                      │                │ header  │
//!  └──────────┴─────────┴──────────────────┴──────────────────────┴────────────────┴─────────┘
//! ```
//!
//! Layouts that differ from this picture are kept as they are: places, sizes and counts
//! come from the headers (UEFI 2.10, §5.3), never from a convention, as long as there is
//! a header that can be believed.

mod entries;
mod header;
mod health;

use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use crate::device::{BlockDevice, DeviceError};
use crate::guid::EFI_SYSTEM_TYPE;
use crate::{Attributes, Change, Guid};

use entries::Entries;
pub use entries::Partition;
use header::{Claims, Header};
pub use health::{CopyHealth, Damage, Health, TableCopy};

/// Why a partition table could not be read, changed or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GptError {
    /// The device counts in sectors for which this crate was not made.
    #[error("sectors of {size} bytes are not supported, only 512 and 4096")]
    SectorSize {
        /// Bytes.
        size: u32,
    },
    /// No copy can be believed, so there is nothing to read and nothing to repair from.
    #[error("no valid partition table (primary copy: {primary}; backup copy: {backup})")]
    BothBroken {
        /// What is wrong with the primary copy.
        primary: Damage,
        /// What is wrong with the backup copy.
        backup: Damage,
    },
    /// The table has no entry in use with this number.
    #[error("there is no partition {number}")]
    NoSuchPartition {
        /// Counted from 1.
        number: u32,
    },
    /// The partition exists or not, but it is none of the slots.
    #[error("partition {number} is not one of the slots")]
    NotASlot {
        /// Counted from 1.
        number: u32,
    },
    /// The entry describes a place where nothing may be written.
    #[error("partition {number} (sectors {first_lba} to {last_lba}) {problem}")]
    PartitionPlace {
        /// Counted from 1.
        number: u32,
        /// First sector of the partition.
        first_lba: u64,
        /// Last sector of the partition.
        last_lba: u64,
        /// What is wrong with that place.
        problem: &'static str,
    },
    /// Another program wrote the table between our read and our write.
    #[error("the partition table changed since it was read; read it again")]
    Changed,
    /// A copy cannot be written because its place is not free.
    #[error("no room for the {copy} copy: header at sector {header_lba}, entries at {entries_lba}")]
    NoRoom {
        /// Which copy.
        copy: TableCopy,
        /// Where its header would lie.
        header_lba: u64,
        /// Where its entries would begin.
        entries_lba: u64,
    },
    /// The device refused a part of writing this copy. The other copy is untouched or
    /// already new.
    #[error("cannot write the {copy} copy of the partition table")]
    Write {
        /// Which copy.
        copy: TableCopy,
        /// The request that failed.
        source: DeviceError,
    },
    /// What was written and synced reads back differently. The other copy was not touched
    /// after that.
    #[error("the {copy} copy of the partition table reads back differently from the medium")]
    NotConfirmed {
        /// Which copy.
        copy: TableCopy,
    },
}

/// The partition table of one disk, held in memory.
///
/// [`Gpt::read`] takes it from the disk, the setters change it in memory, and
/// [`Gpt::write`] puts it back.
#[derive(Debug)]
pub struct Gpt {
    sector_size: u32,
    /// The table that a write expects to find again.
    table: Table,
    /// Its entries with our changes.
    entries: Entries,
    health: Health,
}

/// One complete and verified copy.
#[derive(Debug, Clone, PartialEq)]
struct Table {
    header: Header,
    entries: Entries,
}

impl Gpt {
    /// Reads both copies and takes the primary if it is valid, otherwise the backup.
    ///
    /// The backup is looked for where the primary header says; without a valid primary
    /// header, in the last sector and where the broken header says. It is believed by
    /// its own checksums. At most 1 MiB is read per copy, whatever the headers claim.
    ///
    /// Fails with [`GptError::BothBroken`] when neither copy is valid.
    pub fn read(device: &dyn BlockDevice) -> Result<Gpt, GptError> {
        let disk = OnDisk::read(device)?;
        let table = disk.trusted()?.1.clone();
        Ok(Gpt {
            sector_size: device.sector_size(),
            entries: table.entries.clone(),
            table,
            health: disk.health(),
        })
    }

    /// The state of both copies on the disk when they were last read or written.
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    /// Bytes per sector: 512 or 4096.
    pub fn sector_size(&self) -> u32 {
        self.sector_size
    }

    /// The identity of the disk.
    pub fn disk_guid(&self) -> Guid {
        self.table.header.disk_guid
    }

    /// All entries in use, in the order of their numbers. Gaps in the numbering stay gaps.
    pub fn partitions(&self) -> impl Iterator<Item = Partition> + '_ {
        self.entries.used()
    }

    /// The partition with this number, counted from 1.
    pub fn partition(&self, number: u32) -> Result<Partition, GptError> {
        self.entries
            .get(number)
            .ok_or(GptError::NoSuchPartition { number })
    }

    /// The partition that boot selectors read kernels from: the first EFI system partition,
    /// otherwise the first one labelled [`BOOT_LABEL`].
    pub fn boot_partition(&self) -> Option<Partition> {
        let by_type = |partition: &Partition| partition.type_guid == EFI_SYSTEM_TYPE;
        let by_label = |partition: &Partition| partition.name == BOOT_LABEL;
        let boot = self.partitions().find(by_type);
        boot.or_else(|| self.partitions().find(by_label))
    }

    /// The partitions of one type, in the order of their numbers.
    pub fn slots(&self, type_guid: Guid) -> Vec<Partition> {
        self.partitions()
            .filter(|partition| partition.type_guid == type_guid)
            .collect()
    }

    /// Where the partition's bytes lie on the disk.
    ///
    /// This is the gate before anything is written into a partition, so it refuses
    /// entries that end before they begin, leave the usable area or overlap another
    /// partition.
    pub fn byte_range(&self, partition: &Partition) -> Result<Range<u64>, GptError> {
        let &Partition {
            number,
            first_lba,
            last_lba,
            ..
        } = partition;
        let refused = |problem| GptError::PartitionPlace {
            number,
            first_lba,
            last_lba,
            problem,
        };
        let header = &self.table.header;
        if first_lba > last_lba {
            return Err(refused("ends before it begins"));
        }
        if first_lba < header.first_usable || last_lba > header.last_usable {
            return Err(refused("lies outside the usable area of the disk"));
        }
        let overlaps = |other: &Partition| {
            other.number != number && other.first_lba <= last_lba && first_lba <= other.last_lba
        };
        if self.partitions().any(|other| overlaps(&other)) {
            return Err(refused("overlaps another partition"));
        }
        // The usable area was found to lie inside the disk, so this cannot overflow.
        let size = u64::from(self.sector_size);
        let start = first_lba.checked_mul(size);
        let end = last_lba
            .checked_add(1)
            .and_then(|lba| lba.checked_mul(size));
        match (start, end) {
            (Some(start), Some(end)) => Ok(start..end),
            _ => Err(refused("lies beyond the end of the disk")),
        }
    }

    /// Changes the attributes of one partition in memory.
    pub fn set_attributes(&mut self, number: u32, attributes: Attributes) -> Result<(), GptError> {
        self.partition(number)?;
        self.entries.set_attributes(number, attributes);
        Ok(())
    }

    /// Applies what [`select`](crate::Selection::after_boot), [`prioritize`](crate::prioritize)
    /// and the other decisions ask for, in memory.
    pub fn apply(&mut self, changes: &[Change]) -> Result<(), GptError> {
        changes
            .iter()
            .try_for_each(|change| self.set_attributes(change.number, change.attributes))
    }

    /// Makes both copies on the disk equal to this table, and durable.
    ///
    /// One copy is written, synced and read back from the medium; only then the other.
    /// So at every instant one copy is valid and holds the old or the new table. First
    /// comes the copy that is *not* the one read: normally the backup, but the primary
    /// when the backup is the only valid copy. Within one copy entries go before the
    /// header, except in a broken one, see `Image::store`.
    ///
    /// Sectors that already hold the right bytes are not written. A broken or differing
    /// copy is rebuilt from the valid one.
    ///
    /// Fails with [`GptError::Changed`], before anything is written, when the table on
    /// the disk is not the one that was read. Holds no lock itself: open the disk with
    /// `FileDevice` for writing, which does.
    pub fn write(&mut self, device: &dyn BlockDevice) -> Result<(), GptError> {
        let disk = OnDisk::read(device)?;
        let (trusted, table) = disk.trusted()?;
        if !table.says_the_same_as(&self.table) {
            return Err(GptError::Changed);
        }
        let order = match trusted {
            TableCopy::Primary => [TableCopy::Backup, TableCopy::Primary],
            TableCopy::Backup => [TableCopy::Primary, TableCopy::Backup],
        };
        // Both places are checked before the first byte is written.
        let images = [
            disk.image(order[0], table, &self.entries)?,
            disk.image(order[1], table, &self.entries)?,
        ];
        for image in &images {
            image.store(device)?;
            image.confirm(device)?;
        }
        self.table.entries = self.entries.clone();
        self.health = Health {
            primary: CopyHealth::Valid,
            backup: CopyHealth::Valid,
        };
        Ok(())
    }
}

/// Label of a boot partition that has not the type of one.
pub const BOOT_LABEL: &str = "EFI-SYSTEM";

/// Both copies as they lie on the disk.
struct OnDisk {
    sectors: u64,
    primary: Found,
    backup: Found,
}

/// What was found in the place of one copy.
struct Found {
    header_lba: u64,
    /// What the header says, valid or not.
    claims: Option<Claims>,
    /// The header alone; its entries may still be broken.
    header_is_valid: bool,
    table: Result<Table, Damage>,
}

impl OnDisk {
    const PRIMARY_LBA: u64 = 1;

    fn read(device: &dyn BlockDevice) -> Result<OnDisk, GptError> {
        let size = device.sector_size();
        if !matches!(size, 512 | 4096) {
            return Err(GptError::SectorSize { size });
        }
        let sectors = device.len() / u64::from(size);
        let primary = Found::read(device, TableCopy::Primary, Self::PRIMARY_LBA, sectors);
        let backup = Self::read_backup(device, &primary, sectors);
        Ok(OnDisk {
            sectors,
            primary,
            backup,
        })
    }

    /// The backup lies where the primary header says, even a broken one: a disk image that
    /// was written over a larger one may have a table of that at the end. When there is
    /// none it should lie at the end.
    fn read_backup(device: &dyn BlockDevice, primary: &Found, sectors: u64) -> Found {
        let read = |lba| Found::read(device, TableCopy::Backup, lba, sectors);
        let claimed = primary.claims.map(|claims| read(claims.alternate_lba));
        claimed
            .filter(|found| primary.header_is_valid || found.table.is_ok())
            .unwrap_or_else(|| read(sectors.saturating_sub(1)))
    }

    /// The copy to believe: Linux and firmware prefer the primary, and so do we.
    fn trusted(&self) -> Result<(TableCopy, &Table), GptError> {
        match (&self.primary.table, &self.backup.table) {
            (Ok(table), _) => Ok((TableCopy::Primary, table)),
            (Err(_), Ok(table)) => Ok((TableCopy::Backup, table)),
            (Err(primary), Err(backup)) => Err(GptError::BothBroken {
                primary: primary.clone(),
                backup: backup.clone(),
            }),
        }
    }

    fn health(&self) -> Health {
        let differs = match (&self.primary.table, &self.backup.table) {
            (Ok(primary), Ok(backup)) => {
                !primary.says_the_same_as(backup)
                    || backup.header.alternate_lba != self.primary.header_lba
            }
            _ => false,
        };
        Health {
            primary: match &self.primary.table {
                Ok(_) => CopyHealth::Valid,
                Err(damage) => CopyHealth::Broken(damage.clone()),
            },
            backup: match &self.backup.table {
                Ok(_) if differs => CopyHealth::Differs,
                Ok(_) => CopyHealth::Valid,
                Err(damage) => CopyHealth::Broken(damage.clone()),
            },
        }
    }

    /// The bytes of one copy for a table with these entries.
    fn image(
        &self,
        copy: TableCopy,
        trusted: &Table,
        entries: &Entries,
    ) -> Result<Image, GptError> {
        let (own, other) = match copy {
            TableCopy::Primary => (&self.primary, &self.backup),
            TableCopy::Backup => (&self.backup, &self.primary),
        };
        // A valid header keeps its own reserved bytes; a broken one is made from the
        // valid one.
        let base = match &own.table {
            Ok(table) if table.header.same_layout(&trusted.header) => &table.header,
            _ => &trusted.header,
        };
        let header_lba = own.header_lba;
        let entries_lba = self.entries_place(copy, own, &trusted.header)?;
        Ok(Image {
            copy,
            replaces_broken: own.table.is_err(),
            header_lba,
            entries_lba,
            header: base.placed(
                header_lba,
                other.header_lba,
                entries_lba,
                entries.checksum(),
            ),
            entries: entries.bytes().to_vec(),
        })
    }

    /// Where the entries of one copy go: where its header has them, if that is outside of
    /// all partitions, otherwise beside the header.
    fn entries_place(
        &self,
        copy: TableCopy,
        own: &Found,
        layout: &Header,
    ) -> Result<u64, GptError> {
        let header_lba = own.header_lba;
        let beside_header = match copy {
            TableCopy::Primary => header_lba.saturating_add(1),
            TableCopy::Backup => header_lba.saturating_sub(layout.entries_sectors()),
        };
        own.claims
            .map(|claims| claims.entries_lba)
            .into_iter()
            .chain([beside_header])
            .find(|&lba| layout.has_room(copy, header_lba, lba, self.sectors))
            .ok_or(GptError::NoRoom {
                copy,
                header_lba,
                entries_lba: beside_header,
            })
    }
}

impl Found {
    fn read(device: &dyn BlockDevice, copy: TableCopy, header_lba: u64, sectors: u64) -> Found {
        let sector = match header_lba {
            lba if lba >= sectors => Err(Damage::OutsideDisk { lba, sectors }),
            lba => read_sectors(device, lba, 1).map_err(Damage::unreadable),
        };
        let claims = sector.as_deref().ok().and_then(header::claims);
        let header = sector.and_then(|sector| Header::parse(sector, copy, header_lba, sectors));
        Found {
            header_lba,
            claims,
            header_is_valid: header.is_ok(),
            table: header.and_then(|header| Table::read(device, header)),
        }
    }
}

impl Table {
    /// Reads the entries that belong to a valid header.
    fn read(device: &dyn BlockDevice, header: Header) -> Result<Table, Damage> {
        let mut bytes = read_sectors(device, header.entries_lba, header.entries_sectors())
            .map_err(Damage::unreadable)?;
        bytes.truncate(header.entries_len());
        let entries = Entries::new(bytes, header.entry_size);
        match entries.checksum() {
            computed if computed == header.entries_checksum => Ok(Table { header, entries }),
            computed => Err(Damage::EntriesChecksum {
                stored: header.entries_checksum,
                computed,
            }),
        }
    }

    /// Whether both copies describe the same partitions on the same disk.
    fn says_the_same_as(&self, other: &Table) -> bool {
        self.header.same_layout(&other.header) && self.entries == other.entries
    }
}

/// One copy as it shall lie on the disk.
struct Image {
    copy: TableCopy,
    replaces_broken: bool,
    header_lba: u64,
    entries_lba: u64,
    /// One sector.
    header: Vec<u8>,
    /// Not padded to whole sectors.
    entries: Vec<u8>,
}

impl Image {
    /// Writes the sectors that differ, and syncs.
    ///
    /// A valid copy holds the old table until its first sector is overwritten and the
    /// new one after its last; in between its checksums do not hold, whatever the order.
    ///
    /// What lies in a broken copy is unknown: perhaps a header that an earlier crash
    /// left beside entries of another table. Half overwritten, such entries could match
    /// it again and bring back a table that nobody chose. Therefore the header goes
    /// first and alone: from then on no entries but ours match. (What remains is a sector
    /// that tears inside the header's fields and so heals an old header; no disk tears
    /// that fine.)
    ///
    /// Syncs even when nothing differs: an earlier writer may have been killed between
    /// its write and its sync, and then only a cache holds what we see.
    fn store(&self, device: &dyn BlockDevice) -> Result<(), GptError> {
        let header = || store_differing(device, self.header_lba, &self.header);
        let entries = || store_differing(device, self.entries_lba, &self.entries);
        let stored = match self.replaces_broken {
            true => header()
                .and_then(|()| device.sync())
                .and_then(|()| entries()),
            false => entries().and_then(|()| header()),
        };
        stored
            .and_then(|()| device.sync())
            .map_err(|source| GptError::Write {
                copy: self.copy,
                source,
            })
    }

    /// Compares what is on the medium with what was stored.
    fn confirm(&self, device: &dyn BlockDevice) -> Result<(), GptError> {
        for (lba, expected) in [
            (self.entries_lba, &self.entries),
            (self.header_lba, &self.header),
        ] {
            let mut found = vec![0; expected.len()];
            device
                .read_medium_at(byte_offset(device, lba), &mut found)
                .map_err(|source| GptError::Write {
                    copy: self.copy,
                    source,
                })?;
            if &found != expected {
                return Err(GptError::NotConfirmed { copy: self.copy });
            }
        }
        Ok(())
    }
}

/// Writes those whole sectors from `lba` on in which `data` differs from the device,
/// neighbours in one request. Bytes behind `data` in its last sector are kept.
fn store_differing(device: &dyn BlockDevice, lba: u64, data: &[u8]) -> Result<(), DeviceError> {
    let size = usize::try_from(device.sector_size()).expect("4096 at most");
    let start = byte_offset(device, lba);
    let count = u64::try_from(data.len().div_ceil(size)).expect("1 MiB at most");
    // A sector that cannot be read is written: that is how disks heal it.
    let (old, readable) = match read_sectors(device, lba, count) {
        Ok(old) => (old, true),
        Err(_) => (vec![0; data.len().next_multiple_of(size)], false),
    };
    let mut new = old.clone();
    new[..data.len()].copy_from_slice(data);

    let differs = |index: usize| {
        let range = index * size..(index + 1) * size;
        !readable || old[range.clone()] != new[range]
    };
    let sectors = new.len() / size;
    let mut index = 0;
    while index < sectors {
        let run = (index..sectors).take_while(|&index| differs(index)).count();
        if run > 0 {
            let range = index * size..(index + run) * size;
            let offset = u64::try_from(range.start).expect("1 MiB at most");
            device.write_at(start + offset, &new[range])?;
        }
        index += run.max(1);
    }
    Ok(())
}

/// Reads whole sectors; callers have checked that they lie on the disk.
fn read_sectors(device: &dyn BlockDevice, lba: u64, count: u64) -> Result<Vec<u8>, DeviceError> {
    let length = count * u64::from(device.sector_size());
    let mut bytes = vec![0; usize::try_from(length).expect("1 MiB at most")];
    device.read_at(byte_offset(device, lba), &mut bytes)?;
    Ok(bytes)
}

/// The place in bytes of a sector that lies on the disk.
fn byte_offset(device: &dyn BlockDevice, lba: u64) -> u64 {
    lba.checked_mul(u64::from(device.sector_size()))
        .expect("sectors on the disk have byte offsets")
}
