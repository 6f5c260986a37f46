//! When is the attempt that we asked for over, and what came of it?
//!
//! Our daemon counts finished attempts, so the answer is exact. The original
//! only goes back to idle, and looks the same after "no update" and after a
//! failure; for it the original client's rule holds. Pure: looks at the daemon
//! come in, time does not.

use serde::Serialize;

use super::report::StatusLine;
use crate::status::{Details, Operation, Outcome};

/// Polls in a row that may show an idle daemon with our request unanswered, or
/// no daemon at all. At the default pace this is a minute, twice what a
/// supervisor takes to restart the daemon.
const PATIENCE: u32 = 12;

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum End {
    Updated,
    NoUpdate,
    Deferred,
    Failed,
    Cancelled,
    /// The daemon was restarted meanwhile and knows nothing of the attempt.
    Restarted,
    /// The daemon took the request and stayed idle.
    NotStarted,
    /// The daemon does not answer any more.
    Lost,
}

/// What made us look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Occasion {
    /// A signal, or the very first look: the attempt may not have begun.
    Signal,
    /// The poll timer: it had time to begin.
    Poll,
}

/// Follows one attempt.
#[derive(Debug)]
pub(super) struct Attempt {
    /// Finished attempts when ours was asked for; `None` for a daemon that
    /// does not count.
    before: Option<u64>,
    began: bool,
    reported_error: bool,
    idle_polls: u32,
    missed: u32,
}

impl Attempt {
    /// `before`: what the daemon told just before the request.
    pub(super) fn new(before: Option<&Details>) -> Self {
        Self {
            before: before.map(|details| details.attempts),
            began: false,
            reported_error: false,
            idle_polls: 0,
            missed: 0,
        }
    }

    /// Whether the daemon offers details.
    pub(super) fn has_details(&self) -> bool {
        self.before.is_some()
    }

    /// The end, if this look shows it. `status` must not be newer than
    /// `details`.
    pub(super) fn look(
        &mut self,
        status: &StatusLine,
        details: Option<&Details>,
        occasion: Occasion,
    ) -> Option<End> {
        self.missed = 0;
        let operation = Operation::from_bus(&status.current_operation);
        // Also when it was so before: the daemon ignores the request then.
        if operation == Some(Operation::UpdatedNeedReboot) {
            return Some(End::Updated);
        }
        let idle = operation == Some(Operation::Idle);
        match (self.before, details) {
            (Some(before), Some(details)) => self.look_at_count(before, details, idle, occasion),
            _ => self.look_at_operation(operation, idle, occasion),
        }
    }

    /// A look that failed.
    pub(super) fn missed(&mut self) -> Option<End> {
        self.missed += 1;
        (self.missed >= PATIENCE).then_some(End::Lost)
    }

    fn look_at_count(
        &mut self,
        before: u64,
        details: &Details,
        idle: bool,
        occasion: Occasion,
    ) -> Option<End> {
        if details.attempts > before {
            return Some(end_of(details.last_outcome));
        }
        if details.attempts < before || (idle && self.began) {
            return Some(End::Restarted);
        }
        if !idle {
            self.began = true;
        } else if occasion == Occasion::Poll {
            self.idle_polls += 1;
        }
        (self.idle_polls >= PATIENCE).then_some(End::NotStarted)
    }

    fn look_at_operation(
        &mut self,
        operation: Option<Operation>,
        idle: bool,
        occasion: Occasion,
    ) -> Option<End> {
        if !idle {
            self.began = true;
            self.reported_error |= operation == Some(Operation::ReportingErrorEvent);
            return None;
        }
        match (self.reported_error, self.began, occasion) {
            (true, _, _) => Some(End::Failed),
            (false, true, _) | (false, _, Occasion::Poll) => Some(End::NoUpdate),
            (false, false, Occasion::Signal) => None,
        }
    }
}

fn end_of(outcome: Outcome) -> End {
    match outcome {
        Outcome::Updated => End::Updated,
        Outcome::NoUpdate => End::NoUpdate,
        Outcome::Deferred => End::Deferred,
        Outcome::Cancelled => End::Cancelled,
        // `None` would be an outcome that this version does not know.
        Outcome::Failed | Outcome::None => End::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Occasion::{Poll, Signal};
    use Operation::{CheckingForUpdate, Downloading, Idle, ReportingErrorEvent, UpdatedNeedReboot};

    fn status(operation: Operation) -> StatusLine {
        StatusLine {
            current_operation: operation.as_str().to_owned(),
            ..StatusLine::unavailable()
        }
    }

    fn counted(attempts: u64, last_outcome: Outcome) -> Details {
        Details {
            attempts,
            last_outcome,
            ..Details::default()
        }
    }

    #[test]
    fn with_a_count_the_outcome_decides() {
        for (outcome, end) in [
            (Outcome::Updated, End::Updated),
            (Outcome::NoUpdate, End::NoUpdate),
            (Outcome::Deferred, End::Deferred),
            (Outcome::Failed, End::Failed),
            (Outcome::Cancelled, End::Cancelled),
        ] {
            let mut attempt = Attempt::new(Some(&counted(4, Outcome::Failed)));
            let last = counted(4, Outcome::Failed);
            assert_eq!(attempt.look(&status(Idle), Some(&last), Poll), None);
            assert_eq!(attempt.look(&status(Downloading), Some(&last), Poll), None);
            let now = counted(5, outcome);
            assert_eq!(attempt.look(&status(Idle), Some(&now), Signal), Some(end));
        }
    }

    #[test]
    fn an_attempt_too_quick_to_be_seen_is_still_known_to_be_over() {
        let mut attempt = Attempt::new(Some(&counted(0, Outcome::None)));
        let now = counted(1, Outcome::NoUpdate);
        assert_eq!(
            attempt.look(&status(Idle), Some(&now), Signal),
            Some(End::NoUpdate)
        );
    }

    #[test]
    fn the_next_attempt_does_not_hide_the_end_of_ours() {
        let mut attempt = Attempt::new(Some(&counted(0, Outcome::None)));
        let now = counted(1, Outcome::Failed);
        assert_eq!(
            attempt.look(&status(CheckingForUpdate), Some(&now), Poll),
            Some(End::Failed)
        );
    }

    #[test]
    fn a_restart_is_noticed_by_the_count_and_by_an_end_that_was_not_counted() {
        let mut attempt = Attempt::new(Some(&counted(3, Outcome::NoUpdate)));
        let fresh = counted(0, Outcome::None);
        assert_eq!(
            attempt.look(&status(Idle), Some(&fresh), Poll),
            Some(End::Restarted)
        );

        let mut attempt = Attempt::new(Some(&fresh));
        assert_eq!(attempt.look(&status(Downloading), Some(&fresh), Poll), None);
        assert_eq!(
            attempt.look(&status(Idle), Some(&fresh), Poll),
            Some(End::Restarted)
        );
    }

    #[test]
    fn a_daemon_that_never_starts_is_given_up_after_polls_not_signals() {
        let mut attempt = Attempt::new(Some(&Details::default()));
        let (idle, details) = (status(Idle), Details::default());
        for _ in 0..1000 {
            assert_eq!(attempt.look(&idle, Some(&details), Signal), None);
        }
        for _ in 1..PATIENCE {
            assert_eq!(attempt.look(&idle, Some(&details), Poll), None);
        }
        assert_eq!(
            attempt.look(&idle, Some(&details), Poll),
            Some(End::NotStarted)
        );
    }

    #[test]
    fn a_silent_daemon_is_given_up_and_one_answer_renews_the_patience() {
        let mut attempt = Attempt::new(None);
        for _ in 1..PATIENCE {
            assert_eq!(attempt.missed(), None);
        }
        assert_eq!(attempt.look(&status(Downloading), None, Poll), None);
        for _ in 1..PATIENCE {
            assert_eq!(attempt.missed(), None);
        }
        assert_eq!(attempt.missed(), Some(End::Lost));
    }

    #[test]
    fn the_original_is_over_when_it_is_idle_at_a_poll() {
        let mut attempt = Attempt::new(None);
        assert_eq!(attempt.look(&status(Idle), None, Signal), None);
        assert_eq!(attempt.look(&status(Idle), None, Poll), Some(End::NoUpdate));
    }

    #[test]
    fn the_original_betrays_a_failure_only_while_it_reports_it() {
        let mut attempt = Attempt::new(None);
        assert_eq!(attempt.look(&status(Downloading), None, Signal), None);
        assert_eq!(
            attempt.look(&status(ReportingErrorEvent), None, Signal),
            None
        );
        assert_eq!(attempt.look(&status(Idle), None, Signal), Some(End::Failed));
    }

    #[test]
    fn waiting_for_a_reboot_is_success_at_any_time() {
        for details in [None, Some(counted(0, Outcome::None))] {
            let mut attempt = Attempt::new(details.as_ref());
            assert_eq!(
                attempt.look(&status(UpdatedNeedReboot), details.as_ref(), Signal),
                Some(End::Updated)
            );
        }
    }

    #[test]
    fn an_operation_of_a_newer_daemon_is_taken_for_work() {
        let mut attempt = Attempt::new(None);
        let odd = StatusLine {
            current_operation: "UPDATE_STATUS_CLEANUP".to_owned(),
            ..StatusLine::unavailable()
        };
        assert_eq!(attempt.look(&odd, None, Poll), None);
    }
}
