//! An API server in this process, for tests with paused time: one Lease with optimistic concurrency and
//! a watch, TokenReview and SubjectAccessReview. Sockets would not do: paused time runs on while
//! bytes are on their way.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tower_service::Service;

use super::Cluster;
use crate::domain::Timestamp;
use crate::lifecycle::clock::Clock;

/// A clock that follows tokio's, which tests pause.
pub struct TokioClock(Instant);

impl TokioClock {
    /// A clock that starts now.
    pub fn start() -> Arc<dyn Clock> {
        Arc::new(Self(Instant::now()))
    }
}

impl Clock for TokioClock {
    fn now(&self) -> Timestamp {
        Timestamp(u64::try_from(self.0.elapsed().as_micros()).unwrap())
    }

    fn wall(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000) + self.0.elapsed()
    }
}

/// What the server does and has.
#[derive(Default)]
pub struct State {
    /// The lease.
    pub lease: Option<Value>,
    version: u64,
    watchers: Vec<mpsc::UnboundedSender<Value>>,
    /// Every call, as `verb path`.
    pub calls: Vec<String>,
    /// Answer to calls whose verb this is, instead of the real one.
    pub refuse: BTreeMap<&'static str, u16>,
    /// Nobody gets an answer.
    pub away: bool,
    /// How long an answer takes after the work is done.
    pub slow: Duration,
    /// User and groups by token.
    pub tokens: BTreeMap<&'static str, &'static str>,
    /// (user, path) that are allowed.
    pub allowed: Vec<(&'static str, &'static str)>,
    /// Bodies of reviews.
    pub reviews: Vec<Value>,
}

/// The server.
#[derive(Clone, Default)]
pub struct FakeApi(pub Arc<Mutex<State>>);

/// One client's way to the server.
#[derive(Clone)]
pub struct Line {
    api: FakeApi,
    /// Whether nothing gets through.
    pub cut: Arc<Mutex<bool>>,
}

type Reply = Response<UnsyncBoxBody<Bytes, Infallible>>;

impl FakeApi {
    /// A client and its line.
    pub fn cluster(&self) -> (Cluster, Line) {
        let line = Line { api: self.clone(), cut: Arc::default() };
        (Cluster::of(kube::Client::new(line.clone(), "default")), line)
    }

    /// The holder in the lease.
    pub fn holder(&self) -> String {
        let state = self.0.lock();
        state.lease.as_ref().and_then(|l| l["spec"]["holderIdentity"].as_str()).unwrap_or_default().to_owned()
    }

    /// The transitions in the lease.
    pub fn transitions(&self) -> i64 {
        self.0.lock().lease.as_ref().and_then(|l| l["spec"]["leaseTransitions"].as_i64()).unwrap()
    }

    fn answer(&self, method: &Method, uri: &http::Uri, body: &[u8]) -> Reply {
        let mut state = self.0.lock();
        let path = uri.path();
        let watch = uri.query().is_some_and(|q| q.contains("watch=true"));
        let verb = match *method {
            Method::GET if watch => "watch",
            Method::GET => "get",
            Method::POST => "create",
            Method::PUT => "update",
            _ => "other",
        };
        state.calls.push(format!("{verb} {path}"));
        if let Some(code) = state.refuse.get(verb) {
            return status(*code, "Refused");
        }
        let sent: Value = serde_json::from_slice(body).unwrap_or_default();
        match (verb, path.rsplit('/').next().unwrap()) {
            ("create", "tokenreviews") => {
                state.reviews.push(sent.clone());
                let user = state.tokens.get(sent["spec"]["token"].as_str().unwrap());
                let status = match user {
                    Some(name) => json!({"authenticated": true, "user": {
                        "username": name, "uid": "u-1", "groups": ["readers"], "extra": {"k": ["v"]}}}),
                    None => json!({"authenticated": false, "error": "invalid bearer token"}),
                };
                json_reply(
                    201,
                    &json!({"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1",
                    "metadata": {}, "spec": {}, "status": status}),
                )
            }
            ("create", "subjectaccessreviews") => {
                state.reviews.push(sent.clone());
                let (user, path) = (&sent["spec"]["user"], &sent["spec"]["nonResourceAttributes"]["path"]);
                let allowed = state.allowed.iter().any(|(u, p)| user == u && path == p);
                json_reply(
                    201,
                    &json!({"kind": "SubjectAccessReview", "apiVersion": "authorization.k8s.io/v1",
                    "metadata": {}, "spec": {}, "status": {"allowed": allowed}}),
                )
            }
            ("watch", "leases") => {
                assert!(uri.query().unwrap().contains("fieldSelector=metadata.name"), "{uri}");
                let (sender, receiver) = mpsc::unbounded_channel::<Value>();
                if let Some(lease) = &state.lease {
                    sender.send(json!({"type": "ADDED", "object": lease})).unwrap();
                }
                state.watchers.push(sender);
                let events = futures_util::stream::unfold(receiver, |mut receiver| async move {
                    let event = receiver.recv().await?;
                    Some((Ok(Frame::data(Bytes::from(format!("{event}\n")))), receiver))
                });
                Response::new(StreamBody::new(events.boxed()).boxed_unsync())
            }
            ("get", _) => match &state.lease {
                Some(lease) => json_reply(200, lease),
                None => status(404, "NotFound"),
            },
            ("create", _) if state.lease.is_some() => status(409, "AlreadyExists"),
            ("create", _) => state.write(sent, "ADDED", 201),
            ("update", _) => match &state.lease {
                None => status(404, "NotFound"),
                Some(lease) if lease["metadata"]["resourceVersion"] != sent["metadata"]["resourceVersion"] => {
                    status(409, "Conflict")
                }
                Some(_) => state.write(sent, "MODIFIED", 200),
            },
            _ => status(405, "MethodNotAllowed"),
        }
    }
}

impl State {
    fn write(&mut self, mut lease: Value, event: &str, code: u16) -> Reply {
        self.version += 1;
        lease["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.lease = Some(lease.clone());
        let event = json!({"type": event, "object": lease});
        self.watchers.retain(|w| w.send(event.clone()).is_ok());
        json_reply(code, &lease)
    }

    /// What another client writes.
    pub fn put(&mut self, lease: Value) {
        self.write(lease, "MODIFIED", 200);
    }
}

fn json_reply(code: u16, body: &Value) -> Reply {
    let body = Full::new(Bytes::from(body.to_string())).boxed_unsync();
    Response::builder().status(StatusCode::from_u16(code).unwrap()).body(body).unwrap()
}

fn status(code: u16, reason: &str) -> Reply {
    json_reply(
        code,
        &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": reason,
            "message": reason, "code": code}),
    )
}

impl Service<Request<Body>> for Line {
    type Response = Reply;
    type Error = std::io::Error;
    type Future = BoxFuture<'static, Result<Reply, std::io::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let line = self.clone();
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
            if *line.cut.lock() || line.api.0.lock().away {
                // Packets that go nowhere: the caller has to give up by itself.
                std::future::pending::<()>().await;
            }
            let reply = line.api.answer(&head.method, &head.uri, &body);
            let slow = line.api.0.lock().slow;
            if !slow.is_zero() {
                sleep(slow).await;
            }
            Ok(reply)
        })
    }
}
