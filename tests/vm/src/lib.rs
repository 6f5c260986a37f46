//! Machines that really boot: Debian's kernel and systemd under our own programs,
//! in QEMU, without hardware virtualisation.
//!
//! A machine has the disk of a Flatcar machine in small: an EFI partition with the
//! kernels, two USR slots, a root for what it keeps. Its firmware and boot selector
//! choose a slot, its update_engine and locksmithd come from the USR image that
//! runs, and the test drives it over a serial line.
//!
//! | module | what it stands for |
//! |---|---|
//! | [`debian`] | kernel and userland, from packages, kept between runs |
//! | [`guest`] | initial RAM disk and USR image of one version |
//! | [`layout`] | the disk |
//! | [`chain`] | what chooses the slot: firmware, selector, or this process |
//! | [`qemu`] | one run of the virtual hardware |
//! | [`machine`] | a machine over its resets |
//! | [`releases`] | versions, good and bad, on a real update server |
//! | [`scenario`] | what machines are put through |
//! | [`write_log`] | what a power cut leaves of the writes |

pub mod chain;
pub mod debian;
pub mod guest;
pub mod layout;
pub mod machine;
pub mod qemu;
pub mod releases;
pub mod scenario;
pub mod write_log;

/// Between two looks at something of a machine. They cost processor time, which its
/// emulation needs.
pub(crate) const LOOK: std::time::Duration = std::time::Duration::from_millis(250);
