//! An image or kernel, read once from front to back in chunks.

use std::io::Read;

use sha2::{Digest, Sha256};

use super::MakeError;

/// Bytes to put into a payload, read once from front to back.
pub struct Source<'a> {
    /// The bytes.
    pub reader: &'a mut dyn Read,
    /// How many there are.
    pub size: u64,
}

/// Cuts a source into chunks and hashes it on the way.
pub(super) struct Chunks<'a> {
    what: &'static str,
    source: Source<'a>,
    chunk_size: u64,
    offset: u64,
    sha256: Sha256,
}

impl<'a> Chunks<'a> {
    pub(super) fn new(what: &'static str, source: Source<'a>, chunk_size: u64) -> Self {
        Self {
            what,
            source,
            chunk_size,
            offset: 0,
            sha256: Sha256::new(),
        }
    }

    /// The next chunk; all but the last have the full size.
    pub(super) fn next(&mut self) -> Result<Option<Vec<u8>>, MakeError> {
        let left = self.source.size - self.offset;
        let mut chunk = Vec::new();
        // At the end, one byte more is asked for, to notice a source that grew.
        let wanted = left.clamp(1, self.chunk_size);
        (&mut self.source.reader)
            .take(wanted)
            .read_to_end(&mut chunk)
            .map_err(|source| MakeError::ReadSource {
                what: self.what,
                offset: self.offset,
                source,
            })?;
        let read = u64::try_from(chunk.len()).expect("a length fits 64 bits");
        if read != left.min(self.chunk_size) {
            return Err(MakeError::SourceChanged {
                what: self.what,
                announced: self.source.size,
                found: self.offset.saturating_add(read),
            });
        }
        if chunk.is_empty() {
            return Ok(None);
        }
        self.offset += read;
        self.sha256.update(&chunk);
        Ok(Some(chunk))
    }

    /// SHA-256 of everything, after the last chunk.
    pub(super) fn sha256(self) -> [u8; 32] {
        self.sha256.finalize().into()
    }
}
