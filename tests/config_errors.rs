//! The configuration room from outside, with the real plugin tables: samples and files of every
//! older generation load, and what is wrong is reported as an operator sees it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use pointsman::cli::flags::{Invocation, parse};
use pointsman::cli::{EXIT_USAGE, check};
use pointsman::config::{Config, Purpose, Settings, Source, Tables, load};

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn settings() -> Settings {
    Settings { allow_experimental: true, ..Settings::default() }
}

fn config(path: &str) -> Config {
    let source = Source::File(root(path));
    load(&source, settings(), &Tables::standard(), Purpose::Check).unwrap_or_else(|e| panic!("{e}"))
}

fn check_text(text: &str) -> (u8, String, String) {
    let args = ["check".to_owned(), format!("--config-text={text}")];
    let Ok(Invocation::Check(start)) = parse(args, &BTreeMap::new()) else { panic!("check was not understood") };
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = check::run(*start, &Tables::standard(), &mut out, &mut err).expect("writing to memory");
    (code, String::from_utf8(out).expect("UTF-8"), String::from_utf8(err).expect("UTF-8"))
}

#[test]
fn a_file_that_is_not_there_is_an_error_with_a_fix() {
    let source = Source::File(root("config/no-such-file.yaml"));
    let error = load(&source, settings(), &Tables::standard(), Purpose::Check).expect_err("no file").to_string();
    assert!(error.contains("cannot be read") && error.contains("fix: check the path"), "{error}");
}

#[test]
fn check_reports_all_errors_and_exits_64() {
    let (code, out, err) = check_text("apiVersion: v1\nkind: EndpointPickerConfig\nplugin: []\nfeatureGates: [x]\n");
    assert_eq!((code, out.as_str()), (EXIT_USAGE, ""));
    // The order is that of the file; other errors may stand between.
    let mut rest = err.as_str();
    for line in [
        "error: --config-text:1:13: apiVersion: `v1` is not an API version of EndpointPickerConfig; fix: ",
        "error: --config-text:3:1: plugin: unknown field `plugin`; fix: did you mean `plugins`?",
        "error: --config-text:4:16: featureGates[0]: unknown feature gate `x`; fix: remove it; known: flowControl",
    ] {
        let at = rest.find(line).unwrap_or_else(|| panic!("no line {line} in order in\n{err}"));
        rest = &rest[at..];
    }
    assert!(err.ends_with(" error(s)\n"), "{err}");
}

#[test]
fn types_without_a_row_are_told_from_nonsense() {
    let head = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n";
    let (_, _, err) = check_text(&format!("{head}plugins: [{{type: latency-scorer}}, {{type: zzzzzzzzzz}}]\n"));
    assert!(err.contains("`latency-scorer` is known to llm-d-router but not supported by this version"), "{err}");
    assert!(err.contains("unknown plugin type `zzzzzzzzzz`; the known types are"), "{err}");
}

#[test]
fn a_wrong_expression_has_its_place_rule_and_fix() {
    let head = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nplugins:\n";
    let (code, _, err) = check_text(&format!(
        "{head}- type: cel-filter\n  parameters:\n    expression: endpoint.waiting < 3\n\
         - type: cel-scorer\n  parameters: {{expression: \"1.0 - \"}}\n\
         - name: other\n  type: cel-scorer\n  parameters:\n    expression: \"endpoint.metrics['no series']\"\n"
    ));
    assert_eq!(code, EXIT_USAGE);
    for line in [
        "6:17: plugins[0].parameters.expression: there is no attribute `endpoint.waiting`; the attributes are request.model, ",
        "; fix: did you mean `endpoint.",
        "8:28: plugins[1].parameters.expression: the expression is not CEL: line 1, column 7: ",
        "plugins[2].parameters: no engine has a custom metric `no series`, and it is not the name of a series; fix: ",
    ] {
        assert!(err.contains(line), "no {line} in\n{err}");
    }
}

#[test]
fn check_says_what_an_expression_switches_on() {
    let (code, out, err) = check_text(
        "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nplugins:\n\
         - type: core-metrics-extractor\n  parameters:\n    engineConfigs:\n    - name: vllm\n      customMetrics:\n\
         \x20     - {attributeKey: no series, metricSpec: x}\n\
         - name: mine\n  type: cel-scorer\n  parameters:\n\
         \x20   expression: endpoint.metrics['no series'] + endpoint.metrics['vllm:num_preemptions_total'] + request.prompt_tokens\n",
    );
    assert!(code == 0 && !err.contains("warning"), "{err}");
    for line in
        ["metric: attribute no series", "metric: attribute vllm:num_preemptions_total", "prompts of the request body"]
    {
        assert!(out.lines().any(|l| l.contains(line) && l.contains("mine")), "no {line} in\n{out}");
    }
    assert!(!out.contains("KV cache usage: mine"), "{out}");
}

const SAMPLES: [&str; 7] = [
    "config/default.yaml",
    "config/weighted-scorers.yaml",
    "config/bounded-hash.yaml",
    "config/prefix-and-load.yaml",
    "config/session-affinity.yaml",
    "config/payload-agnostic.yaml",
    "config/file-discovery.yaml",
];

#[test]
fn the_samples_load_without_a_warning_and_read_back() {
    for sample in SAMPLES {
        let config = config(sample);
        assert!(config.warnings.is_empty(), "{sample}: {:?}", config.warning_lines().collect::<Vec<_>>());
        let again = load(&Source::Text(config.render().into()), settings(), &Tables::standard(), Purpose::Check)
            .unwrap_or_else(|e| panic!("{sample}: {}\n{e}", config.render()));
        let scorers = |c: &Config| {
            let profiles = c.scheduler.profiles.iter();
            profiles.flat_map(|p| p.scorers.iter().map(|s| (s.name.clone(), s.weight))).collect::<Vec<_>>()
        };
        assert_eq!(scorers(&config), scorers(&again), "{sample}");
        // What was added by default is declared in the rendering and so built earlier: only the order differs.
        let needs = |c: &Config| {
            let mut needs = c.registry.needs.clone();
            needs.values_mut().for_each(|names| names.sort());
            needs
        };
        assert_eq!(needs(&config), needs(&again), "{sample}");
    }
}

#[test]
fn files_of_every_generation_load() {
    for (file, warnings) in [
        ("gaie-v0.5.yaml", &["plugins[1].type", "plugins[2].parameters"][..]),
        ("llm-d-v0.3.yaml", &["plugins[1].parameters.mode", "requestTimeout"]),
        ("gaie-v1.1.yaml", &["plugins[2].parameters"]),
        ("gaie-v1.2.yaml", &["featureGates[0]", "plugins[1].parameters", "saturationDetector"]),
        ("gaie-v1.3.yaml", &["featureGates[1]", "data: "]),
        ("gaie-v1.4.yaml", &["plugins[1].parameters", "flowControl"]),
        ("gaie-v1.5.yaml", &["featureGates[0]", "saturationDetector", "parser"]),
        ("llm-d-router.yaml", &[]),
    ] {
        let config = config(&format!("tests/data/config/{file}"));
        let shown = config.warning_lines().collect::<Vec<_>>().join("\n");
        for path in warnings {
            assert!(shown.contains(path), "{file}: no warning about {path}\n{shown}");
        }
        assert_eq!(warnings.is_empty(), shown.is_empty(), "{file}: {shown}");
        assert_eq!(config.scheduler.profiles.len(), 1, "{file}");
        assert!(!config.scheduler.profiles[0].scorers.is_empty(), "{file}");
    }
}

#[test]
fn every_default_plugin_exists() {
    let config = load(&Source::Default, Settings::default(), &Tables::standard(), Purpose::Check)
        .unwrap_or_else(|e| panic!("{e}"));
    assert!(config.warnings.is_empty());
    assert_eq!(config.producers.len(), 2);
    assert_eq!(config.parsers.len(), 4);
}

#[test]
fn the_sample_of_every_type_loads() {
    let tables = Tables::standard();
    for about in tables.abouts() {
        let text = format!("apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nplugins:\n{}\n", about.sample);
        if let Err(error) = load(&Source::Text(text.clone()), settings(), &tables, Purpose::Check) {
            panic!("{}:\n{text}\n{error}", about.kind);
        }
    }
}
