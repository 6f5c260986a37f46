//! HTTP/1 for clients that nobody vouches for: how many may be connected, how
//! long each may take, and how a server ends. It knows no path and no answer.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

/// Bytes that a connection buffers: a longer head is refused.
const MOST_BUFFERED: usize = 16 * 1024;

/// What connections may cost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// So many at a time; further ones wait in the system's backlog.
    pub(crate) connections: usize,
    /// From the connection, or the last answer, to the end of a request's head.
    pub(crate) head: Duration,
    /// Then a connection is closed after the answer that it waits for.
    pub(crate) life: Duration,
    /// For that last answer, and for all of them at the server's end.
    pub(crate) grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            head: Duration::from_secs(10),
            life: Duration::from_secs(5 * 60),
            grace: Duration::from_secs(15),
        }
    }
}

/// Answers until `shutdown` is cancelled; what is under way then may finish.
pub(crate) async fn serve<L>(
    mut listener: L,
    router: Router,
    limits: Limits,
    shutdown: CancellationToken,
) where
    L: Listener,
{
    let permits = Arc::new(Semaphore::new(limits.connections));
    let connections = TaskTracker::new();
    loop {
        let accept = async {
            // First the permit, so that no connection is taken that cannot be
            // served.
            let permit = Arc::clone(&permits)
                .acquire_owned()
                .await
                .expect("the semaphore is never closed");
            (permit, listener.accept().await.0)
        };
        let (permit, stream) = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = accept => accepted,
        };
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.head)
            .max_buf_size(MOST_BUFFERED)
            .serve_connection(
                TokioIo::new(stream),
                TowerToHyperService::new(router.clone()),
            );
        let shutdown = shutdown.clone();
        connections.spawn(async move {
            let mut connection = pin!(connection);
            let end = async {
                tokio::select! {
                    () = shutdown.cancelled() => {}
                    () = tokio::time::sleep(limits.life) => {}
                }
            };
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = end => {
                    connection.as_mut().graceful_shutdown();
                    bounded(limits.grace, connection).await.unwrap_or(Ok(()))
                }
            };
            if let Err(error) = ended {
                debug!("connection: {error}");
            }
            drop(permit);
        });
    }
    // Nobody is let in while the last ones finish.
    drop(listener);
    connections.close();
    if bounded(limits.grace, connections.wait()).await.is_none() {
        warn!(
            connections = connections.len(),
            "the shutdown cuts connections off"
        );
    }
}

async fn bounded<F: Future>(limit: Duration, future: F) -> Option<F::Output> {
    tokio::time::timeout(limit, future).await.ok()
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    async fn start(limits: Limits, router: Router) -> (std::net::SocketAddr, CancellationToken) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        tokio::spawn(serve(listener, router, limits, shutdown.clone()));
        (address, shutdown)
    }

    async fn read_all(mut stream: TcpStream) -> String {
        let mut answer = String::new();
        timeout(SOON, stream.read_to_string(&mut answer))
            .await
            .expect("the server closes")
            .unwrap();
        answer
    }

    #[tokio::test]
    async fn silent_slow_and_long_heads_are_cut_off_and_leave_room() {
        let limits = Limits {
            connections: 1,
            head: Duration::from_millis(200),
            ..Limits::default()
        };
        let router = Router::new().route("/", get(async || "here"));
        let (address, _shutdown) = start(limits, router).await;

        let silent = TcpStream::connect(address).await.unwrap();
        let mut slow = TcpStream::connect(address).await.unwrap();
        slow.write_all(b"GET / HTTP/1.1\r\nHost: x").await.unwrap();
        let mut long = TcpStream::connect(address).await.unwrap();
        long.write_all(&[b"GET / HTTP/1.1\r\nA: ", &[b'a'; 20_000][..]].concat())
            .await
            .unwrap();
        // One at a time, so each of them is gone before the next is looked at.
        assert_eq!(read_all(silent).await, "");
        assert!(!read_all(slow).await.contains("200 OK"));
        assert!(read_all(long).await.starts_with("HTTP/1.1 431"));

        let mut good = TcpStream::connect(address).await.unwrap();
        good.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .await
            .unwrap();
        assert!(read_all(good).await.ends_with("here"));
    }

    #[tokio::test]
    async fn a_shutdown_lets_the_answer_under_way_finish() {
        let begun = Arc::new(tokio::sync::Notify::new());
        let go_on = Arc::new(tokio::sync::Notify::new());
        let (tell, wait) = (Arc::clone(&begun), Arc::clone(&go_on));
        let router = Router::new().route(
            "/",
            get(async move || {
                tell.notify_one();
                wait.notified().await;
                "finished"
            }),
        );
        let (address, shutdown) = start(Limits::default(), router).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .unwrap();
        begun.notified().await;
        shutdown.cancel();
        go_on.notify_one();
        assert!(read_all(stream).await.ends_with("finished"));
    }

    #[tokio::test]
    async fn no_connection_lives_for_ever() {
        let limits = Limits {
            life: Duration::from_millis(200),
            ..Limits::default()
        };
        let router = Router::new().route("/", get(async || "here"));
        let (address, _shutdown) = start(limits, router).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .unwrap();
        assert!(read_all(stream).await.ends_with("here"));
    }
}
