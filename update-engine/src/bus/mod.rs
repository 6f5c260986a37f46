//! The daemon's face on D-Bus: `com.coreos.update1`, as the original's clients
//! (locksmithd, the Kubernetes update operators, scripts) know it, and a second
//! interface for what the original never told.
//!
//! [`Service`] shows the engine's [`Snapshot`]s and queues [`Command`]s; it
//! decides nothing about updates and never waits for an install, so a method
//! answers at once whatever the engine does.

mod details;
mod manager;
pub(crate) mod systemd;
mod throttle;

pub use details::DetailsDict;

use std::future::pending;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::sync::{oneshot, watch};
use tracing::{info, warn};
use zbus::connection::Builder;
use zbus::fdo::{self, DBusProxy, RequestNameFlags};
use zbus::object_server::SignalEmitter;
use zbus::{Connection, DBusError};

use crate::status::{Command, Snapshot};
use details::DetailsInterface;
use manager::Manager;
use throttle::Throttle;

/// The well-known name on the system bus.
pub const NAME: &str = "com.coreos.update1";
/// The one object.
pub const PATH: &str = "/com/coreos/update1";
/// The original's interface.
pub const MANAGER_INTERFACE: &str = "com.coreos.update1.Manager";
/// Our addition on the same object.
pub const DETAILS_INTERFACE: &str = "com.coreos.update1.Details";

/// For how long the engine may take to answer `ResetStatus` while it is not
/// busy; more means that it hangs.
const ENGINE_ANSWER: Duration = Duration::from_secs(5);

/// Why the service cannot start, or why it ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BusError {
    /// There is no bus at the address, or it does not let us in.
    #[error("connect to the message bus at {address}")]
    Connect {
        /// The address as it was given, or what stands for it.
        address: String,
        /// What the transport said.
        source: zbus::Error,
    },
    /// Another process owns the name: a second daemon must not run.
    #[error("{NAME} is already owned by {owner}")]
    NameTaken {
        /// Unique name, and process id and user id where the bus tells.
        owner: String,
    },
    /// The bus policy forbids owning the name.
    #[error(
        "the bus does not let this process own {NAME}: run it as root, with the policy \
         com.coreos.update1.conf in /usr/share/dbus-1/system.d or /etc/dbus-1/system.d"
    )]
    NameRefused(#[source] zbus::Error),
    /// Any other failure while taking the name.
    #[error("request the bus name {NAME}")]
    RequestName(#[source] zbus::Error),
    /// The bus went away. The daemon should end, so that its supervisor starts
    /// it again when there is a bus.
    #[error("the message bus closed the connection")]
    Closed,
}

/// A running service: connected, answering, and owner of [`NAME`].
#[derive(Debug)]
pub struct Service {
    connection: Connection,
    snapshots: watch::Receiver<Snapshot>,
}

impl Service {
    /// Connects to the bus at `address` (`None`: the system bus, for which
    /// `DBUS_SYSTEM_BUS_ADDRESS` may speak), offers both interfaces and becomes
    /// the primary owner of [`NAME`] without queueing.
    ///
    /// # Errors
    ///
    /// No bus, no right to the name, or somebody else has it.
    pub async fn connect(
        address: Option<&str>,
        snapshots: watch::Receiver<Snapshot>,
        commands: mpsc::Sender<Command>,
    ) -> Result<Self, BusError> {
        let engine = Engine {
            snapshots: snapshots.clone(),
            commands,
        };
        // Interfaces first: whoever sees the name can call it.
        let connection = match address {
            Some(address) => Builder::address(address),
            None => Builder::system(),
        }
        .serve_at(PATH, Manager::new(engine.clone()))
        .serve_at(PATH, DetailsInterface::new(engine))
        .build()
        .await
        .map_err(|source| BusError::Connect {
            address: address.unwrap_or("the system bus").to_owned(),
            source,
        })?;
        own_name(&connection).await?;
        info!(name = NAME, path = PATH, "serving on the message bus");
        Ok(Self {
            connection,
            snapshots,
        })
    }

    /// Emits `StatusUpdate` now and on every change (throttled while payload
    /// bytes arrive), until the bus closes the connection. States that pass
    /// more quickly than the bus takes a signal are skipped, the last is not.
    ///
    /// Methods are answered from the moment of [`Service::connect`], whether
    /// this runs or not. When the engine has dropped its end, nothing more is
    /// emitted and methods answer with an error.
    pub async fn run(mut self) -> BusError {
        let emitter = SignalEmitter::new(&self.connection, PATH).expect("PATH is an object path");
        let mut throttle = Throttle::default();
        self.snapshots.mark_changed();
        loop {
            tokio::select! {
                () = self.connection.closed() => return BusError::Closed,
                () = changed_or_never(&mut self.snapshots) => {}
            }
            let snapshot = self.snapshots.borrow_and_update().clone();
            if throttle.admits(&snapshot, Instant::now())
                && let Err(error) = manager::announce(&emitter, &snapshot.status).await
            {
                // A lost bus ends the loop by itself.
                warn!(%error, "status signal not sent");
            }
        }
    }
}

/// [`Service::connect`] and [`Service::run`] in one; comes back only with the
/// reason why there is no service any more.
pub async fn serve(
    address: Option<&str>,
    snapshots: watch::Receiver<Snapshot>,
    commands: mpsc::Sender<Command>,
) -> BusError {
    match Service::connect(address, snapshots, commands).await {
        Ok(service) => service.run().await,
        Err(error) => error,
    }
}

/// The engine as the methods see it.
#[derive(Debug, Clone)]
struct Engine {
    snapshots: watch::Receiver<Snapshot>,
    commands: mpsc::Sender<Command>,
}

impl Engine {
    /// The newest snapshot; the last one of an engine that has gone would be a
    /// lie.
    fn snapshot(&self) -> Result<Snapshot, MethodError> {
        if self.snapshots.has_changed().is_err() {
            return Err(MethodError::engine_stopped());
        }
        Ok(self.snapshots.borrow().clone())
    }

    /// Queues a command whose effect nobody waits for.
    fn command(&self, command: Command) -> Result<(), MethodError> {
        self.commands
            .try_send(command)
            .map_err(|error| match error {
                TrySendError::Full(_) => MethodError::engine_busy(),
                TrySendError::Closed(_) => MethodError::engine_stopped(),
            })
    }

    async fn reset_status(&self) -> Result<(), MethodError> {
        // Refused from here while an attempt runs: no caller waits for it.
        if !self.snapshot()?.status.operation.accepts_reset() {
            return Err(MethodError::reset_refused());
        }
        let (answer, allowed) = oneshot::channel();
        let ask = async {
            let sent = self.commands.send(Command::ResetStatus(answer)).await;
            sent.map_err(|_| MethodError::engine_stopped())?;
            if allowed.await.unwrap_or(false) {
                Ok(())
            } else {
                Err(MethodError::reset_refused())
            }
        };
        tokio::time::timeout(ENGINE_ANSWER, ask)
            .await
            .unwrap_or_else(|_| Err(MethodError::engine_silent()))
    }
}

/// What a caller gets instead of an answer.
#[derive(Debug, PartialEq, DBusError)]
#[zbus(prefix = "org.freedesktop.DBus")]
enum MethodError {
    /// `ResetStatus` in the middle of an attempt. Name and text are those that
    /// dbus-glib made up for the original, and callers may know them.
    #[zbus(name = "GLib.ErrorError")]
    ResetRefused(String),
    #[zbus(name = "Error.Failed")]
    EngineStopped(String),
    #[zbus(name = "Error.LimitsExceeded")]
    EngineBusy(String),
    #[zbus(name = "Error.TimedOut")]
    EngineSilent(String),
}

impl MethodError {
    fn reset_refused() -> Self {
        Self::ResetRefused(
            "Method invoked for ResetStatus returned FALSE but did not set error".to_owned(),
        )
    }

    fn engine_stopped() -> Self {
        Self::EngineStopped("the update engine has stopped; its daemon is ending".to_owned())
    }

    fn engine_busy() -> Self {
        Self::EngineBusy("the update engine has not taken the earlier requests yet".to_owned())
    }

    fn engine_silent() -> Self {
        Self::EngineSilent(format!(
            "the update engine did not answer within {} s",
            ENGINE_ANSWER.as_secs()
        ))
    }
}

async fn own_name(connection: &Connection) -> Result<(), BusError> {
    let flags = RequestNameFlags::DO_NOT_QUEUE;
    match connection.request_name_with_flags(NAME, flags).await {
        Ok(_) => Ok(()),
        Err(zbus::Error::NameTaken) => Err(BusError::NameTaken {
            owner: describe_owner(connection).await,
        }),
        Err(error) if is_access_denied(&error) => Err(BusError::NameRefused(error)),
        Err(error) => Err(BusError::RequestName(error)),
    }
}

/// Names the owner of [`NAME`] as well as the bus can tell.
async fn describe_owner(connection: &Connection) -> String {
    let ask = async {
        let bus = DBusProxy::new(connection).await?;
        let name = NAME.try_into()?;
        let owner = bus.get_name_owner(name).await?;
        let credentials = bus.get_connection_credentials((&owner).into()).await?;
        let mut text = format!("connection {owner}");
        if let Some(process) = credentials.process_id() {
            text += &format!(", process {process}");
        }
        if let Some(user) = credentials.unix_user_id() {
            text += &format!(", user id {user}");
        }
        Ok::<_, zbus::Error>(text)
    };
    ask.await
        .unwrap_or_else(|_| "another connection".to_owned())
}

fn is_access_denied(error: &zbus::Error) -> bool {
    matches!(error, zbus::Error::FDO(inner) if matches!(**inner, fdo::Error::AccessDenied(_)))
}

async fn changed_or_never(snapshots: &mut watch::Receiver<Snapshot>) {
    if snapshots.changed().await.is_err() {
        pending::<()>().await;
    }
}
