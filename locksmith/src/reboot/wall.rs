//! Words on the terminals of the people who are logged in, as wall(1) puts them
//! there. Who is logged in, and for how long they have, is decided elsewhere.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::time::Duration;

use gptprio::machine::Root;
use jiff::ZonedDateTime;
use nix::fcntl::OFlag;
use tracing::debug;

use crate::bus::Session;

/// Lines are filled up, to cover what stands on the screen.
const COLUMNS: usize = 79;

/// The announcement of a reboot after `delay`: `System reboot in 5 minutes!`
/// under a line that says who speaks.
#[must_use]
pub fn announcement(now: &ZonedDateTime, delay: Duration) -> String {
    let when = match (delay.as_secs(), delay.as_secs() % 60) {
        (0, _) => "now".to_owned(),
        (60, _) => "in 1 minute".to_owned(),
        (seconds, 0) => format!("in {} minutes", seconds / 60),
        (seconds, _) => format!("in {seconds} seconds"),
    };
    let head = format!(
        "Broadcast message from locksmithd at {}:\u{7}\u{7}",
        now.strftime("%Y-%m-%d %H:%M:%S %Z")
    );
    ["", &head, &format!("System reboot {when}!"), ""]
        .map(|line| format!("\r{line:<COLUMNS$}\r\n"))
        .concat()
}

/// Writes a text to each terminal of these sessions and gives the number of
/// those that took it. A terminal that is gone or stopped is passed over: nobody
/// waits for a reader.
pub fn write_to(root: &Root, sessions: &[Session], text: &str) -> usize {
    let mut terminals: Vec<&str> = sessions
        .iter()
        .filter_map(|session| session.tty.as_deref())
        .collect();
    terminals.sort_unstable();
    terminals.dedup();
    let reached = |terminal: &&str| match write(root, terminal, text) {
        Ok(()) => true,
        Err(error) => {
            debug!(terminal, %error, "cannot write to a terminal");
            false
        }
    };
    terminals.into_iter().filter(reached).count()
}

fn write(root: &Root, terminal: &str, text: &str) -> io::Result<()> {
    let flags = OFlag::O_NOCTTY | OFlag::O_NONBLOCK;
    let mut file = OpenOptions::new()
        .write(true)
        .custom_flags(flags.bits())
        .open(root.path(format!("/dev/{terminal}"))?)?;
    if !file.metadata()?.file_type().is_char_device() {
        return Err(io::Error::other("not a terminal"));
    }
    file.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::io::Read;
    use std::os::unix::fs::symlink;

    use nix::pty::openpty;

    fn session(tty: Option<&str>) -> Session {
        Session {
            user: "core".to_owned(),
            tty: tty.map(str::to_owned),
        }
    }

    #[test]
    fn the_announcement_says_who_and_when() {
        let now = "2026-11-23T06:13:42+00:00[UTC]".parse().unwrap();
        for (seconds, expected) in [
            (0, "System reboot now!"),
            (60, "System reboot in 1 minute!"),
            (300, "System reboot in 5 minutes!"),
            (90, "System reboot in 90 seconds!"),
        ] {
            let text = announcement(&now, Duration::from_secs(seconds));
            let lines: Vec<&str> = text.lines().map(str::trim).collect();
            assert_eq!(
                lines,
                [
                    "",
                    "Broadcast message from locksmithd at 2026-11-23 06:13:42 UTC:\u{7}\u{7}",
                    expected,
                    ""
                ]
            );
        }
    }

    #[test]
    fn terminals_get_the_text_once_and_nothing_else_is_written_to() {
        let machine = tempfile::tempdir().unwrap();
        let dev = machine.path().join("dev");
        fs::create_dir_all(dev.join("pts")).unwrap();
        fs::write(dev.join("file"), "").unwrap();
        fs::write(machine.path().join("outside"), "").unwrap();
        let pty = openpty(None, None).unwrap();
        let name = nix::unistd::ttyname(&pty.slave).unwrap();
        let name = name.strip_prefix("/dev").unwrap().to_str().unwrap();
        symlink("nowhere", dev.join("gone")).unwrap();

        let root = Root::at(machine.path()).unwrap();
        let others = ["file", "gone", "missing", "../outside"].map(|tty| session(Some(tty)));
        assert_eq!(write_to(&root, &others, "words\r\n"), 0);
        assert_eq!(fs::read(dev.join("file")).unwrap(), b"");
        assert_eq!(fs::read(machine.path().join("outside")).unwrap(), b"");

        let tty = name.trim_start_matches('/');
        let sessions = [session(Some(tty)), session(None), session(Some(tty))];
        assert_eq!(write_to(&Root::system(), &sessions, "words\r\n"), 1);
        let mut screen = [0; 64];
        let count = File::from(pty.master).read(&mut screen).unwrap();
        assert!(screen[..count].starts_with(b"words"));
        assert_eq!(
            screen[..count].iter().filter(|&&byte| byte == b'w').count(),
            1
        );
    }
}
