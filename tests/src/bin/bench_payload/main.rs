//! Measures payloads against other tools, on images of a corpus: size, processor
//! time and memory to make and to apply. One after another, in one run, and each
//! result is compared with the image it should be.
//!
//! Data on stdout: a table, then which goals are met. Exit status 1 when a result
//! is wrong or a tool fails.

mod goals;
mod measure;
mod tools;

use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Parser;

use measure::Cost;
use tools::{Task, Tool};

/// Measure payloads against other tools.
#[derive(Parser)]
struct Arguments {
    /// Folder of images named hot.KIND, prev.KIND and new.KIND
    #[arg(long, env = "CORPUS")]
    corpus: Option<PathBuf>,
    /// Kinds of images
    #[arg(
        long,
        env = "IMAGES",
        value_delimiter = ' ',
        default_value = "ext4 sq-zstd sq-gzip erofs-lz4 btrfs"
    )]
    images: Vec<String>,
    /// hot: from a patch release to the new one; prev: from a feature release; full:
    /// without an old image
    #[arg(
        long,
        env = "PAIRS",
        value_delimiter = ' ',
        default_value = "hot prev full"
    )]
    pairs: Vec<String>,
    /// Other tools: xdelta3, zstd-6, zstd-19, bsdiff, rdiff, hdiffpatch
    #[arg(
        long,
        env = "PEERS",
        value_delimiter = ' ',
        default_value = "xdelta3 zstd-6 zstd-19"
    )]
    peers: Vec<String>,
    /// Also write each row to this file, one JSON object a line
    #[arg(long, env = "JSON")]
    json: Option<PathBuf>,
    /// The program `payload`; the one beside this program by default
    #[arg(long)]
    payload: Option<PathBuf>,
}

/// One measurement.
struct Row {
    image: String,
    pair: String,
    tool: Tool,
    /// Bytes of the patch.
    size: f64,
    generation: Cost,
    application: Cost,
}

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    let done = match arguments.get(1) {
        Some(first) if first == measure::PARENT => measure::parent(&arguments[2..]),
        _ => compare(&Arguments::parse()),
    };
    done.unwrap_or_else(|error| {
        eprintln!("bench_payload: {error:#}");
        ExitCode::FAILURE
    })
}

fn compare(arguments: &Arguments) -> Result<ExitCode> {
    let corpus = arguments.corpus.clone().map_or_else(default_corpus, Ok)?;
    let payload = arguments
        .payload
        .clone()
        .map_or_else(|| Ok::<_, anyhow::Error>(beside("payload")?), Ok)?;
    let scratch = tempfile::tempdir()?;
    let mut json = arguments.json.as_ref().map(File::create).transpose()?;
    let peers = peers(&arguments.peers)?;
    let mut rows = Vec::new();
    let mut all_right = true;
    println!("{HEADINGS}");
    for image in arguments.images.iter().filter(|image| !image.is_empty()) {
        for pair in arguments.pairs.iter().filter(|pair| !pair.is_empty()) {
            let new = corpus.join(format!("new.{image}"));
            let old = (pair != "full").then(|| corpus.join(format!("{pair}.{image}")));
            if let Some(missing) = old.iter().chain([&new]).find(|image| !image.exists()) {
                eprintln!(
                    "{image} {pair} is left out: {} is missing",
                    missing.display()
                );
                continue;
            }
            let task = Task {
                old: old.as_deref(),
                new: &new,
                patch: &scratch.path().join("patch"),
                result: &scratch.path().join("result"),
                payload: &payload,
            };
            let mut tools = vec![Tool::Ours];
            if old.is_some() {
                tools.extend(&peers);
            } else {
                tools.push(Tool::V1);
            }
            let first = rows.len();
            for tool in tools {
                eprintln!("{image} {pair}: {}", tool.name());
                match run(tool, &task) {
                    Ok((size, generation, application)) => {
                        let row = Row {
                            image: image.clone(),
                            pair: pair.clone(),
                            tool,
                            size,
                            generation,
                            application,
                        };
                        if let Some(json) = &mut json {
                            writeln!(json, "{}", row.json())?;
                        }
                        rows.push(row);
                    }
                    Err(error) => {
                        all_right = false;
                        eprintln!("bench_payload: {image} {pair}: {}: {error:#}", tool.name());
                    }
                }
            }
            print_group(&rows[first..]);
        }
    }
    println!();
    for line in goals::lines(&rows) {
        println!("{line}");
    }
    Ok(if all_right {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Makes, applies, and compares the result.
fn run(tool: Tool, task: &Task<'_>) -> Result<(f64, Cost, Cost)> {
    // Nothing of the tool before may pass for a result of this one.
    for path in [task.patch, task.result] {
        if path.exists() {
            std::fs::remove_file(path)?;
        }
    }
    let mut generation = Cost::default();
    for command in tool.generate(task) {
        generation = generation.and(measure::run(&command)?);
    }
    let application = measure::run(&tool.apply(task))?;
    ensure!(
        same(task.result, task.new)?,
        "the result is not the new image"
    );
    let size = u32::try_from(task.patch.metadata()?.len())?;
    Ok((f64::from(size), generation, application))
}

fn same(one: &Path, other: &Path) -> Result<bool> {
    let open = |path: &Path| -> Result<_> {
        let file = File::open(path).with_context(|| path.display().to_string())?;
        Ok((file.metadata()?.len(), BufReader::new(file)))
    };
    let ((one_length, mut one), (other_length, mut other)) = (open(one)?, open(other)?);
    if one_length != other_length {
        return Ok(false);
    }
    let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut to_do = one_length;
    while to_do > 0 {
        let length = usize::try_from(to_do).map_or(left.len(), |to_do| to_do.min(left.len()));
        one.read_exact(&mut left[..length])?;
        other.read_exact(&mut right[..length])?;
        if left[..length] != right[..length] {
            return Ok(false);
        }
        to_do -= u64::try_from(length)?;
    }
    Ok(true)
}

/// The peers asked for that are there; the others are told.
fn peers(names: &[String]) -> Result<Vec<Tool>> {
    let mut peers = Vec::new();
    for name in names.iter().filter(|name| !name.is_empty()) {
        let (_, tool) = Tool::PEERS
            .iter()
            .find(|(known, _)| known == name)
            .with_context(|| format!("no peer is called {name}"))?;
        if tool.is_installed() {
            peers.push(*tool);
        } else {
            eprintln!("{name} is left out: {} is not in PATH", tool.program());
        }
    }
    Ok(peers)
}

/// Where `make-corpus.sh` puts images.
fn default_corpus() -> Result<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let cache = cache
        .or_else(home)
        .context("neither CORPUS nor HOME is set")?;
    Ok(cache.join("update-corpus"))
}

fn beside(program: &str) -> std::io::Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name(program))
}

const HEADINGS: &str = "\
image      pair  tool              size  : best peer   generate CPU s    MiB   apply CPU s    MiB";

/// The rows of one pair, with the size as a multiple of the best of the others.
fn print_group(rows: &[Row]) {
    for row in rows {
        let best = rows
            .iter()
            .filter(|peer| peer.tool != Tool::Ours)
            .map(|peer| peer.size)
            .reduce(f64::min);
        let ratio = best.map_or("-".to_owned(), |best| format!("{:.3}", row.size / best));
        println!(
            "{:<10} {:<5} {:<10} {:>11}  {ratio:>11}   {:>14.1} {:>6.0}   {:>11.2} {:>6.0}",
            row.image,
            row.pair,
            row.tool.name(),
            row.size,
            row.generation.seconds,
            row.generation.peak,
            row.application.seconds,
            row.application.peak,
        );
    }
}

impl Row {
    fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "image": self.image,
            "pair": self.pair,
            "tool": self.tool.name(),
            "size": self.size,
            "generate_cpu_seconds": self.generation.seconds,
            "generate_peak_mib": self.generation.peak,
            "apply_cpu_seconds": self.application.seconds,
            "apply_peak_mib": self.application.peak,
        })
    }
}
