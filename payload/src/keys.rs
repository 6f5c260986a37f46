//! Keys out of PEM files.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use payload::PublicKey;
use payload::make::PrivateKey;

/// Far above any PEM key; what is longer is not read.
const MAX_PEM_SIZE: u64 = 64 << 10;

/// Reads private keys, in this order.
pub(crate) fn private(paths: &[PathBuf]) -> Result<Vec<PrivateKey>> {
    let keys = paths.iter().map(|path| {
        PrivateKey::from_pem(&read(path)?).with_context(|| format!("key {}", path.display()))
    });
    keys.collect()
}

/// Reads public keys, in this order.
pub(crate) fn public(paths: &[PathBuf]) -> Result<Vec<PublicKey>> {
    let keys = paths.iter().map(|path| {
        PublicKey::from_pem(&read(path)?).with_context(|| format!("key {}", path.display()))
    });
    keys.collect()
}

fn read(path: &Path) -> Result<String> {
    let mut pem = String::new();
    File::open(path)
        .and_then(|file| file.take(MAX_PEM_SIZE).read_to_string(&mut pem))
        .with_context(|| format!("read key {}", path.display()))?;
    Ok(pem)
}
