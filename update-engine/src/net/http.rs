//! [`Transport`] over reqwest.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use reqwest::header;
use reqwest::redirect;

use super::{BodyStream, POST_DEADLINE, Proxies, RangeReply, RangeRequest, Reply, Transport};
use crate::error::TransportError;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
const MOST_REDIRECTS: usize = 10;

/// What an operator can choose about connections.
#[derive(Debug, Clone, Default)]
pub struct HttpOptions {
    /// PEM file contents to trust instead of the system's certificates.
    pub ca_pem: Option<Vec<u8>>,
    /// What stands between.
    pub proxies: Proxies,
    /// User and password for payload downloads over https.
    pub credentials: Option<(String, String)>,
}

/// The real transport.
#[derive(Debug)]
pub struct HttpTransport {
    client: reqwest::Client,
    credentials: Option<(String, String)>,
    /// Why no certificate can be checked.
    unverifiable: Option<String>,
}

impl HttpTransport {
    /// Makes a client. Redirects are followed ten times at most and never from
    /// https to http.
    ///
    /// A machine without CA certificates still reaches servers over http; over
    /// https it trusts nobody.
    ///
    /// # Errors
    /// A bad certificate file or proxy URL.
    pub fn new(options: HttpOptions) -> Result<Self, TransportError> {
        let mut builder = options.builder()?;
        if let Some(pem) = &options.ca_pem {
            let certificates = reqwest::Certificate::from_pem_bundle(pem)
                .map_err(|error| describe("read the CA file", error))?;
            builder = builder.tls_certs_only(certificates);
        }
        let (client, unverifiable) = match builder.build() {
            Ok(client) => (client, None),
            Err(error) if options.ca_pem.is_none() => {
                let trusts_nobody = options.builder()?.tls_certs_only([]);
                let client = trusts_nobody
                    .build()
                    .map_err(|error| describe("make an HTTP client", error))?;
                (client, Some(with_causes(&error)))
            }
            Err(error) => return Err(describe("make an HTTP client", error)),
        };
        Ok(Self {
            client,
            credentials: options.credentials,
            unverifiable,
        })
    }

    /// Refuses what could only fail, with the reason.
    fn admit(&self, url: &str) -> Result<(), TransportError> {
        match &self.unverifiable {
            Some(why) if url.starts_with("https://") => Err(TransportError::Http(format!(
                "no certificate can be checked, install the system's CA certificates: {why}"
            ))),
            _ => Ok(()),
        }
    }
}

impl HttpOptions {
    fn builder(&self) -> Result<reqwest::ClientBuilder, TransportError> {
        let builder = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(redirect::Policy::custom(follow));
        self.proxies.apply(builder)
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
            self.admit(url)?;
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
            self.admit(request.url)?;
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

fn describe(operation: &str, error: reqwest::Error) -> TransportError {
    let error = error.without_url();
    TransportError::Http(format!("cannot {operation}: {}", with_causes(&error)))
}

/// reqwest says only "error sending request" and hides why in its sources.
fn with_causes(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}
