//! The neighbours on D-Bus: update_engine, logind and systemd.
//!
//! [`Bus`] is one connection that is made when it is needed and made anew when
//! it was lost. What is asked and what is told is in [`updater`], [`login`] and
//! [`systemd`]; what follows from it is decided elsewhere.

mod hints;
pub mod login;
pub mod systemd;
pub mod updater;

pub use hints::Hints;
pub use login::{Inhibition, Inhibitor, Login, RefusedReboot, Session};
pub use systemd::Systemd;
pub use updater::{Status, Updater};

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::timeout;
use zbus::connection::Builder;
use zbus::{Connection, DBusError, fdo};

/// For how long a bus may take to let us in.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The usual patience of D-Bus callers. The original update_engine does not
/// answer while it writes.
const CALL_TIMEOUT: Duration = Duration::from_secs(25);

/// Why a neighbour cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// There is no bus at the address, or it does not let us in.
    #[error("cannot connect to the message bus at {address}")]
    Connect {
        /// The address as it was given, or what stands for it.
        address: String,
        /// What the transport said.
        source: zbus::Error,
    },
    /// The neighbour does not run.
    #[error("nobody owns {service} on the message bus")]
    Absent {
        /// Its name.
        service: &'static str,
        /// What the bus said.
        source: zbus::Error,
    },
    /// It refused, or did not answer in time.
    #[error("{service} did not answer {method}")]
    Call {
        /// Its name.
        service: &'static str,
        /// What was asked.
        method: &'static str,
        /// What it said.
        source: zbus::Error,
    },
    /// It answered with what cannot be meant.
    #[error("{service} answered {method} with {what}")]
    Answer {
        /// Its name.
        service: &'static str,
        /// What was asked.
        method: &'static str,
        /// What is wrong.
        what: &'static str,
    },
}

/// The message bus. Clones share one connection.
#[derive(Debug, Clone)]
pub struct Bus {
    address: Option<Arc<str>>,
    connection: Arc<Mutex<Option<Connection>>>,
}

impl Bus {
    /// The bus at `address`; `None` is the system bus, for which
    /// `DBUS_SYSTEM_BUS_ADDRESS` may speak. Connects only when something is
    /// asked.
    #[must_use]
    pub fn new(address: Option<&str>) -> Self {
        Self {
            address: address.map(Into::into),
            connection: Arc::default(),
        }
    }

    /// The connection; a new one when there is none or it was lost.
    async fn connection(&self) -> Result<Connection, BusError> {
        let mut connection = self.connection.lock().await;
        if let Some(connection) = connection.as_ref().filter(|open| !open.is_closed()) {
            return Ok(connection.clone());
        }
        let made = timeout(CONNECT_TIMEOUT, self.connect())
            .await
            .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()));
        let made = made.map_err(|source| BusError::Connect {
            address: self
                .address
                .as_deref()
                .unwrap_or("the system bus")
                .to_owned(),
            source,
        })?;
        Ok(connection.insert(made).clone())
    }

    async fn connect(&self) -> zbus::Result<Connection> {
        let builder = match &self.address {
            Some(address) => Builder::address(&**address),
            None => Builder::system(),
        };
        builder.method_timeout(CALL_TIMEOUT).build().await
    }
}

/// To be mapped over the errors of a call.
fn called(service: &'static str, method: &'static str) -> impl Fn(zbus::Error) -> BusError {
    move |source| match fault(&source) {
        Some(Fault::Absent) => BusError::Absent { service, source },
        _ => BusError::Call {
            service,
            method,
            source,
        },
    }
}

/// Error replies that mean something to more than one caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// There is no such service.
    Absent,
    /// The service has no such method, interface, object or property.
    NotOffered,
    /// It has, but not with these arguments.
    BadArguments,
    /// The caller may not.
    Denied,
}

fn fault(error: &zbus::Error) -> Option<Fault> {
    use fdo::Error as E;
    let zbus::Error::FDO(error) = error else {
        return None;
    };
    match **error {
        E::ServiceUnknown(_) | E::NameHasNoOwner(_) => Some(Fault::Absent),
        E::UnknownMethod(_)
        | E::UnknownInterface(_)
        | E::UnknownObject(_)
        | E::UnknownProperty(_) => Some(Fault::NotOffered),
        E::InvalidArgs(_) => Some(Fault::BadArguments),
        E::AccessDenied(_) | E::AuthFailed(_) | E::InteractiveAuthorizationRequired(_) => {
            Some(Fault::Denied)
        }
        _ => None,
    }
}

/// Name and text of an error reply; `None` when nobody replied.
fn reply(error: &zbus::Error) -> Option<(String, String)> {
    match error {
        zbus::Error::MethodError(name, text, _) => {
            Some((name.to_string(), text.clone().unwrap_or_default()))
        }
        zbus::Error::FDO(error) => {
            let text = error.description().unwrap_or_default().to_owned();
            Some((error.name().to_string(), text))
        }
        _ => None,
    }
}
