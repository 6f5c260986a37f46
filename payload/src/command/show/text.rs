//! What `payload show` tells, as a person reads it.

use comfy_table::{CellAlignment, Table, presets};
use indicatif::HumanBytes;

use super::summary::{ReleaseSummary, SignatureSummary, Summary};

pub(super) fn of(summary: &Summary) -> String {
    let mut sections = vec![headline(summary)];
    sections.extend(summary.release.as_ref().map(release));
    sections.push(sizes(summary));
    sections.push(images(summary));
    sections.extend(hash_trees(summary));
    sections.push(operations(summary));
    sections.extend(largest(summary));
    if !summary.encoders.is_empty() {
        let encoders = summary.encoders.join(", ");
        sections.push(format!("compresses with: {encoders}"));
    }
    sections.push(signatures(summary));
    sections.join("\n\n") + "\n"
}

fn headline(summary: &Summary) -> String {
    let minor = match summary.minor_version {
        0 => String::new(),
        minor => format!(".{minor}"),
    };
    format!(
        "{} payload, format version {}{minor}, blocks of {} bytes\n{}",
        summary.kind,
        summary.format_version,
        summary.block_size,
        savings(summary),
    )
}

fn savings(summary: &Summary) -> String {
    let (payload, new) = (human(summary.size), human(summary.new_size));
    let share = share(summary.size, summary.new_size);
    match summary.new_size.checked_sub(summary.size) {
        Some(saved) => {
            let saved = human(saved);
            format!("{payload} make {new}: {share} of their size, {saved} saved")
        }
        None => format!("{payload} make {new}: {share} of their size, nothing saved"),
    }
}

fn release(release: &ReleaseSummary) -> String {
    let mut rows = table(["release", ""]);
    let texts = [
        ("application", &release.app_id),
        ("board", &release.board),
        ("version", &release.version),
        ("updates from", &release.min_source_version),
        ("verity root hash", &release.verity_root_hash),
    ];
    for (what, text) in texts {
        if let Some(text) = text {
            let text = match what {
                "updates from" => format!("{text} or later"),
                _ => text.clone(),
            };
            // It may hold anything, and a terminal obeys some of that.
            rows.add_row([what, &text.escape_debug().to_string()]);
        }
    }
    if let Some(epoch) = release.security_epoch {
        rows.add_row(["security epoch", &epoch.to_string()]);
    }
    for (what, seconds) in [("created", release.created), ("expires", release.expires)] {
        if let Some(seconds) = seconds {
            rows.add_row([what, &moment(seconds)]);
        }
    }
    rows.trim_fmt()
}

fn sizes(summary: &Summary) -> String {
    let mut rows = table(["", "bytes", ""]);
    let metadata = match summary.format_version {
        1 => "header and manifest",
        _ => "header, manifest, their signature",
    };
    let sizes = [
        ("payload", summary.size),
        (metadata, summary.metadata_size),
        ("data", summary.data_size),
        ("read of the old images", summary.source_bytes),
        ("new images", summary.new_size),
    ];
    for (what, size) in sizes {
        if size > 0 {
            rows.add_row([what.to_owned(), size.to_string(), human(size)]);
        }
    }
    align_right(&mut rows, &[1, 2]);
    rows.trim_fmt()
}

fn images(summary: &Summary) -> String {
    let mut rows = table(["part", "", "bytes", "sha256"]);
    for part in &summary.parts {
        for (which, info) in [("old", &part.old), ("new", &part.new)] {
            if let Some(info) = info {
                let size = info.size.to_string();
                rows.add_row([&*part.target, which, &size, &info.sha256]);
            }
        }
    }
    align_right(&mut rows, &[2]);
    rows.trim_fmt()
}

/// Only where there are some.
fn hash_trees(summary: &Summary) -> Option<String> {
    let mut rows = table(["hash tree of", "data blocks", "at byte", "bytes", "salt"]);
    for part in &summary.parts {
        if let Some(tree) = &part.hash_tree {
            rows.add_row([
                part.target.clone(),
                tree.data_blocks.to_string(),
                tree.offset.to_string(),
                tree.size.to_string(),
                tree.salt.clone(),
            ]);
        }
    }
    align_right(&mut rows, &[1, 2, 3]);
    (!rows.is_empty()).then(|| rows.trim_fmt())
}

fn operations(summary: &Summary) -> String {
    let mut rows = table([
        "part",
        "operation",
        "count",
        "data",
        "of all data",
        "writes",
        "reads of old",
    ]);
    for part in &summary.parts {
        for (name, sum) in &part.operations {
            rows.add_row([
                part.target.clone(),
                (*name).to_owned(),
                sum.count.to_string(),
                human(sum.data_size),
                share(sum.data_size, summary.data_size),
                human(sum.written),
                match sum.source_bytes {
                    0 => String::new(),
                    bytes => human(bytes),
                },
            ]);
        }
    }
    align_right(&mut rows, &[2, 3, 4, 5, 6]);
    rows.trim_fmt()
}

/// Only where it tells more than the sums do.
fn largest(summary: &Summary) -> Option<String> {
    let with_data = summary
        .parts
        .iter()
        .flat_map(|part| part.operations.values());
    let count: u64 = with_data.map(|sum| sum.count).sum();
    if summary.largest_operations.len() < 2 || count <= 2 {
        return None;
    }
    let mut rows = table(["largest", "part", "operation", "data", "writes", "at byte"]);
    for operation in &summary.largest_operations {
        rows.add_row([
            format!("#{}", operation.index),
            operation.target.clone(),
            operation.operation.to_owned(),
            human(operation.data_size),
            human(operation.written),
            operation
                .offset
                .map_or_else(String::new, |offset| offset.to_string()),
        ]);
    }
    align_right(&mut rows, &[3, 4, 5]);
    Some(rows.trim_fmt())
}

fn signatures(summary: &Summary) -> String {
    if summary.signatures.is_empty() && summary.metadata_signatures.is_empty() {
        return "not signed".to_owned();
    }
    let mut rows = table(["signature", "of", "kind", "version", "bytes"]);
    let mut add = |of: &str, signatures: &[SignatureSummary]| {
        for (number, signature) in signatures.iter().enumerate() {
            rows.add_row([
                (number + 1).to_string(),
                of.to_owned(),
                signature.kind.to_owned(),
                signature.version.to_string(),
                signature.size.to_string(),
            ]);
        }
    };
    add("manifest", &summary.metadata_signatures);
    add("payload", &summary.signatures);
    align_right(&mut rows, &[3, 4]);
    rows.trim_fmt()
}

/// A point in time, and the number for those who compare numbers.
fn moment(seconds: u64) -> String {
    let timestamp = i64::try_from(seconds)
        .ok()
        .and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    match timestamp {
        Some(timestamp) => format!("{timestamp} ({seconds})"),
        None => format!("{seconds} seconds after 1970"),
    }
}

/// `part` of `whole` in percent.
fn share(part: u64, whole: u64) -> String {
    let tenths = u128::from(part) * 1000 / u128::from(whole.max(1));
    format!("{}.{} %", tenths / 10, tenths % 10)
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
