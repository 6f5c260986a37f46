//! Blobs kept aside until the manifest that describes them is complete.

use std::io::Write;

use sha2::{Digest, Sha256};

use super::MakeError;
use crate::extent::size;

/// A file that collects the data of operations.
#[derive(Debug)]
pub struct Scratch<S> {
    file: S,
    len: u64,
}

/// Data of an operation in a [`Scratch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredBlob {
    /// Byte offset in the scratch file.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
    /// SHA-256 of the data.
    pub sha256: [u8; 32],
}

/// A stretch of a file that goes into the payload.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub(super) offset: u64,
    pub(super) length: u64,
}

impl<S: Write> Scratch<S> {
    /// Starts with an empty `file`, which stands at its first byte.
    pub fn new(file: S) -> Self {
        Self { file, len: 0 }
    }

    /// Puts the data of an operation behind all others.
    ///
    /// # Errors
    /// [`MakeError::Scratch`].
    pub fn append(&mut self, blob: &[u8]) -> Result<StoredBlob, MakeError> {
        self.append_hashed(blob, Sha256::digest(blob).into())
    }

    /// The same for data whose hash is known already.
    pub(super) fn append_hashed(
        &mut self,
        blob: &[u8],
        sha256: [u8; 32],
    ) -> Result<StoredBlob, MakeError> {
        let offset = self.len;
        self.file
            .write_all(blob)
            .map_err(|source| MakeError::Scratch {
                operation: "write",
                offset,
                source,
            })?;
        let length = size(blob.len());
        self.len = offset.saturating_add(length);
        Ok(StoredBlob {
            offset,
            length,
            sha256,
        })
    }

    /// Bytes in it.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether nothing was put in yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The file itself.
    pub(super) fn into_file(self) -> S {
        self.file
    }
}
