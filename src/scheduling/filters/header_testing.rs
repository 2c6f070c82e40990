//! `header-based-testing-filter`: a request header names the endpoints that may be picked. **For tests only.**
//!
//! Rule: `test-epp-endpoint-selection` is a comma list of `ip` (all ports of it) and `ip:port`, IPv6 with or
//! without brackets, blanks allowed. A candidate stays if an entry names it; entries that name nobody in this
//! pool, or cannot be read, are ignored. It is strict: if no candidate is named the request is refused
//! (429). Without the header, or with a blank one, all candidates stay, or none with `requireHeader`.
//!
//! The header beats the subset hint of the data plane: where the request has it, the hint is not read (the
//! director does that, told by [`TestSwitches`](crate::scheduling::plugin::TestSwitches)). Requests without a body
//! are filtered like all others.
//!
//! Made for the conformance suite of the Gateway API inference extension, which sends traffic to known pods.
//! Whoever can send requests chooses the endpoint, so it has no place in production.
//! `--conformance-test-mode` puts it into every profile.
//!
//! The picker we replace has a stricter filter of this name: without the header nobody is left
//! (`requireHeader: true` here), and it takes one endpoint per IP, in the order of the header.
//!
//! ```yaml
//! - type: header-based-testing-filter
//! ```

use crate::domain::{EndpointSet, Slot, SubsetEntry};
use crate::scheduling::params::Params as _;
use crate::scheduling::plugin::{About, Build, Built, Cycle, Filter, Row, Stability};

/// The header that names endpoints.
pub const HEADER: &str = "test-epp-endpoint-selection";

crate::params! {
    /// Parameters of `header-based-testing-filter`.
    pub struct Params {
        /// Refuse requests without the header instead of leaving them all endpoints.
        require_header: bool = false, "requireHeader";
    }
}

/// This plugin in the table.
pub const ROW: Row = Row {
    about: About {
        kind: "header-based-testing-filter",
        aliases: &[],
        stability: Stability::Beta,
        summary: "Test plugin, not for production: keeps the endpoints that the header test-epp-endpoint-selection names.",
        params: Params::SPEC,
        sample: "- type: header-based-testing-filter\n",
    },
    build,
};

fn build(b: &mut Build<'_>) -> Option<Built> {
    let Params { require_header } = b.params();
    b.registry.test_switches.beats_subset = Some(HEADER);
    Some(Built::filter(ByHeader { require_header }))
}

struct ByHeader {
    require_header: bool,
}

impl Filter for ByHeader {
    fn filter(&self, cx: &Cycle<'_>, candidates: &mut Vec<Slot>) {
        let Some(list) = cx.request.headers.get(HEADER).filter(|list| !list.trim().is_empty()) else {
            if self.require_header {
                candidates.clear();
            }
            return;
        };
        let mut named = EndpointSet::new();
        for entry in list.split(',').filter_map(SubsetEntry::parse) {
            cx.snapshot.topology.add_named(&entry, &mut named);
        }
        candidates.retain(|slot| named.contains(*slot));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::node::Value;
    use crate::domain::{Endpoint, EndpointSpec, Headers, PoolIdentity, Topology};
    use crate::scheduling::fixtures::{Scene, build, build_in, pool};
    use crate::scheduling::plugin::Registry;
    use std::sync::Arc;

    /// Two ports of one IPv4 pod, another one, and an IPv6 pod.
    fn scene() -> Scene {
        let addresses = ["10.0.0.1:3000", "10.0.0.1:3002", "10.0.0.2:3000", "[fd00::1]:3000"];
        let endpoint = |(slot, address): (usize, &&str)| {
            let spec = EndpointSpec {
                name: format!("pod-{slot}"),
                namespace: "default".into(),
                address: address.parse().unwrap(),
                rank: 0,
                incarnation: 0,
                labels: Default::default(),
            };
            Some(Arc::new(Endpoint::new(Slot(slot as u32), 1, spec)))
        };
        let slots = addresses.iter().enumerate().map(endpoint).collect();
        let mut scene = pool(0);
        scene.snapshot.topology = Arc::new(Topology::new(1, PoolIdentity::default(), slots));
        scene
    }

    fn kept(built: &Built, header: Option<&'static str>) -> Vec<u32> {
        let mut scene = scene();
        if let Some(value) = header {
            scene.request.headers = Headers::from([(HEADER, value)]);
        }
        scene.kept(built)
    }

    #[test]
    fn only_the_named_stay() {
        let built = build(&ROW, vec![]);
        for (header, expected) in [
            ("10.0.0.2", &[2][..]),
            ("10.0.0.1", &[0, 1]),
            ("10.0.0.1:3002", &[1]),
            (" 10.0.0.2:3000 ,10.0.0.1:3000, 10.0.0.2", &[0, 2]),
            ("fd00::1", &[3]),
            ("[fd00::1]", &[3]),
            ("[fd00::1]:3000,::ffff:10.0.0.2", &[2, 3]),
            ("[fd00::1]:3001", &[]),
            ("192.168.1.1,10.0.0.2", &[2]),
            ("192.168.1.1", &[]),
            ("nonsense", &[]),
            (",", &[]),
        ] {
            assert_eq!(kept(&built, Some(header)), expected, "{header}");
        }
    }

    #[test]
    fn without_the_header_all_stay_unless_it_is_required() {
        let strict = build(&ROW, vec![("requireHeader", Value::Bool(true))]);
        for header in [None, Some(""), Some("  ")] {
            assert_eq!(kept(&build(&ROW, vec![]), header), [0, 1, 2, 3]);
            assert!(kept(&strict, header).is_empty());
        }
        assert_eq!(kept(&strict, Some("10.0.0.2")), [2]);
    }

    #[test]
    fn the_subset_hint_is_void_only_where_it_is_configured() {
        let mut registry = Registry::default();
        assert_eq!(registry.test_switches.beats_subset, None);
        build_in(&mut registry, &ROW, vec![]);
        assert_eq!(registry.test_switches.beats_subset, Some(HEADER));
    }
}
