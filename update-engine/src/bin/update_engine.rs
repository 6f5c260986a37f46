//! The update daemon: asks, installs, reports. See `update_engine_client` for the
//! way to talk to it.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use update_engine::bus;
use update_engine::config::Loaded;
use update_engine::engine::{Engine, World};
use update_engine::glog::GlogFlags;
use update_engine::platform::{Discovery, Letter};
use update_engine::prefs::Prefs;
use update_engine::root::Root;
use update_engine::status::Snapshot;

/// Keeps the passive USR slot of this machine up to date.
///
/// Asks the Omaha server named in /etc/flatcar/update.conf (or the CoreOS path,
/// or /etc/update-engine/update.conf), writes signed payloads to the slot that is
/// not running, and makes it the next to boot. `docs/configuration.md` lists every
/// setting. Drive it with update_engine_client.
///
/// Without root, on a disk image:
///   update_engine -root DIR -bus unix:path=DIR/bus -disk disk.img -booted_slot A
#[derive(Debug, Parser)]
#[command(name = "update_engine", version, verbatim_doc_comment)]
struct Arguments {
    /// Stay in the foreground (otherwise become a daemon)
    #[arg(long)]
    foreground: bool,

    /// Take every path below this folder instead of /
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,

    /// D-Bus address instead of the system bus
    #[arg(long, value_name = "ADDRESS")]
    bus: Option<String>,

    /// Disk or disk image with the two slots, instead of the one under /usr
    #[arg(long, value_name = "PATH", requires = "booted_slot")]
    disk: Option<PathBuf>,

    /// Slot of --disk that counts as running
    #[arg(
        long = "booted_slot",
        alias = "booted-slot",
        value_name = "A|B",
        requires = "disk"
    )]
    booted_slot: Option<Letter>,

    /// Log as JSON lines
    #[arg(long = "json_log", alias = "json-log")]
    json_log: bool,

    #[command(flatten)]
    _glog: GlogFlags,
}

fn main() -> ExitCode {
    let arguments: Arguments = single_dash::parse();
    // State is for root alone. The original also took the owner's right to enter
    // the folders that it made, which stops everybody but root.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    start_log(arguments.json_log);
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    let root = match &arguments.root {
        Some(folder) => Root::at(folder).context("cannot use --root")?,
        None => Root::system(),
    };
    let discovery = match (arguments.disk, arguments.booted_slot) {
        (Some(disk), Some(letter)) => Discovery::Image {
            disk: std::path::absolute(&disk).context("cannot use --disk")?,
            booted: letter,
        },
        _ => Discovery::Mounted,
    };
    if !arguments.foreground {
        nix::unistd::daemon(false, true).context("cannot become a daemon")?;
    }
    // Made only now: threads do not survive becoming a daemon.
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(serve(root, discovery, arguments.bus))
}

async fn serve(root: Root, discovery: Discovery, bus: Option<String>) -> anyhow::Result<()> {
    let state_dir = Loaded::read_leniently(&root)
        .map(|loaded| loaded.settings.state_dir)
        .unwrap_or_else(|error| {
            tracing::error!("{error}; using the default state folder");
            update_engine::config::Settings::default().state_dir
        });
    let folder = root
        .path(&state_dir)
        .context("cannot find the state folder")?;
    let prefs = Prefs::open(folder.join("prefs")).context("cannot open the state folder")?;
    let world = World::new(root, discovery, Arc::new(prefs), bus.as_deref());

    let (commands, queue) = mpsc::channel(16);
    let (publisher, snapshots) = watch::channel(Snapshot::default());
    let engine = Engine::new(world, queue, publisher);
    let service = bus::Service::connect(bus.as_deref(), snapshots, commands)
        .await
        .context("cannot serve on D-Bus")?;

    let stop = CancellationToken::new();
    let engine = tokio::spawn(engine.run(stop.clone()));
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let lost = tokio::select! {
        error = service.run() => Some(error),
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
    };
    stop.cancel();
    engine.await.context("the engine ended unexpectedly")?;
    match lost {
        Some(error) => Err(error.into()),
        None => Ok(()),
    }
}

fn start_log(json: bool) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    if json {
        log.json().init();
    } else {
        log.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
            .init();
    }
}
