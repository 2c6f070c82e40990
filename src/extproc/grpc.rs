//! gRPC on the wire: length-prefixed messages out of HTTP/2 DATA, and back.
//!
//! Five bytes before each message and a status in the trailers are all that gRPC adds to HTTP/2 here, so the
//! edge reads and writes them itself. What that saves, against the codec of a gRPC library (measured in
//! `docs/benchmarks.md`): bodies are slices of what was received on their way in *and* on their way out (the
//! library copies them into a decode buffer and again into an encode buffer), answers that are ready together
//! leave in one DATA frame, and no boxed layers lie between the socket and the stream.
//!
//! A large request body is handed on piece by piece as its DATA frames come, although it is one message: its
//! message is opened by hand as far as the body, provided that the body is the first field of it, which is how
//! every known encoder writes it. Everything else is read by prost once the message is complete.
//!
//! Bounds: a message has at most `max_message` bytes, compressed or not; what is held is that and one DATA frame, in
//! at most [`MAX_CHUNKS`] slices of what was received, since a slice of one byte keeps far more than one byte.

use std::collections::VecDeque;
use std::io::Read as _;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message as _;

use super::machine::ReadFailure;
use crate::pb::envoy::service::ext_proc::v3::processing_request::Request;
use crate::pb::envoy::service::ext_proc::v3::{HttpBody, ProcessingRequest};

/// Slices kept apart; beyond it they are joined.
const MAX_CHUNKS: usize = 256;

/// Bytes before each message: a flag for compression and the length.
const PREFIX: usize = 5;

/// What was read.
#[derive(Debug)]
pub(super) enum Received {
    /// A message.
    Message(ProcessingRequest),
    /// A piece of the request body whose message goes on.
    RequestBodyPart(Bytes),
}

/// Cuts DATA into messages.
#[derive(Debug)]
pub(super) struct Reader {
    data: Chunks,
    state: State,
    max_message: usize,
    gzip: bool,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Between messages.
    Prefix,
    /// In a message of this length.
    Message { length: usize, compressed: bool },
    /// In the body of a request body message: bytes left of the body, of the fields behind it, and of the
    /// message behind those.
    Body { left: usize, inner: usize, outer: usize },
    /// Nothing more is read.
    Failed,
}

impl Reader {
    /// A reader of one stream. `gzip`: compressed messages are allowed.
    pub fn new(max_message: usize, gzip: bool) -> Self {
        Self { data: Chunks::default(), state: State::Prefix, max_message, gzip }
    }

    /// Takes received bytes.
    pub fn push(&mut self, data: Bytes) {
        self.data.push(data);
    }

    /// Whether the peer may stop here.
    pub fn is_between_messages(&self) -> bool {
        matches!(self.state, State::Prefix | State::Failed) && self.data.len == 0
    }

    /// The next message, or piece of one, if enough of it has come.
    pub fn next(&mut self) -> Result<Option<Received>, ReadFailure> {
        let read = self.read();
        if read.is_err() {
            self.state = State::Failed;
            self.data = Chunks::default();
        }
        read
    }

    fn read(&mut self) -> Result<Option<Received>, ReadFailure> {
        loop {
            match self.state {
                State::Failed => {
                    self.data = Chunks::default();
                    return Ok(None);
                }
                State::Prefix if self.data.len < PREFIX => return Ok(None),
                State::Prefix => {
                    let compressed = match self.data.get_u8() {
                        0 => false,
                        1 if self.gzip => true,
                        _ => return Err(ReadFailure::Malformed),
                    };
                    let length = self.data.get_u32() as usize;
                    if length > self.max_message {
                        return Err(ReadFailure::TooLarge { limit: self.max_message as u64 });
                    }
                    self.state = State::Message { length, compressed };
                }
                State::Message { length, compressed } if self.data.len >= length => {
                    self.state = State::Prefix;
                    let message = self.data.copy_to_bytes(length);
                    let message = if compressed { self.inflate(message)? } else { message };
                    return decode(message).map(Some);
                }
                State::Message { length, compressed } => {
                    match if compressed { None } else { opened(self.data.first(), length) } {
                        Some(Opened { skip, left, inner, outer }) => {
                            self.data.advance(skip);
                            self.state = State::Body { left, inner, outer };
                        }
                        None => return Ok(None),
                    }
                }
                State::Body { left: 0, inner, outer } => {
                    if self.data.len < inner + outer {
                        return Ok(None);
                    }
                    self.state = State::Prefix;
                    let fields = self.data.copy_to_bytes(inner);
                    let around = self.data.copy_to_bytes(outer);
                    return ended(fields, around).map(Some);
                }
                State::Body { .. } if self.data.len == 0 => return Ok(None),
                State::Body { left, inner, outer } => {
                    let now = self.data.first().len().min(left);
                    let part = self.data.copy_to_bytes(now);
                    self.state = State::Body { left: left - part.len(), inner, outer };
                    return Ok(Some(Received::RequestBodyPart(part)));
                }
            }
        }
    }

    fn inflate(&self, message: Bytes) -> Result<Bytes, ReadFailure> {
        let mut out = Vec::new();
        let limit = self.max_message as u64;
        let unpacked = flate2::read::GzDecoder::new(message.reader());
        match unpacked.take(limit + 1).read_to_end(&mut out) {
            Ok(size) if size as u64 > limit => Err(ReadFailure::TooLarge { limit }),
            Ok(_) => Ok(out.into()),
            Err(_) => Err(ReadFailure::Malformed),
        }
    }
}

fn decode(message: Bytes) -> Result<Received, ReadFailure> {
    let message = ProcessingRequest::decode(message).map_err(|error| malformed(&error))?;
    Ok(Received::Message(message))
}

fn malformed(error: &prost::DecodeError) -> ReadFailure {
    tracing::debug!(%error, "a message of the data plane does not decode");
    ReadFailure::Malformed
}

/// The start of a message whose body is still coming.
struct Opened {
    /// Bytes in front of the body.
    skip: usize,
    /// Bytes of the body.
    left: usize,
    /// Bytes of its message behind it.
    inner: usize,
    /// Bytes of the outer message behind that.
    outer: usize,
}

/// Opens a message that starts with `request_body { body`, if `start` shows as much; its length is `length`.
fn opened(start: &[u8], length: usize) -> Option<Opened> {
    const REQUEST_BODY: u8 = 4 << 3 | 2;
    const BODY: u8 = 1 << 3 | 2;
    let (inner, head) = field(start, REQUEST_BODY)?;
    let outer = length.checked_sub(head)?.checked_sub(inner)?;
    let (left, head_of_body) = field(start.get(head..)?, BODY)?;
    let inner = inner.checked_sub(head_of_body)?.checked_sub(left)?;
    Some(Opened { skip: head + head_of_body, left, inner, outer })
}

/// The length of the field with this tag that `bytes` start with, and the size of tag and length.
fn field(bytes: &[u8], tag: u8) -> Option<(usize, usize)> {
    let mut rest = bytes.strip_prefix(&[tag])?;
    let before = rest.len();
    // A length of 32 bits has at most five bytes; without them all the message waits for more.
    let whole = rest.iter().take(5).any(|byte| byte & 0x80 == 0);
    let value = if whole { prost::encoding::decode_varint(&mut rest).ok()? } else { return None };
    Some((usize::try_from(value).ok()?, 1 + before - rest.len()))
}

/// The end of a message whose body has been handed on: its other fields.
fn ended(fields: Bytes, around: Bytes) -> Result<Received, ReadFailure> {
    let body = HttpBody::decode(fields).map_err(|error| malformed(&error))?;
    let mut message = ProcessingRequest::decode(around).map_err(|error| malformed(&error))?;
    // A second body or another part in the same message would replace what was handed on already.
    if message.request.is_some() || !body.body.is_empty() {
        return Err(ReadFailure::Malformed);
    }
    message.request = Some(Request::RequestBody(body));
    Ok(Received::Message(message))
}

/// Received bytes that were not read yet.
#[derive(Debug, Default)]
struct Chunks {
    chunks: VecDeque<Bytes>,
    /// What came when there were too many chunks; behind them.
    joined: BytesMut,
    len: usize,
}

impl Chunks {
    fn push(&mut self, data: Bytes) {
        if data.is_empty() {
            return;
        }
        self.len += data.len();
        if self.joined.is_empty() && self.chunks.len() < MAX_CHUNKS {
            self.chunks.push_back(data);
        } else {
            self.joined.extend_from_slice(&data);
        }
    }

    /// Drops the first chunk, which has been read.
    fn pop(&mut self) -> Option<Bytes> {
        let first = self.chunks.pop_front();
        if self.chunks.is_empty() && !self.joined.is_empty() {
            self.chunks.push_back(self.joined.split().freeze());
        }
        first
    }

    fn first(&self) -> &[u8] {
        self.chunks.front().map_or(&[], |chunk| chunk)
    }
}

impl Buf for Chunks {
    fn remaining(&self) -> usize {
        self.len
    }

    fn chunk(&self) -> &[u8] {
        self.first()
    }

    fn advance(&mut self, mut count: usize) {
        self.len -= count;
        while count > 0 {
            let Some(first) = self.chunks.front_mut() else { return };
            let now = count.min(first.len());
            first.advance(now);
            count -= now;
            if first.is_empty() {
                self.pop();
            }
        }
    }

    /// A copy only if the bytes lie in several chunks.
    fn copy_to_bytes(&mut self, count: usize) -> Bytes {
        match self.chunks.front_mut() {
            Some(first) if first.len() > count => {
                self.len -= count;
                first.split_to(count)
            }
            Some(first) if first.len() == count => {
                self.len -= count;
                self.pop().unwrap_or_default()
            }
            _ => {
                let mut joined = BytesMut::with_capacity(count);
                joined.put(Buf::take(&mut *self, count));
                joined.freeze()
            }
        }
    }
}

#[cfg(test)]
mod tests;
