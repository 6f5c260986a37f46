//! Some machines, their store, and everything that can happen to them next.

mod alike;

use std::sync::Arc;
use std::time::Duration;

use alike::PRESENT;

use super::store::{ENDED, Flaw, Store};
use crate::coordinator::{
    Action, Agent, Applied, CommitOutcome, Event, Health, Identity, Lock, Moment, Options, Window,
};
use crate::machine_id::MachineId;
use crate::semaphore::{
    Compare, Document, Halt, Key, LeaseId, Look, Mode, Phase, Record, Snapshot, Transaction,
    Versioned, Write, failures, places,
};
use crate::store::Committed;

/// Every event comes at this time, or an hour later.
const NOW: Duration = Duration::from_secs(1_000_000);
const LONG: Duration = Duration::from_secs(3600);
/// Boot ids: this boot, and any one before it.
const THIS: &str = "this";
const BEFORE: &str = "before";

/// One state.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct World {
    pub(super) store: Store,
    pub(super) machines: Vec<Machine>,
    /// A transaction that nobody waits for any more; it may still arrive.
    late: Option<Late>,
    /// How many more things may go wrong.
    faults: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Machine {
    id: MachineId,
    agent: Agent,
    request: Option<Request>,
    timer: bool,
    running: u8,
    applied: Option<u8>,
    /// The version that the updater finds.
    latest: u8,
    window: bool,
    /// The machine is off.
    down: bool,
    /// The shutdown was asked for and may come.
    asked: bool,
    /// It went down with a place, and has not been well since.
    unproven: bool,
    /// An operator took its place, so that nothing is promised any more.
    evicted: bool,
    /// The last commit was its fence, and was right.
    permit: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Late {
    who: usize,
    transaction: Transaction,
    /// Whether its machine might have released its place when it was sent.
    free: bool,
}

/// Who changes the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Actor {
    Machine(usize),
    /// A machine, some time ago; see [`Late::free`].
    Late(usize, bool),
    Operator,
    Time,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Request {
    Load(Look),
    Commit(Transaction),
}

/// One thing that happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    Start,
    Load,
    LoadFails,
    Commit,
    /// It arrives, and its answer is lost.
    AnswerLost,
    /// Neither arrives.
    CommitLost,
    /// It arrives when nobody waits any more.
    CommitLate,
    LateArrives,
    CommitSlow,
    Changed,
    Timer,
    TimerLong,
    HooksFail,
    Refused,
    Sick,
    UpdaterSilent,
    Shutdown,
    Boot,
    Rollback,
    PowerLoss,
    Killed,
    WindowCloses,
    WindowOpens,
    UpdateGone,
    UpdateApplied,
    LeaseLost,
    DeadLeaseEnds,
    DeadlineEnds,
    Unlock,
    UnlockByOldTool,
    GivenUp,
    Halt,
    ClearHalt,
}

/// Something that must never happen, and did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Broken {
    TooMany,
    Sum,
    PlaceWhileHalted,
    RebootWithoutPermit,
    DownWithoutPlace,
    PlaceTaken,
    FreedUnproven,
    FreedBeforeReboot,
    /// No request, no timer.
    Stuck,
    TwoRequests,
    /// No way leads on to where everybody has rebooted.
    Trapped,
    /// Requests follow each other for ever, without a wait.
    Restless,
}

/// What happened to whom, whether it is a fault, and what came of it.
pub(super) struct Next {
    pub(super) who: usize,
    pub(super) what: What,
    pub(super) fault: bool,
    pub(super) world: Result<World, Broken>,
}

impl World {
    /// All machines run version 1, and version 2 is applied.
    pub(super) fn new(machines: usize, max: i64, faults: u8, flaw: Flaw) -> Self {
        let document = Versioned {
            value: Some(Arc::new(Document::new(max, []))),
            created: PRESENT,
            modified: PRESENT,
        };
        let now = Snapshot {
            document,
            members: 3,
            ..Snapshot::default()
        };
        let mut world = Self {
            store: Store { now, flaw },
            machines: (0..machines).map(Machine::new).collect(),
            late: None,
            faults,
        };
        for who in 0..machines {
            let mut started = Vec::new();
            let mut round = Round::new(who, What::Start, &mut started);
            round.deliver(world, Event::Started, NOW);
            world = started.swap_remove(0).world.unwrap();
        }
        world.canonical();
        world
    }

    /// Everybody runs the newest version and nobody has a place.
    pub(super) fn is_done(&self) -> bool {
        self.machines.iter().all(|machine| {
            !machine.down && machine.agent.is_idle() && machine.running == machine.latest
        }) && self.store.now.places().holders.is_empty()
    }

    /// Everything that can happen next.
    pub(super) fn next(&self) -> Vec<Next> {
        let mut out = Vec::new();
        for who in 0..self.machines.len() {
            if self.machines[who].down {
                self.off(who, &mut out);
            } else {
                self.on(who, &mut out);
            }
            self.around(who, &mut out);
        }
        self.operators(&mut out);
        if let Some(late) = &self.late {
            let mut round = Round::new(late.who, What::LateArrives, &mut out);
            let mut world = self.clone();
            world.late = None;
            world.store.commit(&late.transaction);
            let broken = world.changed(self, Actor::Late(late.who, late.free));
            round.end(world, broken);
        }
        for next in &mut out {
            if let Ok(world) = &mut next.world {
                match world.crooked() {
                    Some(broken) => next.world = Err(broken),
                    None => world.canonical(),
                }
            }
        }
        out
    }

    fn off(&self, who: usize, out: &mut Vec<Next>) {
        let mut up = self.clone();
        let machine = &mut up.machines[who];
        machine.down = false;
        let target = machine.applied.take();
        if let (Some(_), Some(mut old)) = (target, up.fault()) {
            // The version is not offered again, only a newer one.
            old.machines[who].latest += 1;
            Round::fault(who, What::Rollback, out).restart(old);
        }
        let machine = &mut up.machines[who];
        machine.running = target.unwrap_or(machine.running);
        if machine.unproven && machine.running < machine.latest {
            // It failed to come up with that version, as far as it can tell.
            machine.latest += 1;
        }
        Round::new(who, What::Boot, out).restart(up);
    }

    fn on(&self, who: usize, out: &mut Vec<Next>) {
        let machine = &self.machines[who];
        match &machine.request {
            Some(Request::Load(look)) => {
                let snapshot = Arc::new(self.store.load(look));
                let answered = self.answered(who);
                Round::new(who, What::Load, out).deliver(
                    answered.clone(),
                    Event::Loaded(Ok(snapshot)),
                    NOW,
                );
                if let Some(world) = answered.fault() {
                    let answer = Event::Loaded(Err("no".into()));
                    Round::fault(who, What::LoadFails, out).deliver(world, answer, NOW);
                }
            }
            Some(Request::Commit(transaction)) => self.commit(who, transaction, out),
            None => {}
        }
        if machine.timer && machine.request.is_none() {
            let mut woken = self.clone();
            woken.machines[who].timer = false;
            Round::new(who, What::Timer, out).deliver(woken.clone(), Event::Woke, NOW);
            // A shutdown that was asked for and does not come is a fault.
            let waits = if machine.asked {
                woken.fault()
            } else {
                Some(woken)
            };
            if let Some(mut world) = waits {
                world.machines[who].asked = false;
                let mut round = Round::new(who, What::TimerLong, out);
                round.fault = machine.asked;
                round.deliver(world, Event::Woke, NOW + LONG);
            }
        }
        if machine.agent.is_idle() && self.store.now.holders.contains_key(&machine.id) {
            Round::new(who, What::Changed, out).deliver(self.clone(), Event::Changed, NOW);
        }
        if machine.asked {
            Round::new(who, What::Shutdown, out).power_off(self.clone());
        }
        if let Some(faulty) = self.fault() {
            for before in faulty.interrupted(who) {
                let (world, broken) = before;
                if let Some(broken) = broken {
                    Round::fault(who, What::Killed, out).end(world, Some(broken));
                    continue;
                }
                Round::fault(who, What::Killed, out).restart_process(world.clone());
                Round::fault(who, What::PowerLoss, out).power_off(world);
            }
            let mut world = faulty.clone();
            world.end_lease(Machine::lease(who));
            Round::fault(who, What::LeaseLost, out).deliver(world, Event::LeaseLost, NOW);
            if machine.applied.is_some() {
                let mut world = faulty;
                world.machines[who].applied = None;
                Round::fault(who, What::UpdateGone, out).deliver(world, Event::UpdaterChanged, NOW);
            }
        }
        if machine.applied.is_none() && machine.running < machine.latest {
            let mut world = self.clone();
            world.machines[who].applied = Some(machine.latest);
            Round::new(who, What::UpdateApplied, out).deliver(world, Event::UpdaterChanged, NOW);
        }
    }

    fn commit(&self, who: usize, transaction: &Transaction, out: &mut Vec<Next>) {
        let answered = self.answered(who);
        let mut written = answered.clone();
        let done = written.store.commit(transaction);
        let broken = written.changed(self, Actor::Machine(who));
        let fence = transaction.then.iter().any(|write| {
            matches!(write, Write::Put(Key::Holder(id), Record::Holder(holder), _)
                if *id == self.machines[who].id && holder.phase == Phase::Rebooting)
        });
        let id = &self.machines[who].id;
        let before = &self.store.now;
        let mine = before.holders.get(id).is_some_and(|record| {
            let token = Compare::Created(Key::Holder(id.clone()), record.created);
            transaction.when.contains(&token)
        });
        let right = before.halt.modified == 0 && before.places().holds(id) && mine;
        let answer = match done {
            Some(succeeded) => CommitOutcome::Done(Committed {
                succeeded,
                revision: written.store.now.revision,
            }),
            None => CommitOutcome::LeaseGone,
        };
        let mut told = written.clone();
        told.machines[who].permit = fence && right && done == Some(true);
        let mut round = Round::new(who, What::Commit, out);
        if broken.is_some() {
            round.end(told, broken);
            return;
        }
        round.deliver(told.clone(), Event::Committed(answer.clone()), NOW);
        let unknown = || {
            Event::Committed(if self.store.flaw == Flaw::InventsAnswers {
                CommitOutcome::Done(Committed {
                    succeeded: true,
                    revision: 0,
                })
            } else {
                CommitOutcome::Unknown("no answer".into())
            })
        };
        if fence && let Some(world) = told.fault() {
            let event = Event::Committed(answer);
            Round::fault(who, What::CommitSlow, out).deliver(world, event, NOW + LONG);
        }
        if let Some(world) = written.fault() {
            Round::fault(who, What::AnswerLost, out).deliver(world, unknown(), NOW);
        }
        if let Some(mut world) = answered.fault() {
            Round::fault(who, What::CommitLost, out).deliver(world.clone(), unknown(), NOW);
            if world.late.is_none() {
                world.late = Some(self.late(who, transaction));
                Round::fault(who, What::CommitLate, out).deliver(world, unknown(), NOW);
            }
        }
    }

    /// What happens whether the machine is on or off.
    fn around(&self, who: usize, out: &mut Vec<Next>) {
        let machine = &self.machines[who];
        let dead = Machine::dead_lease(who);
        if self
            .store
            .now
            .queue
            .iter()
            .any(|(_, ticket)| ticket.lease == dead)
        {
            let mut world = self.clone();
            world.end_lease(dead);
            Round::new(who, What::DeadLeaseEnds, out).end(world, None);
        }
        if self.store.now.deadlines.contains(&machine.id)
            && let Some(mut world) = self.fault()
        {
            world.store.end_deadline(&machine.id);
            let broken = world.changed(self, Actor::Time);
            Round::fault(who, What::DeadlineEnds, out).end(world, broken);
        }
        if !machine.window {
            let mut world = self.clone();
            world.machines[who].window = true;
            Round::new(who, What::WindowOpens, out).end(world, None);
        } else if !machine.down
            && let Some(mut world) = self.fault()
        {
            world.machines[who].window = false;
            Round::fault(who, What::WindowCloses, out).end(world, None);
        }
    }

    fn operators(&self, out: &mut Vec<Next>) {
        let now = &self.store.now;
        if now.halt.modified != 0
            && let Some(transaction) = failures::clear_halt(now)
        {
            let mut world = self.clone();
            world.store.commit(&transaction);
            Round::new(0, What::ClearHalt, out).end(world, None);
        }
        let Some(faulty) = self.fault() else { return };
        let halt = Halt {
            by: String::new(),
            why: String::new(),
            at: 0,
        };
        if let Some(transaction) = failures::halt(now, halt) {
            let mut world = faulty.clone();
            world.store.commit(&transaction);
            Round::fault(0, What::Halt, out).end(world, None);
        }
        for (who, machine) in self.machines.iter().enumerate() {
            let id = &machine.id;
            let mut do_it = |what, transaction: Option<Transaction>| {
                if let Some(transaction) = transaction {
                    let mut world = faulty.clone();
                    world.store.commit(&transaction);
                    let broken = world.changed(self, Actor::Operator);
                    Round::fault(who, what, out).end(world, broken);
                }
            };
            do_it(What::Unlock, places::unlock(now, id, "unlocked", 0));
            do_it(What::GivenUp, failures::unlock_lost(now, id, 0));
            // The original reads and writes nothing but the document.
            let mut document = now.places().clone();
            let old_tool = document.unlock(id).is_ok().then(|| Transaction {
                when: vec![Compare::Modified(Key::Document, now.document.modified)],
                then: vec![Write::Put(
                    Key::Document,
                    Record::Document(document),
                    LeaseId::default(),
                )],
                otherwise: Vec::new(),
            });
            do_it(What::UnlockByOldTool, old_tool);
        }
    }

    /// The same world with one fault less to come; `None`: there were enough.
    fn fault(&self) -> Option<Self> {
        let faults = self.faults.checked_sub(1)?;
        Some(Self {
            faults,
            ..self.clone()
        })
    }

    /// The request of `who` is no longer under way.
    fn answered(&self, who: usize) -> Self {
        let mut world = self.clone();
        world.machines[who].request = None;
        world
    }

    fn late(&self, who: usize, transaction: &Transaction) -> Late {
        let machine = &self.machines[who];
        Late {
            who,
            transaction: transaction.clone(),
            free: !machine.asked && !machine.unproven,
        }
    }

    /// All that can have become of a request whose process is no more.
    fn interrupted(&self, who: usize) -> Vec<(Self, Option<Broken>)> {
        let without = self.answered(who);
        // That it arrives much later, at a process that knows nothing of it, is
        // left out: see the module.
        let mut all = vec![(without.clone(), None)];
        if let Some(Request::Commit(transaction)) = &self.machines[who].request {
            let mut written = without;
            if written.store.commit(transaction).is_some() {
                let broken = written.changed(self, Actor::Machine(who));
                all.push((written, broken));
            }
        }
        all
    }

    /// A lease of tickets ends; what was to be put under it cannot be put.
    fn end_lease(&mut self, lease: LeaseId) {
        self.store.end_lease(lease);
        self.rename_lease(lease, ENDED);
    }

    fn rename_lease(&mut self, old: LeaseId, new: LeaseId) {
        for (_, ticket) in Arc::make_mut(&mut self.store.now.queue) {
            if ticket.lease == old {
                Arc::make_mut(ticket).lease = new;
            }
        }
        for transaction in self.transactions() {
            for write in transaction
                .then
                .iter_mut()
                .chain(&mut transaction.otherwise)
            {
                if let Write::Put(_, record, lease) = write
                    && *lease == old
                {
                    *lease = new;
                    if let Record::Ticket(ticket) = record {
                        ticket.lease = new;
                    }
                }
            }
        }
    }

    fn transactions(&mut self) -> impl Iterator<Item = &mut Transaction> {
        let requests = self.machines.iter_mut().filter_map(|machine| {
            let Some(Request::Commit(transaction)) = &mut machine.request else {
                return None;
            };
            Some(transaction)
        });
        requests.chain(self.late.as_mut().map(|late| &mut late.transaction))
    }

    /// What a change of the store by `actor` must not have done.
    fn changed(&mut self, before: &Self, actor: Actor) -> Option<Broken> {
        let (old, new) = (before.store.now.places(), self.store.now.places());
        for (who, machine) in self.machines.iter_mut().enumerate() {
            let id = &machine.id;
            match (old.holds(id), new.holds(id)) {
                (false, true) => {
                    machine.evicted = false;
                    machine.unproven = false;
                    let places = usize::try_from(new.max).unwrap();
                    if new.holders.len() > places {
                        return Some(Broken::TooMany);
                    }
                    if before.store.now.halt.modified != 0 {
                        return Some(Broken::PlaceWhileHalted);
                    }
                }
                (true, false) if matches!(actor, Actor::Operator | Actor::Late(_, true)) => {
                    let own = matches!(actor, Actor::Late(other, _) if other == who);
                    if !own && actor != Actor::Operator && !Self::is_dead(&before.store, id) {
                        return Some(Broken::PlaceTaken);
                    }
                    machine.evicted = true;
                    machine.unproven = false;
                }
                (true, false) if Self::is_dead(&before.store, id) => {}
                (true, false) => {
                    if !matches!(actor, Actor::Machine(other) | Actor::Late(other, _) if other == who)
                    {
                        return Some(Broken::PlaceTaken);
                    }
                    if machine.down || machine.asked {
                        return Some(Broken::FreedBeforeReboot);
                    }
                    if machine.unproven {
                        return Some(Broken::FreedUnproven);
                    }
                }
                _ => {}
            }
        }
        None
    }

    /// Whether a place was given to somebody who is gone.
    fn is_dead(store: &Store, id: &MachineId) -> bool {
        let record = store.now.holders.get(id);
        let holder = record.and_then(|record| record.value.as_ref());
        let Some(granted) = holder.filter(|holder| holder.phase == Phase::Granted) else {
            return false;
        };
        let mut tickets = store
            .now
            .queue
            .iter()
            .map(|(key, _)| Key::Ticket(key.clone()).name());
        !tickets.any(|ticket| granted.ticket.as_ref() == Some(&ticket))
    }

    /// What is wrong in any state.
    fn crooked(&self) -> Option<Broken> {
        let places = self.store.now.places();
        if !places.is_sound() {
            return Some(Broken::Sum);
        }
        for machine in &self.machines {
            let away = machine.asked || machine.unproven;
            if away && !machine.evicted && !places.holds(&machine.id) {
                return Some(Broken::DownWithoutPlace);
            }
            let moves = machine.down
                || machine.timer
                || machine.request.is_some()
                || machine.agent.is_idle();
            if !moves {
                return Some(Broken::Stuck);
            }
        }
        None
    }
}

impl Machine {
    fn new(who: usize) -> Self {
        Self {
            id: MachineId::new(["a", "b", "c", "d"][who]),
            agent: Self::agent(who, 1),
            request: None,
            timer: false,
            running: 1,
            applied: Some(2),
            latest: 2,
            window: true,
            down: false,
            asked: false,
            unproven: false,
            evicted: false,
            permit: false,
        }
    }

    fn agent(who: usize, version: u8) -> Agent {
        let identity = Identity {
            id: MachineId::new(["a", "b", "c", "d"][who]),
            boot_id: THIS.to_owned(),
            version: version.to_string(),
        };
        let options = Options {
            stays_up: false,
            lock: Lock::Semaphore,
            recover: false,
            rank: 100,
            mode: Mode::Firmware,
            warning: Duration::ZERO,
            soak: Duration::ZERO,
            deadline: Duration::from_secs(1800),
        };
        Agent::new(identity, options)
    }

    /// The lease of the tickets of its process, of processes before it, and of
    /// its deadline.
    fn lease(who: usize) -> LeaseId {
        LeaseId(100 + i64::try_from(who).unwrap())
    }

    fn dead_lease(who: usize) -> LeaseId {
        LeaseId(200 + i64::try_from(who).unwrap())
    }

    fn deadline_lease(who: usize) -> LeaseId {
        LeaseId(300 + i64::try_from(who).unwrap())
    }
}

/// Carries one event through a machine until it waits for others.
struct Round<'a> {
    who: usize,
    what: What,
    fault: bool,
    out: &'a mut Vec<Next>,
}

impl<'a> Round<'a> {
    fn new(who: usize, what: What, out: &'a mut Vec<Next>) -> Self {
        Self {
            who,
            what,
            fault: false,
            out,
        }
    }

    fn fault(who: usize, what: What, out: &'a mut Vec<Next>) -> Self {
        Self {
            fault: true,
            ..Self::new(who, what, out)
        }
    }

    fn end(&mut self, world: World, broken: Option<Broken>) {
        self.out.push(Next {
            who: self.who,
            what: self.what,
            fault: self.fault,
            world: broken.map_or(Ok(world), Err),
        });
    }

    /// The same, and something goes wrong on the machine too.
    fn goes_wrong(&mut self, world: &World, what: What, event: Event, now: Duration) {
        if let Some(world) = world.fault() {
            let mut round = Round::fault(self.who, what, self.out);
            round.deliver(world, event, now);
        }
    }

    /// The machine goes off.
    fn power_off(&mut self, mut world: World) {
        let who = self.who;
        let machine = &mut world.machines[who];
        let id = machine.id.clone();
        machine.down = true;
        machine.asked = false;
        machine.timer = false;
        machine.request = None;
        // Until it comes back it is nobody.
        machine.agent = Machine::agent(who, 0);
        let record = world.store.now.holders.get(&id);
        let holder = record.and_then(|record| record.value.as_ref());
        let confirmed = holder.is_some_and(|holder| holder.phase != Phase::Granted);
        let held = world.store.now.places().holds(&id);
        world.machines[who].unproven = confirmed && held;
        world.rename_lease(Machine::lease(who), Machine::dead_lease(who));
        world.boot_is_over(&id);
        self.end(world, None);
    }

    /// Its process begins again.
    fn restart_process(&mut self, mut world: World) {
        world.rename_lease(Machine::lease(self.who), Machine::dead_lease(self.who));
        self.restart(world);
    }

    fn restart(&mut self, mut world: World) {
        let machine = &mut world.machines[self.who];
        machine.agent = Machine::agent(self.who, machine.running);
        machine.timer = false;
        machine.request = None;
        self.deliver(world, Event::Started, NOW);
    }

    fn deliver(&mut self, mut world: World, event: Event, now: Duration) {
        let who = self.who;
        let machine = &mut world.machines[who];
        let moment = Moment {
            monotonic: now,
            wall: 0,
            roll: 0,
            window: if machine.window {
                Window::Open
            } else {
                Window::Closed(None)
            },
        };
        let actions = machine.agent.step(event, moment);
        let permit = std::mem::take(&mut machine.permit);
        let mut local = None;
        let mut requests = 0;
        for action in actions {
            let machine = &mut world.machines[who];
            match action {
                Action::Wake(_) => machine.timer = true,
                Action::Load(look) => machine.request = Some(Request::Load(look)),
                Action::Commit(transaction) => {
                    machine.request = Some(Request::Commit(transaction));
                }
                Action::Revoke(lease) if lease == Machine::deadline_lease(who) => {
                    let id = machine.id.clone();
                    Arc::make_mut(&mut world.store.now.deadlines).remove(&id);
                    world.rename_lease(lease, ENDED);
                    continue;
                }
                Action::Revoke(lease) => {
                    world.end_lease(lease);
                    continue;
                }
                Action::Lease(_)
                | Action::ReadUpdater
                | Action::WarnUsers(_)
                | Action::Drain { .. }
                | Action::CheckHealth { .. }
                | Action::Reboot(_) => local = Some(action),
                Action::GiveUpReboot
                | Action::TellUsers
                | Action::KeepAlive(_)
                | Action::Watch(..)
                | Action::Publish(_)
                | Action::Remember(_)
                | Action::Say(..) => continue,
                Action::FleetLock(_) => unreachable!(),
            }
            requests += 1;
        }
        let machine = &mut world.machines[who];
        let asks = usize::from(local.is_some()) + usize::from(machine.request.is_some());
        if requests > 1 && asks > 1 {
            self.end(world, Some(Broken::TwoRequests));
            return;
        }
        if asks > 0 {
            // It may fire before the answer, and is for nothing then.
            machine.timer = false;
        }
        match local {
            None => {
                world.forget(who, now);
                self.end(world, None);
            }
            Some(action) => self.answer(world, &action, permit, now),
        }
    }

    /// Machines answer at once: nobody else sees when.
    fn answer(&mut self, mut world: World, action: &Action, permit: bool, now: Duration) {
        let who = self.who;
        let no = || "no".to_owned();
        let machine = &mut world.machines[who];
        match action {
            Action::Lease(ttl) => {
                let lease = if *ttl == Duration::from_secs(90) {
                    Machine::lease(who)
                } else {
                    Machine::deadline_lease(who)
                };
                self.deliver(world, Event::Leased(Ok(lease)), now);
            }
            Action::ReadUpdater => {
                let applied = machine.applied.map(|version| Applied {
                    version: version.to_string(),
                    soft: false,
                });
                self.goes_wrong(&world, What::UpdaterSilent, Event::Updater(Err(no())), now);
                self.deliver(world, Event::Updater(Ok(applied)), now);
            }
            Action::WarnUsers(_) => self.deliver(world, Event::UsersWarned(false), now),
            Action::Drain { .. } => {
                self.goes_wrong(&world, What::HooksFail, Event::Drained(Err(no())), now);
                self.deliver(world, Event::Drained(Ok(())), now);
            }
            Action::CheckHealth { from, .. } => {
                let sick = Event::Health(Health::NotYet(no()));
                self.goes_wrong(&world, What::Sick, sick, now);
                let machine = &mut world.machines[who];
                if *from != machine.running.to_string() {
                    machine.unproven = false;
                }
                self.deliver(world, Event::Health(Health::Good), now);
            }
            Action::Reboot(_) if !permit => self.end(world, Some(Broken::RebootWithoutPermit)),
            Action::Reboot(_) => {
                self.goes_wrong(&world, What::Refused, Event::Rebooting(Err(no())), now);
                world.machines[who].asked = true;
                self.deliver(world, Event::Rebooting(Ok(())), now);
            }
            other => unreachable!("{other:?}"),
        }
    }
}

/// Prints the states on a way.
pub(super) fn replay(mut world: World, way: &[usize]) {
    for index in way {
        let next = world.next().swap_remove(*index);
        println!("{} {:?}", next.who, next.what);
        match next.world {
            Ok(next) => world = next,
            Err(broken) => {
                println!("   {broken:?}");
                return;
            }
        }
        let places = world.store.now.places();
        println!(
            "   {} halt {} queue {:?}",
            places.write(),
            world.store.now.halt.modified,
            world
                .store
                .now
                .queue
                .iter()
                .map(|(key, _)| key.id.as_str())
                .collect::<Vec<_>>()
        );
        for machine in &world.machines {
            println!(
                "   {} {} v{} {:?} request {:?} {}{}{}{}",
                machine.id,
                machine.agent.view().stage,
                machine.running,
                world
                    .store
                    .now
                    .holders
                    .get(&machine.id)
                    .and_then(|record| record.value.as_ref())
                    .map(|holder| (holder.phase, holder.to.clone(), holder.boot_id.clone())),
                match &machine.request {
                    None => "-",
                    Some(Request::Load(_)) => "load",
                    Some(Request::Commit(_)) => "commit",
                },
                if machine.down { "down " } else { "" },
                if machine.asked { "asked " } else { "" },
                if machine.unproven { "unproven " } else { "" },
                if machine.timer { "timer " } else { "" },
            );
        }
    }
}
