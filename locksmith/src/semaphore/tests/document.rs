//! The original's rules and bytes.

use crate::semaphore::{Document, LockRefusal, NotHolder};

fn shown(document: &Document) -> (Vec<&str>, i64) {
    let holders = document.holders.iter().map(|id| id.as_str());
    (holders.collect(), document.semaphore)
}

/// What somebody does, whether it may, and what is there afterwards.
type Step = (char, &'static str, bool, &'static [&'static str], i64);

fn play(max: i64, steps: &[Step]) {
    let mut document = Document::default();
    document.set_max(max);
    for (what, who, succeeds, holders, semaphore) in steps {
        let done = match what {
            '+' => document.lock(&(*who).into()).is_ok(),
            _ => document.unlock(&(*who).into()).is_ok(),
        };
        assert_eq!(done, *succeeds, "{what}{who} in {document:?}");
        assert_eq!(
            shown(&document),
            (holders.to_vec(), *semaphore),
            "{what}{who}"
        );
    }
}

#[test]
fn the_originals_tests_of_locking() {
    play(1, &[('+', "a", true, &["a"], 0), ('-', "a", true, &[], 1)]);
    play(
        1,
        &[
            ('+', "a", true, &["a"], 0),
            ('+', "a", false, &["a"], 0),
            ('-', "a", true, &[], 1),
        ],
    );
    play(
        2,
        &[('+', "a", true, &["a"], 1), ('+', "a", false, &["a"], 1)],
    );
    play(
        1,
        &[
            ('-', "a", false, &[], 1),
            ('+', "a", true, &["a"], 0),
            ('-', "b", false, &["a"], 0),
        ],
    );
    play(
        1,
        &[
            ('+', "a", true, &["a"], 0),
            ('+', "b", false, &["a"], 0),
            ('-', "a", true, &[], 1),
        ],
    );
    play(
        2,
        &[
            ('+', "a", true, &["a"], 1),
            ('+', "b", true, &["a", "b"], 0),
            ('-', "a", true, &["b"], 1),
        ],
    );
    play(
        3,
        &[
            ('+', "c", true, &["c"], 2),
            ('+', "b", true, &["b", "c"], 1),
            ('+', "a", true, &["a", "b", "c"], 0),
            ('-', "b", true, &["a", "c"], 1),
            ('-', "c", true, &["a"], 2),
            ('+', "b", true, &["a", "b"], 1),
        ],
    );
}

#[test]
fn the_originals_test_of_set_max() {
    let mut document = Document::default();
    document.lock(&"a".into()).unwrap();
    for max in [3, 2, 1, 0, -1, 0, 1, 2, 3, i64::MAX, i64::MIN] {
        document.set_max(max);
        assert_eq!(document.max, max);
        if max.unsigned_abs() < 10 {
            assert_eq!(document.semaphore, max - 1);
        }
        assert_eq!(shown(&document).0, ["a"]);
    }
}

#[test]
fn errors_are_the_originals() {
    let mut document = Document::default();
    assert_eq!(document.unlock(&"a".into()), Err(NotHolder));
    document.lock(&"a".into()).unwrap();
    // That it is full is said before that it is there.
    let full = document.lock(&"a".into()).unwrap_err();
    assert_eq!(full, LockRefusal::Full(0));
    assert_eq!(full.to_string(), "semaphore is at 0");
    document.set_max(2);
    let exists = document.lock(&"a".into()).unwrap_err();
    assert_eq!(exists.to_string(), "holder exists");
    assert_eq!(NotHolder.to_string(), "holder does not exist");
    document.set_max(-3);
    let full = document.lock(&"b".into()).unwrap_err();
    assert_eq!(full.to_string(), "semaphore is at -4");
}

#[test]
fn documents_are_read_as_the_original_reads_them() {
    for (bytes, written) in [
        (
            r#"{"semaphore": 1}"#,
            r#"{"semaphore":1,"max":0,"holders":null}"#,
        ),
        (
            r#"{"semaphore": 1, "max": 2, "holders": ["foo", "bar"]}"#,
            r#"{"semaphore":1,"max":2,"holders":["foo","bar"]}"#,
        ),
        (
            r#"{"semaphore": 89, "index": 4567}"#,
            r#"{"semaphore":89,"max":0,"holders":null}"#,
        ),
        ("{}", r#"{"semaphore":0,"max":0,"holders":null}"#),
        (
            r#" {"holders":[],"max":1,"semaphore":1} "#,
            r#"{"semaphore":1,"max":1,"holders":[]}"#,
        ),
        (
            r#"{"Semaphore":-2,"MAX":3,"Holders":null,"x":{"max":9}}"#,
            r#"{"semaphore":-2,"max":3,"holders":null}"#,
        ),
        (
            r#"{"semaphore":null,"max":9223372036854775807}"#,
            r#"{"semaphore":0,"max":9223372036854775807,"holders":null}"#,
        ),
        (
            "{\"holders\":[\"<a&b>\\u2028\",\"\\\"\\\\\\n\\u0001é\"]}",
            "{\"semaphore\":0,\"max\":0,\"holders\":[\"\\u003ca\\u0026b\\u003e\\u2028\",\"\\\"\\\\\\n\\u0001é\"]}",
        ),
    ] {
        let document = Document::read(bytes.as_bytes()).expect(bytes);
        assert_eq!(document.write(), written, "{bytes}");
        let again = Document::read(document.write().as_bytes()).unwrap();
        assert_eq!(again, document);
    }
    assert_eq!(
        Document::default().write(),
        r#"{"semaphore":1,"max":1,"holders":null}"#
    );
}

#[test]
fn what_is_no_document_is_refused() {
    let long = format!(r#"{{"holders":["{}"]}}"#, "a".repeat(1_600_000));
    for bytes in [
        "",
        "asdf",
        r#"{"semaphore:"#,
        "null",
        "[]",
        "1",
        r#"{"semaphore":1.5}"#,
        r#"{"semaphore":1e3}"#,
        r#"{"semaphore":"1"}"#,
        r#"{"max":9223372036854775808}"#,
        r#"{"holders":"a"}"#,
        r#"{"holders":{}}"#,
        r#"{"holders":["a",1]}"#,
        r#"{"holders":[null]}"#,
        r#"{} {}"#,
        &long,
    ] {
        let error = Document::read(bytes.as_bytes());
        assert!(error.is_err(), "{:.40}", bytes);
    }
    assert!(Document::read(b"{\"holders\":[\"\xff\"]}").is_err());
}

#[test]
fn an_edit_by_hand_lets_nobody_in_and_locks_nobody_out() {
    let read = |text: &str| Document::read(text.as_bytes()).unwrap();
    // The counter says more than the holders allow, or the other way round.
    for text in [
        r#"{"semaphore":5,"max":2,"holders":["a","b"]}"#,
        r#"{"semaphore":0,"max":9,"holders":["a","b"]}"#,
        r#"{"semaphore":1}"#,
        r#"{"semaphore":-9223372036854775808,"max":9223372036854775807,"holders":[]}"#,
        r#"{"semaphore":9223372036854775807,"max":-9223372036854775808,"holders":["x"]}"#,
    ] {
        let mut document = read(text);
        assert!(document.lock(&"c".into()).is_err(), "{text}");
        assert!(!document.is_sound());
    }
    // Unsorted and repeated: found all the same, and put in order.
    let mut document = read(r#"{"semaphore":1,"max":4,"holders":["c","a","c"]}"#);
    assert!(document.holds(&"a".into()));
    document.lock(&"b".into()).unwrap();
    assert_eq!(shown(&document), (vec!["a", "b", "c"], 0));
    document.unlock(&"c".into()).unwrap();
    assert_eq!(shown(&document), (vec!["a", "b"], 1));
    document.heal();
    assert_eq!(document.semaphore, 2);
    assert!(document.is_sound());
}
