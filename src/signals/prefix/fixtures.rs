//! Pools, requests and decisions for the tests of the producers that index prompts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use smallvec::smallvec;

use crate::domain::node::{Node, Position, Problems, Value};
use crate::domain::{
    Decision, Endpoint, EndpointSpec, InferenceRequest, LoadDetail, LoadSample, LoadTable, Outcome, PoolIdentity,
    ProfileResult, Prompt, Ranked, Segment, Signals, Slot, Snapshot, Timestamp, Topology, Usage,
};
use crate::scheduling::plugin::{Build, Built, End, Registry, Routed, Watch};

pub fn make(
    build: fn(&mut Build<'_>) -> Option<Built>,
    parameters: &[(&str, Value)],
) -> (Option<Built>, Problems, Registry) {
    let entry =
        |(k, v): &(&str, Value)| (String::from(*k), Position::default(), Node { value: v.clone(), ..Node::default() });
    let node = Node { value: Value::Mapping(parameters.iter().map(entry).collect()), ..Node::default() };
    let (mut registry, mut problems) = (Registry::default(), Problems::default());
    let built = build(&mut Build {
        name: "prefix",
        path: "parameters".into(),
        at: Position::default(),
        parameters: Some(&node),
        registry: &mut registry,
        problems: &mut problems,
    });
    (built, problems, registry)
}

pub fn endpoint(slot: u32, generation: u64) -> Arc<Endpoint> {
    let spec = EndpointSpec {
        name: format!("pod-{slot}"),
        namespace: "default".into(),
        address: format!("10.0.0.{}:8000", slot + 1).parse().unwrap(),
        rank: 0,
        incarnation: 0,
        labels: BTreeMap::new(),
    };
    Arc::new(Endpoint::new(Slot(slot), generation, spec))
}

/// Two endpoints, of which the second reports (block size, blocks) if given.
pub fn snapshot(reported: Option<(u32, u32)>) -> Snapshot {
    let slots = vec![Some(endpoint(0, 1)), Some(endpoint(1, 2))];
    let mut loads = LoadTable::new(Duration::from_secs(2));
    if let Some((block_size, num_blocks)) = reported {
        let detail = LoadDetail { block_size: Some(block_size), num_blocks: Some(num_blocks), ..LoadDetail::default() };
        loads.set(Slot(1), &LoadSample { detail: Arc::new(detail), ..LoadSample::default() });
    }
    Snapshot { topology: Arc::new(Topology::new(1, PoolIdentity::default(), slots)), loads: Arc::new(loads) }
}

pub fn request(body: &[u8]) -> InferenceRequest {
    InferenceRequest {
        body: Bytes::copy_from_slice(body),
        target_model: "m".into(),
        prompts: smallvec![Prompt { segments: smallvec![Segment::Body(0..body.len())] }],
        ..InferenceRequest::default()
    }
}

pub fn decision(snapshot: &Snapshot, picks: &[u32]) -> Decision {
    let result = |slot: &u32| ProfileResult {
        profile: "p".into(),
        picked: smallvec![Ranked { endpoint: Arc::clone(snapshot.topology.get(Slot(*slot)).unwrap()), score: 1.0 }],
        explanation: None,
    };
    Decision { profiles: picks.iter().map(result).collect(), primary: 0, headers: Vec::new() }
}

pub fn produce(built: &Built, request: &InferenceRequest, snapshot: &Snapshot) -> Signals {
    let mut signals = Signals::default();
    built.producer.as_ref().unwrap().produce(request, snapshot, &mut signals);
    signals
}

pub fn commit(
    built: &Built,
    request: &InferenceRequest,
    snapshot: &Snapshot,
    signals: &Signals,
    picks: &[u32],
) -> Option<Box<dyn Watch>> {
    commit_at(Timestamp(0), built, request, snapshot, signals, picks)
}

pub fn commit_at(
    now: Timestamp,
    built: &Built,
    request: &InferenceRequest,
    snapshot: &Snapshot,
    signals: &Signals,
    picks: &[u32],
) -> Option<Box<dyn Watch>> {
    let decision = decision(snapshot, picks);
    built.commit.as_ref().unwrap().commit(&Routed { request, decision: &decision, signals, now })
}

pub fn end() -> End {
    End { outcome: Outcome::Completed, usage: Usage::default(), now: Timestamp(1) }
}
