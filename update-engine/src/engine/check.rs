//! One exchange with the update server and what follows from it.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use gptprio::Guid;
use omaha_protocol::Response;

use super::attempt::Attempt;
use super::{Engine, World, roll};
use crate::boot::{GptBoot, Standing};
use crate::config::Settings;
use crate::error::UpdateError;
use crate::machine::{CheckResult, Failure};
use crate::omaha::{self, Answer, UpdateOffer};
use crate::plan;
use crate::platform::{KernelFiles, Slot};
use crate::policy::{self, Circumstances, Decision, History, Rules};
use crate::prefs::{self, FULL_RESPONSE, Key, PREVIOUS_VERSION};
use crate::retry::RetryState;

const CONTENT_TYPE: &str = "text/xml";
/// The traditional value of `SERVER` that stops updates and nothing else.
const DISABLED: &str = "disabled";
/// Real answers are about a kilobyte.
const ANSWER_LIMIT: u64 = 1024 * 1024;

/// The boot in which the last update was applied.
pub(super) const UPDATE_BOOT_ID: Key = Key::new("update-boot-id");
/// The slot that the last update was written to: the unique GUID of its partition.
pub(super) const UPDATE_SLOT: Key = Key::new("update-slot");
/// What the last update brought, by the label of its offer.
pub(super) const INSTALLED_VERSION: Key = Key::new("installed-version");
/// What was rolled back, by the labels of their offers, one per line.
const QUARANTINE: Key = Key::new("quarantined-versions");
/// Versions remembered as bad, the newest kept.
const MOST_QUARANTINED: usize = 16;

/// What a check came to.
pub(super) struct Checked {
    pub(super) poll_interval: u64,
    pub(super) http_status: u16,
    /// Whether there was an answer that could be understood.
    pub(super) answered: bool,
    pub(super) result: CheckResult,
}

impl Checked {
    fn failed(http_status: u16, error: &UpdateError) -> Self {
        let failure = Failure {
            code: error.code(),
            words: error.words(),
            resumed: false,
        };
        let result = match error {
            UpdateError::ServerUnreachable { .. } => CheckResult::Unreachable(failure),
            UpdateError::Ignored { .. }
            | UpdateError::Deferred { .. }
            | UpdateError::Backoff { .. } => CheckResult::Deferred(failure),
            _ => CheckResult::Failed(failure),
        };
        Self {
            poll_interval: 0,
            http_status,
            answered: false,
            result,
        }
    }
}

/// What the last boot says about the last update.
enum LastUpdate {
    /// No record: a fresh machine.
    Unknown,
    /// Nothing to tell.
    Told,
    /// The machine came up on a new version; this one ran before.
    Succeeded { before: String },
    /// The machine rebooted after an update and runs the old version.
    RolledBack,
}

/// Asks the server and decides what to do with the answer.
pub(super) async fn check(world: Arc<World>, attempt: Arc<Attempt>) -> Checked {
    if attempt.settings.server == DISABLED {
        let reason = format!("updates are switched off by SERVER={DISABLED}");
        let result = CheckResult::NoUpdate { reason };
        return Checked {
            poll_interval: 0,
            http_status: 0,
            answered: false,
            result,
        };
    }
    world.post_kept(&attempt).await;
    let (status, answer) = match exchange(&world, &attempt).await {
        Ok(exchange) => exchange,
        Err(error) => {
            let status = match &error {
                UpdateError::ServerStatus { status, .. } => *status,
                _ => 0,
            };
            return Checked::failed(status, &error);
        }
    };
    let (answer, poll_interval) = match answer {
        Ok(answer) => answer,
        Err(error) => return Checked::failed(status, &error),
    };
    let result = match answer {
        Answer::NoUpdate { reason } => CheckResult::NoUpdate { reason },
        Answer::Offer(offer) => {
            let unproven = world.prove_running_system(&attempt.settings).await.err();
            match Engine::blocking(move || consider(&world, &attempt, &offer, unproven)).await {
                Ok(plan) => CheckResult::Install(Box::new(plan)),
                Err(error) => Checked::failed(status, &error).result,
            }
        }
    };
    Checked {
        poll_interval,
        http_status: status,
        answered: true,
        result,
    }
}

type Exchange = (u16, Result<(Answer, u64), UpdateError>);

async fn exchange(world: &Arc<World>, attempt: &Arc<Attempt>) -> Result<Exchange, UpdateError> {
    let (asked, looking) = (Arc::clone(world), Arc::clone(attempt));
    let last = Engine::blocking(move || asked.last_update(&looking)).await?;
    let running = match &last {
        LastUpdate::Unknown => omaha::running("0.0.0.0"),
        LastUpdate::Told => omaha::running(""),
        LastUpdate::Succeeded { before } => omaha::running(before),
        LastUpdate::RolledBack => omaha::rolled_back(),
    };
    let url = &attempt.settings.server;
    let body = attempt.check(running).to_xml().into_bytes();
    let reply = attempt
        .transport
        .post(url, CONTENT_TYPE, body.into(), ANSWER_LIMIT)
        .await
        .map_err(|source| match source {
            crate::error::TransportError::Long { expected } => UpdateError::AnswerTooLong {
                url: url.clone(),
                limit: expected,
            },
            source => UpdateError::ServerUnreachable {
                url: url.clone(),
                source,
            },
        })?;
    if !(200..=299).contains(&reply.status) {
        return Err(UpdateError::ServerStatus {
            url: url.clone(),
            status: reply.status,
        });
    }
    // Only now has the server been told; the original forgot it before the post
    // and lost the report whenever the post failed.
    let (told, settings) = (Arc::clone(world), attempt.settings.clone());
    Engine::blocking(move || told.told(&last, &settings)).await?;
    if reply.body.is_empty() {
        return Ok((
            reply.status,
            Err(UpdateError::EmptyAnswer { url: url.clone() }),
        ));
    }
    world.keep(FULL_RESPONSE, &String::from_utf8_lossy(&reply.body))?;
    let answer = Response::parse(&reply.body)
        .map_err(|source| UpdateError::AnswerUnreadable {
            url: url.clone(),
            source,
        })
        .and_then(|response| omaha::read_answer(&response));
    Ok((reply.status, answer))
}

/// Policy and plan over an offer. Blocking.
fn consider(
    world: &World,
    attempt: &Attempt,
    offer: &UpdateOffer,
    unproven: Option<String>,
) -> Result<plan::InstallPlan, UpdateError> {
    let settings = &attempt.settings;
    let retry = world.retry_state().for_offer(offer);
    world.keep_retry_state(&retry)?;
    world.keep_delta_history(&world.delta_history().for_version(&offer.version))?;
    let rules = Rules {
        paused: settings.paused,
        version_floor: settings.version_floor.clone(),
        version_pin: settings.version_pin.clone(),
        refuse_downgrade: !settings.allow_downgrade,
    };
    let history = History {
        running: attempt.identity.version.clone(),
        quarantined: world.quarantined(),
        waiting_until: retry
            .waiting_until(offer, unix_now())
            .filter(|_| settings.official_build),
        unproven,
    };
    let version = offer.version.clone();
    match policy::decide(offer, &rules, &history) {
        Decision::Allowed => {}
        Decision::Deferred(reason) => return Err(UpdateError::Deferred { version, reason }),
        Decision::Ignored(reason) => return Err(UpdateError::Ignored { version, reason }),
        Decision::Backoff(until) => return Err(UpdateError::Backoff { version, until }),
    }
    world.settle_security_epoch_of_running(settings)?;
    let circumstances = Circumstances {
        app_id: attempt.identity.app_id.clone(),
        board: attempt.identity.board.clone(),
        running: attempt.identity.version.clone(),
        offered: offer.version.clone(),
        security_epoch: world.security_epoch()?,
        now: unix_now(),
    };
    // Its manifest was read before: it need not be downloaded again to say the same.
    if let Some(facts) = world.refused_release(&offer.sha256)
        && let Err(reason) = policy::admit(&facts, &circumstances)
    {
        return Err(UpdateError::Ignored { version, reason });
    }
    let trust = world.trust(settings)?;
    let slots = world.discover(settings)?;
    let files = KernelFiles::of(&world.root, settings, &slots, &world.discovery)
        .map_err(|error| UpdateError::Slots(Box::new(error)))?;
    Ok(plan::make(
        offer,
        retry.url_index,
        slots,
        files,
        trust,
        circumstances,
        settings,
    ))
}

impl World {
    /// Blocking: it may look at the disk.
    fn last_update(&self, attempt: &Attempt) -> Result<LastUpdate, UpdateError> {
        let Some(previous) = self.read(PREVIOUS_VERSION)? else {
            return Ok(LastUpdate::Unknown);
        };
        if previous.is_empty() {
            return Ok(LastUpdate::Told);
        }
        // The same version may have been installed once more.
        let runs = self.runs_the_update(&attempt.settings) == Some(true);
        if runs || previous != attempt.identity.version {
            return Ok(LastUpdate::Succeeded { before: previous });
        }
        // The version is the old one also as long as the machine has not rebooted at all,
        // after an operator took the update back, and where the update never came to be
        // active: its record is made before, and it may be overwritten before it boots.
        let rebooted = self
            .read(UPDATE_BOOT_ID)?
            .is_none_or(|id| id != attempt.identity.boot_id);
        Ok(if rebooted && self.update_was_active(&attempt.settings) {
            LastUpdate::RolledBack
        } else {
            LastUpdate::Told
        })
    }

    /// Remembers what the server has heard. Blocking: it may look at the disk.
    fn told(&self, last: &LastUpdate, settings: &Settings) -> Result<(), UpdateError> {
        match last {
            LastUpdate::Told => Ok(()),
            // It may still be rolled back, and the version before must know it by this;
            // it would install the same again. Until then the server hears it each time.
            LastUpdate::Succeeded { .. } if self.is_on_trial(settings) => Ok(()),
            LastUpdate::Unknown | LastUpdate::Succeeded { .. } => self.keep(PREVIOUS_VERSION, ""),
            LastUpdate::RolledBack => {
                if let Some(version) = self.read(INSTALLED_VERSION)?
                    // Daemons before this one kept it where the offer named none.
                    && !version.is_empty()
                {
                    tracing::warn!(version, "this version was rolled back and is quarantined");
                    self.quarantine(&version)?;
                }
                self.keep(PREVIOUS_VERSION, "")
            }
        }
    }

    /// Whether the running slot is one that is not marked successful. When that cannot be
    /// told the server rather hears of an update twice than of a rollback never.
    fn is_on_trial(&self, settings: &Settings) -> bool {
        self.standing(settings)
            .is_none_or(|standing| !standing.proven)
    }

    /// Whether the last update, which does not run, was made active in its slot.
    fn update_was_active(&self, settings: &Settings) -> bool {
        let Some(Standing { others_active, .. }) = self.standing(settings) else {
            return true;
        };
        match self.update_slot() {
            Some(slot) => others_active.contains(&slot),
            None => !others_active.is_empty(),
        }
    }

    /// Whether the running slot is the one that the last update was written to. `None`
    /// when nothing tells. Blocking: it looks at the disk.
    pub(super) fn runs_the_update(&self, settings: &Settings) -> Option<bool> {
        let update = self.update_slot()?;
        let slots = self.discover_running(settings).ok()?;
        Some(slots.source.unique_guid == update)
    }

    fn update_slot(&self) -> Option<Guid> {
        let text = self.read(UPDATE_SLOT).ok().flatten()?;
        text.parse().ok()
    }

    /// Whether `slot`, which does not run, may boot next or later. Yes when that cannot be
    /// told. Blocking: it looks at the disk.
    pub(super) fn may_be_active(&self, slot: &Slot, settings: &Settings) -> bool {
        self.standing(settings)
            .is_none_or(|standing| standing.others_active.contains(&slot.unique_guid))
    }

    fn standing(&self, settings: &Settings) -> Option<Standing> {
        let standing = self
            .discover_running(settings)
            .and_then(|slots| Ok(GptBoot::new(settings).standing(&slots)?));
        standing
            .inspect_err(|error| {
                tracing::warn!(error = error.words(), "cannot tell how the slots stand");
            })
            .ok()
    }

    fn quarantined(&self) -> Vec<String> {
        match self.read(QUARANTINE) {
            Ok(text) => text
                .unwrap_or_default()
                .lines()
                .map(str::to_owned)
                .collect(),
            Err(error) => {
                tracing::warn!(
                    error = error.words(),
                    "cannot read the quarantined versions"
                );
                Vec::new()
            }
        }
    }

    fn quarantine(&self, version: &str) -> Result<(), UpdateError> {
        let mut versions = self.quarantined();
        versions.retain(|known| known != version);
        versions.push(version.to_owned());
        let surplus = versions.len().saturating_sub(MOST_QUARANTINED);
        versions.drain(..surplus);
        self.keep(QUARANTINE, &versions.join("\n"))
    }

    /// An installation or a check of this offer failed: the next URL, or a wait.
    pub(super) fn count_failure(&self, offer: &UpdateOffer, code: u32) -> Result<(), UpdateError> {
        let mut retry = self.retry_state().for_offer(offer);
        retry.failed(offer, code, unix_now(), roll());
        self.keep_retry_state(&retry)
    }

    /// Bytes of the payload arrived, or all of it.
    pub(super) fn count_download(
        &self,
        offer: &UpdateOffer,
        complete: bool,
    ) -> Result<(), UpdateError> {
        let mut retry = self.retry_state().for_offer(offer);
        retry.received();
        if complete {
            retry.downloaded(offer, unix_now(), roll());
        }
        self.keep_retry_state(&retry)
    }

    fn retry_state(&self) -> RetryState {
        let integer = |key| self.integer(key);
        RetryState {
            fingerprint: self
                .read(prefs::CURRENT_RESPONSE_SIGNATURE)
                .ok()
                .flatten()
                .unwrap_or_default(),
            url_index: usize::try_from(integer(prefs::CURRENT_URL_INDEX)).unwrap_or(0),
            url_failures: u32::try_from(integer(prefs::CURRENT_URL_FAILURE_COUNT)).unwrap_or(0),
            attempt: u32::try_from(integer(prefs::PAYLOAD_ATTEMPT_NUMBER)).unwrap_or(0),
            backoff_until: integer(prefs::BACKOFF_EXPIRY_TIME),
        }
    }

    fn keep_retry_state(&self, retry: &RetryState) -> Result<(), UpdateError> {
        if *retry == self.retry_state() {
            return Ok(());
        }
        self.keep(prefs::CURRENT_RESPONSE_SIGNATURE, &retry.fingerprint)?;
        self.keep(prefs::CURRENT_URL_INDEX, &retry.url_index.to_string())?;
        self.keep(
            prefs::CURRENT_URL_FAILURE_COUNT,
            &retry.url_failures.to_string(),
        )?;
        self.keep(prefs::PAYLOAD_ATTEMPT_NUMBER, &retry.attempt.to_string())?;
        self.keep(prefs::BACKOFF_EXPIRY_TIME, &retry.backoff_until.to_string())
    }
}

/// Unix seconds; 0 on a machine whose clock is before 1970.
pub(super) fn unix_now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|time| i64::try_from(time.as_secs()).ok())
        .unwrap_or(0)
}
