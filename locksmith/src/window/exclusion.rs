//! Days on which a machine does not reboot, window or not: dates, ranges of dates and days of the
//! week. It knows dates, not zones.

use std::fmt;
use std::str::FromStr;

use jiff::civil::{Date, Weekday};

use super::recurrence::weekday;

/// Whole local days without reboots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exclusion {
    /// From a date to another one, both included.
    Dates {
        /// The first day.
        first: Date,
        /// The last day, not before the first.
        last: Date,
    },
    /// A day of every week.
    Weekday(Weekday),
}

/// Text that names no days.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadExclusion {
    /// None of the forms.
    #[error(
        "{0:?} is no date such as 2027-12-24, range such as 2027-12-20..2028-01-02, or day such as sat"
    )]
    Form(String),
    /// The range ends before it begins.
    #[error("{0:?} ends before it begins")]
    Backwards(String),
}

impl FromStr for Exclusion {
    type Err = BadExclusion;

    fn from_str(text: &str) -> Result<Self, BadExclusion> {
        let bad = || BadExclusion::Form(text.to_owned());
        if let Some(day) = weekday(text) {
            return Ok(Self::Weekday(day));
        }
        let (first, last) = text.split_once("..").unwrap_or((text, text));
        let first = date(first).ok_or_else(bad)?;
        let last = date(last).ok_or_else(bad)?;
        if last < first {
            return Err(BadExclusion::Backwards(text.to_owned()));
        }
        Ok(Self::Dates { first, last })
    }
}

impl fmt::Display for Exclusion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dates { first, last } if first == last => write!(f, "{first}"),
            Self::Dates { first, last } => write!(f, "{first}..{last}"),
            Self::Weekday(day) => f.write_str(match day {
                Weekday::Sunday => "sun",
                Weekday::Monday => "mon",
                Weekday::Tuesday => "tue",
                Weekday::Wednesday => "wed",
                Weekday::Thursday => "thu",
                Weekday::Friday => "fri",
                Weekday::Saturday => "sat",
            }),
        }
    }
}

/// Exactly `YYYY-MM-DD`; jiff alone would take other forms as well.
fn date(text: &str) -> Option<Date> {
    let is_plain = text.len() == 10
        && text.bytes().enumerate().all(|(at, byte)| match at {
            4 | 7 => byte == b'-',
            _ => byte.is_ascii_digit(),
        });
    text.parse().ok().filter(|_| is_plain)
}

/// All exclusions of a schedule, fit to be searched: ranges in order, apart from each other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Excluded {
    ranges: Vec<(Date, Date)>,
    weekdays: Vec<Weekday>,
}

impl Excluded {
    pub(super) fn new(exclusions: &[Exclusion]) -> Self {
        let mut given = Vec::new();
        let mut weekdays = Vec::new();
        for exclusion in exclusions {
            match *exclusion {
                Exclusion::Dates { first, last } => given.push((first, last)),
                Exclusion::Weekday(day) => weekdays.push(day),
            }
        }
        given.sort_unstable();
        let mut ranges: Vec<(Date, Date)> = Vec::new();
        for (first, last) in given {
            match ranges.last_mut() {
                Some((_, end)) if first <= *end => *end = last.max(*end),
                _ => ranges.push((first, last)),
            }
        }
        Self { ranges, weekdays }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ranges.is_empty() && self.weekdays.is_empty()
    }

    pub(super) fn holds(&self, day: Date) -> bool {
        self.weekdays.contains(&day.weekday()) || self.range_with(day).is_some()
    }

    /// The last day of the range of dates that holds `day`.
    pub(super) fn range_with(&self, day: Date) -> Option<Date> {
        let after = self.ranges.partition_point(|&(first, _)| first <= day);
        let (_, last) = *self.ranges.get(after.checked_sub(1)?)?;
        (day <= last).then_some(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::civil::date;
    use proptest::prelude::*;

    #[test]
    fn days_are_read_and_written_back() {
        for text in [
            "2027-12-24",
            "2027-12-20..2028-01-02",
            "2028-02-29",
            "sat",
            "0001-01-01..9999-12-31",
        ] {
            assert_eq!(text.parse::<Exclusion>().unwrap().to_string(), text);
        }
        assert_eq!("SUN".parse(), Ok(Exclusion::Weekday(Weekday::Sunday)));
        assert_eq!(
            "2027-12-24..2027-12-24".parse::<Exclusion>(),
            "2027-12-24".parse()
        );
    }

    #[test]
    fn other_text_is_refused() {
        for text in [
            "",
            "saturday",
            "12-24",
            "20271224",
            "2027-2-3",
            "2027-02-29",
            "2027-12-24T00:00",
            "2027-12-20...2028-01-02",
            "2027-12-20..",
            "..2028-01-02",
            "2027-12-20 .. 2028-01-02",
            "-02027-1-1",
            "2027-12-24é",
        ] {
            assert!(
                matches!(text.parse::<Exclusion>(), Err(BadExclusion::Form(_))),
                "{text}"
            );
        }
        assert_eq!(
            "2028-01-02..2027-12-20"
                .parse::<Exclusion>()
                .unwrap_err()
                .to_string(),
            "\"2028-01-02..2027-12-20\" ends before it begins"
        );
    }

    proptest! {
        #[test]
        fn a_day_is_excluded_when_one_of_them_says_so(
            ranges in prop::collection::vec((1_i8..28, 0_i8..9), 0..6),
            weekday in prop::option::of(1_i8..=7),
        ) {
            let mut exclusions: Vec<_> = ranges.iter().map(|&(first, more)| Exclusion::Dates {
                first: date(2027, 3, first),
                last: date(2027, 3, (first + more).min(31)),
            }).collect();
            exclusions.extend(weekday.map(|day| Exclusion::Weekday(Weekday::from_monday_one_offset(day).unwrap())));
            let excluded = Excluded::new(&exclusions);
            for day in date(2027, 2, 20).series(jiff::Span::new().days(1)).take(60) {
                let naive = exclusions.iter().any(|exclusion| match exclusion {
                    Exclusion::Dates { first, last } => (*first..=*last).contains(&day),
                    Exclusion::Weekday(weekday) => *weekday == day.weekday(),
                });
                prop_assert_eq!(excluded.holds(day), naive, "{}", day);
                if let Some(last) = excluded.range_with(day) {
                    prop_assert!(excluded.range_with(last) == Some(last));
                }
            }
        }

        #[test]
        fn no_text_makes_it_panic(text in r"\PC{0,30}", dates in r"[0-9.-]{0,30}") {
            let _ = text.parse::<Exclusion>();
            let _ = dates.parse::<Exclusion>();
        }
    }
}
