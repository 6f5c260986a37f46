//! Full payloads: the whole image, and the kernel, as compressed chunks.
//!
//! In version 1 chunking follows the original generator: 1 MiB of image per operation, bzip2
//! level 9, raw where bzip2 does not pay. One thing differs on purpose: the last
//! operation of an image or kernel names as many blocks as its data fills. The
//! original always names 256, which reaches behind the end of the target; readers
//! have to put up with that, but no reader needs it.

mod partitions;

use std::io::{Read, Seek, Write};
use std::num::NonZeroUsize;

use bzip2::Compression;
use bzip2::write::BzEncoder;
use sha2::{Digest, Sha256};

use super::chunks::{Chunks, Source};
use super::scratch::Scratch;
use super::{BLOCK_SIZE, Draft, KERNEL, MakeError, Profile};
use crate::operation::number;
use crate::{pipeline, wire};

/// Bytes of the image per operation: 256 blocks.
const CHUNK_SIZE: u64 = 1 << 20;

/// Compresses `image` and, where there are some, `kernel` and the partitions of `named`
/// with their names into a full payload, which is then signed or left unsigned through [`Draft`].
///
/// Compressed data goes to `scratch`, which starts empty and belongs to the draft
/// from then on. Memory is bounded, most of it the compressor's: for each of
/// `threads` about 12 MiB in version 1, 64 MiB in version 2 and 100 MiB in version
/// 2 of Android, whatever the size of the image.
///
/// # Errors
/// [`MakeError`]: an image that is empty or not made of whole blocks is refused
/// before anything is read; in version 1 compressed data must stay below 4 GiB.
pub fn full<S: Read + Write + Seek>(
    image: Source<'_>,
    kernel: Option<Source<'_>>,
    named: Vec<(String, Source<'_>)>,
    profile: Profile,
    scratch: S,
    threads: NonZeroUsize,
) -> Result<Draft<S>, MakeError> {
    check_not_empty("image", &image)?;
    if !image.size.is_multiple_of(BLOCK_SIZE.into()) {
        return Err(MakeError::ImageSize { size: image.size });
    }
    if let Some(kernel) = &kernel {
        check_not_empty("kernel", kernel)?;
    }
    for (_, source) in &named {
        check_not_empty("partition", source)?;
    }
    let scratch = Scratch::new(scratch);
    match profile {
        Profile::V1 if named.is_empty() => full_v1(image, kernel, scratch, threads),
        Profile::V1 => Err(MakeError::NeedsVersion2 {
            what: "further partitions",
        }),
        Profile::V2 | Profile::V2Aosp => {
            partitions::full_v2(image, kernel, named, profile, scratch, threads)
        }
    }
}

fn full_v1<S: Read + Write + Seek>(
    image: Source<'_>,
    kernel: Option<Source<'_>>,
    mut blobs: Scratch<S>,
    threads: NonZeroUsize,
) -> Result<Draft<S>, MakeError> {
    let mut manifest = wire::DeltaArchiveManifest {
        block_size: Some(BLOCK_SIZE),
        ..Default::default()
    };
    let (operations, info) = replace_all("image", image, &mut blobs, threads)?;
    manifest.partition_operations = operations;
    manifest.new_partition_info = Some(info);
    if let Some(kernel) = kernel {
        let (operations, info) = replace_all("kernel", kernel, &mut blobs, threads)?;
        manifest.procedures.push(wire::InstallProcedure {
            kind: Some(KERNEL),
            operations,
            old_info: None,
            new_info: Some(info),
        });
    }
    let blobs_len = blobs.len();
    Draft::of_v1(manifest, blobs.into_file(), 0, blobs_len)
}

fn check_not_empty(what: &'static str, source: &Source<'_>) -> Result<(), MakeError> {
    match source.size {
        0 => Err(MakeError::EmptySource { what }),
        _ => Ok(()),
    }
}

/// The operations that write `source` from its first block on, and its size and hash.
fn replace_all<S: Write>(
    what: &'static str,
    source: Source<'_>,
    blobs: &mut Scratch<S>,
    threads: NonZeroUsize,
) -> Result<(Vec<wire::InstallOperation>, wire::InstallInfo), MakeError> {
    let size = source.size;
    let mut chunks = Chunks::new(what, source, CHUNK_SIZE);
    let mut operations = Vec::new();
    let mut start_block = 0;
    pipeline::in_order(
        threads,
        || chunks.next(),
        compress,
        |chunk| {
            let extent = wire::Extent {
                start_block: Some(start_block),
                num_blocks: Some(chunk.blocks),
            };
            start_block += chunk.blocks;
            check_offset(blobs.len())?;
            let blob = blobs.append_hashed(&chunk.blob, chunk.sha256)?;
            operations.push(wire::InstallOperation {
                kind: Some(chunk.kind),
                data_offset: Some(blob.offset),
                data_length: Some(blob.length),
                dst_extents: vec![extent],
                data_sha256_hash: Some(chunk.sha256.to_vec()),
                ..Default::default()
            });
            Ok(())
        },
    )?;
    let info = wire::InstallInfo {
        size: Some(size),
        hash: Some(chunks.sha256().to_vec()),
    };
    Ok((operations, info))
}

/// Offsets have 32 bits.
fn check_offset(offset: u64) -> Result<(), MakeError> {
    u32::try_from(offset)
        .map(|_| ())
        .map_err(|_| MakeError::TooLarge { offset })
}

/// A chunk as it goes into the payload.
struct Compressed {
    kind: i32,
    blocks: u64,
    blob: Vec<u8>,
    sha256: [u8; 32],
}

fn compress(chunk: Vec<u8>) -> Compressed {
    let blocks = chunk
        .len()
        .div_ceil(usize::try_from(BLOCK_SIZE).expect("4096 fits"));
    let mut encoder = BzEncoder::new(Vec::with_capacity(chunk.len()), Compression::best());
    let packed = encoder
        .write_all(&chunk)
        .and_then(|()| encoder.finish())
        .expect("writing to memory does not fail");
    let (kind, blob) = if packed.len() < chunk.len() {
        (number::REPLACE_BZ, packed)
    } else {
        (number::REPLACE, chunk)
    };
    Compressed {
        kind,
        blocks: u64::try_from(blocks).expect("a chunk has 256 blocks at most"),
        sha256: Sha256::digest(&blob).into(),
        blob,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{self, Cursor};

    const BLOCK: usize = 4096;
    const MIB: usize = 1 << 20;

    fn make(image: &[u8], kernel: Option<&[u8]>) -> Result<Vec<u8>, MakeError> {
        make_on(image, kernel, 2)
    }

    fn make_on(image: &[u8], kernel: Option<&[u8]>, threads: usize) -> Result<Vec<u8>, MakeError> {
        let mut image_reader = image;
        let mut kernel_reader = kernel.unwrap_or_default();
        let source = |reader, bytes: &[u8]| Source {
            reader,
            size: u64::try_from(bytes.len()).unwrap(),
        };
        let mut payload = Vec::new();
        full(
            source(&mut image_reader, image),
            kernel.map(|kernel| source(&mut kernel_reader, kernel)),
            Vec::new(),
            Profile::V1,
            Cursor::new(Vec::new()),
            NonZeroUsize::new(threads).unwrap(),
        )?
        .sign(&[], &mut payload)?;
        Ok(payload)
    }

    fn manifest(payload: &[u8]) -> wire::DeltaArchiveManifest {
        use prost::Message;
        let len = u64::from_be_bytes(payload[12..20].try_into().unwrap());
        let len = usize::try_from(len).unwrap();
        wire::DeltaArchiveManifest::decode(&payload[20..20 + len]).unwrap()
    }

    /// Bytes that bzip2 cannot shrink.
    fn noise(len: usize) -> Vec<u8> {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        })
        .flatten()
        .take(len)
        .collect()
    }

    fn extents(operations: &[wire::InstallOperation]) -> Vec<(u64, u64)> {
        let extents = operations.iter().flat_map(|op| &op.dst_extents);
        extents
            .map(|extent| (extent.start_block(), extent.num_blocks()))
            .collect()
    }

    #[test]
    fn operations_cover_exactly_the_blocks_of_the_image() {
        for (blocks, expected) in [
            (1, vec![(0, 1)]),
            (255, vec![(0, 255)]),
            (256, vec![(0, 256)]),
            (257, vec![(0, 256), (256, 1)]),
            (600, vec![(0, 256), (256, 256), (512, 88)]),
        ] {
            let manifest = manifest(&make(&vec![0; blocks * BLOCK], None).unwrap());
            assert_eq!(extents(&manifest.partition_operations), expected);
        }
    }

    #[test]
    fn kernel_of_odd_size_fills_its_last_block_partly() {
        let kernel = noise(MIB + 5000);
        let manifest = manifest(&make(&[0; BLOCK], Some(&kernel)).unwrap());
        let [procedure] = &manifest.procedures[..] else {
            panic!("one procedure")
        };
        assert_eq!(procedure.kind, Some(KERNEL));
        assert_eq!(extents(&procedure.operations), [(0, 256), (256, 2)]);
        assert_eq!(procedure.operations[1].data_length, Some(5000));
        let info = procedure.new_info.as_ref().unwrap();
        assert_eq!(info.size(), 1_053_576);
        assert_eq!(info.hash(), Sha256::digest(&kernel).as_slice());
    }

    #[test]
    fn chunks_that_bzip2_cannot_shrink_stay_raw() {
        let image = [noise(MIB), vec![0; MIB]].concat();
        let manifest = manifest(&make(&image, None).unwrap());
        let kinds: Vec<_> = manifest
            .partition_operations
            .iter()
            .map(|op| op.kind())
            .collect();
        assert_eq!(kinds, [number::REPLACE, number::REPLACE_BZ]);
        assert_eq!(manifest.partition_operations[0].data_length, Some(1 << 20));
    }

    #[test]
    fn blobs_lie_back_to_back_with_their_hashes() {
        let image = [noise(MIB), vec![0; 2 * MIB], noise(BLOCK)].concat();
        let payload = make(&image, Some(&noise(70_000))).unwrap();
        let manifest = manifest(&payload);
        let mut rest = &payload[20 + prost::Message::encoded_len(&manifest)..];
        let mut offset = 0;
        let kernel = &manifest.procedures[0].operations;
        for operation in manifest.partition_operations.iter().chain(kernel) {
            assert_eq!(operation.data_offset(), offset);
            offset += operation.data_length();
            let (blob, after) = rest.split_at(usize::try_from(operation.data_length()).unwrap());
            assert_eq!(
                operation.data_sha256_hash(),
                Sha256::digest(blob).as_slice()
            );
            rest = after;
        }
        assert!(rest.is_empty());
    }

    #[test]
    fn the_number_of_threads_does_not_change_a_byte() {
        let image = [noise(MIB), vec![0; 5 * MIB], noise(3 * MIB)].concat();
        let one = make_on(&image, Some(b"kernel"), 1).unwrap();
        for threads in [2, 5] {
            assert!(make_on(&image, Some(b"kernel"), threads).unwrap() == one);
        }
    }

    #[test]
    fn sources_that_no_machine_could_boot_are_refused() {
        for (size, kernel, reason) in [
            (0, None, "image is empty"),
            (
                1,
                None,
                "image size 1 is not a multiple of the block size 4096; 4095 bytes",
            ),
            (4097, None, "image size 4097 is not a multiple"),
            (BLOCK, Some(&b""[..]), "kernel is empty"),
        ] {
            let error = make(&vec![0; size], kernel).unwrap_err().to_string();
            assert!(error.contains(reason), "{error:?} should say {reason:?}");
        }
    }

    #[test]
    fn an_image_that_changes_its_size_meanwhile_is_refused() {
        for (bytes, found) in [(BLOCK, 4096), (MIB, MIB), (3 * MIB, 2 * MIB + 1)] {
            let image = vec![0; bytes];
            let error = full(
                Source {
                    reader: &mut &image[..],
                    size: 2 << 20,
                },
                None,
                Vec::new(),
                Profile::V1,
                Cursor::new(Vec::new()),
                NonZeroUsize::MIN,
            )
            .unwrap_err();
            assert!(
                matches!(error, MakeError::SourceChanged { found: f, .. } if f == u64::try_from(found).unwrap()),
                "{error}"
            );
        }
    }

    #[test]
    fn blob_offsets_behind_four_gibibytes_are_refused() {
        let last = u64::from(u32::MAX);
        assert!(check_offset(last).is_ok());
        assert!(matches!(
            check_offset(last + 1),
            Err(MakeError::TooLarge { offset }) if offset == last + 1
        ));
        assert!(matches!(
            Draft::of_v1(
                wire::DeltaArchiveManifest::default(),
                io::empty(),
                0,
                last + 1
            ),
            Err(MakeError::TooLarge { .. })
        ));
    }

    /// Fails when more than `limit` bytes of the image were read beyond what has
    /// been written, which is what memory holds.
    #[test]
    fn the_image_is_never_in_memory_as_a_whole() {
        use std::cell::Cell;

        struct Counted<'a, T> {
            inner: T,
            count: &'a Cell<usize>,
        }
        impl<T: Read> Read for Counted<'_, T> {
            fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
                let n = self.inner.read(buf)?;
                self.count.set(self.count.get() + n);
                Ok(n)
            }
        }
        struct Counting<'a> {
            read: &'a Cell<usize>,
            written: usize,
            ahead: &'a Cell<usize>,
        }
        impl Write for Counting<'_> {
            fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
                self.ahead
                    .set(self.ahead.get().max(self.read.get() - self.written));
                self.written += buf.len();
                Ok(buf.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        impl Read for Counting<'_> {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Ok(0)
            }
        }
        impl Seek for Counting<'_> {
            fn seek(&mut self, _: io::SeekFrom) -> io::Result<u64> {
                Ok(0)
            }
        }

        let image = noise(9 * MIB);
        let (read, ahead) = (Cell::new(0), Cell::new(0));
        let mut reader = Counted {
            inner: &image[..],
            count: &read,
        };
        full(
            Source {
                reader: &mut reader,
                size: 9 << 20,
            },
            None,
            Vec::new(),
            Profile::V1,
            Counting {
                read: &read,
                written: 0,
                ahead: &ahead,
            },
            NonZeroUsize::new(2).unwrap(),
        )
        .unwrap();
        assert_eq!(read.get(), 9 * MIB);
        assert_eq!(ahead.get(), 4 * MIB, "two chunks for each of two threads");
    }
}
