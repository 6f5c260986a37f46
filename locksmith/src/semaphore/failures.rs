//! Machines that did not come back well, the budget that they burn, and the halt
//! that follows.
//!
//! A failure never frees a place. It is written once for each place, by its
//! machine or by anybody who notices; the transaction that spends the last of
//! the budget sets the halt as well, so there is no moment between the two.

use std::cmp::Ordering;

use super::key::Key;
use super::places::{Draft, on_holder, put_holder};
use super::record::{Failure, FailureKind, Failures, Halt, Holder, Kind, Phase, Policy, Record};
use super::snapshot::{Compare, LeaseId, Revision, Snapshot, Transaction, Write};
use crate::machine_id::MachineId;

/// Failures that are kept where no budget ends them.
const MOST_FAILURES: usize = 1000;

/// Marks every holder whose deadline has passed. `None`: there is none, or all
/// are marked.
#[must_use]
pub fn mark_overdue(snapshot: &Snapshot, now: i64) -> Option<Transaction> {
    // Whoever waits looks at all holders: holders and deadlines are in one order,
    // so that one pass over both is enough.
    let mut deadlines = snapshot.deadlines.iter().peekable();
    let (id, record, holder) = snapshot.holders.iter().find_map(|(id, record)| {
        let holder = record.value.as_ref()?;
        let underway = matches!(
            holder.phase,
            Phase::Draining | Phase::Rebooting | Phase::Verifying
        );
        if !underway || matches!(holder.kind, Kind::Manual | Kind::Unknown) {
            return None;
        }
        while let Some(other) = deadlines.peek() {
            match (*other).cmp(id) {
                Ordering::Less => deadlines.next(),
                Ordering::Equal => return None,
                Ordering::Greater => break,
            };
        }
        let holds = snapshot.places().holds(id);
        holds.then_some((id, record, holder))
    })?;
    let reason = match (holder.kind, holder.phase) {
        (Kind::Fleetlock, _) => "did not report steady-state in time",
        (_, Phase::Draining) => "did not get ready to reboot in time",
        (_, Phase::Rebooting) => "did not come back in time",
        _ => "did not prove healthy in time",
    };
    let mut change = Change::new(snapshot);
    change
        .when
        .push(Compare::Modified(Key::Holder(id.clone()), record.modified));
    change
        .when
        .push(Compare::Modified(Key::Deadline(id.clone()), 0));
    change.then.push(put_holder(
        id,
        Holder {
            phase: Phase::Overdue,
            reason: reason.to_owned(),
            ..holder.clone()
        },
    ));
    change.burn(id, holder, FailureKind::Overdue, reason, now);
    Some(change.finish())
}

/// Marks the holder of the place `token` as failed: it is back and not well. It
/// keeps its place. `None`: the place is gone, or it is marked already.
#[must_use]
pub fn mark_failed(
    snapshot: &Snapshot,
    id: &MachineId,
    token: Revision,
    reason: &str,
    now: i64,
) -> Option<Transaction> {
    let holder = super::places::held(snapshot, id, token)?;
    if holder.phase == Phase::Failed {
        return None;
    }
    let mut change = Change::new(snapshot);
    change
        .when
        .push(Compare::Created(Key::Holder(id.clone()), token));
    change.when.push(on_holder(snapshot, id));
    change.then.push(put_holder(
        id,
        Holder {
            phase: Phase::Failed,
            reason: reason.to_owned(),
            ..holder.clone()
        },
    ));
    change.burn(id, holder, FailureKind::Failed, reason, now);
    Some(change.finish())
}

/// Gives a machine up: its place is freed and the budget burned, in an
/// operator's name. `None`: it has no place.
#[must_use]
pub fn unlock_lost(snapshot: &Snapshot, id: &MachineId, now: i64) -> Option<Transaction> {
    if !snapshot.places().holds(id) {
        return None;
    }
    let record = snapshot.holders.get(id);
    let unknown = Holder {
        since: now,
        ..Holder::new(Kind::default(), String::new())
    };
    let holder = record
        .and_then(|record| record.value.as_ref())
        .unwrap_or(&unknown);
    let mut draft = Draft::new(snapshot);
    draft.leave(id, "lost", now);
    let mut change = Change::new(snapshot);
    change.burn(
        id,
        holder,
        FailureKind::Lost,
        "given up by an operator",
        now,
    );
    let halts = change.halts;
    draft.when.append(&mut change.when);
    draft.then.append(&mut change.then);
    // The places go to others only if the fleet goes on.
    if !halts {
        draft.serve(now);
    }
    Some(draft.finish(Vec::new()))
}

/// Halts the group in an operator's name. `None`: it is halted.
#[must_use]
pub fn halt(snapshot: &Snapshot, halt: Halt) -> Option<Transaction> {
    snapshot.halt.value.is_none().then(|| Transaction {
        when: vec![Compare::Modified(Key::Halt, snapshot.halt.modified)],
        then: vec![Write::Put(
            Key::Halt,
            Record::Halt(halt),
            LeaseId::default(),
        )],
        otherwise: Vec::new(),
    })
}

/// Lets the group go on and forgets what burned the budget. `None`: there is
/// nothing to clear.
#[must_use]
pub fn clear_halt(snapshot: &Snapshot) -> Option<Transaction> {
    if snapshot.halt.modified == 0 && snapshot.failures.modified == 0 {
        return None;
    }
    Some(Transaction {
        when: vec![
            Compare::Modified(Key::Halt, snapshot.halt.modified),
            Compare::Modified(Key::Failures, snapshot.failures.modified),
        ],
        then: vec![Write::Delete(Key::Halt), Write::Delete(Key::Failures)],
        otherwise: Vec::new(),
    })
}

/// Failures that the group can still take before it halts; `None`: it never
/// halts.
#[must_use]
pub fn budget_left(snapshot: &Snapshot) -> Option<u32> {
    let budget = budget(snapshot);
    (budget > 0).then(|| budget.saturating_sub(counted(snapshot)))
}

fn budget(snapshot: &Snapshot) -> u32 {
    let policy = snapshot.policy.value.as_ref();
    policy.map_or_else(|| Policy::default().budget, |policy| policy.budget)
}

/// Whether there is a list of failures that nobody can read.
fn unreadable(snapshot: &Snapshot) -> bool {
    snapshot.failures.modified != 0 && snapshot.failures.value.is_none()
}

fn counted(snapshot: &Snapshot) -> u32 {
    if unreadable(snapshot) {
        return u32::MAX;
    }
    let failures = snapshot.failures.value.as_ref();
    let count = failures.map_or(0, |failures| failures.failures.len());
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// A change that burns budget.
struct Change<'a> {
    snapshot: &'a Snapshot,
    when: Vec<Compare>,
    then: Vec<Write>,
    halts: bool,
}

impl<'a> Change<'a> {
    fn new(snapshot: &'a Snapshot) -> Self {
        Self {
            snapshot,
            when: Vec::new(),
            then: Vec::new(),
            halts: false,
        }
    }

    /// Adds one failure, once for each place, and the halt if it was the last
    /// that the budget allows.
    fn burn(&mut self, id: &MachineId, holder: &Holder, kind: FailureKind, reason: &str, now: i64) {
        let snapshot = self.snapshot;
        let mut failures: Failures = snapshot.failures.value.clone().unwrap_or_default();
        failures
            .failures
            .retain(|failure| failure.id != *id || failure.nonce != holder.nonce);
        failures.failures.push(Failure {
            id: id.clone(),
            kind,
            version: holder.to.clone(),
            reason: reason.to_owned(),
            at: now,
            nonce: holder.nonce.clone(),
        });
        self.when
            .push(Compare::Modified(Key::Failures, snapshot.failures.modified));
        // Budget and halt are read here, so they must not change meanwhile.
        self.when
            .push(Compare::Modified(Key::Policy, snapshot.policy.modified));
        self.when
            .push(Compare::Modified(Key::Halt, snapshot.halt.modified));
        let budget = budget(snapshot);
        let spent = u32::try_from(failures.failures.len()).unwrap_or(u32::MAX);
        // A list that cannot be read may have had any number of them.
        let spent = if unreadable(snapshot) {
            budget.max(spent)
        } else {
            spent
        };
        // Where failures never halt, the list must end somewhere.
        let surplus = failures.failures.len().saturating_sub(MOST_FAILURES);
        if spent < budget || budget == 0 {
            failures.failures.drain(..surplus);
        }
        if budget > 0 && spent >= budget && snapshot.halt.modified == 0 {
            self.halts = true;
            let machines: Vec<_> = failures
                .failures
                .iter()
                .map(|failure| format!("{} {}", failure.id, failure.reason))
                .collect();
            self.then.push(Write::Put(
                Key::Halt,
                Record::Halt(Halt {
                    by: id.to_string(),
                    why: format!("{spent} of {budget} failures: {}", machines.join("; ")),
                    at: now,
                }),
                LeaseId::default(),
            ));
        }
        self.then.push(Write::Put(
            Key::Failures,
            Record::Failures(failures),
            LeaseId::default(),
        ));
    }

    fn finish(self) -> Transaction {
        Transaction {
            when: self.when,
            then: self.then,
            otherwise: Vec::new(),
        }
    }
}
