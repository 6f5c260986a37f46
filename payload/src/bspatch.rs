//! Applies `BSDIFF40` patches without trusting them.
//!
//! ```text
//! 0          8               16            24          32
//! | BSDIFF40 | control bytes | diff bytes  | new size  | control | diff | extra
//!              integers: 64 bit little-endian, sign and magnitude     bzip2 each
//! ```
//! Control is a list of triples (add, copy, seek): make `add` bytes by adding diff
//! bytes to old ones, `copy` bytes from extra, then move by `seek` in the old file.
//!
//! Nothing is allocated by what the patch says: the new bytes go out in pieces,
//! and the old ones are asked for in pieces.

use std::io::{self, Read};

use bzip2::bufread::BzDecoder;

use crate::error::{Cause, PayloadError};
use crate::extent;
use crate::image::{CHUNK, chunk_length};
use crate::span::Source;

/// Why a patch could not be applied.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The patch is bad.
    Patch(Cause),
    /// Reading the old or writing the new bytes failed.
    Image(PayloadError),
}

impl From<PayloadError> for Fault {
    fn from(error: PayloadError) -> Self {
        Fault::Image(error)
    }
}

impl From<&str> for Fault {
    fn from(reason: &str) -> Self {
        Fault::Patch(reason.into())
    }
}

/// Makes exactly `new_length` bytes from `old` and `patch` and hands them to `write` in order.
pub(crate) fn patch(
    patch: &[u8],
    old: &Source,
    new_length: u64,
    write: &mut dyn FnMut(&[u8]) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let mut streams = Streams::open(patch, new_length)?;
    let mut buffer = vec![0; CHUNK];
    let mut made = 0;
    let mut idle = 0;
    let mut position: i64 = 0;
    while made < new_length {
        let Triple { add, copy, seek } = streams.triple(new_length - made)?;
        // A triple without bytes is legal, but endless ones would never end.
        if add == 0 && copy == 0 {
            idle += 1;
            if idle > new_length.saturating_add(Triple::IDLE_ALLOWED) {
                return Err("more empty control entries than new bytes".into());
            }
        }
        let mut left = add;
        while left > 0 {
            let chunk = &mut buffer[..chunk_length(left)];
            fill(&mut streams.diff, chunk, "the diff data")?;
            add_old(old, position, chunk)?;
            write(chunk)?;
            let step = extent::size(chunk.len());
            left -= step;
            position = forward(position, step)?;
        }
        let mut left = copy;
        while left > 0 {
            let chunk = &mut buffer[..chunk_length(left)];
            fill(&mut streams.extra, chunk, "the extra data")?;
            write(chunk)?;
            left -= extent::size(chunk.len());
        }
        position = position
            .checked_add(seek)
            .ok_or("a control entry seeks beyond any file")?;
        made += add + copy;
    }
    Ok(())
}

struct Streams<'a> {
    control: BzDecoder<&'a [u8]>,
    diff: BzDecoder<&'a [u8]>,
    extra: BzDecoder<&'a [u8]>,
}

struct Triple {
    add: u64,
    copy: u64,
    seek: i64,
}

impl Triple {
    /// Empty entries that even the shortest new file may have.
    const IDLE_ALLOWED: u64 = 16;
}

impl<'a> Streams<'a> {
    const MAGIC: &'static [u8; 8] = b"BSDIFF40";

    fn open(patch: &'a [u8], new_length: u64) -> Result<Self, Fault> {
        let (magic, rest) = patch.split_first_chunk().ok_or("the patch has no header")?;
        if magic != Self::MAGIC {
            return Err("the patch does not begin with BSDIFF40".into());
        }
        let (lengths, rest) = rest
            .split_first_chunk::<24>()
            .ok_or("the patch has no header")?;
        let [control, diff, new] = integers(lengths);
        if u64::try_from(new) != Ok(new_length) {
            return Err(Fault::Patch(
                format!("the patch makes {new} bytes, the manifest says {new_length}").into(),
            ));
        }
        let cut = |bytes: &'a [u8], length: i64| {
            usize::try_from(length)
                .ok()
                .and_then(|length| bytes.split_at_checked(length))
                .ok_or("the patch is shorter than its header says")
        };
        let (control, rest) = cut(rest, control)?;
        let (diff, extra) = cut(rest, diff)?;
        Ok(Self {
            control: BzDecoder::new(control),
            diff: BzDecoder::new(diff),
            extra: BzDecoder::new(extra),
        })
    }

    /// The next control entry, which must fit in the `left` bytes that are still to be made.
    fn triple(&mut self, left: u64) -> Result<Triple, Fault> {
        let mut bytes = [0; 24];
        fill(&mut self.control, &mut bytes, "the control data")?;
        let [add, copy, seek] = integers(&bytes);
        let sizes = u64::try_from(add).ok().zip(u64::try_from(copy).ok());
        match sizes {
            Some((add, copy)) if add <= left && copy <= left - add => {
                Ok(Triple { add, copy, seek })
            }
            _ => Err(Fault::Patch(
                format!("a control entry makes {add} and {copy} bytes where {left} are left")
                    .into(),
            )),
        }
    }
}

/// Adds old bytes from `position` to `chunk`. As in the original program, bytes
/// outside the old file count as zeros.
fn add_old(old: &Source, position: i64, chunk: &mut [u8]) -> Result<(), Fault> {
    let (skipped, start) = match u64::try_from(position) {
        Ok(start) => (0, start),
        Err(_) => (position.unsigned_abs(), 0),
    };
    let skipped = usize::try_from(skipped).map_or(chunk.len(), |skipped| skipped.min(chunk.len()));
    let inside = &mut chunk[skipped..];
    let available = old.length().saturating_sub(start);
    let length = usize::try_from(available).map_or(inside.len(), |left| left.min(inside.len()));
    if length == 0 {
        return Ok(());
    }
    let mut bytes = vec![0; length];
    old.read(start, &mut bytes)?;
    for (new, old) in inside.iter_mut().zip(&bytes) {
        *new = new.wrapping_add(*old);
    }
    Ok(())
}

fn forward(position: i64, step: u64) -> Result<i64, Fault> {
    position
        .checked_add_unsigned(step)
        .ok_or_else(|| "a control entry reads beyond any file".into())
}

fn fill(stream: &mut impl Read, buf: &mut [u8], what: &'static str) -> Result<(), Fault> {
    stream.read_exact(buf).map_err(|error| {
        let error = match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                io::Error::new(error.kind(), format!("{what} ends early"))
            }
            kind => io::Error::new(kind, format!("{what}: {error}")),
        };
        Fault::Patch(error.into())
    })
}

fn integers(bytes: &[u8; 24]) -> [i64; 3] {
    [0, 8, 16].map(|at| {
        let mut field = [0; 8];
        field.copy_from_slice(&bytes[at..at + 8]);
        let raw = i64::from_le_bytes(field);
        if raw < 0 { -(raw & i64::MAX) } else { raw }
    })
}
