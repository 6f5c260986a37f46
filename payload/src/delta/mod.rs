//! The codec of our own delta operations. Not there yet: every patch is refused.

use crate::error::Cause;

/// Makes the `length` bytes that the `blob` of a DELTA describes out of `source`.
///
/// # Errors
/// What is wrong with the blob.
pub(crate) fn patch(_blob: &[u8], _source: &[u8], _length: usize) -> Result<Vec<u8>, Cause> {
    Err("this program cannot apply DELTA operations".into())
}

/// Makes the `length` bytes that the `blob` of a RECOMPRESS describes out of
/// `source`; the blob names `encoders` by their position.
///
/// # Errors
/// What is wrong with the blob, or which encoder is not there.
pub(crate) fn recompress(
    _blob: &[u8],
    _source: &[u8],
    _length: usize,
    _encoders: &[String],
) -> Result<Vec<u8>, Cause> {
    Err("this program cannot apply RECOMPRESS operations".into())
}
