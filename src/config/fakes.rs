//! Small plugin tables for the tests of this room: the names and parameters of the real types,
//! instances that do nothing. What real plugins make of a configuration is tested in `tests/`.

use std::sync::Arc;

use crate::domain::{EndpointSet, InferenceRequest, ProfileResult, Signals, Slot, Snapshot};
use crate::params;
use crate::scheduling::params::Params;
use crate::scheduling::plugin::{
    About, Build, Built, Commit, Cycle, Filter, Handler, Metric, Need, Next, Picker, Producer, Routed, Row, Scorer,
    SignalKind, Stability, Watch,
};

use super::tables::{NoParams, Tables};

struct Nothing;

impl Filter for Nothing {
    fn filter(&self, _: &Cycle<'_>, _: &mut Vec<Slot>) {}
}
impl Scorer for Nothing {
    fn score(&self, _: &Cycle<'_>, _: &[Slot], _: &mut [f32]) {}
}
impl Picker for Nothing {
    fn pick(&self, _: &Cycle<'_>, _: &[Slot], _: &[f32], _: &mut fastrand::Rng, _: &mut Vec<usize>) {}
}
impl Handler for Nothing {
    fn next(&self, _: &Cycle<'_>, _: &[(usize, Option<ProfileResult>)]) -> Next {
        Next::Finish(0)
    }
}
impl Producer for Nothing {
    fn produce(&self, _: &InferenceRequest, _: &Snapshot, _: &mut Signals) {
        let _ = EndpointSet::new();
    }
}
impl Commit for Nothing {
    fn commit(&self, _: &Routed<'_>) -> Option<Box<dyn Watch>> {
        None
    }
}

params! {
    struct PickerParams {
        /// How many.
        max: u32 = 1, "maxNumOfEndpoints", 1..;
    }
}
params! {
    struct Prefix {
        /// Producer.
        producer: Option<String> = None, "prefixMatchInfoProducerName";
        /// Weight of the length.
        length: f64 = 0.0, "matchLengthWeight", 0.0..=1.0;
        /// Scale.
        scale: u64 = 8192, "matchLengthScaleTokens", 1..;
    }
}
params! {
    struct Active {
        /// Idle up to.
        idle: u32 = 0, "idleThreshold";
        /// Score when busy.
        busy: f64 = 1.0, "maxBusyScore", 0.0..=1.0;
        /// Producer.
        producer: Option<String> = None, "inFlightLoadProducerName";
    }
}
params! {
    struct LoadAware {
        /// Queue length that scores 0.
        threshold: u32 = 128, "threshold", 1..;
    }
}
params! {
    struct NoHit {
        /// Size.
        size: u32 = 1024, "lruSize", 1..;
        /// Producer.
        producer: Option<String> = None, "prefixMatchInfoProducerName";
    }
}
params! {
    struct ByLabel {
        /// Label.
        label: Option<String> = None, "label";
    }
}
params! {
    struct Approx {
        /// Sizes from the engine.
        auto: bool = true, "autoTune";
        /// Block.
        block: u32 = 16, "blockSizeTokens", 1..;
        /// Limit in tokens.
        tokens: u64 = 131_072, "maxPrefixTokensToMatch";
        /// Limit in blocks.
        blocks: u64 = 2048, "maxPrefixBlocksToMatch";
        /// Entries.
        lru: u64 = 31_250, "lruCapacityPerServer", 1..;
    }
}
params! {
    struct InFlight {
        /// Producer.
        producer: Option<String> = None, "prefixMatchInfoProducerName";
    }
}

fn row<P: Params>(
    kind: &'static str,
    aliases: &'static [&'static str],
    stability: Stability,
    build: fn(&mut Build<'_>) -> Option<Built>,
) -> Row {
    Row { about: About { kind, aliases, stability, summary: "A fake.", params: P::SPEC, sample: "" }, build }
}

fn beta<P: Params>(kind: &'static str, build: fn(&mut Build<'_>) -> Option<Built>) -> Row {
    row::<P>(kind, &[], Stability::Beta, build)
}

/// Fake rows beside the real kinds of other groups, and the real ones that the default configuration names.
pub(crate) fn tables() -> Tables {
    let standard = Tables::standard();
    Tables {
        scheduling: vec![
            row::<ByLabel>("label-selector-filter", &["by-label"], Stability::Beta, |b| {
                b.params::<ByLabel>();
                Some(Built::filter(Nothing))
            }),
            beta::<NoParams>("queue-scorer", |b| {
                b.params::<NoParams>();
                b.need(Need::Metric(Metric::Waiting));
                Some(Built::scorer(Nothing))
            }),
            beta::<NoParams>("kv-cache-utilization-scorer", |b| {
                b.params::<NoParams>();
                b.need(Need::Metric(Metric::KvUsage));
                Some(Built::scorer(Nothing))
            }),
            beta::<LoadAware>("load-aware-scorer", |b| {
                b.params::<LoadAware>();
                Some(Built::scorer(Nothing))
            }),
            beta::<Prefix>("prefix-cache-scorer", |b| {
                let p = b.params::<Prefix>();
                b.consumes(SignalKind::Prefix, "prefixMatchInfoProducerName", p.producer.as_deref());
                Some(Built::scorer(Nothing))
            }),
            beta::<Active>("active-request-scorer", |b| {
                let p = b.params::<Active>();
                b.consumes(SignalKind::InFlight, "inFlightLoadProducerName", p.producer.as_deref());
                Some(Built::scorer(Nothing))
            }),
            beta::<NoHit>("no-hit-lru-scorer", |b| {
                let p = b.params::<NoHit>();
                b.consumes(SignalKind::Prefix, "prefixMatchInfoProducerName", p.producer.as_deref());
                Some(Built { scorer: Some(Arc::new(Nothing)), commit: Some(Arc::new(Nothing)), ..Built::default() })
            }),
            row::<NoParams>("session-affinity-scorer", &[], Stability::Alpha, |b| {
                b.params::<NoParams>();
                Some(Built::scorer(Nothing))
            }),
            beta::<PickerParams>("max-score-picker", |b| {
                b.params::<PickerParams>();
                Some(Built::picker(Nothing))
            }),
            beta::<PickerParams>("random-picker", |b| {
                b.params::<PickerParams>();
                Some(Built::picker(Nothing))
            }),
            crate::scheduling::pickers::cost::ROW,
            crate::admission::ROW,
            beta::<NoParams>("single-profile-handler", |b| {
                b.params::<NoParams>();
                Some(Built::handler(Nothing))
            }),
            beta::<NoParams>("two-profile-handler", |b| {
                b.params::<NoParams>();
                Some(Built::handler(Nothing))
            }),
        ],
        signals: vec![
            beta::<InFlight>("inflight-load-producer", |b| {
                let p = b.params::<InFlight>();
                b.consumes(SignalKind::Prefix, "prefixMatchInfoProducerName", p.producer.as_deref());
                b.produces(SignalKind::InFlight);
                Some(Built { producer: Some(Arc::new(Nothing)), commit: Some(Arc::new(Nothing)), ..Built::default() })
            }),
            beta::<Approx>("approx-prefix-cache-producer", |b| {
                b.params::<Approx>();
                b.need(Need::Prompts);
                b.produces(SignalKind::Prefix);
                Some(Built { producer: Some(Arc::new(Nothing)), commit: Some(Arc::new(Nothing)), ..Built::default() })
            }),
            beta::<Approx>("mirror-prefix-cache-producer", |b| {
                b.params::<Approx>();
                b.need(Need::Prompts);
                b.produces(SignalKind::Prefix);
                Some(Built { producer: Some(Arc::new(Nothing)), commit: Some(Arc::new(Nothing)), ..Built::default() })
            }),
            crate::signals::accounts::ROW,
        ],
        ..standard
    }
}
