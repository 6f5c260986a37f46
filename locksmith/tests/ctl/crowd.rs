//! Many programs at once.

use std::process::{Child, Stdio};

use crate::server::Server;
use crate::transcript::Session;

/// The original lost most of these races, and its exit code said so.
#[test]
fn forty_machines_lock_and_unlock_at_once() {
    let etcd = Server::start();
    for api in ["v3", "v2"] {
        let session = Session::new()
            .variable("LOCKSMITHCTL_API", api)
            .variable("LOCKSMITHCTL_ENDPOINT", etcd.endpoint(0));
        session.stdout(&["set-max", "50"]);
        all_at_once(&session, "lock");
        let status = session.stdout(&["status"]);
        assert!(status.starts_with("Available: 10\nMax: 50\n"), "{status}");
        assert_eq!(status.lines().count(), 4 + 40, "{status}");
        all_at_once(&session, "unlock");
        assert_eq!(session.stdout(&["status"]), "Available: 50\nMax: 50\n");
    }
}

#[test]
fn nobody_gets_a_place_that_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let store = format!("file:{}", folder.path().join("lock").display());
    let session = Session::new().variable("LOCKSMITHCTL_STORE", store);
    session.stdout(&["set-max", "7"]);
    let won = start_all(&session, "lock", 20)
        .map(|child| child.wait_with_output().unwrap())
        .filter(|output| output.status.success())
        .count();
    assert_eq!(won, 7);
}

fn all_at_once(session: &Session, command: &str) {
    for child in start_all(session, command, 40) {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{command}: {output:?}");
    }
}

fn start_all(session: &Session, command: &str, count: usize) -> impl Iterator<Item = Child> {
    let start = |index| {
        session
            .command(&[command, &format!("machine-{index:02}")])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let children: Vec<_> = (0..count).map(start).collect();
    children.into_iter()
}
