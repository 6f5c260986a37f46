//! liblz4: blocks without a frame.

use std::ffi::{c_char, c_int, c_void};
use std::io;
use std::path::Path;
use std::sync::Arc;

use libloading::os::unix::Library;

use crate::{failed, function, load, version_text};

type Plain = unsafe extern "C" fn(*const c_char, *mut c_char, c_int, c_int) -> c_int;

/// Functions of <lz4.h> and <lz4hc.h>.
#[derive(Clone, Copy)]
struct Functions {
    compress: Plain,
    compress_into: unsafe extern "C" fn(*const c_char, *mut c_char, *mut c_int, c_int) -> c_int,
    compress_hc: unsafe extern "C" fn(*const c_char, *mut c_char, c_int, c_int, c_int) -> c_int,
    compress_hc_into: unsafe extern "C" fn(
        *mut c_void,
        *const c_char,
        *mut c_char,
        *mut c_int,
        c_int,
        c_int,
    ) -> c_int,
    state_size_hc: unsafe extern "C" fn() -> c_int,
    decompress: Plain,
}

// Not all of these are in the binding of the linked library.
unsafe extern "C" {
    fn LZ4_compress_destSize(
        src: *const c_char,
        dst: *mut c_char,
        src_size: *mut c_int,
        target: c_int,
    ) -> c_int;
    fn LZ4_compress_HC_destSize(
        state: *mut c_void,
        src: *const c_char,
        dst: *mut c_char,
        src_size: *mut c_int,
        target: c_int,
        level: c_int,
    ) -> c_int;
    fn LZ4_sizeofStateHC() -> c_int;
}

/// One version of liblz4.
#[derive(Clone)]
pub struct Lz4 {
    functions: Functions,
    version: String,
    /// Keeps loaded functions where they are.
    _library: Option<Arc<Library>>,
}

impl Lz4 {
    /// The one linked into this program.
    #[must_use]
    pub fn carried() -> Self {
        // SAFETY: it takes nothing and gives a number.
        let number = unsafe { lz4_sys::LZ4_versionNumber() };
        Self {
            functions: Functions {
                compress: lz4_sys::LZ4_compress_default,
                compress_into: LZ4_compress_destSize,
                compress_hc: lz4_sys::LZ4_compress_HC,
                compress_hc_into: LZ4_compress_HC_destSize,
                state_size_hc: LZ4_sizeofStateHC,
                decompress: lz4_sys::LZ4_decompress_safe,
            },
            version: version_text(number.unsigned_abs()),
            _library: None,
        }
    }

    /// The one in a file, or of a bare name among the libraries of the system.
    ///
    /// # Errors
    ///
    /// When the file cannot be loaded or is no liblz4.
    pub fn open(path: &Path) -> io::Result<Self> {
        let library = load(path)?;
        // SAFETY: the types are those of <lz4.h> and <lz4hc.h>, and the library
        // is kept beside the functions.
        let (number, functions) = unsafe {
            let number: unsafe extern "C" fn() -> c_int = function(&library, "LZ4_versionNumber")?;
            let functions = Functions {
                compress: function(&library, "LZ4_compress_default")?,
                compress_into: function(&library, "LZ4_compress_destSize")?,
                compress_hc: function(&library, "LZ4_compress_HC")?,
                compress_hc_into: function(&library, "LZ4_compress_HC_destSize")?,
                state_size_hc: function(&library, "LZ4_sizeofStateHC")?,
                decompress: function(&library, "LZ4_decompress_safe")?,
            };
            (number(), functions)
        };
        Ok(Self {
            functions,
            version: version_text(number.unsigned_abs()),
            _library: Some(library),
        })
    }

    /// Its version, as in `1.9.4`.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Compresses all of `plain`; with a `level` by the slower, better encoder.
    ///
    /// # Errors
    ///
    /// When the library fails.
    pub fn compress(&self, plain: &[u8], level: Option<i32>) -> io::Result<Vec<u8>> {
        // LZ4_COMPRESSBOUND
        let mut out = vec![0; plain.len() + plain.len() / 255 + 16];
        let (from, to) = (plain.as_ptr().cast(), out.as_mut_ptr().cast());
        let (length, capacity) = (c_length(plain.len())?, c_length(out.len())?);
        // SAFETY: both buffers are live and as long as said.
        let result = unsafe {
            match level {
                None => (self.functions.compress)(from, to, length, capacity),
                Some(level) => (self.functions.compress_hc)(from, to, length, capacity, level),
            }
        };
        out.truncate(written(result)?);
        Ok(out)
    }

    /// Compresses as much from the start of `plain` as fits in `capacity` bytes.
    /// Gives the compressed bytes and how many of `plain` they hold.
    ///
    /// # Errors
    ///
    /// When the library fails.
    pub fn fill(
        &self,
        plain: &[u8],
        capacity: usize,
        level: Option<i32>,
    ) -> io::Result<(Vec<u8>, usize)> {
        let mut out = vec![0; capacity];
        let (from, to) = (plain.as_ptr().cast(), out.as_mut_ptr().cast());
        let (mut length, capacity) = (c_length(plain.len())?, c_length(capacity)?);
        let result = match level {
            // SAFETY: both buffers are live and as long as said.
            None => unsafe { (self.functions.compress_into)(from, to, &mut length, capacity) },
            Some(level) => {
                // SAFETY: it takes nothing and gives a size.
                let size = written(unsafe { (self.functions.state_size_hc)() })?;
                // Of words, since the state must be aligned like a pointer.
                let mut state = vec![0_u64; size.div_ceil(8)];
                // SAFETY: the buffers are live and as long as said; the state is
                // initialised by the call.
                unsafe {
                    (self.functions.compress_hc_into)(
                        state.as_mut_ptr().cast(),
                        from,
                        to,
                        &mut length,
                        capacity,
                        level,
                    )
                }
            }
        };
        out.truncate(written(result)?);
        let taken = usize::try_from(length).unwrap_or(0).min(plain.len());
        Ok((out, taken))
    }

    /// Decodes a block of at most `limit` bytes.
    ///
    /// # Errors
    ///
    /// When it is no lz4 block or holds more.
    pub fn decompress(&self, block: &[u8], limit: usize) -> io::Result<Vec<u8>> {
        let mut out = vec![0; limit];
        let (length, capacity) = (c_length(block.len())?, c_length(limit)?);
        // SAFETY: both buffers are live and as long as said; the function stays
        // within them whatever the block says.
        let result = unsafe {
            (self.functions.decompress)(
                block.as_ptr().cast(),
                out.as_mut_ptr().cast(),
                length,
                capacity,
            )
        };
        let length = usize::try_from(result).map_err(|_| failed("not a block of lz4"))?;
        out.truncate(length);
        Ok(out)
    }
}

fn c_length(length: usize) -> io::Result<c_int> {
    c_int::try_from(length).map_err(io::Error::other)
}

fn written(result: c_int) -> io::Result<usize> {
    match usize::try_from(result) {
        Ok(length) if length > 0 => Ok(length),
        _ => Err(failed("liblz4 failed")),
    }
}
