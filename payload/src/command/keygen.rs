//! `payload keygen`: a key pair to begin with.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rand;
use aws_lc_rs::rsa;
use aws_lc_rs::signature::KeyPair;
use clap::{Args, ValueEnum};
use ed25519_dalek::SigningKey;
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{
    Document, EncodePrivateKey, EncodePublicKey, KeypairBytes, SecretDocument,
};

use crate::files::Output;

/// Make a key pair for signing payloads.
///
/// Writes the private key to KEY.pem, which only you can read, and the public key
/// to KEY.pub.pem beside it, for the machines. Prints the path of the public key.
/// Existing keys are never overwritten.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  payload keygen --out release.pem
  payload keygen --type rsa-2048 --out for-old-clients.pem

The same with openssl:
  openssl genpkey -algorithm ED25519 -out release.pem
  openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out for-old-clients.pem
  openssl pkey -in release.pem -pubout -out release.pub.pem")]
pub(crate) struct Keygen {
    /// The private key, unencrypted PKCS#8 PEM.
    #[arg(long, value_name = "KEY.pem")]
    out: PathBuf,
    /// Kind of key. Clients of the original (CoreOS, Flatcar) need RSA.
    #[arg(long = "type", value_name = "TYPE", default_value = "ed25519")]
    kind: Kind,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    Ed25519,
    #[value(name = "rsa-2048")]
    Rsa2048,
    #[value(name = "rsa-4096")]
    Rsa4096,
}

impl Keygen {
    pub(crate) fn run(self) -> Result<()> {
        let public_path = public_path(&self.out);
        for path in [&self.out, &public_path] {
            if path.exists() {
                bail!("{} exists; keys are never overwritten", path.display());
            }
        }
        let (private, public) = match self.kind {
            Kind::Ed25519 => ed25519(),
            Kind::Rsa2048 => rsa(rsa::KeySize::Rsa2048),
            Kind::Rsa4096 => rsa(rsa::KeySize::Rsa4096),
        }
        .context("make a key")?;
        let private = private.to_pem("PRIVATE KEY", LineEnding::LF)?;
        let public = public.to_pem("PUBLIC KEY", LineEnding::LF)?;

        let mut output = Output::create_secret(&self.out)?;
        write(&mut output, private.as_bytes(), &self.out)?;
        let mut public_output = Output::create(&public_path, [])?;
        write(&mut public_output, public.as_bytes(), &public_path)?;
        output.commit_new()?;
        public_output.commit_new()?;
        writeln!(io::stdout(), "{}", public_path.display())?;
        Ok(())
    }
}

fn ed25519() -> Result<(SecretDocument, Document)> {
    let mut secret_key = [0; 32];
    rand::fill(&mut secret_key).map_err(|_| anyhow!("no randomness"))?;
    let public = SigningKey::from_bytes(&secret_key).verifying_key();
    // Without the public half, as the second version of PKCS#8 that holds it is
    // unknown to OpenSSL 3.0.
    let pair = KeypairBytes {
        secret_key,
        public_key: None,
    };
    Ok((pair.to_pkcs8_der()?, public.to_public_key_der()?))
}

fn rsa(size: rsa::KeySize) -> Result<(SecretDocument, Document)> {
    let failed = |_| anyhow!("the cryptographic library failed");
    let key = rsa::KeyPair::generate(size).map_err(failed)?;
    let private: Pkcs8V1Der<'_> = key.as_der().map_err(failed)?;
    let public: PublicKeyX509Der<'_> = key.public_key().as_der().map_err(failed)?;
    Ok((
        SecretDocument::try_from(private.as_ref())?,
        Document::try_from(public.as_ref())?,
    ))
}

/// `release.pem` → `release.pub.pem`, `release` → `release.pub.pem`.
fn public_path(private: &Path) -> PathBuf {
    match private.extension() {
        Some(extension) if extension == "pem" => private.with_extension("pub.pem"),
        _ => {
            let mut path = private.as_os_str().to_owned();
            path.push(".pub.pem");
            path.into()
        }
    }
}

fn write(output: &mut Output, bytes: &[u8], path: &Path) -> Result<()> {
    output
        .file()
        .write_all(bytes)
        .with_context(|| format!("write {}", path.display()))
}
