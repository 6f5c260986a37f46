//! GUIDs in the byte order of the partition table.

use core::fmt;
use core::str::FromStr;

/// Partition type of a system slot (USR-A, USR-B), as CoreOS and Flatcar use it on every
/// architecture.
pub const USR_TYPE: Guid = Guid::from_fields(
    0x5dfb_f5f4,
    0x2848,
    0x4bac,
    [0xaa, 0x5e, 0x0d, 0x9a, 0x20, 0xb7, 0x45, 0xa6],
);

/// Type of the EFI system partition (UEFI 2.10, §5.3.3).
pub(crate) const EFI_SYSTEM_TYPE: Guid = Guid::from_fields(
    0xc12a_7328,
    0xf81f,
    0x11d2,
    [0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b],
);

/// A GUID as it lies on the disk.
///
/// The first three fields are little-endian there while the text shows them big-endian
/// (UEFI 2.10, appendix A):
///
/// ```text
/// text   5dfbf5f4-2848-4bac-aa5e-0d9a20b745a6
/// bytes  f4 f5 fb 5d  48 28  ac 4b  aa 5e  0d 9a 20 b7 45 a6
/// ```
///
/// `Display` is lower case without braces. `FromStr` takes either case, with or without
/// braces.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Guid([u8; 16]);

impl Guid {
    /// All zero: as a partition type it says that the entry is unused.
    pub const NIL: Guid = Guid([0; 16]);

    /// The GUID from its fields in the order of the text form.
    pub const fn from_fields(a: u32, b: u16, c: u16, d: [u8; 8]) -> Guid {
        let a = a.to_le_bytes();
        let b = b.to_le_bytes();
        let c = c.to_le_bytes();
        Guid([
            a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], d[0], d[1], d[2], d[3], d[4], d[5],
            d[6], d[7],
        ])
    }

    /// The GUID from its bytes on the disk.
    pub const fn from_bytes(bytes: [u8; 16]) -> Guid {
        Guid(bytes)
    }

    /// The bytes on the disk.
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0
    }

    /// Whether all bits are zero.
    pub fn is_nil(self) -> bool {
        self == Guid::NIL
    }
}

/// Where each byte of the text form, read as hexadecimal pairs, lies on the disk.
const TEXT_ORDER: [usize; 16] = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, index) in TEXT_ORDER.into_iter().enumerate() {
            if matches!(position, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{:02x}", self.0[index])?;
        }
        Ok(())
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Guid({self})")
    }
}

/// The text is no GUID of the form `5dfbf5f4-2848-4bac-aa5e-0d9a20b745a6`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a guid of the form xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx")]
pub struct ParseGuidError;

impl FromStr for Guid {
    type Err = ParseGuidError;

    fn from_str(text: &str) -> Result<Guid, ParseGuidError> {
        let text = match text.strip_prefix('{') {
            Some(rest) => rest.strip_suffix('}').ok_or(ParseGuidError)?,
            None => text,
        };
        let text: &[u8; 36] = text.as_bytes().try_into().map_err(|_| ParseGuidError)?;
        let mut digits = [0; 32];
        let mut filled = 0;
        for (position, &byte) in text.iter().enumerate() {
            match (position, byte) {
                (8 | 13 | 18 | 23, b'-') => {}
                (8 | 13 | 18 | 23, _) => return Err(ParseGuidError),
                _ => {
                    digits[filled] = hex_digit(byte)?;
                    filled += 1;
                }
            }
        }
        let mut bytes = [0; 16];
        for (pair, index) in digits.chunks_exact(2).zip(TEXT_ORDER) {
            bytes[index] = (pair[0] << 4) | pair[1];
        }
        Ok(Guid(bytes))
    }
}

fn hex_digit(byte: u8) -> Result<u8, ParseGuidError> {
    match byte {
        b'0'..=b'9' => Ok(byte - b'0'),
        b'a'..=b'f' => Ok(byte - b'a' + 10),
        b'A'..=b'F' => Ok(byte - b'A' + 10),
        _ => Err(ParseGuidError),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn text_and_disk_order_differ_in_the_first_three_fields() {
        assert_eq!(
            USR_TYPE.to_bytes(),
            [
                0xf4, 0xf5, 0xfb, 0x5d, 0x48, 0x28, 0xac, 0x4b, 0xaa, 0x5e, 0x0d, 0x9a, 0x20, 0xb7,
                0x45, 0xa6
            ]
        );
        assert_eq!(USR_TYPE.to_string(), "5dfbf5f4-2848-4bac-aa5e-0d9a20b745a6");
    }

    #[test]
    fn text_is_read_in_any_case_with_or_without_braces() {
        for text in [
            "5dfbf5f4-2848-4bac-aa5e-0d9a20b745a6",
            "5DFBF5F4-2848-4BAC-AA5E-0D9A20B745A6",
            "{5dFBf5f4-2848-4bac-aa5e-0d9A20b745a6}",
        ] {
            assert_eq!(text.parse(), Ok(USR_TYPE), "{text}");
        }
    }

    #[test]
    fn text_of_another_shape_is_refused() {
        for text in [
            "",
            "{}",
            "5dfbf5f4",
            "5dfbf5f428484bacaa5e0d9a20b745a6",
            "5dfbf5f4-2848-4bac-aa5e-0d9a20b745a",
            "5dfbf5f4-2848-4bac-aa5e-0d9a20b745a67",
            "5dfbf5f4-2848-4bac-aa5e-0d9a20b745ag",
            "5dfbf5f4-2848-4bac-aa5e+0d9a20b745a6",
            "{5dfbf5f4-2848-4bac-aa5e-0d9a20b745a6",
            "5dfbf5f4-2848-4bac-aa5e-0d9a20b745a6}",
            "5dfbf5f4-2848-4bac-aa5e-0d9a20b745é",
        ] {
            assert_eq!(text.parse::<Guid>(), Err(ParseGuidError), "{text}");
        }
    }
}
