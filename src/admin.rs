//! The port for operators: metrics, health, state and configuration over HTTP/1.1.
//!
//! Plain and open to all, unless it is given [`tls`] or a guard ([`access`]). The guard stands before every
//! path but `/healthz` and `/readyz`, which say nothing that a probe may not know and which the
//! kubelet asks for without a token.
//!
//! Read only: no path changes anything. Bounded: connections, their lifetime, the size of a request
//! head and the time to send it; request bodies are refused. Pages are made on blocking threads, two
//! at a time, so that a scrape of thousands of series does not delay traffic.
//!
//! Served until the drain forces: while the process stops is when operators look. Nothing here
//! delays a stop by more than a second.

pub mod access;
mod connections;
pub mod health;
#[cfg(test)]
mod tests;
pub mod tls;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use http::{Method, Request, Response, StatusCode};
use http_body::Body as _;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;

use self::access::{Access, Denied};
use self::connections::Limits;
use self::tls::AdminTls;
use crate::lifecycle::drain::DrainWatcher;
use crate::lifecycle::ready::{Condition, Readiness};
use crate::telemetry::metrics::{self, Metrics};

const LIMITS: Limits =
    Limits { connections: 64, lifetime: Duration::from_secs(60), first_byte: Duration::from_secs(5) };
/// Time to send a request head; also how long an idle connection stays open.
const HEAD_TIMEOUT: Duration = Duration::from_secs(20);
/// Time of a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
const MAX_HEAD_BYTES: usize = 16 * 1024;
const MAX_HEADERS: usize = 64;
/// Pages made at the same time.
const PAGES: usize = 2;
/// Time between two lines of the log that say that tokens cannot be checked.
const SAY_EVERY: Duration = Duration::from_secs(60);

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

const PATHS: &[(&str, &str)] = &[
    ("/metrics", "metrics in the Prometheus text format"),
    ("/healthz", "200 while the process runs"),
    ("/readyz", "200 when traffic may come, else 503 and what it waits for"),
    ("/debug/plugins/state", "state of the plugins as JSON"),
    ("/debug/config", "configuration in force, with defaults filled in"),
    ("/debug/decisions", "recent decisions with their reasons as JSON; ?limit=N, ?id=X"),
];

/// Paths that nobody guards.
const OPEN: [&str; 2] = ["/healthz", "/readyz"];

/// Makes a page when it is asked for. It runs on a blocking thread.
pub type PageSource = Box<dyn Fn() -> String + Send + Sync>;

/// Makes the page of decisions that a query string asks for, or says what is wrong with the query. Runs on a
/// blocking thread.
pub type QuerySource = Box<dyn Fn(&str) -> Result<String, String> + Send + Sync>;

/// What the paths show.
pub struct AdminState {
    metrics: Arc<Metrics>,
    readiness: Readiness,
    plugins: Option<PageSource>,
    config: Option<PageSource>,
    decisions: Option<QuerySource>,
    tls: Option<Arc<AdminTls>>,
    access: Option<Access>,
    /// When it was last said that tokens cannot be checked.
    said: Mutex<Option<Instant>>,
    pages: Semaphore,
}

impl AdminState {
    /// State whose debug paths answer 404 until they are given a source.
    pub fn new(metrics: Arc<Metrics>, readiness: Readiness) -> Self {
        Self {
            metrics,
            readiness,
            plugins: None,
            config: None,
            decisions: None,
            tls: None,
            access: None,
            said: Mutex::default(),
            pages: Semaphore::new(PAGES),
        }
    }

    /// Serves in TLS only.
    #[must_use]
    pub fn with_tls(mut self, tls: Arc<AdminTls>) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Shows pages only to those that `access` lets through.
    #[must_use]
    pub fn with_access(mut self, access: Access) -> Self {
        self.access = Some(access);
        self
    }

    /// Sets the source of `/debug/plugins/state`; it returns JSON.
    #[must_use]
    pub fn with_plugins(mut self, source: impl Fn() -> String + Send + Sync + 'static) -> Self {
        self.plugins = Some(Box::new(source));
        self
    }

    /// Sets the source of `/debug/config`; it returns text without secrets.
    #[must_use]
    pub fn with_config(mut self, source: impl Fn() -> String + Send + Sync + 'static) -> Self {
        self.config = Some(Box::new(source));
        self
    }

    /// Sets the source of `/debug/decisions`; it gets the query string and returns JSON.
    #[must_use]
    pub fn with_decisions(mut self, source: impl Fn(&str) -> Result<String, String> + Send + Sync + 'static) -> Self {
        self.decisions = Some(Box::new(source));
        self
    }
}

/// Serves the admin port until the drain forces.
///
/// # Errors
/// None at present; the signature is that of a critical task.
pub async fn serve(listener: TcpListener, state: Arc<AdminState>, drain: DrainWatcher) -> anyhow::Result<()> {
    connections::serve(listener, LIMITS, drain, move |stream, stop| connection(stream, Arc::clone(&state), stop)).await;
    Ok(())
}

async fn connection(stream: TcpStream, state: Arc<AdminState>, stop: impl Future<Output = ()>) {
    let Some(tls) = state.tls.as_ref().map(|tls| tls.current()) else { return serve_http(stream, state, stop).await };
    // Broken handshakes are the peer's affair, too.
    if let Ok(Ok(stream)) = timeout(HANDSHAKE, TlsAcceptor::from(tls).accept(stream)).await {
        serve_http(stream, state, stop).await;
    }
}

async fn serve_http<S>(stream: S, state: Arc<AdminState>, stop: impl Future<Output = ()>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let service = service_fn(move |request| {
        let state = Arc::clone(&state);
        async move { Ok::<_, Infallible>(answer(&state, request).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::pin!(stop);
    tokio::select! {
        // Broken connections are the peer's affair.
        _ = connection.as_mut() => {}
        () = stop.as_mut() => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

type Reply = Response<Full<Bytes>>;

async fn answer(state: &Arc<AdminState>, request: Request<Incoming>) -> Reply {
    if !request.body().is_end_stream() {
        let mut reply = text(StatusCode::PAYLOAD_TOO_LARGE, "requests to this port have no body\n");
        reply.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        return reply;
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut reply = text(StatusCode::METHOD_NOT_ALLOWED, "use GET or HEAD\n");
        reply.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return reply;
    }
    if let Some(denied) = denied(state, &request).await {
        return denied;
    }
    match request.uri().path() {
        "/metrics" => page(state, metrics::CONTENT_TYPE, |state| Some(state.metrics.render())).await,
        "/healthz" => text(StatusCode::OK, "ok\n"),
        "/readyz" => ready(&state.readiness),
        "/debug/plugins/state" => page(state, JSON, |state| make(state.plugins.as_ref())).await,
        "/debug/config" => page(state, TEXT, |state| make(state.config.as_ref())).await,
        "/debug/decisions" => {
            let query = request.uri().query().unwrap_or("").to_owned();
            answered(state, move |state| {
                Some(match state.decisions.as_ref()?(&query) {
                    Ok(body) => (StatusCode::OK, JSON, body.into_bytes()),
                    Err(wrong) => (StatusCode::BAD_REQUEST, TEXT, wrong.into_bytes()),
                })
            })
            .await
        }
        _ => not_found(),
    }
}

impl AdminState {
    /// Whether it is time to say again that tokens cannot be checked: whoever reaches the port could fill the log.
    fn may_say(&self) -> bool {
        let now = Instant::now();
        let mut said = self.said.lock();
        let due = said.is_none_or(|at| now.duration_since(at) >= SAY_EVERY);
        if due {
            *said = Some(now);
        }
        due
    }
}

/// The refusal, if the guard has one.
async fn denied(state: &AdminState, request: &Request<Incoming>) -> Option<Reply> {
    let path = request.uri().path();
    let access = state.access.as_ref().filter(|_| !OPEN.contains(&path))?;
    let page = PATHS.iter().map(|(page, _)| *page).find(|page| *page == path);
    match access.check(request.headers(), path, page).await.err()? {
        Denied::Unauthorized => {
            let mut reply =
                text(StatusCode::UNAUTHORIZED, "this port needs a bearer token that is allowed to read it\n");
            reply.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            Some(reply)
        }
        Denied::Forbidden => {
            let why = format!("the owner of this token may not `get` the nonResourceURL {path}\n");
            Some(text(StatusCode::FORBIDDEN, why))
        }
        Denied::Broken(error) => {
            if state.may_say() {
                tracing::error!(error, "tokens for the metrics port cannot be checked");
            }
            Some(text(StatusCode::INTERNAL_SERVER_ERROR, "tokens cannot be checked; the log says why\n"))
        }
        Denied::Unavailable(error) => {
            if state.may_say() {
                tracing::warn!(error, "a token for the metrics port could not be checked");
            }
            Some(text(StatusCode::SERVICE_UNAVAILABLE, "tokens cannot be checked now\n"))
        }
    }
}

fn make(source: Option<&PageSource>) -> Option<Vec<u8>> {
    source.map(|source| source().into_bytes())
}

fn ready(readiness: &Readiness) -> Reply {
    match readiness.condition() {
        Condition::Ready => text(StatusCode::OK, "ok\n"),
        Condition::Draining => text(StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
        Condition::Waiting => {
            let pending = readiness.pending().join(", ");
            text(StatusCode::SERVICE_UNAVAILABLE, format!("waiting for: {pending}\n"))
        }
    }
}

/// Runs `make` on a blocking thread; `None` is 404, a panic 500.
async fn page<F>(state: &Arc<AdminState>, kind: &'static str, make: F) -> Reply
where
    F: FnOnce(&AdminState) -> Option<Vec<u8>> + Send + 'static,
{
    answered(state, move |state| Some((StatusCode::OK, kind, make(state)?))).await
}

/// As [`page`], with a status and a type that are known when it is made.
async fn answered<F>(state: &Arc<AdminState>, make: F) -> Reply
where
    F: FnOnce(&AdminState) -> Option<(StatusCode, &'static str, Vec<u8>)> + Send + 'static,
{
    let Ok(_permit) = state.pages.acquire().await else {
        return text(StatusCode::SERVICE_UNAVAILABLE, "stopping\n");
    };
    let shared = Arc::clone(state);
    match tokio::task::spawn_blocking(move || make(&shared)).await {
        Ok(Some((status, kind, body))) => reply(status, kind, body),
        Ok(None) => not_found(),
        Err(error) => {
            tracing::error!(%error, "an admin page could not be made");
            text(StatusCode::INTERNAL_SERVER_ERROR, "this page could not be made; the log says why\n")
        }
    }
}

fn not_found() -> Reply {
    let mut body = String::from("not found; this port has\n");
    for (path, what) in PATHS {
        body.push_str(&format!("  {path:<22} {what}\n"));
    }
    text(StatusCode::NOT_FOUND, body)
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Reply {
    reply(status, TEXT, body)
}

fn reply(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Full::new(body.into()));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    reply.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    reply
}
