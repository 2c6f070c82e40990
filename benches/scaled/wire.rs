//! ext_proc messages as Envoy makes them, and those that come back, decoded.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use pointsman::pb::envoy::config::core::v3 as core;
use pointsman::pb::envoy::service::ext_proc::v3 as wire;
use prost::Message as _;
use wire::processing_request::Request;

/// The path of the method.
pub const PATH: &str = "http://picker/envoy.service.ext_proc.v3.ExternalProcessor/Process";

pub use wire::processing_response::Response;

fn framed(request: Request, first: bool) -> Bytes {
    let modes = wire::ProtocolConfiguration { request_body_mode: 4, response_body_mode: 4, ..Default::default() };
    let message = wire::ProcessingRequest {
        request: Some(request),
        protocol_config: first.then_some(modes),
        ..Default::default()
    };
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
    let headers = Some(core::HeaderMap { headers: entries.iter().map(header).collect() });
    wire::HttpHeaders { headers, end_of_stream: false }
}

/// The request's headers.
pub fn request_headers() -> Bytes {
    let entries = [
        (":scheme", "http"),
        (":method", "POST"),
        (":authority", "models.example.com"),
        (":path", "/v1/completions"),
        ("content-type", "application/json"),
    ];
    framed(Request::RequestHeaders(headers(&entries)), true)
}

/// The request's body in one piece.
pub fn request_body(body: Bytes) -> Bytes {
    framed(Request::RequestBody(wire::HttpBody { body, end_of_stream: true }), false)
}

/// The headers of a streamed answer.
pub fn response_headers() -> Bytes {
    let entries = [(":status", "200"), ("content-type", "text/event-stream; charset=utf-8")];
    framed(Request::ResponseHeaders(headers(&entries)), false)
}

/// A piece of the answer.
pub fn response_body(body: String, end: bool) -> Bytes {
    let body = wire::HttpBody { body: body.into(), end_of_stream: end };
    framed(Request::ResponseBody(body), false)
}

/// Takes the next whole message out of `buffer`.
///
/// # Errors
/// What cannot be decoded.
pub fn next(buffer: &mut BytesMut) -> Result<Option<Response>, String> {
    let Some(prefix) = buffer.get(1..5) else { return Ok(None) };
    let length = u32::from_be_bytes(prefix.try_into().expect("four bytes")) as usize;
    if buffer.len() < 5 + length {
        return Ok(None);
    }
    buffer.advance(5);
    let message = wire::ProcessingResponse::decode(buffer.split_to(length).freeze()).map_err(|e| e.to_string())?;
    message.response.map(Some).ok_or_else(|| "an empty message".to_owned())
}

/// The destination that the answer to the request headers sets.
pub fn destination(answer: &wire::HeadersResponse) -> Option<String> {
    let common = answer.response.as_ref()?;
    let set = &common.header_mutation.as_ref()?.set_headers;
    let header = set
        .iter()
        .filter_map(|option| option.header.as_ref())
        .find(|header| header.key.as_ref() == b"x-gateway-destination-endpoint")?;
    let value = if header.raw_value.is_empty() { &header.value } else { &header.raw_value };
    String::from_utf8(value.to_vec()).ok()
}
