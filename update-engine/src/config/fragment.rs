//! The file format: `KEY=value` lines, exactly as the original update_engine reads them.
//!
//! No comments, no escapes, no `export`: a line is cut at its first `=` and both halves are taken
//! as they stand, so `#KEY=x` is a setting of the key `#KEY`. It knows no key by name.

/// One file, parsed: every setting with its line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Fragment {
    settings: Vec<Setting>,
    stray_lines: Vec<usize>,
}

/// One `KEY=value` line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Setting {
    pub(super) key: String,
    pub(super) value: String,
    /// Counted from 1.
    pub(super) line: usize,
}

/// What happens to quotes around a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Quotes {
    /// One pair of equal quotes is taken off, as Flatcar does.
    Strip,
    /// They are part of the value, as on CoreOS.
    Keep,
}

impl Fragment {
    pub(super) fn parse(text: &str, quotes: Quotes) -> Self {
        let mut fragment = Self::default();
        for (text, line) in text.split('\n').zip(1..) {
            if let Some((key, value)) = text.split_once('=') {
                let value = match quotes {
                    Quotes::Strip => unquoted(value),
                    Quotes::Keep => value,
                };
                fragment.settings.push(Setting {
                    key: key.to_owned(),
                    value: value.to_owned(),
                    line,
                });
            } else if !text.trim().is_empty() && !text.trim_start().starts_with('#') {
                fragment.stray_lines.push(line);
            }
        }
        fragment
    }

    /// The setting of `key`: the last one when it is there twice.
    pub(super) fn get(&self, key: &str) -> Option<&Setting> {
        self.settings
            .iter()
            .rev()
            .find(|setting| setting.key == key)
    }

    /// Every setting in the order of the file, repeated keys included.
    pub(super) fn settings(&self) -> &[Setting] {
        &self.settings
    }

    /// Lines that have no `=` though they are neither blank nor look like a comment. They set
    /// nothing.
    pub(super) fn stray_lines(&self) -> &[usize] {
        &self.stray_lines
    }
}

fn unquoted(value: &str) -> &str {
    ['"', '\'']
        .iter()
        .find_map(|&quote| value.strip_prefix(quote)?.strip_suffix(quote))
        .unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn get(text: &str, quotes: Quotes, key: &str) -> Option<String> {
        Fragment::parse(text, quotes)
            .get(key)
            .map(|setting| setting.value.clone())
    }

    #[test]
    fn a_line_is_read_as_the_original_reads_it() {
        let table = [
            ("GROUP=stable", "GROUP", Some("stable")),
            ("GROUP=stable\n", "GROUP", Some("stable")),
            ("GROUP=", "GROUP", Some("")),
            ("GROUP=a=b", "GROUP", Some("a=b")),
            ("GROUP= a ", "GROUP", Some(" a ")),
            (" GROUP=a", "GROUP", None),
            (" GROUP=a", " GROUP", Some("a")),
            ("GROUP =a", "GROUP", None),
            ("export GROUP=a", "GROUP", None),
            ("#GROUP=a", "GROUP", None),
            ("#GROUP=a", "#GROUP", Some("a")),
            ("GROUP", "GROUP", None),
            ("GROUP=a\nGROUP=b", "GROUP", Some("b")),
            ("GROUP=a\r\n", "GROUP", Some("a\r")),
            ("=a", "", Some("a")),
        ];
        for (text, key, expected) in table {
            assert_eq!(
                get(text, Quotes::Strip, key).as_deref(),
                expected,
                "{text:?}"
            );
        }
    }

    #[test]
    fn only_flatcar_takes_off_one_pair_of_equal_quotes() {
        let table = [
            (r#""a b""#, "a b"),
            ("'a b'", "a b"),
            (r#"""a"""#, r#""a""#),
            (r#"'"a"'"#, r#""a""#),
            (r#""a'"#, r#""a'"#),
            (r#"""#, r#"""#),
            (r#""""#, ""),
            (r#"a"b""#, r#"a"b""#),
        ];
        for (value, stripped) in table {
            let text = format!("K={value}");
            assert_eq!(
                get(&text, Quotes::Strip, "K").as_deref(),
                Some(stripped),
                "{value}"
            );
            assert_eq!(
                get(&text, Quotes::Keep, "K").as_deref(),
                Some(value),
                "{value}"
            );
        }
    }

    #[test]
    fn lines_that_set_nothing_are_remembered() {
        let fragment = Fragment::parse(
            "\n# note\n  # note\nPAUSED yes\nGROUP=a\n \nx",
            Quotes::Strip,
        );
        assert_eq!(fragment.stray_lines(), [4, 7]);
    }

    proptest! {
        #[test]
        fn any_text_parses_and_lines_point_back_into_it(text in "[A-C=\"' \n]{0,80}") {
            let fragment = Fragment::parse(&text, Quotes::Keep);
            for setting in fragment.settings() {
                let line = text.split('\n').nth(setting.line - 1).unwrap();
                prop_assert_eq!(line, format!("{}={}", setting.key, setting.value));
            }
        }
    }
}
