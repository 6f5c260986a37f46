//! The commands that only look: `status`, `holders`, `watch`.

use std::io::{self, IsTerminal};
use std::time::Duration;

use futures_util::StreamExt;
use serde::Serialize;

use super::config::{WindowReport, window_remark, window_report};
use super::error::CtlError;
use super::settle::first_look;
use super::show::{self, Report};
use super::{Invocation, now, print, print_json, put, say};
use crate::group::GroupName;
use crate::semaphore::{Key, Look, Snapshot};
use crate::store::SemaphoreStore;
use crate::words::words;

/// How long `watch` trusts in being told.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// How long `watch` waits after the store failed.
const RETRY: Duration = Duration::from_secs(5);

/// Unlike the original's, it writes nothing: a group that nobody has used yet
/// is shown as it would begin.
pub(super) async fn status(invocation: &Invocation<'_>) -> Result<(), CtlError> {
    let settings = invocation.globals.settings()?;
    let store = settings.open_store().map_err(CtlError::contact)?;
    let snapshot = first_look(&store, &Look::default(), "reading").await?;
    if invocation.globals.json {
        return print_json(&Status {
            group: Report::new(settings.group.as_str(), &snapshot, snapshot.places()),
            window: window_report(invocation.globals, &settings),
        });
    }
    put(&show::status(snapshot.places()))?;
    if invocation.values.is_on("verbose") || io::stdout().is_terminal() {
        let mut remarks = show::remarks(&snapshot, now());
        remarks.extend(window_remark(invocation.globals, &settings));
        if !remarks.is_empty() {
            say(format_args!("\n{}", remarks.trim_end()));
        }
    }
    Ok(())
}

pub(super) async fn holders(invocation: &Invocation<'_>) -> Result<(), CtlError> {
    let settings = invocation.globals.settings()?;
    let store = settings.open_store().map_err(CtlError::contact)?;
    let snapshot = first_look(&store, &Look::default(), "reading").await?;
    if invocation.globals.json {
        return print_json(&show::holder_reports(&snapshot, snapshot.places()));
    }
    if snapshot.places().holders.is_empty() {
        say("Nobody holds the lock.");
        return Ok(());
    }
    put(&show::holders(&snapshot, now()))
}

pub(super) async fn watch(invocation: &Invocation<'_>) -> Result<(), CtlError> {
    let settings = invocation.globals.settings()?;
    let store = settings.open_store().map_err(CtlError::contact)?;
    let look = Look::default();
    let mut seen = first_look(&store, &look, "reading").await?;
    if invocation.globals.json {
        print_status(&settings.group, &seen)?;
    } else {
        put(&show::status(seen.places()))?;
        say("Watching; Ctrl-C ends.");
    }
    let mut troubled = false;
    loop {
        if troubled {
            tokio::time::sleep(RETRY).await;
        } else {
            wait_for_change(&store, &seen).await;
        }
        let fresh = match store.load(&look).await {
            Ok(fresh) => fresh,
            Err(error) => {
                if !troubled {
                    say(words(&error));
                }
                troubled = true;
                continue;
            }
        };
        if troubled {
            say("The store answers again.");
            troubled = false;
        }
        let changes = show::changes(&seen, &fresh);
        if !changes.is_empty() {
            if invocation.globals.json {
                print_status(&settings.group, &fresh)?;
            } else {
                let time = show::moment(now());
                for change in changes {
                    print(format_args!("{time} {change}"))?;
                }
            }
        }
        seen = fresh;
    }
}

fn print_status(group: &GroupName, snapshot: &Snapshot) -> Result<(), CtlError> {
    print_json(&Report::new(group.as_str(), snapshot, snapshot.places()))
}

/// The group, and when this machine may reboot.
#[derive(Serialize)]
struct Status<'a> {
    #[serde(flatten)]
    group: Report<'a>,
    window: WindowReport,
}

/// Returns when something may have changed, or after a while.
async fn wait_for_change(store: &dyn SemaphoreStore, seen: &Snapshot) {
    let mut keys = vec![Key::Document, Key::Policy, Key::Halt, Key::Failures];
    // Every change of a queue's head goes with one of the document, but for the
    // tickets that come and go.
    keys.extend(seen.holders.keys().cloned().map(Key::Holder));
    keys.extend(seen.queue.iter().map(|(key, _)| Key::Ticket(key.clone())));
    let mut changes = store.watch(keys, seen.revision);
    let _ = tokio::time::timeout(LONGEST_WAIT, changes.next()).await;
}
