//! Compressed images as their own tools make them: every block that is listed
//! decodes, and encoders make it again. A tool that is missing skips its test, and
//! says so.

#![allow(clippy::unwrap_used)]

use std::convert::Infallible;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use payload::filesystem::{self, CompressedBlock, Layout, plain_bytes};
use payload::recompress::{Codec, Encoders, Method, Sample};

/// A tree of files with what filesystems treat in different ways.
fn tree(directory: &Path) -> PathBuf {
    let root = directory.join("tree");
    let mut random = Random(7);
    fs::create_dir_all(root.join("many/deep/er")).unwrap();
    // Ends of every length, most of which share fragments or lie within inodes.
    for index in 0..150 {
        let length = random.below(6000);
        fs::write(root.join(format!("many/file-{index}")), random.text(length)).unwrap();
    }
    fs::write(root.join("empty"), "").unwrap();
    fs::write(root.join("text"), random.text(400_001)).unwrap();
    fs::write(root.join("other"), random.text(131_072)).unwrap();
    fs::write(root.join("many/deep/er/again"), random.text(150_000)).unwrap();
    fs::write(root.join("zeros"), vec![0; 400_000]).unwrap();
    let noise: Vec<u8> = (0..200_000).map(|_| random.byte()).collect();
    fs::write(root.join("noise"), &noise).unwrap();
    let mut mixed = random.text(200_000);
    mixed.extend(&noise[..70_000]);
    mixed.extend(random.text(200_000));
    fs::write(root.join("mixed"), mixed).unwrap();
    let mut sparse = File::create(root.join("sparse")).unwrap();
    sparse.write_all(&random.text(140_000)).unwrap();
    sparse.set_len(900_000).unwrap();
    std::os::unix::fs::symlink("text", root.join("link")).unwrap();
    fs::hard_link(root.join("text"), root.join("many/hard")).unwrap();
    let fifo = Command::new("mkfifo").arg(root.join("pipe")).status();
    assert!(fifo.is_ok_and(|status| status.success()));
    // Where attributes cannot be set, images are without.
    let _ = Command::new("setfattr")
        .args(["-n", "user.colour", "-v", "blue"])
        .arg(root.join("text"))
        .status();
    root
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap() % limit
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[3]
    }

    /// Words of a small language.
    fn text(&mut self, length: usize) -> Vec<u8> {
        let mut text = Vec::new();
        while text.len() < length {
            let word = self.below(3000);
            for letter in 0..2 + word % 7 {
                text.push(b'a' + u8::try_from((word >> letter) % 26).unwrap());
            }
            text.push(if self.below(12) == 0 { b'\n' } else { b' ' });
        }
        text.truncate(length);
        text
    }
}

/// Runs a tool; none when it is not there, or does not know what is asked of it.
fn tool(program: &str, arguments: &[&str], paths: &[&Path]) -> Option<()> {
    match Command::new(program).args(arguments).args(paths).output() {
        Ok(output) if output.status.success() => Some(()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            println!("skipped: {program} {arguments:?}: {}", said.trim());
            None
        }
        Err(error) => {
            println!("skipped: {program}: {error}");
            None
        }
    }
}

fn squashfs(directory: &Path, tree: &Path, options: &[&str]) -> Option<Vec<u8>> {
    let image = directory.join("squashfs");
    let fixed = ["-noappend", "-quiet", "-no-progress", "-mkfs-time", "0"];
    let status = Command::new("mksquashfs")
        .args([tree, &image])
        .args(fixed)
        .args(options)
        .output();
    match status {
        Ok(output) if output.status.success() => Some(fs::read(image).unwrap()),
        other => {
            println!("skipped: mksquashfs {options:?}: {other:?}");
            None
        }
    }
}

fn erofs(directory: &Path, tree: &Path, options: &[&str]) -> Option<Vec<u8>> {
    let image = directory.join("erofs");
    let _ = fs::remove_file(&image);
    let arguments = [&["--quiet", "-T0"], options].concat();
    tool("mkfs.erofs", &arguments, &[&image, tree])?;
    Some(fs::read(image).unwrap())
}

fn stored<'a>(image: &'a [u8], block: &CompressedBlock) -> &'a [u8] {
    let start = usize::try_from(block.offset).unwrap();
    &image[start..][..usize::try_from(block.length).unwrap()]
}

fn decode(image: &[u8], block: &CompressedBlock) -> Vec<u8> {
    let limit = usize::try_from(block.decoded_length).unwrap();
    block.codec.decode(stored(image, block), limit).unwrap()
}

/// Holds a layout to what it promises.
fn check(image: &[u8], layout: &Layout) {
    let mut end = 0;
    for block in &layout.blocks {
        assert!(block.offset >= end, "{block:?} overlaps the one before");
        end = block.end();
        assert!(block.hint < layout.candidates.len());
        let length = usize::try_from(block.decoded_length).unwrap();
        assert_eq!(decode(image, block).len(), length, "{block:?}");
    }
    assert!(end <= u64::try_from(image.len()).unwrap());
}

fn recognise(image: &[u8], filesystem: &str) -> Layout {
    let layout = filesystem::recognise(image).unwrap().unwrap();
    assert_eq!(layout.filesystem, filesystem);
    check(image, &layout);
    layout
}

/// How many blocks there are, and how many some encoder makes again.
fn reproduced(image: &[u8], layout: &Layout) -> (usize, usize) {
    let encoders = Encoders::available(Path::new("/nonexistent"));
    let mut made = 0;
    for (hint, methods) in layout.candidates.iter().enumerate() {
        let wanted = methods.iter().map(Method::ahead).max().unwrap_or(0);
        let of_list = layout.blocks.iter().filter(|block| block.hint == hint);
        let of_list: Vec<_> = of_list
            .map(|block| {
                let ahead: Result<_, Infallible> = layout.ahead(
                    block,
                    wanted,
                    |block| Ok(Some(decode(image, block))),
                    |offset, length| Ok(plain_bytes(image, offset, length)),
                );
                (block, decode(image, block), ahead.unwrap())
            })
            .collect();
        let samples = of_list.iter().map(|(block, plain, ahead)| Sample {
            stored: stored(image, block),
            plain,
            ahead,
        });
        let samples: Vec<_> = samples.collect();
        // What the first ranking does not make, a second one may.
        let mut left = samples;
        for _ in 0..3 {
            let few: Vec<_> = left.iter().step_by(left.len() / 6 + 1).copied().collect();
            let specs = encoders.rank(&few, methods);
            let before = left.len();
            left.retain(|sample| encoders.prove(*sample, &specs).is_none());
            made += before - left.len();
        }
        for sample in left {
            let length = (sample.stored.len(), sample.plain.len());
            println!("not made again, list {hint}: {length:?}");
        }
    }
    (layout.blocks.len(), made)
}

#[test]
fn blocks_of_squashfs_come_again() {
    let directory = tempfile::tempdir().unwrap();
    let tree = tree(directory.path());
    let cases: &[(&[&str], Codec)] = &[
        (&["-comp", "gzip"], Codec::Zlib),
        (
            &[
                "-comp",
                "gzip",
                "-Xcompression-level",
                "5",
                "-Xwindow-size",
                "12",
            ],
            Codec::Zlib,
        ),
        (&["-comp", "gzip", "-b", "1M", "-no-fragments"], Codec::Zlib),
        (&["-comp", "gzip", "-no-exports", "-noI"], Codec::Zlib),
        (&["-comp", "xz"], Codec::Xz),
        (&["-comp", "xz", "-Xdict-size", "50%"], Codec::Xz),
        (&["-comp", "lz4"], Codec::Lz4),
        (&["-comp", "lz4", "-Xhc"], Codec::Lz4),
        // The system's own libzstd is the one that mksquashfs uses.
        (&["-comp", "zstd"], Codec::Zstd),
        (&["-comp", "zstd", "-Xcompression-level", "19"], Codec::Zstd),
    ];
    for (options, codec) in cases {
        let Some(image) = squashfs(directory.path(), &tree, options) else {
            continue;
        };
        let layout = recognise(&image, "squashfs");
        assert!(layout.blocks.iter().all(|block| block.codec == *codec));
        let plain: u64 = layout
            .blocks
            .iter()
            .map(|b| u64::from(b.decoded_length))
            .sum();
        // Less the noise, which is stored plain.
        assert!(plain > 1_000_000, "{options:?}: {plain} bytes");
        let (all, made) = reproduced(&image, &layout);
        println!("{options:?}: {made} of {all} blocks, {plain} bytes");
        assert!(all > 15, "{options:?}");
        assert_eq!(made, all, "{options:?}");
    }
}

#[test]
fn clusters_of_erofs_come_again() {
    let directory = tempfile::tempdir().unwrap();
    let tree = tree(directory.path());
    // mkfs.erofs 1.5 takes `-Efragments` and `-Ededupe` without doing anything.
    let cases: &[(&[&str], u64)] = &[
        (&["-zlz4hc,12", "-C65536"], 900_000),
        (&["-zlz4hc"], 900_000),
        (&["-zlz4hc,6", "-C16384", "-Elegacy-compress"], 900_000),
        (&["-zlz4"], 900_000),
        (&["-zlz4", "-C1048576"], 900_000),
        (&["-zlz4hc", "-Elegacy-compress"], 900_000),
        (&["-zlz4hc,12", "-C65536", "-Eztailpacking"], 700_000),
    ];
    for (options, least) in cases {
        let Some(image) = erofs(directory.path(), &tree, options) else {
            continue;
        };
        let layout = recognise(&image, "erofs");
        let plain: u64 = layout
            .blocks
            .iter()
            .map(|b| u64::from(b.decoded_length))
            .sum();
        assert!(plain > *least, "{options:?}: {plain} bytes");
        let (all, made) = reproduced(&image, &layout);
        println!("{options:?}: {made} of {all} blocks, {plain} bytes");
        assert!(made * 100 >= all * 95, "{options:?}: {made} of {all}");
    }
}

/// An image of `fixtures/erofs`, made by a newer mkfs.erofs than Debian 12 has.
fn fixture(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/erofs");
    fs::read(folder.join(name)).unwrap()
}

#[test]
fn clusters_of_erofs_by_zstd_and_lzma_come_again() {
    // The lzma images keep ends of files in a packed one, and share what is double.
    for (name, codec, least) in [
        ("old-zstd.img", Codec::Zstd, 130_000),
        ("new-zstd.img", Codec::Zstd, 130_000),
        ("old-lzma.img", Codec::MicroLzma, 140_000),
        ("new-lzma.img", Codec::MicroLzma, 140_000),
    ] {
        let image = fixture(name);
        let layout = recognise(&image, "erofs");
        assert!(layout.blocks.iter().all(|block| block.codec == codec));
        let plain = layout.blocks.iter().map(|b| u64::from(b.decoded_length));
        let plain: u64 = plain.sum();
        let (all, made) = reproduced(&image, &layout);
        println!("{name}: {made} of {all} blocks, {plain} bytes");
        assert!(plain > least, "{name}: {plain} bytes");
        assert_eq!(made, all, "{name}");
    }
}

/// A btrfs image, which only the kernel compresses.
fn btrfs(directory: &Path, tree: &Path) -> Option<Vec<u8>> {
    let image = directory.join("btrfs");
    File::create(&image).unwrap().set_len(64 << 20).unwrap();
    let one = ["-q", "-f", "--mixed", "-m", "single", "-d", "single"];
    tool("mkfs.btrfs", &one, &[&image])?;
    let mount = directory.join("mount");
    fs::create_dir_all(&mount).unwrap();
    let options = ["-o", "loop,compress-force=zstd:15"];
    tool("mount", &options, &[&image, &mount])?;
    let copied = tool("cp", &["-a"], &[tree, &mount]);
    tool("umount", &[], &[&mount]).unwrap();
    copied?;
    Some(fs::read(image).unwrap())
}

#[test]
fn extents_of_btrfs_come_again_where_the_kernels_zstd_is_ours() {
    let directory = tempfile::tempdir().unwrap();
    let tree = tree(directory.path());
    let Some(image) = btrfs(directory.path(), &tree) else {
        return;
    };
    let layout = recognise(&image, "btrfs");
    let plain: u64 = layout
        .blocks
        .iter()
        .map(|b| u64::from(b.decoded_length))
        .sum();
    assert!(plain > 1_000_000, "{plain} bytes");
    let (all, made) = reproduced(&image, &layout);
    // Which zstd the kernel has is not ours to say: 1.5.7 from Linux 6.15 on.
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release
        .split('.')
        .map_while(|part| part.parse::<u32>().ok());
    if (numbers.next(), numbers.next()) >= (Some(6), Some(15)) {
        assert_eq!(made, all);
    } else {
        println!("linux {}: {made} of {all} blocks", release.trim());
    }
}

/// Small images of each kind, with structures of every form.
fn small(directory: &Path) -> Vec<Vec<u8>> {
    let root = directory.join("small");
    let mut random = Random(3);
    fs::create_dir_all(root.join("some")).unwrap();
    for index in 0..20 {
        let length = random.below(9000);
        fs::write(root.join(format!("some/{index}")), random.text(length)).unwrap();
    }
    fs::write(root.join("large"), random.text(150_000)).unwrap();
    let mut images = Vec::new();
    for options in [
        &["-comp", "gzip"][..],
        &["-comp", "zstd", "-Xcompression-level", "3"],
        &["-comp", "xz", "-b", "16K"],
        &["-comp", "lz4"],
    ] {
        images.extend(squashfs(directory, &root, options));
    }
    for options in [
        &["-zlz4hc,12", "-C65536"][..],
        &["-zlz4"],
        &["-zlz4", "-Elegacy-compress"],
        &["-zlz4hc", "-Eztailpacking"],
    ] {
        images.extend(erofs(directory, &root, options));
    }
    images.extend(["new-zstd.img", "old-lzma.img"].map(fixture));
    images
}

#[test]
fn damaged_images_neither_panic_nor_take_long_nor_list_what_does_not_decode() {
    let directory = tempfile::tempdir().unwrap();
    let mut images = small(directory.path());
    let whole = images.len();
    if let Some(mut image) = btrfs(directory.path(), &directory.path().join("small")) {
        // The rest is free.
        image.truncate(20 << 20);
        images.push(image);
    }
    let mut random = Random(11);
    let started = Instant::now();
    let mut slowest = Duration::ZERO;
    let mut survived = 0;
    for (index, image) in images.iter().enumerate() {
        let rounds = if index < whole { 400 } else { 60 };
        for round in 0..rounds {
            let mut damaged = image.clone();
            if round % 4 == 0 {
                let length = random.below(damaged.len());
                damaged.truncate(length);
            } else {
                // Often in the superblock, and often to an extreme.
                for _ in 0..1 << random.below(6) {
                    let at = match (round % 3, index < whole) {
                        (0, true) => random.below(1200.min(damaged.len())),
                        (0, false) => (64 << 10) + random.below(1200),
                        _ => random.below(damaged.len()),
                    };
                    damaged[at] = match random.below(4) {
                        0 => 0,
                        1 => 255,
                        2 => damaged[at] ^ 1 << random.below(8),
                        _ => random.byte(),
                    };
                }
            }
            let one = Instant::now();
            if let Some(Ok(layout)) = filesystem::recognise(&damaged) {
                survived += 1;
                check(&damaged, &layout);
            }
            slowest = slowest.max(one.elapsed());
        }
    }
    println!(
        "{survived} still read, {:?} in all, {slowest:?} the slowest",
        started.elapsed()
    );
    assert!(slowest < Duration::from_secs(20));
}

#[test]
fn what_is_no_image_is_none() {
    assert!(filesystem::recognise(&[]).is_none());
    assert!(filesystem::recognise(b"hsqs").is_none());
    assert!(filesystem::recognise(&[0; 100_000]).is_none());
}
