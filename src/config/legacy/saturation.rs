//! GAIE v1.2 to v1.4 wrote the thresholds of saturation at the top of the document:
//! `saturationDetector: {queueDepthThreshold, kvCacheUtilThreshold, metricsStalenessThreshold}`.
//! They are the parameters of a `utilization-detector` now.

use super::{add_plugin, get_mut, mapping, name_of, plugins, put, take, text};
use crate::domain::node::{Node, Problems, Value};

const INLINE: [&str; 3] = ["queueDepthThreshold", "kvCacheUtilThreshold", "metricsStalenessThreshold"];
const KIND: &str = "utilization-detector";

pub(super) fn translate(document: &mut Node, problems: &mut Problems) {
    let inline = document.get("saturationDetector").is_some_and(|n| INLINE.iter().any(|key| n.get(key).is_some()));
    if !inline {
        return;
    }
    let Some((at, mut detector)) = take(document, "saturationDetector") else { return };
    let path = "saturationDetector";
    if detector.get("pluginRef").is_some() {
        problems.error(
            detector.at,
            path,
            "`pluginRef` and inline thresholds are both there",
            format!("move the thresholds to the parameters of a plugin of type {KIND}"),
        );
        return;
    }
    let fields = INLINE.iter().filter_map(|key| take(&mut detector, key).map(|(_, value)| (*key, value))).collect();
    // What is left is unknown; the strict decoder of the plugin says so at the right place.
    let mut parameters = mapping(detector.at, fields);
    if let (Value::Mapping(rest), Value::Mapping(known)) = (detector.value, &mut parameters.value) {
        known.extend(rest);
    }
    let taken: Vec<&str> = plugins(document).iter().map(name_of).collect();
    let name = if taken.contains(&KIND) { "inline-utilization-detector" } else { KIND };
    problems.warn(
        at,
        path,
        "thresholds at the top of the document are read as a plugin",
        format!(
            "declare `- type: {KIND}` with these parameters and write `flowControl: {{saturationDetector: {{pluginRef: {name}}}}}`"
        ),
    );
    let entry = mapping(at, vec![("name", text(at, name)), ("type", text(at, KIND)), ("parameters", parameters)]);
    add_plugin(document, at, entry);
    let reference = mapping(at, vec![("pluginRef", text(at, name))]);
    match get_mut(document, "flowControl") {
        Some(flow) if flow.get("saturationDetector").is_none() => put(flow, "saturationDetector", at, reference),
        Some(_) => {}
        None => put(document, "flowControl", at, mapping(at, vec![("saturationDetector", reference)])),
    }
}
