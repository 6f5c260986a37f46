//! The CrAU update payload, versions 1 and 2: make, read, verify and apply it.
//!
//! A payload is one file that turns the content of a partition (and of a kernel
//! file beside it) into a new one:
//!
//! ```text
//! | header | manifest (protobuf) | signature  | data of the operations ... | signatures |
//!           what goes where       version 2:   back to back, in order       over all but
//!                                 over those                                the signature
//! ```
//!
//! - [`PayloadStream`] takes the bytes as they arrive and gives operations;
//!   [`PayloadStream::finish`] checks the signatures against a [`Trust`].
//! - [`Manifest`] is the validated table of contents.
//! - [`make`] makes payloads out of images and signs them.
//! - [`filesystem`] finds the compressed blocks of an image, [`recompress`] decodes
//!   them and makes them again bit for bit.
//! - [`decode`] and [`apply`] run one operation on an [`Image`]; a [`HashTree`] is
//!   built after the last.
//! - [`verify_payload`] and [`apply_payload`] do all of it for a payload in a file.
//!
//! The crate knows nothing of devices, networks, slots or update servers.

mod apply;
mod bspatch;
mod delta;
pub mod error;
mod extent;
mod file;
pub mod filesystem;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzz;
mod header;
mod image;
pub mod make;
mod manifest;
mod operation;
pub mod pipeline;
pub mod recompress;
mod release;
mod resume;
mod shape;
mod span;
mod stream;
mod trust;
mod verity;
mod wire;

pub use apply::{Decoded, apply, decode, memory_needed};
pub use error::PayloadError;
pub use extent::Extent;
pub use file::{Sources, Targets, apply_payload, verify_payload};
pub use header::Format;
pub use image::Image;
pub use manifest::{ImageInfo, Limits, Manifest, Part, Procedure, Target};
pub use operation::{Blob, OldBytes, Operation, OperationKind, Window};
pub use release::Release;
pub use resume::ResumePoint;
pub use stream::{Announced, Event, PayloadStream, PendingOperation, Verified};
pub use trust::{PublicKey, Trust, signature_entries};
pub use verity::HashTree;
