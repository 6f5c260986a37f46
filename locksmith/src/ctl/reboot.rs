//! `reboot`: an operator's reboot, which takes a place like any other.
//!
//! The original asked logind and did not listen to the answer. Here a reboot
//! that is refused gives the place back at once, and one that begins leaves a
//! record by which the agent recognises the place after the boot.

use std::time::Duration;

use gptprio::USR_TYPE;
use nix::unistd::Uid;

use super::error::CtlError;
use super::locking::{self, own_id, take};
use super::settle::{Step, first_look, settle};
use super::{Invocation, now, say};
use crate::boot_facts;
use crate::bus::{Bus, BusError, Login};
use crate::daemon;
use crate::reboot::Rebooter;
use crate::semaphore::places::{self, Fenced, Refusal, Request};
use crate::semaphore::{Holder, Key, Kind, LeaseId, Look, Mode, Phase, Record, Revision, Write};
use crate::store::SemaphoreStore;
use crate::words::words;

const REBOOTING: &str = "rebooting";

/// What logind tells those who are logged in.
const WALL: &str = "locksmithctl reboot";

/// The original's order of checks: root, etcd, logind, machine-id, lock.
pub(super) async fn reboot(invocation: &Invocation<'_>) -> Result<(), CtlError> {
    if !Uid::effective().is_root() {
        return Err(CtlError::NotRoot);
    }
    let settings = invocation.globals.settings()?;
    let store = &settings.open_store().map_err(CtlError::contact)?;
    let mode = Mode::from(settings.reboot_method);
    // As for the agent: after this time without a word the machine is overdue.
    let deadline = settings
        .health
        .deadline
        .saturating_add(settings.health.soak);
    let snapshot = first_look(store, &Look::default(), REBOOTING).await?;
    let login = Login::new(&Bus::new(invocation.globals.bus.as_deref()));
    is_there(&login).await?;
    let mut request = locking::request(own_id(invocation)?, Kind::Reboot, "");
    if !snapshot.document_only {
        // By it the agent tells whether the machine has rebooted.
        request.holder.boot_id = boot_id(invocation)?;
        request.holder.mode = mode;
        request.deadline_lease = lease(store, deadline).await?;
    }
    let place = match take(store, &request).await {
        Ok(token) => Place::Taken(token),
        Err(CtlError::Exists) => found(store, &request).await?,
        Err(other) => {
            end_lease(store, &request).await;
            return Err(other);
        }
    };
    let begun = async {
        remember(invocation)?;
        match &place {
            Place::Taken(token) | Place::Had(token, _) => {
                pass_fence(store, &request, *token).await?;
            }
            Place::Unexplained => check_halt(store).await?,
        }
        rebooter(invocation, login)
            .reboot(mode, settings.inhibitors.into(), WALL)
            .await
            .map_err(|refused| CtlError::Reboot(words(&refused)))
    };
    let failed = match begun.await {
        // What it has prepared the daemon undoes at its next start, if the shutdown
        // comes to nothing.
        Ok(_begun) => return Ok(()),
        Err(failed) => failed,
    };
    let undone = match &place {
        Place::Taken(token) => give_back(store, &request, *token).await,
        Place::Had(token, before) => restore(store, &request, *token, before, deadline).await,
        Place::Unexplained => Ok(()),
    };
    if let Err(error) = undone {
        say(format_args!(
            "{error}\nThe lock is still held: locksmithctl unlock"
        ));
    }
    end_lease(store, &request).await;
    Err(failed)
}

/// The place that this machine reboots with.
enum Place {
    /// This command has taken it.
    Taken(Revision),
    /// It was there: the operator's lock, as a rule. Its record as it was.
    Had(Revision, Holder),
    /// It was there without a record.
    Unexplained,
}

/// The place that was there before.
async fn found(store: &dyn SemaphoreStore, request: &Request) -> Result<Place, CtlError> {
    let snapshot = first_look(store, &Look::default(), REBOOTING).await?;
    let record = snapshot.holders.get(&request.id);
    Ok(
        match record.map(|record| (record.created, record.value.clone())) {
            Some((token, Some(holder))) => Place::Had(token, holder),
            _ => Place::Unexplained,
        },
    )
}

/// Puts the record back as it was. An agent's place gets a new deadline: its own one
/// has come under this command's lease, and would end with it.
async fn restore(
    store: &dyn SemaphoreStore,
    request: &Request,
    token: Revision,
    before: &Holder,
    deadline: Duration,
) -> Result<(), CtlError> {
    let fresh = match before.kind {
        Kind::Manual => None,
        Kind::Reboot | Kind::Fleetlock | Kind::Unknown => Some(lease(store, deadline).await?),
    };
    settle(store, &Look::default(), REBOOTING, |snapshot, _| {
        let back = |holder: &mut Holder| holder.clone_from(before);
        Ok(match places::advance(snapshot, &request.id, token, back) {
            Ok(mut transaction) => {
                let key = Key::Deadline(request.id.clone());
                let fresh = fresh.map(|lease| Write::Put(key, Record::Present, lease));
                transaction.then.extend(fresh);
                Step::Commit(transaction, ())
            }
            Err(_) => Step::Done(()),
        })
    })
    .await
}

/// Writes that the reboot happens, if the place is still there and nobody has
/// halted the group.
async fn pass_fence(
    store: &dyn SemaphoreStore,
    request: &Request,
    token: Revision,
) -> Result<(), CtlError> {
    settle(store, &Look::default(), REBOOTING, |snapshot, _| {
        // An operator's lock becomes a reboot's, which the agent gives back when
        // the new system is proven.
        let change = |holder: &mut Holder| {
            holder.phase = Phase::Rebooting;
            holder.kind = Kind::Reboot;
            holder.boot_id.clone_from(&request.holder.boot_id);
            holder.mode = request.holder.mode;
        };
        places::fence(snapshot, &request.id, token, request.deadline_lease, change)
            .map(|transaction| Step::Commit(transaction, ()))
            .map_err(|fenced| match fenced {
                Fenced::Halted(why) => CtlError::NoPlace(Refusal::Halted(why)),
                lost @ Fenced::Lost => CtlError::Reboot(lost.to_string()),
            })
    })
    .await
}

/// A place from before is no permission in a halted group.
async fn check_halt(store: &dyn SemaphoreStore) -> Result<(), CtlError> {
    let snapshot = first_look(store, &Look::default(), REBOOTING).await?;
    match snapshot.halt.value {
        Some(halt) => Err(CtlError::NoPlace(Refusal::Halted(halt.why))),
        None => Ok(()),
    }
}

/// The agent gives the place back after the boot, under any strategy.
fn remember(invocation: &Invocation<'_>) -> Result<(), CtlError> {
    daemon::remember_held(&invocation.globals.root).map_err(|error| CtlError::Reboot(words(&error)))
}

fn rebooter(invocation: &Invocation<'_>, login: Login) -> Rebooter {
    let root = invocation.globals.root.clone();
    let slot_type = boot_facts::slot_type(&root).unwrap_or(USR_TYPE);
    Rebooter::new(root, login, slot_type)
}

async fn give_back(
    store: &dyn SemaphoreStore,
    request: &Request,
    token: Revision,
) -> Result<(), CtlError> {
    let look = Look {
        history: Some(request.id.clone()),
        ..Look::default()
    };
    settle(store, &look, REBOOTING, |snapshot, _| {
        let transaction = places::release(snapshot, &request.id, token, "given-back", now());
        Ok(match transaction {
            Some(transaction) => Step::Commit(transaction, ()),
            None => Step::Done(()),
        })
    })
    .await
}

async fn lease(store: &dyn SemaphoreStore, ttl: Duration) -> Result<LeaseId, CtlError> {
    let granted = store.grant_lease(ttl).await;
    granted.map_err(|source| CtlError::Store {
        doing: REBOOTING,
        source,
    })
}

/// The lease would end by itself as well.
async fn end_lease(store: &dyn SemaphoreStore, request: &Request) {
    if request.deadline_lease != LeaseId::default() {
        let _ = store.revoke_lease(request.deadline_lease).await;
    }
}

/// Whether there is a logind to ask, before a place is taken in vain.
async fn is_there(login: &Login) -> Result<(), CtlError> {
    match login.inhibitors().await {
        Err(error @ (BusError::Connect { .. } | BusError::Absent { .. })) => {
            Err(CtlError::Logind(words(&error)))
        }
        // What it does not like, it tells when it is asked to reboot.
        _ => Ok(()),
    }
}

/// The kernel's.
fn boot_id(invocation: &Invocation<'_>) -> Result<String, CtlError> {
    let id = boot_facts::boot_id(&invocation.globals.root);
    id.map_err(|error| CtlError::Reboot(words(&error)))
}
