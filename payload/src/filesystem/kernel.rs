//! Linux kernels for x86 whose code is compressed by lz4, wherever they lie in an
//! image whole and in one piece.
//!
//! ```text
//! bzImage  0x1f1 sectors of set-up code   0x1fe 0xaa55   0x202 "HdrS", version
//!          0x248 where the payload starts after the set-up code, 0x24c its length
//! payload  magic of lz4's old frame, then for each 8 MiB: length, block;
//!          at its end the decoded size, which is not the frame's
//! ```
//! (The kernel's `Documentation/arch/x86/boot.rst` and `scripts/Makefile.lib`, which
//! calls `lz4 -l -9`.) A kernel is a tenth of a small release and changes with every
//! security update; compressed, a third of it is new each time.

use memchr::memmem;

use super::Collector;
use super::bytes::{self, u16, u32};
use crate::recompress::{Codec, Method};

const HEADER: &[u8] = b"HdrS";
const HEADER_AT: u64 = 0x202;
/// The first version of the boot protocol that tells where the payload is.
const VERSION: u16 = 0x0208;
const LZ4_MAGIC: u32 = 0x184c_2102;
/// Decoded size of all blocks but the last.
const BLOCK: usize = 8 << 20;

/// How the blocks were encoded.
pub(super) fn methods() -> Vec<Method> {
    vec![Method::Lz4 { level: Some(9) }]
}

/// Adds the blocks of all kernels; they refer to list `hint` of the candidates.
pub(super) fn collect(collector: &mut Collector<'_>, hint: usize) {
    let image = collector.image;
    for found in memmem::find_iter(image, HEADER) {
        if let Some(start) = bytes::size(found).checked_sub(HEADER_AT) {
            // One that makes no sense is no kernel, or not in one piece.
            let _ = kernel(collector, image, start, hint);
        }
    }
}

fn kernel(collector: &mut Collector<'_>, image: &[u8], start: u64, hint: usize) -> Option<()> {
    if u16(image, start + 0x1fe)? != 0xaa55 || u16(image, start + 0x206)? < VERSION {
        return None;
    }
    let [sectors] = bytes::slice(image, start + 0x1f1, 1)? else {
        return None;
    };
    let setup = (u64::from(*sectors) + 1) * 512;
    let mut at = start + setup + u64::from(u32(image, start + 0x248)?);
    let end = at + u64::from(u32(image, start + 0x24c)?);
    if u32(image, at)? != LZ4_MAGIC {
        return None;
    }
    at += 4;
    while at + 8 < end {
        let length = u64::from(u32(image, at)?);
        at += 4;
        if at + length > end {
            return None;
        }
        collector.add(at, length, Codec::Lz4, BLOCK, hint)?;
        at += length;
    }
    Some(())
}
