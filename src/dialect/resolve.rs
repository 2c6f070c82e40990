//! From a path to its dialect.

use std::sync::Arc;

use bytes::Bytes;

use super::{Dialect, Parsed, TABLE, Wants};
use crate::domain::{Headers, Rejection};

/// The path of data planes that send no pseudo-headers (protocol 3.4).
const DEFAULT_PATH: &str = "/v1/completions";
/// The type of the dialect that takes what no other does.
const FALLBACK: &str = "passthrough-parser";
/// Dialects that are there when the configuration names none (protocol 3.4).
const DEFAULTS: [&str; 4] = ["openai-parser", "anthropic-parser", "vllmhttp-parser", FALLBACK];
/// Longest part of a path that is quoted in a refusal, in bytes.
const QUOTED_PATH: usize = 200;

/// The dialects of one configuration.
#[derive(Clone)]
pub struct Dialects {
    /// Suffix and dialect, longest suffix first; equal ones in the order of the configuration.
    suffixes: Vec<(&'static str, Arc<dyn Dialect>)>,
    fallback: Option<Arc<dyn Dialect>>,
}

impl Default for Dialects {
    /// openai, anthropic, vllmhttp and passthrough.
    fn default() -> Self {
        Self::new(TABLE.iter().filter(|row| DEFAULTS.contains(&row.about.kind)).map(|row| (row.make)()))
    }
}

impl Dialects {
    /// The given dialects. Without passthrough among them unknown paths are refused.
    pub fn new(dialects: impl IntoIterator<Item = Arc<dyn Dialect>>) -> Self {
        let mut suffixes = Vec::new();
        let mut fallback = None;
        for dialect in dialects {
            if dialect.about().kind == FALLBACK {
                fallback.get_or_insert_with(|| dialect.clone());
            }
            suffixes.extend(dialect.suffixes().iter().map(|suffix| (*suffix, dialect.clone())));
        }
        suffixes.sort_by_key(|(suffix, _)| std::cmp::Reverse(suffix.len()));
        Self { suffixes, fallback }
    }

    /// The dialect of `path`: the longest suffix that ends it (query and trailing slashes aside), else
    /// passthrough, if configured. `None` is to be answered with 400.
    pub fn resolve(&self, path: &str) -> Option<&Arc<dyn Dialect>> {
        let path = trimmed(path);
        let known = self.suffixes.iter().find(|(suffix, _)| path.ends_with(suffix)).map(|(_, dialect)| dialect);
        known.or(self.fallback.as_ref())
    }

    /// Resolves `path` and reads `body`. A body with a `content-encoding` is opaque: nothing is read
    /// of it and it must not be changed, but its answer is read as usual.
    ///
    /// # Errors
    /// [`Rejection::BadRequest`] of [`Dialect::parse`], and for a path that no dialect reads.
    pub fn parse(&self, path: &str, headers: &Headers, body: &Bytes, wants: Wants) -> Result<Parsed, Rejection> {
        let Some(dialect) = self.resolve(path) else {
            let quoted = &path[..path.floor_char_boundary(QUOTED_PATH)];
            return Err(Rejection::BadRequest(format!(
                "no parser is configured for path {quoted}; add a {FALLBACK} to route any path"
            )));
        };
        if is_encoded(headers) {
            return Ok(Parsed { answer: dialect.answer(path), ..Parsed::default() });
        }
        dialect.parse(path, headers, body, wants)
    }
}

/// `path` without query and trailing slashes.
pub(super) fn trimmed(path: &str) -> &str {
    cut_query(path).trim_end_matches('/')
}

fn cut_query(path: &str) -> &str {
    memchr::memchr(b'?', path.as_bytes()).map_or(path, |query| &path[..query])
}

/// The request's path without its query: the first of `:path`, `x-original-path` and
/// `x-forwarded-path` that is not empty, else `/v1/completions` (protocol 3.4).
pub fn request_path(headers: &Headers) -> &str {
    [":path", "x-original-path", "x-forwarded-path"]
        .iter()
        .filter_map(|name| headers.get(name))
        .map(cut_query)
        .find(|path| !path.is_empty())
        .unwrap_or(DEFAULT_PATH)
}

/// Whether the body of these headers is compressed or otherwise encoded.
pub fn is_encoded(headers: &Headers) -> bool {
    headers.get("content-encoding").is_some_and(is_encoding)
}

/// Whether a `content-encoding` changes the bytes.
pub(super) fn is_encoding(content_encoding: &str) -> bool {
    let encoding = content_encoding.trim();
    !encoding.is_empty() && !encoding.eq_ignore_ascii_case("identity")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind<'a>(dialects: &'a Dialects, path: &str) -> Option<&'a str> {
        dialects.resolve(path).map(|dialect| dialect.about().kind)
    }

    #[test]
    fn the_longest_suffix_at_a_slash_wins() {
        let all = Dialects::new(TABLE.iter().map(|row| (row.make)()));
        for (path, expected) in [
            ("/v1/chat/completions", "openai-parser"),
            ("/openai/v1/chat/completions/", "openai-parser"),
            ("/v1/chat/completions?x=1", "openai-parser"),
            ("/v1/chat/completions/?x=/messages", "openai-parser"),
            ("/v1/completions/render", "openai-parser"),
            ("/completions", "openai-parser"),
            ("/v1/images/generations", "openai-parser"),
            ("/v1/messages", "anthropic-parser"),
            ("/v1/messages/count_tokens", "anthropic-parser"),
            ("/inference/v1/generate", "vllmhttp-parser"),
            ("/generate", "sglanghttp-parser"),
            ("/v1/generate", "sglanghttp-parser"),
            ("/v1/mycompletions", "passthrough-parser"),
            ("/v1/chat/completions/x", "passthrough-parser"),
            ("/", "passthrough-parser"),
            ("", "passthrough-parser"),
        ] {
            assert_eq!(kind(&all, path), Some(expected), "{path}");
        }
    }

    #[test]
    fn defaults_leave_out_the_opt_in_dialects() {
        let defaults = Dialects::default();
        assert_eq!(kind(&defaults, "/generate"), Some("passthrough-parser"));
        assert_eq!(kind(&defaults, "/inference/v1/generate"), Some("vllmhttp-parser"));
        let strict = Dialects::new(TABLE.iter().filter(|row| row.about.kind != FALLBACK).map(|row| (row.make)()));
        assert_eq!(kind(&strict, "/v1/models"), None);
    }

    #[test]
    fn an_unknown_path_is_refused_without_a_fallback() {
        let strict = Dialects::new([]);
        let long = format!("/{}", "\u{e9}".repeat(500));
        let Err(Rejection::BadRequest(text)) =
            strict.parse(&long, &Headers::default(), &Bytes::new(), Wants::default())
        else {
            panic!("must be refused")
        };
        assert!(text.starts_with("no parser is configured for path /\u{e9}") && text.len() < 300, "{text}");
    }

    #[test]
    fn encoded_bodies_are_opaque() {
        let dialects = Dialects::default();
        let body = Bytes::from_static(b"\x1f\x8b\x08 not json");
        let wants = Wants { prompts: true };
        let gzip = Headers::from([("content-encoding", "gzip")]);
        let parsed = dialects.parse("/v1/chat/completions", &gzip, &body, wants).expect("opaque");
        assert_eq!(parsed, Parsed { answer: super::super::AnswerFormat::OpenAi, ..Parsed::default() });
        let identity = Headers::from([("content-encoding", " Identity ")]);
        assert!(dialects.parse("/v1/chat/completions", &identity, &body, wants).is_err());
    }

    #[test]
    fn the_path_comes_from_the_first_header_that_has_one() {
        let of = |headers: &Headers| request_path(headers).to_owned();
        assert_eq!(of(&Headers::default()), "/v1/completions");
        assert_eq!(of(&Headers::from([(":path", ""), ("x-forwarded-path", "/f?q")])), "/f");
        assert_eq!(of(&Headers::from([("x-forwarded-path", "/f"), ("x-original-path", "/o?q")])), "/o");
        assert_eq!(of(&Headers::from([(":path", "/p?a=?b"), ("x-original-path", "/o")])), "/p");
    }
}
