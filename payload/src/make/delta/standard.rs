//! A window as an operation that other readers of the format know: patched by
//! bsdiff, or compressed by xz.

use std::io::{self, Write};

use qbsdiff::Bsdiff;
use sha2::{Digest, Sha256};

use crate::extent::size;
use crate::make::{Blocks, PreparedKind, PreparedSource};

/// Whichever of the two is smaller. `source` holds the bytes of `blocks`.
pub(super) fn operation(
    result: Vec<u8>,
    source: &[u8],
    blocks: Vec<Blocks>,
) -> io::Result<(PreparedKind, Vec<u8>)> {
    let packed = xz(&result)?;
    if !source.is_empty() {
        let mut patch = Vec::new();
        Bsdiff::new(source, &result).compare(io::Cursor::new(&mut patch))?;
        if patch.len() < packed.len() {
            let sha256 = Sha256::digest(source).into();
            let length = size(result.len());
            let source = PreparedSource { blocks, sha256 };
            return Ok((PreparedKind::SourceBsdiff { source, length }, patch));
        }
    }
    if packed.len() < result.len() {
        Ok((PreparedKind::ReplaceXz, packed))
    } else {
        Ok((PreparedKind::Replace, result))
    }
}

/// CRC32 is the strongest check that Android's readers know.
fn xz(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let stream = liblzma::stream::Stream::new_easy_encoder(6, liblzma::stream::Check::Crc32)
        .map_err(io::Error::other)?;
    let mut encoder = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
    encoder.write_all(bytes)?;
    encoder.finish()
}
