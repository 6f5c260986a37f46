//! One run of the virtual hardware, from power on until it ends or is cut.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use system_tests::deadline::poll_every;
use system_tests::process::Running;

use crate::LOOK;

/// Where a machine takes commands.
const SHELL_PORT: u16 = 514;

/// A running QEMU.
#[derive(Debug)]
pub struct Qemu {
    process: Running,
    /// Here, for the machine's [`SHELL_PORT`].
    shell: u16,
}

impl Qemu {
    /// Starts with `disk` as its drive, the console appended to the file
    /// `console`, and what `chain` says.
    ///
    /// # Errors
    ///
    /// QEMU does not start; what it said is in the error.
    pub fn start(disk: &Drive, chain: &[String], console: &Path) -> Result<Self> {
        let shell = free_port()?;
        // A test that is killed cannot end the machine; then the kernel does.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
            .args(["-machine", "q35,accel=tcg", "-cpu", "max", "-m", "640"])
            // A reset is the end of the process. QEMU can reset itself, but is then
            // slow for a minute: each write to memory that has held code is a special
            // case for its translator.
            .args([
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-no-reboot",
            ])
            .arg("-netdev")
            .arg(format!(
                "user,id=net,hostfwd=tcp:127.0.0.1:{shell}-:{SHELL_PORT}"
            ))
            .args(["-device", "virtio-net-pci,netdev=net,romfile="])
            .arg("-chardev")
            .arg(format!(
                "file,id=console,append=on,path={}",
                console.display()
            ))
            .args(["-serial", "chardev:console"])
            .args(disk.arguments())
            .args(chain);
        Ok(Self {
            process: Running::start(&mut command)?,
            shell,
        })
    }

    /// Whether the machine has not ended by itself.
    ///
    /// # Errors
    ///
    /// QEMU ended with a complaint of its own.
    pub fn is_running(&mut self) -> Result<bool> {
        let running = self.process.is_running()?;
        let said = self.process.stderr()?;
        if !running && !said.trim().is_empty() {
            bail!("qemu: {said}");
        }
        Ok(running)
    }

    /// Runs a line of shell in the machine; returns its output, and whether it ended
    /// with status 0.
    ///
    /// # Errors
    ///
    /// The machine does not answer within `limit`.
    pub fn shell(&self, line: &str, limit: Duration) -> Result<(bool, String)> {
        let start = Instant::now();
        let what = format!("an answer to: {line}");
        let text = poll_every(LOOK, &what, limit, || {
            let left = limit.saturating_sub(start.elapsed());
            // Nothing at all is the answer of a machine that does not listen yet.
            Ok(Some(self.ask(line, left)?).filter(|text| !text.is_empty()))
        })?;
        let (output, status) = text
            .rsplit_once("@status@ ")
            .with_context(|| format!("{line} was cut short: {text}"))?;
        Ok((status.trim() == "0", output.to_owned()))
    }

    /// Sends a line of shell and does not wait for what it says.
    ///
    /// # Errors
    ///
    /// The machine is gone.
    pub fn send(&self, line: &str) -> Result<()> {
        let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, self.shell))?;
        Ok(writeln!(connection, "({line}) >/dev/null 2>&1 &")?)
    }

    fn ask(&self, line: &str, limit: Duration) -> Result<String> {
        let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, self.shell))?;
        connection.set_read_timeout(Some(limit.max(Duration::from_secs(1))))?;
        let mut answer = Vec::new();
        let asked = writeln!(connection, "{line}");
        match asked.and_then(|()| connection.read_to_end(&mut answer)) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let said = String::from_utf8_lossy(&answer);
                bail!("no answer within {limit:?} to: {line}\n{said}")
            }
            // A connection that is reset ends there.
            _ => Ok(String::from_utf8_lossy(&answer).into_owned()),
        }
    }

    /// Cuts the power. What the machine has written is in the disk's file: this is no
    /// power cut for the disk, see [`crate::write_log`].
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn cut(mut self) -> Result<()> {
        self.process.kill()
    }
}

fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(listener.local_addr()?.port())
}

/// The disk as QEMU sees it.
#[derive(Debug, Clone)]
pub struct Drive {
    /// The image file.
    pub image: PathBuf,
    /// Where every write is logged as well.
    pub log: Option<PathBuf>,
}

impl Drive {
    fn arguments(&self) -> Vec<String> {
        let image = self.image.display();
        let mut words = vec![
            "-blockdev".into(),
            // What the machine flushes outlives its power cuts without the host's disk.
            format!("driver=file,filename={image},node-name=file,cache.no-flush=on"),
            "-blockdev".into(),
            "driver=raw,file=file,node-name=disk".into(),
        ];
        let mut top = "disk";
        if let Some(log) = &self.log {
            words.extend([
                "-blockdev".into(),
                format!("driver=file,filename={},node-name=log", log.display()),
                "-blockdev".into(),
                "driver=blklogwrites,file=disk,log=log,node-name=logged,log-sector-size=512".into(),
            ]);
            top = "logged";
        }
        words.extend(["-device".into(), format!("virtio-blk-pci,drive={top}")]);
        words
    }
}

/// The console's file, read from where the last call ended.
#[derive(Debug)]
pub struct Console {
    path: PathBuf,
    /// Bytes that a call has returned or passed over.
    seen: u64,
}

impl Console {
    /// A new, empty console.
    ///
    /// # Errors
    ///
    /// The file cannot be made.
    pub fn create(path: &Path) -> Result<Self> {
        File::create(path)?;
        Ok(Self {
            path: path.to_owned(),
            seen: 0,
        })
    }

    /// Its file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All of it.
    ///
    /// # Errors
    ///
    /// The file cannot be read.
    pub fn text(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(&self.path)?).into_owned())
    }

    /// The next whole line that holds `part`, and that no call has returned or passed
    /// over.
    ///
    /// # Errors
    ///
    /// The file cannot be read.
    pub fn next(&mut self, part: &str) -> Result<Option<String>> {
        let mut file = BufReader::new(File::open(&self.path)?);
        let mut end = file.seek(SeekFrom::Start(self.seen))?;
        loop {
            let mut line = Vec::new();
            end += u64::try_from(file.read_until(b'\n', &mut line)?)?;
            if !line.ends_with(b"\n") {
                return Ok(None);
            }
            let line = String::from_utf8_lossy(&line);
            if line.contains(part) {
                self.seen = end;
                return Ok(Some(line.trim_end().to_owned()));
            }
        }
    }
}
