//! A payload that is already a file: checked as a whole first, then applied.
//!
//! Unlike a download, a file can be read twice. So nothing is written before the
//! signature was found good, and the second reading must give the same bytes.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::num::NonZeroUsize;

use crate::apply::{apply, decode};
use crate::error::PayloadError;
use crate::image::Image;
use crate::manifest::{Limits, Manifest, Part, Target};
use crate::pipeline::{all_cores, in_order};
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
    reader: &mut dyn Read,
    trust: &Trust,
    progress: &mut dyn FnMut(Progress),
) -> Result<Verified, PayloadError> {
    let mut reading = Reading::new(reader, Phase::Verify, progress);
    while reading.next_operation()?.is_some() {}
    reading.stream.finish(trust)
}

/// Verifies a payload from its start, then applies it and checks the results.
///
/// The targets are neither synced nor read back from the medium here.
///
/// # Errors
/// Before anything is written: whatever [`verify_payload`] refuses,
/// [`PayloadError::TargetMissing`] for a part without a target,
/// [`PayloadError::TargetTooSmall`] and [`PayloadError::SourceMismatch`] when a delta does not fit the old content.
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
    manifest
        .partition
        .check_room(Target::Partition, targets.partition)?;
    for (target, part) in manifest.parts() {
        check_source(target, part, targets.image(target)?)?;
    }
    for (target, part) in file_parts(manifest) {
        part.reserve(targets.file(target)?, manifest.block_size)?;
    }
    rewind(reader)?;
    let mut reading = Reading::new(reader, Phase::Apply, progress);
    in_order(
        all_cores().min(MOST_THREADS),
        || reading.next_operation(),
        |PendingOperation {
             target,
             operation,
             data,
             ..
         }| {
            let decoded = decode(&operation, data)?;
            Ok((target, operation, decoded))
        },
        |decoded: Result<_, PayloadError>| match decoded? {
            (Target::Unknown(_), ..) => Ok(()),
            (target, operation, decoded) => apply(
                &operation,
                manifest.block_size,
                decoded,
                targets.image(target)?,
            ),
        },
    )?;
    if reading.stream.finish(trust)?.sha256() != verified.sha256() {
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

/// More would only use more memory: writing is in order and has one thread.
const MOST_THREADS: NonZeroUsize = NonZeroUsize::new(8).expect("8 is not 0");

/// One reading of a payload from its start.
struct Reading<'a> {
    reader: &'a mut dyn Read,
    stream: PayloadStream,
    buffer: Vec<u8>,
    phase: Phase,
    progress: &'a mut dyn FnMut(Progress),
}

impl<'a> Reading<'a> {
    const BUFFER: usize = 256 << 10;

    fn new(reader: &'a mut dyn Read, phase: Phase, progress: &'a mut dyn FnMut(Progress)) -> Self {
        Self {
            reader,
            stream: PayloadStream::new(Limits::default()),
            buffer: vec![0; Self::BUFFER],
            phase,
            progress,
        }
    }

    /// The next operation; `None` at the end of the file.
    fn next_operation(&mut self) -> Result<Option<PendingOperation>, PayloadError> {
        loop {
            match self.stream.next_event()? {
                Some(Event::Operation(operation)) => return Ok(Some(operation)),
                Some(Event::Metadata { .. }) => {}
                None if self.read()? => {}
                None => return Ok(None),
            }
        }
    }

    /// Pushes the next bytes; `false` at the end of the file.
    fn read(&mut self) -> Result<bool, PayloadError> {
        let length = match self.reader.read(&mut self.buffer) {
            Ok(length) => length,
            Err(source) if source.kind() == io::ErrorKind::Interrupted => return Ok(true),
            Err(source) => {
                let offset = self.stream.received();
                return Err(PayloadError::Input { offset, source });
            }
        };
        self.stream.push(&self.buffer[..length]);
        if let Some(manifest) = self.stream.manifest() {
            (self.progress)(Progress {
                phase: self.phase,
                done: self.stream.received(),
                total: manifest.payload_size(),
            });
        }
        Ok(length > 0)
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
