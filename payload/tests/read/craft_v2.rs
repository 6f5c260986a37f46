//! Makes payloads of version 2 field by field.

use sha2::{Digest, Sha256};

use crate::craft::{Message, Signatory, Step, bzip2, info_of, message, noise};

pub(crate) const BLOCK: usize = 512;

/// A step with what version 2 adds to it.
#[derive(Clone, Debug)]
pub(crate) struct StepV2 {
    pub(crate) step: Step,
    pub(crate) source_hash: Option<Vec<u8>>,
    pub(crate) skip: Option<u64>,
}

impl StepV2 {
    pub(crate) fn full(kind: u64, destination: &[(u64, u64)], data: &[u8]) -> Self {
        Self {
            step: Step::full(kind, destination, data),
            source_hash: None,
            skip: None,
        }
    }

    /// One that reads blocks of `old`, with the right hash of them.
    pub(crate) fn patch(
        kind: u64,
        source: &[(u64, u64)],
        destination: &[(u64, u64)],
        data: &[u8],
        old: &[u8],
    ) -> Self {
        Self {
            source_hash: Some(Sha256::digest(blocks_of(old, source)).to_vec()),
            step: Step {
                source: source.to_vec(),
                ..Step::full(kind, destination, data)
            },
            skip: None,
        }
    }

    pub(crate) fn message(&self, offset: u64) -> Message {
        let mut message = self.step.message(offset);
        if let Some(hash) = &self.source_hash {
            message = message.bytes(9, hash);
        }
        if let Some(skip) = self.skip {
            message = message.varint(200, skip);
        }
        message
    }
}

/// The bytes of some blocks, cut at the end of `image`.
pub(crate) fn blocks_of(image: &[u8], blocks: &[(u64, u64)]) -> Vec<u8> {
    let in_bytes = |blocks: u64| usize::try_from(blocks).unwrap() * BLOCK;
    let runs = blocks.iter().map(|&(start, count)| {
        let end = in_bytes(start + count).min(image.len());
        &image[in_bytes(start)..end]
    });
    runs.collect::<Vec<_>>().concat()
}

#[derive(Clone, Debug)]
pub(crate) struct Partition {
    pub(crate) name: &'static str,
    pub(crate) steps: Vec<StepV2>,
    pub(crate) old: Option<Vec<u8>>,
    pub(crate) new: Vec<u8>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct PayloadV2 {
    pub(crate) partitions: Vec<Partition>,
    /// Further fields of the manifest.
    pub(crate) more: Message,
}

impl PayloadV2 {
    /// The manifest without signature fields, and the data of all steps.
    pub(crate) fn manifest(&self) -> (Message, Vec<u8>) {
        let mut data = Vec::new();
        let mut manifest = Message::new().varint(3, BLOCK.try_into().unwrap());
        for partition in &self.partitions {
            let mut update = Message::new().bytes(1, partition.name.as_bytes());
            if let Some(old) = &partition.old {
                update = update.message(6, info_of(old));
            }
            update = update.message(7, info_of(&partition.new));
            for step in &partition.steps {
                update = update.message(8, step.message(data.len().try_into().unwrap()));
                data.extend_from_slice(&step.step.data);
            }
            manifest = manifest.message(13, update);
        }
        manifest.0.extend_from_slice(&self.more.0);
        (manifest, data)
    }

    pub(crate) fn unsigned(&self) -> Vec<u8> {
        let (manifest, data) = self.manifest();
        file(&manifest, &[], &data, &[])
    }

    pub(crate) fn signed(&self, signers: &[Signatory]) -> Vec<u8> {
        self.signed_differently(signers, signers)
    }

    /// Some sign the metadata, others the payload.
    pub(crate) fn signed_differently(
        &self,
        of_metadata: &[Signatory],
        of_payload: &[Signatory],
    ) -> Vec<u8> {
        let (manifest, data) = self.manifest();
        let size = |signers: &[Signatory]| message(signers, &[]).0.len();
        let manifest = match of_payload {
            [] => manifest,
            signers => manifest
                .varint(4, data.len().try_into().unwrap())
                .varint(5, size(signers).try_into().unwrap()),
        };
        let head = [
            header(manifest.0.len(), size(of_metadata)),
            manifest.0.clone(),
        ]
        .concat();
        let metadata_signature = message(of_metadata, &head);
        let signed = [&head[..], &data].concat();
        let signature = message(of_payload, &signed);
        file(&manifest, &metadata_signature.0, &data, &signature.0)
    }
}

pub(crate) fn file(
    manifest: &Message,
    metadata_signature: &[u8],
    data: &[u8],
    signature: &[u8],
) -> Vec<u8> {
    let header = header(manifest.0.len(), metadata_signature.len());
    [&header, &manifest.0, metadata_signature, data, signature].concat()
}

pub(crate) fn header(manifest: usize, metadata_signature: usize) -> Vec<u8> {
    let mut header = b"CrAU".to_vec();
    header.extend_from_slice(&2_u64.to_be_bytes());
    header.extend_from_slice(&u64::try_from(manifest).unwrap().to_be_bytes());
    header.extend_from_slice(&u32::try_from(metadata_signature).unwrap().to_be_bytes());
    header
}

pub(crate) fn xz(data: &[u8]) -> Vec<u8> {
    use std::io::Read;
    let mut compressed = Vec::new();
    let mut encoder = liblzma::read::XzEncoder::new(data, 6);
    encoder.read_to_end(&mut compressed).unwrap();
    compressed
}

pub(crate) fn zstandard(data: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(data, 3).unwrap()
}

pub(crate) fn bsdiff(old: &[u8], new: &[u8]) -> Vec<u8> {
    let mut patch = Vec::new();
    qbsdiff::Bsdiff::new(old, new).compare(&mut patch).unwrap();
    patch
}

/// Every kind of operation that Android and this crate's readers share, with a
/// kernel of an odd size before the partition and an unknown partition behind it.
/// Gives the payload and the old image.
pub(crate) fn small() -> (PayloadV2, Vec<u8>) {
    let old = noise(1, 12 * BLOCK);
    let mut new = noise(2, 10 * BLOCK);
    let at = |block: usize, count: usize| block * BLOCK..(block + count) * BLOCK;
    new[at(1, 1)].fill(b'x');
    new[at(2, 1)].fill(b'y');
    new[at(3, 1)].fill(b'z');
    new[at(4, 1)].copy_from_slice(&old[at(9, 1)]);
    new[at(5, 1)].copy_from_slice(&old[at(0, 1)]);
    let patched: Vec<u8> = old[at(3, 2)].iter().map(|byte| byte ^ 1).collect();
    new[at(6, 2)].copy_from_slice(&patched);
    new[at(8, 2)].fill(0);
    let kernel = noise(3, 700);
    let usr = Partition {
        name: "usr",
        steps: vec![
            StepV2::full(0, &[(0, 1)], &new[at(0, 1)]),
            StepV2::full(1, &[(1, 1)], &bzip2(&new[at(1, 1)])),
            StepV2::full(8, &[(2, 1)], &xz(&new[at(2, 1)])),
            StepV2::full(200, &[(3, 1)], &zstandard(&new[at(3, 1)])),
            StepV2::patch(4, &[(9, 1), (0, 1)], &[(4, 2)], &[], &old),
            StepV2::patch(
                5,
                &[(3, 2)],
                &[(6, 2)],
                &bsdiff(&old[at(3, 2)], &patched),
                &old,
            ),
            StepV2::full(6, &[(8, 1)], &[]),
            StepV2::full(7, &[(9, 1)], &[]),
        ],
        old: Some(old.clone()),
        new,
    };
    let kernel = Partition {
        name: "kernel",
        steps: vec![StepV2::full(0, &[(0, 2)], &kernel)],
        old: None,
        new: kernel,
    };
    let other = Partition {
        name: "vendor",
        steps: vec![StepV2::full(0, &[(0, 1)], b"of no interest")],
        old: None,
        new: vec![0; 14],
    };
    let release = Message::new().bytes(2, b"amd64-usr").varint(5, 7);
    let payload = PayloadV2 {
        partitions: vec![kernel, usr, other],
        more: Message::new().varint(12, 6).message(200, release),
    };
    (payload, old)
}
