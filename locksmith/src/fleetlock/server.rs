//! A FleetLock server over the semaphores of some groups. It decides nothing:
//! [`super::protocol`] says what a request is, `lock` what it means.
//!
//! | path | method | answer |
//! |---|---|---|
//! | `/v1/pre-reboot` | POST | 200 with a place, else a refusal |
//! | `/v1/steady-state` | POST | 200 once the client has no place |
//! | `/metrics` | GET | OpenMetrics text |
//! | `/-/healthy` | GET | 200 |
//!
//! It keeps nothing between two requests, so several may serve one group.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, FromRequest as _, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bounded_http::{Limits, Tcp};
use futures_util::future::join_all;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::lock::{self, Asking, Step};
use super::protocol::{Api, Client, HEADER, Kind, MOST_BYTES, Refusal, is_group};
use crate::group::GroupName;
use crate::machine_id::MachineId;
use crate::metrics::{self, Metrics};
use crate::semaphore::{LeaseId, Look, Snapshot, Transaction, failures, places};
use crate::store::{SemaphoreStore, StoreError};

/// A client has its answer after so long, whatever the store does.
const ANSWER_LIMIT: Duration = Duration::from_secs(9);
/// And no new attempt begins after this.
const LAST_ATTEMPT: Duration = Duration::from_secs(6);
/// A body must be here so soon.
const BODY_LIMIT: Duration = Duration::from_secs(10);
/// And a client must take its answer so soon.
const STALL: Duration = Duration::from_secs(30);
/// Between two attempts after a lost race: at most this, at first.
const RETRY: Duration = Duration::from_millis(20);
/// And at most this later.
const MOST_RETRY: Duration = Duration::from_millis(500);
/// Transactions of one round of housekeeping.
const MOST_CHORES: usize = 20;

/// How to serve.
#[derive(Debug, Clone)]
pub struct Options {
    /// From a yes to the steady-state; after that the machine is overdue, keeps
    /// its place and burns the budget.
    pub deadline: Duration,
    /// A client that stands in line and does not ask again for so long has gone:
    /// somewhat more than two of its polling intervals.
    pub patience: Duration,
    /// Where clients stand in line, 0 to 999; lower is served first.
    pub rank: u16,
    /// Between two looks for overdue machines.
    pub housekeeping: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(60 * 60),
            patience: Duration::from_secs(12 * 60),
            rank: 500,
            housekeeping: Duration::from_secs(15),
        }
    }
}

/// A group as clients name it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct FleetGroup {
    name: String,
    group: GroupName,
}

/// A group that no client could ask for.
#[derive(Debug, thiserror::Error)]
#[error(
    "invalid FleetLock group {0:?}: it has letters, digits, '.' and '-' only, and is not \".\" or \"..\""
)]
pub struct BadFleetGroup(String);

impl FleetGroup {
    /// The group whose semaphore is meant.
    #[must_use]
    pub fn group(&self) -> &GroupName {
        &self.group
    }
}

impl Default for FleetGroup {
    /// `default` stands for the default group.
    fn default() -> Self {
        Self {
            name: "default".to_owned(),
            group: GroupName::default(),
        }
    }
}

impl FromStr for FleetGroup {
    type Err = BadFleetGroup;

    /// `default` is the group without a name, any other name the group of that
    /// name.
    fn from_str(text: &str) -> Result<Self, BadFleetGroup> {
        if text == "default" {
            return Ok(Self::default());
        }
        match text.parse() {
            Ok(group) if is_group(text) => Ok(Self {
                name: text.to_owned(),
                group,
            }),
            _ => Err(BadFleetGroup(text.to_owned())),
        }
    }
}

/// Answers on `listener` until `shutdown` is cancelled, for these groups and no
/// others.
pub async fn serve(
    listener: TcpListener,
    groups: &[FleetGroup],
    store: impl Fn(&GroupName) -> Arc<dyn SemaphoreStore>,
    options: Options,
    metrics: Arc<Metrics>,
    shutdown: CancellationToken,
) {
    let served = |fleet: &FleetGroup| {
        let group = Served {
            name: fleet.group.clone(),
            store: store(&fleet.group),
            writing: Mutex::new(()),
        };
        (fleet.name.clone(), group)
    };
    let server = Arc::new(Server {
        groups: groups.iter().map(served).collect(),
        options,
        metrics,
    });
    let router = router(&server);
    let rounds = server.groups.values().map(|group| server.keep_house(group));
    tokio::select! {
        () = bounded_http::serve(
            Tcp::new(listener, STALL),
            |_| router.clone(),
            Limits::default(),
            shutdown.cancelled(),
        ) => {}
        // Ends only where there is no group at all.
        _ = join_all(rounds), if !server.groups.is_empty() => {}
    }
}

struct Server {
    groups: BTreeMap<String, Served>,
    options: Options,
    metrics: Arc<Metrics>,
}

struct Served {
    name: GroupName,
    store: Arc<dyn SemaphoreStore>,
    /// Held from the look to the commit, so that the clients of one server do
    /// not race each other. Those of others they still do.
    writing: Mutex<()>,
}

fn router(server: &Arc<Server>) -> Router {
    let mut router = Router::new();
    for api in Api::ALL {
        let answer = async move |State(server): State<Arc<Server>>, request: Request| {
            server.answer(api, request).await
        };
        router = router
            .route(&format!("/{}", api.path()), post(answer))
            .route(&format!("/{}/", api.path()), post(answer));
    }
    let refuse =
        |kind: Kind, value: &'static str| async move || refused(&Refusal::new(kind, value));
    router
        .route("/-/healthy", get(async || "ok\n"))
        .with_state(Arc::clone(server))
        .merge(metrics::route(Arc::clone(&server.metrics)))
        .fallback(refuse(
            Kind::NotFound,
            "nothing is here; POST to /v1/pre-reboot or /v1/steady-state",
        ))
        .method_not_allowed_fallback(refuse(
            Kind::MethodNotAllowed,
            "this method does nothing here",
        ))
        .layer(DefaultBodyLimit::max(MOST_BYTES))
}

fn refused(refusal: &Refusal) -> Response {
    let status =
        StatusCode::from_u16(refusal.kind.status()).expect("the kinds' statuses are HTTP's");
    let json = [(header::CONTENT_TYPE, "application/json")];
    (status, json, refusal.write()).into_response()
}

impl Server {
    async fn answer(&self, api: Api, request: Request) -> Response {
        let (answer, response) = match self.decide(api, request).await {
            Ok(()) => ("yes", StatusCode::OK.into_response()),
            Err(refusal) => (refusal.kind.name(), refused(&refusal)),
        };
        self.metrics.fleetlock_served(api, answer);
        response
    }

    async fn decide(&self, api: Api, request: Request) -> Result<(), Refusal> {
        let headers = request.headers().clone();
        let body = read_body(request).await?;
        let headers = headers.get_all(HEADER).iter();
        let Client { id, group } = Client::read(headers.map(|value| value.as_bytes()), &body)?;
        let served = self.groups.get(&group).ok_or_else(|| {
            let value = format!("this server does not serve the group {group:?}");
            Refusal::new(Kind::UnknownGroup, value)
        })?;
        let decided = async {
            match api {
                Api::PreReboot => self.pre_reboot(served, &id).await,
                Api::SteadyState => steady_state(served, &id).await,
            }
        };
        let answer = tokio::time::timeout(ANSWER_LIMIT, decided).await;
        let answer = answer.unwrap_or_else(|_elapsed| {
            let value = "the store did not answer in time";
            Err(Refusal::new(Kind::StoreUnavailable, value))
        });
        if let Err(Refusal { kind, value }) = &answer {
            let (api, kind) = (api.name(), kind.name());
            debug!(
                id = id.as_str(),
                group, api, kind, "FleetLock request refused: {value}"
            );
        }
        answer
    }

    /// Looks, and changes the group, until it says yes or no.
    async fn pre_reboot(&self, group: &Served, id: &MachineId) -> Result<(), Refusal> {
        let nonce = format!("fleetlock-{:016x}", fastrand::u64(..));
        let mut asking = Asking {
            id,
            rank: self.options.rank,
            nonce: &nonce,
            ticket: None,
            deadline: None,
        };
        let mut attempt = Attempt::of(group);
        loop {
            let snapshot = attempt.load(&Look::default()).await?;
            let answer = match lock::pre_reboot(&snapshot, &asking, now()) {
                Step::Yes => Ok(()),
                Step::No(refusal) => Err(refusal),
                Step::Waits(ticket, refusal) => {
                    // If it cannot be kept alive, the client queues anew.
                    let _ = group.store.keep_alive(ticket).await;
                    Err(refusal)
                }
                // Most are told no from what they see; only those that write
                // wait for their turn, and look again then.
                _ if attempt.takes_turn().await? => continue,
                Step::LeaseTicket => {
                    asking.ticket = Some(attempt.lease(self.options.patience).await?);
                    continue;
                }
                Step::LeaseDeadline => {
                    asking.deadline = Some(attempt.lease(self.options.deadline).await?);
                    continue;
                }
                Step::Commit(transaction) => {
                    if attempt.commit(&transaction).await? == Done::LeaseGone {
                        (asking.ticket, asking.deadline) = (None, None);
                    }
                    continue;
                }
            };
            if answer.is_ok() && attempt.changed {
                info!(id = id.as_str(), group = %group.name, "a FleetLock client has a place");
            }
            for lease in lock::unused(&snapshot, &asking) {
                // It ends by itself anyway.
                let _ = group.store.revoke_lease(lease).await;
            }
            return answer;
        }
    }

    /// Looks after a group for ever: notices who is overdue, gives free places
    /// to those in line, shows the group in the metrics.
    async fn keep_house(&self, group: &Served) {
        loop {
            if let Err(error) = self.tidy(group).await {
                warn!(group = %group.name, "housekeeping: {error}");
            }
            // Servers of one group shall not stay in step.
            let spread = 0.8 + 0.4 * fastrand::f64();
            tokio::time::sleep(self.options.housekeeping.mul_f64(spread)).await;
        }
    }

    async fn tidy(&self, group: &Served) -> Result<(), StoreError> {
        for _ in 0..MOST_CHORES {
            let snapshot = group.store.load(&Look::default()).await?;
            self.metrics.update_from(&group.name, &snapshot, now());
            let Some(transaction) = chore(&snapshot, now()) else {
                return Ok(());
            };
            let _turn = group.writing.lock().await;
            group.store.commit(&transaction).await?;
        }
        Ok(())
    }
}

async fn steady_state(group: &Served, id: &MachineId) -> Result<(), Refusal> {
    let look = Look {
        ticket: None,
        history: Some(id.clone()),
    };
    let mut attempt = Attempt::of(group);
    loop {
        let snapshot = attempt.load(&look).await?;
        match lock::steady_state(&snapshot, id, now()) {
            None => {
                if attempt.changed {
                    info!(id = id.as_str(), group = %group.name, "a FleetLock client is steady again");
                }
                return Ok(());
            }
            Some(_) if attempt.takes_turn().await? => {}
            Some(transaction) => {
                attempt.commit(&transaction).await?;
            }
        }
    }
}

async fn read_body(request: Request) -> Result<Bytes, Refusal> {
    let too_long = || {
        let value = format!("the body is longer than {MOST_BYTES} bytes");
        Refusal::new(Kind::BodyTooLong, value)
    };
    // One that is announced is not waited for.
    let length = request.headers().get(header::CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if length.is_some_and(|length| length > MOST_BYTES) {
        return Err(too_long());
    }
    match tokio::time::timeout(BODY_LIMIT, Bytes::from_request(request, &())).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(rejection)) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => {
            Err(too_long())
        }
        Ok(Err(rejection)) => Err(Refusal::new(
            Kind::InvalidClientIdentity,
            rejection.body_text(),
        )),
        Err(_elapsed) => Err(Refusal::new(
            Kind::BodyTooSlow,
            "the body did not arrive in time",
        )),
    }
}

/// One request's dealings with the store: tries again what may be tried again,
/// until there is no time left.
struct Attempt<'a> {
    group: &'a Served,
    last: Instant,
    wait: Duration,
    turn: Option<MutexGuard<'a, ()>>,
    /// Something was committed.
    changed: bool,
}

/// How a commit ended, as far as it matters before the next look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Done {
    /// Whatever happened, the next look shows it.
    Look,
    /// The leases are no more.
    LeaseGone,
}

impl<'a> Attempt<'a> {
    fn of(group: &'a Served) -> Self {
        Self {
            group,
            last: Instant::now() + LAST_ATTEMPT,
            wait: RETRY,
            turn: None,
            changed: false,
        }
    }

    /// Waits for this request's turn to write. False: it has it already.
    async fn takes_turn(&mut self) -> Result<bool, Refusal> {
        if self.turn.is_some() {
            return Ok(false);
        }
        let turn = tokio::time::timeout_at(self.last, self.group.writing.lock()).await;
        self.turn = Some(turn.map_err(|_elapsed| busy())?);
        Ok(true)
    }

    async fn load(&mut self, look: &Look) -> Result<Snapshot, Refusal> {
        loop {
            match self.group.store.load(look).await {
                Ok(snapshot) => return Ok(snapshot),
                Err(error) => self.again(refusal(&error)).await?,
            }
        }
    }

    async fn lease(&mut self, ttl: Duration) -> Result<LeaseId, Refusal> {
        loop {
            match self.group.store.grant_lease(ttl).await {
                Ok(lease) => return Ok(lease),
                Err(error) => self.again(refusal(&error)).await?,
            }
        }
    }

    async fn commit(&mut self, transaction: &Transaction) -> Result<Done, Refusal> {
        match self.group.store.commit(transaction).await {
            Ok(committed) if committed.succeeded => self.changed = true,
            Ok(_) => self.again(busy()).await?,
            Err(StoreError::LeaseGone { .. }) => {
                self.again(busy()).await?;
                return Ok(Done::LeaseGone);
            }
            Err(error) => self.again(refusal(&error)).await?,
        }
        Ok(Done::Look)
    }

    /// Waits a little for another try, unless it would be in vain: then `why` is
    /// the answer.
    async fn again(&mut self, why: Refusal) -> Result<(), Refusal> {
        let hopeless = matches!(why.kind, Kind::StoreRefused | Kind::StoreBadValue);
        if hopeless || Instant::now() >= self.last {
            return Err(why);
        }
        tokio::time::sleep(self.wait.mul_f64(fastrand::f64())).await;
        self.wait = (self.wait * 2).min(MOST_RETRY);
        Ok(())
    }
}

fn busy() -> Refusal {
    Refusal::new(
        Kind::StoreBusy,
        "too many change this group at the same time",
    )
}

fn refusal(error: &StoreError) -> Refusal {
    let kind = match error {
        StoreError::Refused { .. } => Kind::StoreRefused,
        StoreError::BadValue { .. } => Kind::StoreBadValue,
        _ => Kind::StoreUnavailable,
    };
    Refusal::new(kind, error.to_string())
}

fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

fn chore(snapshot: &Snapshot, now: i64) -> Option<Transaction> {
    if snapshot.document_only {
        return None;
    }
    failures::mark_overdue(snapshot, now).or_else(|| places::serve(snapshot, now))
}

#[cfg(test)]
mod tests;
