//! Versions on a real update server, and what machines report to it.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use serde_json::Value;
use system_tests::deadline::poll_every;
use system_tests::process::{Running, run};
use system_tests::programs::program;
use system_tests::release::{private_key, public_key};
use tempfile::TempDir;

use crate::LOOK;
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
    /// Id of the machine.
    pub machine: String,
    /// Version that the machine ran.
    pub version: String,
    /// The event in the server's words.
    pub words: String,
}

/// A folder of releases with a server.
#[derive(Debug)]
pub struct Releases {
    workshop: Workshop,
    kernel: PathBuf,
    initrd: Vec<u8>,
    server: Running,
    url: String,
    first: First,
    /// What was made before, by version and fault.
    payloads: Mutex<HashMap<(String, Option<Fault>), PathBuf>>,
    folder: TempDir,
}

/// The files of version [`FIRST`].
#[derive(Debug, Default)]
struct First {
    usr: PathBuf,
    kernel: PathBuf,
    usrhash: Option<String>,
}

/// Who a machine is to the server.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Its machine id.
    pub id: String,
    /// Its track: every machine has one of its own.
    pub track: String,
}

impl Identity {
    /// A new machine's, with a name to recognise it by.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let id = format!("{:032x}", fastrand::u128(..));
        Self {
            track: format!("{name}-{}", &id[..8]),
            id,
        }
    }
}

impl Releases {
    /// The version [`FIRST`], and an update server that offers nothing newer yet.
    ///
    /// # Errors
    ///
    /// A tool is missing or fails.
    pub fn start(debian: &Debian) -> Result<Self> {
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
        let port: u16 = poll_every(LOOK, "the update server", SERVER_LIMIT, || {
            let said = server.stdout()?;
            let port = said.lines().find_map(|line| line.rsplit_once(':'));
            Ok(port.and_then(|(_, port)| port.trim().parse().ok()))
        })
        .with_context(|| server.stderr().unwrap_or_default())?;
        let mut releases = Self {
            initrd: workshop.initrd()?,
            kernel: debian.kernel()?,
            workshop,
            server,
            url: format!("http://{HOST}:{port}/v1/update/"),
            first: First::default(),
            payloads: Mutex::default(),
            folder,
        };
        releases.first = releases.make_first()?;
        Ok(releases)
    }

    /// What a machine that runs version [`FIRST`] has on its disk, and that follows its
    /// own track.
    #[must_use]
    pub fn first<'a>(&'a self, machine: &'a Identity) -> Content<'a> {
        Content {
            usr: &self.first.usr,
            kernel: &self.first.kernel,
            initrd: &self.initrd,
            usrhash: self.first.usrhash.as_deref(),
            server: &self.url,
            track: &machine.track,
            machine_id: &machine.id,
            files: &[],
            efi: &[],
        }
    }

    /// Offers a version to those who follow `track`; returns when the server does.
    ///
    /// # Errors
    ///
    /// It cannot be made, or the server does not notice it.
    pub fn publish(&self, track: &str, version: &str, fault: Option<Fault>) -> Result<()> {
        let payload = self.payload(version, fault)?;
        let place = format!("{track}/amd64-usr/{version}");
        let folder = self.folder.path().join("served").join(&place);
        fs::create_dir_all(&folder)?;
        // No link: one for another track would change the file under the server's eyes.
        let copy = self.path(version, track);
        fs::copy(payload, &copy)?;
        // A file that has rested is offered at the server's next look.
        let rested = SystemTime::now() - Duration::from_secs(60);
        File::options()
            .write(true)
            .open(&copy)?
            .set_modified(rested)?;
        fs::rename(copy, folder.join("update.payload"))?;
        poll_every(
            LOOK,
            "the server's notice of a release",
            NOTICE_LIMIT,
            || {
                let on_offer = format!("on offer: {place}/");
                Ok(self.server.stderr()?.contains(&on_offer).then_some(()))
            },
        )
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
                machine: line["machine"].as_str()?.to_owned(),
                version: line["version"].as_str()?.to_owned(),
                words: line["message"]
                    .as_str()?
                    .strip_prefix("event: ")?
                    .to_owned(),
            })
        });
        Ok(lines.collect())
    }

    /// Waits until `machine`, running `version`, has reported an event whose words hold
    /// all of `parts`.
    ///
    /// # Errors
    ///
    /// None has; the server's log is in the error.
    pub fn reported(&self, machine: &Identity, version: &str, parts: &[&str]) -> Result<Event> {
        let what = format!("an event of {version} with {parts:?}");
        poll_every(LOOK, &what, REPORT_LIMIT, || {
            Ok(self.events()?.into_iter().find(|event| {
                event.machine == machine.id
                    && event.version == version
                    && parts.iter().all(|part| event.words.contains(part))
            }))
        })
        .with_context(|| self.server.stderr().unwrap_or_default())
    }

    fn path(&self, version: &str, what: &str) -> PathBuf {
        self.folder.path().join(format!("{version}.{what}"))
    }

    fn make_first(&self) -> Result<First> {
        let payload = self.payload(FIRST, None)?;
        let first = First {
            // What an update would have written: with the hash tree.
            usr: self.path(FIRST, "applied"),
            kernel: self.path(FIRST, "vmlinuz"),
            usrhash: Some(fs::read_to_string(self.path(FIRST, "usrhash"))?),
        };
        let mut apply = program("payload")?;
        apply
            .arg("apply")
            .arg(&payload)
            .arg("--public-key")
            .arg(public_key(KEY))
            .arg("--target")
            .arg(&first.usr);
        run(&mut apply, MAKE_LIMIT)?
            .success()
            .context("payload apply")?;
        Ok(first)
    }

    /// The payload of a version, made if it was not before.
    fn payload(&self, version: &str, fault: Option<Fault>) -> Result<PathBuf> {
        let mut payloads = self.payloads.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (version.to_owned(), fault);
        if let Some(payload) = payloads.get(&key) {
            return Ok(payload.clone());
        }
        let payload = self.make(version, fault)?;
        payloads.insert(key, payload.clone());
        Ok(payload)
    }

    /// Makes image, kernel and payload of a version; returns the payload.
    fn make(&self, version: &str, fault: Option<Fault>) -> Result<PathBuf> {
        let name = match fault {
            Some(fault) => format!("{version}-{fault:?}"),
            None => version.to_owned(),
        };
        let (usr, kernel) = (self.path(&name, "usr"), self.path(&name, "vmlinuz"));
        self.workshop.usr_image(version, fault, &usr)?;
        // The same kernel in every version, with something that tells them apart behind
        // its end, where it does not look.
        fs::copy(&self.kernel, &kernel)?;
        writeln!(
            File::options().append(true).open(&kernel)?,
            "version {name}"
        )?;
        let payload = self.path(&name, "payload");
        let mut generate = program("payload")?;
        generate
            .arg("generate")
            .arg("--verity")
            .arg("--new")
            .arg(&usr)
            .arg("--kernel")
            .arg(&kernel)
            .arg("--private-key")
            .arg(private_key(KEY))
            .arg("--out")
            .arg(&payload);
        let said = run(&mut generate, MAKE_LIMIT)?
            .success()
            .context("payload generate")?;
        let usrhash = said
            .lines()
            .find_map(|line| line.strip_prefix("usrhash="))
            .with_context(|| format!("no usrhash: {said}"))?;
        fs::write(self.path(&name, "usrhash"), usrhash)?;
        if version != FIRST {
            fs::remove_file(usr)?;
            fs::remove_file(kernel)?;
        }
        Ok(payload)
    }
}
