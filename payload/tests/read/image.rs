//! An image in memory that notices every byte written to it.

use std::collections::BTreeSet;
use std::io;
use std::sync::Mutex;

use payload::Image;

/// An image of a fixed length in memory.
pub(crate) struct MemoryImage {
    state: Mutex<State>,
}

struct State {
    bytes: Vec<u8>,
    /// 512-byte sectors that were written.
    written: BTreeSet<usize>,
}

impl MemoryImage {
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        let written = BTreeSet::new();
        Self {
            state: Mutex::new(State { bytes, written }),
        }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.state.lock().unwrap().bytes.clone()
    }

    pub(crate) fn was_written(&self) -> bool {
        !self.state.lock().unwrap().written.is_empty()
    }
}

impl Image for MemoryImage {
    fn len(&self) -> u64 {
        self.state.lock().unwrap().bytes.len().try_into().unwrap()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let state = self.state.lock().unwrap();
        let start = usize::try_from(offset).unwrap();
        let bytes = state.bytes.get(start..start + buf.len());
        buf.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    /// A write outside is a bug of the crate, since it knows the length: panics.
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        let start = usize::try_from(offset).unwrap();
        state.bytes[start..start + data.len()].copy_from_slice(data);
        state
            .written
            .extend(start / 512..(start + data.len()).div_ceil(512));
        Ok(())
    }
}
