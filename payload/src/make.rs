//! Making payloads: from an image to operations, from operations to a file, from
//! a file to a signed file.
//!
//! ```text
//! image ┐                                    ┌ sign ─────────▶ payload
//!       ├▶ full() ─▶ Draft { manifest, blobs }┤ digest ─▶ 32 bytes to sign elsewhere
//! kernel┘              ▲                      └ attach ───────▶ payload
//!        payload ─▶ Draft::read
//! ```
//!
//! The same input gives the same bytes, however many threads work on it. Nothing
//! here opens files: the caller passes readers, a scratch file and a writer.

mod draft;
mod full;
mod key;

pub use draft::{Draft, Written};
pub use full::{Source, full};
pub use key::{PrivateKey, RawSignature, SignatureKind};

use std::io;

/// Size in bytes of the blocks that operations are counted in.
pub const BLOCK_SIZE: u32 = 4096;

// Types of operations and procedures on the wire.
const REPLACE: i32 = 0;
const REPLACE_BZ: i32 = 1;
const KERNEL: i32 = 0;

/// Why a payload could not be made or signed.
///
/// Kept apart from [`crate::PayloadError`], because those all have a numeric
/// code that machines report to the update server, and these never do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MakeError {
    /// An empty image or kernel would make machines unbootable.
    #[error("{what} is empty")]
    EmptySource {
        /// "image" or "kernel".
        what: &'static str,
    },
    /// Images are made of whole blocks.
    #[error(
        "image size {size} is not a multiple of the block size {BLOCK_SIZE}; \
         {} bytes of padding are missing at its end",
        u64::from(BLOCK_SIZE) - size % u64::from(BLOCK_SIZE)
    )]
    ImageSize {
        /// Bytes.
        size: u64,
    },
    /// Reading an image or kernel failed.
    #[error("read {what} at offset {offset}")]
    ReadSource {
        /// "image" or "kernel".
        what: &'static str,
        /// Byte offset of the chunk that was being read.
        offset: u64,
        /// The cause.
        source: io::Error,
    },
    /// The image or kernel changed its size while it was read.
    #[error(
        "{what} has {found} bytes instead of the {announced} it had at the start; did another program write to it"
    )]
    SourceChanged {
        /// "image" or "kernel".
        what: &'static str,
        /// Bytes at the start.
        announced: u64,
        /// Bytes found; at least this many if it grew.
        found: u64,
    },
    /// Offsets of blobs are 32-bit numbers in version 1 of the format.
    #[error(
        "the compressed data exceeds 4 GiB at byte {offset}, more than offsets of a version 1 \
         payload can express; the image is too large for this format"
    )]
    TooLarge {
        /// Offset in the blob area at which the limit was passed.
        offset: u64,
    },
    /// Keeping the compressed data aside failed.
    #[error("{operation} the scratch file at offset {offset}")]
    Scratch {
        /// "write" or "rewind".
        operation: &'static str,
        /// Byte offset.
        offset: u64,
        /// The cause.
        source: io::Error,
    },
    /// Reading the blobs of a draft back failed.
    #[error("read data of the payload at offset {offset}")]
    ReadBlobs {
        /// Byte offset in the blob area.
        offset: u64,
        /// The cause.
        source: io::Error,
    },
    /// Writing the payload failed.
    #[error("write the payload at offset {offset}")]
    WritePayload {
        /// Byte offset in the payload.
        offset: u64,
        /// The cause.
        source: io::Error,
    },
    /// The private key cannot be used.
    #[error("refuse the private key: {reason}")]
    PrivateKey {
        /// What is wrong, and what to do.
        reason: String,
    },
    /// The cryptographic library could not sign.
    #[error("sign the payload's digest")]
    Signing,
    /// Not the length of any signature that is known.
    #[error("no signature is {size} bytes long; RSA has 256, 384 or 512, Ed25519 has 64")]
    SignatureSize {
        /// Bytes.
        size: usize,
    },
    /// The payload to sign is broken.
    #[error(transparent)]
    Payload(#[from] crate::PayloadError),
    /// The manifest has fields of another version of the format, which writing
    /// it again would lose.
    #[error("the manifest has fields that this program does not know and would lose")]
    UnknownFields,
    /// Attaching needs something to attach.
    #[error("no signature to attach")]
    NoSignatures,
}
