//! Flags: names, defaults and syntax of the picker we replace, its older generations, and our own.
//!
//! Three steps. `spelling` rewrites every spelling to `--name=value` and deals
//! with flags that only older releases had; clap types the values, once per wrong one, so that all
//! wrong flags are reported together; `Flags::settle` checks what concerns several flags and gives
//! [`Settings`].
//!
//! Rejected: clap alone. It stops at the first error, has no single-dash long flags, and takes
//! `--tracing false` where Go means a flag and a stray word.

mod errors;
mod otel;
mod spelling;
#[cfg(test)]
mod tests;
mod tls;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{ArgAction, Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::cli::demo::DemoArgs;
use crate::cli::explain::ExplainArgs;
use crate::cli::replay::ReplayArgs;
use crate::cli::sim::SimArgs;
use crate::config::Source;
use crate::config::resolve::go_bool;
use crate::config::settings::{
    Conformance, Intervals, Limits, LogEncoder, Logging, MetricsServer, PoolSettings, Ports, Settings, Tls,
};
use crate::domain::node::{Position, Problem, Problems};
use crate::scheduling::params::{Quantity, parse_duration};

/// What the command line asks for.
#[derive(Debug)]
pub enum Invocation {
    /// Serve.
    Serve(Box<Start>),
    /// `check`: validate the configuration and print it.
    Check(Box<Start>),
    /// `sim`: a simulated model server.
    Sim(SimArgs),
    /// `demo`: a pool of simulated model servers with a picker.
    Demo(DemoArgs),
    /// `replay`: traces through configurations in virtual time.
    Replay(Box<ReplayArgs>),
    /// `explain`: why a request went where it went.
    Explain(ExplainArgs),
    /// `--help` or `--version`: print this and exit 0.
    Print(String),
}

/// What serving and checking start from.
#[derive(Clone, Debug)]
pub struct Start {
    /// The flags.
    pub settings: Settings,
    /// The configuration document.
    pub source: Source,
    /// Old spellings and flags without effect, for the log.
    pub warnings: Vec<Problem>,
}

#[derive(Subcommand, Clone, Debug)]
enum Command {
    /// Validate a configuration and print it with every default written out.
    Check(Box<Flags>),
    /// Run a simulated model server.
    Sim(SimArgs),
    /// Run a pool of simulated model servers with a picker in front.
    Demo(DemoArgs),
    /// Replay a trace through one or several configurations in virtual time and compare them.
    Replay(Box<ReplayArgs>),
    /// Print a decision of a running picker: its candidates, their scores or costs, and what would have changed it.
    Explain(ExplainArgs),
}

/// Endpoint picker for LLM inference.
#[derive(Parser, Debug)]
#[command(name = "pointsman", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(flatten)]
    flags: Flags,
    #[command(subcommand)]
    command: Option<Command>,
}

/// All flags. A boolean is switched on by its name alone and takes `=true` or `=false`.
#[derive(Args, Clone, Debug)]
pub struct Flags {
    /// Port of the ext_proc listener.
    #[arg(long, value_name = "PORT", default_value = "9002")]
    grpc_port: u16,
    /// Port of the plaintext gRPC health listener.
    #[arg(long, value_name = "PORT", default_value = "9003")]
    grpc_health_port: u16,
    /// Port of metrics and debug pages (HTTP).
    #[arg(long, value_name = "PORT", default_value = "9090")]
    metrics_port: u16,
    /// Name of the InferencePool; exactly one of this and --endpoint-selector, unless the
    /// configuration names a discovery.
    #[arg(long, value_name = "NAME", default_value = "")]
    pool_name: String,
    /// Namespace of the pool; else the environment variable NAMESPACE, else `default`.
    #[arg(long, value_name = "NAME", default_value = "")]
    pool_namespace: String,
    /// API group of the pool.
    #[arg(long, value_name = "GROUP", default_value = "inference.networking.k8s.io")]
    pool_group: String,
    /// Label selector of the endpoints, for a pool without an InferencePool.
    #[arg(long, value_name = "SELECTOR", default_value = "")]
    endpoint_selector: String,
    /// Ports of the endpoints, 1 to 8, with --endpoint-selector.
    #[arg(long, value_name = "PORT,…", value_delimiter = ',')]
    endpoint_target_ports: Vec<String>,
    /// Ignore the subset of endpoints that the proxy names in the metadata.
    #[arg(long, value_name = BOOL, default_value = "false", action = ArgAction::Set)]
    disable_endpoint_subset_filter: bool,
    /// Write the scores of the candidates to the dynamic metadata.
    #[arg(long, value_name = BOOL, default_value = "false", action = ArgAction::Set)]
    emit_endpoint_scores: bool,
    /// File with the EndpointPickerConfig; read once at start.
    #[arg(long, value_name = "FILE", default_value = "")]
    config_file: String,
    /// The EndpointPickerConfig itself, instead of a file.
    #[arg(long, value_name = "YAML", default_value = "")]
    config_text: String,
    /// Permit plugins that are marked experimental.
    #[arg(long, value_name = BOOL, default_value = "false", action = ArgAction::Set)]
    allow_experimental_plugins: bool,
    /// Time between two scrapes of a model server, at least 50ms.
    #[arg(long, value_name = "DURATION", default_value = "50ms", value_parser = duration)]
    refresh_metrics_interval: Duration,
    /// Accepted for compatibility: gauges are computed when the page is read.
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration)]
    refresh_prometheus_metrics_interval: Duration,
    /// Age from which the metrics of an endpoint count as stale.
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = duration)]
    metrics_staleness_threshold: Duration,
    /// Of several replicas only the holder of a Lease is ready; needs Kubernetes.
    #[arg(long, value_name = BOOL, default_value = "false", action = ArgAction::Set)]
    ha_enable_leader_election: bool,
    /// How long ext_proc keeps serving after SIGTERM.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    drain_timeout: Duration,
    /// Largest gRPC message received (quantity); empty is --max-request-body and 1 MiB.
    #[arg(long, value_name = "SIZE", default_value = "", value_parser = size)]
    grpc_max_recv_msg_size: Size,
    /// Accepted for compatibility: what is sent is small.
    #[arg(long, value_name = "SIZE", default_value = "", value_parser = size)]
    grpc_max_send_msg_size: Size,
    /// TLS on the ext_proc port; self-signed without --cert-path.
    #[arg(long, value_name = BOOL, default_value = "true", action = ArgAction::Set)]
    secure_serving: bool,
    /// Directory with tls.crt and tls.key.
    #[arg(long, value_name = "DIR", default_value = "")]
    cert_path: String,
    /// Read the certificate again when it changes.
    #[arg(long, value_name = BOOL, default_value = "false", action = ArgAction::Set)]
    enable_cert_reload: bool,
    /// Lowest TLS version: VersionTLS12 or VersionTLS13 (older ones are raised to 1.2).
    #[arg(long, value_name = "VERSION", default_value = "")]
    tls_min_version: String,
    /// Cipher suites of TLS 1.2 by Go's names.
    #[arg(long, value_name = "SUITE,…", value_delimiter = ',')]
    tls_cipher_suites: Vec<String>,
    /// Accepted for compatibility: gRPC health is always on the ext_proc port as well.
    #[arg(long, value_name = BOOL, default_value = "false", action = ArgAction::Set)]
    health_checking: bool,
    /// Show metrics and debug pages only to bearer tokens that Kubernetes allows it; without
    /// Kubernetes there is nobody to ask, and no effect.
    #[arg(long, value_name = BOOL, default_value = "true", action = ArgAction::Set)]
    metrics_endpoint_auth: bool,
    /// Directory with tls.crt and tls.key of the metrics port, followed when they change; empty is
    /// plain HTTP.
    #[arg(long, value_name = "DIR", default_value = "")]
    metrics_cert_dir: String,
    /// PEM file of authorities that must have signed the certificates of clients of the metrics port;
    /// needs --metrics-cert-dir.
    #[arg(long, value_name = "FILE", default_value = "")]
    metrics_client_ca_file: String,
    /// Accepted for compatibility: there are no profiling pages.
    #[arg(long, value_name = BOOL, default_value = "true", action = ArgAction::Set)]
    enable_pprof: bool,
    /// Metrics about ext_proc streams.
    #[arg(long, value_name = BOOL, default_value = "false", action = ArgAction::Set)]
    enable_grpc_stream_metrics: bool,
    /// Export traces, if the environment names a collector (OTEL_TRACES_EXPORTER=otlp).
    #[arg(long, value_name = BOOL, default_value = "true", action = ArgAction::Set)]
    tracing: bool,
    /// Verbosity: 0 error, 1 warn, 2 default, 3 verbose, 4 debug, 5 trace.
    #[arg(short = 'v', long = "v", value_name = "LEVEL", default_value = "2", value_parser = clap::value_parser!(u8).range(0..=10))]
    verbosity: u8,
    /// Development logging: text instead of JSON.
    #[arg(long, value_name = BOOL, default_value = "false", action = ArgAction::Set)]
    zap_devel: bool,
    /// Shape of log lines: json or console.
    #[arg(long, value_name = "ENCODER", value_parser = ["json", "console"])]
    zap_encoder: Option<String>,
    /// Log level: debug, info, error, panic or a number.
    #[arg(long, value_name = "LEVEL", value_parser = log_level)]
    zap_log_level: Option<String>,
    /// Accepted for compatibility: info, error or panic.
    #[arg(long, value_name = "LEVEL", value_parser = ["info", "error", "panic"])]
    zap_stacktrace_level: Option<String>,
    /// Accepted for compatibility, times are RFC 3339: epoch, millis, nano, iso8601, rfc3339 or rfc3339nano.
    #[arg(long, value_name = "ENCODING", value_parser = ["epoch", "millis", "nano", "iso8601", "rfc3339", "rfc3339nano"])]
    zap_time_encoding: Option<String>,
    /// How long open streams may go on after --drain-timeout before they are cut.
    #[arg(long, value_name = "DURATION", default_value = "90s", value_parser = duration)]
    shutdown_grace: Duration,
    /// Largest request body (quantity); a larger one is answered with 413.
    #[arg(long, value_name = "SIZE", default_value = "64Mi", value_parser = size)]
    max_request_body: Size,
    /// One log line per request.
    #[arg(long, value_name = BOOL, default_value = "true", action = ArgAction::Set)]
    access_log: bool,
    /// How many of the last decisions /debug/decisions and `pointsman explain` show; 0 keeps none.
    #[arg(long, value_name = "COUNT", default_value = "256", value_parser = clap::value_parser!(u32).range(0..=10_000))]
    debug_decisions: u32,
    /// How many decisions are recorded for them per second, besides those that ask for it; 0 is no limit.
    #[arg(long, value_name = "COUNT", default_value = "100", value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    debug_decisions_rate: u32,
    /// Record the decision on every request with `x-pointsman-explain: true` and answer with its name.
    #[arg(long, value_name = BOOL, default_value = "false", action = ArgAction::Set)]
    allow_explain_header: bool,
    /// File for one JSON line per completed request, from which `pointsman replay` runs the traffic again; it holds
    /// hashes of prompts and no text.
    #[arg(long, value_name = "FILE", default_value = "")]
    decision_log: String,
    /// Size at which --decision-log is renamed to FILE.1 and begun anew (quantity).
    #[arg(long, value_name = "SIZE", default_value = "256Mi", value_parser = size)]
    decision_log_size: Size,
    /// Threads that serve requests; one per core if absent.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=1024))]
    worker_threads: Option<u16>,
    /// Remove control headers of the client's request before it goes on.
    #[arg(long, value_name = BOOL, default_value = "true", action = ArgAction::Set)]
    strip_control_headers: bool,
    /// Add `x-went-into-resp-headers: true` to every response, to see that it passed the picker.
    #[arg(long, value_name = BOOL, default_value = "false", action = ArgAction::Set)]
    debug_response_header: bool,
    /// Read the token counts of answers for the token metrics, even if no plugin needs them.
    #[arg(long, value_name = BOOL, default_value = "true", action = ArgAction::Set)]
    token_metrics: bool,
    /// Not for production: add the test plugins of the Gateway API conformance suite; also by the environment
    /// variable POINTSMAN_CONFORMANCE_TEST_MODE.
    #[arg(long, value_name = BOOL, default_value = "false", action = ArgAction::Set)]
    conformance_test_mode: bool,
    /// With --conformance-test-mode: let the suite's echo servers return the picked endpoint, for data planes without
    /// a response phase; also by POINTSMAN_CONFORMANCE_ECHO_DESTINATION.
    #[arg(long, value_name = BOOL, default_value = "false", action = ArgAction::Set)]
    conformance_echo_destination: bool,
}

/// Value name of boolean flags; [`command`] gives them Go's syntax by it.
const BOOL: &str = "BOOL";

/// Size of the decision log if the flag is given empty.
const DECISION_LOG_SIZE: u64 = 256 << 20;

/// A size in bytes, or nothing.
#[derive(Clone, Copy, Debug)]
struct Size(Option<u64>);

fn boolean(text: &str) -> Result<bool, String> {
    go_bool(text).ok_or_else(|| "a boolean is true or false".into())
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "a duration is written 50ms, 2s or 1m30s".into())
}

fn size(text: &str) -> Result<Size, String> {
    if text.is_empty() {
        return Ok(Size(None));
    }
    match Quantity::parse(text) {
        Some(Quantity(bytes)) if bytes > 0 => Ok(Size(Some(bytes))),
        _ => Err("a size is a quantity above 0, such as 4Mi or 64MiB".into()),
    }
}

fn log_level(text: &str) -> Result<String, String> {
    let known = matches!(text, "debug" | "info" | "error" | "panic") || text.parse::<u8>().is_ok_and(|n| n > 0);
    if known { Ok(text.to_owned()) } else { Err("a level is debug, info, error, panic or a number above 0".into()) }
}

/// The command of clap with Go's rules: a boolean takes its value only after `=`, and of a flag that
/// is given twice the last value counts.
fn command() -> clap::Command {
    fn as_in_go(command: clap::Command) -> clap::Command {
        command.mut_args(|arg| {
            if !matches!(arg.get_action(), ArgAction::Set) {
                return arg;
            }
            let id = arg.get_id().clone();
            let arg = arg.overrides_with(id);
            if arg.get_value_names().is_none_or(|names| names.iter().all(|n| n != BOOL)) {
                return arg;
            }
            arg.num_args(0..=1).require_equals(true).default_missing_value("true").value_parser(boolean)
        })
    }
    as_in_go(Cli::command().disable_help_subcommand(true)).mut_subcommand("check", as_in_go)
}

/// Reads the arguments (without the program's name) and the environment.
///
/// # Errors
/// All wrong flags; the caller prints them and exits with [`EXIT_USAGE`](super::EXIT_USAGE).
pub fn parse(
    args: impl IntoIterator<Item = String>,
    env: &BTreeMap<String, String>,
) -> Result<Invocation, Vec<Problem>> {
    let args: Vec<String> = args.into_iter().collect();
    let mut problems = Problems::default();
    let command = command();
    let mut words = spelling::normalise(&args, &command, &mut problems);
    let mut wrong_words = 0;
    let cli = loop {
        let program = std::iter::once("pointsman".to_owned());
        match command.clone().try_get_matches_from(program.chain(words.iter().cloned())) {
            Ok(matches) => break Cli::from_arg_matches(&matches).map_err(|e| errors::problem(&e)),
            Err(e) if matches!(e.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
                return Ok(Invocation::Print(e.to_string()));
            }
            Err(e) => {
                // Take the wrong flag out and look for the next one.
                let name = errors::flag_of(&e);
                let before = words.len();
                words.retain(|w| name.as_deref().is_none_or(|n| w != n && !w.starts_with(&format!("{n}="))));
                let problem = errors::problem(&e);
                wrong_words += 1;
                if words.len() == before || wrong_words > 64 {
                    break Err(problem);
                }
                problems.errors.push(problem);
            }
        }
    };
    let cli = match cli {
        Ok(cli) => cli,
        Err(problem) => {
            problems.errors.push(problem);
            return Err(problems.errors);
        }
    };
    let start = |flags: &Flags, problems: &mut Problems| {
        let (settings, source) = flags.settle(env, problems);
        Box::new(Start { settings, source, warnings: Vec::new() })
    };
    let mut invocation = match cli.command {
        None => Invocation::Serve(start(&cli.flags, &mut problems)),
        Some(Command::Check(flags)) => Invocation::Check(start(&flags, &mut problems)),
        Some(Command::Sim(args)) => Invocation::Sim(args),
        Some(Command::Demo(args)) => Invocation::Demo(args),
        Some(Command::Replay(args)) => Invocation::Replay(args),
        Some(Command::Explain(args)) => Invocation::Explain(args),
    };
    if !problems.errors.is_empty() {
        return Err(problems.errors);
    }
    if let Invocation::Serve(start) | Invocation::Check(start) = &mut invocation {
        start.warnings = problems.warnings;
    }
    Ok(invocation)
}

fn given(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

impl Flags {
    /// Checks what concerns several flags and turns them into settings.
    fn settle(&self, env: &BTreeMap<String, String>, problems: &mut Problems) -> (Settings, Source) {
        let nowhere = Position::default();
        let source = match (given(&self.config_file), given(&self.config_text)) {
            (Some(_), Some(_)) => {
                problems.error(
                    nowhere,
                    "--config-text",
                    "`--config-file` and `--config-text` are both set",
                    "remove one of them",
                );
                Source::Default
            }
            (Some(file), None) => Source::File(PathBuf::from(file)),
            (None, Some(text)) => Source::Text(text),
            (None, None) => Source::Default,
        };
        let mut refresh_metrics = self.refresh_metrics_interval;
        if refresh_metrics < Duration::from_millis(50) {
            problems.warn(
                nowhere,
                "--refresh-metrics-interval",
                format!("{refresh_metrics:?} is raised to the least interval of 50ms"),
                "write 50ms or more",
            );
            refresh_metrics = Duration::from_millis(50);
        }
        for (name, value) in [
            ("--refresh-prometheus-metrics-interval", self.refresh_prometheus_metrics_interval),
            ("--metrics-staleness-threshold", self.metrics_staleness_threshold),
        ] {
            if value < Duration::from_millis(1) {
                problems.error(nowhere, name, format!("{value:?} is too short"), "write 1ms or more");
            }
        }
        let Size(Some(request_body)) = self.max_request_body else {
            problems.error(
                nowhere,
                "--max-request-body",
                "a body without a limit is not allowed",
                "write a quantity, such as 64Mi",
            );
            return (Settings::default(), source);
        };
        let metrics = MetricsServer {
            auth: self.metrics_endpoint_auth,
            cert_dir: given(&self.metrics_cert_dir).map(PathBuf::from),
            client_ca: given(&self.metrics_client_ca_file).map(PathBuf::from),
            pprof: self.enable_pprof,
            stream_metrics: self.enable_grpc_stream_metrics,
        };
        match (&metrics.cert_dir, &metrics.client_ca) {
            (None, Some(_)) => problems.error(
                nowhere,
                "--metrics-client-ca-file",
                "client certificates need TLS on the metrics port",
                "set --metrics-cert-dir",
            ),
            (Some(_), None) if !metrics.auth => problems.error(
                nowhere,
                "--metrics-cert-dir",
                "TLS on the metrics port without any check of the client",
                "set --metrics-client-ca-file or --metrics-endpoint-auth=true",
            ),
            _ => {}
        }
        if self.enable_cert_reload && self.cert_path.is_empty() {
            problems.warn(nowhere, "--enable-cert-reload", "there is no --cert-path to watch", "remove the flag");
        }
        let settings = Settings {
            ports: Ports { grpc: self.grpc_port, health: self.grpc_health_port, metrics: self.metrics_port },
            pool: self.pool(env, problems),
            tls: Tls {
                enabled: self.secure_serving,
                cert_path: given(&self.cert_path).map(PathBuf::from),
                reload: self.enable_cert_reload && !self.cert_path.is_empty(),
                min_version: tls::min_version(&self.tls_min_version, problems),
                cipher_suites: tls::cipher_suites(&self.tls_cipher_suites, problems),
            },
            metrics,
            logging: Logging {
                verbosity: self.verbosity,
                devel: self.zap_devel,
                encoder: match (self.zap_encoder.as_deref(), self.zap_devel) {
                    (Some("console"), _) | (None, true) => LogEncoder::Console,
                    _ => LogEncoder::Json,
                },
                level: self.zap_log_level.clone(),
                stacktrace_level: self.zap_stacktrace_level.clone(),
                time_encoding: self.zap_time_encoding.clone(),
                access_log: self.access_log,
            },
            limits: Limits {
                request_body,
                grpc_receive: self.grpc_max_recv_msg_size.0,
                grpc_send: self.grpc_max_send_msg_size.0,
                debug_decisions: self.debug_decisions as usize,
                decisions_per_second: self.debug_decisions_rate,
                worker_threads: self.worker_threads.map(usize::from),
            },
            intervals: Intervals {
                refresh_metrics,
                refresh_gauges: self.refresh_prometheus_metrics_interval,
                staleness: self.metrics_staleness_threshold,
                drain: self.drain_timeout,
                grace: self.shutdown_grace,
            },
            disable_subset_filter: self.disable_endpoint_subset_filter,
            emit_scores: self.emit_endpoint_scores,
            allow_experimental: self.allow_experimental_plugins,
            leader_election: self.ha_enable_leader_election,
            health_checking: self.health_checking,
            tracing: self.tracing,
            trace_export: otel::traces(env, problems),
            strip_control_headers: self.strip_control_headers,
            debug_response_header: self.debug_response_header,
            allow_explain_header: self.allow_explain_header,
            decision_log: given(&self.decision_log)
                .map(|path| (PathBuf::from(path), self.decision_log_size.0.unwrap_or(DECISION_LOG_SIZE))),
            token_metrics: self.token_metrics,
            conformance: self.conformance(env, problems),
        };
        ports(&settings.ports, problems);
        (settings, source)
    }

    /// The test mode: an image for the conformance suite can only carry it in its environment, because the
    /// suite's manifests fix the arguments.
    fn conformance(&self, env: &BTreeMap<String, String>, problems: &mut Problems) -> Conformance {
        let mut switch = |flag: bool, name: &str| {
            let Some(text) = env.get(name).filter(|text| !text.is_empty()) else { return flag };
            let Some(on) = go_bool(text) else {
                problems.error(
                    Position::default(),
                    name,
                    format!("`{text}` is not a boolean"),
                    "write true or false, or remove the variable",
                );
                return flag;
            };
            flag || on
        };
        Conformance {
            test_mode: switch(self.conformance_test_mode, "POINTSMAN_CONFORMANCE_TEST_MODE"),
            echo_destination: switch(self.conformance_echo_destination, "POINTSMAN_CONFORMANCE_ECHO_DESTINATION"),
        }
    }

    fn pool(&self, env: &BTreeMap<String, String>, problems: &mut Problems) -> PoolSettings {
        const PORTS: &str = "--endpoint-target-ports";
        let nowhere = Position::default();
        let from_env = |name: &str| env.get(name).filter(|n| !n.is_empty()).cloned();
        let mut target_ports = Vec::new();
        for text in self.endpoint_target_ports.iter().map(|t| t.trim()).filter(|t| !t.is_empty()) {
            match text.parse::<u16>() {
                Ok(port) if port > 0 => {
                    if !target_ports.contains(&port) {
                        target_ports.push(port);
                    }
                }
                _ => {
                    let message = format!("`{text}` is not a port: it must be between 1 and 65535");
                    problems.error(nowhere, PORTS, message, "write numbers separated by commas");
                }
            }
        }
        let selector = given(&self.endpoint_selector);
        if target_ports.len() > 8 {
            let message = format!("{} ports are more than the 8 that one endpoint can have", target_ports.len());
            problems.error(nowhere, PORTS, message, "name at most 8 ports");
        }
        if selector.is_some() && self.endpoint_target_ports.is_empty() {
            problems.error(nowhere, PORTS, "`--endpoint-selector` needs the ports of its endpoints", "add the flag");
        }
        if selector.is_none() && !target_ports.is_empty() {
            problems.warn(nowhere, PORTS, "there is no --endpoint-selector: the ports have no effect", "remove it");
        }
        PoolSettings {
            name: given(&self.pool_name),
            namespace: given(&self.pool_namespace)
                .or_else(|| from_env("NAMESPACE"))
                .unwrap_or_else(|| "default".into()),
            group: self.pool_group.clone(),
            selector,
            target_ports,
            pod_name: from_env("POD_NAME"),
        }
    }
}

fn ports(ports: &Ports, problems: &mut Problems) {
    let named = [("--grpc-port", ports.grpc), ("--grpc-health-port", ports.health), ("--metrics-port", ports.metrics)];
    for (i, (name, port)) in named.iter().enumerate() {
        if let Some((other, _)) = named[..i].iter().find(|(_, p)| p == port && *p != 0) {
            let message = format!("{port} is also the port of `{other}`");
            problems.error(Position::default(), *name, message, "give every listener a port of its own");
        }
    }
}
