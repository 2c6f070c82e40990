//! The demo does what the README says: behind a real Envoy, questions with one prefix share an endpoint.

use std::collections::BTreeMap;
use std::process::Command;

use pointsman::sim::envoy;

/// Cells of the first table row that starts with `label`, after `after`.
fn row(output: &str, after: &str, label: &str) -> Vec<String> {
    let from = output.find(after).unwrap_or_else(|| panic!("no `{after}` in:\n{output}"));
    let line = output[from..].lines().find(|l| l.trim_start().starts_with(label));
    let line = line.unwrap_or_else(|| panic!("no row `{label}` in:\n{output}"));
    line.split("  ").map(str::trim).filter(|c| !c.is_empty()).map(str::to_owned).collect()
}

#[test]
fn questions_with_one_prefix_share_an_endpoint_and_so_does_the_grown_prompt() {
    let environment: BTreeMap<String, String> = std::env::vars().collect();
    let binary = envoy::find_binary(&environment).unwrap_or_else(|e| panic!("{e}"));
    let output = Command::new(env!("CARGO_BIN_EXE_pointsman"))
        .args(["demo", "--once", "--requests", "48", "--port", "0", "--envoy"])
        .arg(binary)
        .output()
        .expect("the demo starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));

    let system = "behind one system prompt";
    let first = row(&text, system, "1 capital of France?");
    let second = row(&text, system, "2 capital of Germany?");
    let grown = row(&text, system, "4 = 1 + a second question");
    assert_eq!(first[1], second[1], "{text}");
    assert_eq!(first[1], grown[1], "{text}");
    let cached = |cells: &[String]| cells[3].parse::<u64>().unwrap();
    assert_eq!(cached(&first), 0, "{text}");
    assert!(cached(&second) > 0 && cached(&grown) > cached(&second), "{text}");
    // Costs of the endpoint that was picked and of the best other, in milliseconds.
    let number = |cells: &[String], column: usize| cells[column].parse::<f64>().unwrap();
    for warm in [&second, &grown] {
        assert!(number(warm, 7) < number(warm, 8) / 2.0, "{text}");
    }

    // Why request 2 went there: a table of cost terms with every server, the margin, and what would have changed it.
    let from = text.find("why request 2 went there").unwrap_or_else(|| panic!("{text}"));
    let why = &text[from..];
    let why = &why[..why.find("a session of four turns").unwrap()];
    let picked = format!("profile default: {} (", second[1]);
    for words in [
        picked.as_str(),
        "by cost-picker",
        "prefill s",
        "wait s",
        "delay-on-others s",
        "eviction s",
        "balance s",
        "memory s",
        "cost s",
        "  margin ",
        "any one of these would have closed it",
        "outcome: completed, status 200",
    ] {
        assert!(why.contains(words), "{words}:\n{text}");
    }
    for server in ["server-a", "server-b", "server-c", "server-d"] {
        assert!(why.contains(server), "{server}:\n{text}");
    }

    let raw = "raw, blocks of 4 tokens";
    let (first, second) = (row(&text, raw, "1 capital of France?"), row(&text, raw, "2 capital of Germany?"));
    assert_eq!(first[1], second[1], "{text}");
    assert!(cached(&second) > 0, "{text}");

    let session: Vec<String> =
        (1..=4).map(|t| row(&text, "a session of four turns", &format!("turn {t}"))[1].clone()).collect();
    assert!(session.iter().all(|endpoint| *endpoint == session[0]), "{text}");
    let mixed = &text[text.find("48 mixed requests").unwrap_or_else(|| panic!("{text}"))..];
    assert!(mixed.contains("waited in the picker") && mixed.contains("by cost-picker"), "{text}");
}
