//! What one request costs the process, over the wire: the binary in a process of its own, four
//! endpoints, requests of 1, 16 and 128 KB with a streamed answer of three chunks, 32 at a time over two
//! connections in plaintext; with and without the access log. CPU is that of the picker alone, from
//! `/proc`.
//!
//! `cargo bench --bench stream` (optional: `-- <kilobytes> <seconds>` for one size, to profile)

#[path = "../tests/shared/client.rs"]
mod client;

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use client::Call;
use tonic::transport::{Channel, Endpoint};

const CONFIG: &str = "\
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- {type: file-discovery, parameters: {path: ENDPOINTS}}
- {type: prefix-cache-scorer}
- {type: active-request-scorer}
schedulingProfiles:
- name: default
  plugins: [{pluginRef: prefix-cache-scorer}, {pluginRef: active-request-scorer}]
dataLayer: {injectDefaults: false, discovery: {pluginRef: file-discovery}}
";
const AT_ONCE: usize = 32;

struct Picker(Child);

impl Drop for Picker {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Picker {
    /// CPU time used so far: user, system.
    fn cpu(&self) -> [Duration; 2] {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).expect("Linux");
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or("").split(' ').collect();
        // Fields 14 and 15 of proc(5), counted from the third, in ticks of 10 ms.
        [11, 12].map(|at| Duration::from_millis(fields[at].parse::<u64>().expect("a number") * 10))
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port()
}

async fn start(access_log: bool, folder: &std::path::Path) -> (Picker, [Channel; 2]) {
    let port = free_port();
    let child = Command::new(env!("CARGO_BIN_EXE_pointsman"))
        .args(["--config-file", &folder.join("config.yaml").display().to_string()])
        .args(["--grpc-port", &port.to_string(), "--grpc-health-port=0", "--metrics-port=0"])
        .args(["--secure-serving=false", &format!("--access-log={access_log}")])
        .stderr(Stdio::null())
        .spawn()
        .expect("the picker starts");
    let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).expect("a URI");
    let mut channels = Vec::new();
    while channels.len() < 2 {
        match endpoint.connect().await {
            Ok(channel) => channels.push(channel),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
    (Picker(child), channels.try_into().expect("two"))
}

/// A chat-like completion of `size` bytes; a quarter of the prompt is common to 16 conversations.
fn body(size: usize, number: u64) -> Bytes {
    let mut text =
        format!(r#"{{"model":"bench/model","stream":true,"max_tokens":64,"prompt":"conversation {} "#, number % 16);
    while text.len() < size / 4 {
        text.push_str("the quick brown fox jumps over the lazy dog and \\\"quotes\\\" follow; ");
    }
    text.push_str(&format!("request {number} "));
    while text.len() + 2 < size {
        text.push_str("another sentence that is not in any other conversation of this pool. ");
    }
    text.truncate(size - 2);
    text.push_str("\"}");
    text.into()
}

async fn one(channel: &Channel, body: Bytes) {
    let mut call = Call::open(channel).await.expect("a stream");
    let headers =
        [("x-request-id", "0f8fad5b-d9cb-469f-a165-70867728950e"), ("user-agent", "bench"), ("accept", "*/*")];
    let routed = call.request(&headers, body.clone()).await.expect("routed");
    assert_eq!(routed.body.len(), body.len());
    let usage = b"data: {\"choices\":[],\"usage\":{\"prompt_tokens\":90,\"completion_tokens\":3}}\n\ndata: [DONE]\n\n";
    let token =
        b"data: {\"id\":\"c\",\"object\":\"text_completion\",\"choices\":[{\"index\":0,\"text\":\" word\"}]}\n\n";
    call.response("200", "text/event-stream", &[token, token, usage]).await;
    call.finish().await;
}

async fn load(channels: &[Channel; 2], size: usize, seconds: f64, count: &Arc<AtomicU64>) -> u64 {
    let before = count.load(Ordering::Relaxed);
    let end = tokio::time::Instant::now() + Duration::from_secs_f64(seconds);
    let workers: Vec<_> = (0..AT_ONCE)
        .map(|i| {
            let (channel, count) = (channels[i % 2].clone(), Arc::clone(count));
            tokio::spawn(async move {
                while tokio::time::Instant::now() < end {
                    let number = count.fetch_add(1, Ordering::Relaxed);
                    one(&channel, body(size, number)).await;
                }
            })
        })
        .collect();
    for worker in workers {
        worker.await.expect("no error");
    }
    count.load(Ordering::Relaxed) - before
}

#[tokio::main]
async fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if !args.iter().any(|a| a == "--bench") {
        // Built and run by `cargo test --all-targets`, which wants no measurement.
        return;
    }
    let numbers: Vec<f64> = args.iter().filter_map(|a| a.parse().ok()).collect();
    let folder = std::env::temp_dir().join(format!("pointsman-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let endpoints: String =
        (1..=4).map(|i| format!("- {{name: server-{i}, address: 192.0.2.{i}, port: 8000}}\n")).collect();
    std::fs::write(folder.join("endpoints.yaml"), format!("endpoints:\n{endpoints}")).expect("a file");
    let config = CONFIG.replace("ENDPOINTS", &format!("'{}'", folder.join("endpoints.yaml").display()));
    std::fs::write(folder.join("config.yaml"), config).expect("a file");
    let sizes = numbers.first().map_or(vec![1, 16, 128], |kilobytes| vec![*kilobytes as usize]);
    let seconds = numbers.get(1).copied().unwrap_or(5.0);
    println!(
        "{:>8} {:>6} {:>12} {:>12} {:>12} {:>12}",
        "body", "log", "requests/s", "CPU us/req", "user us", "system us"
    );
    for access_log in [true, false] {
        let (picker, channels) = start(access_log, &folder).await;
        let count = Arc::new(AtomicU64::new(0));
        for size in &sizes {
            let bytes = size * 1024;
            load(&channels, bytes, 0.5, &count).await;
            let (cpu, begun) = (picker.cpu(), tokio::time::Instant::now());
            let requests = load(&channels, bytes, seconds, &count).await as f64;
            let took = begun.elapsed().as_secs_f64();
            let now = picker.cpu();
            let [user, system] = [0, 1].map(|i| (now[i] - cpu[i]).as_secs_f64() * 1e6 / requests);
            let log = if access_log { "on" } else { "off" };
            println!(
                "{size:>5} KB {log:>6} {:>12.0} {:>12.1} {user:>12.1} {system:>12.1}",
                requests / took,
                user + system
            );
        }
    }
    let _ = std::fs::remove_dir_all(folder);
}
