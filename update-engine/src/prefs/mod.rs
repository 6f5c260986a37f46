//! State that outlives the daemon: one small value per key, kept through power cuts.
//!
//! [`StateStore`] is the seam. [`Prefs`] is the real one: a file per key under `prefs/`, with the
//! original's names, so that its state is found and programs of an image that read
//! `previous-version` and `full-response` keep working. Nothing here knows what a value means.

mod folder;
#[cfg(test)]
pub mod testing;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::SystemTime;

pub use folder::Prefs;

/// The largest value that is read or written, in bytes. The largest real one is the server's last
/// answer.
pub const MAX_VALUE: u64 = 4 << 20;

/// The first app version that this machine ever reported, written once.
pub const ALEPH_VERSION: Key = Key::new("aleph-version");
/// The running version at the moment when an update completed; emptied by the first update check
/// of a system that has proved healthy.
pub const PREVIOUS_VERSION: Key = Key::new("previous-version");
/// Body of the server's last answer to an update check. Post-install programs take it as fresh when
/// its file is not older than that of [`PREVIOUS_VERSION`].
pub const FULL_RESPONSE: Key = Key::new("full-response");
/// The original's fingerprint of the last offer.
pub const CURRENT_RESPONSE_SIGNATURE: Key = Key::new("current-response-signature");
/// Which of the offer's URLs is in use.
pub const CURRENT_URL_INDEX: Key = Key::new("current-url-index");
/// Failures of that URL.
pub const CURRENT_URL_FAILURE_COUNT: Key = Key::new("current-url-failure-count");
/// How often all URLs of the offer were tried.
pub const PAYLOAD_ATTEMPT_NUMBER: Key = Key::new("payload-attempt-number");
/// Unix seconds before which the offer is not tried again, 0 for none.
pub const BACKOFF_EXPIRY_TIME: Key = Key::new("backoff-expiry-time");
/// Failures of deltas to one version; two of them ask for a full payload.
pub const DELTA_UPDATE_FAILURES: Key = Key::new("delta-update-failures");

/// Name of a value: `[A-Za-z0-9_-]+`, so that it is a file name and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(&'static str);

impl Key {
    /// The key of this name. In a constant, a name with any other character does not compile.
    ///
    /// # Panics
    /// When `name` is no key; use it in constants only.
    pub const fn new(name: &'static str) -> Self {
        let bytes = name.as_bytes();
        assert!(
            !bytes.is_empty() && bytes.len() <= 64,
            "a key has 1 to 64 characters"
        );
        let mut index = 0;
        while index < bytes.len() {
            let allowed =
                matches!(bytes[index], b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-');
            assert!(allowed, "a key is made of letters, digits, '_' and '-'");
            index += 1;
        }
        Self(name)
    }

    /// The name.
    pub const fn name(self) -> &'static str {
        self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// Keeps values by key through crashes and power cuts.
///
/// The contract, which every implementation passes as a test:
/// - When [`StateStore::commit`] or [`StateStore::remove`] returns `Ok`, the change survives a
///   power cut.
/// - When it returns an error or the machine dies inside, the key has its old or its new value,
///   whole.
/// - Every commit makes the value younger, also when its bytes do not change.
pub trait StateStore: Send + Sync {
    /// The value of `key`, `None` when it has none.
    ///
    /// Fails on a value of more than [`MAX_VALUE`] bytes and on anything in its place that is no
    /// value.
    fn load(&self, key: Key) -> Result<Option<Vec<u8>>, StoreError>;

    /// Gives `key` this value, of at most [`MAX_VALUE`] bytes.
    fn commit(&self, key: Key, value: &[u8]) -> Result<(), StoreError>;

    /// Takes the value of `key` away. No value is no error.
    fn remove(&self, key: Key) -> Result<(), StoreError>;

    /// When the value of `key` was committed, `None` when it has none.
    fn committed_at(&self, key: Key) -> Result<Option<SystemTime>, StoreError>;

    /// The value as text.
    fn load_text(&self, key: Key) -> Result<Option<String>, StoreError> {
        let Some(value) = self.load(key)? else {
            return Ok(None);
        };
        let text = String::from_utf8(value).map_err(|_| StoreError::Garbage {
            key,
            expected: "text",
        })?;
        Ok(Some(text))
    }

    /// The value as a whole number: decimal text, white space around it tolerated, as the original
    /// reads it.
    fn load_integer(&self, key: Key) -> Result<Option<i64>, StoreError> {
        let Some(text) = self.load_text(key)? else {
            return Ok(None);
        };
        let number = text.trim().parse().map_err(|_| StoreError::Garbage {
            key,
            expected: "a whole number",
        })?;
        Ok(Some(number))
    }

    /// Commits a whole number as decimal text.
    fn commit_integer(&self, key: Key, value: i64) -> Result<(), StoreError> {
        self.commit(key, value.to_string().as_bytes())
    }

    /// The first version that this machine ever ran: `current` when none is kept yet, which is then
    /// kept.
    fn aleph_version(&self, current: &str) -> Result<String, StoreError> {
        if let Some(aleph) = self.load_text(ALEPH_VERSION)? {
            return Ok(aleph);
        }
        self.commit(ALEPH_VERSION, current.as_bytes())?;
        Ok(current.to_owned())
    }
}

/// A value that cannot be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The folder cannot be made or opened.
    #[error("cannot open the state folder {}", path.display())]
    Open {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file of a key cannot be read.
    #[error("cannot read the state {key} from {}", path.display())]
    Read {
        /// Which value.
        key: Key,
        /// Its file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file of a key cannot be replaced. The old value or the new one is there, whole.
    #[error("cannot keep the state {key} in {}", path.display())]
    Commit {
        /// Which value.
        key: Key,
        /// Its file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A value is longer than any value should be.
    #[error("the state {key} has more than {MAX_VALUE} bytes")]
    TooLarge {
        /// Which value.
        key: Key,
    },
    /// A value is not of the form that its reader needs.
    #[error("the state {key} is not {expected}")]
    Garbage {
        /// Which value.
        key: Key,
        /// The form.
        expected: &'static str,
    },
}

#[cfg(test)]
mod tests;
