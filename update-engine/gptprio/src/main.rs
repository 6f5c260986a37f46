//! The `gptprio` command: shows and changes which slot of a disk boots next.

mod command;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let Err(error) = command::run(&command::Arguments::parse()) else {
        return ExitCode::SUCCESS;
    };
    anstream::eprintln!("gptprio: {error:#}");
    if let Some(advice) = command::advice(&error) {
        anstream::eprintln!("gptprio: {advice}");
    }
    match error.is::<command::MissingPartition>() {
        true => ExitCode::from(2),
        false => ExitCode::FAILURE,
    }
}
