//! What README and `docs/` say is checked where a machine can: links lead somewhere, configurations load, commands
//! parse, the files and tests that are named exist, and the ready-made Envoy configuration is what its template gives.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{env, fs};

use pointsman::cli::flags::parse;
use pointsman::config::{self, Purpose, Settings, Tables};
use pointsman::discovery::file;
use pointsman::domain::node::Problems;
use pointsman::scheduling::cel::attributes;
use pointsman::sim::envoy::Bootstrap;

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> String {
    fs::read_to_string(root(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Every page as (path, text).
fn pages() -> Vec<(String, String)> {
    let mut paths: Vec<String> = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md"].map(String::from).to_vec();
    for folder in ["docs", "docs/tutorials", "deploy", "deploy/helm/pointsman"] {
        for entry in fs::read_dir(root(folder)).expect("the folder is there") {
            let name = entry.expect("it can be listed").file_name().into_string().expect("UTF-8");
            if name.ends_with(".md") {
                paths.push(format!("{folder}/{name}"));
            }
        }
    }
    paths.sort();
    paths.into_iter().map(|p| (p.clone(), read(&p))).collect()
}

/// The parts of `text` outside and inside fences; the latter with the word after the opening fence.
fn split(text: &str) -> (String, Vec<(String, String)>) {
    let (mut prose, mut blocks) = (String::new(), Vec::new());
    let mut open: Option<(String, String)> = None;
    for line in text.lines() {
        match (&mut open, line.trim().strip_prefix("```")) {
            (None, Some(word)) => open = Some((word.to_owned(), String::new())),
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (None, None) => prose.extend([line, "\n"]),
            (Some((_, block)), None) => block.extend([line, "\n"]),
        }
    }
    assert!(open.is_none(), "a fence is not closed");
    (prose, blocks)
}

/// The fragment that GitHub gives a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

#[test]
fn every_relative_link_leads_somewhere() {
    let mut links = 0;
    for (page, text) in pages() {
        let folder = Path::new(&page).parent().expect("a file is in a folder").to_owned();
        let (prose, _) = split(&text);
        for part in prose.split("](").skip(1) {
            let target = part.split(')').next().unwrap_or_default();
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            links += 1;
            let (file, fragment) = target.split_once('#').map_or((target, None), |(f, a)| (f, Some(a)));
            let path = if file.is_empty() { PathBuf::from(&page) } else { folder.join(file) };
            assert!(root(&path.to_string_lossy()).exists(), "{page} links to {target}, which does not exist");
            if let Some(fragment) = fragment {
                let (prose, _) = split(&read(&path.to_string_lossy()));
                let found = prose
                    .lines()
                    .filter_map(|l| l.strip_prefix('#'))
                    .any(|l| anchor(l.trim_start_matches('#')) == fragment);
                assert!(found, "{page} links to {target}: there is no such heading");
            }
        }
    }
    assert!(links > 20, "{links} links found");
}

#[test]
fn every_configuration_loads() {
    let (mut configurations, mut endpoints) = (0, 0);
    for (page, text) in pages() {
        for (word, block) in split(&text).1.iter().filter(|(word, _)| word == "yaml") {
            if block.starts_with("router:") {
                // Values of the Helm chart, which tests/chart.rs renders.
            } else if block.contains("apiVersion: llm-d.ai/") {
                configurations += 1;
                let loaded = config::resolve(
                    &page,
                    Some(block.as_bytes()),
                    Settings::default(),
                    &Tables::standard(),
                    Purpose::Check,
                );
                let config = loaded.unwrap_or_else(|e| panic!("{page}: a {word} block does not load:\n{e}\n{block}"));
                assert!(config.warnings.is_empty(), "{page}: {:?}", config.warning_lines().collect::<Vec<_>>());
            } else if block.starts_with("endpoints:") {
                endpoints += 1;
                let mut problems = Problems::default();
                let node = config::yaml::read(block.as_bytes(), &mut problems).expect("YAML");
                assert!(!file::decode(&node, &mut problems).is_empty(), "{page}:\n{block}");
                assert!(problems.errors.is_empty(), "{page}: {:?}", problems.errors);
            }
        }
    }
    assert!(configurations >= 2 && endpoints >= 1, "{configurations} configurations, {endpoints} endpoints files");
}

#[test]
fn every_attribute_of_expressions_is_documented() {
    let text = read("docs/configuration.md");
    let table = text.split("### Expressions").nth(1).and_then(|t| t.split("### Errors").next()).expect("the section");
    for attribute in attributes::TABLE {
        let name = format!("`{}.{}", attribute.group, attribute.field);
        let end = if attribute.item.is_map() { "['" } else { "`" };
        assert!(table.contains(&format!("{name}{end}")), "{name} is not documented");
    }
}

#[test]
fn every_command_line_parses() {
    let mut commands = 0;
    for (page, text) in pages() {
        let joined = split(&text).1.into_iter().map(|(_, block)| block).collect::<String>().replace("\\\n", " ");
        for line in joined.lines().map(str::trim) {
            let words: Vec<&str> = line.split_whitespace().take_while(|w| !matches!(*w, "&" | "#" | "|")).collect();
            let Some((program, args)) = words.split_first() else { continue };
            if Path::new(program).file_name().is_none_or(|name| name != "pointsman") {
                continue;
            }
            commands += 1;
            if let Err(problems) = parse(args.iter().map(|a| (*a).to_owned()), &BTreeMap::new()) {
                panic!("{page}: `{line}` is not understood: {problems:?}");
            }
        }
    }
    assert!(commands >= 3, "{commands} commands found");
}

/// In `docs/requirements.md`, `path.rs` must exist and `path.rs::name` must hold that function.
#[test]
fn the_files_and_tests_of_the_requirements_exist() {
    let (prose, _) = split(&read("docs/requirements.md"));
    let mut tests = 0;
    for quoted in prose.split('`').skip(1).step_by(2) {
        let (path, name) = quoted.split_once("::").map_or((quoted, None), |(p, n)| (p, Some(n)));
        if !path.ends_with(".rs") {
            continue;
        }
        let source = read(path);
        if let Some(name) = name {
            assert!(source.contains(&format!("fn {name}(")), "docs/requirements.md: {path} has no test {name}");
            tests += 1;
        }
    }
    assert!(tests > 30, "{tests} tests named");
    for number in 1..=31 {
        let row = format!("| R-{number:02} |");
        assert_eq!(prose.matches(&row).count(), 1, "{row}");
    }
}

/// `config/envoy/quick-start.yaml` is the first template with the ports of the README filled in, and
/// `config/envoy/request-only.yaml` the same without the response phase.
#[test]
fn the_ready_made_envoy_configurations_are_up_to_date() {
    for (file, response_phase) in [("config/envoy/quick-start.yaml", true), ("config/envoy/request-only.yaml", false)] {
        let bootstrap = Bootstrap {
            listen_port: 8081,
            admin_port: 19000,
            epp_tls: true,
            subset_header: false,
            response_phase,
            health_interval: Duration::from_secs(2),
            ..Bootstrap::original_dst(([127, 0, 0, 1], 9002).into())
        };
        let rendered = bootstrap.render().expect("the template is complete");
        let body: Vec<&str> = rendered.lines().skip_while(|l| l.starts_with('#')).collect();
        let purpose = match response_phase {
            true => "both on this machine; see \"Without a cluster\" in README.md.",
            false => {
                "without the response phase: cheaper, and\n# docs/operations.md (\"Without the response phase\") says what is lost."
            }
        };
        let fresh = format!(
            "\
# Envoy in front of a picker with the default flags, {purpose}
# Made from original-dst.yaml; do not edit it, run `UPDATE_DOCS=1 cargo test --test docs`.
#
# Clients: 127.0.0.1:8081. Admin: 127.0.0.1:19000. Picker: 127.0.0.1:9002.
{}
",
            body.join("\n")
        );
        if env::var_os("UPDATE_DOCS").is_some() {
            fs::write(root(file), &fresh).expect("it can be written");
        }
        let kept = fs::read_to_string(root(file)).unwrap_or_default();
        assert!(kept == fresh, "{file} differs from its template: run UPDATE_DOCS=1 cargo test --test docs");
    }
}
