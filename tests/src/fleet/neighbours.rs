//! update_engine and logind of one machine, played on a real bus by this
//! process. They say what a test tells them to, and remember what they are
//! asked.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::runtime::Runtime;
use zbus::connection::Builder;
use zbus::object_server::SignalEmitter;
use zbus::wire::OwnedObjectPath;
use zbus::{Connection, DBusError, interface};

use crate::deadline::poll_until;

const UPDATER: &str = "com.coreos.update1";
const UPDATER_PATH: &str = "/com/coreos/update1";
const UPDATER_INTERFACE: &str = "com.coreos.update1.Manager";
const LOGIN: &str = "org.freedesktop.login1";
const LOGIN_PATH: &str = "/org/freedesktop/login1";
const NAME_LIMIT: Duration = Duration::from_secs(10);

/// What logind does when it is asked for a reboot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RebootAnswer {
    /// It begins to shut down.
    Accept,
    /// A lock of this program, for this reason, blocks it.
    Inhibited(&'static str, &'static str),
    /// Its policy says no.
    Forbid,
    /// It never answers.
    Hang,
}

/// The two services. They end with this value.
#[derive(Debug)]
pub struct Neighbours {
    address: String,
    state: Shared,
    updater: Option<Connection>,
    login: Option<Connection>,
}

impl Neighbours {
    /// Both services on the bus at `address`; no update is there.
    ///
    /// # Errors
    ///
    /// The bus does not let them in.
    pub fn start(address: &str) -> Result<Self> {
        let mut neighbours = Self {
            address: address.to_owned(),
            state: Shared::default(),
            updater: None,
            login: None,
        };
        neighbours.connect()?;
        Ok(neighbours)
    }

    /// Connects both anew, as after a restart of the bus.
    ///
    /// # Errors
    ///
    /// The bus does not let them in.
    pub fn connect(&mut self) -> Result<()> {
        self.start_updater()?;
        self.login = None;
        self.login = Some(
            self.serve(|builder, state| builder.serve_at(LOGIN_PATH, Logind(state)).name(LOGIN))?,
        );
        Ok(())
    }

    /// update_engine has applied `version`, which waits for a reboot.
    ///
    /// # Errors
    ///
    /// The bus is gone.
    pub fn announce(&self, version: &str) -> Result<()> {
        version.clone_into(&mut self.state.lock().applied);
        self.tell()
    }

    /// update_engine has nothing that waits for a reboot, any more or after one.
    ///
    /// # Errors
    ///
    /// The bus is gone.
    pub fn reset(&self) -> Result<()> {
        self.announce("")
    }

    /// The version that waits for a reboot.
    #[must_use]
    pub fn applied(&self) -> Option<String> {
        Some(self.state.lock().applied.clone()).filter(|version| !version.is_empty())
    }

    /// Ends update_engine.
    pub fn stop_updater(&mut self) {
        self.updater = None;
    }

    /// Starts update_engine, again if it runs. It knows what it knew.
    ///
    /// # Errors
    ///
    /// The bus does not let it in.
    pub fn start_updater(&mut self) -> Result<()> {
        self.updater = None;
        self.updater = Some(self.serve(|builder, state| {
            let engine = UpdateEngine(state);
            builder.serve_at(UPDATER_PATH, engine).name(UPDATER)
        })?);
        Ok(())
    }

    /// Sends what update_engine would send when `version` is applied, from
    /// somebody else on the bus.
    ///
    /// # Errors
    ///
    /// The bus is gone.
    pub fn spoof(&self, version: &str) -> Result<()> {
        let body = status(version);
        runtime()?.block_on(async {
            let stranger = Builder::address(self.address.as_str()).build().await?;
            stranger
                .emit_signal(
                    None::<&str>,
                    UPDATER_PATH,
                    UPDATER_INTERFACE,
                    "StatusUpdate",
                    &body,
                )
                .await?;
            Ok(())
        })
    }

    /// How often update_engine was asked for its status.
    #[must_use]
    pub fn status_calls(&self) -> u32 {
        self.state.lock().status_calls
    }

    /// What logind does from now on when it is asked for a reboot.
    pub fn set_reboot_answer(&self, answer: RebootAnswer) {
        self.state.lock().answer = answer;
    }

    /// Calls for a reboot that logind has had, accepted or not.
    #[must_use]
    pub fn reboot_calls(&self) -> Vec<String> {
        self.state.lock().reboot_calls.clone()
    }

    /// Whether logind has accepted to reboot and nobody has done it yet.
    #[must_use]
    pub fn is_going_down(&self) -> bool {
        self.state.lock().going_down
    }

    /// The machine has booted: nothing of before is in memory.
    pub(super) fn boot(&self) {
        let mut state = self.state.lock();
        state.going_down = false;
        state.applied.clear();
    }

    /// A connection that owns a name. The bus takes a moment to notice that its
    /// last owner is gone.
    fn serve(
        &self,
        with: impl Fn(Builder<'static>, Shared) -> Builder<'static>,
    ) -> Result<Connection> {
        let runtime = runtime()?;
        poll_until("owning a name on the bus", NAME_LIMIT, || {
            let builder = with(Builder::address(self.address.as_str()), self.state.clone());
            match runtime.block_on(builder.build()) {
                Ok(connection) => Ok(Some(connection)),
                Err(zbus::Error::NameTaken) => Ok(None),
                Err(error) => Err(error.into()),
            }
        })
    }

    fn tell(&self) -> Result<()> {
        let Some(updater) = &self.updater else {
            return Ok(());
        };
        let body = status(&self.state.lock().applied);
        let sent = updater.emit_signal(
            None::<&str>,
            UPDATER_PATH,
            UPDATER_INTERFACE,
            "StatusUpdate",
            &body,
        );
        Ok(runtime()?.block_on(sent)?)
    }
}

/// Where the services of all machines run.
fn runtime() -> Result<&'static Runtime> {
    static RUNTIME: OnceLock<Option<Runtime>> = OnceLock::new();
    RUNTIME
        .get_or_init(|| {
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .ok()
        })
        .as_ref()
        .context("cannot start a runtime")
}

#[derive(Debug, Clone, Default)]
struct Shared(Arc<Mutex<State>>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct State {
    /// Empty: none.
    applied: String,
    status_calls: u32,
    answer: RebootAnswer,
    reboot_calls: Vec<String>,
    going_down: bool,
}

impl Default for State {
    fn default() -> Self {
        Self {
            applied: String::new(),
            status_calls: 0,
            answer: RebootAnswer::Accept,
            reboot_calls: Vec::new(),
            going_down: false,
        }
    }
}

/// As `GetStatus` answers.
fn status(applied: &str) -> (i64, f64, String, String, i64) {
    if applied.is_empty() {
        let idle = "UPDATE_STATUS_IDLE".to_owned();
        return (1_700_000_000, 0.0, idle, "0.0.0".to_owned(), 0);
    }
    let waits = "UPDATE_STATUS_UPDATED_NEED_REBOOT".to_owned();
    (1_700_000_000, 1.0, waits, applied.to_owned(), 4096)
}

struct UpdateEngine(Shared);

#[interface(name = "com.coreos.update1.Manager")]
impl UpdateEngine {
    fn get_status(&self) -> (i64, f64, String, String, i64) {
        let mut state = self.0.lock();
        state.status_calls += 1;
        status(&state.applied)
    }
}

/// logind's own replies.
#[derive(Debug, DBusError)]
#[zbus(prefix = "org.freedesktop")]
enum Refusal {
    #[zbus(name = "login1.BlockedByInhibitorLock")]
    Blocked(String),
    #[zbus(name = "DBus.Error.AccessDenied")]
    Denied(String),
}

struct Logind(Shared);

#[interface(name = "org.freedesktop.login1.Manager")]
impl Logind {
    async fn reboot_with_flags(
        &self,
        flags: u64,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
    ) -> Result<(), Refusal> {
        let answer = {
            let mut state = self.0.lock();
            state
                .reboot_calls
                .push(format!("RebootWithFlags {flags:#x}"));
            state.going_down |= state.answer == RebootAnswer::Accept;
            state.answer
        };
        match answer {
            RebootAnswer::Accept => {
                // The caller sees the machine go down, or is gone with it.
                let _ = Self::prepare_for_shutdown(&emitter, true).await;
                Ok(())
            }
            RebootAnswer::Inhibited(..) => Err(Refusal::Blocked(
                "Operation denied due to active block inhibitor".to_owned(),
            )),
            RebootAnswer::Forbid => Err(Refusal::Denied("Permission denied".to_owned())),
            RebootAnswer::Hang => std::future::pending().await,
        }
    }

    /// What, who, why, mode, user id, process id.
    fn list_inhibitors(&self) -> Vec<(String, String, String, String, u32, u32)> {
        match self.0.lock().answer {
            RebootAnswer::Inhibited(who, why) => {
                let [what, mode] = ["shutdown", "block"].map(str::to_owned);
                vec![(what, who.to_owned(), why.to_owned(), mode, 0, 4711)]
            }
            _ => Vec::new(),
        }
    }

    /// Nobody is logged in.
    fn list_sessions(&self) -> Vec<(String, u32, String, String, OwnedObjectPath)> {
        Vec::new()
    }

    fn set_wall_message(&self, _message: &str, _enable: bool) {}

    #[zbus(property)]
    fn wall_message(&self) -> &str {
        ""
    }

    #[zbus(property)]
    fn enable_wall_messages(&self) -> bool {
        false
    }

    #[zbus(property)]
    fn preparing_for_shutdown(&self) -> bool {
        self.0.lock().going_down
    }

    #[zbus(signal)]
    async fn prepare_for_shutdown(emitter: &SignalEmitter<'_>, begins: bool) -> zbus::Result<()>;
}
