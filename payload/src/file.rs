//! A payload that is already a file: checked as a whole first, then applied.
//!
//! Unlike a download, a file can be read twice. So nothing is written before the
//! signature was found good, and the second reading must give the same bytes.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use rayon::prelude::*;

use crate::apply::{Decoded, apply, decode};
use crate::error::PayloadError;
use crate::extent::size;
use crate::image::Image;
use crate::manifest::{Limits, Manifest, Part, Target};
use crate::stream::{Event, PayloadStream, PendingOperation, Verified};
use crate::trust::Trust;

/// Where the parts of an update go.
///
/// For a delta payload each must hold a copy of the old content already; it is
/// changed in place. Kernel and PCR policy files are cut to their new size.
pub struct Targets<'a> {
    /// The partition or image file, at least as large as the new image.
    pub partition: &'a dyn Image,
    /// The kernel file.
    pub kernel: Option<&'a File>,
    /// The PCR policy file.
    pub pcr_policy: Option<&'a File>,
}

impl Targets<'_> {
    fn image(&self, target: Target) -> Result<&dyn Image, PayloadError> {
        match target {
            Target::Partition => Ok(self.partition),
            _ => Ok(self.file(target)?),
        }
    }

    fn file(&self, target: Target) -> Result<&File, PayloadError> {
        let file = match target {
            Target::Kernel => self.kernel,
            Target::PcrPolicy => self.pcr_policy,
            Target::Partition | Target::Unknown(_) => None,
        };
        file.ok_or(PayloadError::TargetMissing { target })
    }
}

/// What a reading of the payload is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Hashes and signature are checked; nothing is written.
    Verify,
    /// Operations are carried out.
    Apply,
}

/// How far a reading of the payload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Which reading.
    pub phase: Phase,
    /// Bytes of the payload done.
    pub done: u64,
    /// Bytes of the whole payload.
    pub total: u64,
}

/// Reads a payload to its end and checks everything that can be checked without
/// the images: structure, hash of each operation's data, signature.
///
/// # Errors
/// The first thing that is wrong; [`PayloadError::Input`] when `reader` fails.
pub fn verify_payload(
    reader: &mut impl Read,
    trust: &Trust,
    progress: &mut dyn FnMut(Progress),
) -> Result<Verified, PayloadError> {
    let stream = read_through(reader, Phase::Verify, progress, &mut |_, _| Ok(()))?;
    stream.finish(trust)
}

/// Verifies a payload from its start, then applies it and checks the results.
///
/// The targets are neither synced nor read back from the medium here.
///
/// # Errors
/// Before anything is written: whatever [`verify_payload`] refuses,
/// [`PayloadError::TargetMissing`] for a part without a target and
/// [`PayloadError::SourceMismatch`] when a delta does not fit the old content.
/// After that the targets are of no use when an error is returned.
pub fn apply_payload(
    reader: &mut (impl Read + Seek),
    trust: &Trust,
    targets: &Targets,
    progress: &mut dyn FnMut(Progress),
) -> Result<Verified, PayloadError> {
    rewind(reader)?;
    let verified = verify_payload(reader, trust, progress)?;
    let manifest = verified.manifest();
    for (target, part) in manifest.parts() {
        check_source(target, part, targets.image(target)?)?;
    }
    for (target, part) in file_parts(manifest) {
        part.reserve(targets.file(target)?, manifest.block_size)?;
    }
    rewind(reader)?;
    let mut batch = Batch::default();
    let stream = read_through(
        reader,
        Phase::Apply,
        progress,
        &mut |manifest, operation| {
            batch.add(operation);
            if batch.is_full() {
                batch.run(manifest, targets)
            } else {
                Ok(())
            }
        },
    )?;
    batch.run(manifest, targets)?;
    if stream.finish(trust)?.sha256() != verified.sha256() {
        return Err(PayloadError::PayloadChanged);
    }
    for (target, part) in file_parts(manifest) {
        part.truncate(targets.file(target)?)?;
    }
    for (target, part) in manifest.parts() {
        if !part.new.matches(targets.image(target)?)? {
            return Err(PayloadError::TargetMismatch { target });
        }
    }
    Ok(verified)
}

/// Pushes all of `reader` through a new stream and gives it back at its end.
fn read_through(
    reader: &mut impl Read,
    phase: Phase,
    progress: &mut dyn FnMut(Progress),
    on_operation: &mut dyn FnMut(&Manifest, PendingOperation) -> Result<(), PayloadError>,
) -> Result<PayloadStream, PayloadError> {
    let mut stream = PayloadStream::new(Limits::default());
    let mut buffer = vec![0; 256 << 10];
    loop {
        let offset = stream.received();
        let length = match reader.read(&mut buffer) {
            Ok(0) => return Ok(stream),
            Ok(length) => length,
            Err(source) if source.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(source) => return Err(PayloadError::Input { offset, source }),
        };
        stream.push(&buffer[..length]);
        while let Some(event) = stream.next_event()? {
            if let (Event::Operation(operation), Some(manifest)) = (event, stream.manifest()) {
                on_operation(manifest, operation)?;
            }
        }
        if let Some(manifest) = stream.manifest() {
            let total = manifest.payload_size();
            progress(Progress {
                phase,
                done: offset + size(length),
                total,
            });
        }
    }
}

fn rewind(reader: &mut impl Seek) -> Result<(), PayloadError> {
    match reader.seek(SeekFrom::Start(0)) {
        Ok(_) => Ok(()),
        Err(source) => Err(PayloadError::Input { offset: 0, source }),
    }
}

fn check_source(target: Target, part: &Part, image: &dyn Image) -> Result<(), PayloadError> {
    match &part.old {
        Some(old) if !old.matches(image)? => Err(PayloadError::SourceMismatch { target }),
        _ => Ok(()),
    }
}

/// The parts that are files of their own, not the partition.
fn file_parts(manifest: &Manifest) -> impl Iterator<Item = (Target, &Part)> {
    manifest
        .parts()
        .filter(|(target, _)| *target != Target::Partition)
}

/// Operations that are decoded on all cores and then written in order.
#[derive(Default)]
struct Batch {
    operations: Vec<PendingOperation>,
    bytes: u64,
}

impl Batch {
    /// Bounds both the data and what it is decompressed to.
    const FULL: u64 = 16 << 20;

    fn add(&mut self, pending: PendingOperation) {
        self.bytes += size(pending.data.len()) + Decoded::memory_needed(&pending.operation);
        self.operations.push(pending);
    }

    fn is_full(&self) -> bool {
        self.bytes >= Self::FULL
    }

    fn run(&mut self, manifest: &Manifest, targets: &Targets) -> Result<(), PayloadError> {
        self.bytes = 0;
        let decoded: Vec<_> = std::mem::take(&mut self.operations)
            .into_par_iter()
            .filter(|pending| !matches!(pending.target, Target::Unknown(_)))
            .map(|pending| {
                let decoded = decode(&pending.operation, pending.data)?;
                Ok((pending.target, pending.operation, decoded))
            })
            .collect::<Result<_, PayloadError>>()?;
        for (target, operation, decoded) in decoded {
            apply(
                &operation,
                manifest.block_size,
                decoded,
                targets.image(target)?,
            )?;
        }
        Ok(())
    }
}
