//! Full payloads of version 2.
//!
//! Chunks of zeros become one ZERO for each run of them. Others are compressed with
//! Zstandard at level 19 in chunks of 4 MiB, so large that they cost a few percent
//! against one stream over everything, so small that machines decode several at a
//! time in little memory. For other readers of the format the chunks have 2 MiB and
//! the smaller of bzip2 and xz.

use std::io::{Read, Seek, Write};
use std::num::NonZeroUsize;

use bzip2::write::BzEncoder;
use liblzma::stream::{Check, Stream};
use liblzma::write::XzEncoder;
use sha2::{Digest, Sha256};

use crate::extent::size;
use crate::make::chunks::{Chunks, Source};
use crate::make::scratch::Scratch;
use crate::make::{
    BLOCK_SIZE, Blocks, Draft, MakeError, Parts, PreparedKind, PreparedOperation, PreparedPart,
    Profile,
};
use crate::{ImageInfo, pipeline};

const ZSTD_CHUNK_SIZE: u64 = 4 << 20;
const ZSTD_LEVEL: i32 = 19;
const AOSP_CHUNK_SIZE: u64 = 2 << 20;
/// Beyond this preset only the window grows, and no chunk is larger than this one's.
const XZ_PRESET: u32 = 6;

pub(super) fn full_v2<S: Read + Write + Seek>(
    image: Source<'_>,
    kernel: Option<Source<'_>>,
    named: Vec<(String, Source<'_>)>,
    profile: Profile,
    mut scratch: Scratch<S>,
    threads: NonZeroUsize,
) -> Result<Draft<S>, MakeError> {
    let partition = replace_all("image", image, profile, &mut scratch, threads)?;
    let kernel = kernel
        .map(|kernel| replace_all("kernel", kernel, profile, &mut scratch, threads))
        .transpose()?;
    let named = named
        .into_iter()
        .map(|(name, source)| {
            let part = replace_all("partition", source, profile, &mut scratch, threads)?;
            Ok((name, part))
        })
        .collect::<Result<_, MakeError>>()?;
    let parts = Parts {
        partition: Some(partition),
        kernel,
        named,
        ..Parts::default()
    };
    parts.draft(profile, scratch)
}

fn replace_all<S: Write>(
    what: &'static str,
    source: Source<'_>,
    profile: Profile,
    scratch: &mut Scratch<S>,
    threads: NonZeroUsize,
) -> Result<PreparedPart, MakeError> {
    let chunk_size = match profile {
        Profile::V2Aosp => AOSP_CHUNK_SIZE,
        Profile::V1 | Profile::V2 => ZSTD_CHUNK_SIZE,
    };
    let image_size = source.size;
    let mut chunks = Chunks::new(what, source, chunk_size);
    let mut operations: Vec<PreparedOperation> = Vec::new();
    let mut start = 0;
    pipeline::in_order(
        threads,
        || chunks.next(),
        |chunk| compress(profile, chunk),
        |chunk| {
            let blocks = Blocks {
                start,
                count: chunk.blocks,
            };
            start += chunk.blocks;
            let Some(packed) = chunk.packed else {
                write_zeros(&mut operations, blocks);
                return Ok(());
            };
            operations.push(PreparedOperation {
                kind: packed.kind,
                destination: vec![blocks],
                blob: Some(scratch.append_hashed(&packed.blob, packed.sha256)?),
            });
            Ok(())
        },
    )?;
    Ok(PreparedPart {
        old: None,
        new: ImageInfo {
            size: image_size,
            sha256: chunks.sha256(),
        },
        operations,
    })
}

/// Zeros right behind others need no operation of their own.
fn write_zeros(operations: &mut Vec<PreparedOperation>, blocks: Blocks) {
    if let Some(last) = operations.last_mut()
        && matches!(last.kind, PreparedKind::Zero)
        && let Some(run) = last.destination.last_mut()
    {
        run.count += blocks.count;
        return;
    }
    operations.push(PreparedOperation {
        kind: PreparedKind::Zero,
        destination: vec![blocks],
        blob: None,
    });
}

/// A chunk as it goes into the payload.
struct Chunk {
    blocks: u64,
    /// `None` for a chunk of zeros.
    packed: Option<Packed>,
}

struct Packed {
    kind: PreparedKind,
    blob: Vec<u8>,
    sha256: [u8; 32],
}

fn compress(profile: Profile, chunk: Vec<u8>) -> Chunk {
    let blocks = size(chunk.len()).div_ceil(BLOCK_SIZE.into());
    let packed = chunk.iter().any(|byte| *byte != 0).then(|| {
        let candidates = match profile {
            Profile::V2Aosp => vec![
                (PreparedKind::ReplaceBz, bzip2(&chunk)),
                (PreparedKind::ReplaceXz, xz(&chunk)),
            ],
            Profile::V1 | Profile::V2 => vec![(PreparedKind::ReplaceZstd, zstandard(&chunk))],
        };
        let (kind, blob) = candidates
            .into_iter()
            .filter(|(_, blob)| blob.len() < chunk.len())
            .min_by_key(|(_, blob)| blob.len())
            .unwrap_or((PreparedKind::Replace, chunk));
        Packed {
            kind,
            sha256: Sha256::digest(&blob).into(),
            blob,
        }
    });
    Chunk { blocks, packed }
}

fn bzip2(chunk: &[u8]) -> Vec<u8> {
    let mut encoder = BzEncoder::new(Vec::new(), bzip2::Compression::best());
    encoder
        .write_all(chunk)
        .and_then(|()| encoder.finish())
        .expect("writing to memory does not fail")
}

/// With CRC32, since small decoders know no other check.
fn xz(chunk: &[u8]) -> Vec<u8> {
    let stream = Stream::new_easy_encoder(XZ_PRESET, Check::Crc32)
        .expect("the preset is known and memory suffices");
    let mut encoder = XzEncoder::new_stream(Vec::new(), stream);
    encoder
        .write_all(chunk)
        .and_then(|()| encoder.finish())
        .expect("writing to memory does not fail")
}

/// The size of the chunk is told in advance, so that the frame's window is no
/// larger than the chunk.
fn zstandard(chunk: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(chunk, ZSTD_LEVEL).expect("compressing in memory does not fail")
}
