//! The cases of the Gateway API inference extension's conformance suite that depend on the test plugins
//! (protocol 6.2, 6.3), each named after its original.

use std::collections::BTreeSet;

use pointsman::config::settings::Conformance;
use pointsman::domain::Outcome;
use pointsman::sim::server::SimHandle;

use crate::stack::{Answer, Setup, Stack, both, completion, sim_at, sims};

const SELECT: &str = "test-epp-endpoint-selection";
const SERVED: &str = "x-conformance-test-served-endpoint";

fn test_mode(mut setup: Setup) -> Setup {
    setup.settings.conformance = Conformance { test_mode: true, echo_destination: false };
    setup
}

/// Three "pods" with one port each.
async fn pods() -> Vec<SimHandle> {
    let first = sim_at("one", "127.0.0.21:0").await;
    let port = first.address.port();
    vec![
        first,
        sim_at("two", &format!("127.0.0.22:{port}")).await,
        sim_at("three", &format!("127.0.0.23:{port}")).await,
    ]
}

/// Sends `count` requests, ten at a time, half of them without a body; who answered.
async fn answered_by(stack: &Stack, headers: &[(&str, &str)], count: usize) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    for _ in 0..count / 10 {
        let send = async |i: usize| -> Answer {
            match i % 2 {
                0 => stack.post("/v1/completions", headers, completion("Write as if you were a critic")).await,
                _ => stack.get("/v1/models", headers).await,
            }
        };
        let batch =
            tokio::join!(send(0), send(1), send(2), send(3), send(4), send(5), send(6), send(7), send(8), send(9));
        let (a, b, c, d, e, f, g, h, i, j) = batch;
        for answer in [a, b, c, d, e, f, g, h, i, j] {
            assert_eq!(answer.status, 200, "{answer:?}");
            seen.insert(answer.endpoint().to_owned());
        }
    }
    seen
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|n| (*n).to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateway_following_epp_routing() {
    let servers = pods().await;
    for setup in both(&servers) {
        let stack = Stack::start(test_mode(setup)).await;
        for (header, expected) in [
            ("127.0.0.22", &["two"][..]),
            ("127.0.0.21, 127.0.0.23", &["one", "three"]),
            ("127.0.0.21,127.0.0.22,127.0.0.23", &["one", "two", "three"]),
        ] {
            assert_eq!(answered_by(&stack, &[(SELECT, header)], 100).await, names(expected), "{header}");
        }
        assert_eq!(answered_by(&stack, &[], 100).await, names(&["one", "two", "three"]), "without it all are free");
        // The header beats what the data plane allows.
        let one = servers[0].address.to_string();
        let both = [("x-test-subset", one.as_str()), (SELECT, "127.0.0.23")];
        assert_eq!(answered_by(&stack, &both, 10).await, names(&["three"]));
        assert_eq!(answered_by(&stack, &both[..1], 10).await, names(&["one"]));
        let nobody = stack.post("/v1/completions", &[(SELECT, "127.0.0.99")], completion("x")).await;
        assert_eq!(nobody.status, 429, "strict");
        stack.finish(&[(Outcome::Completed, 420), (Outcome::Rejected, 1)]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateway_following_epp_routing_with_data_parallelism() {
    let servers = vec![
        sim_at("one-rank-0", "127.0.0.21:0").await,
        sim_at("one-rank-1", "127.0.0.21:0").await,
        sim_at("two-rank-0", "127.0.0.22:0").await,
        sim_at("two-rank-1", "127.0.0.22:0").await,
    ];
    for setup in both(&servers) {
        let stack = Stack::start(test_mode(setup)).await;
        let rank = servers[3].address.to_string();
        let mixed = format!("127.0.0.21,{rank}");
        for (header, expected) in [
            ("127.0.0.21", &["one-rank-0", "one-rank-1"][..]),
            (rank.as_str(), &["two-rank-1"]),
            (mixed.as_str(), &["one-rank-0", "one-rank-1", "two-rank-1"]),
        ] {
            assert_eq!(answered_by(&stack, &[(SELECT, header)], 100).await, names(expected), "{header}");
        }
        stack.finish(&[(Outcome::Completed, 300)]).await;
    }
}

/// What concerns the picker in the weighted case: addresses of another pool in the header are ignored.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateway_weighted_across_two_inference_pools() {
    let servers = pods().await;
    let stack = Stack::start(test_mode(Setup::a(&servers[..2]))).await;
    let all = "127.0.0.21,127.0.0.22,127.0.0.23,127.0.0.31";
    assert_eq!(answered_by(&stack, &[(SELECT, all)], 50).await, names(&["one", "two"]));
    stack.finish(&[(Outcome::Completed, 50)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateway_destination_endpoint_served() {
    let servers = pods().await;
    for setup in both(&servers) {
        let stack = Stack::start(test_mode(setup)).await;
        for server in &servers {
            let ip = server.address.ip().to_string();
            let answer = stack.post("/v1/completions", &[(SELECT, &ip)], completion("x")).await;
            assert_eq!((answer.status, answer.endpoint()), (200, server.name()));
            assert_eq!(answer.header(SERVED), server.address.to_string());
            let answer = stack.get("/v1/models", &[(SELECT, &ip)]).await;
            assert_eq!(answer.header(SERVED), server.address.to_string());
        }
        stack.finish(&[(Outcome::Completed, 6)]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_mode_the_header_says_nothing() {
    let servers = sims(&["one"]).await;
    let stack = Stack::start(Setup::a(&servers)).await;
    let answer = stack.post("/v1/completions", &[(SELECT, "127.0.0.99")], completion("x")).await;
    assert_eq!((answer.status, answer.header(SERVED)), (200, ""));
    stack.finish(&[(Outcome::Completed, 1)]).await;
}

/// The echo servers of the suite return what this request header says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_echo_of_the_destination_is_a_switch_of_its_own() {
    let servers = sims(&["one"]).await;
    for echo_destination in [false, true] {
        let mut setup = Setup::a(&servers);
        setup.settings.conformance = Conformance { test_mode: true, echo_destination };
        let stack = Stack::start(setup).await;
        let answer = stack.post("/v1/completions", &[("x-sim-echo", "1")], completion("x")).await;
        let expected = format!("{SERVED}:{}", servers[0].address);
        let expected = if echo_destination { vec![expected] } else { Vec::new() };
        assert_eq!(answer.echoed("x-echo-set-header"), expected);
        stack.finish(&[(Outcome::Completed, 1)]).await;
    }
}
