//! What a request asks a simulated engine for: prompts as bytes, four of them a token.
//!
//! The unit is that of [`crate::domain::prompt`]; the text is rendered as a chat template would, with
//! the generation prompt at its end, so that an answer followed by the next turn continues the same
//! bytes and the blocks filled by decoding are found again. Unlike the picker this side reads the
//! unescaped text: an engine has real tokens, and the two differ in real life as well.

use serde_json::Value;
use xxhash_rust::xxh64::xxh64;

/// Pseudo-tokens of an image, a video or a sound: what 640 x 360 pixels come to.
const MEDIA_TOKENS: usize = 225;
/// Most prompts in one request.
const MAX_BATCH: usize = 256;

/// Prompts of a completion or an embedding: text, token ids, or a list of either.
pub(super) fn prompts(value: Option<&Value>) -> Result<Vec<Vec<u8>>, String> {
    match value {
        Some(Value::String(text)) => Ok(vec![text.clone().into_bytes()]),
        Some(Value::Array(items)) if items.first().is_some_and(Value::is_number) => Ok(vec![ids(items)?]),
        Some(Value::Array(items)) if !items.is_empty() => {
            if items.len() > MAX_BATCH {
                return Err(format!("{} prompts in one request, at most {MAX_BATCH} are allowed", items.len()));
            }
            let one = |item: &Value| match item {
                Value::String(text) => Ok(text.clone().into_bytes()),
                Value::Array(items) => ids(items),
                _ => Err("a prompt must be a string or a list of token ids".to_owned()),
            };
            items.iter().map(one).collect()
        }
        _ => Err("a prompt must be a string, a list of token ids, or a list of these that is not empty".to_owned()),
    }
}

/// One prompt of token ids.
pub(super) fn token_ids(value: Option<&Value>) -> Result<Vec<u8>, String> {
    match value {
        Some(Value::Array(items)) => ids(items),
        _ => Err("a list of token ids is needed".to_owned()),
    }
}

fn ids(items: &[Value]) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(items.len() * 4);
    for item in items {
        let id = item.as_u64().and_then(|id| u32::try_from(id).ok());
        bytes.extend_from_slice(&id.ok_or_else(|| format!("{item} is no token id"))?.to_le_bytes());
    }
    Ok(bytes)
}

/// A conversation: tools, a system text of its own (Anthropic, Responses), messages.
pub(super) fn conversation(body: &Value, system: &str, messages: &str) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    if let Some(tools) = body.get("tools").filter(|tools| !tools.is_null()) {
        turn(&mut out, "tools", &Value::String(tools.to_string()));
    }
    if let Some(text) = body.get(system).filter(|text| !text.is_null()) {
        turn(&mut out, "system", text);
    }
    match body.get(messages) {
        Some(Value::String(text)) => turn(&mut out, "user", &Value::String(text.clone())),
        Some(Value::Array(items)) if !items.is_empty() => {
            for item in items {
                if !item.is_object() {
                    return Err(format!("every item of `{messages}` must be an object"));
                }
                let role = item.get("role").and_then(Value::as_str).unwrap_or("tool");
                turn(&mut out, role, item.get("content").or_else(|| item.get("output")).unwrap_or(&Value::Null));
            }
        }
        _ => return Err(format!("`{messages}` is missing or empty")),
    }
    out.extend_from_slice(b"<|assistant|>\n");
    Ok(out)
}

fn turn(out: &mut Vec<u8>, role: &str, content: &Value) {
    out.extend_from_slice(b"<|");
    out.extend_from_slice(role.as_bytes());
    out.extend_from_slice(b"|>\n");
    text(out, content);
    out.push(b'\n');
}

fn text(out: &mut Vec<u8>, content: &Value) {
    match content {
        Value::String(text) => out.extend_from_slice(text.as_bytes()),
        Value::Array(parts) => {
            for part in parts {
                match part.get("text").and_then(Value::as_str) {
                    Some(text) => out.extend_from_slice(text.as_bytes()),
                    None => {
                        let digest = (xxh64(part.to_string().as_bytes(), 0) as u32).to_le_bytes();
                        out.extend_from_slice(&digest.repeat(MEDIA_TOKENS));
                    }
                }
            }
        }
        Value::Null => {}
        other => out.extend_from_slice(other.to_string().as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_next_turn_continues_the_bytes_of_the_last() {
        let first = json!({"messages": [{"role": "user", "content": "hi"}]});
        let mut so_far = conversation(&first, "system", "messages").unwrap();
        so_far.extend_from_slice(b"the sun ");
        let second = json!({"messages": [
            {"role": "user", "content": [{"type": "text", "text": "hi"}]},
            {"role": "assistant", "content": "the sun "},
            {"role": "user", "content": "and"}]});
        assert!(conversation(&second, "system", "messages").unwrap().starts_with(&so_far));
    }

    #[test]
    fn prompts_come_in_four_shapes() {
        assert_eq!(prompts(Some(&json!("ab"))).unwrap(), vec![b"ab".to_vec()]);
        assert_eq!(prompts(Some(&json!([1, 258]))).unwrap(), vec![vec![1, 0, 0, 0, 2, 1, 0, 0]]);
        assert_eq!(prompts(Some(&json!(["a", "b"]))).unwrap().len(), 2);
        assert_eq!(prompts(Some(&json!([[1], [2]]))).unwrap().len(), 2);
        for bad in [json!([]), json!({}), json!([-1]), json!([1, "a"]), json!([null]), json!([4294967296u64])] {
            assert!(prompts(Some(&bad)).is_err(), "{bad}");
        }
        assert!(prompts(None).is_err());
        assert!(prompts(Some(&Value::Array(vec![json!("a"); MAX_BATCH + 1]))).is_err());
    }

    #[test]
    fn media_count_as_a_run_of_tokens() {
        let image =
            json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}]});
        let with = conversation(&image, "system", "messages").unwrap();
        let none = json!({"messages": [{"role": "user", "content": ""}]});
        assert_eq!(with.len(), conversation(&none, "system", "messages").unwrap().len() + MEDIA_TOKENS * 4);
        for bad in [json!({}), json!({"messages": []}), json!({"messages": [1]})] {
            assert!(conversation(&bad, "system", "messages").is_err());
        }
    }
}
