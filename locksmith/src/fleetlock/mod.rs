//! The FleetLock protocol, version 1, both sides: a machine asks a server over
//! HTTP whether it may reboot, and tells it when it is back.
//!
//! The [`client`] is for the strategy `fleetlock`. The [`server`] lets machines
//! that speak only this protocol (Fedora CoreOS's Zincati) take places in the
//! same semaphore as the agents.

pub mod client;
mod identity;
mod lock;
pub mod protocol;
pub mod server;

pub use identity::{NoClientId, client_id};
