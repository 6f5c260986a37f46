//! [`Machine`] for the machine that the daemon runs on.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use gptprio::machine::Root;
use jiff::ZonedDateTime;
use tracing::{info, warn};

use super::machine::{Hint, Machine};
use crate::boot_facts::{self, BOOT_COMPLETE, SlotMark};
use crate::bus::{Hints, Inhibition, Login, RefusedReboot, Systemd, Updater};
use crate::coordinator::{Applied, Health, Published};
use crate::coordinator_conf::{CoordinatorConf, State};
use crate::fleetlock::client::FleetLockClient;
use crate::fleetlock::protocol::Api;
use crate::hooks::{self, Context, Phase};
use crate::metrics::Metrics;
use crate::reboot::{Begun, Rebooter, wall};
use crate::semaphore::Mode;
use crate::words::words;

/// An update that wants a restart of user space alone leaves this file.
const SOFT_REBOOT: &str = "/run/update-engine/soft-reboot";
/// By this file update_engine knows, in the same boot, that an update waits.
const APPLIED_MARKER: &str = "/run/update_engine_autoupdate_completed";
/// Stands while this machine may have a place, over reboots.
const HELD: &str = "/var/lib/locksmith/held";
/// What logind tells the people who are logged in.
const WHY: &str = "locksmithd reboots the machine into an update";

/// This machine: its neighbours on the bus, its files, its programs.
pub(super) struct Host {
    pub(super) root: Root,
    pub(super) updater: Updater,
    pub(super) login: Login,
    pub(super) systemd: Systemd,
    pub(super) rebooter: Rebooter,
    pub(super) fleet_lock: Option<FleetLockClient>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) conf: Mutex<CoordinatorConf>,
    pub(super) programs: Programs,
    pub(super) inhibition: Inhibition,
    /// Version that runs; empty where no file tells it.
    pub(super) version: String,
    /// A reboot that was accepted and has not been seen to happen.
    pub(super) begun: Mutex<Option<Begun>>,
    /// The programs after the reboot have all succeeded in this boot.
    pub(super) proved: AtomicBool,
}

/// The operator's programs around a reboot.
#[derive(Debug, Clone)]
pub(super) struct Programs {
    pub(super) group: String,
    pub(super) before_dir: PathBuf,
    pub(super) after_dir: PathBuf,
    pub(super) timeout: Duration,
}

impl Programs {
    async fn run(&self, phase: Phase, from: &str, to: &str) -> Result<(), String> {
        let folder = match phase {
            Phase::BeforeReboot => &self.before_dir,
            Phase::AfterReboot => &self.after_dir,
        };
        let context = Context {
            phase,
            group: self.group.clone(),
            from_version: from.to_owned(),
            to_version: to.to_owned(),
        };
        match hooks::run(folder, &context, self.timeout).await {
            Ok(_) => Ok(()),
            Err(failure) => Err(words(&failure)),
        }
    }
}

impl Host {
    async fn read_applied(&self) -> Result<Option<Applied>, String> {
        let status = self.updater.status().await.map_err(|error| words(&error))?;
        if !status.needs_reboot() {
            return Ok(None);
        }
        Ok(Some(Applied {
            soft: self.exists(SOFT_REBOOT),
            version: status.new_version,
        }))
    }

    async fn warn(&self, delay: Duration) -> Result<bool, String> {
        if self.inhibition == Inhibition::Respect {
            // Now, and not when a place has been taken and programs have run.
            match self.login.inhibitors().await {
                Ok(inhibitors) if !inhibitors.is_empty() => {
                    return Err(words(&RefusedReboot::Inhibited(inhibitors)));
                }
                Ok(_) => {}
                Err(error) => warn!(error = words(&error), "cannot see what inhibits a reboot"),
            }
        }
        if delay.is_zero() {
            return Ok(false);
        }
        Ok(self.announce(delay).await)
    }

    async fn announce(&self, delay: Duration) -> bool {
        match self.login.sessions().await {
            Ok(sessions) => {
                let text = wall::announcement(&ZonedDateTime::now(), delay);
                let told = wall::write_to(&self.root, &sessions, &text);
                if !sessions.is_empty() {
                    info!(sessions = sessions.len(), told, "users are logged in");
                }
                !sessions.is_empty()
            }
            Err(error) => {
                // Somebody may be there, so the delay is kept.
                warn!(error = words(&error), "cannot see who is logged in");
                true
            }
        }
    }

    async fn check_health(&self, from: &str, to: &str) -> Health {
        // Cheap questions first; the operator's programs when all else is well.
        let good = match self.facts().await {
            Err(reason) => Err(reason),
            Ok(()) if self.proved.load(Ordering::Relaxed) => Ok(()),
            Ok(()) => self.programs.run(Phase::AfterReboot, from, to).await,
        };
        match good {
            Ok(()) => {
                self.proved.store(true, Ordering::Relaxed);
                Health::Good
            }
            Err(reason) => Health::NotYet(reason),
        }
    }

    /// What has nothing to do with the operator's programs.
    async fn facts(&self) -> Result<(), String> {
        match boot_facts::slot_mark(&self.root, self.rebooter.slot_type()) {
            Ok(SlotMark::Successful | SlotMark::NoSlots) => {}
            Ok(SlotMark::Unproven) => {
                return Err("the running slot is not marked successful yet".to_owned());
            }
            Err(error) => return Err(words(&error)),
        }
        match self.systemd.is_active(BOOT_COMPLETE).await {
            Ok(Some(false)) => Err(format!("{BOOT_COMPLETE} is not reached yet")),
            Ok(Some(true) | None) => Ok(()),
            Err(error) => Err(words(&error)),
        }
    }

    async fn begin_reboot(&self, mode: Mode) -> Result<(), String> {
        // Nothing slow comes before this call: the permission is for now.
        let asked = self.rebooter.reboot(mode, self.inhibition, WHY).await;
        let begun = asked.map_err(|error| words(&error))?;
        info!(mode = ?begun.mode(), "Reboot sent. Going to sleep.");
        if begun.mode() == Mode::Soft {
            // They would outlive the restart, and cause another one.
            for path in [APPLIED_MARKER, SOFT_REBOOT] {
                if let Err(error) = self.remove(path) {
                    warn!(path, %error, "cannot remove a mark of the update");
                }
            }
        }
        *lock(&self.begun) = Some(begun);
        Ok(())
    }

    async fn ask_fleet_lock(&self, take: bool) -> Result<(), String> {
        let Some(client) = &self.fleet_lock else {
            return Err("no FleetLock server is configured".to_owned());
        };
        let api = if take {
            Api::PreReboot
        } else {
            Api::SteadyState
        };
        let answer = client.ask(api).await;
        let kind = answer
            .as_ref()
            .map_or_else(|error| error.kind(), |()| "yes");
        self.metrics.fleetlock_asked(api, kind);
        answer.map_err(|error| words(&error))
    }

    fn exists(&self, path: &str) -> bool {
        self.root.path(path).is_ok_and(|path| path.exists())
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        match fs::remove_file(self.root.path(path)?) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

impl Machine for Host {
    fn applied(&self) -> BoxFuture<'_, Result<Option<Applied>, String>> {
        Box::pin(self.read_applied())
    }

    fn hints(&self) -> BoxStream<'static, Hint> {
        let updater = endless(self.updater.hints(), Hint::Updater);
        let login = endless(self.login.shutdowns(), Hint::ShuttingDown);
        stream::select(updater, login).boxed()
    }

    fn warn_users(&self, delay: Duration) -> BoxFuture<'_, Result<bool, String>> {
        Box::pin(self.warn(delay))
    }

    fn tell_users(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.announce(Duration::ZERO).await;
        })
    }

    fn drain<'a>(&'a self, to: &'a str) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(self.programs.run(Phase::BeforeReboot, &self.version, to))
    }

    fn health<'a>(&'a self, from: &'a str, to: &'a str) -> BoxFuture<'a, Health> {
        Box::pin(self.check_health(from, to))
    }

    fn reboot(&self, mode: Mode) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(self.begin_reboot(mode))
    }

    fn give_up_reboot(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let begun = lock(&self.begun).take();
            if let Some(begun) = begun {
                self.rebooter.give_up(begun).await;
            }
        })
    }

    fn fleet_lock(&self, take: bool) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(self.ask_fleet_lock(take))
    }

    fn publish(&self, state: Published) -> Result<(), String> {
        let state = match state {
            Published::Running => State::Running,
            Published::RebootPlanned => State::RebootPlanned,
            Published::Rebooting => State::Rebooting,
        };
        lock(&self.conf).set(state).map_err(|error| words(&error))
    }

    fn remember(&self, held: bool) -> Result<(), String> {
        let done = if held {
            remember_held(&self.root)
        } else {
            self.remove(HELD)
        };
        done.map_err(|error| words(&error))
    }
}

/// Whether this machine may have a place from before.
pub(super) fn remembers(root: &Root) -> bool {
    root.path(HELD).is_ok_and(|path| path.exists())
}

/// Remembers that this machine may have a place, so that the daemon gives it back
/// after the reboot whatever its strategy is.
///
/// # Errors
///
/// The file cannot be written.
pub(crate) fn remember_held(root: &Root) -> io::Result<()> {
    let path = root.path(HELD)?;
    if path.exists() {
        return Ok(());
    }
    let folder = path.parent().unwrap_or(&path);
    fs::create_dir_all(folder)?;
    File::create(&path)?.sync_all()?;
    File::open(folder)?.sync_all()
}

fn endless(hints: Hints, hint: Hint) -> impl stream::Stream<Item = Hint> + use<> {
    stream::unfold(hints, move |mut hints| async move {
        hints.next().await;
        Some((hint, hints))
    })
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // What is behind it is whole at any time.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
