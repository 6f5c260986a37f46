//! A private message bus that can be stopped and started again.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use locksmith::bus::Bus;
use tempfile::TempDir;
use tokio::time::timeout;
use zbus::Connection;
use zbus::connection::Builder;

/// No step of a test takes this long unless it hangs.
const LIMIT: Duration = Duration::from_secs(30);

/// Waits for something that must happen soon.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(LIMIT, future)
        .await
        .unwrap_or_else(|_| panic!("{what} did not happen within {LIMIT:?}"))
}

/// A `dbus-daemon` of its own, on which everybody may do everything; ends with
/// the value.
pub(crate) struct PrivateBus {
    folder: TempDir,
    daemon: Option<Child>,
}

impl PrivateBus {
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let text = format!(
            "<!DOCTYPE busconfig PUBLIC \"-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN\"\n\
             \"http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd\">\n\
             <busconfig>\n  <type>system</type>\n  <auth>EXTERNAL</auth>\n  \
             <listen>unix:path={}/socket</listen>\n  \
             <policy context=\"default\">\n    <allow user=\"*\"/>\n    <allow own=\"*\"/>\n    \
             <allow send_destination=\"*\"/>\n    <allow receive_sender=\"*\"/>\n  </policy>\n\
             </busconfig>\n",
            folder.path().display()
        );
        std::fs::write(folder.path().join("bus.conf"), text).unwrap();
        let mut bus = Self {
            folder,
            daemon: None,
        };
        bus.start_again();
        bus
    }

    pub(crate) fn start_again(&mut self) {
        let folder = self.folder.path();
        let mut daemon = Command::new("dbus-daemon")
            .arg(format!("--config-file={}/bus.conf", folder.display()))
            .args(["--nofork", "--nopidfile", "--print-address"])
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(folder.join("log")).unwrap())
            .spawn()
            .expect("dbus-daemon must be installed (Debian package dbus-daemon)");
        let mut address = String::new();
        BufReader::new(daemon.stdout.take().unwrap())
            .read_line(&mut address)
            .unwrap();
        assert!(
            !address.is_empty(),
            "dbus-daemon did not start: {}",
            std::fs::read_to_string(folder.join("log")).unwrap()
        );
        self.daemon = Some(daemon);
    }

    pub(crate) fn stop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        let _ = std::fs::remove_file(self.folder.path().join("socket"));
    }

    pub(crate) fn address(&self) -> String {
        format!("unix:path={}/socket", self.folder.path().display())
    }

    pub(crate) fn bus(&self) -> Bus {
        Bus::new(Some(&self.address()))
    }

    /// A connection that may serve objects and own names.
    pub(crate) fn peer(&self) -> Builder<'static> {
        Builder::address(self.address().as_str())
    }

    pub(crate) async fn connect(&self) -> Connection {
        self.peer().build().await.unwrap()
    }
}

impl Drop for PrivateBus {
    fn drop(&mut self) {
        self.stop();
    }
}
