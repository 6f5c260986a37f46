//! Hostile documents: each is refused with its place, quickly.

#![allow(clippy::unwrap_used, reason = "a test may fail by panic")]

use std::time::{Duration, Instant};

use omaha_protocol::{ProtocolError, Request, Response, limits};

/// Far above what the slowest case needs in a debug build, far below what any
/// quadratic or exponential step would take.
const TIME_LIMIT: Duration = Duration::from_secs(2);

/// Peak memory of this whole test process, its own hostile documents included.
const MEMORY_LIMIT_KB: u64 = 128 << 10;

fn peak_memory_kb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn refusal(document: &[u8]) -> ProtocolError {
    let start = Instant::now();
    let error = Request::parse(document).unwrap_err();
    assert!(start.elapsed() < TIME_LIMIT, "took {:?}", start.elapsed());
    assert!(
        peak_memory_kb() < MEMORY_LIMIT_KB,
        "peak {} kB",
        peak_memory_kb()
    );
    assert!(error.to_string().len() < 300, "the text is short: {error}");
    error
}

macro_rules! assert_refused {
    ($document:expr, $pattern:pat $(if $guard:expr)?) => {
        let error = refusal($document);
        assert!(matches!(error, $pattern $(if $guard)?), "{error:?}");
    };
}

#[test]
fn oversized_documents_are_refused_before_they_are_parsed() {
    let attribute_of_10_mb = format!("<request a=\"{}\"/>", "x".repeat(10 << 20));
    let million_attributes: String = (0..1_000_000).map(|i| format!(" a{i}=''")).collect();
    let million_attributes = format!("<request{million_attributes}/>");
    let million_deep = format!("<request>{}", "<a>".repeat(1_000_000));
    for document in [attribute_of_10_mb, million_attributes, million_deep] {
        assert_refused!(
            document.as_bytes(),
            ProtocolError::TooLarge {
                limit: limits::DOCUMENT_BYTES,
                ..
            }
        );
    }
}

#[test]
fn what_fits_into_the_size_limit_meets_the_other_limits() {
    let room = limits::DOCUMENT_BYTES - 64;

    let deep = format!("<request>{}", "<a>".repeat(room / 3));
    assert_refused!(
        deep.as_bytes(),
        ProtocolError::TooDeep {
            limit: limits::DEPTH,
            position: 102
        }
    );

    let attributes: String = (0..room / 11).map(|i| format!(" a{i:06}=''")).collect();
    let attributes = format!("<request><x/><y{attributes}/></request>");
    assert_refused!(
        attributes.as_bytes(),
        ProtocolError::TooMany {
            what: "attributes",
            limit: limits::ATTRIBUTES,
            position: 13
        }
    );

    let long = format!("<request installsource=\"{}\"/>", "x".repeat(room));
    assert_refused!(
        long.as_bytes(),
        ProtocolError::AttributeTooLong { ref attribute, position: 0, .. } if attribute == "installsource"
    );

    let name = format!("<{}/>", "x".repeat(room));
    assert_refused!(name.as_bytes(), ProtocolError::WrongRoot { ref found, .. } if found.len() < 50);

    let apps = format!("<request>{}</request>", "<app/>".repeat(room / 6));
    assert_refused!(
        apps.as_bytes(),
        ProtocolError::TooMany {
            what: "apps",
            limit: limits::APPS,
            ..
        }
    );

    let events = format!(
        "<request><app>{}</app></request>",
        "<event/>".repeat(room / 9)
    );
    assert_refused!(
        events.as_bytes(),
        ProtocolError::TooMany {
            what: "events in one app",
            ..
        }
    );
}

#[test]
fn lists_of_a_response_are_bounded() {
    let wrap = |inner: String| {
        format!("<response><app><updatecheck>{inner}</updatecheck></app></response>")
    };
    for (document, expected) in [
        (
            format!("<response>{}</response>", "<app/>".repeat(1000)),
            "apps",
        ),
        (
            format!(
                "<response><app>{}</app></response>",
                "<event/>".repeat(1000)
            ),
            "events in one app",
        ),
        (
            wrap(format!("<urls>{}</urls>", "<url/>".repeat(1000))),
            "urls",
        ),
        (wrap("<manifest/>".repeat(1000)), "manifests"),
        (
            wrap(format!(
                "<manifest><packages>{}</packages></manifest>",
                "<package/>".repeat(1000)
            )),
            "packages in one manifest",
        ),
        (
            wrap(format!(
                "<manifest><actions>{}</actions></manifest>",
                "<action/>".repeat(1000)
            )),
            "actions in one manifest",
        ),
    ] {
        match Response::parse(document.as_bytes()).unwrap_err() {
            ProtocolError::TooMany { what, .. } => assert_eq!(what, expected),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn many_ignored_elements_cost_little() {
    let room = limits::DOCUMENT_BYTES - 64;
    let document = format!("<request>{}</request>", "<a/>".repeat(room / 4));
    let start = Instant::now();
    assert_eq!(
        Request::parse(document.as_bytes()).unwrap(),
        Request::default()
    );
    assert!(start.elapsed() < TIME_LIMIT, "took {:?}", start.elapsed());
}

#[test]
fn document_types_and_entities_are_refused() {
    let bomb = br#"<?xml version="1.0"?>
<!DOCTYPE request [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>
<request version="&b;"/>"#;
    assert_refused!(bomb, ProtocolError::Doctype { position: 22 });
    assert_refused!(
        br#"<!DOCTYPE request SYSTEM "file:///etc/passwd"><request/>"#,
        ProtocolError::Doctype { position: 0 }
    );
    assert_refused!(
        b"<request version='&b;'/>",
        ProtocolError::Malformed { position: 0, .. }
    );
    assert_refused!(
        b"<request>&b;</request>",
        ProtocolError::Malformed { position: 9, .. }
    );
    assert_refused!(
        b"<request/>&amp;",
        ProtocolError::OutsideRoot { position: 10 }
    );
}

#[test]
fn characters_that_xml_forbids_are_refused_however_they_are_spelled() {
    assert_refused!(
        b"<request a='\xff'/>",
        ProtocolError::NotUtf8 { position: 12 }
    );
    assert_refused!(b"\xff\xfe<\0r\0", ProtocolError::NotUtf8 { position: 0 });
    assert_refused!(
        b"<?xml version='1.0' encoding='ISO-8859-1'?><request/>",
        ProtocolError::NotUtf8 { position: 0 }
    );
    assert_refused!(
        b"<request a='\0'/>",
        ProtocolError::ForbiddenCharacter {
            character: 0,
            position: 12
        }
    );
    assert_refused!(
        b"<request a='&#1;'/>",
        ProtocolError::ForbiddenCharacter {
            character: 1,
            position: 0
        }
    );
    assert_refused!(
        b"<request>&#x1b;</request>",
        ProtocolError::ForbiddenCharacter {
            character: 0x1b,
            position: 9
        }
    );
    assert_refused!(
        b"<request a='&#0;'/>",
        ProtocolError::Malformed { .. } | ProtocolError::ForbiddenCharacter { .. }
    );
    assert_refused!(b"<request a='&#xd800;'/>", ProtocolError::Malformed { .. });
}

#[test]
fn malformed_documents_are_refused_with_their_place() {
    assert_refused!(b"", ProtocolError::Empty);
    assert_refused!(
        b" \n",
        ProtocolError::Truncated {
            open: 0,
            position: 2
        }
    );
    assert_refused!(b"hello", ProtocolError::OutsideRoot { position: 0 });
    assert_refused!(b"<response/>", ProtocolError::WrongRoot { position: 0, .. });
    assert_refused!(
        b"<x:request xmlns:x='urn:x'/>",
        ProtocolError::WrongRoot { .. }
    );
    assert_refused!(b"<request/>x", ProtocolError::OutsideRoot { position: 10 });
    assert_refused!(
        b"<request/><request/>",
        ProtocolError::OutsideRoot { position: 10 }
    );
    assert_refused!(
        b"<request/></request>",
        ProtocolError::Malformed { position: 10, .. }
    );
    assert_refused!(
        b"<request a='1' a='2'/>",
        ProtocolError::Malformed { position: 0, .. }
    );
    assert_refused!(
        b"<request><app></request>",
        ProtocolError::Malformed { position: 14, .. }
    );
    assert_refused!(b"<request a=1/>", ProtocolError::Malformed { .. });
    assert_refused!(b"<request a/>", ProtocolError::Malformed { .. });
    assert_refused!(b"<request><![CDATA[", ProtocolError::Malformed { .. });
    assert_refused!(b"<request><!-- ", ProtocolError::Malformed { .. });
}

#[test]
fn every_truncation_of_a_request_is_refused() {
    let recording = include_str!("../../../fixtures/omaha/request-ordinary-check-1.http");
    let body = recording.split_once("\n\n").unwrap().1;
    let whole = body.trim_end();
    for end in 0..whole.len() {
        assert!(
            Request::parse(&whole.as_bytes()[..end]).is_err(),
            "cut at {end}"
        );
    }
    Request::parse(whole.as_bytes()).unwrap();
}
