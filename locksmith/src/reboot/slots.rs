//! The slots of the disk that runs, for a coordinator: which one it runs from,
//! which one boots next. How a system gets into a slot is not known here.

use std::io;
use std::path::PathBuf;

use gptprio::machine::{MachineError, Mount, Place, Root, running_place};
use gptprio::{
    Access, Damage, DeviceError, FileDevice, Gpt, GptError, Guid, Letter, Partition, Selection,
    letters, select,
};

/// Why the slots cannot be read although there may be some.
#[derive(Debug, thiserror::Error)]
pub enum SlotsError {
    /// A table of the kernel cannot be read.
    #[error("cannot tell what the system runs from")]
    Place(#[source] MachineError),
    /// A path cannot be followed.
    #[error("cannot find {path}")]
    Find {
        /// On the machine.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The disk cannot be opened.
    #[error("cannot open the disk {}", disk.display())]
    Open {
        /// The disk.
        disk: PathBuf,
        /// Why.
        source: DeviceError,
    },
    /// Its table is broken in both copies.
    #[error("cannot use the partition table of {}", disk.display())]
    Table {
        /// The disk.
        disk: PathBuf,
        /// Why.
        source: GptError,
    },
    /// The slots contradict each other.
    #[error("cannot tell the slots of {} apart: {problem}", disk.display())]
    Letters {
        /// The disk.
        disk: PathBuf,
        /// What is contradictory.
        problem: String,
    },
}

/// The slots of the running system's disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemSlots {
    /// The disk, as a path to open.
    pub disk: PathBuf,
    /// All slots in the order of their numbers.
    pub slots: Vec<Partition>,
    /// Number of the one that runs.
    pub running: u32,
}

impl SystemSlots {
    /// Reads them; `None` when the system does not run from a slot: from a disk
    /// without any, from the network, in a container.
    ///
    /// # Errors
    ///
    /// It cannot be told.
    pub fn read(root: &Root, slot_type: Guid) -> Result<Option<Self>, SlotsError> {
        let place = Mount::all(root).and_then(|mounts| running_place(root, &mounts));
        let place = match place {
            Ok(place) => place,
            Err(error @ MachineError::Read { .. }) => return Err(SlotsError::Place(error)),
            Err(_) => return Ok(None),
        };
        let (path, start) = match &place {
            Place::Partition { disk, start, .. } => (disk.node(), *start),
            Place::File { file, offset } => (file.clone(), *offset),
        };
        let disk = root
            .path(&path)
            .map_err(|source| SlotsError::Find { path, source })?;
        let gpt = match read_table(&disk, Access::ReadOnly) {
            Ok((_, gpt)) => gpt,
            // Another kind of table has no slots.
            Err(SlotsError::Table {
                source:
                    GptError::BothBroken {
                        primary: Damage::NoSignature { .. },
                        backup: Damage::NoSignature { .. },
                    },
                ..
            }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let slots = gpt.slots(slot_type);
        let begins_there = |slot: &&Partition| {
            let first_byte = slot.first_lba.checked_mul(u64::from(gpt.sector_size()));
            first_byte == Some(start)
        };
        let Some(running) = slots.iter().find(begins_there).map(|slot| slot.number) else {
            return Ok(None);
        };
        Ok(Some(Self {
            disk,
            slots,
            running,
        }))
    }

    /// The slot that runs.
    #[must_use]
    pub fn running(&self) -> &Partition {
        self.slots
            .iter()
            .find(|slot| slot.number == self.running)
            .expect("it was found among them")
    }

    /// What the boot loader would do now.
    #[must_use]
    pub fn next(&self) -> Selection<'_> {
        select(&self.slots)
    }

    /// The letter of a slot.
    ///
    /// # Errors
    ///
    /// Identities and labels contradict each other.
    pub fn letter(&self, slot: &Partition) -> Result<Letter, SlotsError> {
        let all = letters(&self.slots).map_err(|problem| SlotsError::Letters {
            disk: self.disk.clone(),
            problem,
        })?;
        Ok(all[&slot.number])
    }
}

/// Opens a disk with its table.
pub(super) fn read_table(
    disk: &std::path::Path,
    access: Access,
) -> Result<(FileDevice, Gpt), SlotsError> {
    let device = FileDevice::open(disk, access).map_err(|source| SlotsError::Open {
        disk: disk.to_owned(),
        source,
    })?;
    let gpt = Gpt::read(&device).map_err(|source| SlotsError::Table {
        disk: disk.to_owned(),
        source,
    })?;
    Ok((device, gpt))
}
