//! From the domain to the wire: the one place that writes replies, routes and refusals as protobuf.
//!
//! Header values go into `raw_value` (Envoy takes `value` for empty), keys are lower case, `append` and
//! `append_action` stay unset so that a set overwrites (protocol 3.5). Headers are never echoed: duplicates
//! would collapse.

use std::borrow::Cow;

use bytes::{BufMut as _, Bytes, BytesMut};
use prost::Message as _;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};

use super::convert::NAMESPACE;
use super::exchange::SetHeader;
use super::machine::{Answer, Reply};
use crate::domain::Rejection;
use crate::pb::envoy::config::core::v3::{HeaderValue, HeaderValueOption};
use crate::pb::envoy::service::ext_proc::v3::body_mutation::Mutation;
use crate::pb::envoy::service::ext_proc::v3::processing_response::Response;
use crate::pb::envoy::service::ext_proc::v3::{
    BodyMutation, BodyResponse, CommonResponse, HeaderMutation, HeadersResponse, ImmediateResponse, ProcessingResponse,
    StreamedBodyResponse, TrailersResponse,
};
use crate::pb::envoy::r#type::v3::HttpStatus;
use crate::pb::pointsman::wire::v1::value::Kind;
use crate::pb::pointsman::wire::v1::{Struct, StructEntry, Value};

/// Request header and metadata key of the pick.
pub const DESTINATION: &str = "x-gateway-destination-endpoint";
/// Metadata key of the scores.
pub const SCORES: &str = "x-gateway-destination-endpoint-scores";
/// Response header of a refusal.
pub const DROPPED_REASON: &str = "x-llm-d-request-dropped-reason";
/// Response header that shows, when asked for, that the response went through us.
pub const DEBUG_MARKER: &str = "x-went-into-resp-headers";

const CONTENT_LENGTH: &str = "content-length";

/// Longest text of a refusal, in bytes; it may quote the request.
const MAX_TEXT: usize = 4096;

/// Pieces of a body up to this size are copied behind their message's head; larger ones go as they are. A DATA
/// frame of their own costs more than the copy of a few hundred bytes.
const MAX_COPIED: usize = 1024;

/// Where a piece of a body lies in its `BodyResponse`: `response.body_mutation.streamed_response`.
const WAY_TO_BODY: [u32; 3] = [1, 3, 3];
/// Fields of `StreamedBodyResponse`.
const BODY: u32 = 1;
const END_OF_STREAM: [u8; 2] = [2 << 3, 1];

/// Appends a reply as a gRPC message to `out`. A large piece of a body is not copied: it is returned and must
/// follow what is in `out` directly.
pub fn write(reply: Reply, out: &mut BytesMut) -> Option<Bytes> {
    let (field, piece, end) = match reply {
        Reply::RequestBody { piece, end } => (3, piece, end),
        Reply::ResponseBody { piece, end } => (4, piece, end),
        other => {
            let message = response(other);
            let length = message.encoded_len();
            out.reserve(5 + length);
            prefix(length, out);
            message.encode_raw(out);
            return None;
        }
    };
    // Fields may come in any order: with the body last its bytes need not be moved.
    let mut lengths = [0; WAY_TO_BODY.len() + 1];
    let mut length = if end { END_OF_STREAM.len() } else { 0 };
    if !piece.is_empty() {
        length += 1 + encoded_len_varint(piece.len() as u64) + piece.len();
    }
    for place in lengths.iter_mut().rev() {
        *place = length;
        length += 1 + encoded_len_varint(length as u64);
    }
    let copied = piece.len() <= MAX_COPIED;
    out.reserve(5 + length - if copied { 0 } else { piece.len() });
    prefix(length, out);
    for (field, length) in std::iter::once(field).chain(WAY_TO_BODY).zip(lengths) {
        encode_key(field, WireType::LengthDelimited, out);
        encode_varint(length as u64, out);
    }
    if end {
        out.put_slice(&END_OF_STREAM);
    }
    if piece.is_empty() {
        return None;
    }
    encode_key(BODY, WireType::LengthDelimited, out);
    encode_varint(piece.len() as u64, out);
    if !copied {
        return Some(piece);
    }
    out.put_slice(&piece);
    None
}

/// What stands before each gRPC message: not compressed, so long. Our messages are smaller than 4 GiB.
fn prefix(length: usize, out: &mut BytesMut) {
    out.put_u8(0);
    out.put_u32(length as u32);
}

/// The message for a reply.
fn response(reply: Reply) -> ProcessingResponse {
    let mut dynamic_metadata = None;
    let response = match reply {
        Reply::RequestHeadersPass => Response::RequestHeaders(HeadersResponse { response: Some(common()) }),
        Reply::RequestHeaders(answer) => {
            dynamic_metadata = Some(metadata(&answer));
            Response::RequestHeaders(HeadersResponse { response: Some(routed(*answer)) })
        }
        Reply::RequestBody { piece, end } => Response::RequestBody(streamed(piece, end)),
        Reply::RequestBodyWhole { answer, replaced } => {
            dynamic_metadata = Some(metadata(&answer));
            let body_mutation = replaced.map(|body| BodyMutation { mutation: Some(Mutation::Body(body)) });
            Response::RequestBody(BodyResponse { response: Some(CommonResponse { body_mutation, ..routed(*answer) }) })
        }
        Reply::RequestBodyPass => Response::RequestBody(BodyResponse { response: Some(common()) }),
        Reply::RequestTrailers => Response::RequestTrailers(TrailersResponse {}),
        Reply::ResponseHeaders(added) => {
            let header_mutation = (!added.is_empty()).then(|| HeaderMutation {
                set_headers: added.into_iter().map(set).collect(),
                remove_headers: Vec::new(),
            });
            Response::ResponseHeaders(HeadersResponse {
                response: Some(CommonResponse { header_mutation, ..common() }),
            })
        }
        Reply::ResponseBody { piece, end } => Response::ResponseBody(streamed(piece, end)),
        Reply::ResponseBodyPass => Response::ResponseBody(BodyResponse { response: Some(common()) }),
        Reply::ResponseTrailers => Response::ResponseTrailers(TrailersResponse {}),
        Reply::Immediate(rejection) => Response::ImmediateResponse(immediate(&rejection)),
    };
    ProcessingResponse { response: Some(response), dynamic_metadata }
}

fn common() -> CommonResponse {
    CommonResponse::default()
}

fn streamed(body: Bytes, end_of_stream: bool) -> BodyResponse {
    let mutation = Some(Mutation::StreamedResponse(StreamedBodyResponse { body, end_of_stream }));
    BodyResponse { response: Some(CommonResponse { body_mutation: Some(BodyMutation { mutation }), ..common() }) }
}

fn routed(answer: Answer) -> CommonResponse {
    let mut set_headers = Vec::with_capacity(answer.set_headers.len() + 2);
    set_headers.push(header(Bytes::from_static(DESTINATION.as_bytes()), text(answer.destination)));
    if let Some(length) = answer.content_length {
        set_headers
            .push(header(Bytes::from_static(CONTENT_LENGTH.as_bytes()), Bytes::from(length.to_string().into_bytes())));
    }
    // The two above are this module's alone: a second value could win.
    set_headers.extend(
        answer
            .set_headers
            .into_iter()
            .filter(|(name, _)| ![DESTINATION, CONTENT_LENGTH].iter().any(|own| name.eq_ignore_ascii_case(own)))
            .map(set),
    );
    CommonResponse {
        header_mutation: Some(HeaderMutation { set_headers, remove_headers: answer.remove_headers.into_vec() }),
        clear_route_cache: true,
        ..common()
    }
}

fn set((name, value): SetHeader) -> HeaderValueOption {
    let name = match name {
        name if name.bytes().any(|byte| byte.is_ascii_uppercase()) => Bytes::from(name.to_ascii_lowercase()),
        Cow::Borrowed(name) => Bytes::from_static(name.as_bytes()),
        Cow::Owned(name) => Bytes::from(name),
    };
    header(name, value)
}

fn header(key: Bytes, raw_value: Bytes) -> HeaderValueOption {
    HeaderValueOption { header: Some(HeaderValue { key, value: Bytes::new(), raw_value }) }
}

fn text(text: Box<str>) -> Bytes {
    Bytes::from(text.into_string())
}

/// `envoy.lb` with the destination (equal to the header, R-03) and, if there are any, the scores.
fn metadata(answer: &Answer) -> Struct {
    let destination = Kind::StringValue(Bytes::copy_from_slice(answer.destination.as_bytes()));
    let mut fields = vec![field(Bytes::from_static(DESTINATION.as_bytes()), destination)];
    if !answer.scores.is_empty() {
        let scores = answer
            .scores
            .iter()
            .filter(|(_, score)| score.is_finite())
            .map(|(name, score)| field(Bytes::copy_from_slice(name.as_bytes()), Kind::NumberValue(*score)))
            .collect();
        fields.push(field(Bytes::from_static(SCORES.as_bytes()), Kind::StructValue(Struct { fields: scores })));
    }
    Struct { fields: vec![field(Bytes::from_static(NAMESPACE.as_bytes()), Kind::StructValue(Struct { fields }))] }
}

fn field(key: Bytes, kind: Kind) -> StructEntry {
    StructEntry { key, value: Some(Value { kind: Some(kind) }) }
}

fn immediate(rejection: &Rejection) -> ImmediateResponse {
    let mut text = format!("inference error: {} - {rejection}", rejection.code());
    if text.len() > MAX_TEXT {
        text.truncate(text.floor_char_boundary(MAX_TEXT));
    }
    let reason = rejection.reason().map(|reason| reason.as_str());
    ImmediateResponse {
        status: Some(HttpStatus { code: i32::from(rejection.status()) }),
        headers: reason.map(|reason| HeaderMutation {
            set_headers: vec![header(
                Bytes::from_static(DROPPED_REASON.as_bytes()),
                Bytes::from_static(reason.as_bytes()),
            )],
            remove_headers: Vec::new(),
        }),
        body: Bytes::from(text),
        details: Bytes::from_static(details(rejection).as_bytes()),
    }
}

/// A short token for the data plane's access log.
fn details(rejection: &Rejection) -> &'static str {
    match rejection {
        Rejection::BadRequest(_) => "bad-request",
        Rejection::TooLarge { .. } => "payload-too-large",
        Rejection::PreconditionFailed(_) => "precondition-failed",
        Rejection::ResourceExhausted { reason, .. } | Rejection::ServiceUnavailable { reason, .. } => reason.as_str(),
        Rejection::Internal(_) => "internal-error",
    }
}

#[cfg(test)]
mod tests;
