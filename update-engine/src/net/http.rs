//! [`Transport`] over reqwest.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use reqwest::header;
use reqwest::redirect;

use super::{BodyStream, POST_DEADLINE, RangeReply, RangeRequest, Reply, Transport};
use crate::error::TransportError;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
const MOST_REDIRECTS: usize = 10;

/// What an operator can choose about connections.
#[derive(Debug, Clone, Default)]
pub struct HttpOptions {
    /// PEM file contents to trust instead of the system's certificates.
    pub ca_pem: Option<Vec<u8>>,
    /// Proxy URL for everything; otherwise the environment decides.
    pub proxy: Option<String>,
    /// Hosts that are reached without `proxy`, separated by commas.
    pub no_proxy: Option<String>,
    /// User and password for payload downloads over https.
    pub credentials: Option<(String, String)>,
}

/// The real transport.
#[derive(Debug)]
pub struct HttpTransport {
    client: reqwest::Client,
    credentials: Option<(String, String)>,
}

impl HttpTransport {
    /// Makes a client. Redirects are followed ten times at most and never from
    /// https to http.
    ///
    /// # Errors
    /// A bad certificate file or proxy URL.
    pub fn new(options: HttpOptions) -> Result<Self, TransportError> {
        let mut builder = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(redirect::Policy::custom(follow));
        if let Some(pem) = &options.ca_pem {
            let certificates = reqwest::Certificate::from_pem_bundle(pem)
                .map_err(|error| describe("read the CA file", error))?;
            builder = builder.tls_certs_only(certificates);
        }
        if let Some(proxy) = &options.proxy {
            let proxy =
                reqwest::Proxy::all(proxy).map_err(|error| describe("use the proxy", error))?;
            let direct = options
                .no_proxy
                .as_deref()
                .and_then(reqwest::NoProxy::from_string);
            builder = builder.proxy(proxy.no_proxy(direct));
        }
        let client = builder.build().map_err(|error| {
            describe(
                "make an HTTP client (are the system's CA certificates installed?)",
                error,
            )
        })?;
        Ok(Self {
            client,
            credentials: options.credentials,
        })
    }
}

fn follow(attempt: redirect::Attempt<'_>) -> redirect::Action {
    let downgrade = attempt.url().scheme() != "https"
        && attempt.previous().iter().any(|url| url.scheme() == "https");
    if downgrade {
        attempt.error("redirect from https to http refused")
    } else if attempt.previous().len() > MOST_REDIRECTS {
        attempt.error("too many redirects")
    } else {
        attempt.follow()
    }
}

impl Transport for HttpTransport {
    fn post<'a>(
        &'a self,
        url: &'a str,
        content_type: &'static str,
        body: Bytes,
        limit: u64,
    ) -> BoxFuture<'a, Result<Reply, TransportError>> {
        Box::pin(async move {
            let exchange = async {
                let response = self
                    .client
                    .post(url)
                    .header(header::CONTENT_TYPE, content_type)
                    .body(body)
                    .send()
                    .await
                    .map_err(|error| describe("post", error))?;
                let status = response.status().as_u16();
                let body = bounded_body(response, limit).await?;
                Ok(Reply { status, body })
            };
            tokio::time::timeout(POST_DEADLINE, exchange)
                .await
                .unwrap_or_else(|_| {
                    Err(TransportError::Http(format!(
                        "no complete answer within {} seconds",
                        POST_DEADLINE.as_secs()
                    )))
                })
        })
    }

    fn get<'a>(
        &'a self,
        request: RangeRequest<'a>,
    ) -> BoxFuture<'a, Result<RangeReply, TransportError>> {
        Box::pin(async move {
            let mut get = self.client.get(request.url);
            if request.from > 0 {
                get = get.header(header::RANGE, format!("bytes={}-", request.from));
                if let Some(etag) = request.if_range {
                    get = get.header(header::IF_RANGE, etag);
                }
            }
            if let Some((user, password)) = &self.credentials
                && request.url.starts_with("https://")
            {
                get = get.basic_auth(user, Some(password));
            }
            let response = get.send().await.map_err(|error| describe("get", error))?;
            let text = |name: header::HeaderName| {
                response
                    .headers()
                    .get(name)
                    .and_then(|value| value.to_str().ok())
                    .map(str::to_owned)
            };
            let content_length = text(header::CONTENT_LENGTH).and_then(|value| value.parse().ok());
            let content_range = text(header::CONTENT_RANGE);
            let etag = text(header::ETAG).filter(|etag| etag.starts_with('"'));
            Ok(RangeReply {
                status: response.status().as_u16(),
                content_length,
                content_range,
                etag,
                body: Box::new(ResponseBody(response)),
            })
        })
    }
}

struct ResponseBody(reqwest::Response);

impl BodyStream for ResponseBody {
    fn chunk(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, TransportError>> {
        Box::pin(async {
            self.0
                .chunk()
                .await
                .map_err(|error| describe("read the body", error))
        })
    }
}

async fn bounded_body(
    mut response: reqwest::Response,
    limit: u64,
) -> Result<Bytes, TransportError> {
    let mut body = Vec::new();
    while let Some(chunk) = response
        .chunk()
        .await
        .map_err(|error| describe("read the answer", error))?
    {
        body.extend_from_slice(&chunk);
        if u64::try_from(body.len()).unwrap_or(u64::MAX) > limit {
            return Err(TransportError::Long { expected: limit });
        }
    }
    Ok(body.into())
}

/// reqwest says only "error sending request" and hides why in its sources.
fn describe(operation: &str, error: reqwest::Error) -> TransportError {
    let error = error.without_url();
    let mut text = format!("cannot {operation}: {error}");
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    TransportError::Http(text)
}
