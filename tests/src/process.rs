//! Programs that a test runs: to the end, or until the test lets go of them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::deadline::poll_until;

/// What a finished program left behind.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// Its data.
    pub stdout: String,
    /// Its talk.
    pub stderr: String,
}

impl Finished {
    /// The data of a program that must have succeeded.
    ///
    /// # Errors
    ///
    /// It did not; its talk is in the error.
    pub fn success(self) -> Result<String> {
        ensure!(
            self.status.success(),
            "{}: {}{}",
            self.status,
            self.stdout,
            self.stderr
        );
        Ok(self.stdout)
    }
}

/// Runs `command` to its end, at most for `limit`.
///
/// # Errors
///
/// It cannot be started or takes longer; a program that ran and failed is no
/// error.
pub fn run(command: &mut Command, limit: Duration) -> Result<Finished> {
    let mut running = Running::start(command)?;
    let status = running.wait(limit)?;
    Ok(Finished {
        status,
        stdout: running.stdout()?,
        stderr: running.stderr()?,
    })
}

/// A running program. It is killed when this value is dropped.
#[derive(Debug)]
pub struct Running {
    name: String,
    child: Child,
    output: TempDir,
}

impl Running {
    /// Starts `command` with no input and its output kept in files, so that it
    /// never blocks on a reader.
    ///
    /// # Errors
    ///
    /// It cannot be started.
    pub fn start(command: &mut Command) -> Result<Self> {
        let name = Path::new(command.get_program())
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let output = TempDir::new()?;
        let child = command
            .stdin(Stdio::null())
            .stdout(File::create(output.path().join("stdout"))?)
            .stderr(File::create(output.path().join("stderr"))?)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        Ok(Self {
            name,
            child,
            output,
        })
    }

    /// Everything that it has written as data so far.
    ///
    /// # Errors
    ///
    /// The file cannot be read.
    pub fn stdout(&self) -> Result<String> {
        self.written("stdout")
    }

    /// Everything that it has said so far.
    ///
    /// # Errors
    ///
    /// The file cannot be read.
    pub fn stderr(&self) -> Result<String> {
        self.written("stderr")
    }

    /// Waits until it ends by itself, at most for `limit`.
    ///
    /// # Errors
    ///
    /// It did not; what it said is in the error.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let what = format!("the end of {}", self.name);
        let child = &mut self.child;
        poll_until(&what, limit, || Ok(child.try_wait()?))
            .with_context(|| self.stderr().unwrap_or_default())
    }

    /// Whether it still runs.
    ///
    /// # Errors
    ///
    /// The kernel does not say.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Ends it as `systemctl stop` would and returns how it ended.
    ///
    /// # Errors
    ///
    /// It ignores the request for ten seconds.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait(Duration::from_secs(10))
    }

    /// Sends it a signal.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(self.pid()?, signal)?)
    }

    /// Ends it at once, as a crash would: `kill -9`.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// The most memory that it has had resident so far, in bytes.
    ///
    /// # Errors
    ///
    /// It has ended.
    pub fn peak_memory(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let kibibytes: u64 = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:")?.strip_suffix("kB"))
            .context("no peak memory of an ended program")?
            .trim()
            .parse()?;
        Ok(kibibytes * 1024)
    }

    fn pid(&self) -> Result<Pid> {
        Ok(Pid::from_raw(i32::try_from(self.child.id())?))
    }

    fn written(&self, stream: &str) -> Result<String> {
        let path: PathBuf = self.output.path().join(stream);
        let bytes = fs::read(&path).with_context(|| path.display().to_string())?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already, which is just as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_talk_and_exit_status_are_kept_apart() {
        let mut shell = Command::new("sh");
        shell.args(["-c", "echo data; echo talk >&2; exit 3"]);
        let finished = run(&mut shell, Duration::from_secs(10)).unwrap();
        assert_eq!(finished.status.code(), Some(3));
        assert_eq!(finished.stdout, "data\n");
        assert_eq!(finished.stderr, "talk\n");
        assert!(finished.success().unwrap_err().to_string().contains("talk"));
    }

    #[test]
    fn a_program_ends_with_the_test() {
        let running = Running::start(Command::new("sleep").arg("1000")).unwrap();
        let process = PathBuf::from(format!("/proc/{}", running.child.id()));
        assert!(process.exists());
        assert!(running.peak_memory().unwrap() > 0);
        drop(running);
        assert!(!process.exists());
    }
}
