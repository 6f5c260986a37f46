//! One machine reboots into an update: the real `locksmithd` on a real bus with
//! a real etcd, and everything around it that can go wrong.

#![allow(clippy::unwrap_used, reason = "all of this is test code")]

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use system_tests::deadline::poll_until;
use system_tests::etcd::Cluster;
use system_tests::fleet::{FakeMachine, RebootAnswer, quick_settings};

const DOCUMENT: &str = "coreos.com/updateengine/rebootlock/semaphore";

/// A machine on version 1.0.0 whose daemon has not started.
fn machine(id: &str, etcd: &Cluster) -> FakeMachine {
    FakeMachine::new(id, "1.0.0", &quick_settings(&etcd.endpoints())).unwrap()
}

/// What `locksmithctl status -json` says on this machine.
fn status(machine: &FakeMachine) -> Value {
    let answer = machine.locksmithctl(&["status", "-json"]).unwrap();
    serde_json::from_str(&answer.success().unwrap()).unwrap()
}

fn steer(machine: &FakeMachine, arguments: &[&str]) {
    machine.locksmithctl(arguments).unwrap().success().unwrap();
}

/// The phase of this machine's place; empty: it has none.
fn phase(machine: &FakeMachine) -> String {
    let status = status(machine);
    let holders = status["holders"].as_array().unwrap();
    let own = holders.iter().find(|holder| holder["id"] == machine.id());
    own.map_or_else(String::new, |holder| {
        holder["phase"].as_str().unwrap().to_owned()
    })
}

fn wait_for_phase(machine: &mut FakeMachine, expected: &str) {
    let what = format!("phase {expected:?}");
    machine
        .wait_until(&what, |machine| Ok(phase(machine) == expected))
        .unwrap();
}

fn wait_for_reboot_calls(machine: &mut FakeMachine, expected: usize) {
    machine
        .wait_until("the call for a reboot", |machine| {
            Ok(machine.neighbours.reboot_calls().len() >= expected)
        })
        .unwrap();
}

fn wait_for_state(machine: &mut FakeMachine, expected: &str) {
    let what = format!("STATE={expected}");
    machine
        .wait_until(&what, |machine| {
            Ok(line_of(&machine.coordinator_file(), "STATE") == expected)
        })
        .unwrap();
}

fn wait_for_log(machine: &mut FakeMachine, text: &str) {
    machine
        .wait_until(text, |machine| Ok(machine.log()?.contains(text)))
        .unwrap();
}

/// A script that goes on when the file `name` is on the machine.
fn wait_for_file(name: &str) -> String {
    format!("while ! [ -e \"$MACHINE/{name}\" ]; do sleep 0.05; done")
}

/// The value of a line `KEY=…`.
fn line_of(text: &str, key: &str) -> String {
    let mut lines = text.lines();
    lines
        .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
        .unwrap_or_default()
        .to_owned()
}

#[test]
fn an_update_takes_a_place_runs_the_programs_and_reboots_exactly_once() {
    let etcd = Cluster::start().unwrap();
    let mut machine = machine("a", &etcd);
    let note = "echo \"$LOCKSMITH_PHASE $LOCKSMITH_FROM_VERSION $LOCKSMITH_TO_VERSION\" \
                >>\"$MACHINE/notes\"";
    machine.write_hook("before-reboot.d/10-note", note).unwrap();
    machine.write_hook("after-reboot.d/10-note", note).unwrap();
    machine.start_daemon().unwrap();
    machine
        .wait_until("the coordinator file", |machine| {
            Ok(line_of(&machine.coordinator_file(), "STATE") == "running")
        })
        .unwrap();

    machine.neighbours.announce("2.0.0").unwrap();
    wait_for_reboot_calls(&mut machine, 1);
    assert_eq!(phase(&machine), "rebooting");
    let file = machine.coordinator_file();
    assert_eq!(line_of(&file, "NAME"), "locksmithd");
    assert_eq!(line_of(&file, "STRATEGY"), "etcd-lock");
    assert_eq!(line_of(&file, "STATE"), "rebooting");
    // update_engine goes on talking while the machine goes down.
    for _ in 0..10 {
        machine.neighbours.announce("2.0.0").unwrap();
    }
    assert_eq!(machine.stop_daemon().unwrap().code(), Some(0));

    machine.reboot_into("2.0.0").unwrap();
    machine.start_daemon().unwrap();
    wait_for_phase(&mut machine, "");
    machine
        .wait_until("the state after the release", |machine| {
            Ok(line_of(&machine.coordinator_file(), "STATE") == "running")
        })
        .unwrap();
    assert_eq!(
        fs::read_to_string(machine.path("notes")).unwrap(),
        "before-reboot 1.0.0 2.0.0\nafter-reboot 1.0.0 2.0.0\n"
    );
    assert_eq!(machine.neighbours.reboot_calls(), ["RebootWithFlags 0x1"]);
}

#[test]
fn a_semaphore_in_a_file_does_for_one_machine() {
    let folder = tempfile::tempdir().unwrap();
    let settings = format!(
        "store = \"file:{}/semaphore\"\n{}",
        folder.path().display(),
        quick_settings(&["http://127.0.0.1:1".to_owned()])
    );
    let mut machine = FakeMachine::new("a", "1.0.0", &settings).unwrap();
    machine.start_daemon().unwrap();
    machine.neighbours.announce("2.0.0").unwrap();
    wait_for_reboot_calls(&mut machine, 1);
    machine.reboot_into("2.0.0").unwrap();
    machine.start_daemon().unwrap();
    wait_for_phase(&mut machine, "");
}

#[test]
fn a_signal_of_somebody_else_does_nothing() {
    let etcd = Cluster::start().unwrap();
    let mut machine = machine("a", &etcd);
    machine.start_daemon().unwrap();
    let asked = |machine: &FakeMachine| machine.neighbours.status_calls();
    machine
        .wait_until("the first question", |machine| Ok(asked(machine) > 0))
        .unwrap();
    for _ in 0..20 {
        machine.neighbours.spoof("9.9.9").unwrap();
    }
    // A true signal after them is heard, so they were too.
    let before = asked(&machine);
    machine.neighbours.reset().unwrap();
    machine
        .wait_until("the next question", |machine| Ok(asked(machine) > before))
        .unwrap();
    assert_eq!(line_of(&machine.coordinator_file(), "STATE"), "running");
    assert_eq!(phase(&machine), "");
    assert!(machine.neighbours.reboot_calls().is_empty());
}

#[test]
fn an_updater_and_a_bus_that_come_and_go_lose_nothing() {
    let etcd = Cluster::start().unwrap();
    let mut machine = machine("a", &etcd);
    machine.neighbours.stop_updater();
    machine.start_daemon().unwrap();
    wait_for_log(&mut machine, "com.coreos.update1");

    machine.stop_bus().unwrap();
    wait_for_log(&mut machine, "the message bus is away");
    // Applied while nobody can be told.
    machine.neighbours.stop_updater();
    machine.neighbours.announce("2.0.0").unwrap();
    machine.start_bus().unwrap();
    wait_for_reboot_calls(&mut machine, 1);
    assert_eq!(phase(&machine), "rebooting");
    assert!(machine.daemon_runs().unwrap());
}

#[test]
fn an_update_that_is_withdrawn_at_the_last_moment_gives_the_place_back() {
    let etcd = Cluster::start().unwrap();
    let mut machine = machine("a", &etcd);
    machine
        .write_hook("before-reboot.d/10-wait", &wait_for_file("go"))
        .unwrap();
    machine.start_daemon().unwrap();
    machine.neighbours.announce("2.0.0").unwrap();
    wait_for_phase(&mut machine, "draining");
    machine.neighbours.reset().unwrap();
    machine.write("go", "").unwrap();
    wait_for_phase(&mut machine, "");
    assert!(machine.neighbours.reboot_calls().is_empty());
}

#[test]
fn a_daemon_that_is_killed_in_every_phase_goes_on_where_it_was() {
    let etcd = Cluster::start().unwrap();
    let mut machine = machine("a", &etcd);
    machine
        .write_hook("before-reboot.d/10-wait", &wait_for_file("drained"))
        .unwrap();
    machine
        .write_hook("after-reboot.d/10-wait", &wait_for_file("healthy"))
        .unwrap();
    let kill_and_start = |machine: &mut FakeMachine| {
        machine.end_daemon().unwrap();
        machine.start_daemon().unwrap();
    };
    steer(&machine, &["set-max", "0"]);
    machine.start_daemon().unwrap();

    machine.neighbours.announce("2.0.0").unwrap();
    machine
        .wait_until("a ticket", |machine| Ok(status(machine)["waiting"] == 1))
        .unwrap();
    machine.end_daemon().unwrap();
    steer(&machine, &["set-max", "1"]);
    machine.start_daemon().unwrap();

    wait_for_phase(&mut machine, "draining");
    kill_and_start(&mut machine);
    machine.neighbours.set_reboot_answer(RebootAnswer::Hang);
    machine.write("drained", "").unwrap();
    wait_for_reboot_calls(&mut machine, 1);
    assert_eq!(phase(&machine), "rebooting");
    // logind may have heard it: the shutdown is waited for, not asked for again.
    kill_and_start(&mut machine);
    machine
        .wait_until("the fourth start", |machine| {
            Ok(machine.log()?.matches("locksmithd starting").count() == 4)
        })
        .unwrap();
    assert_eq!(phase(&machine), "rebooting");

    machine.reboot_into("2.0.0").unwrap();
    machine.start_daemon().unwrap();
    wait_for_phase(&mut machine, "verifying");
    kill_and_start(&mut machine);
    wait_for_phase(&mut machine, "verifying");
    machine.write("healthy", "").unwrap();
    wait_for_phase(&mut machine, "");
    assert_eq!(machine.neighbours.reboot_calls().len(), 1);
}

#[test]
fn a_place_outside_the_window_is_given_back() {
    let etcd = Cluster::start().unwrap();
    let mut machine = machine("a", &etcd);
    machine
        .write_hook("before-reboot.d/10-wait", &wait_for_file("go"))
        .unwrap();
    machine.start_daemon().unwrap();
    machine.neighbours.announce("2.0.0").unwrap();
    wait_for_phase(&mut machine, "draining");
    machine.end_daemon().unwrap();

    let settings = quick_settings(&etcd.endpoints());
    let start = hour_from_now(2);
    let settings = format!(
        "time_zone = \"UTC\"\n{settings}[[window]]\nstart = \"{start:02}:00\"\nlength = \"1h\"\n"
    );
    machine
        .write("etc/locksmith/locksmith.toml", &settings)
        .unwrap();
    machine.start_daemon().unwrap();
    wait_for_phase(&mut machine, "");
    wait_for_log(&mut machine, "waiting for the reboot window to open");
    assert_eq!(
        line_of(&machine.coordinator_file(), "STATE"),
        "reboot-planned"
    );
    assert!(machine.neighbours.reboot_calls().is_empty());
}

/// Hour of the day, UTC.
fn hour_from_now(hours: u64) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    (now.as_secs() / 3600 + hours) % 24
}

#[test]
fn a_reboot_that_is_refused_gives_the_place_back_and_says_who() {
    let etcd = Cluster::start().unwrap();
    for (id, answer, expected) in [
        (
            "inhibited",
            RebootAnswer::Inhibited("backup", "writes a tape"),
            "backup (process 4711): writes a tape",
        ),
        ("forbidden", RebootAnswer::Forbid, "forbidden by policy"),
    ] {
        let mut machine = machine(id, &etcd);
        machine.neighbours.set_reboot_answer(answer);
        machine.start_daemon().unwrap();
        machine.neighbours.announce("2.0.0").unwrap();
        wait_for_log(&mut machine, expected);
        wait_for_phase(&mut machine, "");
        wait_for_state(&mut machine, "reboot-planned");
    }
}

#[test]
fn a_program_that_fails_before_the_reboot_gives_the_place_back() {
    let etcd = Cluster::start().unwrap();
    let mut machine = machine("a", &etcd);
    machine
        .write_hook("before-reboot.d/10-drain", "echo pods remain >&2; exit 3")
        .unwrap();
    machine.start_daemon().unwrap();
    machine.neighbours.announce("2.0.0").unwrap();
    wait_for_log(&mut machine, "10-drain");
    wait_for_log(&mut machine, "pods remain");
    wait_for_phase(&mut machine, "");
    assert!(machine.neighbours.reboot_calls().is_empty());
}

#[test]
fn a_place_is_released_only_when_the_new_system_is_well() {
    let etcd = Cluster::start().unwrap();
    let mut machine = machine("a", &etcd);
    machine
        .write_hook("after-reboot.d/10-check", "[ -e \"$MACHINE/well\" ]")
        .unwrap();
    machine.start_daemon().unwrap();
    machine.neighbours.announce("2.0.0").unwrap();
    wait_for_reboot_calls(&mut machine, 1);
    machine.reboot_into("2.0.0").unwrap();
    machine.start_daemon().unwrap();
    wait_for_log(&mut machine, "not proven yet");
    assert_eq!(phase(&machine), "verifying");
    machine.write("well", "").unwrap();
    wait_for_phase(&mut machine, "");
}

#[test]
fn a_machine_that_falls_back_fails_and_a_spent_budget_halts_the_group() {
    let etcd = Cluster::start().unwrap();
    let mut first = machine("first", &etcd);
    let mut second = machine("second", &etcd);
    steer(&first, &["set-max", "2"]);
    steer(&first, &["policy", "set", "budget=1"]);
    first.start_daemon().unwrap();
    first.neighbours.announce("2.0.0").unwrap();
    wait_for_reboot_calls(&mut first, 1);
    first.reboot_into("1.0.0").unwrap();
    first.start_daemon().unwrap();
    wait_for_phase(&mut first, "failed");
    let why = status(&first)["halt"]["why"].to_string();
    assert!(why.contains("came back on 1.0.0 instead of 2.0.0"), "{why}");

    // There is a place for it, and it may not have it.
    second.start_daemon().unwrap();
    second.neighbours.announce("2.0.0").unwrap();
    wait_for_log(&mut second, "the group is halted");
    assert_eq!(phase(&second), "");

    // A newer update puts the first one right, in the place that it has.
    steer(&first, &["halt", "-clear", "-why", "2.0.1 is out"]);
    first.neighbours.announce("2.0.1").unwrap();
    wait_for_reboot_calls(&mut first, 2);
    first.reboot_into("2.0.1").unwrap();
    first.start_daemon().unwrap();
    wait_for_phase(&mut first, "");
    wait_for_reboot_calls(&mut second, 1);
}

#[test]
fn who_waits_goes_on_as_soon_as_an_operator_lets_it() {
    let etcd = Cluster::start().unwrap();
    let words = |words: &'static str| words.split(' ').collect::<Vec<_>>();
    for (id, stop, go) in [
        ("full", &["set-max 0"][..], &["set-max 1"][..]),
        ("paused", &["set-max 0", "pause", "set-max 1"], &["resume"]),
        (
            "halted",
            &["set-max 0", "halt -why test", "set-max 1"],
            &["halt -clear -why test"],
        ),
    ] {
        let mut machine = machine(id, &etcd);
        steer(&machine, &words(stop[0]));
        machine.start_daemon().unwrap();
        machine.neighbours.announce("2.0.0").unwrap();
        machine
            .wait_until("a ticket", |machine| Ok(status(machine)["waiting"] == 1))
            .unwrap();
        for command in stop[1..].iter().chain(go) {
            assert!(machine.neighbours.reboot_calls().is_empty());
            steer(&machine, &words(command));
        }
        wait_for_reboot_calls(&mut machine, 1);
        machine.end_daemon().unwrap();
        steer(&machine, &["unlock", id]);
    }
}

#[test]
fn an_etcd_that_is_down_at_the_start_is_waited_for() {
    let mut etcd = Cluster::start().unwrap();
    etcd.kill(0).unwrap();
    let mut machine = machine("a", &etcd);
    machine.start_daemon().unwrap();
    machine.neighbours.announce("2.0.0").unwrap();
    wait_for_log(&mut machine, "cannot be reached");
    assert!(machine.daemon_runs().unwrap());
    assert!(machine.neighbours.reboot_calls().is_empty());
    etcd.restart(0).unwrap();
    wait_for_reboot_calls(&mut machine, 1);
}

#[test]
fn a_store_that_refuses_is_told_at_the_start() {
    let etcd = Cluster::start().unwrap();
    for words in [
        &["user", "add", "root:right"][..],
        &["role", "add", "root"],
        &["user", "grant-role", "root", "root"],
        &["auth", "enable"],
    ] {
        etcd.etcdctl(0, words).unwrap();
    }
    let plain = quick_settings(&etcd.endpoints());
    let with_user = plain.replace(
        "[health]",
        "username = \"root\"\npassword = \"wrong\"\n[health]",
    );
    for (settings, expected) in [
        (with_user, "password"),
        (plain.clone(), "user"),
        (plain.replace("http://", "https://"), "https"),
    ] {
        let mut machine = FakeMachine::new("a", "1.0.0", &settings).unwrap();
        machine.start_daemon().unwrap();
        machine
            .wait_until("a word about the store", |machine| {
                Ok(machine.log()?.contains("error="))
            })
            .unwrap();
        let log = machine.log().unwrap();
        assert!(log.contains(expected), "{expected}: {log}");
        assert!(machine.daemon_runs().unwrap());
    }
}

#[test]
fn what_is_wrong_in_the_settings_ends_the_daemon_and_is_shown_by_config_check() {
    for (settings, expected) in [
        ("strategy = \"sometimes\"", "sometimes"),
        (
            "[[window]]\nstart = \"Thu 25:00\"\nlength = \"1h\"",
            "25:00",
        ),
        (
            "[[window]]\nstart = \"9:00\"\nlength = \"24h\"",
            "duration cannot exceed period",
        ),
        ("[[window]]\nstart = \"9:00\"", "length"),
        (
            "strategy = \"etcd-lock\"\n[etcd]\nendpoints = [\"ftp://etcd\"]",
            "\"ftp\"",
        ),
        (
            "strategy = \"etcd-lock\"\n[etcd]\nendpoints = [\"https://etcd\"]\n\
             certfile = \"/etc/cert.pem\"",
            "keyfile",
        ),
        ("[health]\ndeadline = \"never\"", "never"),
        ("strategy = ", "locksmith.toml"),
    ] {
        let mut machine = FakeMachine::new("a", "1.0.0", settings).unwrap();
        machine.start_daemon().unwrap();
        assert_eq!(machine.wait_for_daemon().unwrap().code(), Some(1));
        let log = machine.log().unwrap();
        assert!(log.contains(expected), "{settings}: {log}");
        let checked = machine.locksmithctl(&["config", "check"]).unwrap();
        assert_eq!(checked.status.code(), Some(1), "{settings}");
        let said = checked.stdout + &checked.stderr;
        assert!(said.contains(expected), "{settings}: {said}");
        assert_eq!(machine.coordinator_file(), "");
    }
}

#[test]
fn a_document_that_hands_have_broken_is_told_at_the_start_and_nobody_reboots() {
    let etcd = Cluster::start().unwrap();
    for (number, (document, expected)) in [
        ("{\"semaphore\":1,", DOCUMENT),
        ("[]", DOCUMENT),
        ("{\"semaphore\":1,\"max\":99999999999999999999}", DOCUMENT),
        ("{\"semaphore\":1,\"max\":1,\"holders\":[1]}", DOCUMENT),
        ("{\"semaphore\":-3,\"max\":-3,\"holders\":[]}", "waiting"),
        ("{\"semaphore\":1,\"max\":0,\"holders\":[]}", "waiting"),
    ]
    .into_iter()
    .enumerate()
    {
        etcd.etcdctl(0, &["put", DOCUMENT, document]).unwrap();
        let mut machine = machine(&format!("m{number}"), &etcd);
        machine.start_daemon().unwrap();
        machine.neighbours.announce("2.0.0").unwrap();
        wait_for_log(&mut machine, expected);
        assert!(machine.daemon_runs().unwrap());
        assert!(machine.neighbours.reboot_calls().is_empty());
        machine.end_daemon().unwrap();
    }
    let most = i64::MAX;
    let huge = format!("{{\"semaphore\":{most},\"max\":{most},\"holders\":null}}");
    etcd.etcdctl(0, &["put", DOCUMENT, &huge]).unwrap();
    let mut machine = machine("huge", &etcd);
    machine.start_daemon().unwrap();
    machine.neighbours.announce("2.0.0").unwrap();
    wait_for_reboot_calls(&mut machine, 1);
}

#[test]
fn there_is_one_coordinator_on_a_machine() {
    let etcd = Cluster::start().unwrap();
    let mut first = machine("a", &etcd);
    first.start_daemon().unwrap();
    wait_for_log(&mut first, "locksmithd starting");
    let second = first.second_daemon().unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(second.stderr.contains("locked"), "{}", second.stderr);
}

#[test]
fn a_place_that_is_held_under_the_strategy_off_is_given_back_first() {
    let etcd = Cluster::start().unwrap();
    let mut machine = machine("a", &etcd);
    machine.start_daemon().unwrap();
    machine.neighbours.announce("2.0.0").unwrap();
    wait_for_reboot_calls(&mut machine, 1);
    machine.reboot_into("2.0.0").unwrap();
    machine.set_variable("REBOOT_STRATEGY", "off");
    machine.start_daemon().unwrap();
    assert_eq!(machine.wait_for_daemon().unwrap().code(), Some(0));
    assert_eq!(phase(&machine), "");
    // And without one there is nothing to do.
    machine.start_daemon().unwrap();
    assert_eq!(machine.wait_for_daemon().unwrap().code(), Some(0));
}

#[test]
fn the_strategy_of_update_conf_counts_and_reboot_needs_no_etcd() {
    let mut machine = FakeMachine::new("a", "1.0.0", "warn_users = \"0s\"\n").unwrap();
    machine
        .write("etc/flatcar/update.conf", "REBOOT_STRATEGY=off\n")
        .unwrap();
    machine.start_daemon().unwrap();
    assert_eq!(machine.wait_for_daemon().unwrap().code(), Some(0));
    machine
        .write("etc/flatcar/update.conf", "REBOOT_STRATEGY=reboot\n")
        .unwrap();
    machine.start_daemon().unwrap();
    machine.neighbours.announce("2.0.0").unwrap();
    wait_for_reboot_calls(&mut machine, 1);
    assert_eq!(line_of(&machine.coordinator_file(), "STRATEGY"), "reboot");
    assert!(!Path::new(&machine.path("var/lib/locksmith/held")).exists());
}

#[test]
fn a_machine_that_does_not_come_back_is_overdue_and_one_that_comes_late_is_forgiven() {
    let etcd = Cluster::start().unwrap();
    let settings = quick_settings(&etcd.endpoints()) + "deadline = \"1m\"\n";
    let mut lost = FakeMachine::new("lost", "1.0.0", &settings).unwrap();
    let mut other = FakeMachine::new("other", "1.0.0", &settings).unwrap();
    steer(&lost, &["policy", "set", "budget=1"]);
    lost.start_daemon().unwrap();
    lost.neighbours.announce("2.0.0").unwrap();
    wait_for_reboot_calls(&mut lost, 1);
    lost.end_daemon().unwrap();

    other.start_daemon().unwrap();
    other.neighbours.announce("2.0.0").unwrap();
    // Who waits notices it when it looks at the queue: as it joins, and every few
    // minutes.
    poll_until("an overdue machine", Duration::from_secs(120), || {
        std::thread::sleep(Duration::from_secs(5));
        other.start_daemon()?;
        Ok((phase(&lost) == "overdue").then_some(()))
    })
    .unwrap();
    assert!(!status(&other)["halt"].is_null());

    lost.reboot_into("2.0.0").unwrap();
    lost.start_daemon().unwrap();
    wait_for_phase(&mut lost, "");
    assert_eq!(status(&other)["failures"].as_array().unwrap().len(), 0);
    assert!(other.neighbours.reboot_calls().is_empty(), "halted still");
}
