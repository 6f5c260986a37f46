//! The boot selector as a program of UEFI firmware.
//!
//! ```text
//!   firmware ─▶ \EFI\BOOT\BOOTX64.EFI ─▶ gptprio::boot::boot ─▶ \flatcar\vmlinuz-b
//!                 │ table: BlockIO of the disk below this partition   (EFI stub)
//!                 │ \gptprio\gptprio.conf                   │
//!                 └────────────────────────────────────────▶└─▶ rescue message, rest
//! ```
//!
//! What is decided is in `gptprio::boot`; here is how the firmware does it. On other
//! targets there is nothing here but a hint.

#![cfg_attr(target_os = "uefi", no_std, no_main)]

#[cfg(target_os = "uefi")]
extern crate alloc;

#[cfg(target_os = "uefi")]
mod console;
#[cfg(target_os = "uefi")]
mod disk;
#[cfg(target_os = "uefi")]
mod firmware;
#[cfg(target_os = "uefi")]
mod kernels;
#[cfg(target_os = "uefi")]
mod selector;

#[cfg(not(target_os = "uefi"))]
fn main() {
    eprintln!("gptprio-uefi runs on UEFI firmware: build it with make uefi");
}
