//! Counters and gauges for Prometheus, in the OpenMetrics text format.
//!
//! All names start with `locksmith_`. Labels take few values: groups that this
//! process serves, words of this program, and at most one id, its own. Groups
//! are labelled with their name, so the default group has an empty label.
//!
//! [`Measured`] measures a store from outside; [`Endpoint`] lets scrapers in.

mod endpoint;
mod measured;

use std::collections::BTreeSet;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

pub(crate) use endpoint::route;
pub use endpoint::{Endpoint, EndpointError};
pub use measured::Measured;

use crate::coordinator::{Moment, View, Window};
use crate::fleetlock::protocol::Api;
use crate::group::GroupName;
use crate::machine_id::MachineId;
use crate::semaphore::{Phase, Snapshot, failures};

/// Content type of [`Metrics::encode`].
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Bounds of the store's latency, in seconds.
const LATENCY: [f64; 9] = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0];

/// Answers of a FleetLock server that are told apart; it chooses their words.
const MOST_ANSWERS: usize = 64;

type Seconds = Gauge<f64, AtomicU64>;

/// Everything that one process measures.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,

    max: Family<Group, Gauge>,
    available: Family<Group, Gauge>,
    holders: Family<InPhase, Gauge>,
    longest_held: Family<Group, Gauge>,
    members: Family<Group, Gauge>,
    queue_depth: Family<Group, Gauge>,
    oldest_wait: Family<Group, Gauge>,
    budget_left: Family<Group, Gauge>,
    failures: Family<Group, Gauge>,
    halted: Family<Group, Gauge>,
    paused: Family<Group, Gauge>,
    holding: Family<Own, Gauge>,

    stage: Family<Stage, Gauge>,
    stage_seconds: Family<Stage, Counter<f64, AtomicU64>>,
    stage_now: Mutex<Option<(&'static str, Duration)>>,
    window_open: Gauge,
    reboot_required: Gauge,

    transactions: Family<Outcome, Counter>,
    store_seconds: Family<Call, Histogram>,
    store_errors: Family<CallError, Counter>,
    store_last_error: Family<CallError, Seconds>,

    fleetlock_served: Family<Answered, Counter>,
    fleetlock_asked: Family<Answered, Counter>,
    answers: Mutex<BTreeSet<String>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Group {
    group: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InPhase {
    group: String,
    phase: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Own {
    group: String,
    id: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Stage {
    stage: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Call {
    call: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallError {
    call: &'static str,
    error: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    api: &'static str,
    answer: String,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Nothing measured yet.
    #[must_use]
    pub fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("locksmith"),
            max: Family::default(),
            available: Family::default(),
            holders: Family::default(),
            longest_held: Family::default(),
            members: Family::default(),
            queue_depth: Family::default(),
            oldest_wait: Family::default(),
            budget_left: Family::default(),
            failures: Family::default(),
            halted: Family::default(),
            paused: Family::default(),
            holding: Family::default(),
            stage: Family::default(),
            stage_seconds: Family::default(),
            stage_now: Mutex::new(None),
            window_open: Gauge::default(),
            reboot_required: Gauge::default(),
            transactions: Family::default(),
            store_seconds: Family::new_with_constructor(|| Histogram::new(LATENCY)),
            store_errors: Family::default(),
            store_last_error: Family::default(),
            fleetlock_served: Family::default(),
            fleetlock_asked: Family::default(),
            answers: Mutex::default(),
        };
        metrics.register();
        metrics
    }

    fn register(&mut self) {
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        self.registry.register("build", "What runs", version);
        macro_rules! register {
            ($($field:ident: $help:literal as $name:literal),* $(,)?) => {
                $(self.registry.register($name, $help, self.$field.clone());)*
            };
        }
        register! {
            max: "Places of the group" as "semaphore_max",
            available: "Places that may be given away; negative after max was lowered below the holders" as "semaphore_available",
            holders: "Holders by phase; unexplained: without a record" as "semaphore_holders",
            longest_held: "Age of the oldest place" as "semaphore_longest_held_seconds",
            members: "Machines that take part" as "members",
            queue_depth: "Machines that wait for a place" as "queue_depth",
            oldest_wait: "Time for which the one that waits longest has waited" as "queue_oldest_wait_seconds",
            budget_left: "Failures until the group halts; absent if it never does" as "failure_budget_left",
            failures: "Machines that burned the budget" as "failures",
            halted: "1: failures or an operator have halted the group" as "halted",
            paused: "1: an operator has paused the group" as "paused",
            holding: "1: this machine has a place" as "holding",
            stage: "1 for the stage at which the agent is" as "stage",
            stage_seconds: "Time that the agent has spent at each stage" as "stage_seconds",
            window_open: "1: this machine may reboot at this time" as "window_open",
            reboot_required: "1: an update waits for a reboot" as "reboot_required",
            transactions: "Transactions by outcome; conflict: lost a race and tried again" as "transactions",
            store_seconds: "Time of calls to the store" as "store_call_seconds",
            store_errors: "Calls to the store that failed" as "store_errors",
            store_last_error: "When a call last failed in this way" as "store_last_error_timestamp_seconds",
            fleetlock_served: "FleetLock requests that were answered" as "fleetlock_requests",
            fleetlock_asked: "FleetLock requests that this machine made" as "fleetlock_client_requests",
        }
    }

    /// Takes over what a snapshot says of a group; `now` in Unix seconds.
    pub fn update_from(&self, group: &GroupName, snapshot: &Snapshot, now: i64) {
        let group = Group {
            group: group.as_str().to_owned(),
        };
        let set = |family: &Family<Group, Gauge>, value| {
            family.get_or_create(&group).set(value);
        };
        let places = snapshot.places();
        set(&self.max, places.max);
        set(&self.available, places.free());
        set(&self.members, gauge(snapshot.members));
        set(&self.queue_depth, gauge(snapshot.queue_length));
        let age = |since: Option<i64>| since.map_or(0, |since| now.saturating_sub(since).max(0));
        let waiting = snapshot.queue.iter().map(|(_, ticket)| ticket.since);
        set(&self.oldest_wait, age(waiting.min()));

        let mut counts = [0; PHASES.len() + 1];
        let mut oldest = None;
        for id in &places.holders {
            let record = snapshot.holders.get(id);
            let holder = record.and_then(|record| record.value.as_ref());
            if let Some(holder) = holder {
                oldest = Some(oldest.unwrap_or(i64::MAX).min(holder.since));
            }
            let phase = holder.and_then(|holder| {
                let mut phases = PHASES.iter();
                phases.position(|(phase, _)| *phase == holder.phase)
            });
            counts[phase.unwrap_or(PHASES.len())] += 1;
        }
        let names = PHASES.iter().map(|(_, name)| *name).chain(["unexplained"]);
        for (phase, count) in names.zip(counts) {
            let group = group.group.clone();
            self.holders
                .get_or_create(&InPhase { group, phase })
                .set(count);
        }
        set(&self.longest_held, age(oldest));

        let failed = snapshot.failures.value.as_ref();
        set(
            &self.failures,
            gauge(failed.map_or(0, |failures| failures.failures.len())),
        );
        match failures::budget_left(snapshot) {
            Some(left) => set(&self.budget_left, i64::from(left)),
            None => {
                self.budget_left.remove(&group);
            }
        }
        let policy = snapshot.policy.value.as_ref();
        let paused = policy.is_some_and(|policy| policy.paused.is_some());
        set(&self.paused, i64::from(paused));
        set(&self.halted, i64::from(snapshot.halt.value.is_some()));
    }

    /// Takes over whether this machine has a place.
    pub fn update_own(&self, group: &GroupName, id: &MachineId, snapshot: &Snapshot) {
        let own = Own {
            group: group.as_str().to_owned(),
            id: id.to_string(),
        };
        let holds = snapshot.places().holds(id);
        self.holding.get_or_create(&own).set(i64::from(holds));
    }

    /// Takes over where the agent stands. Call it after each of its steps.
    pub fn observe_stage(&self, view: &View, moment: Moment) {
        let at = |stage| Stage { stage };
        let mut now = self
            .stage_now
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some((stage, since)) = *now {
            let spent = moment.monotonic.saturating_sub(since);
            self.stage_seconds
                .get_or_create(&at(stage))
                .inc_by(spent.as_secs_f64());
            if stage != view.stage {
                self.stage.get_or_create(&at(stage)).set(0);
            }
        }
        *now = Some((view.stage, moment.monotonic));
        self.stage.get_or_create(&at(view.stage)).set(1);
        self.window_open
            .set(i64::from(moment.window == Window::Open));
        self.reboot_required.set(i64::from(view.applied.is_some()));
    }

    /// Counts an answer given by the FleetLock server: `yes` or a kind.
    pub(crate) fn fleetlock_served(&self, api: Api, answer: &'static str) {
        let answered = Answered {
            api: api.name(),
            answer: answer.to_owned(),
        };
        self.fleetlock_served.get_or_create(&answered).inc();
    }

    /// Counts an answer that a FleetLock server gave to this machine: `yes` or
    /// the kind of its refusal.
    pub fn fleetlock_asked(&self, api: Api, answer: &str) {
        let mut known = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let room = known.len() < MOST_ANSWERS;
        let answer = if room || known.contains(answer) {
            known.insert(answer.to_owned());
            answer
        } else {
            "other"
        };
        let answered = Answered {
            api: api.name(),
            answer: answer.to_owned(),
        };
        self.fleetlock_asked.get_or_create(&answered).inc();
    }

    /// All of it as OpenMetrics text.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut out = String::new();
        text::encode(&mut out, &self.registry).expect("a String takes any text");
        out
    }
}

/// Phases and their labels.
const PHASES: [(Phase, &str); 6] = [
    (Phase::Granted, "granted"),
    (Phase::Draining, "draining"),
    (Phase::Rebooting, "rebooting"),
    (Phase::Verifying, "verifying"),
    (Phase::Overdue, "overdue"),
    (Phase::Failed, "failed"),
];

fn gauge(value: impl TryInto<i64>) -> i64 {
    value.try_into().unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
