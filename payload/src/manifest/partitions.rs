//! The manifest of version 2: partitions by name.

use std::ops::Range;
use std::sync::Arc;

use super::validator::{Bounds, Validator, optional_info, refused};
use super::{Manifest, Part, Procedure, Target};
use crate::error::PayloadError;
use crate::extent::{self, Extent};
use crate::operation::Operation;
use crate::release::Release;
use crate::verity::HashTree;
use crate::wire;

/// Name of the partition that every payload updates.
pub(crate) const USR: &str = "usr";
/// Name of the kernel file beside it.
pub(crate) const KERNEL: &str = "kernel";

/// Minor version of payloads with operations that only this crate knows.
pub(crate) const OWN_MINOR_VERSION: u32 = 200;
/// Android's newest. What a minor version brings that is not supported is an
/// operation type, and refused as such.
const NEWEST_MINOR_VERSION: u32 = 9;

/// Longest name of a partition in bytes.
const MOST_NAME_BYTES: usize = 64;
/// Longest name of an encoder in bytes.
const MOST_ENCODER_BYTES: usize = 128;

impl Validator<'_> {
    pub(super) fn manifest_v2(
        mut self,
        message: &wire::DeltaArchiveManifestV2,
    ) -> Result<Manifest, PayloadError> {
        let minor_version = message.minor_version.unwrap_or(0);
        if minor_version > NEWEST_MINOR_VERSION && minor_version != OWN_MINOR_VERSION {
            return Err(refused(
                "minor_version",
                format!("{minor_version} is not supported"),
            ));
        }
        for (number, encoder) in message.encoders.iter().enumerate() {
            if !is_name(encoder, MOST_ENCODER_BYTES) {
                return Err(refused(
                    &format!("encoders[{number}]"),
                    format!("a name has 1 to {MOST_ENCODER_BYTES} printing ASCII characters"),
                ));
            }
        }
        self.encoders = message.encoders.clone().into();
        let release = message.release.as_ref().map(Release::from_wire);
        let release = release
            .transpose()
            .map_err(|(field, reason)| refused(&format!("release.{field}"), reason))?;

        let mut partition = None;
        let mut procedures: Vec<Procedure> = Vec::with_capacity(message.partitions.len());
        for (number, update) in message.partitions.iter().enumerate() {
            let place = format!("partitions[{number}]");
            let target = target(&place, update)?;
            let is_second = match target {
                Target::Partition => partition.is_some(),
                _ => procedures.iter().any(|other| other.target() == target),
            };
            if is_second {
                return Err(refused(
                    &format!("{place}.partition_name"),
                    format!("a second update of the {target}"),
                ));
            }
            let part = self.partition(&place, update)?;
            match target {
                Target::Partition => partition = Some((part, procedures.len())),
                Target::Kernel => procedures.push(Procedure::Kernel(part)),
                Target::Named(name) => procedures.push(Procedure::Named { name, part }),
                Target::PcrPolicy | Target::Unknown(_) => {}
            }
        }
        let (partition, procedures_before) =
            partition.ok_or_else(|| refused("partitions", format!("none is named {USR}")))?;
        let signatures = self.signatures(message.signatures_offset, message.signatures_size)?;
        Ok(Manifest {
            format: self.format,
            minor_version,
            block_size: self.block_size,
            partition,
            procedures,
            procedures_before,
            metadata_size: self.metadata_size,
            metadata_signature: self.metadata_signature,
            blobs_size: self.blobs_size,
            signatures,
            release,
            encoders: self.encoders,
            max_timestamp: message.max_timestamp,
            partial_update: message.partial_update.unwrap_or(false),
            security_patch_level: message.security_patch_level.clone(),
        })
    }

    fn partition(
        &mut self,
        place: &str,
        update: &wire::PartitionUpdate,
    ) -> Result<Part, PayloadError> {
        let new_place = format!("{place}.new_partition_info");
        let new = optional_info(&new_place, update.new_partition_info.as_ref())?
            .ok_or_else(|| refused(&new_place, "missing"))?;
        let old = optional_info(
            &format!("{place}.old_partition_info"),
            update.old_partition_info.as_ref(),
        )?;
        let hash_tree = self.hash_tree(place, update, new.size)?;
        let bounds = Bounds {
            old: old.map(|old| old.size),
            new: new.size,
        };
        let operations = self.operations(
            &format!("{place}.operations"),
            &update.operations,
            Some(bounds),
        )?;
        if let Some(tree) = &hash_tree {
            let tree = tree.tree();
            let blocks = [Extent::Run {
                offset: tree.start,
                length: tree.end - tree.start,
            }];
            let writes_into =
                |operation: &Arc<Operation>| extent::overlap(&operation.destination, &blocks);
            if let Some(number) = operations.iter().position(writes_into) {
                return Err(refused(
                    &format!("{place}.operations[{number}].dst_extents"),
                    "it writes where hash_tree_extent lies, which the machine fills itself",
                ));
            }
        }
        Ok(Part {
            operations,
            old,
            new,
            hash_tree,
            version: update.version.clone(),
        })
    }

    /// The tree that the machine is to build, if any. What it cannot build is refused:
    /// the result could not have the announced hash.
    fn hash_tree(
        &mut self,
        place: &str,
        update: &wire::PartitionUpdate,
        new_size: u64,
    ) -> Result<Option<HashTree>, PayloadError> {
        let is_there = |extent: &Option<wire::Extent>| {
            extent
                .as_ref()
                .is_some_and(|extent| extent.num_blocks() > 0)
        };
        if is_there(&update.fec_extent) || is_there(&update.fec_data_extent) {
            return Err(refused(
                &format!("{place}.fec_extent"),
                "error correction data made on the machine is not supported; \
                 make the payload with that data in the image",
            ));
        }
        if !is_there(&update.hash_tree_data_extent) && !is_there(&update.hash_tree_extent) {
            return Ok(None);
        }
        let tree_place = format!("{place}.hash_tree_extent");
        if update.partition_name.as_deref() == Some(KERNEL) {
            return Err(refused(
                &tree_place,
                "a kernel is a file and has no hash tree",
            ));
        }
        if u64::from(self.block_size) != HashTree::BLOCK_SIZE {
            return Err(refused(
                &tree_place,
                format!(
                    "hash trees have blocks of {} bytes, this payload has blocks of {}",
                    HashTree::BLOCK_SIZE,
                    self.block_size
                ),
            ));
        }
        let algorithm = update.hash_tree_algorithm();
        if algorithm != HashTree::ALGORITHM {
            return Err(refused(
                &format!("{place}.hash_tree_algorithm"),
                format!(
                    "{algorithm:?} is not supported, only {}",
                    HashTree::ALGORITHM
                ),
            ));
        }
        let data_place = format!("{place}.hash_tree_data_extent");
        let data = self.run_inside(&data_place, &update.hash_tree_data_extent, new_size)?;
        let announced = self.run_inside(&tree_place, &update.hash_tree_extent, new_size)?;
        self.count_destination(&data_place, data.end - data.start)?;
        let salt = update.hash_tree_salt.clone().unwrap_or_default();
        let tree = HashTree::new(data, announced.start, salt)
            .map_err(|reason| refused(&tree_place, reason))?;
        if tree.tree() != announced {
            let (needed, found) = (tree.tree().end, announced.end);
            return Err(refused(
                &tree_place,
                format!("a tree over this data ends at byte {needed}, not at {found}"),
            ));
        }
        Ok(Some(tree))
    }

    /// An extent as bytes of the new image, where all of it must be.
    fn run_inside(
        &self,
        place: &str,
        message: &Option<wire::Extent>,
        size: u64,
    ) -> Result<Range<u64>, PayloadError> {
        let message = message.as_ref().ok_or_else(|| refused(place, "missing"))?;
        match self.extent(place, message)? {
            Extent::Run { offset, length } if offset + length <= size => {
                Ok(offset..offset + length)
            }
            Extent::Run { offset, length } => Err(refused(
                place,
                format!("{length} bytes at {offset} reach behind the image of {size} bytes"),
            )),
            Extent::Hole { .. } => Err(refused(place, "it is a hole")),
        }
    }
}

fn target(place: &str, update: &wire::PartitionUpdate) -> Result<Target, PayloadError> {
    let name = update.partition_name.as_deref().unwrap_or_default();
    Target::of_name(name).ok_or_else(|| {
        refused(
            &format!("{place}.partition_name"),
            format!("{name:?} is no name of a partition"),
        )
    })
}

impl Target {
    /// What version 2 calls by this name. None for what is no name: one is no path and
    /// says nothing to a terminal.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        match name {
            USR => Some(Self::Partition),
            KERNEL => Some(Self::Kernel),
            _ if !is_name(name, MOST_NAME_BYTES) => None,
            _ if name.contains('/') || name.starts_with('.') => None,
            _ => Some(Self::Named(Arc::from(name))),
        }
    }
}

fn is_name(text: &str, most: usize) -> bool {
    (1..=most).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}
