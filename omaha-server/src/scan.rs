//! From a folder to a [`Catalogue`], again and again. Reads files, writes none.
//!
//! A file is offered when all of this holds:
//! - it has rested: the same for [`SETTLED`], or unchanged for that long;
//! - it is a whole payload: as long as its manifest says and with the right hash
//!   for each of its parts, so that a copy under way is not offered however long
//!   it pauses;
//! - its labels are known.
//!
//! Looking is quick and reading is not: a [survey](Scanner::survey) notices what has
//! come, gone or got other labels, and what is new is then [read](Scanner::read_next)
//! file by file. What is not there is not offered; what cannot be looked at for a
//! moment stays as it was known. What is there, is another than before and cannot be
//! opened is not known any more.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Seek};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use omaha_protocol::{OS_APP_ID, same_app_id};
use payload::recompress::EncoderSpec;
use payload::{Event, Format, Limits, PayloadStream, Release, Trust};
use sha1::{Digest, Sha1};
use sha2::Sha256;

use crate::ServerError;
use crate::catalogue::{Artifact, CHUNK_BYTES, Catalogue, LeftOut};
use crate::error::in_one_line;
use crate::labels::{Defaults, Labels, Sidecar, label};

/// A file this old is taken as finished without a second look.
pub const SETTLED: Duration = Duration::from_secs(2);
/// How long a file at most is let alone that fails again and again when it is read: it
/// may be large, and its disk slow to give up.
pub const LONGEST_WAIT: Duration = Duration::from_secs(10 * 60);

/// Folders inside each other; more than labels can make use of.
const MAX_DEPTH: usize = 8;
/// Files looked at, of any kind.
const MAX_FILES: usize = 100_000;
const MAX_SIDECAR_BYTES: u64 = 64 << 10;
const MAGIC: &[u8; 4] = b"CrAU";

/// Watches one folder. What it has read once it does not read again until the
/// file changes.
#[derive(Debug)]
pub struct Scanner {
    folder: PathBuf,
    defaults: Defaults,
    stop: Arc<AtomicBool>,
    suspects: Suspects,
    files: BTreeMap<PathBuf, Seen>,
    /// What is no file to offer or could not be looked at.
    left_out: Vec<LeftOut>,
    /// All that payloads here were ever for, the operating system aside.
    app_ids: BTreeSet<String>,
}

/// Files that do not hold what was read in them, or cannot be read any more, whatever
/// their times say: a disk rots, and a write from another host may not show.
#[derive(Debug, Clone, Default)]
pub struct Suspects(Arc<Mutex<BTreeSet<PathBuf>>>);

impl Suspects {
    /// Lets the next [survey](Scanner::survey) have this file read again. It stays on
    /// offer until then.
    pub fn add(&self, path: &Path) {
        let mut paths = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        paths.insert(path.to_owned());
    }

    pub(crate) fn take(&self) -> BTreeSet<PathBuf> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// By what a file is recognised as unchanged without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileIdentity {
    /// Device and inode number.
    inode: (u64, u64),
    size: u64,
    /// Last change of the content.
    modified: SystemTime,
    /// Last change of content or attributes, in seconds and nanoseconds. Unlike
    /// the time above it cannot be set back by tools that copy times.
    changed: (i64, i64),
}

#[derive(Debug)]
struct Seen {
    identity: FileIdentity,
    content: Content,
    /// What its sidecar says, or why that is not known.
    sidecar: Option<Result<SeenSidecar, String>>,
    /// Until it has been read: not before this time.
    read_at: Option<SystemTime>,
}

#[derive(Debug, Clone)]
struct SeenSidecar {
    identity: FileIdentity,
    said: Sidecar,
}

/// What is in a file, as far as it matters here.
#[derive(Debug, Clone)]
enum Content {
    /// It has not rested yet.
    Unsettled,
    /// It has rested, and nobody has read it yet.
    Unread,
    /// The last attempt to read it failed.
    Unreadable {
        reason: String,
        /// Until the next one; longer after each that failed.
        wait: Duration,
    },
    NotAPayload,
    /// A payload that no machine could install.
    Broken(String),
    Payload(Arc<Facts>),
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
    chunks: Arc<[[u8; 32]]>,
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
            stop: Arc::default(),
            suspects: Suspects::default(),
            files: BTreeMap::new(),
            left_out: Vec::new(),
            app_ids: BTreeSet::new(),
        })
    }

    /// The folder, without symbolic links in its path.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Once this is set, no file is read any further.
    pub fn stop(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.stop)
    }

    /// Where those who read the files tell of what they find changed.
    pub fn suspects(&self) -> Suspects {
        self.suspects.clone()
    }

    /// As [`Scanner::scan`], but gives files that are new and yet quiet the time to
    /// be taken in, so that a payload made a moment ago is there at once. Blocks
    /// for up to [`SETTLED`] and the time of hashing.
    pub fn scan_settled(&mut self) -> Result<Catalogue, ServerError> {
        let catalogue = self.scan(SystemTime::now())?;
        if self.files.values().all(|seen| seen.read_at.is_none()) {
            return Ok(catalogue);
        }
        std::thread::sleep(SETTLED);
        self.scan(SystemTime::now())
    }

    /// Looks at the folder as it is and reads all that is new.
    pub fn scan(&mut self, now: SystemTime) -> Result<Catalogue, ServerError> {
        self.survey(now)?;
        // The clock stands still, so that what fails is not read again in the same scan.
        while self.read_next(|| now) {}
        Ok(self.catalogue())
    }

    /// Looks at the folder as it is, without reading what is new. Fails only when
    /// the folder itself cannot be listed; trouble with a file ends up in
    /// [`Catalogue::left_out`].
    ///
    /// After a failure nothing is known any more if the folder is gone, and all is as
    /// it was before otherwise.
    pub fn survey(&mut self, now: SystemTime) -> Result<(), ServerError> {
        let mut listing = match self.list() {
            Ok(listing) => listing,
            Err(source) => {
                if is_gone(&source) {
                    self.files.clear();
                    self.left_out.clear();
                }
                let folder = self.folder.clone();
                return Err(ServerError::ReadFolder { folder, source });
            }
        };
        let suspects = self.suspects.take();
        let mut files = BTreeMap::new();
        for path in &listing.files {
            // One that cannot be looked at is not one that is not there: without its word
            // the payload might go to more machines.
            let sidecar = sidecar_path(path);
            let has_sidecar =
                listing.files.contains(&sidecar) || listing.unreadable.contains_key(&sidecar);
            let before = self.files.get(path);
            let sidecar = if listing.others.contains(&sidecar) {
                Some(Err("is no file in the payload folder".to_owned()))
            } else if has_sidecar {
                look_at_sidecar(sidecar, before, &mut listing.unreadable)
            } else {
                None
            };
            match look(path, before, sidecar, now) {
                Ok(mut seen) => {
                    if suspects.contains(path) {
                        seen.read_at = seen.read_at.or(Some(now));
                    }
                    files.insert(path.clone(), seen);
                }
                // Removed since the folder was listed.
                Err(error) if is_gone(&error) => {}
                Err(error) => {
                    listing.unreadable.insert(path.clone(), error);
                }
            }
        }
        let mut kept = BTreeSet::new();
        for (path, seen) in std::mem::take(&mut self.files) {
            let above = path.ancestors();
            let mut unreadable = above.filter(|above| listing.unreadable.contains_key(*above));
            if let Some(above) = unreadable.next() {
                kept.insert(above.to_owned());
                files.entry(path).or_insert(seen);
            }
        }
        self.files = files;
        self.left_out = listing.left_out;
        for (path, error) in listing.unreadable {
            let rest = if kept.contains(&path) {
                "; what was known of it stays as it was"
            } else {
                ""
            };
            let reason = format!("it cannot be read: {error}{rest}");
            self.left_out.push(LeftOut { path, reason });
        }
        Ok(())
    }

    /// Reads one file that waits for it, from end to end. `false` when there is none,
    /// or when it was told to stop. `clock` is asked before and after.
    pub fn read_next(&mut self, clock: impl Fn() -> SystemTime) -> bool {
        let now = clock();
        let due = self.files.iter_mut().filter(|(_, seen)| seen.is_due(now));
        // What is on offer anyway and what has failed before hold nothing new up, and
        // take turns.
        let is_new = |seen: &Seen| matches!(seen.content, Content::Unsettled | Content::Unread);
        let Some((path, seen)) = due.min_by_key(|(_, seen)| (!is_new(seen), seen.read_at)) else {
            return false;
        };
        seen.content = match examine(path, seen.identity, &self.stop) {
            Ok(Some(content)) => content,
            Ok(None) => return false,
            Err(error) => Content::unreadable(&error, seen.content.wait_after_failure()),
        };
        seen.read_at = match seen.content {
            // It has changed meanwhile, or may be all right the next time. Reading may have
            // taken longer than the wait.
            Content::Unsettled | Content::Unread | Content::Unreadable { .. } => {
                Some(clock() + seen.content.wait())
            }
            Content::NotAPayload | Content::Broken(_) | Content::Payload(_) => None,
        };
        true
    }

    /// What is known after the last look and the last reading.
    pub fn catalogue(&mut self) -> Catalogue {
        let mut catalogue = Catalogue {
            artifacts: Vec::new(),
            left_out: self.left_out.clone(),
            app_ids: BTreeSet::new(),
        };
        for (path, seen) in &self.files {
            self.app_ids.extend(seen.app_ids().map(str::to_owned));
            match self.artifact(path, seen) {
                None => {}
                Some(Ok(artifact)) => catalogue.artifacts.push(artifact),
                Some(Err(reason)) => catalogue.left_out.push(LeftOut {
                    path: path.clone(),
                    reason,
                }),
            }
        }
        catalogue.app_ids.clone_from(&self.app_ids);
        catalogue.left_out.sort_by(|a, b| a.path.cmp(&b.path));
        catalogue
    }

    /// All regular files, hidden ones and links out of the folder aside.
    fn list(&self) -> io::Result<Listing> {
        let mut listing = Listing::default();
        let mut folders = vec![(self.folder.clone(), 0)];
        while let Some((folder, depth)) = folders.pop() {
            let entries = match list(&folder) {
                Ok(entries) => entries,
                Err(error) if depth == 0 => return Err(error),
                Err(error) if is_gone(&error) => continue,
                Err(error) => {
                    listing.unreadable.insert(folder, error);
                    continue;
                }
            };
            for path in entries {
                let kind = match self.kind(&path) {
                    Ok(kind) => kind,
                    // Vanished, or a link to nowhere.
                    Err(error) if is_gone(&error) => {
                        if path.is_symlink() {
                            listing.others.insert(path);
                        }
                        continue;
                    }
                    Err(error) => {
                        listing.unreadable.insert(path, error);
                        continue;
                    }
                };
                if !matches!(kind, Kind::File) {
                    listing.others.insert(path.clone());
                }
                let reason = match kind {
                    Kind::File if listing.files.len() < MAX_FILES => {
                        listing.files.insert(path);
                        continue;
                    }
                    Kind::Folder if depth < MAX_DEPTH => {
                        folders.push((path, depth + 1));
                        continue;
                    }
                    Kind::Special => continue,
                    Kind::File => {
                        let reason = format!("there are more than {MAX_FILES} files before it");
                        listing.left_out.push(LeftOut { path, reason });
                        return Ok(listing);
                    }
                    Kind::Folder => format!("it lies more than {MAX_DEPTH} folders deep"),
                    Kind::OutsideLink => "it is a link out of the payload folder".to_owned(),
                };
                listing.left_out.push(LeftOut { path, reason });
            }
        }
        Ok(listing)
    }

    fn kind(&self, path: &Path) -> io::Result<Kind> {
        if path.symlink_metadata()?.is_symlink() && !path.canonicalize()?.starts_with(&self.folder)
        {
            return Ok(Kind::OutsideLink);
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

    /// What the file is in the catalogue; `None` unless it is a payload.
    fn artifact(&self, path: &Path, seen: &Seen) -> Option<Result<Artifact, String>> {
        let facts = match &seen.content {
            Content::NotAPayload => return None,
            Content::Unsettled => return Some(Err("it is being written".to_owned())),
            Content::Unread => return Some(Err("it is being read".to_owned())),
            Content::Unreadable { reason, .. } | Content::Broken(reason) => {
                return Some(Err(reason.clone()));
            }
            Content::Payload(facts) => facts,
        };
        let labels = self.labels(path, seen.sidecar.as_ref(), facts);
        Some(labels.map(|(name, labels)| Artifact {
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
            chunks: Arc::clone(&facts.chunks),
            size: seen.identity.size,
            modified: seen.identity.modified,
        }))
    }

    fn labels(
        &self,
        path: &Path,
        sidecar: Option<&Result<SeenSidecar, String>>,
        facts: &Facts,
    ) -> Result<(String, Labels), String> {
        let relative = path.strip_prefix(&self.folder).unwrap_or(path);
        let name = relative
            .to_str()
            .and_then(|_| path.file_name()?.to_str())
            .ok_or("its name is not utf-8")?;
        let sidecar = match sidecar {
            Some(Ok(sidecar)) => Some(&sidecar.said),
            Some(Err(reason)) => return Err(format!("{name}.json: {reason}")),
            None => None,
        };
        let labels =
            label(relative, sidecar, &facts.release, &self.defaults).map_err(|e| e.to_string())?;
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
    OutsideLink,
}

/// What is in the folder and those inside it.
#[derive(Default)]
struct Listing {
    files: BTreeSet<PathBuf>,
    left_out: Vec<LeftOut>,
    /// What is there and no file here: folders, pipes, links out or to nowhere.
    others: BTreeSet<PathBuf>,
    /// Files and folders that are there but cannot be looked at.
    unreadable: BTreeMap<PathBuf, io::Error>,
}

impl Seen {
    /// It is to be read now. What seems to wait longer than it ever should was put off by
    /// a clock that has been set back since.
    fn is_due(&self, now: SystemTime) -> bool {
        self.read_at.is_some_and(|at| {
            at.duration_since(now)
                .map_or(true, |rest| rest.is_zero() || rest > self.content.wait())
        })
    }

    /// Whom the file or its sidecar names, even if it cannot be offered now.
    fn app_ids(&self) -> impl Iterator<Item = &str> {
        let sidecar = self.sidecar.as_ref().and_then(|said| said.as_ref().ok());
        let facts = match &self.content {
            Content::Payload(facts) => Some(facts),
            _ => None,
        };
        let said = sidecar.and_then(|sidecar| sidecar.said.app_id.as_deref());
        let signed = facts.and_then(|facts| facts.release.app_id.as_deref());
        let ids = said.into_iter().chain(signed);
        ids.filter(|id| {
            !matches!(self.content, Content::NotAPayload) && !same_app_id(id, OS_APP_ID)
        })
    }
}

impl Content {
    fn unreadable(error: &io::Error, wait: Duration) -> Self {
        let reason = format!("it cannot be read: {error}");
        Self::Unreadable { reason, wait }
    }

    /// How long it is let alone before it is read, if it is to be read at all.
    fn wait(&self) -> Duration {
        match self {
            Self::Unreadable { wait, .. } => *wait,
            _ => SETTLED,
        }
    }

    /// As [`Content::wait`], once it could not be read.
    fn wait_after_failure(&self) -> Duration {
        match self {
            Self::Unreadable { wait, .. } => wait.saturating_mul(2).min(LONGEST_WAIT),
            _ => SETTLED,
        }
    }
}

impl FileIdentity {
    fn of(metadata: &Metadata) -> Self {
        Self {
            inode: (metadata.dev(), metadata.ino()),
            size: metadata.len(),
            modified: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Another name, owner or mode, as it seems.
    fn differs_in_attributes(&self, other: &Self) -> bool {
        let changed = other.changed;
        self != other && Self { changed, ..*self } == *other
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

/// It was removed, by this name at least. Any other failure says nothing of that.
fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

/// A time in the future says nothing, so such a file needs the second look.
fn has_rested(identity: &FileIdentity, now: SystemTime) -> bool {
    now.duration_since(identity.modified)
        .is_ok_and(|age| age >= SETTLED)
}

/// What is in the file, from memory if it has not changed.
fn look(
    path: &Path,
    before: Option<&Seen>,
    sidecar: Option<Result<SeenSidecar, String>>,
    now: SystemTime,
) -> io::Result<Seen> {
    let identity = FileIdentity::of(&path.metadata()?);
    let (content, read_at) = match before {
        Some(seen) if seen.identity == identity => (seen.content.clone(), seen.read_at),
        // It may have been written to and its time set back, so it is read again. Until
        // then it stays on offer: no byte goes out that was not hashed.
        Some(seen)
            if seen.identity.differs_in_attributes(&identity)
                && matches!(seen.content, Content::Payload(_)) =>
        {
            (seen.content.clone(), Some(now))
        }
        _ => match File::open(path).and_then(|mut file| begins_with_magic(&mut file)) {
            Ok(false) => (Content::NotAPayload, None),
            Ok(true) if has_rested(&identity, now) => (Content::Unread, Some(now)),
            Ok(true) => (Content::Unsettled, Some(now + SETTLED)),
            Err(error) if is_gone(&error) => return Err(error),
            // What was known is of another file.
            Err(error) => (Content::unreadable(&error, SETTLED), Some(now + SETTLED)),
        },
    };
    Ok(Seen {
        identity,
        content,
        sidecar,
        read_at,
    })
}

/// Reads the whole file once, in bounded memory: hashes it, and checks it as a
/// machine would, so that one that was copied badly is found here and not there.
/// Only the signature is not judged, for the server needs no keys. `None` when it was
/// stopped.
fn examine(path: &Path, identity: FileIdentity, stop: &AtomicBool) -> io::Result<Option<Content>> {
    let mut file = File::open(path)?;
    if !begins_with_magic(&mut file)? {
        return Ok(Some(Content::NotAPayload));
    }
    let mut sha1 = Sha1::new();
    let anyone = Trust::allow_unsigned(Vec::new());
    let mut stream = PayloadStream::new(Limits::default(), &anyone);
    let mut chunks = Vec::new();
    let mut chunk = Vec::new();
    file.rewind()?;
    loop {
        if stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        chunk.clear();
        if file.by_ref().take(CHUNK_BYTES).read_to_end(&mut chunk)? == 0 {
            break;
        }
        sha1.update(&chunk);
        chunks.push(Sha256::digest(&chunk).into());
        stream.push(&chunk);
        if let Err(reason) = check_arrived(&mut stream, identity.size) {
            return Ok(Some(Content::Broken(reason)));
        }
    }
    let verified = match stream.finish() {
        Ok(verified) => verified,
        Err(error) => return Ok(Some(Content::Broken(in_one_line(&error)))),
    };
    // What was read must be what was looked at, and still be there.
    let unchanged = |metadata: Metadata| FileIdentity::of(&metadata) == identity;
    if !unchanged(file.metadata()?) || !unchanged(path.metadata()?) {
        return Ok(Some(Content::Unsettled));
    }
    let manifest = verified.manifest();
    Ok(Some(Content::Payload(Arc::new(Facts {
        is_delta: manifest.is_delta(),
        format: manifest.format,
        source_sha256: manifest.partition.old.map(|old| old.sha256),
        encoders: libraries(&manifest.encoders),
        release: manifest.release.clone().unwrap_or_default(),
        sha1: sha1.finalize().into(),
        sha256: *verified.sha256(),
        chunks: chunks.into(),
    }))))
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

fn sidecar_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".json");
    PathBuf::from(name)
}

/// What a sidecar says, or why that is not known. One that cannot be read now says
/// what it did before, as long as it is not known to be another one.
fn look_at_sidecar(
    path: PathBuf,
    before: Option<&Seen>,
    unreadable: &mut BTreeMap<PathBuf, io::Error>,
) -> Option<Result<SeenSidecar, String>> {
    match read_sidecar(&path) {
        Ok(said) => Some(said),
        Err(error) if is_gone(&error) => None,
        Err(error) => match before.and_then(|seen| seen.sidecar.as_ref()) {
            Some(Ok(sidecar)) if !sidecar.has_changed(&path) => {
                unreadable.insert(path, error);
                Some(Ok(sidecar.clone()))
            }
            _ => Some(Err(format!("cannot be read: {error}"))),
        },
    }
}

impl SeenSidecar {
    /// Where not even that can be told, it has not.
    fn has_changed(&self, path: &Path) -> bool {
        path.metadata()
            .is_ok_and(|metadata| FileIdentity::of(&metadata) != self.identity)
    }
}

fn read_sidecar(path: &Path) -> io::Result<Result<SeenSidecar, String>> {
    let file = File::open(path)?;
    // Before the text, so that one written to meanwhile is another one.
    let identity = FileIdentity::of(&file.metadata()?);
    let mut text = Vec::new();
    file.take(MAX_SIDECAR_BYTES + 1).read_to_end(&mut text)?;
    if u64::try_from(text.len()).is_ok_and(|length| length > MAX_SIDECAR_BYTES) {
        return Ok(Err(format!("is longer than {MAX_SIDECAR_BYTES} bytes")));
    }
    Ok(serde_json::from_slice(&text)
        .map(|said| SeenSidecar { identity, said })
        .map_err(|error| error.to_string()))
}
