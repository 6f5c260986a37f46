//! What the command tells a person: lines and progress bars, all on stderr.

use std::fmt;
use std::io::{self, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Writes a line to stderr. A closed stderr is not a reason to stop working.
pub(crate) fn say(line: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// A bar for `total` bytes of work, visible on a terminal only, gone when done.
pub(crate) fn progress(what: &'static str, total: u64) -> ProgressBar {
    let style = ProgressStyle::with_template(
        "{msg:>10} [{bar:30}] {percent:>3}% {bytes:>11} of {total_bytes}, {eta} left",
    )
    .expect("the template is well-formed")
    .progress_chars("=> ");
    let bar = ProgressBar::new(total).with_style(style).with_message(what);
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// How many keys signed, in words.
pub(crate) fn signed_by(count: usize, key: &str) -> String {
    match count {
        0 => "not signed".to_owned(),
        1 => format!("signed by 1 {key}"),
        count => format!("signed by {count} {key}s"),
    }
}
