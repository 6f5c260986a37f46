//! Programs that are run for the updater: with a time limit, their words in the log, and a small
//! environment.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::{self, PipeReader, Read};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::config::Settings;

/// How long a program may go on after it was asked to end.
const GRACE: Duration = Duration::from_secs(5);
/// How often a silent program is looked at.
const TICK_MS: u16 = 20;
/// Longer lines are cut into lines.
const MAX_LINE: usize = 4096;
/// Bytes of output that reach the log; a program that goes mad must not fill it.
const MAX_LOGGED: usize = 1 << 20;
/// Lines that an error repeats.
const LAST_LINES: usize = 5;

/// The environment that programs get: nothing but these variables.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment(BTreeMap<OsString, OsString>);

impl Environment {
    /// What the programs of an image need: `PATH`, `LD_LIBRARY_PATH` and the proxies, out of this
    /// process's environment.
    ///
    /// Each proxy variable is set in lower and upper case, because programs differ in which they
    /// read; the lower-case one counts where both are there. A proxy in the settings takes the
    /// place of all of them.
    pub fn inherited(settings: &Settings) -> Self {
        Self::select(settings, std::env::vars_os())
    }

    fn select(
        settings: &Settings,
        inherited: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Self {
        let inherited: BTreeMap<OsString, OsString> = inherited.into_iter().collect();
        let get = |name: &str| inherited.get(OsStr::new(name)).cloned();
        let mut variables = BTreeMap::new();
        let path = get("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into());
        variables.insert("PATH".into(), path);
        variables.extend(get("LD_LIBRARY_PATH").map(|value| ("LD_LIBRARY_PATH".into(), value)));
        for lower in ["all_proxy", "http_proxy", "https_proxy", "no_proxy"] {
            let upper = lower.to_uppercase();
            let value = match (&settings.proxy, lower) {
                (Some(_), "no_proxy") => settings.no_proxy.clone().map(OsString::from),
                (Some(proxy), _) => Some(proxy.expose().into()),
                (None, _) => get(lower).or_else(|| get(&upper)),
            };
            if let Some(value) = value {
                variables.insert(lower.into(), value.clone());
                variables.insert(upper.into(), value);
            }
        }
        Self(variables)
    }

    /// The variables in order of name.
    pub fn variables(&self) -> impl Iterator<Item = (&OsStr, &OsStr)> {
        self.0
            .iter()
            .map(|(name, value)| (name.as_os_str(), value.as_os_str()))
    }
}

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finished {
    pub(crate) end: End,
    /// The last lines of its output.
    pub(crate) last_words: String,
}

/// The end itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// It ended itself, with this status.
    Exited(i32),
    /// This signal ended it.
    Killed(i32),
    /// It took longer than allowed and was ended.
    TimedOut,
}

impl End {
    fn words(self, limit: Duration) -> String {
        match self {
            Self::Exited(status) => format!("ended with status {status}"),
            Self::Killed(signal) => format!("was ended by signal {signal}"),
            Self::TimedOut => format!("took longer than {limit:?}"),
        }
    }
}

impl Finished {
    /// As the end of a sentence about the program: how it ended, with its last words.
    pub(crate) fn words(&self, limit: Duration) -> String {
        match self.last_words.as_str() {
            "" => self.end.words(limit),
            words => format!("{}: {words}", self.end.words(limit)),
        }
    }
}

/// Runs `command` to its end, at most for `limit`, and gives each line of its output to `log`.
///
/// Both output streams count. When the limit is over, the program and its children get SIGTERM, and
/// SIGKILL five seconds later. Children that it left behind on purpose are not waited for.
pub(crate) fn run(
    mut command: Command,
    environment: &Environment,
    limit: Duration,
    mut log: impl FnMut(&str),
) -> io::Result<Finished> {
    let (output, writer) = io::pipe()?;
    fcntl(&output, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    command
        .env_clear()
        .envs(environment.variables())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        // So that a signal reaches what it started as well.
        .process_group(0);
    let mut child = command.spawn()?;
    // The command holds our copies of the writing ends; without them the pipe ends with the
    // program.
    drop(command);
    let mut output = Output::of(output);
    let group = i32::try_from(child.id())
        .map(Pid::from_raw)
        .map_err(io::Error::other)?;
    let end = watch(&mut child, group, &mut output, limit, &mut log).inspect_err(|_| {
        // Nobody watches it any more, so it must not go on.
        let _ = killpg(group, Signal::SIGKILL);
        let _ = child.wait();
    })?;
    output.read_available(&mut log)?;
    output.end_line(&mut log);
    Ok(Finished {
        end,
        last_words: output.last_lines.join("\n"),
    })
}

fn watch(
    child: &mut Child,
    group: Pid,
    output: &mut Output,
    limit: Duration,
    log: &mut impl FnMut(&str),
) -> io::Result<End> {
    let mut deadline = Instant::now().checked_add(limit);
    let mut signals = [Signal::SIGTERM, Signal::SIGKILL].into_iter();
    let mut timed_out = false;
    loop {
        output.wait()?;
        output.read_available(log)?;
        if let Some(status) = child.try_wait()? {
            return Ok(if timed_out {
                End::TimedOut
            } else {
                end_of(status)
            });
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            timed_out = true;
            if let Some(signal) = signals.next() {
                // The group is gone when the program ended in this moment; the next round sees
                // that.
                let _ = killpg(group, signal);
            }
            deadline = Instant::now().checked_add(GRACE);
        }
    }
}

fn end_of(status: ExitStatus) -> End {
    match (status.code(), status.signal()) {
        (Some(code), _) => End::Exited(code),
        (None, signal) => End::Killed(signal.unwrap_or(0)),
    }
}

/// The output of a program, cut into lines.
struct Output {
    /// `None` after its end.
    pipe: Option<PipeReader>,
    line: Vec<u8>,
    logged: usize,
    last_lines: Vec<String>,
}

impl Output {
    fn of(pipe: PipeReader) -> Self {
        Self {
            pipe: Some(pipe),
            line: Vec::new(),
            logged: 0,
            last_lines: Vec::new(),
        }
    }

    /// Waits a moment, or until there is something to read.
    fn wait(&self) -> io::Result<()> {
        let mut ready: Vec<_> = self
            .pipe
            .iter()
            .map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN))
            .collect();
        match poll(&mut ready, PollTimeout::from(TICK_MS)) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Reads what is there, but not more than a megabyte at once, so that time limits are kept.
    fn read_available(&mut self, log: &mut impl FnMut(&str)) -> io::Result<()> {
        let mut buffer = [0; 4096];
        for _ in 0..256 {
            let Some(pipe) = &mut self.pipe else {
                return Ok(());
            };
            match pipe.read(&mut buffer) {
                Ok(0) => self.pipe = None,
                Ok(count) => buffer[..count]
                    .iter()
                    .for_each(|&byte| self.take(byte, log)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn take(&mut self, byte: u8, log: &mut impl FnMut(&str)) {
        if byte != b'\n' {
            self.line.push(byte);
        }
        if byte == b'\n' || self.line.len() >= MAX_LINE {
            self.end_line(log);
        }
    }

    fn end_line(&mut self, log: &mut impl FnMut(&str)) {
        let line = String::from_utf8_lossy(&self.line).trim_end().to_owned();
        self.line.clear();
        if line.is_empty() {
            return;
        }
        if self.logged < MAX_LOGGED {
            log(&line);
            self.logged += line.len();
            if self.logged >= MAX_LOGGED {
                log("(more output than is sensible: the rest is not logged)");
            }
        }
        if self.last_lines.len() == LAST_LINES {
            self.last_lines.remove(0);
        }
        self.last_lines.push(line);
    }
}

/// Writes a program for a test to run.
///
/// A child writes it: a file that this process has open for writing would be inherited for a moment
/// by any program that another test thread starts, and cannot be run as long.
#[cfg(test)]
pub(crate) fn write_program(path: &std::path::Path, mode: u32, text: &str) {
    let status = Command::new("/bin/sh")
        .args(["-c", r#"printf %s "$2" >"$1" && chmod "$3" "$1""#, "sh"])
        .args([
            path.as_os_str(),
            OsStr::new(text),
            OsStr::new(&format!("{mode:o}")),
        ])
        .status()
        .unwrap();
    assert!(status.success(), "{}", path.display());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Loaded;
    use crate::root::Root;

    const LIMIT: Duration = Duration::from_secs(60);

    fn shell(script: &str, limit: Duration) -> (Finished, Vec<String>) {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        let environment = Environment::inherited(&Settings::default());
        let mut lines = Vec::new();
        let finished = run(command, &environment, limit, |line| {
            lines.push(line.to_owned());
        })
        .unwrap();
        (finished, lines)
    }

    fn settings(own: &str) -> Settings {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("etc/update-engine")).unwrap();
        std::fs::write(dir.path().join("etc/update-engine/update.conf"), own).unwrap();
        Loaded::read(&Root::at(dir.path()).unwrap())
            .unwrap()
            .settings
    }

    #[test]
    fn both_streams_are_logged_line_by_line_and_the_end_is_told() {
        let (finished, lines) = shell("echo one; echo two >&2; printf 'three '; exit 3", LIMIT);
        assert_eq!(finished.end, End::Exited(3));
        assert_eq!(lines, ["one", "two", "three"]);
        assert_eq!(finished.last_words, "one\ntwo\nthree");

        let (finished, _) = shell("kill -9 $$", LIMIT);
        assert_eq!(finished.end, End::Killed(9));
    }

    #[test]
    fn only_the_last_lines_are_repeated_and_endless_output_is_cut() {
        let (finished, lines) = shell("seq 1 400000", LIMIT);
        assert_eq!(
            finished.last_words,
            "399996\n399997\n399998\n399999\n400000"
        );
        let logged: usize = lines.iter().map(String::len).sum();
        assert!(logged < MAX_LOGGED + 100, "{logged}");
        assert!(lines.last().unwrap().contains("not logged"));

        let (_, lines) = shell("head -c 10000 /dev/zero | tr '\\0' x", LIMIT);
        assert_eq!(
            lines.iter().map(String::len).collect::<Vec<_>>(),
            [4096, 4096, 1808]
        );
    }

    #[test]
    fn what_takes_too_long_is_ended_with_its_children() {
        let started = Instant::now();
        let (finished, lines) = shell("echo begun; sleep 1000 | cat", Duration::from_millis(300));
        assert_eq!(finished.end, End::TimedOut);
        assert_eq!(lines, ["begun"]);
        assert!(started.elapsed() < GRACE, "SIGTERM was enough");
    }

    #[test]
    fn what_ignores_the_request_to_end_is_killed() {
        let (finished, _) = shell(
            "trap '' TERM; while :; do :; done",
            Duration::from_millis(50),
        );
        assert_eq!(finished.end, End::TimedOut);
    }

    #[test]
    fn a_child_that_stays_behind_with_the_output_open_is_not_waited_for() {
        let started = Instant::now();
        let (finished, _) = shell("sleep 60 & echo $!", LIMIT);
        assert_eq!(finished.end, End::Exited(0));
        assert!(started.elapsed() < Duration::from_secs(30));
        let left: i32 = finished.last_words.parse().unwrap();
        nix::sys::signal::kill(Pid::from_raw(left), Signal::SIGKILL).unwrap();
    }

    #[test]
    fn a_program_that_closes_its_output_still_has_its_time() {
        let (finished, _) = shell("exec >&- 2>&-; sleep 0.2; exit 4", LIMIT);
        assert_eq!(finished.end, End::Exited(4));
    }

    #[test]
    fn programs_get_paths_and_proxies_and_nothing_else() {
        let table: [(&str, &[&str], &[&str]); 5] = [
            ("", &["HOME=/root", "PATH=/bin"], &["PATH=/bin"]),
            (
                "",
                &["LD_LIBRARY_PATH=/l"],
                &["LD_LIBRARY_PATH=/l", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
            ),
            (
                "",
                &[
                    "PATH=/bin",
                    "HTTP_PROXY=up",
                    "https_proxy=low",
                    "HTTPS_PROXY=up",
                    "NO_PROXY=n",
                ],
                &[
                    "HTTPS_PROXY=low",
                    "HTTP_PROXY=up",
                    "NO_PROXY=n",
                    "PATH=/bin",
                    "http_proxy=up",
                    "https_proxy=low",
                    "no_proxy=n",
                ],
            ),
            (
                "PROXY=http://p:1",
                &["PATH=/bin", "http_proxy=x", "no_proxy=y"],
                &[
                    "ALL_PROXY=http://p:1",
                    "HTTPS_PROXY=http://p:1",
                    "HTTP_PROXY=http://p:1",
                    "PATH=/bin",
                    "all_proxy=http://p:1",
                    "http_proxy=http://p:1",
                    "https_proxy=http://p:1",
                ],
            ),
            (
                "NO_PROXY=z",
                &["PATH=/bin", "no_proxy=y"],
                &["NO_PROXY=y", "PATH=/bin", "no_proxy=y"],
            ),
        ];
        for (own, inherited, expected) in table {
            let pair = |text: &&str| {
                let (name, value) = text.split_once('=').unwrap();
                (name.into(), value.into())
            };
            let environment = Environment::select(&settings(own), inherited.iter().map(pair));
            let found: Vec<_> = environment
                .variables()
                .map(|(name, value)| format!("{}={}", name.display(), value.display()))
                .collect();
            assert_eq!(found, expected, "{own}");
        }
        let (_, lines) = shell("env | grep -c '^CARGO'", LIMIT);
        assert_eq!(lines, ["0"], "the environment of this test did not leak");
    }
}
