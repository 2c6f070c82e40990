//! A data plane's side of ext_proc over the generated client, for tests that include this file.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::collections::BTreeMap;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use pointsman::pb::envoy::config::core::v3 as core;
use pointsman::pb::envoy::service::ext_proc::v3 as wire;
use pointsman::pb::envoy::service::ext_proc::v3::external_processor_client::ExternalProcessorClient;
use tokio::sync::mpsc;
use tonic::transport::Channel;
use wire::processing_request::Request;
use wire::processing_response::Response;

/// The longest that any answer may take. Generous, because the machine may be busy; tests that hang
/// still end.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A call in progress.
pub struct Call {
    to: Option<mpsc::UnboundedSender<wire::ProcessingRequest>>,
    from: tonic::Streaming<wire::ProcessingResponse>,
}

struct Outbound(mpsc::UnboundedReceiver<wire::ProcessingRequest>);

impl Stream for Outbound {
    type Item = wire::ProcessingRequest;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<Option<Self::Item>> {
        self.0.poll_recv(cx)
    }
}

/// What came back for a whole request.
#[derive(Debug, Default)]
pub struct Routed {
    pub destination: String,
    /// Headers that were set, the destination among them.
    pub set_headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

/// An answer in the place of the request.
#[derive(Debug)]
pub struct Refused {
    pub status: i32,
    pub body: String,
}

impl Call {
    pub async fn open(channel: &Channel) -> Result<Self, tonic::Status> {
        let (to, receiver) = mpsc::unbounded_channel();
        let mut client = ExternalProcessorClient::new(channel.clone()).max_decoding_message_size(usize::MAX);
        let from = client.process(Outbound(receiver)).await?.into_inner();
        Ok(Self { to: Some(to), from })
    }

    /// Sends; a stream that the server has ended takes nothing, which the next read shows.
    pub fn send(&self, request: Request) {
        let first = matches!(request, Request::RequestHeaders(_));
        self.send_message(wire::ProcessingRequest {
            request: Some(request),
            protocol_config: first.then(|| wire::ProtocolConfiguration {
                request_body_mode: 4,
                response_body_mode: 4,
                ..Default::default()
            }),
            ..Default::default()
        });
    }

    pub fn send_message(&self, message: wire::ProcessingRequest) {
        let _ = self.to.as_ref().expect("not half-closed").send(message);
    }

    pub fn half_close(&mut self) {
        self.to = None;
    }

    pub async fn next(&mut self) -> Result<Option<wire::ProcessingResponse>, tonic::Status> {
        tokio::time::timeout(PATIENCE, self.from.message()).await.expect("an answer in time")
    }

    /// The next answer, which must come.
    pub async fn answer(&mut self) -> Response {
        let message = self.next().await.expect("no error").expect("an answer");
        message.response.expect("an answer that says something")
    }

    /// Sends a whole request and reads until its body is given back or it is refused.
    pub async fn request(&mut self, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Result<Routed, Refused> {
        self.send(request_headers(headers));
        self.send(request_body(body.into(), true));
        self.routed().await
    }

    /// Reads the answers to a whole request.
    pub async fn routed(&mut self) -> Result<Routed, Refused> {
        let mut routed = Routed::default();
        loop {
            match self.answer().await {
                Response::RequestHeaders(answer) => {
                    routed.set_headers = set_headers(&answer);
                    routed.destination =
                        routed.set_headers.get("x-gateway-destination-endpoint").cloned().unwrap_or_default();
                }
                Response::RequestBody(answer) => {
                    let (piece, end) = streamed(answer);
                    routed.body.extend_from_slice(&piece);
                    if end {
                        return Ok(routed);
                    }
                }
                Response::ImmediateResponse(refused) => {
                    return Err(Refused {
                        status: refused.status.unwrap_or_default().code,
                        body: String::from_utf8(refused.body.to_vec()).expect("R-19: text"),
                    });
                }
                other => panic!("unexpected {other:?}"),
            }
        }
    }

    /// Passes a whole response of the model server and returns its body as given back.
    pub async fn response(&mut self, status: &str, content_type: &str, chunks: &[&[u8]]) -> Vec<u8> {
        self.send(response_headers(status, content_type));
        for (i, chunk) in chunks.iter().enumerate() {
            self.send(response_body(Bytes::copy_from_slice(chunk), i + 1 == chunks.len()));
        }
        self.responded().await
    }

    /// Reads the answers to a whole response.
    pub async fn responded(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        loop {
            match self.answer().await {
                Response::ResponseHeaders(_) => {}
                Response::ResponseBody(answer) => {
                    let (piece, end) = streamed(answer);
                    body.extend_from_slice(&piece);
                    if end {
                        return body;
                    }
                }
                other => panic!("unexpected {other:?}"),
            }
        }
    }

    /// Half-closes and reads to the end of the stream, which must be OK.
    pub async fn finish(mut self) {
        self.half_close();
        assert!(self.next().await.expect("the stream ends OK").is_none(), "nothing after the end");
    }
}

fn set_headers(answer: &wire::HeadersResponse) -> BTreeMap<String, String> {
    let set = answer.response.iter().flat_map(|r| &r.header_mutation).flat_map(|m| &m.set_headers);
    let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
    set.flat_map(|option| &option.header).map(|h| (text(&h.key), text(&h.raw_value))).collect()
}

fn streamed(answer: wire::BodyResponse) -> (Bytes, bool) {
    match answer.response.and_then(|r| r.body_mutation).and_then(|m| m.mutation) {
        Some(wire::body_mutation::Mutation::StreamedResponse(piece)) => (piece.body, piece.end_of_stream),
        other => panic!("not a streamed body: {other:?}"),
    }
}

fn header_map(entries: &[(&str, &str)]) -> Option<core::HeaderMap> {
    let headers = entries.iter().map(|(name, value)| core::HeaderValue {
        key: Bytes::copy_from_slice(name.as_bytes()),
        raw_value: Bytes::copy_from_slice(value.as_bytes()),
        ..Default::default()
    });
    Some(core::HeaderMap { headers: headers.collect() })
}

pub fn request_headers(extra: &[(&str, &str)]) -> Request {
    let mut all = vec![(":method", "POST"), (":path", "/v1/completions"), ("content-type", "application/json")];
    for (name, value) in extra {
        match all.iter_mut().find(|(known, _)| known == name) {
            Some(entry) => entry.1 = value,
            None => all.push((name, value)),
        }
    }
    Request::RequestHeaders(wire::HttpHeaders { headers: header_map(&all), end_of_stream: false })
}

pub fn request_body(body: impl Into<Bytes>, end_of_stream: bool) -> Request {
    Request::RequestBody(wire::HttpBody { body: body.into(), end_of_stream })
}

pub fn response_headers(status: &str, content_type: &str) -> Request {
    let all = [(":status", status), ("content-type", content_type)];
    Request::ResponseHeaders(wire::HttpHeaders { headers: header_map(&all), end_of_stream: false })
}

pub fn response_body(body: impl Into<Bytes>, end_of_stream: bool) -> Request {
    Request::ResponseBody(wire::HttpBody { body: body.into(), end_of_stream })
}
