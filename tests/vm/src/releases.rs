//! Versions on a real update server, and what machines report to it.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use system_tests::deadline::poll_until;
use system_tests::process::{Running, run};
use system_tests::programs::program;
use system_tests::release::private_key;
use tempfile::TempDir;

use crate::debian::Debian;
use crate::guest::{Fault, KEY, Workshop};
use crate::layout::Content;

const MAKE_LIMIT: Duration = Duration::from_secs(300);
const SERVER_LIMIT: Duration = Duration::from_secs(30);
/// The server looks for new files every few seconds.
const NOTICE_LIMIT: Duration = Duration::from_secs(60);
/// A check for updates with what it reports.
const REPORT_LIMIT: Duration = Duration::from_secs(60);
/// The host, as QEMU's user network shows it to the machines.
pub const HOST: &str = "10.0.2.2";

/// The version that machines begin with.
pub const FIRST: &str = "1.0.0";

/// One event that a machine reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Version that the machine ran.
    pub version: String,
    /// The event in the server's words.
    pub words: String,
}

/// Whether images carry a hash tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verity {
    /// They do, and machines check every block that they read.
    On,
    /// They do not.
    Off,
}

/// A folder of releases with a server.
#[derive(Debug)]
pub struct Releases {
    workshop: Workshop,
    kernel: PathBuf,
    initrd: Vec<u8>,
    verity: Verity,
    server: Running,
    port: u16,
    folder: TempDir,
}

impl Releases {
    /// The version [`FIRST`], and an update server that offers nothing newer yet.
    ///
    /// # Errors
    ///
    /// A tool is missing or fails.
    pub fn start(debian: &Debian, verity: Verity) -> Result<Self> {
        let folder = TempDir::new()?;
        let workshop = Workshop::new(debian, &folder.path().join("workshop"))?;
        let served = folder.path().join("served");
        fs::create_dir(&served)?;
        let mut serve = program("omaha-server")?;
        serve
            .arg("serve")
            .arg(&served)
            .args(["--listen", "127.0.0.1:0", "--json-log"]);
        let server = Running::start(&mut serve)?;
        let port = poll_until("the update server", SERVER_LIMIT, || {
            let said = server.stdout()?;
            let port = said.lines().find_map(|line| line.rsplit_once(':'));
            Ok(port.and_then(|(_, port)| port.trim().parse().ok()))
        })
        .with_context(|| server.stderr().unwrap_or_default())?;
        let releases = Self {
            initrd: workshop.initrd()?,
            kernel: debian.kernel()?,
            workshop,
            verity,
            server,
            port,
            folder,
        };
        releases.make(FIRST, None)?;
        Ok(releases)
    }

    /// What a machine that runs version [`FIRST`] has on its disk.
    #[must_use]
    pub fn first<'a>(&'a self, parts: &'a Parts) -> Content<'a> {
        Content {
            usr: &parts.usr,
            kernel: &parts.kernel,
            initrd: &self.initrd,
            usrhash: parts.usrhash.as_deref(),
            server: &parts.server,
            files: &[],
            efi: &[],
        }
    }

    /// The files of version [`FIRST`].
    ///
    /// # Errors
    ///
    /// They cannot be read.
    pub fn parts(&self) -> Result<Parts> {
        let (usr, kernel) = self.paths(FIRST);
        let usrhash = fs::read_to_string(self.folder.path().join(format!("{FIRST}.usrhash")));
        Ok(Parts {
            usr,
            kernel,
            usrhash: usrhash.ok(),
            server: format!("http://{HOST}:{}/v1/update/", self.port),
        })
    }

    /// Makes a version and offers it; returns when the server does.
    ///
    /// # Errors
    ///
    /// It cannot be made, or the server does not notice it.
    pub fn publish(&self, version: &str, fault: Option<Fault>) -> Result<()> {
        let payload = self.make(version, fault)?;
        let place = format!("stable/amd64-usr/{version}");
        let served = self.folder.path().join("served");
        fs::create_dir_all(served.join(&place))?;
        fs::rename(payload, served.join(&place).join("update.payload"))?;
        poll_until("the server's notice of a release", NOTICE_LIMIT, || {
            let on_offer = format!("on offer: {place}/");
            Ok(self.server.stderr()?.contains(&on_offer).then_some(()))
        })
        .with_context(|| self.server.stderr().unwrap_or_default())
    }

    /// The events that machines have reported, oldest first.
    ///
    /// # Errors
    ///
    /// The server's log cannot be read.
    pub fn events(&self) -> Result<Vec<Event>> {
        let said = self.server.stderr()?;
        let lines = said.lines().filter_map(|line| {
            let line: Value = serde_json::from_str(line).ok()?;
            Some(Event {
                version: line["version"].as_str()?.to_owned(),
                words: line["message"]
                    .as_str()?
                    .strip_prefix("event: ")?
                    .to_owned(),
            })
        });
        Ok(lines.collect())
    }

    /// Waits until a machine that runs `version` has reported an event whose words hold
    /// all of `parts`.
    ///
    /// # Errors
    ///
    /// None has; the server's log is in the error.
    pub fn reported(&self, version: &str, parts: &[&str]) -> Result<Event> {
        let what = format!("an event of {version} with {parts:?}");
        poll_until(&what, REPORT_LIMIT, || {
            Ok(self.events()?.into_iter().find(|event| {
                event.version == version && parts.iter().all(|part| event.words.contains(part))
            }))
        })
        .with_context(|| self.log().unwrap_or_default())
    }

    /// All that the server has said.
    ///
    /// # Errors
    ///
    /// Its log cannot be read.
    pub fn log(&self) -> Result<String> {
        self.server.stderr()
    }

    /// The image and the kernel of a version.
    fn paths(&self, version: &str) -> (PathBuf, PathBuf) {
        let path = |what: &str| self.folder.path().join(format!("{version}.{what}"));
        (path("usr"), path("vmlinuz"))
    }

    /// Makes image, kernel and payload of a version; returns the payload.
    fn make(&self, version: &str, fault: Option<Fault>) -> Result<PathBuf> {
        let (usr, kernel) = self.paths(version);
        self.workshop.usr_image(version, fault, &usr)?;
        // The same kernel in every version, with something that tells them apart behind
        // its end, where it does not look.
        fs::copy(&self.kernel, &kernel)?;
        writeln!(
            File::options().append(true).open(&kernel)?,
            "version {version}"
        )?;
        let payload = self.folder.path().join(format!("{version}.payload"));
        let mut generate = program("payload")?;
        generate
            .arg("generate")
            .arg("--new")
            .arg(&usr)
            .arg("--kernel")
            .arg(&kernel)
            .arg("--private-key")
            .arg(private_key(KEY))
            .arg("--out")
            .arg(&payload);
        run(&mut generate, MAKE_LIMIT)?
            .success()
            .context("payload generate")?;
        let _ = self.verity;
        Ok(payload)
    }
}

/// The files that [`Content`] refers to.
#[derive(Debug)]
pub struct Parts {
    usr: PathBuf,
    kernel: PathBuf,
    usrhash: Option<String>,
    server: String,
}

/// Where unpacked packages are kept between runs: beside what cargo builds.
#[must_use]
pub fn cache() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"),
        PathBuf::from,
    );
    target.join("vm")
}
