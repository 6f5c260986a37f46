//! The `payload` command as a person or script uses it: files in, files out, exit
//! status, stdout and stderr. Needs `openssl` and `veritysetup`.

// Helpers of tests may give up as tests do.
#![allow(clippy::unwrap_used)]

mod apply;
mod generate;
mod sign;
mod status;
mod verity;
mod version2;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

/// A folder to work in, gone at the end.
struct Bench(TempDir);

/// What a command left behind.
#[derive(Debug)]
struct Outcome {
    status: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Bench {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name), bytes).unwrap();
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    fn exists(&self, name: &str) -> bool {
        self.path(name).exists()
    }

    /// Names of all files, sorted.
    fn files(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.0.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// `payload` with these arguments, separated by spaces, in this folder.
    /// `KEYS` stands for the folder of test keys.
    fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_payload"));
        self.arguments(&mut command, arguments);
        command
    }

    fn payload(&self, arguments: &str) -> Outcome {
        outcome(&mut self.command(arguments))
    }

    /// Runs `payload`, which must succeed, and returns its stdout.
    fn good(&self, arguments: &str) -> String {
        let outcome = self.payload(arguments);
        assert_eq!(outcome.status, Some(0), "payload {arguments}: {outcome:?}");
        outcome.stdout
    }

    /// Runs `payload`, which must refuse with status 1, and returns its stderr.
    fn refused(&self, arguments: &str) -> String {
        let outcome = self.payload(arguments);
        assert_eq!(outcome.status, Some(1), "payload {arguments}: {outcome:?}");
        assert_eq!(outcome.stdout, "", "payload {arguments}");
        outcome.stderr
    }

    fn openssl(&self, arguments: &str) -> Outcome {
        self.run("openssl", arguments)
    }

    /// Another program, in the same way.
    fn run(&self, program: &str, arguments: &str) -> Outcome {
        let mut command = Command::new(program);
        self.arguments(&mut command, arguments);
        outcome(&mut command)
    }

    fn arguments(&self, command: &mut Command, arguments: &str) {
        let keys = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/keys");
        let keys = keys.to_str().unwrap();
        command
            .current_dir(self.0.path())
            .args(arguments.split(' ').map(|word| word.replace("KEYS", keys)));
    }
}

fn outcome(command: &mut Command) -> Outcome {
    let output = command.stdin(Stdio::null()).output().unwrap();
    Outcome {
        status: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Bytes that no compressor shrinks, the same for the same seed.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .flatten()
    .take(len)
    .collect()
}
