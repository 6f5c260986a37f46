//! The D-Bus service and the command-line client, over a real `dbus-daemon` on
//! a private socket. The engine behind the service is played by the tests
//! through the seam that the real one uses.

mod client;
mod dist;
mod service;
mod support;
