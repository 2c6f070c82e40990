//! `pointsman sim`: simulated model servers on consecutive ports, until interrupted.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;

use crate::lifecycle::signal::Shutdown;
use crate::sim::server::{self, SimConfig};

/// Arguments of `sim`.
#[derive(Args, Clone, Debug)]
pub struct SimArgs {
    /// Address to listen on.
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub address: IpAddr,
    /// Port of the first server.
    #[arg(long, default_value_t = 8000)]
    pub port: u16,
    /// Number of servers, each on the next port.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub count: u16,
    /// Model that the servers say they serve.
    #[arg(long, default_value = "sim/model")]
    pub model: String,
    /// Tokens per KV block.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub block_size: u32,
    /// KV blocks per server.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub num_blocks: u32,
    /// Prefill speed in tokens per second.
    #[arg(long, default_value_t = 10_000.0)]
    pub prefill_rate: f64,
    /// Time of one decode step in milliseconds.
    #[arg(long, default_value_t = 20)]
    pub decode_step_ms: u64,
    /// Requests that run at once.
    #[arg(long, default_value_t = 256)]
    pub max_num_seqs: usize,
}

/// Runs the servers; the result is the exit code.
pub fn run(args: &SimArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    tokio::runtime::Runtime::new().context("cannot start the runtime")?.block_on(async {
        let mut shutdown = Shutdown::install().context("cannot listen for signals")?;
        let mut servers = Vec::new();
        for i in 0..args.count {
            let port = args.port.checked_add(i).context("--port and --count go beyond port 65535")?;
            let address = SocketAddr::new(args.address, port);
            let listener = tokio::net::TcpListener::bind(address)
                .await
                .with_context(|| format!("--port: cannot listen on {address}; is another process using it?"))?;
            let config = SimConfig {
                name: format!("sim-{i}"),
                model: args.model.clone(),
                block_size: args.block_size,
                num_blocks: args.num_blocks,
                prefill_tokens_per_second: args.prefill_rate,
                decode_step: Duration::from_millis(args.decode_step_ms),
                max_num_seqs: args.max_num_seqs,
                ..SimConfig::default()
            };
            let server = server::start(config, Some(listener)).await?;
            writeln!(out, "sim-{i} listens on http://{}", server.address)?;
            servers.push(server);
        }
        shutdown.recv().await;
        Ok(())
    })
}
