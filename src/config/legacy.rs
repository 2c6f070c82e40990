//! Older generations of the document, each rewritten into today's shape with a warning that names
//! the new spelling.
//!
//! One file per change of shape. They work on [`Node`]s, before typed decoding, so that the decoder
//! and everything after it knows one shape only, and positions still point into the file as written.
//! Producers that a translation adds go to the end of `plugins`: the indices in later messages stay
//! those of the file. Accepted without a word: integer weights, and names kept as type aliases.

mod gates;
mod ignored;
mod names;
mod prefix_cache;
mod saturation;
mod sections;

use crate::domain::node::{Node, Position, Problems, Value};

/// Rewrites `document` into today's shape.
pub fn translate(document: &mut Node, problems: &mut Problems) {
    sections::translate(document, problems);
    gates::translate(document, problems);
    names::translate(document, problems);
    saturation::translate(document, problems);
    prefix_cache::translate(document, problems);
    ignored::translate(document, problems);
}

/// The entries of a mapping.
pub(super) fn entries(node: &mut Node) -> Option<&mut Vec<(String, Position, Node)>> {
    match &mut node.value {
        Value::Mapping(entries) => Some(entries),
        _ => None,
    }
}

/// The value of `key`.
pub(super) fn get_mut<'n>(node: &'n mut Node, key: &str) -> Option<&'n mut Node> {
    entries(node)?.iter_mut().find(|(k, _, _)| k == key).map(|(_, _, v)| v)
}

/// Removes `key` and returns its place and value.
fn take(node: &mut Node, key: &str) -> Option<(Position, Node)> {
    let entries = entries(node)?;
    let index = entries.iter().position(|(k, _, _)| k == key)?;
    let (_, at, value) = entries.remove(index);
    Some((at, value))
}

/// Adds `key` to a mapping that does not have it.
fn put(node: &mut Node, key: &str, at: Position, value: Node) {
    if let Some(entries) = entries(node) {
        entries.push((key.to_owned(), at, value));
    }
}

/// The entries of `plugins`.
pub(super) fn plugins(document: &mut Node) -> &mut [Node] {
    match get_mut(document, "plugins").map(|n| &mut n.value) {
        Some(Value::Sequence(items)) => items,
        _ => &mut [],
    }
}

/// The `type` of a plugin entry.
pub(super) fn type_of(plugin: &Node) -> &str {
    plugin.get("type").and_then(Node::as_str).unwrap_or_default()
}

/// The name of a plugin entry: `name`, else the type.
fn name_of(plugin: &Node) -> &str {
    plugin.get("name").and_then(Node::as_str).unwrap_or_else(|| type_of(plugin))
}

pub(super) fn text(at: Position, text: impl Into<String>) -> Node {
    Node { at, value: Value::String(text.into()) }
}

pub(super) fn mapping(at: Position, fields: Vec<(&str, Node)>) -> Node {
    let fields = fields.into_iter().map(|(key, value)| (key.to_owned(), value.at, value)).collect();
    Node { at, value: Value::Mapping(fields) }
}

/// Adds an entry to the end of `plugins`.
pub(super) fn add_plugin(document: &mut Node, at: Position, entry: Node) {
    match get_mut(document, "plugins") {
        Some(Node { value: Value::Sequence(items), .. }) => items.push(entry),
        Some(node) if node.value == Value::Null => node.value = Value::Sequence(vec![entry]),
        Some(_) => {}
        None => put(document, "plugins", at, Node { at, value: Value::Sequence(vec![entry]) }),
    }
}

#[cfg(test)]
mod tests;
