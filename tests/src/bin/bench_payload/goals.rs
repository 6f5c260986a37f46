//! What the payloads are to reach, and whether they did. Nothing fails here:
//! the figures depend on the machine and on what Debian ships on the day.

use crate::Row;
use crate::tools::Tool;

/// The largest delta of a pair, in MB (10^6 bytes).
const SIZES: [(&str, &str, f64); 10] = [
    ("ext4", "hot", 3.2),
    ("ext4", "prev", 12.4),
    ("sq-zstd", "hot", 5.0),
    ("sq-zstd", "prev", 16.0),
    ("sq-gzip", "hot", 5.0),
    ("sq-gzip", "prev", 18.0),
    ("erofs-lz4", "hot", 4.5),
    ("erofs-lz4", "prev", 16.0),
    ("btrfs", "hot", 8.0),
    ("btrfs", "prev", 20.0),
];

/// Seconds of processor time and MB of memory to make the delta of this pair.
const GENERATE: (&str, &str, f64, f64) = ("ext4", "prev", 60.0, 1000.0);

/// MiB of memory to apply any of our payloads.
const APPLY_PEAK: f64 = 64.0;

/// Version 2 against version 1, both whole: bytes, and how many times less
/// processor time.
const FULL: (f64, f64) = (0.85, 4.0);

/// One line for each goal that `rows` say something about.
pub(super) fn lines(rows: &[Row]) -> Vec<String> {
    let ours = |row: &&Row| row.tool == Tool::Ours;
    let mut lines = Vec::new();
    for row in rows.iter().filter(ours) {
        let (image, pair) = (row.image.as_str(), row.pair.as_str());
        let subject = format!("{image} {pair}");
        let sized = SIZES.iter().find(|goal| (goal.0, goal.1) == (image, pair));
        if let Some((_, _, most)) = sized {
            lines.push(at_most(&subject, "size", row.size / 1e6, *most, "MB"));
        }
        if (GENERATE.0, GENERATE.1) == (image, pair) {
            let generation = row.generation;
            let (seconds, peak) = (generation.seconds, generation.peak * 1.048_576);
            lines.push(at_most(&subject, "generate", seconds, GENERATE.2, "CPU s"));
            lines.push(at_most(&subject, "generate peak", peak, GENERATE.3, "MB"));
        }
        let peak = row.application.peak;
        lines.push(at_most(&subject, "apply peak", peak, APPLY_PEAK, "MiB"));
        let v1 = rows
            .iter()
            .find(|v1| v1.tool == Tool::V1 && v1.image == row.image && v1.pair == row.pair);
        if let Some(v1) = v1 {
            let size = row.size / v1.size;
            lines.push(at_most(&subject, "size, v2 : v1", size, FULL.0, ""));
            let faster = v1.application.seconds / row.application.seconds;
            lines.push(line(
                faster >= FULL.1,
                &format!(
                    "{subject}: apply CPU, v1 : v2: {faster:.2}, goal ≥ {}",
                    FULL.1
                ),
            ));
        }
    }
    lines
}

fn at_most(subject: &str, what: &str, found: f64, most: f64, unit: &str) -> String {
    let text = format!("{subject}: {what}: {found:.2}, goal ≤ {most} {unit}");
    line(found <= most, text.trim_end())
}

fn line(met: bool, text: &str) -> String {
    format!("{:<8} {text}", if met { "met" } else { "not met" })
}
