//! dm-verity: the hash tree by which a kernel checks each block of an image when it
//! is read.
//!
//! Trees are of format 1 with SHA-256 and blocks of 4096 bytes, as `veritysetup format`
//! makes them by default and the kernel's `Documentation/admin-guide/device-mapper/
//! verity.rst` describes them: the hash of a block is that of the salt and its bytes,
//! 128 hashes fill a block of the level above, zeros fill the last one of a level, and
//! the hash of the only block of the top level is the root hash. Levels lie one after
//! another, the top level first.
//!
//! ```text
//! | data ...            | superblock | top level | ... | level 0: hashes of data |
//!   data.start  data.end              tree.start                       tree.end
//! ```
//!
//! The superblock between them is data of the payload like any other; see
//! [`crate::make::verity`].

use std::ops::Range;

use sha2::{Digest, Sha256};

use crate::error::PayloadError;
use crate::extent::size;
use crate::image::{self, CHUNK, Image};
use crate::manifest::{Manifest, Part};

/// Bytes of a block of data, and of a block of hashes.
pub(crate) const BLOCK: usize = 4096;
/// Bytes of a SHA-256.
const HASH: usize = 32;
/// Hashes in a block.
const HASHES: u64 = 128;

/// A hash tree that is to be built: over which bytes, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashTree {
    data: Range<u64>,
    tree: Range<u64>,
    salt: Vec<u8>,
}

impl HashTree {
    /// The only algorithm, as manifests and superblocks name it.
    pub const ALGORITHM: &str = "sha256";
    /// Bytes of a block of data, and of a block of hashes.
    pub const BLOCK_SIZE: u64 = 4096;
    /// Longest salt in bytes; a superblock has no room for more.
    pub const MOST_SALT: usize = 256;

    /// The tree over the bytes `data` of an image, at `offset` in the same image.
    ///
    /// # Errors
    /// Why there can be no such tree, in words.
    pub fn new(data: Range<u64>, offset: u64, salt: Vec<u8>) -> Result<Self, String> {
        let whole = |bytes: u64| bytes.is_multiple_of(Self::BLOCK_SIZE);
        if data.is_empty() {
            return Err("there is no data to hash".to_owned());
        }
        if !whole(data.start) || !whole(data.end) || !whole(offset) {
            return Err(format!(
                "data and hashes must be whole blocks of {BLOCK} bytes"
            ));
        }
        if salt.len() > Self::MOST_SALT {
            let (length, limit) = (salt.len(), Self::MOST_SALT);
            return Err(format!("the salt has {length} bytes, the limit is {limit}"));
        }
        let blocks: u64 = levels((data.end - data.start) / Self::BLOCK_SIZE)
            .iter()
            .sum();
        let end = blocks
            .checked_mul(Self::BLOCK_SIZE)
            .and_then(|length| length.checked_add(offset))
            .filter(|end| i64::try_from(*end).is_ok())
            .ok_or("it would lie beyond any image")?;
        let tree = offset..end;
        if tree.start < data.end && data.start < tree.end {
            return Err(format!(
                "it would lie in its own data: hashes at {}..{}, data at {}..{}",
                tree.start, tree.end, data.start, data.end
            ));
        }
        Ok(Self { data, tree, salt })
    }

    /// Where the data is that it hashes, in bytes of the image.
    #[must_use]
    pub fn data(&self) -> Range<u64> {
        self.data.clone()
    }

    /// How many blocks that is.
    #[must_use]
    pub fn data_blocks(&self) -> u64 {
        (self.data.end - self.data.start) / Self::BLOCK_SIZE
    }

    /// Where its own blocks lie, in bytes of the image. Empty over a single block of
    /// data, whose hash is the root hash.
    #[must_use]
    pub fn tree(&self) -> Range<u64> {
        self.tree.clone()
    }

    /// What is hashed before each block.
    #[must_use]
    pub fn salt(&self) -> &[u8] {
        &self.salt
    }

    /// Reads the data from its start to its end and gives the blocks of the tree to
    /// `write`, in the order in which they are complete; returns the root hash. The
    /// offsets count in the image. Memory is one chunk of data and a block for each
    /// level.
    ///
    /// # Errors
    /// The first of `read` and `write`.
    pub fn build<E>(
        &self,
        mut read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
        mut write: impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<[u8; 32], E> {
        let mut growing = Growing::new(self);
        let mut buffer = vec![0; CHUNK];
        let mut offset = self.data.start;
        while offset < self.data.end {
            let length = image::chunk_length(self.data.end - offset);
            let chunk = &mut buffer[..length];
            read(offset, chunk)?;
            for block in chunk.chunks(BLOCK) {
                growing.add(growing.hash(block), &mut write)?;
            }
            offset += size(length);
        }
        growing.finish(&mut write)
    }
}

/// Blocks of each level, level 0 first. None above a single block of data.
fn levels(data_blocks: u64) -> Vec<u64> {
    let mut levels = Vec::new();
    let mut below = data_blocks;
    while below > 1 {
        below = below.div_ceil(HASHES);
        levels.push(below);
    }
    levels
}

/// A tree of which the front is there.
struct Growing {
    /// A hash that has taken the salt.
    salted: Sha256,
    /// Level 0 first.
    levels: Vec<Level>,
    /// Hash of the last block that has none above it.
    root: [u8; HASH],
}

/// The block of a level that is being filled.
struct Level {
    /// Where it will be written.
    offset: u64,
    block: Vec<u8>,
}

impl Growing {
    fn new(tree: &HashTree) -> Self {
        let mut levels: Vec<_> = levels(tree.data_blocks())
            .into_iter()
            .rev()
            .scan(tree.tree.start, |offset, blocks| {
                let level = Level {
                    offset: *offset,
                    block: Vec::with_capacity(BLOCK),
                };
                *offset += blocks * HashTree::BLOCK_SIZE;
                Some(level)
            })
            .collect();
        levels.reverse();
        Self {
            salted: Sha256::new_with_prefix(&tree.salt),
            levels,
            root: [0; HASH],
        }
    }

    fn hash(&self, block: &[u8]) -> [u8; HASH] {
        self.salted.clone().chain_update(block).finalize().into()
    }

    /// Takes the hash of the next block of data, and writes what it completes.
    fn add<E>(
        &mut self,
        mut hash: [u8; HASH],
        write: &mut impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        for level in &mut self.levels {
            level.block.extend_from_slice(&hash);
            if level.block.len() < BLOCK {
                return Ok(());
            }
            hash = level.write(&self.salted, write)?;
        }
        self.root = hash;
        Ok(())
    }

    /// Fills up and writes the last block of each level.
    fn finish<E>(
        mut self,
        write: &mut impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<[u8; HASH], E> {
        let mut below: Option<[u8; HASH]> = None;
        for level in &mut self.levels {
            if let Some(hash) = below.take() {
                level.block.extend_from_slice(&hash);
            }
            if !level.block.is_empty() {
                below = Some(level.write(&self.salted, write)?);
            }
        }
        Ok(below.unwrap_or(self.root))
    }
}

impl Level {
    /// Returns the hash of the block written.
    fn write<E>(
        &mut self,
        salted: &Sha256,
        write: &mut impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<[u8; HASH], E> {
        self.block.resize(BLOCK, 0);
        write(self.offset, &self.block)?;
        let hash = salted.clone().chain_update(&self.block).finalize().into();
        self.block.clear();
        self.offset += HashTree::BLOCK_SIZE;
        Ok(hash)
    }
}

impl Part {
    /// Builds the hash tree of a part that has one, after its last operation. Returns
    /// the root hash. To be done again it needs nothing but the data.
    ///
    /// # Errors
    /// [`PayloadError::Read`] and [`PayloadError::Write`].
    pub fn build_hash_tree(&self, image: &dyn Image) -> Result<Option<[u8; 32]>, PayloadError> {
        let Some(tree) = &self.hash_tree else {
            return Ok(None);
        };
        let read = |offset, buffer: &mut [u8]| image::read(image, offset, buffer);
        let write = |offset, block: &[u8]| {
            let written = image.write_at(offset, block);
            written.map_err(|source| PayloadError::Write {
                offset,
                length: size(block.len()),
                source,
            })
        };
        tree.build(read, write).map(Some)
    }
}

impl Manifest {
    /// The root hash by which the new system checks its partition, if its makers
    /// have signed one.
    #[must_use]
    pub fn verity_root_hash(&self) -> Option<[u8; 32]> {
        self.release.as_ref()?.verity_root_hash
    }

    /// Refuses a tree of the partition that was built here and is not the signed one.
    ///
    /// # Errors
    /// [`PayloadError::RootHashMismatch`].
    pub fn check_root_hash(&self, built: [u8; 32]) -> Result<(), PayloadError> {
        match self.verity_root_hash() {
            Some(signed) if signed != built => {
                Err(PayloadError::RootHashMismatch { signed, built })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    fn tree_of(data: &[u8], salt: &[u8]) -> (Vec<u8>, [u8; 32]) {
        let tree = HashTree::new(0..size(data.len()), size(data.len()), salt.to_vec()).unwrap();
        let length = usize::try_from(tree.tree().end - tree.tree().start).unwrap();
        let mut blocks = vec![None; length / BLOCK];
        let root = tree
            .build(
                |offset, buffer| {
                    let start = usize::try_from(offset).unwrap();
                    buffer.copy_from_slice(&data[start..start + buffer.len()]);
                    Ok::<_, Infallible>(())
                },
                |offset, block| {
                    let index = usize::try_from(offset - tree.tree().start).unwrap() / BLOCK;
                    assert!(blocks[index].replace(block.to_vec()).is_none(), "{index}");
                    Ok(())
                },
            )
            .unwrap();
        let blocks: Option<Vec<_>> = blocks.into_iter().collect();
        (blocks.expect("every block was written").concat(), root)
    }

    /// The same by the definition, level for level, all in memory.
    fn simple(data: &[u8], salt: &[u8]) -> (Vec<u8>, [u8; 32]) {
        let hash = |block: &[u8]| -> [u8; 32] { Sha256::digest([salt, block].concat()).into() };
        let (mut below, mut tree) = (data.to_vec(), Vec::new());
        while below.len() > BLOCK {
            let mut level: Vec<u8> = below.chunks(BLOCK).flat_map(hash).collect();
            level.resize(level.len().next_multiple_of(BLOCK), 0);
            tree = [&level[..], &tree].concat();
            below = level;
        }
        (tree, hash(&below))
    }

    #[test]
    fn the_tree_is_the_one_of_the_definition() {
        for blocks in [
            1,
            2,
            3,
            127,
            128,
            129,
            255,
            256,
            257,
            128 * 128,
            128 * 128 + 1,
        ] {
            let data: Vec<u8> = (0..blocks)
                .flat_map(|block: u32| [block.to_le_bytes(); BLOCK / 4].concat())
                .collect();
            for salt in [&b""[..], b"salt", &[7; 256]] {
                let (tree, root) = tree_of(&data, salt);
                let (expected, expected_root) = simple(&data, salt);
                assert!(tree == expected, "{blocks} blocks");
                assert_eq!(root, expected_root, "{blocks} blocks");
            }
        }
    }

    #[test]
    fn impossible_trees_are_refused_in_words() {
        let end = u64::try_from(i64::MAX).unwrap() / 4096 * 4096;
        for (data, offset, salt, reason) in [
            (4096..4096, 8192, 0, "no data"),
            (0..4095, 8192, 0, "whole blocks"),
            (0..8192, 8193, 0, "whole blocks"),
            (0..8192, 8192, 257, "salt has 257 bytes, the limit is 256"),
            (0..8192, 4096, 0, "in its own data: hashes at 4096..8192"),
            (4096..1 << 30, 0, 0, "in its own data"),
            (0..end, end, 0, "beyond any image"),
        ] {
            let error = HashTree::new(data, offset, vec![0; salt]).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }
}
