//! Settings of both programs: files, variables and flags into values.
//!
//! Every source becomes a [`Fragment`] of texts. Fragments are laid over each other in one order,
//! and what is on top becomes [`Settings`], each value of a type that cannot be wrong:
//!
//! ```text
//! defaults                                                             keys
//!  < /usr/share/coreos/update.conf < /usr/share/flatcar/update.conf    env_file
//!  < cloud-config files, the one of /etc/locksmith last                cloud_config
//!  < /etc/coreos/update.conf < /etc/flatcar/update.conf                env_file
//!  < /etc/locksmith/locksmith.toml < /etc/locksmith/conf.d/*.toml      own_file
//!  < environment < flags
//! ```
//!
//! Nothing is guessed: a bad value in any source that counts is an error, and all errors are told
//! at once. `docs/locksmith-configuration.md` lists every key; a test holds it to [`KEYS`].

mod cloud_config;
mod env_file;
mod fragment;
mod keys;
mod own_file;
mod show;
mod sources;
mod validate;
mod values;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use gptprio::machine::Root;
use jiff::tz::TimeZone;

use crate::group::GroupName;
use crate::machine_id::MachineId;
use crate::strategy::Strategy;
use crate::window::Schedule;
use sources::Sources;
use validate::Draft;

pub use fragment::{Fragment, Origin};
pub use keys::{Form, KEYS, Key};

/// `etcd.endpoints` where nothing is set, with a comma between the two.
pub(crate) const DEFAULT_ENDPOINTS: &str = keys::ETCD_ENDPOINTS.default;

/// Everything that the sources say, valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// How this machine reboots into an update.
    pub strategy: Strategy,
    /// Whose semaphore it takes part in.
    pub group: GroupName,
    /// Where the semaphore is.
    pub store: Store,
    /// How to reach etcd.
    pub etcd: Etcd,
    /// 0 to 999; lower ranks get a place first.
    pub queue_rank: u16,
    /// Windows and excluded days; [`Settings::schedule_of`] adds a machine's own delay.
    pub schedule: Schedule,
    /// Longest delay into a window.
    pub random_offset: Duration,
    /// How long before a reboot users are warned; zero: not at all.
    pub warn_users: Duration,
    /// Programs around a reboot.
    pub hooks: Hooks,
    /// How a reboot is done.
    pub reboot_method: RebootMethod,
    /// What logind's inhibitors count for.
    pub inhibitors: Inhibitors,
    /// When a machine counts as well, and as overdue.
    pub health: Health,
    /// For the strategy `fleetlock`.
    pub fleetlock: Fleetlock,
    /// Where metrics are served.
    pub metrics: Option<Listen>,
    /// Whether to log more.
    pub debug: bool,
}

/// Where the semaphore is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Store {
    /// In etcd.
    Etcd,
    /// In a file, by its path on the machine.
    File(PathBuf),
}

/// How to reach etcd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Etcd {
    /// `scheme://host:port`, at least one; all of them http, or all of them https.
    pub endpoints: Vec<String>,
    /// Which API to speak.
    pub api: EtcdApi,
    /// Authorities in place of the system's; absolute, or relative to the folder one is in.
    /// Endpoints are https then.
    pub cafile: Option<PathBuf>,
    /// Certificate and key of this client, likewise.
    pub client: Option<ClientFiles>,
    /// For etcd's own authentication.
    pub login: Option<Login>,
}

/// Which API of etcd to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EtcdApi {
    /// v3, unless only v2 answers.
    Auto,
    /// v2 alone.
    V2,
    /// v3 alone.
    V3,
}

/// PEM files of a TLS client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientFiles {
    /// Certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// User name and password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// Name.
    pub username: String,
    /// Password.
    pub password: Secret,
}

/// Text that must not get into logs.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text, for the one place that needs it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Programs around a reboot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hooks {
    /// Folder of programs before it, a path on the machine.
    pub before_dir: PathBuf,
    /// Folder of programs after it, a path on the machine.
    pub after_dir: PathBuf,
    /// For one program.
    pub timeout: Duration,
}

/// How a reboot is done. A soft-reboot is done at an update's request alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RebootMethod {
    /// Through the firmware.
    Firmware,
    /// Straight into the new kernel.
    Kexec,
}

/// What logind's shutdown inhibitors count for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inhibitors {
    /// A reboot waits for them.
    Respect,
    /// It does not.
    Ignore,
}

/// When a machine counts as well, and as overdue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// How long it must have been well before it gives its place back.
    pub soak: Duration,
    /// From the reboot until it counts as overdue.
    pub deadline: Duration,
}

/// A FleetLock server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fleetlock {
    /// Where it is; there with the strategy `fleetlock`.
    pub base_url: Option<reqwest::Url>,
    /// Group to name to it.
    pub group: String,
}

/// Where something is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// A Unix socket, by its path on the machine.
    Unix(PathBuf),
    /// `host:port`.
    Tcp(String),
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Tcp(address) => f.write_str(address),
        }
    }
}

/// Which program loads settings: its variables have their own names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// `locksmithd`: variables `LOCKSMITHD_…`.
    Daemon,
    /// `locksmithctl`: variables `LOCKSMITHCTL_…`. It may be run by anybody, so files that its user
    /// cannot read do not stop it.
    Ctl,
}

/// Settings with where they come from and what is odd.
#[derive(Debug)]
pub struct Loaded {
    /// The settings.
    pub settings: Settings,
    /// What an operator should know though it stops nothing.
    pub warnings: Vec<Warning>,
    given: Fragment,
}

/// Something odd in a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// Where it stands.
    pub origin: Origin,
    /// What is odd and what happens instead.
    pub text: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.origin, self.text)
    }
}

/// One thing that is wrong.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// A file or folder is there but cannot be read.
    #[error("cannot read {file}: {reason}")]
    Read {
        /// Path on the machine.
        file: String,
        /// Why.
        reason: io::Error,
    },
    /// A value says nothing valid.
    #[error("{origin}: bad value of {key}: {reason}")]
    Value {
        /// Where it stands.
        origin: Origin,
        /// Name of the key.
        key: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A place in a file cannot be understood, or values do not go together.
    #[error("{origin}: {reason}")]
    Statement {
        /// Where it, or one of them, stands.
        origin: Origin,
        /// Name of the key, if it is about values.
        key: Option<&'static str>,
        /// What is wrong.
        reason: String,
    },
}

impl Problem {
    /// Name of the key that it is about; `None` if it may hide any.
    fn key(&self) -> Option<&'static str> {
        match self {
            Self::Value { key, .. } => Some(key),
            Self::Statement { key, .. } => *key,
            Self::Read { .. } => None,
        }
    }

    /// Whether it is about a value that has nothing to do with where the semaphore is.
    fn is_beside_the_lock(&self) -> bool {
        let lock = [keys::GROUP.name, keys::STORE.name];
        self.key()
            .is_some_and(|key| !lock.contains(&key) && !self.is_about_etcd())
    }

    fn is_bad_value(&self) -> bool {
        matches!(self, Self::Value { .. })
    }

    fn is_about_etcd(&self) -> bool {
        self.key().is_some_and(|key| key.starts_with("etcd."))
    }

    /// As a warning, where its value does not count.
    fn warning(&self) -> Option<Warning> {
        let (origin, text) = match self {
            Self::Read { .. } => return None,
            Self::Value {
                origin,
                key,
                reason,
            } => (origin, format!("bad value of {key}: {reason}")),
            Self::Statement { origin, reason, .. } => (origin, reason.clone()),
        };
        Some(Warning {
            origin: origin.clone(),
            text,
        })
    }
}

/// All that is wrong with a machine's configuration, one line each; never empty.
#[derive(Debug)]
pub struct Problems {
    /// Each of them.
    pub problems: Vec<Problem>,
    /// The strategy, if nothing that is wrong could change it.
    pub strategy: Option<Strategy>,
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, problem) in self.problems.iter().enumerate() {
            let gap = if number == 0 { "" } else { "\n" };
            write!(f, "{gap}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// The settings of a machine without any configuration, in UTC.
impl Default for Settings {
    fn default() -> Self {
        Draft::default()
            .settings(&TimeZone::UTC)
            .expect("a test reads every default")
            .settings
    }
}

impl Settings {
    /// Reads all files of the machine, then the environment, then takes the flags.
    ///
    /// A file that is not there is no error. Where the strategy does not need etcd, what is wrong
    /// with `etcd` is a warning, and all of it the default.
    ///
    /// # Errors
    ///
    /// A file that cannot be read, and every bad value that counts, all of them at once. Nothing
    /// should run then: what the operator meant is not known.
    pub fn load(
        root: &Root,
        program: Program,
        environment: impl Fn(&str) -> Option<String>,
        flags: Fragment,
    ) -> Result<Loaded, Problems> {
        Self::load_where(root, program, environment, flags, |problem, strategy| {
            strategy.is_none_or(Strategy::needs_etcd) || !problem.is_about_etcd()
        })
    }

    /// The same for who needs etcd whatever the strategy is: a server, and a machine that has a
    /// place from before.
    ///
    /// # Errors
    ///
    /// As [`Settings::load`], and bad values of `etcd`.
    pub fn load_with_etcd(
        root: &Root,
        environment: impl Fn(&str) -> Option<String>,
        flags: Fragment,
    ) -> Result<Loaded, Problems> {
        Self::load_where(root, Program::Daemon, environment, flags, |_, _| true)
    }

    /// The same for commands that ask no more than where the semaphore is: a bad window must not
    /// keep an operator from an unlock. Other mistakes are warnings, and their values the defaults.
    ///
    /// # Errors
    ///
    /// A file that cannot be read, and bad values of `group`, `store` and `etcd`.
    pub fn load_for_lock(
        root: &Root,
        environment: impl Fn(&str) -> Option<String>,
        flags: Fragment,
    ) -> Result<Loaded, Problems> {
        Self::load_where(root, Program::Ctl, environment, flags, |problem, _| {
            !problem.is_beside_the_lock()
        })
    }

    /// `counts` tells which problems are errors; the others are warnings.
    fn load_where(
        root: &Root,
        program: Program,
        environment: impl Fn(&str) -> Option<String>,
        flags: Fragment,
        counts: impl Fn(&Problem, Option<Strategy>) -> bool,
    ) -> Result<Loaded, Problems> {
        let mut draft = Draft::default();
        let local = Sources { root, program }.read(&environment, flags, &mut draft);
        draft.settings_where(&local, counts)
    }

    /// When `machine` may reboot.
    #[must_use]
    pub fn schedule_of(&self, machine: &MachineId) -> Schedule {
        self.schedule.clone().delayed(self.random_offset, machine)
    }
}

#[cfg(test)]
mod tests;
