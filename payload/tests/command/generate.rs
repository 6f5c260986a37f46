//! Payloads out of images, and back.

use std::fs;

use crate::{Bench, noise};

const BLOCK: usize = 4096;
const MIB: usize = 1 << 20;

#[test]
fn what_is_generated_verifies_and_applies_to_the_same_bytes() {
    let text = b"all work and no play makes jack a dull boy\n".repeat(50_000);
    for (name, image, kernel) in [
        ("one block", vec![7; BLOCK], None),
        ("one block of noise", noise(1, BLOCK), None),
        ("exactly one chunk", noise(2, MIB), None),
        ("a chunk and a block", vec![0; MIB + BLOCK], None),
        ("incompressible", noise(3, 2 * MIB + 5 * BLOCK), None),
        ("all zeros", vec![0; 6 * MIB], None),
        ("text", text[..512 * BLOCK].to_vec(), None),
        ("tiny kernel", vec![1; BLOCK], Some(b"k".to_vec())),
        ("kernel of one block", vec![1; BLOCK], Some(noise(4, BLOCK))),
        (
            "odd kernel",
            noise(5, 3 * BLOCK),
            Some(noise(6, MIB + 4095)),
        ),
        ("kernel of zeros", vec![0; MIB], Some(vec![0; 3 * MIB + 1])),
    ] {
        let bench = Bench::new();
        bench.write("new.img", &image);
        let mut generate = "generate --new new.img --private-key KEYS/ed25519_DO_NOT_USE.pem \
                            --out u.payload"
            .to_owned();
        let mut apply =
            "apply --public-key KEYS/ed25519.pub.pem --target out.img u.payload".to_owned();
        if let Some(kernel) = &kernel {
            bench.write("vmlinuz", kernel);
            generate += " --kernel vmlinuz";
            apply += " --target-kernel out.kernel";
        }
        bench.good(&generate);
        bench.good("verify --public-key KEYS/ed25519.pub.pem u.payload");
        bench.good(&apply);
        assert!(bench.read("out.img") == image, "{name}: image");
        if let Some(kernel) = &kernel {
            assert!(bench.read("out.kernel") == *kernel, "{name}: kernel");
        }
    }
}

#[test]
fn the_same_input_gives_the_same_file() {
    let bench = Bench::new();
    bench.write("new.img", &[noise(1, 3 * MIB), vec![0; 3 * MIB]].concat());
    bench.write("vmlinuz", &noise(2, 12_345));
    for out in ["a", "b"] {
        bench.good(&format!(
            "generate --new new.img --kernel vmlinuz \
             --private-key KEYS/rsa-2048_DO_NOT_USE.pem \
             --private-key KEYS/ed25519_DO_NOT_USE.pem --out {out}"
        ));
    }
    assert!(bench.read("a") == bench.read("b"));
}

#[test]
fn a_refused_image_leaves_nothing_behind_and_an_older_payload_alone() {
    let bench = Bench::new();
    bench.write("odd.img", &[0; 5000]);
    bench.write("old.payload", b"older");
    let stderr = bench.refused("generate --new odd.img --out new.payload");
    assert_eq!(
        stderr,
        "payload: make a payload of odd.img: image size 5000 is not a multiple of the block size \
         4096; 3192 bytes of padding are missing at its end\n"
    );
    bench.refused("generate --new odd.img --out old.payload");
    assert_eq!(bench.read("old.payload"), b"older");
    assert_eq!(bench.files(), ["odd.img", "old.payload"]);
}

#[test]
fn an_output_that_is_a_device_is_refused_instead_of_replaced() {
    let bench = Bench::new();
    bench.write("new.img", &[0; BLOCK]);
    let stderr = bench.refused("generate --new new.img --out /dev/null");
    assert_eq!(
        stderr,
        "payload: /dev/null exists and is not a regular file\n"
    );
}

#[test]
fn payloads_can_be_read_by_others() {
    use std::os::unix::fs::PermissionsExt;
    let bench = Bench::new();
    bench.write("new.img", &[0; BLOCK]);
    bench.write("plain", b"");
    bench.good("generate --new new.img --out u.payload");
    let mode = |name| bench.path(name).metadata().unwrap().permissions().mode();
    assert_eq!(mode("u.payload"), mode("plain"), "as the umask says");
}

#[test]
fn what_is_read_is_never_replaced() {
    let bench = Bench::new();
    let keys = format!("{}/../fixtures/keys", env!("CARGO_MANIFEST_DIR"));
    fs::copy(
        format!("{keys}/ed25519_DO_NOT_USE.pem"),
        bench.path("k.pem"),
    )
    .unwrap();
    fs::hard_link(bench.path("k.pem"), bench.path("linked")).unwrap();
    bench.write("new.img", &[7; BLOCK]);
    bench.write("s.sig", &[0; 64]);
    bench.good("generate --new new.img --format v2 --out u");
    let before = ["k.pem", "new.img", "s.sig", "u"].map(|name| (name, bench.read(name)));
    for (arguments, out, input) in [
        (
            "generate --new new.img --private-key k.pem --out k.pem",
            "k.pem",
            "k.pem",
        ),
        (
            "generate --new new.img --private-key k.pem --out linked",
            "linked",
            "k.pem",
        ),
        (
            "generate --new new.img --out ./new.img",
            "./new.img",
            "new.img",
        ),
        (
            "generate --new u --old new.img --out new.img",
            "new.img",
            "new.img",
        ),
        (
            "generate --new u --kernel new.img --out new.img",
            "new.img",
            "new.img",
        ),
        (
            "generate --new u --partition oem=new.img --out new.img",
            "new.img",
            "new.img",
        ),
        ("sign --private-key k.pem u k.pem", "k.pem", "k.pem"),
        ("hash u --signature-sizes 64 --out u", "u", "u"),
        (
            "hash u --signature-sizes 64 --out d --metadata-out ./d",
            "./d",
            "d",
        ),
        (
            "attach u --signature s.sig --metadata-signature s.sig s.sig",
            "s.sig",
            "s.sig",
        ),
    ] {
        assert_eq!(
            bench.refused(arguments),
            format!("payload: {out} is in use as {input} already; write to another file\n"),
            "{arguments}"
        );
    }
    for (name, bytes) in before {
        assert!(bench.read(name) == bytes, "{name}");
    }
    // A payload may get its signatures in place.
    bench.good("sign --private-key k.pem u u");
}
