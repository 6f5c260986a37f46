//! Payloads onto images, those of the original generator too.

use std::fs;
use std::path::Path;

use sha2::Digest;

use crate::{Bench, noise};

const KEY: &str = "--public-key key.pub.pem";

/// A bench with the recorded payloads of the original generator, their images,
/// kernels and keys.
fn original() -> Bench {
    let bench = Bench::new();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/crau-v1");
    for entry in fs::read_dir(fixtures).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let bytes = fs::read(&path).unwrap();
        match name.strip_suffix(".zst") {
            Some(name) => bench.write(name, &zstd::decode_all(&bytes[..]).unwrap()),
            None => bench.write(name, &bytes),
        }
    }
    bench
}

#[test]
fn full_payload_of_the_original_gives_image_and_kernel() {
    let bench = original();
    bench.good(&format!(
        "apply {KEY} --target t.img --target-kernel t.kernel full.payload"
    ));
    assert!(bench.read("t.img") == bench.read("new.img"));
    assert!(bench.read("t.kernel") == bench.read("kernel-new"));
}

#[test]
fn delta_of_the_original_gives_image_and_kernel_and_leaves_the_sources_alone() {
    let bench = original();
    let sources = [bench.read("old.img"), bench.read("kernel-old")];
    bench.good(&format!(
        "apply {KEY} --source old.img --target t.img --source-kernel kernel-old \
         --target-kernel t.kernel delta.payload"
    ));
    assert!(bench.read("t.img") == bench.read("new.img"));
    assert!(bench.read("t.kernel") == bench.read("kernel-new"));
    assert!([bench.read("old.img"), bench.read("kernel-old")] == sources);
}

#[test]
fn a_kernel_without_a_place_is_left_out_and_that_is_said() {
    let bench = original();
    for payload in ["full.payload", "--source old.img delta.payload"] {
        let outcome = bench.payload(&format!("apply {KEY} --target t.img {payload}"));
        assert_eq!(outcome.status, Some(0), "{outcome:?}");
        assert!(
            outcome.stderr.contains("the kernel is left out"),
            "{outcome:?}"
        );
        assert!(bench.read("t.img") == bench.read("new.img"));
    }
}

#[test]
fn a_larger_or_smaller_file_gets_exactly_the_size_of_the_image() {
    for size in [1, 5000, 20 << 20] {
        let bench = original();
        bench.write("t.img", &noise(1, size));
        bench.write("t.kernel", &noise(2, size));
        bench.good(&format!(
            "apply {KEY} --target t.img --target-kernel t.kernel full.payload"
        ));
        assert!(bench.read("t.img") == bench.read("new.img"));
        assert!(bench.read("t.kernel") == bench.read("kernel-new"));
    }
}

#[test]
fn nothing_is_written_for_a_payload_or_a_source_that_is_refused() {
    let bench = original();
    let mut flipped = bench.read("unsigned.payload");
    flipped[100_000] ^= 1;
    bench.write("flipped.payload", &flipped);
    let before = bench.files();
    for (arguments, reason) in [
        (
            "--public-key other-key.pub.pem --target t.img two-signatures.payload",
            "the signature is refused",
        ),
        (
            "--public-key key.pub.pem --target t.img unsigned.payload",
            "the payload is not signed",
        ),
        (
            "--allow-unsigned --target t.img flipped.payload",
            "does not match",
        ),
        (
            "--public-key key.pub.pem --target t.img delta.payload",
            "give the old partition that it was made from with --old",
        ),
        (
            "--public-key key.pub.pem --source new.img --target t.img delta.payload",
            "new.img is not the old partition that this delta was made from",
        ),
        (
            "--public-key key.pub.pem --source old.img --target t.img --source-kernel kernel-new \
             --target-kernel t.kernel delta.payload",
            "kernel-new is not the old kernel",
        ),
        (
            "--public-key key.pub.pem --source old.img --target t.img --target-kernel t.kernel \
             delta.payload",
            "with --old-kernel",
        ),
        (
            "--public-key key.pub.pem --target t.img --target-kernel t.kernel \
             two-signatures.payload",
            "holds no kernel",
        ),
        (
            "--public-key key.pub.pem --target missing/t.img full.payload",
            "open missing/t.img: No such file or directory",
        ),
    ] {
        let stderr = bench.refused(&format!("apply {arguments}"));
        assert!(
            stderr.contains(reason),
            "apply {arguments}: {stderr:?} should say {reason:?}"
        );
        assert!(!stderr.contains("incomplete"), "{stderr}");
        assert_eq!(bench.files(), before, "apply {arguments}");
    }
}

#[test]
fn unsigned_payload_applies_when_that_is_asked_for() {
    let bench = original();
    bench.good("apply --allow-unsigned --target t.img unsigned.payload");
    assert!(bench.read("t.img") == bench.read("new.img"));
}

#[test]
fn no_file_is_both_read_and_written() {
    let bench = original();
    for (arguments, victim) in [
        ("--source old.img --target old.img delta.payload", "old.img"),
        ("--target full.payload full.payload", "full.payload"),
        (
            "--target old.img --target-kernel old.img full.payload",
            "old.img",
        ),
        (
            "--source old.img --target t.img --source-kernel kernel-old \
             --target-kernel kernel-old delta.payload",
            "kernel-old",
        ),
    ] {
        let before = bench.read(victim);
        let stderr = bench.refused(&format!("apply {KEY} {arguments}"));
        assert!(
            stderr.contains("two things at once"),
            "{arguments}: {stderr}"
        );
        assert!(bench.read(victim) == before, "{arguments}");
    }
}

#[test]
fn a_result_that_is_not_right_is_removed_or_called_useless() {
    let bench = original();
    // A manifest that promises another image than its operations make.
    let mut payload = bench.read("unsigned.payload");
    let promised = sha2::Sha256::digest(bench.read("new.img"));
    let mut windows = payload.windows(32);
    let at = windows.position(|window| window == &promised[..]).unwrap();
    payload[at] ^= 1;
    bench.write("wrong.payload", &payload);
    bench.write("existing.img", b"older");

    for (target, words) in [
        (
            "fresh.img",
            "payload: fresh.img is incomplete and removed\n",
        ),
        (
            "existing.img",
            "payload: existing.img is incomplete now and of no use\n",
        ),
    ] {
        let stderr = bench.refused(&format!(
            "apply --allow-unsigned --target {target} wrong.payload"
        ));
        let reason = "payload: apply wrong.payload: partition: the result does not have the \
                      announced size and SHA-256\n";
        assert_eq!(stderr, format!("{words}{reason}"));
    }
    assert!(!bench.exists("fresh.img"));
}

#[test]
fn a_device_that_is_too_small_is_refused() {
    let bench = original();
    let stderr = bench.refused(&format!(
        "apply {KEY} --target /dev/null two-signatures.payload"
    ));
    assert_eq!(
        stderr,
        "payload: /dev/null has 0 bytes, the partition needs 8388608\n"
    );
}

#[test]
fn full_payload_equals_the_one_of_the_original_but_for_the_end_of_the_kernel() {
    let bench = original();
    bench.good(
        "generate --new new.img --kernel kernel-new --private-key key_DO_NOT_USE.pem --out ours",
    );
    let (ours, theirs) = (bench.read("ours"), bench.read("full.payload"));
    let metadata = |payload: &[u8]| {
        20 + usize::try_from(u64::from_be_bytes(payload[12..20].try_into().unwrap())).unwrap()
    };
    let (our_data, their_data) = (metadata(&ours), metadata(&theirs));
    // The kernel fills 80 blocks; the original names 256, which takes one byte more.
    assert_eq!(our_data + 1, their_data);
    let signatures = 264;
    assert!(
        ours[our_data..ours.len() - signatures] == theirs[their_data..theirs.len() - signatures],
        "the same compressed chunks in the same order"
    );
    let show = |name: &str| {
        let shown: serde_json::Value =
            serde_json::from_str(&bench.good(&format!("show --json {name}"))).unwrap();
        (shown["parts"].clone(), shown["signatures"].clone())
    };
    assert_eq!(show("ours"), show("full.payload"));
}

#[test]
fn signing_payloads_of_the_original_again_reproduces_them() {
    let bench = original();
    for payload in ["full.payload", "delta.payload"] {
        bench.good(&format!(
            "sign --private-key key_DO_NOT_USE.pem {payload} again"
        ));
        assert!(bench.read("again") == bench.read(payload), "{payload}");
    }
}
