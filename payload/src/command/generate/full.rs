//! `payload generate` without `--old`: images whole.

use std::fs::File;

use payload::make::verity::ImageReader;
use payload::make::{self, Draft, MakeError, Profile, Source};
use payload::{Image, pipeline};

use crate::talk::progress;

/// Compresses an image, the kernel beside it and further partitions.
pub(super) fn draft(
    image: &dyn Image,
    kernel: Option<&File>,
    named: &[(&str, &File)],
    profile: Profile,
    scratch: File,
) -> Result<Draft<File>, MakeError> {
    let files = kernel.iter().chain(named.iter().map(|(_, file)| file));
    let total = files.fold(image.len(), |total, file| total.saturating_add(file.len()));
    let bar = progress("compress", total);
    let reader = |image| bar.wrap_read(ImageReader::new(image));
    let mut image_reader = reader(image);
    let mut kernel = kernel.map(|kernel| (reader(kernel), kernel.len()));
    let mut named: Vec<_> = named
        .iter()
        .map(|&(name, file)| (name.to_owned(), reader(file), file.len()))
        .collect();
    let draft = make::full(
        Source {
            reader: &mut image_reader,
            size: image.len(),
        },
        kernel.as_mut().map(|(reader, size)| Source {
            reader,
            size: *size,
        }),
        named
            .iter_mut()
            .map(|(name, reader, size)| {
                (
                    std::mem::take(name),
                    Source {
                        reader,
                        size: *size,
                    },
                )
            })
            .collect(),
        profile,
        scratch,
        pipeline::all_cores(),
    );
    bar.finish_and_clear();
    draft
}
