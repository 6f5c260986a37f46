//! The programs under test: brought up to date and found.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};

/// A command that runs our program `name`.
///
/// The first call builds all programs of the workspace in the profile of this
/// test, so that a test never runs yesterday's program. With nothing to build
/// that takes well under a second.
///
/// # Errors
///
/// The build fails, or the workspace has no such program.
pub fn program(name: &str) -> Result<Command> {
    static BUILT: OnceLock<Result<HashMap<String, PathBuf>, String>> = OnceLock::new();
    let built = BUILT
        .get_or_init(|| build().map_err(|error| format!("{error:#}")))
        .as_ref()
        .map_err(|error| anyhow::anyhow!("{error}"))?;
    let path = built
        .get(name)
        .with_context(|| format!("the workspace has no program {name}"))?;
    Ok(Command::new(path))
}

/// A command that runs the tool `name` of the system, from `PATH` or the folders
/// for administrators that ordinary users do not have in it.
#[must_use]
pub fn system_tool(name: &str) -> Command {
    let in_sbin = ["/usr/sbin", "/sbin"]
        .map(|folder| Path::new(folder).join(name))
        .into_iter()
        .find(|path| path.exists());
    Command::new(in_sbin.unwrap_or_else(|| name.into()))
}

fn build() -> Result<HashMap<String, PathBuf>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut build = Command::new(cargo);
    build
        .args(["build", "--workspace", "--bins"])
        .args(["--quiet", "--message-format=json-render-diagnostics"])
        .stderr(Stdio::inherit());
    if !cfg!(debug_assertions) {
        build.arg("--release");
    }
    let output = build.output().context("cannot run cargo")?;
    ensure!(output.status.success(), "building the programs failed");

    let mut programs = HashMap::new();
    for line in output.stdout.split(|byte| *byte == b'\n') {
        let Ok(message) = serde_json::from_slice::<serde_json::Value>(line) else {
            continue;
        };
        if let (Some(name), Some(path)) = (
            message["target"]["name"].as_str(),
            message["executable"].as_str(),
        ) {
            programs.insert(name.to_owned(), PathBuf::from(path));
        }
    }
    Ok(programs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_program_is_named_in_the_error() {
        let error = program("update_enigne").unwrap_err().to_string();
        assert!(error.contains("update_enigne"), "{error}");
    }
}
