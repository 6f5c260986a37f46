//! `update.conf` as systemd reads it for `EnvironmentFile=`, which is how the original got at it.
//!
//! The file belongs to others as well: `GROUP=` in it is the update channel. It knows no variable
//! by name.

/// One variable that a file sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Assignment {
    pub(super) name: String,
    pub(super) value: String,
    /// Where its name stands, counted from 1.
    pub(super) line: usize,
}

/// Every variable in the order of the file, repeated ones included.
///
/// The rules are systemd's: lines that begin with `#` or `;` are comments, a value may be in quotes
/// of either kind, a backslash takes the meaning from the next character (in double quotes only
/// from `"`, `\`, `` ` `` and `$`), and before the end of a line it joins the next one. A line
/// without `=` sets nothing.
pub(super) fn parse(text: &str) -> Vec<Assignment> {
    let mut found = Vec::new();
    let mut reader = Reader::default();
    for letter in text.chars() {
        if let Some(assignment) = reader.take(letter) {
            found.push(assignment);
        }
    }
    found.extend(reader.finish());
    found
}

#[derive(Default)]
struct Reader {
    at: At,
    name: String,
    value: String,
    /// Length of the value up to its last letter that white space cannot be trimmed from.
    kept: usize,
    line: usize,
    name_line: usize,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum At {
    #[default]
    LineStart,
    Comment,
    Name,
    BeforeValue,
    Value,
    ValueEscape,
    Single,
    Double,
    DoubleEscape,
}

impl Reader {
    fn take(&mut self, letter: char) -> Option<Assignment> {
        let is_end = matches!(letter, '\n' | '\r');
        let is_blank = matches!(letter, ' ' | '\t');
        let mut done = None;
        self.at = match self.at {
            At::LineStart if is_end || is_blank => At::LineStart,
            At::LineStart if matches!(letter, '#' | ';') => At::Comment,
            At::LineStart => {
                self.name = letter.to_string();
                self.name_line = self.line + 1;
                At::Name
            }
            At::Comment if is_end => At::LineStart,
            At::Comment => At::Comment,
            At::Name if is_end => At::LineStart,
            At::Name if letter == '=' => {
                self.value.clear();
                self.kept = 0;
                At::BeforeValue
            }
            At::Name => {
                self.name.push(letter);
                At::Name
            }
            At::BeforeValue | At::Value if is_end => {
                done = self.finish();
                At::LineStart
            }
            At::BeforeValue | At::Value if letter == '\\' => At::ValueEscape,
            At::BeforeValue if letter == '\'' => At::Single,
            At::BeforeValue if letter == '"' => At::Double,
            At::BeforeValue if is_blank => At::BeforeValue,
            At::BeforeValue | At::Value => {
                self.value.push(letter);
                if !is_blank {
                    self.kept = self.value.len();
                }
                At::Value
            }
            At::ValueEscape => {
                if !is_end {
                    self.keep(letter);
                }
                At::Value
            }
            At::Single if letter == '\'' => At::BeforeValue,
            At::Double if letter == '"' => At::BeforeValue,
            At::Double if letter == '\\' => At::DoubleEscape,
            at @ (At::Single | At::Double) => {
                self.keep(letter);
                at
            }
            At::DoubleEscape => {
                if !matches!(letter, '"' | '\\' | '`' | '$' | '\n' | '\r') {
                    self.keep('\\');
                }
                if !is_end {
                    self.keep(letter);
                }
                At::Double
            }
        };
        if letter == '\n' {
            self.line += 1;
        }
        done
    }

    fn keep(&mut self, letter: char) {
        self.value.push(letter);
        self.kept = self.value.len();
    }

    /// The assignment that is being read, if there is one by now.
    fn finish(&mut self) -> Option<Assignment> {
        if matches!(self.at, At::LineStart | At::Comment | At::Name) {
            return None;
        }
        self.value.truncate(self.kept);
        Some(Assignment {
            name: self.name.trim_end_matches([' ', '\t']).to_owned(),
            value: std::mem::take(&mut self.value),
            line: self.name_line,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_are_read_as_systemd_reads_them() {
        for (text, expected) in [
            ("A=b", "A:b@1"),
            ("A=b\n", "A:b@1"),
            ("A=b\r\nC=d\r\n", "A:b@1 C:d@2"),
            ("  A = b c \t\n", "A:b c@1"),
            ("A=\nB=", "A:@1 B:@2"),
            ("# A=b\n;A=c\n#x\\\nA=d", "A:d@4"),
            ("A=\"b c\"", "A:b c@1"),
            ("A='b c '", "A:b c @1"),
            ("A='b'\"c\" d", "A:bcd@1"),
            ("A=b'c'", "A:b'c'@1"),
            ("A=b#c", "A:b#c@1"),
            ("A=\"b\nc\"\nD=e", "A:b\nc@1 D:e@3"),
            ("A=b\\\nc\nD=e", "A:bc@1 D:e@3"),
            ("A=b\\ \\'", "A:b '@1"),
            (r#"A="\"\\\$\`\n""#, r#"A:"\$`\n@1"#),
            (r"A='\n'", r"A:\n@1"),
            ("A=\"open", "A:open@1"),
            ("A=b=c", "A:b=c@1"),
            ("A\nB=c", "B:c@2"),
            ("A", ""),
            ("export A=b", "export A:b@1"),
            ("A=1\nA=2", "A:1@1 A:2@2"),
            ("", ""),
        ] {
            let found: Vec<String> = parse(text)
                .iter()
                .map(|found| format!("{}:{}@{}", found.name, found.value, found.line))
                .collect();
            assert_eq!(found.join(" "), expected, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_and_lines_point_back_into_it(text in "[A-C=\"'\\\\ #\r\n]{0,80}") {
            for found in parse(&text) {
                let line = text.split('\n').nth(found.line - 1).unwrap();
                prop_assert!(line.contains(&found.name), "{:?} in {:?}", found, text);
            }
        }

        #[test]
        fn a_value_in_single_quotes_is_kept_as_it_is(value in "[^'\0]{0,40}") {
            let found = parse(&format!("A='{value}'\n"));
            prop_assert_eq!(found.len(), 1);
            prop_assert_eq!(&found[0].value, &value);
        }
    }
}
