//! The shipped unit, read by systemd.

use std::process::Command;

use locksmith::config::Settings;

const UNIT: &str = include_str!("../../dist/locksmithd.service");
const README: &str = include_str!("../../dist/README.md");
const DAEMON: &str = "/usr/lib/locksmith/locksmithd";

#[test]
fn the_unit_is_understood_by_systemd() {
    let folder = tempfile::tempdir().unwrap();
    let unit = folder.path().join("locksmithd.service");
    // The program is not installed here, and its absence would be a complaint.
    let text = UNIT.replace(DAEMON, "/bin/true");
    assert_ne!(text, UNIT);
    std::fs::write(&unit, text).unwrap();
    let output = match Command::new("systemd-analyze")
        .arg("verify")
        .arg(&unit)
        .output()
    {
        Ok(output) => output,
        Err(error) => {
            eprintln!("systemd-analyze is not installed ({error}): the unit is not checked");
            return;
        }
    };
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && complaints.is_empty(),
        "{complaints}"
    );
}

#[test]
fn the_list_for_distributions_names_what_the_code_looks_for() {
    let hooks = Settings::default().hooks;
    for path in [
        DAEMON,
        hooks.before_dir.to_str().unwrap(),
        hooks.after_dir.to_str().unwrap(),
        locksmith::coordinator_conf::PATH,
    ] {
        assert!(README.contains(path), "{path}");
    }
}
