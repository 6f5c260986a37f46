//! `payload encoders`: which compressed blocks this machine can make again.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use payload::recompress::Encoders as AtHand;

/// List the compression libraries at hand, one per line.
///
/// A delta of compressed images names the libraries, with their versions, that make
/// the changed blocks again; a machine needs the same ones. Beside those built in,
/// the system's libzstd and liblz4 are used, and what lies in the folder.
#[derive(Debug, Args)]
pub(crate) struct Encoders {
    /// Folder of further libraries, libzstd*.so* and liblz4*.so*.
    #[arg(long, value_name = "DIR", default_value = AtHand::DIRECTORY)]
    encoders: PathBuf,
}

impl Encoders {
    pub(crate) fn run(self) -> Result<()> {
        use std::io::Write;

        let mut out = std::io::stdout().lock();
        for name in AtHand::available(&self.encoders).names() {
            writeln!(out, "{name}")?;
        }
        Ok(())
    }
}
