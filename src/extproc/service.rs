//! The gRPC service `envoy.service.ext_proc.v3.ExternalProcessor`: one call per HTTP request.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::{Body, Frame};
use tonic::Status;
use tower_service::Service;

use super::exchange::Exchanges;
use super::machine::Rules;
use super::stream::ExchangeStream;
use crate::lifecycle::drain::DrainWatcher;

/// Name of the service, also asked for in health checks.
pub const SERVICE_NAME: &str = "envoy.service.ext_proc.v3.ExternalProcessor";
const PATH: &str = "/envoy.service.ext_proc.v3.ExternalProcessor/Process";

/// Request headers that are for the picker and are removed on the way to the model server (protocol 4.3,
/// The destination is not among them because it is overwritten.
pub const CONTROL_HEADERS: [&str; 17] = [
    "x-llm-d-inference-objective",
    "x-gateway-inference-objective",
    "x-llm-d-inference-fairness-id",
    "x-gateway-inference-fairness-id",
    "x-llm-d-model-name-rewrite",
    "x-gateway-model-name-rewrite",
    "x-gateway-destination-endpoint-subset",
    "x-llm-d-slo-ttft-ms",
    "x-slo-ttft-ms",
    "x-llm-d-slo-tpot-ms",
    "x-slo-tpot-ms",
    "x-llm-d-video-fps",
    "x-llm-d-video-duration-seconds",
    "x-llm-d-video-resolution",
    "x-gateway-destination-endpoint-served",
    "x-llm-d-request-dropped-reason",
    "x-pointsman-explain",
];

/// What an operator can set on the edge.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Largest request body in bytes; above it the client gets 413.
    pub max_request_body: usize,
    /// Largest gRPC message in bytes, after decompression (`--grpc-max-recv-msg-size`). Should exceed
    /// `max_request_body`: some data planes send a body in one message.
    pub max_message: usize,
    /// Bodies above this size in bytes are decided on a blocking thread.
    pub decide_inline_up_to: usize,
    /// Request headers to remove, in lower case; the destination cannot be removed.
    pub remove_request_headers: Vec<String>,
    /// Adds `x-went-into-resp-headers: true` to every response.
    pub mark_responses: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_request_body: 64 << 20,
            max_message: (64 << 20) + (1 << 20),
            decide_inline_up_to: 1 << 20,
            remove_request_headers: CONTROL_HEADERS.map(String::from).to_vec(),
            mark_responses: false,
        }
    }
}

/// What all streams of a service share.
pub(super) struct Shared<E> {
    pub(super) exchanges: Arc<E>,
    pub(super) settings: Settings,
    pub(super) rules: Arc<Rules>,
    pub(super) open: Arc<AtomicUsize>,
    pub(super) drain: DrainWatcher,
}

/// The service; clones share everything.
pub struct ExtProc<E> {
    shared: Arc<Shared<E>>,
}

impl<E> Clone for ExtProc<E> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<E: Exchanges> ExtProc<E> {
    /// A service that opens its exchanges on `exchanges`. Every stream delays the drain until it ends; those
    /// that remain when the drain forces are ended, and later ones are refused.
    pub fn new(exchanges: Arc<E>, settings: Settings, drain: DrainWatcher) -> Self {
        let remove_request_headers = settings
            .remove_request_headers
            .iter()
            .map(|name| Bytes::from(name.to_ascii_lowercase()))
            .filter(|name| name != super::respond::DESTINATION)
            .collect();
        let rules = Arc::new(Rules { max_request_body: settings.max_request_body, remove_request_headers });
        Self { shared: Arc::new(Shared { exchanges, settings, rules, open: Arc::default(), drain }) }
    }

    /// Streams that are open now.
    pub fn open_streams(&self) -> usize {
        self.shared.open.load(Ordering::Relaxed)
    }

    /// The service for an HTTP/2 connection.
    pub fn into_server(self) -> ExtProcServer<E> {
        ExtProcServer { shared: self.shared }
    }
}

/// The service as an HTTP/2 connection takes it: its one method, gRPC's rules about requests, and gzip.
pub struct ExtProcServer<E> {
    shared: Arc<Shared<E>>,
}

impl<E> Clone for ExtProcServer<E> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<E: Exchanges> ExtProcServer<E> {
    /// Opens the stream of a call, or refuses a call that is none.
    pub fn answer<B>(&self, request: Request<B>) -> Response<Answers<E, B>> {
        let gzip = match accepted(&request) {
            Ok(gzip) => gzip,
            Err(refusal) => return refusal.map(|()| Answers(None)),
        };
        let stream = ExchangeStream::new(self.shared.clone(), request.into_body(), gzip);
        grpc(Answers(Some(Box::new(stream))))
    }
}

impl<E: Exchanges, B> Service<Request<B>> for ExtProcServer<E> {
    type Response = Response<Answers<E, B>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        ready(Ok(self.answer(request)))
    }
}

/// The body of an answer: the messages of a stream, boxed once because connections move it about.
pub struct Answers<E: Exchanges, B>(Option<Box<ExchangeStream<E, B>>>);

impl<E: Exchanges, B> Body for Answers<E, B>
where
    B: Body<Data = Bytes> + Unpin,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match &mut self.0 {
            Some(stream) => stream.poll_frame(cx).map(|frame| frame.map(Ok)),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }
}

/// Whether a call may use gzip, or its refusal (gRPC over HTTP/2: 415 for what is no gRPC, else a status).
fn accepted<B>(request: &Request<B>) -> Result<bool, Response<()>> {
    let text = |name| request.headers().get(name).map_or(&b""[..], HeaderValue::as_bytes);
    const GRPC: &[u8] = b"application/grpc";
    // With a subtype (`+proto`) or parameters, but not what only begins alike (`-web`).
    let is_grpc = text(header::CONTENT_TYPE.as_str()).split_at_checked(GRPC.len()).is_some_and(|(kind, rest)| {
        kind.eq_ignore_ascii_case(GRPC) && matches!(rest.first(), None | Some(b'+' | b';'))
    });
    if request.method() != Method::POST || !is_grpc {
        let mut refusal = Response::new(());
        *refusal.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        return Err(refusal);
    }
    if request.uri().path() != PATH {
        let known = format!("this service has one method, {PATH}");
        return Err(Status::unimplemented(known).into_http());
    }
    match text("grpc-encoding") {
        b"" | b"identity" => Ok(false),
        b"gzip" => Ok(true),
        _ => {
            let status = Status::unimplemented("grpc-encoding must be gzip or identity");
            let mut refusal: Response<()> = status.into_http();
            refusal.headers_mut().insert("grpc-accept-encoding", HeaderValue::from_static("gzip,identity"));
            Err(refusal)
        }
    }
}

fn grpc<T>(body: T) -> Response<T> {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}
