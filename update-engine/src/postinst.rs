//! The program of the new version that has the last word: `/postinst` in the target slot.
//!
//! It copies what the new version needs outside its slot, and refuses where it could not run. It is
//! mounted and run as the original does it, with the same arguments and environment. What its
//! refusal means is decided elsewhere.

use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use gptprio::machine::Mount;
use gptprio::{BlockDevice, DeviceError};

use crate::config::Settings;
use crate::platform::child::{self, End, Finished};
use crate::platform::{Environment, Slot};
use crate::root::Root;

/// Where the target is mounted, a path on the machine. Always the same place, so that what a killed
/// updater left mounted is found by the next one.
pub(crate) const MOUNT_POINT: &str = "/run/update_engine/postinst";
/// For mount and umount themselves.
const MOUNT_LIMIT: Duration = Duration::from_secs(60);
/// The exit status with which a program says that the machine runs from its second firmware.
const FIRMWARE_B: i32 = 3;

/// Runs the post-install program of a target slot.
///
/// Blocks as long as the program runs.
pub trait PostInstall: Send + Sync {
    /// Fails when the target cannot be mounted, when the program cannot be run, and when it ends
    /// with anything but success.
    fn run(&self, job: &Job<'_>) -> Result<Outcome, PostInstallError>;
}

/// What the program is told.
#[derive(Debug, Clone, Copy)]
pub struct Job<'a> {
    /// The slot that holds the new version.
    pub target: &'a Slot,
    /// The new kernel's file, when the payload brought one.
    pub kernel: Option<&'a Path>,
    /// The new PCR policy's file, when the payload brought one.
    pub pcr_policy: Option<&'a Path>,
    /// The time that it may take.
    pub timeout: Duration,
}

/// An end that is no failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The program agreed.
    Done,
    /// It said that the machine runs from its second firmware (exit status 3). The original reports
    /// this and goes on.
    BootedFromFirmwareB,
    /// The new version has no such program.
    NothingToRun,
    /// It was not run: the target is in an image file, which this process cannot mount.
    Skipped {
        /// For people.
        reason: String,
    },
}

/// Why the new version must not be activated.
#[derive(Debug, thiserror::Error)]
pub enum PostInstallError {
    /// The mount point cannot be made or looked at.
    #[error("cannot prepare the mount point {}", path.display())]
    MountPoint {
        /// As a path to open.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The target's first bytes cannot be read.
    #[error("cannot read the file system of {target}")]
    Target {
        /// Which slot.
        target: String,
        /// Why.
        source: DeviceError,
    },
    /// The target cannot be mounted.
    #[error("cannot mount {target}: {problem}")]
    Mount {
        /// Which slot.
        target: String,
        /// What mount(8) said.
        problem: String,
    },
    /// A program cannot be started or watched.
    #[error("cannot run {program}")]
    Run {
        /// Which one.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// The post-install program refused or broke down.
    #[error("the post-install program {problem}")]
    Failed {
        /// How it ended, with its last words.
        problem: String,
    },
}

/// The real thing: mounts the target and runs the program in it.
#[derive(Debug, Clone)]
pub struct MountedPostInstall {
    root: Root,
    environment: Environment,
}

impl MountedPostInstall {
    /// For the machine at `root`. The program itself runs on the running machine, wherever `root`
    /// is.
    pub fn new(root: &Root, settings: &Settings) -> Self {
        Self {
            root: root.clone(),
            environment: Environment::inherited(settings),
        }
    }
}

impl PostInstall for MountedPostInstall {
    fn run(&self, job: &Job<'_>) -> Result<Outcome, PostInstallError> {
        // With a device node below, the program must run or the update fails. An image file is
        // written without privileges, and without them there is no mounting it.
        if job.target.node.is_none()
            && let Err(reason) = may_mount_images()
        {
            tracing::warn!(target_slot = %job.target, reason, "the post-install program is skipped");
            return Ok(Outcome::Skipped {
                reason: reason.to_owned(),
            });
        }
        let mount = Mounted::mount(&self.root, &self.environment, job.target)?;
        let program = mount.program();
        if fs::symlink_metadata(&program).is_err() {
            tracing::info!(target_slot = %job.target, "the new version has no /postinst");
            return Ok(Outcome::NothingToRun);
        }
        let mut command = Command::new(&program);
        command.args(arguments(&mount.device, job));
        tracing::info!(?command, "running the post-install program");
        let log = |line: &str| tracing::info!(program = "postinst", "{line}");
        let finished = child::run(command, &self.environment, job.timeout, log)
            .map_err(|source| cannot_run(&program, source))?;
        outcome(&finished, job.timeout)
    }
}

/// `<device> [KERNEL=<path>] [PCR_POLICY=<path>]`
fn arguments(device: &Path, job: &Job<'_>) -> Vec<OsString> {
    let named = |name: &str, path: Option<&Path>| {
        path.map(|path| {
            let mut argument = OsString::from(name);
            argument.push(path);
            argument
        })
    };
    let mut arguments = vec![device.as_os_str().to_owned()];
    arguments.extend(named("KERNEL=", job.kernel));
    arguments.extend(named("PCR_POLICY=", job.pcr_policy));
    arguments
}

fn outcome(finished: &Finished, limit: Duration) -> Result<Outcome, PostInstallError> {
    match finished.end {
        End::Exited(0) => Ok(Outcome::Done),
        End::Exited(FIRMWARE_B) => Ok(Outcome::BootedFromFirmwareB),
        _ => Err(PostInstallError::Failed {
            problem: finished.words(limit),
        }),
    }
}

/// The target slot, mounted read-only; unmounted when dropped.
struct Mounted<'a> {
    environment: &'a Environment,
    mount_point: PathBuf,
    /// The block device that is mounted.
    device: PathBuf,
    /// Where the program is when the target cannot be mounted because its twin is.
    twin: Option<PathBuf>,
}

impl<'a> Mounted<'a> {
    fn mount(
        root: &Root,
        environment: &'a Environment,
        slot: &Slot,
    ) -> Result<Self, PostInstallError> {
        let mount_point = prepare(root, environment)?;
        let options = options(slot)?;
        let source = slot.node.as_deref().unwrap_or(&slot.disk);
        let mut command = Command::new("mount");
        command.args(["-o", &options]).arg(source).arg(&mount_point);
        let finished = run_tool(command, environment)?;
        let device = source.to_owned();
        if finished.end == End::Exited(0) {
            let mut mounted = Self {
                environment,
                mount_point,
                device,
                twin: None,
            };
            if let Some(device) = mounted.mounted_device() {
                mounted.device = device;
            }
            return Ok(mounted);
        }
        // Btrfs refuses a second device with the identity of a mounted one. It is the same image
        // then, so the running system has the same program.
        if options.contains(BTRFS_NO_REPLAY)
            && finished.last_words.contains("File exists")
            && let Ok(program) = root.path("/usr/postinst")
        {
            return Ok(Self {
                environment,
                mount_point,
                device,
                twin: Some(program),
            });
        }
        let problem = format!("mount {}", finished.words(MOUNT_LIMIT));
        Err(PostInstallError::Mount {
            target: slot.to_string(),
            problem,
        })
    }

    fn program(&self) -> PathBuf {
        self.twin
            .clone()
            .unwrap_or_else(|| self.mount_point.join("postinst"))
    }

    /// What the kernel says is mounted: for an image file the loop device, which `mount` chose.
    fn mounted_device(&self) -> Option<PathBuf> {
        let mounts = Mount::all(&Root::system()).ok()?;
        let at_ours = |mount: &&Mount| Path::new(&mount.mount_point) == self.mount_point;
        mounts
            .iter()
            .rev()
            .find(at_ours)
            .map(|mount| PathBuf::from(&mount.source))
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        if self.twin.is_none()
            && let Err(problem) = unmount(&self.mount_point, self.environment)
        {
            tracing::warn!(mount_point = %self.mount_point.display(), problem, "cannot unmount the target");
        }
    }
}

/// Makes the mount point, and frees it from what a killed updater left there.
fn prepare(root: &Root, environment: &Environment) -> Result<PathBuf, PostInstallError> {
    let failed = |path: &Path, source| PostInstallError::MountPoint {
        path: path.to_owned(),
        source,
    };
    let path = root
        .path(MOUNT_POINT)
        .map_err(|source| failed(Path::new(MOUNT_POINT), source))?;
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&path)
        .map_err(|source| failed(&path, source))?;
    let path = fs::canonicalize(&path).map_err(|source| failed(&path, source))?;
    let is_left = || {
        let mounts = Mount::all(&Root::system()).unwrap_or_default();
        mounts
            .iter()
            .any(|mount| Path::new(&mount.mount_point) == path)
    };
    while is_left() {
        unmount(&path, environment).map_err(|problem| failed(&path, io::Error::other(problem)))?;
    }
    Ok(path)
}

/// Unmounts, or, while something still has files open, sees to it that the kernel does so later.
fn unmount(mount_point: &Path, environment: &Environment) -> Result<(), String> {
    let umount = |lazy: bool| {
        let mut command = Command::new("umount");
        command.args(lazy.then_some("--lazy")).arg(mount_point);
        let finished = run_tool(command, environment).map_err(|error| error.to_string())?;
        match finished.end {
            End::Exited(0) => Ok(()),
            _ => Err(format!("umount {}", finished.words(MOUNT_LIMIT))),
        }
    };
    umount(false).or_else(|_| umount(true))
}

fn run_tool(command: Command, environment: &Environment) -> Result<Finished, PostInstallError> {
    let program = PathBuf::from(command.get_program());
    child::run(command, environment, MOUNT_LIMIT, |line| {
        tracing::debug!("{line}");
    })
    .map_err(|source| cannot_run(&program, source))
}

fn cannot_run(program: &Path, source: io::Error) -> PostInstallError {
    PostInstallError::Run {
        program: program.display().to_string(),
        source,
    }
}

/// Whether this process can mount image files; the error says why not.
fn may_mount_images() -> Result<(), &'static str> {
    /// Number of CAP_SYS_ADMIN in capability masks.
    const SYS_ADMIN: u32 = 21;
    // Root in a container often has not got it.
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    if mask.unwrap_or(0) & (1 << SYS_ADMIN) == 0 {
        return Err("mounting an image file needs the capability CAP_SYS_ADMIN");
    }
    if !Path::new("/dev/loop-control").exists() {
        return Err("mounting an image file needs loop devices");
    }
    Ok(())
}

// Options against a replay of the journal, which would write into an image that was just verified.
const BTRFS_NO_REPLAY: &str = "rescue=nologreplay";
const XFS_NO_REPLAY: &str = "norecovery";
const EXT_NO_REPLAY: &str = "noload";

/// Options for mount(8), which finds out the kind of file system itself.
fn options(slot: &Slot) -> Result<String, PostInstallError> {
    let no_replay = slot
        .open_for_reading()
        .and_then(|device| no_replay(&device))
        .map_err(|source| PostInstallError::Target {
            target: slot.to_string(),
            source,
        })?;
    let mut options = vec!["ro".to_owned()];
    options.extend(no_replay.map(str::to_owned));
    if slot.node.is_none() {
        let Slot { start, size, .. } = slot;
        options.push(format!("loop,offset={start},sizelimit={size}"));
    }
    Ok(options.join(","))
}

/// The option against a replay, for file systems with a journal. They are told by the magic numbers
/// of their superblocks.
fn no_replay(device: &dyn BlockDevice) -> Result<Option<&'static str>, DeviceError> {
    let has = |offset: u64, expected: &[u8]| {
        let mut found = vec![0; expected.len()];
        if device.len() < offset + 4096 {
            return Ok(false);
        }
        device
            .read_at(offset, &mut found)
            .map(|()| found == expected)
    };
    if has(0x10040, b"_BHRfS_M")? {
        return Ok(Some(BTRFS_NO_REPLAY));
    }
    if has(0, b"XFSB")? {
        return Ok(Some(XFS_NO_REPLAY));
    }
    if has(0x438, &[0x53, 0xef])? {
        let mut features = [0];
        device.read_at(0x45c, &mut features)?;
        // Without a journal it is ext2, whose driver does not know the option.
        let has_journal = features[0] & 0x4 != 0;
        return Ok(has_journal.then_some(EXT_NO_REPLAY));
    }
    Ok(None)
}

#[cfg(test)]
pub mod testing {
    //! A post-install program for tests.

    use std::sync::Mutex;

    use super::{Job, Outcome, PostInstall, PostInstallError, arguments};

    type Answer = dyn Fn() -> Result<Outcome, PostInstallError> + Send + Sync;

    /// Answers as it is told, without mounting anything, and remembers its arguments. An answer may
    /// wait for something, to be a program that hangs.
    pub struct FakePostInstall {
        answer: Box<Answer>,
        calls: Mutex<Vec<Vec<String>>>,
    }

    impl FakePostInstall {
        /// A program that ends so.
        pub fn new(
            answer: impl Fn() -> Result<Outcome, PostInstallError> + Send + Sync + 'static,
        ) -> Self {
            Self {
                answer: Box::new(answer),
                calls: Mutex::default(),
            }
        }

        /// A program that agrees.
        pub fn agreeing() -> Self {
            Self::new(|| Ok(Outcome::Done))
        }

        /// The arguments of each call.
        pub fn calls(&self) -> Vec<Vec<String>> {
            self.calls
                .lock()
                .expect("no test panics while it holds the calls")
                .clone()
        }
    }

    impl PostInstall for FakePostInstall {
        fn run(&self, job: &Job<'_>) -> Result<Outcome, PostInstallError> {
            let device = job.target.node.as_deref().unwrap_or(&job.target.disk);
            let arguments = arguments(device, job)
                .iter()
                .map(|argument| argument.to_string_lossy().into_owned())
                .collect();
            self.calls
                .lock()
                .expect("no test panics while it holds the calls")
                .push(arguments);
            (self.answer)()
        }
    }
}

#[cfg(test)]
mod tests;
