//! Signatures: by our keys, by OpenSSL, in one step or in three.

use crate::{Bench, noise};

/// A bench with an unsigned payload.
fn bench() -> Bench {
    let bench = Bench::new();
    bench.write("new.img", &noise(1, 40_960));
    bench.write("vmlinuz", &noise(2, 5000));
    bench.good("generate --new new.img --kernel vmlinuz --out unsigned");
    bench
}

/// How OpenSSL signs and verifies a digest with each kind of key.
const KINDS: [(&str, usize, &str); 3] = [
    ("rsa-2048", 256, "-pkeyopt digest:sha256"),
    ("rsa-4096", 512, "-pkeyopt digest:sha256"),
    ("ed25519", 64, "-rawin"),
];

#[test]
fn openssl_accepts_our_signatures() {
    for (key, size, options) in KINDS {
        let bench = bench();
        bench.good(&format!(
            "sign --private-key KEYS/{key}_DO_NOT_USE.pem unsigned signed"
        ));
        bench.good(&format!(
            "hash signed --signature-sizes {size} --out digest"
        ));
        let signed = bench.read("signed");
        bench.write("signature", &signed[signed.len() - size..]);
        let verify = |digest| {
            bench.openssl(&format!(
                "pkeyutl -verify -pubin -inkey KEYS/{key}.pub.pem {options} -in {digest} \
                 -sigfile signature"
            ))
        };
        let good = verify("digest");
        assert_eq!(good.status, Some(0), "{key}: {good:?}");
        bench.write("other", &[0; 32]);
        assert_ne!(verify("other").status, Some(0), "{key}: checks nothing");
    }
}

#[test]
fn signatures_of_openssl_attach_to_the_file_that_signing_makes() {
    for (key, size, options) in KINDS {
        let bench = bench();
        bench.good(&format!(
            "sign --private-key KEYS/{key}_DO_NOT_USE.pem unsigned signed"
        ));
        let hash = bench.good(&format!(
            "hash unsigned --signature-sizes {size} --out digest"
        ));
        let digest = bench.read("digest");
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!((digest.len(), hash), (32, hex + "\n"));

        let made = bench.openssl(&format!(
            "pkeyutl -sign -inkey KEYS/{key}_DO_NOT_USE.pem {options} -in digest -out signature"
        ));
        assert_eq!(made.status, Some(0), "{key}: {made:?}");
        bench.good("attach unsigned --signature signature attached");
        assert!(bench.read("attached") == bench.read("signed"), "{key}");
        bench.good(&format!("verify --public-key KEYS/{key}.pub.pem attached"));
    }
}

#[test]
fn several_keys_sign_and_each_is_counted() {
    let bench = bench();
    bench.good(
        "sign --private-key KEYS/rsa-2048_DO_NOT_USE.pem \
         --private-key KEYS/ed25519_DO_NOT_USE.pem unsigned signed",
    );
    let (rsa, ed) = (
        "--public-key KEYS/rsa-2048.pub.pem",
        "--public-key KEYS/ed25519.pub.pem",
    );
    let (other, large) = (
        "--public-key KEYS/other-ed25519.pub.pem",
        "--public-key KEYS/rsa-4096.pub.pem",
    );
    for keys in [
        rsa.to_owned(),
        ed.to_owned(),
        format!("{other} {ed}"),
        format!("{rsa} {ed} --threshold 2"),
        format!("{rsa} {ed} {large} {other} --threshold 2"),
    ] {
        bench.good(&format!("verify {keys} signed"));
    }
    for keys in [
        other.to_owned(),
        large.to_owned(),
        format!("{other} {large}"),
        format!("{rsa} {other} --threshold 2"),
        format!("{rsa} {ed} {other} --threshold 3"),
    ] {
        let stderr = bench.refused(&format!("verify {keys} signed"));
        assert!(stderr.contains("refused"), "{keys}: {stderr}");
    }
}

#[test]
fn the_order_of_signature_sizes_does_not_change_the_digest() {
    let bench = bench();
    let one = bench.good("hash unsigned --signature-sizes 256:64");
    let other = bench.good("hash unsigned --signature-sizes 64:256");
    assert_eq!(one, other);
    let single = bench.good("hash unsigned --signature-sizes 256");
    assert_ne!(one, single, "the manifest tells the size");
}

#[test]
fn signing_replaces_every_older_signature() {
    let bench = bench();
    bench.good(
        "sign --private-key KEYS/rsa-4096_DO_NOT_USE.pem \
         --private-key KEYS/rsa-2048-pkcs1_DO_NOT_USE.pem unsigned first",
    );
    bench.good("sign --private-key KEYS/ed25519_DO_NOT_USE.pem first second");
    bench.good("sign --private-key KEYS/ed25519_DO_NOT_USE.pem unsigned direct");
    assert!(bench.read("second") == bench.read("direct"));
    bench.refused("verify --public-key KEYS/rsa-2048.pub.pem second");

    // In place.
    bench.good("sign --private-key KEYS/rsa-2048_DO_NOT_USE.pem second second");
    bench.good("verify --public-key KEYS/rsa-2048.pub.pem second");
}

#[test]
fn a_broken_payload_is_not_signed() {
    let bench = bench();
    let whole = bench.read("unsigned");
    let mut flipped = whole.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let longer = [&whole[..], b"x"].concat();
    for (bytes, reason) in [
        (&whole[..whole.len() - 1], "the payload ends"),
        (&flipped, "SHA-256"),
        (&longer, "bytes follow"),
        (b"not a payload at all", "CrAU"),
        (b"", "the payload ends"),
    ] {
        bench.write("broken", bytes);
        for command in [
            "sign --private-key KEYS/ed25519_DO_NOT_USE.pem broken out",
            "hash broken --signature-sizes 64 --out out",
        ] {
            let stderr = bench.refused(command);
            assert!(stderr.contains(reason), "{stderr:?} should say {reason:?}");
            assert!(!bench.exists("out"));
        }
    }
}

#[test]
fn keygen_makes_keys_that_sign_and_that_openssl_reads() {
    use std::os::unix::fs::PermissionsExt;
    for kind in ["ed25519", "rsa-2048"] {
        let bench = bench();
        let printed = bench.good(&format!("keygen --type {kind} --out my.key.pem"));
        assert_eq!(printed, "my.key.pub.pem\n");
        let mode = bench
            .path("my.key.pem")
            .metadata()
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        let public = bench.openssl("pkey -in my.key.pem -pubout");
        assert_eq!(public.stdout.as_bytes(), bench.read("my.key.pub.pem"));

        bench.good("sign --private-key my.key.pem unsigned signed");
        bench.good("verify --public-key my.key.pub.pem signed");

        let before = bench.read("my.key.pem");
        let stderr = bench.refused("keygen --out my.key.pem");
        assert!(stderr.contains("never overwritten"), "{stderr}");
        assert_eq!(bench.read("my.key.pem"), before);
    }
}
