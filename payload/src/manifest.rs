//! The manifest: what a payload updates, in which steps, and what comes out.
//!
//! Everything here is validated. [`Manifest::parse`] refuses what could not be
//! carried out (data out of order, sizes that overflow, work without end) before
//! anything is written, and counts before it allocates. It stays lax where real
//! payloads are: extents may be longer than the data, full operations carry no
//! length of their result, operations without data need no hash.

mod partitions;
mod validator;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use prost::Message;

use crate::error::PayloadError;
use crate::header::{Format, Header};
use crate::operation::Operation;
use crate::recompress::Encoders;
use crate::release::Release;
use crate::verity::HashTree;
use crate::{shape, wire};
pub(crate) use partitions::{KERNEL, OWN_MINOR_VERSION, USR};
use validator::{Validator, refused};

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
    /// Source bytes of one MOVE or BSDIFF that overwrites its own source, held in
    /// memory, and of one SOURCE_BSDIFF.
    pub source: u64,
    /// Source bytes, and bytes made, by one DELTA or RECOMPRESS, held in memory.
    pub window: u64,
    /// Bytes of the old image that all operations together read, which bounds the
    /// time spent hashing.
    pub sources: u64,
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
            window: 16 << 20,
            sources: 64 << 30,
            destinations: 64 << 30,
            signatures: 64 << 10,
        }
    }
}

/// Each with its target.
fn of_procedures(procedures: &[Procedure]) -> impl Iterator<Item = (Target, &Arc<Operation>)> {
    procedures.iter().flat_map(|procedure| {
        let operations = procedure.operations().iter();
        operations.map(|operation| (procedure.target(), operation))
    })
}

/// What an operation works on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// The partition (USR slot) itself; `usr` in version 2.
    Partition,
    /// The kernel file beside it; `kernel` in version 2.
    Kernel,
    /// The file with the TPM policy for the new system.
    PcrPolicy,
    /// A procedure of a type that this program does not know.
    Unknown(i32),
    /// Something else that version 2 calls by this name.
    Named(Arc<str>),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Partition => f.write_str("partition"),
            Target::Kernel => f.write_str("kernel"),
            Target::PcrPolicy => f.write_str("PCR policy"),
            Target::Unknown(kind) => write!(f, "procedure of unknown type {kind}"),
            Target::Named(name) => f.write_str(name),
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
    /// The old image; absent for full payloads. In version 1 the target must hold it
    /// before the first step, in version 2 it is only read, elsewhere.
    pub old: Option<ImageInfo>,
    /// What it holds after the last.
    pub new: ImageInfo,
    /// What the machine computes and writes after the last step.
    pub hash_tree: Option<HashTree>,
    /// The version of this part, where version 2 of the format tells one.
    pub version: Option<String>,
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
        /// Its steps, all [`crate::OperationKind::Skipped`].
        operations: Vec<Arc<Operation>>,
    },
    /// A partition of version 2 that is neither `usr` nor `kernel`.
    Named {
        /// Its name.
        name: Arc<str>,
        /// Its update.
        part: Part,
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
            Procedure::Named { name, .. } => Target::Named(Arc::clone(name)),
        }
    }

    /// Its steps in order.
    #[must_use]
    pub fn operations(&self) -> &[Arc<Operation>] {
        match self {
            Procedure::Kernel(part)
            | Procedure::PcrPolicy(part)
            | Procedure::Named { part, .. } => &part.operations,
            Procedure::Unknown { operations, .. } => operations,
        }
    }

    /// Its update, if its type is known.
    #[must_use]
    pub fn part(&self) -> Option<&Part> {
        match self {
            Procedure::Kernel(part)
            | Procedure::PcrPolicy(part)
            | Procedure::Named { part, .. } => Some(part),
            Procedure::Unknown { .. } => None,
        }
    }
}

/// A payload's manifest, validated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The version of the format.
    pub format: Format,
    /// Says which types of operations a version 2 payload may use; 0 for full ones
    /// and in version 1.
    pub minor_version: u32,
    /// Block size in bytes, a power of two from 512 to 1 MiB.
    pub block_size: u32,
    /// The update of the partition.
    pub partition: Part,
    /// The updates beside it, in order; a known type stands at most once.
    pub procedures: Vec<Procedure>,
    /// How many of `procedures` come before the partition in the payload.
    procedures_before: usize,
    /// Bytes before the data of the first operation: header, manifest and, in
    /// version 2, the signature over those two.
    pub metadata_size: u64,
    /// Where the signature of header and manifest lies in the payload file; absent
    /// in version 1 and when unsigned.
    pub metadata_signature: Option<Range<u64>>,
    /// Bytes of the data of all operations.
    pub blobs_size: u64,
    /// Where the signature message lies in the payload file; absent when unsigned.
    pub signatures: Option<Range<u64>>,
    /// What its makers say of the release.
    pub release: Option<Release>,
    /// What RECOMPRESS operations compress with, such as `zstd/1.5.4/level=19`.
    pub encoders: Arc<[String]>,
    /// Android: the newest system that may install it, in seconds since 1970.
    pub max_timestamp: Option<i64>,
    /// Android: whether it updates only some of a machine's partitions.
    pub partial_update: bool,
    /// Android: the security patch level of the new system.
    pub security_patch_level: Option<String>,
}

impl Manifest {
    /// Validates the bytes between header and data. Signatures of them are the
    /// business of who calls.
    ///
    /// # Errors
    /// [`PayloadError::Manifest`] with the field's place, or the more exact
    /// variants for offsets, hashes and sizes.
    pub(crate) fn parse(
        header: &Header,
        bytes: &[u8],
        limits: &Limits,
    ) -> Result<Self, PayloadError> {
        let format = header.format;
        shape::check_manifest(format, bytes, limits.operations, limits.extents)?;
        let malformed = |error: prost::DecodeError| refused("protobuf", error.to_string());
        match format {
            Format::V1 => {
                let message = wire::DeltaArchiveManifest::decode(bytes).map_err(malformed)?;
                Validator::new(header, limits, message.block_size)?.manifest(&message)
            }
            Format::V2 => {
                let message = wire::DeltaArchiveManifestV2::decode(bytes).map_err(malformed)?;
                Validator::new(header, limits, message.block_size)?.manifest_v2(&message)
            }
        }
    }

    /// All operations in the order in which their data lies in the payload.
    pub fn operations(&self) -> impl Iterator<Item = (Target, &Arc<Operation>)> {
        let (before, after) = self.procedures.split_at(self.procedures_before);
        let partition = self.partition.operations.iter();
        of_procedures(before)
            .chain(partition.map(|operation| (Target::Partition, operation)))
            .chain(of_procedures(after))
    }

    /// The update of `target`, if this payload holds one.
    #[must_use]
    pub fn part(&self, target: &Target) -> Option<&Part> {
        match target {
            Target::Partition => Some(&self.partition),
            Target::Kernel | Target::PcrPolicy | Target::Named(_) => self
                .procedures
                .iter()
                .find(|procedure| procedure.target() == *target)
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

    /// The encoders that it needs and that are not among `encoders`. Whoever applies
    /// it asks before the first write.
    #[must_use]
    pub fn missing_encoders(&self, encoders: &Encoders) -> Vec<String> {
        let missing = |name: &&String| encoders.all_of(std::slice::from_ref(*name)).is_err();
        self.encoders.iter().filter(missing).cloned().collect()
    }

    /// Whether it needs the old image.
    #[must_use]
    pub fn is_delta(&self) -> bool {
        self.parts().any(|(_, part)| part.old.is_some())
            || self
                .operations()
                .any(|(_, operation)| !operation.source().is_empty())
    }

    /// Whether it is a delta of version 1, which turns a copy of the old image into
    /// the new one. Then order is everything, and what was interrupted in the middle
    /// cannot be repeated from an earlier point.
    #[must_use]
    pub fn is_in_place(&self) -> bool {
        self.format == Format::V1 && self.is_delta()
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
