//! A machine whose every answer is scripted, on a real group in memory.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::coordinator::{
    Action, Agent, Applied, CommitOutcome, Event, Health, Identity, Lock, Moment, Options,
    Published, Window,
};
use crate::machine_id::MachineId;
use crate::semaphore::{
    Document, Holder, Key, LeaseId, Look, Mode, Record, Snapshot, Transaction, Write,
};
use crate::store::{Fault, MemoryGroup, StoreError};

/// The machine is called `a`.
pub(super) struct Bench {
    pub(super) group: MemoryGroup,
    pub(super) agent: Agent,
    pub(super) clock: Duration,
    options: Options,
    boots: u32,
    started: Duration,
    timer: Option<Duration>,
    answer: Option<Event>,
    kept: Option<LeaseId>,
    watched: Option<(Vec<Key>, i64)>,
    // The script.
    pub(super) running: u8,
    pub(super) applied: Result<Option<u8>, String>,
    /// What comes up after a reboot; none: what was applied.
    pub(super) comes_up: Option<u8>,
    pub(super) window: Window,
    pub(super) roll: u32,
    pub(super) health: Health,
    pub(super) people: bool,
    pub(super) hooks: Result<(), String>,
    pub(super) logind: Result<(), String>,
    /// The server's answers to requests for a place and to those that give it
    /// back.
    pub(super) fleet_lock: [Result<(), String>; 2],
    /// Whether the store keeps the document alone, as etcd's v2 API does.
    pub(super) document_only: bool,
    /// Whether the machine's record says nothing to anybody.
    pub(super) unreadable: bool,
    /// Whether a reboot that is asked for begins.
    pub(super) shuts_down: bool,
    /// Faults of the next calls of the store; none: it works.
    pub(super) faults: VecDeque<Option<Fault>>,
    // What came of it.
    pub(super) calls: usize,
    pub(super) steps: usize,
    pub(super) reboots: usize,
    /// What a person on the machine could see, in order.
    pub(super) seen: Vec<String>,
}

/// Options with a wish.
pub(super) fn options(lock: Lock) -> Options {
    Options {
        stays_up: false,
        lock,
        recover: false,
        rank: 100,
        mode: Mode::Firmware,
        warning: Duration::ZERO,
        soak: Duration::from_secs(60),
        deadline: Duration::from_secs(1800),
    }
}

impl Bench {
    /// Version 1 runs and version 2 is applied; the group has one place.
    pub(super) fn new(options: Options) -> Self {
        let mut bench = Self {
            group: MemoryGroup::new(),
            agent: agent(&options, 0, 1),
            clock: Duration::from_secs(1),
            options,
            boots: 0,
            started: Duration::ZERO,
            timer: None,
            answer: None,
            kept: None,
            watched: None,
            running: 1,
            applied: Ok(Some(2)),
            comes_up: None,
            window: Window::Open,
            roll: u32::MAX / 2,
            health: Health::Good,
            people: false,
            hooks: Ok(()),
            logind: Ok(()),
            fleet_lock: [Ok(()), Ok(())],
            document_only: false,
            unreadable: false,
            shuts_down: true,
            faults: VecDeque::new(),
            calls: 0,
            steps: 0,
            reboots: 0,
            seen: Vec::new(),
        };
        bench.restart();
        bench
    }

    pub(super) fn id() -> MachineId {
        "a".into()
    }

    /// Its process ends and begins again.
    pub(super) fn restart(&mut self) {
        self.agent = agent(&self.options, self.boots, self.running);
        self.timer = None;
        self.answer = None;
        self.kept = None;
        self.watched = None;
        self.started = self.clock;
        self.step(Event::Started);
    }

    /// The machine goes off and comes up again, on what is applied.
    pub(super) fn power_cycle(&mut self) {
        let applied = std::mem::replace(&mut self.applied, Ok(None));
        let next = self.comes_up.take().or(applied.unwrap_or(None));
        self.running = next.unwrap_or(self.running);
        self.boots += 1;
        self.advance(Duration::from_secs(90));
        self.restart();
    }

    /// Goes on until nothing is left to do for `time`, or `until` is true.
    /// Returns whether it became true.
    pub(super) fn run(&mut self, time: Duration, until: impl Fn(&Self) -> bool) -> bool {
        let end = self.clock + time;
        loop {
            if until(self) {
                return true;
            }
            if !self.go(end) {
                return false;
            }
        }
    }

    /// One event. `false`: none comes before `end`.
    pub(super) fn go(&mut self, end: Duration) -> bool {
        if let Some(answer) = self.answer.take() {
            self.step(answer);
        } else if self.notified() {
            self.step(Event::Changed);
        } else if let Some(at) = self.timer.filter(|at| *at <= end) {
            self.timer = None;
            self.advance(at.saturating_sub(self.clock));
            self.step(Event::Woke);
        } else {
            self.advance(end.saturating_sub(self.clock));
            return false;
        }
        true
    }

    /// Tells the agent something.
    pub(super) fn tell(&mut self, event: Event) {
        self.step(event);
    }

    /// Whether a process that was asked to end may do so.
    pub(super) fn may_end(&self) -> bool {
        self.agent.may_end()
    }

    pub(super) fn stage(&self) -> &'static str {
        self.agent.view().stage
    }

    pub(super) fn snapshot(&mut self) -> Snapshot {
        self.load(&Look::default())
    }

    fn load(&self, look: &Look) -> Snapshot {
        let mut snapshot = Snapshot {
            document_only: self.document_only,
            ..self.group.load(look)
        };
        if self.unreadable
            && let Some(record) = Arc::make_mut(&mut snapshot.holders).get_mut(&Self::id())
        {
            Arc::make_mut(record).value = None;
        }
        snapshot
    }

    pub(super) fn places(&mut self) -> Document {
        self.snapshot().places().clone()
    }

    pub(super) fn holder(&self) -> Option<Holder> {
        match self.group.record(&Key::Holder(Self::id()))? {
            Record::Holder(holder) => Some(holder.clone()),
            other => panic!("{other:?}"),
        }
    }

    /// Commits what others decide; it must succeed.
    pub(super) fn others(&mut self, decide: impl FnOnce(&Snapshot) -> Option<Transaction>) {
        let snapshot = self.snapshot();
        let transaction = decide(&snapshot).expect("a change");
        assert!(self.group.commit(&transaction).unwrap().succeeded);
    }

    /// It runs `version` and has neither work nor a place.
    pub(super) fn is_done(&mut self, version: u8) -> bool {
        self.running == version && self.stage() == "idle" && !self.places().holds(&Self::id())
    }

    pub(super) fn advance(&mut self, time: Duration) {
        // The process keeps its lease alive while time passes.
        let end = self.clock + time;
        while self.clock < end {
            self.clock = end.min(self.clock + Duration::from_secs(20));
            self.group.advance(self.clock);
            if let Some(lease) = self.kept {
                self.group.keep_alive(lease);
            }
        }
    }

    /// Whether a watched key has changed. It is told once for each change.
    fn notified(&mut self) -> bool {
        let changes = self.group.take_changed();
        let Some((keys, after)) = &mut self.watched else {
            return false;
        };
        let news = changes
            .iter()
            .filter(|(revision, key)| revision > after && keys.contains(key));
        let Some(last) = news.map(|(revision, _)| *revision).max() else {
            return false;
        };
        *after = last;
        true
    }

    fn step(&mut self, event: Event) {
        self.steps += 1;
        assert!(self.steps < 100_000, "it runs in circles: {:?}", self.seen);
        let moment = Moment {
            monotonic: self.clock.saturating_sub(self.started),
            wall: i64::try_from(self.clock.as_secs()).unwrap(),
            roll: self.roll,
            window: self.window,
        };
        let shown = format!("{event:?}");
        let actions = self.agent.step(event, moment);
        let mut asked = 0;
        for action in &actions {
            asked += usize::from(self.perform(action));
        }
        assert!(asked <= 1, "after {shown}: {actions:?}");
        if asked == 1 {
            // It may end before the answer comes, and be for nothing.
            self.timer = None;
        }
        let moves = self.answer.is_some() || self.timer.is_some() || self.stage() == "idle";
        assert!(
            moves,
            "stuck after {shown} in {}: {actions:?}",
            self.stage()
        );
    }

    /// Returns whether an answer will come.
    fn perform(&mut self, action: &Action) -> bool {
        let answer = match action {
            Action::Wake(wait) => {
                self.timer = Some(self.clock + *wait);
                return false;
            }
            Action::KeepAlive(lease) => {
                self.kept = *lease;
                return false;
            }
            Action::Revoke(lease) => {
                self.group.revoke_lease(*lease);
                return false;
            }
            Action::Watch(keys, after) => {
                self.watched = Some((keys.clone(), *after));
                return false;
            }
            Action::TellUsers => return self.show("tell users"),
            Action::GiveUpReboot => return self.show("reboot given up"),
            Action::Publish(Published::Running) => return self.show("running"),
            Action::Publish(Published::RebootPlanned) => return self.show("planned"),
            Action::Publish(Published::Rebooting) => return self.show("rebooting"),
            Action::Remember(held) => return self.show(&format!("remember {held}")),
            Action::Say(_, words) => return self.show(&format!("\"{words}\"")),
            Action::Load(look) => Event::Loaded(match self.fault() {
                None => Ok(Arc::new(self.load(look))),
                Some(_) => Err("no store".into()),
            }),
            Action::Commit(transaction) => Event::Committed(self.commit(transaction)),
            Action::Lease(time) => Event::Leased(match self.fault() {
                None => Ok(self.group.grant_lease(*time)),
                Some(_) => Err("no store".into()),
            }),
            Action::ReadUpdater => Event::Updater(self.applied.clone().map(|applied| {
                applied.map(|version| Applied {
                    version: version.to_string(),
                    soft: false,
                })
            })),
            Action::WarnUsers(_) => Event::UsersWarned(self.people),
            Action::Drain { to } => {
                self.show(&format!("drain for {to}"));
                Event::Drained(self.hooks.clone())
            }
            Action::CheckHealth { .. } => Event::Health(self.health.clone()),
            Action::Reboot(_) => {
                self.show("reboot");
                self.reboots += usize::from(self.logind.is_ok());
                Event::Rebooting(self.logind.clone())
            }
            Action::FleetLock(take) => {
                self.show(if *take { "ask server" } else { "tell server" });
                Event::FleetLock(self.fleet_lock[usize::from(!take)].clone())
            }
        };
        self.answer = Some(answer);
        true
    }

    fn commit(&mut self, transaction: &Transaction) -> CommitOutcome {
        let fault = self.fault();
        match fault {
            Some(Fault::Unavailable) => return CommitOutcome::Failed("no store".into()),
            Some(Fault::RequestLost) => return CommitOutcome::Unknown("no answer".into()),
            Some(Fault::ReplyLost) | None => {}
        }
        let mut transaction = transaction.clone();
        if self.document_only {
            let then = &mut transaction.then;
            then.retain(|write| matches!(write, Write::Put(Key::Document, _, _)));
        }
        match self.group.commit(&transaction) {
            _ if fault.is_some() => CommitOutcome::Unknown("no answer".into()),
            Ok(done) => CommitOutcome::Done(done),
            Err(StoreError::LeaseGone { .. }) => CommitOutcome::LeaseGone,
            Err(error) => CommitOutcome::Failed(error.to_string()),
        }
    }

    fn fault(&mut self) -> Option<Fault> {
        self.calls += 1;
        self.faults.pop_front().flatten()
    }

    fn show(&mut self, what: &str) -> bool {
        self.seen.push(what.to_owned());
        false
    }

    /// Runs on, through reboots, until nothing has happened for a day.
    pub(super) fn live(&mut self) {
        self.live_until(Duration::from_secs(24 * 3600), |_| false);
    }

    /// The same, until something is true.
    pub(super) fn live_until(&mut self, time: Duration, until: impl Fn(&Self) -> bool) -> bool {
        let end = self.clock + time;
        while self.clock < end {
            let reboots = self.reboots;
            let left = end - self.clock;
            let down = self.run(left, |bench| {
                until(bench) || (bench.shuts_down && bench.reboots > reboots)
            });
            if until(self) {
                return true;
            }
            if down {
                self.power_cycle();
            }
        }
        false
    }
}

fn agent(options: &Options, boot: u32, version: u8) -> Agent {
    let identity = Identity {
        id: Bench::id(),
        boot_id: format!("boot{boot}"),
        version: version.to_string(),
    };
    Agent::new(identity, options.clone())
}
