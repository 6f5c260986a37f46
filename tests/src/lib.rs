//! Tools for tests that cross crates: start the real programs on a private bus,
//! loopback and image files, and stop them again.
