//! What reading a request body costs: from bytes to model, prompt ranges and estimates, and what an
//! event of a streamed answer costs. A bare gRPC echo of 128 KB takes about 120 µs, so the bodies of that
//! size should stay near a tenth of it, whatever is in them.
//!
//! `cargo bench --bench parse`

use std::hint::black_box;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pointsman::dialect::{AnswerFormat, Dialects, UsageReader, Wants};
use pointsman::domain::Headers;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const CHAT: &str = "/v1/chat/completions";
const COMPLETION: &str = "/v1/completions";

/// No escape at all.
const PLAIN: &str = "The points are set before the train arrives, and what was set is what matters here. ";
/// An escape every 85 bytes.
const LINES: &str = "The points are set before the train arrives, and what was set is what matters here.\\n";
/// Three in 84 bytes.
const QUOTES: &str = "The points are set before the train arrives, and \\\"before\\\" is what matters here.\\n";
/// Five in 17 bytes, as JSON or code inside a text has them.
const CODE: &str = "\\\"name\\\": \\\"x\\\",\\n";
/// Text beyond ASCII.
const UNICODE: &str = "Der Zug f\u{e4}hrt \u{fc}ber die Weiche \u{2013} \u{8f66}\u{7ad9}\u{3002} ";
/// A definition that nobody compacted.
const TOOL: &str = r#"{
      "type": "function",
      "function": {
        "name": "f",
        "parameters": {"type": "object", "required": ["x"], "n": [0, 1.5, -2e3, true, null]}
      }
    }"#;

/// One message with about `bytes` of `text`.
fn chat(text: &str, bytes: usize) -> String {
    let content = text.repeat(bytes / text.len());
    format!(
        r#"{{"model":"meta-llama/Llama-3.1-8B-Instruct","messages":[{{"role":"user","content":"{content}"}}],"max_tokens":64,"stream":true}}"#
    )
}

/// The same in 40 messages; the shortest ones are one sentence each.
fn conversation(bytes: usize) -> String {
    let content = QUOTES.repeat((bytes / 40 / QUOTES.len()).max(1));
    let message = |i: usize| format!(r#"{{"role":"{}","content":"{content}"}}"#, ["user", "assistant"][i % 2]);
    let messages: Vec<String> = (0..40).map(message).collect();
    format!(r#"{{"model":"meta-llama/Llama-3.1-8B-Instruct","messages":[{}]}}"#, messages.join(","))
}

fn tools(bytes: usize) -> String {
    let tools = vec![TOOL; (bytes / TOOL.len()).max(1)].join(",\n    ");
    format!("{{\n  \"model\": \"m\",\n  \"tools\": [\n    {tools}\n  ],\n  \"messages\": []\n}}")
}

fn token_ids(bytes: usize) -> String {
    let ids: Vec<String> = (0..bytes / 6).map(|i| (10_000 + i * 7919 % 90_000).to_string()).collect();
    format!(r#"{{"model":"m","prompt":[{}]}}"#, ids.join(","))
}

fn bodies(c: &mut Criterion) {
    let dialects = Dialects::default();
    let headers = Headers::default();
    let mut group = c.benchmark_group("parse");
    for (size, kb) in [("1KB", 1), ("16KB", 16), ("128KB", 128)] {
        let bytes = kb << 10;
        for (name, path, body) in [
            ("plain", CHAT, chat(PLAIN, bytes)),
            ("lines", CHAT, chat(LINES, bytes)),
            ("quotes", CHAT, chat(QUOTES, bytes)),
            ("code", CHAT, chat(CODE, bytes)),
            ("unicode", CHAT, chat(UNICODE, bytes)),
            ("40 messages", CHAT, conversation(bytes)),
            ("tools", CHAT, tools(bytes)),
            ("token ids", COMPLETION, token_ids(bytes)),
        ] {
            let body = Bytes::from(body);
            let read = || dialects.parse(path, &headers, black_box(&body), Wants { prompts: true });
            assert!(!read().expect("valid").prompts.is_empty());
            group.throughput(Throughput::Bytes(body.len() as u64));
            group.bench_function(BenchmarkId::new(name, size), |b| b.iter(read));
        }
    }
    group.finish();
}

fn events(c: &mut Criterion) {
    let event = Bytes::from_static(
        b"data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1795254000,\"model\":\"bench/model\",\
        \"choices\":[{\"index\":0,\"delta\":{\"content\":\" word\"},\"finish_reason\":null}]}\n\n",
    );
    let mut reader = UsageReader::new(AnswerFormat::OpenAi, Some("text/event-stream"), None);
    c.bench_function("usage/event without counts", |b| b.iter(|| reader.push(black_box(&event))));
    assert_eq!(reader.finish().prompt_tokens, None);
}

criterion_group!(benches, bodies, events);
criterion_main!(benches);
