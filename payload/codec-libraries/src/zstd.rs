//! libzstd.

use std::ffi::{CStr, c_char, c_int, c_uint, c_ulonglong, c_void};
use std::io;
use std::path::Path;
use std::ptr;
use std::sync::Arc;

use libloading::os::unix::Library;
use zstd_sys::{
    ZSTD_CCtx, ZSTD_EndDirective, ZSTD_ResetDirective, ZSTD_cParameter, ZSTD_inBuffer,
    ZSTD_outBuffer,
};

use crate::{failed, function, load, version_text};

/// How to compress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ZstdParameters {
    /// The level, negative ones included.
    pub level: i32,
    /// The largest window allowed, as the logarithm to the base of two.
    pub window: Option<u32>,
    /// Feed the encoder this many bytes at a time, as a stream of announced
    /// length, in place of all at once. Bytes differ: a stream ends in an empty
    /// block when the input fills the last one.
    pub pieces: Option<usize>,
}

type Context = *mut ZSTD_CCtx;

/// Functions of <zstd.h>, all of its stable part.
#[derive(Clone, Copy)]
struct Functions {
    create: unsafe extern "C" fn() -> Context,
    free: unsafe extern "C" fn(Context) -> usize,
    reset: unsafe extern "C" fn(Context, ZSTD_ResetDirective) -> usize,
    set: unsafe extern "C" fn(Context, ZSTD_cParameter, c_int) -> usize,
    pledge: unsafe extern "C" fn(Context, c_ulonglong) -> usize,
    compress:
        unsafe extern "C" fn(Context, *mut c_void, usize, *const c_void, usize, c_int) -> usize,
    stream: unsafe extern "C" fn(
        Context,
        *mut ZSTD_outBuffer,
        *mut ZSTD_inBuffer,
        ZSTD_EndDirective,
    ) -> usize,
    bound: unsafe extern "C" fn(usize) -> usize,
    is_error: unsafe extern "C" fn(usize) -> c_uint,
    error_name: unsafe extern "C" fn(usize) -> *const c_char,
}

impl Functions {
    const CARRIED: Self = Self {
        create: zstd_sys::ZSTD_createCCtx,
        free: zstd_sys::ZSTD_freeCCtx,
        reset: zstd_sys::ZSTD_CCtx_reset,
        set: zstd_sys::ZSTD_CCtx_setParameter,
        pledge: zstd_sys::ZSTD_CCtx_setPledgedSrcSize,
        compress: zstd_sys::ZSTD_compressCCtx,
        stream: zstd_sys::ZSTD_compressStream2,
        bound: zstd_sys::ZSTD_compressBound,
        is_error: zstd_sys::ZSTD_isError,
        error_name: zstd_sys::ZSTD_getErrorName,
    };
}

/// One version of libzstd.
#[derive(Clone)]
pub struct Zstd {
    functions: Functions,
    version: String,
    /// Keeps loaded functions where they are.
    _library: Option<Arc<Library>>,
}

impl Zstd {
    /// The one linked into this program.
    #[must_use]
    pub fn carried() -> Self {
        // SAFETY: it takes nothing and gives a number.
        let number = unsafe { zstd_sys::ZSTD_versionNumber() };
        Self {
            functions: Functions::CARRIED,
            version: version_text(number),
            _library: None,
        }
    }

    /// The one in a file, or of a bare name among the libraries of the system.
    ///
    /// # Errors
    ///
    /// When the file cannot be loaded or is no libzstd.
    pub fn open(path: &Path) -> io::Result<Self> {
        let library = load(path)?;
        // SAFETY: the types are those of <zstd.h>, and the library is kept
        // beside the functions.
        let (number, functions) = unsafe {
            let number: unsafe extern "C" fn() -> c_uint =
                function(&library, "ZSTD_versionNumber")?;
            let functions = Functions {
                create: function(&library, "ZSTD_createCCtx")?,
                free: function(&library, "ZSTD_freeCCtx")?,
                reset: function(&library, "ZSTD_CCtx_reset")?,
                set: function(&library, "ZSTD_CCtx_setParameter")?,
                pledge: function(&library, "ZSTD_CCtx_setPledgedSrcSize")?,
                compress: function(&library, "ZSTD_compressCCtx")?,
                stream: function(&library, "ZSTD_compressStream2")?,
                bound: function(&library, "ZSTD_compressBound")?,
                is_error: function(&library, "ZSTD_isError")?,
                error_name: function(&library, "ZSTD_getErrorName")?,
            };
            (number(), functions)
        };
        Ok(Self {
            functions,
            version: version_text(number),
            _library: Some(library),
        })
    }

    /// Its version, as in `1.5.7`.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// A context, which is costly to make at high levels and may be used again.
    ///
    /// # Errors
    ///
    /// When memory runs out.
    pub fn context(&self) -> io::Result<ZstdContext> {
        // SAFETY: it takes nothing; the result is checked.
        let context = unsafe { (self.functions.create)() };
        if context.is_null() {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        Ok(ZstdContext {
            library: self.clone(),
            context,
        })
    }

    fn check(&self, result: usize) -> io::Result<usize> {
        // SAFETY: both take a number only.
        if unsafe { (self.functions.is_error)(result) } == 0 {
            return Ok(result);
        }
        // SAFETY: the name of an error is a constant text of the library, which
        // is still loaded.
        let name = unsafe { CStr::from_ptr((self.functions.error_name)(result)) };
        Err(failed(&name.to_string_lossy()))
    }
}

/// A compressor's memory.
pub struct ZstdContext {
    library: Zstd,
    context: Context,
}

// SAFETY: a context is plain memory of its own without ties to a thread;
// methods that touch it take `&mut self`.
unsafe impl Send for ZstdContext {}

impl ZstdContext {
    /// Compresses all of `plain` to one frame, which carries its length and no checksum.
    ///
    /// # Errors
    ///
    /// When the library refuses the parameters or memory runs out.
    pub fn compress(&mut self, plain: &[u8], how: &ZstdParameters) -> io::Result<Vec<u8>> {
        let functions = self.library.functions;
        // SAFETY: it takes a number only.
        let bound = unsafe { (functions.bound)(plain.len()) };
        self.library.check(bound)?;
        // A stream may end in one more, empty block.
        let mut out = vec![0; bound.saturating_add(64)];
        let length = match how {
            ZstdParameters {
                level,
                window: None,
                pieces: None,
            } => {
                // SAFETY: the context is alive and not in use, the buffers are
                // as long as said, and nothing keeps pointers to them.
                let result = unsafe {
                    (functions.compress)(
                        self.context,
                        out.as_mut_ptr().cast(),
                        out.len(),
                        plain.as_ptr().cast(),
                        plain.len(),
                        *level,
                    )
                };
                self.library.check(result)?
            }
            _ => self.stream(plain, how, &mut out)?,
        };
        out.truncate(length);
        out.shrink_to_fit();
        Ok(out)
    }

    fn stream(&mut self, plain: &[u8], how: &ZstdParameters, out: &mut [u8]) -> io::Result<usize> {
        let functions = self.library.functions;
        let check = |result| self.library.check(result);
        // SAFETY: the context is alive and not in use; the rest are numbers.
        unsafe {
            check((functions.reset)(
                self.context,
                ZSTD_ResetDirective::ZSTD_reset_session_and_parameters,
            ))?;
            check((functions.set)(
                self.context,
                ZSTD_cParameter::ZSTD_c_compressionLevel,
                how.level,
            ))?;
            if let Some(window) = how.window {
                let window = c_int::try_from(window).map_err(io::Error::other)?;
                check((functions.set)(
                    self.context,
                    ZSTD_cParameter::ZSTD_c_windowLog,
                    window,
                ))?;
            }
            check((functions.pledge)(self.context, plain.len() as c_ulonglong))?;
        }
        let mut output = ZSTD_outBuffer {
            dst: out.as_mut_ptr().cast(),
            size: out.len(),
            pos: 0,
        };
        let mut advance = |piece: &[u8], end: bool| {
            let directive = if end {
                ZSTD_EndDirective::ZSTD_e_end
            } else {
                ZSTD_EndDirective::ZSTD_e_continue
            };
            let mut input = ZSTD_inBuffer {
                src: piece.as_ptr().cast(),
                size: piece.len(),
                pos: 0,
            };
            // SAFETY: the context is alive, and both descriptions are of live
            // buffers, as long as said; the library copies what it keeps.
            let result = check(unsafe {
                (functions.stream)(self.context, &mut output, &mut input, directive)
            })?;
            if input.pos < input.size || (end && result != 0) {
                return Err(failed("the encoder did not take all of its input"));
            }
            Ok(())
        };
        if let Some(size) = how.pieces {
            for piece in plain.chunks(size.max(1)) {
                advance(piece, false)?;
            }
            advance(&[], true)?;
        } else {
            advance(plain, true)?;
        }
        Ok(output.pos)
    }
}

impl Drop for ZstdContext {
    fn drop(&mut self) {
        // SAFETY: made by the same library and freed once.
        unsafe { (self.library.functions.free)(self.context) };
        self.context = ptr::null_mut();
    }
}
