//! Private keys and the signatures that they make.
//!
//! A payload is signed over one SHA-256 digest, so a key sees 32 bytes and never
//! a file. What is signed, and where signatures go, is [`crate::make::Draft`]'s
//! concern; which public keys are trusted is [`crate::Trust`]'s.

use aws_lc_rs::digest::{Digest, SHA256};
use aws_lc_rs::rsa;
use aws_lc_rs::signature::RSA_PKCS1_SHA256;
use ed25519_dalek::pkcs8::{self, ObjectIdentifier, PrivateKeyInfoRef, SecretDocument};
use ed25519_dalek::{Signer, SigningKey};

use super::MakeError;

const RSA_OID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const ED25519_OID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");

/// Lengths in bytes of the RSA signatures that are made: 2048, 3072, 4096 bit.
const RSA_SIGNATURE_SIZES: [usize; 3] = [256, 384, 512];
const ED25519_SIGNATURE_SIZE: usize = 64;

/// The kind of a signature, which its length alone tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignatureKind {
    /// RSA, PKCS#1 v1.5 with SHA-256; as many bytes as the modulus.
    Rsa {
        /// 256, 384 or 512.
        size: usize,
    },
    /// Ed25519 over the 32-byte SHA-256 digest; 64 bytes.
    Ed25519,
}

impl SignatureKind {
    /// The kind whose signatures are `size` bytes long.
    ///
    /// # Errors
    /// [`MakeError::SignatureSize`] for lengths other than 64, 256, 384 and 512.
    pub fn from_size(size: usize) -> Result<Self, MakeError> {
        match size {
            ED25519_SIGNATURE_SIZE => Ok(Self::Ed25519),
            _ if RSA_SIGNATURE_SIZES.contains(&size) => Ok(Self::Rsa { size }),
            _ => Err(MakeError::SignatureSize { size }),
        }
    }

    /// Length of the signature in bytes.
    pub fn size(self) -> usize {
        match self {
            Self::Rsa { size } => size,
            Self::Ed25519 => ED25519_SIGNATURE_SIZE,
        }
    }

    /// The version number of its entry in the payload. Clients of the original
    /// look at the first entry of version 2 and skip all others.
    pub fn version(self) -> u32 {
        match self {
            Self::Rsa { .. } => 2,
            Self::Ed25519 => 3,
        }
    }
}

/// One signature of a payload's digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawSignature {
    kind: SignatureKind,
    bytes: Vec<u8>,
}

impl RawSignature {
    /// A signature made elsewhere, such as in a security module.
    ///
    /// # Errors
    /// [`MakeError::SignatureSize`] if no known kind has this length.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, MakeError> {
        let kind = SignatureKind::from_size(bytes.len())?;
        Ok(Self { kind, bytes })
    }

    /// Its kind.
    pub fn kind(&self) -> SignatureKind {
        self.kind
    }

    /// The signature itself.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// A key that signs payloads. Its `Debug` form does not show the secret.
#[derive(Debug)]
pub struct PrivateKey(Secret);

enum Secret {
    Rsa(Box<rsa::KeyPair>),
    Ed25519(Box<SigningKey>),
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Rsa(_) => "Rsa",
            Self::Ed25519(_) => "Ed25519",
        })
    }
}

impl PrivateKey {
    /// Reads an unencrypted key as OpenSSL writes it: RSA of 2048, 3072 or 4096
    /// bit as PKCS#8 (`BEGIN PRIVATE KEY`) or PKCS#1 (`BEGIN RSA PRIVATE KEY`),
    /// Ed25519 as PKCS#8.
    ///
    /// # Errors
    /// [`MakeError::PrivateKey`] with what is wrong with it.
    pub fn from_pem(pem: &str) -> Result<Self, MakeError> {
        let (label, document) = SecretDocument::from_pem(pem)
            .map_err(|error| refused(format!("not a PEM document: {error}")))?;
        let secret = match label {
            "PRIVATE KEY" => from_pkcs8(document.as_bytes())?,
            "RSA PRIVATE KEY" => checked_rsa(rsa::KeyPair::from_der(document.as_bytes()))?,
            "ENCRYPTED PRIVATE KEY" => {
                return Err(refused(
                    "it is encrypted; decrypt it with `openssl pkey -in KEY -out PLAIN`, or sign \
                     offline with `payload hash` and `payload attach`",
                ));
            }
            "PUBLIC KEY" | "RSA PUBLIC KEY" => {
                return Err(refused("it is a public key; signing needs the private key"));
            }
            other => {
                return Err(refused(format!(
                    "a `{other}` is not supported; use RSA or Ed25519 as PKCS#8, or RSA as PKCS#1"
                )));
            }
        };
        Ok(Self(secret))
    }

    /// The kind of signatures that it makes.
    pub fn signature_kind(&self) -> SignatureKind {
        match &self.0 {
            Secret::Rsa(key) => SignatureKind::Rsa {
                size: key.public_modulus_len(),
            },
            Secret::Ed25519(_) => SignatureKind::Ed25519,
        }
    }

    /// Signs the SHA-256 digest of a payload. The same key and digest give the
    /// same signature, always.
    ///
    /// # Errors
    /// [`MakeError::Signing`] if the cryptographic library fails.
    pub fn sign(&self, digest: &[u8; 32]) -> Result<RawSignature, MakeError> {
        let bytes = match &self.0 {
            Secret::Rsa(key) => {
                let mut signature = vec![0; key.public_modulus_len()];
                Digest::import_less_safe(digest, &SHA256)
                    .and_then(|digest| key.sign_digest(&RSA_PKCS1_SHA256, &digest, &mut signature))
                    .map_err(|_| MakeError::Signing)?;
                signature
            }
            Secret::Ed25519(key) => key.sign(digest).to_vec(),
        };
        Ok(RawSignature {
            kind: self.signature_kind(),
            bytes,
        })
    }
}

fn from_pkcs8(der: &[u8]) -> Result<Secret, MakeError> {
    let info = PrivateKeyInfoRef::try_from(der)
        .map_err(|error| refused(format!("not a PKCS#8 key: {error}")))?;
    match info.algorithm.oid {
        RSA_OID => checked_rsa(rsa::KeyPair::from_pkcs8(der)),
        ED25519_OID => SigningKey::try_from(info)
            .map(|key| Secret::Ed25519(Box::new(key)))
            .map_err(|error: pkcs8::Error| refused(format!("not an Ed25519 key: {error}"))),
        other => Err(refused(format!(
            "keys of algorithm {other} are not supported; use RSA or Ed25519"
        ))),
    }
}

fn checked_rsa(
    key: Result<rsa::KeyPair, aws_lc_rs::error::KeyRejected>,
) -> Result<Secret, MakeError> {
    let key = key.map_err(|error| {
        refused(format!(
            "not a usable RSA key of at least 2048 bit: {error}"
        ))
    })?;
    let size = key.public_modulus_len();
    if !RSA_SIGNATURE_SIZES.contains(&size) {
        return Err(refused(format!(
            "an RSA key of {} bit is not supported; use 2048, 3072 or 4096",
            size.saturating_mul(8)
        )));
    }
    Ok(Secret::Rsa(Box::new(key)))
}

fn refused(reason: impl Into<String>) -> MakeError {
    MakeError::PrivateKey {
        reason: reason.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RSA_2048: &str = include_str!("../../../fixtures/keys/rsa-2048_DO_NOT_USE.pem");
    const RSA_2048_PKCS1: &str =
        include_str!("../../../fixtures/keys/rsa-2048-pkcs1_DO_NOT_USE.pem");
    const RSA_4096: &str = include_str!("../../../fixtures/keys/rsa-4096_DO_NOT_USE.pem");
    const ED25519: &str = include_str!("../../../fixtures/keys/ed25519_DO_NOT_USE.pem");

    #[test]
    fn keys_as_openssl_writes_them_are_read() {
        let rsa = |size| SignatureKind::Rsa { size };
        for (pem, kind) in [
            (RSA_2048, rsa(256)),
            (RSA_2048_PKCS1, rsa(256)),
            (RSA_4096, rsa(512)),
            (ED25519, SignatureKind::Ed25519),
        ] {
            let key = PrivateKey::from_pem(pem).unwrap();
            assert_eq!(key.signature_kind(), kind);
            let signature = key.sign(&[7; 32]).unwrap();
            assert_eq!(signature.kind(), kind);
            assert_eq!(signature.as_bytes().len(), kind.size());
            assert_eq!(key.sign(&[7; 32]).unwrap(), signature, "deterministic");
        }
    }

    #[test]
    fn both_forms_of_one_rsa_key_sign_alike() {
        let sign = |pem| PrivateKey::from_pem(pem).unwrap().sign(&[1; 32]).unwrap();
        assert_eq!(sign(RSA_2048), sign(RSA_2048_PKCS1));
    }

    #[test]
    fn unusable_keys_are_refused_with_the_reason() {
        let cut = &RSA_2048[..RSA_2048.len() / 2];
        for (pem, reason) in [
            ("", "not a PEM document"),
            ("hello", "not a PEM document"),
            (cut, "not a PEM document"),
            (
                include_str!("../../../fixtures/keys/rsa-1024_DO_NOT_USE.pem"),
                "at least 2048 bit",
            ),
            (
                include_str!("../../../fixtures/keys/rsa-2048-encrypted_DO_NOT_USE.pem"),
                "encrypted",
            ),
            (
                include_str!("../../../fixtures/keys/rsa-2048.pub.pem"),
                "is a public key",
            ),
            (
                include_str!("../../../fixtures/keys/ec-p256_DO_NOT_USE.pem"),
                "1.2.840.10045.2.1",
            ),
        ] {
            let error = PrivateKey::from_pem(pem).unwrap_err().to_string();
            assert!(error.contains(reason), "{error:?} should say {reason:?}");
        }
    }

    #[test]
    fn the_secret_is_not_in_the_debug_form() {
        let key = PrivateKey::from_pem(ED25519).unwrap();
        assert_eq!(format!("{key:?}"), "PrivateKey(Ed25519)");
    }

    #[test]
    fn only_lengths_of_real_signatures_are_taken() {
        for size in [64, 256, 384, 512] {
            assert_eq!(SignatureKind::from_size(size).unwrap().size(), size);
            assert!(RawSignature::from_bytes(vec![0; size]).is_ok());
        }
        for size in [0, 1, 63, 65, 128, 255, 257, 1024] {
            assert!(SignatureKind::from_size(size).is_err(), "{size}");
        }
    }
}
