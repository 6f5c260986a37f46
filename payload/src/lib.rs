//! The CrAU version 1 update payload: read, verify and apply it.
//!
//! A payload is one file that turns the content of a partition (and of a kernel
//! file beside it) into a new one:
//!
//! ```text
//! | header 20 | manifest (protobuf) | data of the operations ... | signatures |
//!              what goes where       back to back, in order       over all before
//! ```
//!
//! - [`PayloadStream`] takes the bytes as they arrive and gives operations;
//!   [`PayloadStream::finish`] checks the signatures against a [`Trust`].
//! - [`Manifest`] is the validated table of contents.
//! - [`make`] makes payloads out of images and signs them.
//!
//! The crate knows nothing of devices, networks, slots or update servers.

pub mod error;
mod extent;
mod header;
pub mod make;
mod manifest;
mod operation;
pub mod pipeline;
mod resume;
mod stream;
mod trust;
mod wire;

pub use error::PayloadError;
pub use extent::Extent;
pub use manifest::{ImageInfo, Limits, Manifest, Part, Procedure, Target};
pub use operation::{Blob, Operation, OperationKind};
pub use resume::ResumePoint;
pub use stream::{Announced, Event, PayloadStream, PendingOperation, Verified};
pub use trust::{PublicKey, Trust};
