//! Block devices and disk image files.

use std::boxed::Box;
use std::error::Error;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};
use std::vec::Vec;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, PosixFadviseAdvice, fallocate, posix_fadvise};
use nix::libc::{O_DIRECT, O_EXCL};

use crate::Gpt;
use crate::device::{BlockDevice, DeviceError, check_bounds, length_of};

/// What a [`FileDevice`] is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading only, without a lock.
    ReadOnly,
    /// Reading and writing, with an exclusive lock.
    ReadWrite,
    /// The same of a device that nothing else uses: fails while it is mounted or mapped,
    /// and keeps it from being so. For a file it is [`Access::ReadWrite`].
    Unused,
}

/// A block device, or a file that holds the image of one.
///
/// Opened for writing it holds an exclusive advisory lock (`flock`) as long as it lives,
/// so that two writers never interleave. Udev honours the same lock and leaves the device
/// alone meanwhile. A file never grows by writing.
#[derive(Debug)]
pub struct FileDevice {
    file: File,
    /// The same file opened around the page cache; `None` where that is not possible.
    direct: OnceLock<Option<File>>,
    len: u64,
    sector_size: u32,
}

impl FileDevice {
    /// Opens a device or image and waits up to five seconds for the lock, because udev
    /// holds it for moments when a device changes.
    ///
    /// The sector size of a block device comes from sysfs. An image file has the size
    /// with which its partition table can be read, or else 512.
    pub fn open(path: impl AsRef<Path>, access: Access) -> Result<FileDevice, DeviceError> {
        FileDevice::open_within(path, access, Duration::from_secs(5))
    }

    /// The same with another patience for the lock.
    pub fn open_within(
        path: impl AsRef<Path>,
        access: Access,
        patience: Duration,
    ) -> Result<FileDevice, DeviceError> {
        open_and_lock(path.as_ref(), access, patience)
            .and_then(FileDevice::examine)
            .map_err(|cause| DeviceError::new("open", 0, 0, cause))
    }

    fn examine(mut file: File) -> Result<FileDevice, Box<dyn Error + Send + Sync>> {
        let len = file.seek(SeekFrom::End(0))?;
        let metadata = file.metadata()?;
        let mut device = FileDevice {
            file,
            direct: OnceLock::new(),
            len,
            sector_size: 512,
        };
        // In a sandbox without sysfs even a block device is examined like a file.
        let told = match metadata.file_type().is_block_device() {
            true => crate::sysfs::logical_block_size(metadata.rdev()).ok(),
            false => None,
        };
        device.sector_size = told.unwrap_or_else(|| device.detect_sector_size());
        Ok(device)
    }

    /// The size with which a partition table makes sense. 512 if there is none.
    fn detect_sector_size(&mut self) -> u32 {
        for size in [512, 4096] {
            self.sector_size = size;
            if Gpt::read(self).is_ok() {
                return size;
            }
        }
        // Perhaps both copies are broken; then their signature still tells.
        let signature_at = |offset| {
            let mut signature = [0; 8];
            self.file.read_exact_at(&mut signature, offset).is_ok() && &signature == b"EFI PART"
        };
        let signed = |size: u64| signature_at(size) || signature_at(self.len.saturating_sub(size));
        match !signed(512) && signed(4096) {
            true => 4096,
            false => 512,
        }
    }

    /// Opens the file a second time for direct reads.
    fn direct(&self) -> Option<&File> {
        self.direct
            .get_or_init(|| {
                use std::os::fd::AsRawFd;
                // By descriptor, because the path may mean another file by now.
                let path = std::format!("/proc/self/fd/{}", self.file.as_raw_fd());
                let mut options = OpenOptions::new();
                options.read(true).custom_flags(O_DIRECT);
                options.open(path).ok()
            })
            .as_ref()
    }

    /// Sends the cached pages of a range away, so that a read fetches them anew.
    fn read_after_dropping_cache(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.sync_all()?;
        posix_fadvise(
            &self.file,
            i64::try_from(offset).map_err(io::Error::other)?,
            i64::try_from(buf.len()).map_err(io::Error::other)?,
            PosixFadviseAdvice::POSIX_FADV_DONTNEED,
        )?;
        self.file.read_exact_at(buf, offset)
    }
}

impl BlockDevice for FileDevice {
    fn len(&self) -> u64 {
        self.len
    }

    fn sector_size(&self) -> u32 {
        self.sector_size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DeviceError> {
        let length = length_of(buf);
        check_bounds("read", offset, length, self.len)?;
        self.file
            .read_exact_at(buf, offset)
            .map_err(|cause| DeviceError::new("read", offset, length, cause))
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        let length = length_of(data);
        check_bounds("write", offset, length, self.len)?;
        self.file
            .write_all_at(data, offset)
            .map_err(|cause| DeviceError::new("write", offset, length, cause))
    }

    fn sync(&self) -> Result<(), DeviceError> {
        self.file
            .sync_data()
            .map_err(|cause| DeviceError::new("sync", 0, 0, cause))
    }

    /// Punches a hole into a file, discards (or zeroes fast) on a block device, and does
    /// nothing where neither is possible.
    fn discard(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        check_bounds("discard", offset, len, self.len)?;
        let size = u64::from(self.sector_size);
        let start = offset.next_multiple_of(size);
        let end = (offset + len) / size * size;
        let failed = |cause: io::Error| DeviceError::new("discard", offset, len, cause);
        let (Ok(place), Ok(whole)) = (
            i64::try_from(start),
            i64::try_from(end.saturating_sub(start)),
        ) else {
            return Ok(());
        };
        if whole == 0 {
            return Ok(());
        }
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        match fallocate(&self.file, flags, place, whole) {
            Ok(()) | Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL) => Ok(()),
            Err(errno) => Err(failed(errno.into())),
        }
    }

    fn read_medium_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DeviceError> {
        let length = length_of(buf);
        check_bounds("read", offset, length, self.len)?;
        let direct = match self.direct() {
            Some(direct) => read_direct(direct, offset, buf),
            None => Err(Errno::EINVAL.into()),
        };
        match direct {
            // What file systems say that cannot do direct reads, or not so aligned.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                self.read_after_dropping_cache(offset, buf)
            }
            other => other,
        }
        .map_err(|cause| DeviceError::new("read", offset, length, cause))
    }
}

fn open_and_lock(
    path: &Path,
    access: Access,
    patience: Duration,
) -> Result<File, Box<dyn Error + Send + Sync>> {
    // Before opening: opening a pipe would wait for its other end.
    let file_type = fs::metadata(path)?.file_type();
    if !file_type.is_file() && !file_type.is_block_device() {
        return Err("it is neither a block device nor a file".into());
    }
    let write = access != Access::ReadOnly;
    let mut options = OpenOptions::new();
    options.read(true).write(write);
    if access == Access::Unused && file_type.is_block_device() {
        options.custom_flags(O_EXCL);
    }
    let file = match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
            return Err("it is mounted or mapped; stop that first".into());
        }
        opened => opened?,
    };
    if write {
        lock(&file, patience)?;
    }
    Ok(file)
}

fn lock(file: &File, patience: Duration) -> Result<(), Box<dyn Error + Send + Sync>> {
    let start = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(error.into()),
            Err(TryLockError::WouldBlock) if start.elapsed() >= patience => {
                return Err("another program is writing to it".into());
            }
            Err(TryLockError::WouldBlock) => thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// The strictest alignment that direct reads ask for: of place, length and memory.
const ALIGNMENT: u64 = 4096;

/// Bytes per direct read.
const CHUNK: u64 = 1 << 20;

/// Reads any range by aligned requests that cover it.
fn read_direct(file: &File, offset: u64, buf: &mut [u8]) -> io::Result<()> {
    let end = offset + length_of(buf);
    let mut aligned = AlignedBuffer::new(CHUNK.min(length_of(buf) + 2 * ALIGNMENT));
    let mut position = offset;
    while position < end {
        let start = position / ALIGNMENT * ALIGNMENT;
        // At the end of a device or file the read is short, but never before `end`.
        let chunk = aligned.slice();
        let filled = u64::try_from(file.read_at(chunk, start)?).map_err(io::Error::other)?;
        let from = position - start;
        let to = filled.min(end - start);
        if to <= from {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let target = index(position - offset)..index(start + to - offset);
        buf[target].copy_from_slice(&chunk[index(from)..index(to)]);
        position = start + to;
    }
    Ok(())
}

/// Memory that begins at a multiple of [`ALIGNMENT`].
struct AlignedBuffer {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuffer {
    fn new(len: u64) -> AlignedBuffer {
        let alignment = index(ALIGNMENT);
        let len = index(len.next_multiple_of(ALIGNMENT));
        let bytes = std::vec![0; len + alignment];
        let start = bytes.as_ptr().align_offset(alignment);
        AlignedBuffer { bytes, start, len }
    }

    fn slice(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).expect("a part of a buffer in memory")
}
