//! The root hash of the verity tree of a slot's system.
//!
//! It comes with the kernel, because whoever trusts the kernel then trusts the system:
//! the image build has put it into a gap of the kernel's header, or the updater has
//! written it from the signed manifest into a file beside the kernel.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use core::fmt;
use core::str;

/// Where an image build of Flatcar puts the digits into a kernel, in bytes from its
/// start; `None` on architectures where it does not.
const PLACE: Option<usize> = if cfg!(target_arch = "x86_64") {
    Some(0x40)
} else if cfg!(target_arch = "aarch64") {
    Some(0x200)
} else {
    None
};

/// 64 hexadecimal digits, in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootHash(String);

impl RootHash {
    /// Digits of a SHA-256.
    pub(super) const DIGITS: usize = 64;
    /// Bytes from the start of a kernel that the hash can lie in.
    pub const HEAD: usize = 0x200 + Self::DIGITS;
    /// Bytes to read of the file beside the kernel: more than the digits and the end of a
    /// line, so that what follows them is noticed.
    pub const MAX_FILE: usize = 128;

    /// The one hash of a slot, from the first [`RootHash::HEAD`] bytes of its kernel and
    /// the content of the file beside it. `None` when there is neither.
    ///
    /// An error, in words, when they contradict each other or the file holds something
    /// else: a slot of which it is unclear what it should hold must not start.
    pub fn of_slot(head: &[u8], file: Option<&[u8]>) -> Result<Option<Self>, String> {
        let baked = Self::baked_into(head);
        let written = file.map(Self::from_file).transpose()?;
        match (baked, written) {
            (Some(baked), Some(written)) if baked != written => Err(format!(
                "the root hash in the kernel is {baked}, the one in the file beside it {written}; \
                 install the system again"
            )),
            (Some(hash), _) | (None, Some(hash)) => Ok(Some(hash)),
            (None, None) => Ok(None),
        }
    }

    fn baked_into(head: &[u8]) -> Option<Self> {
        let place = PLACE?;
        Self::from_digits(head.get(place..place.checked_add(Self::DIGITS)?)?)
    }

    /// From a file with the digits and, perhaps, the end of a line.
    fn from_file(content: &[u8]) -> Result<Self, String> {
        Self::from_digits(content.trim_ascii_end()).ok_or_else(|| {
            "the file beside the kernel does not hold a root hash of 64 hexadecimal digits; \
             install the system again"
                .to_owned()
        })
    }

    fn from_digits(digits: &[u8]) -> Option<Self> {
        if digits.len() != Self::DIGITS || !digits.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        let text = str::from_utf8(digits).ok()?;
        Some(Self(text.to_ascii_lowercase()))
    }
}

impl fmt::Display for RootHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use alloc::vec;
    use alloc::vec::Vec;

    const HASH: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn kernel(digits: &str) -> Vec<u8> {
        let mut head = vec![0; RootHash::HEAD];
        head[0x40..0x40 + digits.len()].copy_from_slice(digits.as_bytes());
        head
    }

    fn hash(head: &[u8], file: Option<&str>) -> Result<Option<String>, String> {
        RootHash::of_slot(head, file.map(str::as_bytes))
            .map(|hash| hash.map(|hash| hash.to_string()))
    }

    #[test]
    fn the_hash_comes_from_the_kernel_or_from_the_file_beside_it() {
        let known = Ok(Some(HASH.to_owned()));
        let line = format!("{HASH}\n");
        assert_eq!(hash(&kernel(HASH), None), known);
        assert_eq!(hash(&kernel(""), Some(&line)), known);
        assert_eq!(hash(&kernel(HASH), Some(&line)), known);
        let upper = HASH.to_uppercase();
        assert_eq!(hash(&kernel(&upper), Some(HASH)), known);
        assert_eq!(hash(&kernel(""), None), Ok(None));
        assert_eq!(hash(&kernel("0123"), None), Ok(None));
        assert_eq!(hash(b"short", None), Ok(None));
    }

    #[test]
    fn a_contradiction_or_a_broken_file_is_no_hash() {
        let other = HASH.replace('0', "1");
        let error = hash(&kernel(HASH), Some(&other)).unwrap_err();
        assert!(error.contains(HASH) && error.contains(&other), "{error}");
        for file in ["", "\n", &HASH[1..], &format!("{HASH}0"), "verity"] {
            for digits in ["", HASH] {
                assert!(hash(&kernel(digits), Some(file)).is_err(), "{file:?}");
            }
        }
    }
}
