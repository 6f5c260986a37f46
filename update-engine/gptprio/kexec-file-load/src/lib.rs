//! `kexec_file_load(2)`: hands a kernel to the running one, which jumps into it
//! at the end of an orderly shutdown.
//!
//! No crate of the field wraps the call, and the rest of this workspace forbids
//! unsafe code; so it stands alone here, behind two safe functions. It knows
//! nothing of boot slots or of when to reboot.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

// Flags of <linux/kexec.h>.
const UNLOAD: libc::c_ulong = 1;
const NO_INITRAMFS: libc::c_ulong = 4;

/// Stages `kernel`, with `initrd` when there is one, to be started with
/// `command_line`. Whatever was staged before is replaced.
///
/// # Errors
///
/// What the kernel says: `EPERM` without the right or under lockdown, `ENOSYS`
/// in a kernel without kexec, `ENOEXEC` or `EKEYREJECTED` for an image that it
/// does not take, `EBUSY` while another call runs.
pub fn load(
    kernel: BorrowedFd<'_>,
    initrd: Option<BorrowedFd<'_>>,
    command_line: &CStr,
) -> io::Result<()> {
    let (initrd, flags) = match initrd {
        Some(fd) => (fd.as_raw_fd(), 0),
        None => (-1, NO_INITRAMFS),
    };
    call(kernel.as_raw_fd(), initrd, command_line, flags)
}

/// Drops what is staged; the next reboot goes through the firmware again.
///
/// # Errors
///
/// As [`load`].
pub fn unload() -> io::Result<()> {
    call(-1, -1, c"", UNLOAD)
}

fn call(
    kernel: libc::c_int,
    initrd: libc::c_int,
    command_line: &CStr,
    flags: libc::c_ulong,
) -> io::Result<()> {
    let length = command_line.to_bytes_with_nul().len();
    // SAFETY: `command_line` outlives the call and `length` counts its final
    // zero, as the kernel wants it; the kernel copies the text and keeps no
    // pointer. The descriptors are open for as long as the caller's borrows, or
    // -1 where the flags say that there is none.
    let result = unsafe {
        libc::syscall(
            libc::SYS_kexec_file_load,
            kernel,
            initrd,
            length,
            command_line.as_ptr(),
            flags,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_file_that_is_no_kernel_is_refused_with_the_kernels_reason() {
        let nothing = std::fs::File::open("/dev/null").unwrap();
        let error = load(nothing.as_fd(), None, c"quiet").unwrap_err();
        assert!(error.raw_os_error().is_some_and(|code| code > 0), "{error}");
    }
}
