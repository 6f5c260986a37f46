//! squashfs 4.0: everything but the superblock may be compressed.
//!
//! ```text
//! | superblock 96 | options | data blocks and fragments | inodes | directories |
//! | fragment table | export table | id table | xattr table |
//! ```
//! Tables are made of metadata blocks: 16 bits of length, of which the top one says
//! "stored plain", then up to 8 KiB decoded. The last four tables are found through
//! a list of where their metadata blocks start. A data block is described in the inode
//! of its file by 32 bits, of which bit 24 says "stored plain".

use super::bytes::{self, u16, u32, u64};
use super::{Collector, Fault, LARGEST, Layout};
use crate::recompress::{Codec, Method};

const NAME: &str = "squashfs";
const MAGIC: u32 = 0x7371_7368;
const SUPERBLOCK: u64 = 96;
/// Decoded size of a metadata block.
const METADATA: u64 = 8192;
/// Of a metadata block's length: it is stored plain.
const METADATA_PLAIN: u16 = 1 << 15;
/// Of a data block's length: it is stored plain.
const DATA_PLAIN: u32 = 1 << 24;
/// An offset of a table that is not there.
const ABSENT: u64 = u64::MAX;

pub(super) fn read(image: &[u8]) -> Option<Result<Layout, Fault>> {
    if u32(image, 0) != Some(MAGIC) || image.len() < 96 {
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
    codec: Codec,
    methods: Methods,
    block_size: u64,
    superblock: Superblock,
}

/// Where the tables are.
struct Superblock {
    fragments: u32,
    ids: u16,
    id_table: u64,
    xattr_table: u64,
    inode_table: u64,
    directory_table: u64,
    fragment_table: u64,
    export_table: u64,
    inodes: u32,
}

struct Methods {
    data: Vec<Method>,
    metadata: Vec<Method>,
}

/// Lists of candidates.
const DATA: usize = 0;
const META: usize = 1;

impl<'a> Reader<'a> {
    fn open(image: &'a [u8]) -> Result<Self, Fault> {
        let short = || fault("end of the superblock", 0);
        let half = |at| u16(image, at).ok_or_else(short);
        let word = |at| u32(image, at).ok_or_else(short);
        let long = |at| u64(image, at).ok_or_else(short);
        if (half(28)?, half(30)?) != (4, 0) {
            return Err(fault("version other than 4.0", 28));
        }
        let block_size = word(12)?;
        if !block_size.is_power_of_two() || !(4096..=1 << 20).contains(&block_size) {
            return Err(fault("block size out of range", 12));
        }
        let has_options = half(24)? & 0x400 != 0;
        // The options are one metadata block, stored plain.
        let options = has_options
            .then(|| {
                let length = half(SUPERBLOCK)? & !METADATA_PLAIN;
                bytes::slice(image, SUPERBLOCK + 2, length.into()).ok_or_else(short)
            })
            .transpose()?
            .unwrap_or(&[]);
        let (codec, methods) = methods(half(20)?, options, block_size)
            .ok_or_else(|| fault("compressor that is not known", 20))?;
        Ok(Self {
            image,
            collector: Collector::new(image),
            codec,
            methods,
            block_size: block_size.into(),
            superblock: Superblock {
                inodes: word(4)?,
                fragments: word(16)?,
                ids: half(26)?,
                id_table: long(48)?,
                xattr_table: long(56)?,
                inode_table: long(64)?,
                directory_table: long(72)?,
                fragment_table: long(80)?,
                export_table: long(88)?,
            },
        })
    }

    fn read(mut self) -> Result<Layout, Fault> {
        let superblock = &self.superblock;
        let (inode_table, directory_table) = (superblock.inode_table, superblock.directory_table);
        let lists = [
            (
                superblock.fragment_table,
                u64::from(superblock.fragments) * 16,
            ),
            (superblock.export_table, u64::from(superblock.inodes) * 8),
            (superblock.id_table, u64::from(superblock.ids) * 4),
        ];
        let xattr_table = superblock.xattr_table;

        let inodes = self.chain(inode_table, directory_table)?;
        self.inodes(&inodes)?;

        // The directory table ends where the next one starts.
        let mut end = bytes::size(self.image.len());
        let mut fragments = Vec::new();
        for (index, (list, length)) in lists.into_iter().enumerate() {
            if list == ABSENT || length == 0 {
                continue;
            }
            let (start, table) = self.listed(list, length)?;
            end = end.min(start);
            if index == 0 {
                fragments = table;
            }
        }
        if xattr_table != ABSENT {
            end = end.min(self.xattrs(xattr_table)?);
        }
        self.chain(directory_table, end)?;
        self.fragments(&fragments);
        let Methods { data, metadata } = self.methods;
        Ok(self.collector.finish(NAME, vec![data, metadata]))
    }

    /// Reads the metadata blocks from `start` to `end`.
    fn chain(&mut self, start: u64, end: u64) -> Result<Vec<u8>, Fault> {
        let mut table = Vec::new();
        let mut at = start;
        while at < end {
            at = self.metadata(at, &mut table)?;
        }
        Ok(table)
    }

    /// Appends what the metadata block at `at` holds; gives where the next one starts.
    fn metadata(&mut self, at: u64, table: &mut Vec<u8>) -> Result<u64, Fault> {
        let header = u16(self.image, at).ok_or_else(|| fault("end of a table", at))?;
        let length = u64::from(header & !METADATA_PLAIN);
        let start = at + 2;
        if length == 0 || length > METADATA {
            return Err(fault("metadata block of a strange length", at));
        }
        if header & METADATA_PLAIN != 0 {
            let plain = bytes::slice(self.image, start, length)
                .ok_or_else(|| fault("end of a metadata block", at))?;
            table.extend(plain);
        } else {
            let plain = self
                .collector
                .add(start, length, self.codec, 8192, META)
                .ok_or_else(|| fault("metadata block that does not decode", at))?;
            table.extend(plain);
        }
        Ok(start + length)
    }

    /// Reads a table of `length` bytes through the list of its metadata blocks, and
    /// gives where its first one starts.
    fn listed(&mut self, list: u64, length: u64) -> Result<(u64, Vec<u8>), Fault> {
        let mut table = Vec::new();
        let mut first = ABSENT;
        for index in 0..length.div_ceil(METADATA) {
            let at = index
                .checked_mul(8)
                .and_then(|at| at.checked_add(list))
                .and_then(|at| u64(self.image, at))
                .ok_or_else(|| fault("end of a list of metadata blocks", list))?;
            first = first.min(at);
            self.metadata(at, &mut table)?;
        }
        Ok((first, table))
    }

    /// Reads the table of extended attributes, and gives where it starts.
    fn xattrs(&mut self, at: u64) -> Result<u64, Fault> {
        let ended = || fault("end of the xattr table", at);
        let start = u64(self.image, at).ok_or_else(ended)?;
        let ids = at.checked_add(8).and_then(|at| u32(self.image, at));
        let ids = u64::from(ids.ok_or_else(ended)?);
        let list = at.checked_add(16).ok_or_else(ended)?;
        let (first, _) = self.listed(list, ids * 16)?;
        // Without ids there are no attributes either.
        if ids != 0 {
            self.chain(start, first)?;
        }
        Ok(start)
    }

    /// Follows the inodes, one after the other, to the blocks of files.
    fn inodes(&mut self, table: &[u8]) -> Result<(), Fault> {
        let mut at = 0;
        for _ in 0..self.superblock.inodes {
            at = self
                .inode(table, at)
                .ok_or_else(|| fault("end of the inode table", at))?
                .ok_or_else(|| fault("inode of an unknown type", at))?;
        }
        Ok(())
    }

    /// The inode at `at`; gives where the next one starts, none within when the
    /// type is unknown.
    fn inode(&mut self, table: &[u8], at: u64) -> Option<Option<u64>> {
        const HEADER: u64 = 16;
        let field = at.checked_add(HEADER)?;
        Some(Some(match u16(table, at)? {
            // Directory, and the extended one with its index.
            1 => at + 32,
            8 => {
                let mut end = at + 40;
                for _ in 0..u16(table, field + 16)? {
                    end += 12 + u64::from(u32(table, end + 8)?) + 1;
                }
                end
            }
            2 => {
                let start = u32(table, field)?;
                let fragment = u32(table, field + 4)?;
                let size = u32(table, field + 12)?;
                self.file(table, at + 32, start.into(), size.into(), fragment)?
            }
            9 => {
                let start = u64(table, field)?;
                let size = u64(table, field + 8)?;
                let fragment = u32(table, field + 28)?;
                self.file(table, at + 56, start, size, fragment)?
            }
            // Symbolic links.
            3 => at + 24 + u64::from(u32(table, field + 4)?),
            10 => at + 28 + u64::from(u32(table, field + 4)?),
            // Devices, then pipes and sockets.
            4 | 5 => at + 24,
            11 | 12 => at + 28,
            6 | 7 => at + 20,
            13 | 14 => at + 24,
            _ => return Some(None),
        }))
    }

    /// The blocks of a file, whose descriptions are at `at`; gives where they end.
    fn file(&mut self, table: &[u8], at: u64, start: u64, size: u64, fragment: u32) -> Option<u64> {
        const NO_FRAGMENT: u32 = u32::MAX;
        let blocks = if fragment == NO_FRAGMENT {
            size.div_ceil(self.block_size)
        } else {
            size / self.block_size
        };
        let descriptions = bytes::slice(table, at, blocks.checked_mul(4)?)?;
        let mut offset = start;
        let mut left = size;
        for index in 0..blocks {
            let description = u32(descriptions, index * 4)?;
            let length = u64::from(description & !DATA_PLAIN);
            let plain = left.min(self.block_size);
            left -= plain;
            // A length of zero is a hole.
            if description & DATA_PLAIN == 0 && length != 0 {
                let limit = usize::try_from(plain).ok()?;
                self.collector.add(offset, length, self.codec, limit, DATA);
            }
            offset = offset.checked_add(length)?;
        }
        at.checked_add(blocks * 4)
    }

    /// Blocks that hold the ends of many files.
    fn fragments(&mut self, table: &[u8]) {
        let limit = usize::try_from(self.block_size).unwrap_or(LARGEST);
        for entry in table.chunks_exact(16) {
            let (Some(start), Some(description)) = (u64(entry, 0), u32(entry, 8)) else {
                continue;
            };
            if description & DATA_PLAIN == 0 && description != 0 {
                self.collector
                    .add(start, description.into(), self.codec, limit, DATA);
            }
        }
    }
}

/// What mksquashfs does with each compressor. Options are there only if they are not
/// the defaults.
fn methods(compressor: u16, options: &[u8], block_size: u32) -> Option<(Codec, Methods)> {
    let same = |methods: Vec<Method>| Methods {
        data: methods.clone(),
        metadata: methods,
    };
    Some(match compressor {
        1 => {
            let level = u32(options, 0).unwrap_or(9);
            let window = u16(options, 4).unwrap_or(15).into();
            (Codec::Zlib, same(vec![Method::Zlib { level, window }]))
        }
        4 => {
            let dictionary = u32(options, 0);
            let method = |dictionary| Method::Xz { dictionary };
            let methods = Methods {
                data: vec![method(dictionary.unwrap_or(block_size))],
                metadata: [8192].into_iter().chain(dictionary).map(method).collect(),
            };
            (Codec::Xz, methods)
        }
        5 => {
            // Version, then flags, of which the first asks for the HC encoder.
            let hc = u32(options, 4).unwrap_or(0) & 1 != 0;
            let level = hc.then_some(12);
            (Codec::Lz4, same(vec![Method::Lz4 { level }]))
        }
        6 => {
            let level = u32(options, 0).and_then(|level| level.try_into().ok());
            let method = Method::Zstd {
                level: level.unwrap_or(15),
                window: None,
                pieces: None,
            };
            (Codec::Zstd, same(vec![method]))
        }
        // lzma and lzo: nothing here decodes them.
        _ => return None,
    })
}
