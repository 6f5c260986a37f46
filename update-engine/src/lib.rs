//! The update daemon: check, install, verify, flip, report.

pub mod bus;
pub mod status;
