//! What a boot selector does, whatever it runs on.
//!
//! ```text
//!   read the table ─▶ repair a broken copy ─▶ choose a slot ◀───────────────┐
//!                                                  │                        │ next slot,
//!                                       spend its try, synced ──fails──▶ tries do not count
//!                                                  │                        │ any more
//!                                  find, check, stage its kernel ──fails──▶ │ next slot
//!                                                  │                        │
//!                                                start ──comes back──▶ next slot
//! ```
//!
//! [`boot`] decides, a [`Machine`] does: a first process of Linux with kexec, or a
//! program of the firmware. Neither resets the machine; the end without a kernel is a
//! [`Rescue`].
//!
//! The try is spent first: a kernel may take the machine down while it is read, and must
//! not do so for ever.
//!
//! Each slot is given up after one attempt, so that a boot ends after as many attempts
//! as there are slots and costs no slot more than one try.
//!
//! A try that cannot be written is not spent, and a slot that may be started without
//! end is never left. So when the table cannot be written, tries do not count: slots
//! that were successful start as ever, for they need none, and the others only as the
//! last resort, after the delay.

mod command_line;
mod kernel;
#[cfg(feature = "std")]
mod kernel_file;
mod rescue;
mod root_hash;
mod settings;

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

pub use command_line::{CommandLine, words};
pub use kernel::{Kernel, KernelFiles};
#[cfg(feature = "std")]
pub use kernel_file::ReadKernelError;
pub use rescue::Rescue;
pub use root_hash::RootHash;
pub use settings::{MAX_SETTINGS, Problem, Settings};

use crate::{
    Attributes, BlockDevice, CopyHealth, Gpt, Guid, LAST_RESORT_DELAY, Letter, Partition,
    Selection, TableCopy, letters, select,
};

/// What a selector runs on. Errors are reasons in words, for the screen.
pub trait Machine {
    /// A kernel that is ready to start. Dropping it takes it back.
    type Staged;
    /// What there is after a start: nothing, where a started kernel replaces us.
    type Started;

    /// Finds the kernel of a slot.
    fn find_kernel(&mut self, slot: &Partition, letter: Letter) -> Result<Kernel, String>;

    /// Makes a kernel ready to start with this command line. Nothing on disk changes.
    fn stage(&mut self, kernel: &Kernel, command_line: &str) -> Result<Self::Staged, String>;

    /// Starts it. Coming back is a failure.
    fn start(&mut self, staged: Self::Staged) -> Result<Self::Started, String>;

    /// Shows a line to whoever is there.
    fn print(&mut self, line: &str);

    /// Waits.
    fn wait(&mut self, duration: Duration);
}

/// Starts the slot on `disk` that is to boot next, and if that fails the one after it,
/// until one runs.
///
/// `slot_type` is the type of the partitions that are slots, `command_line` what their
/// kernels get.
pub fn boot<M: Machine>(
    machine: &mut M,
    disk: &dyn BlockDevice,
    slot_type: Guid,
    command_line: &CommandLine,
) -> Result<M::Started, Rescue> {
    repair(&mut |line| machine.print(line), disk)?;
    let mut boot = Boot {
        machine,
        disk,
        command_line,
        given_up: BTreeMap::new(),
        tries_count: true,
        has_waited: false,
    };
    loop {
        // Anew for each attempt: a write that failed may have changed one copy.
        let gpt = Gpt::read(disk).map_err(|error| Rescue::no_table(&error))?;
        let slots = gpt.slots(slot_type);
        let letters = letters(&slots).map_err(|reason| Rescue::no_letters(&reason))?;
        let left = boot.left(&slots);
        let selection = select(&left);
        let letter = selection.slot().and_then(|slot| letters.get(&slot.number));
        let Some(&letter) = letter else {
            return Err(Rescue::no_slot(&slots, |slot| boot.fate(slot)));
        };
        if let Some(started) = boot.attempt(gpt, &selection, letter) {
            return Ok(started);
        }
    }
}

/// Makes both copies of the table valid and equal, as [`boot`] does first; for those who
/// need it earlier. Whether something was written.
///
/// A disk that cannot be written still boots from the copy that is valid, so that is only
/// printed.
pub fn repair(print: &mut dyn FnMut(&str), disk: &dyn BlockDevice) -> Result<bool, Rescue> {
    let mut gpt = Gpt::read(disk).map_err(|error| Rescue::no_table(&error))?;
    let health = gpt.health();
    if health.is_good() {
        return Ok(false);
    }
    for (copy, health) in [
        (TableCopy::Primary, health.primary),
        (TableCopy::Backup, health.backup),
    ] {
        if !matches!(health, CopyHealth::Valid) {
            print(&format!(
                "the {copy} copy of the partition table is {health}"
            ));
        }
    }
    let written = gpt.write(disk);
    match &written {
        Ok(()) => print("repaired from the other copy"),
        Err(error) => print(&format!("not repaired: {}", in_words(error))),
    }
    Ok(written.is_ok())
}

/// One boot with what was learned in it.
struct Boot<'a, M> {
    machine: &'a mut M,
    disk: &'a dyn BlockDevice,
    command_line: &'a CommandLine,
    /// Slots that cannot be started, by partition number, and why.
    given_up: BTreeMap<u32, String>,
    /// Whether tries can be spent.
    tries_count: bool,
    has_waited: bool,
}

impl<M: Machine> Boot<'_, M> {
    /// The slots that are still to be considered.
    fn left(&self, slots: &[Partition]) -> Vec<Partition> {
        let left = slots
            .iter()
            .filter(|slot| !self.given_up.contains_key(&slot.number));
        left.cloned()
            .map(|mut slot| {
                if !self.tries_count {
                    slot.attributes = slot.attributes.with_tries(0);
                }
                slot
            })
            .collect()
    }

    /// Attempts the selected slot. `None`: look at what is left and go on.
    fn attempt(
        &mut self,
        gpt: Gpt,
        selection: &Selection<'_>,
        letter: Letter,
    ) -> Option<M::Started> {
        let slot = selection.slot()?;
        if matches!(selection, Selection::LastResort(_)) {
            self.warn_of_last_resort(selection);
        }
        let before = gpt.partition(slot.number).ok()?.attributes;
        if !self.spend_try(gpt, selection, letter) {
            // The next round finds this slot again if it may start all the same.
            return None;
        }
        let (kernel, staged) = match self.stage(slot, letter) {
            Ok(staged) => staged,
            Err(reason) => {
                self.give_up(slot, letter, reason);
                return None;
            }
        };
        self.machine.print(&format!(
            "starting slot {letter} ({}): {}",
            description(slot.number, before, selection),
            kernel.path
        ));
        match self.machine.start(staged) {
            Ok(started) => Some(started),
            Err(reason) => {
                self.give_up(slot, letter, reason);
                None
            }
        }
    }

    fn warn_of_last_resort(&mut self, selection: &Selection<'_>) {
        self.machine.print(&format!("last resort: {selection}"));
        // Once is enough to slow down a storm of resets.
        if !self.has_waited {
            self.has_waited = true;
            let seconds = LAST_RESORT_DELAY.as_secs();
            self.machine.print(&format!("waiting {seconds} seconds"));
            self.machine.wait(LAST_RESORT_DELAY);
        }
    }

    fn stage(&mut self, slot: &Partition, letter: Letter) -> Result<(Kernel, M::Staged), String> {
        let kernel = self.machine.find_kernel(slot, letter)?;
        kernel.check_size()?;
        let hash = kernel.root_hash()?;
        let command_line = self
            .command_line
            .for_slot(slot.unique_guid, hash.as_ref())?;
        let staged = self.machine.stage(&kernel, &command_line)?;
        Ok((kernel, staged))
    }

    /// Puts one try less on the medium, if the slot has any that counts. Whether that
    /// is done.
    fn spend_try(&mut self, mut gpt: Gpt, selection: &Selection<'_>, letter: Letter) -> bool {
        let Some(change) = selection.after_boot() else {
            return true;
        };
        let written = gpt.apply(&[change]).and_then(|()| gpt.write(self.disk));
        if let Err(error) = &written {
            self.machine.print(&format!(
                "cannot spend a try of slot {letter}: {}; tries do not count in this boot",
                in_words(error)
            ));
            self.tries_count = false;
        }
        written.is_ok()
    }

    fn give_up(&mut self, slot: &Partition, letter: Letter, reason: String) {
        let number = slot.number;
        self.machine.print(&format!(
            "cannot start slot {letter} (partition {number}): {reason}"
        ));
        self.given_up.insert(number, reason);
    }

    fn fate(&self, slot: &Partition) -> String {
        match self.given_up.get(&slot.number) {
            Some(reason) => reason.clone(),
            None => "not started, its priority is 0".into(),
        }
    }
}

/// `partition 4, priority 2, tries 1 -> 0`
fn description(number: u32, before: Attributes, selection: &Selection<'_>) -> String {
    let (priority, tries) = (before.priority(), before.tries());
    let spent = match selection.after_boot() {
        Some(after) => format!(" -> {}", after.attributes.tries()),
        None if tries > 0 => ", not spent".into(),
        None => String::new(),
    };
    let successful = match before.successful() {
        true => ", successful",
        false => "",
    };
    format!("partition {number}, priority {priority}, tries {tries}{spent}{successful}")
}

/// An error with its causes.
fn in_words(error: &dyn core::error::Error) -> String {
    let mut words = format!("{error}");
    let mut next = error.source();
    while let Some(cause) = next {
        words.push_str(&format!(": {cause}"));
        next = cause.source();
    }
    words
}
