//! Reads every endpoint's metrics page and reports its load.
//!
//! One task for each endpoint (`endpoint`) with its own connection (`scrape`), timeout and back-off, so that one
//! slow or dead server delays no other; all of them on one thread ([`thread`]). A page is read as it arrives ([`parse`]), only for the series that
//! plugins asked for ([`mapping`]), into one [`LoadSample`] ([`reading`]). The parameters come from two
//! plugins ([`plugins`]).
//!
//! Invariants: nothing is fetched that was not asked for (no wanted metric, no connection); no page, however
//! long or odd, takes more than a bounded amount of memory and time; a failed poll reports no sample, so the
//! age of the last one shows; a report carries the generation of its endpoint, so that one that crosses
//! the endpoint's removal can be told from its slot's next owner.
//!
//! Rejected: one loop that polls all endpoints in turn (the slowest sets the pace), and a shared pool of
//! connections (a failure domain shared by all).

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinError, JoinSet};

use crate::domain::{Endpoint, LoadSample, Slot, Topology};
use crate::lifecycle::clock::Clock;
use crate::scheduling::plugin::Metric;

mod endpoint;
pub mod http1;
pub mod mapping;
pub mod parse;
pub mod plugins;
pub mod reading;
mod scrape;
pub mod thread;
pub mod tls;

pub use mapping::{EngineMapping, MetricSpec, Plan};
pub use plugins::{
    ExtractorParams, MIN_INTERVAL, ROWS, Row, SOURCE_KIND, Scheme, SourceParams, decode_extractor, decode_source,
};
pub use tls::TlsError;

/// Why a poll gave no sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PollError {
    /// No connection, or it broke before the page was complete.
    Connect,
    /// No complete page in time.
    Timeout,
    /// A status other than 200.
    Status,
    /// The page is longer than allowed.
    TooLarge,
    /// Not HTTP, not a metrics page, or cut off inside a line.
    Parse,
    /// A metrics page without any of the load gauges of the endpoint's engine.
    MissingFamily,
}

impl PollError {
    /// All causes, for metric labels.
    pub const ALL: [Self; 6] =
        [Self::Connect, Self::Timeout, Self::Status, Self::TooLarge, Self::Parse, Self::MissingFamily];

    /// The value of a metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Timeout => "timeout",
            Self::Status => "status",
            Self::TooLarge => "too-large",
            Self::Parse => "parse",
            Self::MissingFamily => "missing-family",
        }
    }
}

impl fmt::Display for PollError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "no connection, or it broke; check port and scheme, and that network policies allow it",
            Self::Timeout => "no complete page in time; the server may be overloaded",
            Self::Status => "the answer is not 200; check the path of metrics-data-source",
            Self::TooLarge => "the page is larger than allowed",
            Self::Parse => "the answer is not a complete metrics page; check path and scheme of metrics-data-source",
            Self::MissingFamily => "the page has no load metric of this engine; check the engine label of the pod",
        })
    }
}

/// Where samples go. Called from the endpoints' tasks, so it must not block.
pub trait SampleSink: Send + Sync {
    /// A page was read.
    fn report(&self, slot: Slot, generation: u64, sample: LoadSample);
    /// A poll failed; there is no sample.
    fn poll_failed(&self, slot: Slot, generation: u64, cause: PollError);
}

/// What to fetch, from where, how often.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Time between two polls of an endpoint.
    pub interval: Duration,
    /// Time that one fetch may take, connecting included.
    pub timeout: Duration,
    /// Plain or TLS.
    pub scheme: Scheme,
    /// Path of the page.
    pub path: String,
    /// Port of the page, if it is not the endpoint's own.
    pub port: Option<u16>,
    /// Take any server certificate.
    pub insecure_skip_verify: bool,
    /// PEM file with the authorities to trust.
    pub ca_cert: Option<PathBuf>,
    /// PEM file with our certificate.
    pub client_cert: Option<PathBuf>,
    /// PEM file with its key.
    pub client_key: Option<PathBuf>,
    /// Longest page in bytes; a longer one is cut off and the poll fails.
    pub max_page: usize,
    /// What plugins read. If empty, nothing is fetched.
    pub wanted: BTreeSet<Metric>,
    /// Known engines.
    pub engines: Vec<EngineMapping>,
    /// Labels that name an endpoint's engine; the first that is there counts.
    pub engine_labels: Vec<String>,
    /// Engine of the other endpoints.
    pub default_engine: String,
}

impl Settings {
    /// Poll interval where neither flag nor parameter sets one.
    pub const DEFAULT_INTERVAL: Duration = MIN_INTERVAL;
    /// Time that one fetch may take.
    pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1);
    /// Longest page, 8 MiB: a hundred times vLLM's.
    pub const DEFAULT_MAX_PAGE: usize = 8 << 20;

    /// Combines the two plugins' parameters. The interval is the parameter's, else the default: a flag that
    /// should count instead is put into `source.interval` first, where that is empty.
    pub fn resolve(source: &SourceParams, extractor: &ExtractorParams, wanted: BTreeSet<Metric>) -> Self {
        Self {
            interval: source.interval.unwrap_or(Self::DEFAULT_INTERVAL).max(MIN_INTERVAL),
            timeout: Self::DEFAULT_TIMEOUT,
            scheme: source.scheme,
            path: source.path.clone(),
            port: source.port,
            insecure_skip_verify: source.insecure_skip_verify,
            ca_cert: source.ca_cert_path.as_ref().map(PathBuf::from),
            client_cert: source.client_cert_path.as_ref().map(PathBuf::from),
            client_key: source.client_key_path.as_ref().map(PathBuf::from),
            max_page: Self::DEFAULT_MAX_PAGE,
            engines: extractor.engines_for(&wanted),
            wanted,
            engine_labels: extractor.label_keys(),
            default_engine: extractor.default_engine.clone(),
        }
    }
}

/// One running task.
struct Running {
    generation: u64,
    address: SocketAddr,
    engine: usize,
    task: AbortHandle,
}

struct Collector {
    settings: Settings,
    tls: Option<Arc<ClientConfig>>,
    /// By index of the engine.
    plans: Vec<Arc<Plan>>,
    sink: Arc<dyn SampleSink>,
    clock: Arc<dyn Clock>,
    buffer: scrape::Buffer,
    tasks: JoinSet<()>,
    running: HashMap<Slot, Running>,
}

/// Polls the endpoints of `topology`, as it changes, until `stop` completes.
///
/// # Errors
/// With https, if a certificate file cannot be used; [`tls::load`] finds out beforehand.
pub async fn run(
    settings: Settings,
    mut topology: watch::Receiver<Arc<Topology>>,
    sink: Arc<dyn SampleSink>,
    clock: Arc<dyn Clock>,
    stop: impl Future<Output = ()>,
) -> Result<(), TlsError> {
    let plans: Vec<_> = settings.engines.iter().map(|e| Arc::new(Plan::new(e, &settings.wanted))).collect();
    if plans.iter().all(|p| p.is_empty()) {
        tracing::info!("no plugin reads a metric, so no metrics page is fetched");
        stop.await;
        return Ok(());
    }
    let tls = tls::load(&settings)?;
    tokio::pin!(stop);
    let mut collector = Collector {
        settings,
        tls,
        plans,
        sink,
        clock,
        buffer: scrape::Buffer::default(),
        tasks: JoinSet::new(),
        running: HashMap::new(),
    };
    let mut discovery = true;
    // A defect that shows on every page must not spin.
    let restart = collector.settings.interval.saturating_mul(20).min(endpoint::MAX_PAUSE);
    let now = Arc::clone(&topology.borrow_and_update());
    collector.reconcile(&now, Duration::ZERO);
    loop {
        tokio::select! {
            () = &mut stop => return Ok(()),
            changed = topology.changed(), if discovery => match changed {
                Ok(()) => {
                    let now = Arc::clone(&topology.borrow_and_update());
                    collector.reconcile(&now, Duration::ZERO);
                }
                // Without discovery the endpoints that are known stay.
                Err(_) => discovery = false,
            },
            Some(ended) = collector.tasks.join_next_with_id() => {
                if collector.bury(ended) {
                    let now = Arc::clone(&topology.borrow());
                    collector.reconcile(&now, restart);
                }
            }
        }
    }
}

impl Collector {
    /// Ends the tasks of endpoints that are gone and starts those of new ones, which first wait for `delay`.
    fn reconcile(&mut self, topology: &Topology, delay: Duration) {
        let settings = &self.settings;
        fn choose<'e>(settings: &Settings, endpoint: &'e Endpoint) -> (Option<usize>, Option<&'e str>) {
            mapping::choose(&settings.engines, &settings.engine_labels, &settings.default_engine, endpoint)
        }
        self.running.retain(|slot, running| {
            let keep = topology.get(*slot).is_some_and(|endpoint| {
                endpoint.generation == running.generation
                    && endpoint.spec.address == running.address
                    && choose(settings, endpoint).0 == Some(running.engine)
            });
            if !keep {
                running.task.abort();
            }
            keep
        });
        for endpoint in topology.endpoints() {
            if self.running.contains_key(&endpoint.slot) {
                continue;
            }
            let (Some(engine), unknown) = choose(settings, endpoint) else { continue };
            if let Some(label) = unknown {
                tracing::warn!(
                    endpoint = endpoint.name(),
                    engine = label,
                    default = settings.default_engine,
                    "the engine label names no known engine, so the default is assumed; describe it in engineConfigs"
                );
            }
            let plan = &self.plans[engine];
            if plan.is_empty() {
                continue;
            }
            let address = endpoint.spec.address;
            let Some(target) = scrape::Target::new(settings, self.tls.as_ref(), address, plan) else { continue };
            let poller = endpoint::Poller::new(
                Arc::clone(endpoint),
                Arc::clone(plan),
                target,
                settings.interval,
                self.buffer.clone(),
                Arc::clone(&self.sink),
                Arc::clone(&self.clock),
            );
            let task = self.tasks.spawn(poller.run(delay));
            self.running.insert(endpoint.slot, Running { generation: endpoint.generation, address, engine, task });
        }
    }

    /// Notes the end of a task; whether an endpoint has none now. Only a panic (a defect) ends one that was not aborted,
    /// and then the endpoint gets another after a pause.
    fn bury(&mut self, ended: Result<(tokio::task::Id, ()), JoinError>) -> bool {
        let id = match &ended {
            Ok((id, ())) => *id,
            Err(error) => error.id(),
        };
        let before = self.running.len();
        self.running.retain(|_, running| running.task.id() != id);
        let lost = self.running.len() < before;
        if lost {
            tracing::error!("the task that polls an endpoint's metrics ended by itself and is started again");
        }
        lost
    }
}

#[cfg(test)]
mod tests;
