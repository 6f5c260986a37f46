//! What the daemon tells about itself, and what it can be asked to do.
//!
//! The engine publishes a [`Snapshot`] through a watch channel and receives
//! [`Command`]s through a queue; everything that shows or drives the daemon
//! (the D-Bus service today) sees only these types. This module knows no
//! transport and no policy beyond the two rules of [`Operation`].

use std::fmt;

use serde::Serialize;
use tokio::sync::oneshot;

/// Version announced while no update is known, as the original.
pub const NO_VERSION: &str = "0.0.0";

/// What the daemon is doing; the eight states of the original interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Operation {
    /// Waiting for the next check.
    #[default]
    Idle,
    /// An Omaha request is under way.
    CheckingForUpdate,
    /// An offer was accepted, no payload byte has arrived yet.
    UpdateAvailable,
    /// Payload bytes arrive and are applied.
    Downloading,
    /// Part of the published enumeration; neither we nor the original emit it.
    Verifying,
    /// The payload is verified; re-reading, postinst and boot slot change run.
    Finalizing,
    /// The new version waits for a reboot.
    UpdatedNeedReboot,
    /// A failure is being reported to the server.
    ReportingErrorEvent,
}

impl Operation {
    /// Every state in the order of the published numeric values.
    pub const ALL: [Self; 8] = [
        Self::Idle,
        Self::CheckingForUpdate,
        Self::UpdateAvailable,
        Self::Downloading,
        Self::Verifying,
        Self::Finalizing,
        Self::UpdatedNeedReboot,
        Self::ReportingErrorEvent,
    ];

    /// The string on the bus, by which locksmithd and others compare.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "UPDATE_STATUS_IDLE",
            Self::CheckingForUpdate => "UPDATE_STATUS_CHECKING_FOR_UPDATE",
            Self::UpdateAvailable => "UPDATE_STATUS_UPDATE_AVAILABLE",
            Self::Downloading => "UPDATE_STATUS_DOWNLOADING",
            Self::Verifying => "UPDATE_STATUS_VERIFYING",
            Self::Finalizing => "UPDATE_STATUS_FINALIZING",
            Self::UpdatedNeedReboot => "UPDATE_STATUS_UPDATED_NEED_REBOOT",
            Self::ReportingErrorEvent => "UPDATE_STATUS_REPORTING_ERROR_EVENT",
        }
    }

    /// The state of a bus string; `None` for one that was never published.
    #[must_use]
    pub fn from_bus(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }

    /// Whether an update attempt may start now. In every other state
    /// `AttemptUpdate` does nothing, silently, as the original.
    #[must_use]
    pub fn accepts_attempt(self) -> bool {
        self == Self::Idle
    }

    /// Whether `ResetStatus` may succeed now: a no-op in `Idle`, forgets the
    /// finished update in `UpdatedNeedReboot`, refused everywhere else.
    #[must_use]
    pub fn accepts_reset(self) -> bool {
        matches!(self, Self::Idle | Self::UpdatedNeedReboot)
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The five values of the original `GetStatus` and `StatusUpdate`.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    /// Unix seconds of the last update check that the server answered; 0 after
    /// start.
    pub last_checked_time: i64,
    /// Share of the payload received, 0.0 to 1.0; back to 0.0 once the
    /// download has ended.
    pub progress: f64,
    /// What the daemon is doing.
    pub operation: Operation,
    /// Version of the update under way or waiting for the reboot;
    /// [`NO_VERSION`] at start and after an error.
    pub new_version: String,
    /// Size of the payload in bytes, 0 when none is known.
    pub new_size: i64,
}

impl Default for Status {
    fn default() -> Self {
        Self {
            last_checked_time: 0,
            progress: 0.0,
            operation: Operation::Idle,
            new_version: NO_VERSION.to_owned(),
            new_size: 0,
        }
    }
}

/// How the last finished attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// No attempt has finished since the daemon started.
    #[default]
    None,
    /// The server has nothing newer for this machine.
    NoUpdate,
    /// There is an update, and it is not installed now for a stated reason.
    Deferred,
    /// The attempt ended with an error.
    Failed,
    /// A new version is installed and waits for the reboot.
    Updated,
    /// Somebody stopped the attempt; it can be resumed.
    Cancelled,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Self; 6] = [
        Self::None,
        Self::NoUpdate,
        Self::Deferred,
        Self::Failed,
        Self::Updated,
        Self::Cancelled,
    ];

    /// The word on the bus and in `-json`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::NoUpdate => "no-update",
            Self::Deferred => "deferred",
            Self::Failed => "failed",
            Self::Updated => "updated",
            Self::Cancelled => "cancelled",
        }
    }

    /// The outcome of a bus word; `None` for an unknown one.
    #[must_use]
    pub fn from_bus(text: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|outcome| outcome.as_str() == text)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What the original never told: why, how much, and from which slot to which.
///
/// `None` means unknown or not applicable and is left out on the bus and in
/// JSON.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Details {
    /// How the last finished attempt ended.
    pub last_outcome: Outcome,
    /// The last attempt's error in words, with its causes; `None` when it did
    /// not fail.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// The published error code that goes with `last_error`, without flag bits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error_code: Option<u32>,
    /// Unix seconds at which the last attempt started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_attempt_time: Option<i64>,
    /// Why nothing is installed (policy, backoff, schedule), for a person.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Payload bytes received of the update under way, resumed ones included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_done: Option<u64>,
    /// Payload size in bytes of the update under way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_total: Option<u64>,
    /// Payload bytes that an earlier, interrupted attempt had already applied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_resumed: Option<u64>,
    /// The running version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current_version: Option<String>,
    /// The slot that is booted, `A` or `B`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current_slot: Option<String>,
    /// The slot that an update is, or will be, written to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_slot: Option<String>,
    /// Attempts that have finished since the daemon started. To be published
    /// in the same snapshot as the state and the outcome that an attempt ended
    /// with: clients tell by it that *their* attempt is over.
    pub attempts: u64,
}

/// All that can be shown about the daemon at one moment.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Snapshot {
    /// The original's values.
    pub status: Status,
    /// Ours.
    pub details: Details,
}

/// What the daemon can be asked to do.
#[derive(Debug)]
pub enum Command {
    /// Check now and install what is offered; without effect unless idle.
    AttemptUpdate,
    /// Forget a finished update; answers whether that was allowed. Dropping the
    /// sender counts as a refusal.
    ResetStatus(oneshot::Sender<bool>),
    /// Stop a running install so that it can be resumed; without effect when
    /// none runs.
    Cancel,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bus_words_read_back_as_what_they_were_written_from() {
        for state in Operation::ALL {
            assert_eq!(Operation::from_bus(state.as_str()), Some(state));
        }
        for outcome in Outcome::ALL {
            assert_eq!(Outcome::from_bus(outcome.as_str()), Some(outcome));
        }
        assert_eq!(Operation::from_bus("UPDATE_STATUS_BUSY"), None);
        assert_eq!(Outcome::from_bus(""), None);
    }

    #[test]
    fn states_keep_their_published_order() {
        for (value, state) in Operation::ALL.into_iter().enumerate() {
            assert_eq!(
                state as usize, value,
                "{state} is at the wrong place of ALL"
            );
        }
    }

    #[test]
    fn attempts_start_from_idle_alone_and_resets_also_after_an_update() {
        let attempt: Vec<_> = Operation::ALL
            .into_iter()
            .filter(|state| state.accepts_attempt())
            .collect();
        let reset: Vec<_> = Operation::ALL
            .into_iter()
            .filter(|state| state.accepts_reset())
            .collect();
        assert_eq!(attempt, [Operation::Idle]);
        assert_eq!(reset, [Operation::Idle, Operation::UpdatedNeedReboot]);
    }
}
