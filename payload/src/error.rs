//! Every way in which reading, checking or applying a payload can fail.
//!
//! Variants are named by the step that failed and carry where: the operation's
//! index in the manifest's order and byte offsets in the payload file or in the
//! image. Callers map them to published numeric codes; nothing here knows those.

use std::error::Error;
use std::io;

use crate::manifest::Target;

/// A cause that only matters as text below [`PayloadError::OperationFailed`].
pub type Cause = Box<dyn Error + Send + Sync>;

/// Why a payload was refused or could not be applied.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PayloadError {
    /// The file does not begin with `CrAU`.
    #[error("not an update payload: it begins with \"{}\", not \"CrAU\"", .found.escape_ascii())]
    BadMagic {
        /// The bytes found instead, at most four.
        found: Vec<u8>,
    },
    /// The header names a format version other than 1 and 2.
    #[error("payload format version {version} is not supported, only versions 1 and 2")]
    UnsupportedVersion {
        /// The version in the header.
        version: u64,
    },
    /// The header announces a signature of the manifest above the ceiling of
    /// [`crate::Limits`].
    #[error("the header announces a metadata signature of {size} bytes, the limit is {limit}")]
    MetadataSignatureTooLarge {
        /// Announced size in bytes.
        size: u64,
        /// The ceiling in bytes.
        limit: u64,
    },
    /// The header announces a manifest above the ceiling of [`crate::Limits`].
    #[error("the header announces a manifest of {size} bytes, the limit is {limit}")]
    MetadataTooLarge {
        /// Announced size in bytes.
        size: u64,
        /// The ceiling in bytes.
        limit: u64,
    },
    /// The manifest does not describe an update that could be carried out.
    #[error("manifest: {place}: {reason}")]
    Manifest {
        /// Field path, as in `partition_operations[3].dst_extents[0]`.
        place: String,
        /// What is wrong with it.
        reason: String,
    },
    /// `new_partition_info` is missing, so the result could never be checked.
    #[error("manifest: new_partition_info is missing")]
    PartitionInfoMissing,
    /// Data of an operation (or the signature) does not start where the previous data ends.
    #[error("operation {index}: its data starts at blob offset {found}, expected {expected}")]
    OperationOffset {
        /// Position of the operation in manifest order.
        index: usize,
        /// Where the data before it ends.
        expected: u64,
        /// Where the manifest puts it.
        found: u64,
    },
    /// An operation carries data without a SHA-256 of it.
    #[error("operation {index}: the SHA-256 of its data is missing")]
    OperationHashMissing {
        /// Position of the operation in manifest order.
        index: usize,
    },
    /// The data of an operation does not have the announced SHA-256.
    #[error(
        "operation {index}: the SHA-256 of its {length} data bytes at file offset {offset} does not match"
    )]
    OperationHashMismatch {
        /// Position of the operation in manifest order.
        index: usize,
        /// Offset of the data in the payload file.
        offset: u64,
        /// Length of the data.
        length: u64,
    },
    /// An operation needs more memory than the ceiling of [`crate::Limits`].
    #[error(
        "operation {index}: it needs {size} bytes of memory for its {what}, the limit is {limit}"
    )]
    OperationTooLarge {
        /// Position of the operation in manifest order.
        index: usize,
        /// "data" or "source".
        what: &'static str,
        /// Bytes needed.
        size: u64,
        /// The ceiling in bytes.
        limit: u64,
    },
    /// The data of an operation cannot be decoded.
    #[error("operation {index}: {kind} failed")]
    OperationFailed {
        /// Position of the operation in manifest order.
        index: usize,
        /// Name of the operation's type, as `REPLACE_BZ`.
        kind: &'static str,
        /// What the decoder said.
        source: Cause,
    },
    /// What an operation reads of the old image is not what the payload was made
    /// from. Another payload, a full one, can still update this machine.
    #[error(
        "operation {index}: the {length} bytes that it reads of the old image, the first at \
         offset {offset}, are not those that this payload was made from"
    )]
    OperationSourceMismatch {
        /// Position of the operation in manifest order.
        index: usize,
        /// Byte offset of the first of them in the old image.
        offset: u64,
        /// How many bytes it reads.
        length: u64,
    },
    /// The payload was made with an encoder that is not at hand. A full one needs none.
    #[error("it needs the encoder {name}, which is not at hand")]
    EncoderMissing {
        /// Library, version and parameters.
        name: String,
    },
    /// A delta payload was to be applied without the old image. A full one needs none.
    #[error("operation {index}: it reads the old image, and none was given")]
    OperationSourceMissing {
        /// Position of the operation in manifest order.
        index: usize,
    },
    /// An operation would write (or read) outside its target.
    #[error(
        "operation {index}: {length} bytes at offset {offset} are outside the target of {available} bytes"
    )]
    OutOfBounds {
        /// Position of the operation in manifest order.
        index: usize,
        /// Byte offset in the target.
        offset: u64,
        /// Bytes to be read or written there.
        length: u64,
        /// Size of the target in bytes.
        available: u64,
    },
    /// Reading an image failed.
    #[error("cannot read {length} bytes of the image at offset {offset}")]
    Read {
        /// Byte offset in the image.
        offset: u64,
        /// Bytes wanted.
        length: u64,
        /// The cause.
        source: io::Error,
    },
    /// Writing an image failed.
    #[error("cannot write {length} bytes of the target at offset {offset}")]
    Write {
        /// Byte offset in the image.
        offset: u64,
        /// Bytes to be written.
        length: u64,
        /// The cause.
        source: io::Error,
    },
    /// Reading the payload file itself failed.
    #[error("cannot read the payload at offset {offset}")]
    Input {
        /// Byte offset in the payload.
        offset: u64,
        /// The cause.
        source: io::Error,
    },
    /// The payload carries no signature message although one is required.
    #[error("the payload is not signed")]
    SignatureMissing,
    /// The header and manifest of a version 2 payload carry no signature of their own
    /// although one is required.
    #[error("the manifest is not signed")]
    MetadataSignatureMissing,
    /// The signature message is not a well-formed message.
    #[error("the signature message at offset {offset} is malformed: {reason}")]
    SignatureMalformed {
        /// Where in the payload file it starts.
        offset: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// Too few trusted keys signed this payload.
    #[error(
        "the signature is refused: {good} of {needed} needed trusted keys signed this payload ({entries} signatures, {keys} trusted keys)"
    )]
    SignatureRefused {
        /// Distinct trusted keys with a good signature.
        good: usize,
        /// Distinct trusted keys needed.
        needed: usize,
        /// Entries in the signature message.
        entries: usize,
        /// Trusted keys that were tried.
        keys: usize,
    },
    /// The payload ends before it is complete.
    #[error("the payload ends after {received} bytes, {expected} were expected")]
    Truncated {
        /// Bytes received.
        received: u64,
        /// Bytes needed: the whole payload once the manifest is known, else what the next step needs.
        expected: u64,
    },
    /// Bytes follow the end of the payload.
    #[error("bytes follow the end of the payload at offset {offset}")]
    TrailingData {
        /// Where the payload ends.
        offset: u64,
    },
    /// The payload's size is not the announced one.
    #[error("the payload has {found} bytes, {announced} were announced")]
    SizeMismatch {
        /// Size announced outside the payload.
        announced: u64,
        /// Size that header and manifest add up to.
        found: u64,
    },
    /// The SHA-256 of the whole file is not the announced one.
    #[error("the SHA-256 of the payload is not the announced one")]
    PayloadHashMismatch,
    /// The file is not the one that was verified before.
    #[error("the payload changed while it was read")]
    PayloadChanged,
    /// A delta was to be applied without the old content that it starts from.
    #[error("{target}: this is a delta payload, and no old content was given")]
    SourceMissing {
        /// Which part of the update.
        target: Target,
    },
    /// What a delta starts from is not there.
    #[error("{target}: the old content is not what this delta payload was made from")]
    SourceMismatch {
        /// Which part of the update.
        target: Target,
    },
    /// The hash tree that was built over the new image is not the one that the
    /// payload's makers signed.
    #[error(
        "the hash tree of the partition has the root hash {}, its makers signed {}; \
         ask them for another payload", hex::encode(.built), hex::encode(.signed)
    )]
    RootHashMismatch {
        /// Root hash among the facts about the release.
        signed: [u8; 32],
        /// Root hash of the tree built here.
        built: [u8; 32],
    },
    /// The result of applying the payload is not what the manifest announces.
    #[error("{target}: the result does not have the announced size and SHA-256")]
    TargetMismatch {
        /// Which part of the update.
        target: Target,
    },
    /// The new image does not fit on the target.
    #[error("{target}: the new image has {size} bytes, the target only {available}")]
    TargetTooSmall {
        /// Which part of the update.
        target: Target,
        /// Bytes of the new image.
        size: u64,
        /// Bytes of the target.
        available: u64,
    },
    /// A resume point does not belong to this payload or this program.
    #[error("cannot resume: {reason}")]
    Resume {
        /// Why not.
        reason: &'static str,
    },
    /// The stream was used after it had failed or before its operations were taken.
    #[error("the payload stream is not at its end: {reason}")]
    Unfinished {
        /// What is left.
        reason: &'static str,
    },
    /// A public key cannot be used.
    #[error("public key: {reason}")]
    Key {
        /// Why not.
        reason: String,
    },
    /// The set of trusted keys cannot be used.
    #[error("trusted keys: {reason}")]
    Trust {
        /// Why not.
        reason: String,
    },
}
