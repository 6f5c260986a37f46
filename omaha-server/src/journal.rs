//! What is logged: one readable line per update check, event and download, so many
//! per request at most.

use std::io;
use std::net::SocketAddr;
use std::path::Path;

use axum::http::StatusCode;
use axum::response::Response;
use omaha_protocol::{Event, EventResult, EventType, Quoted, Request};

use crate::answer::Answer;
use crate::catalogue::{Artifact, Catalogue};
use crate::decide::{Decision, Verdict};

/// Events of one request that get a line; real ones have three at most.
const MOST_EVENTS: usize = 16;

/// Writes one line about an app of a request.
macro_rules! line {
    ($level:ident, $client:expr, $app:expr, $($message:tt)+) => {
        tracing::$level!(
            machine = %Quoted(&$app.machine_id),
            version = %Quoted(&$app.version),
            track = %Quoted(&$app.track),
            board = %Quoted(&$app.board),
            client = %$client,
            $($message)+
        )
    };
}

pub(crate) fn answered(client: SocketAddr, request: &Request, answer: &Answer<'_>) {
    let mut events = 0;
    for (app, decision) in request.apps.iter().zip(&answer.decisions) {
        for event in &app.events {
            events += 1;
            if events > MOST_EVENTS {
                continue;
            }
            if is_news(event) {
                line!(info, client, app, "event: {event}");
            } else {
                line!(debug, client, app, "event: {event}");
            }
        }
        match decision {
            Some(decision) => line!(info, client, app, "check: {}", words(decision)),
            None if app.ping.is_some() => line!(debug, client, app, "ping"),
            None => {}
        }
    }
    if events > MOST_EVENTS {
        let more = events - MOST_EVENTS;
        tracing::warn!(%client, "{more} more events in one request");
    }
}

/// `update_engine` reports "update complete" with every check; without a previous
/// version it only says that nothing has happened.
fn is_news(event: &Event) -> bool {
    event.event_type != EventType::UpdateComplete
        || event.result != EventResult::SuccessReboot
        || !matches!(event.previous_version.as_deref(), Some("" | "0.0.0.0"))
}

fn words(decision: &Decision<'_>) -> String {
    match &decision.verdict {
        Verdict::Offer(artifact) => format!(
            "offered {} ({}, {} bytes, {})",
            artifact.labels.version,
            artifact.kind(),
            artifact.size,
            artifact.name
        ),
        Verdict::Hold(reason) => format!("nothing offered, {reason}"),
        Verdict::UnknownApp => "refused, the app is not served here".to_owned(),
    }
}

pub(crate) fn refused(client: SocketAddr, reason: &str) {
    tracing::warn!(%client, "request refused: {reason}");
}

/// A download that gets its line when it is known how it went.
pub(crate) struct Download {
    client: SocketAddr,
    /// Name and version.
    file: String,
    range: String,
}

/// A download whose bytes are on their way.
pub(crate) struct Transfer {
    download: Download,
    status: u16,
    length: u64,
    /// Given to the system, which may not have brought the last of it to the client.
    sent: u64,
    failure: Option<String>,
}

impl Download {
    /// Of these bytes, as the client put it.
    pub(crate) fn new(client: SocketAddr, artifact: &Artifact, range: Option<&str>) -> Self {
        Self {
            client,
            file: format!("{} ({})", artifact.name, artifact.labels.version),
            range: Quoted(range.unwrap_or("all")).to_string(),
        }
    }

    /// It ends with this response; no bytes of the file follow.
    pub(crate) fn answered(self, response: Response) -> Response {
        let status = response.status().as_u16();
        let (client, range, file) = (self.client, self.range, self.file);
        tracing::info!(%client, status, %range, "download: {file}");
        response
    }

    /// So many bytes follow; the line is written when they have gone out or will not.
    pub(crate) fn begin(self, status: StatusCode, length: u64) -> Transfer {
        Transfer {
            download: self,
            status: status.as_u16(),
            length,
            sent: 0,
            failure: None,
        }
    }
}

impl Transfer {
    pub(crate) fn sent(&mut self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.sent = self.sent.saturating_add(bytes);
    }

    pub(crate) fn failed(&mut self, error: &io::Error) {
        self.failure = Some(error.to_string());
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        let Self {
            status,
            length,
            sent,
            ..
        } = *self;
        let Download {
            client,
            file,
            range,
        } = &self.download;
        if sent == length {
            tracing::info!(%client, status, %range, "download: {file}, {sent} bytes");
            return;
        }
        let told = "download broke off after";
        match &self.failure {
            Some(error) => tracing::error!(
                %client, status, %range, "{told} {sent} of {length} bytes: {file}: {error}"
            ),
            None => tracing::warn!(
                %client, status, %range,
                "{told} {sent} of {length} bytes: {file}: the connection was closed"
            ),
        }
    }
}

/// Tells that the folder cannot be looked at, once as long as it is the same, and the
/// end of that.
pub(crate) fn surveyed(before: Option<&str>, now: Option<&str>) {
    match (before, now) {
        (before, Some(failure)) if before != now => tracing::error!("{failure}"),
        (Some(_), None) => tracing::info!("the payload folder can be read again"),
        _ => {}
    }
}

/// Tells what a rescan has changed.
pub(crate) fn rescanned(folder: &Path, before: &Catalogue, after: &Catalogue) {
    let shown = |path: &Path| {
        path.strip_prefix(folder)
            .unwrap_or(path)
            .display()
            .to_string()
    };
    let is_in = |artifact: &Artifact, catalogue: &Catalogue| {
        let artifacts = &catalogue.artifacts;
        artifacts
            .binary_search_by(|other| other.path.cmp(&artifact.path))
            .is_ok_and(|index| artifacts[index] == *artifact)
    };
    for artifact in before.artifacts.iter().filter(|a| !is_in(a, after)) {
        tracing::info!(version = %artifact.labels.version, "withdrawn: {}", shown(&artifact.path));
    }
    for artifact in after.artifacts.iter().filter(|a| !is_in(a, before)) {
        let labels = &artifact.labels;
        tracing::info!(
            version = %labels.version,
            track = labels.track.as_deref().unwrap_or("any"),
            board = labels.board.as_deref().unwrap_or("any"),
            kind = artifact.kind(),
            "on offer: {}",
            shown(&artifact.path)
        );
    }
    for left_out in after
        .left_out
        .iter()
        .filter(|l| !before.left_out.contains(l))
    {
        tracing::warn!(
            "not offered: {}: {}",
            shown(&left_out.path),
            left_out.reason
        );
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::RefCell;
    use std::sync::Once;

    use omaha_protocol::RequestApp;

    use super::*;
    use crate::answer::{BaseUrl, answer};
    use crate::decide::Policy;

    impl Transfer {
        /// Of the file `u.payload` to a client on this host.
        pub(crate) fn of_a_test(length: u64) -> Self {
            let download = Download {
                client: ([127, 0, 0, 1], 9).into(),
                file: "u.payload (1.2.3)".to_owned(),
                range: "all".to_owned(),
            };
            download.begin(StatusCode::OK, length)
        }
    }

    thread_local! {
        static LOG: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }

    struct ThreadLog;

    impl io::Write for ThreadLog {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            LOG.with_borrow_mut(|log| log.write(text))
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What this thread has logged meanwhile. One subscriber serves all threads, for
    /// what each line goes to is remembered across them.
    pub(crate) async fn logged(work: impl Future<Output = ()>) -> String {
        static SUBSCRIBER: Once = Once::new();
        SUBSCRIBER.call_once(|| {
            let subscriber = tracing_subscriber::fmt().with_writer(|| ThreadLog);
            subscriber.with_ansi(false).init();
        });
        LOG.take();
        work.await;
        String::from_utf8(LOG.take()).unwrap()
    }

    #[tokio::test]
    async fn a_request_full_of_events_gets_few_lines() {
        let app = RequestApp {
            events: vec![Event::new(EventType::Unknown, EventResult::Error); 128],
            ..RequestApp::default()
        };
        let request = Request {
            apps: vec![app; 64],
            ..Request::default()
        };
        let nothing = Catalogue::default();
        let base_url = BaseUrl::from_host("host").unwrap();
        let answer = answer(&request, &nothing, &Policy::default(), &base_url, 0);
        let text = logged(async {
            answered(([127, 0, 0, 1], 9).into(), &request, &answer);
        })
        .await;
        assert_eq!(text.matches("event: unknown").count(), MOST_EVENTS);
        assert_eq!(text.lines().count(), MOST_EVENTS + 1);
        assert!(text.contains("8176 more events in one request"), "{text}");
    }
}
