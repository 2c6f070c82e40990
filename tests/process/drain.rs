//! SIGTERM under load.

use std::time::Duration;

use tonic_health::pb::health_check_response::ServingStatus;

use super::client::{Call, request_body, request_headers, response_body, response_headers};
use super::harness::{Folder, Picker, until};
use super::health::check;

const BODY: &str =
    r#"{"model":"m","prompt":"a prompt that is longer than one block of sixteen tokens, or so one hopes"}"#;
const OUTCOME: &str = "llm_d_epp_request_outcome_total";

/// Where a stream is when the signal comes.
#[derive(Clone, Copy, Debug)]
enum Phase {
    HalfSent,
    Routed,
    MidResponse,
}

async fn bring_to(call: &mut Call, phase: Phase) {
    if let Phase::HalfSent = phase {
        call.send(request_headers(&[]));
        call.send(request_body(&BODY[..40], false));
        return;
    }
    call.request(&[], BODY).await.unwrap();
    if let Phase::MidResponse = phase {
        call.send(response_headers("200", "text/event-stream"));
        call.send(response_body("data: {\"a\":1}\n\n", false));
        call.answer().await;
        call.answer().await;
    }
}

async fn finish(mut call: Call, phase: Phase) {
    if let Phase::HalfSent = phase {
        call.send(request_body(&BODY[40..], true));
        assert_eq!(call.routed().await.unwrap().body, BODY.as_bytes());
    }
    if let Phase::HalfSent | Phase::Routed = phase {
        call.send(response_headers("200", "text/event-stream"));
    }
    call.send(response_body("data: [DONE]\n\n", true));
    assert_eq!(call.responded().await, b"data: [DONE]\n\n");
    call.finish().await;
}

async fn open_streams(picker: &Picker, count: usize) -> Vec<(Call, Phase)> {
    // Four connections, as a proxy with four workers has.
    let mut channels = Vec::new();
    for _ in 0..4 {
        channels.push(picker.plain().await);
    }
    let mut calls = Vec::new();
    for i in 0..count {
        let phase = [Phase::HalfSent, Phase::Routed, Phase::MidResponse][i % 3];
        let mut call = Call::open(&channels[i % 4]).await.unwrap();
        bring_to(&mut call, phase).await;
        calls.push((call, phase));
    }
    until("all streams are open", async || {
        picker.metric("llm_d_epp_extproc_streams_inflight").await == Some(count as f64)
    })
    .await;
    calls
}

fn outcomes(lines: &[String], outcome: &str) -> usize {
    let wanted = format!("\"outcome\":\"{outcome}\"");
    lines.iter().filter(|l| l.contains("\"msg\":\"request\"") && l.contains(&wanted)).count()
}

const ARGS: [&str; 3] = ["--secure-serving=false", "--drain-timeout=1s", "--enable-grpc-stream-metrics"];

#[tokio::test]
async fn two_hundred_open_streams_finish() {
    let folder = Folder::usual();
    let picker = Picker::start(&folder, &ARGS).await;
    let health = picker.health().await;
    let late = picker.plain().await;
    let mut calls = open_streams(&picker, 200).await;
    picker.signal("TERM").await;
    until("readiness goes", async || check(&health, "readiness").await == ServingStatus::NotServing).await;
    // While the drain time runs, what data planes still send is served: on an old connection and on a
    // new one.
    for channel in [late, picker.plain().await] {
        let mut call = Call::open(&channel).await.unwrap();
        call.request(&[], BODY).await.unwrap();
        finish(call, Phase::Routed).await;
    }
    assert_eq!(picker.metric(&format!("{OUTCOME}{{outcome=\"completed\"}}")).await, Some(2.0));
    // Half of them end within the drain time, half in the grace after it.
    let rest = calls.split_off(100);
    for (call, phase) in calls {
        finish(call, phase).await;
    }
    picker.log.with(&["waiting for open streams"]).await;
    until("no new connection is taken", async || tokio::net::TcpStream::connect(picker.grpc).await.is_err()).await;
    assert_eq!(check(&health, "liveness").await, ServingStatus::Serving);
    let mut last = tokio::task::JoinSet::new();
    for (call, phase) in rest {
        last.spawn(finish(call, phase));
    }
    // `finish` reads each stream to its trailers: nothing may be lost when the process goes right
    // after the last one.
    while let Some(finished) = last.join_next().await {
        finished.unwrap();
    }
    let (status, lines) = picker.ended().await;
    assert_eq!(status.code(), Some(0));
    assert!(lines.iter().any(|l| l.contains("\"msg\":\"stopped\"") && l.contains("\"forced\":0")), "{lines:#?}");
    assert_eq!(outcomes(&lines, "completed"), 202);
    assert!(!lines.iter().any(|l| l.contains("\"level\":\"error\"") || l.contains("panic")), "{lines:#?}");
}

#[tokio::test]
async fn what_does_not_finish_is_cut_after_the_grace() {
    let folder = Folder::usual();
    let picker = Picker::start(&folder, &[&ARGS[..], &["--shutdown-grace=500ms"]].concat()).await;
    let calls = open_streams(&picker, 30).await;
    let begun = tokio::time::Instant::now();
    picker.signal("TERM").await;
    let mut refused = 0;
    for (mut call, phase) in calls {
        // Something is said to each: an immediate answer where that is still allowed, or a status.
        match call.next().await {
            Ok(Some(message)) => {
                assert!(matches!(phase, Phase::HalfSent), "{phase:?}: {message:?}");
                let text = format!("{message:?}");
                assert!(text.contains("ImmediateResponse") && text.contains("rejected-shutting-down"), "{text}");
                refused += 1;
            }
            Ok(None) => assert!(matches!(phase, Phase::Routed), "{phase:?} ends OK"),
            Err(status) => assert_eq!(status.code(), tonic::Code::Unavailable, "{phase:?}: {status}"),
        }
    }
    let (status, lines) = picker.ended().await;
    assert_eq!(status.code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert_eq!(refused, 10, "{}", lines.join("\n"));
    assert!(lines.iter().any(|l| l.contains("\"forced\":30")), "{lines:#?}");
    assert_eq!(lines.iter().filter(|l| l.contains("\"msg\":\"request\"")).count(), 30);
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let folder = Folder::usual();
    let picker =
        Picker::start(&folder, &["--secure-serving=false", "--drain-timeout=20s", "--enable-grpc-stream-metrics"])
            .await;
    let calls = open_streams(&picker, 3).await;
    let begun = tokio::time::Instant::now();
    picker.signal("TERM").await;
    picker.log.with(&["stopping: not ready any more"]).await;
    picker.signal("INT").await;
    let (status, lines) = picker.ended().await;
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    assert_eq!(status.code(), Some(1), "{}", lines.join("\n"));
    assert!(lines.iter().any(|l| l.contains("a second signal (SIGINT)")));
    drop(calls);
}

#[tokio::test]
async fn what_was_queued_last_is_written_before_the_process_goes() {
    let folder = Folder::usual();
    let picker = Picker::start(&folder, &["--secure-serving=false", "--drain-timeout=0s"]).await;
    // A peer that takes little at a time: most of the answer waits in the process when the stream ends.
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{}", picker.grpc))
        .unwrap()
        .initial_stream_window_size(65_535)
        .initial_connection_window_size(65_535)
        .connect()
        .await
        .unwrap();
    let mut call = Call::open(&channel).await.unwrap();
    call.request(&[], BODY).await.unwrap();
    picker.signal("TERM").await;
    picker.log.with(&["waiting for open streams"]).await;
    let answer = vec![b'x'; 600_000];
    call.send(response_headers("200", "text/plain"));
    call.send(response_body(answer.clone(), true));
    call.half_close();
    picker.log.with(&["\"msg\":\"request\"", "\"outcome\":\"completed\""]).await;
    assert!(call.responded().await == answer, "the whole answer arrives");
    call.finish().await;
    assert_eq!(picker.ended().await.0.code(), Some(0));
}
