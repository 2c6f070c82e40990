//! Binds the sockets, makes the parts and hands them to tasks.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::admin::health::HealthService;
use crate::admin::tls::AdminTls;
use crate::admin::{self, AdminState};
use crate::collector::{self, PollError, SampleSink};
use crate::config::features::Feature;
use crate::config::settings::{CipherSuite, Settings, TlsVersion};
use crate::config::{self, Config, DataSource};
use crate::dialect::{self, Dialects, Wants};
use crate::director::decisions::{DecisionLog, Query};
use crate::director::{self, Directed, Director, NamedProducer};
use crate::discovery::file::{self, FileDiscovery};
use crate::discovery::kubernetes::stats::{Resource, Stats, WatchState};
use crate::discovery::kubernetes::{Cluster, Discovery, Target};
use crate::domain::node::{Problem, Problems};
use crate::domain::{Endpoint, EndpointSpec, InferenceRequest, LoadSample, Signals, Slot};
use crate::extproc::listener::{self, Limits};
use crate::extproc::tls::{CertificateHolder, MinVersion, TlsSettings, server_config};
use crate::extproc::workers::Workers;
use crate::extproc::{self, CONTROL_HEADERS, ExtProc, ExtProcServer};
use crate::lifecycle::certificate;
use crate::lifecycle::clock::Clock;
use crate::lifecycle::drain::{self, DrainWatcher};
use crate::lifecycle::ready::Readiness;
use crate::lifecycle::task::{self, Spawner};
use crate::lifecycle::watch_file::{Contents, read_all};
use crate::pool::Pool;
use crate::scheduling::detectors::Saturation;
use crate::scheduling::params::Params;
use crate::scheduling::plugin::{Metric, Need, SignalKind};
use crate::telemetry::metrics::family::Count;
use crate::telemetry::metrics::{Metrics, MetricsOptions, WatchPage};
use crate::telemetry::replay_log::ReplayLog;
use crate::telemetry::trace::{Exporter, Sampling, Traces};

use super::grpc::Services;
use super::leadership::Leadership;
use super::{Addresses, App, Environment, Listeners, Unusable, files, guard};

/// What `run` hands to tasks.
pub(super) struct Parts {
    ext_proc: ExtProcServer<Directed>,
    workers: Workers,
    health: HealthService,
    admin: Arc<AdminState>,
    tls: Option<Arc<ServerConfig>>,
    certificate: Option<(PathBuf, Arc<CertificateHolder>)>,
    pool: Arc<Pool>,
    director: Arc<Director>,
    collector: Option<Collection>,
    endpoints: Option<(PathBuf, Contents)>,
    admin_tls: Option<Arc<AdminTls>>,
    /// Endpoints from the API server, unless the configuration names another discovery.
    kubernetes: Option<Discovery>,
    clock: Arc<dyn Clock>,
}

/// The collector's settings and where its samples go.
struct Collection {
    settings: collector::Settings,
    sink: Arc<PoolSink>,
}

/// Passes samples on to the pool.
struct PoolSink {
    pool: Arc<Pool>,
    /// Pages that could not be had.
    poll_errors: Arc<Count>,
    /// Pages that came but could not be used.
    extract_errors: Arc<Count>,
}

impl SampleSink for PoolSink {
    fn report(&self, slot: Slot, generation: u64, sample: LoadSample) {
        self.pool.report(slot, generation, &sample);
    }

    fn poll_failed(&self, _: Slot, _: u64, cause: PollError) {
        match cause {
            PollError::Connect | PollError::Timeout | PollError::Status | PollError::TooLarge => self.poll_errors.inc(),
            PollError::Parse | PollError::MissingFamily => self.extract_errors.inc(),
        }
    }
}

/// Binds every socket and makes every part; nothing is served yet. Must run inside a runtime.
///
/// # Errors
/// [`Unusable`] for an endpoints file or a certificate that cannot be used, before any port is bound; a
/// port that is taken.
pub async fn build(config: Config, environment: Environment, clock: Arc<dyn Clock>) -> anyhow::Result<App> {
    let settings = &config.settings;
    let (specs, endpoints) = endpoints(&config).await?;
    let (tls, certificate) = tls(&config)?;
    let admin_tls = admin_tls(&config)?;
    let cluster = cluster(&config, &environment).await?;
    let grpc = bind(environment.bind, settings.ports.grpc, "--grpc-port").await?;
    let health_listener = bind(environment.bind, settings.ports.health, "--grpc-health-port").await?;
    let metrics_listener = bind(environment.bind, settings.ports.metrics, "--metrics-port").await?;
    let addresses = Addresses {
        grpc: grpc.local_addr()?,
        health: health_listener.local_addr()?,
        metrics: metrics_listener.local_addr()?,
    };

    let (drain_trigger, drain_watcher) = drain::channel();
    let (spawner, supervisor) = task::supervisor();
    let readiness = Readiness::new();
    let pool_synced = readiness.block("pool");

    let metrics = Metrics::with_options(MetricsOptions {
        grpc_stream_metrics: settings.metrics.stream_metrics,
        ..MetricsOptions::default()
    });
    let pool = pool_of(&config, &clock);

    let kubernetes = match cluster.clone() {
        Some(cluster) => Some(Discovery {
            cluster,
            target: target(&config),
            namespace: config.pool.namespace.clone(),
            pool: Arc::clone(&pool),
            readiness: readiness.clone(),
            block: pool_synced,
            stats: Arc::default(),
            clock: Arc::clone(&clock),
        }),
        None => {
            pool.replace(specs);
            pool_synced.ready();
            None
        }
    };
    if let Some(discovery) = &kubernetes {
        observe_watches(&metrics, Arc::clone(&discovery.stats), Arc::clone(&clock));
    }

    let traces = traces(&config, &metrics, &clock);
    let mut director = parts_of(&config, environment.seed, &pool, &metrics, &clock);
    director.traces.clone_from(&traces);
    director.decisions = Arc::new(decision_log(settings, &metrics)?);
    let director = Arc::new(Director::new(director));
    observe(&config, &metrics, &pool, &clock);

    let ext_proc = ExtProc::new(Arc::new(Directed(Arc::clone(&director))), edge(&config), drain_watcher);
    let health = HealthService::new(readiness.clone());
    let mut admin = admin_state(&config, &metrics, &readiness, &director);
    if let Some(tls) = &admin_tls {
        admin = admin.with_tls(Arc::clone(tls));
    }
    if let Some(cluster) = cluster.as_ref().filter(|_| settings.metrics.auth) {
        admin = admin.with_access(guard::tokens(cluster, &clock));
    }
    let leadership = Leadership::new(&config, cluster.as_ref(), &readiness, &metrics, &clock);
    let collector = collection(&config, &pool, &metrics)?;
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let threads = settings.limits.worker_threads.unwrap_or_else(cores);
    let (drain_time, grace) = (settings.intervals.drain, environment.grace);
    let parts = Parts {
        ext_proc: ext_proc.into_server(),
        workers: Workers::start(threads).context("cannot start the threads of the ext_proc port")?,
        health,
        admin: Arc::new(admin),
        admin_tls,
        tls,
        certificate,
        pool: Arc::clone(&pool),
        director: Arc::clone(&director),
        collector,
        endpoints,
        kubernetes,
        clock,
    };
    let listeners = Listeners { grpc, health: health_listener, metrics: metrics_listener };
    Ok(App {
        addresses,
        pool,
        director,
        metrics,
        readiness,
        leadership,
        listeners,
        parts,
        spawner,
        supervisor,
        drain: drain_trigger,
        drain_time,
        grace,
        traces,
    })
}

/// The deciding part alone: an empty pool and the director over it, as [`build`] makes them, with nothing that
/// listens, scrapes, discovers or follows files. For replays, which play all of these in virtual time. `seed`
/// makes the picks of one thread repeatable.
pub fn offline(config: &Config, seed: u64, clock: Arc<dyn Clock>) -> (Arc<Pool>, Arc<Director>) {
    let metrics = Metrics::with_options(MetricsOptions::default());
    let pool = pool_of(config, &clock);
    let director = Arc::new(Director::new(parts_of(config, Some(seed), &pool, &metrics, &clock)));
    (pool, director)
}

impl Parts {
    /// Starts every task. The result completes when every ext_proc connection has ended, which only a
    /// drain brings about.
    pub(super) fn spawn(
        self,
        listeners: Listeners,
        spawner: &Spawner,
        drain: &DrainWatcher,
    ) -> oneshot::Receiver<Infallible> {
        let services = Services { ext_proc: self.ext_proc, health: self.health.clone() };
        let ext_proc =
            listener::serve(listeners.grpc, self.tls, Limits::default(), self.workers, services, drain.clone());
        let (open, closed) = oneshot::channel();
        spawner.critical("ext_proc listener", async move {
            ext_proc.await;
            // It ends by itself only when the drain told it to; the process follows.
            drop(open);
            std::future::pending().await
        });
        spawner.critical("health listener", admin::health::serve(listeners.health, self.health, drain.clone()));
        spawner.critical("admin listener", admin::serve(listeners.metrics, self.admin, drain.clone()));
        if self.director.holds() {
            let planned = self.director.keep_planning();
            spawner.critical("planning of held requests", async move { match planned.await {} });
        }
        if let Some(Collection { settings, sink }) = self.collector {
            let (pool, clock, drain) = (self.pool.clone(), self.clock, drain.clone());
            let work = async move {
                tokio::select! {
                    ended = collector::run(settings, pool.topology(), sink, clock, drain.forced()) => ended,
                    never = pool.publish_samples() => match never {},
                }
            };
            spawner.critical("collector", async move {
                // A panic ends the process: nobody would publish samples any more, and routing would go on blindly.
                if let Err(error) = collector::thread::apart(work).await? {
                    tracing::error!(%error, "metrics pages are not read");
                }
                std::future::pending().await
            });
        }
        if let Some(discovery) = self.kubernetes {
            // It retries whatever fails; a panic ends the process, because routing would go on blindly.
            spawner.critical("kubernetes discovery", discovery.run());
        }
        if let Some((path, first)) = self.endpoints {
            spawner.spawn("endpoints file", files::follow_endpoints(path, first, self.pool));
        }
        if let Some((folder, holder)) = self.certificate {
            let files = certificate::FILES.iter().map(|name| folder.join(name)).collect();
            let reload = move || holder.reload(&folder);
            spawner.spawn("certificate files", files::follow_certificate(files, reload));
        }
        if let Some(tls) = self.admin_tls {
            let follow = files::follow_certificate(tls.files(), move || tls.reload());
            spawner.spawn("certificate files of the metrics port", follow);
        }
        closed
    }
}

/// The API server, which is needed unless the configuration names another discovery.
async fn cluster(config: &Config, environment: &Environment) -> anyhow::Result<Option<Cluster>> {
    if config.discovery.is_some() {
        return Ok(None);
    }
    match &environment.cluster {
        Some(given) => Ok(Some(given.clone())),
        None => Ok(Some(Cluster::connect().await.map_err(|error| Unusable(vec![error.to_string()]))?)),
    }
}

/// Which pods are the endpoints.
fn target(config: &Config) -> Target {
    let pool = &config.settings.pool;
    match &pool.selector {
        Some(selector) => Target::Selector { selector: selector.clone(), ports: pool.target_ports.clone() },
        None => Target::Pool { name: config.pool.name.clone(), group: pool.group.clone() },
    }
}

/// Connects the page to what the watches say of themselves.
fn observe_watches(metrics: &Metrics, stats: Arc<Stats>, clock: Arc<dyn Clock>) {
    metrics.watch_watches(move || {
        let now = clock.now();
        let of = |resource: Resource| {
            let stats = stats.of(resource);
            WatchPage {
                resource: resource.as_str(),
                states: WatchState::ALL.map(|s| (s.as_str(), s == stats.state())).to_vec(),
                age: stats.age(now),
                objects: stats.objects(),
                unreadable: stats.unreadables(),
                failures: stats.failures().map(|(reason, count)| (reason.as_str(), count)).collect(),
            }
        };
        Resource::ALL.map(of).to_vec()
    });
}

async fn bind(ip: std::net::IpAddr, port: u16, flag: &str) -> anyhow::Result<TcpListener> {
    let wanted = SocketAddr::new(ip, port);
    let bound = match TcpListener::bind(wanted).await {
        // Hosts without IPv6 cannot bind the dual-stack wildcard.
        Err(error) if ip == Ipv6Addr::UNSPECIFIED && error.kind() != std::io::ErrorKind::AddrInUse => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await
        }
        bound => bound,
    };
    bound.with_context(|| format!("{flag}: cannot listen on {wanted}; is another process using the port?"))
}

type Endpoints = (Vec<EndpointSpec>, Option<(PathBuf, Contents)>);

/// The endpoints of the discovery that the configuration names, and the path if it is to be followed.
async fn endpoints(config: &Config) -> Result<Endpoints, Unusable> {
    let Some(declared) = &config.discovery else { return Ok((Vec::new(), None)) };
    let mut problems = Problems::default();
    let params = FileDiscovery::decode_fields(declared.parameters.as_ref(), &declared.path, &mut problems);
    let path = PathBuf::from(&params.path);
    let contents = read_all(std::slice::from_ref(&path), file::MAX_FILE).await.map_err(|error| {
        let problem = Problem {
            at: declared.at,
            path: format!("{}.path", declared.path),
            message: error.to_string(),
            fix: "check the path, the mount and its permissions".into(),
        };
        Unusable(vec![config::error::line(&config.file, &problem)])
    })?;
    let specs = files::endpoints(&path, &contents[0])?;
    Ok((specs, params.watch_file.then_some((path, contents))))
}

/// The pool of `config`, still empty; what learns from choices is told when an endpoint leaves.
fn pool_of(config: &Config, clock: &Arc<dyn Clock>) -> Arc<Pool> {
    let learners = config.commits.clone();
    let forget = move |endpoint: &Endpoint| {
        for (_, commit) in &learners {
            commit.endpoint_removed(endpoint);
        }
    };
    let staleness = config.settings.intervals.staleness;
    Arc::new(Pool::new(config.pool.clone(), staleness, Arc::clone(clock), Box::new(forget)))
}

fn parts_of(
    config: &Config,
    seed: Option<u64>,
    pool: &Arc<Pool>,
    metrics: &Arc<Metrics>,
    clock: &Arc<dyn Clock>,
) -> director::Parts {
    let settings = &config.settings;
    let producers = config.producers.iter().map(|p| NamedProducer {
        name: Arc::clone(&p.name),
        kind: p.kind,
        producer: Arc::clone(&p.producer),
    });
    let parsers = config
        .parsers
        .iter()
        .filter_map(|parser| dialect::TABLE.iter().find(|row| row.about.kind == parser.kind).map(|row| (row.make)()));
    director::Parts {
        pool: Arc::clone(pool),
        scheduler: config.scheduler.clone(),
        producers: producers.collect(),
        prefix_producers: prefix_producers(config),
        commits: config.commits.clone(),
        saturation: config.detector.clone(),
        dispatch: config.dispatch.clone(),
        plugins: config.names.clone(),
        dialects: Dialects::new(parsers),
        metrics: Arc::clone(metrics),
        clock: Arc::clone(clock),
        traces: None,
        decisions: Arc::default(),
        settings: director::Settings {
            wants: Wants { prompts: config.registry.needs(&Need::Prompts) },
            reads_usage: settings.token_metrics || config.registry.needs(&Need::Usage),
            ignore_subset: settings.disable_subset_filter,
            emit_scores: settings.emit_scores,
            access_log: settings.logging.access_log,
            seed,
            test: config.registry.test_switches.clone(),
        },
    }
}

/// Traces, if the environment names a collector. One that cannot be used is no reason not to serve.
fn traces(config: &Config, metrics: &Arc<Metrics>, clock: &Arc<dyn Clock>) -> Option<Arc<Traces>> {
    let export = config.settings.trace_export.as_ref().filter(|_| config.settings.tracing)?;
    let exporter = Exporter {
        endpoint: export.endpoint.clone(),
        headers: export.headers.clone(),
        timeout: export.timeout,
        gzip: export.gzip,
        certificate: export.certificate.clone(),
        sampling: Sampling { ratio: export.ratio, follows_parent: export.follows_parent },
        resource: export.resource.clone(),
        queue: export.queue,
        batch: export.batch,
        delay: export.delay,
    };
    match Traces::start(&exporter, Arc::clone(clock)) {
        Ok(traces) => {
            tracing::info!(endpoint = exporter.endpoint, sampled = export.ratio, "traces are exported");
            let counted = Arc::clone(&traces);
            metrics.watch_spans(move || counted.counts());
            Some(traces)
        }
        Err(error) => {
            tracing::warn!(%error, "there are no traces: correct the OTEL_* environment, or set OTEL_TRACES_EXPORTER=none");
            None
        }
    }
}

fn prefix_producers(config: &Config) -> Vec<(Arc<str>, &'static str)> {
    let kind = |name: &Arc<str>| config.producers.iter().find(|p| p.name == *name).map_or("", |p| p.kind);
    config.registry.producers(SignalKind::Prefix).map(|name| (Arc::clone(name), kind(name))).collect()
}

/// Connects the page to the state it shows.
fn observe(config: &Config, metrics: &Arc<Metrics>, pool: &Arc<Pool>, clock: &Arc<dyn Clock>) {
    let in_flight = config.registry.producers(SignalKind::InFlight).next().map(ToString::to_string);
    let shown = Arc::clone(pool);
    metrics.watch_pool(Arc::clone(clock), in_flight, move || shown.snapshot().clone());
    let account = config.registry.producers(SignalKind::Account).next();
    if let Some(keeper) = config.producers.iter().find(|p| Some(&p.name) == account) {
        let (keeper, shown) = (Arc::clone(&keeper.producer), Arc::clone(pool));
        metrics.watch_accounts(
            Arc::clone(clock),
            move || shown.snapshot().clone(),
            move |snapshot, now| {
                let mut signals = Signals { now, ..Signals::default() };
                keeper.produce(&InferenceRequest::default(), snapshot, &mut signals);
                signals.accounts
            },
        );
    }
    if let Some(detector) = config.detector.clone() {
        let (shown, clock) = (Arc::clone(pool), Arc::clone(clock));
        metrics.watch_saturation(config.pool.name.clone(), move || {
            let snapshot = shown.snapshot();
            let all = Saturation::of(detector.as_ref(), &snapshot, snapshot.topology.live_slots(), clock.now());
            [("prefill", all.prefill), ("decode", all.decode), ("effective", all.effective())]
        });
    }
    let shown = Arc::clone(pool);
    metrics.watch_scores(config.names.clone(), move || shown.snapshot().clone());
    let asked = |f: &Feature| f.by.iter().map(|by| (f.name.to_owned(), by.clone())).collect::<Vec<_>>();
    // Several attributes may be read for one plugin.
    let features: BTreeSet<(String, String)> = config.features.iter().flat_map(asked).collect();
    metrics.show_features(features.into_iter().collect());
    let producers = config.producers.clone();
    metrics.watch_prefix_size(move || {
        producers.iter().filter_map(|p| Some((p.name.to_string(), p.kind.to_owned(), p.producer.size()?))).collect()
    });
}

/// What is kept of decisions, with the file for replays.
fn decision_log(settings: &Settings, metrics: &Metrics) -> anyhow::Result<DecisionLog> {
    let open = |(path, size): &(PathBuf, u64)| {
        let log = ReplayLog::open(path, *size);
        log.map(Arc::new).with_context(|| format!("--decision-log: cannot write {}", path.display()))
    };
    let file = settings.decision_log.as_ref().map(open).transpose()?;
    if let Some(counted) = file.clone() {
        metrics.watch_decision_log(move || counted.counts());
    }
    Ok(DecisionLog::new(settings.limits.debug_decisions)
        .with_rate(settings.limits.decisions_per_second)
        .with_header(settings.allow_explain_header)
        .with_file(file))
}

fn admin_state(config: &Config, metrics: &Arc<Metrics>, readiness: &Readiness, director: &Arc<Director>) -> AdminState {
    let rendered = config.render().to_owned();
    let producers = config.producers.clone();
    let decisions = Arc::clone(&director.parts().decisions);
    let clock = Arc::clone(&director.parts().clock);
    AdminState::new(Arc::clone(metrics), readiness.clone())
        .with_config(move || rendered.clone())
        .with_plugins(move || {
            let states = producers.iter().filter_map(|p| Some((p.name.to_string(), p.producer.debug_state()?)));
            serde_json::Value::Object(states.collect()).to_string()
        })
        .with_decisions(move |query| match decisions.is_on() {
            true => {
                let query = Query::parse(query)?;
                Ok(format!("{}\n", decisions.page(&query, Some((clock.now(), clock.wall())))))
            }
            false => Ok("{\"capacity\":0,\"decisions\":[],\"hint\":\"start with --debug-decisions=N\"}\n".to_owned()),
        })
}

/// Settings of the ext_proc edge.
fn edge(config: &Config) -> extproc::Settings {
    let settings = &config.settings;
    let bytes = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    let defaults = extproc::Settings::default();
    let max_request_body = bytes(settings.limits.request_body);
    extproc::Settings {
        max_request_body,
        max_message: settings.limits.grpc_receive.map_or(max_request_body.saturating_add(1 << 20), bytes),
        remove_request_headers: if settings.strip_control_headers {
            CONTROL_HEADERS.map(String::from).to_vec()
        } else {
            Vec::new()
        },
        mark_responses: settings.debug_response_header,
        ..defaults
    }
}

type Tls = (Option<Arc<ServerConfig>>, Option<(PathBuf, Arc<CertificateHolder>)>);

fn tls(config: &Config) -> Result<Tls, Unusable> {
    let tls = &config.settings.tls;
    if !tls.enabled {
        return Ok((None, None));
    }
    let (server, holder) = server_config(&TlsSettings {
        cert_path: tls.cert_path.clone(),
        min_version: match tls.min_version {
            TlsVersion::Tls12 => MinVersion::Tls12,
            TlsVersion::Tls13 => MinVersion::Tls13,
        },
        cipher_suites: tls.cipher_suites.iter().map(|suite: &CipherSuite| format!("{suite:?}")).collect(),
    })
    .map_err(|error| Unusable(vec![format!("--cert-path, --tls-min-version, --tls-cipher-suites: {error:#}")]))?;
    let followed = tls.cert_path.clone().filter(|_| tls.reload).map(|folder| (folder, holder));
    Ok((Some(server), followed))
}

/// TLS of the metrics port.
fn admin_tls(config: &Config) -> Result<Option<Arc<AdminTls>>, Unusable> {
    let metrics = &config.settings.metrics;
    let Some(folder) = metrics.cert_dir.clone() else { return Ok(None) };
    match AdminTls::load(folder, metrics.client_ca.clone()) {
        Ok(tls) => Ok(Some(Arc::new(tls))),
        Err(error) => Err(Unusable(vec![format!("--metrics-cert-dir, --metrics-client-ca-file: {error:#}")])),
    }
}

/// The collector, if any plugin reads metrics.
fn collection(config: &Config, pool: &Arc<Pool>, metrics: &Arc<Metrics>) -> anyhow::Result<Option<Collection>> {
    let mut wanted: BTreeSet<Metric> = config
        .registry
        .needs
        .keys()
        .filter_map(|need| if let Need::Metric(metric) = need { Some(metric.clone()) } else { None })
        .collect();
    let Some(DataSource { source, extractors }) = config.sources.first().filter(|_| !wanted.is_empty()) else {
        return Ok(None);
    };
    // A page that is fetched anyway also feeds the pool's gauges, which autoscalers read.
    wanted.extend([Metric::Waiting, Metric::Running, Metric::KvUsage]);
    // The parameters were checked when the configuration was resolved.
    let mut problems = Problems::default();
    let source_params = collector::decode_source(source.parameters.as_ref(), &source.path, &mut problems);
    let extractor = extractors.first();
    let extractor_params = collector::decode_extractor(
        extractor.and_then(|e| e.parameters.as_ref()),
        extractor.map_or("", |e| &e.path),
        &mut problems,
    );
    if let Some(problem) = problems.errors.first() {
        anyhow::bail!("{}: {problem}", config.file);
    }
    let mut settings = collector::Settings::resolve(&source_params, &extractor_params, wanted);
    if source_params.interval.is_none() {
        settings.interval = config.settings.intervals.refresh_metrics;
    }
    let sink = PoolSink {
        pool: Arc::clone(pool),
        poll_errors: metrics.poll_errors(source.kind),
        extract_errors: metrics.extract_errors(source.kind, extractor.map_or("", |e| e.kind)),
    };
    Ok(Some(Collection { settings, sink: Arc::new(sink) }))
}
