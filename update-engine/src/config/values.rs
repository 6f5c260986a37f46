//! Values of keys from their text. An error is the reason in words; who reads the file adds key and
//! line.

use std::ops::RangeInclusive;
use std::time::Duration;

use gptprio::Guid;
use omaha_protocol::{Version, VersionError};

use super::PartitionPlace;

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
pub(super) const DAY: u64 = 24 * HOUR;

/// `None` for the empty text.
pub(super) fn optional<T>(
    parse: impl Fn(&str) -> Result<T, String>,
) -> impl Fn(&str) -> Result<Option<T>, String> {
    move |text| {
        if text.is_empty() {
            Ok(None)
        } else {
            parse(text).map(Some)
        }
    }
}

pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "yes" | "true" | "on" | "1" => Ok(true),
        "no" | "false" | "off" | "0" => Ok(false),
        _ => Err(format!("'{text}' is neither yes nor no")),
    }
}

pub(super) fn integer(text: &str, range: RangeInclusive<u8>) -> Result<u8, String> {
    let value = text
        .parse()
        .map_err(|_| format!("'{text}' is not a whole number"))?;
    if range.contains(&value) {
        Ok(value)
    } else {
        Err(format!(
            "{value} is not between {} and {}",
            range.start(),
            range.end()
        ))
    }
}

/// Seconds, or a number with the unit `s`, `m`, `h` or `d`; `seconds` is what is allowed.
pub(super) fn duration(text: &str, seconds: RangeInclusive<u64>) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" | "s" => 1,
        "m" => MINUTE,
        "h" => HOUR,
        "d" => DAY,
        unit => return Err(format!("'{unit}' is no unit of time: use s, m, h or d")),
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| format!("'{text}' is not a duration such as 45s or 10m"))?;
    match number.checked_mul(unit) {
        Some(value) if seconds.contains(&value) => Ok(Duration::from_secs(value)),
        _ => Err(format!(
            "{text} is not between {}s and {}s",
            seconds.start(),
            seconds.end()
        )),
    }
}

/// An absolute path without `..`.
pub(super) fn path(text: &str) -> Result<String, String> {
    if text.starts_with('/') && !text.split('/').any(|name| name == "..") {
        Ok(text.to_owned())
    } else {
        Err(format!("'{text}' is not an absolute path without '..'"))
    }
}

/// At least one path. An empty list would be no trust at all, which nobody can mean.
pub(super) fn paths(text: &str) -> Result<Vec<String>, String> {
    let paths: Vec<_> = text
        .split_whitespace()
        .map(path)
        .collect::<Result<_, _>>()?;
    if paths.is_empty() {
        Err("no path is given".to_owned())
    } else {
        Ok(paths)
    }
}

/// Pairs of a name and a path that is another one for each slot.
pub(super) fn partitions(text: &str) -> Result<Vec<PartitionPlace>, String> {
    let mut places: Vec<PartitionPlace> = Vec::new();
    for pair in text.split_whitespace() {
        let (name, path) = pair
            .split_once('=')
            .filter(|(name, _)| !name.is_empty())
            .ok_or_else(|| format!("'{pair}' is no name, equals sign and path"))?;
        let path = self::path(path)?;
        if !path.contains(PartitionPlace::SLOT) {
            let slot = PartitionPlace::SLOT;
            return Err(format!(
                "'{path}' has no {slot}: the running system's partition would be overwritten"
            ));
        }
        if places.iter().any(|place| place.name == name) {
            return Err(format!("'{name}' has two places"));
        }
        places.push(PartitionPlace {
            name: name.to_owned(),
            path,
        });
    }
    Ok(places)
}

pub(super) fn version(text: &str) -> Result<Version, String> {
    text.parse()
        .map_err(|error: VersionError| error.to_string())
}

/// Numbers separated by dots.
pub(super) fn version_prefix(text: &str) -> Result<String, String> {
    let is_number =
        |part: &str| part.bytes().all(|byte| byte.is_ascii_digit()) && part.parse::<u64>().is_ok();
    if text.split('.').all(is_number) {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "'{text}' is not the beginning of a version such as 4230.2"
        ))
    }
}

pub(super) fn guid(text: &str) -> Result<Guid, String> {
    text.parse().map_err(|_| format!("'{text}' is not a GUID"))
}

/// A proxy address. The reason does not repeat it, for it may hold a password.
pub(super) fn proxy(text: &str) -> Result<String, String> {
    let host = text
        .strip_prefix("http://")
        .or_else(|| text.strip_prefix("https://"))
        .unwrap_or("");
    if host.is_empty()
        || text.contains(|letter: char| letter.is_whitespace() || letter.is_control())
    {
        Err("not a URL such as http://proxy.example:3128".to_owned())
    } else {
        Ok(text.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_for_a_partition_is_another_one_for_each_slot() {
        assert_eq!(partitions(" ").unwrap(), []);
        for (text, reason) in [
            ("oem", "'oem' is no name, equals sign and path"),
            ("=/x{slot}", "is no name"),
            ("oem=x{slot}", "is not an absolute path"),
            (
                "oem=/dev/sda6",
                "'/dev/sda6' has no {slot}: the running system's",
            ),
            ("a=/a{slot} a=/b{slot}", "'a' has two places"),
        ] {
            let error = partitions(text).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }

    /// What a parser makes of a text, as words to compare: the value's debug form or "refused".
    fn read<T: std::fmt::Debug>(parsed: Result<T, String>) -> String {
        parsed.map_or_else(|_| "refused".to_owned(), |value| format!("{value:?}"))
    }

    #[test]
    fn values_are_read_or_refused_never_guessed() {
        let table = [
            (read(boolean("yes")), "true"),
            (read(boolean("FALSE")), "false"),
            (read(boolean("")), "refused"),
            (read(boolean("yes ")), "refused"),
            (read(integer("1", 1..=15)), "1"),
            (read(integer("0", 1..=15)), "refused"),
            (read(integer("16", 1..=15)), "refused"),
            (read(integer("-1", 0..=15)), "refused"),
            (read(integer("300", 0..=255)), "refused"),
            (read(duration("45", 0..=DAY)), "45s"),
            (read(duration("45s", 0..=DAY)), "45s"),
            (read(duration("2h", 0..=DAY)), "7200s"),
            (read(duration("1d", 0..=DAY)), "86400s"),
            (read(duration("2d", 0..=DAY)), "refused"),
            (read(duration("1w", 0..=DAY)), "refused"),
            (read(duration("s", 0..=DAY)), "refused"),
            (read(duration("1.5h", 0..=DAY)), "refused"),
            (read(duration("-1", 0..=DAY)), "refused"),
            (read(duration("18446744073709551615d", 0..=DAY)), "refused"),
            (read(path("/etc/ca.pem")), "\"/etc/ca.pem\""),
            (read(path("/etc/../ca.pem")), "refused"),
            (read(path("ca.pem")), "refused"),
            (read(paths(" /a  /b ")), "[\"/a\", \"/b\"]"),
            (read(paths("/a b")), "refused"),
            (read(paths(" ")), "refused"),
            (
                read(version("4230.2.1").map(|version| version.as_str().to_owned())),
                "\"4230.2.1\"",
            ),
            (read(version("v1")), "refused"),
            (read(version("1..2")), "refused"),
            (read(version("+1")), "refused"),
            (read(version_prefix("4230.2")), "\"4230.2\""),
            (read(version_prefix("4230.")), "refused"),
            (read(version_prefix("4230-1")), "refused"),
            (read(version_prefix("99999999999999999999")), "refused"),
            (read(proxy("http://u:p@proxy:1")), "\"http://u:p@proxy:1\""),
            (read(proxy("proxy:1")), "refused"),
            (read(proxy("http://")), "refused"),
            (read(proxy("socks5://proxy")), "refused"),
            (read(guid("nonsense")), "refused"),
        ];
        for (number, (found, expected)) in table.iter().enumerate() {
            assert_eq!(found, expected, "row {number}");
        }
    }

    #[test]
    fn a_refused_proxy_is_not_repeated_in_the_reason() {
        assert!(
            !proxy("ftp://user:secret@proxy")
                .unwrap_err()
                .contains("secret")
        );
    }
}
