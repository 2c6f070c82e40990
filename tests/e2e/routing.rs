//! Where requests go and which headers travel.

use std::collections::BTreeSet;

use pointsman::domain::Outcome;
use pointsman::sim::envoy::Variant;

use crate::stack::{Entry, Setup, Stack, both, completion, endpoints_yaml, sim_at, sims, until};

const DESTINATION: &str = "x-gateway-destination-endpoint";
const ECHO: (&str, &str) = ("x-sim-echo", "1");

/// what the client says about the destination does not count, and the two ways to tell
/// Envoy agree.: what else travels.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_picker_alone_decides_and_its_headers_stay_inside() {
    let servers = sims(&["one"]).await;
    let stranger = sims(&["stranger"]).await.remove(0);
    let spoofed = stranger.address.to_string();
    for setup in both(&servers) {
        let variant = setup.bootstrap.variant;
        let stack = Stack::start(setup).await;
        let headers = [
            ECHO,
            (DESTINATION, spoofed.as_str()),
            ("x-gateway-destination-endpoint-served", spoofed.as_str()),
            ("x-llm-d-inference-objective", "premium"),
            ("x-gateway-inference-fairness-id", "tenant"),
            ("x-llm-d-slo-ttft-ms", "100"),
            ("x-custom", "kept"),
            ("x-request-id", "id-of-the-client"),
        ];
        let answer = stack.post("/v1/completions?x=1", &headers, completion("Hello")).await;
        assert_eq!((answer.status, answer.endpoint()), (200, "one"), "{variant:?} {answer:?}");
        let one = servers[0].address.to_string();
        assert_eq!(answer.echoed(DESTINATION), [one.as_str()], "{variant:?}");
        let removed = [
            "x-gateway-destination-endpoint-served",
            "x-llm-d-inference-objective",
            "x-gateway-inference-fairness-id",
            "x-llm-d-slo-ttft-ms",
            "x-test-subset",
        ];
        for name in removed {
            assert_eq!(answer.echoed(name), Vec::<String>::new(), "{variant:?}: {name}");
        }
        assert_eq!(answer.echoed("x-custom"), ["kept"]);
        assert_eq!(answer.echoed("x-request-id"), ["id-of-the-client"], "{variant:?}");
        assert_eq!(answer.json()["path"], "/v1/completions?x=1");
        assert_eq!(stack.decision("id-of-the-client")["destination"], one.as_str());

        // Envoy makes no id of its own for requests from inside; whoever made it, the server sees one.
        let answer = stack.post("/v1/completions", &[ECHO], completion("Hello")).await;
        let ids = answer.echoed("x-request-id");
        assert!(ids.len() == 1 && uuid::Uuid::parse_str(&ids[0]).is_ok(), "{variant:?} {ids:?}");
        assert_eq!(stack.decision(&ids[0])["destination"], one.as_str());

        // The access log shows the metadata: the same destination, and who served.
        let log = stack.envoy.access_log(2, std::time::Duration::from_secs(20)).await;
        let metadata = log[0].split_once("lb=").unwrap().1;
        let metadata: serde_json::Value = serde_json::from_str(metadata).unwrap();
        assert_eq!(metadata[DESTINATION], one.as_str(), "{variant:?} {log:?}");
        assert_eq!(metadata["x-gateway-destination-endpoint-served"], one.as_str(), "{variant:?} {log:?}");
        assert_eq!(stranger.stats().connections, 0, "{variant:?}");
        stack.finish(&[(Outcome::Completed, 2)]).await;
    }
}

/// the subset hint as a string, for requests with and without a body.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_subset_hint_limits_every_request() {
    let first = sim_at("one-a", "127.0.0.11:0").await;
    let port = first.address.port();
    let servers = vec![
        first,
        sim_at("two", &format!("127.0.0.12:{port}")).await,
        sim_at("three", &format!("127.0.0.13:{port}")).await,
        sim_at("one-b", "127.0.0.11:0").await,
    ];
    let address = |i: usize| servers[i].address.to_string();
    for setup in both(&servers) {
        let variant = setup.bootstrap.variant;
        let stack =
            Stack::start(setup.scheduling("- type: round-robin-picker\n", "- pluginRef: round-robin-picker\n")).await;
        let one = address(2);
        let several = format!("{}, {}", address(1), address(2));
        let mixed = format!("nonsense,10.0.0.1:1,{},[::1]:5,", address(1));
        let cases: [(&str, &[&str]); 5] = [
            (&one, &["three"]),
            (&several, &["two", "three"]),
            ("127.0.0.11", &["one-a", "one-b"]),
            ("127.0.0.11, 127.0.0.12", &["one-a", "one-b", "two"]),
            (&mixed, &["two"]),
        ];
        for (hint, allowed) in cases {
            let mut seen = BTreeSet::new();
            for i in 0..12 {
                let headers = [("x-test-subset", hint)];
                let answer = match i % 3 {
                    0 => stack.get("/v1/models", &headers).await,
                    _ => stack.post("/v1/completions", &headers, completion("Hello")).await,
                };
                assert_eq!(answer.status, 200, "{variant:?} {hint} {answer:?}");
                seen.insert(answer.endpoint().to_owned());
            }
            let allowed: BTreeSet<String> = allowed.iter().map(|s| (*s).to_owned()).collect();
            assert_eq!(seen, allowed, "{variant:?} {hint}");
        }
        for unknown in ["127.0.0.99:8000", "nonsense", "127.0.0.11:1"] {
            let headers = [("x-test-subset", unknown)];
            for answer in [
                stack.post("/v1/completions", &headers, completion("Hello")).await,
                stack.get("/v1/models", &headers).await,
            ] {
                assert_eq!(answer.status, 503, "{variant:?} {unknown}");
                assert_eq!(answer.header("x-llm-d-request-dropped-reason"), "rejected-no-endpoints");
                assert_eq!(
                    answer.text(),
                    "inference error: ServiceUnavailable - failed to find endpoint candidates for serving the request"
                );
            }
        }
        stack.finish(&[(Outcome::Completed, 60), (Outcome::Rejected, 6)]).await;
    }
}

/// Requests without a body pass the same filters and there is a clear answer when none is left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_without_a_body_obey_filters_and_roles() {
    let servers = sims(&["decoder", "prefiller", "plain"]).await;
    let role = |i: usize, role: &str| Entry::from(&servers[i]).label("llm-d.ai/role", role);
    let entries = vec![role(0, "decode"), role(1, "prefill"), Entry::from(&servers[2]).label("tier", "gold")];
    let decoding = (
        "- type: decode-filter\n- type: round-robin-picker\n",
        "- pluginRef: decode-filter\n- pluginRef: round-robin-picker\n",
    );
    let stack = Stack::start(Setup::a(entries.clone()).scheduling(decoding.0, decoding.1)).await;
    let mut seen = BTreeSet::new();
    for i in 0..20 {
        let answer = match i % 2 {
            0 => stack.get("/v1/models", &[]).await,
            _ => stack.post("/v1/completions", &[], completion("Hello")).await,
        };
        seen.insert(answer.endpoint().to_owned());
    }
    assert_eq!(seen, BTreeSet::from(["decoder".to_owned(), "plain".to_owned()]));
    // HEAD has no body either way.
    let head = http::Request::head("/v1/models").body(String::new()).unwrap();
    assert_ne!(stack.send(head).await.endpoint(), "prefiller");
    stack.write_endpoints(&endpoints_yaml(&[role(1, "prefill")]));
    until("the pool has one endpoint", async || stack.pool.snapshot().topology.len() == 1).await;
    for answer in [stack.get("/v1/models", &[]).await, stack.post("/v1/completions", &[], completion("x")).await] {
        assert_eq!(answer.status, 429, "{answer:?}");
        assert!(answer.text().starts_with("inference error: ResourceExhausted - "), "{answer:?}");
    }
    let outcomes = stack.outcomes().await;
    stack.finish(&[(Outcome::Completed, 20), (Outcome::UpstreamError, 1), (Outcome::Rejected, 2)]).await;
    assert_eq!(outcomes.len(), 3);
}

/// an empty pool.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_pool_answers_503_with_the_reason() {
    for variant in [Variant::OriginalDst, Variant::OverrideHost] {
        let none: [Entry; 0] = [];
        let mut setup = Setup::a(none);
        setup.bootstrap.variant = variant;
        setup.bootstrap.endpoints = vec![std::net::SocketAddr::from(([127, 0, 0, 1], 9))];
        let stack = Stack::start(setup).await;
        for answer in [stack.get("/v1/models", &[]).await, stack.post("/v1/completions", &[], completion("x")).await] {
            assert_eq!(answer.status, 503, "{variant:?}");
            assert_eq!(answer.header("x-llm-d-request-dropped-reason"), "rejected-no-endpoints");
            assert!(answer.text().starts_with("inference error: ServiceUnavailable - "));
        }
        stack.finish(&[(Outcome::Rejected, 2)]).await;
    }
}
