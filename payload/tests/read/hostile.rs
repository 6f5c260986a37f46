//! Whatever the bytes are: a clear error, or a result inside the targets.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use payload::{Event, Limits, PayloadError, PayloadStream, Trust};
use proptest::prelude::*;

use crate::craft::{
    HOLE, Message, Payload, RSA_2048, Step, bzip2, extent, file, header, info, small,
};
use crate::drive::{Machine, check, install};

fn unsigned() -> Trust {
    Trust::allow_unsigned(vec![])
}

/// The error text for a manifest, which is followed by no data.
fn refusal(manifest: &Message) -> String {
    match check(&file(manifest, &[]), &unsigned()) {
        Ok(_) => "accepted".to_owned(),
        Err(error) => error.to_string(),
    }
}

fn new_info() -> Message {
    info(4096, &[7; 32])
}

/// A manifest with one operation, otherwise good.
fn with_operation(operation: Message) -> Message {
    Message::new().message(1, operation).message(9, new_info())
}

fn with_procedure(procedure: Message) -> Message {
    Message::new().message(9, new_info()).message(10, procedure)
}

fn operation(kind: u64) -> Message {
    Message::new().varint(1, kind)
}

#[test]
fn hostile_manifests_are_refused_with_the_place() {
    let moving = |source, destination| operation(2).message(4, source).message(6, destination);
    let patching = |source_length, target_length| {
        operation(3)
            .message(4, extent(0, 1))
            .varint(5, source_length)
            .message(6, extent(0, 1))
            .varint(7, target_length)
    };
    let data = |offset, length: u64, hash: &[u8]| {
        operation(0)
            .varint(2, offset)
            .varint(3, length)
            .message(6, extent(0, 1))
            .bytes(8, hash)
    };
    let plain = || Message::new().message(9, new_info());
    let kernel = || Message::new().varint(1, 0).message(4, new_info());
    let cases: Vec<(Message, &str)> = vec![
        // Nothing, garbage, broken framing.
        (Message::new(), "manifest: new_partition_info is missing"),
        (Message(vec![0xff]), "manifest: protobuf: "),
        (
            Message(b"\x0a\x7f".to_vec()),
            "manifest: partition_operations[0]: longer than what holds it",
        ),
        (
            Message(b"\x08\x01".to_vec()),
            "manifest: partition_operations[0]: not a message",
        ),
        (Message(b"\x1a\x01\x00".to_vec()), "manifest: protobuf: "),
        (Message(b"\x63".repeat(5000)), "manifest: protobuf: "),
        // Fields given twice.
        (
            plain().varint(3, 4096).varint(3, 512),
            "manifest: block_size: given twice",
        ),
        (
            plain().message(9, new_info()),
            "manifest: new_partition_info: given twice",
        ),
        (
            with_operation(operation(0).varint(1, 1)),
            "manifest: partition_operations[0].type: given twice",
        ),
        (
            with_operation(operation(0).message(6, extent(0, 1).varint(1, 5))),
            "manifest: partition_operations[0].dst_extents[0].start_block: given twice",
        ),
        (
            with_procedure(kernel().message(4, new_info())),
            "manifest: procedures[0].new_info: given twice",
        ),
        // Block sizes.
        (
            plain().varint(3, 0),
            "manifest: block_size: 0 is not a power of two from 512 to 1048576",
        ),
        (plain().varint(3, 1), "manifest: block_size: 1 is not"),
        (plain().varint(3, 4095), "manifest: block_size: 4095 is not"),
        (
            plain().varint(3, 1 << 31),
            "manifest: block_size: 2147483648 is not",
        ),
        (plain().varint(3, 512), "accepted"),
        // Image descriptions.
        (
            Message::new().message(9, info(1, b"short")),
            "manifest: new_partition_info.hash: a SHA-256 has 32 bytes, not 5",
        ),
        (
            Message::new().message(9, Message::new().varint(1, 1)),
            "manifest: new_partition_info: hash is missing",
        ),
        (
            Message::new().message(9, Message::new().bytes(2, &[0; 32])),
            "manifest: new_partition_info: size is missing",
        ),
        (
            Message::new().message(9, info(1 << 63, &[0; 32])),
            "manifest: new_partition_info: size 9223372036854775808 is beyond any image",
        ),
        (
            plain().message(8, info(1, b"")),
            "manifest: old_partition_info.hash: a SHA-256 has 32 bytes, not 0",
        ),
        // Operation types.
        (
            with_operation(Message::new()),
            "manifest: partition_operations[0]: type is missing",
        ),
        (
            with_operation(operation(4)),
            "manifest: partition_operations[0]: SOURCE_COPY belongs to version 2",
        ),
        (
            with_operation(operation(14)),
            "manifest: partition_operations[0]: unknown operation type 14",
        ),
        (
            with_operation(operation(10)),
            "manifest: partition_operations[0]: operation type 10 (BROTLI_BSDIFF) is not supported",
        ),
        (
            with_operation(operation(u64::MAX)),
            "manifest: partition_operations[0]: unknown operation type -1",
        ),
        // Data: only in order, only with a hash, only so much.
        (
            with_operation(data(1, 4, &[0; 32])),
            "operation 0: its data starts at blob offset 1, expected 0",
        ),
        (
            with_operation(data(0, 4, b"")),
            "operation 0: the SHA-256 of its data is missing",
        ),
        (
            with_operation(data(0, 4, b"abc")),
            "manifest: partition_operations[0].data_sha256_hash: a SHA-256 has 32 bytes, not 3",
        ),
        (
            with_operation(data(0, u64::from(u32::MAX), &[0; 32])),
            "operation 0: it needs 4294967295 bytes of memory for its data, the limit is 134217728",
        ),
        (
            with_operation(data(0, 4, &[0; 32])),
            "the payload ends after",
        ),
        (
            with_operation(data(0, 4, &[0; 32])).message(1, data(3, 4, &[0; 32])),
            "operation 1: its data starts at blob offset 3, expected 4",
        ),
        // Extents.
        (
            with_operation(operation(0).message(6, extent(u64::MAX - 1, 2))),
            "manifest: partition_operations[0].dst_extents[0]: 2 blocks at block 18446744073709551614 are beyond any image",
        ),
        (
            with_operation(
                operation(0)
                    .message(6, extent(0, 1))
                    .message(6, extent(1 << 51, 1)),
            ),
            "manifest: partition_operations[0].dst_extents[1]: 1 blocks at block 2251799813685248 are beyond any image",
        ),
        (
            with_operation(operation(0).message(6, extent(HOLE, u64::MAX))),
            "manifest: partition_operations[0].dst_extents[0]: 18446744073709551615 blocks at block",
        ),
        (
            with_operation(
                operation(1)
                    .message(6, extent(HOLE, 1 << 50))
                    .message(6, extent(HOLE, 1 << 50)),
            ),
            "manifest: partition_operations[0].dst_extents: they add up beyond any image",
        ),
        (
            with_operation(operation(1).message(6, extent(HOLE, 1 << 40))),
            "manifest: partition_operations[0].dst_extents: destinations add up to more than 68719476736 bytes",
        ),
        // MOVE and BSDIFF.
        (
            with_operation(moving(extent(0, 2), extent(4, 1))),
            "manifest: partition_operations[0]: a MOVE reads 8192 bytes but writes 4096",
        ),
        (
            with_operation(data(0, 4, &[0; 32]).0.into_iter().skip(2).fold(
                operation(2),
                |mut m, b| {
                    m.0.push(b);
                    m
                },
            )),
            "manifest: partition_operations[0]: a MOVE carries data",
        ),
        (
            with_operation(patching(4097, 1)),
            "manifest: partition_operations[0]: src_length 4097 exceeds the 4096 bytes of src_extents",
        ),
        (
            with_operation(patching(1, 4097)),
            "manifest: partition_operations[0]: dst_length 4097 exceeds the 4096 bytes of dst_extents",
        ),
        (
            with_operation(moving(extent(0, 1 << 18), extent(1, 1 << 18))),
            "operation 0: it needs 1073741824 bytes of memory for its source, the limit is 536870912",
        ),
        (
            with_operation(moving(extent(0, 1 << 18), extent(1 << 18, 1 << 18))),
            "accepted",
        ),
        // Procedures.
        (
            with_procedure(Message::new().message(4, new_info())),
            "manifest: procedures[0]: type is missing",
        ),
        (
            with_procedure(Message::new().varint(1, 0)),
            "manifest: procedures[0].new_info: missing",
        ),
        (with_procedure(Message::new().varint(1, 9)), "accepted"),
        (
            with_procedure(kernel()).message(10, kernel()),
            "manifest: procedures[1]: a second procedure for the kernel",
        ),
        (
            with_procedure(Message::new().varint(1, 9).message(2, Message::new())),
            "accepted",
        ),
        // Signatures.
        (
            plain().varint(4, 0),
            "manifest: signatures_size: signatures without a size or an offset",
        ),
        (
            plain().varint(5, 264),
            "manifest: signatures_size: signatures without",
        ),
        (
            plain().varint(4, 0).varint(5, 0),
            "manifest: signatures_size: signatures without",
        ),
        (
            plain().varint(4, 1).varint(5, 264),
            "operation 0: its data starts at blob offset 1, expected 0",
        ),
        (
            plain().varint(4, 0).varint(5, u64::MAX),
            "manifest: signatures_size: 18446744073709551615 bytes, the limit is 65536",
        ),
        // What a later version may add is skipped.
        (plain().varint(99, 1).bytes(100, b"new"), "accepted"),
    ];
    for (manifest, expected) in &cases {
        let found = refusal(manifest);
        assert!(
            found.starts_with(expected),
            "\n   found {found}\nexpected {expected}"
        );
    }
    println!("{} manifests", cases.len());
}

#[test]
fn ceilings_hold_before_anything_is_allocated() {
    let limits = Limits {
        manifest: 1000,
        operations: 3,
        extents: 4,
        ..Limits::default()
    };
    let error = |manifest: Message| {
        let mut stream = PayloadStream::new(limits, &unsigned());
        stream.push(&file(&manifest, &[]));
        stream.next_event().unwrap_err().to_string()
    };
    let many = |count, tag, message: Message| {
        (0..count).fold(Message::new(), |all, _| all.message(tag, message.clone()))
    };
    for (manifest, expected) in [
        (
            many(4, 1, operation(0)),
            "manifest: partition_operations[3]: too many operations",
        ),
        (
            many(4, 2, operation(0)),
            "manifest: noop_operations[3]: too many operations",
        ),
        (
            many(
                2,
                1,
                operation(0)
                    .message(4, extent(0, 1))
                    .message(4, extent(0, 1))
                    .message(6, extent(0, 1)),
            ),
            "manifest: partition_operations[1].src_extents[1]: too many extents",
        ),
        (
            many(65, 10, Message::new()),
            "manifest: procedures[64]: too many procedures",
        ),
        (
            Message(vec![0; 1001]),
            "the header announces a manifest of 1001 bytes, the limit is 1000",
        ),
    ] {
        assert_eq!(error(manifest), expected);
    }
    let mut stream = PayloadStream::new(Limits::default(), &unsigned());
    stream.push(&header(1, u64::MAX));
    assert!(matches!(
        stream.next_event(),
        Err(PayloadError::MetadataTooLarge { .. })
    ));
}

#[test]
fn malformed_signature_messages_are_refused() {
    let trust = Trust::new(vec![RSA_2048.public()], 1).unwrap();
    let entry = |version: u64, data: &[u8]| Message::new().varint(1, version).bytes(2, data);
    let many = (0..65).fold(Message::new(), |all, _| all.message(1, entry(2, b"x")));
    for (message, expected) in [
        (
            Message(b"\x0a\x7f".to_vec()),
            "signatures[0]: longer than what holds it",
        ),
        (Message(b"\xff\xff".to_vec()), "invalid"),
        (
            Message::new().message(1, Message::new().varint(1, 2)),
            "signatures[0]: version or data is missing",
        ),
        (
            Message::new().message(1, entry(2, b"a").bytes(2, b"b")),
            "signatures[0].data: given twice",
        ),
        (many, "signatures[64]: too many signatures"),
    ] {
        let size = message.0.len().try_into().unwrap();
        let manifest = Message::new()
            .varint(4, 0)
            .varint(5, size)
            .message(9, new_info());
        let error = check(&file(&manifest, &message.0), &trust).unwrap_err();
        let PayloadError::SignatureMalformed { reason, .. } = &error else {
            panic!("{error:?}")
        };
        assert!(reason.contains(expected), "{reason}");
    }
}

#[test]
fn another_file_behind_the_address_is_told_by_its_first_bytes() {
    for start in ["<", "<html>", "CrAX", "\u{1f}\u{8b}"] {
        let mut stream = PayloadStream::new(Limits::default(), &unsigned());
        stream.push(start.as_bytes());
        assert!(
            matches!(stream.next_event(), Err(PayloadError::BadMagic { .. })),
            "{start}"
        );
    }
    let mut stream = PayloadStream::new(Limits::default(), &unsigned());
    stream.push(&header(3, 10));
    assert!(matches!(
        stream.next_event(),
        Err(PayloadError::UnsupportedVersion { version: 3 })
    ));
}

#[test]
fn bad_operation_data_is_refused_and_nothing_outside_is_written() {
    let whole = bzip2(&[1; 4096]);
    let bomb = bzip2(&vec![0; 50 << 20]);
    assert!(bomb.len() < 1000);
    let cases: Vec<(u64, Vec<u8>, u64, &str)> = vec![
        (
            0,
            vec![1; 4097],
            1,
            "the result is longer than its destination",
        ),
        (
            1,
            bzip2(&[1; 4097]),
            1,
            "the result is longer than its destination",
        ),
        (
            1,
            bomb.clone(),
            1,
            "the result is longer than its destination",
        ),
        // Large enough to be decompressed piece by piece.
        (1, bomb, 2048, "the result is longer than its destination"),
        (
            1,
            [&whole[..], b"x"].concat(),
            1,
            "bytes follow the bzip2 stream",
        ),
        (
            1,
            [&whole[..], &whole[..]].concat(),
            2,
            "bytes follow the bzip2 stream",
        ),
        (1, whole[..whole.len() - 1].to_vec(), 1, ""),
        (1, b"BZh9 nonsense".to_vec(), 1, ""),
        (1, b"nonsense".to_vec(), 2048, ""),
        (3, b"BSDIFF40".to_vec(), 1, "the patch has no header"),
    ];
    for (kind, data, blocks, expected) in cases {
        let mut step = Step::full(kind, &[(0, blocks)], &data);
        step.target_length = Some(4096);
        let payload = Payload {
            steps: vec![step],
            new: vec![0; 4096],
            ..Payload::default()
        };
        let machine = Machine::new(&vec![0; usize::try_from(blocks).unwrap() * 4096], &[], 0);
        let error = install(&payload.unsigned(), 4096, &unsigned(), &machine).unwrap_err();
        let PayloadError::OperationFailed {
            index: 0, source, ..
        } = &error
        else {
            panic!("{error:?}")
        };
        assert!(source.to_string().contains(expected), "{source}");
    }
}

#[test]
fn data_with_a_wrong_hash_is_never_handed_out() {
    let mut payload = small().0.unsigned();
    let metadata = check(&payload, &unsigned())
        .unwrap()
        .manifest()
        .metadata_size;
    let position = usize::try_from(metadata).unwrap() + 520;
    payload[position] ^= 1;
    let mut stream = PayloadStream::new(Limits::default(), &unsigned());
    stream.push(&payload);
    let mut handed_out = Vec::new();
    let error = loop {
        match stream.next_event() {
            Ok(Some(Event::Operation(pending))) => handed_out.push(pending.index),
            Ok(Some(Event::Metadata { .. })) => {}
            Ok(None) => panic!("the changed byte was not noticed"),
            Err(error) => break error,
        }
    };
    assert_eq!(handed_out, [0]);
    let PayloadError::OperationHashMismatch {
        index: 1, offset, ..
    } = error
    else {
        panic!("{error:?}")
    };
    assert_eq!(offset, metadata + 512);
}

/// 128 MiB of bzip2 can stand for terabytes of zeros; a hole would swallow them.
#[test]
fn a_bomb_into_a_hole_ends_with_its_destination() {
    let bomb = bzip2(&vec![0; 64 << 20]);
    let step = Step::full(1, &[(HOLE, 2048)], &bomb);
    let payload = Payload {
        steps: vec![step],
        new: vec![0; 4096],
        ..Payload::default()
    };
    let machine = Machine::new(&[0; 4096], &[], 0);
    let start = Instant::now();
    install(&payload.unsigned(), 1 << 20, &unsigned(), &machine).unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn extents_outside_the_target_are_refused_when_they_are_used() {
    let used = |kind: u64, source: &[(u64, u64)], destination: &[(u64, u64)], data: &[u8]| {
        let step = Step {
            source: source.to_vec(),
            source_length: Some(4096),
            target_length: Some(1),
            ..Step::full(kind, destination, data)
        };
        let payload = Payload {
            steps: vec![step],
            new: vec![0; 8192],
            ..Payload::default()
        };
        let machine = Machine::new(&[9; 8192], &[], 0);
        let result = install(&payload.unsigned(), 4096, &unsigned(), &machine);
        (result, machine)
    };
    let outside = |(result, _): (Result<_, PayloadError>, Machine)| {
        matches!(result, Err(PayloadError::OutOfBounds { index: 0, .. }))
    };
    assert!(outside(used(0, &[], &[(2, 1)], &[1; 10])));
    assert!(outside(used(0, &[], &[(1, 2)], &[1; 8192])));
    assert!(outside(used(1, &[], &[(1 << 40, 1)], &bzip2(&[1; 10]))));
    assert!(outside(used(2, &[(2, 1)], &[(0, 1)], &[])));
    assert!(outside(used(2, &[(0, 1)], &[(2, 1)], &[])));
    assert!(outside(used(3, &[(7, 1)], &[(0, 1)], b"BSDIFF40")));
    // Longer than the data is what the original's full payloads are.
    let (result, machine) = used(0, &[], &[(1, 256)], &[1; 10]);
    result.unwrap();
    let mut expected = vec![9; 8192];
    expected[4096..].fill(0);
    expected[4096..4106].fill(1);
    assert_eq!(machine.partition.bytes(), expected);
}

/// One step that may be anything.
fn any_step() -> impl Strategy<Value = Step> {
    let block = prop_oneof![8 => 0_u64..12, 1 => Just(HOLE), 1 => any::<u64>()];
    let blocks = prop_oneof![8 => 0_u64..4, 1 => any::<u64>()];
    let extents = || proptest::collection::vec((block.clone(), blocks.clone()), 0..4);
    let length = || proptest::option::of(prop_oneof![0_u64..3000, any::<u64>()]);
    let data = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..100),
        (0_usize..3000).prop_map(|length| bzip2(&vec![5; length])),
        proptest::collection::vec(any::<u8>(), 24..100)
            .prop_map(|tail| [b"BSDIFF40", &tail[..]].concat()),
    ];
    (0_u64..5, extents(), length(), extents(), length(), data).prop_map(
        |(kind, source, source_length, destination, target_length, data)| Step {
            kind,
            source,
            source_length,
            destination,
            target_length,
            data,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), shape in 0..3) {
        // Mostly past the magic and the lengths, or nothing would be reached.
        if shape > 0 {
            let length = u64::try_from(bytes.len()).unwrap();
            bytes = [header(1, length), bytes].concat();
        }
        if shape > 1 {
            bytes = file(&Message(bytes).message(9, new_info()), b"data");
        }
        prop_assert!(check(&bytes, &Trust::new(vec![RSA_2048.public()], 1).unwrap()).is_err());
    }

    #[test]
    fn random_operations_never_panic_nor_leave_the_target(
        steps in proptest::collection::vec(any_step(), 1..4),
        kernel in proptest::collection::vec(any_step(), 0..2),
        chunk in 1_usize..500,
    ) {
        let payload = Payload {
            block_size: Some(512),
            steps,
            procedures: vec![(0, kernel, vec![1; 600])],
            new: vec![0; 8 * 512],
            old: None,
        };
        // The image panics when it is written outside.
        let machine = Machine::new(&[3; 8 * 512], &[4; 100], 1024);
        let _ = install(&payload.unsigned(), chunk, &unsigned(), &machine);
    }

    #[test]
    fn random_changes_to_a_good_payload_never_panic_nor_pass(
        changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..6),
        chunk in 1_usize..2000,
    ) {
        static GOOD: LazyLock<(Vec<u8>, Vec<u8>)> = LazyLock::new(|| {
            let (payload, old) = small();
            (payload.signed(&[RSA_2048]), old)
        });
        let (good, old) = &*GOOD;
        let mut bad = good.clone();
        for (position, byte) in changes {
            let position = position % bad.len();
            bad[position] = byte;
        }
        prop_assume!(bad != *good);
        let machine = Machine::new(old, &[], 1024);
        let trust = Trust::new(vec![RSA_2048.public()], 1).unwrap();
        prop_assert!(install(&bad, chunk, &trust, &machine).is_err());
    }
}
