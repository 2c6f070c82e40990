//! `pointsman replay`: traces through configurations in virtual time, or a picker for a simulator in another process.

mod args;
mod progress;

use std::io::{self, BufReader, IsTerminal as _, Write};
use std::thread::available_parallelism;

use anyhow::Context as _;

use super::EXIT_USAGE;
use crate::config::{Source, Tables};
use crate::lifecycle::clock::{Clock, SystemClock};
use crate::replay::compare::{Plan, Progress, compare};
use crate::replay::picker::{Fleet, Picker, resolve};
use crate::replay::table::Results;
use crate::replay::trace::generate::generate;
use crate::replay::trace::{Trace, read};
use crate::replay::{preset, protocol, report};

pub use args::ReplayArgs;

/// A configuration with the name that reports use.
struct Named {
    name: String,
    source: Source,
}

/// Runs the command; the result is the exit code.
///
/// # Errors
/// What goes wrong while it runs; wrong arguments, configurations and traces are written to `err` and give 64.
pub fn run(args: &ReplayArgs, tables: &Tables, out: &mut dyn Write, err: &mut dyn Write) -> anyhow::Result<u8> {
    let configs = configs(args);
    for Named { name, source } in &configs {
        match resolve(source, tables) {
            Ok(config) => {
                for line in config.warning_lines() {
                    writeln!(err, "warning: {line}")?;
                }
            }
            Err(failed) => {
                for line in failed.lines() {
                    writeln!(err, "error: {line}")?;
                }
                writeln!(err, "{name}: {} error(s)", failed.errors.len())?;
                return Ok(EXIT_USAGE);
            }
        }
    }
    let result = if args.picker_protocol {
        serve_protocol(&configs, tables, out, err)
    } else {
        match args.settle() {
            Ok((plan, wanted)) => match wanted.trace(args) {
                Ok(trace) => replay(args, &plan, trace, &configs, tables, out, err),
                Err(what) => Err(Failure::Usage(what)),
            },
            Err(problems) => Err(Failure::Usage(problems.join("\nerror: "))),
        }
    };
    match result {
        Ok(()) => Ok(0),
        Err(Failure::Usage(what)) => {
            writeln!(err, "error: {what}")?;
            Ok(EXIT_USAGE)
        }
        Err(Failure::Other(error)) => Err(error),
    }
}

/// Why the command ends early.
enum Failure {
    /// The arguments are wrong.
    Usage(String),
    /// Anything else.
    Other(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure::Other(error.into())
    }
}

fn serve_protocol(configs: &[Named], tables: &Tables, out: &mut dyn Write, err: &mut dyn Write) -> Result<(), Failure> {
    let [Named { source, .. }] = configs else {
        let given = configs.len();
        return Err(Failure::Usage(format!("--picker-protocol takes one configuration, and {given} are given")));
    };
    // It resolved a moment ago, but each run needs plugins of its own.
    let make = |fleet| match resolve(source, tables) {
        Ok(config) => Ok(Picker::new(&config, fleet, 1)),
        Err(failed) => Err(failed.to_string()),
    };
    Ok(protocol::serve(make, &mut BufReader::with_capacity(1 << 18, io::stdin().lock()), out, err)?)
}

fn configs(args: &ReplayArgs) -> Vec<Named> {
    let named = args.config.iter().map(|name| Named { name: name.clone(), source: preset::source(name) });
    let files = args
        .config_file
        .iter()
        .map(|path| Named { name: path.display().to_string(), source: Source::File(path.clone()) });
    let texts = args
        .config_text
        .iter()
        .enumerate()
        .map(|(i, text)| Named { name: format!("text-{}", i + 1), source: Source::Text(text.clone()) });
    let mut all: Vec<Named> = named.chain(files).chain(texts).collect();
    if all.is_empty() {
        all.push(Named { name: "default".into(), source: Source::Default });
    }
    all
}

fn replay(
    args: &ReplayArgs,
    plan: &Plan,
    mut trace: Trace,
    configs: &[Named],
    tables: &Tables,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> Result<(), Failure> {
    let limit = plan.scene.hardware.kv_tokens * 9 / 10;
    let before = trace.requests.len();
    trace.requests.retain(|r| u64::from(r.input) + u64::from(r.output) <= limit);
    let too_long = before - trace.requests.len();
    if trace.requests.is_empty() {
        return Err(Failure::Usage(format!("no request of the trace fits into 90 % of --kv-tokens ({limit} tokens)")));
    }
    if too_long > 0 {
        writeln!(err, "note: {too_long} requests need more than 90 % of a pod's cache and are left out")?;
    }
    if trace.empty > 0 {
        writeln!(err, "note: {} requests without a prompt are left out", trace.empty)?;
    }
    let clock = SystemClock::new();
    let progress = Progress::default();
    let runs = plan.loads.len().max(1) * plan.seeds.len() * configs.len();
    let shown = io::stderr().is_terminal();
    let mut watch = || {
        if shown {
            // There is nobody to tell if standard error is closed.
            let _ = write!(err, "\r{}", progress::bar(&progress, runs, clock.now().0));
            let _ = err.flush();
        }
    };
    // A configuration that resolved a moment ago does so again, unless its file was changed meanwhile.
    let texts: Vec<Source> = configs.iter().map(|c| frozen(&c.source)).collect::<io::Result<_>>()?;
    let make = |config: usize, fleet: Fleet, seed: u64| match resolve(&texts[config], tables) {
        Ok(config) => Picker::new(&config, fleet, seed),
        Err(failed) => panic!("a configuration that was checked does not resolve: {failed}"),
    };
    let threads = args.threads.unwrap_or_else(|| available_parallelism().map_or(1, usize::from));
    let cells = compare(&trace, plan, configs.len(), &make, threads, &progress, &mut watch).map_err(Failure::Usage)?;
    let took = clock.now().0 as f64 / 1e6;
    if shown {
        write!(err, "\r{:79}\r", "")?;
    }
    let names = configs.iter().map(|c| c.name.clone()).collect();
    let results = Results::new(names, plan, args.goodput_ttft.as_secs_f64(), cells);
    if args.json {
        for line in results.json() {
            writeln!(out, "{line}")?;
        }
    } else {
        out.write_all(results.table().as_bytes())?;
    }
    let simulated: f64 = results.cells.iter().map(|c| c.seconds).sum();
    writeln!(err, "{runs} runs, {simulated:.0} s of traffic in {took:.1} s: {:.0} x real time", simulated / took)?;
    if let Some(path) = &args.html {
        let page = report::html(&results, &args.facts(&trace, plan));
        std::fs::write(path, page).with_context(|| format!("--html: `{}` cannot be written", path.display()))?;
        writeln!(err, "report written to {}", path.display())?;
    }
    Ok(())
}

/// `source` with the text that its file has now, so that all runs see the same.
fn frozen(source: &Source) -> io::Result<Source> {
    match source {
        Source::File(_) => {
            let bytes = source.read()?.unwrap_or_default();
            Ok(Source::Text(String::from_utf8_lossy(&bytes).into_owned()))
        }
        other => Ok(other.clone()),
    }
}

/// Where the traffic comes from.
pub(super) enum Wanted {
    /// A file.
    File(std::path::PathBuf),
    /// The generator.
    Generated(crate::replay::trace::generate::Shape),
}

impl Wanted {
    fn trace(&self, args: &ReplayArgs) -> Result<Trace, String> {
        match self {
            Wanted::Generated(shape) => match generate(shape) {
                trace if trace.requests.is_empty() => Err("--generate: no request in that time; raise `rate`".into()),
                trace => Ok(trace),
            },
            Wanted::File(path) => {
                let trace = read::load(path).map_err(|error| error.to_string())?;
                Ok(if args.spread { read::spread(trace, 7) } else { trace })
            }
        }
    }
}
