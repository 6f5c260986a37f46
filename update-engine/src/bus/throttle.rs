//! When a change is worth a signal: the original's rule, with the time passed
//! in.

use std::time::{Duration, Instant};

use crate::status::{Operation, Snapshot};

/// Growth of the progress that is announced at once.
const STEP: f64 = 0.01;
/// After this long any growth is announced.
const PAUSE: Duration = Duration::from_secs(10);

/// Remembers what was announced last.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    announced: Option<(Snapshot, Instant)>,
}

impl Throttle {
    /// Whether `now` is to be announced, and if so remembers it.
    ///
    /// Every change of the status is, the very first snapshot included, but
    /// for progress during a download: that is announced when it has grown by
    /// [`STEP`], after [`PAUSE`], and at its end. A finished attempt is
    /// announced even when it was too short to be seen in the status, since
    /// clients wait for it.
    pub(super) fn admits(&mut self, now: &Snapshot, at: Instant) -> bool {
        let admitted = match &self.announced {
            None => true,
            Some((last, then)) => {
                let mut rest = last.status.clone();
                rest.progress = now.status.progress;
                let only_progress =
                    rest == now.status && last.details.attempts == now.details.attempts;
                !only_progress
                    || progress_is_worth_it(
                        now.status.operation,
                        last.status.progress,
                        now.status.progress,
                        at.saturating_duration_since(*then),
                    )
            }
        };
        if admitted {
            self.announced = Some((now.clone(), at));
        }
        admitted
    }
}

fn progress_is_worth_it(operation: Operation, last: f64, now: f64, since: Duration) -> bool {
    if last == now {
        return false;
    }
    operation != Operation::Downloading
        || now < last
        || now >= 1.0
        || now - last >= STEP
        || since >= PAUSE
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{Details, Status};

    fn downloading(progress: f64) -> Snapshot {
        Snapshot {
            status: Status {
                progress,
                operation: Operation::Downloading,
                ..Status::default()
            },
            details: Details::default(),
        }
    }

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn download_progress_is_announced_by_percent_by_time_and_at_its_ends() {
        let start = Instant::now();
        let mut throttle = Throttle::default();
        for (after, progress, announced) in [
            (0, 0.0, true),    // the first
            (1, 0.005, false), // half a percent
            (2, 0.01, true),   // one percent since the last signal
            (3, 0.019, false),
            (11, 0.019, false), // 9 s
            (12, 0.0191, true), // 10 s
            (13, 0.5, true),
            (14, 0.995, true),
            (15, 0.999, false),
            (16, 1.0, true), // the last
            (40, 1.0, false),
        ] {
            let now = downloading(progress);
            assert_eq!(
                throttle.admits(&now, start + seconds(after)),
                announced,
                "{progress} after {after} s"
            );
        }
    }

    #[test]
    fn every_other_change_of_the_status_is_announced() {
        let at = Instant::now();
        let mut throttle = Throttle::default();
        let mut now = Snapshot::default();
        assert!(throttle.admits(&now, at));
        assert!(!throttle.admits(&now, at), "nothing changed");

        let changes: [fn(&mut Snapshot); 6] = [
            |s| s.status.operation = Operation::CheckingForUpdate,
            |s| s.status.last_checked_time = 1,
            |s| s.status.new_version = "2.0.0".into(),
            |s| s.status.new_size = 1,
            |s| s.status.progress = 0.001, // not while downloading
            |s| s.details.attempts += 1,
        ];
        for (number, change) in changes.into_iter().enumerate() {
            change(&mut now);
            assert!(throttle.admits(&now, at), "change {number}");
        }
    }

    #[test]
    fn bytes_and_words_alone_are_silent() {
        let at = Instant::now();
        let mut throttle = Throttle::default();
        let mut now = downloading(0.5);
        throttle.admits(&now, at);
        now.details.bytes_done = Some(1);
        now.details.reason = Some("slow".into());
        assert!(!throttle.admits(&now, at + seconds(60)));
    }

    #[test]
    fn a_clock_that_stands_still_does_not_disturb() {
        let at = Instant::now();
        let mut throttle = Throttle::default();
        assert!(throttle.admits(&downloading(0.0), at + seconds(5)));
        assert!(!throttle.admits(&downloading(0.001), at));
    }
}
