//! `update_engine_client`: the daemon from a command line.
//!
//! Flags, stdout and exit statuses are the original's, because scripts depend
//! on them; `-follow`, `-cancel` and `-json` go beyond. The client knows the
//! bus interfaces and nothing of how updates work: what an attempt came to is
//! read from the daemon.

mod attempt;
mod daemon;
mod display;
mod report;

use std::error::Error as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgGroup, Parser};
use futures_util::StreamExt;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use attempt::{Attempt, End, Occasion};
use daemon::Daemon;
use display::Display;
use report::{Report, StatusLine, print, say};

use crate::glog::GlogFlags;
use crate::status::Operation;

/// Asks the update daemon to check, install, forget or cancel, and shows what
/// it does.
///
/// Flags take one dash or two, and the forms -flag, -flag=true, -flag=false
/// and -noflag. When several actions are asked for, the first of this order is
/// done: -reset_status, -status, -cancel, -follow, -update or
/// -check_for_update, -watch_for_updates.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "update_engine_client",
    version,
    args_override_self = true,
    after_help = EXAMPLES,
    group(ArgGroup::new("shown").args(["status", "follow"]).multiple(true)),
)]
#[expect(clippy::struct_excessive_bools, reason = "flags are what it is")]
pub struct Cli {
    /// Print the daemon's status as five KEY=value lines, and on stderr how the
    /// last attempt failed, if it did
    #[arg(long)]
    pub status: bool,

    /// Start a check, and the installation of what it finds, and return at once
    #[arg(long = "check_for_update")]
    pub check_for_update: bool,

    /// As -check_for_update, then print the status every --poll-seconds until
    /// the attempt is over
    #[arg(long)]
    pub update: bool,

    /// As -check_for_update, then show the progress as it comes until the
    /// attempt is over; Ctrl-C stops watching, not the attempt
    #[arg(long)]
    pub follow: bool,

    /// Stop the attempt that is under way; the next one resumes it
    #[arg(long)]
    pub cancel: bool,

    /// Forget that an update was installed; boot slots are not changed back
    #[arg(long = "reset_status")]
    pub reset_status: bool,

    /// Print every status change on stderr, for ever
    #[arg(long = "watch_for_updates")]
    pub watch_for_updates: bool,

    /// With -status or -follow: one JSON object per line on stdout
    #[arg(long, requires = "shown")]
    pub json: bool,

    /// Message bus to use instead of the system bus, such as
    /// unix:path=/run/dbus/system_bus_socket; DBUS_SYSTEM_BUS_ADDRESS works too
    #[arg(long, value_name = "ADDRESS")]
    pub bus: Option<String>,

    /// Time between two looks at the daemon
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    pub poll_seconds: Duration,

    /// How long each of three waits for a missing daemon lasts
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    pub retry_seconds: Duration,

    #[command(flatten)]
    _glog: GlogFlags,
}

const EXAMPLES: &str = "\
Examples:
  update_engine_client -status
  update_engine_client -follow
  update_engine_client -status -json | jq -r .details.last_error

Exit status:
  0    done. For -update this includes every attempt that left the daemon idle:
       no update, and also a deferred, failed or cancelled one (stderr says
       which), since scripts count on it. For -follow: updated or no update.
  1    the daemon is missing, gone or refused; for -follow: the attempt failed
  2    the command line is wrong
  3    -follow: there is an update and the daemon defers it
  4    -follow: somebody cancelled the attempt
  134  -check_for_update, -update: the daemon did not take the request
  141  the reader of stdout went away";

/// Why the client ends early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// No bus at the address, or it does not let us in.
    #[error("connect to the message bus at {address}")]
    Connect {
        /// The address as given, or what stands for it.
        address: String,
        /// What the transport said.
        source: zbus::Error,
    },
    /// Nobody owns the daemon's name.
    #[error("no update daemon: nobody owns {name} on the message bus")]
    NoDaemon {
        /// The well-known name.
        name: &'static str,
    },
    /// A call failed.
    #[error("call {method}")]
    Call {
        /// Member of the interface.
        method: &'static str,
        /// What the daemon or the bus said.
        source: zbus::Error,
    },
    /// The daemon is the original, or too old.
    #[error("this daemon does not offer {method}")]
    NotOffered {
        /// Member of our second interface.
        method: &'static str,
    },
    /// The bus went away while signals were awaited.
    #[error("the message bus closed the connection")]
    Disconnected,
    /// The status could not be printed.
    #[error("write to stdout")]
    Stdout(#[source] std::io::Error),
}

impl ClientError {
    /// The reader of a pipe has had enough, which is no failure of ours.
    fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::Stdout(error) if error.kind() == std::io::ErrorKind::BrokenPipe)
    }
}

/// How the client ends; see `--help`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exit {
    Done,
    Failed,
    Deferred,
    Cancelled,
    RequestNotTaken,
    ReaderGone,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        let status: u8 = match exit {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Deferred => 3,
            Exit::Cancelled => 4,
            // What a shell shows for SIGABRT, by which the original ended here;
            // there is no use in a core dump of a client.
            Exit::RequestNotTaken => 134,
            // What a shell shows for SIGPIPE.
            Exit::ReaderGone => 141,
        };
        Self::from(status)
    }
}

/// Does what the command line asks for; errors are told on stderr.
pub async fn run(cli: &Cli) -> ExitCode {
    match perform(cli).await {
        Ok(exit) => exit,
        Err(error) if error.is_closed_pipe() => Exit::ReaderGone,
        Err(error) => {
            complain(&error);
            Exit::Failed
        }
    }
    .into()
}

async fn perform(cli: &Cli) -> Result<Exit, ClientError> {
    if cli.reset_status {
        reset_status(cli).await
    } else if cli.status {
        status(cli).await
    } else if cli.cancel {
        cancel(cli).await
    } else if cli.follow {
        follow(cli).await
    } else if cli.update {
        update(cli).await
    } else if cli.check_for_update {
        check_for_update(cli).await
    } else if cli.watch_for_updates {
        watch_for_updates(cli).await
    } else {
        say("Done.");
        Ok(Exit::Done)
    }
}

async fn find(cli: &Cli) -> Result<Daemon, ClientError> {
    Daemon::find(cli.bus.as_deref(), cli.retry_seconds).await
}

async fn reset_status(cli: &Cli) -> Result<Exit, ClientError> {
    let daemon = find(cli).await?;
    let before = daemon.operation().await;
    daemon.reset_status().await?;
    if before == Some(Operation::Idle) {
        say("There was no finished update to forget.");
    } else {
        say("Status reset: the daemon has forgotten the finished update.");
        say(
            "The boot slots still prefer the new version; \"gptprio prioritize DISK SLOT\" makes \
             another one the first to boot, as in \"gptprio prioritize /dev/sda USR-A\".",
        );
    }
    Ok(Exit::Done)
}

async fn status(cli: &Cli) -> Result<Exit, ClientError> {
    let daemon = find(cli).await?;
    if cli.json {
        let (status, details) = daemon.look().await?;
        print(Report::new(&status, details.as_ref()))?;
        return Ok(Exit::Done);
    }
    // Scripts get their five lines whatever happens.
    print(match daemon.status().await {
        Ok(status) => status,
        Err(error) => {
            complain(&error);
            StatusLine::unavailable()
        }
    })?;
    match daemon.details().await {
        Ok(Some(details)) => report::say_last_attempt(&details),
        Ok(None) => {}
        Err(error) => complain(&error),
    }
    Ok(Exit::Done)
}

async fn cancel(cli: &Cli) -> Result<Exit, ClientError> {
    let daemon = find(cli).await?;
    let before = daemon.operation().await;
    daemon.cancel().await?;
    say(match before {
        Some(Operation::Idle | Operation::UpdatedNeedReboot) => {
            "No attempt is under way: there is nothing to cancel."
        }
        Some(Operation::CheckingForUpdate | Operation::ReportingErrorEvent) => {
            "Nothing is being installed: there is nothing to cancel."
        }
        Some(Operation::Finalizing) => "The update is being finished: it is too late to cancel.",
        _ => "Cancellation requested.",
    });
    Ok(Exit::Done)
}

async fn check_for_update(cli: &Cli) -> Result<Exit, ClientError> {
    let daemon = find(cli).await?;
    match daemon.attempt_update().await {
        Ok(()) => Ok(Exit::Done),
        Err(error) => {
            complain(&error);
            Ok(Exit::RequestNotTaken)
        }
    }
}

async fn update(cli: &Cli) -> Result<Exit, ClientError> {
    let daemon = find(cli).await?;
    let mut attempt = match request_attempt(&daemon).await {
        Ok(attempt) => attempt,
        Err(error) => {
            complain(&error);
            return Ok(Exit::RequestNotTaken);
        }
    };
    let mut polls = polls(cli.poll_seconds);
    loop {
        polls.tick().await;
        let (end, details) = match daemon.look().await {
            Ok((status, details)) => {
                let end = attempt.look(&status, details.as_ref(), Occasion::Poll);
                print(status)?;
                (end, details)
            }
            Err(error) => {
                complain(&error);
                print(StatusLine::unavailable())?;
                (attempt.missed(), None)
            }
        };
        if let Some(end) = end {
            report::say_end(end, details.as_ref());
            return Ok(update_exit(end));
        }
    }
}

/// The original's rule: a daemon that is idle again is no failure, whatever
/// made it so.
fn update_exit(end: End) -> Exit {
    match end {
        End::Updated | End::NoUpdate | End::Deferred | End::Failed | End::Cancelled => Exit::Done,
        End::Restarted | End::NotStarted | End::Lost => Exit::Failed,
    }
}

async fn follow(cli: &Cli) -> Result<Exit, ClientError> {
    let daemon = find(cli).await?;
    // Before the request, so that no signal is missed.
    let mut signals = daemon.status_updates().await?;
    let mut attempt = request_attempt(&daemon).await?;
    let mut display = (!cli.json).then(Display::new);
    let mut polls = polls(cli.poll_seconds);
    let (mut occasion, mut signalled) = (Occasion::Signal, None);
    loop {
        let seen = match signalled {
            // The original may be too busy to answer, and tells no more anyway.
            Some(status) if !attempt.has_details() => Ok((status, None)),
            _ => daemon.look().await,
        };
        let (end, seen) = match seen {
            Ok((status, details)) => (
                attempt.look(&status, details.as_ref(), occasion),
                Some((status, details)),
            ),
            Err(error) => {
                match &display {
                    Some(display) => display.aside(|| complain(&error)),
                    None => complain(&error),
                }
                (attempt.missed(), None)
            }
        };
        if let Some((status, details)) = &seen {
            match &mut display {
                Some(display) => display.show(status, details.as_ref()),
                None => print(Report::new(status, details.as_ref()).ending(end))?,
            }
        }
        if let Some(end) = end {
            drop(display); // clears the bar
            report::say_end(end, seen.and_then(|(_, details)| details).as_ref());
            return Ok(follow_exit(end));
        }
        (occasion, signalled) = tokio::select! {
            biased; // what was told before what could be asked
            signal = signals.next() => match signal {
                Some(status) => (Occasion::Signal, Some(status)),
                None => return Err(ClientError::Disconnected),
            },
            _ = polls.tick() => (Occasion::Poll, None),
        };
    }
}

fn follow_exit(end: End) -> Exit {
    match end {
        End::Updated | End::NoUpdate => Exit::Done,
        End::Deferred => Exit::Deferred,
        End::Cancelled => Exit::Cancelled,
        End::Failed | End::Restarted | End::NotStarted | End::Lost => Exit::Failed,
    }
}

async fn watch_for_updates(cli: &Cli) -> Result<Exit, ClientError> {
    let daemon = find(cli).await?;
    let mut signals = daemon.status_updates().await?;
    let mut owners = daemon.owner_changes().await?;
    say("Watching the update daemon; Ctrl-C ends.");
    loop {
        tokio::select! {
            signal = signals.next() => match signal {
                Some(status) => report::say_update(&status),
                None => return Err(ClientError::Disconnected),
            },
            owner = owners.next() => match owner {
                Some(true) => say("The update daemon is back."),
                Some(false) => say("The update daemon has left the message bus."),
                None => return Err(ClientError::Disconnected),
            },
        }
    }
}

/// Asks for an attempt, having noted by what its end will be known.
async fn request_attempt(daemon: &Daemon) -> Result<Attempt, ClientError> {
    let before = daemon.details().await?;
    daemon.attempt_update().await?;
    Ok(Attempt::new(before.as_ref()))
}

/// Ticks every `period`, for the first time after one.
fn polls(period: Duration) -> Interval {
    // Zero would panic, and would be a busy loop.
    let period = period.max(Duration::from_millis(1));
    let mut polls = interval_at(Instant::now() + period, period);
    polls.set_missed_tick_behavior(MissedTickBehavior::Delay);
    polls
}

/// Tells an error and its causes in one line.
fn complain(error: &ClientError) {
    let mut text = format!("error: {error}");
    let mut cause = error.source();
    while let Some(source) = cause {
        let words = source.to_string();
        // zbus repeats the inner error in the outer one.
        if !text.ends_with(&words) {
            text += ": ";
            text += &words;
        }
        cause = source.source();
    }
    say(text);
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text
        .parse()
        .map_err(|_| "a number of seconds is expected, such as 5 or 0.5".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(args: &[&str]) -> Result<Cli, clap::Error> {
        single_dash::try_parse_from(["update_engine_client"].iter().chain(args))
    }

    #[test]
    fn exit_statuses_are_the_documented_ones() {
        for (end, update, follow) in [
            (End::Updated, Exit::Done, Exit::Done),
            (End::NoUpdate, Exit::Done, Exit::Done),
            (End::Deferred, Exit::Done, Exit::Deferred),
            (End::Failed, Exit::Done, Exit::Failed),
            (End::Cancelled, Exit::Done, Exit::Cancelled),
            (End::Restarted, Exit::Failed, Exit::Failed),
            (End::NotStarted, Exit::Failed, Exit::Failed),
            (End::Lost, Exit::Failed, Exit::Failed),
        ] {
            assert_eq!(update_exit(end), update, "-update, {end:?}");
            assert_eq!(follow_exit(end), follow, "-follow, {end:?}");
        }
    }

    #[test]
    fn the_originals_flags_are_taken_in_all_their_forms() {
        for form in ["-status", "--status", "-status=true", "--status=1"] {
            assert!(parsed(&[form]).unwrap().status, "{form}");
        }
        for form in ["-nostatus", "-status=false", "--nostatus"] {
            assert!(!parsed(&[form]).unwrap().status, "{form}");
        }
        let all = parsed(&[
            "-check_for_update",
            "-reset_status",
            "-update",
            "-watch_for_updates",
        ])
        .unwrap();
        assert!(all.check_for_update && all.reset_status);
        assert!(all.update && all.watch_for_updates);
    }

    #[test]
    fn the_flags_of_the_originals_log_library_change_nothing() {
        for flags in [
            "-logtostderr -alsologtostderr -nolog_prefix -colorlogtostderr=false",
            "-minloglevel=2 -v=1 -v 3 -stderrthreshold 0 --vmodule=a=2,b=1",
            "-log_dir=/tmp --log-dir=/var/log -logbuflevel=-1",
        ] {
            let flags: Vec<_> = flags.split(' ').chain(["-status"]).collect();
            assert!(parsed(&flags).unwrap().status, "{flags:?}");
        }
        assert!(parsed(&["-logtosyslog"]).is_err());
    }

    #[test]
    fn json_goes_with_status_or_follow_alone() {
        assert!(parsed(&["-status", "-json"]).is_ok());
        assert!(parsed(&["-follow", "-json"]).is_ok());
        assert!(parsed(&["-update", "-json"]).is_err());
        assert!(parsed(&["-json"]).is_err());
    }

    #[test]
    fn times_are_seconds_and_never_negative() {
        let poll = |text: &str| parsed(&[&format!("-poll-seconds={text}")]).map(|c| c.poll_seconds);
        assert_eq!(poll("0.25").unwrap(), Duration::from_millis(250));
        assert_eq!(parsed(&[]).unwrap().poll_seconds, Duration::from_secs(5));
        assert_eq!(parsed(&[]).unwrap().retry_seconds, Duration::from_secs(10));
        for wrong in ["-1", "soon", "NaN", "1e300"] {
            assert!(poll(wrong).is_err(), "{wrong}");
        }
    }
}
