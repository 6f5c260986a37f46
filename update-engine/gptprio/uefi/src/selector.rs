//! From the firmware's call to the first kernel, or to the rescue message.

use alloc::format;
use alloc::vec::Vec;
use core::convert::Infallible;
use core::panic::PanicInfo;

use gptprio::boot::{MAX_SETTINGS, Rescue, Settings, boot};
use uefi::prelude::*;

use crate::console;
use crate::disk::Disk;
use crate::kernels::{Uefi, read_file};

const SETTINGS: &str = "\\gptprio\\gptprio.conf";

#[entry]
fn main() -> Status {
    let Err(rescue) = start_a_slot();
    console::rest(&rescue)
}

#[panic_handler]
fn panic(panic: &PanicInfo<'_>) -> ! {
    console::rest(&Rescue::defect(format!("{panic}")))
}

/// Comes back with a reason or not at all.
fn start_a_slot() -> Result<Infallible, Rescue> {
    let disk = Disk::of_this_program().map_err(|reason| Rescue::no_disk(reason, Vec::new()))?;
    let settings = settings();
    let command_line = settings.command_line.unwrap_or_default();
    boot(&mut Uefi, &disk, settings.slot_type, &command_line)
}

fn settings() -> Settings {
    match read_file(SETTINGS, MAX_SETTINGS + 1) {
        Ok(Some(file)) => {
            let (settings, problems) = Settings::parse(&file.start);
            for problem in problems {
                console::print(&format!("{problem}"));
            }
            settings
        }
        Ok(None) => Settings::default(),
        Err(reason) => {
            console::print(&reason);
            Settings::default()
        }
    }
}
