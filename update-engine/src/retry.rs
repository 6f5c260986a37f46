//! Which URL to try, and how long to leave a failing payload alone: pure
//! bookkeeping over the original's preference keys.

use crate::omaha::UpdateOffer;

const DAY: i64 = 86_400;
/// Longest waiting time, before it is spread.
const LONGEST_WAIT: i64 = 16 * DAY;
/// Width of the span that a waiting time is spread over.
const SPREAD: i64 = 12 * 3_600;

/// What is remembered about the payload on offer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RetryState {
    /// Fingerprint of the offer; another one starts over
    /// (`current-response-signature`).
    pub fingerprint: String,
    /// Which of the offer's URLs is tried (`current-url-index`).
    pub url_index: usize,
    /// Failures at that URL (`current-url-failure-count`).
    pub url_failures: u32,
    /// Rounds over all URLs (`payload-attempt-number`).
    pub attempt: u32,
    /// Unix seconds before which nothing is tried; 0 for none
    /// (`backoff-expiry-time`).
    pub backoff_until: i64,
}

/// Whether a failure counts against a URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bucket {
    NextUrl,
    CountFailure,
    Ignore,
}

impl RetryState {
    /// The state that applies to this offer.
    #[must_use]
    pub fn for_offer(self, offer: &UpdateOffer) -> Self {
        let fingerprint = offer.fingerprint();
        if self.fingerprint == fingerprint && self.url_index < offer.urls.len() {
            self
        } else {
            Self {
                fingerprint,
                ..Self::default()
            }
        }
    }

    /// Unix time until which the payload must be left alone, if that is still
    /// ahead.
    pub fn waiting_until(&self, offer: &UpdateOffer, now: i64) -> Option<i64> {
        if offer.disable_backoff || offer.is_delta {
            return None;
        }
        // A time further ahead than any wait was set by a clock that was wrong.
        let plausible = self.backoff_until <= now.saturating_add(LONGEST_WAIT + SPREAD);
        (plausible && self.backoff_until > now).then_some(self.backoff_until)
    }

    /// Payload bytes arrived: the URL works.
    pub fn received(&mut self) {
        self.url_failures = 0;
    }

    /// The whole payload arrived and its signature is good. What fails after that
    /// is no matter of URLs, so the next try of the same payload waits.
    pub fn downloaded(&mut self, offer: &UpdateOffer, now: i64, roll: u32) {
        self.count_attempt(offer, now, roll);
    }

    /// The attempt failed with this published code.
    pub fn failed(&mut self, offer: &UpdateOffer, code: u32, now: i64, roll: u32) {
        match bucket(code) {
            Bucket::Ignore => {}
            Bucket::CountFailure
                if self.url_failures.saturating_add(1) < offer.max_failures_per_url =>
            {
                self.url_failures += 1;
            }
            Bucket::CountFailure | Bucket::NextUrl => {
                self.url_failures = 0;
                self.url_index += 1;
                if self.url_index >= offer.urls.len() {
                    self.url_index = 0;
                    self.count_attempt(offer, now, roll);
                }
            }
        }
    }

    fn count_attempt(&mut self, offer: &UpdateOffer, now: i64, roll: u32) {
        if offer.is_delta {
            return;
        }
        self.attempt = self.attempt.saturating_add(1);
        let days = 1_i64 << (self.attempt - 1).min(4);
        let offset = i64::from(roll) * SPREAD / i64::from(u32::MAX) - SPREAD / 2;
        self.backoff_until = now.saturating_add(days * DAY + offset);
    }
}

fn bucket(code: u32) -> Bucket {
    match code {
        10..=12 | 17 | 18 | 21..=29 | 32 | 33 | 38 | 39 => Bucket::NextUrl,
        1 | 9 | 14 | 20 | 37 | 2000..=2999 => Bucket::CountFailure,
        _ => Bucket::Ignore,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_700_000_000;
    const MIDDLE: u32 = u32::MAX / 2;

    fn offer(urls: usize) -> UpdateOffer {
        UpdateOffer {
            version: "2.0.0".to_owned(),
            urls: (0..urls).map(|n| format!("http://host{n}/p")).collect(),
            size: 10,
            sha256: [7; 32],
            is_delta: false,
            disable_backoff: false,
            max_failures_per_url: 2,
        }
    }

    #[test]
    fn urls_are_walked_and_a_full_round_starts_the_wait() {
        let offer = offer(2);
        let mut state = RetryState::default().for_offer(&offer);
        state.failed(&offer, 29, NOW, MIDDLE);
        assert_eq!((state.url_index, state.attempt), (1, 0));
        state.failed(&offer, 9, NOW, MIDDLE);
        assert_eq!((state.url_index, state.url_failures), (1, 1));
        state.failed(&offer, 9, NOW, MIDDLE);
        assert_eq!(
            (state.url_index, state.url_failures, state.attempt),
            (0, 0, 1)
        );
        let until = state.waiting_until(&offer, NOW).unwrap();
        assert!((until - NOW - DAY).abs() <= SPREAD / 2, "{until}");
        assert_eq!(state.waiting_until(&offer, until), None);
    }

    #[test]
    fn waits_double_up_to_sixteen_days() {
        let offer = offer(1);
        let mut state = RetryState::default().for_offer(&offer);
        let days: Vec<i64> = (0..7)
            .map(|_| {
                state.failed(&offer, 12, NOW, MIDDLE);
                (state.backoff_until - NOW + 60) / DAY
            })
            .collect();
        assert_eq!(days, [1, 2, 4, 8, 16, 16, 16]);
    }

    #[test]
    fn another_offer_starts_over() {
        let first = offer(2);
        let mut state = RetryState::default().for_offer(&first);
        state.failed(&first, 12, NOW, MIDDLE);
        let second = UpdateOffer {
            sha256: [8; 32],
            ..offer(2)
        };
        let state = state.for_offer(&second);
        assert_eq!((state.url_index, state.attempt), (0, 0));
    }

    #[test]
    fn nothing_waits_for_deltas_or_when_the_server_says_so_or_after_a_clock_jump() {
        let mut state = RetryState {
            backoff_until: NOW + DAY,
            ..RetryState::default()
        };
        assert!(state.waiting_until(&offer(1), NOW).is_some());
        assert_eq!(
            state.waiting_until(
                &UpdateOffer {
                    is_delta: true,
                    ..offer(1)
                },
                NOW
            ),
            None
        );
        assert_eq!(
            state.waiting_until(
                &UpdateOffer {
                    disable_backoff: true,
                    ..offer(1)
                },
                NOW
            ),
            None
        );
        state.backoff_until = NOW + 400 * DAY;
        assert_eq!(state.waiting_until(&offer(1), NOW), None);
    }
}
