//! The files with the public keys that payloads are checked with.
//!
//! This module reads bytes; whether they are keys, the payload crate says. Whatever is wrong with a
//! file is an error and never a smaller set of keys, and an empty set is an error as well.

use std::fs;
use std::io;

use super::{ConfigError, PublicKeys, Settings};
use crate::root::Root;

/// Where the distribution puts its key.
pub(super) const DEFAULT_KEY: &str = "/usr/share/update_engine/update-payload-key.pub.pem";
/// Where an operator adds keys.
pub(super) const KEY_FOLDER: &str = "/etc/update-engine/keys.d";
/// The largest sensible PEM file is an RSA key of some hundred bytes.
const KEY_LIMIT: u64 = 64 << 10;

/// One public key file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyFile {
    /// Path on the machine.
    pub path: String,
    /// Its bytes, not looked at.
    pub pem: Vec<u8>,
}

impl Settings {
    /// Reads the public key files that these settings name: at least one.
    ///
    /// Fails when a listed file is missing, when any file cannot be read, and when there is no file
    /// at all.
    pub fn key_files(&self, root: &Root) -> Result<Vec<KeyFile>, ConfigError> {
        let mut files = Vec::new();
        match &self.public_keys {
            PublicKeys::Listed(paths) => {
                for path in paths {
                    files.push(
                        read(root, path)?
                            .ok_or_else(|| failed(path, io::ErrorKind::NotFound.into()))?,
                    );
                }
            }
            PublicKeys::Installed => {
                files.extend(read(root, DEFAULT_KEY)?);
                for path in folder(root).map_err(|source| failed(KEY_FOLDER, source))? {
                    files.extend(read(root, &path)?);
                }
            }
        }
        if files.is_empty() {
            Err(ConfigError::NoPublicKey)
        } else {
            Ok(files)
        }
    }
}

/// The `*.pem` files of the key folder in order of name, as paths on the machine.
fn folder(root: &Root) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(root.path(KEY_FOLDER)?) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".pem") && !name.starts_with('.') {
            paths.push(format!("{KEY_FOLDER}/{name}"));
        }
    }
    paths.sort();
    Ok(paths)
}

fn read(root: &Root, path: &str) -> Result<Option<KeyFile>, ConfigError> {
    let content = root
        .read(path, KEY_LIMIT)
        .map_err(|source| failed(path, source))?;
    Ok(content.map(|pem| KeyFile {
        path: path.to_owned(),
        pem,
    }))
}

fn failed(path: &str, source: io::Error) -> ConfigError {
    ConfigError::PublicKey {
        file: path.to_owned(),
        source,
    }
}
