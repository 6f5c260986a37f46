//! What the daemon asks of the machine that it runs on.

use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;

use crate::coordinator::{Applied, Health, Published};
use crate::semaphore::Mode;

/// The machine: its updater, users, programs and the way to reboot it.
///
/// Calls may take as long as they need and are not cancelled, but each ends.
/// Errors are words for the operator.
pub trait Machine: Send + Sync + 'static {
    /// What waits for a reboot, by the updater's own word.
    fn applied(&self) -> BoxFuture<'_, Result<Option<Applied>, String>>;

    /// Hints that something about the machine changed; never ends.
    fn hints(&self) -> BoxStream<'static, Hint>;

    /// Tells those who are logged in that the machine reboots after `delay`; at
    /// zero nobody is told. Returns whether anybody was there to be told, or what
    /// forbids a reboot at this time.
    fn warn_users(&self, delay: Duration) -> BoxFuture<'_, Result<bool, String>>;

    /// Tells those who are logged in that the reboot begins now.
    fn tell_users(&self) -> BoxFuture<'_, ()>;

    /// Runs the programs before a reboot into version `to`.
    fn drain<'a>(&'a self, to: &'a str) -> BoxFuture<'a, Result<(), String>>;

    /// Sees whether the system that runs now is well.
    fn health<'a>(&'a self, from: &'a str, to: &'a str) -> BoxFuture<'a, Health>;

    /// Asks for a reboot. Success means that the request was taken, not that it
    /// has happened.
    fn reboot(&self, mode: Mode) -> BoxFuture<'_, Result<(), String>>;

    /// Undoes what a reboot that was taken and did not happen has prepared.
    fn give_up_reboot(&self) -> BoxFuture<'_, ()>;

    /// Asks the FleetLock server for its yes, or gives it back.
    fn fleet_lock(&self, take: bool) -> BoxFuture<'_, Result<(), String>>;

    /// Writes the coordinator file.
    ///
    /// # Errors
    ///
    /// It cannot be written; the daemon goes on.
    fn publish(&self, state: Published) -> Result<(), String>;

    /// Remembers, over reboots, whether this machine may have a place.
    ///
    /// # Errors
    ///
    /// It cannot be written; the daemon goes on.
    fn remember(&self, held: bool) -> Result<(), String>;
}

/// Something that the agent should look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hint {
    /// The updater's status may have changed.
    Updater,
    /// The system has begun to shut down.
    ShuttingDown,
}
