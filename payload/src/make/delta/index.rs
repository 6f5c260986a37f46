//! Where bytes of the target may come from: two indexes over the source.
//!
//! [`Seeds`] covers the whole source at a stride and answers for long matches
//! wherever they went. [`Near`] covers the few MiB that one window of the target
//! turned out to be made of, every byte of it, and answers for short ones. A
//! suffix array of everything would find both, at five to nine bytes of memory
//! for each byte of the source.

use std::ops::Range;

/// Bytes that a long match must have in common at least.
pub(super) const SEED: usize = 32;
/// Bytes that a short match must have in common at least.
pub(super) const NEAR_SEED: usize = 8;

/// Positions of the source by the hash of the [`SEED`] bytes there.
pub(super) struct Seeds {
    /// Two positions for each hash, in units of [`Seeds::UNIT`], one more than
    /// they are; 0 is free.
    slots: Vec<[u32; 2]>,
    shift: u32,
}

impl Seeds {
    /// Positions are kept as multiples of this many bytes.
    pub(super) const UNIT: usize = 16;

    /// Indexes `ranges` of `source`, each at its stride, a multiple of
    /// [`Seeds::UNIT`]. What comes first wins where hashes collide.
    pub(super) fn new(source: &[u8], ranges: &[(Range<usize>, usize)]) -> Self {
        let entries: usize = ranges
            .iter()
            .map(|(range, stride)| range.len() / stride)
            .sum();
        let slots = (entries / 2).next_power_of_two();
        let bits = slots.trailing_zeros().clamp(10, 30);
        let mut seeds = Self {
            slots: written(1 << bits, [0; 2]),
            shift: 64 - bits,
        };
        for (range, stride) in ranges {
            let first = range.start.next_multiple_of(*stride);
            for position in (first..range.end).step_by(*stride) {
                if let Some(seed) = source.get(position..position + SEED) {
                    seeds.insert(seed, position);
                }
            }
        }
        seeds
    }

    fn insert(&mut self, seed: &[u8], position: usize) {
        let Some(hash) = hash(seed) else { return };
        let Ok(unit) = u32::try_from(position / Self::UNIT + 1) else {
            return;
        };
        let slot = self.slot(hash);
        if let Some(free) = self.slots[slot].iter_mut().find(|entry| **entry == 0) {
            *free = unit;
        }
    }

    /// Positions of the source where the bytes at the start of `target` may be.
    pub(super) fn find(&self, target: &[u8]) -> impl Iterator<Item = usize> + use<> {
        let found = target
            .get(..SEED)
            .and_then(hash)
            .map_or([0; 2], |hash| self.slots[self.slot(hash)]);
        found
            .into_iter()
            .filter(|entry| *entry != 0)
            .map(|entry| (as_usize(entry) - 1) * Self::UNIT)
    }

    fn slot(&self, hash: u64) -> usize {
        usize::try_from(hash >> self.shift).expect("as many bits as slots")
    }
}

/// Positions in a few ranges of the source by the hash of the [`NEAR_SEED`] bytes there.
pub(super) struct Near {
    /// By hash: the last positions, the last first, one more than they are; 0 is free.
    slots: Vec<[u32; Near::KEPT]>,
    shift: u32,
}

impl Near {
    /// Positions that are remembered for one hash: half a cache line.
    const KEPT: usize = 8;

    /// Indexes every other position of `ranges` of `source`; matches are sought at every
    /// position of the target.
    pub(super) fn new(source: &[u8], ranges: &[Range<usize>]) -> Self {
        let total: usize = ranges.iter().map(ExactSizeIterator::len).sum();
        let slots = (total / 4).next_power_of_two();
        let bits = slots.trailing_zeros().clamp(10, 20);
        let mut near = Self {
            slots: written(1 << bits, [0; Self::KEPT]),
            shift: 64 - bits,
        };
        for range in ranges {
            for position in range.clone().step_by(2) {
                near.push(source, position);
            }
        }
        near
    }

    fn push(&mut self, source: &[u8], position: usize) {
        let seed = source.get(position..position + NEAR_SEED);
        let Some(hash) = seed.and_then(short_hash) else {
            return;
        };
        // Sources beyond 4 GiB are matched by long seeds alone.
        let Ok(number) = u32::try_from(position + 1) else {
            return;
        };
        let slot = self.slot(hash);
        let kept = &mut self.slots[slot];
        kept.copy_within(..Self::KEPT - 1, 1);
        kept[0] = number;
    }

    /// Positions of the source where the bytes at the start of `target` may be,
    /// the later ones first.
    pub(super) fn find(&self, target: &[u8]) -> impl Iterator<Item = usize> + use<> {
        let hash = target.get(..NEAR_SEED).and_then(short_hash);
        let found = hash.map_or([0; Self::KEPT], |hash| self.slots[self.slot(hash)]);
        found
            .into_iter()
            .take_while(|number| *number != 0)
            .map(|number| as_usize(number) - 1)
    }

    fn slot(&self, hash: u64) -> usize {
        usize::try_from(hash >> self.shift).expect("as many bits as slots")
    }
}

/// `length` times `value`, each really written. Zeros as the kernel lends them are read
/// before they are written here, and taking a lent page back interrupts all processors:
/// of a delta of an ext4 image that took two fifths of the time.
fn written<T: Clone>(length: usize, value: T) -> Vec<T> {
    let mut values = Vec::with_capacity(length);
    values.resize(length, value);
    values
}

const MIX: u64 = 0x9e37_79b9_7f4a_7c15;

/// `None` for bytes that are all the same, which say nothing about where they came from.
fn hash(seed: &[u8]) -> Option<u64> {
    let (words, _) = seed.as_chunks::<8>();
    let first = u64::from_le_bytes(*words.first()?);
    let mut varied = first != first.rotate_left(8);
    let mut hash = 0;
    for word in words {
        let word = u64::from_le_bytes(*word);
        varied |= word != first;
        hash = (hash ^ word).wrapping_mul(MIX).rotate_left(29);
    }
    varied.then(|| hash.wrapping_mul(MIX))
}

fn short_hash(seed: &[u8]) -> Option<u64> {
    let word = u64::from_le_bytes(*seed.first_chunk()?);
    (word != word.rotate_left(8)).then(|| (word ^ (word >> 29)).wrapping_mul(MIX))
}

fn as_usize(number: u32) -> usize {
    usize::try_from(number).expect("addresses have at least 32 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn varied(length: usize) -> Vec<u8> {
        let mut state = 1u64;
        let next = |_| {
            state = state.wrapping_mul(MIX).wrapping_add(1);
            state.to_be_bytes()[0]
        };
        (0..length).map(next).collect()
    }

    #[test]
    fn seeds_find_most_of_what_is_at_their_stride_and_nothing_in_constant_bytes() {
        let source = varied(4096);
        let seeds = Seeds::new(&source, &[(0..source.len(), Seeds::UNIT)]);
        let positions = (0..source.len() - SEED).step_by(Seeds::UNIT);
        let is_found = |position: &usize| {
            let mut found = seeds.find(&source[*position..]);
            found.any(|found| found == *position)
        };
        // A few lose their place to others with the same hash.
        assert!(positions.filter(is_found).count() > 220, "of 254");
        assert_eq!(seeds.find(&[7; SEED]).count(), 0);
        assert_eq!(seeds.find(&source[..SEED - 1]).count(), 0, "too short");
        let constant = Seeds::new(&[7; 4096], &[(0..4096, Seeds::UNIT)]);
        assert_eq!(constant.find(&[7; SEED]).count(), 0);
    }

    #[test]
    fn the_near_index_knows_its_ranges_alone_and_the_latest_first() {
        let mut source = varied(1024);
        source.extend_from_within(..512);
        let near = Near::new(&source, &[0..256, 1024..1200]);
        let found: Vec<usize> = near.find(&source[100..]).collect();
        assert_eq!(found[..2], [1124, 100]);
        assert!(!near.find(&source[600..]).any(|found| found == 600));
    }
}
