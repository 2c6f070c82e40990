//! `session-affinity-filter`: a session stays at the endpoint that it was last sent to.
//!
//! Rule: the session's endpoint alone is kept if it is a candidate. Without a session, with one that
//! is not known, and when its endpoint is no candidate (any more), all are kept and the filters
//! and scorers that follow decide; the session then belongs to the endpoint that they choose.
//!
//! Strategies, parameters, bounds, inputs, and what is learnt and when:
//! [`session_affinity`](crate::scheduling::session_affinity).
//!
//! When it misleads: it is a hard rule. However loaded the endpoint is, its sessions stay; put a
//! `utilization-filter` before it to let them leave an endpoint that is over its limits, or use the
//! scorer for a wish that load can outweigh. Each instance remembers its own sessions, so a filter
//! and a scorer in one profile pull apart after one of them overruled the other; use one of them.
//!
//! ```yaml
//! - type: session-affinity-filter
//!   parameters:
//!     strategy: session_id
//!     sources:
//!     - header: x-session-id
//!     evictionTtlSeconds: 300
//! ```

use std::sync::Arc;

use crate::domain::Slot;
use crate::scheduling::params::Params as _;
use crate::scheduling::plugin::{About, Build, Built, Cycle, Filter, Row, Stability};
use crate::scheduling::session_affinity::{Params, SessionAffinity};

/// This plugin in the table.
pub const ROW: Row = Row {
    about: About {
        kind: "session-affinity-filter",
        aliases: &[],
        stability: Stability::Alpha,
        summary: "Keeps only the endpoint that the session was last sent to, if it is there.",
        params: Params::SPEC,
        sample: "- type: session-affinity-filter\n  parameters:\n    strategy: session_id\n    sources:\n    - header: x-session-id\n    evictionTtlSeconds: 300\n",
    },
    build,
};

fn build(b: &mut Build<'_>) -> Option<Built> {
    let plugin = Arc::new(SessionAffinity::build(b)?);
    Some(Built { filter: Some(Arc::clone(&plugin) as _), commit: Some(plugin), ..Built::default() })
}

impl Filter for SessionAffinity {
    fn filter(&self, cx: &Cycle<'_>, candidates: &mut Vec<Slot>) {
        if let Some(slot) = self.wanted(cx)
            && candidates.binary_search(&slot).is_ok()
        {
            candidates.clear();
            candidates.push(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Headers, Served};
    use crate::scheduling::fixtures::{NOW, Scene, build, build_in, decision, errors, pool, text};
    use crate::scheduling::plugin::{Registry, ResponseStart, Routed, SignalKind, Watch};
    use crate::scheduling::scorers;
    use crate::scheduling::session_affinity::TOKEN_HEADER;

    const TOKEN_OF_POD_1: &str = "ZGVmYXVsdC9wb2QtMS1yYW5rLTA=";

    fn with_header(n: usize, name: &'static str, value: &'static str) -> Scene {
        let mut scene = pool(n);
        scene.request.headers = Headers::from([(name, value)]);
        scene
    }

    fn commit(built: &Built, scene: &Scene, slot: u32) -> Option<Box<dyn Watch>> {
        let decision = decision(scene, &[("default", &[slot])]);
        let routed = Routed { request: &scene.request, decision: &decision, signals: &scene.signals, now: NOW };
        built.commit.as_ref().unwrap().commit(&routed)
    }

    #[test]
    fn keeps_the_endpoint_of_the_token_alone() {
        let built = build(&ROW, vec![]);
        assert_eq!(with_header(3, TOKEN_HEADER, TOKEN_OF_POD_1).kept(&built), [1]);
        assert_eq!(pool(3).kept(&built), [0, 1, 2], "no session");
        assert_eq!(with_header(1, TOKEN_HEADER, TOKEN_OF_POD_1).kept(&built), [0], "its endpoint left");
        for foreign in ["", "%%%", "AAAA"] {
            assert_eq!(with_header(2, TOKEN_HEADER, foreign).kept(&built), [0, 1], "{foreign}");
        }
        assert!(built.scorer.is_none());
    }

    #[test]
    fn an_endpoint_that_was_filtered_out_before_is_not_brought_back() {
        let (built, scene) = (build(&ROW, vec![]), with_header(3, TOKEN_HEADER, TOKEN_OF_POD_1));
        let mut left = vec![Slot(0), Slot(2)];
        built.filter.as_ref().unwrap().filter(&scene.cycle(), &mut left);
        assert_eq!(left, [Slot(0), Slot(2)]);
        left.clear();
        built.filter.as_ref().unwrap().filter(&scene.cycle(), &mut left);
        assert!(left.is_empty());
    }

    #[test]
    fn a_session_id_is_bound_to_where_it_was_sent() {
        let built = build(&ROW, vec![("strategy", text("session_id"))]);
        let scene = with_header(3, "x-session-id", "abc");
        assert_eq!(scene.kept(&built), [0, 1, 2]);
        assert!(commit(&built, &scene, 2).is_none());
        assert_eq!(scene.kept(&built), [2]);
        assert_eq!(with_header(2, "x-session-id", "abc").kept(&built), [0, 1], "that endpoint is not there");
        commit(&built, &scene, 0);
        assert_eq!(scene.kept(&built), [0], "and then it moves");
    }

    #[test]
    fn the_token_is_written_once_although_a_scorer_writes_it_too() {
        let scene = pool(3);
        let mut add = Vec::new();
        for built in [build(&ROW, vec![]), build(&scorers::session_affinity::ROW, vec![])] {
            let start =
                ResponseStart { status: 200, headers: &Headers::default(), served: &Served::Unreported, now: NOW };
            commit(&built, &scene, 1).unwrap().response_headers(&start, &mut add);
        }
        assert_eq!(add, [(TOKEN_HEADER, TOKEN_OF_POD_1.to_owned())]);
    }

    #[test]
    fn switches_nothing_on_and_checks_like_the_scorer() {
        let mut registry = Registry::default();
        build_in(&mut registry, &ROW, vec![("strategy", text("session_id"))]);
        assert!(registry.needs.is_empty() && registry.take_missing().is_empty());
        assert_eq!(registry.producers(SignalKind::Session).count(), 0);
        assert!(errors(&ROW, vec![("strategy", text("session-id"))])[0].contains("did you mean `session_id`"));
    }
}
