//! What to make of a value that cannot be read: somebody wrote it by hand, or a
//! later version did.
//!
//! One broken record must not stop a fleet, so most are passed over. Two are
//! not: without the places or the policy there is nothing to decide by, and a
//! halt that cannot be read is a halt.

use super::StoreError;
use crate::semaphore::{Halt, Key, Record};

/// The record in `bytes`, the value of `key` below `prefix`; none if it can be
/// done without.
pub(super) fn read(prefix: &str, key: &Key, bytes: &[u8]) -> Result<Option<Record>, StoreError> {
    let source = match Record::read(key, bytes) {
        Ok(record) => return Ok(Some(record)),
        Err(source) => source,
    };
    let name = format!("{prefix}{}", key.name());
    match key {
        Key::Document | Key::Policy => Err(StoreError::BadValue { key: name, source }),
        Key::Halt => Ok(Some(Record::Halt(Halt {
            by: String::new(),
            why: format!("the key {name} cannot be read: {source}"),
            at: 0,
        }))),
        _ => {
            tracing::warn!(key = name, error = %source, "a record cannot be read; it does not count");
            Ok(None)
        }
    }
}

/// The key with this name; `None`, and a warning, for a foreign one.
pub(super) fn key(prefix: &str, name: &[u8]) -> Option<Key> {
    let name = std::str::from_utf8(name).ok()?;
    let below = name.strip_prefix(prefix)?;
    let key = Key::parse(below).filter(|key| key.name() == below);
    if key.is_none() {
        tracing::warn!(key = name, "a foreign key in the group");
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_places_and_the_policy_must_be_readable_and_a_broken_halt_is_one() {
        let read = |key: &Key| read("p/", key, b"{");
        for key in [Key::Document, Key::Policy] {
            let error = read(&key).unwrap_err().to_string();
            assert!(error.contains(&format!("p/{}", key.name())), "{error}");
        }
        let Ok(Some(Record::Halt(halt))) = read(&Key::Halt) else {
            panic!("not halted");
        };
        assert!(halt.why.contains("p/v1/halt"), "{}", halt.why);
        for key in [Key::Failures, Key::Holder("a".into())] {
            assert_eq!(read(&key).unwrap(), None);
        }
    }

    #[test]
    fn foreign_keys_are_passed_over() {
        assert_eq!(key("p/", b"p/v1/halt"), Some(Key::Halt));
        for name in [
            &b"p/v1/other"[..],
            b"q/v1/halt",
            b"p/v1/queue/1/a/x",
            b"\xff",
        ] {
            assert_eq!(key("p/", name), None);
        }
    }
}
