//! `pointsman demo`: simulated model servers, the picker and a real Envoy on this machine, real requests
//! through them, and a table of where each went and why. Then it keeps serving until interrupted.
//!
//! Everything is the shipped code: the picker is built from a configuration text by the same functions
//! as `pointsman` itself and is only told to keep its last decisions; the table is read from them.

mod scenes;
mod stack;
mod table;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;

use crate::lifecycle::signal::Shutdown;
use crate::sim::envoy;

use stack::{Picks, Servers, Stack};

/// Port on which the demo's Envoy listens, if it is free.
const PORT: u16 = 8081;

/// Arguments of `demo`.
#[derive(Args, Clone, Debug)]
pub struct DemoArgs {
    /// The Envoy binary; else `ENVOY_BIN` or the one that `scripts/get-envoy` fetched.
    #[arg(long)]
    pub envoy: Option<PathBuf>,
    /// Port of the proxy; the system chooses one if it is taken.
    #[arg(long, default_value_t = PORT)]
    pub port: u16,
    /// Requests of the mixed part.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub requests: u32,
    /// End after the table instead of serving on.
    #[arg(long)]
    pub once: bool,
}

/// Runs the demo.
///
/// # Errors
/// A missing Envoy, a part that does not start, a request that fails.
pub fn run(args: &DemoArgs, environment: &BTreeMap<String, String>, out: &mut dyn Write) -> anyhow::Result<()> {
    let binary = match &args.envoy {
        Some(path) => path.clone(),
        None => {
            envoy::find_binary(environment).context("the demo needs a real Envoy; fetch it with scripts/get-envoy")?
        }
    };
    tokio::runtime::Runtime::new().context("cannot start the runtime")?.block_on(async {
        let mut shutdown = Shutdown::install().context("cannot listen for signals")?;
        tokio::select! {
            result = show(args, binary, out) => result,
            _ = shutdown.recv() => Ok(()),
        }
    })
}

async fn show(args: &DemoArgs, binary: PathBuf, out: &mut dyn Write) -> anyhow::Result<()> {
    let servers = Servers::start(4, 16).await?;
    writeln!(out, "==> {} simulated model servers: {}", servers.len(), servers.names().join(", "))?;

    writeln!(out, "==> picker and Envoy, as shipped: the endpoint that costs least, in seconds")?;
    let main = Stack::start(&servers, &binary, args.port, Picks::ByDefault).await?;
    writeln!(out, "    Envoy on http://{}, metrics on http://{}/metrics", main.proxy(), main.admin())?;
    scenes::with_system_prompt(&main, out).await?;
    scenes::conversation(&main, out).await?;

    writeln!(out, "\n==> the questions alone, by weighted scorers over blocks of 4 tokens")?;
    writeln!(out, "    Eight tokens are prefilled in less than a millisecond, so by cost all servers would be equal.")?;
    let small = Servers::start(4, 4).await?;
    let raw = Stack::start(&small, &binary, 0, Picks::ByScores(4)).await?;
    scenes::raw_questions(&raw, out).await?;
    raw.stop().await;

    writeln!(
        out,
        "\n==> {} mixed requests, 16 at a time, some of them long and without a shared beginning",
        args.requests
    )?;
    servers.clear();
    scenes::mixed(&main, &servers, args.requests, out).await?;
    if args.once {
        main.stop().await;
        return Ok(());
    }
    writeln!(
        out,
        "\nServing on. Run this twice: both go to one endpoint, and the second finds cached tokens.\n  \
         curl -si http://{proxy}/v1/completions -H 'content-type: application/json' \\\n    \
         -d '{{\"model\":\"{model}\",\"max_tokens\":5,\"prompt\":\"'\"$(printf 'You are a careful assistant. %.0s' {{1..80}})\"'Hello\"}}' \\\n    \
         | grep -oE 'x-sim-endpoint.*|\"cached_tokens\":[0-9]+'\n\
         Then:\n  \
         {binary} explain --url http://{admin}      why that endpoint was picked\n  \
         curl -s http://{admin}/debug/decisions     the last decisions\n  \
         curl -s http://{admin}/metrics             what Prometheus scrapes\n  \
         curl -s http://{admin}/debug/config        the configuration with its defaults\n\
         Endpoints are read from {endpoints}; edit it while this runs.\n\
         Ctrl-C stops everything.",
        proxy = main.proxy(),
        admin = main.admin(),
        binary = std::env::args().next().unwrap_or_else(|| "pointsman".into()),
        model = stack::MODEL,
        endpoints = main.endpoints_file().display(),
    )?;
    out.flush()?;
    std::future::pending().await
}
