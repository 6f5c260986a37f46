//! The boot attributes of the two slots: which may boot, which boots first.
//!
//! The rules and the crash-safe writing are gptprio's. This module says what an update may ask for,
//! and in which state of the disk: nothing is made unbootable while there is no other way to boot,
//! and nothing is made active without a [`Proof`]. It does not know what a slot holds.

use std::sync::Arc;

use gptprio::{Access, BlockDevice, Change, DeviceError, Gpt, GptError, Guid, Partition};

use crate::config::Settings;
use crate::install::Proof;
use crate::platform::{Slot, Slots};

/// Changes the boot attributes of slots.
///
/// Every method reads the partition table anew, repairs a broken copy, and returns when the change
/// is on the medium and reads back from there. Whenever it is cut short, the table has the old or
/// the new attributes. Blocks for some seconds at most while another program writes to the disk.
pub trait BootControl: Send + Sync {
    /// No selector may boot the target any more. To be done before its first byte is written.
    ///
    /// Refuses while the running slot is not marked successful, since the target may be the only
    /// slot that boots.
    fn mark_unbootable(&self, slots: &Slots) -> Result<(), BootError>;

    /// The target boots next, with tries; the running slot is the way back. Done again, it changes
    /// nothing.
    fn set_active(&self, slots: &Slots, proof: &Proof) -> Result<(), BootError>;

    /// The running slot has proved healthy: it boots first, without tries. Between
    /// [`BootControl::set_active`] and the reboot that would take the update back.
    fn mark_successful(&self, slots: &Slots) -> Result<(), BootError>;
}

/// Why the attributes were not changed. The table has the old or the new ones, never a mixture.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The disk cannot be opened, or another program keeps writing to it.
    #[error("cannot {operation}: the disk cannot be opened")]
    Open {
        /// Verb and slot.
        operation: String,
        /// Why.
        source: DeviceError,
    },
    /// The table cannot be read, changed or written.
    #[error("cannot {operation}")]
    Table {
        /// Verb and slot.
        operation: String,
        /// Why.
        source: GptError,
    },
    /// The disk has another table than the one in which the slots were found.
    #[error("cannot {operation}: {slot} was moved or replaced meanwhile")]
    Replaced {
        /// Verb and slot.
        operation: String,
        /// The slot.
        slot: String,
    },
    /// Without the target nothing might boot.
    #[error(
        "cannot {operation}: {source_slot} runs but is not marked successful, \
         so there would be no way back"
    )]
    NoWayBack {
        /// Verb and slot.
        operation: String,
        /// The running slot.
        source_slot: String,
    },
}

/// How the running slot stands in the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// It is marked successful.
    pub proven: bool,
    /// Boots that it still has to become so.
    pub tries: u8,
    /// Another slot may boot.
    pub others_may_boot: bool,
    /// Other slots that were made active and not written since, by their unique GUIDs.
    pub others_active: Vec<Guid>,
}

impl Standing {
    /// Whether a boot of the running slot that fails leads to another slot, now or when its
    /// tries are spent.
    pub fn has_way_back(&self) -> bool {
        !self.proven && self.others_may_boot
    }
}

/// The attributes in the partition table.
#[derive(Clone)]
pub struct GptBoot {
    tries: u8,
    /// The disk of the slots is opened for each change when this is `None`.
    disk: Option<Arc<dyn BlockDevice>>,
}

impl GptBoot {
    /// On the disk that the slots are on.
    pub fn new(settings: &Settings) -> Self {
        Self {
            tries: settings.tries,
            disk: None,
        }
    }

    /// On this disk, whatever the slots say.
    pub fn on_disk(disk: Arc<dyn BlockDevice>, settings: &Settings) -> Self {
        Self {
            tries: settings.tries,
            disk: Some(disk),
        }
    }

    /// How the running slot stands. Changes nothing.
    pub fn standing(&self, slots: &Slots) -> Result<Standing, BootError> {
        let operation = format!("read the attributes of {}", slots.source);
        let disk: Arc<dyn BlockDevice> = match &self.disk {
            Some(disk) => Arc::clone(disk),
            None => match slots.open_disk(Access::ReadOnly) {
                Ok(disk) => Arc::new(disk),
                Err(source) => return Err(BootError::Open { operation, source }),
            },
        };
        let gpt = match Gpt::read(&*disk) {
            Ok(gpt) => gpt,
            Err(source) => return Err(BootError::Table { operation, source }),
        };
        let running = match gpt.partition(slots.source.number) {
            Ok(running) => running.attributes,
            Err(source) => return Err(BootError::Table { operation, source }),
        };
        let all = gpt.slots(slots.slot_type);
        let others = || all.iter().filter(|slot| slot.number != slots.source.number);
        Ok(Standing {
            proven: running.successful(),
            tries: running.tries(),
            others_may_boot: others().any(|slot| slot.attributes.bootable()),
            others_active: others()
                .filter(|slot| slot.attributes.priority() > 0)
                .map(|slot| slot.unique_guid)
                .collect(),
        })
    }

    /// The part of [`BootControl::set_active`] that comes after the proof.
    fn activate(&self, slots: &Slots) -> Result<(), BootError> {
        let operation = format!("make {} active", slots.target);
        self.change(operation, slots, |table| {
            Ok(gptprio::set_active(table, slots.target.number, self.tries)?)
        })
    }

    /// One change of the table: read, check that it is the expected one, decide, write.
    fn change(
        &self,
        operation: String,
        slots: &Slots,
        decide: impl FnOnce(&[Partition]) -> Result<Vec<Change>, Refusal>,
    ) -> Result<(), BootError> {
        let disk = match &self.disk {
            Some(disk) => Arc::clone(disk),
            None => match slots.open_disk(Access::ReadWrite) {
                Ok(disk) => Arc::new(disk),
                Err(source) => return Err(BootError::Open { operation, source }),
            },
        };
        match change_table(&*disk, slots, decide) {
            Ok(()) => {
                tracing::info!(operation, "changed the boot attributes");
                Ok(())
            }
            Err(Refusal::Table(source)) => Err(BootError::Table { operation, source }),
            Err(Refusal::Replaced(slot)) => Err(BootError::Replaced { operation, slot }),
            Err(Refusal::NoWayBack) => Err(BootError::NoWayBack {
                operation,
                source_slot: slots.source.to_string(),
            }),
        }
    }
}

impl BootControl for GptBoot {
    fn mark_unbootable(&self, slots: &Slots) -> Result<(), BootError> {
        let operation = format!("mark {} unbootable", slots.target);
        self.change(operation, slots, |table| {
            let is_way_back = |slot: &Partition| {
                slot.number == slots.source.number
                    && slot.attributes.bootable()
                    && slot.attributes.successful()
            };
            if !table.iter().any(is_way_back) {
                return Err(Refusal::NoWayBack);
            }
            Ok(vec![gptprio::mark_unbootable(table, slots.target.number)?])
        })
    }

    fn set_active(&self, slots: &Slots, proof: &Proof) -> Result<(), BootError> {
        tracing::info!(version = proof.version(), slot = %slots.target, "the new version boots next");
        self.activate(slots)
    }

    fn mark_successful(&self, slots: &Slots) -> Result<(), BootError> {
        let operation = format!("mark {} successful", slots.source);
        self.change(operation, slots, |table| {
            Ok(gptprio::mark_successful(table, slots.source.number)?)
        })
    }
}

/// A [`BootError`] without its operation.
enum Refusal {
    Table(GptError),
    Replaced(String),
    NoWayBack,
}

impl From<GptError> for Refusal {
    fn from(error: GptError) -> Self {
        Self::Table(error)
    }
}

fn change_table(
    disk: &dyn BlockDevice,
    slots: &Slots,
    decide: impl FnOnce(&[Partition]) -> Result<Vec<Change>, Refusal>,
) -> Result<(), Refusal> {
    let mut gpt = Gpt::read(disk)?;
    let health = gpt.health();
    if !health.is_good() {
        tracing::warn!(
            disk = %slots.disk.display(), primary = %health.primary, backup = %health.backup,
            "the partition table is damaged and will be repaired"
        );
    }
    for slot in [&slots.source, &slots.target] {
        if !is_the_same(&gpt, slot) {
            return Err(Refusal::Replaced(slot.to_string()));
        }
    }
    let changes = decide(&gpt.slots(slots.slot_type))?;
    gpt.apply(&changes)?;
    Ok(gpt.write(disk)?)
}

/// Whether the table still has this slot where it was found.
fn is_the_same(gpt: &Gpt, slot: &Slot) -> bool {
    let Ok(partition) = gpt.partition(slot.number) else {
        return false;
    };
    let place = slot.start..slot.start.saturating_add(slot.size);
    partition.unique_guid == slot.unique_guid
        && gpt.byte_range(&partition).is_ok_and(|range| range == place)
}

#[cfg(test)]
mod tests;
