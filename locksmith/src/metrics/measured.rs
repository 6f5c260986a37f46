//! [`Measured`]: a store whose calls are timed and counted.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;

use super::{Call, CallError, Metrics, Outcome};
use crate::semaphore::{Key, LeaseId, Look, Revision, Snapshot, Transaction};
use crate::store::{Committed, SemaphoreStore, StoreError};

/// Passes every call on and measures it.
pub struct Measured<S> {
    store: S,
    metrics: Arc<Metrics>,
}

impl<S: SemaphoreStore> Measured<S> {
    /// Measures `store`.
    pub fn new(store: S, metrics: Arc<Metrics>) -> Self {
        Self { store, metrics }
    }

    async fn measure<T>(
        &self,
        call: &'static str,
        future: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let begun = Instant::now();
        let result = future.await;
        let metrics = &self.metrics;
        metrics
            .store_seconds
            .get_or_create(&Call { call })
            .observe(begun.elapsed().as_secs_f64());
        if let Err(error) = &result {
            let error = CallError {
                call,
                error: name(error),
            };
            metrics.store_errors.get_or_create(&error).inc();
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            metrics
                .store_last_error
                .get_or_create(&error)
                .set(now.unwrap_or_default().as_secs_f64());
        }
        result
    }
}

fn name(error: &StoreError) -> &'static str {
    match error {
        StoreError::Unavailable { .. } | StoreError::NoEndpoints { .. } => "unavailable",
        StoreError::Unknown { .. } => "unknown",
        StoreError::LeaseGone { .. } => "lease-gone",
        StoreError::Refused { .. } => "refused",
        StoreError::BadValue { .. } => "bad-value",
    }
}

impl<S: SemaphoreStore> SemaphoreStore for Measured<S> {
    fn load<'a>(&'a self, look: &'a Look) -> BoxFuture<'a, Result<Snapshot, StoreError>> {
        Box::pin(self.measure("load", self.store.load(look)))
    }

    fn commit<'a>(
        &'a self,
        transaction: &'a Transaction,
    ) -> BoxFuture<'a, Result<Committed, StoreError>> {
        Box::pin(async move {
            let result = self.measure("commit", self.store.commit(transaction)).await;
            let outcome = match &result {
                Ok(done) if done.succeeded => "succeeded",
                Ok(_) => "conflict",
                Err(StoreError::Unknown { .. }) => "unknown",
                Err(_) => "failed",
            };
            let outcome = Outcome { outcome };
            self.metrics.transactions.get_or_create(&outcome).inc();
            result
        })
    }

    fn grant_lease(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseId, StoreError>> {
        Box::pin(self.measure("grant-lease", self.store.grant_lease(ttl)))
    }

    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<bool, StoreError>> {
        Box::pin(self.measure("keep-alive", self.store.keep_alive(lease)))
    }

    fn revoke_lease(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.measure("revoke-lease", self.store.revoke_lease(lease)))
    }

    fn watch(&self, keys: Vec<Key>, after: Revision) -> BoxStream<'static, ()> {
        self.store.watch(keys, after)
    }
}
