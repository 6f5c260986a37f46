//! HTTP, rescans and shutdown around the pure modules.
//!
//! | path | method | answer |
//! |---|---|---|
//! | `/v1/update/`, `/v1/update` | POST | Omaha response, 200 for every well-formed request |
//! | `/p/<sha256>/<name>` | GET, HEAD | the payload file |
//! | `/healthz` | GET | 200, or 503 while the payload folder cannot be read |

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use axum::body::Bytes;
use axum::extract::{ConnectInfo, DefaultBodyLimit, FromRequest, Path, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use bounded_http::{Limits, Tcp};
use omaha_protocol::{Request, limits};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, spawn_blocking};

use crate::ServerError;
use crate::answer::{BaseUrl, answer};
use crate::catalogue::Catalogue;
use crate::decide::Policy;
use crate::error::in_one_line;
use crate::files::Downloads;
use crate::labels::Defaults;
use crate::scan::Scanner;
use crate::{files, journal};

/// How long a client may take to send its request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a client may take nothing of its download.
const STALL: Duration = Duration::from_secs(120);
/// How long downloads may go on after a shutdown was asked for.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

/// How to serve.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The payload folder; only read.
    pub folder: PathBuf,
    /// The address; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The URL in offers; without it, what the client has in its `Host` header.
    pub public_url: Option<BaseUrl>,
    /// Labels of payloads that have none.
    pub defaults: Defaults,
    /// What every answer says.
    pub policy: Policy,
    /// How often the folder is looked at.
    pub rescan: Duration,
    /// At a time; seven eighths of them may be downloads.
    pub connections: usize,
}

/// A server that listens and knows its folder, but does not answer yet.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    settings: Settings,
    scanner: Scanner,
    catalogue: watch::Sender<Arc<Catalogue>>,
}

#[derive(Clone)]
struct Shared {
    catalogue: watch::Receiver<Arc<Catalogue>>,
    public_url: Option<BaseUrl>,
    policy: Policy,
    address: SocketAddr,
    downloads: Downloads,
    /// The last look at the folder succeeded.
    is_healthy: Arc<AtomicBool>,
}

impl Server {
    /// Scans the folder and begins to listen.
    pub async fn bind(settings: Settings) -> Result<Self, ServerError> {
        let scanner = Scanner::new(&settings.folder, settings.defaults.clone())?;
        // Hashing a large folder takes its time.
        tracing::info!("reading the payloads in {}", scanner.folder().display());
        let (scanner, catalogue) = blocking(scanner, Scanner::scan_settled).await;
        let catalogue = catalogue?;
        let listen = |source| ServerError::Listen {
            address: settings.listen,
            source,
        };
        let listener = TcpListener::bind(settings.listen).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        Ok(Self {
            listener,
            address,
            settings,
            scanner,
            catalogue: watch::Sender::new(Arc::new(catalogue)),
        })
    }

    /// The address that is listened on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The payload folder, without symbolic links in its path.
    pub fn folder(&self) -> &std::path::Path {
        self.scanner.folder()
    }

    /// The catalogue, and all that follow.
    pub fn catalogue(&self) -> watch::Receiver<Arc<Catalogue>> {
        self.catalogue.subscribe()
    }

    /// Answers until `shutdown` completes; then lets what is under way finish for
    /// a few seconds.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let shared = Shared {
            catalogue: self.catalogue.subscribe(),
            public_url: self.settings.public_url.clone(),
            policy: self.settings.policy,
            address: self.address,
            downloads: Downloads {
                permits: Arc::new(Semaphore::new(most_downloads(self.settings.connections))),
                suspects: self.scanner.suspects(),
            },
            is_healthy: Arc::new(AtomicBool::new(true)),
        };
        let stop = self.scanner.stop();
        let rescans = rescan_forever(
            self.scanner,
            self.catalogue,
            Arc::clone(&shared.is_healthy),
            self.settings.rescan,
        );
        // How long a download takes has no limit: a slow one that gets on is a good one.
        let limits = Limits {
            connections: self.settings.connections,
            life: None,
            grace: SHUTDOWN_GRACE,
            ..Limits::default()
        };
        let listener = Tcp::new(self.listener, STALL);
        let router = router(shared);
        let answers = |client| router.clone().layer(Extension(ConnectInfo(client)));
        bounded_http::serve(listener, answers, limits, shutdown).await;
        rescans.abort();
        // The runtime waits for the file that is being read.
        stop.store(true, Ordering::Relaxed);
    }
}

/// Downloads may last for days; checks must get in meanwhile.
fn most_downloads(connections: usize) -> usize {
    connections.saturating_sub(connections.div_ceil(8)).max(1)
}

/// Scanning blocks, so it happens on a thread that may.
async fn blocking<T: Send + 'static>(
    mut scanner: Scanner,
    work: impl FnOnce(&mut Scanner) -> T + Send + 'static,
) -> (Scanner, T) {
    spawn_blocking(move || {
        let done = work(&mut scanner);
        (scanner, done)
    })
    .await
    .expect("a scan does not panic, and the runtime waits for it")
}

/// Publishes what has gone or changed before anything new is read, and looks again
/// between files, so that a release that was taken away is not offered meanwhile.
fn rescan_forever(
    mut scanner: Scanner,
    published: watch::Sender<Arc<Catalogue>>,
    is_healthy: Arc<AtomicBool>,
    interval: Duration,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut trouble = None;
        let mut has_more = false;
        loop {
            if !has_more {
                tokio::time::sleep(interval).await;
            }
            let (surveyed, (result, catalogue)) = blocking(scanner, |scanner| {
                let result = scanner.survey(SystemTime::now());
                (result, scanner.catalogue())
            })
            .await;
            let failure = result.err().map(|error| in_one_line(&error));
            is_healthy.store(failure.is_none(), Ordering::Relaxed);
            journal::surveyed(trouble.as_deref(), failure.as_deref());
            trouble = failure;
            let before = published.borrow().clone();
            if *before != catalogue {
                journal::rescanned(surveyed.folder(), &before, &catalogue);
                published.send_replace(Arc::new(catalogue));
            }
            (scanner, has_more) =
                blocking(surveyed, move |scanner| read_some(scanner, interval)).await;
        }
    })
}

/// Reads new files for about this long, one at least. Whether there was one.
fn read_some(scanner: &mut Scanner, time: Duration) -> bool {
    let begun = Instant::now();
    let mut has_read = false;
    while scanner.read_next(SystemTime::now) {
        has_read = true;
        if begun.elapsed() >= time {
            break;
        }
    }
    has_read
}

fn router(shared: Shared) -> Router {
    let update = post(update);
    Router::new()
        .route("/v1/update", update.clone())
        .route("/v1/update/", update)
        .route("/p/{sha256}/{name}", get(file))
        .route("/healthz", get(health))
        .fallback(async || files::not_found())
        .method_not_allowed_fallback(async || {
            (
                StatusCode::METHOD_NOT_ALLOWED,
                "this method does nothing here\n",
            )
        })
        .layer(DefaultBodyLimit::max(limits::DOCUMENT_BYTES))
        .with_state(shared)
}

async fn update(
    State(shared): State<Shared>,
    ConnectInfo(client): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    request: axum::extract::Request,
) -> Response {
    let refuse = |status, reason: String| {
        journal::refused(client, &reason);
        (status, reason + "\n").into_response()
    };
    let body = match tokio::time::timeout(REQUEST_TIMEOUT, Bytes::from_request(request, &())).await
    {
        Ok(Ok(body)) => body,
        Ok(Err(rejection)) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => {
            let reason = format!("request is longer than {} bytes", limits::DOCUMENT_BYTES);
            return refuse(rejection.status(), reason);
        }
        Ok(Err(rejection)) => return refuse(rejection.status(), rejection.body_text()),
        Err(_elapsed) => {
            return refuse(
                StatusCode::REQUEST_TIMEOUT,
                "request did not arrive in time".to_owned(),
            );
        }
    };
    let request = match Request::parse(&body) {
        Ok(request) => request,
        Err(error) => return refuse(StatusCode::BAD_REQUEST, in_one_line(&error)),
    };
    let base_url = base_url(&shared, &headers);
    let catalogue = shared.catalogue.borrow().clone();
    // A clock before 1970 lets everything be in time.
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let answer = answer(&request, &catalogue, &shared.policy, &base_url, now);
    journal::answered(client, &request, &answer);
    let content_type = [(header::CONTENT_TYPE, "text/xml; charset=utf-8")];
    (content_type, answer.response.to_xml()).into_response()
}

fn base_url(shared: &Shared, headers: &HeaderMap) -> BaseUrl {
    let from_host = || {
        let host = headers.get(header::HOST)?.to_str().ok()?;
        BaseUrl::from_host(host)
    };
    let from_address = || {
        BaseUrl::from_host(&shared.address.to_string()).expect("a socket address is a valid host")
    };
    shared
        .public_url
        .clone()
        .or_else(from_host)
        .unwrap_or_else(from_address)
}

async fn health(State(shared): State<Shared>) -> Response {
    if shared.is_healthy.load(Ordering::Relaxed) {
        "ok\n".into_response()
    } else {
        let text = "the payload folder cannot be read, the log says why\n";
        (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
    }
}

async fn file(
    State(shared): State<Shared>,
    ConnectInfo(client): ConnectInfo<SocketAddr>,
    Path((sha256, name)): Path<(String, String)>,
    method: Method,
    headers: HeaderMap,
) -> Response {
    let catalogue = shared.catalogue.borrow().clone();
    let Some(artifact) = catalogue.file(&sha256, &name) else {
        return files::not_found();
    };
    files::serve(client, artifact, &method, &headers, &shared.downloads).await
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    #[test]
    fn an_eighth_of_the_connections_is_no_download() {
        for (connections, downloads) in [(1, 1), (2, 1), (8, 7), (9, 7), (496, 434), (4096, 3584)] {
            assert_eq!(most_downloads(connections), downloads, "{connections}");
        }
    }

    #[tokio::test]
    async fn the_scanner_hears_of_a_file_that_a_download_found_changed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().canonicalize().unwrap().join("u-1.2.3");
        let content = include_bytes!("../../fixtures/crau-v1/unsigned.payload");
        std::fs::write(&file, content).unwrap();
        let server = Server::bind(Settings {
            folder: folder.path().to_owned(),
            listen: ([127, 0, 0, 1], 0).into(),
            public_url: None,
            defaults: Defaults::default(),
            policy: Policy::default(),
            rescan: Duration::from_secs(3600),
            connections: 1,
        });
        let server = server.await.unwrap();
        let (address, suspects) = (server.address(), server.scanner.suspects());
        let sha256 = server.catalogue.borrow().artifacts[0].sha256_hex();
        let running = tokio::spawn(server.run(std::future::pending()));
        std::fs::write(&file, [0; 1000]).unwrap();
        let mut client = TcpStream::connect(address).await.unwrap();
        let request = format!("GET /p/{sha256}/u-1.2.3 HTTP/1.0\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.0 503"), "{answer}");
        assert_eq!(suspects.take(), [file].into());
        running.abort();
    }
}
