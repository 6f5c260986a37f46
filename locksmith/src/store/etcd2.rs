//! The semaphore in etcd, by its v2 API: the original's document and nothing
//! beside it. No queue, no halt, no records of holders, no leases.
//!
//! The requests are the original's, but for two things: reads ask the quorum,
//! and nothing is created by looking.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use reqwest::{Certificate, Client, Identity, Method, RequestBuilder, StatusCode};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::{sleep, timeout};

use super::etcd::{EtcdOptions, Stamp, handshake_hint, refused};
use super::failover::{ATTEMPT_LIMIT, Endpoints, Failed, Repeat, Verdict, no_answer};
use super::{COMMIT, Committed, LOAD, SemaphoreStore, StoreError, check};
use crate::config::DEFAULT_ENDPOINTS;
use crate::group::{GroupName, escape};
use crate::semaphore::{
    BadRecord, Compare, Document, Key, LeaseId, Look, Record, Revision, Snapshot, Transaction,
    Versioned, Write,
};

/// The largest answer that is read.
const MOST_BYTES: usize = 4 << 20;
/// The longest time that one question of a watch waits for a change.
const WATCH_LIMIT: Duration = Duration::from_secs(60);
/// Longest pause of a watch after a failure.
const WATCH_PAUSE: Duration = Duration::from_secs(5);
/// What to do about a server that answers something else.
const NO_V2: &str =
    "does it speak the v2 API? etcd 3.4 and 3.5 need --enable-v2, later ones have none";

/// One group in etcd v2.
#[derive(Debug, Clone)]
pub struct Etcd2Store {
    shared: Arc<Shared>,
}

/// The best API that a server has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EtcdApi {
    /// The original's.
    V2,
    /// What every etcd since 3.0 speaks.
    V3,
}

#[derive(Debug)]
struct Shared {
    options: EtcdOptions,
    endpoints: Endpoints,
    client: Mutex<Option<(Stamp, Client)>>,
    /// `/v2/keys/` and the key, as in a URL.
    path: String,
    key: String,
}

/// What the servers say to a question by the v2 API.
#[derive(Debug)]
pub(super) enum Spoken {
    /// One has answered it.
    Yes(Box<Snapshot>),
    /// None of them speaks v2, as far as a client can know.
    Nowhere,
    /// Some of them do not speak v2, and the others may.
    Unclear(StoreError),
}

/// What the endpoints, by their numbers, have said of v2.
#[derive(Debug, Default)]
struct Heard(BTreeMap<usize, OfV2>);

/// What one endpoint has said; of several answers the one that stands last here counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum OfV2 {
    /// Nobody listens there.
    Nobody,
    /// etcd itself says that it does not speak it.
    Not,
    /// Something else.
    Other,
}

/// What a server says at `/version`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Version {
    etcdserver: String,
    /// The least of all members.
    etcdcluster: String,
}

/// What a server says of a key that it has.
#[derive(Debug, Deserialize)]
struct Found {
    node: Node,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Node {
    value: String,
    modified_index: Revision,
    created_index: Revision,
}

/// What a server says instead.
#[derive(Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
struct Said {
    error_code: i64,
    message: String,
    cause: String,
    index: Revision,
}

/// An answer that is understood.
#[derive(Debug)]
enum Answer {
    Found(Node),
    /// There is no such key.
    Absent(Revision),
    /// A condition did not hold.
    Conflict(Revision),
    /// The watched index is too old.
    Cleared(Revision),
}

/// The condition of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Condition {
    None,
    Absent,
    Modified(Revision),
}

/// Finds out which API the servers speak: v3, unless they know v2 alone. Those of
/// 3.x may speak both.
///
/// # Errors
///
/// No endpoint answers, or the options cannot work.
pub async fn detect_api(options: &EtcdOptions) -> Result<EtcdApi, StoreError> {
    let store = Etcd2Store::new(options.clone(), &GroupName::default())?;
    Ok(if store.shared.version().await?.knows_v2_alone() {
        EtcdApi::V2
    } else {
        EtcdApi::V3
    })
}

impl Version {
    fn knows_v2_alone(&self) -> bool {
        matches!(self.etcdserver.split('.').next(), Some("0" | "2"))
    }

    /// Whether no member can be started with v2.
    fn has_lost_v2(&self) -> bool {
        let mut numbers = self.etcdcluster.split('.').map(str::parse);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= (3_u32, 6_u32),
            _ => false,
        }
    }
}

impl Heard {
    fn note(&mut self, endpoint: usize, said: OfV2) {
        let noted = self.0.entry(endpoint).or_insert(said);
        *noted = said.max(*noted);
    }

    fn count(&self, said: OfV2) -> usize {
        self.0.values().filter(|noted| **noted == said).count()
    }

    /// Whether the fleet cannot lock by v2 at these endpoints.
    ///
    /// Members of one cluster have one store: what is locked by v2 can be read at
    /// each one that speaks it. So if most say that they do not and the others say
    /// nothing, a cluster that never had v2 has lost a member, or somebody ends v2
    /// where the fleet still locks by it, which the documentation forbids. A member
    /// that answers, whatever it is, may speak v2.
    fn is_nowhere(&self, endpoints: &[String]) -> bool {
        let without = self.count(OfV2::Not);
        // One member, that listens at one of the two as a rule.
        let nobody = if endpoints.iter().eq(DEFAULT_ENDPOINTS.split(',')) {
            self.count(OfV2::Nobody)
        } else {
            0
        };
        without > 0 && without + nobody >= endpoints.len()
            || without > endpoints.len() / 2 && self.count(OfV2::Other) == 0
    }
}

impl Etcd2Store {
    /// Does not touch the network.
    ///
    /// # Errors
    ///
    /// Options that cannot work, or a TLS file that cannot be read.
    pub fn new(options: EtcdOptions, group: &GroupName) -> Result<Self, StoreError> {
        options.check()?;
        let key = format!("{}{}", group.prefix(), Key::Document.name());
        let shared = Shared {
            endpoints: Endpoints::new(options.endpoints.clone()),
            client: Mutex::new(None),
            // The name is escaped already, and its escapes are part of the key.
            path: format!("/v2/keys/{}", key.replace('%', "%25")),
            key,
            options,
        };
        shared.client()?;
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// Finds out early whether etcd can be reached and lets us in.
    ///
    /// # Errors
    ///
    /// What a load would say.
    pub async fn probe(&self) -> Result<(), StoreError> {
        self.shared.read().await.map(|_| ())
    }

    /// A load that tells whether v2 is spoken at all. Members of one etcd may
    /// differ: each is started with or without it.
    ///
    /// # Errors
    ///
    /// As a load, where no server says that it does not speak v2.
    pub(super) async fn load_if_spoken(&self) -> Result<Spoken, StoreError> {
        let shared = &self.shared;
        let heard = Mutex::new(Heard::default());
        let note = |endpoint, said| {
            let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
            heard.note(endpoint, said);
        };
        let note = &note;
        let loaded = shared
            .endpoints
            .call(LOAD, Repeat::Safe, |endpoint, limit| async move {
                let asked = shared.attempt(endpoint, limit, |client, url| {
                    client.get(shared.question(url))
                });
                let answer = asked.await.inspect_err(|failed| {
                    if failed.verdict == Verdict::NobodyListens {
                        note(endpoint, OfV2::Nobody);
                    }
                })?;
                let not = has_no_v2(&answer);
                note(endpoint, if not { OfV2::Not } else { OfV2::Other });
                Ok((understand(&answer)?, answer.2))
            })
            .await;
        let heard = heard.into_inner().unwrap_or_else(PoisonError::into_inner);
        match loaded {
            Ok((answer, index)) => {
                let seen = shared.snapshot(answer, index)?;
                Ok(Spoken::Yes(Box::new(seen)))
            }
            Err(error) if heard.count(OfV2::Not) == 0 => Err(error),
            Err(_) if heard.is_nowhere(&shared.options.endpoints) => Ok(Spoken::Nowhere),
            Err(error) => Ok(match shared.version().await {
                Ok(version) if version.has_lost_v2() => Spoken::Nowhere,
                _ => Spoken::Unclear(error),
            }),
        }
    }
}

impl SemaphoreStore for Etcd2Store {
    fn load<'a>(&'a self, _look: &'a Look) -> BoxFuture<'a, Result<Snapshot, StoreError>> {
        self.shared.read().boxed()
    }

    fn commit<'a>(
        &'a self,
        transaction: &'a Transaction,
    ) -> BoxFuture<'a, Result<Committed, StoreError>> {
        self.shared.commit(transaction).boxed()
    }

    /// There are none: nothing can be put under it.
    fn grant_lease(&self, _ttl: Duration) -> BoxFuture<'_, Result<LeaseId, StoreError>> {
        futures_util::future::ready(Ok(LeaseId::default())).boxed()
    }

    fn keep_alive(&self, _lease: LeaseId) -> BoxFuture<'_, Result<bool, StoreError>> {
        futures_util::future::ready(Ok(true)).boxed()
    }

    fn revoke_lease(&self, _lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>> {
        futures_util::future::ready(Ok(())).boxed()
    }

    fn watch(&self, keys: Vec<Key>, after: Revision) -> BoxStream<'static, ()> {
        if !keys.contains(&Key::Document) {
            return futures_util::stream::pending().boxed();
        }
        let start = (Arc::clone(&self.shared), after.saturating_add(1));
        futures_util::stream::unfold(start, |(shared, from)| async move {
            let seen = shared.change(from).await;
            Some(((), (shared, seen.saturating_add(1))))
        })
        .boxed()
    }
}

impl Shared {
    fn question(&self, url: &str) -> String {
        let path = &self.path;
        format!("{url}{path}?quorum=true&recursive=false&sorted=false")
    }

    /// Empty if it is none that is known.
    async fn version(&self) -> Result<Version, StoreError> {
        let asked = self.call("ask for etcd's version", Repeat::Safe, |client, url| {
            client.get(format!("{url}/version"))
        });
        let (_, text) = asked.await?;
        Ok(serde_json::from_slice(&text).unwrap_or_default())
    }

    async fn read(&self) -> Result<Snapshot, StoreError> {
        let (answer, index) = self
            .ask(LOAD, Repeat::Safe, |client, url| {
                client.get(self.question(url))
            })
            .await?;
        self.snapshot(answer, index)
    }

    fn snapshot(&self, answer: Answer, index: Revision) -> Result<Snapshot, StoreError> {
        let mut snapshot = Snapshot {
            document_only: true,
            ..Snapshot::default()
        };
        match answer {
            Answer::Found(node) => {
                let document = Document::read(node.value.as_bytes()).map_err(|source| {
                    StoreError::BadValue {
                        key: self.key.clone(),
                        source: BadRecord::from(source),
                    }
                })?;
                snapshot.revision = index.max(node.modified_index);
                snapshot.document = Versioned {
                    value: Some(Arc::new(document)),
                    created: node.created_index,
                    modified: node.modified_index,
                };
            }
            Answer::Absent(index) | Answer::Conflict(index) | Answer::Cleared(index) => {
                snapshot.revision = index;
            }
        }
        Ok(snapshot)
    }

    /// Keys beside the document are absent by definition; writes of them are
    /// left out.
    async fn commit(&self, transaction: &Transaction) -> Result<Committed, StoreError> {
        check(transaction)?;
        let mut condition = Condition::None;
        let mut holds = true;
        for compare in &transaction.when {
            match compare {
                Compare::Modified(Key::Document, 0) | Compare::Created(Key::Document, 0) => {
                    condition = Condition::Absent;
                }
                Compare::Modified(Key::Document, at) => condition = Condition::Modified(*at),
                Compare::Created(Key::Document, _) => {
                    return Err(cannot("compare when the document was created"));
                }
                Compare::Modified(_, at) | Compare::Created(_, at) => holds &= *at == 0,
            }
        }
        if document(&transaction.otherwise)?.is_some() {
            return Err(cannot("write the document if a condition fails"));
        }
        match document(&transaction.then)? {
            Some(document) if holds => self.put(document, condition).await,
            _ => {
                let seen = self.read().await?;
                let succeeded = holds
                    && match condition {
                        Condition::None => true,
                        Condition::Absent => seen.document.modified == 0,
                        Condition::Modified(at) => seen.document.modified == at,
                    };
                Ok(Committed {
                    succeeded,
                    revision: seen.revision,
                })
            }
        }
    }

    async fn put(
        &self,
        document: &Document,
        condition: Condition,
    ) -> Result<Committed, StoreError> {
        let path = match condition {
            Condition::None => self.path.clone(),
            Condition::Absent => format!("{}?prevExist=false", self.path),
            Condition::Modified(at) => format!("{}?prevIndex={at}", self.path),
        };
        let body = format!("value={}", escape(&document.write()));
        let answer = self
            .ask(COMMIT, Repeat::Never, |client, url| {
                client
                    .request(Method::PUT, format!("{url}{path}"))
                    .header("content-type", "application/x-www-form-urlencoded")
                    .body(body.clone())
            })
            .await?;
        Ok(match answer.0 {
            Answer::Found(node) => Committed {
                succeeded: true,
                revision: node.modified_index,
            },
            Answer::Absent(revision) | Answer::Conflict(revision) | Answer::Cleared(revision) => {
                Committed {
                    succeeded: false,
                    revision,
                }
            }
        })
    }

    /// Waits for a change at `from` or later, however long, and returns its
    /// index.
    async fn change(&self, from: Revision) -> Revision {
        loop {
            let endpoint = self.endpoints.current();
            let path = format!("{}?wait=true&waitIndex={from}", self.path);
            let asked = self.attempt(endpoint, WATCH_LIMIT, |client, url| {
                client.get(format!("{url}{path}"))
            });
            match asked.await.and_then(|answer| understand(&answer)) {
                Ok(Answer::Found(node)) => return node.modified_index.max(from),
                // Something may have been missed.
                Ok(Answer::Cleared(index)) => return index,
                // A limit has passed, here or there.
                Ok(Answer::Absent(_) | Answer::Conflict(_)) => {}
                Err(failed) if failed.text == no_answer(WATCH_LIMIT) => {}
                Err(failed) => {
                    tracing::debug!(why = failed.text, "the watch on etcd is re-opened");
                    self.endpoints.leave(endpoint);
                    sleep(WATCH_PAUSE.mul_f64(fastrand::f64())).await;
                }
            }
        }
    }

    async fn ask(
        &self,
        what: &'static str,
        repeat: Repeat,
        request: impl Fn(&Client, &str) -> RequestBuilder + Sync,
    ) -> Result<(Answer, Revision), StoreError> {
        let request = &request;
        self.endpoints
            .call(what, repeat, |endpoint, limit| async move {
                let answer = self.attempt(endpoint, limit, request).await?;
                Ok((understand(&answer)?, answer.2))
            })
            .await
    }

    async fn call(
        &self,
        what: &'static str,
        repeat: Repeat,
        request: impl Fn(&Client, &str) -> RequestBuilder + Sync,
    ) -> Result<(StatusCode, Vec<u8>), StoreError> {
        let request = &request;
        self.endpoints
            .call(what, repeat, |endpoint, limit| async move {
                let answer = self.attempt(endpoint, limit, request).await?;
                Ok((answer.0, answer.1))
            })
            .await
    }

    /// One request: status, body and `X-Etcd-Index`.
    async fn attempt(
        &self,
        endpoint: usize,
        limit: Duration,
        request: impl Fn(&Client, &str) -> RequestBuilder,
    ) -> Result<(StatusCode, Vec<u8>, Revision), Failed> {
        let client = self.client().map_err(|error| Failed {
            sent: false,
            verdict: Verdict::Refused("check the TLS files"),
            text: error.to_string(),
        })?;
        let mut request = request(&client, self.endpoints.url(endpoint).trim_end_matches('/'));
        if let Some((user, password)) = self.options.credentials() {
            request = request.basic_auth(user, Some(password));
        }
        let exchange = async {
            let mut response = request.send().await?;
            let index = response
                .headers()
                .get("x-etcd-index")
                .and_then(|index| index.to_str().ok()?.parse().ok())
                .unwrap_or(0);
            let mut body = Vec::new();
            while let Some(chunk) = response.chunk().await? {
                if body.len() + chunk.len() > MOST_BYTES {
                    break;
                }
                body.extend_from_slice(&chunk);
            }
            Ok((response.status(), body, index))
        };
        match timeout(limit, exchange).await {
            Ok(answer) => answer.map_err(|error| {
                let mut failed = failed(&error);
                failed.text.push_str(self.options.perhaps(&failed.text));
                failed
            }),
            Err(_) => Err(Failed {
                sent: true,
                verdict: Verdict::Open,
                text: no_answer(limit),
            }),
        }
    }

    /// The client, made anew when the TLS files have changed.
    fn client(&self) -> Result<Client, StoreError> {
        let stamp = self.options.stamp();
        let mut made = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, client)) = &*made
            && *of == stamp
        {
            return Ok(client.clone());
        }
        let mut builder = Client::builder()
            .connect_timeout(ATTEMPT_LIMIT)
            .redirect(reqwest::redirect::Policy::limited(3));
        // As Go does: a proxy is not asked for the own host.
        if self.options.endpoints.iter().all(|url| is_loopback(url)) {
            builder = builder.no_proxy();
        }
        let bad = |error: reqwest::Error| refused(chain(&error));
        if let Some(files) = self.options.read_tls()? {
            if let Some(pem) = files.authorities {
                builder = builder.tls_certs_only(Certificate::from_pem_bundle(&pem).map_err(bad)?);
            }
            if let Some((mut certificate, key)) = files.identity {
                certificate.push(b'\n');
                certificate.extend(key);
                builder = builder.identity(Identity::from_pem(&certificate).map_err(bad)?);
            }
        } else {
            // Otherwise a system without authorities has no http either.
            builder = builder.tls_certs_only([]);
        }
        let client = builder.build().map_err(bad)?;
        *made = Some((stamp, client.clone()));
        Ok(client)
    }
}

fn is_loopback(url: &str) -> bool {
    let host = url.split_once("://").map_or(url, |(_, host)| host);
    ["localhost", "127.", "[::1]"]
        .iter()
        .any(|local| host.starts_with(local))
}

/// The document that `writes` put, if they put one.
fn document(writes: &[Write]) -> Result<Option<&Document>, StoreError> {
    let mut found = None;
    for write in writes {
        match write {
            Write::Put(Key::Document, Record::Document(document), _) => found = Some(document),
            Write::Put(Key::Document, _, _) | Write::Delete(Key::Document) => {
                return Err(cannot("remove the document"));
            }
            Write::Put(..) | Write::Delete(_) => {}
        }
    }
    Ok(found)
}

fn cannot(what: &str) -> StoreError {
    StoreError::Refused {
        what: COMMIT,
        reason: format!("the etcd v2 store cannot {what}"),
    }
}

/// Whether etcd itself says that it does not speak v2, and nobody before it.
fn has_no_v2((status, body, _): &(StatusCode, Vec<u8>, Revision)) -> bool {
    *status == StatusCode::NOT_FOUND && body.trim_ascii() == b"404 page not found"
}

fn understand((status, body, _): &(StatusCode, Vec<u8>, Revision)) -> Result<Answer, Failed> {
    let told = |verdict, text: String| Failed {
        sent: true,
        verdict,
        text,
    };
    if *status == StatusCode::UNAUTHORIZED || *status == StatusCode::FORBIDDEN {
        let text = serde_json::from_slice(body)
            .map_or_else(|_| status.to_string(), |said: Said| said.to_string());
        let hint = "check etcd-username and etcd-password, and the user's role";
        return Err(told(Verdict::Refused(hint), text));
    }
    if status.is_success()
        && let Ok(found) = serde_json::from_slice::<Found>(body)
    {
        return Ok(Answer::Found(found.node));
    }
    let said = match serde_json::from_slice::<Value>(body) {
        // A question that waited to the server's limit ends with nothing.
        Err(_) if status.is_success() && body.is_empty() => return Ok(Answer::Absent(0)),
        Ok(value @ Value::Object(_)) => serde_json::from_value::<Said>(value).unwrap_or_default(),
        _ => Said::default(),
    };
    match said.error_code {
        0 if status.is_server_error() => Err(told(Verdict::Open, status.to_string())),
        0 => Err(told(
            Verdict::RefusedHere(NO_V2),
            "client: response is invalid json. The endpoint is probably not valid etcd cluster endpoint"
                .into(),
        )),
        100 => Ok(Answer::Absent(said.index)),
        101 | 105 => {
            tracing::debug!(%said, "somebody was faster");
            Ok(Answer::Conflict(said.index))
        }
        401 => Ok(Answer::Cleared(said.index)),
        110 => Err(told(Verdict::Refused("check etcd-username and etcd-password"), said.to_string())),
        // Of the cluster itself: not decided, or no leader.
        300..=400 => Err(told(Verdict::Open, said.to_string())),
        _ => Err(told(Verdict::Refused("etcd does not take the request"), said.to_string())),
    }
}

fn failed(error: &reqwest::Error) -> Failed {
    let text = chain(error);
    let mut verdict = Verdict::Open;
    if error.is_connect() {
        verdict = Verdict::NotCarriedOut;
        let mut cause = error.source();
        while let Some(error) = cause {
            if error
                .downcast_ref::<io::Error>()
                .is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
            {
                verdict = Verdict::NobodyListens;
            }
            cause = error.source();
        }
    }
    if let Some(hint) = handshake_hint(&text) {
        verdict = Verdict::RefusedHere(hint);
    }
    Failed {
        sent: !error.is_connect(),
        verdict,
        text,
    }
}

/// The error and its causes, without the URL, which stands before it anyway.
fn chain(error: &reqwest::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = error.to_string();
        if !parts.iter().any(|said| said.contains(&part)) {
            parts.push(part);
        }
        cause = error.source();
    }
    if parts.is_empty() {
        parts.push(error.to_string());
    }
    parts.join(": ")
}

/// As the original prints it: `101: Compare failed ([11 != 12]) [12]`.
impl std::fmt::Display for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            error_code,
            message,
            cause,
            index,
        } = self;
        write!(f, "{error_code}: {message} ({cause}) [{index}]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v2_is_nowhere_if_nobody_can_be_thought_to_speak_it() {
        use OfV2::{Nobody, Not, Other};
        let defaults: Vec<_> = DEFAULT_ENDPOINTS.split(',').map(str::to_owned).collect();
        let some = |count| -> Vec<String> { (0..count).map(|i| format!("http://{i}")).collect() };
        // Endpoints that are not named were silent.
        for (endpoints, said, nowhere) in [
            (some(1), &[(0, Not)][..], true),
            (some(2), &[(0, Not), (1, Not)], true),
            (some(2), &[(0, Not)], false),
            (some(2), &[(0, Not), (1, Nobody)], false),
            (some(2), &[(0, Not), (1, Other)], false),
            // Each counts once, whatever it says in a second round.
            (some(2), &[(0, Nobody), (0, Not)], false),
            (some(2), &[(0, Not), (0, Not)], false),
            (defaults.clone(), &[(0, Nobody), (0, Not)], false),
            (defaults.clone(), &[(0, Not), (1, Nobody)], true),
            (defaults.clone(), &[(0, Nobody), (1, Nobody)], false),
            (defaults, &[(0, Not)], false),
            (some(3), &[(0, Not), (2, Not)], true),
            (some(3), &[(0, Not), (1, Nobody), (2, Not)], true),
            (some(3), &[(0, Not), (1, Nobody), (2, Nobody)], false),
            (some(3), &[(0, Not), (1, Other), (2, Not)], false),
            (some(3), &[(0, Not), (1, Other), (1, Not), (2, Not)], false),
            (some(4), &[(0, Not), (1, Not)], false),
        ] {
            let mut heard = Heard::default();
            for &(endpoint, answer) in said {
                heard.note(endpoint, answer);
            }
            assert_eq!(
                heard.is_nowhere(&endpoints),
                nowhere,
                "{endpoints:?} {said:?}"
            );
        }
    }

    #[test]
    fn v2_is_lost_when_all_members_are_of_a_later_version() {
        for (cluster, lost) in [
            ("3.4.0", false),
            ("3.5.0", false),
            ("3.6.0", true),
            ("3.10.0", true),
            ("4.0.0", true),
            ("2.3.0", false),
            ("not_decided", false),
            ("", false),
            ("3", false),
        ] {
            let version = Version {
                etcdserver: "3.6.1".into(),
                etcdcluster: cluster.into(),
            };
            assert_eq!(version.has_lost_v2(), lost, "{cluster}");
        }
    }

    #[test]
    fn answers_are_told_apart() {
        let hear = |status: u16, body: &str| {
            let status = StatusCode::from_u16(status).unwrap();
            match understand(&(status, body.as_bytes().to_vec(), 0)) {
                Ok(answer) => format!("{answer:?}"),
                Err(failed) => format!("{:?} {}", failed.verdict, failed.text),
            }
        };
        let error = |code: i64| {
            format!(
                r#"{{"errorCode":{code},"message":"Compare failed","cause":"[11 != 12]","index":12}}"#
            )
        };
        for (status, body, heard) in [
            (
                201,
                r#"{"action":"create","node":{"key":"/k","value":"v","modifiedIndex":4,"createdIndex":3}}"#.to_owned(),
                r#"Found(Node { value: "v", modified_index: 4, created_index: 3 })"#,
            ),
            (404, error(100), "Absent(12)"),
            (412, error(101), "Conflict(12)"),
            (412, error(105), "Conflict(12)"),
            (400, error(401), "Cleared(12)"),
            (200, String::new(), "Absent(0)"),
            (500, error(300), "Open 300: Compare failed ([11 != 12]) [12]"),
            (503, "<html>".to_owned(), "Open 503 Service Unavailable"),
        ] {
            assert_eq!(hear(status, &body), heard);
        }
        for (status, body, hint) in [
            (
                401,
                r#"{"message":"Insufficient credentials"}"#,
                "etcd-password",
            ),
            (404, "404 page not found\n", "--enable-v2"),
            (200, "<html>", "--enable-v2"),
        ] {
            let heard = hear(status, body);
            assert!(
                heard.starts_with("Refused") && heard.contains(hint),
                "{heard}"
            );
        }
    }
}
