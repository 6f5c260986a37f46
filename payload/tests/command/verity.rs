//! dm-verity: what `payload` appends and machines build is what `veritysetup` makes.

use serde_json::Value;

use crate::{Bench, Outcome, noise};

const BLOCK: usize = 4096;

/// Images of one to three levels, and one that does not end with a block.
const SIZES: [usize; 4] = [BLOCK, 3 * BLOCK - 100, 129 * BLOCK, 16_500 * BLOCK];

fn bench(size: usize) -> Bench {
    let bench = Bench::new();
    // Little of it is costly to compress.
    let half = (size / 2).min(1 << 20);
    bench.write("new.img", &[noise(1, half), vec![0; size - half]].concat());
    bench
}

/// Generates `out` from `new.img` and returns the root hash that was printed.
fn generate(bench: &Bench, arguments: &str, out: &str) -> String {
    let printed = bench.good(&format!(
        "generate --new new.img {arguments} --private-key KEYS/ed25519_DO_NOT_USE.pem --out {out}"
    ));
    let hash = printed.trim_end().strip_prefix("usrhash=");
    let hash = hash.unwrap_or_else(|| panic!("{printed}")).to_owned();
    assert_eq!(hash.len(), 64, "{hash}");
    hash
}

fn apply(bench: &Bench, arguments: &str) {
    bench.good(&format!(
        "apply --public-key KEYS/ed25519.pub.pem --target applied.img {arguments}"
    ));
}

/// What the kernel would say to `applied.img`.
fn verify(bench: &Bench, data_end: usize, root_hash: &str) -> Outcome {
    bench.run(
        "veritysetup",
        &format!("verify --hash-offset={data_end} applied.img applied.img {root_hash}"),
    )
}

fn shown(bench: &Bench, payload: &str) -> Value {
    serde_json::from_str(&bench.good(&format!("show --json {payload}"))).unwrap()
}

#[test]
fn the_applied_image_is_what_veritysetup_makes_and_accepts() {
    for size in SIZES {
        for format in ["v2", "v2-aosp"] {
            // Compressing a large image with xz takes long and tells nothing new.
            if format == "v2-aosp" && size > 1 << 20 {
                continue;
            }
            let context = format!("{size} bytes, {format}");
            let bench = bench(size);
            let root_hash = generate(&bench, &format!("--verity --format {format}"), "u");
            apply(&bench, "u");
            let applied = bench.read("applied.img");
            let data_end = size.next_multiple_of(BLOCK);
            assert!(applied[..size] == bench.read("new.img"), "{context}");
            let good = verify(&bench, data_end, &root_hash);
            assert_eq!(good.status, Some(0), "{context}: {good:?}");

            let shown = shown(&bench, "u");
            assert_eq!(shown["release"]["verity_root_hash"], root_hash, "{context}");
            assert_eq!(shown["parts"][0]["new"]["size"], applied.len(), "{context}");
            let tree = &shown["parts"][0]["hash_tree"];
            assert_eq!(tree["data_blocks"], data_end / BLOCK, "{context}");
            assert_eq!(tree["offset"], data_end + BLOCK, "{context}");
            let uuid = &applied[data_end + 16..data_end + 32];
            let mut data = applied[..data_end].to_vec();
            data.resize(applied.len(), 0);
            bench.write("formatted.img", &data);
            let formatted = bench.run(
                "veritysetup",
                &format!(
                    "format --hash-offset={data_end} --data-blocks={} --salt={} --uuid={} \
                     formatted.img formatted.img",
                    data_end / BLOCK,
                    tree["salt"].as_str().unwrap(),
                    hyphenated(uuid),
                ),
            );
            assert_eq!(formatted.status, Some(0), "{context}: {formatted:?}");
            assert!(formatted.stdout.contains(&root_hash), "{formatted:?}");
            assert!(bench.read("formatted.img") == applied, "{context}");
        }
    }
}

fn hyphenated(uuid: &[u8]) -> String {
    let hex = hex::encode(uuid);
    let parts = [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ];
    parts.join("-")
}

#[test]
fn one_flipped_byte_anywhere_is_noticed() {
    let size = 300 * BLOCK;
    let bench = bench(size);
    let root_hash = generate(&bench, "--verity", "u");
    apply(&bench, "u");
    let good = bench.read("applied.img");
    // The first and last block of data, the top and the bottom of the tree.
    for place in [0, size - 1, size + BLOCK, good.len() - BLOCK] {
        let mut flipped = good.clone();
        flipped[place] ^= 1;
        bench.write("applied.img", &flipped);
        let bad = verify(&bench, size, &root_hash);
        assert_ne!(bad.status, Some(0), "byte {place}: {bad:?}");
    }
    bench.write("applied.img", &good);
    let digit = if root_hash.starts_with('0') { '1' } else { '0' };
    let other = format!("{digit}{}", &root_hash[1..]);
    assert_ne!(verify(&bench, size, &other).status, Some(0));
    assert_eq!(verify(&bench, size, &root_hash).status, Some(0));
}

#[test]
fn the_tree_is_built_and_not_carried() {
    let bench = bench(SIZES[3]);
    generate(&bench, "--verity", "u");
    let shown = shown(&bench, "u");
    let operations = shown["parts"][0]["operations"].as_object().unwrap();
    let written: u64 = operations
        .values()
        .map(|sum| sum["written"].as_u64().unwrap())
        .sum();
    let carried = u64::try_from(SIZES[3] + BLOCK).unwrap();
    assert_eq!(written, carried, "image and superblock");
    let tree = &shown["parts"][0]["hash_tree"];
    assert_eq!(tree["size"], (129 + 2 + 1) * BLOCK);
    let text = bench.good("show u");
    for words in [
        "verity root hash",
        "hash tree of",
        tree["salt"].as_str().unwrap(),
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
}

#[test]
fn a_delta_reads_an_image_with_its_tree_and_makes_another() {
    let bench = bench(200 * BLOCK);
    generate(&bench, "--verity", "full");
    apply(&bench, "full");
    let old = bench.read("applied.img");
    bench.write("old.img", &old);
    let mut new = bench.read("new.img");
    new[5 * BLOCK..6 * BLOCK].copy_from_slice(&noise(9, BLOCK));
    new.extend_from_slice(&noise(10, BLOCK));
    bench.write("new.img", &new);
    for format in ["v2", "v2-aosp"] {
        let arguments = format!("--old old.img --verity --format {format}");
        let root_hash = generate(&bench, &arguments, "d");
        apply(&bench, "--old old.img d");
        assert!(bench.read("applied.img")[..new.len()] == new, "{format}");
        let good = verify(&bench, new.len(), &root_hash);
        assert_eq!(good.status, Some(0), "{format}: {good:?}");
        assert!(
            bench.read("d").len() < 20 * BLOCK,
            "{format}: it is a delta"
        );
    }
}

#[test]
fn the_same_image_gives_the_same_tree_and_a_salt_can_be_chosen() {
    let bench = bench(10 * BLOCK);
    let first = generate(&bench, "--verity", "a");
    assert_eq!(generate(&bench, "--verity", "b"), first);
    assert!(bench.read("a") == bench.read("b"));
    let chosen = generate(&bench, "--verity --verity-salt 00ff", "c");
    assert_ne!(chosen, first);
    assert_eq!(shown(&bench, "c")["parts"][0]["hash_tree"]["salt"], "00ff");
    apply(&bench, "c");
    assert_eq!(verify(&bench, 10 * BLOCK, &chosen).status, Some(0));
    // No salt at all is a choice, too.
    let bare = bench
        .command("generate --new new.img --verity --out d --verity-salt")
        .arg("")
        .output()
        .unwrap();
    assert!(bare.status.success(), "{bare:?}");
    assert_eq!(shown(&bench, "d")["parts"][0]["hash_tree"]["salt"], "");
}

#[test]
fn an_image_with_a_tree_of_its_own_is_checked() {
    let bench = bench(150 * BLOCK);
    let root_hash = generate(&bench, "--verity", "u");
    apply(&bench, "u");
    let good = bench.read("applied.img");
    bench.write("new.img", &good);
    let told = generate(&bench, &format!("--verity-root-hash {root_hash}"), "v");
    assert_eq!(told, root_hash);
    assert_eq!(shown(&bench, "v")["release"]["verity_root_hash"], root_hash);
    assert!(shown(&bench, "v")["parts"][0]["hash_tree"].is_null());

    let refused =
        |arguments: String| bench.refused(&format!("generate --new new.img {arguments} --out o"));
    let other = "ab".repeat(32);
    let stderr = refused(format!("--verity-root-hash {other}"));
    let expected = format!(
        "the hash tree at offset 614400 has the root hash {root_hash}, not {other} as \
         --verity-root-hash says"
    );
    assert!(stderr.contains(&expected), "{stderr}");
    let stderr = refused(format!(
        "--verity-root-hash {other} --verity-hash-offset 4096"
    ));
    assert!(
        stderr.contains("verity data at offset 4096: there is no superblock"),
        "{stderr}"
    );
    let stderr = refused(format!(
        "--verity-root-hash {other} --verity-hash-offset 99999999"
    ));
    assert!(stderr.contains("the image has only"), "{stderr}");

    let mut damaged = good.clone();
    damaged[7] ^= 1;
    bench.write("new.img", &damaged);
    let stderr = refused(format!("--verity-root-hash {root_hash}"));
    assert!(
        stderr.contains("this block of the hash tree does not fit the data"),
        "{stderr}"
    );

    // A superblock that is elsewhere is not looked for.
    bench.write("new.img", &[&good[..], &[0; BLOCK]].concat()[BLOCK..]);
    let taken = bench.payload(&format!(
        "generate --new new.img --verity-root-hash {other} --out o"
    ));
    assert_eq!(taken.status, Some(0), "{taken:?}");
    assert!(taken.stderr.contains("is taken on trust"), "{taken:?}");
}

#[test]
fn what_cannot_be_is_refused() {
    let bench = bench(BLOCK);
    let hash = "0".repeat(64);
    for (arguments, reason) in [
        (
            "--format v1 --verity",
            "--verity needs format version 2; leave out --format v1",
        ),
        (
            &format!("--format v1 --verity-root-hash {hash}"),
            "--verity-root-hash needs format version 2; leave out --format v1",
        ),
        (
            &format!("--verity --verity-salt {}", "00".repeat(257)),
            "the salt has 257 bytes, the limit is 256",
        ),
    ] {
        let stderr = bench.refused(&format!("generate --new new.img {arguments} --out o"));
        assert!(stderr.contains(reason), "{stderr}");
    }
    for (arguments, reason) in [
        (
            "--verity --verity-salt 0",
            "give pairs of hexadecimal digits",
        ),
        ("--verity-root-hash 00", "give the 64 hexadecimal digits"),
        ("--verity-salt 00", "--verity"),
    ] {
        let outcome = bench.payload(&format!("generate --new new.img {arguments} --out o"));
        assert_eq!(outcome.status, Some(2), "{outcome:?}");
        assert!(outcome.stderr.contains(reason), "{outcome:?}");
    }
    assert!(!bench.exists("o"));
}
