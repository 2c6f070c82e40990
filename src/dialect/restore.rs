//! Puts the client's model name back into an answer whose request was rewritten (protocol 2.7, R-09).
//!
//! Looks for `"model":"<target>"`, also with one space after the colon, and replaces the target by the
//! name that the client sent. Inside a JSON string the quotes would be escaped, so generated text never
//! matches. A name that is split between chunks is found: the end of a chunk that could be the start
//! of a match is held back until the next one. At most one pattern's length is held, and only bytes
//! that are held or replaced are copied.

use std::sync::LazyLock;

use bytes::{Bytes, BytesMut};
use memchr::memmem::Finder;
use smallvec::SmallVec;

/// How every pattern starts.
static KEY: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("\"model\":"));

/// Rewrites one answer, chunk by chunk.
pub struct ModelRestorer {
    patterns: [Vec<u8>; 2],
    replacement: Bytes,
    held: Bytes,
}

impl ModelRestorer {
    /// Replaces `target` (what the server was asked for) by `original`.
    pub fn new(target: &str, original: &str) -> Self {
        let quoted = serde_json::Value::from(target).to_string();
        let replacement = Bytes::from(format!("\"model\":{}", serde_json::Value::from(original)));
        Self {
            patterns: [format!("\"model\":{quoted}").into_bytes(), format!("\"model\": {quoted}").into_bytes()],
            replacement,
            held: Bytes::new(),
        }
    }

    /// Takes the next chunk and returns what can be passed on, in order. With `end` nothing is held back.
    pub fn push(&mut self, chunk: &Bytes, end: bool) -> SmallVec<[Bytes; 3]> {
        let mut out = SmallVec::new();
        let mut rest = if self.held.is_empty() {
            chunk.clone()
        } else {
            let mut joined = BytesMut::with_capacity(self.held.len() + chunk.len());
            joined.extend_from_slice(&std::mem::take(&mut self.held));
            joined.extend_from_slice(chunk);
            joined.freeze()
        };
        let mut from = 0;
        while let Some(found) = KEY.find(&rest[from..]) {
            let at = from + found;
            match self.patterns.iter().find(|p| rest[at..].starts_with(p)) {
                Some(pattern) => {
                    let length = pattern.len();
                    push_part(&mut out, rest.split_to(at));
                    rest = rest.split_off(length);
                    push_part(&mut out, self.replacement.clone());
                    from = 0;
                }
                None => from = at + 1,
            }
        }
        if !end {
            let keep = self.undecided(&rest);
            self.held = rest.split_off(rest.len() - keep);
        }
        push_part(&mut out, rest);
        out
    }

    /// Length of the longest end of `bytes` that a pattern could start with.
    fn undecided(&self, bytes: &[u8]) -> usize {
        let longest = self.patterns.iter().map(Vec::len).max().unwrap_or(1) - 1;
        let from = bytes.len().saturating_sub(longest);
        (from..bytes.len())
            .find(|&i| bytes[i] == b'"' && self.patterns.iter().any(|p| p.starts_with(&bytes[i..])))
            .map_or(0, |i| bytes.len() - i)
    }
}

fn push_part(out: &mut SmallVec<[Bytes; 3]>, part: Bytes) {
    if !part.is_empty() {
        out.push(part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn restore(chunks: &[&[u8]], target: &str, original: &str) -> Vec<u8> {
        let mut restorer = ModelRestorer::new(target, original);
        let mut out = Vec::new();
        for (i, chunk) in chunks.iter().enumerate() {
            for part in restorer.push(&Bytes::copy_from_slice(chunk), i + 1 == chunks.len()) {
                out.extend_from_slice(&part);
            }
        }
        out
    }

    #[test]
    fn both_spellings_are_replaced_and_nothing_else() {
        let text = br#"{"model":"m2","x":"\"model\":\"m2\"","model": "m2"} {"model":"m22"}"#;
        let restored = restore(&[text], "m2", "m\"1");
        assert_eq!(
            String::from_utf8(restored).unwrap(),
            r#"{"model":"m\"1","x":"\"model\":\"m2\"","model":"m\"1"} {"model":"m22"}"#
        );
    }

    #[test]
    fn an_answer_without_the_name_is_passed_on_without_a_copy() {
        let chunk = Bytes::from_static(b"data: {\"choices\":[]}\n\n");
        let out = ModelRestorer::new("m2", "m1").push(&chunk, false);
        assert_eq!(out.len(), 1);
        assert_eq!(out[0].as_ptr(), chunk.as_ptr());
    }

    proptest! {
        #[test]
        fn the_split_into_chunks_does_not_matter(
            pieces in proptest::collection::vec(
                prop_oneof![
                    Just("\"model\":\"target\""), Just("\"model\": \"target\""), Just("\"model\":\"tar"),
                    Just("\"mod"), Just("\""), Just("x"), Just("\"model\":"), Just("\n\n")
                ], 0..20),
            cuts in proptest::collection::vec(1usize..12, 0..60),
        ) {
            let text = pieces.concat();
            let oracle = text
                .replace("\"model\": \"target\"", "\"model\":\"original\"")
                .replace("\"model\":\"target\"", "\"model\":\"original\"");
            let mut chunks = Vec::new();
            let mut rest = text.as_bytes();
            for cut in cuts {
                let (head, tail) = rest.split_at(cut.min(rest.len()));
                chunks.push(head);
                rest = tail;
            }
            chunks.push(rest);
            prop_assert_eq!(String::from_utf8(restore(&chunks, "target", "original")).unwrap(), oracle);
        }
    }
}
