//! Hostile BSDIFF40 patches end with an error, in bounded time.

use std::time::{Duration, Instant};

use payload::{PayloadError, Trust};

use crate::craft::{Payload, Step, bzip2};
use crate::drive::{Machine, install};

const OLD: &[u8; 4096] = &[7; 4096];

/// Bytes to add, bytes to copy, distance to seek.
type Triple = (i64, i64, i64);

/// An integer as bsdiff writes it: magnitude, and the sign in the top bit.
fn integer(value: i64) -> [u8; 8] {
    let sign = if value < 0 { 1 << 63 } else { 0 };
    (value.unsigned_abs() | sign).to_le_bytes()
}

fn control(triples: &[Triple]) -> Vec<u8> {
    let triples = triples
        .iter()
        .flat_map(|&(add, copy, seek)| [add, copy, seek]);
    triples.flat_map(integer).collect()
}

fn patch(new_size: i64, triples: &[Triple], diff: &[u8], extra: &[u8]) -> Vec<u8> {
    let (control, diff) = (bzip2(&control(triples)), bzip2(diff));
    let sizes = [control.len(), diff.len()].map(|size| integer(size.try_into().unwrap()));
    [
        b"BSDIFF40",
        &sizes.concat()[..],
        &integer(new_size),
        &control,
        &diff,
        &bzip2(extra),
    ]
    .concat()
}

/// Patches one block into the next one.
fn apply(patch: &[u8], new_size: u64) -> Result<Vec<u8>, String> {
    let step = Step {
        source: vec![(0, 1)],
        source_length: Some(4096),
        target_length: Some(new_size),
        ..Step::full(3, &[(1, 1)], patch)
    };
    let payload = Payload {
        steps: vec![step],
        new: vec![0; 8192],
        ..Payload::default()
    };
    let machine = Machine::new(&[*OLD, [9; 4096]].concat(), &[], 0);
    match install(
        &payload.unsigned(),
        1 << 20,
        &Trust::allow_unsigned(vec![]),
        &machine,
    ) {
        Ok(_) => {
            Ok(machine.partition.bytes()[4096..][..usize::try_from(new_size).unwrap()].to_vec())
        }
        Err(PayloadError::OperationFailed {
            kind: "BSDIFF",
            source,
            ..
        }) => Err(source.to_string()),
        Err(other) => panic!("{other:?}"),
    }
}

#[test]
fn patches_are_applied_as_the_original_program_does() {
    // Outside the old file, before or behind it, old bytes count as zeros.
    type Case<'a> = (&'a [Triple], &'a [u8], &'a [u8], &'a [u8]);
    let cases: [Case; 6] = [
        (&[(3, 0, 0)], &[0, 1, 255], &[], &[7, 8, 6]),
        (&[(0, 2, 0)], &[], b"ab", b"ab"),
        (&[(0, 0, 4095), (2, 0, 0)], &[1, 1], &[], &[8, 1]),
        (&[(0, 0, -1), (2, 0, 0)], &[1, 1], &[], &[1, 8]),
        (
            &[(0, 0, i64::MAX), (0, 0, -i64::MAX), (1, 1, 0)],
            &[1],
            b"z",
            &[8, b'z'],
        ),
        (
            &[(1, 1, -1), (1, 1, 0)],
            &[1, 2],
            b"yz",
            &[8, b'y', 9, b'z'],
        ),
    ];
    for (triples, diff, extra, expected) in cases {
        let size = expected.len();
        let patch = patch(size.try_into().unwrap(), triples, diff, extra);
        assert_eq!(
            apply(&patch, size.try_into().unwrap()),
            Ok(expected.to_vec()),
            "{triples:?}"
        );
    }
}

#[test]
fn hostile_patches_are_refused() {
    let good = patch(3, &[(3, 0, 0)], &[0; 3], &[]);
    let with = |at: usize, value: [u8; 8]| {
        let mut patch = good.clone();
        patch[at..at + 8].copy_from_slice(&value);
        patch
    };
    let add = |triples: &[Triple]| patch(3, triples, &[0; 9], &[0; 9]);
    assert!(apply(&good, 3).is_ok());
    let cases = [
        (good[..31].to_vec(), "the patch has no header"),
        (
            with(0, *b"BSDIFF41"),
            "the patch does not begin with BSDIFF40",
        ),
        (
            with(8, integer(-1)),
            "the patch is shorter than its header says",
        ),
        (
            with(8, integer(i64::MAX)),
            "the patch is shorter than its header says",
        ),
        (
            with(8, [0x80, 0, 0, 0, 0, 0, 0, 0x80]),
            "the patch is shorter than its header says",
        ),
        (
            with(16, integer(1000)),
            "the patch is shorter than its header says",
        ),
        (
            with(24, integer(4)),
            "the patch makes 4 bytes, the manifest says 3",
        ),
        (
            with(24, integer(-3)),
            "the patch makes -3 bytes, the manifest says 3",
        ),
        (
            with(24, integer(i64::MAX)),
            "the patch makes 9223372036854775807 bytes, the manifest says 3",
        ),
        (
            good[..40].to_vec(),
            "the patch is shorter than its header says",
        ),
        (
            add(&[(4, 0, 0)]),
            "a control entry makes 4 and 0 bytes where 3 are left",
        ),
        (
            add(&[(2, 2, 0)]),
            "a control entry makes 2 and 2 bytes where 3 are left",
        ),
        (
            add(&[(-1, 4, 0)]),
            "a control entry makes -1 and 4 bytes where 3 are left",
        ),
        (
            add(&[(i64::MAX, i64::MAX, 0)]),
            "a control entry makes 9223372036854775807 and",
        ),
        (
            add(&[(1, 0, i64::MAX), (1, 0, 0)]),
            "a control entry seeks beyond any file",
        ),
        (
            add(&[(0, 0, i64::MAX), (0, 0, i64::MAX)]),
            "a control entry seeks beyond any file",
        ),
        (
            add(&[(0, 0, i64::MAX), (1, 0, 0)]),
            "a control entry reads beyond any file",
        ),
        (add(&[(1, 0, 0)]), "the control data ends early"),
        (
            patch(3, &[(3, 0, 0)], &[0; 2], &[]),
            "the diff data ends early",
        ),
        (
            patch(3, &[(0, 3, 0)], &[], &[0; 2]),
            "the extra data ends early",
        ),
        (
            add(&[(0, 0, 0); 100]),
            "more empty control entries than new bytes",
        ),
    ];
    for (patch, expected) in cases {
        let error = apply(&patch, 3).unwrap_err();
        assert!(
            error.starts_with(expected),
            "\n   found {error}\nexpected {expected}"
        );
    }
}

/// A few bytes of bzip2 hold millions of empty entries.
#[test]
fn a_patch_of_empty_entries_ends_soon() {
    let patch = patch(1, &vec![(0, 0, 0); 2_000_000], &[], &[]);
    assert!(patch.len() < 10_000);
    let start = Instant::now();
    assert_eq!(
        apply(&patch, 1).unwrap_err(),
        "more empty control entries than new bytes"
    );
    assert!(start.elapsed() < Duration::from_secs(10));
}
