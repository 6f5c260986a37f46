//! From settings to a store.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use tracing::info;

use super::etcd2::{Spoken, detect_api};
use super::{
    Committed, Etcd2Store, Etcd3Store, EtcdOptions, FileStore, LOAD, SemaphoreStore, StoreError,
};
use crate::config::{Etcd, EtcdApi, Settings, Store};
use crate::group::GroupName;
use crate::semaphore::{Document, Key, LeaseId, Look, Paused, Revision, Snapshot, Transaction};

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
            found: Mutex::new(None),
        }))),
    })
}

/// etcd by the API by which the fleet locks. Asked at the first call that any
/// server answers; a fleet that is on v2 may move, so there it is asked again
/// with every load. Nobody moves back within a process. What was decided on v2 and
/// is committed after the move fails, since its condition is a revision of v2's
/// document.
struct AutoStore(Arc<Auto>);

struct Auto {
    options: EtcdOptions,
    group: GroupName,
    found: Mutex<Option<Found>>,
}

#[derive(Clone)]
enum Found {
    /// For as long as the process runs.
    OnV3(SharedStore),
    /// Until the fleet moves.
    OnV2(Etcd2Store),
}

impl Auto {
    fn found(&self) -> Option<Found> {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.clone()
    }

    fn settle(&self, found: Found) {
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
    }

    async fn store(&self) -> Result<SharedStore, StoreError> {
        if self.found().is_none() {
            self.load(&Look::default()).await?;
        }
        let found = self.found().expect("a load that succeeds finds one");
        Ok(match found {
            Found::OnV3(store) => store,
            Found::OnV2(store) => Arc::new(store),
        })
    }

    async fn load(&self, look: &Look) -> Result<Snapshot, StoreError> {
        let found = self.found();
        let old = match &found {
            Some(Found::OnV3(store)) => return store.load(look).await,
            Some(Found::OnV2(store)) => store.clone(),
            None => Etcd2Store::new(self.options.clone(), &self.group)?,
        };
        if found.is_some() {
            if let Some(seen) = self.load_from_v2(&old, true).await? {
                return Ok(seen);
            }
        } else if detect_api(&self.options).await? == super::EtcdApi::V2 {
            let seen = old.load(look).await?;
            info!("etcd speaks v2 only: no queue, no halt and no failure budget");
            self.settle(Found::OnV2(old));
            return Ok(seen);
        } else if let Some(seen) = self.load_from_v2(&old, false).await.map_err(in_vain)? {
            info!(
                "the fleet locks by etcd's v2 API: no queue, no halt and no failure budget \
                 before locksmithctl migrate"
            );
            self.settle(Found::OnV2(old));
            return Ok(seen);
        }
        let new = self.open_v3()?;
        let seen = new.load(look).await?;
        if found.is_some() {
            info!("the lock has moved to etcd's v3 API");
        }
        self.settle(Found::OnV3(Arc::new(new)));
        Ok(seen)
    }

    /// What is on v2; `None` if the fleet does not lock there. `was_there`: it did,
    /// in the life of this process.
    async fn load_from_v2(
        &self,
        old: &Etcd2Store,
        was_there: bool,
    ) -> Result<Option<Snapshot>, StoreError> {
        let reason = match old.load_if_spoken().await? {
            Spoken::Yes(seen) => return self.stays_on_v2(*seen, was_there).await,
            Spoken::Nowhere if !was_there => return Ok(None),
            // Members that lose v2 one after the other do not move a fleet.
            Spoken::Nowhere => NOT_MOVED.to_owned(),
            Spoken::Unclear(error) if was_there => {
                return Err(unavailable(format!("{error}; {TO_FOLLOW}")));
            }
            Spoken::Unclear(error) => format!("{error}; {IN_VAIN}"),
        };
        let new = self.open_v3()?.load(&Look::default()).await?;
        if is_open(&new, was_there) {
            Ok(None)
        } else {
            Err(unavailable(reason))
        }
    }

    /// The same, of what is there.
    async fn stays_on_v2(
        &self,
        seen: Snapshot,
        was_there: bool,
    ) -> Result<Option<Snapshot>, StoreError> {
        // As a rule nobody need be asked further.
        if seen.document.value.is_some() && is_in_use(seen.places()) {
            return Ok(Some(seen));
        }
        // An etcd that speaks v2 alone may be replaced by one that does not.
        if was_there && detect_api(&self.options).await? == super::EtcdApi::V2 {
            return Ok(Some(seen));
        }
        if seen.document.value.is_none() {
            return Ok(None);
        }
        let places = seen.places();
        let stays = match self.open_v3()?.load(&Look::default()).await {
            Ok(new) => fleet_is_on_v2(places, &new),
            // Nobody gets a place on v2, but who has one can give it back.
            Err(_) if !places.gives_places() && (was_there || !places.holders.is_empty()) => true,
            Err(error) => return Err(error),
        };
        Ok(stays.then_some(seen))
    }

    fn open_v3(&self) -> Result<Etcd3Store, StoreError> {
        Etcd3Store::new(self.options.clone(), &self.group)
    }
}

const IN_VAIN: &str = "if nobody locks by etcd's v2 API set etcd.api to v3 (-api v3)";
/// Where an endpoint that is dead keeps an agent on v2.
const TO_FOLLOW: &str = "if the lock has moved to v3 remove the endpoint that is dead, or \
                         restart locksmithd";
/// Where v2 is gone and nobody has ended it.
const NOT_MOVED: &str = "etcd does not speak v2 any more, and the lock has not moved to v3: start etcd \
                         with --enable-v2 and run locksmithctl migrate; or, if nobody holds the lock on \
                         v2, locksmithctl -api v3 set-max";

fn unavailable(reason: String) -> StoreError {
    StoreError::Unavailable { what: LOAD, reason }
}

/// What to do where v2 refuses this client and v3 would not.
fn in_vain(error: StoreError) -> StoreError {
    match error {
        StoreError::Refused { what, reason } => StoreError::Refused {
            what,
            reason: format!("{reason}; {IN_VAIN}"),
        },
        other => other,
    }
}

/// Whether the document on v2 is the fleet's lock though the servers speak v3.
///
/// As long as it gives places the original takes them there, and nobody may take
/// them elsewhere. One that gives none is an operator's freeze until v3 is in use,
/// and until then its holders give back there what they have.
fn fleet_is_on_v2(old: &Document, new: &Snapshot) -> bool {
    let in_use = new.document.value.is_some();
    is_in_use(old) || !in_use || (paused(new).is_some() && !old.holders.is_empty())
}

/// Whether v3 is in use and no migration is under way.
///
/// A migration leaves an operator's pause alone, so who was on v2 takes each for
/// its own. Who starts may have a place on v3 to give back.
fn is_open(new: &Snapshot, was_there: bool) -> bool {
    let moves = paused(new).is_some_and(|paused| was_there || paused.by == Paused::BY_MIGRATE);
    new.document.value.is_some() && !moves
}

fn paused(new: &Snapshot) -> Option<&Paused> {
    new.policy.value.as_ref()?.paused.as_ref()
}

/// Whether it gives places and somebody wants that: the original makes one by
/// looking.
fn is_in_use(old: &Document) -> bool {
    old.gives_places() && !old.is_untouched()
}

impl SemaphoreStore for AutoStore {
    fn load<'a>(&'a self, look: &'a Look) -> BoxFuture<'a, Result<Snapshot, StoreError>> {
        Box::pin(self.0.load(look))
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
        match self.0.found() {
            Some(Found::OnV3(store)) => store.watch(keys, after),
            Some(Found::OnV2(store)) => store.watch(keys, after),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::semaphore::{Policy, Versioned};

    #[test]
    fn a_fleet_is_on_v2_while_somebody_could_get_or_has_a_place_there() {
        let unused = Snapshot::default();
        let with = |paused| Snapshot {
            document: Versioned {
                value: Some(Arc::default()),
                created: 1,
                modified: 1,
            },
            policy: Versioned {
                value: Some(Policy {
                    paused,
                    ..Policy::default()
                }),
                created: 1,
                modified: 1,
            },
            ..Snapshot::default()
        };
        let open = with(None);
        let paused = with(Some(Paused {
            by: Paused::BY_MIGRATE.into(),
            why: String::new(),
            at: 0,
        }));
        for (old, on_unused, on_open, on_paused) in [
            (
                r#"{"semaphore":0,"max":1,"holders":["go"]}"#,
                true,
                true,
                true,
            ),
            (r#"{"semaphore":2,"max":2,"holders":[]}"#, true, true, true),
            // The original locks in this one, too.
            (r#"{"semaphore":1}"#, true, true, true),
            // Made by looking.
            (
                r#"{"semaphore":1,"max":1,"holders":null}"#,
                true,
                false,
                false,
            ),
            // Frozen, with and without somebody who is still to come back.
            (
                r#"{"semaphore":-1,"max":0,"holders":["go"]}"#,
                true,
                false,
                true,
            ),
            (
                r#"{"semaphore":0,"max":0,"holders":[]}"#,
                true,
                false,
                false,
            ),
            (
                r#"{"semaphore":-1,"max":-1,"holders":[]}"#,
                true,
                false,
                false,
            ),
        ] {
            let document = Document::read(old.as_bytes()).unwrap();
            let told = [&unused, &open, &paused].map(|new| fleet_is_on_v2(&document, new));
            assert_eq!(told, [on_unused, on_open, on_paused], "{old}");
        }
    }
}
