//! `payload generate --verity`: the hash tree by which the new system's kernel checks
//! its image.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use clap::Args;
use payload::make::Draft;
use payload::make::verity::{self, WithVerity};

use crate::files;
use crate::talk::say;

/// What is told about dm-verity.
#[derive(Debug, Args)]
#[command(next_help_heading = "Verity (format version 2)")]
pub(super) struct Verity {
    /// Append a dm-verity superblock and hash tree to the image. Machines build the tree
    /// themselves; its root hash is signed as a fact about the release and printed as
    /// usrhash=HEX.
    #[arg(long)]
    verity: bool,
    /// Salt of the tree, up to 256 bytes; follows from the image otherwise.
    #[arg(long, value_name = "HEX", value_parser = bytes, requires = "verity")]
    verity_salt: Option<Bytes>,
    /// Root hash of the tree that the image carries already. It is checked where the
    /// image has a superblock right behind the data that this speaks of.
    #[arg(long, value_name = "HEX", value_parser = root_hash, conflicts_with = "verity")]
    verity_root_hash: Option<[u8; 32]>,
    /// Where the superblock is, when it is elsewhere.
    #[arg(long, value_name = "BYTES", requires = "verity_root_hash")]
    verity_hash_offset: Option<u64>,
}

/// The argument parser takes a plain `Vec` for an option that may be repeated.
type Bytes = std::sync::Arc<[u8]>;

/// What came of it.
#[derive(Default)]
pub(super) struct Prepared<'a> {
    /// The image with what is appended, when something is.
    pub(super) appended: Option<WithVerity<'a>>,
    /// By which the new system checks its image.
    pub(super) root_hash: Option<[u8; 32]>,
}

impl Verity {
    /// The first option that was given, if any was.
    pub(super) fn first(&self) -> Option<&'static str> {
        if self.verity {
            return Some("--verity");
        }
        self.verity_root_hash.map(|_| "--verity-root-hash")
    }

    /// Hashes `image` as far as that was asked for. The tree lies beside `out` meanwhile.
    pub(super) fn prepare<'a>(&self, image: &'a File, out: &Path) -> Result<Prepared<'a>> {
        if self.verity {
            let salt = self.verity_salt.as_deref().map(<[u8]>::to_vec);
            let scratch = files::scratch_beside(out)?;
            let appended = WithVerity::append(image, salt, &scratch)?;
            return Ok(Prepared {
                root_hash: Some(appended.root_hash()),
                appended: Some(appended),
            });
        }
        if let Some(root_hash) = self.verity_root_hash {
            self.check(image, root_hash)?;
        }
        Ok(Prepared {
            appended: None,
            root_hash: self.verity_root_hash,
        })
    }

    fn check(&self, image: &File, root_hash: [u8; 32]) -> Result<()> {
        let offset = match self.verity_hash_offset {
            Some(offset) => Some(offset),
            None => verity::find(image)?,
        };
        let Some(offset) = offset else {
            say(format_args!(
                "payload: --verity-root-hash is taken on trust: the image has no verity superblock \
                 right behind its data; tell where it is with --verity-hash-offset"
            ));
            return Ok(());
        };
        let found = verity::check(image, offset)?;
        if found != root_hash {
            bail!(
                "the hash tree at offset {offset} has the root hash {}, not {} as \
                 --verity-root-hash says",
                hex::encode(found),
                hex::encode(root_hash)
            );
        }
        Ok(())
    }
}

impl Prepared<'_> {
    /// Lets machines build the tree that was appended.
    pub(super) fn put_into(&self, draft: &mut Draft<File>) -> Result<()> {
        if let Some(appended) = &self.appended {
            draft.set_hash_tree(appended.tree(), appended.info())?;
        }
        Ok(())
    }

    /// Tells the builder of the kernel's command line what belongs there.
    pub(super) fn print(&self) -> Result<()> {
        if let Some(root_hash) = self.root_hash {
            let mut out = io::stdout().lock();
            writeln!(out, "usrhash={}", hex::encode(root_hash)).context("print the root hash")?;
        }
        if let Some(appended) = &self.appended {
            let tree = appended.tree();
            say(format_args!(
                "payload: {} blocks of data, verity superblock at byte {}",
                tree.data_blocks(),
                tree.data().end
            ));
        }
        Ok(())
    }
}

fn bytes(text: &str) -> Result<Bytes, String> {
    let decoded = hex::decode(text);
    decoded
        .map(Bytes::from)
        .map_err(|error| format!("give pairs of hexadecimal digits: {error}"))
}

fn root_hash(text: &str) -> Result<[u8; 32], String> {
    let mut hash = [0; 32];
    match hex::decode_to_slice(text, &mut hash) {
        Ok(()) => Ok(hash),
        Err(error) => Err(format!(
            "give the 64 hexadecimal digits of a SHA-256: {error}"
        )),
    }
}
