//! A reboot without firmware and boot loader: this code does what the boot
//! loader would have done, and in an order that keeps the way back.
//!
//! ```text
//!   choose the slot by the boot loader's rule ─▶ stage its kernel ─▶ spend its try ─▶ shut down
//!                                                     │ fails            │ fails         │ refused
//!                                                     ▼                  ▼               ▼
//!                                                  firmware       drop it, firmware   drop it, give
//!                                                                                     the try back
//! ```
//!
//! The try is spent last before the shutdown and given back when there is none,
//! so that a reboot through the firmware finds it unspent: the boot loader
//! spends it itself, and a slot with one try would lose its only chance to two
//! charges. It is noted in memory before it is spent, so that also the daemon
//! that comes after one that was killed gives it back.
//!
//! Once the shutdown goes on, nobody is left to give it back. A jump that fails
//! ends in a reboot through the firmware, and the boot loader starts the old
//! slot, because the new one's try is spent: the update counts as rolled back.
//! Where updates get two tries, the firmware starts the new slot once more.
//! The other order, to spend nothing, would cost more: a new system that hangs
//! would be started again by the boot loader as if it had never been tried.
//!
//! When to reboot, and whether this way is wanted, is not known here.

use std::ffi::{CString, NulError};
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::str::FromStr;

use gptprio::boot::{Kernel, KernelFiles, ReadKernelError, words};
use gptprio::machine::Root;
use gptprio::{Access, Attributes, GptError, Guid, Letter, Partition, Selection, select};

use super::slots::{SlotsError, SystemSlots, read_table};

/// No architecture takes a longer command line.
const MAX_COMMAND_LINE: u64 = 16 << 10;
/// A setting of the kernel is one short line.
const MAX_SETTING: u64 = 4096;

/// Where a spent try is noted. Any boot settles the question, so it may go with it.
const NOTE: &str = "/run/update-engine/spent-try";
/// A note is one short line.
const MAX_NOTE: u64 = 4096;

/// What the boot loader adds to the first boot of a machine alone. It would
/// happen again.
const FIRST_BOOT: [&str; 6] = [
    "coreos.first_boot",
    "flatcar.first_boot",
    "ignition.firstboot",
    "coreos.randomize_disk_guid",
    "flatcar.randomize_disk_guid",
    "ostree.firstboot",
];

/// Why the machine cannot go straight into the next kernel.
#[derive(Debug, thiserror::Error)]
pub enum KexecError {
    /// The slots cannot be read.
    #[error(transparent)]
    Slots(#[from] SlotsError),
    /// There are none.
    #[error("the system does not run from a boot slot")]
    NoSlots,
    /// The boot loader is needed to choose.
    #[error("no slot may be started without the boot loader: {reason}")]
    NoChoice {
        /// The selection in words.
        reason: String,
    },
    /// A file is missing or cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// On the machine.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// It is broken, or it is unclear to which system it belongs.
    #[error("the next kernel cannot be used: {0}")]
    BadKernel(String),
    /// The command line cannot be made over.
    #[error("cannot make the next command line: {0}")]
    CommandLine(CommandLineProblem),
    /// It is no text for the kernel.
    #[error("the next command line has a zero in it")]
    Zero(#[source] NulError),
    /// The machine's administrator has switched it off until the next boot.
    #[error("kexec is switched off: kernel.kexec_load_disabled is 1")]
    SwitchedOff,
    /// The kernel does not take the image.
    #[error("the kernel refuses to stage {}{}", kernel.display(), lockdown_words(lockdown))]
    Stage {
        /// The image.
        kernel: PathBuf,
        /// The lockdown mode, when there is one.
        lockdown: Option<String>,
        /// Why.
        source: io::Error,
    },
    /// The table has changed since the slot was chosen.
    #[error("the boot slots have changed since partition {number} was chosen")]
    Changed {
        /// The slot.
        number: u32,
    },
    /// The try that is about to be spent cannot be noted.
    #[error("cannot note the try in {NOTE}")]
    Note {
        /// Why.
        source: io::Error,
    },
    /// The try cannot be written.
    #[error("cannot write the tries of partition {number} of {}", disk.display())]
    Write {
        /// The slot.
        number: u32,
        /// Its disk.
        disk: PathBuf,
        /// Why.
        source: GptError,
    },
}

impl From<ReadKernelError> for KexecError {
    fn from(error: ReadKernelError) -> Self {
        Self::Read {
            path: error.path.display().to_string(),
            source: error.source,
        }
    }
}

fn lockdown_words(mode: &Option<String>) -> String {
    match mode {
        Some(mode) => format!("; it is locked down ({mode}), so the image has to be signed"),
        None => String::new(),
    }
}

/// Why a command line cannot be made over for another slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandLineProblem {
    /// Nothing in it names the running slot, so nothing would name the next.
    NoSlotNamed,
    /// A word names a slot in a way that cannot be translated.
    OtherName(String),
    /// The running image is protected by a hash and the next is not, or the
    /// other way round.
    Hash {
        /// The command line has one.
        running: bool,
    },
}

impl fmt::Display for CommandLineProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSlotNamed => f.write_str("the present one does not name the running slot"),
            Self::OtherName(word) => write!(f, "{word:?} names no slot by identity or label"),
            Self::Hash { running: true } => {
                f.write_str("the next kernel has no hash of its system, the running one has")
            }
            Self::Hash { running: false } => {
                f.write_str("the next kernel has a hash of its system, the running one has not")
            }
        }
    }
}

/// All that is needed for the jump; no choice is left open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KexecPlan {
    /// The disk, as a path to open.
    pub disk: PathBuf,
    /// Type of its slots.
    pub slot_type: Guid,
    /// Number of the slot to start.
    pub number: u32,
    /// Its attributes now.
    pub attributes: Attributes,
    /// Its kernel, as a path to open.
    pub kernel: PathBuf,
    /// The initrd beside it, when there is one.
    pub initrd: Option<PathBuf>,
    /// For the kernel.
    pub command_line: String,
}

impl KexecPlan {
    /// Looks at the machine, whose slots are partitions of `slot_type`, and plans.
    /// Changes nothing.
    ///
    /// # Errors
    ///
    /// Why this way is not open.
    pub fn make(root: &Root, slot_type: Guid) -> Result<Self, KexecError> {
        if setting(root, "/proc/sys/kernel/kexec_load_disabled")?.as_deref() == Some("1") {
            return Err(KexecError::SwitchedOff);
        }
        let system = SystemSlots::read(root, slot_type)?.ok_or(KexecError::NoSlots)?;
        let next = match system.next() {
            Selection::Slot(slot) => slot,
            // The boot loader has a word with the person at the screen first.
            other => {
                let reason = other.to_string();
                return Err(KexecError::NoChoice { reason });
            }
        };
        if next.number == system.running {
            // Its try may have been spent by an attempt that was interrupted.
            let reason = "the slot that boots next is the one that runs".to_owned();
            return Err(KexecError::NoChoice { reason });
        }
        let letter = system.letter(next)?;
        let kernel = find_kernel(root, letter)?;
        let current = read_text(root, "/proc/cmdline", MAX_COMMAND_LINE)?;
        let hash = system_hash(&kernel)?;
        let command_line = CommandLine {
            running: system.running(),
            running_letter: system.letter(system.running())?,
            next,
            next_letter: letter,
            hash: hash.as_deref(),
        }
        .rewrite(&current)
        .map_err(KexecError::CommandLine)?;
        Ok(Self {
            disk: system.disk.clone(),
            slot_type,
            number: next.number,
            attributes: next.attributes,
            kernel: kernel.path.into(),
            initrd: kernel.initrd.map(PathBuf::from),
            command_line,
        })
    }

    /// Hands kernel, initrd and command line over. Nothing on disk changes.
    ///
    /// # Errors
    ///
    /// A file cannot be read, or the kernel does not take it.
    pub fn stage(&self, root: &Root, loader: &dyn Loader) -> Result<(), KexecError> {
        let command_line = CString::new(self.command_line.as_str()).map_err(KexecError::Zero)?;
        let open = |path: &PathBuf| {
            File::open(path).map_err(|source| KexecError::Read {
                path: path.display().to_string(),
                source,
            })
        };
        let kernel = open(&self.kernel)?;
        let initrd = self.initrd.as_ref().map(open).transpose()?;
        loader
            .load(&kernel, initrd.as_ref(), &command_line)
            .map_err(|source| KexecError::Stage {
                kernel: self.kernel.clone(),
                lockdown: lockdown(root),
                source,
            })
    }

    /// Spends the slot's try on the disk, synced, as the boot loader does before
    /// it starts a kernel. A slot without tries, which then was successful, has
    /// none to spend.
    ///
    /// # Errors
    ///
    /// The slots are not as they were, or the table cannot be written; then one
    /// copy at least is whole.
    pub fn spend_try(&self, root: &Root) -> Result<SpentTry, KexecError> {
        let (device, mut gpt) = read_table(&self.disk, Access::ReadWrite)?;
        let slots = gpt.slots(self.slot_type);
        let selection = select(&slots);
        match selection.slot() {
            Some(slot) if slot.number == self.number && slot.attributes == self.attributes => {}
            _ => {
                return Err(KexecError::Changed {
                    number: self.number,
                });
            }
        }
        let Some(change) = selection.after_boot() else {
            return Ok(SpentTry(None));
        };
        let spent = Spent {
            number: self.number,
            before: self.attributes,
            after: change.attributes,
            disk: self.disk.clone(),
        };
        spent.note(root)?;
        match gpt.apply(&[change]).and_then(|()| gpt.write(&device)) {
            Ok(()) => Ok(SpentTry(Some(spent))),
            Err(source) => Err(spent.unwritten(source)),
        }
    }
}

/// A try that is spent for a boot that has not happened yet.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a try is to be given back when the shutdown does not happen"]
pub struct SpentTry(Option<Spent>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Spent {
    /// Number of the slot.
    number: u32,
    before: Attributes,
    after: Attributes,
    /// As a path to open.
    disk: PathBuf,
}

impl SpentTry {
    /// The one that a daemon of this boot has left behind, or was about to spend.
    pub fn left_behind(root: &Root) -> Option<Self> {
        let note = read_text(root, NOTE, MAX_NOTE).ok()?;
        Some(Self(Some(note.parse().ok()?)))
    }

    /// Gives it back, since there is no boot. An updater or operator who has
    /// changed the slot meanwhile has the last word.
    ///
    /// # Errors
    ///
    /// The table cannot be written.
    pub fn give_back(self, root: &Root) -> Result<(), KexecError> {
        let Some(spent) = self.0 else {
            return Ok(());
        };
        let (device, mut gpt) = read_table(&spent.disk, Access::ReadWrite)?;
        let now = gpt
            .partition(spent.number)
            .map_err(|source| spent.unwritten(source))?;
        if now.attributes == spent.after {
            gpt.set_attributes(spent.number, spent.before)
                .and_then(|()| gpt.write(&device))
                .map_err(|source| spent.unwritten(source))?;
        }
        // With a note that stays the same would be looked at again, and no more.
        let _ = root.path(NOTE).and_then(fs::remove_file);
        Ok(())
    }
}

impl Spent {
    fn note(&self, root: &Root) -> Result<(), KexecError> {
        let write = || {
            let path = root.path(NOTE)?;
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder)?;
            }
            fs::write(path, self.to_string())
        };
        write().map_err(|source| KexecError::Note { source })
    }

    fn unwritten(&self, source: GptError) -> KexecError {
        KexecError::Write {
            number: self.number,
            disk: self.disk.clone(),
            source,
        }
    }
}

/// `NUMBER ATTRIBUTES-BEFORE ATTRIBUTES-AFTER DISK`, the attributes in hexadecimal digits.
impl fmt::Display for Spent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (before, after) = (self.before.raw(), self.after.raw());
        let disk = self.disk.display();
        write!(f, "{} {before:x} {after:x} {disk}", self.number)
    }
}

impl FromStr for Spent {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut words = text.splitn(4, ' ');
        let mut word = || words.next().ok_or(());
        let attributes = |word: &str| {
            let raw = u64::from_str_radix(word, 16).map_err(|_| ())?;
            Ok::<_, ()>(Attributes::from_raw(raw))
        };
        Ok(Self {
            number: word()?.parse().map_err(|_| ())?,
            before: attributes(word()?)?,
            after: attributes(word()?)?,
            disk: word()?.into(),
        })
    }
}

/// The part of the running kernel that takes another one.
pub trait Loader: Send + Sync {
    /// Stages a kernel. What was staged before is replaced.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    fn load(
        &self,
        kernel: &File,
        initrd: Option<&File>,
        command_line: &std::ffi::CStr,
    ) -> io::Result<()>;

    /// Drops what is staged.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    fn unload(&self) -> io::Result<()>;
}

/// The running kernel itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct RunningKernel;

impl Loader for RunningKernel {
    fn load(
        &self,
        kernel: &File,
        initrd: Option<&File>,
        command_line: &std::ffi::CStr,
    ) -> io::Result<()> {
        kexec_file_load::load(kernel.as_fd(), initrd.map(AsFd::as_fd), command_line)
    }

    fn unload(&self) -> io::Result<()> {
        kexec_file_load::unload()
    }
}

/// How a command line is made over for the next slot. Pure.
struct CommandLine<'a> {
    running: &'a Partition,
    running_letter: Letter,
    next: &'a Partition,
    next_letter: Letter,
    /// Root hash of the next system, from its kernel or the file beside it.
    hash: Option<&'a str>,
}

impl CommandLine<'_> {
    /// The present line with each word that names the running slot naming the
    /// next one. Other words stay as they are, but those of a first boot.
    fn rewrite(&self, current: &str) -> Result<String, CommandLineProblem> {
        let mut before = Vec::new();
        let mut after = Vec::new();
        let (mut named, mut hashed) = (false, false);
        for word in words(current) {
            // What follows is for the first process.
            if word == "--" || !after.is_empty() {
                after.push(word.to_owned());
                continue;
            }
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            match key {
                _ if FIRST_BOOT.contains(&key) => {}
                "BOOT_IMAGE" => before.push(format!("{key}={}", self.next_image(value))),
                "usrhash" | "verity.usrhash" => {
                    hashed = true;
                    before.extend(self.hash.map(|hash| format!("{key}={hash}")));
                }
                "usr" | "mount.usr" | "verity.usr" => {
                    let next = self.next_device(value);
                    named |= next.is_some();
                    // The mapped device has one name for all slots.
                    let is_mapping = value.starts_with("/dev/mapper/");
                    match next.or_else(|| is_mapping.then(|| value.to_owned())) {
                        Some(next) => before.push(format!("{key}={next}")),
                        None => return Err(CommandLineProblem::OtherName(word.to_owned())),
                    }
                }
                _ => match self.next_device(value) {
                    Some(next) => {
                        named = true;
                        before.push(format!("{key}={next}"));
                    }
                    None => before.push(word.to_owned()),
                },
            }
        }
        if !named {
            return Err(CommandLineProblem::NoSlotNamed);
        }
        if hashed != self.hash.is_some() {
            return Err(CommandLineProblem::Hash { running: hashed });
        }
        before.append(&mut after);
        Ok(before.join(" "))
    }

    /// The value with the running slot's identity or label replaced; `None` when
    /// neither is in it.
    fn next_device(&self, value: &str) -> Option<String> {
        let running = self.running.unique_guid.to_string();
        // All of it is ASCII when it matches, so places are the same in both.
        if let Some(place) = value.to_ascii_lowercase().find(&running) {
            let next = self.next.unique_guid;
            let rest = &value[place + running.len()..];
            return Some(format!("{}{next}{rest}", &value[..place]));
        }
        let label = ["PARTLABEL=", "/dev/disk/by-partlabel/"]
            .into_iter()
            .find(|prefix| value.strip_prefix(prefix) == Some(&self.running.name));
        label
            .filter(|_| !self.next.name.is_empty())
            .map(|prefix| format!("{prefix}{}", self.next.name))
    }

    /// The boot loader's name of the kernel: `/flatcar/vmlinuz-a` and its like.
    fn next_image(&self, value: &str) -> String {
        match value.strip_suffix(&format!("vmlinuz-{}", self.running_letter.lower())) {
            Some(folder) => format!("{folder}vmlinuz-{}", self.next_letter.lower()),
            None => value.to_owned(),
        }
    }
}

/// The kernel of a slot. One that is cut short is refused: the running kernel would take
/// it, and the machine would hang.
pub(super) fn find_kernel(root: &Root, letter: Letter) -> Result<Kernel, KexecError> {
    let files = files_of(root, letter)?;
    let [path, initrd, hash] =
        [&files.kernel, &files.initrd, &files.hash].map(|file| in_boot(root, file));
    let kernel = Kernel::read(&path?, Some(&initrd?), Some(&hash?))?;
    kernel.check_size().map_err(KexecError::BadKernel)?;
    Ok(kernel)
}

fn system_hash(kernel: &Kernel) -> Result<Option<String>, KexecError> {
    match kernel.root_hash() {
        Ok(hash) => Ok(hash.map(|hash| hash.to_string())),
        Err(reason) => Err(KexecError::BadKernel(format!("{}: {reason}", kernel.path))),
    }
}

/// The files of a slot on the boot partition.
fn files_of(root: &Root, letter: Letter) -> Result<KernelFiles, KexecError> {
    let family = Kernel::family(|file| in_boot(root, file).map(|path| path.exists()))?;
    Ok(KernelFiles::new(family, letter))
}

fn in_boot(root: &Root, file: &str) -> Result<PathBuf, KexecError> {
    find(root, &format!("/boot/{file}"))
}

/// The lockdown mode of the kernel, when there is one: the word in brackets of
/// `none [integrity] confidentiality`.
fn lockdown(root: &Root) -> Option<String> {
    let text = setting(root, "/sys/kernel/security/lockdown").ok()??;
    let (_, rest) = text.split_once('[')?;
    let (mode, _) = rest.split_once(']')?;
    (mode != "none").then(|| mode.to_owned())
}

fn find(root: &Root, path: &str) -> Result<PathBuf, KexecError> {
    root.path(path).map_err(reading(path))
}

fn setting(root: &Root, path: &str) -> Result<Option<String>, KexecError> {
    root.read_text(path, MAX_SETTING).map_err(reading(path))
}

fn read_text(root: &Root, path: &str, limit: u64) -> Result<String, KexecError> {
    root.read_text(path, limit)
        .and_then(|text| text.ok_or_else(|| io::ErrorKind::NotFound.into()))
        .map_err(reading(path))
}

fn reading(path: &str) -> impl Fn(io::Error) -> KexecError {
    move |source| KexecError::Read {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use gptprio::USR_TYPE;

    use super::*;

    const A: &str = "7130c94a-213a-4e5a-8e26-6cce9662f132";
    const B: &str = "e03dd35c-7c2d-4a47-b3fe-27f15780a57c";
    const OLD: &str = "0000000000000000000000000000000000000000000000000000000000000000";
    const NEW: &str = "1111111111111111111111111111111111111111111111111111111111111111";

    fn slot(number: u32, name: &str, unique_guid: &str) -> Partition {
        Partition {
            number,
            type_guid: USR_TYPE,
            unique_guid: unique_guid.parse().unwrap(),
            first_lba: 0,
            last_lba: 0,
            attributes: Attributes::default(),
            name: name.to_owned(),
        }
    }

    fn from_a_to_b(current: &str, hash: Option<&str>) -> Result<String, CommandLineProblem> {
        CommandLine {
            running: &slot(3, "USR-A", A),
            running_letter: Letter::A,
            next: &slot(4, "USR-B", B),
            next_letter: Letter::B,
            hash,
        }
        .rewrite(current)
    }

    #[test]
    fn words_that_name_the_slot_are_translated_and_others_are_not() {
        for (current, expected) in [
            (
                format!("mount.usr=PARTUUID={A} quiet"),
                format!("mount.usr=PARTUUID={B} quiet"),
            ),
            (
                format!(
                    "BOOT_IMAGE=/flatcar/vmlinuz-a mount.usr=/dev/mapper/usr verity.usr=PARTUUID={A} root=LABEL=ROOT"
                ),
                format!(
                    "BOOT_IMAGE=/flatcar/vmlinuz-b mount.usr=/dev/mapper/usr verity.usr=PARTUUID={B} root=LABEL=ROOT"
                ),
            ),
            // In capitals, by link and by label.
            (
                format!("usr=PARTUUID={}", A.to_uppercase()),
                format!("usr=PARTUUID={B}"),
            ),
            (
                format!("usr=/dev/disk/by-partuuid/{A} usrflags=ro"),
                format!("usr=/dev/disk/by-partuuid/{B} usrflags=ro"),
            ),
            ("usr=PARTLABEL=USR-A".into(), "usr=PARTLABEL=USR-B".into()),
            (
                "mount.usr=/dev/disk/by-partlabel/USR-A".into(),
                "mount.usr=/dev/disk/by-partlabel/USR-B".into(),
            ),
            // Under a key that nobody has told us of.
            (
                format!("systemd.x=PARTUUID={A},ro"),
                format!("systemd.x=PARTUUID={B},ro"),
            ),
            // A name of its own for the kernel stays.
            (
                format!("BOOT_IMAGE=/linux usr=PARTUUID={A}"),
                format!("BOOT_IMAGE=/linux usr=PARTUUID={B}"),
            ),
            // Quotes hold words together; what follows the dashes is not ours.
            (
                format!("a=\"b  c\"   usr=PARTUUID={A} -- usr=PARTUUID={A} x"),
                format!("a=\"b  c\" usr=PARTUUID={B} -- usr=PARTUUID={A} x"),
            ),
            // A first boot happens once.
            (
                format!(
                    "flatcar.first_boot=detected ignition.firstboot usr=PARTUUID={A} \
                         coreos.randomize_disk_guid=1 flatcar.oem.id=qemu"
                ),
                format!("usr=PARTUUID={B} flatcar.oem.id=qemu"),
            ),
        ] {
            assert_eq!(from_a_to_b(&current, None), Ok(expected), "{current}");
        }
    }

    #[test]
    fn the_hash_is_the_next_systems() {
        let current = format!("verity.usr=PARTUUID={A} verity.usrhash={OLD} -- single");
        assert_eq!(
            from_a_to_b(&current, Some(NEW)),
            Ok(format!(
                "verity.usr=PARTUUID={B} verity.usrhash={NEW} -- single"
            ))
        );
    }

    #[test]
    fn what_cannot_be_translated_is_refused() {
        let hashed = format!("usr=PARTUUID={A} usrhash={OLD}");
        let plain = format!("usr=PARTUUID={A}");
        for (current, hash, expected) in [
            ("quiet", None, CommandLineProblem::NoSlotNamed),
            ("", None, CommandLineProblem::NoSlotNamed),
            (
                "mount.usr=/dev/sda3",
                None,
                CommandLineProblem::OtherName("mount.usr=/dev/sda3".to_owned()),
            ),
            (
                "mount.usr=/dev/mapper/usr",
                None,
                CommandLineProblem::NoSlotNamed,
            ),
            (&hashed, None, CommandLineProblem::Hash { running: true }),
            (
                &plain,
                Some(NEW),
                CommandLineProblem::Hash { running: false },
            ),
        ] {
            assert_eq!(from_a_to_b(current, hash), Err(expected), "{current}");
        }
    }

    #[test]
    fn a_restart_of_the_same_slot_changes_nothing() {
        let slot = slot(3, "USR-A", A);
        let same = CommandLine {
            running: &slot,
            running_letter: Letter::A,
            next: &slot,
            next_letter: Letter::A,
            hash: Some(OLD),
        };
        let line =
            format!("BOOT_IMAGE=/vmlinuz-a verity.usr=PARTUUID={A} verity.usrhash={OLD} quiet");
        assert_eq!(same.rewrite(&line), Ok(line));
    }
}
