//! Many machines share one semaphore in three etcd nodes, while everything that
//! they run on fails. Etcd's own history is the witness.
//!
//! `FLEET_STEPS` and `FLEET_SEED` make a run longer or repeat its faults.

#![allow(clippy::unwrap_used, reason = "all of this is test code")]

#[path = "reboot_fleet/contenders.rs"]
mod contenders;

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use fastrand::Rng;
use serde_json::Value;
use system_tests::deadline::poll_until;
use system_tests::etcd::{Cluster, Setup};
use system_tests::fleet::{FakeMachine, Recorder, Rules, quick_settings};
use system_tests::process::{Running, run};
use system_tests::programs::program;

const PREFIX: &str = "coreos.com/updateengine/rebootlock/";
const DOCUMENT: &str = "coreos.com/updateengine/rebootlock/semaphore";
const NODES: usize = 3;
const MACHINES: usize = 20;
const PLACES: usize = 3;
/// Time between two faults.
const STEP: Duration = Duration::from_millis(250);
const DOWNTIME: Duration = Duration::from_millis(300);
/// After the last fault: agents wait up to a minute when etcd was away, and a
/// ticket of one that was killed stands for a minute and a half.
const SETTLE_LIMIT: Duration = Duration::from_secs(180);

/// What is measured here would measure the other tests otherwise.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn three_nodes() -> Cluster {
    Cluster::start_with(&Setup {
        nodes: NODES,
        ..Setup::default()
    })
    .unwrap()
}

fn number_from(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().expect("a number"))
}

#[test]
fn no_fault_lets_more_machines_in_than_there_are_places() {
    let _alone = alone();
    let steps = number_from("FLEET_STEPS").unwrap_or(200);
    let seed = number_from("FLEET_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("FLEET_SEED={seed}, {steps} steps");
    let mut fleet = Fleet::start(seed);
    let begin = Instant::now();
    for _ in 0..steps {
        fleet.inject();
        fleet.live(STEP);
    }
    let chaos = begin.elapsed();
    fleet.settle();
    println!(
        "chaos for {chaos:.0?}, settled after another {:.1?}",
        begin.elapsed() - chaos
    );
    fleet.judge();
}

/// Something that is broken for a while.
enum Fault {
    NodeDead(usize),
    NodeFrozen(usize),
    AllNodesDead,
    AgentDead(usize),
    AgentFrozen(usize),
}

struct Fleet {
    rng: Rng,
    cluster: Cluster,
    recorder: Recorder,
    machines: Vec<FakeMachine>,
    /// What is broken, and until when.
    faults: Vec<(Instant, Fault)>,
    /// Versions that were announced so far.
    versions: u32,
    by_hand: BTreeSet<i64>,
    injected: [(&'static str, u32); 9],
}

impl Fleet {
    fn start(seed: u64) -> Self {
        let cluster = three_nodes();
        let recorder = Recorder::start(&cluster.endpoints()).unwrap();
        let mut machines = Vec::new();
        for number in 0..MACHINES {
            // Every agent begins with another node.
            let mut endpoints = cluster.endpoints();
            endpoints.rotate_left(number % NODES);
            let id = format!("m{number:02}");
            let machine = FakeMachine::new(&id, "0.0.1", &quick_settings(&endpoints));
            machines.push(machine.unwrap());
        }
        for words in [
            &["set-max", &PLACES.to_string()][..],
            // Machines that fall back shall not end the chaos.
            &["policy", "set", "budget=0"],
        ] {
            machines[0].locksmithctl(words).unwrap().success().unwrap();
        }
        for machine in &mut machines {
            machine.start_daemon().unwrap();
        }
        Self {
            rng: Rng::with_seed(seed),
            cluster,
            recorder,
            machines,
            faults: Vec::new(),
            versions: 0,
            by_hand: BTreeSet::new(),
            injected: [
                ("leader killed", 0),
                ("leader frozen", 0),
                ("follower killed", 0),
                ("all nodes killed", 0),
                ("history compacted", 0),
                ("document deleted and made again", 0),
                ("agent killed", 0),
                ("agent frozen", 0),
                ("machine crashed or fell back", 0),
            ],
        }
    }

    /// Lets time pass: machines reboot, and get another update soon after.
    fn live(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.repair(Instant::now());
            for machine in &mut self.machines {
                machine.tick(DOWNTIME).unwrap();
                let neighbours = &machine.neighbours;
                let idle = neighbours.applied().is_none() && !machine.is_off();
                if idle && self.rng.u32(..50) == 0 {
                    self.versions += 1;
                    neighbours
                        .announce(&format!("{}.0.0", self.versions))
                        .unwrap();
                }
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Breaks something.
    fn inject(&mut self) {
        let healthy = !self.faults.iter().any(|(_, fault)| {
            matches!(
                fault,
                Fault::NodeDead(_) | Fault::NodeFrozen(_) | Fault::AllNodesDead
            )
        });
        let victim = self.rng.usize(..self.machines.len());
        let kind = match self.rng.u32(..100) {
            0..4 => 0,
            4..8 => 1,
            8..12 => 2,
            12..14 => 3,
            14..24 => 4,
            24..30 => 5,
            30..55 => 6,
            55..75 => 7,
            _ => 8,
        };
        // A second node that is away would only be an outage; those have a kind
        // of their own.
        if kind < 6 && !healthy {
            return;
        }
        let fault = match kind {
            0 => Some(Fault::NodeDead(self.cluster.leader().unwrap())),
            1 => Some(Fault::NodeFrozen(self.cluster.leader().unwrap())),
            2 => {
                let leader = self.cluster.leader().unwrap();
                Some(Fault::NodeDead((leader + 1) % NODES))
            }
            3 => Some(Fault::AllNodesDead),
            4 => {
                self.compact();
                None
            }
            5 => {
                self.delete_and_make_again();
                None
            }
            6 => Some(Fault::AgentDead(victim)),
            7 => Some(Fault::AgentFrozen(victim)),
            _ => {
                let machine = &mut self.machines[victim];
                if self.rng.bool() {
                    let running = machine.version().to_owned();
                    machine.boot_next(&running);
                } else if !machine.is_off() {
                    machine.crash(DOWNTIME).unwrap();
                }
                None
            }
        };
        self.injected[kind].1 += 1;
        if let Some(fault) = fault {
            self.break_down(&fault);
            let time = Duration::from_millis(self.rng.u64(200..3000));
            self.faults.push((Instant::now() + time, fault));
        }
    }

    fn break_down(&mut self, fault: &Fault) {
        match fault {
            Fault::NodeDead(node) => self.cluster.kill(*node).unwrap(),
            Fault::NodeFrozen(node) => self.cluster.stop(*node).unwrap(),
            Fault::AllNodesDead => (0..NODES).for_each(|node| self.cluster.kill(node).unwrap()),
            Fault::AgentDead(machine) => self.machines[*machine].end_daemon().unwrap(),
            Fault::AgentFrozen(machine) => {
                if self.machines[*machine].daemon_runs().unwrap() {
                    self.machines[*machine].freeze_daemon().unwrap();
                }
            }
        }
    }

    /// Puts right whose time has come.
    fn repair(&mut self, now: Instant) {
        let (due, later) = std::mem::take(&mut self.faults)
            .into_iter()
            .partition(|(until, _)| *until <= now);
        self.faults = later;
        let due: Vec<(Instant, Fault)> = due;
        for (_, fault) in due {
            match fault {
                Fault::NodeDead(node) => self.cluster.restart(node).unwrap(),
                Fault::NodeFrozen(node) => self.cluster.resume(node).unwrap(),
                Fault::AllNodesDead => self.cluster.restart_all().unwrap(),
                Fault::AgentDead(machine) | Fault::AgentFrozen(machine) => {
                    let machine = &mut self.machines[machine];
                    if machine.is_off() {
                        // It starts with the machine.
                    } else if machine.daemon_runs().unwrap() {
                        machine.thaw_daemon().unwrap();
                    } else {
                        machine.start_daemon().unwrap();
                    }
                }
            }
        }
    }

    fn compact(&self) {
        // Further would take from the recorder what it has not seen yet.
        let position = self.recorder.position().unwrap().to_string();
        // The same revision may be compacted already.
        let _ = self.cluster.etcdctl(0, &["compact", &position]);
    }

    /// As a clumsy operator would, without regard for what happens in between.
    fn delete_and_make_again(&mut self) {
        let delete = ["del", DOCUMENT, "--prev-kv", "-w", "json"];
        let answer = self.cluster.etcdctl(0, &delete).unwrap();
        let answer: Value = serde_json::from_str(&answer).unwrap();
        self.by_hand.insert(revision_of(&answer));
        let before = answer["prev_kvs"][0]["value"].as_str().unwrap();
        let document = system_tests::fleet::history::decode(before).unwrap();
        let document = String::from_utf8(document).unwrap();
        let put = ["put", DOCUMENT, &document, "-w", "json"];
        let answer = self.cluster.etcdctl(0, &put).unwrap();
        self.by_hand
            .insert(revision_of(&serde_json::from_str(&answer).unwrap()));
    }

    /// Repairs everything and waits until every update has been booted into and
    /// every place is free.
    fn settle(&mut self) {
        self.repair(Instant::now() + Duration::from_secs(3600));
        let mut next_look = Instant::now();
        poll_until("rest in the fleet", SETTLE_LIMIT, || {
            for machine in &mut self.machines {
                machine.tick(DOWNTIME)?;
            }
            if Instant::now() < next_look {
                return Ok(None);
            }
            next_look = Instant::now() + Duration::from_millis(500);
            let status = self.status();
            for holder in status["holders"].as_array().unwrap() {
                let id = holder["id"].as_str().unwrap();
                match holder["phase"].as_str() {
                    // A newer update puts it right.
                    Some("failed") => {
                        let machine = self.machines.iter().find(|machine| machine.id() == id);
                        let neighbours = &machine.unwrap().neighbours;
                        if neighbours.applied().is_none() {
                            self.versions += 1;
                            neighbours.announce(&format!("{}.0.0", self.versions))?;
                        }
                    }
                    Some(_) => {}
                    // The document that was made again was older than its
                    // release.
                    None => {
                        let unlock = self.machines[0].locksmithctl(&["unlock", id])?;
                        unlock.success()?;
                    }
                }
            }
            let busy = self
                .machines
                .iter()
                .any(|machine| machine.neighbours.applied().is_some() || machine.is_off());
            let free = status["holders"] == Value::Array(Vec::new());
            Ok((free && !busy).then_some(()))
        })
        .unwrap_or_else(|error| panic!("{error:#}\n{:#}", self.status()));
    }

    fn status(&self) -> Value {
        let answer = self.machines[0].locksmithctl(&["status", "-json"]).unwrap();
        serde_json::from_str(&answer.success().unwrap()).unwrap()
    }

    /// Holds the whole history against the rules.
    fn judge(&self) {
        let last = self.cluster.etcdctl(0, &["get", DOCUMENT, "-w", "json"]);
        let last = revision_of(&serde_json::from_str(&last.unwrap()).unwrap());
        let history = self.recorder.up_to(last).unwrap();
        let rules = Rules {
            by_hand: &self.by_hand,
        };
        let seen = history.check(PREFIX, rules).unwrap();
        let boots: u32 = self.machines.iter().map(FakeMachine::boots).sum();
        for (what, count) in self.injected {
            println!("{count:4} × {what}");
        }
        println!(
            "{} revisions without a gap, {} of the document, {} places given, {boots} boots, \
             never more than {} of {PLACES} holders",
            history.last(),
            seen.document_writes,
            seen.places_given,
            seen.most_holders,
        );
        assert_eq!(seen.most_holders, PLACES);
        for machine in &self.machines {
            let asked = machine.neighbours.reboot_calls().len();
            let allowed = seen.fences.get(machine.id()).copied().unwrap_or(0);
            assert!(
                asked <= allowed,
                "{} rebooted {asked} times with {allowed} permissions\n{}\n{}",
                machine.id(),
                history.of(&format!("{PREFIX}v1/holder/{}", machine.id())),
                machine.log().unwrap()
            );
        }
        assert!(
            seen.places_given >= 2 * MACHINES,
            "hardly anything happened: {seen:?}"
        );
    }
}

fn revision_of(answer: &Value) -> i64 {
    answer["header"]["revision"].as_i64().unwrap()
}

#[test]
fn the_history_of_a_real_cluster_betrays_one_holder_too_many() {
    let etcd = Cluster::start().unwrap();
    let recorder = Recorder::start(&etcd.endpoints()).unwrap();
    let put = |document: &str| {
        let answer = etcd.etcdctl(0, &["put", DOCUMENT, document, "-w", "json"]);
        revision_of(&serde_json::from_str(&answer.unwrap()).unwrap())
    };
    let first = put(r#"{"semaphore":0,"max":2,"holders":["a","b"]}"#);
    recorder.up_to(first).unwrap();
    // Whoever watches may be sent away at any time and must not miss a thing.
    recorder.end_watch().unwrap();
    let broken = put(r#"{"semaphore":-1,"max":2,"holders":["a","b","c"]}"#);
    let last = put(r#"{"semaphore":0,"max":2,"holders":["a","b"]}"#);
    let history = recorder.up_to(last).unwrap();
    let none = BTreeSet::new();
    let verdict = history.check(PREFIX, Rules { by_hand: &none });
    let text = format!("{:#}", verdict.unwrap_err());
    assert!(
        text.starts_with(&format!("revision {broken}: more holders than places")),
        "{text}"
    );

    etcd.etcdctl(0, &["compact", &last.to_string()]).unwrap();
    let too_late = Recorder::start(&etcd.endpoints()).unwrap();
    let text = format!("{:#}", too_late.up_to(last).unwrap_err());
    assert!(text.contains("the record is not complete"), "{text}");
}

#[test]
fn the_lock_works_again_soon_after_a_leader_is_lost() {
    let _alone = alone();
    let mut cluster = three_nodes();
    // Asked first, one that is frozen keeps a command waiting three times: for its version,
    // for the lock by v2, and for that by v3.
    let limit = Duration::from_secs(10);
    for round in 0..6 {
        let lost = cluster.leader().unwrap();
        let frozen = round % 2 == 1;
        if frozen {
            cluster.stop(lost).unwrap();
        } else {
            cluster.kill(lost).unwrap();
        }
        let gone = Instant::now();
        let others: Vec<_> = (0..NODES).filter(|node| *node != lost).collect();
        poll_until("another leader", Duration::from_secs(20), || {
            Ok(others
                .iter()
                .any(|node| leads(&cluster, *node))
                .then_some(()))
        })
        .unwrap();
        let elected = Instant::now();
        // The lost one is the first that is asked.
        let mut endpoints = cluster.endpoints();
        endpoints.rotate_left(lost);
        let ctl = |verb: &str| {
            let mut command = program("locksmithctl")?;
            command.args(["-endpoint", &endpoints.join(","), verb, "probe"]);
            run(&mut command, Duration::from_secs(30))
        };
        poll_until("a lock", Duration::from_secs(30), || {
            Ok(ctl("lock")?.status.success().then_some(()))
        })
        .unwrap();
        let again = elected.elapsed();
        ctl("unlock").unwrap().success().unwrap();
        println!(
            "leader {}: new one after {:.1?}, locked {again:.1?} later",
            if frozen { "frozen" } else { "killed" },
            elected - gone
        );
        assert!(again < limit, "{again:?}");
        if frozen {
            cluster.resume(lost).unwrap();
        } else {
            cluster.restart(lost).unwrap();
        }
    }
}

fn leads(cluster: &Cluster, node: usize) -> bool {
    let words = ["endpoint", "status", "-w", "json", "--command-timeout=1s"];
    let Ok(text) = cluster.etcdctl(node, &words) else {
        return false;
    };
    let answer: Value = serde_json::from_str(&text).unwrap();
    let status = &answer[0]["Status"];
    status["leader"] == status["header"]["member_id"]
}

#[test]
fn forty_commands_at_once_get_their_place() {
    let _alone = alone();
    let etcd = Cluster::start().unwrap();
    let ctl = |words: &[&str]| {
        let mut command = program("locksmithctl").unwrap();
        command.args(["-endpoint", &etcd.endpoint(0)]).args(words);
        command
    };
    let limit = Duration::from_secs(60);
    run(&mut ctl(&["set-max", "50"]), limit)
        .unwrap()
        .success()
        .unwrap();
    let mut running: Vec<_> = (0..40)
        .map(|number| Running::start(&mut ctl(&["lock", &format!("m{number}")])).unwrap())
        .collect();
    for command in &mut running {
        let status = command.wait(limit).unwrap();
        assert!(status.success(), "{}", command.stderr().unwrap());
    }
    let status = run(&mut ctl(&["status", "-json"]), limit).unwrap();
    let status: Value = serde_json::from_str(&status.success().unwrap()).unwrap();
    assert_eq!(status["available"], 10);
    assert_eq!(status["holders"].as_array().unwrap().len(), 40);
}
