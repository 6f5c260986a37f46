use std::net::SocketAddr;

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use reqwest::Method;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;
use crate::fleetlock::client::{ClientOptions, FleetLockClient, FleetLockError};
use crate::semaphore::{Document, Key, Max, Phase, Record, Revision, steering};
use crate::store::{Committed, Fault, MemoryGroup, MemoryStore};

/// A store one of whose calls goes wrong.
#[derive(Clone)]
struct Faulty {
    memory: MemoryStore,
    /// Calls until then.
    next: Arc<std::sync::Mutex<Option<(usize, Fault)>>>,
}

impl Faulty {
    fn call(&self) -> &MemoryStore {
        let mut next = self.next.lock().unwrap();
        *next = match next.take() {
            Some((0, fault)) => {
                self.memory.fail_next([fault]);
                None
            }
            Some((calls, fault)) => Some((calls - 1, fault)),
            None => None,
        };
        &self.memory
    }
}

impl SemaphoreStore for Faulty {
    fn load<'a>(&'a self, look: &'a Look) -> BoxFuture<'a, Result<Snapshot, StoreError>> {
        self.call().load(look)
    }

    fn commit<'a>(
        &'a self,
        transaction: &'a Transaction,
    ) -> BoxFuture<'a, Result<Committed, StoreError>> {
        self.call().commit(transaction)
    }

    fn grant_lease(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseId, StoreError>> {
        self.call().grant_lease(ttl)
    }

    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.call().keep_alive(lease)
    }

    fn revoke_lease(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>> {
        self.call().revoke_lease(lease)
    }

    fn watch(&self, keys: Vec<Key>, after: Revision) -> BoxStream<'static, ()> {
        self.memory.watch(keys, after)
    }
}

/// A server over stores in memory, for the groups `default` and `web`.
struct World {
    address: SocketAddr,
    default: MemoryStore,
    web: MemoryStore,
    fault: Arc<std::sync::Mutex<Option<(usize, Fault)>>>,
    http: reqwest::Client,
    shutdown: CancellationToken,
}

impl Drop for World {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl World {
    async fn start(max: i64) -> Self {
        // Housekeeping would take the faults that are meant for requests.
        let quiet = Options {
            housekeeping: Duration::from_secs(3600),
            ..Options::default()
        };
        Self::start_with(max, quiet).await
    }

    async fn start_with(max: i64, options: Options) -> Self {
        let group = |max| {
            let mut group = MemoryGroup::new();
            let max = steering::set_max(&group.load(&Look::default()), Max::Count(max), 0).2;
            group.commit(&max).unwrap();
            MemoryStore::new(group)
        };
        let (default, web) = (group(max), group(1));
        let fault = Arc::default();
        let faulty = Faulty {
            memory: default.clone(),
            next: Arc::clone(&fault),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let (token, second) = (shutdown.clone(), web.clone());
        tokio::spawn(async move {
            let groups = [FleetGroup::default(), "web".parse().unwrap()];
            let store = |group: &GroupName| -> Arc<dyn SemaphoreStore> {
                match group.as_str() {
                    "" => Arc::new(faulty.clone()),
                    "web" => Arc::new(second.clone()),
                    other => panic!("group {other}"),
                }
            };
            let metrics = Arc::new(Metrics::new());
            serve(listener, &groups, store, options, metrics, token).await;
        });
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let world = Self {
            address,
            default,
            web,
            fault,
            http,
            shutdown,
        };
        // The first round of housekeeping is over when it shows.
        while !world.metrics().await.contains("semaphore_max") {
            tokio::task::yield_now().await;
        }
        world
    }

    /// Status and kind.
    async fn ask(&self, path: &str, group: &str, id: &str) -> (u16, String) {
        let body = format!(r#"{{"client_params":{{"id":"{id}","group":"{group}"}}}}"#);
        self.send(Method::POST, path, &[(HEADER, "true")], body)
            .await
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<reqwest::Body>,
    ) -> (u16, String) {
        let url = format!("http://{}{path}", self.address);
        let mut request = self.http.request(method, url).body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        let body = response.text().await.unwrap();
        if status == 200 {
            return (status, body);
        }
        let json: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert!(!json["value"].as_str().unwrap().is_empty());
        (status, json["kind"].as_str().unwrap().to_owned())
    }

    async fn metrics(&self) -> String {
        let url = format!("http://{}/metrics", self.address);
        let response = self.http.get(url).send().await.unwrap();
        response.text().await.unwrap()
    }

    fn client(&self, id: &str) -> FleetLockClient {
        FleetLockClient::new(ClientOptions {
            base_url: format!("http://{}", self.address),
            group: "default".to_owned(),
            id: id.into(),
            ca_pem: None,
        })
        .unwrap()
    }
}

fn snapshot(store: &MemoryStore) -> Snapshot {
    store.with_group(|group| group.load(&Look::default()))
}

fn yes() -> (u16, String) {
    (200, String::new())
}

fn no(kind: Kind) -> (u16, String) {
    (kind.status(), kind.name().to_owned())
}

const PRE: &str = "/v1/pre-reboot";
const STEADY: &str = "/v1/steady-state";
const BODY: &str = r#"{"client_params":{"id":"a","group":"default"}}"#;
const HEAD: (&str, &str) = (HEADER, "true");

#[tokio::test]
async fn a_client_gets_its_place_and_gives_it_back_in_its_group() {
    let world = World::start(1).await;
    // As Zincati does it: first it is steady, then it wants to reboot.
    assert_eq!(world.ask(STEADY, "default", "a").await, yes());
    assert_eq!(world.ask(PRE, "default", "a").await, yes());
    assert_eq!(world.ask("/v1/pre-reboot/", "default", "a").await, yes());
    assert_eq!(
        world.ask(PRE, "default", "b").await,
        no(Kind::SemaphoreFull)
    );
    assert_eq!(world.ask(PRE, "web", "b").await, yes());
    // Only the owner gives it back.
    assert_eq!(world.ask(STEADY, "default", "b").await, yes());
    assert_eq!(
        world.ask(PRE, "default", "b").await,
        no(Kind::SemaphoreFull)
    );
    assert_eq!(world.ask("/v1/steady-state/", "default", "a").await, yes());
    assert_eq!(world.ask(PRE, "default", "b").await, yes());
    let holders = |store| snapshot(store).places().holders.clone();
    assert_eq!(holders(&world.default), ["b".into()]);
    assert_eq!(holders(&world.web), ["b".into()]);
    let metrics = world.metrics().await;
    for line in [
        "locksmith_fleetlock_requests_total{api=\"pre-reboot\",answer=\"yes\"} 4\n",
        "locksmith_fleetlock_requests_total{api=\"pre-reboot\",answer=\"failed_lock_semaphore_full\"} 2\n",
        "locksmith_fleetlock_requests_total{api=\"steady-state\",answer=\"yes\"} 3\n",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
}

#[tokio::test]
async fn our_client_and_our_server_understand_each_other() {
    let world = World::start(1).await;
    let (a, b) = (world.client("a"), world.client("b"));
    a.steady_state().await.unwrap();
    a.pre_reboot().await.unwrap();
    let error = b.pre_reboot().await.unwrap_err();
    assert_eq!(error.kind(), Kind::SemaphoreFull.name());
    assert!(
        matches!(error, FleetLockError::Refused { status: 423, .. }),
        "{error}"
    );
    a.steady_state().await.unwrap();
    b.pre_reboot().await.unwrap();
}

#[tokio::test]
async fn what_is_no_request_of_the_protocol_is_told_what_it_is() {
    let world = World::start(1).await;
    let long = "x".repeat(MOST_BYTES + 1);
    let invalid = Kind::InvalidClientIdentity;
    let post = Method::POST;
    let other = r#"{"client_params":{"id":"a","group":"db"}}"#;
    let json = ("content-type", "application/json");
    let form = ("content-type", "application/x-www-form-urlencoded");
    for path in [PRE, STEADY, "/v1/pre-reboot/"] {
        for (method, headers, body, kind) in [
            (post.clone(), &[][..], BODY, invalid),
            (post.clone(), &[(HEADER, "True")], BODY, invalid),
            (post.clone(), &[HEAD, HEAD], BODY, invalid),
            (post.clone(), &[HEAD], "", invalid),
            (post.clone(), &[HEAD], "{\"client_params\":", invalid),
            (post.clone(), &[HEAD], other, Kind::UnknownGroup),
            (post.clone(), &[HEAD], &long, Kind::BodyTooLong),
            (Method::GET, &[HEAD], BODY, Kind::MethodNotAllowed),
            (Method::PUT, &[HEAD, json], BODY, Kind::MethodNotAllowed),
        ] {
            let answer = world
                .send(method.clone(), path, headers, body.to_owned())
                .await;
            assert_eq!(answer, no(kind), "{method} {path} {headers:?} {body:.40}");
        }
    }
    for path in [
        "/",
        "/v1",
        "/v1/pre-reboot/x",
        "/v2/pre-reboot",
        "//v1/pre-reboot",
    ] {
        let answer = world.send(post.clone(), path, &[HEAD], BODY).await;
        assert_eq!(answer, no(Kind::NotFound), "{path}");
    }
    assert_eq!(snapshot(&world.default).places().holders, []);
    // Whatever the content type is.
    for headers in [&[HEAD][..], &[HEAD, json], &[HEAD, form]] {
        assert_eq!(world.send(post.clone(), PRE, headers, BODY).await, yes());
    }
    let get = world.http.get(format!("http://{}{PRE}", world.address));
    assert_eq!(get.send().await.unwrap().headers()["allow"], "POST");
    let healthy = world.send(Method::GET, "/-/healthy", &[], "").await;
    assert_eq!(healthy, (200, "ok\n".to_owned()));
}

#[tokio::test]
async fn hostile_bodies_take_nothing_and_break_nothing() {
    let world = World::start(1).await;
    let send = async |head: String, body: &[u8]| {
        let mut stream = TcpStream::connect(world.address).await.unwrap();
        let head = format!(
            "POST {PRE} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{HEADER}: true\r\n{head}\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        // The server may close before it has read all of it.
        let _ = stream.write_all(body).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    };
    let length = |length: usize| format!("Content-Length: {length}\r\n");
    let deep = [b"{\"client_params\":".as_slice(), &b"[".repeat(16_000)].concat();
    let answer = send(length(deep.len()), &deep).await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    let answer = send(length(3), b"\xff\xfe\x00").await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    // More than all memory, announced and in chunks.
    let answer = send("Content-Length: 99999999999999\r\n".to_owned(), b"{").await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    let chunk = [b"4000\r\n".as_slice(), &[b' '; 0x4000], b"\r\n"].concat();
    let chunked = "Transfer-Encoding: chunked\r\n".to_owned();
    let answer = send(chunked.clone(), &chunk.repeat(64)).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    for (head, body) in [
        (chunked, &b"zz\r\n"[..]),
        ("Content-Length: -1\r\n".to_owned(), b""),
        (
            "Content-Length: 1\r\nContent-Length: 2\r\n".to_owned(),
            b"{}",
        ),
    ] {
        let answer = send(head.clone(), body).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{head}: {answer}");
    }
    assert_eq!(snapshot(&world.default).places().holders, []);
    assert_eq!(world.ask(PRE, "default", "a").await, yes());
}

#[tokio::test]
async fn twenty_that_are_steady_without_a_place_write_nothing() {
    let world = World::start(1).await;
    let before = snapshot(&world.default).revision;
    let answers = (0..20).map(|number| {
        let id = format!("m{number}");
        let world = &world;
        async move { world.ask(STEADY, "default", &id).await }
    });
    for answer in join_all(answers).await {
        assert_eq!(answer, yes());
    }
    assert_eq!(snapshot(&world.default).revision, before);
}

#[tokio::test]
async fn twenty_that_ask_at_once_get_five_places() {
    let world = World::start(5).await;
    let ask = async |path: &'static str, kind: Kind| {
        let answers = (0..20).map(|number| {
            let id = format!("m{number}");
            let world = &world;
            async move { (world.ask(path, "default", &id).await, id) }
        });
        let (mut got, mut refused) = (Vec::new(), 0);
        for (answer, id) in join_all(answers).await {
            if answer == yes() {
                got.push(MachineId::new(&id));
            } else {
                assert_eq!(answer, no(kind));
                refused += 1;
            }
        }
        got.sort();
        (got, refused)
    };
    let (got, refused) = ask(PRE, Kind::SemaphoreFull).await;
    assert_eq!((got.len(), refused), (5, 15));
    let there = snapshot(&world.default);
    assert_eq!(*there.places(), Document::new(5, got.clone()));
    // Each has its deadline, and no lease is left over.
    assert_eq!(there.deadlines.iter().cloned().collect::<Vec<_>>(), got);
    assert!(there.holders.values().all(|record| {
        let holder = record.value.as_ref().unwrap();
        holder.kind == crate::semaphore::Kind::Fleetlock && holder.phase == Phase::Draining
    }));
    let (steady, _) = ask(STEADY, Kind::SemaphoreFull).await;
    assert_eq!(steady.len(), 20);
    assert_eq!(*snapshot(&world.default).places(), Document::new(5, []));
}

#[tokio::test]
async fn whatever_call_fails_the_answer_is_true() {
    for fault in [Fault::Unavailable, Fault::RequestLost, Fault::ReplyLost] {
        // More than a request makes, so the last rounds see no fault.
        for call in 0..8 {
            let world = World::start(1).await;
            let set = || *world.fault.lock().unwrap() = Some((call, fault));
            set();
            let answer = world.ask(PRE, "default", "a").await;
            assert_eq!(answer, yes(), "{fault:?} of call {call}");
            let there = snapshot(&world.default);
            assert_eq!(*there.places(), Document::new(1, ["a".into()]));
            assert!(there.deadlines.contains(&MachineId::new("a")));
            set();
            let answer = world.ask(STEADY, "default", "a").await;
            assert_eq!(answer, yes(), "{fault:?} of call {call}");
            assert_eq!(*snapshot(&world.default).places(), Document::new(1, []));
        }
    }
}

#[tokio::test]
async fn a_store_that_stays_away_is_no_yes() {
    let world = World::start(1).await;
    world.default.fail_next([Fault::Unavailable; 10_000]);
    let begun = Instant::now();
    let asked = [PRE, STEADY].map(|path| world.ask(path, "default", "a"));
    for answer in join_all(asked).await {
        assert_eq!(answer, no(Kind::StoreUnavailable));
    }
    assert!(begun.elapsed() < Duration::from_secs(10));
    // Others are not held up.
    assert_eq!(world.ask(PRE, "web", "a").await, yes());
}

#[tokio::test]
async fn housekeeping_notices_who_does_not_come_back() {
    let options = Options {
        deadline: Duration::from_millis(300),
        housekeeping: Duration::from_millis(20),
        ..Options::default()
    };
    let world = World::start_with(3, options).await;
    assert_eq!(world.ask(PRE, "default", "a").await, yes());
    assert_eq!(world.ask(PRE, "default", "b").await, yes());
    let halted = async {
        while !world
            .metrics()
            .await
            .contains("locksmith_halted{group=\"\"} 1\n")
        {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), halted)
        .await
        .expect("the second that is overdue halts the group");
    assert_eq!(world.ask(PRE, "default", "c").await, no(Kind::Halted));
    let metrics = world.metrics().await;
    let overdue = "locksmith_semaphore_holders{group=\"\",phase=\"overdue\"} 2\n";
    assert!(metrics.contains(overdue), "{metrics}");
    // They come back after all.
    for id in ["a", "b"] {
        assert_eq!(world.ask(STEADY, "default", id).await, yes());
    }
    assert_eq!(snapshot(&world.default).places().holders, []);
}

#[test]
fn groups_are_an_operators_choice() {
    let group = |text: &str| {
        text.parse::<FleetGroup>()
            .map(|fleet| fleet.group.to_string())
    };
    assert_eq!(group("default").unwrap(), "");
    assert_eq!(group("web-1.a").unwrap(), "web-1.a");
    for bad in ["", ".", "..", "a b", "a/b", "web_1"] {
        assert!(group(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_value_that_cannot_be_read_is_no_yes_and_is_not_tried_again() {
    let refused = |error| refusal(&error).kind;
    assert_eq!(
        refused(StoreError::BadValue {
            key: "k".into(),
            source: Record::read(&Key::Document, b"{").unwrap_err(),
        }),
        Kind::StoreBadValue
    );
    assert_eq!(
        refused(StoreError::Refused {
            what: "read",
            reason: "no permission".into(),
        }),
        Kind::StoreRefused
    );
}
