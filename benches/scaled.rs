//! The real binary, over gRPC, in scaled time: are its picks as good as replay says?
//!
//! This program is the data plane and the model servers at once. It lays a trace out as `pointsman replay` does, opens one
//! ext_proc stream for each request when its time comes, with a body of JSON text made from the trace's blocks, reads
//! the pick from the destination header, runs the request on the simulated server of that address, and passes the first
//! token and the end with its `usage` on as response messages. The servers' metrics pages are served on loopback and
//! scraped by the picker. Servers run in exact virtual time; only what has to pass through the picker takes real time, so
//! that a slow machine shows as later picks and not as slower servers.
//!
//! Time runs `--speed` times faster than in the trace. A learnt rate follows by itself; times in seconds of
//! the configuration (`holdAbove`, `tieSeconds`, the prefill that `initialPrefillRate` implies) are divided here.
//!
//! `cargo bench --bench scaled -- --trace FILE|--generate PRESET [--config FILE|default|llm-d-default ...] [--load 0.8]
//! [--seconds 600] [--speed 8] [--seeds 1-2]`
#![allow(clippy::disallowed_methods, reason = "a measurement is about real time")]

#[path = "scaled/client.rs"]
mod client;
#[path = "scaled/fleet.rs"]
mod fleet;
#[path = "scaled/pages.rs"]
mod pages;
#[path = "load/process.rs"]
#[allow(dead_code, reason = "shared with the load benchmark, which needs more of it")]
mod process;
#[path = "scaled/wire.rs"]
mod wire;

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use pointsman::replay::pod::Hardware;
use pointsman::replay::preset;
use pointsman::replay::trace::Trace;
use pointsman::replay::trace::generate::{Shape, generate};
use pointsman::replay::trace::read::{load, spread};
use pointsman::replay::trace::scale::{Target, to_load};
use process::{Server, free_port};

use fleet::Fleet;

const PODS: usize = 8;
/// Share of the time that is not counted.
const WARM: f64 = 0.2;

struct Plan {
    trace: Trace,
    configs: Vec<String>,
    load: f64,
    seconds: f64,
    speed: f64,
    seeds: std::ops::RangeInclusive<u64>,
}

impl Plan {
    fn read(args: &[String]) -> Self {
        let all = |name: &str| -> Vec<String> {
            let at = args.iter().enumerate().filter(|(_, a)| *a == name);
            at.filter_map(|(i, _)| args.get(i + 1).cloned()).collect()
        };
        let number = |name: &str, default: f64| all(name).last().map_or(default, |n| n.parse().expect("a number"));
        let trace = match (all("--trace").last(), all("--generate").last()) {
            (Some(file), _) => spread(load(Path::new(file)).expect("a trace"), 7),
            (None, shape) => {
                generate(&Shape::parse(shape.map_or("chat", String::as_str)).expect("a preset or a shape"))
            }
        };
        let mut configs = all("--config");
        if configs.is_empty() {
            configs = vec!["llm-d-default".to_owned(), "default".to_owned()];
        }
        let seeds = all("--seeds").last().map_or(1..=1, |text| {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            first.parse().expect("a seed")..=last.parse().expect("a seed")
        });
        Self {
            trace,
            configs,
            load: number("--load", 0.8),
            seconds: number("--seconds", 600.0),
            speed: number("--speed", 8.0),
            seeds,
        }
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if !args.iter().any(|a| a == "--bench") {
        // Built and run by `cargo test --all-targets`, which wants no measurement.
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, measure(&Plan::read(&args)));
}

async fn measure(plan: &Plan) {
    let hardware = Hardware::default();
    let core = process::split_cores();
    println!("{} pods, load {}, {} s at {} x real time", PODS, plan.load, plan.seconds, plan.speed);
    println!(
        "{:>5}  {:<24} {:>8} {:>8} {:>8} {:>8} {:>7} {:>6} {:>7}",
        "seed", "config", "mean", "p50", "p90", "p99", "hit", "<2s", "ratio"
    );
    for seed in plan.seeds.clone() {
        let target = Target {
            load: plan.load,
            seconds: plan.seconds,
            warm: WARM,
            capacity: PODS as f64,
            pool_blocks: PODS * hardware.blocks(plan.trace.block_tokens),
            seed,
        };
        let (trace, _) = to_load(&plan.trace, &target, &hardware).expect("a load that can be reached");
        let trace = Rc::new(trace);
        let mut first = None;
        for config in &plan.configs {
            let mut result = once(plan, &trace, hardware, config, core).await;
            let mean = result.mean();
            let base = *first.get_or_insert(mean);
            println!(
                "{seed:>5}  {config:<24} {mean:>8.3} {:>8.3} {:>8.3} {:>8.3} {:>6.1}% {:>5.1}% {:>7.3}{}",
                result.quantile(0.5),
                result.quantile(0.9),
                result.quantile(0.99),
                result.cached as f64 / result.input.max(1) as f64 * 100.0,
                result.good() * 100.0,
                mean / base,
                if result.failed > 0 { format!("  {} FAILED", result.failed) } else { String::new() },
            );
        }
    }
}

/// What one run came to.
#[derive(Default)]
struct Outcome {
    ttft: Vec<f64>,
    cached: u64,
    input: u64,
    failed: usize,
}

impl Outcome {
    fn mean(&self) -> f64 {
        self.ttft.iter().sum::<f64>() / self.ttft.len().max(1) as f64
    }

    fn good(&self) -> f64 {
        self.ttft.iter().filter(|t| **t < 2.0).count() as f64 / self.ttft.len().max(1) as f64
    }

    fn quantile(&mut self, share: f64) -> f64 {
        self.ttft.sort_by(f64::total_cmp);
        self.ttft.get(((self.ttft.len().max(1) - 1) as f64 * share) as usize).copied().unwrap_or(f64::NAN)
    }
}

async fn once(plan: &Plan, trace: &Rc<Trace>, hardware: Hardware, config: &str, core: Option<usize>) -> Outcome {
    let folder = std::env::temp_dir().join(format!("pointsman-scaled-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let fleet = Rc::new(RefCell::new(Fleet::new(Rc::clone(trace), hardware, PODS)));
    let addresses = pages::start(&fleet, PODS).await;
    let server = picker(&folder, config, &addresses, plan.speed, core);
    let connection = client::Connection::open_patiently(server.address).await;
    // The picker has read every page once.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let clock = fleet::Scaled::start(plan.speed);
    let driver = tokio::task::spawn_local(fleet::drive(Rc::clone(&fleet), clock));
    let outcome = Rc::new(RefCell::new(Outcome::default()));
    let mut tasks = tokio::task::JoinSet::new();
    for id in 0..trace.requests.len() {
        clock.until(trace.requests[id].at).await;
        let (fleet, outcome, trace) = (Rc::clone(&fleet), Rc::clone(&outcome), Rc::clone(trace));
        let (connection, addresses) = (connection.clone(), addresses.clone());
        tasks.spawn_local(async move {
            let request = trace.requests[id];
            let result = client::exchange(&connection, &trace, id, &fleet, &addresses, clock).await;
            let mut outcome = outcome.borrow_mut();
            match result {
                Err(error) => {
                    if outcome.failed == 0 {
                        eprintln!("request {id}: {error}");
                    }
                    outcome.failed += 1;
                }
                Ok(served) if request.at >= WARM * trace.seconds => {
                    outcome.ttft.push(served.first - request.at);
                    outcome.cached += u64::from(served.cached);
                    outcome.input += u64::from(request.input);
                }
                Ok(_) => {}
            }
        });
        while tasks.try_join_next().is_some() {}
    }
    while tasks.join_next().await.is_some() {}
    driver.abort();
    drop(server);
    // The folder holds the last run's log; nothing else needs it.
    Rc::try_unwrap(outcome).map_or_else(|_| Outcome::default(), RefCell::into_inner)
}

/// Starts the picker with `config`, times divided by `speed`.
fn picker(folder: &Path, config: &str, addresses: &[std::net::SocketAddr], speed: f64, core: Option<usize>) -> Server {
    let text = match preset::source(config).read() {
        Ok(Some(bytes)) => String::from_utf8(bytes).expect("YAML is text"),
        Ok(None) => include_str!("../config/default.yaml").to_owned(),
        Err(error) => panic!("{config}: {error}"),
    };
    let endpoints = folder.join("endpoints.yaml");
    let list: String = addresses
        .iter()
        .enumerate()
        .map(|(i, a)| format!("- {{name: pod-{i}, address: {}, port: {}}}\n", a.ip(), a.port()))
        .collect();
    std::fs::write(&endpoints, format!("endpoints:\n{list}")).expect("the endpoints file");
    let discovery = format!("plugins:\n- {{type: file-discovery, parameters: {{path: '{}'}}}}\n", endpoints.display());
    let text = text.replacen("plugins:\n", &discovery, 1) + "\ndataLayer: {discovery: {pluginRef: file-discovery}}\n";
    let text = scaled(&text, speed);
    let file: PathBuf = folder.join("config.yaml");
    std::fs::write(&file, text).expect("the configuration");
    let args = vec![
        format!("--config-file={}", file.display()),
        "--grpc-health-port=0".into(),
        "--metrics-port=0".into(),
        "--secure-serving=false".into(),
        format!("--refresh-metrics-interval={}us", (50_000.0 / speed) as u64),
    ];
    Server::picker(core, free_port(), &args, &folder.join("picker.log"))
}

/// The times in `text` as they are at `speed`; what is not written out is added.
fn scaled(text: &str, speed: f64) -> String {
    let extra = |line: &str| match line.trim() {
        "- type: just-in-time-dispatch" => Some(format!("holdAbove: {}ms", (200.0 / speed) as u64)),
        // What a second of balance is worth, and what counts as equal.
        "- type: cost-picker" => Some(format!("balanceWeight: {}, tieSeconds: {}", 1.0 / speed, 0.01 / speed)),
        "- type: prefill-account-producer" => {
            Some(format!("initialPrefillRate: {}, maxPrefillRate: 2000000", 10_000.0 * speed))
        }
        _ => None,
    };
    let mut out = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        out.push_str(line);
        out.push('\n');
        let Some(extra) = extra(line) else { continue };
        // It has parameters: in braces, in lines of their own, or none.
        match lines.peek().map(|next| next.trim()) {
            Some(next) if next.starts_with("parameters: {") => {
                out.push_str(&format!("  {}\n", next.replacen('{', &format!("{{{extra}, "), 1)));
                lines.next();
            }
            Some("parameters:") => {
                lines.next();
                out.push_str("  parameters:\n");
                out.extend(extra.split(", ").map(|one| format!("    {one}\n")));
            }
            _ => out.push_str(&format!("  parameters: {{{extra}}}\n")),
        }
    }
    out
}
