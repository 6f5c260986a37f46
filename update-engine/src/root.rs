//! Where the machine's files are.

pub use gptprio::machine::Root;
