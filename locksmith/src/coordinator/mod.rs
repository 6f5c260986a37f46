//! The life of one agent as a pure function: [`Agent::step`] takes an event and a
//! moment, and says what to do next. It knows no clock, no network and no bus;
//! [`crate::daemon`] performs the actions and feeds their outcomes back.
//!
//! ```text
//!  start ─▶ recover ─▶ verify ─▶ release ─▶ idle ◀──────────────────────────┐
//!              │         └▶ failed (keeps its place)  │ update applied       │
//!              └──────────────────────────▶ idle      ▼                      │
//!                                         window closed? wait, then          │
//!                                         warn users ─▶ queue ─▶ drain ─▶ fence
//!                                                        ▲                   │
//!                                                        │ give back         ▼
//!                                                        └──────────────── reboot
//! ```
//!
//! At most one request is under way. Signals may come at any time; they are
//! hints to look again, never news by themselves.

mod agent;
mod pace;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

pub use agent::{Agent, View};
pub use pace::Pace;

use crate::machine_id::MachineId;
use crate::semaphore::{Key, LeaseId, Look, Mode, Revision, Snapshot, Transaction};
use crate::store::Committed;

/// A point in time, the window at it, and a fresh random number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Since the agent's process started; never goes back.
    pub monotonic: Duration,
    /// Unix seconds by the wall clock; may jump.
    pub wall: i64,
    /// Uniform over the whole range.
    pub roll: u32,
    /// Whether the machine may reboot at this time.
    pub window: Window,
}

/// The reboot window at some moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Window {
    /// Reboots are allowed.
    Open,
    /// They are not; time until they are, if that is ever.
    Closed(Option<Duration>),
}

/// Who the agent speaks for, in this boot.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Name of the holder.
    pub id: MachineId,
    /// The kernel's.
    pub boot_id: String,
    /// Version of the system that runs; empty where it cannot be told.
    pub version: String,
}

/// What an agent must know of the settings.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Options {
    /// What a reboot waits for beside the window.
    pub lock: Lock,
    /// Whether a place from before may exist although `lock` is not
    /// [`Lock::Semaphore`]: it is given back first.
    pub recover: bool,
    /// Place in the queue, 0 to 999; lower is served first.
    pub rank: u16,
    /// Whatever happens, this machine is not rebooted.
    pub stays_up: bool,
    /// How to reboot.
    pub mode: Mode,
    /// How long users are warned before a place is asked for; zero: not at all.
    pub warning: Duration,
    /// For how long a new system must be healthy without a break.
    pub soak: Duration,
    /// From asking for the reboot until the new system is healthy; the soak comes on
    /// top. Then the machine is overdue, or failed.
    pub deadline: Duration,
}

/// What a reboot waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lock {
    /// Nothing.
    None,
    /// A place in the group's semaphore.
    Semaphore,
    /// A yes of a FleetLock server.
    FleetLock,
}

/// What the updater says.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Applied {
    /// The version that waits for a reboot; empty where it is not told.
    pub version: String,
    /// The update asks for a restart of user space alone.
    pub soft: bool,
}

/// What the checks of a new system say.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Health {
    /// All is well.
    Good,
    /// Something is not there yet, or wrong; it may come right.
    NotYet(String),
}

/// How a commit ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommitOutcome {
    /// The store answered.
    Done(Committed),
    /// Nothing was written.
    Failed(String),
    /// Nothing was written, since a lease of it has ended.
    LeaseGone,
    /// It may or may not have been written.
    Unknown(String),
}

/// What happens to an agent.
#[derive(Debug, Clone)]
pub enum Event {
    /// The process runs.
    Started,
    /// The time set by [`Action::Wake`] has come.
    Woke,
    /// A watched key may have changed.
    Changed,
    /// The updater's status may have changed.
    UpdaterChanged,
    /// Answer to [`Action::Load`].
    Loaded(Result<Arc<Snapshot>, String>),
    /// Answer to [`Action::Commit`].
    Committed(CommitOutcome),
    /// Answer to [`Action::Lease`].
    Leased(Result<LeaseId, String>),
    /// The lease of [`Action::KeepAlive`] is no more.
    LeaseLost,
    /// Answer to [`Action::ReadUpdater`]: what waits for a reboot.
    Updater(Result<Option<Applied>, String>),
    /// Answer to [`Action::WarnUsers`]: whether anybody is there.
    UsersWarned(bool),
    /// The other answer to it: something on this machine forbids a reboot now.
    Inhibited(String),
    /// Answer to [`Action::Drain`].
    Drained(Result<(), String>),
    /// Answer to [`Action::CheckHealth`].
    Health(Health),
    /// Answer to [`Action::Reboot`]: whether the system took the request.
    Rebooting(Result<(), String>),
    /// The system has begun to shut down.
    ShuttingDown,
    /// The process is asked to end; see [`Agent::may_end`].
    Stopping,
    /// Answer to [`Action::FleetLock`].
    FleetLock(Result<(), String>),
}

/// What an agent wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Set the one timer, in place of any earlier one.
    Wake(Duration),
    /// Read the group.
    Load(Look),
    /// Commit a transaction.
    Commit(Transaction),
    /// Get a lease that lasts so long.
    Lease(Duration),
    /// Keep this lease alive from now on, and no other.
    KeepAlive(Option<LeaseId>),
    /// Give a lease up.
    Revoke(LeaseId),
    /// Watch these keys, from after this revision, and no others.
    Watch(Vec<Key>, Revision),
    /// Ask the updater what waits for a reboot.
    ReadUpdater,
    /// See whether something on this machine forbids a reboot; if not, tell those
    /// who are logged in that it reboots after this time. Zero: tell nobody.
    WarnUsers(Duration),
    /// Tell those who are logged in that the reboot begins now; nobody waits.
    TellUsers,
    /// Run the programs before a reboot.
    Drain {
        /// Version that is to run.
        to: String,
    },
    /// See whether the new system is well. `to` is the version that should run;
    /// empty: any.
    CheckHealth {
        /// Version that ran before.
        from: String,
        /// Version that should run.
        to: String,
    },
    /// Reboot.
    Reboot(Mode),
    /// The reboot was accepted and did not happen: undo what prepared it.
    GiveUpReboot,
    /// Ask the FleetLock server for its yes (true), or give it back.
    FleetLock(bool),
    /// Write the coordinator file.
    Publish(Published),
    /// Remember on this machine whether it may have a place.
    Remember(bool),
    /// Tell the operator.
    Say(Tone, String),
}

/// States of the coordinator file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Published {
    /// Waiting for an update.
    Running,
    /// An update is applied.
    RebootPlanned,
    /// The reboot is asked for.
    Rebooting,
}

/// How much an operator wants to know something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tone {
    /// In the course of things.
    Info,
    /// Worth a look.
    Warning,
}
