//! What can go wrong in one update attempt, and the numeric code that a fleet's
//! servers and tools know it by.

use payload::PayloadError;

use crate::boot::BootError;
use crate::platform::LockError;
use crate::policy::ReleaseFacts;

/// Failure of one update attempt.
///
/// [`UpdateError::code`] gives the published number (the `kActionCode…` list of
/// the original update_engine); the text names the object and what to look at.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// The update server could not be reached at all.
    #[error("cannot reach the update server {url}")]
    ServerUnreachable {
        /// The Omaha URL.
        url: String,
        /// Why.
        source: TransportError,
    },
    /// The update server answered with an HTTP error.
    #[error("the update server {url} answered with HTTP status {status}")]
    ServerStatus {
        /// The Omaha URL.
        url: String,
        /// Status code of the answer.
        status: u16,
    },
    /// The answer had no body.
    #[error("the update server {url} answered with an empty body")]
    EmptyAnswer {
        /// The Omaha URL.
        url: String,
    },
    /// The answer is longer than any Omaha answer.
    #[error("the answer of the update server {url} is longer than {limit} bytes")]
    AnswerTooLong {
        /// The Omaha URL.
        url: String,
        /// Ceiling in bytes.
        limit: u64,
    },
    /// The answer is not an Omaha document.
    #[error("cannot read the answer of the update server {url}")]
    AnswerUnreadable {
        /// The Omaha URL.
        url: String,
        /// Where and why.
        source: omaha_protocol::ProtocolError,
    },
    /// The answer is an Omaha document that says nothing usable.
    #[error("the answer of the update server is incomplete: {0}")]
    AnswerInvalid(String),
    /// A setting is wrong in a way that must not be ignored.
    #[error("cannot use the configuration")]
    Configuration(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// No usable set of public keys.
    #[error(
        "cannot load the public keys that payloads must be signed with: refusing every payload"
    )]
    TrustKeys(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The disk has no pair of slots to work with.
    #[error("cannot find the two USR slots")]
    Slots(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A rule of this machine says not this version.
    #[error("the offered version {version} is refused: {reason}")]
    Ignored {
        /// Version of the offer.
        version: String,
        /// Which rule, in words.
        reason: String,
    },
    /// A rule of this machine says not now.
    #[error("the offered version {version} is deferred: {reason}")]
    Deferred {
        /// Version of the offer.
        version: String,
        /// Which rule, in words.
        reason: String,
    },
    /// This payload failed before and its waiting time is not over.
    #[error("the payload of version {version} failed before: waiting until unix time {until}")]
    Backoff {
        /// Version of the offer.
        version: String,
        /// Unix seconds.
        until: i64,
    },
    /// The signed manifest says that this machine must not take the release.
    #[error("the release is refused: {reason}")]
    ReleaseRefused {
        /// Which of its facts, in words.
        reason: String,
        /// All of them, to be remembered.
        facts: Box<ReleaseFacts>,
    },
    /// A delta compresses with what this machine does not have.
    #[error(
        "the delta needs encoders that this machine does not have: {names}; a full payload needs \
         none, or put their libraries into the folder of ENCODERS_DIR"
    )]
    EncodersMissing {
        /// As the manifest names them, separated by commas.
        names: String,
    },
    /// The payload updates a partition that this machine has no place for.
    #[error(
        "the payload updates the partition {name}, and nothing says where that is: add \
         {name}=PATH to PARTITIONS in /etc/update-engine/update.conf, with {{slot}} in the path \
         where A or B belongs"
    )]
    PartitionUnmapped {
        /// As the manifest names it.
        name: String,
    },
    /// The payload has a kernel or a root hash, and what boots the machine would not find it.
    #[error(
        "the payload has a file for the boot partition of this disk, and no partition is mounted \
         at /boot: mount it there"
    )]
    BootUnmounted,
    /// Somebody else installs.
    #[error("cannot install now")]
    Locked(#[source] LockError),
    /// The target or source slot cannot be opened or read.
    #[error("cannot {operation} {object}")]
    Device {
        /// Verb.
        operation: &'static str,
        /// Which device or file.
        object: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The boot attributes could not be changed.
    #[error("cannot change what boots")]
    Boot(#[from] BootError),
    /// The download ended before the payload did.
    #[error("cannot download {url} at byte {offset}")]
    Transfer {
        /// Payload URL.
        url: String,
        /// Position in the payload file.
        offset: u64,
        /// Why.
        source: TransportError,
    },
    /// Length of the file differs from the offer.
    #[error("the payload at {url} is {actual} bytes long, the offer says {expected}")]
    PayloadSize {
        /// Payload URL.
        url: String,
        /// Bytes in the offer.
        expected: u64,
        /// Bytes seen (at least).
        actual: u64,
    },
    /// Hash of the file differs from the offer.
    #[error("the payload at {url} has SHA-256 {actual}, the offer says {expected}")]
    PayloadHash {
        /// Payload URL.
        url: String,
        /// Lower-case hex.
        expected: String,
        /// Lower-case hex.
        actual: String,
    },
    /// The payload itself is refused.
    #[error("the payload is refused")]
    Payload(#[from] PayloadError),
    /// A delta's source differs from what it was made from.
    #[error(
        "the payload is a delta of another {object} than this machine runs: SHA-256 {actual}, the delta needs {expected}"
    )]
    SourceMismatch {
        /// `USR partition` or `kernel`.
        object: &'static str,
        /// Lower-case hex.
        expected: String,
        /// Lower-case hex.
        actual: String,
    },
    /// The image does not fit.
    #[error("the new {object} needs {needed} bytes, {place} has {available}")]
    TooSmall {
        /// `USR image` or `kernel`.
        object: &'static str,
        /// Where it should go.
        place: String,
        /// Bytes.
        needed: u64,
        /// Bytes.
        available: u64,
    },
    /// A file system has no room for a new file.
    #[error(
        "the new {object} needs {needed} bytes, and {path} can have {available}: free some room on \
         that file system, but keep the files of the running slot {running}"
    )]
    NoRoom {
        /// `kernel` or `PCR policy`.
        object: &'static str,
        /// The file that it should become.
        path: String,
        /// Bytes.
        needed: u64,
        /// Bytes that are the file's already, or free and not taken by another new file.
        available: u64,
        /// The slot whose files must stay.
        running: String,
    },
    /// What was read back differs from what the payload promises.
    #[error(
        "the {object} read back from {place} has SHA-256 {actual}, the payload says {expected}"
    )]
    ReadBack {
        /// Which artefact.
        object: Artefact,
        /// Device or file.
        place: String,
        /// Lower-case hex.
        expected: String,
        /// Lower-case hex.
        actual: String,
    },
    /// The PCR policy server did not take the policy.
    #[error("cannot post the PCR policy to {url}")]
    PcrPolicyServer {
        /// URL.
        url: String,
        /// Why.
        source: TransportError,
    },
    /// The new image's post-install program failed.
    #[error("the post-install program of the new image failed")]
    PostInstall(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// State could not be kept.
    #[error("cannot keep {what}")]
    State {
        /// Which record.
        what: &'static str,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Asked to stop.
    #[error("the installation was cancelled; it resumes where it stopped")]
    Cancelled,
    /// A part of the program ended without a result.
    #[error("internal failure: {0}")]
    Internal(String),
}

/// Codes of the payload library's errors, by the layer that refused.
fn payload_code(error: &PayloadError) -> u32 {
    match error {
        PayloadError::BadMagic { .. } | PayloadError::UnsupportedVersion { .. } => 21,
        PayloadError::MetadataTooLarge { .. }
        | PayloadError::MetadataSignatureTooLarge { .. }
        | PayloadError::Manifest { .. } => 23,
        PayloadError::PartitionInfoMissing => 12,
        PayloadError::OperationHashMissing { .. } => 38,
        PayloadError::OperationHashMismatch { .. } => 29,
        PayloadError::SizeMismatch { .. }
        | PayloadError::Truncated { .. }
        | PayloadError::TrailingData { .. } => 11,
        PayloadError::PayloadHashMismatch | PayloadError::PayloadChanged => 10,
        PayloadError::SignatureMissing | PayloadError::MetadataSignatureMissing => 17,
        PayloadError::SignatureMalformed { .. }
        | PayloadError::SignatureRefused { .. }
        | PayloadError::Key { .. }
        | PayloadError::Trust { .. } => 18,
        PayloadError::SourceMismatch { .. }
        | PayloadError::SourceMissing { .. }
        | PayloadError::OperationSourceMismatch { .. }
        | PayloadError::OperationSourceMissing { .. }
        | PayloadError::Resume { .. } => 20,
        PayloadError::TargetMismatch { .. } | PayloadError::RootHashMismatch { .. } => 15,
        // The operation itself: its data, its place, its reads and writes.
        _ => 28,
    }
}

/// What is verified after writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Artefact {
    /// The USR image.
    Image,
    /// The kernel file.
    Kernel,
    /// The PCR policy archive.
    PcrPolicy,
    /// A further partition.
    Partition,
}

impl std::fmt::Display for Artefact {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Image => "USR image",
            Self::Kernel => "kernel",
            Self::PcrPolicy => "PCR policy",
            Self::Partition => "partition",
        })
    }
}

/// Failure of one HTTP exchange.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The HTTP client could not be made or the request could not be sent.
    #[error("{0}")]
    Http(String),
    /// Status that is no success.
    #[error("HTTP status {0}")]
    Status(u16),
    /// The server ignored or misread the range asked for.
    #[error(
        "asked for the bytes from {asked} on, got {got}: the server must answer ranges with 206 and the right Content-Range"
    )]
    Range {
        /// First byte asked for.
        asked: u64,
        /// What the answer says.
        got: String,
    },
    /// The body ended early.
    #[error("the connection ended after {received} of {expected} bytes")]
    Short {
        /// Bytes of the whole file so far.
        received: u64,
        /// Bytes of the whole file.
        expected: u64,
    },
    /// The body goes on after the announced size.
    #[error("the server sends more than the {expected} bytes of the offer")]
    Long {
        /// Bytes of the offer.
        expected: u64,
    },
    /// Too slow for too long.
    #[error("fewer than {bytes} bytes arrived within {seconds} seconds")]
    Stalled {
        /// Least bytes in the window.
        bytes: u64,
        /// Window length.
        seconds: u64,
    },
}

impl UpdateError {
    /// The published code of this failure, without flag bits
    /// (update_engine's `kActionCode…`; 2000 + n for HTTP status n).
    pub fn code(&self) -> u32 {
        match self {
            Self::Internal(_) | Self::State { .. } | Self::Configuration(_) => 1,
            Self::Slots(_) => 3,
            Self::PostInstall(_) => 5,
            Self::Boot(_) => 6,
            Self::Device { .. } | Self::NoRoom { .. } | Self::Locked(_) => 7,
            Self::Transfer { .. } => 9,
            Self::PayloadHash { .. } => 10,
            Self::PayloadSize { .. } => 11,
            Self::ReadBack {
                object: Artefact::Image | Artefact::Partition,
                ..
            } => 15,
            Self::ReadBack {
                object: Artefact::Kernel,
                ..
            } => 16,
            Self::ReadBack {
                object: Artefact::PcrPolicy,
                ..
            } => 42,
            Self::TrustKeys(_) => 18,
            Self::SourceMismatch { .. } => 20,
            Self::TooSmall { .. }
            | Self::EncodersMissing { .. }
            | Self::PartitionUnmapped { .. }
            | Self::BootUnmounted => 28,
            Self::Payload(error) => payload_code(error),
            Self::EmptyAnswer { .. } => 30,
            Self::AnswerUnreadable { .. } | Self::AnswerTooLong { .. } => 31,
            Self::AnswerInvalid(_) => 34,
            Self::Ignored { .. } | Self::ReleaseRefused { .. } => 35,
            Self::Deferred { .. } | Self::Cancelled => 36,
            Self::Backoff { .. } => 40,
            Self::PcrPolicyServer { .. } => 43,
            Self::ServerUnreachable { .. } => 2000,
            Self::ServerStatus { status, .. } => 2000 + u32::from((*status).min(999)),
        }
    }

    /// Whether the bytes installed so far stay useful, so that the next attempt
    /// resumes. As in the original, only what interrupts a transfer is.
    pub fn keeps_checkpoint(&self) -> bool {
        match self {
            // A server that cannot do ranges would refuse every resume for ever.
            Self::Transfer {
                source: TransportError::Range { .. },
                ..
            } => false,
            Self::Transfer { .. } | Self::Cancelled => true,
            _ => false,
        }
    }

    /// The whole chain of causes in one line, for people.
    pub fn words(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}
