//! Format version 2: made, signed in one step or three, explained, applied.

use std::fs::File;
use std::io::{Cursor, Write};
use std::process::{Command, Stdio};

use payload::ImageInfo;
use payload::make::{
    Blocks, Parts, PreparedKind, PreparedOperation, PreparedPart, PreparedSource, Profile, Scratch,
};
use sha2::{Digest, Sha256};

use crate::{Bench, noise};

const MIB: usize = 1 << 20;

fn bench() -> Bench {
    let bench = Bench::new();
    let text = b"all work and no play makes jack a dull boy\n".repeat(40_000);
    let image = [&text[..3 * MIB / 2], &vec![0; 9 * MIB], &noise(1, 4096)].concat();
    bench.write("new.img", &image);
    bench.write("vmlinuz", &noise(2, 5001));
    bench
}

#[test]
fn both_profiles_apply_to_the_same_bytes_and_are_made_alike_each_time() {
    for format in ["v2", "v2-aosp"] {
        let bench = bench();
        for out in ["a", "b"] {
            bench.good(&format!(
                "generate --new new.img --kernel vmlinuz --format {format} --private-key \
                 KEYS/ed25519_DO_NOT_USE.pem --out {out}"
            ));
        }
        assert!(bench.read("a") == bench.read("b"), "{format}");
        bench.good("verify --public-key KEYS/ed25519.pub.pem a");
        bench.good(
            "apply --public-key KEYS/ed25519.pub.pem --target out.img --target-kernel out.k a",
        );
        assert!(bench.read("out.img") == bench.read("new.img"), "{format}");
        assert!(bench.read("out.k") == bench.read("vmlinuz"), "{format}");
    }
}

#[test]
fn facts_about_the_release_ask_for_version_2_and_are_shown() {
    let bench = bench();
    bench.good(
        "generate --new new.img --app-id {e96281a6} --board amd64-usr --release-version 4230.1.0 \
         --min-source-version 4000.0.0 --security-epoch 3 --created 1790000000 \
         --expires 1800000000 --private-key KEYS/rsa-2048_DO_NOT_USE.pem --out u",
    );
    let shown: serde_json::Value = serde_json::from_str(&bench.good("show --json u")).unwrap();
    assert_eq!(shown["format_version"], 2);
    assert_eq!(shown["release"]["version"], "4230.1.0");
    assert_eq!(shown["release"]["security_epoch"], 3);
    let operations = &shown["parts"][0]["operations"];
    assert_eq!(operations["ZERO"]["count"], 1);
    assert_eq!(operations["ZERO"]["written"], 4 * MIB);
    assert_eq!(shown["metadata_signatures"], shown["signatures"]);
    let text = bench.good("show u");
    for words in [
        "full payload, format version 2,",
        "of their size",
        "4000.0.0 or later",
        "2027-01-15T08:00:00Z",
        "REPLACE_ZSTD",
        "manifest",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert_eq!(bench.read("u")[..12], *b"CrAU\0\0\0\0\0\0\0\x02");
    bench.good("generate --new new.img --out v1");
    assert_eq!(bench.read("v1")[..12], *b"CrAU\0\0\0\0\0\0\0\x01");

    let created = |bench: &Bench, arguments: &str| {
        let mut command = bench.command(arguments);
        command.env("SOURCE_DATE_EPOCH", "1234567890");
        let made = command.stdin(Stdio::null()).output().unwrap();
        assert!(made.status.success(), "{made:?}");
        let shown = bench.good("show --json e");
        serde_json::from_str::<serde_json::Value>(&shown).unwrap()["release"]["created"].clone()
    };
    let by_epoch = created(&bench, "generate --new new.img --format v2 --out e");
    assert_eq!(by_epoch, 1_234_567_890);
    let by_option = created(&bench, "generate --new new.img --created 5 --out e");
    assert_eq!(by_option, 5);
}

#[test]
fn facts_that_no_machine_could_accept_are_refused() {
    let bench = bench();
    for (arguments, reason) in [
        (
            "--release-version v4.0",
            "as in 4230.1.0 or 4230.1.0+build-7",
        ),
        ("--min-source-version 4230.", "as in 4230.1.0"),
        ("--release-version ", "as in 4230.1.0"),
        ("--board ", "a value is required for '--board <BOARD>'"),
        ("--app-id ", "a value is required for '--app-id <ID>'"),
    ] {
        let outcome = bench.payload(&format!("generate --new new.img --out o {arguments}"));
        assert_eq!(outcome.status, Some(2), "{arguments}: {outcome:?}");
        assert!(outcome.stderr.contains(reason), "{}", outcome.stderr);
    }
    let stderr = bench.refused("generate --new new.img --created 100 --expires 90 --out o");
    assert!(stderr.contains("--expires 90 is not after"), "{stderr}");
    assert!(!bench.exists("o"));

    let late = bench.payload("generate --new new.img --expires 90 --out o");
    assert_eq!(late.status, Some(0), "{late:?}");
    let warning = "warning: --expires 90 is past; no machine will install this\n";
    assert!(late.stderr.contains(warning), "{}", late.stderr);
    bench.good("generate --new new.img --release-version 4230.1.0+nightly-2 --out o");
}

#[test]
fn an_unset_or_unused_time_of_making_is_no_obstacle() {
    let bench = bench();
    for (format, seconds) in [("v1", "yesterday"), ("v1", ""), ("v2", "")] {
        let mut command =
            bench.command(&format!("generate --new new.img --format {format} --out o"));
        command.env("SOURCE_DATE_EPOCH", seconds);
        let made = command.stdin(Stdio::null()).output().unwrap();
        assert!(made.status.success(), "{format} {seconds:?}: {made:?}");
    }
    let mut command = bench.command("generate --new new.img --format v2 --out o");
    let made = command
        .env("SOURCE_DATE_EPOCH", "yesterday")
        .output()
        .unwrap();
    assert_eq!(made.status.code(), Some(1), "{made:?}");
}

#[test]
fn what_a_format_cannot_do_is_refused() {
    let bench = bench();
    let long = "x".repeat(257);
    for (arguments, reason) in [
        (
            "--format v1 --board b".to_owned(),
            "--board needs format version 2; leave out --format v1",
        ),
        (
            "--format v1 --old new.img".to_owned(),
            "--old needs format version 2; leave out --format v1",
        ),
        (
            format!("--board {long}"),
            "manifest: release.board: 257 bytes, the limit is 256",
        ),
    ] {
        let stderr = bench.refused(&format!("generate --new new.img {arguments} --out o"));
        assert!(stderr.contains(reason), "{stderr}");
    }
    assert!(!bench.exists("o"));
}

/// Of any size, since files and devices that are larger can hold them.
#[test]
fn further_partitions_travel_and_are_applied_where_they_are_told_to() {
    let bench = bench();
    let (old_oem, new_oem) = (
        noise(5, 40_000),
        [noise(5, 30_000), noise(6, 20_001)].concat(),
    );
    bench.write("oem-1.img", &old_oem);
    bench.write("oem-2.img", &new_oem);
    bench.write("data.img", &noise(7, 5 * 4096));
    let key = "--private-key KEYS/ed25519_DO_NOT_USE.pem";
    for (format, old) in [
        ("v2", ""),
        ("v2-aosp", ""),
        ("v2", " --old new.img --old-partition oem=oem-1.img"),
    ] {
        bench.good(&format!(
            "generate --new new.img --partition oem=oem-2.img --partition data=data.img \
             --format {format}{old} {key} --out u"
        ));
        bench.good("verify --public-key KEYS/ed25519.pub.pem u");
        let shown: serde_json::Value = serde_json::from_str(&bench.good("show --json u")).unwrap();
        let targets: Vec<_> = (0..3).map(|part| &shown["parts"][part]["target"]).collect();
        assert_eq!(targets, ["partition", "oem", "data"]);
        bench.good(&format!(
            "apply --public-key KEYS/ed25519.pub.pem{old} --target out.img \
             --target-partition oem=out-oem.img u"
        ));
        assert!(bench.read("out-oem.img") == new_oem, "{format}{old}");
        assert!(bench.read("out.img") == bench.read("new.img"));
        let left_out = bench
            .payload("apply --public-key KEYS/ed25519.pub.pem --old new.img --target out.img u");
        assert_eq!(left_out.status, Some(0), "{left_out:?}");
        for name in ["oem", "data"] {
            let words = format!("payload: the {name} is left out");
            assert!(left_out.stderr.contains(&words), "{left_out:?}");
        }
    }
    let stderr = bench.refused(
        "apply --public-key KEYS/ed25519.pub.pem --old new.img --target out.img \
         --target-partition oem=o u",
    );
    assert!(
        stderr.contains("give the old oem that it was made from with --old-partition oem=FILE"),
        "{stderr}"
    );
    assert!(!bench.exists("o"));
    let stderr = bench.refused(
        "apply --public-key KEYS/ed25519.pub.pem --old new.img --target out.img \
         --target-partition vendor=o u",
    );
    assert!(
        stderr.contains("the payload holds no partition vendor"),
        "{stderr}"
    );
}

#[test]
fn further_partitions_that_cannot_be_are_refused() {
    let bench = bench();
    for (arguments, reason) in [
        (
            "--partition oem=vmlinuz --format v1",
            "--partition needs format version 2; leave out --format v1",
        ),
        (
            "--partition oem=vmlinuz --partition oem=new.img",
            "--partition oem=... is given twice",
        ),
        (
            "--old new.img --partition a=vmlinuz --old-partition a=new.img --old-partition a=new.img",
            "--old-partition a=... is given twice",
        ),
        (
            "--old new.img --partition a=vmlinuz --old-partition b=vmlinuz",
            "--old-partition b=... needs --partition b=... for the new one",
        ),
    ] {
        let stderr = bench.refused(&format!("generate --new new.img {arguments} --out o"));
        assert!(stderr.contains(reason), "{stderr}");
    }
    for (partition, reason) in [
        ("oem", "as oem=oem.img"),
        ("usr=vmlinuz", "usr has an option of its own"),
        ("kernel=vmlinuz", "kernel has an option of its own"),
        ("a/b=vmlinuz", "\"a/b\" is no name of a partition"),
    ] {
        let arguments = format!("generate --new new.img --partition {partition} --out o");
        let outcome = bench.payload(&arguments);
        assert_eq!(outcome.status, Some(2), "{outcome:?}");
        assert!(outcome.stderr.contains(reason), "{outcome:?}");
    }
    assert!(!bench.exists("o"));
}

#[test]
fn signatures_of_openssl_attach_to_the_file_that_signing_makes() {
    let bench = bench();
    bench.good("generate --new new.img --kernel vmlinuz --format v2 --out unsigned");
    bench.good(
        "sign --private-key KEYS/rsa-2048_DO_NOT_USE.pem \
         --private-key KEYS/ed25519_DO_NOT_USE.pem unsigned signed",
    );
    let printed =
        bench.good("hash unsigned --signature-sizes 256:64 --out digest --metadata-out metadata");
    let hex = |name| -> String {
        let digest = bench.read(name);
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    };
    assert_eq!(printed, format!("{}\n{}\n", hex("digest"), hex("metadata")));
    for (key, options) in [
        ("rsa-2048", "-pkeyopt digest:sha256"),
        ("ed25519", "-rawin"),
    ] {
        for digest in ["digest", "metadata"] {
            let made = bench.openssl(&format!(
                "pkeyutl -sign -inkey KEYS/{key}_DO_NOT_USE.pem {options} -in {digest} \
                 -out {key}.{digest}"
            ));
            assert_eq!(made.status, Some(0), "{key}: {made:?}");
        }
    }
    let both = "--signature rsa-2048.digest --signature ed25519.digest";
    bench.good(&format!(
        "attach unsigned {both} --metadata-signature rsa-2048.metadata \
         --metadata-signature ed25519.metadata attached"
    ));
    assert!(bench.read("attached") == bench.read("signed"));
    for (metadata, reason) in [
        ("", "takes 2 metadata signatures, not 0"),
        (
            " --metadata-signature ed25519.metadata",
            "takes 2 metadata signatures, not 1",
        ),
        (
            " --metadata-signature ed25519.metadata --metadata-signature rsa-2048.metadata",
            "in the same order",
        ),
    ] {
        let stderr = bench.refused(&format!("attach unsigned {both}{metadata} o"));
        assert!(stderr.contains(reason), "{stderr}");
    }
    // Swapped digests attach, since nothing is checked, but do not verify.
    bench.good(
        "attach unsigned --signature rsa-2048.metadata --metadata-signature rsa-2048.digest o",
    );
    let stderr = bench.refused("verify --public-key KEYS/rsa-2048.pub.pem o");
    assert!(stderr.contains("the signature is refused"), "{stderr}");

    bench.good("sign --private-key KEYS/rsa-2048_DO_NOT_USE.pem signed again");
    bench.good("verify --public-key KEYS/rsa-2048.pub.pem again");
    bench.refused("verify --public-key KEYS/ed25519.pub.pem again");

    bench.good("generate --new new.img --out v1");
    let stderr = bench.refused("hash v1 --signature-sizes 64 --metadata-out m");
    assert!(stderr.contains("leave out --metadata-out"), "{stderr}");
    let stderr = bench
        .refused("attach v1 --signature ed25519.digest --metadata-signature ed25519.metadata o");
    assert!(
        stderr.contains("takes 0 metadata signatures, not 1"),
        "{stderr}"
    );
}

#[test]
fn a_delta_reads_the_old_image_and_writes_another() {
    let bench = Bench::new();
    let old = noise(3, 4 * 4096);
    let new = [&old[8192..], &old[..8192]].concat();
    let info = |bytes: &[u8]| ImageInfo {
        size: bytes.len().try_into().unwrap(),
        sha256: Sha256::digest(bytes).into(),
    };
    let copy = PreparedOperation {
        kind: PreparedKind::SourceCopy(PreparedSource {
            blocks: vec![Blocks { start: 2, count: 2 }, Blocks { start: 0, count: 2 }],
            sha256: Sha256::digest(&new).into(),
        }),
        destination: vec![Blocks { start: 0, count: 4 }],
        blob: None,
    };
    let parts = Parts {
        partition: Some(PreparedPart {
            old: Some(info(&old)),
            new: info(&new),
            operations: vec![copy],
        }),
        ..Parts::default()
    };
    let scratch = Scratch::new(Cursor::new(Vec::new()));
    let mut file = File::create(bench.path("d")).unwrap();
    let mut draft = parts.draft(Profile::V2Aosp, scratch).unwrap();
    draft.sign(&[], &mut file).unwrap();
    bench.write("old.img", &old);
    bench.write("other.img", &new);

    let stderr = bench.refused("apply --allow-unsigned --target t.img d");
    assert!(stderr.contains("give the old partition that it was made from with --old"));
    let stderr = bench.refused("apply --allow-unsigned --old other.img --target t.img d");
    assert!(stderr.contains("is not the old partition"), "{stderr}");
    let stderr = bench.refused("apply --allow-unsigned --old old.img --target old.img d");
    assert!(stderr.contains("would be two things at once"), "{stderr}");
    assert!(!bench.exists("t.img"));
    bench.good("apply --allow-unsigned --old old.img --target t.img d");
    assert!(bench.read("t.img") == new);
    assert!(bench.read("old.img") == old);

    let shown: serde_json::Value = serde_json::from_str(&bench.good("show --json d")).unwrap();
    assert_eq!(shown["kind"], "delta");
    assert_eq!(shown["source_bytes"], old.len());
    let text = bench.good("show d");
    assert!(text.contains("format version 2.6,"), "{text}");
    assert!(text.contains("read of the old images"), "{text}");
}

/// Another program's view of the manifest. Not every machine has `protoc`.
#[test]
fn protoc_reads_what_is_written() {
    let bench = bench();
    bench.good("generate --new new.img --kernel vmlinuz --release-version 1.2.3 --out u");
    let payload = bench.read("u");
    let size = u64::from_be_bytes(payload[12..20].try_into().unwrap());
    let manifest = &payload[24..24 + usize::try_from(size).unwrap()];
    let child = Command::new("protoc")
        .arg("--decode_raw")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let Ok(mut child) = child else {
        println!("there is no protoc here: skipped");
        return;
    };
    child.stdin.take().unwrap().write_all(manifest).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    for words in [
        "3: 4096\n",
        "12: 0\n",
        "13 {\n  1: \"usr\"",
        "  1: \"kernel\"",
        "200 {\n  3: \"1.2.3\"",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
}
