//! Which bytes of a file a client asks for: the conditional and range headers of
//! RFC 9110 §13 and §14 against one strong entity tag. Pure.

use std::ops::Range;

/// The headers that matter, as sent.
#[derive(Debug, Clone, Copy, Default)]
pub struct Headers<'a> {
    /// `Range`; only for GET.
    pub range: Option<&'a str>,
    /// `If-Range`.
    pub if_range: Option<&'a str>,
    /// `If-None-Match`.
    pub if_none_match: Option<&'a str>,
    /// `If-Match`.
    pub if_match: Option<&'a str>,
}

/// What to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// 200 with all of it. Also for several ranges and for ranges in a form that
    /// is not understood: the standard lets a server ignore those.
    Whole,
    /// 206 with these bytes; never empty.
    Part(Range<u64>),
    /// 304: the client has it already.
    NotModified,
    /// 412: the client wants another file than this one.
    PreconditionFailed,
    /// 416: the range begins behind the end.
    Unsatisfiable,
}

/// Evaluates the headers for a file of `length` bytes with the entity tag `etag`
/// (in its quotes), in the order of precedence of RFC 9110 §13.2.2.
pub fn select(headers: &Headers<'_>, etag: &str, length: u64) -> Selection {
    if headers
        .if_match
        .is_some_and(|tags| !lists(tags, etag, Comparison::Strong))
    {
        return Selection::PreconditionFailed;
    }
    if headers
        .if_none_match
        .is_some_and(|tags| lists(tags, etag, Comparison::Weak))
    {
        return Selection::NotModified;
    }
    // A date in If-Range never matches, for no Last-Modified is ever sent.
    if headers.if_range.is_some_and(|tag| tag.trim() != etag) {
        return Selection::Whole;
    }
    match headers.range {
        Some(range) => select_range(range, length),
        None => Selection::Whole,
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Comparison {
    /// `W/"x"` equals nothing.
    Strong,
    /// `W/"x"` equals `"x"`.
    Weak,
}

fn lists(tags: &str, etag: &str, comparison: Comparison) -> bool {
    tags.split(',').map(str::trim).any(|tag| {
        let tag = match comparison {
            Comparison::Weak => tag.strip_prefix("W/").unwrap_or(tag),
            Comparison::Strong => tag,
        };
        tag == "*" || tag == etag
    })
}

fn select_range(header: &str, length: u64) -> Selection {
    let Some((first, last)) = single_range(header) else {
        return Selection::Whole;
    };
    let range = match (first, last) {
        (Some(first), Some(last)) if last < first => return Selection::Whole,
        (Some(first), last) => {
            let end = last.map_or(length, |last| last.saturating_add(1).min(length));
            first..end
        }
        (None, Some(suffix)) => length.saturating_sub(suffix)..length,
        (None, None) => return Selection::Whole,
    };
    if range.is_empty() {
        Selection::Unsatisfiable
    } else {
        Selection::Part(range)
    }
}

/// `bytes=first-last` with either number missing; `None` for anything else.
fn single_range(header: &str) -> Option<(Option<u64>, Option<u64>)> {
    let (unit, range) = header.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (first, last) = range.trim().split_once('-')?;
    Some((position(first)?, position(last)?))
}

/// Digits only; a number beyond 64 bits lies behind every end.
fn position(text: &str) -> Option<Option<u64>> {
    if text.is_empty() {
        return Some(None);
    }
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| Some(text.parse().unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ETAG: &str = "\"abc\"";

    #[test]
    fn ranges_select_as_the_standard_says() {
        use Selection::{Part, Unsatisfiable, Whole};
        for (range, expected) in [
            ("bytes=0-", Part(0..100)),
            ("bytes=0-0", Part(0..1)),
            ("bytes=10-19", Part(10..20)),
            ("Bytes = 10-19", Part(10..20)),
            ("bytes=99-", Part(99..100)),
            ("bytes=10-1000", Part(10..100)),
            ("bytes=10-18446744073709551615", Part(10..100)),
            ("bytes=10-99999999999999999999", Part(10..100)),
            ("bytes=-1", Part(99..100)),
            ("bytes=-1000", Part(0..100)),
            ("bytes=-0", Unsatisfiable),
            ("bytes=100-", Unsatisfiable),
            ("bytes=100-200", Unsatisfiable),
            ("bytes=99999999999999999999-", Unsatisfiable),
            // Ignored, as the standard allows or demands.
            ("bytes=0-1,5-6", Whole),
            ("bytes=19-10", Whole),
            ("bytes=-", Whole),
            ("bytes=", Whole),
            ("bytes", Whole),
            ("bytes=a-b", Whole),
            ("bytes=+1-2", Whole),
            ("bytes=--1", Whole),
            ("lines=0-1", Whole),
        ] {
            let headers = Headers {
                range: Some(range),
                ..Headers::default()
            };
            assert_eq!(select(&headers, ETAG, 100), expected, "{range}");
        }
        assert_eq!(select(&Headers::default(), ETAG, 100), Whole);
    }

    #[test]
    fn a_range_holds_only_for_the_same_file() {
        for (if_range, expected) in [
            ("\"abc\"", Selection::Part(1..100)),
            ("\"abd\"", Selection::Whole),
            ("W/\"abc\"", Selection::Whole),
            ("abc", Selection::Whole),
            ("Wed, 21 Oct 2015 07:28:00 GMT", Selection::Whole),
        ] {
            let headers = Headers {
                range: Some("bytes=1-"),
                if_range: Some(if_range),
                ..Headers::default()
            };
            assert_eq!(select(&headers, ETAG, 100), expected, "{if_range}");
        }
    }

    #[test]
    fn preconditions_come_before_ranges() {
        use Selection::{NotModified, Part, PreconditionFailed};
        for (if_match, if_none_match, expected) in [
            (None, Some("\"abc\""), NotModified),
            (None, Some("\"x\", W/\"abc\""), NotModified),
            (None, Some("*"), NotModified),
            (None, Some("\"x\""), Part(1..100)),
            (Some("\"abc\""), None, Part(1..100)),
            (Some("*"), None, Part(1..100)),
            (Some("\"x\""), Some("\"abc\""), PreconditionFailed),
            (Some("W/\"abc\""), None, PreconditionFailed),
        ] {
            let headers = Headers {
                range: Some("bytes=1-"),
                if_match,
                if_none_match,
                ..Headers::default()
            };
            assert_eq!(
                select(&headers, ETAG, 100),
                expected,
                "{if_match:?} {if_none_match:?}"
            );
        }
    }
}
