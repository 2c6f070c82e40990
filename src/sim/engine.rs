//! A simulated inference engine: queue, batch, KV blocks and time.
//!
//! The model, in the order in which a request meets it:
//!
//! 1. It waits, first come first served, until the batch has a place (`max_num_seqs`) and the free
//!    blocks suffice for its prompt and its whole answer. The head of the queue blocks the rest.
//! 2. Its leading blocks that are cached are held, the others taken (evicting the oldest free ones).
//!    They can be found by others from then on, as in vLLM, which names blocks when it schedules them.
//!    At least the last token is always computed.
//! 3. It waits for the prefill lane, which serves one prompt at a time: uncached tokens / rate.
//! 4. It decodes: the first token comes with the end of the prefill, then one per step.
//!
//! Room for the whole answer is reserved at admission, where vLLM would admit sooner and preempt
//! later; `kv_cache_usage_perc` counts only what is filled. Decoding does not slow prefill down nor
//! grow slower with the batch: a chunked scheduler was left out, because the picker is judged by
//! where requests queue and what they find cached, not by the shape of a step.
//!
//! There is no engine task. Each request drives itself through its [`Ticket`]; the lock is taken at
//! admission, at block boundaries and at the end. Dropping a ticket at any point (a client that went
//! away) gives back all it held and admits the next.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::Instant;
use xxhash_rust::xxh64::xxh64;

use super::blocks::BlockPool;

/// Bytes of text that stand for one token.
pub(super) const TOKEN_BYTES: usize = 4;

/// The engine's share of a server's configuration; see `SimConfig` for the fields.
#[derive(Clone, Debug)]
pub(super) struct EngineConfig {
    pub(super) block_size: u32,
    pub(super) num_blocks: u32,
    pub(super) max_num_seqs: usize,
    pub(super) max_waiting: usize,
    pub(super) max_model_len: u32,
    pub(super) prefill_tokens_per_second: f64,
    pub(super) decode_step: Duration,
    pub(super) time_scale: f64,
    pub(super) adapters: usize,
}

/// One sequence to run.
pub(super) struct Work<'a> {
    /// Rendered prompt.
    pub(super) prompt: &'a [u8],
    /// The answer's text, [`TOKEN_BYTES`] a token.
    pub(super) answer: &'a [u8],
    /// What else tells two equal prompts apart: cache salt and adapter.
    pub(super) seed: u64,
    /// LoRA adapter by index.
    pub(super) adapter: Option<usize>,
}

/// Why a sequence is not taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The prompt leaves no room for one token of answer.
    TooLong { tokens: u32, limit: u32 },
    /// The queue is at its bound.
    QueueFull { limit: usize },
}

/// Counters and gauges, read together.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Readings {
    pub(super) running: usize,
    pub(super) waiting: usize,
    pub(super) used_blocks: u32,
    pub(super) prompt_tokens: u64,
    pub(super) cached_tokens: u64,
    pub(super) generated_tokens: u64,
    pub(super) finished: u64,
    pub(super) aborted: u64,
    /// Adapters with a running or a waiting request: (index, running, waiting).
    pub(super) adapters: Vec<(usize, u32, u32)>,
}

/// See the module.
pub(super) struct Engine {
    config: EngineConfig,
    state: Mutex<State>,
    lane: Semaphore,
    generated: AtomicU64,
}

struct State {
    pool: BlockPool,
    waiting: VecDeque<Queued>,
    running: HashMap<u64, Running>,
    /// Blocks promised to running requests for the rest of their answers.
    reserved: u32,
    next_id: u64,
    prompt_tokens: u64,
    cached_tokens: u64,
    finished: u64,
    aborted: u64,
    adapters: Vec<(u32, u32)>,
}

struct Queued {
    id: u64,
    shape: Arc<Shape>,
    admitted: oneshot::Sender<u32>,
}

struct Running {
    shape: Arc<Shape>,
    blocks: Vec<u32>,
    /// Blocks found in the cache.
    hits: usize,
    /// Full blocks that carry their name.
    named: usize,
    reserved: u32,
    computed: bool,
}

/// What is fixed about a sequence from the start.
struct Shape {
    /// Chained hashes of the full blocks of prompt and answer together.
    hashes: Vec<u64>,
    prompt_bytes: usize,
    answer_tokens: u32,
    adapter: Option<usize>,
}

impl Shape {
    fn prompt_tokens(&self) -> u32 {
        u32::try_from(self.prompt_bytes.div_ceil(TOKEN_BYTES)).unwrap_or(u32::MAX)
    }
}

/// A sequence in the engine. Dropping it before its last token is an abort.
pub(super) struct Ticket {
    engine: Arc<Engine>,
    id: u64,
    shape: Arc<Shape>,
    admission: Option<oneshot::Receiver<u32>>,
    cached_tokens: u32,
    made: u32,
    /// When the first token was due.
    first_at: Option<Instant>,
}

impl Engine {
    pub(super) fn new(config: EngineConfig) -> Arc<Self> {
        let state = State {
            pool: BlockPool::new(config.num_blocks),
            waiting: VecDeque::new(),
            running: HashMap::new(),
            reserved: 0,
            next_id: 0,
            prompt_tokens: 0,
            cached_tokens: 0,
            finished: 0,
            aborted: 0,
            adapters: vec![(0, 0); config.adapters],
        };
        Arc::new(Self { config, state: Mutex::new(state), lane: Semaphore::new(1), generated: AtomicU64::new(0) })
    }

    /// Longest prompt and answer together, in tokens.
    pub(super) fn max_tokens(&self) -> u32 {
        self.config.max_model_len.min(self.config.num_blocks.saturating_mul(self.config.block_size))
    }

    /// Puts a sequence into the queue (and into the batch, if it fits). An answer that would not fit
    /// into the model's length is cut.
    pub(super) fn submit(self: &Arc<Self>, work: &Work<'_>) -> Result<Ticket, Refusal> {
        let limit = self.max_tokens();
        let prompt_tokens = u32::try_from(work.prompt.len().div_ceil(TOKEN_BYTES)).unwrap_or(u32::MAX);
        let room = limit.checked_sub(prompt_tokens).filter(|room| *room > 0);
        let room = room.ok_or(Refusal::TooLong { tokens: prompt_tokens, limit })?;
        let answer_tokens = u32::try_from(work.answer.len() / TOKEN_BYTES).unwrap_or(u32::MAX).min(room);
        let answer = &work.answer[..answer_tokens as usize * TOKEN_BYTES];
        let shape = Arc::new(Shape {
            hashes: chain(work.prompt, answer, self.block_bytes(), work.seed),
            prompt_bytes: work.prompt.len(),
            answer_tokens,
            adapter: work.adapter.filter(|a| *a < self.config.adapters),
        });
        let (admitted, admission) = oneshot::channel();
        let mut state = self.state.lock();
        if state.waiting.len() >= self.config.max_waiting {
            return Err(Refusal::QueueFull { limit: self.config.max_waiting });
        }
        let id = state.next_id;
        state.next_id += 1;
        if let Some(adapter) = shape.adapter {
            state.adapters[adapter].1 += 1;
        }
        state.waiting.push_back(Queued { id, shape: Arc::clone(&shape), admitted });
        self.admit(&mut state);
        drop(state);
        let engine = Arc::clone(self);
        Ok(Ticket { engine, id, shape, admission: Some(admission), cached_tokens: 0, made: 0, first_at: None })
    }

    pub(super) fn readings(&self) -> Readings {
        let state = self.state.lock();
        Readings {
            running: state.running.len(),
            waiting: state.waiting.len(),
            used_blocks: state.pool.held(),
            prompt_tokens: state.prompt_tokens,
            cached_tokens: state.cached_tokens,
            generated_tokens: self.generated.load(Ordering::Relaxed),
            finished: state.finished,
            aborted: state.aborted,
            adapters: (0..)
                .zip(&state.adapters)
                .filter(|(_, (running, waiting))| running + waiting > 0)
                .map(|(index, (running, waiting))| (index, *running, *waiting))
                .collect(),
        }
    }

    /// Forgets what is cached.
    pub(super) fn clear_cache(&self) {
        self.state.lock().pool.clear();
    }

    fn block_bytes(&self) -> usize {
        self.config.block_size as usize * TOKEN_BYTES
    }

    fn blocks_for(&self, bytes: usize) -> u32 {
        u32::try_from(bytes.div_ceil(self.block_bytes())).unwrap_or(u32::MAX)
    }

    /// Real time that this much simulated time takes; at most three years, which is for ever here
    /// and still a date that a timer can hold.
    fn lasting(&self, simulated_seconds: f64) -> Duration {
        const FOR_EVER: Duration = Duration::from_secs(100_000_000);
        Duration::try_from_secs_f64(simulated_seconds * self.config.time_scale).unwrap_or(FOR_EVER).min(FOR_EVER)
    }

    /// Moves requests from the head of the queue into the batch while they fit.
    fn admit(&self, state: &mut State) {
        while state.running.len() < self.config.max_num_seqs
            && let Some(queued) = state.waiting.front()
        {
            let shape = &queued.shape;
            let prompt_blocks = self.blocks_for(shape.prompt_bytes);
            let all = self.blocks_for(shape.prompt_bytes + shape.answer_tokens as usize * TOKEN_BYTES);
            // The last prompt token is computed even if its block is there: its output starts the answer.
            let findable = (shape.prompt_bytes.saturating_sub(1) / self.block_bytes()).min(shape.hashes.len());
            let (hits, idle) = state.pool.leading(&shape.hashes[..findable]);
            let needed = all - hits as u32;
            if state.pool.free() - idle < needed + state.reserved {
                return;
            }
            let Some(queued) = state.waiting.pop_front() else { return };
            let shape = queued.shape;
            let mut blocks: Vec<u32> = shape.hashes[..hits].iter().filter_map(|h| state.pool.hold(*h)).collect();
            blocks.extend((hits as u32..prompt_blocks).map_while(|_| state.pool.take()));
            let named = shape.prompt_bytes / self.block_bytes();
            for (block, hash) in blocks.iter().zip(&shape.hashes).take(named).skip(hits) {
                state.pool.name(*block, *hash);
            }
            let cached = hits as u32 * self.config.block_size;
            let reserved = all - prompt_blocks;
            state.reserved += reserved;
            state.prompt_tokens += u64::from(shape.prompt_tokens());
            state.cached_tokens += u64::from(cached);
            if let Some(adapter) = shape.adapter {
                state.adapters[adapter].1 -= 1;
                state.adapters[adapter].0 += 1;
            }
            state.running.insert(queued.id, Running { shape, blocks, hits, named, reserved, computed: false });
            // A receiver that is gone belongs to a ticket that is being dropped and waits for this lock.
            let _ = queued.admitted.send(cached);
        }
    }

    /// Gives the running sequence `id` room for `made` tokens of its answer, and names what is full.
    fn grow(&self, id: u64, made: u32) {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let Some(running) = state.running.get_mut(&id) else { return };
        let shape = Arc::clone(&running.shape);
        let wanted = self.blocks_for(shape.prompt_bytes + made as usize * TOKEN_BYTES) as usize;
        while running.blocks.len() < wanted && running.reserved > 0 {
            let Some(block) = state.pool.take() else { break };
            running.blocks.push(block);
            running.reserved -= 1;
            state.reserved -= 1;
        }
        // The newest token is not in the cache yet: it is the input of the next step.
        let cached = shape.prompt_bytes + made.saturating_sub(1) as usize * TOKEN_BYTES;
        let full = (cached / self.block_bytes()).min(running.blocks.len());
        for (block, hash) in running.blocks.iter().zip(&shape.hashes).take(full).skip(running.named) {
            state.pool.name(*block, *hash);
        }
        running.named = running.named.max(full);
    }

    /// Ends the sequence `id`, wherever it is.
    fn end(&self, id: u64, whole: bool) {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        if let Some(running) = state.running.remove(&id) {
            if !running.computed {
                // What was named ahead of a prefill that never ended holds nothing, unless a later
                // request counts on it; that one stands behind in the lane and computes it.
                for block in running.blocks.iter().take(running.named).skip(running.hits) {
                    if state.pool.holders(*block) == 1 {
                        state.pool.forget(*block);
                    }
                }
            }
            state.pool.give_back(&running.blocks);
            state.reserved -= running.reserved;
            if let Some(adapter) = running.shape.adapter {
                state.adapters[adapter].0 -= 1;
            }
        } else if let Some(place) = state.waiting.iter().position(|queued| queued.id == id)
            && let Some(queued) = state.waiting.remove(place)
            && let Some(adapter) = queued.shape.adapter
        {
            state.adapters[adapter].1 -= 1;
        }
        if whole {
            state.finished += 1;
        } else {
            state.aborted += 1;
        }
        self.admit(state);
    }
}

impl Ticket {
    /// Tokens of the prompt.
    pub(super) fn prompt_tokens(&self) -> u32 {
        self.shape.prompt_tokens()
    }

    /// Prompt tokens found in the cache; 0 before [`Ticket::prefill`] has ended.
    pub(super) fn cached_tokens(&self) -> u32 {
        self.cached_tokens
    }

    /// Tokens that the answer will have.
    pub(super) fn answer_tokens(&self) -> u32 {
        self.shape.answer_tokens
    }

    /// Waits for a place in the batch and for the prefill.
    pub(super) async fn prefill(&mut self) {
        let Some(admission) = self.admission.take() else { return };
        // The sender is dropped only with the queue entry, which goes only when this ticket does.
        self.cached_tokens = admission.await.unwrap_or(0);
        let engine = &self.engine;
        let uncached = f64::from(self.prompt_tokens() - self.cached_tokens.min(self.prompt_tokens()));
        let lasting = engine.lasting(uncached / engine.config.prefill_tokens_per_second);
        if !lasting.is_zero() {
            // Never closed, so this cannot fail.
            let _lane = engine.lane.acquire().await;
            tokio::time::sleep(lasting).await;
        }
        if let Some(running) = engine.state.lock().running.get_mut(&self.id) {
            running.computed = true;
        }
        self.first_at = Some(Instant::now());
    }

    /// Waits for the next token and returns its index, or None after the last.
    pub(super) async fn next(&mut self) -> Option<u32> {
        self.prefill().await;
        if self.made >= self.shape.answer_tokens {
            return None;
        }
        if self.made > 0 {
            let due = self.engine.lasting(self.engine.config.decode_step.as_secs_f64() * f64::from(self.made));
            if !due.is_zero()
                && let Some(first) = self.first_at
            {
                // Counted from the first token, so that the timer's grain does not add up.
                tokio::time::sleep_until(first + due).await;
            }
        }
        self.made += 1;
        self.engine.generated.fetch_add(1, Ordering::Relaxed);
        let (tokens, block) = (self.shape.prompt_tokens() + self.made, self.engine.config.block_size);
        // Near a boundary only. Prompts that are no whole number of tokens shift it by one.
        if tokens % block <= 2 || block <= 2 {
            self.engine.grow(self.id, self.made);
        }
        Some(self.made - 1)
    }

    /// Waits for the whole answer.
    pub(super) async fn finish(&mut self) {
        while self.next().await.is_some() {}
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let whole = self.first_at.is_some() && self.made == self.shape.answer_tokens;
        self.engine.end(self.id, whole);
    }
}

/// Chained hashes of the full blocks of `prompt` followed by `answer`.
fn chain(prompt: &[u8], answer: &[u8], block_bytes: usize, seed: u64) -> Vec<u64> {
    let full = (prompt.len() + answer.len()) / block_bytes;
    let mut hashes = Vec::with_capacity(full);
    let mut parent = seed;
    let whole = prompt.chunks_exact(block_bytes);
    // The block that spans both, and those of the answer alone.
    let mut rest = whole.remainder().to_vec();
    rest.extend_from_slice(answer);
    for block in whole.chain(rest.chunks_exact(block_bytes)) {
        parent = xxh64(block, parent);
        hashes.push(parent);
    }
    hashes
}

#[cfg(test)]
mod tests;
