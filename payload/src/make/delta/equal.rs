//! Runs of whole blocks that are in the old image as they are, wherever they were,
//! and runs of zeros: neither needs any data.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::ops::Range;

use super::{BLOCK, MakeError, read};
use crate::Image;
use crate::extent::size;

/// A run of blocks of the new image whose content is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    /// Bytes of the new image, whole blocks.
    pub(super) target: Range<usize>,
    /// The same bytes in the old image; none for zeros.
    pub(super) source: Option<Range<usize>>,
}

/// Shorter runs stay with what is around them: an operation costs more bytes in the
/// manifest than a copy costs within one.
const SHORTEST: usize = 16;
/// Bytes that one operation copies at most, so that it can be read at once.
const LONGEST: usize = 4 << 20;

impl Claim {
    /// The claim in parts that are small enough for one operation each.
    pub(super) fn parts(&self) -> impl Iterator<Item = Claim> {
        let step = if self.source.is_some() {
            LONGEST
        } else {
            self.target.len().max(1)
        };
        self.target.clone().step_by(step).map(move |start| {
            let target = start..self.target.end.min(start + step);
            let source = self.source.as_ref().map(|source| {
                let start = source.start + (start - self.target.start);
                start..start + target.len()
            });
            Claim { target, source }
        })
    }

    /// Without the blocks that `range` of the new image touches at its start or end.
    pub(super) fn without(&mut self, range: &Range<usize>) {
        let before = self.target.clone();
        if range.end >= before.end {
            self.target.end = before
                .end
                .min(range.start / BLOCK * BLOCK)
                .max(before.start);
        } else {
            self.target.start = before
                .start
                .max(range.end.next_multiple_of(BLOCK))
                .min(before.end);
        }
        if let Some(source) = &mut self.source {
            source.start += self.target.start - before.start;
            source.end -= before.end - self.target.end;
        }
    }

    /// Bytes that come from the old image.
    pub(super) fn unchanged(&self) -> u64 {
        self.source.as_ref().map_or(0, |source| size(source.len()))
    }
}

/// All long runs of equal blocks and of zeros, in order. `new` is read in pieces.
///
/// # Errors
/// [`MakeError::ReadSource`].
pub(super) fn claims(old: &[u8], new: &dyn Image) -> Result<Vec<Claim>, MakeError> {
    /// Bytes read at a time.
    const PIECE: u64 = 4 << 20;

    let mut runs = Runs::new(old);
    let mut offset = 0;
    while offset < new.len() {
        let piece = read(new, offset, PIECE.min(new.len() - offset))?;
        for block in piece.chunks_exact(BLOCK) {
            runs.push(block);
        }
        offset += size(piece.len());
    }
    Ok(runs.finish())
}

/// Joins blocks to runs as they come.
struct Runs<'a> {
    old: &'a [u8],
    /// Keys are random, so that nobody can make blocks that all have one hash. The
    /// result does not depend on them: a block is compared before it is believed.
    hasher: RandomState,
    places: HashMap<u64, usize>,
    claims: Vec<Claim>,
    open: Claim,
}

impl<'a> Runs<'a> {
    fn new(old: &'a [u8]) -> Self {
        let hasher = RandomState::new();
        let mut places = HashMap::new();
        for (number, block) in old.chunks_exact(BLOCK).enumerate() {
            places
                .entry(hasher.hash_one(block))
                .or_insert(number * BLOCK);
        }
        let open = Claim {
            target: 0..0,
            source: None,
        };
        Self {
            old,
            hasher,
            places,
            claims: Vec::new(),
            open,
        }
    }

    fn push(&mut self, block: &[u8]) {
        let start = self.open.target.end;
        let end = start + BLOCK;
        let goes_on = match &self.open.source {
            Some(source) => self.is_old(source.end, block),
            None => !self.open.target.is_empty() && is_zero(block),
        };
        if goes_on {
            self.open.target.end = end;
            if let Some(source) = &mut self.open.source {
                source.end += BLOCK;
            }
            return;
        }
        self.close();
        let known = self.places.get(&self.hasher.hash_one(block)).copied();
        self.open = match known.filter(|place| self.is_old(*place, block)) {
            _ if is_zero(block) => Claim {
                target: start..end,
                source: None,
            },
            Some(place) => Claim {
                target: start..end,
                source: Some(place..place + BLOCK),
            },
            None => Claim {
                target: end..end,
                source: None,
            },
        };
    }

    fn is_old(&self, place: usize, block: &[u8]) -> bool {
        self.old.get(place..place + BLOCK) == Some(block)
    }

    fn close(&mut self) {
        let end = self.open.target.end;
        let next = Claim {
            target: end..end,
            source: None,
        };
        let claim = std::mem::replace(&mut self.open, next);
        if claim.target.len() >= SHORTEST * BLOCK {
            self.claims.push(claim);
        }
    }

    fn finish(mut self) -> Vec<Claim> {
        self.close();
        self.claims
    }
}

fn is_zero(block: &[u8]) -> bool {
    block.iter().all(|byte| *byte == 0)
}
