//! update_engine: what it is doing, and when that may have changed.
//!
//! A signal is only a hint to ask again. Any local user may send signals on the
//! system bus, so only those of the name's owner count, and even their content
//! is not believed: the answer to `GetStatus` is.

use futures_util::StreamExt;
use serde::Deserialize;
use tokio::sync::watch;
use zbus::{Type, as_variant, proxy};

use super::hints::Patience;
use super::{Bus, BusError, Fault, Hints, called, fault};

const SERVICE: &str = "com.coreos.update1";
/// Texts of an answer are not longer; versions and operations are short words.
const MAX_TEXT: usize = 1024;

#[proxy(
    interface = "com.coreos.update1.Manager",
    default_service = "com.coreos.update1",
    default_path = "/com/coreos/update1"
)]
trait Manager {
    #[zbus(signal)]
    fn status_update(&self);
}

#[proxy(
    interface = "com.coreos.update1.Details",
    default_service = "com.coreos.update1",
    default_path = "/com/coreos/update1"
)]
trait Details {
    fn get_details(&self) -> zbus::Result<DetailsDict>;
}

/// The one key of the details that matters here; the others are skipped.
#[derive(Debug, Default, Deserialize, Type)]
#[zbus(signature = "a{sv}")]
#[serde(rename_all = "kebab-case", default)]
struct DetailsDict {
    #[serde(with = "as_variant::optional")]
    current_version: Option<String>,
}

/// The answer to `GetStatus`.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    /// Unix time of the last check, in seconds; 0 is never.
    pub last_checked_time: i64,
    /// 0 to 1 during a download.
    pub progress: f64,
    /// `UPDATE_STATUS_IDLE` and its like.
    pub operation: String,
    /// Version of the update that is being installed or was.
    pub new_version: String,
    /// Its bytes.
    pub new_size: i64,
}

impl Status {
    /// Whether an update is applied and waits for a reboot.
    #[must_use]
    pub fn needs_reboot(&self) -> bool {
        self.operation == "UPDATE_STATUS_UPDATED_NEED_REBOOT"
    }
}

/// update_engine on a bus: ours or the original.
#[derive(Debug, Clone)]
pub struct Updater {
    bus: Bus,
}

impl Updater {
    /// update_engine on this bus.
    #[must_use]
    pub fn new(bus: &Bus) -> Self {
        Self { bus: bus.clone() }
    }

    /// Asks for the status.
    ///
    /// # Errors
    ///
    /// There is no bus or no update_engine on it, or its answer cannot be read.
    pub async fn status(&self) -> Result<Status, BusError> {
        const METHOD: &str = "GetStatus";
        let failed = called(SERVICE, METHOD);
        let connection = self.bus.connection().await?;
        let manager = ManagerProxy::new(&connection).await.map_err(&failed)?;
        let answer = manager.inner().call_method(METHOD, &()).await;
        let answer = answer.map_err(&failed)?;
        let strange = |what| BusError::Answer {
            service: SERVICE,
            method: METHOD,
            what,
        };
        let body = answer.body();
        // Values behind these five are for others.
        if !body.signature().to_string_no_parens().starts_with("xdssx") {
            return Err(strange("values of other types"));
        }
        let (last_checked_time, progress, operation, new_version, new_size): (
            i64,
            f64,
            String,
            String,
            i64,
        ) = body.deserialize_ignore_signature().map_err(&failed)?;
        if operation.len().max(new_version.len()) > MAX_TEXT {
            return Err(strange("a text of more than 1 KiB"));
        }
        Ok(Status {
            last_checked_time,
            progress,
            operation,
            new_version,
            new_size,
        })
    }

    /// The version that runs, as our update_engine tells it; `None` from the
    /// original and for who may not ask.
    ///
    /// # Errors
    ///
    /// As [`Updater::status`].
    pub async fn current_version(&self) -> Result<Option<String>, BusError> {
        let failed = called(SERVICE, "GetDetails");
        let connection = self.bus.connection().await?;
        let details = DetailsProxy::new(&connection).await.map_err(&failed)?;
        match details.get_details().await {
            Ok(dict) => Ok(dict.current_version.filter(|text| text.len() <= MAX_TEXT)),
            Err(error) => match fault(&error) {
                Some(Fault::NotOffered | Fault::Denied) => Ok(None),
                _ => Err(failed(error)),
            },
        }
    }

    /// Watches for changes of the status: a hint comes after a signal of
    /// update_engine, when it came or went, and when the bus was lost or found,
    /// since nothing was heard meanwhile. None comes for a signal of anybody
    /// else.
    #[must_use]
    pub fn hints(&self) -> Hints {
        let bus = self.bus.clone();
        Hints::from(|tell| async move {
            let mut patience = Patience::new("updates");
            loop {
                let lost = watch(&bus, &tell, &mut patience).await;
                patience.lost(lost).await;
            }
        })
    }
}

/// Watches until the connection is lost.
async fn watch(
    bus: &Bus,
    tell: &watch::Sender<()>,
    patience: &mut Patience,
) -> Result<(), BusError> {
    let failed = called(SERVICE, "StatusUpdate");
    let connection = bus.connection().await?;
    let manager = ManagerProxy::new(&connection).await.map_err(&failed)?;
    // The stream follows the owner of the name and drops what others send, to
    // all or to us alone.
    let mut signals = manager.receive_status_update().await.map_err(&failed)?;
    let owners = manager.inner().receive_owner_changed().await;
    let mut owners = owners.map_err(&failed)?;
    patience.listens();
    let mut open = true;
    while open {
        // The first round too: nobody listened before.
        tell.send_replace(());
        open = tokio::select! {
            () = connection.closed() => false,
            signal = signals.next() => signal.is_some(),
            owner = owners.next() => owner.is_some(),
        };
    }
    tell.send_replace(());
    Ok(())
}
