//! Runs entry points of [`payload::fuzz`] on mutations of their corpora, on all cores.
//!
//! ```text
//! make fuzz TARGET=squashfs RUNS=10000000
//! ```
//! Needs no nightly compiler and no coverage. An input that panics is written to
//! `payload/fuzz/found`, as is each that takes longer than a second; there and from
//! the command line (`fuzz TARGET FILE`) it can be run again. Exit status 1 when there
//! was one.

use std::error::Error;
use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use payload::fuzz::{Mutator, TARGETS, Target};

const LONGEST: Duration = Duration::from_secs(1);

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [name, runs] = &arguments[..] else {
        return Err("usage: fuzz TARGET|all RUNS|FILE".into());
    };
    let chosen = TARGETS
        .iter()
        .filter(|(known, _)| name == "all" || name == known);
    let mut good = true;
    let mut any = false;
    for (name, target) in chosen {
        any = true;
        match runs.parse() {
            Ok(runs) => good &= campaign(name, *target, runs)?,
            Err(_) => target(&fs::read(runs)?),
        }
    }
    if !any {
        let names: Vec<_> = TARGETS.iter().map(|(name, _)| *name).collect();
        return Err(format!("no target {name}; there are {}", names.join(", ")).into());
    }
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Whether all inputs were taken as they should be.
fn campaign(name: &str, target: Target, runs: u64) -> Result<bool, Box<dyn Error>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let seeds = seeds(&folder.join("corpus").join(name))?;
    let next = AtomicU64::new(0);
    let started = Instant::now();
    let work = || {
        let mut slowest = Duration::ZERO;
        let mut found = 0_u64;
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= runs {
                return (slowest, found);
            }
            // By its number, so that an input can be made again.
            let mut mutator = Mutator::new(number);
            let seed = &seeds[mutator.below(seeds.len())];
            let other = &seeds[mutator.below(seeds.len())];
            let input = mutator.mutate(seed, other);
            let timed = || {
                let one = Instant::now();
                (catch_unwind(|| target(&input)), one.elapsed())
            };
            let (outcome, mut one) = timed();
            if outcome.is_ok() && one > LONGEST {
                // Another program may have had the processor; so once more.
                one = one.min(timed().1);
            }
            slowest = slowest.max(one);
            if outcome.is_err() || one > LONGEST {
                found += 1;
                keep(&folder, name, number, &input, one);
            }
        }
    };
    let threads = std::thread::available_parallelism()?;
    let results: Vec<_> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.get()).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .map(|worker| worker.join().expect("targets are caught"))
            .collect()
    });
    let slowest = results.iter().map(|(slowest, _)| *slowest).max();
    let found: u64 = results.iter().map(|(_, found)| found).sum();
    println!(
        "{name}: {runs} inputs in {:.0} s, {found} bad, the slowest {:.1} ms, peak memory of \
         the process {}",
        started.elapsed().as_secs_f64(),
        slowest.unwrap_or_default().as_secs_f64() * 1e3,
        peak()
    );
    Ok(found == 0)
}

fn seeds(folder: &Path) -> Result<Vec<Vec<u8>>, Box<dyn Error>> {
    let entries = fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in entries {
        files.push(entry?.path());
    }
    files.sort();
    Ok(files.iter().map(fs::read).collect::<Result<_, _>>()?)
}

fn keep(folder: &Path, name: &str, number: u64, input: &[u8], time: Duration) {
    let folder = folder.join("found");
    let file = folder.join(format!("{name}-{number}"));
    let kept = fs::create_dir_all(&folder).and_then(|()| fs::write(&file, input));
    eprintln!("{} ({time:?}): {kept:?}", file.display());
}

/// From the kernel's account, since the C libraries allocate on their own.
fn peak() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.unwrap_or("unknown").trim().to_owned()
}
