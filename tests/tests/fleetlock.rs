//! FleetLock servers over a real etcd, asked by curl as Zincati asks: several
//! servers, one semaphore, whatever happens to the store.

#![allow(clippy::unwrap_used, reason = "a test may fail by panic")]

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use locksmith::config::Listen;
use locksmith::fleetlock::server::{FleetGroup, Options, serve};
use locksmith::group::GroupName;
use locksmith::metrics::{Endpoint, Measured, Metrics};
use locksmith::semaphore::{Look, Max, places, steering};
use locksmith::store::{Etcd3Store, EtcdOptions, SemaphoreStore};
use system_tests::etcd::Cluster;
use system_tests::process::run;
use tokio::net::TcpListener;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

const LIMIT: Duration = Duration::from_secs(30);
const DOCUMENT: &str = "coreos.com/updateengine/rebootlock/semaphore";

/// Servers over one etcd; each has connections of its own.
struct Servers {
    etcd: Cluster,
    addresses: Vec<SocketAddr>,
    metrics: Arc<Metrics>,
    shutdown: CancellationToken,
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl Servers {
    async fn start(servers: usize, max: i64, options: Options) -> Self {
        let etcd = Cluster::start().unwrap();
        let store = store(&etcd);
        let look = Look::default();
        let max = steering::set_max(&store.load(&look).await.unwrap(), Max::Count(max), 0).2;
        assert!(store.commit(&max).await.unwrap().succeeded);
        let shutdown = CancellationToken::new();
        let metrics = Arc::new(Metrics::new());
        let mut addresses = Vec::new();
        for _ in 0..servers {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            addresses.push(listener.local_addr().unwrap());
            let store: Arc<dyn SemaphoreStore> =
                Arc::new(Measured::new(self::store(&etcd), Arc::clone(&metrics)));
            let (metrics, options) = (Arc::clone(&metrics), options.clone());
            let shutdown = shutdown.clone();
            tokio::spawn(async move {
                let groups = [FleetGroup::default()];
                let store = |_: &GroupName| Arc::clone(&store);
                serve(listener, &groups, store, options, metrics, shutdown).await;
            });
        }
        Self {
            etcd,
            addresses,
            metrics,
            shutdown,
        }
    }

    /// Asks the servers in turn, in the name of `m0`, `m1`, …, all at once.
    async fn ask_at_once(&self, api: &str, clients: usize) -> Vec<(String, String)> {
        let asked = (0..clients).map(|number| {
            let address = self.addresses[number % self.addresses.len()];
            ask(address, api, format!("m{number}"))
        });
        join_all(asked).await
    }

    async fn ask(&self, api: &str, id: &str) -> (String, String) {
        ask(self.addresses[0], api, id.to_owned()).await
    }

    fn document(&self) -> String {
        let value = self
            .etcd
            .etcdctl(0, &["get", "--print-value-only", DOCUMENT]);
        value.unwrap().trim().to_owned()
    }

    fn revision(&self) -> i64 {
        let status = self.etcd.etcdctl(0, &["get", DOCUMENT, "-w=json"]).unwrap();
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        status["header"]["revision"].as_i64().unwrap()
    }
}

fn store(etcd: &Cluster) -> Etcd3Store {
    let options = EtcdOptions {
        endpoints: etcd.endpoints(),
        ..EtcdOptions::default()
    };
    Etcd3Store::new(options, &GroupName::default()).unwrap()
}

/// Status and body of what curl gets: pretty-printed JSON and no content type.
async fn ask(address: SocketAddr, api: &str, id: String) -> (String, String) {
    let url = format!("http://{address}/v1/{api}");
    let body = format!(
        "{{\n  \"client_params\": {{\n    \"id\": \"{id}\",\n    \"group\": \"default\"\n  }}\n}}"
    );
    let answer = spawn_blocking(move || {
        let mut curl = Command::new("curl");
        curl.args(["-q", "-s", "--noproxy", "*", "-w", "\n%{http_code}"])
            .args(["-H", "fleet-lock-protocol: true", "-H", "Content-Type:"])
            .args(["--data-binary", &body, &url]);
        run(&mut curl, LIMIT).unwrap().success().unwrap()
    });
    let answer = answer.await.unwrap();
    let (body, status) = answer.rsplit_once('\n').unwrap();
    (status.to_owned(), body.to_owned())
}

fn yes() -> (String, String) {
    ("200".to_owned(), String::new())
}

/// No housekeeping, so that every write is a request's.
fn quiet() -> Options {
    Options {
        housekeeping: Duration::from_secs(3600),
        ..Options::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zincati_reboots_while_others_wait_for_it() {
    let servers = Servers::start(1, 1, quiet()).await;
    assert_eq!(servers.ask("steady-state", "978a").await, yes());
    assert_eq!(servers.ask("pre-reboot", "978a").await, yes());
    assert_eq!(servers.ask("pre-reboot", "978a").await, yes());
    assert_eq!(
        servers.document(),
        r#"{"semaphore":0,"max":1,"holders":["978a"]}"#
    );
    let (status, body) = servers.ask("pre-reboot", "other").await;
    assert_eq!(status, "423");
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(body["kind"], "failed_lock_semaphore_full");
    // It is back.
    assert_eq!(servers.ask("steady-state", "978a").await, yes());
    assert_eq!(servers.ask("pre-reboot", "other").await, yes());
    assert_eq!(
        servers.document(),
        r#"{"semaphore":0,"max":1,"holders":["other"]}"#
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn three_servers_give_twenty_clients_five_places() {
    let servers = Servers::start(3, 5, quiet()).await;
    let before = servers.revision();
    let steady = servers.ask_at_once("steady-state", 20).await;
    assert!(steady.iter().all(|answer| *answer == yes()), "{steady:?}");
    assert_eq!(servers.revision(), before, "nobody had a place");

    let answers = servers.ask_at_once("pre-reboot", 20).await;
    let count = |status: &str| {
        answers
            .iter()
            .filter(|(answer, _)| answer == status)
            .count()
    };
    assert_eq!((count("200"), count("423")), (5, 15), "{answers:?}");
    let snapshot = store(&servers.etcd).load(&Look::default()).await.unwrap();
    assert_eq!(snapshot.places().holders.len(), 5);
    assert_eq!(snapshot.deadlines.len(), 5);
    assert_eq!(snapshot.queue_length, 0);

    let steady = servers.ask_at_once("steady-state", 20).await;
    assert!(steady.iter().all(|answer| *answer == yes()), "{steady:?}");
    assert_eq!(
        servers.document(),
        r#"{"semaphore":5,"max":5,"holders":[]}"#
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_etcd_nobody_is_told_yes_and_everybody_is_told_soon() {
    let mut servers = Servers::start(1, 1, quiet()).await;
    assert_eq!(servers.ask("pre-reboot", "a").await, yes());
    servers.etcd.kill(0).unwrap();
    for (api, id) in [("pre-reboot", "a"), ("steady-state", "a")] {
        let begun = Instant::now();
        let (status, body) = servers.ask(api, id).await;
        assert!(begun.elapsed() < Duration::from_secs(10), "{api}");
        assert_eq!(status, "503", "{body}");
        assert!(body.contains("\"store_unavailable\""), "{body}");
    }
    servers.etcd.restart(0).unwrap();
    assert_eq!(servers.ask("pre-reboot", "a").await, yes());
    // One that hangs is another matter than one that is gone.
    servers.etcd.stop(0).unwrap();
    let begun = Instant::now();
    let (status, _) = servers.ask("pre-reboot", "b").await;
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert_eq!(status, "503");
    servers.etcd.resume(0).unwrap();
    assert_eq!(servers.ask("steady-state", "a").await, yes());
    assert_eq!(servers.ask("pre-reboot", "b").await, yes());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_come_back_halts_the_fleet_and_curl_can_see_it() {
    let options = Options {
        // The shortest that etcd keeps to.
        deadline: Duration::from_secs(2),
        housekeeping: Duration::from_millis(200),
        ..Options::default()
    };
    let servers = Servers::start(2, 3, options).await;
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("metrics.sock");
    let listen = Listen::Unix(socket.clone());
    let endpoint = Endpoint::bind(&listen, Arc::clone(&servers.metrics))
        .await
        .unwrap();
    tokio::spawn(endpoint.serve(servers.shutdown.clone()));

    for id in ["a", "b"] {
        assert_eq!(servers.ask("pre-reboot", id).await, yes());
    }
    let begun = Instant::now();
    let refused = loop {
        let (status, body) = servers.ask("pre-reboot", "c").await;
        if body.contains("fleet_halted") {
            break (status, body);
        }
        assert_eq!(servers.ask("steady-state", "c").await, yes());
        assert!(begun.elapsed() < LIMIT, "{status} {body}");
    };
    assert_eq!(refused.0, "423");
    assert!(refused.1.contains("2 of 2 failures"), "{}", refused.1);

    let scraped = spawn_blocking(move || {
        let mut curl = Command::new("curl");
        curl.args(["-q", "-s", "--fail", "--unix-socket"])
            .arg(socket)
            .arg("http://localhost/metrics");
        run(&mut curl, LIMIT).unwrap().success().unwrap()
    });
    let scraped = scraped.await.unwrap();
    for line in [
        "locksmith_halted{group=\"\"} 1\n",
        "locksmith_semaphore_holders{group=\"\",phase=\"overdue\"} 2\n",
        "locksmith_failure_budget_left{group=\"\"} 0\n",
    ] {
        assert!(scraped.contains(line), "{line} in {scraped}");
    }
    // An operator gives one of them up; the other one comes back.
    let store = store(&servers.etcd);
    let look = Look::default();
    // The servers keep house meanwhile, so he may have to look again.
    loop {
        let unlock = places::unlock(&store.load(&look).await.unwrap(), &"a".into(), "lost", 0);
        if store.commit(&unlock.unwrap()).await.unwrap().succeeded {
            break;
        }
        assert!(begun.elapsed() < 2 * LIMIT, "always somebody was faster");
    }
    assert_eq!(servers.ask("steady-state", "b").await, yes());
    assert_eq!(
        servers.document(),
        r#"{"semaphore":3,"max":3,"holders":[]}"#
    );
}
