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

/// Makes the delta of an image, and of the kernel beside it.
pub(super) fn draft(
    image: &Pair<'_>,
    kernel: Option<&Pair<'_>>,
    profile: Profile,
    encoders: &Encoders,
    scratch: File,
) -> Result<Draft<File>> {
    let size = |pair: &Pair<'_>| pair.new.len();
    let total = size(image).saturating_add(kernel.map_or(0, size));
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
        Ok((partition, kernel.transpose()?))
    });
    bar.finish_and_clear();
    let ((partition, findings), kernel) = made?;
    tell(&findings);
    let parts = Parts {
        partition: Some(partition),
        kernel: kernel.map(|(part, _)| part),
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
