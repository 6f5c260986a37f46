//! `watch`, with changes by other programs.

use std::io::{BufRead, BufReader, Lines};
use std::process::{Child, ChildStdout, Stdio};

use crate::server::Server;
use crate::transcript::Session;

/// A running `watch`; it is ended with the value.
struct Watch {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Watch {
    /// Returns when it has shown the status.
    fn start(session: &Session) -> Self {
        let mut child = session
            .command(&["watch"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let stdout = child.stdout.take().unwrap();
        let lines = BufReader::new(stdout).lines();
        let mut watch = Self { child, lines };
        assert_eq!(watch.line(), "Available: 1");
        assert_eq!(watch.line(), "Max: 1");
        watch
    }

    fn line(&mut self) -> String {
        self.lines.next().unwrap().unwrap()
    }

    /// The next change, behind its time.
    fn change(&mut self) -> String {
        let line = self.line();
        let (time, change) = line.split_once(' ').unwrap();
        assert!(time.ends_with('Z'), "{line}");
        change.to_owned()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn follow(session: &Session) {
    let mut watch = Watch::start(session);
    session.stdout(&["lock", "a", "-why", "disks"]);
    assert_eq!(
        watch.change(),
        "a has a place, locked by an operator: disks"
    );
    session.stdout(&["set-max", "3"]);
    assert_eq!(watch.change(), "the maximum is 3, was 1");
    session.stdout(&["unlock", "a"]);
    assert_eq!(watch.change(), "a has given its place back");
    session.stdout(&["halt", "-why", "bad image"]);
    assert!(watch.change().ends_with(": bad image"));
    session.stdout(&["halt", "-clear", "-why", "fixed"]);
    assert_eq!(watch.change(), "the halt is cleared");
}

#[test]
fn changes_in_etcd_are_told_as_they_come() {
    let etcd = Server::start();
    follow(
        &Session::new()
            .variable("LOCKSMITHCTL_API", "v3")
            .variable("LOCKSMITHCTL_ENDPOINT", etcd.endpoint(0)),
    );
}

#[test]
fn changes_in_a_file_are_told_as_they_come() {
    let folder = tempfile::tempdir().unwrap();
    let store = format!("file:{}/lock", folder.path().display());
    follow(&Session::new().variable("LOCKSMITHCTL_STORE", store));
}
