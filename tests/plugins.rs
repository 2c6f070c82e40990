//! What must hold for every plugin of every table, so that a new row is tested the moment it exists.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use pointsman::domain::node::{Node, Position, Problems, Value};
use pointsman::domain::{
    Account, AccountView, Endpoint, EndpointSpec, Headers, InFlightView, InferenceRequest, LoadDetail, LoadSample,
    LoadTable, LoraState, PoolIdentity, PrefixMatch, Prompt, Segment, Signals, Slot, Snapshot, Timestamp, Topology,
};
use pointsman::scheduling::plugin::{Build, Built, Cycle, Registry, Row, SignalKind};
use pointsman::scheduling::{detectors, filters, handlers, pickers, responses, scorers};
use pointsman::signals;
use proptest::prelude::*;
use saphyr_parser::{Event, Parser, ScalarStyle};
use smallvec::smallvec;

const NOW: Timestamp = Timestamp::from_millis(100_000);

fn tables() -> [(&'static str, &'static [Row]); 7] {
    [
        ("producers", signals::TABLE),
        ("filters", filters::TABLE),
        ("scorers", scorers::TABLE),
        ("pickers", pickers::TABLE),
        ("handlers", handlers::TABLE),
        ("detectors", detectors::TABLE),
        ("responses", responses::TABLE),
    ]
}

fn rows() -> impl Iterator<Item = (&'static str, &'static Row)> {
    tables().into_iter().flat_map(|(table, rows)| rows.iter().map(move |row| (table, row)))
}

fn try_build(registry: &mut Registry, row: &Row, parameters: Option<&Node>) -> (Option<Built>, Problems) {
    let mut problems = Problems::default();
    let mut context = Build {
        name: row.about.kind,
        path: "plugins[0].parameters".into(),
        at: Position::default(),
        parameters,
        registry,
        problems: &mut problems,
    };
    let built = (row.build)(&mut context);
    (built, problems)
}

fn sample_parameters(row: &Row) -> Option<Node> {
    let document = read_yaml(row.about.sample);
    let Value::Sequence(entries) = document.value else { panic!("{}: the sample is no list", row.about.kind) };
    let [entry] = &entries[..] else { panic!("{}: the sample has not one entry", row.about.kind) };
    assert_eq!(entry.get("type").and_then(Node::as_str), Some(row.about.kind));
    entry.get("parameters").cloned()
}

/// An instance with the parameters of the sample.
fn sample(row: &Row) -> Built {
    let (built, problems) = try_build(&mut Registry::default(), row, sample_parameters(row).as_ref());
    assert!(problems.errors.is_empty(), "{}: {:?}", row.about.kind, problems.errors);
    built.expect("no instance from the sample")
}

/// An instance with default parameters, if that is allowed.
fn plain(row: &Row) -> Option<Built> {
    try_build(&mut Registry::default(), row, None).0
}

// === rules for the tables ===

#[test]
fn types_and_aliases_are_unique() {
    let mut seen = BTreeSet::new();
    for (_, row) in rows() {
        for name in std::iter::once(&row.about.kind).chain(row.about.aliases) {
            assert!(seen.insert(*name), "`{name}` is declared twice");
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'), "`{name}` is no type name");
        }
    }
    assert!(seen.len() >= 24, "a table is empty");
    for kind in [SignalKind::InFlight, SignalKind::Session, SignalKind::Account] {
        assert!(signals::TABLE.iter().any(|r| r.about.kind == kind.default_producer()), "{kind:?}");
    }
}

#[test]
fn everything_is_documented() {
    for (_, row) in rows() {
        let about = row.about;
        assert!(about.summary.ends_with('.') && about.summary.len() > 10, "{}: no summary", about.kind);
        let mut keys = BTreeSet::new();
        for param in about.params {
            assert!(keys.insert(param.key), "{}.{} is declared twice", about.kind, param.key);
            assert!(param.about.trim().len() > 5, "{}.{} is not documented", about.kind, param.key);
            assert!(param.key.starts_with(|c: char| c.is_ascii_lowercase()), "{}.{}", about.kind, param.key);
        }
    }
}

#[test]
fn samples_load_and_serve_their_tables_extension_point() {
    for (table, row) in rows() {
        let built = sample(row);
        let serves = match table {
            "producers" => built.producer.is_some(),
            "filters" => built.filter.is_some(),
            "scorers" => built.scorer.is_some(),
            "pickers" => built.picker.is_some(),
            "handlers" => built.handler.is_some(),
            "detectors" => built.saturation.is_some() && built.filter.is_some(),
            _ => built.commit.is_some(),
        };
        assert!(serves, "{} is in the table of {table} but serves another point", row.about.kind);
        let (_, problems) = try_build(&mut Registry::default(), row, sample_parameters(row).as_ref());
        assert!(problems.warnings.is_empty(), "{}: the sample warns: {:?}", row.about.kind, problems.warnings);
    }
}

#[test]
fn wrong_parameters_are_refused_and_missing_ones_say_so() {
    let nonsense = read_yaml("nonsense: 1");
    for (_, row) in rows() {
        let kind = row.about.kind;
        let (built, problems) = try_build(&mut Registry::default(), row, None);
        assert_eq!(built.is_none(), !problems.errors.is_empty(), "{kind}: {:?}", problems.errors);
        assert!(problems.errors.iter().all(|p| !p.fix.is_empty() && p.path.starts_with("plugins[0]")), "{kind}");
        let (_, problems) = try_build(&mut Registry::default(), row, Some(&nonsense));
        assert!(problems.errors.iter().any(|p| p.message.contains("`nonsense`")), "{kind} takes anything");
        let (_, problems) = try_build(&mut Registry::default(), row, Some(&read_yaml("[a, list]")));
        assert!(problems.errors.iter().any(|p| p.message.contains("expected a mapping")), "{kind}");
    }
}

// === what all scorers, filters and pickers keep to ===

/// What is known of one endpoint, independent of its slot.
#[derive(Clone, Debug)]
struct Facts {
    waiting: Option<f32>,
    running: Option<f32>,
    kv_usage: Option<f32>,
    /// Age of the sample in milliseconds; fresh up to 2000. `None`: never scraped.
    age: Option<u64>,
    blocks: u32,
    requests: u32,
    tokens: u64,
    /// Adapters that run, adapters that fit.
    lora: Option<(&'static [&'static str], u32)>,
    label: Option<&'static str>,
}

/// The adapter that the request is for.
const ADAPTER: &str = "sql-adapter";
const ADAPTERS: &[&[&str]] = &[&[], &[ADAPTER], &["chat"], &["chat", ADAPTER]];

impl Facts {
    fn known(&self, reading: Option<f32>) -> Option<f32> {
        reading.filter(|v| v.is_finite() && self.age.is_some_and(|age| age <= 2_000)).map(|v| v.max(0.0))
    }
}

fn reading() -> impl Strategy<Value = Option<f32>> {
    prop_oneof![
        6 => (0u32..200).prop_map(|n| Some(n as f32)),
        2 => (0.0f32..1.2).prop_map(Some),
        1 => any::<f32>().prop_map(Some),
        1 => Just(None),
    ]
}

fn facts() -> impl Strategy<Value = Facts> {
    (
        reading(),
        reading(),
        reading(),
        prop_oneof![5 => (0u64..2_000).prop_map(Some), 1 => (2_001u64..90_000).prop_map(Some), 1 => Just(None)],
        prop_oneof![3 => 0u32..=64, 1 => any::<u32>()],
        prop_oneof![3 => 0u32..20, 1 => any::<u32>()],
        prop_oneof![3 => 0u64..5_000_000, 1 => any::<u64>()],
        proptest::option::of((proptest::sample::select(ADAPTERS), 0u32..4)),
        proptest::sample::select(vec![None, Some("gold"), Some("decode"), Some("prefill"), Some("encode"), Some("")]),
    )
        .prop_map(|(waiting, running, kv_usage, age, blocks, requests, tokens, lora, label)| Facts {
            waiting,
            running,
            kv_usage,
            age,
            blocks,
            requests,
            tokens,
            lora,
            label,
        })
}

/// Endpoints, the slot of each (with gaps), and another arrangement of the same endpoints.
fn arranged() -> impl Strategy<Value = (Vec<Facts>, Vec<u32>, Vec<u32>)> {
    let slots = |n: usize| Just((0..(n as u32) * 2).collect::<Vec<_>>()).prop_shuffle();
    proptest::collection::vec(facts(), 0..24).prop_flat_map(move |facts| {
        let n = facts.len();
        (Just(facts), slots(n), slots(n)).prop_map(|(facts, mut one, mut other)| {
            one.truncate(facts.len());
            other.truncate(facts.len());
            (facts, one, other)
        })
    })
}

struct Scene {
    request: InferenceRequest,
    snapshot: Snapshot,
    signals: Signals,
}

impl Scene {
    fn new(facts: &[Facts], slots: &[u32]) -> Self {
        let capacity = slots.iter().max().map_or(0, |s| *s as usize + 1);
        let mut endpoints = vec![None; capacity];
        let mut loads = LoadTable::new(Duration::from_secs(2));
        let mut prefix = PrefixMatch { block_tokens: 64, total_blocks: 64, ..PrefixMatch::default() };
        prefix.matched = vec![0; capacity];
        let mut in_flight = InFlightView { requests: vec![0; capacity], tokens: vec![0; capacity] };
        let mut accounts = AccountView { endpoints: vec![Account::default(); capacity], ..AccountView::default() };
        for (i, (facts, slot)) in facts.iter().zip(slots).enumerate() {
            let labels = facts.label.map(|l| {
                let key = if l == "gold" { "tier" } else { "llm-d.ai/role" };
                BTreeMap::from([(key.to_owned(), l.to_owned()), ("gpu".to_owned(), "h100".to_owned())])
            });
            let spec = EndpointSpec {
                name: format!("pod-{i}-rank-0"),
                namespace: "default".into(),
                address: ([10, 0, 0, i as u8 + 1], 8000).into(),
                rank: 0,
                incarnation: 0,
                labels: labels.unwrap_or_default(),
            };
            endpoints[*slot as usize] = Some(Arc::new(Endpoint::new(Slot(*slot), i as u64, spec)));
            if let Some(age) = facts.age {
                let lora = facts.lora.map(|(names, max)| {
                    let mut state = LoraState::default();
                    state.set(names.iter().copied(), names.iter().copied(), max);
                    state
                });
                let sample = LoadSample {
                    taken_at: Timestamp::from_millis(100_000 - age),
                    waiting: facts.waiting,
                    running: facts.running,
                    kv_usage: facts.kv_usage,
                    detail: Arc::new(LoadDetail { lora, ..LoadDetail::default() }),
                };
                loads.set(Slot(*slot), &sample);
            }
            prefix.matched[*slot as usize] = facts.blocks;
            in_flight.requests[*slot as usize] = facts.requests;
            in_flight.tokens[*slot as usize] = facts.tokens;
            accounts.endpoints[*slot as usize].prefill_tokens = facts.tokens as f32;
        }
        let topology = Arc::new(Topology::new(1, PoolIdentity::default(), endpoints));
        // The token of `default/pod-1-rank-0`.
        let headers =
            Headers::from([("x-session-token", "ZGVmYXVsdC9wb2QtMS1yYW5rLTA="), ("x-session-id", "some-session")]);
        Self {
            request: InferenceRequest {
                headers,
                target_model: ADAPTER.into(),
                prompts: std::iter::once(Prompt { segments: smallvec![Segment::Fixed(b"Once upon a time")] }).collect(),
                ..InferenceRequest::default()
            },
            snapshot: Snapshot { topology, loads: Arc::new(loads) },
            signals: Signals {
                prefix: vec![prefix],
                in_flight: Some(in_flight),
                accounts: Some(accounts),
                ..Signals::default()
            },
        }
    }

    fn cycle(&self) -> Cycle<'_> {
        Cycle { request: &self.request, snapshot: &self.snapshot, signals: &self.signals, now: NOW }
    }

    fn slots(&self) -> Vec<Slot> {
        self.snapshot.topology.live().iter().collect()
    }

    /// Scores by endpoint, whatever slots they are in.
    fn scores(&self, built: &Built) -> BTreeMap<String, f32> {
        let slots = self.slots();
        let mut out = vec![0.0; slots.len()];
        built.scorer.as_ref().unwrap().score(&self.cycle(), &slots, &mut out);
        let name = |slot: &Slot| self.snapshot.topology.get(*slot).unwrap().name().to_owned();
        slots.iter().map(name).zip(out).collect()
    }
}

/// What each scorer holds against an endpoint: with more of it the score never rises. `None` marks
/// what is unknown and proves nothing.
type Burden = fn(&Facts) -> Option<f32>;

const BURDENS: &[(&str, Burden)] = &[
    ("queue-scorer", |f| f.known(f.waiting)),
    ("running-requests-size-scorer", |f| f.known(f.running)),
    ("kv-cache-utilization-scorer", |f| f.known(f.kv_usage)),
    ("load-aware-scorer", |f| f.known(f.waiting)),
    ("active-request-scorer", |f| Some(f.requests as f32)),
    ("prefix-cache-scorer", |f| Some(-(f.blocks as f32))),
    // Of equals in this; cached blocks change what the request itself would add.
    ("token-load-scorer", |f| (f.blocks == 0).then_some(f.tokens as f32)),
    ("outstanding-prefill-scorer", |f| Some(f.tokens as f32)),
    // Turns that were taken, and adapters, have no scale. The unit tests compare them with oracles.
    ("no-hit-lru-scorer", |_| None),
    ("lora-affinity-scorer", |_| None),
    // A session has one endpoint and no scale.
    ("session-affinity-scorer", |_| None),
    // The order of a prefix is arbitrary, but who is over the bound comes after all others.
    ("consistent-hash-scorer", |_| None),
    // Of the sample.
    ("cel-scorer", |f| Some(f.known(f.kv_usage)?.max(f.known(f.waiting)? / 128.0))),
];

/// Filters whose rule is about the candidates together: they let all pass where they would leave
/// nobody, or treat the unknown by whether others are known. Their unit tests compare them with oracles.
const RELATIVE: &[&str] = &["utilization-filter", "session-affinity-filter", "prefix-cache-affinity-filter"];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn scores_are_in_range_independent_of_order_and_monotone((facts, one, other) in arranged()) {
        let (here, there) = (Scene::new(&facts, &one), Scene::new(&facts, &other));
        for row in scorers::TABLE {
            let kind = row.about.kind;
            let burden = BURDENS.iter().find(|(k, _)| *k == kind).map(|(_, b)| b);
            prop_assert!(burden.is_some(), "{} has no entry in BURDENS", kind);
            for built in plain(row).into_iter().chain([sample(row)]) {
                let scores = here.scores(&built);
                for (name, score) in &scores {
                    prop_assert!(score.is_finite() && (0.0..=1.0).contains(score), "{}: {} for {}", kind, score, name);
                }
                prop_assert_eq!(&scores, &there.scores(&built), "{} depends on the slots", kind);
                let known: Vec<(f32, f32)> = facts
                    .iter()
                    .enumerate()
                    .filter_map(|(i, f)| Some((burden.unwrap()(f)?, scores[&format!("pod-{i}-rank-0")])))
                    .collect();
                for (a, b) in known.iter().flat_map(|a| known.iter().map(move |b| (a, b))) {
                    prop_assert!(a.0 > b.0 || a.1 >= b.1, "{}: {:?} against {:?}", kind, a, b);
                }
            }
        }
    }

    #[test]
    fn the_unseen_never_beat_the_seen((facts, slots, _) in arranged()) {
        let scene = Scene::new(&facts, &slots);
        for row in &scorers::TABLE[..4] {
            let burden = BURDENS.iter().find(|(k, _)| *k == row.about.kind).unwrap().1;
            let scores = scene.scores(&plain(row).unwrap());
            let of = |seen: bool| {
                let scores = &scores;
                facts.iter().enumerate().filter(move |(_, f)| burden(f).is_some() == seen)
                    .map(move |(i, _)| scores[&format!("pod-{i}-rank-0")])
            };
            if of(true).next().is_some() {
                prop_assert!(of(false).all(|score| score == 0.0), "{}", row.about.kind);
            } else {
                let best = of(false).next().unwrap_or(0.0);
                prop_assert!(of(false).all(|score| score == best && score > 0.0), "{}", row.about.kind);
            }
        }
    }

    /// The rule for missing data holds for adapters too, which have no order to put into `BURDENS`.
    #[test]
    fn an_endpoint_without_adapters_never_beats_one_with((facts, slots, _) in arranged()) {
        let row = scorers::TABLE.iter().find(|r| r.about.kind == "lora-affinity-scorer").unwrap();
        let scores = Scene::new(&facts, &slots).scores(&plain(row).unwrap());
        let seen = |f: &Facts| f.lora.is_some() && f.age.is_some_and(|age| age <= 2_000);
        let unseen = facts.iter().enumerate().filter(|(_, f)| !seen(f)).map(|(i, _)| scores[&format!("pod-{i}-rank-0")]);
        let expected = if facts.iter().any(seen) { 0.0 } else { 1.0 };
        prop_assert!(unseen.into_iter().all(|score| score == expected));
    }

    #[test]
    fn filters_only_remove((facts, slots, other) in arranged()) {
        let (scene, elsewhere) = (Scene::new(&facts, &slots), Scene::new(&facts, &other));
        for row in filters::TABLE {
            for built in plain(row).into_iter().chain([sample(row)]) {
                let filter = built.filter.unwrap();
                let mut kept = scene.slots();
                filter.filter(&scene.cycle(), &mut kept);
                prop_assert!(kept.is_sorted(), "{} changes the order", row.about.kind);
                prop_assert!(kept.iter().all(|s| scene.slots().contains(s)), "{} adds", row.about.kind);
                let mut again = kept.clone();
                filter.filter(&scene.cycle(), &mut again);
                prop_assert_eq!(&kept, &again, "{} removes more the second time", row.about.kind);
                if !RELATIVE.contains(&row.about.kind) {
                    let mut part: Vec<Slot> = scene.slots().into_iter().step_by(2).collect();
                    let whole: Vec<Slot> = part.iter().copied().filter(|s| kept.contains(s)).collect();
                    filter.filter(&scene.cycle(), &mut part);
                    prop_assert_eq!(part, whole, "{} depends on the other candidates", row.about.kind);
                }
                let mut moved = elsewhere.slots();
                filter.filter(&elsewhere.cycle(), &mut moved);
                prop_assert_eq!(kept.len(), moved.len(), "{} depends on the slots", row.about.kind);
            }
        }
    }

    #[test]
    fn picks_are_distinct_valid_and_as_many_as_asked(
        totals in proptest::collection::vec(prop_oneof![3 => 0.0f32..10.0, 2 => Just(1.0), 1 => any::<f32>()], 0..40),
        count in 1usize..6,
        seed in any::<u64>(),
    ) {
        let candidates: Vec<Slot> = (0..totals.len() as u32).map(|i| Slot(i * 3)).collect();
        let scene = Scene::new(&[], &[]);
        let parameters = read_yaml(&format!("maxNumOfEndpoints: {count}"));
        for row in pickers::TABLE {
            let built = try_build(&mut Registry::default(), row, Some(&parameters)).0.unwrap();
            let mut picked = Vec::new();
            let mut rng = fastrand::Rng::with_seed(seed);
            built.picker.unwrap().pick(&scene.cycle(), &candidates, &totals, &mut rng, &mut picked);
            let distinct: BTreeSet<_> = picked.iter().collect();
            prop_assert_eq!(distinct.len(), picked.len(), "{} repeats itself", row.about.kind);
            prop_assert_eq!(picked.len(), count.min(totals.len()), "{}", row.about.kind);
            prop_assert!(picked.iter().all(|i| *i < totals.len()), "{} invents endpoints", row.about.kind);
            if row.about.kind == "max-score-picker" {
                let mut best: Vec<f32> = totals.iter().map(|t| if t.is_nan() { f32::NEG_INFINITY } else { *t }).collect();
                let chosen: Vec<f32> = picked.iter().map(|i| best[*i]).collect();
                best.sort_by(|a, b| b.total_cmp(a));
                prop_assert_eq!(&chosen[..], &best[..chosen.len()]);
            }
        }
    }
}

#[test]
fn weighted_chances_follow_the_totals() {
    let row = pickers::TABLE.iter().find(|r| r.about.kind == "weighted-random-picker").unwrap();
    let (picker, scene) = (plain(row).unwrap().picker.unwrap(), Scene::new(&[], &[]));
    let totals = [7.0, 0.0, 2.0, 1.0];
    let candidates = [Slot(0), Slot(1), Slot(2), Slot(3)];
    let (mut rng, mut wins) = (fastrand::Rng::with_seed(42), [0u32; 4]);
    for _ in 0..20_000 {
        let mut picked = Vec::new();
        picker.pick(&scene.cycle(), &candidates, &totals, &mut rng, &mut picked);
        wins[picked[0]] += 1;
    }
    for (win, total) in wins.iter().zip(totals) {
        let expected = 2_000.0 * total;
        assert!((f64::from(*win) - f64::from(expected)).abs() <= 400.0, "{wins:?}");
    }
    assert_eq!(wins[1], 0);
}

// === samples are YAML ===

/// Reads the YAML subset of configuration files; anchors and tags do not occur in samples.
fn read_yaml(text: &str) -> Node {
    let mut events = Parser::new_from_str(text).map(|e| e.expect("sample is not YAML")).filter_map(|(event, span)| {
        let at = Position { line: span.start.line() as u32, column: span.start.col() as u32 + 1 };
        (!matches!(event, Event::StreamStart | Event::DocumentStart(_))).then_some((event, at))
    });
    let first = events.next().expect("empty sample");
    read_node(first, &mut events)
}

fn read_node<'i>((event, at): (Event<'i>, Position), events: &mut impl Iterator<Item = (Event<'i>, Position)>) -> Node {
    let value = match event {
        Event::Scalar(text, ScalarStyle::Plain, _, _) => match &*text {
            "" | "~" | "null" => Value::Null,
            "true" => Value::Bool(true),
            "false" => Value::Bool(false),
            text => match (text.parse::<i64>(), text.parse::<f64>()) {
                (Ok(i), _) => Value::Integer(i),
                (_, Ok(x)) => Value::Float(x),
                _ => Value::String(text.to_owned()),
            },
        },
        Event::Scalar(text, ..) => Value::String(text.into_owned()),
        Event::SequenceStart(..) => {
            let mut items = Vec::new();
            loop {
                match events.next().expect("open list") {
                    (Event::SequenceEnd, _) => break Value::Sequence(items),
                    item => items.push(read_node(item, events)),
                }
            }
        }
        Event::MappingStart(..) => {
            let mut entries = Vec::new();
            loop {
                let (key, at) = match events.next().expect("open mapping") {
                    (Event::MappingEnd, _) => break Value::Mapping(entries),
                    (Event::Scalar(key, ..), at) => (key.into_owned(), at),
                    (other, _) => panic!("a key is text, not {other:?}"),
                };
                let value = events.next().expect("key without value");
                entries.push((key, at, read_node(value, events)));
            }
        }
        other => panic!("not in a sample: {other:?}"),
    };
    Node { at, value }
}
