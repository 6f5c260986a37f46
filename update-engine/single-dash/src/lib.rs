//! Go and gflags style long options in front of clap.
//!
//! The programs that ours replace took `-status`, `-status=false`, `-nostatus`
//! and `-endpoint=URL` with one dash or two; clap reads one dash as a bundle of
//! short options. This crate rewrites the arguments before clap sees them, so
//! the command line is declared once, in clap, with plain `bool` flags:
//!
//! | typed | becomes |
//! |---|---|
//! | `-name`, `-name=v` | `--name`, `--name=v` |
//! | `-name=true`, `-name=1`, … for a flag | `--name`, once |
//! | `-noname`, `-name=false`, … for a flag | nothing, and earlier `--name` are taken back |
//! | `-na-me` where only `na_me` exists, or the reverse | the name that exists |
//! | `-word` that is nothing known | `--word`, so that clap complains about the whole word |
//! | `-v`, `-vv`, `-n5` with such a short option | untouched |
//! | everything after `--` | untouched |
//!
//! It knows nothing of what options mean; names and kinds come from the
//! [`clap::Command`], its subcommands included.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};

use clap::{ArgAction, Command, Parser};

/// Parses the arguments of this process; prints help or the mistake and exits
/// as [`clap::Parser::parse`] does.
#[must_use]
pub fn parse<P: Parser>() -> P {
    try_parse_from(std::env::args_os()).unwrap_or_else(|error| error.exit())
}

/// Parses `args`, of which the first is the name of the program.
///
/// # Errors
///
/// As [`clap::Parser::try_parse_from`]; help and version are errors too.
pub fn try_parse_from<P, I>(args: I) -> Result<P, clap::Error>
where
    P: Parser,
    I: IntoIterator,
    I::Item: Into<OsString>,
{
    P::try_parse_from(rewrite(P::command(), args))
}

/// Rewrites `args`, of which the first is the name of the program, into what
/// `command` understands.
#[must_use]
pub fn rewrite<I>(mut command: Command, args: I) -> Vec<OsString>
where
    I: IntoIterator,
    I::Item: Into<OsString>,
{
    command.build(); // adds --help and --version
    let options = Options::of(&command);
    let mut args = args.into_iter().map(Into::into);
    let mut out: Vec<OsString> = args.next().into_iter().collect();
    while let Some(arg) = args.next() {
        if arg == "--" {
            out.push(arg);
            out.extend(args);
            break;
        }
        match options.read(&arg) {
            Word::Other => out.push(arg),
            Word::Option(text) => out.push(text.into()),
            // The last one counts, and clap refuses a flag given twice.
            Word::Flag { name, on } => {
                let long = format!("--{name}");
                out.retain(|earlier| *earlier != *long);
                if on {
                    out.push(long.into());
                }
            }
        }
    }
    out
}

/// What the options of a command, and of all its subcommands, are called.
#[derive(Default)]
struct Options {
    /// Long name or alias to: the name proper of a flag, `None` for an option
    /// with a value or of another kind.
    long: HashMap<String, Option<String>>,
    short: HashSet<char>,
}

/// One argument as it is understood.
enum Word {
    Flag { name: String, on: bool },
    Option(String),
    Other,
}

impl Options {
    fn of(command: &Command) -> Self {
        let mut options = Self::default();
        options.collect(command);
        options
    }

    fn collect(&mut self, command: &Command) {
        for arg in command.get_arguments() {
            self.short
                .extend(arg.get_short_and_visible_aliases().into_iter().flatten());
            let Some(name) = arg.get_long() else { continue };
            let flag = matches!(arg.get_action(), ArgAction::SetTrue).then(|| name.to_owned());
            let aliases = arg.get_all_aliases().into_iter().flatten();
            for known in aliases.chain([name]) {
                // The same name with a value elsewhere: clap sorts it out.
                self.long
                    .entry(known.to_owned())
                    .and_modify(|kind| {
                        if *kind != flag {
                            *kind = None;
                        }
                    })
                    .or_insert_with(|| flag.clone());
            }
        }
        for subcommand in command.get_subcommands() {
            self.collect(subcommand);
        }
    }

    fn read(&self, arg: &OsStr) -> Word {
        // Not UTF-8 after the `=` at most; then it is not for us to touch.
        let Some(text) = arg.to_str() else {
            return Word::Other;
        };
        let (bare, dashes) = match (text.strip_prefix("--"), text.strip_prefix('-')) {
            (Some(bare), _) => (bare, 2),
            (None, Some(bare)) => (bare, 1),
            (None, None) => return Word::Other,
        };
        let (word, value) = match bare.split_once('=') {
            Some((word, value)) => (word, Some(value)),
            None => (bare, None),
        };
        if let Some((name, kind)) = self.find(word) {
            return match (kind, value.map_or(Some(true), boolean)) {
                (Some(flag), Some(on)) => Word::Flag {
                    name: flag.clone(),
                    on,
                },
                _ => Word::Option(spell(name, value)),
            };
        }
        if let (Some(rest), None) = (word.strip_prefix("no"), value)
            && let Some((_, Some(flag))) = self.find(rest)
        {
            return Word::Flag {
                name: flag.clone(),
                on: false,
            };
        }
        let mut letters = word.chars();
        match (letters.next(), letters.next()) {
            (Some(first), Some(_)) if dashes == 1 && self.may_be_long(first) => {
                Word::Option(spell(word, value))
            }
            _ => Word::Other,
        }
    }

    /// A known name spelled like `word` but for `-` and `_`, and its kind.
    fn find(&self, word: &str) -> Option<(&str, &Option<String>)> {
        [
            word.to_owned(),
            word.replace('-', "_"),
            word.replace('_', "-"),
        ]
        .iter()
        .find_map(|spelling| self.long.get_key_value(spelling))
        .map(|(name, kind)| (name.as_str(), kind))
    }

    /// Whether an unknown word that starts so cannot be short options or a
    /// negative number.
    fn may_be_long(&self, first: char) -> bool {
        first.is_alphabetic() && !self.short.contains(&first)
    }
}

fn spell(name: &str, value: Option<&str>) -> String {
    match value {
        Some(value) => format!("--{name}={value}"),
        None => format!("--{name}"),
    }
}

/// The words that gflags and Go take for a boolean.
fn boolean(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "t" | "yes" | "y" | "1" => Some(true),
        "false" | "f" | "no" | "n" | "0" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Args, CommandFactory, Subcommand};

    #[derive(Debug, Parser)]
    #[command(version)]
    struct Cli {
        #[arg(long = "check_for_update")]
        check_for_update: bool,
        #[arg(long)]
        status: bool,
        /// A flag whose own name starts with "no".
        #[arg(long)]
        notify: bool,
        #[arg(long, alias = "endpoints")]
        endpoint: Vec<String>,
        #[arg(long = "poll-seconds", allow_negative_numbers = true)]
        poll_seconds: Option<f64>,
        #[arg(short, long, action = ArgAction::Count)]
        verbose: u8,
        #[command(subcommand)]
        command: Option<Sub>,
    }

    #[derive(Debug, PartialEq, Subcommand)]
    enum Sub {
        Lock(Lock),
    }

    #[derive(Debug, PartialEq, Args)]
    struct Lock {
        #[arg(long)]
        group: Option<String>,
        id: Vec<String>,
    }

    fn rewritten(args: &str) -> String {
        let words = ["program"].into_iter().chain(args.split_whitespace());
        let out = rewrite(Cli::command(), words);
        out.iter()
            .skip(1)
            .map(|arg| arg.to_str().expect("all UTF-8"))
            .collect::<Vec<_>>()
            .join(" ")
    }

    fn parsed(args: &str) -> Result<Cli, clap::Error> {
        try_parse_from(["program"].into_iter().chain(args.split_whitespace()))
    }

    #[test]
    fn every_form_of_the_originals_becomes_two_dashes() {
        for (typed, becomes) in [
            ("", ""),
            ("-status", "--status"),
            ("--status", "--status"),
            ("-status=true", "--status"),
            ("-status=1", "--status"),
            ("--status=YES", "--status"),
            ("-status=false", ""),
            ("-nostatus", ""),
            ("--nostatus", ""),
            ("-status -nostatus", ""),
            ("-nostatus -status", "--status"),
            ("-status -status", "--status"),
            ("-check_for_update", "--check_for_update"),
            ("-check-for-update", "--check_for_update"),
            ("--check-for-update=0", ""),
            ("-nocheck_for_update", ""),
            ("-notify", "--notify"),
            ("-nonotify", ""),
            ("-poll_seconds=2", "--poll-seconds=2"),
            ("-endpoint=a=b -endpoint c", "--endpoint=a=b --endpoint c"),
            ("-endpoints=x", "--endpoints=x"),
            ("-help", "--help"),
            ("-version", "--version"),
            // Nothing to rewrite.
            ("-v -vv", "-v -vv"),
            ("-", "-"),
            ("plain words", "plain words"),
            ("--poll-seconds -1", "--poll-seconds -1"),
            ("lock -group=main id", "lock --group=main id"),
            ("lock -- -status -nostatus", "lock -- -status -nostatus"),
            ("-status -- --status", "--status -- --status"),
            // Mistakes stay mistakes, for clap to explain.
            ("-status=maybe", "--status=maybe"),
            ("-noendpoint", "--noendpoint"),
            ("-nostatus=true", "--nostatus=true"),
            ("-bogus", "--bogus"),
            ("-bogus=1", "--bogus=1"),
            ("-x", "-x"),
            ("-=", "-="),
        ] {
            assert_eq!(rewritten(typed), becomes, "for {typed:?}");
        }
    }

    #[test]
    fn clap_understands_the_result() {
        let cli = parsed("-status -endpoint=a -endpoint b -vv lock -group=main -- -id").unwrap();
        assert!(cli.status);
        assert_eq!(cli.endpoint, ["a", "b"]);
        assert_eq!(cli.verbose, 2);
        assert_eq!(
            cli.command,
            Some(Sub::Lock(Lock {
                group: Some("main".into()),
                id: vec!["-id".into()],
            }))
        );
        assert!(!parsed("-status=false").unwrap().status);
    }

    #[test]
    fn complaints_name_the_whole_word() {
        for (typed, named) in [
            ("-bogus", "'--bogus'"),
            ("-status=maybe", "'maybe'"),
            ("-noendpoint", "'--noendpoint'"),
        ] {
            let text = parsed(typed).unwrap_err().to_string();
            assert!(text.contains(named), "{typed}: {text}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn arguments_that_are_not_utf8_pass_untouched() {
        use std::os::unix::ffi::OsStringExt;
        let odd = OsString::from_vec(b"-endpoint=\xff".to_vec());
        let out = rewrite(Cli::command(), [OsString::from("program"), odd.clone()]);
        assert_eq!(out[1], odd);
    }
}
