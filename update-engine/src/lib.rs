//! The update daemon: check, install, verify, flip, report.

pub mod bus;
pub mod client;
pub mod config;
pub mod prefs;
pub mod root;
pub mod status;
