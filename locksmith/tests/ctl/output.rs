//! What happens to output that nobody takes.

use std::fs::OpenOptions;
use std::process::Stdio;

use crate::transcript::Session;

#[test]
fn a_closed_pipe_ends_it_quietly() {
    for arguments in [&["help"][..], &["nosuch"], &["-version"], &["lock", "-x"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = Session::new()
            .command(arguments)
            .stdout(writer)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
            .wait_with_output()
            .unwrap();
        assert_eq!(output.status.code(), Some(141), "{arguments:?}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{arguments:?}");
    }
}

#[test]
fn a_full_disk_is_an_error() {
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = Session::new()
        .command(&["help"])
        .stdout(full)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("No space left on device"), "{stderr}");
}
