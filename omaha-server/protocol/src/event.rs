//! What a machine reports: moment, outcome, error code.

use std::fmt;

use crate::{ErrorCode, Quoted};

/// Declares an open enumeration of the wire: the published numbers have names
/// and words, every other number is kept as it is.
macro_rules! wire_enum {
    ($(#[$meta:meta])* $name:ident, unknown: $unknown:literal,
     { $($number:literal $variant:ident $words:literal)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum $name {
            $(#[doc = concat!("`", $number, "`: ", $words, ".")] $variant,)*
            /// A number without a published meaning. Made by `From<i32>`, so that it
            /// never hides a number that has one.
            Other(i32),
        }

        impl $name {
            /// The published values, in the order of their numbers.
            pub const KNOWN: &[Self] = &[$(Self::$variant),*];

            /// The number on the wire.
            pub fn number(self) -> i32 {
                match self {
                    $(Self::$variant => $number,)*
                    Self::Other(number) => number,
                }
            }
        }

        impl From<i32> for $name {
            fn from(number: i32) -> Self {
                match number {
                    $($number => Self::$variant,)*
                    other => Self::Other(other),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$variant => f.write_str($words),)*
                    Self::Other(number) => write!(f, concat!($unknown, " {}"), number),
                }
            }
        }
    };
}

wire_enum! {
    /// Attribute `eventtype`: which moment of an installation is reported.
    EventType, unknown: "event",
    {
        0 Unknown "unknown event"
        1 DownloadComplete "download complete"
        2 InstallComplete "install complete"
        3 UpdateComplete "update complete"
        4 Uninstall "uninstall"
        5 DownloadStarted "download started"
        6 InstallStarted "install started"
        9 NewAppInstallStarted "new app install started"
        10 SetupStarted "setup started"
        11 SetupFinished "setup finished"
        12 UpdateStarted "update started"
        13 UpdateDownloadStarted "update download started"
        14 UpdateDownloadFinished "update download finished"
        15 UpdateInstallerStarted "update installer started"
        16 SetupUpdateBegin "setup update begun"
        17 SetupUpdateComplete "setup update complete"
        20 ProductRegistered "product registered"
        30 OemInstallFirstCheck "first check after oem install"
        40 AppCommandStart "app command started"
        41 AppCommandEnd "app command ended"
        50 UpdateCheckFailure "update check failed"
        51 Vendor51 "vendor event 51"
        52 Vendor52 "vendor event 52"
        53 Vendor53 "vendor event 53"
        54 RebootedAfterUpdate "rebooted after update"
        55 Vendor55 "vendor event 55"
        100 SetupFailure "setup failed"
        102 ComServerFailure "com server failed"
        103 SetupUpdateFailure "setup update failed"
        800 UpdateInstalled "update installed, held until reboot"
    }
}

wire_enum! {
    /// Attribute `eventresult`: how the moment went.
    EventResult, unknown: "result",
    {
        0 Error "error"
        1 Success "success"
        2 SuccessReboot "success, rebooted"
        3 SuccessRestartBrowser "success, browser restart"
        4 Cancelled "cancelled"
        5 ErrorInstallerMsi "msi error"
        6 ErrorInstallerOther "installer error"
        7 NoUpdate "no update"
        8 InstallerSystemError "installer system error"
        9 Deferred "deferred"
        10 HandoffError "handoff error"
    }
}

/// One `<event>` of a request. Displays in words, for logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Attribute `eventtype`; 0 when missing or no number.
    pub event_type: EventType,
    /// Attribute `eventresult`; 0 when missing or no number.
    pub result: EventResult,
    /// Attribute `errorcode`; `update_engine` writes it only with failures.
    pub error_code: Option<ErrorCode>,
    /// Attribute `previousversion`: the version before a reboot into a new one.
    /// Empty with every ordinary check, `0.0.0.0` when the machine does not know.
    pub previous_version: Option<String>,
    /// Attribute `nextversion`: the version being installed.
    pub next_version: Option<String>,
}

impl Event {
    /// An event without error code and versions.
    pub fn new(event_type: EventType, result: EventResult) -> Self {
        Self {
            event_type,
            result,
            error_code: None,
            previous_version: None,
            next_version: None,
        }
    }

    /// What goes with every update check; on the first one after an update it
    /// carries the version before, otherwise the empty text.
    pub fn update_complete(previous_version: impl Into<String>) -> Self {
        Self {
            previous_version: Some(previous_version.into()),
            ..Self::new(EventType::UpdateComplete, EventResult::SuccessReboot)
        }
    }

    /// A failed update. Policy decisions and backoff go out as deferred.
    pub fn failure(code: ErrorCode) -> Self {
        let result = if code.is_deferral() {
            EventResult::Deferred
        } else {
            EventResult::Error
        };
        Self {
            error_code: Some(code),
            ..Self::new(EventType::UpdateComplete, result)
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.event_type, self.result)?;
        if let Some(code) = self.error_code {
            write!(f, ", {code}")?;
        }
        if let Some(version) = self.previous_version.as_deref().filter(|v| !v.is_empty()) {
            write!(f, ", from version {}", Quoted(version))?;
        }
        if let Some(version) = self.next_version.as_deref().filter(|v| !v.is_empty()) {
            write!(f, ", to version {}", Quoted(version))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_survive_both_ways_and_unknown_ones_are_kept() {
        for number in (-2..2000).chain([i32::MIN, i32::MAX]) {
            assert_eq!(EventType::from(number).number(), number);
            assert_eq!(EventResult::from(number).number(), number);
        }
        assert_eq!(EventType::from(7), EventType::Other(7));
        assert_eq!(EventType::KNOWN.len(), 30);
        assert_eq!(EventResult::KNOWN.len(), 11);
    }

    #[test]
    fn events_read_as_words() {
        for (event, words) in [
            (
                Event::new(EventType::UpdateDownloadStarted, EventResult::Success),
                "update download started: success",
            ),
            (
                Event::update_complete("3760.0.0"),
                "update complete: success, rebooted, from version 3760.0.0",
            ),
            (
                Event::update_complete(""),
                "update complete: success, rebooted",
            ),
            (
                Event::failure(ErrorCode::ROLLBACK),
                "update complete: error, rolled back (44)",
            ),
            (
                Event::new(EventType::Other(777), EventResult::Other(77)),
                "event 777: result 77",
            ),
        ] {
            assert_eq!(event.to_string(), words);
        }
    }

    #[test]
    fn a_long_version_does_not_make_a_long_line() {
        let event = Event {
            next_version: Some("\u{1}".repeat(10_000)),
            ..Event::update_complete("\n".repeat(10_000))
        };
        assert!(event.to_string().len() < 1000, "{event}");
    }

    #[test]
    fn only_policy_and_backoff_are_deferred() {
        for code in 0..200 {
            let event = Event::failure(ErrorCode::new(code));
            let deferred = matches!(code, 35 | 36 | 40);
            assert_eq!(
                event.result == EventResult::Deferred,
                deferred,
                "code {code}"
            );
        }
    }
}
