//! A place between two operations at which an interrupted payload can continue.
//!
//! It holds the SHA-256 of everything before that place as a midstate, so that
//! nothing has to be read or downloaded again to check the signature at the end.

use serde::{Deserialize, Serialize};
use sha2::Sha256;
use sha2::digest::common::hazmat::{SerializableState, SerializedState};

use crate::error::PayloadError;

/// Where a payload can be continued, see [`crate::PayloadStream::resume`].
///
/// Small (a few hundred bytes as JSON) and versioned: a point from a program
/// with another layout is refused, never misread.
///
/// A full payload can be continued from any point that was stored. A delta changes
/// what it reads ([`crate::Manifest::is_delta`]): it can only be continued from the
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
        hash: &Sha256,
    ) -> Self {
        Self {
            version: Self::VERSION,
            next_operation,
            offset,
            metadata_sha256: metadata_sha256.to_vec(),
            sha256_midstate: hash.serialize().to_vec(),
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

    /// The hash of everything before [`ResumePoint::offset`], to be continued.
    pub(crate) fn payload_hash(&self) -> Result<Sha256, PayloadError> {
        if self.version != Self::VERSION {
            return Err(PayloadError::Resume {
                reason: "it was made by another version",
            });
        }
        SerializedState::<Sha256>::try_from(self.sha256_midstate.as_slice())
            .ok()
            .and_then(|state| Sha256::deserialize(&state).ok())
            .ok_or(PayloadError::Resume {
                reason: "its hash state is damaged",
            })
    }
}

/// Bytes as lower-case hexadecimal text.
mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        to.serialize_str(&text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        if !text.is_ascii() || text.len() % 2 != 0 {
            return Err(D::Error::custom("not pairs of hexadecimal digits"));
        }
        (0..text.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&text[at..at + 2], 16).map_err(D::Error::custom))
            .collect()
    }
}
