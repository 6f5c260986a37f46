//! The command line's grammar: that of Go's `flag` package, because scripts
//! were written against it.
//!
//! | typed | means |
//! |---|---|
//! | `-name`, `--name` | a switch turned on |
//! | `-name=true`, `-name=0`, … | a switch; never `-name true` |
//! | `-name=value`, `-name value` | a value, whatever it looks like |
//! | `-` | a word |
//! | `--` | only words follow |
//!
//! A repeated value replaces the former one; lists grow, and are split at
//! commas. Tables of [`Flag`]s say what exists; this module does not know what
//! any of them means.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// A flag, as a constant of some table.
#[derive(Debug)]
pub(super) struct Flag {
    /// Without dashes.
    pub(super) name: &'static str,
    /// What it takes.
    pub(super) kind: Kind,
    /// Its value when it is not given, as help shows it.
    pub(super) default: &'static str,
    /// One line for people.
    pub(super) help: &'static str,
}

/// What a flag takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nothing, or a word for true or false after `=`.
    Switch,
    /// One text.
    Text,
    /// Texts, separated by commas.
    List,
}

/// How flags and words may follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// The first word ends the flags, as in the original.
    FlagsFirst,
    /// Flags are found between words as well.
    Mixed,
}

/// What flags were set to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Values(BTreeMap<&'static str, Vec<String>>);

/// Why arguments are not understood. The texts are Go's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Mistake {
    /// `-h` or `-help`.
    #[error("flag: help requested")]
    HelpWanted,
    /// No such flag.
    #[error("flag provided but not defined: -{0}")]
    Undefined(String),
    /// The value is missing.
    #[error("flag needs an argument: -{0}")]
    NoArgument(&'static str),
    /// Dashes and signs that are no flag.
    #[error("bad flag syntax: {0}")]
    Syntax(String),
    /// A switch with a word that is neither true nor false.
    #[error("invalid boolean value {word:?} for -{name}: parse error")]
    NotBoolean {
        /// The switch.
        name: &'static str,
        /// The word.
        word: String,
    },
}

impl Mistake {
    /// Whether a number was taken for a flag, which its author cannot guess.
    pub(super) fn is_number(&self) -> bool {
        matches!(self, Self::Undefined(name) if name.parse::<u64>().is_ok())
    }
}

impl Values {
    /// Reads the flags of `tables` from `arguments` and returns the words.
    /// With [`Order::FlagsFirst`] everything after the first word is a word.
    pub(super) fn read(
        &mut self,
        tables: &[&'static [Flag]],
        order: Order,
        arguments: &[String],
    ) -> Result<Vec<String>, Mistake> {
        let mut words = Vec::new();
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            if argument == "--" {
                words.extend(rest.cloned());
                return Ok(words);
            }
            let Some(text) = argument.strip_prefix('-').filter(|text| !text.is_empty()) else {
                words.push(argument.clone());
                if order == Order::FlagsFirst {
                    words.extend(rest.cloned());
                    return Ok(words);
                }
                continue;
            };
            let text = text.strip_prefix('-').unwrap_or(text);
            if text.starts_with(['-', '=']) {
                return Err(Mistake::Syntax(argument.clone()));
            }
            let (name, value) = match text.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (text, None),
            };
            let flag = find(tables, name)?;
            let value = match (flag.kind, value) {
                (_, Some(value)) => value,
                (Kind::Switch, None) => "true",
                (Kind::Text | Kind::List, None) => {
                    rest.next().ok_or(Mistake::NoArgument(flag.name))?
                }
            };
            self.set(flag, value)?;
        }
        Ok(words)
    }

    /// Sets what the command line has not set from the environment:
    /// `PREFIX_SOME_FLAG` for `some-flag`. An empty value is none, and one that
    /// cannot be read is ignored, as in the original.
    pub(super) fn fill(
        &mut self,
        table: &'static [Flag],
        prefix: &str,
        variable: impl Fn(&str) -> Option<String>,
    ) {
        for flag in table {
            let name = format!("{prefix}_{}", flag.name.to_uppercase().replace('-', "_"));
            if self.0.contains_key(flag.name) {
                continue;
            }
            if let Some(value) = variable(&name).filter(|value| !value.is_empty()) {
                let _ = self.set(flag, &value);
            }
        }
    }

    /// Whether a switch is on.
    pub(super) fn is_on(&self, name: &str) -> bool {
        self.text(name).and_then(boolean).unwrap_or(false)
    }

    /// The value of a flag that was set.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.last().map(String::as_str)
    }

    /// All values; empty if it was not set.
    pub(super) fn list(&self, name: &str) -> &[String] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }

    fn set(&mut self, flag: &'static Flag, value: &str) -> Result<(), Mistake> {
        if flag.kind == Kind::Switch && boolean(value).is_none() {
            return Err(Mistake::NotBoolean {
                name: flag.name,
                word: value.to_owned(),
            });
        }
        let values = self.0.entry(flag.name).or_default();
        match flag.kind {
            Kind::Switch | Kind::Text => *values = vec![value.to_owned()],
            Kind::List => values.extend(value.split(',').map(|part| part.trim().to_owned())),
        }
        Ok(())
    }
}

/// The lines that explain flags after a mistake, as Go prints them.
pub(super) fn dump(flags: &'static [Flag]) -> String {
    let mut out = String::new();
    for flag in flags {
        let kind = match flag.kind {
            Kind::Switch => "",
            Kind::Text => " string",
            Kind::List => " value",
        };
        let default = match flag.kind {
            Kind::Text if !flag.default.is_empty() => format!(" (default {:?})", flag.default),
            _ => String::new(),
        };
        let Flag { name, help, .. } = flag;
        // Writing to a String cannot fail.
        let _ = writeln!(out, "  -{name}{kind}\n    \t{help}{default}");
    }
    out
}

fn find(tables: &[&'static [Flag]], name: &str) -> Result<&'static Flag, Mistake> {
    let mut flags = tables.iter().copied().flatten();
    match flags.find(|flag| flag.name == name) {
        Some(flag) => Ok(flag),
        None if name == "h" || name == "help" => Err(Mistake::HelpWanted),
        None => Err(Mistake::Undefined(name.to_owned())),
    }
}

/// What Go takes a word for.
pub(super) fn boolean(word: &str) -> Option<bool> {
    match word {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[Flag] = &[
        Flag {
            name: "debug",
            kind: Kind::Switch,
            default: "false",
            help: "Say more.",
        },
        Flag {
            name: "endpoint",
            kind: Kind::List,
            default: "here",
            help: "Where.",
        },
        Flag {
            name: "some-group",
            kind: Kind::Text,
            default: "g",
            help: "Which.",
        },
    ];

    fn read(order: Order, line: &str) -> Result<(Values, Vec<String>), String> {
        let arguments: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
        let mut values = Values::default();
        let words = values.read(&[TABLE], order, &arguments);
        words
            .map(|words| (values, words))
            .map_err(|mistake| mistake.to_string())
    }

    #[test]
    fn one_dash_is_two_dashes_and_values_stand_after_a_sign_or_a_space() {
        for line in [
            "-debug -some-group=x -endpoint a status",
            "--debug=true --some-group x --endpoint=a status",
            "-debug=T -some-group=first -some-group=x -endpoint=a status",
        ] {
            let (values, words) = read(Order::FlagsFirst, line).unwrap();
            assert!(values.is_on("debug"), "{line}");
            assert_eq!(values.text("some-group"), Some("x"), "{line}");
            assert_eq!(values.list("endpoint"), ["a"], "{line}");
            assert_eq!(words, ["status"], "{line}");
        }
        let (values, _) = read(Order::FlagsFirst, "-some-group -debug").unwrap();
        assert_eq!(values.text("some-group"), Some("-debug"));
        assert!(!values.is_on("debug"));
        let (values, _) = read(Order::FlagsFirst, "-some-group= -debug=0").unwrap();
        assert_eq!(values.text("some-group"), Some(""));
        assert!(!values.is_on("debug"));
    }

    #[test]
    fn lists_grow_and_are_split() {
        let (values, _) = read(Order::FlagsFirst, "-endpoint=a,b -endpoint c").unwrap();
        assert_eq!(values.list("endpoint"), ["a", "b", "c"]);
    }

    #[test]
    fn flags_end_where_they_should() {
        for (order, line, expected) in [
            (Order::FlagsFirst, "", &[] as &[&str]),
            (Order::FlagsFirst, "-debug false x", &["false", "x"]),
            (Order::FlagsFirst, "set-max -1", &["set-max", "-1"]),
            (Order::FlagsFirst, "- -debug", &["-", "-debug"]),
            (Order::FlagsFirst, "-- -debug --", &["-debug", "--"]),
            (Order::Mixed, "a -debug b", &["a", "b"]),
            (Order::Mixed, "a -- -1", &["a", "-1"]),
        ] {
            assert_eq!(read(order, line).unwrap().1, expected, "{line}");
        }
    }

    #[test]
    fn mistakes_are_told_in_gos_words() {
        for (line, expected) in [
            ("-bogus", "flag provided but not defined: -bogus"),
            ("--bogus=1", "flag provided but not defined: -bogus"),
            ("-1", "flag provided but not defined: -1"),
            ("-some-group", "flag needs an argument: -some-group"),
            ("---x", "bad flag syntax: ---x"),
            ("-=x", "bad flag syntax: -=x"),
            (
                "-debug=xyz",
                "invalid boolean value \"xyz\" for -debug: parse error",
            ),
            ("-h", "flag: help requested"),
            ("--help", "flag: help requested"),
            ("-help=no", "flag: help requested"),
        ] {
            assert_eq!(read(Order::FlagsFirst, line).unwrap_err(), expected);
        }
    }

    #[test]
    fn the_environment_fills_what_the_command_line_left_open() {
        let variables = |name: &str| match name {
            "X_SOME_GROUP" => Some("env".to_owned()),
            "X_ENDPOINT" => Some("a, b".to_owned()),
            "X_DEBUG" => Some("notabool".to_owned()),
            _ => None,
        };
        let (mut values, _) = read(Order::FlagsFirst, "-some-group line").unwrap();
        values.fill(TABLE, "X", variables);
        assert_eq!(values.text("some-group"), Some("line"));
        assert_eq!(values.list("endpoint"), ["a", "b"]);
        assert!(!values.is_on("debug"));
        let mut values = Values::default();
        values.fill(TABLE, "X", |_| Some(String::new()));
        assert_eq!(values, Values::default());
    }

    #[test]
    fn the_dump_is_gos() {
        assert_eq!(
            dump(TABLE),
            "  -debug\n    \tSay more.\n\
             \x20 -endpoint value\n    \tWhere.\n\
             \x20 -some-group string\n    \tWhich. (default \"g\")\n"
        );
    }
}
