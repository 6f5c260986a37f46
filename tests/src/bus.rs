//! A message bus of the test's own: a real `dbus-daemon` on a socket in a
//! temporary folder.

use std::fs;
use std::time::Duration;

use anyhow::Result;
use tempfile::TempDir;

use crate::deadline::poll_until;
use crate::process::Running;
use crate::programs::system_tool;

const START_LIMIT: Duration = Duration::from_secs(10);

/// A running bus. It ends when this value is dropped.
#[derive(Debug)]
pub struct PrivateBus {
    address: String,
    _daemon: Running,
    _folder: TempDir,
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

    fn start_with_policy(policy: &str) -> Result<Self> {
        let folder = TempDir::new()?;
        let socket = folder.path().join("bus");
        let address = format!("unix:path={}", socket.display());
        let config = folder.path().join("bus.conf");
        fs::write(
            &config,
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
        let mut config_option = std::ffi::OsString::from("--config-file=");
        config_option.push(&config);
        let mut daemon = Running::start(
            system_tool("dbus-daemon")
                .args(["--nofork", "--nopidfile", "--nosyslog"])
                .arg(config_option),
        )?;
        poll_until("start of dbus-daemon", START_LIMIT, || {
            if !daemon.is_running()? {
                anyhow::bail!("dbus-daemon ended: {}", daemon.stderr()?);
            }
            Ok(socket.exists().then_some(()))
        })?;
        Ok(Self {
            address,
            _daemon: daemon,
            _folder: folder,
        })
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
