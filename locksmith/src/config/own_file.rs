//! `locksmith.toml` and the files of `conf.d`: the keys of [`KEYS`] in TOML.
//!
//! A number or a truth value may be written as text and the other way round; what a text means is
//! not decided here.

use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::fragment::{Fragment, Origin, Value, WindowText};
use super::keys::{Form, KEYS, Key};
use super::{Problem, Warning};

/// What one file says, with all that is wrong and odd about it.
#[derive(Debug)]
pub(super) struct OwnFile {
    pub(super) fragment: Fragment,
    pub(super) warnings: Vec<Warning>,
    pub(super) problems: Vec<Problem>,
}

/// Reads a file; `path` is only for the origins.
pub(super) fn parse(path: &Arc<str>, text: &str) -> OwnFile {
    let mut reader = Reader {
        path,
        line_ends: text.match_indices('\n').map(|(at, _)| at).collect(),
        file: OwnFile {
            fragment: Fragment::default(),
            warnings: Vec::new(),
            problems: Vec::new(),
        },
    };
    match DeTable::parse(text) {
        Ok(table) => reader.table("", table.get_ref()),
        Err(error) => {
            let origin = reader.origin(error.span().map_or(0, |span| span.start));
            // The message alone: the error's own text repeats the line, which may hold a password.
            let reason = format!("not TOML: {}", error.message());
            reader.file.problems.push(Problem::Statement {
                origin,
                key: None,
                reason,
            });
        }
    }
    reader.file
}

struct Reader<'a> {
    path: &'a Arc<str>,
    line_ends: Vec<usize>,
    file: OwnFile,
}

impl Reader<'_> {
    fn origin(&self, offset: usize) -> Origin {
        let line = self.line_ends.partition_point(|&end| end < offset) + 1;
        Origin::File(self.path.clone(), line)
    }

    fn table(&mut self, prefix: &str, table: &DeTable<'_>) {
        for (name, value) in table {
            let origin = self.origin(name.span().start);
            let name = format!("{prefix}{}", name.get_ref());
            if let Some(&key) = KEYS.iter().find(|key| key.name == name) {
                match self.value(key, value) {
                    Ok(value) => self.file.fragment.set(key, value, origin),
                    Err(reason) => self.file.problems.push(Problem::Value {
                        origin,
                        key: key.name,
                        reason,
                    }),
                }
            } else if let (DeValue::Table(inner), true) = (value.get_ref(), is_table(&name)) {
                self.table(&format!("{name}."), inner);
            } else {
                self.warn_of_unknown(origin, &name);
            }
        }
    }

    fn value(&mut self, key: &Key, value: &Spanned<DeValue<'_>>) -> Result<Value, String> {
        match (key.form, value.get_ref()) {
            (Form::Elsewhere, _) => Err("in this file it is a [[window]] table".to_owned()),
            (Form::Windows, DeValue::Array(windows)) => windows
                .iter()
                .map(|window| self.window(window))
                .collect::<Result<_, _>>()
                .map(Value::Windows),
            (Form::Windows, _) => Err("it is written as [[window]] tables".to_owned()),
            (Form::List, DeValue::Array(items)) => items
                .iter()
                .map(|item| scalar(item.get_ref()))
                .collect::<Result<_, _>>()
                .map(Value::List),
            (_, value) => scalar(value).map(Value::Text),
        }
    }

    fn window(&mut self, window: &Spanned<DeValue<'_>>) -> Result<WindowText, String> {
        let DeValue::Table(table) = window.get_ref() else {
            return Err("it is written as [[window]] tables".to_owned());
        };
        let (mut start, mut length) = (None, None);
        for (name, value) in table {
            match name.get_ref().as_ref() {
                "start" => start = Some(scalar(value.get_ref())?),
                "length" => length = Some(scalar(value.get_ref())?),
                other => {
                    let origin = self.origin(name.span().start);
                    self.warn_of_unknown(origin, &format!("window.{other}"));
                }
            }
        }
        let origin = self.origin(window.span().start);
        match (start, length) {
            (Some(start), Some(length)) => Ok(WindowText {
                start,
                length,
                origin,
            }),
            _ => Err(format!(
                "the window at {origin} needs both start and length"
            )),
        }
    }

    fn warn_of_unknown(&mut self, origin: Origin, name: &str) {
        self.file.warnings.push(Warning {
            origin,
            text: format!("unknown key '{name}', it sets nothing"),
        });
    }
}

fn is_table(name: &str) -> bool {
    let prefix = format!("{name}.");
    KEYS.iter().any(|key| key.name.starts_with(&prefix))
}

fn scalar(value: &DeValue<'_>) -> Result<String, String> {
    match value {
        DeValue::String(text) => Ok(text.to_string()),
        DeValue::Integer(number) => Ok(number.to_string()),
        DeValue::Float(number) => Ok(number.as_str().to_owned()),
        DeValue::Boolean(truth) => Ok(truth.to_string()),
        DeValue::Datetime(time) => Ok(time.to_string()),
        DeValue::Array(_) => Err("a list is not expected here".to_owned()),
        DeValue::Table(_) => Err("a table is not expected here".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::sources::MOST_BYTES;
    use proptest::prelude::*;
    use std::time::{Duration, Instant};

    fn read(text: &str) -> OwnFile {
        parse(&"/t".into(), text)
    }

    #[test]
    fn keys_are_found_with_their_lines_however_tables_are_written() {
        for (text, name, expected) in [
            ("strategy = 'off'", "strategy", r#"Text("off") /t:1"#),
            (
                "\n[etcd]\nendpoints = ['a', 'b']\n",
                "etcd.endpoints",
                r#"List(["a", "b"]) /t:3"#,
            ),
            (
                "etcd.endpoints = 'a,b'\n",
                "etcd.endpoints",
                r#"Text("a,b") /t:1"#,
            ),
            ("etcd = { api = 'v3' }", "etcd.api", r#"Text("v3") /t:1"#),
            (
                "debug = true\nqueue_rank = 1_0",
                "debug",
                r#"Text("true") /t:1"#,
            ),
            (
                "debug = true\nqueue_rank = 1_0",
                "queue_rank",
                r#"Text("10") /t:2"#,
            ),
            (
                "exclude = [2027-12-24, 'sat']",
                "exclude",
                r#"List(["2027-12-24", "sat"]) /t:1"#,
            ),
        ] {
            let file = read(text);
            assert!(
                file.problems.is_empty() && file.warnings.is_empty(),
                "{file:?}"
            );
            let key = KEYS.iter().find(|key| key.name == name).unwrap();
            let given = file.fragment.get(key).unwrap();
            assert_eq!(
                format!("{:?} {}", given.value, given.origin),
                expected,
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_wrong_or_odd_is_told_with_its_line() {
        for (text, expected) in [
            (
                "a = 1\nstrategy = 'off'\n",
                "/t:1: unknown key 'a', it sets nothing",
            ),
            (
                "\n[etcd]\nuser = 'x'\n",
                "/t:3: unknown key 'etcd.user', it sets nothing",
            ),
            ("etcd = 1", "/t:1: unknown key 'etcd', it sets nothing"),
            (
                "[[window]]\nstart='1:00'\nlength='1h'\nzone='UTC'",
                "/t:4: unknown key 'window.zone', it sets nothing",
            ),
            (
                "[[window]]\nstart='1:00'",
                "/t:1: bad value of window: the window at /t:1 needs both start and length",
            ),
            (
                "[window]\nstart='1:00'",
                "/t:1: bad value of window: it is written as [[window]] tables",
            ),
            (
                "window_start='1:00'",
                "/t:1: bad value of window_start: in this file it is a [[window]] table",
            ),
            (
                "\ngroup = ['a']",
                "/t:2: bad value of group: a list is not expected here",
            ),
            (
                "exclude = [['a']]",
                "/t:1: bad value of exclude: a list is not expected here",
            ),
            (
                "[hooks.timeout]",
                "/t:1: bad value of hooks.timeout: a table is not expected here",
            ),
            (
                "a = 1\n[etcd]\npassword = hush\n",
                "/t:3: not TOML: string values must be quoted, expected literal string",
            ),
        ] {
            let file = read(text);
            let told: Vec<String> = file
                .warnings
                .iter()
                .map(Warning::to_string)
                .chain(file.problems.iter().map(Problem::to_string))
                .collect();
            assert_eq!(told, [expected], "{text}");
        }
    }

    #[test]
    fn hostile_files_end_soon() {
        let odd: String = (0..40_000).map(|number| format!("a{number}=1\n")).collect();
        for text in [
            odd,
            format!("a = {}", "[".repeat(200_000)),
            format!("a = {}", "{a=".repeat(80_000)),
            format!("{} = 1", "a.".repeat(100_000)),
            "[a]\n".repeat(60_000),
            "[[window]]\n".repeat(20_000),
        ] {
            let text = &text[..text.len().min(MOST_BYTES)];
            let begin = Instant::now();
            let _ = read(text);
            assert!(begin.elapsed() < Duration::from_secs(10), "{}", &text[..20]);
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in r"\PC{0,100}", toml in r#"(etcd|window|exclude|[\[\]{}=.,'"\n #a0-]){0,60}"#) {
            let _ = read(&text);
            let _ = read(&toml);
        }
    }
}
