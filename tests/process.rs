//! The real binary as an operator meets it: flags, exit codes, logs, health, TLS, the metrics port, the
//! endpoints file, and its end by a signal.

#[path = "process/admin.rs"]
mod admin;
#[path = "shared/client.rs"]
mod client;
#[path = "process/drain.rs"]
mod drain;
#[path = "process/endpoints.rs"]
mod endpoints;
#[path = "process/harness.rs"]
mod harness;
#[path = "process/health.rs"]
mod health;
#[path = "process/logs.rs"]
mod logs;
#[path = "process/metrics_tls.rs"]
mod metrics_tls;
#[path = "process/start.rs"]
mod start;
#[path = "process/tls.rs"]
mod tls;
#[path = "process/traces.rs"]
mod traces;
