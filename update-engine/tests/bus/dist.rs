//! The shipped files: the bus policy enforced by a real `dbus-daemon`, the unit
//! read by systemd.
//!
//! The policy needs root, to own the name and to call as other users; without
//! it its tests say so and check nothing.

use tokio::process::Command as ProcessCommand;
use update_engine::bus::{DETAILS_INTERFACE, MANAGER_INTERFACE, NAME, PATH};
use update_engine::status::Snapshot;

use crate::support::{FakeEngine, PrivateBus, Transcript};

const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/dist/com.coreos.update1.conf");
const UNIT: &str = include_str!("../../dist/update-engine.service");

/// What the system bus allows by itself.
const SYSTEM_POLICY: &str = r#"
  <policy context="default">
    <allow user="*"/>
    <deny own="*"/>
    <deny send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
    <allow send_destination="org.freedesktop.DBus"/>
  </policy>"#;

/// The account `daemon` of every Debian, in the place of `core`, which a build
/// machine does not have. The bus turns away users that are in no passwd file.
const OPERATOR: u32 = 1;
/// The account `nobody`.
const STRANGER: u32 = 65_534;

const MEMBERS: [(&str, &str); 8] = [
    (MANAGER_INTERFACE, "GetStatus"),
    (MANAGER_INTERFACE, "AttemptUpdate"),
    (MANAGER_INTERFACE, "ResetStatus"),
    (DETAILS_INTERFACE, "GetDetails"),
    (DETAILS_INTERFACE, "Cancel"),
    ("org.freedesktop.DBus.Introspectable", "Introspect"),
    ("org.freedesktop.DBus.Properties", "GetAll"),
    ("org.freedesktop.DBus.Peer", "Ping"),
];

async fn is_denied(bus: &PrivateBus, user: u32, interface: &str, member: &str) -> bool {
    let mut command = ProcessCommand::new("dbus-send");
    command
        .uid(user)
        .gid(user)
        .arg(format!("--bus={}", bus.address))
        .args(["--print-reply", &format!("--dest={NAME}"), PATH])
        .arg(format!("{interface}.{member}"));
    if member == "GetAll" {
        command.arg(format!("string:{MANAGER_INTERFACE}"));
    }
    let transcript = Transcript::of(command).await;
    transcript
        .stderr
        .contains("org.freedesktop.DBus.Error.AccessDenied")
}

#[tokio::test]
async fn root_may_all_the_operator_four_methods_and_others_nothing() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("not root: the bus policy is not checked");
        return;
    }
    let shipped = std::fs::read_to_string(SHIPPED).unwrap();
    assert_eq!(shipped.matches("user=\"core\"").count(), 1);
    let folder = tempfile::tempdir().unwrap();
    let policy = folder.path().join("com.coreos.update1.conf");
    let as_operator = shipped.replace("user=\"core\"", &format!("user=\"{OPERATOR}\""));
    std::fs::write(&policy, as_operator).unwrap();
    let bus = PrivateBus::start(&format!(
        "{SYSTEM_POLICY}\n  <include>{}</include>",
        policy.display()
    ));
    // Owning the name is the first thing the policy allows to root.
    let mut engine = FakeEngine::start(&bus, Snapshot::default()).await;
    let commands = tokio::spawn(async move {
        while let Some(command) = engine.commands.recv().await {
            drop(command);
        }
    });

    for (interface, member) in MEMBERS {
        let core = matches!(
            member,
            "GetStatus" | "AttemptUpdate" | "ResetStatus" | "GetDetails"
        );
        for (user, allowed) in [(0, true), (OPERATOR, core), (STRANGER, false)] {
            assert_eq!(
                !is_denied(&bus, user, interface, member).await,
                allowed,
                "user {user} calling {interface}.{member}"
            );
        }
    }
    commands.abort();
}

#[tokio::test]
async fn nobody_but_root_may_own_the_name() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("not root: the bus policy is not checked");
        return;
    }
    let bus = PrivateBus::start(&format!("{SYSTEM_POLICY}\n  <include>{SHIPPED}</include>"));
    let mut command = ProcessCommand::new("dbus-send");
    command
        .uid(STRANGER)
        .gid(STRANGER)
        .arg(format!("--bus={}", bus.address))
        .args(["--print-reply", "--dest=org.freedesktop.DBus", "/"])
        .arg("org.freedesktop.DBus.RequestName")
        .args([&format!("string:{NAME}"), "uint32:4"]);
    let transcript = Transcript::of(command).await;
    assert!(transcript.stderr.contains("AccessDenied"), "{transcript:?}");
}

#[tokio::test]
async fn the_unit_is_understood_by_systemd() {
    assert!(UNIT.contains(&format!("\nBusName={NAME}\n")));
    // While a post-install program runs the daemon does not end, and what is killed then
    // may be writing the partition table. systemd waits for 90 s by itself, and forces a
    // reboot that takes 30 minutes.
    assert!(UNIT.contains("\nKillMode=mixed\nTimeoutStopSec=15min\n"));
    let folder = tempfile::tempdir().unwrap();
    let unit = folder.path().join("update-engine.service");
    // The program is not installed here, and its absence would be a complaint.
    let text = UNIT.replace("/usr/sbin/update_engine ", "/bin/true ");
    assert_ne!(text, UNIT);
    std::fs::write(&unit, text).unwrap();
    let mut command = ProcessCommand::new("systemd-analyze");
    if command.arg("--version").output().await.is_err() {
        eprintln!("systemd-analyze is not installed: the unit is not checked");
        return;
    }
    let mut command = ProcessCommand::new("systemd-analyze");
    command.arg("verify").arg(&unit);
    Transcript::of(command).await.assert(0, "", "");
}
