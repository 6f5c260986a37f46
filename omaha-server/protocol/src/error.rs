use thiserror::Error;

/// Why a document was refused. Positions are byte offsets into the document.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// No bytes at all.
    #[error("document is empty")]
    Empty,
    /// More than [`limits::DOCUMENT_BYTES`](crate::limits::DOCUMENT_BYTES).
    #[error("document has {size} bytes, the limit is {limit}")]
    TooLarge {
        /// Bytes given.
        size: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// A byte that is not UTF-8, or a declaration that promises another encoding.
    #[error("document is not utf-8 at byte {position}")]
    NotUtf8 {
        /// Where.
        position: usize,
    },
    /// A character that XML 1.0 does not allow, literally or as `&#…;`.
    #[error("character U+{character:04X} is not allowed in xml, at byte {position}")]
    ForbiddenCharacter {
        /// Its code point.
        character: u32,
        /// Where it stands, or where the tag with it begins.
        position: usize,
    },
    /// A document type declaration: never needed, and the door to entity tricks.
    #[error("a document type declaration (DOCTYPE) is refused, at byte {position}")]
    Doctype {
        /// Where.
        position: usize,
    },
    /// The outermost element is another one than expected.
    #[error("root element is `{found}` instead of `{expected}` at byte {position}")]
    WrongRoot {
        /// Name found, cut if long.
        found: String,
        /// Name expected.
        expected: &'static str,
        /// Where its tag begins.
        position: usize,
    },
    /// Text or elements before or after the root element.
    #[error("content outside of the root element at byte {position}")]
    OutsideRoot {
        /// Where.
        position: usize,
    },
    /// The document ends while elements are open.
    #[error("document ends at byte {position} with {open} elements open")]
    Truncated {
        /// How many elements are still open; none when the root is missing.
        open: usize,
        /// Length of the document.
        position: usize,
    },
    /// Elements nested deeper than [`limits::DEPTH`](crate::limits::DEPTH).
    #[error("elements are nested deeper than {limit} at byte {position}")]
    TooDeep {
        /// Levels allowed.
        limit: usize,
        /// Where the offending tag begins.
        position: usize,
    },
    /// More of something than its limit in [`limits`](crate::limits).
    #[error("more than {limit} {what} at byte {position}")]
    TooMany {
        /// What there is too much of, in the plural.
        what: &'static str,
        /// How many are allowed.
        limit: usize,
        /// Where the tag of the first one too many begins.
        position: usize,
    },
    /// A value longer than [`limits::ATTRIBUTE_BYTES`](crate::limits::ATTRIBUTE_BYTES).
    #[error("attribute `{attribute}` is longer than {limit} bytes in the tag at byte {position}")]
    AttributeTooLong {
        /// Its name, cut if long.
        attribute: String,
        /// Bytes allowed.
        limit: usize,
        /// Where the tag begins.
        position: usize,
    },
    /// Anything else that is not well-formed XML.
    #[error("malformed xml at byte {position}")]
    Malformed {
        /// Where the parser stopped, or where the tag in question begins.
        position: usize,
        /// What the parser says.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}
