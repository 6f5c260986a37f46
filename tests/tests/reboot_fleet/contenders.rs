//! Three hundred agents want a place in the same moment. How much do they fight
//! for the one document?

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use locksmith::coordinator::{Agent, Applied, Health, Identity, Lock, Options, Published, Window};
use locksmith::daemon::machine::{Hint, Machine};
use locksmith::daemon::run::Daemon;
use locksmith::group::GroupName;
use locksmith::metrics::Metrics;
use locksmith::semaphore::{Key, LeaseId, Look, Mode, Revision, Snapshot, Transaction, Write};
use locksmith::store::{Committed, Etcd3Store, EtcdOptions, SemaphoreStore, StoreError};
use system_tests::etcd::Cluster;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

const CONTENDERS: usize = 300;
const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn three_hundred_contenders_need_fewer_than_two_transactions_each() {
    let _alone = super::alone();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(contend());
}

async fn contend() {
    let etcd = Cluster::start().unwrap();
    let document = format!("{{\"semaphore\":{CONTENDERS},\"max\":{CONTENDERS},\"holders\":null}}");
    etcd.etcdctl(0, &["put", super::DOCUMENT, &document])
        .unwrap();
    let options = EtcdOptions {
        endpoints: etcd.endpoints(),
        ..EtcdOptions::default()
    };
    let group: GroupName = "".parse().unwrap();
    let counts = Arc::new(Counts::default());
    // Nobody begins before all are there.
    let start = Arc::new(Semaphore::new(0));
    let mut agents = tokio::task::JoinSet::new();
    for number in 0..CONTENDERS {
        let id = format!("m{number:03}").as_str().into();
        let identity = Identity {
            id,
            boot_id: format!("boot-{number}"),
            version: "1.0.0".to_owned(),
        };
        let agent = Agent::new(identity.clone(), plain_options());
        let daemon = Daemon {
            store: Arc::new(Counting {
                store: Etcd3Store::new(options.clone(), &group).unwrap(),
                counts: Arc::clone(&counts),
            }),
            machine: Arc::new(Contender {
                start: Arc::clone(&start),
                counts: Arc::clone(&counts),
            }),
            window: Box::new(|_| Window::Open),
            group: group.clone(),
            id: identity.id,
            metrics: Arc::new(Metrics::new()),
            view: watch::Sender::new(agent.view()),
            shutdown: CancellationToken::new(),
            agent,
        };
        agents.spawn(daemon.run());
    }
    counts.reach(&counts.ready, "all agents to be ready").await;
    let begin = Instant::now();
    start.add_permits(CONTENDERS);
    counts.reach(&counts.drained, "a place for everybody").await;
    let took = begin.elapsed();
    let [document, others] =
        [&counts.document, &counts.others].map(|count| count.load(Ordering::Relaxed));
    // Asked to end, they would all give their place back first.
    agents.shutdown().await;

    let per_lock = |count: usize| {
        f64::from(u32::try_from(count).unwrap()) / f64::from(u32::try_from(CONTENDERS).unwrap())
    };
    println!(
        "{CONTENDERS} contenders have their places after {took:.1?}: {:.2} transactions per lock \
         that fight for the document, {:.2} that do not (tickets, confirmations)",
        per_lock(document),
        per_lock(others),
    );
    assert!(
        per_lock(document) < 2.0,
        "{document} for {CONTENDERS} locks"
    );
}

fn plain_options() -> Options {
    Options {
        lock: Lock::Semaphore,
        recover: false,
        rank: 500,
        stays_up: false,
        mode: Mode::Firmware,
        warning: Duration::ZERO,
        soak: Duration::ZERO,
        deadline: Duration::from_secs(600),
    }
}

#[derive(Default)]
struct Counts {
    /// Agents that wait for the start.
    ready: AtomicUsize,
    /// Agents that have their place.
    drained: AtomicUsize,
    /// Transactions that want to change the document, won or lost.
    document: AtomicUsize,
    /// All others.
    others: AtomicUsize,
}

impl Counts {
    async fn reach(&self, count: &AtomicUsize, what: &str) {
        let reached = async {
            while count.load(Ordering::Relaxed) < CONTENDERS {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let in_time = tokio::time::timeout(LIMIT, reached).await;
        in_time.unwrap_or_else(|_| panic!("no {what}: {}", count.load(Ordering::Relaxed)));
    }
}

/// A machine with an update that waits, from the start on.
struct Contender {
    start: Arc<Semaphore>,
    counts: Arc<Counts>,
}

impl Machine for Contender {
    fn applied(&self) -> BoxFuture<'_, Result<Option<Applied>, String>> {
        Box::pin(async {
            self.counts.ready.fetch_add(1, Ordering::Relaxed);
            let _started = self.start.acquire().await;
            Ok(Some(Applied {
                version: "2.0.0".to_owned(),
                soft: false,
            }))
        })
    }

    fn hints(&self) -> BoxStream<'static, Hint> {
        stream::pending().boxed()
    }

    fn warn_users(&self, _delay: Duration) -> BoxFuture<'_, Result<bool, String>> {
        Box::pin(async { Ok(false) })
    }

    fn tell_users(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }

    /// The place is there; nothing follows.
    fn drain<'a>(&'a self, _to: &'a str) -> BoxFuture<'a, Result<(), String>> {
        self.counts.drained.fetch_add(1, Ordering::Relaxed);
        Box::pin(std::future::pending())
    }

    fn health<'a>(&'a self, _from: &'a str, _to: &'a str) -> BoxFuture<'a, Health> {
        Box::pin(async { Health::Good })
    }

    fn reboot(&self, _mode: Mode) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }

    fn give_up_reboot(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }

    fn fleet_lock(&self, _take: bool) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }

    fn publish(&self, _state: Published) -> Result<(), String> {
        Ok(())
    }

    fn remember(&self, _held: bool) -> Result<(), String> {
        Ok(())
    }
}

/// Counts what is committed.
struct Counting {
    store: Etcd3Store,
    counts: Arc<Counts>,
}

impl SemaphoreStore for Counting {
    fn load<'a>(&'a self, look: &'a Look) -> BoxFuture<'a, Result<Snapshot, StoreError>> {
        self.store.load(look)
    }

    fn commit<'a>(
        &'a self,
        transaction: &'a Transaction,
    ) -> BoxFuture<'a, Result<Committed, StoreError>> {
        let changes_document = transaction
            .then
            .iter()
            .any(|write| matches!(write, Write::Put(Key::Document, ..)));
        let count = if changes_document {
            &self.counts.document
        } else {
            &self.counts.others
        };
        count.fetch_add(1, Ordering::Relaxed);
        self.store.commit(transaction)
    }

    fn grant_lease(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseId, StoreError>> {
        self.store.grant_lease(ttl)
    }

    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.store.keep_alive(lease)
    }

    fn revoke_lease(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>> {
        self.store.revoke_lease(lease)
    }

    fn watch(&self, keys: Vec<Key>, after: Revision) -> BoxStream<'static, ()> {
        self.store.watch(keys, after)
    }
}
