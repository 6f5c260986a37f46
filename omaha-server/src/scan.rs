//! From a folder to a [`Catalogue`], again and again. Reads files, writes none.
//!
//! A file is offered when all of this holds:
//! - it has rested: the same at two scans, or unchanged for [`SETTLED`];
//! - it is a whole payload: as long as its manifest says and with the right hash
//!   for each of its parts, so that a copy under way is not offered however long
//!   it pauses;
//! - its labels are known.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Seek};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use payload::recompress::EncoderSpec;
use payload::{Event, Format, Limits, PayloadError, PayloadStream, Release, Trust};
use sha1::{Digest, Sha1};

use crate::ServerError;
use crate::catalogue::{Artifact, Catalogue, FileIdentity, LeftOut};
use crate::labels::{Defaults, Labels, Sidecar, label};

/// A file this old is taken as finished without a second look.
pub const SETTLED: Duration = Duration::from_secs(2);

/// Folders inside each other; more than labels can make use of.
const MAX_DEPTH: usize = 8;
/// Files looked at, of any kind.
const MAX_FILES: usize = 100_000;
const MAX_SIDECAR_BYTES: u64 = 64 << 10;
const MAGIC: &[u8; 4] = b"CrAU";
const CHUNK_BYTES: usize = 256 << 10;

/// Watches one folder. What it has hashed once it does not read again until the
/// file changes.
#[derive(Debug)]
pub struct Scanner {
    folder: PathBuf,
    defaults: Defaults,
    seen: HashMap<PathBuf, Seen>,
}

#[derive(Debug)]
struct Seen {
    identity: FileIdentity,
    content: Content,
}

/// What is in a file, as far as it matters here.
#[derive(Debug, Clone)]
enum Content {
    /// It has not rested yet.
    Unsettled,
    NotAPayload,
    /// A payload that no machine could install.
    Broken(String),
    Payload(Box<Facts>),
}

/// What a whole payload says of itself.
#[derive(Debug, Clone)]
struct Facts {
    is_delta: bool,
    format: Format,
    source_sha256: Option<[u8; 32]>,
    encoders: Vec<String>,
    release: Release,
    sha1: [u8; 20],
    sha256: [u8; 32],
}

impl Scanner {
    /// A scanner of `folder`, which must be a readable folder. Nothing is scanned yet.
    pub fn new(folder: &Path, defaults: Defaults) -> Result<Self, ServerError> {
        let read_folder = |source| ServerError::ReadFolder {
            folder: folder.to_owned(),
            source,
        };
        let folder = folder.canonicalize().map_err(read_folder)?;
        fs::read_dir(&folder).map_err(read_folder)?;
        Ok(Self {
            folder,
            defaults,
            seen: HashMap::new(),
        })
    }

    /// The folder, without symbolic links in its path.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// As [`Scanner::scan`], but gives files that are new and yet quiet the time to
    /// be taken in, so that a payload made a moment ago is there at once. Blocks
    /// for up to [`SETTLED`] and the time of hashing.
    pub fn scan_settled(&mut self) -> Result<Catalogue, ServerError> {
        let catalogue = self.scan(SystemTime::now())?;
        let settled = |seen: &Seen| !matches!(seen.content, Content::Unsettled);
        if self.seen.values().all(settled) {
            return Ok(catalogue);
        }
        std::thread::sleep(SETTLED);
        self.scan(SystemTime::now())
    }

    /// Looks at the folder as it is. Fails only when the folder itself cannot be
    /// read; trouble with a file ends up in [`Catalogue::left_out`].
    pub fn scan(&mut self, now: SystemTime) -> Result<Catalogue, ServerError> {
        let mut catalogue = Catalogue::default();
        let files = self.files(&mut catalogue.left_out)?;
        let mut seen = HashMap::new();
        for path in &files {
            let has_sidecar = files.contains(&sidecar_path(path));
            match self.look(path, now) {
                Ok(found) => {
                    self.sort(path, &found, has_sidecar, &mut catalogue);
                    seen.insert(path.clone(), found);
                }
                // Removed since the folder was listed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => catalogue.left_out.push(LeftOut {
                    path: path.clone(),
                    reason: format!("it cannot be read: {error}"),
                }),
            }
        }
        self.seen = seen;
        catalogue.left_out.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(catalogue)
    }

    /// All regular files in order, hidden ones and links out of the folder aside.
    fn files(&self, left_out: &mut Vec<LeftOut>) -> Result<BTreeSet<PathBuf>, ServerError> {
        let mut files = BTreeSet::new();
        let mut folders = vec![(self.folder.clone(), 0)];
        while let Some((folder, depth)) = folders.pop() {
            let entries = match list(&folder) {
                Ok(entries) => entries,
                Err(source) if depth == 0 => {
                    return Err(ServerError::ReadFolder { folder, source });
                }
                Err(error) => {
                    let reason = format!("it cannot be read: {error}");
                    left_out.push(LeftOut {
                        path: folder,
                        reason,
                    });
                    continue;
                }
            };
            for path in entries {
                let kind = match self.kind(&path) {
                    Ok(kind) => kind,
                    // Vanished, or a link to nowhere.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => Kind::Refused(format!("it cannot be read: {error}")),
                };
                match kind {
                    Kind::File if files.len() < MAX_FILES => {
                        files.insert(path);
                    }
                    Kind::Folder if depth < MAX_DEPTH => folders.push((path, depth + 1)),
                    Kind::Refused(reason) => left_out.push(LeftOut { path, reason }),
                    Kind::File => {
                        let reason = format!("there are more than {MAX_FILES} files before it");
                        left_out.push(LeftOut { path, reason });
                        return Ok(files);
                    }
                    Kind::Folder => {
                        let reason = format!("it lies more than {MAX_DEPTH} folders deep");
                        left_out.push(LeftOut { path, reason });
                    }
                    Kind::Special => {}
                }
            }
        }
        Ok(files)
    }

    fn kind(&self, path: &Path) -> io::Result<Kind> {
        if path.symlink_metadata()?.is_symlink() && !path.canonicalize()?.starts_with(&self.folder)
        {
            return Ok(Kind::Refused(
                "it is a link out of the payload folder".to_owned(),
            ));
        }
        let metadata = path.metadata()?;
        Ok(if metadata.is_file() {
            Kind::File
        } else if metadata.is_dir() {
            Kind::Folder
        } else {
            Kind::Special
        })
    }

    /// What is in the file, from memory if it has not changed.
    fn look(&self, path: &Path, now: SystemTime) -> io::Result<Seen> {
        let identity = FileIdentity::of(&path.metadata()?);
        let before = self.seen.get(path).filter(|seen| seen.identity == identity);
        let content = match before {
            Some(seen) if !matches!(seen.content, Content::Unsettled) => seen.content.clone(),
            Some(_) => examine(path, identity)?,
            None if has_rested(&identity, now) => examine(path, identity)?,
            None if begins_with_magic(&mut File::open(path)?)? => Content::Unsettled,
            None => Content::NotAPayload,
        };
        Ok(Seen { identity, content })
    }

    /// Puts the file where it belongs in the catalogue.
    fn sort(&self, path: &Path, found: &Seen, has_sidecar: bool, catalogue: &mut Catalogue) {
        let result = match &found.content {
            Content::NotAPayload => return,
            Content::Unsettled => Err("it is being written".to_owned()),
            Content::Broken(reason) => Err(reason.clone()),
            Content::Payload(facts) => {
                self.labels(path, has_sidecar, facts)
                    .map(|(name, labels)| Artifact {
                        labels,
                        is_delta: facts.is_delta,
                        format: facts.format,
                        source_sha256: facts.source_sha256,
                        encoders: facts.encoders.clone(),
                        min_source_version: facts.release.min_source_version.clone(),
                        expires: facts.release.expires,
                        path: path.to_owned(),
                        name,
                        sha1: facts.sha1,
                        sha256: facts.sha256,
                        identity: found.identity,
                    })
            }
        };
        match result {
            Ok(artifact) => catalogue.artifacts.push(artifact),
            Err(reason) => catalogue.left_out.push(LeftOut {
                path: path.to_owned(),
                reason,
            }),
        }
    }

    fn labels(
        &self,
        path: &Path,
        has_sidecar: bool,
        facts: &Facts,
    ) -> Result<(String, Labels), String> {
        let relative = path.strip_prefix(&self.folder).unwrap_or(path);
        let name = relative
            .to_str()
            .and_then(|_| path.file_name()?.to_str())
            .ok_or("its name is not utf-8")?;
        let sidecar = if has_sidecar {
            Some(read_sidecar(&sidecar_path(path)).map_err(|e| format!("{name}.json: {e}"))?)
        } else {
            None
        };
        let labels = label(relative, sidecar.as_ref(), &facts.release, &self.defaults)
            .map_err(|e| e.to_string())?;
        // A machine that can take version 2 tells which image it runs.
        let found_by_image = facts.format != Format::V1 && facts.source_sha256.is_some();
        if facts.is_delta && !found_by_image && labels.from_version.is_none() {
            return Err(format!(
                "it is a delta; say over which version it goes in a file {name}.json: \
                 {{\"from_version\": \"1.2.3\"}}"
            ));
        }
        Ok((name.to_owned(), labels))
    }
}

enum Kind {
    File,
    Folder,
    /// A pipe, a device.
    Special,
    Refused(String),
}

impl FileIdentity {
    pub(crate) fn of(metadata: &Metadata) -> Self {
        Self {
            inode: (metadata.dev(), metadata.ino()),
            size: metadata.len(),
            modified: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// Hidden names are left to programs that copy: `.update.gz.Xa91bc` and the like.
fn list(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            paths.push(entry.path());
        }
    }
    Ok(paths)
}

/// A time in the future says nothing, so such a file needs the second look.
fn has_rested(identity: &FileIdentity, now: SystemTime) -> bool {
    now.duration_since(identity.modified)
        .is_ok_and(|age| age >= SETTLED)
}

/// Reads the whole file once, in bounded memory: hashes it, and checks it as a
/// machine would, so that one that was copied badly is found here and not there.
/// Only the signature is not judged, for the server needs no keys.
fn examine(path: &Path, identity: FileIdentity) -> io::Result<Content> {
    let mut file = File::open(path)?;
    if !begins_with_magic(&mut file)? {
        return Ok(Content::NotAPayload);
    }
    let mut sha1 = Sha1::new();
    let anyone = Trust::allow_unsigned(Vec::new());
    let mut stream = PayloadStream::new(Limits::default(), &anyone);
    let mut chunk = vec![0; CHUNK_BYTES];
    file.rewind()?;
    loop {
        let count = file.read(&mut chunk)?;
        if count == 0 {
            break;
        }
        sha1.update(&chunk[..count]);
        stream.push(&chunk[..count]);
        if let Err(reason) = check_arrived(&mut stream, identity.size) {
            return Ok(Content::Broken(reason));
        }
    }
    let verified = match stream.finish() {
        Ok(verified) => verified,
        Err(error) => return Ok(Content::Broken(in_one_line(&error))),
    };
    // What was read must be what was looked at, and still be there.
    let unchanged = |metadata: Metadata| FileIdentity::of(&metadata) == identity;
    if !unchanged(file.metadata()?) || !unchanged(path.metadata()?) {
        return Ok(Content::Unsettled);
    }
    let manifest = verified.manifest();
    Ok(Content::Payload(Box::new(Facts {
        is_delta: manifest.is_delta(),
        format: manifest.format,
        source_sha256: manifest.partition.old.map(|old| old.sha256),
        encoders: libraries(&manifest.encoders),
        release: manifest.release.clone().unwrap_or_default(),
        sha1: sha1.finalize().into(),
        sha256: *verified.sha256(),
    })))
}

/// Library and version of encoders, each once: whoever has these has every level of
/// them. What cannot be read stays as it is, and no machine has it.
fn libraries(encoders: &[String]) -> Vec<String> {
    let libraries = encoders
        .iter()
        .map(|name| match name.parse::<EncoderSpec>() {
            Ok(spec) => format!("{}/{}", spec.method.library(), spec.version),
            Err(_) => name.clone(),
        });
    libraries.collect::<BTreeSet<_>>().into_iter().collect()
}

/// Takes what the stream has to say so far; operations are hashed and dropped.
fn check_arrived(stream: &mut PayloadStream, file_size: u64) -> Result<(), String> {
    while let Some(event) = stream.next_event().map_err(|error| in_one_line(&error))? {
        if let Event::Metadata { manifest, .. } = event
            && manifest.payload_size() != file_size
        {
            return Err(format!(
                "it has {file_size} bytes, but {} by its manifest; is it still being copied?",
                manifest.payload_size()
            ));
        }
    }
    Ok(())
}

fn begins_with_magic(file: &mut File) -> io::Result<bool> {
    let mut magic = [0; MAGIC.len()];
    match file.read_exact(&mut magic) {
        Ok(()) => Ok(&magic == MAGIC),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

fn in_one_line(error: &PayloadError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

fn sidecar_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".json");
    PathBuf::from(name)
}

fn read_sidecar(path: &Path) -> Result<Sidecar, String> {
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(MAX_SIDECAR_BYTES + 1).read_to_string(&mut text))
        .map_err(|error| format!("cannot be read: {error}"))?;
    if u64::try_from(text.len()).is_ok_and(|length| length > MAX_SIDECAR_BYTES) {
        return Err(format!("is longer than {MAX_SIDECAR_BYTES} bytes"));
    }
    serde_json::from_str(&text).map_err(|error| error.to_string())
}
