//! Deltas of any image: what changed between two images, as operations.
//!
//! ```text
//! old image ─▶ Space: its bytes, then its compressed blocks decoded ─▶ Seeds ┐
//! new image ─▶ equal runs ─▶ SOURCE_COPY, ZERO                               │
//!           └▶ the rest ─▶ windows of some MiB, each in its own thread:      │
//!                decode what an encoder can make again (proven, bit for bit) │
//!                match it against the old image ◀────────────────────────────┘
//!                DELTA or RECOMPRESS, or REPLACE_ZSTD where nothing matches
//! ```
//! The result depends on the images and the encoders at hand alone, not on the
//! number of threads. Filesystems are looked at for their compressed blocks only;
//! to everything else an image is bytes.

mod equal;
mod index;
mod matching;
mod recoding;
mod space;
mod standard;
mod window;

use std::collections::VecDeque;
use std::io::Write;
use std::num::NonZeroUsize;
use std::ops::Range;

use sha2::{Digest, Sha256};

use super::{BLOCK_SIZE, Blocks, MakeError, PreparedKind, PreparedOperation};
use super::{PreparedPart, PreparedSource, Profile, Scratch};
use crate::Image;
use crate::extent::size;
use crate::manifest::ImageInfo;
use crate::pipeline::in_order;
use crate::recompress::Encoders;
use crate::shape::MOST_ENCODERS;
use equal::Claim;
pub use recoding::Reproduced;
use recoding::{Found, Recoding};
use space::Space;
use window::{Maker, Window};

const IMAGE: &str = "image";
const OLD: &str = "old image";

/// Bytes of a block.
const BLOCK: usize = 4096;

/// Plain bytes of a window. Larger ones compress a little better and take machines
/// more memory.
const WINDOW: usize = 4 << 20;

/// What a delta is made of and with.
pub struct Delta<'a> {
    /// "image", "kernel" or "partition".
    pub what: &'static str,
    /// The image that machines run now; none for a part that is sent whole.
    pub old: Option<&'a dyn Image>,
    /// The image that they are to run; "image" is a multiple of [`BLOCK_SIZE`] bytes.
    pub new: &'a dyn Image,
    /// The encoders that may be named in the payload.
    pub encoders: &'a Encoders,
    /// Version 2 for our own machines or for all readers.
    pub profile: Profile,
    /// How many windows are worked on at once.
    pub threads: NonZeroUsize,
}

/// What was found out on the way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// The kinds of compressed images that were recognised, old and new.
    pub filesystems: [Option<&'static str>; 2],
    /// Why an image that looked like a filesystem was taken as plain bytes.
    pub faults: Vec<crate::filesystem::Fault>,
    /// How the changed compressed blocks of the new image fared.
    pub reproduced: Reproduced,
    /// Bytes of the new image that were found unchanged in the old one, at whole blocks.
    pub unchanged: u64,
}

impl Delta<'_> {
    /// Makes the update. Blobs go to `scratch`, encoders behind those in `names`, which
    /// operations refer to by position; `progress` hears how many bytes of the new
    /// image are done.
    ///
    /// # Errors
    /// [`MakeError`] for images that cannot be read or have no whole blocks.
    pub fn part<S: Write>(
        &self,
        scratch: &mut Scratch<S>,
        names: &mut Vec<String>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(PreparedPart, Findings), MakeError> {
        // One image in memory at a time; of the new one only windows from then on.
        let new_image = NewImage {
            what: self.what,
            image: self.new,
        };
        let new_bytes = read_all(self.new, self.what)?;
        if new_bytes.is_empty() {
            return Err(MakeError::EmptySource { what: self.what });
        }
        if self.what == IMAGE && new_bytes.len() % BLOCK != 0 {
            let size = size(new_bytes.len());
            return Err(MakeError::ImageSize { size });
        }
        let (new, new_length) = (info(&new_bytes), new_bytes.len());
        let found_new = self.look(&new_bytes);
        drop(new_bytes);
        let old_bytes = match self.old {
            Some(old) => read_all(old, OLD)?,
            None => Vec::new(),
        };
        let old = self.old.map(|_| info(&old_bytes));
        let found_old = self.look(&old_bytes);
        let claims = equal::claims(&old_bytes, new_image)?;
        let room = MOST_ENCODERS.saturating_sub(names.len());
        let recoding = Recoding::plan(
            found_old,
            found_new,
            &claims,
            new_image,
            self.encoders,
            room,
        )?;
        let claims = recoding.give_back(claims);
        let windows = window::windows(new_length, &claims, &recoding);
        let space = Space::new(old_bytes, &recoding, &claims);

        let maker = Maker {
            space: &space,
            new: new_image,
            recoding: &recoding,
            first_encoder: names.len(),
            standard: self.profile == Profile::V2Aosp,
        };
        let mut steps: VecDeque<Step> = steps(&claims, windows).into();
        let mut operations = Vec::new();
        let mut done = 0;
        let mut reproduced = Reproduced::default();
        let mut last_encoder = None;
        in_order(
            self.threads,
            || Ok(steps.pop_front()),
            |step| match step {
                Step::Claim(claim) => Ok(Made::claim(&claim, &space)),
                Step::Window(window) => maker.make(&window),
            },
            |made: Result<Made, MakeError>| {
                let made = made?;
                for (kind, destination, blob) in made.operations {
                    let blob = blob.map(|blob| scratch.append(&blob)).transpose()?;
                    operations.push(PreparedOperation {
                        kind,
                        destination,
                        blob,
                    });
                }
                reproduced.add(&made.reproduced);
                last_encoder = last_encoder.max(made.last_encoder);
                done += made.bytes;
                progress(done);
                Ok::<(), MakeError>(())
            },
        )?;
        let findings = Findings {
            filesystems: recoding.filesystems(),
            faults: recoding.faults(),
            reproduced,
            unchanged: claims.iter().map(Claim::unchanged).sum(),
        };
        let part = PreparedPart {
            old,
            new,
            operations,
        };
        // A machine without an encoder refuses the payload, so none is named behind the
        // last that is needed. Operations know their numbers, so those before stay.
        let named = last_encoder.map_or(0, |last| last + 1 - names.len());
        names.extend(recoding.encoder_names().take(named));
        Ok((part, findings))
    }

    /// Other readers cannot encode, so there is nothing to be decoded for them.
    fn look(&self, image: &[u8]) -> Found {
        if self.profile == Profile::V2Aosp {
            Found::nothing()
        } else {
            Found::of(image)
        }
    }
}

/// Something to be made into operations, in the order of the new image.
enum Step {
    Claim(Claim),
    Window(Window),
}

/// What became of a step.
struct Made {
    operations: Vec<(PreparedKind, Vec<Blocks>, Option<Vec<u8>>)>,
    /// Bytes of the new image that they write.
    bytes: u64,
    reproduced: Reproduced,
    /// The last in the manifest's list of encoders that they name.
    last_encoder: Option<usize>,
}

impl Made {
    fn claim(claim: &Claim, space: &Space) -> Self {
        let destination = vec![blocks(&claim.target)];
        let kind = match &claim.source {
            None => PreparedKind::Zero,
            Some(source) => PreparedKind::SourceCopy(PreparedSource {
                blocks: vec![blocks(source)],
                sha256: Sha256::digest(&space.bytes()[source.clone()]).into(),
            }),
        };
        Self {
            operations: vec![(kind, destination, None)],
            bytes: size(claim.target.len()),
            reproduced: Reproduced::default(),
            last_encoder: None,
        }
    }
}

/// Claims and windows by where they start in the new image.
fn steps(claims: &[Claim], windows: Vec<Window>) -> Vec<Step> {
    let claims = claims.iter().flat_map(Claim::parts);
    let claims = claims.map(|claim| (claim.target.start, Step::Claim(claim)));
    let windows = windows.into_iter();
    let windows = windows.map(|window| (window.start(), Step::Window(window)));
    let mut steps: Vec<_> = claims.chain(windows).collect();
    steps.sort_by_key(|(start, _)| *start);
    steps.into_iter().map(|(_, step)| step).collect()
}

/// The blocks that `range` touches.
fn blocks(range: &Range<usize>) -> Blocks {
    let block = usize::try_from(BLOCK_SIZE).expect("4096 fits");
    let start = range.start / block;
    Blocks {
        start: size(start),
        count: size(range.end.div_ceil(block) - start),
    }
}

fn info(bytes: &[u8]) -> ImageInfo {
    ImageInfo {
        size: size(bytes.len()),
        sha256: Sha256::digest(bytes).into(),
    }
}

/// The image that is made, read in pieces.
#[derive(Clone, Copy)]
struct NewImage<'a> {
    /// What it is in errors.
    what: &'static str,
    image: &'a dyn Image,
}

impl NewImage<'_> {
    fn len(&self) -> u64 {
        self.image.len()
    }

    fn read(&self, offset: u64, length: u64) -> Result<Vec<u8>, MakeError> {
        read(self.image, self.what, offset, length)
    }
}

/// `length` bytes of an image; `what` it is stands in errors.
fn read(
    image: &dyn Image,
    what: &'static str,
    offset: u64,
    length: u64,
) -> Result<Vec<u8>, MakeError> {
    let failed = |source| MakeError::ReadSource {
        what,
        offset,
        source,
    };
    let length = usize::try_from(length).map_err(|error| failed(std::io::Error::other(error)))?;
    let mut bytes = vec![0; length];
    image.read_at(offset, &mut bytes).map_err(failed)?;
    Ok(bytes)
}

fn read_all(image: &dyn Image, what: &'static str) -> Result<Vec<u8>, MakeError> {
    read(image, what, 0, image.len())
}
