//! Where the daemon's log goes: the journal when systemd started it, else stderr.

use std::io::IsTerminal as _;

use tracing::Level;
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// As the original names itself in the journal.
const IDENTIFIER: &str = "locksmithd";
/// Process id of the service manager.
const INIT: i32 = 1;

/// Starts logging; `debug` logs more. `RUST_LOG` counts more than both.
pub(super) fn start(debug: bool) {
    let level = if debug { Level::DEBUG } else { Level::INFO };
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new(format!("warn,locksmith={level}")));
    let registry = tracing_subscriber::registry().with(filter);
    let by_init = nix::unistd::getppid().as_raw() == INIT;
    let journal = by_init.then(tracing_journald::layer).and_then(Result::ok);
    // A second call, in a test, keeps the first log.
    let _ = match journal {
        Some(layer) => registry
            .with(layer.with_syslog_identifier(IDENTIFIER.to_owned()))
            .try_init(),
        None => registry
            .with(
                tracing_subscriber::fmt::layer()
                    .with_target(false)
                    .with_ansi(std::io::stderr().is_terminal())
                    .with_writer(std::io::stderr),
            )
            .try_init(),
    };
}
