//! The real process without its main: configuration, director, listeners, in this test's runtime.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use pointsman::app::{self, Addresses, Environment};
use pointsman::config::{self, Purpose, Settings, Source, Tables};
use pointsman::lifecycle::clock::SystemClock;
use pointsman::pool::Pool;
use pointsman::signals::prefix::index::Index;
use pointsman::telemetry::metrics::Metrics;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};

pub struct Running {
    pub addresses: Addresses,
    pub pool: Arc<Pool>,
    pub metrics: Arc<Metrics>,
    /// The prefix index, if the configuration has one.
    pub index: Option<Arc<Index>>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<anyhow::Result<pointsman::lifecycle::drain::Drained>>,
    _folder: tempfile::TempDir,
}

/// Starts with `plugins` (entries of the list) and `profile` (entries of the only profile) over these
/// endpoints, plaintext, on ports of the system's choice.
pub async fn start(
    plugins: &str,
    profile: &str,
    endpoints: &[SocketAddr],
    change: impl FnOnce(&mut Settings),
) -> Running {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("endpoints.yaml");
    let entry =
        |(i, at): (usize, &SocketAddr)| format!("- {{name: server-{i}, address: {}, port: {}}}\n", at.ip(), at.port());
    let listed: String = endpoints.iter().enumerate().map(entry).collect();
    std::fs::write(&file, format!("endpoints:\n{listed}")).unwrap();
    let document = format!(
        "apiVersion: llm-d.ai/v1alpha1\n\
         kind: EndpointPickerConfig\n\
         plugins:\n\
         - {{type: file-discovery, parameters: {{path: '{}'}}}}\n\
         {plugins}\n\
         schedulingProfiles:\n\
         - name: default\n  plugins:\n{profile}\n\
         dataLayer: {{discovery: {{pluginRef: file-discovery}}}}\n",
        file.display()
    );
    let mut settings = Settings::default();
    (settings.ports.grpc, settings.ports.health, settings.ports.metrics) = (0, 0, 0);
    settings.tls.enabled = false;
    settings.logging.access_log = false;
    settings.intervals.drain = Duration::ZERO;
    settings.metrics.stream_metrics = true;
    change(&mut settings);
    let config = config::load(&Source::Text(document), settings, &Tables::standard(), Purpose::Serve)
        .unwrap_or_else(|e| panic!("{e}"));
    let handles = config.registry.instances.iter().filter_map(|(_, built)| built.handle.clone());
    let index = handles.filter_map(|h| h.downcast::<Index>().ok()).next();
    let environment =
        Environment { bind: IpAddr::V4(Ipv4Addr::LOCALHOST), grace: Duration::from_secs(5), ..Environment::default() };
    let app = app::build(config, environment, Arc::new(SystemClock::new())).await.unwrap();
    let (addresses, pool, metrics) = (app.addresses, Arc::clone(&app.pool), Arc::clone(&app.metrics));
    let (stop, stopped) = oneshot::channel();
    let task = tokio::spawn(app.run(async move {
        // A dropped sender is a stop, too.
        let _ = stopped.await;
    }));
    Running { addresses, pool, metrics, index, stop, task, _folder: folder }
}

impl Running {
    pub async fn connect(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.addresses.grpc)).unwrap().connect().await.unwrap()
    }

    pub fn page(&self) -> String {
        String::from_utf8(self.metrics.render()).unwrap()
    }

    /// [`sum`] on the present page.
    pub fn sum(&self, name: &str, labels: &str) -> f64 {
        sum(&self.page(), name, labels)
    }

    /// Requests that ended with `outcome`; with an empty text, all.
    pub fn outcomes(&self, outcome: &str) -> u64 {
        let labels = if outcome.is_empty() { String::new() } else { format!("outcome=\"{outcome}\"") };
        self.sum("llm_d_epp_request_outcome_total", &labels) as u64
    }

    pub fn in_flight(&self) -> (u64, u64) {
        app::in_flight(&self.pool)
    }

    pub fn pins(&self) -> u64 {
        self.index.as_ref().map_or(0, |index| index.pins())
    }

    pub async fn stop(self) {
        let _ = self.stop.send(());
        let drained = self.task.await.unwrap().unwrap();
        assert_eq!(drained.forced, 0, "nothing is open any more");
    }
}

/// The sum over all series of `name` on `page` whose labels contain `labels`.
pub fn sum(page: &str, name: &str, labels: &str) -> f64 {
    let lines = page.lines().filter(|l| l.starts_with(name) && l[name.len()..].starts_with(['{', ' ']));
    lines.filter(|l| l.contains(labels)).map(|l| l.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum()
}

/// Waits for a condition by looking at it.
pub async fn until(what: &str, patience: Duration, mut condition: impl FnMut() -> bool) {
    let met = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    if tokio::time::timeout(patience, met).await.is_err() {
        panic!("{what}: does not happen");
    }
}
