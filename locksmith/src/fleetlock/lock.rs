//! What a FleetLock request means for the semaphore, as a pure decision: the
//! protocol's two questions over the same transactions as the agents'.
//!
//! ```text
//!   pre-reboot ─▶ a place, with a deadline ─▶ yes
//!            │                                 │ the client comes back
//!            └─▶ no: full, halted, …           ▼
//!                                        steady-state ─▶ the place goes to the next
//! ```
//!
//! Clients poll, and nothing tells a server that a client is alive between two
//! polls. So a client that is refused does not queue among its like: the place
//! goes to whichever asks first, for one that is kept for a certain client would
//! lie idle until that client's next poll. Only while agents stand in line does a
//! refused client take a ticket, or they would be before it for ever. What is
//! given to a ticket has to be confirmed by the next poll, so that a client that
//! has gone keeps nothing: it was never told yes.

use std::sync::Arc;

use super::protocol::{Kind as No, Refusal};
use crate::machine_id::MachineId;
use crate::semaphore::places::{self, Acquire, Fenced, Request};
use crate::semaphore::{
    Holder, Key, Kind, LeaseId, Phase, Snapshot, Ticket, TicketKey, Transaction, Write,
};

/// Where FleetLock clients stand in the queue.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asking<'a> {
    /// The client.
    pub(super) id: &'a MachineId,
    /// 0 to 999; lower is served first.
    pub(super) rank: u16,
    /// Marks the place that this request takes.
    pub(super) nonce: &'a str,
    /// Lease of a ticket, once there is one.
    pub(super) ticket: Option<LeaseId>,
    /// Lease of the deadline, once there is one.
    pub(super) deadline: Option<LeaseId>,
}

/// What to do about a pre-reboot next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// The client has its place.
    Yes,
    /// It has none.
    No(Refusal),
    /// It stays in line: keep this lease of its ticket alive, and say no.
    Waits(LeaseId, Refusal),
    /// Get the lease for a ticket and ask again.
    LeaseTicket,
    /// Get the lease for the deadline and ask again.
    LeaseDeadline,
    /// Commit this, look and ask again.
    Commit(Transaction),
}

/// Decides a pre-reboot; `now` in Unix seconds.
///
/// A yes is a permission to reboot, so there is none while the group is halted,
/// not even for a client that has a place.
pub(super) fn pre_reboot(snapshot: &Snapshot, asking: &Asking<'_>, now: i64) -> Step {
    let id = asking.id;
    let own = own_ticket(snapshot, id);
    // Whoever stands in line stays there, whatever the reason is.
    let no = |refusal| match own {
        Some((_, ticket)) => Step::Waits(ticket.lease, refusal),
        None => Step::No(refusal),
    };
    if let Some(halt) = &snapshot.halt.value {
        return no(halted(&halt.why));
    }
    if let Some(step) = holding(snapshot, asking, now) {
        return step;
    }
    let request = Request {
        id: id.clone(),
        rank: asking.rank,
        holder: holder(asking.nonce),
        confirm: true,
        ticket_lease: asking.ticket.unwrap_or_default(),
        deadline_lease: asking.deadline.unwrap_or_default(),
    };
    match places::acquire(snapshot, &request, own.map(|(key, _)| key), true, now) {
        // By the document alone; records were looked at above.
        Acquire::Held(_) | Acquire::Granted(_) => Step::Yes,
        Acquire::Commit { transaction, .. } => {
            // The time begins with the place, so its lease is there before.
            let gives = transaction
                .then
                .iter()
                .any(|write| matches!(write, Write::Put(Key::Holder(holder), ..) if holder == id));
            match asking.deadline {
                None if gives => Step::LeaseDeadline,
                _ => Step::Commit(transaction),
            }
        }
        Acquire::Waiting { ahead, .. } => no(paused(snapshot)
            .unwrap_or_else(|| full(snapshot, &format!("{ahead} waiting before this one")))),
        // With the lease there is no refusal but a ticket.
        Acquire::Refused(places::Refusal::Full(_))
            if asking.ticket.is_none() && may_queue(snapshot) =>
        {
            Step::LeaseTicket
        }
        Acquire::Refused(places::Refusal::Full(_)) => no(full(snapshot, "ask again later")),
        Acquire::Refused(places::Refusal::Manual) => no(held_otherwise("an operator took it")),
        Acquire::Refused(places::Refusal::Halted(why)) => no(halted(&why)),
        Acquire::Refused(places::Refusal::Paused(why)) => no(is_paused(&why)),
    }
}

/// The step for a client that has a place already.
fn holding(snapshot: &Snapshot, asking: &Asking<'_>, now: i64) -> Option<Step> {
    let id = asking.id;
    if snapshot.document_only || !snapshot.places().holds(id) {
        return None;
    }
    let record = snapshot.holders.get(id);
    let Some((record, holder)) = record.and_then(|it| Some((it, it.value.as_ref()?))) else {
        return Some(Step::No(held_otherwise("an older tool took it")));
    };
    if holder.kind != Kind::Fleetlock {
        return Some(Step::No(held_otherwise("an agent or an operator took it")));
    }
    let in_time = holder.phase == Phase::Draining && snapshot.deadlines.contains(id);
    if in_time {
        return Some(Step::Yes);
    }
    let Some(deadline) = asking.deadline else {
        return Some(Step::LeaseDeadline);
    };
    let transaction = if holder.phase == Phase::Granted {
        places::confirm(snapshot, id, deadline, now)
    } else {
        // It was late, and lives: it may try again, in the place that it has.
        let again = |holder: &mut Holder| {
            holder.phase = Phase::Draining;
            holder.reason.clear();
        };
        match places::fence(snapshot, id, record.created, deadline, again) {
            Ok(transaction) => Some(transaction),
            Err(Fenced::Halted(why)) => return Some(Step::No(halted(&why))),
            Err(Fenced::Lost) => None,
        }
    };
    transaction.map(Step::Commit)
}

/// What a steady-state changes; `None`: nothing, the client is no holder. The
/// snapshot has the client's history.
///
/// Places that somebody else took in the client's name are left alone.
pub(super) fn steady_state(snapshot: &Snapshot, id: &MachineId, now: i64) -> Option<Transaction> {
    if snapshot.document_only {
        return places::unlock(snapshot, id, "released", now);
    }
    if let Some(record) = snapshot.holders.get(id)
        && let Some(holder) = &record.value
        && holder.kind == Kind::Fleetlock
    {
        let how = match holder.phase {
            Phase::Granted => "given-back",
            _ => "released",
        };
        let mut transaction = places::release(snapshot, id, record.created, how, now)?;
        // A ticket that was left behind would be served; that of a grant goes with
        // the release already.
        let ticket = own_ticket(snapshot, id).map(|(ticket, _)| Key::Ticket(ticket.clone()));
        if let Some(delete) = ticket.map(Write::Delete)
            && !transaction.then.contains(&delete)
        {
            transaction.then.push(delete);
        }
        return Some(transaction);
    }
    own_ticket(snapshot, id).map(|(ticket, _)| places::withdraw(snapshot, ticket))
}

/// Leases that were got for a pre-reboot which `snapshot` has answered, and that
/// nothing is under.
pub(super) fn unused(snapshot: &Snapshot, asking: &Asking<'_>) -> Vec<LeaseId> {
    let mut unused = Vec::new();
    // Whose lease a deadline is under cannot be seen; one too many ends by
    // itself, one too few would make the machine overdue.
    if !snapshot.places().holds(asking.id) {
        unused.extend(asking.deadline);
    }
    let stands = |lease| {
        snapshot
            .queue
            .iter()
            .any(|(_, ticket)| ticket.lease == lease)
    };
    unused.extend(asking.ticket.filter(|lease| !stands(*lease)));
    unused
}

/// The ticket by which a client of this protocol waits.
fn own_ticket<'a>(snapshot: &'a Snapshot, id: &MachineId) -> Option<&'a (TicketKey, Arc<Ticket>)> {
    let mut queue = snapshot.queue.iter();
    queue.find(|(key, ticket)| key.id == *id && is_ours(ticket))
}

fn is_ours(ticket: &Ticket) -> bool {
    ticket.holder.kind == Kind::Fleetlock
}

/// Whether agents stand in line, and the whole line can be seen: a client finds
/// its ticket again only in what a snapshot shows.
fn may_queue(snapshot: &Snapshot) -> bool {
    let seen = usize::try_from(snapshot.queue_length).is_ok_and(|all| all < Snapshot::QUEUE_WINDOW);
    seen && snapshot.queue.iter().any(|(_, ticket)| !is_ours(ticket))
}

fn holder(nonce: &str) -> Holder {
    Holder::new(Kind::Fleetlock, nonce)
}

fn full(snapshot: &Snapshot, detail: &str) -> Refusal {
    let places = snapshot.places();
    Refusal::new(
        No::SemaphoreFull,
        format!(
            "{} of {} places are taken, {} waiting; {detail}",
            places.holders.len(),
            places.max,
            snapshot.queue_length
        ),
    )
}

fn halted(why: &str) -> Refusal {
    Refusal::new(No::Halted, format!("the group is halted: {why}"))
}

fn paused(snapshot: &Snapshot) -> Option<Refusal> {
    let policy = snapshot.policy.value.as_ref()?;
    let paused = policy.paused.as_ref()?;
    Some(is_paused(&paused.why))
}

fn is_paused(why: &str) -> Refusal {
    Refusal::new(No::Paused, format!("the group is paused: {why}"))
}

fn held_otherwise(who: &str) -> Refusal {
    Refusal::new(
        No::HeldOtherwise,
        format!("this machine has a place that is not this protocol's: {who}"),
    )
}

#[cfg(test)]
mod tests;
