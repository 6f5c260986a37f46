//! Tells the service manager that the engine's loop lives, when it wants to hear that
//! (sd_watchdog_enabled(3)). It restarts a daemon that falls silent.

use std::time::Duration;

use tokio::time::{Interval, MissedTickBehavior, interval};

/// Due from time to time, or never.
pub(super) struct Watchdog(Option<Interval>);

impl Watchdog {
    /// As the environment says: three times within the time that the manager waits.
    pub(super) fn from_environment() -> Self {
        Self(sd_notify::watchdog_enabled().map(|limit| {
            let mut interval = interval((limit / 3).max(Duration::from_millis(1)));
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            interval
        }))
    }

    /// Waits until the manager should hear again. To be asked in the loop that is to be
    /// watched and nowhere else: then silence means that this loop stands still.
    pub(super) async fn due(&mut self) {
        match &mut self.0 {
            Some(interval) => {
                interval.tick().await;
            }
            None => std::future::pending().await,
        }
    }

    /// Says so.
    pub(super) fn feed() {
        if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]) {
            tracing::warn!(%error, "cannot tell the service manager that this daemon lives");
        }
    }
}
