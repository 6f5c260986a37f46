//! What the machine's state looks like from outside.

use super::World;
use crate::config::Settings;
use crate::machine::{Outcome, Phase, State};
use crate::status::{self, Details, Operation, Snapshot, Status};

/// Facts about this machine that are shown beside the state.
#[derive(Debug, Clone, Default)]
pub(super) struct Facts {
    version: String,
    current_slot: Option<String>,
    target_slot: Option<String>,
}

impl Facts {
    pub(super) fn read(world: &World, settings: &Settings) -> Self {
        let mut facts = Self::default();
        facts.refresh(world, settings);
        facts
    }

    pub(super) fn refresh(&mut self, world: &World, settings: &Settings) {
        self.version.clone_from(&settings.version);
        let slots = world.discover(settings).ok();
        self.current_slot = slots.as_ref().map(|slots| slots.source.letter.to_string());
        self.target_slot = slots.as_ref().map(|slots| slots.target.letter.to_string());
    }
}

/// The whole view.
pub(super) fn snapshot(state: &State, facts: &Facts) -> Snapshot {
    Snapshot {
        status: status(state),
        details: details(state, facts),
    }
}

fn status(state: &State) -> Status {
    Status {
        last_checked_time: state.last_checked,
        progress: progress(state),
        operation: operation(state.phase),
        new_version: state
            .new_version
            .clone()
            .unwrap_or_else(|| status::NO_VERSION.to_owned()),
        new_size: i64::try_from(state.progress.total).unwrap_or(i64::MAX),
    }
}

/// 0.0 again once the download has ended, as in the original.
fn progress(state: &State) -> f64 {
    if state.phase != Phase::Downloading || state.progress.total == 0 {
        return 0.0;
    }
    // Ten thousandths are finer than anything that is shown of them.
    let share = u128::from(state.progress.done) * 10_000 / u128::from(state.progress.total);
    u32::try_from(share).map_or(0.0, |share| f64::from(share) / 10_000.0)
}

fn operation(phase: Phase) -> Operation {
    match phase {
        Phase::Idle => Operation::Idle,
        Phase::Checking => Operation::CheckingForUpdate,
        Phase::UpdateAvailable => Operation::UpdateAvailable,
        Phase::Downloading => Operation::Downloading,
        Phase::Finalizing => Operation::Finalizing,
        Phase::NeedReboot => Operation::UpdatedNeedReboot,
        Phase::ReportingError => Operation::ReportingErrorEvent,
    }
}

fn details(state: &State, facts: &Facts) -> Details {
    let running = state.progress.total > 0;
    let mut details = Details {
        last_attempt_time: (state.last_attempt > 0).then_some(state.last_attempt),
        bytes_done: running.then_some(state.progress.done),
        bytes_total: running.then_some(state.progress.total),
        bytes_resumed: running.then_some(state.progress.resumed),
        current_version: Some(facts.version.clone()).filter(|version| !version.is_empty()),
        current_slot: facts.current_slot.clone(),
        target_slot: facts.target_slot.clone(),
        attempts: state.attempts,
        ..Details::default()
    };
    match &state.outcome {
        None => {}
        Some(Outcome::NoUpdate { reason }) => {
            details.last_outcome = status::Outcome::NoUpdate;
            details.reason = Some(reason.clone()).filter(|reason| !reason.is_empty());
        }
        Some(Outcome::Deferred(failure)) => {
            details.last_outcome = status::Outcome::Deferred;
            details.reason = Some(failure.words.clone());
        }
        Some(Outcome::Failed(failure)) => {
            details.last_outcome = status::Outcome::Failed;
            details.last_error = Some(failure.words.clone());
            details.last_error_code = Some(failure.code);
        }
        Some(Outcome::Cancelled) => details.last_outcome = status::Outcome::Cancelled,
        Some(Outcome::Updated) => details.last_outcome = status::Outcome::Updated,
    }
    details
}
