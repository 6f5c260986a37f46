//! The keys for locksmith in a cloud-config file, as coreos-cloudinit documents them:
//!
//! ```yaml
//! #cloud-config
//! coreos:
//!   update:
//!     reboot-strategy: etcd-lock
//!   locksmith:
//!     window_start: Thu 04:00
//!     window_length: 1h
//! ```
//!
//! or with the whole path as one key, `coreos.update.reboot-strategy: etcd-lock`. `-` and `_` mean
//! the same in a key. Everything else in the file is another program's.

use std::fmt;
use std::sync::Arc;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_saphyr::{Options, Spanned};

use super::fragment::{Fragment, Origin, Value};
use super::keys::{KEYS, Key};

/// Why a file cannot be read: the line, 0 when not known, and the reason.
pub(super) type BadYaml = (usize, String);

/// Whether a file is a cloud-config file at all, and not a script or Ignition's JSON.
pub(super) fn is_cloud_config(text: &str) -> bool {
    text.lines().next().map(str::trim_end) == Some("#cloud-config")
}

/// Reads a file for which [`is_cloud_config`] holds. Time and memory are bounded by the size of
/// `text`, whatever its aliases say.
pub(super) fn parse(path: &Arc<str>, text: &str) -> Result<Fragment, BadYaml> {
    let limits: Options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: 40_000,
            max_nodes: 20_000,
            max_aliases: 200,
            max_anchors: 200,
            max_documents: 1,
            max_depth: 64,
        },
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins,
    };
    let mut fragment = Fragment::default();
    serde_saphyr::with_deserializer_from_str_with_options(text, limits, |yaml| {
        Section {
            path,
            prefix: "",
            fragment: &mut fragment,
        }
        .deserialize(yaml)
    })
    .map_err(|error| {
        let line = error.location().map_or(0, |location| location.line());
        let reason = error.without_snippet().to_string();
        (usize::try_from(line).unwrap_or(0), reason)
    })?;
    Ok(fragment)
}

/// A mapping whose keys continue `prefix`.
struct Section<'a> {
    path: &'a Arc<str>,
    prefix: &'a str,
    fragment: &'a mut Fragment,
}

/// What a path in the file is to us.
enum Place {
    Setting(&'static Key),
    Section,
    Others,
}

impl Place {
    fn of(path: &str) -> Self {
        let cloud_keys = || {
            KEYS.iter()
                .filter_map(|key| Some((*key, key.cloud?.replace('-', "_"))))
        };
        if let Some((key, _)) = cloud_keys().find(|(_, cloud)| cloud == path) {
            Self::Setting(key)
        } else if cloud_keys().any(|(_, cloud)| cloud.starts_with(&format!("{path}."))) {
            Self::Section
        } else {
            Self::Others
        }
    }
}

impl<'de> DeserializeSeed<'de> for Section<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, yaml: D) -> Result<(), D::Error> {
        yaml.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Section<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a mapping")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<(), M::Error> {
        while let Some(key) = map.next_key::<String>()? {
            let here = format!("{}{}", self.prefix, key.replace('-', "_"));
            match Place::of(&here) {
                Place::Setting(key) => {
                    if let Some(value) = map.next_value::<Option<Spanned<String>>>()? {
                        let line = usize::try_from(value.referenced.line()).unwrap_or(0);
                        let origin = Origin::File(self.path.clone(), line);
                        self.fragment.set(key, Value::Text(value.value), origin);
                    }
                }
                Place::Section => map.next_value_seed(Section {
                    path: self.path,
                    prefix: &format!("{here}."),
                    fragment: &mut *self.fragment,
                })?,
                Place::Others => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::keys;
    use crate::config::sources::MOST_BYTES;
    use proptest::prelude::*;
    use std::time::{Duration, Instant};

    fn read(text: &str) -> Result<Fragment, BadYaml> {
        parse(&"/c".into(), text)
    }

    fn get(text: &str, key: &Key) -> Option<String> {
        let fragment = read(text).unwrap_or_else(|error| panic!("{error:?}: {text}"));
        let given = fragment.get(key)?;
        Some(format!("{:?} {}", given.value, given.origin))
    }

    #[test]
    fn only_files_with_the_header_are_ours_to_read() {
        for (text, expected) in [
            ("#cloud-config\na: b", true),
            ("#cloud-config \t\r\na: b", true),
            ("#cloud-config", true),
            ("#cloud-configuration", false),
            ("\n#cloud-config", false),
            ("#!/bin/sh\n#cloud-config", false),
            (r#"{"ignition": {"version": "3.4.0"}}"#, false),
            ("", false),
        ] {
            assert_eq!(is_cloud_config(text), expected, "{text:?}");
        }
    }

    #[test]
    fn nested_and_flat_keys_are_found_among_others() {
        let nested = "#cloud-config\nhostname: x\ncoreos:\n  units:\n    - name: a\n      content: |\n        [Unit]\n  update:\n    group: beta\n    reboot-strategy: off\n  locksmith:\n    window_start: Thu 04:00\n    window-length: 1h\n    endpoint: 'http://a:1,http://b:1'\n    etcd_password: 0123\n    group:\n";
        let flat = "#cloud-config\ncoreos.update.reboot_strategy: etcd-lock\n";
        let half = "#cloud-config\ncoreos:\n  update.reboot-strategy: \"reboot\"\n";
        for (text, key, expected) in [
            (nested, &keys::STRATEGY, Some(r#"Text("off") /c:10"#)),
            (
                nested,
                &keys::WINDOW_START,
                Some(r#"Text("Thu 04:00") /c:12"#),
            ),
            (nested, &keys::WINDOW_LENGTH, Some(r#"Text("1h") /c:13"#)),
            (
                nested,
                &keys::ETCD_ENDPOINTS,
                Some(r#"Text("http://a:1,http://b:1") /c:14"#),
            ),
            (nested, &keys::ETCD_PASSWORD, Some(r#"Text("0123") /c:15"#)),
            (nested, &keys::GROUP, None),
            (flat, &keys::STRATEGY, Some(r#"Text("etcd-lock") /c:2"#)),
            (half, &keys::STRATEGY, Some(r#"Text("reboot") /c:3"#)),
            ("#cloud-config\n", &keys::STRATEGY, None),
            ("#cloud-config\ncoreos:\n", &keys::STRATEGY, None),
            (
                "#cloud-config\ncoreos:\n  update:\nx: y\n",
                &keys::STRATEGY,
                None,
            ),
            (
                "#cloud-config\ncoreos: {update: {reboot-strategy: a, reboot-strategy: b}}",
                &keys::STRATEGY,
                Some(r#"Text("b") /c:2"#),
            ),
        ] {
            assert_eq!(get(text, key).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_its_line() {
        for (text, line) in [
            ("#cloud-config\ncoreos: [a]\n", 2),
            (
                "#cloud-config\ncoreos:\n  update:\n    reboot-strategy: [off]\n",
                4,
            ),
            ("#cloud-config\na: b\n  c: d: e\n", 3),
        ] {
            let (found, reason) = read(text).unwrap_err();
            assert_eq!(found, line, "{reason}: {text}");
        }
    }

    #[test]
    fn hostile_files_end_soon() {
        let mut laughs = "#cloud-config\na0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..30 {
            let names = vec![format!("*a{}", level - 1); 10].join(", ");
            laughs.push_str(&format!("a{level}: &a{level} [{names}]\n"));
        }
        let deep = format!("#cloud-config\ncoreos: {}", "{a: ".repeat(100_000));
        let list = format!("#cloud-config\ncoreos: {}", "[".repeat(100_000));
        let spaces: String = (0..1000)
            .map(|depth| format!("{}a:\n", " ".repeat(depth)))
            .collect();
        let many = format!("#cloud-config\n{}", "a: b\n".repeat(200_000));
        let strategies = format!(
            "#cloud-config\n{}",
            "coreos.update.reboot-strategy: off\n".repeat(20_000)
        );
        for text in [
            laughs,
            deep,
            list,
            format!("#cloud-config\n{spaces}"),
            many,
            strategies,
        ] {
            let text = &text[..text.len().min(MOST_BYTES)];
            let begin = Instant::now();
            let _ = read(text);
            assert!(begin.elapsed() < Duration::from_secs(10), "{}", &text[..60]);
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in r"\PC{0,100}", yaml in "(coreos|update|reboot-strategy|[-:{}\\[\\]&*!|>#'\"a\n ]){0,60}") {
            let _ = read(&text);
            let _ = read(&yaml);
        }
    }
}
