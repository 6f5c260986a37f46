//! The loop: events in, actions out. It decides nothing.
//!
//! Each request of the agent becomes a task whose outcome comes back as an event;
//! the loop itself never waits for one, so signals and timers are always heard.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, debug, debug_span, info, warn};

use super::machine::{Hint, Machine};
use crate::coordinator::{
    Action, Agent, CommitOutcome, Event, Moment, Published, Tone, View, Window,
};
use crate::group::GroupName;
use crate::machine_id::MachineId;
use crate::metrics::Metrics;
use crate::semaphore::LeaseId;
use crate::store::{SemaphoreStore, StoreError};
use crate::words::words;

/// A lease is kept alive so often. The agent's live for 90 s.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// A place that has not come as far as the reboot is given back at the end, if
/// that is possible so soon.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// Requests have their own limits; this one only catches a bug in them.
const STORE_LIMIT: Duration = Duration::from_secs(30);

/// Everything that the loop works with.
pub struct Daemon {
    /// The agent at its start.
    pub agent: Agent,
    /// Where the semaphore is. Not touched by agents that take no place.
    pub store: Arc<dyn SemaphoreStore>,
    /// The machine.
    pub machine: Arc<dyn Machine>,
    /// The reboot window at some time.
    pub window: Box<dyn Fn(Timestamp) -> Window + Send + Sync>,
    /// Whose semaphore it is.
    pub group: GroupName,
    /// Name of this machine.
    pub id: MachineId,
    /// Learns what is seen of the group.
    pub metrics: Arc<Metrics>,
    /// Shows the agent's state.
    pub view: watch::Sender<View>,
    /// Ends the loop.
    pub shutdown: CancellationToken,
}

impl Daemon {
    /// Runs until `shutdown` is cancelled, all of it in one span.
    pub async fn run(self) {
        let span = debug_span!("agent", machine = %self.id, group = %self.group);
        self.work().instrument(span).await;
    }

    async fn work(self) {
        let (events, mut inbox) = mpsc::channel(64);
        let mut hints = self.machine.hints();
        let mut hands = Hands {
            store: self.store,
            machine: self.machine,
            events,
            tasks: JoinSet::new(),
            wake: None,
            watch: stream::pending().boxed(),
            keeper: None,
        };
        let mut agent = self.agent;
        let started = Instant::now();
        let mut next = Some(Event::Started);
        let mut stop_by = None;
        loop {
            if let Some(event) = next.take() {
                let wall = Timestamp::now();
                let moment = Moment {
                    monotonic: started.elapsed(),
                    wall: wall.as_second(),
                    roll: fastrand::u32(..),
                    window: (self.window)(wall),
                };
                debug!(?event, ?moment, "event");
                if let Event::Loaded(Ok(snapshot)) = &event {
                    self.metrics.update_from(&self.group, snapshot, moment.wall);
                    self.metrics.update_own(&self.group, &self.id, snapshot);
                }
                let actions = agent.step(event, moment);
                for action in actions {
                    debug!(?action, "action");
                    hands.perform(action);
                }
                let view = agent.view();
                self.metrics.observe_stage(&view, moment);
                self.view.send_replace(view);
            }
            if stop_by.is_some() && agent.may_end() {
                break;
            }
            let wake = hands.wake;
            next = tokio::select! {
                () = self.shutdown.cancelled(), if stop_by.is_none() => {
                    stop_by = Some(Instant::now() + STOP_LIMIT);
                    Some(Event::Stopping)
                }
                () = sleep_until(stop_by), if stop_by.is_some() => break,
                Some(event) = inbox.recv() => Some(event),
                Some(hint) = hints.next() => Some(match hint {
                    Hint::Updater => Event::UpdaterChanged,
                    Hint::ShuttingDown => Event::ShuttingDown,
                }),
                Some(()) = hands.watch.next() => Some(Event::Changed),
                () = sleep_until(wake) => {
                    hands.wake = None;
                    Some(Event::Woke)
                }
                Some(_) = hands.tasks.join_next(), if !hands.tasks.is_empty() => None,
            };
        }
        // What runs beside the loop ends with it: hooks lose their process group,
        // requests to the store are idempotent.
        hands.tasks.shutdown().await;
    }
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// What the loop holds on to between two events.
struct Hands {
    store: Arc<dyn SemaphoreStore>,
    machine: Arc<dyn Machine>,
    events: mpsc::Sender<Event>,
    tasks: JoinSet<()>,
    wake: Option<Instant>,
    watch: BoxStream<'static, ()>,
    keeper: Option<AbortHandle>,
}

impl Hands {
    fn perform(&mut self, action: Action) {
        let store = Arc::clone(&self.store);
        let machine = Arc::clone(&self.machine);
        match action {
            Action::Wake(wait) => self.wake = Some(Instant::now() + wait),
            Action::Load(look) => self.ask(
                "load",
                Box::pin(async move {
                    let answer = limited(store.load(&look)).await;
                    Event::Loaded(answer.map(Arc::new).map_err(|error| words(&error)))
                }),
            ),
            Action::Commit(transaction) => self.ask(
                "commit",
                Box::pin(async move {
                    Event::Committed(match limited(store.commit(&transaction)).await {
                        Ok(done) => CommitOutcome::Done(done),
                        Err(error @ StoreError::Unknown { .. }) => {
                            CommitOutcome::Unknown(words(&error))
                        }
                        Err(StoreError::LeaseGone { .. }) => CommitOutcome::LeaseGone,
                        Err(error) => CommitOutcome::Failed(words(&error)),
                    })
                }),
            ),
            Action::Lease(ttl) => self.ask(
                "lease",
                Box::pin(async move {
                    let answer = limited(store.grant_lease(ttl)).await;
                    Event::Leased(answer.map_err(|error| words(&error)))
                }),
            ),
            Action::KeepAlive(lease) => self.keep_alive(lease),
            Action::Revoke(lease) => {
                self.tasks.spawn(async move {
                    // It ends by itself otherwise.
                    if let Err(error) = limited(store.revoke_lease(lease)).await {
                        debug!(error = words(&error), "cannot revoke a lease");
                    }
                });
            }
            Action::Watch(keys, after) => {
                self.watch = if keys.is_empty() {
                    stream::pending().boxed()
                } else {
                    store.watch(keys, after)
                };
            }
            Action::ReadUpdater => {
                self.ask(
                    "updater",
                    Box::pin(async move { Event::Updater(machine.applied().await) }),
                );
            }
            Action::WarnUsers(delay) => self.ask(
                "users",
                Box::pin(async move {
                    match machine.warn_users(delay).await {
                        Ok(anybody) => Event::UsersWarned(anybody),
                        Err(reason) => Event::Inhibited(reason),
                    }
                }),
            ),
            Action::TellUsers => {
                self.tasks.spawn(async move { machine.tell_users().await });
            }
            Action::Drain { to } => {
                self.ask(
                    "drain",
                    Box::pin(async move { Event::Drained(machine.drain(&to).await) }),
                );
            }
            Action::CheckHealth { from, to } => self.ask(
                "health",
                Box::pin(async move { Event::Health(machine.health(&from, &to).await) }),
            ),
            Action::Reboot(mode) => self.ask(
                "reboot",
                Box::pin(async move { Event::Rebooting(machine.reboot(mode).await) }),
            ),
            Action::GiveUpReboot => {
                self.tasks
                    .spawn(async move { machine.give_up_reboot().await });
            }
            Action::FleetLock(take) => self.ask(
                "fleet-lock",
                Box::pin(async move { Event::FleetLock(machine.fleet_lock(take).await) }),
            ),
            Action::Publish(state) => tell(machine.publish(state), state),
            Action::Remember(held) => {
                if let Err(reason) = machine.remember(held) {
                    warn!(reason, "cannot remember on disk whether a place is held");
                }
            }
            Action::Say(Tone::Info, text) => info!("{text}"),
            Action::Say(Tone::Warning, text) => warn!("{text}"),
        }
    }

    /// Runs a request beside the loop, in a span of its own; its outcome becomes
    /// an event.
    fn ask(&mut self, what: &'static str, request: BoxFuture<'static, Event>) {
        let events = self.events.clone();
        let request = async move {
            let begun = Instant::now();
            let event = request.await;
            debug!(took = ?begun.elapsed(), "answered");
            // The loop has ended if nobody listens.
            let _ = events.send(event).await;
        };
        self.tasks
            .spawn(request.instrument(debug_span!("request", what)));
    }

    fn keep_alive(&mut self, lease: Option<LeaseId>) {
        if let Some(keeper) = self.keeper.take() {
            keeper.abort();
        }
        let Some(lease) = lease else { return };
        let store = Arc::clone(&self.store);
        let events = self.events.clone();
        self.keeper = Some(self.tasks.spawn(async move {
            loop {
                tokio::time::sleep(KEEP_ALIVE).await;
                match limited(store.keep_alive(lease)).await {
                    Ok(true) => {}
                    Ok(false) => {
                        let _ = events.send(Event::LeaseLost).await;
                        return;
                    }
                    // Whether it still lives is told by the next answer.
                    Err(error) => debug!(error = words(&error), "cannot keep a lease alive"),
                }
            }
        }));
    }
}

fn tell(result: Result<(), String>, state: Published) {
    if let Err(reason) = result {
        warn!(reason, ?state, "cannot write the coordinator file");
    }
}

async fn limited<T>(call: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    tokio::time::timeout(STORE_LIMIT, call)
        .await
        .unwrap_or_else(|_| {
            Err(StoreError::Unknown {
                what: "the store",
                reason: format!("no answer within {STORE_LIMIT:?}"),
            })
        })
}
