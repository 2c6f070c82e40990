//! What to say of a text that is not JSON.
//!
//! The scanner only finds that and where a text breaks. The words and the exact place are serde_json's,
//! which people know and can look up: the innermost part that was being read is read again with it, in
//! the way that says most (an object by its members, so that a trailing comma is called one). This
//! happens once, for a text that is refused; its cost is at most that of another pass.

use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::Fault;

/// What was being read when the text broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// One value that was read over.
    Value,
    /// An object, between or in front of the values of its members.
    Object,
    /// A list, between or in front of its elements.
    List,
    /// The whole text: it goes on behind its value.
    Whole,
}

/// The fault of `text`, whose `part` starts with the range and broke at its end.
#[cold]
#[inline(never)]
pub(super) fn fault(text: &str, range: Range<usize>, part: Part) -> Fault {
    let rest = text.get(range.start..).unwrap_or_default();
    let mut deserializer = serde_json::Deserializer::from_str(rest);
    let said = match part {
        Part::Value => IgnoredAny::deserialize(&mut deserializer).map(|_| ()),
        Part::Object => deserializer.deserialize_map(Level),
        Part::List => deserializer.deserialize_seq(Level),
        Part::Whole => IgnoredAny::deserialize(&mut deserializer).and_then(|_| deserializer.end()),
    };
    match said {
        Err(error) => said_of(rest, range.start, &error),
        Ok(()) => {
            debug_assert!(false, "serde_json takes what the scanner refuses at {range:?} of {text:?}");
            Fault { at: range.end, message: "invalid JSON".into() }
        }
    }
}

/// `error` as a fault of the text that `rest` is the end of, from `start` on.
fn said_of(rest: &str, start: usize, error: &serde_json::Error) -> Fault {
    let at = if error.is_eof() {
        rest.len()
    } else {
        let lines = error.line().saturating_sub(1);
        let line = match lines.checked_sub(1) {
            None => 0,
            Some(nth) => memchr::memchr_iter(b'\n', rest.as_bytes()).nth(nth).map_or(rest.len(), |newline| newline + 1),
        };
        (line + error.column().saturating_sub(1)).min(rest.len())
    };
    let message = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    let message = message.strip_suffix(&place).unwrap_or(&message);
    Fault { at: start + at, message: format!("invalid JSON: {message}") }
}

/// Reads one level and only over what is in it: keys as they are written, because a lone surrogate is
/// no fault.
struct Level;

impl<'de> Visitor<'de> for Level {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object or a list")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while map.next_key::<&RawValue>()?.is_some() {
            map.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }
}
