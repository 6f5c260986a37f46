//! The `omaha-server` command as a script uses it.

#![allow(clippy::unwrap_used, reason = "a test may fail by panic")]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, SystemTime};

const FULL: &[u8] = include_bytes!("../../fixtures/crau-v1/unsigned.payload");
const CHECK: &str = include_str!("../../fixtures/omaha/request-ordinary-check-1.http");
const FAILURE: &str = include_str!("../../fixtures/omaha/request-check-refused-by-server-2.http");

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_omaha-server"));
    command
        .args(arguments)
        .env_remove("RUST_LOG")
        .stdin(Stdio::null());
    command
}

fn output(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn folder_with_payload() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("flatcar-amd64-4152.10.0.gz");
    fs::write(&path, FULL).unwrap();
    let hour_ago = SystemTime::now() - Duration::from_secs(3600);
    File::options()
        .write(true)
        .open(path)
        .unwrap()
        .set_modified(hour_ago)
        .unwrap();
    folder
}

/// Ends with the test, whatever happens.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the server and gives the address that it prints.
fn serve(folder: &Path, more: &[&str]) -> (Running, String) {
    let folder = folder.to_str().unwrap();
    let mut command = command(&["serve", folder, "--listen", "127.0.0.1:0"]);
    command.args(more);
    start(command)
}

fn start(mut command: Command) -> (Running, String) {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let address = line
        .trim_end()
        .strip_prefix("listening on http://")
        .unwrap();
    (Running(child), address.to_owned())
}

/// Sends a recording to the server and returns the whole reply.
fn post(address: &str, recording: &str) -> String {
    let (head, body) = recording.split_once("\n\n").unwrap();
    let head = head.replace('\n', "\r\n");
    let mut connection = TcpStream::connect(address).unwrap();
    connection
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    write!(connection, "{head}\r\nConnection: close\r\n\r\n{body}").unwrap();
    let mut reply = String::new();
    connection.read_to_string(&mut reply).unwrap();
    reply
}

/// Asks the server to end and returns its exit status and what it logged.
fn end(mut server: Running, signal: &str) -> (bool, String) {
    let pid = server.0.id().to_string();
    assert!(
        Command::new("kill")
            .args([signal, &pid])
            .status()
            .unwrap()
            .success()
    );
    let mut log = String::new();
    server
        .0
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut log)
        .unwrap();
    (server.0.wait().unwrap().success(), log)
}

#[test]
fn the_original_clients_requests_are_answered_and_logged_in_words() {
    let folder = folder_with_payload();
    let (server, address) = serve(folder.path(), &[]);
    let reply = post(&address, CHECK);
    assert!(reply.starts_with("HTTP/1.1 200 OK"), "{reply}");
    assert!(
        reply.contains("<manifest version=\"4152.10.0\">"),
        "{reply}"
    );
    let reply = post(&address, FAILURE);
    assert!(reply.contains("<event status=\"ok\">"), "{reply}");
    assert!(!reply.contains("updatecheck"), "{reply}");
    let (success, log) = end(server, "-TERM");
    assert!(success, "{log}");
    for expected in [
        "4152.10.0  any    amd64-usr  full  690514",
        "check: offered 4152.10.0 (full, 690514 bytes, flatcar-amd64-4152.10.0.gz)",
        "machine=0123456789abcdef0123456789abcdef version=3815.2.0 track=stable board=amd64-usr",
        "event: update complete: error, update server's answer is not usable (34, private server)",
        "shutting down",
    ] {
        assert!(log.contains(expected), "`{expected}` is not in:\n{log}");
    }
    assert_eq!(log.matches("check:").count(), 1);
    assert_eq!(
        log.matches("event:").count(),
        1,
        "the ordinary event is no news:\n{log}"
    );
}

#[test]
fn the_log_can_be_json() {
    let folder = folder_with_payload();
    let (server, address) = serve(folder.path(), &["--json-log", "--track", "beta"]);
    post(&address, CHECK);
    let (success, log) = end(server, "-INT");
    assert!(success, "{log}");
    let line = log.lines().find(|line| line.contains("check:")).unwrap();
    let entry: serde_json::Value = serde_json::from_str(line).unwrap();
    assert_eq!(entry["machine"], "0123456789abcdef0123456789abcdef");
    assert_eq!(
        entry["message"],
        "check: nothing offered, no payload for track `stable` and board `amd64-usr`"
    );
}

#[test]
fn a_folder_that_cannot_be_read_is_logged_once_with_its_cause() {
    let folder = folder_with_payload();
    let (mut server, _address) = serve(folder.path(), &[]);
    let mut log = BufReader::new(server.0.stderr.take().unwrap()).lines();
    let mut wait_for = |text: &str| {
        let lines = log.by_ref().map(Result::unwrap);
        let mut seen = Vec::new();
        for line in lines {
            seen.push(line);
            if seen.last().unwrap().contains(text) {
                break;
            }
        }
        seen
    };
    let aside = folder.path().with_extension("aside");
    fs::rename(folder.path(), &aside).unwrap();
    std::os::unix::fs::symlink(folder.path().file_name().unwrap(), folder.path()).unwrap();
    let failure = wait_for("cannot read the payload folder").pop().unwrap();
    // It fails once more before it is all right.
    std::thread::sleep(Duration::from_secs(3));
    fs::remove_file(folder.path()).unwrap();
    fs::rename(&aside, folder.path()).unwrap();
    assert!(failure.contains("Too many levels"), "{failure}");
    let rest = wait_for("the payload folder can be read again");
    assert_eq!(rest.len(), 1, "{rest:?}");
}

#[test]
fn the_list_is_a_table_or_json_on_stdout() {
    let folder = folder_with_payload();
    let path = folder.path().to_str().unwrap();
    let table = output(&["list", path]);
    assert!(table.status.success());
    assert!(
        text(&table.stdout).starts_with("VERSION"),
        "{}",
        text(&table.stdout)
    );
    assert!(table.stderr.is_empty());
    let json = output(&[
        "list",
        "--json",
        path,
        "--board",
        "arm64-usr",
        "--track",
        "lts",
    ]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["artifacts"][0]["version"], "4152.10.0");
    assert_eq!(
        json["artifacts"][0]["board"], "amd64-usr",
        "its name says so"
    );
    assert_eq!(json["artifacts"][0]["track"], "lts");
}

#[test]
fn a_payload_made_a_moment_ago_is_there_at_once() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("update-1.2.3.payload"), FULL).unwrap();
    let table = output(&["list", folder.path().to_str().unwrap()]);
    assert!(
        text(&table.stdout).contains("1.2.3"),
        "{}",
        text(&table.stdout)
    );
}

#[test]
fn failures_name_what_and_why_and_have_their_exit_codes() {
    for (arguments, code, expected) in [
        (
            vec!["serve", "/nowhere"],
            1,
            "omaha-server: cannot read the payload folder /nowhere: No such file or directory",
        ),
        (vec!["serve"], 2, "<DIR>"),
        (vec![], 2, "Usage"),
        (
            vec!["serve", "/tmp", "--public-url", "updates.example"],
            2,
            "must begin with http:// or https://",
        ),
        (vec!["serve", "/tmp", "--listen", "nowhere"], 2, "--listen"),
    ] {
        let output = output(&arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        let stderr = text(&output.stderr);
        assert!(stderr.contains(expected), "{arguments:?}: {stderr}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn help_teaches() {
    for arguments in [vec!["--help"], vec!["serve", "--help"]] {
        let help = output(&arguments);
        assert!(help.status.success());
        assert!(text(&help.stdout).contains("DIR/stable/flatcar-amd64-4152.2.0.gz"));
    }
}

#[test]
fn the_soft_limit_of_open_files_is_no_limit() {
    let folder = folder_with_payload();
    let mut shell = Command::new("sh");
    let script = "ulimit -Sn 64; ulimit -Hn 4000; exec \"$@\"";
    shell
        .args(["-c", script, "sh", env!("CARGO_BIN_EXE_omaha-server")])
        .arg("serve")
        .arg(folder.path())
        .args(["--listen", "127.0.0.1:0"]);
    let (running, _address) = start(shell);
    let limits = fs::read_to_string(format!("/proc/{}/limits", running.0.id())).unwrap();
    let files = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let words: Vec<_> = files.unwrap().split_whitespace().collect();
    assert_eq!(words[3..5], ["4000", "4000"], "{limits}");
}
