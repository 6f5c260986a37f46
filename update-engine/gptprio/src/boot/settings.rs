//! `gptprio.conf`: what an operator tells a boot selector.
//!
//! ```text
//! # Comment, on a line of its own.
//! command-line = root=LABEL=ROOT usr=PARTUUID={usr} console=ttyS0
//! slot-type = 5dfbf5f4-2848-4bac-aa5e-0d9a20b745a6
//! disk = /dev/nvme0n1
//! wait = 30
//! ```
//!
//! A machine has to boot whatever the file holds: a line that makes no sense is
//! reported and its default is used.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::str;
use core::time::Duration;

use super::CommandLine;
use crate::{Guid, USR_TYPE};

/// Longest `gptprio.conf` that is read, in bytes.
pub const MAX_SETTINGS: usize = 64 << 10;

/// All keys, as in `docs/boot.md`.
const KEYS: [&str; 4] = ["command-line", "slot-type", "disk", "wait"];

/// Longest wait for a disk.
const MAX_WAIT: u64 = 3600;

/// What the file says, and the default of what it does not say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `command-line`: for the kernel. `None`: the selector's own choice.
    pub command_line: Option<CommandLine>,
    /// `slot-type`: type of the partitions that are slots. By default [`USR_TYPE`].
    pub slot_type: Guid,
    /// `disk`: the one that holds the slots, such as `/dev/sda`. `None`: the first that
    /// has any. A selector that was loaded by firmware takes the disk that it lies on.
    pub disk: Option<String>,
    /// `wait`: how long to wait for a disk with slots. By default half a minute.
    pub wait: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            command_line: None,
            slot_type: USR_TYPE,
            disk: None,
            wait: Duration::from_secs(30),
        }
    }
}

/// A line that was not followed. `Display`: `gptprio.conf line 3: …`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Counted from 1.
    line: usize,
    message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gptprio.conf line {}: {}", self.line, self.message)
    }
}

impl Settings {
    /// Reads the content of the file. Of a key that is given twice the last one counts.
    pub fn parse(content: &[u8]) -> (Self, Vec<Problem>) {
        let mut settings = Self::default();
        let mut problems = Vec::new();
        // An editor of another system may have begun the file with its mark.
        let content = content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(content);
        if content.len() > MAX_SETTINGS {
            let message = format!("more than {MAX_SETTINGS} bytes; the file is ignored");
            problems.push(Problem { line: 1, message });
            return (settings, problems);
        }
        for (line, bytes) in (1..).zip(content.split(|&byte| byte == b'\n')) {
            let followed = match str::from_utf8(bytes) {
                Ok(text) => settings.follow(text.trim()),
                Err(_) => Err("no UTF-8 text; the line is ignored".to_owned()),
            };
            if let Err(message) = followed {
                problems.push(Problem { line, message });
            }
        }
        (settings, problems)
    }

    fn follow(&mut self, line: &str) -> Result<(), String> {
        if line.is_empty() || line.starts_with('#') {
            return Ok(());
        }
        let Some((key, value)) = line.split_once('=') else {
            return Err(format!("{line:?} is no 'key = value'; the line is ignored"));
        };
        let (key, value) = (key.trim(), value.trim());
        let bad = |expected: &str| {
            Err(format!(
                "{key} is {value:?}, but should be {expected}; the line is ignored"
            ))
        };
        match key {
            "command-line" => match CommandLine::new(value) {
                Ok(command_line) => self.command_line = Some(command_line),
                Err(reason) => return Err(format!("command-line {reason}; the line is ignored")),
            },
            "slot-type" => match value.parse() {
                Ok(guid) => self.slot_type = guid,
                Err(_) => return bad("a GUID such as 5dfbf5f4-2848-4bac-aa5e-0d9a20b745a6"),
            },
            "disk" => match value.strip_prefix("/dev/") {
                Some(name) if !name.is_empty() => self.disk = Some(value.to_owned()),
                _ => return bad("a device such as /dev/sda"),
            },
            "wait" => match value.parse() {
                Ok(seconds @ 0..=MAX_WAIT) => self.wait = Duration::from_secs(seconds),
                _ => return bad("a number of seconds from 0 to 3600"),
            },
            _ => {
                return Err(format!(
                    "{key:?} is none of {}; the line is ignored",
                    KEYS.join(", ")
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use alloc::vec;

    fn problems(content: &[u8]) -> (Settings, Vec<String>) {
        let (settings, problems) = Settings::parse(content);
        (settings, problems.iter().map(Problem::to_string).collect())
    }

    #[test]
    fn every_key_is_followed() {
        let (settings, problems) = problems(
            b"\xef\xbb\xbf# slots\r\n\r\ncommand-line = quiet root=/dev/sda9 # not a comment\r\n\
              slot-type={0FC63DAF-8483-4772-8E79-3D69D8477DE4}\r\n disk = /dev/sdb\r\nwait=0",
        );
        assert!(problems.is_empty(), "{problems:?}");
        assert_eq!(
            settings,
            Settings {
                command_line: Some(
                    CommandLine::new("quiet root=/dev/sda9 # not a comment").unwrap()
                ),
                slot_type: "0fc63daf-8483-4772-8e79-3d69d8477de4".parse().unwrap(),
                disk: Some("/dev/sdb".to_owned()),
                wait: Duration::ZERO,
            }
        );
    }

    #[test]
    fn a_bad_line_is_named_and_leaves_its_default_and_the_others() {
        for (line, expected) in [
            ("wait = soon", "wait is \"soon\", but should be a number"),
            ("wait = 3601", "wait is \"3601\", but should be a number"),
            ("wait = -1", "wait is \"-1\", but should be a number"),
            (
                "slot-type = usr",
                "slot-type is \"usr\", but should be a GUID",
            ),
            ("disk = sda", "disk is \"sda\", but should be a device"),
            ("disk = /dev/", "disk is \"/dev/\", but should be a device"),
            ("commandline = x", "\"commandline\" is none of command-line"),
            ("quiet", "\"quiet\" is no 'key = value'"),
            (
                "command-line = a\u{1}b",
                "command-line has a control character",
            ),
        ] {
            let text = format!("# first\n{line}\nwait = 7\ndisk = /dev/vda\n");
            let (settings, problems) = problems(text.as_bytes());
            assert_eq!(problems.len(), 1, "{line}: {problems:?}");
            let start = format!("gptprio.conf line 2: {expected}");
            assert!(problems[0].starts_with(&start), "{problems:?}");
            assert!(problems[0].ends_with("ignored"), "{problems:?}");
            let expected = Settings {
                wait: Duration::from_secs(7),
                disk: Some("/dev/vda".to_owned()),
                ..Settings::default()
            };
            assert_eq!(settings, expected, "{line}");
        }
    }

    #[test]
    fn the_document_lists_the_keys() {
        let document = include_str!("../../../../docs/boot.md");
        let table = document
            .lines()
            .skip_while(|line| !line.starts_with("| Key "));
        let rows = table
            .take_while(|line| !line.is_empty())
            .filter_map(|line| line.strip_prefix("| `"));
        let keys: Vec<_> = rows.filter_map(|row| row.split('`').next()).collect();
        assert_eq!(keys, KEYS);
        for key in KEYS {
            let (_, problems) = problems(format!("{key} = \u{1}").as_bytes());
            assert!(problems[0].contains(&format!(": {key} ")), "{problems:?}");
        }
    }

    #[test]
    fn a_file_that_is_no_text_gives_the_defaults() {
        let (settings, found) = problems(b"\xff\xfe\nwait = 1");
        assert_eq!(settings.wait, Duration::from_secs(1));
        assert_eq!(
            found,
            ["gptprio.conf line 1: no UTF-8 text; the line is ignored"]
        );
        let (settings, found) = problems(&vec![b'\n'; MAX_SETTINGS + 1]);
        assert_eq!((settings, found.len()), (Settings::default(), 1));
        assert_eq!(problems(b""), (Settings::default(), vec![]));
    }
}
