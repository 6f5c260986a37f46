//! Transcripts of sessions:
//!
//! ```text
//! # a remark
//! $ locksmithctl lock a
//! $ locksmithctl lock b
//! 2> Error locking: semaphore is at 0
//! [1]
//! ```
//!
//! Lines of stdout stand as they are, those of stderr after `2> `, an exit code
//! other than 0 in brackets. A dot `·` stands for a blank at the end of a line,
//! and for an empty line of output. A session is played again and must come out as it
//! is written, but for words that differ between machines.

use std::path::Path;
use std::process::{Command, Output};

/// A session with some surroundings.
pub(crate) struct Session {
    variables: Vec<(String, String)>,
    words: Vec<(String, &'static str)>,
}

impl Session {
    /// A session with nothing but the program.
    pub(crate) fn new() -> Self {
        Self {
            variables: Vec::new(),
            words: Vec::new(),
        }
    }

    /// Sets a variable of the environment.
    pub(crate) fn variable(mut self, name: &str, value: impl Into<String>) -> Self {
        self.variables.push((name.to_owned(), value.into()));
        self
    }

    /// Text that is written as `placeholder` in the transcript; commands may use
    /// it too.
    pub(crate) fn word(mut self, text: impl Into<String>, placeholder: &'static str) -> Self {
        self.words.push((text.into(), placeholder));
        self
    }

    /// The program, ready to run.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_locksmithctl"));
        command.args(arguments).env_clear();
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs the program to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs the program, which must succeed, and returns its stdout.
    pub(crate) fn stdout(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Plays the transcript in `file`, which lies beside this one.
    pub(crate) fn play(&self, file: &str) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/ctl/transcripts")
            .join(file);
        let written = std::fs::read_to_string(&path).unwrap();
        let mut played = String::new();
        for line in written.lines() {
            if line.starts_with('#') || line.is_empty() {
                played += line;
                played.push('\n');
            }
            let Some(typed) = line.strip_prefix("$ ") else {
                continue;
            };
            played += line;
            played.push('\n');
            played += &self.answer(typed);
        }
        assert!(
            played == written,
            "{} came out as\n{played}",
            path.display()
        );
    }

    fn answer(&self, typed: &str) -> String {
        let mut typed = typed.to_owned();
        for (text, placeholder) in &self.words {
            typed = typed.replace(placeholder, text);
        }
        let words = split(&typed);
        let (first, arguments) = words.split_first().unwrap();
        assert_eq!(first, "locksmithctl");
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        let output = self.run(&arguments);
        let mut out = String::new();
        for (prefix, bytes) in [("", output.stdout), ("2> ", output.stderr)] {
            let text = String::from_utf8(bytes).unwrap();
            assert!(
                text.is_empty() || text.ends_with('\n'),
                "{typed}: the last line of {text:?} is open"
            );
            for line in text.lines() {
                let line = format!("{prefix}{line}");
                let line = match line.strip_suffix(' ') {
                    Some(rest) => format!("{rest}·"),
                    None if line.is_empty() => "·".to_owned(),
                    None => line,
                };
                out += &line;
                out.push('\n');
            }
        }
        match output.status.code() {
            Some(0) => {}
            Some(code) => out += &format!("[{code}]\n"),
            None => panic!("{typed}: {}", output.status),
        }
        for (text, placeholder) in &self.words {
            out = out.replace(text, placeholder);
        }
        out
    }
}

/// Words as a shell splits them, with single quotes and nothing else.
fn split(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = None::<String>;
    for (index, part) in line.split('\'').enumerate() {
        if index % 2 == 1 {
            word.get_or_insert_default().push_str(part);
            continue;
        }
        for letter in part.chars() {
            if letter == ' ' {
                words.extend(word.take());
            } else {
                word.get_or_insert_default().push(letter);
            }
        }
    }
    words.extend(word);
    words
}

#[test]
fn words_are_split_as_in_a_shell() {
    assert_eq!(
        split("a  'b c' '' d'e'"),
        ["a", "b c", "", "de"].map(str::to_owned)
    );
}
