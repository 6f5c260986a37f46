//! Tools for tests that cross crates: the real programs on a private bus,
//! loopback HTTP and image files, started and stopped by the test itself.
//!
//! Nothing here needs root or reaches beyond loopback. Where a second opinion
//! that a bug cannot hide on both sides of a comparison.
//!
//! | module | what it stands for |
//! |---|---|
//! | [`programs`] | the programs under test, built and found |
//! | [`process`] | a running program; ends with the test |
//! | [`deadline`] | waiting for something, with a limit and a reason |
//! | [`bus`] | a message bus of the test's own |
//! | [`omaha`] | what an update server says, and hears |
//! | [`fault_server`] | an HTTP server that can misbehave |

pub mod bus;
pub mod deadline;
pub mod fault_server;
pub mod omaha;
pub mod process;
pub mod programs;
