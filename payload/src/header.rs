//! The 20 bytes that open a payload.
//!
//! ```text
//! 0        4                    12                   20
//! | "CrAU" | version u64 BE = 1 | manifest u64 BE    | manifest ...
//! ```

use crate::error::PayloadError;

/// The fixed header of a CrAU version 1 payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Bytes of the manifest that follows.
    pub(crate) manifest_size: u64,
}

impl Header {
    pub(crate) const MAGIC: [u8; 4] = *b"CrAU";
    pub(crate) const VERSION: u64 = 1;
    pub(crate) const SIZE: usize = 20;

    /// Refuses a wrong magic as soon as its first wrong byte is there.
    pub(crate) fn check_magic(start: &[u8]) -> Result<(), PayloadError> {
        let found = &start[..start.len().min(Self::MAGIC.len())];
        if Self::MAGIC.starts_with(found) {
            Ok(())
        } else {
            Err(PayloadError::BadMagic {
                found: found.to_vec(),
            })
        }
    }

    /// Reads the header; the caller checks `manifest_size` against its ceiling.
    pub(crate) fn parse(bytes: &[u8; Self::SIZE]) -> Result<Self, PayloadError> {
        Self::check_magic(bytes)?;
        let [version, manifest_size] = [4, 12].map(|at| {
            let mut field = [0; 8];
            field.copy_from_slice(&bytes[at..at + 8]);
            u64::from_be_bytes(field)
        });
        if version != Self::VERSION {
            return Err(PayloadError::UnsupportedVersion { version });
        }
        Ok(Self { manifest_size })
    }

    /// The header as it stands in the file.
    pub(crate) fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[..4].copy_from_slice(&Self::MAGIC);
        bytes[4..12].copy_from_slice(&Self::VERSION.to_be_bytes());
        bytes[12..].copy_from_slice(&self.manifest_size.to_be_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_the_round_trip() {
        let header = Header { manifest_size: 652 };
        assert_eq!(Header::parse(&header.to_bytes()).unwrap(), header);
    }

    #[test]
    fn a_wrong_magic_is_refused_at_its_first_wrong_byte() {
        assert!(Header::check_magic(b"").is_ok());
        assert!(Header::check_magic(b"Cr").is_ok());
        let refused = Header::check_magic(b"<").unwrap_err();
        assert_eq!(
            refused.to_string(),
            "not an update payload: it begins with \"<\", not \"CrAU\""
        );
    }

    #[test]
    fn another_format_version_is_refused() {
        let mut bytes = Header { manifest_size: 1 }.to_bytes();
        bytes[11] = 2;
        assert!(matches!(
            Header::parse(&bytes),
            Err(PayloadError::UnsupportedVersion { version: 2 })
        ));
    }
}
