//! One step of an update, validated: what to do, with which data, where.

use std::sync::Arc;

use crate::error::{Cause, PayloadError};
use crate::extent::{self, Extent};

/// Numbers of the types on the wire.
pub(crate) mod number {
    pub(crate) const REPLACE: i32 = 0;
    pub(crate) const REPLACE_BZ: i32 = 1;
    pub(crate) const MOVE: i32 = 2;
    pub(crate) const BSDIFF: i32 = 3;
    pub(crate) const SOURCE_COPY: i32 = 4;
    pub(crate) const SOURCE_BSDIFF: i32 = 5;
    pub(crate) const ZERO: i32 = 6;
    pub(crate) const DISCARD: i32 = 7;
    pub(crate) const REPLACE_XZ: i32 = 8;
    // Our own, which no other reader knows.
    pub(crate) const REPLACE_ZSTD: i32 = 200;
    pub(crate) const DELTA: i32 = 201;
    pub(crate) const RECOMPRESS: i32 = 202;

    /// The name of a type that Android defines and this crate does not carry out.
    pub(crate) fn name_of_unsupported(number: i32) -> Option<&'static str> {
        Some(match number {
            9 => "PUFFDIFF",
            10 => "BROTLI_BSDIFF",
            11 => "ZUCCHINI",
            12 => "LZ4DIFF_BSDIFF",
            13 => "LZ4DIFF_PUFFDIFF",
            _ => return None,
        })
    }
}

/// One step of an update.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Position in the manifest's order.
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
    /// Write the data after xz decompression.
    ReplaceXz,
    /// Write the data after Zstandard decompression. Our own type.
    ReplaceZstd,
    /// Copy from elsewhere in the same image. Version 1 only.
    Move {
        /// Where to read, in order; as many bytes as the destination.
        source: Vec<Extent>,
    },
    /// Patch bytes of the same image; the data is a `BSDIFF40` patch. Version 1 only.
    Bsdiff {
        /// Where to read, in order.
        source: Vec<Extent>,
        /// Bytes of `source` that count, from its start.
        source_length: u64,
        /// Bytes that the patch makes; at most those of the destination.
        target_length: u64,
    },
    /// Copy from the old image.
    SourceCopy {
        /// What to copy.
        source: OldBytes,
    },
    /// Patch bytes of the old image; the data is a `BSDIFF40` patch.
    SourceBsdiff {
        /// What to patch.
        source: OldBytes,
        /// Bytes of `source` that count, from its start. Its hash is over all of it.
        source_length: u64,
        /// Bytes that the patch makes; at most those of the destination.
        target_length: u64,
    },
    /// Fill the destination with zeros.
    Zero,
    /// The content of the destination does not matter; it is filled with zeros.
    Discard,
    /// Patch bytes of the old image; the data is in the crate's own form. Our own type.
    Delta {
        /// What to patch.
        source: OldBytes,
        /// Where exactly the result goes within the destination.
        window: Window,
    },
    /// Make bytes and compress them as the encoders did that made the image. Our own type.
    Recompress {
        /// What to start from.
        source: OldBytes,
        /// Where exactly the result goes within the destination.
        window: Window,
        /// The manifest's encoders, which the data names by their position.
        encoders: Arc<[String]>,
    },
    /// Belongs to a procedure of unknown type: its data is read and checked, nothing is done.
    Skipped,
}

/// Bytes of the old image that an operation reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OldBytes {
    /// Where they lie, in order. Cut at the end of the old image, so the last block
    /// of a file may be shorter than others.
    pub extents: Vec<Extent>,
    /// SHA-256 of all of them, one after another. Checked before anything is written.
    pub sha256: [u8; 32],
}

/// The part of a destination that is written, when that is not whole blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Bytes at the start of the first block that belong to the operation before.
    pub skip: u64,
    /// Bytes written after those; what follows in the last block is left alone.
    pub length: u64,
}

/// Data of an operation in the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blob {
    /// Byte offset from the start of the data area.
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
            OperationKind::ReplaceXz => "REPLACE_XZ",
            OperationKind::ReplaceZstd => "REPLACE_ZSTD",
            OperationKind::Move { .. } => "MOVE",
            OperationKind::Bsdiff { .. } => "BSDIFF",
            OperationKind::SourceCopy { .. } => "SOURCE_COPY",
            OperationKind::SourceBsdiff { .. } => "SOURCE_BSDIFF",
            OperationKind::Zero => "ZERO",
            OperationKind::Discard => "DISCARD",
            OperationKind::Delta { .. } => "DELTA",
            OperationKind::Recompress { .. } => "RECOMPRESS",
            OperationKind::Skipped => "UNKNOWN",
        }
    }

    /// Where it reads, be it from the old image or, in version 1, from the target;
    /// empty for operations that only write.
    #[must_use]
    pub fn source(&self) -> &[Extent] {
        match &self.kind {
            OperationKind::Move { source } | OperationKind::Bsdiff { source, .. } => source,
            _ => self.old_bytes().map_or(&[], |old| &old.extents),
        }
    }

    /// What it reads of the old image; `None` for operations that only write and for
    /// those that read the target.
    #[must_use]
    pub fn old_bytes(&self) -> Option<&OldBytes> {
        match &self.kind {
            OperationKind::SourceCopy { source }
            | OperationKind::SourceBsdiff { source, .. }
            | OperationKind::Delta { source, .. }
            | OperationKind::Recompress { source, .. }
                if !source.extents.is_empty() =>
            {
                Some(source)
            }
            _ => None,
        }
    }

    /// Bytes that it writes; for data that is compressed, at most so many.
    #[must_use]
    pub fn bytes_written(&self) -> u64 {
        match &self.kind {
            OperationKind::Delta { window, .. } | OperationKind::Recompress { window, .. } => {
                window.length
            }
            OperationKind::Skipped => 0,
            _ => extent::total(&self.destination),
        }
    }

    /// Whether it reads the image that it writes, as deltas of version 1 do.
    #[must_use]
    pub fn reads_target(&self) -> bool {
        matches!(
            self.kind,
            OperationKind::Move { .. } | OperationKind::Bsdiff { .. }
        )
    }

    /// Whether it may be run twice in a row: it overwrites nothing that it reads.
    ///
    /// An interrupted operation that is not idempotent has destroyed its own
    /// source, so the update must start over from a fresh copy of the old image.
    #[must_use]
    pub fn is_idempotent(&self) -> bool {
        !self.reads_target() || !extent::overlap(self.source(), &self.destination)
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
