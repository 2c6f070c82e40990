//! The whole system for a test: simulated model servers, the picker in this process, and a real Envoy
//! in front of it.
//!
//! Every port is chosen by the system. [`Stack::finish`] ends each test with what must always hold:
//! Envoy saw no fault of the picker, nothing is in flight any more, and every request has exactly one
//! outcome, the expected one.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::Body;
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::Incoming;
use pointsman::app::{self, Addresses, Environment};
use pointsman::config::{self, Purpose, Settings, Source, Tables};
use pointsman::director::Director;
use pointsman::domain::Outcome;
use pointsman::lifecycle::clock::SystemClock;
use pointsman::lifecycle::drain::Drained;
use pointsman::lifecycle::ready::Readiness;
use pointsman::pool::Pool;
use pointsman::sim::client;
use pointsman::sim::envoy::{self, Bootstrap, Envoy};
use pointsman::sim::server::{self, SimConfig, SimHandle};
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::page::Page;

/// Model that the servers serve.
pub const MODEL: &str = "test/model";

/// How long anything may take that should come by itself; far more than it needs on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Pause between two looks at something that cannot notify us.
const LOOK: Duration = Duration::from_millis(10);

/// The Envoy that these tests need. They are never skipped: without it the test fails and says how to get it.
pub fn envoy_binary() -> PathBuf {
    let environment: BTreeMap<String, String> = std::env::vars().collect();
    envoy::find_binary(&environment).unwrap_or_else(|e| panic!("this test needs a real Envoy: {e}"))
}

/// Waits until `holds`; panics with `what` if it does not within [`PATIENCE`].
pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("waited in vain until {what}"));
}

/// Does `work`; panics with `what` if that takes longer than [`PATIENCE`].
pub async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|_| panic!("{what} took longer than {PATIENCE:?}"))
}

/// A fast server; change what the test is about.
pub fn quick(name: &str) -> SimConfig {
    SimConfig {
        name: name.into(),
        model: MODEL.into(),
        prefill_tokens_per_second: 1e6,
        decode_step: Duration::from_millis(1),
        answer_tokens: 8,
        always_usage: true,
        ..SimConfig::default()
    }
}

/// Starts fast servers with these names.
pub async fn sims(names: &[&str]) -> Vec<SimHandle> {
    let mut started = Vec::with_capacity(names.len());
    for name in names {
        started.push(server::start(quick(name), None).await.unwrap());
    }
    started
}

/// Starts a fast server at `address`; port 0 lets the system choose.
pub async fn sim_at(name: &str, address: &str) -> SimHandle {
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    server::start(quick(name), Some(listener)).await.unwrap()
}

/// One entry of the endpoints file.
#[derive(Clone, Debug)]
pub struct Entry {
    pub name: String,
    pub address: SocketAddr,
    pub labels: Vec<(String, String)>,
}

impl Entry {
    pub fn new(name: &str, address: SocketAddr) -> Self {
        Self { name: name.into(), address, labels: Vec::new() }
    }

    /// With a label.
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.push((key.into(), value.into()));
        self
    }
}

impl From<&SimHandle> for Entry {
    fn from(sim: &SimHandle) -> Self {
        Self::new(sim.name(), sim.address)
    }
}

/// The endpoints file.
pub fn endpoints_yaml(entries: &[Entry]) -> String {
    let mut text = String::from(if entries.is_empty() { "endpoints: []\n" } else { "endpoints:\n" });
    for Entry { name, address, labels } in entries {
        text.push_str(&format!("- name: {name}\n  address: '{}'\n  port: {}\n", address.ip(), address.port()));
        if !labels.is_empty() {
            let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}: '{value}'")).collect();
            text.push_str(&format!("  labels: {{{}}}\n", labels.join(", ")));
        }
    }
    text
}

/// What a stack is made of.
pub struct Setup {
    /// Endpoints file at the start.
    pub entries: Vec<Entry>,
    /// Plugins, a YAML list; the discovery is added.
    pub plugins: String,
    /// Plugins of the one profile, a YAML list.
    pub profile: String,
    /// The picker's flags.
    pub settings: Settings,
    /// Envoy's options; the picker's address, TLS and (if empty) the pool are filled in.
    pub bootstrap: Bootstrap,
    /// How long open streams may go on when the picker stops.
    pub grace: Duration,
}

impl Setup {
    /// Variant A (ORIGINAL_DST) with TLS to the picker, which balances by active requests.
    pub fn a<E: Into<Entry>>(entries: impl IntoIterator<Item = E>) -> Self {
        let mut settings = Settings::default();
        settings.ports.grpc = 0;
        settings.ports.health = 0;
        settings.ports.metrics = 0;
        settings.limits.debug_decisions = 1000;
        settings.limits.decisions_per_second = 0;
        settings.metrics.stream_metrics = true;
        settings.intervals.drain = Duration::ZERO;
        Self {
            entries: entries.into_iter().map(Into::into).collect(),
            plugins: "- type: active-request-scorer\n".into(),
            profile: "- pluginRef: active-request-scorer\n".into(),
            settings,
            bootstrap: Bootstrap::original_dst(SocketAddr::from(([127, 0, 0, 1], 0))),
            grace: Duration::from_secs(2),
        }
    }

    /// Variant B (override_host).
    pub fn b<E: Into<Entry>>(entries: impl IntoIterator<Item = E>) -> Self {
        let bootstrap = Bootstrap::override_host(SocketAddr::from(([127, 0, 0, 1], 0)), Vec::new());
        Self { bootstrap, ..Self::a(entries) }
    }

    /// With these plugins and this profile.
    pub fn scheduling(mut self, plugins: &str, profile: &str) -> Self {
        self.plugins = plugins.into();
        self.profile = profile.into();
        self
    }

    fn document(&self, endpoints: &std::path::Path) -> String {
        let indented: String = self.profile.lines().map(|line| format!("  {line}\n")).collect();
        format!(
            "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nplugins:\n\
             - type: file-discovery\n  parameters: {{path: '{}', watchFile: true}}\n{}\
             schedulingProfiles:\n- name: default\n  plugins:\n{indented}\
             dataLayer:\n  discovery: {{pluginRef: file-discovery}}\n",
            endpoints.display(),
            self.plugins,
        )
    }
}

/// Both variants with the same endpoints.
pub fn both<E: Into<Entry>>(entries: impl IntoIterator<Item = E> + Clone) -> [Setup; 2] {
    [Setup::a(entries.clone()), Setup::b(entries)]
}

/// A running system.
pub struct Stack {
    pub envoy: Envoy,
    pub addresses: Addresses,
    pub pool: Arc<Pool>,
    pub director: Arc<Director>,
    pub readiness: Readiness,
    pub folder: TempDir,
    stop: Option<oneshot::Sender<()>>,
    picker: Option<JoinHandle<anyhow::Result<Drained>>>,
}

impl Stack {
    /// Starts the picker and then Envoy.
    pub async fn start(mut setup: Setup) -> Self {
        let binary = envoy_binary();
        let folder = tempfile::tempdir().unwrap();
        let endpoints = folder.path().join("endpoints.yaml");
        std::fs::write(&endpoints, endpoints_yaml(&setup.entries)).unwrap();
        let document = setup.document(&endpoints);
        let tls = setup.settings.tls.enabled;
        let config = config::load(&Source::Text(document.clone()), setup.settings, &Tables::standard(), Purpose::Serve)
            .unwrap_or_else(|e| panic!("{document}\n{}", e.lines().collect::<Vec<_>>().join("\n")));
        let environment = Environment {
            bind: IpAddr::V4(Ipv4Addr::LOCALHOST),
            grace: setup.grace,
            seed: Some(7),
            ..Environment::default()
        };
        let app = app::build(config, environment, Arc::new(SystemClock::new())).await.unwrap();
        let (addresses, pool, director) = (app.addresses, Arc::clone(&app.pool), Arc::clone(&app.director));
        let readiness = app.readiness.clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let picker = tokio::spawn(app.run(async move {
            // A dropped sender is a stop, too.
            let _ = stopped.await;
        }));
        setup.bootstrap.epp = addresses.grpc;
        setup.bootstrap.epp_tls = tls;
        if setup.bootstrap.endpoints.is_empty() {
            setup.bootstrap.endpoints = setup.entries.iter().map(|entry| entry.address).collect();
        }
        let envoy = Envoy::start(&binary, &setup.bootstrap, 2, folder.path()).await.unwrap();
        Self { envoy, addresses, pool, director, readiness, folder, stop: Some(stop), picker: Some(picker) }
    }

    /// Replaces the endpoints file in one step.
    pub fn write_endpoints(&self, text: &str) {
        let (new, file) = (self.folder.path().join("endpoints.new"), self.folder.path().join("endpoints.yaml"));
        std::fs::write(&new, text).unwrap();
        std::fs::rename(&new, &file).unwrap();
    }

    /// Sends a request through Envoy and returns the head of its answer.
    pub async fn open<B>(&self, request: Request<B>) -> std::io::Result<Response<Incoming>>
    where
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        within("the head of an answer", client::send(self.envoy.address(), request)).await
    }

    /// Sends a request through Envoy and reads the whole answer.
    pub async fn send<B>(&self, request: Request<B>) -> Answer
    where
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let response = self.open(request).await.unwrap_or_else(|e| panic!("{e}; {}", self.envoy.log_tail()));
        Answer::read(response).await
    }

    /// POST of a body with these headers; JSON unless a content type is given.
    pub async fn post(&self, path: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Answer {
        self.send(post(path, headers, body)).await
    }

    /// GET with these headers.
    pub async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        let request = with_headers(Request::get(path), headers).body(Empty::<Bytes>::new()).unwrap();
        self.send(request).await
    }

    /// The picker's page of metrics.
    pub async fn metrics(&self) -> Page {
        Page::parse(&self.admin_text("/metrics").await)
    }

    /// A page of the picker's admin port.
    pub async fn admin_text(&self, path: &str) -> String {
        let (status, body) = within("an admin page", client::get(self.addresses.metrics, path)).await.unwrap();
        assert_eq!(status, 200, "{path}");
        String::from_utf8(body.to_vec()).unwrap()
    }

    /// The decision on the request with this id.
    pub fn decision(&self, request_id: &str) -> Value {
        let all = self.director.parts().decisions.to_json();
        let found = all["decisions"].as_array().unwrap().iter().rev().find(|d| d["requestId"] == request_id);
        found.unwrap_or_else(|| panic!("no decision on {request_id}")).clone()
    }

    /// The work in flight: requests and tokens.
    pub fn in_flight(&self) -> (u64, u64) {
        app::in_flight(&self.pool)
    }

    /// Waits until nothing is in flight any more.
    pub async fn idle(&self) {
        until("nothing is in flight", async || self.in_flight() == (0, 0)).await;
    }

    /// How requests ended up to now; endings that did not happen are left out.
    pub async fn outcomes(&self) -> BTreeMap<String, u64> {
        let page = self.metrics().await;
        let all = page.label_values("llm_d_epp_request_outcome_total", "outcome");
        all.into_iter().filter(|(_, n)| *n > 0.0).map(|(outcome, n)| (outcome, n as u64)).collect()
    }

    /// Envoy's counters of its ext_proc filter, without their prefix.
    pub async fn ext_proc_stats(&self) -> HashMap<String, u64> {
        let stats = self.envoy.stats("ext_proc").await.unwrap();
        stats
            .into_iter()
            .filter_map(|(name, value)| Some((name.strip_prefix("http.inference.ext_proc.")?.to_owned(), value)))
            .collect()
    }

    /// Envoy never had to complain about the picker.
    pub async fn envoy_is_content(&self) {
        let stats = self.ext_proc_stats().await;
        for zero in ["spurious_msgs_received", "message_timeouts", "rejected_header_mutations"] {
            assert_eq!(stats[zero], 0, "{zero}: {stats:?}\n{}", self.envoy.log_tail());
        }
    }

    /// Tells the picker to stop.
    pub fn begin_stop(&mut self) {
        drop(self.stop.take());
    }

    /// Stops the picker and says what it had to cut.
    pub async fn stop_picker(&mut self) -> Drained {
        self.begin_stop();
        let picker = self.picker.take().expect("the picker is stopped once");
        within("stopping the picker", picker).await.unwrap().unwrap()
    }

    /// Checks what must hold at the end of every test, with the number of requests by their ending, and
    /// stops everything.
    pub async fn finish(mut self, expected: &[(Outcome, u64)]) {
        self.settled(expected).await;
        let drained = self.stop_picker().await;
        assert_eq!(drained.forced, 0, "streams were cut at the end");
    }

    /// What must hold when no request is under way.
    pub async fn settled(&self, expected: &[(Outcome, u64)]) {
        self.idle().await;
        self.envoy_is_content().await;
        let expected: BTreeMap<String, u64> = expected.iter().map(|(o, n)| (o.as_str().to_owned(), *n)).collect();
        let total: u64 = expected.values().sum();
        // The last stream ends a moment after its client has the answer.
        let ended = async || self.outcomes().await.values().sum::<u64>() >= total;
        let _ = tokio::time::timeout(PATIENCE / 3, until("every request has ended", ended)).await;
        assert_eq!(self.outcomes().await, expected);
        let started = self.ext_proc_stats().await["streams_started"];
        assert_eq!(started, total, "every stream of Envoy is one request with one outcome");
        let page = self.metrics().await;
        assert_eq!(page.sum("llm_d_epp_extproc_streams_total", &[]), total as f64);
        assert_eq!(page.sum("llm_d_epp_extproc_streams_inflight", &[]), 0.0);
        for gauge in ["request_running", "inflight_requests", "inflight_tokens"] {
            assert_eq!(page.sum(&format!("llm_d_epp_{gauge}"), &[]), 0.0, "{gauge}");
        }
        let counted = page.sum("llm_d_epp_request_total", &[]);
        let decided = page.sum("llm_d_epp_scheduler_attempts_total", &[]);
        assert!(decided <= counted, "{decided} decisions on {counted} counted requests");
        assert!(counted <= total as f64, "{counted} counted of {total} requests");
        let refused = page.sum("llm_d_epp_request_error_total", &[]);
        let rejected = expected.get(Outcome::Rejected.as_str()).copied().unwrap_or(0) as f64;
        assert!(refused >= rejected, "every refusal is counted as an error: {refused} of {rejected}");
        assert_eq!(page.sum("inference_objective_request_total", &[]), counted, "the older name counts the same");
    }
}

/// A POST; JSON unless a content type is given.
pub fn post(path: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    let mut request = with_headers(Request::post(path), headers).body(Full::new(body.into())).unwrap();
    let kind = http::HeaderValue::from_static("application/json");
    request.headers_mut().entry(http::header::CONTENT_TYPE).or_insert(kind);
    request
}

/// Adds headers to a request.
pub fn with_headers(mut builder: http::request::Builder, headers: &[(&str, &str)]) -> http::request::Builder {
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder
}

/// A completion of `prompt`.
pub fn completion(prompt: &str) -> String {
    serde_json::json!({"model": MODEL, "prompt": prompt, "max_tokens": 4}).to_string()
}

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: HeaderMap,
}

impl Answer {
    pub async fn read(response: Response<Incoming>) -> Self {
        let (parts, body) = response.into_parts();
        let collected = within("the rest of an answer", body.collect()).await.unwrap();
        let trailers = collected.trailers().cloned().unwrap_or_default();
        Self { status: parts.status.as_u16(), headers: parts.headers, body: collected.to_bytes(), trailers }
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e} in {self:?}"))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The value of a header, "" without one.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// Name of the server that answered, "" if none did.
    pub fn endpoint(&self) -> &str {
        self.header("x-sim-endpoint")
    }

    /// In echo mode: the values of a request header as the server saw them.
    pub fn echoed(&self, name: &str) -> Vec<String> {
        pairs(&self.json()["headers"], name)
    }

    /// In echo mode: the values of a request trailer as the server saw them.
    pub fn echoed_trailer(&self, name: &str) -> Vec<String> {
        pairs(&self.json()["trailers"], name)
    }
}

fn pairs(list: &Value, name: &str) -> Vec<String> {
    let all = list.as_array().unwrap().iter();
    all.filter(|pair| pair[0] == name).map(|pair| pair[1].as_str().unwrap().to_owned()).collect()
}

/// Requests that go on in the background while something else happens.
pub struct Traffic {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    workers: Vec<JoinHandle<BTreeMap<(u16, String), u64>>>,
}

impl Traffic {
    /// `workers` clients send one completion after the other through `stack`.
    pub fn start(stack: &Stack, workers: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicU64::new(0));
        let proxy = stack.envoy.address();
        let work = |worker: usize| {
            let stop = Arc::clone(&stop);
            let answered = Arc::clone(&answered);
            async move {
                let mut seen = BTreeMap::new();
                for i in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let body = completion(&format!("Question {i} of client {worker}"));
                    let sent = client::send(proxy, post("/v1/completions", &[], body));
                    let answer = Answer::read(within("an answer", sent).await.unwrap()).await;
                    *seen.entry((answer.status, answer.endpoint().to_owned())).or_default() += 1;
                    answered.fetch_add(1, Ordering::Relaxed);
                }
                seen
            }
        };
        let workers = (0..workers).map(|worker| tokio::spawn(work(worker))).collect();
        Self { stop, answered, workers }
    }

    /// Waits until `count` requests have been answered since the start.
    pub async fn reach(&self, count: u64) {
        within("enough traffic", async {
            while self.answered.load(Ordering::Relaxed) < count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }

    /// Ends it; how many requests got which status from which server.
    pub async fn stop(self) -> BTreeMap<(u16, String), u64> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = BTreeMap::new();
        for worker in self.workers {
            for (key, count) in worker.await.unwrap() {
                *all.entry(key).or_default() += count;
            }
        }
        all
    }
}
