//! `reboot` and `send-need-reboot` on a private message bus, with a logind that
//! the tests play.

use std::path::Path;
use std::process::Output;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use locksmith::group::GroupName;
use locksmith::semaphore::places::{Acquire, Request, acquire};
use locksmith::semaphore::{Holder, Kind, LeaseId, Look, Phase, failures};
use locksmith::store::{FileStore, SemaphoreStore as _};
use tempfile::TempDir;
use zbus::{Connection, MatchRule, MessageStream, interface};

use crate::bus::{PrivateBus, soon};
use crate::transcript::Session;

const BOOT_ID: &str = "6b1f0bd6-5f2b-4a53-9a3c-0d8f0f1e2d3c";

/// A logind that reboots, or says why not.
#[derive(Clone, Default)]
struct Logind {
    blocked: bool,
    reboots: Arc<Mutex<u32>>,
}

#[interface(name = "org.freedesktop.login1.Manager")]
impl Logind {
    fn list_inhibitors(&self) -> Vec<(String, String, String, String, u32, u32)> {
        if !self.blocked {
            return Vec::new();
        }
        let texts = ["shutdown", "backup", "tape is running", "block"].map(str::to_owned);
        let [what, who, why, mode] = texts;
        vec![(what, who, why, mode, 0, 4711)]
    }

    fn reboot_with_flags(&self, _flags: u64) {
        *self.reboots.lock().unwrap() += 1;
    }
}

impl Logind {
    async fn start(&self, bus: &PrivateBus) -> Connection {
        bus.peer()
            .serve_at("/org/freedesktop/login1", self.clone())
            .name("org.freedesktop.login1")
            .build()
            .await
            .unwrap()
    }

    /// One that says why not.
    async fn start_blocked(bus: &PrivateBus) -> (Self, Connection) {
        let logind = Self {
            blocked: true,
            ..Self::default()
        };
        let connection = logind.start(bus).await;
        (logind, connection)
    }

    fn reboots(&self) -> u32 {
        *self.reboots.lock().unwrap()
    }
}

/// A machine on the bus, with the lock in a file.
fn machine(bus: &PrivateBus) -> (TempDir, Session) {
    let root = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = root.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write("etc/machine-id", "aaaa\n");
    write("proc/sys/kernel/random/boot_id", BOOT_ID);
    let session = Session::new()
        .variable("LOCKSMITHCTL_ROOT", text(root.path()))
        .variable(
            "LOCKSMITHCTL_STORE",
            format!("file:{}/lock", text(root.path())),
        )
        .variable("DBUS_SYSTEM_BUS_ADDRESS", bus.address());
    (root, session)
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// Runs the program while the bus is served.
async fn run(session: &Session, arguments: &[&str]) -> Output {
    let mut command = tokio::process::Command::from(session.command(arguments));
    soon("the end of the program", command.output())
        .await
        .unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// The only holder, as `holders -json` tells it.
async fn holder(session: &Session) -> Option<serde_json::Value> {
    let output = run(session, &["holders", "-json"]).await;
    let holders: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    assert!(holders.len() < 2, "{holders:?}");
    holders.into_iter().next()
}

/// Only root may reboot, and only root can test it.
fn is_root() -> bool {
    let is_root = nix::unistd::Uid::effective().is_root();
    if !is_root {
        eprintln!("skipped: only root may reboot");
    }
    is_root
}

#[tokio::test]
async fn a_reboot_takes_a_place_and_leaves_a_record_for_the_agent() {
    if !is_root() {
        return;
    }
    let bus = PrivateBus::start();
    let logind = Logind::default();
    let _connection = logind.start(&bus).await;
    let (_root, session) = machine(&bus);
    let output = run(&session, &["reboot"]).await;
    assert!(output.status.success(), "{output:?}");
    assert_eq!((output.stdout.len(), output.stderr.len()), (0, 0));
    assert_eq!(logind.reboots(), 1);
    let holder = holder(&session).await.unwrap();
    assert_eq!(holder["id"], "aaaa");
    assert_eq!(holder["phase"], "rebooting");
    assert_eq!(holder["kind"], "reboot");
    assert_eq!(holder["boot_id"], BOOT_ID);
    // Once more: the place is there already, which is fine, full or not.
    assert!(run(&session, &["reboot"]).await.status.success());
    assert_eq!(logind.reboots(), 2);
}

#[tokio::test]
async fn a_refused_reboot_gives_back_what_it_took_and_nothing_else() {
    if !is_root() {
        return;
    }
    let bus = PrivateBus::start();
    let (logind, _connection) = Logind::start_blocked(&bus).await;
    let (_root, session) = machine(&bus);
    let output = run(&session, &["reboot"]).await;
    assert_eq!(output.status.code(), Some(1));
    let told = stderr(&output);
    assert!(told.starts_with("Error rebooting: "), "{told}");
    assert!(told.contains("backup") && told.contains("tape"), "{told}");
    assert_eq!(holder(&session).await, None);

    assert!(
        run(&session, &["lock", "-why", "disks"])
            .await
            .status
            .success()
    );
    assert_eq!(run(&session, &["reboot"]).await.status.code(), Some(1));
    assert_eq!(holder(&session).await.unwrap()["kind"], "manual");
    assert_eq!(logind.reboots(), 0);
}

/// The agent has its place already, and its deadline with it.
#[tokio::test]
async fn a_refused_reboot_leaves_the_agents_place_its_deadline() {
    if !is_root() {
        return;
    }
    let bus = PrivateBus::start();
    let (_logind, _connection) = Logind::start_blocked(&bus).await;
    let (root, session) = machine(&bus);
    let store = FileStore::new(&root.path().join("lock"), &GroupName::default());
    let request = Request {
        id: "aaaa".into(),
        rank: 100,
        holder: Holder::new(Kind::Reboot, "agent"),
        confirm: true,
        ticket_lease: LeaseId::default(),
        deadline_lease: store.grant_lease(Duration::from_secs(3600)).await.unwrap(),
    };
    let snapshot = store.load(&Look::default()).await.unwrap();
    let Acquire::Commit { transaction, .. } = acquire(&snapshot, &request, None, false, 0) else {
        panic!("no place");
    };
    store.commit(&transaction).await.unwrap();

    assert_eq!(run(&session, &["reboot"]).await.status.code(), Some(1));
    let after = store.load(&Look::default()).await.unwrap();
    let record = after.holders[&"aaaa".into()].value.as_ref().unwrap();
    assert_eq!(record.phase, Phase::Draining);
    assert!(after.deadlines.contains(&"aaaa".into()));
    // The agent may write a new one.
    assert_eq!(failures::mark_overdue(&after, 0), None);
}

#[tokio::test]
async fn the_settings_of_reboots_hold_for_the_command() {
    if !is_root() {
        return;
    }
    let bus = PrivateBus::start();
    let (logind, _connection) = Logind::start_blocked(&bus).await;
    let (root, session) = machine(&bus);
    let folder = root.path().join("etc/locksmith");
    std::fs::create_dir(&folder).unwrap();
    let settings = "inhibitors = \"ignore\"\nreboot_method = \"kexec\"\n\
                    [health]\ndeadline = \"2h\"\nsoak = \"0s\"\n";
    std::fs::write(folder.join("locksmith.toml"), settings).unwrap();
    let output = run(&session, &["reboot"]).await;
    assert!(output.status.success(), "{output:?}");
    assert_eq!(logind.reboots(), 1);
    assert_eq!(holder(&session).await.unwrap()["mode"], "kexec");
    let lock = std::fs::read_to_string(root.path().join("lock")).unwrap();
    assert!(lock.contains("7200"), "{lock}");
}

#[tokio::test]
async fn no_reboot_without_a_place_or_a_logind() {
    if !is_root() {
        return;
    }
    let bus = PrivateBus::start();
    let (_root, session) = machine(&bus);
    let output = run(&session, &["reboot"]).await;
    assert_eq!(output.status.code(), Some(1));
    let told = stderr(&output);
    assert!(
        told.starts_with("Error initializing login connection: "),
        "{told}"
    );

    let logind = Logind::default();
    let _connection = logind.start(&bus).await;
    assert!(run(&session, &["lock", "another"]).await.status.success());
    let output = run(&session, &["reboot"]).await;
    assert_eq!(stderr(&output), "Error locking: semaphore is at 0\n");
    run(&session, &["unlock", "another"]).await;
    run(&session, &["halt", "-why", "bad image"]).await;
    let output = run(&session, &["reboot"]).await;
    let told = stderr(&output);
    assert!(
        told.starts_with("Error locking: the group is halted: bad image\n"),
        "{told}"
    );
    assert_eq!(logind.reboots(), 0);
}

#[tokio::test]
async fn the_signal_is_the_originals() {
    let bus = PrivateBus::start();
    let (_root, session) = machine(&bus);
    let listener = bus.connect().await;
    let rule = MatchRule::try_from(
        "type='signal',interface='com.coreos.update1.Manager',member='StatusUpdate'",
    )
    .unwrap();
    let mut signals = MessageStream::for_match_rule(rule, &listener, None)
        .await
        .unwrap();
    let output = run(&session, &["send-need-reboot"]).await;
    assert!(output.status.success(), "{output:?}");
    assert_eq!((output.stdout.len(), output.stderr.len()), (0, 0));
    let signal = soon("the signal", signals.next()).await.unwrap().unwrap();
    assert_eq!(
        signal.header().path().unwrap().as_str(),
        "/com/coreos/update1"
    );
    let body: (i64, f64, String, String, i64) = signal.body().deserialize().unwrap();
    let need_reboot = "UPDATE_STATUS_UPDATED_NEED_REBOOT".to_owned();
    assert_eq!(body, (0, 0.0, need_reboot, String::new(), 0));
}

#[test]
fn no_bus_no_signal() {
    let session = Session::new().variable(
        "DBUS_SYSTEM_BUS_ADDRESS",
        "unix:path=/nowhere/system_bus_socket",
    );
    let output = session.run(&["send-need-reboot"]);
    assert_eq!(output.status.code(), Some(1));
    let told = stderr(&output);
    assert!(
        told.starts_with("error connecting to system dbus: "),
        "{told}"
    );
}
