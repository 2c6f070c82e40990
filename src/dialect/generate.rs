//! The engines' own generate calls: vLLM's token-in-token-out API and SGLang's native one.
//!
//! Both name the model optionally, because a server has one base model; sampling parameters,
//! including the bound on output tokens, stand in an object of their own.

use bytes::Bytes;
use smallvec::SmallVec;

use super::envelope::{self, Envelope, Model, Reader};
use super::json::{End, Fault, Kind, Members, Raw, Value};
use super::prompt::Batch;
use super::{AnswerFormat, Dialect, Parsed, Wants};
use crate::domain::{Headers, Prompt, Rejection};
use crate::scheduling::plugin::{About, Stability};

pub(super) static VLLM_ABOUT: About = About {
    kind: "vllmhttp-parser",
    aliases: &[],
    stability: Stability::Beta,
    summary: "Reads vLLM's generate bodies, whose prompt is a list of token ids.",
    params: &[],
    sample: "- type: vllmhttp-parser\n",
};

pub(super) static SGLANG_ABOUT: About = About {
    kind: "sglanghttp-parser",
    aliases: &[],
    stability: Stability::Beta,
    summary: "Reads SGLang's generate bodies, whose prompt is text or token ids, one or a batch.",
    params: &[],
    sample: "- type: sglanghttp-parser\n",
};

/// `/inference/v1/generate`.
pub(super) struct Vllm;

/// `/generate`.
pub(super) struct Sglang;

impl Dialect for Vllm {
    fn about(&self) -> &'static About {
        &VLLM_ABOUT
    }

    fn suffixes(&self) -> &'static [&'static str] {
        &["/inference/v1/generate"]
    }

    fn answer(&self, _path: &str) -> AnswerFormat {
        AnswerFormat::Engine
    }

    fn parse(&self, _path: &str, _headers: &Headers, body: &Bytes, wants: Wants) -> Result<Parsed, Rejection> {
        let names = Names { text: None, ids: "token_ids", limit: "max_tokens" };
        envelope::read(body, Model::Optional, AnswerFormat::Engine, |_| Body::new(names, wants))
    }
}

impl Dialect for Sglang {
    fn about(&self) -> &'static About {
        &SGLANG_ABOUT
    }

    fn suffixes(&self) -> &'static [&'static str] {
        &["/generate"]
    }

    fn answer(&self, _path: &str) -> AnswerFormat {
        AnswerFormat::Engine
    }

    fn parse(&self, _path: &str, _headers: &Headers, body: &Bytes, wants: Wants) -> Result<Parsed, Rejection> {
        let names = Names { text: Some("text"), ids: "input_ids", limit: "max_new_tokens" };
        envelope::read(body, Model::Optional, AnswerFormat::Engine, |_| Body::new(names, wants))
    }
}

#[derive(Clone, Copy)]
struct Names {
    text: Option<&'static str>,
    ids: &'static str,
    limit: &'static str,
}

struct Body<'de> {
    names: Names,
    prompts: bool,
    envelope: Envelope<'de>,
    /// Token ids win over text, as the engine needs no tokenizer for them.
    ids: Batch,
    text: Batch,
}

impl Body<'_> {
    fn new(names: Names, wants: Wants) -> Self {
        Self {
            names,
            prompts: wants.prompts,
            envelope: Envelope::new(wants, &[]),
            ids: Batch::default(),
            text: Batch::default(),
        }
    }
}

impl<'de> Members<'de> for Body<'de> {
    fn member(&mut self, key: &Raw<'de>, value: Value<'de>) -> Result<End, Fault> {
        match &*key.name() {
            name if self.prompts && name == self.names.ids => match value.kind() {
                Kind::Text => value.refuse("the list of token ids", "a list of numbers"),
                _ => self.ids.read("the list of token ids", value),
            },
            name if self.prompts && Some(name) == self.names.text => self.text.read("`text`", value),
            // SGLang takes a list of them for a batch; that is no bound that means anything here.
            "sampling_params" if value.kind() == Kind::Object => {
                let mut sampling = Sampling { name: self.names.limit, limit: None };
                let end = value.object("`sampling_params`", &mut sampling)?;
                self.envelope.set_limit(sampling.limit);
                Ok(end)
            }
            _ => self.envelope.member(key, value),
        }
    }
}

impl<'de> Reader<'de> for Body<'de> {
    fn finish(self) -> (Envelope<'de>, SmallVec<[Prompt; 1]>) {
        let batch = if self.ids.is_empty() { self.text } else { self.ids };
        (self.envelope, batch.into_prompts())
    }
}

struct Sampling {
    name: &'static str,
    limit: Option<u64>,
}

impl<'de> Members<'de> for Sampling {
    fn member(&mut self, key: &Raw<'de>, value: Value<'de>) -> Result<End, Fault> {
        let raw = value.raw()?;
        if key.name() == self.name {
            self.limit = raw.integer();
        }
        Ok(raw.end())
    }
}
