//! The machine below the updater: which slot runs, which one is the target, and where their files
//! are.
//!
//! [`gptprio::machine`] leads from what is mounted at `/usr` to a partition and its disk; here the
//! disk's table leads to the other partition of the slot type. Nothing is guessed: what does not add
//! up is an error that says what was looked at.
//!
//! Reading the kernel's tables is kept apart from deciding. This module changes nothing and knows
//! nothing of updates.

pub(crate) mod child;
mod kernel_files;
mod lock;
mod slots;

use std::io;
use std::path::PathBuf;

use gptprio::machine::MachineError;
use gptprio::{DeviceError, GptError, Guid};

pub use child::Environment;
pub use gptprio::{Letter, ParseLetterError};
pub use kernel_files::{KernelFiles, PartitionFiles, is_same_kernel};
pub use lock::{LockError, UpdateLock};
pub use slots::{Discovery, Slot, Slots};

/// Why the slots of this machine cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum PlatformError {
    /// A table of the kernel cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// Path on the machine.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// What runs is on no partition.
    #[error("cannot tell the running slot; for a disk image give --disk and --booted-slot")]
    Running(#[from] MachineError),
    /// A disk or image cannot be opened.
    #[error("cannot open the disk {}", disk.display())]
    OpenDisk {
        /// Its path.
        disk: PathBuf,
        /// Why.
        source: DeviceError,
    },
    /// A disk has no usable partition table, or a slot in it is impossible.
    #[error("cannot use the partition table of {}", disk.display())]
    Table {
        /// The disk.
        disk: PathBuf,
        /// Why.
        source: GptError,
    },
    /// The partition table and what runs do not fit together.
    #[error("cannot tell the slots of {}: {problem}", disk.display())]
    Slots {
        /// The disk.
        disk: PathBuf,
        /// What is missing or contradictory, and what to do.
        problem: SlotProblem,
    },
    /// Something uses the partition that would be overwritten.
    #[error("the target {target} is in use by {user}; stop that first")]
    TargetInUse {
        /// Which slot.
        target: String,
        /// A mount point or a mapped device.
        user: String,
    },
}

/// What does not add up about the slots of a disk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SlotProblem {
    /// No partition has the slot type.
    #[error(
        "no partition has the slot type {slot_type}; SLOT_TYPE_GUID says which type slots have"
    )]
    NoSlots {
        /// The type that was looked for.
        slot_type: Guid,
    },
    /// The system runs from a partition of another type.
    #[error(
        "the system runs from partition {number} of type {found}, slots have type {slot_type}; \
         SLOT_TYPE_GUID says which type slots have"
    )]
    WrongType {
        /// The partition.
        number: u32,
        /// Its type.
        found: Guid,
        /// The type that was looked for.
        slot_type: Guid,
    },
    /// The table has no such partition.
    #[error(
        "the system runs from partition {number}, which the table does not have; \
         restart the machine to make kernel and table agree"
    )]
    NoPartition {
        /// As the kernel says.
        number: u32,
    },
    /// The table says that the partition is elsewhere.
    #[error(
        "partition {number} begins at byte {in_table} in the table, but at {in_kernel} for the \
         kernel; restart the machine to make them agree"
    )]
    Moved {
        /// The partition.
        number: u32,
        /// Bytes.
        in_table: u64,
        /// Bytes.
        in_kernel: u64,
    },
    /// A loop device does not begin where a slot does.
    #[error("the system runs from byte {start}, where no slot begins")]
    NoSlotAt {
        /// Bytes.
        start: u64,
    },
    /// There is nothing to update into.
    #[error(
        "partition {number} is the only slot; a second partition of type {slot_type} is needed"
    )]
    OnlySlot {
        /// The running slot.
        number: u32,
        /// The type that was looked for.
        slot_type: Guid,
    },
    /// No slot has the letter that was asked for.
    #[error("there is no slot {letter}, only {present}")]
    NoLetter {
        /// As given.
        letter: Letter,
        /// The letters that there are.
        present: String,
    },
    /// Identities and labels do not say clearly which slot is which.
    #[error("{0}")]
    Letters(String),
}
