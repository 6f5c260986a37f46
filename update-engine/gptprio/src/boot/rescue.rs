//! The last words of a selector that cannot start anything.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use crate::{GptError, Partition};

/// Why nothing was started, what was found, and what an operator can do. `Display` is
/// the message, in several lines.
///
/// Whoever gets it shows it and stops for good. It does not reset the machine: what was
/// found would be found again, for ever.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rescue {
    reason: String,
    found: Vec<String>,
    advice: &'static str,
}

const REPAIR_TABLE: &str = "start the machine from another medium and restore the partition table \
     (gptprio show DISK, gdisk DISK)";
const REPAIR_SLOTS: &str = "start the machine from another medium, look at the slots with gptprio \
     show DISK, put a kernel in its place, or choose a slot with gptprio set DISK NUMBER \
     --priority 1 --tries 1";
const FIND_DISK: &str = "check that the disk is connected, that its driver is among the modules, \
     that its partition table is whole (gptprio show DISK on another machine), and disk, \
     slot-type and wait in gptprio.conf";
const REPORT: &str = "this is a defect of the boot selector: start the machine from another \
     medium, and report the message";

impl Rescue {
    /// There is no disk with slots; what was `found` on each disk that is there.
    pub fn no_disk(reason: String, found: Vec<String>) -> Self {
        Self {
            reason,
            found,
            advice: FIND_DISK,
        }
    }

    /// The selector itself failed.
    pub fn defect(reason: String) -> Self {
        Self {
            reason,
            found: Vec::new(),
            advice: REPORT,
        }
    }

    /// The partition table cannot be read.
    pub(super) fn no_table(error: &GptError) -> Self {
        Self {
            reason: format!("the partition table cannot be used: {error}"),
            found: Vec::new(),
            advice: REPAIR_TABLE,
        }
    }

    /// Which slot is which cannot be told.
    pub(super) fn no_letters(reason: &str) -> Self {
        Self {
            reason: format!("the slots contradict each other: {reason}"),
            found: Vec::new(),
            advice: REPAIR_TABLE,
        }
    }

    /// No slot could be started; `fate` tells of each why.
    pub(super) fn no_slot(slots: &[Partition], fate: impl Fn(&Partition) -> String) -> Self {
        let found = slots.iter().map(|slot| {
            let name = match slot.name.as_str() {
                "" => "no label",
                name => name,
            };
            let (number, attributes) = (slot.number, slot.attributes);
            format!("partition {number} ({name}, {attributes}): {}", fate(slot))
        });
        let reason = match slots {
            [] => "there is no slot on the disk".to_owned(),
            _ => "no slot could be started".to_owned(),
        };
        Self {
            reason,
            found: found.collect(),
            advice: REPAIR_SLOTS,
        }
    }
}

impl fmt::Display for Rescue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "cannot boot: {}", self.reason)?;
        for found in &self.found {
            writeln!(f, "  {found}")?;
        }
        write!(f, "what to do: {}", self.advice)
    }
}
