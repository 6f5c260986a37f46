//! The command line of the reboot lock, and under the name `locksmithd` the
//! daemon; see [`locksmith::ctl`].

use std::process::ExitCode;

fn main() -> ExitCode {
    locksmith::ctl::main()
}
