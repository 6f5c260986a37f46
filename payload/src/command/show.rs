//! `payload show`: what a payload says about itself.

mod summary;
mod text;

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;

use summary::Summary;

/// Explain a payload: what it updates, how, how large that is, and who signed it.
///
/// Only the manifest and the lists of signatures are read; nothing is verified.
/// That is what `payload verify` is for.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  payload show update.payload
  payload show --json update.payload | jq -r '.parts[0].new.sha256'")]
pub(crate) struct Show {
    /// Print one JSON document instead of tables. Sizes are in bytes.
    #[arg(long)]
    json: bool,
    /// The payload.
    file: PathBuf,
}

impl Show {
    pub(crate) fn run(self) -> Result<()> {
        let summary =
            Summary::read(&self.file).with_context(|| format!("show {}", self.file.display()))?;
        let mut out = io::stdout().lock();
        if self.json {
            serde_json::to_writer_pretty(&mut out, &summary).map_err(io::Error::from)?;
            writeln!(out)?;
        } else {
            write!(out, "{}", text::of(&summary))?;
        }
        Ok(())
    }
}
