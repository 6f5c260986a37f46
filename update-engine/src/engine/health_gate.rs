//! When the running system counts as proven good.
//!
//! A slot that was booted is marked successful only after the health checks
//! passed: when the daemon has run for a while, or right before the other slot,
//! its only fallback, would be overwritten.

use std::sync::Arc;
use std::time::Duration;

use super::{Engine, World, load_settings};
use crate::boot::{BootControl as _, GptBoot};
use crate::config::Settings;
use crate::error::UpdateError;
use crate::health::{self, Health};

/// Time between two rounds of checks on a system that is not healthy yet.
const NEXT_ROUND: Duration = Duration::from_secs(60);

/// Whether the question is settled for this run of the daemon.
#[derive(Debug, Default)]
pub(super) struct Gate {
    settled: bool,
}

impl Engine {
    /// With an update applied already in this boot, also one that an operator has
    /// reset, marking the running slot would take the new one's place; then nothing
    /// is done. The running slot was proven before that update was installed.
    pub(super) fn start_health_gate(&self, applied: bool, delay: Duration) {
        let world = Arc::clone(&self.world);
        tokio::spawn(async move {
            if applied {
                world.gate.lock().await.settled = true;
                return;
            }
            tokio::time::sleep(delay).await;
            loop {
                let settings = load_settings(&world.root);
                match world.prove_running_system(&settings).await {
                    Ok(()) => return,
                    Err(why) => tracing::warn!(why, "this boot is not marked successful yet"),
                }
                tokio::time::sleep(NEXT_ROUND).await;
            }
        });
    }
}

impl World {
    /// Marks the running slot successful if the health checks pass. Does so once;
    /// the error says in words what is not healthy.
    pub(super) async fn prove_running_system(
        self: &Arc<Self>,
        settings: &Settings,
    ) -> Result<(), String> {
        let mut gate = self.gate.lock().await;
        if gate.settled {
            return Ok(());
        }
        let (world, settings) = (Arc::clone(self), settings.clone());
        Engine::blocking(move || world.check_and_mark(&settings))
            .await
            .map_err(|error| error.words())??;
        gate.settled = true;
        Ok(())
    }

    fn check_and_mark(&self, settings: &Settings) -> Result<Result<(), String>, UpdateError> {
        // Without slots there is nothing to mark; an installation says so itself.
        let Ok(slots) = self.discover(settings) else {
            return Ok(Ok(()));
        };
        if let Health::Unhealthy { which, why } = health::check(&self.root, settings) {
            return Ok(Err(format!("{which}: {why}")));
        }
        GptBoot::new(settings).mark_successful(&slots)?;
        tracing::info!(slot = %slots.source, "the running slot is marked successful");
        Ok(Ok(()))
    }
}
