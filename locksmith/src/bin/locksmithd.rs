//! The daemon, by way of the command line that it shares with `locksmithctl`;
//! see [`locksmith::ctl`].

use std::process::ExitCode;

fn main() -> ExitCode {
    locksmith::ctl::main()
}
