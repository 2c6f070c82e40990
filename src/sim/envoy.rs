//! A real Envoy as a child process.
//!
//! Ports are chosen by the system and read back: Envoy binds its listeners with SO_REUSEPORT, so a
//! port that "was free a moment ago" may silently be shared with another Envoy. The base id is
//! dynamic for the same reason. The child is killed and reaped when [`Envoy`] is dropped, which is
//! why it is a `std::process::Child`: tokio's kill-on-drop leaves the reaping for later, and then a
//! test that ends cannot be sure that its ports are gone. A process that is itself killed without
//! warning leaves its Envoy behind; tying the child's life to ours would need unsafe code.

pub mod bootstrap;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use http::StatusCode;

pub use self::bootstrap::{Bootstrap, BootstrapError, Variant};
use super::client;

/// The version that `scripts/get-envoy` installs.
pub const VERSION: &str = "1.40.0";

/// How long Envoy may take to become ready.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// Pause between two looks at something that cannot notify us.
const LOOK: Duration = Duration::from_millis(10);

/// What can go wrong around the process.
#[derive(Debug, thiserror::Error)]
pub enum EnvoyError {
    /// No binary where one should be.
    #[error("no Envoy binary at {}: run scripts/get-envoy, or set ENVOY_BIN", .0.display())]
    NotFound(PathBuf),
    /// Nothing says where tools are kept.
    #[error("none of ENVOY_BIN, POINTSMAN_TOOLS and HOME is set: run scripts/get-envoy with one of them set")]
    Nowhere,
    /// The bootstrap cannot be written.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    /// A file, the process or the admin port failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// How it failed.
        source: io::Error,
    },
    /// Envoy ended or did not become ready.
    #[error("envoy {what}; the end of its log:\n{log}")]
    Failed {
        /// What it did.
        what: String,
        /// Last lines of its log.
        log: String,
    },
}

fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> EnvoyError {
    let what = what.into();
    move |source| EnvoyError::Io { what, source }
}

/// Finds the Envoy binary: `ENVOY_BIN`, or where `scripts/get-envoy` puts it
/// (`POINTSMAN_TOOLS`, or `HOME/.cache/pointsman`). `env` is the process environment.
///
/// # Errors
/// There is none; the text says how to get one.
pub fn find_binary(env: &BTreeMap<String, String>) -> Result<PathBuf, EnvoyError> {
    let set = |name: &str| env.get(name).filter(|value| !value.is_empty());
    let path = if let Some(binary) = set("ENVOY_BIN") {
        PathBuf::from(binary)
    } else {
        let tools = match (set("POINTSMAN_TOOLS"), set("HOME")) {
            (Some(tools), _) => PathBuf::from(tools),
            (None, Some(home)) => Path::new(home).join(".cache/pointsman"),
            (None, None) => return Err(EnvoyError::Nowhere),
        };
        tools.join(format!("envoy-{VERSION}/envoy"))
    };
    if path.is_file() { Ok(path) } else { Err(EnvoyError::NotFound(path)) }
}

/// Lets Envoy check a bootstrap without running it.
///
/// # Errors
/// The bootstrap cannot be rendered, the binary does not run, or Envoy refuses it (its words are in the error).
pub async fn validate(binary: &Path, bootstrap: &Bootstrap) -> Result<(), EnvoyError> {
    let output = tokio::process::Command::new(binary)
        .args(["--mode", "validate", "--log-level", "error", "--config-yaml", &bootstrap.render()?])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(failed(format!("run {}", binary.display())))?;
    if output.status.success() {
        return Ok(());
    }
    let log = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(EnvoyError::Failed { what: "refused the bootstrap".to_owned(), log })
}

/// A running Envoy. Dropping it kills the process and waits for its end.
#[derive(Debug)]
pub struct Envoy {
    child: Child,
    listener: SocketAddr,
    admin: SocketAddr,
    access_log: PathBuf,
    log: PathBuf,
}

impl Envoy {
    /// Starts `binary` with `concurrency` worker threads and returns when it is ready for requests.
    ///
    /// `dir` must exist and belong to this Envoy alone; it gets `envoy.yaml`, `envoy.log`,
    /// `access.log` and `admin.txt`, which stay there afterwards.
    ///
    /// # Errors
    /// The bootstrap or the files cannot be written, or Envoy does not become ready within a minute;
    /// no process is left then.
    pub async fn start(binary: &Path, bootstrap: &Bootstrap, concurrency: u32, dir: &Path) -> Result<Self, EnvoyError> {
        let mut bootstrap = bootstrap.clone();
        let access_log = bootstrap.access_log.get_or_insert_with(|| dir.join("access.log")).clone();
        Self::launch(binary, &bootstrap.render()?, access_log, concurrency, dir).await
    }

    /// The same with a bootstrap of somebody else, which must have a listener and an admin port. Its access log goes
    /// where it says.
    ///
    /// # Errors
    /// As of [`Self::start`].
    pub async fn start_with(binary: &Path, config: &str, concurrency: u32, dir: &Path) -> Result<Self, EnvoyError> {
        Self::launch(binary, config, dir.join("access.log"), concurrency, dir).await
    }

    async fn launch(
        binary: &Path,
        text: &str,
        access_log: PathBuf,
        concurrency: u32,
        dir: &Path,
    ) -> Result<Self, EnvoyError> {
        let (config, log, admin_file) = (dir.join("envoy.yaml"), dir.join("envoy.log"), dir.join("admin.txt"));
        let write =
            |path: &Path, text: &str| std::fs::write(path, text).map_err(failed(format!("write {}", path.display())));
        write(&config, text)?;
        // Leftovers of an earlier run in the same folder would be read as this one's.
        write(&access_log, "")?;
        write(&admin_file, "")?;
        let log_file = File::create(&log).map_err(failed(format!("create {}", log.display())))?;
        let child = Command::new(binary)
            .arg("--config-path")
            .arg(&config)
            .arg("--admin-address-path")
            .arg(&admin_file)
            .args(["--concurrency", &concurrency.max(1).to_string()])
            .args(["--use-dynamic-base-id", "--disable-hot-restart", "--log-level", "warning"])
            .args(["--file-flush-interval-msec", "20"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log_file)
            .spawn()
            .map_err(failed(format!("run {}", binary.display())))?;
        let unknown = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut envoy = Self { child, listener: unknown, admin: unknown, access_log, log };
        match tokio::time::timeout(START_DEADLINE, envoy.become_ready(&admin_file)).await {
            Ok(result) => result?,
            Err(_) => {
                let what = format!("was not ready after {} s", START_DEADLINE.as_secs());
                return Err(EnvoyError::Failed { what, log: envoy.log_tail() });
            }
        }
        Ok(envoy)
    }

    async fn become_ready(&mut self, admin_file: &Path) -> Result<(), EnvoyError> {
        loop {
            let text = std::fs::read_to_string(admin_file).unwrap_or_default();
            if let Ok(admin) = text.trim().parse() {
                self.admin = admin;
                break;
            }
            self.must_live()?;
            tokio::time::sleep(LOOK).await;
        }
        loop {
            if let Ok((StatusCode::OK, _)) = client::get(self.admin, "/ready").await {
                break;
            }
            self.must_live()?;
            tokio::time::sleep(LOOK).await;
        }
        let listeners = self.admin_text("/listeners?format=json").await?;
        self.listener = listener_address(&listeners).ok_or_else(|| EnvoyError::Failed {
            what: format!("names no listener in {listeners:?}"),
            log: self.log_tail(),
        })?;
        Ok(())
    }

    fn must_live(&mut self) -> Result<(), EnvoyError> {
        match self.child.try_wait().map_err(failed("look after envoy"))? {
            None => Ok(()),
            Some(status) => Err(EnvoyError::Failed { what: format!("ended with {status}"), log: self.log_tail() }),
        }
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.listener
    }

    /// Where the admin interface listens.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// File of the access log, one line per finished request: status, response flags, details,
    /// `up=` upstream, `try=` attempts (variant B), `lb=` metadata. Envoy flushes it every 20 ms.
    pub fn access_log_path(&self) -> &Path {
        &self.access_log
    }

    /// The access log once it holds at least `lines` lines, or what it holds after `patience`.
    pub async fn access_log(&self, lines: usize, patience: Duration) -> Vec<String> {
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            let text = std::fs::read_to_string(&self.access_log).unwrap_or_default();
            let found: Vec<String> = text.lines().map(str::to_owned).collect();
            if found.len() >= lines || tokio::time::Instant::now() >= deadline {
                return found;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Counters and gauges whose name contains `filter` (a regular expression in Envoy's dialect,
    /// sent as it is, so no characters that a URL would escape). Histograms are left out.
    ///
    /// # Errors
    /// The admin port does not answer 200.
    pub async fn stats(&self, filter: &str) -> Result<BTreeMap<String, u64>, EnvoyError> {
        let text = self.admin_text(&format!("/stats?filter={filter}")).await?;
        Ok(parse_stats(&text))
    }

    async fn admin_text(&self, path: &str) -> Result<String, EnvoyError> {
        let what = || format!("ask Envoy's admin port {} for {path}", self.admin);
        let (status, body) = client::get(self.admin, path).await.map_err(failed(what()))?;
        if status != StatusCode::OK {
            return Err(EnvoyError::Io { what: what(), source: io::Error::other(format!("status {status}")) });
        }
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    /// The last lines of Envoy's own log.
    pub fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// Kills the process and waits for its end; the same as dropping it.
    pub fn stop(self) {}
}

impl Drop for Envoy {
    fn drop(&mut self) {
        // An error means that it is gone already. SIGKILL leaves nothing to wait long for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn listener_address(listeners: &str) -> Option<SocketAddr> {
    let page: serde_json::Value = serde_json::from_str(listeners).ok()?;
    let address = page.pointer("/listener_statuses/0/local_address/socket_address")?;
    let port = u16::try_from(address.get("port_value")?.as_u64()?).ok()?;
    Some(SocketAddr::new(address.get("address")?.as_str()?.parse().ok()?, port))
}

fn parse_stats(text: &str) -> BTreeMap<String, u64> {
    text.lines()
        .filter_map(|line| {
            let (name, value) = line.rsplit_once(": ")?;
            Some((name.to_owned(), value.parse().ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn the_binary_is_where_the_environment_says() {
        let dir = tempfile::tempdir().unwrap();
        let tools = dir.path().to_str().unwrap();
        let error = |pairs: &[(&str, &str)]| find_binary(&env(pairs)).unwrap_err().to_string();
        assert!(error(&[("POINTSMAN_TOOLS", tools)]).contains("run scripts/get-envoy"));
        assert!(error(&[("ENVOY_BIN", "/no/such/envoy"), ("HOME", tools)]).contains("/no/such/envoy"));
        assert!(error(&[("HOME", "")]).contains("run scripts/get-envoy"));
        let folder = dir.path().join(format!(".cache/pointsman/envoy-{VERSION}"));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("envoy"), "").unwrap();
        assert_eq!(find_binary(&env(&[("HOME", tools)])).unwrap(), folder.join("envoy"));
    }

    #[test]
    fn the_script_and_the_code_agree_on_the_version() {
        assert!(include_str!("../../scripts/get-envoy").contains(&format!("\nversion={VERSION}\n")));
    }

    #[test]
    fn stats_leave_out_what_is_no_number() {
        let text = "a.b: 1\nhttp.x: y: 2\nhistogram: P0(nan,1.0) P25(nan,1.0)\nbroken\n";
        let expected = BTreeMap::from([("a.b".to_owned(), 1), ("http.x: y".to_owned(), 2)]);
        assert_eq!(parse_stats(text), expected);
    }

    #[test]
    fn the_listener_is_read_from_the_admin_page() {
        let page = r#"{"listener_statuses":[{"name":"inference","local_address":{"socket_address":{"address":"127.0.0.1","port_value":40001}}}]}"#;
        assert_eq!(listener_address(page), Some(SocketAddr::from(([127, 0, 0, 1], 40001))));
        assert_eq!(listener_address("{}"), None);
        assert_eq!(listener_address("<html>"), None);
    }
}
