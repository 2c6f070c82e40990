//! The members that every JSON dialect shares: model, stream, cache salt, bound on output tokens.

use std::ops::Range;

use bytes::Bytes;
use smallvec::SmallVec;

use super::json::{self, End, Fault, Kind, Members, Raw, Value};
use super::{AnswerFormat, Parsed, Wants};
use crate::domain::{Prompt, Rejection};

/// The refusal for a body without a model (protocol 9.7, compared literally by clients).
const NO_MODEL: &str = "model not found in request body";

/// Whether a body must name its model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Model {
    Required,
    Optional,
}

/// What has been read of the shared members.
#[derive(Debug)]
pub(super) struct Envelope<'de> {
    wants: Wants,
    /// Names of the bound on output tokens; a later name beats an earlier one.
    limit_names: &'static [&'static str],
    model: Option<Raw<'de>>,
    model_spans: SmallVec<[Range<usize>; 1]>,
    cache_salt: Option<Raw<'de>>,
    stream: bool,
    limit: Option<(usize, u64)>,
    has_priority: bool,
}

impl<'de> Envelope<'de> {
    pub fn new(wants: Wants, limit_names: &'static [&'static str]) -> Self {
        Self {
            wants,
            limit_names,
            model: None,
            model_spans: SmallVec::new(),
            cache_salt: None,
            stream: false,
            limit: None,
            has_priority: false,
        }
    }

    /// Whether the body says `priority` itself.
    fn has_priority(&self) -> bool {
        self.has_priority
    }

    /// Takes a bound on output tokens that stands elsewhere.
    pub fn set_limit(&mut self, limit: Option<u64>) {
        self.limit = limit.map(|limit| (0, limit));
    }

    fn finish(self, prompts: SmallVec<[Prompt; 1]>, need: Model) -> Result<Parsed, Fault> {
        let model = text_of(self.model, "`model`")?;
        if model.is_none() && need == Model::Required {
            return Err(Fault { at: 0, message: NO_MODEL.into() });
        }
        Ok(Parsed {
            model,
            model_spans: self.model_spans,
            prompts,
            cache_salt: text_of(self.cache_salt, "`cache_salt`")?,
            stream: self.stream,
            max_output_tokens: self.limit.map(|(_, limit)| limit),
            answer: AnswerFormat::Opaque,
            priority_at: None,
        })
    }
}

impl<'de> Members<'de> for Envelope<'de> {
    fn member(&mut self, key: &Raw<'de>, value: Value<'de>) -> Result<End, Fault> {
        let name = key.name();
        match &*name {
            "model" => {
                let raw = value.raw()?;
                self.model = Some(raw);
                self.model_spans.push(raw.range());
                Ok(raw.end())
            }
            "cache_salt" if self.wants.prompts => {
                let raw = value.raw()?;
                self.cache_salt = Some(raw);
                Ok(raw.end())
            }
            "priority" => {
                self.has_priority = true;
                value.skip()
            }
            "stream" => {
                let raw = value.raw()?;
                self.stream = raw.text == "true";
                Ok(raw.end())
            }
            name => match self.limit_names.iter().position(|known| *known == name) {
                // Anything but a whole number is the server's to judge; for us it is no bound.
                Some(rank) => {
                    let raw = value.raw()?;
                    if let Some(limit) = raw.integer()
                        && self.limit.is_none_or(|(best, _)| rank >= best)
                    {
                        self.limit = Some((rank, limit));
                    }
                    Ok(raw.end())
                }
                None => value.skip(),
            },
        }
    }
}

/// The decoded text; null and the empty text count as absent.
fn text_of(raw: Option<Raw<'_>>, what: &str) -> Result<Option<Box<str>>, Fault> {
    let Some(raw) = raw.filter(|raw| raw.kind() != Kind::Null) else { return Ok(None) };
    match raw.decode() {
        Some(text) if text.is_empty() => Ok(None),
        Some(text) => Ok(Some(text.into())),
        None if raw.kind() == Kind::Text => {
            Err(Fault { at: raw.at, message: format!("{what} must be Unicode text, found a lone surrogate") })
        }
        None => Err(Fault { at: raw.at, message: format!("{what} must be text, found {}", raw.kind()) }),
    }
}

/// A dialect's reader of a whole body.
pub(super) trait Reader<'de>: Members<'de> {
    /// What was read, when the body has ended.
    fn finish(self) -> (Envelope<'de>, SmallVec<[Prompt; 1]>);
}

/// Reads `body` with the reader that `make` returns for its text.
pub(super) fn read<'de, R: Reader<'de>>(
    body: &'de Bytes,
    need: Model,
    answer: AnswerFormat,
    make: impl FnOnce(&'de str) -> R,
) -> Result<Parsed, Rejection> {
    let parsed = json::utf8(body).and_then(|text| {
        let mut reader = make(text);
        json::read_object(text, &mut reader)?;
        let (envelope, prompts) = reader.finish();
        let has_priority = envelope.has_priority();
        let parsed = envelope.finish(prompts, need)?;
        // A body with a model is no empty object, so a member in front of the first needs its comma.
        let takes_one = answer == AnswerFormat::OpenAi && !has_priority && parsed.model.is_some();
        let brace = memchr::memchr(b'{', text.as_bytes()).filter(|_| takes_one);
        Ok(Parsed { priority_at: brace.map(|brace| brace + 1), ..parsed })
    });
    match parsed {
        Ok(parsed) => Ok(Parsed { answer, ..parsed }),
        Err(fault) if fault.message == NO_MODEL => Err(Rejection::BadRequest(fault.message)),
        Err(fault) => Err(Rejection::BadRequest(fault.describe(body))),
    }
}
