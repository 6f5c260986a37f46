//! The update daemon: check, install, verify, flip, report.

pub mod bus;
pub mod client;
pub mod config;
pub mod health;
pub mod platform;
pub mod postinst;
pub mod prefs;
pub mod root;
pub mod status;
