//! `payload generate`: an image becomes a payload.

mod delta;
mod facts;
mod full;
mod verity;

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use indicatif::HumanBytes;
use payload::Image;
use payload::make::Profile;
use payload::recompress::Encoders;

use super::named::NamedFile;
use crate::files::{self, Output};
use crate::keys;
use crate::talk::{say, signed_by};
use delta::Pair;
use facts::Facts;
use verity::Verity;

/// Make a payload out of an image.
///
/// The image may hold any filesystem; its size must be a multiple of 4096 bytes,
/// except with --verity, which fills up the last block with zeros.
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

  # A delta: machines that run the old image get what changed.
  payload generate --old usr-1.img --new usr-2.img --private-key release.pem --out d.payload

  # Format version 2, which tells what release it is and until when it is good.
  payload generate --new usr.img --board amd64-usr --release-version 4230.1.0 \\
      --expires $(date -d '+90 days' +%s) --private-key release.pem --out update.payload

  # With a further partition that each slot has of its own.
  payload generate --new usr.img --partition oem=oem.img --private-key release.pem --out u.payload

  # With a dm-verity tree, which machines build themselves. usrhash=HEX on stdout belongs on
  # the kernel's command line.
  payload generate --new usr.img --verity --kernel vmlinuz --private-key release.pem --out u.payload

Clients of the original (CoreOS, Flatcar) know format version 1 and RSA only and look at the
first RSA signature.")]
pub(crate) struct Generate {
    /// Image of the new system, a file or a block device.
    #[arg(long, value_name = "IMG")]
    new: PathBuf,
    /// Kernel that belongs to it; may have any size.
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Image of the system to update from: make a delta, which updates that one alone.
    #[arg(long, value_name = "IMG")]
    old: Option<PathBuf>,
    /// Kernel of the system to update from.
    #[arg(long, value_name = "FILE", requires = "old", requires = "kernel")]
    old_kernel: Option<PathBuf>,
    /// Image of a further partition, which machines install where their PARTITIONS setting
    /// says. Give it again for more partitions.
    #[arg(long, value_name = "NAME=FILE", value_parser = NamedFile::parse)]
    partition: Vec<NamedFile>,
    /// The same of the system to update from.
    #[arg(long, value_name = "NAME=FILE", value_parser = NamedFile::parse, requires = "old")]
    old_partition: Vec<NamedFile>,
    /// Folder of further compression libraries (libzstd*.so*, liblz4*.so*) that may have
    /// made the compressed blocks of the images. Machines need the same ones.
    #[arg(long, value_name = "DIR", default_value = Encoders::DIRECTORY)]
    encoders: PathBuf,
    /// Format of the payload: v1 unless --old, --partition, verity or a fact
    /// about the release asks for v2.
    #[arg(long, value_enum)]
    format: Option<Format>,
    #[command(flatten)]
    facts: Facts,
    #[command(flatten)]
    verity: Verity,
    /// RSA or Ed25519 key to sign with, unencrypted PEM. Give it again for more keys.
    #[arg(long, value_name = "PEM")]
    private_key: Vec<PathBuf>,
    /// The payload. Appears only when it is complete; replaces an older one.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Version 1, for clients of CoreOS and Flatcar too.
    V1,
    /// Version 2 with Zstandard: smaller, and decompressed many times faster.
    V2,
    /// Version 2 that other readers of Android's format understand.
    V2Aosp,
}

impl Generate {
    pub(crate) fn run(self) -> Result<()> {
        let profile = self.profile()?;
        NamedFile::check_distinct(&self.partition, "--partition")?;
        NamedFile::check_distinct(&self.old_partition, "--old-partition")?;
        let release = match profile {
            Profile::V1 => None,
            Profile::V2 | Profile::V2Aosp => Some(self.facts.release()?),
        };
        let keys = keys::private(&self.private_key)?;
        let (image, _) = files::open(&self.new)?;
        let kernel = open(self.kernel.as_deref())?;
        let named = open_all(&self.partition)?;
        files::check_replaceable(&self.out, self.inputs())?;
        if let Some(name) = NamedFile::without(&self.old_partition, &self.partition) {
            bail!("--old-partition {name}=... needs --partition {name}=... for the new one");
        }
        let old = open(self.old.as_deref())?;
        let old_kernel = open(self.old_kernel.as_deref())?;
        let old_named = open_all(&self.old_partition)?;
        let scratch = files::scratch_beside(&self.out)?;

        let context = || format!("make a payload of {}", self.new.display());
        let verity = self
            .verity
            .prepare(&image, &self.out)
            .with_context(context)?;
        let image: &dyn Image = match &verity.appended {
            Some(appended) => appended,
            None => &image,
        };
        let named = named.iter().map(|(name, file)| (*name, file));
        let beside = kernel.iter().chain(named.clone().map(|(_, file)| file));
        let total = beside.fold(image.len(), |total, file| total.saturating_add(file.len()));
        let draft = match &old {
            Some(old) => {
                let pair = |old, new| Pair { old, new };
                let named = named.map(|(name, new)| {
                    let old = old_named.iter().find(|(other, _)| *other == name);
                    (name, pair(old.map(|(_, old)| old), new))
                });
                delta::draft(
                    &pair(Some(old), image),
                    kernel
                        .as_ref()
                        .map(|new| pair(old_kernel.as_ref(), new))
                        .as_ref(),
                    &named.collect::<Vec<_>>(),
                    profile,
                    &Encoders::available(&self.encoders),
                    scratch,
                )
            }
            None => {
                let named: Vec<_> = named.collect();
                full::draft(image, kernel.as_ref(), &named, profile, scratch).map_err(Into::into)
            }
        };
        let mut draft = draft.with_context(context)?;
        verity.put_into(&mut draft).with_context(context)?;
        if let Some(mut release) = release {
            release.verity_root_hash = verity.root_hash;
            draft.set_release(release).with_context(context)?;
        }
        let mut output = Output::create(&self.out, self.inputs())?;
        let written = draft.sign(&keys, output.file()).with_context(context)?;
        output.commit()?;

        verity.print()?;
        say(format_args!(
            "{}: {} from {}, {}",
            self.out.display(),
            HumanBytes(written.size),
            HumanBytes(total),
            signed_by(keys.len(), "key"),
        ));
        Ok(())
    }

    /// All files that are read.
    fn inputs(&self) -> impl Iterator<Item = &PathBuf> {
        let named = self.partition.iter().chain(&self.old_partition);
        [&self.new]
            .into_iter()
            .chain(
                [&self.kernel, &self.old, &self.old_kernel]
                    .into_iter()
                    .flatten(),
            )
            .chain(named.map(|named| &named.path))
            .chain(&self.private_key)
    }

    fn profile(&self) -> Result<Profile> {
        let old = self.old.as_ref().map(|_| "--old");
        let partition = self.partition.first().map(|_| "--partition");
        let needs_version_2 = old
            .or(partition)
            .or(self.verity.first())
            .or(self.facts.first());
        Ok(match (self.format, needs_version_2) {
            (Some(Format::V1), Some(option)) => {
                bail!("{option} needs format version 2; leave out --format v1")
            }
            (Some(Format::V1) | None, None) => Profile::V1,
            (Some(Format::V2), _) | (None, Some(_)) => Profile::V2,
            (Some(Format::V2Aosp), _) => Profile::V2Aosp,
        })
    }
}

fn open(path: Option<&Path>) -> Result<Option<File>> {
    path.map(|path| Ok(files::open(path)?.0)).transpose()
}

/// Each with its name.
fn open_all(files: &[NamedFile]) -> Result<Vec<(&str, File)>> {
    let opened = files
        .iter()
        .map(|NamedFile { name, path }| Ok((&**name, files::open(path)?.0)));
    opened.collect()
}
