//! What goes over the wire between a watch and the API server, and what can go wrong there.

use std::borrow::Cow;

use http_body_util::BodyExt;
use kube::client::Body;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::super::stats::Reason;

/// Why a request or a watch came to nothing.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    pub reason: Reason,
    pub message: String,
    /// Whether a watch may go on from where it was.
    pub resume: bool,
    /// Whether a page was too large.
    pub too_large: bool,
}

impl Failure {
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        let resume = matches!(reason, Reason::Unreachable | Reason::Timeout);
        Self { reason, message: message.into(), resume, too_large: false }
    }

    pub fn of_status(code: u16, message: String) -> Self {
        let reason = match code {
            401 | 403 => Reason::Forbidden,
            404 => Reason::NotFound,
            410 => Reason::Expired,
            408 | 504 => Reason::Timeout,
            _ => Reason::Refused,
        };
        // A server that is starting or overwhelmed; a list would be more work for it.
        let resume = matches!(code, 408 | 429 | 500..);
        Self { resume, ..Self::new(reason, message) }
    }
}

/// A page of a list whose objects are still text.
#[derive(Deserialize)]
pub struct Page<'a> {
    #[serde(default)]
    pub metadata: PageMeta,
    #[serde(borrow)]
    pub items: Option<Vec<&'a RawValue>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PageMeta {
    pub resource_version: String,
    #[serde(rename = "continue")]
    pub next: String,
}

/// A line of a watch whose object is still text.
#[derive(Deserialize)]
pub struct Line<'a> {
    #[serde(rename = "type", borrow)]
    pub kind: Cow<'a, str>,
    #[serde(borrow)]
    pub object: &'a RawValue,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub struct Status {
    pub code: u16,
    pub message: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub struct ApiResources {
    pub resources: Vec<ApiResource>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub struct ApiResource {
    pub name: String,
}

/// The bytes of a body, at most `limit`.
pub async fn collect(mut body: Body, limit: usize) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| Failure::new(Reason::Unreachable, chain(&e)))?;
        if let Some(data) = frame.data_ref() {
            if bytes.len() + data.len() > limit {
                let message = format!("the answer is larger than {limit} bytes");
                return Err(Failure { too_large: true, ..Failure::new(Reason::Malformed, message) });
            }
            bytes.extend_from_slice(data);
        }
    }
    Ok(bytes)
}

pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(body).map_err(|e| Failure::new(Reason::Malformed, e.to_string()))
}

/// An error with its causes; the outermost alone often says only that something failed.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text
}
