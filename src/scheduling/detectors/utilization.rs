//! `utilization-detector`: full by queue depth and KV cache, as the model servers report them. The default.
//!
//! Rule: the load of an endpoint is the larger of `waiting requests / queueDepthThreshold` and `KV cache
//! usage / kvCacheUtilThreshold`; saturation is the mean over the endpoints. It is not cut at 1, so one
//! endpoint with a long queue can make a pool full. As a filter it keeps the endpoints that are below both
//! thresholds times `1 + headroom`, and all of them if none is.
//!
//! Inputs: waiting requests and KV cache usage. Naming the detector switches their scraping on; the one
//! that is there by default reads what other plugins have scraped.
//!
//! Missing data: an endpoint without a sample, with one older than `metricsStalenessThreshold`, or with one
//! that has neither value counts as full (1) as long as some endpoint has one; the filter drops it. If nobody has
//! one, nothing is known: nothing is refused. (In the picker we replace that reads as full, and stops all
//! sheddable requests of a pool whose scrape is broken.)
//!
//! When it misleads: between two scrapes everything may have changed, so a burst overshoots; a threshold of
//! 5 waiting requests is much for a large model and little for a small one.
//!
//! ```yaml
//! - type: utilization-detector
//!   parameters:
//!     queueDepthThreshold: 5
//!     kvCacheUtilThreshold: 0.8
//! ```

use std::sync::Arc;
use std::time::Duration;

use crate::domain::{LoadTable, Slot, Snapshot, Timestamp};
use crate::scheduling::params::Params as _;
use crate::scheduling::plugin::{About, Build, Built, Cycle, Filter, Metric, Need, Row, SaturationDetector, Stability};

crate::params! {
    /// Parameters of `utilization-detector`.
    pub struct Params {
        /// Waiting requests at which an endpoint is full.
        queue_depth_threshold: u32 = 5, "queueDepthThreshold", 1..;
        /// KV cache usage at which an endpoint is full; at 0 every endpoint that reports it is.
        kv_cache_util_threshold: f64 = 0.8, "kvCacheUtilThreshold", 0.0..=1.0;
        /// Age at which the metrics of an endpoint count as missing.
        metrics_staleness_threshold: std::time::Duration = std::time::Duration::from_millis(200), "metricsStalenessThreshold";
        /// Share above the thresholds up to which the filter lets an endpoint pass.
        headroom: f64 = 0.0, "headroom", 0.0..;
    }
}

/// This plugin in the table.
pub const ROW: Row = Row {
    about: About {
        kind: "utilization-detector",
        aliases: &[],
        stability: Stability::Beta,
        summary: "Saturation from queue depth and KV cache usage.",
        params: Params::SPEC,
        sample: "- type: utilization-detector\n  parameters:\n    queueDepthThreshold: 5\n    kvCacheUtilThreshold: 0.8\n",
    },
    build,
};

fn build(b: &mut Build<'_>) -> Option<Built> {
    let params: Params = b.params();
    b.need(Need::Metric(Metric::Waiting));
    b.need(Need::Metric(Metric::KvUsage));
    let plugin = Arc::new(Utilization {
        queue: f64::from(params.queue_depth_threshold),
        usage: params.kv_cache_util_threshold,
        stale_after: params.metrics_staleness_threshold,
        room: 1.0 + params.headroom,
    });
    Some(Built { filter: Some(Arc::clone(&plugin) as _), saturation: Some(plugin), ..Built::default() })
}

struct Utilization {
    queue: f64,
    usage: f64,
    stale_after: Duration,
    /// The filter's limit as a multiple of the thresholds.
    room: f64,
}

impl Utilization {
    fn oldest(&self, now: Timestamp) -> Timestamp {
        let age = u64::try_from(self.stale_after.as_micros()).unwrap_or(u64::MAX);
        Timestamp(now.0.saturating_sub(age))
    }

    /// Load over threshold of the scarcer resource; `None` without a fresh sample of either.
    fn load(&self, loads: &LoadTable, oldest: Timestamp, slot: Slot) -> Option<f64> {
        let ratio = |metric: fn(&LoadTable, Slot) -> Option<f32>, threshold: f64| {
            let reading = f64::from(loads.since(oldest, metric, slot)?).max(0.0);
            Some(if threshold > 0.0 { reading / threshold } else { 1.0 })
        };
        match (ratio(LoadTable::waiting, self.queue), ratio(LoadTable::kv_usage, self.usage)) {
            (Some(queue), Some(usage)) => Some(queue.max(usage)),
            (one, other) => one.or(other),
        }
    }
}

impl SaturationDetector for Utilization {
    fn saturation(&self, snapshot: &Snapshot, endpoints: &[Slot], now: Timestamp) -> Option<f64> {
        let (oldest, mut sum, mut known) = (self.oldest(now), 0.0, false);
        for slot in endpoints {
            let load = self.load(&snapshot.loads, oldest, *slot);
            known |= load.is_some();
            sum += load.unwrap_or(1.0);
        }
        known.then(|| sum / endpoints.len() as f64)
    }
}

impl Filter for Utilization {
    fn filter(&self, cx: &Cycle<'_>, candidates: &mut Vec<Slot>) {
        let oldest = self.oldest(cx.now);
        let keeps = |slot: &Slot| self.load(&cx.snapshot.loads, oldest, *slot).is_some_and(|load| load < self.room);
        if candidates.iter().any(keeps) {
            candidates.retain(keeps);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::LoadSample;
    use crate::domain::node::Value;
    use crate::scheduling::fixtures::{NOW, Scene, build, build_in, errors, fresh, pool, sampled, stale};
    use crate::scheduling::plugin::Registry;
    use proptest::prelude::*;

    fn saturation(scene: &Scene, built: &Built) -> Option<f64> {
        built.saturation.as_ref().unwrap().saturation(&scene.snapshot, &scene.slots(), NOW)
    }

    #[test]
    fn the_scarcer_resource_counts_and_endpoints_are_averaged() {
        let plain = build(&ROW, vec![]);
        let of = |samples: &[Option<LoadSample>]| saturation(&sampled(samples), &plain).unwrap();
        assert_eq!(of(&[fresh(5.0, 99.0, 0.0)]), 1.0);
        assert!((of(&[fresh(1.0, 0.0, 0.4)]) - 0.5).abs() < 1e-6, "KV cache 0.4 of 0.8");
        assert!((of(&[fresh(4.0, 0.0, 0.4)]) - 0.8).abs() < 1e-6, "queue 4 of 5");
        assert_eq!(of(&[fresh(10.0, 0.0, 0.0), fresh(0.0, 0.0, 0.0)]), 1.0, "not cut at 1");
        assert_eq!(of(&[fresh(-7.0, 0.0, 0.0), fresh(0.0, 0.0, 0.0)]), 0.0, "a queue below 0 is empty");
        let none = build(&ROW, vec![("kvCacheUtilThreshold", Value::Float(0.0))]);
        assert_eq!(saturation(&sampled(&[fresh(0.0, 0.0, 0.0)]), &none), Some(1.0), "no division by 0");
    }

    #[test]
    fn the_unknown_are_full_unless_nobody_is_known() {
        let plain = build(&ROW, vec![]);
        let idle = || fresh(0.0, 0.0, 0.0);
        let nothing = || idle().map(|s| LoadSample { waiting: None, kv_usage: None, ..s });
        assert_eq!(saturation(&sampled(&[idle(), None, stale(0.0, 0.0, 0.0), nothing()]), &plain), Some(0.75));
        for unknown in [&[None, None][..], &[stale(9.0, 9.0, 1.0)], &[nothing(), None]] {
            assert_eq!(saturation(&sampled(unknown), &plain), None, "a broken scrape is not a full pool");
        }
        let no_usage = idle().map(|s| LoadSample { kv_usage: None, waiting: Some(5.0), ..s });
        assert_eq!(saturation(&sampled(&[no_usage]), &plain), Some(1.0), "one value is enough");
    }

    #[test]
    fn the_age_that_counts_is_its_own() {
        let aged = |ms: u64| {
            let taken_at = Timestamp::from_millis(100_000 - ms);
            sampled(&[fresh(5.0, 0.0, 0.0).map(|s| LoadSample { taken_at, ..s })])
        };
        assert_eq!(saturation(&aged(200), &build(&ROW, vec![])), Some(1.0));
        assert_eq!(saturation(&aged(201), &build(&ROW, vec![])), None);
        let patient = build(&ROW, vec![("metricsStalenessThreshold", Value::String("10s".into()))]);
        assert_eq!(saturation(&aged(10_000), &patient), Some(1.0), "whatever the pool takes for stale");
    }

    #[test]
    fn as_a_filter_it_drops_the_full_and_never_all() {
        let scene = sampled(&[fresh(4.0, 0.0, 0.0), fresh(5.0, 0.0, 0.0), fresh(0.0, 0.0, 0.9), None]);
        assert_eq!(scene.kept(&build(&ROW, vec![])), [0]);
        assert_eq!(scene.kept(&build(&ROW, vec![("headroom", Value::Float(0.2))])), [0, 1, 2]);
        let full = sampled(&[fresh(5.0, 0.0, 0.0), None]);
        assert_eq!(full.kept(&build(&ROW, vec![])), [0, 1]);
        assert!(pool(0).kept(&build(&ROW, vec![])).is_empty());
    }

    #[test]
    fn it_asks_for_what_it_reads_and_refuses_nonsense() {
        let mut registry = Registry::default();
        build_in(&mut registry, &ROW, vec![]);
        assert!(registry.needs(&Need::Metric(Metric::Waiting)) && registry.needs(&Need::Metric(Metric::KvUsage)));
        registry.withdraw_needs(ROW.about.kind);
        assert!(registry.needs.is_empty());
        assert!(errors(&ROW, vec![("queueDepthThreshold", Value::Integer(0))])[0].contains("at least 1"));
        assert!(errors(&ROW, vec![("kvCacheUtilThreshold", Value::Float(80.0))])[0].contains("between 0 and 1"));
    }

    proptest! {
        #[test]
        fn it_is_the_mean_of_the_formula(
            facts in prop::collection::vec((0u8..12, 0u8..=10, any::<bool>()), 0..20),
        ) {
            let samples: Vec<_> = facts
                .iter()
                .map(|(queue, usage, known)| {
                    if *known { fresh(f32::from(*queue), 0.0, f32::from(*usage) / 10.0) } else { None }
                })
                .collect();
            let found = saturation(&sampled(&samples), &build(&ROW, vec![]));
            let load = |(queue, usage, known): &(u8, u8, bool)| {
                if *known { (f64::from(*queue) / 5.0).max(f64::from(*usage) / 8.0) } else { 1.0 }
            };
            let mean = facts.iter().map(load).sum::<f64>() / facts.len() as f64;
            match found {
                Some(found) => prop_assert!((found - mean).abs() < 1e-6, "{} {}", found, mean),
                None => prop_assert!(facts.iter().all(|f| !f.2)),
            }
        }
    }
}
