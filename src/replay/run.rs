//! One run: a scaled trace, the pods, and one or several pickers, until all is answered.
//!
//! Events are taken in the order of time, those of one moment in the order in which they were planned, so a run is a
//! function of its inputs. Requests that are not answered after three times the length of the trace count with the
//! time they waited until then.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, VecDeque};

use super::picker::{Misuse, Picker, Sent};
use super::pod::{Finished, Hardware, Pod, Published, Work};
use super::text::mix;
use super::trace::Trace;

/// A run ends after this many times the length of its trace.
const LIMIT: f64 = 3.0;

/// Slices of a run's time in [`Outcome::timeline`].
pub const SLICES: usize = 60;

/// A pod that becomes slower.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlowPod {
    /// Its index.
    pub pod: usize,
    /// Its speed from then on; 1.0 is that of the others.
    pub speed: f64,
    /// When, as a share of the run.
    pub from: f64,
}

/// Where a trace is replayed, and what goes wrong there.
#[derive(Clone, Debug, PartialEq)]
pub struct Scene {
    /// Each pod's hardware.
    pub hardware: Hardware,
    /// Speed of each pod.
    pub speeds: Vec<f64>,
    /// Seconds between two scrapes of a pod; at 0 every decision sees the state of that moment.
    pub scrape_interval: f64,
    /// Seconds that a sample takes to reach the picker.
    pub scrape_delay: f64,
    /// Pickers; requests are dealt to them at random.
    pub pickers: usize,
    /// When the pickers restart and lose what they know, as a share of the run.
    pub restart: Option<f64>,
    /// A pod that becomes slower.
    pub slow_pod: Option<SlowPod>,
    /// Whether answers are streamed; otherwise a picker sees nothing of them but their end.
    pub streamed: bool,
    /// Share of the run that is not measured, at its begin.
    pub warm: f64,
}

impl Default for Scene {
    fn default() -> Self {
        Self {
            hardware: Hardware::default(),
            speeds: vec![1.0; 8],
            scrape_interval: 0.05,
            scrape_delay: 0.0,
            pickers: 1,
            restart: None,
            slow_pod: None,
            streamed: true,
            warm: 0.2,
        }
    }
}

/// What was measured.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Times to first token in seconds, ascending, from the arrival at the picker on.
    pub ttft: Vec<f64>,
    /// Prompt tokens found in the caches.
    pub cached_tokens: u64,
    /// Prompt tokens of requests that got a first token.
    pub input_tokens: u64,
    /// Prompt tokens that the prefix index foretold and that were not there.
    pub false_tokens: u64,
    /// Most prefill work of a pod over the mean, by capability.
    pub imbalance: f64,
    /// Prefill work over what the pods could have done in the measured time.
    pub utilisation: f64,
    /// Requests that had no first token at the end of the run.
    pub unfinished: usize,
    /// Requests that the picker refused.
    pub refused: usize,
    /// Sum of the times that requests were held, in seconds.
    pub held_seconds: f64,
    /// Sum of times to first token and number of requests that arrived, by slice of the run.
    pub timeline: Vec<(f64, u32)>,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    StepEnd(usize),
    Scrape(usize),
    Delivery,
    Tick(usize),
    Restart,
    Slow,
}

struct Event {
    at: f64,
    order: u64,
    kind: Kind,
}

impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Event {}

impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Event {
    /// The heap gives the greatest: the earliest.
    fn cmp(&self, other: &Self) -> Ordering {
        other.at.total_cmp(&self.at).then(other.order.cmp(&self.order))
    }
}

/// What became of a request.
#[derive(Clone, Copy)]
struct Fate {
    picker: u32,
    predicted: u64,
    /// NaN before.
    sent: f64,
    /// NaN before.
    first: f64,
    refused: bool,
}

struct Run<'a> {
    trace: &'a Trace,
    scene: &'a Scene,
    make: &'a dyn Fn(u64) -> Picker,
    seed: u64,
    pods: Vec<Pod>,
    works: Vec<Work>,
    fates: Vec<Fate>,
    pickers: Vec<Picker>,
    /// The wake-up that is planned, by picker.
    asked: Vec<Option<f64>>,
    /// Requests that have arrived.
    arrived: usize,
    heap: BinaryHeap<Event>,
    order: u64,
    samples: VecDeque<(usize, Published)>,
    open: usize,
    sent: Vec<Sent>,
    blocks: Vec<u64>,
}

/// Replays `trace` in `scene`. `make` makes a picker with the seed that it is given; `progress` is told how far the
/// run is, in seconds, now and then.
pub fn run(trace: &Trace, scene: &Scene, make: &dyn Fn(u64) -> Picker, seed: u64, progress: &dyn Fn(f64)) -> Outcome {
    let pickers = scene.pickers.max(1);
    let unsent = Fate { picker: 0, predicted: 0, sent: f64::NAN, first: f64::NAN, refused: false };
    let mut run = Run {
        trace,
        scene,
        make,
        seed,
        pods: scene.speeds.iter().map(|speed| Pod::new(scene.hardware, trace.block_tokens, *speed)).collect(),
        works: vec![Work::default(); trace.requests.len()],
        fates: vec![unsent; trace.requests.len()],
        pickers: Vec::new(),
        asked: vec![None; pickers],
        arrived: 0,
        heap: BinaryHeap::new(),
        order: 0,
        samples: VecDeque::new(),
        open: trace.requests.len(),
        sent: Vec::new(),
        blocks: Vec::new(),
    };
    run.start_pickers(0);
    run.play(progress)
}

impl Run<'_> {
    fn start_pickers(&mut self, life: u64) {
        let seed = |i: usize| mix(self.seed ^ mix(i as u64 + 1000 * life));
        self.pickers = (0..self.asked.len()).map(|i| (self.make)(seed(i))).collect();
        for picker in &mut self.pickers {
            picker.set_streamed(self.scene.streamed);
        }
    }

    fn push(&mut self, at: f64, kind: Kind) {
        self.order += 1;
        self.heap.push(Event { at, order: self.order, kind });
    }

    fn play(mut self, progress: &dyn Fn(f64)) -> Outcome {
        let end = self.trace.seconds;
        let mut rng = fastrand::Rng::with_seed(mix(self.seed ^ 0x5ce4e));
        if self.scene.scrape_interval > 0.0 {
            for pod in 0..self.pods.len() {
                let phase = rng.f64() * self.scene.scrape_interval;
                self.push(phase, Kind::Scrape(pod));
            }
        }
        if let Some(share) = self.scene.restart {
            self.push(share * end, Kind::Restart);
        }
        if let Some(slow) = self.scene.slow_pod {
            self.push(slow.from * end, Kind::Slow);
        }
        let mut finished = Finished::default();
        let mut now = 0.0;
        let mut told = 0.0;
        let (mut before_warm, mut at_end) = (None, None);
        while self.open > 0 {
            let arrival = self.trace.requests.get(self.arrived).map(|r| r.at);
            let event = self.heap.peek().map(|e| e.at);
            let arrives = match (arrival, event) {
                (Some(arrival), Some(event)) => arrival <= event,
                (Some(_), None) => true,
                (None, Some(_)) => false,
                (None, None) => break,
            };
            now = if arrives { arrival } else { event }.unwrap_or(now);
            if now > end * LIMIT + 60.0 {
                break;
            }
            if before_warm.is_none() && now >= self.scene.warm * end {
                before_warm = Some(self.prefill());
            }
            if at_end.is_none() && now >= end {
                at_end = Some(self.prefill());
            }
            if now - told > 5.0 {
                told = now;
                progress(now);
            }
            if arrives {
                let picker = if self.pickers.len() > 1 { rng.usize(..self.pickers.len()) } else { 0 };
                self.arrived += 1;
                self.arrive(self.arrived as u32 - 1, picker, now);
            } else if let Some(event) = self.heap.pop() {
                self.happen(event.kind, now, &mut finished);
            }
        }
        self.outcome(now, before_warm.unwrap_or_default(), at_end)
    }

    fn prefill(&self) -> Vec<f64> {
        self.pods.iter().map(|pod| pod.prefill_seconds).collect()
    }

    fn arrive(&mut self, request: u32, picker: usize, now: f64) {
        self.fates[request as usize].picker = picker as u32;
        if self.scene.scrape_interval <= 0.0 {
            for pod in 0..self.pods.len() {
                let state = self.pods[pod].state();
                report(&mut self.pickers, pod, state, now);
            }
        }
        let it = &self.trace.requests[request as usize];
        if !self.pods.iter().any(|pod| pod.has_room_for(self.trace, it.input, it.output)) {
            // It would wait for ever, and all others behind it.
            return self.refuse(request);
        }
        self.blocks.clear();
        self.blocks.extend(self.trace.blocks(it).iter().map(|id| u64::from(*id)));
        let taken = self.pickers[picker].request(now, u64::from(request), u64::from(it.input), &self.blocks);
        debug_assert!(taken.is_ok(), "{taken:?}");
        if taken.is_err() {
            self.refuse(request);
        }
        self.collect(picker, now);
    }

    fn refuse(&mut self, request: u32) {
        self.fates[request as usize].refused = true;
        self.open -= 1;
    }

    fn happen(&mut self, kind: Kind, now: f64, finished: &mut Finished) {
        match kind {
            Kind::StepEnd(pod) => {
                finished.first.clear();
                finished.done.clear();
                self.pods[pod].end(self.trace, &mut self.works, finished);
                self.step(pod, now);
                for id in &finished.first {
                    self.fates[*id as usize].first = now;
                    let picker = self.fates[*id as usize].picker as usize;
                    if self.scene.streamed {
                        // A picker that restarted does not know it.
                        let told: Result<(), Misuse> = self.pickers[picker].first_token(now, u64::from(*id));
                        drop(told);
                        self.collect(picker, now);
                    }
                }
                for id in &finished.done {
                    self.open -= 1;
                    let picker = self.fates[*id as usize].picker as usize;
                    let cached = u64::from(self.works[*id as usize].cached);
                    let told: Result<(), Misuse> = self.pickers[picker].done(now, u64::from(*id), Some(cached));
                    drop(told);
                    self.collect(picker, now);
                }
            }
            Kind::Scrape(pod) => {
                let sample = self.pods[pod].published();
                if self.scene.scrape_delay > 0.0 {
                    self.samples.push_back((pod, sample));
                    self.push(now + self.scene.scrape_delay, Kind::Delivery);
                } else {
                    report(&mut self.pickers, pod, sample, now);
                }
                self.push(now + self.scene.scrape_interval, Kind::Scrape(pod));
            }
            Kind::Delivery => {
                // All take equally long, so they come in the order in which they were taken.
                if let Some((pod, sample)) = self.samples.pop_front() {
                    report(&mut self.pickers, pod, sample, now);
                }
            }
            Kind::Tick(picker) => {
                if self.asked[picker].is_some_and(|asked| asked <= now) {
                    self.asked[picker] = None;
                }
                self.pickers[picker].tick(now);
                self.collect(picker, now);
            }
            Kind::Restart => self.restart(now),
            Kind::Slow => {
                if let Some(slow) = self.scene.slow_pod
                    && let Some(pod) = self.pods.get_mut(slow.pod)
                {
                    pod.speed *= slow.speed;
                }
            }
        }
    }

    /// What is known is lost; what was held comes again, because the proxy asks again.
    fn restart(&mut self, now: f64) {
        self.start_pickers(1);
        self.asked.fill(None);
        for request in 0..self.arrived {
            let fate = self.fates[request];
            if fate.sent.is_nan() && !fate.refused {
                self.arrive(request as u32, fate.picker as usize, now);
            }
        }
    }

    /// Begins the next step of `pod`.
    fn step(&mut self, pod: usize, now: f64) {
        if let Some(seconds) = self.pods[pod].start(self.trace, &mut self.works) {
            self.push(now + seconds, Kind::StepEnd(pod));
        }
    }

    /// Takes over what `picker` sent and when it wants to be asked again.
    fn collect(&mut self, picker: usize, now: f64) {
        let mut sent = std::mem::take(&mut self.sent);
        self.pickers[picker].take_sent(&mut sent);
        for Sent { id, pod, predicted_tokens } in sent.drain(..) {
            let request = id as u32;
            let fate = &mut self.fates[request as usize];
            (fate.sent, fate.predicted) = (now, predicted_tokens);
            self.pods[pod].enqueue(request);
            if !self.pods[pod].is_busy() {
                self.step(pod, now);
            }
        }
        self.sent = sent;
        for (id, _) in self.pickers[picker].take_refused() {
            self.refuse(id as u32);
        }
        if let Some(wake) = self.pickers[picker].wake() {
            let wake = wake.max(now + 1e-4);
            if self.asked[picker].is_none_or(|asked| wake < asked) {
                self.asked[picker] = Some(wake);
                self.push(wake, Kind::Tick(picker));
            }
        }
    }

    fn outcome(self, now: f64, before: Vec<f64>, at_end: Option<Vec<f64>>) -> Outcome {
        let end = self.trace.seconds;
        let warm = self.scene.warm * end;
        let mut outcome = Outcome { timeline: vec![(0.0, 0); SLICES], ..Outcome::default() };
        for ((request, fate), work) in self.trace.requests.iter().zip(&self.fates).zip(&self.works) {
            let answered = fate.first.is_finite();
            let ttft = if answered { fate.first } else { now } - request.at;
            if fate.refused {
                outcome.refused += usize::from(request.at >= warm);
                continue;
            }
            let slice = (request.at / end.max(1e-9) * SLICES as f64) as usize;
            let slice = &mut outcome.timeline[slice.min(SLICES - 1)];
            (slice.0, slice.1) = (slice.0 + ttft, slice.1 + 1);
            if request.at < warm {
                continue;
            }
            outcome.ttft.push(ttft.max(0.0));
            if fate.sent.is_finite() {
                outcome.held_seconds += fate.sent - request.at;
            }
            if answered {
                outcome.cached_tokens += u64::from(work.cached);
                outcome.input_tokens += u64::from(request.input);
                outcome.false_tokens += fate.predicted.saturating_sub(u64::from(work.cached));
            } else {
                outcome.unfinished += 1;
            }
        }
        outcome.ttft.sort_by(f64::total_cmp);
        let since = |then: &[f64], pod: usize| then.get(pod).copied().unwrap_or(0.0);
        let work: Vec<f64> = self.prefill().iter().enumerate().map(|(i, done)| done - since(&before, i)).collect();
        let capability: f64 = self.scene.speeds.iter().sum();
        let total: f64 = work.iter().sum();
        let relative = work.iter().zip(&self.scene.speeds).map(|(work, speed)| work / speed);
        outcome.imbalance = relative.fold(0.0, f64::max) / (total / capability).max(1e-9);
        let in_time: f64 = at_end.map_or(total, |at_end| at_end.iter().sum::<f64>() - before.iter().sum::<f64>());
        outcome.utilisation = in_time / (capability * (end - warm).max(1e-9));
        outcome
    }
}

fn report(pickers: &mut [Picker], pod: usize, state: Published, now: f64) {
    for picker in pickers {
        let told = picker.metrics(now, pod as u64, state.waiting as f32, state.running as f32, state.kv);
        debug_assert!(told.is_ok(), "{told:?}");
    }
}

#[cfg(test)]
mod tests;
