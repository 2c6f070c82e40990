//! YAML text to [`Node`]s that know their line and column.
//!
//! Scalars get the type that Go's `sigs.k8s.io/yaml` gives them, so that a file means here what it
//! meant there: plain `yes`, `on`, `y` are booleans (YAML 1.1), `0777` is octal (511), `08` is the
//! number 8, `1_000` is 1000, dates are text, and anything in quotes is text.
//!
//! Bounds, each an error with a place: 1 MiB of text, 64 levels, 100 000 values and 4 MiB of values
//! after aliases are expanded. Anchors and aliases work within these bounds. Refused: duplicate keys
//! (both places are named; Go keeps neither), merge keys (`<<`), keys that are not scalars, tags
//! outside the core schema, and a second document in the same file (Go drops it without a word).
//!
//! Rejected: reading into serde types. The positions are gone by the time a value is judged.

use std::collections::HashMap;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Tag};

use crate::domain::node::{Node, Position, Problems, Value};

/// Longest accepted text in bytes.
pub const MAX_BYTES: usize = 1 << 20;
/// Deepest accepted nesting of lists and mappings.
pub const MAX_DEPTH: usize = 64;
/// Most values in one document, counting each use of an alias.
pub const MAX_VALUES: usize = 100_000;
/// Most bytes of text in one document, counting each use of an alias.
const MAX_TEXT: usize = 4 << 20;

/// Reads one document; an empty one is null. `None` after at least one error was recorded.
pub fn read(bytes: &[u8], problems: &mut Problems) -> Option<Node> {
    if bytes.len() > MAX_BYTES {
        problems.error(
            Position::default(),
            "(file)",
            format!("{} bytes are more than the limit of {MAX_BYTES}", bytes.len()),
            "is this the right file? a configuration has a few kilobytes",
        );
        return None;
    }
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text.strip_prefix('\u{feff}').unwrap_or(text),
        Err(error) => {
            let good = &bytes[..error.valid_up_to()];
            let line = good.iter().filter(|b| **b == b'\n').count() + 1;
            let column = good.iter().rev().take_while(|b| **b != b'\n').count() + 1;
            problems.error(position_of(line, column), "(file)", "the text is not UTF-8", "save the file as UTF-8");
            return None;
        }
    };
    let before = problems.errors.len();
    let node = Reader::new(problems).run(text)?;
    (problems.errors.len() == before).then_some(node)
}

fn position_of(line: usize, column: usize) -> Position {
    Position { line: u32::try_from(line).unwrap_or(u32::MAX), column: u32::try_from(column).unwrap_or(u32::MAX) }
}

fn place(mark: &Marker) -> Position {
    position_of(mark.line(), mark.col() + 1)
}

/// An open list or mapping.
struct Frame {
    at: Position,
    anchor: usize,
    kind: Kind,
}

enum Kind {
    List(Vec<Node>),
    Map {
        entries: Vec<(String, Position, Node)>,
        seen: HashMap<String, Position>,
        key: Option<(String, Position)>,
        /// The current key is a duplicate: its value is read and dropped.
        drop_value: bool,
    },
}

struct Anchored {
    node: Node,
    depth: usize,
    values: usize,
    text: usize,
}

struct Reader<'p> {
    problems: &'p mut Problems,
    stack: Vec<Frame>,
    anchors: HashMap<usize, Anchored>,
    values: usize,
    text: usize,
    root: Option<Node>,
    documents: usize,
}

/// Reading cannot go on; the problem has been recorded.
struct Stop;

impl<'p> Reader<'p> {
    fn new(problems: &'p mut Problems) -> Self {
        Self { problems, stack: Vec::new(), anchors: HashMap::new(), values: 0, text: 0, root: None, documents: 0 }
    }

    fn run(mut self, text: &str) -> Option<Node> {
        let mut parser = Parser::new_from_str(text);
        while let Some(event) = parser.next_event() {
            match event {
                Ok((Event::StreamEnd, _)) => break,
                Ok((event, span)) => self.event(event, place(&span.start)).ok()?,
                Err(error) => {
                    let path = self.path();
                    let message = format!("this is not YAML: {}", error.info());
                    self.problems.error(
                        place(error.marker()),
                        path,
                        message,
                        "check indentation, colons and quotes here and on the line before",
                    );
                    return None;
                }
            }
        }
        Some(self.root.unwrap_or_default())
    }

    fn event(&mut self, event: Event<'_>, at: Position) -> Result<(), Stop> {
        match event {
            Event::DocumentStart(_) => self.documents += 1,
            Event::Scalar(text, style, anchor, tag) => self.scalar(&text, style, anchor, tag.as_deref(), at)?,
            Event::SequenceStart(anchor, tag) => {
                self.check_tag(tag.as_deref(), "seq", at)?;
                self.open(at, anchor, Kind::List(Vec::new()))?;
            }
            Event::MappingStart(anchor, tag) => {
                self.check_tag(tag.as_deref(), "map", at)?;
                let kind = Kind::Map { entries: Vec::new(), seen: HashMap::new(), key: None, drop_value: false };
                self.open(at, anchor, kind)?;
            }
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some(frame) = self.stack.pop() {
                    let value = match frame.kind {
                        Kind::List(items) => Value::Sequence(items),
                        Kind::Map { entries, .. } => Value::Mapping(entries),
                    };
                    self.finish(Node { at: frame.at, value }, frame.anchor)?;
                }
            }
            Event::Alias(id) => self.alias(id, at)?,
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
        }
        Ok(())
    }

    fn fail<T>(&mut self, at: Position, message: impl Into<String>, fix: impl Into<String>) -> Result<T, Stop> {
        let path = self.path();
        self.problems.error(at, path, message, fix);
        Err(Stop)
    }

    /// The path of the value that is being read.
    fn path(&self) -> String {
        use std::fmt::Write;
        let mut path = String::new();
        for frame in &self.stack {
            match &frame.kind {
                Kind::List(items) => {
                    let _ = write!(path, "[{}]", items.len());
                }
                Kind::Map { key: Some((key, _)), .. } => {
                    if !path.is_empty() {
                        path.push('.');
                    }
                    path.extend(key.chars().take(64));
                }
                Kind::Map { key: None, .. } => {}
            }
        }
        if path.is_empty() { "(document)".to_owned() } else { path }
    }

    /// A mapping that waits for a key, if the innermost frame is one.
    fn waits_for_key(&self) -> bool {
        matches!(self.stack.last(), Some(Frame { kind: Kind::Map { key: None, .. }, .. }))
    }

    fn count(&mut self, values: usize, text: usize, at: Position) -> Result<(), Stop> {
        self.values += values;
        self.text += text;
        if self.values > MAX_VALUES || self.text > MAX_TEXT {
            return self.fail(
                at,
                format!("more than {MAX_VALUES} values or {MAX_TEXT} bytes of text, aliases expanded"),
                "remove aliases that repeat large parts",
            );
        }
        Ok(())
    }

    fn open(&mut self, at: Position, anchor: usize, kind: Kind) -> Result<(), Stop> {
        if self.waits_for_key() {
            return self.fail(at, "a key must be a scalar, found a list or mapping", "write `key: value`");
        }
        if self.stack.len() >= MAX_DEPTH {
            return self.fail(at, format!("nested deeper than {MAX_DEPTH} levels"), "flatten the document");
        }
        self.count(1, 0, at)?;
        self.stack.push(Frame { at, anchor, kind });
        Ok(())
    }

    fn check_tag(&mut self, tag: Option<&Tag>, allowed: &str, at: Position) -> Result<(), Stop> {
        match tag {
            Some(tag) if !(tag.is_yaml_core_schema() && tag.suffix == allowed) => {
                self.fail(at, format!("the tag {tag} is not allowed here"), "remove the tag")
            }
            _ => Ok(()),
        }
    }

    fn scalar(
        &mut self,
        text: &str,
        style: ScalarStyle,
        anchor: usize,
        tag: Option<&Tag>,
        at: Position,
    ) -> Result<(), Stop> {
        if self.waits_for_key() {
            return self.key(text, style, at);
        }
        self.count(1, text.len(), at)?;
        let plain = style == ScalarStyle::Plain;
        let value = match tag {
            None if plain => type_of_plain(text),
            None => Value::String(text.to_owned()),
            Some(tag) if tag.is_yaml_core_schema() => match (tag.suffix.as_str(), type_of_plain(text)) {
                ("str", _) => Value::String(text.to_owned()),
                ("float", Value::Integer(i)) => Value::Float(i as f64),
                ("int", v @ Value::Integer(_))
                | ("float", v @ Value::Float(_))
                | ("bool", v @ Value::Bool(_))
                | ("null", v @ Value::Null) => v,
                (suffix, _) => {
                    let message = format!("`{text}` is not a value of the tag !!{suffix}");
                    return self.fail(at, message, "remove the tag");
                }
            },
            Some(tag) => return self.fail(at, format!("the tag {tag} is not known"), "remove the tag"),
        };
        self.finish(Node { at, value }, anchor)
    }

    fn key(&mut self, text: &str, style: ScalarStyle, at: Position) -> Result<(), Stop> {
        if text == "<<" && style == ScalarStyle::Plain {
            return self.fail(at, "merge keys (`<<`) are not supported", "write the merged keys out");
        }
        self.count(0, text.len(), at)?;
        let Some(Frame { kind: Kind::Map { seen, key, drop_value, .. }, .. }) = self.stack.last_mut() else {
            return Ok(());
        };
        *key = Some((text.to_owned(), at));
        let first = seen.get(text).copied();
        *drop_value = first.is_some();
        match first {
            None => {
                seen.insert(text.to_owned(), at);
            }
            Some(first) => {
                let path = self.path();
                self.problems.error(
                    at,
                    path,
                    format!("the key `{text}` is written twice, first on line {} column {}", first.line, first.column),
                    "keep one of the two",
                );
            }
        }
        Ok(())
    }

    fn alias(&mut self, id: usize, at: Position) -> Result<(), Stop> {
        if self.waits_for_key() {
            return self.fail(at, "an alias cannot be a key", "write the key out");
        }
        let Some(Anchored { depth, values, text, .. }) = self.anchors.get(&id) else {
            return self.fail(at, "the alias refers to a value that contains it", "write the value out");
        };
        let (depth, values, text) = (*depth, *values, *text);
        if self.stack.len() + depth > MAX_DEPTH {
            return self.fail(at, format!("nested deeper than {MAX_DEPTH} levels"), "flatten the document");
        }
        self.count(values, text, at)?;
        match self.anchors.get(&id).map(|a| a.node.clone()) {
            Some(node) => self.finish(node, 0),
            None => Ok(()),
        }
    }

    /// Puts a complete value where it belongs.
    fn finish(&mut self, node: Node, anchor: usize) -> Result<(), Stop> {
        if anchor != 0 {
            let (depth, values, text) = measure(&node);
            // The kept copy counts as well, or anchors without aliases would double the memory.
            self.count(values, text, node.at)?;
            self.anchors.insert(anchor, Anchored { node: node.clone(), depth, values, text });
        }
        match self.stack.last_mut() {
            Some(Frame { kind: Kind::List(items), .. }) => items.push(node),
            Some(Frame { kind: Kind::Map { entries, key, drop_value, .. }, .. }) => {
                if let Some((key, at)) = key.take()
                    && !*drop_value
                {
                    entries.push((key, at, node));
                }
            }
            // A trailing `---` opens a document with nothing in it: that is no second document.
            None if self.documents > 1 && node.value != Value::Null && self.root.is_some() => {
                return self.fail(
                    node.at,
                    "a second document starts here, and only one is read",
                    "keep one document per file",
                );
            }
            None => {
                if self.root.as_ref().is_none_or(|r| r.value == Value::Null) {
                    self.root = Some(node);
                }
            }
        }
        Ok(())
    }
}

/// Depth, number of values and bytes of text of a finished value.
fn measure(node: &Node) -> (usize, usize, usize) {
    let combine = |(depth, values, text): (usize, usize, usize), child: (usize, usize, usize)| {
        (depth.max(child.0 + 1), values + child.1, text + child.2)
    };
    match &node.value {
        Value::Sequence(items) => items.iter().map(measure).fold((1, 1, 0), combine),
        Value::Mapping(entries) => {
            entries.iter().map(|(k, _, v)| (measure(v), k.len())).fold((1, 1, 0), |sum, (child, key)| {
                let (depth, values, text) = combine(sum, child);
                (depth, values, text + key)
            })
        }
        Value::String(s) => (0, 1, s.len()),
        _ => (0, 1, 0),
    }
}

/// The value of an unquoted scalar, as Go's YAML 1.1 reader types it.
pub(super) fn type_of_plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => return Value::Bool(true),
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Value::Bool(false);
        }
        ".nan" | ".NaN" | ".NAN" => return Value::Float(f64::NAN),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => return Value::Float(f64::INFINITY),
        "-.inf" | "-.Inf" | "-.INF" => return Value::Float(f64::NEG_INFINITY),
        _ => {}
    }
    let text_value = || Value::String(text.to_owned());
    if !text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.')) {
        return text_value();
    }
    // A leading dot is a number only without separators, as in the original.
    let plain = if text.starts_with('.') { text.to_owned() } else { text.replace('_', "") };
    if let Some(integer) = integer(&plain) {
        return i64::try_from(integer).map_or(Value::Float(integer as f64), Value::Integer);
    }
    if looks_like_float(&plain)
        && let Ok(number) = plain.parse::<f64>()
    {
        return Value::Float(number);
    }
    text_value()
}

/// An integer in Go's base-0 notation: `0x`, `0o`, `0b`, a leading zero for octal, else decimal.
fn integer(text: &str) -> Option<i128> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, digits) = match lower.as_str() {
        s if s.starts_with("0x") => (16, &s[2..]),
        s if s.starts_with("0o") => (8, &s[2..]),
        s if s.starts_with("0b") => (2, &s[2..]),
        s if s.len() > 1 && s.starts_with('0') => (8, &s[1..]),
        s => (10, s),
    };
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return None;
    }
    let magnitude = i128::from_str_radix(digits, radix).ok()?;
    Some(if negative { -magnitude } else { magnitude })
}

/// `[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?`
fn looks_like_float(text: &str) -> bool {
    let digits = |s: &str| s.chars().all(|c| c.is_ascii_digit());
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((m, e)) => (m, Some(e.strip_prefix(['-', '+']).unwrap_or(e))),
        None => (unsigned, None),
    };
    let good_mantissa = match mantissa.split_once('.') {
        Some((whole, fraction)) => digits(whole) && digits(fraction) && !(whole.is_empty() && fraction.is_empty()),
        None => !mantissa.is_empty() && digits(mantissa),
    };
    good_mantissa && exponent.is_none_or(|e| !e.is_empty() && digits(e))
}

#[cfg(test)]
mod tests;
