//! A transport that plays a script.

use std::collections::VecDeque;
use std::sync::Mutex;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::{BodyStream, RangeReply, RangeRequest, Reply, Transport};
use crate::error::TransportError;

/// One piece of a body.
#[derive(Debug, Clone)]
pub(crate) enum Piece {
    /// Bytes of the file, from the position that was asked for on.
    Bytes(usize),
    /// The connection breaks.
    Break,
    /// Nothing comes any more.
    Stall,
}

/// What the server does with one request.
#[derive(Debug, Clone)]
pub(crate) struct Turn {
    pub(crate) status: u16,
    pub(crate) content_length: Option<u64>,
    pub(crate) content_range: Option<String>,
    pub(crate) etag: Option<&'static str>,
    pub(crate) pieces: Vec<Piece>,
}

/// Answers GETs out of a script and remembers what was asked.
pub(crate) struct ScriptedTransport {
    file: Bytes,
    turns: Mutex<VecDeque<Turn>>,
    asked: Mutex<Vec<(u64, Option<String>)>>,
}

impl ScriptedTransport {
    pub(crate) fn new(file: impl Into<Bytes>, turns: impl IntoIterator<Item = Turn>) -> Self {
        Self {
            file: file.into(),
            turns: Mutex::new(turns.into_iter().collect()),
            asked: Mutex::default(),
        }
    }

    /// First byte and `If-Range` of each GET.
    pub(crate) fn asked(&self) -> Vec<(u64, Option<String>)> {
        self.asked.lock().unwrap().clone()
    }
}

impl Transport for ScriptedTransport {
    fn post<'a>(
        &'a self,
        _: &'a str,
        _: &'static str,
        _: Bytes,
        _: u64,
    ) -> BoxFuture<'a, Result<Reply, TransportError>> {
        Box::pin(async { Err(TransportError::Http("the script has no posts".to_owned())) })
    }

    fn get<'a>(
        &'a self,
        request: RangeRequest<'a>,
    ) -> BoxFuture<'a, Result<RangeReply, TransportError>> {
        Box::pin(async move {
            let if_range = request.if_range.map(str::to_owned);
            self.asked.lock().unwrap().push((request.from, if_range));
            let turn = self.turns.lock().unwrap().pop_front();
            let Some(turn) = turn else {
                return Err(TransportError::Http("connection refused".to_owned()));
            };
            // A server that ignores the range sends the file from its start.
            let start = if turn.status == 206 { request.from } else { 0 };
            let start = usize::try_from(start).unwrap();
            Ok(RangeReply {
                status: turn.status,
                content_length: turn.content_length,
                content_range: turn.content_range,
                etag: turn.etag.map(str::to_owned),
                body: Box::new(ScriptedBody {
                    rest: self.file.slice(start.min(self.file.len())..),
                    pieces: turn.pieces.into(),
                }),
            })
        })
    }
}

struct ScriptedBody {
    rest: Bytes,
    pieces: VecDeque<Piece>,
}

impl BodyStream for ScriptedBody {
    fn chunk(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, TransportError>> {
        Box::pin(async {
            match self.pieces.pop_front() {
                None => Ok(None),
                Some(Piece::Bytes(count)) => Ok(Some(self.rest.split_to(count))),
                Some(Piece::Break) => Err(TransportError::Http("connection reset".to_owned())),
                Some(Piece::Stall) => std::future::pending().await,
            }
        })
    }
}
