//! systemd as the manager of units. It is asked little: logind is who reboots.

use zbus::proxy;
use zbus::wire::OwnedObjectPath;

use super::{Bus, BusError, Fault, called, fault, reply};

const SERVICE: &str = "org.freedesktop.systemd1";

#[proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
trait Manager {
    fn load_unit(&self, name: &str) -> zbus::Result<OwnedObjectPath>;
    fn start_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
}

#[proxy(
    interface = "org.freedesktop.systemd1.Unit",
    default_service = "org.freedesktop.systemd1"
)]
trait Unit {
    #[zbus(property)]
    fn load_state(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn active_state(&self) -> zbus::Result<String>;
    /// Number of the job that is queued for it, or 0; path of the job.
    #[zbus(property)]
    fn job(&self) -> zbus::Result<(u32, OwnedObjectPath)>;
    #[zbus(property)]
    fn wanted_by(&self) -> zbus::Result<Vec<String>>;
    #[zbus(property)]
    fn required_by(&self) -> zbus::Result<Vec<String>>;
    #[zbus(property)]
    fn requisite_of(&self) -> zbus::Result<Vec<String>>;
    #[zbus(property)]
    fn bound_by(&self) -> zbus::Result<Vec<String>>;
    /// Since systemd 249.
    #[zbus(property)]
    fn upheld_by(&self) -> zbus::Result<Vec<String>>;
}

/// systemd on a bus.
#[derive(Debug, Clone)]
pub struct Systemd {
    bus: Bus,
}

impl Systemd {
    /// systemd on this bus.
    #[must_use]
    pub fn new(bus: &Bus) -> Self {
        Self { bus: bus.clone() }
    }

    /// Whether a unit such as `boot-complete.target` is active; `None` when
    /// there is no such unit or no systemd.
    ///
    /// A unit that is not even to be started, because no other one that is loaded
    /// needs it, counts as not there: whoever waited for it would wait for ever.
    /// systemd brings `boot-complete.target` along, and by itself does not start it.
    ///
    /// # Errors
    ///
    /// There is one, but it does not answer.
    pub async fn is_active(&self, unit: &str) -> Result<Option<bool>, BusError> {
        match self.look_at(unit).await {
            Err(BusError::Absent { .. }) => Ok(None),
            seen => seen,
        }
    }

    /// Whether a service runs, has failed or is to run: all but one that nobody
    /// will start. In doubt, it does.
    pub async fn may_run(&self, unit: &str) -> bool {
        !matches!(self.is_active(unit).await, Ok(None))
    }

    async fn look_at(&self, unit: &str) -> Result<Option<bool>, BusError> {
        let connection = self.bus.connection().await?;
        let manager = ManagerProxy::new(&connection)
            .await
            .map_err(called(SERVICE, "LoadUnit"))?;
        // GetUnit knows only units that something has asked for since the boot.
        let path = manager
            .load_unit(unit)
            .await
            .map_err(called(SERVICE, "LoadUnit"))?;
        let failed = called(SERVICE, "ActiveState");
        let unit = UnitProxy::builder(&connection)
            .path(path)
            .cache_properties(zbus::proxy::CacheProperties::No)
            .build()
            .await
            .map_err(&failed)?;
        let load = unit.load_state().await.map_err(&failed)?;
        if load == "not-found" || load == "masked" {
            return Ok(None);
        }
        // The job first: one that ends between the two questions has made it active.
        let (job, _) = unit.job().await.map_err(&failed)?;
        let state = unit.active_state().await.map_err(&failed)?;
        let is_idle = state == "inactive" && job == 0;
        if is_idle && !is_needed(&unit).await.map_err(&failed)? {
            return Ok(None);
        }
        Ok(Some(state == "active"))
    }

    /// Starts a target that ends the machine's life, as `systemctl` does it: all
    /// else is stopped in order, and no other job takes its place. `false` when
    /// this systemd has no such target. Inhibitors are not asked.
    ///
    /// # Errors
    ///
    /// It does not answer or does not want to.
    pub(super) async fn end_by(&self, target: &str) -> Result<bool, BusError> {
        let connection = self.bus.connection().await?;
        let failed = called(SERVICE, "StartUnit");
        let manager = ManagerProxy::new(&connection).await.map_err(&failed)?;
        match manager.start_unit(target, "replace-irreversibly").await {
            Ok(_) => Ok(true),
            Err(error) if is_no_such_unit(&error) || fault(&error) == Some(Fault::Absent) => {
                Ok(false)
            }
            Err(error) => Err(failed(error)),
        }
    }
}

/// Whether another loaded unit pulls this one in or cannot be without it.
async fn is_needed(unit: &UnitProxy<'_>) -> zbus::Result<bool> {
    let upheld_by = match unit.upheld_by().await {
        Err(error) if fault(&error) == Some(Fault::NotOffered) => Vec::new(),
        answer => answer?,
    };
    Ok(!upheld_by.is_empty()
        || !unit.wanted_by().await?.is_empty()
        || !unit.required_by().await?.is_empty()
        || !unit.requisite_of().await?.is_empty()
        || !unit.bound_by().await?.is_empty())
}

fn is_no_such_unit(error: &zbus::Error) -> bool {
    reply(error).is_some_and(|(name, _)| name == "org.freedesktop.systemd1.NoSuchUnit")
}
