//! The subcommands, one file each, and how a person finds them.

mod apply;
mod attach;
mod encoders;
mod generate;
mod hash;
mod keygen;
mod named;
mod show;
mod sign;
mod verify;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Make, sign, inspect, verify and apply update payloads.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "\
Examples:
  payload keygen --out release.pem
  payload generate --new usr.img --kernel vmlinuz --private-key release.pem --out update.payload
  payload generate --old usr-1.img --new usr-2.img --private-key release.pem --out delta.payload
  payload show update.payload
  payload verify --public-key release.pub.pem update.payload
  payload apply --public-key release.pub.pem --target copy.img update.payload

Exit status: 0 done, 1 refused or failed (the reason is on stderr), 2 usage.
`payload help COMMAND` tells more about each command."
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Generate(Box<generate::Generate>),
    Sign(sign::Sign),
    Hash(hash::Hash),
    Attach(attach::Attach),
    Verify(verify::Verify),
    Apply(apply::Apply),
    Show(show::Show),
    Encoders(encoders::Encoders),
    Keygen(keygen::Keygen),
}

impl Arguments {
    /// Runs the chosen command.
    pub(crate) fn run(self) -> Result<()> {
        match self.command {
            Command::Generate(command) => command.run(),
            Command::Sign(command) => command.run(),
            Command::Hash(command) => command.run(),
            Command::Attach(command) => command.run(),
            Command::Verify(command) => command.run(),
            Command::Apply(command) => command.run(),
            Command::Show(command) => command.run(),
            Command::Encoders(command) => command.run(),
            Command::Keygen(command) => command.run(),
        }
    }
}
