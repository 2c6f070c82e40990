//! What it costs to stand idle before a pool: the binary in a process of its own, metrics pages of a real
//! vLLM served by another process, and nothing else to do. CPU is that of the picker alone, from `/proc`.
//!
//! `cargo bench --bench scrape` measures 100 endpoints every 50 ms with whole pages and with filtered ones.
//! `cargo bench --bench scrape -- --endpoints 1000 --interval 50 --page filtered --seconds 10` measures one
//! case. For each case a line for people and one of JSON. `--runs 5` repeats it.
//!
//! The servers are as cheap as they can be: a connection is a task of one thread, an answer is made once
//! for each query and written in one call. Whole pages come from servers that do not know `name[]`.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const PAGE: &str = include_str!("../tests/data/metrics/vllm-metrics.txt");
const CONFIG: &str = "\
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- {type: file-discovery, parameters: {path: ENDPOINTS}}
- {type: queue-scorer}
- {type: kv-cache-utilization-scorer}
- {type: prefix-cache-scorer}
schedulingProfiles:
- name: default
  plugins:
  - {pluginRef: queue-scorer, weight: 2}
  - {pluginRef: kv-cache-utilization-scorer, weight: 2}
  - {pluginRef: prefix-cache-scorer, weight: 3}
dataLayer: {discovery: {pluginRef: file-discovery}}
";

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("--serve") => serve(arguments[1].parse().expect("a number of servers"), arguments[2] == "filtered"),
        _ => measure(&arguments),
    }
}

/// One case.
#[derive(Clone, Copy)]
struct Case {
    endpoints: usize,
    interval: Duration,
    filtered: bool,
    seconds: u64,
}

fn measure(arguments: &[String]) {
    let mut case = Case { endpoints: 100, interval: Duration::from_millis(50), filtered: false, seconds: 10 };
    let (mut pages, mut runs) = (vec![false, true], 1);
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let mut number = || words.next().and_then(|w| w.parse::<u64>().ok()).unwrap_or_else(|| panic!("{word} number"));
        match word.as_str() {
            "--endpoints" => case.endpoints = number() as usize,
            "--interval" => case.interval = Duration::from_millis(number()),
            "--seconds" => case.seconds = number(),
            "--runs" => runs = number(),
            "--page" => pages = vec![words.next().is_some_and(|w| w == "filtered")],
            // Cargo's own.
            "--bench" => {}
            other => panic!("{other}: not an option; see the head of benches/scrape.rs"),
        }
    }
    println!(
        "page      endpoints  interval  scrapes/s  bytes/scrape  cores   us/scrape (user+system)  connections  RSS MiB"
    );
    for filtered in pages {
        for _ in 0..runs {
            one(Case { filtered, ..case });
        }
    }
}

fn one(case: Case) {
    let folder = tempfile::tempdir().expect("a folder");
    let mut pages = Pages::start(&case);
    let picker = Picker::start(&case, &pages.ports, folder.path());
    // Connecting, comparing whole and filtered pages: not what is measured.
    wait(Duration::from_secs(3));
    let (served, cpu) = (pages.count(), picker.cpu());
    wait(Duration::from_secs(case.seconds));
    let (served_after, cpu_after) = (pages.count(), picker.cpu());
    let scrapes = served_after.requests - served.requests;
    let [user, system] = [0, 1].map(|i| (cpu_after[i] - cpu[i]).as_secs_f64());
    let seconds = case.seconds as f64;
    let cores = (user + system) / seconds;
    let [user_us, system_us] = [user, system].map(|s| s * 1e6 / scrapes.max(1) as f64);
    let bytes = (served_after.bytes - served.bytes) / scrapes.max(1);
    let rss = picker.rss();
    let page = if case.filtered { "filtered" } else { "full" };
    println!(
        "{page:<8}  {:>9}  {:>6}ms  {:>9.0}  {bytes:>12}  {cores:.4}  {:>7.1} ({user_us:.1}+{system_us:.1})  {:>17}  {rss:>7.1}",
        case.endpoints,
        case.interval.as_millis(),
        scrapes as f64 / seconds,
        user_us + system_us,
        served_after.connections,
    );
    println!(
        "{}",
        serde_json::json!({
            "bench": "scrape",
            "page": page,
            "endpoints": case.endpoints,
            "interval_ms": case.interval.as_millis() as u64,
            "seconds": case.seconds,
            "scrapes_per_second": scrapes as f64 / seconds,
            "page_bytes": bytes,
            "cores": cores,
            "user_us_per_scrape": user_us,
            "system_us_per_scrape": system_us,
            "connections": served_after.connections,
            "rss_mib": rss,
        })
    );
}

#[allow(clippy::disallowed_methods, reason = "a measurement takes its time")]
fn wait(time: Duration) {
    std::thread::sleep(time);
}

struct Picker(Child);

impl Drop for Picker {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Picker {
    fn start(case: &Case, ports: &[u16], folder: &Path) -> Self {
        let endpoints: String =
            ports.iter().map(|p| format!("- {{name: s{p}, address: 127.0.0.1, port: {p}}}\n")).collect();
        let path = folder.join("endpoints.yaml");
        std::fs::write(&path, format!("endpoints:\n{endpoints}")).expect("a file");
        let config = CONFIG.replace("ENDPOINTS", &format!("'{}'", path.display()));
        std::fs::write(folder.join("config.yaml"), config).expect("a file");
        let log = folder.join("log");
        let child = Command::new(env!("CARGO_BIN_EXE_pointsman"))
            .arg("--config-file")
            .arg(folder.join("config.yaml"))
            .args(["--grpc-port=0", "--grpc-health-port=0", "--metrics-port=0", "--secure-serving=false"])
            .arg(format!("--refresh-metrics-interval={}ms", case.interval.as_millis()))
            .stderr(std::fs::File::create(&log).expect("a file"))
            .spawn()
            .expect("the picker");
        let mut picker = Self(child);
        for _ in 0..500 {
            if std::fs::read_to_string(&log).unwrap_or_default().contains("pointsman is serving") {
                return picker;
            }
            if let Ok(Some(status)) = picker.0.try_wait() {
                panic!("the picker ended: {status}\n{}", std::fs::read_to_string(&log).unwrap_or_default());
            }
            wait(Duration::from_millis(20));
        }
        panic!("the picker does not serve");
    }

    /// CPU time used so far: user, system.
    fn cpu(&self) -> [Duration; 2] {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).expect("Linux");
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or("").split(' ').collect();
        // Fields 14 and 15 of proc(5), counted from the third, in ticks of 10 ms.
        [11, 12].map(|at| Duration::from_millis(fields[at].parse::<u64>().expect("a number") * 10))
    }

    /// Resident memory in MiB.
    fn rss(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).expect("Linux");
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).expect("VmRSS");
        line.trim().trim_end_matches(" kB").parse::<f64>().expect("a number") / 1024.0
    }
}

/// What the page servers did so far.
#[derive(Clone, Copy, Default)]
struct Served {
    requests: u64,
    bytes: u64,
    connections: u64,
}

/// The process with the page servers; it ends when its standard input does.
struct Pages {
    child: Child,
    ask: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    ports: Vec<u16>,
}

impl Drop for Pages {
    fn drop(&mut self) {
        self.ask = None;
        let _ = self.child.wait();
    }
}

impl Pages {
    fn start(case: &Case) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("a path"))
            .args(["--serve", &case.endpoints.to_string(), if case.filtered { "filtered" } else { "full" }])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("page servers");
        let (ask, answers) = (child.stdin.take(), BufReader::new(child.stdout.take().expect("a pipe")));
        let mut pages = Self { child, ask, answers, ports: Vec::new() };
        pages.ports = pages.line().into_iter().map(|n| n as u16).collect();
        pages
    }

    fn line(&mut self) -> Vec<u64> {
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("page servers");
        line.split_whitespace().map(|word| word.parse().expect("a number")).collect()
    }

    fn count(&mut self) -> Served {
        writeln!(self.ask.as_mut().expect("open"), "count").expect("page servers");
        let [requests, bytes, connections] = self.line()[..] else { panic!("the page servers ended") };
        Served { requests, bytes, connections }
    }
}

/// What the page servers share.
struct Shelf {
    filtered: bool,
    /// Answers by query; bounded by what one picker asks for.
    answers: std::cell::RefCell<HashMap<Vec<u8>, Rc<Vec<u8>>>>,
    served: std::cell::Cell<Served>,
}

fn serve(servers: usize, filtered: bool) {
    pointsman::lifecycle::open_files::raise();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let tasks = tokio::task::LocalSet::new();
    let shelf = Rc::new(Shelf { filtered, answers: Default::default(), served: Default::default() });
    tasks.block_on(&runtime, async {
        let mut ports = Vec::new();
        for _ in 0..servers {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            ports.push(listener.local_addr().expect("an address").port().to_string());
            let shelf = Rc::clone(&shelf);
            tokio::task::spawn_local(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let mut served = shelf.served.get();
                    served.connections += 1;
                    shelf.served.set(served);
                    tokio::task::spawn_local(answer(stream, Rc::clone(&shelf)));
                }
            });
        }
        println!("{}", ports.join(" "));
        let (lines, mut asked) = tokio::sync::mpsc::channel(1);
        std::thread::spawn(move || {
            for line in std::io::stdin().lines().map_while(Result::ok) {
                if lines.blocking_send(line).is_err() {
                    return;
                }
            }
        });
        while asked.recv().await.is_some() {
            let Served { requests, bytes, connections } = shelf.served.get();
            println!("{requests} {bytes} {connections}");
        }
    });
}

async fn answer(mut stream: TcpStream, shelf: Rc<Shelf>) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut head = Vec::with_capacity(4096);
    loop {
        head.clear();
        while !head.ends_with(b"\r\n\r\n") {
            if stream.read_buf(&mut head).await.ok()? == 0 {
                return None;
            }
        }
        let query = head.split(|b| *b == b' ').nth(1)?.split(|b| *b == b'?').nth(1).unwrap_or_default();
        let known = shelf.answers.borrow().get(query).cloned();
        let answer = known.unwrap_or_else(|| {
            let made = Rc::new(page(if shelf.filtered { query } else { b"" }));
            shelf.answers.borrow_mut().insert(query.to_vec(), Rc::clone(&made));
            made
        });
        stream.write_all(&answer).await.ok()?;
        let Served { requests, bytes, connections } = shelf.served.get();
        shelf.served.set(Served { requests: requests + 1, bytes: bytes + answer.len() as u64, connections });
    }
}

/// The answer to `query`, with the head that uvicorn writes. As in prometheus_client, `name[]` chooses samples and
/// keeps the families that have one.
fn page(query: &[u8]) -> Vec<u8> {
    let query = String::from_utf8_lossy(query).replace("%5B", "[").replace("%5D", "]").replace("%3A", ":");
    let names: Vec<&str> = query.split('&').filter_map(|pair| pair.strip_prefix("name[]=")).collect();
    let mut body = String::new();
    for line in PAGE.lines() {
        let series = line.trim_start_matches("# HELP ").trim_start_matches("# TYPE ");
        let name = series.split(['{', ' ']).next().unwrap_or_default();
        if names.is_empty() || names.contains(&name) {
            body.push_str(line);
            body.push('\n');
        }
    }
    format!(
        "HTTP/1.1 200 OK\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\nserver: uvicorn\r\ncontent-length: {}\r\n\
         content-type: text/plain; version=0.0.4; charset=utf-8\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}
