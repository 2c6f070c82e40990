//! The OpenAI API: chat, completions, embeddings, responses, conversations, images.
//!
//! The path tells which members form the prompt; all else is common. Renders (`.../render`) are
//! routed like the calls that they prepare, so that they warm nothing and cost nothing elsewhere, and
//! their answers hold no token counts.

use bytes::Bytes;
use smallvec::SmallVec;

use super::envelope::{self, Envelope, Model, Reader};
use super::json::{End, Fault, Kind, Members, Raw, Value};
use super::media::Video;
use super::prompt::{self, Batch, Sink};
use super::{AnswerFormat, Dialect, Parsed, Wants, resolve};
use crate::domain::{Headers, Prompt, Rejection};
use crate::scheduling::plugin::{About, Stability};

pub(super) static ABOUT: About = About {
    kind: "openai-parser",
    aliases: &[],
    stability: Stability::Beta,
    summary: "Reads OpenAI bodies: chat and text completions, embeddings, responses, conversations, images.",
    params: &[],
    sample: "- type: openai-parser\n",
};

/// Names of the bound on output tokens, weakest first: `max_tokens` is the deprecated one.
const LIMITS: &[&str] = &["max_tokens", "max_completion_tokens", "max_output_tokens"];

/// See the module.
pub(super) struct OpenAi;

impl Dialect for OpenAi {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn suffixes(&self) -> &'static [&'static str] {
        &[
            "/chat/completions",
            "/completions",
            "/embeddings",
            "/responses",
            "/conversations",
            "/chat/completions/render",
            "/completions/render",
            "/images/generations",
        ]
    }

    fn answer(&self, path: &str) -> AnswerFormat {
        if resolve::trimmed(path).ends_with("/render") { AnswerFormat::Opaque } else { AnswerFormat::OpenAi }
    }

    fn parse(&self, path: &str, headers: &Headers, body: &Bytes, wants: Wants) -> Result<Parsed, Rejection> {
        let shape = if wants.prompts { Shape::of(path) } else { Shape::Unread };
        let parsed =
            envelope::read(body, Model::Required, self.answer(path), |text| Body::new(text, shape, wants, headers))?;
        let priority_at = parsed.priority_at.filter(|_| has_priority(path));
        Ok(Parsed { priority_at, ..parsed })
    }
}

/// Whether bodies of `path` may say `priority`, as vLLM reads it.
fn has_priority(path: &str) -> bool {
    let path = resolve::trimmed(path);
    ["/chat/completions", "/completions", "/responses"].iter().any(|suffix| path.ends_with(suffix))
}

/// Which members form the prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    /// `tools`, `messages`.
    Chat,
    /// `prompt`.
    Prompt,
    /// `input` like a prompt, or `messages` (embeddings of a chat).
    Embeddings,
    /// `instructions`, `tools`, `input` or `items`.
    Responses,
    /// None.
    Unread,
}

impl Shape {
    fn of(path: &str) -> Self {
        let path = resolve::trimmed(path);
        let path = path.strip_suffix("/render").unwrap_or(path);
        if path.ends_with("/chat/completions") {
            Shape::Chat
        } else if path.ends_with("/embeddings") {
            Shape::Embeddings
        } else if path.ends_with("/responses") || path.ends_with("/conversations") {
            Shape::Responses
        } else {
            Shape::Prompt
        }
    }
}

struct Body<'de> {
    shape: Shape,
    envelope: Envelope<'de>,
    instructions: Option<Raw<'de>>,
    tools: Option<Raw<'de>>,
    /// Messages or items.
    messages: Sink<'de>,
    batch: Batch,
    head: Sink<'de>,
}

impl<'de> Body<'de> {
    fn new(text: &'de str, shape: Shape, wants: Wants, headers: &Headers) -> Self {
        let video = Video::from_headers(headers);
        Self {
            shape,
            envelope: Envelope::new(wants, LIMITS),
            instructions: None,
            tools: None,
            messages: Sink::new(text, video),
            batch: Batch::default(),
            head: Sink::new(text, video),
        }
    }
}

impl<'de> Members<'de> for Body<'de> {
    fn member(&mut self, key: &Raw<'de>, value: Value<'de>) -> Result<End, Fault> {
        match (self.shape, &*key.name()) {
            (Shape::Chat | Shape::Embeddings, "messages") => prompt::messages("`messages`", value, &mut self.messages),
            (Shape::Chat | Shape::Responses, "tools") => {
                let tools = value.raw()?;
                self.tools = Some(tools);
                Ok(tools.end())
            }
            (Shape::Prompt, "prompt") => self.batch.read("`prompt`", value),
            (Shape::Embeddings, "input") => self.batch.read("`input`", value),
            (Shape::Responses, "instructions") => {
                let instructions = value.raw()?;
                self.instructions = Some(instructions);
                Ok(instructions.end())
            }
            (Shape::Responses, "input" | "items") => match value.kind() {
                // A text is short for one message of the user.
                Kind::Text => {
                    let text = value.raw()?;
                    self.messages.clear();
                    self.messages.fixed(prompt::USER);
                    self.messages.text(&text);
                    Ok(text.end())
                }
                Kind::List | Kind::Null | Kind::Invalid => prompt::messages("`input`", value, &mut self.messages),
                _ => value.refuse("`input`", "text or a list of items"),
            },
            _ => self.envelope.member(key, value),
        }
    }
}

impl<'de> Reader<'de> for Body<'de> {
    fn finish(self) -> (Envelope<'de>, SmallVec<[Prompt; 1]>) {
        let Self { envelope, instructions, tools, messages, batch, mut head, .. } = self;
        if !batch.is_empty() {
            return (envelope, batch.into_prompts());
        }
        if let Some(instructions) = instructions.filter(|instructions| instructions.kind() == Kind::Text) {
            head.fixed(prompt::SYSTEM);
            head.text(&instructions);
        }
        head.tools(tools);
        head.append(messages);
        (envelope, head.into_prompts())
    }
}
