//! The bootstraps at work: a real Envoy between a client and simulated model servers, with the
//! smallest picker there can be. It proves what the templates promise (both ways to name an
//! endpoint, the served report, the subset hint, both body modes), not anything about our picker.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::{HeaderValue, HeaderValueOption};
use envoy_types::pb::envoy::service::ext_proc::v3::body_mutation::Mutation;
use envoy_types::pb::envoy::service::ext_proc::v3::external_processor_server::{
    ExternalProcessor, ExternalProcessorServer,
};
use envoy_types::pb::envoy::service::ext_proc::v3::processing_request::Request as Asked;
use envoy_types::pb::envoy::service::ext_proc::v3::processing_response::Response as Answered;
use envoy_types::pb::envoy::service::ext_proc::v3::{
    BodyMutation, BodyResponse, CommonResponse, HeaderMutation, HeadersResponse, HttpBody, ProcessingRequest,
    ProcessingResponse, StreamedBodyResponse, TrailersResponse,
};
use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind};
use futures_core::Stream;
use futures_util::{StreamExt as _, TryStreamExt as _};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use pointsman::sim::client;
use pointsman::sim::envoy::{self, Bootstrap, Envoy};
use pointsman::sim::server::{self, SimConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::{Status, Streaming};
use tower_service::Service as _;

const DESTINATION: &str = "x-gateway-destination-endpoint";
const SERVICE: &str = "envoy.service.ext_proc.v3.ExternalProcessor";

/// Never skipped: without an Envoy the test fails and says how to get one.
fn binary() -> PathBuf {
    let env: BTreeMap<String, String> = std::env::vars().collect();
    envoy::find_binary(&env).unwrap_or_else(|e| panic!("this test needs a real Envoy: {e}"))
}

/// Names one endpoint for everything and echoes bodies.
struct Constant {
    target: SocketAddr,
    /// Kind of each message and the metadata that came with it, in the words of Debug.
    seen: Arc<Mutex<Vec<(&'static str, String)>>>,
}

impl Constant {
    fn pick(&self) -> (CommonResponse, Option<Struct>) {
        let target = self.target.to_string();
        let header = HeaderValue {
            key: DESTINATION.to_owned(),
            raw_value: target.clone().into_bytes(),
            ..HeaderValue::default()
        };
        let option = HeaderValueOption { header: Some(header), ..HeaderValueOption::default() };
        let mutation = HeaderMutation { set_headers: vec![option], remove_headers: vec![] };
        let string = Value { kind: Some(Kind::StringValue(target)) };
        let inner = Struct { fields: HashMap::from([(DESTINATION.to_owned(), string)]) };
        let value = Value { kind: Some(Kind::StructValue(inner)) };
        let metadata = Struct { fields: HashMap::from([("envoy.lb".to_owned(), value)]) };
        let common = CommonResponse { header_mutation: Some(mutation), clear_route_cache: true, ..Default::default() };
        (common, Some(metadata))
    }

    fn answer(&self, request: ProcessingRequest, duplex: bool) -> Option<ProcessingResponse> {
        let streamed = |body: HttpBody| {
            let echo =
                StreamedBodyResponse { body: body.body, end_of_stream: body.end_of_stream, ..Default::default() };
            let mutation = BodyMutation { mutation: Some(Mutation::StreamedResponse(echo)) };
            let common = CommonResponse { body_mutation: Some(mutation), ..CommonResponse::default() };
            BodyResponse { response: Some(common) }
        };
        let body = |body| if duplex { streamed(body) } else { BodyResponse::default() };
        let mut metadata = None;
        let (kind, answer) = match request.request? {
            Asked::RequestHeaders(_) => {
                let (common, picked) = self.pick();
                metadata = picked;
                ("request headers", Answered::RequestHeaders(HeadersResponse { response: Some(common) }))
            }
            Asked::RequestBody(part) => ("request body", Answered::RequestBody(body(part))),
            Asked::RequestTrailers(_) => ("request trailers", Answered::RequestTrailers(TrailersResponse::default())),
            Asked::ResponseHeaders(_) => ("response headers", Answered::ResponseHeaders(HeadersResponse::default())),
            Asked::ResponseBody(part) => ("response body", Answered::ResponseBody(body(part))),
            Asked::ResponseTrailers(_) => {
                ("response trailers", Answered::ResponseTrailers(TrailersResponse::default()))
            }
        };
        self.seen.lock().push((kind, format!("{:?}", request.metadata_context)));
        Some(ProcessingResponse { response: Some(answer), dynamic_metadata: metadata, ..ProcessingResponse::default() })
    }
}

#[tonic::async_trait]
impl ExternalProcessor for Constant {
    type ProcessStream = Pin<Box<dyn Stream<Item = Result<ProcessingResponse, Status>> + Send>>;

    async fn process(
        &self,
        request: tonic::Request<Streaming<ProcessingRequest>>,
    ) -> Result<tonic::Response<Self::ProcessStream>, Status> {
        let this = Self { target: self.target, seen: Arc::clone(&self.seen) };
        let mut duplex = false;
        let answers = request.into_inner().try_filter_map(move |message| {
            if let Some(config) = message.protocol_config {
                duplex = config.request_body_mode == 4;
            }
            std::future::ready(Ok(this.answer(message, duplex)))
        });
        Ok(tonic::Response::new(answers.boxed()))
    }
}

/// TLS with a certificate of our own and HTTP/2.
fn acceptor() -> tokio_rustls::TlsAcceptor {
    let certified = rcgen::generate_simple_self_signed(vec!["epp.local".to_owned()]).unwrap();
    let key = certified.signing_key.serialize_der().try_into().unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_no_client_auth().with_single_cert(vec![certified.cert.der().clone()], key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config).into()
}

/// Serves one connection: health, and everything else to the picker.
fn serve<H>(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    (health, processor): (H, ExternalProcessorServer<Constant>),
) where
    H: tower_service::Service<
            http::Request<Incoming>,
            Response = http::Response<tonic::body::Body>,
            Error = Infallible,
        > + Clone
        + Send
        + 'static,
    H::Future: Send,
{
    let service = service_fn(move |request: http::Request<Incoming>| {
        let (mut health, mut processor) = (health.clone(), processor.clone());
        async move {
            match request.uri().path().starts_with("/grpc.health.") {
                true => health.call(request).await,
                false => processor.call(request).await,
            }
        }
    });
    let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    tokio::spawn(http.serve_connection(TokioIo::new(stream), service));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_bootstraps_route_in_all_modes() {
    let binary = binary();
    let start = |name: &str| server::start(SimConfig { name: name.to_owned(), ..SimConfig::default() }, None);
    let (one, two) = (start("one").await.unwrap(), start("two").await.unwrap());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_service_status(SERVICE, tonic_health::ServingStatus::Serving).await;
    let processor = Constant { target: two.address, seen: Arc::clone(&seen) };
    let processor = ExternalProcessorServer::new(processor).max_decoding_message_size(64 << 20);
    let services = (health_service, processor);
    let bind = || tokio::net::TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)));
    let (plain, tls) = (bind().await.unwrap(), bind().await.unwrap());
    let (epp, tls_epp) = (plain.local_addr().unwrap(), tls.local_addr().unwrap());
    let acceptor = acceptor();
    let serving = tokio::spawn(async move {
        loop {
            tokio::select! {
                stream = plain.accept() => serve(stream.unwrap().0, services.clone()),
                stream = tls.accept() => {
                    let (accepting, services) = (acceptor.accept(stream.unwrap().0), services.clone());
                    // A handshake that fails shows as an Envoy that finds no healthy picker.
                    tokio::spawn(async move { accepting.await.map(|stream| serve(stream, services)) });
                }
            }
        }
    });

    let a = Bootstrap::original_dst(epp);
    let b = Bootstrap::override_host(epp, vec![one.address, two.address]);
    for bootstrap in [
        a.clone(),
        Bootstrap { buffered: true, ..a.clone() },
        Bootstrap { response_phase: false, buffer_limit: Some(65536), ..a },
        b.clone(),
        Bootstrap { epp: tls_epp, epp_tls: true, ..b.clone() },
        Bootstrap { buffered: true, request_timeout: Some(Duration::from_secs(60)), ..b },
    ] {
        let dir = tempfile::tempdir().unwrap();
        let envoy = Envoy::start(&binary, &bootstrap, 1, dir.path()).await.unwrap();
        seen.lock().clear();
        let body = bytes::Bytes::from(vec![b'x'; 200_000]);
        let request = http::Request::post("/echo")
            .header("x-test-subset", "127.0.0.1:1,127.0.0.1:2")
            .header(DESTINATION, one.address.to_string())
            .body(Full::new(body.clone()))
            .unwrap();
        let answer = client::send(envoy.address(), request).await.unwrap();
        assert_eq!(answer.status(), 200, "{bootstrap:?} {}", envoy.log_tail());
        assert_eq!(answer.headers()["x-sim-endpoint"], "two", "{bootstrap:?}");
        let echo: serde_json::Value =
            serde_json::from_slice(&answer.into_body().collect().await.unwrap().to_bytes()).unwrap();
        assert_eq!(echo["body_xxh64"], format!("{:016x}", twox_hash::XxHash64::oneshot(0, &body)), "{bootstrap:?}");
        assert!(!echo["headers"].to_string().contains("x-test-subset"), "{echo}");

        let messages = seen.lock().clone();
        let first = |kind: &str| messages.iter().find(|m| m.0 == kind).map(|m| m.1.clone());
        assert!(first("request headers").unwrap().contains("127.0.0.1:1,127.0.0.1:2"), "{messages:?}");
        if bootstrap.response_phase {
            let served = first("response headers").unwrap();
            assert!(served.contains("-served") && served.contains(&two.address.to_string()), "{bootstrap:?}: {served}");
        } else {
            assert_eq!(first("response headers"), None);
        }
        let stats = envoy.stats("ext_proc").await.unwrap();
        for zero in ["spurious_msgs_received", "message_timeouts", "rejected_header_mutations", "streams_failed"] {
            assert_eq!(stats[&format!("http.inference.ext_proc.{zero}")], 0, "{bootstrap:?}: {zero}");
        }
    }
    serving.abort();
}
