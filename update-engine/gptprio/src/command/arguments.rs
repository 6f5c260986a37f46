//! The command line.

use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};
use gptprio::{Guid, USR_TYPE};

/// Show and change which slot of a disk boots next.
///
/// A slot is a partition that holds a system. Its priority, tries and successful
/// attributes are kept in the partition table, where boot loaders read them: the highest
/// priority boots first among the slots that have tries left or were successful before;
/// a slot of priority 0 never boots.
///
/// DISK is a block device or an image file. Wherever a PARTITION follows, name it by
/// number, label or unique GUID; or give the device node of the partition as DISK.
///
/// Both copies of the table are kept valid: every command that writes also repairs a
/// broken copy from the good one, survives a power cut at any moment, and reads back what
/// it wrote. Exit status: 0 done, 1 failed, 2 wrong usage.
#[derive(Debug, Parser)]
#[command(name = "gptprio", version, max_term_width = 90)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) action: Action,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// Print the partitions, what would boot next, and the health of the table
    Show(ShowOptions),
    /// Choose the slot to boot, spend one of its tries, and print its unique GUID
    ///
    /// The try is on the disk before the GUID is printed. When no slot may boot, the one
    /// with the highest priority is printed after a warning.
    Next(NextOptions),
    /// Set priority, tries or successful of one partition
    Set(SetOptions),
    /// Make a slot the first to boot and renumber the others below it
    ///
    /// Slots of priority 0 stay there. Without PARTITION the priorities are only
    /// renumbered without gaps.
    Prioritize(PrioritizeOptions),
    /// Record that a slot runs well: successful 1, tries 0, first to boot
    MarkSuccessful(Slot),
    /// Keep a slot from booting: priority 0, tries 0, successful 0
    MarkUnbootable(Slot),
    /// Rebuild a broken or differing copy of the table from the good one
    Repair(RepairOptions),
    /// Pack the boot selector gptprio-init into an initramfs
    ///
    /// A kernel that is started with it chooses a slot by these rules and goes on with
    /// the slot's own kernel.
    Initramfs(InitramfsOptions),
}

impl Action {
    /// The path that it is about.
    pub(crate) fn path(&self) -> &Path {
        match self {
            Action::Show(options) => &options.disk,
            Action::Next(options) => &options.disk,
            Action::Set(options) => &options.target.disk,
            Action::Prioritize(options) => &options.slot.target.disk,
            Action::MarkSuccessful(slot) | Action::MarkUnbootable(slot) => &slot.target.disk,
            Action::Repair(options) => &options.disk,
            Action::Initramfs(options) => &options.output,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct ShowOptions {
    /// Block device or image file
    pub(crate) disk: PathBuf,
    /// Print JSON for programs
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) slots: SlotType,
}

#[derive(Debug, Args)]
pub(crate) struct NextOptions {
    /// Block device or image file
    pub(crate) disk: PathBuf,
    /// Only tell what would boot; write nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print JSON for programs
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) slots: SlotType,
}

#[derive(Debug, Args)]
pub(crate) struct SetOptions {
    #[command(flatten)]
    pub(crate) target: Target,
    #[command(flatten)]
    pub(crate) values: Values,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub(crate) struct Values {
    /// Priority, 0 to 15; 0 never boots
    #[arg(short = 'P', long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=15))]
    pub(crate) priority: Option<u8>,
    /// Boots that may be tried before the slot counts as bad, 0 to 15
    #[arg(short = 'T', long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=15))]
    pub(crate) tries: Option<u8>,
    /// Whether the slot has booted well, 0 or 1
    #[arg(short = 'S', long, value_name = "0|1", value_parser = clap::value_parser!(u8).range(0..=1))]
    pub(crate) successful: Option<u8>,
}

#[derive(Debug, Args)]
pub(crate) struct PrioritizeOptions {
    #[command(flatten)]
    pub(crate) slot: Slot,
    /// Priority of the first slot [default: the number of different priorities]
    #[arg(short = 'P', long = "max", value_name = "MAX", value_parser = clap::value_parser!(u8).range(1..=15))]
    pub(crate) max: Option<u8>,
    /// Raise all slots that have the same priority as PARTITION with it
    #[arg(short = 'f', long)]
    pub(crate) friends: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RepairOptions {
    /// Block device or image file
    pub(crate) disk: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct InitramfsOptions {
    /// File to write
    pub(crate) output: PathBuf,
    /// The program gptprio-init, linked statically
    #[arg(long, value_name = "FILE")]
    pub(crate) init: PathBuf,
    /// Module of the kernel to load, NAME.ko; repeat in the order in which they are needed
    #[arg(long = "module", value_name = "FILE")]
    pub(crate) modules: Vec<PathBuf>,
    /// Settings, instead of gptprio/gptprio.conf on the boot partition
    #[arg(long, value_name = "FILE")]
    pub(crate) settings: Option<PathBuf>,
}

/// A slot to change.
#[derive(Debug, Args)]
pub(crate) struct Slot {
    #[command(flatten)]
    pub(crate) target: Target,
    #[command(flatten)]
    pub(crate) slots: SlotType,
}

/// A partition to change.
#[derive(Debug, Args)]
pub(crate) struct Target {
    /// Block device or image file, or the device node of the partition
    pub(crate) disk: PathBuf,
    /// Number, label or unique GUID
    pub(crate) partition: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct SlotType {
    /// Partition type of the slots
    #[arg(long = "type", value_name = "GUID", default_value_t = USR_TYPE)]
    pub(crate) type_guid: Guid,
}
