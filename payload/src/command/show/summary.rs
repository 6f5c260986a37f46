//! What `payload show` tells; the JSON document.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, anyhow, bail};
use payload::{
    Event, Extent, HashTree, ImageInfo, Limits, Manifest, Operation, Part, PayloadStream,
    Procedure, Release, Trust, signature_entries,
};
use serde::Serialize;

use crate::files;

#[derive(Debug, Serialize)]
pub(super) struct Summary {
    pub(super) format_version: u64,
    /// Which operations a reader must know; 0 in full payloads.
    pub(super) minor_version: u32,
    pub(super) kind: &'static str,
    /// Of the whole file.
    pub(super) size: u64,
    /// Header, manifest and the signature over those.
    pub(super) metadata_size: u64,
    pub(super) block_size: u32,
    /// Data of all operations.
    pub(super) data_size: u64,
    /// All new images and files together.
    pub(super) new_size: u64,
    /// What is read of old images.
    pub(super) source_bytes: u64,
    pub(super) release: Option<ReleaseSummary>,
    /// What operations compress with.
    pub(super) encoders: Vec<String>,
    pub(super) parts: Vec<PartSummary>,
    /// Those with most data, largest first.
    pub(super) largest_operations: Vec<OperationSummary>,
    /// Over the whole file.
    pub(super) signatures: Vec<SignatureSummary>,
    /// Over header and manifest, in format version 2.
    pub(super) metadata_signatures: Vec<SignatureSummary>,
}

#[derive(Debug, Serialize)]
pub(super) struct ReleaseSummary {
    pub(super) app_id: Option<String>,
    pub(super) board: Option<String>,
    pub(super) version: Option<String>,
    pub(super) min_source_version: Option<String>,
    pub(super) security_epoch: Option<u64>,
    /// Seconds since 1970.
    pub(super) created: Option<u64>,
    /// Seconds since 1970.
    pub(super) expires: Option<u64>,
    pub(super) verity_root_hash: Option<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct PartSummary {
    pub(super) target: String,
    pub(super) version: Option<String>,
    pub(super) old: Option<InfoSummary>,
    /// Absent for procedures of unknown type.
    pub(super) new: Option<InfoSummary>,
    /// What machines build behind the last operation.
    pub(super) hash_tree: Option<HashTreeSummary>,
    pub(super) operations: BTreeMap<&'static str, OperationsSummary>,
}

#[derive(Debug, Serialize)]
pub(super) struct HashTreeSummary {
    pub(super) algorithm: &'static str,
    pub(super) data_blocks: u64,
    /// Bytes of a block, of data and of hashes.
    pub(super) block_size: u64,
    /// Where the tree begins in the image; what `payload generate` appends has its
    /// superblock in the block before.
    pub(super) offset: u64,
    pub(super) size: u64,
    pub(super) salt: String,
}

#[derive(Debug, Serialize)]
pub(super) struct InfoSummary {
    pub(super) size: u64,
    pub(super) sha256: String,
}

/// All operations of one type.
#[derive(Debug, Default, Serialize)]
pub(super) struct OperationsSummary {
    pub(super) count: u64,
    pub(super) data_size: u64,
    /// Bytes of the new image that they write.
    pub(super) written: u64,
    /// Bytes that they read of the old image.
    pub(super) source_bytes: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct OperationSummary {
    pub(super) index: usize,
    pub(super) target: String,
    pub(super) operation: &'static str,
    pub(super) data_size: u64,
    pub(super) written: u64,
    /// Where in the target it writes first.
    pub(super) offset: Option<u64>,
}

#[derive(Debug, Serialize)]
pub(super) struct SignatureSummary {
    pub(super) version: u32,
    pub(super) kind: &'static str,
    pub(super) size: usize,
}

/// How many of the largest operations are told.
const LARGEST: usize = 10;

impl Summary {
    pub(super) fn read(path: &Path) -> Result<Self> {
        let (mut file, found) = files::open(path)?;
        let manifest = read_manifest(&mut file)?;
        let size = manifest.payload_size();
        if found != size {
            bail!("the file has {found} bytes, its manifest tells of {size}");
        }
        let partition = &manifest.partition;
        let parts: Vec<_> = std::iter::once(PartSummary::new(
            "partition",
            Some(partition),
            &partition.operations,
        ))
        .chain(manifest.procedures.iter().map(PartSummary::of_procedure))
        .collect();
        let of_parts =
            |bytes: fn(&PartSummary) -> u64| parts.iter().map(bytes).fold(0, u64::saturating_add);
        Ok(Self {
            format_version: manifest.format.number(),
            minor_version: manifest.minor_version,
            kind: if manifest.is_delta() { "delta" } else { "full" },
            size,
            metadata_size: manifest.metadata_size,
            block_size: manifest.block_size,
            data_size: manifest.blobs_size,
            new_size: of_parts(|part| part.new.as_ref().map_or(0, |new| new.size)),
            source_bytes: of_parts(PartSummary::source_bytes),
            release: manifest.release.as_ref().map(ReleaseSummary::new),
            encoders: manifest.encoders.to_vec(),
            largest_operations: largest(&manifest),
            signatures: read_signatures(&mut file, &manifest, manifest.signatures.as_ref())?,
            metadata_signatures: read_signatures(
                &mut file,
                &manifest,
                manifest.metadata_signature.as_ref(),
            )?,
            parts,
        })
    }
}

fn largest(manifest: &Manifest) -> Vec<OperationSummary> {
    let mut operations: Vec<_> = manifest
        .operations()
        .filter(|(_, operation)| operation.blob.length > 0)
        .collect();
    operations.sort_by_key(|(_, operation)| (Reverse(operation.blob.length), operation.index));
    let largest = operations.into_iter().take(LARGEST);
    largest
        .map(|(target, operation)| OperationSummary {
            index: operation.index,
            target: target.to_string(),
            operation: operation.name(),
            data_size: operation.blob.length,
            written: written(operation, manifest.part(&target).map(|part| &part.new)),
            offset: operation
                .destination
                .iter()
                .find_map(|extent| match extent {
                    Extent::Run { offset, .. } => Some(*offset),
                    Extent::Hole { .. } => None,
                }),
        })
        .collect()
}

/// Bytes of the `new` image that an operation writes. The original names more blocks
/// than the image has.
fn written(operation: &Operation, new: Option<&ImageInfo>) -> u64 {
    let end = new.map_or(u64::MAX, |new| new.size);
    let inside = operation.destination.iter().map(|extent| match *extent {
        Extent::Run { offset, length } => offset
            .saturating_add(length)
            .min(end)
            .saturating_sub(offset),
        Extent::Hole { .. } => 0,
    });
    inside
        .fold(0, u64::saturating_add)
        .min(operation.bytes_written())
}

impl PartSummary {
    fn new(target: impl Display, part: Option<&Part>, operations: &[Arc<Operation>]) -> Self {
        let new = part.map(|part| &part.new);
        let mut sums: BTreeMap<_, OperationsSummary> = BTreeMap::new();
        for operation in operations {
            let sum = sums.entry(operation.name()).or_default();
            let source = operation.source().iter().map(Extent::length);
            sum.count += 1;
            sum.data_size = sum.data_size.saturating_add(operation.blob.length);
            sum.written = sum.written.saturating_add(written(operation, new));
            sum.source_bytes = source.fold(sum.source_bytes, u64::saturating_add);
        }
        Self {
            target: target.to_string(),
            version: part.and_then(|part| part.version.clone()),
            old: part
                .and_then(|part| part.old.as_ref())
                .map(InfoSummary::new),
            new: new.map(InfoSummary::new),
            hash_tree: part
                .and_then(|part| part.hash_tree.as_ref())
                .map(HashTreeSummary::new),
            operations: sums,
        }
    }

    fn of_procedure(procedure: &Procedure) -> Self {
        Self::new(procedure.target(), procedure.part(), procedure.operations())
    }

    fn source_bytes(&self) -> u64 {
        let sums = self.operations.values().map(|sum| sum.source_bytes);
        sums.fold(0, u64::saturating_add)
    }
}

impl HashTreeSummary {
    fn new(tree: &HashTree) -> Self {
        let blocks = tree.tree();
        Self {
            algorithm: HashTree::ALGORITHM,
            data_blocks: tree.data_blocks(),
            block_size: HashTree::BLOCK_SIZE,
            offset: blocks.start,
            size: blocks.end - blocks.start,
            salt: hex::encode(tree.salt()),
        }
    }
}

impl InfoSummary {
    fn new(info: &ImageInfo) -> Self {
        Self {
            size: info.size,
            sha256: hex::encode(info.sha256),
        }
    }
}

impl ReleaseSummary {
    fn new(release: &Release) -> Self {
        let release = release.clone();
        Self {
            app_id: release.app_id,
            board: release.board,
            version: release.version,
            min_source_version: release.min_source_version,
            security_epoch: release.security_epoch,
            created: release.created,
            expires: release.expires,
            verity_root_hash: release.verity_root_hash.map(hex::encode),
        }
    }
}

/// Reads no further than the manifest.
fn read_manifest(file: &mut File) -> Result<Arc<Manifest>> {
    let anyone = Trust::allow_unsigned(Vec::new());
    let mut stream = PayloadStream::new(Limits::default(), &anyone);
    let mut buffer = vec![0; 64 << 10];
    loop {
        if let Some(Event::Metadata { manifest, .. }) = stream.next_event()? {
            return Ok(manifest);
        }
        match file.read(&mut buffer)? {
            0 => {
                return Err(anyhow!(
                    "the file ends after {} bytes, before its manifest does",
                    stream.received()
                ));
            }
            read => stream.push(&buffer[..read]),
        }
    }
}

fn read_signatures(
    file: &mut File,
    manifest: &Manifest,
    range: Option<&Range<u64>>,
) -> Result<Vec<SignatureSummary>> {
    let Some(range) = range else {
        return Ok(Vec::new());
    };
    let mut message = Vec::new();
    file.seek(SeekFrom::Start(range.start))?;
    file.take(range.end - range.start)
        .read_to_end(&mut message)?;
    let entries = signature_entries(manifest.format, range.start, &message)?;
    let entries = entries.into_iter().map(|(version, size)| SignatureSummary {
        version,
        kind: match version {
            2 => "RSA",
            3 => "Ed25519",
            _ => "unknown",
        },
        size,
    });
    Ok(entries.collect())
}
