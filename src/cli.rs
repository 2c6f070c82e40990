//! The command line: flags in Go's spelling, subcommands, and exit codes.
//!
//! Nothing here reads the process's arguments or environment: `main.rs` hands both in, so that tests
//! do the same. Warnings are returned, because the logger starts later.

pub mod check;
pub mod demo;
pub mod explain;
pub mod flags;
pub mod replay;
pub mod serve;
pub mod sim;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use crate::config::Tables;

pub use flags::{Invocation, Start, parse};

/// Exit code of wrong flags or a wrong configuration (`EX_USAGE`), before any port is bound.
pub const EXIT_USAGE: u8 = 64;

/// Runs the command that `arguments` (without the program's name) ask for.
pub fn run(arguments: Vec<OsString>, environment: &BTreeMap<String, String>) -> ExitCode {
    let (mut out, mut err) = (std::io::stdout(), std::io::stderr());
    let words = arguments.into_iter().map(|a| a.to_string_lossy().into_owned());
    let invocation = match parse(words, environment) {
        Ok(invocation) => invocation,
        Err(problems) => {
            for problem in problems {
                // There is nobody to tell if standard error is closed.
                let _ = writeln!(err, "error: {problem}");
            }
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let tables = Tables::standard();
    let result = match invocation {
        Invocation::Print(text) => write!(out, "{text}").map(|()| 0).map_err(Into::into),
        Invocation::Serve(start) => Ok(serve::run(*start, &tables, &mut err)),
        Invocation::Check(start) => check::run(*start, &tables, &mut out, &mut err).map_err(Into::into),
        Invocation::Sim(args) => sim::run(&args, &mut out).map(|()| 0),
        Invocation::Replay(args) => replay::run(&args, &tables, &mut out, &mut err),
        Invocation::Demo(args) => demo::run(&args, environment, &mut out).map(|()| 0),
        Invocation::Explain(args) => explain::run(&args, &mut out).map(|()| 0),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(problem) => {
            let _ = writeln!(err, "error: {problem:#}");
            ExitCode::FAILURE
        }
    }
}
