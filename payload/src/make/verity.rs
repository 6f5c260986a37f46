//! Verity data behind an image: appended to one that has none, or found and checked.
//!
//! ```text
//! | image, zeros up to a whole block | superblock | hash tree |
//! |------- carried by the payload -------------- | built by the machine
//! ```
//!
//! The superblock is what `veritysetup format` writes (`struct verity_sb` of
//! cryptsetup's `lib/verity/verity.c`); numbers are little-endian:
//!
//! ```text
//! 0    "verity\0\0"            8        32   algorithm, a C string   32
//! 8    version: 1              u32      64   data block size         u32
//! 12   hash type: 1            u32      68   hash block size         u32
//! 16   UUID                    16       72   data blocks             u64
//!                                       80   length of the salt      u16
//!                                       88   salt                    256
//! ```

use std::io::{self, Read};

use sha2::{Digest, Sha256};

use super::MakeError;
use crate::extent::size;
use crate::image::{CHUNK, Image, chunk_length};
use crate::manifest::ImageInfo;
use crate::verity::{BLOCK, HashTree};

const IMAGE: &str = "image";
const MAGIC: &[u8; 8] = b"verity\0\0";

/// An image with a superblock behind it, and all about the tree that belongs there.
///
/// As an [`Image`] it holds what a payload has to carry: everything but the tree.
pub struct WithVerity<'a> {
    image: Padded<'a>,
    /// Where the superblock lies: the image's size, rounded up to whole blocks.
    data_end: u64,
    superblock: [u8; BLOCK],
    tree: HashTree,
    root_hash: [u8; 32],
    info: ImageInfo,
}

impl<'a> WithVerity<'a> {
    /// Hashes `image`. Without `salt`, salt and UUID follow from the image, so that
    /// the same image gives the same result. `scratch` holds the tree meanwhile and
    /// starts empty.
    ///
    /// # Errors
    /// [`MakeError`] by operation; [`MakeError::Verity`] for a salt that is too long.
    pub fn append(
        image: &'a dyn Image,
        salt: Option<Vec<u8>>,
        scratch: &dyn Image,
    ) -> Result<Self, MakeError> {
        let length = image.len();
        if length == 0 {
            return Err(MakeError::EmptySource { what: IMAGE });
        }
        let Some(data_end) = length.checked_next_multiple_of(HashTree::BLOCK_SIZE) else {
            return Err(MakeError::ImageSize { size: length });
        };
        let padded = Padded { image, length };
        let mut hash = Sha256::new();
        padded.for_each_chunk(data_end, |chunk| hash.update(chunk))?;
        let of_data: [u8; 32] = hash.clone().finalize().into();

        let salt = salt.unwrap_or_else(|| derived("salt", &of_data).to_vec());
        let superblock = Superblock {
            uuid: uuid(&of_data),
            data_blocks: data_end / HashTree::BLOCK_SIZE,
            salt: salt.clone(),
        };
        let tree = HashTree::new(
            0..data_end,
            data_end.saturating_add(HashTree::BLOCK_SIZE),
            salt,
        )
        .map_err(|reason| MakeError::Verity {
            offset: data_end,
            reason,
        })?;
        let start = tree.tree().start;
        let root_hash = tree.build(
            |offset, buffer| padded.read(offset, buffer),
            |offset, block| {
                let offset = offset - start;
                let written = scratch.write_at(offset, block);
                written.map_err(|source| MakeError::Scratch {
                    operation: "write",
                    offset,
                    source,
                })
            },
        )?;
        let superblock = superblock.encode();
        hash.update(superblock);
        let mut buffer = vec![0; CHUNK];
        let (mut offset, length) = (0, tree.tree().end - start);
        while offset < length {
            let chunk = &mut buffer[..chunk_length(length - offset)];
            let read = scratch.read_at(offset, chunk);
            read.map_err(|source| MakeError::Scratch {
                operation: "read",
                offset,
                source,
            })?;
            hash.update(&*chunk);
            offset += size(chunk.len());
        }
        Ok(Self {
            image: padded,
            data_end,
            superblock,
            root_hash,
            info: ImageInfo {
                size: tree.tree().end,
                sha256: hash.finalize().into(),
            },
            tree,
        })
    }

    /// The tree that machines have to build.
    #[must_use]
    pub fn tree(&self) -> &HashTree {
        &self.tree
    }

    /// By which a kernel checks the image.
    #[must_use]
    pub fn root_hash(&self) -> [u8; 32] {
        self.root_hash
    }

    /// Size and hash of the whole: image, superblock and tree.
    #[must_use]
    pub fn info(&self) -> ImageInfo {
        self.info
    }
}

impl Image for WithVerity<'_> {
    fn len(&self) -> u64 {
        self.tree.tree().start
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let inside = usize::try_from(self.data_end.saturating_sub(offset)).unwrap_or(usize::MAX);
        let (data, rest) = buf.split_at_mut(inside.min(buf.len()));
        self.image.read_at(offset, data)?;
        if rest.is_empty() {
            return Ok(());
        }
        let at = usize::try_from(offset.saturating_sub(self.data_end)).unwrap_or(usize::MAX);
        let end = at.saturating_add(rest.len());
        let bytes = self.superblock.get(at..end);
        rest.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
}

/// Where the superblock of an image is that carries its tree already: the first one
/// that lies right behind the data that it speaks of.
///
/// # Errors
/// [`MakeError::ReadSource`].
pub fn find(image: &dyn Image) -> Result<Option<u64>, MakeError> {
    let mut buffer = vec![0; CHUNK];
    let mut offset = 0;
    let end = image.len();
    while offset < end {
        let chunk = &mut buffer[..chunk_length(end - offset)];
        read(image, offset, chunk)?;
        for block in chunk.chunks(BLOCK) {
            if let Some(Ok(found)) = Superblock::parse(block)
                && found.data_blocks.checked_mul(HashTree::BLOCK_SIZE) == Some(offset)
            {
                return Ok(Some(offset));
            }
            offset += size(block.len());
        }
    }
    Ok(None)
}

/// Builds the tree anew that the superblock at `offset` of `image` announces, and
/// compares it with the one behind the superblock. Returns its root hash.
///
/// # Errors
/// [`MakeError::Verity`] when there is no superblock, one of a kind that cannot be
/// checked, or the tree is another one; [`MakeError::ReadSource`].
pub fn check(image: &dyn Image, offset: u64) -> Result<[u8; 32], MakeError> {
    let refused = |offset, reason: String| MakeError::Verity { offset, reason };
    let length = image.len();
    let after = offset
        .checked_add(HashTree::BLOCK_SIZE)
        .filter(|after| *after <= length)
        .ok_or_else(|| refused(offset, format!("the image has only {length} bytes")))?;
    let mut block = [0; BLOCK];
    read(image, offset, &mut block)?;
    let superblock = Superblock::parse(&block)
        .ok_or_else(|| refused(offset, "there is no superblock".to_owned()))?
        .map_err(|reason| refused(offset, reason))?;
    let data_end = superblock
        .data_blocks
        .checked_mul(HashTree::BLOCK_SIZE)
        .filter(|end| *end <= offset)
        .ok_or_else(|| {
            let blocks = superblock.data_blocks;
            refused(
                offset,
                format!("its {blocks} blocks of data do not end before it"),
            )
        })?;
    let tree = HashTree::new(0..data_end, after, superblock.salt)
        .map_err(|reason| refused(offset, reason))?;
    let tree_end = tree.tree().end;
    if tree_end > length {
        let reason = format!("its tree ends at byte {tree_end}, the image at {length}");
        return Err(refused(offset, reason));
    }
    tree.build(
        |offset, buffer| read(image, offset, buffer),
        |offset, expected| {
            read(image, offset, &mut block)?;
            if block == expected {
                Ok(())
            } else {
                let reason = "this block of the hash tree does not fit the data".to_owned();
                Err(refused(offset, reason))
            }
        },
    )
}

/// An image of whole blocks, the last one filled with zeros.
struct Padded<'a> {
    image: &'a dyn Image,
    /// Of the image, in bytes.
    length: u64,
}

impl Padded<'_> {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let inside = usize::try_from(self.length.saturating_sub(offset));
        let (data, padding) = buf.split_at_mut(inside.unwrap_or(usize::MAX).min(buf.len()));
        padding.fill(0);
        if data.is_empty() {
            return Ok(());
        }
        self.image.read_at(offset, data)
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), MakeError> {
        let read = self.read_at(offset, buf);
        read.map_err(|source| failed(offset, source))
    }

    fn for_each_chunk(&self, end: u64, mut sink: impl FnMut(&[u8])) -> Result<(), MakeError> {
        let mut buffer = vec![0; CHUNK];
        let mut offset = 0;
        while offset < end {
            let chunk = &mut buffer[..chunk_length(end - offset)];
            self.read(offset, chunk)?;
            sink(chunk);
            offset += size(chunk.len());
        }
        Ok(())
    }
}

fn read(image: &dyn Image, offset: u64, buf: &mut [u8]) -> Result<(), MakeError> {
    let read = image.read_at(offset, buf);
    read.map_err(|source| failed(offset, source))
}

fn failed(offset: u64, source: io::Error) -> MakeError {
    MakeError::ReadSource {
        what: IMAGE,
        offset,
        source,
    }
}

/// The fields of a superblock that are not the same in all that are supported.
#[derive(Debug, PartialEq, Eq)]
struct Superblock {
    uuid: [u8; 16],
    data_blocks: u64,
    /// At most [`HashTree::MOST_SALT`] bytes.
    salt: Vec<u8>,
}

impl Superblock {
    const VERSION: u32 = 1;
    /// The salt is hashed before the data; 0 is Chrome OS's old way.
    const HASH_TYPE: u32 = 1;

    fn encode(&self) -> [u8; BLOCK] {
        let mut bytes = [0; BLOCK];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        let salt = &self.salt[..self.salt.len().min(HashTree::MOST_SALT)];
        let salt_length = u16::try_from(salt.len()).unwrap_or(0);
        let block_size = u32::try_from(BLOCK).unwrap_or(0).to_le_bytes();
        put(0, MAGIC);
        put(8, &Self::VERSION.to_le_bytes());
        put(12, &Self::HASH_TYPE.to_le_bytes());
        put(16, &self.uuid);
        put(32, HashTree::ALGORITHM.as_bytes());
        put(64, &block_size);
        put(68, &block_size);
        put(72, &self.data_blocks.to_le_bytes());
        put(80, &salt_length.to_le_bytes());
        put(88, salt);
        bytes
    }

    /// `None` where there is none, and why not for one that cannot be checked.
    fn parse(block: &[u8]) -> Option<Result<Self, String>> {
        let rest = block.strip_prefix(MAGIC)?;
        let mut fields = Fields(rest);
        let (version, hash_type) = (fields.u32()?, fields.u32()?);
        let uuid = fields.array()?;
        let algorithm: [u8; 32] = fields.array()?;
        let (data_block, hash_block) = (fields.u32()?, fields.u32()?);
        let data_blocks = u64::from_le_bytes(fields.array()?);
        let salt_length = usize::from(u16::from_le_bytes(fields.array()?));
        let _padding: [u8; 6] = fields.array()?;
        let salt: [u8; HashTree::MOST_SALT] = fields.array()?;

        let name = algorithm
            .split(|byte| *byte == 0)
            .next()
            .unwrap_or_default();
        let known = [
            ("version", version.to_string(), Self::VERSION.to_string()),
            (
                "hash type",
                hash_type.to_string(),
                Self::HASH_TYPE.to_string(),
            ),
            ("data block size", data_block.to_string(), BLOCK.to_string()),
            ("hash block size", hash_block.to_string(), BLOCK.to_string()),
            (
                "algorithm",
                name.escape_ascii().to_string(),
                HashTree::ALGORITHM.to_owned(),
            ),
        ];
        let unknown = known.into_iter().find(|(_, found, only)| found != only);
        Some(match (unknown, salt.get(..salt_length)) {
            (Some((what, found, only)), _) => {
                Err(format!("its {what} is {found}; only {only} can be checked"))
            }
            (None, None) => Err(format!("its salt has {salt_length} bytes, more than fit")),
            (None, Some(salt)) => Ok(Self {
                uuid,
                data_blocks,
                salt: salt.to_vec(),
            }),
        })
    }
}

/// Takes fields off the front.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*field)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }
}

/// Bytes that follow from an image and from nothing else.
fn derived(what: &str, of_data: &[u8; 32]) -> [u8; 32] {
    let hash = Sha256::new_with_prefix(format!("verity {what}\n"));
    hash.chain_update(of_data).finalize().into()
}

/// A UUID of version 8, whose bits mean what its maker likes (RFC 9562, section 5.8).
fn uuid(of_data: &[u8; 32]) -> [u8; 16] {
    let hash = derived("uuid", of_data);
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&hash[..16]);
    uuid[6] = 0x80 | (uuid[6] & 0x0f);
    uuid[8] = 0x80 | (uuid[8] & 0x3f);
    uuid
}

/// The bytes of an image, one after another.
pub struct ImageReader<'a> {
    image: &'a dyn Image,
    position: u64,
}

impl<'a> ImageReader<'a> {
    /// From the first byte on.
    #[must_use]
    pub fn new(image: &'a dyn Image) -> Self {
        Self { image, position: 0 }
    }
}

impl Read for ImageReader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = self.image.len().saturating_sub(self.position);
        let length = usize::try_from(left).map_or(buf.len(), |left| left.min(buf.len()));
        if length > 0 {
            self.image.read_at(self.position, &mut buf[..length])?;
            self.position += size(length);
        }
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn superblock() -> Superblock {
        Superblock {
            uuid: [7; 16],
            data_blocks: 0x0102_0304_0506,
            salt: b"salt".to_vec(),
        }
    }

    #[test]
    fn a_superblock_is_read_as_it_was_written() {
        for salt in [0, 1, 32, 256] {
            let written = Superblock {
                salt: vec![9; salt],
                ..superblock()
            };
            assert_eq!(Superblock::parse(&written.encode()), Some(Ok(written)));
        }
    }

    #[test]
    fn superblocks_of_other_kinds_are_told_from_none() {
        let good = superblock().encode();
        for (at, byte, reason) in [
            (8, 2, "its version is 2; only 1 can be checked"),
            (12, 0, "its hash type is 0"),
            (32, b'x', "its algorithm is xha256"),
            (65, 2, "its data block size is 512"),
            (69, 0, "its hash block size is 0"),
            (81, 2, "its salt has 516 bytes"),
        ] {
            let mut block = good;
            block[at] = byte;
            let error = Superblock::parse(&block).unwrap().unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
        let mut block = good;
        block[0] = b'V';
        assert_eq!(Superblock::parse(&block), None);
        for length in [0, 8, 100, 343] {
            assert_eq!(Superblock::parse(&good[..length]), None, "{length}");
        }
    }
}
