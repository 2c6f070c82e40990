//! Request bodies: no input makes a dialect panic, only JSON is accepted, every range lies in the
//! body, and a rewritten body is JSON again. The first byte chooses the path.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use pointsman::dialect::{Dialects, TABLE, Wants, rewrite_model};
use pointsman::domain::{Headers, Segment};

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

fuzz_target!(|data: &[u8]| {
    let Some((first, body)) = data.split_first() else { return };
    let path = PATHS[usize::from(*first) % PATHS.len()];
    let body = Bytes::copy_from_slice(body);
    let dialects = Dialects::new(TABLE.iter().map(|row| (row.make)()));
    let lean = dialects.parse(path, &Headers::default(), &body, Wants::default());
    let Ok(parsed) = dialects.parse(path, &Headers::default(), &body, Wants { prompts: true }) else { return };
    let lean = lean.expect("asking for less cannot fail");
    assert_eq!(lean.model, parsed.model);
    assert_eq!(lean.model_spans, parsed.model_spans);
    serde_json::from_slice::<serde::de::IgnoredAny>(&body).expect("only JSON is accepted");
    for segment in parsed.prompts.iter().flat_map(|prompt| &prompt.segments) {
        if let Segment::Body(range) = segment {
            std::str::from_utf8(&body[range.clone()]).expect("ranges end between characters");
        }
    }
    let rewritten = rewrite_model(&body, &parsed.model_spans, "other \"model\"");
    let whole = Bytes::from(rewritten.pieces.concat());
    assert_eq!(whole.len(), rewritten.len);
    let again = dialects.parse(path, &Headers::default(), &whole, Wants::default()).expect("still JSON");
    if !parsed.model_spans.is_empty() {
        assert_eq!(again.model.as_deref(), Some("other \"model\""));
    }
});
