//! Whether this boot counts as successful: what the operator's own programs say.
//!
//! The original takes a machine for healthy when the daemon has lived for a while. Here the
//! executables in `/etc/update-engine/health.d` have to agree as well. When to ask and what follows
//! is decided elsewhere.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::config::Settings;
use crate::platform::Environment;
use crate::platform::child::{self, End};
use crate::root::Root;

/// Where the programs are, a path on the machine.
pub const HEALTH_FOLDER: &str = "/etc/update-engine/health.d";

/// What the programs said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// All of them agree; there may be none.
    Healthy {
        /// How many there are.
        checks: usize,
    },
    /// One does not.
    Unhealthy {
        /// Its file name, or the folder when that cannot be read.
        which: String,
        /// What happened, with its last words.
        why: String,
    },
}

/// Runs every executable of the folder, in order of name, each for at most
/// [`Settings::health_timeout`], until one fails.
///
/// An exit status of 0 means healthy. Hidden files and files that are not executable are left out,
/// the latter with a warning. What cannot be run or read counts as unhealthy: a check that an
/// operator has put there must not be passed by accident.
pub fn check(root: &Root, settings: &Settings) -> Health {
    let environment = Environment::inherited(settings);
    let programs = match root
        .path(HEALTH_FOLDER)
        .and_then(|folder| programs(&folder))
    {
        Ok(programs) => programs,
        Err(error) => {
            let why = format!("cannot be read: {error}");
            return Health::Unhealthy {
                which: HEALTH_FOLDER.to_owned(),
                why,
            };
        }
    };
    for program in &programs {
        let which = name_of(program);
        match run(program, &which, &environment, settings.health_timeout) {
            Ok(()) => tracing::info!(check = which, "health check passed"),
            Err(why) => return Health::Unhealthy { which, why },
        }
    }
    Health::Healthy {
        checks: programs.len(),
    }
}

fn run(
    program: &Path,
    which: &str,
    environment: &Environment,
    limit: Duration,
) -> Result<(), String> {
    let log = |line: &str| tracing::info!(check = which, "{line}");
    let finished = child::run(Command::new(program), environment, limit, log)
        .map_err(|error| format!("cannot be run: {error}"))?;
    match finished.end {
        End::Exited(0) => Ok(()),
        _ => Err(finished.words(limit)),
    }
}

/// The executables of the folder in order of name; none when there is no folder.
fn programs(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut programs = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = name_of(&path);
        // What an editor keeps of a check is the check as it was.
        if name.starts_with('.') || name.ends_with('~') {
            continue;
        }
        let metadata = fs::metadata(&path)?;
        if !metadata.is_file() {
            continue;
        }
        if metadata.permissions().mode() & 0o111 == 0 {
            tracing::warn!(path = %path.display(), "left out of the health checks: not executable");
            continue;
        }
        programs.push(path);
    }
    programs.sort();
    Ok(programs)
}

fn name_of(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine with these programs: name, mode, script.
    fn check_with(programs: &[(&str, u32, &str)], limit: Duration) -> (Health, String) {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("etc/update-engine/health.d");
        fs::create_dir_all(&folder).unwrap();
        for (name, mode, script) in programs {
            let script = format!("#!/bin/sh\nexec >>{}/ran\n{script}\n", dir.path().display());
            child::write_program(&folder.join(name), *mode, &script);
        }
        let root = Root::at(dir.path()).unwrap();
        let health = check(
            &root,
            &Settings {
                health_timeout: limit,
                ..Settings::default()
            },
        );
        (
            health,
            fs::read_to_string(dir.path().join("ran")).unwrap_or_default(),
        )
    }

    const LIMIT: Duration = Duration::from_secs(60);

    #[test]
    fn a_machine_without_checks_is_healthy() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::at(dir.path()).unwrap();
        let healthy = Health::Healthy { checks: 0 };
        assert_eq!(check(&root, &Settings::default()), healthy);
        assert_eq!(check_with(&[], LIMIT).0, healthy);
    }

    #[test]
    fn checks_run_in_order_of_name_until_one_fails() {
        let (health, ran) = check_with(
            &[
                ("30-never", 0o755, "echo never"),
                ("10-first", 0o755, "echo first"),
                (
                    "20-bad",
                    0o755,
                    "echo second; echo the disk is hot >&2; exit 7",
                ),
                (".hidden", 0o755, "echo hidden"),
                ("10-first~", 0o755, "echo backup"),
                ("15-not-executable", 0o644, "echo plain"),
            ],
            LIMIT,
        );
        assert_eq!(ran, "first\nsecond\n");
        let why = "ended with status 7: the disk is hot".to_owned();
        assert_eq!(
            health,
            Health::Unhealthy {
                which: "20-bad".to_owned(),
                why
            }
        );

        let (health, _) = check_with(&[("a", 0o755, ""), ("b", 0o755, "true")], LIMIT);
        assert_eq!(health, Health::Healthy { checks: 2 });
    }

    #[test]
    fn a_check_that_hangs_crashes_or_cannot_be_run_is_unhealthy() {
        let table = [
            (
                "while :; do sleep 1; done",
                Duration::from_millis(50),
                "took longer than 50ms",
            ),
            ("kill -11 $$", LIMIT, "was ended by signal 11"),
        ];
        for (script, limit, expected) in table {
            let (health, _) = check_with(&[("check", 0o755, script)], limit);
            let Health::Unhealthy { why, .. } = health else {
                panic!("{script}")
            };
            assert_eq!(why, expected);
        }

        let dir = tempfile::tempdir().unwrap();
        let program = dir
            .path()
            .join(HEALTH_FOLDER.trim_start_matches('/'))
            .join("check");
        fs::create_dir_all(program.parent().unwrap()).unwrap();
        child::write_program(&program, 0o755, "#!/not/there\n");
        let root = Root::at(dir.path()).unwrap();
        let health = check(&root, &Settings::default());
        let Health::Unhealthy { which, why } = health else {
            panic!()
        };
        assert_eq!(which, "check");
        assert!(why.starts_with("cannot be run: "), "{why}");
    }

    #[test]
    fn a_folder_that_cannot_be_read_is_unhealthy() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join(HEALTH_FOLDER.trim_start_matches('/'));
        fs::create_dir_all(folder.parent().unwrap()).unwrap();
        fs::write(&folder, "").unwrap();
        let root = Root::at(dir.path()).unwrap();
        let health = check(&root, &Settings::default());
        assert!(matches!(health, Health::Unhealthy { .. }), "{health:?}");
    }
}
