//! Watching a neighbour for as long as somebody wants to know, over restarts of
//! the bus and of the neighbour.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info, warn};

use super::BusError;
use crate::words::words;

/// Wait before the second try to reach a lost bus; doubled up to
/// [`LONGEST_WAIT`], each wait shortened at random by up to a half.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Tells that it is time to look. Hints that nobody has waited for become one,
/// so they hold nothing up.
#[derive(Debug)]
pub struct Hints {
    changes: watch::Receiver<()>,
    _watcher: AbortOnDropHandle<()>,
}

impl Hints {
    /// Starts a task that ends with the value.
    pub(super) fn from<F>(watcher: impl FnOnce(watch::Sender<()>) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (tell, changes) = watch::channel(());
        Self {
            changes,
            _watcher: AbortOnDropHandle::new(tokio::spawn(watcher(tell))),
        }
    }

    /// Comes back at the first hint since the last time. Cancel-safe.
    pub async fn next(&mut self) {
        if self.changes.changed().await.is_err() {
            // Only when the runtime ends.
            std::future::pending::<()>().await;
        }
    }
}

/// The waits of a watcher that does not give up.
pub(super) struct Patience {
    /// What is missed meanwhile, for the log.
    missed: &'static str,
    wait: Duration,
    is_lost: bool,
}

impl Patience {
    pub(super) fn new(missed: &'static str) -> Self {
        Self {
            missed,
            wait: FIRST_WAIT,
            is_lost: false,
        }
    }

    /// The watcher listens.
    pub(super) fn listens(&mut self) {
        if self.is_lost {
            info!(missed = self.missed, "the message bus is back");
        }
        self.is_lost = false;
        self.wait = FIRST_WAIT;
    }

    /// The watcher cannot listen any more: waits before the next try. Logged as
    /// a warning once, until it listens again.
    pub(super) async fn lost(&mut self, cause: Result<(), BusError>) {
        let cause = match &cause {
            Ok(()) => "the connection was closed".to_owned(),
            Err(error) => words(error),
        };
        if self.is_lost {
            debug!(missed = self.missed, cause, "the message bus is still away");
        } else {
            warn!(missed = self.missed, cause, "the message bus is away");
        }
        self.is_lost = true;
        sleep(self.wait.mul_f64(1.0 - fastrand::f64() / 2.0)).await;
        self.wait = self.wait.saturating_mul(2).min(LONGEST_WAIT);
    }
}
