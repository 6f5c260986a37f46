//! erofs: files compressed by lz4, lzma or zstd in physical clusters of whole blocks.
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
//! What an encoder wrote is at the end of its blocks, after zeros; none starts
//! with a zero. The end of a file may be stored after its index instead. Extents of
//! deflate are left out: what makes them is not a library, but mkfs.erofs itself.

use std::collections::BTreeSet;

use super::bytes::{self, u8, u16, u32, u64};
use super::{Collector, Fault, LARGEST, Layout};
use crate::recompress::{Codec, MOST_DICTIONARY, Method};

const NAME: &str = "erofs";
const SUPERBLOCK: u64 = 1024;
const MAGIC: u32 = 0xe0f5_e1e2;

// Incompatible features.
const ZERO_PADDING: u32 = 0x1;
const COMPRESSION_CONFIGURED: u32 = 0x2;
const FRAGMENTS: u32 = 0x20;
/// Those that are known. The others change nothing that is read here: chunked files,
/// devices or a second head, inline clusters, xattr prefixes.
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
/// Largest extent in plain bytes that is decoded. Zeros make larger ones; these are
/// small as they are stored, and machines would need memory for them.
const LARGEST_PLAIN: u64 = 4 << 20;
/// Logarithm to the base of two of the largest window of zstd, as the kernel has it.
const LARGEST_WINDOW: u32 = 20;

/// Bytes after its own that the HC encoder sees, as far as they matter: its last
/// match may go on there. A few dozen were enough for every cluster of a large image.
const AHEAD: u32 = 4096;
/// The same of the fast encoder, which has another table for inputs below 64 KiB.
const AHEAD_FAST: u32 = 64 << 10;
/// The same of lzma, which weighs up to 4096 positions at once, and the longest match.
const AHEAD_LZMA: u32 = 8192;

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
    settings: Settings,
    /// Largest physical cluster of lzma that was seen, in blocks.
    largest_lzma: u64,
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
        /// None where the bytes are stored plain, or by what is not known.
        codec: Option<Codec>,
        /// Byte of the logical cluster.
        offset: u32,
        block: u32,
    },
    /// Goes on with one, which may say how many blocks it has.
    Nonhead { stored: Option<u32> },
}

/// Types of entries. The second head may be of another compressor.
const HEAD: u32 = 1;
const NONHEAD: u32 = 2;
const HEAD2: u32 = 3;

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
            settings: Settings::read(image, features, block_bits).ok_or_else(|| {
                fault(
                    "settings of compressors cut short or out of range",
                    SUPERBLOCK,
                )
            })?,
            largest_lzma: 0,
            left,
            seen: BTreeSet::new(),
            work: bytes::size(image.len()),
        })
    }

    fn read(mut self) -> Result<Layout, Fault> {
        // Without the padding, nothing tells where what an encoder wrote ends.
        if self.features & ZERO_PADDING != 0 {
            while let Some(number) = self.left.pop() {
                if self.seen.insert(number) {
                    self.inode(number)?;
                }
            }
        }
        let lists = self
            .settings
            .candidates(1 << self.block_bits, self.largest_lzma);
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
        let header = inode.end.checked_next_multiple_of(8)?;
        let advice = u16(self.image, header + 4)?;
        let algorithms = u8(self.image, header + 6)?;
        let cluster = u8(self.image, header + 7)?;
        // All of the file lies in the packed one.
        if cluster & 0x80 != 0 {
            return None;
        }
        let cluster_bits = self.block_bits + u32::from(cluster & 7);
        let codecs = [codec(algorithms & 0xf), codec(algorithms >> 4)];
        if codecs == [None; 2] || cluster_bits > 20 {
            return None;
        }
        let count = inode.size.div_ceil(1 << cluster_bits);
        self.work = self.work.checked_sub(count)?;
        let index = Index {
            image: self.image,
            codecs,
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
            let start = match extent.codec {
                Some(codec) => self.extent(extent, codec, *place, *length),
                None => Some(*place),
            };
            if let (Some(before), Some(start)) = (before, start) {
                self.collector.link(before, start);
            }
            before = start.filter(|_| extent.codec.is_some());
        }
    }

    /// Lists an extent; gives where its bytes start.
    fn extent(&mut self, extent: &Extent, codec: Codec, place: u64, length: u64) -> Option<u64> {
        let blocks = length.div_ceil(1 << self.block_bits);
        let hint = self.settings.hint(codec, blocks, self.block_bits)?;
        if extent.length > LARGEST_PLAIN {
            return None;
        }
        let stored = bytes::slice(self.image, place, length)?;
        // Many extents may name one cluster, and all of it may be zeros.
        self.collector.spend(length)?;
        let zeros = bytes::size(stored.iter().position(|byte| *byte != 0)?);
        // Where parts of a cluster are shared, it holds more than the extent; lzma
        // decodes from the extent that has all of it.
        let shared = self.features & FRAGMENTS != 0 && codec != Codec::MicroLzma;
        let limit = usize::try_from(extent.length).ok()?;
        let limit = if shared { LARGEST.max(limit) } else { limit };
        let offset = place + zeros;
        self.collector
            .add(offset, length - zeros, codec, limit, hint)?;
        if codec == Codec::MicroLzma {
            self.largest_lzma = self.largest_lzma.max(blocks);
        }
        Some(offset)
    }
}

/// The compressors by their numbers.
fn codec(algorithm: u8) -> Option<Codec> {
    match algorithm {
        0 => Some(Codec::Lz4),
        1 => Some(Codec::MicroLzma),
        3 => Some(Codec::Zstd),
        _ => None,
    }
}

/// What the superblock says of the compressors.
struct Settings {
    /// Largest physical cluster of lz4 in bytes.
    lz4_capacity: u32,
    /// Dictionary size of lzma in bytes, if there is lzma.
    lzma_dictionary: Option<u32>,
    /// Logarithm to the base of two of zstd's window, if there is zstd.
    zstd_window: Option<u32>,
}

impl Settings {
    /// For each compressor there is a length of 2 bytes, then as many: of lz4 the
    /// largest distance and the largest cluster in blocks, of lzma the size of the
    /// dictionary, of zstd a format and the logarithm of the window less ten.
    fn read(image: &[u8], features: u32, block_bits: u32) -> Option<Self> {
        let mut lz4_blocks = 1;
        let mut settings = Self {
            lz4_capacity: 0,
            lzma_dictionary: None,
            zstd_window: None,
        };
        if features & COMPRESSION_CONFIGURED != 0 {
            let algorithms = u16(image, SUPERBLOCK + 84)?;
            let slots = u64::from(u8(image, SUPERBLOCK + 13)?);
            let mut at = SUPERBLOCK + 128 + slots * 16;
            for algorithm in (0..16).filter(|bit| algorithms >> bit & 1 != 0) {
                let own = at + 2;
                match codec(algorithm) {
                    Some(Codec::Lz4) => lz4_blocks = u16(image, own + 2)?.max(1),
                    Some(Codec::MicroLzma) => settings.lzma_dictionary = Some(u32(image, own)?),
                    Some(Codec::Zstd) => {
                        let window = u32::from(u8(image, own + 1)?) + 10;
                        settings.zstd_window = Some(window).filter(|log| *log <= LARGEST_WINDOW);
                    }
                    _ => {}
                }
                at = own + u64::from(u16(image, at)?);
            }
        }
        settings.lz4_capacity = u32::from(lz4_blocks)
            .checked_mul(1 << block_bits)
            .filter(|size| u64::from(*size) <= LARGEST_STORED)?;
        Some(settings)
    }

    /// Lists of what may have made a cluster: of lz4 by its size in blocks, then of
    /// lzma likewise, then one of zstd, which does not care.
    fn candidates(&self, block: u32, largest_lzma: u64) -> Vec<Vec<Method>> {
        let sizes = |largest: u32| (1..=largest / block).map(move |blocks| blocks * block);
        let mut lists: Vec<_> = sizes(self.lz4_capacity)
            .map(|own| lz4(self.lz4_capacity, own))
            .collect();
        if let Some(dictionary) = self.lzma_dictionary {
            let most = u32::try_from(LARGEST_STORED).unwrap_or(u32::MAX);
            // The capacity of all is not recorded. One that was never filled does as well.
            let largest = u32::try_from(largest_lzma)
                .unwrap_or(most)
                .min(most / block);
            lists.extend(sizes(most).map(|own| lzma(largest * block, own, dictionary)));
        }
        lists.extend(self.zstd_window.map(zstd));
        lists
    }

    /// The list for a cluster of so many blocks; none where it is too large.
    fn hint(&self, codec: Codec, blocks: u64, block_bits: u32) -> Option<usize> {
        let before = blocks.checked_sub(1)?;
        let largest = |size: u64| size >> block_bits;
        let lz4 = largest(self.lz4_capacity.into());
        let lzma = self.lzma_dictionary.map_or(0, |_| largest(LARGEST_STORED));
        let list = match codec {
            Codec::Lz4 if blocks <= lz4 => before,
            Codec::MicroLzma if blocks <= lzma => lz4 + before,
            Codec::Zstd if self.zstd_window.is_some() && blocks <= largest(LARGEST_STORED) => {
                lz4 + lzma
            }
            _ => return None,
        };
        usize::try_from(list).ok()
    }
}

/// What an encoder may have been told to fill for a cluster of `own` bytes: what all
/// were, or just that, which a hint gave its file or a second attempt at a file's end.
fn capacities(largest: u32, own: u32) -> impl Iterator<Item = u32> {
    [largest]
        .into_iter()
        .chain(Some(own).filter(move |own| *own != largest))
}

/// What may have made a cluster of lzma of `own` bytes. The level is not recorded:
/// 6 is the default, and 7 to 9 do the same, as all that they change is the dictionary.
fn lzma(largest: u32, own: u32, dictionary: u32) -> Vec<Method> {
    let mut methods = Vec::new();
    if !(4096..=MOST_DICTIONARY).contains(&dictionary) {
        return methods;
    }
    for ahead in [AHEAD_LZMA, 0] {
        for capacity in capacities(largest, own) {
            let levels = [6, 109, 105, 5, 4, 3, 2, 1, 0];
            methods.extend(levels.map(|level| Method::MicroLzma {
                level,
                dictionary,
                capacity,
                ahead,
            }));
        }
    }
    methods
}

/// What may have made a cluster of zstd. The level is not recorded: without one
/// mkfs.erofs 1.8 uses -1, although its help says 3.
fn zstd(window: u32) -> Vec<Method> {
    let likely = [-1, 3, 19, 22, 15, 12, 9];
    let others = (1..=21).filter(|level| !likely.contains(level));
    let levels = likely.into_iter().chain(others);
    let method = |level| Method::Zstd {
        level,
        window: Some(window),
        pieces: None,
    };
    levels.map(method).collect()
}

/// What may have made a cluster of lz4 of `own` bytes in an image whose clusters have
/// at most `largest`.
fn lz4(largest: u32, own: u32) -> Vec<Method> {
    // The level is not recorded: 9 is the default, 12 the best.
    let levels = [12, 9, 11, 10, 8, 7, 6, 5, 4, 3].map(Some);
    let levels = levels.into_iter().chain([None]);
    let mut methods = Vec::new();
    // mkfs.erofs compresses from a buffer. Where that was at its end, there was
    // nothing ahead.
    for shown in [true, false] {
        for capacity in capacities(largest, own) {
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
    codec: Option<Codec>,
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
            Entry::Head {
                codec,
                offset,
                block,
            } => {
                let at = (cluster << cluster_bits) + u64::from(offset);
                if let Some(last) = extents.last_mut() {
                    last.length = at.saturating_sub(start);
                }
                start = at;
                extents.push(Extent {
                    codec,
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
    /// Of the first and the second head.
    codecs: [Option<Codec>; 2],
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
            if stored.is_some() && !self.big {
                return None;
            }
            return Some(Entry::Nonhead { stored });
        }
        Some(Entry::Head {
            codec: match kind {
                HEAD => self.codecs[0],
                HEAD2 => self.codecs[1],
                _ => None,
            },
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
        // Sums wrap: an end that lies in the packed file is stored nowhere, at -1,
        // and in no blocks.
        let mut block = u32(pack, words)?;
        // Clusters of one block are counted from the one before the first.
        if !self.big {
            block = block.wrapping_add(1);
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
                        None => block = block.wrapping_add(blocks),
                    }
                }
                entries.push(entry);
            } else {
                if let Some(counted) = counted {
                    block = block.wrapping_add(counted);
                }
                counted = Some(1);
                entries.push(self.entry(kind, low, 0, block)?);
            }
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cluster_has_a_list_of_its_codec_or_none() {
        let settings = Settings {
            lz4_capacity: 2 * 4096,
            lzma_dictionary: Some(65_536),
            zstd_window: Some(17),
        };
        let lists = settings.candidates(4096, 3);
        let library = |codec, blocks| {
            let hint = settings.hint(codec, blocks, 12)?;
            Some(lists[hint][0].library().name())
        };
        for (codec, most, name) in [
            (Codec::Lz4, 2, "lz4"),
            (Codec::MicroLzma, 256, "xz"),
            (Codec::Zstd, 256, "zstd"),
        ] {
            assert_eq!(library(codec, 0), None, "{codec} of nothing");
            assert_eq!(library(codec, 1), Some(name));
            assert_eq!(library(codec, most), Some(name));
            assert_eq!(library(codec, most + 1), None, "{codec}, too large");
        }
        let without = Settings {
            lzma_dictionary: None,
            zstd_window: None,
            ..settings
        };
        for codec in [Codec::MicroLzma, Codec::Zstd, Codec::Zlib] {
            assert_eq!(without.hint(codec, 1, 12), None);
        }
    }
}
