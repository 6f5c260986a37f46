//! Runs of whole blocks that are in the old image as they are, wherever they were,
//! and runs of zeros: neither needs any data.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::ops::Range;

use super::{BLOCK, MakeError, NewImage};
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
pub(super) fn claims(old: &[u8], new: NewImage) -> Result<Vec<Claim>, MakeError> {
    /// Bytes read at a time.
    const PIECE: u64 = 4 << 20;

    let mut runs = Runs::new(old);
    let mut offset = 0;
    while offset < new.len() {
        let piece = new.read(offset, PIECE.min(new.len() - offset))?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Image;
    use std::io;

    struct Memory(Vec<u8>);

    impl Image for Memory {
        fn len(&self) -> u64 {
            size(self.0.len())
        }

        fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
            let start = usize::try_from(offset).map_err(io::Error::other)?;
            buf.copy_from_slice(&self.0[start..start + buf.len()]);
            Ok(())
        }

        fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    fn image(image: &Memory) -> NewImage<'_> {
        NewImage {
            what: "image",
            image,
        }
    }

    /// Blocks that are filled with one number each.
    fn blocks(numbers: impl IntoIterator<Item = u32>) -> Vec<u8> {
        let block = |number: u32| number.to_le_bytes().repeat(BLOCK / 4);
        numbers.into_iter().flat_map(block).collect()
    }

    fn claim(target: Range<usize>, source: Option<usize>) -> Claim {
        let length = target.len();
        Claim {
            target: target.start * BLOCK..target.end * BLOCK,
            source: source.map(|start| start * BLOCK..(start + length) * BLOCK),
        }
    }

    #[test]
    fn long_runs_are_claimed_wherever_they_were_and_short_ones_left() {
        let old = blocks(1..101);
        let new = blocks(
            (61..101)
                .chain(500..503)
                .chain(1..21)
                .chain([0; 20])
                .chain(30..40),
        );
        assert_eq!(
            claims(&old, image(&Memory(new))).unwrap(),
            [
                claim(0..40, Some(60)),
                claim(43..63, Some(0)),
                claim(63..83, None)
            ]
        );
    }

    #[test]
    fn a_claim_gives_back_the_blocks_that_something_else_needs() {
        let whole = claim(10..50, Some(110));
        let mut head = whole.clone();
        head.without(&(9 * BLOCK..12 * BLOCK + 1));
        assert_eq!(head, claim(13..50, Some(113)));
        let mut tail = whole.clone();
        tail.without(&(48 * BLOCK + 5..60 * BLOCK));
        assert_eq!(tail, claim(10..48, Some(110)));
        let mut all = whole;
        all.without(&(9 * BLOCK..60 * BLOCK));
        assert!(all.target.is_empty());
    }

    #[test]
    fn a_large_claim_is_copied_in_parts() {
        let parts: Vec<Claim> = claim(5..5 + 2500, Some(7)).parts().collect();
        assert_eq!(parts.len(), 3);
        assert_eq!(parts[1], claim(5 + 1024..5 + 2048, Some(7 + 1024)));
        assert_eq!(
            parts.iter().map(Claim::unchanged).sum::<u64>(),
            size(2500 * BLOCK)
        );
    }
}
