//! One reboot window as the original reads it: `[DAY ]HH:MM` and a Go duration, every day or every
//! week. It knows dates, not zones.

use jiff::SignedDuration;
use jiff::civil::{Date, DateTime, Weekday};

use super::duration::{self, BadDuration};

/// A window that recurs daily or weekly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    start: Start,
    length: SignedDuration,
    start_text: String,
    length_text: String,
}

/// Local time at which a window begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Start {
    /// `None`: on every day.
    day: Option<Weekday>,
    /// 0 to 23.
    hour: i8,
    /// 0 to 59.
    minute: i8,
}

/// Text that is no window, in the original's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadWindow {
    /// The start.
    #[error("unable to parse start: {0}")]
    Start(BadStart),
    /// The length.
    #[error("unable to parse duration: {0}")]
    Length(BadDuration),
    /// The length is below zero.
    #[error("duration cannot be negative")]
    Negative,
    /// The length reaches the next start: a day, or a week when the start names a day.
    #[error("duration cannot exceed period")]
    TooLong,
}

/// Text that is no start of a window, in the original's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadStart {
    /// Neither one word nor two.
    #[error("wrong number of fields")]
    Fields,
    /// The first of two words is no day.
    #[error("invalid day of week {0:?}")]
    Day(String),
    /// The last word is no time.
    #[error("invalid time of day {0:?}: {1}")]
    Time(String, &'static str),
}

impl Window {
    /// Reads a start such as `14:00` or `Sat 02:30` and a length such as `1h30m`.
    ///
    /// # Errors
    ///
    /// Exactly where the original has them; a length of a whole period is too long.
    pub fn parse(start: &str, length: &str) -> Result<Self, BadWindow> {
        let parsed = Start::parse(start).map_err(BadWindow::Start)?;
        let span = duration::parse(length).map_err(BadWindow::Length)?;
        let period = SignedDuration::from_hours(if parsed.day.is_some() { 168 } else { 24 });
        if span.is_negative() {
            return Err(BadWindow::Negative);
        }
        if span >= period {
            return Err(BadWindow::TooLong);
        }
        Ok(Self {
            start: parsed,
            length: span,
            start_text: start.to_owned(),
            length_text: length.to_owned(),
        })
    }

    /// From the first instant to the last one: less than a day, or less than a week.
    #[must_use]
    pub fn length(&self) -> SignedDuration {
        self.length
    }

    /// The start as it was written.
    #[must_use]
    pub fn start_text(&self) -> &str {
        &self.start_text
    }

    /// The length as it was written.
    #[must_use]
    pub fn length_text(&self) -> &str {
        &self.length_text
    }

    /// The local time of its start on `date`, if it begins on that date at all.
    pub(super) fn start_on(&self, date: Date) -> Option<DateTime> {
        let Start { day, hour, minute } = self.start;
        day.is_none_or(|day| day == date.weekday())
            .then(|| date.at(hour, minute, 0, 0))
    }

    /// For how many days before a date occurrences can reach into it, with room for days of 23
    /// hours and for clocks that change at midnight.
    pub(super) fn reach_in_days(&self) -> i32 {
        if self.start.day.is_some() { 9 } else { 2 }
    }
}

impl Start {
    fn parse(text: &str) -> Result<Self, BadStart> {
        let words: Vec<&str> = text.split_whitespace().take(3).collect();
        let (day, time) = match words.as_slice() {
            [time] => (None, *time),
            [day, time] => (
                Some(weekday(day).ok_or_else(|| BadStart::Day((*day).to_owned()))?),
                *time,
            ),
            _ => return Err(BadStart::Fields),
        };
        let bad = |why| BadStart::Time(time.to_owned(), why);
        let mut rest = time;
        let hour = scan_number(&mut rest).map_err(bad)?;
        match rest.strip_prefix(':') {
            Some(after) => rest = after,
            None if rest.is_empty() => return Err(bad("unexpected EOF")),
            None => return Err(bad("input does not match format")),
        }
        let minute = scan_number(&mut rest).map_err(bad)?;
        let within =
            |number: i64, most: i8| i8::try_from(number).ok().filter(|n| (0..=most).contains(n));
        Ok(Self {
            day,
            hour: within(hour, 23).ok_or_else(|| bad("hour must be >= 0 and <= 23"))?,
            minute: within(minute, 59).ok_or_else(|| bad("minute must be >= 0 and <= 59"))?,
        })
    }
}

/// A day of the week by its first three letters, in any case.
pub(super) fn weekday(word: &str) -> Option<Weekday> {
    Some(match word.to_lowercase().as_str() {
        "sun" => Weekday::Sunday,
        "mon" => Weekday::Monday,
        "tue" => Weekday::Tuesday,
        "wed" => Weekday::Wednesday,
        "thu" => Weekday::Thursday,
        "fri" => Weekday::Friday,
        "sat" => Weekday::Saturday,
        _ => return None,
    })
}

/// Takes a whole number off the front, as Go's `Sscanf` does for `%d`. What follows it is the
/// caller's to judge, so `9:00pm` is nine in the morning, as for the original.
fn scan_number(rest: &mut &str) -> Result<i64, &'static str> {
    if rest.is_empty() {
        return Err("EOF");
    }
    let sign = usize::from(rest.starts_with(['+', '-']));
    let digits = rest[sign..]
        .find(|letter: char| !letter.is_ascii_digit())
        .unwrap_or(rest.len() - sign);
    if digits == 0 {
        return Err("expected integer");
    }
    let (number, after) = rest.split_at(sign + digits);
    *rest = after;
    number.parse().map_err(|_| "value out of range")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn windows_of_the_original_are_read() {
        for (start, length, day, hour, minute) in [
            ("14:00", "1h", None, 14, 0),
            ("4:5", "1h", None, 4, 5),
            ("04:05x", "1h", None, 4, 5),
            ("14:00:30", "1h", None, 14, 0),
            ("+9:00", "1h", None, 9, 0),
            ("014:008", "1h", None, 14, 8),
            ("  14:00  ", "1h", None, 14, 0),
            ("9:00am", "1h", None, 9, 0),
            ("9:00pm", "1h", None, 9, 0),
            ("14:0_0", "1h", None, 14, 0),
            ("mon\t09:00", "1h", Some(Weekday::Monday), 9, 0),
            (
                "\u{2003}sAt\u{a0}14:00\n",
                "1h",
                Some(Weekday::Saturday),
                14,
                0,
            ),
            ("MON 09:00", "0", Some(Weekday::Monday), 9, 0),
            ("14:00", "1.5h", None, 14, 0),
            ("14:00", "+1h", None, 14, 0),
            ("14:00", "1us", None, 14, 0),
            ("14:00", "23h59m59s", None, 14, 0),
            ("Sun 00:00", "167h59m", Some(Weekday::Sunday), 0, 0),
        ] {
            let window = Window::parse(start, length).unwrap_or_else(|e| panic!("{start:?}: {e}"));
            assert_eq!(window.start, Start { day, hour, minute }, "{start:?}");
        }
    }

    #[test]
    fn other_text_is_refused_in_the_originals_words() {
        for (start, length, error) in [
            (
                "25:00",
                "1h",
                r#"unable to parse start: invalid time of day "25:00": hour must be >= 0 and <= 23"#,
            ),
            (
                "24:00",
                "1h",
                r#"unable to parse start: invalid time of day "24:00": hour must be >= 0 and <= 23"#,
            ),
            (
                "-1:00",
                "1h",
                r#"unable to parse start: invalid time of day "-1:00": hour must be >= 0 and <= 23"#,
            ),
            (
                "23:61",
                "1h",
                r#"unable to parse start: invalid time of day "23:61": minute must be >= 0 and <= 59"#,
            ),
            (
                "00:60",
                "1h",
                r#"unable to parse start: invalid time of day "00:60": minute must be >= 0 and <= 59"#,
            ),
            (
                "14",
                "1h",
                r#"unable to parse start: invalid time of day "14": unexpected EOF"#,
            ),
            (
                "14:",
                "1h",
                r#"unable to parse start: invalid time of day "14:": EOF"#,
            ),
            (
                "14.00",
                "1h",
                r#"unable to parse start: invalid time of day "14.00": input does not match format"#,
            ),
            (
                "1_4:00",
                "1h",
                r#"unable to parse start: invalid time of day "1_4:00": input does not match format"#,
            ),
            (
                "0x9:00",
                "1h",
                r#"unable to parse start: invalid time of day "0x9:00": input does not match format"#,
            ),
            (
                "sat",
                "1h",
                r#"unable to parse start: invalid time of day "sat": expected integer"#,
            ),
            (
                "99999999999999999999:00",
                "1h",
                r#"unable to parse start: invalid time of day "99999999999999999999:00": value out of range"#,
            ),
            (
                "foo 14:00",
                "1h",
                r#"unable to parse start: invalid day of week "foo""#,
            ),
            (
                "Monday 09:00",
                "1h",
                r#"unable to parse start: invalid day of week "Monday""#,
            ),
            (
                "9: 00",
                "1h",
                r#"unable to parse start: invalid day of week "9:""#,
            ),
            (
                "9:00 Mon",
                "1h",
                r#"unable to parse start: invalid day of week "9:00""#,
            ),
            (
                "sat 14:00 1234",
                "1h",
                "unable to parse start: wrong number of fields",
            ),
            ("", "1h", "unable to parse start: wrong number of fields"),
            (" ", "1h", "unable to parse start: wrong number of fields"),
            (
                "sat 14:00",
                "1j",
                r#"unable to parse duration: time: unknown unit "j" in duration "1j""#,
            ),
            (
                "sat 14:00",
                "",
                r#"unable to parse duration: time: invalid duration """#,
            ),
            (
                "sat 14:00",
                "1",
                r#"unable to parse duration: time: missing unit in duration "1""#,
            ),
            (
                "sat 14:00",
                "1d",
                r#"unable to parse duration: time: unknown unit "d" in duration "1d""#,
            ),
            (
                "sat 14:00",
                "1h 30m",
                r#"unable to parse duration: time: unknown unit "h " in duration "1h 30m""#,
            ),
            ("sat 14:00", "-1h", "duration cannot be negative"),
            ("14:00", "-1s", "duration cannot be negative"),
            ("14:00", "24h", "duration cannot exceed period"),
            ("sat 14:00", "168h", "duration cannot exceed period"),
        ] {
            let found = Window::parse(start, length).unwrap_err().to_string();
            assert_eq!(found, error, "{start:?} {length:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(start in r"\PC{0,20}", time in "[+-]?[0-9_:]{0,30}", length in r"\PC{0,20}") {
            let _ = Window::parse(&start, &length);
            let _ = Window::parse(&time, "1h");
        }
    }
}
