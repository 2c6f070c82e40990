//! The simulated model server over real sockets.
//!
//! A paused clock jumps whenever all tasks wait, and waiting for a socket counts: these tests use
//! time that never comes (steps of an hour) instead, but where the jump is wanted. The timing model
//! itself is tested in `sim::engine`, which has no sockets.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::stream;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use pointsman::sim::client;
use pointsman::sim::server::{self, Faults, MetricsFault, SimConfig, SimHandle};
use serde_json::{Value, json};

async fn sim(config: SimConfig) -> SimHandle {
    server::start(config, None).await.unwrap()
}

fn instant() -> SimConfig {
    SimConfig { time_scale: 0.0, ..SimConfig::default() }
}

async fn post(sim: &SimHandle, path: &str, body: &Value) -> (u16, Value) {
    let (status, body) = client::post(sim.address, path, body.to_string()).await.unwrap();
    (status.as_u16(), serde_json::from_slice(&body).unwrap())
}

async fn send(sim: &SimHandle, path: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Response<Incoming> {
    let request = headers.iter().fold(Request::post(path), |request, (name, value)| request.header(*name, *value));
    client::send(sim.address, request.body(Full::new(body.into())).unwrap()).await.unwrap()
}

async fn text(response: Response<Incoming>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

/// The `data:` lines of a stream, and its `event:` names.
async fn events(sim: &SimHandle, path: &str, body: &Value) -> (Vec<String>, Vec<Value>) {
    let response = send(sim, path, &[("content-type", "application/json")], body.to_string()).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
    let text = text(response).await;
    let names = text.lines().filter_map(|l| l.strip_prefix("event: ")).map(str::to_owned).collect();
    let data = text.lines().filter_map(|l| l.strip_prefix("data: "));
    (names, data.map(|d| serde_json::from_str(d).unwrap_or_else(|_| d.into())).collect())
}

async fn metric(sim: &SimHandle, name: &str) -> f64 {
    let (status, page) = client::get(sim.address, &format!("/metrics?name[]={name}")).await.unwrap();
    assert_eq!(status, 200);
    let page = String::from_utf8(page.to_vec()).unwrap();
    let line = page.lines().find(|l| l.starts_with(&format!("{name}{{"))).unwrap_or_else(|| panic!("{name}: {page}"));
    line.rsplit_once(' ').unwrap().1.parse().unwrap()
}

#[tokio::test]
async fn usage_is_the_same_streamed_or_whole_in_every_api() {
    let messages =
        json!([{"role": "system", "content": "You are brief. ".repeat(20)}, {"role": "user", "content": "hi"}]);
    // Path, body, where the usage is (whole), names of its prompt, cached and answer counts.
    let cases = [
        (
            "/v1/completions",
            json!({"prompt": "one two three ".repeat(20)}),
            "/usage",
            "prompt_tokens",
            "completion_tokens",
        ),
        ("/v1/chat/completions", json!({"messages": messages}), "/usage", "prompt_tokens", "completion_tokens"),
        ("/v1/responses", json!({"input": messages}), "/usage", "input_tokens", "output_tokens"),
        ("/inference/v1/generate", json!({"token_ids": vec![7; 70]}), "/usage", "prompt_tokens", "completion_tokens"),
        ("/generate", json!({"text": "one two three ".repeat(20)}), "/meta_info", "prompt_tokens", "completion_tokens"),
    ];
    for (path, mut body, place, prompt_name, answer_name) in cases {
        let sim = sim(SimConfig { name: "here".to_owned(), ..instant() }).await;
        for limit in ["max_tokens", "max_output_tokens"] {
            body[limit] = 5.into();
        }
        body["sampling_params"] = json!({"max_tokens": 5, "max_new_tokens": 5});
        let (status, whole) = post(&sim, path, &body).await;
        assert_eq!(status, 200, "{path}: {whole}");
        let usage = whole.pointer(place).unwrap();
        let cached = |usage: &Value| {
            let details = ["prompt_tokens_details", "input_tokens_details"].iter().find_map(|d| usage.get(*d));
            details.unwrap_or(usage)["cached_tokens"].as_u64().unwrap()
        };
        let prompt = usage[prompt_name].as_u64().unwrap();
        assert!(prompt >= 64, "{path}: {usage}");
        assert_eq!((cached(usage), usage[answer_name].as_u64()), (0, Some(5)), "{path}");

        body["stream"] = true.into();
        body["stream_options"] = json!({"include_usage": true});
        let (_, data) = events(&sim, path, &body).await;
        if path != "/v1/responses" {
            assert_eq!(data.last().unwrap(), "[DONE]", "{path}");
        }
        let streamed =
            data.iter().rev().find_map(|d| match d.pointer(place).or_else(|| d.pointer("/response/usage")) {
                Some(Value::Null) | None => None,
                found => found,
            });
        let streamed = streamed.unwrap_or_else(|| panic!("{path}: {data:?}"));
        assert_eq!((streamed[prompt_name].as_u64(), streamed[answer_name].as_u64()), (Some(prompt), Some(5)), "{path}");
        // All full blocks but at least one token less than the prompt.
        assert_eq!(cached(streamed), (prompt - 1) / 16 * 16, "{path}");
        let stats = sim.stats();
        assert_eq!((stats.requests, stats.finished, stats.generated_tokens, stats.running), (2, 2, 10, 0), "{path}");
        assert_eq!(stats.prompt_tokens, 2 * prompt);
    }
}

#[tokio::test]
async fn anthropic_streams_name_their_events_and_count_the_cache_apart() {
    let sim = sim(instant()).await;
    let body = json!({"model": "m", "max_tokens": 3, "system": "Be brief. ".repeat(20), "messages": [{"role": "user", "content": "hi"}]});
    let (_, count) = post(&sim, "/v1/messages/count_tokens", &body).await;
    let (_, whole) = post(&sim, "/v1/messages", &body).await;
    assert_eq!(whole["usage"]["input_tokens"], count["input_tokens"]);
    assert_eq!((&whole["stop_reason"], &whole["usage"]["output_tokens"]), (&"max_tokens".into(), &3.into()));
    let mut streamed = body.clone();
    streamed["stream"] = true.into();
    let (names, data) = events(&sim, "/v1/messages", &streamed).await;
    let delta = "content_block_delta";
    assert_eq!(
        names,
        [
            "message_start",
            "content_block_start",
            delta,
            delta,
            delta,
            "content_block_stop",
            "message_delta",
            "message_stop"
        ]
    );
    let usage = &data[0]["message"]["usage"];
    let (fresh, cached) = (usage["input_tokens"].as_u64().unwrap(), usage["cache_read_input_tokens"].as_u64().unwrap());
    assert_eq!(Some(fresh + cached), count["input_tokens"].as_u64());
    assert!(cached >= 48);
    assert_eq!(data[6]["usage"]["output_tokens"], 3);
    let text: String = data.iter().filter_map(|d| d["delta"]["text"].as_str()).collect();
    assert_eq!(whole["content"][0]["text"], text);
}

#[tokio::test]
async fn the_second_turn_finds_prompt_and_answer_of_the_first() {
    let sim = sim(instant()).await;
    let system = json!({"role": "system", "content": "You are a helpful assistant. ".repeat(10)});
    let question = json!({"role": "user", "content": "Why?"});
    let first = json!({"messages": [system, question], "max_tokens": 40, "ignore_eos": true});
    let (_, answer) = post(&sim, "/v1/chat/completions", &first).await;
    let told = &answer["choices"][0]["message"];
    let second = json!({"messages": [system, question, told, {"role": "user", "content": "And?"}], "max_tokens": 1});
    let (_, answer_2) = post(&sim, "/v1/chat/completions", &second).await;
    let first_tokens = answer["usage"]["total_tokens"].as_u64().unwrap();
    let cached = answer_2["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    // But for the newest token and what does not fill a block.
    assert_eq!(cached, (first_tokens - 2) / 16 * 16);
    // Another server has nothing, but the same words.
    let other = self::sim(instant()).await;
    let (_, elsewhere) = post(&other, "/v1/chat/completions", &first).await;
    assert_eq!(elsewhere["choices"], answer["choices"]);
    assert_eq!(elsewhere["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
}

#[tokio::test]
async fn a_full_cache_forgets_the_tail_of_the_oldest_prompt_first() {
    let sim = sim(SimConfig { num_blocks: 20, block_size: 4, ..instant() }).await;
    let prompt = |c: &str, blocks: usize| json!({"prompt": c.repeat(blocks * 16 + 4), "max_tokens": 1});
    let cached = async |c: &str, blocks: usize| {
        post(&sim, "/v1/completions", &prompt(c, blocks)).await.1["usage"]["prompt_tokens_details"]["cached_tokens"]
            .as_u64()
    };
    cached("a", 8).await;
    cached("b", 8).await;
    // 9 + 9 of 20 blocks were used; nine more took the last 2 and 7 of a's 9. The question after b
    // takes one more of a's, for the token behind b's full blocks.
    cached("c", 8).await;
    assert_eq!(cached("b", 8).await, Some(32));
    assert_eq!(cached("a", 8).await, Some(4));
    sim.clear_cache();
    assert_eq!(cached("a", 8).await, Some(0));
}

#[tokio::test]
async fn load_shows_on_the_page_and_goes_with_the_clients() {
    let sim = sim(SimConfig {
        max_num_seqs: 2,
        num_blocks: 100,
        prefill_tokens_per_second: 1e12,
        decode_step: Duration::from_secs(3600),
        lora_adapters: vec!["sql".to_owned()],
        ..SimConfig::default()
    })
    .await;
    let body = json!({"model": "sql", "prompt": "x".repeat(16 * 4 * 10), "max_tokens": 30, "stream": true}).to_string();
    let mut streams = Vec::new();
    for _ in 0..5 {
        streams.push(send(&sim, "/v1/completions", &[], body.clone()).await);
    }
    assert_eq!(metric(&sim, "vllm:num_requests_running").await, 2.0);
    assert_eq!(metric(&sim, "vllm:num_requests_waiting").await, 3.0);
    // 9 blocks are shared; each request has a last one and, once it decodes, one more.
    let usage = metric(&sim, "vllm:kv_cache_usage_perc").await;
    assert!((0.11..=0.13).contains(&usage), "{usage}");
    let (_, page) = client::get(sim.address, "/metrics").await.unwrap();
    let page = String::from_utf8(page.to_vec()).unwrap();
    assert!(page.contains("max_lora=\"1\",running_lora_adapters=\"sql\",waiting_lora_adapters=\"sql\"}"));
    assert!(page.len() > 60_000 && page.ends_with('\n'));
    for line in page.lines().filter(|l| !l.starts_with('#')) {
        let (series, value) = line.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().is_ok() && series.starts_with(|c: char| c.is_ascii_lowercase()), "{line}");
    }
    // A client that goes away, running or waiting, frees its place; nobody reads, nothing times out.
    drop(streams.remove(0));
    drop(streams.pop());
    while sim.stats().aborted < 2 {
        tokio::task::yield_now().await;
    }
    assert_eq!((sim.stats().running, sim.stats().waiting), (2, 1));
    drop(streams);
    while sim.stats().running > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!((sim.stats().used_blocks, sim.stats().waiting), (0, 0));
}

#[tokio::test]
async fn a_whole_answer_given_up_by_its_client_frees_its_place_too() {
    let sim = sim(SimConfig { decode_step: Duration::from_secs(3600), ..SimConfig::default() }).await;
    let request = Request::post("/v1/completions").body(Full::new(Bytes::from(r#"{"prompt":"x"}"#))).unwrap();
    let answer = tokio::spawn(client::send(sim.address, request));
    while sim.stats().running == 0 {
        tokio::task::yield_now().await;
    }
    answer.abort();
    while sim.stats().running > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(sim.stats().aborted, 1);
}

#[tokio::test]
async fn several_prompts_and_choices_run_through_a_batch_of_one() {
    let sim = sim(SimConfig { max_num_seqs: 1, ..instant() }).await;
    let mut body = json!({"prompt": ["one", "two", [1, 2, 3]], "n": 2, "max_tokens": 3});
    let (_, whole) = post(&sim, "/v1/completions", &body).await;
    assert_eq!(whole["choices"].as_array().unwrap().len(), 6);
    assert_eq!((&whole["usage"]["prompt_tokens"], &whole["usage"]["completion_tokens"]), (&10.into(), &18.into()));
    body["stream"] = true.into();
    let (_, data) = events(&sim, "/v1/completions", &body).await;
    let text = |index: u64| -> String {
        let chunks = data.iter().filter_map(|d| d["choices"].get(0)).filter(|c| c["index"] == index);
        chunks.filter_map(|c| c["text"].as_str()).collect()
    };
    for (index, choice) in (0..).zip(whole["choices"].as_array().unwrap()) {
        assert_eq!(choice["text"], text(index));
    }
    let ends = data.iter().filter(|d| d["choices"][0]["finish_reason"] == "length").count();
    assert_eq!((ends, sim.stats().running), (6, 0));
    let (_, embeddings) = post(&sim, "/v1/embeddings", &json!({"input": ["a b c d", "e"]})).await;
    assert_eq!((embeddings["data"].as_array().unwrap().len(), &embeddings["usage"]["prompt_tokens"]), (2, &3.into()));
}

#[tokio::test]
async fn echo_tells_what_arrived() {
    let sim = sim(SimConfig { name: "echoing".to_owned(), ..instant() }).await;
    // Looks like gzip, is not JSON, and is none of the server's business.
    let body: Bytes = [0x1f, 0x8b, 0x08, 0x00, 0xff].repeat(100_000).into();
    let headers = [("content-encoding", "gzip"), ("x-two", "1"), ("x-sim-echo", "1"), ("x-two", "2")];
    let response = send(&sim, "/v1/chat/completions?a=b", &headers, body.clone()).await;
    assert_eq!(response.headers()["x-sim-endpoint"], "echoing");
    let echo: Value = serde_json::from_str(&text(response).await).unwrap();
    assert_eq!((&echo["method"], &echo["path"]), (&"POST".into(), &"/v1/chat/completions?a=b".into()));
    assert_eq!((&echo["endpoint"], &echo["body_bytes"]), (&"echoing".into(), &500_000.into()));
    assert_eq!(echo["body_xxh64"], format!("{:016x}", twox_hash::XxHash64::oneshot(0, &body)));
    let twos: Vec<&Value> =
        echo["headers"].as_array().unwrap().iter().filter(|h| h[0] == "x-two").map(|h| &h[1]).collect();
    assert_eq!(twos, ["1", "2"]);
    assert_eq!(echo["trailers"], json!([]));
    assert_eq!((sim.stats().echoes, sim.stats().requests), (1, 0));
}

#[tokio::test]
async fn trailers_go_both_ways() {
    let sim = sim(SimConfig { name: "t".to_owned(), ..instant() }).await;
    let mut trailers = HeaderMap::new();
    trailers.insert("x-checksum", "abc".parse().unwrap());
    let frames = vec![Frame::data(Bytes::from("{}")), Frame::trailers(trailers)];
    let body = StreamBody::new(stream::iter(frames.into_iter().map(Ok::<_, std::io::Error>)));
    let request =
        Request::post("/echo").header("trailer", "x-checksum").header("te", "trailers").header("x-sim-trailers", "1");
    let response = client::send(sim.address, request.body(body).unwrap()).await.unwrap();
    let collected = response.into_body().collect().await.unwrap();
    assert_eq!(collected.trailers().unwrap()["x-sim-trailer"], "t");
    let echo: Value = serde_json::from_slice(&collected.to_bytes()).unwrap();
    assert_eq!(echo["trailers"], json!([["x-checksum", "abc"]]));
}

#[tokio::test]
async fn metrics_faults_are_what_they_say() {
    let sim = sim(instant()).await;
    let get = async || {
        let request = Request::get("/metrics").body(Full::new(Bytes::new())).unwrap();
        client::send(sim.address, request).await.unwrap()
    };
    let fault = |fault| sim.set_fault(|f| f.metrics = fault);
    fault(MetricsFault::Html);
    assert!(text(get().await).await.contains("<html>"));
    fault(MetricsFault::Status(500));
    assert_eq!(get().await.status(), 500);
    fault(MetricsFault::NaN);
    assert!(metric(&sim, "vllm:num_requests_waiting").await.is_nan());
    fault(MetricsFault::Half);
    assert!(get().await.into_body().collect().await.is_err());
    fault(MetricsFault::Endless);
    let mut body = get().await.into_body();
    let mut read = 0;
    while read < 3_000_000 {
        read += body.frame().await.unwrap().unwrap().into_data().unwrap().len();
    }
    drop(body);
    fault(MetricsFault::Hang);
    assert!(tokio::time::timeout(Duration::from_millis(50), get()).await.is_err());
    sim.clear_faults();
    assert_eq!(sim.faults(), Faults::default());
    assert_eq!(metric(&sim, "vllm:num_requests_waiting").await, 0.0);
}

#[tokio::test]
async fn answers_fail_as_told() {
    let sim = sim(instant()).await;
    let ask = async |stream: bool| {
        let body = json!({"prompt": "x", "max_tokens": 10, "stream": stream}).to_string();
        send(&sim, "/v1/completions", &[], body).await
    };
    sim.set_fault(|f| (f.status, f.set_cookies) = (Some(429), true));
    let response = ask(false).await;
    assert_eq!(response.status(), 429);
    assert_eq!(response.headers().get_all("set-cookie").iter().count(), 2);
    sim.set_fault(|f| *f = Faults { die_after_chunks: Some(3), ..Faults::default() });
    let mut body = ask(true).await.into_body();
    let mut text = String::new();
    let error = loop {
        match body.frame().await {
            Some(Ok(frame)) => text.push_str(std::str::from_utf8(&frame.into_data().unwrap()).unwrap()),
            end => break end,
        }
    };
    assert!(matches!(error, Some(Err(_))));
    assert_eq!(text.matches("data: ").count(), 3);
    assert!(ask(false).await.into_body().collect().await.is_err());
}

#[tokio::test]
async fn a_dead_pod_refuses_and_comes_back_at_the_same_address() {
    let sim = sim(SimConfig { decode_step: Duration::from_secs(3600), ..SimConfig::default() }).await;
    let mut open = send(&sim, "/v1/completions", &[], r#"{"prompt":"x","stream":true}"#).await.into_body();
    open.frame().await.unwrap().unwrap();
    sim.set_fault(|f| f.refuse = true);
    sim.listening(false).await;
    assert!(client::get(sim.address, "/health").await.is_err());
    assert!(open.frame().await.unwrap().is_err());
    sim.clear_faults();
    sim.listening(true).await;
    assert_eq!(client::get(sim.address, "/health").await.unwrap().0, 200);
}

#[tokio::test(start_paused = true)]
async fn stopping_lets_short_answers_end_and_breaks_long_ones_off() {
    let server = sim(SimConfig { decode_step: Duration::from_secs(1), ..SimConfig::default() }).await;
    let ask = |tokens: u32| {
        let body = json!({"prompt": "x", "max_tokens": tokens, "ignore_eos": true, "stream": true}).to_string();
        send(&server, "/v1/completions", &[], body)
    };
    let (short, long) = (ask(3).await, ask(2000).await);
    let (short, long, ()) = tokio::join!(short.into_body().collect(), long.into_body().collect(), server.stop());
    assert!(short.is_ok() && long.is_err());
    assert!(client::get(server.address, "/health").await.is_err());
}

#[tokio::test]
async fn wrong_requests_are_answered_in_json() {
    let sim = sim(SimConfig { strict_model: true, max_model_len: Some(64), max_body: 4096, ..instant() }).await;
    for (path, body, status) in [
        ("/v1/nothing", json!({}), 404),
        ("/v1/completions", json!({}), 400),
        ("/v1/completions", json!({"prompt": "x", "model": "other"}), 404),
        ("/v1/completions", json!({"prompt": "x".repeat(256)}), 400),
        ("/v1/completions", json!({"prompt": "x".repeat(5000)}), 413),
        ("/v1/messages", json!({"messages": []}), 400),
    ] {
        let (got, answer) = post(&sim, path, &body).await;
        assert_eq!(got, status, "{path}: {answer}");
        assert!(answer["error"]["message"].is_string(), "{answer}");
    }
    let (status, _) = client::get(sim.address, "/v1/completions").await.unwrap();
    assert_eq!(status, 405);
    let (_, models) = client::get(sim.address, "/v1/models").await.unwrap();
    let models: Value = serde_json::from_slice(&models).unwrap();
    assert_eq!((&models["data"][0]["id"], &models["data"][0]["max_model_len"]), (&"sim/model".into(), &64.into()));
}

#[tokio::test]
async fn a_configuration_out_of_range_is_refused() {
    for config in [
        SimConfig { block_size: 0, ..instant() },
        SimConfig { max_num_seqs: 0, ..instant() },
        SimConfig { time_scale: f64::NAN, ..instant() },
        SimConfig { prefill_tokens_per_second: 0.0, ..instant() },
        SimConfig { name: "a\nb".to_owned(), ..instant() },
    ] {
        let error = server::start(config, None).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
    }
}

#[tokio::test]
async fn hundreds_run_in_one_process() {
    let sims = join_all((0..200).map(|i| sim(SimConfig { name: format!("sim-{i}"), ..instant() }))).await;
    let answers = join_all(sims.iter().map(|s| async {
        let (status, _) = post(s, "/v1/completions", &json!({"prompt": "x", "max_tokens": 2})).await;
        let (_, page) = client::get(s.address, "/metrics").await.unwrap();
        (status, page.len() > 60_000)
    }))
    .await;
    assert!(answers.iter().all(|a| *a == (200, true)));
    join_all(sims.iter().map(SimHandle::stop)).await;
}
