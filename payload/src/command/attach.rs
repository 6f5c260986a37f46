//! `payload attach`: signatures that were made elsewhere.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use payload::make::{Draft, RawSignature};

use crate::files::{self, Output};
use crate::talk::{progress, say};

/// One byte more than the longest signature, to notice what is no signature.
const MAX_SIGNATURE_SIZE: u64 = 513;

/// Put signatures made elsewhere into a payload.
///
/// The signatures are raw: 256, 384 or 512 bytes of RSA or 64 bytes of Ed25519,
/// over the digest that `payload hash` gave for exactly these sizes. Whether they
/// are good is not checked here; check with `payload verify` afterwards.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  payload hash unsigned.payload --signature-sizes 256 --out digest
  openssl pkeyutl -sign -inkey rsa.pem -pkeyopt digest:sha256 -in digest -out rsa.sig
  payload attach unsigned.payload --signature rsa.sig update.payload
  payload verify --public-key rsa.pub.pem update.payload

`payload help hash` tells more.")]
pub(crate) struct Attach {
    /// The payload whose digest was signed.
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// A raw signature. Give it again for more signatures.
    #[arg(
        long,
        alias = "payload-signature",
        value_name = "FILE",
        required = true
    )]
    signature: Vec<PathBuf>,
    /// A raw signature of the metadata's digest, which format version 2 needs from
    /// every key, in the order of the others.
    #[arg(long, value_name = "FILE")]
    metadata_signature: Vec<PathBuf>,
    /// The signed payload. Appears only when it is complete.
    #[arg(value_name = "OUT")]
    out: PathBuf,
}

impl Attach {
    pub(crate) fn run(self) -> Result<()> {
        let read = |paths: &[PathBuf]| {
            let signatures = paths.iter().map(|path| read_signature(path));
            signatures.collect::<Result<Vec<_>>>()
        };
        let signatures = read(&self.signature)?;
        let of_metadata = read(&self.metadata_signature)?;
        let count = signatures.len() + of_metadata.len();
        let (input, size) = files::open(&self.input)?;
        let bar = progress("attach", size);
        let context = || format!("attach signatures to {}", self.input.display());
        let mut draft = Draft::read(bar.wrap_read(input)).with_context(context)?;
        let mut output = Output::create(
            &self.out,
            self.signature.iter().chain(&self.metadata_signature),
        )?;
        draft
            .attach(signatures, of_metadata, output.file())
            .with_context(context)?;
        output.commit()?;
        bar.finish_and_clear();

        say(format_args!(
            "{}: signatures attached: {count}; none of them was checked",
            self.out.display()
        ));
        Ok(())
    }
}

fn read_signature(path: &Path) -> Result<RawSignature> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_SIGNATURE_SIZE).read_to_end(&mut bytes))
        .with_context(|| format!("read signature {}", path.display()))?;
    RawSignature::from_bytes(bytes).with_context(|| format!("signature {}", path.display()))
}
