//! What is written about the chart, and what is copied from or into it, is up to date.
//! `UPDATE_DOCS=1 cargo test --test chart` writes the generated parts anew.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use serde_json::Value;

use super::helm::{self, root};

const BEGIN: &str = "<!-- values: begin -->\n";
const END: &str = "<!-- values: end -->";

fn read(path: &str) -> String {
    fs::read_to_string(root(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn updating() -> bool {
    std::env::vars_os().any(|(name, _)| name == "UPDATE_DOCS")
}

/// What the chart renders with each values file that stands in the documentation.
pub fn values_of_the_pages() -> Vec<Vec<Value>> {
    let mut all = Vec::new();
    for page in ["deploy/helm/pointsman/README.md", "docs/tutorials/vllm.md"] {
        for block in read(page).split("```yaml\n").skip(1).filter(|b| b.starts_with("router:")) {
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("values.yaml");
            fs::write(&file, block.split("```").next().unwrap()).unwrap();
            let objects = helm::render(&["--values", file.to_str().unwrap()]);
            all.push(objects.unwrap_or_else(|e| panic!("{page}: {e}\n{block}")));
        }
    }
    assert!(all.len() >= 2, "{}", all.len());
    all
}

/// A value of `values.yaml`: its path, its default and the comment above it.
#[derive(Debug)]
struct Row {
    path: String,
    default: String,
    comment: String,
}

/// Reads `values.yaml` line by line: two spaces a level, a comment stands right above its key.
fn rows() -> Vec<Row> {
    let source = read("deploy/helm/pointsman/values.yaml");
    let mut rows: Vec<Row> = Vec::new();
    let mut above: Vec<(usize, String)> = Vec::new();
    let mut comment = String::new();
    // Below a commented key that has further keys: they are its default, not values of their own.
    let mut inside: Option<(usize, usize)> = None;
    for line in source.lines() {
        let depth = line.len() - line.trim_start().len();
        let line = line.trim();
        if let Some(words) = line.strip_prefix("# ") {
            comment = if comment.is_empty() { words.to_owned() } else { format!("{comment} {words}") };
            continue;
        }
        if line.is_empty() {
            comment.clear();
            continue;
        }
        if let Some((level, row)) = inside {
            if depth > level || (depth == level && line.starts_with("- ")) {
                assert!(comment.is_empty(), "a comment inside a default: {line}");
                let glue = if rows[row].default.is_empty() { "" } else { "; " };
                rows[row].default = format!("{}{glue}{}", rows[row].default, line);
                continue;
            }
            inside = None;
        }
        let (key, value) = line.split_once(':').unwrap_or_else(|| panic!("no key: {line}"));
        above.retain(|(d, _)| *d < depth);
        let path = above.iter().map(|(_, k)| k.as_str()).chain([key]).collect::<Vec<_>>().join(".");
        above.push((depth, key.to_owned()));
        let default = value.trim().to_owned();
        if comment.is_empty() {
            // A group: its members have comments.
            assert!(default.is_empty(), "{path} has no comment");
            continue;
        }
        if default.is_empty() {
            inside = Some((depth, rows.len()));
        }
        rows.push(Row { path, default, comment: std::mem::take(&mut comment) });
    }
    rows
}

#[test]
fn every_value_has_a_comment_and_a_row_in_the_readme() {
    let rows = rows();
    assert!(rows.len() > 100, "{}", rows.len());
    let line = |row: &Row| {
        let cell = |text: &str| text.replace('|', "\\|");
        format!("| `{}` | `{}` | {} |\n", row.path, cell(&row.default), cell(&row.comment))
    };
    let table: String = rows.iter().map(line).collect();
    let table = format!("| Value | Default | Meaning |\n|---|---|---|\n{table}");
    let path = "deploy/helm/pointsman/README.md";
    let page = read(path);
    let (before, rest) = page.split_once(BEGIN).expect("the mark is there");
    let (now, after) = rest.split_once(END).expect("the mark is there");
    if updating() {
        fs::write(root(path), format!("{before}{BEGIN}{table}{END}{after}")).unwrap();
    } else {
        assert!(now == table, "{path} is out of date: run `UPDATE_DOCS=1 cargo test --test chart`");
    }
}

/// The schema knows every value, and each of its keys has a default, apart from those it takes in order to refuse.
#[test]
fn schema_and_values_have_the_same_keys() {
    let schema: Value = serde_json::from_str(&read("deploy/helm/pointsman/values.schema.json")).unwrap();
    let values = helm::documents(&read("deploy/helm/pointsman/values.yaml")).unwrap().remove(0);
    let mut missing = Vec::new();
    compare(&schema, &values, "", &mut missing);
    assert_eq!(missing, Vec::<String>::new());
}

fn compare(schema: &Value, values: &Value, path: &str, missing: &mut Vec<String>) {
    const ONLY_TO_REFUSE: [&str; 7] = [
        ".global",
        ".inferenceExtension",
        ".inferencePool",
        ".experimentalHttpRoute",
        ".inferenceObjectives",
        ".router.monitoring.provider.gmp",
        ".router.proxy.replicas",
    ];
    let (Some(known), Some(given)) = (schema["properties"].as_object(), values.as_object()) else { return };
    if path == ".router.epp.flags" {
        return;
    }
    for key in known.keys().chain(given.keys()).collect::<BTreeSet<_>>() {
        let path = format!("{path}.{key}");
        match (known.get(key), given.get(key)) {
            (Some(schema), Some(values)) => compare(schema, values, &path, missing),
            _ if ONLY_TO_REFUSE.contains(&path.as_str()) => {}
            _ => missing.push(path),
        }
    }
}

/// Every flag can be set, and none that the binary would refuse.
#[test]
fn the_schema_lists_the_flags_of_the_binary() {
    let help = Command::new(env!("CARGO_BIN_EXE_pointsman")).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let named = |line: &str| {
        let rest = line.trim_start().trim_start_matches("-v, ").strip_prefix("--")?;
        Some(rest.split([' ', '[', '=']).next()?.to_owned())
    };
    let flags: BTreeSet<String> = help.lines().filter_map(named).filter(|f| f != "help").collect();
    let flags: BTreeSet<String> = flags.into_iter().filter(|f| f != "version").collect();
    let schema: Value = serde_json::from_str(&read("deploy/helm/pointsman/values.schema.json")).unwrap();
    let listed = &schema["properties"]["router"]["properties"]["epp"]["properties"]["flags"]["properties"];
    let listed: BTreeSet<String> = listed.as_object().unwrap().keys().cloned().collect();
    assert_eq!(listed, flags, "edit `flags` in deploy/helm/pointsman/values.schema.json");
}

/// Helm cannot read outside of the chart, so the chart has a copy.
#[test]
fn the_dashboard_in_the_chart_is_the_dashboard() {
    let (file, copy) = ("deploy/grafana/pointsman.json", "deploy/helm/pointsman/files/grafana-dashboard.json");
    if updating() {
        fs::copy(root(file), root(copy)).unwrap();
    }
    assert!(read(file) == read(copy), "{copy} differs from {file}: run `UPDATE_DOCS=1 cargo test --test chart`");
}

#[test]
fn the_plain_manifests_are_what_the_chart_renders() {
    let output = Command::new(root("scripts/render-manifests"))
        .args(if updating() { &[][..] } else { &["--check"] })
        .output()
        .expect("bash runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn chart_and_crate_have_one_version() {
    let chart = &helm::documents(&read("deploy/helm/pointsman/Chart.yaml")).unwrap()[0];
    for key in ["version", "appVersion"] {
        assert_eq!(chart[key], env!("CARGO_PKG_VERSION"), "{key} in deploy/helm/pointsman/Chart.yaml");
    }
}
