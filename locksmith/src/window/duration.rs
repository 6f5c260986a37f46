//! Go's `time.ParseDuration` and `Duration.String`, in which the original reads and writes spans of
//! time: `1h30m`, `2h45m12.1s`. Its limits and messages are Go's too.

use std::fmt;

use jiff::SignedDuration;

/// Nanoseconds of every unit that Go knows. The last two ways to write `µs` differ in their first
/// letter: the micro sign and the Greek mu.
const UNITS: [(&str, u64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("\u{b5}s", 1_000),
    ("\u{3bc}s", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// Go's durations are below this in both directions; only the negative end reaches it.
const LIMIT: u64 = 1 << 63;

/// Text that is no duration, in Go's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadDuration {
    /// No number where one belongs, or too many nanoseconds for 63 bits.
    #[error("time: invalid duration {}", Quoted(.0))]
    Invalid(String),
    /// A number without a unit.
    #[error("time: missing unit in duration {}", Quoted(.0))]
    MissingUnit(String),
    /// A number with another unit.
    #[error("time: unknown unit {} in duration {}", Quoted(unit), Quoted(text))]
    UnknownUnit {
        /// What stands after the number.
        unit: String,
        /// All of the text.
        text: String,
    },
}

/// Reads a sign, which may be left out, and then numbers with units, or `0`.
///
/// # Errors
///
/// Exactly where Go has them.
pub fn parse(text: &str) -> Result<SignedDuration, BadDuration> {
    let invalid = || BadDuration::Invalid(text.to_owned());
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Ok(SignedDuration::ZERO);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total = 0_u64;
    while !rest.is_empty() {
        let number = Number::take(&mut rest).ok_or_else(invalid)?;
        let end = rest
            .find(|letter: char| letter == '.' || letter.is_ascii_digit())
            .unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        rest = after;
        if name.is_empty() {
            return Err(BadDuration::MissingUnit(text.to_owned()));
        }
        let Some(&(_, unit)) = UNITS.iter().find(|(known, _)| *known == name) else {
            return Err(BadDuration::UnknownUnit {
                unit: name.to_owned(),
                text: text.to_owned(),
            });
        };
        total = number
            .times(unit)
            .and_then(|nanoseconds| total.checked_add(nanoseconds))
            .filter(|&sum| sum <= LIMIT)
            .ok_or_else(invalid)?;
    }
    let signed = if negative {
        0_i64.checked_sub_unsigned(total)
    } else {
        0_i64.checked_add_unsigned(total)
    };
    signed.map(SignedDuration::from_nanos).ok_or_else(invalid)
}

/// As Go prints it: hours, minutes and seconds, or one smaller unit for less than a second.
#[must_use]
pub fn print(duration: SignedDuration) -> String {
    let nanoseconds = duration.as_nanos().unsigned_abs();
    let sign = if duration.is_negative() { "-" } else { "" };
    let (unit, name) = match nanoseconds {
        0 => return "0s".to_owned(),
        1..1_000 => (1, "ns"),
        1_000..1_000_000 => (1_000, "\u{b5}s"),
        1_000_000..1_000_000_000 => (1_000_000, "ms"),
        _ => {
            let minutes = nanoseconds / 60_000_000_000;
            let seconds = decimal(nanoseconds % 60_000_000_000, 1_000_000_000);
            return match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{sign}{seconds}s"),
                (0, minutes) => format!("{sign}{minutes}m{seconds}s"),
                (hours, minutes) => format!("{sign}{hours}h{minutes}m{seconds}s"),
            };
        }
    };
    format!("{sign}{}{name}", decimal(nanoseconds, unit))
}

/// `value / unit` without zeros at the end; `unit` is a power of ten.
fn decimal(value: u128, unit: u128) -> String {
    let width = unit.ilog10().try_into().unwrap_or(0);
    let text = format!("{}.{:0width$}", value / unit, value % unit);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A decimal number as Go keeps it until it knows the unit.
struct Number {
    whole: u64,
    /// Digits after the point, as many as fit.
    fraction: u64,
    /// Ten to the number of those digits.
    scale: f64,
}

impl Number {
    /// Takes a number off the front of `text`; `None` when there is none or it is too large.
    fn take(text: &mut &str) -> Option<Self> {
        let whole_digits = take_digits(text);
        let mut whole = 0_u64;
        for digit in digits(whole_digits) {
            // Go refuses before it multiplies, a little earlier than the sum would overflow.
            if whole > LIMIT / 10 {
                return None;
            }
            whole = whole * 10 + digit;
            if whole > LIMIT {
                return None;
            }
        }
        let mut number = Self {
            whole,
            fraction: 0,
            scale: 1.0,
        };
        let mut fraction_digits = "";
        if let Some(rest) = text.strip_prefix('.') {
            *text = rest;
            fraction_digits = take_digits(text);
            for digit in digits(fraction_digits) {
                // What is finer than this is dropped.
                if number.fraction > (LIMIT - 1) / 10 || number.fraction * 10 + digit > LIMIT {
                    break;
                }
                number.fraction = number.fraction * 10 + digit;
                number.scale *= 10.0;
            }
        }
        (!whole_digits.is_empty() || !fraction_digits.is_empty()).then_some(number)
    }

    /// In nanoseconds; `None` when there are too many.
    fn times(&self, unit: u64) -> Option<u64> {
        let whole = self.whole.checked_mul(unit).filter(|&sum| sum <= LIMIT)?;
        whole
            .checked_add(fraction_of(self.fraction, unit, self.scale))
            .filter(|&sum| sum <= LIMIT)
    }
}

/// `fraction * unit / scale`, rounded as Go does: in this order, in 64-bit floating point.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the quotient is not negative and at most an hour of nanoseconds; Go truncates as well"
)]
fn fraction_of(fraction: u64, unit: u64, scale: f64) -> u64 {
    (fraction as f64 * (unit as f64 / scale)) as u64
}

fn take_digits<'a>(text: &mut &'a str) -> &'a str {
    let end = text
        .find(|letter: char| !letter.is_ascii_digit())
        .unwrap_or(text.len());
    let (taken, rest) = text.split_at(end);
    *text = rest;
    taken
}

fn digits(text: &str) -> impl Iterator<Item = u64> {
    text.bytes().map(|digit| u64::from(digit - b'0'))
}

/// As Go's package `time` quotes text in errors: ASCII as it is, other bytes as `\xNN`.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"")?;
        for byte in self.0.bytes() {
            match byte {
                b'"' | b'\\' => write!(f, "\\{}", char::from(byte))?,
                b' '..=0x7f => write!(f, "{}", char::from(byte))?,
                _ => write!(f, "\\x{byte:02x}")?,
            }
        }
        f.write_str("\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: i64 = 1_000_000_000;
    const MINUTE: i64 = 60 * SECOND;
    const HOUR: i64 = 60 * MINUTE;

    #[test]
    fn text_is_read_as_go_reads_it() {
        for (text, nanoseconds) in [
            ("0", 0),
            ("+0", 0),
            ("-0", 0),
            ("0s", 0),
            ("5s", 5 * SECOND),
            ("30s", 30 * SECOND),
            ("1478s", 1478 * SECOND),
            ("-5s", -5 * SECOND),
            ("+5s", 5 * SECOND),
            ("5.0s", 5 * SECOND),
            ("5.6s", 5_600_000_000),
            ("5.s", 5 * SECOND),
            (".5s", SECOND / 2),
            ("1.004s", 1_004_000_000),
            ("1.0040s", 1_004_000_000),
            ("100.00100s", 100_001_000_000),
            ("10ns", 10),
            ("11us", 11_000),
            ("12µs", 12_000),
            ("12μs", 12_000),
            ("13ms", 13_000_000),
            ("15m", 15 * MINUTE),
            ("3h30m", 3 * HOUR + 30 * MINUTE),
            ("10.5s4m", 4 * MINUTE + 10_500_000_000),
            ("-2m3.4s", -(2 * MINUTE + 3_400_000_000)),
            (
                "1h2m3s4ms5us6ns",
                HOUR + 2 * MINUTE + 3 * SECOND + 4_005_006,
            ),
            ("39h9m14.425s", 39 * HOUR + 9 * MINUTE + 14_425_000_000),
            ("52763797000ns", 52_763_797_000),
            ("0.3333333333333333333h", 20 * MINUTE),
            ("9007199254740993ns", 9_007_199_254_740_993),
            ("9223372036854775807ns", i64::MAX),
            ("9223372036854775.807us", i64::MAX),
            ("9223372036s854ms775us807ns", i64::MAX),
            ("-9223372036854775808ns", i64::MIN),
            ("-9223372036854775.808us", i64::MIN),
            ("-9223372036s854ms775us808ns", i64::MIN),
            ("0.100000000000000000000h", 6 * MINUTE),
            ("0.830103483285477580700h", 49 * MINUTE + 48_372_539_827),
            ("23h59m59s", 24 * HOUR - SECOND),
            ("1.5h", 90 * MINUTE),
        ] {
            assert_eq!(
                parse(text),
                Ok(SignedDuration::from_nanos(nanoseconds)),
                "{text}"
            );
        }
    }

    #[test]
    fn other_text_is_refused_in_gos_words() {
        for (text, error) in [
            ("", r#"time: invalid duration """#),
            ("-", r#"time: invalid duration "-""#),
            ("s", r#"time: invalid duration "s""#),
            (".", r#"time: invalid duration ".""#),
            ("-.", r#"time: invalid duration "-.""#),
            (".s", r#"time: invalid duration ".s""#),
            ("+.s", r#"time: invalid duration "+.s""#),
            ("--1s", r#"time: invalid duration "--1s""#),
            ("3", r#"time: missing unit in duration "3""#),
            ("1h30", r#"time: missing unit in duration "1h30""#),
            ("00", r#"time: missing unit in duration "00""#),
            ("1j", r#"time: unknown unit "j" in duration "1j""#),
            ("1d", r#"time: unknown unit "d" in duration "1d""#),
            ("1 h", r#"time: unknown unit " h" in duration "1 h""#),
            ("1h 30m", r#"time: unknown unit "h " in duration "1h 30m""#),
            ("1H", r#"time: unknown unit "H" in duration "1H""#),
            (
                "1\u{85}\u{85}",
                r#"time: unknown unit "\xc2\x85\xc2\x85" in duration "1\xc2\x85\xc2\x85""#,
            ),
            (r#"1"\"#, r#"time: unknown unit "\"\\" in duration "1\"\\""#),
            (
                "9223372036854775810ns",
                r#"time: invalid duration "9223372036854775810ns""#,
            ),
            (
                "9223372036854775808ns",
                r#"time: invalid duration "9223372036854775808ns""#,
            ),
            (
                "-9223372036854775809ns",
                r#"time: invalid duration "-9223372036854775809ns""#,
            ),
            (
                "9223372036854776us",
                r#"time: invalid duration "9223372036854776us""#,
            ),
            ("3000000h", r#"time: invalid duration "3000000h""#),
            (
                "9223372036854ms775us808ns",
                r#"time: invalid duration "9223372036854ms775us808ns""#,
            ),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), error, "{text}");
        }
    }

    #[test]
    fn durations_are_printed_as_go_prints_them() {
        for (nanoseconds, text) in [
            (0, "0s"),
            (1, "1ns"),
            (1_100, "1.1µs"),
            (2_200_000, "2.2ms"),
            (3_300_000_000, "3.3s"),
            (4 * MINUTE + 5 * SECOND, "4m5s"),
            (4 * MINUTE + 5_001_000_000, "4m5.001s"),
            (5 * HOUR + 6 * MINUTE + 7_001_000_000, "5h6m7.001s"),
            (8 * MINUTE + 1, "8m0.000000001s"),
            (HOUR, "1h0m0s"),
            (2 * HOUR + 45 * MINUTE + 12_100_000_000, "2h45m12.1s"),
            (-SECOND, "-1s"),
            (100, "100ns"),
            (100_000, "100µs"),
            (10 * SECOND, "10s"),
            (i64::MAX, "2562047h47m16.854775807s"),
            (i64::MIN, "-2562047h47m16.854775808s"),
        ] {
            assert_eq!(print(SignedDuration::from_nanos(nanoseconds)), text);
        }
        assert!(print(SignedDuration::MAX).ends_with("h30m7.999999999s"));
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_back(nanoseconds in any::<i64>(), shift in 0..63) {
            let duration = SignedDuration::from_nanos(nanoseconds >> shift);
            prop_assert_eq!(parse(&print(duration)), Ok(duration));
        }

        #[test]
        fn no_text_makes_it_panic(text in r"\PC{0,40}", number in "[-+]?[0-9.]{0,60}[nuµmsh0-9.]{0,6}") {
            let _ = parse(&text);
            let _ = parse(&number);
        }
    }
}
