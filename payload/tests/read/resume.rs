//! An interrupted payload continues between any two operations.

use payload::{Announced, Event, Limits, PayloadError, PayloadStream, ResumePoint, Trust};
use sha2::{Digest, Sha256};

use crate::craft::{RSA_2048, small};
use crate::craft_v2;
use crate::drive::{Machine, feed};
use crate::fixtures::{original, trust};
use crate::image::MemoryImage;

/// Stored between two runs of the program.
fn stored(point: &ResumePoint) -> ResumePoint {
    serde_json::from_str(&serde_json::to_string(point).unwrap()).unwrap()
}

/// Applies `payload` up to each boundary in turn, then the rest with a new parser.
fn resume_everywhere(payload: &[u8], trust: &Trust, machine: impl Fn() -> Machine) -> usize {
    let mut boundaries = 0;
    loop {
        let machine = machine();
        let mut stream = PayloadStream::new(Limits::default(), trust);
        stream.push(payload);
        let Some(Event::Metadata { manifest, raw }) = stream.next_event().unwrap() else {
            panic!("a payload begins with its metadata");
        };
        let mut point = None;
        for _ in 0..=boundaries {
            match stream.next_event().unwrap() {
                Some(Event::Operation(pending)) => {
                    point = Some(stored(&pending.resume));
                    machine.run(manifest.block_size, pending).unwrap();
                }
                _ => return boundaries,
            }
        }
        let point = point.unwrap();
        boundaries += 1;
        assert_eq!(point.next_operation(), boundaries);

        let announced = Announced {
            size: payload.len().try_into().unwrap(),
            sha256: Sha256::digest(payload).into(),
        };
        let resumed = PayloadStream::resume(Limits::default(), trust, &point, &raw).unwrap();
        let mut resumed = resumed.expect(announced).unwrap();
        assert_eq!(resumed.received(), point.offset());
        assert_eq!(resumed.manifest(), Some(&manifest));
        let rest = &payload[usize::try_from(point.offset()).unwrap()..];
        feed(&mut resumed, rest, 1000, &machine).unwrap();
        let verified = resumed.finish().unwrap();
        assert_eq!(verified.sha256(), &announced.sha256);
        assert!(
            machine.holds(verified.manifest()),
            "after operation {boundaries}"
        );
    }
}

#[test]
fn resuming_after_any_operation_gives_the_same_result() {
    let kernel = original("kernel-new").len().next_multiple_of(4096);
    let full = resume_everywhere(&original("full.payload"), &trust(), || {
        Machine::new(&vec![0xee; 8 << 20], &[], kernel)
    });
    let delta = resume_everywhere(&original("delta.payload"), &trust(), || {
        Machine::new(&original("old.img"), &original("kernel-old"), kernel)
    });
    let (payload, old) = small();
    let own = resume_everywhere(&payload.signed(&[RSA_2048]), &own_trust(), || {
        Machine::new(&old, &[], 1024)
    });
    let (payload, old) = craft_v2::small();
    let version_2 = resume_everywhere(&payload.signed(&[RSA_2048]), &own_trust(), || Machine {
        old: Some(MemoryImage::new(old.clone())),
        ..Machine::new(&vec![0; old.len()], &[], 1024)
    });
    assert_eq!((full, delta, own, version_2), (9, 18, 6, 10));
}

fn own_trust() -> Trust {
    Trust::new(vec![RSA_2048.public()], 1).unwrap()
}

/// The point after the first operation of the small payload, its payload and metadata.
fn first_point() -> (ResumePoint, Vec<u8>, Vec<u8>) {
    let payload = small().0.signed(&[RSA_2048]);
    let mut stream = PayloadStream::new(Limits::default(), &own_trust());
    stream.push(&payload);
    let Some(Event::Metadata { raw, .. }) = stream.next_event().unwrap() else {
        panic!()
    };
    let Some(Event::Operation(pending)) = stream.next_event().unwrap() else {
        panic!()
    };
    (pending.resume, payload.clone(), raw.to_vec())
}

#[test]
fn a_point_of_another_payload_or_program_is_refused() {
    let trust = own_trust();
    let (point, payload, metadata) = first_point();
    let text = serde_json::to_string(&point).unwrap();
    let with = |from: &str, to: &str| {
        assert!(text.contains(from), "{text}");
        serde_json::from_str::<ResumePoint>(&text.replace(from, to)).unwrap()
    };
    let mut other_metadata = metadata.clone();
    other_metadata[30] ^= 1;
    let state = &text[text.find("midstate\":\"").unwrap() + 11..][..10];
    let cases = [
        (
            with("", ""),
            &other_metadata[..],
            "the payload's header and manifest are not the same as before",
        ),
        (
            with("", ""),
            &metadata[..50],
            "the payload's header and manifest are not the same as before",
        ),
        (
            with("\"version\":1", "\"version\":2"),
            &metadata,
            "it was made by another version",
        ),
        (
            with("_operation\":1", "_operation\":2"),
            &metadata,
            "the resume point does not fit the manifest",
        ),
        (
            with("_operation\":1", "_operation\":7"),
            &metadata,
            "the resume point does not fit the manifest",
        ),
        (
            with("\"offset\":", "\"offset\":1"),
            &metadata,
            "the resume point does not fit the manifest",
        ),
        (with(state, ""), &metadata, "its hash state is damaged"),
    ];
    for (point, metadata, expected) in cases {
        let error = PayloadStream::resume(Limits::default(), &trust, &point, metadata).unwrap_err();
        assert_eq!(error.to_string(), format!("cannot resume: {expected}"));
    }
    for damaged in [
        text.replace("\"version\"", "\"wersion\""),
        text.replace(state, "zz"),
        text.replace(state, "é"),
    ] {
        assert!(serde_json::from_str::<ResumePoint>(&damaged).is_err());
    }

    // A point that is well-formed but wrong is caught by the signature.
    let wrong = with(state, &state.chars().rev().collect::<String>());
    let mut stream = PayloadStream::resume(Limits::default(), &trust, &wrong, &metadata).unwrap();
    stream.push(&payload[usize::try_from(wrong.offset()).unwrap()..]);
    while stream.next_event().unwrap().is_some() {}
    assert!(matches!(
        stream.finish(),
        Err(PayloadError::SignatureRefused { .. })
    ));
}

/// The stored form belongs to no version of a library: this one must stay readable.
#[test]
fn version_1_of_the_stored_form_stays_as_it_is() {
    let (point, ..) = first_point();
    let json = serde_json::to_value(&point).unwrap();
    assert_eq!(json["version"], 1);
    assert_eq!(json["next_operation"], 1);
    let state = json["sha256_midstate"].as_str().unwrap();
    let hashed = point.offset();
    assert_eq!(state.len(), 2 * (32 + 8 + 1 + 63));
    let blocks: String = (hashed / 64)
        .to_le_bytes()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(state[64..80], blocks);
    assert_eq!(state[80..82], format!("{:02x}", hashed % 64));
}

#[test]
fn what_was_announced_is_demanded() {
    let (payload, old) = small();
    let payload = payload.signed(&[RSA_2048]);
    let trust = own_trust();
    let good = Announced {
        size: payload.len().try_into().unwrap(),
        sha256: Sha256::digest(&payload).into(),
    };
    let run = |announced: Announced| {
        let machine = Machine::new(&old, &[], 1024);
        let mut stream = PayloadStream::new(Limits::default(), &trust).expect(announced)?;
        let fed = feed(&mut stream, &payload, 64, &machine);
        let written = machine.partition.was_written();
        fed.and_then(|()| stream.finish()).map_err(|error| {
            assert_eq!(written, !matches!(error, PayloadError::SizeMismatch { .. }));
            error
        })
    };
    run(good).unwrap();
    assert!(matches!(
        run(Announced {
            size: good.size + 1,
            ..good
        }),
        Err(PayloadError::SizeMismatch { .. })
    ));
    assert!(matches!(
        run(Announced {
            sha256: [0; 32],
            ..good
        }),
        Err(PayloadError::PayloadHashMismatch)
    ));
}

#[test]
fn a_stream_is_not_finished_before_its_operations_were_taken() {
    let trust = own_trust();
    let payload = small().0.signed(&[RSA_2048]);
    let mut stream = PayloadStream::new(Limits::default(), &trust);
    stream.push(&payload);
    assert!(matches!(
        stream.finish(),
        Err(PayloadError::Unfinished { .. })
    ));

    let mut stream = PayloadStream::new(Limits::default(), &trust);
    stream.push(b"no payload");
    assert!(matches!(
        stream.next_event(),
        Err(PayloadError::BadMagic { .. })
    ));
    assert!(matches!(
        stream.next_event(),
        Err(PayloadError::Unfinished { .. })
    ));
    assert!(matches!(
        stream.finish(),
        Err(PayloadError::Unfinished { .. })
    ));

    let mut stream = PayloadStream::new(Limits::default(), &trust);
    stream.push(&payload[..payload.len() - 1]);
    while stream.next_event().unwrap().is_some() {}
    let size = payload.len();
    assert_eq!(
        stream.finish().unwrap_err().to_string(),
        format!(
            "the payload ends after {} bytes, {size} were expected",
            size - 1
        )
    );
}
