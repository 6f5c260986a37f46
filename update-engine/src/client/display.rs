//! `-follow` for a person: a bar while stderr is a terminal, lines otherwise.

use std::time::Duration;

use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::report::{StatusLine, say};
use crate::status::{Details, NO_VERSION, Operation};

/// Growth of the progress, in percent, between two plain lines of a download.
const LINE_STEP: u8 = 10;

const SPINNING: &str = "{spinner} {msg}";
const COUNTING: &str = "{msg} [{bar:32}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";

/// Shows looks at the daemon, one after the other; what is on the screen goes
/// away with it.
pub(super) struct Display {
    bar: ProgressBar,
    /// Whether the bar counts bytes; it spins otherwise.
    counting: bool,
    operation: Option<String>,
    percent: u8,
}

impl Display {
    pub(super) fn new() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr())
            .with_style(style(SPINNING));
        if !bar.is_hidden() {
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        Self {
            bar,
            counting: false,
            operation: None,
            percent: 0,
        }
    }

    pub(super) fn show(&mut self, status: &StatusLine, details: Option<&Details>) {
        if self.bar.is_hidden() {
            self.show_line(status, details);
        } else {
            self.show_bar(status, details);
        }
    }

    /// Runs something that prints, without spoiling the bar.
    pub(super) fn aside(&self, print: impl FnOnce()) {
        self.bar.suspend(print);
    }

    fn show_line(&mut self, status: &StatusLine, details: Option<&Details>) {
        let percent = percent(status.progress);
        let news = self.operation.as_ref() != Some(&status.current_operation);
        if news || percent >= self.percent.saturating_add(LINE_STEP) {
            self.operation = Some(status.current_operation.clone());
            self.percent = percent;
            say(sentence(status, details));
        }
    }

    fn show_bar(&mut self, status: &StatusLine, details: Option<&Details>) {
        let bytes = downloading(status).then(|| bytes(details)).flatten();
        let turned = self.counting != bytes.is_some();
        self.counting = bytes.is_some();
        if turned {
            // The style first: each of these draws.
            self.bar
                .set_style(style(if self.counting { COUNTING } else { SPINNING }));
        }
        let Some((done, total)) = bytes else {
            self.bar.set_message(sentence(status, details));
            return;
        };
        self.bar
            .set_message(format!("downloading {}", status.new_version));
        self.bar.set_length(total);
        self.bar.set_position(done);
        if turned {
            // What was resumed was not downloaded just now.
            self.bar.reset_eta();
        }
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .expect("the template is a constant")
        .progress_chars("=> ")
}

/// What the daemon does, for a person.
fn sentence(status: &StatusLine, details: Option<&Details>) -> String {
    let version = match status.new_version.as_str() {
        "" | NO_VERSION => "an update",
        version => version,
    };
    match Operation::from_bus(&status.current_operation) {
        Some(Operation::Idle) => "the daemon is idle".to_owned(),
        Some(Operation::CheckingForUpdate) => "checking for an update".to_owned(),
        Some(Operation::UpdateAvailable) => match u64::try_from(status.new_size) {
            Ok(size) if size > 0 => format!("{version} is available, {}", HumanBytes(size)),
            _ => format!("{version} is available"),
        },
        Some(Operation::Downloading) => {
            let percent = percent(status.progress);
            match bytes(details) {
                Some((done, total)) => format!(
                    "downloading {version}: {percent} %, {} of {}",
                    HumanBytes(done),
                    HumanBytes(total)
                ),
                None => format!("downloading {version}: {percent} %"),
            }
        }
        Some(Operation::Verifying) => format!("verifying {version}"),
        Some(Operation::Finalizing) => format!("finishing {version}"),
        Some(Operation::UpdatedNeedReboot) => format!("{version} waits for a reboot"),
        Some(Operation::ReportingErrorEvent) => "reporting a failure to the server".to_owned(),
        None => status.current_operation.clone(),
    }
}

fn downloading(status: &StatusLine) -> bool {
    Operation::from_bus(&status.current_operation) == Some(Operation::Downloading)
}

fn bytes(details: Option<&Details>) -> Option<(u64, u64)> {
    let details = details?;
    Some((details.bytes_done?, details.bytes_total?))
}

/// Whole percent of a share, 0 to 100 whatever comes in.
fn percent(share: f64) -> u8 {
    (1..=100)
        .take_while(|percent| f64::from(*percent) <= share * 100.0)
        .last()
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(operation: &str, progress: f64) -> StatusLine {
        StatusLine {
            progress,
            current_operation: operation.to_owned(),
            new_version: "2.0.0".to_owned(),
            new_size: 1024 * 1024,
            ..StatusLine::unavailable()
        }
    }

    #[test]
    fn each_state_has_a_sentence() {
        let bytes = Details {
            bytes_done: Some(512 * 1024),
            bytes_total: Some(1024 * 1024),
            ..Details::default()
        };
        for (operation, details, expected) in [
            ("UPDATE_STATUS_IDLE", None, "the daemon is idle"),
            (
                "UPDATE_STATUS_UPDATE_AVAILABLE",
                None,
                "2.0.0 is available, 1.00 MiB",
            ),
            ("UPDATE_STATUS_DOWNLOADING", None, "downloading 2.0.0: 50 %"),
            (
                "UPDATE_STATUS_DOWNLOADING",
                Some(&bytes),
                "downloading 2.0.0: 50 %, 512.00 KiB of 1.00 MiB",
            ),
            ("UPDATE_STATUS_FINALIZING", None, "finishing 2.0.0"),
            ("UPDATE_STATUS_CLEANUP", None, "UPDATE_STATUS_CLEANUP"),
        ] {
            assert_eq!(sentence(&status(operation, 0.5), details), expected);
        }
    }

    #[test]
    fn percent_stays_in_its_range() {
        for (share, expected) in [
            (0.0, 0),
            (0.009, 0),
            (0.01, 1),
            (0.5, 50),
            (0.999, 99),
            (1.0, 100),
            (7.0, 100),
            (-1.0, 0),
            (f64::NAN, 0),
            (f64::INFINITY, 100),
        ] {
            assert_eq!(percent(share), expected, "{share}");
        }
    }
}
