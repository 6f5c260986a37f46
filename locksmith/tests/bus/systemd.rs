//! systemd as locksmithd sees it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use locksmith::bus::Systemd;
use zbus::wire::{ObjectPath, OwnedObjectPath};
use zbus::{Connection, DBusError, fdo, interface};

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

/// A unit: its states, and what more there is to say of it.
struct Unit {
    load: &'static str,
    active: &'static str,
    more: More,
}

/// What may say that an inactive unit will be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum More {
    /// Nothing.
    Idle,
    /// A job is queued for it.
    Queued,
    /// Another unit has it in this property.
    Needed(&'static str),
    /// Nothing, and this systemd is one before 249.
    IdleInOldSystemd,
}

impl Unit {
    fn needed_by(&self, property: &'static str) -> Vec<String> {
        match self.more {
            More::Needed(by) if by == property => vec!["other.service".to_owned()],
            _ => Vec::new(),
        }
    }
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

    #[zbus(property)]
    fn job(&self) -> (u32, OwnedObjectPath) {
        let (number, path) = match self.more {
            More::Queued => (7, "/org/freedesktop/systemd1/job/7"),
            _ => (0, "/"),
        };
        (number, ObjectPath::try_from(path).unwrap().into())
    }

    #[zbus(property)]
    fn wanted_by(&self) -> Vec<String> {
        self.needed_by("WantedBy")
    }

    #[zbus(property)]
    fn required_by(&self) -> Vec<String> {
        self.needed_by("RequiredBy")
    }

    #[zbus(property)]
    fn requisite_of(&self) -> Vec<String> {
        self.needed_by("RequisiteOf")
    }

    #[zbus(property)]
    fn bound_by(&self) -> Vec<String> {
        self.needed_by("BoundBy")
    }

    #[zbus(property)]
    fn upheld_by(&self) -> fdo::Result<Vec<String>> {
        match self.more {
            More::IdleInOldSystemd => Err(fdo::Error::UnknownProperty("UpheldBy".to_owned())),
            _ => Ok(self.needed_by("UpheldBy")),
        }
    }
}

/// systemd with units of name, load state, active state and more, and what it was
/// told to start.
pub(crate) async fn systemd(
    bus: &PrivateBus,
    units: &[(&'static str, &'static str, &'static str, More)],
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
    for (number, &(_, load, active, more)) in units.iter().enumerate() {
        peer = peer.serve_at(path(number), Unit { load, active, more });
    }
    (peer.build().await.unwrap(), started)
}

#[tokio::test]
async fn a_target_is_active_inactive_or_not_there() {
    let bus = PrivateBus::start();
    let table = [
        ("up.target", "loaded", "active", More::Idle, Some(true)),
        (
            "going.target",
            "loaded",
            "activating",
            More::Idle,
            Some(false),
        ),
        (
            "queued.target",
            "loaded",
            "inactive",
            More::Queued,
            Some(false),
        ),
        (
            "failed.service",
            "loaded",
            "failed",
            More::Idle,
            Some(false),
        ),
        ("absent.target", "not-found", "inactive", More::Idle, None),
        ("masked.target", "masked", "inactive", More::Idle, None),
        // Nobody will ever start these.
        ("idle.target", "loaded", "inactive", More::Idle, None),
        (
            "old.target",
            "loaded",
            "inactive",
            More::IdleInOldSystemd,
            None,
        ),
    ];
    let needed = [
        ("wanted.target", "WantedBy"),
        ("required.target", "RequiredBy"),
        ("requisite.target", "RequisiteOf"),
        ("bound.target", "BoundBy"),
        ("upheld.target", "UpheldBy"),
    ]
    .map(|(unit, by)| (unit, "loaded", "inactive", More::Needed(by), Some(false)));
    let table: Vec<_> = table.into_iter().chain(needed).collect();
    let units: Vec<_> = table
        .iter()
        .map(|&(unit, load, active, more, _)| (unit, load, active, more))
        .collect();
    let (_systemd, _) = systemd(&bus, &units).await;
    let systemd = Systemd::new(&bus.bus());
    for (unit, .., expected) in table {
        assert_eq!(systemd.is_active(unit).await.unwrap(), expected, "{unit}");
        assert_eq!(systemd.may_run(unit).await, expected.is_some(), "{unit}");
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
    assert!(!systemd.may_run("etcd.service").await);
    bus.stop();
    assert!(systemd.is_active("boot-complete.target").await.is_err());
    assert!(systemd.may_run("etcd.service").await);
}
