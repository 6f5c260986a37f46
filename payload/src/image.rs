//! What a payload is applied to: bytes that can be read and written at offsets.
//!
//! Whether that is a partition, a whole file or something in memory is the
//! caller's business, and so are opening, locking and syncing it.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use sha2::{Digest, Sha256};

use crate::error::PayloadError;
use crate::extent;
use crate::manifest::{ImageInfo, Part, Target};

/// Random access to an image of a fixed length.
///
/// Shared references suffice to write, so that one image can be read for
/// checking while it is written, or by several threads; ordering is the caller's.
pub trait Image: Send + Sync {
    /// Length in bytes; nothing is read or written beyond it.
    fn len(&self) -> u64;

    /// Whether there is nothing to read or write.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// What the operating system says; an end before `buf` is full is an error.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Writes all of `data` at `offset`.
    ///
    /// # Errors
    /// What the operating system says.
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Writes `length` zeros at `offset`. An image that can do so in a faster way
    /// may; afterwards the bytes must read as zeros.
    ///
    /// # Errors
    /// What the operating system says.
    fn write_zeros(&self, offset: u64, length: u64) -> io::Result<()> {
        let zeros = vec![0; chunk_length(length)];
        let mut written = 0;
        while written < length {
            let chunk = &zeros[..chunk_length(length - written)];
            self.write_at(offset.saturating_add(written), chunk)?;
            written += extent::size(chunk.len());
        }
        Ok(())
    }
}

/// A regular file or a block device. The file's own position is moved by `len`.
impl Image for File {
    fn len(&self) -> u64 {
        // Seeking also knows block devices, whose metadata says 0. A file that
        // cannot even be measured has no byte that may be touched.
        let mut file: &File = self;
        file.seek(SeekFrom::End(0)).unwrap_or(0)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(buf, offset)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write_all_at(data, offset)
    }
}

impl ImageInfo {
    /// Whether the first [`ImageInfo::size`] bytes of `image` are the described ones.
    ///
    /// # Errors
    /// [`PayloadError::Read`] with the offset.
    pub fn matches(&self, image: &dyn Image) -> Result<bool, PayloadError> {
        Ok(self.size <= image.len() && sha256(image, self.size)? == self.sha256)
    }
}

impl Part {
    /// Refuses an image that is too small for the new content. To be asked for the
    /// partition, which cannot grow, before the first write.
    ///
    /// # Errors
    /// [`PayloadError::TargetTooSmall`].
    pub fn check_room(&self, target: Target, image: &dyn Image) -> Result<(), PayloadError> {
        let (size, available) = (self.new.size, image.len());
        if size <= available {
            Ok(())
        } else {
            Err(PayloadError::TargetTooSmall {
                target,
                size,
                available,
            })
        }
    }

    /// Prepares the file of a kernel or PCR policy for its operations: they write
    /// whole blocks, so it must reach to the end of the last one. Old content stays,
    /// since a delta reads it.
    ///
    /// # Errors
    /// [`PayloadError::Write`].
    pub fn reserve(&self, file: &File, block_size: u32) -> Result<(), PayloadError> {
        let needed = self.new.size.next_multiple_of(u64::from(block_size));
        if Image::len(file) < needed {
            set_len(file, needed)
        } else {
            Ok(())
        }
    }

    /// Cuts such a file to its new size after its last operation.
    ///
    /// # Errors
    /// [`PayloadError::Write`].
    pub fn truncate(&self, file: &File) -> Result<(), PayloadError> {
        set_len(file, self.new.size)
    }
}

fn set_len(file: &File, length: u64) -> Result<(), PayloadError> {
    file.set_len(length).map_err(|source| PayloadError::Write {
        offset: length,
        length: 0,
        source,
    })
}

/// SHA-256 of the first `size` bytes.
fn sha256(image: &dyn Image, size: u64) -> Result<[u8; 32], PayloadError> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    let mut offset = 0;
    while offset < size {
        let length = chunk_length(size - offset);
        let chunk = &mut buffer[..length];
        read(image, offset, chunk)?;
        hash.update(&*chunk);
        offset += extent::size(length);
    }
    Ok(hash.finalize().into())
}

/// Bytes moved at once between images.
pub(crate) const CHUNK: usize = 256 << 10;

/// How many of `left` bytes to move next.
pub(crate) fn chunk_length(left: u64) -> usize {
    usize::try_from(left).map_or(CHUNK, |left| left.min(CHUNK))
}

/// Reads with the place in the error.
pub(crate) fn read(image: &dyn Image, offset: u64, buf: &mut [u8]) -> Result<(), PayloadError> {
    let length = extent::size(buf.len());
    image
        .read_at(offset, buf)
        .map_err(|source| PayloadError::Read {
            offset,
            length,
            source,
        })
}
