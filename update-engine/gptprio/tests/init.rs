//! `gptprio-init` where it does not belong. What it does where it belongs needs a machine.

#![allow(clippy::unwrap_used, reason = "a test may fail by panic")]

use std::process::Command;

#[test]
fn started_by_hand_it_refuses_and_touches_nothing() {
    let output = Command::new(env!("CARGO_BIN_EXE_gptprio-init"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(
        message.contains("first process of an initramfs"),
        "{message}"
    );
}
