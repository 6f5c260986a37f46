//! What is mounted where, from the kernel's tables.

use std::borrow::ToOwned;
use std::string::String;
use std::vec::Vec;

use super::{MachineError, Root};

/// Machines with thousands of containers have tables of some megabytes.
const TABLE_LIMIT: u64 = 64 << 20;

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Device number; the major part is 0 for file systems that are not on one device. Btrfs is
    /// among them although it is.
    pub device: Option<(u64, u64)>,
    /// Where.
    pub mount_point: String,
    /// What was mounted, often a device node.
    pub source: String,
}

impl Mount {
    /// All mounts in the order in which they were made.
    pub fn all(root: &Root) -> Result<Vec<Mount>, MachineError> {
        let table = |path: &'static str| {
            let content = root.read(path, TABLE_LIMIT);
            let content = content.map_err(|source| MachineError::Read {
                path: path.to_owned(),
                source,
            })?;
            Ok(content.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
        };
        if let Some(text) = table("/proc/self/mountinfo")? {
            return Ok(text.lines().filter_map(mountinfo_line).collect());
        }
        let text = table("/proc/mounts")?.unwrap_or_default();
        Ok(text.lines().filter_map(mounts_line).collect())
    }

    /// Whether a block device is below: an overlay, a tmpfs or the like has none.
    pub fn is_on_device(&self) -> bool {
        self.device.is_some_and(|(major, _)| major != 0) || self.source.starts_with("/dev/")
    }
}

/// A line of `mountinfo` (proc(5)): `id parent major:minor root mount-point options tags… - type
/// source …`.
fn mountinfo_line(line: &str) -> Option<Mount> {
    let (place, what) = line.split_once(" - ")?;
    let mut place = place.split(' ');
    let (major, minor) = place.nth(2)?.split_once(':')?;
    Some(Mount {
        device: Some((major.parse().ok()?, minor.parse().ok()?)),
        mount_point: unescaped(place.nth(1)?),
        source: unescaped(what.split(' ').nth(1)?),
    })
}

/// A line of `mounts`: `source mount-point type …`.
fn mounts_line(line: &str) -> Option<Mount> {
    let mut fields = line.split(' ');
    let source = unescaped(fields.next()?);
    Some(Mount {
        device: None,
        mount_point: unescaped(fields.next()?),
        source,
    })
}

/// The kernel writes blanks and backslashes in names as `\` and three octal digits.
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let code = tail.get(..3).filter(|_| first == b'\\').and_then(octal);
        bytes.push(code.unwrap_or(first));
        rest = if code.is_some() { &tail[3..] } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn octal(digits: &[u8]) -> Option<u8> {
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_of_both_tables_are_read() {
        let line = r"36 35 254:0 / /my\040usr\134x ro,relatime shared:1 master:2 - btrfs /dev/mapper/usr ro";
        let expected = Mount {
            device: Some((254, 0)),
            mount_point: r"/my usr\x".to_owned(),
            source: "/dev/mapper/usr".to_owned(),
        };
        assert_eq!(mountinfo_line(line), Some(expected.clone()));
        let no_tags = "22 1 0:21 / / rw - overlay overlay rw";
        assert!(!mountinfo_line(no_tags).unwrap().is_on_device());
        let line = r"/dev/mapper/usr /my\040usr\134x btrfs ro 0 0";
        assert_eq!(
            mounts_line(line),
            Some(Mount {
                device: None,
                ..expected
            })
        );
        for broken in ["", "1 2 3", "1 2 x:y / / rw - ext4 /dev/sda rw", "a - b c"] {
            assert_eq!(mountinfo_line(broken), None, "{broken}");
        }
    }

    proptest! {
        #[test]
        fn no_table_is_too_strange_to_read(line in r"[ -~]{0,60}", name in r"[ -~]{0,20}") {
            let _ = (mountinfo_line(&line), mounts_line(&line));
            let escaped = name.replace('\\', r"\134").replace(' ', r"\040");
            prop_assert_eq!(unescaped(&escaped), name);
        }
    }
}
