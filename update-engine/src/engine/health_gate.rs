//! When the running system counts as proven good, and when it has had its time.
//!
//! A slot that was booted is marked successful only after systemd took the boot for
//! complete and the health checks passed: when the daemon has run for a while, or right
//! before the other slot, its only fallback, would be overwritten. One that is not proven
//! in time is rebooted: the boot spent a try, so that the selector returns to the slot
//! before when none is left.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Engine, World, load_settings};
use crate::boot::{BootControl as _, GptBoot};
use crate::config::Settings;
use crate::error::UpdateError;
use crate::health::{self, Health};
use crate::platform::{Environment, Slots};

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
    pub(super) fn start_health_gate(&self, applied: bool, settings: &Settings) {
        let world = Arc::clone(&self.world);
        let delay = settings.health_delay;
        let deadline = settings.health_deadline.map(|limit| self.started + limit);
        tokio::spawn(async move {
            if applied {
                world.gate.lock().await.settled = true;
                return;
            }
            tokio::time::sleep(delay).await;
            world.prove_in_rounds(deadline).await;
        });
    }
}

impl World {
    /// Comes back when the system is proven. The deadline is looked at between rounds, so
    /// that every system gets one.
    async fn prove_in_rounds(self: &Arc<Self>, mut deadline: Option<Instant>) {
        loop {
            let settings = load_settings(&self.root);
            match self.prove_running_system(&settings).await {
                Ok(()) => return,
                Err(why) => tracing::warn!(why, "this boot is not marked successful yet"),
            }
            let next_round = Instant::now() + NEXT_ROUND;
            let Some(at) = deadline.filter(|at| *at <= next_round) else {
                tokio::time::sleep_until(next_round).await;
                continue;
            };
            tokio::time::sleep_until(at).await;
            match self.give_way(&settings).await {
                // The machine goes down meanwhile; should it not, this is done again.
                Ok(true) => {}
                Ok(false) => deadline = None,
                Err(why) => tracing::error!(why, "cannot reboot out of a boot that is not healthy"),
            }
            tokio::time::sleep(NEXT_ROUND).await;
        }
    }

    /// Reboots a machine whose boot is not proven, for the other slot to take over.
    /// `false` when that would not help.
    async fn give_way(self: &Arc<Self>, settings: &Settings) -> Result<bool, String> {
        if !self.is_own_machine {
            tracing::warn!("not rebooting: the disk belongs to another machine than this");
            return Ok(false);
        }
        let world = Arc::clone(self);
        let boot = GptBoot::new(settings);
        let asked = settings.clone();
        let helps = Engine::blocking(move || {
            let slots = world.discover(&asked)?;
            Ok(boot.has_way_back(&slots)?)
        })
        .await
        .map_err(|error| error.words())?;
        if !helps {
            tracing::warn!(
                "this boot is not healthy, but no other slot could take over: not rebooting"
            );
            return Ok(false);
        }
        tracing::error!("this boot has not proved healthy in time: rebooting");
        let environment = Environment::inherited(settings);
        self.systemd.reboot(environment).await.map(|()| true)
    }

    /// Marks the running slot successful if the boot is complete and the health checks
    /// pass. Does so once; the error says in words what is not healthy.
    pub(super) async fn prove_running_system(
        self: &Arc<Self>,
        settings: &Settings,
    ) -> Result<(), String> {
        let mut gate = self.gate.lock().await;
        if gate.settled {
            return Ok(());
        }
        let (world, asked) = (Arc::clone(self), settings.clone());
        // Without slots there is nothing to mark; an installation says so itself.
        let found = Engine::blocking(move || Ok(world.discover(&asked).ok()));
        if let Some(slots) = found.await.map_err(|error| error.words())? {
            self.systemd.complete_boot(settings.health_timeout).await?;
            let (world, settings) = (Arc::clone(self), settings.clone());
            Engine::blocking(move || world.check_and_mark(&slots, &settings))
                .await
                .map_err(|error| error.words())??;
        }
        gate.settled = true;
        Ok(())
    }

    fn check_and_mark(
        &self,
        slots: &Slots,
        settings: &Settings,
    ) -> Result<Result<(), String>, UpdateError> {
        if let Health::Unhealthy { which, why } = health::check(&self.root, settings) {
            return Ok(Err(format!("{which}: {why}")));
        }
        GptBoot::new(settings).mark_successful(slots)?;
        tracing::info!(slot = %slots.source, "the running slot is marked successful");
        Ok(Ok(()))
    }
}
