//! The array of partition entries (UEFI 2.10, table 5-6).
//!
//! ```text
//!   0 partition type GUID (16)   40 last LBA (inclusive)
//!  16 unique GUID (16)           48 attributes
//!  32 first LBA                  56 name, 36 UTF-16LE units
//!                               128 reserved, to the end of the entry
//! ```

use alloc::string::String;
use alloc::vec::Vec;

use crate::{Attributes, Guid};

/// One partition as its entry describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Counted from 1; the place of the entry in the table.
    pub number: u32,
    /// What the partition is for.
    pub type_guid: Guid,
    /// The identity of this very partition (`PARTUUID`).
    pub unique_guid: Guid,
    /// First sector. As read: it may lie anywhere, see [`Gpt::byte_range`](crate::Gpt::byte_range).
    pub first_lba: u64,
    /// Last sector, which still belongs to the partition.
    pub last_lba: u64,
    /// The attribute bits.
    pub attributes: Attributes,
    /// The label (`PARTLABEL`), at most 36 UTF-16 units; what is no valid UTF-16 is
    /// replaced by U+FFFD.
    pub name: String,
}

/// All entries of a table, used or not, byte by byte as on the disk.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entries {
    bytes: Vec<u8>,
    entry_size: usize,
}

impl Entries {
    /// `bytes` holds whole entries of `entry_size` bytes, 128 at least.
    pub(super) fn new(bytes: Vec<u8>, entry_size: usize) -> Entries {
        Entries { bytes, entry_size }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn checksum(&self) -> u32 {
        crc32fast::hash(&self.bytes)
    }

    /// The entries whose type is not nil.
    pub(super) fn used(&self) -> impl Iterator<Item = Partition> + '_ {
        (1..)
            .zip(self.bytes.chunks_exact(self.entry_size))
            .filter_map(|(number, entry)| decode(number, entry))
    }

    /// The entry in use with this number.
    pub(super) fn get(&self, number: u32) -> Option<Partition> {
        decode(number, self.bytes.get(self.place(number)?..)?)
    }

    /// Changes eight bytes of an entry that [`Entries::get`] knows.
    pub(super) fn set_attributes(&mut self, number: u32, attributes: Attributes) {
        if let Some(entry) = self
            .place(number)
            .and_then(|place| self.bytes.get_mut(place..))
        {
            entry[48..56].copy_from_slice(&attributes.raw().to_le_bytes());
        }
    }

    /// Where an entry begins, if it is not beyond what memory can hold.
    fn place(&self, number: u32) -> Option<usize> {
        let index = usize::try_from(number.checked_sub(1)?).ok()?;
        index.checked_mul(self.entry_size)
    }
}

fn decode(number: u32, entry: &[u8]) -> Option<Partition> {
    let entry: &[u8; 128] = entry.first_chunk()?;
    let type_guid = Guid::from_bytes(field(entry, 0));
    if type_guid.is_nil() {
        return None;
    }
    Some(Partition {
        number,
        type_guid,
        unique_guid: Guid::from_bytes(field(entry, 16)),
        first_lba: u64::from_le_bytes(field(entry, 32)),
        last_lba: u64::from_le_bytes(field(entry, 40)),
        attributes: Attributes::from_raw(u64::from_le_bytes(field(entry, 48))),
        name: decode_name(&entry[56..]),
    })
}

fn field<const N: usize>(entry: &[u8; 128], offset: usize) -> [u8; N] {
    *entry[offset..]
        .first_chunk()
        .expect("all fields lie inside the entry")
}

fn decode_name(bytes: &[u8]) -> String {
    let units = bytes
        .chunks_exact(2)
        .map(|unit| u16::from_le_bytes([unit[0], unit[1]]))
        .take_while(|&unit| unit != 0);
    char::decode_utf16(units)
        .map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect()
}
