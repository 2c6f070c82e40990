//! `pointsman` without a subcommand: serve until told to stop.
//!
//! Order: configuration (exit 64 before any port is bound), logger, files that the configuration names
//! (64 as well), sockets (exit 1), then traffic. A second signal during the drain ends it at once.

use std::convert::Infallible;
use std::io::Write;
use std::sync::Arc;

use anyhow::Context as _;
use tokio::sync::oneshot;

use super::EXIT_USAGE;
use super::flags::Start;
use crate::app::{self, Environment, Unusable};
use crate::config::settings::{LogEncoder, Logging};
use crate::config::{self, Config, Purpose, Tables, error};
use crate::lifecycle::clock::{Clock, SystemClock};
use crate::lifecycle::open_files;
use crate::lifecycle::signal::Shutdown;
use crate::telemetry::log::{self, Encoder, LogOptions, Verbosity};

/// Exit code when the process could not start or a part of it ended by itself.
const EXIT_FAILURE: u8 = 1;

/// Open files below which a larger pool runs out of them.
const FEW_FILES: u64 = 4096;

/// Serves; the result is the exit code.
pub fn run(start: Start, tables: &Tables, err: &mut dyn Write) -> u8 {
    let file = start.source.name();
    let early: Vec<String> = start.warnings.iter().map(|w| error::line(&file, w)).collect();
    let config = match config::load(&start.source, start.settings, tables, Purpose::Serve) {
        Ok(config) => config,
        Err(failed) => {
            for line in failed.lines() {
                // There is nobody to tell if standard error is closed.
                let _ = writeln!(err, "error: {line}");
            }
            return EXIT_USAGE;
        }
    };
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let logging = &config.settings.logging;
    let (handle, _guard) = match log_options(logging).and_then(|o| Ok(log::init(o, Arc::clone(&clock))?)) {
        Ok(made) => made,
        Err(problem) => {
            let _ = writeln!(err, "error: {problem:#}");
            return EXIT_USAGE;
        }
    };
    if let Some(limit) = open_files::raise().filter(|limit| *limit < FEW_FILES) {
        tracing::warn!(
            limit,
            "few files may be open at a time; each endpoint and each connection takes one (raise the hard limit: ulimit -Hn)"
        );
    }
    for line in early.into_iter().chain(config.warning_lines()) {
        tracing::warn!("{line}");
    }
    match serve(config, clock, handle) {
        Ok(()) => 0,
        Err(problem) if problem.is::<Unusable>() => {
            for line in problem.to_string().lines() {
                let _ = writeln!(err, "error: {line}");
            }
            EXIT_USAGE
        }
        Err(problem) => {
            tracing::error!(error = format!("{problem:#}"), "pointsman ends");
            EXIT_FAILURE
        }
    }
}

fn log_options(logging: &Logging) -> anyhow::Result<LogOptions> {
    let verbosity = match &logging.level {
        Some(level) => level.parse::<Verbosity>().map_err(|e| anyhow::anyhow!("--zap-log-level: {e}"))?,
        None => Verbosity::from_v(i64::from(logging.verbosity)),
    };
    let encoder = match logging.encoder {
        LogEncoder::Json => Encoder::Json,
        LogEncoder::Console => Encoder::Console,
    };
    Ok(LogOptions { encoder, verbosity })
}

fn serve(config: Config, clock: Arc<dyn Clock>, logs: log::LogHandle) -> anyhow::Result<()> {
    // Everything but the ext_proc connections, which have threads of their own.
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.enable_all().thread_name("background").worker_threads((cores / 4).clamp(1, 4));
    builder.build().context("cannot start the runtime")?.block_on(async {
        let mut shutdown = Shutdown::install().context("cannot listen for signals")?;
        let environment = Environment { grace: config.settings.intervals.grace, ..Environment::default() };
        let app = app::build(config, environment, clock).await?;
        app.metrics.watch_dropped_log_lines(move || logs.dropped_lines());
        let (stop, stopped) = oneshot::channel::<Infallible>();
        let signals = async move {
            let signal = shutdown.recv().await;
            tracing::info!(signal, "told to stop");
            drop(stop);
            shutdown.recv().await
        };
        let stopped = async {
            // Dropped at the first signal.
            let _ = stopped.await;
        };
        tokio::select! {
            drained = app.run(stopped) => drained.map(|_| ()),
            signal = signals => Err(anyhow::anyhow!("a second signal ({signal}): open streams are cut")),
        }
    })
}
