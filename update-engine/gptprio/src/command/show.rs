//! The partition table for people and for programs.

use std::io::Write;

use anyhow::Result;
use comfy_table::{CellAlignment, Table, presets};
use gptprio::{Access, BlockDevice, Guid, Health, Partition, Selection, select};
use serde::Serialize;

use super::arguments::ShowOptions;
use super::disk::Disk;

/// Prints the table; advice about a broken copy goes to stderr.
pub(crate) fn show(options: &ShowOptions) -> Result<()> {
    let disk = &Disk::open(&options.disk, Access::ReadOnly)?;
    let type_guid = options.slots.type_guid;
    let slots = disk.gpt.slots(type_guid);
    let selection = select(&slots);
    if options.json {
        print_json(&Report::new(disk, type_guid, &selection))?;
    } else {
        write!(anstream::stdout(), "{}", page(disk, type_guid, &selection))?;
    }
    if !disk.gpt.health().is_good() {
        super::tell(format_args!(
            "the table is not in good health; run gptprio repair {}",
            disk.path.display()
        ));
    }
    Ok(())
}

/// Prints one JSON document.
pub(crate) fn print_json(document: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(document)?;
    writeln!(anstream::stdout(), "{text}")?;
    Ok(())
}

/// A label as it may be printed on a terminal.
pub(crate) fn printable(label: &str) -> String {
    label.replace(char::is_control, "\u{fffd}")
}

fn page(disk: &Disk, type_guid: Guid, selection: &Selection<'_>) -> String {
    let Health { primary, backup } = disk.gpt.health();
    format!(
        "Disk {path}: {size}, sectors of {sector_size} bytes, GUID {guid}\n\
         Primary copy: {primary}\n\
         Backup copy: {backup}\n\
         \n\
         {table}\n\
         \n\
         {outlook}\n",
        path = disk.path.display(),
        size = human_size(disk.device.len()),
        sector_size = disk.gpt.sector_size(),
        guid = disk.gpt.disk_guid(),
        table = partitions(disk, type_guid, selection),
        outlook = outlook(selection),
    )
}

fn partitions(disk: &Disk, type_guid: Guid, selection: &Selection<'_>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "Number",
        "Label",
        "Start",
        "Size",
        "Priority",
        "Tries",
        "Successful",
        "",
    ]);
    for partition in disk.gpt.partitions() {
        let is_next = selection.slot() == Some(&partition);
        let [priority, tries, successful] = match partition.type_guid == type_guid {
            true => [
                partition.attributes.priority().to_string(),
                partition.attributes.tries().to_string(),
                u8::from(partition.attributes.successful()).to_string(),
            ],
            false => ["-", "-", "-"].map(String::from),
        };
        table.add_row([
            partition.number.to_string(),
            printable(&partition.name),
            partition.first_lba.to_string(),
            human_size(size_in_bytes(disk, &partition)),
            priority,
            tries,
            successful,
            String::from(if is_next { "◀ boots next" } else { "" }),
        ]);
    }
    for column in [0, 2, 3, 4, 5, 6] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt()
}

fn outlook(selection: &Selection<'_>) -> String {
    match selection {
        Selection::Slot(slot) => {
            format!("Next boot: {}: {selection}", printable(&slot.name))
        }
        Selection::LastResort(slot) => format!(
            "Next boot: {} as a last resort: {selection}",
            printable(&slot.name)
        ),
        Selection::Nothing => format!("Next boot: none: {selection}"),
    }
}

/// As the entry says; 0 for an entry that ends before it begins.
fn size_in_bytes(disk: &Disk, partition: &Partition) -> u64 {
    partition
        .last_lba
        .checked_sub(partition.first_lba)
        .and_then(|sectors| sectors.checked_add(1))
        .and_then(|sectors| sectors.checked_mul(u64::from(disk.gpt.sector_size())))
        .unwrap_or(0)
}

/// Bytes in the largest binary unit that leaves at least 1, to a tenth.
fn human_size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let fits = |&(shift, _): &(u32, &str)| bytes >> shift > 0;
    let Some((shift, unit)) = (10..).step_by(10).zip(UNITS).take_while(fits).last() else {
        return format!("{bytes} B");
    };
    let whole = bytes >> shift;
    let tenths = ((bytes - (whole << shift)) >> (shift - 10)) * 10 / 1024;
    match tenths {
        0 => format!("{whole} {unit}"),
        _ => format!("{whole}.{tenths} {unit}"),
    }
}

/// What `show --json` prints.
#[derive(Debug, Serialize)]
struct Report {
    disk: String,
    size_bytes: u64,
    sector_size: u32,
    disk_guid: String,
    healthy: bool,
    primary: String,
    backup: String,
    slot_type: String,
    partitions: Vec<Row>,
    next: Option<Next>,
}

#[derive(Debug, Serialize)]
struct Row {
    number: u32,
    label: String,
    type_guid: String,
    unique_guid: String,
    first_sector: u64,
    last_sector: u64,
    size_bytes: u64,
    /// All 64 bits, in hexadecimal.
    attributes: String,
    is_slot: bool,
    priority: u8,
    tries: u8,
    successful: bool,
}

/// What `next --json` prints, and a part of `show --json`: the slot that boots next, its
/// attributes before, and its tries after.
#[derive(Debug, Serialize)]
pub(crate) struct Next {
    number: u32,
    label: String,
    unique_guid: String,
    priority: u8,
    tries: u8,
    tries_after_boot: u8,
    successful: bool,
    last_resort: bool,
    reason: String,
}

impl Report {
    fn new(disk: &Disk, type_guid: Guid, selection: &Selection<'_>) -> Report {
        let health = disk.gpt.health();
        let row = |partition: Partition| Row {
            number: partition.number,
            type_guid: partition.type_guid.to_string(),
            unique_guid: partition.unique_guid.to_string(),
            first_sector: partition.first_lba,
            last_sector: partition.last_lba,
            size_bytes: size_in_bytes(disk, &partition),
            attributes: format!("{:#018x}", partition.attributes.raw()),
            is_slot: partition.type_guid == type_guid,
            priority: partition.attributes.priority(),
            tries: partition.attributes.tries(),
            successful: partition.attributes.successful(),
            label: partition.name,
        };
        Report {
            disk: disk.path.display().to_string(),
            size_bytes: disk.device.len(),
            sector_size: disk.gpt.sector_size(),
            disk_guid: disk.gpt.disk_guid().to_string(),
            healthy: health.is_good(),
            primary: health.primary.to_string(),
            backup: health.backup.to_string(),
            slot_type: type_guid.to_string(),
            partitions: disk.gpt.partitions().map(row).collect(),
            next: Next::new(selection),
        }
    }
}

impl Next {
    /// `None` when nothing can boot.
    pub(crate) fn new(selection: &Selection<'_>) -> Option<Next> {
        let slot = selection.slot()?;
        let after = selection
            .after_boot()
            .map_or(slot.attributes, |change| change.attributes);
        Some(Next {
            number: slot.number,
            label: slot.name.clone(),
            unique_guid: slot.unique_guid.to_string(),
            priority: slot.attributes.priority(),
            tries: slot.attributes.tries(),
            tries_after_boot: after.tries(),
            successful: slot.attributes.successful(),
            last_resort: matches!(selection, Selection::LastResort(_)),
            reason: selection.to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rounded_down_to_a_tenth_of_their_unit() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1535, "1.4 KiB"),
            (1536, "1.5 KiB"),
            (1_065_345_024, "1015.9 MiB"),
            (1 << 30, "1 GiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(human_size(bytes), text, "{bytes}");
        }
    }
}
