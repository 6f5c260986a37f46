//! Settings as text for an operator.

use std::fmt::Write as _;

use super::Loaded;
use super::fragment::{Origin, Value, WindowText};
use super::keys::{Form, KEYS, Key};
use super::validate::elements;

impl Loaded {
    /// Where the value of a key comes from, by the key's name.
    #[must_use]
    pub fn origin(&self, name: &str) -> Origin {
        KEYS.iter()
            .find(|key| key.name == name)
            .and_then(|key| self.given.get(key))
            .map_or(Origin::Default, |given| given.origin.clone())
    }

    /// Every key with its value and where that comes from, as lines of a file of ours:
    /// `strategy = "etcd-lock"  # /etc/flatcar/update.conf:3`. Passwords are not in it.
    #[must_use]
    pub fn show(&self) -> String {
        let mut text = String::new();
        for key in KEYS {
            let given = self.given.get(key);
            if key.form == Form::Elsewhere && given.is_none() {
                continue;
            }
            let value = shown(key, given.map(|given| &given.value));
            let origin = given.map_or(&Origin::Default, |given| &given.origin);
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{} = {value}  # {origin}", key.name);
        }
        text
    }
}

/// A value as TOML.
fn shown(key: &Key, value: Option<&Value>) -> String {
    let list = |items: Vec<String>| format!("[{}]", items.join(", "));
    match value {
        Some(Value::Windows(windows)) => list(windows.iter().map(shown_window).collect()),
        Some(Value::List(items)) => list(items.iter().map(|item| quoted(item)).collect()),
        _ => {
            let text = match value {
                Some(Value::Text(text)) if !text.is_empty() => text,
                _ => key.default,
            };
            match key.form {
                Form::List | Form::Windows => list(elements(text).map(quoted).collect()),
                Form::Secret if !text.is_empty() => quoted("(set)"),
                Form::Bare => text.to_owned(),
                Form::Text | Form::Secret | Form::Elsewhere => quoted(text),
            }
        }
    }
}

fn shown_window(window: &WindowText) -> String {
    let (start, length) = (quoted(&window.start), quoted(&window.length));
    format!("{{ start = {start}, length = {length} }}")
}

/// JSON's strings are TOML's basic strings.
pub(super) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
