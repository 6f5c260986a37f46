//! Load, decide, commit, until it is done: the loop around every change that
//! `locksmithctl` makes.

use std::time::Duration;

use tokio::time::Instant;

use super::error::CtlError;
use crate::semaphore::{Look, Snapshot, Transaction};
use crate::store::{SemaphoreStore, StoreError};

/// When to give up. Long enough for hundreds that change the lock at once,
/// short enough for somebody who waits.
const LIMIT: Duration = Duration::from_secs(30);

/// The longest pause before the second attempt; it doubles from there.
const FIRST_PAUSE: Duration = Duration::from_millis(10);

/// The longest pause of all.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What a decision wants next.
pub(super) enum Step<T> {
    /// Nothing: this is the result.
    Done(T),
    /// Write this; the result holds if it succeeds.
    Commit(Transaction, T),
    /// Write this, and decide again whatever comes of it.
    Then(Transaction),
}

/// What is known about this command's earlier attempts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Past {
    /// A commit was sent whose outcome nobody told: what it writes may be there
    /// already, or may still come.
    pub(super) unknown: bool,
}

/// Decides on fresh snapshots until a step is done. `doing` is the command in a
/// word, as in "locking".
///
/// The first load is the first contact: if it fails, so does the command. Later
/// failures and lost races are tried again after a random pause.
pub(super) async fn settle<T>(
    store: &dyn SemaphoreStore,
    look: &Look,
    doing: &'static str,
    mut decide: impl FnMut(&Snapshot, Past) -> Result<Step<T>, CtlError>,
) -> Result<T, CtlError> {
    let mut snapshot = first_look(store, look, doing).await?;
    let failed = |source| CtlError::Store { doing, source };
    let deadline = Instant::now() + LIMIT;
    let mut pause = FIRST_PAUSE;
    let mut unknown = None;
    let mut attempts = 0;
    loop {
        let past = Past {
            unknown: unknown.is_some(),
        };
        let lost = match decide(&snapshot, past)? {
            Step::Done(result) => return Ok(result),
            Step::Commit(transaction, result) => match store.commit(&transaction).await {
                Ok(committed) if committed.succeeded => return Ok(result),
                other => other.err(),
            },
            Step::Then(transaction) => store.commit(&transaction).await.err(),
        };
        attempts += 1;
        let late = Instant::now() >= deadline;
        match lost {
            Some(error @ StoreError::Unknown { .. }) if !late => unknown = Some(error),
            Some(StoreError::Unavailable { .. }) if !late => {}
            Some(error) => return Err(failed(error)),
            None if late => return Err(CtlError::Contended { doing, attempts }),
            None => {}
        }
        // A failed load decides nothing, least of all after a commit whose
        // outcome is not known.
        snapshot = loop {
            tokio::time::sleep(pause.mul_f64(fastrand::f64())).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            match store.load(look).await {
                Ok(fresh) => break fresh,
                Err(StoreError::Unavailable { .. } | StoreError::Unknown { .. })
                    if Instant::now() < deadline => {}
                Err(error) => return Err(failed(unknown.unwrap_or(error))),
            }
        };
    }
}

/// The first question to the store.
pub(super) async fn first_look(
    store: &dyn SemaphoreStore,
    look: &Look,
    doing: &'static str,
) -> Result<Snapshot, CtlError> {
    store.load(look).await.map_err(|error| match error {
        StoreError::BadValue { .. } => CtlError::Store {
            doing,
            source: error,
        },
        other => CtlError::contact(other),
    })
}
