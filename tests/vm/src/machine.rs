//! A machine over its resets: switched on, driven by lines of shell, watched on its
//! console.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use system_tests::deadline::poll_every;
use system_tests::disk::{Attributes, Disk, Slot};
use tempfile::TempDir;

use crate::LOOK;
use crate::chain::{self, Chain};
use crate::layout::{self, Content};
use crate::qemu::{Console, Drive, Qemu};

/// A boot, with all that emulation costs on a loaded machine.
pub const BOOT_LIMIT: Duration = Duration::from_secs(240);
/// A line of shell that does no work.
pub const SHELL_LIMIT: Duration = Duration::from_secs(60);
/// An update of a few dozen MiB.
pub const UPDATE_LIMIT: Duration = Duration::from_secs(300);
/// Asks for an update and looks more often than people need whether it is done.
const UPDATE: &str = "update_engine_client -update -poll-seconds=0.5";

/// What the first program of a boot, or the system it started, told the console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Up {
    /// The version that runs.
    pub version: String,
    /// The kernel's id of this boot.
    pub boot_id: String,
}

/// A machine.
#[derive(Debug)]
pub struct Machine {
    /// Its disk.
    pub disk: Disk,
    name: String,
    chain: Chain,
    console: Console,
    qemu: Option<Qemu>,
    log: Option<PathBuf>,
    resets: usize,
    folder: TempDir,
}

impl Machine {
    /// A machine with a new disk, switched off. Its `name` is for the log that a
    /// failure leaves.
    ///
    /// # Errors
    ///
    /// The disk cannot be made.
    pub fn new(name: &str, chain: Chain, content: Content) -> Result<Self> {
        let folder = TempDir::new()?;
        let path = folder.path().join("disk.img");
        let mut efi = content.efi.to_vec();
        if let Chain::Uefi { program } = &chain {
            efi.push(("EFI/BOOT/BOOTX64.EFI", program));
        }
        let content = Content {
            efi: &efi,
            ..content
        };
        let disk = layout::create(&path, folder.path(), content)?;
        Self::with(name, chain, disk, folder)
    }

    /// A machine with the disk that `fill` writes to the path that it is given.
    ///
    /// # Errors
    ///
    /// `fill` fails.
    pub fn of_disk(
        name: &str,
        chain: Chain,
        fill: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<Self> {
        let folder = TempDir::new()?;
        let path = folder.path().join("disk.img");
        fill(&path)?;
        Self::with(name, chain, Disk::at(&path, layout::SIZES), folder)
    }

    fn with(name: &str, chain: Chain, disk: Disk, folder: TempDir) -> Result<Self> {
        Ok(Self {
            disk,
            name: name.to_owned(),
            chain,
            console: Console::create(&folder.path().join("console"))?,
            qemu: None,
            log: None,
            resets: 0,
            folder,
        })
    }

    /// From the next start on, every write to the disk is logged into the file `log`.
    pub fn log_writes(&mut self, log: &Path) {
        self.log = Some(log.to_owned());
    }

    /// Whether it is switched on.
    ///
    /// # Errors
    ///
    /// QEMU ended with a complaint of its own.
    pub fn is_on(&mut self) -> Result<bool> {
        self.qemu.as_mut().map_or(Ok(false), Qemu::is_running)
    }

    /// Switches it on.
    ///
    /// # Errors
    ///
    /// No slot boots, or QEMU does not start.
    pub fn start(&mut self) -> Result<()> {
        let chain = chain::arguments(&self.chain, &self.disk, self.folder.path())?;
        let drive = Drive {
            image: self.disk.path().to_owned(),
            log: self.log.clone(),
        };
        let console = self.console.path().to_owned();
        self.qemu = Some(Qemu::start(&drive, &chain, &console)?);
        Ok(())
    }

    /// Waits until a system has come up, over as many resets as it takes.
    ///
    /// # Errors
    ///
    /// None has within `limit`; the end of the console is in the error.
    pub fn up_within(&mut self, limit: Duration) -> Result<Up> {
        let line = self.line_within("lab: up ", limit)?;
        let value = |key: &str| {
            line.split_whitespace()
                .find_map(|word| word.strip_prefix(key))
                .map(str::to_owned)
                .with_context(|| line.clone())
        };
        Ok(Up {
            version: value("version=")?,
            boot_id: value("boot=")?,
        })
    }

    /// As [`Machine::up_within`], within the time of one boot.
    ///
    /// # Errors
    ///
    /// As [`Machine::up_within`].
    pub fn up(&mut self) -> Result<Up> {
        self.up_within(BOOT_LIMIT)
    }

    /// The next line on the console that holds `part`. A machine that resets meanwhile
    /// starts again.
    ///
    /// # Errors
    ///
    /// There is none within `limit`; the end of the console is in the error.
    pub fn line_within(&mut self, part: &str, limit: Duration) -> Result<String> {
        poll_every(LOOK, &format!("\"{part}\" on the console"), limit, || {
            if let Some(line) = self.console.next(part)? {
                return Ok(Some(line));
            }
            let Some(qemu) = &mut self.qemu else {
                bail!("{} is switched off", self.name);
            };
            if !qemu.is_running()? {
                // Its end is its reset.
                self.resets += 1;
                self.start()?;
            }
            Ok(None)
        })
        .with_context(|| self.last_words())
    }

    /// The output of a line of shell that must succeed.
    ///
    /// # Errors
    ///
    /// It does not; its output is in the error.
    pub fn shell(&mut self, line: &str) -> Result<String> {
        self.shell_within(line, SHELL_LIMIT)
    }

    /// As [`Machine::shell`], for one that takes longer.
    ///
    /// # Errors
    ///
    /// As [`Machine::shell`].
    pub fn shell_within(&mut self, line: &str, limit: Duration) -> Result<String> {
        let (ok, output) = self
            .running()?
            .shell(line, limit)
            .with_context(|| self.last_words())?;
        ensure!(ok, "{line}: {output}\n{}", self.last_words());
        Ok(output)
    }

    /// Asks for an update and waits until it is applied.
    ///
    /// # Errors
    ///
    /// It is not.
    pub fn update(&mut self) -> Result<()> {
        let said = self.shell_within(UPDATE, UPDATE_LIMIT)?;
        let status = self.shell("update_engine_client -status")?;
        ensure!(
            status.contains("UPDATE_STATUS_UPDATED_NEED_REBOOT"),
            "{said}{status}{}",
            self.last_words()
        );
        Ok(())
    }

    /// Asks for an update and waits until nothing is left to do.
    ///
    /// # Errors
    ///
    /// The daemon does not answer.
    pub fn check(&mut self) -> Result<String> {
        self.shell_within(UPDATE, UPDATE_LIMIT)
    }

    /// Reboots in an orderly way. Returns at once.
    ///
    /// # Errors
    ///
    /// The machine is off.
    pub fn reboot(&mut self) -> Result<()> {
        self.running()?.send("systemctl reboot")
    }

    /// Cuts the power.
    ///
    /// # Errors
    ///
    /// QEMU cannot be ended.
    pub fn cut(&mut self) -> Result<()> {
        self.qemu.take().map_or(Ok(()), Qemu::cut)
    }

    /// Ends it in an orderly way, all written.
    ///
    /// # Errors
    ///
    /// It does not end.
    pub fn power_off(&mut self) -> Result<()> {
        let mut qemu = self.qemu.take().context("it is switched off")?;
        qemu.send("systemctl poweroff")?;
        poll_every(LOOK, "the end of the machine", BOOT_LIMIT, || {
            Ok((!qemu.is_running()?).then_some(()))
        })
        .with_context(|| self.last_words())
    }

    /// The slots' attributes as they are on the disk now: A, B.
    ///
    /// # Errors
    ///
    /// `cgpt` cannot read them.
    pub fn attributes(&self) -> Result<[Attributes; 2]> {
        Ok([
            self.disk.attributes(Slot::A)?,
            self.disk.attributes(Slot::B)?,
        ])
    }

    /// Waits for the health gate: until the slot is marked successful.
    ///
    /// # Errors
    ///
    /// It is not.
    pub fn marked(&mut self, slot: Slot) -> Result<()> {
        poll_every(LOOK, "the mark of success", SHELL_LIMIT, || {
            Ok(self.disk.attributes(slot)?.successful.then_some(()))
        })
        .with_context(|| self.last_words())
    }

    /// How many kernels have started in it, from `usr` of this slot.
    ///
    /// # Errors
    ///
    /// The console cannot be read.
    pub fn boots(&self, slot: Slot) -> Result<usize> {
        let words = format!("lab: initrd starts usr={}", slot.guid());
        Ok(self.console.text()?.matches(&words).count())
    }

    /// How often it has been through its firmware again since it was switched on.
    #[must_use]
    pub fn resets(&self) -> usize {
        self.resets
    }

    /// All of the console.
    ///
    /// # Errors
    ///
    /// Its file cannot be read.
    pub fn console(&self) -> Result<String> {
        self.console.text()
    }

    fn running(&mut self) -> Result<&mut Qemu> {
        self.qemu.as_mut().context("it is switched off")
    }

    /// Where the whole console is kept, and its last lines, for errors.
    #[must_use]
    pub fn last_words(&self) -> String {
        let text = self.console.text().unwrap_or_default();
        let kept = std::env::temp_dir().join(format!("vm-lab-{}.log", self.name));
        let place = match fs::write(&kept, &text) {
            Ok(()) => kept.display().to_string(),
            Err(error) => error.to_string(),
        };
        let lines: Vec<_> = text.lines().collect();
        let last = lines[lines.len().saturating_sub(25)..].join("\n");
        format!("console of {} ({place}) ends:\n{last}", self.name)
    }
}
