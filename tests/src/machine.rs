//! One machine that can update itself: a folder that stands for its root, a
//! disk image, a bus of its own, and the real daemon and client.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::bus::PrivateBus;
use crate::disk::{Disk, Slot};
use crate::process::{Finished, Running, run};
use crate::programs::program;
use crate::release::{content, public_key};

/// Longest time that one attempt may take before a test gives up.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(120);
const KEY_FILE: &str = "usr/share/update_engine/update-payload-key.pub.pem";

/// A machine that runs version 1.0.0 from slot A.
#[derive(Debug)]
pub struct Machine {
    /// Its disk.
    pub disk: Disk,
    /// What slot A holds.
    pub old_image: Vec<u8>,
    bus: PrivateBus,
    folder: TempDir,
}

impl Machine {
    /// A machine with slots of `slot_size` bytes that asks for updates at
    /// `server` and trusts the fixture key `key`.
    ///
    /// # Errors
    ///
    /// A tool is missing.
    pub fn new(slot_size: u64, server: &str, key: &str) -> Result<Self> {
        let folder = TempDir::new()?;
        let disk = Disk::create(&folder.path().join("disk.img"), slot_size)?;
        let old_image = content("1.0.0", usize::try_from(slot_size)?);
        disk.write_slot(Slot::A, &old_image)?;
        let machine = Self {
            disk,
            old_image,
            bus: PrivateBus::start()?,
            folder,
        };
        machine.write("etc/machine-id", "0123456789abcdef0123456789abcdef\n")?;
        machine.write(
            "etc/flatcar/update.conf",
            &format!("GROUP=stable\nSERVER={server}\n"),
        )?;
        // Checks come from the test alone.
        machine.write("etc/update-engine/update.conf", "FIRST_CHECK_DELAY=1d\n")?;
        machine.set_version("1.0.0")?;
        machine.write(KEY_FILE, &fs::read_to_string(public_key(key))?)?;
        machine.write("boot/flatcar/vmlinuz-a", "the running kernel")?;
        machine.set_boot_id("11111111-2222-4333-8444-555555555555")?;
        Ok(machine)
    }

    /// The place of `path`, without a leading slash, on this machine.
    #[must_use]
    pub fn path(&self, path: &str) -> PathBuf {
        self.root().join(path)
    }

    /// Writes a file on this machine.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn write(&self, path: &str, content: &str) -> Result<()> {
        let path = self.path(path);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(&path, content).with_context(|| path.display().to_string())
    }

    /// Takes the public key away.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn remove_key(&self) -> Result<()> {
        Ok(fs::remove_file(self.path(KEY_FILE))?)
    }

    /// Reboots into what the disk selects: another boot id, nothing left of what
    /// lives in memory, and the version of the chosen slot.
    ///
    /// # Errors
    ///
    /// A file cannot be written.
    pub fn reboot(&self, boot_id: &str, version: impl Fn(Slot) -> &'static str) -> Result<Slot> {
        let slot = self.disk.boot()?;
        self.reboot_unselected(boot_id)?;
        self.set_version(version(slot))?;
        Ok(slot)
    }

    /// Reboots into the system that runs, as by a boot loader that does not look at the
    /// slots.
    ///
    /// # Errors
    ///
    /// A file cannot be written.
    pub fn reboot_unselected(&self, boot_id: &str) -> Result<()> {
        for in_memory in ["run", "var/run"].map(|folder| self.path(folder)) {
            if in_memory.exists() {
                fs::remove_dir_all(in_memory)?;
            }
        }
        self.set_boot_id(boot_id)
    }

    /// Starts user space anew, with another version, under the kernel that runs.
    ///
    /// # Errors
    ///
    /// A file cannot be written.
    pub fn soft_reboot(&self, version: &str) -> Result<()> {
        self.set_version(version)
    }

    fn set_boot_id(&self, id: &str) -> Result<()> {
        self.write("proc/sys/kernel/random/boot_id", &format!("{id}\n"))
    }

    fn set_version(&self, version: &str) -> Result<()> {
        self.write(
            "usr/share/flatcar/release",
            &format!("FLATCAR_RELEASE_VERSION={version}\nFLATCAR_RELEASE_BOARD=amd64-usr\n"),
        )
    }

    /// The address of its bus.
    #[must_use]
    pub fn bus_address(&self) -> &str {
        self.bus.address()
    }

    /// Starts the daemon in the system of slot A, and waits until it answers.
    ///
    /// # Errors
    ///
    /// It does not answer; what it said is in the error.
    pub fn start_daemon(&self) -> Result<Running> {
        self.start_daemon_in(Slot::A)
    }

    /// As [`Machine::start_daemon`], in the system of `slot`.
    ///
    /// # Errors
    ///
    /// As [`Machine::start_daemon`].
    pub fn start_daemon_in(&self, slot: Slot) -> Result<Running> {
        self.start_daemon_with(slot, &[])
    }

    /// As [`Machine::start_daemon_in`], with further variables of the environment.
    ///
    /// # Errors
    ///
    /// As [`Machine::start_daemon`].
    pub fn start_daemon_with(&self, slot: Slot, variables: &[(&str, &str)]) -> Result<Running> {
        let mut command = program("update_engine")?;
        command
            .arg("-foreground")
            .arg("--root")
            .arg(self.root())
            .arg("--disk")
            .arg(self.disk.path())
            .args(["--booted-slot", slot.letter(), "--bus", self.bus.address()])
            .env("RUST_LOG", "info")
            .envs(variables.iter().copied());
        let daemon = Running::start(&mut command)?;
        self.client(&["-status"])
            .and_then(Finished::success)
            .with_context(|| daemon.stderr().unwrap_or_default())?;
        Ok(daemon)
    }

    /// Runs the client to its end.
    ///
    /// # Errors
    ///
    /// It takes too long.
    pub fn client(&self, arguments: &[&str]) -> Result<Finished> {
        let mut client = program("update_engine_client")?;
        client
            .args(arguments)
            .args(["--bus", self.bus.address(), "--retry-seconds", "1"]);
        run(&mut client, ATTEMPT_LIMIT)
    }

    /// Starts a client without waiting for its end.
    ///
    /// # Errors
    ///
    /// It cannot be started.
    pub fn start_client(&self, arguments: &[&str]) -> Result<Running> {
        let mut client = program("update_engine_client")?;
        client.args(arguments).args(["--bus", self.bus.address()]);
        Running::start(&mut client)
    }

    /// What the daemon tells about itself: the five values in snake case and
    /// `details`.
    ///
    /// # Errors
    ///
    /// It does not answer.
    pub fn status(&self) -> Result<Value> {
        let line = self.client(&["-status", "-json"])?.success()?;
        serde_json::from_str(&line).context(line)
    }

    /// Checks what no failure may break: slot A boots and holds what it held,
    /// and both copies of the table are sound.
    ///
    /// # Errors
    ///
    /// What is broken.
    pub fn still_boots_the_old_image(&self) -> Result<()> {
        self.disk.verify_table()?;
        ensure!(self.disk.next_boot()? == Slot::A, "slot B would boot");
        let held = self.disk.read_slot(Slot::A, self.old_image.len())?;
        ensure!(held == self.old_image, "slot A was written to");
        Ok(())
    }

    fn root(&self) -> PathBuf {
        Path::new(self.folder.path()).join("root")
    }
}
