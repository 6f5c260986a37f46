//! The `gptprio` command: shows and changes which slot of a disk boots next.

mod command;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let name = std::env::args_os().next().unwrap_or_default();
    if command::cgpt::is_name(&name) {
        return as_cgpt();
    }
    let Err(error) = command::run(&command::Arguments::parse()) else {
        return ExitCode::SUCCESS;
    };
    explain("gptprio", &error);
    match error.is::<command::MissingPartition>() {
        true => ExitCode::from(2),
        false => ExitCode::FAILURE,
    }
}

/// Every mistake is a failure to cgpt, those of usage too.
fn as_cgpt() -> ExitCode {
    let arguments = match command::cgpt::Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // With nobody to tell there is nothing to tell.
            let _ = error.print();
            return match error.use_stderr() {
                true => ExitCode::FAILURE,
                false => ExitCode::SUCCESS,
            };
        }
    };
    let Err(error) = command::cgpt::run(arguments) else {
        return ExitCode::SUCCESS;
    };
    explain("cgpt", &error);
    ExitCode::FAILURE
}

fn explain(name: &str, error: &anyhow::Error) {
    anstream::eprintln!("{name}: {error:#}");
    if let Some(advice) = command::advice(error) {
        anstream::eprintln!("{name}: {advice}");
    }
}
