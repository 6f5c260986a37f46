//! A message bus of the test's own: a real `dbus-daemon` on a socket in a
//! temporary folder.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use tempfile::TempDir;

use crate::deadline::poll_until;
use crate::process::Running;
use crate::programs::system_tool;

const START_LIMIT: Duration = Duration::from_secs(10);
const SOCKET: &str = "bus";
const CONFIG: &str = "bus.conf";

/// A running bus. It ends when this value is dropped.
#[derive(Debug)]
pub struct PrivateBus {
    address: String,
    daemon: Option<Running>,
    folder: TempDir,
}

impl PrivateBus {
    /// A bus on which the user of the test may own and call everything.
    ///
    /// # Errors
    ///
    /// `dbus-daemon` is missing or does not start.
    pub fn start() -> Result<Self> {
        Self::start_with_policy(
            r#"<policy context="default">
                 <allow send_destination="*" eavesdrop="true"/>
                 <allow eavesdrop="true"/>
                 <allow own="*"/>
               </policy>"#,
        )
    }

    /// Where it listens, for `--bus` and `DBUS_SYSTEM_BUS_ADDRESS`.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Ends the bus as a crash would. Everybody on it loses the connection.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn stop(&mut self) -> Result<()> {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill()?;
            // Its successor cannot bind the name otherwise.
            fs::remove_file(self.socket())?;
        }
        Ok(())
    }

    /// Starts a stopped bus again, at the same address.
    ///
    /// # Errors
    ///
    /// It does not start.
    pub fn start_again(&mut self) -> Result<()> {
        let mut config_option = std::ffi::OsString::from("--config-file=");
        config_option.push(self.folder.path().join(CONFIG));
        let mut daemon = Running::start(
            system_tool("dbus-daemon")
                .args(["--nofork", "--nopidfile", "--nosyslog"])
                .arg(config_option),
        )?;
        let socket = self.socket();
        poll_until("start of dbus-daemon", START_LIMIT, || {
            if !daemon.is_running()? {
                anyhow::bail!("dbus-daemon ended: {}", daemon.stderr()?);
            }
            Ok(UnixStream::connect(&socket).is_ok().then_some(()))
        })?;
        self.daemon = Some(daemon);
        Ok(())
    }

    fn start_with_policy(policy: &str) -> Result<Self> {
        let folder = TempDir::new()?;
        let address = format!("unix:path={}", folder.path().join(SOCKET).display());
        fs::write(
            folder.path().join(CONFIG),
            format!(
                r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
                     "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
                   <busconfig>
                     <type>system</type>
                     <auth>EXTERNAL</auth>
                     <listen>{address}</listen>
                     {policy}
                   </busconfig>"#
            ),
        )?;
        let mut bus = Self {
            address,
            daemon: None,
            folder,
        };
        bus.start_again()?;
        Ok(bus)
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join(SOCKET)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::run;

    #[test]
    fn a_bus_answers_and_a_broken_policy_is_told() {
        let bus = PrivateBus::start().unwrap();
        let mut ask = system_tool("dbus-send");
        ask.arg(format!("--bus={}", bus.address()))
            .args(["--print-reply", "--dest=org.freedesktop.DBus", "/"])
            .arg("org.freedesktop.DBus.ListNames");
        let names = run(&mut ask, START_LIMIT).unwrap().success().unwrap();
        assert!(names.contains("org.freedesktop.DBus"), "{names}");

        let broken = PrivateBus::start_with_policy("<policy context=\"nobody\"/>");
        let error = broken.unwrap_err().to_string();
        assert!(error.contains("nobody"), "{error}");
    }
}
