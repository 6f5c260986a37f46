//! Tells for images which encoders make their compressed blocks again.
//!
//! ```text
//! cargo run --release -p payload --example reproduce -- \
//!     [--encoders DIRECTORY] [--every N] IMAGE...
//! ```
//! Prints a table for each image: for every list of candidates and every encoder of
//! it that made any block, blocks and stored bytes that it made, the share of both, and
//! the CPU time for each MB (10^6 bytes) of plain bytes. Encoders that make none of
//! a few blocks are not tried on all; with `--every`, only every Nth block is.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use payload::filesystem::{self, CompressedBlock, Layout, plain_bytes};
use payload::recompress::{EncoderSpec, Encoders, Method, Sample};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut directory = PathBuf::from(Encoders::DIRECTORY);
    let mut every = 1;
    let mut images = Vec::new();
    let mut arguments = std::env::args_os().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "--encoders" {
            directory = arguments
                .next()
                .ok_or("--encoders without a directory")?
                .into();
        } else if argument == "--every" {
            let number = arguments.next().and_then(|n| n.to_str()?.parse().ok());
            every = number.ok_or("--every without a number")?;
        } else {
            images.push(PathBuf::from(argument));
        }
    }
    let encoders = Encoders::available(&directory);
    println!("encoders: {}", encoders.names().join(" "));
    for path in images {
        let image = std::fs::read(&path)?;
        let started = Instant::now();
        let name = path.display();
        match filesystem::recognise(&image) {
            None => println!("{name}: no filesystem that is known"),
            Some(Err(fault)) => println!("{name}: {fault}"),
            Some(Ok(layout)) => {
                println!(
                    "{name}: {}, {} blocks read in {:.1} s",
                    layout.filesystem,
                    layout.blocks.len(),
                    started.elapsed().as_secs_f64()
                );
                report(&image, &layout, &encoders, every);
            }
        }
    }
    Ok(())
}

fn report(image: &[u8], layout: &Layout, encoders: &Encoders, every: usize) {
    let plain_total: u64 = layout
        .blocks
        .iter()
        .map(|b| u64::from(b.decoded_length))
        .sum();
    println!(
        "  {} MB of image, {} MB in blocks, {} MB decoded",
        image.len() / 1_000_000,
        layout
            .blocks
            .iter()
            .map(|b| u64::from(b.length))
            .sum::<u64>()
            / 1_000_000,
        plain_total / 1_000_000
    );
    for (hint, methods) in layout.candidates.iter().enumerate() {
        let of_list = layout.blocks.iter().filter(|b| b.hint == hint);
        let blocks: Vec<_> = of_list.step_by(every.max(1)).collect();
        let specs = fruitful(image, layout, encoders, &blocks, methods);
        let proven = run(image, layout, encoders, &blocks, &specs);
        let bytes = |list: &mut dyn Iterator<Item = &CompressedBlock>| {
            list.map(|block| u64::from(block.length)).sum::<u64>()
        };
        let all = bytes(&mut blocks.iter().copied());
        println!("  list {hint}: {} blocks, {all} bytes", blocks.len());
        for (index, spec) in specs.iter().enumerate() {
            let made = |of: u64| {
                let mut list = blocks
                    .iter()
                    .zip(&proven.by)
                    .filter(move |(_, by)| **by & of != 0);
                let count = list.clone().count();
                (count, bytes(&mut list.by_ref().map(|(block, _)| *block)))
            };
            let (count, length) = made(1 << index);
            if count > 0 {
                println!(
                    "    {spec:<44} {count:>7} blocks {length:>10} bytes  {:>6.2} % {:>6.2} %  {:>6.1} ms/MB",
                    percent(count, blocks.len()),
                    percent(length, all),
                    proven.milliseconds(index)
                );
            }
        }
        let none = proven.by.iter().filter(|by| **by == 0).count();
        println!("    by none: {none} blocks");
        if std::env::var_os("SHOW").is_some() {
            for (block, _) in blocks
                .iter()
                .zip(&proven.by)
                .filter(|(_, by)| **by == 0)
                .take(12)
            {
                println!("      {block:?}");
            }
        }
    }
}

/// What follows a block in its file.
fn ahead_of(image: &[u8], layout: &Layout, block: &CompressedBlock, length: usize) -> Vec<u8> {
    let ahead: Result<_, Infallible> = layout.ahead(
        block,
        length,
        |block| Ok(decode(image, block)),
        |offset, length| Ok(plain_bytes(image, offset, length)),
    );
    ahead.unwrap_or_default()
}

/// The encoders that make any of a few blocks, which are taken from all over.
fn fruitful(
    image: &[u8],
    layout: &Layout,
    encoders: &Encoders,
    blocks: &[&CompressedBlock],
    methods: &[Method],
) -> Vec<EncoderSpec> {
    let ahead = methods.iter().map(Method::ahead).max().unwrap_or(0);
    let few: Vec<_> = blocks
        .iter()
        .step_by(blocks.len().div_ceil(24).max(1))
        .map(|block| {
            let ahead = ahead_of(image, layout, block, ahead);
            (block, decode(image, block).unwrap_or_default(), ahead)
        })
        .collect();
    let samples: Vec<_> = few
        .iter()
        .map(|(block, plain, ahead)| Sample {
            stored: stored(image, block),
            plain,
            ahead,
        })
        .collect();
    encoders.rank(&samples, methods)
}

/// CPU time of this thread so far.
fn cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let spent = text.split(' ').next().and_then(|field| field.parse().ok());
    Duration::from_nanos(spent.unwrap_or(0))
}

struct Proven {
    /// For each block a bit for each spec that made it.
    by: Vec<u64>,
    time: Vec<Duration>,
    plain: u64,
}

impl Proven {
    fn milliseconds(&self, spec: usize) -> f64 {
        self.time[spec].as_secs_f64() * 1e9
            / f64::from(u32::try_from(self.plain).unwrap_or(u32::MAX))
    }
}

fn run(
    image: &[u8],
    layout: &Layout,
    encoders: &Encoders,
    blocks: &[&CompressedBlock],
    specs: &[EncoderSpec],
) -> Proven {
    let specs = &specs[..specs.len().min(64)];
    let next = AtomicUsize::new(0);
    let plain_total = AtomicU64::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut by = vec![0; blocks.len()];
    let mut time = vec![Duration::ZERO; specs.len()];
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    let mut found = Vec::new();
                    let mut time = vec![Duration::ZERO; specs.len()];
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        let Some(block) = blocks.get(index) else {
                            return (found, time);
                        };
                        let plain = decode(image, block).unwrap_or_default();
                        plain_total.fetch_add(u64::from(block.decoded_length), Ordering::Relaxed);
                        let wanted = specs.iter().map(|s| s.method.ahead()).max().unwrap_or(0);
                        let ahead = ahead_of(image, layout, block, wanted);
                        let sample = Sample {
                            stored: stored(image, block),
                            plain: &plain,
                            ahead: &ahead,
                        };
                        let mut bits = 0_u64;
                        for (bit, spec) in specs.iter().enumerate() {
                            let started = cpu();
                            let one = std::slice::from_ref(spec);
                            if encoders.prove(sample, one).is_some() {
                                bits |= 1 << bit;
                            }
                            time[bit] += cpu().saturating_sub(started);
                        }
                        found.push((index, bits));
                    }
                })
            })
            .collect();
        for worker in workers {
            let (found, spent) = worker.join().expect("no worker panics");
            for (index, bits) in found {
                by[index] = bits;
            }
            for (sum, spent) in time.iter_mut().zip(spent) {
                *sum += spent;
            }
        }
    });
    Proven {
        by,
        time,
        plain: plain_total.into_inner(),
    }
}

fn stored<'a>(image: &'a [u8], block: &CompressedBlock) -> &'a [u8] {
    let start = usize::try_from(block.offset).expect("it lies in an image in memory");
    &image[start..][..block
        .length
        .try_into()
        .expect("it lies in an image in memory")]
}

fn decode(image: &[u8], block: &CompressedBlock) -> Option<Vec<u8>> {
    let limit = usize::try_from(block.decoded_length).ok()?;
    block.codec.decode(stored(image, block), limit).ok()
}

fn percent(part: impl TryInto<u64>, whole: impl TryInto<u64>) -> f64 {
    let number = |n: u64| {
        f64::from(u32::try_from(n / 16).unwrap_or(u32::MAX))
            + f64::from(u8::try_from(n % 16).unwrap_or(0)) / 16.0
    };
    let part = part.try_into().map_or(0.0, number);
    let whole = whole.try_into().map_or(0.0, number);
    if whole == 0.0 {
        0.0
    } else {
        part / whole * 100.0
    }
}
