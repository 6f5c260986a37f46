//! HTTP/1 for clients that nobody vouches for: how many may be connected, how
//! long each may keep silent, and how a server ends. It knows no path and no answer.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{setsockopt, sockopt::TcpUserTimeout};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Bytes that a connection buffers: a longer head is refused.
const MOST_BUFFERED: usize = 16 * 1024;
/// Each buffers up to a chunk of a file and what the system holds.
const MOST_CONNECTIONS: usize = 4096;
/// A download has its connection and its file open.
const FILES_PER_CONNECTION: u64 = 2;
/// Files that are open besides: the listener, the log, the runtime.
const OTHER_FILES: u64 = 32;
/// Until the next attempt to take a connection after one that failed.
const ACCEPT_AGAIN: Duration = Duration::from_millis(500);

/// What connections may cost.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// So many at a time; further ones wait in the system's backlog.
    pub connections: usize,
    /// From the connection, or the last answer, to the end of a request's head.
    pub head: Duration,
    /// Then a connection is closed after the answer that it waits for. `None` where a
    /// slow download that gets on is a good one.
    pub life: Option<Duration>,
    /// For that last answer, and for all of them at the server's end.
    pub grace: Duration,
}

impl Default for Limits {
    /// For short answers, and as many connections as this process may have files open for.
    fn default() -> Self {
        // Without an answer, what systems have had for decades.
        let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _hard)| soft);
        Self {
            connections: connections_within(files),
            head: Duration::from_secs(10),
            life: Some(Duration::from_secs(5 * 60)),
            grace: Duration::from_secs(15),
        }
    }
}

/// Lets this process have as many files open as the most connections need, or as many as
/// the system's hard limit allows; to be called before [`Limits::default`]. The soft limit
/// of old is there for programs that use `select`, and what this process starts inherits
/// the new one.
pub fn raise_open_files() -> io::Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let raised = raised_open_files(soft, hard);
    if raised != soft {
        setrlimit(Resource::RLIMIT_NOFILE, raised, hard)?;
    }
    Ok(())
}

fn raised_open_files(soft: u64, hard: u64) -> u64 {
    let connections = u64::try_from(MOST_CONNECTIONS).unwrap_or(u64::MAX);
    let needed = connections
        .saturating_mul(FILES_PER_CONNECTION)
        .saturating_add(OTHER_FILES);
    soft.max(needed.min(hard))
}

fn connections_within(files: u64) -> usize {
    let fit = files.saturating_sub(OTHER_FILES) / FILES_PER_CONNECTION;
    usize::try_from(fit).map_or(MOST_CONNECTIONS, |fit| fit.clamp(1, MOST_CONNECTIONS))
}

/// Answers until `shutdown` completes; what is under way then may finish. `router` is
/// asked for the answers to each client by its address.
pub async fn serve<L: Listener>(
    mut listener: L,
    router: impl Fn(L::Addr) -> Router,
    limits: Limits,
    shutdown: impl Future<Output = ()>,
) {
    let permits = Arc::new(Semaphore::new(limits.connections));
    let connections = TaskTracker::new();
    let ending = CancellationToken::new();
    let mut shutdown = pin!(shutdown);
    loop {
        let accept = async {
            // First the permit, so that no connection is taken that cannot be
            // served.
            let permit = Arc::clone(&permits)
                .acquire_owned()
                .await
                .expect("the semaphore is never closed");
            (permit, listener.accept().await)
        };
        let (permit, (stream, client)) = tokio::select! {
            () = shutdown.as_mut() => break,
            accepted = accept => accepted,
        };
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.head)
            .max_buf_size(MOST_BUFFERED)
            .serve_connection(
                TokioIo::new(stream),
                TowerToHyperService::new(router(client)),
            );
        let ending = ending.clone();
        connections.spawn(async move {
            let mut connection = pin!(connection);
            let end = async {
                tokio::select! {
                    () = ending.cancelled() => {}
                    () = at_the_end_of(limits.life) => {}
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
                tracing::debug!("connection: {error}");
            }
            drop(permit);
        });
    }
    // Nobody is let in while the last ones finish.
    drop(listener);
    ending.cancel();
    connections.close();
    if bounded(limits.grace, connections.wait()).await.is_none() {
        tracing::warn!("the shutdown cuts off {} connections", connections.len());
    }
}

async fn at_the_end_of(life: Option<Duration>) {
    match life {
        Some(life) => tokio::time::sleep(life).await,
        None => std::future::pending().await,
    }
}

async fn bounded<F: Future>(limit: Duration, future: F) -> Option<F::Output> {
    tokio::time::timeout(limit, future).await.ok()
}

/// Takes TCP connections, breaks those that stall, and tells once when none can be taken.
#[derive(Debug)]
pub struct Tcp {
    listener: TcpListener,
    stall: Duration,
    trouble: AcceptTrouble,
}

impl Tcp {
    /// A connection is broken when its client takes nothing for as long as `stall` of
    /// what is sent to it.
    #[must_use]
    pub fn new(listener: TcpListener, stall: Duration) -> Self {
        Self {
            listener,
            stall,
            trouble: AcceptTrouble::default(),
        }
    }
}

impl Listener for Tcp {
    type Io = TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok((stream, client)) => {
                    self.trouble.over();
                    close_when_stalled(&stream, self.stall);
                    return (stream, client);
                }
                // One client that has gone again says nothing of the next.
                Err(error) if is_of_one_client(&error) => {}
                Err(error) => {
                    self.trouble.tell(&error);
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

fn is_of_one_client(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
    )
}

/// Tells of failures in a row once, and of their end.
#[derive(Debug, Default)]
struct AcceptTrouble(bool);

impl AcceptTrouble {
    fn tell(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.0, true) {
            tracing::error!("no connection can be accepted, trying on: {error}");
        }
    }

    fn over(&mut self) {
        if std::mem::take(&mut self.0) {
            tracing::info!("connections are accepted again");
        }
    }
}

/// The system watches what is sent but not taken, whether the client has gone or
/// does not read, and breaks the connection; any progress starts its clock anew.
/// A timer around writes would not see progress: a large buffer of the system lets
/// nothing be written for long while a slow client empties it.
fn close_when_stalled(stream: &TcpStream, limit: Duration) {
    let milliseconds = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
    if let Err(error) = setsockopt(stream, TcpUserTimeout, &milliseconds) {
        tracing::debug!("a stalled connection will not be closed: {error}");
    }
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, Bytes};
    use axum::routing::get;
    use futures_util::stream;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::oneshot;
    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    /// One at a time, none of which ends by itself.
    fn limits() -> Limits {
        Limits {
            connections: 1,
            head: SOON,
            life: None,
            grace: SOON,
        }
    }

    /// `/` is short, `/endless` has no end.
    fn router() -> Router {
        let zeros = || {
            let chunk = Bytes::from(vec![0; 64 << 10]);
            stream::repeat_with(move || Ok::<_, io::Error>(chunk.clone()))
        };
        Router::new()
            .route("/", get(async || "here"))
            .route("/endless", get(async move || Body::from_stream(zeros())))
    }

    async fn start(limits: Limits, router: Router) -> (SocketAddr, oneshot::Sender<()>) {
        start_with(limits, SOON, router).await
    }

    async fn start_with(
        limits: Limits,
        stall: Duration,
        router: Router,
    ) -> (SocketAddr, oneshot::Sender<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let listener = Tcp::new(listener, stall);
        let answers = move |_| router.clone();
        tokio::spawn(serve(listener, answers, limits, async {
            let _ = stopped.await;
        }));
        (address, stop)
    }

    async fn send(address: SocketAddr, bytes: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream
    }

    async fn read_all(mut stream: TcpStream) -> String {
        let mut answer = String::new();
        timeout(SOON, stream.read_to_string(&mut answer))
            .await
            .expect("the server closes")
            .unwrap();
        answer
    }

    async fn is_served(address: SocketAddr) {
        let request = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        let answer = read_all(send(address, request).await).await;
        assert!(answer.ends_with("here"), "{answer}");
    }

    #[tokio::test]
    async fn silent_slow_idle_and_long_ones_are_cut_off_and_leave_room() {
        let limits = Limits {
            head: Duration::from_millis(200),
            ..limits()
        };
        let (address, _stop) = start(limits, router()).await;
        let silent = TcpStream::connect(address).await.unwrap();
        let slow = send(address, b"GET / HTTP/1.1\r\nHost: x").await;
        let idle = send(address, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
        let long = [b"GET / HTTP/1.1\r\nA: ", &[b'a'; 20_000][..]].concat();
        let long = send(address, &long).await;
        // One at a time, so each of them is gone before the next is looked at.
        assert_eq!(read_all(silent).await, "");
        assert!(!read_all(slow).await.contains("200 OK"));
        assert!(read_all(idle).await.ends_with("here"));
        assert!(read_all(long).await.starts_with("HTTP/1.1 431"));
        is_served(address).await;
    }

    #[tokio::test]
    async fn who_takes_nothing_of_a_download_is_cut_off_and_who_is_slow_is_not() {
        let stall = Duration::from_millis(500);
        let limits = Limits {
            connections: 2,
            // Neither is for answers, however long they take.
            head: stall,
            ..limits()
        };
        let (address, _stop) = start_with(limits, stall, router()).await;
        let request = b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n";
        let stalled = send(address, request).await;
        let mut slow = send(address, request).await;
        // Both places are taken until the stalled one is gone.
        let next = tokio::spawn(is_served(address));
        let mut some = vec![0; 256 << 10];
        let begun = tokio::time::Instant::now();
        while begun.elapsed() < 4 * stall || !next.is_finished() {
            assert!(
                begun.elapsed() < SOON,
                "the stalled download holds its place"
            );
            slow.read_exact(&mut some).await.expect("it gets on");
            tokio::time::sleep(stall / 10).await;
        }
        next.await.unwrap();
        drop(stalled);
    }

    #[tokio::test]
    async fn a_shutdown_lets_the_answer_under_way_finish_and_no_idle_one_hold_it_up() {
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
        let (address, stop) = start(limits(), router).await;
        let stream = send(address, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
        begun.notified().await;
        stop.send(()).unwrap();
        go_on.notify_one();
        assert!(read_all(stream).await.ends_with("finished"));
    }

    #[tokio::test]
    async fn where_answers_are_short_no_connection_lives_for_ever() {
        let limits = Limits {
            life: Some(Duration::from_millis(200)),
            ..limits()
        };
        let (address, _stop) = start(limits, router()).await;
        let idle = send(address, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(read_all(idle).await.ends_with("here"));
    }

    #[test]
    fn connections_stay_below_the_open_files() {
        for (files, connections) in [
            (0, 1),
            (33, 1),
            (64, 16),
            (1024, 496),
            (1 << 20, 4096),
            (u64::MAX, 4096),
        ] {
            assert_eq!(connections_within(files), connections, "{files}");
        }
    }

    #[test]
    fn open_files_are_raised_to_what_connections_need_and_never_lowered() {
        for (soft, hard, raised) in [
            (1024, 1 << 19, 8224),
            (1024, u64::MAX, 8224),
            (1024, 4096, 4096),
            (1024, 1024, 1024),
            (1 << 16, 1 << 19, 1 << 16),
        ] {
            assert_eq!(raised_open_files(soft, hard), raised, "{soft} {hard}");
        }
        assert_eq!(connections_within(8224), MOST_CONNECTIONS);
    }
}
