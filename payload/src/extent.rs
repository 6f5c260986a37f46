//! Where bytes lie in an image: runs of whole blocks and sparse holes, in bytes.

/// A stretch of an image that an operation reads or writes.
///
/// The manifest counts in blocks; extents are converted to bytes once, when the
/// manifest is validated, so that every `offset + length` fits an `i64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Extent {
    /// `length` bytes of the image at `offset`.
    Run {
        /// Byte offset in the image, a multiple of the block size.
        offset: u64,
        /// Length in bytes, a multiple of the block size except at the end of an old
        /// image.
        length: u64,
    },
    /// `length` bytes that are nowhere: reading gives zeros, writing does nothing.
    Hole {
        /// Length in bytes, a multiple of the block size.
        length: u64,
    },
}

impl Extent {
    /// Length in bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        match *self {
            Extent::Run { length, .. } | Extent::Hole { length } => length,
        }
    }
}

/// A length in memory as a length in an image.
pub(crate) fn size(length: usize) -> u64 {
    u64::try_from(length).expect("a length fits 64 bits")
}

/// Bytes that `extents` span, holes included.
pub(crate) fn total(extents: &[Extent]) -> u64 {
    extents
        .iter()
        .map(Extent::length)
        .fold(0, u64::saturating_add)
}

/// Whether any byte of the image belongs to both lists.
pub(crate) fn overlap(a: &[Extent], b: &[Extent]) -> bool {
    let (a, b) = (sorted_runs(a), sorted_runs(b));
    let (mut a, mut b) = (a.iter().peekable(), b.iter().peekable());
    while let (Some(&&(a_start, a_end)), Some(&&(b_start, b_end))) = (a.peek(), b.peek()) {
        if a_end <= b_start {
            a.next();
        } else if b_end <= a_start {
            b.next();
        } else {
            return true;
        }
    }
    false
}

/// Whether any byte of the image belongs to two of the extents.
pub(crate) fn overlap_themselves(extents: &[Extent]) -> bool {
    let runs = extents
        .iter()
        .filter(|extent| matches!(extent, Extent::Run { .. }));
    let apart = runs.map(Extent::length).fold(0, u64::saturating_add);
    let joined = sorted_runs(extents).into_iter();
    joined.map(|(start, end)| end - start).sum::<u64>() != apart
}

/// Takes off what lies behind `end`.
pub(crate) fn cut_at(extents: &mut [Extent], end: u64) {
    for extent in extents {
        if let Extent::Run { offset, length } = extent {
            *length = (*length).min(end.saturating_sub(*offset));
        }
    }
}

/// Start and end of every run that is not empty, in order, touching ones joined.
fn sorted_runs(extents: &[Extent]) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = extents
        .iter()
        .filter_map(|extent| match *extent {
            Extent::Run { offset, length } if length > 0 => {
                Some((offset, offset.saturating_add(length)))
            }
            _ => None,
        })
        .collect();
    runs.sort_unstable();
    let mut joined: Vec<(u64, u64)> = Vec::with_capacity(runs.len());
    for (start, end) in runs {
        match joined.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ => joined.push((start, end)),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(offset: u64, length: u64) -> Extent {
        Extent::Run { offset, length }
    }

    #[test]
    fn overlap_looks_at_every_run_and_at_no_hole() {
        let hole = Extent::Hole { length: 100 };
        let cases = [
            (vec![run(0, 4)], vec![run(4, 4)], false),
            (vec![run(0, 5)], vec![run(4, 4)], true),
            (vec![run(8, 4), run(0, 4)], vec![run(4, 4), run(9, 1)], true),
            (
                vec![run(8, 4), run(0, 4)],
                vec![run(4, 4), run(12, 1)],
                false,
            ),
            (vec![run(0, 100), run(2, 1)], vec![run(50, 1)], true),
            (vec![hole], vec![run(0, 100)], false),
            (vec![run(5, 0)], vec![run(0, 100)], false),
            (vec![], vec![run(0, 1)], false),
        ];
        for (a, b, expected) in cases {
            assert_eq!(overlap(&a, &b), expected, "{a:?} {b:?}");
            assert_eq!(overlap(&b, &a), expected, "{b:?} {a:?}");
        }
    }

    proptest! {
        #[test]
        fn overlap_agrees_with_comparing_byte_by_byte(
            a in proptest::collection::vec((0u64..60, 0u64..6), 0..6),
            b in proptest::collection::vec((0u64..60, 0u64..6), 0..6),
        ) {
            let covers = |list: &[(u64, u64)], byte: u64| {
                list.iter().any(|&(start, length)| (start..start + length).contains(&byte))
            };
            let expected = (0..70).any(|byte| covers(&a, byte) && covers(&b, byte));
            let extents = |list: &[(u64, u64)]| -> Vec<Extent> {
                list.iter().map(|&(offset, length)| run(offset, length)).collect()
            };
            prop_assert_eq!(overlap(&extents(&a), &extents(&b)), expected);
        }
    }
}
