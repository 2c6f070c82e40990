//! Anthropic's Messages API, as engines offer it.
//!
//! Order of the prompt: tools, system, messages. Counting tokens is routed like a message (the same
//! server answers it from the same tokenizer), but its answer is never inspected.

use bytes::Bytes;
use smallvec::SmallVec;

use super::envelope::{self, Envelope, Model, Reader};
use super::json::{End, Fault, Members, Raw, Value};
use super::media::Video;
use super::prompt::{self, Sink};
use super::{AnswerFormat, Dialect, Parsed, Wants, resolve};
use crate::domain::{Headers, Prompt, Rejection};
use crate::scheduling::plugin::{About, Stability};

pub(super) static ABOUT: About = About {
    kind: "anthropic-parser",
    aliases: &[],
    stability: Stability::Beta,
    summary: "Reads Anthropic bodies: messages and their token counting.",
    params: &[],
    sample: "- type: anthropic-parser\n",
};

/// See the module.
pub(super) struct Anthropic;

impl Dialect for Anthropic {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn suffixes(&self) -> &'static [&'static str] {
        &["/messages", "/messages/count_tokens"]
    }

    fn answer(&self, path: &str) -> AnswerFormat {
        if resolve::trimmed(path).ends_with("/count_tokens") { AnswerFormat::Opaque } else { AnswerFormat::Anthropic }
    }

    fn parse(&self, path: &str, headers: &Headers, body: &Bytes, wants: Wants) -> Result<Parsed, Rejection> {
        envelope::read(body, Model::Required, self.answer(path), |text| {
            let video = Video::from_headers(headers);
            Body {
                prompts: wants.prompts,
                envelope: Envelope::new(wants, &["max_tokens"]),
                tools: None,
                system: Sink::new(text, video),
                messages: Sink::new(text, video),
                head: Sink::new(text, video),
            }
        })
    }
}

struct Body<'de> {
    prompts: bool,
    envelope: Envelope<'de>,
    tools: Option<Raw<'de>>,
    system: Sink<'de>,
    messages: Sink<'de>,
    head: Sink<'de>,
}

impl<'de> Members<'de> for Body<'de> {
    fn member(&mut self, key: &Raw<'de>, value: Value<'de>) -> Result<End, Fault> {
        match &*key.name() {
            "tools" if self.prompts => {
                let tools = value.raw()?;
                self.tools = Some(tools);
                Ok(tools.end())
            }
            "system" if self.prompts => prompt::system(value, &mut self.system),
            "messages" if self.prompts => prompt::messages("`messages`", value, &mut self.messages),
            _ => self.envelope.member(key, value),
        }
    }
}

impl<'de> Reader<'de> for Body<'de> {
    fn finish(self) -> (Envelope<'de>, SmallVec<[Prompt; 1]>) {
        let Self { envelope, tools, system, messages, mut head, .. } = self;
        head.tools(tools);
        head.append(system);
        head.append(messages);
        (envelope, head.into_prompts())
    }
}
