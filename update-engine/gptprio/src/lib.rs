//! Which of two system slots boots next, kept in the partition table.
//!
//! Each slot is a GPT partition of one type ([`USR_TYPE`]). Three attributes of its
//! entry say whether it may boot: a *priority*, a number of *tries* left, and whether
//! it was *successful* before ([`Attributes`]). A boot selector picks a slot
//! ([`select`]) and spends a try before it starts the kernel; an updater raises the slot
//! that it has filled ([`set_active`]); a machine that came up healthy keeps its slot
//! ([`mark_successful`]).
//!
//! ```text
//!   Gpt::read ──▶ slots ──▶ select / set_active / mark_… ──▶ apply ──▶ Gpt::write
//!   (device)              (pure: partitions in, changes out)          (device)
//! ```
//!
//! [`Gpt`] reads both copies of the table, believes none whose checksums do not hold,
//! and writes so that one copy is valid and consistent at every instant. It changes only
//! the bytes that must change; it never creates, moves or numbers partitions.
//!
//! The core needs `alloc` only, so that boot selectors without an operating system can
//! use it. The feature `std` adds `FileDevice` for files and block devices and `machine`
//! for the partition that runs, the feature `testing` a fake disk that plays power cuts.
//!
//! [`boot`] is what a boot selector does with all this, for whatever it runs on.
//!
//! The crate knows nothing of payloads, of Omaha, or of what a slot holds.

#![no_std]

extern crate alloc;
#[cfg(feature = "std")]
extern crate std;

mod attributes;
pub mod boot;
mod device;
mod gpt;
mod guid;
mod letter;
mod slots;

#[cfg(feature = "std")]
mod file;
#[cfg(feature = "std")]
pub mod machine;
#[cfg(feature = "std")]
pub mod sysfs;
#[cfg(feature = "testing")]
pub mod testing;

pub use attributes::Attributes;
pub use device::{BlockDevice, DeviceError, Region};
#[cfg(feature = "std")]
pub use file::{Access, FileDevice};
pub use gpt::{BOOT_LABEL, CopyHealth, Damage, Gpt, GptError, Health, Partition, TableCopy};
pub use guid::{Guid, ParseGuidError, USR_TYPE};
pub use letter::{Letter, ParseLetterError, letters};
pub use slots::{
    Change, LAST_RESORT_DELAY, Selection, mark_successful, mark_unbootable, prioritize, select,
    set_active,
};
