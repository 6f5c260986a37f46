//! The manifest: what a payload updates, in which steps, and what comes out.
//!
//! Everything here is validated. [`Manifest::parse`] refuses what could not be
//! carried out (data out of order, sizes that overflow, work without end) before
//! anything is written, and counts before it allocates. It stays lax where real
//! payloads are: extents may be longer than the data, full operations carry no
//! length of their result, operations without data need no hash.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use prost::Message;
use sha2::{Digest, Sha256};

use crate::error::PayloadError;
use crate::extent::{self, Extent};
use crate::header::Header;
use crate::operation::{Blob, Operation, OperationKind};
use crate::{shape, wire};

/// Ceilings for what a payload, not yet trusted, may make us allocate or do.
///
/// The defaults fit every payload known to exist for images up to several GiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the manifest.
    pub manifest: u64,
    /// Operations in the manifest, noop entries included.
    pub operations: usize,
    /// Extents in the manifest.
    pub extents: usize,
    /// Data bytes of one operation, held in memory until their hash is checked.
    pub blob: u64,
    /// Source bytes of one MOVE or BSDIFF that overwrites its own source, held in memory.
    pub source: u64,
    /// Bytes of all destinations together, which bounds the time spent decompressing.
    pub destinations: u64,
    /// Bytes of the signature message.
    pub signatures: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            manifest: 16 << 20,
            operations: 1 << 16,
            extents: 1 << 19,
            blob: 128 << 20,
            source: 512 << 20,
            destinations: 64 << 30,
            signatures: 64 << 10,
        }
    }
}

/// What an operation works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// The partition (USR slot) itself.
    Partition,
    /// The kernel file beside it.
    Kernel,
    /// The file with the TPM policy for the new system.
    PcrPolicy,
    /// A procedure of a type that this program does not know.
    Unknown(i32),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Partition => f.write_str("partition"),
            Target::Kernel => f.write_str("kernel"),
            Target::PcrPolicy => f.write_str("PCR policy"),
            Target::Unknown(kind) => write!(f, "procedure of unknown type {kind}"),
        }
    }
}

/// Size and hash of a whole image or file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageInfo {
    /// Size in bytes.
    pub size: u64,
    /// SHA-256 of the first `size` bytes.
    pub sha256: [u8; 32],
}

/// The steps that bring one image from `old` to `new`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The steps in order.
    pub operations: Vec<Arc<Operation>>,
    /// What the target must hold before the first step; absent for full payloads.
    pub old: Option<ImageInfo>,
    /// What it holds after the last.
    pub new: ImageInfo,
}

/// Steps for something beside the partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Procedure {
    /// The kernel file.
    Kernel(Part),
    /// The PCR policy file.
    PcrPolicy(Part),
    /// Of a type from a later version: its data is checked and skipped.
    Unknown {
        /// The type's number.
        kind: i32,
        /// Its steps, all [`OperationKind::Skipped`].
        operations: Vec<Arc<Operation>>,
    },
}

impl Procedure {
    /// What it works on.
    #[must_use]
    pub fn target(&self) -> Target {
        match self {
            Procedure::Kernel(_) => Target::Kernel,
            Procedure::PcrPolicy(_) => Target::PcrPolicy,
            Procedure::Unknown { kind, .. } => Target::Unknown(*kind),
        }
    }

    /// Its steps in order.
    #[must_use]
    pub fn operations(&self) -> &[Arc<Operation>] {
        match self {
            Procedure::Kernel(part) | Procedure::PcrPolicy(part) => &part.operations,
            Procedure::Unknown { operations, .. } => operations,
        }
    }

    fn part(&self) -> Option<&Part> {
        match self {
            Procedure::Kernel(part) | Procedure::PcrPolicy(part) => Some(part),
            Procedure::Unknown { .. } => None,
        }
    }
}

/// A payload's manifest, validated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Block size in bytes, a power of two from 512 to 1 MiB.
    pub block_size: u32,
    /// The update of the partition.
    pub partition: Part,
    /// The updates beside it, in order; a known type stands at most once.
    pub procedures: Vec<Procedure>,
    /// Bytes of header and manifest together; the data of the first operation starts here.
    pub metadata_size: u64,
    /// Bytes of the data of all operations.
    pub blobs_size: u64,
    /// Where the signature message lies in the payload file; absent when unsigned.
    pub signatures: Option<Range<u64>>,
}

impl Manifest {
    /// Validates the bytes between header and data.
    ///
    /// # Errors
    /// [`PayloadError::Manifest`] with the field's place, or the more exact
    /// variants for offsets, hashes and sizes.
    pub fn parse(bytes: &[u8], limits: &Limits) -> Result<Self, PayloadError> {
        shape::check_manifest(bytes, limits.operations, limits.extents)?;
        let message = wire::DeltaArchiveManifest::decode(bytes)
            .map_err(|error| refused("protobuf", error.to_string()))?;
        Validator::new(bytes, limits, message.block_size)?.manifest(&message)
    }

    /// All operations in the order in which their data lies in the payload.
    pub fn operations(&self) -> impl Iterator<Item = (Target, &Arc<Operation>)> {
        let partition = self.partition.operations.iter();
        partition
            .map(|operation| (Target::Partition, operation))
            .chain(self.procedures.iter().flat_map(|procedure| {
                let target = procedure.target();
                procedure
                    .operations()
                    .iter()
                    .map(move |operation| (target, operation))
            }))
    }

    /// The update of `target`, if this payload holds one.
    #[must_use]
    pub fn part(&self, target: Target) -> Option<&Part> {
        match target {
            Target::Partition => Some(&self.partition),
            Target::Kernel | Target::PcrPolicy => self
                .procedures
                .iter()
                .find(|procedure| procedure.target() == target)
                .and_then(Procedure::part),
            Target::Unknown(_) => None,
        }
    }

    /// The updates that can be carried out, the partition's first.
    pub fn parts(&self) -> impl Iterator<Item = (Target, &Part)> {
        let procedures = self.procedures.iter();
        std::iter::once((Target::Partition, &self.partition))
            .chain(procedures.filter_map(|procedure| Some((procedure.target(), procedure.part()?))))
    }

    /// Whether it needs the old image on the target.
    #[must_use]
    pub fn is_delta(&self) -> bool {
        self.parts().any(|(_, part)| part.old.is_some())
            || self
                .operations()
                .any(|(_, operation)| !operation.source().is_empty())
    }

    /// Bytes of the whole payload file.
    #[must_use]
    pub fn payload_size(&self) -> u64 {
        match &self.signatures {
            Some(range) => range.end,
            None => self.metadata_size + self.blobs_size,
        }
    }
}

/// Walks over the decoded message and keeps the running totals.
struct Validator<'a> {
    limits: &'a Limits,
    block_size: u32,
    metadata_size: u64,
    operations: usize,
    blobs_size: u64,
    destinations: u64,
}

impl<'a> Validator<'a> {
    const DEFAULT_BLOCK_SIZE: u32 = 4096;

    fn new(
        bytes: &[u8],
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
        let header = u64::try_from(Header::SIZE).expect("20 fits");
        let manifest = u64::try_from(bytes.len()).expect("a slice's length fits 64 bits");
        Ok(Self {
            limits,
            block_size,
            metadata_size: header + manifest,
            operations: 0,
            blobs_size: 0,
            destinations: 0,
        })
    }

    fn manifest(mut self, message: &wire::DeltaArchiveManifest) -> Result<Manifest, PayloadError> {
        let operations = self.operations("partition_operations", &message.partition_operations)?;
        let partition = Part {
            operations,
            old: optional_info("old_partition_info", message.old_partition_info.as_ref())?,
            new: optional_info("new_partition_info", message.new_partition_info.as_ref())?
                .ok_or(PayloadError::PartitionInfoMissing)?,
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
            block_size: self.block_size,
            partition,
            procedures,
            metadata_size: self.metadata_size,
            blobs_size: self.blobs_size,
            signatures,
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
            operations: self.operations(&operations_place, &message.operations)?,
            old: optional_info(&format!("{place}.old_info"), message.old_info.as_ref())?,
            new: optional_info(&new_place, message.new_info.as_ref())?
                .ok_or_else(|| refused(&new_place, "missing"))?,
        }))
    }

    fn operations(
        &mut self,
        place: &str,
        messages: &[wire::InstallOperation],
    ) -> Result<Vec<Arc<Operation>>, PayloadError> {
        let messages = messages.iter().enumerate();
        messages
            .map(|(number, message)| self.operation(&format!("{place}[{number}]"), message))
            .collect()
    }

    fn operation(
        &mut self,
        place: &str,
        message: &wire::InstallOperation,
    ) -> Result<Arc<Operation>, PayloadError> {
        let kind = message
            .kind
            .ok_or_else(|| refused(place, "type is missing"))?;
        let blob = self.blob(place, message)?;
        let destination = self.extents(&format!("{place}.dst_extents"), &message.dst_extents)?;
        let destination_bytes = extent::total(&destination);
        self.destinations = self.destinations.saturating_add(destination_bytes);
        if self.destinations > self.limits.destinations {
            let limit = self.limits.destinations;
            return Err(refused(
                &format!("{place}.dst_extents"),
                format!("destinations add up to more than {limit} bytes"),
            ));
        }
        let kind = match kind {
            0 => OperationKind::Replace,
            1 => OperationKind::ReplaceBz,
            2 => OperationKind::Move {
                source: self.extents(&format!("{place}.src_extents"), &message.src_extents)?,
            },
            3 => OperationKind::Bsdiff {
                source: self.extents(&format!("{place}.src_extents"), &message.src_extents)?,
                source_length: message.src_length.unwrap_or(0),
                target_length: message.dst_length.unwrap_or(0),
            },
            unknown => return Err(refused(place, format!("unknown operation type {unknown}"))),
        };
        let operation = Operation {
            index: self.next_index(),
            kind,
            blob,
            destination,
        };
        self.check_lengths(place, &operation, destination_bytes)?;
        Ok(Arc::new(operation))
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
        let length = u64::from(message.data_length.unwrap_or(0));
        if length == 0 {
            return Ok(Blob {
                offset: expected,
                length,
                sha256: Sha256::digest([]).into(),
            });
        }
        let found = u64::from(message.data_offset.unwrap_or(0));
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
        match &operation.kind {
            OperationKind::Replace | OperationKind::ReplaceBz | OperationKind::Skipped => {}
            OperationKind::Move { .. } => {
                if operation.blob.length > 0 {
                    return Err(refused(place, "a MOVE carries data"));
                }
                if source_bytes != destination_bytes {
                    return Err(refused(
                        place,
                        format!("a MOVE reads {source_bytes} bytes but writes {destination_bytes}"),
                    ));
                }
            }
            OperationKind::Bsdiff {
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
        }
        if source_bytes > self.limits.source && !operation.is_idempotent() {
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
        const HOLE: u64 = u64::MAX;
        let block_size = u64::from(self.block_size);
        // What the operating system can address in a file.
        let in_bytes = |blocks: u64| {
            blocks
                .checked_mul(block_size)
                .filter(|bytes| i64::try_from(*bytes).is_ok())
        };
        let entries = messages.iter().enumerate();
        let extents: Vec<Extent> = entries
            .map(|(number, message)| {
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
                        &format!("{place}[{number}]"),
                        format!("{blocks} blocks at block {start} are beyond any image"),
                    )
                })
            })
            .collect::<Result<_, _>>()?;
        if i64::try_from(extent::total(&extents)).is_err() {
            return Err(refused(place, "they add up beyond any image"));
        }
        Ok(extents)
    }

    fn signatures(
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

fn optional_info(
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

fn sha256(place: &str, bytes: &[u8]) -> Result<[u8; 32], PayloadError> {
    <[u8; 32]>::try_from(bytes).map_err(|_| {
        refused(
            place,
            format!("a SHA-256 has 32 bytes, not {}", bytes.len()),
        )
    })
}

fn refused(place: &str, reason: impl Into<String>) -> PayloadError {
    PayloadError::Manifest {
        place: place.to_owned(),
        reason: reason.into(),
    }
}
