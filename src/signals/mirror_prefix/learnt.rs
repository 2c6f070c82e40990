//! What the mirror learns from the counts of model servers: bytes per token, and how far its idea of a cache's size
//! can be trusted.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use arc_swap::ArcSwap;
use hashbrown::HashMap;
use parking_lot::Mutex;

/// Bytes per token before anything is learnt: what the stream of a [`Prompt`](crate::domain::Prompt) assumes.
pub const START_RATIO: f32 = 4.0;

/// Bytes per token that are believed: no vocabulary does much worse than one byte, or better than a long word.
const RATIOS: RangeInclusive<f64> = 1.0..=16.0;

/// Tokens for which the start stands: the first prompt of some length outweighs it.
const START_TOKENS: f64 = 256.0;

/// Weight that is left to what was known after another request: about the last 200 count. Enough to even out
/// prose, code and tables, few enough to follow another mix.
const KEPT: f64 = 0.995;

/// Shorter prompts tell more of the chat template than of the text.
const LEAST_TOKENS: u64 = 64;

/// Models whose ratio is learnt apart, and the longest name of one; others share that of all requests.
const MAX_MODELS: usize = 256;
const MAX_NAME: usize = 256;

/// Bytes and tokens of prompts, in sums that fade. Weighted by length, since capacity is.
#[derive(Clone, Copy, Debug)]
pub struct Measure {
    bytes: f64,
    tokens: f64,
}

impl Default for Measure {
    fn default() -> Self {
        Self { bytes: START_TOKENS * f64::from(START_RATIO), tokens: START_TOKENS }
    }
}

impl Measure {
    /// Adds a prompt.
    pub fn add(&mut self, bytes: u64, tokens: u64) {
        // A prompt of a million tokens must not count as hundreds of others.
        let tokens = tokens.min(1 << 20) as f64;
        let bytes = (bytes as f64).clamp(tokens * RATIOS.start(), tokens * RATIOS.end());
        self.bytes = self.bytes * KEPT + bytes;
        self.tokens = self.tokens * KEPT + tokens;
    }

    /// Bytes per token, 1 to 16.
    pub fn ratio(&self) -> f64 {
        (self.bytes / self.tokens).clamp(*RATIOS.start(), *RATIOS.end())
    }
}

/// Whether the counts of a request say anything about bytes per token.
pub fn is_telling(bytes: u64, tokens: u64) -> bool {
    tokens >= LEAST_TOKENS && bytes >= LEAST_TOKENS
}

/// The ratio of one model, read without a lock.
#[derive(Debug, Default)]
struct Ratio {
    /// Bits of an `f32`; 0 while nothing is learnt.
    published: AtomicU32,
    sums: Mutex<Measure>,
}

impl Ratio {
    fn add(&self, bytes: u64, tokens: u64) {
        let mut sums = self.sums.lock();
        sums.add(bytes, tokens);
        self.published.store((sums.ratio() as f32).to_bits(), Ordering::Relaxed);
    }

    fn get(&self) -> Option<f32> {
        Some(f32::from_bits(self.published.load(Ordering::Relaxed))).filter(|ratio| *ratio > 0.0)
    }
}

type ByName = HashMap<Box<str>, Arc<Ratio>, foldhash::fast::RandomState>;

/// Bytes per token by target model.
#[derive(Default)]
pub struct Ratios {
    models: ArcSwap<ByName>,
    all: Ratio,
}

impl Ratios {
    /// Bytes per token of `model`; that of all requests for a model that had none; `None` if nothing is learnt.
    pub fn of(&self, model: &str) -> Option<f32> {
        let models = self.models.load();
        models.get(model).and_then(|ratio| ratio.get()).or_else(|| self.all.get())
    }

    /// Learns from a prompt whose tokens were counted.
    pub fn add(&self, model: &str, bytes: u64, tokens: u64) {
        self.all.add(bytes, tokens);
        if let Some(ratio) = self.models.load().get(model) {
            return ratio.add(bytes, tokens);
        }
        if model.len() > MAX_NAME {
            return;
        }
        // Rare: once per model.
        let ratio = Arc::new(Ratio::default());
        ratio.add(bytes, tokens);
        self.models.rcu(|models| {
            let mut models = ByName::clone(models);
            if models.len() < MAX_MODELS {
                models.entry(model.into()).or_insert_with(|| Arc::clone(&ratio));
            }
            models
        });
    }

    /// Every model with its ratio, by name.
    pub fn list(&self) -> Vec<(Box<str>, f32)> {
        let models = self.models.load();
        let mut list: Vec<_> = models.iter().filter_map(|(name, ratio)| Some((name.clone(), ratio.get()?))).collect();
        list.sort_by(|a, b| a.0.cmp(&b.0));
        list
    }
}

/// Share of a prediction that uneven text may make wrong: the blocks that match can be denser in tokens than the
/// rest of the prompt.
const UNEVEN: f64 = 1.0 / 16.0;

/// Applied when the server had less than was predicted. Fourteen of these halve the capacity.
const SHRINK: f64 = 0.95;

/// Applied when the server had kept what was forgotten here. Smaller than the step down, since a prediction
/// that fails costs a prefill that nobody waited for, and one that was not made only a chance.
const GROW: f64 = 1.02;

/// Applied instead when the server had more than twice what was predicted, and long answers besides. A mirror of half the
/// size forgets much of what is used again, and says little of it or nothing. Where another picker warmed a
/// prefix it looks the same; with three pickers that share nothing that made no difference up to 0.8 load. On the conversation
/// trace at 0.95 load, a capacity reported as half cost 1.83 times the mean time to first token with the small step
/// alone, 1.29 with leaps of 1.1, and 1.17 with 1.2; with the right capacity it made no difference.
const LEAP: f64 = 1.2;

/// Applied when a prediction came true, up to what is believed without any evidence: makes up for the odd step
/// down that had another cause, at a rate of one in fifty.
const RECOVER: f64 = 1.001;

/// How the capacity that the metrics report may be corrected. Down: output, and what others than this picker
/// send, take most of the cache. Up: a second tier behind it, or several caches behind one address.
pub const REPORTED: RangeInclusive<f64> = 0.1..=4.0;

/// How a capacity that is a mere guess may be corrected: 30,000 tokens to 32 million from the default.
pub const ASSUMED: RangeInclusive<f64> = 1.0 / 64.0..=16.0;

/// Of the length of the longest answer, kept by each one after it: a thousand later it is forgotten.
const ANSWER_KEPT: f32 = 0.995;

/// How long answers are, for what an engine may have cached of them: the longest of late, in tokens.
#[derive(Debug, Default)]
pub struct Answers(AtomicU32);

impl Answers {
    /// Notes the length of an answer.
    pub fn note(&self, tokens: u64) {
        let longest = |bits: u32| Some((f32::from_bits(bits) * ANSWER_KEPT).max(tokens as f32).to_bits());
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, longest);
    }

    /// The longest of late.
    pub fn longest(&self) -> f64 {
        f64::from(f32::from_bits(self.0.load(Ordering::Relaxed)))
    }
}

/// A prediction of cached tokens and what came of it, in tokens.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// Believed to be cached.
    pub predicted: f64,
    /// Cached, by the server's count.
    pub delivered: f64,
    /// What the two may differ by for granularity: one block.
    pub block: f64,
    /// What the server may have from answers, which the mirror does not know.
    pub output: f64,
    /// Whether the deepest block predicted lay idle, so that the server was free to evict it. Blocks in flight
    /// may only not be computed yet.
    pub idle: bool,
    /// Whether the mirror was full, so that it may have forgotten something.
    pub full: bool,
}

impl Outcome {
    /// The correction of a capacity after this, from `factor` and within `bounds`.
    pub fn correct(&self, factor: f64, bounds: &RangeInclusive<f64>) -> f64 {
        let slack = self.block + self.predicted * UNEVEN;
        let corrected = if self.predicted > self.delivered + slack {
            if self.idle { factor * SHRINK } else { factor }
        } else if self.delivered > self.predicted + self.output + slack {
            let twice = self.delivered > 2.0 * self.predicted + self.output + slack;
            let step = if twice { LEAP } else { GROW };
            if self.full { factor * step } else { factor }
        } else if self.idle && self.predicted > 4.0 * self.block && factor < 1.0 {
            (factor * RECOVER).min(1.0)
        } else {
            factor
        };
        corrected.clamp(*bounds.start(), *bounds.end())
    }
}

#[cfg(test)]
mod tests;
