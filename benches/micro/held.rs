//! A long queue of requests that are held, with all endpoints busy: what a plan costs.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use pointsman::director::Director;
use pointsman::director::dispatch::{Committed, Decided, Held, Submitted};
use pointsman::domain::{InferenceRequest, Outcome, Prompt, Segment, SubsetEntry, Usage};
use pointsman::extproc::SubsetHint;
use pointsman::lifecycle::clock::{Clock as _, ManualClock};
use pointsman::scheduling::plugin::{End, Watch};

use super::picker::Picker;

/// Requests that are held.
const HELD: usize = 10_000;
/// Prompt tokens of each.
const TOKENS: u32 = 1_024;
/// Answers that show that they are streamed.
const LESSONS: u32 = 8;

/// First come, first served, and only to endpoints without any prefill, so that one goes for each that is freed.
const CONFIG: &str = "apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: mirror-prefix-cache-producer
- type: prefill-account-producer
- type: cost-picker
- type: just-in-time-dispatch
  parameters: {holdAbove: 1ms, orderWeight: 0, maxHold: 10h, minSamples: 0}
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: cost-picker
";

type Watches = Vec<Box<dyn Watch>>;

/// A director that holds, and who waits.
pub struct Queue {
    director: Arc<Director>,
    clock: Arc<ManualClock>,
    running: VecDeque<Watches>,
    held: VecDeque<Held>,
}

impl Queue {
    /// Over `endpoints` endpoints, of which the requests may use the first `open` ones, and these are busy.
    pub fn new(endpoints: u8, open: u8) -> Self {
        let Picker { directed, clock } = Picker::configured(CONFIG, endpoints, false, 0);
        // What the servers reported has lost its meaning.
        clock.advance(Duration::from_secs(60));
        let mut queue = Self { director: directed.0, clock, running: VecDeque::new(), held: VecDeque::new() };
        let entries = (1..=open).map(|i| SubsetEntry::Address(([10, 0, 0, i], 8000).into()));
        let subset = SubsetHint { entries: entries.collect() };
        let submit = |queue: &Self, number: u32| {
            queue.clock.advance(Duration::from_micros(100));
            queue.director.submit(request(number), Some(&subset), true)
        };
        let mut number = 0;
        let mut sent = |queue: &Self| {
            number += 1;
            match submit(queue, number) {
                Submitted::Decided(decided) => watches(*decided),
                Submitted::Held(_) => panic!("no endpoint is free"),
            }
        };
        for _ in 0..LESSONS {
            let mut lesson = sent(&queue);
            queue.clock.advance(Duration::from_millis(120));
            let now = queue.clock.now();
            let end = End { outcome: Outcome::Completed, usage: Usage::default(), now };
            lesson.iter_mut().for_each(|watch| watch.first_token(now));
            lesson.iter_mut().for_each(|watch| watch.finished(&end));
        }
        queue.running = (0..open).map(|_| sent(&queue)).collect();
        for number in 1_000..1_000 + HELD as u32 {
            match submit(&queue, number) {
                Submitted::Held(held) => queue.held.push_back(held),
                Submitted::Decided(_) => panic!("an endpoint is free"),
            }
        }
        queue.plan(Duration::ZERO);
        queue
    }

    /// A plan after `time` in which nothing goes.
    pub fn plan(&mut self, time: Duration) {
        self.clock.advance(time);
        assert!(self.director.plan().is_some());
        assert!(self.held.front_mut().is_some_and(|held| held.take().is_none()));
    }

    /// Frees the endpoint that has been busy for longest, and plans.
    pub fn next(&mut self) {
        self.clock.advance(Duration::from_millis(5));
        drop(self.running.pop_front());
        self.director.plan();
        let mut first = self.held.pop_front().expect("enough are held");
        self.running.push_back(watches(*first.take().expect("the first one goes")));
    }
}

fn watches((_, result): Decided) -> Watches {
    let Committed { watches, .. } = result.unwrap_or_else(|e| panic!("{e}"));
    watches
}

/// No two share a block.
fn request(number: u32) -> InferenceRequest {
    let ids: Box<[u32]> = (0..TOKENS).map(|i| (number * TOKENS + i).wrapping_mul(0x9E37_79B1)).collect();
    InferenceRequest {
        id: number.to_string().into(),
        path: "/v1/completions".into(),
        model: "bench/model".into(),
        target_model: "bench/model".into(),
        prompts: [Prompt { segments: [Segment::Tokens(ids)].into_iter().collect() }].into_iter().collect(),
        stream: true,
        fairness_id: "default-flow".into(),
        ..InferenceRequest::default()
    }
}
