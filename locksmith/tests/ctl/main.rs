//! `locksmithctl` as scripts and people see it: the real program against a file,
//! and against a real etcd through both of its interfaces. What it prints is
//! compared with transcripts, byte for byte.

#![allow(clippy::unwrap_used, reason = "all of this is test code")]

#[expect(dead_code, reason = "the tests of the bus use the rest of it")]
#[path = "../bus/support.rs"]
mod bus;
mod server;
mod transcript;

mod crowd;
mod etcd;
mod gate;
mod golden;
mod machine;
mod output;
mod watch;
