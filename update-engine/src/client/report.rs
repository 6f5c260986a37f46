//! What the client prints: the original's five lines and our JSON on stdout,
//! sentences on stderr.

use std::fmt::{self, Display};
use std::io::{self, Write};

use serde::Serialize;

use super::ClientError;
use super::attempt::End;
use crate::status::Details;

/// The daemon's status as received; `Display` is the original's block, byte for
/// byte but for the last newline.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct StatusLine {
    pub(super) last_checked_time: i64,
    pub(super) progress: f64,
    /// As on the bus: a newer daemon may have words that we do not know.
    pub(super) current_operation: String,
    pub(super) new_version: String,
    pub(super) new_size: i64,
}

impl StatusLine {
    /// What the original prints when `GetStatus` fails.
    pub(super) fn unavailable() -> Self {
        Self {
            last_checked_time: 0,
            progress: 0.0,
            current_operation: "(null)".to_owned(),
            new_version: "(null)".to_owned(),
            new_size: 0,
        }
    }
}

impl From<(i64, f64, String, String, i64)> for StatusLine {
    fn from(values: (i64, f64, String, String, i64)) -> Self {
        let (last_checked_time, progress, current_operation, new_version, new_size) = values;
        Self {
            last_checked_time,
            progress,
            current_operation,
            new_version,
            new_size,
        }
    }
}

impl Display for StatusLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "LAST_CHECKED_TIME={}", self.last_checked_time)?;
        writeln!(f, "PROGRESS={:.6}", self.progress)?;
        writeln!(f, "CURRENT_OP={}", self.current_operation)?;
        writeln!(f, "NEW_VERSION={}", self.new_version)?;
        write!(f, "NEW_SIZE={}", self.new_size)
    }
}

/// One line of JSON: the five values, `details` (`null` from the original) and,
/// in the last line of `-follow`, `outcome`.
#[derive(Debug, Serialize)]
pub(super) struct Report<'a> {
    #[serde(flatten)]
    status: &'a StatusLine,
    details: Option<&'a Details>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<End>,
}

impl<'a> Report<'a> {
    pub(super) fn new(status: &'a StatusLine, details: Option<&'a Details>) -> Self {
        Self {
            status,
            details,
            outcome: None,
        }
    }

    pub(super) fn ending(self, outcome: Option<End>) -> Self {
        Self { outcome, ..self }
    }
}

impl Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

/// Prints data and a newline on stdout, and flushes: it may be a pipe whose
/// reader waits.
pub(super) fn print(data: impl Display) -> Result<(), ClientError> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{data}")
        .and_then(|()| stdout.flush())
        .map_err(ClientError::Stdout)
}

/// Prints a sentence on stderr; when nobody can read it, nobody minds.
pub(super) fn say(text: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Tells in words how an attempt ended.
pub(super) fn say_end(end: End, details: Option<&Details>) {
    match end {
        End::Updated => say("Update succeeded -- reboot needed."),
        End::NoUpdate => say("No update available"),
        End::Deferred => say(format_args!(
            "Update deferred: {}",
            details
                .and_then(|details| details.reason.as_deref())
                .unwrap_or("the daemon does not say why")
        )),
        End::Failed => say(format_args!("Update failed: {}", failure(details))),
        End::Cancelled => say("Update cancelled; the next attempt resumes it."),
        End::Restarted => say("The update daemon was restarted during the attempt."),
        End::NotStarted => say("The update daemon took the request and did not start an attempt."),
        End::Lost => say("The update daemon does not answer any more."),
    }
}

/// Tells in words how the last attempt failed, and why nothing is installed.
pub(super) fn say_last_attempt(details: &Details) {
    if details.last_error.is_some() {
        say(format_args!(
            "Last attempt failed: {}",
            failure(Some(details))
        ));
    }
    if let Some(reason) = &details.reason {
        say(format_args!("Nothing is installed now: {reason}"));
    }
}

/// Shows one signal as the original's log did.
pub(super) fn say_update(status: &StatusLine) {
    say(format_args!(
        "Got status update:\n  last_checked_time: {}\n  progress: {}\n  current_operation: {}\n  \
         new_version: {}\n  new_size: {}",
        status.last_checked_time,
        status.progress,
        status.current_operation,
        status.new_version,
        status.new_size
    ));
}

fn failure(details: Option<&Details>) -> String {
    let Some(details) = details else {
        return "the daemon does not say why, its log may".to_owned();
    };
    let words = details
        .last_error
        .as_deref()
        .unwrap_or("no reason is known");
    match details.last_error_code {
        Some(code) => format!("{words} (error code {code})"),
        None => words.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::Outcome;

    fn downloading() -> StatusLine {
        (
            1_700_000_000,
            0.123_456_78,
            "UPDATE_STATUS_DOWNLOADING".to_owned(),
            "4081.2.0".to_owned(),
            457_123_456,
        )
            .into()
    }

    #[test]
    fn the_block_has_the_originals_bytes() {
        for (status, block) in [
            (
                downloading(),
                "LAST_CHECKED_TIME=1700000000\nPROGRESS=0.123457\n\
                 CURRENT_OP=UPDATE_STATUS_DOWNLOADING\nNEW_VERSION=4081.2.0\nNEW_SIZE=457123456",
            ),
            (
                StatusLine::unavailable(),
                "LAST_CHECKED_TIME=0\nPROGRESS=0.000000\nCURRENT_OP=(null)\nNEW_VERSION=(null)\n\
                 NEW_SIZE=0",
            ),
            (
                StatusLine {
                    progress: 1.0,
                    new_size: -1,
                    new_version: String::new(),
                    ..downloading()
                },
                "LAST_CHECKED_TIME=1700000000\nPROGRESS=1.000000\n\
                 CURRENT_OP=UPDATE_STATUS_DOWNLOADING\nNEW_VERSION=\nNEW_SIZE=-1",
            ),
        ] {
            assert_eq!(status.to_string(), block);
        }
    }

    #[test]
    fn json_holds_what_is_known_and_nothing_else() {
        let status = downloading();
        assert_eq!(
            Report::new(&status, None).to_string(),
            r#"{"last_checked_time":1700000000,"progress":0.12345678,"current_operation":"UPDATE_STATUS_DOWNLOADING","new_version":"4081.2.0","new_size":457123456,"details":null}"#
        );
        let details = Details {
            last_outcome: Outcome::NoUpdate,
            bytes_done: Some(7),
            attempts: 2,
            ..Details::default()
        };
        assert_eq!(
            Report::new(&status, Some(&details))
                .ending(Some(End::NoUpdate))
                .to_string(),
            r#"{"last_checked_time":1700000000,"progress":0.12345678,"current_operation":"UPDATE_STATUS_DOWNLOADING","new_version":"4081.2.0","new_size":457123456,"details":{"last_outcome":"no-update","bytes_done":7,"attempts":2},"outcome":"no-update"}"#
        );
    }

    #[test]
    fn a_failure_is_told_as_well_as_it_is_known() {
        let known = Details {
            last_error: Some("download the payload: connection reset".into()),
            last_error_code: Some(9),
            ..Details::default()
        };
        assert_eq!(
            failure(Some(&known)),
            "download the payload: connection reset (error code 9)"
        );
        assert_eq!(failure(Some(&Details::default())), "no reason is known");
        assert_eq!(failure(None), "the daemon does not say why, its log may");
    }
}
