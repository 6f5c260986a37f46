//! The one key that opens the GPT flip.

use payload::Verified;

/// Evidence that the target slot holds the image of a payload that this machine
/// trusts: the payload's signature and hashes were checked, the target was read
/// back from the medium and is equal, and the post-install program agreed.
///
/// There is no way to make one outside [`crate::install`], so nothing else can
/// make a slot active.
#[derive(Debug)]
pub struct Proof {
    version: String,
    payload_sha256: [u8; 32],
    image_sha256: [u8; 32],
    security_epoch: Option<u64>,
}

/// Evidence that the target, read back from the medium, equals the manifest.
#[derive(Debug)]
pub(super) struct ReadBack(());

impl ReadBack {
    pub(super) fn after_comparison() -> Self {
        Self(())
    }
}

/// Evidence that the post-install program ended well or that there is none.
#[derive(Debug)]
pub(super) struct PostInstalled(());

impl PostInstalled {
    pub(super) fn after_success() -> Self {
        Self(())
    }
}

/// The release's security epoch, if it has one.
pub(super) fn security_epoch(verified: &Verified) -> Option<u64> {
    let release = verified.manifest().release.as_ref();
    release.and_then(|release| release.security_epoch)
}

impl Proof {
    /// The three pieces of evidence, consumed.
    pub(super) fn new(version: &str, verified: &Verified, _: ReadBack, _: PostInstalled) -> Self {
        Self {
            version: version.to_owned(),
            payload_sha256: *verified.sha256(),
            image_sha256: verified.manifest().partition.new.sha256,
            security_epoch: security_epoch(verified),
        }
    }

    /// Version that the slot now holds.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// SHA-256 of the image that the slot now holds.
    pub fn image_sha256(&self) -> [u8; 32] {
        self.image_sha256
    }

    /// The release's security epoch, if it has one.
    pub fn security_epoch(&self) -> Option<u64> {
        self.security_epoch
    }

    /// SHA-256 of the payload file that the slot was written from.
    pub fn payload_sha256(&self) -> [u8; 32] {
        self.payload_sha256
    }
}
