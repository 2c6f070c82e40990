//! The table of saturation detectors, one file each, and the stages that they are asked about.
//!
//! A detector says how full endpoints are. Requests of negative priority are refused where the answer is 1
//! or more; no other request asks. Each detector is a filter, too: in a profile it drops the endpoints that
//! are full by themselves, with `headroom` above the threshold.
//!
//! **Stages.** Prefill endpoints that stand idle must not hide that the decode endpoints are full, so
//! prefill and decode are rated apart and the fuller one counts. An endpoint belongs to one stage: to
//! prefill if its role lets it do that and not decode, else to decode; endpoints that only encode belong to
//! neither. In a pool without roles all endpoints are of the decode stage.
//!
//! **Nothing known.** A detector that knows nothing of any endpoint says so, and the request is let
//! through: a scrape that is broken everywhere must not stop a part of the traffic. (In the picker we
//! replace a pool whose metrics are all stale reads as full.)

pub mod concurrency;
pub mod utilization;

use super::plugin::{Row, SaturationDetector};
use crate::domain::{Slot, Snapshot, Timestamp};

/// Every saturation detector that a configuration can name.
pub const TABLE: &[Row] = &[utilization::ROW, concurrency::ROW];

/// How full the stages of a pool are; `None` where a stage has no endpoints or nothing is known of them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Saturation {
    /// Endpoints that prefill for others and do not decode.
    pub prefill: Option<f64>,
    /// Endpoints that decode.
    pub decode: Option<f64>,
}

impl Saturation {
    /// Asks `detector` about each stage of `endpoints`, live slots of `snapshot`.
    pub fn of(detector: &dyn SaturationDetector, snapshot: &Snapshot, endpoints: &[Slot], now: Timestamp) -> Self {
        let roles = |slot: &Slot| snapshot.topology.get(*slot).map(|endpoint| endpoint.roles);
        let helps = |slot: &Slot| roles(slot).is_some_and(|r| !r.decodes() && (r.prefills() || r.encodes()));
        let ask = |stage: &[Slot]| if stage.is_empty() { None } else { detector.saturation(snapshot, stage, now) };
        if !endpoints.iter().any(helps) {
            return Self { prefill: None, decode: ask(endpoints) };
        }
        let (helpers, decode): (Vec<Slot>, Vec<Slot>) = endpoints.iter().partition(|slot| helps(slot));
        let prefill: Vec<Slot> = helpers.into_iter().filter(|s| roles(s).is_some_and(|r| r.prefills())).collect();
        Self { prefill: ask(&prefill), decode: ask(&decode) }
    }

    /// The fuller stage.
    pub fn effective(&self) -> Option<f64> {
        match (self.prefill, self.decode) {
            (Some(prefill), Some(decode)) => Some(prefill.max(decode)),
            (one, other) => one.or(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::endpoint::ROLE_LABEL;
    use crate::scheduling::fixtures::{NOW, labelled, pool};

    /// Rates an endpoint by its slot and takes the mean.
    struct BySlot(Vec<Option<f64>>);

    impl SaturationDetector for BySlot {
        fn saturation(&self, _: &Snapshot, endpoints: &[Slot], _: Timestamp) -> Option<f64> {
            let known: Vec<f64> = endpoints.iter().filter_map(|s| self.0[s.index()]).collect();
            (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
        }
    }

    #[test]
    fn the_fuller_stage_counts() {
        let role = |r| [(ROLE_LABEL, r)];
        let (p, d, both, e, odd) =
            (role("prefill"), role("decode"), role("prefill-decode"), role("encode"), role("worker"));
        let scene = labelled(&[&p, &p, &d, &both, &e, &odd, &[]]);
        let of = |rates: [f64; 7]| {
            let detector = BySlot(rates.into_iter().map(Some).collect());
            let all = Saturation::of(&detector, &scene.snapshot, &scene.slots(), NOW);
            (all.prefill, all.decode, all.effective())
        };
        assert_eq!(of([0.0, 0.0, 2.0, 1.0, 9.0, 1.0, 0.0]), (Some(0.0), Some(1.0), Some(1.0)));
        assert_eq!(of([1.0, 2.0, 0.0, 0.0, 9.0, 0.0, 0.0]), (Some(1.5), Some(0.0), Some(1.5)));
    }

    #[test]
    fn without_roles_there_is_one_stage_and_without_endpoints_none() {
        let scene = pool(2);
        let of = |rates: Vec<Option<f64>>, endpoints: &[Slot]| {
            Saturation::of(&BySlot(rates), &scene.snapshot, endpoints, NOW)
        };
        let half = of(vec![Some(0.0), Some(1.0)], &scene.slots());
        assert_eq!((half, half.effective()), (Saturation { prefill: None, decode: Some(0.5) }, Some(0.5)));
        assert_eq!(of(vec![None, None], &scene.slots()).effective(), None);
        assert_eq!(of(vec![Some(1.0), Some(1.0)], &[]).effective(), None, "an empty pool is not a full one");
        assert_eq!(of(vec![Some(1.0), Some(0.0)], &[Slot(0)]).effective(), Some(1.0), "of those that are allowed");
    }
}
