//! The metrics of the process and the page that shows them.
//!
//! A request looks its label set up once ([`Metrics::request`]) and observes through the handles it
//! got; an observation is a few atomic additions. What can be read from state is read when the page is
//! made ([`Metrics::watch_pool`], [`Metrics::register`]), so there is no gauge to keep in step. The
//! older names are derived from the current families on the page ([`twins`]).
//!
//! Bounds (llm-d-router.md 5.1): model and target model share 1000 values per process, the fairness id
//! has 1000, the priority 64; further values become `other`. Label sets of requests are bounded to
//! [`MAX_LABEL_SETS`], beyond which the fairness id is folded first and then the whole set, so that the
//! product of the caps cannot fill the memory. A label set takes up to about 12 KiB, and 40 KiB of page.
//!
//! Rejected: a global registry (tests share state), and metric vectors looked up by label per
//! observation (twice the cost, and see [`family`]).

pub mod catalog;
mod dispatch;
pub mod family;
mod pool;
mod prefix;
mod process;
pub mod scores;
#[cfg(test)]
mod tests;
pub mod twins;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use prometheus::proto::MetricFamily;
use prometheus::{Encoder, Histogram, TextEncoder};
use smallvec::SmallVec;

use self::catalog as c;
pub use self::dispatch::{DispatchMetrics, DispatchReason};
pub use self::family::{Count, Family, LabelCap, Lazy, OTHER, Page};
pub use self::prefix::PrefixMetrics;
use crate::domain::{AccountView, Endpoint, Outcome, Snapshot, Timestamp, Usage};
use crate::lifecycle::clock::Clock;
use crate::scheduling::profile::Run;
use scores::Scores;

/// Content type of the page.
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// Distinct model names, source and target together.
pub const MAX_MODELS: usize = 1000;
/// Distinct priorities.
pub const MAX_PRIORITIES: usize = 64;
/// Label sets of the request metrics.
pub const MAX_LABEL_SETS: usize = 2048;
/// Room beyond [`MAX_LABEL_SETS`] for sets whose fairness id was folded.
const FOLDED_LABEL_SETS: usize = 1024;
/// Endpoint names in `scheduler_attempts_total`, which never forgets one.
const MAX_ENDPOINT_LABELS: usize = 2000;
/// Children of `scheduler_attempts_total`.
const MAX_ATTEMPTS: usize = 16_384;
/// Children of families whose labels come from the configuration.
const MAX_CONFIGURED: usize = 1024;
/// Error codes of one label set.
const MAX_CODES: usize = 32;

/// What the process says about itself, and bounds that flags may change.
#[derive(Clone, Debug)]
pub struct MetricsOptions {
    /// Commit of the build, for `info`.
    pub commit: String,
    /// Version or tag of the build, for `info`.
    pub build_ref: String,
    /// Whether the `extproc_streams_*` families are shown (`--enable-grpc-stream-metrics`).
    pub grpc_stream_metrics: bool,
    /// Distinct fairness ids; zero folds all.
    pub max_fairness_ids: usize,
}

impl Default for MetricsOptions {
    fn default() -> Self {
        Self {
            commit: option_env!("POINTSMAN_COMMIT").unwrap_or("unknown").to_owned(),
            build_ref: concat!("v", env!("CARGO_PKG_VERSION")).to_owned(),
            grpc_stream_metrics: false,
            max_fairness_ids: 1000,
        }
    }
}

type Source = Arc<dyn Fn(&mut Page) + Send + Sync>;

/// What the page shows of one watch of the cluster.
#[derive(Clone, Debug)]
pub struct WatchPage {
    /// What is watched; of a closed set, as are the names of states and reasons.
    pub resource: &'static str,
    /// Every state and whether it is the present one.
    pub states: Vec<(&'static str, bool)>,
    /// How long ago the API server last said something; absent if it never did.
    pub age: Option<Duration>,
    /// Objects that are held.
    pub objects: u64,
    /// How often an object could not be read.
    pub unreadable: u64,
    /// Failures by reason.
    pub failures: Vec<(&'static str, u64)>,
}

/// All metrics of the process.
pub struct Metrics {
    options: MetricsOptions,
    models: LabelCap,
    fairness: LabelCap,
    priorities: LabelCap,
    endpoints: LabelCap,
    /// Label sets, the last [`FOLDED_LABEL_SETS`] places only for folded ones.
    requests: Family<RequestMetrics>,
    folded: Family<RequestMetrics>,
    attempts: Family<Count>,
    plugins: Family<Lazy>,
    prefix: Family<PrefixMetrics>,
    scores: Arc<Scores>,
    rewrites: Family<Count>,
    poll_errors: Family<Count>,
    extract_errors: Family<Count>,
    stream_codes: Family<Count>,
    outcomes: [Count; Outcome::ALL.len()],
    scheduler: Histogram,
    request_processing: Histogram,
    response_processing: Histogram,
    streams_open: AtomicI64,
    stream_duration: Histogram,
    sources: RwLock<Vec<Source>>,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").field("label_sets", &self.requests.len()).finish_non_exhaustive()
    }
}

impl Metrics {
    /// Metrics with default options.
    pub fn new() -> Arc<Self> {
        Self::with_options(MetricsOptions::default())
    }

    /// Metrics with nothing observed.
    pub fn with_options(options: MetricsOptions) -> Arc<Self> {
        Arc::new(Self {
            models: LabelCap::new(MAX_MODELS),
            fairness: LabelCap::new(options.max_fairness_ids),
            priorities: LabelCap::new(MAX_PRIORITIES),
            endpoints: LabelCap::new(MAX_ENDPOINT_LABELS),
            requests: Family::new(MAX_LABEL_SETS),
            folded: Family::new(FOLDED_LABEL_SETS),
            attempts: Family::new(MAX_ATTEMPTS),
            plugins: Family::new(MAX_CONFIGURED),
            prefix: Family::new(MAX_CONFIGURED),
            scores: Arc::default(),
            rewrites: Family::new(MAX_CONFIGURED * 4),
            poll_errors: Family::new(MAX_CONFIGURED),
            extract_errors: Family::new(MAX_CONFIGURED),
            stream_codes: Family::new(32),
            outcomes: Default::default(),
            scheduler: family::histogram(c::SCHEDULER_DURATION.buckets),
            request_processing: family::histogram(c::REQUEST_PROCESSING.buckets),
            response_processing: family::histogram(c::RESPONSE_PROCESSING.buckets),
            streams_open: AtomicI64::new(0),
            stream_duration: family::histogram(c::STREAM_DURATION.buckets),
            sources: RwLock::default(),
            options,
        })
    }

    // Requests.

    /// The handles of one label set; one look-up without allocation once the set is known.
    pub fn request(&self, model: &str, target: &str, fairness: &str, priority: i32) -> Arc<RequestMetrics> {
        let digits;
        // Nearly every request has one of these.
        let priority = match priority {
            0 => "0",
            1 => "1",
            -1 => "-1",
            _ => {
                digits = priority.to_string();
                digits.as_str()
            }
        };
        if let Some(known) = self.requests.get(&[model, target, fairness, priority]) {
            return known;
        }
        let model = self.models.bound(model);
        let target = self.models.bound(target);
        let fairness = self.fairness.bound(fairness);
        let priority = self.priorities.bound(priority);
        // `requests` is asked before `folded` at each step: once it is full it never grows again, so
        // no label set can be in both and appear twice on the page.
        let folded = [model, target, OTHER, priority];
        let nothing = [OTHER; 4];
        self.requests
            .try_with(&[model, target, fairness, priority])
            .or_else(|| self.requests.get(&folded))
            .or_else(|| self.folded.try_with(&folded))
            .or_else(|| self.requests.get(&nothing))
            .unwrap_or_else(|| self.folded.with(&nothing))
    }

    /// Lets names from the configuration (model rewrites) keep their own label whatever clients send.
    pub fn pin_models<'a>(&self, names: impl IntoIterator<Item = &'a str>) {
        self.models.pin(names);
    }

    /// Counts the end of a request. Exactly once per request.
    pub fn outcome(&self, outcome: Outcome) {
        if let Some(at) = Outcome::ALL.iter().position(|o| *o == outcome) {
            self.outcomes[at].inc();
        }
    }

    /// Time from the request headers to our answer.
    pub fn observe_request_processing(&self, took: Duration) {
        self.request_processing.observe(took.as_secs_f64());
    }

    /// Our own time on the messages of one response, summed up.
    pub fn observe_response_processing(&self, took: Duration) {
        self.response_processing.observe(took.as_secs_f64());
    }

    /// Counts a rewrite of a model name.
    pub fn model_rewrite(&self, rule: &str, model: &str, target: &str) {
        let (model, target) = (self.models.bound(model), self.models.bound(target));
        self.rewrites.with(&[rule, model, target]).inc();
    }

    // Scheduling.

    /// Counts a decision: `endpoint` is the destination, or `None` when there was none.
    pub fn scheduler_attempt(&self, target: &str, endpoint: Option<&Endpoint>) {
        let target = self.models.bound(target);
        match endpoint {
            None => self.attempts.with(&["failure", target, "", "", ""]).inc(),
            Some(endpoint) => {
                let port = endpoint.spec.address.port().to_string();
                let name = self.endpoints.bound(endpoint.name());
                self.attempts.with(&["success", target, name, &endpoint.spec.namespace, &port]).inc();
            }
        }
    }

    /// Time of one decision.
    pub fn observe_scheduling(&self, took: Duration) {
        self.scheduler.observe(took.as_secs_f64());
    }

    /// The timer of one plugin at one extension point; resolve it when the plugin is built.
    pub fn plugin(&self, extension_point: &str, plugin_type: &str, plugin_name: &str) -> PluginTimer {
        PluginTimer { lazy: self.plugins.with(&[extension_point, plugin_type, plugin_name]) }
    }

    /// The look-up metrics of one prefix index; resolve them when the plugin is built.
    pub fn prefix_index(&self, plugin_name: &str, plugin_type: &str) -> Arc<PrefixMetrics> {
        self.prefix.with(&[plugin_name, plugin_type])
    }

    /// Keeps the scores of an observed run for the page.
    pub fn record_scores(&self, run: &Run) {
        self.scores.record(run);
    }

    // Inputs.

    /// The counter of failed reads of one source, such as `metrics-data-source`.
    pub fn poll_errors(&self, source_type: &str) -> Arc<Count> {
        self.poll_errors.with(&[source_type])
    }

    /// The counter of answers of a source that an extractor could not use.
    pub fn extract_errors(&self, source_type: &str, extractor_type: &str) -> Arc<Count> {
        self.extract_errors.with(&[source_type, extractor_type])
    }

    /// Counts an open ext_proc stream until the guard ends.
    pub fn stream_opened(self: &Arc<Self>) -> StreamGuard {
        self.streams_open.fetch_add(1, Ordering::Relaxed);
        StreamGuard { metrics: Arc::clone(self), finished: false }
    }

    // The page.

    /// Adds a source that is asked whenever the page is made. It must not block.
    pub fn register(&self, source: impl Fn(&mut Page) + Send + Sync + 'static) {
        self.sources.write().push(Arc::new(source));
    }

    /// Shows the gauges of the pool; `in_flight` names the producer that counts in-flight work.
    pub fn watch_pool(
        &self,
        clock: Arc<dyn Clock>,
        in_flight: Option<String>,
        snapshot: impl Fn() -> Arc<Snapshot> + Send + Sync + 'static,
    ) {
        self.register(move |page| pool::collect(page, &snapshot(), clock.now(), in_flight.as_deref()));
    }

    /// Shows the picker's own accounts of the endpoints, which `accounts` reads.
    pub fn watch_accounts(
        &self,
        clock: Arc<dyn Clock>,
        snapshot: impl Fn() -> Arc<Snapshot> + Send + Sync + 'static,
        accounts: impl Fn(&Snapshot, Timestamp) -> Option<AccountView> + Send + Sync + 'static,
    ) {
        self.register(move |page| {
            let snapshot = snapshot();
            if let Some(accounts) = accounts(&snapshot, clock.now()) {
                pool::collect_accounts(page, &snapshot, &accounts);
            }
        });
    }

    /// Shows the last scores of the endpoints; `kinds` are plugin types by name.
    pub fn watch_scores(
        &self,
        kinds: Vec<(Arc<str>, &'static str)>,
        snapshot: impl Fn() -> Arc<Snapshot> + Send + Sync + 'static,
    ) {
        let scores = Arc::clone(&self.scores);
        self.register(move |page| scores.collect(page, &snapshot(), &kinds));
    }

    /// Shows what is switched on, as (feature, plugin or flag).
    pub fn show_features(&self, features: Vec<(String, String)>) {
        self.register(move |page| {
            for (feature, plugin) in features.iter().take(MAX_CONFIGURED) {
                page.value(&c::FEATURES, &[feature, plugin], 1.0);
            }
        });
    }

    /// Shows how full the stages of the pool are; a stage of which nothing is known is absent.
    pub fn watch_saturation(
        &self,
        pool: String,
        levels: impl Fn() -> [(&'static str, Option<f64>); 3] + Send + Sync + 'static,
    ) {
        self.register(move |page| {
            for (stage, level) in levels() {
                if let Some(level) = level {
                    page.value(&c::POOL_SATURATION, &[pool.as_str(), stage], level);
                }
            }
        });
    }

    /// Shows what became of requests at just-in-time dispatch; `held` is (requests, bytes) now.
    pub fn watch_dispatch(&self, counts: Arc<DispatchMetrics>, held: impl Fn() -> (u64, u64) + Send + Sync + 'static) {
        self.register(move |page| counts.collect(page, held()));
    }

    /// Shows how many spans were recorded, exported, and lost because the collector did not take them.
    pub fn watch_spans(&self, counts: impl Fn() -> [u64; 3] + Send + Sync + 'static) {
        self.register(move |page| {
            for (result, count) in ["recorded", "exported", "failed"].into_iter().zip(counts()) {
                page.value(&c::TRACE_SPANS, &[result], count as f64);
            }
        });
    }

    /// Shows the lines of the decision log: those written and those dropped.
    pub fn watch_decision_log(&self, counts: impl Fn() -> [u64; 2] + Send + Sync + 'static) {
        self.register(move |page| {
            for (result, count) in ["written", "dropped"].into_iter().zip(counts()) {
                page.value(&c::DECISION_LOG_LINES, &[result], count as f64);
            }
        });
    }

    /// Shows whether this process leads by the lease `name`: whether it does, how often that changed, and
    /// the time since the lease was last heard of.
    pub fn watch_leadership(
        &self,
        name: String,
        view: impl Fn() -> (bool, u64, Option<Duration>) + Send + Sync + 'static,
    ) {
        self.register(move |page| {
            let (leads, transitions, age) = view();
            page.value(&c::LEADER, &[&name], f64::from(u8::from(leads)));
            page.value(&c::LEADER_TRANSITIONS, &[&name], transitions as f64);
            if let Some(age) = age {
                page.value(&c::LEADER_CONTACT, &[&name], age.as_secs_f64());
            }
        });
    }

    /// Shows the watches of the cluster.
    pub fn watch_watches(&self, watches: impl Fn() -> Vec<WatchPage> + Send + Sync + 'static) {
        self.register(move |page| {
            for watch in watches() {
                let resource = watch.resource;
                for (state, present) in watch.states {
                    page.value(&c::DISCOVERY_STATE, &[resource, state], f64::from(u8::from(present)));
                }
                if let Some(age) = watch.age {
                    page.value(&c::DISCOVERY_AGE, &[resource], age.as_secs_f64());
                }
                page.value(&c::DISCOVERY_OBJECTS, &[resource], watch.objects as f64);
                page.value(&c::DISCOVERY_UNREADABLE, &[resource], watch.unreadable as f64);
                for (reason, count) in watch.failures {
                    page.value(&c::DISCOVERY_FAILURES, &[resource, reason], count as f64);
                }
            }
        });
    }

    /// Shows the sizes of prefix indexes, as (plugin name, plugin type, entries).
    pub fn watch_prefix_size(&self, sizes: impl Fn() -> Vec<(String, String, u64)> + Send + Sync + 'static) {
        self.register(move |page| {
            for (name, kind, entries) in sizes() {
                page.value(&c::PREFIX_SIZE, &[name, kind], entries as f64);
            }
        });
    }

    /// Shows how many log lines were dropped.
    pub fn watch_dropped_log_lines(&self, dropped: impl Fn() -> u64 + Send + Sync + 'static) {
        self.register(move |page| page.value::<&str>(&c::LOG_LINES_DROPPED, &[], dropped() as f64));
    }

    /// All families with at least one child, current and older names, by name.
    pub fn gather(&self) -> Vec<MetricFamily> {
        let mut page = Page::default();
        page.value(&c::INFO, &[&self.options.commit, &self.options.build_ref], 1.0);
        page.always(&c::SCHEDULER_DURATION, &self.scheduler);
        page.always(&c::REQUEST_PROCESSING, &self.request_processing);
        page.always(&c::RESPONSE_PROCESSING, &self.response_processing);
        for (outcome, count) in Outcome::ALL.iter().zip(&self.outcomes) {
            page.value(&c::OUTCOMES, &[outcome.as_str()], count.get() as f64);
        }
        let sets = self.requests.len() + self.folded.len();
        page.value::<&str>(&c::LABEL_SETS, &[], sets as f64);
        if self.options.grpc_stream_metrics {
            page.value::<&str>(&c::STREAMS_IN_FLIGHT, &[], self.streams_open.load(Ordering::Relaxed).max(0) as f64);
            page.always(&c::STREAM_DURATION, &self.stream_duration);
            counts(&mut page, &c::STREAMS_TOTAL, &self.stream_codes);
        }
        counts(&mut page, &c::SCHEDULER_ATTEMPTS, &self.attempts);
        counts(&mut page, &c::MODEL_REWRITES, &self.rewrites);
        counts(&mut page, &c::POLL_ERRORS, &self.poll_errors);
        counts(&mut page, &c::EXTRACT_ERRORS, &self.extract_errors);
        self.plugins.for_each(|labels, lazy| page.lazy(&c::PLUGIN_DURATION, labels, lazy));
        self.prefix.for_each(|labels, prefix| prefix.collect(&mut page, labels));
        self.requests.for_each(|labels, request| request.collect(&mut page, labels));
        self.folded.for_each(|labels, request| request.collect(&mut page, labels));
        process::collect(&mut page);
        let sources = self.sources.read().clone();
        for source in sources {
            source(&mut page);
        }
        let mut families = page.into_families();
        twins::add(&mut families);
        families.sort_unstable_by(|a, b| a.name().cmp(b.name()));
        families
    }

    /// The page in the Prometheus text format 0.0.4 ([`CONTENT_TYPE`]). Takes milliseconds when there
    /// are thousands of series: call it off the threads that serve traffic.
    pub fn render(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 * 1024);
        if let Err(error) = TextEncoder::new().encode(&self.gather(), &mut out) {
            tracing::error!(%error, "cannot write the metrics page");
        }
        out
    }
}

fn counts(page: &mut Page, spec: &c::Spec, family: &Family<Count>) {
    family.for_each(|labels, count| page.value(spec, labels, count.get() as f64));
}

/// The handles of one label set. Values in seconds, bytes or tokens as the method says.
#[derive(Debug, Default)]
pub struct RequestMetrics {
    total: Count,
    running: AtomicI64,
    errors: Mutex<SmallVec<[(&'static str, u64); 2]>>,
    duration: Lazy,
    request_size: Lazy,
    response_size: Lazy,
    input_tokens: Lazy,
    output_tokens: Lazy,
    cached_tokens: Lazy,
    ntpot: Lazy,
    tpot: Lazy,
    itl: Lazy,
    ttft: Lazy,
    ttft_streaming: Lazy,
}

impl RequestMetrics {
    /// Counts a request.
    pub fn received(&self) {
        self.total.inc();
    }

    /// Counts the request as running until the guard is dropped.
    pub fn running(self: &Arc<Self>) -> Running {
        self.running.fetch_add(1, Ordering::Relaxed);
        Running { request: Arc::clone(self) }
    }

    /// Counts an error; `code` is a class from a closed set.
    pub fn error(&self, code: &'static str) {
        let mut errors = self.errors.lock();
        if let Some((_, count)) = errors.iter_mut().find(|(c, _)| *c == code) {
            *count += 1;
        } else if errors.len() < MAX_CODES {
            errors.push((code, 1));
        } else if let Some((_, count)) = errors.iter_mut().find(|(c, _)| *c == OTHER) {
            *count += 1;
        } else {
            errors.push((OTHER, 1));
        }
    }

    /// Time from the request headers to the end of the response.
    pub fn observe_duration(&self, took: Duration) {
        self.duration.observe(&c::REQUEST_DURATION, took.as_secs_f64());
    }

    /// Size of the request body in bytes.
    pub fn observe_request_size(&self, bytes: u64) {
        self.request_size.observe(&c::REQUEST_SIZE, bytes as f64);
    }

    /// Size of the response body in bytes.
    pub fn observe_response_size(&self, bytes: u64) {
        self.response_size.observe(&c::RESPONSE_SIZE, bytes as f64);
    }

    /// What the model server counted; what it did not count is not observed.
    pub fn observe_usage(&self, usage: &Usage) {
        let tokens = [
            (usage.prompt_tokens, &self.input_tokens, &c::INPUT_TOKENS),
            (usage.completion_tokens, &self.output_tokens, &c::OUTPUT_TOKENS),
            (usage.cached_tokens, &self.cached_tokens, &c::CACHED_TOKENS),
        ];
        for (count, lazy, spec) in tokens {
            if let Some(count) = count {
                lazy.observe(spec, count as f64);
            }
        }
    }

    /// Time from the request headers to the first bytes of the response body.
    pub fn observe_ttft(&self, took: Duration, streaming: bool) {
        let lazy = if streaming { &self.ttft_streaming } else { &self.ttft };
        lazy.observe(&c::TTFT, took.as_secs_f64());
    }

    /// Duration over generated tokens. Without tokens nothing is observed.
    pub fn observe_ntpot(&self, took: Duration, tokens: u64) {
        if tokens > 0 {
            self.ntpot.observe(&c::NTPOT, took.as_secs_f64() / tokens as f64);
        }
    }

    /// Mean time per token after the first of a streamed answer; `after_first` is the time from the
    /// first to the last. With fewer than two tokens nothing is observed.
    pub fn observe_tpot(&self, after_first: Duration, tokens: u64) {
        if tokens > 1 {
            self.tpot.observe(&c::TPOT, after_first.as_secs_f64() / (tokens - 1) as f64);
        }
    }

    /// Time between two successive chunks of a streamed answer.
    pub fn observe_itl(&self, gap: Duration) {
        self.itl.observe(&c::ITL, gap.as_secs_f64());
    }

    fn collect(&self, page: &mut Page, labels: &[Box<str>]) {
        page.value(&c::REQUEST_TOTAL, labels, self.total.get() as f64);
        page.value(&c::REQUEST_RUNNING, labels, self.running.load(Ordering::Relaxed).max(0) as f64);
        let with =
            |last: &str| -> Vec<String> { labels.iter().map(|l| l.to_string()).chain([last.to_owned()]).collect() };
        let errors = self.errors.lock().clone();
        for (code, count) in errors {
            page.value(&c::REQUEST_ERROR_TOTAL, &with(code), count as f64);
        }
        page.lazy(&c::TTFT, &with("false"), &self.ttft);
        page.lazy(&c::TTFT, &with("true"), &self.ttft_streaming);
        let plain = [
            (&c::REQUEST_DURATION, &self.duration),
            (&c::REQUEST_SIZE, &self.request_size),
            (&c::RESPONSE_SIZE, &self.response_size),
            (&c::INPUT_TOKENS, &self.input_tokens),
            (&c::OUTPUT_TOKENS, &self.output_tokens),
            (&c::CACHED_TOKENS, &self.cached_tokens),
            (&c::NTPOT, &self.ntpot),
            (&c::TPOT, &self.tpot),
            (&c::ITL, &self.itl),
        ];
        for (spec, lazy) in plain {
            page.lazy(spec, labels, lazy);
        }
    }
}

/// A request that runs; dropping it ends that.
#[derive(Debug)]
pub struct Running {
    request: Arc<RequestMetrics>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.request.running.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Times the calls of one plugin at one extension point.
#[derive(Clone, Debug)]
pub struct PluginTimer {
    lazy: Arc<Lazy>,
}

impl PluginTimer {
    /// Time of one call.
    pub fn observe(&self, took: Duration) {
        self.lazy.observe(&c::PLUGIN_DURATION, took.as_secs_f64());
    }
}

/// An open ext_proc stream. Dropped without [`Self::finish`] it counts with code `Unknown`.
#[derive(Debug)]
pub struct StreamGuard {
    metrics: Arc<Metrics>,
    finished: bool,
}

impl StreamGuard {
    /// Ends the stream with a gRPC status code name, such as `OK` or `Canceled`, after `open`.
    pub fn finish(mut self, code: &'static str, open: Duration) {
        self.finished = true;
        self.metrics.stream_codes.with(&[code]).inc();
        self.metrics.stream_duration.observe(open.as_secs_f64());
    }
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.metrics.streams_open.fetch_sub(1, Ordering::Relaxed);
        if !self.finished {
            self.metrics.stream_codes.with(&["Unknown"]).inc();
        }
    }
}
