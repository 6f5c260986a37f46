//! When to ask the server next: pure arithmetic on durations.
//!
//! With the default settings the figures are the original's: first check 2–12
//! minutes after the start, then every 40–50 minutes, slowed down by the server's
//! `PollInterval` or by HTTP 500 and 503 up to four hours, never faster than the
//! configured interval.

use std::time::Duration;

/// Width of the span that a default interval is spread over.
const FUZZ: Duration = Duration::from_secs(600);
/// Longest interval, whoever asks for it.
const MAXIMUM: Duration = Duration::from_secs(14_400);

/// What the last exchange with the server says about the next.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pace {
    /// `PollInterval` of the last answer in seconds; 0 when it had none.
    pub poll_interval: u64,
    /// HTTP status of the last answer; 0 when there was none.
    pub http_status: u16,
    /// The interval before spreading that was used last.
    last_interval: Option<Duration>,
}

/// Time from the start of the daemon to the first check, around `delay`.
pub(super) fn first_check(delay: Duration, roll: u32) -> Duration {
    spread(delay, FUZZ.min(delay * 2), roll)
}

/// Time from now to the next check; `base` is the configured interval. Remembers
/// the interval chosen in `pace`, so that a server in trouble sees it double.
pub(super) fn next_check(pace: &mut Pace, base: Duration, roll: u32) -> Duration {
    let wanted = if pace.poll_interval > 0 {
        Duration::from_secs(pace.poll_interval)
    } else if matches!(pace.http_status, 500 | 503) {
        pace.last_interval.unwrap_or(base).saturating_mul(2)
    } else {
        base
    };
    let interval = wanted.min(MAXIMUM.max(base));
    let (interval, fuzz) = if interval <= base {
        (base, FUZZ.min(base))
    } else {
        (interval, interval)
    };
    pace.last_interval = Some(interval);
    spread(interval, fuzz, roll)
}

/// A point in `[interval − fuzz/2, interval + fuzz/2]`, picked by `roll`.
fn spread(interval: Duration, fuzz: Duration, roll: u32) -> Duration {
    let share = f64::from(roll) / f64::from(u32::MAX);
    (interval + fuzz.mul_f64(share)).saturating_sub(fuzz / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULT: Duration = Duration::from_secs(2_700);
    const MIDDLE: u32 = u32::MAX / 2;

    fn span(pace: Pace) -> (u64, u64) {
        let at = |roll| next_check(&mut pace.clone(), DEFAULT, roll).as_secs();
        (at(0), at(u32::MAX))
    }

    #[test]
    fn first_check_falls_two_to_twelve_minutes_after_the_start() {
        let delay = Duration::from_secs(420);
        assert_eq!(first_check(delay, 0), Duration::from_secs(120));
        assert_eq!(first_check(delay, u32::MAX), Duration::from_secs(720));
        assert_eq!(first_check(Duration::ZERO, u32::MAX), Duration::ZERO);
    }

    #[test]
    fn intervals_follow_the_published_table() {
        let pace = |poll_interval, http_status| Pace {
            poll_interval,
            http_status,
            last_interval: None,
        };
        let table = [
            (pace(0, 200), (2_400, 3_000)),
            (pace(60, 200), (2_400, 3_000)),
            (pace(2_700, 200), (2_400, 3_000)),
            (pace(7_200, 200), (3_600, 10_800)),
            (pace(1_000_000, 200), (7_200, 21_600)),
            (pace(0, 404), (2_400, 3_000)),
            (pace(0, 500), (2_700, 8_100)),
            (pace(0, 503), (2_700, 8_100)),
        ];
        for (pace, expected) in table {
            assert_eq!(span(pace), expected, "{pace:?}");
        }
    }

    #[test]
    fn a_server_in_trouble_sees_the_interval_double_up_to_four_hours() {
        let mut pace = Pace {
            http_status: 503,
            ..Pace::default()
        };
        let mut minutes = || (next_check(&mut pace, DEFAULT, MIDDLE).as_secs() + 30) / 60;
        assert_eq!(
            [minutes(), minutes(), minutes(), minutes()],
            [90, 180, 240, 240]
        );
    }

    #[test]
    fn one_good_answer_ends_the_doubling() {
        let mut pace = Pace {
            http_status: 500,
            ..Pace::default()
        };
        next_check(&mut pace, DEFAULT, MIDDLE);
        pace.http_status = 200;
        assert_eq!(
            next_check(&mut pace, DEFAULT, 0),
            Duration::from_secs(2_400)
        );
    }
}
