//! Who may sign a payload: public keys, how many of them must have signed, and
//! the check of a signature message against them.
//!
//! All signatures are over one SHA-256, that of every byte before the signature
//! message. Entry version 2 is RSA PKCS#1 v1.5 (the original's), version 3 is
//! Ed25519 with the 32-byte digest as its message. Entries of other versions are
//! ignored: the original's release tool puts one by a throw-away key there. In
//! version 2 of the format an entry need not name its version; it is RSA then.
//!
//! Without a trusted key nothing is accepted; there is no fallback.

use std::fmt;

use aws_lc_rs::digest::{Digest as ImportedDigest, SHA256};
use aws_lc_rs::signature::{ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256};
use ed25519_dalek::{Signature as Ed25519Signature, VerifyingKey};
use pkcs8::der::asn1::UintRef;
use pkcs8::der::{self, Decode, Reader, SliceReader};
use pkcs8::{Document, ObjectIdentifier, SubjectPublicKeyInfoRef};
use prost::Message;

use crate::error::PayloadError;
use crate::header::Format;
use crate::{shape, wire};

/// Signature entry version of RSA PKCS#1 v1.5 with SHA-256.
pub(crate) const VERSION_RSA: u32 = 2;
/// Signature entry version of Ed25519 over the SHA-256.
pub(crate) const VERSION_ED25519: u32 = 3;

/// A public key that may be trusted to sign payloads.
#[derive(Clone)]
pub struct PublicKey {
    /// The key itself, without the algorithm around it: what makes two keys different.
    material: Vec<u8>,
    verifier: Verifier,
}

#[derive(Clone)]
enum Verifier {
    Rsa { key: ParsedPublicKey, bits: usize },
    Ed25519(VerifyingKey),
}

impl PublicKey {
    const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
    const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");
    const RSA_MIN_BITS: usize = 2048;
    const RSA_MAX_BITS: usize = 8192;

    /// Reads one `PUBLIC KEY` in PEM, as `openssl pkey -pubout` writes it.
    ///
    /// # Errors
    /// [`PayloadError::Key`] for an empty or malformed file, a private key,
    /// RSA below 2048 bits, a weak Ed25519 key or another algorithm.
    pub fn from_pem(pem: &str) -> Result<Self, PayloadError> {
        if pem.trim().is_empty() {
            return Err(unusable("the file is empty"));
        }
        let (label, spki) = Document::from_pem(pem.trim())
            .map_err(|error| unusable(format!("not one PEM block: {error}")))?;
        if label != "PUBLIC KEY" {
            return Err(unusable(format!("it holds a {label}, not a PUBLIC KEY")));
        }
        Self::from_spki(spki.as_bytes())
    }

    fn from_spki(spki: &[u8]) -> Result<Self, PayloadError> {
        let info = SubjectPublicKeyInfoRef::from_der(spki)
            .map_err(|error| unusable(format!("not a SubjectPublicKeyInfo: {error}")))?;
        let key = info
            .subject_public_key
            .as_bytes()
            .ok_or_else(|| unusable("the key is not whole bytes"))?;
        let verifier = match info.algorithm.oid {
            Self::RSA => Self::rsa(spki, key)?,
            Self::ED25519 => Self::ed25519(key)?,
            other => {
                return Err(unusable(format!(
                    "algorithm {other} is neither RSA nor Ed25519"
                )));
            }
        };
        Ok(Self {
            material: key.to_vec(),
            verifier,
        })
    }

    fn rsa(spki: &[u8], key: &[u8]) -> Result<Verifier, PayloadError> {
        let bits = rsa_modulus_bits(key)
            .map_err(|error| unusable(format!("malformed RSA key: {error}")))?;
        if !(Self::RSA_MIN_BITS..=Self::RSA_MAX_BITS).contains(&bits) {
            return Err(unusable(format!(
                "an RSA key of {bits} bits, not from {} to {}",
                Self::RSA_MIN_BITS,
                Self::RSA_MAX_BITS
            )));
        }
        let key = ParsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, spki)
            .map_err(|error| unusable(format!("RSA key refused: {error}")))?;
        Ok(Verifier::Rsa { key, bits })
    }

    fn ed25519(key: &[u8]) -> Result<Verifier, PayloadError> {
        let key = VerifyingKey::try_from(key).map_err(|_| unusable("malformed Ed25519 key"))?;
        // Anyone can make signatures that a small-order key accepts.
        if key.is_weak() {
            return Err(unusable("a weak Ed25519 key"));
        }
        Ok(Verifier::Ed25519(key))
    }

    /// Whether `entry` is a good signature of this key over `digest`.
    fn accepts(&self, digest: &[u8; 32], entry: &Entry) -> bool {
        match &self.verifier {
            Verifier::Rsa { key, .. } => {
                entry.version == VERSION_RSA
                    && ImportedDigest::import_less_safe(digest, &SHA256)
                        .is_ok_and(|digest| key.verify_digest_sig(&digest, &entry.data).is_ok())
            }
            Verifier::Ed25519(key) => {
                entry.version == VERSION_ED25519
                    && Ed25519Signature::from_slice(&entry.data)
                        .is_ok_and(|signature| key.verify_strict(digest, &signature).is_ok())
            }
        }
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.verifier {
            Verifier::Rsa { bits, .. } => write!(f, "PublicKey(RSA-{bits})"),
            Verifier::Ed25519(_) => f.write_str("PublicKey(Ed25519)"),
        }
    }
}

/// The keys that are trusted and how many different ones must have signed.
#[derive(Clone, Debug)]
pub struct Trust {
    keys: Vec<PublicKey>,
    threshold: usize,
    unsigned_allowed: bool,
}

impl Trust {
    /// Trusts payloads signed by at least `threshold` different `keys`.
    ///
    /// A key given twice counts once.
    ///
    /// # Errors
    /// [`PayloadError::Trust`] for no keys, a threshold of 0 or one above the
    /// number of different keys.
    pub fn new(keys: Vec<PublicKey>, threshold: usize) -> Result<Self, PayloadError> {
        let keys = different(keys);
        let reason = if keys.is_empty() {
            "there is no key".to_owned()
        } else if threshold == 0 {
            "a threshold of 0 would accept anything".to_owned()
        } else if threshold > keys.len() {
            format!(
                "{threshold} of only {} different keys can never sign",
                keys.len()
            )
        } else {
            return Ok(Self {
                keys,
                threshold,
                unsigned_allowed: false,
            });
        };
        Err(PayloadError::Trust { reason })
    }

    /// Accepts payloads that carry no signature at all.
    ///
    /// One that is signed must still be signed by one of `keys`; with no keys
    /// signatures are not looked at. Only for a person who asked for exactly this.
    #[must_use]
    pub fn allow_unsigned(keys: Vec<PublicKey>) -> Self {
        Self {
            keys: different(keys),
            threshold: 1,
            unsigned_allowed: true,
        }
    }

    /// Number of different trusted keys.
    #[must_use]
    pub fn keys(&self) -> usize {
        self.keys.len()
    }

    /// Checks a payload without a signature message.
    pub(crate) fn check_unsigned(&self) -> Result<usize, PayloadError> {
        if self.unsigned_allowed {
            Ok(0)
        } else {
            Err(PayloadError::SignatureMissing)
        }
    }

    /// Checks a version 2 payload whose manifest carries no signature.
    pub(crate) fn check_unsigned_metadata(&self) -> Result<usize, PayloadError> {
        if self.unsigned_allowed {
            Ok(0)
        } else {
            Err(PayloadError::MetadataSignatureMissing)
        }
    }

    /// Checks the signature `message` at file `offset` over `digest`, the SHA-256
    /// of what it signs. Returns how many different trusted keys signed.
    pub(crate) fn check(
        &self,
        format: Format,
        digest: &[u8; 32],
        offset: u64,
        message: &[u8],
    ) -> Result<usize, PayloadError> {
        let entries = Entry::parse_all(format, message)
            .map_err(|reason| PayloadError::SignatureMalformed { offset, reason })?;
        let signed = |key: &&PublicKey| entries.iter().any(|entry| key.accepts(digest, entry));
        let good = self.keys.iter().filter(signed).count();
        if good >= self.threshold || (self.unsigned_allowed && self.keys.is_empty()) {
            Ok(good)
        } else {
            Err(PayloadError::SignatureRefused {
                good,
                needed: self.threshold,
                entries: entries.len(),
                keys: self.keys.len(),
            })
        }
    }
}

/// Version and length in bytes of each entry of the signature `message` at file
/// `offset`, for people to look at. Nothing is verified.
///
/// # Errors
/// [`PayloadError::SignatureMalformed`].
pub fn signature_entries(
    format: Format,
    offset: u64,
    message: &[u8],
) -> Result<Vec<(u32, usize)>, PayloadError> {
    let entries = Entry::parse_all(format, message)
        .map_err(|reason| PayloadError::SignatureMalformed { offset, reason })?;
    let sizes = entries
        .iter()
        .map(|entry| (entry.version, entry.data.len()));
    Ok(sizes.collect())
}

/// One entry of a signature message.
struct Entry {
    version: u32,
    data: Vec<u8>,
}

impl Entry {
    fn parse_all(format: Format, message: &[u8]) -> Result<Vec<Self>, String> {
        shape::check_signatures(message)?;
        let raw = message;
        let message = wire::Signatures::decode(raw).map_err(|error| error.to_string())?;
        // The metadata signature is covered by nothing, so it must not be possible to
        // write the same signature in another way.
        if format == Format::V2 && message.encode_to_vec() != raw {
            return Err("it has unknown fields or fields out of order".to_owned());
        }
        let entries = message.signatures.into_iter().enumerate();
        entries
            .map(|(number, entry)| {
                Self::parse(format, entry)
                    .map_err(|reason| format!("signatures[{number}]: {reason}"))
            })
            .collect()
    }

    fn parse(format: Format, entry: wire::Signature) -> Result<Self, &'static str> {
        let version = match format {
            Format::V1 => entry.version,
            Format::V2 => entry.version.or(Some(VERSION_RSA)),
        };
        let (Some(version), Some(mut data)) = (version, entry.data) else {
            return Err("version or data is missing");
        };
        if let (Format::V2, Some(size)) = (format, entry.unpadded_signature_size) {
            match usize::try_from(size) {
                Ok(size) if size <= data.len() => data.truncate(size),
                _ => return Err("unpadded_signature_size exceeds the data"),
            }
        }
        Ok(Self { version, data })
    }
}

fn different(keys: Vec<PublicKey>) -> Vec<PublicKey> {
    let mut kept: Vec<PublicKey> = Vec::with_capacity(keys.len());
    for key in keys {
        if kept.iter().all(|other| other.material != key.material) {
            kept.push(key);
        }
    }
    kept
}

/// Bits of `modulus` in `RSAPublicKey ::= SEQUENCE { modulus, publicExponent }` (RFC 8017 A.1.1).
fn rsa_modulus_bits(key: &[u8]) -> Result<usize, der::Error> {
    let mut reader = SliceReader::new(key)?;
    let modulus = reader.sequence(|fields| {
        let modulus = UintRef::decode(fields)?;
        UintRef::decode(fields)?;
        Ok::<_, der::Error>(modulus)
    })?;
    let bytes = modulus.as_bytes();
    let zeros = bytes.first().map_or(0, |first| first.leading_zeros());
    Ok(bytes.len() * 8 - usize::try_from(zeros).expect("at most 8"))
}

fn unusable(reason: impl Into<String>) -> PayloadError {
    PayloadError::Key {
        reason: reason.into(),
    }
}
