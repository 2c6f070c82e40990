//! The whole picker under load, beside a server that decides nothing: `make bench`.
//!
//! The processes: this one, which is the data plane (it speaks ext_proc as Envoy does: full duplex, request and
//! response phase, one stream per request) and the model servers' metrics pages; the *picker*, the release
//! binary with the shipped configuration before 100 endpoints that it scrapes every 50 ms; the same binary with three
//! *weighted* scorers; the *echo*, which is the floor; the *null* picker, which shows what the generator can do. The
//! servers are started one beside the other, pinned to one core, and loaded in turns, so that what the machine does
//! meanwhile meets all. Figures are medians of the rounds; where two are near each other, the mean of all rounds.
//!
//! `cargo bench --bench load -- [--rounds N] [--seconds S] [--only PART] [--page FILE]`, where PART is one of
//! direct, latency, recording, idle, memory, envoy.
#![allow(clippy::disallowed_methods, reason = "a measurement is about real time")]

#[path = "load/client.rs"]
mod client;
#[path = "load/drive.rs"]
mod drive;
#[path = "load/envoy.rs"]
mod envoy;
#[path = "load/floor.rs"]
mod floor;
#[path = "load/pages.rs"]
mod pages;
#[path = "load/process.rs"]
mod process;
#[path = "load/report.rs"]
mod report;
#[path = "load/wire.rs"]
mod wire;

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use client::{Requests, Shape};
use drive::{Load, Run};
use process::{Server, free_port};
use report::{Report, mean, median, micros, of};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ENDPOINTS: usize = 100;

/// What runs when no configuration is given.
const SHIPPED: &str = include_str!("../config/default.yaml");
/// The scorers of llm-d-router's default.
const WEIGHTED: &str = include_str!("../config/weighted-scorers.yaml");

const HEAD: &str = "# Benchmarks

Written by `make bench`; every figure is of one run on one machine: the median of its rounds, and for `picker ÷ weighted` and
recording, where little is looked for, the mean of all. What is compared is named beside it. The goals are those that the project set itself.

* *echo*: a server on tonic's gRPC stack that decides nothing and gives everything back, with the picker's messages, listener,
  threads and allocator. It is the floor that the goals are about.
* *edge*: the picker's own edge with nothing behind it, which copies less than that stack does; beside it stands what picking costs.
* *picker*: Pointsman as shipped (`cost-picker`, `just-in-time-dispatch` that holds, accounts, mirror of the caches), access log
  and record of decisions on, before 100 endpoints whose metrics it reads every 50 ms.
* *weighted*: the same with the scorers of llm-d-router's default instead (`queue-scorer` 2, `kv-cache-utilization-scorer` 2,
  `prefix-cache-scorer` 3).
* *null*: HTTP/2 without reading what comes; it shows what the load generator can do.
";

/// What a run of this program is asked for.
struct Plan {
    rounds: usize,
    seconds: f64,
    only: Option<String>,
    page: Option<PathBuf>,
}

impl Plan {
    fn read(args: &[String]) -> Self {
        let option = |name: &str| args.iter().position(|a| a == name).and_then(|at| args.get(at + 1)).cloned();
        Self {
            rounds: option("--rounds").map_or(5, |n| n.parse().expect("--rounds takes a number")),
            seconds: option("--seconds").map_or(2.0, |n| n.parse().expect("--seconds takes a number")),
            only: option("--only"),
            page: option("--page").map(PathBuf::from),
        }
    }

    fn includes(&self, part: &str) -> bool {
        self.only.as_deref().is_none_or(|only| only == part)
    }

    fn time(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
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
    if let Some(at) = args.iter().position(|a| a == "--role") {
        return local.block_on(&runtime, floor::serve(&args[at + 1]));
    }
    local.block_on(&runtime, measure(&Plan::read(&args)));
}

async fn measure(plan: &Plan) {
    let folder = std::env::temp_dir().join(format!("pointsman-load-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let cores = process::split_cores();
    let mut report = Report::default();
    report.heading("Conditions");
    for line in report::conditions() {
        report.say(&format!("* {line}"));
    }
    report.say(&format!(
        "* {} rounds of {} s each, after a warm-up; other processes took {:.2} cores when it started",
        plan.rounds,
        plan.seconds,
        report::other_load()
    ));
    let (port, _) = pages::start(true);
    let bench = Bench { folder: &folder, core: cores, pages: port };
    if plan.includes("direct") || plan.includes("latency") {
        direct(plan, &bench, &mut report).await;
    }
    if plan.includes("recording") {
        recording(plan, &bench, &mut report).await;
    }
    if plan.includes("idle") {
        idle(plan, &bench, &mut report).await;
    }
    if plan.includes("memory") {
        memory(&bench, &mut report).await;
    }
    if plan.includes("envoy") {
        process::use_all_cores();
        behind_envoy(plan, &bench, &mut report).await;
    }
    match &plan.page {
        Some(page) => report.write(page, HEAD),
        None => println!("\n(--page FILE writes this as a page)"),
    }
    let _ = std::fs::remove_dir_all(folder);
}

/// What the parts share.
struct Bench<'a> {
    folder: &'a Path,
    /// The core of the servers, if there are cores to choose from.
    core: Option<usize>,
    /// Port of the metrics pages.
    pages: u16,
}

impl Bench<'_> {
    /// Starts the shipped picker before endpoints on `port`, on the servers' core or on any.
    fn picker(&self, core: Option<usize>, port: u16) -> Server {
        self.picker_with(core, port, SHIPPED, &[])
    }

    /// [`Bench::picker`] with another configuration and further flags.
    fn picker_with(&self, core: Option<usize>, port: u16, config: &str, flags: &[String]) -> Server {
        let endpoints: String = (1..=ENDPOINTS)
            .map(|i| {
                let address = pages::address(i, port);
                format!("- {{name: server-{i}, address: {}, port: {}}}\n", address.ip(), address.port())
            })
            .collect();
        let own = free_port();
        let path = self.folder.join(format!("endpoints-{own}.yaml"));
        std::fs::write(&path, format!("endpoints:\n{endpoints}")).expect("a file");
        let discovery = format!("plugins:\n- {{type: file-discovery, parameters: {{path: '{}'}}}}\n", path.display());
        let text =
            config.replacen("plugins:\n", &discovery, 1) + "\ndataLayer: {discovery: {pluginRef: file-discovery}}\n";
        let path = self.folder.join(format!("config-{own}.yaml"));
        std::fs::write(&path, text).expect("a file");
        let mut args = vec![
            format!("--config-file={}", path.display()),
            "--grpc-health-port=0".into(),
            "--secure-serving=false".into(),
            "--refresh-metrics-interval=50ms".into(),
        ];
        if !flags.iter().any(|flag| flag.starts_with("--metrics-port")) {
            args.push("--metrics-port=0".into());
        }
        args.extend_from_slice(flags);
        Server::picker(core, own, &args, &self.folder.join(format!("picker-{own}.log")))
    }
}

/// Kilobytes of the body, its pieces, pieces of the answer, requests at once, goal as a multiple of the echo.
const SHAPES: [(usize, usize, usize, usize, f64); 4] =
    [(1, 1, 3, 64, 2.0), (16, 1, 3, 64, 1.5), (128, 2, 3, 32, 1.5), (400, 7, 1000, 16, 1.5)];

async fn direct(plan: &Plan, bench: &Bench<'_>, report: &mut Report) {
    let mut null = Server::own("null", bench.core);
    let mut echo = Server::own("echo", bench.core);
    let mut picker = bench.picker(bench.core, bench.pages);
    let mut edge = Server::own("edge", bench.core);
    let mut weighted = bench.picker_with(bench.core, bench.pages, WEIGHTED, &[]);
    let loads = [
        Load::connect(&mut null, 4).await,
        Load::connect(&mut echo, 4).await,
        Load::connect(&mut picker, 4).await,
        Load::connect(&mut edge, 4).await,
        Load::connect(&mut weighted, 4).await,
    ];
    let servers = [&null, &echo, &picker, &edge, &weighted];
    let mut saturation = Vec::new();
    report.heading("CPU per request, over the wire");
    report.say("Closed loop over 4 connections; *at once* is the number of requests under way.\n");
    report.table(&[
        "body in",
        "pieces out",
        "at once",
        "null",
        "echo",
        "edge",
        "picker",
        "picker ÷ echo",
        "weighted",
        "picker ÷ weighted",
        "requests/s null",
        "echo",
        "picker",
        "decision p50",
        "p99",
        "p99.9",
        "RSS picker",
    ]);
    for (kilobytes, pieces, chunks, at_once, goal) in SHAPES {
        let requests = Requests::new(Shape { body: kilobytes << 10, pieces, chunks });
        let mut runs: [Vec<Run>; 5] = Default::default();
        for (load, server) in loads.iter().zip(servers) {
            load.closed(server, &requests, at_once, plan.time().min(Duration::from_millis(500))).await;
        }
        runs[0].push(loads[0].closed(servers[0], &requests, at_once, plan.time()).await);
        for _ in 0..plan.rounds {
            for at in [1, 3, 4, 2] {
                runs[at].push(loads[at].closed(servers[at], &requests, at_once, plan.time()).await);
            }
        }
        let [null, echo, picker, edge, weighted] = [0, 1, 2, 3, 4].map(|at| of(&runs[at], Run::cpu_per_request));
        let ratio = median(runs[1].iter().zip(&runs[2]).map(|(e, p)| p.cpu_per_request() / e.cpu_per_request()));
        let rate = of(&runs[2], Run::rate);
        saturation.push((kilobytes, rate));
        let what = format!("CPU at {kilobytes} KB, {chunks} pieces out,");
        let to_echo = report.at_most(&format!("{what} ÷ echo"), ratio, goal, 2);
        let to_weighted = report.at_most(&format!("{what} ÷ weighted"), mean(&runs[2]) / mean(&runs[4]), 1.2, 2);
        let decision = |quantile| micros(of(&runs[2], |run| run.decision(quantile)));
        report.row(&[
            format!("{kilobytes} KB"),
            chunks.to_string(),
            at_once.to_string(),
            format!("{null:.0} µs"),
            format!("{echo:.0} µs"),
            format!("{edge:.0} µs"),
            format!("{picker:.0} µs"),
            to_echo,
            format!("{weighted:.0} µs"),
            to_weighted,
            format!("{:.0}", of(&runs[0], Run::rate)),
            format!("{:.0}", of(&runs[1], Run::rate)),
            format!("{rate:.0}"),
            decision(0.5),
            decision(0.99),
            decision(0.999),
            format!("{:.0} MiB", servers[2].resident() as f64 / f64::from(1 << 20)),
        ]);
    }
    if !plan.includes("latency") {
        return;
    }
    report.heading("Decision latency at half the saturation rate");
    report.say("Open loop; from the last body byte sent to the headers answer read, both at the generator.\n");
    report.table(&["body in", "requests/s", "echo p50", "p99", "p99.9", "picker p50", "p99", "p99.9", "goal"]);
    for (kilobytes, goal) in [(1, 1000.0), (128, 2000.0)] {
        let pieces = if kilobytes > 64 { 2 } else { 1 };
        let requests = Requests::new(Shape { body: kilobytes << 10, pieces, chunks: 3 });
        let rate = saturation.iter().find(|(size, _)| *size == kilobytes).map_or(1000.0, |(_, rate)| rate / 2.0);
        let mut runs: [Vec<Run>; 2] = Default::default();
        for _ in 0..plan.rounds {
            for (at, runs) in runs.iter_mut().enumerate() {
                runs.push(loads[at + 1].open(servers[at + 1], &requests, rate, plan.time()).await);
            }
        }
        let figure = |at: usize, quantile| of(&runs[at], |run: &Run| run.decision(quantile));
        let goal = report.at_most(&format!("decision p99 at {kilobytes} KB, µs"), figure(1, 0.99), goal, 0);
        let mut cells = vec![format!("{kilobytes} KB"), format!("{rate:.0}")];
        for at in [0, 1] {
            cells.extend([0.5, 0.99, 0.999].map(|quantile| micros(figure(at, quantile))));
        }
        cells.push(format!("p99 {goal} µs"));
        report.row(&cells);
    }
}

/// What a record of a decision costs: the shipped picker with none, with those of the default rate and with all.
async fn recording(plan: &Plan, bench: &Bench<'_>, report: &mut Report) {
    const SETTINGS: [(&str, &str); 3] = [
        ("none", "--debug-decisions=0"),
        ("100 a second, the default", "--debug-decisions-rate=100"),
        ("all", "--debug-decisions-rate=0"),
    ];
    report.heading("Recording decisions");
    report.say("Closed loop, 1 KB in, 64 at once, 100 candidates in each record; the mean of all rounds.\n");
    report.table(&["recorded", "picker", "÷ none", "goal", "RSS"]);
    let mut servers = SETTINGS.map(|(_, flag)| bench.picker_with(bench.core, bench.pages, SHIPPED, &[flag.to_owned()]));
    let mut loads = Vec::new();
    for server in &mut servers {
        loads.push(Load::connect(server, 4).await);
    }
    let requests = Requests::new(Shape { body: 1 << 10, pieces: 1, chunks: 3 });
    let mut runs: [Vec<Run>; 3] = Default::default();
    // The ratio is near 1, so it takes more rounds than others to be told from noise.
    for round in 0..=3 * plan.rounds {
        for ((runs, load), server) in runs.iter_mut().zip(&loads).zip(&servers) {
            let run = load.closed(server, &requests, 64, plan.time()).await;
            if round > 0 {
                runs.push(run);
            }
        }
    }
    for (((name, _), own), server) in SETTINGS.into_iter().zip(&runs).zip(&servers) {
        let ratio = mean(own) / mean(&runs[0]);
        let goal = match name {
            "100 a second, the default" => report.at_most("CPU with decisions recorded", ratio, 1.02, 3),
            _ => String::new(),
        };
        report.row(&[
            name.into(),
            format!("{:.1} µs", mean(own)),
            format!("{ratio:.3}"),
            goal,
            format!("{:.0} MiB", server.resident() as f64 / f64::from(1 << 20)),
        ]);
    }
}

/// CPU without requests: reading 100 metrics pages twenty times a second.
async fn idle(plan: &Plan, bench: &Bench<'_>, report: &mut Report) {
    report.heading("Idle: 100 endpoints × 20 pages a second");
    report.table(&["page", "pages/s", "filtered", "cores", "goal", "RSS"]);
    for (name, honoured, goal) in [("whole, 62 KB", false, 0.25), ("filtered", true, 0.1)] {
        let (port, served) = pages::start(honoured);
        let mut picker = bench.picker(bench.core, port);
        let _load = Load::connect(&mut picker, 1).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let mut cores = Vec::new();
        let (pages, filtered, started) =
            (served.pages.load(Ordering::Relaxed), served.filtered.load(Ordering::Relaxed), std::time::Instant::now());
        for _ in 0..plan.rounds {
            let before = picker.cpu();
            tokio::time::sleep(plan.time()).await;
            cores.push((picker.cpu() - before).as_secs_f64() / plan.seconds);
        }
        let pages = (served.pages.load(Ordering::Relaxed) - pages) as f64;
        let filtered = (served.filtered.load(Ordering::Relaxed) - filtered) as f64;
        let cores = median(cores);
        let goal = report.at_most(&format!("idle cores, {name} pages"), cores, goal, 3);
        report.row(&[
            name.into(),
            format!("{:.0}", pages / started.elapsed().as_secs_f64()),
            format!("{:.0} %", filtered / pages * 100.0),
            format!("{cores:.3}"),
            goal,
            format!("{:.0} MiB", picker.resident() as f64 / f64::from(1 << 20)),
        ]);
    }
}

/// Memory with a full index, and of open streams.
async fn memory(bench: &Bench<'_>, report: &mut Report) {
    const OPEN: usize = 2000;
    let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    report.heading("Memory");
    // Without the metrics' block size and capacity: the defaults of both, 31,250 blocks per endpoint.
    let mirror = "- type: mirror-prefix-cache-producer\n";
    let assumed = SHIPPED.replace(mirror, &format!("{mirror}  parameters: {{autoTune: false}}\n"));
    assert_ne!(assumed, SHIPPED);
    let admin = free_port();
    let flags = [format!("--metrics-port={admin}")];
    let mut picker = bench.picker_with(bench.core, bench.pages, &assumed, &flags);
    let load = Load::connect(&mut picker, 4).await;
    let empty = picker.resident();
    let fill = Requests::distinct(Shape { body: 256 << 10, pieces: 4, chunks: 0 });
    // Until it takes no more: every endpoint is at its capacity, or the index at its bound of bytes.
    let (mut entries, mut sent) = (0.0, 0);
    loop {
        sent += load.closed(&picker, &fill, 8, Duration::from_secs(1)).await.requests;
        let now = index_entries(admin).await;
        if now <= entries || sent > 50_000 {
            break;
        }
        entries = now;
    }
    let full = picker.resident();
    let requests = Requests::new(Shape { body: 1 << 10, pieces: 1, chunks: 3 });
    let mut open = Vec::new();
    for number in 0..OPEN {
        open.push(load.connection(number).hold_open(&requests, number as u64).await.expect("a stream"));
    }
    let per_stream = picker.resident().saturating_sub(full) as f64 / OPEN as f64 / 1024.0;
    drop(open);
    report.table(&["what", "found", "goal"]);
    let goal = report.at_most("RSS with a full index, MiB", mebibytes(full), 200.0, 0);
    report.row(&["RSS before the first request".into(), format!("{:.0} MiB", mebibytes(empty)), String::new()]);
    report.row(&[
        format!("RSS with a full index: {:.2} M (endpoint, block) entries", entries / 1e6),
        format!("{:.0} MiB", mebibytes(full)),
        goal,
    ]);
    let goal = report.at_most("KiB per open stream", per_stream, 64.0, 1);
    report.row(&[format!("each of {OPEN} open streaming responses"), format!("{per_stream:.1} KiB"), goal]);
}

/// Entries of the prefix index, as the picker's metrics say.
async fn index_entries(admin: u16) -> f64 {
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], admin));
    let (_, page) = pointsman::sim::client::get(address, "/metrics").await.expect("a metrics page");
    let page = String::from_utf8_lossy(&page).into_owned();
    let line = page.lines().find(|line| line.starts_with("llm_d_epp_prefix_indexer_size{")).unwrap_or("");
    line.rsplit(' ').next().and_then(|value| value.parse().ok()).unwrap_or(0.0)
}

async fn behind_envoy(plan: &Plan, bench: &Bench<'_>, report: &mut Report) {
    let port = envoy::model_servers().await;
    let echo = Server::own_with("echo", None, &["--destination", &envoy::address(1, port).to_string()]);
    let mut picker = bench.picker(None, port);
    let _up = Load::connect(&mut picker, 1).await;
    let servers = [&echo, &picker];
    let mut envoys = Vec::new();
    for (at, server) in servers.iter().enumerate() {
        match envoy::Behind::start(server, &bench.folder.join(format!("envoy-{at}"))).await {
            Some(envoy) => envoys.push(envoy),
            None => {
                report.heading("Behind a real Envoy");
                return report.say("Left out: there was no Envoy. `scripts/get-envoy` fetches it.");
            }
        }
    }
    report.heading("Behind a real Envoy");
    report.say(
        "Envoy 1.40 with two workers, request and response phase, full duplex. Generator, model servers, Envoy and the \
         ext_proc server share the cores.\n",
    );
    report.table(&[
        "body in",
        "connections",
        "requests/s",
        "Envoy",
        "picker",
        "picker ÷ Envoy",
        "echo",
        "echo ÷ its Envoy",
    ]);
    for (kilobytes, goal) in [(1, 0.4), (16, 0.4), (128, 0.5)] {
        for connections in [16, 64] {
            let mut runs: [Vec<envoy::Costs>; 2] = Default::default();
            for round in 0..=plan.rounds {
                for (at, runs) in runs.iter_mut().enumerate() {
                    let costs = envoys[at].run(servers[at], kilobytes << 10, connections, plan.time()).await;
                    if round > 0 {
                        runs.push(costs);
                    }
                }
            }
            let of = |at: usize, figure: fn(&envoy::Costs) -> f64| median(runs[at].iter().map(figure));
            let ratio = of(1, |costs| costs.server / costs.envoy);
            let what = format!("CPU behind Envoy at {kilobytes} KB, {connections} connections");
            let ratio = report.at_most(&what, ratio, goal, 2);
            report.row(&[
                format!("{kilobytes} KB"),
                connections.to_string(),
                format!("{:.0}", of(1, |costs| costs.rate)),
                format!("{:.0} µs", of(1, |costs| costs.envoy)),
                format!("{:.0} µs", of(1, |costs| costs.server)),
                ratio,
                format!("{:.0} µs", of(0, |costs| costs.server)),
                format!("{:.2}", of(0, |costs| costs.server / costs.envoy)),
            ]);
        }
    }
}
