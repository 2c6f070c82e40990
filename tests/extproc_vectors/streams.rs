//! The service under what a vector cannot show: panics, disconnects in masses, limits, compression, drain.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use pointsman::domain::Outcome;
use pointsman::extproc::Settings;
use pointsman::pb::envoy::service::ext_proc::v3 as wire;
use pointsman::pb::envoy::service::ext_proc::v3::external_processor_client::ExternalProcessorClient;
use tonic::codec::CompressionEncoding;
use tonic::{Code, Status};

use super::harness::{Call, Given, In, Lab, describe_wire, lab, to_wire};
use super::{BODY, DUPLEX, answer, chunk, get, large, local, post, post_with, upstream};

/// Sends in order; the first message carries the modes.
fn send(call: &Call, inputs: &[In]) {
    for input in inputs {
        let first = matches!(input, In::H(..));
        call.send(to_wire(input, &DUPLEX, first).expect("a message"));
    }
}

async fn replies(call: &mut Call, count: usize) -> Vec<String> {
    let mut given = Given::default();
    let mut said = Vec::new();
    for _ in 0..count {
        let response = call.next().await.expect("an answer").expect("the stream goes on");
        said.push(describe_wire(&response, &mut given));
    }
    said
}

/// Reads to the end of the stream.
async fn rest(call: &mut Call) -> (Vec<String>, Result<(), Status>) {
    let mut given = Given::default();
    let mut said = Vec::new();
    loop {
        match call.next().await {
            Ok(Some(response)) => said.push(describe_wire(&response, &mut given)),
            Ok(None) => return (said, Ok(())),
            Err(status) => return (said, Err(status)),
        }
    }
}

async fn begin(settings: Settings) -> (Lab, Call) {
    let lab = lab(3, settings).await;
    let call = lab.call().await;
    (lab, call)
}

fn ends(lab: &Lab) -> Vec<Outcome> {
    let records = lab.fake.records.lock();
    records.iter().flat_map(|record| record.lock().ends.clone()).collect()
}

const FAILED: &str = "I 500 - inference error: Internal - the endpoint picker failed on this request";

#[tokio::test]
async fn a_panic_in_the_decision_is_a_500_and_touches_no_other_stream() {
    // Once inline, once on a blocking thread.
    for decide_inline_up_to in [1 << 20, 10] {
        let (lab, mut healthy) = begin(Settings { decide_inline_up_to, ..Settings::default() }).await;
        send(&healthy, &[post(), chunk(BODY, true)]);
        replies(&mut healthy, 2).await;
        let mut broken = lab.call().await;
        send(&broken, &[post_with(vec![("x-test", "panic")]), chunk(BODY, true)]);
        let (said, status) = rest(&mut broken).await;
        assert_eq!(said, [FAILED]);
        assert!(status.is_ok(), "an immediate reply is followed by OK");
        send(&healthy, &[upstream("200", "application/json"), answer("{}", true)]);
        assert_eq!(rest(&mut healthy).await.0, ["RH", "RB 2 eos"]);
        lab.settled().await;
        assert_eq!(ends(&lab), [Outcome::Completed, Outcome::InternalError]);
    }
}

#[tokio::test]
async fn a_panic_of_an_observer_does_not_break_the_response() {
    let (lab, mut call) = begin(Settings::default()).await;
    send(&call, &[get()]);
    replies(&mut call, 1).await;
    send(&call, &[In::Rh(vec![(":status", "200"), ("x-test", "panic")], false), answer("{}", true)]);
    let (said, status) = rest(&mut call).await;
    assert_eq!(said, ["RH", "RB 2 eos"]);
    assert!(status.is_ok());
    lab.settled().await;
    assert_eq!(ends(&lab), [Outcome::InternalError]);
}

#[tokio::test]
async fn large_bodies_are_decided_elsewhere_and_come_back_whole() {
    let (lab, mut call) = begin(Settings::default()).await;
    let body = large((1 << 20) + 5);
    send(&call, &[post()]);
    let mut rest_of_body = body.clone();
    while !rest_of_body.is_empty() {
        let piece = rest_of_body.split_to(rest_of_body.len().min(300_000));
        send(&call, &[In::B(piece, rest_of_body.is_empty())]);
    }
    let mut given = Given::default();
    let mut last = String::new();
    for _ in 0..1 + body.len().div_ceil(62_000) {
        last = describe_wire(&call.next().await.expect("an answer").expect("open"), &mut given);
    }
    assert!(last.ends_with("eos"));
    assert!(given.request == body[..]);
    drop(call);
    lab.settled().await;
    assert_eq!(ends(&lab), [Outcome::ClientDisconnect]);
}

#[tokio::test]
async fn a_stream_that_goes_while_its_decision_runs_elsewhere_ends_its_exchange() {
    let (lab, call) = begin(Settings { decide_inline_up_to: 1, ..Settings::default() }).await;
    lab.fake.closed.store(true, Ordering::SeqCst);
    send(&call, &[post_with(vec![("x-test", "wait")]), chunk(BODY, true)]);
    lab.until("the decision begins", || {
        lab.fake.records.lock().first().is_some_and(|record| record.lock().decided == 1)
    })
    .await;
    drop(call);
    lab.until("the stream goes", || lab.service.open_streams() == 0).await;
    assert_eq!(ends(&lab), [], "the exchange is with the decision");
    lab.fake.closed.store(false, Ordering::SeqCst);
    lab.settled().await;
    assert_eq!(ends(&lab), [Outcome::ClientDisconnect]);
}

#[tokio::test]
async fn a_body_above_the_limit_is_refused_before_it_has_ended() {
    let (lab, mut call) = begin(Settings { max_request_body: 100, ..Settings::default() }).await;
    send(&call, &[post(), In::B(Bytes::from(vec![b'x'; 60]), false), In::B(Bytes::from(vec![b'x'; 60]), false)]);
    let (said, status) = rest(&mut call).await;
    assert_eq!(
        said,
        ["I 413 - inference error: PayloadTooLarge - the request exceeds the limit of 100 bytes (--max-request-body)"]
    );
    assert!(status.is_ok());
    lab.settled().await;
    assert_eq!(ends(&lab), [Outcome::Rejected]);
}

#[tokio::test]
async fn a_message_above_the_decode_limit_is_never_a_clean_end() {
    let settings = || Settings { max_message: 1000, ..Settings::default() };
    let big = |end| Bytes::from(vec![b'x'; 5000 + usize::from(end)]);
    // In the request: refused.
    let (lab, mut call) = begin(settings()).await;
    send(&call, &[post(), In::B(big(false), false)]);
    let (said, status) = rest(&mut call).await;
    assert!(said.len() == 1 && said[0].starts_with("I 413 - inference error: PayloadTooLarge"), "{said:?}");
    assert!(status.is_ok());
    lab.settled().await;
    assert_eq!(ends(&lab), [Outcome::Rejected]);
    // As the very first message: nothing was taken and nothing is known, still no clean end.
    let mut call = lab.call().await;
    send(&call, &[In::H(vec![("x-long", Box::leak("y".repeat(5000).into_boxed_str()))], false)]);
    let (said, _) = rest(&mut call).await;
    assert!(said.len() == 1 && said[0].starts_with("I 413"), "{said:?}");
    // In the response: too late to say so, hence a status.
    let (lab, mut call) = begin(settings()).await;
    send(&call, &[get()]);
    replies(&mut call, 1).await;
    send(&call, &[upstream("200", "text/event-stream"), In::Rb(big(true), true)]);
    let (said, status) = rest(&mut call).await;
    assert_eq!(said, ["RH"]);
    assert_eq!(status.expect_err("a status").code(), Code::Internal);
    lab.settled().await;
    assert_eq!(ends(&lab), [Outcome::InternalError]);
}

#[tokio::test]
async fn malformed_metadata_is_refused() {
    let (lab, mut call) = begin(Settings::default()).await;
    let mut request = to_wire(&get(), &DUPLEX, true).expect("a message");
    request.metadata_context = Bytes::from_static(b"\xff\xff\xff");
    call.send(request);
    let (said, status) = rest(&mut call).await;
    assert!(said.len() == 1 && said[0].starts_with("I 500"), "{said:?}");
    assert!(status.is_ok());
    lab.settled().await;
    assert_eq!(ends(&lab), [Outcome::InternalError]);
}

#[tokio::test]
async fn gzip_is_understood_and_unknown_messages_are_skipped() {
    let lab = lab(3, Settings::default()).await;
    let client = ExternalProcessorClient::new(lab.channel.clone()).send_compressed(CompressionEncoding::Gzip);
    let mut call = lab.call_with(client).await;
    send(&call, &[post()]);
    call.send(wire::ProcessingRequest::default());
    send(&call, &[chunk(BODY, true)]);
    assert_eq!(replies(&mut call, 2).await[1], format!("B {} eos", BODY.len()));
}

#[tokio::test]
async fn responses_are_marked_and_extended_when_asked() {
    let (_lab, mut call) = begin(Settings { mark_responses: true, ..Settings::default() }).await;
    send(&call, &[get()]);
    replies(&mut call, 1).await;
    send(&call, &[In::Rh(vec![(":status", "200"), ("x-token", "t")], false)]);
    assert_eq!(replies(&mut call, 1).await, ["RH +x-session-token=t +x-went-into-resp-headers=true"]);
}

#[tokio::test]
async fn out_of_order_messages_end_safely() {
    for (inputs, expected) in [
        (vec![chunk("x", true)], "request body"),
        (vec![In::T], "request trailers"),
        (vec![post(), post()], "request headers"),
        (vec![answer("x", true)], "response body"),
        (vec![In::Rt], "response trailers"),
    ] {
        let (lab, mut call) = begin(Settings::default()).await;
        send(&call, &inputs);
        let (said, status) = rest(&mut call).await;
        assert!(said.len() == 1 && said[0].starts_with("I 500") && said[0].contains(expected), "{said:?}");
        assert!(status.is_ok());
        lab.settled().await;
        assert_eq!(ends(&lab), [Outcome::InternalError]);
    }
    let (_lab, mut call) = begin(Settings::default()).await;
    send(&call, &[get()]);
    replies(&mut call, 1).await;
    send(&call, &[upstream("200", "text/plain"), upstream("200", "text/plain")]);
    let (said, status) = rest(&mut call).await;
    assert_eq!(said, ["RH"]);
    assert_eq!(status.expect_err("no clean end in mid-response").code(), Code::Internal);
}

#[tokio::test]
async fn drain_waits_for_open_streams_then_forces_the_rest_and_refuses_the_new() {
    let mut lab = lab(3, Settings::default()).await;
    let (mut undecided, mut routed, mut responding) = (lab.call().await, lab.call().await, lab.call().await);
    send(&undecided, &[post()]);
    lab.opened(1).await;
    send(&routed, &[get()]);
    replies(&mut routed, 1).await;
    send(&responding, &[get()]);
    replies(&mut responding, 1).await;
    send(&responding, &[upstream("200", "text/event-stream")]);
    replies(&mut responding, 1).await;
    assert_eq!(lab.service.open_streams(), 3);

    let trigger = lab.drain.take().expect("a drain");
    let watcher = trigger.watcher();
    let draining = tokio::spawn(trigger.drain(Duration::from_millis(200)));
    watcher.refusing().await;
    let refusal = "I 503 rejected-shutting-down inference error: ServiceUnavailable - \
                   the endpoint picker is shutting down";
    send(&responding, &[answer("data: 1\n\n", false)]);
    assert_eq!(replies(&mut responding, 1).await, ["RB 9"], "open streams continue");

    assert_eq!(draining.await.expect("drained").forced, 3);
    let mut new = lab.call().await;
    send(&new, &[post()]);
    assert_eq!(rest(&mut new).await.0, [refusal]);
    let (said, status) = rest(&mut undecided).await;
    assert_eq!(said, [refusal]);
    assert!(status.is_ok());
    assert!(rest(&mut routed).await.1.is_ok(), "the response passes without us");
    assert_eq!(rest(&mut responding).await.1.expect_err("cut").code(), Code::Unavailable);
    lab.settled().await;
    // Whether the refused stream got as far as to open an exchange is a matter of which event came first.
    let ended = ends(&lab);
    assert!(matches!(ended.len(), 3 | 4) && ended.iter().all(|o| *o == Outcome::Shutdown), "{ended:?}");
}

#[tokio::test]
async fn a_local_reply_before_the_request_ends_the_stream() {
    let (lab, mut call) = begin(Settings::default()).await;
    call.send(to_wire(&local("401"), &DUPLEX, true).expect("a message"));
    send(&call, &[answer("no", true)]);
    let (said, status) = rest(&mut call).await;
    assert_eq!(said, ["RH", "RB 2 eos"]);
    assert!(status.is_ok());
    lab.settled().await;
    assert_eq!(ends(&lab), [Outcome::LocalReply]);
}

/// Two thousand streams that are dropped anywhere: each exchange ends exactly once, none stays open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_dropped_anywhere_leave_nothing_behind() {
    // One in five decides on a blocking thread.
    let lab = Arc::new(lab(3, Settings { decide_inline_up_to: 100, ..Settings::default() }).await);
    let script = |seed: u64| {
        let body = if seed.is_multiple_of(5) { In::B(large(200), true) } else { chunk(BODY, true) };
        [post(), chunk("", false), body, upstream("200", "text/event-stream"), answer("data", false), answer("", true)]
    };
    let mut rng = fastrand::Rng::with_seed(7);
    for batch in 0..20 {
        let mut tasks = Vec::new();
        for stream in 0..100 {
            let (lab, sent, read, half) = (lab.clone(), rng.usize(..=6), rng.usize(..=4), rng.bool());
            let turns = rng.usize(..80);
            tasks.push(tokio::spawn(async move {
                let mut call = lab.call().await;
                send(&call, &script(batch * 100 + stream)[..sent]);
                if half {
                    call.half_close();
                }
                for _ in 0..read.min([0, 0, 0, 2, 3, 4, 5][sent]) {
                    call.next().await.ok();
                }
                // Time for the server to be anywhere in what was sent.
                for _ in 0..turns {
                    tokio::task::yield_now().await;
                }
            }));
        }
        for task in tasks {
            task.await.expect("a client does not fail");
        }
    }
    lab.settled().await;
    assert_eq!(lab.service.open_streams(), 0);
    let records = lab.fake.records.lock();
    assert!(records.len() > 1000, "most streams sent something: {}", records.len());
    for record in records.iter() {
        let record = record.lock();
        assert_eq!(record.ends.len(), 1, "{record:?}");
        assert!(record.decided <= 1 && record.response_ended <= 1, "{record:?}");
    }
    assert_eq!(lab.fake.ended.load(Ordering::SeqCst), records.len());
}

/// A stream whose request is held, inline and after a decision elsewhere.
async fn held(settings: Settings) -> (Lab, Call) {
    let (lab, call) = begin(settings).await;
    lab.fake.closed.store(true, Ordering::SeqCst);
    send(&call, &[post_with(vec![("x-test", "hold")]), chunk(BODY, true)]);
    lab.until("it is held", || lab.fake.held.load(Ordering::SeqCst) == 1).await;
    (lab, call)
}

fn inline_and_elsewhere() -> [Settings; 2] {
    [1 << 20, 10].map(|decide_inline_up_to| Settings { decide_inline_up_to, ..Settings::default() })
}

#[tokio::test]
async fn a_held_request_is_answered_when_it_may_go() {
    for settings in inline_and_elsewhere() {
        let (lab, mut call) = held(settings).await;
        lab.fake.open_up();
        assert_eq!(replies(&mut call, 2).await.len(), 2);
        send(&call, &[upstream("200", "application/json"), answer("{}", true)]);
        assert_eq!(rest(&mut call).await.0, ["RH", "RB 2 eos"]);
        lab.settled().await;
        assert_eq!(ends(&lab), [Outcome::Completed]);
        assert_eq!(lab.fake.held.load(Ordering::SeqCst), 0);
    }
}

#[tokio::test]
async fn a_held_request_whose_client_leaves_frees_its_place() {
    for settings in inline_and_elsewhere() {
        let (lab, call) = held(settings).await;
        drop(call);
        lab.settled().await;
        assert_eq!(ends(&lab), [Outcome::ClientDisconnect]);
        assert_eq!((lab.fake.held.load(Ordering::SeqCst), lab.record().decided), (0, 0));
    }
}

#[tokio::test]
async fn a_reply_of_the_data_plane_while_held_passes_and_gives_the_place_up() {
    for settings in inline_and_elsewhere() {
        let (lab, mut call) = held(settings).await;
        send(&call, &[local("504"), answer("timeout", true)]);
        assert_eq!(replies(&mut call, 2).await, ["RH", "RB 7 eos"]);
        assert_eq!((lab.fake.held.load(Ordering::SeqCst), lab.record().decided), (0, 0));
        lab.fake.open_up();
        call.half_close();
        let (said, status) = rest(&mut call).await;
        assert!(said.is_empty() && status.is_ok(), "{said:?} {status:?}");
        lab.settled().await;
        assert_eq!(ends(&lab), [Outcome::LocalReply]);
    }
}

#[tokio::test]
async fn a_half_close_while_held_is_answered_all_the_same() {
    for settings in inline_and_elsewhere() {
        let (lab, mut call) = held(settings).await;
        call.half_close();
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(lab.fake.held.load(Ordering::SeqCst), 1);
        lab.fake.open_up();
        let (said, status) = rest(&mut call).await;
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(status.is_ok());
        lab.settled().await;
    }
}

#[tokio::test]
async fn a_held_request_is_refused_when_the_process_waits_no_longer() {
    for half_closed in [false, true] {
        let (mut lab, mut call) = held(Settings::default()).await;
        if half_closed {
            call.half_close();
        }
        lab.drain.take().expect("a drain").drain(Duration::from_millis(50)).await;
        let (said, status) = rest(&mut call).await;
        assert!(said.len() == 1 && said[0].starts_with("I 503"), "{said:?}");
        assert!(status.is_ok());
        lab.settled().await;
        assert_eq!(ends(&lab), [Outcome::Shutdown]);
        assert_eq!(lab.fake.held.load(Ordering::SeqCst), 0);
    }
}
