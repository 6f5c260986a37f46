//! `gptprio-init`: the boot selector as the first process of a small Linux.
//!
//! ```text
//!   firmware or boot loader ─▶ stage-0 kernel + initramfs ─▶ gptprio-init
//!                                                               │ proc, sys, dev, modules
//!                                                               │ disk with slots, settings
//!                                                               ▼
//!                                              gptprio::boot::boot ─▶ kexec into the slot
//!                                                               │
//!                                                               └─▶ rescue message, rest
//! ```
//!
//! The kernel panics when its first process ends, and a panic may reset the machine for
//! ever. So this program never ends: whatever goes wrong, it says so and rests.

#![forbid(unsafe_code)]

mod console;
mod disks;
mod linux;
mod modules;
mod mounts;

use std::convert::Infallible;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{panic, process};

use gptprio::boot::{CommandLine, MAX_SETTINGS, Rescue, Settings, boot};

use disks::Disk;
use linux::Linux;
use mounts::Mounted;

/// Settings that come with the initramfs.
const OWN_SETTINGS: &str = "/etc/gptprio.conf";
/// Settings on the boot partition.
const BOOT_SETTINGS: &str = "gptprio/gptprio.conf";
/// Where the boot partition is mounted.
const BOOT: &str = "/boot";

fn main() -> ExitCode {
    if process::id() != 1 {
        eprintln!(
            "gptprio-init starts machines and has to be the first process of an initramfs; \
             to look at slots use gptprio"
        );
        return ExitCode::from(2);
    }
    // Runs whether a panic unwinds or aborts, and does not come back.
    panic::set_hook(Box::new(|panic| {
        console::rest(&Rescue::defect(panic.to_string()));
    }));
    let Err(rescue) = start_a_slot();
    console::rest(&rescue)
}

/// Comes back with a reason or not at all.
fn start_a_slot() -> Result<Infallible, Rescue> {
    mounts::mount_kernel_trees().map_err(Rescue::defect)?;
    modules::load();
    let own = read_settings(Path::new(OWN_SETTINGS));
    let search = own.clone().unwrap_or_default();
    let disk = Disk::wait_for(&search)?;
    let device = disk.open()?;
    disk.repair(&device)?;
    disk.settle(search.slot_type);
    let partition = disk
        .boot_partition()
        .and_then(|node| Mounted::read_only(&node, BOOT))
        .inspect_err(|reason| console::print(&format!("no boot partition: {reason}")))
        .ok();
    let on_boot = || {
        let path: PathBuf = partition.as_ref()?.path().join(BOOT_SETTINGS);
        read_settings(&path)
    };
    let settings = own.or_else(on_boot).unwrap_or_default();
    let command_line = settings.command_line.unwrap_or_else(own_command_line);
    let mut machine = Linux::new(disk, partition);
    boot(&mut machine, &device, settings.slot_type, &command_line)
}

/// The settings in a file, `None` when there is none.
fn read_settings(path: &Path) -> Option<Settings> {
    let limit = u64::try_from(MAX_SETTINGS).unwrap_or(u64::MAX);
    let mut content = Vec::new();
    let read = File::open(path)
        .and_then(|file| file.take(limit.saturating_add(1)).read_to_end(&mut content));
    match read {
        Ok(_) => {
            let (settings, problems) = Settings::parse(&content);
            for problem in problems {
                console::print(&problem.to_string());
            }
            Some(settings)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            console::print(&format!("cannot read {}: {error}", path.display()));
            None
        }
    }
}

/// Without another one, the next kernel gets what this one has got.
fn own_command_line() -> CommandLine {
    match fs::read_to_string("/proc/cmdline") {
        Ok(own) => CommandLine::handed_on(&own),
        Err(error) => {
            console::print(&format!("cannot read /proc/cmdline: {error}"));
            CommandLine::default()
        }
    }
}
