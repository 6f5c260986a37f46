//! HTTP as the updater needs it: one bounded POST, one checked GET of a byte
//! range. Knows no Omaha and no payload.

mod download;
mod http;
mod proxies;
#[cfg(test)]
mod testing;

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;

pub use download::{Download, Patience};
pub use http::{HttpOptions, HttpTransport};
pub use proxies::Proxies;

use crate::error::TransportError;

/// Answer to a POST.
#[derive(Debug, Clone)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// Body; never longer than the limit asked for plus one chunk.
    pub body: Bytes,
}

/// Start of a GET answer.
pub struct RangeReply {
    /// HTTP status.
    pub status: u16,
    /// `Content-Length`, when sent.
    pub content_length: Option<u64>,
    /// `Content-Range` as sent.
    pub content_range: Option<String>,
    /// Strong `ETag`, when sent.
    pub etag: Option<String>,
    /// The bytes.
    pub body: Box<dyn BodyStream>,
}

/// Bytes as they arrive.
pub trait BodyStream: Send {
    /// The next chunk; None at the end.
    fn chunk(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, TransportError>>;
}

/// What is asked of a server in one GET.
#[derive(Debug, Clone)]
pub struct RangeRequest<'a> {
    /// Where.
    pub url: &'a str,
    /// First byte wanted; 0 sends no `Range` header at all, as the original.
    pub from: u64,
    /// Only if the file still has this strong validator (`If-Range`).
    pub if_range: Option<&'a str>,
}

/// The seam to the network. Real: [`HttpTransport`].
pub trait Transport: Send + Sync {
    /// POSTs `body`; the answer is cut off with an error above `limit` bytes.
    fn post<'a>(
        &'a self,
        url: &'a str,
        content_type: &'static str,
        body: Bytes,
        limit: u64,
    ) -> BoxFuture<'a, Result<Reply, TransportError>>;

    /// GETs a file from a byte on.
    fn get<'a>(
        &'a self,
        request: RangeRequest<'a>,
    ) -> BoxFuture<'a, Result<RangeReply, TransportError>>;
}

/// Longest time one POST may take from start to end.
pub(crate) const POST_DEADLINE: Duration = Duration::from_secs(90);
