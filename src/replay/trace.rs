//! Traffic to replay: when requests came, how long they were, and which blocks of prompt they share.
//!
//! A [`Trace`] is what was read or generated; [`scale`] puts it at the rate that is asked for.
//! Block ids are made dense on the way, so that what counts per block can be an array.
//!
//! # Output blocks
//! A trace says what a prompt is made of and not what was generated. But a later turn of the same conversation
//! contains the answer of the one before: its blocks behind the earlier prompt are the blocks that the earlier
//! answer filled. Those stay in the cache of a pod ([`Request::generated`]).

pub mod generate;
pub mod read;
pub mod scale;

use foldhash::fast::FixedState;
use hashbrown::HashMap;

/// Requests of one trace at most.
pub const MAX_REQUESTS: usize = 5_000_000;

/// Block ids of one trace at most, over all its requests.
pub const MAX_BLOCKS: usize = 200_000_000;

/// Prompt and output tokens of one request at most.
pub const MAX_TOKENS: u32 = 1 << 22;

/// A block that this many requests begin with or go through is no sign of a conversation.
const SHARED_BY_MANY: u32 = 50;

/// One request.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Request {
    /// Seconds since the start of the trace.
    pub at: f64,
    /// Prompt tokens, at least 1.
    pub input: u32,
    /// Output tokens, at least 1.
    pub output: u32,
    /// Where its block ids begin.
    pub offset: usize,
    /// How many there are; the last may stand for a part of a block.
    pub blocks: u32,
    /// Where the ids of the blocks begin that its output fills, and how many are known.
    pub generated: (usize, u32),
}

/// Requests in the order of their arrival.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trace {
    /// The requests.
    pub requests: Vec<Request>,
    /// Block ids, dense: below [`Trace::distinct`].
    pub ids: Vec<u32>,
    /// How many different ids there are.
    pub distinct: u32,
    /// Tokens per block.
    pub block_tokens: u32,
    /// Length in seconds: the time of the last arrival.
    pub seconds: f64,
    /// Requests that were left out because they have no prompt.
    pub empty: usize,
}

impl Trace {
    /// Ids of the blocks of `request`.
    pub fn blocks(&self, request: &Request) -> &[u32] {
        &self.ids[request.offset..request.offset + request.blocks as usize]
    }

    /// Ids of the blocks that the output of `request` fills.
    pub fn generated(&self, request: &Request) -> &[u32] {
        let (offset, blocks) = request.generated;
        &self.ids[offset..offset + blocks as usize]
    }

    /// Full blocks of the prompt whose ids are known.
    pub fn full(&self, request: &Request) -> u32 {
        (request.input / self.block_tokens.max(1)).min(request.blocks)
    }

    /// How often each block occurs, by id.
    pub fn occurrences(&self) -> Vec<u32> {
        let mut counts = vec![0u32; self.distinct as usize];
        for request in &self.requests {
            for id in self.blocks(request) {
                counts[*id as usize] += 1;
            }
        }
        counts
    }

    /// Orders the requests by time, begins at 0 and finds the output blocks.
    fn finish(mut self) -> Self {
        self.requests.sort_by(|a, b| a.at.total_cmp(&b.at));
        let start = self.requests.first().map_or(0.0, |r| r.at);
        for request in &mut self.requests {
            request.at -= start;
        }
        self.seconds = self.requests.last().map_or(0.0, |r| r.at);
        self.find_generated();
        self
    }

    fn find_generated(&mut self) {
        let counts = self.occurrences();
        // The last request whose prompt ends with this full block.
        let mut ends: Vec<u32> = vec![u32::MAX; self.distinct as usize];
        for later in 0..self.requests.len() {
            let turn = self.requests[later];
            let full = self.full(&turn) as usize;
            for k in (1..full).rev() {
                let last = self.ids[turn.offset + k - 1] as usize;
                let earlier = std::mem::replace(&mut ends[last], u32::MAX);
                if earlier == u32::MAX {
                    continue;
                }
                let before = &mut self.requests[earlier as usize];
                if counts[last] < SHARED_BY_MANY && turn.input >= before.input {
                    let filled = ((before.input + before.output) / self.block_tokens.max(1)) as usize;
                    before.generated = (turn.offset + k, filled.min(full).saturating_sub(k) as u32);
                }
                break;
            }
            if full > 0 {
                ends[self.ids[turn.offset + full - 1] as usize] = later as u32;
            }
        }
    }
}

/// Makes ids of any kind dense, in the order of their appearance.
#[derive(Default)]
struct Dense {
    known: HashMap<u64, u32, FixedState>,
}

impl Dense {
    fn id(&mut self, id: u64) -> u32 {
        let next = self.known.len() as u32;
        *self.known.entry(id).or_insert(next)
    }

    fn len(&self) -> u32 {
        self.known.len() as u32
    }
}

#[cfg(test)]
mod tests;
