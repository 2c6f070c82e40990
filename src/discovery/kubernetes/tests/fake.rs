//! An API server in memory: lists in pages, watches with history, and every way to break them.
//!
//! It speaks through the client's service interface, without sockets, so that tests can hold time still.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::mpsc;

type Answer = Response<UnsyncBoxBody<Bytes, std::io::Error>>;
type Piece = Result<Bytes, std::io::Error>;

pub const PODS: &str = "/api/v1/namespaces/n/pods";
pub const POOLS: &str = "/apis/inference.networking.k8s.io/v1/namespaces/n/inferencepools";
pub const OBJECTIVES: &str = "/apis/llm-d.ai/v1alpha2/namespaces/n/inferenceobjectives";
pub const OLD_OBJECTIVES: &str = "/apis/inference.networking.x-k8s.io/v1alpha2/namespaces/n/inferenceobjectives";
pub const REWRITES: &str = "/apis/llm-d.ai/v1alpha2/namespaces/n/inferencemodelrewrites";

struct Watcher {
    path: String,
    selector: Option<(String, String)>,
    out: mpsc::UnboundedSender<Piece>,
}

/// Something that happened.
struct Past {
    version: u64,
    path: String,
    kind: &'static str,
    object: Value,
    before: Option<Value>,
}

impl Past {
    /// What a watcher is told. As with the real one, an object that ceases to match is deleted to it.
    fn told(&self, selector: &Option<(String, String)>) -> Option<Bytes> {
        let was = self.before.as_ref().is_some_and(|before| matches(before, selector));
        match (was, matches(&self.object, selector)) {
            (_, true) => Some(line(self.kind, &self.object)),
            (true, false) => Some(line("DELETED", &self.object)),
            (false, false) => None,
        }
    }
}

#[derive(Default)]
struct State {
    version: u64,
    objects: BTreeMap<(String, String), Value>,
    history: VecDeque<Past>,
    /// Watches from before this version expire.
    oldest: u64,
    watchers: Vec<Watcher>,
    requests: Vec<String>,
    /// Status of the next answers, by the beginning of the path.
    refused: Vec<(String, u16)>,
    /// What the next watches are answered with instead, by the beginning of the path: a status, or the
    /// first bytes of a good answer.
    bad_watches: Vec<(String, Result<Bytes, u16>)>,
    /// Whether requests go unanswered.
    deaf: bool,
    /// Served groups of objectives and rewrites.
    groups: Vec<String>,
    /// Most bytes of a page before it is filled up with blanks beyond any bound; zero is none.
    page_limit: usize,
}

#[derive(Clone, Default)]
pub struct Fake(Arc<Mutex<State>>);

fn matches(object: &Value, selector: &Option<(String, String)>) -> bool {
    selector.as_ref().is_none_or(|(key, value)| object["metadata"]["labels"][key] == value.as_str())
}

fn line(kind: &str, object: &Value) -> Bytes {
    format!("{}\n", json!({"type": kind, "object": object})).into()
}

impl Fake {
    pub fn client(&self) -> kube::Client {
        kube::Client::new(self.clone(), "n")
    }

    pub fn serve_group(&self, group: &str) {
        self.0.lock().groups.push(group.to_owned());
    }

    /// Creates or changes an object.
    pub fn apply(&self, path: &str, mut object: Value) {
        let mut state = self.0.lock();
        state.version += 1;
        let version = state.version;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let before = state.objects.insert((path.to_owned(), name), object.clone());
        state.record(version, path, if before.is_some() { "MODIFIED" } else { "ADDED" }, object, before);
    }

    pub fn delete(&self, path: &str, name: &str) {
        let mut state = self.0.lock();
        let Some(mut object) = state.objects.remove(&(path.to_owned(), name.to_owned())) else { return };
        state.version += 1;
        let version = state.version;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        state.record(version, path, "DELETED", object, None);
    }

    /// Whether somebody watches `path`.
    pub fn is_watched(&self, path: &str) -> bool {
        self.0.lock().watchers.iter().any(|w| w.path == path && !w.out.is_closed())
    }

    /// Sends bytes on the watches of `path`, as they are.
    pub fn say(&self, path: &str, bytes: impl Into<Bytes>) {
        let bytes = bytes.into();
        for watcher in self.0.lock().watchers.iter().filter(|w| w.path == path) {
            let _ = watcher.out.send(Ok(bytes.clone()));
        }
    }

    pub fn bookmark(&self, path: &str) {
        let version = self.0.lock().version.to_string();
        self.say(path, line("BOOKMARK", &json!({"kind": "X", "metadata": {"resourceVersion": version}})));
    }

    /// Breaks every watch in the middle.
    pub fn cut(&self) {
        for watcher in self.0.lock().watchers.drain(..) {
            let _ = watcher.out.send(Ok(Bytes::from_static(b"{\"type\":\"ADD")));
            let _ = watcher.out.send(Err(std::io::ErrorKind::ConnectionReset.into()));
        }
    }

    /// Ends every watch, as a server does in time.
    pub fn end(&self) {
        self.0.lock().watchers.clear();
    }

    /// Forgets what was: watches from earlier versions expire.
    pub fn compact(&self) {
        let mut state = self.0.lock();
        state.oldest = state.version;
        state.history.clear();
    }

    /// Refuses requests whose path begins so; zero takes them again.
    pub fn refuse(&self, path: &str, status: u16) {
        let mut state = self.0.lock();
        state.refused.retain(|(p, _)| p != path);
        if status > 0 {
            state.refused.push((path.to_owned(), status));
        }
    }

    /// Answers watches, and nothing else, whose path begins so with this; `None` takes that back.
    pub fn spoil_watches(&self, path: &str, answer: Option<Result<Bytes, u16>>) {
        let mut state = self.0.lock();
        state.bad_watches.retain(|(p, _)| p != path);
        state.bad_watches.extend(answer.map(|answer| (path.to_owned(), answer)));
    }

    /// Answers nothing any more, on requests and watches, or does again.
    pub fn deaf(&self, deaf: bool) {
        self.0.lock().deaf = deaf;
    }

    pub fn page_limit(&self, objects: usize) {
        self.0.lock().page_limit = objects;
    }

    /// The requests so far that contain `what`.
    pub fn requests(&self, what: &str) -> Vec<String> {
        self.0.lock().requests.iter().filter(|r| r.contains(what)).cloned().collect()
    }

    pub fn forget_requests(&self) {
        self.0.lock().requests.clear();
    }

    fn answer(&self, request: &Request<Body>) -> Option<Answer> {
        let mut state = self.0.lock();
        let path = request.uri().path().to_owned();
        let query: BTreeMap<String, String> = request
            .uri()
            .query()
            .unwrap_or("")
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(k, v)| (k.to_owned(), v.replace("%3D", "=").replace("%2C", ",")))
            .collect();
        state.requests.push(request.uri().to_string());
        if state.deaf {
            return None;
        }
        if let Some((_, status)) = state.refused.iter().find(|(p, _)| path.starts_with(p)) {
            return Some(status_of(*status));
        }
        if let Some(group) = path.strip_prefix("/apis/").and_then(|p| p.strip_suffix("/v1alpha2")) {
            let served = state.groups.iter().any(|g| g == group);
            let names = json!({"resources": [{"name": "inferenceobjectives"}, {"name": "inferencemodelrewrites"}]});
            return Some(if served { whole(names.to_string()) } else { status_of(404) });
        }
        let selector = query.get("labelSelector").and_then(|s| s.split_once('='));
        let selector = selector.map(|(k, v)| (k.to_owned(), v.to_owned()));
        if query.get("watch").is_some_and(|w| w == "true") {
            if let Some((_, bad)) = state.bad_watches.iter().find(|(p, _)| path.starts_with(p)) {
                return Some(match bad {
                    Err(status) => status_of(*status),
                    Ok(bytes) => {
                        let (out, receiver) = mpsc::unbounded_channel();
                        let _ = out.send(Ok(bytes.clone()));
                        stream(receiver)
                    }
                });
            }
            return Some(state.watch(path, selector, query["resourceVersion"].parse().unwrap()));
        }
        let limit: usize = query["limit"].parse().unwrap();
        let from: usize = query.get("continue").map_or(0, |c| c.parse().unwrap());
        let all = state.objects.iter().filter(|((p, _), o)| *p == path && matches(o, &selector));
        let page: Vec<&Value> = all.map(|(_, o)| o).skip(from).take(limit + 1).collect();
        let next = if page.len() > limit { (from + limit).to_string() } else { String::new() };
        let items = &page[..page.len().min(limit)];
        let meta = json!({"resourceVersion": state.version.to_string(), "continue": next});
        let mut text = json!({"kind": "List", "metadata": meta, "items": items}).to_string();
        if state.page_limit > 0 && items.len() > state.page_limit {
            text.push_str(&" ".repeat(65 << 20));
        }
        Some(whole(text))
    }
}

impl State {
    fn record(&mut self, version: u64, path: &str, kind: &'static str, object: Value, before: Option<Value>) {
        let past = Past { version, path: path.to_owned(), kind, object, before };
        for watcher in self.watchers.iter().filter(|w| w.path == path && !self.deaf) {
            if let Some(told) = past.told(&watcher.selector) {
                let _ = watcher.out.send(Ok(told));
            }
        }
        self.history.push_back(past);
    }

    fn watch(&mut self, path: String, selector: Option<(String, String)>, from: u64) -> Answer {
        let (out, receiver) = mpsc::unbounded_channel();
        if from < self.oldest {
            let gone =
                json!({"kind": "Status", "code": 410, "message": "too old resource version", "reason": "Expired"});
            let _ = out.send(Ok(line("ERROR", &gone)));
            return stream(receiver);
        }
        for past in self.history.iter().filter(|past| past.version > from && past.path == path) {
            if let Some(told) = past.told(&selector) {
                let _ = out.send(Ok(told));
            }
        }
        self.watchers.push(Watcher { path, selector, out });
        stream(receiver)
    }
}

fn stream(receiver: mpsc::UnboundedReceiver<Piece>) -> Answer {
    let pieces = futures_util::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|piece| (piece.map(Frame::data), receiver))
    });
    Response::new(StreamBody::new(pieces).boxed_unsync())
}

fn whole(text: String) -> Answer {
    Response::new(Full::new(Bytes::from(text)).map_err(|never: Infallible| match never {}).boxed_unsync())
}

fn status_of(code: u16) -> Answer {
    let mut answer =
        whole(json!({"kind": "Status", "code": code, "message": format!("refused with {code}")}).to_string());
    *answer.status_mut() = http::StatusCode::from_u16(code).unwrap();
    answer
}

impl tower_service::Service<Request<Body>> for Fake {
    type Response = Answer;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Answer, std::io::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), std::io::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let answer = self.answer(&request);
        Box::pin(async move {
            match answer {
                Some(answer) => Ok(answer),
                None => std::future::pending().await,
            }
        })
    }
}
