//! `payload show`: what a payload says about itself.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use indicatif::HumanBytes;
use payload::{
    Event, ImageInfo, Limits, Manifest, Operation, PayloadStream, Procedure, Trust,
    signature_entries,
};
use serde::Serialize;

use crate::files;
use crate::talk::hex;

/// Show header, sizes, hashes, operations and signatures of a payload.
///
/// Only the manifest and the list of signatures are read; nothing is verified.
/// That is what `payload verify` is for.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  payload show update.payload
  payload show --json update.payload | jq -r '.parts[0].new.sha256'")]
pub(crate) struct Show {
    /// Print one JSON document instead of tables. Sizes are in bytes.
    #[arg(long)]
    json: bool,
    /// The payload.
    file: PathBuf,
}

impl Show {
    pub(crate) fn run(self) -> Result<()> {
        let summary =
            Summary::read(&self.file).with_context(|| format!("show {}", self.file.display()))?;
        let mut out = io::stdout().lock();
        if self.json {
            serde_json::to_writer_pretty(&mut out, &summary).map_err(io::Error::from)?;
            writeln!(out)?;
        } else {
            write!(out, "{}", summary.to_text())?;
        }
        Ok(())
    }
}

/// What is shown; the JSON document.
#[derive(Debug, Serialize)]
struct Summary {
    format_version: u64,
    kind: &'static str,
    /// Of the whole file.
    size: u64,
    /// Header and manifest.
    metadata_size: u64,
    block_size: u32,
    /// Data of all operations.
    data_size: u64,
    parts: Vec<PartSummary>,
    signatures: Vec<SignatureSummary>,
}

#[derive(Debug, Serialize)]
struct PartSummary {
    target: String,
    old: Option<InfoSummary>,
    /// Absent for procedures of unknown type.
    new: Option<InfoSummary>,
    operations: BTreeMap<&'static str, OperationsSummary>,
}

#[derive(Debug, Serialize)]
struct InfoSummary {
    size: u64,
    sha256: String,
}

/// All operations of one type.
#[derive(Debug, Default, Serialize)]
struct OperationsSummary {
    count: u64,
    data_size: u64,
}

#[derive(Debug, Serialize)]
struct SignatureSummary {
    version: u32,
    kind: &'static str,
    size: usize,
}

impl Summary {
    fn read(path: &Path) -> Result<Self> {
        let (mut file, found) = files::open(path)?;
        let manifest = read_manifest(&mut file)?;
        let size = manifest.payload_size();
        if found != size {
            bail!("the file has {found} bytes, its manifest tells of {size}");
        }
        let partition = &manifest.partition;
        let parts = std::iter::once(PartSummary::new(
            "partition",
            partition.old.as_ref(),
            Some(&partition.new),
            &partition.operations,
        ));
        Ok(Self {
            format_version: manifest.format.number(),
            kind: if manifest.is_delta() { "delta" } else { "full" },
            size,
            metadata_size: manifest.metadata_size,
            block_size: manifest.block_size,
            data_size: manifest.blobs_size,
            parts: parts
                .chain(manifest.procedures.iter().map(PartSummary::of_procedure))
                .collect(),
            signatures: read_signatures(&mut file, &manifest)?,
        })
    }

    fn to_text(&self) -> String {
        let mut head = table(["", "bytes", ""]);
        let sizes = [
            ("payload", self.size),
            ("header and manifest", self.metadata_size),
            ("data", self.data_size),
        ];
        for (what, size) in sizes {
            head.add_row([what.to_owned(), size.to_string(), human(size)]);
        }
        align_right(&mut head, &[1, 2]);

        let mut images = table(["part", "", "bytes", "sha256"]);
        for part in &self.parts {
            for (which, info) in [("old", &part.old), ("new", &part.new)] {
                if let Some(info) = info {
                    let size = info.size.to_string();
                    images.add_row([&*part.target, which, &size, &info.sha256]);
                }
            }
        }
        align_right(&mut images, &[2]);

        let mut operations = table(["part", "operation", "count", "data"]);
        for part in &self.parts {
            for (name, sum) in &part.operations {
                let (count, data) = (sum.count.to_string(), human(sum.data_size));
                operations.add_row([&*part.target, name, &count, &data]);
            }
        }
        align_right(&mut operations, &[2, 3]);

        let mut signatures = table(["signature", "kind", "version", "bytes"]);
        for (number, signature) in self.signatures.iter().enumerate() {
            signatures.add_row([
                (number + 1).to_string(),
                signature.kind.to_owned(),
                signature.version.to_string(),
                signature.size.to_string(),
            ]);
        }
        align_right(&mut signatures, &[2, 3]);

        let signatures = if self.signatures.is_empty() {
            "not signed".to_owned()
        } else {
            signatures.trim_fmt()
        };
        format!(
            "{} payload, format version {}, blocks of {} bytes\n\n{}\n\n{}\n\n{}\n\n{signatures}\n",
            self.kind,
            self.format_version,
            self.block_size,
            head.trim_fmt(),
            images.trim_fmt(),
            operations.trim_fmt(),
        )
    }
}

impl PartSummary {
    fn new(
        target: impl Display,
        old: Option<&ImageInfo>,
        new: Option<&ImageInfo>,
        operations: &[Arc<Operation>],
    ) -> Self {
        let mut sums: BTreeMap<_, OperationsSummary> = BTreeMap::new();
        for operation in operations {
            let sum = sums.entry(operation.name()).or_default();
            sum.count += 1;
            sum.data_size = sum.data_size.saturating_add(operation.blob.length);
        }
        Self {
            target: target.to_string(),
            old: old.map(InfoSummary::new),
            new: new.map(InfoSummary::new),
            operations: sums,
        }
    }

    fn of_procedure(procedure: &Procedure) -> Self {
        let (old, new) = match procedure {
            Procedure::Kernel(part) | Procedure::PcrPolicy(part) => {
                (part.old.as_ref(), Some(&part.new))
            }
            Procedure::Named { part, .. } => (part.old.as_ref(), Some(&part.new)),
            Procedure::Unknown { .. } => (None, None),
        };
        Self::new(procedure.target(), old, new, procedure.operations())
    }
}

impl InfoSummary {
    fn new(info: &ImageInfo) -> Self {
        Self {
            size: info.size,
            sha256: hex(&info.sha256),
        }
    }
}

/// Reads no further than the manifest.
fn read_manifest(file: &mut File) -> Result<Arc<Manifest>> {
    let anyone = Trust::allow_unsigned(Vec::new());
    let mut stream = PayloadStream::new(Limits::default(), &anyone);
    let mut buffer = vec![0; 64 << 10];
    loop {
        if let Some(Event::Metadata { manifest, .. }) = stream.next_event()? {
            return Ok(manifest);
        }
        match file.read(&mut buffer)? {
            0 => {
                return Err(anyhow!(
                    "the file ends after {} bytes, before its manifest does",
                    stream.received()
                ));
            }
            read => stream.push(&buffer[..read]),
        }
    }
}

fn read_signatures(file: &mut File, manifest: &Manifest) -> Result<Vec<SignatureSummary>> {
    let Some(range) = &manifest.signatures else {
        return Ok(Vec::new());
    };
    let mut message = Vec::new();
    file.seek(SeekFrom::Start(range.start))?;
    file.take(range.end - range.start)
        .read_to_end(&mut message)?;
    let entries = signature_entries(manifest.format, range.start, &message)?;
    let entries = entries.into_iter().map(|(version, size)| SignatureSummary {
        version,
        kind: match version {
            2 => "RSA",
            3 => "Ed25519",
            _ => "unknown",
        },
        size,
    });
    Ok(entries.collect())
}

fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    table
}

fn align_right(table: &mut Table, columns: &[usize]) {
    for column in columns {
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

fn human(size: u64) -> String {
    HumanBytes(size).to_string()
}
