//! Makes payloads field by field, so that tests can put anything anywhere.
//!
//! A second, independent protobuf writer: what it makes by hand is what the
//! crate's own encoder never would.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use ed25519_dalek::Signer;
use ed25519_dalek::pkcs8::DecodePrivateKey;
use sha2::{Digest, Sha256};

use crate::fixtures;

pub(crate) const HOLE: u64 = u64::MAX;

/// A protobuf message being written.
#[derive(Clone, Default, Debug)]
pub(crate) struct Message(pub(crate) Vec<u8>);

impl Message {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    fn raw_varint(&mut self, mut value: u64) {
        loop {
            let low = u8::try_from(value & 0x7f).unwrap();
            value >>= 7;
            if value == 0 {
                self.0.push(low);
                return;
            }
            self.0.push(low | 0x80);
        }
    }

    pub(crate) fn varint(mut self, tag: u64, value: u64) -> Self {
        self.raw_varint(tag << 3);
        self.raw_varint(value);
        self
    }

    pub(crate) fn bytes(mut self, tag: u64, bytes: &[u8]) -> Self {
        self.raw_varint(tag << 3 | 2);
        self.raw_varint(bytes.len().try_into().unwrap());
        self.0.extend_from_slice(bytes);
        self
    }

    pub(crate) fn message(self, tag: u64, message: Message) -> Self {
        self.bytes(tag, &message.0)
    }
}

pub(crate) fn extent(start: u64, blocks: u64) -> Message {
    Message::new().varint(1, start).varint(2, blocks)
}

pub(crate) fn info(size: u64, hash: &[u8]) -> Message {
    Message::new().varint(1, size).bytes(2, hash)
}

pub(crate) fn info_of(image: &[u8]) -> Message {
    info(image.len().try_into().unwrap(), &Sha256::digest(image))
}

/// An operation as `InstallOperation` but with its data beside it.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) kind: u64,
    pub(crate) source: Vec<(u64, u64)>,
    pub(crate) source_length: Option<u64>,
    pub(crate) destination: Vec<(u64, u64)>,
    pub(crate) target_length: Option<u64>,
    pub(crate) data: Vec<u8>,
}

impl Step {
    pub(crate) fn full(kind: u64, destination: &[(u64, u64)], data: &[u8]) -> Self {
        Self {
            kind,
            source: Vec::new(),
            source_length: None,
            destination: destination.to_vec(),
            target_length: None,
            data: data.to_vec(),
        }
    }

    pub(crate) fn message(&self, offset: u64) -> Message {
        let mut message = Message::new().varint(1, self.kind);
        if !self.data.is_empty() {
            let length = self.data.len().try_into().unwrap();
            message = message.varint(2, offset).varint(3, length);
        }
        for &(start, blocks) in &self.source {
            message = message.message(4, extent(start, blocks));
        }
        if let Some(length) = self.source_length {
            message = message.varint(5, length);
        }
        for &(start, blocks) in &self.destination {
            message = message.message(6, extent(start, blocks));
        }
        if let Some(length) = self.target_length {
            message = message.varint(7, length);
        }
        if !self.data.is_empty() {
            message = message.bytes(8, &Sha256::digest(&self.data));
        }
        message
    }
}

/// A whole payload: steps for the partition and for procedures by type.
#[derive(Clone, Debug, Default)]
pub(crate) struct Payload {
    pub(crate) block_size: Option<u64>,
    pub(crate) steps: Vec<Step>,
    pub(crate) procedures: Vec<(u64, Vec<Step>, Vec<u8>)>,
    pub(crate) new: Vec<u8>,
    pub(crate) old: Option<Vec<u8>>,
}

impl Payload {
    /// The manifest without signature fields, and the data of all steps.
    pub(crate) fn manifest(&self) -> (Message, Vec<u8>) {
        let mut data = Vec::new();
        let mut manifest = Message::new();
        for step in &self.steps {
            manifest = manifest.message(1, step.message(data.len().try_into().unwrap()));
            data.extend_from_slice(&step.data);
        }
        if let Some(size) = self.block_size {
            manifest = manifest.varint(3, size);
        }
        if let Some(old) = &self.old {
            manifest = manifest.message(8, info_of(old));
        }
        manifest = manifest.message(9, info_of(&self.new));
        for (kind, steps, new) in &self.procedures {
            let mut procedure = Message::new().varint(1, *kind);
            for step in steps {
                procedure = procedure.message(2, step.message(data.len().try_into().unwrap()));
                data.extend_from_slice(&step.data);
            }
            manifest = manifest.message(10, procedure.message(4, info_of(new)));
        }
        (manifest, data)
    }

    pub(crate) fn unsigned(&self) -> Vec<u8> {
        let (manifest, data) = self.manifest();
        file(&manifest, &data)
    }

    pub(crate) fn signed(&self, signers: &[Signatory]) -> Vec<u8> {
        let (manifest, data) = self.manifest();
        let size = message(signers, &[]).0.len();
        let manifest = manifest
            .varint(4, data.len().try_into().unwrap())
            .varint(5, size.try_into().unwrap());
        let mut payload = file(&manifest, &data);
        let signatures = message(signers, &payload);
        payload.extend_from_slice(&signatures.0);
        payload
    }
}

pub(crate) fn file(manifest: &Message, data: &[u8]) -> Vec<u8> {
    let mut payload = header(1, manifest.0.len().try_into().unwrap());
    payload.extend_from_slice(&manifest.0);
    payload.extend_from_slice(data);
    payload
}

pub(crate) fn header(version: u64, manifest_size: u64) -> Vec<u8> {
    let mut header = b"CrAU".to_vec();
    header.extend_from_slice(&version.to_be_bytes());
    header.extend_from_slice(&manifest_size.to_be_bytes());
    header
}

/// Who signs, and under which entry version.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Signatory {
    pub(crate) version: u64,
    pub(crate) key: &'static str,
}

pub(crate) const RSA_2048: Signatory = Signatory {
    version: 2,
    key: "keys/rsa-2048_DO_NOT_USE.pem",
};
pub(crate) const RSA_4096: Signatory = Signatory {
    version: 2,
    key: "keys/rsa-4096_DO_NOT_USE.pem",
};
pub(crate) const ED25519: Signatory = Signatory {
    version: 3,
    key: "keys/ed25519_DO_NOT_USE.pem",
};
pub(crate) const OTHER_ED25519: Signatory = Signatory {
    version: 3,
    key: "keys/other-ed25519_DO_NOT_USE.pem",
};

/// The signature message over `signed`, which must be everything before it.
pub(crate) fn message(signers: &[Signatory], signed: &[u8]) -> Message {
    signers.iter().fold(Message::new(), |message, signer| {
        let entry = Message::new()
            .varint(1, signer.version)
            .bytes(2, &signer.sign(signed));
        message.message(1, entry)
    })
}

impl Signatory {
    fn sign(&self, signed: &[u8]) -> Vec<u8> {
        let pem = String::from_utf8(fixtures::read(self.key)).unwrap();
        if self.key.contains("ed25519") {
            let key = ed25519_dalek::SigningKey::from_pkcs8_pem(&pem).unwrap();
            key.sign(&Sha256::digest(signed)).to_bytes().to_vec()
        } else {
            let (_, der) = pkcs8::SecretDocument::from_pem(&pem).unwrap();
            let key = RsaKeyPair::from_pkcs8(der.as_bytes()).unwrap();
            let mut signature = vec![0; key.public_modulus_len()];
            key.sign(
                &RSA_PKCS1_SHA256,
                &SystemRandom::new(),
                signed,
                &mut signature,
            )
            .unwrap();
            signature
        }
    }

    /// The public half.
    pub(crate) fn public(&self) -> payload::PublicKey {
        fixtures::public_key(&self.key.replace("_DO_NOT_USE", ".pub"))
    }
}

pub(crate) fn bzip2(data: &[u8]) -> Vec<u8> {
    use std::io::Read;
    let mut compressed = Vec::new();
    let mut encoder = bzip2::read::BzEncoder::new(data, bzip2::Compression::best());
    encoder.read_to_end(&mut compressed).unwrap();
    compressed
}

/// Bytes that neither repeat nor compress, the same for the same seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    })
    .take(length)
    .collect()
}

/// A small payload of every kind of operation that carries data or none, with a kernel.
pub(crate) fn small() -> (Payload, Vec<u8>) {
    let old = noise(1, 8 * 512);
    let mut new = old.clone();
    new[..512].copy_from_slice(&noise(2, 512));
    new[512..1024].fill(b'x');
    new.copy_within(2048..2560, 1024);
    let patched: Vec<u8> = old[1536..2048]
        .iter()
        .map(|byte| byte.wrapping_add(1))
        .collect();
    new[1536..2048].copy_from_slice(&patched);
    let mut patch = Vec::new();
    qbsdiff::Bsdiff::new(&old[1536..2048], &patched)
        .compare(&mut patch)
        .unwrap();
    let kernel = noise(3, 700);
    let payload = Payload {
        block_size: Some(512),
        steps: vec![
            Step::full(0, &[(0, 1)], &new[..512]),
            Step::full(1, &[(1, 4)], &bzip2(&new[512..1024])),
            Step {
                source: vec![(4, 1)],
                ..Step::full(2, &[(2, 1)], &[])
            },
            Step {
                source: vec![(3, 1)],
                source_length: Some(512),
                target_length: Some(512),
                ..Step::full(3, &[(3, 1)], &patch)
            },
        ],
        procedures: vec![
            (0, vec![Step::full(0, &[(0, 256)], &kernel)], kernel),
            (77, vec![Step::full(9, &[], b"from the future")], Vec::new()),
        ],
        new,
        old: Some(old.clone()),
    };
    (payload, old)
}
