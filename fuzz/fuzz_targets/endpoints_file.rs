//! Any bytes as an endpoints file:
//!
//! * the YAML reader gives a tree within its bounds, with places inside the text and unique keys, or an error;
//! * every error says where and what, in a few words however long the text is;
//! * a file without errors gives endpoints with distinct names and distinct usable addresses;
//! * these endpoints, written as JSON, which is YAML, read back as they were.
#![no_main]

use std::collections::BTreeSet;

use libfuzzer_sys::fuzz_target;
use pointsman::config::yaml;
use pointsman::discovery::file::decode;
use pointsman::domain::EndpointSpec;
use pointsman::domain::node::{Node, Position, Problems, Value};
use pointsman::pool::MAX_ENDPOINTS;
use serde_json::json;

fuzz_target!(|data: &[u8]| {
    let mut problems = Problems::default();
    let Some(document) = yaml::read(data, &mut problems) else {
        assert!(!problems.errors.is_empty(), "refused without a word");
        return check_problems(&problems);
    };
    assert!(problems.errors.is_empty());
    let lines = data.iter().filter(|byte| matches!(byte, b'\n' | b'\r')).count() + 1;
    let mut values = 0;
    check(&document, 1, lines, data.len(), &mut values);
    assert!(values <= yaml::MAX_VALUES + 1);

    let specs = decode(&document, &mut problems);
    check_problems(&problems);
    if !problems.errors.is_empty() {
        return;
    }
    assert!(specs.len() <= MAX_ENDPOINTS);
    let names: BTreeSet<_> = specs.iter().map(|spec| (&spec.namespace, &spec.name)).collect();
    let addresses: BTreeSet<_> = specs.iter().map(|spec| spec.address).collect();
    assert_eq!((names.len(), addresses.len()), (specs.len(), specs.len()));
    for spec in &specs {
        assert!(!spec.name.is_empty() && spec.address.port() > 0 && !spec.address.ip().is_unspecified(), "{spec:?}");
    }
    // JSON is longer, and a file has a limit.
    if data.len() < yaml::MAX_BYTES / 8 {
        assert_eq!(reread(&specs), specs);
    }
});

fn check_problems(problems: &Problems) {
    for problem in &problems.errors {
        assert!(!problem.path.is_empty() && !problem.message.is_empty(), "{problem:?}");
        assert!(problem.to_string().len() < 20_000, "too long to be read");
    }
}

fn check(node: &Node, depth: usize, lines: usize, bytes: usize, values: &mut usize) {
    // Leaves may lie one deeper than the deepest list.
    assert!(depth <= yaml::MAX_DEPTH + 1);
    *values += 1;
    check_place(node.at, lines, bytes);
    match &node.value {
        Value::Sequence(items) => items.iter().for_each(|item| check(item, depth + 1, lines, bytes, values)),
        Value::Mapping(entries) => {
            let keys: BTreeSet<_> = entries.iter().map(|(key, _, _)| key).collect();
            assert_eq!(keys.len(), entries.len(), "a key twice");
            for (_, at, value) in entries {
                check_place(*at, lines, bytes);
                check(value, depth + 1, lines, bytes, values);
            }
        }
        _ => {}
    }
}

fn check_place(at: Position, lines: usize, bytes: usize) {
    if at == Position::default() {
        return;
    }
    // What is missing at the end may stand on the line after the last.
    assert!(at.line >= 1 && at.line as usize <= lines + 1, "{at:?} of {lines} lines");
    assert!(at.column >= 1 && at.column as usize <= bytes + 1, "{at:?} of {bytes} bytes");
}

fn reread(specs: &[EndpointSpec]) -> Vec<EndpointSpec> {
    let entry = |spec: &EndpointSpec| {
        json!({
            "name": spec.name, "namespace": spec.namespace, "address": spec.address.ip().to_string(),
            "port": spec.address.port(), "labels": spec.labels,
        })
    };
    let text = json!({ "endpoints": specs.iter().map(entry).collect::<Vec<_>>() }).to_string();
    let mut problems = Problems::default();
    let document = yaml::read(text.as_bytes(), &mut problems);
    let specs = document.map(|document| decode(&document, &mut problems)).unwrap_or_default();
    assert!(problems.errors.is_empty(), "{text}\n{:?}", problems.errors);
    specs
}
