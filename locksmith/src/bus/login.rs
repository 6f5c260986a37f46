//! logind: who is logged in, who holds a reboot up, and the reboot itself.
//!
//! The reply to a reboot is read: a lock or a policy that forbids it is an
//! error that says who and why. When to reboot, and what to do about a refusal,
//! is decided elsewhere.

use std::fmt;

use futures_util::StreamExt;
use tokio::sync::watch;
use tracing::{debug, warn};
use zbus::proxy::CacheProperties;
use zbus::wire::OwnedObjectPath;
use zbus::{Connection, proxy};

use super::hints::Patience;
use super::{Bus, BusError, Fault, Hints, Systemd, called, fault, reply};
use crate::semaphore::Mode;
use crate::words::words;

const SERVICE: &str = "org.freedesktop.login1";

// Flags of RebootWithFlags, from systemd's sd-login interface.
/// Up to systemd 256 root passes blocking locks unless it asks not to.
const ROOT_CHECKS_INHIBITORS: u64 = 0x01;
const KEXEC: u64 = 0x02;
const SOFT: u64 = 0x04;
/// From systemd 257 on root is held by them unless it asks not to be.
const SKIP_INHIBITORS: u64 = 0x10;

#[proxy(
    interface = "org.freedesktop.login1.Manager",
    default_service = "org.freedesktop.login1",
    default_path = "/org/freedesktop/login1"
)]
trait Manager {
    fn reboot(&self, interactive: bool) -> zbus::Result<()>;
    fn reboot_with_flags(&self, flags: u64) -> zbus::Result<()>;
    /// What, who, why, mode, user id, process id.
    fn list_inhibitors(&self) -> zbus::Result<Vec<(String, String, String, String, u32, u32)>>;
    /// Id, user id, user, seat, path.
    fn list_sessions(&self) -> zbus::Result<Vec<(String, u32, String, String, OwnedObjectPath)>>;
    fn set_wall_message(&self, message: &str, enable: bool) -> zbus::Result<()>;

    #[zbus(property)]
    fn wall_message(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn enable_wall_messages(&self) -> zbus::Result<bool>;
    #[zbus(property)]
    fn preparing_for_shutdown(&self) -> zbus::Result<bool>;
    #[zbus(signal)]
    fn prepare_for_shutdown(&self, begins: bool);
}

#[proxy(
    interface = "org.freedesktop.login1.Session",
    default_service = "org.freedesktop.login1"
)]
trait SessionInterface {
    #[zbus(property)]
    fn class(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn state(&self) -> zbus::Result<String>;
    #[zbus(property, name = "TTY")]
    fn tty(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn remote(&self) -> zbus::Result<bool>;
}

/// What to do about locks that block a reboot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inhibition {
    /// They hold the reboot up, whatever the version of systemd.
    Respect,
    /// They do not, as far as the machine's policy lets us.
    Override,
}

/// A lock that blocks a shutdown, as `systemd-inhibit --list` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inhibitor {
    /// The program that took it, in its own words.
    pub who: String,
    /// Its reason, in its own words.
    pub why: String,
    /// Its user.
    pub user_id: u32,
    /// Its process.
    pub process_id: u32,
}

impl fmt::Display for Inhibitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            who,
            why,
            process_id,
            ..
        } = self;
        write!(f, "{who} (process {process_id}): {why}")
    }
}

/// Somebody who is logged in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// The user's name.
    pub user: String,
    /// The terminal without `/dev/`, such as `pts/0`; `None` for a remote
    /// session without one.
    pub tty: Option<String>,
}

/// Why the machine does not reboot.
#[derive(Debug, thiserror::Error)]
pub enum RefusedReboot {
    /// Locks block it.
    #[error("the reboot is inhibited{}", by_whom(.0))]
    Inhibited(Vec<Inhibitor>),
    /// The machine's policy forbids it to this user.
    #[error("the reboot is forbidden by policy: {0}; run as root")]
    Denied(String),
    /// Another shutdown is under way already.
    #[error("another shutdown or sleep is under way: {0}")]
    UnderWay(String),
    /// The running systemd has no such way to reboot.
    #[error("this system cannot reboot by {}", crate::reboot::word(*.0))]
    NotOffered(Mode),
    /// logind cannot be asked.
    #[error(transparent)]
    Bus(#[from] BusError),
}

fn by_whom(inhibitors: &[Inhibitor]) -> String {
    let separators = std::iter::once(" by ").chain(std::iter::repeat(", "));
    separators
        .zip(inhibitors)
        .map(|(separator, inhibitor)| format!("{separator}{inhibitor}"))
        .collect()
}

/// logind on a bus.
#[derive(Debug, Clone)]
pub struct Login {
    bus: Bus,
}

impl Login {
    /// logind on this bus.
    #[must_use]
    pub fn new(bus: &Bus) -> Self {
        Self { bus: bus.clone() }
    }

    /// The locks that block a shutdown, in logind's order. Locks that only
    /// delay it, or that only bind users without rights, are not among them.
    ///
    /// # Errors
    ///
    /// logind cannot be asked.
    pub async fn inhibitors(&self) -> Result<Vec<Inhibitor>, BusError> {
        let (_, manager) = self.manager().await?;
        let listed = manager.list_inhibitors().await;
        let listed = listed.map_err(called(SERVICE, "ListInhibitors"))?;
        Ok(listed
            .into_iter()
            .filter(|(what, _, _, mode, ..)| {
                mode == "block" && what.split(':').any(|word| word == "shutdown")
            })
            .map(|(_, who, why, _, user_id, process_id)| Inhibitor {
                who,
                why,
                user_id,
                process_id,
            })
            .collect())
    }

    /// The people who are logged in: sessions of class `user` that have a
    /// terminal or come from elsewhere, but those that are ending. Services,
    /// greeters and timers have sessions too and are not among them.
    ///
    /// # Errors
    ///
    /// logind cannot be asked.
    pub async fn sessions(&self) -> Result<Vec<Session>, BusError> {
        let (connection, manager) = self.manager().await?;
        let listed = manager.list_sessions().await;
        let listed = listed.map_err(called(SERVICE, "ListSessions"))?;
        let mut sessions = Vec::new();
        for (id, _, user, _, path) in listed {
            match person_in(&connection, path).await {
                Ok(Some(tty)) => sessions.push(Session {
                    user,
                    tty: Some(tty).filter(|tty| !tty.is_empty()),
                }),
                Ok(None) => {}
                // It has ended since it was listed.
                Err(error) if fault(&error) == Some(Fault::NotOffered) => {
                    debug!(session = id, "session is gone");
                }
                Err(error) => return Err(called(SERVICE, "GetSession")(error)),
            }
        }
        Ok(sessions)
    }

    /// Reboots, or says why not. `why` is what logind tells the people who are
    /// logged in. Ok means that logind has accepted; [`Login::shutdowns`] tells
    /// that it begins.
    ///
    /// Locks are looked for first, so that an old logind, which lets root pass,
    /// does not reboot either.
    ///
    /// # Errors
    ///
    /// Why the machine does not reboot.
    pub async fn reboot(
        &self,
        mode: Mode,
        inhibition: Inhibition,
        why: &str,
    ) -> Result<(), RefusedReboot> {
        let (_, manager) = self.manager().await?;
        if inhibition == Inhibition::Respect {
            let inhibitors = self.inhibitors().await?;
            if !inhibitors.is_empty() {
                return Err(RefusedReboot::Inhibited(inhibitors));
            }
        }
        let wall = Wall::set(&manager, why).await;
        match self.ask(&manager, mode, inhibition).await {
            Ok(()) => Ok(()),
            Err(refused) => {
                wall.restore(&manager).await;
                Err(refused)
            }
        }
    }

    async fn ask(
        &self,
        manager: &ManagerProxy<'_>,
        mode: Mode,
        inhibition: Inhibition,
    ) -> Result<(), RefusedReboot> {
        let way = match mode {
            Mode::Firmware => 0,
            Mode::Kexec => KEXEC,
            Mode::Soft => SOFT,
        };
        let locks: &[u64] = match inhibition {
            Inhibition::Respect => &[ROOT_CHECKS_INHIBITORS],
            // Before systemd 257 the flag is unknown and not needed.
            Inhibition::Override => &[SKIP_INHIBITORS, 0],
        };
        for flags in locks {
            let error = match manager.reboot_with_flags(way | flags).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            match fault(&error) {
                // systemd before 246.
                Some(Fault::NotOffered) => break,
                Some(Fault::BadArguments) => {}
                _ => return self.refusal(error, "RebootWithFlags").await,
            }
        }
        let target = match mode {
            Mode::Firmware => {
                let done = manager.reboot(false).await;
                return match done {
                    Ok(()) => Ok(()),
                    Err(error) => self.refusal(error, "Reboot").await,
                };
            }
            Mode::Kexec => "kexec.target",
            Mode::Soft => "soft-reboot.target",
        };
        match Systemd::new(&self.bus).end_by(target).await? {
            true => Ok(()),
            false => Err(RefusedReboot::NotOffered(mode)),
        }
    }

    /// What an error reply to a reboot means. No reply is no refusal: the machine
    /// may be going down, and whoever gave its place back would let another one
    /// follow. It counts as begun, until it is seen that nothing happens.
    async fn refusal(&self, error: zbus::Error, call: &'static str) -> Result<(), RefusedReboot> {
        const SILENCE: [&str; 4] = [
            "org.freedesktop.DBus.Error.NoReply",
            "org.freedesktop.DBus.Error.Timeout",
            "org.freedesktop.DBus.Error.TimedOut",
            "org.freedesktop.DBus.Error.Disconnected",
        ];
        let (name, text) = match reply(&error) {
            Some((name, text)) if !SILENCE.contains(&name.as_str()) => (name, text),
            _ => {
                warn!(
                    error = words(&error),
                    "logind did not answer; the machine may be going down"
                );
                return Ok(());
            }
        };
        Err(match name.as_str() {
            "org.freedesktop.login1.BlockedByInhibitorLock" => {
                // Taken since they were listed, or of a kind that we do not list.
                RefusedReboot::Inhibited(self.inhibitors().await.unwrap_or_default())
            }
            "org.freedesktop.login1.OperationInProgress" => RefusedReboot::UnderWay(text),
            _ if fault(&error) == Some(Fault::Denied) => RefusedReboot::Denied(text),
            _ => RefusedReboot::Bus(called(SERVICE, call)(error)),
        })
    }

    /// Watches for shutdowns, whoever asked for them: a hint comes when logind,
    /// and nobody else, says that one has begun.
    #[must_use]
    pub fn shutdowns(&self) -> Hints {
        let login = self.clone();
        Hints::from(|tell| async move {
            let mut patience = Patience::new("shutdowns");
            let mut is_begun = false;
            loop {
                // A bus that ends is part of a shutdown: the last word stands.
                let lost = login.watch(&tell, &mut is_begun, &mut patience).await;
                patience.lost(lost).await;
            }
        })
    }

    /// Watches until the connection is lost.
    async fn watch(
        &self,
        tell: &watch::Sender<()>,
        is_begun: &mut bool,
        patience: &mut Patience,
    ) -> Result<(), BusError> {
        let failed = called(SERVICE, "PrepareForShutdown");
        let (connection, manager) = self.manager().await?;
        // The stream follows the owner of the name and drops what others send.
        let signals = manager.receive_prepare_for_shutdown().await;
        let mut signals = signals.map_err(&failed)?;
        let owners = manager.inner().receive_owner_changed().await;
        let mut owners = owners.map_err(&failed)?;
        patience.listens();
        // Nobody listened before; without logind nothing has begun.
        let mut begins = manager.preparing_for_shutdown().await.unwrap_or(false);
        loop {
            if begins && !*is_begun {
                tell.send_replace(());
            }
            *is_begun = begins;
            begins = tokio::select! {
                () = connection.closed() => return Ok(()),
                signal = signals.next() => match signal {
                    Some(signal) => signal.args().map_or(*is_begun, |args| args.begins),
                    None => return Ok(()),
                },
                owner = owners.next() => match owner {
                    Some(_) => manager.preparing_for_shutdown().await.unwrap_or(*is_begun),
                    None => return Ok(()),
                },
            };
        }
    }

    async fn manager(&self) -> Result<(Connection, ManagerProxy<'static>), BusError> {
        let connection = self.bus.connection().await?;
        let manager = ManagerProxy::builder(&connection)
            .cache_properties(CacheProperties::No)
            .build()
            .await
            .map_err(called(SERVICE, "Manager"))?;
        Ok((connection, manager))
    }
}

/// The terminal of the person in a session, empty when there is none; `None`
/// when nobody is in it.
async fn person_in(connection: &Connection, path: OwnedObjectPath) -> zbus::Result<Option<String>> {
    let session = SessionInterfaceProxy::builder(connection)
        .path(path)
        .cache_properties(CacheProperties::No)
        .build()
        .await?;
    let class = session.class().await?;
    // Newer versions have kinds of it, such as user-light.
    if class != "user" && !class.starts_with("user-") || session.state().await? == "closing" {
        return Ok(None);
    }
    let tty = session.tty().await?;
    Ok((!tty.is_empty() || session.remote().await?).then_some(tty))
}

/// What logind would have told at a shutdown before us, to be restored when
/// there is none.
struct Wall {
    message: String,
    enabled: bool,
}

impl Wall {
    /// For information only: failing to tell does not keep from rebooting.
    async fn set(manager: &ManagerProxy<'_>, why: &str) -> Self {
        let before = Self {
            message: manager.wall_message().await.unwrap_or_default(),
            enabled: manager.enable_wall_messages().await.unwrap_or(false),
        };
        if let Err(error) = manager.set_wall_message(why, true).await {
            debug!(%error, "logind takes no message");
        }
        before
    }

    async fn restore(&self, manager: &ManagerProxy<'_>) {
        if let Err(error) = manager.set_wall_message(&self.message, self.enabled).await {
            debug!(%error, "logind keeps our message");
        }
    }
}
