//! `pointsman check`: validates a configuration and prints what it means.

use std::io::{self, Write};

use super::EXIT_USAGE;
use super::flags::Start;
use crate::config::{self, Purpose, Tables, error};

/// Resolves the configuration of `start`; the resolved document goes to `out`, warnings and errors
/// to `err`, one per line. Returns the exit code: 0, or 64 if there was an error.
///
/// # Errors
/// When `out` or `err` cannot be written.
pub fn run(start: Start, tables: &Tables, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<u8> {
    let file = start.source.name();
    for warning in &start.warnings {
        writeln!(err, "warning: {}", error::line(&file, warning))?;
    }
    match config::load(&start.source, start.settings, tables, Purpose::Check) {
        Ok(config) => {
            for line in config.warning_lines() {
                writeln!(err, "warning: {line}")?;
            }
            if config.discovery.is_none() {
                writeln!(err, "note: {file} names no dataLayer.discovery; serving it takes one (file-discovery)")?;
            }
            out.write_all(config.render().as_bytes())?;
            Ok(0)
        }
        Err(failed) => {
            for warning in &failed.warnings {
                writeln!(err, "warning: {}", error::line(&file, warning))?;
            }
            for line in failed.lines() {
                writeln!(err, "error: {line}")?;
            }
            writeln!(err, "{file}: {} error(s)", failed.errors.len())?;
            Ok(EXIT_USAGE)
        }
    }
}
