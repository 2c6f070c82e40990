//! `utilization-filter`: endpoints above a limit get nothing more.
//!
//! Rule: a candidate is dropped if, for any of `conditions`, its value of `metric` is above
//! `maxValue`; a value equal to the limit stays. If that leaves nobody: with `fallbackOnEmpty` all
//! stay, as if there were no filter; without it the request is refused (429).
//!
//! | `metric` | Value |
//! |---|---|
//! | `active-requests` | requests that we have in flight there, as counted here |
//! | `running-requests` | requests that the engine says it runs |
//! | `waiting-queue` | requests that the engine says wait |
//! | `kv-cache-utilization` | share of the KV cache in use, 0 to 1 |
//!
//! Inputs: only what the conditions name. `active-requests` reads `inflight-load-producer`, which is
//! created when none is configured; the others switch on the scraping of their one metric.
//!
//! Missing data, condition by condition, as for the scorers of server metrics (see
//! [`scorers`](crate::scheduling::scorers)): a candidate without a fresh reading is dropped as long
//! as another candidate has one, and passes when nobody has. So a server that is too busy to
//! answer a scrape is not taken for an idle one, and a scrape that is broken everywhere
//! refuses nobody. (In the picker we replace a server that was never scraped reads 0 and passes.)
//!
//! When it misleads: readings are as old as the last scrape, so a burst can pass together and
//! overshoot the limit; `active-requests` is exact but sees this process only. The filter looks at what
//! is there, not at what the request will add. Whoever sends requests on to a pool that is full
//! should queue them; this filter alone refuses them.
//!
//! ```yaml
//! - type: utilization-filter
//!   parameters:
//!     conditions:
//!     - metric: kv-cache-utilization
//!       maxValue: 0.95
//!     - metric: waiting-queue
//!       maxValue: 20
//!     fallbackOnEmpty: true
//! ```

use crate::domain::{LoadTable, Slot, Timestamp};
use crate::scheduling::params::{IfGiven, Params as _};
use crate::scheduling::plugin::{About, Build, Built, Cycle, Filter, Metric, Need, Row, SignalKind, Stability};

crate::choice! {
    /// What a condition compares.
    pub enum Reading {
        /// Requests in flight, as counted here.
        ActiveRequests = "active-requests",
        /// Requests that the engine runs.
        RunningRequests = "running-requests",
        /// Requests that wait in the engine.
        WaitingQueue = "waiting-queue",
        /// Share of the KV cache in use.
        KvCacheUtilization = "kv-cache-utilization",
    }
}

const READINGS: usize = 4;

crate::params! {
    /// One limit; both fields are needed.
    pub struct Condition {
        /// What is compared.
        metric: Option<Reading> = None, "metric";
        /// The highest value that is let through.
        max_value: Option<f32> = None, "maxValue", IfGiven(0.0..);
    }
}

crate::params! {
    /// Parameters of `utilization-filter`.
    pub struct Params {
        /// The limits, at least one; a candidate must keep all of them.
        conditions: Vec<Condition> = Vec::new(), "conditions";
        /// Keep all candidates instead of none when none keeps the limits.
        fallback_on_empty: bool = false, "fallbackOnEmpty";
        /// Name of the inflight-load-producer that active-requests reads; the only one by default.
        in_flight_load_producer_name: Option<String> = None, "inFlightLoadProducerName";
    }
}

/// This plugin in the table.
pub const ROW: Row = Row {
    about: About {
        kind: "utilization-filter",
        aliases: &[],
        stability: Stability::Alpha,
        summary: "Drops endpoints that are above a limit of load.",
        params: Params::SPEC,
        sample: "- type: utilization-filter\n  parameters:\n    conditions:\n    - metric: kv-cache-utilization\n      maxValue: 0.95\n    - metric: waiting-queue\n      maxValue: 20\n    fallbackOnEmpty: true\n",
    },
    build,
};

fn build(b: &mut Build<'_>) -> Option<Built> {
    let params: Params = b.params();
    let mut limits = [None; READINGS];
    let mut sound = true;
    for (i, Condition { metric, max_value }) in params.conditions.into_iter().enumerate() {
        let (Some(reading), Some(most)) = (metric, max_value) else {
            b.error("conditions", format!("[{i}] needs `metric` and `maxValue`"), "write both");
            sound = false;
            continue;
        };
        if reading == Reading::KvCacheUtilization && most > 1.0 {
            let message = format!("[{i}]: kv-cache-utilization is a share from 0 to 1 and never above {most}");
            b.warn("conditions", message, "write a share such as 0.8");
        }
        // Of two limits on one reading the lower one is the rule.
        let limit = &mut limits[reading as usize];
        *limit = Some(limit.map_or(most, |other: f32| other.min(most)));
    }
    if sound && limits.iter().all(Option::is_none) {
        // A wrong list was reported where it was decoded; this is about none at all.
        b.error("conditions", "at least one condition is needed", "write `- metric: waiting-queue` and `maxValue: 20`");
        sound = false;
    }
    for (reading, limit) in ALL.into_iter().zip(limits) {
        if limit.is_some() {
            match reading {
                Reading::ActiveRequests => {}
                Reading::RunningRequests => b.need(Need::Metric(Metric::Running)),
                Reading::WaitingQueue => b.need(Need::Metric(Metric::Waiting)),
                Reading::KvCacheUtilization => b.need(Need::Metric(Metric::KvUsage)),
            }
        }
    }
    let producer = params.in_flight_load_producer_name.as_deref();
    if limits[Reading::ActiveRequests as usize].is_some() || producer.is_some() {
        // There is one in-flight signal, so the ordinal says nothing; a wrong name is still an error.
        b.consumes(SignalKind::InFlight, "inFlightLoadProducerName", producer);
    }
    sound.then(|| Built::filter(Utilization { limits, fallback: params.fallback_on_empty }))
}

const ALL: [Reading; READINGS] =
    [Reading::ActiveRequests, Reading::RunningRequests, Reading::WaitingQueue, Reading::KvCacheUtilization];

struct Utilization {
    /// The highest value let through, by reading.
    limits: [Option<f32>; READINGS],
    fallback: bool,
}

/// What one decision can read.
struct View<'a> {
    cx: &'a Cycle<'a>,
    oldest: Timestamp,
}

impl View<'_> {
    fn read(&self, reading: Reading, slot: Slot) -> Option<f32> {
        let metric = match reading {
            Reading::ActiveRequests => {
                return self.cx.signals.in_flight.as_ref().map(|view| view.requests(slot) as f32);
            }
            Reading::RunningRequests => LoadTable::running,
            Reading::WaitingQueue => LoadTable::waiting,
            Reading::KvCacheUtilization => LoadTable::kv_usage,
        };
        self.cx.snapshot.loads.since(self.oldest, metric, slot)
    }
}

impl Filter for Utilization {
    fn filter(&self, cx: &Cycle<'_>, candidates: &mut Vec<Slot>) {
        let view = View { cx, oldest: cx.snapshot.loads.oldest_fresh(cx.now) };
        // A limit on what nobody reports says nothing.
        let limits = ALL.map(|reading| {
            let most = self.limits[reading as usize]?;
            candidates.iter().any(|slot| view.read(reading, *slot).is_some()).then_some((reading, most))
        });
        let keeps = |slot: &Slot| {
            limits.iter().flatten().all(|(reading, most)| view.read(*reading, *slot).is_some_and(|v| v <= *most))
        };
        if self.fallback && !candidates.iter().any(keeps) {
            return;
        }
        candidates.retain(keeps);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::node::{Node, Value};
    use crate::domain::{InFlightView, LoadSample};
    use crate::scheduling::fixtures::{build, build_in, errors, fresh, map, node, pool, sampled, stale, text};
    use crate::scheduling::plugin::Registry;
    use proptest::prelude::*;

    fn condition(metric: &str, most: f64) -> Node {
        node(map(vec![("metric", text(metric)), ("maxValue", Value::Float(most))]))
    }

    fn parameters(limits: &[(&str, f64)], fallback: bool) -> Vec<(&'static str, Value)> {
        let conditions = limits.iter().map(|(metric, most)| condition(metric, *most)).collect();
        vec![("conditions", Value::Sequence(conditions)), ("fallbackOnEmpty", Value::Bool(fallback))]
    }

    fn filter(limits: &[(&str, f64)], fallback: bool) -> Built {
        build(&ROW, parameters(limits, fallback))
    }

    #[test]
    fn drops_what_is_above_any_limit() {
        let scene = sampled(&[fresh(5.0, 9.0, 0.8), fresh(6.0, 1.0, 0.1), fresh(0.0, 0.0, 0.81), fresh(0.0, 1.0, 0.0)]);
        assert_eq!(scene.kept(&filter(&[("waiting-queue", 5.0)], false)), [0, 2, 3]);
        assert_eq!(scene.kept(&filter(&[("running-requests", 0.0)], false)), [2]);
        assert_eq!(scene.kept(&filter(&[("kv-cache-utilization", 0.8)], false)), [0, 1, 3], "equal is not above");
        assert_eq!(scene.kept(&filter(&[("waiting-queue", 5.0), ("kv-cache-utilization", 0.5)], false)), [3]);
        assert_eq!(scene.kept(&filter(&[("waiting-queue", 9.0), ("waiting-queue", 5.0)], false)), [0, 2, 3]);
    }

    #[test]
    fn active_requests_are_those_counted_here() {
        let mut scene = pool(3);
        let built = filter(&[("active-requests", 2.0)], false);
        assert_eq!(scene.kept(&built), [0, 1, 2], "no signal, no limit");
        scene.signals.in_flight = Some(InFlightView { requests: vec![3, 2], tokens: vec![] });
        assert_eq!(scene.kept(&built), [1, 2]);
    }

    #[test]
    fn with_nobody_left_all_stay_or_none() {
        let scene = sampled(&[fresh(9.0, 0.0, 0.0), fresh(7.0, 0.0, 0.0)]);
        assert!(scene.kept(&filter(&[("waiting-queue", 5.0)], false)).is_empty());
        assert_eq!(scene.kept(&filter(&[("waiting-queue", 5.0)], true)), [0, 1]);
        assert_eq!(scene.kept(&filter(&[("waiting-queue", 8.0)], true)), [1]);
        assert!(pool(0).kept(&filter(&[("waiting-queue", 8.0)], true)).is_empty());
    }

    #[test]
    fn the_unknown_are_dropped_unless_nobody_is_known() {
        let built = filter(&[("waiting-queue", 5.0), ("kv-cache-utilization", 0.5)], false);
        let no_usage = |waiting| fresh(waiting, 0.0, 0.0).map(|s| LoadSample { kv_usage: None, ..s });
        assert_eq!(sampled(&[fresh(1.0, 0.0, 0.0), None, stale(0.0, 0.0, 0.0)]).kept(&built), [0]);
        assert_eq!(sampled(&[stale(9.0, 9.0, 0.9), None]).kept(&built), [0, 1], "a broken scrape refuses nobody");
        assert_eq!(sampled(&[no_usage(1.0), no_usage(9.0)]).kept(&built), [0], "each limit for itself");
        assert_eq!(sampled(&[fresh(9.0, 0.0, 0.9), no_usage(1.0)]).kept(&built), [0u32; 0]);
    }

    #[test]
    fn only_what_the_conditions_name_is_switched_on() {
        let switched_on = |limits: &[(&str, f64)]| {
            let mut registry = Registry::default();
            build_in(&mut registry, &ROW, parameters(limits, false));
            let needs: Vec<Need> = registry.needs.keys().cloned().collect();
            (needs, registry.take_missing())
        };
        assert_eq!(switched_on(&[("active-requests", 1.0)]), (vec![], vec![SignalKind::InFlight]));
        assert_eq!(switched_on(&[("waiting-queue", 1.0)]), (vec![Need::Metric(Metric::Waiting)], vec![]));
        let two = switched_on(&[("running-requests", 1.0), ("kv-cache-utilization", 1.0)]).0;
        assert_eq!(two, [Need::Metric(Metric::Running), Need::Metric(Metric::KvUsage)]);
    }

    #[test]
    fn wrong_conditions_are_refused() {
        let wrong = |entries: Vec<Vec<(&str, Value)>>| {
            let list = entries.into_iter().map(|e| node(map(e))).collect();
            errors(&ROW, vec![("conditions", Value::Sequence(list))]).join("\n")
        };
        let (queue, most) = (("metric", text("waiting-queue")), ("maxValue", Value::Integer(3)));
        assert!(wrong(vec![]).contains("at least one condition is needed"));
        assert!(wrong(vec![vec![queue.clone()]]).contains("[0] needs `metric` and `maxValue`"));
        assert!(wrong(vec![vec![queue.clone(), most.clone()], vec![most.clone()]]).contains("[1] needs"));
        assert!(wrong(vec![vec![("metric", text("waiting-que")), most]]).contains("did you mean `waiting-queue`"));
        assert!(wrong(vec![vec![queue, ("maxValue", Value::Integer(-1))]]).contains("must be at least 0"));
        let mut named = parameters(&[("waiting-queue", 1.0)], false);
        named.push(("inFlightLoadProducerName", text("mine")));
        assert!(errors(&ROW, named)[0].contains("no producer is called"));
        let (_, problems) =
            build_in(&mut Registry::default(), &ROW, parameters(&[("kv-cache-utilization", 80.0)], false));
        assert!(problems.errors.is_empty() && problems.warnings[0].message.contains("never above 80"));
    }

    proptest! {
        #[test]
        fn keeps_exactly_those_within_all_limits(
            facts in prop::collection::vec((prop::option::of(0u8..12), prop::option::of(0u8..12), 0u8..12, any::<bool>()), 0..20),
            limits in prop::collection::vec((0usize..3, 0u8..12), 1..5),
            fallback: bool,
        ) {
            let samples: Vec<_> = facts
                .iter()
                .map(|(waiting, running, _, old)| {
                    let sample = if *old { stale(0.0, 0.0, 0.0) } else { fresh(0.0, 0.0, 0.0) };
                    let count = |n: &Option<u8>| n.map(f32::from);
                    sample.map(|s| LoadSample { waiting: count(waiting), running: count(running), ..s })
                })
                .collect();
            let mut scene = sampled(&samples);
            let requests = facts.iter().map(|f| u32::from(f.2)).collect();
            scene.signals.in_flight = Some(InFlightView { requests, tokens: vec![] });
            const NAMES: [&str; 3] = ["waiting-queue", "running-requests", "active-requests"];
            let written: Vec<_> = limits.iter().map(|(i, most)| (NAMES[*i], f64::from(*most))).collect();
            let read = |i: usize, f: &(Option<u8>, Option<u8>, u8, bool)| match i {
                0 => f.0.filter(|_| !f.3),
                1 => f.1.filter(|_| !f.3),
                _ => Some(f.2),
            };
            let fits = |f: &(Option<u8>, Option<u8>, u8, bool)| limits.iter().all(|(i, most)| match read(*i, f) {
                Some(value) => value <= *most,
                None => facts.iter().all(|other| read(*i, other).is_none()),
            });
            let mut expected: Vec<u32> = (0..facts.len() as u32).filter(|i| fits(&facts[*i as usize])).collect();
            if expected.is_empty() && fallback {
                expected = (0..facts.len() as u32).collect();
            }
            prop_assert_eq!(scene.kept(&filter(&written, fallback)), expected);
        }
    }
}
