//! `docs/plugins.md` is made from the plugin tables. This test writes the page anew and compares.
//!
//! After a change of a table: `UPDATE_DOCS=1 cargo test --test plugin_reference`.

use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs};

use pointsman::admission;
use pointsman::collector::plugins::{CustomMetric, EngineConfig};
use pointsman::config::Tables;
use pointsman::scheduling::filters::{label_selector, utilization};
use pointsman::scheduling::params::{ParamSpec, Params};
use pointsman::scheduling::plugin::{About, Stability};
use pointsman::scheduling::{filters, handlers, pickers, responses, scorers, session_affinity};
use pointsman::signals;

const HOW: &str = "UPDATE_DOCS=1 cargo test --test plugin_reference";

const HEAD: &str = "\
# Plugins

Every `type` that a configuration of this version can name, with its parameters. How they are put together is in
[configuration.md](configuration.md); how to write one in [adding-a-plugin.md](adding-a-plugin.md). Decoding is strict: a
parameter that is not listed is an error, and so is a value outside its range. A parameter without a default is absent
unless it is written. Types are beta, which means that files that name them keep working, unless they are marked
experimental.

This page is made from the tables in the source. Do not edit it; run `UPDATE_DOCS=1 cargo test --test plugin_reference`.
";

/// The sections of the page, in the order of a request.
fn sections() -> Vec<(&'static str, &'static str, Vec<About>)> {
    let tables = Tables::standard();
    let rows = |rows: &[pointsman::scheduling::plugin::Row]| rows.iter().map(|r| r.about).collect::<Vec<_>>();
    let kinds = |kinds: &[pointsman::config::tables::Kind]| kinds.iter().map(|k| k.about).collect::<Vec<_>>();
    vec![
        ("Parsers", "Read a request by its path; named in `requestHandler.parsers`.", kinds(&tables.parsers)),
        (
            "Producers",
            "Find facts about a request before scheduling. One that a plugin reads and nobody declared is added.",
            rows(signals::TABLE),
        ),
        ("Filters", "Remove candidates; named in a profile.", rows(filters::TABLE)),
        ("Scorers", "Rate candidates from 0 to 1; named in a profile, with a weight.", rows(scorers::TABLE)),
        ("Pickers", "Choose among rated candidates; one for each profile.", rows(pickers::TABLE)),
        (
            "Dispatch",
            "Says when requests are sent; works by being declared, one in a configuration. Without it each is sent at once.",
            rows(admission::TABLE),
        ),
        ("Profile handlers", "Decide which profiles run.", rows(handlers::TABLE)),
        ("Data sources", "Fetch load from the model servers; named in `dataLayer.sources`.", kinds(&tables.sources)),
        ("Extractors", "Say what fetched series mean; named under a data source.", kinds(&tables.extractors)),
        ("Discovery", "Where endpoints come from; named in `dataLayer.discovery`.", kinds(&tables.discovery)),
        (
            "Saturation detectors",
            "Say how full the pool is; one is named in `flowControl.saturationDetector`. Where it says 1 or more, requests of \
             negative priority are refused. In a profile a detector is a filter that drops the endpoints that are full.",
            kinds(&tables.saturation),
        ),
        ("Response plugins", "Follow the answer; they work by being declared.", rows(responses::TABLE)),
    ]
}

/// The parameters of the entries of lists and of nested mappings.
fn nested(kind: &str) -> Vec<(&'static str, &'static [ParamSpec])> {
    match kind {
        "core-metrics-extractor" => {
            vec![("engineConfigs", EngineConfig::SPEC), ("customMetrics", CustomMetric::SPEC)]
        }
        "session-affinity-scorer" | "session-affinity-filter" => vec![("sources", session_affinity::Source::SPEC)],
        "utilization-filter" => vec![("conditions", utilization::Condition::SPEC)],
        "label-selector-filter" => vec![("matchExpressions", label_selector::Expression::SPEC)],
        _ => Vec::new(),
    }
}

/// A default as an operator writes it; empty if the parameter is absent by default.
fn default_text(spec: &ParamSpec) -> String {
    let text = spec
        .default_text()
        .unwrap_or_else(|| panic!("{}: ParamSpec::default_text cannot read {}", spec.key, spec.default));
    if text.is_empty() { text } else { format!("`{text}`") }
}

fn number(source: &str) -> String {
    let plain = source.replace('_', "");
    plain.strip_suffix(".0").map_or(plain.clone(), str::to_owned)
}

/// A range or rule as a person reads it.
fn range_text(spec: &ParamSpec) -> String {
    let range = spec.range.strip_prefix("IfGiven(").and_then(|r| r.strip_suffix(')')).unwrap_or(spec.range);
    match range {
        "" => String::new(),
        "IsPath" => "a URL path that starts with `/`".into(),
        "NotEmpty" => "not empty".into(),
        "UpTo(Duration::from_secs(3600))" => "at most 1h".into(),
        "0.0..=MAX_YEARS" => "from 0 (at most ten years)".into(),
        _ => match range.split_once("..") {
            Some((from, "")) => format!("from {}", number(from)),
            Some((from, to)) => format!("{} to {}", number(from), number(to.trim_start_matches('='))),
            None => panic!("{}: say in this test how the rule {range} reads", spec.key),
        },
    }
}

fn type_text(spec: &ParamSpec) -> String {
    match spec.ty.strip_prefix("one of ") {
        Some(words) => words.split(' ').map(|w| format!("`{w}`")).collect::<Vec<_>>().join(" or "),
        None => spec.ty.to_owned(),
    }
}

fn parameters(out: &mut String, specs: &[ParamSpec]) {
    out.push_str("| Parameter | Type | Default | Range | Meaning |\n|---|---|---|---|---|\n");
    for spec in specs {
        let meaning = spec.about.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|");
        let cells = [type_text(spec), default_text(spec), range_text(spec), meaning];
        let cells: Vec<String> =
            cells.into_iter().map(|c| if c.is_empty() { " ".into() } else { format!(" {c} ") }).collect();
        writeln!(out, "| `{}` |{}|", spec.key, cells.join("|")).expect("writing to a text");
    }
}

fn plugin(out: &mut String, about: &About) {
    writeln!(out, "\n### `{}`\n\n{}", about.kind, about.summary).expect("writing to a text");
    if about.stability == Stability::Alpha {
        out.push_str("\nExperimental: needs `--allow-experimental-plugins`.\n");
    }
    if !about.aliases.is_empty() {
        let names: Vec<String> = about.aliases.iter().map(|a| format!("`{a}`")).collect();
        writeln!(out, "\nOlder name, accepted with a warning: {}.", names.join(", ")).expect("writing to a text");
    }
    if !about.params.is_empty() {
        out.push('\n');
        parameters(out, about.params);
    }
    for (path, specs) in nested(about.kind) {
        writeln!(out, "\nEach entry of `{path}`:\n").expect("writing to a text");
        parameters(out, specs);
    }
    writeln!(out, "\n```yaml\n{}\n```", about.sample.trim_end()).expect("writing to a text");
}

fn page() -> String {
    let mut out = String::from(HEAD);
    for (title, what, abouts) in sections() {
        writeln!(out, "\n## {title}\n\n{what}").expect("writing to a text");
        for about in &abouts {
            plugin(&mut out, about);
        }
    }
    out
}

#[test]
fn every_type_is_in_a_section_once() {
    let mut listed: Vec<&str> = sections().iter().flat_map(|(_, _, a)| a.iter().map(|a| a.kind)).collect();
    let tables = Tables::standard();
    let mut all: Vec<&str> = tables.abouts().iter().map(|a| a.kind).collect();
    listed.sort_unstable();
    all.sort_unstable();
    assert_eq!(listed, all);
}

#[test]
fn the_page_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/plugins.md");
    let fresh = page();
    if env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &fresh).expect("docs/plugins.md can be written");
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    if let Some((line, (is, should))) =
        written.lines().chain([""]).zip(fresh.lines()).enumerate().find(|(_, (is, should))| is != should)
    {
        panic!(
            "docs/plugins.md differs from the tables at line {}:\n  is     {is}\n  should {should}\nrun {HOW}",
            line + 1
        );
    }
    assert_eq!(written.len(), fresh.len(), "docs/plugins.md has lines that the tables do not give: run {HOW}");
}
