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
        let (started, delay) = (self.started, settings.health_delay);
        tokio::spawn(async move {
            if applied {
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
            let limit = known.as_ref().and_then(|settings| settings.health_deadline);
            let deadline = limit.map(|limit| started + limit);
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
