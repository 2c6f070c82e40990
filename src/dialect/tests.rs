use proptest::prelude::*;
use serde_json::{Value as Json, json};
use smallvec::smallvec;

use super::*;
use crate::domain::Segment;

const WANTS: Wants = Wants { prompts: true };

fn all() -> Dialects {
    Dialects::new(TABLE.iter().map(|row| (row.make)()))
}

pub(super) fn parse(path: &str, body: &str) -> Result<Parsed, Rejection> {
    all().parse(path, &Headers::default(), &Bytes::copy_from_slice(body.as_bytes()), WANTS)
}

fn refusal(path: &str, body: &[u8]) -> String {
    match all().parse(path, &Headers::default(), &Bytes::copy_from_slice(body), WANTS) {
        Err(Rejection::BadRequest(text)) => text,
        other => panic!("{path} {}: {other:?}", String::from_utf8_lossy(body)),
    }
}

/// The bytes that a prompt stands for.
pub(super) fn stream(body: &str, prompt: &Prompt) -> Vec<u8> {
    let mut bytes = Vec::new();
    for segment in &prompt.segments {
        match segment {
            Segment::Body(range) => bytes.extend_from_slice(&body.as_bytes()[range.clone()]),
            Segment::Fixed(fixed) => bytes.extend_from_slice(fixed),
            Segment::Tokens(ids) => ids.iter().for_each(|id| bytes.extend(id.to_le_bytes())),
            Segment::Media { digest, tokens } => (0..*tokens).for_each(|_| bytes.extend(digest.to_le_bytes())),
        }
    }
    assert_eq!(bytes.len() as u64, prompt.byte_len());
    bytes
}

fn texts(body: &str, parsed: &Parsed) -> Vec<String> {
    parsed.prompts.iter().map(|p| String::from_utf8(stream(body, p)).expect("text")).collect()
}

#[test]
fn real_bodies_of_an_engine() {
    let body = include_str!("../../tests/data/dialect/chat.request.json");
    let parsed = parse("/v1/chat/completions", body).expect("valid");
    assert_eq!(parsed.model.as_deref(), Some("tiny/llama"));
    assert_eq!((parsed.stream, parsed.max_output_tokens, parsed.answer), (false, Some(3), AnswerFormat::OpenAi));
    let text = &texts(body, &parsed)[0];
    assert!(text.starts_with("\x01system\x02You are a helpful assistant. ") && text.ends_with("over the lazy dog."));
    assert!(
        parse("/v1/chat/completions", include_str!("../../tests/data/dialect/chat-stream.request.json"))
            .expect("valid")
            .stream
    );

    let body = include_str!("../../tests/data/dialect/cache-salt.request.json");
    let parsed = parse("/v1/completions", body).expect("valid");
    assert_eq!(parsed.cache_salt.as_deref(), Some("tenant-a"));
    assert_eq!(parsed.prompts[0].estimated_tokens(), 100, "one per token id");

    let body = include_str!("../../tests/data/dialect/vllm-generate.request.json");
    let parsed = parse("/inference/v1/generate", body).expect("valid");
    let Segment::Tokens(ids) = &parsed.prompts[0].segments[0] else { panic!("ids") };
    assert_eq!((ids.len(), &ids[..4]), (81, &[0, 2, 203, 403][..]));
    assert_eq!((parsed.max_output_tokens, parsed.answer), (Some(3), AnswerFormat::Engine));
    assert_eq!(parsed.cache_salt.as_deref(), Some("tenant-a"));

    let body = include_str!("../../tests/data/dialect/render-anthropic-messages.request.json");
    let parsed = parse("/v1/messages", body).expect("valid");
    assert_eq!(texts(body, &parsed), ["\x01system\x02You are a helpful assistant.\x01user\x02hello world"]);
    assert_eq!(parsed.answer, AnswerFormat::Anthropic);

    let body = include_str!("../../tests/data/dialect/render-responses.request.json");
    let parsed = parse("/v1/responses", body).expect("valid");
    assert_eq!(texts(body, &parsed), ["\x01system\x02You are a helpful assistant.\x01user\x02hello world"]);
}

#[test]
fn completions_and_embeddings_take_text_ids_and_batches() {
    for (path, name) in
        [("/v1/completions", "prompt"), ("/v1/embeddings", "input"), ("/v1/completions/render", "prompt")]
    {
        let of = |value: &str| {
            let body = format!(r#"{{ "{name}" : {value}, "model":"m"}}"#);
            let parsed = parse(path, &body).expect(value);
            parsed.prompts.iter().map(|p| stream(&body, p)).collect::<Vec<_>>()
        };
        assert_eq!(of(r#""say \"hi\"""#), [br#"say \"hi\""#]);
        assert_eq!(of(r#"["a", "b\n"]"#), [b"a".to_vec(), br"b\n".to_vec()]);
        assert_eq!(of("[1, 258 ]"), [[1, 0, 0, 0, 2, 1, 0, 0]]);
        assert_eq!(of("[ [1],[2, 3] ]"), [vec![1, 0, 0, 0], vec![2, 0, 0, 0, 3, 0, 0, 0]]);
        assert_eq!(of("[]"), Vec::<Vec<u8>>::new());
        assert_eq!(of("null"), Vec::<Vec<u8>>::new());
        assert_eq!(of(r#""dropped", "prompt": ["x"], "input": ["x"]"#), [b"x"], "the last duplicate wins");
        for wrong in ["{}", "5", "true", "[{}]", "[1,\"a\"]", "[[\"a\"]]", "[1.5]", "[-1]", "[null]"] {
            let body = format!(r#"{{"model":"m","{name}":{wrong}}}"#);
            let text = refusal(path, body.as_bytes());
            assert!(text.contains(&format!("`{name}`")) && text.contains(" at line 1 column "), "{text}");
        }
    }
    let body = r#"{"model":"m","messages":[{"role":"user","content":"x"}]}"#;
    assert_eq!(texts(body, &parse("/v1/embeddings", body).expect("valid")), ["\x01user\x02x"]);
    let body = r#"{"model":"m","prompt":"a cat"}"#;
    assert_eq!(texts(body, &parse("/v1/images/generations", body).expect("valid")), ["a cat"]);
}

#[test]
fn responses_take_instructions_tools_and_items() {
    let body = r#"{"model":"m","input":[
        {"type":"message","role":"user","content":[{"type":"input_text","text":"hi"}]},
        {"type":"function_call","call_id":"c","name":"f","arguments":"{}"},
        {"type":"function_call_output","call_id":"c","output":"42"}
    ],"tools":[{}],"instructions":"Be brief.","max_output_tokens":7,"stream":true}"#;
    let parsed = parse("/v1/responses", body).expect("valid");
    assert_eq!(
        texts(body, &parsed),
        ["\x01system\x02Be brief.\x04[{}]\x01user\x02hi\
          \x01\x02\"type\":\"function_call\",\"call_id\":\"c\",\"name\":\"f\",\"arguments\":\"{}\"\
          \x01\x02\"type\":\"function_call_output\",\"call_id\":\"c\",\"output\":\"42\""]
    );
    assert_eq!((parsed.max_output_tokens, parsed.stream), (Some(7), true));
    let body = r#"{"model":"m","items":[{"role":"user","content":"x"}]}"#;
    assert_eq!(texts(body, &parse("/v1/conversations", body).expect("valid")), ["\x01user\x02x"]);
}

#[test]
fn generate_bodies_need_no_model() {
    let parsed = parse("/inference/v1/generate", r#"{"token_ids":[1,2]}"#).expect("valid");
    assert_eq!((parsed.model, parsed.prompts.len()), (None, 1));
    let body = r#"{"text":["a","b"],"sampling_params":{"max_new_tokens":5,"n":1},"stream":true}"#;
    let parsed = parse("/generate", body).expect("valid");
    assert_eq!(texts(body, &parsed), ["a", "b"]);
    assert_eq!((parsed.max_output_tokens, parsed.stream, parsed.model), (Some(5), true, None));
    let body = r#"{"text":"a","input_ids":[[1],[2]],"model":"m","sampling_params":[{}]}"#;
    let parsed = parse("/generate", body).expect("valid");
    assert_eq!(parsed.prompts.len(), 2, "ids win");
    assert!(matches!(&parsed.prompts[1].segments[0], Segment::Tokens(ids) if **ids == [2]));
    assert_eq!(parsed.model.as_deref(), Some("m"));
    assert!(refusal("/inference/v1/generate", br#"{"token_ids":"x"}"#).contains("token ids"));
    assert!(refusal("/inference/v1/generate", br#"{"model":5}"#).starts_with("`model` must be text, found a number"));
}

#[test]
fn the_answer_follows_the_path() {
    let body = r#"{"model":"m","messages":[]}"#;
    for (path, answer) in [
        ("/v1/chat/completions", AnswerFormat::OpenAi),
        ("/v1/chat/completions/render/?x", AnswerFormat::Opaque),
        ("/v1/messages?beta=true", AnswerFormat::Anthropic),
        ("/v1/messages/count_tokens", AnswerFormat::Opaque),
        ("/v1/models", AnswerFormat::Opaque),
    ] {
        assert_eq!(parse(path, body).expect(path).answer, answer, "{path}");
    }
    assert_eq!(parse("/v1/models", "any text").expect("passed through"), Parsed::default());
}

#[test]
fn the_model_must_be_there() {
    for (path, body) in [
        ("/v1/completions", r#"{"prompt":"hello world"}"#),
        ("/v1/chat/completions", "{}"),
        ("/v1/messages", r#"{"model":null,"messages":[]}"#),
        ("/v1/responses", r#"{"model":""}"#),
        ("/v1/completions", r#"{"model":"m","model":""}"#),
    ] {
        assert_eq!(refusal(path, body.as_bytes()), "model not found in request body", "{body}");
    }
    assert_eq!(
        refusal("/v1/completions", b"{\n  \"model\": 5}"),
        "`model` must be text, found a number at line 2 column 12 (byte 13)"
    );
    assert!(refusal("/v1/completions", br#"{"model":"\ud800"}"#).starts_with("`model` must be Unicode text"));
    assert!(refusal("/v1/completions", br#"{"model":"m","cache_salt":1}"#).starts_with("`cache_salt` must be text"));
}

#[test]
fn duplicates_of_the_model_are_all_replaced() {
    let body = r#"{"model":5,"mod\u0065l" : "first","prompt":"x","model":"a\/b"}"#;
    let parsed = parse("/v1/completions", body).expect("valid");
    assert_eq!(parsed.model.as_deref(), Some("a/b"));
    let literals: Vec<&str> = parsed.model_spans.iter().map(|span| &body[span.clone()]).collect();
    assert_eq!(literals, ["5", "\"first\"", "\"a\\/b\""]);
    let rewritten = rewrite_model(&Bytes::from_static(body.as_bytes()), &parsed.model_spans, "new");
    assert_eq!(rewritten.pieces.concat(), br#"{"model":"new","mod\u0065l" : "new","prompt":"x","model":"new"}"#);
}

#[test]
fn bounds_on_output_tokens() {
    let of = |members: &str| {
        parse("/v1/chat/completions", &format!(r#"{{"model":"m",{members}}}"#)).expect(members).max_output_tokens
    };
    assert_eq!(of(r#""max_tokens":5"#), Some(5));
    assert_eq!(of(r#""max_completion_tokens":7,"max_tokens":5"#), Some(7));
    assert_eq!(of(r#""max_tokens":5,"max_completion_tokens":null"#), Some(5));
    for none in ["null", "\"5\"", "-1", "1.5", "1e999", "99999999999999999999999999", "[5]"] {
        assert_eq!(of(&format!(r#""max_tokens":{none}"#)), None, "{none}");
    }
}

#[test]
fn hostile_bodies_are_refused_by_place_and_never_quoted() {
    for (body, expected) in [
        (&b""[..], "expected a JSON object, found nothing at line 1 column 1 (byte 0)"),
        (
            b"\xef\xbb\xbf{\"model\":\"m\"}",
            "expected a JSON object, found a byte order mark at line 1 column 1 (byte 0)",
        ),
        (b"{\"model\":\"m\xff\"}", "expected UTF-8 text, found another byte at line 1 column 12 (byte 11)"),
        (b"{\"a\":\"\xff\"}", "expected UTF-8 text, found another byte at line 1 column 7 (byte 6)"),
        (b"no healthy upstream", "invalid JSON: expected ident at line 1 column 2 (byte 1)"),
        (b"[]", "the request body must be an object, found a list at line 1 column 1 (byte 0)"),
        (b"{\"model\":\"m\"", "invalid JSON: EOF while parsing an object at line 1 column 13 (byte 12)"),
        (b"{\"model\":\"m\"}}", "invalid JSON: trailing characters at line 1 column 14 (byte 13)"),
        (
            b"{\"messages\":\"secret\",\"model\":\"m\"}",
            "`messages` must be a list, found text at line 1 column 13 (byte 12)",
        ),
        (
            b"{\"messages\":[{},\n\"secret\"]}",
            "an element of `messages` must be an object, found text at line 2 column 1 (byte 17)",
        ),
        (
            b"{\"messages\":[{\"content\":\"\n\"}]}",
            "invalid JSON: control character (\\u0000-\\u001F) found while parsing a string at line 1 column 25 (byte 24)",
        ),
    ] {
        assert_eq!(refusal("/v1/chat/completions", body), expected);
    }
    // Accepted by Python's json too, which engines use.
    let lone = r#"{"model":"m","messages":[{"role":"\ud800","content":"\udfff\ud800x","\ud800":1}],"\ud800":1e999}"#;
    assert_eq!(parse("/v1/chat/completions", lone).expect("valid").prompts.len(), 1);
}

#[test]
fn deep_nesting_is_survived_everywhere() {
    let deep = format!("{}{}", "[".repeat(50_000), "]".repeat(50_000));
    for (path, body) in [
        ("/v1/chat/completions", format!(r#"{{"model":"m","x":{deep},"tools":{deep},"messages":[]}}"#)),
        (
            "/v1/chat/completions",
            format!(r#"{{"model":"m","messages":[{{"content":[{{"text":{deep},"x":{deep}}}]}}]}}"#),
        ),
        ("/v1/messages", format!(r#"{{"model":"m","system":[{deep}],"messages":[{{"content":{deep}}}]}}"#)),
    ] {
        assert!(parse(path, &body).is_ok(), "{path}");
        assert!(parse(path, &body[..body.len() / 2]).is_err(), "{path}");
    }
    for body in [
        format!(r#"{{"model":{deep}}}"#),
        format!(r#"{{"model":"m","prompt":{deep}}}"#),
        format!(r#"{{"model":"m","prompt":[{deep}]}}"#),
        deep.clone(),
    ] {
        assert!(parse("/v1/completions", &body).is_err());
    }
}

#[test]
fn without_wants_only_the_envelope_is_read() {
    let body = Bytes::from_static(br#"{"model":"m","messages":"x","cache_salt":"s","max_tokens":5,"stream":true}"#);
    for path in ["/v1/chat/completions", "/v1/messages"] {
        let parsed = all().parse(path, &Headers::default(), &body, Wants::default()).expect("prompts are skipped");
        assert_eq!((parsed.model.as_deref(), parsed.max_output_tokens, parsed.stream), (Some("m"), Some(5), true));
        assert_eq!((parsed.prompts.len(), parsed.cache_salt), (0, None));
    }
}

#[test]
fn a_large_body_is_read_in_one_cheap_pass() {
    let text = r#"some text with \"escapes\" and \u00e9, "#.repeat((8 << 20) / 38);
    let ids = "123456,".repeat(1 << 19);
    let body = format!(r#"{{"messages":[{{"role":"user","content":[{{"text":"{text}"}}]}}],"model":"m"}}"#);
    assert_eq!(parse("/v1/chat/completions", &body).expect("valid").prompts[0].byte_len() as usize, text.len() + 6);
    let body = format!(r#"{{"prompt":[{ids}7],"model":"m"}}"#);
    assert_eq!(parse("/v1/completions", &body).expect("valid").prompts[0].estimated_tokens(), (1 << 19) + 1);
}

#[test]
fn rows_are_consistent() {
    for row in TABLE {
        let dialect = (row.make)();
        assert_eq!(dialect.about().kind, row.about.kind);
        assert_eq!(row.about.sample, format!("- type: {}\n", row.about.kind));
        assert!(dialect.suffixes().iter().all(|suffix| suffix.starts_with('/') && !suffix.ends_with('/')));
    }
}

const PATHS: [&str; 7] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/messages",
    "/inference/v1/generate",
    "/generate",
];

fn content() -> impl Strategy<Value = Json> {
    let text = "[a-z\"\\\\\n\u{e9}\u{1F600}]{0,6}";
    let part = prop_oneof![
        text.prop_map(|text| json!({"type": "text", "text": text})),
        text.prop_map(|text| json!({"type": "image_url", "image_url": {"url": text}})),
        text.prop_map(|text| json!({"type": "tool_result", "content": text, "cache_control": {}})),
        text.prop_map(|text| json!({"source": {"data": text}, "image_url": 5, "type": [text]})),
        Just(json!(null)),
        Just(json!("plain")),
    ];
    prop_oneof![
        3 => text.prop_map(Json::from),
        2 => prop::collection::vec(part, 0..4).prop_map(Json::from),
        1 => Just(Json::Null),
    ]
}

fn message() -> impl Strategy<Value = Json> {
    let role = prop::sample::select(vec!["user", "assistant", "system", "tool", "robot"]);
    (role, content(), prop::option::of(content())).prop_map(|(role, content, calls)| {
        let mut message = json!({"role": role, "content": content});
        if let Some(calls) = calls {
            message["tool_calls"] = calls;
        }
        message
    })
}

fn request() -> impl Strategy<Value = Json> {
    let prompt = prop_oneof![
        content(),
        prop::collection::vec(any::<u32>(), 0..4).prop_map(Json::from),
        prop::collection::vec(prop::collection::vec(any::<u32>(), 0..3), 0..3).prop_map(|lists| json!(lists)),
        any::<i64>().prop_map(Json::from),
    ];
    (prop::collection::vec(message(), 0..4), prompt, "[a-z\"/\u{e9}]{1,5}", any::<bool>()).prop_map(
        |(messages, prompt, model, stream)| {
            json!({
                "messages": messages, "prompt": prompt, "input": prompt, "text": prompt, "token_ids": prompt,
                "input_ids": prompt, "system": prompt, "tools": prompt, "instructions": prompt, "model": model,
                "stream": stream, "max_tokens": 5, "sampling_params": {"max_tokens": 1}, "cache_salt": "s",
            })
        },
    )
}

/// What must hold of whatever was read.
fn check(body: &[u8], parsed: &Parsed) -> Result<(), TestCaseError> {
    let mut before = 0;
    for span in &parsed.model_spans {
        prop_assert!(before <= span.start && span.start < span.end && span.end <= body.len());
        before = span.end;
    }
    prop_assert!(parsed.model.as_deref() != Some(""));
    for prompt in &parsed.prompts {
        for segment in &prompt.segments {
            if let Segment::Body(range) = segment {
                prop_assert!(range.start <= range.end && range.end <= body.len());
                prop_assert!(std::str::from_utf8(&body[range.clone()]).is_ok());
            }
        }
    }
    let literal = serde_json::to_vec("t\"x").expect("text");
    let rewritten = rewrite_model(&Bytes::copy_from_slice(body), &parsed.model_spans, "t\"x");
    let mut expected = Vec::new();
    let mut done = 0;
    for span in &parsed.model_spans {
        expected.extend_from_slice(&body[done..span.start]);
        expected.extend_from_slice(&literal);
        done = span.end;
    }
    expected.extend_from_slice(&body[done..]);
    prop_assert_eq!(rewritten.pieces.concat(), expected);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn any_bytes_are_survived(body in prop::collection::vec(any::<u8>(), 0..60), text in "[{}\\[\\]\":,a-z0-9\\\\ \n]{0,60}") {
        let dialects = all();
        for path in PATHS {
            for body in [&body[..], text.as_bytes()] {
                let body = Bytes::copy_from_slice(body);
                if let Ok(parsed) = dialects.parse(path, &Headers::default(), &body, WANTS) {
                    check(&body, &parsed)?;
                }
            }
        }
    }

    #[test]
    fn mutated_bodies_are_survived_and_only_json_is_accepted(
        request in request(),
        pretty in any::<bool>(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0..3_usize, prop::collection::vec(any::<u8>(), 0..3)), 0..3),
    ) {
        let mut body = if pretty { format!("{request:#}") } else { request.to_string() }.into_bytes();
        for (at, cut, put) in edits {
            let at = at.index(body.len() + 1);
            let end = (at + cut).min(body.len());
            body.splice(at..end, put);
        }
        let body = Bytes::from(body);
        let dialects = all();
        for path in PATHS {
            if let Ok(parsed) = dialects.parse(path, &Headers::default(), &body, WANTS) {
                prop_assert!(serde_json::from_slice::<serde::de::IgnoredAny>(&body).is_ok());
                check(&body, &parsed)?;
            }
        }
    }

    #[test]
    fn a_rewrite_equals_an_edit_of_the_value(request in request(), pretty in any::<bool>(), target in ".{0,8}") {
        let body = if pretty { format!("{request:#}") } else { request.to_string() };
        let parsed = all().parse("/v1/models/chat/completions", &Headers::default(), &Bytes::from(body.clone()), Wants::default()).expect("valid");
        prop_assert_eq!(parsed.model.as_deref(), request["model"].as_str());
        let rewritten = rewrite_model(&Bytes::from(body), &parsed.model_spans, &target);
        let mut expected = request;
        expected["model"] = target.into();
        let said: Json = serde_json::from_slice(&rewritten.pieces.concat()).expect("still JSON");
        prop_assert_eq!(said, expected);
    }

    #[test]
    fn a_grown_chat_starts_with_the_old_one(
        old in prop::collection::vec(message(), 1..5),
        new in prop::collection::vec(message(), 1..3),
        system in "[a-z]{0,5}",
        path in prop::sample::select(vec!["/v1/chat/completions", "/v1/messages", "/v1/responses"]),
    ) {
        let grown: Vec<Json> = old.iter().chain(&new).cloned().collect();
        let body = |messages: &[Json], max: u64| {
            json!({"model": "m", "max_tokens": max, "tools": [{"name": "f"}], "system": system, "instructions": system,
                   "messages": messages, "input": messages}).to_string()
        };
        let (short, long) = (body(&old, 1), body(&grown, 12345));
        let short = stream(&short, &parse(path, &short).expect("valid").prompts[0]);
        let long = stream(&long, &parse(path, &long).expect("valid").prompts[0]);
        prop_assert!(long.len() > short.len());
        prop_assert_eq!(&long[..short.len()], &short[..]);
    }

    #[test]
    fn chats_share_what_their_messages_share(common in prop::collection::vec("[a-z\"\n]{0,9}", 1..4), a in "[a-m]{1,5}", b in "[n-z]{1,5}") {
        let body = |last: &str| {
            let mut messages: Vec<Json> = common.iter().map(|text| json!({"role": "user", "content": text})).collect();
            messages.push(json!({"role": "assistant", "content": format!("same{last}")}));
            json!({"model": "m", "messages": messages}).to_string()
        };
        let [(bytes_a, shared_by_start), (bytes_b, _)] = [body(&a), body(&b)].map(|body| {
            let bytes = stream(&body, &parse("/v1/chat/completions", &body).expect("valid").prompts[0]);
            let end = bytes.len();
            (bytes, end)
        });
        let shared = bytes_a.iter().zip(&bytes_b).take_while(|(x, y)| x == y).count();
        prop_assert_eq!(shared, shared_by_start - a.len(), "all but the texts that differ");
    }
}

#[test]
fn an_empty_prompt_is_still_one_of_the_batch() {
    let parsed = parse("/v1/completions", r#"{"model":"m","prompt":["","a"]}"#).expect("valid");
    assert_eq!(parsed.prompts.len(), 2);
    let expected: SmallVec<[Range<usize>; 1]> = smallvec![9..12];
    assert_eq!(parsed.model_spans, expected);
}

#[test]
fn a_priority_can_be_added_where_the_api_has_one_and_the_body_has_none() {
    let at = |path: &str, body: &str| parse(path, body).expect("valid").priority_at;
    let chat = r#" {"model":"m","messages":[]}"#;
    assert_eq!(at("/v1/chat/completions", chat), Some(2));
    assert_eq!(at("/v1/completions", r#"{"model":"m","prompt":"{"}"#), Some(1));
    assert_eq!(at("/v1/responses", r#"{"model":"m","input":"x"}"#), Some(1));
    assert_eq!(at("/v1/completions", r#"{"model":"m","prompt":"x","priority":3}"#), None, "the client's counts");
    assert_eq!(at("/v1/completions", r#"{"model":"m","prompt":"x","pri\u006frity":3}"#), None);
    assert_eq!(at("/v1/chat/completions/render", chat), None);
    assert_eq!(at("/v1/messages", r#"{"model":"m","messages":[]}"#), None);
}
