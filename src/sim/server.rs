//! One simulated model server: a listener, the engine behind it, and the faults a test may ask for.
//!
//! Paths: `POST /v1/completions`, `/v1/chat/completions`, `/v1/responses`, `/v1/embeddings`,
//! `/v1/messages`, `/v1/messages/count_tokens`, `/inference/v1/generate`, `/generate`, `/echo`,
//! `/reset_prefix_cache`; `GET /v1/models`, `/version`, `/health`, `/metrics`. Anything else is a 404 in JSON.
//!
//! Every answer carries `x-sim-endpoint: <name>`. A request with `x-sim-echo: 1` (any method, any
//! path) is described back instead of answered, see the fields in `echo`. `x-sim-trailers: 1` puts a
//! trailer `x-sim-trailer: <name>` behind the answer's body; HTTP/1.1 sends it only to a client that
//! says `te: trailers`.
//!
//! A server costs one task and one socket while idle, so that hundreds fit into one process. Time is
//! tokio's, so tests can pause it.

mod exchange;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::HeaderValue;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use self::exchange::Exchange;
use super::engine::{Engine, EngineConfig};
use super::page::{Page, PageConfig};
use crate::lifecycle::clock::SystemClock;

/// How long a stopping server waits for answers under way.
const GRACE: Duration = Duration::from_secs(5);
/// Pause before the listener is tried again after an error.
const RETRY: Duration = Duration::from_millis(20);

/// A simulated model server. `Default` is a small, fast one.
#[derive(Clone, Debug)]
pub struct SimConfig {
    /// Name that the answers carry; must be valid as a header value.
    pub name: String,
    /// Base model.
    pub model: String,
    /// LoRA adapters, each a model name of its own; with none the page has no LoRA family.
    pub lora_adapters: Vec<String>,
    /// 404 for models other than these, as vLLM does. Off by default: most tests do not care.
    pub strict_model: bool,
    /// Tokens per KV block, at least 1.
    pub block_size: u32,
    /// KV blocks, at least 1.
    pub num_blocks: u32,
    /// Uncached prompt tokens per second; above 0. One prompt at a time.
    pub prefill_tokens_per_second: f64,
    /// Time from one token of an answer to the next.
    pub decode_step: Duration,
    /// Most requests in the batch, at least 1.
    pub max_num_seqs: usize,
    /// Most requests in the queue, at least 1; beyond it 503.
    pub max_waiting: usize,
    /// Most tokens of a prompt and its answer; the KV cache bounds them anyway.
    pub max_model_len: Option<u32>,
    /// Tokens of an answer that no limit cuts.
    pub answer_tokens: u32,
    /// Streams end with a usage chunk even if the client did not ask.
    pub always_usage: bool,
    /// Largest request body in bytes; beyond it 413. Echo mode has no limit.
    pub max_body: usize,
    /// Real seconds per simulated second: 1 as configured, 0.1 ten times faster, 0 without any delay.
    pub time_scale: f64,
    /// Faults from the start.
    pub faults: Faults,
}

impl Default for SimConfig {
    fn default() -> Self {
        Self {
            name: "sim".to_owned(),
            model: "sim/model".to_owned(),
            lora_adapters: Vec::new(),
            strict_model: false,
            block_size: 16,
            num_blocks: 4096,
            prefill_tokens_per_second: 8000.0,
            decode_step: Duration::from_millis(20),
            max_num_seqs: 64,
            max_waiting: 4096,
            max_model_len: None,
            answer_tokens: 32,
            always_usage: false,
            max_body: 64 << 20,
            time_scale: 1.0,
            faults: Faults::default(),
        }
    }
}

impl SimConfig {
    fn check(&self) -> io::Result<HeaderValue> {
        let wrong = |what: String| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        if self.block_size == 0 || self.num_blocks == 0 {
            return wrong(format!(
                "block_size {} x num_blocks {}: both must be at least 1",
                self.block_size, self.num_blocks
            ));
        }
        if self.max_num_seqs == 0 || self.max_waiting == 0 {
            return wrong(format!(
                "max_num_seqs {} and max_waiting {} must be at least 1",
                self.max_num_seqs, self.max_waiting
            ));
        }
        if !(self.prefill_tokens_per_second.is_finite() && self.prefill_tokens_per_second > 0.0) {
            return wrong(format!("prefill_tokens_per_second {} must be above 0", self.prefill_tokens_per_second));
        }
        if !(self.time_scale.is_finite() && self.time_scale >= 0.0) {
            return wrong(format!("time_scale {} must be 0 or more", self.time_scale));
        }
        HeaderValue::try_from(&self.name).or_else(|_| wrong(format!("name {:?} is no header value", self.name)))
    }
}

/// What is wrong with the server's page of metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MetricsFault {
    /// Nothing.
    #[default]
    None,
    /// 200 with a page of HTML.
    Html,
    /// Samples without end.
    Endless,
    /// The connection ends in the middle of the page.
    Half,
    /// No answer ever.
    Hang,
    /// This status instead of 200, with a short text.
    Status(u16),
    /// NaN for running, waiting and KV usage.
    NaN,
    /// The page comes after this time.
    Slow(Duration),
}

/// What is wrong with the server; `Default` is nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Scrapes.
    pub metrics: MetricsFault,
    /// The port is closed and all connections are dropped, as if the pod had died.
    pub refuse: bool,
    /// Streams break after this many chunks (0: right after the head); whole answers in their middle.
    pub die_after_chunks: Option<u32>,
    /// Real time by which answers of the model APIs come later.
    pub delay: Duration,
    /// This status, with an error in JSON, instead of an answer of the model APIs.
    pub status: Option<u16>,
    /// Two `set-cookie` headers on every answer of the model APIs.
    pub set_cookies: bool,
}

/// What a server counted. Tokens of prompts count when a request enters the batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SimStats {
    /// Requests to the model APIs, refused ones included.
    pub requests: u64,
    /// Requests answered in echo mode.
    pub echoes: u64,
    /// Requests for the page of metrics.
    pub scrapes: u64,
    /// Connections accepted.
    pub connections: u64,
    /// Sequences in the batch now.
    pub running: usize,
    /// Sequences in the queue now.
    pub waiting: usize,
    /// KV blocks held now.
    pub used_blocks: u32,
    /// Prompt tokens of all requests.
    pub prompt_tokens: u64,
    /// Those of them that were found in the cache.
    pub cached_tokens: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Sequences that reached their last token.
    pub finished: u64,
    /// Sequences that were given up before, mostly because the client went away.
    pub aborted: u64,
}

/// What the connections of one server share.
struct Shared {
    config: SimConfig,
    endpoint: HeaderValue,
    engine: Arc<Engine>,
    page: Page,
    clock: SystemClock,
    control: watch::Sender<Control>,
    requests: AtomicU64,
    echoes: AtomicU64,
    scrapes: AtomicU64,
    connections: AtomicU64,
}

#[derive(Clone, Debug, Default)]
struct Control {
    faults: Faults,
    stopping: bool,
}

/// A running server. Dropping it lets answers under way end (for five seconds) and closes the port.
pub struct SimHandle {
    /// Where the server listens; it stays the same when the port is closed and opened by a fault.
    pub address: SocketAddr,
    shared: Arc<Shared>,
    listening: watch::Receiver<bool>,
}

impl fmt::Debug for SimHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimHandle")
            .field("name", &self.shared.config.name)
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// Starts a server on `listener`, or on a port of 127.0.0.1 that the system picks.
///
/// # Errors
/// A configuration out of its ranges ([`io::ErrorKind::InvalidInput`]); no port.
pub async fn start(config: SimConfig, listener: Option<TcpListener>) -> io::Result<SimHandle> {
    let endpoint = config.check()?;
    let listener = match listener {
        Some(listener) => listener,
        None => TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await?,
    };
    let address = listener.local_addr()?;
    let engine = Engine::new(EngineConfig {
        block_size: config.block_size,
        num_blocks: config.num_blocks,
        max_num_seqs: config.max_num_seqs,
        max_waiting: config.max_waiting,
        max_model_len: config.max_model_len.unwrap_or(u32::MAX),
        prefill_tokens_per_second: config.prefill_tokens_per_second,
        decode_step: config.decode_step,
        time_scale: config.time_scale,
        adapters: config.lora_adapters.len(),
    });
    let page = Page::new(&PageConfig {
        model: &config.model,
        block_size: config.block_size,
        num_blocks: config.num_blocks,
        adapters: &config.lora_adapters,
    });
    let (control, changes) = watch::channel(Control { faults: config.faults.clone(), stopping: false });
    let (state, listening) = watch::channel(true);
    let shared = Arc::new(Shared {
        config,
        endpoint,
        engine,
        page,
        clock: SystemClock::new(),
        control,
        requests: AtomicU64::new(0),
        echoes: AtomicU64::new(0),
        scrapes: AtomicU64::new(0),
        connections: AtomicU64::new(0),
    });
    tokio::spawn(accept(Arc::clone(&shared), listener, address, changes, state));
    Ok(SimHandle { address, shared, listening })
}

impl SimHandle {
    /// Name of the endpoint, as answers carry it.
    pub fn name(&self) -> &str {
        &self.shared.config.name
    }

    /// `http://address` and `path`.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// What was counted up to now.
    pub fn stats(&self) -> SimStats {
        let shared = &self.shared;
        let readings = shared.engine.readings();
        SimStats {
            requests: shared.requests.load(Ordering::Relaxed),
            echoes: shared.echoes.load(Ordering::Relaxed),
            scrapes: shared.scrapes.load(Ordering::Relaxed),
            connections: shared.connections.load(Ordering::Relaxed),
            running: readings.running,
            waiting: readings.waiting,
            used_blocks: readings.used_blocks,
            prompt_tokens: readings.prompt_tokens,
            cached_tokens: readings.cached_tokens,
            generated_tokens: readings.generated_tokens,
            finished: readings.finished,
            aborted: readings.aborted,
        }
    }

    /// Changes what is wrong with the server. New requests see it at once; closing and opening the
    /// port takes the server a moment, see [`SimHandle::listening`].
    pub fn set_fault(&self, change: impl FnOnce(&mut Faults)) {
        self.shared.control.send_modify(|control| change(&mut control.faults));
    }

    /// Ends all faults.
    pub fn clear_faults(&self) {
        self.set_fault(|faults| *faults = Faults::default());
    }

    /// What is wrong with the server now.
    pub fn faults(&self) -> Faults {
        self.shared.control.borrow().faults.clone()
    }

    /// Waits until the port is open (`wanted`) or closed.
    pub async fn listening(&self, wanted: bool) {
        // An error means that the server has ended, which is as closed as can be.
        let _ = self.listening.clone().wait_for(|open| *open == wanted).await;
    }

    /// Forgets the prefix cache.
    pub fn clear_cache(&self) {
        self.shared.engine.clear_cache();
    }

    /// Closes the port, lets answers under way end (for five seconds) and returns when all is gone.
    pub async fn stop(&self) {
        self.shared.control.send_modify(|control| control.stopping = true);
        self.shared.control.closed().await;
    }
}

impl Drop for SimHandle {
    fn drop(&mut self) {
        self.shared.control.send_modify(|control| control.stopping = true);
    }
}

async fn accept(
    shared: Arc<Shared>,
    listener: TcpListener,
    address: SocketAddr,
    mut changes: watch::Receiver<Control>,
    state: watch::Sender<bool>,
) {
    let mut listener = Some(listener);
    loop {
        let (stopping, refuse) = {
            let control = changes.borrow_and_update();
            (control.stopping, control.faults.refuse)
        };
        if stopping {
            return;
        }
        if refuse {
            listener = None;
        } else if listener.is_none() {
            // Somebody may have taken the port, or its old connections linger: try again.
            listener = TcpListener::bind(address).await.ok();
        }
        state.send_replace(listener.is_some());
        tokio::select! {
            // The only sender lives as long as `shared`, which this task holds.
            _ = changes.changed() => {}
            accepted = async {
                match &listener {
                    Some(listener) => listener.accept().await,
                    None if refuse => std::future::pending().await,
                    None => Err(io::Error::other("not bound")),
                }
            } => match accepted {
                Ok((stream, _)) => {
                    shared.connections.fetch_add(1, Ordering::Relaxed);
                    tokio::spawn(serve(Arc::clone(&shared), stream, changes.clone()));
                }
                // Out of file descriptors, most likely; or the port is not free yet.
                Err(_) => tokio::time::sleep(RETRY).await,
            },
        }
    }
}

async fn serve(shared: Arc<Shared>, stream: TcpStream, mut changes: watch::Receiver<Control>) {
    // Fails only for a socket that is dead already, which the first read will tell.
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request| {
        let exchange = Exchange::new(Arc::clone(&shared));
        async move { Ok::<_, std::convert::Infallible>(exchange.answer(request).await) }
    });
    // No header timeout: it would need a timer per connection to guard against clients we own.
    let mut http = hyper::server::conn::http1::Builder::new();
    let connection = http.header_read_timeout(None).serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let mut leaving = false;
    let grace = tokio::time::sleep(Duration::ZERO);
    tokio::pin!(grace);
    loop {
        let control = {
            let control = changes.borrow_and_update();
            (control.stopping, control.faults.refuse)
        };
        match control {
            (_, true) => return,
            (true, false) if !leaving => {
                leaving = true;
                grace.as_mut().reset(tokio::time::Instant::now() + GRACE);
                connection.as_mut().graceful_shutdown();
            }
            _ => {}
        }
        tokio::select! {
            // An error is a client that broke off, or a fault that breaks the answer off.
            _ = connection.as_mut() => return,
            _ = changes.changed() => {}
            () = grace.as_mut(), if leaving => return,
        }
    }
}
