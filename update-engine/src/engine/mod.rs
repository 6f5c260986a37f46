//! The daemon's heart: one loop that feeds events to the [`machine`], performs
//! its effects and publishes what it says. Long work runs beside the loop and
//! comes back as an event, so that the loop and with it D-Bus always answers.

mod attempt;
mod check;
mod given_way;
mod health_gate;
mod installation;
mod remembered;
mod reporter;
mod view;
mod watchdog;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use payload::recompress::Encoders;
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::bus::systemd::Systemd;
use crate::config::{Identity, Loaded, Settings};
use crate::error::UpdateError;
use crate::machine::{self, Effect, Event, Failure, Moment, Options, State, Trigger};
use crate::omaha;
use crate::platform::{Discovery, Slots};
use crate::prefs::{Key, StateStore, StoreError};
use crate::root::Root;
use crate::status::{Command, Snapshot};
use attempt::Attempt;
use health_gate::Arrival;
use reporter::{Keep, Reporter};
use watchdog::Watchdog;

/// Present as long as an applied update waits for the reboot; on tmpfs, so that
/// the reboot removes it.
const MARKER: &str = "/var/run/update_engine_autoupdate_completed";
/// Records of an interrupted installation that do not survive a reboot.
const VOLATILE_STATE: &str = "/run/update_engine";

/// The machine as the engine sees it.
pub struct World {
    /// Where all files are.
    pub root: Root,
    /// How the slots are found.
    pub discovery: Discovery,
    /// What is remembered between restarts.
    pub prefs: Arc<dyn StateStore>,
    systemd: Systemd,
    /// Whether the machine that this program runs on is the one that it updates.
    is_own_machine: bool,
    reporter: Reporter,
    gate: Mutex<health_gate::Gate>,
    /// The encoders and the folder that they are from. Loaded once: what is costly about
    /// them is kept inside.
    encoders: std::sync::Mutex<Option<(String, Arc<Encoders>)>>,
}

/// The daemon without its D-Bus side.
pub struct Engine {
    world: Arc<World>,
    state: State,
    started: Instant,
    commands: mpsc::Receiver<Command>,
    events: mpsc::UnboundedReceiver<Event>,
    sender: mpsc::UnboundedSender<Event>,
    snapshot: watch::Sender<Snapshot>,
    reset: Option<oneshot::Sender<bool>>,
    attempt: Option<Arc<Attempt>>,
    cancel: CancellationToken,
    facts: view::Facts,
}

impl World {
    /// A machine at `root`, whose service manager is on the bus at `bus`, or on the system bus.
    pub fn new(
        root: Root,
        discovery: Discovery,
        prefs: Arc<dyn StateStore>,
        bus: Option<&str>,
    ) -> Arc<Self> {
        let reporter = Reporter::new(Arc::clone(&prefs));
        let is_here = root.is_system() && matches!(discovery, Discovery::Mounted);
        Arc::new(Self {
            systemd: Systemd::new(&root, bus),
            // Whoever tells the bus of a machine means that machine.
            is_own_machine: is_here || bus.is_some(),
            root,
            discovery,
            prefs,
            reporter,
            gate: Mutex::default(),
            encoders: std::sync::Mutex::default(),
        })
    }

    /// The slots, with a target to install into.
    fn discover(&self, settings: &Settings) -> Result<Slots, UpdateError> {
        self.discovery
            .find(&self.root, settings.slot_type)
            .map_err(|error| UpdateError::Slots(Box::new(error)))
    }

    /// The slots, for what concerns the running one alone.
    fn discover_running(&self, settings: &Settings) -> Result<Slots, UpdateError> {
        self.discovery
            .find_in_use(&self.root, settings.slot_type)
            .map_err(|error| UpdateError::Slots(Box::new(error)))
    }

    /// The encoders at hand, loaded when first asked for.
    fn encoders(&self, settings: &Settings) -> Arc<Encoders> {
        let folder = &settings.encoders_dir;
        let mut loaded = self
            .encoders
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        match &*loaded {
            Some((from, encoders)) if from == folder => Arc::clone(encoders),
            _ => {
                let encoders = match self.root.path(folder) {
                    Ok(path) => Encoders::available(&path),
                    Err(error) => {
                        tracing::warn!(%error, folder, "no further encoders can be looked for");
                        Encoders::carried()
                    }
                };
                let encoders = Arc::new(encoders);
                *loaded = Some((folder.clone(), Arc::clone(&encoders)));
                encoders
            }
        }
    }

    fn read(&self, key: Key) -> Result<Option<String>, UpdateError> {
        self.prefs.load_text(key).map_err(Self::state_error)
    }

    fn keep(&self, key: Key, value: &str) -> Result<(), UpdateError> {
        self.prefs
            .commit(key, value.as_bytes())
            .map_err(Self::state_error)
    }

    /// A count; 0 when there is none or it cannot be read.
    fn integer(&self, key: Key) -> i64 {
        self.prefs
            .load_integer(key)
            .unwrap_or_else(|error| {
                tracing::warn!(%error, "an unreadable count starts over");
                None
            })
            .unwrap_or(0)
    }

    fn state_error(error: StoreError) -> UpdateError {
        UpdateError::State {
            what: "the state of the updater",
            source: Box::new(error),
        }
    }

    fn marker(&self) -> std::io::Result<PathBuf> {
        self.root.path(MARKER)
    }
}

impl Engine {
    /// An engine that takes commands from `commands` and publishes to `snapshot`.
    pub fn new(
        world: Arc<World>,
        commands: mpsc::Receiver<Command>,
        snapshot: watch::Sender<Snapshot>,
    ) -> Self {
        let (sender, events) = mpsc::unbounded_channel();
        let started = Instant::now();
        let settings = load_settings(&world.root);
        // After a soft reboot, in which the kernel and what is in memory stay.
        let is_up = world.runs_the_update(&settings) == Some(true);
        if let Err(error) = world.settle_security_epoch_of_running(&settings) {
            let why = error.words();
            tracing::error!(
                why,
                "cannot record the security epoch; each check tries again"
            );
        }
        let marker = !is_up && world.marker().is_ok_and(|path| path.exists());
        let moment = Moment {
            monotonic: Duration::ZERO,
            wall: check::unix_now(),
            roll: roll(),
        };
        let state = State::start(marker, options(&settings), moment);
        let facts = view::Facts::read(&world, &settings);
        let identity = Identity::load(&world.root, &settings);
        let arrival = match (world.applied_in(&identity.boot_id), is_up) {
            (true, true) => Arrival::OfUserSpace,
            (applied, false) if applied || marker => Arrival::StillToCome,
            _ => Arrival::Whole,
        };
        let engine = Self {
            world,
            state,
            started,
            commands,
            events,
            sender,
            snapshot,
            reset: None,
            attempt: None,
            cancel: CancellationToken::new(),
            facts,
        };
        if is_up {
            engine.remove_marker();
        }
        engine.publish();
        engine.start_health_gate(arrival, &settings);
        engine
    }

    /// Runs until `stop` is cancelled; then ends a running installation at a point
    /// from which it resumes.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut watchdog = Watchdog::from_environment();
        loop {
            let wake = self.state.next_check.map(|at| self.started + at);
            tokio::select! {
                () = stop.cancelled() => break,
                Some(event) = self.events.recv() => self.handle(event),
                command = self.commands.recv() => match command {
                    Some(command) => self.obey(command),
                    None => break,
                },
                () = sleep_until(wake) => self.handle(Event::TimerFired),
                () = watchdog.due() => Watchdog::feed(),
            }
        }
        self.wind_down(watchdog).await;
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::AttemptUpdate => self.handle(Event::AttemptRequested),
            Command::Cancel => self.handle(Event::CancelRequested),
            Command::ResetStatus(answer) => {
                self.reset = Some(answer);
                self.handle(Event::ResetRequested);
            }
        }
    }

    fn handle(&mut self, event: Event) {
        let moment = Moment {
            monotonic: self.started.elapsed(),
            wall: check::unix_now(),
            roll: roll(),
        };
        let phase = self.state.phase;
        let (state, effects) = machine::step(self.state.clone(), event, moment);
        self.state = state;
        if self.state.phase != phase {
            tracing::info!(from = ?phase, to = ?self.state.phase, "state");
        }
        for effect in effects {
            self.perform(effect);
        }
        self.publish();
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Check(trigger) => self.start_check(trigger),
            Effect::Ping => self.start_ping(),
            Effect::Install(plan) => self.start_installation(*plan),
            Effect::StopInstall => self.cancel.cancel(),
            Effect::ReportFailure(failure) => self.start_failure_report(&failure),
            Effect::WriteMarker => self.write_marker(),
            Effect::RemoveMarker => self.remove_marker(),
            Effect::AnswerReset(allowed) => {
                if let Some(answer) = self.reset.take() {
                    // The caller may have gone away meanwhile.
                    let _ = answer.send(allowed);
                }
            }
        }
    }

    fn start_check(&mut self, trigger: Trigger) {
        let attempt = match Attempt::load(&self.world, trigger) {
            Ok(attempt) => Arc::new(attempt),
            Err(error) => return self.check_impossible(&error),
        };
        self.facts.refresh(&self.world, &attempt.settings);
        self.state.follow(options(&attempt.settings));
        self.attempt = Some(Arc::clone(&attempt));
        let (world, sender) = (Arc::clone(&self.world), self.sender.clone());
        tokio::spawn(async move {
            let checked = check::check(world, attempt).await;
            let _ = sender.send(Event::CheckFinished {
                poll_interval: checked.poll_interval,
                http_status: checked.http_status,
                answered: checked.answered,
                result: checked.result,
            });
        });
    }

    /// Without settings there is no server to tell.
    fn check_impossible(&mut self, error: &UpdateError) {
        let failure = Failure {
            code: error.code(),
            words: error.words(),
            resumed: false,
        };
        let _ = self.sender.send(Event::CheckFinished {
            poll_interval: 0,
            http_status: 0,
            answered: false,
            result: machine::CheckResult::Unreachable(failure),
        });
    }

    fn start_ping(&self) {
        let (world, sender) = (Arc::clone(&self.world), self.sender.clone());
        tokio::spawn(async move {
            match Attempt::load(&world, Trigger::Scheduler) {
                Ok(attempt) => {
                    world
                        .reporter
                        .report(&attempt, &attempt.ping(), Keep::No)
                        .await;
                }
                Err(error) => tracing::warn!(error = error.words(), "cannot ping the server"),
            }
            let _ = sender.send(Event::PingFinished);
        });
    }

    fn start_failure_report(&self, failure: &Failure) {
        tracing::error!(code = failure.code, "{}", failure.words);
        let Some(attempt) = self.attempt.clone() else {
            let _ = self.sender.send(Event::FailureReported);
            return;
        };
        let (world, sender) = (Arc::clone(&self.world), self.sender.clone());
        let event = omaha::failure(failure.code, attempt.flags(failure.resumed));
        // What goes wrong with the server's own answers is stale by the time that a
        // kept event would reach it.
        let keep = match failure.code {
            30 | 31 | 34 | 2000.. => Keep::No,
            _ => Keep::Yes,
        };
        tokio::spawn(async move {
            world.report(&attempt, attempt.event(event), keep).await;
            let _ = sender.send(Event::FailureReported);
        });
    }

    fn write_marker(&self) {
        let written = self.world.marker().and_then(|path| {
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder)?;
            }
            std::fs::write(path, "")
        });
        if let Err(error) = written {
            tracing::error!(%error, "cannot write the marker {MARKER}: a restart of this daemon will check again");
        }
    }

    fn remove_marker(&self) {
        let removed = self.world.marker().and_then(std::fs::remove_file);
        if let Err(error) = removed
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::error!(%error, "cannot remove the marker {MARKER}");
        }
    }

    fn publish(&self) {
        self.snapshot
            .send_replace(view::snapshot(&self.state, &self.facts));
    }

    /// Lets a running installation stop at a recorded point, or end when its post-install
    /// program has begun. That takes as long as it takes: to leave before could leave the
    /// new slot active with nobody to finish it or to take it back. The service manager
    /// bounds it, by `TimeoutStopSec=` of the unit.
    async fn wind_down(mut self, mut watchdog: Watchdog) {
        self.cancel.cancel();
        let busy = |state: &State| {
            matches!(
                state.phase,
                machine::Phase::UpdateAvailable
                    | machine::Phase::Downloading
                    | machine::Phase::Finalizing
            )
        };
        let limit = Instant::now() + Duration::from_secs(20);
        while busy(&self.state) {
            let is_final = self.state.phase == machine::Phase::Finalizing;
            tokio::select! {
                Some(event) = self.events.recv() => self.handle(event),
                () = tokio::time::sleep_until(limit), if !is_final => break,
                () = watchdog.due() => Watchdog::feed(),
            }
        }
    }

    async fn blocking<T: Send + 'static>(
        work: impl FnOnce() -> Result<T, UpdateError> + Send + 'static,
    ) -> Result<T, UpdateError> {
        tokio::task::spawn_blocking(work)
            .await
            .unwrap_or_else(|error| Err(UpdateError::Internal(format!("a worker ended: {error}"))))
    }
}

fn options(settings: &Settings) -> Options {
    Options {
        periodic: settings.official_build,
        first_check: settings.first_check_delay,
        interval: settings.check_interval,
    }
}

/// Settings for the start: a file that is wrong must not keep the daemon from
/// running, since each attempt reads it again and says what is wrong.
fn load_settings(root: &Root) -> Settings {
    let loaded = Loaded::read(root).or_else(|error| {
        tracing::error!("{error}; nothing is installed until it is mended");
        Loaded::read_leniently(root)
    });
    loaded.map_or_else(|_| Settings::default(), |loaded| loaded.settings)
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// A random number, uniform over its range.
fn roll() -> u32 {
    let (_, low) = uuid::Uuid::new_v4().as_u64_pair();
    let [a, b, c, d, ..] = low.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

#[cfg(test)]
mod testing {
    use super::*;
    use crate::prefs::testing::MemoryStore;

    /// A machine that has nothing.
    pub(super) fn world() -> Arc<World> {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::at(folder.path()).unwrap();
        World::new(
            root,
            Discovery::Mounted,
            Arc::new(MemoryStore::default()),
            None,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Winds down in this phase, with an installation that ends after a minute. How long
    /// it took, in seconds.
    async fn seconds_to_wind_down(phase: machine::Phase) -> u64 {
        let (_commands, queue) = mpsc::channel(1);
        let mut engine = Engine::new(
            testing::world(),
            queue,
            watch::Sender::new(Snapshot::default()),
        );
        engine.state.phase = phase;
        let sender = engine.sender.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(60)).await;
            let _ = sender.send(Event::InstallFinished(Ok(())));
        });
        let start = Instant::now();
        engine.wind_down(Watchdog::from_environment()).await;
        start.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn a_stopped_daemon_ends_what_the_post_install_program_has_begun() {
        use machine::Phase::{Downloading, Finalizing, Idle};
        assert_eq!(seconds_to_wind_down(Idle).await, 0);
        assert_eq!(seconds_to_wind_down(Downloading).await, 20);
        assert_eq!(seconds_to_wind_down(Finalizing).await, 60);
    }
}
