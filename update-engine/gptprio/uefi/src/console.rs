//! Words for whoever is at the console.

use alloc::string::ToString;
use core::fmt::Write;
use core::time::Duration;

use gptprio::boot::Rescue;
use uefi::proto::console::text::Key;
use uefi::runtime::ResetType;
use uefi::{Status, boot, runtime, system};

/// Between two looks at the keyboard.
const PAUSE: Duration = Duration::from_millis(100);

/// Prints a line. There is nobody to tell of an error.
pub(crate) fn print(line: &str) {
    system::with_stdout(|console| {
        let _ = write!(console, "gptprio: {line}\r\n");
    });
}

/// Shows the message and stays. A reset by itself would end here again and again; a
/// person may ask for one.
pub(crate) fn rest(rescue: &Rescue) -> ! {
    // The firmware would reset the machine five minutes after it has started us.
    let _ = boot::set_watchdog_timer(0, 0, None);
    rescue.to_string().lines().for_each(print);
    print("nothing more is done; the key r restarts the machine");
    loop {
        let key = system::with_stdin(|keyboard| keyboard.read_key());
        if let Ok(Some(Key::Printable(letter))) = key
            && matches!(char::from(letter), 'r' | 'R')
        {
            runtime::reset(ResetType::COLD, Status::SUCCESS, None);
        }
        boot::stall(PAUSE);
    }
}
