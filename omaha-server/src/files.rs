//! Hands out payload files: the very bytes that were hashed, or none.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::{StreamExt, stream};
use sha2::{Digest, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;

use crate::catalogue::{Artifact, CHUNK_BYTES};
use crate::journal::{Download, Transfer};
use crate::range::{Headers, Selection, select};
use crate::scan::Suspects;

/// RFC 9530.
const REPR_DIGEST: HeaderName = HeaderName::from_static("repr-digest");

/// What all downloads share.
#[derive(Debug, Clone)]
pub(crate) struct Downloads {
    /// One for each that may begin.
    pub(crate) permits: Arc<Semaphore>,
    /// Told of files that have changed or cannot be read.
    pub(crate) suspects: Suspects,
}

/// Answers a GET or HEAD for `artifact`. A GET takes a permit until the last byte was
/// read; without one the client is asked to come back. A HEAD reads nothing.
pub(crate) async fn serve(
    client: SocketAddr,
    artifact: &Artifact,
    method: &Method,
    headers: &HeaderMap,
    downloads: &Downloads,
) -> Response {
    let etag = format!("\"{}\"", artifact.sha256_hex());
    let length = artifact.size;
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let asked = Headers {
        // Ranges are only defined for GET.
        range: text(header::RANGE).filter(|_| method == Method::GET),
        if_range: text(header::IF_RANGE),
        if_none_match: text(header::IF_NONE_MATCH),
        if_match: text(header::IF_MATCH),
    };
    let download = Download::new(client, artifact, text(header::RANGE));
    let constant = [
        (header::ETAG, etag.clone()),
        (
            header::CACHE_CONTROL,
            "public, immutable, max-age=31536000".to_owned(),
        ),
        (header::ACCEPT_RANGES, "bytes".to_owned()),
    ];
    let (status, range) = match select(&asked, &etag, length) {
        Selection::Whole => (StatusCode::OK, 0..length),
        Selection::Part(range) => (StatusCode::PARTIAL_CONTENT, range),
        Selection::NotModified => {
            return download.answered((StatusCode::NOT_MODIFIED, constant).into_response());
        }
        Selection::PreconditionFailed => {
            let response = (StatusCode::PRECONDITION_FAILED, constant, "another file\n");
            return download.answered(response.into_response());
        }
        Selection::Unsatisfiable => {
            let content_range = [(header::CONTENT_RANGE, format!("bytes */{length}"))];
            let text = format!("the file has {length} bytes\n");
            let status = StatusCode::RANGE_NOT_SATISFIABLE;
            let response = (status, constant, content_range, text);
            return download.answered(response.into_response());
        }
    };
    let content = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (
            header::CONTENT_LENGTH,
            (range.end - range.start).to_string(),
        ),
        (
            REPR_DIGEST,
            format!("sha-256=:{}:", BASE64.encode(artifact.sha256)),
        ),
    ];
    let content_range = (status == StatusCode::PARTIAL_CONTENT).then(|| {
        let last = range.end - 1;
        [(
            header::CONTENT_RANGE,
            format!("bytes {}-{last}/{length}", range.start),
        )]
    });
    let head = |body: Body| {
        let response = (status, constant, content, body).into_response();
        match content_range {
            Some(pair) => (pair, response).into_response(),
            None => response,
        }
    };
    if method == Method::HEAD {
        return download.answered(head(Body::empty()));
    }
    let Ok(permit) = Arc::clone(&downloads.permits).try_acquire_owned() else {
        return download.answered(busy());
    };
    let (source, first) = match open(artifact, &downloads.suspects, range.clone()).await {
        Ok(opened) => opened,
        Err(error) => return download.answered(unavailable(artifact, &error)),
    };
    let transfer = download.begin(status, range.end - range.start);
    head(body(source, first, range, transfer, permit))
}

/// A payload file that is read chunk by chunk.
struct Source {
    file: File,
    path: PathBuf,
    suspects: Suspects,
    size: u64,
    chunks: Arc<[[u8; 32]]>,
}

impl Source {
    fn open(artifact: &Artifact, suspects: Suspects) -> io::Result<Self> {
        Ok(Self {
            file: File::open(&artifact.path)?,
            path: artifact.path.clone(),
            suspects,
            size: artifact.size,
            chunks: Arc::clone(&artifact.chunks),
        })
    }

    /// The first bytes of `range`, as many as lie in one chunk. The whole chunk is read
    /// and compared with its hash, for nothing else tells for sure that nobody has
    /// written into the file: times can be set back, and change without a reason too. A
    /// file with one that differs or cannot be read is a suspect.
    fn read(&self, range: &Range<u64>) -> io::Result<Bytes> {
        let read = self.read_chunk(range);
        if read.is_err() {
            self.suspects.add(&self.path);
        }
        read
    }

    fn read_chunk(&self, range: &Range<u64>) -> io::Result<Bytes> {
        let changed = || io::Error::other("the file has changed since it was hashed");
        let index = range.start / CHUNK_BYTES;
        let begin = range.start - range.start % CHUNK_BYTES;
        let end = self.size.min(begin.saturating_add(CHUNK_BYTES));
        let in_chunk = |offset: u64| usize::try_from(offset - begin).map_err(io::Error::other);
        let mut chunk = vec![0; in_chunk(end)?];
        match self.file.read_exact_at(&mut chunk, begin) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(changed()),
            result => result?,
        }
        let hash = usize::try_from(index).ok().and_then(|i| self.chunks.get(i));
        if hash.is_none_or(|hash| Sha256::digest(&chunk)[..] != hash[..]) {
            return Err(changed());
        }
        Ok(Bytes::from(chunk).slice(in_chunk(range.start)?..in_chunk(end.min(range.end))?))
    }
}

/// Opens the file and reads the first chunk of `range`: one that was replaced is found
/// out before anything is said.
async fn open(
    artifact: &Artifact,
    suspects: &Suspects,
    range: Range<u64>,
) -> io::Result<(Source, Bytes)> {
    let (artifact, suspects) = (artifact.clone(), suspects.clone());
    spawn_blocking(move || {
        let source = Source::open(&artifact, suspects)?;
        let first = source.read(&range)?;
        Ok((source, first))
    })
    .await?
}

/// The bytes of `range`, chunk by chunk, of which `first` has been read. When somebody
/// has written into the file, the transfer breaks off, and what went out are bytes of
/// the file that was offered. That the file got another name or none, or other
/// attributes, does not matter.
fn body(
    source: Source,
    first: Bytes,
    range: Range<u64>,
    mut transfer: Transfer,
    permit: OwnedSemaphorePermit,
) -> Body {
    let source = Arc::new(source);
    let rest = range.start.saturating_add(length(&first))..range.end;
    let others = stream::try_unfold((source, rest), |(source, rest)| async move {
        if rest.is_empty() {
            return Ok::<_, io::Error>(None);
        }
        let (reader, from) = (Arc::clone(&source), rest.clone());
        let chunk = spawn_blocking(move || reader.read(&from)).await??;
        let rest = rest.start.saturating_add(length(&chunk))..rest.end;
        Ok(Some((chunk, (source, rest))))
    });
    let chunks = stream::iter([Ok(first)]).chain(others);
    // Transfer and permit end with the stream, however that ends.
    Body::from_stream(chunks.inspect(move |chunk| {
        let _held = &permit;
        match chunk {
            Ok(chunk) => transfer.sent(chunk.len()),
            Err(error) => transfer.failed(error),
        }
    }))
}

fn length(chunk: &Bytes) -> u64 {
    u64::try_from(chunk.len()).unwrap_or(u64::MAX)
}

fn unavailable(artifact: &Artifact, error: &io::Error) -> Response {
    if error.kind() == io::ErrorKind::NotFound {
        return not_found();
    }
    tracing::error!(file = %artifact.path.display(), "file not served: {error}");
    let retry = [(header::RETRY_AFTER, "5")];
    let text = "the file cannot be served as it was offered, try again\n";
    (StatusCode::SERVICE_UNAVAILABLE, retry, text).into_response()
}

fn busy() -> Response {
    let headers = [
        (header::RETRY_AFTER, "30"),
        // The connection is wanted by others.
        (header::CONNECTION, "close"),
    ];
    let text = "too many downloads at a time, try again\n";
    (StatusCode::SERVICE_UNAVAILABLE, headers, text).into_response()
}

pub(crate) fn not_found() -> Response {
    (StatusCode::NOT_FOUND, "there is nothing here\n").into_response()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use axum::body::BodyDataStream;

    use super::*;
    use crate::journal::tests::logged;

    const SIZE: u64 = 1_000_000;

    /// A file, and what it held when it was opened.
    fn source() -> (tempfile::NamedTempFile, Source, Vec<u8>) {
        let size = usize::try_from(SIZE).unwrap();
        let content: Vec<u8> = (0..=u8::MAX).cycle().take(size).collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), &content).unwrap();
        let chunks = content.chunks(usize::try_from(CHUNK_BYTES).unwrap());
        let source = Source {
            file: file.reopen().unwrap(),
            path: file.path().to_owned(),
            suspects: Suspects::default(),
            size: SIZE,
            chunks: chunks.map(|chunk| Sha256::digest(chunk).into()).collect(),
        };
        (file, source, content)
    }

    fn chunks(source: Source, range: Range<u64>) -> BodyDataStream {
        let first = source.read(&range).unwrap();
        let transfer = Transfer::of_a_test(range.end - range.start);
        let permit = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        body(source, first, range, transfer, permit).into_data_stream()
    }

    async fn rest_of(mut chunks: BodyDataStream) -> Vec<u8> {
        let mut received = Vec::new();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.unwrap();
            assert!(length(&chunk) <= CHUNK_BYTES);
            received.extend_from_slice(&chunk);
        }
        received
    }

    #[tokio::test]
    async fn a_body_is_its_range_in_bounded_chunks() {
        for range in [
            0..SIZE,
            1000..700_000,
            CHUNK_BYTES..2 * CHUNK_BYTES,
            CHUNK_BYTES - 1..CHUNK_BYTES + 1,
            SIZE - 1..SIZE,
        ] {
            let (_file, source, content) = source();
            let received = rest_of(chunks(source, range.clone())).await;
            let (start, end) = (
                range.start.try_into().unwrap(),
                range.end.try_into().unwrap(),
            );
            let expected: &[u8] = &content[start..end];
            assert!(received == expected, "{range:?}");
        }
    }

    #[tokio::test]
    async fn a_file_written_to_during_its_transfer_breaks_the_transfer_off() {
        let (file, source, mut content) = source();
        let suspects = source.suspects.clone();
        let mut chunks = chunks(source, 0..SIZE);
        chunks.next().await.unwrap().unwrap();
        let modified = file.as_file().metadata().unwrap().modified().unwrap();
        content[usize::try_from(SIZE).unwrap() / 2] ^= 1;
        fs::write(file.path(), &content).unwrap();
        // Not even times that were set back hide the change.
        file.as_file().set_modified(modified).unwrap();
        let half = SIZE / 2 / CHUNK_BYTES * CHUNK_BYTES;
        let mut received = CHUNK_BYTES;
        let error = loop {
            match chunks.next().await.unwrap() {
                Ok(chunk) => received += length(&chunk),
                Err(error) => break error,
            }
        };
        assert!(error.to_string().contains("has changed"), "{error}");
        assert_eq!(received, half, "what had not changed went out");
        assert_eq!(suspects.take(), [file.path().to_owned()].into());
        assert!(chunks.next().await.is_none());
    }

    #[tokio::test]
    async fn the_log_tells_how_far_a_download_got_and_why_no_further() {
        let whole = logged(async {
            let (_file, source, _content) = source();
            rest_of(chunks(source, 0..SIZE)).await;
        })
        .await;
        let told = "download: u.payload (1.2.3), 1000000 bytes";
        assert!(whole.contains(told), "{whole}");
        assert_eq!(whole.lines().count(), 1);

        let told = "download broke off after 262144 of 1000000 bytes: u.payload (1.2.3): ";
        let left = logged(async {
            let (_file, source, _content) = source();
            chunks(source, 0..SIZE).next().await.unwrap().unwrap();
        })
        .await;
        assert!(left.contains(told), "{left}");
        assert!(left.contains("the connection was closed"), "{left}");

        let changed = logged(async {
            let (file, source, _content) = source();
            let chunks = chunks(source, 0..SIZE);
            file.as_file().set_len(CHUNK_BYTES).unwrap();
            let _ = chunks.collect::<Vec<_>>().await;
        })
        .await;
        assert!(changed.contains(told), "{changed}");
        assert!(changed.contains("the file has changed"), "{changed}");
    }

    #[tokio::test]
    async fn a_file_cut_short_breaks_the_transfer_off() {
        let (file, source, _content) = source();
        let suspects = source.suspects.clone();
        let mut chunks = chunks(source, 0..SIZE);
        chunks.next().await.unwrap().unwrap();
        assert!(suspects.take().is_empty());
        file.as_file().set_len(CHUNK_BYTES).unwrap();
        assert!(chunks.next().await.unwrap().is_err());
        assert_eq!(suspects.take(), [file.path().to_owned()].into());
    }

    #[test]
    fn a_file_that_cannot_be_read_is_a_suspect() {
        let (file, source, _content) = source();
        let write_only = File::options().write(true).open(file.path()).unwrap();
        // As a disk that fails, to whoever reads.
        let source = Source {
            file: write_only,
            ..source
        };
        let error = source.read(&(0..SIZE)).unwrap_err();
        assert!(error.raw_os_error().is_some(), "{error}");
        assert_eq!(source.suspects.take(), [file.path().to_owned()].into());
    }

    #[tokio::test]
    async fn other_names_attributes_or_none_do_not_touch_a_transfer() {
        use std::os::unix::fs::PermissionsExt;
        let (file, source, content) = source();
        let mut chunks = chunks(source, 0..SIZE);
        let mut received = chunks.next().await.unwrap().unwrap().to_vec();
        fs::set_permissions(file.path(), fs::Permissions::from_mode(0o600)).unwrap();
        let other = file.path().with_extension("other");
        fs::hard_link(file.path(), &other).unwrap();
        fs::write(&other, &content).unwrap();
        fs::remove_file(&other).unwrap();
        file.close().unwrap();
        received.extend(rest_of(chunks).await);
        assert!(received == content);
    }
}
