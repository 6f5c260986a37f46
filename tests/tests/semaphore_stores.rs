//! The stores of the semaphore do the same, and the real etcd is the judge: the
//! same random operations give the same snapshots in memory, in a file and in
//! etcd v3. Then what only a real server shows: watches over compaction and
//! restarts, passwords, certificates, servers that are gone or hang.

#![expect(
    clippy::unwrap_used,
    reason = "a test ends where something is not as it must be"
)]

use std::collections::BTreeMap;
use std::future::Future;
use std::io::{Read, Write as _};
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use locksmith::group::GroupName;
use locksmith::machine_id::MachineId;
use locksmith::semaphore::{
    Compare, Document, Failure, FailureKind, Failures, Halt, Holder, Key, Kind, LeaseId, Look,
    Mode, Outcome, Phase, Policy, Record, Revision, Snapshot, Ticket, TicketKey, Transaction,
    Write,
};
use locksmith::store::{
    Committed, Etcd2Store, Etcd3Store, EtcdApi, EtcdOptions, FileStore, MemoryGroup, MemoryStore,
    SemaphoreStore, StoreError, detect_api,
};
use system_tests::etcd::{Cluster, Setup, Tls};

const DOCUMENT_KEY: &str = "coreos.com/updateengine/rebootlock/semaphore";
/// What a call may take, with room for a busy machine.
const CALL_LIMIT: Duration = Duration::from_secs(8);
/// Far more than any change takes to be seen.
const WATCH_LIMIT: Duration = Duration::from_secs(30);
/// Long enough for a wrong item of a watch to come.
const QUIET: Duration = Duration::from_millis(500);

#[tokio::test(flavor = "multi_thread")]
async fn random_operations_give_the_same_in_memory_in_a_file_and_in_etcd() {
    let cluster = Cluster::start().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut operations = 0;
    for seed in 0..3 {
        let group: GroupName = format!("trace {seed}").parse().unwrap();
        let file = FileStore::new(&folder.path().join("semaphore"), &group);
        let etcd = Etcd3Store::new(options(cluster.endpoints()), &group).unwrap();
        let others: [(&dyn SemaphoreStore, usize); 2] = [(&file, 100), (&etcd, 300)];
        for (other, count) in others {
            operations += same(other, seed, count).await.unwrap();
        }
    }
    println!("{operations} operations gave the same");
}

/// A comparison that cannot fail proves nothing.
#[tokio::test]
async fn a_store_with_a_wrong_condition_is_caught() {
    let broken = Broken(MemoryStore::default());
    let difference = same(&broken, 0, 300).await.unwrap_err();
    assert!(difference.contains("succeeded"), "{difference}");
    same(&MemoryStore::default(), 0, 300).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_see_their_keys_and_no_others() {
    let cluster = Cluster::start().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let group = GroupName::default();
    let file = FileStore::new(&folder.path().join("semaphore"), &group);
    let etcd = Etcd3Store::new(options(cluster.endpoints()), &group).unwrap();
    let stores: [(&str, &dyn SemaphoreStore); 3] = [
        ("memory", &MemoryStore::default()),
        ("file", &file),
        ("etcd", &etcd),
    ];
    for (name, store) in stores {
        let halt = || put(Key::Halt, Record::Halt(halted("why")));
        let revision = store.load(&Look::default()).await.unwrap().revision;
        let mut watch = store.watch(vec![Key::Policy, Key::Halt], revision);
        quiet(name, &mut watch).await;
        put_member(store, "a").await;
        quiet(name, &mut watch).await;
        store.commit(&halt()).await.unwrap();
        item(name, &mut watch).await;
        store.commit(&delete(Key::Halt)).await.unwrap();
        item(name, &mut watch).await;

        // What happened before it was opened is seen, too; under a lease, its end.
        let lease = store.grant_lease(Duration::from_secs(2)).await.unwrap();
        let committed = store
            .commit(&Transaction {
                then: vec![Write::Put(
                    Key::Deadline("a".into()),
                    Record::Present,
                    lease,
                )],
                ..Transaction::default()
            })
            .await
            .unwrap();
        let keys = vec![Key::Deadline("a".into())];
        let mut watch = store.watch(keys, committed.revision - 1);
        item(name, &mut watch).await;
        item(name, &mut watch).await;
        let seen = store.load(&Look::default()).await.unwrap();
        assert!(seen.deadlines.is_empty(), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_outlives_compaction_and_the_restart_of_its_server() {
    let mut cluster = Cluster::start().unwrap();
    let store = Etcd3Store::new(options(cluster.endpoints()), &GroupName::default()).unwrap();
    put_member(&store, "a").await;
    let first = store
        .commit(&put(Key::Policy, Record::Policy(Policy::default())))
        .await
        .unwrap();
    for _ in 0..10 {
        put_member(&store, "b").await;
    }
    let now = store.load(&Look::default()).await.unwrap().revision;
    cluster.etcdctl(0, &["compact", &now.to_string()]).unwrap();

    // Something may have been missed: an item, once.
    let mut watch = store.watch(vec![Key::Halt, Key::Policy], first.revision - 1);
    item("compacted", &mut watch).await;
    quiet("compacted", &mut watch).await;

    cluster.kill(0).unwrap();
    quiet("killed", &mut watch).await;
    cluster.restart(0).unwrap();
    let transaction = put(Key::Halt, Record::Halt(halted("after the restart")));
    while store.commit(&transaction).await.is_err() {}
    item("restarted", &mut watch).await;
}

/// etcd hangs up on clients that ask too often whether it still lives.
#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_watch_keeps_its_connection() {
    let cluster = Cluster::start().unwrap();
    let store = Etcd3Store::new(options(cluster.endpoints()), &GroupName::default()).unwrap();
    let mut watch = store.watch(vec![Key::Halt], 0);
    let waited = tokio::time::timeout(Duration::from_secs(25), watch.next()).await;
    assert!(waited.is_err());
    let opened = cluster
        .metric(0, "grpc_server_started_total", "Watch")
        .unwrap();
    assert_eq!(opened, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_may_die_or_hang() {
    let mut cluster = Cluster::start_with(&Setup {
        nodes: 3,
        ..Setup::default()
    })
    .unwrap();
    let store = Etcd3Store::new(options(cluster.endpoints()), &GroupName::default()).unwrap();
    put_member(&store, "a").await;
    for victim in 0..3 {
        cluster.stop(victim).unwrap();
        let time = write_after_all(&store).await;
        println!("node {victim} hangs: written after {time:?}");
        cluster.resume(victim).unwrap();
    }
    let leader = cluster.leader().unwrap();
    cluster.kill(leader).unwrap();
    let time = write_after_all(&store).await;
    println!("the leader is killed: written after {time:?}");
    cluster.restart(leader).unwrap();
    for _ in 0..20 {
        in_time(store.load(&Look::default())).await.unwrap();
    }

    // Without a majority nothing is written, and nobody says that it was.
    cluster.kill(0).unwrap();
    cluster.kill(1).unwrap();
    let lost = in_time(store.commit(&member("c"))).await.unwrap_err();
    assert!(
        matches!(
            lost,
            StoreError::Unknown { .. } | StoreError::Unavailable { .. }
        ),
        "{lost}"
    );
    let lost = in_time(store.load(&Look::default())).await.unwrap_err();
    assert!(matches!(lost, StoreError::Unavailable { .. }), "{lost}");
    cluster.restart_all().unwrap();
    let seen = in_time(store.load(&Look::default())).await.unwrap();
    assert!((2..=3).contains(&seen.members), "{}", seen.members);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_leaves_a_member_that_hangs() {
    let cluster = Cluster::start_with(&Setup {
        nodes: 3,
        ..Setup::default()
    })
    .unwrap();
    let store = Etcd3Store::new(options(cluster.endpoints()), &GroupName::default()).unwrap();
    let mut watch = store.watch(vec![Key::Halt], 0);
    quiet("open", &mut watch).await;
    let watched = (0..3).find(|node| {
        let streams = cluster.metric(*node, "grpc_server_started_total", "Watch");
        streams.unwrap() > 0.0
    });
    let watched = watched.unwrap();
    cluster.stop(watched).unwrap();
    write_after_all(&store).await;
    let halt = put(Key::Halt, Record::Halt(halted("why")));
    while store.commit(&halt).await.is_err() {}
    item("the member hangs", &mut watch).await;
    cluster.resume(watched).unwrap();
}

#[tokio::test]
async fn nobody_at_the_endpoints_and_a_server_that_hangs() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let hanging = format!("http://{}", silent.local_addr().unwrap());
    let gone = ["http://127.0.0.1:1", "http://127.0.0.1:2"];
    let gone: Vec<String> = gone.map(str::to_owned).into();
    let group = GroupName::default();
    let stores = |endpoints: &[String]| -> [Box<dyn SemaphoreStore>; 2] {
        let options = options(endpoints.to_vec());
        [
            Box::new(Etcd3Store::new(options.clone(), &group).unwrap()),
            Box::new(Etcd2Store::new(options, &group).unwrap()),
        ]
    };
    for store in stores(&gone) {
        let told = "no etcd endpoints available, tried: http://127.0.0.1:1,http://127.0.0.1:2";
        for _ in 0..2 {
            let error = in_time(store.load(&Look::default())).await.unwrap_err();
            assert_eq!(error.to_string(), told);
            let error = in_time(store.commit(&first_lock())).await.unwrap_err();
            assert_eq!(error.to_string(), told);
        }
    }
    for endpoints in [vec![hanging.clone()], vec![hanging, gone[0].clone()]] {
        for store in stores(&endpoints) {
            let error = in_time(store.load(&Look::default())).await.unwrap_err();
            assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
            let error = in_time(store.commit(&first_lock())).await.unwrap_err();
            assert!(
                matches!(
                    error,
                    StoreError::Unknown { .. } | StoreError::Unavailable { .. }
                ),
                "{error}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_with_a_role_gets_in_and_others_are_told() {
    let cluster = Cluster::start_with(&Setup {
        arguments: vec!["--auth-token-ttl=2".into()],
        v2: true,
        ..Setup::default()
    })
    .unwrap();
    let with = |user: &str, password: &str| EtcdOptions {
        username: Some(user.into()),
        password: Some(password.into()),
        ..options(cluster.endpoints())
    };
    let group = GroupName::default();

    // Users are not wanted yet: they do no harm.
    let store = Etcd3Store::new(with("lock", "secret"), &group).unwrap();
    store.probe().await.unwrap();

    let prefix = group.prefix();
    for arguments in [
        &["user", "add", "root:root"][..],
        &["user", "grant-role", "root", "root"],
        &["role", "add", "lock"],
        &[
            "role",
            "grant-permission",
            "lock",
            "readwrite",
            &prefix,
            "--prefix",
        ],
        &["user", "add", "lock:secret"],
        &["user", "grant-role", "lock", "lock"],
        &["auth", "enable"],
    ] {
        cluster.etcdctl(0, arguments).unwrap();
    }
    let store = Etcd3Store::new(with("lock", "secret"), &group).unwrap();
    store.probe().await.unwrap();
    put_member(&store, "a").await;
    let mut watch = store.watch(vec![Key::Halt], 0);
    // Tokens end after two seconds here.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(store.load(&Look::default()).await.unwrap().members, 1);
    tokio::time::sleep(Duration::from_secs(4)).await;
    let halt = put(Key::Halt, Record::Halt(halted("why")));
    store.commit(&halt).await.unwrap();
    item("authenticated", &mut watch).await;

    let other: GroupName = "other".parse().unwrap();
    let parent = "elsewhere";
    for (options, group, told) in [
        (with("lock", "wrong"), &group, "etcd-password"),
        (with("nobody", "secret"), &group, "etcd-password"),
        (options(cluster.endpoints()), &group, "wants etcd-username"),
    ] {
        let store = Etcd3Store::new(options, group).unwrap();
        let error = in_time(store.load(&Look::default())).await.unwrap_err();
        assert!(matches!(error, StoreError::Refused { .. }), "{error}");
        assert!(error.to_string().contains(told), "{error}");
        let error = in_time(store.commit(&member("b"))).await.unwrap_err();
        assert!(matches!(error, StoreError::Refused { .. }), "{error}");
    }
    // The prefix of the default group covers the other groups; another role not.
    let store = Etcd3Store::new(with("lock", "secret"), &other).unwrap();
    store.probe().await.unwrap();
    let root = |arguments: &[&str]| {
        let mut with = vec!["--user=root:root"];
        with.extend(arguments);
        cluster.etcdctl(0, &with).unwrap();
    };
    root(&["role", "add", parent]);
    root(&[
        "role",
        "grant-permission",
        parent,
        "readwrite",
        parent,
        "--prefix",
    ]);
    root(&["user", "add", "else:secret"]);
    root(&["user", "grant-role", "else", parent]);
    let store = Etcd3Store::new(with("else", "secret"), &group).unwrap();
    let error = in_time(store.load(&Look::default())).await.unwrap_err();
    assert!(error.to_string().contains("grant the user"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_checked_and_read_again() {
    let cluster = Cluster::start_with(&Setup {
        tls: Some(Tls::Both),
        v2: true,
        ..Setup::default()
    })
    .unwrap();
    let server_only = Cluster::start_with(&Setup {
        tls: Some(Tls::Server),
        v2: true,
        ..Setup::default()
    })
    .unwrap();
    let plain = Cluster::start_with(&Setup {
        v2: true,
        ..Setup::default()
    })
    .unwrap();
    let group = GroupName::default();
    let stores = |options: &EtcdOptions| -> [Box<dyn SemaphoreStore>; 2] {
        [
            Box::new(Etcd3Store::new(options.clone(), &group).unwrap()),
            Box::new(Etcd2Store::new(options.clone(), &group).unwrap()),
        ]
    };
    let with = |cluster: &Cluster, endpoints: Vec<String>, client: bool| EtcdOptions {
        cafile: Some(cluster.certificate("ca.pem")),
        certfile: client.then(|| cluster.certificate("client.pem")),
        keyfile: client.then(|| cluster.certificate("client-key.pem")),
        ..options(endpoints)
    };
    let both = with(&cluster, cluster.endpoints(), true);
    let authority_only = with(&server_only, server_only.endpoints(), false);
    for options in [&both, &authority_only] {
        for store in stores(options) {
            store.load(&Look::default()).await.unwrap();
            store.commit(&first_lock()).await.unwrap();
        }
    }
    let http = |url: String| url.replace("https://", "http://");
    let https = |url: String| url.replace("http://", "https://");
    for (what, wrong, told) in [
        (
            "the authority of another",
            with(&server_only, cluster.endpoints(), true),
            "etcd-cafile",
        ),
        (
            "the system's authorities",
            options(server_only.endpoints()),
            "etcd-cafile",
        ),
        (
            "no client certificate",
            with(&cluster, cluster.endpoints(), false),
            "etcd-certfile",
        ),
        (
            "https to http",
            with(&cluster, vec![https(plain.endpoint(0))], false),
            "http://",
        ),
        (
            "http to https",
            options(vec![http(cluster.endpoint(0))]),
            "https://",
        ),
    ] {
        for store in stores(&wrong) {
            let error = in_time(store.load(&Look::default())).await.unwrap_err();
            assert!(error.to_string().contains(told), "{what}: {error}");
            println!("{what}: {error}");
        }
    }

    // A client that was given another's certificate takes the new one at once.
    let folder = tempfile::tempdir().unwrap();
    let rotated = EtcdOptions {
        certfile: Some(folder.path().join("cert.pem")),
        keyfile: Some(folder.path().join("key.pem")),
        ..both.clone()
    };
    let install = |from: &Cluster| {
        for (name, file) in [("client.pem", "cert.pem"), ("client-key.pem", "key.pem")] {
            std::fs::copy(from.certificate(name), folder.path().join(file)).unwrap();
        }
    };
    install(&server_only);
    for store in stores(&rotated) {
        install(&server_only);
        in_time(store.load(&Look::default())).await.unwrap_err();
        install(&cluster);
        in_time(store.load(&Look::default())).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn values_that_cannot_be_read_are_named_or_passed_over() {
    let cluster = Cluster::start().unwrap();
    let group = GroupName::default();
    let store = Etcd3Store::new(options(cluster.endpoints()), &group).unwrap();
    let write = |name: &str, value: &str| {
        let key = format!("{}{name}", group.prefix());
        cluster.etcdctl(0, &["put", &key, value]).unwrap();
    };
    write("v1/holder/a", "{");
    write("v1/holder/%zz", "{}");
    write("v1/queue/100/0000000000000001/a", "{");
    write("v1/failures", "{");
    write("v1/halt", "{");
    write("v1/somebody/else", "{");
    let seen = store.load(&Look::default()).await.unwrap();
    let holder = &seen.holders[&MachineId::from("a")];
    assert!(holder.value.is_none() && holder.created > 0);
    assert_eq!((seen.holders.len(), seen.queue.len()), (1, 0));
    assert!(seen.failures.value.is_none() && seen.failures.modified > 0);
    let why = seen.halt.value.unwrap().why;
    assert!(why.contains("v1/halt cannot be read"), "{why}");

    for name in ["v1/policy", "semaphore"] {
        write(name, "{");
        let error = store.load(&Look::default()).await.unwrap_err();
        assert!(matches!(error, StoreError::BadValue { .. }));
        let told = format!("cannot read the key {}{name}", group.prefix());
        assert_eq!(error.to_string(), told);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_v2_api_shares_the_document_with_the_original() {
    let cluster = Cluster::start_with(&Setup {
        v2: true,
        ..Setup::default()
    })
    .unwrap();
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = |key: &str| format!("{}/v2/keys/{key}", cluster.endpoint(0));
    let form = |body: &'static str, request: reqwest::RequestBuilder| {
        request
            .header("content-type", "application/x-www-form-urlencoded")
            .body(body)
            .send()
    };
    let opts = options(cluster.endpoints());
    let store = Arc::new(Etcd2Store::new(opts.clone(), &GroupName::default()).unwrap());
    assert_eq!(detect_api(&opts).await.unwrap(), EtcdApi::V3);
    assert_eq!(detect_api(&etcd_2()).await.unwrap(), EtcdApi::V2);

    // Nothing is created by looking.
    let empty = store.load(&Look::default()).await.unwrap();
    assert!(empty.document_only && empty.document.value.is_none());
    let status = http.get(url(DOCUMENT_KEY)).send().await.unwrap().status();
    assert_eq!(status, 404);

    // What the original writes is read, and what is written it can read.
    let original = r#"value={"semaphore":1,"max":2,"holders":["m 1"]}"#;
    form(original, http.put(url(DOCUMENT_KEY))).await.unwrap();
    let mut watch = store.watch(vec![Key::Document], empty.revision);
    item("v2", &mut watch).await;
    let seen = store.load(&Look::default()).await.unwrap();
    let mut document = seen.places().clone();
    document.lock(&"a&b=c/é".into()).unwrap();
    let lock = |document: &Document, modified: Revision| Transaction {
        when: vec![
            Compare::Modified(Key::Document, modified),
            Compare::Modified(Key::Halt, 0),
        ],
        then: vec![
            Write::Put(
                Key::Document,
                Record::Document(document.clone()),
                LeaseId(0),
            ),
            Write::Delete(Key::Holder("a".into())),
        ],
        otherwise: vec![],
    };
    let stale = lock(&document, seen.document.modified - 1);
    assert!(!store.commit(&stale).await.unwrap().succeeded);
    let committed = store
        .commit(&lock(&document, seen.document.modified))
        .await
        .unwrap();
    assert!(committed.succeeded);
    item("v2", &mut watch).await;
    let text = http.get(url(DOCUMENT_KEY)).send().await.unwrap();
    let text = text.text().await.unwrap();
    let told: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        told["node"]["value"],
        r#"{"semaphore":0,"max":2,"holders":["a\u0026b=c/é","m 1"]}"#
    );
    assert_eq!(told["node"]["modifiedIndex"], committed.revision);

    // A group whose name is escaped has the original's key.
    let group: GroupName = "a b+c/é".parse().unwrap();
    let other = Etcd2Store::new(opts.clone(), &group).unwrap();
    assert!(other.commit(&first_lock()).await.unwrap().succeeded);
    assert!(!other.commit(&first_lock()).await.unwrap().succeeded);
    let folder = http
        .get(url(
            "coreos.com/updateengine/rebootlock/groups?recursive=true",
        ))
        .send()
        .await
        .unwrap();
    let listed = folder.text().await.unwrap();
    assert!(
        listed.contains("/groups/a+b%2Bc%2F%C3%A9/semaphore"),
        "{listed}"
    );

    // Of many who write on what they have read, one wins each time.
    let before = store.load(&Look::default()).await.unwrap();
    let mut crowd = Vec::new();
    for i in 0..20 {
        let store = Arc::clone(&store);
        let mut document = before.places().clone();
        document.set_max(i);
        let transaction = lock(&document, before.document.modified);
        crowd.push(tokio::spawn(async move {
            store.commit(&transaction).await.unwrap().succeeded
        }));
    }
    let mut winners = 0;
    for task in crowd {
        winners += usize::from(task.await.unwrap());
    }
    assert_eq!(winners, 1);

    form("value={", http.put(url(DOCUMENT_KEY))).await.unwrap();
    let error = store.load(&Look::default()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("cannot read the key {DOCUMENT_KEY}")
    );

    // Without the API the original's text, and what to do.
    let v3_only = Cluster::start().unwrap();
    let store = Etcd2Store::new(options(v3_only.endpoints()), &GroupName::default()).unwrap();
    let error = in_time(store.load(&Look::default())).await.unwrap_err();
    let told = error.to_string();
    assert!(
        told.contains("client: response is invalid json. The endpoint is probably not valid etcd cluster endpoint")
            && told.contains("--enable-v2"),
        "{told}"
    );
}

/// Runs the same random operations on a store in memory and on `other`; how many
/// gave the same, or what did not.
async fn same(other: &dyn SemaphoreStore, seed: u64, count: usize) -> Result<usize, String> {
    let memory = MemoryStore::new(MemoryGroup::with_history());
    let start = memory.load(&Look::default()).await.unwrap().revision;
    let offset = other.load(&Look::default()).await.unwrap().revision - start;
    let mut random = Rng::with_seed(seed);
    let mut leases = vec![(LeaseId(0), LeaseId(0))];
    for number in 0..count {
        let told = |what: &str, one: String, two: String| {
            format!("seed {seed}, operation {number}, {what}:\n{one}\n{two}")
        };
        match random.u32(..20) {
            0 => {
                let ttl = Duration::from_secs(3600);
                let one = memory.grant_lease(ttl).await.unwrap();
                leases.push((one, other.grant_lease(ttl).await.unwrap()));
            }
            1 => {
                let (one, two) = leases[random.usize(..leases.len())];
                if one != LeaseId(0) {
                    memory.revoke_lease(one).await.unwrap();
                    other.revoke_lease(two).await.unwrap();
                }
            }
            2 => {
                let (one, two) = leases[random.usize(..leases.len())];
                if one != LeaseId(0) {
                    let one = memory.keep_alive(one).await.unwrap();
                    let two = other.keep_alive(two).await.unwrap();
                    if one != two {
                        return Err(told("keep alive", one.to_string(), two.to_string()));
                    }
                }
            }
            _ => {
                let transaction = transaction(&mut random, &memory);
                let with = |offset, lease: fn(&(LeaseId, LeaseId)) -> LeaseId| {
                    on(&transaction, offset, |i| lease(&leases[i % leases.len()]))
                };
                let one = memory.commit(&with(0, |lease| lease.0)).await;
                let two = other.commit(&with(offset, |lease| lease.1)).await;
                let two = two.map(|committed| Committed {
                    revision: committed.revision - offset,
                    ..committed
                });
                let (one, two) = (outcome(one), outcome(two));
                if one != two {
                    return Err(told(&format!("{transaction:?}"), one, two));
                }
            }
        }
        let look = Look {
            ticket: Some(ticket_key(&mut random)),
            history: Some(id(&mut random)),
        };
        let one = memory.load(&look).await.unwrap();
        let two = shifted(other.load(&look).await.unwrap(), offset);
        if one != two {
            return Err(told("load", format!("{one:#?}"), format!("{two:#?}")));
        }
    }
    Ok(count)
}

/// What has to be the same; errors by their kind.
fn outcome(result: Result<Committed, StoreError>) -> String {
    match result {
        Ok(committed) => format!("{committed:?}"),
        Err(StoreError::Refused { .. }) => "refused".into(),
        Err(StoreError::LeaseGone { .. }) => "the lease is gone".into(),
        Err(error) => format!("{error:?}"),
    }
}

/// A transaction whose revisions are those of `memory` and whose leases are
/// numbers.
fn transaction(random: &mut Rng, memory: &MemoryStore) -> Transaction {
    let versions = memory.with_group(|group| {
        let mut versions: BTreeMap<Key, (Revision, Revision)> = BTreeMap::new();
        for change in group.history() {
            if change.record.is_none() {
                versions.remove(&change.key);
            } else {
                let created = versions
                    .get(&change.key)
                    .map_or(change.revision, |(created, _)| *created);
                versions.insert(change.key.clone(), (created, change.revision));
            }
        }
        versions
    });
    let when = (0..random.usize(..3)).map(|_| {
        let key = key(random);
        let (created, modified) = versions.get(&key).copied().unwrap_or_default();
        // Mostly right, and sometimes the other one, absent or near.
        let wrong = random.u32(..8);
        let at = match (wrong, random.bool()) {
            (0, _) => 0,
            (1, _) => modified + 1,
            (2, true) => return Compare::Modified(key, created),
            (2, false) => return Compare::Created(key, modified),
            (_, true) => return Compare::Modified(key, modified),
            (_, false) => created,
        };
        Compare::Created(key, at)
    });
    let when = when.collect();
    let mut then: Vec<_> = (0..random.usize(..4)).map(|_| write(random)).collect();
    if random.u32(..20) == 0 {
        // A crowd, so that the queue grows beyond what a snapshot shows.
        then = (0..100)
            .map(|_| ticket_key(random))
            .collect::<std::collections::BTreeSet<_>>()
            .into_iter()
            .map(|key| Write::Put(Key::Ticket(key.clone()), ticket(&key), LeaseId(0)))
            .collect();
    }
    Transaction {
        when,
        then,
        otherwise: (0..random.usize(..3)).map(|_| write(random)).collect(),
    }
}

/// The same transaction with a store's own revisions and leases.
fn on(
    transaction: &Transaction,
    offset: Revision,
    lease: impl Fn(usize) -> LeaseId,
) -> Transaction {
    let at = |at: Revision| if at == 0 { 0 } else { at + offset };
    let writes = |writes: &[Write]| {
        let write = |write: &Write| match write {
            Write::Put(key, record, LeaseId(number)) => {
                let lease = lease(usize::try_from(*number).unwrap());
                Write::Put(key.clone(), record.clone(), lease)
            }
            Write::Delete(key) => Write::Delete(key.clone()),
        };
        writes.iter().map(write).collect()
    };
    let when = transaction.when.iter().map(|compare| match compare {
        Compare::Modified(key, revision) => Compare::Modified(key.clone(), at(*revision)),
        Compare::Created(key, revision) => Compare::Created(key.clone(), at(*revision)),
    });
    Transaction {
        when: when.collect(),
        then: writes(&transaction.then),
        otherwise: writes(&transaction.otherwise),
    }
}

fn shifted(mut snapshot: Snapshot, offset: Revision) -> Snapshot {
    let shift = |created: &mut Revision, modified: &mut Revision| {
        if *created != 0 {
            *created -= offset;
            *modified -= offset;
        }
    };
    snapshot.revision -= offset;
    let Snapshot {
        document,
        policy,
        halt,
        failures,
        ..
    } = &mut snapshot;
    shift(&mut document.created, &mut document.modified);
    shift(&mut policy.created, &mut policy.modified);
    shift(&mut halt.created, &mut halt.modified);
    shift(&mut failures.created, &mut failures.modified);
    for holder in Arc::make_mut(&mut snapshot.holders).values_mut() {
        let holder = Arc::make_mut(holder);
        shift(&mut holder.created, &mut holder.modified);
    }
    snapshot
}

fn write(random: &mut Rng) -> Write {
    let key = key(random);
    if random.u32(..3) == 0 {
        return Write::Delete(key);
    }
    let record = match &key {
        Key::Document => {
            let holders = (0..random.usize(..3)).map(|_| id(random));
            let holders: Vec<_> = holders.collect();
            Record::Document(Document::new(random.i64(-1..5), holders))
        }
        Key::Policy => Record::Policy(Policy {
            max_percent: random.bool().then_some(20),
            budget: random.u32(..9),
            paused: None,
        }),
        Key::Halt => Record::Halt(halted("because \"so\"")),
        Key::Failures => Record::Failures(Failures {
            failures: vec![Failure {
                id: id(random),
                kind: FailureKind::Overdue,
                version: "1.0.1".into(),
                reason: String::new(),
                at: random.i64(0..),
                nonce: "n".into(),
            }],
        }),
        Key::Holder(_) => Record::Holder(holder(random.i64(0..99))),
        Key::Ticket(key) => ticket(key),
        Key::History(_) => Record::History(vec![Outcome {
            how: "released".into(),
            at: random.i64(0..99),
            held: 7,
            from: "1.0.0".into(),
            to: "1.0.1".into(),
        }]),
        Key::Deadline(_) | Key::Member(_) => Record::Present,
    };
    Write::Put(key, record, LeaseId(random.i64(0..6)))
}

fn key(random: &mut Rng) -> Key {
    match random.u32(..12) {
        0..2 => Key::Document,
        2 => Key::Policy,
        3 => Key::Halt,
        4 => Key::Failures,
        5 => Key::Holder(id(random)),
        6 => Key::Deadline(id(random)),
        7 => Key::Member(id(random)),
        8 => Key::History(id(random)),
        _ => Key::Ticket(ticket_key(random)),
    }
}

fn ticket_key(random: &mut Rng) -> TicketKey {
    TicketKey {
        rank: random.u16(99..101),
        ticket: random.u64(..30),
        id: id(random),
    }
}

fn id(random: &mut Rng) -> MachineId {
    const IDS: [&str; 7] = ["a", "b", "a/b", "é", "a b", "~", "0123456789abcdef"];
    MachineId::new(IDS[random.usize(..IDS.len())])
}

fn holder(since: i64) -> Holder {
    Holder {
        phase: Phase::Draining,
        kind: Kind::Reboot,
        since,
        boot_id: "b".into(),
        from: "1.0.0".into(),
        to: "1.0.1".into(),
        mode: Mode::Kexec,
        reason: String::new(),
        unproven: false,
        nonce: "n".into(),
        ticket: None,
    }
}

fn ticket(key: &TicketKey) -> Record {
    Record::Ticket(Ticket {
        holder: holder(0),
        confirm: true,
        since: i64::from(key.rank),
        lease: LeaseId(5),
    })
}

fn halted(why: &str) -> Halt {
    Halt {
        by: "test".into(),
        why: why.into(),
        at: 7,
    }
}

fn options(endpoints: Vec<String>) -> EtcdOptions {
    EtcdOptions {
        endpoints,
        ..EtcdOptions::default()
    }
}

/// A server that says that it is an etcd of the time before v3, once.
fn etcd_2() -> EtcdOptions {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let mut request = [0; 1024];
        let length = client.read(&mut request).unwrap();
        assert!(request[..length].starts_with(b"GET /version HTTP/1.1"));
        let body = r#"{"etcdserver":"2.3.8","etcdcluster":"2.3.0"}"#;
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
        client.write_all((head + body).as_bytes()).unwrap();
    });
    options(vec![endpoint])
}

fn put(key: Key, record: Record) -> Transaction {
    Transaction {
        then: vec![Write::Put(key, record, LeaseId(0))],
        ..Transaction::default()
    }
}

fn delete(key: Key) -> Transaction {
    Transaction {
        then: vec![Write::Delete(key)],
        ..Transaction::default()
    }
}

fn member(id: &str) -> Transaction {
    put(Key::Member(id.into()), Record::Present)
}

fn first_lock() -> Transaction {
    Transaction {
        when: vec![Compare::Modified(Key::Document, 0)],
        ..put(Key::Document, Record::Document(Document::default()))
    }
}

async fn put_member(store: &dyn SemaphoreStore, id: &str) {
    store.commit(&member(id)).await.unwrap();
}

async fn in_time<T>(call: impl Future<Output = T>) -> T {
    let start = Instant::now();
    let result = call.await;
    assert!(start.elapsed() < CALL_LIMIT, "{:?}", start.elapsed());
    result
}

/// Writes until it succeeds, each call in time, and tells how long that took.
async fn write_after_all(store: &dyn SemaphoreStore) -> Duration {
    let start = Instant::now();
    loop {
        let written = match in_time(store.load(&Look::default())).await {
            Ok(_) => in_time(store.commit(&member("b"))).await,
            Err(error) => Err(error),
        };
        match written {
            Ok(_) => return start.elapsed(),
            // An election takes a moment.
            Err(StoreError::Unavailable { .. } | StoreError::Unknown { .. }) => {}
            Err(error) => panic!("{error}"),
        }
        assert!(start.elapsed() < WATCH_LIMIT, "no election");
    }
}

async fn item(what: &str, watch: &mut BoxStream<'static, ()>) {
    let next = tokio::time::timeout(WATCH_LIMIT, watch.next()).await;
    assert_eq!(next, Ok(Some(())), "{what}: no item");
    // Several changes may become several items.
    while tokio::time::timeout(QUIET, watch.next()).await.is_ok() {}
}

async fn quiet(what: &str, watch: &mut BoxStream<'static, ()>) {
    let next = tokio::time::timeout(QUIET, watch.next()).await;
    assert!(next.is_err(), "{what}: an item that nothing caused");
}

/// Takes the revision of the last change for that of the first.
struct Broken(MemoryStore);

impl SemaphoreStore for Broken {
    fn load<'a>(&'a self, look: &'a Look) -> BoxFuture<'a, Result<Snapshot, StoreError>> {
        self.0.load(look)
    }

    fn commit<'a>(
        &'a self,
        transaction: &'a Transaction,
    ) -> BoxFuture<'a, Result<Committed, StoreError>> {
        let mut transaction = transaction.clone();
        for compare in &mut transaction.when {
            if let Compare::Modified(key, at) = compare {
                *compare = Compare::Created(key.clone(), *at);
            }
        }
        async move { self.0.commit(&transaction).await }.boxed()
    }

    fn grant_lease(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseId, StoreError>> {
        self.0.grant_lease(ttl)
    }

    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.0.keep_alive(lease)
    }

    fn revoke_lease(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>> {
        self.0.revoke_lease(lease)
    }

    fn watch(&self, keys: Vec<Key>, after: Revision) -> BoxStream<'static, ()> {
        self.0.watch(keys, after)
    }
}
