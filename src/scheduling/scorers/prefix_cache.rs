//! `prefix-cache-scorer`: the more of the prompt an endpoint already holds, the better.
//!
//! Formula, with w = `matchLengthWeight`:
//! (1 - w) * matched / total + w * min(1, matched * block tokens / `matchLengthScaleTokens`)^2.
//! The first part is the share of the prompt that is cached; the second part grows with its absolute
//! length, so that long shared prefixes outweigh short ones that happen to be whole prompts.
//!
//! Inputs: the prefix signal of the named producer, else of the first one; an
//! `mirror-prefix-cache-producer` is created when none is configured. Without the signal, and for
//! prompts shorter than one block, all get 0.
//!
//! When it misleads: the approximate index believes that an endpoint still holds what was sent to
//! it; an engine under memory pressure has dropped it. A popular prefix draws all its requests to
//! one endpoint until the load scorers outweigh this one, so do not use it alone.
//!
//! ```yaml
//! - type: prefix-cache-scorer
//!   parameters:
//!     matchLengthWeight: 0
//!     matchLengthScaleTokens: 8192
//! ```

use crate::domain::Slot;
use crate::scheduling::params::Params as _;
use crate::scheduling::plugin::{About, Build, Built, Cycle, Need, Row, Scorer, SignalKind, Stability};

crate::params! {
    /// Parameters of `prefix-cache-scorer`.
    pub struct Params {
        /// Name of the prefix producer to read; the first one by default.
        prefix_match_info_producer_name: Option<String> = None, "prefixMatchInfoProducerName";
        /// Share of the score that comes from the absolute length of the match, 0 to 1.
        match_length_weight: f32 = 0.0, "matchLengthWeight", 0.0..=1.0;
        /// Matched tokens at which the length part reaches 1.
        match_length_scale_tokens: u64 = 8192, "matchLengthScaleTokens", 1..;
    }
}

/// This plugin in the table.
pub const ROW: Row = Row {
    about: About {
        kind: "prefix-cache-scorer",
        aliases: &[],
        stability: Stability::Beta,
        summary: "Prefers endpoints that hold more of the prompt in their KV cache.",
        params: Params::SPEC,
        sample: "- type: prefix-cache-scorer\n  parameters:\n    matchLengthWeight: 0.0\n    matchLengthScaleTokens: 8192\n",
    },
    build,
};

fn build(b: &mut Build<'_>) -> Option<Built> {
    let params: Params = b.params();
    let name = params.prefix_match_info_producer_name.as_deref();
    let producer = b.consumes(SignalKind::Prefix, "prefixMatchInfoProducerName", name);
    b.need(Need::Prompts);
    Some(Built::scorer(PrefixCache {
        producer,
        length_weight: params.match_length_weight,
        scale_tokens: params.match_length_scale_tokens as f32,
    }))
}

struct PrefixCache {
    producer: usize,
    length_weight: f32,
    scale_tokens: f32,
}

impl Scorer for PrefixCache {
    fn score(&self, cx: &Cycle<'_>, candidates: &[Slot], out: &mut [f32]) {
        let Some(prefix) = cx.signals.prefix.get(self.producer).filter(|p| p.total_blocks > 0) else { return };
        let total = prefix.total_blocks as f32;
        let length_per_block = prefix.block_tokens as f32 / self.scale_tokens;
        for (value, slot) in out.iter_mut().zip(candidates) {
            let matched = prefix.blocks(*slot) as f32;
            let share = (matched / total).min(1.0);
            let length = (matched * length_per_block).min(1.0);
            *value = (1.0 - self.length_weight) * share + self.length_weight * length * length;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::PrefixMatch;
    use crate::domain::node::Value;
    use crate::scheduling::fixtures::{build, build_in, errors, pool, text};
    use crate::scheduling::plugin::Registry;

    fn matched(blocks: &[u32]) -> PrefixMatch {
        PrefixMatch { block_tokens: 64, total_blocks: 64, matched: blocks.to_vec(), ..PrefixMatch::default() }
    }

    #[test]
    fn is_the_cached_share_and_with_weight_its_length() {
        let mut scene = pool(4);
        assert_eq!(scene.scores(&build(&ROW, vec![])), [0.0; 4], "no signal");
        *scene.signals.prefix_mut(0) = matched(&[0, 16, 64]);
        assert_eq!(scene.scores(&build(&ROW, vec![])), [0.0, 0.25, 1.0, 0.0]);
        let with_length = |weight, scale| {
            build(&ROW, vec![("matchLengthWeight", weight), ("matchLengthScaleTokens", Value::Integer(scale))])
        };
        let half = with_length(Value::Float(0.5), 4096);
        assert_eq!(scene.scores(&half), [0.0, 0.125 + 0.5 * 0.0625, 1.0, 0.0]);
        assert_eq!(scene.scores(&with_length(Value::Integer(1), 1024)), [0.0, 1.0, 1.0, 0.0], "capped at one");
    }

    #[test]
    fn reads_the_producer_that_it_was_given() {
        let mut registry = Registry::default();
        let mut problems = crate::domain::node::Problems::default();
        for name in ["first", "second"] {
            let mut context = Build {
                name,
                path: String::new(),
                at: Default::default(),
                parameters: None,
                registry: &mut registry,
                problems: &mut problems,
            };
            context.produces(SignalKind::Prefix);
        }
        let (built, _) = build_in(&mut registry, &ROW, vec![("prefixMatchInfoProducerName", text("second"))]);
        let mut scene = pool(2);
        *scene.signals.prefix_mut(0) = matched(&[64, 0]);
        *scene.signals.prefix_mut(1) = matched(&[0, 64]);
        assert_eq!(scene.scores(&built.unwrap()), [0.0, 1.0]);
        assert!(registry.needs(&Need::Prompts));
    }

    #[test]
    fn a_weight_outside_its_range_is_refused() {
        assert!(errors(&ROW, vec![("matchLengthWeight", Value::Float(1.1))])[0].contains("between 0 and 1"));
        assert!(errors(&ROW, vec![("matchLengthScaleTokens", Value::Integer(0))])[0].contains("at least 1"));
    }
}
