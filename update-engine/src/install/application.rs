//! The blocking half of an installation: payload bytes become a written and
//! checked slot. Each stage consumes the one before, so that no step can be left
//! out: [`Application`] → [`Payload`] → [`Written`] → [`Proof`].

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use gptprio::{Access, BlockDevice, FileDevice};
use payload::{
    Announced, Event, Image, ImageInfo, Limits, Manifest, Part, PayloadStream, Target, Verified,
};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::Surroundings;
use super::checkpoint::{Checkpoints, Found, Identity};
use super::decoders::{Decoders, Ready};
use super::proof::{self, PostInstalled, Proof, ReadBack};
use super::slot_image::SlotImage;
use super::verity;
use crate::error::{Artefact, UpdateError};
use crate::plan::InstallPlan;
use crate::platform::{PartitionFiles, UpdateLock};
use crate::policy::{self, ReleaseFacts};
use crate::postinst::{Job, Outcome, PostInstall};

/// Bytes written between two syncs of the target. Bounds both what a power cut costs
/// and how many dirty pages an installation leaves to the kernel. Not counted in bytes of
/// the payload: a small delta writes a large image.
const COMMIT_STEP: u64 = 16 * 1024 * 1024;
/// Unit of copying and hashing; a multiple of every sector size.
const CHUNK: usize = 1024 * 1024;
/// Ceiling for a PCR policy, which is kept in memory to be posted.
const PCR_POLICY_LIMIT: u64 = 16 * 1024 * 1024;

/// An installation that takes payload bytes.
pub(super) struct Application {
    plan: Arc<InstallPlan>,
    surroundings: Arc<Surroundings>,
    stream: PayloadStream,
    position: u64,
    decoders: Decoders,
    /// What a delta of version 2 reads.
    old: OldImages,
    checkpoints: Checkpoints,
    sink: Option<Sink>,
    /// Bytes written since the last sync.
    unsynced: u64,
    lock: UpdateLock,
}

/// The running system, open for reading alone. Empty unless a payload reads it
/// while the target is written.
#[derive(Default)]
struct OldImages {
    partition: Option<Arc<dyn Image>>,
    kernel: Option<Arc<dyn Image>>,
    named: Vec<(Arc<str>, Arc<dyn Image>)>,
}

/// The targets of the operations, open for writing.
struct Sink {
    partition: Arc<dyn BlockDevice>,
    kernel: Option<PartFile>,
    pcr_policy: Option<PartFile>,
    named: Vec<NamedPartition>,
    block_size: u32,
    /// Every operation may be repeated from any earlier point: nothing reads what
    /// another one writes.
    repeatable: bool,
}

/// A further partition. Like the slot it has a size of its own.
struct NamedPartition {
    name: Arc<str>,
    path: PathBuf,
    device: Arc<dyn BlockDevice>,
}

/// A kernel or PCR policy file.
struct PartFile {
    path: PathBuf,
    file: File,
}

/// A complete payload with a good signature, applied but not yet read back.
pub(super) struct Payload {
    plan: Arc<InstallPlan>,
    verified: Verified,
    sink: Sink,
    checkpoints: Checkpoints,
    lock: UpdateLock,
}

/// A slot that holds what the payload promises, on the medium.
pub(super) struct Written {
    plan: Arc<InstallPlan>,
    verified: Verified,
    checkpoints: Checkpoints,
    kernel: Option<PathBuf>,
    pcr_policy: Option<PathBuf>,
    policy_to_post: Option<PcrPolicy>,
    evidence: ReadBack,
    lock: UpdateLock,
}

/// What the PCR policy server must get before the new slot may boot.
#[derive(Clone)]
pub(super) struct PcrPolicy {
    pub(super) server: String,
    pub(super) content: Vec<u8>,
}

impl Application {
    /// Opens the installation, at the last checkpoint when there is one.
    pub(super) fn open(
        plan: Arc<InstallPlan>,
        surroundings: Arc<Surroundings>,
    ) -> Result<Self, UpdateError> {
        let lock = UpdateLock::take(&surroundings.root).map_err(UpdateError::Locked)?;
        let state = &surroundings.state;
        let identity = Identity {
            payload_sha256: hex(&plan.offer.sha256),
            target: plan.slots.target.unique_guid.to_string(),
        };
        let mut checkpoints = Checkpoints::new(
            state.durable.clone(),
            state.volatile.clone(),
            identity,
            &state.boot_id,
        );
        let announced = Announced {
            size: plan.offer.size,
            sha256: plan.offer.sha256,
        };
        let resumed = match checkpoints.find()? {
            Some(Found { resume, metadata }) => {
                match PayloadStream::resume(Limits::default(), &plan.trust, &resume, &metadata) {
                    Ok(stream) => Some((stream.expect(announced)?, resume.offset())),
                    Err(error) => {
                        tracing::warn!(%error, "the checkpoint does not fit, starting over");
                        None
                    }
                }
            }
            None => None,
        };
        let (stream, position) = match resumed {
            Some(resumed) => resumed,
            None => {
                let stream = PayloadStream::new(Limits::default(), &plan.trust);
                (stream.expect(announced)?, 0)
            }
        };
        let decoders = Decoders::new(workers(), &surroundings.encoders);
        let mut application = Self {
            plan,
            surroundings,
            stream,
            position,
            decoders,
            old: OldImages::default(),
            checkpoints,
            sink: None,
            unsynced: 0,
            lock,
        };
        if position > 0 {
            tracing::info!(position, "the installation goes on from its checkpoint");
            let manifest = application.stream.manifest().map(Arc::clone);
            if let Some(manifest) = manifest {
                application.check_room(&manifest)?;
                application.admit(&manifest)?;
                application.mark_target_unbootable()?;
                application.old = application.open_old_images(&manifest)?;
                application.sink = Some(application.open_sink(&manifest)?);
            }
        }
        Ok(application)
    }

    /// Position in the payload file from which bytes are wanted.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Takes bytes until the queue is closed or something fails, then applies
    /// what is still on its way.
    pub(super) fn consume(
        mut self,
        mut queue: mpsc::Receiver<Bytes>,
    ) -> (Self, Result<(), UpdateError>) {
        let result = self.take_all(&mut queue);
        (self, result)
    }

    fn take_all(&mut self, queue: &mut mpsc::Receiver<Bytes>) -> Result<(), UpdateError> {
        while let Some(bytes) = queue.blocking_recv() {
            self.stream.push(&bytes);
            while let Some(event) = self.stream.next_event()? {
                match event {
                    Event::Metadata { manifest, raw } => self.begin(&manifest, &raw)?,
                    Event::Operation(pending) => {
                        while !self.decoders.has_room_for(&pending.operation) {
                            self.apply_oldest()?;
                        }
                        let old = self.old.of(&pending.target);
                        self.decoders.push(pending, old);
                    }
                }
            }
        }
        while self.apply_oldest()? {}
        Ok(())
    }

    /// Whether there was one.
    fn apply_oldest(&mut self) -> Result<bool, UpdateError> {
        let Some(ready) = self.decoders.pop()? else {
            return Ok(false);
        };
        self.apply(ready)?;
        Ok(true)
    }

    /// Header and manifest are there; no byte of the target has been touched yet.
    fn begin(&mut self, manifest: &Manifest, raw: &[u8]) -> Result<(), UpdateError> {
        self.check_room(manifest)?;
        self.admit(manifest)?;
        // Before the first byte: from here on the target is no system any more.
        self.mark_target_unbootable()?;
        // Before the target changes: a record of another payload must not be found
        // when that one is offered again.
        self.checkpoints.begin(raw)?;
        self.old = self.open_old_images(manifest)?;
        let sink = self.open_sink(manifest)?;
        self.copy_old_images(manifest, &sink)?;
        self.sink = Some(sink);
        Ok(())
    }

    fn check_room(&self, manifest: &Manifest) -> Result<(), UpdateError> {
        let target = &self.plan.slots.target;
        let needed = manifest.partition.new.size;
        if needed > target.size {
            return Err(UpdateError::TooSmall {
                object: "USR image",
                place: target.to_string(),
                needed,
                available: target.size,
            });
        }
        for (name, part) in named_parts(manifest) {
            let files = self.partition_files(&name)?;
            let path = &files.target;
            let device = open_partition(path, Access::Unused)?;
            let block_size = manifest.block_size.into();
            let needed = part.new.size.checked_next_multiple_of(block_size);
            let (needed, available) = (needed.unwrap_or(u64::MAX), device.len());
            if needed > available {
                return Err(UpdateError::TooSmall {
                    object: "partition",
                    place: path.display().to_string(),
                    needed,
                    available,
                });
            }
        }
        let for_boot =
            manifest.part(&Target::Kernel).is_some() || manifest.verity_root_hash().is_some();
        if for_boot && self.plan.files.boot_is_unmounted {
            return Err(UpdateError::BootUnmounted);
        }
        if let Some(policy) = manifest.part(&Target::PcrPolicy)
            && policy.new.size > PCR_POLICY_LIMIT
        {
            return Err(UpdateError::TooSmall {
                object: "PCR policy",
                place: "memory".to_owned(),
                needed: policy.new.size,
                available: PCR_POLICY_LIMIT,
            });
        }
        let files = &self.plan.files;
        let mut rooms = Vec::new();
        for (target, object, path) in [
            (Target::Kernel, "kernel", &files.target_kernel),
            (Target::PcrPolicy, "PCR policy", &files.target_pcr_policy),
        ] {
            let Some(part) = manifest.part(&target) else {
                continue;
            };
            let size = part.new.size;
            let needed = size.checked_next_multiple_of(manifest.block_size.into());
            let needed = needed.unwrap_or(u64::MAX);
            let (room, taken) =
                room_for(path).map_err(|error| file_error("look at the room for", path, error))?;
            if let Err(available) = take_room(&mut rooms, room, needed, taken) {
                return Err(UpdateError::NoRoom {
                    object,
                    path: path.display().to_string(),
                    needed,
                    available,
                    running: self.plan.slots.source.to_string(),
                });
            }
        }
        Ok(())
    }

    /// Where a further partition is, which must be another place than that of the
    /// running system.
    fn partition_files(&self, name: &str) -> Result<&PartitionFiles, UpdateError> {
        let mut known = self.plan.files.partitions.iter();
        let files = known.find(|files| files.name == name).ok_or_else(|| {
            let name = name.to_owned();
            UpdateError::PartitionUnmapped { name }
        })?;
        if is_same_place(&files.source, &files.target) {
            let reason = "it is the running system's, too";
            return Err(file_error(
                "install to",
                &files.target,
                std::io::Error::other(reason),
            ));
        }
        Ok(files)
    }

    /// Whether this machine may and can take the release, by the signed manifest.
    fn admit(&self, manifest: &Manifest) -> Result<(), UpdateError> {
        let facts = ReleaseFacts::of(manifest.release.as_ref());
        policy::admit(&facts, &self.plan.circumstances).map_err(|reason| {
            UpdateError::ReleaseRefused {
                reason,
                facts: Box::new(facts),
            }
        })?;
        let missing = manifest.missing_encoders(&self.surroundings.encoders);
        if missing.is_empty() {
            Ok(())
        } else {
            let names = missing.join(", ");
            Err(UpdateError::EncodersMissing { names })
        }
    }

    fn mark_target_unbootable(&self) -> Result<(), UpdateError> {
        Ok(self.surroundings.boot.mark_unbootable(&self.plan.slots)?)
    }

    fn open_sink(&self, manifest: &Manifest) -> Result<Sink, UpdateError> {
        let target = &self.plan.slots.target;
        let partition = self
            .surroundings
            .slots
            .open_target(target)
            .map_err(|error| device_error("open the target slot", target, error))?;
        let files = &self.plan.files;
        // A file is made only when the payload has something for it.
        let open = |part: Option<&Part>, path: &Path| {
            part.map(|part| {
                let opened = PartFile::open(path.to_owned())?;
                part.reserve(&opened.file, manifest.block_size)?;
                Ok::<_, UpdateError>(opened)
            })
            .transpose()
        };
        Ok(Sink {
            partition,
            kernel: open(manifest.part(&Target::Kernel), &files.target_kernel)?,
            pcr_policy: open(manifest.part(&Target::PcrPolicy), &files.target_pcr_policy)?,
            named: named_parts(manifest)
                .map(|(name, _)| {
                    let path = self.partition_files(&name)?.target.clone();
                    let device = open_partition(&path, Access::Unused)?;
                    Ok(NamedPartition { name, path, device })
                })
                .collect::<Result<_, UpdateError>>()?,
            block_size: manifest.block_size,
            repeatable: !manifest.is_in_place(),
        })
    }

    /// A version 2 delta reads the running system where it is. Each operation checks
    /// what it reads, so nothing is compared in advance.
    fn open_old_images(&self, manifest: &Manifest) -> Result<OldImages, UpdateError> {
        if manifest.is_in_place() || !manifest.is_delta() {
            return Ok(OldImages::default());
        }
        let source = &self.plan.slots.source;
        let partition = self
            .surroundings
            .slots
            .open_source(source)
            .map_err(|error| device_error("open the running slot", source, error))?;
        let has_old = |part: &Part| part.old.is_some();
        let kernel = if manifest.part(&Target::Kernel).is_some_and(has_old) {
            let path = &self.plan.files.source_kernel;
            let file = File::open(path)
                .map_err(|error| file_error("open the running kernel", path, error))?;
            Some(Arc::new(file) as Arc<dyn Image>)
        } else {
            None
        };
        let named = named_parts(manifest)
            .filter(|(_, part)| has_old(part))
            .map(|(name, _)| {
                let path = &self.partition_files(&name)?.source;
                let image = SlotImage(open_partition(path, Access::ReadOnly)?);
                Ok((name, Arc::new(image) as Arc<dyn Image>))
            })
            .collect::<Result<_, UpdateError>>()?;
        Ok(OldImages {
            partition: Some(Arc::new(SlotImage(partition))),
            kernel,
            named,
        })
    }

    /// A version 1 delta patches in place, so the target first gets what the
    /// delta was made from. Full payloads copy nothing.
    fn copy_old_images(&self, manifest: &Manifest, sink: &Sink) -> Result<(), UpdateError> {
        if !manifest.is_in_place() {
            return Ok(());
        }
        if let Some(old) = manifest.partition.old {
            let source = &self.plan.slots.source;
            let device = self
                .surroundings
                .slots
                .open_source(source)
                .map_err(|error| device_error("open the running slot", source, error))?;
            if old.size > device.len() || old.size > sink.partition.len() {
                return Err(UpdateError::TooSmall {
                    object: "USR image",
                    place: source.to_string(),
                    needed: old.size,
                    available: device.len().min(sink.partition.len()),
                });
            }
            let hash = for_each_chunk(
                old.size,
                |offset, buffer| device.read_at(offset, buffer),
                |offset, data| sink.partition.write_at(offset, data),
            )
            .map_err(|error| {
                device_error("copy the running slot to", &self.plan.slots.target, error)
            })?;
            same_source("USR partition", &old, hash)?;
        }
        let kernel = manifest.part(&Target::Kernel).and_then(|part| part.old);
        if let (Some(old), Some(target)) = (kernel, &sink.kernel) {
            let path = &self.plan.files.source_kernel;
            let copy = || {
                let source = File::open(path)?;
                if source.metadata()?.len() < old.size {
                    // Certainly another kernel; its hash then says so.
                    return for_each_chunk(0, |_, _| Ok(()), |_, _| Ok(()));
                }
                for_each_chunk(
                    old.size,
                    |offset, buffer| source.read_exact_at(buffer, offset),
                    |offset, data| target.file.write_all_at(data, offset),
                )
            };
            let hash =
                copy().map_err(|error| file_error("copy the running kernel", path, error))?;
            same_source("kernel", &old, hash)?;
        }
        Ok(())
    }

    fn apply(&mut self, ready: Ready) -> Result<(), UpdateError> {
        let Some(sink) = &self.sink else {
            return Err(UpdateError::Internal(
                "an operation came before the manifest".to_owned(),
            ));
        };
        let Ready {
            target,
            operation,
            decoded,
            old,
            resume,
        } = ready;
        self.unsynced = self.unsynced.saturating_add(operation.bytes_written());
        let (block_size, old) = (sink.block_size, old.as_deref());
        let apply_to_file = |part: Option<&PartFile>, decoded| match part {
            Some(part) => Ok(payload::apply(
                &operation, block_size, decoded, &part.file, old,
            )?),
            None => Err(UpdateError::Internal(
                "an operation has no file to work on".to_owned(),
            )),
        };
        if !sink.repeatable && !operation.is_idempotent() {
            self.checkpoints.invalidate()?;
        }
        match target {
            Target::Partition => {
                let image = SlotImage(Arc::clone(&sink.partition));
                payload::apply(&operation, block_size, decoded, &image, old)?;
            }
            Target::Kernel => apply_to_file(sink.kernel.as_ref(), decoded)?,
            Target::PcrPolicy => apply_to_file(sink.pcr_policy.as_ref(), decoded)?,
            Target::Unknown(kind) => {
                tracing::debug!(kind, "an operation of an unknown procedure is skipped");
            }
            Target::Named(name) => {
                let mut named = sink.named.iter();
                let partition = named.find(|partition| partition.name == name);
                let partition = partition.ok_or_else(|| {
                    UpdateError::Internal(format!("the partition {name} was not opened"))
                })?;
                let image = SlotImage(Arc::clone(&partition.device));
                payload::apply(&operation, block_size, decoded, &image, old)?;
            }
        }
        self.checkpoints.record(&resume)?;
        if self.unsynced >= COMMIT_STEP {
            sink.sync()?;
            self.unsynced = 0;
            // What one operation of a delta in place read, the next may have
            // overwritten: from an older point it could not be repeated, so there is
            // no durable point.
            if sink.repeatable {
                self.checkpoints.commit(&resume)?;
            }
        }
        Ok(())
    }

    /// The installation ends here, unfinished. Keeps or forgets how far it got.
    pub(super) fn give_up(self, keep: bool) {
        let synced = match &self.sink {
            Some(sink) if keep => sink.sync(),
            _ => Ok(()),
        };
        // A failed sync may have dropped what was written, and the next one would
        // not say so again.
        let cleared = if keep && synced.is_ok() {
            Ok(())
        } else {
            self.checkpoints.clear()
        };
        if let Err(error) = synced.and(cleared) {
            tracing::warn!(error = error.words(), "cannot put the checkpoint in order");
        }
    }

    /// All bytes were taken: size, hash and signature of the whole payload.
    pub(super) fn verify(self) -> Result<Payload, UpdateError> {
        let Self {
            plan,
            stream,
            checkpoints,
            sink,
            lock,
            ..
        } = self;
        let verified = match stream.finish() {
            Ok(verified) => verified,
            Err(error) => {
                checkpoints.clear()?;
                return Err(error.into());
            }
        };
        let sink = sink.ok_or_else(|| {
            UpdateError::Internal("a payload without a manifest is good".to_owned())
        })?;
        Ok(Payload {
            plan,
            verified,
            sink,
            checkpoints,
            lock,
        })
    }
}

impl OldImages {
    fn of(&self, target: &Target) -> Option<Arc<dyn Image>> {
        match target {
            Target::Partition => self.partition.clone(),
            Target::Kernel => self.kernel.clone(),
            Target::Named(name) => {
                let mut named = self.named.iter();
                named.find_map(|(other, image)| (other == name).then(|| Arc::clone(image)))
            }
            Target::PcrPolicy | Target::Unknown(_) => None,
        }
    }
}

impl Sink {
    fn sync(&self) -> Result<(), UpdateError> {
        self.partition.sync().map_err(|error| UpdateError::Device {
            operation: "sync",
            object: "the target slot".to_owned(),
            source: Box::new(error),
        })?;
        for partition in &self.named {
            let synced = partition.device.sync();
            synced.map_err(|error| device_error("sync", &partition.path.display(), error))?;
        }
        for part in [&self.kernel, &self.pcr_policy].into_iter().flatten() {
            part.file
                .sync_all()
                .map_err(|error| file_error("sync", &part.path, error))?;
        }
        Ok(())
    }
}

impl PartFile {
    /// As the original: made when missing, readable by root alone, not emptied,
    /// since a resumed installation goes on in it.
    fn open(path: PathBuf) -> Result<Self, UpdateError> {
        use std::os::unix::fs::OpenOptionsExt as _;
        let open = || {
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder)?;
            }
            File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)
        };
        let file = open().map_err(|error| file_error("open", &path, error))?;
        Ok(Self { path, file })
    }

    /// Cuts the file to its size, brings it to the medium and reads it back from
    /// there.
    fn settle(&self, info: &ImageInfo, object: Artefact) -> Result<(), UpdateError> {
        let settle = || {
            self.file.set_len(info.size)?;
            self.file.sync_all()?;
            if let Some(folder) = self.path.parent() {
                File::open(folder)?.sync_all()?;
            }
            drop_cached_pages(&self.file);
            for_each_chunk(
                info.size,
                |offset, buffer| self.file.read_exact_at(buffer, offset),
                |_, _| Ok(()),
            )
        };
        let hash = settle().map_err(|error| file_error("settle", &self.path, error))?;
        same_result(object, &self.path.display().to_string(), info, hash)
    }
}

impl Payload {
    /// Sync, build what the payload leaves to this machine, then read everything back
    /// from the medium and compare.
    pub(super) fn read_back(self) -> Result<Written, UpdateError> {
        let Self {
            plan,
            verified,
            sink,
            checkpoints,
            lock,
        } = self;
        let compared = compare(&plan, verified.manifest(), &sink);
        let policy_to_post = match compared {
            Ok(policy) => policy,
            Err(error) => {
                checkpoints.clear()?;
                return Err(error);
            }
        };
        Ok(Written {
            kernel: sink.kernel.map(|part| part.path),
            pcr_policy: sink.pcr_policy.map(|part| part.path),
            plan,
            verified,
            checkpoints,
            policy_to_post,
            evidence: ReadBack::after_comparison(),
            lock,
        })
    }
}

fn compare(
    plan: &InstallPlan,
    manifest: &Manifest,
    sink: &Sink,
) -> Result<Option<PcrPolicy>, UpdateError> {
    let target = &plan.slots.target;
    sink.sync()?;
    let partition = (&manifest.partition, &*sink.partition);
    let root_hash = complete(partition, Artefact::Image, target)?;
    if let Some(root_hash) = root_hash {
        manifest.check_root_hash(root_hash)?;
    }
    for NamedPartition { name, path, device } in &sink.named {
        if let Some(part) = manifest.part(&Target::Named(Arc::clone(name))) {
            complete((part, &**device), Artefact::Partition, &path.display())?;
        }
    }
    if let (Some(file), Some(part)) = (&sink.kernel, manifest.part(&Target::Kernel)) {
        file.settle(&part.new, Artefact::Kernel)?;
    }
    let path = &plan.files.target_root_hash;
    verity::settle_root_hash(path, manifest.verity_root_hash())
        .map_err(|error| file_error("settle the root hash in", path, error))?;
    if let (Some(file), Some(part)) = (&sink.pcr_policy, manifest.part(&Target::PcrPolicy)) {
        file.settle(&part.new, Artefact::PcrPolicy)?;
        if let Some(server) = &plan.pcr_policy_server {
            let content = fs::read(&file.path)
                .map_err(|error| file_error("read the PCR policy", &file.path, error))?;
            return Ok(Some(PcrPolicy {
                server: server.clone(),
                content,
            }));
        }
    }
    Ok(None)
}

/// Builds the hash tree of a synced partition, if it has one, and compares all of it on
/// the medium with what was promised. Returns the tree's root hash.
fn complete(
    (part, device): (&Part, &dyn BlockDevice),
    object: Artefact,
    place: &impl ToString,
) -> Result<Option<[u8; 32]>, UpdateError> {
    let tree = part.hash_tree.as_ref();
    let root_hash = tree
        .map(|tree| verity::build(tree, device))
        .transpose()
        .map_err(|error| device_error("build the hash tree of", place, error))?;
    let hash = for_each_chunk(
        part.new.size,
        |offset, buffer| device.read_medium_at(offset, buffer),
        |_, _| Ok(()),
    )
    .map_err(|error| device_error("read back", place, error))?;
    same_result(object, &place.to_string(), &part.new, hash)?;
    Ok(root_hash)
}

/// The updates of further partitions.
fn named_parts(manifest: &Manifest) -> impl Iterator<Item = (Arc<str>, &Part)> {
    manifest.parts().filter_map(|(target, part)| match target {
        Target::Named(name) => Some((name, part)),
        _ => None,
    })
}

/// What is left of a file system.
#[derive(Debug, Clone, Copy)]
struct Room {
    /// Which one, as the kernel numbers them.
    file_system: u64,
    /// Bytes that nothing has yet.
    free: u64,
    /// Files grow by this many bytes at a time.
    unit: u64,
}

/// Takes what a file grows by that needs so many bytes and has `taken` ones. Files of one
/// file system share what is free there: `rooms` holds what the files before left, and
/// `room` counts for the first.
///
/// # Errors
/// The bytes that the file can have, which are too few.
fn take_room(rooms: &mut Vec<Room>, room: Room, needed: u64, taken: u64) -> Result<(), u64> {
    let same = |other: &Room| other.file_system == room.file_system;
    let index = rooms.iter().position(same).unwrap_or_else(|| {
        rooms.push(room);
        rooms.len() - 1
    });
    let free = &mut rooms[index].free;
    // A file keeps what it has until the last operation.
    let growth = needed.saturating_sub(taken);
    let growth = growth.checked_next_multiple_of(room.unit.max(1));
    match growth.and_then(|growth| free.checked_sub(growth)) {
        Some(left) => {
            *free = left;
            Ok(())
        }
        None => Err(free.saturating_add(taken)),
    }
}

/// The file system where a file is or will be, and the bytes that it has there already.
fn room_for(path: &Path) -> std::io::Result<(Room, u64)> {
    let taken = match fs::metadata(path) {
        // Of 512 bytes each, whatever the file system's are.
        Ok(metadata) => metadata.blocks().saturating_mul(512),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error),
    };
    let mut folders = path.ancestors().skip(1);
    let folder = folders.find(|folder| folder.exists());
    let folder = folder.unwrap_or(Path::new("/"));
    let system = nix::sys::statvfs::statvfs(folder)?;
    let unit = system.fragment_size();
    let free = match system.blocks() {
        // Some network file systems do not count. Then the write tells.
        0 => u64::MAX,
        // The daemon is root, for whom nothing is set aside.
        _ => system.blocks_free().saturating_mul(unit),
    };
    let room = Room {
        file_system: fs::metadata(folder)?.dev(),
        free,
        unit,
    };
    Ok((room, taken))
}

/// Whether both paths lead to one device or file, whatever they are called.
fn is_same_place(one: &Path, other: &Path) -> bool {
    let place = |path| {
        let metadata = fs::metadata(path).ok()?;
        Some(match metadata.file_type().is_block_device() {
            true => (metadata.rdev(), None),
            false => (metadata.dev(), Some(metadata.ino())),
        })
    };
    place(one).is_some_and(|place_of_one| place(other) == Some(place_of_one))
}

fn open_partition(path: &Path, access: Access) -> Result<Arc<dyn BlockDevice>, UpdateError> {
    let opened = FileDevice::open(path, access);
    let device = opened.map_err(|error| device_error("open", &path.display(), error))?;
    Ok(Arc::new(device))
}

impl Written {
    /// What must be posted before anything else, if anything.
    pub(super) fn pcr_policy(&self) -> Option<PcrPolicy> {
        self.policy_to_post.clone()
    }

    /// The release's security epoch, if it has one.
    pub(super) fn security_epoch(&self) -> Option<u64> {
        proof::security_epoch(&self.verified)
    }

    /// Lets the new image have its say, and gives the proof that it may boot, with
    /// the lock that must be held until it does.
    pub(super) fn post_install(
        self,
        postinst: &dyn PostInstall,
    ) -> Result<(Proof, UpdateLock), UpdateError> {
        let ran = postinst.run(&Job {
            target: &self.plan.slots.target,
            kernel: self.kernel.as_deref(),
            pcr_policy: self.pcr_policy.as_deref(),
            timeout: self.plan.postinst_timeout,
        });
        // Whatever comes of it, there is nothing left to resume.
        self.checkpoints.clear()?;
        match ran.map_err(|error| UpdateError::PostInstall(Box::new(error)))? {
            Outcome::Done => tracing::info!("the post-install program agreed"),
            Outcome::NothingToRun => {
                tracing::info!("the new image has no post-install program");
            }
            Outcome::BootedFromFirmwareB => {
                tracing::warn!("the post-install program says: booted from the second firmware");
            }
            Outcome::Skipped { reason } => {
                tracing::warn!(reason, "the post-install program was not run");
            }
        }
        let evidence = PostInstalled::after_success();
        let proof = Proof::new(
            &self.plan.offer.version,
            &self.verified,
            self.evidence,
            evidence,
        );
        Ok((proof, self.lock))
    }
}

/// Reads `size` bytes in chunks, hands each to `sink`, and hashes them all.
fn for_each_chunk<E>(
    size: u64,
    mut read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
    mut sink: impl FnMut(u64, &[u8]) -> Result<(), E>,
) -> Result<[u8; 32], E> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    let mut offset = 0;
    while offset < size {
        let length = usize::try_from(size - offset).unwrap_or(CHUNK).min(CHUNK);
        let chunk = &mut buffer[..length];
        read(offset, chunk)?;
        hash.update(&*chunk);
        sink(offset, chunk)?;
        offset += u64::try_from(length).expect("a chunk is 1 MiB at most");
    }
    Ok(hash.finalize().into())
}

fn same_source(
    object: &'static str,
    info: &ImageInfo,
    actual: [u8; 32],
) -> Result<(), UpdateError> {
    if info.sha256 == actual {
        return Ok(());
    }
    Err(UpdateError::SourceMismatch {
        object,
        expected: hex(&info.sha256),
        actual: hex(&actual),
    })
}

fn same_result(
    object: Artefact,
    place: &str,
    info: &ImageInfo,
    actual: [u8; 32],
) -> Result<(), UpdateError> {
    if info.sha256 == actual {
        return Ok(());
    }
    Err(UpdateError::ReadBack {
        object,
        place: place.to_owned(),
        expected: hex(&info.sha256),
        actual: hex(&actual),
    })
}

/// A hint; a kernel that does not follow it still compares what the file holds.
pub(super) fn drop_cached_pages(file: &File) {
    use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
    let _ = posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
}

/// Decoding threads. Two are faster than most networks; each one more takes about
/// ten MiB, and with four an update needs more than the 64 MiB that it may take.
fn workers() -> usize {
    std::thread::available_parallelism()
        .map_or(1, std::num::NonZero::get)
        .min(2)
}

fn device_error(
    operation: &'static str,
    object: &impl ToString,
    error: impl std::error::Error + Send + Sync + 'static,
) -> UpdateError {
    UpdateError::Device {
        operation,
        object: object.to_string(),
        source: Box::new(error),
    }
}

fn file_error(operation: &'static str, path: &Path, error: std::io::Error) -> UpdateError {
    UpdateError::Device {
        operation,
        object: path.display().to_string(),
        source: Box::new(error),
    }
}

/// Lower case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_one_file_system_share_what_is_free_there() {
        const MIB: u64 = 1 << 20;
        let room = |file_system| Room {
            file_system,
            free: 10 * MIB,
            unit: 64 * 1024,
        };
        // Of each file: its file system, what it needs, what it has.
        type Files = [(u64, u64, u64); 2];
        let cases: [(Files, [Result<(), u64>; 2]); 6] = [
            ([(1, 6 * MIB, 0), (1, 4 * MIB, 0)], [Ok(()), Ok(())]),
            (
                [(1, 6 * MIB, 0), (1, 4 * MIB + 1, 0)],
                [Ok(()), Err(4 * MIB)],
            ),
            ([(1, 6 * MIB, 0), (2, 10 * MIB, 0)], [Ok(()), Ok(())]),
            // What the old files have is theirs.
            (
                [(1, 9 * MIB, 5 * MIB), (1, 8 * MIB, 2 * MIB)],
                [Ok(()), Ok(())],
            ),
            (
                [(1, 9 * MIB, 5 * MIB), (1, 9 * MIB, 2 * MIB)],
                [Ok(()), Err(8 * MIB)],
            ),
            // One byte takes a whole unit; what overflows never fits.
            (
                [(1, 1, 0), (1, u64::MAX, 0)],
                [Ok(()), Err(10 * MIB - 64 * 1024)],
            ),
        ];
        for (files, expected) in cases {
            let mut rooms = Vec::new();
            let fit = files.map(|(file_system, needed, taken)| {
                take_room(&mut rooms, room(file_system), needed, taken)
            });
            assert_eq!(fit, expected, "{files:?}");
        }
    }
}
