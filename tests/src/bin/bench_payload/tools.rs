//! The tools that are compared, and how each is told what to do.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

/// What a tool is to do.
pub(super) struct Task<'a> {
    /// None for a payload that is whole.
    pub(super) old: Option<&'a Path>,
    pub(super) new: &'a Path,
    pub(super) patch: &'a Path,
    pub(super) result: &'a Path,
    /// Our program.
    pub(super) payload: &'a Path,
}

/// A way to get from one image to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tool {
    /// Our payload in version 2.
    Ours,
    /// Our payload in version 1, with bzip2 as the original makes it; whole only.
    V1,
    /// Xdelta3 at its best level.
    Xdelta3,
    /// Zstandard at a level.
    Zstd(u8),
    /// The original bsdiff. An image of 500 MB takes it ten minutes and 4 GB.
    Bsdiff,
    /// Librsync.
    Rdiff,
    /// `HDiffPatch`, where it is installed; not in Debian.
    HDiffPatch,
}

impl Tool {
    /// Those that are not ours, by name.
    pub(super) const PEERS: [(&'static str, Tool); 6] = [
        ("xdelta3", Tool::Xdelta3),
        ("zstd-6", Tool::Zstd(6)),
        ("zstd-19", Tool::Zstd(19)),
        ("bsdiff", Tool::Bsdiff),
        ("rdiff", Tool::Rdiff),
        ("hdiffpatch", Tool::HDiffPatch),
    ];

    /// For the table.
    pub(super) fn name(self) -> &'static str {
        match self {
            Tool::Ours => "payload v2",
            Tool::V1 => "payload v1",
            other => Self::PEERS
                .iter()
                .find(|(_, tool)| *tool == other)
                .map_or("zstd", |(name, _)| name),
        }
    }

    /// The program that must be there.
    pub(super) fn program(self) -> &'static str {
        match self {
            Tool::Ours | Tool::V1 => "payload",
            Tool::Xdelta3 => "xdelta3",
            Tool::Zstd(_) => "zstd",
            Tool::Bsdiff => "bsdiff",
            Tool::Rdiff => "rdiff",
            Tool::HDiffPatch => "hdiffz",
        }
    }

    /// Whether its program can be found.
    pub(super) fn is_installed(self) -> bool {
        let folders = std::env::var_os("PATH").unwrap_or_default();
        matches!(self, Tool::Ours | Tool::V1)
            || std::env::split_paths(&folders).any(|folder| folder.join(self.program()).exists())
    }

    /// The commands that make the patch.
    pub(super) fn generate(self, task: &Task<'_>) -> Vec<Command> {
        let Task {
            new,
            patch,
            payload,
            ..
        } = *task;
        // A peer without the old image has nothing to go by; it is not asked then.
        let old = task.old.unwrap_or(new);
        match self {
            Tool::Ours | Tool::V1 => {
                let format = if self == Tool::V1 { "v1" } else { "v2" };
                let mut command = Command::new(payload);
                command
                    .args(["generate", "--format", format, "--new"])
                    .arg(new);
                if let Some(old) = task.old {
                    command.arg("--old").arg(old);
                }
                command.arg("--out").arg(patch);
                vec![command]
            }
            Tool::Xdelta3 => vec![command(
                "xdelta3",
                &[&"-q", &"-e", &"-9", &"-f", &"-s", &old, &new, &patch],
            )],
            Tool::Zstd(level) => {
                let level = format!("-{level}");
                let from = joined("--patch-from=", old);
                vec![command(
                    "zstd",
                    &[
                        &"-q",
                        &"-f",
                        &level,
                        &"--long=31",
                        &from,
                        &new,
                        &"-o",
                        &patch,
                    ],
                )]
            }
            Tool::Bsdiff => vec![command("bsdiff", &[&old, &new, &patch])],
            Tool::Rdiff => {
                let signature = patch.with_extension("signature");
                vec![
                    command("rdiff", &[&"--force", &"signature", &old, &signature]),
                    command("rdiff", &[&"--force", &"delta", &signature, &new, &patch]),
                ]
            }
            Tool::HDiffPatch => vec![command(
                "hdiffz",
                &[&"-f", &"-m", &"-c-zstd-21-24", &"-p-1", &old, &new, &patch],
            )],
        }
    }

    /// The command that applies it.
    pub(super) fn apply(self, task: &Task<'_>) -> Command {
        let Task {
            new,
            patch,
            result,
            payload,
            ..
        } = *task;
        let old = task.old.unwrap_or(new);
        match self {
            Tool::Ours | Tool::V1 => {
                let mut command = Command::new(payload);
                command
                    .args(["apply", "--allow-unsigned", "--target"])
                    .arg(result);
                if let Some(old) = task.old {
                    command.arg("--old").arg(old);
                }
                command.arg(patch);
                command
            }
            Tool::Xdelta3 => command(
                "xdelta3",
                &[&"-q", &"-d", &"-f", &"-s", &old, &patch, &result],
            ),
            Tool::Zstd(_) => {
                let from = joined("--patch-from=", old);
                command(
                    "zstd",
                    &[
                        &"-q",
                        &"-d",
                        &"-f",
                        &"--long=31",
                        &from,
                        &patch,
                        &"-o",
                        &result,
                    ],
                )
            }
            Tool::Bsdiff => command("bspatch", &[&old, &result, &patch]),
            Tool::Rdiff => command("rdiff", &[&"--force", &"patch", &old, &patch, &result]),
            Tool::HDiffPatch => command("hpatchz", &[&"-f", &old, &patch, &result]),
        }
    }
}

fn command(program: &str, arguments: &[&dyn AsRef<OsStr>]) -> Command {
    let mut command = Command::new(program);
    for argument in arguments {
        command.arg(argument);
    }
    command
}

fn joined(option: &str, path: &Path) -> std::ffi::OsString {
    let mut joined = std::ffi::OsString::from(option);
    joined.push(path);
    joined
}
