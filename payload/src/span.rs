//! Lists of extents as one span of bytes: what operations read from and write to.

use crate::error::PayloadError;
use crate::extent::{self, Extent};
use crate::image::{self, Image};
use crate::operation::Operation;

/// The bytes that an operation starts from.
pub(crate) enum Source<'a> {
    /// Left where they are, since nothing of them is overwritten.
    Image(ExtentReader<'a>),
    /// Read before the first write.
    Memory(Vec<u8>),
}

impl<'a> Source<'a> {
    /// Opens the first `length` bytes of what `operation` reads. A copy in memory is
    /// bounded by [`crate::Limits::source`], which the manifest was held to.
    pub(crate) fn open(
        operation: &Operation,
        image: &'a dyn Image,
        length: u64,
    ) -> Result<Self, PayloadError> {
        let reader = ExtentReader::new(operation.index, image, operation.source(), length)?;
        if operation.is_idempotent() {
            return Ok(Source::Image(reader));
        }
        Ok(Source::Memory(reader.read_all(operation)?))
    }

    /// Bytes that can be read.
    pub(crate) fn length(&self) -> u64 {
        match self {
            Source::Image(reader) => reader.length(),
            Source::Memory(bytes) => extent::size(bytes.len()),
        }
    }

    /// Fills `buf` from `position`; both lie within [`Source::length`].
    pub(crate) fn read(&self, position: u64, buf: &mut [u8]) -> Result<(), PayloadError> {
        match self {
            Source::Image(reader) => reader.read(position, buf)?,
            Source::Memory(bytes) => {
                let start = usize::try_from(position).expect("it lies within a buffer");
                buf.copy_from_slice(&bytes[start..start + buf.len()]);
            }
        }
        Ok(())
    }
}

/// Reads the bytes that a list of extents spans, as if they lay side by side.
pub(crate) struct ExtentReader<'a> {
    image: &'a dyn Image,
    /// Each extent with the position of its first byte in the span.
    extents: Vec<(u64, Extent)>,
    length: u64,
}

impl<'a> ExtentReader<'a> {
    /// Spans the first `length` bytes of `extents`, all of which must lie in the image.
    pub(crate) fn new(
        index: usize,
        image: &'a dyn Image,
        extents: &[Extent],
        length: u64,
    ) -> Result<Self, PayloadError> {
        let available = image.len();
        let mut start = 0;
        let mut placed = Vec::with_capacity(extents.len());
        for &extent in extents {
            if start >= length {
                break;
            }
            let used = extent.length().min(length - start);
            if let Extent::Run { offset, .. } = extent {
                check_bounds(index, available, offset, used)?;
            }
            placed.push((start, extent));
            start = extent.length().saturating_add(start);
        }
        Ok(Self {
            image,
            extents: placed,
            length: length.min(start),
        })
    }

    /// Bytes that can be read.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// The whole span in memory; how much that may be is the caller's business.
    pub(crate) fn read_all(&self, operation: &Operation) -> Result<Vec<u8>, PayloadError> {
        let size = usize::try_from(self.length).map_err(|error| operation.failed(error))?;
        let mut bytes = Vec::new();
        bytes
            .try_reserve_exact(size)
            .map_err(|error| operation.failed(error))?;
        bytes.resize(size, 0);
        if size > 0 {
            self.read(0, &mut bytes)?;
        }
        Ok(bytes)
    }

    /// Fills `buf` from `position` in the span; `position + buf.len()` must not
    /// exceed [`ExtentReader::length`]. Holes read as zeros.
    pub(crate) fn read(&self, position: u64, buf: &mut [u8]) -> Result<(), PayloadError> {
        let first = self
            .extents
            .partition_point(|&(start, _)| start <= position);
        let mut position = position;
        let mut buf = buf;
        for &(start, extent) in &self.extents[first.saturating_sub(1)..] {
            let skipped = position - start;
            let left = extent.length().saturating_sub(skipped);
            let length = usize::try_from(left).map_or(buf.len(), |left| left.min(buf.len()));
            let (chunk, rest) = buf.split_at_mut(length);
            match extent {
                Extent::Run { offset, .. } if length > 0 => {
                    image::read(self.image, offset + skipped, chunk)?;
                }
                Extent::Run { .. } | Extent::Hole { .. } => chunk.fill(0),
            }
            if rest.is_empty() {
                return Ok(());
            }
            buf = rest;
            position += extent::size(length);
        }
        Ok(())
    }
}

/// Writes bytes one after another over a list of extents.
pub(crate) struct ExtentWriter<'a> {
    index: usize,
    image: &'a dyn Image,
    available: u64,
    extents: std::slice::Iter<'a, Extent>,
    /// What is left of the extent being written.
    current: Extent,
    written: u64,
}

impl<'a> ExtentWriter<'a> {
    pub(crate) fn new(index: usize, image: &'a dyn Image, extents: &'a [Extent]) -> Self {
        Self {
            index,
            image,
            available: image.len(),
            extents: extents.iter(),
            current: Extent::Hole { length: 0 },
            written: 0,
        }
    }

    /// Writes all of `data`; `false` when the extents are full before that.
    pub(crate) fn write(&mut self, mut data: &[u8]) -> Result<bool, PayloadError> {
        while !data.is_empty() {
            if self.current.length() == 0 {
                match self.extents.next() {
                    Some(extent) => self.current = *extent,
                    None => return Ok(false),
                }
                continue;
            }
            let left = self.current.length();
            let length = usize::try_from(left).map_or(data.len(), |left| left.min(data.len()));
            let (chunk, rest) = data.split_at(length);
            let step = extent::size(length);
            self.current = match self.current {
                Extent::Hole { length } => Extent::Hole {
                    length: length - step,
                },
                Extent::Run { offset, length } => {
                    self.write_run(offset, chunk)?;
                    Extent::Run {
                        offset: offset + step,
                        length: length - step,
                    }
                }
            };
            self.written += step;
            data = rest;
        }
        Ok(true)
    }

    /// Leaves the next `length` bytes of the extents as they are.
    pub(crate) fn skip(&mut self, mut length: u64) {
        while length > 0 {
            if self.current.length() == 0 {
                match self.extents.next() {
                    Some(extent) => self.current = *extent,
                    None => return,
                }
                continue;
            }
            let step = length.min(self.current.length());
            self.current = match self.current {
                Extent::Hole { length } => Extent::Hole {
                    length: length - step,
                },
                Extent::Run { offset, length } => Extent::Run {
                    offset: offset + step,
                    length: length - step,
                },
            };
            length -= step;
        }
    }

    /// Fills the last block with zeros if it was written in part. Further blocks
    /// of the extents stay as they are.
    pub(crate) fn finish(self, block_size: u32) -> Result<(), PayloadError> {
        let block_size = u64::from(block_size);
        match (self.written % block_size, self.current) {
            (0, _) | (_, Extent::Hole { .. }) => Ok(()),
            (tail, Extent::Run { offset, .. }) => {
                let padding = usize::try_from(block_size - tail).expect("a block fits memory");
                self.write_run(offset, &vec![0; padding])
            }
        }
    }

    fn write_run(&self, offset: u64, chunk: &[u8]) -> Result<(), PayloadError> {
        let length = extent::size(chunk.len());
        check_bounds(self.index, self.available, offset, length)?;
        self.image
            .write_at(offset, chunk)
            .map_err(|source| PayloadError::Write {
                offset,
                length,
                source,
            })
    }
}

/// Writes zeros over all of `extents`.
pub(crate) fn write_zeros(
    index: usize,
    image: &dyn Image,
    extents: &[Extent],
) -> Result<(), PayloadError> {
    let available = image.len();
    for extent in extents {
        if let Extent::Run { offset, length } = *extent {
            check_bounds(index, available, offset, length)?;
            let written = image.write_zeros(offset, length);
            written.map_err(|source| PayloadError::Write {
                offset,
                length,
                source,
            })?;
        }
    }
    Ok(())
}

fn check_bounds(
    index: usize,
    available: u64,
    offset: u64,
    length: u64,
) -> Result<(), PayloadError> {
    match offset.checked_add(length) {
        Some(end) if end <= available => Ok(()),
        _ => Err(PayloadError::OutOfBounds {
            index,
            offset,
            length,
            available,
        }),
    }
}
