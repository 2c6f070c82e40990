//! What the picker is compared with: servers that speak ext_proc and decide nothing.
//!
//! *echo*, the floor: ext_proc on tonic's stack with messages whose bodies are `Bytes`, answers made inline, and the
//! picker's listener, threads and allocator; it collects the body, names a fixed destination, gives the body back in
//! the same pieces and passes the response.
//!
//! *edge*: the picker's own edge (its framing and its state machine) with nothing behind it. The echo pays for copies
//! that this edge avoids, so what the picker needs beyond *edge* is the price of picking.
//!
//! *null*: HTTP/2 only. It decodes nothing and answers with frames made beforehand, so it shows what the
//! generator can do.

use std::collections::VecDeque;
use std::future::Future;
use std::net::Ipv4Addr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::wire::{Messages, Seen, request};
use bytes::{BufMut, Bytes, BytesMut};
use futures_core::Stream;
use http::Response;
use hyper::body::Incoming;
use pointsman::admin::health::HealthService;
use pointsman::domain::{Headers, Outcome, Rejection, Served};
use pointsman::extproc::listener::{self, Limits, Serve};
use pointsman::extproc::workers::Workers;
use pointsman::extproc::{
    self, Answers, CompleteRequest, Exchange, Exchanges, ExtProc, ExtProcServer, Route, SetHeader,
};
use pointsman::lifecycle::drain;
use pointsman::lifecycle::ready::Readiness;
use pointsman::pb::envoy::config::core::v3::{HeaderValue, HeaderValueOption};
use pointsman::pb::envoy::service::ext_proc::v3 as wire;
use pointsman::pb::pointsman::wire::v1 as value;
use prost::Message as _;
use smallvec::SmallVec;
use tokio::net::TcpListener;
use tonic::{Status, Streaming};
use tower_service::Service as _;
use wire::external_processor_server::{ExternalProcessor, ExternalProcessorServer};
use wire::processing_request::Request;
use wire::processing_response::Response as Answer;

const DESTINATION: &[u8] = b"x-gateway-destination-endpoint";
const PIECE: usize = 62_000;

/// Where the echo sends everything.
#[derive(Clone)]
struct Echo {
    destination: Bytes,
}

#[tonic::async_trait]
impl ExternalProcessor for Echo {
    type ProcessStream = Echoed;

    async fn process(
        &self,
        request: tonic::Request<Streaming<wire::ProcessingRequest>>,
    ) -> Result<tonic::Response<Echoed>, Status> {
        let inbound = request.into_inner();
        Ok(tonic::Response::new(Echoed {
            destination: self.destination.clone(),
            inbound,
            body: Vec::new(),
            ready: VecDeque::new(),
            over: false,
        }))
    }
}

/// The answers of one stream, made as it is polled.
struct Echoed {
    destination: Bytes,
    inbound: Streaming<wire::ProcessingRequest>,
    body: Vec<Bytes>,
    ready: VecDeque<wire::ProcessingResponse>,
    over: bool,
}

fn answer(response: Answer) -> wire::ProcessingResponse {
    wire::ProcessingResponse { response: Some(response), dynamic_metadata: None }
}

fn streamed(body: Bytes, end_of_stream: bool) -> wire::BodyResponse {
    let streamed = wire::StreamedBodyResponse { body, end_of_stream };
    let mutation = Some(wire::body_mutation::Mutation::StreamedResponse(streamed));
    wire::BodyResponse {
        response: Some(wire::CommonResponse {
            body_mutation: Some(wire::BodyMutation { mutation }),
            ..Default::default()
        }),
    }
}

fn named(key: &'static [u8], kind: value::value::Kind) -> value::Struct {
    let value = Some(value::Value { kind: Some(kind) });
    value::Struct { fields: vec![value::StructEntry { key: Bytes::from_static(key), value }] }
}

fn picked(destination: Bytes, length: usize) -> wire::ProcessingResponse {
    let set = |key: &'static [u8], raw_value| HeaderValueOption {
        header: Some(HeaderValue { key: Bytes::from_static(key), value: Bytes::new(), raw_value }),
    };
    let set_headers = vec![
        set(DESTINATION, destination.clone()),
        set(b"content-length", Bytes::from(length.to_string().into_bytes())),
    ];
    let response = wire::CommonResponse {
        header_mutation: Some(wire::HeaderMutation { set_headers, remove_headers: Vec::new() }),
        clear_route_cache: true,
        ..Default::default()
    };
    let destination = named(DESTINATION, value::value::Kind::StringValue(destination));
    wire::ProcessingResponse {
        response: Some(Answer::RequestHeaders(wire::HeadersResponse { response: Some(response) })),
        dynamic_metadata: Some(named(b"envoy.lb", value::value::Kind::StructValue(destination))),
    }
}

impl Echoed {
    fn received(&mut self, request: Request) {
        match request {
            Request::RequestBody(part) => {
                if !part.body.is_empty() {
                    self.body.push(part.body);
                }
                if part.end_of_stream {
                    let length = self.body.iter().map(Bytes::len).sum();
                    self.ready.push_back(picked(self.destination.clone(), length));
                    let mut pieces = Vec::new();
                    for mut chunk in self.body.drain(..) {
                        while !chunk.is_empty() {
                            pieces.push(chunk.split_to(chunk.len().min(PIECE)));
                        }
                    }
                    let last = pieces.len().saturating_sub(1);
                    for (at, piece) in pieces.into_iter().enumerate() {
                        self.ready.push_back(answer(Answer::RequestBody(streamed(piece, at == last))));
                    }
                }
            }
            Request::ResponseHeaders(_) => {
                let response = Some(wire::CommonResponse::default());
                self.ready.push_back(answer(Answer::ResponseHeaders(wire::HeadersResponse { response })));
            }
            Request::ResponseBody(part) => {
                self.over = part.end_of_stream;
                self.ready.push_back(answer(Answer::ResponseBody(streamed(part.body, part.end_of_stream))));
            }
            _ => {}
        }
    }
}

impl Stream for Echoed {
    type Item = Result<wire::ProcessingResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(ready) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(ready)));
            }
            if self.over {
                return Poll::Ready(None);
            }
            match std::task::ready!(Pin::new(&mut self.inbound).poll_next(cx)) {
                Some(Ok(message)) => {
                    if let Some(request) = message.request {
                        self.received(request);
                    }
                }
                Some(Err(status)) => return Poll::Ready(Some(Err(status))),
                None => return Poll::Ready(None),
            }
        }
    }
}

/// The echo, and gRPC health, which Envoy asks for before it sends anything.
#[derive(Clone)]
struct Service(ExternalProcessorServer<Echo>, HealthService);

impl Serve for Service {
    type Body = tonic::body::Body;

    fn call(&self, request: http::Request<Incoming>) -> impl Future<Output = Response<tonic::body::Body>> + Send {
        let mut this = self.clone();
        async move {
            let answered = match request.uri().path().starts_with("/grpc.health") {
                true => this.1.call(request).await,
                false => this.0.call(request).await,
            };
            match answered {
                Ok(response) => response,
                Err(never) => match never {},
            }
        }
    }
}

/// Serves as `role`, `echo` or `null`, for ever, after saying where.
pub async fn serve(role: &str) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
    println!("{}", listener.local_addr().expect("bound"));
    match role {
        "echo" => echo(listener).await,
        "edge" => edge(listener).await,
        _ => null(listener).await,
    }
}

async fn echo(listener: TcpListener) {
    let args: Vec<String> = std::env::args().collect();
    let given = args.iter().position(|a| a == "--destination").and_then(|at| args.get(at + 1));
    let destination = Bytes::from(given.cloned().unwrap_or_else(|| "127.0.1.1:8000".to_owned()));
    let (_trigger, watcher) = drain::channel();
    let echo = ExternalProcessorServer::new(Echo { destination }).max_decoding_message_size(usize::MAX);
    let service = Service(echo, HealthService::new(Readiness::new()));
    let workers = Workers::start(std::thread::available_parallelism().map_or(1, usize::from)).expect("threads");
    listener::serve(listener, None, Limits::default(), workers, service, watcher).await;
}

struct NoDecision;

impl Exchanges for NoDecision {
    type Exchange = Self;

    fn open(&self) -> Self {
        Self
    }
}

impl Exchange for NoDecision {
    fn decide(&mut self, _: CompleteRequest) -> Result<Route, Rejection> {
        Ok(Route { destination: "127.0.1.1:8000".into(), ..Route::default() })
    }

    fn response_headers(&mut self, _: u16, _: Headers, _: &Served, _: bool) -> Vec<SetHeader> {
        Vec::new()
    }

    fn response_body(&mut self, _: &Bytes, _: bool) -> Option<SmallVec<[Bytes; 3]>> {
        None
    }

    fn end(&mut self, _: Outcome) {}
}

#[derive(Clone)]
struct Edge(ExtProcServer<NoDecision>);

impl Serve for Edge {
    type Body = Answers<NoDecision, Incoming>;

    fn call(&self, request: http::Request<Incoming>) -> impl Future<Output = Response<Self::Body>> + Send {
        std::future::ready(self.0.answer(request))
    }
}

async fn edge(listener: TcpListener) {
    let (_trigger, watcher) = drain::channel();
    let service = ExtProc::new(Arc::new(NoDecision), extproc::Settings::default(), watcher.clone());
    let workers = Workers::start(std::thread::available_parallelism().map_or(1, usize::from)).expect("threads");
    listener::serve(listener, None, Limits::default(), workers, Edge(service.into_server()), watcher).await;
}

async fn null(listener: TcpListener) {
    loop {
        let (stream, _) = listener.accept().await.expect("a connection");
        stream.set_nodelay(true).expect("a TCP socket");
        tokio::spawn(async move {
            let mut builder = h2::server::Builder::new();
            builder.initial_window_size(4 << 20).initial_connection_window_size(16 << 20);
            let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await else { return };
            while let Some(Ok((request, respond))) = connection.accept().await {
                tokio::spawn(null_stream(request.into_body(), respond));
            }
        });
    }
}

fn framed(message: &wire::ProcessingResponse) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u8(0);
    out.put_u32(u32::try_from(message.encoded_len()).expect("small"));
    message.encode(&mut out).expect("enough room");
    out.freeze()
}

/// Knows messages by their field alone and answers each with what was made for it beforehand.
async fn null_stream(mut body: h2::RecvStream, mut respond: h2::server::SendResponse<Bytes>) {
    let head = Response::builder().header("content-type", "application/grpc").body(()).expect("valid");
    let Ok(mut out) = respond.send_response(head, false) else { return };
    let response = || Some(wire::CommonResponse::default());
    let headers = framed(&answer(Answer::ResponseHeaders(wire::HeadersResponse { response: response() })));
    let mut messages = Messages::requests();
    let mut over = false;
    while let (false, Some(Ok(data))) = (over, body.data().await) {
        // Whether the stream still lives shows at the next read.
        let _ = body.flow_control().release_capacity(data.len());
        messages.push(data, |message| {
            let reply = match message {
                Seen { field: request::REQUEST_BODY, end: true } => {
                    let _ = out.send_data(framed(&picked(Bytes::from_static(b"127.0.1.1:8000"), 1)), false);
                    framed(&answer(Answer::RequestBody(streamed(Bytes::new(), true))))
                }
                Seen { field: request::RESPONSE_HEADERS, .. } => headers.clone(),
                Seen { field: request::RESPONSE_BODY, end } => {
                    over = end;
                    framed(&answer(Answer::ResponseBody(streamed(Bytes::new(), end))))
                }
                _ => return,
            };
            let _ = out.send_data(reply, false);
        });
    }
    let mut trailers = http::HeaderMap::new();
    trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
    let _ = out.send_trailers(trailers);
}
