//! `payload apply`: what a machine would have on its disk after the update.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use indicatif::HumanBytes;
use payload::recompress::Encoders;
use payload::{
    Image, Manifest, Part, Sources, Target, Targets, Verified, apply_payload, verify_payload,
};

use super::named::NamedFile;
use super::verify::{TrustArgs, signers};
use crate::files;
use crate::talk::{progress, say};

/// Verify a payload and write what it holds.
///
/// TARGET is a file, made if it does not exist, or a block device. A file gets
/// exactly the size of the image. Nothing is written before signature and old
/// images are found good; the result is read again and compared with the hashes
/// of the payload. If something fails in between, TARGET is of no use and the
/// command says so.
///
/// A delta payload needs the old image, which is only read. One of format version 1
/// first copies it to TARGET.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  payload apply --public-key release.pub.pem --target new.img update.payload

  payload apply --public-key release.pub.pem --target new.img \\
      --target-kernel vmlinuz --target-partition oem=oem.img update.payload

  # A delta, onto another partition.
  payload apply --public-key release.pub.pem --old old.img --target /dev/sdb4 \\
      --old-kernel vmlinuz-a --target-kernel vmlinuz-b delta.payload")]
pub(crate) struct Apply {
    #[command(flatten)]
    trust: TrustArgs,
    /// The old image, for a delta payload.
    #[arg(long, alias = "source", value_name = "IMG")]
    old: Option<PathBuf>,
    /// Where the new image goes.
    #[arg(long, value_name = "IMG")]
    target: PathBuf,
    /// The old kernel, for a delta payload.
    #[arg(long, alias = "source-kernel", value_name = "FILE")]
    old_kernel: Option<PathBuf>,
    /// Where the new kernel goes; it is left out otherwise.
    #[arg(long, value_name = "FILE")]
    target_kernel: Option<PathBuf>,
    /// A further old partition, for a delta payload.
    #[arg(long, value_name = "NAME=FILE", value_parser = NamedFile::parse)]
    old_partition: Vec<NamedFile>,
    /// Where a further new partition goes; those not named are left out.
    #[arg(long, value_name = "NAME=FILE", value_parser = NamedFile::parse)]
    target_partition: Vec<NamedFile>,
    /// Folder of further compression libraries that the payload may ask for.
    #[arg(long, value_name = "DIR", default_value = Encoders::DIRECTORY)]
    encoders: PathBuf,
    /// The payload.
    file: PathBuf,
}

impl Apply {
    pub(crate) fn run(self) -> Result<()> {
        NamedFile::check_distinct(&self.target_partition, "--target-partition")?;
        NamedFile::check_distinct(&self.old_partition, "--old-partition")?;
        let trust = self.trust.load()?;
        let (mut file, size) = files::open(&self.file)?;
        let bar = progress("verify", size);
        let verified = verify_payload(&mut file, &trust, &mut |done| bar.set_position(done));
        bar.finish_and_clear();
        let verified = verified.with_context(|| self.file.display().to_string())?;

        let encoders = Encoders::available(&self.encoders);
        let steps = self.steps(verified.manifest())?;
        let outputs = open_targets(&steps, &file)?;
        write(&mut file, &verified, &outputs, &encoders)
            .inspect_err(|_| outputs.iter().for_each(Output::say_incomplete))
            .with_context(|| format!("apply {}", self.file.display()))?;
        for output in outputs {
            let step = output.keep();
            say(format_args!(
                "{}: {} written, payload {}",
                step.path.display(),
                HumanBytes(step.part.new.size),
                signers(&verified),
            ));
        }
        Ok(())
    }

    /// What is to be done, after everything that can be checked without writing.
    fn steps<'a>(&'a self, manifest: &'a Manifest) -> Result<Vec<Step<'a>>> {
        let mut steps = Vec::new();
        for (target, part) in manifest.parts() {
            let (path, source, option) = match &target {
                Target::Partition => (Some(&self.target), self.old.as_ref(), "--old".to_owned()),
                Target::Kernel => (
                    self.target_kernel.as_ref(),
                    self.old_kernel.as_ref(),
                    "--old-kernel".to_owned(),
                ),
                Target::Named(name) => (
                    NamedFile::find(&self.target_partition, name).map(|file| &file.path),
                    NamedFile::find(&self.old_partition, name).map(|file| &file.path),
                    format!("--old-partition {name}=FILE"),
                ),
                Target::PcrPolicy | Target::Unknown(_) => (None, None, String::new()),
            };
            match path {
                Some(path) => steps.push(Step {
                    part,
                    path,
                    source: open_source(&target, part, source.map(PathBuf::as_path), &option)?,
                    block_size: manifest.block_size.into(),
                    target,
                    in_place: manifest.is_in_place(),
                }),
                None => say(format_args!("payload: the {target} is left out")),
            }
        }
        if self.target_kernel.is_some() && manifest.part(&Target::Kernel).is_none() {
            bail!("the payload holds no kernel, so there is none for --target-kernel");
        }
        for NamedFile { name, .. } in &self.target_partition {
            if manifest
                .part(&Target::Named(name.as_str().into()))
                .is_none()
            {
                bail!(
                    "the payload holds no partition {name}, so there is none for --target-partition"
                );
            }
        }
        Ok(steps)
    }
}

/// Fills the targets, puts what they hold on the disk and compares it with the
/// hashes of the payload.
fn write(
    payload: &mut File,
    verified: &Verified,
    outputs: &[Output],
    encoders: &Encoders,
) -> Result<()> {
    let in_place = verified.manifest().is_in_place();
    for output in outputs {
        output.prepare(in_place)?;
    }
    let of = |target: Target| outputs.iter().find(|output| output.step.target == target);
    let (partition, kernel) = (of(Target::Partition), of(Target::Kernel));
    let named: Vec<_> = outputs
        .iter()
        .filter_map(|output| match &output.step.target {
            Target::Named(name) => Some((&**name, output)),
            _ => None,
        })
        .collect();
    let new: Vec<_> = named
        .iter()
        .map(|(name, output)| (*name, &output.file as &dyn Image))
        .collect();
    let old: Vec<_> = named
        .iter()
        .filter_map(|(name, output)| Some((*name, output.old()?)))
        .collect();
    let targets = Targets {
        partition: &partition
            .expect("every manifest updates the partition")
            .file,
        kernel: kernel.map(|output| &output.file),
        pcr_policy: None,
        named: &new,
    };
    let sources = Sources {
        partition: partition.and_then(Output::old),
        kernel: kernel.and_then(Output::old),
        named: &old,
        encoders: Some(encoders),
    };
    let bar = progress("apply", verified.size());
    let applied = apply_payload(payload, verified, &targets, &sources, &mut |done| {
        bar.set_position(done);
    });
    bar.finish_and_clear();
    applied?;
    outputs.iter().try_for_each(Output::finish)
}

/// One image or file that will be written.
struct Step<'a> {
    target: Target,
    part: &'a Part,
    path: &'a Path,
    /// What a delta starts from, checked, and how many bytes of it.
    source: Option<(File, u64)>,
    /// Operations write whole blocks of so many bytes.
    block_size: u64,
    /// Whether a delta turns a copy of that into the new content.
    in_place: bool,
}

impl Step<'_> {
    /// Bytes that the target needs while it is written.
    fn room(&self) -> u64 {
        let new = self.part.new.size;
        let new = new.checked_next_multiple_of(self.block_size).unwrap_or(new);
        match &self.part.old {
            Some(old) if self.in_place => new.max(old.size),
            _ => new,
        }
    }
}

/// The open target of a step. A file that did not exist before is removed again
/// unless it is kept.
struct Output<'a> {
    step: &'a Step<'a>,
    file: File,
    is_regular: bool,
    is_new: bool,
}

impl<'a> Output<'a> {
    /// Opens the target without changing it, and refuses one that is too small.
    fn open(step: &'a Step<'a>) -> Result<Self> {
        let open = || -> io::Result<Self> {
            let (file, is_new) = open_or_create(step.path)?;
            Ok(Self {
                step,
                is_regular: file.metadata()?.is_file(),
                file,
                is_new,
            })
        };
        let output = open().with_context(|| format!("open {}", step.path.display()))?;
        let (needed, found) = (step.room(), Image::len(&output.file));
        if !output.is_regular && found < needed {
            bail!(
                "{} has {found} bytes, the {} needs {needed}",
                step.path.display(),
                step.target
            );
        }
        Ok(output)
    }

    /// What a delta reads.
    fn old(&self) -> Option<&dyn Image> {
        let source = self.step.source.as_ref();
        source.map(|(file, _)| file as &dyn Image)
    }

    /// Makes room and, for a delta that works in place, copies the old content.
    fn prepare(&self, in_place: bool) -> Result<()> {
        let shown = self.step.path.display();
        if self.is_regular {
            self.file
                .set_len(self.step.room())
                .with_context(|| format!("resize {shown}"))?;
        }
        if let Some((source, size)) = self.step.source.as_ref().filter(|_| in_place) {
            let (mut from, mut to) = (source, &self.file);
            let mut copy = || {
                from.rewind()?;
                to.rewind()?;
                io::copy(&mut from.take(*size), &mut to)
            };
            copy().with_context(|| format!("copy the old {} to {shown}", self.step.target))?;
        }
        Ok(())
    }

    fn finish(&self) -> Result<()> {
        let finish = || {
            if self.is_regular {
                self.file.set_len(self.step.part.new.size)?;
            }
            self.file.sync_all()
        };
        finish().with_context(|| format!("finish {}", self.step.path.display()))
    }

    fn say_incomplete(&self) {
        let outcome = if self.is_new {
            "incomplete and removed"
        } else {
            "incomplete now and of no use"
        };
        say(format_args!(
            "payload: {} is {outcome}",
            self.step.path.display()
        ));
    }

    fn keep(mut self) -> &'a Step<'a> {
        self.is_new = false;
        self.step
    }
}

impl Drop for Output<'_> {
    fn drop(&mut self) {
        if self.is_new {
            // It was said that it is of no use, which holds also when it stays.
            let _ = fs::remove_file(self.step.path);
        }
    }
}

fn open_or_create(path: &Path) -> io::Result<(File, bool)> {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    match options.clone().create_new(true).open(path) {
        Ok(file) => Ok((file, true)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Ok((options.open(path)?, false))
        }
        Err(error) => Err(error),
    }
}

/// Opens every target, none of which may be read from or written to as
/// something else.
fn open_targets<'a>(steps: &'a [Step<'a>], payload: &File) -> Result<Vec<Output<'a>>> {
    let mut outputs: Vec<Output<'_>> = Vec::new();
    for step in steps {
        let output = Output::open(step)?;
        let sources = steps.iter().filter_map(|step| step.source.as_ref());
        let others = sources
            .map(|(source, _)| source)
            .chain([payload])
            .chain(outputs.iter().map(|output| &output.file));
        for other in others {
            if same_file(other, &output.file)? {
                bail!("{} would be two things at once", step.path.display());
            }
        }
        outputs.push(output);
    }
    Ok(outputs)
}

/// The old content of `part`, which a delta needs and other payloads ignore.
fn open_source(
    target: &Target,
    part: &Part,
    path: Option<&Path>,
    option: &str,
) -> Result<Option<(File, u64)>> {
    let Some(old) = &part.old else {
        return Ok(None);
    };
    let path = path.with_context(|| {
        format!(
            "this is a delta payload; give the old {target} that it was made from with {option}"
        )
    })?;
    let (file, _) = files::open(path)?;
    if !old.matches(&file)? {
        bail!(
            "{} is not the old {target} that this delta was made from",
            path.display()
        );
    }
    Ok(Some((file, old.size)))
}

fn same_file(one: &File, other: &File) -> io::Result<bool> {
    // Two nodes may name one device, which has a number of its own.
    let identity = |file: &File| -> io::Result<_> {
        let found = file.metadata()?;
        let is_device = found.file_type().is_block_device();
        Ok(if is_device {
            (true, found.rdev(), 0)
        } else {
            (false, found.dev(), found.ino())
        })
    };
    Ok(identity(one)? == identity(other)?)
}
