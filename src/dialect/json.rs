//! One lazy pass over a JSON text, with the place of every value.
//!
//! serde_json does all reading and all checking; nothing of the text is decoded or copied unless a
//! caller asks for it. What serde hides is *where* a value stands, and routing needs that: prompts
//! are ranges of the body, and the model name is replaced in place. So every container reports its
//! [`End`], which gives the start of the next value: after a key come white space, a colon, white
//! space; after an element come white space, a comma, white space. Knowing the first byte of a value
//! before it is read also tells its kind, so a list is walked or a text is skipped in the same pass,
//! and a value of the wrong kind is refused by name and offset without quoting it.
//!
//! Depth: callers walk a fixed number of levels; whatever lies deeper is skipped by serde_json
//! without recursion, so deep nesting costs one byte per level and no stack.
//!
//! Duplicate names: every occurrence is visited in order; callers let the last one win, as Python's
//! `json` does.
//!
//! Rejected: `serde_json::Value` (copies everything), derived structs (no positions, duplicates are
//! errors, and a re-scan for every nested `RawValue`), and a scanner of our own (the checks of
//! serde_json are well tested).

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// What is wrong with a text, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// Byte offset of the value or byte at fault.
    pub at: usize,
    /// What was expected.
    pub message: String,
}

impl Fault {
    /// The message with line, column (both from 1, in bytes) and byte offset in `text`.
    pub fn describe(&self, text: &[u8]) -> String {
        let before = &text[..self.at.min(text.len())];
        let line = memchr::memchr_iter(b'\n', before).count() + 1;
        let column = before.len() - memchr::memrchr(b'\n', before).map_or(0, |newline| newline + 1) + 1;
        format!("{} at line {line} column {column} (byte {})", self.message, before.len())
    }
}

/// Bytes as text, or where they stop being UTF-8.
pub(super) fn utf8(bytes: &[u8]) -> Result<&str, Fault> {
    if bytes.starts_with(b"\xef\xbb\xbf") {
        return Err(Fault { at: 0, message: "expected a JSON object, found a byte order mark".into() });
    }
    std::str::from_utf8(bytes)
        .map_err(|error| Fault { at: error.valid_up_to(), message: "expected UTF-8 text, found another byte".into() })
}

/// Reads all of `text`, which must be one object, and shows its members to `members`.
pub(super) fn read_object<'de>(text: &'de str, members: &mut impl Members<'de>) -> Result<(), Fault> {
    read(text, |value| value.object("the request body", members))
}

/// Reads all of `text`, which must be one list, and shows its elements to `elements`.
pub(super) fn read_list<'de>(text: &'de str, elements: &mut impl Elements<'de>) -> Result<(), Fault> {
    read(text, |value| value.list("the body", elements))
}

type Root<'d, 'de> = &'d mut serde_json::Deserializer<serde_json::de::StrRead<'de>>;

fn read<'de, F>(text: &'de str, root: F) -> Result<(), Fault>
where
    F: for<'b, 'd> FnOnce(Value<'b, 'de, AtRoot<Root<'d, 'de>>>) -> Result<End, serde_json::Error>,
{
    let source = Source { text, fault: Cell::new(None) };
    let at = source.skip_space(0);
    if at == text.len() {
        return Err(Fault { at, message: "expected a JSON object, found nothing".into() });
    }
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let value = Value { next: AtRoot(&mut deserializer), source: &source, at };
    let result = root(value).map(|_| ()).and_then(|()| deserializer.end());
    // A fault of ours is precise; serde_json's own error only carries it outwards.
    result.map_err(|error| source.fault.take().unwrap_or_else(|| syntax_fault(text, &error)))
}

fn syntax_fault(text: &str, error: &serde_json::Error) -> Fault {
    let at = if error.is_eof() {
        text.len()
    } else {
        let lines = error.line().saturating_sub(1);
        let start = match lines.checked_sub(1) {
            None => 0,
            Some(nth) => memchr::memchr_iter(b'\n', text.as_bytes()).nth(nth).map_or(text.len(), |newline| newline + 1),
        };
        (start + error.column().saturating_sub(1)).min(text.len())
    };
    let message = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    let message = message.strip_suffix(&place).unwrap_or(&message);
    Fault { at, message: format!("invalid JSON: {message}") }
}

/// The text being read.
struct Source<'de> {
    text: &'de str,
    fault: Cell<Option<Fault>>,
}

impl<'de> Source<'de> {
    fn byte(&self, at: usize) -> u8 {
        self.text.as_bytes().get(at).copied().unwrap_or(0)
    }

    fn skip_space(&self, mut at: usize) -> usize {
        while matches!(self.byte(at), b' ' | b'\n' | b'\r' | b'\t') {
            at += 1;
        }
        at
    }

    fn fail<E: serde::de::Error>(&self, at: usize, message: String) -> E {
        self.fault.set(Some(Fault { at, message }));
        E::custom("refused")
    }

    fn raw(&self, raw: &'de RawValue) -> Raw<'de> {
        let text = raw.get();
        // Both point into the same text: serde_json borrows raw values from its input.
        Raw { text, at: (text.as_ptr() as usize).wrapping_sub(self.text.as_ptr() as usize) }
    }
}

/// Proof that a value was read, and the offset behind it.
#[derive(Clone, Copy, Debug)]
pub(super) struct End(usize);

impl End {
    /// Offset of the first byte behind the value.
    pub fn offset(self) -> usize {
        self.0
    }
}

/// A checked, undecoded piece of the text: one JSON value.
#[derive(Clone, Copy, Debug)]
pub(super) struct Raw<'de> {
    /// The value as written.
    pub text: &'de str,
    /// Its offset.
    pub at: usize,
}

impl<'de> Raw<'de> {
    /// Where the value stands.
    pub fn range(&self) -> Range<usize> {
        self.at..self.at + self.text.len()
    }

    /// The end of the value.
    pub fn end(&self) -> End {
        End(self.at + self.text.len())
    }

    /// What kind of value this is.
    pub fn kind(&self) -> Kind {
        Kind::of(self.text.as_bytes().first().copied().unwrap_or(0))
    }

    /// The inside of a text, still escaped; `None` for other kinds.
    pub fn inner(&self) -> Option<Raw<'de>> {
        let text = self.text.strip_prefix('"')?.strip_suffix('"')?;
        Some(Raw { text, at: self.at + 1 })
    }

    /// The text that this value means; `None` for other kinds and for lone surrogates.
    pub fn decode(&self) -> Option<Cow<'de, str>> {
        let inner = self.inner()?.text;
        if memchr::memchr(b'\\', inner.as_bytes()).is_none() {
            return Some(Cow::Borrowed(inner));
        }
        serde_json::from_str::<String>(self.text).ok().map(Cow::Owned)
    }

    /// The name that a key means. One that cannot be decoded matches no known name.
    pub fn name(&self) -> Cow<'de, str> {
        self.decode().unwrap_or(Cow::Borrowed(self.text))
    }

    /// A whole number from 0 to 2^64 - 1 without fraction and exponent.
    pub fn integer(&self) -> Option<u64> {
        self.text.parse().ok()
    }
}

/// Kinds of JSON values, by their first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `{`
    Object,
    /// `[`
    List,
    /// `"`
    Text,
    /// A digit or `-`
    Number,
    /// `t` or `f`
    Bool,
    /// `n`
    Null,
    /// Nothing that starts a value; reading it is an error.
    Invalid,
}

impl Kind {
    fn of(byte: u8) -> Self {
        match byte {
            b'{' => Kind::Object,
            b'[' => Kind::List,
            b'"' => Kind::Text,
            b'-' | b'0'..=b'9' => Kind::Number,
            b't' | b'f' => Kind::Bool,
            b'n' => Kind::Null,
            _ => Kind::Invalid,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Object => "an object",
            Kind::List => "a list",
            Kind::Text => "text",
            Kind::Number => "a number",
            Kind::Bool => "a boolean",
            Kind::Null => "null",
            Kind::Invalid => "something else",
        })
    }
}

/// Takes the members of an object one by one, in the order of the text.
pub(super) trait Members<'de> {
    /// Reads `value`, the member called `key`.
    fn member<N: Next<'de>>(&mut self, key: &Raw<'de>, value: Value<'_, 'de, N>) -> Result<End, N::Error>;
}

/// Takes the elements of a list one by one.
pub(super) trait Elements<'de> {
    /// Reads `value`.
    fn element<N: Next<'de>>(&mut self, value: Value<'_, 'de, N>) -> Result<End, N::Error>;
}

/// The value that a deserializer would read next.
pub(super) trait Next<'de> {
    /// The deserializer's error.
    type Error: serde::de::Error;
    /// Reads it.
    fn next<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Self::Error>;
}

struct AtRoot<D>(D);

impl<'de, D: Deserializer<'de>> Next<'de> for AtRoot<D> {
    type Error = D::Error;
    fn next<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, D::Error> {
        seed.deserialize(self.0)
    }
}

struct InMap<'m, A>(&'m mut A);

impl<'de, A: MapAccess<'de>> Next<'de> for InMap<'_, A> {
    type Error = A::Error;
    fn next<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, A::Error> {
        self.0.next_value_seed(seed)
    }
}

struct InSeq<'m, A>(&'m mut A);

impl<'de, A: SeqAccess<'de>> Next<'de> for InSeq<'_, A> {
    type Error = A::Error;
    fn next<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, A::Error> {
        self.0.next_element_seed(seed)?.ok_or_else(|| A::Error::custom("expected another element"))
    }
}

/// A value that has not been read yet. Exactly one of its methods must be called.
pub(super) struct Value<'b, 'de, N> {
    next: N,
    source: &'b Source<'de>,
    /// Offset of its first byte.
    pub at: usize,
}

impl<'de, N: Next<'de>> Value<'_, 'de, N> {
    /// What kind of value comes.
    pub fn kind(&self) -> Kind {
        Kind::of(self.source.byte(self.at))
    }

    /// The kind of the first element, if this is a list; `Invalid` if it is empty.
    pub fn element_kind(&self) -> Kind {
        Kind::of(self.source.byte(self.source.skip_space(self.at + 1)))
    }

    /// Reads over the value and keeps its range.
    pub fn raw(self) -> Result<Raw<'de>, N::Error> {
        let raw = self.next.next(RawSeed)?;
        Ok(self.source.raw(raw))
    }

    /// Reads over the value.
    pub fn skip(self) -> Result<End, N::Error> {
        Ok(self.raw()?.end())
    }

    /// Refuses the value: "`what` must be `wanted`, found ...".
    pub fn refuse<T>(self, what: &str, wanted: &str) -> Result<T, N::Error> {
        let (at, kind, source) = (self.at, self.kind(), self.source);
        // What is no value at all is serde_json's to name.
        self.next.next(RawSeed)?;
        Err(source.fail(at, format!("{what} must be {wanted}, found {kind}")))
    }

    /// Reads an object.
    pub fn object(self, what: &str, members: &mut impl Members<'de>) -> Result<End, N::Error> {
        if self.kind() != Kind::Object {
            return self.refuse(what, "an object");
        }
        self.next.next(Walk { source: self.source, at: self.at, visit: Object(members) })
    }

    /// Reads a list.
    pub fn list(self, what: &str, elements: &mut impl Elements<'de>) -> Result<End, N::Error> {
        if self.kind() != Kind::List {
            return self.refuse(what, "a list");
        }
        self.next.next(Walk { source: self.source, at: self.at, visit: List(elements) })
    }

    /// Reads a list of token ids.
    pub fn tokens(self, what: &str) -> Result<(Box<[u32]>, End), N::Error> {
        if self.kind() != Kind::List {
            return self.refuse(what, "a list of token ids");
        }
        let source = self.source;
        let raw = self.raw()?;
        match token_ids(raw.text.as_bytes()) {
            Ok(ids) => Ok((ids, raw.end())),
            Err(offset) => Err(source.fail(
                raw.at + offset,
                format!("{what} must be a list of token ids, whole numbers from 0 to {}", u32::MAX),
            )),
        }
    }
}

/// The ids of a list that is known to be JSON, or the offset of the first element that is no id.
fn token_ids(list: &[u8]) -> Result<Box<[u32]>, usize> {
    let mut ids = Vec::with_capacity(memchr::memchr_iter(b',', list).count() + 1);
    let mut at = 1;
    while at < list.len() - 1 {
        match list[at] {
            b'0'..=b'9' => {
                let start = at;
                let mut id: u64 = 0;
                while let digit @ b'0'..=b'9' = list[at] {
                    id = id * 10 + u64::from(digit - b'0');
                    if id > u64::from(u32::MAX) {
                        return Err(start);
                    }
                    at += 1;
                }
                if matches!(list[at], b'.' | b'e' | b'E') {
                    return Err(start);
                }
                ids.push(id as u32);
            }
            b' ' | b',' | b'\n' | b'\r' | b'\t' => at += 1,
            _ => return Err(at),
        }
    }
    Ok(ids.into_boxed_slice())
}

struct RawSeed;

impl<'de> DeserializeSeed<'de> for RawSeed {
    type Value = &'de RawValue;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        <&'de RawValue>::deserialize(deserializer)
    }
}

struct Object<'m, M>(&'m mut M);
struct List<'m, M>(&'m mut M);

struct Walk<'b, 'de, V> {
    source: &'b Source<'de>,
    at: usize,
    visit: V,
}

impl<'de, M: Members<'de>> DeserializeSeed<'de> for Walk<'_, 'de, Object<'_, M>> {
    type Value = End;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<End, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, M: Members<'de>> Visitor<'de> for Walk<'_, 'de, Object<'_, M>> {
    type Value = End;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<End, A::Error> {
        let source = self.source;
        let mut end = self.at + 1;
        while let Some(key) = map.next_key_seed(RawSeed)? {
            let key = source.raw(key);
            let colon = source.skip_space(key.end().offset());
            let at = if source.byte(colon) == b':' { source.skip_space(colon + 1) } else { source.text.len() };
            end = self.visit.0.member(&key, Value { next: InMap(&mut map), source, at })?.offset();
        }
        Ok(End(source.skip_space(end) + 1))
    }
}

impl<'de, E: Elements<'de>> DeserializeSeed<'de> for Walk<'_, 'de, List<'_, E>> {
    type Value = End;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<End, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, E: Elements<'de>> Visitor<'de> for Walk<'_, 'de, List<'_, E>> {
    type Value = End;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<End, A::Error> {
        let source = self.source;
        let mut at = source.skip_space(self.at + 1);
        loop {
            if Kind::of(source.byte(at)) == Kind::Invalid {
                // The end of the list, or an error that serde_json names.
                return match seq.next_element::<IgnoredAny>()? {
                    None => Ok(End(at + 1)),
                    Some(_) => Err(A::Error::custom("expected `,` or `]`")),
                };
            }
            let end = self.visit.0.element(Value { next: InSeq(&mut seq), source, at })?;
            at = source.skip_space(end.offset());
            if source.byte(at) == b',' {
                at = source.skip_space(at + 1);
            }
        }
    }
}

#[cfg(test)]
mod tests;
