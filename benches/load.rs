//! The whole picker under load, beside servers that decide nothing.

#[path = "load/client.rs"]
mod client;
#[path = "load/drive.rs"]
mod drive;
#[path = "load/floor.rs"]
mod floor;
#[path = "load/pages.rs"]
mod pages;
#[path = "load/process.rs"]
mod process;
#[path = "load/wire.rs"]
mod wire;

use std::time::Duration;

use client::{Requests, Shape};
use drive::Load;
use process::{Server, free_port};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn picker(folder: &std::path::Path, pages: u16, core: Option<usize>) -> Server {
    let endpoints: String = (1..=100)
        .map(|i| {
            let address = pages::address(i, pages);
            format!("- {{name: server-{i}, address: {}, port: {}}}\n", address.ip(), address.port())
        })
        .collect();
    std::fs::write(folder.join("endpoints.yaml"), format!("endpoints:\n{endpoints}")).expect("a file");
    let config = format!(
        "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nplugins:\n\
- {{type: file-discovery, parameters: {{path: '{}'}}}}\n\
- {{type: queue-scorer}}\n- {{type: kv-cache-utilization-scorer}}\n- {{type: prefix-cache-scorer}}\n\
schedulingProfiles:\n- name: default\n  plugins: [{{pluginRef: queue-scorer, weight: 2}}, \
{{pluginRef: kv-cache-utilization-scorer, weight: 2}}, {{pluginRef: prefix-cache-scorer, weight: 3}}]\n\
dataLayer: {{discovery: {{pluginRef: file-discovery}}}}\n",
        folder.join("endpoints.yaml").display()
    );
    std::fs::write(folder.join("config.yaml"), config).expect("a file");
    let args = [
        "--config-file",
        &folder.join("config.yaml").display().to_string(),
        "--grpc-health-port=0",
        "--metrics-port=0",
        "--secure-serving=false",
        if std::env::var("WRAP").is_ok() {
            "--refresh-metrics-interval=100s"
        } else {
            "--refresh-metrics-interval=50ms"
        },
    ]
    .map(String::from);
    Server::picker(core, free_port(), &args, &folder.join("picker.log"))
}

async fn serve(role: &str) {
    let (listener, address) = floor::bind().await;
    println!("{address}");
    match role {
        "echo" => floor::echo(listener).await,
        _ => floor::null(listener).await,
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if !args.iter().any(|a| a == "--bench") {
        return;
    }
    if let Some(at) = args.iter().position(|a| a == "--role") {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        return runtime.block_on(serve(&args[at + 1]));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, measure());
}

async fn measure() {
    let folder = std::env::temp_dir().join(format!("pointsman-load-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let (pages, _served) = pages::start(true);
    let _ = std::process::Command::new("taskset").args(["-acp", "1", &std::process::id().to_string()]).output();
    let core = Some(0);
    let mut servers = [
        ("null", Server::own("null", core)),
        ("echo", Server::own("echo", core)),
        ("picker", picker(&folder, pages, core)),
    ];
    for (body, pieces, chunks, at_once) in
        [(1 << 10, 1, 3, 64), (16 << 10, 1, 3, 64), (128 << 10, 2, 3, 32), (400 << 10, 7, 1000, 16)]
    {
        let option = |name: &str| {
            let args: Vec<String> = std::env::args().collect();
            args.iter().position(|a| a == name).map(|at| args[at + 1].clone())
        };
        if option("--kb").is_some_and(|kb| kb.parse::<usize>().expect("a number") != body >> 10) {
            continue;
        }
        let seconds = option("--seconds").map_or(2.0, |s| s.parse().expect("a number"));
        let requests = Requests::new(Shape { body, pieces, chunks });
        for (name, server) in &mut servers {
            if option("--only").is_some_and(|only| only != *name) {
                continue;
            }
            let load = Load::connect(server, 4).await;
            load.closed(server, &requests, at_once, Duration::from_millis(300)).await;
            let control = |what: &str| {
                if std::env::var("WRAP").is_ok() {
                    let _ = std::process::Command::new("callgrind_control").arg(what).output();
                }
            };
            control("-z");
            let run = load.closed(server, &requests, at_once, Duration::from_secs_f64(seconds)).await;
            control("-d");
            println!("requests {}", run.requests);
            println!(
                "{:>6} KB x{chunks:<5} {name:>8} {:>9.0}/s {:>8.1} us CPU  {:>6.0} {:>6.0} {:>6.0} us  {:>6.1} MiB",
                body >> 10,
                run.rate(),
                run.cpu_per_request(),
                run.decision(0.5),
                run.decision(0.99),
                run.decision(0.999),
                server.resident() as f64 / (1 << 20) as f64,
            );
        }
    }
    let _ = std::fs::remove_dir_all(folder);
}
