//! `pointsman replay`: traces through configurations in virtual time, or a picker for a simulator in another process.

use std::io::{self, BufReader, Write};
use std::path::PathBuf;

use clap::Args;

use super::EXIT_USAGE;
use crate::config::{Source, Tables};
use crate::replay::picker::{Picker, resolve};
use crate::replay::{preset, protocol};

/// Arguments of `replay`.
#[derive(Args, Clone, Debug)]
pub struct ReplayArgs {
    /// Speak the picker protocol on standard input and output: a simulator in another process drives the decisions.
    #[arg(long)]
    pub picker_protocol: bool,
    /// A configuration: a file, `default` (the shipped one) or `llm-d-default`. Several are compared with the first.
    #[arg(long, value_name = "NAME|FILE")]
    pub config: Vec<String>,
    /// The same as --config with a file.
    #[arg(long, value_name = "FILE")]
    pub config_file: Vec<PathBuf>,
    /// A configuration as text.
    #[arg(long, value_name = "YAML")]
    pub config_text: Vec<String>,
    /// Seeds of the random numbers in picks.
    #[arg(long, default_value = "1")]
    pub seeds: String,
}

/// A configuration with the name that reports use.
struct Named {
    name: String,
    source: Source,
}

/// Runs the command; the result is the exit code.
///
/// # Errors
/// What goes wrong while it runs; wrong arguments and configurations are written to `err` and give 64.
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
    if !args.picker_protocol {
        writeln!(err, "error: give --picker-protocol")?;
        return Ok(EXIT_USAGE);
    }
    let [Named { source, .. }] = configs.as_slice() else {
        writeln!(err, "error: --picker-protocol takes one configuration, and {} are given", configs.len())?;
        return Ok(EXIT_USAGE);
    };
    // It resolved a moment ago, but each run needs plugins of its own.
    let make = |fleet| match resolve(source, tables) {
        Ok(config) => Ok(Picker::new(&config, fleet, 1)),
        Err(failed) => Err(failed.to_string()),
    };
    protocol::serve(make, &mut BufReader::with_capacity(1 << 18, io::stdin().lock()), out, err)?;
    Ok(0)
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
