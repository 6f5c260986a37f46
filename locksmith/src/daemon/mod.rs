//! `locksmithd`: performs what the [`crate::coordinator`] decides.
//!
//! | file | job |
//! |---|---|
//! | `start` | settings to a running daemon |
//! | `serve` | the FleetLock server |
//! | [`run`] | the loop: events in, actions out |
//! | [`machine`] | what the loop asks of the machine it runs on |
//! | `host` | that machine, for real |
//! | `membership` | being counted among the group's members |
//! | `log` | journal or stderr |

mod host;
mod log;
pub mod machine;
mod membership;
pub mod run;
mod serve;
mod start;

pub(crate) use host::remember_held;
pub use serve::{ServeArguments, serve_fleetlock};
pub use start::{Arguments, main};
