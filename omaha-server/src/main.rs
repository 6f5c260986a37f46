//! The `omaha-server` command.

use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use omaha_server::answer::BaseUrl;
use omaha_server::decide::Policy;
use omaha_server::labels::Defaults;
use omaha_server::memory;
use omaha_server::scan::Scanner;
use omaha_server::server::{Server, Settings};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

#[derive(Parser)]
#[command(version, about, long_about = None, after_long_help = LABELS)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Answer update checks and serve the payload files
    ///
    /// Machines ask at http://ADDRESS/v1/update/ (put that into SERVER= of their update.conf)
    /// and get the newest version for their track and board, if it is newer than theirs.
    /// Files that come, change or go are noticed within seconds.
    #[command(after_long_help = LABELS)]
    Serve(Serve),
    /// Print what would be offered, and what would not and why
    #[command(after_long_help = LABELS)]
    List(List),
}

#[derive(Args)]
struct Serve {
    #[command(flatten)]
    folder: Folder,
    /// Address to listen on; port 0 takes a free one
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:8000")]
    listen: SocketAddr,
    /// URL under which machines reach this server [default: what they call it]
    ///
    /// Needed behind a proxy that speaks TLS. Without it the `Host` header of each request is used.
    #[arg(long, value_name = "URL")]
    public_url: Option<BaseUrl>,
    /// Seconds that machines should wait between checks
    ///
    /// update_engine ignores less than 2700 and takes at most 14400.
    #[arg(long, value_name = "SECONDS")]
    poll_interval: Option<u32>,
    /// Log as JSON, one object per line
    #[arg(long)]
    json_log: bool,
}

#[derive(Args)]
struct List {
    #[command(flatten)]
    folder: Folder,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Folder {
    /// Folder of payload files; only read
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// Track of payloads that name none [default: offered to every track]
    #[arg(long)]
    track: Option<String>,
    /// Board of payloads that name none [default: offered to every board]
    #[arg(long)]
    board: Option<String>,
}

const LABELS: &str = "\
Which version, track and board a payload is for is read from where it lies:

  DIR/update-4152.2.0.payload                 every track, every board
  DIR/stable/flatcar-amd64-4152.2.0.gz        track stable, board amd64-usr
  DIR/stable/amd64-usr/4152.2.0/update.gz     the same
  DIR/anything.payload and DIR/anything.payload.json:
      {\"version\": \"4152.2.0\", \"track\": \"stable\", \"board\": \"amd64-usr\",
       \"app_id\": \"…\", \"from_version\": \"4081.2.0\"}

What the JSON file says comes first; put it there before the payload. Every
key is optional. A payload of format version 2 may tell version, board and app
itself; nothing may say otherwise then.

A delta goes to machines that take deltas, have the encoders that it needs and
run the image that it starts from. They tell by the hash of that image; from
those that do not know it, by from_version in the JSON file, which deltas of
version 1 must have. Everybody else gets the full payload: put both here.
Version 2 is offered only to machines that name their encoders; clients of the
original never do.

Environment: RUST_LOG=debug logs pings and ordinary events too.";

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            anstream::eprintln!("omaha-server: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Serve(serve) => {
            log_to_stderr(serve.json_log);
            let runtime = tokio::runtime::Runtime::new()?;
            runtime.block_on(serve.run())
        }
        Command::List(list) => list.run(),
    }
}

impl Serve {
    async fn run(self) -> anyhow::Result<()> {
        if let Err(error) = bounded_http::raise_open_files() {
            tracing::warn!("the limit of open files stays as it is: {error}");
        }
        let server = Server::bind(Settings {
            defaults: self.folder.defaults(),
            folder: self.folder.folder,
            listen: self.listen,
            public_url: self.public_url,
            policy: Policy {
                poll_interval: self.poll_interval,
            },
            rescan: Duration::from_secs(2),
            connections: memory::fit(bounded_http::Limits::default().connections),
        })
        .await?;
        // Only now: until here the system's own reaction, to end at once, is right.
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let stop = async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            tracing::info!("shutting down");
        };
        let table = server.catalogue().borrow().table(server.folder());
        anstream::eprint!("{table}");
        // Scripts wait for this line, so it must not sit in a buffer.
        let mut stdout = std::io::stdout().lock();
        writeln!(stdout, "listening on http://{}", server.address())?;
        stdout.flush()?;
        drop(stdout);
        server.run(stop).await;
        Ok(())
    }
}

impl List {
    fn run(self) -> anyhow::Result<()> {
        let mut scanner = Scanner::new(&self.folder.folder, self.folder.defaults())?;
        let catalogue = scanner.scan_settled()?;
        let mut stdout = std::io::stdout().lock();
        if self.json {
            writeln!(stdout, "{:#}", catalogue.json())?;
        } else {
            write!(stdout, "{}", catalogue.table(scanner.folder()))?;
        }
        Ok(())
    }
}

impl Folder {
    fn defaults(&self) -> Defaults {
        Defaults {
            track: self.track.clone(),
            board: self.board.clone(),
        }
    }
}

fn log_to_stderr(json: bool) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let subscriber = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .with_env_filter(filter);
    if json {
        subscriber.json().flatten_event(true).init();
    } else {
        subscriber.init();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_fits_a_terminal() {
        for line in LABELS.lines() {
            assert!(line.chars().count() < 80, "{line}");
        }
    }
}
