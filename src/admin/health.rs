//! `grpc.health.v1`, on its own plaintext port and mounted beside ext_proc (protocol 5.2).
//!
//! `liveness` is SERVING as long as the process answers: a pod that waits for its pool or drains
//! must not be restarted for it. `readiness`, the empty name, the ext_proc service and
//! `inference-extension` follow readiness. Any other name has status SERVICE_UNKNOWN inside an OK
//! reply, as in the picker we replace; the standard's NOT_FOUND is what `tonic-health`'s own server
//! does, which is why this one is written by hand on its generated trait.
//!
//! `List` is newer than the generated trait and is added in front of it. A `Watch` ends when the
//! process drains, after its last status, so that watchers do not hold a stop up; at most
//! [`MAX_WATCHES`] are open.

use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;
use futures_util::future::BoxFuture;
use futures_util::stream;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tonic::body::Body;
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::{Health as HealthRpc, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_prost::ProstCodec;
use tower_service::Service;

use super::connections::{self, Limits, Stop};
use crate::lifecycle::drain::DrainWatcher;
use crate::lifecycle::ready::{Condition, Readiness};

/// The service that Envoy's health checks and the charts' probes may name.
pub const EXT_PROC_SERVICE: &str = "envoy.service.ext_proc.v3.ExternalProcessor";

/// Names that follow readiness.
const READINESS: [&str; 4] = ["", "readiness", EXT_PROC_SERVICE, "inference-extension"];
/// The name that is always SERVING.
const LIVENESS: &str = "liveness";
/// Open `Watch` calls over all connections.
pub const MAX_WATCHES: usize = 256;

const LIST_PATH: &str = "/grpc.health.v1.Health/List";

const LIMITS: Limits =
    Limits { connections: 128, lifetime: Duration::from_secs(3600), first_byte: Duration::from_secs(5) };
const KEEP_ALIVE: Duration = Duration::from_secs(30);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_STREAMS: u32 = 32;
/// Requests hold one service name.
const MAX_MESSAGE: usize = 16 * 1024;

/// The health service: a tonic service to mount with `add_service`, or to serve with [`serve`].
/// Clones share one state.
#[derive(Clone, Debug)]
pub struct HealthService {
    health: Health,
    server: HealthServer<Health>,
}

#[derive(Clone, Debug)]
struct Health {
    readiness: Readiness,
    watches: Arc<AtomicUsize>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Liveness,
    Readiness,
    Unknown,
}

impl HealthService {
    /// Health that follows `readiness`.
    pub fn new(readiness: Readiness) -> Self {
        let health = Health { readiness, watches: Arc::default() };
        let server = HealthServer::new(health.clone()).max_decoding_message_size(MAX_MESSAGE);
        Self { health, server }
    }
}

impl Health {
    fn kind(service: &str) -> Kind {
        match service {
            LIVENESS => Kind::Liveness,
            name if READINESS.contains(&name) => Kind::Readiness,
            _ => Kind::Unknown,
        }
    }

    fn status(kind: Kind, condition: Condition) -> ServingStatus {
        match kind {
            Kind::Liveness => ServingStatus::Serving,
            Kind::Readiness if condition == Condition::Ready => ServingStatus::Serving,
            Kind::Readiness => ServingStatus::NotServing,
            Kind::Unknown => ServingStatus::ServiceUnknown,
        }
    }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

type Replies = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

#[tonic::async_trait]
impl HealthRpc for Health {
    type WatchStream = Replies;

    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let kind = Self::kind(&request.get_ref().service);
        Ok(Response::new(response(Self::status(kind, self.readiness.condition()))))
    }

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Replies>, Status> {
        let slot = WatchSlot::take(&self.watches)
            .ok_or_else(|| Status::resource_exhausted(format!("{MAX_WATCHES} watches are open already")))?;
        let kind = Self::kind(&request.get_ref().service);
        let watching = Watching { kind, changes: self.readiness.watch(), sent: None, last: false, _slot: slot };
        Ok(Response::new(Box::pin(stream::unfold(watching, Watching::next))))
    }
}

/// One open `Watch`.
struct Watching {
    kind: Kind,
    changes: watch::Receiver<Condition>,
    sent: Option<ServingStatus>,
    last: bool,
    _slot: WatchSlot,
}

impl Watching {
    async fn next(mut self) -> Option<(Result<HealthCheckResponse, Status>, Self)> {
        while !self.last {
            let condition = *self.changes.borrow_and_update();
            self.last = condition == Condition::Draining;
            let status = Health::status(self.kind, condition);
            if self.sent.replace(status) != Some(status) {
                return Some((Ok(response(status)), self));
            }
            if !self.last && self.changes.changed().await.is_err() {
                return None;
            }
        }
        None
    }
}

struct WatchSlot(Arc<AtomicUsize>);

impl WatchSlot {
    fn take(open: &Arc<AtomicUsize>) -> Option<Self> {
        // Counted first and given back if it was too many, so that two cannot take the last place.
        let slot = Self(Arc::clone(open));
        (open.fetch_add(1, Ordering::AcqRel) < MAX_WATCHES).then_some(slot)
    }
}

impl Drop for WatchSlot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// `HealthListRequest` of `grpc.health.v1`.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct ListRequest {}

/// `HealthListResponse` of `grpc.health.v1`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ListResponse {
    /// Status by service name.
    #[prost(map = "string, message", tag = "1")]
    pub statuses: HashMap<String, HealthCheckResponse>,
}

impl UnaryService<ListRequest> for Health {
    type Response = ListResponse;
    type Future = std::future::Ready<Result<Response<ListResponse>, Status>>;

    fn call(&mut self, _request: Request<ListRequest>) -> Self::Future {
        let condition = self.readiness.condition();
        let names = READINESS.into_iter().chain([LIVENESS]);
        let statuses = names.map(|n| (n.to_owned(), response(Self::status(Self::kind(n), condition)))).collect();
        std::future::ready(Ok(Response::new(ListResponse { statuses })))
    }
}

impl<B> Service<http::Request<B>> for HealthService
where
    B: http_body::Body + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        if request.uri().path() != LIST_PATH {
            return self.server.call(request);
        }
        let health = self.health.clone();
        Box::pin(async move {
            let codec: ProstCodec<ListResponse, ListRequest> = ProstCodec::default();
            let mut grpc = Grpc::new(codec).max_decoding_message_size(MAX_MESSAGE);
            Ok(grpc.unary(health, request).await)
        })
    }
}

impl NamedService for HealthService {
    const NAME: &'static str = "grpc.health.v1.Health";
}

/// Serves health in plaintext HTTP/2 until the drain forces.
///
/// # Errors
/// None at present; the signature is that of a critical task.
pub async fn serve(listener: TcpListener, service: HealthService, drain: DrainWatcher) -> anyhow::Result<()> {
    connections::serve(listener, LIMITS, drain, move |stream, stop| connection(stream, service.clone(), stop)).await;
    Ok(())
}

async fn connection(stream: TcpStream, service: HealthService, stop: Stop) {
    let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    tokio::pin!(connection);
    tokio::select! {
        // Broken connections are the peer's affair.
        _ = connection.as_mut() => {}
        () = stop => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;
    use tonic::transport::{Channel, Endpoint};
    use tonic_health::pb::health_client::HealthClient;

    use super::*;
    use crate::lifecycle::drain;

    async fn channel(readiness: &Readiness) -> (Channel, drain::DrainTrigger) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (trigger, watcher) = drain::channel();
        tokio::spawn(serve(listener, HealthService::new(readiness.clone()), watcher));
        (Endpoint::from_shared(url).unwrap().connect().await.unwrap(), trigger)
    }

    fn of(service: &str) -> HealthCheckRequest {
        HealthCheckRequest { service: service.into() }
    }

    async fn check(client: &mut HealthClient<Channel>, service: &str) -> ServingStatus {
        client.check(of(service)).await.unwrap().into_inner().status()
    }

    #[tokio::test]
    async fn names_have_the_states_of_the_specification() {
        use ServingStatus::{NotServing, ServiceUnknown, Serving};
        let readiness = Readiness::new();
        let block = readiness.block("pool");
        let (channel, _trigger) = channel(&readiness).await;
        let mut client = HealthClient::new(channel);
        let mut block = Some(block);
        for ready in [NotServing, Serving] {
            for name in READINESS {
                assert_eq!(check(&mut client, name).await, ready, "{name:?}");
            }
            assert_eq!(check(&mut client, "liveness").await, Serving);
            assert_eq!(check(&mut client, "made-up").await, ServiceUnknown);
            drop(block.take());
        }
        readiness.draining();
        assert_eq!(check(&mut client, "readiness").await, NotServing);
        assert_eq!(check(&mut client, "liveness").await, Serving, "a drain is no reason for a restart");
    }

    /// What tonic's router and a hand-written one ask of a service.
    fn mounts<S>(_: S)
    where
        S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>
            + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send,
    {
    }

    #[test]
    fn it_mounts_beside_other_services() {
        mounts(HealthService::new(Readiness::new()));
    }

    #[tokio::test]
    async fn list_names_every_service() {
        let (channel, _trigger) = channel(&Readiness::new()).await;
        let mut grpc = tonic::client::Grpc::new(channel);
        grpc.ready().await.unwrap();
        let codec: ProstCodec<ListRequest, ListResponse> = ProstCodec::default();
        let path = http::uri::PathAndQuery::from_static(LIST_PATH);
        let list = grpc.unary(Request::new(ListRequest {}), path, codec).await.unwrap().into_inner();
        assert_eq!(list.statuses.len(), 5);
        assert!(list.statuses.values().all(|s| s.status() == ServingStatus::Serving));
        assert!(list.statuses.contains_key("inference-extension"));
    }

    #[tokio::test]
    async fn a_watch_follows_changes_and_ends_with_the_drain() {
        let readiness = Readiness::new();
        let block = readiness.block("pool");
        let (channel, _trigger) = channel(&readiness).await;
        let mut client = HealthClient::new(channel);
        let mut ready = client.watch(of("readiness")).await.unwrap().into_inner();
        let mut unknown = client.watch(of("made-up")).await.unwrap().into_inner();
        let mut next = async || ready.next().await.map(|r| r.unwrap().status());
        assert_eq!(next().await, Some(ServingStatus::NotServing));
        drop(block);
        assert_eq!(next().await, Some(ServingStatus::Serving));
        readiness.draining();
        assert_eq!(next().await, Some(ServingStatus::NotServing));
        assert_eq!(next().await, None);
        assert_eq!(unknown.next().await.unwrap().unwrap().status(), ServingStatus::ServiceUnknown);
        assert!(unknown.next().await.is_none());
    }

    #[tokio::test]
    async fn watches_are_bounded_and_given_back() {
        let service = HealthService::new(Readiness::new());
        let open = async || HealthRpc::watch(&service.health, Request::new(of(""))).await;
        let mut held = Vec::new();
        for _ in 0..MAX_WATCHES {
            held.push(open().await.unwrap());
        }
        assert_eq!(open().await.err().unwrap().code(), tonic::Code::ResourceExhausted);
        held.pop();
        assert!(open().await.is_ok());
    }

    #[tokio::test]
    async fn the_port_closes_when_the_drain_forces() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (trigger, watcher) = drain::channel();
        let service = HealthService::new(Readiness::new());
        let serving = tokio::spawn(serve(listener, service, watcher));
        let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        let mut client = HealthClient::new(channel);
        let mut held = client.watch(of("")).await.unwrap().into_inner();
        held.next().await.unwrap().unwrap();
        trigger.drain(Duration::ZERO).await;
        tokio::time::timeout(Duration::from_secs(10), serving).await.unwrap().unwrap().unwrap();
        assert!(TcpStream::connect(address).await.is_err());
    }
}
