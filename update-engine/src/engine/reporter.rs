//! Posts events to the update server. What cannot be posted now is kept and goes
//! out before the next thing that is.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use omaha_protocol::Request;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use super::World;
use super::attempt::Attempt;
use crate::net::Transport;
use crate::prefs::{Key, StateStore};

/// Preference key of the kept requests.
const OUTBOX: Key = Key::new("unsent-events");
/// More are dropped, the oldest first: a machine that is offline for a year
/// must not fill its disk.
const MOST_KEPT: usize = 32;
/// How long an attempt waits for an event to be taken.
const PATIENCE: Duration = Duration::from_secs(5);
const CONTENT_TYPE: &str = "text/xml";
/// Answers to events are not read.
const ANSWER_LIMIT: u64 = 1024 * 1024;

/// Whether an event is worth keeping when the server cannot be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    /// Part of the story of an installation.
    Yes,
    /// About the server itself; stale by the time it could be read.
    No,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Unsent {
    url: String,
    body: String,
}

/// Posts one at a time, so that events arrive in the order of the moments.
pub(super) struct Reporter {
    prefs: Arc<dyn StateStore>,
    turn: Mutex<()>,
    /// Held while the kept events are changed, never while one is posted.
    outbox: std::sync::Mutex<()>,
}

impl World {
    /// Reports, but does not wait longer than [`PATIENCE`] for the server: the
    /// post goes on by itself.
    pub(super) async fn report(
        self: &Arc<Self>,
        attempt: &Arc<Attempt>,
        what: Request,
        keep: Keep,
    ) {
        let (world, attempt) = (Arc::clone(self), Arc::clone(attempt));
        let posting =
            tokio::spawn(async move { world.reporter.report(&attempt, &what, keep).await });
        let _ = tokio::time::timeout(PATIENCE, posting).await;
    }

    /// Posts what was kept, with the same limit.
    pub(super) async fn post_kept(self: &Arc<Self>, attempt: &Arc<Attempt>) {
        let (world, attempt) = (Arc::clone(self), Arc::clone(attempt));
        let posting =
            tokio::spawn(async move { world.reporter.post_kept(&*attempt.transport).await });
        let _ = tokio::time::timeout(PATIENCE, posting).await;
    }
}

impl Reporter {
    pub(super) fn new(prefs: Arc<dyn StateStore>) -> Self {
        Self {
            prefs,
            turn: Mutex::new(()),
            outbox: std::sync::Mutex::new(()),
        }
    }

    /// Posts a request with an event after everything kept before it. With
    /// [`Keep::Yes`] it is written down first, so that a crash or a reboot in the
    /// middle of the post loses nothing.
    pub(super) async fn report(&self, attempt: &Attempt, request: &Request, keep: Keep) {
        let unsent = Unsent {
            url: attempt.settings.server.clone(),
            body: request.to_xml(),
        };
        self.send(&*attempt.transport, &unsent, keep).await;
    }

    async fn send(&self, transport: &dyn Transport, unsent: &Unsent, keep: Keep) {
        let kept = keep == Keep::Yes && self.keep(unsent);
        let unreachable = self.post_kept(transport).await;
        if !kept && !unreachable.contains(&unsent.url) {
            post(transport, unsent).await;
        }
    }

    /// Posts what was kept. After a failure the rest for the same server waits,
    /// but not what is for another: an operator may have moved this machine away
    /// from a server that is gone. Gives the servers that something still waits for.
    async fn post_kept(&self, transport: &dyn Transport) -> Vec<String> {
        let _turn = self.turn.lock().await;
        let mut unreachable = Vec::new();
        while let Some(unsent) = self
            .load()
            .into_iter()
            .find(|unsent| !unreachable.contains(&unsent.url))
        {
            if !post(transport, &unsent).await {
                unreachable.push(unsent.url);
            } else if !self.forget(&unsent) {
                // It would be posted again and again.
                break;
            }
        }
        unreachable
    }

    fn keep(&self, unsent: &Unsent) -> bool {
        self.change(|kept| {
            kept.push(unsent.clone());
            let surplus = kept.len().saturating_sub(MOST_KEPT);
            kept.drain(..surplus);
        })
    }

    fn forget(&self, sent: &Unsent) -> bool {
        self.change(|kept| {
            if let Some(index) = kept.iter().position(|unsent| unsent == sent) {
                kept.remove(index);
            }
        })
    }

    /// Whether the change was written down.
    fn change(&self, change: impl FnOnce(&mut Vec<Unsent>)) -> bool {
        let _outbox = self.outbox.lock().unwrap_or_else(PoisonError::into_inner);
        let mut kept = self.load();
        change(&mut kept);
        self.store(&kept)
    }

    fn load(&self) -> Vec<Unsent> {
        match self.prefs.load_text(OUTBOX) {
            Ok(Some(text)) => serde_json::from_str(&text).unwrap_or_else(|error| {
                tracing::warn!(%error, "kept events are unreadable and dropped");
                Vec::new()
            }),
            Ok(None) => Vec::new(),
            Err(error) => {
                tracing::warn!(%error, "cannot read kept events");
                Vec::new()
            }
        }
    }

    fn store(&self, kept: &[Unsent]) -> bool {
        let result = if kept.is_empty() {
            self.prefs.remove(OUTBOX)
        } else {
            serde_json::to_string(kept)
                .map_err(|error| tracing::error!(%error, "cannot encode events"))
                .map_or(Ok(()), |text| self.prefs.commit(OUTBOX, text.as_bytes()))
        };
        if let Err(error) = result {
            tracing::warn!(%error, "cannot keep events for later");
            return false;
        }
        true
    }
}

/// Whether the server took it. An answer that refuses the event counts as taken:
/// it would be refused again.
async fn post(transport: &dyn Transport, unsent: &Unsent) -> bool {
    let body = unsent.body.clone().into_bytes().into();
    match transport
        .post(&unsent.url, CONTENT_TYPE, body, ANSWER_LIMIT)
        .await
    {
        Ok(reply) if reply.status >= 500 => {
            tracing::warn!(
                status = reply.status,
                url = unsent.url,
                "the server did not take an event"
            );
            false
        }
        Ok(_) => true,
        Err(error) => {
            tracing::warn!(%error, url = unsent.url, "cannot post an event, it is kept");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::BoxFuture;

    use super::*;
    use crate::error::TransportError;
    use crate::net::{RangeReply, RangeRequest, Reply};
    use crate::prefs::testing::MemoryStore;

    /// One server is gone; the others take what they get.
    #[derive(Default)]
    struct Servers(std::sync::Mutex<Vec<String>>);

    impl Transport for Servers {
        fn post<'a>(
            &'a self,
            url: &'a str,
            _: &'static str,
            body: bytes::Bytes,
            _: u64,
        ) -> BoxFuture<'a, Result<Reply, TransportError>> {
            Box::pin(async move {
                if url == "http://gone/" {
                    return Err(TransportError::Http("connection refused".to_owned()));
                }
                let body = String::from_utf8_lossy(&body).into_owned();
                self.0.lock().unwrap().push(body);
                Ok(Reply {
                    status: 200,
                    body: bytes::Bytes::new(),
                })
            })
        }

        fn get<'a>(
            &'a self,
            _: RangeRequest<'a>,
        ) -> BoxFuture<'a, Result<RangeReply, TransportError>> {
            unreachable!("events are posted")
        }
    }

    #[tokio::test]
    async fn an_event_for_a_server_that_is_gone_holds_up_nothing_for_another() {
        let reporter = Reporter::new(Arc::new(MemoryStore::default()));
        let servers = Servers::default();
        let to = |url: &str, body: &str| Unsent {
            url: url.to_owned(),
            body: body.to_owned(),
        };
        for (url, body, keep) in [
            ("http://gone/", "event", Keep::Yes),
            ("http://here/", "ping", Keep::No),
            ("http://gone/", "ping", Keep::No),
            ("http://here/", "later event", Keep::Yes),
        ] {
            reporter.send(&servers, &to(url, body), keep).await;
        }
        assert_eq!(*servers.0.lock().unwrap(), ["ping", "later event"]);
        assert_eq!(reporter.load(), [to("http://gone/", "event")]);
    }
}
