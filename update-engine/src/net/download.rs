//! One payload file from one URL, from a byte on to its announced end, through
//! cut connections. Checks every answer; trusts none.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::{BodyStream, RangeReply, RangeRequest, Transport};
use crate::error::TransportError;

/// How long a slow or broken transfer is endured.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Window in which `least_bytes` must arrive.
    pub window: Duration,
    /// Least bytes in a window.
    pub least_bytes: u64,
    /// Cut connections that are taken up again, in a row without a byte between.
    pub retries: u32,
    /// Wait before the first retry; doubles up to `longest_pause`.
    pub pause: Duration,
    /// Longest wait between two retries.
    pub longest_pause: Duration,
}

impl Default for Patience {
    /// The original's rate: 10 bytes a second over 90 seconds, and 20 retries.
    fn default() -> Self {
        Self {
            window: Duration::from_secs(90),
            least_bytes: 900,
            retries: 20,
            pause: Duration::from_secs(1),
            longest_pause: Duration::from_secs(20),
        }
    }
}

/// A running download.
pub struct Download<'a> {
    transport: &'a dyn Transport,
    url: &'a str,
    size: u64,
    patience: Patience,
    position: u64,
    body: Option<Box<dyn BodyStream>>,
    etag: Option<String>,
    failures: u32,
    window: Window,
}

/// Only time spent waiting for the server counts, not the time that the caller
/// takes to apply what it got.
#[derive(Default)]
struct Window {
    waited: Duration,
    bytes: u64,
}

impl<'a> Download<'a> {
    /// A download of the bytes `from..size` of the file at `url`.
    pub fn new(
        transport: &'a dyn Transport,
        url: &'a str,
        from: u64,
        size: u64,
        patience: Patience,
    ) -> Self {
        Self {
            transport,
            url,
            size,
            patience,
            position: from,
            body: None,
            etag: None,
            failures: 0,
            window: Window::default(),
        }
    }

    /// Position in the file: all before it was delivered.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The next bytes; None when all of the announced size were delivered. At
    /// most one chunk more than that is ever read.
    ///
    /// # Errors
    /// A wrong answer at once, a cut connection after the retries.
    pub async fn next(&mut self) -> Result<Option<Bytes>, TransportError> {
        loop {
            match self.try_next().await {
                Ok(bytes) => return Ok(bytes),
                Err(error) if !self.may_retry(&error) => return Err(error),
                Err(error) => self.pause(&error).await,
            }
        }
    }

    async fn try_next(&mut self) -> Result<Option<Bytes>, TransportError> {
        if self.position == self.size && self.body.is_none() {
            return Ok(None);
        }
        if self.body.is_none() {
            self.open().await?;
        }
        let chunk = self.read_chunk().await?;
        match chunk {
            Some(bytes) => {
                let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
                let position = self.position.saturating_add(length);
                if position > self.size {
                    return Err(TransportError::Long {
                        expected: self.size,
                    });
                }
                self.position = position;
                self.failures = 0;
                Ok(Some(bytes))
            }
            None if self.position == self.size => {
                self.body = None;
                Ok(None)
            }
            None => Err(TransportError::Short {
                received: self.position,
                expected: self.size,
            }),
        }
    }

    async fn open(&mut self) -> Result<(), TransportError> {
        let request = RangeRequest {
            url: self.url,
            from: self.position,
            if_range: self.etag.as_deref(),
        };
        let reply = tokio::time::timeout(self.patience.window, self.transport.get(request))
            .await
            .map_err(|_| self.stalled())??;
        self.check(&reply)?;
        self.etag = reply.etag;
        self.body = Some(reply.body);
        self.window = Window::default();
        Ok(())
    }

    fn check(&self, reply: &RangeReply) -> Result<(), TransportError> {
        let expected = self.size - self.position;
        match reply.status {
            200 if self.position == 0 => match reply.content_length {
                Some(length) if length < expected => Err(TransportError::Short {
                    received: length,
                    expected: self.size,
                }),
                Some(length) if length > expected => Err(TransportError::Long {
                    expected: self.size,
                }),
                _ => Ok(()),
            },
            206 if self.position > 0 => {
                let got = reply
                    .content_range
                    .clone()
                    .unwrap_or_else(|| "no Content-Range".into());
                let wanted = format!("bytes {}-{}/{}", self.position, self.size - 1, self.size);
                let open_total = format!("bytes {}-{}/*", self.position, self.size - 1);
                let right = got == wanted || got == open_total;
                let length_right = reply.content_length.is_none_or(|length| length == expected);
                if right && length_right {
                    Ok(())
                } else {
                    Err(TransportError::Range {
                        asked: self.position,
                        got,
                    })
                }
            }
            status @ 200..=299 => Err(TransportError::Range {
                asked: self.position,
                got: format!("HTTP status {status}"),
            }),
            status => Err(TransportError::Status(status)),
        }
    }

    /// A chunk, or an error when the rate is too low. The window starts over each
    /// time that it was filled.
    async fn read_chunk(&mut self) -> Result<Option<Bytes>, TransportError> {
        let stalled = self.stalled();
        let Some(body) = self.body.as_mut() else {
            return Ok(None);
        };
        let left = self.patience.window.saturating_sub(self.window.waited);
        let begin = Instant::now();
        let chunk = tokio::time::timeout(left, body.chunk())
            .await
            .map_err(|_| stalled)??;
        self.window.waited += begin.elapsed();
        if let Some(bytes) = &chunk {
            self.window.bytes = self
                .window
                .bytes
                .saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
            if self.window.bytes >= self.patience.least_bytes {
                self.window = Window::default();
            }
        }
        Ok(chunk)
    }

    fn stalled(&self) -> TransportError {
        TransportError::Stalled {
            bytes: self.patience.least_bytes,
            seconds: self.patience.window.as_secs(),
        }
    }

    /// A cut connection is taken up again where it stopped, and a busy server asked
    /// again: many machines may want the same at once. A wrong answer, and a first
    /// connection that never delivered anything, are left to the next check, which
    /// may bring another URL.
    fn may_retry(&self, error: &TransportError) -> bool {
        let transient = match error {
            TransportError::Http(_) | TransportError::Stalled { .. } => true,
            TransportError::Short { received, .. } => *received == self.position,
            TransportError::Status(status) => matches!(status, 429 | 500 | 502 | 503 | 504),
            TransportError::Range { .. } | TransportError::Long { .. } => false,
        };
        let is_busy = matches!(error, TransportError::Status(429 | 503));
        transient && (is_busy || self.delivered()) && self.failures < self.patience.retries
    }

    fn delivered(&self) -> bool {
        self.etag.is_some() || self.body.is_some() || self.failures > 0
    }

    async fn pause(&mut self, error: &TransportError) {
        let pause = self
            .patience
            .pause
            .saturating_mul(2_u32.saturating_pow(self.failures))
            .min(self.patience.longest_pause);
        self.failures += 1;
        self.body = None;
        tracing::warn!(
            url = self.url,
            position = self.position,
            pause_s = pause.as_secs_f64(),
            "download interrupted: {error}"
        );
        tokio::time::sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::testing::{Piece, ScriptedTransport, Turn};

    const FILE: &[u8] = b"0123456789";

    fn whole(pieces: Vec<Piece>) -> Turn {
        Turn {
            status: 200,
            content_length: Some(10),
            content_range: None,
            etag: Some("\"v1\""),
            pieces,
        }
    }

    fn rest(from: u64, pieces: Vec<Piece>) -> Turn {
        Turn {
            status: 206,
            content_length: Some(10 - from),
            content_range: Some(format!("bytes {from}-9/10")),
            etag: Some("\"v1\""),
            pieces,
        }
    }

    /// Everything that arrives, and how it ends.
    async fn play(
        transport: &ScriptedTransport,
        from: u64,
    ) -> (Vec<u8>, Result<(), TransportError>) {
        let mut download =
            Download::new(transport, "http://host/file", from, 10, Patience::default());
        let mut got = Vec::new();
        loop {
            match download.next().await {
                Ok(Some(bytes)) => got.extend_from_slice(&bytes),
                Ok(None) => return (got, Ok(())),
                Err(error) => return (got, Err(error)),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_cut_connection_is_taken_up_where_it_stopped_and_only_for_the_same_file() {
        let transport = ScriptedTransport::new(
            FILE,
            [
                whole(vec![Piece::Bytes(4), Piece::Break]),
                rest(4, vec![Piece::Bytes(3)]),
                rest(7, vec![Piece::Bytes(3)]),
            ],
        );
        let (got, end) = play(&transport, 0).await;
        assert!(end.is_ok(), "{end:?}");
        assert_eq!(got, FILE);
        let same = Some("\"v1\"".to_owned());
        assert_eq!(transport.asked(), [(0, None), (4, same.clone()), (7, same)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_resume_asks_only_for_what_is_missing() {
        let transport = ScriptedTransport::new(FILE, [rest(6, vec![Piece::Bytes(4)])]);
        let (got, end) = play(&transport, 6).await;
        assert!(end.is_ok(), "{end:?}");
        assert_eq!((got.as_slice(), transport.asked().len()), (&FILE[6..], 1));
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_asked_for_when_nothing_is_missing() {
        let transport = ScriptedTransport::new(FILE, []);
        let (got, end) = play(&transport, 10).await;
        assert!(end.is_ok() && got.is_empty() && transport.asked().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn wrong_answers_are_refused_at_once() {
        let turn = |from: u64, change: fn(&mut Turn)| {
            let mut turn = if from == 0 {
                whole(vec![])
            } else {
                rest(from, vec![])
            };
            turn.pieces = vec![Piece::Bytes(1); 10];
            change(&mut turn);
            (from, turn)
        };
        let table = [
            turn(4, |turn| turn.status = 200),
            turn(4, |turn| turn.content_range = None),
            turn(4, |turn| {
                turn.content_range = Some("bytes 5-9/10".to_owned());
            }),
            turn(4, |turn| {
                turn.content_range = Some("bytes 4-9/11".to_owned());
            }),
            turn(4, |turn| {
                turn.content_range = Some("bytes 4-8/10".to_owned());
            }),
            turn(4, |turn| turn.content_length = Some(7)),
            turn(4, |turn| turn.status = 416),
            turn(0, |turn| turn.status = 206),
            turn(0, |turn| turn.status = 204),
            turn(0, |turn| turn.status = 404),
            turn(0, |turn| turn.content_length = Some(11)),
            turn(0, |turn| turn.content_length = Some(9)),
        ];
        for (from, turn) in table {
            let words = format!("{turn:?}");
            let transport = ScriptedTransport::new(FILE, [turn]);
            let (got, end) = play(&transport, from).await;
            assert!(end.is_err() && got.is_empty(), "{words}: {end:?}");
            assert_eq!(transport.asked().len(), 1, "{words}: asked again");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_endless_body_ends_with_the_announced_size() {
        let mut turn = whole(vec![Piece::Bytes(10), Piece::Bytes(1), Piece::Bytes(1)]);
        turn.content_length = None;
        let transport = ScriptedTransport::new(&b"0123456789abc"[..], [turn]);
        let (got, end) = play(&transport, 0).await;
        assert!(
            matches!(end, Err(TransportError::Long { expected: 10 })),
            "{end:?}"
        );
        assert_eq!(got, FILE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stalled_body_is_given_up_after_the_window_and_taken_up_again() {
        let transport = ScriptedTransport::new(
            FILE,
            [
                whole(vec![Piece::Bytes(2), Piece::Stall]),
                rest(2, vec![Piece::Bytes(8)]),
            ],
        );
        let begin = Instant::now();
        let (got, end) = play(&transport, 0).await;
        assert!(end.is_ok(), "{end:?}");
        assert_eq!(got, FILE);
        let took = begin.elapsed().as_secs();
        assert!((90..95).contains(&took), "{took} s");
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_never_delivers_is_left_to_the_next_check() {
        let transport = ScriptedTransport::new(FILE, []);
        let (_, end) = play(&transport, 0).await;
        assert!(end.is_err());
        assert_eq!(transport.asked().len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_server_is_asked_again_and_not_for_ever() {
        let says = |status| Turn {
            status,
            ..whole(vec![])
        };
        for busy in [429, 503] {
            let turns = [says(busy), says(busy), whole(vec![Piece::Bytes(10)])];
            let transport = ScriptedTransport::new(FILE, turns);
            let (got, end) = play(&transport, 0).await;
            assert!(end.is_ok(), "{end:?}");
            assert_eq!(got, FILE);

            let turns = std::iter::repeat_n(says(busy), 100);
            let transport = ScriptedTransport::new(FILE, turns);
            let (_, end) = play(&transport, 0).await;
            assert!(matches!(end, Err(TransportError::Status(status)) if status == busy));
            assert_eq!(transport.asked().len(), 21);
        }
        let transport = ScriptedTransport::new(FILE, [says(500), whole(vec![])]);
        let (_, end) = play(&transport, 0).await;
        assert!(end.is_err());
        assert_eq!(transport.asked().len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn retries_without_a_byte_between_come_to_an_end() {
        let cut = |from| rest(from, vec![Piece::Break]);
        let turns = std::iter::once(whole(vec![Piece::Bytes(5), Piece::Break]))
            .chain(std::iter::repeat_n(cut(5), 100));
        let transport = ScriptedTransport::new(FILE, turns);
        let (got, end) = play(&transport, 0).await;
        assert!(end.is_err());
        assert_eq!((got.len(), transport.asked().len()), (5, 21));
    }

    /// A caller that applies slowly must not look like a server that is slow.
    #[tokio::test(start_paused = true)]
    async fn time_spent_by_the_caller_is_no_stall() {
        let transport = ScriptedTransport::new(FILE, [whole(vec![Piece::Bytes(1); 10])]);
        let mut download = Download::new(&transport, "u", 0, 10, Patience::default());
        let mut count = 0;
        while download.next().await.unwrap().is_some() {
            count += 1;
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
        assert_eq!((count, transport.asked().len()), (10, 1));
    }
}
