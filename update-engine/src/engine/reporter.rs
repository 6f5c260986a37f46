//! Posts events to the update server. What cannot be posted now is kept and goes
//! out before the next thing that is.

use std::sync::Arc;

use omaha_protocol::Request;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use super::attempt::Attempt;
use crate::prefs::{Key, StateStore};

/// Preference key of the kept requests.
const OUTBOX: Key = Key::new("unsent-events");
/// More are dropped, the oldest first: a machine that is offline for a year
/// must not fill its disk.
const MOST_KEPT: usize = 32;
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

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Unsent {
    url: String,
    body: String,
}

/// One at a time, so that events arrive in the order of the moments.
pub(super) struct Reporter {
    prefs: Arc<dyn StateStore>,
    turn: Mutex<()>,
}

impl Reporter {
    pub(super) fn new(prefs: Arc<dyn StateStore>) -> Self {
        Self {
            prefs,
            turn: Mutex::new(()),
        }
    }

    /// Posts a request with an event after everything kept before it. With
    /// [`Keep::Yes`] it is written down first, so that a crash or a reboot in the
    /// middle of the post loses nothing.
    pub(super) async fn report(&self, attempt: &Attempt, request: &Request, keep: Keep) {
        let _turn = self.turn.lock().await;
        let unsent = Unsent {
            url: attempt.settings.server.clone(),
            body: request.to_xml(),
        };
        match keep {
            Keep::Yes => {
                let mut kept = self.load();
                kept.push(unsent);
                let surplus = kept.len().saturating_sub(MOST_KEPT);
                kept.drain(..surplus);
                self.store(&kept);
                self.post_kept(attempt, kept).await;
            }
            Keep::No => {
                if self.post_kept(attempt, self.load()).await {
                    post(attempt, &unsent).await;
                }
            }
        }
    }

    /// Posts what was kept, before the next check.
    pub(super) async fn flush(&self, attempt: &Attempt) {
        let _turn = self.turn.lock().await;
        self.post_kept(attempt, self.load()).await;
    }

    /// Whether all went out.
    async fn post_kept(&self, attempt: &Attempt, kept: Vec<Unsent>) -> bool {
        let mut waiting = kept.as_slice();
        while let Some((first, rest)) = waiting.split_first() {
            if !post(attempt, first).await {
                return false;
            }
            waiting = rest;
            self.store(waiting);
        }
        true
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

    fn store(&self, kept: &[Unsent]) {
        let result = if kept.is_empty() {
            self.prefs.remove(OUTBOX)
        } else {
            serde_json::to_string(kept)
                .map_err(|error| tracing::error!(%error, "cannot encode events"))
                .map_or(Ok(()), |text| self.prefs.commit(OUTBOX, text.as_bytes()))
        };
        if let Err(error) = result {
            tracing::warn!(%error, "cannot keep events for later");
        }
    }
}

/// Whether the server took it. An answer that refuses the event counts as taken:
/// it would be refused again.
async fn post(attempt: &Attempt, unsent: &Unsent) -> bool {
    let body = unsent.body.clone().into_bytes().into();
    match attempt
        .transport
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
