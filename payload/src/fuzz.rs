//! Entry points for fuzzing: each takes any bytes and must neither panic, nor take
//! long, nor take much memory.
//!
//! Here and not in a crate of their own, since they go straight to parsers that are
//! private. Most inputs are the bytes themselves. Where a checksum or a compressor
//! would keep mutations from what lies behind it, the input is what comes after,
//! and is wrapped here.

use std::io;
use std::sync::LazyLock;

use sha2::{Digest, Sha256};

use crate::delta::Delta;
use crate::extent::{Extent, size};
use crate::header::{Format, Header};
use crate::operation::{Blob, OldBytes, Operation, OperationKind};
use crate::recompress::{Codec, EncoderSpec, Encoders, Method};
use crate::{Event, Image, Limits, Manifest, PayloadStream, Trust};
use crate::{apply, decode, filesystem};

/// An entry point.
pub type Target = fn(&[u8]);

/// All entry points by name; each has a folder in `payload/fuzz/corpus`.
pub const TARGETS: [(&str, Target); 12] = [
    ("stream", stream),
    ("manifest", manifest),
    ("replace_bz", replace_bz),
    ("replace_xz", replace_xz),
    ("replace_zstd", replace_zstd),
    ("bsdiff", bsdiff),
    ("delta_blob", delta_blob),
    ("delta_streams", delta_streams),
    ("codecs", codecs),
    ("squashfs", image),
    ("erofs", image),
    ("sparse_image", sparse_image),
];

/// A whole payload of either version, unsigned, with its operations run.
fn stream(input: &[u8]) {
    let limits = Limits {
        window: 1 << 20,
        destinations: 1 << 20,
        sources: 1 << 20,
        ..Limits::default()
    };
    let mut stream = PayloadStream::new(limits, &Trust::allow_unsigned(Vec::new()));
    stream.push(input);
    let mut block_size = 4096;
    while let Ok(Some(event)) = stream.next_event() {
        match event {
            Event::Metadata { manifest, .. } => block_size = manifest.block_size,
            Event::Operation(pending) => {
                run(&pending.operation, pending.data, block_size);
            }
        }
    }
    let _ = stream.finish();
}

/// A manifest of version 2, with the header that fits it.
fn manifest(input: &[u8]) {
    let header = Header {
        format: Format::V2,
        manifest_size: size(input.len()),
        metadata_signature_size: 0,
    };
    if let Ok(manifest) = Manifest::parse(&header, input, &Limits::default()) {
        // What it promises to those who use it.
        for (_, part) in manifest.parts() {
            if let Some(tree) = &part.hash_tree {
                assert!(tree.tree().end <= part.new.size && tree.data().end <= part.new.size);
            }
        }
        let blobs: u64 = manifest.operations().map(|(_, o)| o.blob.length).sum();
        assert!(blobs <= manifest.blobs_size);
        for (_, operation) in manifest.operations() {
            let written: u64 = operation.destination.iter().map(Extent::length).sum();
            assert!(operation.bytes_written() <= written);
        }
    }
}

fn replace_bz(input: &[u8]) {
    replace(OperationKind::ReplaceBz, input);
}

fn replace_xz(input: &[u8]) {
    replace(OperationKind::ReplaceXz, input);
}

fn replace_zstd(input: &[u8]) {
    replace(OperationKind::ReplaceZstd, input);
}

/// A BSDIFF40 patch of [`SOURCE`].
fn bsdiff(input: &[u8]) {
    let kind = OperationKind::SourceBsdiff {
        source: OldBytes {
            extents: vec![Extent::Run {
                offset: 0,
                length: size(SOURCE.len()),
            }],
            sha256: Sha256::digest(&*SOURCE).into(),
        },
        source_length: size(SOURCE.len()),
        target_length: size(RESULT),
    };
    replace(kind, input);
}

/// The data of a DELTA or RECOMPRESS operation as it is.
fn delta_blob(input: &[u8]) {
    if let Ok(delta) = Delta::parse(input) {
        let _ = delta.run(SOURCE.clone(), RESULT, &[]);
    }
}

/// Its six streams, plain, each after two bytes of length: their compressor is no
/// obstacle then. The last one is whatever is left.
fn delta_streams(input: &[u8]) {
    let encoders: Vec<_> = ENCODERS.iter().filter_map(|spec| HERE.get(spec)).collect();
    if let Ok(delta) = Delta::parse(&wrapped(input)) {
        let total = delta.pieces.iter().map(crate::delta::Piece::length).sum();
        let _ = delta.run(SOURCE.clone(), total, &encoders);
    }
}

fn wrapped(input: &[u8]) -> Vec<u8> {
    let mut rest = input;
    let mut lengths = Vec::new();
    let mut streams = Vec::new();
    for index in 0..6 {
        let length = match rest.split_first_chunk() {
            Some((length, after)) if index < 5 => {
                rest = after;
                usize::from(u16::from_le_bytes(*length)).min(rest.len())
            }
            _ => rest.len(),
        };
        let (stream, after) = rest.split_at(length);
        rest = after;
        for _ in 0..2 {
            let mut left = length;
            while left >= 0x80 {
                lengths.push(u8::try_from(left & 0x7f).unwrap_or(0) | 0x80);
                left >>= 7;
            }
            lengths.push(u8::try_from(left).unwrap_or(0));
        }
        streams.extend_from_slice(stream);
    }
    [&[1, 0, 0, 0, 0][..], &lengths, &streams].concat()
}

/// A block of the codec that the first byte says.
fn codecs(input: &[u8]) {
    let Some((&first, block)) = input.split_first() else {
        return;
    };
    let codec = Codec::ALL[usize::from(first) % Codec::ALL.len()];
    let limit = match codec {
        Codec::MicroLzma => BLOCK,
        _ => RESULT,
    };
    if let Ok(plain) = codec.decode(block, limit) {
        assert!(plain.len() <= limit);
    }
}

/// An image of any filesystem.
fn image(input: &[u8]) {
    if let Some(Ok(layout)) = filesystem::recognise(input) {
        let mut end = 0;
        for block in &layout.blocks {
            assert!(block.offset >= end, "blocks overlap");
            end = block.end();
        }
        assert!(end <= size(input.len()), "a block reaches out of the image");
    }
}

/// An image of which only some stretches are told, each after three bytes of offset
/// and two of length: the structures of btrfs and of kernels lie far apart.
fn sparse_image(input: &[u8]) {
    image(&spread(input));
}

fn spread(input: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = input;
    while let Some((&[a, b, c, d, e], after)) = rest.split_first_chunk() {
        let start = usize::from(a) | usize::from(b) << 8 | usize::from(c) << 16;
        let length = usize::from(u16::from_le_bytes([d, e])).min(after.len());
        let (stretch, after) = after.split_at(length);
        rest = after;
        if bytes.len() < start + length {
            bytes.resize(start + length, 0);
        }
        bytes[start..start + length].copy_from_slice(stretch);
    }
    bytes
}

/// Bytes that operations may make here.
const RESULT: usize = 96 << 10;
/// Plain bytes of the blocks here.
const BLOCK: usize = 16 << 10;

/// What patches start from: a block of each codec at a multiple of 4096, then text.
static SOURCE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let text: Vec<u8> = (0..3000_u32)
        .flat_map(|i| format!("line {} of a text\n", i * i % 977).into_bytes())
        .collect();
    let mut source = Vec::new();
    for spec in ENCODERS.iter() {
        let block = HERE
            .get(spec)
            .and_then(|encoder| encoder.encode(&text[..BLOCK], &[]).ok());
        source.extend(block.unwrap_or_default());
        source.resize(source.len().next_multiple_of(4096), 0);
    }
    source.extend(text);
    source
});

static HERE: LazyLock<Encoders> = LazyLock::new(Encoders::carried);

/// One of each codec, in their order.
static ENCODERS: LazyLock<Vec<EncoderSpec>> = LazyLock::new(|| {
    let methods = [
        Method::Zlib {
            level: 9,
            window: 15,
        },
        Method::Xz { dictionary: 8192 },
        Method::Zstd {
            level: 3,
            window: None,
            pieces: None,
        },
        Method::Lz4 { level: None },
        Method::MicroLzma {
            level: 3,
            dictionary: 4096,
            capacity: 16 << 10,
            ahead: 0,
        },
    ];
    let specs = methods.iter().flat_map(|method| HERE.versions(method));
    specs.collect()
});

fn replace(kind: OperationKind, data: &[u8]) {
    let operation = Operation {
        index: 0,
        kind,
        blob: Blob {
            offset: 0,
            length: size(data.len()),
            sha256: [0; 32],
        },
        destination: vec![Extent::Run {
            offset: 0,
            length: size(RESULT),
        }],
    };
    run(&operation, data.to_vec(), 4096);
}

fn run(operation: &Operation, data: Vec<u8>, block_size: u32) {
    if let Ok(decoded) = decode(operation, data, Some(&Old), &HERE) {
        let _ = apply(operation, block_size, decoded, &Nowhere, Some(&Old));
    }
}

/// An image that holds [`SOURCE`].
struct Old;

impl Image for Old {
    fn len(&self) -> u64 {
        size(SOURCE.len())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let bytes = start
            .checked_add(buf.len())
            .and_then(|end| SOURCE.get(start..end));
        buf.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
        panic!("the old image is written");
    }
}

/// A partition of 16 MiB that takes everything and keeps nothing.
struct Nowhere;

impl Image for Nowhere {
    fn len(&self) -> u64 {
        16 << 20
    }

    fn read_at(&self, _: u64, buf: &mut [u8]) -> io::Result<()> {
        buf.fill(0);
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let end = offset.checked_add(size(data.len()));
        assert!(end.is_some_and(|end| end <= self.len()), "written outside");
        Ok(())
    }
}

/// Changes inputs; the same numbers give the same changes.
#[derive(Debug)]
pub struct Mutator(u64);

impl Mutator {
    /// Starts a sequence of changes.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `limit`, or 0.
    pub fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap_or(0) % limit.max(1)
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[3]
    }

    /// A few changes of `seed`, some of which take bytes from `other`.
    #[must_use]
    pub fn mutate(&mut self, seed: &[u8], other: &[u8]) -> Vec<u8> {
        let mut bytes = seed.to_vec();
        for _ in 0..1 << self.below(5) {
            let at = self.below(bytes.len());
            let magnitude = self.below(10);
            let length = 1 + self.below(1 << magnitude);
            let end = bytes.len().min(at + length);
            if bytes.is_empty() {
                bytes.push(self.byte());
            }
            match self.below(9) {
                0 | 1 => bytes[at] ^= 1 << self.below(8),
                2 => bytes[at] = self.byte(),
                3 => {
                    // What lengths and offsets are made of.
                    let width = 1 << self.below(4);
                    let extremes = [0, 1, 0x7f, 0x80, 0xff, 0x7fff_ffff, u64::MAX, 4096];
                    let value = extremes[self.below(extremes.len())].to_le_bytes();
                    for (to, from) in bytes[at..].iter_mut().zip(&value[..width]) {
                        *to = *from;
                    }
                }
                4 => bytes[at] = bytes[at].wrapping_add(1 + self.byte() % 8),
                5 => drop(bytes.drain(at..end)),
                6 => {
                    let again = bytes[at..end].to_vec();
                    let to = self.below(bytes.len());
                    bytes.splice(to..to, again);
                }
                7 => {
                    let from = self.below(other.len());
                    let piece = &other[from..other.len().min(from + length)];
                    bytes.splice(at..end, piece.iter().copied());
                }
                _ => bytes.truncate(at.max(1)),
            }
        }
        bytes.truncate(1 << 20);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delta::{Copy, Piece, Script, SourceBlock};
    use std::fs;
    use std::path::PathBuf;
    use std::time::{Duration, Instant};

    fn corpus(target: &str) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("fuzz/corpus")
            .join(target)
    }

    fn seeds(target: &str) -> Vec<Vec<u8>> {
        let mut files: Vec<_> = fs::read_dir(corpus(target))
            .unwrap_or_else(|error| panic!("corpus of {target}: {error}"))
            .map(|entry| entry.unwrap().path())
            .collect();
        files.sort();
        files.iter().map(|file| fs::read(file).unwrap()).collect()
    }

    #[test]
    fn no_input_of_the_corpora_and_none_near_them_panics_or_takes_long() {
        for (name, target) in TARGETS {
            let seeds = seeds(name);
            assert!(!seeds.is_empty(), "{name}");
            let mut mutator = Mutator::new(1);
            let started = Instant::now();
            let mut runs = 0;
            let mut slowest = Duration::ZERO;
            while started.elapsed() < Duration::from_millis(400) || runs < seeds.len() {
                let seed = &seeds[runs % seeds.len()];
                let other = &seeds[mutator.below(seeds.len())];
                let input = if runs < seeds.len() {
                    seed.clone()
                } else {
                    mutator.mutate(seed, other)
                };
                let timed = || {
                    let one = Instant::now();
                    target(&input);
                    one.elapsed()
                };
                let mut one = timed();
                if one > Duration::from_secs(1) {
                    // Another program may have had the processor; so once more.
                    one = one.min(timed());
                }
                assert!(one < Duration::from_secs(1), "{name}, run {runs}: {one:?}");
                slowest = slowest.max(one);
                runs += 1;
            }
            println!("{name}: {runs} inputs, the slowest took {slowest:?}");
        }
    }

    /// The seeds lead to where they are meant to, else mutations of them would not either.
    #[test]
    fn the_seeds_get_through() {
        for seed in seeds("delta_streams") {
            let delta = Delta::parse(&wrapped(&seed)).unwrap();
            let total = delta.pieces.iter().map(Piece::length).sum();
            let encoders: Vec<_> = ENCODERS.iter().filter_map(|spec| HERE.get(spec)).collect();
            let error = delta.run(SOURCE.clone(), total, &encoders).unwrap_err();
            let error = error.to_string();
            assert!(
                error.contains("checksum") || error.contains("length than its destination"),
                "{error}"
            );
        }
        for seed in seeds("codecs") {
            let codec = Codec::ALL[usize::from(seed[0])];
            assert_eq!(codec.decode(&seed[1..], BLOCK).unwrap().len(), BLOCK);
        }
        for name in ["squashfs", "erofs"] {
            for (index, seed) in seeds(name).iter().enumerate() {
                let found = filesystem::recognise(seed).and_then(Result::ok);
                let found = found.map(|layout| layout.filesystem);
                assert_eq!(found, Some(name), "the {index}th");
            }
        }
        for seed in seeds("sparse_image") {
            let layout = filesystem::recognise(&spread(&seed)).unwrap().unwrap();
            assert!(!layout.blocks.is_empty(), "{}", layout.filesystem);
        }
        for seed in seeds("manifest") {
            let header = Header {
                format: Format::V2,
                manifest_size: size(seed.len()),
                metadata_signature_size: 0,
            };
            Manifest::parse(&header, &seed, &Limits::default()).unwrap();
        }
    }

    /// Writes seeds that only this crate can make:
    /// `cargo test -p payload --lib write_seeds -- --ignored`.
    #[test]
    #[ignore = "writes into the source tree"]
    fn write_seeds() {
        let write = |target: &str, name: &str, bytes: &[u8]| {
            fs::create_dir_all(corpus(target)).unwrap();
            fs::write(corpus(target).join(name), bytes).unwrap();
        };
        let codecs = Codec::ALL;
        let mut blocks = Vec::new();
        for (index, spec) in ENCODERS.iter().enumerate() {
            let plain = &SOURCE[SOURCE.len() - 40_000..][..BLOCK];
            let encoder = HERE.get(spec).unwrap();
            let text = &SOURCE[ENCODERS.len() * 4096..];
            let stored = encoder.encode(&text[..BLOCK], &[]).map_or(0, |b| b.len());
            let block = encoder.encode(plain, &[]).unwrap();
            let first = u8::try_from(index).unwrap();
            write(
                "codecs",
                &codecs[index].to_string(),
                &[&[first][..], &block].concat(),
            );
            blocks.push((stored, spec));
        }
        let mut start = 0;
        for (encoder, ((stored, _), codec)) in blocks.iter().zip(codecs).enumerate() {
            let block = SourceBlock {
                start,
                stored: *stored,
                plain: BLOCK,
                codec,
            };
            start += stored.next_multiple_of(4096);
            let old = codec
                .decode(&SOURCE[block.start..][..block.stored], block.plain)
                .unwrap();
            let mut target = old.clone();
            for place in (100..9000).step_by(700) {
                target[place] ^= 5;
            }
            let whole = [&SOURCE[..], &old].concat();
            let copies = [Copy {
                target: 50,
                source: SOURCE.len() + 50,
                length: 12_000,
            }];
            let delta = Delta {
                blocks: vec![block],
                pieces: vec![
                    Piece::Plain { length: 100 },
                    Piece::Encoded {
                        length: 14_000,
                        encoder,
                        ahead: 500,
                    },
                    Piece::Plain { length: 1000 },
                    Piece::Hidden {
                        length: target.len() - 15_100,
                    },
                ],
                script: Script::write(&target, &whole, &copies),
                crc: 0,
            };
            write(
                "delta_blob",
                &format!("{codec}"),
                &delta.to_bytes().unwrap(),
            );
            let mut streams = Vec::new();
            let [control, literals, gaps, tokens, escapes] = delta.script.streams();
            for stream in [&delta.layout(), control, literals, gaps, tokens, escapes] {
                if streams.len() < 5 {
                    streams.push(stream.clone());
                } else {
                    let framed = streams.iter().flat_map(|stream: &Vec<u8>| {
                        let length = u16::try_from(stream.len()).unwrap().to_le_bytes();
                        [&length[..], stream].concat()
                    });
                    let seed: Vec<u8> = framed.chain(stream.iter().copied()).collect();
                    write("delta_streams", &format!("{codec}"), &seed);
                }
            }
        }
        let plain = &SOURCE[SOURCE.len() - 9000..];
        let zstd = zstd::bulk::compress(plain, 19).unwrap();
        write("replace_zstd", "text", &zstd);
        let mut packed = Vec::new();
        let mut bzip2 = bzip2::read::BzEncoder::new(plain, bzip2::Compression::fast());
        io::copy(&mut bzip2, &mut packed).unwrap();
        write("replace_bz", "text", &packed);
        let mut xz = liblzma::read::XzEncoder::new(plain, 6);
        packed.clear();
        io::copy(&mut xz, &mut packed).unwrap();
        write("replace_xz", "text", &packed);
        let mut new = SOURCE.clone();
        new.drain(5000..6000);
        new[20_000] ^= 9;
        new.resize(RESULT, 1);
        packed.clear();
        // Decoders of the best level spend all their time on memory.
        qbsdiff::Bsdiff::new(&SOURCE, &new)
            .compression_level(1)
            .compare(&mut packed)
            .unwrap();
        write("bsdiff", "change", &packed);
    }
}
