//! A model server in virtual time: chunked prefill, continuous batching, a prefix cache with LRU eviction.
//!
//! The server works in steps. A step computes prompt chunks (first come, first served, [`Hardware::step_tokens`]
//! tokens less one for each sequence that decodes) and one token of each sequence that decodes; it takes
//!
//! ```text
//! max(least step, prefill time of the chunks) + per sequence * decoding + per context token * context
//! ```
//!
//! A request is admitted when its prompt and all of its output fit into the cache. Blocks that it finds there are
//! pinned; the rest are reserved, for which unused blocks go, the longest unused first and the deep ones of a prompt
//! before those they hang on. A block becomes visible to others as it is computed; blocks of the output that a later
//! turn of the trace contains stay behind as well. The last token of a prompt is always computed.
//!
//! What is published (waiting, running, cache in use) is the state at the end of the last step, because real servers
//! export metrics between steps.
//!
//! Not modelled: preemption, swapping, speculative decoding, LoRA, disaggregated prefill, a CPU tier of the cache.

mod cache;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use cache::Cache;

use super::trace::Trace;

/// What a model server can do. Defaults are those of a 70B model on four large GPUs, by estimate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hardware {
    /// Tokens of KV cache.
    pub kv_tokens: u64,
    /// Prefill tokens per second at the begin of a prompt.
    pub prefill_rate: f64,
    /// Position at which a prefill token costs twice as much.
    pub slow_position: f64,
    /// Tokens of one step.
    pub step_tokens: u32,
    /// Sequences that run at once.
    pub max_sequences: usize,
    /// Shortest step in seconds.
    pub least_step: f64,
    /// Seconds of a step for each sequence that decodes.
    pub per_sequence: f64,
    /// Seconds of a step for each token of context that is read to decode.
    pub per_context_token: f64,
}

impl Default for Hardware {
    fn default() -> Self {
        Self {
            kv_tokens: 1_000_000,
            prefill_rate: 15_000.0,
            slow_position: 64_000.0,
            step_tokens: 2_048,
            max_sequences: 256,
            least_step: 0.010,
            per_sequence: 50e-6,
            per_context_token: 24e-9,
        }
    }
}

impl Hardware {
    /// Seconds to compute `tokens` of a prompt from position `from` on.
    pub fn prefill(&self, from: u32, tokens: u32) -> f64 {
        let (from, tokens) = (f64::from(from), f64::from(tokens));
        tokens / self.prefill_rate * (1.0 + (from + tokens / 2.0) / self.slow_position)
    }

    /// Seconds of a server's time that a request takes if `cached` tokens of its prompt are there.
    pub fn seconds(&self, input: u32, output: u32, cached: u32) -> f64 {
        let (context, output) = (f64::from(input) + f64::from(output) / 2.0, f64::from(output));
        self.prefill(cached, input - cached) + output * (self.per_sequence + self.per_context_token * context)
    }

    /// Blocks of `block_tokens` tokens that the cache has.
    pub fn blocks(&self, block_tokens: u32) -> usize {
        usize::try_from(self.kv_tokens / u64::from(block_tokens.max(1))).unwrap_or(usize::MAX)
    }
}

/// What a request is doing at its server.
#[derive(Clone, Debug, Default)]
pub struct Work {
    /// Prompt tokens computed or found.
    computed: u32,
    /// Prompt tokens found in the cache.
    pub cached: u32,
    /// Blocks that are its own and not visible to others.
    reserved: usize,
    /// Cache places that it keeps from being evicted, in the order of the prompt.
    pins: Vec<u32>,
}

/// What is published for scrapes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Published {
    /// Requests that wait.
    pub waiting: u32,
    /// Requests that run.
    pub running: u32,
    /// Share of the cache in use.
    pub kv: f32,
}

/// What a step brought about, as indices of requests.
#[derive(Debug, Default)]
pub struct Finished {
    /// First tokens.
    pub first: Vec<u32>,
    /// Ends.
    pub done: Vec<u32>,
}

/// See the module documentation.
#[derive(Debug)]
pub struct Pod {
    hardware: Hardware,
    capacity: usize,
    /// 1.0 is what the hardware says; at 0.5 every step takes twice as long.
    pub speed: f64,
    cache: Cache,
    /// Blocks reserved by running requests.
    reserved: usize,
    waiting: VecDeque<u32>,
    prefilling: VecDeque<u32>,
    /// Sequences that decode, by the step in which they end.
    ends: BinaryHeap<Reverse<(u64, u32)>>,
    decoding: usize,
    /// Tokens of context of all sequences that decode.
    context: u64,
    step: u64,
    chunks: Vec<(u32, u32)>,
    busy: bool,
    /// Seconds of prefill work done, at speed 1.
    pub prefill_seconds: f64,
    published: Published,
}

impl Pod {
    /// An idle server with an empty cache of blocks of `block_tokens` tokens.
    pub fn new(hardware: Hardware, block_tokens: u32, speed: f64) -> Self {
        Self {
            hardware,
            capacity: hardware.blocks(block_tokens),
            speed,
            cache: Cache::default(),
            reserved: 0,
            waiting: VecDeque::new(),
            prefilling: VecDeque::new(),
            ends: BinaryHeap::new(),
            decoding: 0,
            context: 0,
            step: 0,
            chunks: Vec::new(),
            busy: false,
            prefill_seconds: 0.0,
            published: Published::default(),
        }
    }

    /// Whether a request of this length can ever be admitted.
    pub fn has_room_for(&self, trace: &Trace, input: u32, output: u32) -> bool {
        needed(trace, input, output) <= self.capacity
    }

    /// Whether a step is under way.
    pub fn is_busy(&self) -> bool {
        self.busy
    }

    /// The state now.
    pub fn state(&self) -> Published {
        Published {
            waiting: self.waiting.len() as u32,
            running: self.running() as u32,
            kv: (self.cache.pinned() + self.reserved) as f32 / self.capacity.max(1) as f32,
        }
    }

    /// The state at the end of the last step.
    pub fn published(&self) -> Published {
        self.published
    }

    fn running(&self) -> usize {
        self.prefilling.len() + self.decoding
    }

    /// Takes a request in.
    pub fn enqueue(&mut self, request: u32) {
        self.waiting.push_back(request);
    }

    /// Begins a step; how long it takes, or `None` if there is nothing to do.
    pub fn start(&mut self, trace: &Trace, works: &mut [Work]) -> Option<f64> {
        self.chunks.clear();
        let mut budget = self.hardware.step_tokens.saturating_sub(self.decoding as u32);
        let mut seconds = 0.0;
        for i in 0..self.prefilling.len() {
            if budget == 0 {
                break;
            }
            seconds += self.chunk(self.prefilling[i], trace, works, &mut budget);
        }
        while budget > 0 && self.running() < self.hardware.max_sequences {
            let Some(request) = self.waiting.front().copied() else { break };
            if !self.admit(request, trace, &mut works[request as usize]) {
                break;
            }
            self.waiting.pop_front();
            self.prefilling.push_back(request);
            seconds += self.chunk(request, trace, works, &mut budget);
        }
        self.busy = !(self.chunks.is_empty() && self.decoding == 0);
        if !self.busy {
            return None;
        }
        self.prefill_seconds += seconds;
        let Hardware { least_step, per_sequence, per_context_token, .. } = self.hardware;
        let decode = per_sequence * self.decoding as f64 + per_context_token * self.context as f64;
        Some((seconds.max(least_step) + decode) / self.speed)
    }

    /// Plans the next chunk of `request`; its seconds.
    fn chunk(&mut self, request: u32, trace: &Trace, works: &[Work], budget: &mut u32) -> f64 {
        let computed = works[request as usize].computed;
        let tokens = (trace.requests[request as usize].input - computed).min(*budget);
        *budget -= tokens;
        self.chunks.push((request, tokens));
        self.hardware.prefill(computed, tokens)
    }

    fn admit(&mut self, request: u32, trace: &Trace, work: &mut Work) -> bool {
        let request = &trace.requests[request as usize];
        let usable = trace.full(request).min((request.input - 1) / trace.block_tokens) as usize;
        let usable = &trace.blocks(request)[..usable];
        let hits = self.cache.leading(usable);
        let own = needed(trace, request.input, request.output) - hits;
        let newly_pinned = self.cache.unpinned_among(&usable[..hits]);
        if self.cache.pinned() + newly_pinned + self.reserved + own > self.capacity {
            return false;
        }
        self.cache.pin(&usable[..hits], &mut work.pins);
        while self.cache.len() + self.reserved + own > self.capacity && self.cache.evict() {}
        self.reserved += own;
        work.reserved = own;
        work.cached = hits as u32 * trace.block_tokens;
        work.computed = work.cached;
        true
    }

    /// Ends the step that [`Pod::start`] began.
    pub fn end(&mut self, trace: &Trace, works: &mut [Work], finished: &mut Finished) {
        self.step += 1;
        self.context += self.decoding as u64;
        let chunks = std::mem::take(&mut self.chunks);
        for (id, tokens) in &chunks {
            let request = &trace.requests[*id as usize];
            let work = &mut works[*id as usize];
            let from = work.computed / trace.block_tokens;
            work.computed += tokens;
            let to = (work.computed / trace.block_tokens).min(trace.full(request));
            for block in trace.blocks(request).get(from as usize..to as usize).unwrap_or_default() {
                // Another request may have computed the same block meanwhile: then this copy stays its own.
                if let Some(place) = self.cache.insert(*block) {
                    work.pins.push(place);
                    work.reserved -= 1;
                    self.reserved -= 1;
                }
            }
            if work.computed == request.input {
                finished.first.push(*id);
                self.decoding += 1;
                self.context += u64::from(request.input) + 1;
                self.ends.push(Reverse((self.step + u64::from(request.output) - 1, *id)));
            }
        }
        if !chunks.is_empty() {
            self.prefilling.retain(|id| works[*id as usize].computed < trace.requests[*id as usize].input);
        }
        self.chunks = chunks;
        while let Some(Reverse((step, id))) = self.ends.peek().copied() {
            if step > self.step {
                break;
            }
            self.ends.pop();
            self.finish(id, trace, &mut works[id as usize]);
            finished.done.push(id);
        }
        self.published = self.state();
    }

    fn finish(&mut self, id: u32, trace: &Trace, work: &mut Work) {
        let request = &trace.requests[id as usize];
        self.decoding -= 1;
        self.context -= u64::from(request.input) + u64::from(request.output);
        self.reserved -= work.reserved;
        let mut answer = Vec::new();
        for block in trace.generated(request) {
            if work.reserved == 0 {
                break;
            }
            if let Some(place) = self.cache.insert(*block) {
                answer.push(place);
                work.reserved -= 1;
            }
        }
        work.reserved = 0;
        // The deepest first, so that they go first.
        self.cache.unpin(answer.into_iter().rev());
        self.cache.unpin(std::mem::take(&mut work.pins).into_iter().rev());
    }
}

/// Blocks that a request takes, all in all.
fn needed(trace: &Trace, input: u32, output: u32) -> usize {
    (input + output).div_ceil(trace.block_tokens) as usize
}

#[cfg(test)]
mod tests;
