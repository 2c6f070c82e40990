//! The parts of the demo: servers, and a picker with an Envoy in front of them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::app::{self, Environment};
use crate::config::{self, Purpose, Settings, Source, Tables};
use crate::director::decisions::DecisionLog;
use crate::lifecycle::clock::SystemClock;
use crate::sim::envoy::{Bootstrap, Envoy};
use crate::sim::server::{self, SimConfig, SimHandle};

/// Model that the servers serve.
pub const MODEL: &str = "demo/model";

/// Decisions kept for the table.
const KEPT: usize = 1000;

/// What runs when nothing is configured.
const DEFAULT: &str = include_str!("../../../config/default.yaml");

/// How a stack picks.
#[derive(Clone, Copy, Debug)]
pub enum Picks {
    /// As shipped.
    ByDefault,
    /// By weighted scores: prefix 2 in blocks of this many tokens, load 1.
    ByScores(u32),
}

/// Simulated model servers.
pub struct Servers {
    servers: Vec<SimHandle>,
}

impl Servers {
    /// Starts `count` servers with KV blocks of `block_tokens` on ports of the system's choice.
    pub async fn start(count: usize, block_tokens: u32) -> anyhow::Result<Self> {
        let mut servers = Vec::with_capacity(count);
        for i in 0..count {
            let config = SimConfig {
                name: format!("server-{}", char::from(b'a' + (i % 26) as u8)),
                model: MODEL.into(),
                block_size: block_tokens,
                num_blocks: 65_536 / block_tokens,
                prefill_tokens_per_second: 20_000.0,
                decode_step: Duration::from_millis(2),
                answer_tokens: 12,
                always_usage: true,
                ..SimConfig::default()
            };
            servers.push(server::start(config, None).await.context("cannot start a simulated server")?);
        }
        Ok(Self { servers })
    }

    /// Number of servers.
    pub fn len(&self) -> usize {
        self.servers.len()
    }

    /// Their names.
    pub fn names(&self) -> Vec<String> {
        self.servers.iter().map(|s| s.name().to_owned()).collect()
    }

    /// The servers.
    pub fn iter(&self) -> impl Iterator<Item = &SimHandle> {
        self.servers.iter()
    }

    /// Empties every cache.
    pub fn clear(&self) {
        for server in &self.servers {
            server.clear_cache();
        }
    }

    fn endpoints_yaml(&self) -> String {
        let entry = |s: &SimHandle| {
            format!("- name: {}\n  address: {}\n  port: {}\n", s.name(), s.address.ip(), s.address.port())
        };
        format!("endpoints:\n{}", self.servers.iter().map(entry).collect::<String>())
    }
}

/// A picker with an Envoy in front of it.
pub struct Stack {
    envoy: Envoy,
    admin: SocketAddr,
    decisions: Arc<DecisionLog>,
    stop: oneshot::Sender<()>,
    picker: JoinHandle<anyhow::Result<()>>,
    folder: Folder,
}

/// A folder that goes with the stack.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed lies in the system's folder for temporary files.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Stack {
    /// Starts a picker and an Envoy on `port`.
    pub async fn start(servers: &Servers, envoy: &Path, port: u16, picks: Picks) -> anyhow::Result<Self> {
        let folder =
            Folder(std::env::temp_dir().join(format!("pointsman-demo-{}", uuid::Uuid::from_u128(fastrand::u128(..)))));
        std::fs::create_dir_all(&folder.0).with_context(|| format!("cannot create {}", folder.0.display()))?;
        let endpoints = folder.0.join("endpoints.yaml");
        std::fs::write(&endpoints, servers.endpoints_yaml())?;

        let mut settings = Settings::default();
        settings.ports.grpc = 0;
        settings.ports.health = 0;
        settings.ports.metrics = 0;
        settings.limits.debug_decisions = KEPT;
        settings.limits.decisions_per_second = 0;
        settings.logging.access_log = false;
        settings.intervals.drain = Duration::ZERO;
        let source = Source::Text(document(&endpoints, picks));
        let config = config::load(&source, settings, &Tables::standard(), Purpose::Serve)
            .map_err(|e| anyhow::anyhow!("{}", e.lines().collect::<Vec<_>>().join("\n")))?;
        let environment = Environment {
            bind: IpAddr::V4(Ipv4Addr::LOCALHOST),
            grace: Duration::from_secs(1),
            ..Environment::default()
        };
        let app = app::build(config, environment, Arc::new(SystemClock::new())).await?;
        let (grpc, admin) = (app.addresses.grpc, app.addresses.metrics);
        let decisions = Arc::clone(&app.director.parts().decisions);
        let (stop, stopped) = oneshot::channel::<()>();
        let picker = tokio::spawn(async move {
            let stopped = async {
                // A dropped sender is a stop, too.
                let _ = stopped.await;
            };
            app.run(stopped).await.map(|_| ())
        });

        let mut bootstrap = Bootstrap::original_dst(grpc);
        bootstrap.epp_tls = true;
        bootstrap.subset_header = false;
        // Envoy would share a taken port silently, so it is tried first.
        let free = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.is_ok();
        bootstrap.listen_port = if free { port } else { 0 };
        let envoy = Envoy::start(envoy, &bootstrap, 1, &folder.0).await.context("cannot start Envoy")?;
        Ok(Self { envoy, admin, decisions, stop, picker, folder })
    }

    /// Where Envoy listens.
    pub fn proxy(&self) -> SocketAddr {
        self.envoy.address()
    }

    /// Where the picker's metrics and debug pages are.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// The endpoints file in use.
    pub fn endpoints_file(&self) -> PathBuf {
        self.folder.0.join("endpoints.yaml")
    }

    /// The decisions that are kept, oldest first.
    pub fn decisions(&self) -> Vec<Value> {
        match self.decisions.to_json()["decisions"].take() {
            Value::Array(all) => all,
            _ => Vec::new(),
        }
    }

    /// The decision on the request with this id.
    pub fn decision(&self, request_id: &str) -> Option<Value> {
        self.decisions().into_iter().rev().find(|d| d["requestId"] == request_id)
    }

    /// Stops Envoy, then the picker.
    pub async fn stop(self) {
        self.envoy.stop();
        // The receiver is gone only if the picker has ended already.
        let _ = self.stop.send(());
        let _ = self.picker.await;
    }
}

/// The configuration, with the endpoints from a file.
fn document(endpoints: &Path, picks: Picks) -> String {
    let discovery =
        format!("- type: file-discovery\n  parameters: {{path: '{}', watchFile: true}}\n", endpoints.display());
    let picking = match picks {
        Picks::ByDefault => DEFAULT.to_owned(),
        Picks::ByScores(tokens) => format!(
            "apiVersion: llm-d.ai/v1alpha1\n\
             kind: EndpointPickerConfig\n\
             plugins:\n\
             - type: approx-prefix-cache-producer\n  parameters: {{blockSizeTokens: {tokens}}}\n\
             - type: prefix-cache-scorer\n\
             - type: load-aware-scorer\n\
             schedulingProfiles:\n\
             - name: default\n  plugins:\n  \
             - {{pluginRef: prefix-cache-scorer, weight: 2}}\n  \
             - {{pluginRef: load-aware-scorer, weight: 1}}\n"
        ),
    };
    let picking = picking.replacen("plugins:\n", &format!("plugins:\n{discovery}"), 1);
    format!("{picking}dataLayer:\n  discovery: {{pluginRef: file-discovery}}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_demo_picks_as_shipped() {
        let text = document(Path::new("endpoints.yaml"), Picks::ByDefault);
        let config =
            config::load(&Source::Text(text), Settings::default(), &Tables::standard(), Purpose::Serve).unwrap();
        assert_eq!(config.scheduler.profiles[0].picker.0.as_ref(), "cost-picker");
        assert!(config.dispatch.is_some() && config.discovery.is_some() && config.warnings.is_empty());
    }
}
