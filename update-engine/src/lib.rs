//! The update daemon: check, install, verify, flip, report.
//!
//! Pure parts decide ([`machine`], [`policy`], [`plan`], [`omaha`], [`retry`]); the
//! shell performs ([`engine`], [`install`], [`net`], [`bus`], [`boot`], [`prefs`],
//! [`platform`]). The crate knows neither etcd nor rollouts: when to reboot is
//! locksmith's business, which machine gets what is the server's.

pub mod boot;
pub mod bus;
pub mod client;
pub mod config;
pub mod deltas;
pub mod engine;
pub mod error;
pub mod glog;
pub mod health;
pub mod install;
pub mod machine;
pub mod net;
pub mod omaha;
pub mod plan;
pub mod platform;
pub mod policy;
pub mod postinst;
pub mod prefs;
pub mod retry;
pub mod root;
pub mod status;
mod whole_file;
