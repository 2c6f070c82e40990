//! Reading a body or an answer must not allocate per key, per text or per event.

use bytes::Bytes;
use pointsman::dialect::{AnswerFormat, Dialects, UsageReader, Wants};
use pointsman::domain::Headers;

const SSE: Option<&str> = Some("text/event-stream");

#[test]
fn events_without_counts_allocate_nothing() {
    let events = [
        "data: {\"choices\":[{\"delta\":{\"content\":\" word\"}}]}\n\n",
        "data: {\"choices\":[],\"usage\":null}\n\n",
        "event: content_block_delta\r\ndata: {\"delta\":{\"text\":\"x\"}}\r\n\r\n",
    ];
    for format in [AnswerFormat::OpenAi, AnswerFormat::Anthropic, AnswerFormat::Engine] {
        let chunks = events.map(|event| Bytes::from_static(event.as_bytes()));
        let mut reader = UsageReader::new(format, SSE, None);
        let warm = UsageReader::new(format, SSE, None);
        chunks.iter().fold(warm, |mut reader, chunk| {
            reader.push(chunk);
            reader
        });
        // From the first event on, which is the one that a client waits for.
        let used = allocation_counter::measure(|| {
            for chunk in chunks.iter().cycle().take(300) {
                reader.push(chunk);
            }
        });
        assert_eq!(used.count_total, 0, "{format:?}: {} bytes", used.bytes_total);
        reader.push(&Bytes::from_static(b"data: {\"usage\":{\"prompt_tokens\":7}}\n\n"));
        assert_eq!(reader.finish().prompt_tokens, Some(7));
    }
}

#[test]
fn a_chat_allocates_for_its_model_and_its_segments() {
    let dialects = Dialects::default();
    let headers = Headers::default();
    let message = r#"{"role":"user","content":"a \"text\"\n","name":"x"}"#;
    for (messages, most) in [(1, 2), (10, 6), (1000, 20)] {
        let body = format!(r#"{{"model":"m","messages":[{}],"stream":true}}"#, vec![message; messages].join(","));
        let body = Bytes::from(body);
        let read = || dialects.parse("/v1/chat/completions", &headers, &body, Wants { prompts: true }).expect("valid");
        read();
        let used = allocation_counter::measure(|| drop(read()));
        assert!(used.count_total <= most, "{messages} messages: {}", used.count_total);
    }
}
