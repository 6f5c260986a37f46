//! A place between two operations at which an interrupted payload can continue.
//!
//! It holds the SHA-256 of everything before that place as a midstate, so that
//! nothing has to be read or downloaded again to check the signature at the end.

use serde::{Deserialize, Serialize};
use sha2::digest::common::hazmat::{SerializableState, SerializedState};
use sha2::{Digest, Sha256};

use crate::error::PayloadError;

/// Where a payload can be continued, see [`crate::PayloadStream::resume`].
///
/// Small (a few hundred bytes as JSON) and versioned: a point from a program
/// with another layout is refused, never misread.
///
/// A payload can be continued from any point that was stored, unless it changes
/// what it reads ([`crate::Manifest::is_in_place`]): then it can only be continued from the
/// point of the very last operation that ran, and not at all when the next one had
/// begun and is not [`crate::Operation::is_idempotent`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResumePoint {
    version: u32,
    next_operation: usize,
    offset: u64,
    #[serde(with = "hex")]
    metadata_sha256: Vec<u8>,
    #[serde(with = "hex")]
    sha256_midstate: Vec<u8>,
    /// Version 2 payloads: the same without the metadata signature.
    #[serde(with = "hex", default, skip_serializing_if = "Vec::is_empty")]
    signed_sha256_midstate: Vec<u8>,
}

impl ResumePoint {
    /// Version 1: the midstate is eight little-endian state words, the number of
    /// 64-byte blocks (u64 LE), the number of bytes after them, and those bytes
    /// in a field of 63.
    const VERSION: u32 = 1;

    pub(crate) fn new(
        next_operation: usize,
        offset: u64,
        metadata_sha256: [u8; 32],
        hashes: &Hashes,
    ) -> Self {
        Self {
            version: Self::VERSION,
            next_operation,
            offset,
            metadata_sha256: metadata_sha256.to_vec(),
            sha256_midstate: hashes.file.serialize().to_vec(),
            signed_sha256_midstate: hashes
                .signed
                .as_ref()
                .map_or_else(Vec::new, |hash| hash.serialize().to_vec()),
        }
    }

    /// Number of operations that are done.
    #[must_use]
    pub fn next_operation(&self) -> usize {
        self.next_operation
    }

    /// Byte offset in the payload file of the first byte that is still needed.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    pub(crate) fn metadata_sha256(&self) -> &[u8] {
        &self.metadata_sha256
    }

    /// The hashes of everything before [`ResumePoint::offset`], to be continued.
    pub(crate) fn hashes(&self) -> Result<Hashes, PayloadError> {
        if self.version != Self::VERSION {
            return Err(PayloadError::Resume {
                reason: "it was made by another version",
            });
        }
        let signed = match &self.signed_sha256_midstate[..] {
            [] => None,
            state => Some(continued(state)?),
        };
        Ok(Hashes {
            file: continued(&self.sha256_midstate)?,
            signed,
        })
    }
}

/// The hashes that run along with the bytes of a payload.
#[derive(Clone, Debug)]
pub(crate) struct Hashes {
    /// Over all of them.
    pub(crate) file: Sha256,
    /// Over all but the metadata signature, when there is one in the format: what
    /// the payload's signature signs.
    pub(crate) signed: Option<Sha256>,
}

impl Hashes {
    pub(crate) fn new() -> Self {
        Self {
            file: Sha256::new(),
            signed: None,
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.file.update(bytes);
        if let Some(signed) = &mut self.signed {
            signed.update(bytes);
        }
    }

    /// The digest that the payload's signature at this place signs.
    pub(crate) fn signed_digest(&self) -> [u8; 32] {
        self.signed
            .as_ref()
            .unwrap_or(&self.file)
            .clone()
            .finalize()
            .into()
    }
}

fn continued(midstate: &[u8]) -> Result<Sha256, PayloadError> {
    SerializedState::<Sha256>::try_from(midstate)
        .ok()
        .and_then(|state| Sha256::deserialize(&state).ok())
        .ok_or(PayloadError::Resume {
            reason: "its hash state is damaged",
        })
}
