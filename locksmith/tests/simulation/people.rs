//! Those who touch the semaphore and are no agents: operators with this
//! project's tools, people with the tools of the original, and people with a
//! text editor. Each reads, thinks for a few milliseconds, and commits.

use std::time::Duration;

use locksmith::machine_id::MachineId;
use locksmith::semaphore::places::{self, Acquire, Request};
use locksmith::semaphore::{
    Document, Halt, Holder, Key, Kind, LeaseId, Look, Max, Paused, Phase, Record, Snapshot,
    Transaction, Write, failures, steering,
};

use super::checker::Author;
use super::controls::Broken;
use super::fleet::Faults;
use super::world::{Power, What, World, wall};

#[derive(Debug, Clone)]
pub(crate) enum Act {
    /// An operator looks every minute and puts right what waits for a person.
    Attend,
    /// An operator does something.
    Meddle,
    SetMax(Max),
    Pause,
    Resume,
    Halt,
    Clear,
    Check,
    Unlock(MachineId),
    UnlockLost(MachineId),
    Lock(MachineId),
    EndLock(MachineId),
    /// Somebody edits the document.
    Edit,
    /// A client of the original takes a place, and gives it back.
    LegacyLock(MachineId),
    LegacyUnlock(MachineId),
}

impl World {
    pub(crate) fn begin_acts(&mut self, faults: &Faults) {
        self.plan(Duration::from_secs(60), What::Act(Act::Attend));
        self.plan_next(faults.operators, What::Act(Act::Meddle));
        self.plan_next(faults.edits, What::Act(Act::Edit));
        for number in 0..self.fleet.legacy {
            let id = MachineId::new(&format!("original-{number}"));
            let at = faults.end.mul_f64(self.rng.f64() * 0.5);
            self.plan(at, What::Act(Act::LegacyLock(id)));
        }
    }

    pub(crate) fn act(&mut self, act: Act) {
        self.touch();
        let snapshot = self.group.load(&Look::default());
        let now = wall(self.now);
        let mut author = Author::Operator;
        let transaction = match &act {
            Act::Attend => {
                self.attend(&snapshot);
                None
            }
            Act::Meddle => {
                self.meddle(&snapshot);
                None
            }
            Act::SetMax(max) => Some(steering::set_max(&snapshot, *max, now).2),
            Act::Pause => Some(steering::pause(
                &snapshot,
                Paused {
                    by: "an operator".into(),
                    why: "a test".into(),
                    at: now,
                },
            )),
            Act::Resume => steering::resume(&snapshot),
            Act::Halt => failures::halt(
                &snapshot,
                Halt {
                    by: "an operator".into(),
                    why: "a test".into(),
                    at: now,
                },
            ),
            Act::Clear => failures::clear_halt(&snapshot),
            Act::Check => steering::check(&snapshot).1,
            Act::Unlock(id) => places::unlock(&snapshot, id, "unlocked", now),
            Act::UnlockLost(id) => failures::unlock_lost(&snapshot, id, now),
            Act::Lock(id) => lock(&snapshot, id, now),
            Act::EndLock(id) => {
                let record = snapshot.holders.get(id);
                let manual = record
                    .and_then(|record| record.value.as_ref())
                    .is_some_and(|holder| holder.kind == Kind::Manual);
                let end = manual.then(|| places::unlock(&snapshot, id, "unlocked", now));
                end.flatten()
            }
            Act::Edit => {
                author = Author::Hand;
                self.edit(&snapshot)
            }
            Act::LegacyLock(id) => {
                author = Author::Legacy(id.clone());
                let locked = legacy_lock(snapshot.places(), id);
                if locked.is_none() && self.faults().is_some() {
                    let again = Duration::from_secs(self.rng.u64(10..60));
                    self.plan(self.now + again, What::Act(act.clone()));
                }
                locked.map(|document| on_document(&snapshot, document))
            }
            Act::LegacyUnlock(id) => {
                author = Author::Legacy(id.clone());
                let mut document = snapshot.places().clone();
                let unlocked = document.unlock(id).is_ok();
                unlocked.then(|| on_document(&snapshot, document))
            }
        };
        if let Some(mut transaction) = transaction {
            let mut delay = self.delay();
            if self.is_broken(Broken::BlindLegacy) && matches!(author, Author::Legacy(_)) {
                transaction.when.clear();
                delay *= 100;
            }
            let acted = What::Acted {
                act,
                author,
                transaction: Box::new(transaction),
            };
            self.plan(self.now + delay, acted);
        }
    }

    pub(crate) fn acted(&mut self, act: Act, author: &Author, transaction: &Transaction) {
        self.touch();
        let (_, succeeded) = self.commit(author, transaction);
        self.note_person(|| format!("{act:?} by {author:?}: {succeeded}"));
        if !succeeded {
            let again = Duration::from_millis(self.rng.u64(50..500));
            self.plan(self.now + again, What::Act(act));
            return;
        }
        let later = self.now + Duration::from_secs(self.rng.u64(60..300));
        match act {
            Act::Pause => self.plan(later, What::Act(Act::Resume)),
            Act::Halt => self.plan(later, What::Act(Act::Clear)),
            Act::Lock(id) => self.plan(later, What::Act(Act::EndLock(id))),
            Act::LegacyLock(id) => self.plan(later, What::Act(Act::LegacyUnlock(id))),
            Act::LegacyUnlock(id)
                if id.as_str().starts_with("original-") && self.faults().is_some() =>
            {
                self.plan(later, What::Act(Act::LegacyLock(id)));
            }
            // Only now: an edit that is refused is made again, and each would be followed
            // by two.
            Act::Edit => {
                if let Some(every) = self.faults().map(|faults| faults.edits) {
                    self.plan_next(every, What::Act(Act::Edit));
                }
            }
            _ => {}
        }
    }

    fn attend(&mut self, snapshot: &Snapshot) {
        let next = self.now + Duration::from_secs(60);
        self.plan(next, What::Act(Act::Attend));
        let mut acts = Vec::new();
        if snapshot.halt.value.is_some() && self.rng.u8(..3) == 0 {
            acts.push(Act::Clear);
        }
        let places = snapshot.places();
        if !places.is_sound() {
            acts.push(Act::Check);
        }
        // After a change and after an edit the number comes back in time.
        if self.fleet.percent.is_none()
            && places.max != self.fleet.places
            && (self.faults().is_none() || self.rng.u8(..5) == 0)
        {
            acts.push(Act::SetMax(Max::Count(self.fleet.places)));
        }
        // Where nobody waits, nobody marks the late.
        let knows = self.rng.u8(..20) == 0;
        let lost = places.holders.iter().find(|id| {
            let record = snapshot.holders.get(*id);
            let late = record
                .and_then(|record| record.value.as_ref())
                .is_none_or(|holder| holder.phase == Phase::Overdue);
            self.is_dead(id) && (late || knows)
        });
        acts.extend(lost.cloned().map(Act::UnlockLost));
        for act in acts {
            self.act(act);
        }
    }

    fn meddle(&mut self, snapshot: &Snapshot) {
        let Some(every) = self.faults().map(|faults| faults.operators) else {
            return;
        };
        self.count("act of an operator");
        self.plan_next(every, What::Act(Act::Meddle));
        let machine = self.rng.usize(..self.machines.len());
        let machine = self.machines[machine].id.clone();
        let holders = &snapshot.places().holders;
        let holder = match holders.len() {
            0 => machine.clone(),
            some => holders[self.rng.usize(..some)].clone(),
        };
        let act = match self.rng.u8(..8) {
            0 | 1 if self.fleet.percent.is_none() => {
                let most = self.fleet.places + 2;
                Act::SetMax(Max::Count(self.rng.i64(-1..=most)))
            }
            2 => Act::Pause,
            3 => Act::Halt,
            4 => Act::Unlock(holder),
            5 => Act::LegacyUnlock(holder),
            6 => Act::LegacyLock(MachineId::new("original-guest")),
            _ => Act::Lock(machine),
        };
        self.act(act);
    }

    /// What hands do to a document.
    fn edit(&mut self, snapshot: &Snapshot) -> Option<Transaction> {
        self.faults()?;
        self.count("edit by hand");
        let mut document = snapshot.places().clone();
        match self.rng.u8(..4) {
            0 => {
                return Some(Transaction {
                    then: vec![Write::Delete(Key::Document)],
                    ..on_document(snapshot, document)
                });
            }
            1 => {
                document.holders.reverse();
                document.holders.extend(document.holders.first().cloned());
            }
            2 => document.semaphore -= self.rng.i64(1..5),
            _ => document.semaphore += self.rng.i64(1..5),
        }
        Some(on_document(snapshot, document))
    }

    fn is_dead(&self, id: &MachineId) -> bool {
        let mut those = self.machines_of(id);
        those.any(|machine| machine.power == Power::Dead)
    }
}

/// `locksmithctl lock`: a place in the name of a machine, for work by hand.
fn lock(snapshot: &Snapshot, id: &MachineId, now: i64) -> Option<Transaction> {
    let request = Request {
        id: id.clone(),
        rank: 100,
        holder: Holder {
            ..Holder::new(Kind::Manual, format!("by hand {now}"))
        },
        confirm: false,
        ticket_lease: LeaseId::default(),
        deadline_lease: LeaseId::default(),
    };
    match places::acquire(snapshot, &request, None, false, now) {
        Acquire::Commit { transaction, .. } => Some(transaction),
        _ => None,
    }
}

/// The original's rule, which trusts the counter.
fn legacy_lock(document: &Document, id: &MachineId) -> Option<Document> {
    if document.semaphore <= 0 || document.holds(id) {
        return None;
    }
    let mut document = document.clone();
    document.holders.push(id.clone());
    document.holders.sort_unstable();
    document.semaphore -= 1;
    Some(document)
}

fn on_document(snapshot: &Snapshot, document: Document) -> Transaction {
    Transaction {
        when: vec![locksmith::semaphore::Compare::Modified(
            Key::Document,
            snapshot.document.modified,
        )],
        then: vec![Write::Put(
            Key::Document,
            Record::Document(document),
            LeaseId::default(),
        )],
        otherwise: Vec::new(),
    }
}
