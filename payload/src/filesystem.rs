//! Where the compressed blocks of a filesystem image are.
//!
//! A delta of two compressed images is as large as their changed blocks, since a
//! changed byte changes all of a block. So the blocks are found, and a delta is made
//! of what they decode to; [`crate::recompress`] then makes the blocks again.
//!
//! Images are read, never trusted: a structure that makes no sense ends the reading,
//! and a block that does not decode is left out. Leaving out is always right, since
//! every byte that belongs to no block is taken as it is. Nothing here mounts
//! anything or knows of files; the readers follow the structures to the data only.

mod btrfs;
mod bytes;
mod erofs;
mod kernel;
mod squashfs;

use std::collections::BTreeMap;

use crate::recompress::{Codec, Method};

/// A compressed stretch of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompressedBlock {
    /// Where it starts, in bytes from the start of the image.
    pub offset: u64,
    /// Stored bytes. Padding around what the encoder wrote does not count.
    pub length: u32,
    /// Bytes it decodes to.
    pub decoded_length: u32,
    /// How it decodes.
    pub codec: Codec,
    /// The list of [`Layout::candidates`] that its encoder may be in.
    pub hint: usize,
    /// Where in the image that starts which comes after the decoded bytes in the
    /// file; another block, or plain bytes. Known only where an encoder may ask for it.
    pub next: Option<u64>,
}

impl CompressedBlock {
    /// Where it ends, in bytes from the start of the image.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.length.into())
    }
}

/// What a filesystem image holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The kind of filesystem.
    pub filesystem: &'static str,
    /// By offset, without overlap. Each of them decodes.
    pub blocks: Vec<CompressedBlock>,
    /// Lists of how blocks may have been encoded, the likeliest first.
    pub candidates: Vec<Vec<Method>>,
}

impl Layout {
    /// The bytes after those of `block` in its file, at most `length` and as many as
    /// are known: of the blocks that follow it, each decoded by `decode`, and of plain
    /// bytes, which `read` gives from an offset of the image, as many as asked for or
    /// up to its end.
    ///
    /// `decode` may give none, which ends the bytes.
    ///
    /// # Errors
    /// Those of `decode` and `read`.
    pub fn ahead<E>(
        &self,
        block: &CompressedBlock,
        length: usize,
        mut decode: impl FnMut(&CompressedBlock) -> Result<Option<Vec<u8>>, E>,
        read: impl FnOnce(u64, usize) -> Result<Vec<u8>, E>,
    ) -> Result<Vec<u8>, E> {
        let mut ahead = Vec::new();
        let mut next = block.next;
        // Blocks of one byte, or one that goes on with itself, are no real image's.
        for _ in 0..MOST_AHEAD {
            let Some(offset) = next.filter(|_| ahead.len() < length) else {
                break;
            };
            let found = self
                .blocks
                .binary_search_by_key(&offset, |block| block.offset);
            let Ok(index) = found else {
                ahead.extend(read(offset, length - ahead.len())?);
                break;
            };
            let block = &self.blocks[index];
            let Some(plain) = decode(block)?.filter(|plain| !plain.is_empty()) else {
                break;
            };
            ahead.extend(plain);
            next = block.next;
        }
        ahead.truncate(length);
        Ok(ahead)
    }
}

/// What stands in an image in memory from `offset`, at most `length` bytes: plain bytes
/// for [`Layout::ahead`].
#[must_use]
pub fn plain_bytes(image: &[u8], offset: u64, length: usize) -> Vec<u8> {
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    let rest = image.get(start..).unwrap_or(&[]);
    rest[..rest.len().min(length)].to_vec()
}

/// Why an image that looked like a filesystem could not be read.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
#[error("{filesystem} image: {what} at offset {offset}")]
pub struct Fault {
    /// The kind of filesystem.
    pub filesystem: &'static str,
    /// What is wrong.
    pub what: &'static str,
    /// Where, in bytes from the start of the image (or of a table, where that is compressed).
    pub offset: u64,
}

/// Finds the blocks of `image`, a whole one; none when it is no filesystem that is
/// known. Every block is decoded on the way.
///
/// # Errors
/// [`Fault`] when it begins like a filesystem, but goes on differently.
#[must_use]
pub fn recognise(image: &[u8]) -> Option<Result<Layout, Fault>> {
    let found = squashfs::read(image)
        .or_else(|| erofs::read(image))
        .or_else(|| btrfs::read(image));
    match found {
        Some(Err(fault)) => Some(Err(fault)),
        found => with_kernels(image, found.transpose().ok().flatten()).map(Ok),
    }
}

/// The layout with the blocks of kernels that lie in the image as they are.
fn with_kernels(image: &[u8], found: Option<Layout>) -> Option<Layout> {
    let mut layout = found.unwrap_or(Layout {
        filesystem: "kernel",
        blocks: Vec::new(),
        candidates: Vec::new(),
    });
    let mut collector = Collector::new(image);
    collector.blocks = layout
        .blocks
        .iter()
        .map(|block| (block.offset, *block))
        .collect();
    let before = collector.blocks.len();
    kernel::collect(&mut collector, layout.candidates.len());
    if collector.blocks.len() > before {
        layout.candidates.push(kernel::methods());
        layout = collector.finish(layout.filesystem, layout.candidates);
    }
    (!layout.blocks.is_empty()).then_some(layout)
}

/// Blocks that are decoded for the bytes after another one.
const MOST_AHEAD: usize = 64;

/// The largest plain block of any of these filesystems: 1 MiB.
const LARGEST: usize = 1 << 20;

/// Collects the blocks of an image, and bounds the work that it can make.
struct Collector<'a> {
    image: &'a [u8],
    blocks: BTreeMap<u64, CompressedBlock>,
    /// Bytes that may still be read or decoded.
    budget: u64,
    /// Blocks that may still be looked at.
    attempts: u64,
}

impl<'a> Collector<'a> {
    fn new(image: &'a [u8]) -> Self {
        let size = bytes::size(image.len());
        Self {
            image,
            blocks: BTreeMap::new(),
            // Real images decode to a few times their size.
            budget: size.saturating_mul(64).saturating_add(64 << 20),
            attempts: size / 16 + 1024,
        }
    }

    /// Lists the block at `offset` if it decodes to at most `limit` bytes, and gives
    /// those. A block that is listed already gives none.
    fn add(
        &mut self,
        offset: u64,
        length: u64,
        codec: Codec,
        limit: usize,
        hint: usize,
    ) -> Option<Vec<u8>> {
        self.attempts = self.attempts.checked_sub(1)?;
        if self.blocks.contains_key(&offset) {
            return None;
        }
        self.spend(length)?;
        let stored = bytes::slice(self.image, offset, length)?;
        let Ok(plain) = codec.decode(stored, limit) else {
            // It may have failed at the very end.
            self.budget = self.budget.saturating_sub(bytes::size(limit));
            return None;
        };
        self.spend(bytes::size(plain.len()))?;
        let block = CompressedBlock {
            offset,
            length: u32::try_from(length).ok()?,
            decoded_length: u32::try_from(plain.len()).ok()?,
            codec,
            hint,
            next: None,
        };
        if plain.is_empty() {
            return None;
        }
        self.blocks.insert(offset, block);
        Some(plain)
    }

    /// Takes `length` bytes of work from what there may be, if there is as much.
    fn spend(&mut self, length: u64) -> Option<()> {
        self.budget = self.budget.checked_sub(length)?;
        Some(())
    }

    /// Notes what comes after a block in its file.
    fn link(&mut self, offset: u64, next: u64) {
        if let Some(block) = self.blocks.get_mut(&offset) {
            block.next = Some(next);
        }
    }

    fn finish(self, filesystem: &'static str, candidates: Vec<Vec<Method>>) -> Layout {
        let mut end = 0;
        let mut blocks: Vec<_> = self.blocks.into_values().collect();
        blocks.retain(|block| {
            let apart = block.offset >= end;
            if apart {
                end = block.end();
            }
            apart
        });
        Layout {
            filesystem,
            blocks,
            candidates,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    fn block(offset: u64, length: u32, next: Option<u64>) -> CompressedBlock {
        CompressedBlock {
            offset,
            length,
            decoded_length: 4,
            codec: Codec::Lz4,
            hint: 0,
            next,
        }
    }

    #[test]
    fn what_is_ahead_goes_on_through_blocks_to_plain_bytes() {
        let image: Vec<u8> = (0..100).collect();
        let layout = Layout {
            filesystem: "none",
            blocks: vec![
                block(0, 10, Some(20)),
                block(20, 10, Some(60)),
                block(40, 10, Some(40)),
            ],
            candidates: vec![],
        };
        let ahead = |index: usize, length| {
            let number = |offset: u64| u8::try_from(offset / 20).unwrap();
            let ahead: Result<_, Infallible> = layout.ahead(
                &layout.blocks[index],
                length,
                |block| Ok(Some(vec![200 + number(block.offset); 4])),
                |offset, length| Ok(plain_bytes(&image, offset, length)),
            );
            ahead.unwrap()
        };
        assert_eq!(ahead(0, 6), [201, 201, 201, 201, 60, 61]);
        assert_eq!(ahead(0, 3), [201; 3]);
        assert_eq!(ahead(1, 1000).len(), 40, "to the end of the image");
        // A file that goes on with itself ends too.
        assert_eq!(ahead(2, 9), [202; 9]);
    }

    #[test]
    fn blocks_that_overlap_one_before_are_left_out() {
        let mut collector = Collector::new(&[]);
        for (offset, length) in [(0, 10), (5, 10), (10, 5), (12, 1)] {
            collector.blocks.insert(offset, block(offset, length, None));
        }
        let layout = collector.finish("none", vec![]);
        let offsets: Vec<_> = layout.blocks.iter().map(|block| block.offset).collect();
        assert_eq!(offsets, [0, 10]);
    }

    #[test]
    fn the_work_that_an_image_can_make_is_bounded() {
        let image = crate::recompress::Encoders::carried();
        let method = Method::Lz4 { level: None };
        let encoder = image.get(&image.versions(&method)[0]);
        let bomb = encoder.unwrap().encode(&vec![0; LARGEST], &[]).unwrap();
        let length = bytes::size(bomb.len());
        let mut collector = Collector::new(&bomb);
        let mut made = 0;
        // The same bytes under ever new lengths and one offset, as no image can.
        for _ in 0..10_000 {
            collector.blocks.clear();
            made += usize::from(collector.add(0, length, Codec::Lz4, LARGEST, 0).is_some());
        }
        assert!(made < 500, "{made} times");

        // One that fails only after all but one of its bytes counts as well.
        let mut collector = Collector::new(&bomb);
        for _ in 0..500 {
            let made = collector.add(0, length, Codec::Lz4, LARGEST - 1, 0);
            assert!(made.is_none());
        }
        assert!(collector.budget < length, "{} left", collector.budget);
    }
}
