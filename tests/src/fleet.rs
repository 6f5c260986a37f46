//! Machines that reboot together: real `locksmithd` processes, each on a real
//! bus of its own, and real etcd between them.
//!
//! What cannot be had on one computer is played: update_engine and logind
//! ([`neighbours`]) and the hardware that goes down and comes back
//! ([`machine`]). What the fleet did is read from etcd's own history
//! ([`history`]), by code that knows nothing of ours.

pub mod history;
pub mod machine;
pub mod neighbours;

pub use history::{History, Recorder, Rules};
pub use machine::FakeMachine;
pub use neighbours::{Neighbours, RebootAnswer};

/// The start of a `locksmith.toml` for the strategy `etcd-lock` without waits.
/// It ends in the table `[health]`, where `soak` is set already.
#[must_use]
pub fn quick_settings(endpoints: &[String]) -> String {
    format!(
        "strategy = \"etcd-lock\"\n\
         warn_users = \"0s\"\n\
         [etcd]\n\
         endpoints = {endpoints:?}\n\
         [health]\n\
         soak = \"0s\"\n"
    )
}
