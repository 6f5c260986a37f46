//! Making payloads: from an image to operations, from operations to a file, from
//! a file to a signed file.
//!
//! ```text
//! image ┐                                    ┌ sign ─────────▶ payload
//!       ├▶ full() ─▶ Draft { manifest, blobs }┤ digest ─▶ 32 bytes to sign elsewhere
//! kernel┘              ▲   ▲                  └ attach ───────▶ payload
//!        payload ─▶ Draft::read
//!        prepared operations ─▶ Parts::draft
//! ```
//!
//! The same input gives the same bytes, however many threads work on it. Nothing
//! here opens files: the caller passes readers, a scratch file and a writer.

mod chunks;
pub mod delta;
mod draft;
mod full;
mod key;
mod parts;
mod scratch;
pub mod verity;

pub use chunks::Source;
pub use draft::{Digests, Draft, Written};
pub use full::full;
pub use key::{PrivateKey, RawSignature, SignatureKind};
pub use parts::{Blocks, Parts, PreparedKind, PreparedOperation, PreparedPart, PreparedSource};
pub use scratch::{Scratch, StoredBlob};

use std::io;

/// Size in bytes of the blocks that operations are counted in.
pub const BLOCK_SIZE: u32 = 4096;

/// Type of the kernel's procedure on the wire.
const KERNEL: i32 = 0;

/// Which readers a payload is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Version 1: clients of CoreOS and Flatcar.
    V1,
    /// Version 2 with everything that this crate knows.
    V2,
    /// Version 2 with Android's operations alone, so that other readers of the format
    /// can follow.
    V2Aosp,
}

/// Why a payload could not be made or signed.
///
/// Kept apart from [`crate::PayloadError`], because those all have a numeric
/// code that machines report to the update server, and these never do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MakeError {
    /// An empty image, kernel or partition would make machines unbootable.
    #[error("{what} is empty")]
    EmptySource {
        /// "image", "kernel" or "partition".
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
        /// "image", "kernel" or "partition".
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
        /// "image", "kernel" or "partition".
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
        /// "write" or "read".
        operation: &'static str,
        /// Byte offset.
        offset: u64,
        /// The cause.
        source: io::Error,
    },
    /// An operation could not be compressed, or came out as no machine would take it.
    #[error("make the operation for {what} at offset {offset}")]
    Operation {
        /// "image", "kernel" or "partition".
        what: &'static str,
        /// Where it starts there, in bytes.
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
    /// An operation of our own in a payload for other readers.
    #[error("operation {index} has type {number}, which other readers of the format do not know")]
    NotStandard {
        /// Position of the operation.
        index: usize,
        /// Number of its type.
        number: i32,
    },
    /// Verity data cannot be made or is not what it should be.
    #[error("verity data at offset {offset}: {reason}")]
    Verity {
        /// Byte offset in the image.
        offset: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// Version 1 of the format has no place for something.
    #[error("{what} need version 2 of the payload format")]
    NeedsVersion2 {
        /// What was to be put in.
        what: &'static str,
    },
    /// The two digests of a version 2 payload were not signed by the same keys.
    #[error(
        "the signatures of the metadata do not have the sizes of those of the payload, in \
         the same order; sign both digests with the same keys"
    )]
    SignaturesDiffer,
    /// Signatures of the manifest are missing, or there where none belong.
    #[error(
        "a payload of format version {version} takes {needed} metadata signatures, not {found}"
    )]
    MetadataSignatures {
        /// Of the format.
        version: u64,
        /// As many as it takes.
        needed: usize,
        /// As many as there are.
        found: usize,
    },
    /// Attaching needs something to attach.
    #[error("no signature to attach")]
    NoSignatures,
}
