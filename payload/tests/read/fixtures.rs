//! Payloads by the original generator, with images and keys.

use std::path::PathBuf;

use payload::{PublicKey, Trust};

/// A file of `fixtures/`, by its path there.
pub(crate) fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../fixtures")
        .join(name)
}

pub(crate) fn read(name: &str) -> Vec<u8> {
    std::fs::read(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// One of the original's files, decompressed when it is stored so.
pub(crate) fn original(name: &str) -> Vec<u8> {
    if path(&format!("crau-v1/{name}")).exists() {
        read(&format!("crau-v1/{name}"))
    } else {
        zstd::decode_all(&read(&format!("crau-v1/{name}.zst"))[..]).unwrap()
    }
}

pub(crate) fn public_key(name: &str) -> PublicKey {
    PublicKey::from_pem(&String::from_utf8(read(name)).unwrap()).unwrap()
}

/// Trusts the key that signed the original's payloads.
pub(crate) fn trust() -> Trust {
    Trust::new(vec![public_key("crau-v1/key.pub.pem")], 1).unwrap()
}

/// Trusts a key that did not sign them as version 2.
pub(crate) fn other_trust() -> Trust {
    Trust::new(vec![public_key("crau-v1/other-key.pub.pem")], 1).unwrap()
}
