//! What one source says: some keys with text values, and where each of them stands. It does not
//! know what a value means.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::keys::{self, KEYS, Key};

/// The keys that one source sets, or several sources together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fragment {
    given: BTreeMap<&'static str, Given>,
}

/// A value with the place it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Given {
    pub(super) value: Value,
    pub(super) origin: Origin,
}

/// A value as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    /// One text; a key that takes a list splits it at commas. The empty text means the default.
    Text(String),
    /// A list.
    List(Vec<String>),
    /// Windows.
    Windows(Vec<WindowText>),
}

/// A window as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WindowText {
    pub(super) start: String,
    pub(super) length: String,
    pub(super) origin: Origin,
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// No source has the key.
    Default,
    /// A file, by its path on the machine, and the line counted from 1.
    File(Arc<str>, usize),
    /// A variable of the environment.
    Variable(String),
    /// A flag of the command line, without dashes.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path, line) => write!(f, "{path}:{line}"),
            Self::Variable(name) => write!(f, "${name}"),
            Self::Flag(name) => write!(f, "-{name}"),
        }
    }
}

impl Fragment {
    /// Takes a flag of the command line by its name without dashes, with `true` or `false` for one
    /// without a value. Repeated, the last one counts, but endpoints add up. Whether there is such
    /// a flag.
    pub fn flag(&mut self, name: &str, value: &str) -> bool {
        let named = KEYS.iter().find_map(|key| {
            let flag = key.flag.filter(|flag| *flag == name)?;
            Some((*key, flag))
        });
        let Some((key, flag)) = named else {
            return false;
        };
        let mut value = value.to_owned();
        if key.name == keys::ETCD_ENDPOINTS.name
            && let Some(Value::Text(earlier)) = self.get(key).map(|given| &given.value)
        {
            value = format!("{earlier},{value}");
        }
        self.set(key, Value::Text(value), Origin::Flag(flag));
        true
    }

    pub(super) fn set(&mut self, key: &'static Key, value: Value, origin: Origin) {
        self.given.insert(key.name, Given { value, origin });
    }

    pub(super) fn get(&self, key: &Key) -> Option<&Given> {
        self.given.get(key.name)
    }

    /// Lays `upper` over this: its values count. A list of windows and the pair of start and length
    /// stand for the same, so each takes the place of the other.
    pub(super) fn cover(&mut self, upper: Self) {
        let pair = [keys::WINDOW_START.name, keys::WINDOW_LENGTH.name];
        if upper.given.contains_key(keys::WINDOW.name) {
            self.given.retain(|name, _| !pair.contains(name));
        }
        if pair.iter().any(|name| upper.given.contains_key(name)) {
            self.given.remove(keys::WINDOW.name);
        }
        self.given.extend(upper.given);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(fragment: &Fragment, key: &Key) -> Option<String> {
        match &fragment.get(key)?.value {
            Value::Text(text) => Some(text.clone()),
            other => Some(format!("{other:?}")),
        }
    }

    #[test]
    fn endpoints_add_up_and_other_flags_count_once() {
        let mut flags = Fragment::default();
        for (name, value) in [
            ("endpoint", "http://a:1"),
            ("endpoint", "http://b:1,http://c:1"),
            ("group", "x"),
            ("group", "y"),
        ] {
            assert!(flags.flag(name, value));
        }
        assert!(!flags.flag("strategy", "off"), "there is no such flag");
        assert_eq!(
            text(&flags, &keys::ETCD_ENDPOINTS).as_deref(),
            Some("http://a:1,http://b:1,http://c:1")
        );
        assert_eq!(text(&flags, &keys::GROUP).as_deref(), Some("y"));
    }

    #[test]
    fn windows_come_from_one_kind_of_source() {
        let mut pair = Fragment::default();
        pair.set(
            &keys::WINDOW_START,
            Value::Text("1:00".to_owned()),
            Origin::Default,
        );
        pair.set(
            &keys::WINDOW_LENGTH,
            Value::Text("1h".to_owned()),
            Origin::Default,
        );
        let mut list = Fragment::default();
        list.set(&keys::WINDOW, Value::Windows(Vec::new()), Origin::Default);

        let mut below = pair.clone();
        below.cover(list.clone());
        assert_eq!(below, list);
        let mut below = list;
        below.cover(pair.clone());
        assert_eq!(below, pair);
    }
}
