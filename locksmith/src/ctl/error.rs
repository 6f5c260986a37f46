//! How a command fails: the text for stderr, what to do next, the exit code.

use std::io;

use crate::config::{Origin, Problem, Problems};
use crate::machine_id::NoMachineId;
use crate::semaphore::NotHolder;
use crate::semaphore::places::Refusal;
use crate::semaphore::steering::BadMax;
use crate::store::StoreError;
use crate::words::words;

/// Why a command ends early. Where the original has a text for it, it is that.
#[derive(Debug, thiserror::Error)]
pub(super) enum CtlError {
    /// The command line is understood and makes no sense.
    #[error("{0}")]
    Usage(String),
    /// The store cannot be opened, or does not answer the first question.
    #[error("Error initializing etcd client: {0}")]
    Contact(String),
    /// The store answered once and then failed, or holds what nobody can read.
    #[error("Error {doing}: {}", words(.source))]
    Store {
        /// What the command does, as in "locking".
        doing: &'static str,
        /// What went wrong.
        source: StoreError,
    },
    /// Others changed the lock each time before this command could.
    #[error("Error {doing}: the lock was changed by others {attempts} times in a row")]
    Contended {
        /// What the command does.
        doing: &'static str,
        /// How often it tried.
        attempts: u32,
    },
    /// No place for this machine.
    #[error("Error locking: {0}")]
    NoPlace(Refusal),
    /// The machine has one.
    #[error("Error locking: holder exists")]
    Exists,
    /// Nothing to give back.
    #[error("Error unlocking: {0}")]
    NotHolder(#[from] NotHolder),
    /// What the command would change is so already.
    #[error("{0}")]
    NothingToDo(&'static str),
    /// The v2 API has the document and nothing else.
    #[error(
        "The v2 API of etcd has no place for this. \"locksmithctl set-max 0\" stops all reboots there."
    )]
    DocumentOnly,
    /// `set-max` with a share of nobody knows how many.
    #[error("The v2 API of etcd counts no machines: a number is needed there.")]
    NoShare,
    /// `set-max` without a number, or with more than one word.
    #[error("New maximum value must be set.")]
    NoMax,
    /// `set-max` with something else.
    #[error(transparent)]
    BadMax(#[from] BadMax),
    /// The configuration of this machine is wrong; one line for each mistake.
    #[error("{0}")]
    Settings(Problems),
    /// Who we are is not known.
    #[error(transparent)]
    MachineId(#[from] NoMachineId),
    /// `reboot` by a user.
    #[error("Must be root to initiate reboot.")]
    NotRoot,
    /// There is no logind to ask.
    #[error("Error initializing login connection: {0}")]
    Logind(String),
    /// logind said no.
    #[error("Error rebooting: {0}")]
    Reboot(String),
    /// The signal could not be sent.
    #[error("{0}")]
    Signal(String),
    /// The check found something; it has been printed.
    #[error("{0}")]
    Findings(String),
    /// Output is not wanted any more, or the disk is full.
    #[error("write to stdout: {0}")]
    Stdout(#[source] io::Error),
}

impl CtlError {
    /// The store cannot be opened, or not be asked for the first time.
    pub(super) fn contact(error: StoreError) -> Self {
        Self::Contact(match error {
            // What was asked is no news to who asked for something else.
            StoreError::Unavailable { reason, .. }
            | StoreError::Unknown { reason, .. }
            | StoreError::Refused { reason, .. } => reason,
            other => words(&other),
        })
    }

    /// What helps, for those who cannot know.
    pub(super) fn advice(&self) -> Option<&'static str> {
        Some(match self {
            Self::NoPlace(Refusal::Halted(_)) => {
                "When the cause is gone: locksmithctl halt -clear -why REASON"
            }
            Self::NoPlace(Refusal::Paused(_)) => "To end the pause: locksmithctl resume",
            Self::NoPlace(Refusal::Manual) => "To take it over: locksmithctl unlock",
            Self::Contended { .. } => "Nothing was changed; try again.",
            Self::Store {
                source: StoreError::BadValue { .. },
                ..
            } => "It is not changed; repair or delete the key with etcdctl.",
            Self::Store {
                source: StoreError::Unknown { .. },
                ..
            } => "Look with \"locksmithctl status\" before you try again.",
            _ => return None,
        })
    }

    /// The exit code: 1 for everything but mistakes on the command line, or
    /// the detailed one.
    pub(super) fn code(&self, detailed: bool) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Settings(problems) if by_flag(problems) => 2,
            // What a shell shows for SIGPIPE, by which the original ended.
            Self::Stdout(error) if error.kind() == io::ErrorKind::BrokenPipe => 141,
            _ if !detailed => 1,
            Self::NoPlace(Refusal::Full(_)) => 3,
            Self::Exists | Self::NotHolder(_) | Self::NothingToDo(_) => 4,
            Self::NoPlace(_) => 5,
            Self::Contact(_)
            | Self::Store {
                source: StoreError::Unavailable { .. } | StoreError::Refused { .. },
                ..
            } => 6,
            Self::Store {
                source: StoreError::Unknown { .. },
                ..
            } => 7,
            Self::Contended { .. } => 8,
            _ => 1,
        }
    }

    /// Whether there is nobody to tell.
    pub(super) fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::Stdout(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

/// Whether a flag of this very command line is wrong.
fn by_flag(problems: &Problems) -> bool {
    problems.problems.iter().any(|problem| {
        let (Problem::Value { origin, .. } | Problem::Statement { origin, .. }) = problem else {
            return false;
        };
        matches!(origin, Origin::Flag(_))
    })
}
