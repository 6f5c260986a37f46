//! Checks of single operations, and the manifest of version 1 made of them.

use std::ops::Range;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::{ImageInfo, Limits, Manifest, Part, Procedure, Target};
use crate::error::PayloadError;
use crate::extent::{self, Extent};
use crate::header::{Format, Header};
use crate::operation::{Blob, OldBytes, Operation, OperationKind, Window, number};
use crate::wire;

/// Walks over the decoded message and keeps the running totals.
pub(super) struct Validator<'a> {
    pub(super) limits: &'a Limits,
    pub(super) format: Format,
    pub(super) block_size: u32,
    /// What RECOMPRESS operations may refer to.
    pub(super) encoders: Arc<[String]>,
    pub(super) metadata_size: u64,
    pub(super) metadata_signature: Option<Range<u64>>,
    pub(super) operations: usize,
    pub(super) blobs_size: u64,
    destinations: u64,
    sources: u64,
}

/// The sizes of the images that the operations of one part turn into each other,
/// where they bind: version 1 does not hold extents to them.
#[derive(Clone, Copy)]
pub(super) struct Bounds {
    pub(super) old: Option<u64>,
    pub(super) new: u64,
}

impl<'a> Validator<'a> {
    const DEFAULT_BLOCK_SIZE: u32 = 4096;

    pub(super) fn new(
        header: &Header,
        limits: &'a Limits,
        block_size: Option<u32>,
    ) -> Result<Self, PayloadError> {
        let block_size = block_size.unwrap_or(Self::DEFAULT_BLOCK_SIZE);
        if !(512..=1 << 20).contains(&block_size) || !block_size.is_power_of_two() {
            return Err(refused(
                "block_size",
                format!("{block_size} is not a power of two from 512 to 1048576"),
            ));
        }
        let signed = extent::size(header.size()).saturating_add(header.manifest_size);
        let metadata_size = signed.saturating_add(header.metadata_signature_size.into());
        Ok(Self {
            limits,
            format: header.format,
            block_size,
            encoders: Arc::new([]),
            metadata_size,
            metadata_signature: (metadata_size > signed).then_some(signed..metadata_size),
            operations: 0,
            blobs_size: 0,
            destinations: 0,
            sources: 0,
        })
    }

    pub(super) fn manifest(
        mut self,
        message: &wire::DeltaArchiveManifest,
    ) -> Result<Manifest, PayloadError> {
        let operations =
            self.operations("partition_operations", &message.partition_operations, None)?;
        let partition = Part {
            operations,
            old: optional_info("old_partition_info", message.old_partition_info.as_ref())?,
            new: optional_info("new_partition_info", message.new_partition_info.as_ref())?
                .ok_or(PayloadError::PartitionInfoMissing)?,
            hash_tree: None,
            version: None,
        };
        let mut procedures = Vec::with_capacity(message.procedures.len());
        for (number, procedure) in message.procedures.iter().enumerate() {
            let place = format!("procedures[{number}]");
            let procedure = self.procedure(&place, procedure)?;
            let target = procedure.target();
            let known = !matches!(target, Target::Unknown(_));
            if known
                && procedures
                    .iter()
                    .any(|other: &Procedure| other.target() == target)
            {
                return Err(refused(
                    &place,
                    format!("a second procedure for the {target}"),
                ));
            }
            procedures.push(procedure);
        }
        // `noop_operations` repeat the procedures' data for clients that know no
        // procedures; reading them too would run that data twice.
        let signatures = self.signatures(message.signatures_offset, message.signatures_size)?;
        Ok(Manifest {
            format: self.format,
            minor_version: 0,
            block_size: self.block_size,
            partition,
            procedures,
            procedures_before: 0,
            metadata_size: self.metadata_size,
            metadata_signature: None,
            blobs_size: self.blobs_size,
            signatures,
            release: None,
            encoders: self.encoders,
            max_timestamp: None,
            partial_update: false,
            security_patch_level: None,
        })
    }

    fn procedure(
        &mut self,
        place: &str,
        message: &wire::InstallProcedure,
    ) -> Result<Procedure, PayloadError> {
        let kind = message
            .kind
            .ok_or_else(|| refused(place, "type is missing"))?;
        let operations_place = format!("{place}.operations");
        let known: fn(Part) -> Procedure = match kind {
            0 => Procedure::Kernel,
            1 => Procedure::PcrPolicy,
            _ => {
                let operations = message.operations.iter().enumerate();
                let operations = operations
                    .map(|(number, message)| {
                        self.skipped(&format!("{operations_place}[{number}]"), message)
                    })
                    .collect::<Result<_, _>>()?;
                return Ok(Procedure::Unknown { kind, operations });
            }
        };
        let new_place = format!("{place}.new_info");
        Ok(known(Part {
            operations: self.operations(&operations_place, &message.operations, None)?,
            old: optional_info(&format!("{place}.old_info"), message.old_info.as_ref())?,
            new: optional_info(&new_place, message.new_info.as_ref())?
                .ok_or_else(|| refused(&new_place, "missing"))?,
            hash_tree: None,
            version: None,
        }))
    }

    pub(super) fn operations(
        &mut self,
        place: &str,
        messages: &[wire::InstallOperation],
        bounds: Option<Bounds>,
    ) -> Result<Vec<Arc<Operation>>, PayloadError> {
        let messages = messages.iter().enumerate();
        messages
            .map(|(number, message)| self.operation(&format!("{place}[{number}]"), message, bounds))
            .collect()
    }

    fn operation(
        &mut self,
        place: &str,
        message: &wire::InstallOperation,
        bounds: Option<Bounds>,
    ) -> Result<Arc<Operation>, PayloadError> {
        let kind = message
            .kind
            .ok_or_else(|| refused(place, "type is missing"))?;
        let blob = self.blob(place, message)?;
        let destination_place = format!("{place}.dst_extents");
        let destination = self.extents(&destination_place, &message.dst_extents)?;
        if let Some(bounds) = bounds {
            self.check_inside(&destination_place, &destination, bounds.new)?;
            if extent::overlap_themselves(&destination) {
                return Err(refused(&destination_place, "a block is written twice"));
            }
        }
        let destination_bytes = extent::total(&destination);
        self.count_destination(&destination_place, destination_bytes)?;
        let kind = self.kind(place, kind, message, destination_bytes, bounds)?;
        let operation = Operation {
            index: self.next_index(),
            kind,
            blob,
            destination,
        };
        self.check_lengths(place, &operation, destination_bytes)?;
        Ok(Arc::new(operation))
    }

    /// Adds to what is written, which has a ceiling.
    pub(super) fn count_destination(
        &mut self,
        place: &str,
        bytes: u64,
    ) -> Result<(), PayloadError> {
        self.destinations = self.destinations.saturating_add(bytes);
        let limit = self.limits.destinations;
        if self.destinations > limit {
            return Err(refused(
                place,
                format!("destinations add up to more than {limit} bytes"),
            ));
        }
        Ok(())
    }

    fn kind(
        &mut self,
        place: &str,
        kind: i32,
        message: &wire::InstallOperation,
        destination_bytes: u64,
        bounds: Option<Bounds>,
    ) -> Result<OperationKind, PayloadError> {
        let only_in = |format: Format, name: &str| {
            if self.format == format {
                Ok(())
            } else {
                let reason = format!("{name} belongs to version {}", format.number());
                Err(refused(place, reason))
            }
        };
        let source_place = format!("{place}.src_extents");
        Ok(match kind {
            number::REPLACE => OperationKind::Replace,
            number::REPLACE_BZ => OperationKind::ReplaceBz,
            number::MOVE => {
                only_in(Format::V1, "MOVE")?;
                OperationKind::Move {
                    source: self.extents(&source_place, &message.src_extents)?,
                }
            }
            number::BSDIFF => {
                only_in(Format::V1, "BSDIFF")?;
                OperationKind::Bsdiff {
                    source: self.extents(&source_place, &message.src_extents)?,
                    source_length: message.src_length.unwrap_or(0),
                    target_length: message.dst_length.unwrap_or(0),
                }
            }
            number::SOURCE_COPY => {
                only_in(Format::V2, "SOURCE_COPY")?;
                OperationKind::SourceCopy {
                    source: self.old_bytes(place, message, bounds)?,
                }
            }
            number::SOURCE_BSDIFF => {
                only_in(Format::V2, "SOURCE_BSDIFF")?;
                let source = self.old_bytes(place, message, bounds)?;
                OperationKind::SourceBsdiff {
                    source_length: message
                        .src_length
                        .unwrap_or_else(|| extent::total(&source.extents)),
                    source,
                    target_length: message.dst_length.unwrap_or(destination_bytes),
                }
            }
            number::ZERO => {
                only_in(Format::V2, "ZERO")?;
                OperationKind::Zero
            }
            number::DISCARD => {
                only_in(Format::V2, "DISCARD")?;
                OperationKind::Discard
            }
            number::REPLACE_XZ => {
                only_in(Format::V2, "REPLACE_XZ")?;
                OperationKind::ReplaceXz
            }
            number::REPLACE_ZSTD => {
                only_in(Format::V2, "REPLACE_ZSTD")?;
                OperationKind::ReplaceZstd
            }
            number::DELTA => {
                only_in(Format::V2, "DELTA")?;
                let source = self.old_bytes(place, message, bounds)?;
                let window = self.window(place, message, destination_bytes)?;
                OperationKind::Delta { source, window }
            }
            number::RECOMPRESS => {
                only_in(Format::V2, "RECOMPRESS")?;
                let source = self.old_bytes(place, message, bounds)?;
                let window = self.window(place, message, destination_bytes)?;
                OperationKind::Recompress {
                    source,
                    window,
                    encoders: Arc::clone(&self.encoders),
                }
            }
            other => {
                return Err(refused(
                    place,
                    match number::name_of_unsupported(other) {
                        Some(name) => format!("operation type {other} ({name}) is not supported"),
                        None => format!("unknown operation type {other}"),
                    },
                ));
            }
        })
    }

    /// What an operation reads of the old image. Only our own types may read nothing.
    fn old_bytes(
        &mut self,
        place: &str,
        message: &wire::InstallOperation,
        bounds: Option<Bounds>,
    ) -> Result<OldBytes, PayloadError> {
        let source_place = format!("{place}.src_extents");
        let mut extents = self.extents(&source_place, &message.src_extents)?;
        if extent::total(&extents) == 0 {
            return Ok(OldBytes {
                extents: Vec::new(),
                sha256: Sha256::digest([]).into(),
            });
        }
        let old = bounds
            .and_then(|bounds| bounds.old)
            .ok_or_else(|| refused(&source_place, "there is no old image in old_partition_info"))?;
        self.check_inside(&source_place, &extents, old)?;
        extent::cut_at(&mut extents, old);
        let bytes = extent::total(&extents);
        self.sources = self.sources.saturating_add(bytes);
        if self.sources > self.limits.sources {
            let limit = self.limits.sources;
            return Err(refused(
                &source_place,
                format!("sources add up to more than {limit} bytes"),
            ));
        }
        let hash_place = format!("{place}.src_sha256_hash");
        let hash = message
            .src_sha256_hash
            .as_deref()
            .ok_or_else(|| refused(&hash_place, "missing"))?;
        Ok(OldBytes {
            extents,
            sha256: sha256(&hash_place, hash)?,
        })
    }

    /// Which bytes of its destination one of our own operations makes.
    fn window(
        &self,
        place: &str,
        message: &wire::InstallOperation,
        destination_bytes: u64,
    ) -> Result<Window, PayloadError> {
        let block_size = u64::from(self.block_size);
        let skip = message.dst_skip.unwrap_or(0);
        if skip >= block_size {
            return Err(refused(
                &format!("{place}.dst_skip"),
                format!("{skip} is not less than the block size {block_size}"),
            ));
        }
        let length_place = format!("{place}.dst_length");
        let length = message.dst_length.unwrap_or(0);
        if length == 0 {
            return Err(refused(&length_place, "missing or 0"));
        }
        let covered = skip
            .checked_add(length)
            .and_then(|end| end.checked_next_multiple_of(block_size));
        if covered != Some(destination_bytes) {
            return Err(refused(
                &length_place,
                format!(
                    "{length} bytes after {skip} do not fill the {destination_bytes} bytes of dst_extents"
                ),
            ));
        }
        Ok(Window { skip, length })
    }

    /// Refuses extents that reach behind the last block of an image of `size` bytes.
    fn check_inside(&self, place: &str, extents: &[Extent], size: u64) -> Result<(), PayloadError> {
        let end_of_image = size.next_multiple_of(self.block_size.into());
        for (number, extent) in extents.iter().enumerate() {
            if let Extent::Run { offset, length } = extent
                && offset.saturating_add(*length) > end_of_image
            {
                return Err(refused(
                    &format!("{place}[{number}]"),
                    format!("{length} bytes at {offset} reach behind the image of {size} bytes"),
                ));
            }
        }
        Ok(())
    }

    /// An operation of an unknown procedure: only its data matters, since the
    /// following data can be found in no other way.
    fn skipped(
        &mut self,
        place: &str,
        message: &wire::InstallOperation,
    ) -> Result<Arc<Operation>, PayloadError> {
        let blob = self.blob(place, message)?;
        Ok(Arc::new(Operation {
            index: self.next_index(),
            kind: OperationKind::Skipped,
            blob,
            destination: Vec::new(),
        }))
    }

    fn next_index(&mut self) -> usize {
        self.operations += 1;
        self.operations - 1
    }

    /// Data must lie back to back in operation order, or a stream could not be applied.
    fn blob(
        &mut self,
        place: &str,
        message: &wire::InstallOperation,
    ) -> Result<Blob, PayloadError> {
        let index = self.operations;
        let expected = self.blobs_size;
        let length = message.data_length.unwrap_or(0);
        if length == 0 {
            return Ok(Blob {
                offset: expected,
                length,
                sha256: Sha256::digest([]).into(),
            });
        }
        let found = message.data_offset.unwrap_or(0);
        if found != expected {
            return Err(PayloadError::OperationOffset {
                index,
                expected,
                found,
            });
        }
        if length > self.limits.blob {
            return Err(PayloadError::OperationTooLarge {
                index,
                what: "data",
                size: length,
                limit: self.limits.blob,
            });
        }
        let hash = message.data_sha256_hash.as_deref().unwrap_or_default();
        if hash.is_empty() {
            return Err(PayloadError::OperationHashMissing { index });
        }
        let sha256 = sha256(&format!("{place}.data_sha256_hash"), hash)?;
        self.blobs_size = expected + length;
        Ok(Blob {
            offset: expected,
            length,
            sha256,
        })
    }

    fn check_lengths(
        &self,
        place: &str,
        operation: &Operation,
        destination_bytes: u64,
    ) -> Result<(), PayloadError> {
        let source_bytes = extent::total(operation.source());
        let without_data = |name: &str| match operation.blob.length {
            0 => Ok(()),
            _ => Err(refused(place, format!("a {name} carries data"))),
        };
        match &operation.kind {
            OperationKind::Replace
            | OperationKind::ReplaceBz
            | OperationKind::ReplaceXz
            | OperationKind::ReplaceZstd
            | OperationKind::Skipped => {}
            OperationKind::Zero | OperationKind::Discard => without_data(operation.name())?,
            OperationKind::Move { .. } | OperationKind::SourceCopy { .. } => {
                let name = operation.name();
                without_data(name)?;
                // The source of a copy may be cut at the end of the old image.
                let source_bytes = match operation.kind {
                    OperationKind::Move { .. } => source_bytes,
                    _ => source_bytes.next_multiple_of(self.block_size.into()),
                };
                if source_bytes != destination_bytes {
                    return Err(refused(
                        place,
                        format!(
                            "a {name} reads {source_bytes} bytes but writes {destination_bytes}"
                        ),
                    ));
                }
            }
            OperationKind::Bsdiff {
                source_length,
                target_length,
                ..
            }
            | OperationKind::SourceBsdiff {
                source_length,
                target_length,
                ..
            } => {
                if *source_length > source_bytes {
                    return Err(refused(
                        place,
                        format!(
                            "src_length {source_length} exceeds the {source_bytes} bytes of src_extents"
                        ),
                    ));
                }
                if *target_length > destination_bytes {
                    return Err(refused(
                        place,
                        format!(
                            "dst_length {target_length} exceeds the {destination_bytes} bytes of dst_extents"
                        ),
                    ));
                }
            }
            OperationKind::Delta { window, .. } | OperationKind::Recompress { window, .. } => {
                let limit = self.limits.window;
                for (what, size) in [("source", source_bytes), ("result", window.length)] {
                    if size > limit {
                        return Err(PayloadError::OperationTooLarge {
                            index: operation.index,
                            what,
                            size,
                            limit,
                        });
                    }
                }
            }
        }
        let source_in_memory = match &operation.kind {
            OperationKind::SourceBsdiff { .. } => true,
            _ => operation.reads_target() && !operation.is_idempotent(),
        };
        if source_bytes > self.limits.source && source_in_memory {
            return Err(PayloadError::OperationTooLarge {
                index: operation.index,
                what: "source",
                size: source_bytes,
                limit: self.limits.source,
            });
        }
        Ok(())
    }

    fn extents(&self, place: &str, messages: &[wire::Extent]) -> Result<Vec<Extent>, PayloadError> {
        let entries = messages.iter().enumerate();
        let extents: Vec<Extent> = entries
            .map(|(number, message)| self.extent(&format!("{place}[{number}]"), message))
            .collect::<Result<_, _>>()?;
        if i64::try_from(extent::total(&extents)).is_err() {
            return Err(refused(place, "they add up beyond any image"));
        }
        Ok(extents)
    }

    pub(super) fn extent(
        &self,
        place: &str,
        message: &wire::Extent,
    ) -> Result<Extent, PayloadError> {
        const HOLE: u64 = u64::MAX;
        let block_size = u64::from(self.block_size);
        // What the operating system can address in a file.
        let in_bytes = |blocks: u64| {
            blocks
                .checked_mul(block_size)
                .filter(|bytes| i64::try_from(*bytes).is_ok())
        };
        let start = message.start_block.unwrap_or(0);
        let blocks = message.num_blocks.unwrap_or(0);
        let extent = if start == HOLE {
            in_bytes(blocks).map(|length| Extent::Hole { length })
        } else {
            let end = start.checked_add(blocks).and_then(in_bytes);
            end.map(|_| Extent::Run {
                offset: start * block_size,
                length: blocks * block_size,
            })
        };
        extent.ok_or_else(|| {
            refused(
                place,
                format!("{blocks} blocks at block {start} are beyond any image"),
            )
        })
    }

    pub(super) fn signatures(
        &self,
        offset: Option<u64>,
        size: Option<u64>,
    ) -> Result<Option<Range<u64>>, PayloadError> {
        let (offset, size) = match (offset, size) {
            (None, None) => return Ok(None),
            (Some(offset), Some(size)) if size > 0 => (offset, size),
            _ => {
                return Err(refused(
                    "signatures_size",
                    "signatures without a size or an offset",
                ));
            }
        };
        if size > self.limits.signatures {
            let limit = self.limits.signatures;
            return Err(refused(
                "signatures_size",
                format!("{size} bytes, the limit is {limit}"),
            ));
        }
        if offset != self.blobs_size {
            return Err(PayloadError::OperationOffset {
                index: self.operations,
                expected: self.blobs_size,
                found: offset,
            });
        }
        let start = self.metadata_size + self.blobs_size;
        Ok(Some(start..start + size))
    }
}

pub(super) fn optional_info(
    place: &str,
    message: Option<&wire::InstallInfo>,
) -> Result<Option<ImageInfo>, PayloadError> {
    message.map(|message| info(place, message)).transpose()
}

fn info(place: &str, message: &wire::InstallInfo) -> Result<ImageInfo, PayloadError> {
    let size = message
        .size
        .ok_or_else(|| refused(place, "size is missing"))?;
    if i64::try_from(size).is_err() {
        return Err(refused(place, format!("size {size} is beyond any image")));
    }
    let hash = message
        .hash
        .as_deref()
        .ok_or_else(|| refused(place, "hash is missing"))?;
    Ok(ImageInfo {
        size,
        sha256: sha256(&format!("{place}.hash"), hash)?,
    })
}

pub(super) fn sha256(place: &str, bytes: &[u8]) -> Result<[u8; 32], PayloadError> {
    <[u8; 32]>::try_from(bytes).map_err(|_| {
        refused(
            place,
            format!("a SHA-256 has 32 bytes, not {}", bytes.len()),
        )
    })
}

pub(super) fn refused(place: &str, reason: impl Into<String>) -> PayloadError {
    PayloadError::Manifest {
        place: place.to_owned(),
        reason: reason.into(),
    }
}
