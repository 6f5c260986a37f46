//! `config`: the settings of this machine, without asking anybody.

use jiff::Timestamp;
use serde::Serialize;

use super::Invocation;
use super::error::CtlError;
use super::globals::Globals;
use super::{print, put, say};
use crate::config::{Loaded, Settings};
use crate::machine_id::MachineId;
use crate::window::State;

pub(super) fn config(invocation: &Invocation<'_>) -> Result<(), CtlError> {
    let words: Vec<_> = invocation.words.iter().map(String::as_str).collect();
    match *words.as_slice() {
        [] | ["show"] => show(invocation),
        ["check"] => check(invocation),
        _ => Err(CtlError::Usage(
            "\"config show\" or \"config check\" is expected".to_owned(),
        )),
    }
}

fn show(invocation: &Invocation<'_>) -> Result<(), CtlError> {
    let loaded = invocation.globals.load()?;
    put(&loaded.show())?;
    warn(&loaded);
    if let Some(remark) = window_remark(invocation.globals, &loaded.settings) {
        say(remark.trim_end());
    }
    Ok(())
}

/// Mistakes are what was asked for, so they are on stdout.
fn check(invocation: &Invocation<'_>) -> Result<(), CtlError> {
    match invocation.globals.load() {
        Ok(loaded) => {
            warn(&loaded);
            say("The configuration is valid.");
            Ok(())
        }
        Err(CtlError::Settings(problems)) => {
            print(&problems)?;
            let count = problems.problems.len();
            Err(CtlError::Findings(format!(
                "{count} mistake{}; locksmithd does not start with this configuration.",
                if count == 1 { "" } else { "s" }
            )))
        }
        Err(other) => Err(other),
    }
}

fn warn(loaded: &Loaded) {
    for warning in &loaded.warnings {
        say(format_args!("warning: {warning}"));
    }
}

/// A line on when this machine may reboot, unless it may now.
pub(super) fn window_remark(globals: &Globals, settings: &Settings) -> Option<String> {
    match window_now(globals, settings) {
        State::Always | State::Open { .. } => None,
        State::Closed { opens: Some(opens) } => {
            Some(format!("No reboot of this machine before {opens:.0}\n"))
        }
        State::Closed { opens: None } => Some(
            "No reboot of this machine at all: excluded days cover all its windows\n".to_owned(),
        ),
    }
}

/// When this machine may reboot, for programs; Unix seconds.
#[derive(Debug, Serialize)]
pub(super) struct WindowReport {
    open: bool,
    opens: Option<i64>,
    closes: Option<i64>,
}

pub(super) fn window_report(globals: &Globals, settings: &Settings) -> WindowReport {
    let (open, opens, closes) = match window_now(globals, settings) {
        State::Always => (true, None, None),
        State::Open { closes } => (true, None, Some(closes.as_second())),
        State::Closed { opens } => (false, opens.map(|opens| opens.as_second()), None),
    };
    WindowReport {
        open,
        opens,
        closes,
    }
}

fn window_now(globals: &Globals, settings: &Settings) -> State {
    let schedule = match MachineId::read(&globals.root) {
        Ok(id) => settings.schedule_of(&id),
        // Its own delay into the window is not known.
        Err(_) => settings.schedule.clone(),
    };
    schedule.state(Timestamp::now())
}
