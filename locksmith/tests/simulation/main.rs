//! Whole fleets in virtual time.
//!
//! Thousands of agents, the model of etcd, and a network between them run in one
//! thread; a seed decides everything, so a run that breaks a property breaks it
//! again. See [`checker`] for the properties, [`fleet`] for what goes wrong.
//!
//! What is not played here: suspend, summer time, compaction of watches (they are
//! hints, and hints get lost), and what happens inside etcd; its model is held
//! against a real one elsewhere.
//!
//! `LOCKSMITH_SIM_SEED=7 cargo test -p locksmith --test simulation replay -- --nocapture`
//! runs one seed again and prints what the machines involved did last
//! (`LOCKSMITH_SIM_MACHINES` sets their number).

#![allow(clippy::unwrap_used, reason = "all of this is test code")]

mod agenda;
mod checker;
mod controls;
mod crowd;
mod fleet;
mod ideal;
mod people;
mod runs;
mod world;
