//! Token counts of an answer, read from chunks that were already passed on.
//!
//! An event stream is cut into events as it comes, and only an event that has the word `usage` (or
//! `meta_info`) in it is parsed; chunks of whole events without it, which is nearly all of them, cost
//! one search. A JSON answer is kept in its pieces and parsed once at the end. The last count of each
//! kind wins: servers repeat the object in every event or spread it over two.
//!
//! Never an error: what cannot be read is not counted. The result does not depend on how the bytes
//! were cut into chunks.
//!
//! Bounds: [`sse::MAX_LINE`] and [`sse::MAX_EVENT`] for event streams, [`MAX_JSON`] for JSON answers
//! (beyond it they are given up). Encoded and opaque answers are not kept at all.
//!
//! Rejected: looking only at the last event (Anthropic counts the prompt in the first, and some
//! servers add events after the usage), and a JSON pull parser over the chunks (the usage of a long
//! answer is worth one parse, not a second parser).

mod sse;

use std::sync::LazyLock;

use bytes::Bytes;
use memchr::memmem::Finder;

use super::json::{self, Elements, End, Fault, Kind, Members, Raw, Value};
use super::{AnswerFormat, resolve};
use crate::domain::Usage;

/// Longest JSON answer whose counts are read, in bytes.
const MAX_JSON: usize = 16 << 20;
/// Chunks smaller than this are copied together: a handle costs more than they do.
const SMALL_CHUNK: usize = 1024;

/// What stands in every text that counts tokens. Built once, because that costs as much as a search.
static USAGE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("usage"));
/// Its place in SGLang's own answers.
static META_INFO: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("meta_info"));

/// Whether a `content-type` is that of an event stream.
pub fn is_event_stream(content_type: &str) -> bool {
    content_type.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("text/event-stream"))
}

/// Whether a `content-type` is one of JSON's.
fn is_json(content_type: &str) -> bool {
    content_type.as_bytes().windows(4).any(|part| part.eq_ignore_ascii_case(b"json"))
}

/// Reads the counts of one answer.
#[derive(Debug)]
pub struct UsageReader {
    format: AnswerFormat,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Nothing will be read.
    Off,
    Json(Pieces),
    Events {
        lines: sse::Lines,
        counts: Counts,
    },
}

impl UsageReader {
    /// A reader for an answer with these headers. An encoded answer, an opaque one, and one that is
    /// neither JSON nor an event stream are not read; an answer without `content-type` is taken for JSON.
    pub fn new(format: AnswerFormat, content_type: Option<&str>, content_encoding: Option<&str>) -> Self {
        let encoded = content_encoding.is_some_and(resolve::is_encoding);
        let state = if format == AnswerFormat::Opaque || encoded {
            State::Off
        } else if content_type.is_some_and(is_event_stream) {
            State::Events { lines: sse::Lines::default(), counts: Counts::default() }
        } else if content_type.is_none_or(is_json) {
            State::Json(Pieces::default())
        } else {
            State::Off
        };
        Self { format, state }
    }

    /// Whether further chunks can matter. If not, they need not be pushed.
    pub fn is_reading(&self) -> bool {
        !matches!(self.state, State::Off)
    }

    /// Takes the next chunk of the body.
    pub fn push(&mut self, chunk: &Bytes) {
        let format = self.format;
        match &mut self.state {
            State::Off => {}
            State::Json(pieces) => {
                if !pieces.push(chunk) {
                    self.state = State::Off;
                }
            }
            State::Events { lines, counts } => {
                let is_clean_cut = lines.at_event_start() && (chunk.ends_with(b"\n\n") || chunk.ends_with(b"\r\n\r\n"));
                // Whole events without counts leave no trace.
                if is_clean_cut && !may_count(format, chunk) {
                    lines.start();
                } else {
                    lines.push(chunk, |event| counts.read(format, event));
                }
            }
        }
    }

    /// The counts, when the body has ended (or was cut off).
    pub fn finish(self) -> Usage {
        let mut total = Counts::default();
        match self.state {
            State::Off => {}
            State::Json(pieces) => pieces.read(|text| total.read(self.format, text)),
            State::Events { lines, counts } => {
                total = counts;
                lines.finish(|event| total.read(self.format, event));
            }
        }
        total.usage()
    }
}

/// A body in the order of its arrival, at most [`MAX_JSON`] bytes.
#[derive(Debug, Default)]
struct Pieces {
    whole: Vec<Bytes>,
    /// Small chunks since the last of `whole`.
    small: Vec<u8>,
    len: usize,
}

impl Pieces {
    /// Keeps `chunk`; false if that is too much.
    fn push(&mut self, chunk: &Bytes) -> bool {
        self.len += chunk.len();
        if self.len > MAX_JSON {
            return false;
        }
        if chunk.len() < SMALL_CHUNK {
            self.small.extend_from_slice(chunk);
        } else {
            self.flush();
            self.whole.push(chunk.clone());
        }
        true
    }

    fn flush(&mut self) {
        if !self.small.is_empty() {
            self.whole.push(std::mem::take(&mut self.small).into());
        }
    }

    fn read(mut self, read: impl FnOnce(&[u8])) {
        self.flush();
        match self.whole.as_slice() {
            [] => {}
            [one] => read(one),
            many => read(&many.concat()),
        }
    }
}

/// Whether `text` can hold counts. `"usage":null`, which OpenAI servers put into every event of a
/// stream that will end with counts, does not.
fn may_count(format: AnswerFormat, text: &[u8]) -> bool {
    let usage = USAGE.find_iter(text).any(|at| {
        let behind = &text[at + b"usage".len()..];
        !(behind.starts_with(b"\":null") || behind.starts_with(b"\": null"))
    });
    usage || (format == AnswerFormat::Engine && META_INFO.find(text).is_some())
}

/// Counts by the names that servers use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    /// Of a prompt, cached tokens included, and of the answer.
    common: Usage,
    /// Anthropic counts the parts of a prompt apart.
    fresh: Option<u64>,
    cache_read: Option<u64>,
    cache_written: Option<u64>,
}

impl Counts {
    fn merge(&mut self, later: Counts) {
        self.common.merge(later.common);
        self.fresh = later.fresh.or(self.fresh);
        self.cache_read = later.cache_read.or(self.cache_read);
        self.cache_written = later.cache_written.or(self.cache_written);
    }

    /// Merges the counts of one JSON text, if it is one and has any.
    fn read(&mut self, format: AnswerFormat, text: &[u8]) {
        if !may_count(format, text) {
            return;
        }
        let Ok(text) = std::str::from_utf8(text) else { return };
        let mut answer = Answer { format, counts: Counts::default() };
        let is_list = format == AnswerFormat::Engine && text.trim_start().starts_with('[');
        let read = if is_list {
            let mut batch = AnswerBatch { format, total: Counts::default() };
            let read = json::read_list(text, &mut batch);
            answer.counts = batch.total;
            read
        } else {
            json::read_object(text, &mut answer)
        };
        if read.is_ok() {
            self.merge(answer.counts);
        }
    }

    fn usage(self) -> Usage {
        let Some(fresh) = self.fresh else {
            return Usage { cached_tokens: self.common.cached_tokens.or(self.cache_read), ..self.common };
        };
        let cached = self.cache_read.unwrap_or(0);
        Usage {
            prompt_tokens: Some(fresh.saturating_add(cached).saturating_add(self.cache_written.unwrap_or(0))),
            cached_tokens: self.cache_read,
            completion_tokens: self.common.completion_tokens,
        }
    }
}

/// The top level of an answer or event, or the object in it that holds the usage.
struct Answer {
    format: AnswerFormat,
    counts: Counts,
}

impl<'de> Members<'de> for Answer {
    fn member(&mut self, key: &Raw<'de>, value: Value<'de>) -> Result<End, Fault> {
        if value.kind() != Kind::Object {
            return value.skip();
        }
        match (&*key.name(), self.format) {
            ("usage", _) | ("meta_info", AnswerFormat::Engine) => {
                let mut fields = Fields { format: self.format, counts: Counts::default() };
                let end = value.object("usage", &mut fields)?;
                self.counts.merge(fields.counts);
                Ok(end)
            }
            // `response.completed` of the Responses API, `message_start` of Anthropic's. Deeper ones are
            // no answer's counts, so this is asked one level deep only.
            ("response", AnswerFormat::OpenAi) | ("message", AnswerFormat::Anthropic) => {
                let mut inner = Inner { format: self.format, counts: Counts::default() };
                let end = value.object("the answer", &mut inner)?;
                self.counts.merge(inner.counts);
                Ok(end)
            }
            _ => value.skip(),
        }
    }
}

struct Inner {
    format: AnswerFormat,
    counts: Counts,
}

impl<'de> Members<'de> for Inner {
    fn member(&mut self, key: &Raw<'de>, value: Value<'de>) -> Result<End, Fault> {
        if value.kind() != Kind::Object || key.name() != "usage" {
            return value.skip();
        }
        let mut fields = Fields { format: self.format, counts: Counts::default() };
        let end = value.object("usage", &mut fields)?;
        self.counts.merge(fields.counts);
        Ok(end)
    }
}

/// SGLang answers a batch with a list; its counts are added up.
struct AnswerBatch {
    format: AnswerFormat,
    total: Counts,
}

impl<'de> Elements<'de> for AnswerBatch {
    fn element(&mut self, value: Value<'de>) -> Result<End, Fault> {
        if value.kind() != Kind::Object {
            return value.skip();
        }
        let mut answer = Answer { format: self.format, counts: Counts::default() };
        let end = value.object("an answer", &mut answer)?;
        let (sum, one) = (&mut self.total.common, answer.counts.common);
        for (sum, one) in [
            (&mut sum.prompt_tokens, one.prompt_tokens),
            (&mut sum.cached_tokens, one.cached_tokens),
            (&mut sum.completion_tokens, one.completion_tokens),
        ] {
            *sum = match (*sum, one) {
                (Some(a), Some(b)) => Some(a.saturating_add(b)),
                (a, b) => a.or(b),
            };
        }
        Ok(end)
    }
}

/// The members of a usage object. Counts that are no whole numbers count as absent.
struct Fields {
    format: AnswerFormat,
    counts: Counts,
}

impl<'de> Members<'de> for Fields {
    fn member(&mut self, key: &Raw<'de>, value: Value<'de>) -> Result<End, Fault> {
        let name = key.name();
        let anthropic = self.format == AnswerFormat::Anthropic;
        if matches!(&*name, "prompt_tokens_details" | "input_tokens_details") && value.kind() == Kind::Object {
            let mut details = Details { cached: None };
            let end = value.object("the details of usage", &mut details)?;
            self.counts.common.cached_tokens = details.cached.or(self.counts.common.cached_tokens);
            return Ok(end);
        }
        let raw = value.raw()?;
        let field = match &*name {
            "input_tokens" if anthropic => &mut self.counts.fresh,
            "cache_read_input_tokens" if anthropic => &mut self.counts.cache_read,
            "cache_creation_input_tokens" if anthropic => &mut self.counts.cache_written,
            "prompt_tokens" | "input_tokens" => &mut self.counts.common.prompt_tokens,
            "completion_tokens" | "output_tokens" => &mut self.counts.common.completion_tokens,
            "cached_tokens" => &mut self.counts.common.cached_tokens,
            _ => return Ok(raw.end()),
        };
        *field = raw.integer().or(*field);
        Ok(raw.end())
    }
}

struct Details {
    cached: Option<u64>,
}

impl<'de> Members<'de> for Details {
    fn member(&mut self, key: &Raw<'de>, value: Value<'de>) -> Result<End, Fault> {
        let raw = value.raw()?;
        if key.name() == "cached_tokens" {
            self.cached = raw.integer().or(self.cached);
        }
        Ok(raw.end())
    }
}

#[cfg(test)]
mod tests;
