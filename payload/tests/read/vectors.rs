//! Payloads by the original generator verify and apply to the original's hashes.

use std::fs::File;
use std::io::Cursor;

use payload::{
    Extent, OperationKind, PayloadError, Sources, Target, Targets, Trust, apply_payload,
    verify_payload,
};
use sha2::{Digest, Sha256};

use crate::craft::{Payload, Step, bzip2, noise};
use crate::drive::{Machine, check, install};
use crate::fixtures::{original, other_trust, read, trust};
use crate::image::MemoryImage;

const SIZE: usize = 8 << 20;

/// SHA256SUMS beside the payloads.
fn listed(name: &str) -> String {
    let sums = String::from_utf8(read("crau-v1/SHA256SUMS")).unwrap();
    let line = sums
        .lines()
        .find(|line| line.ends_with(&format!("  {name}")));
    line.unwrap()[..64].to_owned()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

struct Case {
    payload: &'static str,
    delta: bool,
    kernel: bool,
    signed: bool,
}

const CASES: [Case; 4] = [
    Case {
        payload: "full.payload",
        delta: false,
        kernel: true,
        signed: true,
    },
    Case {
        payload: "delta.payload",
        delta: true,
        kernel: true,
        signed: true,
    },
    Case {
        payload: "two-signatures.payload",
        delta: false,
        kernel: false,
        signed: true,
    },
    Case {
        payload: "unsigned.payload",
        delta: false,
        kernel: false,
        signed: false,
    },
];

impl Case {
    fn trust(&self) -> Trust {
        if self.signed {
            trust()
        } else {
            Trust::allow_unsigned(vec![])
        }
    }

    fn machine(&self) -> Machine {
        let kernel = original("kernel-new").len().next_multiple_of(4096);
        if self.delta {
            Machine::new(&original("old.img"), &original("kernel-old"), kernel)
        } else {
            Machine::new(&vec![0xee; SIZE], &[], kernel)
        }
    }
}

#[test]
fn every_payload_applies_to_the_listed_hashes_in_any_chunking() {
    let kernel_size = original("kernel-new").len();
    for case in CASES {
        let payload = original(case.payload);
        for chunk in [1, 7, 4096, payload.len()] {
            let machine = case.machine();
            let verified = install(&payload, chunk, &case.trust(), &machine)
                .unwrap_or_else(|error| panic!("{} in {chunk}: {error:?}", case.payload));
            assert_eq!(sha256(&machine.partition.bytes()), listed("new.img"));
            if case.kernel {
                let kernel = machine.kernel.bytes();
                assert_eq!(sha256(&kernel[..kernel_size]), listed("kernel-new"));
            }
            assert!(machine.holds(verified.manifest()));
            assert_eq!(verified.signers(), usize::from(case.signed));
            assert_eq!(verified.size(), u64::try_from(payload.len()).unwrap());
            assert_eq!(verified.sha256()[..], Sha256::digest(&payload)[..]);
            assert_eq!(verified.manifest().is_delta(), case.delta);
        }
    }
}

#[test]
fn a_key_that_signed_only_as_version_1_is_refused() {
    let payload = original("two-signatures.payload");
    assert!(check(&payload, &trust()).is_ok());
    let error = check(&payload, &other_trust()).unwrap_err();
    assert!(matches!(
        error,
        PayloadError::SignatureRefused {
            good: 0,
            needed: 1,
            entries: 2,
            keys: 1
        }
    ));
}

#[test]
fn an_unsigned_payload_is_refused_unless_asked_for() {
    let payload = original("unsigned.payload");
    assert!(matches!(
        check(&payload, &trust()),
        Err(PayloadError::SignatureMissing)
    ));
    let verified = check(&payload, &Trust::allow_unsigned(vec![])).unwrap();
    assert_eq!(verified.signers(), 0);
}

#[test]
fn the_manifest_of_the_delta_says_what_the_generator_meant() {
    let verified = check(&original("delta.payload"), &trust()).unwrap();
    let manifest = verified.manifest();
    assert_eq!(manifest.block_size, 4096);
    assert_eq!(manifest.metadata_size, 20 + 1306);
    let operations: Vec<_> = manifest.operations().collect();
    let (target, first) = &operations[0];
    assert_eq!(*target, Target::Partition);
    assert_eq!(first.name(), "BSDIFF");
    assert!(!first.is_idempotent());
    assert_eq!(
        first.source(),
        [
            Extent::Run {
                offset: 238 * 4096,
                length: 12 * 4096
            },
            Extent::Run {
                offset: 251 * 4096,
                length: 19 * 4096
            },
        ]
    );
    assert!(matches!(
        first.kind,
        OperationKind::Bsdiff {
            source_length: 126_424,
            target_length: 127_056,
            ..
        }
    ));
    assert_eq!(
        operations[11].1.destination[0],
        Extent::Hole { length: 170 * 4096 }
    );
    let (target, last) = operations.last().unwrap();
    assert_eq!(
        (target.clone(), last.index),
        (Target::Kernel, operations.len() - 1)
    );
    assert_eq!(manifest.part(&Target::Kernel).unwrap().new.size, 324_234);
    assert!(manifest.part(&Target::PcrPolicy).is_none());
}

#[test]
fn files_are_applied_and_the_kernel_is_cut_to_its_size() {
    let folder = tempfile::tempdir().unwrap();
    let open = |name: &str, content: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        (path, file)
    };
    // A longer file from before must not shine through behind the new kernel.
    for (payload, image, kernel) in [
        ("full.payload", vec![0xee; SIZE + 4096], vec![0xee; 500_000]),
        ("delta.payload", original("old.img"), original("kernel-old")),
    ] {
        let (image_path, image) = open("image", &image);
        let (kernel_path, kernel) = open("kernel", &kernel);
        let targets = Targets {
            partition: &image,
            kernel: Some(&kernel),
            pcr_policy: None,
            named: &[],
        };
        let mut done = 0;
        let mut payload = Cursor::new(original(payload));
        let verified = verify_payload(&mut payload, &trust(), &mut |_| ()).unwrap();
        apply_payload(
            &mut payload,
            &verified,
            &targets,
            &Sources::default(),
            &mut |now| done = now,
        )
        .unwrap();
        let image = std::fs::read(image_path).unwrap();
        assert_eq!(sha256(&image[..SIZE]), listed("new.img"));
        assert_eq!(
            sha256(&std::fs::read(kernel_path).unwrap()),
            listed("kernel-new")
        );
        assert_eq!(done, verified.size());
    }
}

#[test]
fn nothing_of_a_file_is_written_before_its_signature_is_good() {
    let folder = tempfile::tempdir().unwrap();
    let kernel_path = folder.path().join("kernel");
    std::fs::write(&kernel_path, b"old").unwrap();
    let kernel = File::options()
        .read(true)
        .write(true)
        .open(&kernel_path)
        .unwrap();
    let attempt = |payload: &str, trust: &Trust, image: &[u8]| {
        let machine = Machine::new(image, &[], 0);
        let targets = Targets {
            partition: &machine.partition,
            kernel: Some(&kernel),
            pcr_policy: None,
            named: &[],
        };
        let mut payload = Cursor::new(original(payload));
        let error = verify_payload(&mut payload, trust, &mut |_| ())
            .and_then(|verified| {
                apply_payload(
                    &mut payload,
                    &verified,
                    &targets,
                    &Sources::default(),
                    &mut |_| (),
                )
            })
            .unwrap_err();
        assert!(!machine.partition.was_written());
        assert_eq!(std::fs::read(&kernel_path).unwrap(), b"old");
        error
    };
    let blank = vec![0; SIZE];
    assert!(matches!(
        attempt("full.payload", &other_trust(), &blank),
        PayloadError::SignatureRefused { .. }
    ));
    assert!(matches!(
        attempt("full.payload", &trust(), &blank[4096..]),
        PayloadError::TargetTooSmall {
            size: 8_388_608,
            available: 8_384_512,
            ..
        }
    ));
    assert!(matches!(
        attempt("delta.payload", &trust(), &blank),
        PayloadError::SourceMismatch {
            target: Target::Partition
        }
    ));
    assert!(matches!(
        attempt("delta.payload", &trust(), &original("old.img")),
        PayloadError::SourceMismatch {
            target: Target::Kernel
        }
    ));
}

#[test]
fn a_target_that_is_too_small_is_an_error_with_the_place() {
    let machine = Machine::new(&vec![0; SIZE - 4096], &[], 1 << 20);
    let error = install(&original("full.payload"), 4096, &trust(), &machine).unwrap_err();
    assert_eq!(
        error.to_string(),
        "operation 7: 1048576 bytes at offset 7340032 are outside the target of 8384512 bytes"
    );
}

#[test]
fn a_file_that_changes_after_its_verification_is_refused() {
    let whole = original("two-signatures.payload");
    let verified = verify_payload(&mut &whole[..], &trust(), &mut |_| ()).unwrap();
    let apply = |payload: Vec<u8>| {
        let machine = Machine::new(&vec![0; SIZE], &[], 0);
        let targets = Targets {
            partition: &machine.partition,
            kernel: None,
            pcr_policy: None,
            named: &[],
        };
        let mut payload = Cursor::new(payload);
        let error = apply_payload(
            &mut payload,
            &verified,
            &targets,
            &Sources::default(),
            &mut |_| (),
        )
        .unwrap_err();
        (error, machine.partition.was_written())
    };
    let (error, written) = apply(original("unsigned.payload"));
    assert!(matches!(error, PayloadError::PayloadChanged) && !written);

    let mut other_data = whole.clone();
    other_data[1000] ^= 1;
    let (error, written) = apply(other_data);
    assert!(matches!(error, PayloadError::OperationHashMismatch { index: 0, .. }) && !written);

    let mut other_signature = whole.clone();
    *other_signature.last_mut().unwrap() ^= 1;
    let (error, _) = apply(other_signature);
    assert!(matches!(error, PayloadError::PayloadChanged));

    let (error, _) = apply(whole[..whole.len() - 1].to_vec());
    assert!(matches!(error, PayloadError::Truncated { .. }));
}

#[test]
fn a_reader_that_fails_is_reported_with_its_offset() {
    struct Broken(usize);
    impl std::io::Read for Broken {
        fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
            if self.0 == 0 {
                return Err(std::io::Error::other("cable pulled"));
            }
            self.0 -= 1;
            buf[..4].copy_from_slice(b"CrAU");
            Ok(4)
        }
    }
    let error = verify_payload(&mut Broken(1), &trust(), &mut |_| ()).unwrap_err();
    assert_eq!(error.to_string(), "cannot read the payload at offset 4");
}

#[test]
fn a_pcr_policy_is_written_beside_and_a_later_procedure_is_skipped() {
    let (kernel, policy) = (noise(11, 5000), noise(12, 100));
    let new = noise(13, 4096);
    let payload = Payload {
        steps: vec![Step::full(0, &[(0, 1)], &new)],
        procedures: vec![
            (9, vec![Step::full(5, &[], b"unknown")], vec![]),
            (1, vec![Step::full(0, &[(0, 256)], &policy)], policy.clone()),
            (
                0,
                vec![Step::full(1, &[(0, 256)], &bzip2(&kernel))],
                kernel.clone(),
            ),
        ],
        new: new.clone(),
        ..Payload::default()
    };
    let folder = tempfile::tempdir().unwrap();
    let create = |name: &str| {
        let path = folder.path().join(name);
        let options = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path);
        options.unwrap()
    };
    let image = MemoryImage::new(vec![0; 4096]);
    let targets = Targets {
        partition: &image,
        kernel: Some(&create("kernel")),
        pcr_policy: Some(&create("policy")),
        named: &[],
    };
    let mut payload = Cursor::new(payload.unsigned());
    let trust = Trust::allow_unsigned(vec![]);
    let verified = verify_payload(&mut payload, &trust, &mut |_| ()).unwrap();
    apply_payload(
        &mut payload,
        &verified,
        &targets,
        &Sources::default(),
        &mut |_| (),
    )
    .unwrap();
    assert_eq!(image.bytes(), new);
    assert_eq!(std::fs::read(folder.path().join("kernel")).unwrap(), kernel);
    assert_eq!(std::fs::read(folder.path().join("policy")).unwrap(), policy);
}
