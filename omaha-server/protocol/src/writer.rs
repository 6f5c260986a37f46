//! Writes elements in the layout of `update_engine`: one element per line, four
//! spaces per level, explicit end tags, attributes in the order given.

use std::fmt::Write;

use crate::reader::is_xml_char;

pub(crate) struct Writer {
    text: String,
    open: Vec<&'static str>,
}

impl Writer {
    pub(crate) fn new() -> Self {
        Self {
            text: "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n".to_owned(),
            open: Vec::new(),
        }
    }

    /// Begins an open tag; finish it with [`Tag::leaf`] or [`Tag::parent`].
    pub(crate) fn tag(&mut self, name: &'static str) -> Tag<'_> {
        self.indent();
        self.text.push('<');
        self.text.push_str(name);
        Tag { writer: self, name }
    }

    /// Ends the innermost parent.
    pub(crate) fn end(&mut self) {
        if let Some(name) = self.open.pop() {
            self.indent();
            self.end_tag(name);
        }
    }

    pub(crate) fn finish(mut self) -> String {
        while !self.open.is_empty() {
            self.end();
        }
        self.text
    }

    fn indent(&mut self) {
        for _ in &self.open {
            self.text.push_str("    ");
        }
    }

    fn end_tag(&mut self, name: &str) {
        self.text.push_str("</");
        self.text.push_str(name);
        self.text.push_str(">\n");
    }
}

/// An open tag that still takes attributes.
#[must_use]
pub(crate) struct Tag<'a> {
    writer: &'a mut Writer,
    name: &'static str,
}

impl Tag<'_> {
    pub(crate) fn attribute(self, name: &str, value: &str) -> Self {
        let text = &mut self.writer.text;
        text.push(' ');
        text.push_str(name);
        text.push_str("=\"");
        push_escaped(text, value);
        text.push('"');
        self
    }

    pub(crate) fn number(self, name: &str, value: impl Into<i128>) -> Self {
        self.attribute(name, &value.into().to_string())
    }

    pub(crate) fn boolean(self, name: &str, value: bool) -> Self {
        self.attribute(name, if value { "true" } else { "false" })
    }

    pub(crate) fn optional(self, name: &str, value: Option<&str>) -> Self {
        match value {
            Some(value) => self.attribute(name, value),
            None => self,
        }
    }

    pub(crate) fn optional_number(self, name: &str, value: Option<impl Into<i128>>) -> Self {
        match value {
            Some(value) => self.number(name, value),
            None => self,
        }
    }

    /// Ends the element.
    pub(crate) fn leaf(self) {
        self.writer.text.push('>');
        self.writer.end_tag(self.name);
    }

    /// Leaves the element open for children, until [`Writer::end`].
    pub(crate) fn parent(self) {
        self.writer.text.push_str(">\n");
        self.writer.open.push(self.name);
    }

    /// As [`Tag::parent`], with the space that `update_engine` leaves before `>`.
    pub(crate) fn spaced_parent(self) {
        self.writer.text.push_str(" >\n");
        self.writer.open.push(self.name);
    }
}

/// As libxml2 escapes for `update_engine`: markup by name, non-ASCII and CR by
/// number, control characters dropped, tab and LF as they are. The original
/// leaves `"` as it is, which tears the attribute apart; here it is escaped.
fn push_escaped(text: &mut String, value: &str) {
    for c in value.chars() {
        match c {
            '<' => text.push_str("&lt;"),
            '>' => text.push_str("&gt;"),
            '&' => text.push_str("&amp;"),
            '"' => text.push_str("&quot;"),
            '\r' => text.push_str("&#13;"),
            c if !is_xml_char(c) => {}
            c if c.is_ascii() => text.push(c),
            c => write!(text, "&#x{:X};", u32::from(c)).expect("writing to a string cannot fail"),
        }
    }
}
