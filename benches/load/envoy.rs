//! The picker behind a real Envoy: what each of the two costs per request.
//!
//! The client and the model server are a few lines each on raw sockets, so that as much of the machine as
//! possible is left to the two that are looked at. Nothing is pinned: Envoy, with two workers, and the
//! ext_proc server share the cores, as beside each other in a pod.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf as _, BytesMut};
use pointsman::sim::envoy::{self, Bootstrap, Envoy};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::client::{Requests, Shape};
use super::pages::Pages;
use super::process::{Server, cpu_of};

/// CPU microseconds per request of a run.
#[derive(Clone, Copy, Debug)]
pub struct Costs {
    /// Of the ext_proc server.
    pub server: f64,
    /// Of Envoy.
    pub envoy: f64,
    /// Requests per second.
    pub rate: f64,
}

/// An Envoy in front of an ext_proc server.
pub struct Behind {
    envoy: Envoy,
}

impl Behind {
    /// Starts it; `None` without an Envoy binary.
    pub async fn start(server: &Server, folder: &Path) -> Option<Self> {
        let environment: BTreeMap<String, String> = std::env::vars().collect();
        let binary = match envoy::find_binary(&environment) {
            Ok(binary) => binary,
            Err(error) => {
                eprintln!("the part behind Envoy is left out: {error}");
                return None;
            }
        };
        std::fs::create_dir_all(folder).expect("a folder");
        let bootstrap = Bootstrap::original_dst(server.address);
        Some(Self { envoy: Envoy::start(&binary, &bootstrap, 2, folder).await.expect("Envoy starts") })
    }

    /// `connections` clients, one request after the other each, for `time`.
    pub async fn run(&self, server: &Server, body: usize, connections: usize, time: Duration) -> Costs {
        let requests = Requests::new(Shape { body, pieces: 1, chunks: 0 });
        let (server_cpu, envoy_cpu, started) = (server.cpu(), cpu_of(self.envoy.pid()), Instant::now());
        let clients: Vec<_> = (0..connections)
            .map(|client| {
                let (requests, address) = (requests.clone(), self.envoy.address());
                tokio::task::spawn_local(async move {
                    let mut stream = TcpStream::connect(address).await.expect("Envoy listens");
                    stream.set_nodelay(true).expect("a TCP socket");
                    let (mut done, mut answer) = (0_u64, BytesMut::with_capacity(4096));
                    while started.elapsed() < time {
                        let body = requests.json(client as u64 * 1_000_000_000 + done);
                        let head = format!(
                            "POST /v1/chat/completions HTTP/1.1\r\nhost: models\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                            body.len()
                        );
                        stream.write_all(&[head.as_bytes(), &body].concat()).await.expect("Envoy reads");
                        read_answer(&mut stream, &mut answer).await;
                        done += 1;
                    }
                    done
                })
            })
            .collect();
        let mut done = 0;
        for client in clients {
            done += client.await.expect("no panic");
        }
        let took = started.elapsed().as_secs_f64();
        let micros = |now: Duration, before: Duration| (now - before).as_secs_f64() * 1e6 / done.max(1) as f64;
        Costs {
            server: micros(server.cpu(), server_cpu),
            envoy: micros(cpu_of(self.envoy.pid()), envoy_cpu),
            rate: done as f64 / took,
        }
    }
}

/// Reads one answer, which Envoy sends chunked, and insists on a 200.
async fn read_answer(stream: &mut TcpStream, answer: &mut BytesMut) {
    answer.clear();
    while !answer.ends_with(b"\r\n0\r\n\r\n") {
        let read = stream.read_buf(answer).await.expect("Envoy answers");
        assert!(read > 0, "Envoy closed the connection: {:?}", String::from_utf8_lossy(answer));
    }
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{:?}", String::from_utf8_lossy(answer));
}

/// Model servers on every address of the endpoints: a short completion to every POST, the metrics page to a GET.
pub async fn model_servers() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).await.expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    tokio::task::spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::task::spawn_local(model_server(stream));
        }
    });
    port
}

async fn model_server(mut stream: TcpStream) {
    const BODY: &str = r#"{"id":"chatcmpl-1","object":"chat.completion","model":"bench/model","choices":[{"index":0,"message":{"role":"assistant","content":"Yes."},"finish_reason":"stop"}],"usage":{"prompt_tokens":900,"completion_tokens":2,"total_tokens":902}}"#;
    let answer =
        format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{BODY}", BODY.len());
    let mut pages = Pages::new(true, Arc::default());
    let mut request = BytesMut::with_capacity(256 << 10);
    loop {
        let head = loop {
            if let Some(end) = request.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break end + 4;
            }
            if !matches!(stream.read_buf(&mut request).await, Ok(read) if read > 0) {
                return;
            }
        };
        if request.starts_with(b"GET") {
            let line = request[..].split(|byte| *byte == b'\r').next().unwrap_or_default();
            if stream.write_all(pages.answer(line)).await.is_err() {
                return;
            }
            request.advance(head);
            continue;
        }
        let chunked = request[..head].to_ascii_lowercase().windows(7).any(|bytes| bytes == b"chunked");
        let length = content_length(&request[..head]);
        let ended = |request: &[u8]| {
            if chunked { request.ends_with(b"0\r\n\r\n") } else { request.len() >= head + length }
        };
        while !ended(&request) {
            if !matches!(stream.read_buf(&mut request).await, Ok(read) if read > 0) {
                return;
            }
        }
        request.advance(request.len());
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

fn content_length(head: &[u8]) -> usize {
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    head.lines().find_map(|line| line.strip_prefix("content-length:")).and_then(|v| v.trim().parse().ok()).unwrap_or(0)
}

/// The address of a model server.
pub fn address(number: usize, port: u16) -> SocketAddr {
    super::pages::address(number, port)
}
