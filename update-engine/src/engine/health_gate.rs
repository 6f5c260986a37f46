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

use super::check::UPDATE_BOOT_ID;
use super::given_way::{GIVEN_WAY, GivenWay};
use super::{Engine, World};
use crate::boot::{BootControl as _, GptBoot};
use crate::config::{Identity, Loaded, Settings};
use crate::error::UpdateError;
use crate::health::{self, Health};
use crate::platform::{Environment, Slots, is_same_kernel};

/// Time between two rounds of checks on a system that is not healthy yet.
const NEXT_ROUND: Duration = Duration::from_secs(60);

/// Whether the question is settled for this run of the daemon.
#[derive(Debug, Default)]
pub(super) struct Gate {
    settled: bool,
}

/// How far the last update has got in this boot of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arrival {
    /// It runs since the boot, or there is none.
    Whole,
    /// User space was restarted into it, under the kernel that ran before.
    OfUserSpace,
    /// It was applied and waits for a boot, or an operator took it back.
    StillToCome,
}

impl Engine {
    /// With an update that is still to come, marking the running slot would take the new
    /// one's place; then nothing is done. The running slot was proven before that update
    /// was installed. Nor is a kernel marked that has not run yet.
    pub(super) fn start_health_gate(&self, arrival: Arrival, settings: &Settings) {
        let world = Arc::clone(&self.world);
        let (started, delay) = (self.started, settings.health_delay);
        let settings = settings.clone();
        tokio::spawn(async move {
            let is_whole = match arrival {
                Arrival::Whole => true,
                Arrival::OfUserSpace => world.runs_the_same_kernel(settings).await,
                Arrival::StillToCome => false,
            };
            if !is_whole {
                world.settle_gate().await;
                return;
            }
            tokio::time::sleep(delay).await;
            world.prove_in_rounds(started).await;
        });
    }
}

impl World {
    /// From now on nothing is marked: with an update applied, the mark of the running slot
    /// would take the new one's place.
    pub(super) async fn settle_gate(&self) {
        self.gate.lock().await.settled = true;
    }

    /// Whether the update starts with the kernel that ran before it.
    async fn runs_the_same_kernel(self: &Arc<Self>, settings: Settings) -> bool {
        let world = Arc::clone(self);
        let compared = Engine::blocking(move || {
            let slots = world.discover_running(&settings)?;
            is_same_kernel(&world.root, &slots).map_err(|error| UpdateError::Slots(Box::new(error)))
        })
        .await;
        match compared {
            Ok(true) => return true,
            Ok(false) => tracing::warn!(
                "the update has another kernel, which does not run yet: this slot is not marked \
                 successful before a boot"
            ),
            Err(error) => tracing::warn!(
                why = error.words(),
                "cannot tell whether the update has another kernel than the one that runs: this \
                 slot is not marked successful before a boot"
            ),
        }
        false
    }

    /// Comes back when the system is proven. There is a round at the deadline, too: the
    /// machine is not rebooted for what it was a minute before.
    ///
    /// The settings are read for each round, so that an operator can still stop the reboot.
    /// While their files cannot be read they stay as they were. When they never could,
    /// nobody knows whether this machine may be rebooted.
    async fn prove_in_rounds(self: &Arc<Self>, started: Instant) {
        let mut may_give_way = true;
        let mut known = None;
        loop {
            match Loaded::read_leniently(&self.root) {
                Ok(loaded) => known = Some(loaded.settings),
                Err(error) => tracing::error!("{error}; it is not followed until it is mended"),
            }
            let deadline = deadline(known.as_ref(), started);
            let settings = known.clone().unwrap_or_default();
            let is_late = deadline.is_some_and(|at| at <= Instant::now());
            match self.prove_running_system(&settings).await {
                Ok(true) => return,
                Ok(false) => {}
                Err(why) => {
                    tracing::warn!(why, "this boot is not marked successful yet");
                    if is_late && may_give_way {
                        may_give_way = self.give_way(&settings).await;
                    }
                }
            }
            let next_round = Instant::now() + NEXT_ROUND;
            let at_deadline = deadline.filter(|at| !is_late && *at < next_round);
            tokio::time::sleep_until(at_deadline.unwrap_or(next_round)).await;
        }
    }

    /// Reboots a machine whose boot is not proven, for the other slot to take over.
    /// `false` when that would not help, and need not be asked again.
    async fn give_way(self: &Arc<Self>, settings: &Settings) -> bool {
        if !self.is_own_machine {
            tracing::warn!("not rebooting: the disk belongs to another machine than this");
            return false;
        }
        let (world, asked) = (Arc::clone(self), settings.clone());
        let found = Engine::blocking(move || world.way_back(&asked)).await;
        let way = match found {
            Ok(Some(way)) => way,
            Ok(None) => return false,
            Err(error) => {
                let why = error.words();
                tracing::error!(why, "cannot reboot out of a boot that is not healthy");
                return true;
            }
        };
        tracing::error!("this boot has not proved healthy in time: rebooting");
        // Before the reboot.
        if let Err(error) = self.keep(GIVEN_WAY, &way.to_string()) {
            tracing::error!(error = error.words(), "cannot remember this reboot");
        }
        let environment = Environment::inherited(settings);
        if let Err(why) = self.systemd.reboot(environment).await {
            tracing::error!(why, "cannot reboot out of a boot that is not healthy");
        }
        // The machine goes down meanwhile; should it not, this is done again.
        true
    }

    /// The reboot that leads to another slot; `None`, with the reason in the log, when
    /// none does.
    fn way_back(&self, settings: &Settings) -> Result<Option<GivenWay>, UpdateError> {
        let slots = self.discover_running(settings)?;
        let standing = GptBoot::new(settings).standing(&slots)?;
        if standing.proven {
            tracing::warn!(
                "this boot is not healthy, but {} is marked successful and would boot again: \
                 not rebooting",
                slots.source
            );
            return Ok(None);
        }
        if !standing.has_way_back() {
            tracing::warn!(
                "this boot is not healthy, but no other slot could take over: not rebooting"
            );
            return Ok(None);
        }
        // What cannot be read must not keep the machine here.
        let remembered = |key| self.read(key).ok().flatten().unwrap_or_default();
        let update = remembered(UPDATE_BOOT_ID);
        let way = GivenWay {
            boot_id: Identity::load(&self.root, settings).boot_id,
            tries: standing.tries,
            system: format!("{} {update}", slots.source.unique_guid),
        };
        if way.is_in_vain_after(&remembered(GIVEN_WAY)) {
            tracing::error!(
                "this boot is not healthy, but the last reboot out of it led here again without \
                 a try less: not rebooting; look at the kernel of the other slot, and whether \
                 the boot loader follows the attributes of the slots"
            );
            return Ok(None);
        }
        Ok(Some(way))
    }

    /// Marks the running slot successful if the boot is complete and the health checks
    /// pass, and says `true`; does so once. `false` when no slots can be found: then there
    /// is nothing to mark now, and an installation tells why. The error says in words what
    /// is not healthy.
    pub(super) async fn prove_running_system(
        self: &Arc<Self>,
        settings: &Settings,
    ) -> Result<bool, String> {
        let mut gate = self.gate.lock().await;
        if gate.settled {
            return Ok(true);
        }
        let (world, asked) = (Arc::clone(self), settings.clone());
        let found = Engine::blocking(move || world.discover_running(&asked)).await;
        let slots = match found {
            Ok(slots) => slots,
            Err(error) => {
                let why = error.words();
                tracing::debug!(why, "there is no slot to mark successful");
                return Ok(false);
            }
        };
        self.systemd.complete_boot(settings.health_timeout).await?;
        let (world, settings) = (Arc::clone(self), settings.clone());
        Engine::blocking(move || world.check_and_mark(&slots, &settings))
            .await
            .map_err(|error| error.words())??;
        gate.settled = true;
        Ok(true)
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

/// When a machine that is not healthy is rebooted. Never while nothing is known of its
/// settings: they may forbid it.
fn deadline(known: Option<&Settings>, started: Instant) -> Option<Instant> {
    Some(started + known?.health_deadline?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_rebooted_only_by_settings_that_are_known() {
        let started = Instant::now();
        let settings = Settings::default();
        let ten_minutes = Some(started + Duration::from_secs(600));
        assert_eq!(deadline(Some(&settings), started), ten_minutes);
        assert_eq!(deadline(None, started), None);
        let never = Settings {
            health_deadline: None,
            ..settings
        };
        assert_eq!(deadline(Some(&never), started), None);
    }
}
