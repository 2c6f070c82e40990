//! Holds the source tree to its architecture: which room may import which, where foreign types may
//! appear, and what the pure rooms must not know. Reads `src/` as text; comments do not count.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Rooms that each room may import. `lifecycle` here means only its clock and handles, which hold no
/// business logic; `main` and `lib` may import everything.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("domain", &[]),
    ("scheduling", &["domain"]),
    ("admission", &["domain", "scheduling"]),
    ("dialect", &["domain", "scheduling"]),
    ("lifecycle", &["domain"]),
    ("pool", &["domain", "lifecycle"]),
    ("signals", &["domain", "scheduling"]),
    ("telemetry", &["domain", "scheduling", "lifecycle"]),
    ("collector", &["domain", "scheduling", "lifecycle"]),
    ("discovery", &["domain", "scheduling", "pool", "lifecycle"]),
    ("config", &["domain", "scheduling", "admission", "dialect", "signals", "collector", "discovery", "lifecycle"]),
    ("extproc", &["domain", "lifecycle", "pb"]),
    (
        "director",
        &["domain", "scheduling", "admission", "dialect", "pool", "telemetry", "extproc", "lifecycle", "signals"],
    ),
    ("admin", &["domain", "lifecycle", "telemetry"]),
    ("sim", &["domain", "lifecycle"]),
    (
        "app",
        &[
            "domain",
            "scheduling",
            "dialect",
            "pool",
            "signals",
            "telemetry",
            "collector",
            "discovery",
            "config",
            "extproc",
            "director",
            "admin",
            "lifecycle",
        ],
    ),
    ("replay", &["app", "config", "domain", "director", "lifecycle", "pool", "scheduling"]),
    ("cli", &["app", "config", "domain", "sim", "lifecycle", "telemetry", "scheduling", "director", "replay"]),
    ("pb", &[]),
];

/// External crates that belong to certain rooms only.
const OWNED: &[(&str, &[&str])] = &[
    // `admin` only for two messages of grpc.health.v1 that tonic-health does not generate.
    ("prost", &["pb", "extproc", "admin"]),
    ("prost_types", &["pb", "extproc"]),
    ("tonic", &["pb", "extproc", "admin", "app"]),
    ("tonic_health", &["admin", "app"]),
    ("kube", &["discovery"]),
    ("k8s_openapi", &["discovery"]),
    ("saphyr_parser", &["config"]),
    ("clap", &["cli"]),
    ("prometheus", &["telemetry"]),
    ("opentelemetry", &["telemetry"]),
    ("opentelemetry_sdk", &["telemetry"]),
    ("opentelemetry_otlp", &["telemetry"]),
];

/// Paths into external crates that belong to one module only.
const OWNED_BY_MODULE: &[(&str, &str)] = &[
    // Of `cel` only the parser and its tree are used, which nothing else may see.
    ("use cel::", "scheduling/cel/compile.rs"),
    ("cel::common::", "scheduling/cel/compile.rs"),
    ("cel::parser::", "scheduling/cel/compile.rs"),
];

/// What the pure rooms must not touch.
const PURE: &[&str] = &["domain", "scheduling"];
const IMPURE: &[&str] = &[
    "tokio::",
    "tonic::",
    "hyper::",
    "kube::",
    "prost::",
    "Instant::now",
    "SystemTime",
    "fastrand::Rng::new",
    "std::env",
];

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// Code lines without comments, doc comments and what follows a test module.
fn code(text: &str) -> Vec<(usize, &str)> {
    let mut lines = Vec::new();
    for (i, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("#[cfg(test)]") {
            break;
        }
        let line = line.split("//").next().unwrap_or("");
        lines.push((i + 1, line));
    }
    lines
}

fn rooms() -> BTreeMap<PathBuf, (String, String)> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    files
        .into_iter()
        .filter(|p| p.file_name().is_none_or(|n| n != "tests.rs"))
        .map(|path| {
            let relative = path.strip_prefix(&src).unwrap().to_path_buf();
            let first = relative.iter().next().unwrap().to_str().unwrap();
            let room = first.trim_end_matches(".rs").to_owned();
            let text = fs::read_to_string(&path).unwrap();
            (relative, (room, text))
        })
        .collect()
}

#[test]
fn rooms_import_only_what_they_may() {
    let mut wrong = Vec::new();
    for (path, (room, text)) in rooms() {
        if room == "lib" || room == "main" {
            continue;
        }
        let allowed = MAY_IMPORT
            .iter()
            .find(|(name, _)| *name == room)
            .unwrap_or_else(|| panic!("{} is in no room of tests/architecture.rs", path.display()))
            .1;
        for (line, code) in code(&text) {
            for part in code.split("crate::").skip(1) {
                let other: String = part.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
                let known = MAY_IMPORT.iter().any(|(name, _)| *name == other);
                if known && other != room && !allowed.contains(&other.as_str()) {
                    wrong.push(format!("src/{}:{line}: `{room}` imports `{other}`", path.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "forbidden imports:\n{}", wrong.join("\n"));
}

#[test]
fn foreign_types_stay_at_their_edge() {
    let mut wrong = Vec::new();
    for (path, (room, text)) in rooms() {
        for (line, code) in code(&text) {
            for (krate, owners) in OWNED {
                let used = code.contains(&format!("{krate}::"))
                    && !code.contains(&format!("_{krate}::"))
                    && !code.contains(&format!("::{krate}::"));
                if used && !owners.contains(&room.as_str()) && room != "main" {
                    wrong.push(format!("src/{}:{line}: `{krate}` outside {owners:?}", path.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn crates_of_one_module_stay_there() {
    let mut wrong = Vec::new();
    let mut used = Vec::new();
    for (path, (_, text)) in rooms() {
        for (line, code) in code(&text) {
            for (crate_path, owner) in OWNED_BY_MODULE.iter().filter(|(crate_path, _)| code.contains(crate_path)) {
                if path == Path::new(owner) {
                    used.push(*owner);
                } else {
                    wrong.push(format!("src/{}:{line}: `{crate_path}` outside src/{owner}", path.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(OWNED_BY_MODULE.iter().all(|(_, owner)| used.contains(owner)), "an owner does not use its crate any more");
}

#[test]
fn the_decision_knows_no_io_no_clock_and_no_global_randomness() {
    let mut wrong = Vec::new();
    for (path, (room, text)) in rooms() {
        if !PURE.contains(&room.as_str()) {
            continue;
        }
        for (line, code) in code(&text) {
            for word in IMPURE {
                if code.contains(word) {
                    wrong.push(format!("src/{}:{line}: `{word}`", path.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn plugins_do_not_import_their_siblings() {
    let mut wrong = Vec::new();
    for (path, (_, text)) in rooms() {
        let parts: Vec<&str> = path.iter().filter_map(|p| p.to_str()).collect();
        let [table @ ("scheduling" | "signals"), .., file] = parts.as_slice() else { continue };
        if parts.len() < 3 || *table == "signals" {
            continue;
        }
        let own = file.trim_end_matches(".rs");
        for (line, code) in code(&text) {
            for group in ["filters", "scorers", "pickers", "handlers"] {
                for part in code.split(&format!("{group}::")).skip(1) {
                    let sibling: String = part.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
                    let is_plugin = Path::new(env!("CARGO_MANIFEST_DIR"))
                        .join(format!("src/scheduling/{group}/{sibling}.rs"))
                        .exists();
                    if is_plugin && sibling != own {
                        wrong.push(format!("src/{}:{line}: imports its sibling `{sibling}`", path.display()));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_module_says_what_it_is_for() {
    let missing: Vec<_> = rooms()
        .into_iter()
        .filter(|(_, (room, text))| room != "pb" && !text.trim_start().starts_with("//!"))
        .map(|(path, _)| path)
        .collect();
    assert!(missing.is_empty(), "modules without `//!` docs: {missing:?}");
}

#[test]
fn no_module_is_called_utils_and_none_uses_mod_rs() {
    let wrong: Vec<_> = rooms()
        .into_keys()
        .filter(|p| p.file_name().is_some_and(|n| n == "mod.rs" || n == "utils.rs" || n == "util.rs"))
        .collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}
