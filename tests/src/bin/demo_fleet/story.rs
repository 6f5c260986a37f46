//! The story, and whether it went as told.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use system_tests::etcd::Cluster;
use system_tests::fleet::{FakeMachine, Recorder, Rules, quick_settings};
use system_tests::process::run;
use system_tests::programs::program;

use crate::screen::{Look, Row, Screen};

const OLD: &str = "1.0.0";
const NEW: &str = "2.0.0";
const MACHINES: usize = 5;
const PLACES: usize = 2;
/// Index of the machine that the new version breaks: the third in line.
const BROKEN: usize = 2;
/// Number of the one that reboots beside it. It is slow, so that it still has its
/// place when the other one fails.
const SLOW: usize = 4;
/// Index of the last in line.
const LAST: usize = 4;
/// A machine is off for so long when it reboots.
const DOWNTIME: Duration = Duration::from_secs(3);
/// A watchdog resets a new system that is not well after so long.
const WATCHDOG: Duration = Duration::from_secs(2);
/// No part of the story takes this long unless something is wrong.
const PART_LIMIT: Duration = Duration::from_secs(40);
/// Between two looks at the fleet.
const FRAME: Duration = Duration::from_millis(150);
const PREFIX: &str = "coreos.com/updateengine/rebootlock/";

/// The fleet and where its story is.
pub(crate) struct Story<'a> {
    screen: &'a mut Screen,
    interrupted: &'a AtomicBool,
    etcd: Cluster,
    recorder: Recorder,
    machines: Vec<FakeMachine>,
    /// Since when the broken machine has been up and not well.
    unwell: Option<Instant>,
}

impl<'a> Story<'a> {
    /// Tells it to the end.
    pub(crate) fn tell(screen: &'a mut Screen, interrupted: &'a AtomicBool) -> Result<()> {
        let begin = Instant::now();
        screen.step(&format!(
            "Start etcd and {MACHINES} machines that run version {OLD}"
        ));
        let mut story = Self::start(screen, interrupted)?;
        story.set_up()?;
        story.update()?;
        story.halt()?;
        story.repair()?;
        story.finish()?;
        story.judge(begin)
    }

    fn start(screen: &'a mut Screen, interrupted: &'a AtomicBool) -> Result<Self> {
        let etcd = Cluster::start()?;
        let recorder = Recorder::start(&etcd.endpoints())?;
        let settings = quick_settings(&etcd.endpoints());
        let mut machines = Vec::new();
        for number in 1..=MACHINES {
            // The queue serves the lower rank first: the story has an order.
            let settings = settings
                .replace("soak = \"0s\"", "soak = \"8s\"")
                .replace("[etcd]", &format!("queue_rank = {}\n[etcd]", 100 * number));
            let machine = FakeMachine::new(&format!("worker-{number}"), OLD, &settings)?;
            let seconds = if number == SLOW { 4 } else { 1 };
            machine.write_hook("before-reboot.d/10-drain", &format!("sleep {seconds}"))?;
            machine.write_hook(
                "after-reboot.d/10-check",
                "if [ -e \"$MACHINE/no-network\" ] && grep -q 2.0.0 \"$MACHINE/etc/os-release\"\n\
                 then echo 'no network' >&2; exit 1\n\
                 fi",
            )?;
            machines.push(machine);
        }
        machines[BROKEN].write("no-network", "")?;
        Ok(Self {
            screen,
            interrupted,
            etcd,
            recorder,
            machines,
            unwell: None,
        })
    }

    fn set_up(&mut self) -> Result<()> {
        let settings =
            std::fs::read_to_string(self.machines[0].path("etc/locksmith/locksmith.toml"))?;
        self.screen
            .command("cat worker-1/etc/locksmith/locksmith.toml", &settings);
        let endpoint = format!("export LOCKSMITHCTL_ENDPOINT={}", self.etcd.endpoint(0));
        self.screen.command(&endpoint, "");
        self.locksmithctl(&["set-max", &PLACES.to_string()])?;
        self.locksmithctl(&["policy", "set", "budget=1"])?;
        self.screen
            .note("One machine that fails will be one too many: nobody else reboots then.");
        for machine in &mut self.machines {
            machine.start_daemon()?;
        }
        self.wait("the agents to be there", |story| {
            let status = story.status()?;
            Ok(status["members"].as_u64() == u64::try_from(MACHINES).ok())
        })
    }

    fn update(&mut self) -> Result<()> {
        self.screen.step(&format!(
            "Version {NEW} is installed on all of them; they reboot, {PLACES} at a time"
        ));
        for index in 0..MACHINES {
            self.machines[index].neighbours.announce(NEW)?;
            if index < PLACES {
                let id = self.machines[index].id().to_owned();
                self.wait("the first places", |story| {
                    Ok(phase_of(&story.status()?, &id).is_some())
                })?;
            }
        }
        let broken = self.machines[BROKEN].id().to_owned();
        self.wait("the broken machine to come back", |story| {
            Ok(phase_of(&story.status()?, &broken).as_deref() == Some("verifying"))
        })?;
        self.screen.note(&format!(
            "{broken} is up with {NEW}, and its own check fails: no network."
        ));
        self.unwell = Some(Instant::now());
        self.wait("the watchdog", |story| {
            Ok(story.unwell.is_some_and(|since| since.elapsed() > WATCHDOG))
        })?;
        self.screen.note(&format!(
            "Its watchdog resets it, and the boot loader falls back to {OLD}."
        ));
        self.machines[BROKEN].boot_next(OLD);
        self.machines[BROKEN].crash(DOWNTIME)?;
        self.wait("the halt", |story| Ok(!story.status()?["halt"].is_null()))?;
        // Who is through its fence comes back.
        self.wait("the other one to finish", |story| {
            let status = story.status()?;
            Ok(status["holders"]
                .as_array()
                .is_some_and(|all| all.len() == 1))
        })
    }

    fn halt(&mut self) -> Result<()> {
        let broken = self.machines[BROKEN].id().to_owned();
        let last = self.machines[LAST].id().to_owned();
        self.screen.step(&format!(
            "The group is halted: {last} waits, although a place is free"
        ));
        self.locksmithctl(&["holders"])?;
        self.locksmithctl(&["status", "-verbose"])?;
        let status = self.status()?;
        ensure!(
            phase_of(&status, &broken).as_deref() == Some("failed"),
            "{broken} does not count as failed"
        );
        ensure!(status["available"] == 1, "no place is free");
        self.watch(Duration::from_secs(3))?;
        ensure!(
            self.machines[LAST].boots() == 0 && phase_of(&self.status()?, &last).is_none(),
            "{last} did not wait"
        );
        Ok(())
    }

    fn repair(&mut self) -> Result<()> {
        let broken = self.machines[BROKEN].id().to_owned();
        self.screen.step(&format!(
            "Somebody looks, repairs {broken} and boots {NEW} again"
        ));
        std::fs::remove_file(self.machines[BROKEN].path("no-network"))?;
        self.machines[BROKEN].boot_next(NEW);
        self.machines[BROKEN].crash(DOWNTIME)?;
        self.wait("the repaired machine to prove itself", |story| {
            Ok(phase_of(&story.status()?, &broken).is_none())
        })?;
        self.screen.note(&format!(
            "{broken} has proved itself and gave its place back."
        ));
        self.locksmithctl(&["halt", "-clear", "-why", "network of worker-3 repaired"])?;
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        self.wait("the rest of the fleet", |story| {
            let status = story.status()?;
            let free = status["available"].as_u64() == u64::try_from(PLACES).ok();
            Ok(free
                && story
                    .machines
                    .iter()
                    .all(|machine| machine.version() == NEW))
        })?;
        self.screen.leave_table();
        self.screen.step("All machines run the new version");
        self.locksmithctl(&["status"])?;
        Ok(())
    }

    /// Holds the story against etcd's own history.
    fn judge(&mut self, begin: Instant) -> Result<()> {
        for machine in &self.machines {
            let reboots = machine.neighbours.reboot_calls().len();
            ensure!(reboots == 1, "{} asked for {reboots} reboots", machine.id());
        }
        let answer = self.etcd.etcdctl(0, &["get", "x", "-w", "json"])?;
        let answer: Value = serde_json::from_str(&answer)?;
        let last = answer["header"]["revision"]
            .as_i64()
            .context("no revision")?;
        let history = self.recorder.up_to(last)?;
        let none = BTreeSet::new();
        let seen = history.check(PREFIX, Rules { by_hand: &none })?;
        ensure!(
            seen.most_holders == PLACES,
            "{} machines had a place at once",
            seen.most_holders
        );
        let took = begin.elapsed().as_secs();
        self.screen.note(&format!(
            "At none of the {last} revisions of etcd did more than {PLACES} machines have a place."
        ));
        self.screen.note(&format!(
            "Each machine asked for one reboot. The whole story took {took} s."
        ));
        Ok(())
    }

    /// Shows a command as one would type it, runs it, and shows what it prints.
    fn locksmithctl(&mut self, words: &[&str]) -> Result<()> {
        let mut command = program("locksmithctl")?;
        command
            .args(words)
            .env("LOCKSMITHCTL_ENDPOINT", self.etcd.endpoint(0));
        let finished = run(&mut command, PART_LIMIT)?;
        let typed: Vec<_> = words.iter().map(|word| quoted(word)).collect();
        let output = format!("{}{}", finished.stdout, finished.stderr);
        self.screen
            .command(&format!("locksmithctl {}", typed.join(" ")), &output);
        finished.success()?;
        Ok(())
    }

    /// Lets time pass until `done`.
    fn wait(&mut self, what: &str, mut done: impl FnMut(&Self) -> Result<bool>) -> Result<()> {
        let begin = Instant::now();
        loop {
            self.frame()?;
            if done(self)? {
                return Ok(());
            }
            if begin.elapsed() > PART_LIMIT {
                let logs: Result<Vec<_>> = self.machines.iter().map(FakeMachine::log).collect();
                bail!("waited too long for {what}\n{}", logs?.join("\n"));
            }
        }
    }

    fn watch(&mut self, time: Duration) -> Result<()> {
        let begin = Instant::now();
        self.wait("time to pass", |_| Ok(begin.elapsed() >= time))
    }

    fn frame(&mut self) -> Result<()> {
        ensure!(!self.interrupted.load(Ordering::Relaxed), "interrupted");
        let begin = Instant::now();
        for machine in &mut self.machines {
            machine.tick(DOWNTIME)?;
        }
        let status = self.status()?;
        let rows = self.machines.iter().map(|machine| row(machine, &status));
        let summary = match status["halt"]["why"].as_str() {
            Some(why) => format!("HALTED: {why}"),
            None => format!(
                "{} of {} places free, {} waiting",
                status["available"], status["max"], status["waiting"]
            ),
        };
        self.screen.table(rows.collect(), summary);
        std::thread::sleep(FRAME.saturating_sub(begin.elapsed()));
        Ok(())
    }

    fn status(&self) -> Result<Value> {
        let mut command = program("locksmithctl")?;
        command
            .args(["status", "-json"])
            .env("LOCKSMITHCTL_ENDPOINT", self.etcd.endpoint(0));
        let text = run(&mut command, PART_LIMIT)?.success()?;
        serde_json::from_str(&text).context(text)
    }
}

fn phase_of(status: &Value, id: &str) -> Option<String> {
    let holders = status["holders"].as_array()?;
    let holder = holders.iter().find(|holder| holder["id"] == id)?;
    Some(holder["phase"].as_str().unwrap_or("locked").to_owned())
}

fn row(machine: &FakeMachine, status: &Value) -> Row {
    let id = machine.id();
    let in_line = status["queue"]
        .as_array()
        .and_then(|queue| queue.iter().position(|waiting| waiting["id"] == id));
    let phase = phase_of(status, id);
    let (phase, look) = match (phase.as_deref(), in_line) {
        _ if machine.is_off() => ("rebooting: powered off".to_owned(), Look::Yellow),
        (Some("granted"), _) => ("has a place".to_owned(), Look::Yellow),
        (Some("draining"), _) => ("draining, before it reboots".to_owned(), Look::Yellow),
        (Some("verifying"), _) => (
            "verifying: is the new system well?".to_owned(),
            Look::Yellow,
        ),
        (Some("failed"), _) => ("FAILED, keeps its place".to_owned(), Look::Red),
        (Some("rebooting"), _) if machine.version() == NEW => ("booted".to_owned(), Look::Yellow),
        (Some(other), _) => (other.to_owned(), Look::Yellow),
        (None, Some(0)) => ("waiting, next in line".to_owned(), Look::Plain),
        (None, Some(ahead)) => (format!("waiting, {ahead} before it"), Look::Plain),
        (None, None) if machine.version() == NEW => ("done".to_owned(), Look::Green),
        (None, None) if machine.neighbours.applied().is_some() => {
            (format!("wants to reboot into {NEW}"), Look::Plain)
        }
        (None, None) => ("idle".to_owned(), Look::Dim),
    };
    Row {
        machine: id.to_owned(),
        version: machine.version().to_owned(),
        phase,
        look,
    }
}

fn quoted(word: &str) -> String {
    if word.contains(' ') {
        format!("'{word}'")
    } else {
        word.to_owned()
    }
}
