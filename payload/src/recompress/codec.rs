//! Decoding of single blocks, none of which is trusted.

use std::cell::RefCell;
use std::fmt;
use std::io;

use codec_libraries::{Lz4, xz};
use flate2::{Decompress, FlushDecompress, Status};
use zstd_safe::{DCtx, get_error_name};

use super::{CodecError, MOST_DICTIONARY};

/// How a block decodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Codec {
    /// One zlib stream (RFC 1950).
    Zlib,
    /// One .xz file.
    Xz,
    /// One frame of zstd (RFC 8878).
    Zstd,
    /// One block of lz4, without a frame.
    Lz4,
    /// One stream of MicroLZMA, liblzma's format for erofs, of a dictionary that is no
    /// larger than [`MOST_DICTIONARY`]. It does not tell how much it holds, so its limit
    /// must be the very length.
    MicroLzma,
}

impl Codec {
    /// All of them, in the order of their codes in payloads.
    pub const ALL: [Self; 5] = [
        Codec::Zlib,
        Codec::Xz,
        Codec::Zstd,
        Codec::Lz4,
        Codec::MicroLzma,
    ];
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Codec::Zlib => "zlib",
            Codec::Xz => "xz",
            Codec::Zstd => "zstd",
            Codec::Lz4 => "lz4",
            Codec::MicroLzma => "microlzma",
        })
    }
}

/// What an xz decoder may use: the dictionary of a block of 1 MiB, and its own state.
const XZ_MEMORY: u64 = 16 << 20;

impl Codec {
    /// Decodes `block`, all of it, which holds at most `limit` bytes. Memory for
    /// `limit` bytes is taken whatever the block holds.
    ///
    /// # Errors
    /// [`CodecError::Decode`] and [`CodecError::TooLong`].
    pub fn decode(self, block: &[u8], limit: usize) -> Result<Vec<u8>, CodecError> {
        let result = match self {
            Codec::Zlib => zlib(block, limit),
            Codec::Xz => xz_file(block, limit),
            Codec::Zstd => zstd(block, limit),
            // The library does not tell too long from wrong.
            Codec::Lz4 => Lz4::carried().decompress(block, limit).map(Some),
            Codec::MicroLzma => xz::decompress_microlzma(block, limit, MOST_DICTIONARY).map(Some),
        };
        match result {
            Ok(Some(plain)) => Ok(plain),
            Ok(None) => Err(CodecError::TooLong {
                codec: self,
                length: block.len(),
                limit,
            }),
            Err(source) => Err(CodecError::Decode {
                codec: self,
                length: block.len(),
                source,
            }),
        }
    }
}

/// The plain bytes, or none when they are too many.
type Decoded = io::Result<Option<Vec<u8>>>;

fn zlib(block: &[u8], limit: usize) -> Decoded {
    let mut decoder = Decompress::new(true);
    let mut plain = Vec::with_capacity(limit);
    match decoder.decompress_vec(block, &mut plain, FlushDecompress::Finish)? {
        Status::StreamEnd if used(decoder.total_in(), block) => Ok(Some(plain)),
        Status::StreamEnd => Err(wrong("bytes follow the stream")),
        _ if used(decoder.total_in(), block) => Err(wrong("the stream ends early")),
        _ => Ok(None),
    }
}

fn xz_file(block: &[u8], limit: usize) -> Decoded {
    use liblzma::stream::{Action, Status, Stream};

    let mut decoder = Stream::new_stream_decoder(XZ_MEMORY, 0)?;
    let mut plain = Vec::with_capacity(limit);
    loop {
        let before = (decoder.total_in(), decoder.total_out());
        let rest = usize::try_from(before.0)
            .ok()
            .and_then(|done| block.get(done..));
        let status = decoder.process_vec(rest.unwrap_or(&[]), &mut plain, Action::Finish)?;
        if status == Status::StreamEnd {
            return if used(decoder.total_in(), block) {
                Ok(Some(plain))
            } else {
                Err(wrong("bytes follow the stream"))
            };
        }
        if before == (decoder.total_in(), decoder.total_out()) {
            return if plain.len() >= limit {
                Ok(None)
            } else {
                Err(wrong("the stream ends early"))
            };
        }
    }
}

/// `ZSTD_error_dstSize_tooSmall` of <zstd_errors.h>, which the binding has no name
/// for; errors are returned as negative sizes.
const ZSTD_TOO_SMALL: usize = 0_usize.wrapping_sub(70);

fn zstd(block: &[u8], limit: usize) -> Decoded {
    thread_local! {
        static CONTEXT: RefCell<DCtx<'static>> = RefCell::new(DCtx::create());
    }
    let mut plain = Vec::with_capacity(limit);
    let result = CONTEXT.with_borrow_mut(|context| context.decompress(&mut plain, block));
    match result {
        Ok(_) => Ok(Some(plain)),
        Err(ZSTD_TOO_SMALL) => Ok(None),
        Err(code) => Err(wrong(get_error_name(code))),
    }
}

fn used(total: u64, block: &[u8]) -> bool {
    usize::try_from(total) == Ok(block.len())
}

fn wrong(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recompress::{Encoders, Method};

    const METHODS: [(Codec, Method); 6] = [
        (
            Codec::Zlib,
            Method::Zlib {
                level: 9,
                window: 15,
            },
        ),
        (
            Codec::Zstd,
            Method::Zstd {
                level: 19,
                window: None,
                pieces: None,
            },
        ),
        (Codec::Lz4, Method::Lz4 { level: None }),
        (Codec::Lz4, Method::Lz4 { level: Some(12) }),
        (Codec::Xz, Method::Xz { dictionary: 8192 }),
        (
            Codec::MicroLzma,
            Method::MicroLzma {
                level: 6,
                dictionary: 1 << 16,
                capacity: 1 << 19,
                ahead: 0,
            },
        ),
    ];

    #[test]
    fn every_codec_keeps_to_its_limit_and_refuses_what_is_cut_or_followed() {
        let plain: Vec<u8> = (0..100_000_u32)
            .flat_map(|i| (i / 7).to_le_bytes())
            .collect();
        for (codec, method) in METHODS {
            let encoders = Encoders::carried();
            let spec = &encoders.versions(&method)[0];
            let block = encoders.get(spec).unwrap().encode(&plain, &[]).unwrap();
            assert!(block.len() < plain.len());
            assert_eq!(codec.decode(&block, plain.len()).unwrap(), plain, "{spec}");
            for limit in [0, 1, plain.len() - 1] {
                let refused = codec.decode(&block, limit);
                assert!(refused.is_err(), "{spec} into {limit}");
                if !matches!(codec, Codec::Lz4 | Codec::MicroLzma) {
                    assert!(
                        matches!(refused, Err(CodecError::TooLong { .. })),
                        "{spec} into {limit}: {refused:?}"
                    );
                }
            }
            for cut in [0, 1, block.len() / 2, block.len() - 1] {
                assert!(
                    !matches!(codec.decode(&block[..cut], plain.len()), Ok(all) if all == plain),
                    "{spec} cut to {cut}"
                );
            }
            let mut followed = block.clone();
            followed.extend([1; 9]);
            assert!(
                codec.decode(&followed, plain.len()).is_err(),
                "{spec} followed"
            );
        }
    }
}
