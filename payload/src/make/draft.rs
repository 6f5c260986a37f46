//! A payload without its signatures, and the ways to sign it.
//!
//! The signatures are the last bytes of a payload, but the manifest at its front
//! says where they are and how long, and is signed with the rest. So their length
//! must be known before the digest is taken:
//!
//! ```text
//! 0       "CrAU", version, manifest length     ┐
//! 20      manifest, with signatures_offset     │ SHA-256: what keys sign
//!         and signatures_size                  │
//! 20+M    blobs                                ┘
//!         signatures: one entry for each key
//! ```
//!
//! In version 2 the header also tells the length of a signature of header and
//! manifest alone, which follows them and is left out of the other digest.

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;

use prost::Message;
use sha2::{Digest, Sha256};

use super::parts::check_readable;
use super::scratch::Piece;
use super::{MakeError, PrivateKey, RawSignature, SignatureKind};
use crate::header::{Format, Header};
use crate::manifest::{ImageInfo, USR};
use crate::operation::number;
use crate::release::Release;
use crate::resume::Hashes;
use crate::verity::HashTree;
use crate::{Manifest, PayloadError, Trust, extent, verify_payload, wire};

/// Bytes copied at a time.
const COPY_SIZE: usize = 1 << 20;

/// Everything of a payload but its signatures. The blobs stay where they are, in
/// a file, and are read when the payload is written.
#[derive(Debug)]
pub struct Draft<B> {
    manifest: Contents,
    blobs: B,
    /// Where the data of all operations lies in `blobs`, in their order.
    pieces: Vec<Piece>,
}

/// A manifest without signature fields and noop operations, which [`Draft::head`] adds.
#[derive(Clone, Debug)]
enum Contents {
    V1(wire::DeltaArchiveManifest),
    V2(wire::DeltaArchiveManifestV2),
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Size of the payload in bytes.
    pub size: u64,
    /// SHA-256 of the whole payload, as update servers announce it.
    pub sha256: [u8; 32],
    /// What keys sign.
    pub digests: Digests,
}

/// What keys sign, with every key each of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digests {
    /// SHA-256 of everything before the signatures, but for the metadata signature.
    pub payload: [u8; 32],
    /// SHA-256 of header and manifest; `None` in version 1, which has no signature
    /// of those alone.
    pub metadata: Option<[u8; 32]>,
}

impl<B: Read + Seek> Draft<B> {
    /// An existing payload, signed or not, to be signed anew; `payload` stands at
    /// its first byte. It is read to its end, and refused unless it is complete and
    /// every blob has its hash: whoever signs should not sign a broken file. Its
    /// signatures are dropped without a look at them.
    ///
    /// # Errors
    /// [`MakeError::Payload`] for what is wrong with it, and
    /// [`MakeError::UnknownFields`] for a manifest that would lose something.
    pub fn read(mut payload: B) -> Result<Self, MakeError> {
        let anyone = Trust::allow_unsigned(Vec::new());
        let verified = verify_payload(&mut payload, &anyone, &mut |_| ())?;
        let checked = verified.manifest();
        let encoded = read_manifest(&mut payload, checked)
            .map_err(|source| PayloadError::Input { offset: 0, source })?;
        let changed = |_| PayloadError::PayloadChanged;
        let (start, len) = (checked.metadata_size, checked.blobs_size);
        match checked.format {
            Format::V1 => {
                let manifest = wire::DeltaArchiveManifest::decode(&encoded[..]).map_err(changed)?;
                check_same(&manifest, &encoded)?;
                Self::of_v1(manifest, payload, start, len)
            }
            Format::V2 => {
                let manifest =
                    wire::DeltaArchiveManifestV2::decode(&encoded[..]).map_err(changed)?;
                check_same(&manifest, &encoded)?;
                let piece = Piece {
                    offset: start,
                    length: len,
                };
                Ok(Self::of_pieces(manifest, payload, vec![piece]))
            }
        }
    }

    /// `blobs` holds the data of all operations of `manifest`, `blobs_len` bytes
    /// from `blobs_start` on.
    pub(super) fn of_v1(
        mut manifest: wire::DeltaArchiveManifest,
        blobs: B,
        blobs_start: u64,
        blobs_len: u64,
    ) -> Result<Self, MakeError> {
        // The noop entry of the signatures has to name this offset.
        if u32::try_from(blobs_len).is_err() {
            return Err(MakeError::TooLarge { offset: blobs_len });
        }
        manifest.noop_operations.clear();
        manifest.signatures_offset = None;
        manifest.signatures_size = None;
        Ok(Self {
            manifest: Contents::V1(manifest),
            blobs,
            pieces: vec![Piece {
                offset: blobs_start,
                length: blobs_len,
            }],
        })
    }

    /// `pieces` of `blobs` hold the data of all operations of `manifest`, in order.
    pub(super) fn of_pieces(
        mut manifest: wire::DeltaArchiveManifestV2,
        blobs: B,
        pieces: Vec<Piece>,
    ) -> Self {
        manifest.signatures_offset = None;
        manifest.signatures_size = None;
        Self {
            manifest: Contents::V2(manifest),
            blobs,
            pieces,
        }
    }

    /// Puts facts about the release in, in place of those that are there.
    ///
    /// # Errors
    /// [`MakeError::NeedsVersion2`] in version 1, [`MakeError::Payload`] for a fact
    /// that is too long for readers.
    pub fn set_release(&mut self, release: Release) -> Result<(), MakeError> {
        match &mut self.manifest {
            Contents::V1(_) => Err(MakeError::NeedsVersion2 {
                what: "facts about the release",
            }),
            Contents::V2(manifest) => {
                let message = release.into_wire();
                Release::from_wire(&message).map_err(|(field, reason)| PayloadError::Manifest {
                    place: format!("release.{field}"),
                    reason,
                })?;
                manifest.release = (message != wire::Release::default()).then_some(message);
                Ok(())
            }
        }
    }

    /// Lets machines build `tree` over the partition's new image behind the last
    /// operation. `whole` is the image with it.
    ///
    /// # Errors
    /// [`MakeError::NeedsVersion2`] in version 1, [`MakeError::Payload`] for a tree that
    /// does not fit the image or the operations.
    pub fn set_hash_tree(&mut self, tree: &HashTree, whole: ImageInfo) -> Result<(), MakeError> {
        let Contents::V2(manifest) = &mut self.manifest else {
            return Err(MakeError::NeedsVersion2 { what: "hash trees" });
        };
        let blocks = |bytes: Range<u64>| wire::Extent {
            start_block: Some(bytes.start / HashTree::BLOCK_SIZE),
            num_blocks: Some((bytes.end - bytes.start) / HashTree::BLOCK_SIZE),
        };
        let partitions = manifest.partitions.iter_mut();
        for update in partitions.filter(|update| update.partition_name() == USR) {
            update.new_partition_info = Some(wire::InstallInfo {
                size: Some(whole.size),
                hash: Some(whole.sha256.to_vec()),
            });
            update.hash_tree_data_extent = Some(blocks(tree.data()));
            update.hash_tree_extent = Some(blocks(tree.tree()));
            update.hash_tree_algorithm = Some(HashTree::ALGORITHM.to_owned());
            update.hash_tree_salt = Some(tree.salt().to_vec());
        }
        check_readable(manifest)
    }

    /// The version of the format.
    pub fn format(&self) -> Format {
        match self.manifest {
            Contents::V1(_) => Format::V1,
            Contents::V2(_) => Format::V2,
        }
    }

    /// Writes the payload with a signature of each of `keys`, in their order;
    /// without keys, an unsigned payload. `out` is not flushed.
    ///
    /// # Errors
    /// [`MakeError`] by operation: reading the blobs, signing, writing.
    pub fn sign(&mut self, keys: &[PrivateKey], out: &mut dyn Write) -> Result<Written, MakeError> {
        let kinds: Vec<_> = keys.iter().map(PrivateKey::signature_kind).collect();
        let sign = |digest: &[u8; 32]| keys.iter().map(|key| key.sign(digest)).collect();
        self.write(&kinds, out, sign, sign)
    }

    /// The digests to sign elsewhere, for signatures of these kinds. Their order
    /// does not matter; their sizes do, as header and manifest tell them.
    ///
    /// # Errors
    /// [`MakeError::NoSignatures`] for no kinds; reading the blobs.
    pub fn digest(&mut self, kinds: &[SignatureKind]) -> Result<Digests, MakeError> {
        if kinds.is_empty() {
            return Err(MakeError::NoSignatures);
        }
        // The digests cover no signature, so any bytes of the right length will do.
        let blank = |_: &[u8; 32]| {
            let signatures = kinds.iter().map(|kind| vec![0; kind.size()]);
            signatures.map(RawSignature::from_bytes).collect()
        };
        let written = self.write(kinds, &mut io::sink(), blank, blank)?;
        Ok(written.digests)
    }

    /// Writes the payload with signatures of [`Draft::digest`] made elsewhere: of the
    /// payload's digest and, in version 2, as many of the metadata's, by the same
    /// keys in the same order. Whether they are good is not checked; that takes the
    /// public keys.
    ///
    /// # Errors
    /// [`MakeError::NoSignatures`] for no signatures, `MetadataSignatures` and
    /// `SignaturesDiffer` when they do not belong together; reading, writing.
    pub fn attach(
        &mut self,
        signatures: Vec<RawSignature>,
        metadata_signatures: Vec<RawSignature>,
        out: &mut dyn Write,
    ) -> Result<Written, MakeError> {
        if signatures.is_empty() {
            return Err(MakeError::NoSignatures);
        }
        let format = self.format();
        let needed = match format {
            Format::V1 => 0,
            Format::V2 => signatures.len(),
        };
        let found = metadata_signatures.len();
        if found != needed {
            return Err(MakeError::MetadataSignatures {
                version: format.number(),
                needed,
                found,
            });
        }
        let kinds: Vec<_> = signatures.iter().map(RawSignature::kind).collect();
        let mut pairs = kinds.iter().zip(&metadata_signatures);
        if pairs.any(|(kind, other)| *kind != other.kind()) {
            return Err(MakeError::SignaturesDiffer);
        }
        self.write(&kinds, out, |_| Ok(metadata_signatures), |_| Ok(signatures))
    }

    fn write(
        &mut self,
        kinds: &[SignatureKind],
        out: &mut dyn Write,
        metadata_signatures: impl FnOnce(&[u8; 32]) -> Result<Vec<RawSignature>, MakeError>,
        signatures: impl FnOnce(&[u8; 32]) -> Result<Vec<RawSignature>, MakeError>,
    ) -> Result<Written, MakeError> {
        let head = self.head(kinds);
        let mut sink = Sink::new(out);
        sink.write(&head)?;
        let metadata = match self.format() {
            Format::V1 => None,
            Format::V2 => {
                let digest: [u8; 32] = Sha256::digest(&head).into();
                sink.hashes.signed = None;
                if !kinds.is_empty() {
                    sink.write(&signature_message(&metadata_signatures(&digest)?))?;
                }
                sink.hashes.signed = Some(Sha256::new_with_prefix(&head));
                Some(digest)
            }
        };
        self.copy_blobs(&mut sink)?;
        let payload = sink.hashes.signed_digest();
        if !kinds.is_empty() {
            sink.write(&signature_message(&signatures(&payload)?))?;
        }
        Ok(Written {
            size: sink.offset,
            sha256: sink.hashes.file.finalize().into(),
            digests: Digests { payload, metadata },
        })
    }

    fn blobs_len(&self) -> u64 {
        let lengths = self.pieces.iter().map(|piece| piece.length);
        lengths.fold(0, u64::saturating_add)
    }

    /// Header and manifest of the payload that will carry signatures of `kinds`.
    fn head(&self, kinds: &[SignatureKind]) -> Vec<u8> {
        let size = u32::try_from(signature_message_size(kinds))
            .expect("a command line does not hold eight million signatures");
        let (offset, length) = if kinds.is_empty() {
            (None, None)
        } else {
            (Some(self.blobs_len()), Some(u64::from(size)))
        };
        let (manifest, metadata_signature_size) = match self.manifest.clone() {
            Contents::V1(mut manifest) => {
                manifest.noop_operations = shadows_of_procedures(&manifest);
                if let Some(length) = length {
                    let shadow = shadow(offset, length, None, manifest.block_size());
                    manifest.noop_operations.push(shadow);
                }
                manifest.signatures_offset = offset;
                manifest.signatures_size = length;
                (manifest.encode_to_vec(), 0)
            }
            Contents::V2(mut manifest) => {
                manifest.signatures_offset = offset;
                manifest.signatures_size = length;
                (manifest.encode_to_vec(), size)
            }
        };
        let header = Header {
            format: self.format(),
            manifest_size: extent::size(manifest.len()),
            metadata_signature_size,
        };
        [header.to_bytes(), manifest].concat()
    }

    fn copy_blobs(&mut self, sink: &mut Sink<'_>) -> Result<(), MakeError> {
        let mut buffer = vec![0; COPY_SIZE];
        let mut offset = 0;
        for piece in &self.pieces {
            let failed = |offset| move |source| MakeError::ReadBlobs { offset, source };
            self.blobs
                .seek(SeekFrom::Start(piece.offset))
                .map_err(failed(offset))?;
            let mut left = piece.length;
            while left > 0 {
                let length = usize::try_from(left).map_or(COPY_SIZE, |left| left.min(COPY_SIZE));
                let part = &mut buffer[..length];
                self.blobs.read_exact(part).map_err(failed(offset))?;
                sink.write(part)?;
                offset += extent::size(length);
                left -= extent::size(length);
            }
        }
        Ok(())
    }
}

/// What is not known would be lost.
fn check_same(manifest: &impl Message, encoded: &[u8]) -> Result<(), MakeError> {
    if manifest.encode_to_vec() == encoded {
        Ok(())
    } else {
        Err(MakeError::UnknownFields)
    }
}

/// The bytes between header and data or metadata signature.
fn read_manifest(payload: &mut (impl Read + Seek), checked: &Manifest) -> io::Result<Vec<u8>> {
    let start = extent::size(checked.format.header_size());
    let signature = checked.metadata_signature.as_ref();
    let end = signature.map_or(checked.metadata_size, |range| range.start);
    let mut encoded = Vec::new();
    payload.seek(SeekFrom::Start(start))?;
    payload.take(end - start).read_to_end(&mut encoded)?;
    Ok(encoded)
}

/// Clients older than procedures apply the noop list after the partition, so that
/// every byte of the blob area belongs to an operation that they know: each entry
/// writes the data of one procedure operation into a hole, that is nowhere.
fn shadows_of_procedures(manifest: &wire::DeltaArchiveManifest) -> Vec<wire::InstallOperation> {
    manifest
        .procedures
        .iter()
        .flat_map(|procedure| &procedure.operations)
        .filter(|operation| operation.data_length() > 0)
        .map(|operation| {
            shadow(
                operation.data_offset,
                operation.data_length(),
                operation.data_sha256_hash.clone(),
                manifest.block_size(),
            )
        })
        .collect()
}

fn shadow(
    data_offset: Option<u64>,
    data_length: u64,
    data_sha256_hash: Option<Vec<u8>>,
    block_size: u32,
) -> wire::InstallOperation {
    wire::InstallOperation {
        kind: Some(number::REPLACE),
        data_offset,
        data_length: Some(data_length),
        dst_extents: vec![wire::Extent {
            start_block: Some(u64::MAX),
            num_blocks: Some(data_length.div_ceil(block_size.into())),
        }],
        data_sha256_hash,
        ..Default::default()
    }
}

fn signature_message(signatures: &[RawSignature]) -> Vec<u8> {
    let entries = signatures.iter().map(|signature| wire::Signature {
        version: Some(signature.kind().version()),
        data: Some(signature.as_bytes().to_vec()),
        unpadded_signature_size: None,
    });
    wire::Signatures {
        signatures: entries.collect(),
    }
    .encode_to_vec()
}

/// Length in bytes of the message that will hold signatures of these kinds.
fn signature_message_size(kinds: &[SignatureKind]) -> usize {
    let entries = kinds.iter().map(|kind| wire::Signature {
        version: Some(kind.version()),
        data: Some(vec![0; kind.size()]),
        unpadded_signature_size: None,
    });
    wire::Signatures {
        signatures: entries.collect(),
    }
    .encoded_len()
}

/// Hashes and counts what it writes.
struct Sink<'a> {
    out: &'a mut dyn Write,
    hashes: Hashes,
    offset: u64,
}

impl<'a> Sink<'a> {
    fn new(out: &'a mut dyn Write) -> Self {
        Self {
            out,
            hashes: Hashes::new(),
            offset: 0,
        }
    }

    fn write(&mut self, data: &[u8]) -> Result<(), MakeError> {
        self.out
            .write_all(data)
            .map_err(|source| MakeError::WritePayload {
                offset: self.offset,
                source,
            })?;
        self.hashes.update(data);
        self.offset += u64::try_from(data.len()).expect("usize is at most 64 bit");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(sizes: &[usize]) -> Vec<SignatureKind> {
        let kinds = sizes
            .iter()
            .map(|size| SignatureKind::from_size(*size).unwrap());
        kinds.collect()
    }

    #[test]
    fn sizes_of_signature_messages_are_those_of_the_original() {
        // One and two RSA-2048 signatures have 264 and 528 bytes there.
        for (sizes, expected) in [
            (&[256][..], 264),
            (&[256, 256], 528),
            (&[512], 520),
            (&[64], 70),
            (&[256, 64], 334),
        ] {
            assert_eq!(signature_message_size(&kinds(sizes)), expected, "{sizes:?}");
        }
    }

    #[test]
    fn signature_messages_have_the_size_that_was_foretold() {
        for sizes in [&[64][..], &[256, 384, 512, 64, 64]] {
            let signatures: Vec<_> = sizes
                .iter()
                .map(|size| RawSignature::from_bytes(vec![9; *size]).unwrap())
                .collect();
            let message = signature_message(&signatures);
            assert_eq!(message.len(), signature_message_size(&kinds(sizes)));
        }
    }

    #[test]
    fn noop_list_shadows_procedures_and_signatures_for_old_clients() {
        let kernel = wire::InstallOperation {
            kind: Some(1),
            data_offset: Some(690_033),
            data_length: Some(202_139),
            data_sha256_hash: Some(vec![0xfc; 32]),
            ..Default::default()
        };
        let without_data = wire::InstallOperation {
            kind: Some(2),
            ..Default::default()
        };
        let manifest = wire::DeltaArchiveManifest {
            block_size: Some(4096),
            procedures: vec![wire::InstallProcedure {
                operations: vec![kernel, without_data],
                ..Default::default()
            }],
            ..Default::default()
        };
        let draft = Draft::of_v1(manifest, io::empty(), 0, 892_172).unwrap();
        let head = draft.head(&kinds(&[256]));
        let manifest = wire::DeltaArchiveManifest::decode(&head[20..]).unwrap();

        let noops: Vec<_> = manifest
            .noop_operations
            .iter()
            .map(|noop| {
                let [extent] = &noop.dst_extents[..] else {
                    panic!("one extent")
                };
                assert_eq!((noop.kind, extent.start_block()), (Some(0), u64::MAX));
                (
                    noop.data_offset(),
                    noop.data_length(),
                    extent.num_blocks(),
                    noop.data_sha256_hash.is_some(),
                )
            })
            .collect();
        assert_eq!(
            noops,
            [(690_033, 202_139, 50, true), (892_172, 264, 1, false)]
        );
    }

    #[test]
    fn an_unsigned_payload_says_nothing_of_signatures() {
        let mut draft =
            Draft::of_v1(wire::DeltaArchiveManifest::default(), io::empty(), 0, 0).unwrap();
        let mut payload = Vec::new();
        let written = draft.sign(&[], &mut payload).unwrap();
        assert_eq!(payload, b"CrAU\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0");
        assert_eq!(written.size, 20);
        assert_eq!(written.sha256, written.digests.payload);
        assert_eq!(written.digests.metadata, None);
        assert!(matches!(draft.digest(&[]), Err(MakeError::NoSignatures)));
        assert!(matches!(
            draft.attach(Vec::new(), Vec::new(), &mut payload),
            Err(MakeError::NoSignatures)
        ));
    }
}
