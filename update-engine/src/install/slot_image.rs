//! A boot slot as the payload library wants to see it.

use std::io;
use std::sync::Arc;

use gptprio::BlockDevice;
use payload::Image;

/// A device or partition as an image of fixed size.
pub(super) struct SlotImage(pub(super) Arc<dyn BlockDevice>);

impl Image for SlotImage {
    fn len(&self) -> u64 {
        self.0.len()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, buffer).map_err(io::Error::other)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, data).map_err(io::Error::other)
    }
}
