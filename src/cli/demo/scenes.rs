//! What the demo sends, and what it shows of each answer.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
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
use crate::cli::explain;
use crate::sim::client;

/// The beginning of every system prompt.
const SYSTEM: &str = "You are a careful assistant of a travel agency. Answer in one short sentence. Never invent \
    a place, a price or a timetable; when you are not sure, say so and ask one question back. Use the names of places \
    as the people who live there write them, and give distances in kilometres and temperatures in degrees Celsius. Do \
    not recommend flights where a train takes less than five hours. Mention visas only when the traveller asks for them.";

const FRANCE: &str = "What is the capital of France?";
const GERMANY: &str = "What is the capital of Germany?";
const QUANTUM: &str = "Tell me about quantum computing.";

/// Requests at the same time in the mixed part.
const AT_ONCE: usize = 16;

/// Every how many of the mixed requests has a long document.
const DOCUMENT_EVERY: u32 = 12;

/// [`SYSTEM`] and what such a prompt is really made of: about 2000 tokens, a tenth of a second of prefill here.
/// What takes a few milliseconds would count as equal, cached or not.
fn system() -> String {
    format!("{SYSTEM}{}", timetable("Train", 120))
}

/// Text of `lines` lines, about 16 tokens each.
fn timetable(what: &str, lines: u32) -> String {
    (1..=lines).fold(String::new(), |mut text, i| {
        let (hour, minute, platform, takes) = (5 + i / 8, i * 7 % 60, 1 + i % 9, 20 + i * 13 % 200);
        // Writing to a String cannot fail.
        let _ =
            write!(text, " {what} {i} leaves at {hour}:{minute:02} from platform {platform}, takes {takes} minutes.");
        text
    })
}

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
    let system = json!({ "role": "system", "content": system() });
    let user = |text: &str| json!({ "role": "user", "content": text });
    let mut rows = Vec::new();
    let (mut first, mut second) = (None, None);
    for (label, question) in
        [("1 capital of France?", FRANCE), ("2 capital of Germany?", GERMANY), ("3 quantum computing", QUANTUM)]
    {
        let answered = chat(stack.proxy(), json!([system, user(question)])).await?;
        rows.push(cost_row(stack, label, &answered));
        match (&first, &second) {
            (None, _) => first = Some(answered),
            (_, None) => second = Some(answered),
            _ => {}
        }
    }
    let (first, second) = first.zip(second).context("no answers")?;
    let grown = json!([
        system,
        user(FRANCE),
        { "role": "assistant", "content": first.text },
        user("And how many people live there?"),
    ]);
    let answered = chat(stack.proxy(), grown).await?;
    rows.push(cost_row(stack, "4 = 1 + a second question", &answered));
    show_costs(out, "behind one system prompt", &rows)?;
    writeln!(out, "\n    why request 2 went there, as `pointsman explain {}` prints it:\n", second.id)?;
    explained(out, &stack.decision(&second.id).context("the decision on request 2 was not kept")?)
}

/// What `pointsman explain` prints.
fn explained(out: &mut dyn Write, decision: &Value) -> anyhow::Result<()> {
    for line in explain::text(decision, 0).lines() {
        writeln!(out, "{}", format!("    {line}").trim_end())?;
    }
    out.flush()?;
    Ok(())
}

/// A conversation of several turns, each holding all turns before it.
pub async fn conversation(stack: &Stack, out: &mut dyn Write) -> anyhow::Result<()> {
    let mut messages = vec![json!({ "role": "system", "content": format!("Session of a gardener. {}", system()) })];
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
        rows.push(cost_row(stack, &format!("turn {}", turn + 1), &answered));
    }
    show_costs(out, "a session of four turns", &rows)
}

/// The questions alone, as completions, to a picker that goes by scores.
pub async fn raw_questions(stack: &Stack, out: &mut dyn Write) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    for (label, question) in
        [("1 capital of France?", FRANCE), ("2 capital of Germany?", GERMANY), ("3 quantum computing", QUANTUM)]
    {
        let body = json!({ "model": MODEL, "prompt": question, "max_tokens": 8, "stream": true });
        let answered = post(stack.proxy(), "/v1/completions", &body).await?;
        rows.push(score_row(stack, label, &answered));
    }
    show_scores(out, "raw, blocks of 4 tokens", &rows)
}

/// `count` requests of twelve tenants with a system prompt each, some at the same time, and long documents between
/// them.
pub async fn mixed(stack: &Stack, servers: &Servers, count: u32, out: &mut dyn Write) -> anyhow::Result<()> {
    let before: Vec<_> = servers.iter().map(|s| s.stats()).collect();
    let slots = Arc::new(Semaphore::new(AT_ONCE));
    let mut tasks = JoinSet::new();
    let proxy = stack.proxy();
    for i in 0..count {
        let slot = Arc::clone(&slots).acquire_owned().await?;
        let tenant = i * 7 % 12;
        let messages = if i % DOCUMENT_EVERY == DOCUMENT_EVERY - 1 {
            json!([{ "role": "user", "content": format!("Sum up document {i}:{}", timetable("Ship", 400)) }])
        } else {
            json!([
                { "role": "system", "content": format!("Rules of tenant {tenant}. {}", system()) },
                { "role": "user", "content": format!("Question {i}: what should a visitor see on day {}?", i % 5) },
            ])
        };
        tasks.spawn(async move {
            let answered = chat(proxy, messages).await;
            drop(slot);
            answered
        });
    }
    let mut tokens = (0u64, 0u64);
    let mut ids = BTreeSet::new();
    while let Some(done) = tasks.join_next().await {
        let answered = done??;
        tokens.0 += answered.prompt_tokens;
        tokens.1 += answered.cached_tokens;
        ids.insert(answered.id);
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
    let decisions: Vec<Value> =
        stack.decisions().into_iter().filter(|d| d["requestId"].as_str().is_some_and(|id| ids.contains(id))).collect();
    let held = |d: &Value| d["heldMs"].as_f64().unwrap_or(0.0);
    let waited: Vec<f64> = decisions.iter().map(held).filter(|ms| *ms > 0.0).collect();
    writeln!(
        out,
        "    {} of {} waited in the picker until a server was free, the longest {:.0} ms",
        waited.len(),
        decisions.len(),
        waited.iter().copied().fold(0.0, f64::max)
    )?;
    // The one that waited longest, here or for what was before it at its server.
    let wait = |d: &Value| cost(d, None).map_or(0.0, |cost| cost.term("wait"));
    let order = |a: &&Value, b: &&Value| held(a).total_cmp(&held(b)).then_with(|| wait(a).total_cmp(&wait(b)));
    if let Some(decision) = decisions.iter().max_by(order) {
        writeln!(out, "    why the one that waited longest went where it went:\n")?;
        explained(out, decision)?;
    }
    Ok(())
}

fn percent(part: u64, whole: u64) -> String {
    format!("{:.0} %", 100.0 * part as f64 / whole.max(1) as f64)
}

fn show_costs(out: &mut dyn Write, title: &str, rows: &[Vec<String>]) -> anyhow::Result<()> {
    writeln!(out, "\n    {title} (costs in ms):")?;
    let header =
        ["request", "endpoint", "prompt", "cached", "own prefill", "wait", "cost to others", "cost", "best other"];
    table::print(out, &header, rows)?;
    out.flush()?;
    Ok(())
}

fn show_scores(out: &mut dyn Write, title: &str, rows: &[Vec<String>]) -> anyhow::Result<()> {
    writeln!(out, "\n    {title}:")?;
    let header = [
        "request",
        "endpoint",
        "prompt",
        "cached",
        "prefix-cache-scorer ×2",
        "load-aware-scorer ×1",
        "total",
        "best other",
    ];
    table::print(out, &header, rows)?;
    out.flush()?;
    Ok(())
}

/// What a request was believed to cost at one candidate, in seconds.
struct Cost {
    terms: BTreeMap<String, f64>,
    all: f64,
    best_other: Option<f64>,
}

impl Cost {
    fn term(&self, name: &str) -> f64 {
        self.terms.get(name).copied().unwrap_or(0.0)
    }
}

/// The cost at `endpoint`, or at the one that was picked.
fn cost(decision: &Value, endpoint: Option<&str>) -> Option<Cost> {
    let profile = &decision["profiles"][0];
    let endpoint = endpoint.or_else(|| profile["picked"][0]["endpoint"].as_str())?;
    let why = &profile["explanation"];
    let terms = why["costs"]["terms"].as_array()?;
    let candidates = why["candidates"].as_array()?;
    let (chosen, others): (Vec<&Value>, Vec<&Value>) = candidates.iter().partition(|c| c["endpoint"] == endpoint);
    let chosen = chosen.first()?;
    let values = chosen["costs"].as_array()?.iter().map(|v| v.as_f64().unwrap_or(0.0));
    Some(Cost {
        terms: terms.iter().filter_map(|t| t.as_str().map(str::to_owned)).zip(values).collect(),
        all: chosen["cost"].as_f64()?,
        best_other: others.iter().filter_map(|c| c["cost"].as_f64()).reduce(f64::min),
    })
}

/// The row of one request: where it went, what the server had cached, what that cost.
fn cost_row(stack: &Stack, label: &str, answered: &Answered) -> Vec<String> {
    let decision = stack.decision(&answered.id).unwrap_or_default();
    let cost = cost(&decision, Some(&answered.endpoint));
    let ms = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |s| format!("{:.1}", s * 1e3));
    let own = cost.as_ref().map(|c| c.term("prefill"));
    let wait = cost.as_ref().map(|c| c.term("wait"));
    let all = cost.as_ref().map(|c| c.all);
    vec![
        label.to_owned(),
        answered.endpoint.clone(),
        answered.prompt_tokens.to_string(),
        answered.cached_tokens.to_string(),
        ms(own),
        ms(wait),
        ms(all.zip(own).zip(wait).map(|((all, own), wait)| all - own - wait)),
        ms(all),
        ms(cost.and_then(|c| c.best_other)),
    ]
}

/// The row of one request: where it went, what the server had cached, what each scorer said.
fn score_row(stack: &Stack, label: &str, answered: &Answered) -> Vec<String> {
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
    post(
        proxy,
        "/v1/chat/completions",
        &json!({ "model": MODEL, "messages": messages, "max_tokens": 12, "stream": true }),
    )
    .await
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
    let (mut text, mut usage) = (String::new(), Value::Null);
    for event in String::from_utf8_lossy(&bytes).lines().filter_map(|line| line.strip_prefix("data: ")) {
        if event == "[DONE]" {
            break;
        }
        let mut event: Value = serde_json::from_str(event).context("an event of the answer is not JSON")?;
        text.push_str(event["choices"][0]["delta"]["content"].as_str().unwrap_or_default());
        if event["usage"].is_object() {
            usage = event["usage"].take();
        }
    }
    Ok(Answered {
        id,
        endpoint,
        prompt_tokens: usage["prompt_tokens"].as_u64().unwrap_or(0),
        cached_tokens: usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or(0),
        text,
    })
}
