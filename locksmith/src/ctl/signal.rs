//! `send-need-reboot`: the signal with which update_engine asks for a reboot.

use zbus::connection::Builder;
use zbus::fdo::DBusProxy;

use super::Invocation;
use super::error::CtlError;
use crate::words::words;

const PATH: &str = "/com/coreos/update1";
const INTERFACE: &str = "com.coreos.update1.Manager";

/// Body of the signal: time of the last check, progress, operation, version,
/// size.
const BODY: (i64, f64, &str, &str, i64) = (0, 0.0, "UPDATE_STATUS_UPDATED_NEED_REBOOT", "", 0);

/// Returns when the bus has taken the signal; the original slept for a second
/// instead.
pub(super) async fn send_need_reboot(invocation: &Invocation<'_>) -> Result<(), CtlError> {
    let failed = |what: &str, error: &dyn std::error::Error| {
        CtlError::Signal(format!("{what}: {}", words(error)))
    };
    let builder = match &invocation.globals.bus {
        Some(address) => Builder::address(address.as_str()),
        None => Builder::system(),
    };
    let bus = builder
        .build()
        .await
        .map_err(|error| failed("error connecting to system dbus", &error))?;
    bus.emit_signal(None::<&str>, PATH, INTERFACE, "StatusUpdate", &BODY)
        .await
        .map_err(|error| failed("error emitting signal", &error))?;
    // The bus reads messages in order: with this answer it has the signal too.
    let daemon = DBusProxy::new(&bus)
        .await
        .map_err(|error| failed("error emitting signal", &error))?;
    daemon
        .get_id()
        .await
        .map_err(|error| failed("error emitting signal", &error))?;
    Ok(())
}
