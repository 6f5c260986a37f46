//! What the makers of a release say of it inside of its payload, where the
//! signatures cover it. Our own part of the manifest; other readers skip it.

use crate::wire;

/// Facts about a release. All of them may be absent.
///
/// They are read and kept here; whether a machine may take the release is decided
/// by whoever knows the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Release {
    /// The application that it updates, as in update requests.
    pub app_id: Option<String>,
    /// The board that it runs on, such as `amd64-usr`.
    pub board: Option<String>,
    /// The version of the new system.
    pub version: Option<String>,
    /// The oldest version that may be updated to this one.
    pub min_source_version: Option<String>,
    /// Counts up when older releases must not be installed any more.
    pub security_epoch: Option<u64>,
    /// When it was made, in seconds since 1970.
    pub created: Option<u64>,
    /// After which moment it must not be installed, in seconds since 1970.
    pub expires: Option<u64>,
    /// Root hash of the dm-verity tree (SHA-256) over the partition's new image.
    pub verity_root_hash: Option<[u8; 32]>,
}

impl Release {
    /// Longest text in bytes.
    const MOST_BYTES: usize = 256;

    /// Whether nothing is said.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Refuses what is too long to be one of these facts. Returns the field and why.
    pub(crate) fn from_wire(message: &wire::Release) -> Result<Self, (&'static str, String)> {
        let lengths = [
            ("app_id", message.app_id().len()),
            ("board", message.board().len()),
            ("version", message.version().len()),
            ("min_source_version", message.min_source_version().len()),
        ];
        for (field, length) in lengths {
            if length > Self::MOST_BYTES {
                let limit = Self::MOST_BYTES;
                return Err((field, format!("{length} bytes, the limit is {limit}")));
            }
        }
        let message = message.clone();
        let verity_root_hash = message
            .verity_root_hash
            .map(|hash| {
                <[u8; 32]>::try_from(&hash[..]).map_err(|_| {
                    let reason = format!("a SHA-256 has 32 bytes, not {}", hash.len());
                    ("verity_root_hash", reason)
                })
            })
            .transpose()?;
        Ok(Self {
            app_id: message.app_id,
            board: message.board,
            version: message.version,
            min_source_version: message.min_source_version,
            security_epoch: message.security_epoch,
            created: message.created,
            expires: message.expires,
            verity_root_hash,
        })
    }

    pub(crate) fn into_wire(self) -> wire::Release {
        wire::Release {
            app_id: self.app_id,
            board: self.board,
            version: self.version,
            min_source_version: self.min_source_version,
            security_epoch: self.security_epoch,
            created: self.created,
            expires: self.expires,
            verity_root_hash: self.verity_root_hash.map(Into::into),
        }
    }
}
