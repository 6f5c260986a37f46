//! Runs operations on images.
//!
//! [`decode`] is the part that costs time and touches nothing, so a caller may run
//! it for several operations at once; [`apply`] writes, and must be called in
//! manifest order. Memory stays bounded: what is large is decompressed or patched
//! piece by piece straight into the image, and a MOVE or BSDIFF is held in memory
//! only when it overwrites what it reads (up to [`crate::Limits::source`]).

use std::io::Read;

use bzip2::bufread::BzDecoder;

use crate::bspatch::{self, Fault};
use crate::error::PayloadError;
use crate::extent;
use crate::image::{CHUNK, Image, chunk_length};
use crate::operation::{Operation, OperationKind};
use crate::span::{ExtentWriter, Source};

/// The data of one operation, ready for [`apply`].
#[derive(Clone, Debug)]
pub struct Decoded(Content);

#[derive(Clone, Debug)]
enum Content {
    /// What is to be written.
    Plain(Vec<u8>),
    /// Too large when decompressed to hold in memory.
    Bzip2(Vec<u8>),
    /// A patch, or nothing: the rest is in the image.
    Raw(Vec<u8>),
}

impl Decoded {
    /// Results up to this size are decompressed by [`decode`], larger ones by [`apply`].
    const IN_MEMORY: usize = 4 << 20;
}

/// Decompresses the data of an operation, never to more than its destination holds.
///
/// Pure and slow: bzip2 makes some 20 MB per second.
///
/// # Errors
/// [`PayloadError::OperationFailed`] when the data is damaged, too long or
/// followed by something else.
pub fn decode(operation: &Operation, data: Vec<u8>) -> Result<Decoded, PayloadError> {
    let content = match operation.kind {
        OperationKind::Replace => Content::Plain(data),
        OperationKind::ReplaceBz if data.is_empty() => Content::Plain(data),
        OperationKind::ReplaceBz => {
            let room = extent::total(&operation.destination);
            match usize::try_from(room) {
                Ok(room) if room <= Decoded::IN_MEMORY => {
                    let mut plain = Vec::with_capacity(room);
                    decompress(operation, &data, &mut |chunk| {
                        let fits = chunk.len() <= room - plain.len();
                        if fits {
                            plain.extend_from_slice(chunk);
                        }
                        Ok(fits)
                    })?;
                    Content::Plain(plain)
                }
                _ => Content::Bzip2(data),
            }
        }
        OperationKind::Move { .. } | OperationKind::Bsdiff { .. } | OperationKind::Skipped => {
            Content::Raw(data)
        }
    };
    Ok(Decoded(content))
}

/// Runs one operation on the image that it is for.
///
/// Reads and writes only inside the image. In a delta the image is the copy of
/// the old one that is being turned into the new one, so order is everything.
///
/// # Errors
/// [`PayloadError::OutOfBounds`], `Read`, `Write`, or `OperationFailed` with the
/// decoder's reason. The image may be partly written then.
pub fn apply(
    operation: &Operation,
    block_size: u32,
    decoded: Decoded,
    image: &dyn Image,
) -> Result<(), PayloadError> {
    let index = operation.index;
    let mut writer = ExtentWriter::new(index, image, &operation.destination);
    match (&operation.kind, decoded.0) {
        (OperationKind::Skipped, _) => return Ok(()),
        (OperationKind::Replace | OperationKind::ReplaceBz, Content::Plain(data)) => {
            if !writer.write(&data)? {
                return Err(operation.failed(TOO_LONG));
            }
        }
        (OperationKind::ReplaceBz, Content::Bzip2(data)) => {
            decompress(operation, &data, &mut |chunk| writer.write(chunk))?;
        }
        (OperationKind::Move { source }, Content::Raw(_)) => {
            let length = extent::total(source);
            let source = Source::open(operation, image, length)?;
            copy(&source, &mut writer)?;
        }
        (
            OperationKind::Bsdiff {
                source_length,
                target_length,
                ..
            },
            Content::Raw(patch),
        ) => {
            let source = Source::open(operation, image, *source_length)?;
            let mut write = |chunk: &[u8]| match writer.write(chunk)? {
                true => Ok(()),
                false => Err(TOO_LONG.into()),
            };
            bspatch::patch(&patch, &source, *target_length, &mut write).map_err(
                |fault| match fault {
                    Fault::Patch(cause) => operation.failed(cause),
                    Fault::Image(error) => error,
                },
            )?;
        }
        _ => {
            return Err(operation.failed("its data was decoded for another operation"));
        }
    }
    writer.finish(block_size)
}

/// Copies the whole source; a MOVE's destination has the same length.
fn copy(source: &Source, writer: &mut ExtentWriter) -> Result<(), PayloadError> {
    let mut buffer = vec![0; CHUNK];
    let mut position = 0;
    while position < source.length() {
        let chunk = &mut buffer[..chunk_length(source.length() - position)];
        source.read(position, chunk)?;
        writer.write(chunk)?;
        position += extent::size(chunk.len());
    }
    Ok(())
}

/// Decompresses one bzip2 stream into `write`, which returns `false` when it is full.
fn decompress(
    operation: &Operation,
    data: &[u8],
    write: &mut dyn FnMut(&[u8]) -> Result<bool, PayloadError>,
) -> Result<(), PayloadError> {
    let mut decoder = BzDecoder::new(data);
    let mut buffer = vec![0; CHUNK];
    loop {
        let length = decoder
            .read(&mut buffer)
            .map_err(|error| operation.failed(error))?;
        if length == 0 {
            break;
        }
        if !write(&buffer[..length])? {
            return Err(operation.failed(TOO_LONG));
        }
    }
    if decoder.into_inner().is_empty() {
        Ok(())
    } else {
        Err(operation.failed("bytes follow the bzip2 stream"))
    }
}

const TOO_LONG: &str = "the result is longer than its destination";
