//! The `payload` command: make, sign, inspect, verify and apply update payloads.
//!
//! Exit status: 0 done, 1 refused or failed with the reason on stderr, 2 usage.
//! stdout carries data only; talk and progress bars go to stderr.

mod command;
mod files;
mod keys;
mod talk;

use std::io;
use std::process::ExitCode;

use clap::Parser;

use command::Arguments;

fn main() -> ExitCode {
    match Arguments::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has seen enough of it.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            talk::say(format_args!("payload: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
