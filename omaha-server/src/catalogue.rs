//! What there is to offer, at one moment. Knows neither where it comes from nor
//! who gets what.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};
use omaha_protocol::{OS_APP_ID, same_app_id};
use payload::Format;
use serde_json::json;

use crate::labels::Labels;

/// How much of a file is hashed, read and kept in memory at a time; its last chunk may
/// be shorter.
pub const CHUNK_BYTES: u64 = 256 << 10;

/// A snapshot of the payload folder.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Catalogue {
    /// What can be offered, ordered by path.
    pub artifacts: Vec<Artifact>,
    /// Payload files that cannot be offered, ordered by path.
    pub left_out: Vec<LeftOut>,
    /// Apps that payloads here are or were for, the operating system aside. They stay
    /// known while their last payload is away or cannot be offered.
    pub app_ids: BTreeSet<String>,
}

/// A payload file that was read completely and found whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// Whom it is for.
    pub labels: Labels,
    /// It only applies to one old image.
    pub is_delta: bool,
    /// The version of its format; clients of the original read the first alone.
    pub format: Format,
    /// SHA-256 of the image that a delta applies to, where its manifest tells.
    pub source_sha256: Option<[u8; 32]>,
    /// Library and version of the encoders that a machine must have for it, as in
    /// `zstd/1.5.7`, each once.
    pub encoders: Vec<String>,
    /// The oldest version that machines install it over, as its manifest has it.
    pub min_source_version: Option<String>,
    /// After which moment machines do not install it, in seconds since 1970.
    pub expires: Option<u64>,
    /// Where it lies.
    pub path: PathBuf,
    /// The last part of its path.
    pub name: String,
    /// SHA-1 of the file, for clients of old.
    pub sha1: [u8; 20],
    /// SHA-256 of the file; also its name in URLs and its entity tag.
    pub sha256: [u8; 32],
    /// SHA-256 of each [`CHUNK_BYTES`] of the file, by which what goes out is known to
    /// be what was hashed, whatever became of the file since.
    pub chunks: Arc<[[u8; 32]]>,
    /// Size in bytes.
    pub size: u64,
    /// Last change of the content.
    pub modified: SystemTime,
}

/// A file that looks like a payload but is not offered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// Where it lies.
    pub path: PathBuf,
    /// Why, in words.
    pub reason: String,
}

impl Catalogue {
    /// Whether anything here is or was for this app. The operating system is always
    /// known, for a server without payloads is still its server.
    pub fn knows_app(&self, app_id: &str) -> bool {
        let here = self.artifacts.iter().map(|a| &a.labels.app_id);
        let mut ids = here.chain(&self.app_ids);
        same_app_id(app_id, OS_APP_ID) || ids.any(|id| same_app_id(id, app_id))
    }

    /// The file behind `/p/<sha256>/<name>`.
    pub fn file(&self, sha256: &str, name: &str) -> Option<&Artifact> {
        self.artifacts
            .iter()
            .find(|artifact| artifact.name == name && artifact.sha256_hex() == sha256)
    }

    /// The catalogue for people: a table, then what was left out and why.
    pub fn table(&self, folder: &Path) -> String {
        let shown = |path: &Path| {
            path.strip_prefix(folder)
                .unwrap_or(path)
                .display()
                .to_string()
        };
        let mut text = String::new();
        if self.artifacts.is_empty() {
            text.push_str("nothing to offer yet\n");
        } else {
            let mut table = Table::new();
            table.load_style(NOTHING);
            table.set_header([
                "VERSION", "TRACK", "BOARD", "KIND", "SIZE", "SHA256", "FILE",
            ]);
            for artifact in &self.artifacts {
                let labels = &artifact.labels;
                table.add_row([
                    labels.version.to_string(),
                    labels.track.clone().unwrap_or_else(|| "any".to_owned()),
                    labels.board.clone().unwrap_or_else(|| "any".to_owned()),
                    artifact.kind(),
                    artifact.size.to_string(),
                    artifact.sha256_hex()[..12].to_owned(),
                    shown(&artifact.path),
                ]);
            }
            if let Some(sizes) = table.column_mut(4) {
                sizes.set_cell_alignment(CellAlignment::Right);
            }
            for line in table.lines() {
                text.push_str(line.trim());
                text.push('\n');
            }
        }
        for left_out in &self.left_out {
            writeln!(
                text,
                "not offered: {}: {}",
                shown(&left_out.path),
                left_out.reason
            )
            .expect("writing to a string cannot fail");
        }
        text
    }

    /// The catalogue for programs.
    pub fn json(&self) -> serde_json::Value {
        let artifacts: Vec<_> = self
            .artifacts
            .iter()
            .map(|artifact| {
                let labels = &artifact.labels;
                json!({
                    "app_id": labels.app_id,
                    "version": labels.version.as_str(),
                    "track": labels.track,
                    "board": labels.board,
                    "from_version": labels.from_version.as_ref().map(|v| v.as_str()),
                    "delta": artifact.is_delta,
                    "format": artifact.format.number(),
                    "source_sha256": artifact.source_sha256.as_ref().map(|hash| hex(hash)),
                    "encoders": artifact.encoders,
                    "min_source_version": artifact.min_source_version,
                    "expires": artifact.expires,
                    "size": artifact.size,
                    "sha256": artifact.sha256_hex(),
                    "path": artifact.path.display().to_string(),
                })
            })
            .collect();
        let left_out: Vec<_> = self
            .left_out
            .iter()
            .map(|left_out| {
                json!({ "path": left_out.path.display().to_string(), "reason": left_out.reason })
            })
            .collect();
        json!({ "artifacts": artifacts, "left_out": left_out })
    }
}

impl Artifact {
    /// The SHA-256 in lower-case hex.
    pub fn sha256_hex(&self) -> String {
        hex(&self.sha256)
    }

    /// `full`, or `delta` with what it starts from, what it takes and what limits it.
    pub fn kind(&self) -> String {
        let mut kind = match (&self.labels.from_version, self.is_delta) {
            (None, true) => match &self.source_sha256 {
                Some(hash) => format!("delta from image {}", &hex(hash)[..12]),
                None => "delta".to_owned(),
            },
            (None, false) => "full".to_owned(),
            (Some(from), true) => format!("delta from {from}"),
            (Some(from), false) => format!("full, only from {from}"),
        };
        if self.format != Format::V1 {
            kind.push_str(&format!(", v{}", self.format.number()));
        }
        if !self.encoders.is_empty() {
            kind.push_str(", needs ");
            kind.push_str(&self.encoders.join(" "));
        }
        if let Some(least) = &self.min_source_version {
            kind.push_str(&format!(", over {least} or newer"));
        }
        if let Some(expires) = self.expires {
            kind.push_str(", expires ");
            kind.push_str(&moment(expires));
        }
        kind
    }
}

/// Date and time in UTC of seconds since 1970; as they are when no calendar has them.
pub(crate) fn moment(seconds: u64) -> String {
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| jiff::Timestamp::from_second(seconds).ok())
        .map_or_else(
            || format!("at unix time {seconds}"),
            |moment| moment.to_string(),
        )
}

/// Lower case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
