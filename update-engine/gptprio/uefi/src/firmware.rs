//! The calls to the firmware whose safety the compiler cannot see. All unsafe code of
//! this crate is here.

#![allow(unsafe_code)]

use alloc::boxed::Box;

use uefi::boot::{self, OpenProtocolAttributes, OpenProtocolParams, ScopedProtocol};
use uefi::proto::loaded_image::LoadedImage;
use uefi::proto::media::block::BlockIO;
use uefi::{CString16, Handle, Result};

/// A disk of the firmware, shared with the firmware's own drivers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DiskHandle(Handle);

// SAFETY: until a kernel takes over, one processor runs boot services and this program,
// and it has one thread (UEFI 2.10, §2.3.4); nothing is ever sent anywhere.
unsafe impl Send for DiskHandle {}
// SAFETY: as above.
unsafe impl Sync for DiskHandle {}

impl DiskHandle {
    pub(crate) fn new(handle: Handle) -> Self {
        Self(handle)
    }

    /// Its blocks.
    pub(crate) fn blocks(self) -> Result<ScopedProtocol<BlockIO>> {
        let params = OpenProtocolParams {
            handle: self.0,
            agent: boot::image_handle(),
            controller: None,
        };
        // Opened exclusively, the disk would lose its partitions, and with them the files
        // that are needed next.
        //
        // SAFETY: the protocol is used and closed within one call of this program, and
        // no driver comes or goes meanwhile: nobody else runs, and nobody is asked to.
        unsafe { boot::open_protocol(params, OpenProtocolAttributes::GetProtocol) }
    }
}

/// A kernel that was loaded, with its command line. Dropping it unloads it.
#[derive(Debug)]
pub(crate) struct LoadedKernel {
    image: Handle,
    /// The image refers to it.
    _command_line: Box<CString16>,
}

impl LoadedKernel {
    /// Gives a loaded image its command line.
    pub(crate) fn new(image: Handle, command_line: CString16) -> Result<Self> {
        // Owns the image from here on, so that it is unloaded when the next steps fail.
        let loaded = Self {
            image,
            _command_line: Box::new(command_line),
        };
        let text = &loaded._command_line;
        let size = u32::try_from(text.num_bytes()).map_err(|_| uefi::Status::BAD_BUFFER_SIZE)?;
        let mut protocol = boot::open_protocol_exclusive::<LoadedImage>(image)?;
        // SAFETY: the text is of that size, does not move in its box, and lives as long
        // as the image: it is dropped after the image was unloaded.
        unsafe { protocol.set_load_options(text.as_ptr().cast(), size) };
        drop(protocol);
        Ok(loaded)
    }

    /// Starts it. A kernel that takes over does not come back.
    pub(crate) fn start(&self) -> Result {
        boot::start_image(self.image)
    }
}

impl Drop for LoadedKernel {
    fn drop(&mut self) {
        // The firmware has unloaded an image that was started and came back.
        let _ = boot::unload_image(self.image);
    }
}
