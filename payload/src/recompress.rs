//! Compressed blocks of filesystem images: decoded, and encoded again to the very
//! bytes they were.
//!
//! - [`Codec`] decodes a block, within a limit.
//! - [`Method`] is how a block may have been encoded; with the version of a library
//!   it is an [`EncoderSpec`], which has a text form for manifests.
//! - [`Encoders`] are the libraries at hand: those this program carries, and those of
//!   the system it runs on. [`Encoders::prove`] finds the one that made a block.
//!
//! What a compressor writes depends on its version, so nothing here is believed
//! before it was tried: an encoder is only good for a block that it reproduced bit
//! for bit.

mod codec;
mod encoders;
mod spec;

pub use codec::Codec;
pub use encoders::{Encoder, Encoders, MissingEncoder, Sample};
pub use spec::{EncoderSpec, Library, MOST_DICTIONARY, Method, SpecError};

/// Why a block was not decoded or encoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// The bytes are not what the codec writes.
    #[error("decode {codec} block of {length} bytes")]
    Decode {
        /// The codec.
        codec: Codec,
        /// Stored length in bytes.
        length: usize,
        /// What its library says.
        source: std::io::Error,
    },
    /// The block holds more than the limit.
    #[error("decode {codec} block of {length} bytes: it holds more than {limit} bytes")]
    TooLong {
        /// The codec.
        codec: Codec,
        /// Stored length in bytes.
        length: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The encoder failed.
    #[error("encode {length} bytes by {spec}")]
    Encode {
        /// The encoder.
        spec: EncoderSpec,
        /// Plain length in bytes.
        length: usize,
        /// What its library says.
        source: std::io::Error,
    },
}
