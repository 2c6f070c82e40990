//! Bodies and what surrounds them: nothing is lost, changed, or held back, in either direction.

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, Request};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Incoming;
use pointsman::domain::Outcome;
use pointsman::sim::client;
use pointsman::sim::server;
use std::convert::Infallible;
use std::time::Duration;
use tokio::sync::mpsc;

use crate::stack::{self, Answer, MODEL, Setup, Stack, both, completion, quick, sims, until, within};

const ECHO: (&str, &str) = ("x-sim-echo", "1");

/// A completion whose prompt fills the body up to `size` bytes, without two equal kilobytes.
fn large(size: usize) -> String {
    let frame = completion("").len();
    let mut prompt: String = (0..).map(|i: u32| format!("{i:07} ")).take((size - frame).div_ceil(8)).collect();
    prompt.truncate(size - frame);
    completion(&prompt)
}

fn arrived(answer: &Answer, body: &[u8], what: &str) {
    assert_eq!(answer.status, 200, "{what}: {answer:?}");
    assert_eq!(answer.json()["body_bytes"], body.len(), "{what}");
    let hash = format!("{:016x}", twox_hash::XxHash64::oneshot(0, body));
    assert_eq!(answer.json()["body_xxh64"], hash.as_str(), "{what}");
}

/// what the model server gets is what the client sent, byte by byte.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn request_bodies_arrive_unchanged() {
    /// gzip of `{"model":"test/model","prompt":"Hello"}`.
    const GZIP: &[u8] = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03\xab\x56\xca\xcd\x4f\x49\xcd\x51\xb2\x52\x2a\x49\x2d\x2e\xd1\x87\x70\x74\x94\x0a\x8a\xf2\x73\x0b\x4a\x80\xa2\x1e\xa9\x39\x39\xf9\x4a\xb5\x00\xbc\xf5\x90\xb7\x27\x00\x00\x00";
    let servers = sims(&["one"]).await;
    for setup in both(&servers) {
        let name = format!("{:?}", setup.bootstrap.variant);
        let stack = Stack::start(setup).await;
        for size in [200, 62_000, 62_001, 1 << 20, 20 << 20] {
            let body = Bytes::from(large(size));
            assert_eq!(body.len(), size);
            let answer = stack.post("/v1/completions", &[ECHO], body.clone()).await;
            arrived(&answer, &body, &format!("{name}, {size} bytes"));
            // Envoy drops the length in duplex mode and frames the body anew; two framings would be a fault.
            assert_eq!(answer.echoed("content-length"), Vec::<String>::new(), "{name}");
            assert_eq!(answer.echoed("transfer-encoding"), ["chunked"], "{name}");
        }
        // An encoded body is not read, so the rewrite that is asked for cannot be done either.
        let headers = [ECHO, ("content-encoding", "gzip"), ("x-llm-d-model-name-rewrite", "other")];
        let answer = stack.post("/v1/completions", &headers, GZIP).await;
        arrived(&answer, GZIP, &format!("{name}, gzip"));
        assert_eq!(answer.echoed("content-encoding"), ["gzip"]);
        // Without a body nobody invents one.
        let bodyless = Request::post("/v1/completions").header("content-length", "0").header(ECHO.0, ECHO.1);
        let answer = stack.send(bodyless.body(Full::new(Bytes::new())).unwrap()).await;
        arrived(&answer, b"", &format!("{name}, content-length: 0"));
        let answer = stack.get("/v1/models", &[ECHO]).await;
        arrived(&answer, b"", &format!("{name}, GET"));
        assert_eq!(answer.echoed("content-length"), Vec::<String>::new(), "{name}");
        assert_eq!(answer.echoed("transfer-encoding"), Vec::<String>::new(), "{name}");
        stack.finish(&[(Outcome::Completed, 8)]).await;
    }
}

/// a chunked upload that ends with trailers is routed, and the trailers arrive.
///
/// Variant B cannot be held to it: with a retry policy, Envoy 1.40 sends the body twice when ext_proc
/// gives it back and trailers follow (envoyproxy/envoy#45470), whatever the picker does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn request_trailers_end_the_request_and_arrive() {
    let servers = sims(&["one"]).await;
    let stack = Stack::start(Setup::a(&servers)).await;
    for size in [200, 200_000] {
        let body = Bytes::from(large(size));
        let mut trailers = HeaderMap::new();
        trailers.insert("x-checksum", "abc".parse().unwrap());
        let mut frames: Vec<Result<Frame<Bytes>, Infallible>> =
            body.chunks(50_000).map(|chunk| Ok(Frame::data(body.slice_ref(chunk)))).collect();
        frames.push(Ok(Frame::trailers(trailers)));
        let request = Request::post("/v1/completions")
            .header(ECHO.0, ECHO.1)
            .header("content-type", "application/json")
            .header("trailer", "x-checksum")
            .body(StreamBody::new(stream::iter(frames)))
            .unwrap();
        let answer = stack.send(request).await;
        arrived(&answer, &body, &format!("{size} bytes"));
        assert_eq!(answer.echoed_trailer("x-checksum"), ["abc"]);
    }
    stack.finish(&[(Outcome::Completed, 2)]).await;
}

/// answers come back with every header, every byte and their trailers, whole and streamed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_arrive_unchanged() {
    let servers = sims(&["one"]).await;
    servers[0].set_fault(|faults| faults.set_cookies = true);
    for setup in both(&servers) {
        let variant = setup.bootstrap.variant;
        let stack = Stack::start(setup).await;
        for stream in [false, true] {
            let ask = serde_json::json!({"model": MODEL, "prompt": "Hello", "max_tokens": 20, "stream": stream});
            let headers = [("te", "trailers"), ("x-sim-trailers", "1")];
            let answer = stack.post("/v1/completions", &headers, ask.to_string()).await;
            let direct = client::send(servers[0].address, stack::post("/v1/completions", &headers, ask.to_string()));
            let direct = Answer::read(direct.await.unwrap()).await;
            assert_eq!(answer.status, 200, "{variant:?} {answer:?}");
            let cookies: Vec<_> = answer.headers.get_all("set-cookie").iter().collect();
            assert_eq!(cookies, ["sim-a=1; Path=/", "sim-b=2; Path=/"], "{variant:?}");
            assert_eq!(answer.trailers["x-sim-trailer"], "one", "{variant:?}, stream {stream}");
            assert_eq!(same(&answer), same(&direct), "{variant:?}, stream {stream}");
            assert_eq!(answer.header("content-type"), direct.header("content-type"));
            assert_eq!(answer.header("x-went-into-resp-headers"), "");
        }
        let missing = stack.get("/no/such/path", &[]).await;
        assert_eq!((missing.status, missing.endpoint()), (404, "one"));
        stack.finish(&[(Outcome::Completed, 2), (Outcome::UpstreamError, 1)]).await;
    }
}

/// The text of an answer without what differs between two answers of one server: ids, times, cache hits.
fn same(answer: &Answer) -> String {
    let mut text = answer.text();
    for (before, after) in [("\"id\":\"", '"'), ("\"created\":", ','), ("\"cached_tokens\":", '}')] {
        let mut cut = String::new();
        let mut rest = text.as_str();
        while let Some((head, tail)) = rest.split_once(before) {
            cut.push_str(head);
            rest = tail.find(after).map_or("", |end| &tail[end..]);
        }
        text = cut + rest;
    }
    text
}

/// Events of a stream up to (and with) the `n`-th.
async fn events(body: &mut Incoming, n: usize) -> String {
    let mut text = String::new();
    while text.matches("\n\n").count() < n {
        let frame = within("an event", body.frame()).await.expect("the stream goes on").unwrap();
        text.push_str(std::str::from_utf8(&frame.into_data().unwrap()).unwrap());
    }
    text
}

/// A server that would take minutes for a long answer.
async fn slow() -> server::SimHandle {
    let config = server::SimConfig { decode_step: Duration::from_millis(20), num_blocks: 100_000, ..quick("slow") };
    server::start(config, None).await.unwrap()
}

fn endless(prompt: &str) -> String {
    let tokens = 100_000;
    serde_json::json!({"model": MODEL, "prompt": prompt, "stream": true, "max_tokens": tokens, "ignore_eos": true})
        .to_string()
}

/// Events pass one by one, and a client that leaves in the middle frees its place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_pass_event_by_event_and_a_client_may_leave() {
    let server = slow().await;
    for setup in both([&server]) {
        let variant = setup.bootstrap.variant;
        let stack = Stack::start(setup).await;
        let aborted = server.stats().aborted;
        let response = stack.open(stack::post("/v1/completions", &[], endless("Hello"))).await.unwrap();
        assert_eq!(response.status(), 200, "{variant:?}");
        let mut body = response.into_body();
        let first = events(&mut body, 3).await;
        assert!(first.starts_with("data: {"), "{variant:?} {first}");
        // The last event is half an hour away: what was read came while the rest was being made.
        assert_eq!((server.stats().running, server.stats().aborted), (1, aborted), "{variant:?}");
        assert_eq!(stack.in_flight().0, 1, "{variant:?}");
        drop(body);
        stack.idle().await;
        until("the server notices", async || server.stats().running == 0).await;
        assert_eq!(server.stats().aborted, aborted + 1, "{variant:?}");
        stack.finish(&[(Outcome::ClientDisconnect, 1)]).await;
    }
}

/// Clients that leave before the answer has begun, and before the request is complete.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_may_leave_while_they_wait_and_while_they_send() {
    let servers = sims(&["one"]).await;
    servers[0].set_fault(|faults| faults.delay = Duration::from_secs(600));
    for setup in both(&servers) {
        let stack = Stack::start(setup).await;
        let (seen, requests) = (servers[0].stats().connections, servers[0].stats().requests);
        let waiting =
            tokio::spawn(client::send(stack.envoy.address(), stack::post("/v1/completions", &[], completion("Hello"))));
        until("the server has the request", async || servers[0].stats().requests == requests + 1).await;
        assert_eq!(stack.in_flight().0, 1);
        waiting.abort();
        stack.idle().await;

        let (send, mut receive) = mpsc::unbounded_channel::<Bytes>();
        let chunks = stream::poll_fn(move |cx| receive.poll_recv(cx)).map_frames();
        let request = Request::post("/v1/completions").body(StreamBody::new(chunks)).unwrap();
        let sending = tokio::spawn(client::send(stack.envoy.address(), request));
        send.send(Bytes::from(large(100_000)).slice(..50_000)).unwrap();
        let open = async || stack.metrics().await.sum("llm_d_epp_extproc_streams_inflight", &[]);
        until("the picker has the beginning", async || open().await == 1.0).await;
        assert_eq!(stack.in_flight(), (0, 0), "nothing is reserved before the request is complete");
        sending.abort();
        until("the picker gives up", async || open().await == 0.0).await;
        assert_eq!(servers[0].stats().connections, seen + 1, "half a request is not routed");
        stack.finish(&[(Outcome::ClientDisconnect, 2)]).await;
    }
}

trait Frames: futures_core::Stream<Item = Bytes> + Sized {
    fn map_frames(self) -> impl futures_core::Stream<Item = Result<Frame<Bytes>, Infallible>> + Send
    where
        Self: Send,
    {
        futures_util::StreamExt::map(self, |chunk| Ok(Frame::data(chunk)))
    }
}

impl<S: futures_core::Stream<Item = Bytes>> Frames for S {}

/// Envoy answers by itself in the middle of an upload that stalls.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_stalls_is_answered_by_envoy() {
    let servers = sims(&["one"]).await;
    for mut setup in both(&servers) {
        let variant = setup.bootstrap.variant;
        setup.bootstrap.request_timeout = Some(Duration::from_millis(300));
        let stack = Stack::start(setup).await;
        let stalled = stream::iter([Bytes::from_static(b"{\"model\":")]);
        let stalled = futures_util::StreamExt::chain(stalled, stream::pending()).map_frames();
        let answer = stack.send(Request::post("/v1/completions").body(StreamBody::new(stalled)).unwrap()).await;
        assert_eq!(answer.status, 408, "{variant:?} {answer:?}");
        let answer = stack.post("/v1/completions", &[], completion("Hello")).await;
        assert_eq!(answer.status, 200, "{variant:?}");
        stack.finish(&[(Outcome::Completed, 1), (Outcome::LocalReply, 1)]).await;
    }
}
