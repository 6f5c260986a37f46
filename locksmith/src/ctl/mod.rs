//! `locksmithctl`: the lock from a command line.
//!
//! Flags, stdout, exit codes and the texts of errors are the original's where it
//! has them, because scripts and people know them; the rest goes beyond. This
//! module keeps the original's order of things: flags, version, the switch to
//! the daemon, environment, command. What a command writes is decided in
//! [`crate::semaphore`]; how often it is tried, in `settle`.

mod arguments;
mod command;
mod config;
mod error;
#[cfg(test)]
mod faults;
mod globals;
mod help;
mod locking;
mod look;
mod migrate;
mod reboot;
mod settle;
mod show;
mod signal;
mod steer;

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use jiff::Timestamp;

use crate::daemon;
use crate::window::duration;

use arguments::{Mistake, Order, Values};
use command::{Command, GLOBAL_FLAGS, PROGRAM, Verb};
use error::CtlError;
use globals::Globals;

/// Version that help and `-version` tell.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Under this name the program is the daemon.
const DAEMON: &str = "locksmithd";

/// Exit code of a command line that is not understood.
const MISTAKEN: u8 = 2;

/// One command with everything that was said to it.
struct Invocation<'a> {
    globals: &'a Globals,
    values: &'a Values,
    /// The words behind the command.
    words: &'a [String],
}

/// Does what this process's arguments ask for. Under the name `locksmithd`, that
/// is to run the daemon, whatever words there are.
#[must_use]
pub fn main() -> ExitCode {
    let mut arguments = std::env::args_os().map(|text| text.to_string_lossy().into_owned());
    let path = arguments.next().unwrap_or_default();
    let name = Path::new(&path).file_name().unwrap_or_default();
    let name = name.to_string_lossy();
    let arguments: Vec<_> = arguments.collect();
    match start(&name, &arguments) {
        Ok(code) => code,
        Err(error) => {
            complain(&error);
            error.code(false).into()
        }
    }
}

fn start(name: &str, arguments: &[String]) -> Result<ExitCode, CtlError> {
    let mut values = Values::default();
    let words = match values.read(&[GLOBAL_FLAGS], Order::FlagsFirst, arguments) {
        Ok(words) => words,
        Err(mistake) if name == DAEMON => return Ok(explain_daemon(&mistake)),
        Err(mistake) => return Ok(explain_globals(&mistake)),
    };
    let version = format_args!("{name} version {VERSION}");
    if values.is_on("version") {
        print(version)?;
        return Ok(ExitCode::SUCCESS);
    }
    if name == DAEMON {
        return start_daemon(values, &words);
    }
    let (word, words) = match words.split_first() {
        Some((word, words)) => (word.as_str(), words),
        None => ("help", &[] as &[String]),
    };
    let Some(command) = command::find(word) else {
        print(format_args!(
            "{PROGRAM}: unknown subcommand: {word:?}\nRun '{PROGRAM} help' for usage."
        ))?;
        return Ok(MISTAKEN.into());
    };
    let words = match values.read(&[command.flags, GLOBAL_FLAGS], Order::Mixed, words) {
        Ok(words) => words,
        Err(mistake) => return explain_command(command, &mistake),
    };
    if values.is_on("version") {
        print(version)?;
        return Ok(ExitCode::SUCCESS);
    }
    if command.verb == Verb::Help {
        return help(words.first().map(String::as_str));
    }
    let globals = Globals::new(values.clone())?;
    if globals.debug {
        trace();
    }
    let invocation = Invocation {
        globals: &globals,
        values: &values,
        words: &words,
    };
    Ok(run(command.verb, &invocation))
}

/// The daemon under its own name. As in the original it ignores words, but for
/// the one that makes it a server.
fn start_daemon(mut values: Values, words: &[String]) -> Result<ExitCode, CtlError> {
    let serve = match words.split_first() {
        Some((word, words)) if word == command::SERVE_FLEETLOCK => {
            match values.read(&[command::SERVE_FLAGS, GLOBAL_FLAGS], Order::Mixed, words) {
                Ok(_) => true,
                Err(mistake) => return Ok(explain_serve(&mistake)),
            }
        }
        Some((word, _)) if word.starts_with("serve") || word.starts_with("fleet") => {
            return Err(CtlError::Usage(format!(
                "unknown word {word:?}; to serve FleetLock: {DAEMON} {}",
                command::SERVE_FLEETLOCK
            )));
        }
        Some((word, _)) => {
            say(format_args!(
                "{DAEMON} ignores {word:?} and what follows; -help tells what it knows"
            ));
            false
        }
        None => false,
    };
    let arguments = daemon::Arguments {
        root: values.text("root").map(PathBuf::from),
        bus: values.text("bus").map(str::to_owned),
        flags: globals::settings_of(&values),
    };
    if !serve {
        return Ok(daemon::main(arguments));
    }
    let groups = values.list("groups");
    let deadline = match values.text("deadline") {
        None => None,
        Some(text) => match duration::parse(text)
            .ok()
            .and_then(|time| time.try_into().ok())
        {
            Some(deadline) => Some(deadline),
            None => {
                return Err(CtlError::Usage(format!(
                    "invalid value {text:?} for -deadline: a duration such as 1h or 30m is expected"
                )));
            }
        },
    };
    Ok(daemon::serve_fleetlock(
        arguments,
        daemon::ServeArguments {
            listen: values.text("listen").unwrap_or("127.0.0.1:9090").to_owned(),
            groups: if groups.is_empty() {
                vec!["default".to_owned()]
            } else {
                groups.to_vec()
            },
            deadline,
        },
    ))
}

/// Help for the daemon, or what is wrong with its flags.
fn explain_daemon(mistake: &Mistake) -> ExitCode {
    let serve = command::SERVE_FLEETLOCK;
    explain(
        mistake,
        &format!(
            "Usage of {DAEMON}:\n{}\
             To give places to machines that speak FleetLock: {DAEMON} {serve}\n\
             Run '{DAEMON} {serve} -help' for its flags.",
            arguments::dump(GLOBAL_FLAGS)
        ),
    )
}

/// Help for the server, or what is wrong with its flags.
fn explain_serve(mistake: &Mistake) -> ExitCode {
    let own = arguments::dump(command::SERVE_FLAGS);
    let global = arguments::dump(GLOBAL_FLAGS);
    let usage = format!(
        "Usage of {DAEMON} {}:\n{own}{}",
        command::SERVE_FLEETLOCK,
        global.trim_end()
    );
    explain(mistake, &usage)
}

/// Runs a command that does more than print what is known anyway.
fn run(verb: Verb, invocation: &Invocation<'_>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(perform(verb, invocation)),
        Err(error) => {
            say(format_args!("cannot start the runtime: {error}"));
            return ExitCode::FAILURE;
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            error.code(invocation.globals.detailed_exit_codes).into()
        }
    }
}

async fn perform(verb: Verb, invocation: &Invocation<'_>) -> Result<(), CtlError> {
    match verb {
        Verb::Config => config::config(invocation),
        Verb::Help => help(None).map(|_| ()),
        Verb::Fsck => steer::fsck(invocation).await,
        Verb::Halt => steer::halt(invocation).await,
        Verb::Holders => look::holders(invocation).await,
        Verb::Lock => locking::lock(invocation).await,
        Verb::Migrate => migrate::migrate(invocation).await,
        Verb::Pause => steer::pause(invocation).await,
        Verb::Policy => steer::policy(invocation).await,
        Verb::Reboot => reboot::reboot(invocation).await,
        Verb::Resume => steer::resume(invocation).await,
        Verb::SendNeedReboot => signal::send_need_reboot(invocation).await,
        Verb::SetMax => steer::set_max(invocation).await,
        Verb::Status => look::status(invocation).await,
        Verb::Unlock => locking::unlock(invocation).await,
        Verb::Watch => look::watch(invocation).await,
    }
}

fn help(word: Option<&str>) -> Result<ExitCode, CtlError> {
    let Some(word) = word else {
        put(&help::overview(VERSION))?;
        return Ok(ExitCode::SUCCESS);
    };
    match command::find(word) {
        Some(command) => put(&help::of(command)).map(|()| ExitCode::SUCCESS),
        None => {
            print(format_args!("Unrecognized command: {word}"))?;
            Ok(ExitCode::FAILURE)
        }
    }
}

/// What Go says about the flags in front of a command; asking for help is no
/// mistake there.
fn explain_globals(mistake: &Mistake) -> ExitCode {
    let dump = arguments::dump(GLOBAL_FLAGS);
    let usage = format!("Usage of {PROGRAM}:\n{}", dump.trim_end());
    explain(mistake, &usage)
}

fn explain(mistake: &Mistake, usage: &str) -> ExitCode {
    if *mistake == Mistake::HelpWanted {
        say(usage);
        return ExitCode::SUCCESS;
    }
    say(format_args!("{mistake}\n{usage}"));
    MISTAKEN.into()
}

/// What Go says about the flags of a command, and how to do better. The message
/// is on stdout as well, and help is a mistake here, as in the original.
fn explain_command(command: &Command, mistake: &Mistake) -> Result<ExitCode, CtlError> {
    print(mistake)?;
    let Command { name, usage, .. } = command;
    let line = format!("{PROGRAM} {name} {usage}");
    let mut usage = format!(
        "Usage:\n  {}\n{}",
        line.trim_end(),
        arguments::dump(command.flags)
    );
    if mistake.is_number() {
        usage += &format!("A number below 0 goes behind two dashes: {PROGRAM} {name} -- -1\n");
    }
    usage += &format!("Run '{PROGRAM} help {name}' for more.");
    if *mistake == Mistake::HelpWanted {
        say(usage);
    } else {
        say(format_args!("{mistake}\n{usage}"));
    }
    Ok(MISTAKEN.into())
}

/// Everything that is logged, on stderr.
fn trace() {
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
}

/// The time, in Unix seconds.
fn now() -> i64 {
    Timestamp::now().as_second()
}

/// Prints data and a newline on stdout.
fn print(data: impl Display) -> Result<(), CtlError> {
    put(&format!("{data}\n"))
}

/// Prints data on stdout and flushes: it may be a pipe whose reader waits.
fn put(data: &str) -> Result<(), CtlError> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(data.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(CtlError::Stdout)
}

/// Prints one JSON document on a line of stdout.
fn print_json(value: &impl serde::Serialize) -> Result<(), CtlError> {
    let json = serde_json::to_string(value);
    print(json.map_err(|error| CtlError::Stdout(error.into()))?)
}

/// Prints sentences on stderr; when nobody can read them, nobody minds. Text
/// from the store does not get to move a terminal's cursor.
fn say(text: impl Display) {
    let harmful = |letter: char| letter.is_control() && !matches!(letter, '\n' | '\t');
    let text = text.to_string().replace(harmful, "?");
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Tells an error and what helps.
fn complain(error: &CtlError) {
    if error.is_closed_pipe() {
        return;
    }
    say(error);
    if let Some(advice) = error.advice() {
        say(advice);
    }
}
