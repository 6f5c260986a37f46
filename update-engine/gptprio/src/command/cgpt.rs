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
#[derive(Debug, Parser)]
#[command(name = "cgpt", version, max_term_width = 90)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Print the table, or one field of a partition
    Show {
        #[command(flatten)]
        field: Field,
        #[command(flatten)]
        partition: Numbered,
        /// Accepted, without effect
        #[arg(short = 'v')]
        _verbose: bool,
    },
    /// Set attributes of a partition that is there
    Add {
        #[command(flatten)]
        values: Values,
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
        #[arg(short = 'P', value_name = "NUM", value_parser = clap::value_parser!(u8).range(1..=15))]
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
    #[arg(short = 'i', value_name = "NUM")]
    number: Option<u32>,
    /// Block device or image file, or the node of the partition
    drive: PathBuf,
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
            field, partition, ..
        } => match field.of() {
            Some(field) => return print_field(&partition, field),
            None => arguments::Action::Show(ShowOptions {
                disk: partition.drive,
                json: false,
                slots: slots(),
            }),
        },
        Action::Add { values, partition } => arguments::Action::Set(SetOptions {
            target: partition.into(),
            values,
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

/// One field of a partition as text.
type Show = fn(&Partition) -> String;

impl Field {
    /// What to print of a partition, if a field was asked for.
    fn of(&self) -> Option<Show> {
        let fields: [(bool, Show); 9] = [
            (self.begin, |of| of.first_lba.to_string()),
            (self.size, |of| {
                let size = of.last_lba.checked_sub(of.first_lba);
                let size = size.and_then(|size| size.checked_add(1));
                size.unwrap_or(0).to_string()
            }),
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

fn print_field(partition: &Numbered, field: Show) -> Result<()> {
    let (disk, node) = Disk::open_with_node(&partition.drive, Access::ReadOnly)?;
    let Some(number) = partition.number.or(node) else {
        bail!("which partition? give its number with -i");
    };
    let text = field(&disk.gpt.partition(number)?);
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
