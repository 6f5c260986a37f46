//! Every kind of operation agrees with a byte-by-byte model of it.

use payload::Trust;
use proptest::prelude::*;

use crate::craft::{HOLE, Payload, Step, bzip2, noise};
use crate::drive::{Machine, install};

const BLOCK: usize = 512;
const BLOCKS: u64 = 16;

/// Byte positions in the image that `extents` span; `None` in holes.
fn positions(extents: &[(u64, u64)]) -> Vec<Option<usize>> {
    let of_extent = |&(start, blocks): &(u64, u64)| {
        (0..usize::try_from(blocks).unwrap() * BLOCK).map(move |byte| {
            (start != HOLE).then(|| usize::try_from(start).unwrap() * BLOCK + byte)
        })
    };
    extents.iter().flat_map(of_extent).collect()
}

fn model_read(image: &[u8], extents: &[(u64, u64)], length: usize) -> Vec<u8> {
    let positions = positions(extents).into_iter().take(length);
    positions
        .map(|position| position.map_or(0, |position| image[position]))
        .collect()
}

/// Writes `data` and zeros to the end of its last block.
fn model_write(image: &mut [u8], extents: &[(u64, u64)], data: &[u8]) {
    let mut padded = data.to_vec();
    padded.resize(data.len().next_multiple_of(BLOCK), 0);
    for (position, byte) in positions(extents).into_iter().zip(padded) {
        if let Some(position) = position {
            image[position] = byte;
        }
    }
}

fn run(step: Step, image: &[u8]) -> Vec<u8> {
    let payload = Payload {
        block_size: Some(BLOCK.try_into().unwrap()),
        steps: vec![step],
        ..Payload::default()
    };
    let machine = Machine::new(image, &[], 0);
    install(
        &payload.unsigned(),
        700,
        &Trust::allow_unsigned(vec![]),
        &machine,
    )
    .unwrap();
    machine.partition.bytes()
}

/// Extents inside the image, holes among them; blocks may come twice.
fn extents() -> impl Strategy<Value = Vec<(u64, u64)>> {
    let run = (0..BLOCKS, 0_u64..4).prop_map(|(start, blocks)| (start, blocks.min(BLOCKS - start)));
    let hole = (Just(HOLE), 0_u64..4);
    proptest::collection::vec(prop_oneof![4 => run, 1 => hole], 1..6)
}

/// Something like `old`: pieces of it, moved and changed, and new bytes between.
fn similar(old: &[u8], edits: &[(u16, u16, u8)], length: usize) -> Vec<u8> {
    let mut new = Vec::new();
    for &(from, take, byte) in edits {
        let from = usize::from(from) % (old.len() + 1);
        let take = usize::from(take) % 700;
        new.extend(
            old[from..]
                .iter()
                .take(take)
                .map(|old| old.wrapping_add(byte % 3)),
        );
        new.extend(std::iter::repeat_n(byte, usize::from(byte % 40)));
    }
    new.resize(length, 0x5a);
    new
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn replace_and_replace_bz_write_and_pad(
        destination in extents(),
        cut in any::<prop::sample::Index>(),
        compressed in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let image = noise(seed, BLOCK * 16);
        let room = positions(&destination).len();
        let data = noise(seed ^ 1, cut.index(room + 1));
        let mut expected = image.clone();
        model_write(&mut expected, &destination, &data);
        let step = if compressed {
            Step::full(1, &destination, &bzip2(&data))
        } else {
            Step::full(0, &destination, &data)
        };
        prop_assert_eq!(run(step, &image), expected);
    }

    #[test]
    fn move_reads_everything_before_it_writes(
        source in extents(),
        rotation in 0_usize..20,
        seed in any::<u64>(),
    ) {
        // The same blocks elsewhere, mostly overlapping.
        let mut blocks: Vec<(u64, u64)> = source
            .iter()
            .flat_map(|&(start, count)| (0..count).map(move |block| (start.saturating_add(block), 1)))
            .collect();
        let turns = rotation % blocks.len().max(1);
        blocks.rotate_left(turns);
        let image = noise(seed, BLOCK * 16);
        let mut expected = image.clone();
        let bytes = model_read(&image, &source, usize::MAX);
        model_write(&mut expected, &blocks, &bytes);
        let step = Step { source, ..Step::full(2, &blocks, &[]) };
        prop_assert_eq!(run(step, &image), expected);
    }

    #[test]
    fn bsdiff_makes_what_qbsdiff_made_the_patch_from(
        source in extents(),
        destination in extents(),
        edits in proptest::collection::vec(any::<(u16, u16, u8)>(), 0..8),
        cut in (0_usize..600, 0_usize..600),
        seed in any::<u64>(),
    ) {
        let image = noise(seed, BLOCK * 16);
        let source_length = positions(&source).len().saturating_sub(cut.0);
        let target_length = positions(&destination).len().saturating_sub(cut.1);
        let old = model_read(&image, &source, source_length);
        let new = similar(&old, &edits, target_length);
        let mut patch = Vec::new();
        qbsdiff::Bsdiff::new(&old, &new).compare(&mut patch).unwrap();
        let mut expected = image.clone();
        model_write(&mut expected, &destination, &new);
        let step = Step {
            source,
            source_length: Some(source_length.try_into().unwrap()),
            target_length: Some(target_length.try_into().unwrap()),
            ..Step::full(3, &destination, &patch)
        };
        prop_assert_eq!(run(step, &image), expected);
    }
}

#[test]
fn large_results_are_written_piece_by_piece() {
    let new: Vec<u8> = noise(8, 1 << 20).repeat(6);
    let image = vec![1; new.len()];
    let blocks = u64::try_from(new.len() / BLOCK).unwrap();
    // Two halves swapped, so that a piece crosses from one extent to the other.
    let swapped = [(blocks / 2 + 1, blocks / 2 - 1), (0, blocks / 2 + 1)];
    let mut expected = image.clone();
    model_write(&mut expected, &swapped, &new);
    assert!(run(Step::full(1, &swapped, &bzip2(&new)), &image) == expected);

    let halves = [(0, blocks / 2), (blocks / 2, blocks / 2)];
    let step = Step {
        source: vec![halves[0]],
        ..Step::full(2, &[halves[1]], &[])
    };
    let moved = run(step, &new);
    assert!(moved[new.len() / 2..] == new[..new.len() / 2]);
}
