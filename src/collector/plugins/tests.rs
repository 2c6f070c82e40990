use super::*;
use crate::collector::mapping::Plan;
use crate::collector::reading::read;
use crate::domain::Timestamp;

fn text(s: &str) -> Value {
    Value::String(s.into())
}

/// A mapping whose n-th value stands on line n.
fn map(entries: Vec<(&str, Value)>) -> Value {
    let at = |line: usize| Position { line: line as u32, column: 3 };
    Value::Mapping(
        entries
            .into_iter()
            .enumerate()
            .map(|(i, (k, value))| (k.to_owned(), at(i + 1), Node { at: at(i + 1), value }))
            .collect(),
    )
}

fn list(items: Vec<Value>) -> Value {
    Value::Sequence(items.into_iter().map(|value| Node { at: Position { line: 90, column: 1 }, value }).collect())
}

fn node(value: Value) -> Node {
    Node { at: Position { line: 1, column: 1 }, value }
}

fn shown(problems: &Problems) -> Vec<String> {
    problems.errors.iter().map(ToString::to_string).collect()
}

#[test]
fn sources_have_the_documented_defaults() {
    let mut problems = Problems::default();
    let source = decode_source(None, "p", &mut problems);
    assert_eq!((source.scheme, source.path.as_str(), source.port), (Scheme::Http, "/metrics", None));
    assert!(source.insecure_skip_verify && source.interval.is_none());
    assert!(problems.errors.is_empty() && problems.warnings.is_empty());
}

#[test]
fn every_wrong_source_value_has_its_place() {
    let mut problems = Problems::default();
    let source = decode_source(
        Some(&node(map(vec![
            ("scheme", text("ftp")),
            ("path", text("metrics")),
            ("port", Value::Integer(0)),
            ("interval", text("2h")),
            ("clientCertPath", text("/a")),
            ("cacertPath", text("/a")),
        ]))),
        "p",
        &mut problems,
    );
    let errors = shown(&problems);
    assert_eq!(errors.len(), 6, "{errors:#?}");
    assert!(errors[0].starts_with("1:3: p.scheme: text `ftp` is not one of http, https"));
    assert!(errors[1].starts_with("2:3: p.path:") && errors[1].contains("starts with `/`"));
    assert!(errors[2].starts_with("3:3: p.port:"));
    assert!(errors[3].starts_with("4:3: p.interval:") && errors[3].contains("at most 1h"));
    assert!(errors[4].contains("unknown field `cacertPath`") && errors[4].contains("did you mean `caCertPath`?"));
    assert!(errors[5].starts_with("5:3: p.clientCertPath:") && errors[5].contains("clientKeyPath"));
    assert_eq!(source.path, "/metrics");
}

#[test]
fn a_short_interval_is_raised_with_a_warning() {
    let mut problems = Problems::default();
    let source = decode_source(Some(&node(map(vec![("interval", text("10ms"))]))), "p", &mut problems);
    assert_eq!(source.interval, Some(MIN_INTERVAL));
    assert!(problems.errors.is_empty());
    assert!(problems.warnings[0].to_string().contains("`10ms` is below"), "{}", problems.warnings[0]);
}

#[test]
fn a_known_engine_keeps_what_is_not_mentioned() {
    let mut problems = Problems::default();
    let custom = map(vec![("attributeKey", text("deferred")), ("metricSpec", text("x{reason=deferred}"))]);
    let vllm = map(vec![
        ("name", text("vllm")),
        ("queuedRequestsSpec", text("my:queue")),
        ("loraSpec", text("")),
        ("customMetrics", list(vec![custom])),
    ]);
    let own =
        map(vec![("name", text("own")), ("cacheInfoSpec", text("own_info")), ("cacheNumBlocksLabelName", text("n"))]);
    let doc = node(map(vec![("defaultEngine", text("own")), ("engineConfigs", list(vec![vllm, own]))]));
    let extractor = decode_extractor(Some(&doc), "p", &mut problems);
    assert!(problems.errors.is_empty(), "{:?}", shown(&problems));
    let engines = extractor.engines();
    assert_eq!(engines.len(), BUILT_IN.len() + 1);
    assert_eq!(engines[0].waiting, [MetricSpec::parse("my:queue").unwrap()]);
    assert_eq!(engines[0].running, [MetricSpec::parse("vllm:num_requests_running").unwrap()]);
    assert_eq!(engines[0].lora, None);
    assert_eq!(engines[0].attributes["deferred"], MetricSpec::parse("x{reason=deferred}").unwrap());
    let own = engines.last().unwrap();
    assert_eq!((own.block_size_label.as_str(), own.num_blocks_label.as_str()), ("block_size", "n"));
    assert_eq!(extractor.label_keys(), [ENGINE_LABEL, OLD_ENGINE_LABEL]);
}

#[test]
fn every_wrong_extractor_value_has_its_place() {
    let mut problems = Problems::default();
    let custom = list(vec![
        map(vec![("attributeKey", text("a")), ("metricSpec", text("x{"))]),
        map(vec![("attributeKey", text("a")), ("metricSpec", text("x"))]),
        map(vec![]),
    ]);
    let engines = list(vec![
        map(vec![("name", text("e")), ("queuedRequestsSpec", Value::Integer(3)), ("customMetrics", custom)]),
        map(vec![("name", text("e")), ("queueSpec", text("x"))]),
        map(vec![]),
    ]);
    let doc =
        node(map(vec![("defaultEngine", text("vlm")), ("engineConfigs", engines), ("engineLabelKey", text(" "))]));
    decode_extractor(Some(&doc), "p", &mut problems);
    let errors = shown(&problems).join("\n");
    for wanted in [
        "1:3: p.defaultEngine: no engine is called `vlm`",
        "did you mean `vllm`?",
        "p.engineLabelKey",
        "2:3: p.engineConfigs[0].queuedRequestsSpec: expected metric spec",
        "2:3: p.engineConfigs[0].customMetrics[0].metricSpec: `x{` is not a metric spec",
        "1:3: p.engineConfigs[0].customMetrics[1].attributeKey: attribute `a` is filled twice",
        "90:1: p.engineConfigs[0].customMetrics[2].attributeKey: a custom metric needs a key",
        "90:1: p.engineConfigs[0].customMetrics[2].metricSpec: a custom metric needs a series",
        "1:3: p.engineConfigs[1].name: engine `e` is configured twice",
        "unknown field `queueSpec`",
        "90:1: p.engineConfigs[2].name: an engine config needs a name",
    ] {
        assert!(errors.contains(wanted), "{wanted} is not in\n{errors}");
    }
    assert_eq!(problems.errors.len(), 10, "{errors}");
}

#[test]
fn rows_are_named_once_and_decode_nothing_to_defaults() {
    let kinds: BTreeSet<_> = ROWS.iter().map(|r| r.about.kind).collect();
    assert_eq!(kinds.len(), ROWS.len());
    for row in ROWS {
        let mut problems = Problems::default();
        (row.check)(None, "p", &mut problems);
        assert!(problems.errors.is_empty());
        assert!(!row.about.params.is_empty() && row.about.sample.contains(row.about.kind));
    }
}

#[test]
fn wanted_series_that_nobody_described_are_read_under_their_own_name() {
    let custom = map(vec![("attributeKey", text("mine")), ("metricSpec", text("own_gauge"))]);
    let own = map(vec![("name", text("own")), ("customMetrics", list(vec![custom]))]);
    let doc = node(map(vec![("engineConfigs", list(vec![own]))]));
    let extractor = decode_extractor(Some(&doc), "p", &mut Problems::default());
    let series = "vllm:num_requests_waiting_by_reason{reason=capacity}";
    let wanted = [series, "mine", "no series"].map(|key| Metric::Attribute(key.into()));
    let engines = extractor.engines_for(&wanted.clone().into());
    assert!(engines.iter().all(|engine| engine.attributes[series] == MetricSpec::parse(series).unwrap()));
    let mine: Vec<&str> =
        engines.iter().filter(|e| e.attributes.contains_key("mine")).map(|e| e.name.as_str()).collect();
    assert_eq!(mine, ["own"], "what is described is described for its engine");
    assert!(extractor.describes("mine") && !extractor.describes(series));
    assert!(!engines.iter().any(|e| e.attributes.contains_key("no series")));
    let plan = Plan::new(&engines[0], &wanted.into());
    let page = include_bytes!("../../../tests/data/metrics/vllm-metrics.txt");
    let sample = read(&plan, page, Timestamp(0)).expect("a page");
    assert_eq!(sample.detail.attributes.iter().map(|(k, v)| (&**k, *v)).collect::<Vec<_>>(), [(series, 10.0)]);
}
