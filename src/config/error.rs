//! Everything that is wrong with a configuration, in one value.

use std::fmt;

use crate::domain::node::Problem;

/// A configuration that cannot be used: all of its errors, in the order of the file.
#[derive(Clone, Debug)]
pub struct ConfigError {
    /// Name of the file, or `--config-text`, for the messages.
    pub file: String,
    /// What stops start-up; not empty.
    pub errors: Vec<Problem>,
    /// What would have been warned about, so that one run shows everything.
    pub warnings: Vec<Problem>,
}

impl ConfigError {
    /// The errors, one line each.
    pub fn lines(&self) -> impl Iterator<Item = String> + '_ {
        self.errors.iter().map(|problem| line(&self.file, problem))
    }
}

/// One problem as `file:line:column: path: message; fix: …`. A problem of a flag has no file.
pub fn line(file: &str, problem: &Problem) -> String {
    let Problem { at, path, message, fix } = problem;
    let place = match (at.line, path.starts_with("--") || path == "(arguments)") {
        (0, true) => String::new(),
        (0, false) => format!("{file}: "),
        (line, _) => format!("{file}:{line}:{}: ", at.column),
    };
    let fix = if fix.is_empty() { String::new() } else { format!("; fix: {fix}") };
    format!("{place}{path}: {message}{fix}")
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, line) in self.lines().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            f.write_str(&line)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}
