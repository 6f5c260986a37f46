//! What an operator decides for a group: how many, pause, halt, budget, and
//! putting right what is crooked.

use std::cell::Cell;

use nix::unistd::{Uid, User, gethostname};
use serde::Serialize;

use super::error::CtlError;
use super::settle::{Step, first_look, settle};
use super::{Invocation, now, print, print_json, put, say, show};
use crate::semaphore::{Halt, Look, Max, Paused, failures, places, steering};
use crate::store::SemaphoreStore;

/// What the original calls everything that is not lock or unlock.
const SETTING: &str = "setting value";

#[derive(Serialize)]
struct MaxReport {
    old_max: i64,
    max: i64,
    max_percent: Option<u8>,
}

pub(super) async fn set_max(invocation: &Invocation<'_>) -> Result<(), CtlError> {
    let [word] = invocation.words else {
        return Err(CtlError::NoMax);
    };
    let max: Max = word.parse()?;
    let store = invocation.globals.store()?;
    // What stood there before this command's first attempt, should that have
    // succeeded without telling.
    let first = Cell::new(None);
    let (old_max, new) = settle(&store, &Look::default(), SETTING, |snapshot, _| {
        if let (Max::Percent(_), true) = (max, snapshot.document_only) {
            return Err(CtlError::NoShare);
        }
        let (old, new, transaction) = steering::set_max(snapshot, max, now());
        let old = first.get().unwrap_or(old);
        first.set(Some(old));
        Ok(Step::Commit(transaction, (old, new)))
    })
    .await?;
    if invocation.globals.json {
        return print_json(&MaxReport {
            old_max,
            max: new,
            max_percent: match max {
                Max::Percent(percent) => Some(percent),
                Max::Count(_) => None,
            },
        });
    }
    print(format_args!("Old-Max: {old_max}\nMax: {new}"))
}

pub(super) async fn pause(invocation: &Invocation<'_>) -> Result<(), CtlError> {
    let paused = Paused {
        by: operator(),
        why: why(invocation).unwrap_or_default(),
        at: now(),
    };
    let store = invocation.globals.store()?;
    settle(&store, &Look::default(), "pausing", |snapshot, past| {
        needs_records(snapshot.document_only)?;
        if let (Some(already), false) = (show::policy(snapshot).paused, past.unknown) {
            say(format_args!("It was paused by {} already.", already.by));
        }
        Ok(Step::Commit(steering::pause(snapshot, paused.clone()), ()))
    })
    .await?;
    say("Paused: nobody gets the lock until \"locksmithctl resume\".");
    Ok(())
}

pub(super) async fn resume(invocation: &Invocation<'_>) -> Result<(), CtlError> {
    let store = invocation.globals.store()?;
    settle(&store, &Look::default(), "resuming", |snapshot, past| {
        needs_records(snapshot.document_only)?;
        match steering::resume(snapshot) {
            Some(transaction) => Ok(Step::Commit(transaction, ())),
            None if past.unknown => Ok(Step::Done(())),
            None => Err(CtlError::NothingToDo("The group is not paused.")),
        }
    })
    .await?;
    say("Resumed.");
    serve_queue(&store).await
}

/// Gives free places to those who waited for an operator: they watch their own
/// keys alone, so nothing else tells them.
async fn serve_queue(store: &dyn SemaphoreStore) -> Result<(), CtlError> {
    settle(
        store,
        &Look::default(),
        "serving the queue",
        |snapshot, _| {
            Ok(match places::serve(snapshot, now()) {
                Some(transaction) => Step::Then(transaction),
                None => Step::Done(()),
            })
        },
    )
    .await
}

pub(super) async fn halt(invocation: &Invocation<'_>) -> Result<(), CtlError> {
    let clear = invocation.values.is_on("clear");
    let why = why(invocation).ok_or_else(|| {
        CtlError::Usage("A reason is wanted: -why TEXT. It is shown in the status.".to_owned())
    })?;
    let store = invocation.globals.store()?;
    if clear {
        settle(
            &store,
            &Look::default(),
            "clearing the halt",
            |snapshot, past| {
                needs_records(snapshot.document_only)?;
                match failures::clear_halt(snapshot) {
                    Some(transaction) => Ok(Step::Commit(transaction, ())),
                    None if past.unknown => Ok(Step::Done(())),
                    None => Err(CtlError::NothingToDo("The group is not halted.")),
                }
            },
        )
        .await?;
        say("The halt is cleared and the failures are forgotten.");
        return serve_queue(&store).await;
    }
    let halt = Halt {
        by: operator(),
        why,
        at: now(),
    };
    settle(&store, &Look::default(), "halting", |snapshot, _| {
        needs_records(snapshot.document_only)?;
        match failures::halt(snapshot, halt.clone()) {
            Some(transaction) => Ok(Step::Commit(transaction, ())),
            None if snapshot.halt.value.as_ref() == Some(&halt) => Ok(Step::Done(())),
            None => Err(CtlError::NothingToDo("The group is halted already.")),
        }
    })
    .await?;
    say("Halted: nobody gets the lock, and holders do not reboot any more.");
    Ok(())
}

#[derive(Serialize)]
struct PolicyReport {
    budget: u32,
    max_percent: Option<u8>,
    paused: Option<Paused>,
}

pub(super) async fn policy(invocation: &Invocation<'_>) -> Result<(), CtlError> {
    let words: Vec<_> = invocation.words.iter().map(String::as_str).collect();
    match *words.as_slice() {
        [] | ["show"] => show_policy(invocation).await,
        ["set", assignment] => {
            let budget = assignment
                .strip_prefix("budget=")
                .and_then(|number| number.parse().ok());
            let Some(budget) = budget else {
                return Err(CtlError::Usage(format!(
                    "{assignment:?} is no rule: budget=N is expected"
                )));
            };
            set_budget(invocation, budget).await
        }
        _ => Err(CtlError::Usage(
            "\"policy show\" or \"policy set budget=N\" is expected".to_owned(),
        )),
    }
}

async fn show_policy(invocation: &Invocation<'_>) -> Result<(), CtlError> {
    let store = invocation.globals.store()?;
    let snapshot = first_look(&store, &Look::default(), "reading").await?;
    let policy = show::policy(&snapshot);
    if invocation.globals.json {
        return print_json(&PolicyReport {
            budget: policy.budget,
            max_percent: policy.max_percent,
            paused: policy.paused,
        });
    }
    let max = match policy.max_percent {
        Some(percent) => Max::Percent(percent),
        None => Max::Count(snapshot.places().max),
    };
    print(format_args!("budget={}\nmax={max}", policy.budget))
}

async fn set_budget(invocation: &Invocation<'_>, budget: u32) -> Result<(), CtlError> {
    let store = invocation.globals.store()?;
    settle(&store, &Look::default(), SETTING, |snapshot, _| {
        needs_records(snapshot.document_only)?;
        let transaction = steering::set_policy(snapshot, |policy| policy.budget = budget);
        Ok(Step::Commit(transaction, ()))
    })
    .await
}

#[derive(Serialize)]
struct FsckReport {
    findings: Vec<String>,
    fixed: bool,
}

/// What is found goes to stdout, one line each.
pub(super) async fn fsck(invocation: &Invocation<'_>) -> Result<(), CtlError> {
    let fix = invocation.values.is_on("fix");
    let store = invocation.globals.store()?;
    let found: Cell<Vec<String>> = Cell::default();
    let wrong = settle(&store, &Look::default(), "checking", |snapshot, _| {
        let (findings, repair) = steering::check(snapshot);
        let lines: Vec<_> = findings.iter().map(ToString::to_string).collect();
        // Not the second look, which finds nothing after a repair.
        let first = found.take();
        found.set(if first.is_empty() { lines } else { first });
        match repair {
            Some(repair) if fix => Ok(Step::Then(repair)),
            repair => Ok(Step::Done(repair.is_some())),
        }
    })
    .await?;
    let findings = found.take();
    let clean = findings.is_empty();
    if invocation.globals.json {
        print_json(&FsckReport {
            findings,
            fixed: fix && !clean,
        })?;
    } else {
        let lines: String = findings.iter().map(|line| format!("{line}\n")).collect();
        put(&lines)?;
        if clean {
            say("Nothing is wrong.");
        } else if fix {
            say("What could be put right is right now.");
        }
    }
    if wrong {
        return Err(CtlError::Findings(
            "To put it right: locksmithctl fsck -fix".to_owned(),
        ));
    }
    Ok(())
}

/// Refuses where there is nothing but the document.
fn needs_records(document_only: bool) -> Result<(), CtlError> {
    if document_only {
        return Err(CtlError::DocumentOnly);
    }
    Ok(())
}

fn why(invocation: &Invocation<'_>) -> Option<String> {
    let text = invocation.values.text("why")?.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// Who does this, for those who ask later: `alice@host`. Whoever came by sudo is
/// called by their own name.
fn operator() -> String {
    let user = std::env::var("SUDO_USER").ok().or_else(|| {
        let user = User::from_uid(Uid::current()).ok()??;
        Some(user.name)
    });
    let host = gethostname().ok().and_then(|name| name.into_string().ok());
    format!(
        "{}@{}",
        user.as_deref().unwrap_or("somebody"),
        host.as_deref().unwrap_or("somewhere")
    )
}
