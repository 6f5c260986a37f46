//! What a command costs: processor time and memory.
//!
//! The kernel tells the peak memory of children only as the largest of all of
//! them. So each command gets a parent of its own: this program once more, which
//! runs that one child and prints what the kernel says of it.

use std::ffi::OsString;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;

/// The first argument of such a parent.
pub(super) const PARENT: &str = "--measure";

/// What commands took.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cost {
    /// Processor time of all threads, user and system.
    pub(super) seconds: f64,
    /// The most memory resident at once, in MiB.
    pub(super) peak: f64,
}

impl Cost {
    /// Of two commands, one after the other.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            seconds: self.seconds + other.seconds,
            peak: self.peak.max(other.peak),
        }
    }
}

/// Runs `command` and returns its cost.
pub(super) fn run(command: &Command) -> Result<Cost> {
    let mut parent = Command::new(std::env::current_exe()?);
    parent
        .arg(PARENT)
        .arg(command.get_program())
        .args(command.get_args())
        .stdin(Stdio::null());
    let output = parent.output().context("cannot run this program again")?;
    ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    // The command's own data comes first, if it has any.
    let stdout = String::from_utf8_lossy(&output.stdout);
    let last = stdout.lines().last().unwrap_or_default();
    match last.split_once(' ') {
        Some((seconds, peak)) => Ok(Cost {
            seconds: seconds.parse()?,
            peak: peak.parse()?,
        }),
        None => bail!("no cost of {command:?}"),
    }
}

/// The parent: runs one command, prints `SECONDS MIB`.
pub(super) fn parent(command: &[OsString]) -> Result<ExitCode> {
    let (program, arguments) = command.split_first().context("no command to measure")?;
    let status = Command::new(program)
        .args(arguments)
        .status()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let seconds = seconds(usage.user_time()) + seconds(usage.system_time());
    let kibibytes = i32::try_from(usage.max_rss())?;
    println!("{seconds} {}", f64::from(kibibytes) / 1024.0);
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn seconds(time: TimeVal) -> f64 {
    let whole = i32::try_from(time.tv_sec()).unwrap_or(i32::MAX);
    let micros = i32::try_from(time.tv_usec()).unwrap_or(0);
    f64::from(whole) + f64::from(micros) / 1e6
}
