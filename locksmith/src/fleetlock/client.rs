//! [`FleetLockClient`]: asks a FleetLock server whether this machine may reboot.
//!
//! A yes is any 2xx and everything else a no, so whatever could put a friendly
//! page in the place of an answer is an error: a redirect that would turn the
//! POST into a GET, or lead from https to http.

use std::time::Duration;

use reqwest::{StatusCode, Url, redirect};

use super::protocol::{Api, Client, HEADER, HEADER_VALUE, is_group, read_refusal};
use crate::machine_id::MachineId;

/// A server may keep a client waiting until a place is free.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// A server that is not there shows soon.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// While it waits for the answer, the connection is tried so often.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// A refusal's words must follow so soon.
const WORDS_TIMEOUT: Duration = Duration::from_secs(10);
const MOST_REDIRECTS: usize = 10;
/// Bytes of a refusal that are read.
const MOST_BYTES: usize = 64 * 1024;

/// Asks one server in one machine's name.
#[derive(Debug, Clone)]
pub struct FleetLockClient {
    http: reqwest::Client,
    base: Url,
    body: String,
}

/// How to reach the server.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// The server, http or https; `v1/…` comes below it.
    pub base_url: String,
    /// The group, as the server names it.
    pub group: String,
    /// This machine's name, as a rule [`super::client_id`].
    pub id: MachineId,
    /// PEM file contents to trust instead of the system's certificates.
    pub ca_pem: Option<Vec<u8>>,
}

/// Why there is no yes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FleetLockError {
    /// The base URL leads to no server.
    #[error("invalid FleetLock base URL {url:?}: {reason}")]
    BaseUrl {
        /// As it was given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The group or the id cannot be sent.
    #[error(
        "cannot ask a FleetLock server as {id:?} in group {group:?}: neither may be empty, and a group has letters, digits, '.' and '-' only"
    )]
    Client {
        /// The id.
        id: String,
        /// The group.
        group: String,
    },
    /// No HTTP client can be made.
    #[error("cannot make an HTTP client (are the system's CA certificates installed?): {0}")]
    BuildClient(String),
    /// No answer came.
    #[error("cannot ask the FleetLock server for {}: {reason}", api.name())]
    Request {
        /// The question.
        api: Api,
        /// Why, with all causes.
        reason: String,
    },
    /// The answer is no.
    #[error("the FleetLock server refuses {}: {kind} (HTTP {status}): {value}", api.name())]
    Refused {
        /// The question.
        api: Api,
        /// HTTP status.
        status: u16,
        /// The server's kind, or `generic_http_<status>`.
        kind: String,
        /// The server's words; may be empty.
        value: String,
    },
}

impl FleetLockError {
    /// A short word for metrics: the server's kind or what went wrong here.
    #[must_use]
    pub fn kind(&self) -> &str {
        match self {
            Self::BaseUrl { .. } | Self::Client { .. } | Self::BuildClient(_) => {
                "client_failed_build"
            }
            Self::Request { .. } => "client_failed_request",
            Self::Refused { kind, .. } => kind,
        }
    }
}

impl FleetLockClient {
    /// A client; nothing is sent yet.
    ///
    /// # Errors
    ///
    /// A URL, group or id that cannot be used, or bad CA certificates.
    pub fn new(options: ClientOptions) -> Result<Self, FleetLockError> {
        let base = base_url(&options.base_url)?;
        let ClientOptions { group, id, .. } = options;
        if id.as_str().is_empty() || !is_group(&group) {
            let id = id.to_string();
            return Err(FleetLockError::Client { id, group });
        }
        let build = |error| FleetLockError::BuildClient(with_causes(error));
        let mut http = reqwest::Client::builder()
            .user_agent(concat!("locksmith/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(ANSWER_TIMEOUT)
            .tcp_keepalive(KEEPALIVE)
            .redirect(redirect::Policy::custom(follow));
        if let Some(pem) = &options.ca_pem {
            let certificates = reqwest::Certificate::from_pem_bundle(pem).map_err(build)?;
            http = http.tls_certs_only(certificates);
        }
        let http = http.build().map_err(build)?;
        let body = Client { id, group }.write();
        Ok(Self { http, base, body })
    }

    /// Asks for the permission to reboot. Asking again is fine.
    ///
    /// # Errors
    ///
    /// There is none now: ask again later.
    pub async fn pre_reboot(&self) -> Result<(), FleetLockError> {
        self.ask(Api::PreReboot).await
    }

    /// Tells that the machine is up and well. Telling it again is fine, and so
    /// it is without a permission from before.
    ///
    /// # Errors
    ///
    /// The server did not take note: tell it again later.
    pub async fn steady_state(&self) -> Result<(), FleetLockError> {
        self.ask(Api::SteadyState).await
    }

    /// Either of the two.
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn ask(&self, api: Api) -> Result<(), FleetLockError> {
        let failed = |error| FleetLockError::Request {
            api,
            reason: with_causes(error),
        };
        let mut url = self.base.clone();
        url.set_path(&format!("{}{}", self.base.path(), api.path()));
        let mut response = self
            .http
            .post(url)
            .header(HEADER, HEADER_VALUE)
            .header(reqwest::header::CONTENT_TYPE, "application/json")
            .body(self.body.clone())
            .send()
            .await
            .map_err(failed)?;
        let status = response.status();
        if status.is_success() {
            return Ok(());
        }
        // The answer is known already; its words are welcome, no more.
        let mut body = Vec::new();
        let read = async {
            while body.len() < MOST_BYTES
                && let Ok(Some(chunk)) = response.chunk().await
            {
                let room = MOST_BYTES.saturating_sub(body.len());
                body.extend(chunk.iter().take(room));
            }
        };
        let _ = tokio::time::timeout(WORDS_TIMEOUT, read).await;
        let (kind, value) = read_refusal(status.as_u16(), &body);
        Err(FleetLockError::Refused {
            api,
            status: status.as_u16(),
            kind,
            value,
        })
    }
}

/// Parses a base URL and ends its path with a slash, so that nothing of it gets
/// lost when `v1/…` is added.
fn base_url(text: &str) -> Result<Url, FleetLockError> {
    let bad = |reason: &str| FleetLockError::BaseUrl {
        url: text.to_owned(),
        reason: reason.to_owned(),
    };
    let mut url = Url::parse(text).map_err(|error| bad(&error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(bad("give one that starts with http:// or https://"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(bad("it may have no query and no fragment"));
    }
    if !url.path().ends_with('/') {
        url.set_path(&format!("{}/", url.path()));
    }
    Ok(url)
}

fn follow(attempt: redirect::Attempt<'_>) -> redirect::Action {
    match no_redirect(attempt.status(), attempt.url(), attempt.previous()) {
        Some(reason) => attempt.error(reason),
        None => attempt.follow(),
    }
}

/// Why a redirect to `to` is not followed, if it is not.
fn no_redirect(status: StatusCode, to: &Url, before: &[Url]) -> Option<&'static str> {
    let keeps_method = matches!(
        status,
        StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT
    );
    if to.scheme() != "https" && before.iter().any(|url| url.scheme() == "https") {
        Some("redirect from https to http refused")
    } else if !keeps_method {
        Some(
            "redirect that would turn POST into GET refused; correct base_url, or let the server answer with 308",
        )
    } else if before.len() > MOST_REDIRECTS {
        Some("too many redirects")
    } else {
        None
    }
}

/// reqwest says only "error sending request" and hides why in its sources. The
/// URL is left out, since it may have a password.
fn with_causes(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use axum::Router;
    use axum::body::Bytes;
    use axum::extract::State;
    use axum::http::{HeaderMap, Method, Uri, header};
    use axum::response::{IntoResponse as _, Response};
    use tokio::net::TcpListener;

    use super::*;

    /// A server that notes what it is asked and answers as it is told.
    #[derive(Clone, Default)]
    struct Asked(Arc<Mutex<Vec<String>>>);

    impl Asked {
        async fn start(self) -> String {
            let router = Router::new().fallback(answer).with_state(self);
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            tokio::spawn(async move { axum::serve(listener, router).await });
            format!("http://{address}")
        }

        fn take(&self) -> Vec<String> {
            std::mem::take(&mut self.0.lock().unwrap())
        }
    }

    async fn answer(
        State(asked): State<Asked>,
        method: Method,
        uri: Uri,
        headers: HeaderMap,
        body: Bytes,
    ) -> Response {
        let header = headers.get(HEADER).and_then(|value| value.to_str().ok());
        let body = String::from_utf8(body.to_vec()).unwrap();
        let path = uri.path();
        asked.0.lock().unwrap().push(format!(
            "{method} {path} {} {body}",
            header.unwrap_or_default()
        ));
        let to = |status: u16, target: &str| {
            let status = StatusCode::from_u16(status).unwrap();
            let path = path.split_once("/v1").unwrap().1;
            (status, [(header::LOCATION, format!("{target}/v1{path}"))]).into_response()
        };
        match path.split('/').nth(1).unwrap() {
            "full" => (
                StatusCode::LOCKED,
                r#"{"kind":"lock_held","value":"by another"}"#,
            )
                .into_response(),
            "proxy" => (StatusCode::BAD_GATEWAY, "<html>no</html>").into_response(),
            "moved" => to(308, "/new"),
            "login" => to(302, "/page"),
            "loop" => to(307, "/loop"),
            "flood" => (
                StatusCode::INTERNAL_SERVER_ERROR,
                axum::body::Body::from_stream(futures_util::stream::repeat_with(|| {
                    Ok::<_, std::io::Error>(Bytes::from_static(&[b'x'; 1024]))
                })),
            )
                .into_response(),
            _ => ().into_response(),
        }
    }

    fn client(base_url: &str) -> Result<FleetLockClient, FleetLockError> {
        FleetLockClient::new(ClientOptions {
            base_url: base_url.to_owned(),
            group: "default".to_owned(),
            id: "a1".into(),
            ca_pem: None,
        })
    }

    #[tokio::test]
    async fn no_part_of_the_base_url_gets_lost() {
        let asked = Asked::default();
        let server = asked.clone().start().await;
        for (base, path) in [
            ("", "/v1"),
            ("/", "/v1"),
            ("/fleet", "/fleet/v1"),
            ("/fleet/", "/fleet/v1"),
            ("/a/b%2Fc", "/a/b%2Fc/v1"),
        ] {
            let client = client(&format!("{server}{base}")).unwrap();
            client.pre_reboot().await.unwrap();
            client.steady_state().await.unwrap();
            let body = r#"true {"client_params":{"id":"a1","group":"default"}}"#;
            assert_eq!(
                asked.take(),
                [
                    format!("POST {path}/pre-reboot {body}"),
                    format!("POST {path}/steady-state {body}")
                ]
            );
        }
    }

    #[tokio::test]
    async fn everything_but_a_plain_yes_is_a_no() {
        let asked = Asked::default();
        let server = asked.clone().start().await;
        for (path, kind, words) in [
            (
                "/full",
                "lock_held",
                "refuses pre-reboot: lock_held (HTTP 423): by another",
            ),
            ("/proxy", "generic_http_502", "<html>no</html>"),
            ("/login", "client_failed_request", "turn POST into GET"),
            ("/loop", "client_failed_request", "too many redirects"),
            ("/flood", "generic_http_500", "xxx"),
        ] {
            let client = client(&format!("{server}{path}")).unwrap();
            let error = client.pre_reboot().await.unwrap_err();
            assert_eq!(error.kind(), kind);
            assert!(error.to_string().contains(words), "{error}");
            assert!(!asked.take().iter().any(|line| line.starts_with("GET")));
        }
        // The body goes along.
        let moved = client(&format!("{server}/moved")).unwrap();
        moved.steady_state().await.unwrap();
        assert!(asked.take()[1].starts_with("POST /new/v1/steady-state true {"));
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_no_yes_and_no_password_is_told() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let client = client(&format!("http://user:secret@{address}/")).unwrap();
        let error = client.pre_reboot().await.unwrap_err();
        assert_eq!(error.kind(), "client_failed_request");
        let text = error.to_string();
        assert!(text.contains("refused"), "{text}");
        assert!(!text.contains("secret"), "{text}");
    }

    #[test]
    fn redirects_keep_the_method_and_the_secrecy() {
        let urls = |texts: &[&str]| -> Vec<Url> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        for (status, to, before, followed) in [
            (307, "http://b/", &["http://a/"][..], true),
            (308, "https://b/", &["http://a/"], true),
            (308, "https://b/", &["https://a/"], true),
            (301, "https://b/", &["http://a/"], false),
            (302, "http://b/", &["http://a/"], false),
            (303, "http://b/", &["http://a/"], false),
            (307, "http://b/", &["https://a/"], false),
            (307, "http://c/", &["https://a/", "https://b/"], false),
            (307, "http://b/", &["http://a/"; 11], false),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            let no = no_redirect(status, &to.parse().unwrap(), &urls(before));
            assert_eq!(no.is_none(), followed, "{status} {to} {before:?}: {no:?}");
        }
    }

    #[test]
    fn settings_that_cannot_work_are_told_at_the_start() {
        for url in [
            "",
            "fleet.example.org",
            "ftp://fleet.example.org/",
            "http://",
            "http://h/?q",
            "http://h/#f",
        ] {
            let error = client(url).unwrap_err();
            assert!(
                matches!(error, FleetLockError::BaseUrl { .. }),
                "{url}: {error}"
            );
        }
        for (id, group) in [("", "default"), ("a", ""), ("a", "x/y")] {
            let options = ClientOptions {
                base_url: "http://h/".to_owned(),
                group: group.to_owned(),
                id: id.into(),
                ca_pem: None,
            };
            let error = FleetLockClient::new(options).unwrap_err();
            assert!(matches!(error, FleetLockError::Client { .. }), "{error}");
        }
    }
}
