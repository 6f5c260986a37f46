//! How long to wait before trying again. All waits are spread at random, so that
//! machines that were woken by the same event do not stay in step.

use std::time::Duration;

/// Doubles from `first` up to `most`; each wait is between half and the whole of
/// it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pace {
    first: Duration,
    most: Duration,
    doublings: u32,
}

impl Pace {
    /// Waits after the store or the updater failed.
    pub const STORE: Self = Self::new(Duration::from_secs(1), Duration::from_secs(60));
    /// Waits after a refusal that others have to lift.
    pub const REFUSED: Self = Self::new(Duration::from_secs(10), Duration::from_secs(5 * 60));
    /// Waits after this machine could not reboot.
    pub const REBOOT: Self = Self::new(Duration::from_secs(60), Duration::from_secs(30 * 60));

    const fn new(first: Duration, most: Duration) -> Self {
        Self {
            first,
            most,
            doublings: 0,
        }
    }

    /// The next wait; `roll` is uniform.
    pub fn next(&mut self, roll: u32) -> Duration {
        let factor = 1_u32.checked_shl(self.doublings).unwrap_or(u32::MAX);
        let whole = self.first.saturating_mul(factor).min(self.most);
        if whole < self.most {
            self.doublings += 1;
        }
        spread(whole.mul_f64(0.75), 0.25 / 0.75, roll)
    }

    /// Whether it has been tried several times in vain.
    #[must_use]
    pub fn is_long(&self) -> bool {
        self.doublings >= 4
    }

    /// Starts over.
    pub fn reset(&mut self) {
        self.doublings = 0;
    }
}

/// `middle`, more or less by `share` of it.
pub(super) fn spread(middle: Duration, share: f64, roll: u32) -> Duration {
    let position = f64::from(roll) / f64::from(u32::MAX) * 2.0 - 1.0;
    middle.mul_f64(1.0 + share * position)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_most_and_are_spread_over_its_upper_half() {
        let mut pace = Pace::REFUSED;
        let waits: Vec<_> = [u32::MAX; 8].map(|roll| pace.next(roll)).to_vec();
        let seconds: Vec<_> = waits
            .iter()
            .map(|wait| wait.as_secs_f64().round())
            .collect();
        assert_eq!(
            seconds,
            [10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 300.0, 300.0]
        );
        assert_eq!(pace.next(0).as_secs(), 150);
        pace.reset();
        assert_eq!(pace.next(0).as_secs(), 5);
    }

    #[test]
    fn no_number_of_failures_overflows() {
        let mut pace = Pace::STORE;
        for _ in 0..100_000 {
            let wait = pace.next(u32::MAX);
            assert!(wait <= Duration::from_secs(60) + Duration::from_millis(1));
        }
    }
}
