//! `payload generate --old`: what changed between two images, and what was found
//! out about them on the way.

use std::fs::File;

use anyhow::Result;
use indicatif::HumanBytes;
use payload::Image;
use payload::filesystem::Fault;
use payload::make::delta::{Delta, Findings, Reproduced};
use payload::make::{Draft, Parts, Profile, Scratch};
use payload::pipeline;
use payload::recompress::Encoders;

use crate::talk::{progress, say};

/// An image or kernel, and the one before it.
pub(super) struct Pair<'a> {
    pub(super) old: Option<&'a File>,
    pub(super) new: &'a dyn Image,
}

/// Makes the delta of an image, of the kernel beside it and of further partitions.
pub(super) fn draft(
    image: &Pair<'_>,
    kernel: Option<&Pair<'_>>,
    named: &[(&str, Pair<'_>)],
    profile: Profile,
    encoders: &Encoders,
    scratch: File,
) -> Result<Draft<File>> {
    let size = |pair: &Pair<'_>| pair.new.len();
    let before_named = size(image).saturating_add(kernel.map_or(0, size));
    let sizes = named.iter().map(|(_, pair)| size(pair));
    let total = sizes.fold(before_named, u64::saturating_add);
    let bar = progress("compare", total);
    let mut scratch = Scratch::new(scratch);
    let mut names = Vec::new();
    let mut make = |pair: &Pair<'_>, what, done_before| {
        let delta = Delta {
            what,
            old: pair.old.map(|old| old as &dyn Image),
            new: pair.new,
            encoders,
            profile,
            threads: pipeline::all_cores(),
        };
        delta.part(&mut scratch, &mut names, &mut |done| {
            bar.set_position(done_before + done);
        })
    };
    let made = make(image, "image", 0).and_then(|partition| {
        let kernel = kernel.map(|pair| make(pair, "kernel", size(image)));
        let kernel = kernel.transpose()?;
        let mut done = before_named;
        let mut parts = Vec::new();
        for (name, pair) in named {
            let (part, _) = make(pair, "partition", done)?;
            parts.push(((*name).to_owned(), part));
            done += size(pair);
        }
        Ok((partition, kernel, parts))
    });
    bar.finish_and_clear();
    let ((partition, findings), kernel, named) = made?;
    tell(&findings);
    let parts = Parts {
        partition: Some(partition),
        kernel: kernel.map(|(part, _)| part),
        named,
        encoders: names,
        release: None,
    };
    Ok(parts.draft(profile, scratch)?)
}

fn tell(findings: &Findings) {
    for Fault {
        filesystem,
        what,
        offset,
    } in &findings.faults
    {
        say(format_args!(
            "payload: an image looks like {filesystem}, but is taken as plain bytes: {what} at \
             offset {offset}"
        ));
    }
    let Reproduced {
        blocks,
        bytes,
        good_blocks,
        good_bytes,
    } = findings.reproduced;
    if blocks == 0 {
        return;
    }
    let share = share(good_bytes, bytes);
    say(format_args!(
        "payload: {good_blocks} of {blocks} changed compressed blocks can be made again bit for \
         bit ({share} % of their {})",
        HumanBytes(bytes)
    ));
    if share < 99 {
        say(format_args!(
            "payload: the others travel compressed, as they are. To raise the share, make the \
             image with a library that this machine has too (see `payload encoders`), or put \
             the library that made it into {}; machines need it as well",
            Encoders::DIRECTORY
        ));
    }
}

/// In percent, rounded down.
fn share(part: u64, whole: u64) -> u64 {
    part.saturating_mul(100) / whole.max(1)
}
