//! promtool: the judge of pages in the Prometheus text format and of queries.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::io::Write;
use std::process::{Command, Stdio};

/// Fails unless promtool accepts `page`. Of its complaints one is let pass, for the names that it is
/// about and for no others: it takes the `d` of `llm_d_`, a prefix that dashboards give, for the unit
/// "day".
#[track_caller]
pub fn accepts(page: &str) {
    let complaints: Vec<String> = complaints(page).into_iter().filter(|line| !is_the_letter_d(line)).collect();
    assert!(complaints.is_empty(), "promtool check metrics:\n{}", complaints.join("\n"));
}

fn is_the_letter_d(line: &str) -> bool {
    line.split_once(' ').is_some_and(|(name, said)| {
        (name.starts_with("llm_d_epp_") || name.starts_with("llm_d_inference_scheduler_"))
            && said == "metric names should not contain abbreviated units"
    })
}

/// Fails unless promtool can parse every one of `queries`.
#[track_caller]
pub fn parses(queries: &[String]) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("rules.yaml");
    let quoted = |query: &String| format!("'{}'", query.replace('\'', "''"));
    let rules: String =
        queries.iter().enumerate().map(|(i, q)| format!("  - {{record: q{i}, expr: {}}}\n", quoted(q))).collect();
    std::fs::write(&file, format!("groups:\n- name: queries\n  rules:\n{rules}")).expect("it can be written");
    let output = Command::new(binary()).args(["check", "rules"]).arg(&file).output().expect("promtool runs");
    let said = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).concat();
    assert!(output.status.success(), "promtool check rules:\n{said}");
    assert!(said.contains(&format!("{} rules found", queries.len())), "{said}");
}

fn binary() -> std::ffi::OsString {
    let named = std::env::vars_os().find(|(name, _)| name == "PROMTOOL_BIN");
    named.map_or_else(|| "promtool".into(), |(_, path)| path)
}

/// What promtool says, line by line.
fn complaints(page: &str) -> Vec<String> {
    let binary = binary();
    let mut child = Command::new(&binary)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| {
            panic!(
                "cannot run promtool ({}: {error}): run scripts/get-promtool, or set PROMTOOL_BIN",
                binary.to_string_lossy()
            )
        });
    let mut stdin = child.stdin.take().expect("piped");
    let page = page.as_bytes().to_vec();
    // From a thread, so that neither side can wait for the other.
    let writer = std::thread::spawn(move || {
        // A promtool that gives up early says why.
        let _ = stdin.write_all(&page);
    });
    let output = child.wait_with_output().expect("promtool ends");
    writer.join().expect("the writer ends");
    let text = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).concat();
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    assert!(output.status.success() || !lines.is_empty(), "promtool failed without a word: {}", output.status);
    lines
}
