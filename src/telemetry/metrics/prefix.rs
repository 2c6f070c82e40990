//! What one prefix index was asked, what it foretold and what came of it.
//!
//! The prediction is held against the model server's own count when the request has ended. Sums, not a
//! histogram: quotients of their rates say how good the index is over any window, at the price of six
//! additions per request.

use super::catalog as c;
use super::family::{Count, Lazy, Page};

/// Look-ups of one prefix index.
#[derive(Debug, Default)]
pub struct PrefixMetrics {
    ratio: Lazy,
    bytes: Lazy,
    picked: Lazy,
    compared: Compared,
}

/// Sums over the requests whose prediction could be held against what the model server counted.
#[derive(Debug, Default)]
struct Compared {
    requests: Count,
    prompt: Count,
    predicted: Count,
    delivered: Count,
    over: Count,
    under: Count,
}

impl Compared {
    fn collect(&self, page: &mut Page, labels: &[Box<str>]) {
        for (spec, count) in [
            (&c::PREFIX_COMPARED, &self.requests),
            (&c::PREFIX_PROMPT_TOKENS, &self.prompt),
            (&c::PREFIX_PREDICTED_TOKENS, &self.predicted),
            (&c::PREFIX_DELIVERED_TOKENS, &self.delivered),
            (&c::PREFIX_OVER_TOKENS, &self.over),
            (&c::PREFIX_UNDER_TOKENS, &self.under),
        ] {
            page.value(spec, labels, count.get() as f64);
        }
    }
}

impl PrefixMetrics {
    /// One look-up: the share and the bytes of the prompt that the best endpoint holds.
    pub fn observe(&self, ratio: f32, bytes: u64) {
        self.ratio.observe(&c::PREFIX_HIT_RATIO, f64::from(ratio));
        self.bytes.observe(&c::PREFIX_HIT_BYTES, bytes as f64);
    }

    /// The share of the prompt that the picked endpoint holds.
    pub fn observe_picked(&self, ratio: f32) {
        self.picked.observe(&c::PREFIX_PICKED_RATIO, f64::from(ratio));
    }

    /// The end of a request of which both are known: prompt tokens that the picked endpoint was believed
    /// to hold, and those that it had, of `prompt` in all.
    pub fn compare(&self, predicted: u64, delivered: u64, prompt: u64) {
        let Compared { requests, prompt: prompts, predicted: believed, delivered: had, over, under } = &self.compared;
        requests.inc();
        prompts.add(prompt);
        believed.add(predicted);
        had.add(delivered);
        if predicted > delivered {
            over.add(predicted - delivered);
        } else {
            under.add(delivered - predicted);
        }
    }

    /// Adds the families to the page.
    pub(super) fn collect(&self, page: &mut Page, labels: &[Box<str>]) {
        page.lazy(&c::PREFIX_HIT_RATIO, labels, &self.ratio);
        page.lazy(&c::PREFIX_HIT_BYTES, labels, &self.bytes);
        page.lazy(&c::PREFIX_PICKED_RATIO, labels, &self.picked);
        self.compared.collect(page, labels);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_in_both_directions_are_kept_apart() {
        let metrics = PrefixMetrics::default();
        for (predicted, delivered, prompt) in [(64, 48, 100), (64, 96, 200), (32, 32, 40), (0, 0, 7)] {
            metrics.compare(predicted, delivered, prompt);
        }
        let Compared { requests, prompt, predicted, delivered, over, under } = &metrics.compared;
        let sums = [requests, prompt, predicted, delivered, over, under].map(Count::get);
        assert_eq!(sums, [4, 347, 160, 176, 16, 32]);
        // What was predicted is what was delivered, but for the two errors.
        assert_eq!(sums[2] + sums[5], sums[3] + sums[4]);
    }
}
