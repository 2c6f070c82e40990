//! Request bodies and answers by API: from bytes to what routing needs, and nothing more.
//!
//! A dialect is chosen by the path ([`Dialects::resolve`]) and reads the body once, lazily: the model
//! with its place (so that it can be replaced by [`rewrite_model`] without serialising anything
//! again), the prompts as ranges of the body, and the few numbers that load estimates use. Everything
//! else is checked to be JSON and skipped. The answer's token counts are read by [`UsageReader`] from
//! bytes that were already passed on.
//!
//! Invariants: bytes are never changed here and bodies with a `content-encoding` are not even read
//! (protocol R-22). No input makes this room panic, recurse or hold more than a bounded amount
//! besides the body itself: see `prompt` and `usage` for the bounds. What a dialect does not
//! understand but can skip is the model server's business; only what routing itself must know (the
//! model, the prompt, the cache salt) is refused when it has the wrong type.
//!
//! Rejected: decoding into typed requests (two copies of a prompt, and every new API field becomes
//! our bug), and re-serialising for a model rewrite (it changes number formats and key order).

mod anthropic;
mod envelope;
mod generate;
mod json;
mod media;
mod openai;
mod passthrough;
mod prompt;
mod resolve;
mod restore;
mod rewrite;
mod usage;

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::domain::{Headers, Prompt, Rejection};
use crate::scheduling::plugin::About;

pub use resolve::{Dialects, is_encoded, request_path};
pub use restore::ModelRestorer;
pub use rewrite::{Rewritten, add_priority, rewrite_model};
pub use usage::{UsageReader, is_event_stream};

/// What to look for besides the model; only what some plugin reads is worth its time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wants {
    /// Prompts and the cache salt. Without it prompt values are skipped, whatever they are.
    pub prompts: bool,
}

/// How the answer reports its token counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AnswerFormat {
    /// `usage` with `prompt_tokens` or `input_tokens`; the Responses API's `response.usage`.
    OpenAi,
    /// `usage` with `input_tokens` and the cache counts apart, spread over two events when streamed.
    Anthropic,
    /// The engines' own generate calls: `meta_info` (SGLang) or `usage` (vLLM).
    Engine,
    /// Not generated tokens, or not ours to read: the answer is never inspected.
    #[default]
    Opaque,
}

/// What routing needs of a body. Ranges refer to the body given to [`Dialect::parse`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parsed {
    /// The model; `None` when the dialect reads or needs none. Never empty.
    pub model: Option<Box<str>>,
    /// Where the values of top-level `model` members stand, quotes included, ascending. All
    /// duplicates are listed, because readers disagree on which one counts.
    pub model_spans: SmallVec<[Range<usize>; 1]>,
    /// Prompts, one per element of a batch; empty unless wanted.
    pub prompts: SmallVec<[Prompt; 1]>,
    /// Text that separates prefix caches; unless wanted, and when empty, `None`.
    pub cache_salt: Option<Box<str>>,
    /// Whether a streamed answer was asked for.
    pub stream: bool,
    /// Upper bound on generated tokens, if it was given as a whole number.
    pub max_output_tokens: Option<u64>,
    /// How the answer reports its token counts.
    pub answer: AnswerFormat,
    /// Where `"priority":…,` may be added: behind the opening brace. `None` where the API has no such
    /// member, or the body has one already.
    pub priority_at: Option<usize>,
}

/// One family of APIs. Holds no state; shared by all requests.
pub trait Dialect: Send + Sync {
    /// Name and description, as in the configuration.
    fn about(&self) -> &'static About;

    /// Path suffixes that this dialect reads, each with its leading slash (llm-d-router 6.2).
    fn suffixes(&self) -> &'static [&'static str];

    /// How answers on `path` report their token counts.
    fn answer(&self, path: &str) -> AnswerFormat;

    /// Reads a body that came to `path`. `headers` only refine estimates.
    ///
    /// # Errors
    /// [`Rejection::BadRequest`] for anything but one JSON object with a usable model and, when
    /// wanted, prompts of a known shape. The text names line, column and byte and never quotes the body.
    fn parse(&self, path: &str, headers: &Headers, body: &Bytes, wants: Wants) -> Result<Parsed, Rejection>;
}

/// A dialect as the configuration knows it.
#[derive(Clone, Copy)]
pub struct Row {
    /// Name, parameters (none), sample.
    pub about: &'static About,
    /// Builds it.
    pub make: fn() -> Arc<dyn Dialect>,
}

/// All dialects, in the order of the reference.
pub const TABLE: &[Row] = &[
    Row { about: &openai::ABOUT, make: || Arc::new(openai::OpenAi) },
    Row { about: &anthropic::ABOUT, make: || Arc::new(anthropic::Anthropic) },
    Row { about: &generate::VLLM_ABOUT, make: || Arc::new(generate::Vllm) },
    Row { about: &generate::SGLANG_ABOUT, make: || Arc::new(generate::Sglang) },
    Row { about: &passthrough::ABOUT, make: || Arc::new(passthrough::Passthrough) },
];

#[cfg(test)]
mod tests;
