//! The plugins that llm-d-router does not have, through the whole picker: what an expression reads is
//! scraped from the servers, and prompts that begin alike find the same server on every replica.

#[path = "shared/app.rs"]
mod app;
#[path = "shared/client.rs"]
mod client;

use std::net::SocketAddr;
use std::time::Duration;

use client::Call;
use pointsman::sim::server::{self, SimConfig, SimHandle};
use serde_json::json;

async fn servers(count: usize) -> Vec<SimHandle> {
    let mut servers = Vec::new();
    for i in 0..count {
        let config = SimConfig { name: format!("sim-{i}"), time_scale: 0.0, ..SimConfig::default() };
        servers.push(server::start(config, None).await.unwrap());
    }
    servers
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expression_reads_a_series_that_it_alone_asked_for() {
    let servers = servers(3).await;
    let addresses: Vec<SocketAddr> = servers.iter().map(|s| s.address).collect();
    let plugins = "- type: cel-filter\n  parameters:\n    \
                   expression: endpoint.metrics['vllm:num_requests_waiting_by_reason{reason=capacity}'] < 1.0 && endpoint.name == 'server-1'\n\
                   - {type: random-picker}";
    let picker =
        app::start(plugins, "  - {pluginRef: cel-filter}\n  - {pluginRef: random-picker}", &addresses, |_| {}).await;
    let snapshots = &picker.pool;
    app::until("the series is read", Duration::from_secs(30), || {
        let loads = &snapshots.snapshot().loads;
        let column = loads.attribute("vllm:num_requests_waiting_by_reason{reason=capacity}");
        column.is_some_and(|values| values.iter().filter(|v| **v == 0.0).count() == 3)
    })
    .await;
    let channel = picker.connect().await;
    for prompt in 0..5 {
        let mut call = Call::open(&channel).await.unwrap();
        let routed = call.request(&[], json!({"model": "m", "prompt": prompt.to_string()}).to_string()).await.unwrap();
        assert_eq!(routed.destination, addresses[1].to_string());
    }
    picker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn prompts_that_begin_alike_find_the_same_server_on_every_replica() {
    let addresses: Vec<SocketAddr> = (1..=9).map(|i| ([127, 0, 0, 1], 10_000 + i).into()).collect();
    let plugins =
        "- {type: consistent-hash-scorer, parameters: {prefixBlocks: 1, blockSizeTokens: 8, minRequests: 100}}";
    let mut replicas = Vec::new();
    for _ in 0..2 {
        replicas.push(app::start(plugins, "  - {pluginRef: consistent-hash-scorer}", &addresses, |_| {}).await);
    }
    let mut homes = Vec::new();
    for prefix in 0..12 {
        let mut found = Vec::new();
        for replica in &replicas {
            let channel = replica.connect().await;
            for tail in ["a", "bb", "ccc"] {
                let prompt = format!("{prefix:032} {tail}");
                let mut call = Call::open(&channel).await.unwrap();
                let body = json!({"model": "m", "prompt": prompt}).to_string();
                found.push(call.request(&[], body).await.unwrap().destination);
            }
        }
        assert!(found.windows(2).all(|pair| pair[0] == pair[1]), "{found:?}");
        homes.extend(found.pop());
    }
    homes.sort();
    homes.dedup();
    assert!(homes.len() > 3, "prefixes spread: {homes:?}");
    for replica in replicas {
        replica.stop().await;
    }
}
