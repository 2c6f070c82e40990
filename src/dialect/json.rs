//! One lazy pass over a JSON text, with the place of every value.
//!
//! Nothing of the text is decoded or copied unless a caller asks for it, and every byte is checked.
//! Routing needs to know *where* a value stands: prompts are ranges of the body, and the model name is
//! replaced in place. So every value knows its offset and every reading ends in an [`End`]. The kind of a
//! value is told by its first byte before it is read, so a list is walked or a text is skipped in
//! the same pass, and a value of the wrong kind is refused by name and offset without quoting it.
//!
//! The scanner underneath is our own: `scan` knows the grammar, `text` finds the end of a text, `ids`
//! decodes token ids. serde_json, which did this before, looks at eight bytes at a time and starts
//! again behind every escape. Of a chat of 128 KB with two quotes and a line break in each sentence it
//! took 677,000 of the 740,000 instructions that reading it cost, while a bare gRPC server that sends
//! the same body back takes 523,000 in all. The blocks of `text` need 107,000, with escapes or without.
//!
//! serde_json remains the judge. What is accepted is exactly what it accepts when it reads over a value
//! (lone surrogates and numbers of any size included), which property tests and a fuzz target compare,
//! and a text that is refused is read again with it, so that errors have its words and places
//! (`syntax`). It also decodes the few names that have escapes.
//!
//! Depth: callers walk a fixed number of levels; whatever lies deeper is skipped without recursion, so
//! deep nesting costs one byte per level and no stack.
//!
//! Duplicate names: every occurrence is visited in order; callers let the last one win, as Python's
//! `json` does.
//!
//! Rejected: `serde_json::Value` (copies everything), derived structs (no positions, duplicates are
//! errors, and a re-scan for every nested `RawValue`), walking with serde's visitors (the cost above),
//! simd-json (it needs a body that it can change, and decodes all of it), and intrinsics (unsafe, and one
//! version for each target).

mod ids;
mod scan;
mod syntax;
mod text;

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use scan::Broken;
use syntax::Part;

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

fn read<'de>(text: &'de str, root: impl FnOnce(Value<'de>) -> Result<End, Fault>) -> Result<(), Fault> {
    let at = scan::space(text.as_bytes(), 0);
    if at == text.len() {
        return Err(Fault { at, message: "expected a JSON object, found nothing".into() });
    }
    let end = root(Value { text, at })?;
    match scan::space(text.as_bytes(), end.offset()) {
        at if at == text.len() => Ok(()),
        at => Err(syntax::fault(text, 0..at, Part::Whole)),
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
        // Not memchr's: names and roles are too short for a search that has to be called.
        if !inner.as_bytes().contains(&b'\\') {
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
    fn member(&mut self, key: &Raw<'de>, value: Value<'de>) -> Result<End, Fault>;
}

/// Takes the elements of a list one by one.
pub(super) trait Elements<'de> {
    /// Reads `value`.
    fn element(&mut self, value: Value<'de>) -> Result<End, Fault>;
}

/// A value that has not been read yet. Exactly one of its methods must be called.
#[derive(Debug)]
pub(super) struct Value<'de> {
    text: &'de str,
    /// Offset of its first byte; where there is no value, of what stands in its place.
    pub at: usize,
}

impl<'de> Value<'de> {
    fn byte(&self, at: usize) -> u8 {
        scan::byte(self.text.as_bytes(), at)
    }

    fn space(&self, at: usize) -> usize {
        scan::space(self.text.as_bytes(), at)
    }

    /// What kind of value comes.
    pub fn kind(&self) -> Kind {
        Kind::of(self.byte(self.at))
    }

    /// The kind of the first element, if this is a list; `Invalid` if it is empty.
    pub fn element_kind(&self) -> Kind {
        Kind::of(self.byte(self.space(self.at + 1)))
    }

    /// Reads over the value and keeps its range.
    pub fn raw(self) -> Result<Raw<'de>, Fault> {
        match scan::value(self.text.as_bytes(), self.at) {
            Ok(end) => Ok(Raw { text: &self.text[self.at..end], at: self.at }),
            Err(Broken(at)) => Err(syntax::fault(self.text, self.at..at, Part::Value)),
        }
    }

    /// Reads over the value.
    pub fn skip(self) -> Result<End, Fault> {
        Ok(self.raw()?.end())
    }

    /// Refuses the value: "`what` must be `wanted`, found ...".
    pub fn refuse<T>(self, what: &str, wanted: &str) -> Result<T, Fault> {
        let (at, kind) = (self.at, self.kind());
        // What is no value at all is told first.
        self.raw()?;
        Err(Fault { at, message: format!("{what} must be {wanted}, found {kind}") })
    }

    /// Reads an object.
    pub fn object(self, what: &str, members: &mut impl Members<'de>) -> Result<End, Fault> {
        if self.kind() != Kind::Object {
            return self.refuse(what, "an object");
        }
        let text = self.text;
        let broken = |at| syntax::fault(text, self.at..at, Part::Object);
        let mut at = self.space(self.at + 1);
        if self.byte(at) == b'}' {
            return Ok(End(at + 1));
        }
        loop {
            let end = text::end(text.as_bytes(), at).map_err(|Broken(at)| broken(at))?;
            let key = Raw { text: &text[at..end], at };
            let colon = self.space(end);
            if self.byte(colon) != b':' {
                return Err(broken(colon));
            }
            let end = members.member(&key, Value { text, at: self.space(colon + 1) })?;
            at = self.space(end.offset());
            match self.byte(at) {
                b',' => at = self.space(at + 1),
                b'}' => return Ok(End(at + 1)),
                _ => return Err(broken(at)),
            }
        }
    }

    /// Reads a list.
    pub fn list(self, what: &str, elements: &mut impl Elements<'de>) -> Result<End, Fault> {
        if self.kind() != Kind::List {
            return self.refuse(what, "a list");
        }
        let text = self.text;
        let broken = |at| syntax::fault(text, self.at..at, Part::List);
        let mut at = self.space(self.at + 1);
        if self.byte(at) == b']' {
            return Ok(End(at + 1));
        }
        loop {
            // A comma before the end is the list's fault and not the element's.
            if Kind::of(self.byte(at)) == Kind::Invalid {
                return Err(broken(at));
            }
            let end = elements.element(Value { text, at })?;
            at = self.space(end.offset());
            match self.byte(at) {
                b',' => at = self.space(at + 1),
                b']' => return Ok(End(at + 1)),
                _ => return Err(broken(at)),
            }
        }
    }

    /// Reads a list of token ids.
    pub fn tokens(self, what: &str) -> Result<(Box<[u32]>, End), Fault> {
        if self.kind() != Kind::List {
            return self.refuse(what, "a list of token ids");
        }
        match ids::read(&self.text.as_bytes()[self.at..]) {
            Ok((ids, length)) => Ok((ids, End(self.at + length))),
            Err(offset) => {
                // What is no list at all is told first.
                let at = self.raw()?.at + offset;
                let most = u32::MAX;
                Err(Fault {
                    at,
                    message: format!("{what} must be a list of token ids, whole numbers from 0 to {most}"),
                })
            }
        }
    }
}

#[cfg(test)]
mod tests;
