//! When a machine may reboot: windows, days without reboots, and a delay of its own inside a
//! window. Pure: the moment and the time zone are arguments.
//!
//! A window means what it means to the original ([`Window`]): it begins at a local time and lasts
//! for a length of elapsed time, its last instant included. On the days on which clocks change its
//! start is the instant that Go's `time.Date` gives:
//!
//! ```text
//! America/New_York   02:30 on 10 Mar 2024 does not exist   starts 01:30 EST, an hour earlier
//!                    01:30 on  3 Nov 2024 exists twice     starts 01:30 EDT, the first one
//! ```
//!
//! A machine that missed a window waits for the next one; nothing is remembered. What a strategy
//! or the semaphore says is none of this module's business.

pub mod duration;
mod exclusion;
mod recurrence;

use std::time::Duration;

use jiff::civil::{Date, DateTime};
use jiff::tz::{Offset, TimeZone};
use jiff::{SignedDuration, Timestamp};

use crate::machine_id::MachineId;
use exclusion::Excluded;

pub use exclusion::{BadExclusion, Exclusion};
pub use recurrence::{BadStart, BadWindow, Window};

/// [`State::Open`] looks this far for the end.
pub const LOOK_AHEAD: SignedDuration = SignedDuration::from_hours(35 * 24);

/// When there was no opening on so many days outside excluded ranges, there is none. Weekly windows
/// and excluded weekdays repeat after 7; the rest is room for odd calendars.
const BARREN_DAYS: u32 = 21;

const NANOSECOND: SignedDuration = SignedDuration::from_nanos(1);

/// When a machine may reboot. Without windows: always, but on excluded days.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    zone: TimeZone,
    windows: Vec<Window>,
    exclusions: Vec<Exclusion>,
    excluded: Excluded,
    most_delay: SignedDuration,
    seed: u64,
}

/// What a [`Schedule`] says of a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// There are no windows and no excluded days.
    Always,
    /// A reboot may begin now.
    Open {
        /// The last instant of this stretch, or one of its instants that is more than
        /// [`LOOK_AHEAD`] away.
        closes: Timestamp,
    },
    /// A reboot must wait.
    Closed {
        /// The first instant at which it may begin; `None` when the excluded days leave none.
        opens: Option<Timestamp>,
    },
}

impl Schedule {
    /// Windows in local time of `zone`. They may overlap.
    #[must_use]
    pub fn new(zone: TimeZone, windows: Vec<Window>) -> Self {
        Self {
            zone,
            windows,
            exclusions: Vec::new(),
            excluded: Excluded::default(),
            most_delay: SignedDuration::ZERO,
            seed: 0,
        }
    }

    /// The same without reboots on these days. A window that reaches into one is cut there.
    #[must_use]
    pub fn without(mut self, days: Vec<Exclusion>) -> Self {
        self.excluded = Excluded::new(&days);
        self.exclusions = days;
        self
    }

    /// The same with every occurrence of a window beginning later, by a time of `machine`'s own:
    /// it depends on the machine and the occurrence alone, so it survives restarts. It is at most
    /// `most` and at most the window's length. Without windows there is nothing to delay.
    #[must_use]
    pub fn delayed(mut self, most: Duration, machine: &MachineId) -> Self {
        self.most_delay = SignedDuration::try_from(most).unwrap_or(SignedDuration::MAX);
        self.seed = hash(0, machine.as_str().as_bytes());
        self
    }

    /// Whether a reboot may begin at `at`, and until when or from when on.
    #[must_use]
    pub fn state(&self, at: Timestamp) -> State {
        if self.windows.is_empty() && self.excluded.is_empty() {
            return State::Always;
        }
        match self.first_open(at) {
            Some(opens) if opens == at => State::Open {
                closes: self.last_open(at),
            },
            opens => State::Closed { opens },
        }
    }

    /// What the daemon logs about its windows, the original's words first.
    #[must_use]
    pub fn describe(&self) -> Vec<String> {
        let mut lines: Vec<String> = self
            .windows
            .iter()
            .map(|window| {
                let (start, length) = (window.start_text(), window.length_text());
                format!("Reboot window start is {start:?} and length is {length:?}")
            })
            .collect();
        if lines.is_empty() {
            lines.push("No configured reboot window".to_owned());
        } else if !self.most_delay.is_zero() {
            let most = duration::print(self.most_delay);
            lines.push(format!("Reboots begin up to {most} into a window"));
        }
        if !self.exclusions.is_empty() {
            let days: Vec<String> = self.exclusions.iter().map(Exclusion::to_string).collect();
            lines.push(format!("No reboots on {}", days.join(", ")));
        }
        lines
    }

    /// The first instant from `from` on, itself included, that is open.
    fn first_open(&self, from: Timestamp) -> Option<Timestamp> {
        let mut day = self.day_of(from);
        let mut barren = 0;
        while barren < BARREN_DAYS {
            if let Some(last) = self.excluded.range_with(day) {
                day = last.tomorrow().ok()?;
                barren = 0;
                continue;
            }
            if let Some(opens) = self.first_open_on(day, from) {
                return Some(opens);
            }
            barren += 1;
            day = day.tomorrow().ok()?;
        }
        None
    }

    /// The same within one day.
    fn first_open_on(&self, day: Date, from: Timestamp) -> Option<Timestamp> {
        if self.excluded.holds(day) {
            return None;
        }
        let (dawn, dusk) = self.bounds(day);
        self.occurrences(day)
            .filter_map(|(start, end)| {
                let opens = start.max(dawn).max(from);
                (opens <= end.min(dusk)).then_some(opens)
            })
            .min()
    }

    /// The last instant of the open stretch that `at` lies in, as far as [`LOOK_AHEAD`] shows it.
    fn last_open(&self, at: Timestamp) -> Timestamp {
        let horizon = at.saturating_add(LOOK_AHEAD).unwrap_or(Timestamp::MAX);
        let mut reached = at;
        while reached < horizon {
            let day = self.day_of(reached);
            let (_, dusk) = self.bounds(day);
            let last = self
                .occurrences(day)
                .filter(|&(start, end)| (start..=end).contains(&reached))
                .map(|(_, end)| end.min(dusk))
                .max()
                .unwrap_or(reached);
            // Another occurrence, or the next day of this one, may go on right behind it.
            let Ok(next) = last.checked_add(NANOSECOND) else {
                return last;
            };
            if self.first_open_on(self.day_of(next), next) != Some(next) {
                return last;
            }
            reached = next;
        }
        reached
    }

    /// First and last instant of every occurrence that may touch `day`, and of some that do not.
    fn occurrences(&self, day: Date) -> impl Iterator<Item = (Timestamp, Timestamp)> + '_ {
        let no_windows = self.windows.is_empty();
        let windows = self.windows.iter().flat_map(move |window| {
            // Clocks that change around midnight can put a start on the day before its date.
            (-window.reach_in_days()..=1).filter_map(move |days| {
                let date = day.checked_add(jiff::Span::new().days(days)).ok()?;
                self.occurrence(window, date)
            })
        });
        windows.chain(no_windows.then_some((Timestamp::MIN, Timestamp::MAX)))
    }

    /// The occurrence of `window` that begins on `date`.
    fn occurrence(&self, window: &Window, date: Date) -> Option<(Timestamp, Timestamp)> {
        let start = go_date(&self.zone, window.start_on(date)?)?;
        let most = self.most_delay.min(window.length());
        let delay = within(most, hash(self.seed, &start.as_second().to_le_bytes()));
        let end = start.checked_add(window.length()).ok()?;
        Some((start.checked_add(delay).ok()?, end))
    }

    /// The local day that `at` is part of, such that it lies within its [`Schedule::bounds`]. That
    /// is its date, but for an hour that clocks repeat across midnight.
    fn day_of(&self, at: Timestamp) -> Date {
        let date = self.zone.to_datetime(at).date();
        match date.tomorrow() {
            Ok(tomorrow) if self.bounds(tomorrow).0 <= at => tomorrow,
            _ => date,
        }
    }

    /// First and last instant of a local day.
    fn bounds(&self, day: Date) -> (Timestamp, Timestamp) {
        let dawn = |day: Date| self.zone.to_timestamp(day.at(0, 0, 0, 0)).ok();
        let first = dawn(day).unwrap_or(Timestamp::MIN);
        let last = day
            .tomorrow()
            .ok()
            .and_then(dawn)
            .and_then(|next| next.checked_sub(NANOSECOND).ok())
            .unwrap_or(Timestamp::MAX);
        (first, last)
    }
}

/// The instant of a local time by the rule of Go's `time.Date`: the zone's offset at the time as if
/// it were UTC gives a first guess, and the offset at the guess is the one that counts. So a time
/// that does not exist, or exists twice, has the instant that the original would take.
fn go_date(zone: &TimeZone, local: DateTime) -> Option<Timestamp> {
    let as_utc = Offset::UTC.to_timestamp(local).ok()?;
    let less_offset_at = |at: Timestamp| {
        let seconds = i64::from(zone.to_offset(at).seconds());
        as_utc.checked_sub(SignedDuration::from_secs(seconds)).ok()
    };
    less_offset_at(less_offset_at(as_utc)?)
}

/// Whole seconds from zero to `most`, both included, picked evenly by a number.
fn within(most: SignedDuration, number: u64) -> SignedDuration {
    let choices = u128::from(most.as_secs().unsigned_abs()) + 1;
    let picked = (choices * u128::from(number)) >> 64;
    i64::try_from(picked).map_or(most, SignedDuration::from_secs)
}

/// FNV-1a with the finish of SplitMix64. Written out, for the number must stay the same in later
/// versions: it places machines within their windows.
fn hash(seed: u64, bytes: &[u8]) -> u64 {
    let mut state = seed ^ 0xcbf2_9ce4_8422_2325;
    for &byte in bytes {
        state = (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

#[cfg(test)]
mod tests;
