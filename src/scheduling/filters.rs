//! The table of filters, one file each.
//!
//! A filter that depends on an endpoint's labels or roles alone does not look at label maps per
//! request: [`EndpointFilter`] applies its rule to each endpoint once per topology and keeps the
//! resulting set; a request costs one bit test per candidate.

pub mod by_label;
pub mod cel;
pub mod header_testing;
pub mod label_selector;
pub mod prefix_cache_affinity;
pub mod roles;
pub mod session_affinity;
pub mod utilization;

use super::per_topology::PerTopology;
use super::plugin::{Cycle, Filter, Row};
use crate::domain::{Endpoint, EndpointSet, Slot, Topology};

/// Every filter that a configuration can name.
pub const TABLE: &[Row] = &[
    label_selector::ROW,
    by_label::ROW,
    roles::DECODE_ROW,
    roles::PREFILL_ROW,
    roles::ENCODE_ROW,
    utilization::ROW,
    session_affinity::ROW,
    cel::ROW,
    header_testing::ROW,
    prefix_cache_affinity::ROW,
];

/// A filter by a rule that reads nothing but the endpoint.
pub struct EndpointFilter<F> {
    keep: F,
    kept: PerTopology<EndpointSet>,
}

impl<F: Fn(&Endpoint) -> bool + Send + Sync> EndpointFilter<F> {
    /// A filter that keeps the endpoints for which `keep` holds. `keep` must depend on what is fixed
    /// for the endpoint's life (labels, roles, address), as it is asked once per topology.
    pub fn new(keep: F) -> Self {
        Self { keep, kept: PerTopology::default() }
    }
}

impl<F: Fn(&Endpoint) -> bool + Send + Sync> Filter for EndpointFilter<F> {
    fn filter(&self, cx: &Cycle<'_>, candidates: &mut Vec<Slot>) {
        let build = |topology: &Topology| topology.endpoints().filter(|e| (self.keep)(e)).map(|e| e.slot).collect();
        self.kept.with(&cx.snapshot.topology, build, |set: &EndpointSet| {
            candidates.retain(|slot| set.contains(*slot));
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{labelled, pool};
    use super::super::plugin::Built;
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn the_rule_is_asked_once_per_endpoint_and_topology() {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let built = Built::filter(EndpointFilter::new(move |e: &Endpoint| {
            count.fetch_add(1, Ordering::Relaxed);
            e.slot.0.is_multiple_of(2)
        }));
        let scene = pool(5);
        for _ in 0..10 {
            assert_eq!(scene.kept(&built), [0, 2, 4]);
        }
        assert_eq!(asked.load(Ordering::Relaxed), 5);
        assert_eq!(labelled(&[&[], &[]]).kept(&built), [0], "a new topology is looked at afresh");
        assert_eq!(asked.load(Ordering::Relaxed), 7);
    }
}
