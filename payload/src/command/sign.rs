//! `payload sign`: signatures for a payload that has none, or others.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use payload::make::Draft;

use crate::files::{self, Output};
use crate::keys;
use crate::talk::{progress, say, signed_by};

/// Sign a payload, in place of all signatures that it has.
///
/// The payload is checked first: it must be complete, with every hash right. IN
/// and OUT may be the same file.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  payload sign --private-key release.pem unsigned.payload update.payload

  # Both kinds of keys, for machines that know one of them.
  payload sign --private-key rsa.pem --private-key ed25519.pem old.payload new.payload

For keys that never leave a security module see `payload help hash`.")]
pub(crate) struct Sign {
    /// RSA or Ed25519 key, unencrypted PEM. Give it again for more keys.
    #[arg(long, value_name = "PEM", required = true)]
    private_key: Vec<PathBuf>,
    /// The payload to sign.
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// The signed payload. Appears only when it is complete.
    #[arg(value_name = "OUT")]
    out: PathBuf,
}

impl Sign {
    pub(crate) fn run(self) -> Result<()> {
        let keys = keys::private(&self.private_key)?;
        let (input, size) = files::open(&self.input)?;
        let bar = progress("sign", size);
        let context = || format!("sign {}", self.input.display());
        let mut draft = Draft::read(bar.wrap_read(input)).with_context(context)?;
        let mut output = Output::create(&self.out, &self.private_key)?;
        draft.sign(&keys, output.file()).with_context(context)?;
        output.commit()?;
        bar.finish_and_clear();

        say(format_args!(
            "{}: {}",
            self.out.display(),
            signed_by(keys.len(), "key")
        ));
        Ok(())
    }
}
