//! The `gptprio` command.
fn main() {}
