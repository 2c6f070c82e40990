use super::super::tests::{parse, stream};
use super::*;

fn chat(messages: &str) -> String {
    format!(r#"{{"model":"m","messages":{messages}}}"#)
}

fn text_of(body: &str) -> String {
    let parsed = parse("/v1/chat/completions", body).expect(body);
    assert_eq!(parsed.prompts.len(), 1, "{body}");
    String::from_utf8(stream(body, &parsed.prompts[0])).expect("text only")
}

#[test]
fn a_message_is_role_content_and_the_rest_as_written() {
    let body = r#"{"messages":[
        {"role":"system","content":"Be \"brief\"."},
        {"content":"late role", "role" : "user"},
        {"role":"assistant","content":null,"refusal":null,"tool_calls" : [{"id":"c1"}],"name":"x"},
        {"role":"tool","tool_call_id":"c1","content":"42"},
        {"role":"robot","content":"?"},
        {"content":"anonymous"},
        {}
    ],"tools":[{"type":"function"}],"model":"m"}"#;
    let expected = "\x04[{\"type\":\"function\"}]\
        \x01system\x02Be \\\"brief\\\".\
        \x01user\x02late role\
        \x01assistant\x02\"tool_calls\" : [{\"id\":\"c1\"}],\"name\":\"x\"\
        \x01tool\x02\"tool_call_id\":\"c1\"42\
        \"robot\"?\
        \x01\x02anonymous\
        \x01\x02";
    assert_eq!(text_of(body), expected);
}

#[test]
fn one_text_part_equals_the_text() {
    let plain = text_of(&chat(r#"[{"role":"user","content":"hello"}]"#));
    for parts in [
        r#"[{"type":"text","text":"hello"}]"#,
        r#"[{"text":"hello","type":"input_text"}]"#,
        r#"["hello"]"#,
        r#"[{"type":"text","text":"hello","cache_control":{"type":"ephemeral"}}]"#,
        r#"[{"type":"text","text":"dropped","text":"hello"}]"#,
    ] {
        assert_eq!(text_of(&chat(&format!(r#"[{{"role":"user","content":{parts}}}]"#))), plain, "{parts}");
    }
    let twice = text_of(&chat(r#"[{"role":"system","role":"user","content":["a","b"],"content":"hello"}]"#));
    assert_eq!(twice, plain, "the last duplicate wins");
}

#[test]
fn different_structures_differ() {
    let bodies = [
        r#"[{"role":"user","content":"ab"}]"#,
        r#"[{"role":"user","content":"a"},{"role":"user","content":"b"}]"#,
        r#"[{"role":"user","content":["a","b"]}]"#,
        r#"[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]"#,
        r#"[{"role":"user","content":"a\u0003b"}]"#,
        r#"[{"role":"user","content":"a","name":"b"}]"#,
        r#"[{"role":"user","content":{"a":"b"}}]"#,
        r#"[{"role":"user","content":"","name":"a"}]"#,
        r#"[{"role":"user"}]"#,
    ];
    let streams: std::collections::BTreeSet<String> = bodies.iter().map(|body| text_of(&chat(body))).collect();
    assert_eq!(streams.len(), bodies.len());
}

#[test]
fn media_are_digests_with_a_length() {
    let body = chat(
        r#"[{"role":"user","content":[
            {"type":"text","text":"look"},
            {"type":"image_url","image_url":{"url":"https://e.com/a.png","detail":"high"}},
            {"type":"input_image","image_url":"https://e.com/a.png"},
            {"type":"video_url","video_url":{"url":"https://e.com/v.mp4"}},
            {"type":"input_audio","input_audio":{"data":"AAAAAAAAAAAAAAAA","format":"wav"}},
            {"type":"image","source":{"type":"base64","media_type":"image/png","data":"AAAA"}},
            {"type":"image","source":{"type":"url","url":"https://e.com/a.png"}},
            {"type":"document","source":{"type":"base64","media_type":"application/pdf","data":"AAAA"}},
            {"type":"image_url","image_url":null}
        ]}]"#,
    );
    let parsed = parse("/v1/chat/completions", &body).expect("valid");
    let image = media::digest("https://e.com/a.png");
    let found: Vec<(u32, u32)> = parsed.prompts[0]
        .segments
        .iter()
        .filter_map(|s| if let Segment::Media { digest, tokens } = s { Some((*digest, *tokens)) } else { None })
        .collect();
    let expected = [
        (image, 225),
        (image, 225),
        (media::digest("https://e.com/v.mp4"), 4500),
        (media::digest("AAAAAAAAAAAAAAAA"), 3),
        (media::digest("AAAA"), 225),
        (image, 225),
    ];
    assert_eq!(found, expected);
    let raw = parsed.prompts[0].segments.iter().any(
        |s| matches!(s, Segment::Body(range) if body[range.clone()].starts_with(r#""type":"document","source":{"#)),
    );
    assert!(raw, "a document counts as written");
}

#[test]
fn media_tokens_have_a_budget() {
    let header = [b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR".as_slice(), &[0xff; 8], &[0; 8]].concat();
    let url = format!("data:image/png;base64,{}", base64::Engine::encode(&base64::prelude::BASE64_STANDARD, header));
    let part = format!(r#"{{"image_url":"{url}"}}"#);
    let body = chat(&format!(r#"[{{"content":[{}]}}]"#, vec![part; 100].join(",")));
    let parsed = parse("/v1/chat/completions", &body).expect("valid");
    let tokens = parsed.prompts[0].estimated_tokens();
    assert!((u64::from(MAX_MEDIA_TOKENS)..u64::from(MAX_MEDIA_TOKENS) + 200).contains(&tokens), "{tokens}");
}

#[test]
fn segments_are_bounded_and_the_length_is_kept() {
    let count = 2 * MAX_SEGMENTS;
    for (element, own) in [(r#"{"role":"user","content":"x"}"#, 1), (r#"{"content":["x","y","z"]}"#, 1)] {
        let body = chat(&format!("[{}]", vec![element; count].join(",")));
        let parsed = parse("/v1/chat/completions", &body).expect("valid");
        let segments = &parsed.prompts[0].segments;
        // A message may end a little above the bound, never more than its own few segments.
        assert!((MAX_SEGMENTS..MAX_SEGMENTS + 1 + own).contains(&segments.len()), "{}", segments.len());
        let Some(Segment::Body(rest)) = segments.last() else { panic!("the rest") };
        assert!(body[rest.end..].starts_with("]}") && body[rest.clone()].ends_with('}'), "up to the end of the list");
        assert!(rest.len() > body.len() / 3);
    }
    let parts = vec![r#"{"text":"x"}"#; count].join(",");
    let body = chat(&format!(r#"[{{"role":"user","content":[{parts}],"name":"n"}},{{"role":"user","content":"y"}}]"#));
    let parsed = parse("/v1/chat/completions", &body).expect("valid");
    assert!(parsed.prompts[0].segments.len() <= MAX_SEGMENTS + 2);

    let body = format!(r#"{{"model":"m","prompt":[{}]}}"#, vec!["\"ab\""; 3 * MAX_PROMPTS].join(","));
    let parsed = parse("/v1/completions", &body).expect("valid");
    assert_eq!(parsed.prompts.len(), MAX_PROMPTS + 1);
    assert_eq!(parsed.prompts[MAX_PROMPTS].byte_len(), 2 * MAX_PROMPTS as u64 * 5 - 1);
}

#[test]
fn the_billing_header_is_no_prompt() {
    let body = |first: &str| {
        format!(
            r#"{{"model":"m","system":[{first}{{"type":"text","text":"Be brief.","cache_control":{{}}}}],"messages":[{{"role":"user","content":"x-anthropic-billing-header: kept"}}]}}"#
        )
    };
    let of = |body: &str| stream(body, &parse("/v1/messages", body).expect("valid").prompts[0]);
    let without = of(&body(""));
    assert_eq!(without, b"\x01system\x02Be brief.\x01user\x02x-anthropic-billing-header: kept");
    assert_eq!(of(&body(r#"{"type":"text","text":"x-anthropic-billing-header: cc_version=1;"},"#)), without);
    assert_ne!(of(&body(r#"{"type":"text","text":"other"},"#)), without);
    let text = r#"{"model":"m","messages":[{"role":"user","content":"x-anthropic-billing-header: kept"}],"system":"Be brief."}"#;
    assert_eq!(of(text), without, "text equals one block, wherever it stands");
}
