//! erofs: files compressed by lz4 in physical clusters of whole blocks.
//!
//! ```text
//! | 1024 | superblock 128 | configurations of compressors | ... inodes and data ...
//! ```
//! A file is cut in logical clusters of one block. An index after the inode has an
//! entry for each: the *head* of an extent, with where in the cluster the extent
//! starts and which block it is stored from; or *nonhead*, within an extent. The
//! first nonhead of an extent may say how many blocks are stored. The index is one
//! of two forms: full, 8 bytes an entry, or compact, 2 or 4 bytes, in packs that
//! share the number of a block.
//!
//! What lz4 wrote is at the end of its blocks, after zeros; no block of lz4 starts
//! with a zero. The end of a file may be stored after its index instead. Extents of
//! other compressors are left out.

use std::collections::BTreeSet;

use super::bytes::{self, u8, u16, u32, u64};
use super::{Collector, Fault, LARGEST, Layout};
use crate::recompress::{Codec, Method};

const NAME: &str = "erofs";
const SUPERBLOCK: u64 = 1024;
const MAGIC: u32 = 0xe0f5_e1e2;

// Incompatible features.
const ZERO_PADDING: u32 = 0x1;
const COMPRESSION_CONFIGURED: u32 = 0x2;
const FRAGMENTS: u32 = 0x20;
/// Those that are known, of which none but the first two changes what is read here:
/// chunked files, devices or a second head, inline clusters, fragments, xattr prefixes.
const KNOWN: u32 = 0x7f;

// Advice of a file's index.
const COMPACT_2_BYTES: u16 = 0x1;
const BIG_CLUSTERS: u16 = 0x2;
const BIG_CLUSTERS_HEAD2: u16 = 0x4;
const INLINE_END: u16 = 0x8;
const FRAGMENT_END: u16 = 0x20;

/// A distance that is a number of stored blocks instead.
const STORED_BLOCKS: u32 = 1 << 11;

/// Largest physical cluster in bytes.
const LARGEST_STORED: u64 = 1 << 20;

/// Bytes after its own that the HC encoder sees, as far as they matter: its last
/// match may go on there. A few dozen were enough for every cluster of a large image.
const AHEAD: u32 = 4096;
/// The same of the fast encoder, which has another table for inputs below 64 KiB.
const AHEAD_FAST: u32 = 64 << 10;

pub(super) fn read(image: &[u8]) -> Option<Result<Layout, Fault>> {
    if u32(image, SUPERBLOCK) != Some(MAGIC) {
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
    collector: Collector<'a>,
    block_bits: u32,
    /// Where inodes are counted from.
    inodes: u64,
    features: u32,
    /// Largest physical cluster of lz4 in bytes.
    capacity: u32,
    /// Inodes not yet read, by number.
    left: Vec<u64>,
    seen: BTreeSet<u64>,
    /// Entries of indexes and directories that may still be read.
    work: u64,
}

/// What is needed of an inode.
struct Inode {
    layout: u16,
    directory: bool,
    size: u64,
    /// Block of the data, where that lies flat.
    start: u32,
    /// After the inode and its attributes.
    end: u64,
}

/// An entry of an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entry {
    /// Starts an extent.
    Head {
        lz4: bool,
        /// Byte of the logical cluster.
        offset: u32,
        block: u32,
    },
    /// Goes on with one, which may say how many blocks it has.
    Nonhead { stored: Option<u32> },
}

/// Types of entries.
const HEAD: u32 = 1;
const NONHEAD: u32 = 2;

impl<'a> Reader<'a> {
    fn open(image: &'a [u8]) -> Result<Self, Fault> {
        let ended = || fault("end of the superblock", SUPERBLOCK);
        let field = |at| u32(image, SUPERBLOCK + at).ok_or_else(ended);
        let block_bits = u32::from(u8(image, SUPERBLOCK + 12).ok_or_else(ended)?);
        if !(9..=16).contains(&block_bits) {
            return Err(fault("block size out of range", SUPERBLOCK + 12));
        }
        let features = field(80)?;
        if features & !KNOWN != 0 {
            return Err(fault("feature that is not known", SUPERBLOCK + 80));
        }
        let root = u16(image, SUPERBLOCK + 14).ok_or_else(ended)?;
        let mut left = vec![u64::from(root)];
        if features & FRAGMENTS != 0 {
            left.extend(u64(image, SUPERBLOCK + 96).filter(|packed| *packed != 0));
        }
        Ok(Self {
            image,
            collector: Collector::new(image),
            block_bits,
            inodes: u64::from(field(40)?) << block_bits,
            features,
            capacity: capacity(image, features, block_bits).ok_or_else(ended)?,
            left,
            seen: BTreeSet::new(),
            work: bytes::size(image.len()),
        })
    }

    fn read(mut self) -> Result<Layout, Fault> {
        // Without the padding, nothing tells where what lz4 wrote ends.
        if self.features & ZERO_PADDING != 0 {
            while let Some(number) = self.left.pop() {
                if self.seen.insert(number) {
                    self.inode(number)?;
                }
            }
        }
        // A cluster has the capacity of all, or its own: of what a hint gave its
        // file, or that of a second attempt at the end of a file.
        let block = 1 << self.block_bits;
        let lists = (1..=self.capacity / block)
            .map(|blocks| methods(self.capacity, blocks * block))
            .collect();
        Ok(self.collector.finish(NAME, lists))
    }

    fn inode(&mut self, number: u64) -> Result<(), Fault> {
        let at = number
            .checked_mul(32)
            .and_then(|at| at.checked_add(self.inodes));
        let at = at.ok_or_else(|| fault("inode beyond the end", number))?;
        let inode = inode(self.image, at).ok_or_else(|| fault("end of an inode", at))?;
        match inode.layout {
            // Flat, the latter with its end after the inode.
            0 | 2 if inode.directory => self
                .directory(&inode)
                .ok_or_else(|| fault("directory beyond the end", at)),
            // An index that makes no sense costs its file only.
            1 | 3 if !inode.directory => {
                let _ = self.file(&inode);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Queues the inodes that a directory names.
    fn directory(&mut self, inode: &Inode) -> Option<()> {
        let block = 1 << self.block_bits;
        let start = u64::from(inode.start) << self.block_bits;
        let mut done = 0;
        while done < inode.size {
            let length = (inode.size - done).min(block);
            let inline = inode.layout == 2 && inode.size - done <= block;
            let at = if inline { inode.end } else { start + done };
            let entries = bytes::slice(self.image, at, length)?;
            // The first name starts where entries end.
            let count = u64::from(u16(entries, 8)?) / 12;
            self.work = self.work.checked_sub(count.max(1))?;
            for index in 0..count {
                let number = u64(entries, index * 12)?;
                if !self.seen.contains(&number) {
                    self.left.push(number);
                }
            }
            done += length;
        }
        Some(())
    }

    /// Lists the extents of a compressed file.
    fn file(&mut self, inode: &Inode) -> Option<()> {
        const LZ4: u8 = 0;
        let header = inode.end.checked_next_multiple_of(8)?;
        let advice = u16(self.image, header + 4)?;
        let algorithms = u8(self.image, header + 6)?;
        let cluster = u8(self.image, header + 7)?;
        // All of the file lies in the packed one.
        if cluster & 0x80 != 0 {
            return None;
        }
        let cluster_bits = self.block_bits + u32::from(cluster & 7);
        // Only the first head's compressor is looked at.
        if algorithms & 0xf != LZ4 || cluster_bits > 20 {
            return None;
        }
        let count = inode.size.div_ceil(1 << cluster_bits);
        self.work = self.work.checked_sub(count)?;
        let index = Index {
            image: self.image,
            cluster_bits,
            big: advice & (BIG_CLUSTERS | BIG_CLUSTERS_HEAD2) != 0,
            start: header + 8,
        };
        let (entries, end) = if inode.layout == 1 {
            index.full(count)?
        } else if self.block_bits == 12 {
            index.compact(count, advice & COMPACT_2_BYTES != 0)?
        } else {
            return None;
        };
        let mut extents = extents(&entries, cluster_bits, inode.size);
        let last = if advice & FRAGMENT_END != 0 {
            extents.pop();
            None
        } else if advice & INLINE_END != 0 {
            let length = u16(self.image, header + 2)?;
            extents.pop().map(|last| (last, end, u64::from(length)))
        } else {
            None
        };
        let places = extents.into_iter().map(|extent| {
            let place = u64::from(extent.block) << self.block_bits;
            let length = u64::from(extent.stored) << self.block_bits;
            (extent, place, length)
        });
        let places: Vec<_> = places.chain(last).collect();
        self.extents(&places);
        Some(())
    }

    /// Lists extents, each with where it is stored and how long.
    fn extents(&mut self, extents: &[(Extent, u64, u64)]) {
        let mut before = None;
        for (extent, place, length) in extents {
            let start = if extent.lz4 {
                self.extent(extent, *place, *length)
            } else {
                Some(*place)
            };
            if let (Some(before), Some(start)) = (before, start) {
                self.collector.link(before, start);
            }
            before = start.filter(|_| extent.lz4);
        }
    }

    /// Lists an extent; gives where its bytes start.
    fn extent(&mut self, extent: &Extent, place: u64, length: u64) -> Option<u64> {
        if length > self.capacity.into() {
            return None;
        }
        let stored = bytes::slice(self.image, place, length)?;
        let zeros = bytes::size(stored.iter().position(|byte| *byte != 0)?);
        // Where parts of a cluster are shared, it holds more than the extent.
        let shared = self.features & FRAGMENTS != 0;
        let limit = usize::try_from(extent.length).ok()?;
        let limit = if shared { LARGEST.max(limit) } else { limit };
        let offset = place + zeros;
        // The list of its size in blocks.
        let list = usize::try_from(length.div_ceil(1 << self.block_bits)).ok()? - 1;
        self.collector.add(
            offset,
            length - zeros,
            Codec::Lz4,
            limit.min(LARGEST * 16),
            list,
        )?;
        Some(offset)
    }
}

/// What may have made a cluster of `own` bytes.
fn methods(capacity: u32, own: u32) -> Vec<Method> {
    let capacities = [Some(capacity), Some(own).filter(|own| *own != capacity)];
    // The level is not recorded: 9 is the default, 12 the best.
    let levels = [12, 9, 11, 10, 8, 7, 6, 5, 4, 3].map(Some);
    let levels = levels.into_iter().chain([None]);
    let mut methods = Vec::new();
    // mkfs.erofs compresses from a buffer. Where that was at its end, there was
    // nothing ahead.
    for shown in [true, false] {
        for capacity in capacities.into_iter().flatten() {
            methods.extend(levels.clone().map(|level| Method::Lz4Fill {
                level,
                capacity,
                ahead: match (shown, level) {
                    (false, _) => 0,
                    (true, Some(_)) => AHEAD,
                    (true, None) => AHEAD_FAST,
                },
            }));
        }
    }
    methods
}

/// The largest physical cluster in bytes.
fn capacity(image: &[u8], features: u32, block_bits: u32) -> Option<u32> {
    let mut blocks = 1;
    if features & COMPRESSION_CONFIGURED != 0 {
        let algorithms = u16(image, SUPERBLOCK + 84)?;
        let slots = u64::from(u8(image, SUPERBLOCK + 13)?);
        // lz4 is the first algorithm, so its configuration is the first there is:
        // its size, the largest distance, the largest cluster in blocks.
        if algorithms & 1 != 0 {
            blocks = u16(image, SUPERBLOCK + 128 + slots * 16 + 4)?.max(1);
        }
    }
    u32::from(blocks)
        .checked_mul(1 << block_bits)
        .filter(|size| u64::from(*size) <= LARGEST_STORED)
}

fn inode(image: &[u8], at: u64) -> Option<Inode> {
    let format = u16(image, at)?;
    let extended = format & 1 != 0;
    let attributes = u64::from(u16(image, at + 2)?);
    let (size, length) = if extended {
        (u64(image, at + 8)?, 64)
    } else {
        (u32(image, at + 8)?.into(), 32)
    };
    // A header of 12 bytes, then words, the first of which is counted as the header.
    let attributes = attributes.checked_sub(1).map_or(0, |more| 12 + more * 4);
    Some(Inode {
        layout: format >> 1 & 7,
        directory: u16(image, at + 4)? & 0o170_000 == 0o040_000,
        size,
        start: u32(image, at + 16)?,
        end: at.checked_add(length + attributes)?,
    })
}

/// A stretch of a file.
struct Extent {
    lz4: bool,
    /// First block, and how many are stored.
    block: u32,
    stored: u32,
    /// Bytes of the file.
    length: u64,
}

fn extents(entries: &[Entry], cluster_bits: u32, size: u64) -> Vec<Extent> {
    let mut extents: Vec<Extent> = Vec::new();
    let mut start = 0;
    for (cluster, entry) in (0_u64..).zip(entries) {
        match *entry {
            Entry::Head { lz4, offset, block } => {
                let at = (cluster << cluster_bits) + u64::from(offset);
                if let Some(last) = extents.last_mut() {
                    last.length = at.saturating_sub(start);
                }
                start = at;
                extents.push(Extent {
                    lz4,
                    block,
                    stored: 1,
                    length: size.saturating_sub(at),
                });
            }
            Entry::Nonhead { stored } => {
                if let (Some(last), Some(stored)) = (extents.last_mut(), stored) {
                    last.stored = stored;
                }
            }
        }
    }
    extents.retain(|extent| extent.length > 0);
    extents
}

/// The index of a file.
struct Index<'a> {
    image: &'a [u8],
    cluster_bits: u32,
    big: bool,
    start: u64,
}

impl Index<'_> {
    /// Entries of 8 bytes: type, offset in the cluster, then a block or two distances.
    /// Gives where the index ends as well.
    fn full(&self, count: u64) -> Option<(Vec<Entry>, u64)> {
        // Eight bytes are left out for an old form of the header.
        let start = self.start + 8;
        let table = bytes::slice(self.image, start, count.checked_mul(8)?)?;
        let mut entries = Vec::new();
        for raw in table.chunks_exact(8) {
            let kind = u32::from(u16(raw, 0)? & 3);
            let distance = u32::from(u16(raw, 4)?);
            entries.push(self.entry(kind, u16(raw, 2)?.into(), distance, u32(raw, 4)?)?);
        }
        Some((entries, start + count * 8))
    }

    fn entry(&self, kind: u32, offset: u32, distance: u32, block: u32) -> Option<Entry> {
        if kind == NONHEAD {
            let stored = (distance & STORED_BLOCKS != 0).then_some(distance & !STORED_BLOCKS);
            if stored.is_some_and(|blocks| blocks == 0 || !self.big) {
                return None;
            }
            return Some(Entry::Nonhead { stored });
        }
        // The second head may have another compressor.
        Some(Entry::Head {
            lz4: kind == HEAD,
            offset,
            block,
        })
    }

    /// Packs of entries: two of 4 bytes up to a bound of 32 bytes, then sixteen of
    /// 2 bytes as far as they are full, then two of 4 bytes again.
    /// Gives where the index ends as well.
    fn compact(&self, count: u64, two_bytes: bool) -> Option<(Vec<Entry>, u64)> {
        let first = (self.start.wrapping_neg() % 32) / 4;
        let short = if two_bytes && first < count {
            (count - first) / 16 * 16
        } else {
            0
        };
        if short > 0 && self.cluster_bits != 12 || self.cluster_bits > 14 {
            return None;
        }
        let mut entries = Vec::new();
        let mut at = self.start;
        let mut left = count;
        for (limit, per_pack, size) in [(first, 2, 8), (short, 16, 32), (u64::MAX, 2, 8)] {
            let mut here = left.min(limit);
            left -= here;
            while here > 0 {
                let used = here.min(per_pack);
                let pack = bytes::slice(self.image, at, size)?;
                self.pack(pack, per_pack, used, &mut entries)?;
                here -= used;
                at += size;
            }
        }
        Some((entries, at))
    }

    /// One pack: entries of so many bits, then the block of the first head in it.
    /// Further heads are stored right after one another.
    fn pack(&self, pack: &[u8], per_pack: u64, used: u64, entries: &mut Vec<Entry>) -> Option<()> {
        let offset_bits = self.cluster_bits.max(12);
        let words = bytes::size(pack.len()) - 4;
        let bits = words * 8 / per_pack;
        let mut block = u32(pack, words)?;
        // Clusters of one block are counted from the one before the first.
        if !self.big {
            block = block.checked_add(1)?;
        }
        // Blocks of the extent before, which may have begun in an earlier pack.
        let mut counted: Option<u32> = None;
        for index in 0..used {
            let bit = index * bits;
            let raw = u32(pack, bit / 8)? >> (bit % 8);
            let low = raw & ((1 << offset_bits) - 1);
            let kind = raw >> offset_bits & 3;
            if kind == NONHEAD {
                let entry = self.entry(kind, 0, low, 0)?;
                if let Entry::Nonhead {
                    stored: Some(blocks),
                } = entry
                {
                    match counted.as_mut() {
                        Some(counted) => *counted = blocks,
                        // Said of an extent whose head is in the pack before:
                        // its blocks come before the first head here.
                        None => block = block.checked_add(blocks)?,
                    }
                }
                entries.push(entry);
            } else {
                if let Some(counted) = counted {
                    block = block.checked_add(counted)?;
                }
                counted = Some(1);
                entries.push(self.entry(kind, low, 0, block)?);
            }
        }
        Some(())
    }
}
