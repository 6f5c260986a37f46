//! One machine of a fleet: a folder that stands for its root, a bus with its
//! neighbours, the real `locksmithd`, and hardware that can be switched off.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::neighbours::Neighbours;
use crate::bus::PrivateBus;
use crate::deadline::poll_until;
use crate::process::{Finished, Running, run};
use crate::programs::program;

/// Longest that a command or a single step of the daemon may take.
const STEP_LIMIT: Duration = Duration::from_secs(30);

/// A machine. Its processes end with this value.
#[derive(Debug)]
pub struct FakeMachine {
    /// update_engine and logind.
    pub neighbours: Neighbours,
    id: String,
    version: String,
    boots: u32,
    daemon: Option<Running>,
    /// What ended daemons have said.
    said: String,
    /// When a machine that is off comes back.
    down_until: Option<Instant>,
    /// Version of the next boot; none: the one that is applied.
    next_version: Option<String>,
    variables: Vec<(String, String)>,
    bus: PrivateBus,
    folder: TempDir,
}

impl FakeMachine {
    /// A machine that runs `version` and has the text `settings` in its
    /// `locksmith.toml`. `locksmithd` does not run yet.
    ///
    /// # Errors
    ///
    /// A tool is missing.
    pub fn new(id: &str, version: &str, settings: &str) -> Result<Self> {
        let bus = PrivateBus::start()?;
        let mut machine = Self {
            neighbours: Neighbours::start(bus.address())?,
            id: id.to_owned(),
            version: String::new(),
            boots: 0,
            daemon: None,
            said: String::new(),
            down_until: None,
            next_version: None,
            variables: Vec::new(),
            bus,
            folder: TempDir::new()?,
        };
        machine.write("etc/machine-id", &format!("{id}\n"))?;
        machine.write("etc/locksmith/locksmith.toml", settings)?;
        machine.set_boot(version)?;
        Ok(machine)
    }

    /// Its machine id, by which it holds a place.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The version that runs, or ran before the power went.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// How often it has booted since it was made.
    #[must_use]
    pub fn boots(&self) -> u32 {
        self.boots - 1
    }

    /// The place of `path`, without a leading slash, on this machine.
    #[must_use]
    pub fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
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

    /// Writes the shell script `name` into `etc/locksmith/` of this machine, such
    /// as `after-reboot.d/10-check`. `$MACHINE` is the machine's root.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn write_hook(&self, name: &str, script: &str) -> Result<()> {
        let path = format!("etc/locksmith/{name}");
        let root = self.folder.path().display();
        self.write(&path, &format!("#!/bin/sh\nMACHINE='{root}'\n{script}\n"))?;
        let mode = fs::Permissions::from_mode(0o755);
        Ok(fs::set_permissions(self.path(&path), mode)?)
    }

    /// Sets a variable for the daemons and commands that start from now on.
    pub fn set_variable(&mut self, name: &str, value: &str) {
        self.variables.push((name.to_owned(), value.to_owned()));
    }

    /// The coordinator file, empty if there is none.
    #[must_use]
    pub fn coordinator_file(&self) -> String {
        fs::read_to_string(self.path("run/update-engine/coordinator.conf")).unwrap_or_default()
    }

    // The daemon.

    /// Starts `locksmithd`. One that runs is killed.
    ///
    /// # Errors
    ///
    /// It cannot be started.
    pub fn start_daemon(&mut self) -> Result<()> {
        self.end_daemon()?;
        self.daemon = Some(Running::start(&mut self.locksmithd()?)?);
        Ok(())
    }

    /// Runs another `locksmithd` on this machine to its end.
    ///
    /// # Errors
    ///
    /// It does not end.
    pub fn second_daemon(&self) -> Result<Finished> {
        run(&mut self.locksmithd()?, STEP_LIMIT)
    }

    /// Ends `locksmithd` as `systemctl stop` would.
    ///
    /// # Errors
    ///
    /// It does not run, or does not end in ten seconds.
    pub fn stop_daemon(&mut self) -> Result<ExitStatus> {
        let status = self.running()?.terminate()?;
        self.end_daemon()?;
        Ok(status)
    }

    /// Waits until `locksmithd` ends by itself.
    ///
    /// # Errors
    ///
    /// It does not within half a minute.
    pub fn wait_for_daemon(&mut self) -> Result<ExitStatus> {
        let status = self.running()?.wait(STEP_LIMIT)?;
        self.end_daemon()?;
        Ok(status)
    }

    /// Ends `locksmithd` at once, if it runs: `kill -9`.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn end_daemon(&mut self) -> Result<()> {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill()?;
            self.said += &daemon.stdout()?;
            self.said += &daemon.stderr()?;
        }
        Ok(())
    }

    /// Lets `locksmithd` hang, as if the whole machine did.
    ///
    /// # Errors
    ///
    /// It does not run.
    pub fn freeze_daemon(&mut self) -> Result<()> {
        self.running()?.signal(Signal::SIGSTOP)
    }

    /// Lets it go on.
    ///
    /// # Errors
    ///
    /// It does not run.
    pub fn thaw_daemon(&mut self) -> Result<()> {
        self.running()?.signal(Signal::SIGCONT)
    }

    /// Whether `locksmithd` runs.
    ///
    /// # Errors
    ///
    /// The kernel does not say.
    pub fn daemon_runs(&mut self) -> Result<bool> {
        self.daemon.as_mut().map_or(Ok(false), Running::is_running)
    }

    /// Everything that `locksmithd` has said, in all its lives.
    ///
    /// # Errors
    ///
    /// The file cannot be read.
    pub fn log(&self) -> Result<String> {
        let mut log = self.said.clone();
        if let Some(daemon) = &self.daemon {
            log += &daemon.stdout()?;
            log += &daemon.stderr()?;
        }
        Ok(log)
    }

    /// Runs `locksmithctl` on this machine.
    ///
    /// # Errors
    ///
    /// It takes too long.
    pub fn locksmithctl(&self, arguments: &[&str]) -> Result<Finished> {
        run(self.program("locksmithctl")?.args(arguments), STEP_LIMIT)
    }

    /// Waits until `probe` says yes; `what` is part of the error, and so is the
    /// log.
    ///
    /// # Errors
    ///
    /// It does not within half a minute.
    pub fn wait_until(
        &mut self,
        what: &str,
        mut probe: impl FnMut(&mut Self) -> Result<bool>,
    ) -> Result<()> {
        poll_until(what, STEP_LIMIT, || Ok(probe(self)?.then_some(())))
            .with_context(|| format!("{}: {}", self.id, self.log().unwrap_or_default()))
    }

    // The bus.

    /// Ends the message bus, and with it every connection.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn stop_bus(&mut self) -> Result<()> {
        self.bus.stop()
    }

    /// Starts it again, with its services.
    ///
    /// # Errors
    ///
    /// It does not start.
    pub fn start_bus(&mut self) -> Result<()> {
        self.bus.start_again()?;
        self.neighbours.connect()
    }

    // The hardware.

    /// The next boot is into `version`, whatever was applied: the boot loader
    /// falls back, or somebody chose it.
    pub fn boot_next(&mut self, version: &str) {
        self.next_version = Some(version.to_owned());
    }

    /// Switches the machine off, in the middle of everything; it comes back after
    /// `downtime` through [`FakeMachine::tick`].
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn crash(&mut self, downtime: Duration) -> Result<()> {
        self.end_daemon()?;
        self.down_until = Some(Instant::now() + downtime);
        Ok(())
    }

    /// Whether it is off.
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.down_until.is_some()
    }

    /// Lets time pass: a machine whose logind has accepted a reboot goes down,
    /// one that has been down for `downtime` comes back in the version that its
    /// boot loader chooses. To be called often.
    ///
    /// # Errors
    ///
    /// `locksmithd` does not obey its service manager, or does not start.
    pub fn tick(&mut self, downtime: Duration) -> Result<()> {
        match self.down_until {
            Some(until) if until <= Instant::now() => {
                let new = self.neighbours.applied();
                let next = self.next_version.take().or(new);
                self.boot(&next.unwrap_or_else(|| self.version.clone()))?;
                self.start_daemon()
            }
            Some(_) => Ok(()),
            None if self.neighbours.is_going_down() => {
                if self.daemon_runs()? {
                    // As a service manager does, one that hangs is woken.
                    self.thaw_daemon()?;
                    self.stop_daemon()?;
                }
                self.crash(downtime)
            }
            None => Ok(()),
        }
    }

    /// Reboots into `version` at once. `locksmithd` does not run afterwards.
    ///
    /// # Errors
    ///
    /// A file cannot be written.
    pub fn reboot_into(&mut self, version: &str) -> Result<()> {
        self.end_daemon()?;
        self.boot(version)
    }

    fn boot(&mut self, version: &str) -> Result<()> {
        self.down_until = None;
        self.neighbours.boot();
        let in_memory = self.path("run");
        if in_memory.exists() {
            fs::remove_dir_all(in_memory)?;
        }
        self.set_boot(version)
    }

    fn set_boot(&mut self, version: &str) -> Result<()> {
        self.boots += 1;
        version.clone_into(&mut self.version);
        self.write("etc/os-release", &format!("VERSION_ID={version}\n"))?;
        self.write(
            "proc/sys/kernel/random/boot_id",
            &format!("11111111-2222-4333-8444-{:012x}\n", self.boots),
        )
    }

    fn locksmithd(&self) -> Result<Command> {
        let mut command = self.program("locksmithd")?;
        command.args(["-bus", self.bus.address()]);
        Ok(command)
    }

    /// One of our programs as it would run on this machine: nothing of the
    /// test's own environment reaches it.
    fn program(&self, name: &str) -> Result<Command> {
        let mut command = program(name)?;
        command
            .env_clear()
            .envs(self.variables.iter().cloned())
            .env("PATH", "/usr/bin:/bin")
            .arg("-root")
            .arg(self.folder.path());
        Ok(command)
    }

    fn running(&mut self) -> Result<&mut Running> {
        self.daemon.as_mut().context("locksmithd does not run")
    }
}
