//! `payload verify`: is this payload whole, and signed by whom we trust?

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use indicatif::HumanBytes;
use payload::{Trust, Verified, verify_payload};

use crate::files;
use crate::keys;
use crate::talk::{progress, say, signed_by};

/// Check that a payload is complete and signed by a trusted key.
///
/// Every operation's data must have its hash, nothing may be missing or follow,
/// and enough trusted keys must have signed. Exit status 0 means all of that.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  payload verify --public-key release.pub.pem update.payload

  # Both keys must have signed.
  payload verify --public-key a.pub.pem --public-key b.pub.pem --threshold 2 update.payload")]
pub(crate) struct Verify {
    #[command(flatten)]
    trust: TrustArgs,
    /// The payload.
    file: PathBuf,
}

/// Whom to trust, for every command that checks signatures.
#[derive(Debug, Args)]
pub(crate) struct TrustArgs {
    /// Trusted RSA or Ed25519 key, PEM. Give it again for more keys.
    #[arg(long, value_name = "PEM", required_unless_present = "allow_unsigned")]
    public_key: Vec<PathBuf>,
    /// How many of the trusted keys must have signed.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        conflicts_with = "allow_unsigned"
    )]
    threshold: usize,
    /// Accept a payload without any signature. One that is signed must still be
    /// signed by a trusted key, if keys are given.
    #[arg(long)]
    allow_unsigned: bool,
}

impl TrustArgs {
    pub(crate) fn load(&self) -> Result<Trust> {
        let keys = keys::public(&self.public_key)?;
        if self.allow_unsigned {
            Ok(Trust::allow_unsigned(keys))
        } else {
            Ok(Trust::new(keys, self.threshold)?)
        }
    }
}

impl Verify {
    pub(crate) fn run(self) -> Result<()> {
        let trust = self.trust.load()?;
        let (mut file, size) = files::open(&self.file)?;
        let bar = progress("verify", size);
        let verified = verify_payload(&mut file, &trust, &mut |done| bar.set_position(done));
        bar.finish_and_clear();
        let verified = verified.with_context(|| self.file.display().to_string())?;
        say(format_args!(
            "{}: good, {}, {}",
            self.file.display(),
            HumanBytes(verified.size()),
            signers(&verified),
        ));
        Ok(())
    }
}

/// Who vouches for the payload, in words.
pub(crate) fn signers(verified: &Verified) -> String {
    match verified.signers() {
        0 if verified.manifest().signatures.is_some() => "signatures not checked".to_owned(),
        count => signed_by(count, "trusted key"),
    }
}
