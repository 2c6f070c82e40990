//! A Prometheus of its own on a port of the system's choice, with its data in a folder that goes with it.

use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

/// The longest wait for anything that must happen.
const PATIENCE: Duration = Duration::from_secs(30);

pub struct Prometheus {
    child: Child,
    address: SocketAddr,
    log: Arc<Mutex<Vec<String>>>,
    reader: JoinHandle<()>,
    _folder: tempfile::TempDir,
}

impl Prometheus {
    /// Starts one that scrapes `target` every 400 ms.
    pub async fn start(target: SocketAddr) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("prometheus.yml");
        let text = format!(
            "global: {{scrape_interval: 400ms, scrape_timeout: 400ms}}\n\
             scrape_configs:\n\
             - job_name: pointsman\n  static_configs: [{{targets: ['{target}']}}]\n"
        );
        std::fs::write(&config, text).unwrap();
        let named = std::env::vars_os().find(|(name, _)| name == "PROMETHEUS_BIN");
        let binary = named.map_or_else(|| "prometheus".into(), |(_, path)| path);
        let mut child = Command::new(&binary)
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg("--web.listen-address=127.0.0.1:0")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| {
                let binary = binary.to_string_lossy();
                panic!("cannot run Prometheus ({binary}: {error}): run scripts/get-prometheus, or set PROMETHEUS_BIN")
            });
        let log = Arc::<Mutex<Vec<String>>>::default();
        let (lines, from) = (Arc::clone(&log), child.stderr.take().unwrap());
        let reader = tokio::spawn(async move {
            let mut from = BufReader::new(from).lines();
            while let Ok(Some(line)) = from.next_line().await {
                lines.lock().push(line);
            }
        });
        let listening = |line: &String| {
            let (_, rest) = line.split_once("\"Listening on\" address=")?;
            rest.split_whitespace().next()?.parse::<SocketAddr>().ok()
        };
        let mut address = None;
        wait("Prometheus listens", async || {
            address = log.lock().iter().find_map(listening);
            if let Ok(Some(status)) = child.try_wait() {
                panic!("Prometheus ended with {status}:\n{}", log.lock().join("\n"));
            }
            address.is_some()
        })
        .await;
        Self { child, address: address.unwrap(), log, reader, _folder: folder }
    }

    async fn get(&self, path: &str) -> Option<Value> {
        let (_, body) = pointsman::sim::client::get(self.address, path).await.ok()?;
        serde_json::from_slice(&body).ok()
    }

    /// Waits until the target has been scraped.
    pub async fn until_up(&self) {
        wait("the target is up", async || {
            let targets = self.get("/api/v1/targets").await.unwrap_or_default();
            targets["data"]["activeTargets"][0]["health"] == "up"
        })
        .await;
    }

    /// Waits until `query` gives `value`: what the picker counted has been scraped.
    pub async fn until_scraped(&self, query: &str, value: f64) {
        wait(query, async || self.query(query).await == [value]).await;
    }

    /// The values that a query gives now.
    pub async fn query(&self, query: &str) -> Vec<f64> {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let answer = self.get(&format!("/api/v1/query?query={encoded}")).await.expect("Prometheus answers");
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        let result = answer["data"]["result"].as_array().expect("a vector");
        result.iter().map(|series| series["value"][1].as_str().unwrap().parse().unwrap()).collect()
    }

    /// Stops it; what it complained about.
    pub async fn stop(mut self) -> Vec<String> {
        self.child.start_kill().unwrap();
        tokio::time::timeout(PATIENCE, self.child.wait()).await.expect("Prometheus ends").unwrap();
        self.reader.await.unwrap();
        let log = self.log.lock();
        log.iter().filter(|line| ["level=warn", "level=error"].iter().any(|l| line.contains(l))).cloned().collect()
    }
}

async fn wait(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let met = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    if tokio::time::timeout(PATIENCE, met).await.is_err() {
        panic!("{what}: does not happen");
    }
}
