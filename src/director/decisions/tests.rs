use std::collections::BTreeMap;

use super::*;
use crate::domain::record::MAX_TEXT;
use crate::domain::{
    Costs, Ended, Endpoint, EndpointSpec, Explanation, Headers, Outcome, PoolIdentity, PrefixMatch, ProfileResult,
    Ranked, Slot, Usage,
};

fn topology(version: u64, n: u32) -> Arc<Topology> {
    let endpoint = |i: u32| {
        let spec = EndpointSpec {
            name: format!("pod-{i}"),
            namespace: "default".into(),
            address: ([10, 0, (i >> 8) as u8, i as u8], 8000).into(),
            rank: 0,
            incarnation: 0,
            labels: BTreeMap::new(),
        };
        Some(Arc::new(Endpoint::new(Slot(i), 1, spec)))
    };
    Arc::new(Topology::new(version, PoolIdentity::default(), (0..n).map(endpoint).collect()))
}

/// A decision over the first endpoints of `topology`; the last one was filtered out.
fn decision(topology: &Arc<Topology>, costs: Option<Costs>) -> Decision {
    let n = topology.len() - 1;
    let why = Explanation {
        topology: Arc::clone(topology),
        filters: vec!["decode-filter".into()],
        removed: vec![(Slot(n as u32), 0)],
        scorers: vec![("queue-scorer".into(), 2.0), ("prefix-cache-scorer".into(), 3.0)],
        candidates: (0..n as u32).map(Slot).collect(),
        values: (0..2 * n).map(|i| (i % n) as f32 * 0.4).collect(),
        totals: (0..n).map(|i| i as f32 * 2.0).collect(),
        picker: "max-score-picker".into(),
        tie: Some("lot"),
        costs,
        scores_only: false,
    };
    let best = Arc::clone(topology.get(Slot(n as u32 - 1)).unwrap());
    let result = ProfileResult {
        profile: "default".into(),
        picked: [Ranked { endpoint: best, score: 2.0 }].into_iter().collect(),
        explanation: Some(Box::new(why)),
    };
    Decision { profiles: [result].into_iter().collect(), primary: 0, headers: Vec::new() }
}

fn request(id: &str) -> InferenceRequest {
    InferenceRequest {
        id: id.into(),
        path: "/v1/completions".into(),
        model: "m".into(),
        target_model: "m".into(),
        fairness_id: "default-flow".into(),
        ..InferenceRequest::default()
    }
}

fn record(log: &DecisionLog, id: &str, topology: &Arc<Topology>) -> Arc<Record> {
    log.record(&request(id), decision(topology, None), Signals::default(), Timestamp(0), Duration::ZERO).unwrap()
}

fn ids(page: &Value) -> Vec<&str> {
    page["decisions"].as_array().unwrap().iter().map(|d| d["requestId"].as_str().unwrap()).collect()
}

#[test]
fn the_last_ones_are_kept_and_found_by_both_names() {
    let (log, pool) = (DecisionLog::new(3), topology(1, 3));
    for id in ["a", "b", "a", "c"] {
        record(&log, id, &pool);
    }
    assert_eq!(ids(&log.to_json()), ["b", "a", "c"]);
    let of = |limit, id: Option<&str>| log.page(&Query { limit, id: id.map(Into::into) }, None);
    assert_eq!(ids(&of(Some(2), None)), ["a", "c"]);
    assert_eq!(ids(&of(Some(0), None)), [""; 0]);
    assert_eq!(ids(&of(None, Some("a"))), ["a"], "the first one is gone");
    let third = of(None, Some("a"))["decisions"][0]["id"].as_str().unwrap().to_owned();
    assert!(third.ends_with("-3"), "{third}");
    assert_eq!(ids(&of(Some(5), Some(&third))), ["a"]);
    assert_eq!(ids(&of(None, Some("nobody"))), [""; 0]);
}

#[test]
fn query_strings_are_read() {
    let query = Query::parse("limit=3&id=a%2Fb%20%%zz%e4&").unwrap();
    assert_eq!((query.limit, query.id.as_deref()), (Some(3), Some("a/b %%zz\u{fffd}")));
    let none = Query::parse("").unwrap();
    assert_eq!((none.limit, none.id), (None, None));
    assert_eq!(Query::parse("limit=x").unwrap_err(), "limit=x: a number is expected\n");
    assert_eq!(Query::parse("last").unwrap_err(), "`last` is not known here; use limit=N and id=X\n");
}

#[test]
fn off_is_off_and_what_was_not_explained_is_not_recorded() {
    let (pool, now) = (topology(1, 3), Timestamp(0));
    let off = DecisionLog::new(0);
    assert!(!off.is_on() && !off.wants(&request("a"), now));
    assert!(off.record(&request("a"), decision(&pool, None), Signals::default(), now, Duration::ZERO).is_none());
    let mut plain = decision(&pool, None);
    plain.profiles[0].explanation = None;
    assert!(DecisionLog::new(5).record(&request("a"), plain, Signals::default(), now, Duration::ZERO).is_none());
    let mut scored = decision(&pool, None);
    scored.profiles[0].explanation.as_mut().unwrap().scores_only = true;
    assert!(DecisionLog::new(5).record(&request("a"), scored, Signals::default(), now, Duration::ZERO).is_none());
}

#[test]
fn a_second_has_a_limit_that_those_who_ask_do_not_have() {
    let log = DecisionLog::new(10).with_rate(3).with_header(true);
    let asks = InferenceRequest { headers: Headers::from([(EXPLAIN_HEADER, "true")]), ..request("a") };
    let takes = |at: u64| {
        let (wanted, again) = (log.wants(&request("a"), Timestamp(at)), log.wants(&request("a"), Timestamp(at)));
        assert_eq!(wanted, again, "asking changes nothing");
        wanted.then(|| log.count(Timestamp(at))).is_some()
    };
    let taken = |from: u64| (0..10).filter(|i| takes(from + i)).count();
    assert_eq!((taken(0), taken(500_000), taken(1_000_000), taken(7_999_995)), (3, 0, 3, 6));
    assert!(log.wants(&asks, Timestamp(8_000_050)));
    let no = InferenceRequest { headers: Headers::from([(EXPLAIN_HEADER, "false")]), ..request("a") };
    assert!(!log.wants(&no, Timestamp(8_000_100)));
    let unlimited = DecisionLog::new(10);
    assert!((0..100).all(|_| unlimited.wants(&request("a"), Timestamp(0))));
    assert!(!unlimited.is_asked(&asks), "not allowed");
    let only = DecisionLog::new(0).with_rate(100).with_header(true);
    assert!(only.is_on() && only.wants(&asks, Timestamp(0)) && !only.wants(&request("a"), Timestamp(0)));
}

#[test]
fn neither_bytes_nor_topologies_grow_without_end() {
    let log = DecisionLog::new(MAX_KEPT);
    for version in 0..500 {
        let pool = topology(version, 2);
        record(&log, "a", &pool);
        record(&log, "b", &pool);
    }
    let ring = log.kept.lock();
    assert_eq!((ring.changes, ring.records.len()), (MAX_TOPOLOGIES - 1, MAX_TOPOLOGIES * 2));
    drop(ring);
    let (log, large) = (DecisionLog::new(MAX_KEPT), topology(1, 20_000));
    for _ in 0..300 {
        record(&log, "a", &large);
    }
    let ring = log.kept.lock();
    assert!(ring.bytes <= MAX_BYTES && ring.records.len() > 50, "{} {}", ring.bytes, ring.records.len());
    assert_eq!(ring.bytes, ring.records.iter().map(|r| r.size()).sum::<usize>());
    let kept = ring.records.len();
    drop(ring);
    let page = log.to_json();
    assert_eq!((ids(&page).len(), page["older"].as_u64()), (MAX_ROWS / 20_000, Some(kept as u64 - 5)));
}

#[test]
fn a_record_as_json() {
    let (log, pool) = (DecisionLog { process: 0x3fa9, ..DecisionLog::new(3) }, topology(1, 3));
    let found = PrefixMatch { matched: vec![0, 12], ..PrefixMatch::default() };
    let signals = Signals { prompt_tokens: Some(812), prefix: vec![found], ..Signals::default() };
    let costs = Costs { terms: vec!["prefill", "wait"], values: vec![0.5, 0.4, 0.25, 0.1], unit: "s", tolerance: 0.02 };
    let held = Duration::from_millis(7);
    let made = log.record(&request("r-1"), decision(&pool, Some(costs)), signals, Timestamp(1_000), held).unwrap();
    made.end(Ended {
        outcome: Outcome::Completed,
        status: 200,
        ttft: Some(Duration::from_micros(312_500)),
        total: Duration::from_secs(2),
        usage: Usage { prompt_tokens: Some(800), cached_tokens: Some(640), completion_tokens: Some(88) },
        served_by: None,
    });
    let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(60);
    let page = log.page(&Query::default(), Some((Timestamp(2_001_000), wall)));
    assert_eq!(
        page["decisions"][0],
        serde_json::json!({
            "id": "3fa9-1", "requestId": "r-1", "at": "1970-01-01T00:00:58.000Z", "heldMs": 7.0,
            "path": "/v1/completions", "model": "m", "targetModel": "m", "priority": 0, "fairnessId": "default-flow",
            "promptTokens": 812, "destination": "10.0.0.1:8000", "primary": "default",
            "profiles": [{
                "profile": "default",
                "picked": [{ "endpoint": "pod-1", "address": "10.0.0.1:8000", "score": 2.0 }],
                "explanation": {
                    "picker": "max-score-picker",
                    "scorers": [
                        { "name": "queue-scorer", "weight": 2.0 }, { "name": "prefix-cache-scorer", "weight": 3.0 }
                    ],
                    "costs": { "terms": ["prefill", "wait"], "unit": "s", "tolerance": 0.02 },
                    "candidates": [
                        { "endpoint": "pod-0", "address": "10.0.0.0:8000", "values": [0.0, 0.0], "total": 0.0,
                          "prefixBlocks": [0], "costs": [0.5, 0.4], "cost": 0.9 },
                        { "endpoint": "pod-1", "address": "10.0.0.1:8000", "values": [0.4, 0.4], "total": 2.0,
                          "prefixBlocks": [12], "costs": [0.25, 0.1], "cost": 0.35 },
                    ],
                    "removed": [{ "endpoint": "pod-2", "slot": 2, "filter": "decode-filter" }],
                },
                "verdict": {
                    "winner": "pod-1", "runnerUp": "pod-0", "margin": 0.55, "unit": "s", "decidedBy": "margin",
                    "tieRule": "lot",
                    "flips": [
                        { "endpoint": "pod-1", "column": "prefill", "from": 0.25, "to": 0.8 },
                        { "endpoint": "pod-1", "column": "wait", "from": 0.1, "to": 0.65 },
                    ],
                },
            }],
            "outcome": {
                "outcome": "completed", "status": 200, "ttftMs": 312.5, "totalMs": 2000.0, "promptTokens": 800,
                "cachedTokens": 640, "outputTokens": 88, "servedBy": null,
            },
        })
    );
    let long = InferenceRequest { model: "x".repeat(9_999).into(), ..request("long") };
    let made = log.record(&long, decision(&pool, None), Signals::default(), Timestamp(0), Duration::ZERO).unwrap();
    assert_eq!(made.model.len(), MAX_TEXT);
}
