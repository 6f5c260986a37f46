//! The reading side of the crate, through its public interface alone.

mod craft;
mod drive;
mod fixtures;
mod hostile;
mod image;
mod patch;
mod resume;
mod tampering;
mod trust;
mod vectors;
