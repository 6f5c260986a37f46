//! The command under the name `cgpt`, by which post-install programs and scripts of
//! images call it: what concerns slots, with cgpt's options, output and exit statuses
//! (0 and 1). It parses and translates; the work is done by the command's own actions.

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::{Args, Parser, Subcommand};
use gptprio::machine::{Device, Root};
use gptprio::{Access, Guid, Partition, Selection, USR_TYPE, select};

use super::arguments::{
    self, NextOptions, PrioritizeOptions, RepairOptions, SetOptions, ShowOptions, Slot, SlotType,
    Target, Values,
};
use super::disk::Disk;
use super::show;

/// What cgpt calls the type of the slots.
const SLOT_ALIASES: [&str; 4] = [
    "flatcar-usr",
    "flatcar-rootfs",
    "coreos-usr",
    "coreos-rootfs",
];

/// Show and change which slot of a disk boots next, as cgpt does.
///
/// DRIVE is a block device or an image file; the node of a partition stands for its disk
/// and -i. Every command that writes also repairs a broken copy of the table. Partitions
/// are made and changed with sgdisk. Under its own name, gptprio, this program does more.
///
/// The first letters of a command are enough. Numbers are read as in C: 0x4 is 4, 010 is 8.
#[derive(Debug, Parser)]
#[command(name = "cgpt", version, max_term_width = 90, infer_subcommands = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Print the table, a partition, or one field of it
    Show {
        #[command(flatten)]
        field: Field,
        #[command(flatten)]
        partition: Numbered,
        /// Of a partition, its type and attributes as numbers
        #[arg(short = 'n')]
        numeric: bool,
        #[command(flatten)]
        _accepted: Accepted,
    },
    /// Set attributes of a partition that is there
    Add {
        #[command(flatten)]
        values: NewValues,
        #[command(flatten)]
        partition: Numbered,
    },
    /// Print the nodes of the partitions that match
    Find {
        #[command(flatten)]
        wanted: Wanted,
        /// Where to look; on all drives when not given
        drive: Option<PathBuf>,
    },
    /// Make a slot the first to boot and renumber the others below it
    Prioritize {
        /// Highest priority to use
        #[arg(short = 'P', value_name = "NUM", value_parser = between::<1, 15>)]
        max: Option<u8>,
        /// Raise all slots of the same priority with it
        #[arg(short = 'f')]
        friends: bool,
        #[command(flatten)]
        partition: Numbered,
    },
    /// Choose the slot to boot, spend one of its tries, and print its unique GUID
    Next {
        /// The drive; the one with the slot of the highest priority when not given
        drive: Option<PathBuf>,
    },
    /// Rebuild a broken copy of the table from the good one
    Repair {
        /// Accepted, without effect
        #[arg(short = 'v')]
        _verbose: bool,
        /// Block device or image file
        drive: PathBuf,
    },
}

#[derive(Debug, Args)]
struct Numbered {
    /// Number of the partition
    #[arg(short = 'i', value_name = "NUM", value_parser = number)]
    number: Option<u32>,
    /// Block device or image file, or the node of the partition
    drive: PathBuf,
}

/// How much cgpt says about the table; ours is always the same.
#[derive(Debug, Args)]
struct Accepted {
    /// Accepted, without effect
    #[arg(short = 'v')]
    _verbose: bool,
    /// Accepted, without effect
    #[arg(short = 'q')]
    _quick: bool,
    /// Accepted, without effect
    #[arg(short = 'd')]
    _debug: bool,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
struct NewValues {
    /// Priority, 0 to 15; 0 never boots
    #[arg(short = 'P', value_name = "NUM", value_parser = between::<0, 15>)]
    priority: Option<u8>,
    /// Boots that may be tried before the slot counts as bad, 0 to 15
    #[arg(short = 'T', value_name = "NUM", value_parser = between::<0, 15>)]
    tries: Option<u8>,
    /// Whether the slot has booted well, 0 or 1
    #[arg(short = 'S', value_name = "0|1", value_parser = between::<0, 1>)]
    successful: Option<u8>,
}

#[derive(Debug, Args)]
#[group(multiple = false)]
#[expect(clippy::struct_excessive_bools, reason = "flags are what it is")]
struct Field {
    /// First sector
    #[arg(short = 'b')]
    begin: bool,
    /// Size in sectors
    #[arg(short = 's')]
    size: bool,
    /// Type GUID
    #[arg(short = 't')]
    type_guid: bool,
    /// Unique GUID
    #[arg(short = 'u')]
    unique_guid: bool,
    /// Label
    #[arg(short = 'l')]
    label: bool,
    /// Successful
    #[arg(short = 'S')]
    successful: bool,
    /// Tries
    #[arg(short = 'T')]
    tries: bool,
    /// Priority
    #[arg(short = 'P')]
    priority: bool,
    /// Bits 48 to 63 of the attributes
    #[arg(short = 'A')]
    attributes: bool,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
struct Wanted {
    /// Type GUID, or flatcar-usr, flatcar-rootfs, coreos-usr or coreos-rootfs
    #[arg(short = 't', value_name = "TYPE", value_parser = partition_type)]
    type_guid: Option<Guid>,
    /// Unique GUID
    #[arg(short = 'u', value_name = "GUID")]
    unique_guid: Option<Guid>,
    /// Label
    #[arg(short = 'l', value_name = "LABEL")]
    label: Option<String>,
}

/// Whether a program of this name is to be cgpt.
pub(crate) fn is_name(program: &OsStr) -> bool {
    Path::new(program).file_name() == Some(OsStr::new("cgpt"))
}

/// Performs one action.
pub(crate) fn run(arguments: Arguments) -> Result<()> {
    let slots = || SlotType {
        type_guid: USR_TYPE,
    };
    let action = match arguments.action {
        Action::Show {
            field,
            partition,
            numeric,
            ..
        } => match (field.of(), partition.number) {
            (Some(field), _) => return print(&partition, field),
            (None, Some(_)) if numeric => return print(&partition, entry_in_numbers),
            (None, Some(_)) => return print(&partition, entry),
            (None, None) => arguments::Action::Show(ShowOptions {
                disk: partition.drive,
                json: false,
                slots: slots(),
            }),
        },
        Action::Add { values, partition } => arguments::Action::Set(SetOptions {
            target: partition.into(),
            values: Values {
                priority: values.priority,
                tries: values.tries,
                successful: values.successful,
            },
        }),
        Action::Find { wanted, drive } => return print_nodes(&wanted, drive.as_deref()),
        Action::Prioritize {
            max,
            friends,
            partition,
        } => arguments::Action::Prioritize(PrioritizeOptions {
            slot: Slot {
                target: partition.into(),
                slots: slots(),
            },
            max,
            friends,
        }),
        Action::Next { drive } => arguments::Action::Next(NextOptions {
            disk: match drive {
                Some(drive) => drive,
                None => drive_to_boot()?,
            },
            dry_run: false,
            json: false,
            slots: slots(),
        }),
        Action::Repair { drive, .. } => arguments::Action::Repair(RepairOptions { disk: drive }),
    };
    super::run(&arguments::Arguments { action })
}

impl From<Numbered> for Target {
    fn from(Numbered { number, drive }: Numbered) -> Self {
        Self {
            disk: drive,
            partition: number.map(|number| number.to_string()),
        }
    }
}

/// A partition, or one field of it, as text.
type Show = fn(&Partition) -> String;

impl Field {
    /// What to print of a partition, if a field was asked for.
    fn of(&self) -> Option<Show> {
        let fields: [(bool, Show); 9] = [
            (self.begin, |of| of.first_lba.to_string()),
            (self.size, |of| sectors(of).to_string()),
            (self.type_guid, |of| upper_case(of.type_guid)),
            (self.unique_guid, |of| upper_case(of.unique_guid)),
            (self.label, |of| show::printable(&of.name)),
            (self.successful, |of| {
                u8::from(of.attributes.successful()).to_string()
            }),
            (self.tries, |of| of.attributes.tries().to_string()),
            (self.priority, |of| of.attributes.priority().to_string()),
            (self.attributes, |of| {
                format!("0x{:x}", of.attributes.raw() >> 48)
            }),
        ];
        let mut asked = fields.into_iter().filter(|(asked, _)| *asked);
        asked.next().map(|(_, field)| field)
    }
}

/// As cgpt lays it out, and names the type of the slots.
fn entry(of: &Partition) -> String {
    let Partition { attributes, .. } = of;
    match of.type_guid == USR_TYPE {
        true => {
            let attributes = format!(
                "priority={} tries={} successful={}",
                attributes.priority(),
                attributes.tries(),
                u8::from(attributes.successful()),
            );
            lines(of, "Alias for coreos-rootfs", Some(&attributes))
        }
        false => lines(of, &upper_case(of.type_guid), None),
    }
}

fn entry_in_numbers(of: &Partition) -> String {
    let attributes = format!("[{:x}]", of.attributes.raw() >> 48);
    lines(of, &upper_case(of.type_guid), Some(&attributes))
}

fn lines(of: &Partition, type_name: &str, attributes: Option<&str>) -> String {
    let mut text = format!(
        "{:>12}{:>12}{:>8}  contents\n{:>12}{:>12}{:>8}  Label: \"{}\"",
        "start",
        "size",
        "part",
        of.first_lba,
        sectors(of),
        of.number,
        show::printable(&of.name),
    );
    let guid = upper_case(of.unique_guid);
    let more = [
        ("Type", Some(type_name)),
        ("UUID", Some(&guid)),
        ("Attr", attributes),
    ];
    for (name, value) in more {
        if let Some(value) = value {
            text.push_str(&format!("\n{:34}{name}: {value}", ""));
        }
    }
    text
}

/// As the entry says; 0 for one that ends before it begins.
fn sectors(of: &Partition) -> u64 {
    let size = of.last_lba.checked_sub(of.first_lba);
    size.and_then(|size| size.checked_add(1)).unwrap_or(0)
}

fn print(partition: &Numbered, show: Show) -> Result<()> {
    let (disk, node) = Disk::open_with_node(&partition.drive, Access::ReadOnly)?;
    let Some(number) = partition.number.or(node) else {
        bail!("which partition? give its number with -i");
    };
    let text = show(&disk.gpt.partition(number)?);
    writeln!(anstream::stdout(), "{text}")?;
    Ok(())
}

fn print_nodes(wanted: &Wanted, drive: Option<&Path>) -> Result<()> {
    let disks = match drive {
        Some(drive) => vec![Disk::open(drive, Access::ReadOnly)?],
        None => disks()?,
    };
    let mut found = false;
    for disk in &disks {
        for partition in disk.gpt.partitions().filter(|one| wanted.fits(one)) {
            found = true;
            let node = node_of(&disk.path, partition.number);
            writeln!(anstream::stdout(), "{node}")?;
        }
    }
    if !found {
        bail!("no such partition");
    }
    Ok(())
}

impl Wanted {
    /// One thing that fits is enough, as for cgpt.
    fn fits(&self, partition: &Partition) -> bool {
        self.type_guid == Some(partition.type_guid)
            || self.unique_guid == Some(partition.unique_guid)
            || self.label.as_ref() == Some(&partition.name)
    }
}

/// As the kernel names it: `/dev/sda3`, `/dev/nvme0n1p3`.
fn node_of(disk: &Path, number: u32) -> String {
    let disk = disk.display().to_string();
    let between = match disk.ends_with(|last: char| last.is_ascii_digit()) {
        true => "p",
        false => "",
    };
    format!("{disk}{between}{number}")
}

/// The drive with the slot that boots, as a boot loader finds it that looks at them all.
fn drive_to_boot() -> Result<PathBuf> {
    let mut best: Option<(u8, PathBuf)> = None;
    for disk in disks()? {
        let slots = disk.gpt.slots(USR_TYPE);
        let priority = match select(&slots) {
            Selection::Slot(slot) => slot.attributes.priority(),
            Selection::LastResort(_) => 0,
            Selection::Nothing => continue,
        };
        // The first of equals.
        if best.as_ref().is_none_or(|(most, _)| priority > *most) {
            best = Some((priority, disk.path));
        }
    }
    match best {
        Some((_, path)) => Ok(path),
        None => bail!("no drive has a slot to boot"),
    }
}

/// All drives with a partition table; neither mappings nor loop devices, whose partitions
/// are those of others.
fn disks() -> Result<Vec<Disk>> {
    let root = Root::system();
    let devices = Device::disks(&root)?.into_iter().filter(|device| {
        let hardware = format!("/sys/class/block/{}/device", device.name());
        Path::new(&hardware).exists()
    });
    Ok(devices
        .filter_map(|device| Disk::open(Path::new(&device.node()), Access::ReadOnly).ok())
        .collect())
}

/// As strtoul(3) reads a whole argument and finds out its base.
fn number(text: &str) -> Result<u32, String> {
    let digits = text.trim_start();
    let digits = digits.strip_prefix('+').unwrap_or(digits);
    let hexadecimal = digits
        .strip_prefix("0x")
        .or_else(|| digits.strip_prefix("0X"));
    let (base, digits) = match (hexadecimal, digits.strip_prefix('0')) {
        (Some(rest), _) => (16, rest),
        (None, Some(rest)) if !rest.is_empty() => (8, rest),
        (None, _) => (10, digits),
    };
    // A second sign is none to strtoul.
    match digits.starts_with('+') {
        true => Err("one sign is enough".to_owned()),
        false => u32::from_str_radix(digits, base).map_err(|error| error.to_string()),
    }
}

/// Such a number, in these bounds.
fn between<const LEAST: u8, const MOST: u8>(text: &str) -> Result<u8, String> {
    u8::try_from(number(text)?)
        .ok()
        .filter(|number| (LEAST..=MOST).contains(number))
        .ok_or_else(|| format!("it is not in {LEAST} to {MOST}"))
}

fn upper_case(guid: Guid) -> String {
    guid.to_string().to_uppercase()
}

fn partition_type(text: &str) -> Result<Guid, String> {
    if SLOT_ALIASES.contains(&text) {
        return Ok(USR_TYPE);
    }
    text.parse()
        .map_err(|_| format!("a GUID is expected, or one of {}", SLOT_ALIASES.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_of_partitions_are_called_as_by_the_kernel() {
        for (disk, node) in [
            ("/dev/sda", "/dev/sda3"),
            ("/dev/nvme0n1", "/dev/nvme0n1p3"),
            ("/dev/mmcblk0", "/dev/mmcblk0p3"),
            ("disk.img", "disk.img3"),
        ] {
            assert_eq!(node_of(Path::new(disk), 3), node);
        }
    }

    #[test]
    fn numbers_are_read_as_in_c() {
        for (text, value) in [
            ("0", Some(0)),
            ("4", Some(4)),
            ("+4", Some(4)),
            (" 4", Some(4)),
            ("0x4", Some(4)),
            ("0X1f", Some(31)),
            ("010", Some(8)),
            ("4294967295", Some(u32::MAX)),
            ("", None),
            ("+", None),
            ("0x", None),
            ("0x+4", None),
            ("++4", None),
            ("08", None),
            ("-4", None),
            ("4x", None),
            ("4 ", None),
            ("4294967296", None),
            ("4 é", None),
        ] {
            assert_eq!(number(text).ok(), value, "{text:?}");
        }
        assert_eq!(between::<1, 15>("0x0f"), Ok(15));
        for text in ["0", "0x10", "256"] {
            between::<1, 15>(text).unwrap_err();
        }
    }

    #[test]
    fn the_program_is_cgpt_by_its_name_alone() {
        for (program, is) in [
            ("cgpt", true),
            ("/usr/bin/cgpt", true),
            ("gptprio", false),
            ("/cgpt/gptprio", false),
            ("", false),
        ] {
            assert_eq!(is_name(OsStr::new(program)), is, "{program}");
        }
    }
}
