//! The reading side of the crate, through its public interface alone.

#![allow(
    clippy::unwrap_used,
    clippy::needless_pass_by_value,
    reason = "all of this is a test"
)]

mod craft;
mod craft_v2;
mod drive;
mod fixtures;
mod hostile;
mod image;
mod operations;
mod patch;
mod resume;
mod tampering;
mod trust;
mod vectors;
mod verity;
mod version2;
