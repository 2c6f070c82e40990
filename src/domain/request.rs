//! A request as the decision sees it.

use bytes::Bytes;
use smallvec::SmallVec;

use super::{EndpointSet, Headers, Prompt, Timestamp};

/// Everything the pipeline may know about a request. Built once, then only read.
#[derive(Clone, Debug, Default)]
pub struct InferenceRequest {
    /// `x-request-id`, as sent or made by us.
    pub id: Box<str>,
    /// When its headers arrived.
    pub received_at: Timestamp,
    /// Path without query, as used to choose the dialect.
    pub path: Box<str>,
    /// All request headers.
    pub headers: Headers,
    /// The body as one piece; empty for body-less requests.
    pub body: Bytes,
    /// Model named in the body; empty when the dialect does not read one.
    pub model: Box<str>,
    /// Model that the server will see (after a rewrite).
    pub target_model: Box<str>,
    /// Tenant-chosen text that separates prefix caches, if any.
    pub cache_salt: Option<Box<str>>,
    /// Prompts of the body; empty when the dialect does not read them.
    pub prompts: SmallVec<[Prompt; 1]>,
    /// Whether the client asked for a streamed answer.
    pub stream: bool,
    /// Upper bound on generated tokens, if the client gave one.
    pub max_output_tokens: Option<u64>,
    /// Higher goes first; negative may be shed.
    pub priority: i32,
    /// Name of the InferenceObjective asked for, if any.
    pub objective: Option<Box<str>>,
    /// Flow that fairness is kept for.
    pub fairness_id: Box<str>,
    /// Endpoints that the data plane allows; `None` is no restriction.
    pub allowed: Option<EndpointSet>,
}

impl InferenceRequest {
    /// Estimated prompt length in tokens, over all prompts of a batch.
    pub fn estimated_prompt_tokens(&self) -> u64 {
        self.prompts.iter().map(Prompt::estimated_tokens).sum()
    }
}
