//! The data of DELTA and RECOMPRESS operations: how to make a stretch of the
//! target out of a few stretches of the source.
//!
//! ```text
//! 0      format, 1
//! 1      CRC-32 of the result, little-endian
//! 5      six times: plain length, packed length (varints)
//!        six streams: layout, then those of the script (see `script`)
//! ```
//! A stream is one zstd frame, or plain where that is no longer. The layout is
//! varints:
//!
//! ```text
//! number of source blocks, and for each   number of pieces, and for each
//!   bytes since the end of the one before   0, bytes to write as they are
//!   stored length, decoded length           1, bytes to encode, encoder, bytes ahead
//!   codec                                   2, bytes that are only shown ahead
//! ```
//! What happens: source blocks are decoded, their plain bytes follow those of the
//! source; the script makes the plain bytes of all pieces out of that; each piece
//! to encode is encoded, which may look at a number of the plain bytes after it.
//!
//! Blobs come here after their hash was checked against a signed manifest. All
//! lengths are bounded all the same, and checked before anything is allocated.

mod script;
mod varint;

use crate::error::Cause;
use crate::recompress::{Codec, Encoder};
pub(crate) use script::{Copy, Script};
use varint::Varints;

use std::sync::Arc;

/// Bytes of the source of one operation, decoded blocks included.
pub(crate) const MOST_SOURCE: usize = 28 << 20;
/// Plain bytes that one operation makes.
pub(crate) const MOST_PLAIN: usize = 10 << 20;
/// Pieces, and source blocks, of one operation. A block of 8 KiB is small.
pub(crate) const MOST_PARTS: usize = 1 << 14;

const FORMAT: u8 = 1;
const STREAMS: usize = 6;
/// Level of zstd. Higher ones gain nothing on streams of this size.
const LEVEL: i32 = 19;

/// A compressed block in the source of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SourceBlock {
    /// Where it starts in the source extents, taken together.
    pub(crate) start: usize,
    /// Stored bytes.
    pub(crate) stored: usize,
    /// Plain bytes.
    pub(crate) plain: usize,
    /// How it decodes.
    pub(crate) codec: Codec,
}

/// What becomes of a run of plain bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// They are written.
    Plain {
        /// Bytes.
        length: usize,
    },
    /// They are encoded, and the result is written.
    Encoded {
        /// Plain bytes.
        length: usize,
        /// Index into the manifest's list of encoders.
        encoder: usize,
        /// How many of the plain bytes that follow are shown to the encoder.
        ahead: usize,
    },
    /// They are shown to the encoder of the piece before, and not written.
    Hidden {
        /// Bytes.
        length: usize,
    },
}

impl Piece {
    pub(crate) fn length(&self) -> usize {
        match *self {
            Piece::Plain { length } | Piece::Encoded { length, .. } | Piece::Hidden { length } => {
                length
            }
        }
    }
}

/// Everything that a blob says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Delta {
    pub(crate) blocks: Vec<SourceBlock>,
    pub(crate) pieces: Vec<Piece>,
    pub(crate) script: Script,
    /// CRC-32 of the result.
    pub(crate) crc: u32,
}

impl Delta {
    /// The blob.
    pub(crate) fn to_bytes(&self) -> std::io::Result<Vec<u8>> {
        let layout = self.layout();
        let [control, literals, gaps, tokens, escapes] = self.script.streams();
        let mut lengths = Vec::new();
        let mut streams = Vec::new();
        for plain in [&layout, control, literals, gaps, tokens, escapes] {
            let packed = zstd::bulk::compress(plain, LEVEL)?;
            let stream = if packed.len() < plain.len() {
                &packed
            } else {
                plain
            };
            varint::push(&mut lengths, plain.len());
            varint::push(&mut lengths, stream.len());
            streams.extend_from_slice(stream);
        }
        Ok([&[FORMAT][..], &self.crc.to_le_bytes(), &lengths, &streams].concat())
    }

    pub(crate) fn layout(&self) -> Vec<u8> {
        let mut layout = Vec::new();
        varint::push(&mut layout, self.blocks.len());
        let mut end = 0;
        for block in &self.blocks {
            let codec = usize::from(code(block.codec));
            for number in [block.start - end, block.stored, block.plain, codec] {
                varint::push(&mut layout, number);
            }
            end = block.start + block.stored;
        }
        varint::push(&mut layout, self.pieces.len());
        for piece in &self.pieces {
            let numbers = match *piece {
                Piece::Plain { length } => &[0, length][..],
                Piece::Encoded {
                    length,
                    encoder,
                    ahead,
                } => &[1, length, encoder, ahead],
                Piece::Hidden { length } => &[2, length],
            };
            for number in numbers {
                varint::push(&mut layout, *number);
            }
        }
        layout
    }

    /// Reads a blob.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub(crate) fn parse(blob: &[u8]) -> Result<Self, Cause> {
        let Some((&FORMAT, rest)) = blob.split_first() else {
            return Err("its data is of another format".into());
        };
        let (crc, rest) = rest.split_first_chunk().ok_or(CUT)?;
        let mut header = Varints::new(rest);
        let mut lengths = [(0, 0); STREAMS];
        for length in &mut lengths {
            *length = (header.below(MOST_PLAIN * 2)?, header.below(blob.len())?);
        }
        let mut left = header.rest();
        let mut streams: [Vec<u8>; STREAMS] = Default::default();
        for (stream, (plain, packed)) in streams.iter_mut().zip(lengths) {
            let (bytes, rest) = left.split_at_checked(packed).ok_or(CUT)?;
            left = rest;
            *stream = unpack(bytes, plain)?;
        }
        if !left.is_empty() {
            return Err("bytes follow its streams".into());
        }
        let [layout, control, literals, gaps, tokens, escapes] = streams;
        let (blocks, pieces) = parse_layout(&layout)?;
        Ok(Self {
            blocks,
            pieces,
            script: Script::from_streams([control, literals, gaps, tokens, escapes]),
            crc: u32::from_le_bytes(*crc),
        })
    }

    /// Makes the result out of `source`, which is consumed as it grows by the
    /// decoded blocks. It is `length` bytes long or an error.
    ///
    /// # Errors
    /// What is wrong, in words. A result with another checksum is one: some
    /// encoder does not do what it did when the payload was made.
    pub(crate) fn run(
        &self,
        mut source: Vec<u8>,
        length: usize,
        encoders: &[Arc<dyn Encoder>],
    ) -> Result<Vec<u8>, Cause> {
        let decoded: usize = self.blocks.iter().map(|block| block.plain).sum();
        if source.len() + decoded > MOST_SOURCE {
            return Err("its source is too large".into());
        }
        // In place and to size: of all that an operation holds this is most.
        let stored_length = source.len();
        source.reserve_exact(decoded);
        for block in &self.blocks {
            let stored = source[..stored_length].get(block.start..block.start + block.stored);
            let stored = stored.ok_or("a source block is outside of the source")?;
            let plain = block.codec.decode(stored, block.plain).map_err(other)?;
            if plain.len() != block.plain {
                return Err("a source block decodes to another length".into());
            }
            source.extend_from_slice(&plain);
        }
        let total = self.pieces.iter().map(Piece::length).sum();
        let plain = self.script.run(&source, total)?;
        drop(source);
        let result = self.encode(plain, length, encoders)?;
        if result.len() != length {
            return Err("its result has another length than its destination".into());
        }
        if crc32fast::hash(&result) != self.crc {
            return Err("its result has another checksum: an encoder or decoder differs from the one that made the payload".into());
        }
        Ok(result)
    }

    fn encode(
        &self,
        plain: Vec<u8>,
        length: usize,
        encoders: &[Arc<dyn Encoder>],
    ) -> Result<Vec<u8>, Cause> {
        if let [Piece::Plain { .. }] = self.pieces[..] {
            return Ok(plain);
        }
        let mut result = Vec::with_capacity(length);
        let mut at = 0;
        for piece in &self.pieces {
            let end = at + piece.length();
            match *piece {
                Piece::Plain { .. } => result.extend_from_slice(&plain[at..end]),
                Piece::Encoded { encoder, ahead, .. } => {
                    let encoder = encoders
                        .get(encoder)
                        .ok_or("it names no encoder of the manifest")?;
                    let ahead = plain.get(end..end + ahead);
                    let ahead = ahead.ok_or("an encoder looks beyond the plain bytes")?;
                    let encoded = encoder.encode(&plain[at..end], ahead).map_err(other)?;
                    result.extend_from_slice(&encoded);
                }
                Piece::Hidden { .. } => {}
            }
            if result.len() > length {
                return Err("its result is longer than its destination".into());
            }
            at = end;
        }
        Ok(result)
    }
}

const CUT: &str = "its data is cut short";

fn other(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Cause {
    std::io::Error::other(error).into()
}

fn unpack(bytes: &[u8], length: usize) -> Result<Vec<u8>, Cause> {
    if bytes.len() == length {
        return Ok(bytes.to_vec());
    }
    let plain = zstd::bulk::decompress(bytes, length)?;
    if plain.len() == length {
        Ok(plain)
    } else {
        Err("a stream has another length than announced".into())
    }
}

fn parse_layout(layout: &[u8]) -> Result<(Vec<SourceBlock>, Vec<Piece>), Cause> {
    let mut numbers = Varints::new(layout);
    let mut blocks = Vec::new();
    let mut end = 0;
    let mut decoded = 0;
    for _ in 0..numbers.below(MOST_PARTS)? {
        let start = end + numbers.below(MOST_SOURCE - end)?;
        let stored = numbers.below(MOST_SOURCE - start)?;
        let plain = numbers.below(MOST_SOURCE - decoded)?;
        let codec = codec(numbers.below(usize::from(u8::MAX))?)?;
        end = start + stored;
        decoded += plain;
        blocks.push(SourceBlock {
            start,
            stored,
            plain,
            codec,
        });
    }
    let mut pieces = Vec::new();
    let mut total = 0;
    for _ in 0..numbers.below(MOST_PARTS)? {
        let kind = numbers.below(2)?;
        let length = numbers.below(MOST_PLAIN - total)?;
        total += length;
        pieces.push(match kind {
            0 => Piece::Plain { length },
            1 => Piece::Encoded {
                length,
                encoder: numbers.below(usize::from(u16::MAX))?,
                ahead: numbers.below(MOST_PLAIN)?,
            },
            _ => Piece::Hidden { length },
        });
    }
    if numbers.rest().is_empty() {
        Ok((blocks, pieces))
    } else {
        Err("its layout goes on after the last piece".into())
    }
}

fn code(codec: Codec) -> u8 {
    match codec {
        Codec::Zlib => 0,
        Codec::Xz => 1,
        Codec::Zstd => 2,
        Codec::Lz4 => 3,
        Codec::MicroLzma => 4,
    }
}

fn codec(code: usize) -> Result<Codec, Cause> {
    Codec::ALL
        .get(code)
        .copied()
        .ok_or_else(|| "it needs a codec that this program does not know".into())
}
