//! Feeds a payload to the parser as a download would and applies what comes out.

use payload::recompress::Encoders;
use payload::{
    Event, Image, Limits, Manifest, PayloadError, PayloadStream, PendingOperation, Target,
};
use payload::{Trust, Verified, apply, decode};

use crate::image::MemoryImage;

/// The images of a machine that is being updated.
pub(crate) struct Machine {
    pub(crate) partition: MemoryImage,
    pub(crate) kernel: MemoryImage,
    /// What deltas of version 2 read, whatever their target.
    pub(crate) old: Option<MemoryImage>,
}

impl Machine {
    /// The kernel file is given room for `kernel_room` bytes.
    pub(crate) fn new(partition: &[u8], kernel: &[u8], kernel_room: usize) -> Self {
        let mut kernel = kernel.to_vec();
        kernel.resize(kernel_room.max(kernel.len()), 0);
        Self {
            partition: MemoryImage::new(partition.to_vec()),
            kernel: MemoryImage::new(kernel),
            old: None,
        }
    }

    fn old(&self) -> Option<&dyn Image> {
        self.old.as_ref().map(|old| old as &dyn Image)
    }

    pub(crate) fn run(
        &self,
        block_size: u32,
        pending: PendingOperation,
    ) -> Result<(), PayloadError> {
        let image = match pending.target {
            Target::Partition => &self.partition,
            Target::Kernel => &self.kernel,
            Target::PcrPolicy | Target::Unknown(_) | Target::Named(_) => return Ok(()),
        };
        let decoded = decode(
            &pending.operation,
            pending.data,
            self.old(),
            &Encoders::default(),
        )?;
        apply(&pending.operation, block_size, decoded, image, self.old())
    }

    pub(crate) fn holds(&self, manifest: &Manifest) -> bool {
        let parts = manifest.parts();
        let mut known = parts.filter(|(target, _)| !matches!(target, Target::Named(_)));
        known.all(|(target, part)| {
            let image = if target == Target::Kernel {
                &self.kernel
            } else {
                &self.partition
            };
            part.new.matches(image).unwrap()
        })
    }
}

/// Pushes `bytes` in chunks of `chunk` and applies every operation.
pub(crate) fn feed(
    stream: &mut PayloadStream,
    bytes: &[u8],
    chunk: usize,
    machine: &Machine,
) -> Result<(), PayloadError> {
    for chunk in bytes.chunks(chunk) {
        stream.push(chunk);
        while let Some(event) = stream.next_event()? {
            if let Event::Operation(pending) = event {
                let block_size = stream.manifest().unwrap().block_size;
                machine.run(block_size, pending)?;
            }
        }
    }
    Ok(())
}

/// The whole payload from its first byte.
pub(crate) fn install(
    payload: &[u8],
    chunk: usize,
    trust: &Trust,
    machine: &Machine,
) -> Result<Verified, PayloadError> {
    let mut stream = PayloadStream::new(Limits::default(), trust);
    feed(&mut stream, payload, chunk, machine)?;
    stream.finish()
}

/// Checks without applying.
pub(crate) fn check(payload: &[u8], trust: &Trust) -> Result<Verified, PayloadError> {
    let mut stream = PayloadStream::new(Limits::default(), trust);
    stream.push(payload);
    while stream.next_event()?.is_some() {}
    stream.finish()
}
