//! What an operator changes: the number of places, the budget, a pause; and
//! putting right what tools or hands left crooked.

use std::fmt;
use std::str::FromStr;

use super::document::Document;
use super::key::Key;
use super::places::{Draft, on_document, share};
use super::record::{Max, Paused, Policy, Record};
use super::snapshot::{Compare, LeaseId, Snapshot, Transaction, Write};
use crate::machine_id::MachineId;

/// A number of places that cannot be meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Invalid maximum value: {0}")]
pub struct BadMax(String);

impl FromStr for Max {
    type Err = BadMax;

    /// Reads `2`, `+2`, `-1` as the original does, and `10%`.
    fn from_str(text: &str) -> Result<Self, BadMax> {
        let bad = || BadMax(text.to_owned());
        if let Some(percent) = text.strip_suffix('%') {
            return match percent.parse() {
                Ok(percent @ 1..=100) => Ok(Self::Percent(percent)),
                _ => Err(bad()),
            };
        }
        text.parse().map(Self::Count).map_err(|_| bad())
    }
}

impl fmt::Display for Max {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => write!(f, "{count}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// Sets the number of places and serves the queue. Returns the number before
/// and after. Holders stay, however low it gets.
#[must_use]
pub fn set_max(snapshot: &Snapshot, max: Max, now: i64) -> (i64, i64, Transaction) {
    let before = snapshot.places().max;
    let mut policy = snapshot.policy.value.clone().unwrap_or_default();
    let (percent, count) = match max {
        Max::Count(count) => (None, count),
        Max::Percent(percent) => (Some(percent), share(snapshot.members, percent)),
    };
    let changed = policy.max_percent != percent;
    policy.max_percent = percent;
    let mut draft = Draft::new(snapshot);
    draft.document.to_mut().set_max(count);
    draft.serve(now);
    if changed {
        draft
            .when
            .push(Compare::Modified(Key::Policy, snapshot.policy.modified));
        draft.then.push(put_policy(policy));
    }
    (before, count, draft.finish(Vec::new()))
}

/// Changes the policy.
#[must_use]
pub fn set_policy(snapshot: &Snapshot, change: impl FnOnce(&mut Policy)) -> Transaction {
    let mut policy = snapshot.policy.value.clone().unwrap_or_default();
    change(&mut policy);
    Transaction {
        when: vec![Compare::Modified(Key::Policy, snapshot.policy.modified)],
        then: vec![put_policy(policy)],
        otherwise: Vec::new(),
    }
}

/// Nobody gets a place until [`resume`]; who has one goes on.
#[must_use]
pub fn pause(snapshot: &Snapshot, paused: Paused) -> Transaction {
    set_policy(snapshot, |policy| policy.paused = Some(paused))
}

/// Ends a pause. `None`: there is none.
#[must_use]
pub fn resume(snapshot: &Snapshot) -> Option<Transaction> {
    let policy = snapshot.policy.value.as_ref()?;
    policy.paused.as_ref()?;
    Some(set_policy(snapshot, |policy| policy.paused = None))
}

/// Something crooked in a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// The holders are not sorted, or one is there twice.
    Order,
    /// `semaphore` is not `max` minus the holders; what it is and should be.
    Count(i64, i64),
    /// A record of a machine that has no place.
    Orphan(MachineId),
    /// A place without a record: an older tool took it, or a hand.
    Unexplained(MachineId),
    /// A place whose record says nothing: a hand wrote it, or a later version.
    Unreadable(MachineId),
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Order => f.write_str("holders are not sorted, or repeated"),
            Self::Count(is, should) => write!(f, "semaphore is {is} and should be {should}"),
            Self::Orphan(id) => write!(f, "{id} has a record but no place"),
            Self::Unexplained(id) => write!(
                f,
                "{id} has a place but no record: an older tool took it, or an edit by hand"
            ),
            Self::Unreadable(id) => write!(
                f,
                "{id} has a record that cannot be read: its agent, or unlock, frees its place"
            ),
        }
    }
}

/// Looks for what is crooked, and makes the transaction that puts it right.
/// Unexplained places are told, not touched: an older agent may have one.
#[must_use]
pub fn check(snapshot: &Snapshot) -> (Vec<Finding>, Option<Transaction>) {
    let places = snapshot.places();
    let mut findings = Vec::new();
    let mut healed: Document = places.clone();
    healed.heal();
    if healed.holders != places.holders {
        findings.push(Finding::Order);
    }
    if healed.semaphore != places.semaphore {
        findings.push(Finding::Count(places.semaphore, healed.semaphore));
    }
    let mut then = Vec::new();
    let mut when = vec![on_document(snapshot)];
    if !places.is_sound() {
        then.push(Write::Put(
            Key::Document,
            Record::Document(healed),
            LeaseId::default(),
        ));
    }
    for (id, record) in snapshot.holders.iter() {
        if !places.holds(id) {
            findings.push(Finding::Orphan(id.clone()));
            // A long list takes more than one run.
            if then.len() < 100 {
                when.push(Compare::Modified(Key::Holder(id.clone()), record.modified));
                then.push(Write::Delete(Key::Holder(id.clone())));
                then.push(Write::Delete(Key::Deadline(id.clone())));
            }
        }
    }
    if !snapshot.document_only {
        for id in &places.holders {
            if !snapshot.holders.contains_key(id) {
                findings.push(Finding::Unexplained(id.clone()));
            } else if !snapshot.is_explained(id) {
                findings.push(Finding::Unreadable(id.clone()));
            }
        }
    }
    let transaction = (!then.is_empty()).then_some(Transaction {
        when,
        then,
        otherwise: Vec::new(),
    });
    (findings, transaction)
}

fn put_policy(policy: Policy) -> Write {
    Write::Put(Key::Policy, Record::Policy(policy), LeaseId::default())
}
