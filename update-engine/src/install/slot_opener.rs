//! How an installation gets at the bytes of the two slots.

use std::sync::Arc;

use gptprio::{BlockDevice, DeviceError};

use crate::platform::Slot;

/// The seam to the slots' bytes. Real: [`SlotDevices`].
///
/// What is opened stays valid as long as it lives, also when the partition table
/// changes meanwhile, and is as long as the slot.
pub trait SlotOpener: Send + Sync {
    /// The running slot. Nothing is ever written through it.
    fn open_source(&self, slot: &Slot) -> Result<Arc<dyn BlockDevice>, DeviceError>;

    /// The slot to install into. What was synced through it is on the medium, where
    /// `read_medium_at` finds it.
    fn open_target(&self, slot: &Slot) -> Result<Arc<dyn BlockDevice>, DeviceError>;
}

/// The device nodes of the slots, or their windows of an image file.
#[derive(Debug, Clone, Copy)]
pub struct SlotDevices;

impl SlotOpener for SlotDevices {
    fn open_source(&self, slot: &Slot) -> Result<Arc<dyn BlockDevice>, DeviceError> {
        slot.open_for_reading()
    }

    fn open_target(&self, slot: &Slot) -> Result<Arc<dyn BlockDevice>, DeviceError> {
        slot.open_for_writing()
    }
}
