//! What etcd can do to a command, and what the original's documents look like
//! to it.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use gptprio::machine::Root;
use locksmith::config::{Fragment, Program, Settings};
use locksmith::semaphore::Look;
use locksmith::store::{SemaphoreStore as _, SharedStore, StoreError};
use system_tests::etcd::{Setup, Tls};

use crate::gate::{self, Gate};
use crate::server::Server;
use crate::transcript::Session;

/// Key of the default group.
const DOCUMENT: &str = "coreos.com/updateengine/rebootlock/semaphore";

fn session(etcd: &Server) -> Session {
    Session::new()
        .variable("LOCKSMITHCTL_API", "v3")
        .variable("LOCKSMITHCTL_ENDPOINT", etcd.endpoint(0))
}

/// Writes the document behind everybody's back.
fn put(etcd: &Server, document: &str) {
    etcd.etcdctl(0, &["put", "--", DOCUMENT, document]).unwrap();
}

/// The values of keys, each on a line.
fn get(etcd: &Server, keys: &[&str]) -> String {
    let arguments = [&["get", "--print-value-only"], keys].concat();
    let values = etcd.etcdctl(0, &arguments).unwrap();
    values.trim_end_matches('\n').to_owned()
}

/// Runs the program and expects its end.
fn expect(session: &Session, arguments: &[&str], code: i32, stdout: &str, stderr: &[&str]) {
    let output = session.run(arguments);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
    assert_eq!(String::from_utf8(output.stdout).unwrap(), stdout);
    assert!(!text.contains("panicked"), "{text}");
    for part in stderr {
        assert!(
            text.contains(part),
            "{arguments:?}: {part:?} is not in {text}"
        );
    }
}

#[test]
fn looking_writes_nothing_and_locking_writes_the_originals_document() {
    let etcd = Server::start();
    let session = session(&etcd);
    session.stdout(&["status"]);
    session.stdout(&["holders"]);
    session.stdout(&["fsck"]);
    assert_eq!(get(&etcd, &["--prefix", ""]), "");
    session.stdout(&["set-max", "2"]);
    session.stdout(&["lock", "b"]);
    session.stdout(&["lock", "a"]);
    assert_eq!(
        get(&etcd, &[DOCUMENT]),
        "{\"semaphore\":0,\"max\":2,\"holders\":[\"a\",\"b\"]}"
    );
}

/// What a daemon with `auto` that starts now has.
fn daemons_store(endpoints: &[&str]) -> SharedStore {
    let root = tempfile::tempdir().unwrap();
    let endpoints = endpoints.join(",");
    let variables = |name: &str| (name == "LOCKSMITHD_ENDPOINT").then(|| endpoints.clone());
    let loaded = Settings::load(
        &Root::at(root.path()).unwrap(),
        Program::Daemon,
        variables,
        Fragment::default(),
    );
    loaded.unwrap().settings.open_store().unwrap()
}

/// With the `auto` of a daemon that began while the fleet was on v2.
#[tokio::test(flavor = "multi_thread")]
async fn a_running_agent_follows_a_fleet_that_moves() {
    let etcd = Server::start();
    let session = Session::new().variable("LOCKSMITHCTL_ENDPOINT", etcd.endpoint(0));
    session.stdout(&["-api", "v2", "lock", "a"]);

    let store = daemons_store(&[&etcd.endpoint(0)]);
    let look = Look::default();
    let seen = store.load(&look).await.unwrap();
    assert!(seen.document_only && seen.places().holds(&"a".into()));
    let none = store.grant_lease(Duration::from_secs(60)).await.unwrap();

    assert_eq!(session.run(&["migrate"]).status.code(), Some(1));
    assert!(store.load(&look).await.unwrap().document_only);
    session.stdout(&["unlock", "a"]);
    session.stdout(&["migrate"]);
    assert!(!store.load(&look).await.unwrap().document_only);
    // Whoever waited with a lease of v2 is told to get another one.
    assert!(!store.keep_alive(none).await.unwrap());

    // What is written to v2 now moves no running agent back.
    session.stdout(&["-api", "v2", "set-max", "1"]);
    assert!(!store.load(&look).await.unwrap().document_only);
}

#[test]
fn a_v2_that_is_opened_during_a_migration_is_closed_again() {
    let etcd = Server::start();
    let session = Session::new().variable("LOCKSMITHCTL_ENDPOINT", etcd.endpoint(0));
    session.stdout(&["-api", "v2", "lock", "a"]);
    let mut migrating = session.command(&["migrate", "-wait"]).spawn().unwrap();
    let limit = Instant::now() + Duration::from_secs(30);
    let status = || session.stdout(&["-api", "v2", "status"]);
    while !status().contains("Max: 0\n") {
        assert!(Instant::now() < limit);
    }
    session.stdout(&["-api", "v2", "set-max", "1"]);
    session.stdout(&["-api", "v2", "unlock", "a"]);
    assert!(migrating.wait().unwrap().success());
    assert!(status().contains("Max: 0\n"), "{}", status());
    session.stdout(&["-api", "v3", "lock", "b"]);
}

/// As etcd itself says it.
const NO_V2: &str = "HTTP/1.1 404 Not Found\r\nContent-Type: text/plain; charset=utf-8\r\n\
                     Content-Length: 19\r\nConnection: close\r\n\r\n404 page not found\n";
/// What stands before etcd says so.
const NONSENSE: [&str; 3] = [
    "HTTP/1.1 404 Not Found\r\nContent-Length: 6\r\nConnection: close\r\n\r\n<html>",
    "HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    "HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\n<html>",
];

/// Nobody listens there.
const DEAD: &str = "http://127.0.0.1:1";

#[tokio::test(flavor = "multi_thread")]
async fn members_that_lose_v2_one_by_one_move_nobody() {
    let etcd = Server::start();
    let session = Session::new().variable("LOCKSMITHCTL_ENDPOINT", etcd.endpoint(0));
    session.stdout(&["-api", "v2", "lock", "a"]);
    let gate = Gate::before(&etcd.endpoint(0)).await;
    let look = Look::default();
    for answer in NONSENSE.into_iter().chain([NO_V2]) {
        gate.answers(&[("GET /v2/", Some(answer))]);
        // A client begins at any of its endpoints.
        for _ in 0..8 {
            let store = daemons_store(&[&gate.endpoint, &etcd.endpoint(0)]);
            let seen = store.load(&look).await.unwrap();
            assert!(seen.places().holds(&"a".into()), "{answer}");
        }
        let alone = daemons_store(&[&gate.endpoint]).load(&look).await;
        // Nobody else is asked, and nobody listens at the second default.
        assert_eq!(alone.is_ok(), answer == NO_V2, "{answer}: {alone:?}");
    }
    // One that is dead may know more, as long as nobody uses v3.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent_url = format!("http://{}", silent.local_addr().unwrap());
    for dead in [DEAD, &silent_url] {
        let endpoints = [&*gate.endpoint, dead];
        let error = daemons_store(&endpoints).load(&look).await.unwrap_err();
        assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
        assert!(error.to_string().contains("-api v3"), "{error}");
    }
    let endpoints = [&*gate.endpoint, &silent_url];

    gate.answers(&[]);
    let running = daemons_store(&[&gate.endpoint]);
    assert!(running.load(&look).await.unwrap().document_only);
    gate.answers(&[("GET /v2/", Some(NO_V2))]);
    let error = running.load(&look).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
    assert!(
        error.to_string().contains("locksmithctl migrate"),
        "{error}"
    );
    session.stdout(&["-api", "v2", "unlock", "a"]);
    session.stdout(&["migrate"]);
    assert!(!running.load(&look).await.unwrap().document_only);
    let seen = daemons_store(&endpoints).load(&look).await.unwrap();
    assert!(!seen.document_only);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_that_never_had_v2_may_have_a_dead_member() {
    let etcd = Server::start_with(&Setup::default());
    let gate = Gate::before(&etcd.endpoint(0)).await;
    let third = Gate::before(&etcd.endpoint(0)).await;
    let load = async |endpoints: &[&str]| daemons_store(endpoints).load(&Look::default()).await;
    let own = etcd.endpoint(0);
    let most = [&*own, &gate.endpoint, DEAD];
    // Nobody has locked yet. A client begins at any of its endpoints.
    for _ in 0..6 {
        assert!(!load(&most).await.unwrap().document_only);
    }
    // This one speaks, so it may speak v2.
    let busy = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n";
    third.answers(&[("GET /v2/", Some(busy))]);
    load(&[&*own, &gate.endpoint, &third.endpoint])
        .await
        .unwrap_err();
    // Half of them is too few, unless there is no v2 in this version.
    let half = [&*gate.endpoint, DEAD];
    load(&half).await.unwrap_err();
    let etcd_3_6 = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n\
                    {\"etcdserver\":\"3.6.1\",\"etcdcluster\":\"3.6.0\",\"storage\":\"3.6.0\"}\r\n";
    gate.answers(&[("GET /version", Some(etcd_3_6))]);
    assert!(!load(&half).await.unwrap().document_only);
    gate.answers(&[]);
    // A machine that comes back can give its place back during a pause.
    let session = session(&etcd);
    session.stdout(&["lock", "a"]);
    session.stdout(&["pause"]);
    assert!(load(&half).await.unwrap().places().holds(&"a".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_member_holds_no_agent_back_from_following() {
    let etcd = Server::start();
    let session = Session::new().variable("LOCKSMITHCTL_ENDPOINT", etcd.endpoint(0));
    session.stdout(&["-api", "v2", "lock", "a"]);
    let one = Gate::before(&etcd.endpoint(0)).await;
    let two = Gate::before(&etcd.endpoint(0)).await;
    let (most, half) = (
        [&*one.endpoint, &two.endpoint, DEAD],
        [&*one.endpoint, DEAD],
    );
    let look = Look::default();
    let (running, few) = (daemons_store(&most), daemons_store(&half));
    for store in [&running, &few] {
        assert!(store.load(&look).await.unwrap().document_only);
    }
    assert_eq!(session.run(&["migrate"]).status.code(), Some(1));
    for gate in [&one, &two] {
        gate.answers(&[("GET /v2/", Some(NO_V2))]);
    }
    // The migration has not ended.
    running.load(&look).await.unwrap_err();
    daemons_store(&half).load(&look).await.unwrap_err();
    session.stdout(&["unlock", "a"]);
    session.stdout(&["migrate"]);
    assert!(!running.load(&look).await.unwrap().document_only);
    let error = few.load(&look).await.unwrap_err().to_string();
    assert!(error.contains("restart locksmithd"), "{error}");
    let restarted = daemons_store(&half).load(&look).await.unwrap();
    assert!(!restarted.document_only);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_holds_on_a_frozen_v2_can_give_back_without_v3() {
    let etcd = Server::start();
    let session = Session::new().variable("LOCKSMITHCTL_ENDPOINT", etcd.endpoint(0));
    session.stdout(&["-api", "v2", "lock", "a"]);
    session.stdout(&["-api", "v2", "set-max", "0"]);
    let gate = Gate::before(&etcd.endpoint(0)).await;
    gate.answers(&[(gate::V3, None)]);
    let look = Look::default();
    let store = daemons_store(&[&gate.endpoint]);
    let seen = store.load(&look).await.unwrap();
    assert!(seen.document_only && seen.places().holds(&"a".into()));
    session.stdout(&["-api", "v2", "unlock", "a"]);
    assert!(store.load(&look).await.unwrap().document_only);
    // Who starts now has nothing to give back there.
    daemons_store(&[&gate.endpoint])
        .load(&look)
        .await
        .unwrap_err();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_began_on_an_etcd_2_follows_a_fleet_that_moves() {
    let etcd = Server::start();
    let session = Session::new().variable("LOCKSMITHCTL_ENDPOINT", etcd.endpoint(0));
    let gate = Gate::before(&etcd.endpoint(0)).await;
    let etcd_2 = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n\
                  {\"etcdserver\":\"2.3.8\",\"etcdcluster\":\"2.3.0\"}\r\n";
    gate.answers(&[("GET /version", Some(etcd_2)), (gate::V3, None)]);
    let look = Look::default();
    let store = daemons_store(&[&gate.endpoint]);
    assert!(store.load(&look).await.unwrap().document_only);
    session.stdout(&["-api", "v2", "lock", "a"]);
    session.stdout(&["-api", "v2", "unlock", "a"]);
    session.stdout(&["-api", "v2", "set-max", "0"]);
    assert!(store.load(&look).await.unwrap().document_only);

    gate.answers(&[]);
    assert!(store.load(&look).await.unwrap().document_only);
    session.stdout(&["migrate"]);
    assert!(!store.load(&look).await.unwrap().document_only);
}

#[test]
fn documents_of_hands_and_older_tools() {
    let etcd = Server::start();
    let session = session(&etcd);
    for (document, status) in [
        (r#"{"semaphore": 1}"#, "Available: 1\nMax: 0\n"),
        (
            r#"{"holders":["z","a"],"max":3,"extra":{},"semaphore":1}"#,
            "Available: 1\nMax: 3\n\nMACHINE ID\nz\na\n",
        ),
        (
            r#"{"semaphore":-3,"max":-9223372036854775808,"holders":[]}"#,
            "Available: -3\nMax: -9223372036854775808\n",
        ),
    ] {
        put(&etcd, document);
        expect(&session, &["status"], 0, status, &[]);
    }
    // Unsorted: the original could not unlock "z" any more.
    put(&etcd, r#"{"semaphore":2,"max":3,"holders":["z","a"]}"#);
    expect(
        &session,
        &["fsck"],
        1,
        "holders are not sorted, or repeated\nsemaphore is 2 and should be 1\n\
         z has a place but no record: an older tool took it, or an edit by hand\n\
         a has a place but no record: an older tool took it, or an edit by hand\n",
        &["fsck -fix"],
    );
    session.stdout(&["fsck", "-fix"]);
    assert_eq!(
        get(&etcd, &[DOCUMENT]),
        "{\"semaphore\":1,\"max\":3,\"holders\":[\"a\",\"z\"]}"
    );
    expect(&session, &["unlock", "z"], 0, "", &[]);
}

#[test]
fn what_nobody_can_read_is_an_error_and_stays() {
    let etcd = Server::start();
    let session = session(&etcd);
    for document in [
        "asdf",
        "{\"semaphore:",
        "[]",
        r#"{"semaphore":9223372036854775808}"#,
        r#"{"semaphore":1,"max":1.5}"#,
        r#"{"semaphore":1,"holders":[1]}"#,
    ] {
        put(&etcd, document);
        for (command, start) in [
            (&["status"][..], "Error reading: "),
            (&["lock", "a"], "Error locking: "),
            (&["unlock", "a"], "Error unlocking: "),
            (&["set-max", "3"], "Error setting value: "),
        ] {
            expect(&session, command, 1, "", &[start, DOCUMENT, "etcdctl"]);
        }
        assert_eq!(get(&etcd, &[DOCUMENT]), document);
    }
}

#[test]
fn wrong_passwords_and_missing_tls_are_told() {
    let etcd = Server::start();
    let plain = session(&etcd);
    let https = etcd.endpoint(0).replace("http:", "https:");
    expect(
        &plain,
        &["-endpoint", &https, "status"],
        1,
        "",
        &["Error initializing etcd client: "],
    );
    etcd.etcdctl(0, &["user", "add", "root:right"]).unwrap();
    etcd.etcdctl(0, &["user", "grant-role", "root", "root"])
        .unwrap();
    etcd.etcdctl(0, &["auth", "enable"]).unwrap();
    for arguments in [
        &["status"][..],
        &[
            "-etcd-username",
            "root",
            "-etcd-password",
            "wrong",
            "status",
        ],
        &[
            "-etcd-username",
            "nobody",
            "-etcd-password",
            "right",
            "lock",
            "a",
        ],
    ] {
        expect(
            &plain,
            arguments,
            1,
            "",
            &["Error initializing etcd client: "],
        );
    }
    let right = [
        "-etcd-username",
        "root",
        "-etcd-password",
        "right",
        "status",
    ];
    expect(&plain, &right, 0, "Available: 1\nMax: 1\n", &[]);
}

#[test]
fn certificates_are_asked_for_and_taken() {
    let etcd = Server::start_with(&Setup {
        tls: Some(Tls::Both),
        ..Setup::default()
    });
    let plain = session(&etcd);
    let file = |name: &str| etcd.certificate(name).to_str().unwrap().to_owned();
    let (authorities, certificate, key) =
        (file("ca.pem"), file("client.pem"), file("client-key.pem"));
    for arguments in [
        &["status"][..],
        &["-etcd-cafile", &authorities, "status"],
        &["-etcd-cafile", &key, "status"],
        &["-etcd-cafile", "/nowhere", "lock", "a"],
    ] {
        expect(
            &plain,
            arguments,
            1,
            "",
            &["Error initializing etcd client: "],
        );
    }
    let http = etcd.endpoint(0).replace("https:", "http:");
    let contact = &["Error initializing etcd client: "];
    expect(&plain, &["-endpoint", &http, "status"], 1, "", contact);
    let sound = plain
        .variable("LOCKSMITHCTL_ETCD_CAFILE", authorities)
        .variable("LOCKSMITHCTL_ETCD_CERTFILE", certificate)
        .variable("LOCKSMITHCTL_ETCD_KEYFILE", key);
    expect(&sound, &["lock", "a"], 0, "", &[]);
    expect(
        &sound,
        &["status"],
        0,
        "Available: 0\nMax: 1\n\nMACHINE ID\na\n",
        &[],
    );
}

#[test]
fn a_server_that_never_answers_is_given_up() {
    // The kernel takes the connections; nobody reads from them.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let session = Session::new().variable("LOCKSMITHCTL_ENDPOINT", url);
    let begun = Instant::now();
    expect(
        &session,
        &["lock", "a"],
        1,
        "",
        &["Error initializing etcd client: "],
    );
    assert!(begun.elapsed() < Duration::from_secs(30));
}
