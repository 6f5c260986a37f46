//! Words for whoever is at the console, and for the log of the kernel.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::thread;
use std::time::Duration;

use gptprio::boot::Rescue;
use nix::sys::reboot::{RebootMode, reboot};

/// Prints a line. There is nobody to tell of an error.
pub(crate) fn print(line: &str) {
    if let Ok(mut console) = OpenOptions::new().write(true).open("/dev/console") {
        let _ = writeln!(console, "gptprio: {line}");
    }
    if let Ok(mut log) = OpenOptions::new().write(true).open("/dev/kmsg") {
        // Of level "debug", which the kernel does not print on the console once more.
        let _ = write!(log, "<7>gptprio: {line}");
    }
}

/// Shows the message and stays. A reset by itself would end here again and again; a
/// person may ask for one.
pub(crate) fn rest(rescue: &Rescue) -> ! {
    rescue.to_string().lines().for_each(print);
    print("nothing more is done; r and Enter restarts the machine");
    loop {
        if let Ok(console) = File::open("/dev/console") {
            for line in BufReader::new(console).lines().map_while(Result::ok) {
                if line.trim().eq_ignore_ascii_case("r") {
                    nix::unistd::sync();
                    let Err(error) = reboot(RebootMode::RB_AUTOBOOT);
                    print(&format!("cannot restart: {error}"));
                }
            }
        }
        // No console, or nobody behind it.
        thread::sleep(Duration::from_secs(60));
    }
}
