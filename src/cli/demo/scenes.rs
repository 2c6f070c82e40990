//! What the demo sends, and what it shows of each answer.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::stack::{MODEL, Servers, Stack};
use super::table;
use crate::sim::client;

/// Long enough for several blocks of 64 tokens.
const SYSTEM: &str = "You are a careful assistant of a travel agency. Answer in one short sentence. Never invent \
    a place, a price or a timetable; when you are not sure, say so and ask one question back. Use the names of places \
    as the people who live there write them, and give distances in kilometres and temperatures in degrees Celsius. Do \
    not recommend flights where a train takes less than five hours. Mention visas only when the traveller asks for them.";

const FRANCE: &str = "What is the capital of France?";
const GERMANY: &str = "What is the capital of Germany?";
const QUANTUM: &str = "Tell me about quantum computing.";

/// Requests at the same time in the mixed part.
const AT_ONCE: usize = 16;

/// One answered request.
struct Answered {
    id: String,
    endpoint: String,
    prompt_tokens: u64,
    cached_tokens: u64,
    text: String,
}

/// Three questions behind one system prompt, and the first conversation grown by a second question.
pub async fn with_system_prompt(stack: &Stack, out: &mut dyn Write) -> anyhow::Result<()> {
    let system = json!({ "role": "system", "content": SYSTEM });
    let user = |text: &str| json!({ "role": "user", "content": text });
    let mut rows = Vec::new();
    let mut first = None;
    for (label, question) in
        [("1 capital of France?", FRANCE), ("2 capital of Germany?", GERMANY), ("3 quantum computing", QUANTUM)]
    {
        let answered = chat(stack.proxy(), json!([system, user(question)])).await?;
        rows.push(row(stack, label, &answered));
        first.get_or_insert(answered);
    }
    let first = first.context("no first answer")?;
    let grown = json!([
        system,
        user(FRANCE),
        { "role": "assistant", "content": first.text },
        user("And how many people live there?"),
    ]);
    let answered = chat(stack.proxy(), grown).await?;
    rows.push(row(stack, "4 = 1 + a second question", &answered));
    show(out, "behind one system prompt", &rows)
}

/// A conversation of several turns, each holding all turns before it.
pub async fn conversation(stack: &Stack, out: &mut dyn Write) -> anyhow::Result<()> {
    let mut messages = vec![json!({ "role": "system", "content": format!("Session of a gardener. {SYSTEM}") })];
    let mut rows = Vec::new();
    for (turn, question) in [
        "When do I sow carrots?",
        "And which soil do they like?",
        "What grows well beside them?",
        "When is the harvest?",
    ]
    .into_iter()
    .enumerate()
    {
        messages.push(json!({ "role": "user", "content": question }));
        let answered = chat(stack.proxy(), Value::from(messages.clone())).await?;
        messages.push(json!({ "role": "assistant", "content": answered.text }));
        rows.push(row(stack, &format!("turn {}", turn + 1), &answered));
    }
    show(out, "a session of four turns", &rows)
}

/// The questions alone, as completions.
pub async fn raw_questions(stack: &Stack, out: &mut dyn Write) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    for (label, question) in
        [("1 capital of France?", FRANCE), ("2 capital of Germany?", GERMANY), ("3 quantum computing", QUANTUM)]
    {
        let body = json!({ "model": MODEL, "prompt": question, "max_tokens": 8 });
        let answered = post(stack.proxy(), "/v1/completions", &body).await?;
        rows.push(row(stack, label, &answered));
    }
    show(out, "raw, blocks of 4 tokens", &rows)
}

/// `count` requests of twelve tenants with a system prompt each, some at the same time.
pub async fn mixed(stack: &Stack, servers: &Servers, count: u32, out: &mut dyn Write) -> anyhow::Result<()> {
    let before: Vec<_> = servers.iter().map(|s| s.stats()).collect();
    let slots = Arc::new(Semaphore::new(AT_ONCE));
    let mut tasks = JoinSet::new();
    let proxy = stack.proxy();
    for i in 0..count {
        let slot = Arc::clone(&slots).acquire_owned().await?;
        let tenant = i * 7 % 12;
        let messages = json!([
            { "role": "system", "content": format!("Rules of tenant {tenant}. {SYSTEM}") },
            { "role": "user", "content": format!("Question {i}: what should a visitor see on day {}?", i % 5) },
        ]);
        tasks.spawn(async move {
            let answered = chat(proxy, messages).await;
            drop(slot);
            answered
        });
    }
    let mut tokens = (0u64, 0u64);
    while let Some(done) = tasks.join_next().await {
        let answered = done??;
        tokens.0 += answered.prompt_tokens;
        tokens.1 += answered.cached_tokens;
    }
    let rows: Vec<Vec<String>> = servers
        .iter()
        .zip(before)
        .map(|(server, before)| {
            let now = server.stats();
            let prompt = now.prompt_tokens - before.prompt_tokens;
            let cached = now.cached_tokens - before.cached_tokens;
            vec![
                server.name().to_owned(),
                (now.requests - before.requests).to_string(),
                prompt.to_string(),
                cached.to_string(),
                percent(cached, prompt),
            ]
        })
        .collect();
    table::print(out, &["endpoint", "requests", "prompt tokens", "cached tokens", "hit rate"], &rows)?;
    writeln!(
        out,
        "    all: {} of {} prompt tokens came from a cache ({})\n",
        tokens.1,
        tokens.0,
        percent(tokens.1, tokens.0)
    )?;
    Ok(())
}

fn percent(part: u64, whole: u64) -> String {
    format!("{:.0} %", 100.0 * part as f64 / whole.max(1) as f64)
}

fn show(out: &mut dyn Write, title: &str, rows: &[Vec<String>]) -> anyhow::Result<()> {
    writeln!(out, "\n    {title}:")?;
    table::print(
        out,
        &[
            "request",
            "endpoint",
            "prompt",
            "cached",
            "prefix-cache-scorer ×2",
            "load-aware-scorer ×1",
            "total",
            "best other",
        ],
        rows,
    )?;
    out.flush()?;
    Ok(())
}

/// The row of one request: where it went, what the server had cached, what each scorer said.
fn row(stack: &Stack, label: &str, answered: &Answered) -> Vec<String> {
    let decision = stack.decision(&answered.id).unwrap_or_default();
    let explanation = &decision["profiles"][0]["explanation"];
    let names: Vec<&str> =
        explanation["scorers"].as_array().into_iter().flatten().filter_map(|s| s["name"].as_str()).collect();
    let candidates: Vec<&Value> = explanation["candidates"].as_array().into_iter().flatten().collect();
    let chosen = candidates.iter().find(|c| c["endpoint"] == answered.endpoint.as_str());
    let values: BTreeMap<&str, f64> = chosen
        .and_then(|c| c["values"].as_array())
        .map(|values| names.iter().copied().zip(values.iter().filter_map(Value::as_f64)).collect())
        .unwrap_or_default();
    let value = |name: &str| values.get(name).map_or_else(|| "-".to_owned(), |v| format!("{v:.2}"));
    let total = |c: &Value| c["total"].as_f64().unwrap_or(0.0);
    let other =
        candidates.iter().filter(|c| c["endpoint"] != answered.endpoint.as_str()).map(|c| total(c)).reduce(f64::max);
    vec![
        label.to_owned(),
        answered.endpoint.clone(),
        answered.prompt_tokens.to_string(),
        answered.cached_tokens.to_string(),
        value("prefix-cache-scorer"),
        value("load-aware-scorer"),
        chosen.map_or_else(|| "-".to_owned(), |c| format!("{:.2}", total(c))),
        other.map_or_else(|| "-".to_owned(), |v| format!("{v:.2}")),
    ]
}

async fn chat(proxy: SocketAddr, messages: Value) -> anyhow::Result<Answered> {
    post(proxy, "/v1/chat/completions", &json!({ "model": MODEL, "messages": messages, "max_tokens": 12 })).await
}

async fn post(proxy: SocketAddr, path: &str, body: &Value) -> anyhow::Result<Answered> {
    let id = uuid::Uuid::from_u128(fastrand::u128(..)).to_string();
    let request = Request::builder()
        .method(Method::POST)
        .uri(path)
        .header("host", proxy.to_string())
        .header("content-type", "application/json")
        .header("x-request-id", &id)
        .body(Full::new(Bytes::from(body.to_string())))?;
    let response = client::send(proxy, request).await.context("the proxy did not answer")?;
    let status = response.status();
    let endpoint = response.headers().get("x-sim-endpoint").and_then(|v| v.to_str().ok()).unwrap_or("?").to_owned();
    let bytes = response.into_body().collect().await?.to_bytes();
    anyhow::ensure!(status.is_success(), "{path} was answered with {status}: {}", String::from_utf8_lossy(&bytes));
    let answer: Value = serde_json::from_slice(&bytes).context("the answer is not JSON")?;
    let usage = &answer["usage"];
    let choice = &answer["choices"][0];
    Ok(Answered {
        id,
        endpoint,
        prompt_tokens: usage["prompt_tokens"].as_u64().unwrap_or(0),
        cached_tokens: usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or(0),
        text: choice["message"]["content"].as_str().unwrap_or_default().to_owned(),
    })
}
