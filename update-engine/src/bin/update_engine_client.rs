//! The command line of the update daemon; see [`update_engine::client`].

use std::process::ExitCode;

use update_engine::client::{self, Cli};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    client::run(&single_dash::parse::<Cli>()).await
}
