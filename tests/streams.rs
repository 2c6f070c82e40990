//! Many ext_proc streams that end anywhere, and bodies that nobody should send, against the whole
//! picker over loopback.

#[path = "shared/app.rs"]
mod app;
#[path = "shared/client.rs"]
mod client;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use app::{Running, until};
use bytes::Bytes;
use client::{Call, Refused, Routed, request_body, request_headers, response_body, response_headers};
use pointsman::config::Settings;
use pointsman::pb::envoy::service::ext_proc::v3 as wire;
use tonic::transport::Channel;

const PATIENCE: Duration = Duration::from_secs(30);

/// Panics of anybody in this process.
static PANICS: AtomicUsize = AtomicUsize::new(0);

fn count_panics() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        PANICS.fetch_add(1, Ordering::SeqCst);
        before(info);
    }));
}

/// Eight endpoints that nothing can reach; choice by prefix and by work in flight.
async fn picker(change: impl FnOnce(&mut Settings)) -> Running {
    let endpoints: Vec<SocketAddr> = (1..=8).map(|n| SocketAddr::from(([192, 0, 2, n], 8000))).collect();
    app::start(
        "- {type: approx-prefix-cache-producer, parameters: {autoTune: false, blockSizeTokens: 16}}\n\
         - {type: prefix-cache-scorer}\n\
         - {type: active-request-scorer}\n\
         - {type: inflight-load-producer, parameters: {addEstimatedOutputTokens: true}}",
        "  - {pluginRef: prefix-cache-scorer}\n  - {pluginRef: active-request-scorer}",
        &endpoints,
        change,
    )
    .await
}

/// A completion request; some prompts have a common beginning.
fn body(rng: &mut fastrand::Rng, long: bool) -> Bytes {
    let shared = "You are a helpful assistant. ".repeat(rng.usize(0..40));
    let own: String = (0..rng.usize(0..400)).map(|_| rng.alphanumeric()).collect();
    let filler = if long { "a".repeat(1_200_000) } else { String::new() };
    format!(r#"{{"model":"m{}","prompt":"{shared}{own}{filler}","stream":true}}"#, rng.u32(0..3)).into()
}

/// How far a stream goes before it is dropped.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Until {
    Nothing,
    Headers,
    HalfBody,
    WholeBody,
    // From here on the server has answered, so it has certainly seen the stream.
    HeadersAnswered,
    Destination,
    Routed,
    RoutedOnly,
    ResponseHeaders,
    FirstChunk,
    WholeResponse,
    Ended,
}

const ALL: [Until; 12] = [
    Until::Nothing,
    Until::Headers,
    Until::HalfBody,
    Until::WholeBody,
    Until::HeadersAnswered,
    Until::Destination,
    Until::Routed,
    Until::RoutedOnly,
    Until::ResponseHeaders,
    Until::FirstChunk,
    Until::WholeResponse,
    Until::Ended,
];

/// Whether the server must have seen the stream.
fn is_sure(end: Until) -> bool {
    !matches!(end, Until::Nothing | Until::Headers | Until::HalfBody | Until::WholeBody)
}

async fn one(channel: &Channel, end: Until, rng: &mut fastrand::Rng) {
    let mut call = Call::open(channel).await.unwrap();
    if end == Until::Nothing {
        return;
    }
    if end == Until::HeadersAnswered {
        // A data plane in BUFFERED mode, which is the one that gets an answer to headers alone.
        let mut message = wire::ProcessingRequest { request: Some(request_headers(&[])), ..Default::default() };
        message.protocol_config =
            Some(wire::ProtocolConfiguration { request_body_mode: 2, response_body_mode: 2, ..Default::default() });
        call.send_message(message);
        call.answer().await;
        return;
    }
    let long = rng.u32(0..1000) == 0;
    let body = body(rng, long);
    let headers = request_headers(&[("x-llm-d-inference-fairness-id", ["a", "b"][rng.usize(0..2)])]);
    match end {
        // A data plane that tells no modes may have no response phase.
        Until::RoutedOnly => {
            call.send_message(wire::ProcessingRequest { request: Some(headers), ..Default::default() })
        }
        _ => call.send(headers),
    }
    if end == Until::Headers {
        return;
    }
    let cut = rng.usize(0..=body.len());
    call.send(request_body(body.slice(..cut), false));
    for _ in 0..rng.u32(0..4) {
        tokio::task::yield_now().await;
    }
    if end == Until::HalfBody {
        return;
    }
    call.send(request_body(body.slice(cut..), true));
    match end {
        Until::WholeBody => return,
        Until::Destination => {
            call.answer().await;
            return;
        }
        _ => {}
    }
    let routed = call.routed().await.unwrap();
    assert!(routed.destination.starts_with("192.0.2.") && routed.body == body, "{end:?}: {}", routed.destination);
    match end {
        Until::Routed => return,
        Until::RoutedOnly => return call.finish().await,
        _ => {}
    }
    call.send(response_headers(["200", "500"][rng.usize(0..2)], "text/event-stream"));
    if end == Until::ResponseHeaders {
        return;
    }
    call.send(response_body("data: {\"choices\":[{\"text\":\"a\"}]}\n\n", false));
    call.answer().await;
    if end == Until::FirstChunk {
        return;
    }
    let usage = "data: {\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":2}}\n\ndata: [DONE]\n\n";
    call.send(response_body(usage, true));
    assert!(call.responded().await.ends_with(b"data: [DONE]\n\n"));
    if end == Until::Ended {
        call.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_streams_cancelled_anywhere_leave_nothing_behind() {
    const SURE: u64 = 10_000;
    const AT_ONCE: u64 = 400;
    count_panics();
    let begun = tokio::time::Instant::now();
    let picker = picker(|_| {}).await;
    let mut channels = Vec::new();
    for _ in 0..4 {
        channels.push(picker.connect().await);
    }
    let channels = Arc::new(channels);

    // Well-behaved requests on the same connections, all the time.
    let stopping = Arc::new(AtomicBool::new(false));
    let polite: Vec<_> = (0..channels.len())
        .map(|i| {
            let (channels, stopping) = (Arc::clone(&channels), Arc::clone(&stopping));
            tokio::spawn(async move {
                let mut rng = fastrand::Rng::with_seed(77 + i as u64);
                let mut count = 0;
                while !stopping.load(Ordering::SeqCst) {
                    one(&channels[i], Until::Ended, &mut rng).await;
                    count += 1;
                }
                count
            })
        })
        .collect();

    let (next, unsure) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let workers: Vec<_> = (0..AT_ONCE)
        .map(|worker| {
            let (channels, next, unsure) = (Arc::clone(&channels), Arc::clone(&next), Arc::clone(&unsure));
            tokio::spawn(async move {
                let mut rng = fastrand::Rng::with_seed(worker);
                loop {
                    let end = ALL[rng.usize(0..ALL.len())];
                    if !is_sure(end) {
                        unsure.fetch_add(1, Ordering::SeqCst);
                    } else if next.fetch_add(1, Ordering::SeqCst) >= SURE {
                        return;
                    }
                    one(&channels[rng.usize(0..channels.len())], end, &mut rng).await;
                }
            })
        })
        .collect();
    for worker in workers {
        worker.await.unwrap();
    }
    stopping.store(true, Ordering::SeqCst);
    let mut polite_count = 0;
    for task in polite {
        polite_count += task.await.unwrap();
    }

    let least = SURE + polite_count;
    let most = least + unsure.load(Ordering::SeqCst);
    until("every stream ends", PATIENCE, || picker.sum("llm_d_epp_extproc_streams_inflight", "") == 0.0).await;
    until("every stream has an outcome", PATIENCE, || picker.outcomes("") >= least).await;
    let (outcomes, streams) = (picker.outcomes(""), picker.sum("llm_d_epp_extproc_streams_total", "") as u64);
    assert_eq!(outcomes, streams, "one outcome per stream that the server saw");
    assert!((least..=most).contains(&outcomes), "{least} <= {outcomes} <= {most}");
    assert_eq!(picker.in_flight(), (0, 0), "requests and tokens in flight");
    assert_eq!(picker.pins(), 0, "prompts pinned in the prefix index");
    assert!(picker.index.as_ref().unwrap().entries() > 0, "prompts were learnt");
    assert_eq!(picker.outcomes("internal-error"), 0);
    assert!(picker.outcomes("client-disconnect") > SURE / 4 && picker.outcomes("routed-only") > SURE / 20);
    assert!(polite_count > 20, "{polite_count}");
    assert_eq!(picker.sum("llm_d_epp_request_running", ""), 0.0);
    assert_eq!(PANICS.load(Ordering::SeqCst), 0);
    picker.stop().await;
    println!("{outcomes} streams in {:?}, {polite_count} of them undisturbed", begun.elapsed());
    // It takes five to ten seconds of two cores; more only where others use them.
    assert!(begun.elapsed() < 4 * PATIENCE, "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_connection_ends_all_of_its_streams() {
    let picker = picker(|_| {}).await;
    let kept = picker.connect().await;
    let mut survivor = Call::open(&kept).await.unwrap();
    survivor.request(&[], r#"{"model":"m","prompt":"p"}"#).await.unwrap();
    let lost = picker.connect().await;
    let mut calls = Vec::new();
    for _ in 0..100 {
        let mut call = Call::open(&lost).await.unwrap();
        call.request(&[], r#"{"model":"m","prompt":"p"}"#).await.unwrap();
        calls.push(call);
    }
    assert_eq!(picker.in_flight().0, 101);
    // The last user of a connection closes it.
    drop(lost);
    drop(calls);
    until("the streams end", PATIENCE, || picker.in_flight().0 == 1).await;
    assert_eq!(picker.outcomes("client-disconnect"), 100);
    assert_eq!(survivor.response("200", "application/json", &[b"{}"]).await, b"{}");
    survivor.finish().await;
    assert_eq!(picker.in_flight(), (0, 0));
    picker.stop().await;
}

async fn send(channel: &Channel, body: impl Into<Bytes>) -> Result<Routed, Refused> {
    let mut call = Call::open(channel).await.unwrap();
    let body = body.into();
    call.send(request_headers(&[]));
    // As Envoy sends it: pieces, then an empty end.
    for start in (0..body.len()).step_by(1 << 18) {
        call.send(request_body(body.slice(start..body.len().min(start + (1 << 18))), false));
    }
    call.send(request_body("", true));
    call.routed().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_nobody_should_send() {
    let picker = picker(|_| {}).await;
    let channel = picker.connect().await;
    let good: &[u8] = br#"{"model":"m","prompt":"the quick brown fox","n":1}"#;
    let deep = |open: &str, close: &str| {
        format!(r#"{{"model":"m","prompt":{}1{}}}"#, open.repeat(400_000), close.repeat(400_000))
    };

    let mut refused: Vec<(String, Bytes)> = vec![
        ("empty".into(), Bytes::new()),
        ("text".into(), "no healthy upstream".into()),
        ("null".into(), "null".into()),
        ("a list".into(), "[1,2]".into()),
        ("two documents".into(), "{\"model\":\"m\",\"prompt\":\"p\"}{}".into()),
        ("trailing garbage".into(), "{\"model\":\"m\",\"prompt\":\"p\"}x".into()),
        ("trailing comma".into(), "{\"model\":\"m\",\"prompt\":\"p\",}".into()),
        ("no model".into(), "{\"prompt\":\"p\"}".into()),
        ("model is a number".into(), "{\"model\":5,\"prompt\":\"p\"}".into()),
        ("model is null".into(), "{\"model\":null,\"prompt\":\"p\"}".into()),
        ("model is a list".into(), "{\"model\":[\"m\"],\"prompt\":\"p\"}".into()),
        ("not UTF-8 in the model".into(), Bytes::from_static(b"{\"model\":\"\xff\xfe\",\"prompt\":\"p\"}")),
        ("not UTF-8 in the prompt".into(), Bytes::from_static(b"{\"model\":\"m\",\"prompt\":\"\xc3\x28\"}")),
        ("a lone surrogate in the model".into(), "{\"model\":\"\\ud800\",\"prompt\":\"p\"}".into()),
        ("a control character".into(), Bytes::from_static(b"{\"model\":\"m\n\",\"prompt\":\"p\"}")),
        ("prompt is a number".into(), r#"{"model":"m","prompt":5}"#.into()),
        ("prompt is an object".into(), r#"{"model":"m","prompt":{"a":[null]}}"#.into()),
        ("prompt is a mixed list".into(), r#"{"model":"m","prompt":["a",1,null,[2,"b"]]}"#.into()),
        ("token ids beyond 64 bits".into(), r#"{"model":"m","prompt":[99999999999999999999999999,-1,1e400]}"#.into()),
        ("duplicate prompts".into(), r#"{"model":"m","prompt":"p","prompt":["q"],"prompt":7}"#.into()),
        ("deep lists".into(), deep("[", "]").into()),
        ("deep objects".into(), deep("{\"a\":", "}").into()),
        ("open lists".into(), "[".repeat(1_000_000).into()),
    ];
    // Every prefix of a good request is a bad one.
    refused.extend((0..good.len()).map(|n| (format!("cut after {n}"), Bytes::copy_from_slice(&good[..n]))));
    for (what, body) in refused {
        match send(&channel, body).await {
            Err(answer) => assert!(
                answer.status == 400 && answer.body.starts_with("inference error: BadRequest"),
                "{what}: {answer:?}"
            ),
            Ok(routed) => panic!("{what} was routed to {}", routed.destination),
        }
    }
    // What the model server must judge is passed on unchanged.
    for (what, body) in [
        ("good", Bytes::from_static(good)),
        ("stream is text", r#"{"model":"m","prompt":"p","stream":"yes"}"#.into()),
        ("max_tokens is negative", r#"{"model":"m","prompt":"p","max_tokens":-5}"#.into()),
        ("max_tokens is huge", r#"{"model":"m","prompt":"p","max_tokens":1e300}"#.into()),
        ("duplicate models", r#"{"model":"m","prompt":"p","model":"n"}"#.into()),
    ] {
        match send(&channel, body.clone()).await {
            Ok(routed) => assert!(routed.body == body, "{what}: bytes changed"),
            Err(answer) => panic!("{what}: {answer:?}"),
        }
    }
    until("nothing stays", PATIENCE, || picker.in_flight() == (0, 0) && picker.pins() == 0).await;
    assert_eq!(picker.outcomes("internal-error"), 0);
    picker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_largest_body_passes_and_one_byte_more_does_not() {
    const LIMIT: usize = 64 << 20;
    let picker = picker(|_| {}).await;
    let channel = picker.connect().await;
    let (head, tail) = (r#"{"model":"m","prompt":""#, r#""}"#);
    let mut largest = head.as_bytes().to_vec();
    largest.resize(LIMIT - tail.len(), b'a');
    largest.extend_from_slice(tail.as_bytes());
    let largest = Bytes::from(largest);
    assert_eq!(largest.len(), LIMIT);
    let routed = send(&channel, largest.clone()).await.unwrap();
    assert!(routed.body == largest && !routed.destination.is_empty());
    // Others are not held up meanwhile, nor by one that is refused.
    let larger = Bytes::from([&largest[..], b" "].concat());
    let refused = tokio::spawn({
        let channel = channel.clone();
        async move { send(&channel, larger).await.unwrap_err() }
    });
    send(&channel, r#"{"model":"m","prompt":"p"}"#).await.unwrap();
    assert_eq!(refused.await.unwrap().status, 413);
    until("nothing stays", PATIENCE, || picker.in_flight() == (0, 0) && picker.pins() == 0).await;
    picker.stop().await;
}
