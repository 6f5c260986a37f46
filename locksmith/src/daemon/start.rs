//! From settings to a running daemon: what is opened, in which order, and how it
//! ends.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result};
use gptprio::USR_TYPE;
use gptprio::machine::Root;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::host::{self, Host, Programs};
use super::run::Daemon;
use super::{log, membership};
use crate::boot_facts;
use crate::bus::{Bus, Login, Systemd, Updater};
use crate::config::{EtcdApi, Fragment, Listen, Loaded, Problems, Program, Settings};
use crate::coordinator::{Agent, Identity, Lock, Options, Window};
use crate::coordinator_conf::{self, CoordinatorConf};
use crate::fleetlock::client::{ClientOptions, FleetLockClient};
use crate::machine_id::MachineId;
use crate::metrics::{Endpoint, Measured, Metrics};
use crate::reboot::Rebooter;
use crate::semaphore::Look;
use crate::store::{SemaphoreStore, StoreError};
use crate::strategy::Strategy;
use crate::window::{Schedule, State};
use crate::words::words;

/// The name in `coordinator.conf`.
const NAME: &str = "locksmithd";
/// Units that run etcd, for the strategy `best-effort`.
const ETCD_UNITS: [&str; 4] = [
    "etcd.service",
    "etcd2.service",
    "etcd-member.service",
    "etcd3.service",
];
/// A place that is given back under the strategy `off` is tried for so long.
const OFF_LIMIT: Duration = Duration::from_secs(60 * 60);

/// What the command line says.
#[derive(Debug, Default)]
pub struct Arguments {
    /// Folder that stands for `/`.
    pub root: Option<PathBuf>,
    /// Message bus in place of the system's.
    pub bus: Option<String>,
    /// Flags that are settings.
    pub flags: Fragment,
}

/// Runs the daemon to its end.
#[must_use]
pub fn main(arguments: Arguments) -> ExitCode {
    run(start(arguments))
}

/// Runs one of the programs to its end and tells how it ended.
pub(super) fn run(program: impl Future<Output = Result<()>>) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("locksmithd: cannot start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(program) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            error!("{failure:#}");
            ExitCode::FAILURE
        }
    }
}

/// The machine, and its settings as `read` finds them; the log is started.
fn begin(
    arguments: &Arguments,
    read: impl FnOnce(&Root, Fragment) -> Result<Loaded, Problems>,
) -> Result<(Root, Result<Loaded, Problems>)> {
    let root = match &arguments.root {
        Some(dir) => Root::at(dir).context("cannot use -root"),
        None => Ok(Root::system()),
    };
    let loaded = root.map(|root| {
        let loaded = read(&root, arguments.flags.clone());
        (root, loaded)
    });
    let debug = |loaded: &Result<Loaded, Problems>| {
        let loaded = loaded.as_ref();
        loaded.is_ok_and(|loaded| loaded.settings.debug)
    };
    log::start(loaded.as_ref().is_ok_and(|(_, loaded)| debug(loaded)));
    loaded
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// The settings of an agent. One that may have a place needs the etcd in which it
/// has it: in another one there is none, and it would be forgotten.
fn load(root: &Root, flags: Fragment) -> Result<Loaded, Problems> {
    if host::remembers(root) {
        Settings::load_with_etcd(root, variable, flags)
    } else {
        Settings::load(root, Program::Daemon, variable, flags)
    }
}

fn accept(loaded: Result<Loaded, Problems>) -> Result<Settings> {
    let loaded = loaded.context("the configuration cannot be used")?;
    for warning in &loaded.warnings {
        warn!("{warning}");
    }
    Ok(loaded.settings)
}

/// The settings of a server, and a log.
pub(super) fn load_for_server(arguments: &Arguments) -> Result<Settings> {
    let read = |root: &Root, flags| Settings::load_with_etcd(root, variable, flags);
    accept(begin(arguments, read)?.1)
}

/// Tells the supervisor, if there is one, that the start is over.
pub(super) fn ready() {
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
}

async fn start(arguments: Arguments) -> Result<()> {
    let (root, loaded) = begin(&arguments, load)?;
    let bus = Bus::new(arguments.bus.as_deref());
    let shutdown = on_signals()?;

    let slot_type = boot_facts::slot_type(&root).unwrap_or_else(|error| {
        // As the updater does where it must go on.
        warn!(error = words(&error), "the default type of slots is used");
        USR_TYPE
    });
    let rebooter = Rebooter::new(root.clone(), Login::new(&bus), slot_type);
    let held = host::remembers(&root);
    let strategy = match &loaded {
        Ok(loaded) => Some(loaded.settings.strategy),
        Err(problems) => problems.strategy,
    };
    if strategy == Some(Strategy::Off) && !held && !rebooter.was_interrupted() {
        // Whatever else is wrong with the settings does no harm.
        if let Err(problems) = loaded {
            warn!("{problems}");
        }
        info!("Reboot strategy is 'off' - shutting down.");
        return Ok(());
    }
    let settings = accept(loaded)?;
    let lock = lock_of(&settings, &bus).await;

    let id = MachineId::read(&root)?;
    let path = root.path(coordinator_conf::PATH)?;
    let conf = CoordinatorConf::take(&path, NAME, settings.strategy.word())?;
    // There is no other coordinator now. The machine may be reset at any moment, so before
    // anything that takes long.
    rebooter.recover().await;
    let identity = Identity {
        id: id.clone(),
        boot_id: boot_facts::boot_id(&root)?,
        version: boot_facts::version(&root)?.unwrap_or_default(),
    };
    let metrics = Arc::new(Metrics::new());
    let needs_store = lock == Lock::Semaphore || held;
    let host = host(&root, &settings, &bus, rebooter, conf, &metrics, &identity)?;
    let store = open_store(&settings, needs_store, &metrics).await?;
    let schedule = settings.schedule_of(&id);
    for line in schedule.describe() {
        info!("{line}");
    }
    info!(
        strategy = settings.strategy.word(),
        group = settings.group.as_str(),
        version = identity.version,
        "locksmithd starting"
    );
    if let Some(listen) = &settings.metrics {
        serve_metrics(&root, listen, &metrics, &shutdown).await?;
    }
    let member = (lock == Lock::Semaphore)
        .then(|| tokio::spawn(membership::keep(Arc::clone(&store), id.clone())));
    let options = options(&settings, lock, held);
    let (view, mut views) = watch::channel(Agent::new(identity.clone(), options.clone()).view());
    let daemon = Daemon {
        agent: Agent::new(identity, options),
        store,
        machine: Arc::new(host),
        window: Box::new(move |at| window_at(&schedule, at)),
        group: settings.group.clone(),
        id,
        metrics,
        view,
        shutdown: shutdown.clone(),
    };
    ready();
    if settings.strategy == Strategy::Off {
        let ended = shutdown.clone();
        tokio::spawn(async move {
            // Idle: the place has gone back.
            let idle = views.wait_for(|view| view.stage == "idle");
            if tokio::time::timeout(OFF_LIMIT, idle).await.is_err() {
                warn!("the place of this machine could not be given back");
            }
            info!("Reboot strategy is 'off' - shutting down.");
            ended.cancel();
        });
    }
    daemon.run().await;
    if let Some(member) = member {
        member.abort();
    }
    Ok(())
}

/// What a reboot waits for, by strategy.
async fn lock_of(settings: &Settings, bus: &Bus) -> Lock {
    match settings.strategy {
        Strategy::EtcdLock => Lock::Semaphore,
        Strategy::Reboot | Strategy::Off => Lock::None,
        Strategy::Fleetlock => Lock::FleetLock,
        Strategy::BestEffort => {
            warn!(
                "the reboot strategy best-effort is deprecated: it reboots without a lock where \
                 etcd is not to run; set etcd-lock or reboot"
            );
            let systemd = Systemd::new(bus);
            for unit in ETCD_UNITS {
                // One that is only starting, or has failed, is one of a cluster too.
                if systemd.may_run(unit).await {
                    info!(unit, "etcd belongs here: the strategy is etcd-lock");
                    return Lock::Semaphore;
                }
            }
            info!("there is no etcd here: the strategy is reboot");
            Lock::None
        }
    }
}

fn options(settings: &Settings, lock: Lock, held: bool) -> Options {
    Options {
        lock,
        recover: held,
        rank: settings.queue_rank,
        stays_up: settings.strategy == Strategy::Off,
        mode: settings.reboot_method.into(),
        warning: settings.warn_users,
        soak: settings.health.soak,
        deadline: settings.health.deadline,
    }
}

fn host(
    root: &Root,
    settings: &Settings,
    bus: &Bus,
    rebooter: Rebooter,
    conf: CoordinatorConf,
    metrics: &Arc<Metrics>,
    identity: &Identity,
) -> Result<Host> {
    let fleet_lock = match (&settings.fleetlock.base_url, settings.strategy) {
        (Some(url), Strategy::Fleetlock) => Some(FleetLockClient::new(ClientOptions {
            base_url: url.to_string(),
            group: settings.fleetlock.group.clone(),
            id: MachineId::new(&crate::fleetlock::client_id(&identity.id)?),
            ca_pem: None,
        })?),
        _ => None,
    };
    Ok(Host {
        root: root.clone(),
        updater: Updater::new(bus),
        login: Login::new(bus),
        systemd: Systemd::new(bus),
        rebooter,
        fleet_lock,
        metrics: Arc::clone(metrics),
        conf: Mutex::new(conf),
        programs: Programs {
            group: settings.group.as_str().to_owned(),
            before_dir: root.path(&settings.hooks.before_dir)?,
            after_dir: root.path(&settings.hooks.after_dir)?,
            timeout: settings.hooks.timeout,
        },
        inhibition: settings.inhibitors.into(),
        version: identity.version.clone(),
        begun: Mutex::new(None),
        proved: AtomicBool::new(false),
    })
}

/// Opens the store and looks into it once, so that what an operator has to put
/// right is told now and not when a reboot is due. A store that is down is no
/// reason to end: it may come back before it is needed.
async fn open_store(
    settings: &Settings,
    needed: bool,
    metrics: &Arc<Metrics>,
) -> Result<Arc<dyn SemaphoreStore>> {
    // One that is not needed is not looked at before it is: a machine without
    // etcd may lack the files that etcd needs.
    let store = if needed {
        settings.open_store()
    } else {
        settings.open_etcd(EtcdApi::Auto)
    }
    .context("the store of the semaphore cannot be used")?;
    let store: Arc<dyn SemaphoreStore> = Arc::new(Measured::new(store, Arc::clone(metrics)));
    if !needed {
        return Ok(store);
    }
    match store.load(&Look::default()).await {
        Ok(_) => {}
        Err(problem @ (StoreError::Refused { .. } | StoreError::BadValue { .. })) => {
            error!(
                error = words(&problem),
                "no reboot before this is put right: locksmithctl status shows the same"
            );
        }
        Err(problem) => warn!(error = words(&problem), "the semaphore cannot be reached"),
    }
    Ok(store)
}

async fn serve_metrics(
    root: &Root,
    listen: &Listen,
    metrics: &Arc<Metrics>,
    shutdown: &CancellationToken,
) -> Result<()> {
    let listen = match listen {
        Listen::Unix(path) => Listen::Unix(root.path(path)?),
        Listen::Tcp(address) => Listen::Tcp(address.clone()),
    };
    match Endpoint::bind(&listen, Arc::clone(metrics)).await {
        Ok(endpoint) => {
            info!(%listen, "metrics");
            tokio::spawn(endpoint.serve(shutdown.clone()));
        }
        // Reboots matter more than numbers about them.
        Err(error) => warn!(error = words(&error), "metrics are not served"),
    }
    Ok(())
}

fn window_at(schedule: &Schedule, at: jiff::Timestamp) -> Window {
    match schedule.state(at) {
        State::Always | State::Open { .. } => Window::Open,
        State::Closed { opens } => Window::Closed(opens.map(|opens| {
            // It is ahead; a clock that was set meanwhile makes it none.
            Duration::try_from(opens.duration_since(at)).unwrap_or_default()
        })),
    }
}

pub(super) fn on_signals() -> Result<CancellationToken> {
    let token = CancellationToken::new();
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut signals = signal(kind).context("cannot listen for signals")?;
        let token = token.clone();
        tokio::spawn(async move {
            signals.recv().await;
            info!("asked to end");
            token.cancel();
        });
    }
    Ok(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_about_etcd_stops_a_machine_that_may_have_a_place_there() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::at(folder.path()).unwrap();
        let file = root.path("/etc/locksmith/locksmith.toml").unwrap();
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        for strategy in [Strategy::Off, Strategy::Reboot, Strategy::Fleetlock] {
            let text = format!(
                "strategy = '{strategy}'\nfleetlock.base_url = 'http://f'\n\
                 etcd.endpoints = ['http://a', 'b c']\n"
            );
            std::fs::write(&file, text).unwrap();
            host::remember_held(&root).unwrap();
            let problems = load(&root, Fragment::default()).unwrap_err();
            assert!(problems.to_string().contains("etcd.endpoints"));
            std::fs::remove_dir_all(folder.path().join("var")).unwrap();
            let loaded = load(&root, Fragment::default()).unwrap();
            assert_eq!(loaded.warnings.len(), 1);
        }
    }
}
