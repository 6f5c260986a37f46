//! The compressed forms of full operations: one stream of bzip2, xz or Zstandard,
//! nothing behind it, decoded piece by piece.

use std::io::Read;

use bzip2::bufread::BzDecoder;
use liblzma::bufread::XzDecoder;
use liblzma::stream::Stream;

use super::TOO_LONG;
use crate::error::PayloadError;
use crate::image::CHUNK;
use crate::operation::Operation;

#[derive(Clone, Copy, Debug)]
pub(super) enum Compression {
    Bzip2,
    Xz,
    Zstd,
}

/// Memory that an xz stream may ask for: enough for the largest preset, `xz -9`.
const XZ_MEMORY: u64 = 80 << 20;
/// Largest window of a Zstandard frame, as a power of two: 8 MiB, twice our chunks.
const ZSTD_WINDOW_LOG: u32 = 23;

/// Decompresses into `write`, which returns `false` when it is full.
pub(super) fn decompress(
    operation: &Operation,
    compression: Compression,
    data: &[u8],
    write: &mut dyn FnMut(&[u8]) -> Result<bool, PayloadError>,
) -> Result<(), PayloadError> {
    let rest = match compression {
        Compression::Bzip2 => {
            let mut decoder = BzDecoder::new(data);
            drain(operation, &mut decoder, write)?;
            decoder.into_inner()
        }
        Compression::Xz => {
            let stream = Stream::new_stream_decoder(XZ_MEMORY, 0)
                .map_err(|error| operation.failed(error))?;
            let mut decoder = XzDecoder::new_stream(data, stream);
            drain(operation, &mut decoder, write)?;
            decoder.into_inner()
        }
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(data)
                .map_err(|error| operation.failed(error))?
                .single_frame();
            decoder
                .window_log_max(ZSTD_WINDOW_LOG)
                .map_err(|error| operation.failed(error))?;
            drain(operation, &mut decoder, write)?;
            decoder.finish()
        }
    };
    if rest.is_empty() {
        Ok(())
    } else {
        let name = match compression {
            Compression::Bzip2 => "bzip2",
            Compression::Xz => "xz",
            Compression::Zstd => "Zstandard",
        };
        Err(operation.failed(format!("bytes follow the {name} stream")))
    }
}

fn drain(
    operation: &Operation,
    decoder: &mut impl Read,
    write: &mut dyn FnMut(&[u8]) -> Result<bool, PayloadError>,
) -> Result<(), PayloadError> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let length = decoder
            .read(&mut buffer)
            .map_err(|error| operation.failed(error))?;
        if length == 0 {
            return Ok(());
        }
        if !write(&buffer[..length])? {
            return Err(operation.failed(TOO_LONG));
        }
    }
}
