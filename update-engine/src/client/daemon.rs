//! The daemon at the other end of the bus: ours, or the original, which has
//! only the first of the two interfaces.

use std::time::Duration;

use futures_util::{Stream, StreamExt};
use tokio::time::timeout;
use zbus::connection::Builder;
use zbus::fdo::{self, DBusProxy};
use zbus::{Connection, proxy};

use super::ClientError;
use super::report::{StatusLine, say};
use crate::bus::{DetailsDict, NAME};
use crate::status::{Details, Operation};

/// Tries to find the daemon, as the original.
const TRIES: u32 = 4;

/// The usual patience of D-Bus callers. Our daemon answers at once; the
/// original does not while it writes.
const CALL_TIMEOUT: Duration = Duration::from_secs(25);

#[proxy(
    interface = "com.coreos.update1.Manager",
    default_service = "com.coreos.update1",
    default_path = "/com/coreos/update1"
)]
trait Manager {
    fn attempt_update(&self) -> zbus::Result<()>;
    fn reset_status(&self) -> zbus::Result<()>;
    fn get_status(&self) -> zbus::Result<(i64, f64, String, String, i64)>;

    #[zbus(signal)]
    fn status_update(
        &self,
        last_checked_time: i64,
        progress: f64,
        current_operation: String,
        new_version: String,
        new_size: i64,
    );
}

#[proxy(
    interface = "com.coreos.update1.Details",
    default_service = "com.coreos.update1",
    default_path = "/com/coreos/update1"
)]
trait DetailsInterface {
    fn get_details(&self) -> zbus::Result<DetailsDict>;
    fn cancel(&self) -> zbus::Result<()>;
}

/// A daemon that was there when it was looked for.
pub(super) struct Daemon {
    manager: ManagerProxy<'static>,
    details: DetailsInterfaceProxy<'static>,
}

impl Daemon {
    /// Connects to the bus (`None`: the system bus) and waits for the daemon to
    /// own its name: [`TRIES`] looks, `pause` apart, cut short when it appears.
    pub(super) async fn find(address: Option<&str>, pause: Duration) -> Result<Self, ClientError> {
        let connection = match address {
            Some(address) => Builder::address(address),
            None => Builder::system(),
        }
        .method_timeout(CALL_TIMEOUT)
        .build()
        .await
        .map_err(|source| ClientError::Connect {
            address: address.unwrap_or("the system bus").to_owned(),
            source,
        })?;
        let daemon = Self {
            manager: ManagerProxy::new(&connection)
                .await
                .map_err(called("Manager"))?,
            details: DetailsInterfaceProxy::new(&connection)
                .await
                .map_err(called("Details"))?,
        };
        daemon.wait_for_owner(&connection, pause).await?;
        Ok(daemon)
    }

    async fn wait_for_owner(
        &self,
        connection: &Connection,
        pause: Duration,
    ) -> Result<(), ClientError> {
        let bus = DBusProxy::new(connection)
            .await
            .map_err(called("NameHasOwner"))?;
        let mut owners = Box::pin(self.owner_changes().await?);
        for attempt in 1..=TRIES {
            let name = NAME.try_into().expect("NAME is a bus name");
            if bus
                .name_has_owner(name)
                .await
                .map_err(|error| called("NameHasOwner")(error.into()))?
            {
                return Ok(());
            }
            if attempt < TRIES {
                say(format_args!(
                    "Waiting up to {} s for the update daemon: nobody owns {NAME} on the message \
                     bus (try {attempt} of {TRIES}). Is update-engine.service running?",
                    pause.as_secs_f64()
                ));
                // Whatever ends the wait, the next round looks.
                let _ = timeout(pause, owners.next()).await;
            }
        }
        Err(ClientError::NoDaemon { name: NAME })
    }

    pub(super) async fn status(&self) -> Result<StatusLine, ClientError> {
        let values = self.manager.get_status().await;
        values.map(Into::into).map_err(called("GetStatus"))
    }

    /// What the daemon does now; `None` when that cannot be told.
    pub(super) async fn operation(&self) -> Option<Operation> {
        let status = self.status().await.ok()?;
        Operation::from_bus(&status.current_operation)
    }

    /// `None` when the daemon has no details, or none for this user.
    pub(super) async fn details(&self) -> Result<Option<Details>, ClientError> {
        match self.details.get_details().await {
            Ok(dict) => Ok(Some(dict.into())),
            Err(error) if is_not_offered(&error) || is_denied(&error) => Ok(None),
            Err(error) => Err(called("GetDetails")(error)),
        }
    }

    /// Status and details; the details are never older than the status.
    pub(super) async fn look(&self) -> Result<(StatusLine, Option<Details>), ClientError> {
        let status = self.status().await?;
        Ok((status, self.details().await?))
    }

    pub(super) async fn attempt_update(&self) -> Result<(), ClientError> {
        let done = self.manager.attempt_update().await;
        done.map_err(called("AttemptUpdate"))
    }

    pub(super) async fn reset_status(&self) -> Result<(), ClientError> {
        let done = self.manager.reset_status().await;
        done.map_err(called("ResetStatus"))
    }

    pub(super) async fn cancel(&self) -> Result<(), ClientError> {
        self.details.cancel().await.map_err(|error| {
            if is_not_offered(&error) {
                ClientError::NotOffered { method: "Cancel" }
            } else {
                called("Cancel")(error)
            }
        })
    }

    /// The status in each signal; ends with the connection.
    pub(super) async fn status_updates(
        &self,
    ) -> Result<impl Stream<Item = StatusLine> + Unpin + use<>, ClientError> {
        let signals = self
            .manager
            .receive_status_update()
            .await
            .map_err(called("StatusUpdate"))?;
        Ok(Box::pin(signals.filter_map(async |signal| {
            // A signal of another shape is not for us.
            let body: (i64, f64, String, String, i64) =
                signal.message().body().deserialize().ok()?;
            Some(StatusLine::from(body))
        })))
    }

    /// Whether the daemon is there, each time that changes; ends with the
    /// connection.
    pub(super) async fn owner_changes(
        &self,
    ) -> Result<impl Stream<Item = bool> + Unpin + use<>, ClientError> {
        let owners = self
            .manager
            .inner()
            .receive_owner_changed()
            .await
            .map_err(called("NameOwnerChanged"))?;
        Ok(owners.map(|owner| owner.is_some()))
    }
}

fn called(method: &'static str) -> impl Fn(zbus::Error) -> ClientError {
    move |source| ClientError::Call { method, source }
}

fn is_not_offered(error: &zbus::Error) -> bool {
    use fdo::Error::{UnknownInterface, UnknownMethod, UnknownObject};
    matches!(error, zbus::Error::FDO(inner)
        if matches!(**inner, UnknownMethod(_) | UnknownInterface(_) | UnknownObject(_)))
}

fn is_denied(error: &zbus::Error) -> bool {
    matches!(error, zbus::Error::FDO(inner) if matches!(**inner, fdo::Error::AccessDenied(_)))
}
