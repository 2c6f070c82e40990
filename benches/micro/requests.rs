//! What clients and model servers say, at any size.

use bytes::Bytes;

/// Escapes as chat texts have them: a quotation and the end of a line.
const SENTENCE: &str = r#"The points are set before the train arrives, and \"before\" is what matters here.\n"#;

/// One piece of a streamed answer, as vLLM sends it.
pub const CHUNK: &[u8] = b"data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1795254000,\
    \"model\":\"bench/model\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" word\"},\"finish_reason\":null}]}\n\n";

/// The last piece, with the token counts.
pub const LAST_CHUNK: &[u8] = b"data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"choices\":[],\
    \"usage\":{\"prompt_tokens\":900,\"completion_tokens\":3,\"total_tokens\":903}}\n\ndata: [DONE]\n\n";

/// A chat completion request of exactly `bytes` bytes (a few hundred at least). A quarter of it is a system prompt
/// that all share; what follows differs from `number` to `number`.
pub fn chat(bytes: usize, number: usize) -> Bytes {
    let mut text = String::from(
        r#"{"model":"bench/model","stream":true,"max_tokens":64,"messages":[{"role":"system","content":"You are careful. "#,
    );
    while text.len() + SENTENCE.len() < bytes / 4 {
        text.push_str(SENTENCE);
    }
    text.push_str(&format!(r#""}},{{"role":"user","content":"Request {number:020}. "#));
    let end = r#""}]}"#;
    while text.len() + SENTENCE.len() + end.len() < bytes {
        text.push_str(SENTENCE);
    }
    let rest = bytes.checked_sub(text.len() + end.len()).expect("a body that small is not made");
    text.extend(std::iter::repeat_n('.', rest));
    text.push_str(end);
    text.into()
}
