//! A profile over a pool of any size (the weighted scores, or the costs), for the benchmark and for the allocation test.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pointsman::domain::node::{Position, Problems};
use pointsman::domain::{
    Account, AccountView, CacheView, Endpoint, EndpointSpec, InferenceRequest, LoadSample, LoadTable, PoolIdentity,
    PrefixMatch, ProfileResult, Signals, Slot, Snapshot, Timestamp, Topology,
};
use pointsman::scheduling::plugin::{Build, Built, Cycle, Registry, Row};
use pointsman::scheduling::profile::{Profile, Scratch, WeightedScorer};
use pointsman::scheduling::{pickers, scorers};

const NOW: Timestamp = Timestamp::from_millis(10_000);
const BLOCKS: u32 = 64;

/// A pool in which no two endpoints look alike, and a request whose prompt some of them hold.
pub struct Pool {
    request: InferenceRequest,
    snapshot: Snapshot,
    signals: Signals,
    base: Vec<Slot>,
    profile: Profile,
}

fn instance(table: &[Row], kind: &str) -> Built {
    let row = table.iter().find(|row| row.about.kind == kind).expect("unknown plugin");
    let mut context = Build {
        name: kind,
        path: String::new(),
        at: Position::default(),
        parameters: None,
        registry: &mut Registry::default(),
        problems: &mut Problems::default(),
    };
    (row.build)(&mut context).expect("plugin does not build")
}

impl Pool {
    /// `endpoints` endpoints under the weights of llm-d-router's default: queue 2, KV cache 2, prefix 3, highest wins.
    pub fn new(endpoints: usize) -> Self {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut loads = LoadTable::new(Duration::from_secs(2));
        let mut prefix = PrefixMatch { block_tokens: 64, total_blocks: BLOCKS, ..PrefixMatch::default() };
        prefix.chains.push((0..u64::from(BLOCKS)).collect());
        let mut slots = Vec::with_capacity(endpoints);
        for i in 0..endpoints as u32 {
            let address = ([10, (i >> 16) as u8, (i >> 8) as u8, i as u8], 8000).into();
            let name = format!("pod-{i}-rank-0");
            let spec = EndpointSpec {
                name,
                namespace: "default".into(),
                address,
                rank: 0,
                incarnation: 0,
                labels: BTreeMap::new(),
            };
            slots.push(Some(Arc::new(Endpoint::new(Slot(i), u64::from(i), spec))));
            let sample = LoadSample {
                taken_at: NOW,
                waiting: Some(rng.u32(0..20) as f32),
                running: Some(rng.u32(0..200) as f32),
                kv_usage: Some(rng.f32()),
                ..LoadSample::default()
            };
            loads.set(Slot(i), &sample);
            prefix.matched.push(if rng.u32(0..4) == 0 { rng.u32(0..=BLOCKS) } else { 0 });
        }
        let weighted = [("queue-scorer", 2.0), ("kv-cache-utilization-scorer", 2.0), ("prefix-cache-scorer", 3.0)];
        let profile = Profile {
            name: "default".into(),
            filters: Vec::new(),
            scorers: weighted
                .into_iter()
                .map(|(kind, weight)| WeightedScorer {
                    name: kind.into(),
                    weight,
                    scorer: instance(scorers::TABLE, kind).scorer.expect("not a scorer"),
                })
                .collect(),
            picker: (
                "max-score-picker".into(),
                instance(pickers::TABLE, "max-score-picker").picker.expect("not a picker"),
            ),
        };
        let topology = Arc::new(Topology::new(1, PoolIdentity::default(), slots));
        Self {
            request: InferenceRequest::default(),
            base: topology.live().iter().collect(),
            snapshot: Snapshot { topology, loads: Arc::new(loads) },
            signals: Signals { prefix: vec![prefix], ..Signals::default() },
            profile,
        }
    }

    /// The same pool under `cost-picker`, with accounts and mirrored caches.
    #[allow(dead_code, reason = "not every benchmark does")]
    pub fn priced(endpoints: usize) -> Self {
        let mut pool = Self::new(endpoints);
        let mut rng = fastrand::Rng::with_seed(3);
        let account = |rng: &mut fastrand::Rng| {
            let outstanding = rng.f32() * 2.0;
            Account {
                outstanding,
                backlog: outstanding * rng.f32(),
                rate: 10_000.0 + rng.f32() * 5_000.0,
                prefill_tokens: outstanding * 12_000.0,
                prefilling: rng.u32(0..4),
                in_flight: rng.u32(0..40),
                load: rng.f32(),
                intake: rng.f32() * 100_000.0,
                ahead: 0.0,
            }
        };
        let accounts = AccountView {
            endpoints: (0..endpoints).map(|_| account(&mut rng)).collect(),
            arrivals: 0.4,
            load: 0.6,
            mean_prefill: 0.5,
            mean_stay: 12.0,
            samples: 900,
        };
        let caches = CacheView {
            capacity: vec![1_000_000.0; endpoints],
            oldest_age: (0..endpoints).map(|_| rng.f32() * 600.0).collect(),
            reuse_age: 60.0,
        };
        pool.signals.prompt_tokens = Some(u64::from(BLOCKS) * 64 + 30);
        pool.signals.prefix[0].caches = Some(caches);
        pool.signals.accounts = Some(accounts);
        pool.profile.scorers.clear();
        let picker = instance(pickers::TABLE, "cost-picker").picker.expect("not a picker");
        pool.profile.picker = ("cost-picker".into(), picker);
        pool
    }

    /// What plugins read.
    #[allow(dead_code, reason = "the benchmark runs whole decisions only")]
    pub fn cycle(&self) -> Cycle<'_> {
        Cycle { request: &self.request, snapshot: &self.snapshot, signals: &self.signals, now: NOW }
    }

    /// The endpoints.
    #[allow(dead_code, reason = "the benchmark runs whole decisions only")]
    pub fn slots(&self) -> &[Slot] {
        &self.base
    }

    /// The profile, to run over another pool.
    #[allow(dead_code, reason = "not every benchmark does")]
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// What one worker thread keeps between decisions.
    pub fn worker(&self) -> Worker<'_> {
        Worker { pool: self, rng: fastrand::Rng::with_seed(2), scratch: Scratch::default() }
    }
}

/// A worker over a pool.
pub struct Worker<'a> {
    pool: &'a Pool,
    rng: fastrand::Rng,
    scratch: Scratch,
}

impl Worker<'_> {
    /// One decision.
    pub fn pick(&mut self) -> Option<ProfileResult> {
        let Pool { request, snapshot, signals, base, profile } = self.pool;
        let cycle = Cycle { request, snapshot, signals, now: NOW };
        profile.run(&cycle, base, &mut self.rng, &mut self.scratch, false)
    }
}
