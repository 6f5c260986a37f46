//! The script of a delta: copies from the source with small differences, and new
//! bytes between them, kept as five streams that each compress well by themselves.
//!
//! ```text
//! control    for each copy: new bytes before it, its length (varints), how far its
//!            source lies from where the copy before ended (varint, zigzag)
//! literals   the new bytes
//! gaps       for each difference: equal bytes since the one before (varint),
//!            counted over all copies
//! tokens     for each difference, one byte: which one
//! escapes    differences that are named for the first time
//! ```
//! A difference is added to the four bytes (at the end of a copy fewer) that begin
//! where target and source differ, taken as one little-endian number. When code
//! moves, every address that points to it grows by the same number; so a token
//! mostly says "the same as a moment ago": below [`RECENT`] it is a place in the
//! list of recent differences, the latest first. Above it tells how many bytes of
//! the next difference are in the escapes (zigzag, little-endian).

use super::varint::{self, Varints};
use crate::error::Cause;

/// A stretch of plain bytes that is close to a stretch of the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Copy {
    /// Where it starts in the plain bytes.
    pub(crate) target: usize,
    /// Where it starts in the source.
    pub(crate) source: usize,
    /// Bytes.
    pub(crate) length: usize,
}

/// Recent differences that are remembered.
const RECENT: usize = 240;
/// A token of this plus 1 to 4 stands before an escape of as many bytes.
const ESCAPE: u8 = 250;
/// Bytes of a difference.
const WORD: usize = 4;

/// A script as its streams.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Script {
    control: Vec<u8>,
    literals: Vec<u8>,
    gaps: Vec<u8>,
    tokens: Vec<u8>,
    escapes: Vec<u8>,
}

impl Script {
    /// The script that makes `target` with these `copies` from `source`; they are in
    /// order and do not overlap.
    pub(crate) fn write(target: &[u8], source: &[u8], copies: &[Copy]) -> Self {
        let mut script = Self::default();
        let mut recent = Recent::default();
        let (mut done, mut expected, mut gap) = (0, 0, 0);
        for copy in copies {
            let end = copy.target + copy.length;
            script
                .literals
                .extend_from_slice(&target[done..copy.target]);
            varint::push(&mut script.control, copy.target - done);
            varint::push(&mut script.control, copy.length);
            varint::push(&mut script.control, zigzag(expected, copy.source));
            done = end;
            expected = copy.source + copy.length;
            let from = &source[copy.source..expected];
            script.differences(&target[copy.target..end], from, &mut recent, &mut gap);
        }
        script.literals.extend_from_slice(&target[done..]);
        script
    }

    fn differences(&mut self, target: &[u8], source: &[u8], recent: &mut Recent, gap: &mut usize) {
        let mut at = 0;
        while at < target.len() {
            let equal = target[at..].iter().zip(&source[at..]);
            let equal = equal.take_while(|(a, b)| a == b).count();
            *gap += equal;
            at += equal;
            if at == target.len() {
                return;
            }
            let end = target.len().min(at + WORD);
            let difference = word(&target[at..end]).wrapping_sub(word(&source[at..end]));
            varint::push(&mut self.gaps, std::mem::take(gap));
            if let Some(token) = recent.token(difference) {
                self.tokens.push(token);
            } else {
                let bytes = folded(difference).to_le_bytes();
                let zeros = bytes.iter().rev().take_while(|byte| **byte == 0).count();
                let length = (WORD - zeros).max(1);
                self.tokens
                    .push(ESCAPE + u8::try_from(length).expect("at most 4"));
                self.escapes.extend_from_slice(&bytes[..length]);
            }
            at = end;
        }
    }

    /// Makes `length` bytes out of `source`.
    ///
    /// # Errors
    /// What is wrong with the script, in words.
    pub(crate) fn run(&self, source: &[u8], length: usize) -> Result<Vec<u8>, Cause> {
        let mut result = Vec::with_capacity(length);
        let mut control = Varints::new(&self.control);
        let mut literals = &self.literals[..];
        let mut differences = Differences::new(self)?;
        let mut expected: usize = 0;
        while !control.rest().is_empty() {
            let new = control.below(length - result.len())?;
            let (bytes, rest) = literals.split_at_checked(new).ok_or(FEW_LITERALS)?;
            result.extend_from_slice(bytes);
            literals = rest;
            let copied = control.below(length - result.len())?;
            let from = unzigzag(expected, control.next()?);
            let from = from.filter(|from| *from <= source.len());
            let from = from.ok_or("a copy is outside of the source")?;
            expected = from + copied;
            let bytes = source.get(from..expected);
            let start = result.len();
            result.extend_from_slice(bytes.ok_or("a copy is outside of the source")?);
            differences.add_to(&mut result[start..])?;
        }
        if literals.len() != length - result.len() {
            return Err(FEW_LITERALS.into());
        }
        result.extend_from_slice(literals);
        differences.finish()?;
        Ok(result)
    }

    pub(crate) fn streams(&self) -> [&Vec<u8>; 5] {
        [
            &self.control,
            &self.literals,
            &self.gaps,
            &self.tokens,
            &self.escapes,
        ]
    }

    pub(super) fn from_streams(streams: [Vec<u8>; 5]) -> Self {
        let [control, literals, gaps, tokens, escapes] = streams;
        Self {
            control,
            literals,
            gaps,
            tokens,
            escapes,
        }
    }
}

const FEW_LITERALS: &str = "its new bytes do not fill its destination";
const FEW_DIFFERENCES: &str = "its differences do not fit its copies";

/// Reads the differences of a script.
struct Differences<'a> {
    gaps: Varints<'a>,
    tokens: &'a [u8],
    escapes: &'a [u8],
    recent: Recent,
    /// Equal bytes before the next one; none when there is no next one.
    gap: Option<usize>,
}

impl<'a> Differences<'a> {
    fn new(script: &'a Script) -> Result<Self, Cause> {
        let mut differences = Self {
            gaps: Varints::new(&script.gaps),
            tokens: &script.tokens,
            escapes: &script.escapes,
            recent: Recent::default(),
            gap: None,
        };
        differences.next_gap()?;
        Ok(differences)
    }

    fn next_gap(&mut self) -> Result<(), Cause> {
        self.gap = if self.gaps.rest().is_empty() {
            None
        } else {
            Some(self.gaps.next()?)
        };
        Ok(())
    }

    /// Adds those that lie in the next `bytes` of all copied ones.
    fn add_to(&mut self, bytes: &mut [u8]) -> Result<(), Cause> {
        let mut at = 0;
        while let Some(gap) = self.gap {
            let left = bytes.len() - at;
            if gap >= left {
                self.gap = Some(gap - left);
                return Ok(());
            }
            at += gap;
            let end = bytes.len().min(at + WORD);
            let difference = self.next()?;
            let sum = word(&bytes[at..end]).wrapping_add(difference).to_le_bytes();
            bytes[at..end].copy_from_slice(&sum[..end - at]);
            at = end;
            self.next_gap()?;
        }
        Ok(())
    }

    fn next(&mut self) -> Result<u32, Cause> {
        let (&token, rest) = self.tokens.split_first().ok_or(FEW_DIFFERENCES)?;
        self.tokens = rest;
        let Some(length) = token.checked_sub(ESCAPE) else {
            return self.recent.get(token).ok_or_else(|| FEW_DIFFERENCES.into());
        };
        let length = usize::from(length);
        if !(1..=WORD).contains(&length) {
            return Err("a difference has no length".into());
        }
        let (bytes, rest) = self
            .escapes
            .split_at_checked(length)
            .ok_or(FEW_DIFFERENCES)?;
        self.escapes = rest;
        let difference = unfolded(word(bytes));
        self.recent.push(difference);
        Ok(difference)
    }

    fn finish(&self) -> Result<(), Cause> {
        if self.gap.is_none() && self.tokens.is_empty() && self.escapes.is_empty() {
            Ok(())
        } else {
            Err(FEW_DIFFERENCES.into())
        }
    }
}

/// The latest differences, each once, the latest first.
#[derive(Default)]
struct Recent(Vec<u32>);

impl Recent {
    /// Its place, and moves it to the front; takes it in if it is new.
    fn token(&mut self, difference: u32) -> Option<u8> {
        let place = self.0.iter().position(|known| *known == difference);
        match place {
            Some(place) => {
                self.0[..=place].rotate_right(1);
                Some(u8::try_from(place).expect("fewer than 256"))
            }
            None => {
                self.push(difference);
                None
            }
        }
    }

    fn get(&mut self, token: u8) -> Option<u32> {
        let place = usize::from(token);
        self.0.get_mut(..=place)?.rotate_right(1);
        self.0.first().copied()
    }

    fn push(&mut self, difference: u32) {
        self.0.truncate(RECENT - 1);
        self.0.insert(0, difference);
    }
}

fn word(bytes: &[u8]) -> u32 {
    let mut word = [0; WORD];
    word[..bytes.len()].copy_from_slice(bytes);
    u32::from_le_bytes(word)
}

/// Small numbers for small differences of either sign.
fn folded(difference: u32) -> u32 {
    let negative = difference >> 31;
    (difference << 1) ^ negative.wrapping_neg()
}

fn unfolded(number: u32) -> u32 {
    (number >> 1) ^ (number & 1).wrapping_neg()
}

/// The way from `from` to `to` as one number.
fn zigzag(from: usize, to: usize) -> usize {
    if to >= from {
        (to - from) << 1
    } else {
        ((from - to) << 1) - 1
    }
}

fn unzigzag(from: usize, way: usize) -> Option<usize> {
    if way & 1 == 0 {
        from.checked_add(way >> 1)
    } else {
        from.checked_sub((way >> 1) + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn copies() -> impl Strategy<Value = (Vec<u8>, Vec<u8>, Vec<Copy>)> {
        let bytes = || proptest::collection::vec(0u8..4, 1..300);
        let lengths = proptest::collection::vec((0usize..40, 0usize..60, any::<usize>()), 0..9);
        (bytes(), bytes(), lengths).prop_map(|(target, source, lengths)| {
            let mut copies = Vec::new();
            let mut at = 0;
            for (new, length, from) in lengths {
                let from = from % (source.len() + 1);
                let length = length.min(source.len() - from);
                if at + new + length <= target.len() {
                    copies.push(Copy {
                        target: at + new,
                        source: from,
                        length,
                    });
                    at += new + length;
                }
            }
            (target, source, copies)
        })
    }

    proptest! {
        #[test]
        fn a_script_makes_its_target_whatever_its_copies_are((target, source, copies) in copies()) {
            let script = Script::write(&target, &source, &copies);
            prop_assert_eq!(script.run(&source, target.len()).unwrap(), target);
        }

        #[test]
        fn damaged_scripts_end_within_their_length(
            (target, source, copies) in copies(), stream in 0usize..5, at: usize, bit in 0u8..8
        ) {
            let script = Script::write(&target, &source, &copies);
            let mut streams = script.streams().map(Clone::clone);
            if let Some(length) = std::num::NonZeroUsize::new(streams[stream].len()) {
                streams[stream][at % length] ^= 1 << bit;
            }
            if let Ok(result) = Script::from_streams(streams).run(&source, target.len()) {
                prop_assert_eq!(result.len(), target.len());
            }
        }

        #[test]
        fn differences_fold(difference: u32) {
            prop_assert_eq!(unfolded(folded(difference)), difference);
        }
    }

    #[test]
    fn addresses_that_moved_alike_are_named_once() {
        let addresses: Vec<u8> = (0..500u32)
            .flat_map(|n| (n * 977 + 40_000).to_le_bytes())
            .collect();
        let moved: Vec<u8> = (0..500u32)
            .flat_map(|n| (n * 977 + 40_320).to_le_bytes())
            .collect();
        let whole = Copy {
            target: 0,
            source: 0,
            length: moved.len(),
        };
        let script = Script::write(&moved, &addresses, &[whole]);
        assert_eq!(script.escapes.len(), 2, "320, and no more");
        assert!(script.tokens[1..].iter().all(|token| *token == 0));
    }
}
