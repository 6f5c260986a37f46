//! The fleet in virtual time: machines with their daemons, the network between
//! them and the store, and what goes wrong with each. One thread, one source of
//! random numbers: a seed is a run.
//!
//! The agents, the decisions and the store's model are the product's own; played
//! here are the daemon's loop, the machine under it, and the wire.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use locksmith::coordinator::{
    Action, Agent, Applied, CommitOutcome, Event, Health, Identity, Lock, Moment, Options, Window,
};
use locksmith::machine_id::MachineId;
use locksmith::semaphore::{
    Compare, Document, Key, LeaseId, Look, Mode, Phase, Policy, Record, Revision, TicketKey,
    Transaction, Write,
};
use locksmith::store::{Committed, MemoryGroup, StoreError};

use super::agenda::Agenda;
use super::checker::{Author, Checker, Property, Signature, Violation};
use super::controls::Broken;
use super::fleet::{Faults, Fleet};
use super::ideal;
use super::people::Act;

/// All leases are kept alive at once: a third of the time of a ticket, which is
/// seldom enough to lose some when messages are lost.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// A request that is not answered has failed after this.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);
/// Wall clock at the start.
const EPOCH: i64 = 1_700_000_000;
/// Length of a day of the reboot windows.
const DAY: i64 = 3600;
/// Of which machines may reboot for so long.
const OPEN: i64 = 2000;

pub(crate) struct World {
    pub(crate) fleet: Fleet,
    pub(crate) now: Duration,
    pub(crate) rng: fastrand::Rng,
    pub(crate) group: MemoryGroup,
    pub(crate) machines: Vec<Machine>,
    pub(crate) checker: Checker,
    pub(crate) tally: Tally,
    agenda: Agenda<What>,
    by_id: HashMap<MachineId, Vec<u32>>,
    last_change: HashMap<Key, Revision>,
    leases: Vec<LeaseId>,
    outage: bool,
    unfinished: u32,
    broken: Option<Broken>,
    pub(crate) trace: Option<Vec<(Duration, MachineId, String)>>,
}

pub(crate) struct Machine {
    pub(crate) id: MachineId,
    pub(crate) power: Power,
    /// Counts starts of the system.
    boot: u32,
    /// Counts starts of the daemon.
    process: u32,
    agent: Option<Agent>,
    begun: Duration,
    timer: u32,
    kept: Option<LeaseId>,
    watched: Vec<Key>,
    running: u32,
    wanted: u32,
    applied: Option<u32>,
    /// The last boot fell back to the version before.
    rolled_back: bool,
    booted: Duration,
    healthy_from: Duration,
    /// Time for one reboot.
    down: Duration,
    clock: i64,
    cut: Cut,
    missed: bool,
    done: bool,
    twin: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Power {
    Up,
    /// The shutdown is under way; the daemon still runs.
    Stopping,
    Down,
    /// It never comes back.
    Dead,
}

/// Directions in which a machine's messages are lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Cut {
    requests: bool,
    replies: bool,
}

impl Cut {
    fn any(self) -> bool {
        self.requests || self.replies
    }
}

/// How often the network carries a call to the store.
pub(crate) enum Delivery {
    /// Once.
    Only,
    /// For the first time of two; tells the second whether it was carried out.
    First(Arc<AtomicBool>),
    /// For the second time.
    Again(Arc<AtomicBool>),
}

pub(crate) enum What {
    Wakes {
        machine: u32,
        process: u32,
        timer: u32,
    },
    Hears {
        machine: u32,
        process: u32,
        event: Event,
    },
    Arrives {
        machine: u32,
        process: u32,
        /// None: nobody waits for an answer any more.
        sent: Option<Duration>,
        delivery: Delivery,
        call: Box<Call>,
    },
    KeepAlive,
    DaemonStarts {
        machine: u32,
        boot: u32,
    },
    Applies {
        machine: u32,
        version: u32,
    },
    GoesDown {
        machine: u32,
        boot: u32,
    },
    Boots {
        machine: u32,
    },
    Crashes {
        machine: u32,
    },
    ClockSteps {
        machine: u32,
        seconds: i64,
    },
    Partition,
    Heals {
        machines: Vec<u32>,
    },
    Outage,
    OutageEnds,
    Act(Act),
    /// A person's commit arrives.
    Acted {
        act: Act,
        author: Author,
        transaction: Box<Transaction>,
    },
}

#[derive(Clone)]
pub(crate) enum Call {
    Load(Look),
    Commit(Transaction, Signature),
    Lease(Duration),
    Revoke(LeaseId),
}

/// What a run came to.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally {
    pub(crate) events: u64,
    pub(crate) loads: u64,
    pub(crate) reboots: u64,
    /// Commits of agents that reached the store, by kind.
    pub(crate) commits: BTreeMap<Kind, u64>,
    pub(crate) faults: BTreeMap<&'static str, u64>,
    /// The last place was given back.
    pub(crate) finished: Duration,
    pub(crate) ideal: Duration,
    pub(crate) most_overtaken: u32,
    pub(crate) halts: u32,
}

/// What a commit of an agent is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Takes a place, or leaves a ticket.
    Attempt,
    Ticket,
    /// Serves the queue because places seem to be free.
    Serve,
    Confirm,
    Withdraw,
    Tidy,
    Fence,
    Verify,
    Release,
    Overdue,
    Failed,
}

impl Kind {
    /// Everything until a place is confirmed.
    pub(crate) const LOCK: [Self; 6] = [
        Self::Attempt,
        Self::Ticket,
        Self::Serve,
        Self::Confirm,
        Self::Withdraw,
        Self::Tidy,
    ];

    fn of(transaction: &Transaction, own: &MachineId) -> Self {
        let mut kind = None;
        for write in &transaction.then {
            match write {
                Write::Put(Key::Holder(id), Record::Holder(holder), _) if id == own => {
                    let new = transaction
                        .when
                        .contains(&Compare::Created(Key::Holder(id.clone()), 0));
                    return match holder.phase {
                        Phase::Draining if new => Self::Attempt,
                        Phase::Draining => Self::Confirm,
                        Phase::Rebooting => Self::Fence,
                        Phase::Failed => Self::Failed,
                        Phase::Overdue => Self::Overdue,
                        _ => Self::Verify,
                    };
                }
                Write::Put(Key::Holder(_), Record::Holder(holder), _)
                    if holder.phase == Phase::Overdue =>
                {
                    return Self::Overdue;
                }
                Write::Put(Key::Ticket(_), ..) => kind = Some(Self::Ticket),
                Write::Delete(Key::Ticket(_)) => kind = Some(Self::Withdraw),
                Write::Delete(Key::Holder(id)) if id == own => {
                    kind = Some(if transaction.then.len() > 2 {
                        Self::Release
                    } else {
                        Self::Tidy
                    });
                }
                _ => {}
            }
        }
        kind.unwrap_or(Self::Serve)
    }
}

impl World {
    pub(crate) fn new(fleet: Fleet, broken: Option<Broken>) -> Self {
        let mut rng = fastrand::Rng::with_seed(fleet.seed);
        let mut agenda = Agenda::new();
        let mut machines = Vec::new();
        let mut jobs = Vec::new();
        for number in 0..fleet.machines {
            let share = fleet.down_spread * (rng.f64() * 2.0 - 1.0);
            let down = fleet.down.mul_f64(1.0 + share);
            let comes = fleet.spread.mul_f64(rng.f64());
            let twin = fleet.twins && number + 2 >= fleet.machines;
            let id = if twin {
                MachineId::new("00000000000000000000000000000000")
            } else {
                MachineId::new(&format!("{:032x}", rng.u128(..)))
            };
            machines.push(Machine::new(id, down, twin));
            jobs.push((comes, down + fleet.soak));
            agenda.plan(
                Duration::ZERO,
                What::DaemonStarts {
                    machine: number,
                    boot: 0,
                },
            );
            let version = 2;
            agenda.plan(
                comes,
                What::Applies {
                    machine: number,
                    version,
                },
            );
        }
        let mut by_id: HashMap<_, Vec<_>> = HashMap::new();
        for (number, machine) in (0..).zip(&machines) {
            by_id.entry(machine.id.clone()).or_default().push(number);
        }
        let places = match fleet.percent {
            Some(percent) => i64::from(fleet.machines) * i64::from(percent) / 100,
            None => fleet.places,
        };
        let places = usize::try_from(places.max(1)).expect("a small number");
        let tally = Tally {
            ideal: ideal::last_done(jobs, places),
            ..Tally::default()
        };
        let mut world = Self {
            now: Duration::ZERO,
            group: MemoryGroup::new(),
            checker: Checker::new(u32::try_from(places + 20).expect("a small number")),
            tally,
            agenda,
            by_id,
            last_change: HashMap::new(),
            leases: Vec::new(),
            outage: false,
            unfinished: fleet.machines,
            broken,
            trace: None,
            machines,
            rng,
            fleet,
        };
        world.found();
        world.plan(KEEP_ALIVE, What::KeepAlive);
        world.plan_faults();
        world
    }

    /// An operator sets the group up.
    fn found(&mut self) {
        let members = self.fleet.percent.map_or(0, |_| self.machines.len());
        let none = LeaseId::default();
        let mut then = vec![
            Write::Put(
                Key::Document,
                Record::Document(Document::new(self.fleet.places, [])),
                none,
            ),
            Write::Put(
                Key::Policy,
                Record::Policy(Policy {
                    budget: self.fleet.budget,
                    max_percent: self.fleet.percent,
                    paused: None,
                }),
                none,
            ),
        ];
        for machine in &self.machines[..members] {
            let key = Key::Member(machine.id.clone());
            if !machine.twin {
                then.push(Write::Put(key, Record::Present, none));
            }
        }
        let founding = Transaction {
            then,
            ..Transaction::default()
        };
        self.commit(&Author::Operator, &founding);
    }

    fn plan_faults(&mut self) {
        let Some(faults) = self.fleet.faults.clone() else {
            return;
        };
        for machine in 0..self.fleet.machines {
            if self.chance(faults.machine_crash) {
                let at = faults.end.mul_f64(self.rng.f64());
                self.plan(at, What::Crashes { machine });
            }
            if self.chance(faults.clock_step) {
                let at = faults.end.mul_f64(self.rng.f64());
                let seconds = self.rng.i64(-3600..=3600);
                self.plan(at, What::ClockSteps { machine, seconds });
            }
        }
        self.plan_next(faults.partitions, What::Partition);
        self.plan_next(faults.outages, What::Outage);
        self.begin_acts(&faults);
    }

    /// Runs to the end. Err: a property is broken.
    pub(crate) fn run(mut self) -> (Tally, Result<(), Violation>, Trace) {
        let limit = self.limit();
        let mut settled = None;
        while let Some((at, what)) = self.agenda.next() {
            self.now = at;
            self.tally.events += 1;
            self.happen(what);
            if self.checker.violation.is_some() {
                break;
            }
            if self.unfinished == 0 {
                let end = *settled.get_or_insert(at + Duration::from_secs(3600));
                if self.left_places().is_empty() {
                    break;
                }
                if at > end {
                    let left = self.left_places();
                    let ids: Vec<_> = left.iter().collect();
                    let words = "the machine is done and its place is not free".to_owned();
                    self.checker.fail(Property::P5, at, &ids, words);
                    break;
                }
            } else if at > limit {
                self.stuck(at);
                break;
            }
        }
        self.tally.most_overtaken = self.checker.most_overtaken;
        self.tally.halts = self.checker.halts;
        let result = self.checker.violation.map_or(Ok(()), Err);
        (self.tally, result, self.trace.unwrap_or_default())
    }

    /// All that can wait must be done by then.
    fn limit(&self) -> Duration {
        let Some(faults) = &self.fleet.faults else {
            return self.tally.ideal * 2;
        };
        let rest = self.tally.ideal * if self.fleet.windows { 5 } else { 2 };
        faults.end + faults.rest + rest
    }

    fn stuck(&mut self, at: Duration) {
        let left: Vec<_> = self
            .machines
            .iter()
            .filter(|machine| !machine.done)
            .map(|machine| machine.id.clone())
            .collect();
        let stages: Vec<_> = self
            .machines
            .iter()
            .filter(|machine| !machine.done)
            .take(5)
            .map(|machine| {
                let view = machine.agent.as_ref().map(Agent::view);
                format!("{} {:?} {view:?}", machine.id, machine.power)
            })
            .collect();
        let words = format!("{} machines still wait, such as {stages:#?}", left.len());
        let ids: Vec<_> = left.iter().take(5).collect();
        self.checker.fail(Property::P5, at, &ids, words);
    }

    /// Places of machines that live and have nothing more to do.
    fn left_places(&self) -> Vec<MachineId> {
        let places = self.checker.places().iter();
        places
            .filter(|id| {
                let mut those = self.machines_of(id).peekable();
                those.peek().is_some() && those.all(|machine| machine.power != Power::Dead)
            })
            .cloned()
            .collect()
    }

    /// The machines with this id: one, two or none.
    pub(crate) fn machines_of(&self, id: &MachineId) -> impl Iterator<Item = &Machine> {
        let numbers = self.by_id.get(id).into_iter().flatten();
        numbers.map(|number| &self.machines[at(*number)])
    }

    fn happen(&mut self, what: What) {
        match what {
            What::Wakes {
                machine,
                process,
                timer,
            } => {
                let it = &self.machines[at(machine)];
                if it.process == process && it.timer == timer {
                    self.step(machine, Event::Woke);
                }
            }
            What::Hears {
                machine,
                process,
                event,
            } => {
                if self.machines[at(machine)].process == process {
                    self.step(machine, event);
                }
            }
            What::Arrives {
                machine,
                process,
                sent,
                delivery,
                call,
            } => self.arrives(machine, process, sent, &delivery, &call),
            What::KeepAlive => self.keep_alive(),
            What::DaemonStarts { machine, boot } => self.start_daemon(machine, boot),
            What::Applies { machine, version } => self.applies(machine, version),
            What::GoesDown { machine, boot } => {
                let it = &self.machines[at(machine)];
                if it.boot == boot && it.power == Power::Stopping {
                    self.go_down(machine);
                }
            }
            What::Boots { machine } => self.boot(machine),
            What::Crashes { machine } => {
                if self.machines[at(machine)].power == Power::Up {
                    self.count("machine crash");
                    self.note(machine, || "crashes".to_owned());
                    self.go_down(machine);
                }
            }
            What::ClockSteps { machine, seconds } => {
                self.count("clock step");
                self.machines[at(machine)].clock += seconds;
            }
            What::Partition => self.partition(),
            What::Heals { machines } => {
                for machine in machines {
                    let it = &mut self.machines[at(machine)];
                    it.cut = Cut::default();
                    if std::mem::take(&mut it.missed) {
                        self.hint(machine, Duration::from_secs(1));
                    }
                }
            }
            What::Outage => {
                if let Some(faults) = self.faults() {
                    let again = faults.outages;
                    self.count("store outage");
                    self.touch();
                    self.outage = true;
                    let lasts = Duration::from_secs_f64(1.0 + 9.0 * self.rng.f64());
                    self.plan(self.now + lasts, What::OutageEnds);
                    self.plan_next(again, What::Outage);
                }
            }
            What::OutageEnds => {
                // A new leader starts the time of each lease again.
                self.outage = false;
                let group = &mut self.group;
                self.leases.retain(|lease| group.keep_alive(*lease));
                self.touch();
            }
            What::Act(act) => self.act(act),
            What::Acted {
                act,
                author,
                transaction,
            } => self.acted(act, &author, &transaction),
        }
    }

    // Daemon.

    fn start_daemon(&mut self, number: u32, boot: u32) {
        let options = Options {
            stays_up: false,
            lock: Lock::Semaphore,
            recover: false,
            rank: 100 + self.rng.u16(..self.fleet.ranks),
            mode: Mode::Firmware,
            warning: self.fleet.warning,
            soak: self.fleet.soak,
            deadline: self.fleet.deadline,
        };
        let now = self.now;
        let machine = &mut self.machines[at(number)];
        if machine.boot != boot || machine.power != Power::Up || machine.agent.is_some() {
            return;
        }
        let identity = Identity {
            id: machine.id.clone(),
            boot_id: boot_id(number, boot),
            version: version(machine.running),
        };
        machine.agent = Some(Agent::new(identity, options));
        machine.begun = now;
        self.note(number, || "its daemon starts".to_owned());
        self.step(number, Event::Started);
    }

    fn stop_daemon(&mut self, number: u32) {
        let machine = &mut self.machines[at(number)];
        machine.agent = None;
        machine.process += 1;
        machine.kept = None;
        machine.watched.clear();
    }

    fn step(&mut self, number: u32, event: Event) {
        let roll = self.rng.u32(..);
        let window = self.window(number);
        let window = if self.is_broken(Broken::NoWindow) {
            Window::Open
        } else {
            window
        };
        let now = self.now;
        let machine = &mut self.machines[at(number)];
        let Some(agent) = &mut machine.agent else {
            return;
        };
        let moment = Moment {
            monotonic: now.saturating_sub(machine.begun),
            wall: wall(now) + machine.clock,
            roll,
            window,
        };
        let told = self.trace.is_some().then(|| match &event {
            Event::Loaded(Ok(snapshot)) => format!("a snapshot of {}", snapshot.revision),
            other => brief(other),
        });
        let actions = agent.step(event, moment);
        if let Some(told) = told {
            self.note(number, || format!("hears {told}"));
        }
        let crash = self.faults().map_or(0.0, |faults| faults.daemon_crash);
        let crash = (crash > 0.0 && self.chance(crash)).then(|| self.rng.usize(..=actions.len()));
        for (index, action) in actions.into_iter().enumerate() {
            if crash == Some(index) {
                break;
            }
            self.perform(number, action);
        }
        if crash.is_some() {
            self.crash_daemon(number);
        }
        self.see_whether_done(number);
    }

    fn crash_daemon(&mut self, number: u32) {
        self.count("daemon crash");
        self.note(number, || "its daemon crashes".to_owned());
        self.stop_daemon(number);
        let machine = &self.machines[at(number)];
        let boot = machine.boot;
        let pause = Duration::from_secs_f64(1.0 + 29.0 * self.rng.f64());
        self.plan(
            self.now + pause,
            What::DaemonStarts {
                machine: number,
                boot,
            },
        );
    }

    fn see_whether_done(&mut self, number: u32) {
        let machine = &mut self.machines[at(number)];
        if machine.done || machine.running != machine.wanted || machine.applied.is_some() {
            return;
        }
        let idle = machine
            .agent
            .as_ref()
            .is_some_and(|agent| agent.view().stage == "idle");
        if idle || machine.power == Power::Dead {
            machine.done = true;
            self.unfinished -= 1;
        }
    }

    fn perform(&mut self, number: u32, action: Action) {
        if self.trace.is_some() {
            let told = brief(&action);
            self.note(number, || format!("  {told}"));
        }
        let few = Duration::from_micros(self.rng.u64(500..5000));
        match action {
            Action::Wake(wait) => {
                let machine = &mut self.machines[at(number)];
                machine.timer += 1;
                let (process, timer) = (machine.process, machine.timer);
                let wait = wait.max(Duration::from_micros(1));
                self.plan(
                    self.now + wait,
                    What::Wakes {
                        machine: number,
                        process,
                        timer,
                    },
                );
            }
            Action::Load(look) => self.send(number, Call::Load(look)),
            Action::Commit(transaction) => self.send_commit(number, transaction),
            Action::Lease(ttl) => self.send(number, Call::Lease(ttl)),
            Action::Revoke(lease) => self.send(number, Call::Revoke(lease)),
            Action::KeepAlive(lease) => self.machines[at(number)].kept = lease,
            Action::Watch(keys, after) => self.watch(number, keys, after),
            Action::ReadUpdater => {
                let silent = self.faults().map_or(0.0, |faults| faults.updater_silent);
                let answer = if self.chance(silent) {
                    self.count("silent updater");
                    Err("no answer".to_owned())
                } else {
                    let applied = self.machines[at(number)].applied;
                    Ok(applied.map(|applied| Applied {
                        version: version(applied),
                        soft: false,
                    }))
                };
                self.tell(number, few, Event::Updater(answer));
            }
            Action::WarnUsers(_) => {
                let anybody = self.rng.bool();
                self.tell(number, few, Event::UsersWarned(anybody));
            }
            Action::Drain { .. } => {
                let fails = self.faults().map_or(0.0, |faults| faults.drain_fails);
                let takes = match self.faults() {
                    Some(_) => Duration::from_secs_f64(20.0 * self.rng.f64()),
                    None => few,
                };
                let result = if self.chance(fails) {
                    self.count("failed drain");
                    Err("a program says no".to_owned())
                } else {
                    Ok(())
                };
                self.tell(number, takes, Event::Drained(result));
            }
            Action::CheckHealth { .. } => {
                let healthy = self.now + few >= self.machines[at(number)].healthy_from;
                let health = if healthy {
                    Health::Good
                } else {
                    Health::NotYet("a service is still starting".to_owned())
                };
                self.tell(number, few, Event::Health(health));
            }
            Action::Reboot(_) => self.reboot(number, few),
            Action::FleetLock(_) => panic!("nobody here speaks to a FleetLock server"),
            Action::Publish(_)
            | Action::Remember(_)
            | Action::Say(..)
            | Action::TellUsers
            | Action::GiveUpReboot => {}
        }
    }

    fn watch(&mut self, number: u32, keys: Vec<Key>, after: Revision) {
        let last = keys.iter().filter_map(|key| self.last_change.get(key));
        let changed = last.max().is_some_and(|last| *last > after);
        let machine = &mut self.machines[at(number)];
        machine.watched = keys;
        if machine.cut.any() {
            machine.missed = true;
        } else if changed {
            let delay = self.delay();
            self.hint(number, delay);
        }
    }

    fn hint(&mut self, number: u32, delay: Duration) {
        self.tell(number, delay, Event::Changed);
    }

    fn keep_alive(&mut self) {
        self.plan(self.now + KEEP_ALIVE, What::KeepAlive);
        if self.outage {
            return;
        }
        self.touch();
        let mut lost = Vec::new();
        for (number, machine) in (0..).zip(&mut self.machines) {
            if let Some(lease) = machine.kept
                && !machine.cut.any()
                && !self.group.keep_alive(lease)
            {
                machine.kept = None;
                lost.push(number);
            }
        }
        for number in lost {
            self.step(number, Event::LeaseLost);
        }
    }

    // The machine.

    fn applies(&mut self, number: u32, version: u32) {
        let machine = &mut self.machines[at(number)];
        if machine.power == Power::Dead {
            return;
        }
        machine.wanted = version;
        if machine.power != Power::Up {
            // The updater works when the machine does.
            let later = self.now + Duration::from_secs(60);
            self.plan(
                later,
                What::Applies {
                    machine: number,
                    version,
                },
            );
            return;
        }
        machine.applied = Some(version);
        self.note(number, || format!("has applied {version}"));
        self.tell(number, Duration::from_millis(1), Event::UpdaterChanged);
    }

    fn reboot(&mut self, number: u32, few: Duration) {
        let signature = self.signature(number);
        let in_window = self.window(number) == Window::Open;
        let (refused, hangs) = self.faults().map_or((0.0, 0.0), |faults| {
            (faults.reboot_refused, faults.reboot_hangs)
        });
        self.checker.reboots(self.now, &signature, in_window);
        if self.chance(refused) {
            self.count("refused reboot");
            self.tell(number, few, Event::Rebooting(Err("inhibited".to_owned())));
            return;
        }
        self.tell(number, few, Event::Rebooting(Ok(())));
        if self.chance(hangs) {
            self.count("reboot that never begins");
            return;
        }
        self.tally.reboots += 1;
        let machine = &mut self.machines[at(number)];
        machine.power = Power::Stopping;
        let boot = machine.boot;
        self.tell(number, few * 2, Event::ShuttingDown);
        self.plan(
            self.now + Duration::from_secs(1),
            What::GoesDown {
                machine: number,
                boot,
            },
        );
    }

    fn go_down(&mut self, number: u32) {
        self.note(number, || "goes down".to_owned());
        let (slow, never) = self
            .faults()
            .map_or((0.0, 0.0), |faults| (faults.slow_boot, faults.never_back));
        self.stop_daemon(number);
        let (slow, never) = (self.chance(slow), self.chance(never));
        let machine = &mut self.machines[at(number)];
        machine.power = Power::Down;
        let mut takes = machine.down.saturating_sub(Duration::from_secs(1));
        if never {
            machine.power = Power::Dead;
            machine.wanted = machine.running;
            machine.applied = None;
            self.count("machine that never comes back");
            self.see_whether_done(number);
            return;
        }
        if slow {
            self.count("slow boot");
            takes = takes.mul_f64(2.0 + 8.0 * self.rng.f64());
        }
        self.plan(self.now + takes, What::Boots { machine: number });
    }

    fn boot(&mut self, number: u32) {
        let (back, unwell) = self
            .faults()
            .map_or((0.0, 0.0), |faults| (faults.rolled_back, faults.unwell));
        let (back, unwell) = (self.chance(back), self.chance(unwell));
        let now = self.now;
        let deadline = self.fleet.deadline;
        let share = self.rng.f64();
        let machine = &mut self.machines[at(number)];
        machine.boot += 1;
        machine.power = Power::Up;
        machine.booted = now;
        machine.healthy_from = now;
        let mut fixed = None;
        if let Some(applied) = machine.applied.take() {
            machine.rolled_back = back;
            if back {
                fixed = Some(applied + 1);
                machine.wanted = applied + 1;
            } else {
                machine.running = applied;
            }
        }
        if unwell {
            machine.healthy_from += (deadline * 2).mul_f64(share);
        }
        let boot = machine.boot;
        if back && fixed.is_some() {
            self.count("rollback");
        }
        if unwell {
            self.count("unwell for a while");
        }
        self.note(number, || "boots".to_owned());
        if let Some(version) = fixed {
            let at = now + Duration::from_secs(self.rng.u64(60..3600));
            self.plan(
                at,
                What::Applies {
                    machine: number,
                    version,
                },
            );
        }
        self.start_daemon(number, boot);
    }

    fn window(&self, number: u32) -> Window {
        if !self.fleet.windows {
            return Window::Open;
        }
        let wall = wall(self.now) + self.machines[at(number)].clock;
        let time = wall.rem_euclid(DAY);
        if time < OPEN {
            Window::Open
        } else {
            let left = u64::try_from(DAY - time).expect("the rest of a day");
            Window::Closed(Some(Duration::from_secs(left)))
        }
    }

    fn signature(&self, number: u32) -> Signature {
        let machine = &self.machines[at(number)];
        let well = machine.healthy_from.max(machine.booted) + self.fleet.soak;
        Signature {
            machine: number,
            process: machine.process,
            id: machine.id.clone(),
            boot_id: boot_id(number, machine.boot),
            proven: !machine.rolled_back && self.now >= well,
            twin: machine.twin,
        }
    }

    // The wire.

    fn send_commit(&mut self, number: u32, transaction: Transaction) {
        let signature = self.signature(number);
        if self
            .broken
            .is_some_and(|broken| broken.answers_itself(&transaction))
        {
            let done = CommitOutcome::Done(Committed {
                succeeded: true,
                revision: 0,
            });
            let delay = self.delay();
            self.tell(number, delay, Event::Committed(done));
            return;
        }
        self.send(number, Call::Commit(transaction, signature));
    }

    fn send(&mut self, number: u32, call: Call) {
        let now = self.now;
        let machine = &self.machines[at(number)];
        let (process, cut) = (machine.process, machine.cut);
        let commit = matches!(call, Call::Commit(..));
        let (lost, late, twice) = self.faults().map_or((0.0, 0.0, 0.0), |faults| {
            (faults.request_lost, faults.late, faults.twice)
        });
        if cut.requests || self.chance(lost) {
            self.count("lost request");
            self.fails_at(number, now + REQUEST_LIMIT, &call);
            return;
        }
        let delay = self.delay();
        let arrives = |sent, delivery, call: Call| What::Arrives {
            machine: number,
            process,
            sent,
            delivery,
            call: Box::new(call),
        };
        if commit && self.chance(late) {
            self.count("late commit");
            self.fails_at(number, now + REQUEST_LIMIT, &call);
            let delay = REQUEST_LIMIT.mul_f64(1.0 + 4.0 * self.rng.f64());
            self.plan(now + delay, arrives(None, Delivery::Only, call));
            return;
        }
        let mut delivery = Delivery::Only;
        if commit && self.chance(twice) {
            let later = Duration::from_secs_f64(10.0 * self.rng.f64());
            let carried_out = Arc::new(AtomicBool::new(false));
            delivery = Delivery::First(Arc::clone(&carried_out));
            let again = Delivery::Again(carried_out);
            self.plan(now + delay + later, arrives(None, again, call.clone()));
        }
        self.plan(now + delay, arrives(Some(now), delivery, call));
    }

    /// The caller hears nothing, and gives up.
    fn fails_at(&mut self, number: u32, at: Duration, call: &Call) {
        let words = "no answer".to_owned();
        let event = match call {
            Call::Load(_) => Event::Loaded(Err(words)),
            Call::Commit(..) => Event::Committed(CommitOutcome::Unknown(words)),
            Call::Lease(_) => Event::Leased(Err(words)),
            Call::Revoke(_) => return,
        };
        self.tell(number, at.saturating_sub(self.now), event);
    }

    fn arrives(
        &mut self,
        number: u32,
        process: u32,
        sent: Option<Duration>,
        delivery: &Delivery,
        call: &Call,
    ) {
        let id = self.machines[at(number)].id.clone();
        if self.outage {
            if let Some(sent) = sent {
                self.fails_at(number, sent + REQUEST_LIMIT, call);
            }
            return;
        }
        self.touch();
        let mut altered = None;
        if let (Some(broken), Call::Commit(transaction, signature)) = (self.broken, call) {
            let mut transaction = transaction.clone();
            broken.alter_transaction(&mut transaction, &self.group);
            altered = Some(Call::Commit(transaction, signature.clone()));
        }
        let call = altered.as_ref().unwrap_or(call);
        let event = match call {
            Call::Load(look) => {
                self.tally.loads += 1;
                let mut snapshot = self.group.load(look);
                if let Some(broken) = self.broken {
                    broken.alter_snapshot(&mut snapshot);
                }
                Event::Loaded(Ok(Arc::new(snapshot)))
            }
            Call::Commit(transaction, signature) => {
                let kind = Kind::of(transaction, &id);
                let author = Author::Agent(signature.clone());
                if let Delivery::Again(carried_out) = delivery {
                    // The document is deleted by hand alone; who finds it gone a second
                    // time asks anew, as one does who was refused the first time.
                    let anew = !carried_out.load(Ordering::Relaxed)
                        || transaction
                            .when
                            .contains(&Compare::Modified(Key::Document, 0));
                    if anew {
                        self.count("late commit after its answer");
                        self.commit(&author, transaction);
                    } else {
                        self.again(&id, transaction);
                    }
                    return;
                }
                *self.tally.commits.entry(kind).or_default() += 1;
                let (outcome, succeeded) = self.commit(&author, transaction);
                if let Delivery::First(carried_out) = delivery {
                    carried_out.store(succeeded, Ordering::Relaxed);
                }
                if outcome == CommitOutcome::LeaseGone {
                    self.count("lease that had ended");
                }
                if let CommitOutcome::Done(done) = &outcome
                    && done.succeeded
                    && kind == Kind::Release
                {
                    self.tally.finished = self.now;
                }
                if self.trace.is_some() {
                    self.note(number, || format!("    {kind:?}: {outcome:?}"));
                }
                Event::Committed(outcome)
            }
            Call::Lease(ttl) => {
                let lease = self.group.grant_lease(*ttl);
                self.leases.push(lease);
                Event::Leased(Ok(lease))
            }
            Call::Revoke(lease) => {
                self.group.revoke_lease(*lease);
                for (revision, key) in self.group.take_changed() {
                    self.checker.ended(self.now, &key);
                    self.changed(revision, &key);
                }
                return;
            }
        };
        let Some(sent) = sent else {
            return;
        };
        let lost = self.faults().map_or(0.0, |faults| faults.reply_lost);
        if self.machines[at(number)].cut.replies || self.chance(lost) {
            self.count("lost reply");
            self.fails_at(number, sent + REQUEST_LIMIT, call);
        } else if self.machines[at(number)].process == process {
            let delay = self.delay();
            self.tell(number, delay, event);
        }
    }

    /// The network carries a commit to the store once more.
    fn again(&mut self, id: &MachineId, transaction: &Transaction) {
        self.count("repeated commit");
        let writes = transaction.then.iter().chain(&transaction.otherwise);
        let before: Vec<_> = writes
            .map(|write| {
                let (Write::Put(key, ..) | Write::Delete(key)) = write;
                (key.clone(), self.group.record(key).cloned())
            })
            .collect();
        let unconditional = self.broken == Some(Broken::RepeatsBlindly);
        let mut transaction = transaction.clone();
        if unconditional {
            transaction.when.clear();
        }
        let number = self.by_id[id][0];
        let author = Author::Agent(self.signature(number));
        let (_, changed) = self.commit_unchecked(&transaction);
        let differing: Vec<_> = changed
            .iter()
            .filter(|key| {
                before
                    .iter()
                    .find(|(other, _)| other == *key)
                    .is_none_or(|(_, record)| record.as_ref() != self.group.record(key))
            })
            .cloned()
            .collect();
        self.checker.repeated(self.now, id, &differing);
        // Only tickets can have come; the account follows.
        let tickets: Vec<_> = transaction
            .otherwise
            .iter()
            .filter(|write| matches!(write, Write::Put(key, ..) if changed.contains(key)))
            .cloned()
            .collect();
        self.checker.committed(self.now, 0, &author, &tickets);
    }

    /// Commits, and has the checker look at it.
    pub(crate) fn commit(
        &mut self,
        author: &Author,
        transaction: &Transaction,
    ) -> (CommitOutcome, bool) {
        let (outcome, changed) = self.commit_unchecked(transaction);
        let CommitOutcome::Done(done) = &outcome else {
            return (outcome, false);
        };
        let succeeded = done.succeeded;
        if !changed.is_empty() {
            let writes = if succeeded {
                &transaction.then
            } else {
                &transaction.otherwise
            };
            self.checker
                .committed(self.now, done.revision, author, writes);
        }
        (outcome, succeeded)
    }

    fn commit_unchecked(&mut self, transaction: &Transaction) -> (CommitOutcome, Vec<Key>) {
        let outcome = match self.group.commit(transaction) {
            Ok(done) => CommitOutcome::Done(done),
            Err(StoreError::LeaseGone { .. }) => CommitOutcome::LeaseGone,
            Err(error) => panic!("no client writes what a store refuses: {error}"),
        };
        let changed = self.group.take_changed();
        for (revision, key) in &changed {
            self.changed(*revision, key);
        }
        (outcome, changed.into_iter().map(|(_, key)| key).collect())
    }

    /// Brings the store's time up to date.
    pub(crate) fn touch(&mut self) {
        if self.outage {
            return;
        }
        self.group.advance(self.now);
        for (revision, key) in self.group.take_changed() {
            self.checker.ended(self.now, &key);
            self.changed(revision, &key);
        }
    }

    fn changed(&mut self, revision: Revision, key: &Key) {
        let (Key::Holder(id) | Key::Ticket(TicketKey { id, .. })) = key else {
            return;
        };
        self.last_change.insert(key.clone(), revision);
        let Some(machines) = self.by_id.get(id) else {
            return;
        };
        for number in machines.clone() {
            let machine = &mut self.machines[at(number)];
            if !machine.watched.contains(key) {
                continue;
            }
            if machine.cut.any() {
                machine.missed = true;
                continue;
            }
            let lost = self.faults().map_or(0.0, |faults| faults.watch_lost);
            if self.chance(lost) {
                // The stream breaks and opens again.
                self.count("broken watch");
                let later = Duration::from_secs_f64(60.0 * self.rng.f64());
                self.hint(number, later);
            } else {
                let delay = self.delay();
                self.hint(number, delay);
            }
        }
    }

    fn partition(&mut self) {
        let Some(faults) = self.faults() else { return };
        let again = faults.partitions;
        self.plan_next(again, What::Partition);
        let most = (self.fleet.machines / 10).max(1);
        let count = self.rng.u32(1..=most);
        let cut = [(true, true), (true, false), (false, true)][self.rng.usize(..3)];
        let cut = Cut {
            requests: cut.0,
            replies: cut.1,
        };
        let first = self.rng.u32(..self.fleet.machines);
        let machines: Vec<_> = (0..count)
            .map(|index| (first + index) % self.fleet.machines)
            .collect();
        for machine in &machines {
            self.machines[at(*machine)].cut = cut;
        }
        *self.tally.faults.entry("machine cut off").or_default() += u64::from(count);
        let lasts = Duration::from_secs(self.rng.u64(5..600));
        self.plan(self.now + lasts, What::Heals { machines });
    }

    // Small things.

    pub(crate) fn is_broken(&self, broken: Broken) -> bool {
        self.broken == Some(broken)
    }

    /// The faults, while there are any.
    pub(crate) fn faults(&self) -> Option<&Faults> {
        let faults = self.fleet.faults.as_ref();
        faults.filter(|faults| self.now < faults.end)
    }

    pub(crate) fn chance(&mut self, chance: f64) -> bool {
        chance > 0.0 && self.rng.f64() < chance
    }

    pub(crate) fn plan(&mut self, at: Duration, what: What) {
        self.agenda.plan(at, what);
    }

    /// Some time after now, `mean` on average; never if that is zero.
    pub(crate) fn plan_next(&mut self, mean: Duration, what: What) {
        if !mean.is_zero() {
            let wait = mean.mul_f64(0.5 + self.rng.f64());
            self.plan(self.now + wait, what);
        }
    }

    pub(crate) fn delay(&mut self) -> Duration {
        Duration::from_micros(self.rng.u64(1_000..50_000))
    }

    fn tell(&mut self, number: u32, delay: Duration, event: Event) {
        let process = self.machines[at(number)].process;
        self.plan(
            self.now + delay,
            What::Hears {
                machine: number,
                process,
                event,
            },
        );
    }

    pub(crate) fn count(&mut self, fault: &'static str) {
        *self.tally.faults.entry(fault).or_default() += 1;
    }

    fn note(&mut self, number: u32, words: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            let id = self.machines[at(number)].id.clone();
            trace.push((self.now, id, words()));
        }
    }

    pub(crate) fn note_person(&mut self, words: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push((self.now, MachineId::new("people"), words()));
        }
    }
}

/// Lines of a replayed run.
pub(crate) type Trace = Vec<(Duration, MachineId, String)>;

impl Machine {
    fn new(id: MachineId, down: Duration, twin: bool) -> Self {
        Self {
            id,
            power: Power::Up,
            boot: 0,
            process: 0,
            agent: None,
            begun: Duration::ZERO,
            timer: 0,
            kept: None,
            watched: Vec::new(),
            running: 1,
            wanted: 2,
            applied: None,
            rolled_back: false,
            booted: Duration::ZERO,
            healthy_from: Duration::ZERO,
            down,
            clock: 0,
            cut: Cut::default(),
            missed: false,
            done: false,
            twin,
        }
    }
}

fn at(number: u32) -> usize {
    usize::try_from(number).expect("a small number")
}

pub(crate) fn wall(now: Duration) -> i64 {
    EPOCH + i64::try_from(now.as_secs()).expect("a run lasts days")
}

fn boot_id(number: u32, boot: u32) -> String {
    format!("{number}.{boot}.")
}

fn version(number: u32) -> String {
    format!("{number}.0.0")
}

/// One line of something large.
fn brief(what: &impl std::fmt::Debug) -> String {
    let mut text = format!("{what:?}");
    if let Some((end, _)) = text.char_indices().nth(200) {
        text.truncate(end);
        text.push('…');
    }
    text
}
