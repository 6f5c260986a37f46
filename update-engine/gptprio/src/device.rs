//! Disks as the rest of the crate sees them.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::error::Error;
use core::fmt;

/// A disk, a partition, or anything that is addressed by bytes and keeps them.
///
/// All methods take `&self`, so that several views can share one disk. A write may stay
/// in caches until [`BlockDevice::sync`]; between two syncs a power cut may keep any
/// subset of the written sectors, in any order.
///
/// Offsets and lengths are bytes. Requests beyond the end are refused.
pub trait BlockDevice: Send + Sync {
    /// Size in bytes.
    fn len(&self) -> u64;

    /// Whether the device holds no byte at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Size in bytes of the logical sector, the unit in which the partition table counts:
    /// 512 or 4096.
    fn sector_size(&self) -> u32;

    /// Fills `buf` from `offset`.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DeviceError>;

    /// Writes the whole of `data` at `offset`.
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError>;

    /// Returns when everything written before is on the medium.
    fn sync(&self) -> Result<(), DeviceError>;

    /// Tells the device that the range holds nothing of value. A hint: a device may
    /// ignore it, and what the range reads as afterwards is unknown.
    fn discard(&self, offset: u64, len: u64) -> Result<(), DeviceError>;

    /// Fills `buf` from the medium, around any cache that the device has, so that a
    /// reader sees what a power cut would leave. Call [`BlockDevice::sync`] before.
    fn read_medium_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DeviceError> {
        self.read_at(offset, buf)
    }
}

macro_rules! forward_to_the_inner_device {
    ($pointer:ty) => {
        impl<T: BlockDevice + ?Sized> BlockDevice for $pointer {
            fn len(&self) -> u64 {
                (**self).len()
            }
            fn sector_size(&self) -> u32 {
                (**self).sector_size()
            }
            fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DeviceError> {
                (**self).read_at(offset, buf)
            }
            fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
                (**self).write_at(offset, data)
            }
            fn sync(&self) -> Result<(), DeviceError> {
                (**self).sync()
            }
            fn discard(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
                (**self).discard(offset, len)
            }
            fn read_medium_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DeviceError> {
                (**self).read_medium_at(offset, buf)
            }
        }
    };
}

forward_to_the_inner_device!(&T);
forward_to_the_inner_device!(Box<T>);
forward_to_the_inner_device!(Arc<T>);

/// A request to a device that failed: which, where, and (as the source) why.
#[derive(Debug, thiserror::Error)]
pub struct DeviceError {
    operation: &'static str,
    offset: u64,
    length: u64,
    #[source]
    cause: Box<dyn Error + Send + Sync>,
}

impl DeviceError {
    /// An error of `operation` (a verb: `"read"`, `"write"`, `"sync"`, …) on `length`
    /// bytes at `offset`; a length of 0 means the device as a whole.
    pub fn new(
        operation: &'static str,
        offset: u64,
        length: u64,
        cause: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> DeviceError {
        DeviceError {
            operation,
            offset,
            length,
            cause: cause.into(),
        }
    }

    /// The verb of the failed request.
    pub fn operation(&self) -> &'static str {
        self.operation
    }

    /// Where the failed request began, in bytes.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// How many bytes the failed request was for; 0 for the device as a whole.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Why it failed; a `std::io::Error` for files and block devices.
    pub fn cause(&self) -> &(dyn Error + Send + Sync + 'static) {
        &*self.cause
    }
}

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DeviceError {
            operation,
            offset,
            length,
            ..
        } = self;
        match length {
            0 => write!(f, "cannot {operation} the device"),
            _ => write!(f, "cannot {operation} {length} bytes at offset {offset}"),
        }
    }
}

/// Refuses a request that does not lie inside `device_len` bytes.
pub(crate) fn check_bounds(
    operation: &'static str,
    offset: u64,
    length: u64,
    device_len: u64,
) -> Result<(), DeviceError> {
    match offset.checked_add(length) {
        Some(end) if end <= device_len => Ok(()),
        _ => Err(DeviceError::new(
            operation,
            offset,
            length,
            alloc::format!("the device ends at {device_len}"),
        )),
    }
}

/// Length of a buffer as a device counts.
pub(crate) fn length_of(buf: &[u8]) -> u64 {
    u64::try_from(buf.len()).expect("a buffer in memory is shorter than 2^64 bytes")
}

/// A window of a device, such as one partition of a disk.
///
/// Nothing outside the window can be read or written through it. Offsets count from its
/// start. [`BlockDevice::sync`] syncs the whole device.
#[derive(Debug)]
pub struct Region<D> {
    device: D,
    start: u64,
    len: u64,
}

impl<D: BlockDevice> Region<D> {
    /// The window of `len` bytes at `offset`, which must lie inside the device.
    pub fn new(device: D, offset: u64, len: u64) -> Result<Region<D>, DeviceError> {
        check_bounds("open", offset, len, device.len())?;
        Ok(Region {
            device,
            start: offset,
            len,
        })
    }

    /// The place of a request on the device.
    fn translate(
        &self,
        operation: &'static str,
        offset: u64,
        length: u64,
    ) -> Result<u64, DeviceError> {
        check_bounds(operation, offset, length, self.len)?;
        Ok(self
            .start
            .checked_add(offset)
            .expect("the window lies inside the device and the request inside the window"))
    }
}

impl<D: BlockDevice> BlockDevice for Region<D> {
    fn len(&self) -> u64 {
        self.len
    }

    fn sector_size(&self) -> u32 {
        self.device.sector_size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DeviceError> {
        let place = self.translate("read", offset, length_of(buf))?;
        self.device.read_at(place, buf)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        let place = self.translate("write", offset, length_of(data))?;
        self.device.write_at(place, data)
    }

    fn sync(&self) -> Result<(), DeviceError> {
        self.device.sync()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        let place = self.translate("discard", offset, len)?;
        self.device.discard(place, len)
    }

    fn read_medium_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DeviceError> {
        let place = self.translate("read", offset, length_of(buf))?;
        self.device.read_medium_at(place, buf)
    }
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use super::*;
    use crate::testing::FakeDisk;
    use alloc::string::ToString;

    #[test]
    fn a_region_reaches_its_own_bytes_alone() {
        let disk = FakeDisk::new(512, 8192);
        let region = Region::new(&disk, 1024, 2048).unwrap();
        region.write_at(0, &[1; 2048]).unwrap();

        let mut all = [0; 8192];
        disk.read_at(0, &mut all).unwrap();
        assert!(all[..1024].iter().all(|&byte| byte == 0));
        assert!(all[1024..3072].iter().all(|&byte| byte == 1));
        assert!(all[3072..].iter().all(|&byte| byte == 0));

        for (offset, length) in [(2048, 1), (2047, 2), (0, 2049), (u64::MAX, 1)] {
            let mut buf = alloc::vec![0; length];
            assert!(region.read_at(offset, &mut buf).is_err());
            assert!(region.read_medium_at(offset, &mut buf).is_err());
            assert!(region.write_at(offset, &buf).is_err());
            assert!(region.discard(offset, length_of(&buf)).is_err());
        }
        let error = region.write_at(2000, &[0; 100]).unwrap_err();
        assert_eq!(error.to_string(), "cannot write 100 bytes at offset 2000");
        assert_eq!(error.cause().to_string(), "the device ends at 2048");
    }

    #[test]
    fn a_region_must_lie_inside_its_device() {
        let disk = FakeDisk::new(512, 8192);
        assert!(Region::new(&disk, 8192, 0).is_ok());
        for (offset, len) in [(8192, 1), (0, 8193), (u64::MAX, 2)] {
            assert!(Region::new(&disk, offset, len).is_err(), "{offset} {len}");
        }
    }
}
