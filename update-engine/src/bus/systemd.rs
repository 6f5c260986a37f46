//! The service manager, when it is systemd. It is asked little: to complete the boot,
//! and to reboot. When, and what follows, is decided elsewhere.

use std::io;
use std::process::Command;
use std::time::{Duration, Instant};

use zbus::connection::Builder;
use zbus::wire::OwnedObjectPath;
use zbus::{Connection, proxy};

use crate::platform::Environment;
use crate::platform::child::{self, End};
use crate::root::Root;

/// Reached when the boot counts as successful (systemd.special(7)).
const BOOT_COMPLETE: &str = "boot-complete.target";
/// There when systemd runs the machine (sd_booted(3)).
const RUNS: &str = "/run/systemd/system";
/// For machines without logind.
const REBOOT: &str = "/sbin/reboot";
/// The usual patience of D-Bus callers.
const CALL_LIMIT: Duration = Duration::from_secs(25);
/// How long the program may take to start a reboot.
const REBOOT_LIMIT: Duration = Duration::from_secs(60);
/// Between two looks at a unit that is being started.
const NEXT_LOOK: Duration = Duration::from_millis(250);

#[proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
trait SystemdManager {
    fn load_unit(&self, name: &str) -> zbus::Result<OwnedObjectPath>;
    fn start_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
}

#[proxy(
    interface = "org.freedesktop.systemd1.Unit",
    default_service = "org.freedesktop.systemd1"
)]
trait SystemdUnit {
    #[zbus(property)]
    fn load_state(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn active_state(&self) -> zbus::Result<String>;
    /// Number of the job that is queued for it, or 0; path of the job.
    #[zbus(property)]
    fn job(&self) -> zbus::Result<(u32, OwnedObjectPath)>;
}

#[proxy(
    interface = "org.freedesktop.login1.Manager",
    default_service = "org.freedesktop.login1",
    default_path = "/org/freedesktop/login1"
)]
trait LoginManager {
    fn reboot(&self, interactive: bool) -> zbus::Result<()>;
}

/// The manager of the machine at a root, on a bus. Connects only when something is asked.
#[derive(Debug, Clone)]
pub(crate) struct Systemd {
    root: Root,
    address: Option<String>,
}

impl Systemd {
    /// On the bus at `address`; `None` is the system bus.
    pub(crate) fn new(root: &Root, address: Option<&str>) -> Self {
        Self {
            root: root.clone(),
            address: address.map(str::to_owned),
        }
    }

    /// Lets systemd start `boot-complete.target`, as every unit does that is to run after
    /// a good boot alone, and waits until it is there. The error says in words what it waits for.
    ///
    /// By itself nothing starts that target, so waiting alone could be for ever; started,
    /// it is there at once unless an operator has put checks before it. A machine without
    /// systemd and one without the target, or with a masked one, has nothing to wait for.
    pub(crate) async fn complete_boot(&self, limit: Duration) -> Result<(), String> {
        if !self.runs_the_machine() {
            return Ok(());
        }
        let waiting = self.start_boot_complete(limit);
        waiting
            .await
            .unwrap_or_else(|error| Err(format!("systemd cannot be asked for it: {error}")))
            .map_err(|why| format!("{BOOT_COMPLETE}: {why}"))
    }

    async fn start_boot_complete(&self, limit: Duration) -> zbus::Result<Result<(), String>> {
        let connection = self.connect().await?;
        let manager = SystemdManagerProxy::new(&connection).await?;
        let unit = SystemdUnitProxy::builder(&connection)
            .path(manager.load_unit(BOOT_COMPLETE).await?)
            .cache_properties(zbus::proxy::CacheProperties::No)
            .build()
            .await?;
        match &*unit.load_state().await? {
            "loaded" => {}
            "not-found" | "masked" => return Ok(Ok(())),
            broken => return Ok(Err(format!("its load state is {broken}"))),
        }
        if unit.active_state().await? == "active" {
            return Ok(Ok(()));
        }
        // "fail": nothing else that is queued gives way, a shutdown least of all.
        manager.start_unit(BOOT_COMPLETE, "fail").await?;
        let started = Instant::now();
        loop {
            // The job first: one that ends between the two questions has made it active.
            let (job, _) = unit.job().await?;
            if unit.active_state().await? == "active" {
                return Ok(Ok(()));
            }
            if job == 0 {
                let command = format!("systemctl list-dependencies {BOOT_COMPLETE}");
                return Ok(Err(format!(
                    "a unit that it requires failed, see {command}"
                )));
            }
            if started.elapsed() >= limit {
                return Ok(Err(format!("not reached within {limit:?}")));
            }
            tokio::time::sleep(NEXT_LOOK).await;
        }
    }

    /// Asks logind to reboot, and where there is none, `/sbin/reboot`. The error says in
    /// words why nobody does. Blocking locks hold a reboot up as logind's policy is.
    pub(crate) async fn reboot(&self, environment: Environment) -> Result<(), String> {
        let by_logind = async {
            let connection = self.connect().await?;
            let login = LoginManagerProxy::new(&connection).await?;
            login.reboot(false).await
        };
        let Err(error) = by_logind.await else {
            return Ok(());
        };
        if self.runs_the_machine() {
            return Err(format!("logind does not reboot the machine: {error}"));
        }
        let program = self.root.path(REBOOT).map_err(|error| error.to_string())?;
        let run = move || -> io::Result<_> {
            let log = |line: &str| tracing::info!(program = REBOOT, "{line}");
            child::run(Command::new(program), &environment, REBOOT_LIMIT, log)
        };
        match tokio::task::spawn_blocking(run).await {
            Ok(Ok(finished)) if finished.end == End::Exited(0) => Ok(()),
            Ok(Ok(finished)) => Err(format!("{REBOOT} {}", finished.words(REBOOT_LIMIT))),
            Ok(Err(cause)) => Err(format!("no logind ({error}) and no {REBOOT}: {cause}")),
            Err(cause) => Err(cause.to_string()),
        }
    }

    fn runs_the_machine(&self) -> bool {
        self.root.path(RUNS).is_ok_and(|folder| folder.exists())
    }

    async fn connect(&self) -> zbus::Result<Connection> {
        let builder = match &self.address {
            Some(address) => Builder::address(&**address),
            None => Builder::system(),
        };
        builder.method_timeout(CALL_LIMIT).build().await
    }
}
