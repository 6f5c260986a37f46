//! Partition tables for tests.

use std::string::{String, ToString};
use std::vec::Vec;

use crate::{Attributes, BlockDevice, Guid, USR_TYPE};

/// A partition table to be laid out on a disk, with protective MBR and both copies, as
/// `sgdisk` would.
#[derive(Clone, Debug)]
pub struct Layout {
    partitions: Vec<New>,
    alignment: u64,
    entry_count: u32,
    entry_size: u32,
}

#[derive(Clone, Debug)]
struct New {
    number: u32,
    name: String,
    type_guid: Guid,
    len: u64,
    attributes: Attributes,
}

const LINUX_DATA: Guid = Guid::from_fields(
    0x0fc6_3daf,
    0x8483,
    0x4772,
    [0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4],
);
const EFI_SYSTEM: Guid = Guid::from_fields(
    0xc12a_7328,
    0xf81f,
    0x11d2,
    [0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b],
);

impl Layout {
    /// A table of 128 entries without partitions.
    pub fn empty() -> Layout {
        Layout {
            partitions: Vec::new(),
            alignment: 4096,
            entry_count: 128,
            entry_size: 128,
        }
    }

    /// EFI-SYSTEM (1), USR-A (3), USR-B (4) and ROOT (9) of 64 KiB each; USR-A has
    /// priority 1 and is successful, USR-B is blank: a freshly installed machine. Fits
    /// on 1 MiB.
    pub fn two_slots() -> Layout {
        Layout::two_slots_of(64 << 10)
    }

    /// The same with slots of `slot_len` bytes.
    pub fn two_slots_of(slot_len: u64) -> Layout {
        let running = Attributes::default().with_priority(1).with_successful(true);
        Layout::empty()
            .partition(1, "EFI-SYSTEM", EFI_SYSTEM, 64 << 10, Attributes::default())
            .partition(3, "USR-A", USR_TYPE, slot_len, running)
            .partition(4, "USR-B", USR_TYPE, slot_len, Attributes::default())
            .partition(9, "ROOT", LINUX_DATA, 64 << 10, Attributes::default())
    }

    /// Adds a partition of `len` bytes behind the ones before.
    #[must_use]
    pub fn partition(
        mut self,
        number: u32,
        name: &str,
        type_guid: Guid,
        len: u64,
        attributes: Attributes,
    ) -> Layout {
        self.partitions.push(New {
            number,
            name: name.to_string(),
            type_guid,
            len,
            attributes,
        });
        self
    }

    /// Other than 128 entries of 128 bytes.
    #[must_use]
    pub fn entries(self, count: u32, size: u32) -> Layout {
        Layout {
            entry_count: count,
            entry_size: size,
            ..self
        }
    }

    /// Where partitions begin: a multiple of `bytes`.
    #[must_use]
    pub fn aligned_to(self, bytes: u64) -> Layout {
        Layout {
            alignment: bytes,
            ..self
        }
    }

    /// Bytes of a disk that is just large enough.
    pub fn disk_len(&self, sector_size: u32) -> u64 {
        let size = u64::from(sector_size);
        let first_usable = (2 + self.entries_sectors(size)) * size;
        let mut end = first_usable;
        for partition in &self.partitions {
            end = end.next_multiple_of(self.alignment) + partition.len.next_multiple_of(size);
        }
        // At least one usable sector, even without partitions.
        let end = end.max(first_usable + size);
        (end + (1 + self.entries_sectors(size)) * size).next_multiple_of(self.alignment)
    }

    /// Writes the table and syncs. Panics when it does not fit.
    pub fn write_to(&self, device: &dyn BlockDevice) {
        let size = u64::from(device.sector_size());
        let sectors = device.len() / size;
        let array = self.entries_sectors(size);
        let first_usable = 2 + array;
        let last_usable = sectors - array - 2;
        let entries = self.encode_entries(size, first_usable, last_usable);

        let put = |lba: u64, bytes: &[u8]| {
            device
                .write_at(lba * size, bytes)
                .expect("the disk is large enough");
        };
        let header = |lba: u64, alternate: u64, entries_lba: u64| {
            let mut header = Vec::new();
            header.extend(b"EFI PART");
            header.extend(0x0001_0000_u32.to_le_bytes());
            header.extend(92_u32.to_le_bytes());
            header.extend([0; 8]);
            for place in [lba, alternate, first_usable, last_usable] {
                header.extend(place.to_le_bytes());
            }
            header.extend(unique_guid(0, "").to_bytes());
            header.extend(entries_lba.to_le_bytes());
            header.extend(self.entry_count.to_le_bytes());
            header.extend(self.entry_size.to_le_bytes());
            header.extend(crc32fast::hash(&entries).to_le_bytes());
            let checksum = crc32fast::hash(&header);
            header[16..20].copy_from_slice(&checksum.to_le_bytes());
            header
        };
        put(0, &protective_mbr(sectors));
        put(1, &header(1, sectors - 1, 2));
        put(2, &entries);
        put(sectors - 1 - array, &entries);
        put(sectors - 1, &header(sectors - 1, 1, sectors - 1 - array));
        device.sync().expect("nothing is wrong with the disk");
    }

    fn entries_sectors(&self, sector_size: u64) -> u64 {
        (u64::from(self.entry_count) * u64::from(self.entry_size)).div_ceil(sector_size)
    }

    fn encode_entries(&self, size: u64, first_usable: u64, last_usable: u64) -> Vec<u8> {
        let entry_size = usize::try_from(self.entry_size).expect("fits");
        let count = usize::try_from(self.entry_count).expect("fits");
        let mut entries = std::vec![0; count * entry_size];
        let mut end = first_usable * size;
        for partition in &self.partitions {
            let start = end.next_multiple_of(self.alignment).next_multiple_of(size);
            end = start + partition.len.next_multiple_of(size);
            assert!(end / size <= last_usable + 1, "the disk is too small");

            let index = usize::try_from(partition.number - 1).expect("fits");
            let entry = &mut entries[index * entry_size..][..128];
            entry[..16].copy_from_slice(&partition.type_guid.to_bytes());
            let unique = unique_guid(partition.number, &partition.name);
            entry[16..32].copy_from_slice(&unique.to_bytes());
            entry[32..40].copy_from_slice(&(start / size).to_le_bytes());
            entry[40..48].copy_from_slice(&(end / size - 1).to_le_bytes());
            entry[48..56].copy_from_slice(&partition.attributes.raw().to_le_bytes());
            let name = partition
                .name
                .encode_utf16()
                .take(36)
                .flat_map(u16::to_le_bytes);
            for (place, byte) in entry[56..].iter_mut().zip(name) {
                *place = byte;
            }
        }
        entries
    }
}

/// The well-known identities of the two slots, which boot loaders compare; something
/// recognizable for all others.
fn unique_guid(number: u32, name: &str) -> Guid {
    match name {
        "USR-A" => "7130c94a-213a-4e5a-8e26-6cce9662f132".parse(),
        "USR-B" => "e03dd35c-7c2d-4a47-b3fe-27f15780a57c".parse(),
        _ => Ok(Guid::from_fields(number, 0x1234, 0x4678, [0x9a; 8])),
    }
    .expect("well-formed")
}

/// One partition over the whole disk, so that tools which know no GPT see no free space.
fn protective_mbr(sectors: u64) -> [u8; 512] {
    let mut mbr = [0; 512];
    let entry = &mut mbr[446..462];
    entry[2] = 2; // first sector in CHS
    entry[4] = 0xee; // type: GPT protective
    entry[5..8].fill(0xff); // last sector in CHS, beyond what it can express
    entry[8..12].copy_from_slice(&1_u32.to_le_bytes());
    let length = u32::try_from(sectors - 1).unwrap_or(u32::MAX);
    entry[12..16].copy_from_slice(&length.to_le_bytes());
    mbr[510..].copy_from_slice(&[0x55, 0xaa]);
    mbr
}
