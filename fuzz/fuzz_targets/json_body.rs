//! Request bodies. Whatever the bytes are:
//!
//! * what serde_json does not read a dialect does not accept, and what it does read is never called broken;
//! * without prompts a dialect finds the same model as with them;
//! * every reported span is a JSON value in the body, ascending and disjoint, and the last one is the model;
//! * every prompt range lies in the body, ends between characters and shares no byte with another;
//! * a rewrite changes the model and nothing else (compared with serde_json's own tree).
//!
//! The first byte chooses the path.
#![no_main]

use std::ops::Range;
use std::sync::LazyLock;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use pointsman::dialect::{Dialects, Parsed, TABLE, Wants, rewrite_model};
use pointsman::domain::{Headers, Rejection, Segment};
use serde_json::Value;

const PATHS: [&str; 8] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/images/generations",
    "/v1/messages",
    "/inference/v1/generate",
    "/generate",
];
/// Quotes, an escape and a character of four bytes.
const TARGET: &str = "other \"model\"\n\u{1F600}";
/// Bounds of the dialects: media tokens of a prompt (each part beyond it is one more), prompts, segments.
const MEDIA_TOKENS: u64 = 1 << 20;
const PROMPTS: usize = 4096;
const SEGMENTS: usize = 16_384;

static DIALECTS: LazyLock<Dialects> = LazyLock::new(|| Dialects::new(TABLE.iter().map(|row| (row.make)())));

fuzz_target!(|data: &[u8]| {
    let Some((first, body)) = data.split_first() else { return };
    let path = PATHS[usize::from(*first) % PATHS.len()];
    let body = Bytes::copy_from_slice(body);
    let headers = Headers::default();
    let lean = DIALECTS.parse(path, &headers, &body, Wants::default());
    let parsed = DIALECTS.parse(path, &headers, &body, Wants { prompts: true });
    check_syntax(&lean, &body);
    check_syntax(&parsed, &body);
    let Ok(parsed) = parsed else { return };
    let lean = lean.expect("asking for less cannot fail");
    let without = |parsed: &Parsed| Parsed { prompts: Default::default(), cache_salt: None, ..parsed.clone() };
    assert_eq!(without(&lean), without(&parsed));
    check_spans(&parsed, &body);
    check_prompts(&parsed, &body);

    let rewritten = rewrite_model(&body, &parsed.model_spans, TARGET);
    let whole = Bytes::from(rewritten.pieces.concat());
    assert_eq!(whole.len(), rewritten.len);
    let again = DIALECTS.parse(path, &headers, &whole, Wants { prompts: true }).expect("still acceptable");
    assert_eq!(again.model_spans.len(), parsed.model_spans.len());
    if parsed.model_spans.is_empty() {
        assert_eq!(whole, body);
    } else {
        assert_eq!(again.model.as_deref(), Some(TARGET));
    }
    assert_eq!(content(&again, &whole), content(&parsed, &body), "the rewrite changed a prompt");

    // serde_json's tree lets the last duplicate win as well; it refuses lone surrogates and deep nesting.
    let Ok(Value::Object(mut tree)) = serde_json::from_slice::<Value>(&body) else { return };
    let model = tree.get("model").and_then(Value::as_str).filter(|model| !model.is_empty());
    assert_eq!(parsed.model.as_deref(), model);
    assert_eq!(parsed.stream, tree.get("stream") == Some(&Value::Bool(true)));
    assert_eq!(parsed.model_spans.is_empty(), !tree.contains_key("model"));
    if let Some(model) = tree.get_mut("model") {
        *model = TARGET.into();
    }
    assert_eq!(serde_json::from_slice::<Value>(&whole).expect("still JSON"), Value::Object(tree));
});

/// The dialects' own scanner and serde_json agree on what is JSON.
fn check_syntax(said: &Result<Parsed, Rejection>, body: &[u8]) {
    let text = std::str::from_utf8(body);
    let is_json = text.is_ok_and(|text| serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok());
    match said {
        Ok(_) => assert!(is_json, "only JSON is accepted"),
        // JSON of another shape than a dialect wants.
        Err(Rejection::BadRequest(text)) if is_json => {
            assert!(!["invalid JSON", "expected "].iter().any(|start| text.starts_with(start)), "{text}");
        }
        Err(Rejection::BadRequest(_)) => {}
        Err(other) => panic!("not a bad request: {other:?}"),
    }
}

fn check_spans(parsed: &Parsed, body: &[u8]) {
    let mut done = 0;
    for span in &parsed.model_spans {
        assert!(done <= span.start && span.start < span.end && span.end <= body.len(), "{span:?} in {}", body.len());
        serde_json::from_slice::<serde::de::IgnoredAny>(&body[span.clone()]).expect("a span is one JSON value");
        done = span.end;
    }
    let last = parsed.model_spans.last().map(|span| serde_json::from_slice::<Option<String>>(&body[span.clone()]));
    let last = last.transpose().expect("the model that counts is text or null").flatten();
    assert_eq!(parsed.model.as_deref(), last.as_deref().filter(|model| !model.is_empty()));
}

fn check_prompts(parsed: &Parsed, body: &[u8]) {
    assert!(parsed.prompts.len() <= PROMPTS + 1);
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for prompt in &parsed.prompts {
        // Two lists of segments, each with its rest, the markers and the tools.
        assert!(prompt.segments.len() <= 2 * SEGMENTS + 8);
        let mut media = 0;
        for segment in &prompt.segments {
            match segment {
                Segment::Body(range) => {
                    std::str::from_utf8(&body[range.clone()]).expect("ranges end between characters");
                    ranges.push(range.clone());
                }
                Segment::Media { tokens, .. } => media += u64::from(*tokens),
                Segment::Tokens(ids) => assert!(ids.len() <= body.len() / 2 + 1, "more ids than fit the body"),
                Segment::Fixed(_) => {}
            }
        }
        assert!(media <= MEDIA_TOKENS + prompt.segments.len() as u64);
        assert!(prompt.estimated_tokens() <= prompt.byte_len());
    }
    ranges.retain(|range| !range.is_empty());
    ranges.sort_by_key(|range| range.start);
    for pair in ranges.windows(2) {
        assert!(pair[0].end <= pair[1].start, "{:?} and {:?} overlap", pair[0], pair[1]);
    }
}

/// The segments with their bytes in place of the ranges.
fn content(parsed: &Parsed, body: &[u8]) -> Vec<Vec<(Option<Vec<u8>>, Option<Segment>)>> {
    let segment = |segment: &Segment| match segment {
        Segment::Body(range) => (Some(body[range.clone()].to_vec()), None),
        other => (None, Some(other.clone())),
    };
    parsed.prompts.iter().map(|prompt| prompt.segments.iter().map(segment).collect()).collect()
}
