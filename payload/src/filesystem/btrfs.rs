//! btrfs on one device: extents of files compressed by zstd.
//!
//! Every structure is named by a logical address; chunks map those to the device.
//! A few chunks are listed in the superblock, which lead to the chunk tree and all
//! others. The tree of roots leads to the trees of subvolumes, whose extent data
//! items say where extents are stored, how long and how compressed. Each extent is one
//! frame, written with zeros to the end of its sector. Inline extents are too small to
//! matter and lie within nodes.

use std::collections::{BTreeMap, BTreeSet};

use super::bytes::{self, u8, u16, u32, u64};
use super::{Collector, Fault, Layout};
use crate::recompress::{Codec, Method};

const NAME: &str = "btrfs";
const SUPERBLOCK: u64 = 64 << 10;
const MAGIC: &[u8] = b"_BHRfS_M";
/// The header of a node.
const HEADER: u64 = 101;
/// A key: object, type, offset.
const KEY: u64 = 17;
/// An item of a leaf: key, offset and size of its data.
const ITEM: u64 = KEY + 8;
/// A pointer of an inner node: key, address, generation.
const POINTER: u64 = KEY + 16;
const MAX_LEVEL: u8 = 7;

// Types of items.
const EXTENT_DATA: u8 = 108;
const ROOT_ITEM: u8 = 132;
const CHUNK_ITEM: u8 = 228;

/// The one tree of files that is always there; further ones are counted from 256.
const FS_TREE: u64 = 5;
const FIRST_FREE: u64 = 256;
/// Objects from here on are internal.
const LAST_FREE: u64 = u64::MAX - 255;

/// Largest extent before compression.
const EXTENT: usize = 128 << 10;

pub(super) fn read(image: &[u8]) -> Option<Result<Layout, Fault>> {
    if bytes::slice(image, SUPERBLOCK + 64, 8) != Some(MAGIC) {
        return None;
    }
    Some(Reader::open(image).and_then(Reader::read))
}

fn fault(what: &'static str, offset: u64) -> Fault {
    Fault {
        filesystem: NAME,
        what,
        offset,
    }
}

struct Reader<'a> {
    image: &'a [u8],
    node_size: u64,
    device: u64,
    /// By logical address.
    chunks: BTreeMap<u64, Chunk>,
    /// Nodes seen, by place on the device, so that each is read once. It bounds
    /// the work, since only so many nodes fit.
    seen: BTreeSet<u64>,
    collector: Collector<'a>,
}

/// A mapped stretch.
#[derive(Clone, Copy)]
struct Chunk {
    length: u64,
    device_offset: u64,
}

/// An item of a leaf.
struct Item<'a> {
    object: u64,
    kind: u8,
    offset: u64,
    data: &'a [u8],
}

impl<'a> Reader<'a> {
    fn open(image: &'a [u8]) -> Result<Self, Fault> {
        let ended = || fault("end of the superblock", SUPERBLOCK);
        let word = |at| u32(image, SUPERBLOCK + at).ok_or_else(ended);
        let long = |at| u64(image, SUPERBLOCK + at).ok_or_else(ended);
        if long(136)? != 1 {
            return Err(fault("more than one device", SUPERBLOCK + 136));
        }
        let node_size = word(148)?;
        if !node_size.is_power_of_two() || !(4096..=64 << 10).contains(&node_size) {
            return Err(fault("node size out of range", SUPERBLOCK + 148));
        }
        let mut reader = Self {
            image,
            node_size: node_size.into(),
            device: long(201)?,
            chunks: BTreeMap::new(),
            seen: BTreeSet::new(),
            collector: Collector::new(image),
        };
        let length = word(160)?.min(2048);
        let system = bytes::slice(image, SUPERBLOCK + 811, length.into()).ok_or_else(ended)?;
        reader.system_chunks(system);
        Ok(reader)
    }

    fn read(mut self) -> Result<Layout, Fault> {
        let field = |at| u64(self.image, SUPERBLOCK + at);
        let level = |at| u8(self.image, SUPERBLOCK + at);
        let (Some(roots), Some(chunks)) = (field(80), field(88)) else {
            return Err(fault("end of the superblock", SUPERBLOCK));
        };
        let (Some(roots_level), Some(chunks_level)) = (level(198), level(199)) else {
            return Err(fault("end of the superblock", SUPERBLOCK));
        };
        self.walk(chunks, chunks_level, &mut |reader, item| {
            if item.kind == CHUNK_ITEM {
                reader.chunk(item.offset, item.data);
            }
        })?;
        let mut trees = Vec::new();
        self.walk(roots, roots_level, &mut |_, item| {
            let files = item.object == FS_TREE || (FIRST_FREE..LAST_FREE).contains(&item.object);
            if item.kind == ROOT_ITEM
                && files
                && let (Some(address), Some(level)) = (u64(item.data, 176), u8(item.data, 238))
            {
                trees.push((address, level));
            }
        })?;
        for (address, level) in trees {
            self.walk(address, level, &mut |reader, item| {
                if item.kind == EXTENT_DATA {
                    // What is not as expected stays as it is.
                    let _ = reader.extent(item.data);
                }
            })?;
        }
        // The level is an option of mounting; nothing records it.
        let levels = [15, 3, 9, 1, 2, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14];
        let methods = levels.map(|level| Method::Zstd {
            level,
            window: Some(17),
            pieces: Some(4096),
        });
        Ok(self.collector.finish(NAME, vec![methods.to_vec()]))
    }

    /// The chunks that the superblock lists: key and chunk, one after the other.
    fn system_chunks(&mut self, list: &[u8]) {
        let mut at = 0;
        while let (Some(address), Some(stripes)) = (u64(list, at + 9), u16(list, at + KEY + 44)) {
            let length = 48 + 32 * u64::from(stripes);
            let Some(chunk) = bytes::slice(list, at + KEY, length) else {
                return;
            };
            self.chunk(address, chunk);
            at += KEY + length;
        }
    }

    /// Notes a chunk, unless it spreads over devices in some other way than whole
    /// copies, of which the first counts.
    fn chunk(&mut self, address: u64, chunk: &[u8]) {
        // RAID0, RAID10, RAID5, RAID6 of the block group flags.
        const STRIPED: u64 = 1 << 3 | 1 << 6 | 1 << 7 | 1 << 8;
        let field = |at| u64(chunk, at);
        if let (Some(length), Some(kind), Some(device), Some(device_offset)) =
            (field(0), field(24), field(48), field(56))
            && kind & STRIPED == 0
            && device == self.device
        {
            let chunk = Chunk {
                length,
                device_offset,
            };
            self.chunks.insert(address, chunk);
        }
    }

    /// Where `length` bytes at a logical address are on the device.
    fn place(&self, address: u64, length: u64) -> Option<u64> {
        let (start, chunk) = self.chunks.range(..=address).next_back()?;
        let within = address - start;
        (within.checked_add(length)? <= chunk.length)
            .then(|| chunk.device_offset.checked_add(within))?
    }

    /// Calls `each` with the items of a tree.
    fn walk(
        &mut self,
        root: u64,
        level: u8,
        each: &mut dyn FnMut(&mut Self, Item<'_>),
    ) -> Result<(), Fault> {
        if level > MAX_LEVEL {
            return Err(fault("tree of too many levels", root));
        }
        let mut left = vec![(root, level)];
        while let Some((address, level)) = left.pop() {
            let Some(place) = self.place(address, self.node_size) else {
                return Err(fault("node outside of any chunk", address));
            };
            // A snapshot shares nodes with its origin.
            if !self.seen.insert(place) {
                continue;
            }
            let node = bytes::slice(self.image, place, self.node_size)
                .ok_or_else(|| fault("node beyond the end", place))?;
            if u64(node, 48) != Some(address) || u8(node, 100) != Some(level) {
                return Err(fault("no node where one should be", place));
            }
            let count = u64::from(u32(node, 96).unwrap_or(0));
            let size = if level == 0 { ITEM } else { POINTER };
            if count > (self.node_size - HEADER) / size {
                return Err(fault("node of too many items", place));
            }
            for index in 0..count {
                let at = HEADER + index * size;
                if level > 0 {
                    left.extend(u64(node, at + KEY).map(|child| (child, level - 1)));
                } else {
                    let item =
                        item(node, at).ok_or_else(|| fault("item beyond its leaf", place))?;
                    each(self, item);
                }
            }
        }
        Ok(())
    }

    /// Lists the extent of an extent data item if it is compressed by zstd.
    fn extent(&mut self, data: &[u8]) -> Option<()> {
        const ZSTD: u8 = 3;
        const REGULAR: u8 = 1;
        if u8(data, 16)? != ZSTD || u16(data, 17)? != 0 || u8(data, 20)? != REGULAR {
            return None;
        }
        let length = u64(data, 29)?;
        let place = self.place(u64(data, 21)?, length)?;
        let stored = bytes::slice(self.image, place, length)?;
        let frame = bytes::size(zstd_safe::find_frame_compressed_size(stored).ok()?);
        self.collector.add(place, frame, Codec::Zstd, EXTENT, 0)?;
        Some(())
    }
}

fn item(node: &[u8], at: u64) -> Option<Item<'_>> {
    let start = HEADER + u64::from(u32(node, at + KEY)?);
    Some(Item {
        object: u64(node, at)?,
        kind: u8(node, at + 8)?,
        offset: u64(node, at + 9)?,
        data: bytes::slice(node, start, u32(node, at + KEY + 4)?.into())?,
    })
}
