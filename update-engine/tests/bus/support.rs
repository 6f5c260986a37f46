//! A private message bus, a fake engine behind the real service, and the real
//! client as a process.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command as StdCommand, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tokio::process::Command as ProcessCommand;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use update_engine::bus::{BusError, Service};
use update_engine::status::{Command, Snapshot};

/// No step of a test takes this long unless it hangs.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// Everybody may do everything, as far as the bus is concerned.
pub(crate) const OPEN_POLICY: &str = r#"
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_destination="*"/>
    <allow receive_sender="*"/>
  </policy>"#;

/// Waits for something that must happen soon.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(LIMIT, future)
        .await
        .unwrap_or_else(|_| panic!("{what} did not happen within {LIMIT:?}"))
}

/// A `dbus-daemon` of its own; ends with the value.
pub(crate) struct PrivateBus {
    daemon: Child,
    pub(crate) address: String,
    _folder: TempDir,
}

impl PrivateBus {
    pub(crate) fn start(policy: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Other users are let in by the policy or not at all.
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let config = folder.path().join("bus.conf");
        let socket = folder.path().join("socket");
        let log = folder.path().join("log");
        let text = format!(
            "<!DOCTYPE busconfig PUBLIC \"-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN\"\n\
             \"http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd\">\n\
             <busconfig>\n  <type>system</type>\n  <auth>EXTERNAL</auth>\n  \
             <listen>unix:path={}</listen>{policy}\n</busconfig>\n",
            socket.display()
        );
        std::fs::write(&config, text).unwrap();
        let mut daemon = StdCommand::new("dbus-daemon")
            .arg(format!("--config-file={}", config.display()))
            .args(["--nofork", "--nopidfile", "--print-address"])
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .expect("dbus-daemon must be installed (Debian package dbus-daemon)");
        let mut address = String::new();
        BufReader::new(daemon.stdout.take().unwrap())
            .read_line(&mut address)
            .unwrap();
        assert!(
            !address.is_empty(),
            "dbus-daemon did not start: {}",
            std::fs::read_to_string(&log).unwrap()
        );
        Self {
            daemon,
            address: address.trim().to_owned(),
            _folder: folder,
        }
    }

    pub(crate) fn open() -> Self {
        Self::start(OPEN_POLICY)
    }

    pub(crate) async fn connect(&self) -> zbus::Connection {
        zbus::connection::Builder::address(self.address.as_str())
            .build()
            .await
            .unwrap()
    }

    /// The client with short waits; arguments may override them.
    pub(crate) fn client(&self, args: &[&str]) -> ProcessCommand {
        let mut command = ProcessCommand::new(env!("CARGO_BIN_EXE_update_engine_client"));
        command
            .args(["-bus", &self.address])
            .args(["-poll-seconds", "0.05", "-retry-seconds", "0.05"])
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    pub(crate) async fn run_client(&self, args: &[&str]) -> Transcript {
        Transcript::of(self.client(args)).await
    }
}

impl Drop for PrivateBus {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// What a program printed and how it ended.
#[derive(Debug, PartialEq)]
pub(crate) struct Transcript {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) status: Option<i32>,
}

impl Transcript {
    pub(crate) async fn of(mut command: ProcessCommand) -> Self {
        let output = soon("the end of the program", command.output())
            .await
            .unwrap();
        Self {
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
            status: output.status.code(),
        }
    }

    #[track_caller]
    pub(crate) fn assert(&self, status: i32, stdout: &str, stderr: &str) {
        assert_eq!(self.stdout, stdout, "stdout of {self:?}");
        assert_eq!(self.stderr, stderr, "stderr of {self:?}");
        assert_eq!(self.status, Some(status), "exit status of {self:?}");
    }
}

/// The engine's end of the seam, with the real service at the other end.
pub(crate) struct FakeEngine {
    pub(crate) snapshots: watch::Sender<Snapshot>,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) service: JoinHandle<BusError>,
}

impl FakeEngine {
    pub(crate) async fn start(bus: &PrivateBus, first: Snapshot) -> Self {
        let (snapshots, seen) = watch::channel(first);
        let (queue, commands) = mpsc::channel(1);
        let service = Service::connect(Some(&bus.address), seen, queue)
            .await
            .unwrap();
        Self {
            snapshots,
            commands,
            service: tokio::spawn(service.run()),
        }
    }

    pub(crate) async fn next_command(&mut self) -> Command {
        soon("a command", self.commands.recv()).await.unwrap()
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Snapshot)) {
        self.snapshots.send_modify(change);
    }
}
