//! `destination-endpoint-served-verifier`: tells the client which endpoint the data plane says it used. **For
//! tests only.**
//!
//! Rule: on the response headers of every request that was routed, `x-conformance-test-served-endpoint` is the
//! endpoint that the data plane reports in `envoy.lb`; without that metadata it is
//! `fail: missing envoy lb metadata`, and with it but without an endpoint in it
//! `fail: missing destination endpoint served metadata`.
//!
//! `echoDestination` asks the echo servers of the conformance suite, by a request header that they know, to
//! return the *picked* endpoint in that header themselves. It makes data planes without a response phase
//! pass, and hides that they report nothing; hence a switch of its own.
//!
//! Made for the conformance suite of the Gateway API inference extension. It shows pod addresses to clients, so it
//! has no place in production. `--conformance-test-mode` declares it, `--conformance-echo-destination` with
//! the switch on.
//!
//! ```yaml
//! - type: destination-endpoint-served-verifier
//! ```

use std::sync::Arc;

use crate::domain::Served;
use crate::scheduling::params::Params as _;
use crate::scheduling::plugin::{About, Build, Built, Commit, ResponseStart, Routed, Row, Stability, Watch};

/// The response header.
pub const HEADER: &str = "x-conformance-test-served-endpoint";

/// The request header by which an echo server of the suite is told to set a response header: `name:value`.
pub const ECHO_HEADER: &str = "x-echo-set-header";

crate::params! {
    /// Parameters of `destination-endpoint-served-verifier`.
    pub struct Params {
        /// Ask the echo servers of the suite to return the picked endpoint; hides a missing report.
        echo_destination: bool = false, "echoDestination";
    }
}

/// This plugin in the table.
pub const ROW: Row = Row {
    about: About {
        kind: "destination-endpoint-served-verifier",
        aliases: &[],
        stability: Stability::Beta,
        summary: "Test plugin, not for production: names the endpoint that the data plane used in a response header.",
        params: Params::SPEC,
        sample: "- type: destination-endpoint-served-verifier\n",
    },
    build,
};

fn build(b: &mut Build<'_>) -> Option<Built> {
    let Params { echo_destination } = b.params();
    b.registry.test_switches.echo_destination |= echo_destination;
    Some(Built { commit: Some(Arc::new(Verifier)), ..Built::default() })
}

struct Verifier;

impl Commit for Verifier {
    fn commit(&self, _: &Routed<'_>) -> Option<Box<dyn Watch>> {
        Some(Box::new(Verifier))
    }
}

impl Watch for Verifier {
    fn response_headers(&mut self, start: &ResponseStart<'_>, add: &mut Vec<(&'static str, String)>) {
        let value = match start.served {
            Served::By(endpoint) => endpoint,
            Served::Unreported => "fail: missing envoy lb metadata",
            Served::Unnamed => "fail: missing destination endpoint served metadata",
        };
        // Two instances say the same once.
        if add.iter().all(|(name, _)| *name != HEADER) {
            add.push((HEADER, value.to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Headers;
    use crate::domain::node::Value;
    use crate::scheduling::fixtures::{NOW, build, build_in, decision, pool};
    use crate::scheduling::plugin::Registry;

    #[test]
    fn the_report_of_the_data_plane_is_passed_on_or_its_lack_named() {
        let scene = pool(1);
        let decision = decision(&scene, &[("default", &[0])]);
        let routed = Routed { request: &scene.request, decision: &decision, signals: &scene.signals, now: NOW };
        let built = [build(&ROW, vec![]), build(&ROW, vec![])];
        for (served, expected) in [
            (Served::By("10.0.0.1:3000".into()), "10.0.0.1:3000"),
            (Served::Unreported, "fail: missing envoy lb metadata"),
            (Served::Unnamed, "fail: missing destination endpoint served metadata"),
        ] {
            let mut add = Vec::new();
            for built in &built {
                let mut watch = built.commit.as_ref().unwrap().commit(&routed).unwrap();
                let start = ResponseStart { status: 200, headers: &Headers::default(), served: &served, now: NOW };
                watch.response_headers(&start, &mut add);
            }
            assert_eq!(add, [(HEADER, expected.to_owned())]);
        }
    }

    #[test]
    fn the_echo_is_a_switch_of_its_own() {
        let switched = |on: bool| {
            let mut registry = Registry::default();
            build_in(&mut registry, &ROW, vec![("echoDestination", Value::Bool(on))]);
            registry.test_switches.echo_destination
        };
        assert_eq!((switched(false), switched(true)), (false, true));
    }
}
