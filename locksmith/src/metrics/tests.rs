use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::semaphore::{
    Document, Failure, FailureKind, Failures, Halt, Holder, Kind, LeaseId, Look, Mode, Paused,
    Policy, Ticket, TicketKey, Transaction, Versioned, steering,
};
use crate::store::{Fault, MemoryStore, SemaphoreStore as _};

/// Reads OpenMetrics text, and fails on what is none: every sample belongs to a
/// family with a type and a help, no family is there twice, no sample is, labels
/// are quoted, values are numbers, and the end is marked.
fn parse(text: &str) -> BTreeMap<String, f64> {
    let mut types: BTreeMap<&str, &str> = BTreeMap::new();
    let mut family = "";
    let mut samples = BTreeMap::new();
    let body = text.strip_suffix("# EOF\n").expect("the end is marked");
    for line in body.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            family = help.split_once(' ').expect("a help text").0;
            assert!(family.starts_with("locksmith_"), "{line}");
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').expect("a type");
            assert_eq!(name, family, "{line}");
            assert_eq!(types.insert(name, kind), None, "{line}");
        } else {
            let (series, value) = line.rsplit_once(' ').expect("a value");
            let name = series.split('{').next().unwrap();
            let suffixes: &[&str] = match types[family] {
                "counter" => &["_total"],
                "gauge" => &[""],
                "info" => &["_info"],
                "histogram" => &["_bucket", "_sum", "_count"],
                other => panic!("type {other}"),
            };
            assert!(
                suffixes
                    .iter()
                    .any(|suffix| name.strip_suffix(suffix) == Some(family)),
                "{line} in {family}"
            );
            if let Some(labels) = series.strip_prefix(name).filter(|it| !it.is_empty()) {
                assert!(labels.starts_with('{') && labels.ends_with("\"}"), "{line}");
            }
            let value = value.parse().expect("a number");
            assert_eq!(samples.insert(series.to_owned(), value), None, "{line}");
        }
    }
    samples
}

fn holder(phase: Phase, since: i64) -> Arc<Versioned<Holder>> {
    let value = Holder {
        phase,
        kind: Kind::Reboot,
        since,
        boot_id: String::new(),
        from: String::new(),
        to: String::new(),
        mode: Mode::Firmware,
        reason: String::new(),
        unproven: false,
        nonce: String::new(),
        ticket: None,
    };
    Arc::new(versioned(value))
}

fn versioned<T>(value: T) -> Versioned<T> {
    Versioned {
        value: Some(value),
        created: 1,
        modified: 1,
    }
}

fn snapshot() -> Snapshot {
    let failure = Failure {
        id: "a".into(),
        kind: FailureKind::Overdue,
        version: String::new(),
        reason: String::new(),
        at: 5,
        nonce: String::new(),
    };
    let ticket = Ticket {
        holder: holder(Phase::Draining, 0).value.clone().unwrap(),
        confirm: true,
        since: 940,
        lease: Default::default(),
    };
    let key = TicketKey {
        rank: 1,
        ticket: 1,
        id: "q".into(),
    };
    Snapshot {
        document: versioned(Arc::new(Document::new(
            5,
            ["a".into(), "b".into(), "old".into()],
        ))),
        policy: versioned(Policy {
            paused: Some(Paused {
                by: String::new(),
                why: String::new(),
                at: 0,
            }),
            ..Policy::default()
        }),
        failures: versioned(Failures {
            failures: vec![failure],
        }),
        holders: Arc::new(BTreeMap::from([
            ("a".into(), holder(Phase::Overdue, 100)),
            ("b".into(), holder(Phase::Draining, 400)),
            // Without a place: void.
            ("c".into(), holder(Phase::Failed, 1)),
        ])),
        queue: Arc::new(vec![(key, ticket.into())]),
        queue_length: 700,
        members: 9,
        ..Snapshot::default()
    }
}

fn observe(
    metrics: &Metrics,
    stage: &'static str,
    seconds: u64,
    window: Window,
    applied: Option<&str>,
) {
    let view = View {
        stage,
        said: String::new(),
        applied: applied.map(str::to_owned),
    };
    let moment = Moment {
        monotonic: Duration::from_secs(seconds),
        wall: 0,
        roll: 0,
        window,
    };
    metrics.observe_stage(&view, moment);
}

#[test]
fn a_snapshot_is_shown_in_numbers() {
    let metrics = Metrics::new();
    let web: GroupName = "web".parse().unwrap();
    metrics.update_from(&web, &snapshot(), 1000);
    metrics.update_own(&web, &"b".into(), &snapshot());
    metrics.update_own(&web, &"c".into(), &snapshot());
    let samples = parse(&metrics.encode());
    for (name, value) in [
        ("semaphore_max{group=\"web\"}", 5.0),
        ("semaphore_available{group=\"web\"}", 2.0),
        ("semaphore_holders{group=\"web\",phase=\"overdue\"}", 1.0),
        ("semaphore_holders{group=\"web\",phase=\"draining\"}", 1.0),
        (
            "semaphore_holders{group=\"web\",phase=\"unexplained\"}",
            1.0,
        ),
        ("semaphore_holders{group=\"web\",phase=\"failed\"}", 0.0),
        ("semaphore_longest_held_seconds{group=\"web\"}", 900.0),
        ("queue_depth{group=\"web\"}", 700.0),
        ("queue_oldest_wait_seconds{group=\"web\"}", 60.0),
        ("members{group=\"web\"}", 9.0),
        ("failures{group=\"web\"}", 1.0),
        ("failure_budget_left{group=\"web\"}", 1.0),
        ("halted{group=\"web\"}", 0.0),
        ("paused{group=\"web\"}", 1.0),
        ("holding{group=\"web\",id=\"b\"}", 1.0),
        ("holding{group=\"web\",id=\"c\"}", 0.0),
    ] {
        let name = format!("locksmith_{name}");
        assert_eq!(samples.get(&name), Some(&value), "{name} in {samples:#?}");
    }
}

#[test]
fn what_is_over_goes_and_the_default_group_has_an_empty_label() {
    let metrics = Metrics::new();
    let group = GroupName::default();
    metrics.update_from(&group, &snapshot(), 1000);
    let later = Snapshot {
        policy: versioned(Policy {
            budget: 0,
            ..Policy::default()
        }),
        halt: versioned(Halt {
            by: String::new(),
            why: String::new(),
            at: 0,
        }),
        ..Snapshot::default()
    };
    metrics.update_from(&group, &later, 1000);
    let samples = parse(&metrics.encode());
    let get = |name: &str| samples.get(&format!("locksmith_{name}"));
    assert_eq!(get("failure_budget_left{group=\"\"}"), None);
    assert_eq!(get("halted{group=\"\"}"), Some(&1.0));
    assert_eq!(get("paused{group=\"\"}"), Some(&0.0));
    assert_eq!(
        get("semaphore_holders{group=\"\",phase=\"overdue\"}"),
        Some(&0.0)
    );
    assert_eq!(get("queue_oldest_wait_seconds{group=\"\"}"), Some(&0.0));
}

#[tokio::test]
async fn every_metric_is_in_the_documentation_and_no_other() {
    // A family without a sample does not show.
    let metrics = Arc::new(Metrics::new());
    let group = GroupName::default();
    metrics.update_from(&group, &snapshot(), 0);
    metrics.update_own(&group, &"a".into(), &snapshot());
    observe(&metrics, "idle", 0, Window::Open, None);
    observe(&metrics, "idle", 1, Window::Open, None);
    metrics.fleetlock_served(Api::PreReboot, "yes");
    metrics.fleetlock_asked(Api::PreReboot, "yes");
    let memory = MemoryStore::default();
    memory.fail_next([Fault::ReplyLost]);
    let store = Measured::new(memory, Arc::clone(&metrics));
    store.commit(&Transaction::default()).await.unwrap_err();

    let text = metrics.encode();
    let families = text.lines().filter_map(|line| {
        let (name, kind) = line.strip_prefix("# TYPE ")?.split_once(' ')?;
        Some(match kind {
            "counter" => format!("{name}_total"),
            "info" => format!("{name}_info"),
            _ => name.to_owned(),
        })
    });
    let documented = include_str!("../../../docs/locksmith-metrics.md")
        .lines()
        .filter(|line| line.starts_with("| `"))
        .flat_map(|line| line.split('|').nth(1).unwrap().split(','))
        .map(|name| name.trim().trim_matches('`').to_owned());
    assert_eq!(
        families.collect::<BTreeSet<_>>(),
        documented.collect::<BTreeSet<_>>()
    );
}

#[test]
fn stages_take_turns_and_their_time_adds_up() {
    let metrics = Metrics::new();
    observe(&metrics, "idle", 10, Window::Closed(None), None);
    observe(&metrics, "queued", 40, Window::Open, Some("2"));
    observe(&metrics, "queued", 45, Window::Open, Some("2"));
    observe(&metrics, "idle", 50, Window::Closed(None), None);
    let samples = parse(&metrics.encode());
    for (name, value) in [
        ("stage{stage=\"idle\"}", 1.0),
        ("stage{stage=\"queued\"}", 0.0),
        ("stage_seconds_total{stage=\"idle\"}", 30.0),
        ("stage_seconds_total{stage=\"queued\"}", 10.0),
        ("window_open", 0.0),
        ("reboot_required", 0.0),
    ] {
        let name = format!("locksmith_{name}");
        assert_eq!(samples.get(&name), Some(&value), "{name}");
    }
}

#[test]
fn hostile_names_stay_within_their_labels() {
    let metrics = Metrics::new();
    let group: GroupName = "a\"} 1\nevil 2\\".parse().unwrap();
    metrics.update_from(&group, &Snapshot::default(), 0);
    let samples = parse(&metrics.encode());
    assert!(samples.keys().all(|series| !series.starts_with("evil")));
    for number in 0..1000 {
        metrics.fleetlock_asked(Api::PreReboot, &format!("kind_{number}"));
    }
    let samples = parse(&metrics.encode());
    let asked = "locksmith_fleetlock_client_requests_total";
    let series: Vec<_> = samples
        .iter()
        .filter(|(name, _)| name.starts_with(asked))
        .collect();
    assert_eq!(series.len(), MOST_ANSWERS + 1);
    assert_eq!(series.iter().map(|(_, value)| **value).sum::<f64>(), 1000.0);
}

#[tokio::test]
async fn a_measured_store_counts_outcomes_and_errors() {
    let metrics = Arc::new(Metrics::new());
    let memory = MemoryStore::default();
    let store = Measured::new(memory.clone(), Arc::clone(&metrics));
    let look = Look::default();
    let snapshot = store.load(&look).await.unwrap();
    let change = steering::set_policy(&snapshot, |policy| policy.budget = 7);
    assert!(store.commit(&change).await.unwrap().succeeded);
    assert!(!store.commit(&change).await.unwrap().succeeded);
    memory.fail_next([Fault::ReplyLost, Fault::Unavailable]);
    store.commit(&change).await.unwrap_err();
    store.revoke_lease(LeaseId(1)).await.unwrap_err();

    let samples = parse(&metrics.encode());
    for (name, value) in [
        ("transactions_total{outcome=\"succeeded\"}", 1.0),
        ("transactions_total{outcome=\"conflict\"}", 1.0),
        ("transactions_total{outcome=\"unknown\"}", 1.0),
        ("store_errors_total{call=\"commit\",error=\"unknown\"}", 1.0),
        (
            "store_errors_total{call=\"revoke-lease\",error=\"unavailable\"}",
            1.0,
        ),
        ("store_call_seconds_count{call=\"commit\"}", 3.0),
    ] {
        let name = format!("locksmith_{name}");
        assert_eq!(samples.get(&name), Some(&value), "{name} in {samples:#?}");
    }
    let last = "locksmith_store_last_error_timestamp_seconds{call=\"commit\",error=\"unknown\"}";
    assert!(samples[last] > 1.0e9);
}
