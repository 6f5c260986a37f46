//! Arguments to table: parse, open, decide, write, tell.
//!
//! Decisions are the library's; this module only names partitions and prints.

mod arguments;
pub(crate) mod cgpt;
mod disk;
mod initramfs;
mod show;

use std::io::Write;

use anyhow::{Context, Result, bail};
use gptprio::{
    Access, Change, CopyHealth, GptError, Partition, Selection, mark_successful, mark_unbootable,
    prioritize, select,
};

pub(crate) use arguments::Arguments;
use arguments::{Action, NextOptions, PrioritizeOptions, RepairOptions, SetOptions, Slot};
use disk::Disk;
pub(crate) use disk::MissingPartition;

/// Performs one action.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let done = match &arguments.action {
        Action::Show(options) => show::show(options),
        Action::Next(options) => next(options),
        Action::Set(options) => set(options),
        Action::Prioritize(options) => prioritize_slot(options),
        Action::MarkSuccessful(slot) => edit_slot(slot, mark_successful),
        Action::MarkUnbootable(slot) => edit_slot(slot, |slots, number| {
            mark_unbootable(slots, number).map(|change| vec![change])
        }),
        Action::Repair(options) => repair(options),
        Action::Initramfs(options) => initramfs::pack(options),
    };
    done.with_context(|| arguments.action.path().display().to_string())
}

/// What to do about an error, where that is known.
pub(crate) fn advice(error: &anyhow::Error) -> Option<&'static str> {
    match error.chain().find_map(|cause| cause.downcast_ref())? {
        GptError::BothBroken { .. } => Some(
            "neither copy can be repaired from the other; if this is the right disk, \
             restore a saved table, for example with sgdisk --load-backup",
        ),
        GptError::NotASlot { .. } => {
            Some("gptprio show lists the slots; --type chooses slots of another type")
        }
        GptError::NoSuchPartition { .. } => Some("gptprio show lists the partitions"),
        GptError::Changed => Some("nothing was written; try again"),
        GptError::Write { .. } | GptError::NotConfirmed { .. } => {
            Some("one copy of the table is still valid; check the disk, then run gptprio repair")
        }
        GptError::NoRoom { .. } => Some(
            "the table does not fit this disk; if an image was cut or a disk replaced, \
             sgdisk -e moves the backup copy to the end",
        ),
        _ => None,
    }
}

fn next(options: &NextOptions) -> Result<()> {
    let access = match options.dry_run {
        true => Access::ReadOnly,
        false => Access::ReadWrite,
    };
    let mut disk = Disk::open(&options.disk, access)?;
    let slots = disk.gpt.slots(options.slots.type_guid);
    let selection = select(&slots);
    let Some(slot) = selection.slot() else {
        bail!("nothing to boot: {selection}; give a slot a priority with gptprio set");
    };
    if let Selection::LastResort(_) = selection {
        tell(format_args!("warning: {selection}"));
    }
    let try_spent = selection.after_boot();
    if !options.dry_run {
        spend(&mut disk, try_spent)?;
    }
    if options.json {
        return show::print_json(&show::Next::new(&selection));
    }
    writeln!(anstream::stdout(), "{}", slot.unique_guid)?;
    Ok(())
}

/// Writes the spent try. A slot without tries boots even if the disk cannot be written,
/// so then a failing repair is only worth a warning.
fn spend(disk: &mut Disk, try_spent: Option<Change>) -> Result<()> {
    match try_spent {
        Some(change) => {
            disk.gpt.apply(&[change])?;
            disk.write()?;
        }
        None if disk.gpt.health().is_good() => {}
        None => {
            if let Err(error) = disk.write() {
                tell(format_args!("warning: {:#}", anyhow::Error::from(error)));
            }
        }
    }
    Ok(())
}

fn set(options: &SetOptions) -> Result<()> {
    let target = &options.target;
    let (disk, number) = Disk::open_partition(&target.disk, target.partition.as_deref())?;
    let mut attributes = disk.gpt.partition(number)?.attributes;
    if let Some(priority) = options.values.priority {
        attributes = attributes.with_priority(priority);
    }
    if let Some(tries) = options.values.tries {
        attributes = attributes.with_tries(tries);
    }
    if let Some(successful) = options.values.successful {
        attributes = attributes.with_successful(successful == 1);
    }
    edit(disk, &[Change { number, attributes }])
}

fn prioritize_slot(options: &PrioritizeOptions) -> Result<()> {
    let Slot { target, slots } = &options.slot;
    let (disk, number) = Disk::open_maybe_partition(&target.disk, target.partition.as_deref())?;
    if options.friends && number.is_none() {
        return Err(MissingPartition.into());
    }
    let slots = disk.gpt.slots(slots.type_guid);
    let changes = prioritize(&slots, number, options.max, options.friends)?;
    edit(disk, &changes)
}

fn edit_slot(
    slot: &Slot,
    decide: impl FnOnce(&[Partition], u32) -> Result<Vec<Change>, GptError>,
) -> Result<()> {
    let Slot { target, slots } = slot;
    let (disk, number) = Disk::open_partition(&target.disk, target.partition.as_deref())?;
    let changes = decide(&disk.gpt.slots(slots.type_guid), number)?;
    edit(disk, &changes)
}

fn repair(options: &RepairOptions) -> Result<()> {
    let disk = Disk::open(&options.disk, Access::ReadWrite)?;
    if disk.gpt.health().is_good() {
        tell(format_args!("both copies are valid and equal"));
    }
    edit(disk, &[])
}

/// Writes changes and tells what is different now.
fn edit(mut disk: Disk, changes: &[Change]) -> Result<()> {
    let before: Vec<_> = disk.gpt.partitions().collect();
    let health = disk.gpt.health();
    disk.gpt.apply(changes)?;
    disk.write()?;

    for (name, copy) in [("primary", &health.primary), ("backup", &health.backup)] {
        if !matches!(copy, CopyHealth::Valid) {
            tell(format_args!("repaired the {name} copy, which was {copy}"));
        }
    }
    let after = disk.gpt.partitions();
    for (old, new) in before.iter().zip(after).filter(|(old, new)| *old != new) {
        tell(format_args!(
            "partition {} ({}): {} (was {})",
            new.number,
            show::printable(&new.name),
            new.attributes,
            old.attributes
        ));
    }
    Ok(())
}

/// A line for a person.
fn tell(line: std::fmt::Arguments<'_>) {
    anstream::eprintln!("gptprio: {line}");
}
