//! `BLKRRPART`: has the kernel look at the partition table of a disk again.
//!
//! The kernel shows no partitions of a disk whose primary table was broken when it came
//! up, even after it was repaired. The call has no safe wrapper elsewhere, and stands in a
//! crate of its own so that its users can forbid unsafe code.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `_IO(0x12, 95)` of <linux/fs.h>.
const BLKRRPART: libc::Ioctl = 0x125f;

/// Reads the table of the disk again, which was opened by its own node.
///
/// # Errors
///
/// What the kernel says: `EBUSY` while a partition is mounted, `EACCES` without the
/// right, `EINVAL` or `ENOTTY` for what is no disk with partitions.
pub fn reread(disk: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the request takes no argument, so the kernel reads and writes no memory of
    // ours. The descriptor is open for as long as the caller's borrow.
    let result = unsafe { libc::ioctl(disk.as_raw_fd(), BLKRRPART) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    #[test]
    fn what_is_no_disk_is_refused_with_the_kernels_reason() {
        let nothing = File::open("/dev/null").unwrap();
        let error = reread(nothing.as_fd()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTTY));
    }
}
