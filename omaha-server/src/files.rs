//! Hands out payload files: the very bytes that were hashed, or none.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::stream;
use tokio::task::spawn_blocking;

use crate::catalogue::{Artifact, FileIdentity};
use crate::range::{Headers, Selection, select};

/// Memory per download, and how much is read between two looks at the file's identity.
const CHUNK_BYTES: u64 = 256 << 10;

/// RFC 9530.
const REPR_DIGEST: HeaderName = HeaderName::from_static("repr-digest");

/// Answers a GET or HEAD for `artifact`.
pub(crate) async fn serve(artifact: &Artifact, method: &Method, headers: &HeaderMap) -> Response {
    let etag = format!("\"{}\"", artifact.sha256_hex());
    let length = artifact.identity.size;
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let asked = Headers {
        // Ranges are only defined for GET.
        range: text(header::RANGE).filter(|_| method == Method::GET),
        if_range: text(header::IF_RANGE),
        if_none_match: text(header::IF_NONE_MATCH),
        if_match: text(header::IF_MATCH),
    };
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
        Selection::NotModified => return (StatusCode::NOT_MODIFIED, constant).into_response(),
        Selection::PreconditionFailed => {
            return (StatusCode::PRECONDITION_FAILED, constant, "another file\n").into_response();
        }
        Selection::Unsatisfiable => {
            let content_range = [(header::CONTENT_RANGE, format!("bytes */{length}"))];
            let text = format!("the file has {length} bytes\n");
            return (
                StatusCode::RANGE_NOT_SATISFIABLE,
                constant,
                content_range,
                text,
            )
                .into_response();
        }
    };
    let file = match open(artifact).await {
        Ok(file) => file,
        Err(error) => return unavailable(artifact, &error),
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
    let body = if method == Method::HEAD {
        Body::empty()
    } else {
        body(file, artifact.identity, range)
    };
    let mut response = (status, constant, content, body).into_response();
    if let Some(pair) = content_range {
        response = (pair, response).into_response();
    }
    response
}

/// Opens the file if it is still the one that was hashed.
async fn open(artifact: &Artifact) -> io::Result<File> {
    let path = artifact.path.clone();
    let identity = artifact.identity;
    spawn_blocking(move || {
        let file = File::open(path)?;
        check_unchanged(&file, &identity)?;
        Ok(file)
    })
    .await?
}

/// The bytes of `range`, chunk by chunk. The file is looked at again after each
/// read: when somebody writes into it, the transfer breaks off, and what went out
/// are bytes of the file that was offered.
fn body(file: File, identity: FileIdentity, range: Range<u64>) -> Body {
    let file = Arc::new(file);
    let chunks = stream::try_unfold((file, range), move |(file, rest)| async move {
        if rest.is_empty() {
            return Ok::<_, io::Error>(None);
        }
        let end = rest.end.min(rest.start.saturating_add(CHUNK_BYTES));
        let reader = Arc::clone(&file);
        let chunk =
            spawn_blocking(move || read_chunk(&reader, rest.start..end, &identity)).await??;
        Ok(Some((chunk, (file, end..rest.end))))
    });
    Body::from_stream(chunks)
}

fn read_chunk(file: &File, range: Range<u64>, identity: &FileIdentity) -> io::Result<Bytes> {
    let length = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
    let mut chunk = vec![0; length];
    file.read_exact_at(&mut chunk, range.start)?;
    check_unchanged(file, identity)?;
    Ok(chunk.into())
}

fn check_unchanged(file: &File, identity: &FileIdentity) -> io::Result<()> {
    if FileIdentity::of(&file.metadata()?) == *identity {
        Ok(())
    } else {
        Err(io::Error::other("the file has changed since it was hashed"))
    }
}

fn unavailable(artifact: &Artifact, error: &io::Error) -> Response {
    if error.kind() == io::ErrorKind::NotFound {
        return not_found();
    }
    tracing::error!(file = %artifact.path.display(), "file not served: {error}");
    let retry = [(header::RETRY_AFTER, "5")];
    let text = "the file is being replaced, try again\n";
    (StatusCode::SERVICE_UNAVAILABLE, retry, text).into_response()
}

pub(crate) fn not_found() -> Response {
    (StatusCode::NOT_FOUND, "there is nothing here\n").into_response()
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::SystemTime;

    use futures_util::StreamExt;

    use super::*;

    fn file_of(length: usize) -> (tempfile::NamedTempFile, FileIdentity) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let content: Vec<u8> = (0..=u8::MAX).cycle().take(length).collect();
        file.write_all(&content).unwrap();
        let past = SystemTime::UNIX_EPOCH;
        file.as_file().set_modified(past).unwrap();
        let identity = FileIdentity::of(&file.as_file().metadata().unwrap());
        (file, identity)
    }

    #[tokio::test]
    async fn a_body_is_its_range_in_bounded_chunks() {
        let (file, identity) = file_of(1_000_000);
        let mut chunks = body(file.reopen().unwrap(), identity, 1000..700_000).into_data_stream();
        let mut received = Vec::new();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.unwrap();
            assert!(u64::try_from(chunk.len()).unwrap() <= CHUNK_BYTES);
            received.extend_from_slice(&chunk);
        }
        let content = std::fs::read(file.path()).unwrap();
        assert!(received == content[1000..700_000]);
    }

    #[tokio::test]
    async fn a_file_changed_during_its_transfer_breaks_the_transfer_off() {
        let (mut file, identity) = file_of(1_000_000);
        let body = body(file.reopen().unwrap(), identity, 0..1_000_000);
        let mut chunks = body.into_data_stream();
        chunks.next().await.unwrap().unwrap();
        file.write_all(b"x").unwrap();
        // Not even times that were set back hide the change.
        file.as_file().set_modified(identity.modified).unwrap();
        file.as_file().set_len(1_000_000).unwrap();
        assert!(chunks.next().await.unwrap().is_err());
        assert!(chunks.next().await.is_none());
    }
}
