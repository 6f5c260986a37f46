//! Taking a place, waiting for one, confirming it, giving it back.
//!
//! ```text
//!            acquire                 another's transaction
//!   nothing ─────────▶ ticket ───────────────────────────▶ granted ─┐ confirm
//!      │                 ▲ lost the race                            ▼
//!      └─────────────────┴──────── acquire, place free ────────▶ draining
//!                                                                   │ fence
//!   nothing ◀── release ── verifying ◀── the machine is back ── rebooting
//! ```
//!
//! Whoever changes the places also serves the queue in the same transaction, so
//! a place that becomes free goes to the next in line at once and costs it
//! nothing. A transaction that loses the race for the document leaves a ticket
//! behind instead; however many come at once, nobody needs a third attempt.

use std::borrow::Cow;

use super::document::Document;
use super::key::{Key, TicketKey};
use super::record::{Holder, Kind, Outcome, Phase, Record, Ticket};
use super::snapshot::{Compare, LeaseId, Revision, Snapshot, Transaction, Write};
use crate::machine_id::MachineId;

/// Writes or conditions of one transaction, but for the few at its end: etcd
/// takes 128 of each.
const MOST_OPERATIONS: usize = 100;

/// Outcomes that are kept of each machine.
const HISTORY: usize = 8;

/// Who wants a place, and what for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Request {
    /// Who.
    pub id: MachineId,
    /// 0 to 999; lower is served first.
    pub rank: u16,
    /// The record to keep; `phase`, `since` and `ticket` are filled in.
    pub holder: Holder,
    /// Whether a place that is given later must be confirmed. An agent confirms,
    /// so that a dead one blocks nobody; a command that ends with the lock does
    /// not.
    pub confirm: bool,
    /// Lease of the ticket; none: do not wait.
    pub ticket_lease: LeaseId,
    /// Lease of the deadline; none: the place has no deadline.
    pub deadline_lease: LeaseId,
}

/// A place that somebody has.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Place {
    /// Fencing token: the create revision of the holder's record.
    pub token: Revision,
    /// The record.
    pub holder: Holder,
}

/// What stands between a request and its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Acquire {
    /// It has one.
    Held(Place),
    /// One was given to its ticket: [`confirm`] it.
    Granted(Place),
    /// Commit this. Success gives the place; otherwise the request waits with
    /// `ticket`, if it waits at all. Look again either way.
    Commit {
        /// To be committed.
        transaction: Transaction,
        /// The ticket that it may leave behind.
        ticket: Option<TicketKey>,
    },
    /// Its ticket stands; there is nothing to do but wait.
    Waiting {
        /// Waiters before it; at least this many if the queue is long.
        ahead: usize,
        /// Whether places are free, so that it should be its turn soon.
        soon: bool,
    },
    /// It cannot have a place now.
    Refused(Refusal),
}

/// Why there is no place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// All are taken. The text is the original's.
    #[error("semaphore is at {0}")]
    Full(i64),
    /// An operator holds a place in this machine's name.
    #[error("an operator holds the lock for this machine")]
    Manual,
    /// The group is halted.
    #[error("the group is halted: {0}")]
    Halted(String),
    /// The group is paused.
    #[error("the group is paused: {0}")]
    Paused(String),
}

/// Why a holder may not reboot, or may not go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fenced {
    /// The place is gone: an operator or an older tool took it away.
    #[error("the place is gone")]
    Lost,
    /// The group is halted.
    #[error("the group is halted: {0}")]
    Halted(String),
}

/// Asks for a place. `ticket` is the ticket that the request already has, by its
/// own account; `now` in Unix seconds. An `impatient` one serves the queue when
/// it sees free places, whoever is first; the others leave that to the first in
/// line, so that a crowd does not fight for the document.
///
/// Asking again changes nothing: a place or ticket that is there is found.
#[must_use]
pub fn acquire(
    snapshot: &Snapshot,
    request: &Request,
    ticket: Option<&TicketKey>,
    impatient: bool,
    now: i64,
) -> Acquire {
    let id = &request.id;
    let places = snapshot.places();
    if snapshot.document_only {
        return acquire_by_document(snapshot, request);
    }
    if let Some(record) = snapshot.holders.get(id) {
        if let (true, Some(holder)) = (places.holds(id), &record.value) {
            let place = Place {
                token: record.created,
                holder: holder.clone(),
            };
            return match (holder.kind, request.holder.kind, holder.phase) {
                (Kind::Manual, Kind::Reboot, _) => Acquire::Refused(Refusal::Manual),
                (_, _, Phase::Granted) => Acquire::Granted(place),
                _ => Acquire::Held(place),
            };
        }
        // A record without a place: an older tool unlocked it. The key must go
        // before it can come back with a revision, and so a token, of its own.
        return Acquire::Commit {
            transaction: Transaction {
                when: vec![
                    on_document(snapshot),
                    Compare::Modified(Key::Holder(id.clone()), record.modified),
                ],
                then: vec![
                    Write::Delete(Key::Holder(id.clone())),
                    Write::Delete(Key::Deadline(id.clone())),
                ],
                otherwise: Vec::new(),
            },
            ticket: ticket.cloned(),
        };
    }
    if let Some(no) = closed(snapshot) {
        // Those who wait keep their turn; the others come back later.
        return match ticket {
            Some(key) if stands(snapshot, key) => waiting(snapshot, key, false),
            _ => Acquire::Refused(no),
        };
    }

    let mine = ticket.filter(|key| stands(snapshot, key));
    let mut draft = Draft::new(snapshot);
    let adopted = places.holds(id);
    let others_wait = draft.serve(now);
    let first = draft.granted.first() == Some(id);
    let granted = draft.granted.contains(id);
    let straight = draft.has_room()
        && (adopted || (!granted && !others_wait && draft.document.to_mut().lock(id).is_ok()));
    if straight {
        draft.take(request, mine, now);
        let fresh = ticket_key(snapshot, request);
        let waits = mine.is_none() && request.ticket_lease != LeaseId::default();
        let otherwise = if waits {
            vec![put_ticket(&fresh, request, now)]
        } else {
            Vec::new()
        };
        return Acquire::Commit {
            transaction: draft.finish(otherwise),
            ticket: mine.cloned().or(waits.then_some(fresh)),
        };
    }
    match mine {
        Some(key) if !draft.is_idle() && (first || impatient) => Acquire::Commit {
            transaction: draft.finish(Vec::new()),
            ticket: Some(key.clone()),
        },
        Some(key) => waiting(snapshot, key, !draft.is_idle()),
        None if request.ticket_lease == LeaseId::default() => {
            Acquire::Refused(Refusal::Full(places.free().min(0)))
        }
        None => {
            let key = ticket_key(snapshot, request);
            Acquire::Commit {
                transaction: Transaction {
                    when: vec![Compare::Created(Key::Holder(id.clone()), 0)],
                    then: vec![put_ticket(&key, request, now)],
                    otherwise: Vec::new(),
                },
                ticket: Some(key),
            }
        }
    }
}

/// Where there is nothing but the document: the original's rules.
fn acquire_by_document(snapshot: &Snapshot, request: &Request) -> Acquire {
    let mut draft = Draft::new(snapshot);
    if draft.document.holds(&request.id) {
        return Acquire::Held(Place {
            token: 0,
            holder: Holder {
                phase: Phase::Draining,
                ..request.holder.clone()
            },
        });
    }
    match draft.document.to_mut().lock(&request.id) {
        Ok(()) => Acquire::Commit {
            transaction: draft.finish(Vec::new()),
            ticket: None,
        },
        Err(_) => Acquire::Refused(Refusal::Full(draft.document.free())),
    }
}

/// Accepts a place that was given to a ticket; from then on it is kept whatever
/// happens. `None`: the place is not there to be confirmed, look again.
#[must_use]
pub fn confirm(
    snapshot: &Snapshot,
    id: &MachineId,
    deadline_lease: LeaseId,
    now: i64,
) -> Option<Transaction> {
    let record = snapshot.holders.get(id)?;
    let holder = record.value.as_ref()?;
    if holder.phase != Phase::Granted || !snapshot.places().holds(id) {
        return None;
    }
    let mut then = vec![put_deadline(id, deadline_lease)];
    if let Some(key) = holder.ticket.as_deref().and_then(Key::parse) {
        then.push(Write::Delete(key));
    }
    then.push(put_holder(
        id,
        Holder {
            phase: Phase::Draining,
            since: now,
            ticket: None,
            ..holder.clone()
        },
    ));
    Some(Transaction {
        when: vec![
            Compare::Modified(Key::Holder(id.clone()), record.modified),
            Compare::Modified(Key::Halt, 0),
        ],
        then,
        otherwise: Vec::new(),
    })
}

/// The last step before a reboot: records that it happens, and only if the place
/// `token` is still there and the group is not halted. Its success is the
/// permission; it is worth nothing a few seconds later.
///
/// `change` sets what the reboot is into (phase, versions, boot id, mode).
///
/// # Errors
///
/// [`Fenced`] when it is known already that it would not succeed.
pub fn fence(
    snapshot: &Snapshot,
    id: &MachineId,
    token: Revision,
    deadline_lease: LeaseId,
    change: impl FnOnce(&mut Holder),
) -> Result<Transaction, Fenced> {
    if let Some(halt) = &snapshot.halt.value {
        return Err(Fenced::Halted(halt.why.clone()));
    }
    let mut transaction = advance(snapshot, id, token, change)?;
    if snapshot.document_only {
        return Ok(transaction);
    }
    // Tools of the original take a place away in the document alone.
    transaction.when.push(on_document(snapshot));
    transaction.when.push(Compare::Modified(Key::Halt, 0));
    transaction.then.push(put_deadline(id, deadline_lease));
    Ok(transaction)
}

/// Writes how far a holder is.
///
/// # Errors
///
/// [`Fenced::Lost`]: the place `token` is gone.
pub fn advance(
    snapshot: &Snapshot,
    id: &MachineId,
    token: Revision,
    change: impl FnOnce(&mut Holder),
) -> Result<Transaction, Fenced> {
    if snapshot.document_only {
        if !snapshot.places().holds(id) {
            return Err(Fenced::Lost);
        }
        return Ok(Draft::new(snapshot).finish(Vec::new()));
    }
    let mut holder = held(snapshot, id, token).ok_or(Fenced::Lost)?.clone();
    change(&mut holder);
    Ok(Transaction {
        // Not the token alone: what comes late must not undo a later step.
        when: vec![
            Compare::Created(Key::Holder(id.clone()), token),
            on_holder(snapshot, id),
        ],
        then: vec![put_holder(id, holder)],
        otherwise: Vec::new(),
    })
}

/// Starts the time of the place `token` again, under another lease.
///
/// # Errors
///
/// [`Fenced::Lost`]: the place is gone.
pub fn renew(
    snapshot: &Snapshot,
    id: &MachineId,
    token: Revision,
    deadline_lease: LeaseId,
) -> Result<Transaction, Fenced> {
    let mut transaction = advance(snapshot, id, token, |_| {})?;
    transaction.then.push(put_deadline(id, deadline_lease));
    Ok(transaction)
}

/// Gives the place `token` back and serves the queue. `how` is the outcome that
/// is kept. `None`: there is nothing to give back.
#[must_use]
pub fn release(
    snapshot: &Snapshot,
    id: &MachineId,
    token: Revision,
    how: &str,
    now: i64,
) -> Option<Transaction> {
    if snapshot.document_only {
        return unlock(snapshot, id, how, now);
    }
    let record = snapshot.holders.get(id)?;
    if record.created != token {
        return None;
    }
    let mut draft = Draft::new(snapshot);
    // Not the token alone: whoever has gone on with the place keeps it.
    draft.when.push(on_holder(snapshot, id));
    draft.leave(id, how, now);
    draft.forgive(id);
    // Or it would be given to it again.
    let ticket = record
        .value
        .as_ref()
        .and_then(|holder| holder.ticket.as_deref());
    if let Some(key @ Key::Ticket(_)) = ticket.and_then(Key::parse) {
        draft.then.push(Write::Delete(key));
    }
    draft.serve(now);
    Some(draft.finish(Vec::new()))
}

/// Takes the place of `id` away, whoever asks, and serves the queue: the
/// original's `unlock`. `None`: it has none.
#[must_use]
pub fn unlock(snapshot: &Snapshot, id: &MachineId, how: &str, now: i64) -> Option<Transaction> {
    let places = snapshot.places();
    if !places.holds(id) && !snapshot.holders.contains_key(id) {
        return None;
    }
    let mut draft = Draft::new(snapshot);
    draft.leave(id, how, now);
    draft.serve(now);
    Some(draft.finish(Vec::new()))
}

/// Leaves the queue. The document is written too, unchanged, so that a grant
/// that is under way to this ticket fails.
#[must_use]
pub fn withdraw(snapshot: &Snapshot, ticket: &TicketKey) -> Transaction {
    Transaction {
        when: vec![
            on_document(snapshot),
            Compare::Created(Key::Holder(ticket.id.clone()), 0),
        ],
        then: vec![
            Write::Put(
                Key::Document,
                Record::Document(snapshot.places().clone()),
                LeaseId::default(),
            ),
            Write::Delete(Key::Ticket(ticket.clone())),
        ],
        otherwise: Vec::new(),
    }
}

/// Gives free places to those who wait, and takes those back that were given to
/// somebody who is gone. `None`: there is nothing to do.
#[must_use]
pub fn serve(snapshot: &Snapshot, now: i64) -> Option<Transaction> {
    let mut draft = Draft::new(snapshot);
    draft.serve(now);
    (!draft.is_idle()).then(|| draft.finish(Vec::new()))
}

/// The record of `id`, if it has the place `token`.
#[must_use]
pub fn held<'a>(snapshot: &'a Snapshot, id: &MachineId, token: Revision) -> Option<&'a Holder> {
    let record = snapshot.holders.get(id)?;
    let there = record.created == token && snapshot.document.value.as_ref()?.holds(id);
    record.value.as_ref().filter(|_| there)
}

/// A change of the places under construction.
pub(super) struct Draft<'a> {
    snapshot: &'a Snapshot,
    /// Most who look change nothing, so it is not copied before it must be.
    pub(super) document: Cow<'a, Document>,
    pub(super) when: Vec<Compare>,
    pub(super) then: Vec<Write>,
    /// In the order of the queue.
    granted: Vec<MachineId>,
    /// Who leaves is not served at once: a key changes once in a transaction.
    leaver: Option<MachineId>,
    gives: bool,
}

impl<'a> Draft<'a> {
    pub(super) fn new(snapshot: &'a Snapshot) -> Self {
        let mut document = Cow::Borrowed(snapshot.places());
        if !document.is_in_order() {
            document.to_mut().sort();
        }
        let mut draft = Self {
            snapshot,
            document,
            when: vec![on_document(snapshot)],
            then: Vec::new(),
            granted: Vec::new(),
            leaver: None,
            gives: false,
        };
        draft.follow_members();
        draft
    }

    /// Where the number of places is a share of the members it follows them.
    fn follow_members(&mut self) {
        let policy = self.snapshot.policy.value.as_ref();
        let Some(percent) = policy.and_then(|policy| policy.max_percent) else {
            return;
        };
        let places = share(self.snapshot.members, percent);
        if self.document.max != places {
            self.document.to_mut().set_max(places);
        }
    }

    /// Takes dead grants back and gives free places to the queue. Returns whether
    /// somebody still waits afterwards.
    pub(super) fn serve(&mut self, now: i64) -> bool {
        let snapshot = self.snapshot;
        if snapshot.document_only {
            return false;
        }
        self.take_back();
        // A long queue is not worth a look while all places are taken.
        if closed(snapshot).is_some() || self.document.free() <= 0 {
            return snapshot.queue_length > 0;
        }
        for (key, ticket) in snapshot.queue.iter() {
            let taken = snapshot.holders.contains_key(&key.id)
                || self.leaver.as_ref() == Some(&key.id)
                || self.document.holds(&key.id);
            if taken {
                continue;
            }
            if !self.has_room() || self.document.to_mut().lock(&key.id).is_err() {
                return true;
            }
            self.grant(key, ticket, now);
        }
        // The queue may be longer than the window.
        usize::try_from(snapshot.queue_length).is_ok_and(|length| length > snapshot.queue.len())
    }

    fn has_room(&self) -> bool {
        self.then.len().max(self.when.len()) < MOST_OPERATIONS
    }

    /// Whether committing it would change nothing.
    fn is_idle(&self) -> bool {
        self.then.is_empty() && *self.document == *self.snapshot.places()
    }

    fn grant(&mut self, key: &TicketKey, ticket: &Ticket, now: i64) {
        let mut holder = ticket.holder.clone();
        holder.since = now;
        if ticket.confirm {
            holder.phase = Phase::Granted;
            holder.ticket = Some(Key::Ticket(key.clone()).name());
        } else {
            holder.phase = Phase::Draining;
            self.then.push(Write::Delete(Key::Ticket(key.clone())));
        }
        self.then.push(put_holder(&key.id, holder));
        self.granted.push(key.id.clone());
        self.gives = true;
    }

    /// Puts the request itself on a place; the document has it already.
    fn take(&mut self, request: &Request, ticket: Option<&TicketKey>, now: i64) {
        self.gives = true;
        let id = &request.id;
        self.when.push(Compare::Created(Key::Holder(id.clone()), 0));
        self.then.push(put_holder(
            id,
            Holder {
                phase: Phase::Draining,
                since: now,
                ticket: None,
                ..request.holder.clone()
            },
        ));
        if request.deadline_lease != LeaseId::default() {
            self.then.push(put_deadline(id, request.deadline_lease));
        }
        if let Some(key) = ticket {
            self.then.push(Write::Delete(Key::Ticket(key.clone())));
        }
    }

    /// Places that were given to tickets which have gone. Whoever confirms at
    /// the same moment wins or loses by the revision of its record.
    fn take_back(&mut self) {
        let snapshot = self.snapshot;
        for (id, record) in snapshot.holders.iter() {
            let Some(holder) = &record.value else {
                continue;
            };
            let dead = holder.phase == Phase::Granted && gone(snapshot, holder);
            if dead && self.has_room() && self.document.to_mut().unlock(id).is_ok() {
                let key = Key::Holder(id.clone());
                self.when
                    .push(Compare::Modified(key.clone(), record.modified));
                self.then.push(Write::Delete(key));
            }
        }
    }

    /// Takes `id` off its place and leaves a line in its history.
    pub(super) fn leave(&mut self, id: &MachineId, how: &str, now: i64) {
        // Whoever has a record without a place leaves the record.
        let _ = self.document.to_mut().unlock(id);
        self.leaver = Some(id.clone());
        if self.snapshot.document_only {
            return;
        }
        self.then.push(Write::Delete(Key::Holder(id.clone())));
        self.then.push(Write::Delete(Key::Deadline(id.clone())));
        let record = self.snapshot.holders.get(id);
        if let Some(holder) = record.and_then(|record| record.value.as_ref()) {
            let mut history = self.snapshot.history.clone();
            history.push(Outcome {
                how: how.to_owned(),
                at: now,
                held: now.saturating_sub(holder.since),
                from: holder.from.clone(),
                to: holder.to.clone(),
            });
            let surplus = history.len().saturating_sub(HISTORY);
            history.drain(..surplus);
            self.then.push(Write::Put(
                Key::History(id.clone()),
                Record::History(history),
                LeaseId::default(),
            ));
        }
    }

    /// A machine that proved healthy after all no longer counts as failed.
    fn forgive(&mut self, id: &MachineId) {
        let Some(failures) = &self.snapshot.failures.value else {
            return;
        };
        let record = self.snapshot.holders.get(id);
        let Some(holder) = record.and_then(|record| record.value.as_ref()) else {
            return;
        };
        let mut left = failures.clone();
        left.failures
            .retain(|failure| failure.id != *id || failure.nonce != holder.nonce);
        if left == *failures {
            return;
        }
        self.when.push(Compare::Modified(
            Key::Failures,
            self.snapshot.failures.modified,
        ));
        self.then.push(Write::Put(
            Key::Failures,
            Record::Failures(left),
            LeaseId::default(),
        ));
    }

    pub(super) fn finish(mut self, otherwise: Vec<Write>) -> Transaction {
        if self.gives && !self.snapshot.document_only {
            self.when.push(Compare::Modified(Key::Halt, 0));
            self.when.push(Compare::Modified(
                Key::Policy,
                self.snapshot.policy.modified,
            ));
        }
        self.then.push(Write::Put(
            Key::Document,
            Record::Document(self.document.into_owned()),
            LeaseId::default(),
        ));
        Transaction {
            when: self.when,
            then: self.then,
            otherwise,
        }
    }
}

/// `percent` of `members`, rounded down, but one place at least.
pub(super) fn share(members: u64, percent: u8) -> i64 {
    let places = u128::from(members) * u128::from(percent) / 100;
    i64::try_from(places).unwrap_or(i64::MAX).max(1)
}

/// The condition that nobody else changes the places.
pub(super) fn on_document(snapshot: &Snapshot) -> Compare {
    Compare::Modified(Key::Document, snapshot.document.modified)
}

/// The condition that nobody else changes the record of `id`.
pub(super) fn on_holder(snapshot: &Snapshot, id: &MachineId) -> Compare {
    let record = snapshot.holders.get(id);
    let modified = record.map_or(0, |record| record.modified);
    Compare::Modified(Key::Holder(id.clone()), modified)
}

/// A record without a lease.
pub(super) fn put_holder(id: &MachineId, holder: Holder) -> Write {
    Write::Put(
        Key::Holder(id.clone()),
        Record::Holder(holder),
        LeaseId::default(),
    )
}

fn put_deadline(id: &MachineId, lease: LeaseId) -> Write {
    Write::Put(Key::Deadline(id.clone()), Record::Present, lease)
}

fn put_ticket(key: &TicketKey, request: &Request, now: i64) -> Write {
    let ticket = Ticket {
        holder: request.holder.clone(),
        confirm: request.confirm,
        since: now,
        lease: request.ticket_lease,
    };
    Write::Put(
        Key::Ticket(key.clone()),
        Record::Ticket(ticket),
        request.ticket_lease,
    )
}

fn ticket_key(snapshot: &Snapshot, request: &Request) -> TicketKey {
    TicketKey {
        rank: request.rank,
        ticket: u64::try_from(snapshot.revision).unwrap_or(0),
        id: request.id.clone(),
    }
}

/// Why nobody gets a place at the moment.
fn closed(snapshot: &Snapshot) -> Option<Refusal> {
    if let Some(halt) = &snapshot.halt.value {
        return Some(Refusal::Halted(halt.why.clone()));
    }
    let policy = snapshot.policy.value.as_ref()?;
    let paused = policy.paused.as_ref()?;
    Some(Refusal::Paused(paused.why.clone()))
}

/// Whether a ticket is still in the queue.
fn stands(snapshot: &Snapshot, key: &TicketKey) -> bool {
    snapshot.own_ticket.is_some() || snapshot.queue.iter().any(|(other, _)| other == key)
}

fn waiting(snapshot: &Snapshot, key: &TicketKey, soon: bool) -> Acquire {
    Acquire::Waiting {
        ahead: snapshot.queue.partition_point(|(other, _)| other < key),
        soon,
    }
}

/// Whether the one to whom a place was given has gone: its ticket is not where
/// it should be. A ticket beyond the window may be there.
fn gone(snapshot: &Snapshot, holder: &Holder) -> bool {
    let Some(Key::Ticket(key)) = holder.ticket.as_deref().and_then(Key::parse) else {
        return true;
    };
    let in_window = snapshot.queue.iter().any(|(other, _)| *other == key);
    let all =
        usize::try_from(snapshot.queue_length).is_ok_and(|length| length <= snapshot.queue.len());
    let within = all || snapshot.queue.last().is_some_and(|(last, _)| key < *last);
    !in_window && within
}
