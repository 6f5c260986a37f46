//! From prepared operations to a version 2 payload: what both makers of full
//! payloads and makers of deltas end in.
//!
//! ```text
//! blob ─▶ Scratch::append ─▶ StoredBlob ┐
//!          blocks, hashes, window ──────┴▶ PreparedOperation ┐
//!             name, old and new info ────────────────────────┴▶ PreparedPart ┐
//!                encoders, release ───────────────────────────────── Parts ──┴▶ Draft
//! ```

use std::io::{Read, Seek, Write};

use super::scratch::{Piece, Scratch, StoredBlob};
use super::{BLOCK_SIZE, Draft, MakeError, Profile};
use crate::header::{Format, Header};
use crate::manifest::{ImageInfo, KERNEL, Limits, Manifest, OWN_MINOR_VERSION, USR};
use crate::operation::{Window, number};
use crate::release::Release;
use crate::{extent, wire};
use prost::Message;

/// Everything that a version 2 payload is made of, but its blobs.
#[derive(Clone, Debug, Default)]
pub struct Parts {
    /// The update of the partition.
    pub partition: Option<PreparedPart>,
    /// The update of the kernel file.
    pub kernel: Option<PreparedPart>,
    /// Updates of further partitions, with their names.
    pub named: Vec<(String, PreparedPart)>,
    /// What RECOMPRESS operations compress with; their data refers to these by position.
    pub encoders: Vec<String>,
    /// What the makers say of the release.
    pub release: Option<Release>,
}

/// The update of one image or file.
#[derive(Clone, Debug)]
pub struct PreparedPart {
    /// What operations read; `None` for a full payload.
    pub old: Option<ImageInfo>,
    /// What comes out.
    pub new: ImageInfo,
    /// The steps, in the order in which machines run them and their data arrives.
    pub operations: Vec<PreparedOperation>,
}

/// One step.
#[derive(Clone, Debug)]
pub struct PreparedOperation {
    /// What it does.
    pub kind: PreparedKind,
    /// The blocks that it writes, in order; no block twice.
    pub destination: Vec<Blocks>,
    /// Its data, where its kind has some. May lie anywhere in the scratch file.
    pub blob: Option<StoredBlob>,
}

/// A run of blocks of [`BLOCK_SIZE`] bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// The first of them.
    pub start: u64,
    /// How many.
    pub count: u64,
}

/// What a [`PreparedOperation`] does; see [`crate::OperationKind`].
#[derive(Clone, Debug)]
pub enum PreparedKind {
    /// Write the data as it is.
    Replace,
    /// Write the data after bzip2 decompression.
    ReplaceBz,
    /// Write the data after xz decompression.
    ReplaceXz,
    /// Write the data after Zstandard decompression. Not in [`Profile::V2Aosp`].
    ReplaceZstd,
    /// Write zeros.
    Zero,
    /// Whatever was there does not matter.
    Discard,
    /// Copy; as many blocks as the destination has.
    SourceCopy(PreparedSource),
    /// Patch with `BSDIFF40`.
    SourceBsdiff {
        /// What to patch.
        source: PreparedSource,
        /// Bytes that the patch makes.
        length: u64,
    },
    /// Patch with our own form. Not in [`Profile::V2Aosp`].
    Delta {
        /// What to patch; nothing when the data alone makes the result.
        source: Option<PreparedSource>,
        /// Which bytes of the destination are made.
        window: Window,
    },
    /// Make and compress. Not in [`Profile::V2Aosp`].
    Recompress {
        /// What to start from, if anything.
        source: Option<PreparedSource>,
        /// Which bytes of the destination are made.
        window: Window,
    },
}

/// What an operation reads of the old image.
#[derive(Clone, Debug)]
pub struct PreparedSource {
    /// The blocks, in order; a block may come twice. The last block of a file whose
    /// size is not a multiple of the block size counts only as far as the file goes.
    pub blocks: Vec<Blocks>,
    /// SHA-256 of their bytes, one after another.
    pub sha256: [u8; 32],
}

impl Parts {
    /// Minor version of deltas with standard operations: the newest that brought
    /// none that is not made here, and 64-bit offsets.
    const AOSP_DELTA_MINOR_VERSION: u32 = 6;

    /// Puts the manifest together and holds it to everything that readers will hold
    /// it to. Blobs are copied in the order of the operations when it is written.
    ///
    /// # Errors
    /// [`MakeError::NotStandard`] for an operation that `profile` does not allow,
    /// [`MakeError::NeedsVersion2`] for version 1, and [`MakeError::Payload`] with the
    /// place of what no reader would take.
    pub fn draft<S: Read + Write + Seek>(
        self,
        profile: Profile,
        scratch: Scratch<S>,
    ) -> Result<Draft<S>, MakeError> {
        if profile == Profile::V1 {
            return Err(MakeError::NeedsVersion2 {
                what: "prepared operations",
            });
        }
        let minor_version = self.minor_version(profile)?;
        let mut blobs = Blobs::default();
        let mut partitions = Vec::new();
        for (name, part) in [(USR, self.partition), (KERNEL, self.kernel)] {
            if let Some(part) = part {
                partitions.push(part.into_wire(name, &mut blobs));
            }
        }
        for (name, part) in self.named {
            partitions.push(part.into_wire(&name, &mut blobs));
        }
        let manifest = wire::DeltaArchiveManifestV2 {
            block_size: Some(BLOCK_SIZE),
            minor_version: Some(minor_version),
            partitions,
            release: self.release.map(Release::into_wire),
            encoders: self.encoders,
            ..Default::default()
        };
        check_readable(&manifest)?;
        Ok(Draft::of_pieces(
            manifest,
            scratch.into_file(),
            blobs.pieces,
        ))
    }

    fn minor_version(&self, profile: Profile) -> Result<u32, MakeError> {
        let named = || self.named.iter().map(|(_, part)| part);
        let parts = || self.partition.iter().chain(&self.kernel).chain(named());
        let operations = || parts().flat_map(|part| &part.operations).enumerate();
        if profile == Profile::V2Aosp {
            let own =
                operations().find(|(_, operation)| operation.kind.number() >= number::REPLACE_ZSTD);
            if let Some((index, operation)) = own {
                return Err(MakeError::NotStandard {
                    index,
                    number: operation.kind.number(),
                });
            }
        }
        let is_delta = parts().any(|part| part.old.is_some())
            || operations().any(|(_, operation)| operation.kind.is_patch());
        let has_own =
            operations().any(|(_, operation)| operation.kind.number() >= number::REPLACE_ZSTD);
        Ok(match (is_delta, has_own) {
            (false, _) => 0,
            (true, false) => Self::AOSP_DELTA_MINOR_VERSION,
            (true, true) => OWN_MINOR_VERSION,
        })
    }
}

/// Refuses now what every reader would refuse later.
pub(super) fn check_readable(manifest: &wire::DeltaArchiveManifestV2) -> Result<(), MakeError> {
    let encoded = manifest.encode_to_vec();
    let header = Header {
        format: Format::V2,
        manifest_size: extent::size(encoded.len()),
        metadata_signature_size: 0,
    };
    let limits = Limits::default();
    if header.manifest_size > limits.manifest {
        return Err(MakeError::Payload(crate::PayloadError::MetadataTooLarge {
            size: header.manifest_size,
            limit: limits.manifest,
        }));
    }
    Manifest::parse(&header, &encoded, &limits)?;
    Ok(())
}

/// The blob area as it will be: pieces of the scratch file, one after another.
#[derive(Default)]
struct Blobs {
    pieces: Vec<Piece>,
    len: u64,
}

impl Blobs {
    /// Returns the offset that the blob will have.
    fn append(&mut self, blob: StoredBlob) -> u64 {
        match self.pieces.last_mut() {
            Some(last) if last.offset.saturating_add(last.length) == blob.offset => {
                last.length = last.length.saturating_add(blob.length);
            }
            _ => self.pieces.push(Piece {
                offset: blob.offset,
                length: blob.length,
            }),
        }
        let offset = self.len;
        self.len = offset.saturating_add(blob.length);
        offset
    }
}

impl PreparedPart {
    fn into_wire(self, name: &str, blobs: &mut Blobs) -> wire::PartitionUpdate {
        let operations = self.operations.into_iter();
        wire::PartitionUpdate {
            partition_name: Some(name.to_owned()),
            old_partition_info: self.old.map(info),
            new_partition_info: Some(info(self.new)),
            operations: operations
                .map(|operation| operation.into_wire(blobs))
                .collect(),
            ..Default::default()
        }
    }
}

impl PreparedOperation {
    fn into_wire(self, blobs: &mut Blobs) -> wire::InstallOperation {
        let mut message = wire::InstallOperation {
            kind: Some(self.kind.number()),
            dst_extents: extents(&self.destination),
            ..Default::default()
        };
        if let Some(blob) = self.blob.filter(|blob| blob.length > 0) {
            message.data_offset = Some(blobs.append(blob));
            message.data_length = Some(blob.length);
            message.data_sha256_hash = Some(blob.sha256.to_vec());
        }
        match self.kind {
            PreparedKind::Replace
            | PreparedKind::ReplaceBz
            | PreparedKind::ReplaceXz
            | PreparedKind::ReplaceZstd
            | PreparedKind::Zero
            | PreparedKind::Discard => {}
            PreparedKind::SourceCopy(source) => source.put_into(&mut message),
            PreparedKind::SourceBsdiff { source, length } => {
                source.put_into(&mut message);
                message.dst_length = Some(length);
            }
            PreparedKind::Delta { source, window }
            | PreparedKind::Recompress { source, window } => {
                if let Some(source) = source {
                    source.put_into(&mut message);
                }
                message.dst_skip = (window.skip > 0).then_some(window.skip);
                message.dst_length = Some(window.length);
            }
        }
        message
    }
}

impl PreparedKind {
    fn number(&self) -> i32 {
        match self {
            Self::Replace => number::REPLACE,
            Self::ReplaceBz => number::REPLACE_BZ,
            Self::ReplaceXz => number::REPLACE_XZ,
            Self::ReplaceZstd => number::REPLACE_ZSTD,
            Self::Zero => number::ZERO,
            Self::Discard => number::DISCARD,
            Self::SourceCopy(_) => number::SOURCE_COPY,
            Self::SourceBsdiff { .. } => number::SOURCE_BSDIFF,
            Self::Delta { .. } => number::DELTA,
            Self::Recompress { .. } => number::RECOMPRESS,
        }
    }

    fn is_patch(&self) -> bool {
        matches!(
            self,
            Self::SourceCopy(_)
                | Self::SourceBsdiff { .. }
                | Self::Delta { .. }
                | Self::Recompress { .. }
        )
    }
}

impl PreparedSource {
    fn put_into(self, message: &mut wire::InstallOperation) {
        message.src_extents = extents(&self.blocks);
        message.src_sha256_hash = Some(self.sha256.to_vec());
    }
}

fn extents(blocks: &[Blocks]) -> Vec<wire::Extent> {
    let extents = blocks.iter().map(|blocks| wire::Extent {
        start_block: Some(blocks.start),
        num_blocks: Some(blocks.count),
    });
    extents.collect()
}

fn info(info: ImageInfo) -> wire::InstallInfo {
    wire::InstallInfo {
        size: Some(info.size),
        hash: Some(info.sha256.to_vec()),
    }
}
