//! A machine with two slots on a disk in memory, and releases to install on it. Only
//! disk, network and post-install program are made up; all between them is the real
//! installation.

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use gptprio::testing::{FakeDisk, Layout};
use gptprio::{Attributes, BlockDevice, DeviceError, Gpt, Region, USR_TYPE, select};
use omaha_protocol::Event as OmahaEvent;
use payload::make::{
    Blocks, Draft, Parts, PreparedKind, PreparedOperation, PreparedPart, PreparedSource,
    PrivateKey, Profile, Scratch, Source,
};
use payload::recompress::Encoders;
use payload::{Event, Image, ImageInfo, Limits, PayloadStream, PublicKey, Trust};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use crate::boot::{BootControl, GptBoot};
use crate::config::Settings;
use crate::error::{TransportError, UpdateError};
use crate::install::{
    self, Ended, Observer, Proof, SlotOpener, StateFolders, Surroundings, machine,
};
use crate::net::{BodyStream, Patience, RangeReply, RangeRequest, Reply, Transport};
use crate::plan::InstallPlan;
use crate::platform::{KernelFiles, Letter, PartitionFiles, Slot, Slots};
use crate::postinst::{Job, Outcome, PostInstall, PostInstallError};
use crate::root::Root;

const PRIVATE: &str = include_str!("../../../../fixtures/keys/ed25519_DO_NOT_USE.pem");
const PUBLIC: &str = include_str!("../../../../fixtures/keys/ed25519.pub.pem");

pub(super) const A: u32 = 3;
pub(super) const B: u32 = 4;

/// What slot B is before the installation. A always runs and is proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SlotB {
    /// Freshly installed: nothing in it, may not boot.
    Blank,
    /// An older version that would boot before A.
    Preferred,
    /// As `Preferred`, and the primary copy of the partition table is damaged.
    PreferredByBackupTable,
}

/// The machine. A holds `old` from its first to its last byte, B `older`.
#[derive(Clone)]
pub(super) struct Machine {
    pub(super) disk: Arc<FakeDisk>,
    pub(super) slots: Slots,
    boot_id: String,
    old: Arc<Vec<u8>>,
    older: Arc<Vec<u8>>,
    /// What B's attributes are as long as `older` may boot from it.
    older_attributes: Attributes,
    folder: Arc<tempfile::TempDir>,
    runtime: Arc<Runtime>,
}

impl Machine {
    pub(super) fn new(sector_size: u32, slot_len: usize, slot_b: SlotB) -> Self {
        Self::running(noise(1, slot_len), None, sector_size, slot_b)
    }

    /// One whose slots are as large as the image that A holds.
    pub(super) fn running(
        old: Vec<u8>,
        kernel: Option<&[u8]>,
        sector_size: u32,
        slot_b: SlotB,
    ) -> Self {
        let slot_len = old.len();
        let attributes = |priority: u8| {
            Attributes::default()
                .with_priority(priority)
                .with_successful(priority > 0)
        };
        let len = u64::try_from(slot_len).unwrap();
        let layout = match slot_b {
            SlotB::Blank => Layout::two_slots_of(len),
            SlotB::Preferred | SlotB::PreferredByBackupTable => Layout::empty()
                .partition(A, "USR-A", USR_TYPE, len, attributes(1))
                .partition(B, "USR-B", USR_TYPE, len, attributes(2)),
        };
        let disk = Arc::new(FakeDisk::new(sector_size, layout.disk_len(sector_size)));
        layout.write_to(&disk);
        let slots = slots_of(&disk);
        let older = noise(2, slot_len);
        disk.write_at(slots.source.start, &old).unwrap();
        disk.write_at(slots.target.start, &older).unwrap();
        if slot_b == SlotB::PreferredByBackupTable {
            disk.write_at(u64::from(sector_size), &[0; 512]).unwrap();
        }
        disk.sync().unwrap();
        let older_attributes = Gpt::read(&*disk).unwrap().partition(B).unwrap().attributes;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build();
        let folder = folder();
        if let Some(kernel) = kernel {
            std::fs::write(folder.path().join("vmlinuz-a"), kernel).unwrap();
        }
        std::fs::write(folder.path().join("usrhash-b"), "of the older image\n").unwrap();
        Self {
            disk,
            slots,
            boot_id: "first boot".to_owned(),
            old: Arc::new(old),
            older: Arc::new(older),
            older_attributes,
            folder: Arc::new(folder),
            runtime: Arc::new(runtime.unwrap()),
        }
    }

    /// What a power cut at this moment would leave: of the sectors that no sync brought
    /// to the medium any half, and of the folders those that last.
    pub(super) fn power_cut(&self, seed: u64) -> Self {
        let mut random = Random(seed);
        let disk = self.disk.after_power_cut(|_| random.below(2) == 0);
        Self {
            folder: self.copy_of(&["durable"]),
            ..self.restarted_from(disk)
        }
    }

    /// What `kill -9` at this moment would leave: everything that was written.
    pub(super) fn killed(&self) -> Self {
        let disk = FakeDisk::from_bytes(self.disk.sector_size(), self.disk.to_bytes());
        Self {
            folder: self.copy_of(&["durable", "volatile"]),
            boot_id: self.boot_id.clone(),
            ..self.restarted_from(disk)
        }
    }

    /// These and the files that belong to the slots.
    fn copy_of(&self, kept: &[&str]) -> Arc<tempfile::TempDir> {
        const OF_SLOTS: [&str; 5] = ["vmlinuz-a", "vmlinuz-b", "usrhash-b", "oem-a", "oem-b"];
        let copy = folder();
        for name in kept.iter().chain(&OF_SLOTS) {
            copy_tree(&self.folder.path().join(name), &copy.path().join(name));
        }
        Arc::new(copy)
    }

    /// The same machine after it lost power: started again, from this disk.
    pub(super) fn restarted_from(&self, disk: FakeDisk) -> Self {
        Self {
            disk: Arc::new(disk),
            slots: self.slots.clone(),
            boot_id: "boot after the power cut".to_owned(),
            old: Arc::clone(&self.old),
            older: Arc::clone(&self.older),
            older_attributes: self.older_attributes,
            folder: Arc::clone(&self.folder),
            runtime: Arc::clone(&self.runtime),
        }
    }

    /// What B held before the installation.
    pub(super) fn older(&self) -> &[u8] {
        &self.older
    }

    /// The real boot attributes on this disk.
    pub(super) fn boot(&self) -> GptBoot {
        let (source, target) = (range(&self.slots.source), range(&self.slots.target));
        let node = Node {
            disk: Arc::clone(&self.disk),
            cached: vec![
                0..source.start,
                source.end..target.start,
                target.end..self.disk.len(),
            ],
            before_write: None,
            writes: AtomicU64::new(0),
        };
        GptBoot::on_disk(Arc::new(node), &Settings::default())
    }

    pub(super) fn attempt(&self, release: &Release) -> Attempt<'_> {
        let path = |name: &str| self.folder.path().join(name);
        let size = u64::try_from(release.payload.len()).unwrap();
        let mut plan = InstallPlan::for_tests("2.0.0", size);
        plan.offer.sha256 = release.sha256();
        plan.slots = self.slots.clone();
        plan.files = KernelFiles {
            source_kernel: path("vmlinuz-a"),
            target_kernel: path("vmlinuz-b"),
            target_root_hash: path("usrhash-b"),
            target_pcr_policy: path("pcrs-b.zip"),
            boot_is_unmounted: false,
            partitions: vec![PartitionFiles {
                name: "oem".to_owned(),
                source: path("oem-a"),
                target: path("oem-b"),
            }],
        };
        plan.trust = Trust::new(vec![PublicKey::from_pem(release.signer).unwrap()], 1).unwrap();
        let cancel = CancellationToken::new();
        Attempt {
            machine: self,
            plan,
            boot: Arc::new(self.boot()),
            before_write: None,
            at_step: Arc::new(|_, _| {}),
            fails_at: None,
            server: Server {
                file: release.payload.clone(),
                stop_at: None,
                cancel: cancel.clone(),
                asked: Mutex::default(),
            },
            cancel,
        }
    }

    /// One attempt with nothing special about it.
    pub(super) fn install(&self, release: &Release) -> Result<Proof, UpdateError> {
        self.attempt(release).run().0.result
    }

    /// Number of the slot that boots from `disk`, which must hold a whole image; and the
    /// running one must be as it always was.
    pub(super) fn boots(&self, disk: &FakeDisk, release: &Release) -> Result<u32, String> {
        if !disk.holds(self.slots.source.start, &self.old) {
            return Err("the running slot was written to".to_owned());
        }
        let gpt = Gpt::read(disk).map_err(|error| error.to_string())?;
        let target = self.slots.target.start;
        match select(&gpt.slots(USR_TYPE)).slot() {
            None => Err("nothing boots".to_owned()),
            Some(slot) if slot.number == A => Ok(A),
            Some(_) if disk.holds(target, &release.image) => Ok(B),
            Some(slot)
                if slot.attributes == self.older_attributes && disk.holds(target, &self.older) =>
            {
                Ok(B)
            }
            Some(_) => Err("boots the target, which holds no whole image".to_owned()),
        }
    }

    /// The new version boots next, complete, kernel and all.
    pub(super) fn assert_updated(&self, release: &Release, context: &str) {
        assert_eq!(self.boots(&self.disk, release), Ok(B), "{context}");
        assert!(
            self.disk.holds(self.slots.target.start, &release.image),
            "{context}: the target holds the new image"
        );
        let kernel = std::fs::read(self.folder.path().join("vmlinuz-b")).ok();
        assert!(kernel == release.kernel, "{context}: the new kernel");
        assert_eq!(self.root_hash(), release.root_hash_line(), "{context}");
    }

    /// A file of this machine, such as `oem-b`, which stands for a partition.
    pub(super) fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    /// What a boot selector reads beside the kernel of B.
    pub(super) fn root_hash(&self) -> Option<String> {
        std::fs::read_to_string(self.folder.path().join("usrhash-b")).ok()
    }
}

/// One run of the installation, with what is different about it.
pub(super) struct Attempt<'a> {
    machine: &'a Machine,
    plan: InstallPlan,
    boot: Arc<dyn BootControl>,
    before_write: Option<BeforeWrite>,
    at_step: AtStep,
    fails_at: Option<Step>,
    server: Server,
    cancel: CancellationToken,
}

impl Attempt<'_> {
    /// The attempt is cancelled when the bytes before `position` were sent.
    pub(super) fn cancelled_at(mut self, position: u64) -> Self {
        self.server.stop_at = Some(usize::try_from(position).unwrap());
        self
    }

    /// Changes what was decided before the attempt.
    pub(super) fn planned(mut self, change: impl FnOnce(&mut InstallPlan)) -> Self {
        change(&mut self.plan);
        self
    }

    pub(super) fn booting_by(mut self, boot: impl BootControl + 'static) -> Self {
        self.boot = Arc::new(boot);
        self
    }

    /// Calls `look` before each write to the target, with the number of the write.
    pub(super) fn watched_by(mut self, look: impl Fn(u64) + Send + Sync + 'static) -> Self {
        self.before_write = Some(Arc::new(look));
        self
    }

    /// Calls `at_step` after the download, with what may cancel the attempt.
    pub(super) fn with_steps(
        mut self,
        at_step: impl Fn(Step, &CancellationToken) + Send + Sync + 'static,
    ) -> Self {
        self.at_step = Arc::new(at_step);
        self
    }

    /// Nothing can be recorded at this step.
    pub(super) fn failing_at(mut self, step: Step) -> Self {
        self.fails_at = Some(step);
        self
    }

    /// How it ended, and the positions from which the server was asked for bytes.
    pub(super) fn run(self) -> (Ended, Vec<u64>) {
        let machine = self.machine;
        let server = Arc::new(self.server);
        let folder = machine.folder.path();
        let witness = Witness {
            at_step: self.at_step,
            cancel: self.cancel.clone(),
            fails_at: self.fails_at,
        };
        let surroundings = Surroundings {
            transport: Arc::clone(&server) as Arc<dyn Transport>,
            patience: Patience {
                retries: 0,
                window: Duration::from_secs(60),
                ..Patience::default()
            },
            slots: Arc::new(Nodes {
                disk: Arc::clone(&machine.disk),
                before_write: self.before_write,
            }),
            encoders: Arc::new(Encoders::carried()),
            boot: self.boot,
            postinst: Arc::new(witness.clone()),
            state: StateFolders {
                durable: folder.join("durable"),
                volatile: folder.join("volatile"),
                boot_id: machine.boot_id.clone(),
            },
            root: Root::at(folder).unwrap(),
        };
        let ended = machine.runtime.block_on(install::run(
            Arc::new(self.plan),
            Arc::new(surroundings),
            &witness,
            self.cancel,
        ));
        let asked = server.asked.lock().unwrap().clone();
        (ended, asked)
    }
}

/// What a server has to offer.
#[derive(Clone)]
pub(super) struct Release {
    pub(super) payload: Bytes,
    pub(super) image: Vec<u8>,
    pub(super) kernel: Option<Vec<u8>>,
    /// The one that its makers have signed.
    pub(super) root_hash: Option<[u8; 32]>,
    signer: &'static str,
}

impl Release {
    /// A full payload, signed.
    pub(super) fn new(image: Vec<u8>, kernel: Option<Vec<u8>>) -> Self {
        Self::of_profile(Profile::V1, image, kernel)
    }

    /// The same in a format of choice.
    pub(super) fn of_profile(profile: Profile, image: Vec<u8>, kernel: Option<Vec<u8>>) -> Self {
        let size = |bytes: &[u8]| u64::try_from(bytes.len()).unwrap();
        let (mut image_reader, mut kernel_reader) = (&image[..], kernel.as_deref());
        let draft = payload::make::full(
            Source {
                size: size(&image),
                reader: &mut image_reader,
            },
            kernel_reader.as_mut().map(|reader| Source {
                size: size(reader),
                reader,
            }),
            Vec::new(),
            profile,
            std::io::Cursor::new(Vec::new()),
            std::num::NonZeroUsize::MIN,
        );
        let release = Self::signed(draft.unwrap(), image);
        Self { kernel, ..release }
    }

    /// Of an image without a kernel.
    fn signed<B: std::io::Read + std::io::Seek>(mut draft: Draft<B>, image: Vec<u8>) -> Self {
        let mut payload = Vec::new();
        let keys = [PrivateKey::from_pem(PRIVATE).unwrap()];
        draft.sign(&keys, &mut payload).unwrap();
        Self {
            payload: payload.into(),
            image,
            kernel: None,
            root_hash: None,
            signer: PUBLIC,
        }
    }

    /// A payload of version 2 that leaves the hash tree to the machine, with the root hash
    /// or without, or with another one that its makers have signed.
    pub(super) fn with_verity(
        data: &[u8],
        signed: impl FnOnce([u8; 32]) -> Option<[u8; 32]>,
    ) -> Self {
        use payload::make::verity::{ImageReader, WithVerity};
        let (data_file, scratch) = (file_of(data), file_of(&[]));
        let appended = WithVerity::append(&data_file, None, &scratch).unwrap();
        let root_hash = signed(appended.root_hash());
        let mut reader = ImageReader::new(&appended);
        let source = Source {
            size: appended.len(),
            reader: &mut reader,
        };
        let (blobs, threads) = (
            std::io::Cursor::new(Vec::new()),
            std::num::NonZeroUsize::MIN,
        );
        let mut draft =
            payload::make::full(source, None, Vec::new(), Profile::V2, blobs, threads).unwrap();
        draft
            .set_hash_tree(appended.tree(), appended.info())
            .unwrap();
        draft
            .set_release(payload::Release {
                verity_root_hash: root_hash,
                ..payload::Release::default()
            })
            .unwrap();
        let mut image = Vec::new();
        std::io::Read::read_to_end(&mut ImageReader::new(&appended), &mut image).unwrap();
        std::io::Read::read_to_end(&mut ImageReader::new(&scratch), &mut image).unwrap();
        Self {
            root_hash,
            ..Self::signed(draft, image)
        }
    }

    /// A payload of version 2 that updates the partition `oem`, too: in full, or when `old`
    /// is there, as a delta of both.
    pub(super) fn with_oem(old: Option<(&[u8], &[u8])>, image: Vec<u8>, oem: &[u8]) -> Self {
        use payload::make::delta::Delta;
        let (new, new_oem) = (file_of(&image), file_of(oem));
        let old = old.map(|(old, oem)| (file_of(old), file_of(oem)));
        let mut scratch = Scratch::new(std::io::Cursor::new(Vec::new()));
        let mut encoders = Vec::new();
        let mut part = |what, old: Option<&std::fs::File>, new| {
            let delta = Delta {
                what,
                old: old.map(|old| old as &dyn Image),
                new,
                encoders: &Encoders::carried(),
                profile: Profile::V2,
                threads: std::num::NonZeroUsize::MIN,
            };
            let made = delta.part(&mut scratch, &mut encoders, &mut |_| {});
            made.unwrap().0
        };
        let partition = part("image", old.as_ref().map(|(old, _)| old), &new);
        let oem = part("partition", old.as_ref().map(|(_, oem)| oem), &new_oem);
        let parts = Parts {
            partition: Some(partition),
            named: vec![("oem".to_owned(), oem)],
            encoders,
            ..Parts::default()
        };
        Self::signed(parts.draft(Profile::V2, scratch).unwrap(), image)
    }

    fn root_hash_line(&self) -> Option<String> {
        self.root_hash
            .map(|hash| format!("{}\n", crate::install::hex(&hash)))
    }

    /// The original generator's in-place delta of an image and a kernel, and what it is a
    /// delta of.
    pub(super) fn delta() -> (Self, Vec<u8>, Vec<u8>) {
        let read = |name: &str| {
            let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/crau-v1");
            std::fs::read(format!("{folder}/{name}")).unwrap()
        };
        let image = |name: &str| zstd::decode_all(&read(name)[..]).unwrap();
        let release = Self {
            payload: read("delta.payload").into(),
            image: image("new.img.zst"),
            kernel: Some(image("kernel-new.zst")),
            root_hash: None,
            signer: include_str!("../../../../fixtures/crau-v1/key.pub.pem"),
        };
        (release, image("old.img.zst"), image("kernel-old.zst"))
    }

    /// A version 2 delta, which copies most of an image backwards, block by block, and
    /// its kernel, and what it is a delta of.
    pub(super) fn delta_v2() -> (Self, Vec<u8>, Vec<u8>) {
        use sha2::{Digest, Sha256};
        const BLOCK: usize = 4096;
        const BLOCKS: u64 = 24;
        let (old, old_kernel) = (noise(1, 24 * BLOCK), noise(2, BLOCK + 70));
        let (fresh, kernel) = (noise(3, BLOCK), old_kernel[BLOCK..].to_vec());
        let backwards = old.chunks(BLOCK).rev().skip(1).flatten().copied();
        let image: Vec<u8> = backwards.chain(fresh.iter().copied()).collect();
        let info = |bytes: &[u8]| ImageInfo {
            size: u64::try_from(bytes.len()).unwrap(),
            sha256: Sha256::digest(bytes).into(),
        };
        let copy = |old: &[u8], from: u64, to: u64| {
            let start = usize::try_from(from).unwrap() * BLOCK;
            let bytes = &old[start..old.len().min(start + BLOCK)];
            PreparedOperation {
                kind: PreparedKind::SourceCopy(PreparedSource {
                    blocks: vec![Blocks {
                        start: from,
                        count: 1,
                    }],
                    sha256: Sha256::digest(bytes).into(),
                }),
                destination: vec![Blocks {
                    start: to,
                    count: 1,
                }],
                blob: None,
            }
        };
        let mut scratch = Scratch::new(std::io::Cursor::new(Vec::new()));
        let replace = PreparedOperation {
            kind: PreparedKind::Replace,
            destination: vec![Blocks {
                start: BLOCKS - 1,
                count: 1,
            }],
            blob: Some(scratch.append(&fresh).unwrap()),
        };
        let copies = (0..BLOCKS - 1).map(|to| copy(&old, BLOCKS - 2 - to, to));
        let parts = Parts {
            partition: Some(PreparedPart {
                old: Some(info(&old)),
                new: info(&image),
                operations: std::iter::once(replace).chain(copies).collect(),
            }),
            kernel: Some(PreparedPart {
                old: Some(info(&old_kernel)),
                new: info(&kernel),
                operations: vec![copy(&old_kernel, 1, 0)],
            }),
            ..Parts::default()
        };
        let mut payload = Vec::new();
        let keys = [PrivateKey::from_pem(PRIVATE).unwrap()];
        let mut draft = parts.draft(Profile::V2, scratch).unwrap();
        draft.sign(&keys, &mut payload).unwrap();
        let release = Self {
            payload: payload.into(),
            image,
            kernel: Some(kernel),
            root_hash: None,
            signer: PUBLIC,
        };
        (release, old, old_kernel)
    }

    /// A full payload with a kernel that its manifest says is so large.
    pub(super) fn with_kernel_of(size: u64) -> Self {
        use sha2::{Digest, Sha256};
        let image = noise(41, 4096);
        let mut scratch = Scratch::new(std::io::Cursor::new(Vec::new()));
        let mut part = |size| PreparedPart {
            old: None,
            new: ImageInfo {
                size,
                sha256: Sha256::digest(&image).into(),
            },
            operations: vec![PreparedOperation {
                kind: PreparedKind::Replace,
                destination: vec![Blocks { start: 0, count: 1 }],
                blob: Some(scratch.append(&image).unwrap()),
            }],
        };
        let (partition, kernel) = (part(4096), part(size));
        let parts = Parts {
            partition: Some(partition),
            kernel: Some(kernel),
            ..Parts::default()
        };
        Self::signed(parts.draft(Profile::V2, scratch).unwrap(), image)
    }

    /// A delta of version 2 as the `payload` command makes it, signed, with these facts
    /// and as if it needed this encoder too.
    pub(super) fn delta_between(
        old: &[u8],
        image: Vec<u8>,
        release: payload::Release,
        encoder: Option<&str>,
    ) -> Self {
        use payload::make::delta::Delta;
        let (old_file, new_file) = (file_of(old), file_of(&image));
        let mut scratch = Scratch::new(std::io::Cursor::new(Vec::new()));
        let mut encoders = Vec::new();
        let delta = Delta {
            what: "image",
            old: Some(&old_file),
            new: &new_file,
            encoders: &Encoders::carried(),
            profile: Profile::V2,
            threads: std::num::NonZeroUsize::MIN,
        };
        let (partition, _) = delta
            .part(&mut scratch, &mut encoders, &mut |_| {})
            .unwrap();
        encoders.extend(encoder.map(str::to_owned));
        let parts = Parts {
            partition: Some(partition),
            encoders,
            release: None,
            ..Parts::default()
        };
        let mut draft = parts.draft(Profile::V2, scratch).unwrap();
        draft.set_release(release).unwrap();
        Self::signed(draft, image)
    }

    /// Its operations on the partition.
    pub(super) fn operations(&self) -> Vec<Arc<payload::Operation>> {
        let mut stream = PayloadStream::new(Limits::default(), &Trust::allow_unsigned(Vec::new()));
        stream.push(&self.payload);
        while let Some(event) = stream.next_event().unwrap() {
            if let Event::Metadata { manifest, .. } = event {
                return manifest.partition.operations.clone();
            }
        }
        unreachable!("a payload has a manifest")
    }

    /// Its operations as they arrive, ready to be decoded.
    pub(super) fn pending(&self) -> Vec<payload::PendingOperation> {
        let mut stream = PayloadStream::new(Limits::default(), &Trust::allow_unsigned(Vec::new()));
        stream.push(&self.payload);
        let mut operations = Vec::new();
        while let Some(event) = stream.next_event().unwrap() {
            if let Event::Operation(pending) = event {
                operations.push(pending);
            }
        }
        operations
    }

    /// The same with one bit of the payload changed, announced as what it now is.
    pub(super) fn with_flipped_bit(&self, byte: usize, bit: u32) -> Self {
        let mut payload = self.payload.to_vec();
        payload[byte] ^= 1 << bit;
        Self {
            payload: payload.into(),
            ..self.clone()
        }
    }

    pub(super) fn sha256(&self) -> [u8; 32] {
        use sha2::{Digest, Sha256};
        Sha256::digest(&self.payload).into()
    }

    /// Where header and manifest end, and where each operation's data ends.
    pub(super) fn ends(&self) -> (usize, Vec<u64>) {
        let mut stream = PayloadStream::new(Limits::default(), &Trust::allow_unsigned(Vec::new()));
        stream.push(&self.payload);
        let (mut metadata, mut operations) = (0, Vec::new());
        while let Some(event) = stream.next_event().unwrap() {
            match event {
                Event::Metadata { raw, .. } => metadata = raw.len(),
                Event::Operation(pending) => operations.push(pending.resume.offset()),
            }
        }
        (metadata, operations)
    }
}

/// A file without a name that holds `bytes`.
pub(super) fn file_of(bytes: &[u8]) -> std::fs::File {
    use std::io::Write as _;
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// Bytes without any pattern, the same for the same seed.
pub(super) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random(seed);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend(random.next().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// SplitMix64.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(super) fn below(&mut self, limit: usize) -> usize {
        let limit = u64::try_from(limit).unwrap();
        usize::try_from(self.next() % limit).unwrap()
    }
}

/// In memory where the system has such a place, because an installation syncs files often.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

fn copy_tree(from: &Path, to: &Path) {
    if from.is_file() {
        std::fs::copy(from, to).unwrap();
    } else if from.is_dir() {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap() {
            let name = entry.unwrap().file_name();
            copy_tree(&from.join(&name), &to.join(&name));
        }
    }
}

fn slots_of(disk: &FakeDisk) -> Slots {
    let gpt = Gpt::read(disk).unwrap();
    let slot = |letter: &str, number| {
        let partition = gpt.partition(number).unwrap();
        let range = gpt.byte_range(&partition).unwrap();
        Slot {
            letter: letter.parse::<Letter>().unwrap(),
            number,
            unique_guid: partition.unique_guid,
            start: range.start,
            size: range.end - range.start,
            disk: "disk in memory".into(),
            node: None,
        }
    };
    Slots {
        disk: "disk in memory".into(),
        slot_type: USR_TYPE,
        source: slot("A", A),
        target: slot("B", B),
    }
}

type BeforeWrite = Arc<dyn Fn(u64) + Send + Sync>;

/// The device nodes of the slots.
struct Nodes {
    disk: Arc<FakeDisk>,
    before_write: Option<BeforeWrite>,
}

impl SlotOpener for Nodes {
    fn open_source(&self, slot: &Slot) -> Result<Arc<dyn BlockDevice>, DeviceError> {
        self.open(slot, None)
    }

    fn open_target(&self, slot: &Slot) -> Result<Arc<dyn BlockDevice>, DeviceError> {
        self.open(slot, self.before_write.clone())
    }
}

impl Nodes {
    fn open(
        &self,
        slot: &Slot,
        before_write: Option<BeforeWrite>,
    ) -> Result<Arc<dyn BlockDevice>, DeviceError> {
        let node = Node {
            disk: Arc::clone(&self.disk),
            cached: vec![range(slot)],
            before_write,
            writes: AtomicU64::new(0),
        };
        Ok(Arc::new(Region::new(node, slot.start, slot.size)?))
    }
}

/// A device node, which has a cache of its own for some parts of the disk. As with
/// Linux, a sync through the disk's node leaves in the cache what was written through a
/// partition's.
struct Node {
    disk: Arc<FakeDisk>,
    /// In bytes of the disk.
    cached: Vec<Range<u64>>,
    before_write: Option<BeforeWrite>,
    writes: AtomicU64,
}

impl BlockDevice for Node {
    fn len(&self) -> u64 {
        self.disk.len()
    }

    fn sector_size(&self) -> u32 {
        self.disk.sector_size()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        self.disk.read_at(offset, buffer)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        let number = self.writes.fetch_add(1, Ordering::Relaxed);
        if let Some(look) = &self.before_write {
            look(number);
        }
        self.disk.write_at(offset, data)
    }

    fn sync(&self) -> Result<(), DeviceError> {
        self.disk.sync_parts(&self.cached)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        self.disk.discard(offset, len)
    }

    fn read_medium_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        self.disk.read_medium_at(offset, buffer)
    }
}

/// The bytes of the disk that are the slot's. A comes before B.
fn range(slot: &Slot) -> Range<u64> {
    slot.start..slot.start + slot.size
}

struct Server {
    file: Bytes,
    stop_at: Option<usize>,
    cancel: CancellationToken,
    asked: Mutex<Vec<u64>>,
}

impl Transport for Server {
    fn post<'a>(
        &'a self,
        _: &'a str,
        _: &'static str,
        _: Bytes,
        _: u64,
    ) -> BoxFuture<'a, Result<Reply, TransportError>> {
        unreachable!("no payload of these tests has a PCR policy")
    }

    fn get<'a>(
        &'a self,
        request: RangeRequest<'a>,
    ) -> BoxFuture<'a, Result<RangeReply, TransportError>> {
        self.asked.lock().unwrap().push(request.from);
        let size = self.file.len();
        let from = usize::try_from(request.from).unwrap();
        let reply = RangeReply {
            status: if from == 0 { 200 } else { 206 },
            content_length: None,
            content_range: Some(format!("bytes {from}-{}/{size}", size - 1)),
            etag: None,
            body: Box::new(Body {
                left: self.file.slice(from..self.stop_at.unwrap_or(size)),
                cancel: self.stop_at.map(|_| self.cancel.clone()),
            }),
        };
        Box::pin(async { Ok(reply) })
    }
}

struct Body {
    left: Bytes,
    /// To be cancelled at the end, which then never comes.
    cancel: Option<CancellationToken>,
}

impl BodyStream for Body {
    fn chunk(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, TransportError>> {
        const CHUNK: usize = 64 * 1024;
        Box::pin(async {
            if !self.left.is_empty() {
                return Ok(Some(self.left.split_to(self.left.len().min(CHUNK))));
            }
            if let Some(cancel) = &self.cancel {
                cancel.cancel();
                std::future::pending::<()>().await;
            }
            Ok(None)
        })
    }
}

/// What comes after the download.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Verified,
    Recorded,
    PostInstall,
    Activating,
}

/// Told of each step; may cancel the attempt.
type AtStep = Arc<dyn Fn(Step, &CancellationToken) + Send + Sync>;

/// A post-install program that agrees, and an observer that keeps nothing.
#[derive(Clone)]
struct Witness {
    at_step: AtStep,
    cancel: CancellationToken,
    /// The step at which something cannot be recorded.
    fails_at: Option<Step>,
}

impl Witness {
    fn at(&self, step: Step) {
        (self.at_step)(step, &self.cancel);
    }

    fn record(&self, step: Step) -> BoxFuture<'_, Result<(), UpdateError>> {
        self.at(step);
        let recorded = match self.fails_at == Some(step) {
            true => Err(UpdateError::Internal("no record".to_owned())),
            false => Ok(()),
        };
        Box::pin(async { recorded })
    }
}

impl PostInstall for Witness {
    fn run(&self, _: &Job<'_>) -> Result<Outcome, PostInstallError> {
        self.at(Step::PostInstall);
        Ok(Outcome::Done)
    }
}

impl Observer for Witness {
    fn observe(&self, event: machine::Event) {
        if matches!(event, machine::Event::PayloadVerified) {
            self.at(Step::Verified);
        }
    }

    fn report<'a>(&'a self, _: OmahaEvent) -> BoxFuture<'a, ()> {
        Box::pin(async {})
    }

    fn post_installing(&self, _: Option<u64>) -> BoxFuture<'_, Result<(), UpdateError>> {
        self.record(Step::Recorded)
    }

    fn activating<'a>(&'a self, _: &'a Proof) -> BoxFuture<'a, Result<(), UpdateError>> {
        self.record(Step::Activating)
    }
}
