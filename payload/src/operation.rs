//! One step of an update, validated: what to do, with which data, where.

use crate::error::{Cause, PayloadError};
use crate::extent::{self, Extent};

/// One step of an update.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Position in the manifest's order, the partition's operations first.
    pub index: usize,
    /// What to do.
    pub kind: OperationKind,
    /// The data of this step in the payload; empty when it carries none.
    pub blob: Blob,
    /// Where the result goes, in order. May be longer than the result.
    pub destination: Vec<Extent>,
}

/// What an [`Operation`] does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OperationKind {
    /// Write the data as it is.
    Replace,
    /// Write the data after bzip2 decompression.
    ReplaceBz,
    /// Copy from elsewhere in the same image.
    Move {
        /// Where to read, in order; as many bytes as the destination.
        source: Vec<Extent>,
    },
    /// Patch bytes of the same image; the data is a `BSDIFF40` patch.
    Bsdiff {
        /// Where to read, in order.
        source: Vec<Extent>,
        /// Bytes of `source` that count, from its start.
        source_length: u64,
        /// Bytes that the patch makes; at most those of the destination.
        target_length: u64,
    },
    /// Belongs to a procedure of unknown type: its data is read and checked, nothing is done.
    Skipped,
}

/// Data of an operation in the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blob {
    /// Byte offset from the end of the manifest.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
    /// SHA-256 of the data. That of no bytes when `length` is 0.
    pub sha256: [u8; 32],
}

impl Operation {
    /// The type's name in the format's definition.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self.kind {
            OperationKind::Replace => "REPLACE",
            OperationKind::ReplaceBz => "REPLACE_BZ",
            OperationKind::Move { .. } => "MOVE",
            OperationKind::Bsdiff { .. } => "BSDIFF",
            OperationKind::Skipped => "UNKNOWN",
        }
    }

    /// Where it reads from the image; empty for operations that only write.
    #[must_use]
    pub fn source(&self) -> &[Extent] {
        match &self.kind {
            OperationKind::Move { source } | OperationKind::Bsdiff { source, .. } => source,
            OperationKind::Replace | OperationKind::ReplaceBz | OperationKind::Skipped => &[],
        }
    }

    /// Whether it may be run twice in a row: it overwrites nothing that it reads.
    ///
    /// An interrupted operation that is not idempotent has destroyed its own
    /// source, so the update must start over from a fresh copy of the old image.
    #[must_use]
    pub fn is_idempotent(&self) -> bool {
        !extent::overlap(self.source(), &self.destination)
    }

    /// The error of this operation for a `cause` in its data or in memory.
    pub(crate) fn failed(&self, cause: impl Into<Cause>) -> PayloadError {
        PayloadError::OperationFailed {
            index: self.index,
            kind: self.name(),
            source: cause.into(),
        }
    }
}
