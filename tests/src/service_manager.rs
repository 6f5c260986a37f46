//! systemd and logind of one machine, played on a real bus by this process, as far as a
//! boot is completed and a machine rebooted by them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use tokio::runtime::Runtime;
use zbus::connection::Builder;
use zbus::wire::{ObjectPath, OwnedObjectPath};
use zbus::{Connection, fdo, interface};

const SYSTEMD: &str = "org.freedesktop.systemd1";
const SYSTEMD_PATH: &str = "/org/freedesktop/systemd1";
const UNIT_PATH: &str = "/org/freedesktop/systemd1/unit/boot_2dcomplete_2etarget";
const JOB_PATH: &str = "/org/freedesktop/systemd1/job/1";
const LOGIN: &str = "org.freedesktop.login1";
const LOGIN_PATH: &str = "/org/freedesktop/login1";

/// What there is of `boot-complete.target`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootComplete {
    /// Nobody has started it; it is reached as soon as somebody does.
    Idle,
    /// Somebody has.
    Reached,
    /// A check before it fails.
    Failing,
    /// A check before it does not end.
    Hanging,
    /// An operator has masked it.
    Masked,
    /// This systemd has none.
    Missing,
}

/// The two services. They end with this value.
#[derive(Debug)]
pub struct ServiceManager {
    state: Shared,
    _connection: Connection,
    // After the connection, which it drives.
    _runtime: Runtime,
}

impl ServiceManager {
    /// Both services on the bus at `address`.
    ///
    /// # Errors
    ///
    /// The bus does not let them in.
    pub fn start(address: &str, target: BootComplete) -> Result<Self> {
        let state = Shared(Arc::new(Mutex::new(State {
            target,
            asked: Vec::new(),
        })));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let connection = Builder::address(address)
            .serve_at(SYSTEMD_PATH, Systemd(state.clone()))
            .serve_at(UNIT_PATH, Target(state.clone()))
            .serve_at(LOGIN_PATH, Logind(state.clone()))
            .name(SYSTEMD)
            .name(LOGIN);
        let connection = runtime.block_on(connection.build())?;
        Ok(Self {
            state,
            _connection: connection,
            _runtime: runtime,
        })
    }

    /// What they were asked to do, in order.
    #[must_use]
    pub fn asked(&self) -> Vec<String> {
        self.state.lock().asked.clone()
    }

    /// From now on the target is like this.
    pub fn set(&self, target: BootComplete) {
        self.state.lock().target = target;
    }
}

#[derive(Debug, Clone)]
struct Shared(Arc<Mutex<State>>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct State {
    target: BootComplete,
    asked: Vec<String>,
}

fn path(text: &str) -> fdo::Result<OwnedObjectPath> {
    ObjectPath::try_from(text)
        .map(Into::into)
        .map_err(|error| fdo::Error::Failed(error.to_string()))
}

struct Systemd(Shared);

#[interface(name = "org.freedesktop.systemd1.Manager")]
impl Systemd {
    fn load_unit(&self, name: &str) -> fdo::Result<OwnedObjectPath> {
        if name == "boot-complete.target" {
            path(UNIT_PATH)
        } else {
            Err(fdo::Error::InvalidArgs(name.to_owned()))
        }
    }

    fn start_unit(&self, name: &str, mode: &str) -> fdo::Result<OwnedObjectPath> {
        let mut state = self.0.lock();
        state.asked.push(format!("StartUnit {name} {mode}"));
        if state.target == BootComplete::Idle {
            state.target = BootComplete::Reached;
        }
        path(JOB_PATH)
    }
}

struct Target(Shared);

#[interface(name = "org.freedesktop.systemd1.Unit")]
impl Target {
    #[zbus(property)]
    fn load_state(&self) -> &str {
        match self.0.lock().target {
            BootComplete::Masked => "masked",
            BootComplete::Missing => "not-found",
            _ => "loaded",
        }
    }

    #[zbus(property)]
    fn active_state(&self) -> &str {
        match self.0.lock().target {
            BootComplete::Reached => "active",
            _ => "inactive",
        }
    }

    #[zbus(property)]
    fn job(&self) -> fdo::Result<(u32, OwnedObjectPath)> {
        match self.0.lock().target {
            BootComplete::Hanging => Ok((1, path(JOB_PATH)?)),
            _ => Ok((0, path("/")?)),
        }
    }
}

struct Logind(Shared);

#[interface(name = "org.freedesktop.login1.Manager")]
impl Logind {
    fn reboot(&self, interactive: bool) {
        let mut state = self.0.lock();
        state.asked.push(format!("Reboot {interactive}"));
    }
}
