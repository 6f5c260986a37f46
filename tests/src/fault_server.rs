//! An HTTP/1.1 server on loopback that can misbehave, and remembers what it was
//! asked.
//!
//! Written on plain sockets, because an HTTP library would refuse to send most
//! of what is needed here. One request per connection.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Result, bail};

/// What a request may at most hold; a client that sends more is cut off.
const REQUEST_LIMIT: u64 = 1 << 20;
const CHUNK: usize = 64 << 10;

/// One request as it arrived.
#[derive(Debug, Clone)]
pub struct Request {
    /// `GET`, `POST`, …
    pub method: String,
    /// From the first `/`, not decoded.
    pub path: String,
    /// What the client calls this server.
    pub host: String,
    /// First byte and, when given, last byte of a `Range: bytes=` header.
    pub range: Option<(u64, Option<u64>)>,
    /// The `If-Range` header.
    pub if_range: Option<String>,
    /// The body.
    pub body: Vec<u8>,
}

/// What to answer.
#[derive(Debug, Clone)]
pub enum Answer {
    /// No more than a status, for example 404.
    Status(u16),
    /// Status 200 and this document.
    Document(Vec<u8>),
    /// Status 302 to this URL.
    Redirect(String),
    /// A file, or the asked range of it, with its fault.
    File(Arc<Vec<u8>>, Fault),
}

/// What goes wrong with a file. Offsets are counted in the file, not in the
/// answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// The connection closes before this byte.
    TruncateAt(u64),
    /// Nothing more comes from this byte on, and the connection stays open.
    StallAt(u64),
    /// Zeros follow the file for ever, with no length announced.
    Endless,
    /// Status 200 and the whole file, whatever range was asked.
    IgnoreRange,
    /// Status 206 with the right bytes under a `Content-Range` one byte off.
    WrongContentRange,
    /// One bit of this byte is flipped.
    FlipBitAt(u64),
    /// No more than this many bytes in a second.
    Slow(u64),
}

/// A request and how much of the answer's body was handed to the client.
#[derive(Debug, Clone)]
pub struct Exchange {
    /// What was asked.
    pub request: Request,
    /// Bytes of body.
    pub sent: u64,
}

/// A running server. It ends when this value is dropped.
pub struct FaultServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

struct Shared {
    answer: Box<dyn Fn(&Request) -> Answer + Send + Sync>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    exchanges: Vec<Exchange>,
    stopping: bool,
}

impl FaultServer {
    /// Listens on a free port of loopback and answers each request with `answer`.
    ///
    /// # Errors
    ///
    /// No port is free.
    pub fn start(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            answer: Box::new(answer),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let accepting = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.accept(&listener)
        });
        Ok(Self {
            address,
            shared,
            accepting: Some(accepting),
        })
    }

    /// The URL of `path` on this server.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Every request so far, in order of arrival.
    #[must_use]
    pub fn exchanges(&self) -> Vec<Exchange> {
        self.shared.state().exchanges.clone()
    }

    /// Waits until `done` is true of the requests so far, at most for `limit`.
    ///
    /// # Errors
    ///
    /// It did not become true; the requests are in the error.
    pub fn wait_until(&self, limit: Duration, done: impl Fn(&[Exchange]) -> bool) -> Result<()> {
        let state = self.shared.state();
        let (state, waited) = self
            .shared
            .changed
            .wait_timeout_while(state, limit, |state| !done(&state.exchanges))
            .unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            bail!("no such requests within {limit:?}: {:?}", state.exchanges);
        }
        Ok(())
    }
}

impl Drop for FaultServer {
    fn drop(&mut self) {
        self.shared.state().stopping = true;
        self.shared.changed.notify_all();
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        let mut connections = Vec::new();
        for stream in listener.incoming().flatten() {
            if self.state().stopping {
                break;
            }
            let shared = Arc::clone(self);
            connections.push(std::thread::spawn(move || {
                // A client that goes away is its own business.
                let _ = shared.serve(stream);
            }));
        }
        for connection in connections {
            let _ = connection.join();
        }
    }

    fn serve(&self, mut stream: TcpStream) -> io::Result<()> {
        // A client that connects and says nothing must not hold up the end.
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.set_write_timeout(Some(Duration::from_secs(10)))?;
        let Some(request) = read_request(&stream)? else {
            return write!(stream, "HTTP/1.1 400 Bad Request\r\n\r\n");
        };
        let index = {
            let mut state = self.state();
            state.exchanges.push(Exchange {
                request: request.clone(),
                sent: 0,
            });
            state.exchanges.len() - 1
        };
        self.changed.notify_all();
        match (self.answer)(&request) {
            Answer::Status(status) => write_head(&mut stream, status, &["Content-Length: 0"]),
            Answer::Document(document) => {
                let length = format!("Content-Length: {}", document.len());
                write_head(&mut stream, 200, &["Content-Type: text/xml", &length])?;
                self.send(&mut stream, index, &document)
            }
            Answer::Redirect(url) => {
                let location = format!("Location: {url}");
                write_head(&mut stream, 302, &[&location, "Content-Length: 0"])
            }
            Answer::File(file, fault) => self.send_file(&mut stream, index, &request, &file, fault),
        }
    }

    fn send_file(
        &self,
        stream: &mut TcpStream,
        index: usize,
        request: &Request,
        file: &[u8],
        fault: Fault,
    ) -> io::Result<()> {
        let etag = format!("\"{}\"", file.len());
        let etag_header = format!("ETag: {etag}");
        let unchanged = request.if_range.as_ref().is_none_or(|known| *known == etag);
        let asked = request
            .range
            .filter(|_| unchanged && fault != Fault::IgnoreRange);
        let Some(bytes) = range_of(asked, file.len()) else {
            let range = format!("Content-Range: bytes */{}", file.len());
            return write_head(stream, 416, &[&range, "Content-Length: 0"]);
        };

        let mut headers = vec![etag_header, "Accept-Ranges: bytes".to_owned()];
        if fault != Fault::Endless {
            headers.push(format!("Content-Length: {}", bytes.len()));
        }
        if asked.is_some() {
            let lie = usize::from(fault == Fault::WrongContentRange);
            let (first, last) = (bytes.start + lie, bytes.end - 1 + lie);
            let total = file.len() + lie;
            headers.push(format!("Content-Range: bytes {first}-{last}/{total}"));
        }
        let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
        write_head(stream, if asked.is_some() { 206 } else { 200 }, &headers)?;

        let end = match fault {
            Fault::TruncateAt(at) | Fault::StallAt(at) => offset(at).clamp(bytes.start, bytes.end),
            _ => bytes.end,
        };
        for start in (bytes.start..end).step_by(CHUNK) {
            let chunk = start..end.min(start + CHUNK);
            let mut content = file[chunk.clone()].to_vec();
            match fault {
                Fault::FlipBitAt(at) if chunk.contains(&offset(at)) => {
                    content[offset(at) - start] ^= 1;
                }
                Fault::Slow(rate) => {
                    let nanoseconds = chunk.len() * 1_000_000_000 / offset(rate.max(1));
                    self.pause(Duration::from_nanos(
                        u64::try_from(nanoseconds).unwrap_or(u64::MAX),
                    ));
                }
                _ => {}
            }
            self.send(stream, index, &content)?;
        }
        match fault {
            Fault::StallAt(_) => self.pause(Duration::MAX),
            Fault::Endless => loop {
                self.send(stream, index, &[0; CHUNK])?;
            },
            _ => {}
        }
        Ok(())
    }

    /// Sends and counts a part of a body; fails once the server is to end.
    fn send(&self, stream: &mut TcpStream, index: usize, part: &[u8]) -> io::Result<()> {
        if self.state().stopping {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        stream.write_all(part)?;
        self.state().exchanges[index].sent +=
            u64::try_from(part.len()).map_err(io::Error::other)?;
        self.changed.notify_all();
        Ok(())
    }

    /// Does nothing for `time`, or until the server is to end.
    fn pause(&self, time: Duration) {
        let state = self.state();
        drop(
            self.changed
                .wait_timeout_while(state, time, |state| !state.stopping),
        );
    }
}

fn offset(at: u64) -> usize {
    usize::try_from(at).unwrap_or(usize::MAX)
}

/// The bytes of a file of `length` that `asked` names; `None` when there are none.
fn range_of(asked: Option<(u64, Option<u64>)>, length: usize) -> Option<Range<usize>> {
    let Some((first, last)) = asked else {
        return Some(0..length);
    };
    let end = last.map_or(length, |last| offset(last).saturating_add(1).min(length));
    let start = offset(first);
    (start < end).then_some(start..end)
}

fn write_head(stream: &mut TcpStream, status: u16, headers: &[&str]) -> io::Result<()> {
    let mut head = format!("HTTP/1.1 {status} Test\r\nConnection: close\r\n");
    for header in headers {
        head.push_str(header);
        head.push_str("\r\n");
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes())
}

/// Reads one request; `None` when it is none.
fn read_request(stream: &TcpStream) -> io::Result<Option<Request>> {
    let mut reader = BufReader::new(stream.take(REQUEST_LIMIT));
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let (Some(method), Some(path)) = (words.next(), words.next()) else {
        return Ok(None);
    };
    let mut request = Request {
        method: method.to_owned(),
        path: path.to_owned(),
        host: String::new(),
        range: None,
        if_range: None,
        body: Vec::new(),
    };
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let Some((name, value)) = line.split_once(':') else {
            break;
        };
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "host" => request.host = value.to_owned(),
            "content-length" => length = value.parse().unwrap_or(0),
            "range" => request.range = parse_range(value),
            "if-range" => request.if_range = Some(value.to_owned()),
            _ => {}
        }
    }
    reader.take(length).read_to_end(&mut request.body)?;
    Ok(Some(request))
}

/// `bytes=FIRST-` or `bytes=FIRST-LAST`; anything else is treated as no range.
fn parse_range(value: &str) -> Option<(u64, Option<u64>)> {
    let (first, last) = value.strip_prefix("bytes=")?.split_once('-')?;
    let last = match last {
        "" => None,
        last => Some(last.parse().ok()?),
    };
    Some((first.parse().ok()?, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Head and body of the answer to a request with this header line.
    fn get(server: &FaultServer, header: &str) -> (String, Vec<u8>) {
        let mut stream = TcpStream::connect(server.address).unwrap();
        write!(stream, "GET /file HTTP/1.1\r\n{header}\r\n\r\n").unwrap();
        stream
            .set_read_timeout(Some(Duration::from_millis(300)))
            .unwrap();
        let mut answer = Vec::new();
        // An endless body ends here, a stalled one at the timeout.
        let _ = stream.take(1 << 20).read_to_end(&mut answer);
        let split = answer.windows(4).position(|four| four == b"\r\n\r\n");
        let body = answer.split_off(split.unwrap() + 4);
        (String::from_utf8(answer).unwrap(), body)
    }

    #[test]
    fn each_fault_is_on_the_wire() {
        let file: Arc<Vec<u8>> = Arc::new((0..200_000u32).map(|i| i.to_le_bytes()[0]).collect());
        let mut flipped = file.to_vec();
        flipped[70_000] ^= 1;
        let range = "Range: bytes=100000-";
        // fault, request header, what the head holds, what the body is
        let table: &[(Fault, &str, &str, &[u8])] = &[
            (Fault::None, "X: y", "1.1 200", &file),
            (
                Fault::None,
                range,
                "Content-Range: bytes 100000-199999/200000",
                &file[100_000..],
            ),
            (
                Fault::None,
                "Range: bytes=5-9",
                "bytes 5-9/200000",
                &file[5..10],
            ),
            (Fault::None, "Range: bytes=200000-", "1.1 416", &[]),
            (
                Fault::TruncateAt(150_000),
                range,
                "Length: 100000",
                &file[100_000..150_000],
            ),
            (
                Fault::StallAt(70_001),
                "X: y",
                "Length: 200000",
                &file[..70_001],
            ),
            (Fault::IgnoreRange, range, "1.1 200", &file),
            (
                Fault::WrongContentRange,
                range,
                "bytes 100001-200000/200001",
                &file[100_000..],
            ),
            (Fault::FlipBitAt(70_000), "X: y", "1.1 200", &flipped),
            (Fault::Slow(100_000_000), "X: y", "1.1 200", &file),
        ];
        for (fault, header, head, body) in table {
            let server = FaultServer::start({
                let (file, fault) = (Arc::clone(&file), *fault);
                move |_| Answer::File(Arc::clone(&file), fault)
            })
            .unwrap();
            let (got_head, got_body) = get(&server, header);
            assert!(got_head.contains(head), "{fault:?}: {got_head}");
            assert!(got_body == *body, "{fault:?}: {} bytes", got_body.len());
        }
    }

    #[test]
    fn an_endless_body_goes_on_and_the_server_still_ends() {
        let server =
            FaultServer::start(|_| Answer::File(Arc::new(vec![1; 10]), Fault::Endless)).unwrap();
        let (head, body) = get(&server, "X: y");
        assert!(!head.contains("Content-Length"), "{head}");
        assert!(body.len() > 1_000_000);
    }

    #[test]
    fn requests_are_remembered() {
        let server = FaultServer::start(|request| match request.path.as_str() {
            "/file" => Answer::Redirect("/elsewhere".to_owned()),
            _ => Answer::Status(404),
        })
        .unwrap();
        let (head, _) = get(&server, "Range: bytes=1-2\r\nIf-Range: \"x\"");
        assert!(head.contains("302") && head.contains("Location: /elsewhere"));
        server
            .wait_until(Duration::from_secs(10), |exchanges| exchanges.len() == 1)
            .unwrap();
        let exchange = &server.exchanges()[0];
        assert_eq!(exchange.request.range, Some((1, Some(2))));
        assert_eq!(exchange.request.if_range.as_deref(), Some("\"x\""));
        assert_eq!(exchange.sent, 0);
    }
}
