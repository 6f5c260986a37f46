//! Whatever image and kernel go in, the reading side gets them out again.

// Helpers of tests may give up as tests do.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::{Cursor, Read, Seek};
use std::num::NonZeroUsize;

use payload::make::{BLOCK_SIZE, PrivateKey, Profile, Source, full};
use payload::{PublicKey, Sources, Targets, Trust, apply_payload, verify_payload};
use proptest::collection::vec;
use proptest::prelude::*;

const PRIVATE: &str = include_str!("../../fixtures/keys/ed25519_DO_NOT_USE.pem");
const PUBLIC: &str = include_str!("../../fixtures/keys/ed25519.pub.pem");

/// Runs of equal bytes and of noise, so that chunks of every kind occur.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let run = prop_oneof![
        (any::<u8>(), 1..900_000_usize).prop_map(|(byte, len)| vec![byte; len]),
        vec(any::<u8>(), 1..5000),
        (vec(any::<u8>(), 4096), 1..200_usize).prop_map(|(block, times)| block.repeat(times)),
    ];
    vec(run, 1..5).prop_map(|runs| runs.concat())
}

fn source<'a>(reader: &'a mut Cursor<&[u8]>) -> Source<'a> {
    let size = u64::try_from(reader.get_ref().len()).unwrap();
    Source { reader, size }
}

fn file(len: u64) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(len).unwrap();
    file
}

fn content(file: &File) -> Vec<u8> {
    let mut file = file;
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn what_is_made_applies_to_the_same_bytes(
        mut image in bytes(),
        kernel in proptest::option::of(bytes()),
        threads in 1..4_usize,
        profile in prop_oneof![Just(Profile::V1), Just(Profile::V2), Just(Profile::V2Aosp)],
    ) {
        let block = usize::try_from(BLOCK_SIZE).unwrap();
        image.resize(image.len().next_multiple_of(block), 0);

        let mut image_reader = Cursor::new(&image[..]);
        let mut kernel_reader = kernel.as_deref().map(Cursor::new);
        let mut made = Cursor::new(Vec::new());
        let written = full(
            source(&mut image_reader),
            kernel_reader.as_mut().map(source),
            Vec::new(),
            profile,
            Cursor::new(Vec::new()),
            NonZeroUsize::new(threads).unwrap(),
        )
        .unwrap()
        .sign(&[PrivateKey::from_pem(PRIVATE).unwrap()], &mut made)
        .unwrap();
        made.set_position(0);

        let trust = Trust::new(vec![PublicKey::from_pem(PUBLIC).unwrap()], 1).unwrap();
        let verified = verify_payload(&mut made, &trust, &mut |_| ()).unwrap();
        prop_assert_eq!(verified.size(), written.size);
        prop_assert_eq!(verified.sha256(), &written.sha256);

        let partition = file(verified.manifest().partition.new.size);
        let kernel_file = file(0);
        let targets = Targets {
            partition: &partition,
            kernel: Some(&kernel_file),
            pcr_policy: None,
            named: &[],
        };
        apply_payload(&mut made, &verified, &targets, &Sources::default(), &mut |_| ()).unwrap();
        prop_assert!(content(&partition) == image);
        prop_assert!(content(&kernel_file) == kernel.unwrap_or_default());
    }
}
