//! The encoders at hand, and which of them made a block.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use codec_libraries::{Lz4, Zstd, ZstdContext, ZstdParameters, xz, zlib_version};
use flate2::{Compress, Compression, FlushCompress, Status};

use super::{CodecError, EncoderSpec, Library, Method};

/// Encodes blocks; may be called from many threads.
pub trait Encoder: Send + Sync {
    /// Encodes all of `plain`. `ahead` is what follows it in its file, from which
    /// [`Method::ahead`] bytes are looked at; fewer when the file has no more.
    ///
    /// # Errors
    /// [`CodecError::Encode`].
    fn encode(&self, plain: &[u8], ahead: &[u8]) -> Result<Vec<u8>, CodecError>;
}

/// An encoder that a payload needs is not at hand.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("encoder {name} is not at hand")]
pub struct MissingEncoder {
    /// As the manifest names it.
    pub name: String,
}

/// A block whose encoder is sought.
#[derive(Debug, Clone, Copy)]
pub struct Sample<'a> {
    /// The block as it is stored.
    pub stored: &'a [u8],
    /// What it decodes to.
    pub plain: &'a [u8],
    /// What follows it in its file, as far as known.
    pub ahead: &'a [u8],
}

/// Every encoder at hand; none by default.
#[derive(Default)]
pub struct Encoders {
    zstd: Vec<Zstd>,
    lz4: Vec<Lz4>,
    /// Contexts of an encoder are costly; one that was asked for is kept.
    made: Mutex<HashMap<EncoderSpec, Arc<dyn Encoder>>>,
}

impl Encoders {
    /// Where further libraries are looked for by default.
    pub const DIRECTORY: &'static str = "/usr/lib/update-engine/encoders";

    /// Those this program carries.
    #[must_use]
    pub fn carried() -> Self {
        Self {
            zstd: vec![Zstd::carried()],
            lz4: vec![Lz4::carried()],
            made: Mutex::default(),
        }
    }

    /// Those this program carries, those of `libzstd*.so*` and `liblz4*.so*` in
    /// `directory`, and the system's own. A file that cannot be loaded, or whose
    /// version is there already, adds nothing: which encoders there are is only
    /// ever a matter of how much smaller an update gets.
    #[must_use]
    pub fn available(directory: &Path) -> Self {
        let mut encoders = Self::carried();
        let mut files: Vec<_> = fs::read_dir(directory)
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.is_absolute())
            .collect();
        files.sort();
        // Bare names: the system knows where its libraries are.
        files.extend(["libzstd.so.1".into(), "liblz4.so.1".into()]);
        for file in &files {
            let name = file.file_name().and_then(|name| name.to_str());
            let Some(name) = name.filter(|name| name.contains(".so")) else {
                continue;
            };
            if name.starts_with("libzstd") {
                add(&mut encoders.zstd, Zstd::open(file), Zstd::version);
            } else if name.starts_with("liblz4") {
                add(&mut encoders.lz4, Lz4::open(file), Lz4::version);
            }
        }
        encoders
    }

    /// Library and version of each, as in `zstd/1.5.7`, in a fixed order.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        [Library::Lz4, Library::Xz, Library::Zlib, Library::Zstd]
            .into_iter()
            .flat_map(|library| {
                let versions = self.versions_of(library).into_iter();
                versions.map(move |version| format!("{library}/{version}"))
            })
            .collect()
    }

    /// The method by each version at hand, the carried one first.
    #[must_use]
    pub fn versions(&self, method: &Method) -> Vec<EncoderSpec> {
        self.versions_of(method.library())
            .into_iter()
            .map(|version| EncoderSpec {
                version,
                method: method.clone(),
            })
            .collect()
    }

    /// The encoder of a spec, if its version is at hand. Asking again gives the same,
    /// until [`Encoders::forget`].
    #[must_use]
    pub fn get(&self, spec: &EncoderSpec) -> Option<Arc<dyn Encoder>> {
        let mut made = lock(&self.made);
        if let Some(encoder) = made.get(spec) {
            return Some(Arc::clone(encoder));
        }
        let encoder = self.make(spec)?;
        made.insert(spec.clone(), Arc::clone(&encoder));
        Some(encoder)
    }

    /// Gives up what encoders keep between blocks, which is many MiB of some. Those that
    /// somebody still holds go on.
    pub fn forget(&self) {
        lock(&self.made).clear();
    }

    /// The encoders that a manifest names, in its order.
    ///
    /// # Errors
    /// The first name that is no encoder at hand.
    pub fn all_of(&self, names: &[String]) -> Result<Vec<Arc<dyn Encoder>>, MissingEncoder> {
        let find = |name: &String| {
            let spec = name.parse().ok();
            spec.and_then(|spec| self.get(&spec))
                .ok_or_else(|| MissingEncoder { name: name.clone() })
        };
        names.iter().map(find).collect()
    }

    /// The first of `candidates` that makes the very bytes of a block.
    #[must_use]
    pub fn prove<'a>(
        &self,
        block: Sample<'_>,
        candidates: &'a [EncoderSpec],
    ) -> Option<&'a EncoderSpec> {
        candidates.iter().find(|spec| self.reproduces(block, spec))
    }

    /// The methods by all versions that make at least one of the samples, the most
    /// fruitful first; none after one that makes all. Trying a few blocks first saves
    /// trying every encoder on every block, and what is left can be ranked again.
    /// The order depends on the samples only.
    #[must_use]
    pub fn rank(&self, samples: &[Sample<'_>], methods: &[Method]) -> Vec<EncoderSpec> {
        let mut ranked = Vec::new();
        for spec in methods.iter().flat_map(|method| self.versions(method)) {
            let made = |sample: &&Sample<'_>| self.reproduces(**sample, &spec);
            let made = samples.iter().filter(made).count();
            if made > 0 {
                ranked.push((made, spec));
            }
            if made == samples.len() {
                break;
            }
        }
        // Stable: equals stay in the order of the methods.
        ranked.sort_by_key(|(made, _)| std::cmp::Reverse(*made));
        ranked.into_iter().map(|(_, spec)| spec).collect()
    }

    fn reproduces(&self, block: Sample<'_>, spec: &EncoderSpec) -> bool {
        self.get(spec)
            .and_then(|encoder| encoder.encode(block.plain, block.ahead).ok())
            .is_some_and(|encoded| encoded == block.stored)
    }

    fn versions_of(&self, library: Library) -> Vec<String> {
        match library {
            Library::Zstd => self.zstd.iter().map(|zstd| zstd.version().into()).collect(),
            Library::Lz4 => self.lz4.iter().map(|lz4| lz4.version().into()).collect(),
            Library::Xz => vec![xz::version()],
            Library::Zlib => vec![zlib_version()],
        }
    }

    fn make(&self, spec: &EncoderSpec) -> Option<Arc<dyn Encoder>> {
        let spec = spec.clone();
        Some(match spec.method {
            Method::Zstd {
                level,
                window,
                pieces,
            } => {
                let version = |zstd: &&Zstd| zstd.version() == spec.version;
                Arc::new(ZstdEncoder {
                    library: self.zstd.iter().find(version)?.clone(),
                    how: ZstdParameters {
                        level,
                        window,
                        pieces: pieces.map(usize::try_from).transpose().ok()?,
                    },
                    spec,
                    contexts: Pool::default(),
                })
            }
            Method::Lz4 { .. } | Method::Lz4Fill { .. } => {
                let version = |lz4: &&Lz4| lz4.version() == spec.version;
                Arc::new(Lz4Encoder {
                    library: self.lz4.iter().find(version)?.clone(),
                    spec,
                })
            }
            Method::Zlib { level, window } => {
                let window = u8::try_from(window).ok()?;
                // The binding panics outside of it.
                if spec.version != zlib_version() || !(9..=15).contains(&window) || level > 9 {
                    return None;
                }
                Arc::new(ZlibEncoder {
                    level: Compression::new(level),
                    window,
                    spec,
                    contexts: Pool::default(),
                })
            }
            Method::Xz { .. } | Method::MicroLzma { .. } => {
                if spec.version != xz::version() {
                    return None;
                }
                Arc::new(XzEncoder { spec })
            }
        })
    }
}

fn add<T>(list: &mut Vec<T>, opened: io::Result<T>, version: impl Fn(&T) -> &str) {
    if let Ok(library) = opened
        && !list.iter().any(|known| version(known) == version(&library))
    {
        list.push(library);
    }
}

/// Contexts that are not in use.
struct Pool<T>(Mutex<Vec<T>>);

impl<T> Default for Pool<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Pool<T> {
    /// Runs `work` with a context. One with which it failed is not used again.
    fn with<R>(
        &self,
        make: impl FnOnce() -> io::Result<T>,
        work: impl FnOnce(&mut T) -> io::Result<R>,
    ) -> io::Result<R> {
        let idle = lock(&self.0).pop();
        let mut context = idle.map_or_else(make, Ok)?;
        let result = work(&mut context)?;
        lock(&self.0).push(context);
        Ok(result)
    }
}

/// What is behind these locks is never left half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn encode_error(spec: &EncoderSpec, plain: &[u8], source: io::Error) -> CodecError {
    CodecError::Encode {
        spec: spec.clone(),
        length: plain.len(),
        source,
    }
}

struct ZstdEncoder {
    spec: EncoderSpec,
    library: Zstd,
    how: ZstdParameters,
    contexts: Pool<ZstdContext>,
}

impl Encoder for ZstdEncoder {
    fn encode(&self, plain: &[u8], _: &[u8]) -> Result<Vec<u8>, CodecError> {
        self.contexts
            .with(
                || self.library.context(),
                |context| context.compress(plain, &self.how),
            )
            .map_err(|error| encode_error(&self.spec, plain, error))
    }
}

struct Lz4Encoder {
    spec: EncoderSpec,
    library: Lz4,
}

impl Lz4Encoder {
    fn run(&self, plain: &[u8], ahead: &[u8]) -> io::Result<Vec<u8>> {
        match self.spec.method {
            Method::Lz4 { level } => self.library.compress(plain, level),
            Method::Lz4Fill {
                level, capacity, ..
            } => {
                let capacity = usize::try_from(capacity).map_err(io::Error::other)?;
                let wanted = self.spec.method.ahead();
                fill(plain, ahead, wanted, |shown| {
                    self.library.fill(shown, capacity, level)
                })
            }
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

impl Encoder for Lz4Encoder {
    fn encode(&self, plain: &[u8], ahead: &[u8]) -> Result<Vec<u8>, CodecError> {
        self.run(plain, ahead)
            .map_err(|error| encode_error(&self.spec, plain, error))
    }
}

struct ZlibEncoder {
    spec: EncoderSpec,
    level: Compression,
    window: u8,
    contexts: Pool<Compress>,
}

impl ZlibEncoder {
    fn run(context: &mut Compress, plain: &[u8]) -> io::Result<Vec<u8>> {
        context.reset();
        // Stored blocks of 16 KiB are the worst that deflate does.
        let mut out = Vec::with_capacity(plain.len() + plain.len() / 1000 + 64);
        let status = context.compress_vec(plain, &mut out, FlushCompress::Finish)?;
        if status == Status::StreamEnd {
            Ok(out)
        } else {
            Err(io::Error::other("the stream did not end"))
        }
    }
}

impl Encoder for ZlibEncoder {
    fn encode(&self, plain: &[u8], _: &[u8]) -> Result<Vec<u8>, CodecError> {
        self.contexts
            .with(
                || {
                    Ok(Compress::new_with_window_bits(
                        self.level,
                        true,
                        self.window,
                    ))
                },
                |context| Self::run(context, plain),
            )
            .map_err(|error| encode_error(&self.spec, plain, error))
    }
}

struct XzEncoder {
    spec: EncoderSpec,
}

impl XzEncoder {
    fn run(&self, plain: &[u8], ahead: &[u8]) -> io::Result<Vec<u8>> {
        match self.spec.method {
            Method::Xz { dictionary } => xz::compress(plain, dictionary),
            Method::MicroLzma {
                level,
                dictionary,
                capacity,
                ..
            } => {
                let extreme = if level < 100 { 0 } else { xz::EXTREME };
                let capacity = usize::try_from(capacity).map_err(io::Error::other)?;
                let wanted = self.spec.method.ahead();
                fill(plain, ahead, wanted, |shown| {
                    xz::fill_microlzma(shown, capacity, (level % 100) | extreme, dictionary)
                })
            }
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

impl Encoder for XzEncoder {
    fn encode(&self, plain: &[u8], ahead: &[u8]) -> Result<Vec<u8>, CodecError> {
        self.run(plain, ahead)
            .map_err(|error| encode_error(&self.spec, plain, error))
    }
}

/// Fills a block by `encoder`, which is shown `plain` and at most `wanted` bytes of
/// `ahead`, and gives how many of these it took: it must be `plain`.
fn fill(
    plain: &[u8],
    ahead: &[u8],
    wanted: usize,
    encoder: impl FnOnce(&[u8]) -> io::Result<(Vec<u8>, usize)>,
) -> io::Result<Vec<u8>> {
    let (block, taken) = if wanted == 0 {
        encoder(plain)?
    } else {
        encoder(&[plain, &ahead[..wanted.min(ahead.len())]].concat())?
    };
    if taken == plain.len() {
        Ok(block)
    } else {
        let length = plain.len();
        Err(io::Error::other(format!("{taken} bytes fit, not {length}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain() -> Vec<u8> {
        (0..60_000_u32)
            .flat_map(|i| (i.wrapping_mul(i) / 977).to_le_bytes())
            .collect()
    }

    fn zstd(level: i32) -> Method {
        Method::Zstd {
            level,
            window: None,
            pieces: None,
        }
    }

    #[test]
    fn an_encoder_of_a_version_that_is_not_at_hand_is_none() {
        let encoders = Encoders::carried();
        for text in [
            "zstd/0.9.9/level=19",
            "zlib/1.1.4/level=9,window=15",
            "lz4/0.1.0/level=12",
            "xz/4.0.0/dictionary=8192",
        ] {
            assert!(encoders.get(&text.parse().unwrap()).is_none(), "{text}");
        }
    }

    #[test]
    fn names_are_those_that_specs_begin_with() {
        let encoders = Encoders::carried();
        let names = encoders.names();
        assert_eq!(names.len(), 4);
        let spec = &encoders.versions(&zstd(3))[0];
        assert!(names.iter().any(|name| {
            spec.to_string()
                .strip_prefix(name)
                .is_some_and(|rest| rest.starts_with('/'))
        }));
    }

    #[test]
    fn an_encoder_is_kept_until_it_is_forgotten() {
        let encoders = Encoders::carried();
        let spec = &encoders.versions(&zstd(3))[0];
        let first = encoders.get(spec).unwrap();
        assert!(Arc::ptr_eq(&first, &encoders.get(spec).unwrap()));
        encoders.forget();
        assert_eq!(Arc::strong_count(&first), 1);
        assert!(!Arc::ptr_eq(&first, &encoders.get(spec).unwrap()));
    }

    #[test]
    fn a_block_is_proven_by_what_made_it_and_by_nothing_else() {
        let encoders = Encoders::carried();
        let plain = plain();
        let made = &encoders.versions(&zstd(7))[0];
        let stored = encoders.get(made).unwrap().encode(&plain, &[]).unwrap();
        let sample = Sample {
            stored: &stored,
            plain: &plain,
            ahead: &[],
        };
        let methods = [zstd(1), zstd(19), zstd(7)];
        let all: Vec<_> = methods.iter().flat_map(|m| encoders.versions(m)).collect();
        assert_eq!(encoders.prove(sample, &all), Some(made));
        assert_eq!(encoders.prove(sample, &all[..2]), None);
        assert_eq!(
            encoders.rank(&[sample], &methods),
            std::slice::from_ref(made)
        );

        let mut flipped = stored.clone();
        flipped[stored.len() / 2] ^= 1;
        let flipped = Sample {
            stored: &flipped,
            ..sample
        };
        assert_eq!(encoders.prove(flipped, &all), None);
    }

    #[test]
    fn one_encoder_serves_many_threads_with_the_same_bytes() {
        let encoders = Encoders::carried();
        let plain = plain();
        for text in [zstd(19), zstd(-3)]
            .into_iter()
            .chain([
                Method::Zstd {
                    level: 15,
                    window: Some(17),
                    pieces: Some(4096),
                },
                Method::Zlib {
                    level: 6,
                    window: 15,
                },
            ])
            .flat_map(|method| encoders.versions(&method))
        {
            let encoder = encoders.get(&text).unwrap();
            let first = encoder.encode(&plain[..50_000], &[]).unwrap();
            std::thread::scope(|scope| {
                for _ in 0..3 {
                    scope.spawn(|| {
                        for length in [50_000, 100, 0, 50_000] {
                            let again = encoder.encode(&plain[..length], &[]).unwrap();
                            assert_eq!(again == first, length == 50_000, "{text}");
                        }
                    });
                }
            });
        }
    }

    #[test]
    fn a_cluster_that_is_not_full_of_its_own_bytes_is_refused() {
        let encoders = Encoders::carried();
        let method = Method::Lz4Fill {
            level: Some(12),
            capacity: 4096,
            ahead: 64,
        };
        let encoder = encoders.get(&encoders.versions(&method)[0]).unwrap();
        let mut state = 1_u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            state.to_be_bytes()[0]
        })
        .take(9000)
        .collect();
        assert!(matches!(
            encoder.encode(&noise, &[]),
            Err(CodecError::Encode { .. })
        ));
    }

    #[test]
    fn a_directory_of_files_that_are_no_libraries_adds_nothing() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("libzstd.so.1"), "not ELF").unwrap();
        fs::create_dir(directory.path().join("liblz4.so")).unwrap();
        let with = Encoders::available(directory.path());
        let without = Encoders::available(Path::new("/nonexistent"));
        assert_eq!(with.names(), without.names());
    }
}
