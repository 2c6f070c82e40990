//! From a configuration file and flags to a [`Config`] that cannot be wrong.
//!
//! Two types, as a rule: [`document::Document`] is what was written, strict and with positions;
//! [`Config`] is what it means, with every default filled in and every plugin built. Between them:
//! [`yaml`] (text to values with places), [`legacy`] (older generations to today's shape), [`resolve`](mod@resolve)
//! (defaults, references, validation). [`tables`] says which types exist, [`settings`] what the flags
//! said, [`error`] how problems read.
//!
//! Invariants: all problems of a run are reported together, each with file, line, column, path, rule
//! and fix; nothing is guessed (an unknown name is an error that lists the known ones); two starts
//! with the same file give the same order of filters, scorers and producers; [`Config::render`] reads
//! back to the same configuration. There is no reload: a changed file means a new process.
//!
//! Rejected: the original's choice of defaults in map order (a filter order that changes from start
//! to start), and stopping at the first error.

mod conformance;
pub mod document;
pub mod error;
#[cfg(test)]
#[allow(dead_code, reason = "fake plugins decode parameters that they do not use")]
pub(crate) mod fakes;
pub mod features;
pub mod legacy;
mod render;
pub mod resolve;
pub mod settings;
pub mod tables;
pub mod yaml;

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

use crate::domain::PoolIdentity;
use crate::domain::node::{Node, Position, Problem};
use crate::scheduling::dispatch::Dispatch;
use crate::scheduling::plugin::{Commit, Producer, Registry, SaturationDetector};
use crate::scheduling::scheduler::Scheduler;

pub use error::ConfigError;
pub use resolve::{Purpose, resolve};
pub use settings::Settings;
pub use tables::Tables;

/// Where the document comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Source {
    /// Nothing was given: the default configuration.
    #[default]
    Default,
    /// `--config-file`.
    File(PathBuf),
    /// `--config-text`.
    Text(String),
}

impl Source {
    /// How messages call it.
    pub fn name(&self) -> String {
        match self {
            Source::Default => "(default configuration)".into(),
            Source::File(path) => path.display().to_string(),
            Source::Text(_) => "--config-text".into(),
        }
    }

    /// The text, read once; `None` for the default. At most one byte more than the limit is read, so
    /// that the reader can say it is too long.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read(&self) -> std::io::Result<Option<Vec<u8>>> {
        match self {
            Source::Default => Ok(None),
            Source::Text(text) => Ok(Some(text.clone().into_bytes())),
            Source::File(path) => {
                let mut bytes = Vec::new();
                File::open(path)?.take(yaml::MAX_BYTES as u64 + 1).read_to_end(&mut bytes)?;
                Ok(Some(bytes))
            }
        }
    }
}

/// Reads and resolves `source`.
///
/// # Errors
/// All problems of the file and of flags that do not fit it.
pub fn load(source: &Source, settings: Settings, tables: &Tables, purpose: Purpose) -> Result<Config, ConfigError> {
    match source.read() {
        Ok(bytes) => resolve(&source.name(), bytes.as_deref(), settings, tables, purpose),
        Err(error) => Err(ConfigError {
            file: source.name(),
            errors: vec![Problem {
                at: Position::default(),
                path: "--config-file".into(),
                message: format!("`{}` cannot be read: {error}", source.name()),
                fix: "check the path, the mount and its permissions".into(),
            }],
            warnings: Vec::new(),
        }),
    }
}

/// A plugin whose object another room builds: its parameters are checked but still raw.
#[derive(Clone, Debug)]
pub struct Declared {
    /// Instance name.
    pub name: Arc<str>,
    /// Type, by its current name.
    pub kind: &'static str,
    /// Where the entry stands; zero if it was added by default.
    pub at: Position,
    /// Path of the parameters, for messages.
    pub path: String,
    /// Parameters as written.
    pub parameters: Option<Node>,
}

/// A data source and what reads it.
#[derive(Clone, Debug)]
pub struct DataSource {
    /// The source.
    pub source: Declared,
    /// Its extractors, in order.
    pub extractors: Vec<Declared>,
}

/// A producer in running order.
#[derive(Clone)]
pub struct NamedProducer {
    /// Plugin name.
    pub name: Arc<str>,
    /// Type.
    pub kind: &'static str,
    /// The producer.
    pub producer: Arc<dyn Producer>,
}

/// Feature gates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gates {
    /// `flowControl` (false).
    pub flow_control: bool,
    /// `haPopulateNonLeaderDatastore` (true): a standby keeps its view of the pool.
    pub populate_standby: bool,
}

impl Default for Gates {
    fn default() -> Self {
        Self { flow_control: false, populate_standby: true }
    }
}

/// A complete, consistent configuration.
pub struct Config {
    /// What the document is called in messages.
    pub file: String,
    /// The flags.
    pub settings: Settings,
    /// The pool as metrics and logs name it.
    pub pool: PoolIdentity,
    /// Feature gates.
    pub gates: Gates,
    /// Profiles and their handler.
    pub scheduler: Scheduler,
    /// Producers, each after those it reads.
    pub producers: Vec<NamedProducer>,
    /// What learns from a choice, in order of creation.
    pub commits: Vec<(Arc<str>, Arc<dyn Commit>)>,
    /// Name and type of every plugin, for metric labels.
    pub names: Vec<(Arc<str>, &'static str)>,
    /// All instances by name, and what work they need.
    pub registry: Registry,
    /// Parsers in configured order; not empty.
    pub parsers: Vec<Declared>,
    /// Data sources.
    pub sources: Vec<DataSource>,
    /// Discovery instead of Kubernetes.
    pub discovery: Option<Declared>,
    /// The saturation detector.
    pub saturation: Declared,
    /// Its instance; absent only where a table of tests has none.
    pub detector: Option<Arc<dyn SaturationDetector>>,
    /// When requests are sent; at once if nothing says so.
    pub dispatch: Option<Arc<Dispatch>>,
    /// Flow control as written; meaningful with the gate.
    pub flow_control: document::FlowControl,
    /// What can be switched on, and by which plugins and flags it is.
    pub features: Vec<features::Feature>,
    /// What is accepted but should be changed.
    pub warnings: Vec<Problem>,
    rendered: String,
}

impl Config {
    /// The resolved configuration as YAML: every default written out, with comments on what was
    /// added and which work which plugin switches on. Reads back to the same configuration.
    pub fn render(&self) -> &str {
        &self.rendered
    }

    /// The warnings, one line each.
    pub fn warning_lines(&self) -> impl Iterator<Item = String> + '_ {
        self.warnings.iter().map(|problem| error::line(&self.file, problem))
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config").field("file", &self.file).field("rendered", &self.rendered).finish_non_exhaustive()
    }
}
