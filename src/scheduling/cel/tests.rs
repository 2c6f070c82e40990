use super::compile::compile;
use super::*;
use crate::domain::node::{Position, Problems, Value};
use crate::domain::{
    Headers, InFlightView, LoadDetail, LoadSample, LoadTable, PrefixMatch, Prompt, Segment, Timestamp,
};
use crate::scheduling::fixtures::{NOW, Scene, labelled, node};
use crate::scheduling::plugin::Registry;
use proptest::prelude::*;
use smallvec::smallvec;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

fn program_in(registry: &mut Registry, source: &str, wanted: Kind) -> (Option<Program>, Problems) {
    let mut problems = Problems::default();
    let parameters = node(Value::Mapping(Vec::new()));
    let mut context = Build {
        name: "cel",
        path: "p".into(),
        at: Position::default(),
        parameters: Some(&parameters),
        registry,
        problems: &mut problems,
    };
    (Program::compile(&mut context, source, wanted, Producers::default()), problems)
}

/// The values of `source`, a number or a boolean, for all endpoints of `scene`; `None` is missing.
fn values(source: &str, scene: &Scene) -> Vec<Option<f64>> {
    let number = program_in(&mut Registry::default(), source, Kind::Number).0;
    let (program, problems) = match number {
        Some(program) => (Some(program), Problems::default()),
        None => program_in(&mut Registry::default(), source, Kind::Bool),
    };
    let program = program.unwrap_or_else(|| panic!("{source}: {:?}", problems.errors));
    let slots = scene.slots();
    let mut all = Vec::new();
    program.evaluate(&scene.cycle(), |evaluator| {
        for slots in slots.chunks(CHUNK) {
            let mut out = vec![0.0; slots.len()];
            evaluator.chunk(slots, &mut out);
            all.extend(out.into_iter().map(|value| Some(value).filter(|v| !v.is_nan())));
        }
    });
    all
}

fn value(source: &str, scene: &Scene) -> Option<f64> {
    values(source, scene)[0]
}

fn mistake(source: &str, wanted: Kind) -> String {
    let (program, problems) = program_in(&mut Registry::default(), source, wanted);
    assert!(program.is_none(), "{source} compiles");
    problems.errors[0].to_string()
}

/// One endpoint with everything, one with nothing.
fn scene() -> Scene {
    let mut scene = labelled(&[&[("tier", "gold"), ("llm-d.ai/memory", " 80 ")], &[]]);
    let mut loads = LoadTable::new(Duration::from_secs(2));
    let attributes = BTreeMap::from([("deferred".into(), 6.0)]);
    let sample = LoadSample {
        taken_at: Timestamp(NOW.0 - 500_000),
        waiting: Some(3.0),
        running: Some(-4.0),
        kv_usage: Some(0.25),
        detail: Arc::new(LoadDetail { attributes, ..LoadDetail::default() }),
    };
    loads.set(Slot(0), &sample);
    scene.snapshot.loads = Arc::new(loads);
    scene.signals.in_flight = Some(InFlightView { requests: vec![2], tokens: vec![5_000] });
    *scene.signals.prefix_mut(0) =
        PrefixMatch { block_tokens: 64, total_blocks: 4, matched: vec![3], ..PrefixMatch::default() };
    let request = &mut scene.request;
    request.model = "llama".into();
    request.target_model = "adapter".into();
    request.path = "/v1/completions".into();
    request.headers = Headers::from([("x-zone", "eu-1"), ("x-empty", "")]);
    request.stream = true;
    request.prompts = smallvec![Prompt { segments: smallvec![Segment::Fixed(b"0123456789")] }];
    scene
}

#[test]
fn every_attribute_has_its_value() {
    let scene = scene();
    for (source, expected) in [
        ("request.model == 'llama' && request.target_model == 'adapter'", [Some(1.0); 2]),
        ("request.path.startsWith('/v1/')", [Some(1.0); 2]),
        ("request.headers['X-Zone'] == 'eu-1' && request.headers['x-empty'] == ''", [Some(1.0); 2]),
        ("request.headers['x-none'] == ''", [None; 2]),
        ("request.prompt_tokens", [Some(3.0); 2]),
        ("request.max_output_tokens", [None; 2]),
        ("request.streaming", [Some(1.0); 2]),
        ("endpoint.name == 'pod-0-rank-0'", [Some(1.0), Some(0.0)]),
        ("endpoint.namespace == 'default' && endpoint.address.startsWith('10.0.0.')", [Some(1.0); 2]),
        ("endpoint.port", [Some(8000.0); 2]),
        ("endpoint.labels.tier == 'gold'", [Some(1.0), None]),
        ("double(endpoint.labels['llm-d.ai/memory'])", [Some(80.0), None]),
        ("endpoint.waiting_requests", [Some(3.0), None]),
        ("endpoint.running_requests", [Some(0.0), None]),
        ("endpoint.kv_cache_usage", [Some(0.25), None]),
        ("endpoint.sample_age", [Some(0.5), None]),
        ("endpoint.metrics['deferred']", [Some(6.0), None]),
        ("endpoint.metrics.deferred + endpoint.metrics['deferred']", [Some(12.0), None]),
        ("endpoint.metrics['other']", [None; 2]),
        ("endpoint.inflight_requests", [Some(2.0), Some(0.0)]),
        ("endpoint.inflight_tokens", [Some(5000.0), Some(0.0)]),
        ("endpoint.prefix_match", [Some(0.75), Some(0.0)]),
    ] {
        assert_eq!(values(source, &scene), expected, "{source}");
    }
    let read: Vec<String> = attributes::TABLE.iter().map(|a| format!("{}.{}", a.group, a.field)).collect();
    assert_eq!(read.len(), 20, "a new attribute needs a line above");
    let empty = labelled(&[&[]]);
    for absent in ["request.prompt_tokens", "endpoint.inflight_requests"] {
        assert_eq!(value(absent, &empty), None, "{absent} without its signal");
    }
    assert_eq!(value("request.model == ''", &empty), None, "no model is not an empty one");
}

#[test]
fn stale_readings_are_missing_but_have_an_age() {
    let mut scene = scene();
    let mut loads = LoadTable::new(Duration::from_millis(100));
    let detail = Arc::new(LoadDetail { attributes: BTreeMap::from([("m".into(), 1.0)]), ..LoadDetail::default() });
    loads.set(Slot(0), &LoadSample { taken_at: Timestamp(0), waiting: Some(1.0), detail, ..LoadSample::default() });
    scene.snapshot.loads = Arc::new(loads);
    assert_eq!(value("endpoint.waiting_requests", &scene), None);
    assert_eq!(value("endpoint.metrics.m", &scene), None);
    assert_eq!(value("endpoint.sample_age", &scene), Some(100.0));
}

#[test]
fn missing_values_spread_unless_something_else_decides() {
    let mut scene = labelled(&[&[]]);
    scene.request.model = "m".repeat(33).into();
    const NONE: &str = "(endpoint.waiting_requests < 1.0)";
    for (source, expected) in [
        ("N", None),
        ("!N", None),
        ("N && false", Some(0.0)),
        ("false && N", Some(0.0)),
        ("N && true", None),
        ("N || true", Some(1.0)),
        ("true || N", Some(1.0)),
        ("N || false", None),
        ("N ? 1.0 : 2.0", None),
        ("true ? 1.0 : endpoint.kv_cache_usage", Some(1.0)),
        ("false ? 1.0 : endpoint.kv_cache_usage", None),
        ("N == N", None),
        ("has(endpoint.waiting_requests)", Some(0.0)),
        ("has(endpoint.port) && has(request.streaming)", Some(1.0)),
        ("has(endpoint.labels.tier) || 'tier' in endpoint.labels", Some(0.0)),
        ("'x' in endpoint.metrics || has(endpoint.metrics.x)", Some(0.0)),
        ("math.least(1.0, endpoint.kv_cache_usage)", None),
        ("math.greatest(endpoint.kv_cache_usage, 1.0)", None),
        ("endpoint.labels.tier in ['a']", None),
        ("0.0 / 0.0", None),
        ("1.0 / 0.0", None),
        ("1.0 / 0.0 > 5.0", Some(1.0)),
        ("1e308 * 10.0", None),
        ("double('1,5')", None),
        ("double('inf')", None),
        ("double('1234567890.12345678901234')", None),
        ("request.path.contains(request.model)", None),
    ] {
        assert_eq!(value(&source.replace('N', NONE), &scene), expected, "{source}");
    }
}

#[test]
fn operators_and_functions_compute() {
    let scene = labelled(&[&[("size", "7"), ("long", &"x".repeat(MAX_TEXT + 1)), ("name", "größer")]]);
    for (source, expected) in [
        ("7 / 2 - 0.5", 3.0),
        ("1 + 2 * 3 - -4", 11.0),
        ("int(7 / 2) + int(-7 / 2)", 0.0),
        ("double(endpoint.labels.size) * 2u", 14.0),
        ("int('12.9')", 12.0),
        ("math.least(3, 1, 2) + math.greatest(4, 6, 5) + math.abs(-10)", 17.0),
        ("size(endpoint.labels.name) + 'abc'.size()", 9.0),
        ("1 > 2 ? 1 : 2 >= 2 ? 3 : 4", 3.0),
        ("'b' in ['a', 'b'] && 2 in [1, 2] && !(3 in [1]) ? 1 : 0", 1.0),
        ("'abc'.contains('b') && 'abc'.endsWith('bc') && !('abc'.startsWith('b')) ? 1 : 0", 1.0),
        ("true == false ? 0 : 1 != 2 ? 5 : 6", 5.0),
        ("'long' in endpoint.labels ? 1 : 0", 0.0),
        ("'it''s' == 'its' ? 1 : 0", f64::NAN),
        ("(1 <= 1 && 1 < 2) != (2 > 3 || 3 >= 4) ? 1 : 0", 1.0),
    ] {
        if expected.is_nan() {
            assert!(compile(source, Kind::Number).is_err(), "{source}");
            continue;
        }
        assert_eq!(value(source, &scene), Some(expected), "{source}");
    }
}

/// The two expressions of docs/configuration.md, and what the page says of them.
#[test]
fn the_examples_of_the_documentation_do_what_it_says() {
    let page = include_str!("../../../docs/configuration.md");
    let mut examples = page.split("expression: >-\n").skip(1).map(|rest| {
        rest.lines().take_while(|line| line.starts_with("      ")).map(str::trim).collect::<Vec<_>>().join(" ")
    });
    let (filter, scorer) = (examples.next().expect("the filter"), examples.next().expect("the scorer"));
    let gpu = |tier, memory| [("tier", tier), ("gpu-memory-gb", memory)];
    let mut scene = labelled(&[&gpu("gold", "80"), &gpu("gold", "40"), &[("tier", "gold")], &gpu("free", "80")]);
    let prompt = |tokens: usize| -> Prompt { Prompt { segments: smallvec![Segment::Tokens(vec![0; tokens].into())] } };
    scene.request.prompts = smallvec![prompt(20_000)];
    assert_eq!(values(&filter, &scene), [Some(1.0), Some(0.0), None, Some(1.0)], "no tier is asked for");
    scene.request.headers = Headers::from([("x-tier", "gold")]);
    assert_eq!(values(&filter, &scene), [Some(1.0), Some(0.0), None, Some(0.0)]);
    scene.request.prompts = smallvec![prompt(10)];
    assert_eq!(values(&filter, &scene), [Some(1.0), Some(1.0), Some(1.0), Some(0.0)]);

    let mut loads = LoadTable::new(Duration::from_secs(2));
    let metric = "vllm:num_requests_waiting_by_reason{reason=deferred}";
    for (slot, usage, deferred) in [(0, 0.6, Some(2.0)), (1, 0.96, Some(0.0)), (2, 0.6, None)] {
        let attributes = deferred.map(|value| (metric.into(), value)).into_iter().collect();
        let detail = Arc::new(LoadDetail { attributes, ..LoadDetail::default() });
        let sample = LoadSample { taken_at: NOW, kv_usage: Some(usage), detail, ..LoadSample::default() };
        loads.set(Slot(slot), &sample);
    }
    scene.snapshot.loads = Arc::new(loads);
    *scene.signals.prefix_mut(0) = PrefixMatch { total_blocks: 2, matched: vec![1, 2], ..PrefixMatch::default() };
    let scores = values(&scorer, &scene);
    assert!(scores[0].is_some_and(|score| (score - 0.55).abs() < 1e-9), "{scores:?}");
    assert_eq!(scores[1..], [Some(0.0), None, None]);
}

#[test]
fn mistakes_say_what_and_how() {
    for (source, message, fix) in [
        ("", "there is no expression", "write one"),
        ("endpoint.waiting <", "is not CEL: line 1, column ", "mend it"),
        (
            "endpoint.waiting_request < 1",
            "there is no attribute `endpoint.waiting_request`",
            "did you mean `endpoint.waiting_requests`?",
        ),
        ("waiting < 1", "there is no attribute `waiting`", "write one of these"),
        ("endpoint.labels == 'x'", "`endpoint.labels` is read with a key", "`endpoint.labels['name']`"),
        ("endpoint.labels[request.model] == 'x'", "must be a text in quotes", "endpoint.labels['name']"),
        ("endpoint.name['x'] == 'x'", "`endpoint.name` has no keys", "endpoint.metrics have"),
        ("endpoint.name < 3", "`endpoint.name` is a text, and `<` takes a number", "double(…)"),
        ("endpoint.port && true", "`endpoint.port` is a number, and `&&` takes a boolean", "compare it"),
        ("endpoint.port == 'x'", "`endpoint.port` is a number and `'x'` is a text", "values of one kind"),
        ("endpoint.port", "gives a number, and a boolean is needed", "compare it with something"),
        ("'a' + 'b' == 'ab'", "`'a'` is a text, and `+` takes a number", "double"),
        ("endpoint.port % 2 == 0", "`%` is not available", "int()"),
        ("endpoint.name.matches('a+')", "regular expressions are not available", "startsWith"),
        ("[1, 2].exists(x, x > 1)", "there is nothing to loop over", "`in`"),
        ("['a'] == ['a']", "a list can only stand after `in`", "in ['a', 'b']"),
        ("1 in [1, endpoint.port]", "must hold nothing but numbers as written", "`==`"),
        ("endpoint.name in ['a', 1]", "must hold nothing but texts as written", "`==`"),
        ("endpoint.name in endpoint.name", "`endpoint.name` is no list", "in endpoint.labels"),
        (
            "endpoint.name.startWith('a')",
            "there is no function `startWith` for 1 arguments",
            "did you mean `startsWith`?",
        ),
        ("math.sqrt(4.0) > 1", "there is no function `math.sqrt`", "the functions are"),
        ("{'a': 1} == null", "maps, messages and null are not available", "numbers"),
        ("null == null", "null are not available", "has()"),
        ("endpoint.metrics[''] > 1", "must have 1 to 256 bytes", "exists"),
        ("true ? 1 : 'a'", "chooses between a number and a text", "both sides"),
        ("true in [true]", "not for a boolean", "`==`"),
    ] {
        let found = mistake(source, Kind::Bool);
        assert!(found.starts_with("p.expression: ") && found.contains(message), "{source}: {found}");
        assert!(found.split_once("(fix: ").is_some_and(|(_, rest)| rest.contains(fix)), "{source}: {found}");
    }
}

#[test]
fn everything_is_bounded_at_start() {
    let terms = |n: usize| vec!["endpoint.port"; n].join(" + ");
    assert!(compile(&terms(60), Kind::Number).is_ok());
    let found = compile(&terms(80), Kind::Number).unwrap_err().message;
    assert!(found.contains("nested more than 64"), "{found}");
    let conditions = |n: usize| vec!["endpoint.port > 1"; n].join(" && ");
    assert!(compile(&conditions(40), Kind::Bool).is_ok());
    let found = compile(&conditions(60), Kind::Bool).unwrap_err().message;
    assert!(found.contains("costs more than 200 units"), "{found}");
    for dear in ["endpoint.name.contains('x')", "endpoint.name.endsWith('x')", "double(endpoint.name) > 1"] {
        assert!(compile(&[dear; 3].join(" || "), Kind::Bool).is_ok());
        assert!(compile(&[dear; 12].join(" || "), Kind::Bool).unwrap_err().message.contains("costs more"), "{dear}");
    }
    let found = compile(&format!("endpoint.name.contains('{}')", "x".repeat(33)), Kind::Bool).unwrap_err().message;
    assert!(found.contains("at most 32 bytes"), "{found}");
    let long = format!("'{}' == 'a'", "x".repeat(300));
    assert!(compile(&long, Kind::Bool).unwrap_err().message.contains("more than 256 bytes"));
    let found = compile(&format!("true {}", " ".repeat(MAX_LENGTH)), Kind::Bool).unwrap_err().message;
    assert!(found.contains("and the most is 2048"), "{found}");
    let deep = format!("{}1.0{}", "(1.0 + ".repeat(40), ")".repeat(40));
    assert!(compile(&deep, Kind::Number).unwrap_err().message.contains("brackets are nested more than 32"));
    for open in ["(", "!", "-", "!-", "[", "{", "a?", "a?b:", "a.b(", "a[", "1-", "a.", "has(", "a.exists(x,"] {
        let hostile = open.repeat(MAX_LENGTH / open.len());
        assert!(compile(&hostile, Kind::Bool).is_err(), "{open}");
    }
    // Took older versions of the crate gigabytes.
    assert!(compile(&"!!(!!!!!!(!!!!(((((!!(!!(!!!!((".repeat(60), Kind::Bool).is_err());
}

#[test]
fn only_what_is_read_is_switched_on() {
    let needs = |source: &str| {
        let mut registry = Registry::default();
        let (program, problems) = program_in(&mut registry, source, Kind::Bool);
        assert!(program.is_some(), "{:?}", problems.errors);
        let needs: Vec<Need> = registry.needs.keys().cloned().collect();
        (needs, registry.take_missing())
    };
    assert_eq!(needs("endpoint.labels.a == request.headers['b'] && endpoint.port > 1"), (vec![], vec![]));
    assert_eq!(needs("request.prompt_tokens > 1"), (vec![Need::Prompts], vec![]));
    assert_eq!(needs("endpoint.prefix_match > 0"), (vec![Need::Prompts], vec![SignalKind::Prefix]));
    assert_eq!(needs("endpoint.inflight_tokens > 0"), (vec![], vec![SignalKind::InFlight]));
    assert_eq!(needs("endpoint.sample_age > 0"), (vec![Need::Metric(Metric::Waiting)], vec![]));
    let metrics = needs("endpoint.kv_cache_usage > 0 || endpoint.metrics['a:b{c=d}'] > 0").0;
    assert_eq!(metrics, [Need::Metric(Metric::KvUsage), Need::Metric(Metric::Attribute("a:b{c=d}".into()))]);
}

#[test]
fn custom_metrics_of_all_plugins_together_are_bounded() {
    let sum = |range: std::ops::Range<usize>| {
        range.map(|i| format!("endpoint.metrics['m{i}']")).collect::<Vec<_>>().join(" + ") + " > 1.0"
    };
    let mut registry = Registry::default();
    assert!(program_in(&mut registry, &sum(0..MAX_ATTRIBUTES), Kind::Bool).0.is_some());
    assert!(program_in(&mut registry, &sum(0..2), Kind::Bool).0.is_some(), "the same ones again");
    let (program, problems) = program_in(&mut registry, &sum(20..21), Kind::Bool);
    assert!(program.is_none());
    assert!(problems.errors[0].message.contains("read 17 custom metrics, and the most is 16"), "{problems:?}");
}

#[test]
fn a_producer_that_is_not_read_is_a_warning_and_a_wrong_one_an_error() {
    let mut problems = Problems::default();
    let mut build = |source: &str, producers: Producers<'_>| {
        problems = Problems::default();
        let mut context = Build {
            name: "cel",
            path: "p".into(),
            at: Position::default(),
            parameters: None,
            registry: &mut Registry::default(),
            problems: &mut problems,
        };
        Program::compile(&mut context, source, Kind::Bool, producers);
        problems.clone()
    };
    let prefix = Producers { prefix: Some("x"), in_flight: None };
    let load = Producers { prefix: None, in_flight: Some("x") };
    assert!(build("true", prefix).warnings[0].to_string().contains("does not read endpoint.prefix_match"));
    assert!(build("true", load).warnings[0].to_string().contains("inFlightLoadProducerName: has no effect"));
    assert!(build("endpoint.prefix_match > 0", prefix).errors[0].message.contains("no producer is called `x`"));
    assert!(build("endpoint.inflight_tokens > 0", load).errors[0].message.contains("no producer is called `x`"));
}

#[test]
fn missing_results_are_counted() {
    let scene = labelled(&[&[]]);
    let program = program_in(&mut Registry::default(), "endpoint.port > 0", Kind::Bool).0.unwrap();
    program.count_missing(&scene.cycle(), 3, Slot(0), "false");
    program.count_missing(&scene.cycle(), 40, Slot(9), "false");
    assert_eq!(program.missing(), 43);
}

// === against the crate's interpreter ===

/// Numbers, booleans and texts of a random expression, in CEL as both understand it.
fn number() -> BoxedStrategy<String> {
    let leaf = proptest::sample::select(vec![
        "0.0",
        "1.0",
        "2.5",
        "-3.0",
        "endpoint.waiting_requests",
        "endpoint.kv_cache_usage",
        "endpoint.metrics['m']",
        "endpoint.metrics.other",
        "request.prompt_tokens",
    ])
    .prop_map(str::to_owned);
    leaf.prop_recursive(4, 24, 3, |inner| {
        prop_oneof![
            (inner.clone(), proptest::sample::select(vec!["+", "-", "*"]), inner.clone())
                .prop_map(|(a, op, b)| format!("({a} {op} {b})")),
            inner.clone().prop_map(|a| format!("({a} / 4.0)")),
            inner.clone().prop_map(|a| format!("-({a})")),
            (boolean_of(inner.clone()), inner.clone(), inner).prop_map(|(c, a, b)| format!("({c} ? {a} : {b})")),
        ]
        .boxed()
    })
    .boxed()
}

fn boolean_of(numbers: impl Strategy<Value = String> + Clone + 'static) -> BoxedStrategy<String> {
    let text = proptest::sample::select(vec![
        "'gold'",
        "''",
        "'eu-1'",
        "endpoint.labels['tier']",
        "endpoint.labels.zone",
        "request.headers['x-zone']",
        "endpoint.name",
        "request.model",
    ]);
    let leaf = prop_oneof![
        proptest::sample::select(vec![
            "true",
            "false",
            "request.streaming",
            "has(endpoint.labels.tier)",
            "'zone' in endpoint.labels",
            "'m' in endpoint.metrics",
            "has(endpoint.waiting_requests)",
            "endpoint.labels.tier in ['gold', 'free']",
        ])
        .prop_map(str::to_owned),
        (numbers.clone(), proptest::sample::select(vec!["<", "<=", ">", ">=", "==", "!="]), numbers.clone())
            .prop_map(|(a, op, b)| format!("({a} {op} {b})")),
        numbers.prop_map(|a| format!("({a} in [0.0, 1.0, 2.5])")),
        (text.clone(), proptest::sample::select(vec!["==", "!="]), text.clone())
            .prop_map(|(a, op, b)| format!("({a} {op} {b})")),
        (text.clone(), proptest::sample::select(vec!["startsWith", "endsWith", "contains"]), text)
            .prop_map(|(a, f, b)| format!("{a}.{f}({b})")),
    ];
    leaf.prop_recursive(3, 12, 2, |inner| {
        prop_oneof![
            (inner.clone(), proptest::sample::select(vec!["&&", "||", "==", "!="]), inner.clone())
                .prop_map(|(a, op, b)| format!("({a} {op} {b})")),
            inner.prop_map(|a| format!("!({a})")),
        ]
        .boxed()
    })
    .boxed()
}

#[derive(Clone, Debug)]
struct Facts {
    waiting: Option<f32>,
    kv_usage: Option<f32>,
    metric: Option<f64>,
    tier: Option<&'static str>,
    zone: Option<&'static str>,
}

fn facts() -> impl Strategy<Value = Facts> {
    let option = proptest::option::of::<BoxedStrategy<f32>>;
    (
        option((0u32..5).prop_map(|n| n as f32).boxed()),
        option(prop_oneof![Just(0.0f32), 0.0f32..1.0].boxed()),
        proptest::option::of((-3i32..4).prop_map(f64::from)),
        proptest::sample::select(vec![None, Some("gold"), Some("free")]),
        proptest::sample::select(vec![None, Some("eu-1"), Some("")]),
    )
        .prop_map(|(waiting, kv_usage, metric, tier, zone)| Facts { waiting, kv_usage, metric, tier, zone })
}

fn scene_of(facts: &[Facts], streaming: bool, zone: bool) -> Scene {
    let labels: Vec<Vec<(&str, &str)>> = facts
        .iter()
        .map(|f| [("tier", f.tier), ("zone", f.zone)].into_iter().filter_map(|(k, v)| Some((k, v?))).collect())
        .collect();
    let mut scene = labelled(&labels.iter().map(Vec::as_slice).collect::<Vec<_>>());
    let mut loads = LoadTable::new(Duration::from_secs(2));
    for (i, f) in facts.iter().enumerate() {
        let attributes = f.metric.map(|m| ("m".into(), m)).into_iter().collect();
        let detail = Arc::new(LoadDetail { attributes, ..LoadDetail::default() });
        let sample =
            LoadSample { taken_at: NOW, waiting: f.waiting, kv_usage: f.kv_usage, detail, ..LoadSample::default() };
        loads.set(Slot(i as u32), &sample);
    }
    scene.snapshot.loads = Arc::new(loads);
    scene.request.stream = streaming;
    scene.request.model = "llama".into();
    if zone {
        scene.request.headers = Headers::from([("x-zone", "eu-1")]);
    }
    scene.signals.prompt_tokens = Some(12);
    scene
}

/// What the crate's interpreter makes of `source` for one endpoint.
fn interpreted(source: &str, facts: &Facts, index: usize, streaming: bool, zone: bool) -> Option<f64> {
    use cel::Value as Cel;
    type Map = HashMap<String, Cel>;
    let optional = |entries: Vec<(&str, Option<Cel>)>| -> Map {
        entries.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()
    };
    let text = |text: Option<&str>| text.map(Cel::from);
    let endpoint = optional(vec![
        ("waiting_requests", facts.waiting.map(|v| Cel::Float(v.into()))),
        ("kv_cache_usage", facts.kv_usage.map(|v| Cel::Float(v.into()))),
        ("metrics", Some(optional(vec![("m", facts.metric.map(Cel::Float))]).into())),
        ("labels", Some(optional(vec![("tier", text(facts.tier)), ("zone", text(facts.zone))]).into())),
        ("name", text(Some(&format!("pod-{index}-rank-0")))),
    ]);
    let request = optional(vec![
        ("headers", Some(optional(vec![("x-zone", zone.then(|| Cel::from("eu-1")))]).into())),
        ("model", text(Some("llama"))),
        ("prompt_tokens", Some(Cel::Float(12.0))),
        ("streaming", Some(Cel::Bool(streaming))),
    ]);
    let mut context = cel::Context::default();
    context.add_variable_from_value("endpoint", endpoint);
    context.add_variable_from_value("request", request);
    let ast = cel::parser::PrattParser::new().parse(source).expect("it parses");
    match context.resolve(&ast) {
        Ok(Cel::Float(value)) => Some(value),
        Ok(Cel::Bool(value)) => Some(f64::from(value)),
        Ok(other) => panic!("{source}: {other:?}"),
        Err(_) => None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn agrees_with_the_interpreter_of_the_crate(
        source in prop_oneof![number(), boolean_of(number())],
        facts in proptest::collection::vec(facts(), 1..4),
        streaming in any::<bool>(),
        zone in any::<bool>(),
    ) {
        prop_assume!(compile(&source, Kind::Bool).or_else(|_| compile(&source, Kind::Number)).is_ok(), "too dear");
        let ours = values(&source, &scene_of(&facts, streaming, zone));
        for (i, f) in facts.iter().enumerate() {
            prop_assert_eq!(ours[i], interpreted(&source, f, i, streaming, zone), "{} for {:?}", source, f);
        }
    }

    #[test]
    fn no_text_breaks_the_compiler(source in "\\PC{0,120}") {
        let _ = compile(&source, Kind::Bool);
    }

    #[test]
    fn no_sequence_of_tokens_breaks_the_compiler(
        tokens in proptest::collection::vec(proptest::sample::select(vec![
            "endpoint", ".", "labels", "metrics", "[", "]", "(", ")", "{", "}", "'a'", "\"", "'", "1", "0.5", "1u", "0x",
            "&&", "||", "!", "-", "+", "*", "/", "%", "?", ":", ",", "==", "<", "in", "has", "map", "exists", "true",
            "null", "r'", "b'x'", "`", "\\", "\n", "//", "é", " ", "math", "size", "double", "request", "e9", "'''",
        ]), 0..80)
    ) {
        let source = tokens.concat();
        if let Ok(compiled) = compile(&source, Kind::Bool).or_else(|_| compile(&source, Kind::Number)) {
            prop_assert!(compiled.metrics.len() <= MAX_COST);
            values(&source, &scene());
        }
    }
}
