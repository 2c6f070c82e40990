use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::*;

const SSE: Option<&str> = Some("text/event-stream; charset=utf-8");

fn read(format: AnswerFormat, content_type: Option<&str>, chunks: &[&[u8]]) -> Usage {
    let mut reader = UsageReader::new(format, content_type, None);
    for chunk in chunks {
        reader.push(&Bytes::copy_from_slice(chunk));
    }
    reader.finish()
}

fn counts(prompt: u64, cached: impl Into<Option<u64>>, completion: u64) -> Usage {
    Usage { prompt_tokens: Some(prompt), cached_tokens: cached.into(), completion_tokens: Some(completion) }
}

#[test]
fn reads_what_servers_send() {
    let chat = include_bytes!("../../../tests/data/dialect/chat.response.json");
    assert_eq!(read(AnswerFormat::OpenAi, Some("application/json"), &[chat]), counts(81, None, 3));
    let stream = include_bytes!("../../../tests/data/dialect/chat-stream.response.txt");
    assert_eq!(read(AnswerFormat::OpenAi, SSE, &[stream]), counts(81, None, 3));
    let stream = include_bytes!("../../../tests/data/dialect/completion-stream.response.txt");
    assert_eq!(read(AnswerFormat::OpenAi, SSE, &[stream]), counts(3, None, 3));
}

#[test]
fn reads_every_format_of_json() {
    for (format, answer, expected) in [
        (
            AnswerFormat::OpenAi,
            json!({"usage": {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}}),
            counts(9, 4, 2),
        ),
        (
            AnswerFormat::OpenAi,
            json!({"usage": {"input_tokens": 9, "output_tokens": 2, "input_tokens_details": {"cached_tokens": 4}}}),
            counts(9, 4, 2),
        ),
        (
            AnswerFormat::Anthropic,
            json!({"usage": {"input_tokens": 5, "cache_read_input_tokens": 100, "cache_creation_input_tokens": 7, "output_tokens": 2}}),
            counts(112, 100, 2),
        ),
        (
            AnswerFormat::Engine,
            json!({"meta_info": {"prompt_tokens": 9, "cached_tokens": 4, "completion_tokens": 2, "id": "x"}}),
            counts(9, 4, 2),
        ),
        (AnswerFormat::Engine, json!({"usage": {"prompt_tokens": 9, "completion_tokens": 2}}), counts(9, None, 2)),
        (
            AnswerFormat::Engine,
            json!([
                {"meta_info": {"prompt_tokens": 9, "cached_tokens": 4, "completion_tokens": 2}},
                {"meta_info": {"prompt_tokens": 1, "completion_tokens": u64::MAX}}
            ]),
            counts(10, 4, u64::MAX),
        ),
        (AnswerFormat::OpenAi, json!({"usage": null}), Usage::default()),
        (AnswerFormat::OpenAi, json!({"usage": {"prompt_tokens": -1, "completion_tokens": 1.5}}), Usage::default()),
        (AnswerFormat::OpenAi, json!({"choices": [{"usage": {"prompt_tokens": 1}}]}), Usage::default()),
        (AnswerFormat::OpenAi, json!([{"usage": {"prompt_tokens": 1}}]), Usage::default()),
        (AnswerFormat::Opaque, json!({"usage": {"prompt_tokens": 1}}), Usage::default()),
    ] {
        let text = answer.to_string();
        let (head, tail) = text.as_bytes().split_at(text.len() / 2);
        assert_eq!(read(format, Some("application/json"), &[head, tail]), expected, "{text}");
        assert_eq!(read(format, None, &[text.as_bytes()]), expected, "{text}");
    }
}

#[test]
fn streams_spread_counts_over_events() {
    let anthropic = "event: message_start\n\
        data: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":5,\"cache_read_input_tokens\":10,\"output_tokens\":1}}}\n\n\
        event: message_delta\n\
        data: {\"type\":\"message_delta\",\"usage\":{\"output_tokens\":15}}\n\n";
    assert_eq!(read(AnswerFormat::Anthropic, SSE, &[anthropic.as_bytes()]), counts(15, 10, 15));
    let responses = "data: {\"type\":\"response.created\",\"response\":{\"usage\":null}}\n\n\
        data: {\"type\":\"response.completed\",\"response\":{\"usage\":{\"input_tokens\":5,\"output_tokens\":6,\"input_tokens_details\":{\"cached_tokens\":3}}}}";
    assert_eq!(read(AnswerFormat::OpenAi, SSE, &[responses.as_bytes()]), counts(5, 3, 6), "the last event has no end");
    let repeated = "data:{\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":1}}\r\n\r\n: usage\r\ndata: {\"usage\":\r\ndata:{\"completion_tokens\":2}}\r\n\r\ndata: {\"usage\":null}\r\n\r\ndata: [DONE]\r\n\r\n";
    assert_eq!(read(AnswerFormat::OpenAi, SSE, &[repeated.as_bytes()]), counts(1, None, 2));
}

#[test]
fn nothing_is_read_of_what_is_not_ours() {
    let body = br#"{"usage":{"prompt_tokens":1}}"#;
    for (content_type, encoding) in [
        (Some("application/json"), Some("gzip")),
        (None, Some("br")),
        (Some("text/plain"), None),
        (Some("application/grpc"), None),
    ] {
        let mut reader = UsageReader::new(AnswerFormat::OpenAi, content_type, encoding);
        assert!(!reader.is_reading(), "{content_type:?} {encoding:?}");
        reader.push(&Bytes::from_static(body));
        assert_eq!(reader.finish(), Usage::default());
    }
    for encoding in ["", "identity", "Identity"] {
        let mut reader =
            UsageReader::new(AnswerFormat::OpenAi, Some("Application/JSON; charset=utf-8"), Some(encoding));
        reader.push(&Bytes::from_static(body));
        assert_eq!(reader.finish().prompt_tokens, Some(1));
    }
    for broken in [
        &b"{\"usage\":{\"prompt_tokens\":1}"[..],
        b"usage",
        b"\xff{\"usage\":{}}",
        b"{\"usage\":{\"prompt_tokens\":1}} x",
    ] {
        assert_eq!(read(AnswerFormat::OpenAi, None, &[broken]), Usage::default());
        assert_eq!(read(AnswerFormat::OpenAi, SSE, &[b"data: ", broken, b"\n\n"]), Usage::default());
    }
}

#[test]
fn content_types_of_event_streams() {
    assert!(is_event_stream("text/event-stream"));
    assert!(is_event_stream(" Text/Event-Stream ;charset=utf-8"));
    assert!(!is_event_stream("application/json"));
    assert!(!is_event_stream("text/event-streams"));
}

#[test]
fn too_long_lines_and_answers_are_dropped_and_the_rest_is_read() {
    let usage = b"data: {\"usage\":{\"prompt_tokens\":7}}\n\n";
    let filler = vec![b'x'; 300 << 10];
    let mut chunks: Vec<&[u8]> = vec![b"data: {\"usage\":{\"prompt_tokens\":1},\"x\":\""];
    chunks.extend([filler.as_slice(); 5]);
    chunks.extend([&b"\"}\n\n"[..], usage]);
    assert_eq!(read(AnswerFormat::OpenAi, SSE, &chunks).prompt_tokens, Some(7));
    // In reverse the long line must not take away what was read before; whole or in parts.
    chunks.rotate_right(1);
    assert_eq!(read(AnswerFormat::OpenAi, SSE, &chunks).prompt_tokens, Some(7));
    assert_eq!(read(AnswerFormat::OpenAi, SSE, &[&chunks.concat()]).prompt_tokens, Some(7));

    // Many lines of one event.
    let mut reader = UsageReader::new(AnswerFormat::OpenAi, SSE, None);
    reader.push(&Bytes::from_static(b"data: {\"usage\":{\"prompt_tokens\":1},\"x\":[\n"));
    let line = Bytes::from([b"data: ", vec![b'1'; 1 << 18].as_slice(), b",\n"].concat());
    for _ in 0..20 {
        reader.push(&line);
        let State::Events { lines, .. } = &reader.state else { panic!("a stream") };
        assert!(lines.held() <= 2 * sse::MAX_EVENT, "bounded");
    }
    reader.push(&Bytes::from_static(b"data: 1]}\n\n"));
    reader.push(&Bytes::from_static(usage));
    assert_eq!(reader.finish().prompt_tokens, Some(7));

    let mut reader = UsageReader::new(AnswerFormat::OpenAi, None, None);
    reader.push(&Bytes::from_static(br#"{"usage":{"prompt_tokens":1},"x":""#));
    let filler = Bytes::from(vec![b'x'; 1 << 20]);
    for pushed in 1..20 {
        reader.push(&filler);
        assert_eq!(reader.is_reading(), pushed < 16);
    }
    assert_eq!(reader.finish(), Usage::default());
}

#[test]
fn a_json_answer_in_tiny_chunks_is_not_kept_as_handles() {
    let text = format!("{{\"x\":\"{}\",\"usage\":{{\"prompt_tokens\":3}}}}", "y".repeat(50_000));
    let mut reader = UsageReader::new(AnswerFormat::OpenAi, None, None);
    for byte in text.as_bytes() {
        reader.push(&Bytes::copy_from_slice(&[*byte]));
    }
    let State::Json(pieces) = &reader.state else { panic!("json") };
    assert!(pieces.whole.is_empty());
    assert_eq!(reader.finish().prompt_tokens, Some(3));
}

/// One `data` text of an event stream.
fn data() -> impl Strategy<Value = String> {
    let number = prop_oneof![(0..100_u64).prop_map(Json::from), Just(Json::Null), Just(json!(-1)), Just(json!("1"))];
    let usage = prop::collection::btree_map(
        prop::sample::select(vec![
            "prompt_tokens",
            "completion_tokens",
            "input_tokens",
            "output_tokens",
            "cache_read_input_tokens",
            "cache_creation_input_tokens",
            "total_tokens",
        ]),
        number,
        0..5,
    )
    .prop_map(|map| json!(map));
    let details = (usage, prop::option::of(0..50_u64)).prop_map(|(mut usage, cached)| {
        if let Some(cached) = cached {
            usage["prompt_tokens_details"] = json!({"cached_tokens": cached});
        }
        usage
    });
    prop_oneof![
        2 => Just(r#"{"choices":[{"delta":{"content":"no"}}],"usage":null}"#.to_owned()),
        1 => Just("[DONE]".to_owned()),
        1 => Just("{\"usage\":{\"prompt_tokens\":1}".to_owned()),
        1 => Just(r#"{"choices":[{"delta":{"content":"the usage\r\n\r\ndata: {}"}}]}"#.to_owned()),
        3 => details.clone().prop_map(|usage| json!({"type": "x", "usage": usage}).to_string()),
        1 => details.clone().prop_map(|usage| format!("{:#}", json!({"usage": usage}))),
        1 => details.clone().prop_map(|usage| json!({"response": {"usage": usage}}).to_string()),
        1 => details.clone().prop_map(|usage| json!({"message": {"usage": usage}}).to_string()),
        1 => details.prop_map(|usage| json!({"meta_info": usage}).to_string()),
    ]
}

/// An independent reading of the events' data, over `serde_json::Value`.
fn oracle(format: AnswerFormat, events: &[String]) -> Usage {
    let mut found = std::collections::BTreeMap::new();
    for event in events {
        let Ok(Json::Object(event)) = serde_json::from_str::<Json>(event) else { continue };
        let places = match format {
            AnswerFormat::OpenAi => [event.get("usage"), event.get("response").and_then(|r| r.get("usage"))],
            AnswerFormat::Anthropic => [event.get("usage"), event.get("message").and_then(|m| m.get("usage"))],
            AnswerFormat::Engine => [event.get("usage"), event.get("meta_info")],
            AnswerFormat::Opaque => [None, None],
        };
        for usage in places.into_iter().flatten() {
            // `Value` sorts names, as the generated texts do; the last one in a text wins.
            for (name, value) in usage.as_object().into_iter().flatten() {
                let (name, value) = match name.as_str() {
                    "prompt_tokens_details" => ("cached", value.get("cached_tokens").and_then(Json::as_u64)),
                    "input_tokens" if format == AnswerFormat::Anthropic => ("fresh", value.as_u64()),
                    "cache_read_input_tokens" if format == AnswerFormat::Anthropic => ("read", value.as_u64()),
                    "cache_creation_input_tokens" if format == AnswerFormat::Anthropic => ("written", value.as_u64()),
                    "prompt_tokens" | "input_tokens" => ("prompt", value.as_u64()),
                    "completion_tokens" | "output_tokens" => ("completion", value.as_u64()),
                    _ => continue,
                };
                if let Some(value) = value {
                    found.insert(name, value);
                }
            }
        }
    }
    let get = |name| found.get(name).copied();
    match get("fresh") {
        Some(fresh) => Usage {
            prompt_tokens: Some(fresh + get("read").unwrap_or(0) + get("written").unwrap_or(0)),
            cached_tokens: get("read"),
            completion_tokens: get("completion"),
        },
        None => Usage {
            prompt_tokens: get("prompt"),
            cached_tokens: get("cached").or(get("read")),
            completion_tokens: get("completion"),
        },
    }
}

proptest! {
    #[test]
    fn chunking_does_not_matter_and_the_oracle_agrees(
        events in prop::collection::vec((data(), any::<bool>(), 0..3_usize, any::<bool>()), 0..8),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        bom in any::<bool>(),
        format in prop::sample::select(vec![AnswerFormat::OpenAi, AnswerFormat::Anthropic, AnswerFormat::Engine]),
    ) {
        let mut text = if bom { "\u{feff}".to_owned() } else { String::new() };
        for (data, space, end, comment) in &events {
            let end = ["\n", "\r\n", "\r"][*end];
            if *comment {
                text += &format!(": usage{end}event: usage{end}");
            }
            for line in data.split('\n') {
                text += &format!("data:{}{line}{end}", if *space { " " } else { "" });
            }
            text += end;
        }
        let text = text.as_bytes();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
        cuts.sort_unstable();
        let mut chunks = Vec::new();
        let mut done = 0;
        for cut in cuts {
            chunks.push(&text[done..cut]);
            done = cut;
        }
        chunks.push(&text[done..]);
        let whole = read(format, SSE, &[text]);
        prop_assert_eq!(read(format, SSE, &chunks), whole);
        let bytes: Vec<&[u8]> = text.chunks(1).collect();
        prop_assert_eq!(read(format, SSE, &bytes), whole);
        let data: Vec<String> = events.into_iter().map(|(data, ..)| data).collect();
        prop_assert_eq!(whole, oracle(format, &data));
    }

    #[test]
    fn any_bytes_are_survived(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..6), text in "[data: \r\n{}\"usage\\[\\]1]{0,80}") {
        for format in [AnswerFormat::OpenAi, AnswerFormat::Anthropic, AnswerFormat::Engine] {
            for content_type in [SSE, None] {
                let mut all: Vec<&[u8]> = chunks.iter().map(Vec::as_slice).collect();
                all.push(text.as_bytes());
                let joined = all.concat();
                prop_assert_eq!(read(format, content_type, &all), read(format, content_type, &[&joined]));
            }
        }
    }
}
