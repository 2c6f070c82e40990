//! Simulated metrics endpoints, as cheap as they can be: one page made beforehand, one thread for all. Every
//! endpoint is an address of its own in 127.0.1.0/24 and up, on one port.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const PAGE: &str = include_str!("../../tests/data/metrics/vllm-metrics.txt");

/// Pages served.
#[derive(Default)]
pub struct Served {
    /// All of them.
    pub pages: AtomicU64,
    /// Those for which only named families were asked.
    pub filtered: AtomicU64,
}

/// Serves on a thread of its own; the port and the counters.
pub fn start(honour_filters: bool) -> (u16, Arc<Served>) {
    let listener = std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a free port");
    listener.set_nonblocking(true).expect("a socket");
    let port = listener.local_addr().expect("bound").port();
    let served = Arc::new(Served::default());
    let counters = Arc::clone(&served);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let listener = TcpListener::from_std(listener).expect("a socket");
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(connection(stream, honour_filters, Arc::clone(&counters)));
            }
        });
    });
    (port, served)
}

/// The address of endpoint `number`.
pub fn address(number: usize, port: u16) -> SocketAddr {
    let [high, low] = u16::try_from(number).expect("few endpoints").to_be_bytes();
    SocketAddr::from(([127, 0, 1 + high, low], port))
}

/// The answers of one connection.
pub struct Pages {
    honour_filters: bool,
    full: Vec<u8>,
    /// The last filtered page with the request line that asked for it.
    filtered: Option<(Vec<u8>, Vec<u8>)>,
    served: Arc<Served>,
}

impl Pages {
    /// Of a server that does or does not honour `name[]`.
    pub fn new(honour_filters: bool, served: Arc<Served>) -> Self {
        Self { honour_filters, full: answer(&page()), filtered: None, served }
    }

    /// The whole answer to a request that starts with `line`.
    pub fn answer(&mut self, line: &[u8]) -> &[u8] {
        self.served.pages.fetch_add(1, Ordering::Relaxed);
        let names = names(line);
        if !self.honour_filters || names.is_empty() {
            return &self.full;
        }
        self.served.filtered.fetch_add(1, Ordering::Relaxed);
        if self.filtered.as_ref().is_none_or(|(asked, _)| asked != line) {
            self.filtered = Some((line.to_vec(), answer(&families(&names))));
        }
        self.filtered.as_ref().map_or(&self.full, |(_, page)| page)
    }
}

fn answer(page: &str) -> Vec<u8> {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/plain; version=0.0.4; charset=utf-8\r\ncontent-length: ";
    format!("{head}{}\r\n\r\n{page}", page.len()).into_bytes()
}

async fn connection(mut stream: TcpStream, honour_filters: bool, served: Arc<Served>) {
    let mut pages = Pages::new(honour_filters, served);
    let mut request = Vec::with_capacity(2048);
    loop {
        request.clear();
        while !request.ends_with(b"\r\n\r\n") {
            match stream.read_buf(&mut request).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
        let line = request.split(|byte| *byte == b'\r').next().unwrap_or_default();
        if stream.write_all(pages.answer(line)).await.is_err() {
            return;
        }
    }
}

/// The values of `name[]` in a request line, escaped or not.
fn names(line: &[u8]) -> Vec<String> {
    let line = String::from_utf8_lossy(line);
    let query = line.split(' ').nth(1).and_then(|target| target.split_once('?')).map_or("", |(_, query)| query);
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs
        .filter(|(key, _)| key.replace("%5B", "[").replace("%5D", "]") == "name[]")
        .map(|(_, name)| name.replace("%3A", ":").replace("%3a", ":"))
        .collect()
}

/// The page of a server with the cache of a large GPU, 524,288 tokens, instead of a test's 1,536.
fn page() -> String {
    let page = PAGE.replace(r#"num_gpu_blocks="48""#, r#"num_gpu_blocks="16384""#);
    assert_ne!(page, PAGE);
    page
}

/// The page with only the named series, as the Python client library filters it.
fn families(names: &[String]) -> String {
    let mut out = String::new();
    for line in page().lines() {
        let name = line.strip_prefix("# HELP ").or_else(|| line.strip_prefix("# TYPE ")).unwrap_or(line);
        let name = name.split([' ', '{']).next().unwrap_or("");
        if names.iter().any(|asked| asked == name) {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}
