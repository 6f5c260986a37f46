//! What is logged: one readable line per update check, event and download.

use std::net::SocketAddr;
use std::path::Path;

use omaha_protocol::{Event, EventResult, EventType, Request};

use crate::answer::Answer;
use crate::catalogue::{Artifact, Catalogue};
use crate::decide::{Decision, Verdict};
use crate::quoted::Quoted;

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
    for (app, decision) in request.apps.iter().zip(&answer.decisions) {
        for event in &app.events {
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

pub(crate) fn downloaded(client: SocketAddr, artifact: &Artifact, status: u16, range: &str) {
    tracing::info!(
        %client,
        status,
        range = %Quoted(range),
        "download: {} ({})",
        artifact.name,
        artifact.labels.version
    );
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
