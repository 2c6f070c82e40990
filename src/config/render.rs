//! The resolved configuration as YAML text that reads back to the same configuration.
//!
//! Written by hand, because a serialiser could not put a comment where something was added.

use std::fmt::Write;

use super::Gates;
use super::document::{API_VERSION, KIND};
use super::features::Feature;
use super::resolve::layers::Layers;
use super::resolve::plugins::{Entry, Plugins, is_written};
use super::resolve::profiles::Profiles;
use super::yaml::type_of_plain;
use crate::domain::node::{Node, Value};

/// What is rendered.
pub(super) struct Outline<'a> {
    /// The document in today's shape.
    pub node: &'a Node,
    pub gates: Gates,
    /// What can be switched on, and by whom it is.
    pub features: &'a [Feature],
    pub inject_defaults: bool,
    pub plugins: &'a Plugins<'a>,
    pub profiles: &'a Profiles,
    pub layers: &'a Layers,
}

pub(super) fn document(outline: &Outline<'_>) -> String {
    let Outline { node, gates, features, plugins, profiles, layers, .. } = outline;
    // Written out, a detector asks for metrics; the one that nobody named does not, so it stays unwritten.
    let implied = layers.saturation.filter(|index| plugins.entry(*index).origin.is_some());
    let mut out = String::new();
    // Writing to a String cannot fail; `let _` says so once per line.
    let _ = writeln!(out, "# The configuration in full, with every default written out.");
    let _ = writeln!(out, "# Work that is switched on, and the plugins and flags that ask for it:");
    for feature in features.iter().filter(|f| f.is_on()) {
        let _ = writeln!(out, "#   {}: {}", comment(&feature.what), comment(&feature.by.join(", ")));
    }
    let off: Vec<String> = features.iter().filter(|f| !f.is_on()).map(|f| comment(&f.what)).collect();
    let _ = writeln!(out, "# Work that nobody asks for and that is not done:");
    let _ = writeln!(out, "#   {}", if off.is_empty() { "none".into() } else { off.join("; ") });
    let _ = writeln!(out, "apiVersion: {API_VERSION}\nkind: {KIND}");
    let _ = writeln!(out, "featureGates:");
    let _ = writeln!(out, "- \"flowControl={}\"", gates.flow_control);
    let _ = writeln!(out, "- \"haPopulateNonLeaderDatastore={}\"", gates.populate_standby);

    let _ = writeln!(out, "plugins:");
    for (index, entry) in plugins.entries().iter().enumerate() {
        if Some(index) != implied {
            plugin(&mut out, entry);
        }
    }

    let _ = writeln!(out, "schedulingProfiles:");
    if profiles.implied {
        let _ = writeln!(out, "# added: no profile was written, so this one has every filter, scorer and picker");
    }
    for (name, lines) in &profiles.names {
        let _ = writeln!(out, "- name: {}", text(name));
        let _ = writeln!(out, "  plugins:{}", if lines.is_empty() { " []" } else { "" });
        for line in lines {
            if let Some(origin) = line.origin {
                let _ = writeln!(out, "  # added: {origin}");
            }
            let _ = writeln!(out, "  - pluginRef: {}", text(&line.plugin));
            if let Some(weight) = line.weight {
                let _ = writeln!(out, "    weight: {weight:?}");
            }
        }
    }

    let name = |index: &usize| text(&plugins.entry(*index).declared.name);
    let _ = writeln!(out, "requestHandler:\n  parsers:");
    for parser in &layers.parsers {
        let _ = writeln!(out, "  - pluginRef: {}", name(parser));
    }

    let _ = writeln!(out, "dataLayer:\n  injectDefaults: {}", outline.inject_defaults);
    let _ = writeln!(out, "  sources:{}", if layers.sources.is_empty() { " []" } else { "" });
    for (source, extractors) in &layers.sources {
        let _ = writeln!(out, "  - pluginRef: {}", name(source));
        let _ = writeln!(out, "    extractors:{}", if extractors.is_empty() { " []" } else { "" });
        for extractor in extractors {
            let _ = writeln!(out, "    - pluginRef: {}", name(extractor));
        }
    }
    others(&mut out, node.get("dataLayer"), &["injectDefaults", "sources"]);

    let flow = node.get("flowControl");
    if let Some(index) = &implied {
        let _ =
            writeln!(out, "# default: the saturation detector is {}, on the metrics that others ask for", name(index));
        if flow.is_some_and(|n| matches!(&n.value, Value::Mapping(fields) if !fields.is_empty())) {
            let _ = writeln!(out, "flowControl:");
        }
    } else if let Some(index) = &layers.saturation {
        let _ = writeln!(out, "flowControl:\n  saturationDetector:\n    pluginRef: {}", name(index));
    }
    others(&mut out, flow, &["saturationDetector"]);
    out
}

fn plugin(out: &mut String, entry: &Entry) {
    let Entry { declared, about, origin, .. } = entry;
    if let Some(origin) = origin {
        let _ = writeln!(out, "# added: {}", comment(origin));
    }
    let _ = writeln!(out, "- name: {}", text(&declared.name));
    let _ = writeln!(out, "  type: {}", declared.kind);
    let parameters = declared.parameters.as_ref();
    let unset = about.params.iter().filter(|spec| !is_written(parameters, spec.key));
    let written = unset.filter_map(|spec| Some((spec.key, spec.default_text().filter(|text| !text.is_empty())?)));
    let defaults: Vec<String> = written.map(|(key, default)| format!("{key} {default}")).collect();
    if !defaults.is_empty() {
        let _ = writeln!(out, "  # defaults: {}", comment(&defaults.join(", ")));
    }
    if let Some(parameters) = parameters {
        out.push_str("  parameters:");
        value(out, parameters, 2);
    }
}

/// The fields of a section that are rendered as they were written.
fn others(out: &mut String, section: Option<&Node>, known: &[&str]) {
    let Some(Value::Mapping(entries)) = section.map(|n| &n.value) else { return };
    for (key, _, node) in entries.iter().filter(|(key, _, _)| !known.contains(&key.as_str())) {
        let _ = write!(out, "  {}:", text(key));
        value(out, node, 2);
    }
}

/// Text that cannot end a comment.
fn comment(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() || matches!(c, '\u{85}' | '\u{2028}' | '\u{2029}') { ' ' } else { c })
        .collect()
}

/// A value after `key:`, the key being indented by `indent`.
fn value(out: &mut String, node: &Node, indent: usize) {
    match &node.value {
        Value::Mapping(entries) if !entries.is_empty() => {
            out.push('\n');
            block(out, node, indent + 2);
        }
        Value::Sequence(items) if !items.is_empty() => {
            out.push('\n');
            block(out, node, indent);
        }
        _ => {
            let _ = writeln!(out, " {}", scalar(node));
        }
    }
}

/// A list or mapping as lines, each indented by `indent`.
fn block(out: &mut String, node: &Node, indent: usize) {
    match &node.value {
        Value::Mapping(entries) if !entries.is_empty() => {
            for (key, _, node) in entries {
                let _ = write!(out, "{:indent$}{}:", "", text(key));
                value(out, node, indent);
            }
        }
        Value::Sequence(items) if !items.is_empty() => {
            for item in items {
                let mut lines = String::new();
                block(&mut lines, item, indent + 2);
                // The item's first line follows the dash.
                let _ = write!(out, "{:indent$}- {}", "", lines.get(indent + 2..).unwrap_or(&lines));
            }
        }
        _ => {
            let _ = writeln!(out, "{:indent$}{}", "", scalar(node));
        }
    }
}

fn scalar(node: &Node) -> String {
    match &node.value {
        Value::Null => "null".into(),
        Value::Bool(b) => b.to_string(),
        Value::Integer(i) => i.to_string(),
        Value::Float(x) if x.is_nan() => ".nan".into(),
        Value::Float(x) if x.is_infinite() => if *x > 0.0 { ".inf" } else { "-.inf" }.into(),
        // Debug keeps the point or exponent, so that the number stays a float.
        Value::Float(x) => format!("{x:?}"),
        Value::String(s) => text(s),
        Value::Sequence(_) => "[]".into(),
        Value::Mapping(_) => "{}".into(),
    }
}

/// Text, quoted unless it is a plain word that stays text.
fn text(text: &str) -> String {
    let word = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/'))
        && matches!(type_of_plain(text), Value::String(_));
    if word {
        return text.to_owned();
    }
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            '\r' => quoted.push_str("\\r"),
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}') => {
                let _ = write!(quoted, "\\U{:08x}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::yaml;
    use crate::domain::node::{Position, Problems};
    use proptest::prelude::*;

    fn places_gone(node: &Node) -> Node {
        let value = match &node.value {
            Value::Sequence(items) => Value::Sequence(items.iter().map(places_gone).collect()),
            Value::Mapping(entries) => Value::Mapping(
                entries.iter().map(|(k, _, v)| (k.clone(), Position::default(), places_gone(v))).collect(),
            ),
            other => other.clone(),
        };
        Node { at: Position::default(), value }
    }

    fn any_node() -> impl Strategy<Value = Node> {
        let node = |value| Node { at: Position::default(), value };
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::Bool),
            any::<i64>().prop_map(Value::Integer),
            any::<f64>().prop_filter("NaN is not equal to itself", |x| !x.is_nan()).prop_map(Value::Float),
            "[ -~\\n\\t]{0,12}".prop_map(Value::String),
            any::<String>().prop_map(Value::String),
            prop_oneof![Just("yes"), Just("0x1"), Just("null"), Just("- a"), Just("a: b"), Just("#x"), Just("1e3")]
                .prop_map(|s| Value::String(s.into())),
        ]
        .prop_map(node);
        leaf.prop_recursive(4, 40, 5, move |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::Sequence),
                proptest::collection::btree_map("[a-z<]{1,3}|[ -~]{0,5}", inner, 0..5).prop_map(|entries| {
                    Value::Mapping(entries.into_iter().map(|(k, v)| (k, Position::default(), v)).collect())
                }),
            ]
            .prop_map(node)
        })
    }

    proptest! {
        #[test]
        fn any_value_reads_back_as_it_was(node in any_node()) {
            let mut out = String::from("v:");
            value(&mut out, &node, 0);
            let mut problems = Problems::default();
            let back = yaml::read(out.as_bytes(), &mut problems);
            prop_assert!(problems.errors.is_empty(), "{out}\n{:?}", problems.errors);
            let back = back.as_ref().and_then(|doc| doc.get("v")).map(places_gone);
            prop_assert_eq!(back, Some(places_gone(&node)), "{}", out);
        }
    }
}
