//! logind as locksmithd sees it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use locksmith::bus::{BusError, Hints, Inhibition, Inhibitor, Login, RefusedReboot, Session};
use locksmith::semaphore::Mode;
use tokio::time::timeout;
use zbus::object_server::SignalEmitter;
use zbus::wire::{ObjectPath, OwnedObjectPath};
use zbus::{Connection, interface};

use crate::support::{PrivateBus, soon};
use crate::systemd::{More, systemd};

const NAME: &str = "org.freedesktop.login1";
const PATH: &str = "/org/freedesktop/login1";
const WHY: &str = "rebooted into version 2.0.0";

/// The versions of logind that differ for us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
pub(crate) enum Age {
    /// `Reboot` alone.
    V245,
    /// `RebootWithFlags` with two flags; root passes locks unless it asks not
    /// to.
    V252,
    /// Soft reboots, and a flag to pass locks, which bind root too.
    V257,
}

/// The replies that logind has for a reboot.
#[derive(Debug, Clone, zbus::DBusError)]
#[zbus(prefix = "org.freedesktop")]
pub(crate) enum Refusal {
    #[zbus(name = "login1.BlockedByInhibitorLock")]
    Blocked(String),
    #[zbus(name = "login1.OperationInProgress")]
    InProgress(String),
    #[zbus(name = "DBus.Error.AccessDenied")]
    Denied(String),
    #[zbus(name = "DBus.Error.InteractiveAuthorizationRequired")]
    NeedsPassword(String),
    #[zbus(name = "DBus.Error.UnknownMethod")]
    Unknown(String),
    #[zbus(name = "DBus.Error.InvalidArgs")]
    BadFlags(String),
    #[zbus(name = "DBus.Error.Failed")]
    Failed(String),
}

/// What, who, why, mode, user id, process id.
type Lock = (
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    u32,
    u32,
);

#[derive(Clone)]
pub(crate) struct Logind {
    age: Age,
    locks: Vec<Lock>,
    pub(crate) refusal: Option<Refusal>,
    sessions: Vec<(&'static str, OwnedObjectPath)>,
    is_going_down: bool,
    /// Calls that came.
    calls: Arc<Mutex<Vec<String>>>,
}

impl Logind {
    pub(crate) fn of(age: Age) -> Self {
        Self {
            age,
            locks: Vec::new(),
            refusal: None,
            sessions: Vec::new(),
            is_going_down: false,
            calls: Arc::default(),
        }
    }

    pub(crate) async fn start(&self, bus: &PrivateBus) -> (Connection, Login) {
        let peer = bus.peer().serve_at(PATH, self.clone()).name(NAME);
        (peer.build().await.unwrap(), Login::new(&bus.bus()))
    }

    pub(crate) fn reboots(&self) -> Vec<String> {
        let calls = self.calls.lock().unwrap();
        let is_reboot = |call: &&String| call.starts_with("Reboot");
        calls.iter().filter(is_reboot).cloned().collect()
    }

    /// What it would tell the people: the last message and whether to.
    fn wall(&self) -> Option<String> {
        let calls = self.calls.lock().unwrap();
        let of_wall = |call: &&String| call.starts_with("SetWall");
        calls.iter().rfind(of_wall).cloned()
    }

    fn is_blocked(&self) -> bool {
        self.locks
            .iter()
            .any(|(what, _, _, mode, ..)| what.contains("shutdown") && *mode == "block")
    }

    fn answer(&self, held_by_locks: bool) -> Result<(), Refusal> {
        match &self.refusal {
            Some(refusal) => Err(refusal.clone()),
            None if held_by_locks && self.is_blocked() => Err(Refusal::Blocked(
                "Operation denied due to active block inhibitor".into(),
            )),
            None => Ok(()),
        }
    }
}

#[interface(name = "org.freedesktop.login1.Manager")]
impl Logind {
    fn reboot(&self, interactive: bool) -> Result<(), Refusal> {
        self.calls
            .lock()
            .unwrap()
            .push(format!("Reboot {interactive}"));
        self.answer(self.age >= Age::V257)
    }

    fn reboot_with_flags(&self, flags: u64) -> Result<(), Refusal> {
        self.calls
            .lock()
            .unwrap()
            .push(format!("RebootWithFlags {flags:#x}"));
        let (known, held) = match self.age {
            Age::V245 => return Err(Refusal::Unknown("Unknown method".into())),
            Age::V252 => (0x3, flags & 0x1 != 0),
            Age::V257 => (0x1f, flags & 0x10 == 0),
        };
        if flags & !known != 0 {
            return Err(Refusal::BadFlags("Invalid flags parameter".into()));
        }
        self.answer(held)
    }

    fn list_inhibitors(&self) -> Vec<Lock> {
        self.locks.clone()
    }

    fn list_sessions(&self) -> Vec<(String, u32, &str, &str, OwnedObjectPath)> {
        self.sessions
            .iter()
            .map(|(user, path)| ("1".to_owned(), 1000, *user, "", path.clone()))
            .collect()
    }

    fn set_wall_message(&self, message: &str, enable: bool) {
        self.calls
            .lock()
            .unwrap()
            .push(format!("SetWall {message:?} {enable}"));
    }

    #[zbus(property)]
    fn wall_message(&self) -> &str {
        "from before"
    }

    #[zbus(property)]
    fn enable_wall_messages(&self) -> bool {
        false
    }

    #[zbus(property)]
    fn preparing_for_shutdown(&self) -> bool {
        self.is_going_down
    }

    #[zbus(signal)]
    async fn prepare_for_shutdown(emitter: &SignalEmitter<'_>, begins: bool) -> zbus::Result<()>;
}

struct SessionObject {
    class: &'static str,
    state: &'static str,
    tty: &'static str,
    remote: bool,
}

#[interface(name = "org.freedesktop.login1.Session")]
impl SessionObject {
    #[zbus(property)]
    fn class(&self) -> &str {
        self.class
    }
    #[zbus(property)]
    fn state(&self) -> &str {
        self.state
    }
    #[zbus(property, name = "TTY")]
    fn tty(&self) -> &str {
        self.tty
    }
    #[zbus(property)]
    fn remote(&self) -> bool {
        self.remote
    }
}

fn lock(what: &'static str, mode: &'static str) -> Lock {
    (what, "backup", "writes a tape", mode, 0, 4711)
}

fn backup() -> Inhibitor {
    Inhibitor {
        who: "backup".into(),
        why: "writes a tape".into(),
        user_id: 0,
        process_id: 4711,
    }
}

#[tokio::test]
async fn every_age_of_logind_is_asked_in_its_own_words() {
    for (age, mode, inhibition, expected) in [
        (
            Age::V257,
            Mode::Firmware,
            Inhibition::Respect,
            &["RebootWithFlags 0x1"][..],
        ),
        (
            Age::V257,
            Mode::Firmware,
            Inhibition::Override,
            &["RebootWithFlags 0x10"],
        ),
        (
            Age::V257,
            Mode::Kexec,
            Inhibition::Respect,
            &["RebootWithFlags 0x3"],
        ),
        (
            Age::V257,
            Mode::Soft,
            Inhibition::Respect,
            &["RebootWithFlags 0x5"],
        ),
        (
            Age::V252,
            Mode::Kexec,
            Inhibition::Override,
            &["RebootWithFlags 0x12", "RebootWithFlags 0x2"],
        ),
        (
            Age::V245,
            Mode::Firmware,
            Inhibition::Respect,
            &["RebootWithFlags 0x1", "Reboot false"],
        ),
    ] {
        let bus = PrivateBus::start();
        let logind = Logind::of(age);
        let (_peer, login) = logind.start(&bus).await;
        login.reboot(mode, inhibition, WHY).await.unwrap();
        assert_eq!(
            logind.reboots(),
            expected,
            "{age:?} {mode:?} {inhibition:?}"
        );
        assert_eq!(logind.wall().unwrap(), format!("SetWall {WHY:?} true"));
    }
}

#[tokio::test]
async fn what_an_old_logind_cannot_do_systemd_does_or_nobody() {
    let bus = PrivateBus::start();
    let logind = Logind::of(Age::V245);
    let (_peer, login) = logind.start(&bus).await;
    let (_systemd, started) =
        systemd(&bus, &[("kexec.target", "loaded", "inactive", More::Idle)]).await;
    login
        .reboot(Mode::Kexec, Inhibition::Respect, WHY)
        .await
        .unwrap();
    let refused = login.reboot(Mode::Soft, Inhibition::Respect, WHY).await;
    assert_eq!(
        refused.unwrap_err().to_string(),
        "this system cannot reboot by soft"
    );
    assert_eq!(
        *started.lock().unwrap(),
        ["kexec.target replace-irreversibly"]
    );
    assert!(!logind.reboots().contains(&"Reboot false".to_owned()));
}

#[tokio::test]
async fn a_blocking_lock_is_named_and_nothing_is_asked_of_any_logind() {
    for age in [Age::V245, Age::V252, Age::V257] {
        let bus = PrivateBus::start();
        let mut logind = Logind::of(age);
        logind.locks = vec![lock("shutdown:sleep", "block")];
        let (_peer, login) = logind.start(&bus).await;
        let refused = login.reboot(Mode::Firmware, Inhibition::Respect, WHY).await;
        let refused = refused.unwrap_err();
        assert_eq!(
            refused.to_string(),
            "the reboot is inhibited by backup (process 4711): writes a tape"
        );
        assert_eq!(logind.reboots(), [""; 0], "{age:?}");
        login
            .reboot(Mode::Firmware, Inhibition::Override, WHY)
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn only_locks_that_block_a_shutdown_are_listed() {
    let bus = PrivateBus::start();
    let mut logind = Logind::of(Age::V257);
    logind.locks = vec![
        lock("sleep", "block"),
        lock("shutdown", "delay"),
        lock("shutdown", "block-weak"),
        lock("handle-power-key", "block"),
        lock("idle:shutdown", "block"),
    ];
    let (_peer, login) = logind.start(&bus).await;
    assert_eq!(login.inhibitors().await.unwrap(), [backup()]);
}

#[tokio::test]
async fn a_refusal_is_told_apart_and_the_wall_message_taken_back() {
    let text = || "no".to_owned();
    for (refusal, expected) in [
        (Refusal::Blocked(text()), "the reboot is inhibited"),
        (
            Refusal::Denied(text()),
            "the reboot is forbidden by policy: no; run as root",
        ),
        (
            Refusal::NeedsPassword(text()),
            "the reboot is forbidden by policy: no; run as root",
        ),
        (
            Refusal::InProgress(text()),
            "another shutdown or sleep is under way: no",
        ),
        (
            Refusal::Failed(text()),
            "org.freedesktop.login1 did not answer RebootWithFlags",
        ),
    ] {
        let bus = PrivateBus::start();
        let mut logind = Logind::of(Age::V257);
        logind.refusal = Some(refusal);
        let (_peer, login) = logind.start(&bus).await;
        let refused = login.reboot(Mode::Firmware, Inhibition::Respect, WHY).await;
        assert_eq!(refused.unwrap_err().to_string(), expected);
        assert_eq!(logind.reboots().len(), 1, "asked once");
        assert_eq!(logind.wall().unwrap(), "SetWall \"from before\" false");
    }
}

#[tokio::test]
async fn without_logind_the_error_says_so() {
    let bus = PrivateBus::start();
    let login = Login::new(&bus.bus());
    let refused = login.reboot(Mode::Firmware, Inhibition::Respect, WHY).await;
    assert!(
        matches!(
            refused,
            Err(RefusedReboot::Bus(BusError::Absent { service: NAME, .. }))
        ),
        "{refused:?}"
    );
}

#[tokio::test]
async fn people_are_told_from_services_and_those_who_leave() {
    let bus = PrivateBus::start();
    let mut logind = Logind::of(Age::V257);
    let sessions = [
        // User, class, state, terminal, remote.
        ("core", "user", "active", "pts/0", true),
        ("root", "user", "online", "tty1", false),
        ("ann", "user-light", "active", "pts/1", false),
        ("sftp", "user", "active", "", true),
        ("cron", "user", "active", "", false),
        ("gdm", "greeter", "active", "tty7", false),
        ("core", "manager", "active", "", false),
        ("timer", "background", "active", "", false),
        ("eve", "user", "closing", "pts/2", true),
    ];
    let path = |number: usize| format!("{PATH}/session/s{number}");
    let mut peer = bus.peer();
    for (number, &(user, class, state, tty, remote)) in sessions.iter().enumerate() {
        let object = SessionObject {
            class,
            state,
            tty,
            remote,
        };
        peer = peer.serve_at(path(number), object);
        let path = ObjectPath::try_from(path(number)).unwrap();
        logind.sessions.push((user, path.into()));
    }
    // One that ended after it was listed.
    let gone = ObjectPath::try_from(path(99)).unwrap();
    logind.sessions.push(("gone", gone.into()));
    let peer = peer.serve_at(PATH, logind).name(NAME);
    let _peer = peer.build().await.unwrap();

    let found = Login::new(&bus.bus()).sessions().await.unwrap();
    let session = |user: &str, tty: Option<&str>| Session {
        user: user.into(),
        tty: tty.map(Into::into),
    };
    assert_eq!(
        found,
        [
            session("core", Some("pts/0")),
            session("root", Some("tty1")),
            session("ann", Some("pts/1")),
            session("sftp", None),
        ]
    );
}

#[tokio::test]
async fn a_shutdown_is_seen_once_when_logind_and_nobody_else_says_so() {
    let mut bus = PrivateBus::start();
    let (peer, login) = Logind::of(Age::V257).start(&bus).await;
    let mut shutdowns = login.shutdowns();
    let emitter = SignalEmitter::new(&peer, PATH).unwrap();
    let say = |begins| Logind::prepare_for_shutdown(&emitter, begins);
    settled(&mut shutdowns).await;

    let stranger = bus.connect().await;
    let manager = "org.freedesktop.login1.Manager";
    let sent = stranger.emit_signal(None::<&str>, PATH, manager, "PrepareForShutdown", &true);
    sent.await.unwrap();
    assert!(!settled(&mut shutdowns).await, "a stranger was heard");

    say(true).await.unwrap();
    soon("the shutdown", shutdowns.next()).await;
    say(true).await.unwrap();
    say(false).await.unwrap();
    assert!(!settled(&mut shutdowns).await, "said twice, and its end");
    say(true).await.unwrap();
    soon("the next", shutdowns.next()).await;

    // Over a restart of the bus; this one's logind is going down already.
    say(false).await.unwrap();
    settled(&mut shutdowns).await;
    bus.stop();
    bus.start_again();
    let mut logind = Logind::of(Age::V257);
    logind.is_going_down = true;
    let (_peer, _) = logind.start(&bus).await;
    soon("what was missed", shutdowns.next()).await;
}

/// Whether there was a hint that nobody waited for.
async fn settled(hints: &mut Hints) -> bool {
    let mut any = false;
    while timeout(Duration::from_millis(300), hints.next())
        .await
        .is_ok()
    {
        any = true;
    }
    any
}
