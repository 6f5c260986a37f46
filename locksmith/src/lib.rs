//! locksmith: the reboot coordinator of a fleet.
//!
//! `locksmithd` waits until `update_engine` has applied an update, takes a place
//! in a semaphore that the fleet shares through etcd, and then reboots the
//! machine by the configured strategy. `locksmithctl` shows and steers the
//! semaphore.
//!
//! This crate knows nothing of payloads or Omaha: all it asks of the updater is
//! the status on D-Bus.
//!
//! | module | job | |
//! |---|---|---|
//! | [`semaphore`] | places, queue, failures, halt: a snapshot and a request become one transaction | pure |
//! | [`coordinator`] | the life of one agent: `step(state, event, moment)` | pure |
//! | [`window`] | when a machine may reboot | pure |
//! | [`strategy`] | the words of `REBOOT_STRATEGY` | pure |
//! | [`config`] | files, environment and flags to settings | parsers are pure |
//! | [`store`] | where the semaphore lives: etcd v3, etcd v2, a file, memory | shell |
//! | [`bus`] | update_engine and logind on D-Bus | shell |
//! | [`reboot`] | firmware, kexec, soft reboot | shell |
//! | [`boot_facts`] | what this boot is | shell |
//! | [`coordinator_conf`] | the coordinator file | shell |
//! | [`hooks`] | programs before and after a reboot | shell |
//! | [`fleetlock`] | the FleetLock protocol, both sides | shell |
//! | [`metrics`] | counters and gauges for Prometheus | shell |
//! | [`daemon`] | `locksmithd`: performs what the coordinator decides | shell |
//! | [`ctl`] | `locksmithctl` | shell |

pub mod boot_facts;
pub mod bus;
pub mod config;
pub mod coordinator;
pub mod coordinator_conf;
pub mod ctl;
pub mod daemon;
pub mod fleetlock;
pub mod group;
pub mod hooks;
pub mod machine_id;
pub mod metrics;
pub mod reboot;
pub mod semaphore;
pub mod store;
pub mod strategy;
pub mod window;
mod words;
