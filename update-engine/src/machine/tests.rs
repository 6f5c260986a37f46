use super::*;
use crate::plan::InstallPlan;

const NOW: Moment = Moment {
    monotonic: Duration::from_secs(1_000),
    wall: 1_700_000_000,
    roll: u32::MAX / 2,
};
const OPTIONS: Options = Options {
    periodic: true,
    first_check: Duration::from_secs(420),
    interval: Duration::from_secs(2_700),
};

fn failure(code: u32) -> Failure {
    Failure {
        code,
        words: "why".to_owned(),
        resumed: false,
    }
}

fn checked(result: CheckResult) -> Event {
    check_finished(true, result)
}

fn check_finished(answered: bool, result: CheckResult) -> Event {
    Event::CheckFinished {
        poll_interval: 0,
        http_status: 200,
        answered,
        result,
    }
}

/// Feeds events one after the other; returns the last state and all effects.
fn run(mut state: State, events: impl IntoIterator<Item = Event>) -> (State, Vec<String>) {
    let mut effects = Vec::new();
    for event in events {
        let (next, new) = step(state, event, NOW);
        state = next;
        effects.extend(new.iter().map(name));
    }
    (state, effects)
}

fn name(effect: &Effect) -> String {
    let text = format!("{effect:?}");
    text.split(['(', ' ', '{']).next().unwrap().to_owned()
}

fn idle() -> State {
    State::start(false, OPTIONS, NOW)
}

fn plan() -> Box<InstallPlan> {
    Box::new(InstallPlan::for_tests("2.0.0", 1_000))
}

fn good_update() -> Vec<Event> {
    vec![
        Event::AttemptRequested,
        checked(CheckResult::Install(plan())),
        Event::DownloadStarted { resumed: 0 },
        Event::Downloaded { done: 400 },
        Event::Downloaded { done: 1_000 },
        Event::PayloadVerified,
        Event::Activated,
        Event::InstallFinished(Ok(())),
    ]
}

#[test]
fn an_update_walks_through_the_published_states() {
    let mut state = idle();
    let mut phases = Vec::new();
    for event in good_update() {
        state = step(state, event, NOW).0;
        phases.push(state.phase);
    }
    use Phase::*;
    assert_eq!(
        phases,
        [
            Checking,
            UpdateAvailable,
            Downloading,
            Downloading,
            Downloading,
            Finalizing,
            Finalizing,
            NeedReboot
        ]
    );
    assert_eq!(state.new_version.as_deref(), Some("2.0.0"));
    assert_eq!(state.outcome, Some(Outcome::Updated));
    assert_eq!(state.attempts, 1);
}

#[test]
fn the_marker_is_written_once_and_as_soon_as_the_new_slot_is_active() {
    let (_, effects) = run(idle(), good_update());
    assert_eq!(effects, ["Check", "Install", "WriteMarker"]);
    let before_the_end = good_update().into_iter().take(7);
    assert_eq!(run(idle(), before_the_end).1.last().unwrap(), "WriteMarker");
    let before_the_flip = good_update().into_iter().take(6);
    assert_eq!(run(idle(), before_the_flip).1, ["Check", "Install"]);
}

#[test]
fn only_pings_go_out_while_an_update_waits_for_the_reboot() {
    let waiting = State::start(true, OPTIONS, NOW);
    assert_eq!(waiting.phase, Phase::NeedReboot);
    let (state, effects) = run(
        waiting,
        [
            Event::TimerFired,
            Event::AttemptRequested,
            Event::PingFinished,
        ],
    );
    assert_eq!(effects, ["Ping"]);
    assert_eq!(state.phase, Phase::NeedReboot);
    assert!(state.next_check.is_some(), "the next ping is scheduled");
}

#[test]
fn a_reset_during_a_ping_does_not_end_periodic_checks() {
    let (state, _) = run(
        State::start(true, OPTIONS, NOW),
        [
            Event::TimerFired,
            Event::ResetRequested,
            Event::PingFinished,
        ],
    );
    assert_eq!(state.phase, Phase::Idle);
    assert!(state.next_check.is_some());
}

#[test]
fn a_failure_is_reported_once_and_ends_idle_with_its_reason() {
    for events in [
        vec![
            Event::AttemptRequested,
            checked(CheckResult::Failed(failure(34))),
        ],
        vec![
            Event::AttemptRequested,
            checked(CheckResult::Install(plan())),
            Event::InstallFinished(Err(InstallFailure::Failed(failure(34)))),
        ],
    ] {
        let (state, effects) = run(idle(), events);
        assert_eq!(state.phase, Phase::ReportingError);
        assert_eq!(effects.last().unwrap(), "ReportFailure");
        let (state, effects) = run(state, [Event::FailureReported, Event::FailureReported]);
        assert!(effects.is_empty());
        assert_eq!(state.phase, Phase::Idle);
        assert_eq!(state.outcome, Some(Outcome::Failed(failure(34))));
        assert_eq!((state.new_version, state.attempts), (None, 1));
    }
}

#[test]
fn a_server_that_cannot_be_reached_is_not_told_so() {
    let (state, effects) = run(
        idle(),
        [
            Event::TimerFired,
            check_finished(false, CheckResult::Unreachable(failure(2000))),
        ],
    );
    assert_eq!(effects, ["Check"]);
    assert_eq!((state.phase, state.last_checked), (Phase::Idle, 0));
}

#[test]
fn the_time_of_the_last_check_is_that_of_the_last_answer_understood() {
    type Result = fn() -> CheckResult;
    let nothing: Result = || CheckResult::NoUpdate {
        reason: String::new(),
    };
    for (answered, result, last) in [
        (true, nothing, NOW.wall),
        (true, || CheckResult::Deferred(failure(35)), NOW.wall),
        (true, || CheckResult::Failed(failure(3)), NOW.wall),
        // Updates are switched off; the server is ill; it does not answer at all.
        (false, nothing, 0),
        (false, || CheckResult::Failed(failure(2500)), 0),
        (false, || CheckResult::Unreachable(failure(2000)), 0),
    ] {
        let events = [Event::TimerFired, check_finished(answered, result())];
        assert_eq!(run(idle(), events).0.last_checked, last, "{:?}", result());
    }
}

#[test]
fn success_without_a_checked_payload_is_a_failure() {
    let events = [
        Event::AttemptRequested,
        checked(CheckResult::Install(plan())),
        Event::DownloadStarted { resumed: 0 },
        Event::InstallFinished(Ok(())),
    ];
    let (state, effects) = run(idle(), events);
    assert_eq!(state.phase, Phase::ReportingError);
    assert!(!effects.contains(&"WriteMarker".to_owned()));
}

#[test]
fn reset_is_allowed_when_idle_or_waiting_and_refused_while_something_runs() {
    let answer = |state: State| {
        let (state, effects) = step(state, Event::ResetRequested, NOW);
        let allowed = effects
            .iter()
            .any(|effect| matches!(effect, Effect::AnswerReset(true)));
        let removed = effects
            .iter()
            .any(|effect| matches!(effect, Effect::RemoveMarker));
        (allowed, removed, state.phase)
    };
    assert_eq!(answer(idle()), (true, false, Phase::Idle));
    assert_eq!(
        answer(State::start(true, OPTIONS, NOW)),
        (true, true, Phase::Idle)
    );
    let checking = run(idle(), [Event::TimerFired]).0;
    assert_eq!(answer(checking), (false, false, Phase::Checking));
}

#[test]
fn cancel_stops_a_download_but_not_the_flip() {
    let downloading = run(idle(), good_update().into_iter().take(4)).0;
    assert_eq!(
        run(downloading.clone(), [Event::CancelRequested]).1,
        ["StopInstall"]
    );
    let cancelled = run(
        downloading,
        [Event::InstallFinished(Err(InstallFailure::Cancelled))],
    );
    assert_eq!(
        (cancelled.0.phase, cancelled.0.outcome),
        (Phase::Idle, Some(Outcome::Cancelled))
    );
    assert!(cancelled.1.is_empty(), "the server is told nothing");
    let finalizing = run(idle(), good_update().into_iter().take(6)).0;
    assert!(run(finalizing, [Event::CancelRequested]).1.is_empty());
}

#[test]
fn every_end_of_an_attempt_schedules_the_next_check_and_a_timer_in_between_is_harmless() {
    for result in [
        CheckResult::NoUpdate {
            reason: String::new(),
        },
        CheckResult::Unreachable(failure(2000)),
    ] {
        let (state, effects) = run(
            idle(),
            [Event::AttemptRequested, Event::TimerFired, checked(result)],
        );
        assert_eq!(effects, ["Check"]);
        assert!(state.next_check.is_some_and(|at| at > NOW.monotonic));
    }
}

#[test]
fn the_next_check_is_planned_by_the_settings_of_the_last() {
    let wait = |options: Options| {
        let (mut state, _) = run(idle(), [Event::TimerFired]);
        state.follow(options);
        let result = CheckResult::NoUpdate {
            reason: String::new(),
        };
        let (state, _) = run(state, [checked(result)]);
        state.next_check.map(|at| at - NOW.monotonic)
    };
    let hourly = Options {
        interval: Duration::from_secs(3_600),
        ..OPTIONS
    };
    let differs = wait(hourly).unwrap().abs_diff(Duration::from_secs(3_600));
    assert!(differs <= Duration::from_secs(301), "{differs:?}");
    let never = Options {
        periodic: false,
        ..OPTIONS
    };
    assert_eq!(wait(never), None);
}

#[test]
fn a_check_on_demand_does_not_move_the_timer() {
    let state = idle();
    let before = state.next_check;
    let (state, _) = run(
        state,
        [
            Event::AttemptRequested,
            checked(CheckResult::NoUpdate {
                reason: String::new(),
            }),
        ],
    );
    assert_eq!(state.next_check, before);
}

#[test]
fn development_builds_check_on_demand_only() {
    let options = Options {
        periodic: false,
        ..OPTIONS
    };
    let (state, effects) = run(
        State::start(false, options, NOW),
        [
            Event::AttemptRequested,
            checked(CheckResult::NoUpdate {
                reason: String::new(),
            }),
        ],
    );
    assert_eq!((state.next_check, effects.len()), (None, 1));
}

#[test]
fn no_event_in_no_state_makes_an_active_slot_without_a_finished_installation() {
    let events: [fn() -> Event; 8] = [
        || Event::TimerFired,
        || Event::AttemptRequested,
        || Event::ResetRequested,
        || Event::CancelRequested,
        || Event::PingFinished,
        || Event::Downloaded { done: 5 },
        || Event::PayloadVerified,
        || Event::FailureReported,
    ];
    let states =
        (0..good_update().len()).map(|count| run(idle(), good_update().into_iter().take(count)).0);
    for state in states.chain([State::start(true, OPTIONS, NOW)]) {
        for event in events {
            let (_, effects) = step(state.clone(), event(), NOW);
            assert!(
                !effects
                    .iter()
                    .any(|effect| matches!(effect, Effect::WriteMarker)),
                "{:?} + {:?}",
                state.phase,
                event()
            );
        }
    }
}

fn useless_delta() -> Event {
    Event::InstallFinished(Err(InstallFailure::UselessDelta(failure(20))))
}

#[test]
fn a_useless_delta_is_reported_once_and_the_same_attempt_asks_again() {
    let delta = [
        Event::AttemptRequested,
        checked(CheckResult::Install(plan())),
        Event::DownloadStarted { resumed: 0 },
        useless_delta(),
        Event::FailureReported,
    ];
    let (state, effects) = run(idle(), delta);
    assert_eq!(effects, ["Check", "Install", "ReportFailure", "Check"]);
    assert_eq!((state.phase, state.attempts), (Phase::Checking, 0));
    assert_eq!(
        state.trigger,
        Trigger::OnDemand,
        "the server hears who asked"
    );

    let full = good_update().into_iter().skip(1);
    let (state, effects) = run(state, full);
    assert_eq!(effects, ["Install", "WriteMarker"]);
    assert_eq!((state.phase, state.attempts), (Phase::NeedReboot, 1));
    assert_eq!(state.outcome, Some(Outcome::Updated));
}

#[test]
fn an_attempt_falls_back_once_and_the_next_one_may_again() {
    let install_and_fail = || {
        [
            checked(CheckResult::Install(plan())),
            useless_delta(),
            Event::FailureReported,
        ]
    };
    let mut state = idle();
    for attempt in 1..=2 {
        let (after_delta, effects) = run(
            state,
            [Event::TimerFired].into_iter().chain(install_and_fail()),
        );
        assert_eq!(effects.last().unwrap(), "Check");
        let (after_second, effects) = run(after_delta, install_and_fail());
        assert_eq!(effects, ["Install", "ReportFailure"]);
        assert_eq!(
            (after_second.phase, after_second.attempts),
            (Phase::Idle, attempt)
        );
        assert_eq!(after_second.outcome, Some(Outcome::Failed(failure(20))));
        state = after_second;
    }
}
