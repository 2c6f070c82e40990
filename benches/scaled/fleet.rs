//! The simulated servers, in exact virtual time behind a real clock that runs faster.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use pointsman::replay::pod::{Finished, Hardware, Pod, Published, Work};
use pointsman::replay::trace::Trace;
use tokio::sync::oneshot;

/// A clock that runs faster than the real one.
#[derive(Clone, Copy)]
pub struct Scaled {
    started: Instant,
    speed: f64,
}

impl Scaled {
    /// Starts at zero.
    pub fn start(speed: f64) -> Self {
        Self { started: Instant::now(), speed }
    }

    /// Virtual seconds.
    pub fn now(self) -> f64 {
        self.started.elapsed().as_secs_f64() * self.speed
    }

    /// Waits for a virtual time.
    pub async fn until(self, at: f64) {
        let left = at - self.now();
        if left > 0.0 {
            tokio::time::sleep(Duration::from_secs_f64(left / self.speed)).await;
        }
    }
}

/// A step that ends at a time; times are not negative, so their bits order as they do.
type StepEnd = Reverse<(u64, usize)>;

/// Who waits for a request: for its first token and for its end, each with its time.
#[derive(Default)]
struct Waiting {
    first: Option<oneshot::Sender<f64>>,
    done: Option<oneshot::Sender<f64>>,
}

/// All servers.
pub struct Fleet {
    trace: Rc<Trace>,
    pods: Vec<Pod>,
    works: Vec<Work>,
    ends: BinaryHeap<StepEnd>,
    waiting: Vec<Waiting>,
    finished: Finished,
}

impl Fleet {
    /// `count` equal servers.
    pub fn new(trace: Rc<Trace>, hardware: Hardware, count: usize) -> Self {
        let requests = trace.requests.len();
        Self {
            pods: (0..count).map(|_| Pod::new(hardware, trace.block_tokens, 1.0)).collect(),
            works: vec![Work::default(); requests],
            ends: BinaryHeap::new(),
            waiting: (0..requests).map(|_| Waiting::default()).collect(),
            finished: Finished::default(),
            trace,
        }
    }

    /// What the page of a server says.
    pub fn published(&self, pod: usize) -> Published {
        self.pods[pod].published()
    }

    /// Tokens of one block and blocks of one server.
    pub fn cache(&self, hardware: &Hardware) -> (u32, usize) {
        (self.trace.block_tokens, hardware.blocks(self.trace.block_tokens))
    }

    /// Tokens of `request` that its server had cached.
    pub fn cached(&self, request: usize) -> u32 {
        self.works[request].cached
    }

    /// Sends `request` to `pod` at `now`; completes at its first token and at its end.
    pub fn send(&mut self, request: usize, pod: usize, now: f64) -> (oneshot::Receiver<f64>, oneshot::Receiver<f64>) {
        let (first, first_seen) = oneshot::channel();
        let (done, done_seen) = oneshot::channel();
        self.waiting[request] = Waiting { first: Some(first), done: Some(done) };
        self.pods[pod].enqueue(u32::try_from(request).expect("few requests"));
        if !self.pods[pod].is_busy() {
            self.step(pod, now);
        }
        (first_seen, done_seen)
    }

    fn step(&mut self, pod: usize, now: f64) {
        if let Some(takes) = self.pods[pod].start(&self.trace, &mut self.works) {
            self.ends.push(Reverse(((now + takes).to_bits(), pod)));
        }
    }

    /// Ends every step that is over by `now`; the time of the next one.
    fn advance(&mut self, now: f64) -> Option<f64> {
        while let Some(Reverse((bits, pod))) = self.ends.peek().copied() {
            let at = f64::from_bits(bits);
            if at > now {
                return Some(at);
            }
            self.ends.pop();
            let mut finished = std::mem::take(&mut self.finished);
            finished.first.clear();
            finished.done.clear();
            self.pods[pod].end(&self.trace, &mut self.works, &mut finished);
            // Nobody listens for a request that failed.
            for id in &finished.first {
                self.waiting[*id as usize].first.take().map(|told| told.send(at));
            }
            for id in &finished.done {
                self.waiting[*id as usize].done.take().map(|told| told.send(at));
            }
            self.finished = finished;
            self.step(pod, at);
        }
        None
    }
}

/// Runs the servers until it is dropped.
pub async fn drive(fleet: Rc<RefCell<Fleet>>, clock: Scaled) {
    loop {
        let next = fleet.borrow_mut().advance(clock.now());
        // An arrival at an idle server is noticed a millisecond later at most.
        let soon = clock.now() + clock.speed / 1000.0;
        clock.until(next.map_or(soon, |at| at.min(soon))).await;
        tokio::task::yield_now().await;
    }
}
