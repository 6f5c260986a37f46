use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::semaphore::{Failure, FailureKind, Halt, Paused, failures, steering};
use crate::store::MemoryGroup;

const DEADLINE: Duration = Duration::from_secs(3600);
const PATIENCE: Duration = Duration::from_secs(720);

/// A group, and clients that ask one after the other.
struct World {
    group: MemoryGroup,
    now: Duration,
    nonces: u32,
}

impl World {
    fn new(max: i64) -> Self {
        let mut world = Self {
            group: MemoryGroup::new(),
            now: Duration::ZERO,
            nonces: 0,
        };
        let max = steering::set_max(&world.look(), crate::semaphore::Max::Count(max), 0).2;
        world.commit(&max);
        world
    }

    fn look(&self) -> Snapshot {
        self.group.load(&crate::semaphore::Look::default())
    }

    fn commit(&mut self, transaction: &Transaction) {
        assert!(self.group.commit(transaction).unwrap().succeeded);
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.group.advance(self.now);
    }

    fn seconds(&self) -> i64 {
        i64::try_from(self.now.as_secs()).unwrap()
    }

    /// The wire's word for the answer.
    fn pre_reboot(&mut self, id: &str) -> &'static str {
        let id = MachineId::new(id);
        self.nonces += 1;
        let nonce = format!("nonce-{}", self.nonces);
        let (mut ticket, mut deadline) = (None, None);
        for _ in 0..10 {
            let asking = Asking {
                id: &id,
                rank: 500,
                nonce: &nonce,
                ticket,
                deadline,
            };
            let snapshot = self.look();
            let answer = match pre_reboot(&snapshot, &asking, self.seconds()) {
                Step::Yes => "yes",
                Step::No(refusal) => refusal.kind.name(),
                Step::Waits(lease, refusal) => {
                    assert!(self.group.keep_alive(lease));
                    match refusal.kind {
                        No::SemaphoreFull => "waits",
                        other => other.name(),
                    }
                }
                Step::LeaseTicket => {
                    ticket = Some(self.group.grant_lease(PATIENCE));
                    continue;
                }
                Step::LeaseDeadline => {
                    deadline = Some(self.group.grant_lease(DEADLINE));
                    continue;
                }
                Step::Commit(transaction) => {
                    self.commit(&transaction);
                    self.assert_deadline(&id);
                    continue;
                }
            };
            for lease in unused(&snapshot, &asking) {
                self.group.revoke_lease(lease);
            }
            return answer;
        }
        panic!("no answer after ten steps");
    }

    /// No moment without: anybody may look for who is overdue at any time.
    fn assert_deadline(&self, id: &MachineId) {
        let there = self.look();
        let record = there.holders.get(id).and_then(|it| it.value.as_ref());
        if record.is_some_and(|holder| holder.phase == Phase::Draining) {
            assert!(there.deadlines.contains(id), "{id} has no deadline");
        }
    }

    /// Whether it changed anything.
    fn steady_state(&mut self, id: &str) -> bool {
        let transaction = steady_state(&self.look(), &id.into(), self.seconds());
        if let Some(transaction) = &transaction {
            self.commit(transaction);
            assert_eq!(steady_state(&self.look(), &id.into(), self.seconds()), None);
        }
        transaction.is_some()
    }

    /// An agent asks for a place, or waits for one under a lease of 90 s.
    fn agent(&mut self, id: &str) -> LeaseId {
        let ticket_lease = self.group.grant_lease(Duration::from_secs(90));
        let request = Request {
            id: id.into(),
            rank: 500,
            holder: Holder {
                kind: Kind::Reboot,
                ..holder(id)
            },
            confirm: true,
            ticket_lease,
            deadline_lease: self.group.grant_lease(DEADLINE),
        };
        let Acquire::Commit { transaction, .. } =
            places::acquire(&self.look(), &request, None, true, 0)
        else {
            panic!("{id} asks twice");
        };
        self.commit(&transaction);
        ticket_lease
    }

    fn agent_confirms(&mut self, id: &str) {
        let deadline = self.group.grant_lease(DEADLINE);
        let confirm = places::confirm(&self.look(), &id.into(), deadline, self.seconds());
        self.commit(&confirm.unwrap());
    }

    fn agent_leaves(&mut self, id: &str) {
        let leave = places::unlock(&self.look(), &id.into(), "released", self.seconds());
        self.commit(&leave.unwrap());
    }

    fn holders(&self) -> Vec<String> {
        let places = self.look().places().clone();
        places.holders.iter().map(ToString::to_string).collect()
    }

    fn phase(&self, id: &str) -> Phase {
        self.look().holders[&MachineId::new(id)]
            .value
            .as_ref()
            .unwrap()
            .phase
    }

    fn keep_house(&mut self) {
        let snapshot = self.look();
        let now = self.seconds();
        if let Some(chore) =
            failures::mark_overdue(&snapshot, now).or_else(|| places::serve(&snapshot, now))
        {
            self.commit(&chore);
        }
    }
}

#[test]
fn asking_again_changes_nothing_and_order_is_by_name() {
    let mut world = World::new(3);
    for id in ["c", "a", "b", "a"] {
        assert_eq!(world.pre_reboot(id), "yes");
    }
    assert_eq!(world.holders(), ["a", "b", "c"]);
    let before = world.look();
    assert_eq!(world.pre_reboot("b"), "yes");
    assert_eq!(world.pre_reboot("d"), "failed_lock_semaphore_full");
    assert!(!world.steady_state("d"));
    assert_eq!(world.look(), before);
    assert!(world.steady_state("b"));
    assert_eq!(world.holders(), ["a", "c"]);
    assert_eq!(world.pre_reboot("d"), "yes");
}

#[test]
fn nobody_is_told_yes_while_the_group_is_halted_or_paused() {
    let mut world = World::new(2);
    assert_eq!(world.pre_reboot("a"), "yes");
    let pause = Paused {
        by: "me".into(),
        why: "lunch".into(),
        at: 0,
    };
    let pause = steering::pause(&world.look(), pause);
    world.commit(&pause);
    assert_eq!(world.pre_reboot("b"), "fleet_paused");
    // Who has a place goes on, as agents do.
    assert_eq!(world.pre_reboot("a"), "yes");
    let halt = Halt {
        by: "me".into(),
        why: "fire".into(),
        at: 0,
    };
    let halt = failures::halt(&world.look(), halt).unwrap();
    world.commit(&halt);
    assert_eq!(world.pre_reboot("b"), "fleet_halted");
    // A yes would be a permission to reboot, so not even to a holder.
    assert_eq!(world.pre_reboot("a"), "fleet_halted");
    assert!(world.steady_state("a"));
}

#[test]
fn a_client_that_does_not_come_back_keeps_its_place_and_burns_the_budget_until_it_does() {
    let mut world = World::new(2);
    assert_eq!(world.pre_reboot("a"), "yes");
    world.pass(DEADLINE - Duration::from_secs(1));
    world.keep_house();
    assert_eq!(world.phase("a"), Phase::Draining);
    world.pass(Duration::from_secs(2));
    world.keep_house();
    assert_eq!(world.phase("a"), Phase::Overdue);
    assert_eq!(failures::budget_left(&world.look()), Some(1));

    // It lives, and tries again in the place that it has: that takes time anew.
    assert_eq!(world.pre_reboot("a"), "yes");
    assert_eq!(world.phase("a"), Phase::Draining);
    world.pass(DEADLINE - Duration::from_secs(1));
    world.keep_house();
    assert_eq!(world.phase("a"), Phase::Draining);
    assert_eq!(failures::budget_left(&world.look()), Some(1));
    assert!(world.steady_state("a"));
    assert_eq!(failures::budget_left(&world.look()), Some(2));
}

#[test]
fn places_of_others_under_the_same_id_are_left_alone() {
    let mut world = World::new(2);
    world.agent("agent");
    // An older tool knows the document only.
    let mut document = world.look().places().clone();
    document.lock(&"old".into()).unwrap();
    let old = Transaction {
        when: Vec::new(),
        then: vec![Write::Put(
            Key::Document,
            crate::semaphore::Record::Document(document),
            LeaseId::default(),
        )],
        otherwise: Vec::new(),
    };
    world.commit(&old);
    let before = world.look();
    for id in ["agent", "old"] {
        assert_eq!(world.pre_reboot(id), "failed_lock_held_otherwise");
        assert!(!world.steady_state(id));
    }
    assert_eq!(world.look(), before);
    // The same tool takes away what is this protocol's.
    world.agent_leaves("agent");
    assert_eq!(world.pre_reboot("a"), "yes");
    let mut document = world.look().places().clone();
    document.unlock(&"a".into()).unwrap();
    let taken = Transaction {
        then: vec![Write::Put(
            Key::Document,
            crate::semaphore::Record::Document(document),
            LeaseId::default(),
        )],
        ..Transaction::default()
    };
    world.commit(&taken);
    assert_eq!(world.pre_reboot("a"), "yes");
    assert_eq!(world.holders(), ["a", "old"]);
}

#[test]
fn without_agents_in_line_places_go_to_whoever_asks_next() {
    let mut world = World::new(1);
    world.agent("agent");
    assert_eq!(world.pre_reboot("a"), "failed_lock_semaphore_full");
    world.agent_leaves("agent");
    assert_eq!(world.pre_reboot("b"), "yes");
    assert_eq!(world.look().queue_length, 0);
}

#[test]
fn agents_in_line_do_not_overtake_a_client_that_polls() {
    let mut world = World::new(1);
    world.agent("first");
    let second = world.agent("second");
    assert_eq!(world.pre_reboot("a"), "waits");
    world.agent("third");
    // Two polls that come late, and agents that keep their tickets alive.
    for _ in 0..10 {
        world.pass(Duration::from_secs(60));
        world.group.keep_alive(second);
    }
    assert_eq!(world.pre_reboot("a"), "waits");
    assert_eq!(world.look().queue_length, 2, "the third did not");
    world.agent_leaves("first");
    world.agent_confirms("second");
    world.agent_leaves("second");
    // The place is kept until the next poll, which confirms it.
    assert_eq!(world.phase("a"), Phase::Granted);
    assert_eq!(world.holders(), ["a"]);
    assert_eq!(world.pre_reboot("b"), "failed_lock_semaphore_full");
    assert_eq!(world.pre_reboot("a"), "yes");
    assert_eq!(world.phase("a"), Phase::Draining);
    assert_eq!(world.look().queue_length, 0);
    assert!(world.steady_state("a"));
}

#[test]
fn a_client_that_went_away_while_it_waited_keeps_nothing_and_burns_nothing() {
    let mut world = World::new(1);
    world.agent("first");
    world.agent("second");
    assert_eq!(world.pre_reboot("a"), "waits");
    world.agent_leaves("first");
    world.agent_confirms("second");
    world.agent_leaves("second");
    assert_eq!(world.phase("a"), Phase::Granted);
    world.pass(PATIENCE + Duration::from_secs(1));
    world.keep_house();
    assert_eq!(world.holders(), Vec::<String>::new());
    assert_eq!(failures::budget_left(&world.look()), Some(2));
    assert_eq!(world.pre_reboot("b"), "yes");
}

#[test]
fn who_stands_in_line_stays_there_while_the_group_is_closed() {
    let mut world = World::new(1);
    world.agent("first");
    let second = world.agent("second");
    assert_eq!(world.pre_reboot("a"), "waits");
    let pause = Paused {
        by: "me".into(),
        why: "lunch".into(),
        at: 0,
    };
    let pause = steering::pause(&world.look(), pause);
    world.commit(&pause);
    for _ in 0..30 {
        world.pass(Duration::from_secs(60));
        world.group.keep_alive(second);
        assert_eq!(world.pre_reboot("a"), "fleet_paused");
    }
    let halt = Halt {
        by: "me".into(),
        why: "fire".into(),
        at: 0,
    };
    let halt = failures::halt(&world.look(), halt).unwrap();
    world.commit(&halt);
    for _ in 0..30 {
        world.pass(Duration::from_secs(60));
        world.group.keep_alive(second);
        assert_eq!(world.pre_reboot("a"), "fleet_halted");
    }
    assert_eq!(world.look().queue_length, 2);
}

#[test]
fn a_client_that_is_steady_again_leaves_the_line() {
    let mut world = World::new(1);
    world.agent("first");
    world.agent("second");
    assert_eq!(world.pre_reboot("a"), "waits");
    assert!(world.steady_state("a"));
    assert_eq!(world.look().queue_length, 1);
    // As well when its turn has come meanwhile.
    assert_eq!(world.pre_reboot("a"), "waits");
    world.agent_leaves("first");
    world.agent_confirms("second");
    world.agent_leaves("second");
    assert_eq!(world.phase("a"), Phase::Granted);
    assert!(world.steady_state("a"));
    assert_eq!(world.holders(), Vec::<String>::new());
}

#[test]
fn a_store_with_nothing_but_the_document_follows_the_original() {
    let document_only = |holders: &[&str]| Snapshot {
        document_only: true,
        document: crate::semaphore::Versioned {
            value: Some(Arc::new(crate::semaphore::Document::new(
                1,
                holders.iter().map(|id| MachineId::new(id)),
            ))),
            created: 1,
            modified: 7,
        },
        ..Snapshot::default()
    };
    let a = MachineId::new("a");
    let asking = Asking {
        id: &a,
        rank: 500,
        nonce: "n",
        ticket: None,
        deadline: None,
    };
    let ask = |holders: &[&str]| pre_reboot(&document_only(holders), &asking, 0);
    assert!(matches!(ask(&[]), Step::Commit(_)));
    assert_eq!(ask(&["a"]), Step::Yes);
    assert!(matches!(ask(&["b"]), Step::No(refusal) if refusal.kind == No::SemaphoreFull));
    assert!(steady_state(&document_only(&["a"]), &a, 0).is_some());
    assert_eq!(steady_state(&document_only(&["b"]), &a, 0), None);
}

#[test]
fn each_place_burns_the_budget_once() {
    let mut world = World::new(2);
    let burned = |world: &World| -> Vec<FailureKind> {
        let failures = world.look().failures.value.unwrap_or_default();
        let kind = |failure: &Failure| failure.kind;
        failures.failures.iter().map(kind).collect()
    };
    for _ in 0..2 {
        assert_eq!(world.pre_reboot("a"), "yes");
        world.pass(DEADLINE * 2);
        world.keep_house();
        assert_eq!(burned(&world), [FailureKind::Overdue]);
    }
    assert_eq!(world.pre_reboot("b"), "yes");
    world.pass(DEADLINE * 2);
    world.keep_house();
    assert_eq!(burned(&world).len(), 2);
    assert_eq!(world.pre_reboot("c"), "fleet_halted");
}
