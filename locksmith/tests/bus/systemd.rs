//! systemd as locksmithd sees it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use locksmith::bus::Systemd;
use zbus::wire::{ObjectPath, OwnedObjectPath};
use zbus::{Connection, DBusError, interface};

use crate::support::PrivateBus;

const NAME: &str = "org.freedesktop.systemd1";
const PATH: &str = "/org/freedesktop/systemd1";

#[derive(Debug, DBusError)]
#[zbus(prefix = "org.freedesktop.systemd1")]
enum Refusal {
    NoSuchUnit(String),
}

/// The manager with these units, by name.
struct Manager {
    units: HashMap<&'static str, OwnedObjectPath>,
    started: Arc<Mutex<Vec<String>>>,
}

#[interface(name = "org.freedesktop.systemd1.Manager")]
impl Manager {
    fn load_unit(&self, name: &str) -> Result<OwnedObjectPath, Refusal> {
        let unit = self.units.get(name).cloned();
        unit.ok_or_else(|| Refusal::NoSuchUnit(format!("Unit {name} not found.")))
    }

    fn start_unit(&self, name: &str, mode: &str) -> Result<OwnedObjectPath, Refusal> {
        self.load_unit(name)?;
        self.started.lock().unwrap().push(format!("{name} {mode}"));
        Ok(ObjectPath::try_from("/org/freedesktop/systemd1/job/1")
            .unwrap()
            .into())
    }
}

struct Unit {
    load: &'static str,
    active: &'static str,
}

#[interface(name = "org.freedesktop.systemd1.Unit")]
impl Unit {
    #[zbus(property)]
    fn load_state(&self) -> &str {
        self.load
    }

    #[zbus(property)]
    fn active_state(&self) -> &str {
        self.active
    }
}

/// systemd with units of name, load state and active state, and what it was
/// told to start.
pub(crate) async fn systemd(
    bus: &PrivateBus,
    units: &[(&'static str, &'static str, &'static str)],
) -> (Connection, Arc<Mutex<Vec<String>>>) {
    let started = Arc::default();
    let path = |number: usize| format!("{PATH}/unit/u{number}");
    let manager = Manager {
        units: units
            .iter()
            .enumerate()
            .map(|(number, (name, ..))| (*name, ObjectPath::try_from(path(number)).unwrap().into()))
            .collect(),
        started: Arc::clone(&started),
    };
    let mut peer = bus.peer().serve_at(PATH, manager).name(NAME);
    for (number, &(_, load, active)) in units.iter().enumerate() {
        peer = peer.serve_at(path(number), Unit { load, active });
    }
    (peer.build().await.unwrap(), started)
}

#[tokio::test]
async fn a_target_is_active_inactive_or_not_there() {
    let bus = PrivateBus::start();
    let (_systemd, _) = systemd(
        &bus,
        &[
            ("up.target", "loaded", "active"),
            ("going.target", "loaded", "activating"),
            ("down.target", "loaded", "inactive"),
            ("absent.target", "not-found", "inactive"),
            ("masked.target", "masked", "inactive"),
        ],
    )
    .await;
    let systemd = Systemd::new(&bus.bus());
    for (unit, expected) in [
        ("up.target", Some(true)),
        ("going.target", Some(false)),
        ("down.target", Some(false)),
        ("absent.target", None),
        ("masked.target", None),
    ] {
        assert_eq!(systemd.is_active(unit).await.unwrap(), expected, "{unit}");
    }
}

#[tokio::test]
async fn without_systemd_there_is_no_target_and_without_a_bus_nobody_knows() {
    let mut bus = PrivateBus::start();
    let systemd = Systemd::new(&bus.bus());
    assert_eq!(
        systemd.is_active("boot-complete.target").await.unwrap(),
        None
    );
    bus.stop();
    assert!(systemd.is_active("boot-complete.target").await.is_err());
}
