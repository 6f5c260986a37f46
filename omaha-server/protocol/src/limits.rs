//! How much of anything a document may hold. Real requests are about 1 KiB and
//! replies below 2 KiB, so each limit is far from use and near enough to keep
//! hostile input cheap.

/// Size of a whole document in bytes.
pub const DOCUMENT_BYTES: usize = 1 << 20;
/// Elements inside each other.
pub const DEPTH: usize = 32;
/// Attributes of one element.
pub const ATTRIBUTES: usize = 64;
/// Bytes of one attribute value, before entities are resolved.
pub const ATTRIBUTE_BYTES: usize = 16 << 10;
/// `<app>` elements of a document.
pub const APPS: usize = 64;
/// `<event>` elements of one app.
pub const EVENTS: usize = 128;
/// `<url>` elements of one update check.
pub const URLS: usize = 64;
/// `<manifest>` elements of one update check.
pub const MANIFESTS: usize = 64;
/// `<package>` elements of one manifest.
pub const PACKAGES: usize = 256;
/// `<action>` elements of one manifest.
pub const ACTIONS: usize = 64;
