//! Echo mode: what arrived, told back as JSON, so that a test sees a request as a model server would.

use bytes::Buf as _;
use http::HeaderMap;
use http::request::Parts;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::{Value, json};
use xxhash_rust::xxh64::Xxh64;

/// Reads the body (of any size and encoding: it is hashed, not kept) and describes the request:
/// `endpoint`, `method`, `path` (with the query), `version`, `headers` and `trailers` (pairs in the
/// order of arrival, names in lower case, equal names together), `body_bytes`, `body_xxh64` (16 hex
/// digits, seed 0).
pub(super) async fn describe(endpoint: &str, parts: &Parts, mut body: Incoming) -> Result<Value, hyper::Error> {
    let mut hash = Xxh64::new(0);
    let mut length = 0u64;
    let mut trailers = HeaderMap::new();
    while let Some(frame) = body.frame().await {
        match frame?.into_data() {
            Ok(data) => {
                length += data.remaining() as u64;
                hash.update(&data);
            }
            Err(frame) => trailers.extend(frame.into_trailers().unwrap_or_default()),
        }
    }
    Ok(json!({
        "endpoint": endpoint,
        "method": parts.method.as_str(),
        "path": parts.uri.path_and_query().map_or("", |p| p.as_str()),
        "version": format!("{:?}", parts.version),
        "headers": pairs(&parts.headers),
        "body_bytes": length,
        "body_xxh64": format!("{:016x}", hash.digest()),
        "trailers": pairs(&trailers),
    }))
}

fn pairs(headers: &HeaderMap) -> Vec<[String; 2]> {
    let pair = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
        [name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()]
    };
    headers.iter().map(pair).collect()
}
