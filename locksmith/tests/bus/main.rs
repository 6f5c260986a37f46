//! What surrounds the coordinator on its machine: the neighbours on D-Bus, over
//! a real `dbus-daemon` on a private socket, and the disk it boots from, as an
//! image file. The neighbours are played by services of the tests.

#![allow(clippy::unwrap_used, reason = "all of this is test code")]

mod boot_facts;
mod dist;
mod login;
mod machine;
mod reboot;
mod support;
mod systemd;
mod updater;
