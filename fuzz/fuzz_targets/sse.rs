//! Answers. However the bytes are cut into chunks,
//!
//! * the token counts are the same, and for event streams equal to those of a plain splitter of events whose
//!   data are read as JSON answers;
//! * a restored model name gives the same bytes, none are lost, and nothing is held back at the end.
//!
//! The first byte chooses the format and whether it is an event stream, the second the length of the chunks.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use pointsman::dialect::{AnswerFormat, ModelRestorer, UsageReader};
use pointsman::domain::Usage;

const FORMATS: [AnswerFormat; 3] = [AnswerFormat::OpenAi, AnswerFormat::Anthropic, AnswerFormat::Engine];
const TARGET: &str = "m2";
/// Bound of an event, which the plain splitter does not have.
const MAX_EVENT: usize = 1 << 20;
/// Longest answer that is also read byte by byte, which is slow.
const SINGLE_BYTES: usize = 256;
const ORIGINAL: &str = "the \"first\"";

fuzz_target!(|data: &[u8]| {
    let [kind, length, body @ ..] = data else { return };
    let format = FORMATS[usize::from(kind / 2) % FORMATS.len()];
    let events = kind % 2 == 0;
    let body = Bytes::copy_from_slice(body);
    let length = usize::from(*length) + 1;
    // Whole, equal chunks, lengths that the data itself tells, and single bytes where these are few.
    let told = body.iter().map(|byte| usize::from(*byte) + 1).collect();
    let single = if body.len() <= SINGLE_BYTES { 1 } else { 7 };
    let cuts = [vec![body.len().max(1)], vec![length], told, vec![single]];

    let counts = |cut: &[usize]| {
        let mut reader = UsageReader::new(format, events.then_some("text/event-stream; charset=utf-8"), None);
        chunks(&body, cut, |chunk, _| reader.push(&chunk));
        reader.finish()
    };
    let restored = |cut: &[usize]| {
        let mut restorer = ModelRestorer::new(TARGET, ORIGINAL);
        let mut out = Vec::new();
        chunks(&body, cut, |chunk, end| {
            for part in restorer.push(&chunk, end) {
                assert!(!part.is_empty(), "an empty part could be read as the end");
                out.extend_from_slice(&part);
            }
        });
        out
    };
    let (whole, text) = (counts(&cuts[0]), restored(&cuts[0]));
    for cut in &cuts[1..] {
        assert_eq!(counts(cut), whole);
        assert_eq!(restored(cut), text);
    }
    let plain = body.to_vec();
    let quoted = serde_json::Value::from(ORIGINAL).to_string();
    let patterns = [format!("\"model\":\"{TARGET}\""), format!("\"model\": \"{TARGET}\"")];
    assert_eq!(text, replaced(&plain, &patterns, &format!("\"model\":{quoted}")));
    // Anthropic's counts are put together from several events, so they have no sum of their own.
    if events && format != AnswerFormat::Anthropic && plain.len() < MAX_EVENT {
        assert_eq!(whole, plainly_read(format, &plain));
    }
});

/// Gives `body` in chunks of the lengths `cut`, over and over; the last one, perhaps empty, with `true`.
fn chunks(body: &Bytes, cut: &[usize], mut take: impl FnMut(Bytes, bool)) {
    let mut rest = body.clone();
    for length in cut.iter().cycle() {
        let chunk = rest.split_to((*length).min(rest.len()));
        take(chunk, rest.is_empty());
        if rest.is_empty() {
            return;
        }
    }
    take(Bytes::new(), true);
}

fn replaced(text: &[u8], patterns: &[String], by: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut at = 0;
    while at < text.len() {
        match patterns.iter().find(|pattern| text[at..].starts_with(pattern.as_bytes())) {
            Some(pattern) => {
                out.extend_from_slice(by.as_bytes());
                at += pattern.len();
            }
            None => {
                out.push(text[at]);
                at += 1;
            }
        }
    }
    out
}

/// The counts of an event stream, read the long way.
fn plainly_read(format: AnswerFormat, text: &[u8]) -> Usage {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let mut lines = vec![Vec::new()];
    let mut bytes = text.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\r' | b'\n' => {
                if byte == b'\r' {
                    bytes.next_if_eq(&b'\n');
                }
                lines.push(Vec::new());
            }
            byte => lines.last_mut().expect("never empty").push(byte),
        }
    }
    lines.push(Vec::new());
    let mut total = Usage::default();
    let mut event: Option<Vec<u8>> = None;
    for line in lines {
        if line.is_empty() {
            if let Some(data) = event.take() {
                let mut reader = UsageReader::new(format, Some("application/json"), None);
                reader.push(&data.into());
                total.merge(reader.finish());
            }
        } else if line == b"data" || line.starts_with(b"data:") {
            let data = line.strip_prefix(b"data: ").or(line.strip_prefix(b"data:")).unwrap_or_default();
            match &mut event {
                Some(event) => {
                    event.push(b'\n');
                    event.extend_from_slice(data);
                }
                None => event = Some(data.to_vec()),
            }
        }
    }
    total
}
