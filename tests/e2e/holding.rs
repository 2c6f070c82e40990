//! Just-in-time dispatch through Envoy: what is held, in which order it goes, and how holding ends.
//!
//! The server is occupied by a *blocker*, a request that it does not begin to answer until its client leaves. Nothing
//! goes while it waits, and one at a time afterwards, so what happens does not depend on how fast the machine is.

use std::io;
use std::time::{Duration, UNIX_EPOCH};

use http::Response;
use hyper::body::Incoming;
use pointsman::domain::Outcome;
use pointsman::lifecycle::clock::{Clock as _, SystemClock};
use pointsman::sim::client;
use pointsman::sim::server::{self, SimConfig, SimHandle};
use serde_json::json;
use tokio::task::JoinHandle;

use crate::log;
use crate::stack::{Answer, MODEL, Setup, Stack, both, post, quick, until, within};

const ECHO: (&str, &str) = ("x-sim-echo", "1");
/// Requests that teach the prefill rate, and that answers are streamed.
const LESSONS: u64 = 10;

type Sent = JoinHandle<io::Result<Response<Incoming>>>;

async fn slow_server() -> SimHandle {
    let config = SimConfig { prefill_tokens_per_second: 4_000.0, num_blocks: 1 << 16, ..quick("one") };
    server::start(config, None).await.unwrap()
}

/// With `dispatch` besides what lets one request go at a time: the account of an endpoint with any prefill is above
/// 2 ms, however late it is.
fn holding(setup: Setup, dispatch: &str) -> Setup {
    let plugins = format!(
        "- type: mirror-prefix-cache-producer\n- type: prefill-account-producer\n- type: cost-picker\n\
         - type: just-in-time-dispatch\n  parameters: {{holdAbove: 1ms, maxHold: 10m, minSamples: 5, {dispatch}}}\n"
    );
    setup.scheduling(&plugins, "- pluginRef: cost-picker\n")
}

/// A streamed completion of `tokens` tokens that begin with `name`.
fn ask(name: &str, tokens: usize) -> String {
    let prompt = format!("{name:_<64}{}", "word".repeat(tokens - 16));
    json!({"model": MODEL, "prompt": prompt, "max_tokens": 3, "stream": true}).to_string()
}

fn send(stack: &Stack, headers: &[(&str, &str)], body: &str) -> Sent {
    let request = post("/v1/completions", headers, body.to_owned());
    tokio::spawn(client::send(stack.envoy.address(), request))
}

async fn answer(sent: Sent) -> Answer {
    Answer::read(within("the head of an answer", sent).await.unwrap().unwrap()).await
}

/// The client leaves.
async fn leave(sent: Sent) {
    sent.abort();
    assert!(sent.await.is_err_and(|e| e.is_cancelled()), "it had no answer yet");
}

async fn held(stack: &Stack) -> f64 {
    stack.metrics().await.sum("llm_d_epp_dispatch_held_requests", &[])
}

async fn dispatched(stack: &Stack, mode: &str, reason: &str) -> f64 {
    stack.metrics().await.sum("llm_d_epp_dispatch_total", &[("mode", mode), ("reason", reason)])
}

/// Requests one after the other, until holding may begin.
async fn teach(stack: &Stack, run: &str) {
    for i in 0..LESSONS {
        let answer = stack.post("/v1/completions", &[], ask(&format!("{run} lesson {i}"), 400)).await;
        assert!(answer.status == 200 && answer.text().ends_with("data: [DONE]\n\n"), "{answer:?}");
    }
    // The picker sees the end of the last one a moment after its client.
    until("all lessons are learnt", async || stack.outcomes().await.get("completed") == Some(&LESSONS)).await;
}

/// Occupies the server.
async fn block(stack: &Stack, server: &SimHandle, run: &str) -> Sent {
    let before = server.stats().requests;
    server.set_fault(|faults| faults.delay = Duration::from_secs(3_600));
    let blocker = send(stack, &[], &ask(&format!("{run} blocker"), 400));
    until("the server is busy", async || server.stats().requests == before + 1).await;
    server.clear_faults();
    blocker
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn short_prompts_overtake_a_long_one_and_who_leaves_frees_the_place() {
    log::keep();
    let server = slow_server().await;
    for setup in both([&server]) {
        let run = format!("{:?}", setup.bootstrap.variant);
        let stack = Stack::start(holding(setup, "orderWeight: 10000")).await;
        teach(&stack, &run).await;
        let blocker = block(&stack, &server, &run).await;
        let before = server.stats().requests;

        // The order keys are minutes apart.
        let mut waiting = Vec::new();
        for (name, tokens) in [("long", 4_000), ("middle", 1_200), ("gone", 900), ("small", 600), ("tiny", 300)] {
            let id = format!("held-{run}-{name}");
            waiting.push((name, send(&stack, &[("x-request-id", &id)], &ask(&id, tokens))));
            let count = waiting.len() as f64;
            until("it is held", async || held(&stack).await == count).await;
        }
        let bytes = stack.metrics().await.sum("llm_d_epp_dispatch_held_bytes", &[]);
        assert!(bytes >= 4.0 * 7_000.0, "{bytes}");
        leave(waiting.remove(2).1).await;
        until("its place is free", async || held(&stack).await == 4.0).await;
        assert_eq!(dispatched(&stack, "hold", "cancelled").await, 1.0);
        assert_eq!(server.stats().requests, before, "nothing was sent");

        leave(blocker).await;
        for (name, sent) in waiting {
            let answer = answer(sent).await;
            assert!(answer.status == 200 && answer.text().ends_with("data: [DONE]\n\n"), "{name}: {answer:?}");
        }
        assert_eq!(held(&stack).await, 0.0);
        assert_eq!(dispatched(&stack, "hold", "sent").await, 4.0);
        let ended = [(Outcome::Completed, LESSONS + 4), (Outcome::ClientDisconnect, 2)];
        stack.settled(&ended).await;

        // In the order in which they were sent.
        let prefix = format!("held-{run}-");
        let decisions = stack.director.parts().decisions.to_json();
        let decisions = decisions["decisions"].as_array().unwrap().iter();
        let order: Vec<(&str, f64)> = decisions
            .filter_map(|d| Some((d["requestId"].as_str()?.strip_prefix(&prefix)?, d["heldMs"].as_f64()?)))
            .collect();
        assert_eq!(order.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["tiny", "small", "middle", "long"]);
        assert!(order.iter().all(|(_, held)| *held > 0.0), "{order:?}");
        for name in ["tiny", "small", "gone", "middle", "long"] {
            let id = format!("held-{run}-{name}");
            until("its line is written", async || log::lines_with(&[&id, "heldMs"]).len() == 1).await;
        }
        // One decision each for lessons, blocker and those that were sent: looks are none.
        let scheduled = stack.metrics().await.sum("llm_d_epp_scheduler_e2e_duration_seconds_count", &[]);
        assert_eq!(scheduled, (LESSONS + 5) as f64);
        stack.finish(&ended).await;
    }
}

/// The whole body as the server must have got it: `body` with a priority at its beginning, in milliseconds of wall
/// time between `from` and `to`.
fn prioritised(body: &str, from: u128, to: u128, hash: &str) -> Option<String> {
    // What rounds on the way may lose a millisecond or two.
    let expected = (from - 2..=to + 2).map(|at| format!("{{\"priority\":{at},{}", &body[1..]));
    expected.into_iter().find(|body| format!("{:016x}", twox_hash::XxHash64::oneshot(0, body.as_bytes())) == hash)
}

fn wall_millis() -> u128 {
    SystemClock::new().wall().duration_since(UNIX_EPOCH).unwrap().as_millis()
}

fn assert_priority(answer: &Answer, body: &str, from: u128, to: u128, what: &str) -> usize {
    assert_eq!(answer.status, 200, "{what}: {answer:?}");
    let hash = answer.json()["body_xxh64"].as_str().unwrap().to_owned();
    let arrived = prioritised(body, from, to, &hash).unwrap_or_else(|| panic!("{what}: not this body: {answer:?}"));
    assert_eq!(answer.json()["body_bytes"], arrived.len(), "{what}");
    arrived.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_priority_is_written_into_bodies_that_were_held() {
    let server = slow_server().await;
    for setup in both([&server]) {
        let run = format!("{:?}", setup.bootstrap.variant);
        // The order key is then the time of arrival.
        let stack = Stack::start(holding(setup, "orderWeight: 0, writePriority: true")).await;
        teach(&stack, &run).await;
        let blocker = block(&stack, &server, &run).await;
        let body = ask(&format!("{run} held"), 3_000);
        let from = wall_millis();
        let held_one = send(&stack, &[ECHO], &body);
        until("it is held", async || held(&stack).await == 1.0).await;
        let to = wall_millis();
        let own = body.replacen('{', "{\"priority\":-5,", 1);
        let with_own = send(&stack, &[ECHO], &own);
        until("both are", async || held(&stack).await == 2.0).await;
        leave(blocker).await;

        let first = answer(held_one).await;
        assert_priority(&first, &body, from, to, &run);
        assert_eq!(first.echoed("content-length"), Vec::<String>::new(), "the client's would be wrong");
        let second = answer(with_own).await;
        assert_eq!(second.json()["body_bytes"], own.len(), "{run}: its own priority stays");
        assert_eq!(held(&stack).await, 0.0);
        stack.finish(&[(Outcome::Completed, LESSONS + 2), (Outcome::ClientDisconnect, 1)]).await;
    }
}

/// BUFFERED bodies cannot wait, and the server is told their length.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_priority_is_written_where_nothing_is_held_and_the_length_is_right() {
    let server = slow_server().await;
    for mode in ["hold", "immediate"] {
        let mut setup = holding(Setup::a([&server]), &format!("orderWeight: 0, writePriority: true, mode: {mode}"));
        setup.bootstrap.buffered = true;
        let stack = Stack::start(setup).await;
        let body = ask(&format!("buffered {mode}"), 3_000);
        let from = wall_millis();
        let answer = stack.post("/v1/completions", &[ECHO], body.clone()).await;
        let length = assert_priority(&answer, &body, from, wall_millis(), mode);
        assert_eq!(answer.echoed("content-length"), [length.to_string()], "{mode}");
        stack.finish(&[(Outcome::Completed, 1)]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_picker_that_stops_sends_what_it_holds_at_once() {
    let server = slow_server().await;
    for mut setup in both([&server]) {
        let run = format!("{:?}", setup.bootstrap.variant);
        setup.grace = Duration::from_secs(600);
        let mut stack = Stack::start(holding(setup, "orderWeight: 20")).await;
        teach(&stack, &run).await;
        let blocker = block(&stack, &server, &run).await;
        let before = server.stats().requests;
        let mut waiting = Vec::new();
        for i in 1..=5 {
            waiting.push(send(&stack, &[], &ask(&format!("{run} waiting {i}"), 100)));
            until("it is held", async || held(&stack).await == f64::from(i)).await;
        }
        stack.begin_stop();
        // The blocker is still there: they do not wait for it.
        until("all are sent", async || server.stats().requests == before + 5).await;
        for sent in waiting {
            let answer = answer(sent).await;
            assert!(answer.status == 200 && answer.text().ends_with("data: [DONE]\n\n"), "{answer:?}");
        }
        leave(blocker).await;
        assert_eq!(stack.stop_picker().await.forced, 0);
    }
}
