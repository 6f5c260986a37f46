//! No changed bit of a signed payload is accepted.

use std::panic::AssertUnwindSafe;

use crate::craft::{ED25519, RSA_2048, noise, small};
use crate::craft::{Payload, Step};
use crate::drive::{Machine, check, install};
use crate::fixtures::{original, trust};
use payload::Trust;

/// Where the three sections begin that are not operations' data.
fn metadata_and_signature(payload: &[u8], trust: &Trust) -> (usize, usize) {
    let verified = check(payload, trust).unwrap();
    let manifest = verified.manifest();
    let signature = manifest.signatures.clone().unwrap();
    let in_memory = |offset| usize::try_from(offset).unwrap();
    (
        in_memory(manifest.metadata_size),
        in_memory(signature.start),
    )
}

fn refused(payload: &[u8], trust: &Trust) -> bool {
    let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| check(payload, trust)));
    outcome
        .expect("a changed payload must be refused, not panic")
        .is_err()
}

#[test]
fn no_flipped_bit_of_header_manifest_or_signature_is_accepted() {
    let (small, _) = small();
    let mut flips = 0;
    for signer in [RSA_2048, ED25519] {
        let trust = Trust::new(vec![signer.public()], 1).unwrap();
        let payload = small.signed(&[signer]);
        let (metadata_end, signature_start) = metadata_and_signature(&payload, &trust);
        let mut changed = payload.clone();
        for position in (0..metadata_end).chain(signature_start..payload.len()) {
            for bit in 0..8 {
                changed[position] ^= 1 << bit;
                assert!(refused(&changed, &trust), "bit {bit} of byte {position}");
                changed[position] ^= 1 << bit;
                flips += 1;
            }
        }
        assert!(
            !refused(&changed, &trust),
            "control: unchanged again, it is good"
        );
    }
    println!("{flips} flips in header, manifest and signature of a small payload: none accepted");
}

#[test]
fn no_flipped_byte_of_the_generators_metadata_or_signature_is_accepted() {
    let payload = original("full.payload");
    let (metadata_end, signature_start) = metadata_and_signature(&payload, &trust());
    let mut changed = payload;
    let mut flips = 0;
    for position in (0..metadata_end).chain(signature_start..changed.len()) {
        let flip = 1 << (position % 8);
        changed[position] ^= flip;
        assert!(refused(&changed, &trust()), "byte {position}");
        changed[position] ^= flip;
        flips += 1;
    }
    println!("{flips} flips in header, manifest and signature of full.payload: none accepted");
}

#[test]
fn no_random_flip_in_the_data_is_accepted() {
    const FLIPS: usize = 10_000;
    let new = noise(4, 16 * 1024);
    let payload = Payload {
        steps: (0..4)
            .map(|step| {
                Step::full(
                    0,
                    &[(step, 1)],
                    &new[usize::try_from(step).unwrap() * 4096..][..4096],
                )
            })
            .collect(),
        new,
        ..Payload::default()
    }
    .signed(&[RSA_2048]);
    let trust = Trust::new(vec![RSA_2048.public()], 1).unwrap();
    let (start, end) = metadata_and_signature(&payload, &trust);
    let random = noise(5, FLIPS * 4);
    let mut changed = payload;
    for random in random.chunks(4) {
        let position = usize::from(u16::from_le_bytes([random[0], random[1]]));
        let position = start + position % (end - start);
        let flip = random[2] | 1 << (random[3] % 8);
        changed[position] ^= flip;
        assert!(refused(&changed, &trust), "byte {position} ^ {flip:#x}");
        changed[position] ^= flip;
    }
    assert!(
        !refused(&changed, &trust),
        "control: unchanged again, it is good"
    );
    println!("{FLIPS} random flips in the data: none accepted");
}

#[test]
fn no_shortened_or_lengthened_payload_is_accepted() {
    let (small, old) = small();
    let trust = Trust::new(vec![RSA_2048.public()], 1).unwrap();
    let payload = small.signed(&[RSA_2048]);
    for length in 0..payload.len() {
        assert!(refused(&payload[..length], &trust), "cut to {length} bytes");
    }
    let mut longer = payload.clone();
    longer.push(0);
    assert_eq!(
        check(&longer, &trust).unwrap_err().to_string(),
        format!(
            "bytes follow the end of the payload at offset {}",
            payload.len()
        )
    );
    let machine = Machine::new(&old, &[], 1024);
    let verified = install(&payload, 100, &trust, &machine).unwrap();
    assert!(
        machine.holds(verified.manifest()),
        "control: the payload does its work"
    );
}

#[test]
fn sections_of_another_payload_by_the_same_key_are_refused() {
    let trust = Trust::new(vec![RSA_2048.public()], 1).unwrap();
    let make = |seed| {
        let new = noise(seed, 4096);
        let steps = vec![Step::full(0, &[(0, 1)], &new)];
        Payload {
            steps,
            new,
            ..Payload::default()
        }
        .signed(&[RSA_2048])
    };
    let (a, b) = (make(6), make(7));
    let (metadata_end, signature_start) = metadata_and_signature(&a, &trust);
    for (name, mixed) in [
        (
            "metadata",
            [&b[..metadata_end], &a[metadata_end..]].concat(),
        ),
        (
            "data and signature",
            [&a[..metadata_end], &b[metadata_end..]].concat(),
        ),
        (
            "signature",
            [&a[..signature_start], &b[signature_start..]].concat(),
        ),
    ] {
        assert!(refused(&mixed, &trust), "{name} of another payload");
    }
}
