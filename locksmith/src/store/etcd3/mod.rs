//! The semaphore in etcd, by its v3 API. A load is one transaction of reads, so
//! all of it is of one revision; a commit is one transaction of writes.

mod connection;
mod said;
mod watching;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use etcd_client as etcd;
use etcd_client::{CompareOp, DeleteOptions, GetOptions, GetResponse, PutOptions};
use etcd_client::{Txn, TxnOp, TxnOpResponse, TxnResponse};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;

use self::connection::Connections;
use super::etcd::EtcdOptions;
use super::failover::Repeat;
use super::{
    COMMIT, Committed, GRANT, KEEP, LOAD, REVOKE, SemaphoreStore, StoreError, check, reading,
};
use crate::group::GroupName;
use crate::semaphore::{
    Compare, Key, LeaseId, Look, Record, Revision, Snapshot, Transaction, Versioned, Write,
};

/// One group in etcd v3.
#[derive(Debug, Clone)]
pub struct Etcd3Store {
    connections: Arc<Connections>,
    prefix: String,
}

impl Etcd3Store {
    /// Does not touch the network.
    ///
    /// # Errors
    ///
    /// Options that cannot work, or a TLS file that cannot be read.
    pub fn new(options: EtcdOptions, group: &GroupName) -> Result<Self, StoreError> {
        Ok(Self {
            connections: Arc::new(Connections::new(options)?),
            prefix: group.prefix(),
        })
    }

    /// Finds out early whether etcd can be reached and lets us in.
    ///
    /// # Errors
    ///
    /// What a load would say.
    pub async fn probe(&self) -> Result<(), StoreError> {
        let key = self.name(&Key::Document);
        let ask = |mut client: etcd::Client| {
            let key = key.clone();
            async move { client.get(key, None).await }
        };
        self.connections.call(LOAD, Repeat::Safe, ask).await?;
        Ok(())
    }

    fn name(&self, key: &Key) -> String {
        format!("{}{}", self.prefix, key.name())
    }

    async fn read(&self, look: &Look) -> Result<Snapshot, StoreError> {
        let ranges = self.ranges(look);
        let ask = |mut client: etcd::Client| {
            let ranges = Txn::new().and_then(ranges.clone());
            async move { client.txn(ranges).await }
        };
        let answer = self.connections.call(LOAD, Repeat::Safe, ask).await?;
        self.snapshot(look, &answer)
    }

    /// What a load asks for, in the order in which [`Self::snapshot`] takes it.
    fn ranges(&self, look: &Look) -> Vec<TxnOp> {
        let one = |key: &Key| TxnOp::get(self.name(key), None);
        let all = |part: &str, options: GetOptions| {
            TxnOp::get(
                format!("{}{part}", self.prefix),
                Some(options.with_prefix()),
            )
        };
        let options = GetOptions::new;
        let window = i64::try_from(Snapshot::QUEUE_WINDOW).unwrap_or(i64::MAX);
        let mut ranges = vec![
            one(&Key::Document),
            one(&Key::Policy),
            one(&Key::Halt),
            one(&Key::Failures),
            all(Key::HOLDERS, options()),
            all(Key::DEADLINES, options().with_keys_only()),
            // Keys come in their order unless another one is asked for.
            all(Key::QUEUE, options().with_limit(window)),
            all(Key::MEMBERS, options().with_count_only()),
        ];
        ranges.extend(look.ticket.clone().map(|key| one(&Key::Ticket(key))));
        ranges.extend(look.history.clone().map(|id| one(&Key::History(id))));
        ranges
    }

    fn snapshot(&self, look: &Look, answer: &TxnResponse) -> Result<Snapshot, StoreError> {
        let mut answers = answer.op_responses().into_iter();
        let mut next = || match answers.next() {
            Some(TxnOpResponse::Get(range)) => Ok(range),
            _ => Err(StoreError::Unavailable {
                what: LOAD,
                reason: "etcd answered something else than it was asked".into(),
            }),
        };
        let mut snapshot = Snapshot {
            revision: answer.header().map_or(0, etcd::ResponseHeader::revision),
            document: self.one(&Key::Document, &next()?, |record| match record {
                Record::Document(document) => Some(Arc::new(document)),
                _ => None,
            })?,
            policy: self.one(&Key::Policy, &next()?, |record| match record {
                Record::Policy(policy) => Some(policy),
                _ => None,
            })?,
            halt: self.one(&Key::Halt, &next()?, |record| match record {
                Record::Halt(halt) => Some(halt),
                _ => None,
            })?,
            failures: self.one(&Key::Failures, &next()?, |record| match record {
                Record::Failures(failures) => Some(failures),
                _ => None,
            })?,
            ..Snapshot::default()
        };
        let mut holders = BTreeMap::new();
        for entry in next()?.kvs() {
            if let Some(key @ Key::Holder(id)) = &reading::key(&self.prefix, entry.key()) {
                let holder = match reading::read(&self.prefix, key, entry.value())? {
                    Some(Record::Holder(holder)) => Some(holder),
                    _ => None,
                };
                holders.insert(id.clone(), Arc::new(versioned(entry, holder)));
            }
        }
        let mut deadlines = BTreeSet::new();
        for entry in next()?.kvs() {
            if let Some(Key::Deadline(id)) = reading::key(&self.prefix, entry.key()) {
                deadlines.insert(id);
            }
        }
        let range = next()?;
        snapshot.queue_length = count(&range);
        let mut queue = Vec::with_capacity(range.kvs().len());
        for entry in range.kvs() {
            if let Some(key @ Key::Ticket(ticket)) = &reading::key(&self.prefix, entry.key())
                && let Some(Record::Ticket(record)) =
                    reading::read(&self.prefix, key, entry.value())?
            {
                queue.push((ticket.clone(), Arc::new(record)));
            }
        }
        snapshot.holders = Arc::new(holders);
        snapshot.deadlines = Arc::new(deadlines);
        snapshot.queue = Arc::new(queue);
        snapshot.members = count(&next()?);
        if let Some(ticket) = &look.ticket {
            let key = Key::Ticket(ticket.clone());
            snapshot.own_ticket = self
                .one(&key, &next()?, |record| match record {
                    Record::Ticket(ticket) => Some(Arc::new(ticket)),
                    _ => None,
                })?
                .value;
        }
        if let Some(id) = &look.history {
            let key = Key::History(id.clone());
            snapshot.history = self
                .one(&key, &next()?, |record| match record {
                    Record::History(outcomes) => Some(outcomes),
                    _ => None,
                })?
                .value
                .unwrap_or_default();
        }
        Ok(snapshot)
    }

    /// The one key of `range`. A value that cannot be read and can be done
    /// without keeps its revisions, so that it can be replaced.
    fn one<T>(
        &self,
        key: &Key,
        range: &GetResponse,
        value: impl FnOnce(Record) -> Option<T>,
    ) -> Result<Versioned<T>, StoreError> {
        let Some(entry) = range.kvs().first() else {
            return Ok(Versioned::default());
        };
        let record = reading::read(&self.prefix, key, entry.value())?;
        Ok(versioned(entry, record.and_then(value)))
    }

    async fn write(&self, transaction: &Transaction) -> Result<Committed, StoreError> {
        check(transaction)?;
        let compares = transaction.when.iter().map(|compare| match compare {
            Compare::Modified(key, at) => {
                etcd::Compare::mod_revision(self.name(key), CompareOp::Equal, *at)
            }
            Compare::Created(key, at) => {
                etcd::Compare::create_revision(self.name(key), CompareOp::Equal, *at)
            }
        });
        let writes = |writes: &[Write]| -> Vec<TxnOp> {
            let write = |write: &Write| match write {
                Write::Put(key, record, lease) => {
                    let options = PutOptions::new().with_lease(lease.0);
                    TxnOp::put(self.name(key), record.write(), Some(options))
                }
                Write::Delete(key) => TxnOp::delete(self.name(key), None::<DeleteOptions>),
            };
            writes.iter().map(write).collect()
        };
        let txn = Txn::new()
            .when(compares.collect::<Vec<_>>())
            .and_then(writes(&transaction.then))
            .or_else(writes(&transaction.otherwise));
        let ask = |mut client: etcd::Client| {
            let txn = txn.clone();
            async move { client.txn(txn).await }
        };
        let answer = self.connections.call(COMMIT, Repeat::Never, ask).await?;
        Ok(Committed {
            succeeded: answer.succeeded(),
            revision: answer.header().map_or(0, etcd::ResponseHeader::revision),
        })
    }
}

impl SemaphoreStore for Etcd3Store {
    fn load<'a>(&'a self, look: &'a Look) -> BoxFuture<'a, Result<Snapshot, StoreError>> {
        self.read(look).boxed()
    }

    fn commit<'a>(
        &'a self,
        transaction: &'a Transaction,
    ) -> BoxFuture<'a, Result<Committed, StoreError>> {
        self.write(transaction).boxed()
    }

    /// etcd counts whole seconds, and gives more than asked for if it is less
    /// than an election takes.
    fn grant_lease(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseId, StoreError>> {
        let part = u64::from(ttl.subsec_nanos() > 0);
        let seconds = i64::try_from(ttl.as_secs().saturating_add(part)).unwrap_or(i64::MAX);
        async move {
            // A lease whose name got lost ends by itself.
            let ask = move |mut client: etcd::Client| async move {
                client.lease_grant(seconds.max(1), None).await
            };
            let granted = self.connections.call(GRANT, Repeat::Safe, ask).await?;
            Ok(LeaseId(granted.id()))
        }
        .boxed()
    }

    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<bool, StoreError>> {
        async move {
            let ask = move |mut client: etcd::Client| async move {
                client.lease_keep_alive(lease.0).await.map(|_| ())
            };
            let kept = self.connections.call(KEEP, Repeat::Safe, ask);
            match kept.await {
                Ok(()) => Ok(true),
                Err(StoreError::LeaseGone { .. }) => Ok(false),
                Err(error) => Err(error),
            }
        }
        .boxed()
    }

    fn revoke_lease(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>> {
        async move {
            let ask = move |mut client: etcd::Client| async move {
                client.lease_revoke(lease.0).await.map(|_| ())
            };
            let revoked = self.connections.call(REVOKE, Repeat::Safe, ask);
            match revoked.await {
                Err(StoreError::LeaseGone { .. }) => Ok(()),
                answer => answer,
            }
        }
        .boxed()
    }

    fn watch(&self, keys: Vec<Key>, after: Revision) -> BoxStream<'static, ()> {
        let keys = keys.iter().map(|key| self.name(key)).collect();
        watching::watch(Arc::clone(&self.connections), keys, after)
    }
}

fn versioned<T>(entry: &etcd::KeyValue, value: Option<T>) -> Versioned<T> {
    Versioned {
        value,
        created: entry.create_revision(),
        modified: entry.mod_revision(),
    }
}

fn count(range: &GetResponse) -> u64 {
    u64::try_from(range.count()).unwrap_or(0)
}
