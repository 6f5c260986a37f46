//! The D-Bus service and the command-line client, over a real `dbus-daemon` on
//! a private socket. The engine behind the service is played by the tests
//! through the seam that the real one uses.

#![allow(clippy::unwrap_used, reason = "all of this is test code")]

mod client;
mod dist;
mod service;
mod support;
