//! Prepared operations become a payload that applies to what they were made for.

// Helpers of tests may give up as tests do.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::{Cursor, Write};

use payload::make::{
    Blocks, MakeError, Parts, PreparedKind, PreparedOperation, PreparedPart, PreparedSource,
    Profile, Scratch,
};
use payload::{ImageInfo, Release, Sources, Targets, Trust, Window};
use payload::{apply_payload, verify_payload};
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

const BLOCK: usize = 4096;

fn info(bytes: &[u8]) -> ImageInfo {
    ImageInfo {
        size: bytes.len().try_into().unwrap(),
        sha256: Sha256::digest(bytes).into(),
    }
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(len).collect()
}

fn blocks(start: u64, count: u64) -> Vec<Blocks> {
    vec![Blocks { start, count }]
}

fn source(old: &[u8], start: usize, count: usize) -> PreparedSource {
    let end = old.len().min((start + count) * BLOCK);
    PreparedSource {
        blocks: blocks(start.try_into().unwrap(), count.try_into().unwrap()),
        sha256: Sha256::digest(&old[start * BLOCK..end]).into(),
    }
}

fn file(bytes: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// A delta of the partition and of a kernel of an odd size, with standard operations,
/// whose data lies in the scratch file in another order.
#[test]
fn a_delta_of_prepared_operations_applies() {
    let old = noise(1, 6 * BLOCK);
    let fresh = noise(2, BLOCK);
    let mut patched = old[BLOCK..3 * BLOCK].to_vec();
    patched[77] ^= 1;
    let new = [&old[4 * BLOCK..], &patched, &vec![0; BLOCK], &fresh].concat();
    let old_kernel = noise(3, BLOCK + 10);
    let new_kernel = [&old_kernel[BLOCK..], b"!"].concat();
    let bsdiff = |old: &[u8], new: &[u8]| {
        let mut patch = Vec::new();
        qbsdiff::Bsdiff::new(old, new).compare(&mut patch).unwrap();
        patch
    };

    let mut scratch = Scratch::new(Cursor::new(Vec::new()));
    let kernel_patch = scratch
        .append(&bsdiff(&old_kernel[BLOCK..], &new_kernel))
        .unwrap();
    let fresh = scratch.append(&fresh).unwrap();
    let patch = scratch
        .append(&bsdiff(&old[BLOCK..3 * BLOCK], &patched))
        .unwrap();
    let operation = |kind, start, count, blob| PreparedOperation {
        kind,
        destination: blocks(start, count),
        blob,
    };
    let parts = Parts {
        partition: Some(PreparedPart {
            old: Some(info(&old)),
            new: info(&new),
            operations: vec![
                operation(PreparedKind::SourceCopy(source(&old, 4, 2)), 0, 2, None),
                operation(
                    PreparedKind::SourceBsdiff {
                        source: source(&old, 1, 2),
                        length: (2 * BLOCK).try_into().unwrap(),
                    },
                    2,
                    2,
                    Some(patch),
                ),
                operation(PreparedKind::Zero, 4, 1, None),
                operation(PreparedKind::Replace, 5, 1, Some(fresh)),
            ],
        }),
        kernel: Some(PreparedPart {
            old: Some(info(&old_kernel)),
            new: info(&new_kernel),
            operations: vec![operation(
                PreparedKind::SourceBsdiff {
                    source: source(&old_kernel, 1, 1),
                    length: new_kernel.len().try_into().unwrap(),
                },
                0,
                1,
                Some(kernel_patch),
            )],
        }),
        release: Some(Release {
            version: Some("2".to_owned()),
            ..Release::default()
        }),
        ..Parts::default()
    };
    let mut made = Cursor::new(Vec::new());
    let mut draft = parts.draft(Profile::V2Aosp, scratch).unwrap();
    draft.sign(&[], &mut made).unwrap();

    made.set_position(0);
    let anyone = Trust::allow_unsigned(vec![]);
    let verified = verify_payload(&mut made, &anyone, &mut |_| ()).unwrap();
    assert_eq!(verified.manifest().minor_version, 6);
    let (old_file, old_kernel_file) = (file(&old), file(&old_kernel));
    let (partition, kernel) = (file(&vec![0xee; new.len()]), file(b""));
    let targets = Targets {
        partition: partition.as_file(),
        kernel: Some(kernel.as_file()),
        pcr_policy: None,
        named: &[],
    };
    let sources = Sources {
        encoders: None,
        partition: Some(old_file.as_file()),
        kernel: Some(old_kernel_file.as_file()),
        named: &[],
    };
    apply_payload(&mut made, &verified, &targets, &sources, &mut |_| ()).unwrap();
    assert!(fs::read(partition.path()).unwrap() == new);
    assert!(fs::read(kernel.path()).unwrap() == new_kernel);
    assert!(fs::read(old_file.path()).unwrap() == old);

    // Without the old content, or with another, nothing is written.
    let (untouched, other) = (file(&vec![0xee; new.len()]), file(&new));
    let targets = Targets {
        partition: untouched.as_file(),
        kernel: None,
        pcr_policy: None,
        named: &[],
    };
    let of = |partition: &File| partition.try_clone().unwrap();
    let other = of(other.as_file());
    for (sources, expected) in [
        (
            Sources::default(),
            "partition: this is a delta payload, and no old content was given",
        ),
        (
            Sources {
                encoders: None,
                partition: Some(&other),
                named: &[],
                kernel: None,
            },
            "partition: the old content is not what this delta payload was made from",
        ),
    ] {
        let error = apply_payload(&mut made, &verified, &targets, &sources, &mut |_| ());
        assert_eq!(error.unwrap_err().to_string(), expected);
    }
    assert!(fs::read(untouched.path()).unwrap() == vec![0xee; new.len()]);
}

#[test]
fn what_no_reader_would_take_is_refused_when_it_is_made() {
    let old = noise(1, 2 * BLOCK);
    let make = |profile, kind, destination| {
        let mut scratch = Scratch::new(Cursor::new(Vec::new()));
        let blob = Some(scratch.append(b"data").unwrap());
        let parts = Parts {
            partition: Some(PreparedPart {
                old: Some(info(&old)),
                new: info(&old),
                operations: vec![PreparedOperation {
                    kind,
                    destination,
                    blob,
                }],
            }),
            ..Parts::default()
        };
        parts.draft(profile, scratch).map(|mut draft| {
            let mut made = Vec::new();
            draft.sign(&[], &mut made).unwrap();
            made
        })
    };
    let delta = || PreparedKind::Delta {
        source: Some(source(&old, 0, 1)),
        window: Window {
            skip: 10,
            length: 20,
        },
    };
    let made = make(Profile::V2, delta(), blocks(1, 1)).unwrap();
    let anyone = Trust::allow_unsigned(vec![]);
    let verified = verify_payload(&mut &made[..], &anyone, &mut |_| ()).unwrap();
    assert_eq!(verified.manifest().minor_version, 200);
    let operation = &verified.manifest().partition.operations[0];
    assert_eq!((operation.name(), operation.bytes_written()), ("DELTA", 20));

    assert!(matches!(
        make(Profile::V2Aosp, delta(), blocks(1, 1)),
        Err(MakeError::NotStandard {
            index: 0,
            number: 201
        })
    ));
    assert!(matches!(
        make(Profile::V1, PreparedKind::Replace, blocks(0, 1)),
        Err(MakeError::NeedsVersion2 { .. })
    ));
    for (kind, destination, expected) in [
        (
            PreparedKind::Replace,
            blocks(1, 2),
            "manifest: partitions[0].operations[0].dst_extents[0]: 8192 bytes at 4096 reach \
             behind the image of 8192 bytes",
        ),
        (
            PreparedKind::Zero,
            blocks(0, 1),
            "manifest: partitions[0].operations[0]: a ZERO carries data",
        ),
        (
            delta(),
            blocks(0, 2),
            "manifest: partitions[0].operations[0].dst_length: 20 bytes after 10 do not fill the \
             8192 bytes of dst_extents",
        ),
    ] {
        let error = make(Profile::V2, kind, destination).unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
}
