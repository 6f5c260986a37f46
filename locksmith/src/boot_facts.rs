//! What this boot is: the facts by which the coordinator knows its own reboot
//! again and sees whether the system that came up is well.
//!
//! Reading only. What the facts prove is decided elsewhere.

use std::io;

use gptprio::machine::Root;
use gptprio::{Guid, USR_TYPE};

use crate::reboot::slots::{SlotsError, SystemSlots};

/// These files are short; a longer one is not what it should be.
const LIMIT: u64 = 64 << 10;

/// Files that tell the version, and its key in each: the updater's own first,
/// since it is the updater's versions that are compared.
const VERSIONS: [(&str, &str); 4] = [
    ("/usr/share/flatcar/release", "FLATCAR_RELEASE_VERSION"),
    ("/usr/share/coreos/release", "COREOS_RELEASE_VERSION"),
    ("/etc/os-release", "VERSION_ID"),
    ("/usr/lib/os-release", "VERSION_ID"),
];

/// The updater's own file, and its key for the type of the slots. As with the
/// updater, other files do not count.
const UPDATER_FILE: &str = "/etc/update-engine/update.conf";
const SLOT_TYPE: &str = "SLOT_TYPE_GUID";

/// The target that systemd reaches when a boot is complete.
pub const BOOT_COMPLETE: &str = "boot-complete.target";

/// A file of the machine cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {path}")]
pub struct UnreadableFact {
    /// On the machine.
    pub path: &'static str,
    /// Why.
    pub source: io::Error,
}

/// Whether the updater has found the running slot good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotMark {
    /// It has: the boot loader starts this slot from now on.
    Successful,
    /// Not yet: the next boot may go back to the old slot.
    Unproven,
    /// The system does not run from a slot.
    NoSlots,
}

/// The kernel's name for this boot. A restart of user space keeps it.
///
/// # Errors
///
/// It cannot be read.
pub fn boot_id(root: &Root) -> Result<String, UnreadableFact> {
    let path = "/proc/sys/kernel/random/boot_id";
    read(root, path)?
        .filter(|id| !id.is_empty())
        .ok_or(UnreadableFact {
            path,
            source: io::ErrorKind::NotFound.into(),
        })
}

/// The version of the running system; `None` when no file tells one.
///
/// # Errors
///
/// A file that may tell it cannot be read.
pub fn version(root: &Root) -> Result<Option<String>, UnreadableFact> {
    for (path, key) in VERSIONS {
        let Some(text) = read(root, path)? else {
            continue;
        };
        if let Some(version) = value_of(&text, key) {
            return Ok(Some(version.to_owned()));
        }
    }
    Ok(None)
}

/// Type of the partitions that are slots, by the updater's settings.
///
/// # Errors
///
/// They cannot be read, or their value is no GUID.
pub fn slot_type(root: &Root) -> Result<Guid, UnreadableFact> {
    let text = read(root, UPDATER_FILE)?.unwrap_or_default();
    let Some(value) = value_of(&text, SLOT_TYPE) else {
        return Ok(USR_TYPE);
    };
    value.parse().map_err(|_| UnreadableFact {
        path: UPDATER_FILE,
        source: io::Error::other(format!("bad value of {SLOT_TYPE}: '{value}' is not a GUID")),
    })
}

/// The mark of the slot that runs, from the partition table on its disk.
///
/// # Errors
///
/// There may be slots, but they cannot be read.
pub fn slot_mark(root: &Root, slot_type: Guid) -> Result<SlotMark, SlotsError> {
    let system = SystemSlots::read(root, slot_type)?;
    Ok(match system {
        None => SlotMark::NoSlots,
        Some(system) if system.running().attributes.successful() => SlotMark::Successful,
        Some(_) => SlotMark::Unproven,
    })
}

fn read(root: &Root, path: &'static str) -> Result<Option<String>, UnreadableFact> {
    root.read_text(path, LIMIT)
        .map_err(|source| UnreadableFact { path, source })
}

/// The last value of a key in lines of `KEY=value`, without quotes around it;
/// `None` when it is empty.
fn value_of<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let mut values = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='));
    let value = values.next_back()?;
    let unquoted = ['"', '\'']
        .into_iter()
        .find_map(|quote| value.strip_prefix(quote)?.strip_suffix(quote));
    Some(unquoted.unwrap_or(value)).filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_value_counts_without_its_quotes() {
        for (text, expected) in [
            ("VERSION_ID=1.0.0", Some("1.0.0")),
            ("A=x\nVERSION_ID=\"2.0.0\"\nB=y\n", Some("2.0.0")),
            ("VERSION_ID='3.0.0'", Some("3.0.0")),
            ("VERSION_ID=1\nVERSION_ID=2", Some("2")),
            ("VERSION_ID=", None),
            ("VERSION_ID=\"\"", None),
            ("#VERSION_ID=1\nMY_VERSION_ID=2\nVERSION_IDS=3", None),
            ("", None),
        ] {
            assert_eq!(value_of(text, "VERSION_ID"), expected, "{text}");
        }
    }
}
