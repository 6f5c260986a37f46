//! The header of one copy (UEFI 2.10, table 5-5).
//!
//! ```text
//!   0 signature "EFI PART"      40 first usable LBA
//!   8 revision                  48 last usable LBA
//!  12 header size               56 disk GUID (16)
//!  16 CRC-32 of the header      72 first LBA of the entries
//!  20 reserved                  80 number of entries
//!  24 LBA of this header        84 size of an entry
//!  32 LBA of the other header   88 CRC-32 of the entries
//!                               92 reserved, to the end of the sector
//! ```

use alloc::vec::Vec;

use super::{Damage, TableCopy};
use crate::Guid;

/// Bytes of the fields; a header may say that it is larger.
const FIELDS: u32 = 92;

/// The most that is read for the entries of one copy: 8192 entries of the usual 128 bytes.
const MAX_ENTRIES_BYTES: u64 = 1 << 20;

/// The second is what ChromiumOS writes on disks that other systems should not touch.
const SIGNATURES: [&[u8; 8]; 2] = [b"EFI PART", b"CHROMEOS"];

/// A header whose checksum holds and whose fields make sense on this disk.
///
/// Its entries have not been looked at.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Header {
    /// The whole sector as read, so that bytes we do not know stay as they are.
    sector: Vec<u8>,
    pub(super) alternate_lba: u64,
    pub(super) first_usable: u64,
    pub(super) last_usable: u64,
    pub(super) disk_guid: Guid,
    pub(super) entries_lba: u64,
    pub(super) entry_size: usize,
    pub(super) entries_checksum: u32,
    entries_len: usize,
}

/// What a header says, whether it is valid or not.
#[derive(Clone, Copy)]
pub(super) struct Claims {
    pub(super) alternate_lba: u64,
    pub(super) entries_lba: u64,
}

/// The claims of a sector that at least has the signature of a header.
pub(super) fn claims(sector: &[u8]) -> Option<Claims> {
    has_signature(sector).then(|| Claims {
        alternate_lba: u64_at(sector, 32),
        entries_lba: u64_at(sector, 72),
    })
}

impl Header {
    /// Checks one sector, found at `lba` of a disk with `sectors` sectors.
    pub(super) fn parse(
        sector: Vec<u8>,
        copy: TableCopy,
        lba: u64,
        sectors: u64,
    ) -> Result<Header, Damage> {
        if !has_signature(&sector) {
            return Err(Damage::NoSignature { lba });
        }
        let header_size = u32_at(&sector, 12);
        let size = usize::try_from(header_size)
            .ok()
            .filter(|&size| header_size >= FIELDS && size <= sector.len())
            .ok_or(Damage::HeaderSize(header_size))?;
        let stored = u32_at(&sector, 16);
        let computed = checksum(&sector[..size]);
        if stored != computed {
            return Err(Damage::HeaderChecksum { stored, computed });
        }
        let stored = u64_at(&sector, 24);
        if stored != lba {
            return Err(Damage::WrongPlace { stored, lba });
        }
        let first = u64_at(&sector, 40);
        let last = u64_at(&sector, 48);
        if first > last || last >= sectors {
            return Err(Damage::UsableArea { first, last });
        }
        let entry_size = u32_at(&sector, 84);
        if !entry_size.is_power_of_two() || !(128..=4096).contains(&entry_size) {
            return Err(Damage::EntrySize(entry_size));
        }
        let entry_count = u32_at(&sector, 80);
        let entries_len = u64::from(entry_count) * u64::from(entry_size);
        if entry_count == 0 || entries_len > MAX_ENTRIES_BYTES {
            return Err(Damage::EntryCount(entry_count));
        }
        let header = Header {
            alternate_lba: u64_at(&sector, 32),
            first_usable: first,
            last_usable: last,
            disk_guid: Guid::from_bytes(array_at(&sector, 56)),
            entries_lba: u64_at(&sector, 72),
            entry_size: usize::try_from(entry_size).expect("4096 at most"),
            entries_checksum: u32_at(&sector, 88),
            entries_len: usize::try_from(entries_len).expect("1 MiB at most"),
            sector,
        };
        match header.has_room(copy, lba, header.entries_lba, sectors) {
            true => Ok(header),
            false => Err(Damage::EntriesPlace {
                lba: header.entries_lba,
                sectors: header.entries_sectors(),
            }),
        }
    }

    /// Whether a copy of this table can have its header and its entries at these places
    /// without touching a partition: the primary before the usable area, the backup
    /// behind it.
    pub(super) fn has_room(
        &self,
        copy: TableCopy,
        header_lba: u64,
        entries_lba: u64,
        sectors: u64,
    ) -> bool {
        let Some(end) = entries_lba.checked_add(self.entries_sectors()) else {
            return false;
        };
        match copy {
            TableCopy::Primary => header_lba < entries_lba && end <= self.first_usable,
            TableCopy::Backup => {
                let beside_header = end <= header_lba || header_lba < entries_lba;
                self.last_usable < entries_lba
                    && self.last_usable < header_lba
                    && end <= sectors
                    && header_lba < sectors
                    && beside_header
            }
        }
    }

    /// Bytes of all entries.
    pub(super) fn entries_len(&self) -> usize {
        self.entries_len
    }

    /// Sectors that hold the entries.
    pub(super) fn entries_sectors(&self) -> u64 {
        u64::try_from(self.entries_len.div_ceil(self.sector.len())).expect("1 MiB at most")
    }

    /// Whether the headers agree in all but the place of the copy, the checksum of the
    /// entries and reserved bytes.
    pub(super) fn same_layout(&self, other: &Header) -> bool {
        let layout = |header: &Header| {
            (
                u64_at(&header.sector, 8), // revision and header size
                header.first_usable,
                header.last_usable,
                header.disk_guid,
                header.entry_size,
                header.entries_len,
            )
        };
        layout(self) == layout(other)
    }

    /// The sector of a header with the same fields for a copy at this place.
    pub(super) fn placed(
        &self,
        lba: u64,
        alternate_lba: u64,
        entries_lba: u64,
        entries_checksum: u32,
    ) -> Vec<u8> {
        let mut sector = self.sector.clone();
        sector[24..32].copy_from_slice(&lba.to_le_bytes());
        sector[32..40].copy_from_slice(&alternate_lba.to_le_bytes());
        sector[72..80].copy_from_slice(&entries_lba.to_le_bytes());
        sector[88..92].copy_from_slice(&entries_checksum.to_le_bytes());
        let size = usize::try_from(u32_at(&sector, 12)).expect("checked to fit the sector");
        let checksum = checksum(&sector[..size]);
        sector[16..20].copy_from_slice(&checksum.to_le_bytes());
        sector
    }
}

fn has_signature(sector: &[u8]) -> bool {
    SIGNATURES
        .iter()
        .any(|signature| sector.starts_with(*signature))
}

/// CRC-32 of a header, whose own checksum field counts as zero.
fn checksum(header: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&header[..16]);
    hasher.update(&[0; 4]);
    hasher.update(&header[20..]);
    hasher.finalize()
}

fn array_at<const N: usize>(sector: &[u8], offset: usize) -> [u8; N] {
    *sector[offset..]
        .first_chunk()
        .expect("a sector is longer than the header's fields")
}

fn u32_at(sector: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(array_at(sector, offset))
}

fn u64_at(sector: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(array_at(sector, offset))
}
