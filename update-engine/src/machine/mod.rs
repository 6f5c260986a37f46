//! The life of the updater as a pure function: `step(state, event, moment)` gives
//! the next state and what to do. It knows no clock, no network and no disk; the
//! [`crate::engine`] performs the effects and feeds their outcomes back.

mod schedule;

use std::time::Duration;

pub use schedule::Pace;

use crate::plan::InstallPlan;

/// A point in time and a fresh random number, handed in by the caller.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// Time since the daemon started; never goes back.
    pub monotonic: Duration,
    /// Unix seconds by the wall clock; may jump.
    pub wall: i64,
    /// Uniform over the whole range.
    pub roll: u32,
}

/// Where the updater stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Waiting for the timer or a request.
    Idle,
    /// A question to the server is on its way.
    Checking,
    /// An offer was accepted; no payload byte has arrived.
    UpdateAvailable,
    /// Payload bytes arrive and are applied.
    Downloading,
    /// The payload is complete: read-back, post-install, flip.
    Finalizing,
    /// The new slot boots next.
    NeedReboot,
    /// A failure is being reported to the server.
    ReportingError,
}

/// Who asked for a check. The server is told (`installsource`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// The timer.
    Scheduler,
    /// An operator through D-Bus.
    OnDemand,
}

/// How the last attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The server has nothing for this machine, or says not now.
    NoUpdate {
        /// Why, in words.
        reason: String,
    },
    /// A rule of this machine held the offer back.
    Deferred(Failure),
    /// Something failed.
    Failed(Failure),
    /// An operator stopped the installation.
    Cancelled,
    /// Installed; the next boot runs it.
    Updated,
}

/// A failure as it is shown and reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Published code without flag bits.
    pub code: u32,
    /// The whole chain of causes.
    pub words: String,
    /// Whether the attempt went on from a checkpoint.
    pub resumed: bool,
}

/// Bytes of the payload file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Downloaded and applied, those of earlier attempts included.
    pub done: u64,
    /// Size of the file; 0 when no installation runs.
    pub total: u64,
    /// Of `done`, those that an earlier attempt had brought.
    pub resumed: u64,
}

/// Everything the machine remembers between two events.
#[derive(Debug, Clone)]
pub struct State {
    /// Where the updater stands.
    pub phase: Phase,
    /// Unix seconds of the last answer understood; 0 after the start.
    pub last_checked: i64,
    /// Version of the offer in hand.
    pub new_version: Option<String>,
    /// Position in the payload.
    pub progress: Progress,
    /// How the last attempt ended; none before the first.
    pub outcome: Option<Outcome>,
    /// Unix seconds at which the last attempt began; 0 before the first.
    pub last_attempt: i64,
    /// Attempts that have ended since the start.
    pub attempts: u64,
    /// When to check next, on the monotonic clock. None while something runs,
    /// and for good where periodic checks are off.
    pub next_check: Option<Duration>,
    /// Who asked for the attempt under way.
    trigger: Trigger,
    full_payload: FullPayload,
    pace: Pace,
    options: Options,
}

/// Whether an attempt falls back from a delta to a full payload, which it may do once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FullPayload {
    /// Not so far.
    NotNeeded,
    /// As soon as the failure of the delta is reported.
    Next,
    /// It has done so.
    AskedFor,
}

/// What the machine must know of the settings.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// False on development builds: checks on demand only.
    pub periodic: bool,
    /// Time from the start to the first check, before it is spread.
    pub first_check: Duration,
    /// Time between two checks when nobody asks for another, before it is spread.
    pub interval: Duration,
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// The time in `next_check` has come.
    TimerFired,
    /// An operator asks for an attempt.
    AttemptRequested,
    /// An operator asks to forget an applied update.
    ResetRequested,
    /// An operator asks to stop the installation.
    CancelRequested,
    /// A check came back.
    CheckFinished {
        /// What the exchange says about the next one.
        poll_interval: u64,
        /// HTTP status, 0 for none.
        http_status: u16,
        /// Whether there was an answer that could be understood.
        answered: bool,
        /// What follows from the answer.
        result: CheckResult,
    },
    /// The ping-only post while waiting for the reboot came back, good or not.
    PingFinished,
    /// The first payload bytes arrived, or a resumed installation went on.
    DownloadStarted {
        /// Bytes that an earlier attempt brought.
        resumed: u64,
    },
    /// Payload bytes were applied up to here.
    Downloaded {
        /// Position in the file.
        done: u64,
    },
    /// The payload is complete and its signature good.
    PayloadVerified,
    /// The new slot boots next; the server has not heard of it yet.
    Activated,
    /// The installation ended.
    InstallFinished(Result<(), InstallFailure>),
    /// The failure report was posted or given up.
    FailureReported,
}

/// What a check leads to.
#[derive(Debug)]
pub enum CheckResult {
    /// Nothing to install.
    NoUpdate {
        /// Why, in words.
        reason: String,
    },
    /// A rule holds the offer back; the server is told.
    Deferred(Failure),
    /// The check failed before there was an offer; nothing is posted, because
    /// the server did not get that far with us.
    Unreachable(Failure),
    /// The check failed in a way that the server should know.
    Failed(Failure),
    /// Install this.
    Install(Box<InstallPlan>),
}

/// Why an installation ended early.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InstallFailure {
    /// An operator stopped it.
    Cancelled,
    /// It failed.
    Failed(Failure),
    /// It failed, and only because the payload was a delta: a full one may do.
    UselessDelta(Failure),
}

/// What to do.
#[derive(Debug)]
pub enum Effect {
    /// Ask the server.
    Check(Trigger),
    /// Tell the server that this machine lives; ask nothing.
    Ping,
    /// Run this plan.
    Install(Box<InstallPlan>),
    /// Stop the running installation; it answers with `InstallFinished`.
    StopInstall,
    /// Post the failure event, then feed `FailureReported`.
    ReportFailure(Failure),
    /// Remember beyond a restart that the next boot runs the new slot.
    WriteMarker,
    /// Forget it.
    RemoveMarker,
    /// Answer the operator that asked for a reset.
    AnswerReset(bool),
}

impl State {
    /// The state after a start. `marker`: an update was applied and waits for the
    /// reboot.
    pub fn start(marker: bool, options: Options, moment: Moment) -> Self {
        let mut state = Self {
            phase: if marker {
                Phase::NeedReboot
            } else {
                Phase::Idle
            },
            last_checked: 0,
            new_version: None,
            progress: Progress::default(),
            outcome: marker.then_some(Outcome::Updated),
            last_attempt: 0,
            attempts: 0,
            next_check: None,
            trigger: Trigger::Scheduler,
            full_payload: FullPayload::NotNeeded,
            pace: Pace::default(),
            options,
        };
        if options.periodic {
            state.next_check =
                Some(moment.monotonic + schedule::first_check(options.first_check, moment.roll));
        }
        state
    }

    /// The settings may have changed since the start; what is scheduled already stays.
    pub fn follow(&mut self, options: Options) {
        self.options = options;
    }

    fn schedule_next(&mut self, moment: Moment) {
        if self.options.periodic && self.next_check.is_none() {
            let wait = schedule::next_check(&mut self.pace, self.options.interval, moment.roll);
            self.next_check = Some(moment.monotonic + wait);
        }
    }

    fn end_attempt(&mut self, outcome: Outcome, phase: Phase, moment: Moment) {
        self.phase = phase;
        self.attempts += 1;
        if outcome != Outcome::Updated {
            self.new_version = None;
            self.progress = Progress::default();
        }
        self.outcome = Some(outcome);
        self.schedule_next(moment);
    }
}

/// The transition function. An event that does not fit the phase (a late progress
/// report, a second request) changes nothing.
pub fn step(mut state: State, event: Event, moment: Moment) -> (State, Vec<Effect>) {
    let effects = transition(&mut state, event, moment);
    (state, effects)
}

fn transition(state: &mut State, event: Event, moment: Moment) -> Vec<Effect> {
    use Phase::{
        Checking, Downloading, Finalizing, Idle, NeedReboot, ReportingError, UpdateAvailable,
    };
    match (state.phase, event) {
        (Idle, Event::TimerFired) => {
            state.next_check = None;
            begin_attempt(state, Trigger::Scheduler, moment)
        }
        (Idle, Event::AttemptRequested) => begin_attempt(state, Trigger::OnDemand, moment),
        (NeedReboot, Event::TimerFired) => {
            state.next_check = None;
            vec![Effect::Ping]
        }
        (NeedReboot, Event::PingFinished) => {
            state.schedule_next(moment);
            vec![]
        }
        // The timer fires while an on-demand attempt runs: the attempt's end
        // schedules the next one.
        (_, Event::TimerFired) => {
            state.next_check = None;
            vec![]
        }

        (
            Checking,
            Event::CheckFinished {
                poll_interval,
                http_status,
                answered,
                result,
            },
        ) => {
            if answered {
                state.last_checked = moment.wall;
            }
            state.pace.poll_interval = poll_interval;
            state.pace.http_status = http_status;
            finish_check(state, result, moment)
        }

        (UpdateAvailable, Event::DownloadStarted { resumed }) => {
            state.phase = Downloading;
            state.progress.resumed = resumed;
            state.progress.done = resumed;
            vec![]
        }
        (Downloading, Event::Downloaded { done }) => {
            state.progress.done = done.min(state.progress.total);
            vec![]
        }
        (UpdateAvailable | Downloading, Event::PayloadVerified) => {
            state.phase = Finalizing;
            state.progress.done = state.progress.total;
            vec![]
        }
        (Finalizing, Event::Activated) => vec![Effect::WriteMarker],
        (Finalizing, Event::InstallFinished(Ok(()))) => {
            state.end_attempt(Outcome::Updated, NeedReboot, moment);
            vec![]
        }
        (UpdateAvailable | Downloading | Finalizing, Event::InstallFinished(result)) => {
            match result {
                Ok(()) => {
                    let words = "the installation ended without checking the payload".to_owned();
                    fail(
                        state,
                        Failure {
                            code: 1,
                            words,
                            resumed: false,
                        },
                    )
                }
                Err(InstallFailure::Cancelled) => {
                    state.end_attempt(Outcome::Cancelled, Idle, moment);
                    vec![]
                }
                Err(InstallFailure::Failed(failure)) => fail(state, failure),
                Err(InstallFailure::UselessDelta(failure)) => {
                    // A server that goes on to offer deltas must not be asked for ever.
                    if state.full_payload == FullPayload::NotNeeded {
                        state.full_payload = FullPayload::Next;
                    }
                    fail(state, failure)
                }
            }
        }
        (ReportingError, Event::FailureReported) if state.full_payload == FullPayload::Next => {
            // Still the same attempt: its end is that of the full payload.
            state.full_payload = FullPayload::AskedFor;
            state.phase = Checking;
            vec![Effect::Check(state.trigger)]
        }
        (ReportingError, Event::FailureReported) => {
            let outcome = state.outcome.take().unwrap_or(Outcome::Cancelled);
            state.end_attempt(outcome, Idle, moment);
            vec![]
        }

        (UpdateAvailable | Downloading, Event::CancelRequested) => vec![Effect::StopInstall],
        (Idle, Event::ResetRequested) => vec![Effect::AnswerReset(true)],
        (NeedReboot, Event::ResetRequested) => {
            state.phase = Idle;
            state.outcome = None;
            state.new_version = None;
            state.progress = Progress::default();
            // A ping on its way had stopped the timer, and nothing else starts it here.
            state.schedule_next(moment);
            vec![Effect::RemoveMarker, Effect::AnswerReset(true)]
        }
        (_, Event::ResetRequested) => vec![Effect::AnswerReset(false)],

        _ => vec![],
    }
}

fn begin_attempt(state: &mut State, trigger: Trigger, moment: Moment) -> Vec<Effect> {
    state.phase = Phase::Checking;
    state.last_attempt = moment.wall;
    state.trigger = trigger;
    state.full_payload = FullPayload::NotNeeded;
    vec![Effect::Check(trigger)]
}

fn finish_check(state: &mut State, result: CheckResult, moment: Moment) -> Vec<Effect> {
    match result {
        CheckResult::NoUpdate { reason } => {
            state.end_attempt(Outcome::NoUpdate { reason }, Phase::Idle, moment);
            vec![]
        }
        CheckResult::Unreachable(failure) => {
            state.end_attempt(Outcome::Failed(failure), Phase::Idle, moment);
            vec![]
        }
        CheckResult::Deferred(failure) => {
            state.phase = Phase::ReportingError;
            state.outcome = Some(Outcome::Deferred(failure.clone()));
            vec![Effect::ReportFailure(failure)]
        }
        CheckResult::Failed(failure) => fail(state, failure),
        CheckResult::Install(plan) => {
            state.phase = Phase::UpdateAvailable;
            state.new_version = Some(plan.offer.version.clone());
            state.progress = Progress {
                done: 0,
                total: plan.offer.size,
                resumed: 0,
            };
            vec![Effect::Install(plan)]
        }
    }
}

fn fail(state: &mut State, failure: Failure) -> Vec<Effect> {
    state.phase = Phase::ReportingError;
    state.new_version = None;
    state.progress = Progress::default();
    state.outcome = Some(Outcome::Failed(failure.clone()));
    vec![Effect::ReportFailure(failure)]
}

#[cfg(test)]
mod tests;
