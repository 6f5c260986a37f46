//! An update server for machines that speak Omaha v3, out of a folder of payloads.
//!
//! ```text
//!  folder ─ scan ─▶ Catalogue ─┐
//!                              ├─ decide ─▶ offer | hold ─▶ answer ─▶ Response
//!  request ─ omaha-protocol ───┘
//!  GET /p/<sha256>/<name> ─ range ─▶ bytes of the very file that was hashed
//! ```
//!
//! | module | what it does | |
//! |---|---|---|
//! | [`catalogue`] | what there is to offer | pure |
//! | [`labels`] | which version, track and board a file is for, from its surroundings | pure |
//! | [`decide`] | which payload a machine gets, and why not | pure |
//! | [`answer`] | a request and its decisions → the response | pure |
//! | [`range`] | which bytes of a file a client asks for | pure |
//! | [`memory`] | how many connections the memory is enough for | reads what the system says |
//! | [`scan`] | folder → catalogue | reads files |
//! | [`server`] | HTTP, rescans, shutdown | network |
//!
//! The server knows nothing of boot slots and of what a machine does with an
//! offer. It never answers a refusal with an error: stock clients would report
//! that back as a failed update.

pub mod answer;
pub mod catalogue;
pub mod decide;
mod error;
mod files;
mod journal;
pub mod labels;
pub mod memory;
pub mod range;
pub mod scan;
pub mod server;

pub use error::ServerError;
