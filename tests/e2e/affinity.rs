//! Picking well, seen from outside: caches and adapters are found again, sessions return, bursts spread.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pointsman::domain::Outcome;
use pointsman::sim::client;
use pointsman::sim::server::{self, SimConfig};
use serde_json::json;

use crate::stack::{self, Answer, MODEL, Setup, Stack, both, completion, quick, sims, within};

/// About a thousand tokens that no other topic shares.
fn long_prompt(topic: &str) -> String {
    (0..200).map(|i| format!("{topic} fact number {i}. ")).collect()
}

fn cached(answer: &Answer) -> u64 {
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
}

/// A prompt goes where its beginning is, also when it has grown; others go elsewhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prompts_return_to_their_cache() {
    let servers = sims(&["one", "two", "three"]).await;
    let plugins = "- type: approx-prefix-cache-producer\n- type: prefix-cache-scorer\n- type: active-request-scorer\n";
    let profile = "- pluginRef: prefix-cache-scorer\n  weight: 2\n- pluginRef: active-request-scorer\n";
    for setup in both(&servers) {
        let variant = setup.bootstrap.variant;
        for server in &servers {
            server.clear_cache();
        }
        let stack = Stack::start(setup.scheduling(plugins, profile)).await;
        let mut homes = BTreeMap::<String, u32>::new();
        let topics: Vec<String> = (0..24).map(|i| format!("Topic {i}, variant {variant:?}:")).collect();
        for topic in &topics {
            let prompt = long_prompt(topic);
            let first = stack.post("/v1/completions", &[], completion(&prompt)).await;
            assert!(cached(&first) < 100, "{variant:?}: the topic is new");
            let home = first.endpoint().to_owned();
            let again = stack.post("/v1/completions", &[], completion(&prompt)).await;
            assert_eq!(again.endpoint(), home, "{variant:?} {topic}");
            assert!(cached(&again) > 900, "{variant:?}: {again:?}");
            let grown = stack.post("/v1/completions", &[], completion(&format!("{prompt} And what else?"))).await;
            assert_eq!(grown.endpoint(), home, "{variant:?} {topic}");
            assert!(cached(&grown) > 900, "{variant:?}: {grown:?}");
            *homes.entry(home).or_default() += 1;
        }
        // At random over three: that one gets none of 24 has a chance of one in five thousand.
        assert_eq!(homes.len(), 3, "{variant:?} {homes:?}");
        let page = stack.metrics().await;
        assert!(page.sum("llm_d_epp_prefix_indexer_size", &[]) > 0.0);
        assert_eq!(page.sum("llm_d_epp_prefix_indexer_hit_ratio_count", &[]), 72.0);
        assert!(page.sum("llm_d_epp_request_cached_tokens_sum", &[]) > 900.0 * 48.0);
        stack.finish(&[(Outcome::Completed, 72)]).await;
    }
}

/// The turns of a conversation stay together through the chat API, streamed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conversation_stays_where_it_began() {
    let servers = sims(&["one", "two", "three"]).await;
    let plugins = "- type: prefix-cache-scorer\n- type: active-request-scorer\n";
    let profile = "- pluginRef: prefix-cache-scorer\n  weight: 2\n- pluginRef: active-request-scorer\n";
    let stack = Stack::start(Setup::a(&servers).scheduling(plugins, profile)).await;
    let mut messages = vec![json!({"role": "system", "content": long_prompt("rules")})];
    let mut home = None;
    for turn in 0..6 {
        messages.push(json!({"role": "user", "content": long_prompt(&format!("turn {turn}"))}));
        let ask = json!({"model": MODEL, "messages": messages, "stream": true, "max_tokens": 8});
        let answer = stack.post("/v1/chat/completions", &[], ask.to_string()).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(home.get_or_insert(answer.endpoint().to_owned()), answer.endpoint(), "turn {turn}");
        messages.push(json!({"role": "assistant", "content": format!("Answer {turn}")}));
    }
    stack.finish(&[(Outcome::Completed, 6)]).await;
}

/// Choosing and reserving is one step: requests that come at once do not all see the same idle endpoint.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_spreads_over_the_endpoints() {
    const REQUESTS: usize = 32;
    let mut servers = Vec::new();
    for name in ["one", "two", "three", "four"] {
        let config = SimConfig { decode_step: Duration::from_millis(50), num_blocks: 200_000, ..quick(name) };
        servers.push(server::start(config, None).await.unwrap());
    }
    let stack = Stack::start(Setup::a(&servers)).await;
    // No answer ends before all have begun, so all are in flight at once.
    let open = |i: usize| {
        let ask =
            json!({"model": MODEL, "prompt": format!("{i}"), "max_tokens": 50_000, "ignore_eos": true, "stream": true});
        tokio::spawn(client::send(stack.envoy.address(), stack::post("/v1/completions", &[], ask.to_string())))
    };
    let opening: Vec<_> = (0..REQUESTS).map(open).collect();
    let mut answers = Vec::new();
    for request in opening {
        answers.push(within("the head of an answer", request).await.unwrap().unwrap());
    }
    let mut shares = BTreeMap::<String, usize>::new();
    for answer in &answers {
        *shares.entry(answer.headers()["x-sim-endpoint"].to_str().unwrap().to_owned()).or_default() += 1;
    }
    assert_eq!(stack.in_flight().0, REQUESTS as u64);
    // Eight each; under contention a reservation may be made on counters that are one old.
    assert!(shares.len() == 4 && shares.values().all(|n| (7..=9).contains(n)), "{shares:?}");
    drop(answers);
    stack.finish(&[(Outcome::ClientDisconnect, REQUESTS as u64)]).await;
}

/// Sessions by the token that the picker gives out, and by an id of the client's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_return_to_their_endpoint() {
    let servers = sims(&["one", "two", "three"]).await;
    let profile = "- pluginRef: session-affinity-scorer\n";
    let token = "- type: session-affinity-scorer\n";
    let by_id = "- type: session-affinity-scorer\n  parameters: {strategy: session_id}\n";
    for setup in both(&servers) {
        let variant = setup.bootstrap.variant;
        let stack = Stack::start(setup.scheduling(token, profile)).await;
        let first = stack.post("/v1/completions", &[], completion("Hello")).await;
        let token = first.header("x-session-token").to_owned();
        assert!(!token.is_empty(), "{variant:?} {first:?}");
        for i in 0..12 {
            let headers = [("x-session-token", token.as_str())];
            let answer = match i % 2 {
                0 => stack.post("/v1/completions", &headers, completion("Hello")).await,
                _ => stack.get("/v1/models", &headers).await,
            };
            assert_eq!((answer.status, answer.endpoint()), (200, first.endpoint()), "{variant:?}");
        }
        // Nonsense is no session, and no error.
        let answer = stack.post("/v1/completions", &[("x-session-token", "!!!")], completion("Hello")).await;
        assert!(answer.status == 200 && !answer.header("x-session-token").is_empty());
        stack.finish(&[(Outcome::Completed, 14)]).await;
    }
    let stack = Stack::start(Setup::a(&servers).scheduling(by_id, profile)).await;
    let mut homes = BTreeMap::new();
    for round in 0..4 {
        for session in ["s1", "s2", "s3", "s4", "s5"] {
            let answer = stack.post("/v1/completions", &[("x-session-id", session)], completion("Hello")).await;
            let home = homes.entry(session).or_insert_with(|| answer.endpoint().to_owned());
            assert_eq!((answer.status, answer.endpoint()), (200, home.as_str()), "{session}, round {round}");
        }
    }
    stack.finish(&[(Outcome::Completed, 20)]).await;
}

/// Requests for an adapter go where it runs, as the metrics page of that server says; others to any
/// with room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_adapter_is_found_where_it_runs() {
    let mut servers = Vec::new();
    for name in ["one", "two", "three"] {
        let lora_adapters = ["sql", "chat"].map(str::to_owned).to_vec();
        let config = SimConfig { num_blocks: 200_000, lora_adapters, ..quick(name) };
        servers.push(server::start(config, None).await.unwrap());
    }
    let plugins = "- type: lora-affinity-scorer\n- type: max-score-picker\n";
    let profile = "- pluginRef: lora-affinity-scorer\n- pluginRef: max-score-picker\n";
    let stack = Stack::start(Setup::a(&servers).scheduling(plugins, profile)).await;
    let ask = |model: &str, tokens: u32| {
        json!({"model": model, "prompt": "x", "max_tokens": tokens, "ignore_eos": true, "stream": tokens > 1})
            .to_string()
    };
    // Somebody else uses the adapter at the second server for as long as this takes.
    let long = stack::post("/v1/completions", &[], ask("sql", 100_000));
    let busy = within("the head of an answer", client::send(servers[1].address, long)).await.unwrap();
    let mut sent = 0;
    let mut in_a_row = 0;
    stack::until("the adapter is found", async || {
        let answer = stack.post("/v1/completions", &[], ask("sql", 1)).await;
        sent += 1;
        assert_eq!(answer.status, 200, "{answer:?}");
        in_a_row = if answer.endpoint() == "two" { in_a_row + 1 } else { 0 };
        // By chance once in fourteen million.
        in_a_row >= 15
    })
    .await;
    let mut homes = BTreeSet::new();
    for _ in 0..30 {
        let answer = stack.post("/v1/completions", &[], ask(MODEL, 1)).await;
        sent += 1;
        homes.insert(answer.endpoint().to_owned());
    }
    // By lot: that one gets none of 30 has a chance of one in sixty thousand.
    assert_eq!(homes.len(), 3, "for what has no adapter all have room: {homes:?}");
    drop(busy);
    stack.finish(&[(Outcome::Completed, sent)]).await;
}
