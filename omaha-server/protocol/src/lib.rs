//! The Omaha v3 update protocol as it is spoken between machines and their
//! update server: requests and responses as plain values, XML in and out,
//! version order, and the published event and error codes.
//!
//! Both directions are here, so that client and server cannot disagree:
//!
//! | | client | server |
//! |---|---|---|
//! | [`Request`] | [`Request::to_xml`] | [`Request::parse`] |
//! | [`Response`] | [`Response::parse`] | [`Response::to_xml`] |
//!
//! *Reading is tolerant*: elements may come in any order, unknown elements and
//! attributes are ignored, missing attributes take their defaults, numbers may
//! carry trailing junk. It is nevertheless bounded (see [`limits`]), and input
//! that is not well-formed XML is refused with the byte position.
//! *Writing is exact*: requests are byte for byte what `update_engine` sends,
//! responses obey the union of what the known clients insist on.
//!
//! This crate knows neither HTTP nor policy: it does not judge whether an offer
//! is complete or acceptable, it only tells what was said.

mod code;
mod error;
mod event;
pub mod limits;
mod quoted;
mod reader;
mod request;
mod response;
mod version;
mod writer;

pub use code::ErrorCode;
pub use error::ProtocolError;
pub use event::{Event, EventResult, EventType};
pub use quoted::Quoted;
pub use request::{InstallSource, Os, Ping, Request, RequestApp, UpdateCheckRequest};
pub use response::{
    Action, ActionEvent, AppStatus, DayStart, Manifest, Package, Response, ResponseApp,
    UpdateCheck, UpdateCheckStatus,
};
pub use version::{Version, VersionError};

/// App id of the operating system on CoreOS Container Linux and Flatcar machines.
pub const OS_APP_ID: &str = "{e96281a6-d1af-4bde-9a0a-97b76e56dc57}";

/// Whether two spellings name the same app: letter case and surrounding braces
/// do not count.
pub fn same_app_id(a: &str, b: &str) -> bool {
    bare_app_id(a).eq_ignore_ascii_case(bare_app_id(b))
}

fn bare_app_id(id: &str) -> &str {
    id.strip_prefix('{')
        .and_then(|rest| rest.strip_suffix('}'))
        .unwrap_or(id)
}

/// Whether two texts name the same version: by their numbers where both are versions, else
/// letter by letter.
pub fn same_version(a: &str, b: &str) -> bool {
    match (a.parse::<Version>(), b.parse::<Version>()) {
        (Ok(a), Ok(b)) => a == b,
        _ => a == b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn app_ids_compare_without_case_and_braces() {
        let bare = "e96281a6-d1af-4bde-9a0a-97b76e56dc57";
        assert!(same_app_id(OS_APP_ID, bare));
        assert!(same_app_id(&OS_APP_ID.to_uppercase(), bare));
        assert!(same_app_id("io.example.App", "io.example.app"));
        assert!(!same_app_id(OS_APP_ID, "io.example.App"));
        assert!(
            !same_app_id("{a", "a"),
            "half a pair of braces is part of the id"
        );
    }

    #[test]
    fn versions_compare_by_their_numbers_and_other_texts_as_they_are() {
        for (a, b, same) in [
            ("1.2.3", "1.2.3", true),
            ("1.2.3", "1.02.3", true),
            ("1.2.3", "1.2.4", false),
            ("nightly", "nightly", true),
            ("nightly", "Nightly", false),
            ("1.2.3", "nightly", false),
        ] {
            assert_eq!(same_version(a, b), same, "{a} {b}");
        }
    }
}
