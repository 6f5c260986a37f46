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

use std::io::{self, Read, Seek, SeekFrom, Write};

use prost::Message;
use sha2::{Digest, Sha256};

use super::{MakeError, PrivateKey, REPLACE, RawSignature, SignatureKind};
use crate::header::Header;
use crate::{PayloadError, Trust, verify_payload, wire};

/// Bytes copied at a time.
const COPY_SIZE: usize = 1 << 20;

/// Everything of a payload but its signatures. The blobs stay where they are, in
/// a file, and are read when the payload is written.
#[derive(Debug)]
pub struct Draft<B> {
    /// Without signature fields and noop operations, which [`Draft::head`] adds.
    manifest: wire::DeltaArchiveManifest,
    blobs: B,
    blobs_start: u64,
    blobs_len: u64,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Size of the payload in bytes.
    pub size: u64,
    /// SHA-256 of the whole payload, as update servers announce it.
    pub sha256: [u8; 32],
    /// SHA-256 of everything before the signatures: what keys sign.
    pub signed_digest: [u8; 32],
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
        let encoded = read_manifest(&mut payload, checked.metadata_size)
            .map_err(|source| PayloadError::Input { offset: 0, source })?;
        let manifest = wire::DeltaArchiveManifest::decode(&encoded[..])
            .map_err(|_| PayloadError::PayloadChanged)?;
        if manifest.encode_to_vec() != encoded {
            return Err(MakeError::UnknownFields);
        }
        Self::new(manifest, payload, checked.metadata_size, checked.blobs_size)
    }

    /// `blobs` holds the data of all operations of `manifest`, `blobs_len` bytes
    /// from `blobs_start` on.
    pub(super) fn new(
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
            manifest,
            blobs,
            blobs_start,
            blobs_len,
        })
    }

    /// Writes the payload with a signature of each of `keys`, in their order;
    /// without keys, an unsigned payload. `out` is not flushed.
    ///
    /// # Errors
    /// [`MakeError`] by operation: reading the blobs, signing, writing.
    pub fn sign(&mut self, keys: &[PrivateKey], out: &mut dyn Write) -> Result<Written, MakeError> {
        let kinds: Vec<_> = keys.iter().map(PrivateKey::signature_kind).collect();
        self.write(&kinds, out, |digest| {
            keys.iter().map(|key| key.sign(digest)).collect()
        })
    }

    /// The digest to sign elsewhere, for signatures of these kinds. Their order
    /// does not matter; their sizes do, as the manifest tells them.
    ///
    /// # Errors
    /// [`MakeError::NoSignatures`] for no kinds; reading the blobs.
    pub fn digest(&mut self, kinds: &[SignatureKind]) -> Result<[u8; 32], MakeError> {
        if kinds.is_empty() {
            return Err(MakeError::NoSignatures);
        }
        self.write_signed_part(kinds, &mut Sink::new(&mut io::sink()))
    }

    /// Writes the payload with signatures of [`Draft::digest`] made elsewhere.
    /// Whether they are good is not checked; that takes the public keys.
    ///
    /// # Errors
    /// [`MakeError::NoSignatures`] for no signatures; reading, writing.
    pub fn attach(
        &mut self,
        signatures: Vec<RawSignature>,
        out: &mut dyn Write,
    ) -> Result<Written, MakeError> {
        if signatures.is_empty() {
            return Err(MakeError::NoSignatures);
        }
        let kinds: Vec<_> = signatures.iter().map(RawSignature::kind).collect();
        self.write(&kinds, out, |_| Ok(signatures))
    }

    fn write(
        &mut self,
        kinds: &[SignatureKind],
        out: &mut dyn Write,
        signatures: impl FnOnce(&[u8; 32]) -> Result<Vec<RawSignature>, MakeError>,
    ) -> Result<Written, MakeError> {
        let mut sink = Sink::new(out);
        let signed_digest = self.write_signed_part(kinds, &mut sink)?;
        if !kinds.is_empty() {
            sink.write(&signature_message(&signatures(&signed_digest)?))?;
        }
        Ok(Written {
            size: sink.offset,
            sha256: sink.sha256.finalize().into(),
            signed_digest,
        })
    }

    /// Header, manifest and blobs. Returns their digest.
    fn write_signed_part(
        &mut self,
        kinds: &[SignatureKind],
        sink: &mut Sink<'_>,
    ) -> Result<[u8; 32], MakeError> {
        sink.write(&self.head(kinds))?;
        self.copy_blobs(sink)?;
        Ok(sink.sha256.clone().finalize().into())
    }

    /// Header and manifest of the payload that will carry signatures of `kinds`.
    fn head(&self, kinds: &[SignatureKind]) -> Vec<u8> {
        let mut manifest = self.manifest.clone();
        manifest.noop_operations = shadows_of_procedures(&manifest);
        if !kinds.is_empty() {
            let offset = u32::try_from(self.blobs_len).expect("checked by new");
            let length = u32::try_from(signature_message_size(kinds))
                .expect("a command line does not hold eight million signatures");
            manifest.signatures_offset = Some(offset.into());
            manifest.signatures_size = Some(length.into());
            manifest.noop_operations.push(shadow(
                Some(offset),
                length,
                None,
                manifest.block_size(),
            ));
        }
        let manifest = manifest.encode_to_vec();
        let header = Header {
            manifest_size: u64::try_from(manifest.len()).expect("usize is at most 64 bit"),
        };
        [&header.to_bytes()[..], &manifest].concat()
    }

    fn copy_blobs(&mut self, sink: &mut Sink<'_>) -> Result<(), MakeError> {
        let failed = |offset| move |source| MakeError::ReadBlobs { offset, source };
        self.blobs
            .seek(SeekFrom::Start(self.blobs_start))
            .map_err(failed(0))?;
        let mut buffer = vec![0; COPY_SIZE];
        let mut offset = 0;
        while offset < self.blobs_len {
            let left = usize::try_from(self.blobs_len - offset).unwrap_or(usize::MAX);
            let part = &mut buffer[..left.min(COPY_SIZE)];
            self.blobs.read_exact(part).map_err(failed(offset))?;
            sink.write(part)?;
            offset += u64::try_from(part.len()).expect("1 MiB at most");
        }
        Ok(())
    }
}

/// The bytes between header and data.
fn read_manifest(payload: &mut (impl Read + Seek), metadata_size: u64) -> io::Result<Vec<u8>> {
    let header = u64::try_from(Header::SIZE).expect("20 fits");
    let mut encoded = Vec::new();
    payload.seek(SeekFrom::Start(header))?;
    payload
        .take(metadata_size - header)
        .read_to_end(&mut encoded)?;
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
    data_offset: Option<u32>,
    data_length: u32,
    data_sha256_hash: Option<Vec<u8>>,
    block_size: u32,
) -> wire::InstallOperation {
    wire::InstallOperation {
        kind: Some(REPLACE),
        data_offset,
        data_length: Some(data_length),
        dst_extents: vec![wire::Extent {
            start_block: Some(u64::MAX),
            num_blocks: Some(data_length.div_ceil(block_size).into()),
        }],
        data_sha256_hash,
        ..Default::default()
    }
}

fn signature_message(signatures: &[RawSignature]) -> Vec<u8> {
    let entries = signatures.iter().map(|signature| wire::Signature {
        version: Some(signature.kind().version()),
        data: Some(signature.as_bytes().to_vec()),
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
    });
    wire::Signatures {
        signatures: entries.collect(),
    }
    .encoded_len()
}

/// Hashes and counts what it writes.
struct Sink<'a> {
    out: &'a mut dyn Write,
    sha256: Sha256,
    offset: u64,
}

impl<'a> Sink<'a> {
    fn new(out: &'a mut dyn Write) -> Self {
        Self {
            out,
            sha256: Sha256::new(),
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
        self.sha256.update(data);
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
        let draft = Draft::new(manifest, io::empty(), 0, 892_172).unwrap();
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
            Draft::new(wire::DeltaArchiveManifest::default(), io::empty(), 0, 0).unwrap();
        let mut payload = Vec::new();
        let written = draft.sign(&[], &mut payload).unwrap();
        assert_eq!(payload, b"CrAU\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0");
        assert_eq!(written.size, 20);
        assert_eq!(written.sha256, written.signed_digest);
        assert!(matches!(draft.digest(&[]), Err(MakeError::NoSignatures)));
        assert!(matches!(
            draft.attach(Vec::new(), &mut payload),
            Err(MakeError::NoSignatures)
        ));
    }
}
