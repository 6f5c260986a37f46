//! The old image as something to match against: its bytes, and behind them those
//! of its compressed blocks, decoded.

use std::ops::Range;

use rayon::prelude::*;

use super::BLOCK;
use super::equal::Claim;
use super::index::Seeds;
use super::recoding::{Recoding, decode, length, range};
use crate::filesystem::CompressedBlock;

/// Distance of the positions that are indexed in what was claimed whole: it is in
/// the new image already, and seldom a second time.
const CLAIMED_STRIDE: usize = 64;

/// The old image and its decoded blocks.
pub(super) struct Space {
    bytes: Vec<u8>,
    /// Where the image ends and the decoded blocks begin.
    image: usize,
    /// By where their plain bytes start.
    blocks: Vec<(usize, CompressedBlock)>,
    seeds: Seeds,
}

impl Space {
    pub(super) fn new(image: Vec<u8>, recoding: &Recoding, claims: &[Claim]) -> Self {
        let length_of_image = image.len();
        // Not all at once: they are as large as everything else together.
        let mut bytes = image;
        let decoded = recoding
            .old_blocks()
            .iter()
            .map(|block| length(block.decoded_length));
        bytes.reserve_exact(decoded.sum());
        let mut blocks = Vec::new();
        for batch in recoding.old_blocks().chunks(256) {
            let image = &bytes[..length_of_image];
            let plains: Vec<Option<Vec<u8>>> =
                batch.par_iter().map(|block| decode(image, block)).collect();
            for (block, plain) in batch.iter().zip(plains) {
                if let Some(plain) =
                    plain.filter(|plain| plain.len() == length(block.decoded_length))
                {
                    blocks.push((bytes.len(), *block));
                    bytes.extend_from_slice(&plain);
                }
            }
        }
        let seeds = Seeds::new(
            &bytes,
            &strides(length_of_image, bytes.len(), &blocks, claims),
        );
        Self {
            bytes,
            image: length_of_image,
            blocks,
            seeds,
        }
    }

    /// All bytes, those of the image first.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn seeds(&self) -> &Seeds {
        &self.seeds
    }

    /// Bytes of the image alone.
    pub(super) fn image(&self) -> usize {
        self.image
    }

    /// The decoded blocks that `range` of the space touches.
    pub(super) fn blocks(&self, range: &Range<usize>) -> Range<usize> {
        let first = self
            .blocks
            .partition_point(|(start, block)| start + length(block.decoded_length) <= range.start);
        let last = self.blocks.partition_point(|(start, _)| *start < range.end);
        first..last.max(first)
    }

    /// Where a block's plain bytes start, and the block.
    pub(super) fn block(&self, index: usize) -> &(usize, CompressedBlock) {
        &self.blocks[index]
    }
}

/// Which parts of the space are indexed how densely: what the new image does not
/// have as it is comes first, as that is where changed things come from.
fn strides(
    image: usize,
    end: usize,
    blocks: &[(usize, CompressedBlock)],
    claims: &[Claim],
) -> Vec<(Range<usize>, usize)> {
    let mut claimed = vec![false; image.div_ceil(BLOCK)];
    for source in claims.iter().filter_map(|claim| claim.source.as_ref()) {
        claimed[source.start / BLOCK..source.end / BLOCK].fill(true);
    }
    let is_claimed = |range: &Range<usize>| {
        claimed[range.start / BLOCK..range.end.div_ceil(BLOCK)]
            .iter()
            .all(|claimed| *claimed)
    };
    let mut dense: Vec<(Range<usize>, usize)> = Vec::new();
    let mut add = |range: Range<usize>| match dense.last_mut() {
        Some((last, _)) if last.end == range.start => last.end = range.end,
        _ => dense.push((range, Seeds::UNIT)),
    };
    for (start, block) in blocks {
        if !is_claimed(&range(block)) {
            add(*start..start + length(block.decoded_length));
        }
    }
    for (number, claimed) in claimed.iter().enumerate() {
        if !claimed {
            add(number * BLOCK..image.min((number + 1) * BLOCK));
        }
    }
    dense.push((0..end, CLAIMED_STRIDE));
    dense
}
