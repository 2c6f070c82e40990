//! Model servers that fail, and a picker that is not there.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use pointsman::domain::Outcome;
use pointsman::sim::client;
use pointsman::sim::envoy::Variant;
use pointsman::sim::server::{self, SimConfig, SimHandle};

use crate::stack::{self, Answer, Entry, MODEL, Setup, Stack, both, completion, quick, sim_at, sims, until, within};

/// A server at an address of its own whose port is closed, so that nobody else gets it meanwhile.
async fn dead(name: &str, ip: &str) -> SimHandle {
    let server = sim_at(name, &format!("{ip}:0")).await;
    server.set_fault(|faults| faults.refuse = true);
    server.listening(false).await;
    server
}

/// a connection that is refused is answered by Envoy; that is not an answer of the model server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_connection_is_a_local_reply() {
    let server = dead("dead", "127.0.0.21").await;
    for setup in both([&server]) {
        let variant = setup.bootstrap.variant;
        let stack = Stack::start(setup).await;
        for answer in
            [stack.post("/v1/completions", &[], completion("Hello")).await, stack.get("/v1/models", &[]).await]
        {
            assert_eq!(answer.status, 503, "{variant:?} {answer:?}");
            assert_eq!(answer.header("x-llm-d-request-dropped-reason"), "", "the picker did route it");
        }
        stack.settled(&[(Outcome::LocalReply, 2)]).await;
        let page = stack.metrics().await;
        assert_eq!(page.sum("llm_d_epp_request_error_total", &[("error_code", "LocalReply")]), 2.0, "{variant:?}");
        assert!(!page.has("llm_d_epp_request_input_tokens_count", &[]), "no usage of a server that never spoke");
        // The server comes back.
        server.clear_faults();
        server.listening(true).await;
        assert_eq!(stack.post("/v1/completions", &[], completion("Hello")).await.endpoint(), "dead");
        server.set_fault(|faults| faults.refuse = true);
        server.listening(false).await;
        stack.finish(&[(Outcome::LocalReply, 2), (Outcome::Completed, 1)]).await;
    }
}

/// Variant B tries again elsewhere; the served report tells which server it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_proxy_may_retry_on_another_endpoint() {
    let (dead, alive) = (dead("dead", "127.0.0.22").await, sims(&["alive"]).await.remove(0));
    let stack = Stack::start(Setup::b([&dead, &alive])).await;
    let hint = dead.address.to_string();
    let answer = stack.post("/v1/completions", &[("x-test-subset", &hint)], completion("Hello")).await;
    assert_eq!((answer.status, answer.endpoint()), (200, "alive"), "{answer:?}");
    let log = stack.envoy.access_log(1, Duration::from_secs(20)).await;
    let metadata: serde_json::Value = serde_json::from_str(log[0].split_once("lb=").unwrap().1).unwrap();
    assert_eq!(metadata["x-gateway-destination-endpoint"], hint.as_str(), "{log:?}");
    assert_eq!(metadata["x-gateway-destination-endpoint-served"], alive.address.to_string(), "{log:?}");
    stack.finish(&[(Outcome::Completed, 1)]).await;
}

/// Answers that break off: the client sees it, and the place is free again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_in_its_answer_leaves_nothing_behind() {
    // Slow enough that the head of the answer is with the client when the server dies.
    let config = SimConfig { decode_step: Duration::from_millis(200), ..quick("one") };
    let server = server::start(config, None).await.unwrap();
    for setup in both([&server]) {
        let variant = setup.bootstrap.variant;
        let stack = Stack::start(setup).await;
        server.set_fault(|faults| faults.die_after_chunks = Some(3));
        let ask = serde_json::json!({"model": MODEL, "prompt": "Hello", "max_tokens": 8, "stream": true});
        let response = stack.open(stack::post("/v1/completions", &[], ask.to_string())).await.unwrap();
        assert_eq!(response.status(), 200, "{variant:?}");
        let end = within("the end", response.into_body().collect()).await;
        assert!(end.is_err(), "{variant:?}: half an answer must not look whole: {end:?}");
        stack.idle().await;
        stack.settled(&[(Outcome::ClientDisconnect, 1)]).await;

        // Half of an answer in one piece: Envoy may notice before it lets the head go, and answer itself.
        let response = stack.open(stack::post("/v1/completions", &[], completion("Hello"))).await.unwrap();
        let status = response.status();
        let end = within("the end", response.into_body().collect()).await;
        assert!(end.is_err() || status.is_server_error(), "{variant:?}: {status} {end:?}");
        stack.idle().await;

        server.set_fault(|faults| (faults.die_after_chunks, faults.status) = (None, Some(500)));
        let answer = stack.post("/v1/completions", &[], completion("Hello")).await;
        assert_eq!((answer.status, answer.endpoint()), (500, "one"), "{variant:?}");
        server.clear_faults();
        assert_eq!(stack.post("/v1/completions", &[], completion("Hello")).await.status, 200);
        let count = async |outcome: Outcome| stack.outcomes().await.get(outcome.as_str()).copied().unwrap_or(0);
        until("every request has ended", async || stack.outcomes().await.values().sum::<u64>() == 4).await;
        let local = count(Outcome::LocalReply).await;
        assert!(local <= 1);
        let expected = [
            (Outcome::ClientDisconnect, 2 - local),
            (Outcome::UpstreamError, 1),
            (Outcome::Completed, 1),
            (Outcome::LocalReply, local),
        ];
        stack.finish(&expected[..if local == 0 { 3 } else { 4 }]).await;
    }
}

fn body() -> Bytes {
    Bytes::from(completion(&"A prompt that must not get lost. ".repeat(10_000)))
}

/// R-29 and conformance test 14: a picker that is not ready takes itself out, and then dies.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_ready_picker_the_failure_mode_decides() {
    let servers = sims(&["one", "two"]).await;
    for (variant, open) in
        [(Variant::OverrideHost, true), (Variant::OverrideHost, false), (Variant::OriginalDst, false)]
    {
        let mut setup = Setup::b(&servers);
        setup.bootstrap.variant = variant;
        setup.bootstrap.failure_mode_allow = open;
        let mut stack = Stack::start(setup).await;
        let echo = [("x-sim-echo", "1")];
        assert_eq!(stack.post("/v1/completions", &echo, body()).await.status, 200);
        stack.settled(&[(Outcome::Completed, 1)]).await;

        let healthy = async |stack: &Stack| {
            let stats = stack.envoy.stats("cluster.epp.membership_healthy").await.unwrap();
            stats["cluster.epp.membership_healthy"]
        };
        let check = async |stack: &Stack, when: &str| {
            for request in [stack::post("/v1/completions", &echo, body()), stack::post("/v1/completions", &echo, "{")] {
                let sent = request.clone().into_body().collect().await.unwrap().to_bytes();
                let answer = Answer::read(client::send(stack.envoy.address(), request).await.unwrap()).await;
                if !open {
                    assert!((500..600).contains(&answer.status), "{variant:?} {when}: {answer:?}");
                    assert_eq!(answer.endpoint(), "", "{variant:?} {when}");
                    continue;
                }
                assert_eq!(answer.status, 200, "{when}: {answer:?}");
                assert_eq!(answer.json()["body_bytes"], sent.len(), "{when}");
                let hash = format!("{:016x}", twox_hash::XxHash64::oneshot(0, &sent));
                assert_eq!(answer.json()["body_xxh64"], hash.as_str(), "{when}");
            }
        };
        assert_eq!(healthy(&stack).await, 1);
        stack.readiness.draining();
        until("Envoy sees that the picker is not ready", async || healthy(&stack).await == 0).await;
        check(&stack, "not ready").await;
        assert_eq!(stack.outcomes().await.values().sum::<u64>(), 1, "the picker is not asked any more");
        assert_eq!(stack.in_flight(), (0, 0));
        assert_eq!(stack.stop_picker().await.forced, 0);
        check(&stack, "stopped").await;
        stack.envoy_is_content().await;
    }
}

/// An endpoint that leaves the pool while it answers: the answer goes on and its place is given back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_endpoint_leaves_while_it_answers() {
    let servers = sims(&["one"]).await;
    servers[0].set_fault(|faults| faults.delay = Duration::from_secs(2));
    let stack = Stack::start(Setup::a(&servers)).await;
    let requests = servers[0].stats().requests;
    let sending = client::send(stack.envoy.address(), stack::post("/v1/completions", &[], completion("Hello")));
    let sending = tokio::spawn(sending);
    until("the server has the request", async || servers[0].stats().requests == requests + 1).await;
    let none: [Entry; 0] = [];
    stack.write_endpoints(&stack::endpoints_yaml(&none));
    until("the pool is empty", async || stack.pool.snapshot().topology.is_empty()).await;
    assert_eq!(stack.get("/v1/models", &[]).await.status, 503);
    let answer = Answer::read(within("the answer", sending).await.unwrap().unwrap()).await;
    assert_eq!((answer.status, answer.endpoint()), (200, "one"));
    stack.finish(&[(Outcome::Completed, 1), (Outcome::Rejected, 1)]).await;
}
