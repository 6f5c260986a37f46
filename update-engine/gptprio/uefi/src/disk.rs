//! The disk on which this program lies, as a [`BlockDevice`].

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use gptprio::{BlockDevice, DeviceError};
use uefi::boot::{self, ScopedProtocol};
use uefi::proto::device_path::build::DevicePathBuilder;
use uefi::proto::device_path::{DevicePath, DeviceSubType, DeviceType};
use uefi::proto::loaded_image::LoadedImage;
use uefi::proto::media::block::BlockIO;

use crate::firmware::DiskHandle;

/// A whole disk.
#[derive(Debug)]
pub(crate) struct Disk {
    handle: DiskHandle,
    media: u32,
    sector_size: u32,
    len: u64,
    /// What the memory of a request has to be aligned to, in bytes.
    alignment: usize,
}

impl Disk {
    /// The disk with the partition from which the firmware has loaded this program. An
    /// error is a reason in words.
    pub(crate) fn of_this_program() -> Result<Self, String> {
        let failed = |what| move |error: uefi::Error| format!("{what}: {}", error.status());
        let image = boot::open_protocol_exclusive::<LoadedImage>(boot::image_handle())
            .map_err(failed("the firmware does not tell what it has loaded"))?;
        let partition = image
            .device()
            .ok_or("this program was not loaded from a disk")?;
        let path = boot::open_protocol_exclusive::<DevicePath>(partition)
            .map_err(failed("the partition of this program has no path"))?;

        // …/NVMe(1)/HD(1,GPT,…): the disk is what comes before the partition.
        let mut buffer = Vec::new();
        let mut above = DevicePathBuilder::with_vec(&mut buffer);
        let mut is_partition = false;
        for node in path.node_iter() {
            if node.full_type() == (DeviceType::MEDIA, DeviceSubType::MEDIA_HARD_DRIVE) {
                is_partition = true;
                break;
            }
            above = above
                .push(&node)
                .map_err(|error| format!("the path of the partition is broken: {error}"))?;
        }
        if !is_partition {
            return Err("this program was not loaded from a partition of a disk".into());
        }
        let mut rest = above
            .finalize()
            .map_err(|error| format!("the path of the disk is broken: {error}"))?;
        let handle = boot::locate_device_path::<BlockIO>(&mut rest).map_err(failed(
            "the firmware does not show the disk of this program",
        ))?;
        let handle = DiskHandle::new(handle);
        let blocks = handle
            .blocks()
            .map_err(failed("the disk of this program cannot be opened"))?;
        let media = blocks.media();
        if media.is_logical_partition() || !media.is_media_present() {
            return Err("the firmware does not show the whole disk of this program".into());
        }
        let sectors = media.last_block().checked_add(1);
        Ok(Self {
            handle,
            media: media.media_id(),
            sector_size: media.block_size(),
            len: sectors
                .and_then(|sectors| sectors.checked_mul(u64::from(media.block_size())))
                .ok_or("the disk is larger than 2^64 bytes")?,
            alignment: usize::try_from(media.io_align().max(1)).unwrap_or(1),
        })
    }

    /// The first sector of a request, and whole sectors of memory for it; its bytes begin
    /// `skip` bytes into them.
    fn request(&self, offset: u64, length: usize) -> Option<Request> {
        let size = u64::from(self.sector_size);
        let start = offset.checked_div(size)?;
        let skip = offset % size;
        let end = skip.checked_add(u64::try_from(length).ok()?)?;
        let whole = usize::try_from(end.checked_next_multiple_of(size)?).ok()?;
        let memory = vec![0; whole.checked_add(self.alignment)?];
        let from = memory.as_ptr().align_offset(self.alignment);
        Some(Request {
            lba: start,
            skip: from.checked_add(usize::try_from(skip).ok()?)?,
            sectors: from..from.checked_add(whole)?,
            memory,
        })
    }

    fn blocks(&self) -> uefi::Result<ScopedProtocol<BlockIO>> {
        self.handle.blocks()
    }
}

struct Request {
    lba: u64,
    memory: Vec<u8>,
    /// The aligned part of the memory.
    sectors: core::ops::Range<usize>,
    /// Where the wanted bytes begin in the memory.
    skip: usize,
}

const TOO_LARGE: &str = "the request is too large";

impl BlockDevice for Disk {
    fn len(&self) -> u64 {
        self.len
    }

    fn sector_size(&self) -> u32 {
        self.sector_size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DeviceError> {
        let failed = Failed::new("read", offset, buf.len());
        let mut request = self
            .request(offset, buf.len())
            .ok_or_else(|| failed.because(TOO_LARGE))?;
        let sectors = &mut request.memory[request.sectors];
        self.blocks()
            .and_then(|mut blocks| blocks.read_blocks(self.media, request.lba, sectors))
            .map_err(|error| failed.because(error.status()))?;
        buf.copy_from_slice(&request.memory[request.skip..][..buf.len()]);
        Ok(())
    }

    /// Whole sectors only, as the partition table is written.
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        let failed = Failed::new("write", offset, data.len());
        let mut request = self
            .request(offset, data.len())
            .ok_or_else(|| failed.because(TOO_LARGE))?;
        if request.skip != request.sectors.start || request.sectors.len() != data.len() {
            return Err(failed.because("only whole sectors can be written"));
        }
        let sectors = &mut request.memory[request.sectors];
        sectors.copy_from_slice(data);
        self.blocks()
            .and_then(|mut blocks| blocks.write_blocks(self.media, request.lba, sectors))
            .map_err(|error| failed.because(error.status()))
    }

    fn sync(&self) -> Result<(), DeviceError> {
        self.blocks()
            .and_then(|mut blocks| blocks.flush_blocks())
            .map_err(|error| Failed::new("sync", 0, 0).because(error.status()))
    }

    fn discard(&self, _: u64, _: u64) -> Result<(), DeviceError> {
        Ok(())
    }
}

/// A request, for the error that it may end in.
struct Failed {
    operation: &'static str,
    offset: u64,
    length: u64,
}

impl Failed {
    fn new(operation: &'static str, offset: u64, length: usize) -> Self {
        let length = u64::try_from(length).unwrap_or(u64::MAX);
        Self {
            operation,
            offset,
            length,
        }
    }

    fn because(&self, cause: impl core::fmt::Display) -> DeviceError {
        DeviceError::new(self.operation, self.offset, self.length, format!("{cause}"))
    }
}
