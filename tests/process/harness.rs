//! Runs the binary: to its end ([`run`]) or until it serves ([`Picker`]).

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};

/// The longest wait for anything that must happen.
pub const PATIENCE: Duration = Duration::from_secs(30);

fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pointsman"));
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// A run that ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Ended {
    /// Fails unless standard error has all of `words`.
    #[track_caller]
    pub fn says(&self, words: &[&str]) {
        for word in words {
            assert!(self.err.contains(word), "no `{word}` in\n{self:#?}");
        }
    }
}

/// Runs to the end, which must come.
pub async fn run(args: &[&str]) -> Ended {
    run_with(args, &[]).await
}

/// Runs to its end, with additions to the environment.
pub async fn run_with(args: &[&str], env: &[(&str, &str)]) -> Ended {
    let env = env.iter().copied();
    let output = tokio::time::timeout(PATIENCE, command().args(args).envs(env).output()).await;
    let output = output.unwrap_or_else(|_| panic!("{args:?} does not end")).unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ended { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// A folder with an endpoints file and a configuration that names it.
pub struct Folder(tempfile::TempDir);

impl Folder {
    pub fn new(endpoints: &str) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        folder.write("endpoints.yaml", endpoints);
        folder.write("config.yaml", &folder.document());
        folder
    }

    /// Four endpoints of documentation addresses, which nothing can reach.
    pub fn usual() -> Self {
        Self::new(&listed(&["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"]))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Replaces a file at once, as editors and Kubernetes do.
    pub fn write(&self, name: &str, text: &str) {
        let new = self.path(&format!("{name}.new"));
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, self.path(name)).unwrap();
    }

    /// A configuration that scrapes nothing and chooses by work in flight and prefix.
    pub fn document(&self) -> String {
        format!(
            "apiVersion: llm-d.ai/v1alpha1\n\
             kind: EndpointPickerConfig\n\
             plugins:\n\
             - {{type: file-discovery, parameters: {{path: '{}', watchFile: true}}}}\n\
             - {{type: approx-prefix-cache-producer, parameters: {{autoTune: false, blockSizeTokens: 16}}}}\n\
             - {{type: prefix-cache-scorer}}\n\
             - {{type: active-request-scorer}}\n\
             schedulingProfiles:\n\
             - name: default\n  plugins:\n  \
             - {{pluginRef: prefix-cache-scorer}}\n  \
             - {{pluginRef: active-request-scorer}}\n\
             dataLayer: {{discovery: {{pluginRef: file-discovery}}}}\n",
            self.text("endpoints.yaml")
        )
    }
}

/// An endpoints file with these addresses.
pub fn listed(addresses: &[&str]) -> String {
    let entry = |(i, ip): (usize, &&str)| format!("- {{name: server-{i}, address: {ip}, port: 8000}}\n");
    format!("endpoints:\n{}", addresses.iter().enumerate().map(entry).collect::<String>())
}

#[derive(Clone, Default)]
pub struct Lines(Arc<Mutex<Vec<String>>>);

impl Lines {
    pub fn all(&self) -> Vec<String> {
        self.0.lock().clone()
    }

    fn follow(&self, from: impl AsyncRead + Unpin + Send + 'static) -> JoinHandle<()> {
        let lines = self.0.clone();
        tokio::spawn(async move {
            let mut from = BufReader::new(from).lines();
            while let Ok(Some(line)) = from.next_line().await {
                lines.lock().push(line);
            }
        })
    }

    /// Waits for a line with all of `words`.
    pub async fn with(&self, words: &[&str]) -> String {
        let mut seen = None;
        until(&format!("a line with {words:?}"), async || {
            seen = self.0.lock().iter().find(|l| words.iter().all(|w| l.contains(w))).cloned();
            seen.is_some()
        })
        .await;
        seen.unwrap()
    }
}

/// Waits for a condition by looking at it.
pub async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let met = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    if tokio::time::timeout(PATIENCE, met).await.is_err() {
        panic!("{what}: does not happen");
    }
}

/// A picker that serves.
pub struct Picker {
    child: Child,
    pub log: Lines,
    readers: Vec<JoinHandle<()>>,
    pub grpc: SocketAddr,
    pub health: SocketAddr,
    pub metrics: SocketAddr,
}

const PORTS: [&str; 3] = ["--grpc-port=0", "--grpc-health-port=0", "--metrics-port=0"];

impl Picker {
    /// Starts with the configuration in `folder` and waits until it serves.
    pub async fn start(folder: &Folder, args: &[&str]) -> Self {
        let config = folder.text("config.yaml");
        let all = [&["--config-file", config.as_str()][..], &PORTS, args].concat();
        Self::start_with(&all).await
    }

    pub async fn start_with(args: &[&str]) -> Self {
        Self::start_in(args, &[]).await
    }

    /// As [`Self::start`], with these variables in the otherwise empty environment.
    pub async fn start_with_env(folder: &Folder, args: &[&str], env: &[(&str, &str)]) -> Self {
        let config = folder.text("config.yaml");
        let all = [&["--config-file", config.as_str()][..], &PORTS, args].concat();
        Self::start_in(&all, env).await
    }

    pub async fn start_in(args: &[&str], env: &[(&str, &str)]) -> Self {
        let mut child = command().args(args).envs(env.iter().copied()).spawn().unwrap();
        let log = Lines::default();
        let readers = vec![log.follow(child.stderr.take().unwrap()), log.follow(child.stdout.take().unwrap())];
        let mut serving = None;
        until("the picker serves", async || {
            serving = log.all().into_iter().find(|l| l.contains("pointsman is serving"));
            if let Ok(Some(status)) = child.try_wait() {
                panic!("{args:?} ended with {status}:\n{}", log.all().join("\n"));
            }
            serving.is_some()
        })
        .await;
        let serving = serving.unwrap();
        // In both shapes the fields are a JSON object at the end of the line.
        let fields: Value = serde_json::from_str(&serving[serving.find('{').unwrap()..]).unwrap();
        let at = |name: &str| {
            let address: SocketAddr = fields[name].as_str().unwrap().parse().unwrap();
            SocketAddr::from(([127, 0, 0, 1], address.port()))
        };
        let (grpc, health, metrics) = (at("grpc"), at("health"), at("metrics"));
        Self { child, log, readers, grpc, health, metrics }
    }

    /// A plaintext connection to the health port.
    pub async fn health(&self) -> Channel {
        plain(self.health).await
    }

    /// A plaintext connection to the ext_proc port, of a picker with `--secure-serving=false`.
    pub async fn plain(&self) -> Channel {
        plain(self.grpc).await
    }

    pub async fn get(&self, path: &str) -> (u16, String) {
        let (status, body) = pointsman::sim::client::get(self.metrics, path).await.unwrap();
        (status.as_u16(), String::from_utf8(body.to_vec()).unwrap())
    }

    /// The value of a series by its name and labels; `None` if the page has no such line.
    pub async fn metric(&self, series: &str) -> Option<f64> {
        let (_, page) = self.get("/metrics").await;
        let line = page.lines().find_map(|l| l.strip_prefix(series)?.strip_prefix(' ').map(str::to_owned));
        line.map(|value| value.parse().unwrap())
    }

    pub async fn signal(&self, name: &str) {
        let id = self.child.id().expect("it runs").to_string();
        let sent = Command::new("kill").args([&format!("-{name}"), &id]).status().await.unwrap();
        assert!(sent.success());
    }

    pub async fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for the end of the process and of its output.
    pub async fn ended(mut self) -> (ExitStatus, Vec<String>) {
        let status = tokio::time::timeout(PATIENCE, self.child.wait()).await.expect("the process ends").unwrap();
        for reader in self.readers {
            reader.await.unwrap();
        }
        (status, self.log.all())
    }

    /// SIGTERM and a clean end.
    pub async fn stop(self) -> Vec<String> {
        self.signal("TERM").await;
        let (status, lines) = self.ended().await;
        assert_eq!(status.code(), Some(0), "{}", lines.join("\n"));
        lines
    }
}

async fn plain(address: SocketAddr) -> Channel {
    Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap()
}

/// A self-signed certificate for `name` as `tls.crt` and `tls.key` in `folder`.
pub fn certificate(folder: &Path, name: &str) -> Vec<u8> {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let cert = rcgen::CertificateParams::new(vec![name.into()]).unwrap().self_signed(&key).unwrap();
    for (file, text) in [("tls.crt", cert.pem()), ("tls.key", key.serialize_pem())] {
        std::fs::write(folder.join(file), text).unwrap();
    }
    cert.der().to_vec()
}
