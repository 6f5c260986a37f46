//! `payload generate`: an image becomes a full payload.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use indicatif::HumanBytes;
use payload::make::{self, Source};
use payload::pipeline;

use crate::files::{self, Output};
use crate::keys;
use crate::talk::{progress, say, signed_by};

/// Make a full payload out of an image.
///
/// The image may hold any filesystem; its size must be a multiple of 4096 bytes.
/// All cores compress. The same input gives the same file, byte for byte. Beside
/// OUT, scratch space as large as the payload is needed for a while.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  payload generate --new usr.img --kernel vmlinuz --private-key release.pem --out update.payload

  # Two keys: machines may trust either, or demand both.
  payload generate --new usr.img --private-key rsa.pem --private-key ed25519.pem --out u.payload

  # The key is elsewhere: make it unsigned, see `payload help hash`.
  payload generate --new usr.img --out unsigned.payload

Clients of the original (CoreOS, Flatcar) know RSA only and look at the first RSA signature.")]
pub(crate) struct Generate {
    /// Image of the new system, a file or a block device.
    #[arg(long, value_name = "IMG")]
    new: PathBuf,
    /// Kernel that belongs to it; may have any size.
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// RSA or Ed25519 key to sign with, unencrypted PEM. Give it again for more keys.
    #[arg(long, value_name = "PEM")]
    private_key: Vec<PathBuf>,
    /// The payload. Appears only when it is complete; replaces an older one.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

impl Generate {
    pub(crate) fn run(self) -> Result<()> {
        let keys = keys::private(&self.private_key)?;
        let (image, image_size) = files::open(&self.new)?;
        let kernel = self.kernel.as_deref().map(files::open).transpose()?;
        let kernel_size = kernel.as_ref().map_or(0, |(_, size)| *size);
        files::check_replaceable(&self.out)?;
        let scratch = files::scratch_beside(&self.out)?;

        let total = image_size.saturating_add(kernel_size);
        let bar = progress("compress", total);
        let mut image = bar.wrap_read(image);
        let mut kernel = kernel.map(|(file, size)| (bar.wrap_read(file), size));
        let draft = make::full(
            Source {
                reader: &mut image,
                size: image_size,
            },
            kernel.as_mut().map(|(reader, size)| Source {
                reader,
                size: *size,
            }),
            make::Profile::V1,
            scratch,
            pipeline::all_cores(),
        );
        bar.finish_and_clear();
        let context = || format!("make a payload of {}", self.new.display());
        let mut draft = draft.with_context(context)?;
        let mut output = Output::create(&self.out)?;
        let written = draft.sign(&keys, output.file()).with_context(context)?;
        output.commit()?;

        say(format_args!(
            "{}: {} from {}, {}",
            self.out.display(),
            HumanBytes(written.size),
            HumanBytes(total),
            signed_by(keys.len(), "key"),
        ));
        Ok(())
    }
}
