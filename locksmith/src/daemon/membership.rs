//! A machine takes part in its group while its key stands: a share of the
//! members is a number of places only if they are counted.

use std::sync::Arc;
use std::time::Duration;

use tracing::debug;

use crate::machine_id::MachineId;
use crate::semaphore::{Key, LeaseId, Record, Transaction, Write};
use crate::store::{SemaphoreStore, StoreError};
use crate::words::words;

/// A machine that reboots, or is off for a little while, still takes part.
const TTL: Duration = Duration::from_secs(60 * 60);
/// A third of it leaves room for two attempts that fail.
const KEEP_ALIVE: Duration = Duration::from_secs(20 * 60);
/// After a failure; spread, since the whole fleet fails at once.
const RETRY: Duration = Duration::from_secs(60);

/// Keeps the key of `id` until the task is dropped.
pub(super) async fn keep(store: Arc<dyn SemaphoreStore>, id: MachineId) {
    loop {
        match join(&*store, &id).await {
            Ok(lease) => stay(&*store, lease).await,
            Err(error) => debug!(error = words(&error), "cannot join the group"),
        }
        tokio::time::sleep(RETRY.mul_f64(0.5 + fastrand::f64())).await;
    }
}

async fn join(store: &dyn SemaphoreStore, id: &MachineId) -> Result<LeaseId, StoreError> {
    let lease = store.grant_lease(TTL).await?;
    let put = Write::Put(Key::Member(id.clone()), Record::Present, lease);
    store
        .commit(&Transaction {
            when: Vec::new(),
            then: vec![put],
            otherwise: Vec::new(),
        })
        .await?;
    Ok(lease)
}

/// Comes back when the lease is no more.
async fn stay(store: &dyn SemaphoreStore, lease: LeaseId) {
    let mut wait = KEEP_ALIVE;
    loop {
        tokio::time::sleep(wait.mul_f64(0.75 + fastrand::f64() / 4.0)).await;
        wait = match store.keep_alive(lease).await {
            Ok(true) => KEEP_ALIVE,
            Ok(false) => return,
            Err(error) => {
                debug!(error = words(&error), "cannot keep the group's lease alive");
                RETRY
            }
        };
    }
}
