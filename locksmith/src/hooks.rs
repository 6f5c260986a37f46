//! Programs that an operator puts before and after a reboot: to drain a
//! service, to say when the machine is well again.
//!
//! They run one after the other in order of name, each in a process group of
//! its own and with a time limit, and the first that fails ends the run. What a
//! failure means is decided elsewhere.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::time::timeout;
use tracing::{info, warn};

/// How long a hook may go on after it was asked to end.
const GRACE: Duration = Duration::from_secs(5);
/// How long is waited for output that a hook has left in the pipe.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// Longer lines are cut into lines.
const MAX_LINE: usize = 4096;
/// Bytes of one hook's output that reach the log.
const MAX_LOGGED: usize = 64 << 10;

/// The side of the reboot that hooks run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The place in the semaphore is ours, the machine still up.
    BeforeReboot,
    /// The machine is back and still holds its place.
    AfterReboot,
}

impl Phase {
    /// The word in `LOCKSMITH_PHASE`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BeforeReboot => "before-reboot",
            Self::AfterReboot => "after-reboot",
        }
    }
}

/// What hooks are told, in their environment. A version that is not known is
/// empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context {
    /// `LOCKSMITH_PHASE`.
    pub phase: Phase,
    /// `LOCKSMITH_GROUP`; empty for the default group.
    pub group: String,
    /// `LOCKSMITH_FROM_VERSION`.
    pub from_version: String,
    /// `LOCKSMITH_TO_VERSION`.
    pub to_version: String,
}

/// A hook that failed, or the folder that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("hook {hook} {why}")]
pub struct HookFailure {
    /// File name of the hook, or the folder.
    pub hook: String,
    /// What happened, as the end of a sentence, with its last line of output.
    pub why: String,
}

/// Runs every executable of `folder` in order of name, each for at most
/// `limit`, and gives their number. A folder that is not there has none.
///
/// Hidden files, editors' backups (`name~`), folders and files that are not
/// executable are left out, the last with a warning. The environment has
/// `PATH` and the variables of [`Context`] and nothing else, since ours may
/// hold passwords. After `limit` the hook's process group gets SIGTERM, five
/// seconds later SIGKILL, and after five more it is left alone. Dropping the future kills the group at once.
///
/// # Errors
///
/// The first hook that cannot be run, fails or takes too long; those behind it
/// are not run. Also a folder that cannot be read, because a hook may not be
/// passed over by accident.
pub async fn run(folder: &Path, context: &Context, limit: Duration) -> Result<usize, HookFailure> {
    let hooks = hooks_in(folder).map_err(|error| HookFailure {
        hook: folder.display().to_string(),
        why: format!("cannot be read: {error}"),
    })?;
    for hook in &hooks {
        let name = name_of(hook);
        info!(hook = name, phase = context.phase.as_str(), "hook runs");
        if let Err(why) = run_one(hook, &name, context, limit).await {
            return Err(HookFailure { hook: name, why });
        }
    }
    Ok(hooks.len())
}

/// The executables of the folder in order of name.
fn hooks_in(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut hooks = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = name_of(&path);
        if name.starts_with('.') || name.ends_with('~') {
            continue;
        }
        let metadata = fs::metadata(&path)?;
        if !metadata.is_file() {
            continue;
        }
        if metadata.permissions().mode() & 0o111 == 0 {
            warn!(path = %path.display(), "left out of the hooks: not executable");
            continue;
        }
        hooks.push(path);
    }
    hooks.sort();
    Ok(hooks)
}

fn name_of(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

async fn run_one(
    hook: &Path,
    name: &str,
    context: &Context,
    limit: Duration,
) -> Result<(), String> {
    let (mut group, mut output) =
        start(hook, context).map_err(|error| format!("cannot be run: {error}"))?;
    let mut log = Log::of(name);
    let end = tokio::select! {
        end = group.end(limit) => end,
        never = log.take_all(&mut output) => match never {},
    };
    // What it said last may still be in the pipe; a child that it left behind
    // may hold the pipe open for ever.
    let _ = timeout(LAST_WORDS, log.take_rest(&mut output)).await;
    match end {
        Ok(End::Status(status)) if status.success() => Ok(()),
        Ok(end) => Err(match log.last_line() {
            "" => end.to_string(),
            words => format!("{end}: {words}"),
        }),
        Err(error) => Err(format!("cannot be waited for: {error}")),
    }
}

fn start(hook: &Path, context: &Context) -> io::Result<(Group, pipe::Receiver)> {
    let (output, writer) = io::pipe()?;
    let path = std::env::var_os("PATH");
    let child = Command::new(hook)
        .env_clear()
        .env(
            "PATH",
            path.as_deref()
                .unwrap_or(OsStr::new("/usr/sbin:/usr/bin:/sbin:/bin")),
        )
        .env("LOCKSMITH_PHASE", context.phase.as_str())
        .env("LOCKSMITH_GROUP", &context.group)
        .env("LOCKSMITH_FROM_VERSION", &context.from_version)
        .env("LOCKSMITH_TO_VERSION", &context.to_version)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        // So that a signal reaches what it started as well.
        .process_group(0)
        .spawn()?;
    let group = Group::of(child)?;
    Ok((group, pipe::Receiver::from_owned_fd(output.into())?))
}

/// How a hook ended.
#[derive(Debug, Clone, Copy)]
enum End {
    Status(ExitStatus),
    TimedOut(Duration),
    /// And SIGKILL did not end it.
    Outlasts(Duration),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TimedOut(limit) => write!(f, "took longer than {limit:?}"),
            Self::Outlasts(limit) => write!(
                f,
                "took longer than {limit:?} and cannot be killed: it hangs in the kernel"
            ),
            Self::Status(status) => match (status.code(), status.signal()) {
                (Some(code), _) => write!(f, "ended with status {code}"),
                (None, signal) => write!(f, "was ended by signal {}", signal.unwrap_or(0)),
            },
        }
    }
}

/// A hook and what it started. Killed when it is dropped before its end.
struct Group {
    child: Child,
    id: Pid,
    /// Its leader has been waited for, so the number may mean others by now.
    ended: bool,
}

impl Group {
    fn of(child: Child) -> io::Result<Self> {
        let id = child
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .ok_or_else(|| io::Error::other("it has no process id"))?;
        Ok(Self {
            child,
            id: Pid::from_raw(id),
            ended: false,
        })
    }

    async fn end(&mut self, limit: Duration) -> io::Result<End> {
        if let Ok(status) = timeout(limit, self.wait()).await {
            return Ok(End::Status(status?));
        }
        self.signal(Signal::SIGTERM);
        if timeout(GRACE, self.wait()).await.is_err() {
            self.signal(Signal::SIGKILL);
            // One that hangs in the kernel outlasts even that. It has failed all the
            // same, and a place is not kept for it.
            if timeout(GRACE, self.wait()).await.is_err() {
                return Ok(End::Outlasts(limit));
            }
        }
        Ok(End::TimedOut(limit))
    }

    async fn wait(&mut self) -> io::Result<ExitStatus> {
        let status = self.child.wait().await?;
        self.ended = true;
        Ok(status)
    }

    fn signal(&self, signal: Signal) {
        // It may have ended in this moment; waiting for it tells.
        let _ = killpg(self.id, signal);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.ended {
            self.signal(Signal::SIGKILL);
        }
    }
}

/// A hook's output on its way to the log, cut into lines.
struct Log<'a> {
    hook: &'a str,
    line: Vec<u8>,
    last: String,
    logged: usize,
    closed: bool,
}

impl<'a> Log<'a> {
    fn of(hook: &'a str) -> Self {
        Self {
            hook,
            line: Vec::new(),
            last: String::new(),
            logged: 0,
            closed: false,
        }
    }

    /// Takes what comes for as long as it is polled.
    async fn take_all(&mut self, output: &mut pipe::Receiver) -> std::convert::Infallible {
        self.take_rest(output).await;
        std::future::pending().await
    }

    /// Takes what comes until the pipe is closed.
    async fn take_rest(&mut self, output: &mut pipe::Receiver) {
        let mut buffer = [0; 4096];
        while !self.closed {
            match output.read(&mut buffer).await {
                Ok(count) if count > 0 => buffer[..count].iter().for_each(|&byte| self.take(byte)),
                Ok(_) => self.closed = true,
                Err(error) => {
                    warn!(hook = self.hook, %error, "its output cannot be read");
                    self.closed = true;
                }
            }
        }
    }

    fn take(&mut self, byte: u8) {
        if byte != b'\n' {
            self.line.push(byte);
        }
        if byte == b'\n' || self.line.len() >= MAX_LINE {
            self.end_line();
        }
    }

    fn end_line(&mut self) {
        let line = String::from_utf8_lossy(&self.line).trim_end().to_owned();
        self.line.clear();
        if line.is_empty() {
            return;
        }
        if self.logged < MAX_LOGGED {
            info!(hook = self.hook, "{line}");
            self.logged += line.len();
            if self.logged >= MAX_LOGGED {
                info!(hook = self.hook, "(the rest of its output is not logged)");
            }
        }
        self.last = line;
    }

    fn last_line(&mut self) -> &str {
        self.end_line();
        &self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;
    use tokio::time::sleep;

    const LIMIT: Duration = Duration::from_secs(60);

    fn context() -> Context {
        Context {
            phase: Phase::BeforeReboot,
            group: "database".to_owned(),
            from_version: "1.0.0".to_owned(),
            to_version: "2.0.0".to_owned(),
        }
    }

    /// A folder of hooks: name, mode, script. They can write to `ran` in it.
    fn folder(hooks: &[(&str, u32, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, mode, script) in hooks {
            // A child writes them: a file that this process has open for writing
            // would be inherited by what other test threads start, and could not
            // be run as long.
            let path = folder.path().join(name);
            let text = format!(
                "#!/bin/sh\nran={}/.ran\n{script}\n",
                folder.path().display()
            );
            let status = std::process::Command::new("/bin/sh")
                .args(["-c", r#"printf %s "$2" >"$1" && chmod "$3" "$1""#, "sh"])
                .args([path.as_os_str(), OsStr::new(&text)])
                .arg(format!("{mode:o}"))
                .status()
                .unwrap();
            assert!(status.success());
        }
        folder
    }

    fn ran(folder: &tempfile::TempDir) -> String {
        fs::read_to_string(folder.path().join(".ran")).unwrap_or_default()
    }

    async fn why(script: &str, limit: Duration) -> String {
        let folder = folder(&[("hook", 0o755, script)]);
        let failure = run(folder.path(), &context(), limit).await.unwrap_err();
        assert_eq!(failure.hook, "hook");
        failure.why
    }

    fn is_running(pid: i32) -> bool {
        // A zombie that nobody has waited for yet counts as ended.
        fs::read_to_string(format!("/proc/{pid}/stat"))
            .is_ok_and(|stat| !stat.contains(") Z ") && !stat.contains(") X "))
    }

    async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
        let started = Instant::now();
        while !holds() {
            assert!(started.elapsed() < LIMIT, "never: {what}");
            sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn no_folder_and_an_empty_one_are_success() {
        let folder = folder(&[]);
        for path in [folder.path(), &folder.path().join("missing")] {
            assert_eq!(run(path, &context(), LIMIT).await, Ok(0));
        }
    }

    #[tokio::test]
    async fn hooks_run_in_order_of_name_and_the_first_failure_ends_the_run() {
        let mut hooks = vec![
            ("20-second", 0o755, "echo second >>$ran"),
            ("10-first", 0o755, "echo first >>$ran"),
            ("30-third", 0o755, "echo third >>$ran"),
            (".hidden", 0o755, "echo hidden >>$ran"),
            ("10-first~", 0o755, "echo backup >>$ran"),
            ("15-plain", 0o644, "echo plain >>$ran"),
        ];
        let all_good = folder(&hooks);
        fs::create_dir(all_good.path().join("00-folder")).unwrap();
        assert_eq!(run(all_good.path(), &context(), LIMIT).await, Ok(3));
        assert_eq!(ran(&all_good), "first\nsecond\nthird\n");

        hooks.push((
            "25-bad",
            0o755,
            "echo one; echo the pool is busy >&2; exit 7",
        ));
        let bad = folder(&hooks);
        let failure = run(bad.path(), &context(), LIMIT).await.unwrap_err();
        assert_eq!(
            failure.to_string(),
            "hook 25-bad ended with status 7: the pool is busy"
        );
        assert_eq!(ran(&bad), "first\nsecond\n");
    }

    #[tokio::test]
    async fn hooks_are_told_the_context_and_nothing_else_of_ours() {
        let folder = folder(&[("hook", 0o755, "env >$ran")]);
        run(folder.path(), &context(), LIMIT).await.unwrap();
        let ran = ran(&folder);
        let mut variables: Vec<&str> = ran
            .lines()
            // The shell's own.
            .filter(|line| {
                !["PWD=", "_=", "SHLVL=", "OLDPWD="]
                    .iter()
                    .any(|own| line.starts_with(own))
            })
            .collect();
        variables.sort_unstable();
        let path = format!("PATH={}", std::env::var("PATH").unwrap());
        assert_eq!(
            variables,
            [
                "LOCKSMITH_FROM_VERSION=1.0.0",
                "LOCKSMITH_GROUP=database",
                "LOCKSMITH_PHASE=before-reboot",
                "LOCKSMITH_TO_VERSION=2.0.0",
                &path,
            ]
        );
    }

    #[tokio::test]
    async fn every_way_to_fail_has_its_words() {
        let short = Duration::from_millis(100);
        for (script, limit, expected) in [
            ("exit 3", LIMIT, "ended with status 3"),
            (
                "echo draining; kill -9 $$",
                LIMIT,
                "was ended by signal 9: draining",
            ),
            (
                "echo begun; sleep 1000",
                short,
                "took longer than 100ms: begun",
            ),
            (
                "printf 'no newline'; exit 1",
                LIMIT,
                "ended with status 1: no newline",
            ),
        ] {
            assert_eq!(why(script, limit).await, expected, "{script}");
        }
        let folder = folder(&[]);
        let hook = folder.path().join("hook");
        fs::write(&hook, "#!/not/there\n").unwrap();
        fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
        let failure = run(folder.path(), &context(), LIMIT).await.unwrap_err();
        assert!(failure.why.starts_with("cannot be run: "), "{failure}");
        let failure = run(&hook, &context(), LIMIT).await.unwrap_err();
        assert!(failure.why.starts_with("cannot be read: "), "{failure}");
    }

    #[tokio::test]
    async fn what_takes_too_long_is_ended_with_its_children_even_against_its_will() {
        let folder = folder(&[(
            "hook",
            0o755,
            "trap '' TERM; sleep 1000 & echo $! >$ran; while :; do sleep 1; done",
        )]);
        let begun = Instant::now();
        let failure = run(folder.path(), &context(), Duration::from_millis(200)).await;
        assert_eq!(failure.unwrap_err().why, "took longer than 200ms");
        assert!(begun.elapsed() >= GRACE, "it ignores SIGTERM");
        let child: i32 = ran(&folder).trim().parse().unwrap();
        eventually("the child ends", || !is_running(child)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_not_even_a_kill_ends_is_not_waited_for() {
        let sleeper = || {
            let mut command = Command::new("sleep");
            command.arg("1000").process_group(0).spawn().unwrap()
        };
        // Signals go to somebody else, so none of them ends it.
        let (hook, mut other) = (sleeper(), sleeper());
        let pid = hook.id().and_then(|id| i32::try_from(id).ok()).unwrap();
        let mut group = Group::of(hook).unwrap();
        group.id = Pid::from_raw(other.id().and_then(|id| i32::try_from(id).ok()).unwrap());
        let end = timeout(LIMIT, group.end(GRACE)).await.unwrap().unwrap();
        assert!(end.to_string().contains("cannot be killed"), "{end}");
        drop(group);
        nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        other.wait().await.unwrap();
    }

    #[tokio::test]
    async fn a_dropped_run_leaves_nothing_behind() {
        let folder = folder(&[("hook", 0o755, "sleep 1000 & echo $$ $! >$ran; wait")]);
        let context = context();
        let mut hooks = Box::pin(run(folder.path(), &context, LIMIT));
        tokio::select! {
            ended = &mut hooks => panic!("{ended:?}"),
            () = eventually("the hook runs", || ran(&folder).ends_with('\n')) => {}
        }
        let pids: Vec<i32> = ran(&folder)
            .split_whitespace()
            .map(|pid| pid.parse().unwrap())
            .collect();
        assert!(pids.iter().all(|&pid| is_running(pid)));
        drop(hooks);
        eventually("both end", || !pids.iter().any(|&pid| is_running(pid))).await;
    }

    #[tokio::test]
    async fn a_child_left_behind_with_the_output_open_is_not_waited_for() {
        let folder = folder(&[("hook", 0o755, "sleep 60 & echo $! >$ran")]);
        let begun = Instant::now();
        assert_eq!(run(folder.path(), &context(), LIMIT).await, Ok(1));
        assert!(begun.elapsed() < Duration::from_secs(30));
        let left: i32 = ran(&folder).trim().parse().unwrap();
        nix::sys::signal::kill(Pid::from_raw(left), Signal::SIGKILL).unwrap();
    }

    #[tokio::test]
    async fn endless_output_neither_blocks_the_hook_nor_fills_the_log() {
        let folder = folder(&[("hook", 0o755, "seq 1 400000; echo done >$ran")]);
        assert_eq!(run(folder.path(), &context(), LIMIT).await, Ok(1));
        assert_eq!(ran(&folder), "done\n");

        let mut log = Log::of("test");
        (0..MAX_LOGGED * 4).for_each(|_| log.take(b'x'));
        assert!(log.logged <= MAX_LOGGED + MAX_LINE);
        assert_eq!(log.last_line().len(), MAX_LINE);
    }
}
