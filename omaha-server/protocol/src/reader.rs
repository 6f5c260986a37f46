//! Walks a document element by element, bounded in everything. Knows XML, not
//! Omaha: what elements mean is the caller's business.
//!
//! A walker never meets text, comments or processing instructions: the protocol
//! keeps everything in attributes. Qualified names (`x:app`) stay as they are
//! and so match nothing that a walker asks for, as in the original's XPath
//! without namespaces.

use quick_xml::XmlVersion;
use quick_xml::events::{BytesDecl, BytesRef, BytesStart, Event};

use crate::limits;
use crate::{ProtocolError, Quoted};

/// An open tag with its attributes, entities resolved.
pub(crate) struct Element {
    name: String,
    attributes: Vec<(String, String)>,
    /// Byte offset of its `<`.
    pub(crate) position: usize,
}

impl Element {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes
            .iter()
            .find_map(|(key, value)| (key == name).then_some(value.as_str()))
    }

    pub(crate) fn owned(&self, name: &str) -> Option<String> {
        self.attribute(name).map(str::to_owned)
    }

    /// The attribute's text, empty when it is missing.
    pub(crate) fn text(&self, name: &str) -> String {
        self.owned(name).unwrap_or_default()
    }

    /// `true` or `1` in any letter case; everything else is false.
    pub(crate) fn flag(&self, name: &str) -> bool {
        self.attribute(name)
            .is_some_and(|value| value.eq_ignore_ascii_case("true") || value == "1")
    }

    /// The literal `true` and nothing else, for attributes that every client reads so.
    pub(crate) fn exactly_true(&self, name: &str) -> bool {
        self.attribute(name) == Some("true")
    }

    /// See [`leading_integer`].
    pub(crate) fn integer(&self, name: &str) -> Option<i64> {
        self.attribute(name).and_then(leading_integer)
    }

    /// As [`Element::integer`] for protocol codes: 0 when missing, saturated to 32 bits.
    pub(crate) fn code(&self, name: &str) -> i32 {
        let value = self.integer(name).unwrap_or(0);
        i32::try_from(value).unwrap_or(if value < 0 { i32::MIN } else { i32::MAX })
    }
}

/// The base-10 number a text begins with, after white space, as C's `strtoll`
/// reads it: junk behind it is ignored, too large values saturate. `None`
/// without a single digit.
fn leading_integer(text: &str) -> Option<i64> {
    let text = text.trim_start();
    let (sign, digits) = match text.as_bytes().first() {
        Some(b'-') => (-1, &text[1..]),
        Some(b'+') => (1, &text[1..]),
        _ => (1, text),
    };
    let mut value: Option<i64> = None;
    for digit in digits.chars().map_while(|c| c.to_digit(10)) {
        // Built with its sign, for the lowest i64 has no positive twin.
        let accumulated = value.unwrap_or(0).saturating_mul(10);
        value = Some(accumulated.saturating_add(sign * i64::from(digit)));
    }
    value
}

/// A cursor in a document whose root has been entered.
pub(crate) struct Reader<'a> {
    xml: quick_xml::Reader<&'a [u8]>,
    depth: usize,
}

impl<'a> Reader<'a> {
    /// Checks the document as a whole, enters its root and hands it to `walk`;
    /// afterwards the rest of the document is read to its end, so that a document
    /// is only accepted when all of it is well-formed.
    pub(crate) fn document<T>(
        bytes: &'a [u8],
        root: &'static str,
        walk: impl FnOnce(&mut Self, &Element) -> Result<T, ProtocolError>,
    ) -> Result<T, ProtocolError> {
        let text = checked_text(bytes)?;
        let mut xml = quick_xml::Reader::from_str(text);
        xml.config_mut().expand_empty_elements = true;
        let mut reader = Self { xml, depth: 0 };
        let Some(element) = reader.next_start()? else {
            return Err(ProtocolError::Truncated {
                open: 0,
                position: text.len(),
            });
        };
        if element.name != root {
            return Err(ProtocolError::WrongRoot {
                found: shortened(&element.name),
                expected: root,
                position: element.position,
            });
        }
        let walked = walk(&mut reader, &element)?;
        reader.leave_to(0)?;
        match reader.next_start()? {
            Some(second) => Err(ProtocolError::OutsideRoot {
                position: second.position,
            }),
            None => Ok(walked),
        }
    }

    /// Calls `visit` for each child of the element that was entered last, up to
    /// its end. What a visit leaves unread inside of the child is skipped.
    pub(crate) fn children(
        &mut self,
        mut visit: impl FnMut(&mut Self, &Element) -> Result<(), ProtocolError>,
    ) -> Result<(), ProtocolError> {
        let inside = self.depth;
        while let Some(child) = self.next_start()? {
            visit(self, &child)?;
            self.leave_to(inside)?;
        }
        Ok(())
    }

    /// Enters the next element, or leaves the current one and returns `None`.
    fn next_start(&mut self) -> Result<Option<Element>, ProtocolError> {
        loop {
            let position = self.position();
            match self.xml.read_event() {
                Ok(Event::Start(tag)) => {
                    if self.depth == limits::DEPTH {
                        return Err(ProtocolError::TooDeep {
                            limit: limits::DEPTH,
                            position,
                        });
                    }
                    self.depth += 1;
                    return element(&tag, position).map(Some);
                }
                // A lone end tag never gets here: the parser matches the names.
                Ok(Event::End(_)) => {
                    self.depth = self.depth.saturating_sub(1);
                    return Ok(None);
                }
                Ok(Event::Eof) if self.depth == 0 => return Ok(None),
                Ok(Event::Eof) => {
                    return Err(ProtocolError::Truncated {
                        open: self.depth,
                        position,
                    });
                }
                Ok(Event::DocType(_)) => return Err(ProtocolError::Doctype { position }),
                Ok(Event::Decl(declaration)) => check_declaration(&declaration, position)?,
                Ok(Event::Text(text)) => {
                    if self.depth == 0 && !text.trim_ascii().is_empty() {
                        return Err(ProtocolError::OutsideRoot { position });
                    }
                }
                Ok(Event::CData(_) | Event::GeneralRef(_)) if self.depth == 0 => {
                    return Err(ProtocolError::OutsideRoot { position });
                }
                Ok(Event::GeneralRef(reference)) => check_reference(&reference, position)?,
                Ok(Event::CData(_) | Event::Comment(_) | Event::PI(_)) => {}
                Ok(Event::Empty(_)) => unreachable!("empty elements are expanded"),
                Err(error) => {
                    let position = usize::try_from(self.xml.error_position()).unwrap_or(position);
                    return Err(malformed(position, &error));
                }
            }
        }
    }

    fn leave_to(&mut self, depth: usize) -> Result<(), ProtocolError> {
        while self.depth > depth {
            self.next_start()?;
        }
        Ok(())
    }

    fn position(&self) -> usize {
        usize::try_from(self.xml.buffer_position())
            .expect("the document is a slice, so offsets into it fit")
    }
}

/// Appends unless the list is full.
pub(crate) fn push_bounded<T>(
    list: &mut Vec<T>,
    item: T,
    what: &'static str,
    limit: usize,
    position: usize,
) -> Result<(), ProtocolError> {
    if list.len() == limit {
        return Err(ProtocolError::TooMany {
            what,
            limit,
            position,
        });
    }
    list.push(item);
    Ok(())
}

/// Size, encoding and character set, before anything is parsed.
fn checked_text(bytes: &[u8]) -> Result<&str, ProtocolError> {
    if bytes.is_empty() {
        return Err(ProtocolError::Empty);
    }
    if bytes.len() > limits::DOCUMENT_BYTES {
        return Err(ProtocolError::TooLarge {
            size: bytes.len(),
            limit: limits::DOCUMENT_BYTES,
        });
    }
    let text = std::str::from_utf8(bytes).map_err(|error| ProtocolError::NotUtf8 {
        position: error.valid_up_to(),
    })?;
    match text.char_indices().find(|&(_, c)| !is_xml_char(c)) {
        Some((position, character)) => Err(ProtocolError::ForbiddenCharacter {
            character: character.into(),
            position,
        }),
        None => Ok(text),
    }
}

/// XML 1.0, production [2] `Char`.
pub(crate) fn is_xml_char(c: char) -> bool {
    !matches!(c, '\0'..='\u{8}' | '\u{b}' | '\u{c}' | '\u{e}'..='\u{1f}' | '\u{fffe}' | '\u{ffff}')
}

fn element(tag: &BytesStart<'_>, position: usize) -> Result<Element, ProtocolError> {
    let mut attributes = Vec::new();
    for attribute in tag.attributes() {
        let attribute = attribute.map_err(|error| malformed(position, &error.into()))?;
        if attribute.value.len() > limits::ATTRIBUTE_BYTES {
            return Err(ProtocolError::AttributeTooLong {
                attribute: shortened(attribute.key.0),
                limit: limits::ATTRIBUTE_BYTES,
                position,
            });
        }
        let value = attribute
            .normalized_value(XmlVersion::Explicit1_0)
            .map_err(|error| malformed(position, &error))?;
        // A character reference can spell what may not stand literally.
        if let Some(character) = value.chars().find(|&c| !is_xml_char(c)) {
            return Err(ProtocolError::ForbiddenCharacter {
                character: character.into(),
                position,
            });
        }
        let pair = (attribute.key.0.to_owned(), value.into_owned());
        push_bounded(
            &mut attributes,
            pair,
            "attributes",
            limits::ATTRIBUTES,
            position,
        )?;
    }
    Ok(Element {
        name: tag.name().0.to_owned(),
        attributes,
        position,
    })
}

fn check_declaration(declaration: &BytesDecl<'_>, position: usize) -> Result<(), ProtocolError> {
    let encoding = match declaration.encoding() {
        None => return Ok(()),
        Some(encoding) => encoding.map_err(|error| malformed(position, &error.into()))?,
    };
    let known = ["utf-8", "utf8", "us-ascii"];
    if known.iter().any(|name| encoding.eq_ignore_ascii_case(name)) {
        Ok(())
    } else {
        Err(ProtocolError::NotUtf8 { position })
    }
}

/// Without a document type only the five predefined entities exist.
fn check_reference(reference: &BytesRef<'_>, position: usize) -> Result<(), ProtocolError> {
    let character = reference
        .resolve_char_ref()
        .map_err(|error| malformed(position, &error))?;
    match character {
        Some(c) if !is_xml_char(c) => Err(ProtocolError::ForbiddenCharacter {
            character: c.into(),
            position,
        }),
        Some(_) => Ok(()),
        None if quick_xml::escape::resolve_predefined_entity(reference).is_some() => Ok(()),
        None => Err(malformed(
            position,
            &quick_xml::escape::EscapeError::UnrecognizedEntity(
                0..reference.len(),
                shortened(reference),
            )
            .into(),
        )),
    }
}

fn malformed(position: usize, error: &quick_xml::Error) -> ProtocolError {
    ProtocolError::Malformed {
        position,
        // It may quote names of any length.
        source: format!("{:.200}", Quoted(&error.to_string())).into(),
    }
}

/// At most 40 characters of a name from the wire, fit for an error text.
fn shortened(name: &str) -> String {
    format!("{:.40}", Quoted(name))
}
