//! Where scrapers get in: a socket file or a TCP address, HTTP on both.

use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use bounded_http::{Limits, Tcp};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

use super::Metrics;
use crate::config::Listen;

/// Any process of the machine may read them; they are not secret.
const SOCKET_MODE: u32 = 0o666;
/// A scraper must take its answer so soon.
const STALL: Duration = Duration::from_secs(30);

/// Why metrics cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The address cannot be listened on.
    #[error("cannot listen for metrics on {listen}")]
    Listen {
        /// Where.
        listen: Listen,
        /// Why.
        source: io::Error,
    },
}

/// Listens, and answers once it is [served](Endpoint::serve).
#[derive(Debug)]
pub struct Endpoint {
    listener: Listener,
    router: Router,
}

#[derive(Debug)]
enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Endpoint {
    /// Listens for `GET /metrics`.
    ///
    /// A socket file that nobody answers at is what an earlier process left
    /// behind, and replaced. Anything else at its path is an error.
    ///
    /// # Errors
    ///
    /// The address is taken, or cannot be listened on.
    pub async fn bind(listen: &Listen, metrics: Arc<Metrics>) -> Result<Self, EndpointError> {
        let bound = match listen {
            Listen::Unix(path) => bind_socket(path).await.map(Listener::Unix),
            Listen::Tcp(address) => TcpListener::bind(address).await.map(Listener::Tcp),
        };
        let listener = bound.map_err(|source| EndpointError::Listen {
            listen: listen.clone(),
            source,
        })?;
        let router = route(metrics);
        Ok(Self { listener, router })
    }

    /// The TCP address, if it is one.
    #[must_use]
    pub fn address(&self) -> Option<std::net::SocketAddr> {
        match &self.listener {
            Listener::Unix(_) => None,
            Listener::Tcp(listener) => listener.local_addr().ok(),
        }
    }

    /// Answers until `shutdown` is cancelled.
    pub async fn serve(self, shutdown: CancellationToken) {
        let limits = Limits {
            connections: 16,
            ..Limits::default()
        };
        let (router, shutdown) = (self.router, shutdown.cancelled());
        match self.listener {
            Listener::Unix(listener) => {
                bounded_http::serve(listener, |_| router.clone(), limits, shutdown).await;
            }
            Listener::Tcp(listener) => {
                let listener = Tcp::new(listener, STALL);
                bounded_http::serve(listener, |_| router.clone(), limits, shutdown).await;
            }
        }
    }
}

/// `GET /metrics`.
pub(crate) fn route(metrics: Arc<Metrics>) -> Router {
    Router::new()
        .route("/metrics", get(answer))
        .with_state(metrics)
}

async fn answer(State(metrics): State<Arc<Metrics>>) -> impl IntoResponse {
    ([(CONTENT_TYPE, super::CONTENT_TYPE)], metrics.encode())
}

async fn bind_socket(path: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
        Ok(there) if !there.file_type().is_socket() => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "something that is no socket is there; remove it or choose another path",
            ));
        }
        Ok(_) => match UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path)?;
            }
            Err(error) => return Err(error),
            Ok(_) => {
                return Err(io::Error::new(
                    io::ErrorKind::AddrInUse,
                    "another process answers there",
                ));
            }
        },
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(SOCKET_MODE))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_nothing_else_is_touched() {
        let folder = tempfile::tempdir().unwrap();
        let bind = async |path: &Path| {
            Endpoint::bind(&Listen::Unix(path.into()), Arc::new(Metrics::new())).await
        };
        let cause = |result: Result<Endpoint, EndpointError>| {
            let EndpointError::Listen { source, .. } = result.unwrap_err();
            source.kind()
        };
        let path = folder.path().join("metrics.sock");
        drop(UnixListener::bind(&path).unwrap());
        let first = bind(&path).await.unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, SOCKET_MODE);
        assert_eq!(cause(bind(&path).await), io::ErrorKind::AddrInUse);

        let shutdown = CancellationToken::new();
        let served = tokio::spawn(first.serve(shutdown.clone()));
        let mut stream = UnixStream::connect(&path).await.unwrap();
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .await
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.contains(super::super::CONTENT_TYPE), "{answer}");
        assert!(answer.ends_with("# EOF\n"), "{answer}");
        shutdown.cancel();
        served.await.unwrap();

        let file = folder.path().join("precious");
        std::fs::write(&file, "data").unwrap();
        assert_eq!(cause(bind(&file).await), io::ErrorKind::AlreadyExists);
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert_eq!(cause(bind(&link).await), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "data");
        // A folder below /run is not there after each boot.
        bind(&folder.path().join("new/metrics.sock")).await.unwrap();
    }
}
