//! `lock` and `unlock`: places for single machines.

use std::cell::Cell;

use super::Invocation;
use super::error::CtlError;
use super::now;
use super::settle::{Past, Step, settle};
use crate::machine_id::MachineId;
use crate::semaphore::places::{self, Acquire, Refusal, Request};
use crate::semaphore::{
    Holder, Kind, LeaseId, LockRefusal, Look, NotHolder, Revision, Snapshot, failures,
};
use crate::store::SemaphoreStore;

const LOCKING: &str = "locking";
const UNLOCKING: &str = "unlocking";

/// Like the original, it does not wait and is no success for who holds a place
/// already: scripts use it as a test.
pub(super) async fn lock(invocation: &Invocation<'_>) -> Result<(), CtlError> {
    let id = named_machine(invocation)?;
    let reason = invocation.values.text("why").unwrap_or_default();
    let request = request(id, Kind::Manual, reason);
    let store = invocation.globals.store()?;
    take(&store, &request).await.map(|_| ())
}

pub(super) async fn unlock(invocation: &Invocation<'_>) -> Result<(), CtlError> {
    let id = named_machine(invocation)?;
    let lost = invocation.values.is_on("lost");
    let store = invocation.globals.store()?;
    give_back(&store, &id, lost).await
}

/// Takes a place, or says why not, and returns its token.
pub(super) async fn take(
    store: &dyn SemaphoreStore,
    request: &Request,
) -> Result<Revision, CtlError> {
    let look = Look {
        history: Some(request.id.clone()),
        ..Look::default()
    };
    settle(store, &look, LOCKING, |snapshot, past| {
        take_step(snapshot, request, past)
    })
    .await
}

/// One attempt to take a place. The request's nonce tells its own place from
/// one that somebody else took for the same machine.
fn take_step(
    snapshot: &Snapshot,
    request: &Request,
    past: Past,
) -> Result<Step<Revision>, CtlError> {
    let id = &request.id;
    if snapshot.places().holds(id) {
        let record = snapshot.holders.get(id);
        let holder = record.and_then(|record| record.value.as_ref());
        return match (record, holder) {
            (Some(record), Some(holder)) if holder.nonce == request.holder.nonce => {
                Ok(Step::Done(record.created))
            }
            // Without records all that can be said is that it was free when we
            // tried, and is ours by all signs.
            (None, _) if snapshot.document_only && past.unknown => Ok(Step::Done(0)),
            _ => Err(held_already(snapshot, request)),
        };
    }
    match places::acquire(snapshot, request, None, false, now()) {
        Acquire::Commit { transaction, .. } if snapshot.document_only => {
            Ok(Step::Commit(transaction, 0))
        }
        Acquire::Commit { transaction, .. } => Ok(Step::Then(transaction)),
        Acquire::Refused(refusal) => Err(CtlError::NoPlace(refusal)),
        Acquire::Held(_) | Acquire::Granted(_) => Err(CtlError::Exists),
        Acquire::Waiting { .. } => Err(CtlError::NoPlace(Refusal::Full(0))),
    }
}

/// The original looks for a free place first, so a holder learns that it is one
/// only where there is.
fn held_already(snapshot: &Snapshot, request: &Request) -> CtlError {
    match snapshot.places().clone().lock(&request.id) {
        Err(LockRefusal::Full(free)) if request.holder.kind == Kind::Manual => {
            CtlError::NoPlace(Refusal::Full(free))
        }
        _ => CtlError::Exists,
    }
}

async fn give_back(store: &dyn SemaphoreStore, id: &MachineId, lost: bool) -> Result<(), CtlError> {
    let look = Look {
        history: Some(id.clone()),
        ..Look::default()
    };
    let tried = Cell::new(None);
    settle(store, &look, UNLOCKING, |snapshot, past| {
        // Nowhere but in records could it count as failed.
        if lost && snapshot.document_only {
            return Err(CtlError::DocumentOnly);
        }
        let token = snapshot.holders.get(id).map(|record| record.created);
        let same = tried.get().is_none_or(|before| before == token);
        if !snapshot.places().holds(id) || !same {
            return if past.unknown {
                Ok(Step::Done(()))
            } else {
                Err(NotHolder.into())
            };
        }
        tried.set(Some(token));
        let transaction = if lost {
            failures::unlock_lost(snapshot, id, now())
        } else {
            places::unlock(snapshot, id, "unlocked", now())
        };
        transaction.map_or_else(
            || Err(NotHolder.into()),
            |transaction| Ok(Step::Commit(transaction, ())),
        )
    })
    .await
}

pub(super) fn request(id: MachineId, kind: Kind, reason: &str) -> Request {
    Request {
        id,
        rank: 0,
        holder: Holder {
            reason: reason.to_owned(),
            ..Holder::new(kind, uuid::Uuid::new_v4().simple().to_string())
        },
        confirm: false,
        ticket_lease: LeaseId::default(),
        deadline_lease: LeaseId::default(),
    }
}

/// The first word, or this machine.
fn named_machine(invocation: &Invocation<'_>) -> Result<MachineId, CtlError> {
    match invocation.words.first() {
        Some(word) => Ok(MachineId::new(word)),
        None => own_id(invocation),
    }
}

pub(super) fn own_id(invocation: &Invocation<'_>) -> Result<MachineId, CtlError> {
    Ok(MachineId::read(&invocation.globals.root)?)
}

#[cfg(test)]
mod tests {
    use super::super::faults::{Commit, Faulty};
    use super::*;
    use crate::semaphore::{Max, Write, steering};
    use crate::store::{Fault, MemoryStore};

    async fn places_of(store: &MemoryStore) -> (i64, Vec<String>) {
        let places = store.load(&Look::default()).await.unwrap().places().clone();
        let ids = places.holders.iter().map(ToString::to_string);
        (places.semaphore, ids.collect())
    }

    /// Two places, of which "b" has one.
    async fn group() -> MemoryStore {
        let store = MemoryStore::default();
        let snapshot = store.load(&Look::default()).await.unwrap();
        let (_, _, transaction) = steering::set_max(&snapshot, Max::Count(2), 0);
        store.commit(&transaction).await.unwrap();
        take(&store, &request("b".into(), Kind::Manual, ""))
            .await
            .unwrap();
        store
    }

    fn rival(id: &'static str) -> Commit {
        Commit::ComesAfter(Box::new(move |snapshot| {
            let request = request(id.into(), Kind::Manual, "");
            match places::acquire(snapshot, &request, None, false, 0) {
                Acquire::Commit { transaction, .. } => transaction,
                other => panic!("{other:?}"),
            }
        }))
    }

    #[tokio::test(start_paused = true)]
    async fn a_lock_is_taken_once_whatever_gets_lost() {
        for faults in [
            vec![],
            vec![Commit::Fails(Fault::Unavailable)],
            vec![Commit::Fails(Fault::RequestLost)],
            vec![Commit::Fails(Fault::ReplyLost)],
            vec![
                Commit::Fails(Fault::RequestLost),
                Commit::Fails(Fault::Unavailable),
                Commit::Fails(Fault::ReplyLost),
            ],
        ] {
            let store = group().await;
            let faulty = Faulty::new(&store, faults);
            let request = request("a".into(), Kind::Manual, "");
            take(&faulty, &request).await.unwrap();
            let both = vec!["a".to_owned(), "b".to_owned()];
            assert_eq!(places_of(&store).await, (0, both));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_reply_does_not_make_anothers_place_ours() {
        let store = group().await;
        // The request is lost, and before the next one somebody else locks "a".
        let faulty = Faulty::new(&store, [Commit::Fails(Fault::RequestLost), rival("a")]);
        let request = request("a".into(), Kind::Manual, "");
        let error = take(&faulty, &request).await.unwrap_err();
        assert_eq!(error.to_string(), "Error locking: semaphore is at 0");
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_too_late_learns_that_it_is_full() {
        let store = group().await;
        let faulty = Faulty::new(&store, [rival("c")]);
        let request = request("a".into(), Kind::Manual, "");
        let error = take(&faulty, &request).await.unwrap_err();
        assert_eq!(error.to_string(), "Error locking: semaphore is at 0");
    }

    #[tokio::test(start_paused = true)]
    async fn a_lock_is_given_back_once_whatever_gets_lost() {
        for fault in [Fault::Unavailable, Fault::RequestLost, Fault::ReplyLost] {
            for lost in [false, true] {
                let store = group().await;
                let faulty = Faulty::new(&store, [Commit::Fails(fault)]);
                give_back(&faulty, &"b".into(), lost).await.unwrap();
                assert_eq!(places_of(&store).await, (2, vec![]));
                let snapshot = store.load(&Look::default()).await.unwrap();
                let failures = snapshot.failures.value.unwrap_or_default();
                assert_eq!(failures.failures.len(), usize::from(lost), "{fault:?}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_record_without_a_place_is_in_nobodys_way() {
        let store = group().await;
        // An older tool unlocks: it knows the document alone.
        let snapshot = store.load(&Look::default()).await.unwrap();
        let mut places = snapshot.places().clone();
        places.unlock(&"b".into()).unwrap();
        let document = crate::semaphore::Record::Document(places);
        let transaction = crate::semaphore::Transaction {
            then: vec![Write::Put(
                crate::semaphore::Key::Document,
                document,
                LeaseId::default(),
            )],
            ..Default::default()
        };
        store.commit(&transaction).await.unwrap();
        let error = give_back(&store, &"b".into(), false).await.unwrap_err();
        assert_eq!(error.to_string(), "Error unlocking: holder does not exist");
        take(&store, &request("b".into(), Kind::Manual, ""))
            .await
            .unwrap();
        assert_eq!(places_of(&store).await, (1, vec!["b".to_owned()]));
    }
}
