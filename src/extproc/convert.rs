//! From the wire to the domain: protobuf messages become events of the [`machine`](super::machine).
//!
//! Header values are read from `raw_value` and, where that is empty, from `value` (R-27: data planes use
//! either). Metadata comes with every message and is decoded only where it is of use. Nothing here copies
//! header or body bytes.

use bytes::Bytes;
use prost::Message as _;

use super::machine::{BodyMode, Message, Modes, Part};
use super::subset::SubsetHint;
use crate::domain::{Headers, Served};
use crate::pb::envoy::config::core::v3 as core;
use crate::pb::envoy::service::ext_proc::v3 as wire;
use crate::pb::pointsman::wire::v1::value::Kind;
use crate::pb::pointsman::wire::v1::{Struct, Value};

/// Metadata namespace of the destination and of the served endpoint.
pub const NAMESPACE: &str = "envoy.lb";
const SUBSET_NAMESPACE: &[u8] = b"envoy.lb.subset_hint";
const SUBSET_KEY: &[u8] = b"x-gateway-destination-endpoint-subset";
const SERVED_KEY: &[u8] = b"x-gateway-destination-endpoint-served";

/// Reads a message. `wants_subset`: look for a subset hint in request messages.
/// Fails if the metadata that we need does not decode.
pub fn message(request: wire::ProcessingRequest, wants_subset: bool) -> Result<Message, prost::DecodeError> {
    use wire::processing_request::Request;

    let context = request.metadata_context;
    let part = match request.request {
        Some(Request::RequestHeaders(http)) => {
            Part::RequestHeaders { headers: headers(http.headers), end: http.end_of_stream }
        }
        Some(Request::RequestBody(http)) => Part::RequestBody { chunk: http.body, end: http.end_of_stream },
        Some(Request::RequestTrailers(_)) => Part::RequestTrailers,
        Some(Request::ResponseHeaders(http)) => Part::ResponseHeaders {
            headers: headers(http.headers),
            served: served(context.clone())?,
            end: http.end_of_stream,
        },
        Some(Request::ResponseBody(http)) => Part::ResponseBody { chunk: http.body, end: http.end_of_stream },
        Some(Request::ResponseTrailers(_)) => Part::ResponseTrailers,
        None => Part::Other,
    };
    let of_request = matches!(part, Part::RequestHeaders { .. } | Part::RequestBody { .. } | Part::RequestTrailers);
    Ok(Message {
        part,
        modes: request.protocol_config.map(|config| Modes {
            request: BodyMode::from_wire(config.request_body_mode),
            response: BodyMode::from_wire(config.response_body_mode),
        }),
        subset: if wants_subset && of_request { subset(context)? } else { None },
    })
}

fn headers(map: Option<core::HeaderMap>) -> Headers {
    let entries = map.unwrap_or_default().headers;
    let mut headers = Headers::with_capacity(entries.len());
    for entry in entries {
        headers.push(entry.key, if entry.raw_value.is_empty() { entry.value } else { entry.raw_value });
    }
    headers
}

/// The fields of `namespace`, if it is there. Of entries that repeat the last one counts, as in any protobuf map.
fn metadata(context: Bytes, namespace: &[u8]) -> Result<Option<Struct>, prost::DecodeError> {
    if context.is_empty() {
        return Ok(None);
    }
    let metadata = core::Metadata::decode(context)?;
    let entry = metadata.filter_metadata.into_iter().rfind(|entry| entry.key == namespace);
    Ok(entry.map(|entry| entry.value.unwrap_or_default()))
}

/// The value of `key`.
fn field(Struct { fields }: Struct, key: &[u8]) -> Option<Value> {
    fields.into_iter().rfind(|field| field.key == key).map(|field| field.value.unwrap_or_default())
}

/// A list of texts or one text. A value of another kind names no endpoint, which is an empty hint.
fn subset(context: Bytes) -> Result<Option<SubsetHint>, prost::DecodeError> {
    let Some(value) = metadata(context, SUBSET_NAMESPACE)?.and_then(|space| field(space, SUBSET_KEY)) else {
        return Ok(None);
    };
    let mut hint = SubsetHint::default();
    let mut add = |value: &Value| {
        if let Some(Kind::StringValue(text)) = &value.kind
            && let Ok(text) = std::str::from_utf8(text)
        {
            hint.extend_from_text(text);
        }
    };
    match &value.kind {
        Some(Kind::ListValue(list)) => list.values.iter().for_each(add),
        _ => add(&value),
    }
    Ok(Some(hint))
}

fn served(context: Bytes) -> Result<Served, prost::DecodeError> {
    let Some(space) = metadata(context, NAMESPACE.as_bytes())? else { return Ok(Served::Unreported) };
    let named = match field(space, SERVED_KEY).and_then(|value| value.kind) {
        Some(Kind::StringValue(text)) => std::str::from_utf8(&text).ok().filter(|t| !t.is_empty()).map(Box::from),
        _ => None,
    };
    Ok(named.map_or(Served::Unnamed, Served::By))
}

#[cfg(test)]
mod tests;
