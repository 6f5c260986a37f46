//! The disk that holds the slots, and its partitions as devices.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use gptprio::boot::{Rescue, Settings, repair};
use gptprio::machine::{Device, Root};
use gptprio::{Access, BOOT_LABEL, FileDevice, Gpt, Guid, Partition};
use reread_partitions::reread;

use crate::console;

/// Between two looks for a disk.
const PAUSE: Duration = Duration::from_millis(100);

/// A disk is there a moment before its partitions are. Longer than that they are not
/// waited for: perhaps the kernel does not see them at all.
const SETTLING: Duration = Duration::from_secs(5);

/// A disk with slots.
#[derive(Debug)]
pub(crate) struct Disk {
    device: Device,
    gpt: Gpt,
}

impl Disk {
    /// Waits for the first disk, by name, that has slots, or for the one in the settings.
    pub(crate) fn wait_for(settings: &Settings) -> Result<Self, Rescue> {
        let end = Instant::now() + settings.wait;
        loop {
            let (mut disks, found) = look(settings);
            if disks.len() > 1 {
                let nodes: Vec<_> = disks.iter().map(Self::node).collect();
                console::print(&format!(
                    "{} hold slots, the first is used; disk in gptprio.conf chooses another",
                    nodes.join(", ")
                ));
            }
            if !disks.is_empty() {
                return Ok(disks.swap_remove(0));
            }
            if Instant::now() >= end {
                let what = settings.disk.as_deref().unwrap_or("a disk");
                let seconds = settings.wait.as_secs();
                let reason = format!("{what} with slots was not found in {seconds} seconds");
                return Err(Rescue::no_disk(reason, found));
            }
            thread::sleep(PAUSE);
        }
    }

    /// Such as `/dev/sda`.
    pub(crate) fn node(&self) -> String {
        self.device.node()
    }

    /// Opens it for writing, or at least for reading: a slot that was successful starts
    /// from a disk that cannot be written.
    pub(crate) fn open(&self) -> Result<FileDevice, Rescue> {
        let node = self.node();
        FileDevice::open(&node, Access::ReadWrite)
            .or_else(|error| {
                console::print(&format!("{node} cannot be written: {}", error.cause()));
                FileDevice::open(&node, Access::ReadOnly)
            })
            .map_err(|error| {
                let reason = format!("{node} cannot be read: {}", error.cause());
                Rescue::no_disk(reason, Vec::new())
            })
    }

    /// Repairs a broken copy of the partition table. Without its primary copy the kernel
    /// has seen no partitions, and is asked to look again.
    pub(crate) fn repair(&self, device: &FileDevice) -> Result<(), Rescue> {
        if repair(&mut |line| console::print(line), device)? {
            let seen = File::open(self.node()).and_then(|disk| reread(disk.as_fd()));
            if let Err(error) = seen {
                console::print(&format!("the kernel does not look at it again: {error}"));
            }
        }
        Ok(())
    }

    /// Waits until the kernel shows the partitions that are needed. Without them a slot
    /// would pay a try for nothing.
    pub(crate) fn settle(&self, slot_type: Guid) {
        let end = Instant::now() + SETTLING;
        let slots = self.gpt.slots(slot_type);
        let are_there = || {
            let boot = self.gpt.boot_partition();
            let mut needed = slots.iter().chain(&boot);
            needed.all(|partition| self.node_of(partition).is_ok())
        };
        while !are_there() && Instant::now() < end {
            thread::sleep(PAUSE);
        }
    }

    /// The node of the boot partition.
    pub(crate) fn boot_partition(&self) -> Result<String, String> {
        match self.gpt.boot_partition() {
            Some(partition) => self.node_of(&partition),
            None => Err(format!(
                "{} has neither an EFI system partition nor one labelled {BOOT_LABEL}",
                self.node()
            )),
        }
    }

    /// The node of a partition.
    pub(crate) fn node_of(&self, partition: &Partition) -> Result<String, String> {
        let number = partition.number;
        match self.device.partition_numbered(number) {
            Ok(Some(device)) if Path::new(&device.node()).exists() => Ok(device.node()),
            Ok(_) => Err(format!(
                "the kernel shows no partition {number} of {}; if the primary copy of the \
                 partition table is broken, start it with the word gpt",
                self.node()
            )),
            Err(error) => Err(format!("cannot look for partition {number}: {error}")),
        }
    }
}

/// Disks with slots, and what was found on the others.
fn look(settings: &Settings) -> (Vec<Disk>, Vec<String>) {
    let devices = match Device::disks(&Root::system()) {
        Ok(devices) => devices,
        Err(error) => return (Vec::new(), vec![format!("cannot read /sys: {error}")]),
    };
    let (mut disks, mut found) = (Vec::new(), Vec::new());
    for device in devices {
        let node = device.node();
        if settings.disk.as_ref().is_some_and(|disk| *disk != node) {
            found.push(format!("{node}: not the disk in gptprio.conf"));
            continue;
        }
        match read(&node) {
            Ok(gpt) if !gpt.slots(settings.slot_type).is_empty() => {
                disks.push(Disk { device, gpt });
            }
            Ok(_) => found.push(format!(
                "{node}: no partition of type {}",
                settings.slot_type
            )),
            Err(reason) => found.push(format!("{node}: {reason}")),
        }
    }
    (disks, found)
}

fn read(node: &str) -> Result<Gpt, String> {
    let device =
        FileDevice::open(node, Access::ReadOnly).map_err(|error| error.cause().to_string())?;
    Gpt::read(&device).map_err(|error| error.to_string())
}
