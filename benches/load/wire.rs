//! The frames that a data plane sends, made once or with as little work as possible, and a reader of the
//! answers that looks only at what kind each one is. A generator that decoded everything would cost more
//! than the server it measures.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use pointsman::pb::envoy::config::core::v3 as core;
use pointsman::pb::envoy::service::ext_proc::v3 as wire;
use prost::Message as _;
use wire::processing_request::Request;

/// The path of the method.
pub const PATH: &str = "http://picker/envoy.service.ext_proc.v3.ExternalProcessor/Process";

/// A message with its gRPC prefix.
fn framed(message: &wire::ProcessingRequest) -> Bytes {
    let mut out = BytesMut::with_capacity(message.encoded_len() + 5);
    out.put_u8(0);
    out.put_u32(u32::try_from(message.encoded_len()).expect("small"));
    message.encode(&mut out).expect("enough room");
    out.freeze()
}

fn headers(entries: &[(&'static str, &'static str)]) -> wire::HttpHeaders {
    let header = |(key, value): &(&'static str, &'static str)| core::HeaderValue {
        key: Bytes::from_static(key.as_bytes()),
        value: Bytes::new(),
        raw_value: Bytes::from_static(value.as_bytes()),
    };
    wire::HttpHeaders {
        headers: Some(core::HeaderMap { headers: entries.iter().map(header).collect() }),
        end_of_stream: false,
    }
}

/// The request headers that Envoy sends for a chat completion, with the modes of the stream.
pub fn request_headers() -> Bytes {
    framed(&wire::ProcessingRequest {
        request: Some(Request::RequestHeaders(headers(&[
            (":scheme", "http"),
            (":method", "POST"),
            (":authority", "models.example.com"),
            (":path", "/v1/chat/completions"),
            ("user-agent", "bench/1.0"),
            ("accept", "*/*"),
            ("content-type", "application/json"),
            ("x-forwarded-proto", "http"),
            ("x-request-id", "0f8fad5b-d9cb-469f-a165-70867728950e"),
            ("x-envoy-expected-rq-timeout-ms", "1000000"),
        ]))),
        protocol_config: Some(wire::ProtocolConfiguration {
            request_body_mode: 4,
            response_body_mode: 4,
            ..Default::default()
        }),
        ..Default::default()
    })
}

/// The headers of a streamed answer.
pub fn response_headers() -> Bytes {
    framed(&wire::ProcessingRequest {
        request: Some(Request::ResponseHeaders(headers(&[
            (":status", "200"),
            ("date", "Sat, 21 Nov 2026 10:00:00 GMT"),
            ("server", "uvicorn"),
            ("content-type", "text/event-stream; charset=utf-8"),
            ("x-envoy-upstream-service-time", "12"),
        ]))),
        ..Default::default()
    })
}

fn varint(mut value: usize, out: &mut BytesMut) {
    while value >= 0x80 {
        out.put_u8((value as u8) | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

fn varint_len(value: usize) -> usize {
    (usize::BITS - (value | 1).leading_zeros()).div_ceil(7) as usize
}

/// The start of a body message: everything before `size` bytes of body, behind which comes nothing.
fn body_head(field: u8, size: usize, end: bool) -> BytesMut {
    let inner = if size > 0 { 1 + varint_len(size) + size } else { 0 } + if end { 2 } else { 0 };
    let whole = 1 + varint_len(inner) + inner;
    let mut out = BytesMut::with_capacity(32);
    out.put_u8(0);
    out.put_u32(u32::try_from(whole).expect("small"));
    out.put_u8(field << 3 | 2);
    varint(inner, &mut out);
    if end {
        out.put_slice(&[2 << 3, 1]);
    }
    if size > 0 {
        out.put_u8(1 << 3 | 2);
        varint(size, &mut out);
    }
    out
}

/// The start of a piece of the request body; its `size` bytes follow.
pub fn request_body_head(size: usize) -> Bytes {
    body_head(request::REQUEST_BODY, size, false).freeze()
}

/// The empty end of the request body.
pub fn request_end() -> Bytes {
    body_head(request::REQUEST_BODY, 0, true).freeze()
}

/// A piece of the response body.
pub fn response_body(chunk: &[u8], end: bool) -> Bytes {
    let mut out = body_head(request::RESPONSE_BODY, chunk.len(), end);
    out.put_slice(chunk);
    out.freeze()
}

/// What a message is: its field in the `oneof` of its direction, and whether it ends a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Field number.
    pub field: u8,
    /// The end flag of a body.
    pub end: bool,
}

/// Fields of `ProcessingRequest`.
pub mod request {
    pub const RESPONSE_HEADERS: u8 = 3;
    pub const REQUEST_BODY: u8 = 4;
    pub const RESPONSE_BODY: u8 = 5;
}

/// Fields of `ProcessingResponse`.
pub mod answer {
    pub const REQUEST_HEADERS: u8 = 1;
    pub const RESPONSE_HEADERS: u8 = 2;
    pub const REQUEST_BODY: u8 = 3;
    pub const RESPONSE_BODY: u8 = 4;
}

/// Cuts received DATA into messages and tells what they are, without copying bodies.
pub struct Messages {
    /// Messages around a body and its end flag.
    levels: usize,
    /// Bytes of the current message's start: enough to tell what it is.
    head: Vec<u8>,
    /// Last two bytes of the current message.
    tail: [u8; 2],
    /// Length of the current message, once its prefix is there.
    length: Option<usize>,
    /// Bytes of the current message so far.
    taken: usize,
}

/// Bytes kept of a message's start: more than four tags with their lengths take.
const HEAD: usize = 32;

impl Messages {
    /// A reader of what servers send.
    pub fn answers() -> Self {
        Self { levels: 4, head: Vec::with_capacity(HEAD), tail: [0; 2], length: None, taken: 0 }
    }

    /// A reader of what data planes send.
    pub fn requests() -> Self {
        Self { levels: 1, ..Self::answers() }
    }

    /// Takes received bytes; `seen` is called for every message that is complete.
    pub fn push(&mut self, mut data: Bytes, mut seen: impl FnMut(Seen)) {
        loop {
            let Some(length) = self.length else {
                let need = 5 - self.head.len();
                let take = need.min(data.len());
                self.head.extend_from_slice(&data[..take]);
                data.advance(take);
                if self.head.len() < 5 {
                    return;
                }
                let length = u32::from_be_bytes(self.head[1..5].try_into().expect("four bytes"));
                self.length = Some(length as usize);
                self.taken = 0;
                self.head.clear();
                continue;
            };
            let take = (length - self.taken).min(data.len());
            let part = &data[..take];
            self.head.extend_from_slice(&part[..take.min(HEAD - self.head.len())]);
            for byte in &part[take.saturating_sub(2)..] {
                self.tail = [self.tail[1], *byte];
            }
            self.taken += take;
            data.advance(take);
            if self.taken < length {
                return;
            }
            seen(self.message());
            self.head.clear();
            self.length = None;
            self.tail = [0; 2];
        }
    }

    /// An end flag stands before the body or behind it.
    fn message(&self) -> Seen {
        let mut at = 0;
        for _ in 0..self.levels {
            at += 1;
            at += self.head.iter().skip(at).take_while(|byte| **byte >= 0x80).count() + 1;
        }
        let end = self.head.get(at) == Some(&(2 << 3)) || self.tail == [2 << 3, 1];
        Seen { field: self.head.first().map_or(0, |tag| tag >> 3), end }
    }
}
