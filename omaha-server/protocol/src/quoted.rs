//! Text from the network, made fit for a log line.

use std::fmt;

/// At most 64 characters of a text, or as many as a precision says (`{:.40}`), control
/// and format characters escaped, so that no client can forge a line or flood the log.
#[derive(Debug, Clone, Copy)]
pub struct Quoted<'a>(pub &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kept = f.precision().unwrap_or(64);
        match self.0.char_indices().nth(kept) {
            Some((end, _)) => write!(f, "{}…", self.0[..end].escape_debug()),
            None => write!(f, "{}", self.0.escape_debug()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_stays_on_one_short_line() {
        let text = format!("a\n\u{1b}[2J\u{202e}{}", "x".repeat(10_000));
        let quoted = Quoted(&text).to_string();
        assert!(quoted.starts_with("a\\n\\u{1b}[2J\\u{202e}xxx"), "{quoted}");
        assert!(quoted.len() < 100);
        assert_eq!(Quoted("stable").to_string(), "stable");
        assert_eq!(format!("{:.3}", Quoted("stable")), "sta…");
    }
}
