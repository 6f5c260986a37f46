//! Deltas make the new image out of the old one, whatever happened between the
//! two; they can be interrupted between any two operations; and they never start
//! from other bytes than those they were made of.
//!
//! A tool that is missing leaves out its kind of image, and says so.
//! `DELTA_MUTATIONS` changes how many pairs of images are tried.

#![allow(clippy::unwrap_used, reason = "all of this is a test")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Cursor};
use std::num::NonZeroUsize;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, OnceLock};
use std::time::Instant;

use payload::make::delta::Delta;
use payload::make::{Parts, Profile, Scratch};
use payload::recompress::Encoders;
use payload::{
    Event, Extent, Image, Limits, Operation, OperationKind, PayloadError, PayloadStream,
    PendingOperation, ResumePoint, Sources, Targets, Trust, apply, apply_payload, decode,
    verify_payload,
};

const BLOCK: usize = 4096;

/// An image in memory.
struct Memory(Mutex<Vec<u8>>);

impl Memory {
    fn of(bytes: &[u8]) -> Self {
        Self(Mutex::new(bytes.to_vec()))
    }

    /// A partition with the remains of something else.
    fn used(length: usize) -> Self {
        Self::of(&vec![0xee; length])
    }

    fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().clone()
    }
}

impl Image for Memory {
    fn len(&self) -> u64 {
        self.0.lock().unwrap().len().try_into().unwrap()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let bytes = self.0.lock().unwrap();
        let start = usize::try_from(offset).unwrap();
        let range = bytes.get(start..start + buf.len());
        buf.copy_from_slice(range.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut bytes = self.0.lock().unwrap();
        let start = usize::try_from(offset).unwrap();
        let range = bytes.get_mut(start..start + data.len());
        range
            .ok_or(io::ErrorKind::UnexpectedEof)?
            .copy_from_slice(data);
        Ok(())
    }
}

fn encoders() -> &'static Encoders {
    static ENCODERS: OnceLock<Encoders> = OnceLock::new();
    ENCODERS.get_or_init(|| Encoders::available(Path::new("/nonexistent")))
}

fn anyone() -> Trust {
    Trust::allow_unsigned(vec![])
}

fn make(old: &[u8], new: &[u8], profile: Profile, threads: usize) -> Vec<u8> {
    let mut scratch = Scratch::new(Cursor::new(Vec::new()));
    let mut names = Vec::new();
    let delta = Delta {
        what: "image",
        old: Some(&Memory::of(old)),
        new: &Memory::of(new),
        encoders: encoders(),
        profile,
        threads: NonZeroUsize::new(threads).unwrap(),
    };
    let (part, _) = delta.part(&mut scratch, &mut names, &mut |_| ()).unwrap();
    let parts = Parts {
        partition: Some(part),
        encoders: names,
        ..Parts::default()
    };
    let mut payload = Vec::new();
    let mut draft = parts.draft(profile, scratch).unwrap();
    draft.sign(&[], &mut payload).unwrap();
    payload
}

/// What `payload` makes of `old`, by the way that a file is applied.
fn applied(payload: &[u8], old: &[u8]) -> Vec<u8> {
    let mut reader = Cursor::new(payload);
    let verified = verify_payload(&mut reader, &anyone(), &mut |_| ()).unwrap();
    let size = verified.manifest().partition.new.size;
    let target = Memory::used(usize::try_from(size).unwrap());
    let targets = Targets {
        partition: &target,
        kernel: None,
        pcr_policy: None,
        named: &[],
    };
    let source = Memory::of(old);
    let sources = Sources {
        partition: Some(&source),
        kernel: None,
        named: &[],
        encoders: Some(encoders()),
    };
    apply_payload(&mut reader, &verified, &targets, &sources, &mut |_| ()).unwrap();
    assert!(source.bytes() == old, "the old image is only read");
    target.bytes()
}

struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap() % limit.max(1)
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[3]
    }

    fn noise(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.byte()).collect()
    }

    /// Words of a small language.
    fn text(&mut self, length: usize) -> Vec<u8> {
        let mut text = Vec::new();
        while text.len() < length {
            let word = self.below(900);
            for letter in 0..2 + word % 7 {
                text.push(b'a' + u8::try_from((word >> letter) % 26).unwrap());
            }
            text.push(if self.below(12) == 0 { b'\n' } else { b' ' });
        }
        text.truncate(length);
        text
    }

    /// Like machine code: addresses that grow, between a few frequent bytes.
    fn code(&mut self, length: usize) -> Vec<u8> {
        let mut code = Vec::new();
        let mut address = 0x0040_0000_u32;
        while code.len() < length {
            for _ in 0..self.below(12) {
                code.push([0x48, 0x89, 0xe8, 0x0f, 0x8b][self.below(5)]);
            }
            address += u32::try_from(self.below(300)).unwrap();
            code.extend(address.to_le_bytes());
        }
        code.truncate(length);
        code
    }

    fn stretch(&mut self, length: usize) -> Vec<u8> {
        match self.below(4) {
            0 => self.noise(length),
            1 => self.code(length),
            2 => vec![if self.below(3) == 0 { self.byte() } else { 0 }; length],
            _ => self.text(length),
        }
    }

    /// Bytes of all sorts, often without regard to blocks.
    fn plain(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < length {
            let length = 1 + self.below(length / 3);
            bytes.extend(self.stretch(length));
        }
        bytes.truncate(length);
        bytes
    }

    /// A length, mostly short, sometimes in whole blocks.
    fn length(&mut self, most: usize) -> usize {
        let magnitude = self.below(17);
        let length = 1 + self.below((2 << magnitude).min(most));
        if self.below(3) == 0 {
            length.next_multiple_of(BLOCK).min(most)
        } else {
            length
        }
    }

    /// One change, of those that happen to images and files.
    fn change(&mut self, bytes: &mut Vec<u8>) {
        let at = self.below(bytes.len());
        let length = self.length(bytes.len() - at);
        match self.below(8) {
            0 => drop(bytes.drain(at..at + length)),
            1 => {
                let fresh = self.stretch(length);
                bytes.splice(at..at, fresh);
            }
            2 => {
                let moved: Vec<_> = bytes.drain(at..at + length).collect();
                let to = self.below(bytes.len() + 1);
                bytes.splice(to..to, moved);
            }
            3 => {
                let again = bytes[at..at + length].to_vec();
                let to = self.below(bytes.len() + 1);
                bytes.splice(to..to, again);
            }
            4 => {
                let fresh = self.stretch(length);
                bytes[at..at + length].copy_from_slice(&fresh);
            }
            5 => {
                // A few bytes far apart, as addresses change.
                for place in (at..bytes.len()).step_by(1 + length) {
                    bytes[place] = bytes[place].wrapping_add(3);
                }
            }
            6 => bytes.truncate(at.max(bytes.len() / 2)),
            _ => {
                let fresh = self.stretch(length);
                bytes.extend(fresh);
            }
        }
        bytes.truncate(1 << 20);
        if bytes.is_empty() {
            bytes.push(0);
        }
    }

    fn changed(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        for _ in 0..1 << self.below(4) {
            self.change(&mut bytes);
        }
        bytes
    }
}

/// Images are whole blocks.
fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().max(1).next_multiple_of(BLOCK), 0);
    bytes
}

/// The kinds of images, each with the tool (none for plain bytes) and its options that
/// make one of a tree, or with the images of a fixture.
const KINDS: [(&str, &str, &[&str]); 9] = [
    ("plain", "", &[]),
    ("squashfs gzip", "mksquashfs", &["-comp", "gzip"]),
    (
        "squashfs zstd",
        "mksquashfs",
        &["-comp", "zstd", "-Xcompression-level", "6"],
    ),
    ("squashfs xz", "mksquashfs", &["-comp", "xz", "-b", "32K"]),
    ("squashfs lz4", "mksquashfs", &["-comp", "lz4", "-Xhc"]),
    ("erofs lz4", "mkfs.erofs", &["-zlz4"]),
    ("erofs lz4hc", "mkfs.erofs", &["-zlz4hc,9", "-C16384"]),
    ("erofs zstd", FIXTURE, &["old-zstd.img", "new-zstd.img"]),
    ("erofs lzma", FIXTURE, &["old-lzma.img", "new-lzma.img"]),
];

const FIXTURE: &str = "fixtures/erofs";

type Tree = BTreeMap<String, Vec<u8>>;

fn tree(random: &mut Random) -> Tree {
    let files = (0..10).map(|index| {
        let length = random.length(20_000);
        (format!("file-{index}"), random.plain(length))
    });
    let mut tree: Tree = files.collect();
    tree.insert("text".to_owned(), random.text(50_000));
    tree.insert("code".to_owned(), random.code(30_000));
    tree
}

/// Another release of a tree: files change, go, come and are renamed.
fn next_release(random: &mut Random, tree: &Tree) -> Tree {
    let mut tree = tree.clone();
    for _ in 0..1 + random.below(4) {
        let names: Vec<_> = tree.keys().cloned().collect();
        let name = &names[random.below(names.len())];
        match random.below(6) {
            0 if names.len() > 3 => drop(tree.remove(name)),
            1 => {
                let length = random.length(40_000);
                let bytes = random.plain(length);
                tree.insert(format!("new-{}", random.below(99)), bytes);
            }
            2 => {
                let bytes = tree.remove(name).unwrap();
                tree.insert(format!("moved-{}", random.below(99)), bytes);
            }
            _ => {
                let bytes = random.changed(&tree[name]);
                tree.insert(name.clone(), bytes);
            }
        }
    }
    tree
}

/// None when the tool is not there.
fn build(tree: &Tree, tool: &str, options: &[&str]) -> Option<Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    let image = folder.path().join("image");
    fs::create_dir(&root).unwrap();
    for (name, bytes) in tree {
        fs::write(root.join(name), bytes).unwrap();
    }
    let mut command = Command::new(tool);
    if tool == "mksquashfs" {
        let fixed = ["-noappend", "-quiet", "-no-progress", "-all-root"];
        command.args([&root, &image]).args(fixed).args(options);
    } else {
        command
            .args(["--quiet", "-T0"])
            .args(options)
            .args([&image, &root]);
    }
    match command.output() {
        Ok(output) if output.status.success() => Some(padded(fs::read(image).unwrap())),
        other => {
            println!("left out: {tool} {options:?}: {other:?}");
            None
        }
    }
}

/// A machine that lacks an encoder refuses a payload that names it.
#[test]
fn an_encoder_that_no_operation_needs_is_not_named() {
    let mut random = Random::new(77);
    let options = ["-comp", "xz", "-b", "1M"];
    let image = |content| {
        let tree = BTreeMap::from([("file".to_owned(), content)]);
        build(&tree, "mksquashfs", &options)
    };
    let noise = random.noise(200_000);
    // Only xz makes much of it, so that it stays as it is stored.
    let code = random.code(2 << 20);
    let Some((old, new)) = image(noise).zip(image(code)) else {
        return;
    };
    let payload = make(&old, &new, Profile::V2, 2);
    assert!(applied(&payload, &old) == new);
    let verified = verify_payload(&mut Cursor::new(&payload), &anyone(), &mut |_| ()).unwrap();
    let manifest = verified.manifest();
    let is_plain = |operation: &Operation| operation.kind == OperationKind::ReplaceZstd;
    assert!(
        manifest
            .operations()
            .all(|(_, operation)| is_plain(operation))
    );
    assert_eq!(manifest.encoders.len(), 0);
}

/// Two releases, or none when the tool is not there.
fn releases(seed: u64, tool: &str, options: &[&str]) -> Option<[Vec<u8>; 2]> {
    let random = &mut Random::new(seed);
    if tool.is_empty() {
        let length = (32 << 10) + random.below(if seed.is_multiple_of(8) { 480 } else { 96 } << 10);
        let old = random.plain(length);
        let new = random.changed(&old);
        return Some([padded(old), padded(new)]);
    }
    if tool == FIXTURE {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("..")
            .join(FIXTURE);
        let image = |name: &str| fs::read(folder.join(name)).unwrap();
        return Some([image(options[0]), image(options[1])]);
    }
    let old = tree(random);
    let new = next_release(random, &old);
    Some([build(&old, tool, options)?, build(&new, tool, options)?])
}

/// How many pairs of images are tried, over all kinds.
fn mutations() -> usize {
    let count = std::env::var("DELTA_MUTATIONS").ok();
    count.map_or(1000, |count| count.parse().unwrap())
}

/// Makes and applies `count` deltas between images of a kind.
fn mutate(kind: &str, tool: &str, options: &[&str], count: usize) {
    let started = Instant::now();
    let mut pair = None;
    let (mut of_images, mut of_payloads) = (0, 0);
    for seed in 0..u64::try_from(count).unwrap() {
        // Each pair of releases is used a few times: as it is, then damaged, which
        // leaves some structures that make sense and some that do not.
        if tool.is_empty() || seed % 8 == 0 {
            pair = releases(seed, tool, options);
        }
        let Some([old, new]) = &pair else {
            return;
        };
        let random = &mut Random::new(seed ^ 0x5eed);
        let [old, new] = match seed % 8 {
            0 => [old.clone(), new.clone()],
            1 | 2 => [padded(random.changed(old)), new.clone()],
            3 | 4 => [old.clone(), padded(random.changed(new))],
            5 => [old.clone(), padded(random.changed(old))],
            6 => [new.clone(), old.clone()],
            _ => [padded(random.changed(old)), padded(random.changed(new))],
        };
        let standard = seed % 16 == 9;
        let profile = if standard {
            Profile::V2Aosp
        } else {
            Profile::V2
        };
        let payload = make(&old, &new, profile, 2);
        assert!(
            applied(&payload, &old) == new,
            "{kind}, seed {seed}: another image came out"
        );
        of_images += new.len();
        of_payloads += payload.len();
    }
    println!(
        "{kind}: {count} pairs, {of_images} bytes of images, {of_payloads} of payloads, {:?}",
        started.elapsed()
    );
}

// Two tests, so that two cores share the work.

#[test]
fn whatever_changed_the_new_bytes_come_out() {
    let (kind, tool, options) = KINDS[0];
    mutate(kind, tool, options, mutations() / 2);
}

#[test]
fn whatever_changed_the_new_compressed_image_comes_out() {
    let compressed = &KINDS[1..];
    for (kind, tool, options) in compressed {
        let count = (mutations() / 2).div_ceil(compressed.len());
        mutate(kind, tool, options, count);
    }
}

/// Each encoder looks at much of what follows its cluster, and every few clusters are as
/// they were: more plain bytes are looked at than written.
#[test]
fn small_clusters_that_change_here_and_there_stay_within_what_an_operation_makes() {
    let random = &mut Random::new(12);
    let text = random.text(6 << 20);
    let mut changed = text.clone();
    for place in (0..changed.len()).step_by(30_000) {
        changed[place] = b'!';
    }
    let build = |text: &[u8]| {
        let tree = Tree::from([("text".to_owned(), text.to_vec())]);
        build(&tree, "mkfs.erofs", &["-zlz4"])
    };
    let (Some(old), Some(new)) = (build(&text), build(&changed)) else {
        return;
    };
    let payload = make(&old, &new, Profile::V2, 2);
    assert!(applied(&payload, &old) == new);
    println!("{} of {} bytes", payload.len(), new.len());
    assert!(payload.len() < new.len() / 20, "{} bytes", payload.len());
}

/// What is compressed is compared, not how.
#[test]
fn the_same_files_by_other_compressors_cost_little() {
    for names in [
        &["new-zstd.img", "new-lzma.img"],
        &["new-lzma.img", "new-zstd.img"],
    ] {
        let [old, new] = releases(0, FIXTURE, names).unwrap();
        let payload = make(&old, &new, Profile::V2, 2);
        assert!(applied(&payload, &old) == new, "{names:?}");
        println!("{names:?}: {} of {} bytes", payload.len(), new.len());
        assert!(
            payload.len() < new.len() / 10,
            "{names:?}: {} bytes",
            payload.len()
        );
    }
}

#[test]
fn the_number_of_threads_changes_nothing() {
    for (kind, tool, options) in &KINDS[..2] {
        let Some([mut old, mut new]) = releases(77, tool, options) else {
            continue;
        };
        // More than one window.
        let random = &mut Random::new(78);
        let more = padded(random.code(5 << 20));
        new.extend(padded(random.changed(&more)));
        old.extend(more);
        for profile in [Profile::V2, Profile::V2Aosp] {
            let one = make(&old, &new, profile, 1);
            assert!(one == make(&old, &new, profile, 5), "{kind}, {profile:?}");
            assert!(applied(&one, &old) == new, "{kind}, {profile:?}");
        }
    }
}

/// The next operation, if there is one.
fn next(stream: &mut PayloadStream) -> Option<PendingOperation> {
    match stream.next_event().unwrap() {
        Some(Event::Operation(pending)) => Some(pending),
        Some(other) => panic!("{other:?} between operations"),
        None => None,
    }
}

fn run(pending: PendingOperation, target: &Memory, old: &Memory) {
    let operation = pending.operation;
    let decoded = decode(&operation, pending.data, Some(old), encoders()).unwrap();
    apply(&operation, 4096, decoded, target, Some(old)).unwrap();
}

/// A payload with its name and the images before and after it.
type Payload = (String, Vec<u8>, Vec<u8>, Vec<u8>);

/// Payloads to look at operation by operation.
fn samples() -> Vec<Payload> {
    let mut samples = Vec::new();
    for (kind, tool, options) in KINDS {
        let Some([mut old, mut new]) = releases(5, tool, options) else {
            continue;
        };
        // Behind the image, something for operations of every kind.
        let random = &mut Random::new(6);
        let [here, there] = [random.noise(5 * BLOCK), padded(random.code(20 * BLOCK))];
        old.extend([&here[..], &there].concat());
        new.extend(random.noise(3 * BLOCK));
        new.extend(vec![0; 40 * BLOCK]);
        new.extend(padded(random.changed(&there)));
        new.extend(here);
        for profile in [Profile::V2, Profile::V2Aosp] {
            let payload = make(&old, &new, profile, 2);
            let name = format!("{kind}, {profile:?}");
            samples.push((name, payload, old.clone(), new.clone()));
        }
    }
    samples
}

#[test]
fn a_delta_can_stop_between_any_two_operations() {
    let mut boundaries = 0;
    for (name, payload, old, new) in samples() {
        let old = Memory::of(&old);
        for stop_after in 1.. {
            let target = Memory::used(new.len());
            let mut stream = PayloadStream::new(Limits::default(), &anyone());
            stream.push(&payload);
            let Some(Event::Metadata { raw, .. }) = stream.next_event().unwrap() else {
                panic!("a payload begins with its metadata");
            };
            let mut point: Option<ResumePoint> = None;
            let mut done = 0;
            while done < stop_after
                && let Some(pending) = next(&mut stream)
            {
                point = Some(pending.resume.clone());
                run(pending, &target, &old);
                done += 1;
            }
            if done < stop_after {
                break;
            }
            // The next one had begun when the power went.
            if let Some(pending) = next(&mut stream) {
                run(pending, &target, &old);
            }
            drop(stream);
            let point = point.unwrap();
            let mut resumed =
                PayloadStream::resume(Limits::default(), &anyone(), &point, &raw).unwrap();
            resumed.push(&payload[usize::try_from(point.offset()).unwrap()..]);
            while let Some(pending) = next(&mut resumed) {
                run(pending, &target, &old);
            }
            resumed.finish().unwrap();
            assert!(target.bytes() == new, "{name}: stopped after {stop_after}");
            boundaries += 1;
        }
    }
    println!("{boundaries} boundaries");
    assert!(boundaries > 20);
}

/// Offsets in the old image of what an operation reads: all, or some of each extent.
fn read_offsets(extents: &[Extent]) -> Vec<usize> {
    let mut offsets = Vec::new();
    for extent in extents {
        let Extent::Run { offset, length } = *extent else {
            continue;
        };
        let start = usize::try_from(offset).unwrap();
        let length = usize::try_from(length).unwrap();
        offsets.extend((start..start + length).step_by((length / 24).max(1)));
        offsets.push(start + length - 1);
    }
    offsets
}

#[test]
fn a_changed_byte_of_the_source_is_refused_before_anything_is_written() {
    let (mut refused, mut unread) = (0, 0);
    for (name, payload, old, new) in samples() {
        let mut stream = PayloadStream::new(Limits::default(), &anyone());
        stream.push(&payload);
        stream.next_event().unwrap();
        while let Some(pending) = next(&mut stream) {
            let operation = &pending.operation;
            let attempt = |offset: usize| {
                let mut other = old.clone();
                other[offset] ^= 1 << (offset % 8);
                let other = Memory::of(&other);
                let target = Memory::used(new.len());
                let decoded = decode(operation, pending.data.clone(), Some(&other), encoders());
                let written = decoded.and_then(|decoded| {
                    apply(operation, 4096, decoded, &target, Some(&other)).map(|()| true)
                });
                (written, target)
            };
            let offsets = read_offsets(operation.source());
            for offset in &offsets {
                let (written, target) = attempt(*offset);
                assert!(
                    matches!(
                        written,
                        Err(PayloadError::OperationSourceMismatch { index, .. })
                            if index == operation.index
                    ),
                    "{name}: {} {}: byte {offset}: {written:?}",
                    operation.index,
                    operation.name()
                );
                assert!(target.bytes().iter().all(|byte| *byte == 0xee), "{name}");
                refused += 1;
            }
            // What it does not read is none of its business, which also shows that the
            // refusals above have no other reason.
            let reads = |offset: usize| {
                operation.source().iter().any(|extent| match *extent {
                    Extent::Run {
                        offset: start,
                        length,
                    } => {
                        let offset = u64::try_from(offset).unwrap();
                        (start..start + length).contains(&offset)
                    }
                    Extent::Hole { .. } => false,
                })
            };
            if let Some(offset) = (0..old.len()).step_by(BLOCK).find(|offset| !reads(*offset)) {
                assert!(attempt(offset).0.unwrap(), "{name}");
                unread += 1;
            }
        }
    }
    println!("{refused} changed bytes refused, {unread} changes beside taken");
    assert!(refused > 200 && unread > 8);
}
