//! `migrate`: from the v2 to the v3 interface of etcd without a moment in which
//! machines get places on both.
//!
//! ```text
//! 1  v3: pause                nobody gets a place on v3 before v2 is empty
//! 2  v3: max := max of v2     unless somebody has set another one there
//! 3  v2: max := 0             nobody gets a place on v2 any more
//! 4  v2: wait for holders     they leave by themselves
//! 5  v3: end the pause        if it is the one of step 1
//! ```
//!
//! Each step finds out whether it has been done, so the command can be repeated
//! after any failure, by anybody.

use std::time::Duration;

use super::error::CtlError;
use super::settle::{Step, first_look, settle};
use super::{Invocation, now, say, show};
use crate::config::{EtcdApi, Store};
use crate::semaphore::{Document, Look, Max, Paused, steering};
use crate::store::SemaphoreStore;

const MIGRATING: &str = "migrating";

/// The maximum of a group for which nobody has set one.
const UNSET: i64 = 1;

/// How often the old holders are looked at.
const POLL: Duration = Duration::from_secs(5);

pub(super) async fn migrate(invocation: &Invocation<'_>) -> Result<(), CtlError> {
    let settings = invocation.globals.settings()?;
    if settings.store != Store::Etcd {
        return Err(CtlError::Usage(
            "migrate is between two interfaces of etcd; -store file has none".to_owned(),
        ));
    }
    let old = settings.open_etcd(EtcdApi::V2).map_err(CtlError::contact)?;
    let new = settings.open_etcd(EtcdApi::V3).map_err(CtlError::contact)?;
    loop {
        let mut places = look(&old).await?;
        // Also later: a hand, or a tool, may have opened v2 again.
        if places.gives_places() {
            close_new(&new).await?;
            copy_max(&new, places.max).await?;
            close_old(&old).await?;
            let max = look(&new).await?.max;
            say(format_args!(
                "The lock on v2 is closed; the one on v3 has a maximum of {max}."
            ));
            places = look(&old).await?;
        }
        if places.holders.is_empty() {
            if places.gives_places() {
                continue;
            }
            break;
        }
        // Frozen by hand, or by an earlier run; either way v3 must wait.
        close_new(&new).await?;
        let ids: Vec<_> = places.holders.iter().map(ToString::to_string).collect();
        let ids = ids.join(", ");
        if !invocation.values.is_on("wait") {
            return Err(CtlError::Findings(format!(
                "Still held on v2, so v3 stays paused: {ids}\n\
                 When they have gone: locksmithctl migrate\n\
                 One that will not come back: locksmithctl -api v2 unlock ID"
            )));
        }
        say(format_args!("Waiting for {ids}"));
        tokio::time::sleep(POLL).await;
    }
    // Agents stay on v2 before there is a document on v3.
    copy_max(&new, UNSET).await?;
    open_new(&new).await?;
    let max = look(&new).await?.max;
    say(format_args!(
        "The lock is on v3 now, with a maximum of {max}."
    ));
    Ok(())
}

async fn look(store: &dyn SemaphoreStore) -> Result<Document, CtlError> {
    let snapshot = first_look(store, &Look::default(), MIGRATING).await?;
    Ok(snapshot.places().clone())
}

async fn close_new(store: &dyn SemaphoreStore) -> Result<(), CtlError> {
    let paused = Paused {
        by: Paused::BY_MIGRATE.to_owned(),
        why: "machines may still hold the lock on the v2 API".to_owned(),
        at: now(),
    };
    settle(store, &Look::default(), MIGRATING, |snapshot, _| {
        Ok(match show::policy(snapshot).paused {
            Some(_) => Step::Done(()),
            None => Step::Commit(steering::pause(snapshot, paused.clone()), ()),
        })
    })
    .await
}

async fn copy_max(store: &dyn SemaphoreStore, max: i64) -> Result<(), CtlError> {
    settle(store, &Look::default(), MIGRATING, |snapshot, _| {
        // A maximum that somebody has set there is meant. A document alone says
        // nothing: the first lock makes one.
        let percent = show::policy(snapshot).max_percent;
        let meant = percent.is_some() || snapshot.places().max != UNSET;
        if snapshot.document.value.is_some() && (meant || max == UNSET) {
            return Ok(Step::Done(()));
        }
        let (_, _, transaction) = steering::set_max(snapshot, Max::Count(max), now());
        Ok(Step::Commit(transaction, ()))
    })
    .await
}

async fn close_old(store: &dyn SemaphoreStore) -> Result<(), CtlError> {
    settle(store, &Look::default(), MIGRATING, |snapshot, _| {
        if !snapshot.places().gives_places() {
            return Ok(Step::Done(()));
        }
        // The original looks at the counter alone, and a hand may have set it.
        Ok(match steering::check(snapshot) {
            (_, Some(heal)) => Step::Then(heal),
            (_, None) => Step::Then(steering::set_max(snapshot, Max::Count(0), now()).2),
        })
    })
    .await
}

async fn open_new(store: &dyn SemaphoreStore) -> Result<(), CtlError> {
    settle(store, &Look::default(), MIGRATING, |snapshot, _| {
        // Another one's is left alone.
        let ours = show::policy(snapshot)
            .paused
            .is_some_and(|paused| paused.by == Paused::BY_MIGRATE);
        Ok(match steering::resume(snapshot) {
            Some(transaction) if ours => Step::Commit(transaction, ()),
            _ => Step::Done(()),
        })
    })
    .await
}
