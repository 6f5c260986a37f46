//! liblzma: whole .xz files from one call.
//!
//! Its stream interface is wrapped elsewhere, but a file made in one call differs:
//! the header of its block says how long it is.

use std::io;
use std::ptr;

use liblzma_sys::{
    LZMA_CHECK_CRC32, LZMA_FILTER_LZMA2, LZMA_OK, LZMA_PRESET_DEFAULT, LZMA_VLI_UNKNOWN,
    lzma_filter, lzma_lzma_preset, lzma_options_lzma, lzma_stream_buffer_bound,
    lzma_stream_buffer_encode, lzma_version_number,
};

use crate::failed;

/// The version of the linked library, as in `5.8.4`.
#[must_use]
pub fn version() -> String {
    // SAFETY: it takes nothing and gives a number.
    let number = unsafe { lzma_version_number() };
    // Five million and so on; the last digit tells alpha, beta and stable.
    let (major, minor) = (number / 10_000_000, number / 10_000 % 1000);
    format!("{major}.{minor}.{}", number / 10 % 1000)
}

/// Compresses all of `plain` by the default preset with a dictionary of that many
/// bytes, and with a CRC32.
///
/// # Errors
///
/// When the library refuses the dictionary or memory runs out.
pub fn compress(plain: &[u8], dictionary: u32) -> io::Result<Vec<u8>> {
    // SAFETY: the structure is plain data, for which zeros are valid, and the call
    // sets what it means.
    let mut options = unsafe {
        let mut options: lzma_options_lzma = std::mem::zeroed();
        if lzma_lzma_preset(&mut options, LZMA_PRESET_DEFAULT) != 0 {
            return Err(failed("liblzma has no default preset"));
        }
        options
    };
    options.dict_size = dictionary;
    let mut filters = [
        lzma_filter {
            id: LZMA_FILTER_LZMA2,
            options: ptr::from_mut(&mut options).cast(),
        },
        lzma_filter {
            id: LZMA_VLI_UNKNOWN,
            options: ptr::null_mut(),
        },
    ];
    // SAFETY: it takes a number only.
    let mut out = vec![0; unsafe { lzma_stream_buffer_bound(plain.len()) }];
    let mut length = 0;
    // SAFETY: the filters end in the unknown one, their options live on, and both
    // buffers are as long as said. Without an allocator, malloc is used.
    let result = unsafe {
        lzma_stream_buffer_encode(
            filters.as_mut_ptr(),
            LZMA_CHECK_CRC32,
            ptr::null(),
            plain.as_ptr(),
            plain.len(),
            out.as_mut_ptr(),
            &mut length,
            out.len(),
        )
    };
    if result != LZMA_OK {
        return Err(failed(&format!("liblzma failed with code {result}")));
    }
    out.truncate(length);
    Ok(out)
}
