//! Several configurations over several loads and seeds, on all cores, side by side.
//!
//! One task is one configuration at one load with one seed. Tasks share nothing but the scaled traces, and results
//! go to their place in a table, so the number of threads changes nothing in them.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use parking_lot::Mutex;

use super::picker::{Fleet, Picker};
use super::run::{self, Outcome, Scene};
use super::text::mix;
use super::trace::Trace;
use super::trace::scale::{Target, to_load};

/// Time between two looks at the progress.
const WATCH_EVERY: Duration = Duration::from_millis(100);

/// What is to be replayed.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Loads, or none to replay the trace at its own rate.
    pub loads: Vec<f64>,
    /// Seeds.
    pub seeds: Vec<u64>,
    /// Longest time of a run in seconds.
    pub seconds: f64,
    /// Where.
    pub scene: Scene,
}

/// What one configuration did at one load with one seed.
#[derive(Clone, Debug)]
pub struct Cell {
    /// Index of the configuration.
    pub config: usize,
    /// Index of the load.
    pub load: usize,
    /// Index of the seed.
    pub seed: usize,
    /// Requests of the run.
    pub requests: usize,
    /// Seconds of the run.
    pub seconds: f64,
    /// How much faster than recorded the trace was.
    pub speedup: f64,
    /// What was measured.
    pub outcome: Outcome,
}

/// A scaled trace, or why there is none, and how many tasks still need it.
type Prepared = Mutex<(Option<Result<Arc<(Trace, f64)>, String>>, usize)>;

/// How far a comparison is, for a progress bar.
#[derive(Debug, Default)]
pub struct Progress {
    /// Milliseconds of virtual time that are done.
    done: AtomicU64,
    /// Runs that are done.
    runs: AtomicUsize,
}

impl Progress {
    /// Virtual seconds and runs that are done.
    pub fn get(&self) -> (f64, usize) {
        (self.done.load(Ordering::Relaxed) as f64 / 1e3, self.runs.load(Ordering::Relaxed))
    }
}

/// Makes a picker of the configuration with this index over a fleet, with a seed.
pub type Make<'a> = dyn Fn(usize, Fleet, u64) -> Picker + Sync + 'a;

/// Runs `plan` over `configs` configurations on `threads` threads. Meanwhile `watch` is called on this thread, some
/// times a second.
///
/// # Errors
/// A load that the trace cannot be brought to.
pub fn compare(
    trace: &Trace,
    plan: &Plan,
    configs: usize,
    make: &Make<'_>,
    threads: usize,
    progress: &Progress,
    watch: &mut dyn FnMut(),
) -> Result<Vec<Cell>, String> {
    let (loads, seeds) = (plan.loads.len().max(1), plan.seeds.len());
    let prepared: Vec<Prepared> = (0..loads * seeds).map(|_| Mutex::new((None, configs))).collect();
    let tasks = prepared.len() * configs;
    let next = AtomicUsize::new(0);
    let cells: Mutex<Vec<Option<Cell>>> = Mutex::new((0..tasks).map(|_| None).collect());
    let failed: Mutex<Option<String>> = Mutex::new(None);
    let work = &|_alive: mpsc::Sender<()>| {
        loop {
            let task = next.fetch_add(1, Ordering::Relaxed);
            if task >= tasks || failed.lock().is_some() {
                return;
            }
            let (at, config) = (task / configs, task % configs);
            let (load, seed) = (at / seeds, at % seeds);
            let scaled = {
                let mut place = prepared[at].lock();
                let made = place.0.get_or_insert_with(|| prepare(trace, plan, load, seed).map(Arc::new)).clone();
                place.1 -= 1;
                if place.1 == 0 {
                    place.0 = None;
                }
                made
            };
            let scaled = match scaled {
                Ok(scaled) => scaled,
                Err(what) => {
                    *failed.lock() = Some(what);
                    return;
                }
            };
            let fleet = Fleet {
                pods: plan.scene.speeds.len(),
                kv_tokens: plan.scene.hardware.kv_tokens,
                block_tokens: trace.block_tokens,
            };
            let told = AtomicU64::new(0);
            let tell = |now: f64| {
                let now = (now.min(scaled.0.seconds) * 1e3) as u64;
                let before = told.swap(now, Ordering::Relaxed);
                progress.done.fetch_add(now.saturating_sub(before), Ordering::Relaxed);
            };
            let make = |seed: u64| make(config, fleet, seed);
            let outcome = run::run(&scaled.0, &plan.scene, &make, mix(plan.seeds[seed]), &tell);
            tell(scaled.0.seconds);
            progress.runs.fetch_add(1, Ordering::Relaxed);
            cells.lock()[task] = Some(Cell {
                config,
                load,
                seed,
                requests: scaled.0.requests.len(),
                seconds: scaled.0.seconds,
                speedup: scaled.1,
                outcome,
            });
        }
    };
    std::thread::scope(|scope| {
        let (alive, ended) = mpsc::channel();
        for _ in 0..threads.clamp(1, tasks.max(1)) {
            let alive = alive.clone();
            scope.spawn(move || work(alive));
        }
        drop(alive);
        // Nothing is ever sent: the channel ends with the last thread, also if it panics.
        while ended.recv_timeout(WATCH_EVERY) == Err(mpsc::RecvTimeoutError::Timeout) {
            watch();
        }
    });
    match failed.into_inner() {
        Some(what) => Err(what),
        None => Ok(cells.into_inner().into_iter().flatten().collect()),
    }
}

fn prepare(trace: &Trace, plan: &Plan, load: usize, seed: usize) -> Result<(Trace, f64), String> {
    let hardware = plan.scene.hardware;
    let target = Target {
        load: plan.loads.get(load).copied().unwrap_or(1.0),
        seconds: plan.seconds,
        warm: plan.scene.warm,
        capacity: plan.scene.speeds.iter().sum(),
        pool_blocks: hardware.blocks(trace.block_tokens).saturating_mul(plan.scene.speeds.len()),
        seed: plan.seeds[seed],
    };
    if plan.loads.is_empty() {
        return Ok((super::trace::scale::by(trace, 1.0, &target)?, 1.0));
    }
    to_load(trace, &target, &hardware)
}
