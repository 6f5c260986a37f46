//! The name of an encoder, as manifests carry it.
//!
//! ```text
//! zstd/1.5.4/level=19
//! zstd/1.5.7/level=15,window=17,pieces=4096
//! zlib/1.3.2/level=9,window=15
//! lz4/1.9.4/level=12,capacity=65536,ahead=16384
//! xz/5.8.4/level=6,dictionary=524288,capacity=65536,ahead=8192
//! ```
//! Library, version, parameters in a fixed order; each parameter at most once, and
//! one that does not apply is left out. Equal specs have equal texts.

use std::fmt;
use std::str::FromStr;

/// A library of encoders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Library {
    /// liblz4.
    Lz4,
    /// liblzma of XZ Utils.
    Xz,
    /// zlib, the original.
    Zlib,
    /// libzstd.
    Zstd,
}

impl Library {
    const ALL: [Self; 4] = [Self::Lz4, Self::Xz, Self::Zlib, Self::Zstd];

    /// Its name in specs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Library::Lz4 => "lz4",
            Library::Xz => "xz",
            Library::Zlib => "zlib",
            Library::Zstd => "zstd",
        }
    }
}

impl fmt::Display for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a block is encoded, but for the version of the library.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Method {
    /// A frame of zstd with its content size and without checksum.
    Zstd {
        /// Compression level.
        level: i32,
        /// Logarithm to the base of two of the largest window.
        window: Option<u32>,
        /// Fed as a stream, this many bytes at a time.
        pieces: Option<u32>,
    },
    /// A zlib stream of the default strategy and memory level.
    Zlib {
        /// Compression level.
        level: u32,
        /// Logarithm to the base of two of the window.
        window: u32,
    },
    /// A block of lz4.
    Lz4 {
        /// Level of the HC encoder; none for the fast one.
        level: Option<i32>,
    },
    /// A block of lz4 of a given size, into which the encoder puts as much as it can.
    Lz4Fill {
        /// Level of the HC encoder; none for the fast one.
        level: Option<i32>,
        /// The size of the block in bytes.
        capacity: u32,
        /// Bytes beyond the block's own that the encoder was shown: it sees
        /// where the last match could go on. None at the end of a file.
        ahead: u32,
    },
    /// A stream of MicroLZMA of a given size, into which the encoder puts as much as
    /// it can.
    MicroLzma {
        /// The preset; from 100 on the extreme one of a hundred less.
        level: u32,
        /// Dictionary size in bytes, at most [`MOST_DICTIONARY`].
        dictionary: u32,
        /// The size of the stream in bytes.
        capacity: u32,
        /// Bytes beyond the stream's own that the encoder was shown.
        ahead: u32,
    },
    /// An .xz file of one block without filters before LZMA2, preset 6 but for the
    /// dictionary, with CRC32.
    Xz {
        /// Dictionary size in bytes.
        dictionary: u32,
    },
}

impl Method {
    /// The library that knows the method.
    #[must_use]
    pub fn library(&self) -> Library {
        match self {
            Method::Zstd { .. } => Library::Zstd,
            Method::Zlib { .. } => Library::Zlib,
            Method::Lz4 { .. } | Method::Lz4Fill { .. } => Library::Lz4,
            Method::Xz { .. } | Method::MicroLzma { .. } => Library::Xz,
        }
    }

    /// Bytes after the block's own that the encoder wants to see.
    #[must_use]
    pub fn ahead(&self) -> usize {
        match self {
            Method::Lz4Fill { ahead, .. } | Method::MicroLzma { ahead, .. } => {
                usize::try_from(*ahead).unwrap_or(usize::MAX)
            }
            _ => 0,
        }
    }

    fn parameters(&self) -> Vec<(&'static str, i64)> {
        let mut list = Vec::new();
        let mut add = |name, value: Option<i64>| list.extend(value.map(|value| (name, value)));
        match *self {
            Method::Zstd {
                level,
                window,
                pieces,
            } => {
                add("level", Some(level.into()));
                add("window", window.map(Into::into));
                add("pieces", pieces.map(Into::into));
            }
            Method::Zlib { level, window } => {
                add("level", Some(level.into()));
                add("window", Some(window.into()));
            }
            Method::Lz4 { level } => add("level", level.map(Into::into)),
            Method::Lz4Fill {
                level,
                capacity,
                ahead,
            } => {
                add("level", level.map(Into::into));
                add("capacity", Some(capacity.into()));
                add("ahead", Some(ahead.into()).filter(|ahead| *ahead != 0));
            }
            Method::Xz { dictionary } => add("dictionary", Some(dictionary.into())),
            Method::MicroLzma {
                level,
                dictionary,
                capacity,
                ahead,
            } => {
                add("level", Some(level.into()));
                add("dictionary", Some(dictionary.into()));
                add("capacity", Some(capacity.into()));
                add("ahead", Some(ahead.into()).filter(|ahead| *ahead != 0));
            }
        }
        list
    }

    /// Within what the libraries take, and within what decoding may cost.
    fn parse(library: Library, parameters: &mut Parameters) -> Option<Self> {
        let window = 10..=27;
        Some(match library {
            Library::Zstd => Method::Zstd {
                level: parameters.take("level", -131_072..=22)?.try_into().ok()?,
                window: parameters.optional("window", window)?,
                pieces: parameters.optional("pieces", 1..=MOST)?,
            },
            Library::Zlib => Method::Zlib {
                level: parameters.take("level", 0..=9)?.try_into().ok()?,
                window: parameters.take("window", 9..=15)?.try_into().ok()?,
            },
            Library::Lz4 => {
                let level = parameters.optional("level", 1..=12)?;
                match parameters.optional("capacity", 1..=MOST)? {
                    None => Method::Lz4 { level },
                    Some(capacity) => Method::Lz4Fill {
                        level,
                        capacity,
                        ahead: parameters.optional("ahead", 1..=MOST)?.unwrap_or(0),
                    },
                }
            }
            Library::Xz => match parameters.optional::<u32>("level", 0..=109)? {
                None => Method::Xz {
                    dictionary: parameters
                        .take("dictionary", 4096..=MOST)?
                        .try_into()
                        .ok()?,
                },
                Some(10..=99) => return None,
                Some(level) => Method::MicroLzma {
                    level,
                    dictionary: parameters
                        .take("dictionary", 4096..=MOST_DICTIONARY.into())?
                        .try_into()
                        .ok()?,
                    capacity: parameters.take("capacity", 6..=MOST)?.try_into().ok()?,
                    ahead: parameters.optional("ahead", 1..=MOST)?.unwrap_or(0),
                },
            },
        })
    }
}

/// The largest size among parameters: 16 MiB, far above any block's.
const MOST: i64 = 16 << 20;

/// The largest dictionary of MicroLZMA: 1 MiB. An encoder takes twelve times as much
/// memory, on every core of a machine that applies a payload.
pub const MOST_DICTIONARY: u32 = 1 << 20;

/// One encoder: a method of one version of a library.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EncoderSpec {
    /// The version, as in `1.5.7`.
    pub version: String,
    /// The method and with it the library.
    pub method: Method,
}

impl fmt::Display for EncoderSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/", self.method.library(), self.version)?;
        for (index, (name, value)) in self.method.parameters().into_iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{name}={value}")?;
        }
        Ok(())
    }
}

/// A text that is no [`EncoderSpec`].
#[derive(Debug, thiserror::Error)]
#[error("\"{}\" names no encoder", .text.escape_default())]
pub struct SpecError {
    /// The text, cut to what is worth showing.
    text: String,
}

/// Longest text of a spec in bytes.
const LONGEST: usize = 256;

impl FromStr for EncoderSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        parse(text)
            // One text for each spec: `level=09` or a different order is another's.
            .filter(|spec| spec.to_string() == text)
            .ok_or_else(|| SpecError {
                text: text.chars().take(LONGEST).collect(),
            })
    }
}

fn parse(text: &str) -> Option<EncoderSpec> {
    if text.len() > LONGEST {
        return None;
    }
    let (library, rest) = text.split_once('/')?;
    let (version, list) = rest.split_once('/')?;
    let library = Library::ALL.into_iter().find(|l| l.name() == library)?;
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !version.split('.').all(digits) {
        return None;
    }
    let mut parameters = Parameters(
        list.split(',')
            .filter(|part| !part.is_empty())
            .map(|part| {
                let (name, value) = part.split_once('=')?;
                Some((name, value.parse().ok()?))
            })
            .collect::<Option<_>>()?,
    );
    let method = Method::parse(library, &mut parameters)?;
    parameters.0.is_empty().then(|| EncoderSpec {
        version: version.to_owned(),
        method,
    })
}

struct Parameters<'a>(Vec<(&'a str, i64)>);

impl Parameters<'_> {
    fn take(&mut self, name: &str, range: std::ops::RangeInclusive<i64>) -> Option<i64> {
        let at = self.0.iter().position(|(found, _)| *found == name)?;
        let (_, value) = self.0.remove(at);
        range.contains(&value).then_some(value)
    }

    /// None when it is there and wrong, none within when it is not there.
    fn optional<T: TryFrom<i64>>(
        &mut self,
        name: &str,
        range: std::ops::RangeInclusive<i64>,
    ) -> Option<Option<T>> {
        if self.0.iter().any(|(found, _)| *found == name) {
            let value = self.take(name, range)?;
            Some(Some(T::try_from(value).ok()?))
        } else {
            Some(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_is_its_text() {
        for text in [
            "zstd/1.5.4/level=19",
            "zstd/1.5.7/level=-5",
            "zstd/1.5.7/level=15,window=17,pieces=4096",
            "zlib/1.3.2/level=9,window=15",
            "zlib/1.2.3.4/level=9,window=15",
            "lz4/1.9.4/",
            "lz4/1.9.4/level=12",
            "lz4/1.9.4/capacity=4096",
            "lz4/1.10.0/level=12,capacity=65536,ahead=16384",
            "xz/5.8.4/dictionary=131072",
            "xz/5.8.4/level=109,dictionary=1048576,capacity=65536",
            "xz/5.8.4/level=6,dictionary=4096,capacity=4096,ahead=8192",
        ] {
            let spec: EncoderSpec = text.parse().unwrap();
            assert_eq!(spec.to_string(), text);
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "zstd",
            "zstd/1.5.4",
            "zstd/1.5.4/",
            "zstd//level=19",
            "zstd/../../x/level=19",
            "zstd/1.5.4/level=023",
            "zstd/1.5.4/level=23",
            "zstd/1.5.4/level=19,level=19",
            "zstd/1.5.4/level=19,colour=1",
            "zstd/1.5.4/window=17,level=19",
            "zstd/1.5.4/level=19,window=99",
            "zlib/1.3.2/level=9",
            "lz4/1.9.4/level=12,ahead=4",
            "lz4/1.9.4/level=12,capacity=99999999999999999999",
            "xz/5.8.4/level=6,dictionary=4096",
            "xz/5.8.4/level=6,dictionary=1048577,capacity=65536",
            "xz/5.8.4/dictionary=4096,capacity=65536",
            "xz/5.8.4/level=10,dictionary=4096,capacity=65536",
            "lzo/2.10/level=9",
        ] {
            assert!(text.parse::<EncoderSpec>().is_err(), "{text}");
        }
        assert!("zstd/1/level=1,".repeat(99).parse::<EncoderSpec>().is_err());
    }
}
