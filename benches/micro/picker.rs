//! A director as the process makes it: three weighted scorers over 100 endpoints whose load is known, or what a
//! configuration says.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pointsman::config::{Config, Purpose, Settings, Tables, resolve};
use pointsman::dialect::{Dialects, Wants};
use pointsman::director::decisions::DecisionLog;
use pointsman::director::{self, Directed, Director, NamedProducer};
use pointsman::domain::{EndpointSpec, LoadSample, PoolIdentity};
use pointsman::lifecycle::clock::{Clock as _, ManualClock};
use pointsman::pool::Pool;
use pointsman::scheduling::plugin::{Need, SignalKind};
use pointsman::telemetry::metrics::Metrics;

const ENDPOINTS: u8 = 100;

/// llm-d-router's default weights. What the edge and the parts around the pick cost is counted with them, so that counts of
/// different versions can be compared; the pick itself has a bench of its own.
const WEIGHTED: &str = include_str!("../../config/weighted-scorers.yaml");

/// No sample grows old while the clock is moved on.
const FOREVER: Duration = Duration::from_secs(1 << 30);

/// A director, and the clock that it goes by.
pub struct Picker {
    pub directed: Directed,
    pub clock: Arc<ManualClock>,
}

impl Picker {
    /// With weighted scorers; keeps records of as many decisions as `recorded` says.
    pub fn new(access_log: bool, recorded: usize) -> Self {
        Self::configured(WEIGHTED, ENDPOINTS, access_log, recorded)
    }

    /// With this configuration over so many endpoints.
    pub fn configured(document: &str, endpoints: u8, access_log: bool, recorded: usize) -> Self {
        let config =
            resolve("bench", Some(document.as_bytes()), Settings::default(), &Tables::standard(), Purpose::Check);
        let config = config.unwrap_or_else(|e| panic!("{e}"));
        let clock = Arc::new(ManualClock::default());
        let producers = config.producers.iter();
        let director = Director::new(director::Parts {
            pool: pool(&clock, endpoints),
            scheduler: config.scheduler.clone(),
            producers: producers
                .map(|p| NamedProducer { name: p.name.clone(), kind: p.kind, producer: p.producer.clone() })
                .collect(),
            prefix_producers: prefix_producers(&config),
            commits: config.commits.clone(),
            saturation: config.detector.clone(),
            dispatch: config.dispatch.clone(),
            plugins: config.names.clone(),
            dialects: Dialects::default(),
            metrics: Metrics::new(),
            clock: clock.clone(),
            traces: None,
            decisions: Arc::new(DecisionLog::new(recorded)),
            settings: director::Settings {
                wants: Wants { prompts: config.registry.needs(&Need::Prompts) },
                reads_usage: config.settings.token_metrics || config.registry.needs(&Need::Usage),
                ignore_subset: false,
                emit_scores: false,
                access_log,
                seed: Some(7),
                test: config.registry.test_switches.clone(),
            },
        });
        assert!(director.parts().settings.wants.prompts, "the profile reads prompts");
        Self { directed: Directed(Arc::new(director)), clock }
    }
}

fn prefix_producers(config: &Config) -> Vec<(Arc<str>, &'static str)> {
    let kind = |name: &Arc<str>| config.producers.iter().find(|p| p.name == *name).map_or("", |p| p.kind);
    config.registry.producers(SignalKind::Prefix).map(|name| (Arc::clone(name), kind(name))).collect()
}

fn pool(clock: &Arc<ManualClock>, endpoints: u8) -> Arc<Pool> {
    let spec = |i: u8| EndpointSpec {
        name: format!("server-{i}"),
        namespace: "default".into(),
        address: ([10, 0, 0, i], 8000).into(),
        rank: 0,
        incarnation: 0,
        labels: BTreeMap::new(),
    };
    let pool = Arc::new(Pool::new(PoolIdentity::default(), FOREVER, clock.clone(), Box::new(|_| {})));
    pool.replace((1..=endpoints).map(spec).collect());
    let mut rng = fastrand::Rng::with_seed(3);
    let snapshot = Arc::clone(&pool.snapshot());
    for endpoint in snapshot.topology.endpoints() {
        let sample = LoadSample {
            taken_at: clock.now(),
            waiting: Some(rng.u32(0..20) as f32),
            running: Some(rng.u32(0..200) as f32),
            kv_usage: Some(rng.f32()),
            ..LoadSample::default()
        };
        pool.report(endpoint.slot, endpoint.generation, &sample);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(async {
        let published = tokio::time::timeout(Duration::from_secs(1), pool.publish_samples()).await;
        assert!(published.is_err(), "it publishes for as long as it is polled");
    });
    assert!(!Arc::ptr_eq(&snapshot.loads, &pool.snapshot().loads), "the samples are visible");
    pool
}
