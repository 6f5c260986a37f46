//! From settings to a store.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use tokio::sync::OnceCell;
use tracing::info;

use super::etcd2::detect_api;
use super::{
    Committed, Etcd2Store, Etcd3Store, EtcdOptions, FileStore, SemaphoreStore, StoreError,
};
use crate::config::{Etcd, EtcdApi, Settings, Store};
use crate::group::GroupName;
use crate::semaphore::{Key, LeaseId, Look, Revision, Snapshot, Transaction};

/// A store that is shared and whose kind is known at run time only.
pub type SharedStore = Arc<dyn SemaphoreStore>;

impl Settings {
    /// The store that the settings name. The network is not touched yet.
    ///
    /// # Errors
    ///
    /// What can be found without the network: endpoints that are none, TLS
    /// files that cannot be read.
    pub fn open_store(&self) -> Result<SharedStore, StoreError> {
        match &self.store {
            Store::File(path) => Ok(Arc::new(FileStore::new(path, &self.group))),
            Store::Etcd => open_etcd(&self.etcd, self.etcd.api, &self.group),
        }
    }

    /// The same in etcd by this API, whatever the settings say.
    ///
    /// # Errors
    ///
    /// As [`Settings::open_store`].
    pub fn open_etcd(&self, api: EtcdApi) -> Result<SharedStore, StoreError> {
        open_etcd(&self.etcd, api, &self.group)
    }
}

fn open_etcd(etcd: &Etcd, api: EtcdApi, group: &GroupName) -> Result<SharedStore, StoreError> {
    let options = EtcdOptions {
        endpoints: etcd.endpoints.clone(),
        cafile: etcd.cafile.clone(),
        certfile: etcd.client.as_ref().map(|files| files.cert.clone()),
        keyfile: etcd.client.as_ref().map(|files| files.key.clone()),
        username: etcd.login.as_ref().map(|login| login.username.clone()),
        password: etcd
            .login
            .as_ref()
            .map(|login| login.password.expose().to_owned()),
    };
    options.check()?;
    Ok(match api {
        EtcdApi::V3 => Arc::new(Etcd3Store::new(options, group)?),
        EtcdApi::V2 => Arc::new(Etcd2Store::new(options, group)?),
        EtcdApi::Auto => Arc::new(AutoStore(Arc::new(Auto {
            options,
            group: group.clone(),
            found: OnceCell::new(),
        }))),
    })
}

/// etcd by the API that its servers turn out to speak, at the first call that
/// any of them answers.
struct AutoStore(Arc<Auto>);

struct Auto {
    options: EtcdOptions,
    group: GroupName,
    found: OnceCell<SharedStore>,
}

impl Auto {
    async fn store(&self) -> Result<&SharedStore, StoreError> {
        self.found
            .get_or_try_init(|| async {
                let api = detect_api(&self.options).await?;
                let options = self.options.clone();
                Ok(match api {
                    super::etcd2::EtcdApi::V3 => {
                        Arc::new(Etcd3Store::new(options, &self.group)?) as SharedStore
                    }
                    super::etcd2::EtcdApi::V2 => {
                        info!("etcd speaks v2 only: no queue, no halt and no failure budget");
                        Arc::new(Etcd2Store::new(options, &self.group)?)
                    }
                })
            })
            .await
    }
}

impl SemaphoreStore for AutoStore {
    fn load<'a>(&'a self, look: &'a Look) -> BoxFuture<'a, Result<Snapshot, StoreError>> {
        Box::pin(async move { self.0.store().await?.load(look).await })
    }

    fn commit<'a>(
        &'a self,
        transaction: &'a Transaction,
    ) -> BoxFuture<'a, Result<Committed, StoreError>> {
        Box::pin(async move { self.0.store().await?.commit(transaction).await })
    }

    fn grant_lease(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseId, StoreError>> {
        Box::pin(async move { self.0.store().await?.grant_lease(ttl).await })
    }

    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<bool, StoreError>> {
        Box::pin(async move { self.0.store().await?.keep_alive(lease).await })
    }

    fn revoke_lease(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move { self.0.store().await?.revoke_lease(lease).await })
    }

    fn watch(&self, keys: Vec<Key>, after: Revision) -> BoxStream<'static, ()> {
        // Who watches has loaded before, so the API is known; if it is not,
        // there is nothing to hear.
        match self.0.found.get() {
            Some(store) => store.watch(keys, after),
            None => stream::pending().boxed(),
        }
    }
}

impl<S: SemaphoreStore + ?Sized> SemaphoreStore for Arc<S> {
    fn load<'a>(&'a self, look: &'a Look) -> BoxFuture<'a, Result<Snapshot, StoreError>> {
        (**self).load(look)
    }

    fn commit<'a>(
        &'a self,
        transaction: &'a Transaction,
    ) -> BoxFuture<'a, Result<Committed, StoreError>> {
        (**self).commit(transaction)
    }

    fn grant_lease(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseId, StoreError>> {
        (**self).grant_lease(ttl)
    }

    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<bool, StoreError>> {
        (**self).keep_alive(lease)
    }

    fn revoke_lease(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>> {
        (**self).revoke_lease(lease)
    }

    fn watch(&self, keys: Vec<Key>, after: Revision) -> BoxStream<'static, ()> {
        (**self).watch(keys, after)
    }
}
