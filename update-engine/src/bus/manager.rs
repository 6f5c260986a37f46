//! `com.coreos.update1.Manager`: the original's methods and signal, to the
//! letter, since programs that we do not ship speak it.

#![expect(
    clippy::needless_pass_by_value,
    reason = "zbus hands message headers over by value"
)]

use tracing::info;
use zbus::interface;
use zbus::message::Header;
use zbus::object_server::SignalEmitter;

use super::{Engine, MethodError};
use crate::status::{Command, Status};

pub(super) struct Manager {
    engine: Engine,
}

impl Manager {
    pub(super) fn new(engine: Engine) -> Self {
        Self { engine }
    }
}

#[interface(name = "com.coreos.update1.Manager", introspection_docs = false)]
impl Manager {
    fn attempt_update(&self, #[zbus(header)] header: Header<'_>) -> Result<(), MethodError> {
        let operation = self.engine.snapshot()?.status.operation;
        let sender = header.sender().map(ToString::to_string);
        if !operation.accepts_attempt() {
            info!(sender, %operation, "update attempt asked for, one is under way or done");
            return Ok(());
        }
        info!(sender, "update attempt asked for");
        self.engine.command(Command::AttemptUpdate)
    }

    async fn reset_status(&self, #[zbus(header)] header: Header<'_>) -> Result<(), MethodError> {
        let result = self.engine.reset_status().await;
        let sender = header.sender().map(ToString::to_string);
        info!(sender, done = result.is_ok(), "status reset asked for");
        result
    }

    // The type is spelled out: behind an alias zbus would announce one struct
    // "(xdssx)" instead of five values.
    #[zbus(out_args(
        "last_checked_time",
        "progress",
        "current_operation",
        "new_version",
        "new_size"
    ))]
    fn get_status(&self) -> Result<(i64, f64, String, String, i64), MethodError> {
        let status = self.engine.snapshot()?.status;
        Ok((
            status.last_checked_time,
            status.progress,
            status.operation.as_str().to_owned(),
            status.new_version,
            status.new_size,
        ))
    }

    #[zbus(signal)]
    async fn status_update(
        emitter: &SignalEmitter<'_>,
        last_checked_time: i64,
        progress: f64,
        current_operation: &str,
        new_version: &str,
        new_size: i64,
    ) -> zbus::Result<()>;
}

/// Emits `StatusUpdate`.
pub(super) async fn announce(emitter: &SignalEmitter<'_>, status: &Status) -> zbus::Result<()> {
    Manager::status_update(
        emitter,
        status.last_checked_time,
        status.progress,
        status.operation.as_str(),
        &status.new_version,
        status.new_size,
    )
    .await
}
