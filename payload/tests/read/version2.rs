//! Version 2: its own signature comes first, its operations read one image and
//! write another, and nothing changed is accepted.

use std::panic::AssertUnwindSafe;

use proptest::prelude::*;

use payload::{Event, Format, Limits, PayloadError, PayloadStream, Release, Target, Trust};

use crate::craft::{ED25519, Message, OTHER_ED25519, RSA_2048, extent, info, noise};
use crate::craft_v2::{
    BLOCK, Partition, PayloadV2, StepV2, bsdiff, file, header, small, xz, zstandard,
};
use crate::drive::{Machine, check, install};
use crate::image::MemoryImage;

fn unsigned() -> Trust {
    Trust::allow_unsigned(vec![])
}

fn trust() -> Trust {
    Trust::new(vec![RSA_2048.public()], 1).unwrap()
}

fn machine(old: Option<&[u8]>) -> Machine {
    Machine {
        old: old.map(|old| MemoryImage::new(old.to_vec())),
        ..Machine::new(&noise(9, 12 * BLOCK), &[], 1024)
    }
}

/// A payload of one partition.
fn usr(old: &[u8], new: &[u8], steps: Vec<StepV2>) -> PayloadV2 {
    PayloadV2 {
        partitions: vec![Partition {
            name: "usr",
            steps,
            old: Some(old.to_vec()),
            new: new.to_vec(),
        }],
        more: Message::new(),
    }
}

#[test]
fn operations_of_every_kind_give_the_new_images_and_leave_the_old_one_alone() {
    let (payload, old) = small();
    for (bytes, trust) in [
        (payload.unsigned(), unsigned()),
        (payload.signed(&[RSA_2048, ED25519]), trust()),
    ] {
        let machine = machine(Some(&old));
        let verified = install(&bytes, 100, &trust, &machine).unwrap();
        let manifest = verified.manifest();
        assert_eq!(
            machine.partition.bytes()[..10 * BLOCK],
            payload.partitions[1].new
        );
        assert_eq!(machine.kernel.bytes()[..700], payload.partitions[0].new);
        assert!(!machine.old.as_ref().unwrap().was_written());

        assert_eq!((manifest.format, manifest.minor_version), (Format::V2, 6));
        assert!(manifest.is_delta() && !manifest.is_in_place());
        let release = Release {
            board: Some("amd64-usr".to_owned()),
            security_epoch: Some(7),
            ..Release::default()
        };
        assert_eq!(manifest.release, Some(release));
        let targets: Vec<_> = manifest.operations().map(|(target, _)| target).collect();
        assert_eq!(targets[0], Target::Kernel);
        assert_eq!(targets[1], Target::Partition);
        assert_eq!(targets[9], Target::Named("vendor".into()));
        assert!(manifest.part(&targets[9]).is_some());
        assert_eq!(verified.size(), u64::try_from(bytes.len()).unwrap());
    }
}

#[test]
fn large_sources_are_read_piece_by_piece() {
    const BLOCKS: u64 = 12 << 11;
    let old = noise(4, 12 << 20);
    let half = old.len() / 2;
    let mut new = [&old[half..], &old[..half]].concat();
    let swapped = [(BLOCKS / 2, BLOCKS / 2), (0, BLOCKS / 2)];
    let copied = usr(
        &old,
        &new,
        vec![StepV2::patch(4, &swapped, &[(0, BLOCKS)], &[], &old)],
    );
    new[5] ^= 1;
    new[9 << 20] ^= 1;
    let joined = [&old[half..], &old[..half]].concat();
    let patched = usr(
        &old,
        &new,
        vec![StepV2::patch(
            5,
            &swapped,
            &[(0, BLOCKS)],
            &bsdiff(&joined, &new),
            &old,
        )],
    );
    for payload in [copied, patched] {
        let machine = Machine {
            old: Some(MemoryImage::new(old.clone())),
            ..Machine::new(&vec![0; old.len()], &[], 0)
        };
        install(&payload.unsigned(), 1 << 20, &unsigned(), &machine).unwrap();
        assert!(machine.partition.bytes() == payload.partitions[0].new);

        let mut other = old.clone();
        *other.last_mut().unwrap() ^= 1;
        let machine = Machine {
            old: Some(MemoryImage::new(other)),
            ..Machine::new(&vec![0; old.len()], &[], 0)
        };
        let error = install(&payload.unsigned(), 1 << 20, &unsigned(), &machine).unwrap_err();
        assert!(
            matches!(
                error,
                PayloadError::OperationSourceMismatch { index: 0, .. }
            ),
            "{error}"
        );
        assert!(!machine.partition.was_written());
    }
}

#[test]
fn another_old_image_is_noticed_before_its_operation_writes() {
    let (small, old) = small();
    for kind in [4, 5] {
        let patch = bsdiff(&old[..BLOCK], &old[..BLOCK]);
        let data: &[u8] = if kind == 5 { &patch } else { &[] };
        let step = StepV2::patch(kind, &[(0, 1)], &[(1, 1)], data, &old);
        let payload = usr(&old, &vec![0; 2 * BLOCK], vec![step]).unsigned();
        let mut other = old.clone();
        other[BLOCK - 1] ^= 0x80;
        for (old, expected) in [
            (
                Some(&other[..]),
                "operation 0: the 512 bytes that it reads of the old image, the first at offset \
                 0, are not those that this payload was made from",
            ),
            (
                Some(&old[..BLOCK - 1]),
                "operation 0: the 512 bytes that it reads of the old image",
            ),
            (
                None,
                "operation 0: it reads the old image, and none was given",
            ),
        ] {
            let machine = machine(old);
            let error = install(&payload, 4096, &unsigned(), &machine).unwrap_err();
            assert!(error.to_string().starts_with(expected), "{error}");
            assert!(!machine.partition.was_written());
        }
    }
    let without = machine(None);
    let error = install(&small.unsigned(), 4096, &unsigned(), &without).unwrap_err();
    assert!(matches!(
        error,
        PayloadError::OperationSourceMissing { index: 5 }
    ));
}

#[test]
fn the_last_block_of_an_old_file_counts_as_far_as_the_file_goes() {
    let old = noise(5, 3 * BLOCK + 100);
    let new = old[2 * BLOCK..].to_vec();
    let step = StepV2::patch(4, &[(2, 2)], &[(0, 2)], &[], &old);
    let payload = usr(&old, &new, vec![step]).unsigned();
    let machine = machine(Some(&old));
    let verified = install(&payload, 4096, &unsigned(), &machine).unwrap();
    assert!(machine.holds(verified.manifest()));
    let padding = &machine.partition.bytes()[BLOCK + 100..2 * BLOCK];
    assert!(padding.iter().all(|byte| *byte == 0));
}

#[test]
fn no_event_comes_before_the_manifest_is_known_to_be_signed() {
    let (small, _) = small();
    let first_event = |payload: &[u8], trust: &Trust| {
        let mut stream = PayloadStream::new(Limits::default(), trust);
        stream.push(payload);
        stream.next_event()
    };
    for (payload, expected) in [
        (small.unsigned(), "the manifest is not signed"),
        (
            small.signed_differently(&[], &[RSA_2048]),
            "the manifest is not signed",
        ),
        (
            small.signed_differently(&[ED25519], &[RSA_2048]),
            "the signature is refused: 0 of 1 needed trusted keys signed this payload",
        ),
        // What no parser would take: refused for its signature, so it was not parsed.
        (
            file(&Message(vec![0xff; 50]), &[], &[], &[]),
            "the manifest is not signed",
        ),
    ] {
        let error = first_event(&payload, &trust()).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
    assert!(matches!(
        first_event(&small.signed(&[RSA_2048]), &trust()),
        Ok(Some(Event::Metadata { .. }))
    ));
    // To allow unsigned payloads is not to allow wrong signatures.
    let lenient = Trust::allow_unsigned(vec![RSA_2048.public()]);
    assert!(first_event(&small.unsigned(), &lenient).is_ok());
    let foreign = small.signed_differently(&[OTHER_ED25519], &[RSA_2048]);
    assert!(first_event(&foreign, &lenient).is_err());
}

#[test]
fn both_signatures_must_be_good_and_the_smaller_number_counts() {
    let (small, _) = small();
    let keys = || vec![RSA_2048.public(), ED25519.public()];
    let two = Trust::new(keys(), 2).unwrap();
    let one = Trust::new(keys(), 1).unwrap();
    let both = &[RSA_2048, ED25519][..];
    for (of_metadata, of_payload, signers) in [
        (both, both, Some(2)),
        (both, &[RSA_2048][..], Some(1)),
        (&[ED25519], both, Some(1)),
        (both, &[], None),
        (both, &[OTHER_ED25519], None),
    ] {
        let payload = small.signed_differently(of_metadata, of_payload);
        let found = check(&payload, &one)
            .ok()
            .map(|verified| verified.signers());
        assert_eq!(found, signers);
        assert_eq!(check(&payload, &two).is_ok(), signers == Some(2));
    }
}

#[test]
fn signature_entries_as_android_writes_them_are_read() {
    let (small, _) = small();
    let payload = small.signed(&[RSA_2048]);
    // Without a version, and padded behind the length that is told.
    let entry = |padding: usize| {
        let rewrite = |signature: &[u8]| {
            let mut data = signature.to_vec();
            data.resize(256 + padding, 0);
            let mut entry = Message::new().bytes(2, &data);
            entry.0.extend_from_slice(&[3 << 3 | 5, 0, 1, 0, 0]);
            Message::new().message(1, entry).0
        };
        rewrite(&payload[payload.len() - 256..])
    };
    for (padding, size) in [(0, 256), (3, 256)] {
        let entries = payload::signature_entries(Format::V2, 0, &entry(padding)).unwrap();
        assert_eq!(entries, [(2, size)]);
        assert!(payload::signature_entries(Format::V1, 0, &entry(padding)).is_err());
    }
}

fn refused(payload: &[u8], trust: &Trust) -> bool {
    let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| check(payload, trust)));
    outcome
        .expect("a changed payload must be refused, not panic")
        .is_err()
}

#[test]
fn no_flipped_bit_anywhere_is_accepted() {
    let (small, _) = small();
    let mut flips = 0;
    for signer in [RSA_2048, ED25519] {
        let trust = Trust::new(vec![signer.public()], 1).unwrap();
        let mut payload = small.signed(&[signer]);
        for position in 0..payload.len() {
            for bit in 0..8 {
                payload[position] ^= 1 << bit;
                assert!(refused(&payload, &trust), "bit {bit} of byte {position}");
                payload[position] ^= 1 << bit;
                flips += 1;
            }
        }
        assert!(!refused(&payload, &trust), "control: it is good");
    }
    println!("{flips} flips in all of a small version 2 payload: none accepted");
}

#[test]
fn no_other_length_and_no_section_of_another_payload_is_accepted() {
    let make = |seed| {
        let new = noise(seed, BLOCK);
        usr(&[], &new, vec![StepV2::full(0, &[(0, 1)], &new)]).signed(&[RSA_2048])
    };
    let (a, b) = (make(6), make(7));
    for length in 0..a.len() {
        assert!(refused(&a[..length], &trust()), "cut to {length} bytes");
    }
    assert!(refused(&[&a[..], &[0]].concat(), &trust()));
    assert_eq!(a.len(), b.len());
    let verified = check(&a, &trust()).unwrap();
    let manifest = verified.manifest();
    let at = |offset: u64| usize::try_from(offset).unwrap();
    let ends = [
        at(manifest.metadata_signature.clone().unwrap().start),
        at(manifest.metadata_size),
        at(manifest.signatures.clone().unwrap().start),
        a.len(),
    ];
    let mut start = 0;
    for end in ends {
        let mixed = [&a[..start], &b[start..end], &a[end..]].concat();
        assert!(
            refused(&mixed, &trust()),
            "{start} to {end} of another payload"
        );
        start = end;
    }
}

fn refusal(payload: &PayloadV2) -> String {
    match check(&payload.unsigned(), &unsigned()) {
        Ok(_) => "accepted".to_owned(),
        Err(error) => error.to_string(),
    }
}

/// A payload of one partition of four blocks and one operation.
fn one(step: StepV2) -> PayloadV2 {
    let old = noise(8, 4 * BLOCK);
    usr(&old, &old.clone(), vec![step])
}

/// DELTA with this window over so many blocks.
fn window(blocks: u64, skip: u64, length: u64) -> PayloadV2 {
    let mut step = StepV2::full(201, &[(0, blocks)], b"patch");
    step.skip = Some(skip);
    step.step.target_length = Some(length);
    one(step)
}

#[test]
fn hostile_manifests_are_refused_with_the_place() {
    let old = noise(8, 4 * BLOCK);
    let more = |more: Message| PayloadV2 {
        more,
        ..usr(&old, &old, vec![])
    };
    let named = |names: &[&'static str]| PayloadV2 {
        partitions: names
            .iter()
            .map(|name| Partition {
                name,
                steps: vec![],
                old: None,
                new: vec![],
            })
            .collect(),
        more: Message::new(),
    };
    let copy = |source: &[(u64, u64)], destination: &[(u64, u64)]| StepV2 {
        source_hash: Some(vec![0; 32]),
        step: crate::craft::Step {
            source: source.to_vec(),
            ..crate::craft::Step::full(4, destination, &[])
        },
        skip: None,
    };
    let op = "manifest: partitions[0].operations[0]";
    let cases = [
        (
            named(&[]),
            "manifest: partitions: none is named usr".to_owned(),
        ),
        (
            named(&["usr", "usr"]),
            "manifest: partitions[1].partition_name: a second update of the partition".to_owned(),
        ),
        (
            named(&["usr", "x", "x"]),
            "manifest: partitions[2].partition_name: a second update of the x".to_owned(),
        ),
        (
            named(&["usr", "../etc"]),
            "manifest: partitions[1].partition_name: \"../etc\" is no name of a partition"
                .to_owned(),
        ),
        (
            more(Message::new().varint(12, 10)),
            "manifest: minor_version: 10 is not supported".to_owned(),
        ),
        (
            more(Message::new().message(9, info(1, &[0; 32]))),
            "manifest: new_partition_info: belongs to version 1 of the format".to_owned(),
        ),
        (
            more(Message::new().bytes(201, b"")),
            "manifest: encoders[0]: a name has 1 to 128 printing ASCII characters".to_owned(),
        ),
        (
            more(Message::new().message(200, Message::new().bytes(3, &[b'1'; 257]))),
            "manifest: release.version: 257 bytes, the limit is 256".to_owned(),
        ),
        (
            more(Message::new().message(200, Message::new().bytes(8, &[0; 20]))),
            "manifest: release.verity_root_hash: a SHA-256 has 32 bytes, not 20".to_owned(),
        ),
        (
            more(Message::new().message(200, Message::new().varint(5, 1).varint(5, 2))),
            "manifest: release.security_epoch: given twice".to_owned(),
        ),
        (
            more(Message(
                (0..65)
                    .flat_map(|_| Message::new().bytes(201, b"z").0)
                    .collect(),
            )),
            "manifest: encoders[64]: too many encoders".to_owned(),
        ),
        (
            more(
                Message::new().message(
                    13,
                    Message::new()
                        .bytes(1, b"b")
                        .message(11, extent(0, 1))
                        .message(7, info(1, &[0; 32])),
                ),
            ),
            "manifest: partitions[1].hash_tree_extent: hash trees have blocks of 4096 bytes, this \
             payload has blocks of 512"
                .to_owned(),
        ),
        (
            one(StepV2::full(2, &[], &[])),
            format!("{op}: MOVE belongs to version 1"),
        ),
        (
            one(StepV2::full(3, &[], &[])),
            format!("{op}: BSDIFF belongs to version 1"),
        ),
        (
            one(StepV2::full(9, &[], &[])),
            format!("{op}: operation type 9 (PUFFDIFF) is not supported"),
        ),
        (
            one(StepV2::full(11, &[], &[])),
            format!("{op}: operation type 11 (ZUCCHINI) is not supported"),
        ),
        (
            one(StepV2::full(203, &[], &[])),
            format!("{op}: unknown operation type 203"),
        ),
        (
            one(StepV2::full(6, &[(0, 1)], b"x")),
            format!("{op}: a ZERO carries data"),
        ),
        (
            one(StepV2::full(7, &[(0, 1)], b"x")),
            format!("{op}: a DISCARD carries data"),
        ),
        (
            one(StepV2::full(0, &[(2, 3)], b"x")),
            format!("{op}.dst_extents[0]: 1536 bytes at 1024 reach behind the image of 2048 bytes"),
        ),
        (
            one(StepV2::full(0, &[(0, 2), (1, 1)], b"x")),
            format!("{op}.dst_extents: a block is written twice"),
        ),
        (
            one(copy(&[(4, 1)], &[(0, 1)])),
            format!("{op}.src_extents[0]: 512 bytes at 2048 reach behind the image of 2048 bytes"),
        ),
        (
            one(copy(&[(0, 2)], &[(0, 1)])),
            format!("{op}: a SOURCE_COPY reads 1024 bytes but writes 512"),
        ),
        (
            one(StepV2 {
                source_hash: None,
                ..copy(&[(0, 1)], &[(0, 1)])
            }),
            format!("{op}.src_sha256_hash: missing"),
        ),
        (
            one(StepV2 {
                source_hash: Some(vec![0; 31]),
                ..copy(&[(0, 1)], &[(0, 1)])
            }),
            format!("{op}.src_sha256_hash: a SHA-256 has 32 bytes, not 31"),
        ),
        (
            PayloadV2 {
                partitions: vec![Partition {
                    name: "usr",
                    steps: vec![copy(&[(0, 1)], &[(0, 1)])],
                    old: None,
                    new: old.clone(),
                }],
                more: Message::new(),
            },
            format!("{op}.src_extents: there is no old image in old_partition_info"),
        ),
        (
            window(1, 512, 1),
            format!("{op}.dst_skip: 512 is not less than the block size 512"),
        ),
        (window(1, 0, 0), format!("{op}.dst_length: missing or 0")),
        (
            window(1, 12, 501),
            format!("{op}.dst_length: 501 bytes after 12 do not fill the 512 bytes of dst_extents"),
        ),
        (
            window(2, 12, 500),
            format!(
                "{op}.dst_length: 500 bytes after 12 do not fill the 1024 bytes of dst_extents"
            ),
        ),
        (
            window(1, 12, u64::MAX),
            format!(
                "{op}.dst_length: {} bytes after 12 do not fill the 512 bytes of dst_extents",
                u64::MAX
            ),
        ),
        (window(1, 12, 500), "accepted".to_owned()),
    ];
    for (payload, expected) in cases {
        let found = refusal(&payload);
        assert!(
            found.starts_with(&expected),
            "\n   found {found}\nexpected {expected}"
        );
    }
}

#[test]
fn ceilings_hold_before_anything_is_allocated() {
    for (manifest, signature, expected) in [
        (
            17 << 20,
            0,
            "the header announces a manifest of 17825792 bytes, the limit is 16777216",
        ),
        (
            10,
            65 << 10,
            "the header announces a metadata signature of 66560 bytes, the limit is 65536",
        ),
    ] {
        let mut stream = PayloadStream::new(Limits::default(), &unsigned());
        stream.push(&header(manifest, signature));
        assert_eq!(stream.next_event().unwrap_err().to_string(), expected);
    }
    let limits = Limits {
        window: 1024,
        sources: 4096,
        source: 1024,
        ..Limits::default()
    };
    let old = noise(8, 16 * BLOCK);
    let with = |steps: Vec<StepV2>| usr(&old, &old, steps).unsigned();
    let mut delta = StepV2::full(201, &[(0, 3)], b"patch");
    delta.step.target_length = Some(3 * 512);
    let mut large_source = StepV2::patch(202, &[(0, 3)], &[(0, 1)], b"x", &old);
    large_source.step.target_length = Some(512);
    let copy = StepV2::patch(4, &[(0, 5)], &[(0, 5)], &[], &old);
    for (steps, expected) in [
        (
            vec![delta],
            "operation 0: it needs 1536 bytes of memory for its result",
        ),
        (
            vec![large_source],
            "operation 0: it needs 1536 bytes of memory for its source",
        ),
        (
            vec![StepV2::patch(5, &[(0, 3)], &[(0, 1)], b"x", &old)],
            "operation 0: it needs 1536 bytes of memory for its source",
        ),
        (
            vec![copy.clone(), copy],
            "manifest: partitions[0].operations[1].src_extents: sources add up to more than 4096 \
             bytes",
        ),
    ] {
        let mut stream = PayloadStream::new(limits, &unsigned());
        stream.push(&with(steps));
        let error = stream.next_event().unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn compressed_data_is_held_to_its_destination_and_to_one_stream() {
    let plain = vec![b'p'; 2 * BLOCK];
    type Compress = fn(&[u8]) -> Vec<u8>;
    for (kind, name, compress) in [
        (8, "REPLACE_XZ", xz as Compress),
        (200, "REPLACE_ZSTD", zstandard as Compress),
    ] {
        let good = compress(&plain);
        let run = |destination: u64, data: &[u8]| {
            let payload = one(StepV2::full(kind, &[(0, destination)], data)).unsigned();
            let machine = machine(None);
            let result = install(&payload, 4096, &unsigned(), &machine);
            let bytes = machine.partition.bytes();
            assert!(bytes[4 * BLOCK..] == noise(9, 12 * BLOCK)[4 * BLOCK..]);
            result.map(|_| bytes)
        };
        assert_eq!(run(2, &good).unwrap()[..2 * BLOCK], plain);
        let trailing = [&good[..], b"x"].concat();
        let twice = good.repeat(2);
        for (destination, data) in [
            (1, &good[..]),
            (2, &good[..good.len() - 1]),
            (2, &good[..good.len() / 2]),
            (2, &trailing),
            (4, &twice),
            (2, b"neither of them"),
        ] {
            let error = run(destination, data).unwrap_err();
            let text = error.to_string();
            assert_eq!(text, format!("operation 0: {name} failed"), "{destination}");
        }
    }
}

#[test]
fn a_frame_with_a_huge_window_is_refused() {
    use std::io::Write;
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
    encoder.window_log(27).unwrap();
    encoder.write_all(&noise(1, BLOCK)).unwrap();
    let data = encoder.finish().unwrap();
    let payload = one(StepV2::full(200, &[(0, 1)], &data)).unsigned();
    let error = install(&payload, 4096, &unsigned(), &machine(None)).unwrap_err();
    assert!(
        matches!(error, PayloadError::OperationFailed { .. }),
        "{error}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Without a key everything is looked at, whatever it says.
    #[test]
    fn random_changes_never_panic_nor_leave_the_targets(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        chunk in 1_usize..600,
    ) {
        let (small, old) = small();
        let mut payload = small.unsigned();
        for (position, byte) in changes {
            let position = position.index(payload.len());
            payload[position] = byte;
        }
        let machine = machine(Some(&old));
        // An image in memory panics when it is written outside.
        if let Ok(verified) = install(&payload, chunk, &unsigned(), &machine) {
            prop_assert!(verified.size() == u64::try_from(payload.len()).unwrap());
        }
        prop_assert!(!machine.old.as_ref().unwrap().was_written());
    }
}
