//! The C libraries of zstd, lz4 and xz behind safe functions: the ones that are
//! linked in, and others loaded from files at run time.
//!
//! What a compressor writes depends on its version. To make the very bytes that
//! some image was built with, the very library is needed, so each [`Zstd`] and
//! [`Lz4`] is one version of one library, and both ways to get one end in the
//! same table of functions. This crate knows nothing of images or of which
//! parameters reproduce what.

mod lz4;
pub mod xz;
mod zstd;

use std::ffi::CStr;
use std::io;
use std::path::Path;
use std::sync::Arc;

pub use lz4::Lz4;
pub use zstd::{Zstd, ZstdContext, ZstdParameters};

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

/// The version of the linked zlib, as in `1.3.2`. Its functions are wrapped elsewhere.
#[must_use]
pub fn zlib_version() -> String {
    // SAFETY: the result is a constant text of the library.
    let version = unsafe { CStr::from_ptr(libz_sys::zlibVersion()) };
    version.to_string_lossy().into_owned()
}

/// Loads a library by its file, or by its bare name from where the system keeps
/// libraries. Its functions call one another and not those that are linked in.
fn load(path: &Path) -> io::Result<Arc<Library>> {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    const OWN_FIRST: i32 = 8; // RTLD_DEEPBIND of <dlfcn.h>
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    const OWN_FIRST: i32 = 0;
    // SAFETY: loading runs the initialisers of the file. The caller names a file
    // of the system's own libraries, which is trusted as the program itself is;
    // those of zstd and lz4 do nothing before they are called.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL | OWN_FIRST) };
    Ok(Arc::new(library.map_err(io::Error::other)?))
}

/// The function of a name in a library.
///
/// # Safety
///
/// `F` must be the type of the C function of that name, and the result must not
/// be called after the library is dropped.
unsafe fn function<F: Copy>(library: &Library, name: &str) -> io::Result<F> {
    // SAFETY: the caller vouches for the type.
    let symbol = unsafe { library.get::<F>(name.as_bytes()) };
    Ok(*symbol.map_err(io::Error::other)?)
}

/// `10504` as `1.5.4`, the way both libraries number themselves.
fn version_text(number: u32) -> String {
    format!("{}.{}.{}", number / 10000, number / 100 % 100, number % 100)
}

fn failed(what: &str) -> io::Error {
    io::Error::other(what.to_owned())
}
