//! Which bytes of a window of the target are close to which bytes of the source.
//!
//! The idea is bsdiff's (C. Percival, 2003): exact matches are anchors; around
//! each the copy grows as long as at least half of its bytes agree, and a new
//! anchor is taken only when it explains more than the alignment before it. So a
//! program whose addresses moved becomes a few long copies with small
//! differences, not thousands of short ones.

use std::ops::Range;

use super::index::{NEAR_SEED, Near, SEED, Seeds};

/// A stretch of the target that is close to a stretch of the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Copy {
    /// Where it starts in the window.
    pub(super) target: usize,
    /// Where it starts in the source.
    pub(super) source: usize,
    /// Bytes.
    pub(super) length: usize,
}

impl Copy {
    /// The part of the source that it reads.
    pub(super) fn source_range(&self) -> Range<usize> {
        self.source..self.source + self.length
    }
}

/// How much more an anchor must explain than the alignment before it.
const ADVANTAGE: usize = 8;
/// What a jump of so many bytes in the source costs beyond that, in bytes: a number to
/// name it, and far away most likely a block of the source that nobody else needs.
fn jump(bytes: usize) -> usize {
    match bytes {
        0..0x1000 => 0,
        0x1000..0x4_0000 => 6,
        _ => 20,
    }
}

/// An anchor of this length is taken without a search for a longer one.
const LONG_ENOUGH: usize = 256;

/// Copies that together make `window`, in order and without overlap; what they
/// leave out is new.
pub(super) fn matches(window: &[u8], source: &[u8], seeds: &Seeds) -> Vec<Copy> {
    let far = anchors(window, source, seeds);
    let near = Near::new(source, &surroundings(&far, source.len()));
    Search {
        window,
        source,
        far: &far,
        near: &near,
    }
    .copies()
}

/// Where the rest of a window may come from: the source around the ends of its long
/// matches, sorted and apart. What lies within a long match is taken.
fn surroundings(anchors: &[Copy], source_length: usize) -> Vec<Range<usize>> {
    /// Bytes on each side, in which the rest of a changed file may lie.
    const AROUND: usize = 32 << 10;
    /// Bytes of all ranges together.
    const MOST: usize = 12 << 20;
    /// Bytes at each end of a match that may be wanted a second time.
    const EDGE: usize = 1 << 10;

    let wide = joined(anchors.iter().map(|copy| {
        let range = copy.source_range();
        // A short match may be there by chance, and its surroundings with it.
        let around = AROUND.min(copy.length * 64);
        range.start.saturating_sub(around)..(range.end + around).min(source_length)
    }));
    let taken = joined(anchors.iter().filter_map(|copy| {
        let range = copy.source_range();
        (range.len() > 4 * EDGE).then(|| range.start + EDGE..range.end - EDGE)
    }));
    let mut ranges = Vec::new();
    let mut left = MOST;
    let mut taken = taken.into_iter().peekable();
    for mut range in wide {
        while let Some(hole) = taken.next_if(|hole| hole.start < range.end) {
            add(&mut ranges, range.start..hole.start, &mut left);
            range.start = hole.end;
        }
        add(&mut ranges, range, &mut left);
    }
    ranges
}

/// Adds as much of a range as is `left`.
fn add(ranges: &mut Vec<Range<usize>>, range: Range<usize>, left: &mut usize) {
    let length = range.len().min(*left);
    if length > 0 {
        *left -= length;
        ranges.push(range.start..range.start + length);
    }
}

/// Ranges sorted, and joined where they meet.
fn joined(ranges: impl Iterator<Item = Range<usize>>) -> Vec<Range<usize>> {
    let mut ranges: Vec<Range<usize>> = ranges.collect();
    ranges.sort_unstable_by_key(|range| (range.start, range.end));
    let mut joined: Vec<Range<usize>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

/// Long exact matches anywhere in the source, each as long as it goes.
fn anchors(window: &[u8], source: &[u8], seeds: &Seeds) -> Vec<Copy> {
    let mut copies: Vec<Copy> = Vec::new();
    let mut position = 0;
    let mut expected = 0;
    while position + SEED <= window.len() {
        let target = &window[position..];
        let anchor = longest(target, source, seeds.find(target), expected);
        if anchor.length < SEED {
            position += 1;
            expected += 1;
            continue;
        }
        copies.push(Copy {
            target: position,
            source: anchor.source,
            length: anchor.length,
        });
        position += anchor.length;
        expected = anchor.source + anchor.length;
    }
    copies
}

/// Among equally long ones the one closest to `expected`, where the alignment before
/// would go on: it costs the fewest bytes to name.
fn longest(
    target: &[u8],
    source: &[u8],
    candidates: impl Iterator<Item = usize>,
    expected: usize,
) -> Anchor {
    let mut best = Anchor::default();
    for place in candidates {
        let length = common_prefix(target, &source[place..]);
        let closer = || place.abs_diff(expected) < best.source.abs_diff(expected);
        if length > best.length || (length == best.length && length > 0 && closer()) {
            best = Anchor {
                source: place,
                length,
            };
            if length >= LONG_ENOUGH {
                break;
            }
        }
    }
    best
}

#[derive(Clone, Copy)]
struct Search<'a> {
    window: &'a [u8],
    source: &'a [u8],
    /// Long exact matches in order, without overlap.
    far: &'a [Copy],
    near: &'a Near,
}

/// An exact match.
#[derive(Clone, Copy, Default)]
struct Anchor {
    source: usize,
    length: usize,
}

impl Search<'_> {
    /// The longest match of what stands at `position`, near or far. `far` is the number
    /// of the first far match that ends after it.
    fn best(&self, position: usize, far: usize, expected: usize) -> Anchor {
        let target = &self.window[position..];
        let candidates = self.near.find(target);
        let near = longest(target, self.source, candidates, expected);
        match self.far.get(far) {
            Some(copy) if copy.target <= position => {
                let skipped = position - copy.target;
                let length = copy.length - skipped;
                let source = copy.source + skipped;
                if length > near.length {
                    Anchor { source, length }
                } else {
                    near
                }
            }
            _ => near,
        }
    }

    fn copies(&self) -> Vec<Copy> {
        let (window, source) = (self.window, self.source);
        let mut copies = Vec::new();
        // The alignment that is being extended: where it was anchored.
        let mut from = Copy {
            target: 0,
            source: 0,
            length: 0,
        };
        let mut scan = 0;
        let mut skip = 0;
        let mut far = 0;
        while scan < window.len() {
            scan += skip;
            let aligned = |at: usize| -> bool {
                let there = from.source + (at - from.target);
                source.get(there).is_some_and(|byte| *byte == window[at])
            };
            // How many bytes of `scan..counted` the old alignment explains.
            let mut explained = 0;
            let mut counted = scan;
            let mut anchor = Anchor::default();
            while scan < window.len() {
                let expected = from.source + (scan - from.target);
                let onwards = source.get(expected..).unwrap_or(&[]);
                let goes_on = common_prefix(&window[scan..], onwards);
                anchor = if goes_on >= 2 * NEAR_SEED {
                    Anchor {
                        source: expected,
                        length: goes_on,
                    }
                } else if mostly_equal(&window[scan..], onwards) {
                    // Nothing that is found here would be taken.
                    Anchor::default()
                } else {
                    let ends = |copy: &Copy| copy.target + copy.length <= scan;
                    while self.far.get(far).is_some_and(ends) {
                        far += 1;
                    }
                    self.best(scan, far, expected)
                };
                let end = scan + anchor.length;
                while counted < end {
                    explained += usize::from(aligned(counted));
                    counted += 1;
                }
                let jump = jump(anchor.source.abs_diff(expected));
                if (anchor.length == explained && anchor.length != 0)
                    || anchor.length > explained + ADVANTAGE + jump
                {
                    break;
                }
                if counted > scan {
                    explained -= usize::from(aligned(scan));
                } else {
                    counted += 1;
                }
                scan += 1;
            }
            skip = anchor.length.max(1);
            if scan < window.len() && anchor.length == explained {
                continue;
            }
            let forward = self.forward(&from, scan);
            let backward = if scan < window.len() {
                self.backward(scan, anchor.source, scan - from.target)
            } else {
                0
            };
            let (forward, backward) = self.settle(&from, scan, anchor.source, forward, backward);
            if forward > 0 {
                copies.push(Copy {
                    length: forward,
                    ..from
                });
            }
            if scan >= window.len() {
                break;
            }
            from = Copy {
                target: scan - backward,
                source: anchor.source - backward,
                length: 0,
            };
        }
        copies
    }

    /// How far `from` goes on before `end` with at least half of its bytes equal.
    fn forward(&self, from: &Copy, end: usize) -> usize {
        let room = (end - from.target).min(self.source.len() - from.source.min(self.source.len()));
        let target = &self.window[from.target..from.target + room];
        let source = &self.source[from.source..from.source + room];
        let (mut score, mut best, mut length) = (0isize, 0isize, 0);
        for (at, (a, b)) in target.iter().zip(source).enumerate() {
            score += if a == b { 1 } else { -1 };
            if score > best {
                (best, length) = (score, at + 1);
            }
        }
        length
    }

    /// The same backwards from an anchor.
    fn backward(&self, target: usize, source: usize, most: usize) -> usize {
        let room = most.min(source);
        let (mut score, mut best, mut length) = (0isize, 0isize, 0);
        for back in 1..=room {
            let equal = self.window[target - back] == self.source[source - back];
            score += if equal { 1 } else { -1 };
            if score > best {
                (best, length) = (score, back);
            }
            // Nothing can become of it any more.
            if score + isize::try_from(room - back).unwrap_or(isize::MAX) < best {
                break;
            }
        }
        length
    }

    /// Where two copies meet, gives each byte to the one that explains it better.
    fn settle(
        &self,
        from: &Copy,
        scan: usize,
        anchor: usize,
        forward: usize,
        backward: usize,
    ) -> (usize, usize) {
        let overlap = (from.target + forward).saturating_sub(scan - backward);
        if overlap == 0 {
            return (forward, backward);
        }
        let start = scan - backward;
        let (mut score, mut best, mut kept) = (0isize, 0isize, 0);
        for at in 0..overlap {
            let position = start + at;
            let byte = self.window[position];
            let old = self.source[from.source + (position - from.target)] == byte;
            let new = self.source[anchor - backward + at] == byte;
            score += isize::from(old) - isize::from(new);
            if score > best {
                (best, kept) = (score, at + 1);
            }
        }
        (forward - (overlap - kept), backward - kept)
    }
}

/// Whether nearly all of the next bytes agree: an address here and there changed.
fn mostly_equal(a: &[u8], b: &[u8]) -> bool {
    const BYTES: usize = 32;
    const DIFFERENT: usize = 7;

    let (Some(a), Some(b)) = (a.first_chunk::<BYTES>(), b.first_chunk::<BYTES>()) else {
        return false;
    };
    a.iter().zip(b).filter(|(a, b)| a != b).count() <= DIFFERENT
}

/// Bytes that two slices have in common at their start.
fn common_prefix(a: &[u8], b: &[u8]) -> usize {
    let length = a.len().min(b.len());
    let (a, b) = (&a[..length], &b[..length]);
    let (a_words, _) = a.as_chunks::<8>();
    let (b_words, _) = b.as_chunks::<8>();
    let words = a_words.iter().zip(b_words);
    let mut equal = 0;
    for (x, y) in words {
        let differing = u64::from_le_bytes(*x) ^ u64::from_le_bytes(*y);
        if differing != 0 {
            return equal + usize::try_from(differing.trailing_zeros() / 8).expect("at most 7");
        }
        equal += 8;
    }
    let rest = a[equal..].iter().zip(&b[equal..]);
    equal + rest.take_while(|(x, y)| x == y).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(seed: u64, length: usize) -> Vec<u8> {
        let mut state = seed;
        let next = |_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            state.to_be_bytes()[0]
        };
        (0..length).map(next).collect()
    }

    fn copies_of(window: &[u8], source: &[u8]) -> Vec<Copy> {
        let seeds = Seeds::new(source, &[(0..source.len(), Seeds::UNIT)]);
        matches(window, source, &seeds)
    }

    fn covered(copies: &[Copy]) -> usize {
        copies.iter().map(|copy| copy.length).sum()
    }

    #[test]
    fn moved_stretches_are_found_wherever_they_went() {
        let source = bytes(1, 200_000);
        let window = [
            &source[150_000..190_000],
            &bytes(2, 1000),
            &source[3..60_003],
        ]
        .concat();
        let copies = copies_of(&window, &source);
        assert!(covered(&copies) >= 99_990, "{copies:?}");
        assert!(copies.len() <= 4, "{copies:?}");
    }

    #[test]
    fn changed_addresses_do_not_break_a_copy() {
        let source = bytes(3, 100_000);
        let mut window = source.clone();
        for at in (50..window.len()).step_by(40) {
            window[at] = window[at].wrapping_add(64);
        }
        assert_eq!(
            copies_of(&window, &source),
            [Copy {
                target: 0,
                source: 0,
                length: 100_000
            }]
        );
    }

    #[test]
    fn short_matches_are_found_near_long_ones_only() {
        let source = bytes(4, 300_000);
        let short = &source[20_000..20_016];
        let near = [&source[..19_000], short, &source[20_100..30_000]].concat();
        assert_eq!(covered(&copies_of(&near, &source)), near.len());
        let far = [&source[200_000..240_000], short, &source[240_000..250_000]].concat();
        assert!(covered(&copies_of(&far, &source)) <= far.len() - 16);
    }

    proptest! {
        #[test]
        fn copies_are_in_order_apart_and_inside(
            cuts in proptest::collection::vec((0usize..5000, 0usize..700, any::<u8>()), 0..12),
        ) {
            let source = bytes(5, 6000);
            let mut window = Vec::new();
            for (start, length, change) in cuts {
                window.extend_from_slice(&source[start..start + length]);
                if let Some(last) = window.last_mut() {
                    *last ^= change;
                }
            }
            let mut end = 0;
            for copy in copies_of(&window, &source) {
                prop_assert!(copy.target >= end && copy.length > 0);
                end = copy.target + copy.length;
                prop_assert!(end <= window.len());
                prop_assert!(copy.source_range().end <= source.len());
            }
        }
    }
}
