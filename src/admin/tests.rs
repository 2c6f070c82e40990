//! The admin port over real loopback connections.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::lifecycle::drain::{self, DrainTrigger};

struct Port {
    address: SocketAddr,
    readiness: Readiness,
    trigger: DrainTrigger,
    serving: tokio::task::JoinHandle<anyhow::Result<()>>,
}

async fn port() -> Port {
    port_with(|state| state).await
}

async fn port_with(change: impl FnOnce(AdminState) -> AdminState) -> Port {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let readiness = Readiness::new();
    let (trigger, watcher) = drain::channel();
    let state = AdminState::new(Metrics::new(), readiness.clone())
        .with_plugins(|| r#"{"approx":{}}"#.into())
        .with_config(|| panic!("a broken page"));
    let serving = tokio::spawn(serve(listener, Arc::new(change(state)), watcher));
    Port { address, readiness, trigger, serving }
}

impl Port {
    /// Sends `request` and returns all that comes back until the connection ends.
    async fn raw(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        // The server may close while we still write.
        stream.write_all(request.as_bytes()).await.ok();
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        tokio::time::timeout(Duration::from_secs(10), read).await.expect("the connection stays open").ok();
        String::from_utf8(answer).unwrap()
    }

    async fn send(&self, method: &str, path: &str) -> String {
        self.raw(&format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).await
    }
}

#[tokio::test]
async fn pages_have_status_type_and_content() {
    let port = port().await;
    let block = port.readiness.block("pool");
    for (path, status, kind, content) in [
        ("/metrics", "200 OK", "text/plain; version=0.0.4", "llm_d_epp_info{"),
        ("/healthz", "200 OK", TEXT, "ok\n"),
        ("/readyz", "503 Service Unavailable", TEXT, "waiting for: pool\n"),
        ("/debug/plugins/state?x=1", "200 OK", JSON, r#"{"approx":{}}"#),
        ("/debug/config", "500 Internal Server Error", TEXT, "could not be made"),
        ("/debug/decisions", "404 Not Found", TEXT, "/metrics"),
        ("/metrics/", "404 Not Found", TEXT, "/debug/plugins/state"),
    ] {
        let answer = port.send("GET", path).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{path}: {answer}");
        assert!(answer.contains(&format!("content-type: {kind}\r\n")), "{path}: {answer}");
        assert!(answer.split_once("\r\n\r\n").unwrap().1.contains(content), "{path}: {answer}");
    }
    drop(block);
    assert!(port.send("GET", "/readyz").await.starts_with("HTTP/1.1 200 OK"));
    port.readiness.draining();
    assert!(port.send("GET", "/readyz").await.ends_with("\r\n\r\ndraining\n"));
}

#[tokio::test]
async fn only_get_and_head_without_bodies() {
    let port = port().await;
    let head = port.send("HEAD", "/healthz").await;
    assert!(head.starts_with("HTTP/1.1 200 OK") && head.ends_with("\r\n\r\n"), "{head}");
    assert!(head.contains("content-length: 3\r\n"));
    for method in ["POST", "DELETE", "OPTIONS"] {
        let answer = port.send(method, "/metrics").await;
        assert!(answer.starts_with("HTTP/1.1 405 ") && answer.contains("allow: GET, HEAD\r\n"), "{answer}");
    }
    let with_body = "GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\nsome";
    assert!(port.raw(with_body).await.starts_with("HTTP/1.1 413 "));
}

#[tokio::test]
async fn large_heads_and_noise_are_refused() {
    let port = port().await;
    let large = format!("GET /metrics HTTP/1.1\r\nX: {}\r\n\r\n", "a".repeat(2 * MAX_HEAD_BYTES));
    let answer = port.raw(&large).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 "), "{answer}");
    let many = format!("GET /metrics HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(MAX_HEADERS + 1));
    assert!(port.raw(&many).await.starts_with("HTTP/1.1 431 "));
    let noise = port.raw("\u{16}\u{3}\u{1}\r\n\r\n").await;
    assert!(noise.is_empty() || noise.starts_with("HTTP/1.1 400 "), "{noise}");
}

#[tokio::test]
async fn connections_are_bounded() {
    let port = port().await;
    let mut held = Vec::new();
    for _ in 0..LIMITS.connections {
        held.push(TcpStream::connect(port.address).await.unwrap());
    }
    let mut extra = TcpStream::connect(port.address).await.unwrap();
    assert_eq!(extra.read(&mut [0]).await.unwrap_or(0), 0, "closed by the server");
    held.truncate(LIMITS.connections / 2);
    // The server sees the ends of the others before a connection that is made later.
    let mut tries = 0;
    while port.raw("GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.is_empty() {
        tries += 1;
        assert!(tries < 100, "places were not given back");
    }
}

#[tokio::test]
async fn silent_and_slow_connections_are_closed() {
    let port = port().await;
    let mut silent = TcpStream::connect(port.address).await.unwrap();
    let mut slow = TcpStream::connect(port.address).await.unwrap();
    slow.write_all(b"GET /healthz HT").await.unwrap();
    assert!(port.send("GET", "/healthz").await.starts_with("HTTP/1.1 200"), "both are accepted by now");
    tokio::time::pause();
    tokio::time::advance(LIMITS.first_byte + Duration::from_millis(1)).await;
    tokio::time::resume();
    assert_eq!(silent.read(&mut [0]).await.unwrap_or(0), 0);
    tokio::time::pause();
    tokio::time::advance(HEAD_TIMEOUT + Duration::from_millis(1)).await;
    tokio::time::resume();
    let mut rest = Vec::new();
    slow.read_to_end(&mut rest).await.ok();
    assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 408"), "{}", String::from_utf8_lossy(&rest));
}

#[tokio::test]
async fn an_idle_connection_does_not_delay_the_stop() {
    let port = port().await;
    let mut idle = TcpStream::connect(port.address).await.unwrap();
    idle.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    assert!(idle.read(&mut [0; 512]).await.unwrap() > 0);
    port.trigger.drain(Duration::ZERO).await;
    tokio::time::timeout(Duration::from_secs(10), port.serving).await.unwrap().unwrap().unwrap();
    assert!(TcpStream::connect(port.address).await.is_err());
}

/// Lets `scraper` read the metrics; has no answer about `later` and must not be asked about `broken`.
struct Judge;

impl access::Judge for Judge {
    fn judge(&self, token: String, path: String) -> access::Judgement {
        use access::{NoVerdict, Verdict};
        Box::pin(async move {
            match token.as_str() {
                "scraper" if path == "/metrics" => Ok(Verdict::Allowed),
                "scraper" => Ok(Verdict::Forbidden),
                "later" => Err(NoVerdict::Unavailable("away".into())),
                "broken" => Err(NoVerdict::Broken("no permission".into())),
                _ => Ok(Verdict::Unknown),
            }
        })
    }
}

#[tokio::test]
async fn a_guarded_port_shows_pages_to_whom_it_may() {
    let clock = Arc::new(crate::lifecycle::clock::ManualClock::default());
    let port = port_with(|state| state.with_access(Access::new(Arc::new(Judge), clock))).await;
    for (path, token, status) in [
        ("/metrics", "scraper", "200 OK"),
        ("/metrics", "", "401 Unauthorized"),
        ("/metrics", "made-up", "401 Unauthorized"),
        ("/debug/plugins/state", "scraper", "403 Forbidden"),
        ("/metrics", "later", "503 Service Unavailable"),
        ("/metrics", "broken", "500 Internal Server Error"),
        ("/nothing", "scraper", "403 Forbidden"),
        ("/nothing", "", "401 Unauthorized"),
        ("/healthz", "", "200 OK"),
        ("/readyz", "", "200 OK"),
    ] {
        let authorization = if token.is_empty() { String::new() } else { format!("Authorization: Bearer {token}\r\n") };
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n{authorization}Connection: close\r\n\r\n");
        let answer = port.raw(&request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{path} {token}: {answer}");
        assert_eq!(answer.contains("www-authenticate: Bearer\r\n"), status.starts_with("401"), "{answer}");
        assert!(status == "200 OK" || !answer.contains("llm_d_epp"), "{answer}");
    }
}
