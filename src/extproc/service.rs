//! The gRPC service `envoy.service.ext_proc.v3.ExternalProcessor`: one call per HTTP request.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use tonic::codec::CompressionEncoding;
use tonic::{Request, Response, Status, Streaming};

use super::exchange::Exchanges;
use super::machine::Rules;
use super::stream::ExchangeStream;
use crate::lifecycle::drain::DrainWatcher;
use crate::pb::envoy::service::ext_proc::v3::ProcessingRequest;
use crate::pb::envoy::service::ext_proc::v3::external_processor_server::{ExternalProcessor, ExternalProcessorServer};

/// Name of the service, also asked for in health checks.
pub const SERVICE_NAME: &str = "envoy.service.ext_proc.v3.ExternalProcessor";

/// Request headers that are for the picker and are removed on the way to the model server (protocol 4.3,
/// The destination is not among them because it is overwritten.
pub const CONTROL_HEADERS: [&str; 16] = [
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

/// The service as a gRPC router or an HTTP/2 connection takes it.
pub type ExtProcServer<E> = ExternalProcessorServer<ExtProc<E>>;

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

    /// The service for a gRPC router or an HTTP/2 connection, with its message limit and gzip set.
    pub fn into_server(self) -> ExtProcServer<E> {
        let max_message = self.shared.settings.max_message;
        ExternalProcessorServer::new(self)
            .max_decoding_message_size(max_message)
            .accept_compressed(CompressionEncoding::Gzip)
    }
}

#[tonic::async_trait]
impl<E: Exchanges> ExternalProcessor for ExtProc<E> {
    type ProcessStream = ExchangeStream<E, Streaming<ProcessingRequest>>;

    async fn process(
        &self,
        request: Request<Streaming<ProcessingRequest>>,
    ) -> Result<Response<Self::ProcessStream>, Status> {
        Ok(Response::new(ExchangeStream::new(self.shared.clone(), request.into_inner())))
    }
}
