//! A watch that does not end: it re-opens after a lost connection where it left
//! off, and after compaction where etcd is now.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{WatchOptions, WatchResponse, WatchStream};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use tokio::time::{sleep, timeout};

use super::connection::Connections;
use super::said;
use crate::semaphore::Revision;

/// The longest time that opening takes.
const OPEN_LIMIT: Duration = Duration::from_secs(2);
/// Longest pause before the first and before a late attempt to re-open.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LAST_PAUSE: Duration = Duration::from_secs(10);

/// See [`crate::store::SemaphoreStore::watch`]; `keys` are whole.
pub(super) fn watch(
    connections: Arc<Connections>,
    keys: Vec<String>,
    after: Revision,
) -> BoxStream<'static, ()> {
    let watching = Watching {
        connections,
        keys,
        next: after.saturating_add(1),
        stream: None,
        pause: FIRST_PAUSE,
    };
    if watching.keys.is_empty() {
        return futures_util::stream::pending().boxed();
    }
    let item = |mut watching: Watching| async {
        watching.change().await;
        Some(((), watching))
    };
    futures_util::stream::unfold(watching, item).boxed()
}

struct Watching {
    connections: Arc<Connections>,
    keys: Vec<String>,
    /// The first revision that has not been reported.
    next: Revision,
    /// The endpoint that it comes from, too.
    stream: Option<(usize, WatchStream)>,
    pause: Duration,
}

impl Watching {
    /// Waits for the next change, however long.
    async fn change(&mut self) {
        loop {
            let lost = match &mut self.stream {
                None => self.open().await.err(),
                Some((_, stream)) => match stream.message().await {
                    Ok(Some(message)) => {
                        self.pause = FIRST_PAUSE;
                        match self.hear(&message) {
                            Heard::Change => return,
                            Heard::Nothing => None,
                            Heard::End(why) => Some(why),
                        }
                    }
                    Ok(None) => Some("it ended".to_owned()),
                    Err(error) => Some(said::text(&error)),
                },
            };
            if let Some(why) = lost {
                tracing::debug!(why, "the watch on etcd is re-opened");
                if let Some((endpoint, _)) = self.stream.take() {
                    self.connections.leave(endpoint);
                }
                sleep(self.pause.mul_f64(fastrand::f64())).await;
                self.pause = (self.pause * 2).min(LAST_PAUSE);
            }
        }
    }

    async fn open(&mut self) -> Result<(), String> {
        let (endpoint, mut client) = self.connections.open().await?;
        let from = || Some(WatchOptions::new().with_start_revision(self.next));
        let opened = async {
            let (first, others) = self.keys.split_first().ok_or("nothing to watch")?;
            let error = |error| said::text(&error);
            let mut stream = client.watch(first.as_str(), from()).await.map_err(error)?;
            for key in others {
                stream.watch(key.as_str(), from()).await.map_err(error)?;
            }
            Ok(stream)
        };
        let opened = timeout(OPEN_LIMIT, opened)
            .await
            .unwrap_or_else(|_| Err("no answer".to_owned()));
        match opened {
            Ok(stream) => {
                self.stream = Some((endpoint, stream));
                Ok(())
            }
            Err(why) => {
                self.connections.leave(endpoint);
                Err(why)
            }
        }
    }

    fn hear(&mut self, message: &WatchResponse) -> Heard {
        let now = message
            .header()
            .map_or(0, etcd_client::ResponseHeader::revision);
        if message.compact_revision() > 0 {
            // What happened up to now cannot be told any more.
            self.next = now.max(message.compact_revision()).saturating_add(1);
            self.stream = None;
            return Heard::Change;
        }
        if message.canceled() {
            return Heard::End(message.cancel_reason().to_owned());
        }
        if message.events().is_empty() {
            return Heard::Nothing;
        }
        self.next = self.next.max(now.saturating_add(1));
        Heard::Change
    }
}

enum Heard {
    Change,
    Nothing,
    End(String),
}
