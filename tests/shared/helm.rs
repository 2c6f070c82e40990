//! The chart as real Helm renders it.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// The release that every test renders.
pub const RELEASE: &str = "demo";
/// Its namespace.
pub const NAMESPACE: &str = "llm";

/// A path inside the project.
pub fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The values files of `tests/data/helm` by name without `.yaml`, each with the modes that it is for.
pub const CASES: [(&str, &[&str]); 7] = [
    ("gateway-istio", &["gateway"]),
    ("standalone-envoy", &["standalone"]),
    ("monitoring", &["gateway", "standalone"]),
    ("high-availability", &["gateway", "standalone"]),
    ("custom-plugins", &["gateway", "standalone"]),
    ("roles", &["gateway", "standalone"]),
    ("everything", &["gateway", "standalone"]),
];

/// Every object of a release with a values file of `tests/data/helm` in a mode.
#[track_caller]
pub fn template(case: &str, mode: &str) -> Vec<Value> {
    let file = root(&format!("tests/data/helm/{case}.yaml")).display().to_string();
    render(&["--values", &file, "--set", &format!("mode={mode}")]).unwrap_or_else(|e| panic!("{case}, {mode}: {e}"))
}

/// Every object of a release with these `--set` values and the labels `app=vllm`.
#[track_caller]
pub fn template_set(sets: &[&str]) -> Vec<Value> {
    try_set(sets).unwrap_or_else(|e| panic!("{sets:?}: {e}"))
}

/// As [`template_set`], or what Helm says is wrong.
pub fn try_set(sets: &[&str]) -> Result<Vec<Value>, String> {
    let with_labels = [&["router.modelServers.matchLabels.app=vllm"][..], sets].concat();
    let args: Vec<&str> = with_labels.iter().flat_map(|set| ["--set", *set]).collect();
    render(&args)
}

/// Runs `helm template` with these further arguments.
pub fn render(args: &[&str]) -> Result<Vec<Value>, String> {
    let chart = root("deploy/helm/pointsman").display().to_string();
    let all = [&["template", RELEASE, &chart, "--namespace", NAMESPACE, "--kube-version", "1.35.0"][..], args].concat();
    let output = helm(&all);
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let text = String::from_utf8(output.stdout).map_err(|e| e.to_string())?;
    documents(&text)
}

/// The YAML documents of `text`, without empty ones.
pub fn documents(text: &str) -> Result<Vec<Value>, String> {
    serde_saphyr::from_multiple(text).map_err(|e| format!("{e} in\n{text}"))
}

/// Runs Helm with caches and settings of nobody.
pub fn helm(args: &[&str]) -> Output {
    let named = std::env::vars_os().find(|(name, value)| name == "HELM_BIN" && !value.is_empty());
    let binary = named.map_or_else(|| "helm".into(), |(_, path)| path);
    let nowhere = std::env::temp_dir().join("pointsman-no-helm-settings");
    Command::new(&binary)
        .args(args)
        .envs(["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"].map(|name| (name, &nowhere)))
        .env_remove("KUBECONFIG")
        .output()
        .unwrap_or_else(|error| {
            let binary = binary.to_string_lossy();
            panic!("cannot run Helm ({binary}: {error}): set HELM_BIN to what `scripts/get-kube helm` prints")
        })
}

/// The one object of a kind and name.
#[track_caller]
pub fn object<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let found: Vec<&Value> = objects.iter().filter(|o| o["kind"] == kind && o["metadata"]["name"] == name).collect();
    assert_eq!(found.len(), 1, "{kind} {name} among {:?}", names(objects));
    found[0]
}

/// Kind and name of every object, sorted.
pub fn names(objects: &[Value]) -> Vec<String> {
    let name = |o: &Value| format!("{} {}", text(&o["kind"]), text(&o["metadata"]["name"]));
    let mut all: Vec<String> = objects.iter().map(name).collect();
    all.sort();
    all
}

/// A string.
#[track_caller]
pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no string: {value}"))
}

/// The strings of a list.
#[track_caller]
pub fn texts(value: &Value) -> Vec<&str> {
    value.as_array().unwrap_or_else(|| panic!("no list: {value}")).iter().map(text).collect()
}

/// The picker's container.
#[track_caller]
pub fn picker(objects: &[Value]) -> &Value {
    let deployment = object(objects, "Deployment", "demo-epp");
    &deployment["spec"]["template"]["spec"]["containers"][0]
}

/// The picker's arguments.
#[track_caller]
pub fn arguments(objects: &[Value]) -> Vec<&str> {
    texts(&picker(objects)["args"])
}
