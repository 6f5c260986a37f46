//! The manifest of version 2: partitions by name.

use std::sync::Arc;

use super::validator::{Bounds, Validator, optional_info, refused};
use super::{Manifest, Part, Procedure, Target};
use crate::error::PayloadError;
use crate::release::Release;
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
            if encoder.is_empty() || encoder.len() > MOST_ENCODER_BYTES {
                return Err(refused(
                    &format!("encoders[{number}]"),
                    format!("a name has 1 to {MOST_ENCODER_BYTES} bytes"),
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
        // Blocks that no operation writes, because the machine is to compute them.
        let computed = [
            ("hash_tree_extent", &update.hash_tree_extent),
            ("fec_extent", &update.fec_extent),
        ];
        for (field, extent) in computed {
            if extent
                .as_ref()
                .is_some_and(|extent| extent.num_blocks() > 0)
            {
                return Err(refused(
                    &format!("{place}.{field}"),
                    "verity data made on the machine is not supported; \
                     make the payload with the verity data in the image",
                ));
            }
        }
        let bounds = Bounds {
            old: old.map(|old| old.size),
            new: new.size,
        };
        let operations = self.operations(
            &format!("{place}.operations"),
            &update.operations,
            Some(bounds),
        )?;
        Ok(Part {
            operations,
            old,
            new,
            version: update.version.clone(),
        })
    }
}

fn target(place: &str, update: &wire::PartitionUpdate) -> Result<Target, PayloadError> {
    let name = update.partition_name.as_deref().unwrap_or_default();
    let printable = name
        .bytes()
        .all(|byte| byte.is_ascii_graphic() && byte != b'/');
    if name.is_empty() || name.len() > MOST_NAME_BYTES || !printable || name.starts_with('.') {
        return Err(refused(
            &format!("{place}.partition_name"),
            format!("{name:?} is no name of a partition"),
        ));
    }
    Ok(match name {
        USR => Target::Partition,
        KERNEL => Target::Kernel,
        other => Target::Named(Arc::from(other)),
    })
}
