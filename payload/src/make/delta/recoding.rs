//! Which compressed blocks of both images are decoded, and how those of the new
//! image are encoded again.
//!
//! A block of the new image that the old one has too, byte for byte, is left alone.
//! Of the others a few are tried first with every encoder that may have made them;
//! what made none of these is not tried again.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use sha2::{Digest, Sha256};

use rayon::prelude::*;

use super::equal::Claim;
use super::{MakeError, NewImage};
use crate::extent::size;
use crate::filesystem::{self, CompressedBlock, Fault, Layout};
use crate::recompress::{EncoderSpec, Encoders, Library, Method, Sample};

/// How changed blocks fared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reproduced {
    /// Compressed blocks of the new image that the old one does not have.
    pub blocks: u64,
    /// Their stored bytes.
    pub bytes: u64,
    /// Those of them that an encoder made bit for bit.
    pub good_blocks: u64,
    /// Their stored bytes.
    pub good_bytes: u64,
}

impl Reproduced {
    pub(super) fn count(&mut self, stored: usize, good: bool) {
        let (blocks, bytes) = (u64::from(good), if good { size(stored) } else { 0 });
        self.blocks += 1;
        self.bytes += size(stored);
        self.good_blocks += blocks;
        self.good_bytes += bytes;
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.blocks += other.blocks;
        self.bytes += other.bytes;
        self.good_blocks += other.good_blocks;
        self.good_bytes += other.good_bytes;
    }
}

/// What is to be decoded.
pub(super) struct Recoding<'a> {
    encoders: &'a Encoders,
    old: Found,
    new: Found,
    /// Changed blocks of the new image, as positions in its layout.
    changed: Vec<usize>,
    /// All encoders in use; operations name them by position.
    specs: Vec<EncoderSpec>,
    /// For each list of candidates of the new layout: what is tried, by position in `specs`.
    tried: Vec<Vec<usize>>,
}

/// What an image turned out to be.
pub(super) struct Found {
    layout: Layout,
    /// SHA-256 of each block as it is stored.
    digests: Vec<[u8; 32]>,
    fault: Option<Fault>,
}

impl Found {
    /// An image that is taken as plain bytes.
    pub(super) fn nothing() -> Self {
        let layout = Layout {
            filesystem: "",
            blocks: Vec::new(),
            candidates: Vec::new(),
        };
        Self {
            layout,
            digests: Vec::new(),
            fault: None,
        }
    }

    pub(super) fn of(image: &[u8]) -> Self {
        let (layout, fault) = match filesystem::recognise(image) {
            Some(Ok(layout)) => (Some(layout), None),
            Some(Err(fault)) => (None, Some(fault)),
            None => (None, None),
        };
        let Some(layout) = layout else {
            return Self {
                fault,
                ..Self::nothing()
            };
        };
        let blocks = layout.blocks.par_iter();
        let digests = blocks
            .map(|block| Sha256::digest(&image[range(block)]).into())
            .collect();
        Self {
            layout,
            digests,
            fault,
        }
    }

    fn kind(&self) -> Option<&'static str> {
        (!self.layout.blocks.is_empty()).then_some(self.layout.filesystem)
    }
}

/// Blocks that are tried with every encoder, for each list of candidates.
const SAMPLES: usize = 48;
/// Those of them that each encoder is tried on until one has made any.
const FEW_SAMPLES: usize = 8;
/// Lists of a library, one after the other, of which nothing came: then it is another
/// version that made the image, and the rest is not tried.
const BARREN: usize = 4;

impl<'a> Recoding<'a> {
    pub(super) fn plan(
        old: Found,
        new: Found,
        claims: &[Claim],
        new_image: NewImage,
        encoders: &'a Encoders,
        most_encoders: usize,
    ) -> Result<Self, MakeError> {
        let known: HashSet<&[u8; 32]> = old.digests.iter().collect();
        let blocks = new.layout.blocks.iter().zip(&new.digests).enumerate();
        let changed = blocks.filter(|(_, (block, digest))| {
            !is_claimed(claims, &range(block)) && !known.contains(digest)
        });
        let changed = changed.map(|(index, _)| index).collect();
        let mut recoding = Self {
            encoders,
            old,
            new,
            changed,
            specs: Vec::new(),
            tried: Vec::new(),
        };
        recoding.choose_encoders(new_image, most_encoders)?;
        Ok(recoding)
    }

    /// Fills `specs` and `tried` from samples, the lists of most blocks first, up to
    /// `most` encoders. Each makes a sample that none before it made.
    fn choose_encoders(&mut self, image: NewImage, most: usize) -> Result<(), MakeError> {
        let mut lists = vec![Vec::new(); self.new.layout.candidates.len()];
        for index in &self.changed {
            lists[self.new.layout.blocks[*index].hint].push(*index);
        }
        self.tried = vec![Vec::new(); lists.len()];
        let mut lists: Vec<_> = lists.into_iter().enumerate().collect();
        lists.sort_by_key(|(_, blocks)| std::cmp::Reverse(blocks.len()));
        let mut barren: HashMap<Library, usize> = HashMap::new();
        for (hint, blocks) in lists {
            let methods = &self.new.layout.candidates[hint];
            let (Some(library), false) = (methods.first().map(Method::library), blocks.is_empty())
            else {
                continue;
            };
            let barren = barren.entry(library).or_default();
            if *barren < BARREN {
                self.choose_encoders_of(hint, &blocks, image, most)?;
                *barren = match self.tried[hint].is_empty() {
                    true => *barren + 1,
                    false => 0,
                };
            }
        }
        Ok(())
    }

    fn choose_encoders_of(
        &mut self,
        hint: usize,
        blocks: &[usize],
        image: NewImage,
        most: usize,
    ) -> Result<(), MakeError> {
        let layout = &self.new.layout;
        let methods = &layout.candidates[hint];
        let looked_at = methods.iter().map(Method::ahead).max().unwrap_or(0);
        let step = blocks.len().div_ceil(SAMPLES).max(1);
        let mut left = Vec::new();
        for index in blocks.iter().step_by(step) {
            let block = &layout.blocks[*index];
            let stored = stored(image, block)?;
            if let Some(plain) = decode_stored(&stored, block) {
                left.push((stored, plain, ahead(layout, image, block, looked_at)?));
            }
        }
        let specs = methods
            .iter()
            .flat_map(|method| self.encoders.versions(method));
        let mut specs: Vec<EncoderSpec> = specs.collect();
        // What made blocks of other lists is likely here too.
        specs.sort_by_key(|spec| !self.specs.contains(spec));
        for spec in specs {
            let known = self.specs.iter().position(|known| *known == spec);
            if left.is_empty() || (known.is_none() && self.specs.len() >= most) {
                continue;
            }
            let proves = |sample: &&(Vec<u8>, Vec<u8>, Vec<u8>)| {
                let (stored, plain, ahead) = *sample;
                let sample = Sample {
                    stored,
                    plain,
                    ahead,
                };
                let spec = std::slice::from_ref(&spec);
                self.encoders.prove(sample, spec).is_some()
            };
            // Until anything is made at all, a few blocks tell whether this one may.
            let few: Vec<_> = left
                .iter()
                .step_by(left.len().div_ceil(FEW_SAMPLES))
                .collect();
            if self.tried[hint].is_empty() && !few.par_iter().any(proves) {
                continue;
            }
            let proven: Vec<bool> = left.par_iter().map(|sample| proves(&sample)).collect();
            if proven.contains(&true) {
                let mut proven = proven.into_iter();
                left.retain(|_| proven.next() == Some(false));
                let index = known.unwrap_or(self.specs.len());
                if known.is_none() {
                    self.specs.push(spec);
                }
                self.tried[hint].push(index);
            }
        }
        Ok(())
    }

    /// Claims give back the blocks in which a changed compressed block starts or ends.
    pub(super) fn give_back(&self, mut claims: Vec<Claim>) -> Vec<Claim> {
        for index in &self.changed {
            let range = range(&self.new.layout.blocks[*index]);
            let first = claims.partition_point(|claim| claim.target.end <= range.start);
            for claim in &mut claims[first..] {
                if claim.target.start >= range.end {
                    break;
                }
                claim.without(&range);
            }
        }
        claims.retain(|claim| !claim.target.is_empty());
        claims
    }

    /// The changed blocks of the new image, in order.
    pub(super) fn changed(&self) -> impl Iterator<Item = &CompressedBlock> {
        self.changed
            .iter()
            .map(|index| &self.new.layout.blocks[*index])
    }

    /// The compressed blocks of the old image, in order.
    pub(super) fn old_blocks(&self) -> &[CompressedBlock] {
        &self.old.layout.blocks
    }

    /// The layout of the new image.
    pub(super) fn layout(&self) -> &Layout {
        &self.new.layout
    }

    /// Bytes after a block that any of its encoders may look at.
    pub(super) fn most_ahead(&self, block: &CompressedBlock) -> usize {
        let tried = self.tried.get(block.hint).into_iter().flatten();
        tried
            .map(|index| self.specs[*index].method.ahead())
            .max()
            .unwrap_or(0)
    }

    /// The encoder that makes `stored` out of `plain`, by position, and how many
    /// bytes of `ahead` it wants to see.
    pub(super) fn encoder(
        &self,
        block: &CompressedBlock,
        stored: &[u8],
        plain: &[u8],
        ahead: &[u8],
    ) -> Option<(usize, usize)> {
        let tried = self.tried.get(block.hint)?;
        tried.iter().find_map(|index| {
            let spec = &self.specs[*index];
            let ahead = &ahead[..ahead.len().min(spec.method.ahead())];
            let sample = Sample {
                stored,
                plain,
                ahead,
            };
            let proven = self.encoders.prove(sample, std::slice::from_ref(spec));
            proven.map(|_| (*index, ahead.len()))
        })
    }

    /// All encoders in use, as manifests name them.
    pub(super) fn encoder_names(&self) -> impl Iterator<Item = String> {
        self.specs.iter().map(ToString::to_string)
    }

    pub(super) fn filesystems(&self) -> [Option<&'static str>; 2] {
        [self.old.kind(), self.new.kind()]
    }

    pub(super) fn faults(&self) -> Vec<Fault> {
        [&self.old, &self.new]
            .into_iter()
            .filter_map(|found| found.fault.clone())
            .collect()
    }
}

/// Where a block is stored.
pub(super) fn range(block: &CompressedBlock) -> Range<usize> {
    let start = usize::try_from(block.offset).expect("blocks lie within an image in memory");
    start..start + length(block.length)
}

/// Bytes of a block.
pub(super) fn length(length: u32) -> usize {
    usize::try_from(length).expect("addresses have at least 32 bits")
}

/// Its plain bytes. The reader of the filesystem decoded it once already, so there
/// is no block that does not decode, unless the image changes under our hands.
pub(super) fn decode(image: &[u8], block: &CompressedBlock) -> Option<Vec<u8>> {
    decode_stored(image.get(range(block))?, block)
}

/// The plain bytes of a block that was read.
pub(super) fn decode_stored(stored: &[u8], block: &CompressedBlock) -> Option<Vec<u8>> {
    block
        .codec
        .decode(stored, length(block.decoded_length))
        .ok()
}

/// A block of the new image as it is stored.
pub(super) fn stored(image: NewImage, block: &CompressedBlock) -> Result<Vec<u8>, MakeError> {
    image.read(block.offset, block.length.into())
}

/// At most `wanted` bytes that follow a block of the new image in its file.
pub(super) fn ahead(
    layout: &Layout,
    image: NewImage,
    block: &CompressedBlock,
    wanted: usize,
) -> Result<Vec<u8>, MakeError> {
    layout.ahead(
        block,
        wanted,
        |block| Ok(decode_stored(&stored(image, block)?, block)),
        |offset, length| {
            let left = image.len().saturating_sub(offset);
            image.read(offset, size(length).min(left))
        },
    )
}

fn is_claimed(claims: &[Claim], range: &Range<usize>) -> bool {
    let next = claims.partition_point(|claim| claim.target.end < range.end);
    claims
        .get(next)
        .is_some_and(|claim| claim.target.start <= range.start)
}
