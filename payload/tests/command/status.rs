//! Exit status and messages: 0 done, 1 refused with a reason, 2 usage.

use std::io;
use std::process::Stdio;

use crate::{Bench, noise};

fn bench() -> Bench {
    let bench = Bench::new();
    bench.write("new.img", &noise(1, 8192));
    bench.write("short.sig", &[0; 63]);
    bench.write("empty", b"");
    bench.good("generate --new new.img --out unsigned");
    bench.good("sign --private-key KEYS/ed25519_DO_NOT_USE.pem unsigned signed");
    bench
}

#[test]
fn refusals_have_status_1_and_one_line_that_says_why() {
    let bench = bench();
    let before = bench.files();
    for (arguments, reason) in [
        (
            "generate --new missing.img --out o",
            "payload: open missing.img: No such file or directory (os error 2)",
        ),
        (
            "generate --new new.img --kernel missing --out o",
            "payload: open missing: No such file or directory (os error 2)",
        ),
        (
            "generate --new . --out o",
            "payload: open .: is a directory",
        ),
        (
            "generate --new empty --out o",
            "payload: make a payload of empty: image is empty",
        ),
        (
            "generate --new new.img --kernel empty --out o",
            "payload: make a payload of new.img: kernel is empty",
        ),
        (
            "generate --new new.img --out missing/o",
            "payload: create a scratch file in missing: No such file or directory",
        ),
        (
            "generate --new new.img --private-key missing.pem --out o",
            "payload: read key missing.pem: No such file or directory (os error 2)",
        ),
        (
            "generate --new new.img --private-key KEYS/rsa-1024_DO_NOT_USE.pem --out o",
            "at least 2048 bit",
        ),
        (
            "sign --private-key KEYS/ed25519.pub.pem unsigned o",
            "it is a public key",
        ),
        (
            "verify --public-key KEYS/ed25519_DO_NOT_USE.pem signed",
            "not a PUBLIC KEY",
        ),
        ("verify --public-key empty signed", "the file is empty"),
        (
            "verify --public-key missing.pem signed",
            "payload: read key missing.pem: No such file",
        ),
        (
            "verify --public-key KEYS/rsa-1024.pub.pem signed",
            "1024 bits",
        ),
        (
            "verify --public-key KEYS/ed25519.pub.pem --threshold 2 signed",
            "2 of only 1 different keys",
        ),
        (
            "verify --public-key KEYS/ed25519.pub.pem --threshold 0 signed",
            "would accept anything",
        ),
        (
            "verify --public-key KEYS/ed25519.pub.pem unsigned",
            "payload: unsigned: the payload is not signed",
        ),
        (
            "verify --public-key KEYS/other-ed25519.pub.pem signed",
            "payload: signed: the signature is refused",
        ),
        (
            "verify --allow-unsigned --public-key KEYS/other-ed25519.pub.pem signed",
            "the signature is refused",
        ),
        ("verify --allow-unsigned new.img", "not an update payload"),
        (
            "verify --allow-unsigned empty",
            "the payload ends after 0 bytes",
        ),
        ("show new.img", "not an update payload"),
        ("show empty", "the file ends after 0 bytes"),
        (
            "attach unsigned --signature short.sig o",
            "no signature is 63 bytes long",
        ),
        (
            "attach unsigned --signature new.img o",
            "no signature is 513 bytes long",
        ),
    ] {
        let stderr = bench.refused(arguments);
        assert!(
            stderr.contains(reason),
            "payload {arguments}: {stderr:?} should say {reason:?}"
        );
        assert!(
            stderr.starts_with("payload: ") && stderr.lines().count() == 1,
            "{stderr}"
        );
    }
    assert_eq!(bench.files(), before, "nothing was left behind");
}

#[test]
fn mistakes_in_usage_have_status_2() {
    let bench = bench();
    for arguments in [
        "",
        "frobnicate",
        "generate",
        "generate --new new.img",
        "sign unsigned o",
        "sign --private-key KEYS/ed25519_DO_NOT_USE.pem unsigned",
        "verify signed",
        "verify --threshold 2 --allow-unsigned signed",
        "verify --public-key KEYS/ed25519.pub.pem --threshold x signed",
        "hash unsigned",
        "hash unsigned --signature-sizes 65",
        "hash unsigned --signature-sizes 256:",
        "hash unsigned --signature-sizes 256,64",
        "attach unsigned o",
        "apply --public-key KEYS/ed25519.pub.pem signed",
        "keygen --type dsa --out k.pem",
        "show",
    ] {
        let outcome = bench.payload(arguments);
        assert_eq!(outcome.status, Some(2), "payload {arguments}: {outcome:?}");
        assert_eq!(outcome.stdout, "", "payload {arguments}");
    }
}

#[test]
fn success_is_quiet_on_stdout_unless_data_was_asked_for() {
    let bench = bench();
    for (arguments, lines) in [
        ("generate --new new.img --out a", 0),
        ("sign --private-key KEYS/ed25519_DO_NOT_USE.pem a b", 0),
        ("verify --public-key KEYS/ed25519.pub.pem signed", 0),
        ("verify --allow-unsigned unsigned", 0),
        ("verify --allow-unsigned signed", 0),
        ("hash unsigned --signature-sizes 64", 1),
    ] {
        let outcome = bench.payload(arguments);
        assert_eq!(outcome.status, Some(0), "payload {arguments}: {outcome:?}");
        assert_eq!(outcome.stdout.lines().count(), lines, "payload {arguments}");
        assert!(!outcome.stderr.contains('\r'), "no progress bar in a pipe");
    }
}

#[test]
fn unsigned_payloads_are_said_to_be_unsigned() {
    let bench = bench();
    for (arguments, words) in [
        ("verify --allow-unsigned unsigned", "not signed"),
        ("verify --allow-unsigned signed", "signatures not checked"),
        (
            "verify --public-key KEYS/ed25519.pub.pem signed",
            "signed by 1 trusted key",
        ),
    ] {
        let outcome = bench.payload(arguments);
        assert!(outcome.stderr.contains(words), "{outcome:?}");
    }
}

#[test]
fn help_of_every_command_has_an_example() {
    let bench = Bench::new();
    for command in [
        "generate", "sign", "hash", "attach", "verify", "apply", "show", "keygen",
    ] {
        let help = bench.good(&format!("help {command}"));
        assert!(
            help.contains(&format!("payload {command} ")),
            "{command}: {help}"
        );
    }
    assert!(bench.good("--help").contains("Exit status: 0"));
}

#[test]
fn a_reader_that_went_away_is_no_panic() {
    let bench = bench();
    for arguments in [
        "show signed",
        "show --json signed",
        "hash unsigned --signature-sizes 64",
        "keygen --out k.pem",
        "--help",
    ] {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let mut command = bench.command(arguments);
        let child = command
            .stdout(writer)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "payload {arguments}");
        assert_eq!(output.stderr, b"", "payload {arguments}");
    }
}

#[test]
fn show_prints_tables_for_people_and_json_for_programs() {
    let bench = Bench::new();
    bench.write("new.img", &[0; 2 << 20]);
    bench.write("vmlinuz", &noise(1, 5000));
    bench.good(
        "generate --new new.img --kernel vmlinuz --private-key KEYS/rsa-2048_DO_NOT_USE.pem \
         --private-key KEYS/ed25519_DO_NOT_USE.pem --out u.payload",
    );
    let shown: serde_json::Value =
        serde_json::from_str(&bench.good("show --json u.payload")).unwrap();
    let size = bench.read("u.payload").len();
    assert_eq!(shown["size"], size);
    assert_eq!(shown["kind"], "full");
    assert_eq!(shown["block_size"], 4096);
    assert_eq!(shown["parts"][0]["target"], "partition");
    assert_eq!(shown["parts"][0]["new"]["size"], 2 << 20);
    assert_eq!(shown["parts"][0]["operations"]["REPLACE_BZ"]["count"], 2);
    assert_eq!(shown["parts"][1]["target"], "kernel");
    assert_eq!(
        shown["parts"][1]["operations"]["REPLACE"]["data_size"],
        5000
    );
    let signatures = serde_json::json!([
        { "version": 2, "kind": "RSA", "size": 256 },
        { "version": 3, "kind": "Ed25519", "size": 64 },
    ]);
    assert_eq!(shown["signatures"], signatures);

    let text = bench.good("show u.payload");
    for words in [
        "full payload",
        "REPLACE_BZ",
        "kernel",
        "Ed25519",
        &size.to_string(),
    ] {
        assert!(text.contains(words), "{text}");
    }
}
