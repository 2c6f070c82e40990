//! Replacing the model name in a body, and adding a priority, without touching any other byte.

use std::ops::Range;

use bytes::Bytes;
use smallvec::SmallVec;

/// A body in pieces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rewritten {
    /// The new body in order; no piece is empty. Slices of the old body around copies of one literal.
    pub pieces: SmallVec<[Bytes; 3]>,
    /// Their total length in bytes, the new `content-length`.
    pub len: usize,
}

/// Puts `target` as a JSON text in place of each of `spans` (from `Parsed::model_spans`: ascending
/// and disjoint). Nothing of the body is copied. Spans that do not fit the body are left alone; no
/// spans give the body as it is.
pub fn rewrite_model(body: &Bytes, spans: &[Range<usize>], target: &str) -> Rewritten {
    let literal = Bytes::from(serde_json::Value::from(target).to_string());
    splice(body, spans.iter().map(|span| (span.clone(), literal.clone())))
}

/// Adds `"priority":priority,` at `at` (`Parsed::priority_at`) and, if `model` is given, puts its name in
/// place of `spans` as [`rewrite_model`] does.
pub fn add_priority(body: &Bytes, at: usize, priority: i64, spans: &[Range<usize>], model: Option<&str>) -> Rewritten {
    let member = Bytes::from(format!("\"priority\":{priority},"));
    let literal = model.map(|model| Bytes::from(serde_json::Value::from(model).to_string()));
    let names = spans.iter().filter_map(|span| Some((span.clone(), literal.clone()?)));
    splice(body, std::iter::once((at..at, member)).chain(names))
}

/// Puts each literal in place of its span; spans that do not fit, or that go back, are left alone.
fn splice(body: &Bytes, changes: impl Iterator<Item = (Range<usize>, Bytes)>) -> Rewritten {
    let mut rewritten = Rewritten::default();
    let mut push = |piece: Bytes| {
        if !piece.is_empty() {
            rewritten.len += piece.len();
            rewritten.pieces.push(piece);
        }
    };
    let mut done = 0;
    for (span, literal) in changes {
        if span.start < done || span.end < span.start || span.end > body.len() {
            continue;
        }
        push(body.slice(done..span.start));
        push(literal);
        done = span.end;
    }
    push(body.slice(done..));
    rewritten
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(rewritten: &Rewritten) -> Vec<u8> {
        let bytes = rewritten.pieces.concat();
        assert_eq!(bytes.len(), rewritten.len);
        assert!(rewritten.pieces.iter().all(|piece| !piece.is_empty()));
        bytes
    }

    #[test]
    fn replaces_only_the_literal_and_shares_the_rest() {
        let body = Bytes::from_static(br#"{"a":1.50, "model" : "old" ,"b":[1e2]}"#);
        let rewritten = rewrite_model(&body, std::slice::from_ref(&(21..26)), "a \"new\"\n\u{1F600}");
        assert_eq!(
            joined(&rewritten),
            "{\"a\":1.50, \"model\" : \"a \\\"new\\\"\\n\u{1F600}\" ,\"b\":[1e2]}".as_bytes()
        );
        assert_eq!(rewritten.pieces.len(), 3);
        assert_eq!(rewritten.pieces[0].as_ptr(), body.as_ptr(), "the head is a slice of the body");
        assert_eq!(rewritten.pieces[2].as_ptr(), body[26..].as_ptr(), "the tail is a slice of the body");
    }

    #[test]
    fn ignores_spans_that_do_not_fit() {
        let body = Bytes::from_static(b"0123456789");
        assert_eq!(joined(&rewrite_model(&body, &[], "m")), b"0123456789");
        #[expect(clippy::reversed_empty_ranges, reason = "a hostile span")]
        let spans = [2..3, 1..4, 5..4, 8..11, 9..10];
        assert_eq!(joined(&rewrite_model(&body, &spans, "m")), b"01\"m\"345678\"m\"");
        assert_eq!(joined(&rewrite_model(&Bytes::new(), &spans, "m")), b"");
    }

    #[test]
    fn adds_a_priority_with_and_without_a_new_name() {
        let body = Bytes::from_static(br#" { "model":"m","prompt":"x"}"#);
        let spans = std::slice::from_ref(&(11..14));
        assert_eq!(joined(&add_priority(&body, 2, -5, spans, None)), br#" {"priority":-5, "model":"m","prompt":"x"}"#);
        let both = joined(&add_priority(&body, 2, 1_700_000_000_123, spans, Some("other")));
        assert_eq!(both, br#" {"priority":1700000000123, "model":"other","prompt":"x"}"#);
        assert_eq!(joined(&add_priority(&body, 99, 1, &[], None)), body);
    }
}
