//! Five machines take an update and reboot into it, two at a time; one of them
//! is broken by it, and the others are kept from it until somebody has looked.
//!
//! The daemons, the message buses, etcd and `locksmithctl` are the real ones.
//! update_engine, logind and the power switch of each machine are played.
//! Everything lives in temporary folders and ends with this program. Exit
//! status 0 means that all happened as told.

mod screen;
mod story;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use tokio::signal::unix::{SignalKind, signal};

use screen::Screen;
use story::Story;

fn main() -> ExitCode {
    let mut screen = Screen::new();
    let interrupted = Arc::new(AtomicBool::new(false));
    let told = listen(&interrupted).and_then(|()| Story::tell(&mut screen, &interrupted));
    if interrupted.load(Ordering::Relaxed) {
        return ExitCode::from(130);
    }
    match told {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            screen.fail(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Notes Ctrl-C and its like, so that everything is cleaned up.
fn listen(interrupted: &Arc<AtomicBool>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let interrupted = Arc::clone(interrupted);
    std::thread::spawn(move || {
        runtime.block_on(async {
            let kinds = [
                SignalKind::interrupt(),
                SignalKind::terminate(),
                SignalKind::hangup(),
            ];
            let mut signals = tokio::task::JoinSet::new();
            for mut signal in kinds.into_iter().filter_map(|kind| signal(kind).ok()) {
                signals.spawn(async move { signal.recv().await });
            }
            signals.join_next().await;
            interrupted.store(true, Ordering::Relaxed);
        });
    });
    Ok(())
}
