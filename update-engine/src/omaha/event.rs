//! Which event tells the server about which moment.

use omaha_protocol::{ErrorCode, Event};

/// Circumstances that are reported in the high bits of an error code.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flags {
    /// The attempt went on from a checkpoint (bit 30).
    pub resumed: bool,
    /// A development build (bit 29).
    pub test_image: bool,
    /// The server is not the official one (bit 28).
    pub private_server: bool,
}

/// Moments of an installation that went well.
pub mod moment {
    use omaha_protocol::{Event, EventResult, EventType};

    /// The plan is made, the download begins (13/1).
    pub fn download_started() -> Event {
        Event::new(EventType::UpdateDownloadStarted, EventResult::Success)
    }

    /// The payload is complete and its signature good (14/1).
    pub fn download_finished() -> Event {
        Event::new(EventType::UpdateDownloadFinished, EventResult::Success)
    }

    /// The new slot boots next (3/1).
    pub fn applied() -> Event {
        Event::new(EventType::UpdateComplete, EventResult::Success)
    }
}

/// A failure (3/0), or for the codes that mean "not now" a deferral (3/9).
pub fn failure(code: u32, flags: Flags) -> Event {
    let mut bits = 0;
    for (set, bit) in [
        (flags.resumed, ErrorCode::FLAG_RESUMED),
        (flags.test_image, ErrorCode::FLAG_TEST_IMAGE),
        (flags.private_server, ErrorCode::FLAG_TEST_OMAHA_URL),
    ] {
        if set {
            bits |= bit;
        }
    }
    Event::failure(ErrorCode::new(i64::from(code)).with_flags(bits))
}

/// The event of every update check (3/2): which version ran before. Servers take
/// a version as the proof that an update worked, `0.0.0.0` as a fresh machine and
/// nothing as "as before"; one server resets its record by the last, so it is
/// always sent.
pub fn running(previous_version: &str) -> Event {
    Event::update_complete(previous_version)
}

/// The event of the first check after a rollback (3/0, code 44, no flag bits).
pub fn rolled_back() -> Event {
    Event::failure(ErrorCode::ROLLBACK)
}
