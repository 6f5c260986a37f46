//! A payload that is already a file: verified as a whole first, then applied.
//!
//! Unlike a download, a file can be read twice. So nothing is written before the
//! signature was found good, and the second reading must give the same bytes.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::num::NonZeroUsize;

use crate::apply::{apply, decode, memory_needed};
use crate::error::PayloadError;
use crate::header::Format;
use crate::image::Image;
use crate::manifest::{Limits, Manifest, Part, Target};
use crate::pipeline::{all_cores, in_order};
use crate::recompress::Encoders;
use crate::stream::{Event, PayloadStream, PendingOperation, Verified};
use crate::trust::Trust;

/// Where the parts of an update go.
///
/// For a delta of version 1 each must hold a copy of the old content already; it is
/// changed in place. Kernel and PCR policy files are cut to their new size.
pub struct Targets<'a> {
    /// The partition or image file, at least as large as the new image.
    pub partition: &'a dyn Image,
    /// The kernel file; without it the kernel is left out.
    pub kernel: Option<&'a File>,
    /// The PCR policy file; without it the policy is left out.
    pub pcr_policy: Option<&'a File>,
    /// Further partitions by name, as large as whole blocks of the new images take;
    /// those not among them are left out.
    pub named: &'a [(&'a str, &'a dyn Image)],
}

/// Where the parts of an old system are, for a delta of version 2. They are read
/// while the targets are written, and never written themselves.
#[derive(Clone, Copy, Default)]
pub struct Sources<'a> {
    /// The old partition or image file.
    pub partition: Option<&'a dyn Image>,
    /// The old kernel file.
    pub kernel: Option<&'a dyn Image>,
    /// Further old partitions by name.
    pub named: &'a [(&'a str, &'a dyn Image)],
    /// The encoders at hand, for a delta of compressed images.
    pub encoders: Option<&'a Encoders>,
}

impl<'a> Sources<'a> {
    fn image(&self, target: &Target) -> Option<&'a dyn Image> {
        match target {
            Target::Partition => self.partition,
            Target::Kernel => self.kernel,
            Target::Named(name) => find(self.named, name),
            Target::PcrPolicy | Target::Unknown(_) => None,
        }
    }
}

fn find<'a>(named: &[(&str, &'a dyn Image)], wanted: &str) -> Option<&'a dyn Image> {
    let mut named = named.iter();
    named.find_map(|(name, image)| (*name == wanted).then_some(*image))
}

impl Targets<'_> {
    fn image(&self, target: &Target) -> Option<&dyn Image> {
        match target {
            Target::Partition => Some(self.partition),
            Target::Named(name) => find(self.named, name),
            _ => self.file(target).map(|file| file as &dyn Image),
        }
    }

    fn file(&self, target: &Target) -> Option<&File> {
        match target {
            Target::Kernel => self.kernel,
            Target::PcrPolicy => self.pcr_policy,
            Target::Partition | Target::Unknown(_) | Target::Named(_) => None,
        }
    }
}

/// Reads a payload from its start to its end and checks everything that can be
/// checked without the images: structure, hash of each operation's data, signature.
///
/// `progress` hears how many bytes of the payload are done.
///
/// # Errors
/// The first thing that is wrong; [`PayloadError::Input`] when `reader` fails.
pub fn verify_payload(
    reader: &mut dyn Read,
    trust: &Trust,
    progress: &mut dyn FnMut(u64),
) -> Result<Verified, PayloadError> {
    let mut reading = Reading::new(reader, trust, progress);
    while reading.next_operation()?.is_some() {}
    reading.stream.finish()
}

/// Applies a payload that was verified, and checks the results.
///
/// It is read again from its start and must still be the same: the manifest is
/// compared before anything is written, each operation's data before it is used.
/// The targets are neither synced nor read back from the medium here.
///
/// `progress` hears how many bytes of the payload are done.
///
/// # Errors
/// Before anything is written: [`PayloadError::PayloadChanged`],
/// [`PayloadError::TargetTooSmall`], and [`PayloadError::SourceMissing`] or
/// [`PayloadError::SourceMismatch`] when a delta does not fit the old content. After that the targets are of no use when
/// an error is returned.
pub fn apply_payload(
    reader: &mut (impl Read + Seek),
    verified: &Verified,
    targets: &Targets,
    sources: &Sources,
    progress: &mut dyn FnMut(u64),
) -> Result<(), PayloadError> {
    let manifest = verified.manifest();
    manifest
        .partition
        .check_room(Target::Partition, targets.partition)?;
    for (target, part, image) in images(manifest, targets) {
        if matches!(target, Target::Named(_)) {
            part.check_room(target.clone(), image)?;
        }
        let old = match manifest.format {
            Format::V1 => Some(image),
            Format::V2 => sources.image(&target),
        };
        check_source(target, part, old)?;
    }
    let none = Encoders::default();
    let encoders = sources.encoders.unwrap_or(&none);
    if let Some(name) = manifest.missing_encoders(encoders).into_iter().next() {
        return Err(PayloadError::EncoderMissing { name });
    }
    rewind(reader)?;
    // Its signatures were checked; that it is the same payload is checked below.
    let anyone = Trust::allow_unsigned(Vec::new());
    let mut reading = Reading::new(reader, &anyone, progress);
    reading.expect_manifest(manifest)?;
    for (part, file) in files(manifest, targets) {
        part.reserve(file, manifest.block_size)?;
    }
    in_order(
        threads(manifest),
        || reading.next_operation(),
        |PendingOperation {
             target,
             operation,
             data,
             ..
         }| {
            // What is left out needs no old content either.
            if targets.image(&target).is_none() {
                return Ok(None);
            }
            let decoded = decode(&operation, data, sources.image(&target), encoders)?;
            Ok(Some((target, operation, decoded)))
        },
        |decoded: Result<_, PayloadError>| {
            let Some((target, operation, decoded)) = decoded? else {
                return Ok(());
            };
            let old = sources.image(&target);
            match targets.image(&target) {
                Some(image) => apply(&operation, manifest.block_size, decoded, image, old),
                None => Ok(()),
            }
        },
    )?;
    let again = reading.stream.finish()?;
    if again.sha256() != verified.sha256() {
        return Err(PayloadError::PayloadChanged);
    }
    for (part, file) in files(manifest, targets) {
        part.truncate(file)?;
    }
    for (target, part, image) in images(manifest, targets) {
        let root_hash = part.build_hash_tree(image)?;
        if let (Target::Partition, Some(root_hash)) = (&target, root_hash) {
            manifest.check_root_hash(root_hash)?;
        }
        if !part.new.matches(image)? {
            return Err(PayloadError::TargetMismatch { target });
        }
    }
    Ok(())
}

/// More would only use more memory: writing is in order and has one thread.
const MOST_THREADS: NonZeroUsize = NonZeroUsize::new(8).expect("8 is not 0");

/// As many as there are cores, but fewer when operations need much memory: for each
/// thread two of them are on their way.
fn threads(manifest: &Manifest) -> NonZeroUsize {
    /// Bytes that all operations on their way may hold.
    const MOST_BYTES: u64 = 40 << 20;

    let operations = manifest.operations();
    let largest = operations
        .map(|(_, operation)| memory_needed(operation))
        .max();
    let fitting = MOST_BYTES / largest.unwrap_or(0).saturating_mul(2).max(1);
    let fitting = usize::try_from(fitting).ok().and_then(NonZeroUsize::new);
    all_cores()
        .min(MOST_THREADS)
        .min(fitting.unwrap_or(NonZeroUsize::MIN))
}

/// One reading of a payload from its start.
struct Reading<'a> {
    reader: &'a mut dyn Read,
    stream: PayloadStream,
    buffer: Vec<u8>,
    progress: &'a mut dyn FnMut(u64),
}

impl<'a> Reading<'a> {
    const BUFFER: usize = 256 << 10;

    fn new(reader: &'a mut dyn Read, trust: &Trust, progress: &'a mut dyn FnMut(u64)) -> Self {
        Self {
            reader,
            stream: PayloadStream::new(Limits::default(), trust),
            buffer: vec![0; Self::BUFFER],
            progress,
        }
    }

    /// Reads no further than the manifest, which must be this one.
    fn expect_manifest(&mut self, expected: &Manifest) -> Result<(), PayloadError> {
        loop {
            match self.stream.next_event()? {
                Some(Event::Metadata { manifest, .. }) if *manifest == *expected => return Ok(()),
                None if self.read()? => {}
                _ => return Err(PayloadError::PayloadChanged),
            }
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
        (self.progress)(self.stream.received());
        Ok(length > 0)
    }
}

fn rewind(reader: &mut impl Seek) -> Result<(), PayloadError> {
    match reader.seek(SeekFrom::Start(0)) {
        Ok(_) => Ok(()),
        Err(source) => Err(PayloadError::Input { offset: 0, source }),
    }
}

fn check_source(
    target: Target,
    part: &Part,
    image: Option<&dyn Image>,
) -> Result<(), PayloadError> {
    match (&part.old, image) {
        (None, _) => Ok(()),
        (Some(_), None) => Err(PayloadError::SourceMissing { target }),
        (Some(old), Some(image)) if old.matches(image)? => Ok(()),
        (Some(_), Some(_)) => Err(PayloadError::SourceMismatch { target }),
    }
}

/// The parts that have a target.
fn images<'a>(
    manifest: &'a Manifest,
    targets: &'a Targets,
) -> impl Iterator<Item = (Target, &'a Part, &'a dyn Image)> {
    let parts = manifest.parts();
    parts.filter_map(|(target, part)| {
        let image = targets.image(&target)?;
        Some((target, part, image))
    })
}

/// Those of them that are files of their own, not the partition.
fn files<'a>(
    manifest: &'a Manifest,
    targets: &'a Targets,
) -> impl Iterator<Item = (&'a Part, &'a File)> {
    let parts = manifest.parts();
    parts.filter_map(|(target, part)| Some((part, targets.file(&target)?)))
}
