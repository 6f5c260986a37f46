//! locksmith: the reboot coordinator of a fleet.
//!
//! `locksmithd` waits until `update_engine` has applied an update, takes a place
//! in a semaphore that the fleet shares through etcd, and then reboots the
//! machine by the configured strategy. `locksmithctl` shows and steers the
//! semaphore.
//!
//! This crate knows nothing of payloads or Omaha: all it asks of the updater is
//! the status on D-Bus. Decisions (`semaphore`, `window`, `strategy`,
//! `coordinator`) are to be pure functions; etcd, D-Bus and the reboot call stand
//! behind traits.
