//! liblzma: whole .xz files from one call, and MicroLZMA.
//!
//! Its stream interface is wrapped elsewhere, but a file made in one call differs:
//! the header of its block says how long it is. MicroLZMA, a stream of LZMA with one
//! byte of header and no end, is not wrapped anywhere.

use std::io;
use std::ptr;

use liblzma_sys::{
    LZMA_CHECK_CRC32, LZMA_FILTER_LZMA2, LZMA_FINISH, LZMA_OK, LZMA_PRESET_DEFAULT,
    LZMA_PRESET_EXTREME, LZMA_STREAM_END, LZMA_VLI_UNKNOWN, lzma_bool, lzma_code, lzma_end,
    lzma_filter, lzma_lzma_preset, lzma_options_lzma, lzma_ret, lzma_stream,
    lzma_stream_buffer_bound, lzma_stream_buffer_encode, lzma_version_number,
};

use crate::failed;

// Of <lzma/container.h>; the binding of the linked library does not have these.
unsafe extern "C" {
    fn lzma_microlzma_encoder(
        stream: *mut lzma_stream,
        options: *const lzma_options_lzma,
    ) -> lzma_ret;
    fn lzma_microlzma_decoder(
        stream: *mut lzma_stream,
        compressed_size: u64,
        plain_size: u64,
        plain_size_is_exact: lzma_bool,
        dictionary: u32,
    ) -> lzma_ret;
}

/// Of a preset: slower and better.
pub const EXTREME: u32 = LZMA_PRESET_EXTREME;

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
    let mut options = options(LZMA_PRESET_DEFAULT, dictionary)?;
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
        return Err(code(result));
    }
    out.truncate(length);
    Ok(out)
}

/// Compresses as much from the start of `plain` as fits in `capacity` bytes, to one
/// stream of MicroLZMA. Gives the stream and how many of `plain` it holds. The preset
/// is a level, with [`EXTREME`] or without; its dictionary is the given one.
///
/// # Errors
///
/// When the library refuses an argument, a capacity below 6 among them, or memory
/// runs out.
pub fn fill_microlzma(
    plain: &[u8],
    capacity: usize,
    preset: u32,
    dictionary: u32,
) -> io::Result<(Vec<u8>, usize)> {
    let options = options(preset, dictionary)?;
    // SAFETY: the stream is alive, and the encoder copies the options.
    let mut stream = Stream::open(|stream| unsafe { lzma_microlzma_encoder(stream, &options) })?;
    let mut out = vec![0; capacity];
    let (taken, made) = stream.finish(plain, &mut out)?;
    out.truncate(made);
    Ok((out, taken))
}

/// Decodes a stream of MicroLZMA, all of it, which holds exactly `length` bytes and
/// was made with a dictionary of at most `dictionary`: the format itself tells neither.
///
/// # Errors
///
/// When it is no such stream, or one of another length.
pub fn decompress_microlzma(stored: &[u8], length: usize, dictionary: u32) -> io::Result<Vec<u8>> {
    // Distances reach back to the start at most.
    let dictionary = u32::try_from(length).map_or(dictionary, |most| dictionary.min(most));
    let (from, to) = (stored.len() as u64, length as u64);
    // SAFETY: the stream is alive; the rest are numbers.
    let mut stream =
        Stream::open(|stream| unsafe { lzma_microlzma_decoder(stream, from, to, 1, dictionary) })?;
    let mut out = vec![0; length];
    match stream.finish(stored, &mut out)? {
        (taken, made) if taken == stored.len() && made == length => Ok(out),
        _ => Err(failed("the stream is of another length")),
    }
}

/// A coder at work.
struct Stream(lzma_stream);

impl Stream {
    fn open(coder: impl FnOnce(&mut lzma_stream) -> lzma_ret) -> io::Result<Self> {
        // SAFETY: the structure is plain data, for which zeros are the initial value
        // (`LZMA_STREAM_INIT`).
        let mut stream = Self(unsafe { std::mem::zeroed() });
        match coder(&mut stream.0) {
            LZMA_OK => Ok(stream),
            other => Err(code(other)),
        }
    }

    /// Runs the coder to its end; gives bytes read and written.
    fn finish(&mut self, from: &[u8], to: &mut [u8]) -> io::Result<(usize, usize)> {
        self.0.next_in = from.as_ptr();
        self.0.avail_in = from.len();
        self.0.next_out = to.as_mut_ptr();
        self.0.avail_out = to.len();
        // SAFETY: the coder is set up, and both buffers are live and as long as said.
        let result = unsafe { lzma_code(&mut self.0, LZMA_FINISH) };
        match result {
            LZMA_STREAM_END => {}
            LZMA_OK => return Err(failed("the stream ends early")),
            other => return Err(code(other)),
        }
        Ok((from.len() - self.0.avail_in, to.len() - self.0.avail_out))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: the stream holds a coder, or none after a failure, and is not used
        // again.
        unsafe { lzma_end(&mut self.0) };
    }
}

fn options(preset: u32, dictionary: u32) -> io::Result<lzma_options_lzma> {
    // SAFETY: the structure is plain data, for which zeros are valid, and the call
    // sets what it means.
    let mut options = unsafe {
        let mut options: lzma_options_lzma = std::mem::zeroed();
        if lzma_lzma_preset(&mut options, preset) != 0 {
            return Err(failed("liblzma does not know the preset"));
        }
        options
    };
    options.dict_size = dictionary;
    Ok(options)
}

fn code(result: lzma_ret) -> io::Error {
    failed(&format!("liblzma failed with code {result}"))
}
