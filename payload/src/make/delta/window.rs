//! From a window of the new image to one operation, or a few when its source would
//! be too large for one.

use std::collections::HashMap;
use std::io;
use std::ops::Range;

use sha2::{Digest, Sha256};

use super::matching::{self, Copy};
use super::recoding::{self, Recoding, Reproduced, decode_stored, length, range};
use super::space::Space;
use super::standard;
use super::{BLOCK, Made, NewImage, WINDOW, blocks};
use crate::Limits;
use crate::delta::{Delta, MOST_PARTS, MOST_PLAIN, MOST_SOURCE, Piece, SourceBlock};
use crate::extent::size;
use crate::filesystem::CompressedBlock;
use crate::make::{Blocks, MakeError, PreparedKind, PreparedSource};
use crate::operation::Window as Bytes;

/// A stretch of the new image that has to be made.
#[derive(Clone, Debug)]
pub(super) enum Segment {
    /// Bytes as they are.
    Plain(Range<usize>),
    /// A compressed block.
    Block(CompressedBlock),
}

impl Segment {
    fn range(&self) -> Range<usize> {
        match self {
            Segment::Plain(range) => range.clone(),
            Segment::Block(block) => range(block),
        }
    }

    /// Bytes to be matched.
    fn plain(&self) -> usize {
        match self {
            Segment::Plain(range) => range.len(),
            Segment::Block(block) => length(block.decoded_length),
        }
    }
}

/// Segments that are made together. Between two of them may be claimed blocks.
#[derive(Clone, Debug, Default)]
pub(super) struct Window(Vec<Segment>);

impl Window {
    /// Where it starts in the new image.
    pub(super) fn start(&self) -> usize {
        self.0.first().map_or(0, |segment| segment.range().start)
    }

    /// The bytes of the new image that it makes, touching segments joined.
    fn ranges(&self) -> Vec<Range<usize>> {
        let mut ranges: Vec<Range<usize>> = Vec::new();
        for segment in &self.0 {
            let range = segment.range();
            match ranges.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => ranges.push(range),
            }
        }
        ranges
    }
}

/// All that is not claimed, cut into windows.
pub(super) fn windows(length: usize, claims: &[super::Claim], recoding: &Recoding) -> Vec<Window> {
    let mut windows = Windows::default();
    let mut changed = recoding.changed().peekable();
    let ends = claims.iter().map(|claim| claim.target.clone());
    let mut start = 0;
    for claim in ends.chain(std::iter::once(length..length)) {
        while let Some(block) = changed.next_if(|block| range(block).start < claim.start) {
            let stored = range(block);
            windows.plain(start..stored.start);
            windows.push(Segment::Block(*block));
            start = stored.end;
        }
        windows.plain(start..claim.start);
        start = claim.end;
    }
    windows.finish()
}

#[derive(Default)]
struct Windows {
    done: Vec<Window>,
    open: Window,
    plain: usize,
}

impl Windows {
    fn plain(&mut self, mut range: Range<usize>) {
        while !range.is_empty() {
            let room = WINDOW.saturating_sub(self.plain).max(1);
            // Cut at a block, so that the next window need not share it.
            let cut = range.start.saturating_add(room) / BLOCK * BLOCK;
            let end = if cut > range.start {
                cut.min(range.end)
            } else {
                range.end.min(range.start + room)
            };
            self.push(Segment::Plain(range.start..end));
            range.start = end;
        }
    }

    fn push(&mut self, segment: Segment) {
        // Each segment becomes at most two pieces.
        let full = self.open.0.len() >= MOST_PARTS / 2;
        if full || (self.plain > 0 && self.plain + segment.plain() > WINDOW) {
            self.close();
        }
        self.plain += segment.plain();
        self.open.0.push(segment);
        if self.plain >= WINDOW {
            self.close();
        }
    }

    fn close(&mut self) {
        self.plain = 0;
        self.done.push(std::mem::take(&mut self.open));
    }

    fn finish(mut self) -> Vec<Window> {
        if !self.open.0.is_empty() {
            self.close();
        }
        self.done
    }
}

/// Makes operations out of windows.
pub(super) struct Maker<'a> {
    pub(super) space: &'a Space,
    pub(super) new: NewImage<'a>,
    pub(super) recoding: &'a Recoding<'a>,
    /// Where its encoders start in the manifest's list.
    pub(super) first_encoder: usize,
    /// Only operations that other readers know.
    pub(super) standard: bool,
}

/// A window, read and decoded.
struct Opened {
    /// What the script makes.
    plain: Vec<u8>,
    pieces: Vec<Piece>,
    /// What the operation writes.
    result: Vec<u8>,
    /// How its compressed blocks fared.
    reproduced: Reproduced,
}

/// A segment, read.
struct Recoded {
    stored: Vec<u8>,
    /// Whether it is a compressed block.
    block: bool,
    /// None for plain bytes, and for a block that no encoder makes.
    encoded: Option<Encoded>,
}

/// A block that an encoder makes again.
struct Encoded {
    plain: Vec<u8>,
    /// By position among those of the plan.
    encoder: usize,
    /// What the encoder is shown.
    ahead: Vec<u8>,
}

impl Maker<'_> {
    pub(super) fn make(&self, window: &Window) -> Result<Made, MakeError> {
        let opened = self.open(window)?;
        if opened.plain.len() > MOST_PLAIN || opened.pieces.len() > MOST_PARTS {
            return match halves(window) {
                Some(halves) => self.make_both(&halves),
                None => self.make_as_stored(window),
            };
        }
        let copies = matching::matches(&opened.plain, self.space.bytes(), self.space.seeds());
        let mut copies = cut_at(copies, self.space.image());
        // The larger the source would be, the more must each block of it give.
        let mut worth = 128;
        drop_lonely(&mut copies, worth);
        let mut source = Sources::of(self.space, &copies);
        while !source.fits(COMFORTABLE) && worth < 1024 {
            worth *= 2;
            drop_lonely(&mut copies, worth);
            source = Sources::of(self.space, &copies);
        }
        if !source.fits(LARGE) {
            if let Some(halves) = halves(window) {
                return self.make_both(&halves);
            }
            if !source.fits(MOST_SOURCE) {
                copies = affordable(self.space, &copies);
                source = Sources::of(self.space, &copies);
            }
        }
        let bytes = size(opened.result.len());
        let ranges = window.ranges();
        let destination: Vec<Blocks> = ranges.iter().map(blocks).collect();
        let reproduced = opened.reproduced;
        let last_encoder = opened.last_encoder();
        let (kind, blob) = self
            .operation(opened, &copies, &source, &ranges)
            .map_err(|source| MakeError::Operation {
                what: self.new.what,
                offset: size(window.start()),
                source,
            })?;
        let encodes = matches!(kind, PreparedKind::Recompress { .. });
        Ok(Made {
            operations: vec![(kind, destination, Some(blob))],
            bytes,
            reproduced,
            last_encoder: last_encoder.filter(|_| encodes),
        })
    }

    fn make_both(&self, (first, second): &(Window, Window)) -> Result<Made, MakeError> {
        let (mut made, rest) = (self.make(first)?, self.make(second)?);
        made.operations.extend(rest.operations);
        made.bytes += rest.bytes;
        made.reproduced.add(&rest.reproduced);
        made.last_encoder = made.last_encoder.max(rest.last_encoder);
        Ok(made)
    }

    /// A window that cannot be cut and holds more than an operation can make, decoded.
    fn make_as_stored(&self, window: &Window) -> Result<Made, MakeError> {
        let plain = window.0.iter().map(|part| Segment::Plain(part.range()));
        let mut made = self.make(&Window(plain.collect()))?;
        for segment in &window.0 {
            if matches!(segment, Segment::Block(_)) {
                made.reproduced.count(segment.range().len(), false);
            }
        }
        Ok(made)
    }

    /// Reads a window and decodes what can be encoded again.
    fn open(&self, window: &Window) -> Result<Opened, MakeError> {
        let segments = window.0.iter().map(|segment| self.recode(segment));
        let segments = segments.collect::<Result<_, _>>()?;
        Ok(Opened::of(segments, self.first_encoder))
    }

    /// Reads a segment, and finds the encoder that makes it when it is a block.
    fn recode(&self, segment: &Segment) -> Result<Recoded, MakeError> {
        let stored = self.read(segment.range())?;
        let Segment::Block(block) = segment else {
            return Ok(Recoded {
                stored,
                block: false,
                encoded: None,
            });
        };
        let mut ahead = self.ahead(block)?;
        let encoded = decode_stored(&stored, block).and_then(|plain| {
            let (encoder, wanted) = self.recoding.encoder(block, &stored, &plain, &ahead)?;
            ahead.truncate(wanted);
            Some(Encoded {
                plain,
                encoder,
                ahead,
            })
        });
        Ok(Recoded {
            stored,
            block: true,
            encoded,
        })
    }

    /// What the encoder of `block` may look at.
    fn ahead(&self, block: &CompressedBlock) -> Result<Vec<u8>, MakeError> {
        let wanted = self.recoding.most_ahead(block);
        recoding::ahead(self.recoding.layout(), self.new, block, wanted)
    }

    fn read(&self, range: Range<usize>) -> Result<Vec<u8>, MakeError> {
        self.new.read(size(range.start), size(range.len()))
    }

    fn operation(
        &self,
        opened: Opened,
        copies: &[Copy],
        source: &Sources,
        ranges: &[Range<usize>],
    ) -> io::Result<(PreparedKind, Vec<u8>)> {
        let window = Bytes {
            skip: size(ranges.first().map_or(0, |range| range.start % BLOCK)),
            length: size(opened.result.len()),
        };
        let recompressed = opened.last_encoder().is_some();
        let bytes = source.bytes(self.space);
        if self.standard {
            return standard::operation(
                opened.result,
                &bytes,
                source.extents.iter().map(blocks).collect(),
            );
        }
        let copies = source.renamed(copies);
        let mut whole = bytes.clone();
        whole.extend(source.decoded(self.space));
        let delta = Delta {
            blocks: source.source_blocks(self.space),
            script: crate::delta::Script::write(&opened.plain, &whole, &copies),
            pieces: opened.pieces,
            crc: crc32fast::hash(&opened.result),
        };
        drop(whole);
        let blob = delta.to_bytes()?;
        // Rather no payload than one that no machine applies.
        Delta::parse(&blob).map_err(io::Error::other)?;
        let end = usize::try_from(self.new.len()).unwrap_or(usize::MAX);
        let whole_blocks = window.skip == 0
            && ranges
                .iter()
                .all(|range| range.len() % BLOCK == 0 || range.end == end);
        if whole_blocks && blob.len() > opened.result.len() / 4 {
            let packed = zstd::bulk::compress(&opened.result, REPLACE_LEVEL)?;
            if packed.len() <= blob.len() {
                return Ok((PreparedKind::ReplaceZstd, packed));
            }
        }
        let old = (!source.extents.is_empty()).then(|| PreparedSource {
            blocks: source.extents.iter().map(blocks).collect(),
            sha256: Sha256::digest(&bytes).into(),
        });
        let kind = if recompressed {
            PreparedKind::Recompress {
                source: old,
                window,
            }
        } else {
            PreparedKind::Delta {
                source: old,
                window,
            }
        };
        Ok((kind, blob))
    }
}

/// Bytes of the source of a window that are aimed at: a machine holds a few of them in
/// memory at once.
const COMFORTABLE: usize = 12 << 20;
/// Bytes above which it is cut, if it can be.
const LARGE: usize = 20 << 20;

/// Level of zstd for windows of which the old image has nothing.
const REPLACE_LEVEL: i32 = 19;

impl Opened {
    /// The last in the manifest's list of encoders that its pieces name.
    fn last_encoder(&self) -> Option<usize> {
        let encoders = self.pieces.iter().filter_map(|piece| match piece {
            Piece::Encoded { encoder, .. } => Some(*encoder),
            Piece::Plain { .. } | Piece::Hidden { .. } => None,
        });
        encoders.max()
    }

    fn of(segments: Vec<Recoded>, first_encoder: usize) -> Self {
        let mut opened = Self {
            plain: Vec::new(),
            pieces: Vec::new(),
            result: Vec::new(),
            reproduced: Reproduced::default(),
        };
        for segment in segments.iter().filter(|segment| segment.block) {
            let good = segment.encoded.is_some();
            opened.reproduced.count(segment.stored.len(), good);
        }
        for segment in &segments {
            opened.result.extend_from_slice(&segment.stored);
        }
        for (piece, bytes) in pieces(segments, first_encoder) {
            match (opened.pieces.last_mut(), piece) {
                (Some(Piece::Plain { length }), Piece::Plain { .. }) => *length += bytes.len(),
                (_, piece) => opened.pieces.push(piece),
            }
            opened.plain.extend_from_slice(&bytes);
        }
        opened
    }
}

/// What becomes of segments, with the plain bytes.
///
/// What an encoder looks at is often what comes next anyway; else it is made for its
/// eyes only. What comes next is known from the back.
fn pieces(segments: Vec<Recoded>, first_encoder: usize) -> Vec<(Piece, Vec<u8>)> {
    let mut pieces: Vec<(Piece, Vec<u8>)> = Vec::new();
    for segment in segments.into_iter().rev() {
        let Some(encoded) = segment.encoded else {
            let length = segment.stored.len();
            pieces.push((Piece::Plain { length }, segment.stored));
            continue;
        };
        let ahead = encoded.ahead.len();
        if !comes_next(&encoded.ahead, &pieces) {
            pieces.push((Piece::Hidden { length: ahead }, encoded.ahead));
        }
        let piece = Piece::Encoded {
            length: encoded.plain.len(),
            encoder: first_encoder + encoded.encoder,
            ahead,
        };
        pieces.push((piece, encoded.plain));
    }
    pieces.reverse();
    pieces
}

/// Whether the bytes of `pieces`, the last of which comes first, begin with `ahead`.
fn comes_next(mut ahead: &[u8], pieces: &[(Piece, Vec<u8>)]) -> bool {
    for (_, bytes) in pieces.iter().rev() {
        let (here, rest) = ahead.split_at(ahead.len().min(bytes.len()));
        if !bytes.starts_with(here) {
            return false;
        }
        ahead = rest;
    }
    ahead.is_empty()
}

/// Two windows of half the plain bytes each; none for what cannot be cut.
fn halves(window: &Window) -> Option<(Window, Window)> {
    let half = window.0.iter().map(Segment::plain).sum::<usize>() / 2;
    let (mut first, mut second) = (Window::default(), Window::default());
    let mut plain = 0;
    for segment in &window.0 {
        match segment {
            _ if plain >= half => second.0.push(segment.clone()),
            Segment::Plain(range) if plain + range.len() > half && range.len() > 2 * BLOCK => {
                let cut = (range.start + (half - plain))
                    .next_multiple_of(BLOCK)
                    .min(range.end);
                first.0.push(Segment::Plain(range.start..cut));
                if cut < range.end {
                    second.0.push(Segment::Plain(cut..range.end));
                }
            }
            _ => first.0.push(segment.clone()),
        }
        plain += segment.plain();
    }
    (!first.0.is_empty() && !second.0.is_empty()).then_some((first, second))
}

/// The parts of the old image that copies read.
struct Sources {
    /// Whole blocks of the image, sorted and apart.
    extents: Vec<Range<usize>>,
    /// Where each extent starts among all of them.
    starts: Vec<usize>,
    /// Decoded blocks by index in the space, sorted, with where their plain bytes
    /// start in the space and behind the extents.
    blocks: Vec<(usize, Range<usize>, usize)>,
    /// Bytes of extents and decoded blocks.
    size: usize,
}

impl Sources {
    fn of(space: &Space, copies: &[Copy]) -> Self {
        let mut extents: Vec<Range<usize>> = Vec::new();
        let mut indexes: Vec<usize> = Vec::new();
        for copy in copies {
            let range = copy.source_range();
            if range.end <= space.image() {
                extents.push(range);
            } else {
                indexes.extend(space.blocks(&range));
            }
        }
        indexes.sort_unstable();
        indexes.dedup();
        extents.extend(indexes.iter().map(|index| range(&space.block(*index).1)));
        let extents = whole_blocks(extents, space.image());
        let mut size = 0;
        let starts = extents.iter().map(|extent| {
            size += extent.len();
            size - extent.len()
        });
        let starts: Vec<usize> = starts.collect();
        let mut blocks = Vec::new();
        for index in indexes {
            let (start, block) = space.block(index);
            let plain = length(block.decoded_length);
            blocks.push((index, *start..start + plain, size));
            size += plain;
        }
        Self {
            extents,
            starts,
            blocks,
            size,
        }
    }

    /// Whether readers take an operation with this source, of at most `most` bytes.
    fn fits(&self, most: usize) -> bool {
        let most_extents = usize::try_from(Limits::default().window).unwrap_or(usize::MAX);
        let extents: usize = self.extents.iter().map(ExactSizeIterator::len).sum();
        extents <= most_extents && self.size <= most && self.blocks.len() <= MOST_PARTS
    }

    /// The bytes of the extents.
    fn bytes(&self, space: &Space) -> Vec<u8> {
        let extents = self.extents.iter();
        let extents: Vec<_> = extents
            .map(|extent| &space.bytes()[extent.clone()])
            .collect();
        extents.concat()
    }

    /// The bytes of the decoded blocks.
    fn decoded(&self, space: &Space) -> Vec<u8> {
        let blocks = self.blocks.iter();
        let blocks: Vec<_> = blocks
            .map(|(_, plain, _)| &space.bytes()[plain.clone()])
            .collect();
        blocks.concat()
    }

    fn source_blocks(&self, space: &Space) -> Vec<SourceBlock> {
        let blocks = self.blocks.iter().map(|(index, plain, _)| {
            let (_, block) = space.block(*index);
            let stored = range(block);
            SourceBlock {
                start: self.in_extents(stored.start),
                stored: stored.len(),
                plain: plain.len(),
                codec: block.codec,
            }
        });
        blocks.collect()
    }

    /// The copies with positions in the operation's own source.
    fn renamed(&self, copies: &[Copy]) -> Vec<crate::delta::Copy> {
        let renamed = copies.iter().map(|copy| {
            let after = self
                .blocks
                .partition_point(|(_, plain, _)| plain.start <= copy.source);
            let source = match after.checked_sub(1).map(|index| &self.blocks[index]) {
                Some((_, plain, start)) if copy.source < plain.end => {
                    start + (copy.source - plain.start)
                }
                _ => self.in_extents(copy.source),
            };
            crate::delta::Copy {
                target: copy.target,
                source,
                length: copy.length,
            }
        });
        renamed.collect()
    }

    fn in_extents(&self, position: usize) -> usize {
        let index = self
            .extents
            .partition_point(|extent| extent.start <= position)
            - 1;
        self.starts[index] + (position - self.extents[index].start)
    }
}

/// The blocks that ranges touch, joined where they meet.
fn whole_blocks(mut ranges: Vec<Range<usize>>, end: usize) -> Vec<Range<usize>> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut joined: Vec<Range<usize>> = Vec::new();
    for range in ranges {
        let start = range.start / BLOCK * BLOCK;
        let end = range.end.next_multiple_of(BLOCK).min(end);
        match joined.last_mut() {
            Some(last) if start <= last.end => last.end = last.end.max(end),
            _ => joined.push(start..end),
        }
    }
    joined
}

/// What an operation reads lies either in its extents or in decoded blocks, so a copy
/// that goes on from the end of the image, `place`, to the first of those is two.
fn cut_at(copies: Vec<Copy>, place: usize) -> Vec<Copy> {
    let halves = |copy: Copy| {
        let before = place.saturating_sub(copy.source).min(copy.length);
        let [first, second] = [0..before, before..copy.length];
        [first, second].map(|part| Copy {
            target: copy.target + part.start,
            source: copy.source + part.start,
            length: part.len(),
        })
    };
    let parts = copies.into_iter().flat_map(halves);
    parts.filter(|part| part.length > 0).collect()
}

/// Drops short copies that nearly alone need a block of the source: reading and naming
/// it costs more than their bytes. Each block must give `worth` bytes.
fn drop_lonely(copies: &mut Vec<Copy>, worth: usize) {
    let units = |copy: &Copy| copy.source / BLOCK..copy.source_range().end.div_ceil(BLOCK);
    let mut used: HashMap<usize, usize> = HashMap::new();
    for copy in copies.iter() {
        for unit in units(copy) {
            *used.entry(unit).or_default() += copy.length;
        }
    }
    copies.retain(|copy| {
        copy.length >= worth
            || units(copy).all(|unit| used.get(&unit).is_some_and(|used| *used >= worth))
    });
}

/// The longest copies whose sources fit one operation, in their order.
fn affordable(space: &Space, copies: &[Copy]) -> Vec<Copy> {
    let mut order: Vec<usize> = (0..copies.len()).collect();
    order.sort_by_key(|index| std::cmp::Reverse(copies[*index].length));
    // The size grows with the number of copies, so the most that fit can be bisected.
    let fits = |count: usize| {
        let chosen: Vec<Copy> = order[..count].iter().map(|index| copies[*index]).collect();
        Sources::of(space, &chosen).fits(MOST_SOURCE)
    };
    let (mut good, mut bad) = (0, order.len());
    while good + 1 < bad {
        let middle = usize::midpoint(good, bad);
        if fits(middle) {
            good = middle;
        } else {
            bad = middle;
        }
    }
    let mut chosen = order[..good].to_vec();
    chosen.sort_unstable();
    chosen.into_iter().map(|index| copies[index]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(plain: &str, ahead: &str) -> Recoded {
        Recoded {
            stored: b"stored".to_vec(),
            block: true,
            encoded: Some(Encoded {
                plain: plain.into(),
                encoder: 2,
                ahead: ahead.into(),
            }),
        }
    }

    fn plain(bytes: &str) -> Recoded {
        Recoded {
            stored: bytes.into(),
            block: false,
            encoded: None,
        }
    }

    #[test]
    fn what_an_encoder_looks_at_is_made_once() {
        let opened = Opened::of(
            vec![
                // The next two blocks, and what the second of these looks at.
                encoded("ab", "cdefgh"),
                encoded("cd", "efgh"),
                encoded("ef", "gh"),
                plain("xy"),
                plain("z"),
                encoded("ij", "kl"),
                encoded("kL", ""),
                // The end of the window.
                encoded("mn", "op"),
            ],
            10,
        );
        let encoded = |length, ahead| Piece::Encoded {
            length,
            encoder: 12,
            ahead,
        };
        let hidden = |length| Piece::Hidden { length };
        let expected = [
            encoded(2, 6),
            encoded(2, 4),
            encoded(2, 2),
            hidden(2),
            Piece::Plain { length: 3 },
            encoded(2, 2),
            hidden(2),
            encoded(2, 0),
            encoded(2, 2),
            hidden(2),
        ];
        assert_eq!(opened.pieces, expected);
        assert_eq!(opened.plain, b"abcdefghxyzijklkLmnop");
        assert_eq!(opened.result.len(), 6 * 6 + 3);
        assert_eq!(opened.reproduced.good_blocks, 6);
        assert_eq!(opened.last_encoder(), Some(12));
    }

    #[test]
    fn a_copy_over_the_end_of_the_image_goes_on_in_the_decoded_blocks() {
        let copy = |target, source, length| Copy {
            target,
            source,
            length,
        };
        let copies = vec![
            copy(0, 10, 90),
            copy(90, 60, 100),
            copy(200, 100, 5),
            copy(300, 99, 1),
        ];
        let parts = [
            copy(0, 10, 90),
            copy(90, 60, 40),
            copy(130, 100, 60),
            copy(200, 100, 5),
            copy(300, 99, 1),
        ];
        assert_eq!(cut_at(copies, 100), parts);
    }
}
