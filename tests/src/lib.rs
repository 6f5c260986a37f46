//! Tools for tests that cross crates: the real programs on a private bus,
//! loopback HTTP and image files, started and stopped by the test itself.
//!
//! Nothing here needs root or reaches beyond loopback. Where a second opinion
//! exists (`sgdisk`, `cgpt`), it is asked instead of our own code, so that a bug
//! cannot hide on both sides of a comparison.
//!
//! | module | what it stands for |
//! |---|---|
//! | [`programs`] | the programs under test, built and found |
//! | [`process`] | a running program; ends with the test |
//! | [`deadline`] | waiting for something, with a limit and a reason |
//! | [`bus`] | a message bus of the test's own |
//! | [`etcd`] | etcd nodes of the test's own, with faults |
//! | [`disk`] | a disk with two slots, in a file |
//! | [`release`] | a new version: image, kernel, signed payload |
//! | [`service_manager`] | systemd and logind of a machine |
//! | [`omaha`] | what an update server says, and hears |
//! | [`fault_server`] | an HTTP server that can misbehave |
//! | [`update_server`] | it, offering a release |
//! | [`machine`] | all of it together: one updatable machine |
//! | [`fleet`] | machines that reboot together |

pub mod bus;
pub mod deadline;
pub mod disk;
pub mod etcd;
pub mod fault_server;
pub mod fleet;
pub mod machine;
pub mod omaha;
pub mod process;
pub mod programs;
pub mod release;
pub mod service_manager;
pub mod update_server;
