//! Runs operations on images.
//!
//! [`decode`] is the part that costs time and writes nothing, so a caller may run
//! it for several operations at once; [`apply`] writes, and must be called in
//! manifest order. Memory stays bounded: what is large is decompressed, copied or
//! patched piece by piece straight into the image, and held in memory only when it
//! overwrites what it reads (up to [`crate::Limits::source`]) or is of our own
//! types (up to [`crate::Limits::window`]).
//!
//! What an operation reads of the old image is hashed before a byte of its result
//! is written.

mod decompress;

use sha2::{Digest, Sha256};

use crate::bspatch::{self, Fault};
use crate::delta::{self, Delta};
use crate::error::{Cause, PayloadError};
use crate::extent::{self, Extent};
use crate::image::{CHUNK, Image, chunk_length};
use crate::operation::{OldBytes, Operation, OperationKind, Window};
use crate::recompress::Encoders;
use crate::span::{ExtentReader, ExtentWriter, Source, write_zeros};
use decompress::{Compression, decompress};

/// The data of one operation, ready for [`apply`].
#[derive(Clone, Debug)]
pub struct Decoded(Content);

#[derive(Clone, Debug)]
enum Content {
    /// What is to be written.
    Plain(Vec<u8>),
    /// Too large when decompressed to hold in memory.
    Compressed(Compression, Vec<u8>),
    /// A patch, or nothing: the rest is in an image.
    Raw(Vec<u8>),
}

impl Decoded {
    /// Results up to this size are made by [`decode`], larger ones by [`apply`].
    const IN_MEMORY: u64 = 4 << 20;
}

/// About how many bytes an operation holds from when its data is there until it was
/// applied, for whoever decodes several at once within a bound.
///
/// Of what DELTA and RECOMPRESS decompress only the ceiling is known before their data
/// is read; what images usually compress to is taken, up to that ceiling.
#[must_use]
pub fn memory_needed(operation: &Operation) -> u64 {
    const RATIO: u64 = 3;
    let source = extent::total(operation.source());
    let written = operation.bytes_written();
    let in_memory = |bytes: u64| {
        if bytes <= Decoded::IN_MEMORY {
            bytes
        } else {
            0
        }
    };
    let beside_its_data = match &operation.kind {
        OperationKind::ReplaceBz | OperationKind::ReplaceXz | OperationKind::ReplaceZstd => {
            in_memory(written)
        }
        OperationKind::SourceCopy { .. } => in_memory(source),
        OperationKind::SourceBsdiff { .. } => in_memory(source) + in_memory(written),
        OperationKind::Delta { .. } | OperationKind::Recompress { .. } => {
            let at_most =
                |bytes: u64, ceiling: usize| bytes.saturating_mul(RATIO).min(extent::size(ceiling));
            at_most(source, delta::MOST_SOURCE) + at_most(written, delta::MOST_PLAIN) + written
        }
        OperationKind::Replace
        | OperationKind::Move { .. }
        | OperationKind::Bsdiff { .. }
        | OperationKind::Zero
        | OperationKind::Discard
        | OperationKind::Skipped => 0,
    };
    operation.blob.length.saturating_add(beside_its_data)
}

/// Makes what an operation writes out of its data and the old image, never more
/// than its destination holds.
///
/// Slow, and changes nothing. `old` is the image that the payload was made from; it
/// is needed by operations with [`Operation::old_bytes`] alone and never written.
/// `encoders` are those at hand; see [`crate::Manifest::missing_encoders`].
///
/// # Errors
/// [`PayloadError::OperationFailed`] when the data is damaged, too long or
/// followed by something else; [`PayloadError::OperationSourceMissing`] and
/// [`PayloadError::OperationSourceMismatch`] when `old` is not there or is another.
pub fn decode(
    operation: &Operation,
    data: Vec<u8>,
    old: Option<&dyn Image>,
    encoders: &Encoders,
) -> Result<Decoded, PayloadError> {
    let content = match &operation.kind {
        OperationKind::Replace => Content::Plain(data),
        OperationKind::ReplaceBz => decode_compressed(operation, Compression::Bzip2, data)?,
        OperationKind::ReplaceXz => decode_compressed(operation, Compression::Xz, data)?,
        OperationKind::ReplaceZstd => decode_compressed(operation, Compression::Zstd, data)?,
        OperationKind::SourceCopy { source } => {
            let reader = open_old(operation, source, old)?;
            if reader.length() <= Decoded::IN_MEMORY {
                Content::Plain(read_checked(operation, source, &reader)?)
            } else {
                check_old(operation, source, &reader)?;
                Content::Raw(data)
            }
        }
        OperationKind::SourceBsdiff {
            source,
            source_length,
            target_length,
        } => {
            let reader = open_old(operation, source, old)?;
            if reader.length().max(*target_length) <= Decoded::IN_MEMORY {
                let mut bytes = read_checked(operation, source, &reader)?;
                bytes.truncate(usize::try_from(*source_length).unwrap_or(usize::MAX));
                let mut made = Vec::new();
                let mut keep = |chunk: &[u8]| {
                    made.extend_from_slice(chunk);
                    Ok(())
                };
                bspatch::patch(&data, &Source::Memory(bytes), *target_length, &mut keep)
                    .map_err(|fault| fault.of(operation))?;
                Content::Plain(made)
            } else {
                check_old(operation, source, &reader)?;
                Content::Raw(data)
            }
        }
        OperationKind::Delta { source, window } => {
            let old = read_checked(operation, source, &open_old(operation, source, old)?)?;
            make_window(operation, *window, |length| {
                Delta::parse(&data)?.run(old, length, &[])
            })?
        }
        OperationKind::Recompress {
            source,
            window,
            encoders: names,
        } => {
            let old = read_checked(operation, source, &open_old(operation, source, old)?)?;
            make_window(operation, *window, |length| {
                Delta::parse(&data)?.run(old, length, &encoders.all_of(names)?)
            })?
        }
        OperationKind::Move { .. }
        | OperationKind::Bsdiff { .. }
        | OperationKind::Zero
        | OperationKind::Discard
        | OperationKind::Skipped => Content::Raw(data),
    };
    Ok(Decoded(content))
}

/// Runs one operation on the image that it is for.
///
/// Writes only inside the image. `old` must be the one that [`decode`] was given;
/// large parts of it are read here. A delta of version 1 has none: there the image
/// is the copy of the old one that is being turned into the new one, so order is
/// everything.
///
/// # Errors
/// [`PayloadError::OutOfBounds`], `Read`, `Write`, or `OperationFailed` with the
/// decoder's reason. The image may be partly written then.
pub fn apply(
    operation: &Operation,
    block_size: u32,
    decoded: Decoded,
    image: &dyn Image,
    old: Option<&dyn Image>,
) -> Result<(), PayloadError> {
    let mut writer = ExtentWriter::new(operation.index, image, &operation.destination);
    match (&operation.kind, decoded.0) {
        (OperationKind::Skipped, _) => return Ok(()),
        (OperationKind::Zero | OperationKind::Discard, _) => {
            return write_zeros(operation.index, image, &operation.destination);
        }
        (
            OperationKind::Delta { window, .. } | OperationKind::Recompress { window, .. },
            Content::Plain(data),
        ) => {
            writer.skip(window.skip);
            // No padding: the rest of the last block belongs to the next operation.
            return write_all(operation, &mut writer, &data);
        }
        (_, Content::Plain(data)) if !operation.reads_target() => {
            write_all(operation, &mut writer, &data)?;
        }
        (_, Content::Compressed(compression, data)) => {
            decompress(operation, compression, &data, &mut |chunk| {
                writer.write(chunk)
            })?;
        }
        (OperationKind::Move { source }, Content::Raw(_)) => {
            let length = extent::total(source);
            let source = Source::open(operation, image, length)?;
            copy(&source, &mut writer)?;
        }
        (OperationKind::SourceCopy { source }, Content::Raw(_)) => {
            let source = Source::Image(open_old(operation, source, old)?);
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
            write_patched(operation, &patch, &source, *target_length, &mut writer)?;
        }
        (
            OperationKind::SourceBsdiff {
                source_length,
                target_length,
                ..
            },
            Content::Raw(patch),
        ) => {
            let old = old_image(operation, old)?;
            let reader =
                ExtentReader::new(operation.index, old, operation.source(), *source_length)?;
            let source = Source::Image(reader);
            write_patched(operation, &patch, &source, *target_length, &mut writer)?;
        }
        _ => {
            return Err(operation.failed("its data was decoded for another operation"));
        }
    }
    writer.finish(block_size)
}

fn decode_compressed(
    operation: &Operation,
    compression: Compression,
    data: Vec<u8>,
) -> Result<Content, PayloadError> {
    if data.is_empty() {
        return Ok(Content::Plain(data));
    }
    let room = extent::total(&operation.destination);
    let Some(room) = usize::try_from(room)
        .ok()
        .filter(|_| room <= Decoded::IN_MEMORY)
    else {
        return Ok(Content::Compressed(compression, data));
    };
    let mut plain = Vec::with_capacity(room);
    decompress(operation, compression, &data, &mut |chunk| {
        let fits = chunk.len() <= room - plain.len();
        if fits {
            plain.extend_from_slice(chunk);
        }
        Ok(fits)
    })?;
    Ok(Content::Plain(plain))
}

/// The result of one of our own operations, of exactly the length announced.
fn make_window(
    operation: &Operation,
    window: Window,
    make: impl FnOnce(usize) -> Result<Vec<u8>, Cause>,
) -> Result<Content, PayloadError> {
    let length = usize::try_from(window.length).map_err(|error| operation.failed(error))?;
    let made = make(length).map_err(|cause| operation.failed(cause))?;
    if made.len() == length {
        Ok(Content::Plain(made))
    } else {
        let found = made.len();
        let reason = format!("the data makes {found} bytes, the manifest says {length}");
        Err(operation.failed(reason))
    }
}

fn old_image<'a>(
    operation: &Operation,
    old: Option<&'a dyn Image>,
) -> Result<&'a dyn Image, PayloadError> {
    old.ok_or(PayloadError::OperationSourceMissing {
        index: operation.index,
    })
}

/// All that an operation reads of the old image. An old image that is too short is
/// as wrong as one with other content, so it gives the same error.
fn open_old<'a>(
    operation: &Operation,
    source: &OldBytes,
    old: Option<&'a dyn Image>,
) -> Result<ExtentReader<'a>, PayloadError> {
    let extents = &source.extents;
    let old: &dyn Image = match old {
        None if extents.is_empty() => &Nothing,
        old => old_image(operation, old)?,
    };
    ExtentReader::new(operation.index, old, extents, extent::total(extents)).map_err(|error| {
        match error {
            PayloadError::OutOfBounds { .. } => mismatch(operation, source),
            other => other,
        }
    })
}

/// The old image of operations that read none of it.
struct Nothing;

impl Image for Nothing {
    fn len(&self) -> u64 {
        0
    }

    fn read_at(&self, _: u64, _: &mut [u8]) -> std::io::Result<()> {
        Err(std::io::ErrorKind::UnexpectedEof.into())
    }

    fn write_at(&self, _: u64, _: &[u8]) -> std::io::Result<()> {
        Err(std::io::ErrorKind::ReadOnlyFilesystem.into())
    }
}

/// What an operation reads of the old image, in memory, hash checked.
fn read_checked(
    operation: &Operation,
    source: &OldBytes,
    reader: &ExtentReader<'_>,
) -> Result<Vec<u8>, PayloadError> {
    let bytes = reader.read_all(operation)?;
    if Sha256::digest(&bytes)[..] == source.sha256 {
        Ok(bytes)
    } else {
        Err(mismatch(operation, source))
    }
}

/// Hashes what is too large for memory. It is read again when it is applied.
fn check_old(
    operation: &Operation,
    source: &OldBytes,
    reader: &ExtentReader<'_>,
) -> Result<(), PayloadError> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    let mut position = 0;
    while position < reader.length() {
        let chunk = &mut buffer[..chunk_length(reader.length() - position)];
        reader.read(position, chunk)?;
        hash.update(&*chunk);
        position += extent::size(chunk.len());
    }
    if hash.finalize()[..] == source.sha256 {
        Ok(())
    } else {
        Err(mismatch(operation, source))
    }
}

fn mismatch(operation: &Operation, source: &OldBytes) -> PayloadError {
    let first = source.extents.iter().find_map(|extent| match extent {
        Extent::Run { offset, .. } => Some(*offset),
        Extent::Hole { .. } => None,
    });
    PayloadError::OperationSourceMismatch {
        index: operation.index,
        offset: first.unwrap_or(0),
        length: extent::total(&source.extents),
    }
}

fn write_all(
    operation: &Operation,
    writer: &mut ExtentWriter<'_>,
    data: &[u8],
) -> Result<(), PayloadError> {
    if writer.write(data)? {
        Ok(())
    } else {
        Err(operation.failed(TOO_LONG))
    }
}

fn write_patched(
    operation: &Operation,
    patch: &[u8],
    source: &Source<'_>,
    target_length: u64,
    writer: &mut ExtentWriter<'_>,
) -> Result<(), PayloadError> {
    let mut write = |chunk: &[u8]| match writer.write(chunk)? {
        true => Ok(()),
        false => Err(TOO_LONG.into()),
    };
    bspatch::patch(patch, source, target_length, &mut write).map_err(|fault| fault.of(operation))
}

impl Fault {
    fn of(self, operation: &Operation) -> PayloadError {
        match self {
            Fault::Patch(cause) => operation.failed(cause),
            Fault::Image(error) => error,
        }
    }
}

/// Copies the whole source; the destination has room for it.
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

const TOO_LONG: &str = "the result is longer than its destination";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operation::Blob;
    use std::io::{self, Error};
    use std::sync::{Arc, Mutex};

    struct Memory(Mutex<Vec<u8>>);

    impl Image for Memory {
        fn len(&self) -> u64 {
            extent::size(self.0.lock().unwrap().len())
        }

        fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
            let start = usize::try_from(offset).map_err(Error::other)?;
            buf.copy_from_slice(&self.0.lock().unwrap()[start..start + buf.len()]);
            Ok(())
        }

        fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            let start = usize::try_from(offset).map_err(Error::other)?;
            self.0.lock().unwrap()[start..start + data.len()].copy_from_slice(data);
            Ok(())
        }
    }

    fn run(offset: u64, length: u64) -> Extent {
        Extent::Run { offset, length }
    }

    fn recompress(skip: u64, length: u64, destination: Vec<Extent>) -> Operation {
        Operation {
            index: 0,
            kind: OperationKind::Recompress {
                source: OldBytes {
                    extents: Vec::new(),
                    sha256: Sha256::digest([]).into(),
                },
                window: Window { skip, length },
                encoders: Arc::new([]),
            },
            blob: Blob {
                offset: 0,
                length: 0,
                sha256: [0; 32],
            },
            destination,
        }
    }

    #[test]
    fn windows_that_share_a_block_leave_each_other_alone_in_any_order() {
        let first = recompress(0, 700, vec![run(1024, 512), run(0, 512)]);
        let second = recompress(188, 600, vec![run(0, 512), run(2048, 512)]);
        for order in [
            [(&first, b'a'), (&second, b'b')],
            [(&second, b'b'), (&first, b'a')],
        ] {
            let image = Memory(Mutex::new(vec![b'.'; 2560]));
            for (operation, byte) in order {
                let length = usize::try_from(operation.bytes_written()).unwrap();
                let decoded = Decoded(Content::Plain(vec![byte; length]));
                apply(operation, 512, decoded, &image, None).unwrap();
            }
            let expected = [
                vec![b'a'; 188],
                vec![b'b'; 324],
                vec![b'.'; 512],
                vec![b'a'; 512],
                vec![b'.'; 512],
                vec![b'b'; 276],
                vec![b'.'; 236],
            ];
            assert_eq!(*image.0.lock().unwrap(), expected.concat());
        }
    }

    #[test]
    fn a_result_of_another_length_than_announced_is_refused() {
        let operation = recompress(0, 512, vec![run(0, 512)]);
        let window = Window {
            skip: 0,
            length: 512,
        };
        for length in [0, 511, 513] {
            assert!(make_window(&operation, window, |_| Ok(vec![0; length])).is_err());
        }
        assert!(make_window(&operation, window, |length| Ok(vec![0; length])).is_ok());
    }
}
