//! The push parser: bytes in as they arrive, checked operations out, and at the
//! end a [`Verified`] or nothing.
//!
//! It does no IO and knows no clock. Its memory is one operation's data plus what
//! the caller pushed last; ceilings are checked before anything is allocated, and
//! the data of an operation is handed out only after its hash was found good.
//!
//! In version 2 the manifest that holds those hashes has a signature of its own,
//! which is checked before anything in the manifest is looked at. In version 1 it
//! is itself unproven until [`PayloadStream::finish`]. In both, what was written
//! before must not be used before.
//!
//! ```text
//! Header ─▶ Metadata ─▶ Operations ─▶ Signature ─▶ End ─▶ finish: Verified
//!              │            │ one event each
//!              ▼            ▼
//!           Metadata     Operation + ResumePoint
//! ```

use std::sync::Arc;
use std::vec;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::error::PayloadError;
use crate::extent::size;
use crate::header::{Format, Header};
use crate::manifest::{Limits, Manifest, Target};
use crate::operation::Operation;
use crate::resume::{Hashes, ResumePoint};
use crate::trust::Trust;

/// Something that the pushed bytes amounted to.
#[derive(Clone, Debug)]
pub enum Event {
    /// Header and manifest are there. Comes once, first; not after a resume.
    Metadata {
        /// The validated manifest.
        manifest: Arc<Manifest>,
        /// All bytes before the first operation's data (header, manifest and, in
        /// version 2, their signature), for [`PayloadStream::resume`].
        raw: Bytes,
    },
    /// The next operation is ready to run.
    Operation(PendingOperation),
}

/// An operation whose data is complete and has the announced hash.
#[derive(Clone, Debug)]
pub struct PendingOperation {
    /// Position in manifest order.
    pub index: usize,
    /// What it works on; those of [`Target::Unknown`] are to be skipped.
    pub target: Target,
    /// What to do.
    pub operation: Arc<Operation>,
    /// Its data, hash checked.
    pub data: Vec<u8>,
    /// Where to continue once this operation is done *and* on the medium.
    pub resume: ResumePoint,
}

/// What was announced about a payload outside of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announced {
    /// Bytes of the whole file.
    pub size: u64,
    /// SHA-256 of the whole file.
    pub sha256: [u8; 32],
}

/// Proof that a whole payload passed every check. Only [`PayloadStream::finish`] makes one.
#[derive(Clone, Debug)]
pub struct Verified {
    manifest: Arc<Manifest>,
    sha256: [u8; 32],
    signers: usize,
}

impl Verified {
    /// The manifest, now to be trusted.
    #[must_use]
    pub fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    /// Bytes of the whole file.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.manifest.payload_size()
    }

    /// SHA-256 of the whole file.
    #[must_use]
    pub fn sha256(&self) -> &[u8; 32] {
        &self.sha256
    }

    /// Number of different trusted keys that signed; 0 only when unsigned payloads were allowed.
    #[must_use]
    pub fn signers(&self) -> usize {
        self.signers
    }
}

/// The push parser for one payload.
#[derive(Debug)]
pub struct PayloadStream {
    limits: Limits,
    trust: Trust,
    announced: Option<Announced>,
    backlog: Backlog,
    /// File offset of the backlog's first byte.
    position: u64,
    /// Over all bytes before `position`.
    hashes: Hashes,
    state: State,
}

#[derive(Debug)]
enum State {
    Header,
    /// Waiting for all bytes before the first operation's data.
    Metadata(Metadata),
    Operations(Steps),
    Signature(Steps),
    End {
        steps: Steps,
        /// SHA-256 of what the signature message signs.
        signed: [u8; 32],
        message: Option<Vec<u8>>,
    },
    Failed,
}

/// The sizes that the header tells, below their ceilings.
#[derive(Clone, Copy, Debug)]
struct Metadata {
    header: Header,
    /// Header and manifest.
    signed: usize,
    /// Those and their signature.
    total: usize,
}

/// What is left to do of a manifest.
#[derive(Debug)]
struct Steps {
    manifest: Arc<Manifest>,
    metadata_sha256: [u8; 32],
    /// How many trusted keys signed header and manifest; `None` in version 1.
    metadata_signers: Option<usize>,
    left: vec::IntoIter<(Target, Arc<Operation>)>,
}

impl PayloadStream {
    /// A parser at the first byte of a payload, which must be signed as `trust`
    /// demands: the manifest of version 2 before it is read, the whole of every
    /// payload in [`PayloadStream::finish`].
    #[must_use]
    pub fn new(limits: Limits, trust: &Trust) -> Self {
        Self {
            limits,
            trust: trust.clone(),
            announced: None,
            backlog: Backlog::default(),
            position: 0,
            hashes: Hashes::new(),
            state: State::Header,
        }
    }

    /// A parser that continues after the operation that `point` was given with.
    ///
    /// `metadata` is [`Event::Metadata`]'s `raw`, stored or fetched again. The
    /// next byte to push is the one at [`ResumePoint::offset`]. No
    /// [`Event::Metadata`] comes; see [`PayloadStream::manifest`].
    ///
    /// A point of another payload cannot make this one good, since the signature is
    /// checked over the hash that it continues. But the point itself is believed:
    /// it must come from where nobody else can write.
    ///
    /// # Errors
    /// [`PayloadError::Resume`] when the point does not belong to `metadata` or
    /// to this program; else as [`PayloadStream::next_event`].
    pub fn resume(
        limits: Limits,
        trust: &Trust,
        point: &ResumePoint,
        metadata: &[u8],
    ) -> Result<Self, PayloadError> {
        let refused = |reason| PayloadError::Resume { reason };
        let hashes = point.hashes()?;
        let metadata_sha256: [u8; 32] = Sha256::digest(metadata).into();
        if metadata_sha256 != point.metadata_sha256() {
            return Err(refused(
                "the payload's header and manifest are not the same as before",
            ));
        }
        let mut fresh = Self::new(limits, trust);
        fresh.push(metadata);
        let Some(Event::Metadata { .. }) = fresh.next_event()? else {
            return Err(refused("header and manifest are incomplete"));
        };
        let State::Operations(mut steps) = fresh.state else {
            return Err(refused("header and manifest are incomplete"));
        };
        if !fresh.backlog.is_empty() {
            return Err(refused(
                "header and manifest are followed by something else",
            ));
        }
        if hashes.signed.is_some() != (steps.manifest.format == Format::V2) {
            return Err(refused("the resume point does not fit the format version"));
        }
        let done = steps.left.by_ref().take(point.next_operation());
        let (count, blobs) = done.fold((0, 0), |(count, bytes), (_, operation)| {
            (count + 1, bytes + operation.blob.length)
        });
        let offset = steps.manifest.metadata_size + blobs;
        if count != point.next_operation() || offset != point.offset() {
            return Err(refused("the resume point does not fit the manifest"));
        }
        Ok(Self {
            position: offset,
            hashes,
            state: State::Operations(steps),
            ..Self::new(limits, trust)
        })
    }

    /// Also demands the announced size (as soon as the manifest is there) and
    /// hash (in [`PayloadStream::finish`]).
    ///
    /// # Errors
    /// [`PayloadError::SizeMismatch`] at once on a resumed stream.
    pub fn expect(mut self, announced: Announced) -> Result<Self, PayloadError> {
        self.announced = Some(announced);
        if let Some(manifest) = self.manifest() {
            check_size(self.announced.as_ref(), manifest)?;
        }
        Ok(self)
    }

    /// Takes the next bytes of the file. Call [`PayloadStream::next_event`] until
    /// it gives `None` before pushing more, so that no backlog grows.
    pub fn push(&mut self, bytes: &[u8]) {
        self.backlog.push(bytes);
    }

    /// What the bytes so far amount to; `None` when more are needed.
    ///
    /// # Errors
    /// Whatever makes the payload unacceptable. The stream is dead afterwards.
    pub fn next_event(&mut self) -> Result<Option<Event>, PayloadError> {
        let event = self.advance();
        if event.is_err() {
            self.state = State::Failed;
        }
        event
    }

    /// The manifest, once it is there.
    #[must_use]
    pub fn manifest(&self) -> Option<&Arc<Manifest>> {
        match &self.state {
            State::Operations(steps) | State::Signature(steps) | State::End { steps, .. } => {
                Some(&steps.manifest)
            }
            State::Header | State::Metadata(_) | State::Failed => None,
        }
    }

    /// File offset after the last byte pushed.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.position.saturating_add(size(self.backlog.len()))
    }

    /// Ends the payload: complete, nothing behind it, hash as announced, signed
    /// by enough trusted keys, checked in this order.
    ///
    /// # Errors
    /// The first check that fails; [`PayloadError::Unfinished`] when operations
    /// are ready that were not taken.
    pub fn finish(mut self) -> Result<Verified, PayloadError> {
        if self.next_event()?.is_some() {
            return Err(PayloadError::Unfinished {
                reason: "operations are left",
            });
        }
        let State::End {
            steps,
            signed,
            message,
        } = self.state
        else {
            return Err(self.truncated());
        };
        let sha256: [u8; 32] = self.hashes.file.finalize().into();
        if self
            .announced
            .is_some_and(|announced| announced.sha256 != sha256)
        {
            return Err(PayloadError::PayloadHashMismatch);
        }
        let signers = match (message, &steps.manifest.signatures) {
            (Some(message), Some(range)) => {
                let format = steps.manifest.format;
                self.trust.check(format, &signed, range.start, &message)?
            }
            _ => self.trust.check_unsigned()?,
        };
        let signers = steps
            .metadata_signers
            .map_or(signers, |of_metadata| of_metadata.min(signers));
        Ok(Verified {
            manifest: steps.manifest,
            sha256,
            signers,
        })
    }

    fn advance(&mut self) -> Result<Option<Event>, PayloadError> {
        loop {
            let step = match std::mem::replace(&mut self.state, State::Failed) {
                State::Header => self.header()?,
                State::Metadata(metadata) => self.metadata(metadata)?,
                State::Operations(steps) => self.operation(steps)?,
                State::Signature(steps) => self.signature(steps),
                State::End { .. } if !self.backlog.is_empty() => {
                    return Err(PayloadError::TrailingData {
                        offset: self.position,
                    });
                }
                end @ State::End { .. } => Step::Wait(end),
                State::Failed => {
                    return Err(PayloadError::Unfinished {
                        reason: "it failed before",
                    });
                }
            };
            match step {
                Step::Wait(state) => {
                    self.state = state;
                    return Ok(None);
                }
                Step::Next(state) => self.state = state,
                Step::Event(state, event) => {
                    self.state = state;
                    return Ok(Some(event));
                }
            }
        }
    }

    fn header(&mut self) -> Result<Step, PayloadError> {
        let Some(header) = Header::parse(self.backlog.bytes())? else {
            return Ok(Step::Wait(State::Header));
        };
        let within = |size: u64, limit: u64| match usize::try_from(size) {
            Ok(bytes) if size <= limit => Ok(bytes),
            _ => Err((size, limit)),
        };
        let manifest = within(header.manifest_size, self.limits.manifest)
            .map_err(|(size, limit)| PayloadError::MetadataTooLarge { size, limit })?;
        let signature = within(
            header.metadata_signature_size.into(),
            self.limits.signatures,
        )
        .map_err(|(size, limit)| PayloadError::MetadataSignatureTooLarge { size, limit })?;
        let signed = header.size().saturating_add(manifest);
        Ok(Step::Next(State::Metadata(Metadata {
            header,
            signed,
            total: signed.saturating_add(signature),
        })))
    }

    /// The signature comes before the first look into the manifest.
    fn metadata(&mut self, metadata: Metadata) -> Result<Step, PayloadError> {
        let Some(raw) = self.backlog.take(metadata.total) else {
            return Ok(Step::Wait(State::Metadata(metadata)));
        };
        let (signed, signature) = raw.split_at(metadata.signed);
        let metadata_signers = match metadata.header.format {
            Format::V1 => None,
            Format::V2 => Some(self.check_metadata(signed, signature)?),
        };
        self.position = size(raw.len());
        self.hashes.update(&raw);
        if metadata.header.format == Format::V2 {
            self.hashes.signed = Some(Sha256::new_with_prefix(signed));
        }
        let manifest = &signed[metadata.header.size()..];
        let manifest = Arc::new(Manifest::parse(&metadata.header, manifest, &self.limits)?);
        check_size(self.announced.as_ref(), &manifest)?;
        let left: Vec<_> = manifest
            .operations()
            .map(|(target, operation)| (target, Arc::clone(operation)))
            .collect();
        let steps = Steps {
            manifest: Arc::clone(&manifest),
            metadata_sha256: Sha256::digest(&raw).into(),
            metadata_signers,
            left: left.into_iter(),
        };
        let raw = Bytes::from(raw);
        Ok(Step::Event(
            State::Operations(steps),
            Event::Metadata { manifest, raw },
        ))
    }

    fn check_metadata(&self, signed: &[u8], signature: &[u8]) -> Result<usize, PayloadError> {
        if signature.is_empty() {
            return self.trust.check_unsigned_metadata();
        }
        let digest = Sha256::digest(signed).into();
        let offset = size(signed.len());
        self.trust.check(Format::V2, &digest, offset, signature)
    }

    fn operation(&mut self, mut steps: Steps) -> Result<Step, PayloadError> {
        let Some((target, operation)) = steps.left.as_slice().first().cloned() else {
            return Ok(Step::Next(State::Signature(steps)));
        };
        let blob = operation.blob;
        let offset = self.position;
        let Some(data) = usize::try_from(blob.length)
            .ok()
            .and_then(|length| self.take(length))
        else {
            return Ok(Step::Wait(State::Operations(steps)));
        };
        let index = operation.index;
        if Sha256::digest(&data)[..] != blob.sha256 {
            let length = blob.length;
            return Err(PayloadError::OperationHashMismatch {
                index,
                offset,
                length,
            });
        }
        steps.left.next();
        let resume = ResumePoint::new(
            index + 1,
            self.position,
            steps.metadata_sha256,
            &self.hashes,
        );
        let pending = PendingOperation {
            index,
            target,
            operation,
            data,
            resume,
        };
        Ok(Step::Event(
            State::Operations(steps),
            Event::Operation(pending),
        ))
    }

    fn signature(&mut self, steps: Steps) -> Step {
        let signed = self.hashes.signed_digest();
        let message = match &steps.manifest.signatures {
            None => None,
            Some(range) => {
                let length = usize::try_from(range.end - range.start).ok();
                match length.and_then(|length| self.take(length)) {
                    Some(message) => Some(message),
                    None => return Step::Wait(State::Signature(steps)),
                }
            }
        };
        Step::Next(State::End {
            steps,
            signed,
            message,
        })
    }

    /// Takes `length` bytes off the backlog and hashes them, if that many are there.
    fn take(&mut self, length: usize) -> Option<Vec<u8>> {
        let bytes = self.backlog.take(length)?;
        self.hashes.update(&bytes);
        self.position = self.position.saturating_add(size(length));
        Some(bytes)
    }

    fn truncated(&self) -> PayloadError {
        let expected = match &self.state {
            State::Metadata(metadata) => size(metadata.total),
            _ => self
                .manifest()
                .map_or(size(Format::V1.header_size()), |manifest| {
                    manifest.payload_size()
                }),
        };
        PayloadError::Truncated {
            received: self.received(),
            expected,
        }
    }
}

/// What one step of the parser came to, and the state after it.
enum Step {
    Wait(State),
    Next(State),
    Event(State, Event),
}

/// Bytes that were pushed and not yet used.
#[derive(Debug, Default)]
struct Backlog {
    bytes: Vec<u8>,
    used: usize,
}

impl Backlog {
    fn bytes(&self) -> &[u8] {
        &self.bytes[self.used..]
    }

    fn len(&self) -> usize {
        self.bytes.len() - self.used
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Moves what is left to the front only when at least as much was used, so
    /// that every byte is moved a bounded number of times.
    fn push(&mut self, bytes: &[u8]) {
        if self.used >= self.len() {
            self.bytes.drain(..self.used);
            self.used = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    fn take(&mut self, length: usize) -> Option<Vec<u8>> {
        let taken = self.bytes().get(..length)?.to_vec();
        self.used += length;
        Some(taken)
    }
}

fn check_size(announced: Option<&Announced>, manifest: &Manifest) -> Result<(), PayloadError> {
    let found = manifest.payload_size();
    match announced {
        Some(announced) if announced.size != found => Err(PayloadError::SizeMismatch {
            announced: announced.size,
            found,
        }),
        _ => Ok(()),
    }
}
