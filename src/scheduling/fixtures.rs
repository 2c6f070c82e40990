//! Small pools and built plugins for the unit tests of this room and of `signals`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::plugin::{Build, Built, Cycle, Registry, Row};
use crate::domain::node::{Node, Position, Problems, Value};
use crate::domain::{
    Decision, Endpoint, EndpointSpec, InferenceRequest, LoadSample, LoadTable, PoolIdentity, ProfileResult, Ranked,
    Signals, Slot, Snapshot, Timestamp, Topology,
};

/// When the decisions of these tests happen; samples older than two seconds are stale.
pub const NOW: Timestamp = Timestamp::from_millis(100_000);

/// A request, a pool and signals to make a [`Cycle`] of.
#[derive(Default)]
pub struct Scene {
    pub request: InferenceRequest,
    pub snapshot: Snapshot,
    pub signals: Signals,
}

impl Scene {
    pub fn cycle(&self) -> Cycle<'_> {
        Cycle { request: &self.request, snapshot: &self.snapshot, signals: &self.signals, now: NOW }
    }

    pub fn slots(&self) -> Vec<Slot> {
        self.snapshot.topology.live().iter().collect()
    }

    /// What the scorer of `built` says of all endpoints.
    pub fn scores(&self, built: &Built) -> Vec<f32> {
        let slots = self.slots();
        let mut out = vec![0.0; slots.len()];
        built.scorer.as_ref().unwrap().score(&self.cycle(), &slots, &mut out);
        out
    }

    /// The slots that the filter of `built` keeps.
    pub fn kept(&self, built: &Built) -> Vec<u32> {
        let mut slots = self.slots();
        built.filter.as_ref().unwrap().filter(&self.cycle(), &mut slots);
        slots.iter().map(|s| s.0).collect()
    }
}

fn endpoint(slot: usize, labels: BTreeMap<String, String>) -> Arc<Endpoint> {
    let spec = EndpointSpec {
        name: format!("pod-{slot}-rank-0"),
        namespace: "default".into(),
        address: format!("10.0.{}.{}:8000", slot / 250, slot % 250 + 1).parse().unwrap(),
        rank: 0,
        incarnation: 0,
        labels,
    };
    Arc::new(Endpoint::new(Slot(slot as u32), slot as u64 + 1, spec))
}

/// A pool of endpoints with these labels.
pub fn labelled(labels: &[&[(&str, &str)]]) -> Scene {
    let slots = labels
        .iter()
        .enumerate()
        .map(|(i, l)| Some(endpoint(i, l.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())))
        .collect();
    let topology = Arc::new(Topology::new(1, PoolIdentity::default(), slots));
    let loads = Arc::new(LoadTable::new(Duration::from_secs(2)));
    Scene { snapshot: Snapshot { topology, loads }, ..Scene::default() }
}

/// A pool of `n` endpoints without labels or samples.
pub fn pool(n: usize) -> Scene {
    labelled(&vec![&[] as &[(&str, &str)]; n])
}

/// A pool with one endpoint per sample; `None` was never scraped.
pub fn sampled(samples: &[Option<LoadSample>]) -> Scene {
    let mut scene = pool(samples.len());
    let mut loads = LoadTable::new(Duration::from_secs(2));
    for (i, sample) in samples.iter().enumerate() {
        if let Some(sample) = sample {
            loads.set(Slot(i as u32), sample);
        }
    }
    scene.snapshot.loads = Arc::new(loads);
    scene
}

/// A fresh sample with all three core metrics.
pub fn fresh(waiting: f32, running: f32, kv_usage: f32) -> Option<LoadSample> {
    Some(LoadSample {
        taken_at: NOW,
        waiting: Some(waiting),
        running: Some(running),
        kv_usage: Some(kv_usage),
        ..LoadSample::default()
    })
}

/// The same, taken too long ago.
pub fn stale(waiting: f32, running: f32, kv_usage: f32) -> Option<LoadSample> {
    fresh(waiting, running, kv_usage).map(|s| LoadSample { taken_at: Timestamp::from_millis(1_000), ..s })
}

/// A mapping value.
pub fn map(entries: Vec<(&str, Value)>) -> Value {
    Value::Mapping(entries.into_iter().map(|(k, v)| (k.to_owned(), Position::default(), node(v))).collect())
}

/// A list of texts.
pub fn texts(values: &[&str]) -> Value {
    Value::Sequence(values.iter().map(|v| node(text(v))).collect())
}

/// A text value.
pub fn text(value: &str) -> Value {
    Value::String(value.to_owned())
}

/// A value without a place.
pub fn node(value: Value) -> Node {
    Node { at: Position::default(), value }
}

/// Builds an instance in `registry`, with everything that was found wrong.
pub fn build_in(registry: &mut Registry, row: &Row, parameters: Vec<(&str, Value)>) -> (Option<Built>, Problems) {
    let (parameters, mut problems) = (node(map(parameters)), Problems::default());
    let mut context = Build {
        name: row.about.kind,
        path: "parameters".into(),
        at: Position::default(),
        parameters: Some(&parameters),
        registry,
        problems: &mut problems,
    };
    let built = (row.build)(&mut context);
    (built, problems)
}

/// Builds an instance that must be right.
pub fn build(row: &Row, parameters: Vec<(&str, Value)>) -> Built {
    let (built, problems) = build_in(&mut Registry::default(), row, parameters);
    assert!(problems.errors.is_empty(), "{:#?}", problems.errors);
    built.expect("no problem, no instance")
}

/// The errors of an instance that must be wrong.
pub fn errors(row: &Row, parameters: Vec<(&str, Value)>) -> Vec<String> {
    let (_, problems) = build_in(&mut Registry::default(), row, parameters);
    assert!(!problems.errors.is_empty(), "expected a problem");
    problems.errors.iter().map(ToString::to_string).collect()
}

/// A decision by (profile name, picked slots, best first); the first profile is the primary.
pub fn decision(scene: &Scene, profiles: &[(&str, &[u32])]) -> Decision {
    let ranked =
        |slot: &u32| Ranked { endpoint: Arc::clone(scene.snapshot.topology.get(Slot(*slot)).unwrap()), score: 1.0 };
    let profiles = profiles
        .iter()
        .map(|(name, picked)| ProfileResult {
            profile: Arc::from(*name),
            picked: picked.iter().map(ranked).collect(),
            explanation: None,
        })
        .collect();
    Decision { profiles, primary: 0, headers: Vec::new() }
}
