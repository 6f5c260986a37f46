//! `payload hash`: what to sign when the key is elsewhere.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use payload::make::{Draft, SignatureKind};

use crate::files::{self, Output};
use crate::talk::progress;

/// Print the digest to sign, for keys that are not on this machine.
///
/// The signed part of a payload tells how long its signatures are, so the digest
/// depends on the sizes of the keys: 256 for RSA-2048, 384 for RSA-3072, 512 for
/// RSA-4096, 64 for Ed25519, separated by colons. Signatures that IN already has
/// do not matter.
///
/// A payload of format version 2 has two digests, that of the whole and that of its
/// metadata, on a line each. Every key has to sign both.
#[derive(Debug, Args)]
#[command(after_help = "\
Sign with one RSA-2048 and one Ed25519 key, somewhere else:
  payload hash unsigned.payload --signature-sizes 256:64 --out digest

  openssl pkeyutl -sign -inkey rsa.pem -pkeyopt digest:sha256 -in digest -out rsa.sig
  openssl pkeyutl -sign -inkey ed25519.pem -rawin -in digest -out ed25519.sig

  payload attach unsigned.payload --signature rsa.sig --signature ed25519.sig update.payload

Format version 2 needs signatures of the metadata too:
  payload hash unsigned.payload --signature-sizes 256 --out digest --metadata-out metadata
  openssl pkeyutl -sign -inkey rsa.pem -pkeyopt digest:sha256 -in digest -out rsa.sig
  openssl pkeyutl -sign -inkey rsa.pem -pkeyopt digest:sha256 -in metadata -out metadata.sig
  payload attach unsigned.payload --signature rsa.sig --metadata-signature metadata.sig \\
      update.payload

The RSA form is PKCS#1 v1.5 over the digest; the Ed25519 form takes its 32 bytes as
the message. `payload attach` gives the same file as `payload sign` with those keys.")]
pub(crate) struct Hash {
    /// The payload to sign.
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// Bytes of each signature that will be attached, such as 256 or 256:64.
    #[arg(
        long,
        value_name = "SIZES",
        value_delimiter = ':',
        required = true,
        value_parser = kind
    )]
    signature_sizes: Vec<SignatureKind>,
    /// Also write the raw 32 bytes to this file, for signing tools.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Also write the 32 bytes of the metadata's digest to this file.
    #[arg(long, value_name = "FILE")]
    metadata_out: Option<PathBuf>,
}

impl Hash {
    pub(crate) fn run(self) -> Result<()> {
        let (input, size) = files::open(&self.input)?;
        let bar = progress("hash", size);
        let digest = Draft::read(bar.wrap_read(input))
            .and_then(|mut draft| draft.digest(&self.signature_sizes));
        bar.finish_and_clear();
        let digests = digest.with_context(|| format!("hash {}", self.input.display()))?;

        if self.metadata_out.is_some() && digests.metadata.is_none() {
            bail!(
                "{} has format version 1, whose metadata is not signed alone; leave out --metadata-out",
                self.input.display()
            );
        }
        if let Some(out) = &self.out {
            write_digest(out, [&self.input], &digests.payload)?;
        }
        if let (Some(out), Some(digest)) = (&self.metadata_out, &digests.metadata) {
            write_digest(out, self.out.iter().chain([&self.input]), digest)?;
        }
        let mut out = io::stdout().lock();
        writeln!(out, "{}", hex::encode(digests.payload))?;
        if let Some(digest) = digests.metadata {
            writeln!(out, "{}", hex::encode(digest))?;
        }
        Ok(())
    }
}

fn write_digest<'a>(
    path: &Path,
    inputs: impl IntoIterator<Item = &'a PathBuf>,
    digest: &[u8; 32],
) -> Result<()> {
    let mut output = Output::create(path, inputs)?;
    output
        .file()
        .write_all(digest)
        .with_context(|| format!("write {}", path.display()))?;
    output.commit()
}

fn kind(size: &str) -> Result<SignatureKind> {
    Ok(SignatureKind::from_size(size.parse()?)?)
}
