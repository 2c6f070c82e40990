//! The APIs of a model server: what a request asks for, and the answer in that API's words.
//!
//! Answers are made of three-letter words and a blank, which is one token each; which words is fixed
//! by the prompt, so that every endpoint gives the same answer and a test can tell where a byte was
//! lost. Shapes follow the real servers as far as clients and the picker read them. Known deviations:
//! SGLang's stream carries each chunk's text alone (its incremental mode), and Anthropic's
//! `input_tokens` leaves out what was read from the cache, as Anthropic does.

use bytes::Bytes;
use serde_json::{Value, json};
use xxhash_rust::xxh64::xxh64;

use super::engine::TOKEN_BYTES;
use super::prompt;

/// Most choices (`n`) of one request.
const MAX_CHOICES: u64 = 16;

#[rustfmt::skip]
const WORDS: [&[u8; TOKEN_BYTES]; 32] = [
    b"the ", b"sun ", b"and ", b"sea ", b"are ", b"old ", b"but ", b"new ", b"sky ", b"has ", b"one ", b"red ", b"bee ", b"who ", b"can ", b"fly ",
    b"far ", b"for ", b"day ", b"out ", b"off ", b"its ", b"ice ", b"cap ", b"you ", b"may ", b"see ", b"two ", b"big ", b"dry ", b"oak ", b"now ",
];

/// One of the APIs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Api {
    Completions,
    Chat,
    Responses,
    Embeddings,
    Messages,
    CountTokens,
    VllmGenerate,
    SglangGenerate,
}

/// What a request asks for.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) model: Option<String>,
    /// One per choice; at least one.
    pub(super) prompts: Vec<Vec<u8>>,
    max_tokens: Option<u64>,
    min_tokens: u64,
    ignore_eos: bool,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
    /// Hash of the cache salt, 0 without one.
    pub(super) salt: u64,
}

impl Call {
    /// Reads a body; the error is for the client.
    pub(super) fn parse(api: Api, body: &[u8]) -> Result<Self, String> {
        let body: Value = serde_json::from_slice(body).map_err(|e| format!("the body is no JSON: {e}"))?;
        if !body.is_object() {
            return Err("the body must be a JSON object".to_owned());
        }
        let sampling = match api {
            Api::VllmGenerate | Api::SglangGenerate => body.get("sampling_params").unwrap_or(&Value::Null),
            _ => &body,
        };
        let mut prompts = match api {
            Api::Completions => prompt::prompts(body.get("prompt"))?,
            Api::Embeddings => prompt::prompts(body.get("input"))?,
            Api::Chat => vec![prompt::conversation(&body, "", "messages")?],
            Api::Messages | Api::CountTokens => vec![prompt::conversation(&body, "system", "messages")?],
            Api::Responses => vec![prompt::conversation(&body, "instructions", "input")?],
            Api::VllmGenerate => vec![prompt::token_ids(body.get("token_ids"))?],
            Api::SglangGenerate => match body.get("input_ids") {
                Some(ids) => prompt::prompts(Some(ids))?,
                None => prompt::prompts(body.get("text"))?,
            },
        };
        let choices = sampling.get("n").and_then(Value::as_u64).unwrap_or(1);
        if !(1..=MAX_CHOICES).contains(&choices) {
            return Err(format!("n is {choices}, it must be between 1 and {MAX_CHOICES}"));
        }
        if choices > 1 {
            prompts = prompts.into_iter().flat_map(|p| vec![p; choices as usize]).collect();
        }
        let number = |name: &str| sampling.get(name).and_then(Value::as_u64);
        let flag = |at: &Value, name: &str| at.get(name).and_then(Value::as_bool).unwrap_or(false);
        let max_tokens = match api {
            Api::Chat => number("max_completion_tokens").or_else(|| number("max_tokens")),
            Api::Responses => number("max_output_tokens"),
            Api::SglangGenerate => number("max_new_tokens"),
            Api::Embeddings | Api::CountTokens => Some(0),
            Api::Completions | Api::Messages | Api::VllmGenerate => number("max_tokens"),
        };
        let salt = body.get("cache_salt").and_then(Value::as_str);
        Ok(Self {
            model: body.get("model").and_then(Value::as_str).map(str::to_owned),
            prompts,
            max_tokens,
            min_tokens: number("min_tokens").unwrap_or(0),
            ignore_eos: flag(sampling, "ignore_eos"),
            stream: flag(&body, "stream") && !matches!(api, Api::Embeddings | Api::CountTokens),
            include_usage: body.get("stream_options").is_some_and(|options| flag(options, "include_usage")),
            salt: salt.map_or(0, |salt| xxh64(salt.as_bytes(), 1)),
        })
    }

    /// Tokens of the answer to one prompt, if a server that feels like `natural` tokens gives it.
    pub(super) fn answer_tokens(&self, natural: u32, limit: u32) -> u32 {
        let max = self.max_tokens.unwrap_or(u64::MAX);
        let wanted = match (self.ignore_eos, self.max_tokens) {
            (true, Some(max)) => max,
            _ => u64::from(natural).max(self.min_tokens).min(max),
        };
        u32::try_from(wanted).unwrap_or(u32::MAX).min(limit)
    }

    /// Whether an answer of `tokens` was cut rather than ended.
    pub(super) fn is_cut(&self, tokens: u32, intended: u32) -> bool {
        tokens < intended || self.max_tokens.is_some_and(|max| u64::from(tokens) >= max)
    }
}

/// The answer to `prompt`: `tokens` words.
pub(super) fn words(prompt: &[u8], tokens: u32) -> Vec<u8> {
    let seed = xxh64(prompt, 0) as usize;
    // An odd stride visits all words.
    let stride = (seed >> 8) | 1;
    let word = |i: u32| WORDS[seed.wrapping_add(stride.wrapping_mul(i as usize)) % WORDS.len()];
    (0..tokens).flat_map(|i| *word(i)).collect()
}

/// Sums over the choices of one answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) prompt: u32,
    pub(super) cached: u32,
    pub(super) completion: u32,
}

/// One finished choice.
pub(super) struct Choice {
    /// The words.
    pub(super) text: Vec<u8>,
    /// Cut by a limit.
    pub(super) cut: bool,
}

/// Writes answers in the words of one API.
pub(super) struct Writer {
    pub(super) api: Api,
    pub(super) id: u64,
    pub(super) model: String,
    /// Seconds since 1970.
    pub(super) created: u64,
}

fn ids(text: &[u8]) -> Vec<u32> {
    text.chunks_exact(TOKEN_BYTES).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect()
}

fn string(text: &[u8]) -> String {
    String::from_utf8_lossy(text).into_owned()
}

impl Writer {
    fn name(&self) -> String {
        let kind = match self.api {
            Api::Completions => "cmpl",
            Api::Chat => "chatcmpl",
            Api::Responses => "resp",
            Api::Embeddings => "embd",
            Api::Messages | Api::CountTokens => "msg",
            Api::VllmGenerate | Api::SglangGenerate => "gen",
        };
        format!("{kind}-{:016x}", self.id)
    }

    fn reason(&self, cut: bool) -> &'static str {
        match (self.api, cut) {
            (Api::Messages, true) => "max_tokens",
            (Api::Messages, false) => "end_turn",
            (_, true) => "length",
            (_, false) => "stop",
        }
    }

    fn usage(&self, usage: Usage) -> Value {
        let Usage { prompt, cached, completion } = usage;
        match self.api {
            Api::Messages => json!({
                "input_tokens": prompt - cached.min(prompt),
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": cached,
                "output_tokens": completion,
            }),
            Api::Responses => json!({
                "input_tokens": prompt,
                "input_tokens_details": {"cached_tokens": cached},
                "output_tokens": completion,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": prompt + completion,
            }),
            _ => json!({
                "prompt_tokens": prompt,
                "total_tokens": prompt + completion,
                "completion_tokens": completion,
                "prompt_tokens_details": {"cached_tokens": cached},
            }),
        }
    }

    fn meta(&self, usage: Usage, cut: Option<bool>) -> Value {
        json!({
            "id": self.name(),
            "finish_reason": cut.map(|cut| json!({"type": self.reason(cut)})),
            "prompt_tokens": usage.prompt,
            "completion_tokens": usage.completion,
            "cached_tokens": usage.cached,
        })
    }

    /// The answer in one piece.
    pub(super) fn whole(&self, choices: &[Choice], usage: Usage) -> Value {
        let (id, model, created) = (self.name(), &self.model, self.created);
        let each = |one: &dyn Fn(usize, &Choice) -> Value| -> Vec<Value> {
            choices.iter().enumerate().map(|(index, choice)| one(index, choice)).collect()
        };
        let text = || choices.first().map(|c| string(&c.text)).unwrap_or_default();
        let cut = choices.iter().any(|c| c.cut);
        match self.api {
            Api::Completions => json!({
                "id": id, "object": "text_completion", "created": created, "model": model,
                "choices": each(&|index, c| json!({
                    "index": index, "text": string(&c.text), "logprobs": null,
                    "finish_reason": self.reason(c.cut), "stop_reason": null,
                })),
                "usage": self.usage(usage),
            }),
            Api::Chat => json!({
                "id": id, "object": "chat.completion", "created": created, "model": model,
                "choices": each(&|index, c| json!({
                    "index": index, "message": {"role": "assistant", "content": string(&c.text), "refusal": null},
                    "logprobs": null, "finish_reason": self.reason(c.cut), "stop_reason": null,
                })),
                "usage": self.usage(usage),
            }),
            Api::Embeddings => json!({
                "id": id, "object": "list", "created": created, "model": model,
                "data": each(&|index, _| json!({"index": index, "object": "embedding", "embedding": [0.5, -0.5, 0.25, 0.0]})),
                "usage": self.usage(usage),
            }),
            Api::Messages => json!({
                "id": id, "type": "message", "role": "assistant", "model": model,
                "content": [{"type": "text", "text": text()}],
                "stop_reason": self.reason(cut), "stop_sequence": null, "usage": self.usage(usage),
            }),
            Api::CountTokens => json!({"input_tokens": usage.prompt}),
            Api::Responses => self.response("completed", &text(), Some(usage)),
            Api::VllmGenerate => json!({
                "request_id": id,
                "choices": each(&|index, c| json!({
                    "index": index, "token_ids": ids(&c.text), "logprobs": null, "finish_reason": self.reason(c.cut),
                })),
                "usage": self.usage(usage),
            }),
            Api::SglangGenerate => {
                let answers = each(
                    &|_, c| json!({"text": string(&c.text), "output_ids": ids(&c.text), "meta_info": self.meta(usage, Some(c.cut))}),
                );
                match <[Value; 1]>::try_from(answers) {
                    Ok([one]) => one,
                    Err(many) => Value::Array(many),
                }
            }
        }
    }

    fn response(&self, status: &str, text: &str, usage: Option<Usage>) -> Value {
        let content = json!([{"type": "output_text", "text": text, "annotations": []}]);
        let item = json!({"id": format!("msg-{:016x}", self.id), "type": "message", "role": "assistant", "status": status, "content": content});
        json!({
            "id": self.name(), "object": "response", "created_at": self.created, "model": self.model, "status": status,
            "output": if usage.is_some() { json!([item]) } else { json!([]) },
            "usage": usage.map(|usage| self.usage(usage)),
        })
    }

    /// Events before the first token.
    pub(super) fn opening(&self, usage: Usage) -> Vec<Bytes> {
        match self.api {
            Api::Chat => vec![self.delta(0, &json!({"role": "assistant", "content": ""}), Value::Null)],
            Api::Messages => vec![
                named(
                    "message_start",
                    json!({"message": {
                        "id": self.name(), "type": "message", "role": "assistant", "model": self.model, "content": [],
                        "stop_reason": null, "stop_sequence": null, "usage": self.usage(Usage { completion: 0, ..usage }),
                    }}),
                ),
                named("content_block_start", json!({"index": 0, "content_block": {"type": "text", "text": ""}})),
            ],
            Api::Responses => vec![named(
                "response.created",
                json!({"sequence_number": 0, "response": self.response("in_progress", "", None)}),
            )],
            _ => Vec::new(),
        }
    }

    /// One token of choice `index`; `end` says how the choice ends if this is its last.
    pub(super) fn token(&self, index: usize, text: &[u8], usage: Usage, end: Option<bool>) -> Bytes {
        let reason = end.map_or(Value::Null, |cut| self.reason(cut).into());
        match self.api {
            Api::Chat => self.delta(index, &json!({"content": string(text)}), reason),
            Api::Messages => {
                named("content_block_delta", json!({"index": 0, "delta": {"type": "text_delta", "text": string(text)}}))
            }
            Api::Responses => named(
                "response.output_text.delta",
                json!({
                    "sequence_number": usage.completion, "item_id": format!("msg-{:016x}", self.id),
                    "output_index": 0, "content_index": 0, "delta": string(text),
                }),
            ),
            Api::VllmGenerate => data(&json!({
                "request_id": self.name(), "choices": [{"index": index, "token_ids": ids(text), "finish_reason": reason}],
            })),
            Api::SglangGenerate => data(&json!({
                "index": index, "text": string(text), "output_ids": ids(text), "meta_info": self.meta(usage, end),
            })),
            Api::Completions | Api::Embeddings | Api::CountTokens => data(&json!({
                "id": self.name(), "object": "text_completion", "created": self.created, "model": self.model,
                "choices": [{"index": index, "text": string(text), "logprobs": null, "finish_reason": reason}],
            })),
        }
    }

    fn delta(&self, index: usize, delta: &Value, reason: Value) -> Bytes {
        data(&json!({
            "id": self.name(), "object": "chat.completion.chunk", "created": self.created, "model": self.model,
            "choices": [{"index": index, "delta": delta, "logprobs": null, "finish_reason": reason}],
        }))
    }

    /// Events after the last token.
    pub(super) fn closing(&self, choice: &Choice, usage: Usage, include_usage: bool) -> Vec<Bytes> {
        let done = Bytes::from_static(b"data: [DONE]\n\n");
        let object = match self.api {
            Api::Messages => {
                return vec![
                    named("content_block_stop", json!({"index": 0})),
                    named(
                        "message_delta",
                        json!({
                            "delta": {"stop_reason": self.reason(choice.cut), "stop_sequence": null},
                            "usage": self.usage(usage),
                        }),
                    ),
                    named("message_stop", json!({})),
                ];
            }
            Api::Responses => {
                let response = self.response("completed", &string(&choice.text), Some(usage));
                let number = usage.completion + 1;
                return vec![named("response.completed", json!({"sequence_number": number, "response": response}))];
            }
            Api::SglangGenerate => return vec![done],
            Api::Chat => "chat.completion.chunk",
            Api::VllmGenerate => "generate.chunk",
            Api::Completions | Api::Embeddings | Api::CountTokens => "text_completion",
        };
        let mut events = Vec::new();
        if include_usage {
            events.push(data(&json!({
                "id": self.name(), "object": object, "created": self.created, "model": self.model,
                "choices": [], "usage": self.usage(usage),
            })));
        }
        events.push(done);
        events
    }

    /// An error in the API's words.
    pub(super) fn error(api: Option<Api>, status: u16, message: &str) -> Value {
        let kind = match status {
            404 => "NotFoundError",
            400..500 => "BadRequestError",
            _ => "InternalServerError",
        };
        match api {
            Some(Api::Messages | Api::CountTokens) => {
                json!({"type": "error", "error": {"type": "invalid_request_error", "message": message}})
            }
            _ => json!({"error": {"message": message, "type": kind, "param": null, "code": status}}),
        }
    }
}

fn data(value: &Value) -> Bytes {
    Bytes::from(format!("data: {value}\n\n"))
}

fn named(event: &str, mut value: Value) -> Bytes {
    value["type"] = event.into();
    Bytes::from(format!("event: {event}\ndata: {value}\n\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(api: Api, body: Value) -> Call {
        Call::parse(api, body.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn lengths_follow_the_request() {
        let tokens = |body: Value| call(Api::Completions, body).answer_tokens(32, 1000);
        assert_eq!(tokens(json!({"prompt": "a"})), 32);
        assert_eq!(tokens(json!({"prompt": "a", "max_tokens": 5})), 5);
        assert_eq!(tokens(json!({"prompt": "a", "max_tokens": 50})), 32);
        assert_eq!(tokens(json!({"prompt": "a", "max_tokens": 50, "min_tokens": 40})), 40);
        assert_eq!(tokens(json!({"prompt": "a", "max_tokens": 50, "ignore_eos": true})), 50);
        assert_eq!(tokens(json!({"prompt": "a", "max_tokens": u64::MAX, "ignore_eos": true})), 1000);
        let chat = json!({"messages": [{"content": "a"}], "max_tokens": 3, "max_completion_tokens": 4});
        assert_eq!(call(Api::Chat, chat).answer_tokens(32, 1000), 4);
        let generate = json!({"token_ids": [1], "max_tokens": 3, "sampling_params": {"max_tokens": 7}});
        assert_eq!(call(Api::VllmGenerate, generate).answer_tokens(32, 1000), 7);
        assert_eq!(call(Api::Embeddings, json!({"input": "a"})).answer_tokens(32, 1000), 0);
    }

    #[test]
    fn bad_bodies_are_refused_with_a_reason() {
        for (api, body) in [
            (Api::Completions, "not json"),
            (Api::Completions, "[]"),
            (Api::Completions, "{}"),
            (Api::Completions, r#"{"prompt": "a", "n": 99}"#),
            (Api::Chat, r#"{"messages": 5}"#),
            (Api::VllmGenerate, r#"{"token_ids": "a"}"#),
        ] {
            assert!(Call::parse(api, body.as_bytes()).is_err(), "{body}");
        }
    }

    #[test]
    fn words_are_fixed_by_the_prompt_and_a_token_each() {
        assert_eq!(words(b"abc", 5), words(b"abc", 5));
        assert_ne!(words(b"abc", 5), words(b"abd", 5));
        assert!(words(b"abc", 9).starts_with(&words(b"abc", 8)));
        let text = words(b"abc", 40);
        assert!(text.chunks_exact(TOKEN_BYTES).all(|w| w[..3].is_ascii() && w[3] == b' '));
    }
}
