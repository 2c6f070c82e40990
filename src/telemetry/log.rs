//! Log lines in the shape of zap: one JSON object per line, or tab-separated text.
//!
//! Keys in order: `level`, `ts` (RFC 3339, UTC, milliseconds), `caller` (`folder/file:line`), `msg`,
//! then the fields of the event as they were given. Formatting writes straight into reused buffers;
//! nothing is built up per line but the line. Spans add nothing to a line: an event names its own
//! request, so that a line can be read alone.
//!
//! Bounds: a value is cut at [`MAX_VALUE_BYTES`], a line takes no further fields beyond
//! [`MAX_LINE_BYTES`], and the writer's queue holds [`QUEUE_LINES`]; when the reader of our output is
//! slow, lines are dropped and counted rather than requests delayed.
//!
//! Rejected: `tracing-subscriber`'s own JSON formatter (nests fields, other keys, a `serde_json` map
//! per line).

mod line;

use std::io::Write;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tracing::level_filters::LevelFilter;
use tracing::subscriber::{Interest, SetGlobalDefaultError, Subscriber};
use tracing::{Event, Level, Metadata};
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Context, Filter, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;

pub use self::line::{MAX_LINE_BYTES, MAX_VALUE_BYTES};
pub(super) use self::line::{TRUNCATED, escape};
use crate::lifecycle::clock::Clock;

/// Lines that may wait for the writer.
pub const QUEUE_LINES: usize = 8192;

/// Target of info events that are only shown at verbosity 3 and up.
pub const VERBOSE: &str = "pointsman::verbose";

/// Targets of this process; the libraries below it are one step quieter.
const OWN: &str = "pointsman";
/// The client of the API server.
const CLIENT: &str = "kube_client";

/// How much is logged: the `-v` scale of the picker we replace, with errors only at zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Verbosity {
    /// Errors.
    Error = 0,
    /// And warnings.
    Warn = 1,
    /// And information.
    #[default]
    Info = 2,
    /// And information for the curious ([`VERBOSE`]).
    Verbose = 3,
    /// And debugging.
    Debug = 4,
    /// Everything.
    Trace = 5,
}

impl Verbosity {
    const ALL: [Verbosity; 6] =
        [Verbosity::Error, Verbosity::Warn, Verbosity::Info, Verbosity::Verbose, Verbosity::Debug, Verbosity::Trace];

    /// The verbosity of `-v`; numbers outside 0 to 5 mean the nearest.
    pub fn from_v(v: i64) -> Self {
        Self::ALL[v.clamp(0, 5) as usize]
    }

    fn limit(self, own: bool) -> LevelFilter {
        match (self, own) {
            (Verbosity::Error, _) => LevelFilter::ERROR,
            (Verbosity::Warn, _) | (Verbosity::Info | Verbosity::Verbose, false) => LevelFilter::WARN,
            (Verbosity::Info | Verbosity::Verbose, true) | (Verbosity::Debug, false) => LevelFilter::INFO,
            (Verbosity::Debug, true) | (Verbosity::Trace, false) => LevelFilter::DEBUG,
            (Verbosity::Trace, true) => LevelFilter::TRACE,
        }
    }

    fn shows(self, metadata: &Metadata<'_>) -> bool {
        let target = metadata.target();
        if target == VERBOSE && *metadata.level() == Level::INFO {
            return self >= Verbosity::Verbose;
        }
        // Its errors name neither the server nor what was asked; discovery says both, once.
        if target.starts_with(CLIENT) && self < Verbosity::Debug {
            return false;
        }
        let own = target.strip_prefix(OWN).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"));
        *metadata.level() <= self.limit(own)
    }
}

/// Reads `--zap-log-level`: `debug`, `info`, `warn`, `error`, `panic` or a number of the `-v` scale.
impl FromStr for Verbosity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "debug" => Ok(Verbosity::Debug),
            "info" => Ok(Verbosity::Info),
            "warn" => Ok(Verbosity::Warn),
            "error" | "dpanic" | "panic" | "fatal" => Ok(Verbosity::Error),
            number => number.parse().map(Verbosity::from_v).map_err(|_| {
                format!("unknown log level {text:?}: use debug, info, warn, error, panic or a number from 0 to 5")
            }),
        }
    }
}

/// Shape of a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encoder {
    /// One JSON object.
    #[default]
    Json,
    /// Tab-separated text with the fields as JSON at the end.
    Console,
}

/// Reads `--zap-encoder`.
impl FromStr for Encoder {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "json" => Ok(Encoder::Json),
            "console" => Ok(Encoder::Console),
            _ => Err(format!("unknown log encoder {text:?}: use json or console")),
        }
    }
}

/// How to log.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogOptions {
    /// Shape of a line.
    pub encoder: Encoder,
    /// How much is logged.
    pub verbosity: Verbosity,
}

/// Changes the verbosity while the process runs and counts lost lines. Clones share the state.
#[derive(Clone, Debug)]
pub struct LogHandle {
    verbosity: Arc<AtomicU8>,
    dropped: ErrorCounter,
}

impl LogHandle {
    /// The verbosity in force.
    pub fn verbosity(&self) -> Verbosity {
        Verbosity::from_v(i64::from(self.verbosity.load(Ordering::Relaxed)))
    }

    /// Puts another verbosity in force.
    pub fn set_verbosity(&self, verbosity: Verbosity) {
        self.verbosity.store(verbosity as u8, Ordering::Relaxed);
        tracing::callsite::rebuild_interest_cache();
    }

    /// Lines that were dropped because the writer was behind.
    pub fn dropped_lines(&self) -> u64 {
        self.dropped.dropped_lines() as u64
    }
}

/// Writes out what is queued when dropped (it waits up to a second). Keep it to the end of `main`.
#[must_use = "lines still queued are lost without it"]
#[derive(Debug)]
pub struct LogGuard {
    _worker: WorkerGuard,
}

/// Makes the logger of this process, writing to standard error as zap does.
///
/// # Errors
/// When the process has a logger already.
pub fn init(options: LogOptions, clock: Arc<dyn Clock>) -> Result<(LogHandle, LogGuard), SetGlobalDefaultError> {
    let (layer, handle, guard) = layer(options, clock, std::io::stderr());
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(layer))?;
    Ok((handle, guard))
}

/// The logger as a layer, to be put together with others, writing to `out` from a thread of its own.
pub fn layer<S>(
    options: LogOptions,
    clock: Arc<dyn Clock>,
    out: impl Write + Send + 'static,
) -> (impl Layer<S> + Send + Sync + 'static, LogHandle, LogGuard)
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let (writer, worker): (NonBlocking, _) =
        NonBlockingBuilder::default().buffered_lines_limit(QUEUE_LINES).lossy(true).thread_name("log").finish(out);
    let verbosity = Arc::new(AtomicU8::new(options.verbosity as u8));
    let handle = LogHandle { verbosity: Arc::clone(&verbosity), dropped: writer.error_counter() };
    let layer = LogLayer { encoder: options.encoder, clock, writer };
    (layer.with_filter(Gate { verbosity }), handle, LogGuard { _worker: worker })
}

struct LogLayer<W> {
    encoder: Encoder,
    clock: Arc<dyn Clock>,
    writer: W,
}

impl<S, W> Layer<S> for LogLayer<W>
where
    S: Subscriber,
    W: for<'a> MakeWriter<'a> + 'static,
{
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        line::format(self.encoder, self.clock.wall(), event, |line| {
            // The queue takes the line or counts it as dropped.
            let _ = self.writer.make_writer().write_all(line);
        });
    }
}

struct Gate {
    verbosity: Arc<AtomicU8>,
}

impl Gate {
    fn now(&self) -> Verbosity {
        Verbosity::from_v(i64::from(self.verbosity.load(Ordering::Relaxed)))
    }
}

impl<S> Filter<S> for Gate {
    fn enabled(&self, metadata: &Metadata<'_>, _context: &Context<'_, S>) -> bool {
        self.now().shows(metadata)
    }

    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.now().shows(metadata) { Interest::always() } else { Interest::never() }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.now().limit(true))
    }
}

#[cfg(test)]
pub(super) mod tests;
