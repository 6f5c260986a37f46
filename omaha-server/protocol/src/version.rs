//! Order of operating system versions.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// A dotted version with an optional build suffix, e.g. `4152.2.0` or
/// `4152.0.0+nightly-20241101-2100`.
///
/// Parts are numbers and missing parts are zero, so `4152.10.0` follows
/// `4152.2.0` and `4152.2` equals `4152.2.0`. The suffix names a build: it counts
/// for equality but not for precedence, which is why this type has no `Ord`.
#[derive(Debug, Clone)]
pub struct Version {
    text: String,
    parts: Vec<u64>,
    build_at: usize,
}

/// Why a text is no [`Version`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("version `{text}` is not of the form 1.2.3 or 1.2.3+build")]
pub struct VersionError {
    text: String,
}

impl Version {
    /// Which of two versions is newer; builds of one version are of equal rank.
    pub fn precedence(&self, other: &Self) -> Ordering {
        let longer = self.parts.len().max(other.parts.len());
        (0..longer)
            .map(|index| self.part(index).cmp(&other.part(index)))
            .find(|order| order.is_ne())
            .unwrap_or(Ordering::Equal)
    }

    /// Whether `self` comes after `other` in precedence.
    pub fn is_newer_than(&self, other: &Self) -> bool {
        self.precedence(other).is_gt()
    }

    /// What follows the `+`, empty without one.
    pub fn build(&self) -> &str {
        self.text.get(self.build_at..).unwrap_or_default()
    }

    /// As written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether this version lies under an Omaha `targetversionprefix`: part by
    /// part, so that `1.2` takes `1.2.3` but not `1.25`; a closing `$` asks for
    /// exactly these parts; the empty prefix takes all. A text that is no prefix
    /// takes nothing.
    pub fn matches_prefix(&self, prefix: &str) -> bool {
        let (prefix, exact) = match prefix.strip_suffix('$') {
            Some(prefix) => (prefix, true),
            None => (prefix, false),
        };
        if prefix.is_empty() {
            return !exact;
        }
        let prefix = prefix.strip_suffix('.').unwrap_or(prefix);
        let Some(wanted) = numbers(prefix) else {
            return false;
        };
        if exact {
            let longer = wanted.len().max(self.parts.len());
            (0..longer).all(|i| self.part(i) == wanted.get(i).copied().unwrap_or(0))
        } else {
            wanted
                .iter()
                .enumerate()
                .all(|(i, part)| self.part(i) == *part)
        }
    }

    fn part(&self, index: usize) -> u64 {
        self.parts.get(index).copied().unwrap_or(0)
    }
}

impl FromStr for Version {
    type Err = VersionError;

    fn from_str(text: &str) -> Result<Self, VersionError> {
        let (dotted, build_at) = match text.find('+') {
            Some(plus) => (&text[..plus], plus + 1),
            None => (text, text.len()),
        };
        match numbers(dotted) {
            Some(parts) => Ok(Self {
                text: text.to_owned(),
                parts,
                build_at,
            }),
            None => Err(VersionError {
                text: text.chars().take(64).collect(),
            }),
        }
    }
}

impl PartialEq for Version {
    fn eq(&self, other: &Self) -> bool {
        self.precedence(other).is_eq() && self.build() == other.build()
    }
}

impl Eq for Version {}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn numbers(dotted: &str) -> Option<Vec<u64>> {
    dotted
        .split('.')
        .map(|part| {
            let digits_only = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
            digits_only.then(|| part.parse().ok()).flatten()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> Version {
        text.parse().unwrap()
    }

    #[test]
    fn parts_order_as_numbers_and_missing_parts_are_zero() {
        for (newer, older) in [
            ("4152.10.0", "4152.2.0"),
            ("10", "9.9.9"),
            ("1.0.0.1", "1.0"),
            ("18446744073709551615", "18446744073709551614.9"),
            ("4153.0.0+a", "4152.0.0+z"),
        ] {
            assert!(
                version(newer).is_newer_than(&version(older)),
                "{newer} > {older}"
            );
            assert!(
                !version(older).is_newer_than(&version(newer)),
                "{older} < {newer}"
            );
        }
        assert_eq!(version("4152.2"), version("4152.2.0"));
    }

    #[test]
    fn build_counts_for_equality_but_not_for_order() {
        let (monday, tuesday) = (version("1.2.3+monday"), version("1.2.3+tuesday"));
        assert_eq!(monday.precedence(&tuesday), Ordering::Equal);
        assert_ne!(monday, tuesday);
        assert_ne!(monday, version("1.2.3"));
        assert_eq!(monday.build(), "monday");
        assert_eq!(monday.to_string(), "1.2.3+monday");
    }

    #[test]
    fn what_is_no_version_is_refused() {
        for text in [
            "",
            "1.",
            ".1",
            "1..2",
            "v1.2",
            "1.2-rc1",
            "1.-2",
            "1. 2",
            "+x",
            "18446744073709551616",
            "１",
        ] {
            assert!(text.parse::<Version>().is_err(), "{text}");
        }
    }

    #[test]
    fn target_version_prefix_compares_part_by_part() {
        for (text, prefix, expected) in [
            ("1.2.3", "", true),
            ("1.2.3", "1.2", true),
            ("1.2.3", "1.2.", true),
            ("1.2.3", "1.2.3", true),
            ("1.2.34", "1.2.3", false),
            ("1.2.3", "1.2.3.0", true),
            ("1.2.3", "1.2.3.1", false),
            ("1.2.3", "1.2$", false),
            ("1.2.0", "1.2$", true),
            ("1.2.3+b", "1.2.3$", true),
            ("1.2.3", "$", false),
            ("1.2.3", "stable", false),
        ] {
            assert_eq!(
                version(text).matches_prefix(prefix),
                expected,
                "{text} under {prefix}"
            );
        }
    }
}
