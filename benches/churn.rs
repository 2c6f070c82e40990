//! A pool of 1,000 endpoints while it changes: what publishing one change costs, and whether decisions notice.
//!
//! Decisions run back to back on one thread over whatever the pool's current snapshot is. In every second round another
//! thread takes an endpoint out and puts it back, 100 changes a second. Rounds alternate, so that both kinds see the same
//! machine; the ratio of the two is what counts.
//!
//! `cargo bench --bench churn`

#![allow(clippy::disallowed_methods, reason = "a measurement is about real time")]

#[path = "pick/pool.rs"]
#[allow(dead_code, reason = "only its profile is used")]
mod fixture;

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use pointsman::domain::{EndpointSpec, InferenceRequest, LoadSample, PoolIdentity, Signals, Slot};
use pointsman::lifecycle::clock::{Clock, SystemClock};
use pointsman::pool::Pool;
use pointsman::scheduling::plugin::Cycle;
use pointsman::scheduling::profile::{Profile, Scratch};

const ENDPOINTS: u32 = 1_000;
const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(2);
const CHANGES_PER_SECOND: u32 = 100;

fn spec(i: u32) -> EndpointSpec {
    let labels = ["app", "pod-template-hash", "llm-d.ai/role"].map(|key| (key.to_owned(), "decode".to_owned()));
    EndpointSpec {
        name: format!("server-{i}-rank-0"),
        namespace: "default".into(),
        address: ([10, 0, (i >> 8) as u8, i as u8], 8000).into(),
        rank: 0,
        incarnation: 0,
        labels: BTreeMap::from(labels),
    }
}

fn key(i: u32) -> (String, String) {
    ("default".to_owned(), spec(i).name)
}

fn percentile(times: &mut [Duration], share: f64) -> Duration {
    times.sort_unstable();
    times[((times.len() - 1) as f64 * share).round() as usize]
}

fn median(mut values: Vec<Duration>) -> Duration {
    percentile(&mut values, 0.5)
}

/// Takes endpoints out and puts them back until `over`; how long each edit took.
fn churn(pool: &Pool, over: &AtomicBool, pause: Duration) -> Vec<Duration> {
    let mut took = Vec::new();
    let mut i = 0;
    while !over.load(Ordering::Acquire) {
        for back in [false, true] {
            let started = Instant::now();
            if back {
                pool.edit(&[], vec![spec(i)])
            } else {
                pool.edit(&[key(i)], Vec::new())
            };
            took.push(started.elapsed());
            std::thread::sleep(pause);
        }
        i = (i + 7) % ENDPOINTS;
    }
    took
}

/// Decides for one round; how long each decision took.
fn decide(pool: &Pool, profile: &Profile, clock: &dyn Clock) -> Vec<Duration> {
    let (request, signals) = (InferenceRequest::default(), Signals::default());
    let (mut rng, mut scratch) = (fastrand::Rng::with_seed(2), Scratch::default());
    let mut candidates: Vec<Slot> = Vec::new();
    let mut took = Vec::with_capacity(1 << 20);
    let end = Instant::now() + ROUND;
    loop {
        let started = Instant::now();
        if started >= end {
            return took;
        }
        let snapshot = pool.snapshot();
        candidates.clear();
        candidates.extend_from_slice(snapshot.topology.live_slots());
        let cycle = Cycle { request: &request, snapshot: &snapshot, signals: &signals, now: clock.now() };
        black_box(profile.run(&cycle, &candidates, &mut rng, &mut scratch, false));
        took.push(started.elapsed());
    }
}

fn main() {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let removed = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&removed);
    let told = Box::new(move |_: &_| {
        counted.fetch_add(1, Ordering::AcqRel);
    });
    let pool = Arc::new(Pool::new(PoolIdentity::default(), Duration::from_secs(3600), Arc::clone(&clock), told));
    pool.replace((0..ENDPOINTS).map(spec).collect());
    for endpoint in pool.snapshot().topology.endpoints() {
        let sample = LoadSample {
            taken_at: clock.now(),
            waiting: Some((endpoint.slot.0 % 7) as f32),
            running: Some((endpoint.slot.0 % 31) as f32),
            kv_usage: Some(0.5),
            ..LoadSample::default()
        };
        pool.report(endpoint.slot, endpoint.generation, &sample);
    }
    let fixture = fixture::Pool::new(10);
    let (mut quiet, mut changing, mut edits) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let mut times = decide(&pool, fixture.profile(), clock.as_ref());
        quiet.push([0.5, 0.99, 0.999].map(|share| percentile(&mut times, share)));
        let over = Arc::new(AtomicBool::new(false));
        let changer = std::thread::spawn({
            let (pool, over) = (Arc::clone(&pool), Arc::clone(&over));
            move || churn(&pool, &over, Duration::from_secs(1) / CHANGES_PER_SECOND)
        });
        let mut times = decide(&pool, fixture.profile(), clock.as_ref());
        over.store(true, Ordering::Release);
        edits.extend(changer.join().expect("the changes end"));
        changing.push([0.5, 0.99, 0.999].map(|share| percentile(&mut times, share)));
    }
    println!(
        "one change published, {ENDPOINTS} endpoints: median {:?}, p99 {:?} ({} changes, {} removals told)",
        percentile(&mut edits, 0.5),
        percentile(&mut edits, 0.99),
        edits.len(),
        removed.load(Ordering::Acquire),
    );
    for (i, name) in ["p50", "p99", "p99.9"].into_iter().enumerate() {
        let (without, with) =
            (median(quiet.iter().map(|r| r[i]).collect()), median(changing.iter().map(|r| r[i]).collect()));
        let ratio = with.as_secs_f64() / without.as_secs_f64();
        println!("decision {name}: quiet {without:?}, {CHANGES_PER_SECOND} changes/s {with:?}, ratio {ratio:.2}");
    }
}
