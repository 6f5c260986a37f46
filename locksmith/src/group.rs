//! A group of machines that share one semaphore, and where its keys live.

use std::fmt;
use std::str::FromStr;

/// Keys of the default group start with this.
const ROOT: &str = "coreos.com/updateengine/rebootlock/";

/// Name of a group; the empty one is the default group.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupName(String);

/// A name that the original's path cleaning turns into another group.
#[derive(Debug, thiserror::Error)]
#[error("invalid group {0:?}: \".\" and \"..\" would stand for the default group's keys")]
pub struct BadGroup(String);

impl GroupName {
    /// The text as it was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Prefix of all keys of the group, without a slash in front and with one
    /// at the end: `coreos.com/updateengine/rebootlock/` or
    /// `coreos.com/updateengine/rebootlock/groups/<escaped name>/`.
    #[must_use]
    pub fn prefix(&self) -> String {
        if self.0.is_empty() {
            ROOT.to_owned()
        } else {
            format!("{ROOT}groups/{}/", escape(&self.0))
        }
    }
}

impl FromStr for GroupName {
    type Err = BadGroup;

    fn from_str(text: &str) -> Result<Self, BadGroup> {
        match text {
            "." | ".." => Err(BadGroup(text.to_owned())),
            _ => Ok(Self(text.to_owned())),
        }
    }
}

impl fmt::Display for GroupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Go's `url.QueryEscape`: letters, digits and `-_.~` stay, a space becomes `+`,
/// every other byte `%XX`.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                out.push(char::from(byte));
            }
            b' ' => out.push('+'),
            _ => {
                out.push('%');
                for digit in [byte >> 4, byte & 15] {
                    out.push(char::from(b"0123456789ABCDEF"[usize::from(digit)]));
                }
            }
        }
    }
    out
}

/// The reverse of [`escape`]; `None` for text that it cannot have made.
#[must_use]
pub fn unescape(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            plain => plain,
        });
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_where_the_original_has_them() {
        for (group, key) in [
            ("", "coreos.com/updateengine/rebootlock/"),
            (
                "default",
                "coreos.com/updateengine/rebootlock/groups/default/",
            ),
            (
                "prod/database",
                "coreos.com/updateengine/rebootlock/groups/prod%2Fdatabase/",
            ),
            (
                "a b+c/é",
                "coreos.com/updateengine/rebootlock/groups/a+b%2Bc%2F%C3%A9/",
            ),
        ] {
            assert_eq!(group.parse::<GroupName>().unwrap().prefix(), key);
        }
        for bad in [".", ".."] {
            assert!(bad.parse::<GroupName>().is_err());
        }
    }

    #[test]
    fn escaping_is_undone() {
        for text in ["", "plain", "a b+c/é", "%", "50%2F", "\u{0}\n"] {
            assert_eq!(unescape(&escape(text)).as_deref(), Some(text));
        }
        for bad in ["%", "%4", "%zz", "%ff"] {
            assert_eq!(unescape(bad), None, "{bad}");
        }
    }
}
