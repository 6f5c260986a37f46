//! Starts an installation beside the loop and records how it ended.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use omaha_protocol::Event as OmahaEvent;
use payload::{PublicKey, Trust};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::attempt::Attempt;
use super::check::{INSTALLED_VERSION, UPDATE_BOOT_ID, UPDATE_SLOT};
use super::reporter::Keep;
use super::{Engine, VOLATILE_STATE, World};
use crate::boot::GptBoot;
use crate::config::{Identity, Settings};
use crate::deltas::{self, DeltaFailure, DeltaHistory};
use crate::error::UpdateError;
use crate::install::{self, Ended, Observer, Proof, SlotDevices, StateFolders, Surroundings};
use crate::machine::{Event, Failure, InstallFailure};
use crate::net::Patience;
use crate::omaha::moment;
use crate::plan::InstallPlan;
use crate::platform::Slot;
use crate::postinst::MountedPostInstall;
use crate::prefs::{FULL_RESPONSE, PREVIOUS_VERSION};

impl Engine {
    pub(super) fn start_installation(&mut self, plan: InstallPlan) {
        let Some(attempt) = self.attempt.clone() else {
            return;
        };
        self.cancel = CancellationToken::new();
        let (world, sender, cancel) = (
            Arc::clone(&self.world),
            self.sender.clone(),
            self.cancel.clone(),
        );
        tokio::spawn(async move {
            let result = world.install(plan, attempt, sender.clone(), cancel).await;
            let _ = sender.send(Event::InstallFinished(result));
        });
    }
}

impl World {
    async fn install(
        self: Arc<Self>,
        plan: InstallPlan,
        attempt: Arc<Attempt>,
        sender: mpsc::UnboundedSender<Event>,
        cancel: CancellationToken,
    ) -> Result<(), InstallFailure> {
        let plan = Arc::new(plan);
        let surroundings = match self.surroundings(&attempt) {
            Ok(surroundings) => Arc::new(surroundings),
            Err(error) => return Err(failure(&plan, &error, false)),
        };
        let observer = Reports {
            world: Arc::clone(&self),
            attempt: Arc::clone(&attempt),
            plan: Arc::clone(&plan),
            sender: sender.clone(),
        };
        let ended = install::run(Arc::clone(&plan), surroundings, &observer, cancel).await;
        // The daemon may be idle for days.
        self.encoders(&attempt.settings).forget();
        self.record(&plan, &attempt.settings, &ended);
        match ended.result {
            Ok(_) => {
                // Told here before it is told the server, which may be slow.
                observer.observe(Event::Activated);
                observer.report(moment::applied()).await;
                Ok(())
            }
            Err(error) => Err(failure(&plan, &error, ended.resumed)),
        }
    }

    fn surroundings(&self, attempt: &Attempt) -> Result<Surroundings, UpdateError> {
        let settings = &attempt.settings;
        let folder = |path: &str| {
            self.root.path(path).map_err(|error| UpdateError::State {
                what: "the installation checkpoint",
                source: Box::new(error),
            })
        };
        Ok(Surroundings {
            transport: Arc::clone(&attempt.transport),
            patience: Patience::default(),
            slots: Arc::new(SlotDevices),
            encoders: self.encoders(settings),
            boot: Arc::new(GptBoot::new(settings)),
            postinst: Arc::new(MountedPostInstall::new(&self.root, settings)),
            root: self.root.clone(),
            state: StateFolders {
                durable: folder(&format!("{}/checkpoint", settings.state_dir))?,
                volatile: folder(VOLATILE_STATE)?,
                boot_id: attempt.identity.boot_id.clone(),
            },
        })
    }

    /// What the next attempt and the next boot must know. Failing to keep a
    /// number must not turn an applied update into a failed one.
    fn record(&self, plan: &InstallPlan, settings: &Settings, ended: &Ended) {
        let mut kept = Vec::new();
        if ended.received {
            // The next attempt goes on where a stopped one was, so it need not wait.
            let stopped = matches!(ended.result, Err(UpdateError::Cancelled));
            kept.push(self.count_download(&plan.offer, ended.payload_good && !stopped));
        }
        match &ended.result {
            Ok(proof) => {
                kept.push(self.keep_delta_history(&DeltaHistory::default()));
                kept.push(self.keep_installed(&plan.slots.target, proof));
            }
            Err(UpdateError::Cancelled) => {}
            Err(error) => {
                kept.push(self.count_failure(&plan.offer, error.code()));
                // Not where the target could not be made unbootable again.
                if !self.may_be_active(&plan.slots.target, settings) {
                    kept.push(self.withdraw_security_epoch());
                }
                if let Some(failure) = deltas::judge(plan.offer.is_delta, error) {
                    let mut history = self.delta_history().for_version(&plan.offer.version);
                    history.failed(failure);
                    kept.push(self.keep_delta_history(&history));
                }
                if let UpdateError::ReleaseRefused { facts, .. } = error {
                    kept.push(self.keep_refused_release(&plan.offer.sha256, facts));
                }
            }
        }
        for error in kept.into_iter().filter_map(Result::err) {
            tracing::error!(error = error.words(), "cannot record how the attempt ended");
        }
    }

    /// What the next boot must know of an update that may be active before long.
    fn record_update(
        &self,
        identity: &Identity,
        label: &str,
        target: &Slot,
    ) -> Result<(), UpdateError> {
        self.keep(INSTALLED_VERSION, label)?;
        self.keep(UPDATE_SLOT, &target.unique_guid.to_string())?;
        self.keep(UPDATE_BOOT_ID, &identity.boot_id)?;
        self.keep(PREVIOUS_VERSION, &identity.version)?;
        // Post-install programs trust an answer only when it is not older than that.
        match self.prefs.load(FULL_RESPONSE).map_err(Self::state_error)? {
            Some(answer) => self
                .prefs
                .commit(FULL_RESPONSE, &answer)
                .map_err(Self::state_error),
            None => Ok(()),
        }
    }

    /// Whether an update was applied in this boot of the kernel, or was about to be.
    pub(super) fn applied_in(&self, boot_id: &str) -> bool {
        self.read(UPDATE_BOOT_ID)
            .is_ok_and(|id| id.is_some_and(|id| id == boot_id))
    }

    /// The keys that a payload must be signed by. No key, an empty or an
    /// unreadable one: no trust at all.
    pub(super) fn trust(&self, settings: &Settings) -> Result<Trust, UpdateError> {
        let files = settings
            .key_files(&self.root)
            .map_err(|error| UpdateError::TrustKeys(Box::new(error)))?;
        let keys = files
            .iter()
            .map(|file| {
                let wrong = |error: &dyn std::fmt::Display| {
                    UpdateError::TrustKeys(format!("{}: {error}", file.path).into())
                };
                let pem = std::str::from_utf8(&file.pem).map_err(|error| wrong(&error))?;
                PublicKey::from_pem(pem).map_err(|error| wrong(&error))
            })
            .collect::<Result<Vec<_>, _>>()?;
        Trust::new(keys, settings.signature_threshold.into())
            .map_err(|error| UpdateError::TrustKeys(Box::new(error)))
    }
}

fn failure(plan: &InstallPlan, error: &UpdateError, resumed: bool) -> InstallFailure {
    if matches!(error, UpdateError::Cancelled) {
        return InstallFailure::Cancelled;
    }
    let failure = Failure {
        code: error.code(),
        words: error.words(),
        resumed,
    };
    match deltas::judge(plan.offer.is_delta, error) {
        Some(DeltaFailure::Hopeless) => InstallFailure::UselessDelta(failure),
        Some(DeltaFailure::Counted) | None => InstallFailure::Failed(failure),
    }
}

struct Reports {
    world: Arc<World>,
    attempt: Arc<Attempt>,
    plan: Arc<InstallPlan>,
    sender: mpsc::UnboundedSender<Event>,
}

impl Observer for Reports {
    fn observe(&self, event: Event) {
        // The loop is gone only when the daemon ends.
        let _ = self.sender.send(event);
    }

    fn report<'a>(&'a self, event: OmahaEvent) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let request = self.attempt.event(event);
            self.world.report(&self.attempt, request, Keep::Yes).await;
        })
    }

    fn post_installing(
        &self,
        security_epoch: Option<u64>,
    ) -> BoxFuture<'_, Result<(), UpdateError>> {
        Box::pin(async move {
            self.world.settle_gate().await;
            let (world, attempt) = (Arc::clone(&self.world), Arc::clone(&self.attempt));
            let plan = Arc::clone(&self.plan);
            Engine::blocking(move || {
                world.announce_security_epoch(&plan.slots, security_epoch)?;
                world.record_update(&attempt.identity, &plan.offer.label(), &plan.slots.target)
            })
            .await
        })
    }

    fn activating<'a>(&'a self, proof: &'a Proof) -> BoxFuture<'a, Result<(), UpdateError>> {
        Box::pin(async move {
            let (world, epoch) = (Arc::clone(&self.world), proof.security_epoch());
            Engine::blocking(move || {
                world.raise_security_epoch(epoch)?;
                world.withdraw_security_epoch()
            })
            .await
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::testing::world;

    /// Post-install programs look at the ages of both.
    #[test]
    fn an_update_is_recorded_before_its_post_install_program_with_an_answer_still_fresh() {
        let world = world();
        world.keep(FULL_RESPONSE, "<response/>").unwrap();
        let target = InstallPlan::for_tests("2.0.0", 1).slots.target;
        let identity = Identity {
            version: "1.0.0".to_owned(),
            boot_id: "this boot".to_owned(),
            ..Identity::default()
        };
        world.record_update(&identity, "2.0.0", &target).unwrap();
        for (key, value) in [
            (PREVIOUS_VERSION, "1.0.0"),
            (INSTALLED_VERSION, "2.0.0"),
            (UPDATE_BOOT_ID, "this boot"),
            (FULL_RESPONSE, "<response/>"),
        ] {
            assert_eq!(world.read(key).unwrap().as_deref(), Some(value), "{key}");
        }
        let age = |key| world.prefs.committed_at(key).unwrap().unwrap();
        assert!(age(FULL_RESPONSE) >= age(PREVIOUS_VERSION));
    }
}
