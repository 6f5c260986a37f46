//! [`Agent`]: where the machine stands, and the steps between.

#[cfg(test)]
pub(super) mod canonical;

use std::sync::Arc;
use std::time::Duration;

use super::pace::{Pace, spread};
use super::{
    Action, Applied, CommitOutcome, Event, Health, Identity, Lock, Moment, Options, Published,
    Tone, Window,
};
use crate::semaphore::places::{self, Acquire, Fenced, Place, Request};
use crate::semaphore::{
    Holder, Key, Kind, LeaseId, Look, Mode, Phase, Record, Snapshot, TicketKey, Write, failures,
};
use crate::window::duration;

/// A ticket falls out of the queue when its owner has been silent for so long.
const TICKET_TTL: Duration = Duration::from_secs(90);
/// How old a deadline may be before it is set: it starts with its lease.
const FRESH: Duration = Duration::from_secs(30);
/// From reading the group to the reboot call. More, and the permission is void.
const FENCE_LIMIT: Duration = Duration::from_secs(10);
/// The shutdown must begin so soon after the system took the request.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(60);
/// And must have ended so soon after it began.
const SHUTDOWN_END: Duration = Duration::from_secs(45 * 60);
/// Who waits looks again so often even if nothing is heard.
const BACKSTOP: Duration = Duration::from_secs(5 * 60);
/// Who could be served waits so long for the first in line to do it.
const STAND_IN: Duration = Duration::from_millis(200);
/// At least so many are served by one transaction.
const SERVED_TOGETHER: usize = 32;
/// And so often, who has nothing to do: for machines that are late, and for
/// signals that were lost.
const IDLE_LOOK: Duration = Duration::from_secs(30 * 60);
/// A window is looked at so often, since clocks may be set and machines sleep.
const WINDOW_LOOK: Duration = Duration::from_secs(5 * 60);
/// Between two checks of a new system.
const HEALTH_LOOK: Duration = Duration::from_secs(10);
/// Between two checks of one that has failed.
const FAILED_LOOK: Duration = Duration::from_secs(2 * 60);

/// One machine's agent.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Agent {
    options: Options,
    identity: Identity,
    stage: Stage,
    /// The request under way.
    pending: Option<Pending>,
    /// The updater may have something new.
    updater_changed: bool,
    /// What waits for a reboot, when last read.
    applied: Option<Applied>,
    /// Nonces are numbered within a process.
    nonces: u32,
    store_pace: Pace,
    refused_pace: Pace,
    reboot_pace: Pace,
    /// No reboot is tried before this.
    not_before: Duration,
    /// A watched key changed and the group has not been read since.
    keys_changed: bool,
    /// A place without a record may be one that an agent has taken, and not an
    /// operator's.
    may_hold: bool,
    /// For when users have been told to expect the reboot.
    announced: Option<Duration>,
    /// The process is about to end.
    stopping: bool,
    /// The last reason that was told, so that it is not told again and again.
    said: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Stage {
    /// The process has not begun.
    New,
    /// Is there a place from before?
    Recover,
    /// The machine is back with its place.
    Verify(Verify),
    /// The place goes back.
    Release { token: Option<i64>, how: How },
    /// Nothing to do but listen to the updater.
    Idle,
    /// An update is applied and the time is not right.
    Due,
    /// Users have been warned.
    Warned { until: Duration },
    /// A place is wanted.
    Queue(Queue),
    /// The place is that of an earlier process of this boot. Nobody keeps its
    /// deadline, so it gets another one first.
    Resume {
        token: i64,
        deadline: Option<(LeaseId, Duration)>,
    },
    /// The place is ours; the programs before the reboot run.
    Drain { token: Option<i64> },
    /// The last look.
    Fence(Fence),
    /// The reboot was asked for.
    Reboot {
        token: Option<i64>,
        begun: bool,
        asked: Duration,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Verify {
    /// None: a place without a record, or a FleetLock server's.
    place: Option<Place>,
    /// The record says so.
    noted: bool,
    begun: Duration,
    healthy_since: Option<Duration>,
    failed: bool,
    /// What is to be written next, if the last look found a failure.
    reason: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum How {
    /// The new system is proven.
    Released,
    /// The machine did not reboot.
    GivenBack,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Queue {
    nonce: String,
    lease: Option<LeaseId>,
    deadline: Option<(LeaseId, Duration)>,
    ticket: Option<TicketKey>,
    impatient: bool,
    withdrawing: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Fence {
    token: Option<i64>,
    deadline: Option<(LeaseId, Duration)>,
    /// When the group was read for the commit that is under way.
    looked: Duration,
    /// That commit is about others, who are late.
    marking: bool,
}

/// What the answer under way is an answer to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Pending {
    Load,
    Commit,
    TicketLease,
    DeadlineLease,
    Updater,
    Users,
    Drain,
    Health,
    Reboot,
    FleetLock,
}

/// What an agent shows of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// Name of the stage: `idle`, `queued`, `draining`, ….
    pub stage: &'static str,
    /// The last thing worth telling.
    pub said: String,
    /// The version that waits for a reboot.
    pub applied: Option<String>,
}

impl Agent {
    /// An agent at its start; [`Event::Started`] sets it going.
    #[must_use]
    pub fn new(identity: Identity, options: Options) -> Self {
        Self {
            options,
            identity,
            stage: Stage::New,
            pending: None,
            updater_changed: true,
            applied: None,
            nonces: 0,
            store_pace: Pace::STORE,
            refused_pace: Pace::REFUSED,
            reboot_pace: Pace::REBOOT,
            not_before: Duration::ZERO,
            keys_changed: false,
            may_hold: true,
            announced: None,
            stopping: false,
            said: String::new(),
        }
    }

    /// Takes one event and says what to do.
    pub fn step(&mut self, event: Event, moment: Moment) -> Vec<Action> {
        let mut out = Vec::new();
        self.take(event, moment, &mut out);
        out
    }

    /// What it shows of itself.
    #[must_use]
    pub fn view(&self) -> View {
        View {
            stage: match &self.stage {
                Stage::New | Stage::Recover => "starting",
                Stage::Verify(verify) if verify.failed => "failed",
                Stage::Verify(_) => "verifying",
                Stage::Release { .. } => "releasing",
                Stage::Idle => "idle",
                Stage::Due => "waiting",
                Stage::Warned { .. } => "warned",
                Stage::Queue(_) => "queued",
                Stage::Resume { .. } | Stage::Drain { .. } => "draining",
                Stage::Fence(_) => "fencing",
                Stage::Reboot { .. } => "rebooting",
            },
            said: self.said.clone(),
            applied: self.applied.as_ref().map(|applied| applied.version.clone()),
        }
    }

    fn take(&mut self, event: Event, moment: Moment, out: &mut Vec<Action>) {
        // An answer that nobody waits for belongs to a request that was given up.
        let expected = answers(&event);
        let unasked = expected
            .is_some_and(|kinds| !self.pending.is_some_and(|pending| kinds.contains(&pending)));
        if unasked {
            if let Event::Leased(Ok(lease)) = event {
                out.push(Action::Revoke(lease));
            }
            return;
        }
        let pending = if expected.is_some() {
            self.pending.take()
        } else {
            None
        };
        match event {
            Event::Started => self.start(moment, out),
            Event::Woke => {
                if self.pending.is_none() {
                    // With a question still open it was only time to ask again.
                    if self.stage == Stage::Idle && !self.updater_changed {
                        self.look_around();
                    }
                    self.go_on(moment, out);
                }
            }
            Event::Changed => {
                // Something has been written in this machine's name.
                self.keys_changed = true;
                if self.pending.is_none() {
                    self.go_on(moment, out);
                }
            }
            Event::Stopping => self.stop(moment, out),
            Event::UpdaterChanged => {
                self.updater_changed = true;
                // Elsewhere it is read before it matters.
                let listens = match &self.stage {
                    Stage::Idle | Stage::Due | Stage::Queue(_) => true,
                    Stage::Verify(verify) => verify.failed,
                    _ => false,
                };
                if self.pending.is_none() && listens {
                    self.ask(Pending::Updater, Action::ReadUpdater, out);
                }
            }
            Event::LeaseLost => {
                if let Stage::Queue(queue) = &mut self.stage {
                    queue.lease = None;
                    queue.ticket = None;
                    if self.pending.is_none() {
                        self.go_on(moment, out);
                    }
                }
            }
            Event::ShuttingDown => {
                if let Stage::Reboot { begun, .. } = &mut self.stage {
                    *begun = true;
                    out.push(Action::Wake(SHUTDOWN_END));
                }
            }
            Event::Loaded(Err(reason)) => self.store_failed(&reason, moment, out),
            Event::Loaded(Ok(snapshot)) => self.loaded(&snapshot, moment, out),
            Event::Committed(CommitOutcome::Done(done)) => {
                self.store_pace.reset();
                self.committed(done.succeeded, moment, out);
            }
            Event::Committed(CommitOutcome::LeaseGone) => {
                match &mut self.stage {
                    Stage::Queue(queue) => {
                        queue.lease = None;
                        queue.ticket = None;
                        queue.deadline = None;
                    }
                    Stage::Fence(fence) => fence.deadline = None,
                    Stage::Resume { deadline, .. } => *deadline = None,
                    _ => {}
                }
                self.go_on(moment, out);
            }
            // Nothing is assumed of either: the group is read again.
            Event::Committed(CommitOutcome::Failed(reason) | CommitOutcome::Unknown(reason)) => {
                self.store_failed(&reason, moment, out);
            }
            Event::Leased(Err(reason)) => self.store_failed(&reason, moment, out),
            Event::Leased(Ok(lease)) => self.leased(lease, pending, moment, out),
            Event::Updater(answer) => self.updater(answer, moment, out),
            Event::Inhibited(reason) => {
                let wait = self.refused_pace.next(moment.roll);
                self.say(Tone::Warning, reason, out);
                self.stage = Stage::Due;
                out.push(Action::Wake(wait));
            }
            Event::UsersWarned(anybody) => {
                let wait = if anybody {
                    self.options.warning
                } else {
                    Duration::ZERO
                };
                if anybody {
                    self.say(
                        Tone::Info,
                        format!("Logins detected, delaying reboot for {}.", go(wait)),
                        out,
                    );
                }
                let until = moment.monotonic + wait;
                self.announced = Some(until);
                self.stage = Stage::Warned { until };
                self.go_on(moment, out);
            }
            Event::Drained(Ok(())) => {
                out.push(Action::KeepAlive(None));
                if let Stage::Drain { token } = self.stage {
                    self.stage = Stage::Fence(Fence::new(token));
                }
                self.ask(Pending::Updater, Action::ReadUpdater, out);
            }
            Event::Drained(Err(reason)) => {
                self.give_back(format!("not ready to reboot: {reason}"), moment, out);
            }
            Event::Health(health) => self.health(health, moment, out),
            Event::Rebooting(Ok(())) => out.push(Action::Wake(SHUTDOWN_LIMIT)),
            // The answer was lost in the shutdown.
            Event::Rebooting(Err(_)) if matches!(self.stage, Stage::Reboot { begun: true, .. }) => {
                out.push(Action::Wake(SHUTDOWN_END));
            }
            Event::Rebooting(Err(reason)) => {
                self.give_back(format!("the reboot was refused: {reason}"), moment, out);
            }
            Event::FleetLock(answer) => self.fleet_lock(answer, moment, out),
        }
    }

    fn start(&mut self, moment: Moment, out: &mut Vec<Action>) {
        out.push(Action::Publish(Published::Running));
        self.stage = match self.options.lock {
            Lock::Semaphore => Stage::Recover,
            _ if self.options.recover => Stage::Recover,
            // The server may still count us; giving back what we do not have is
            // nothing, and only a healthy system may.
            Lock::FleetLock => Stage::Verify(Verify::new(None, moment)),
            Lock::None => Stage::Idle,
        };
        self.go_on(moment, out);
    }

    /// Does what the stage wants next. Nothing is under way.
    fn go_on(&mut self, moment: Moment, out: &mut Vec<Action>) {
        let look = self.keys_changed && self.takes_part();
        match &mut self.stage {
            Stage::New => {}
            Stage::Recover => self.load(out),
            Stage::Verify(verify) => {
                if verify.reason.is_some() {
                    self.load(out);
                } else if verify.failed && self.updater_changed {
                    // A newer update may help where the last one failed.
                    self.ask(Pending::Updater, Action::ReadUpdater, out);
                } else if verify.place.is_some() && (verify.failed || !verify.noted) {
                    self.load(out);
                } else {
                    self.check_health(out);
                }
            }
            Stage::Release { .. } => {
                if self.options.lock == Lock::FleetLock && !self.options.recover {
                    self.ask(Pending::FleetLock, Action::FleetLock(false), out);
                } else {
                    self.load(out);
                }
            }
            Stage::Idle if look => {
                self.keys_changed = false;
                self.load(out);
            }
            Stage::Due if look => {
                self.keys_changed = false;
                self.stage = Stage::Recover;
                self.load(out);
            }
            Stage::Idle => {
                if self.updater_changed && !self.stopping {
                    self.ask(Pending::Updater, Action::ReadUpdater, out);
                } else {
                    out.push(Action::Wake(spread(IDLE_LOOK, 0.2, moment.roll)));
                }
            }
            Stage::Due => {
                // The updater's word is taken afresh after each wait.
                self.ask(Pending::Updater, Action::ReadUpdater, out);
            }
            Stage::Warned { until } => {
                let left = until.saturating_sub(moment.monotonic);
                if left.is_zero() {
                    self.enter_queue(moment, out);
                } else {
                    out.push(Action::Wake(left));
                }
            }
            Stage::Queue(_) => self.queue(moment, out),
            Stage::Resume { deadline, .. } => {
                let fresh =
                    deadline.is_some_and(|(_, at)| moment.monotonic.saturating_sub(at) < FRESH);
                if fresh || self.stopping {
                    self.load(out);
                } else {
                    self.lease_deadline(out);
                }
            }
            Stage::Drain { .. } => {
                let warning = self.options.warning;
                let late = |at| moment.monotonic.saturating_sub(at) > warning;
                if !warning.is_zero() && self.announced.is_some_and(late) {
                    // After hours in the queue nobody expects it any more.
                    self.announced = Some(moment.monotonic);
                    out.push(Action::TellUsers);
                }
                let to = self.target();
                self.ask(Pending::Drain, Action::Drain { to }, out);
            }
            Stage::Fence(_) => self.ask(Pending::Updater, Action::ReadUpdater, out),
            Stage::Reboot { begun, asked, .. } => {
                let limit = if *begun { SHUTDOWN_END } else { SHUTDOWN_LIMIT };
                let left = (*asked + limit).saturating_sub(moment.monotonic);
                if left.is_zero() {
                    let what = if *begun { "end" } else { "begin" };
                    out.push(Action::GiveUpReboot);
                    self.give_back(
                        format!("the reboot did not {what} within {limit:?}"),
                        moment,
                        out,
                    );
                } else {
                    out.push(Action::Wake(left));
                }
            }
        }
    }

    // The updater.

    fn updater(
        &mut self,
        answer: Result<Option<Applied>, String>,
        moment: Moment,
        out: &mut Vec<Action>,
    ) {
        match answer {
            Err(reason) => {
                self.say(
                    Tone::Warning,
                    format!("cannot read the updater's status: {reason}"),
                    out,
                );
                self.updater_changed = true;
                match self.stage {
                    // A place must not wait for an updater that is gone.
                    Stage::Fence(_) => {
                        self.give_back("the updater does not answer".to_owned(), moment, out);
                        return;
                    }
                    // Nor a machine that may be well again.
                    Stage::Verify(_) => {
                        self.check_health(out);
                        return;
                    }
                    _ => {}
                }
                out.push(Action::Wake(self.store_pace.next(moment.roll)));
            }
            Ok(applied) => {
                self.applied = applied.filter(|_| !self.options.stays_up);
                self.weigh(moment, out);
                // What came meanwhile may be newer than the answer.
                if self.stage == Stage::Idle && self.pending.is_none() {
                    self.go_on(moment, out);
                }
            }
        }
    }

    /// Whether this machine has to do with the semaphore.
    fn takes_part(&self) -> bool {
        self.options.lock == Lock::Semaphore || self.options.recover
    }

    /// Nothing was heard for a while: the updater is asked, the group is read.
    fn look_around(&mut self) {
        self.updater_changed = true;
        self.keys_changed = self.takes_part();
    }

    /// The process is asked to end. What has not come as far as the reboot goes
    /// back; the programs before it end with the process.
    fn stop(&mut self, moment: Moment, out: &mut Vec<Action>) {
        self.stopping = true;
        match &self.stage {
            Stage::Drain { token } => {
                let token = *token;
                self.pending = None;
                self.leave(token, How::GivenBack, moment, out);
            }
            Stage::Queue(_) | Stage::Resume { .. } | Stage::Warned { .. } | Stage::Due
                if self.pending.is_none() =>
            {
                self.go_on(moment, out);
            }
            _ => {}
        }
    }

    /// Whether an agent that was asked to end has nothing left to give back.
    #[must_use]
    pub fn may_end(&self) -> bool {
        match &self.stage {
            Stage::Queue(_) | Stage::Resume { .. } | Stage::Drain { .. } | Stage::Fence(_) => false,
            Stage::Release { how, .. } => *how != How::GivenBack,
            _ => true,
        }
    }

    /// The updater's word is fresh: what now?
    fn weigh(&mut self, moment: Moment, out: &mut Vec<Action>) {
        match (&self.stage, &self.applied) {
            (Stage::Verify(verify), Some(applied)) => {
                let place = verify.place.clone();
                match place {
                    Some(place)
                        if verify.failed
                            && (place.holder.to != applied.version
                                || self.is_of_this_boot(&place.holder)) =>
                    {
                        self.say(
                            Tone::Info,
                            format!("{} may put right what failed", applied.version),
                            out,
                        );
                        self.stage = Stage::Due;
                        self.weigh(moment, out);
                    }
                    // Without a record nothing tells which version failed.
                    None if verify.failed => {
                        self.stage = Stage::Due;
                        self.weigh(moment, out);
                    }
                    // Nothing new: it goes on looking at itself.
                    _ => self.check_health(out),
                }
            }
            (Stage::Verify(_), None) => self.check_health(out),
            (Stage::Idle, None) => {}
            (Stage::Idle | Stage::Due, Some(_)) => self.due(moment, out),
            (Stage::Due, None) => {
                self.say(Tone::Info, "the update no longer waits".to_owned(), out);
                self.rest(moment, out);
            }
            (Stage::Fence(fence), None) => {
                let token = fence.token;
                self.say(Tone::Info, "the update no longer waits".to_owned(), out);
                self.leave(token, How::GivenBack, moment, out);
            }
            (Stage::Fence(_), Some(_)) => self.fence(moment, out),
            (Stage::Queue(_), _) => self.queue(moment, out),
            _ => {}
        }
    }

    /// Back to listening, after a look whether a place is left: an answer may
    /// have been lost, or one is kept from a reboot that failed.
    fn rest(&mut self, moment: Moment, out: &mut Vec<Action>) {
        if self.options.lock == Lock::Semaphore {
            self.stage = Stage::Recover;
            self.go_on(moment, out);
        } else {
            self.listen(moment, out);
        }
    }

    fn listen(&mut self, moment: Moment, out: &mut Vec<Action>) {
        self.stage = Stage::Idle;
        out.push(Action::Publish(Published::Running));
        self.updater_changed = true;
        self.go_on(moment, out);
    }

    /// An update is applied: is the time right?
    fn due(&mut self, moment: Moment, out: &mut Vec<Action>) {
        if self.stopping {
            self.stage = Stage::Idle;
            return;
        }
        out.push(Action::Publish(Published::RebootPlanned));
        self.stage = Stage::Due;
        let backoff = self.not_before.saturating_sub(moment.monotonic);
        if !backoff.is_zero() {
            out.push(Action::Wake(backoff.min(WINDOW_LOOK)));
            return;
        }
        match moment.window {
            Window::Closed(opens) => {
                let words = "waiting for the reboot window to open";
                self.say(Tone::Info, words.to_owned(), out);
                out.push(Action::Wake(opens.unwrap_or(WINDOW_LOOK).min(WINDOW_LOOK)));
            }
            Window::Open => {
                let warning = self.options.warning;
                self.ask(Pending::Users, Action::WarnUsers(warning), out);
            }
        }
    }

    // The queue.

    fn enter_queue(&mut self, moment: Moment, out: &mut Vec<Action>) {
        match self.options.lock {
            Lock::None => {
                self.stage = Stage::Drain { token: None };
                self.go_on(moment, out);
            }
            Lock::Semaphore | Lock::FleetLock => {
                self.nonces += 1;
                self.stage = Stage::Queue(Queue {
                    // Another process of this boot may have counted as well.
                    nonce: format!(
                        "{}-{}-{:08x}",
                        self.identity.boot_id, self.nonces, moment.roll
                    ),
                    lease: None,
                    deadline: None,
                    ticket: None,
                    impatient: false,
                    withdrawing: false,
                });
                self.go_on(moment, out);
            }
        }
    }

    fn queue(&mut self, moment: Moment, out: &mut Vec<Action>) {
        let unwanted = moment.window != Window::Open || self.applied.is_none() || self.stopping;
        let Stage::Queue(queue) = &mut self.stage else {
            return;
        };
        if self.options.lock == Lock::FleetLock {
            if unwanted {
                // A yes may have been lost on its way.
                self.leave(None, How::GivenBack, moment, out);
            } else {
                self.ask(Pending::FleetLock, Action::FleetLock(true), out);
            }
            return;
        }
        queue.withdrawing = unwanted;
        if queue.lease.is_none() && !unwanted {
            out.push(Action::KeepAlive(None));
            self.ask(Pending::TicketLease, Action::Lease(TICKET_TTL), out);
        } else {
            self.load(out);
        }
    }

    fn queue_loaded(&mut self, snapshot: &Snapshot, moment: Moment, out: &mut Vec<Action>) {
        let request = self.request();
        let id = self.identity.id.clone();
        let Stage::Queue(queue) = &mut self.stage else {
            return;
        };
        if queue.withdrawing || self.stopping {
            self.withdraw(snapshot, moment, out);
            return;
        }
        // Before anything is taken: the late may have spent the budget.
        if self.mark_overdue(snapshot, moment, out) {
            return;
        }
        let Stage::Queue(queue) = &mut self.stage else {
            return;
        };
        let next = places::acquire(
            snapshot,
            &request,
            queue.ticket.as_ref(),
            queue.impatient,
            moment.wall,
        );
        queue.impatient = false;
        let fresh = queue
            .deadline
            .is_some_and(|(_, at)| moment.monotonic.saturating_sub(at) < FRESH);
        match next {
            Acquire::Held(place) => match &snapshot.halt.value {
                // It is kept, so there is time.
                Some(halt) if place.holder.unproven => {
                    let words = format!("the group is halted: {}", halt.why);
                    self.refused(&words, moment, out);
                }
                // One from before is written anew by the fence.
                _ => self.enter_drain(&place, moment, out),
            },
            Acquire::Granted(_) if !fresh => self.lease_deadline(out),
            Acquire::Granted(_) => {
                let lease = request.deadline_lease;
                match (
                    places::confirm(snapshot, &id, lease, moment.wall),
                    &snapshot.halt.value,
                ) {
                    (Some(transaction), None) => {
                        self.ask(Pending::Commit, Action::Commit(transaction), out);
                    }
                    (_, Some(halt)) => {
                        let words = format!("the group is halted: {}", halt.why);
                        self.refused(&words, moment, out);
                    }
                    (None, None) => self.refused("the place is gone", moment, out),
                }
            }
            Acquire::Commit {
                transaction,
                ticket,
            } => {
                // A place of its own has a deadline from the start; those that it
                // gives to others get theirs when they are confirmed.
                let takes = transaction.then.iter().any(|write| {
                    matches!(write, Write::Put(Key::Holder(holder), Record::Holder(record), _)
                        if *holder == id && record.phase == Phase::Draining)
                });
                if takes && !fresh {
                    self.lease_deadline(out);
                } else {
                    queue.ticket = ticket;
                    self.may_hold = true;
                    self.ask(Pending::Commit, Action::Commit(transaction), out);
                }
            }
            Acquire::Waiting { ahead, soon } => {
                self.wait_in_line(snapshot, ahead, soon, moment, out);
            }
            Acquire::Refused(no) => self.refused(&no.to_string(), moment, out),
        }
    }

    fn wait_in_line(
        &mut self,
        snapshot: &Snapshot,
        ahead: usize,
        soon: bool,
        moment: Moment,
        out: &mut Vec<Action>,
    ) {
        let id = self.identity.id.clone();
        let Stage::Queue(queue) = &mut self.stage else {
            return;
        };
        // Whoever is first acts at once; the longer the line before it, the
        // longer one waits before doing it in its place. One transaction serves
        // many, so the wait does not grow with every single one.
        queue.impatient = soon;
        let unused = queue.deadline.take();
        let wait = if soon {
            let turn = u32::try_from(ahead / SERVED_TOGETHER).unwrap_or(u32::MAX);
            spread(STAND_IN * (turn.min(300) + 1), 0.5, moment.roll)
        } else {
            spread(BACKSTOP, 0.2, moment.roll)
        };
        let mut keys = vec![Key::Holder(id)];
        keys.extend(queue.ticket.clone().map(Key::Ticket));
        if let Some((lease, _)) = unused {
            out.push(Action::Revoke(lease));
        }
        self.refused_pace.reset();
        self.say(Tone::Info, "waiting for a place".to_owned(), out);
        out.push(Action::Watch(keys, snapshot.revision));
        out.push(Action::Wake(wait));
    }

    /// Marks somebody who is late, if there is one. Whoever reads the group does
    /// it, since the late themselves say nothing.
    fn mark_overdue(&mut self, snapshot: &Snapshot, moment: Moment, out: &mut Vec<Action>) -> bool {
        let Some(transaction) = failures::mark_overdue(snapshot, moment.wall) else {
            return false;
        };
        if let Stage::Fence(fence) = &mut self.stage {
            fence.marking = true;
        }
        self.ask(Pending::Commit, Action::Commit(transaction), out);
        true
    }

    /// The window has closed: out of the queue. A place that has been given
    /// meanwhile is found, and given back, on the way to rest.
    fn withdraw(&mut self, snapshot: &Snapshot, moment: Moment, out: &mut Vec<Action>) {
        let Stage::Queue(queue) = &self.stage else {
            return;
        };
        let given = snapshot.holders.contains_key(&self.identity.id);
        if let Some(ticket) = &queue.ticket {
            let stands = snapshot.own_ticket.is_some()
                || snapshot.queue.iter().any(|(key, _)| key == ticket);
            if stands && !given {
                let transaction = places::withdraw(snapshot, ticket);
                self.ask(Pending::Commit, Action::Commit(transaction), out);
                return;
            }
        }
        self.let_go_of_leases(out);
        self.rest(moment, out);
    }

    /// Is there still an update, and is the time right?
    fn look_again(&mut self, out: &mut Vec<Action>) {
        self.stage = Stage::Due;
        self.ask(Pending::Updater, Action::ReadUpdater, out);
    }

    /// A place was wanted, or was to go back, and the answer was no.
    fn refused(&mut self, reason: &str, moment: Moment, out: &mut Vec<Action>) {
        let wait = self.refused_pace.next(moment.roll);
        let what = match self.stage {
            Stage::Release { .. } => "Unlocking old locks failed",
            _ => "Failed to acquire lock",
        };
        self.say(
            Tone::Info,
            format!("{what}: {reason}. Retrying in {}.", go(wait)),
            out,
        );
        out.push(Action::Wake(wait));
    }

    fn enter_drain(&mut self, place: &Place, moment: Moment, out: &mut Vec<Action>) {
        let deadline = match &self.stage {
            Stage::Queue(queue) => queue.deadline,
            _ => None,
        };
        self.let_go_of_leases(out);
        // Each program has its own limit; the deadline is for an agent that is gone.
        if let Some((lease, _)) = deadline {
            out.push(Action::KeepAlive(Some(lease)));
        }
        self.refused_pace.reset();
        self.may_hold = true;
        out.push(Action::Remember(true));
        self.say(Tone::Info, "took a place".to_owned(), out);
        self.stage = Stage::Drain {
            token: Some(place.token),
        };
        self.go_on(moment, out);
    }

    fn let_go_of_leases(&mut self, out: &mut Vec<Action>) {
        if let Stage::Queue(queue) = &mut self.stage {
            queue.deadline = None; // a used one stays, an unused one ends by itself
            if let Some(lease) = queue.lease.take() {
                out.push(Action::KeepAlive(None));
                out.push(Action::Revoke(lease));
            }
            out.push(Action::Watch(Vec::new(), 0));
        }
    }

    fn lease_deadline(&mut self, out: &mut Vec<Action>) {
        let ttl = self.options.deadline;
        self.ask(Pending::DeadlineLease, Action::Lease(ttl), out);
    }

    fn leased(
        &mut self,
        lease: LeaseId,
        pending: Option<Pending>,
        moment: Moment,
        out: &mut Vec<Action>,
    ) {
        match (&mut self.stage, pending) {
            (Stage::Queue(queue), Some(Pending::TicketLease)) => {
                queue.lease = Some(lease);
                out.push(Action::KeepAlive(Some(lease)));
            }
            (Stage::Queue(queue), Some(Pending::DeadlineLease)) => {
                queue.deadline = Some((lease, moment.monotonic));
            }
            (Stage::Fence(Fence { deadline, .. }) | Stage::Resume { deadline, .. }, _) => {
                *deadline = Some((lease, moment.monotonic));
            }
            _ => out.push(Action::Revoke(lease)),
        }
        self.load(out);
    }

    // The last look.

    fn fence(&mut self, moment: Moment, out: &mut Vec<Action>) {
        // Healthy by the deadline is early enough, and then it must last.
        let lease_ttl = self.options.deadline.saturating_add(self.options.soak);
        let Stage::Fence(fence) = &mut self.stage else {
            return;
        };
        let token = fence.token;
        if self.stopping {
            self.leave(token, How::GivenBack, moment, out);
            return;
        }
        if let Window::Closed(_) = moment.window {
            self.say(Tone::Info, "the reboot window has closed".to_owned(), out);
            self.leave(token, How::GivenBack, moment, out);
            return;
        }
        if self.options.lock != Lock::Semaphore {
            self.reboot(token, moment, out);
            return;
        }
        let fresh = fence
            .deadline
            .is_some_and(|(_, at)| moment.monotonic.saturating_sub(at) < FRESH);
        if fresh {
            fence.looked = moment.monotonic;
            self.load(out);
        } else {
            self.ask(Pending::DeadlineLease, Action::Lease(lease_ttl), out);
        }
    }

    fn fence_loaded(&mut self, snapshot: &Snapshot, moment: Moment, out: &mut Vec<Action>) {
        let id = self.identity.id.clone();
        let holder = self.request().holder;
        if self.mark_overdue(snapshot, moment, out) {
            return;
        }
        let Stage::Fence(fence) = &mut self.stage else {
            return;
        };
        fence.looked = moment.monotonic;
        let token = fence.token.unwrap_or_default();
        let lease = fence.deadline.map(|(lease, _)| lease).unwrap_or_default();
        let result = places::fence(snapshot, &id, token, lease, |record| {
            record.phase = Phase::Rebooting;
            record.boot_id.clone_from(&holder.boot_id);
            record.from.clone_from(&holder.from);
            record.to.clone_from(&holder.to);
            record.mode = holder.mode;
            record.reason.clear();
        });
        match result {
            Ok(transaction) => self.ask(Pending::Commit, Action::Commit(transaction), out),
            Err(Fenced::Lost) => {
                self.say(
                    Tone::Warning,
                    "the place was taken away; asking for another".to_owned(),
                    out,
                );
                self.look_again(out);
            }
            Err(no @ Fenced::Halted(_)) => {
                self.say(Tone::Warning, no.to_string(), out);
                self.leave(Some(token), How::GivenBack, moment, out);
            }
        }
    }

    fn reboot(&mut self, token: Option<i64>, moment: Moment, out: &mut Vec<Action>) {
        self.stage = Stage::Reboot {
            token,
            begun: false,
            asked: moment.monotonic,
        };
        out.push(Action::Publish(Published::Rebooting));
        self.ask(Pending::Reboot, Action::Reboot(self.mode()), out);
    }

    // Giving back.

    /// This machine cannot reboot now: the place goes to another one, and it
    /// tries again later.
    fn give_back(&mut self, reason: String, moment: Moment, out: &mut Vec<Action>) {
        self.not_before = moment.monotonic + self.reboot_pace.next(moment.roll);
        self.say(Tone::Warning, reason, out);
        let token = match &self.stage {
            Stage::Drain { token } | Stage::Reboot { token, .. } => *token,
            Stage::Fence(fence) => fence.token,
            _ => None,
        };
        self.leave(token, How::GivenBack, moment, out);
    }

    fn leave(&mut self, token: Option<i64>, how: How, moment: Moment, out: &mut Vec<Action>) {
        if let Stage::Drain { .. } = self.stage {
            out.push(Action::KeepAlive(None));
        }
        self.let_go_of_leases(out);
        let nothing = token.is_none() && self.options.lock == Lock::None && !self.options.recover;
        if nothing {
            self.rest(moment, out);
            return;
        }
        self.stage = Stage::Release { token, how };
        self.go_on(moment, out);
    }

    fn release_loaded(&mut self, snapshot: &Snapshot, moment: Moment, out: &mut Vec<Action>) {
        let Stage::Release { token, how } = self.stage else {
            return;
        };
        let id = &self.identity.id;
        let unproven = token
            .filter(|_| how == How::GivenBack)
            .and_then(|token| places::held(snapshot, id, token))
            .filter(|holder| holder.unproven);
        if let Some(holder) = unproven {
            // It stays where it was before this attempt.
            self.updater_changed = true;
            self.stage = Stage::Recover;
            let back = |holder: &mut Holder| holder.phase = Phase::Failed;
            if let (Phase::Draining | Phase::Rebooting, Some(token)) = (holder.phase, token)
                && let Ok(transaction) = places::advance(snapshot, id, token, back)
            {
                self.ask(Pending::Commit, Action::Commit(transaction), out);
            } else {
                self.go_on(moment, out);
            }
            return;
        }
        let word = match how {
            How::Released => "released",
            How::GivenBack => "given-back",
        };
        let transaction = match token {
            Some(token) => places::release(snapshot, id, token, word, moment.wall),
            // A place without a record, or with one that says nothing.
            None if !snapshot.is_explained(id) => places::unlock(snapshot, id, word, moment.wall),
            None => None,
        };
        match transaction {
            Some(transaction) => self.ask(Pending::Commit, Action::Commit(transaction), out),
            None => self.released(moment, out),
        }
    }

    fn released(&mut self, moment: Moment, out: &mut Vec<Action>) {
        if let Stage::Release {
            how: How::Released, ..
        } = self.stage
        {
            self.say(
                Tone::Info,
                "Unlocked existing lock for this machine".to_owned(),
                out,
            );
        }
        self.forget_place(out);
        self.rest(moment, out);
    }

    // After a reboot.

    /// A look in passing: is anybody late, has this machine got a place?
    fn idle_loaded(&mut self, snapshot: &Snapshot, moment: Moment, out: &mut Vec<Action>) {
        let id = &self.identity.id;
        if snapshot.places().holds(id) || snapshot.holders.contains_key(id) {
            self.stage = Stage::Recover;
            self.recover_loaded(snapshot, moment, out);
        } else if !self.mark_overdue(snapshot, moment, out) {
            self.watch_own(snapshot, out);
            self.go_on(moment, out);
        }
    }

    fn recover_loaded(&mut self, snapshot: &Snapshot, moment: Moment, out: &mut Vec<Action>) {
        if self.mark_overdue(snapshot, moment, out) {
            return;
        }
        let id = &self.identity.id;
        let held = snapshot.places().holds(id);
        let record = snapshot.holders.get(id);
        let holder = record.and_then(|record| record.value.clone());
        let place = record.zip(holder).map(|(record, holder)| Place {
            token: record.created,
            holder,
        });
        // Where nothing but the document tells who has a place, a lock by hand looks
        // like an agent's.
        let by_hand = match &place {
            Some(place) => matches!(place.holder.kind, Kind::Manual | Kind::Fleetlock),
            None => snapshot.document_only && !self.may_hold,
        };
        match place {
            _ if held && by_hand => {
                self.say(
                    Tone::Info,
                    "an operator holds the lock for this machine".to_owned(),
                    out,
                );
                self.nothing_held(snapshot, moment, out);
            }
            Some(place) if held && self.is_anothers(&place.holder) => {
                // `locksmithctl reboot`, in this boot: its place is its own.
                self.say(
                    Tone::Info,
                    "an operator reboots this machine".to_owned(),
                    out,
                );
                self.watch_own(snapshot, out);
                self.listen(moment, out);
            }
            Some(place) if held && place.holder.phase == Phase::Granted => {
                // Never confirmed, so nothing was done with it.
                self.leave(Some(place.token), How::GivenBack, moment, out);
            }
            Some(place)
                if held
                    && place.holder.phase == Phase::Unknown
                    && !place.holder.unproven
                    && self.is_of_this_boot(&place.holder) =>
            {
                // A later version began; how far it came nobody knows.
                self.leave(Some(place.token), How::GivenBack, moment, out);
            }
            Some(place) if held => {
                let underway = match place.holder.phase {
                    Phase::Draining | Phase::Rebooting => true,
                    // Its programs took too long, or it did before it rebooted.
                    Phase::Overdue => !place.holder.unproven,
                    _ => false,
                };
                if underway && self.is_of_this_boot(&place.holder) {
                    self.resume(&place, moment, out);
                } else {
                    let verify = Verify::new(Some(place), moment);
                    // What helps a machine that has failed may have been applied
                    // before this process began.
                    self.updater_changed = verify.failed;
                    self.stage = Stage::Verify(verify);
                    self.go_on(moment, out);
                }
            }
            None if held => {
                self.stage = Stage::Verify(Verify::new(None, moment));
                self.go_on(moment, out);
            }
            _ => self.nothing_held(snapshot, moment, out),
        }
    }

    /// Whether a place was asked for in this boot, so that its reboot is still to
    /// come.
    fn is_of_this_boot(&self, holder: &Holder) -> bool {
        // A restart of user space alone leaves the boot id as it was.
        let restarted = holder.mode == Mode::Soft
            && !holder.to.is_empty()
            && holder.to == self.identity.version;
        holder.boot_id == self.identity.boot_id && !restarted
    }

    /// Whether somebody else is about to reboot this machine. Agents number their
    /// places within a boot.
    fn is_anothers(&self, holder: &Holder) -> bool {
        let before = matches!(holder.phase, Phase::Draining | Phase::Rebooting);
        before && self.is_of_this_boot(holder) && !holder.nonce.starts_with(&self.identity.boot_id)
    }

    /// Whether a place of this boot is still wanted.
    fn goes_on(&self, moment: Moment) -> bool {
        self.options.lock == Lock::Semaphore
            && moment.window == Window::Open
            && !self.options.stays_up
            && !self.stopping
    }

    /// The process began again between taking the place and the reboot.
    fn resume(&mut self, place: &Place, moment: Moment, out: &mut Vec<Action>) {
        let token = Some(place.token);
        self.stage = if place.holder.phase != Phase::Draining {
            // The shutdown may have been asked for, and come at any moment.
            Stage::Reboot {
                token,
                begun: false,
                asked: moment.monotonic,
            }
        } else if self.goes_on(moment) {
            // The fence reads the updater's word; until then that of the place holds.
            self.applied = Some(Applied {
                version: place.holder.to.clone(),
                soft: place.holder.mode == Mode::Soft,
            });
            Stage::Resume {
                token: place.token,
                deadline: None,
            }
        } else {
            Stage::Release {
                token,
                how: How::GivenBack,
            }
        };
        self.go_on(moment, out);
    }

    fn resume_loaded(&mut self, snapshot: &Snapshot, moment: Moment, out: &mut Vec<Action>) {
        let Stage::Resume { token, deadline } = self.stage else {
            return;
        };
        if !self.goes_on(moment) {
            self.leave(Some(token), How::GivenBack, moment, out);
            return;
        }
        let lease = deadline.map(|(lease, _)| lease).unwrap_or_default();
        let id = &self.identity.id;
        let as_it_was =
            places::held(snapshot, id, token).is_some_and(|holder| holder.phase == Phase::Draining);
        match places::renew(snapshot, id, token, lease) {
            Ok(transaction) if as_it_was => {
                self.ask(Pending::Commit, Action::Commit(transaction), out);
            }
            // Taken away, or late by now.
            _ => self.rest(moment, out),
        }
    }

    fn nothing_held(&mut self, snapshot: &Snapshot, moment: Moment, out: &mut Vec<Action>) {
        self.forget_place(out);
        self.watch_own(snapshot, out);
        self.listen(moment, out);
    }

    fn forget_place(&mut self, out: &mut Vec<Action>) {
        self.may_hold = false;
        self.options.recover = false;
        out.push(Action::Remember(false));
    }

    /// A request of an earlier process may arrive late, and an operator may lock.
    fn watch_own(&mut self, snapshot: &Snapshot, out: &mut Vec<Action>) {
        self.keys_changed = false;
        if self.options.lock == Lock::Semaphore && !snapshot.document_only {
            let own = vec![Key::Holder(self.identity.id.clone())];
            out.push(Action::Watch(own, snapshot.revision));
        }
    }

    fn health(&mut self, health: Health, moment: Moment, out: &mut Vec<Action>) {
        let Stage::Verify(verify) = &mut self.stage else {
            return;
        };
        let deadline = self.options.deadline;
        let wrong = verify.wrong_version(&self.identity.version);
        match (health, wrong.clone()) {
            (Health::Good, None) => {
                let since = *verify.healthy_since.get_or_insert(moment.monotonic);
                let left = (since + self.options.soak).saturating_sub(moment.monotonic);
                if left.is_zero() {
                    let token = verify.place.as_ref().map(|place| place.token);
                    self.leave(token, How::Released, moment, out);
                } else {
                    out.push(Action::Wake(left.min(HEALTH_LOOK)));
                }
            }
            (Health::Good, Some(reason)) | (Health::NotYet(reason), _) => {
                verify.healthy_since = None;
                let late = moment.monotonic.saturating_sub(verify.begun) >= deadline;
                if verify.failed {
                    out.push(Action::Wake(FAILED_LOOK));
                } else if let Some(words) = wrong.or(late.then(|| reason.clone())) {
                    verify.failed = true;
                    verify.reason = verify.place.is_some().then(|| words.clone());
                    self.updater_changed = true;
                    self.say(Tone::Warning, format!("this machine failed: {words}"), out);
                    self.go_on(moment, out);
                } else {
                    self.say(
                        Tone::Info,
                        format!("the new system is not proven yet: {reason}"),
                        out,
                    );
                    out.push(Action::Wake(HEALTH_LOOK));
                }
            }
        }
    }

    fn verify_loaded(&mut self, snapshot: &Snapshot, moment: Moment, out: &mut Vec<Action>) {
        let id = self.identity.id.clone();
        let Stage::Verify(verify) = &mut self.stage else {
            return;
        };
        let Some(place) = &verify.place else {
            return;
        };
        let token = place.token;
        if places::held(snapshot, &id, token).is_none() {
            // An operator took it away; nothing is left to give back.
            self.nothing_held(snapshot, moment, out);
            return;
        }
        let transaction = match &verify.reason {
            Some(reason) => failures::mark_failed(snapshot, &id, token, reason, moment.wall),
            None if verify.noted => None,
            None => places::advance(snapshot, &id, token, |holder| {
                holder.unproven = true;
                // One that is late stays marked as late until it is released.
                if matches!(
                    holder.phase,
                    Phase::Draining | Phase::Rebooting | Phase::Unknown
                ) {
                    holder.phase = Phase::Verifying;
                }
            })
            .ok(),
        };
        match transaction {
            Some(transaction) => self.ask(Pending::Commit, Action::Commit(transaction), out),
            None => {
                verify.noted = true;
                verify.reason = None;
                self.check_health(out);
            }
        }
    }

    fn check_health(&mut self, out: &mut Vec<Action>) {
        if let Stage::Verify(verify) = &self.stage {
            let (from, to) = verify.versions();
            self.ask(Pending::Health, Action::CheckHealth { from, to }, out);
        }
    }

    // Answers of the store.

    fn loaded(&mut self, snapshot: &Arc<Snapshot>, moment: Moment, out: &mut Vec<Action>) {
        self.store_pace.reset();
        match &self.stage {
            Stage::Recover => self.recover_loaded(snapshot, moment, out),
            Stage::Idle => self.idle_loaded(snapshot, moment, out),
            Stage::Verify(_) => self.verify_loaded(snapshot, moment, out),
            Stage::Release { .. } => self.release_loaded(snapshot, moment, out),
            Stage::Queue(_) => self.queue_loaded(snapshot, moment, out),
            Stage::Resume { .. } => self.resume_loaded(snapshot, moment, out),
            Stage::Fence(_) => self.fence_loaded(snapshot, moment, out),
            _ => {}
        }
    }

    fn committed(&mut self, succeeded: bool, moment: Moment, out: &mut Vec<Action>) {
        match &mut self.stage {
            Stage::Release { .. } if succeeded => self.released(moment, out),
            Stage::Verify(verify) => {
                if succeeded {
                    verify.noted = true;
                    verify.reason = None;
                }
                self.go_on(moment, out);
            }
            Stage::Fence(fence) if fence.marking => {
                fence.marking = false;
                self.load(out);
            }
            Stage::Fence(fence) if succeeded => {
                let token = fence.token;
                if moment.monotonic.saturating_sub(fence.looked) <= FENCE_LIMIT
                    && moment.window == Window::Open
                {
                    self.reboot(token, moment, out);
                } else {
                    self.go_on(moment, out); // too late: all of it again
                }
            }
            Stage::Resume {
                token,
                deadline: Some((lease, _)),
            } if succeeded => {
                out.push(Action::KeepAlive(Some(*lease)));
                let token = Some(*token);
                self.stage = Stage::Drain { token };
                self.go_on(moment, out);
            }
            Stage::Queue(queue) if queue.withdrawing => self.go_on(moment, out),
            // Won or lost, the group says what came of it.
            _ => self.load(out),
        }
    }

    fn store_failed(&mut self, reason: &str, moment: Moment, out: &mut Vec<Action>) {
        let wait = self.store_pace.next(moment.roll);
        self.say(
            Tone::Warning,
            format!("the semaphore cannot be reached: {reason}"),
            out,
        );
        let needless = self.options.lock != Lock::Semaphore && self.store_pace.is_long();
        if needless && self.pending.is_none() && !matches!(self.stage, Stage::Idle) {
            // A place from before is given back when that is possible; reboots
            // under another strategy do not wait for it.
            self.listen(moment, out);
            return;
        }
        out.push(Action::Wake(wait));
    }

    fn fleet_lock(&mut self, answer: Result<(), String>, moment: Moment, out: &mut Vec<Action>) {
        match (&self.stage, answer) {
            (Stage::Queue(_), Ok(())) => {
                self.refused_pace.reset();
                self.stage = Stage::Drain { token: None };
                self.go_on(moment, out);
            }
            (Stage::Release { .. }, Ok(())) => self.released(moment, out),
            (_, Err(reason)) => self.refused(&reason, moment, out),
            _ => {}
        }
    }

    // Small things.

    fn request(&self) -> Request {
        let (nonce, lease, deadline) = match &self.stage {
            Stage::Queue(queue) => (
                queue.nonce.clone(),
                queue.lease.unwrap_or_default(),
                queue.deadline.map(|(lease, _)| lease).unwrap_or_default(),
            ),
            _ => (String::new(), LeaseId::default(), LeaseId::default()),
        };
        Request {
            id: self.identity.id.clone(),
            rank: self.options.rank,
            holder: Holder {
                boot_id: self.identity.boot_id.clone(),
                from: self.identity.version.clone(),
                to: self.target(),
                mode: self.mode(),
                ..Holder::new(Kind::Reboot, nonce)
            },
            confirm: true,
            ticket_lease: lease,
            deadline_lease: deadline,
        }
    }

    fn target(&self) -> String {
        let applied = self.applied.as_ref();
        applied.map_or_else(String::new, |applied| applied.version.clone())
    }

    fn mode(&self) -> Mode {
        match &self.applied {
            Some(applied) if applied.soft => Mode::Soft,
            _ => self.options.mode,
        }
    }

    fn load(&mut self, out: &mut Vec<Action>) {
        let ticket = match &self.stage {
            Stage::Queue(queue) => queue.ticket.clone(),
            _ => None,
        };
        let history = matches!(self.stage, Stage::Release { .. }).then(|| self.identity.id.clone());
        self.ask(Pending::Load, Action::Load(Look { ticket, history }), out);
    }

    fn ask(&mut self, pending: Pending, action: Action, out: &mut Vec<Action>) {
        if pending == Pending::Updater {
            self.updater_changed = false;
        }
        self.pending = Some(pending);
        out.push(action);
    }

    fn say(&mut self, tone: Tone, words: String, out: &mut Vec<Action>) {
        if self.said != words {
            self.said.clone_from(&words);
            out.push(Action::Say(tone, words));
        }
    }
}

/// A time as the original's log has it, in whole seconds.
fn go(time: Duration) -> String {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    duration::print(jiff::SignedDuration::from_secs(seconds))
}

impl Verify {
    fn new(place: Option<Place>, moment: Moment) -> Self {
        let failed = place
            .as_ref()
            .is_some_and(|place| place.holder.phase == Phase::Failed);
        let noted = place.as_ref().is_some_and(|place| place.holder.unproven);
        Self {
            place,
            noted,
            begun: moment.monotonic,
            healthy_since: None,
            failed,
            reason: None,
        }
    }

    fn versions(&self) -> (String, String) {
        self.place.as_ref().map_or_else(Default::default, |place| {
            (place.holder.from.clone(), place.holder.to.clone())
        })
    }

    /// Words for a machine that is back on the system that it was to leave. A
    /// third version is none: a newer update was applied meanwhile.
    fn wrong_version(&self, running: &str) -> Option<String> {
        let (from, to) = self.versions();
        let known = !to.is_empty() && to != "0.0.0" && !running.is_empty();
        let newer = !from.is_empty() && from != running;
        (known && to != running && !newer)
            .then(|| format!("came back on {running} instead of {to}"))
    }
}

impl Fence {
    fn new(token: Option<i64>) -> Self {
        Self {
            token,
            deadline: None,
            looked: Duration::ZERO,
            marking: false,
        }
    }
}

/// Which requests an event can answer; `None` for one that answers none.
fn answers(event: &Event) -> Option<&'static [Pending]> {
    Some(match event {
        Event::Loaded(_) => &[Pending::Load],
        Event::Committed(_) => &[Pending::Commit],
        Event::Leased(_) => &[Pending::TicketLease, Pending::DeadlineLease],
        Event::Updater(_) => &[Pending::Updater],
        Event::UsersWarned(_) | Event::Inhibited(_) => &[Pending::Users],
        Event::Drained(_) => &[Pending::Drain],
        Event::Health(_) => &[Pending::Health],
        Event::Rebooting(_) => &[Pending::Reboot],
        Event::FleetLock(_) => &[Pending::FleetLock],
        Event::Started
        | Event::Woke
        | Event::Changed
        | Event::UpdaterChanged
        | Event::LeaseLost
        | Event::Stopping
        | Event::ShuttingDown => return None,
    })
}
