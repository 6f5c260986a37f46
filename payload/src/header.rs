//! The bytes that open a payload.
//!
//! ```text
//! 0        4                12               20
//! | "CrAU" | version u64 BE | manifest u64 BE | manifest ...                     version 1
//!
//! 0        4                12               20                  24
//! | "CrAU" | version u64 BE | manifest u64 BE | signature u32 BE  | manifest ...  version 2
//! ```

use crate::error::PayloadError;

/// The version of the format, which says how everything after it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Format {
    /// CoreOS and Flatcar: one partition and procedures beside it, deltas in place.
    V1,
    /// Android and ChromeOS: partitions by name, a signature of the manifest,
    /// deltas that read one image and write another.
    V2,
}

impl Format {
    /// The number in the header.
    #[must_use]
    pub fn number(self) -> u64 {
        match self {
            Format::V1 => 1,
            Format::V2 => 2,
        }
    }

    /// Bytes of the header.
    pub(crate) fn header_size(self) -> usize {
        match self {
            Format::V1 => 20,
            Format::V2 => 24,
        }
    }
}

/// The fixed header of a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) format: Format,
    /// Bytes of the manifest that follows.
    pub(crate) manifest_size: u64,
    /// Bytes of the signature that follows the manifest; 0 in version 1.
    pub(crate) metadata_signature_size: u32,
}

impl Header {
    pub(crate) const MAGIC: [u8; 4] = *b"CrAU";
    /// Bytes up to the end of the version.
    const PREFIX: usize = 12;

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

    /// Reads the header off the `start` of a payload; `None` when more bytes are
    /// needed. The caller checks both sizes against their ceilings.
    pub(crate) fn parse(start: &[u8]) -> Result<Option<Self>, PayloadError> {
        Self::check_magic(start)?;
        let Some(version) = u64_at(start, 4) else {
            return Ok(None);
        };
        let format = match version {
            1 => Format::V1,
            2 => Format::V2,
            _ => return Err(PayloadError::UnsupportedVersion { version }),
        };
        let Some(manifest_size) = u64_at(start, Self::PREFIX) else {
            return Ok(None);
        };
        let metadata_signature_size = match format {
            Format::V1 => Some(0),
            Format::V2 => start
                .get(20..)
                .and_then(|rest| rest.first_chunk())
                .map(|field| u32::from_be_bytes(*field)),
        };
        Ok(metadata_signature_size.map(|metadata_signature_size| Self {
            format,
            manifest_size,
            metadata_signature_size,
        }))
    }

    /// Bytes of the header itself.
    pub(crate) fn size(&self) -> usize {
        self.format.header_size()
    }

    /// The header as it stands in the file.
    pub(crate) fn to_bytes(self) -> Vec<u8> {
        let mut bytes = Self::MAGIC.to_vec();
        bytes.extend_from_slice(&self.format.number().to_be_bytes());
        bytes.extend_from_slice(&self.manifest_size.to_be_bytes());
        if self.format == Format::V2 {
            bytes.extend_from_slice(&self.metadata_signature_size.to_be_bytes());
        }
        bytes
    }
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let field = bytes.get(at..)?.first_chunk()?;
    Some(u64::from_be_bytes(*field))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADERS: [Header; 2] = [
        Header {
            format: Format::V1,
            manifest_size: 652,
            metadata_signature_size: 0,
        },
        Header {
            format: Format::V2,
            manifest_size: 70_000,
            metadata_signature_size: 264,
        },
    ];

    #[test]
    fn a_header_survives_the_round_trip_and_waits_for_its_last_byte() {
        for header in HEADERS {
            let bytes = header.to_bytes();
            assert_eq!(bytes.len(), header.size());
            assert_eq!(Header::parse(&bytes).unwrap(), Some(header));
            for length in 0..bytes.len() {
                assert_eq!(Header::parse(&bytes[..length]).unwrap(), None, "{length}");
            }
        }
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
    fn another_format_version_is_refused_before_its_sizes_are_read() {
        let mut bytes = HEADERS[0].to_bytes();
        bytes[11] = 3;
        assert!(matches!(
            Header::parse(&bytes[..12]),
            Err(PayloadError::UnsupportedVersion { version: 3 })
        ));
    }
}
